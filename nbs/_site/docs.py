"""Render the docs site into `_docs` from the root `_quarto.yml`: `python nbs/_site/docs.py`.

Notebooks go through nbdev's own processors first (signatures, folded source, hidden cells), then to Quarto where it is
installed and to smalldocs otherwise. Nothing is executed: pages show the outputs that are saved in the notebooks.
"""

import argparse
import ast
import configparser
import html
import inspect
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NUMBER = re.compile(r"nbs/(?:\d+_\w+/)?\d+[a-z]*_")  # a page's name has neither the part nor the number
PAGES = {"CITATION.cff": "citation", "CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog",
         "tests/benchmarks/": "benchmarks"}  # not notebooks  # fmt: skip

PICTURES = {"image/png", "image/jpeg"}


def notebooks(
    root: Path,  # of the repository
) -> list[Path]:
    "Every notebook that becomes a page: commands and index, the chapters part by part, then the guides."
    guides = sorted((root / "nbs" / "guides").glob("*.ipynb"))
    return [*sorted((root / "nbs").glob("*.ipynb")), *chapters(root), *guides]


def chapters(
    root: Path,  # of the repository
) -> list[Path]:
    "The notebooks that define the package, in reading order: nbs/1_data/10_core.ipynb and so on."
    return sorted((root / "nbs").glob("[0-9]*_*/[0-9]*.ipynb"))


def page_name(
    notebook: Path,  # e.g. nbs/1_data/10_core.ipynb
) -> str:  # e.g. 'core'
    "The name of a notebook's page: its own name without the number."
    return re.sub(r"^\d+[a-z]*_", "", Path(notebook).stem)


def module_name(
    notebook: Path,
) -> str:  # e.g. 'core' or 'paper.pages'; "" for a notebook that exports nothing
    "The module that a notebook defines."
    found = re.search(r"#\|\s*default_exp\s+([\w.]+)", Path(notebook).read_text(encoding="utf-8"))
    return found[1] if found else ""


def symbols(
    root: Path,  # of the repository
) -> dict[str, str]:  # 'Sample' and 'core.Sample' -> 'core.ipynb#sample'
    "Every name a backtick can link to, with its place on the site: rooms, public names, methods of public classes."
    places = {}
    for notebook in chapters(root):
        module, page = module_name(notebook), page_name(notebook)
        source = root / "vlm_counting" / f"{module.replace('.', '/')}.py"
        if not module or not source.exists():
            continue
        places[f"vlm_counting.{module}"] = f"{page}.ipynb"
        for node in ast.parse(source.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = {defined_name(node): f"{page}.ipynb#{defined_name(node).lower()}"}
                methods = [part for part in getattr(node, "body", []) if isinstance(part, ast.FunctionDef)]
                if isinstance(node, ast.ClassDef):
                    names |= {f"{node.name}.{part.name}": names[node.name] for part in methods}
            elif isinstance(node, ast.Assign):
                names = {target.id: f"{page}.ipynb" for target in node.targets if isinstance(target, ast.Name)}
            else:
                continue
            for name, place in names.items():
                if not name.startswith("_"):
                    places.setdefault(name, place)
                    places[f"{module}.{name}"] = places[f"vlm_counting.{module}.{name}"] = place
    return places


def link_names(
    text: str,  # Markdown
    places: dict[str, str],  # see `symbols`
) -> str:
    "Turn names in backticks into links, outside code blocks, headings and links that are there already."
    pattern, fenced, lines = re.compile(r"(?<!\[)`([A-Za-z_][\w.]*)(\(\))?`(?!\])"), False, []

    def link(match: re.Match) -> str:
        place = places.get(match[1])
        return f"[{match[0]}]({place})" if place else match[0]

    for line in text.split("\n"):
        fenced ^= line.startswith("```")
        lines.append(line if fenced or line.startswith(("    ", "#", "```")) else pattern.sub(link, line))
    return "\n".join(lines)


def fix_links(
    text: str,  # Markdown, its links relative to its file
    source_url: str,  # where a file of the repository can be seen
    folder: str = "nbs",  # of the file, in the repository: 'nbs/guides', '' for the root
) -> str:
    "Make links to notebooks and files of the repository good for the site, where all but the guides stand in nbs/."
    page_folder = folder if folder == "nbs/guides" else "nbs"

    def fix(match: re.Match) -> str:
        target, sign, anchor = match[1].partition("#")
        place = posixpath.normpath(posixpath.join(folder, target))
        if place.startswith("nbs/"):
            place = NUMBER.sub("nbs/", place)
        elif place in PAGES or f"{place}/" in PAGES:
            place = f"nbs/{PAGES.get(place) or PAGES[f'{place}/']}.md"
        elif re.fullmatch(r"tests/benchmarks/\w+\.md", place):
            place, sign, anchor = "nbs/benchmarks.md", "#", Path(place).stem
        else:
            return f"]({source_url}/{place}{sign}{anchor})"
        return f"]({posixpath.relpath(place, page_folder)}{sign}{anchor})"

    return re.sub(r"\]\((?![a-z]+:|#|/)([^)\s]+)\)", fix, text)


def signature(
    node: ast.FunctionDef | ast.ClassDef,
    lines: list[str],  # of the source that the node was parsed from
) -> str:  # Python: decorators, name, arguments or fields, each with its comment
    "The head of a definition as it is written: in this project the comments beside arguments are the reference."
    first = min([part.lineno for part in node.decorator_list] + [node.lineno])
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    if isinstance(node, ast.ClassDef):
        fields = [part for part in body if isinstance(part, ast.AnnAssign)]
        head = lines[first - 1 : node.lineno]
        head += lines[fields[0].lineno - 1 : fields[-1].end_lineno] if fields else []
        for part in body:
            if isinstance(part, ast.FunctionDef) and (not part.name.startswith("_") or part.name == "__init__"):
                text = (ast.get_docstring(part) or "").split("\n")[0]
                head += textwrap.indent(signature(part, lines) + (f'\n    "{text}"' if text else ""), "    ").split(
                    "\n"
                )
        return textwrap.dedent("\n".join(line for line in head if line.strip()))
    return textwrap.dedent("\n".join(lines[first - 1 : max(node.lineno, node.body[0].lineno - 1)]))


def defined_name(
    node: ast.FunctionDef | ast.ClassDef,
) -> str:  # 'render', or 'Scene.render' for a method added to a class with fastcore's `patch`
    "The name under which nbdev shows a definition."
    patched = any(re.match(r"patch\b", ast.unparse(decorator)) for decorator in node.decorator_list)
    return f"{ast.unparse(node.args.args[0].annotation)}.{node.name}" if patched else node.name


def reference(
    source: str,  # of exported cells
    places: dict[str, str],  # see `symbols`
) -> dict[str, str]:  # 'Sample' and 'Registry.add' -> Markdown
    "Heading, signature and docstring of every definition."
    lines, entries = source.split("\n"), {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        parts = [(defined_name(node), node)]
        if isinstance(node, ast.ClassDef):
            parts += [(f"{node.name}.{part.name}", part) for part in node.body if isinstance(part, ast.FunctionDef)]
        for name, part in parts:
            text = link_names(inspect.cleandoc(ast.get_docstring(part) or ""), places)
            entries[name] = f"### {name} {{#{name.lower()}}}\n\n```python\n{signature(part, lines)}\n```\n\n{text}"
    return entries


def drawings(
    root: Path,  # of the repository
) -> dict[str, str]:  # 'plot_gap' -> what it draws, from its docstring
    "What each figure of the package shows."
    shown = {}
    for source in sorted((root / "vlm_counting").rglob("*.py")):
        for node in ast.parse(source.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and re.match(r"plot_|wrong_answers|contact_sheet", node.name):
                shown[node.name] = last_sentence((ast.get_docstring(node) or "").split(". ")[0])
    return shown


def last_sentence(
    text: str,  # Markdown
) -> str:  # plain text, at most 300 characters; a heading where there is nothing else
    "What a text says last, before the figure that it announces."
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    blocks = [part.strip() for part in re.split(r"\n\s*\n|\n(?=[-*] |[|#])", text) if part.strip()]
    prose = [part for part in blocks if not part.startswith(("#", "|", ":::"))] or blocks or ["Figure"]
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"^(#+|[->])\s+", "", prose[-1]))
    plain = re.sub(r"[`*]", "", " ".join(plain.split()))
    said = re.split(r"(?<=[.!?])\s+(?=[A-Z(])", plain)
    return textwrap.shorten(" ".join(said[-2:] if len(said[-1]) < 40 else said[-1:]), 300, placeholder=" ...")


def describe_figures(
    nb,  # a notebook as nbdev reads it, changed in place
    drawn: dict[str, str],  # see `drawings`
) -> None:
    "Give every saved picture a text for those who cannot see it: what it draws, and its title or the sentence before."
    before = heading = ""
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            before = last_sentence(cell.source)
            heading = (re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE) or [heading])[-1].replace("`", "")
        if cell.cell_type != "code" or re.search(r"^#\|\s*fig-(alt|cap):", cell.source, re.MULTILINE):
            continue  # Quarto and smalldocs take what the cell says itself
        outputs = [output.data for output in cell.outputs if output.get("data")]
        count, number = sum(bool(PICTURES & set(data)) for data in outputs), 0
        told = heading if count > 1 and heading else before
        called = [drawn[name] for name in re.findall(r"\b(\w+)\(", cell.source) if name in drawn and count == 1]
        titles = re.findall(r"\btitle=\"([^\"]+)\"", cell.source)[-1:] if called else []
        for data in outputs:
            if "text/markdown" in data:
                told = last_sentence("".join(data["text/markdown"]).split("\n")[0])
            for kind in PICTURES & set(data):
                number += 1
                text = ". ".join(part.rstrip(".:") for part in [*called[-1:], *(titles or [told])])
                text += f" ({number} of {count})" if count > 1 else ""
                source = f"data:{kind};base64,{''.join(data.pop(kind)).strip()}"
                data.setdefault("text/html", f'<img src="{source}" class="img-fluid" alt="{html.escape(text)}">')


class Signatures:
    "nbdev's `exec_show_docs` without execution: what it shows is read from the notebook's exported cells."

    def __init__(self, nb, entries: dict[str, str]):
        self.entries, self.heading = entries, ""

    def __call__(self, cell) -> None:
        if cell.cell_type == "markdown":
            headings = re.findall(r"^##+ +`?([\w.]+)`?\s*$|^##+ ", cell.source or "", re.MULTILINE)
            self.heading = headings[-1] if headings else self.heading
            return
        match = re.search(r"^show_doc\(([\w.]+)", cell.source or "", re.MULTILINE)
        if cell.cell_type == "code" and match:
            entry = self.entries[match[1]]
            if self.heading.lower() == match[1].lower():  # the chapter has a heading of that name: one is enough
                entry = entry.split("\n", 1)[1]
            cell.cell_type, cell.outputs, cell.source = "markdown", [], f"::: {{.api}}\n\n{entry}\n\n:::"


class Links:
    "Backticks become links; links to notebooks and files point to their pages."

    def __init__(self, nb, places: dict[str, str], source_url: str, folder: str):
        up = "../" * (folder == "nbs/guides")
        self.places = {name: up + place for name, place in places.items()}
        self.source_url, self.folder = source_url, folder

    def __call__(self, cell) -> None:
        if cell.cell_type == "markdown" and not cell.source.startswith(":::"):
            cell.source = link_names(fix_links(cell.source, self.source_url, self.folder), self.places)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/markdown" in data:
                data["text/markdown"] = link_names("".join(data["text/markdown"]), self.places)


def is_plumbing(
    node: ast.stmt,  # of an exported cell
) -> bool:
    "Whether it only imports, or says where names have moved: nothing that a reader of the page looks for."
    moved = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__getattr__"
    return moved or isinstance(node, ast.Import | ast.ImportFrom)


def unfold_exports(
    nb,  # a notebook as nbdev reads it
) -> str:  # the source of its exported cells
    "Show the source of exported cells, also internal ones (nbdev's `exports`), unless all of it is plumbing."
    exported = []
    for cell in nb.cells:
        if cell.cell_type == "code" and re.match(r"#\|\s*export[si]?\s*\n", cell.source):
            exported.append(cell.source)
            if not all(is_plumbing(node) for node in ast.parse(cell.source).body):
                cell.source = re.sub(r"^#\|\s*export[si]?\s*\n", "#| exports\n", cell.source)
    return "\n\n".join(exported)


class SourceBelow:
    "nbdev's `mv_exports` for cells that define several things: signatures in their order, then the source, folded."

    def __init__(self, nb, entries: dict[str, str]):
        self.nb, self.order = nb, [text.split("\n", 1)[1] for text in entries.values()]

    def place(self, cell) -> int:
        "Where a signature stands in the source."
        return next((index for index, text in enumerate(self.order) if text in cell.source), len(self.order))

    def begin(self) -> None:
        cells, source, shown = [], None, []
        for cell in [*self.nb.cells, None]:
            if cell is not None and getattr(cell, "has_sd", False):
                shown.append(cell)
                continue
            cells += sorted(shown, key=self.place) + ([source] if source is not None else [])
            source, shown = None, []
            if cell is not None and cell.cell_type == "code" and "exports" in cell.directives_:
                parts = [defined_name(node) for node in ast.parse(cell.source).body if hasattr(node, "name")]
                if parts:  # constants and registry entries stay in sight
                    cell.source = f'#| code-fold: true\n#| code-summary: "Source of {", ".join(parts)}"\n{cell.source}'
                source = cell
            elif cell is not None:
                cells.append(cell)
        self.nb.cells = cells


def keep_introduction(
    nb,  # a notebook as nbdev reads it, changed in place
) -> None:
    "What a title's cell says below title and promise becomes a cell of its own: nbdev makes that cell the page's head."
    from execnb.nbio import mk_cell

    first = nb.cells[0] if nb.cells else None
    head = first and first.cell_type == "markdown" and re.match(r"# \S.*\n*(>.*\n?)*", first.source)
    if head and (text := first.source[head.end() :].strip()):
        first.source = head[0].strip()
        nb.cells.insert(1, mk_cell(text, "markdown"))


def process(
    notebook: Path,  # read, never written
    target: Path,  # the notebook for the site
    places: dict[str, str],
    drawn: dict[str, str],  # see `drawings`
    source_url: str,
    folder: str = "nbs",  # see `fix_links`
) -> None:
    "One notebook through nbdev's processors, with signatures and links of our own."
    from execnb.nbio import read_nb, write_nb
    from nbdev.process import NBProcessor
    from nbdev.processors import FilterDefaults

    nb = read_nb(notebook)
    keep_introduction(nb)
    describe_figures(nb, drawn)
    entries = reference(unfold_exports(nb), places)
    ours = {
        "exec_show_docs": partial(Signatures, entries=entries),
        "add_links": partial(Links, places=places, source_url=source_url, folder=folder),
        "mv_exports": partial(SourceBelow, entries=entries),
    }
    drop = {"insert_warning", "add_fold", "clean_magics"}
    procs = [step for step in FilterDefaults().base_procs() if step.__name__ not in drop]
    # `partial` objects are made into processors here, because nbdev instantiates classes only
    procs = [ours[step.__name__](nb=nb) if step.__name__ in ours else step for step in procs]
    NBProcessor(nb=nb, procs=procs).process()
    write_nb(nb, target)


def bibtex(
    cff: dict,  # of CITATION.cff
) -> str:  # two entries
    "This project and the paper that it reproduces (the first reference), for a bibliography."

    def entry(kind: str, key: str, **fields: object) -> str:
        rows = [f"  {name:<8}= {{{value}}}" for name, value in fields.items() if value]
        return f"@{kind}{{{key},\n" + ",\n".join(rows) + "\n}"

    paper, year = cff["references"][0], str(cff.get("date-released", ""))[:4]
    people = " and ".join(f"{who['family-names']}, {who['given-names']}" for who in paper["authors"])
    number = "arXiv preprint arXiv:" + paper["url"].rpartition("/")[2]
    ours = {"title": cff["title"].replace("_", r"\_"), "author": f"{{{cff['authors'][0]['name']}}}".replace("_", r"\_")}
    theirs = {"title": f"{{{paper['title']}}}", "author": people, "journal": number, "year": paper["year"]}
    return "\n\n".join([
        entry("software", cff["title"], **ours, version=cff["version"], year=year, url=cff["repository-code"]),
        entry("article", "alghisi2025dere", **theirs, url=paper["url"]),
    ])  # fmt: skip


def benchmarks_page(
    folder: Path,  # tests/benchmarks/
) -> str:  # Markdown
    "All that was measured, on one page: each file a section under its own name."
    lines = ["---", "title: Benchmarks", "---", "", "What was measured, on which day and machine, by which script.", ""]
    for path in sorted(folder.glob("*.md")):
        text = re.sub(r"^##", "###", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        lines += [re.sub(r"^# (.*)", rf"## \1 {{#{path.stem}}}", text, count=1)]
    return "\n".join(lines)


def page_text(
    place: Path,  # of one of `PAGES`
) -> str:  # Markdown
    "A page that is no notebook."
    if place.is_dir():
        return benchmarks_page(place)
    text = place.read_text(encoding="utf-8")
    return citation_page(text) if place.suffix == ".cff" else text


def citation_page(
    text: str,  # of CITATION.cff
) -> str:  # Markdown
    "The citation file as a page: how to cite this project, and the work and data that it stands on."
    import yaml

    def names(people: list[dict]) -> str:
        full = [" ".join(who[key] for key in ("given-names", "family-names", "name") if key in who) for who in people]
        return full[0] if len(full) == 1 else f"{', '.join(full[:-1])} and {full[-1]}".replace("and and", "and")

    cff = yaml.safe_load(text)
    lines = ["---", "title: Citation and licences", "---", "", cff["message"], "", "```bibtex", bibtex(cff), "```", ""]
    lines += ["## What this project stands on", ""]
    for item in cff["references"]:
        where = f"[{item['url']}]({item['url']})" if item.get("url") else ""
        licence = f"Licence: {item['license']}" if item.get("license") else ""
        rest = [item.get("year"), item.get("conference", {}).get("name"), licence, where]
        lines += [f"- **{item['title']}**. {names(item['authors'])}. {', '.join(str(part) for part in rest if part)}."]
        lines += [re.sub(r"(https?://\S+)", r"<\1>", f"  {item['notes']}")] if item.get("notes") else []
    return "\n".join([*lines, "", "## The citation file", "", "```yaml", text.strip(), "```", ""])


def number_figures(
    nb: dict,  # a processed notebook
) -> None:
    "Number captioned figures and resolve `@fig-...`, which Quarto does by itself and smalldocs does not."
    numbers = {}
    for cell in nb["cells"]:
        caption = re.search(r"^(#\|\s*fig-cap:\s*)(['\"]?)(.*?)\2$", cell["source"], re.MULTILINE)
        if cell["cell_type"] == "code" and caption:
            label = re.search(r"^#\|\s*label:\s*(fig-[\w-]+)", cell["source"], re.MULTILINE)
            number = len(numbers) + 1
            numbers[label[1] if label else number] = number
            text = f"Figure {number}: {caption[3]}".replace('"', '\\"')
            cell["source"] = cell["source"].replace(caption[0], f'{caption[1]}"{text}"', 1)
    for cell in nb["cells"]:
        if cell["cell_type"] == "markdown":
            for label, number in numbers.items():
                cell["source"] = re.sub(rf"@{label}\b", f"[Figure {number}](#{label})", cell["source"])


def stage(
    root: Path,  # of the repository; nothing in it is changed
    folder: Path,  # empty; becomes a Quarto project
    quarto: bool,  # False: figures are numbered here
) -> None:
    "Lay out a Quarto project that either program can render: processed notebooks, pages, style, `_quarto.yml`."
    from execnb.nbio import read_nb, write_nb

    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(root / "settings.ini", encoding="utf-8")
    values = settings["DEFAULT"]
    source_url = f"https://github.com/{values['user']}/{values['repo']}/blob/{values['branch']}"
    (folder / "nbs").mkdir(parents=True)
    (folder / "_quarto.yml").write_text(NUMBER.sub("nbs/", (root / "_quarto.yml").read_text(encoding="utf-8")))
    (folder / "nbs" / "_site").mkdir()
    for file in ("docs.css", "favicon.svg"):
        shutil.copy(root / "nbs" / "_site" / file, folder / "nbs" / "_site")
    if (root / "nbs" / "images").exists():
        shutil.copytree(root / "nbs" / "images", folder / "nbs" / "images")
    for file, page in PAGES.items():
        text = page_text(root / file)
        where = "" if (root / file).is_file() else file.rstrip("/")
        (folder / "nbs" / f"{page}.md").write_text(fix_links(text, source_url, where), encoding="utf-8")
    places, drawn = symbols(root), drawings(root)
    (folder / "nbs" / "guides").mkdir()
    for notebook in notebooks(root):
        where = notebook.parent.relative_to(root).as_posix()
        shelf = where if where == "nbs/guides" else "nbs"
        target = folder / shelf / f"{page_name(notebook)}.ipynb"
        process(notebook, target, places, drawn, source_url, where)
        if not quarto:
            nb = read_nb(target)
            number_figures(nb)
            write_nb(nb, target)


def stay_at_home(
    site: Path,  # the rendered site
) -> None:
    "Take web fonts out of the theme: a reader without a network sees the same page, and nobody is told who reads it."
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        kept = re.sub(r"@import\s+(url\()?['\"]?https?://.*?(?:['\"]\s*\)?|\))[^;]*;", "", text)
        if kept != text:
            sheet.write_text(kept, encoding="utf-8")


def build(
    root: Path = ROOT,  # of the repository
    output: Path | None = None,  # replaced; None: `_docs` in the repository
    quarto: str | None = None,  # the program; None: the one on the PATH, if any
) -> Path:  # the folder with index.html
    "Build the whole site. `RuntimeError` when a page cannot be rendered."
    output, quarto = Path(output or root / "_docs").resolve(), quarto or shutil.which("quarto")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "site"
        stage(Path(root), folder, bool(quarto))
        if quarto:
            command = [quarto, "render", str(folder), "--no-execute"]
            done = subprocess.run(command, env=os.environ | {"QUARTO_PYTHON": sys.executable})
            if done.returncode:
                raise RuntimeError(f"quarto render failed with code {done.returncode}; its message is above.")
        else:
            from smalldocs.site import build as render

            site = render(folder, quiet=True)
            if site.broken:
                page, link = site.broken[0]
                raise RuntimeError(f"{page} links to {link}, which is not on the site ({len(site.broken)} such links).")
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(folder / "_docs", output)
    stay_at_home(output)
    start = html.escape("nbs/index.html")
    (output / "index.html").write_text(
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>vlm_counting</title>'
        f'<meta http-equiv="refresh" content="0; url={start}"><link rel="icon" href="data:,"></head>'
        f'<body><a href="{start}">vlm_counting</a></body></html>\n'
    )
    (output / ".nojekyll").touch()
    return output


def main(arguments: list[str] | None = None) -> int:
    "The command line."
    parser = argparse.ArgumentParser(description="Render the docs site from the root _quarto.yml.")
    parser.add_argument("--output", type=Path, help="folder to replace (default: _docs)")
    output = build(output=parser.parse_args(arguments).output)
    print(f"{len(list(output.rglob('*.html')))} pages in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
