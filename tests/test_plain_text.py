"Guards for what people see of data: a name is text, wherever it comes from; it is no HTML, no link and no formula."

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from notebook_cells import cells, named
from PIL import Image

from vlm_counting.figures import escape, show_table
from vlm_counting.models import twins_dir

ROOT = Path(__file__).resolve().parents[1]
VERBS = [path for path in sorted((ROOT / "nbs").glob("*.ipynb")) if path.stem != "index"]
SCRIPT = "<script>document.documentElement.dataset.pwned=1</script>"
HOSTILE = ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</td></table><svg onload=alert(1)>",
           "&lt;b&gt;", '"><i>', "{{ 7 * 7 }}", "[a](javascript:alert(1))", "![](x)", "`<b>`", "*a* _b_ ~~c~~ **d**",
           "# heading", "- [ ] item", "$x$ \\(y\\) \\begin{z}", "<!-- ", "a\n\n<h1>b</h1>\n\n```", "1. one", "http://x.org|y",
           "\\*a\\*", "&amp;"]  # fmt: skip


class Seen(HTMLParser):
    "What a browser would make of a page: its tags with their attributes, and its text."

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)


def line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_table_shows_every_name_as_it_stands(name):
    "As value, category, part of a list, heading, row label, name of either, in several levels, and in the caption."
    rows = pd.MultiIndex.from_tuples([(name, 1), ("b", 2)], names=[name, None])
    columns = pd.MultiIndex.from_tuples([(name, "a"), ("b", name), ("c", "d")], names=[None, name])
    cells = pd.DataFrame([[name, 0.5, [name]], ["b", None, {name: name}]], index=rows, columns=columns)
    plain = pd.DataFrame({name: pd.Categorical([name, "b"]), "text": pd.array([name, None], dtype="string")})
    whole = 2 * (repr(name)[1:-1] != name)  # a list and a dict show a backslash twice
    for table, index, times in (
        (cells, True, 7 - whole),
        (cells, False, 5 - whole),
        (plain, True, 4),
        (plain, False, 4),
    ):
        page = show_table(table, name, index=index).background_gradient().to_html()
        seen = Seen(page)
        harmless = {"style", "table", "caption", "thead", "tbody", "tr", "th", "td"}
        assert {tag for tag, _ in seen.tags} <= harmless, name
        assert sum(line(name) in line(words) for words in seen.words) >= times, page
    assert "0.500" in page or "0.500" in show_table(cells).to_html()


def as_page(markdown: str) -> Seen:
    "As nbconvert shows it, which leaves HTML inside Markdown as it is."
    from nbconvert.filters import markdown2html

    return Seen(markdown2html(markdown))


@pytest.mark.parametrize("name", HOSTILE)
def test_escaped_text_is_read_as_it_stands(name):
    for text in (f"From {escape(name)}, **bold**: {escape(name)}.", f"- one\n- {escape(name)} and more"):
        seen = as_page(text)
        assert {tag for tag, _ in seen.tags} <= {"p", "strong", "ul", "li"}, seen.tags
        expected = f"From {line(name)}, bold: {line(name)}." if "bold" in text else f"{line(name)} and more"
        assert expected in line("".join(seen.words))
    assert ("a", {"href": "page"}) in as_page(f"[{escape(name)}](page)").tags


def test_the_test_itself_sees_markup():
    assert "script" in dict(as_page(f"From {HOSTILE[0]}").tags) and "a" in dict(as_page("[a](b)").tags)


def unescaped(source: str) -> list[str]:
    "Places of a verb where names could reach the page as HTML."
    found = re.findall(r"\.style\b.*|set_caption.*|HTML\(.*|to_html.*|format_index.*", source)
    found += re.findall(r"show_table\(.*\)\.format\b.*", source)
    lines = [text for text in source.split("\n") if "Markdown(" in text or re.search(r"(text|told|said|each) = ", text)]
    for text in lines if "Markdown" in source else ():
        held = re.findall(r"\{([^{}]*)\}", text) + re.findall(r"Markdown\(([a-z_]+\(.*)\)", text)
        found += [part for part in held if not re.match(r"(escape|quote)\(|(source|verdict|paragraph|each)$", part)]
    return found


def test_what_could_be_html_is_seen():
    assert unescaped("t.style.hide()") and unescaped("HTML(x)") and unescaped("show_table(t).format(precision=2)")
    assert (
        unescaped('Markdown(f"{name}")')
        and unescaped("Markdown(tell(x))")
        and unescaped('Markdown(f"{escape(a)} {b}")')
    )
    assert not unescaped('display(show_table(t, "x"), Markdown(f"**{escape(name)}**"), Markdown(escape(tell(x))))')


@pytest.mark.parametrize("notebook", VERBS, ids=named)
def test_no_verb_shows_names_but_by_the_two_functions(notebook):
    for cell in cells(notebook):
        if cell["cell_type"] == "code":
            assert not unescaped(cell["source"]), f"{notebook.name}: use show_table and escape of the room figures"


def test_no_room_makes_html_of_names_by_itself():
    "Records show themselves, and with them the names that they hold."
    for path in sorted((ROOT / "vlm_counting").rglob("[!_]*.py")):
        for line in path.read_text(encoding="utf-8").split("\n"):
            if path.stem != "figures":
                assert not re.search(r"\.style\b(?!=)|set_caption|Markdown\(", line), f"{path.name}: {line.strip()}"
            if re.search(r"to_html\(|_repr_markdown_", line):
                assert "show_table(" in line, f"{path.name}: {line.strip()}"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Seen:
    "The report of `evaluate` on a set, and of a checkpoint, whose every name would like to be a program."
    place = tmp_path_factory.mktemp("hostile")
    checkpoint, rows = place / "<img src=x onerror=alert(2)> $\\frac{$", []
    shutil.copytree(twins_dir() / "tiny-qwen2-vl", checkpoint)
    for i in range(4):
        Image.new("RGB", (64, 64), (i * 60, 0, 0)).save(place / f"{i}.png")
        names = {"entity": f"star{i}{SCRIPT}", "label": f"{i}<img src=x onerror=alert(1)>", "shape": "$\\frac{$ $"}
        sample = {"uid": f"u{i}<script>", "image": f"{i}.png", "question": f"How many stars {SCRIPT} are there?"}
        rows.append(sample | {"target": i + 1, "factors": names})
    (place / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = ["model=tiny-qwen2-vl", f"checkpoint={checkpoint}", f"dataset={place / 'manifest.jsonl'}", "limit=None"]
    command = [Path(sys.executable).parent / "vlm-counting", "run", "evaluate", *asked]
    environment = os.environ | {"VLM_COUNTING_RESULTS": str(place / "results")}
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr[-3000:]
    (folder,) = (path.parent for path in (place / "results").rglob("report.html"))
    return Seen((folder / "report.html").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_report_runs_nothing_that_a_data_set_brings_along(page):
    run_by_it = [word for word in page.words if "dataset.pwned" in word and SCRIPT not in word]  # inside a <script>
    assert not run_by_it and not [name for _, given in page.tags for name in given if name.startswith("on")]
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert images and all(source.startswith("data:image/") for source in images)
    shown = [line(word) for word in page.words]
    for name in (f"star0{SCRIPT}", "0<img src=x onerror=alert(1)>"):
        assert any(name in word for word in shown), name
