"Guards for the whole house: layers, notebooks clean and in sync, short cells, quick import, one version, true README."

import ast
import importlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from _site import docs, readme
from forking import FORK_EACH_LINE
from notebook_cells import MACHINE, SETTINGS, cells, named, reading

import vlm_counting

ROOT = Path(__file__).resolve().parents[1]
ROOMS = docs.chapters(ROOT)
VERBS = [path for path in sorted((ROOT / "nbs").glob("*.ipynb")) if path.stem != "index"]
NOTEBOOKS = [ROOT / "nbs" / "index.ipynb", *VERBS, *ROOMS]
PARTS = ("1_data", "2_answers", "3_states", "4_diagnosis", "5_paper", "6_running", "7_tiny")
HEAVY = ("torch", "transformers", "open_clip")
CONTRACT = {
    "core": "Sample Prediction Registry RunRecord progress_bar write_jsonl read_jsonl data_dir results_dir",
    "stimuli": "FAMILIES Entity Scene render generate contact_sheet",
    "datasets": "DATASETS load_dataset check_source audit",
    "models": "MODELS ModelSpec VLM load_model doctor",
    "parsing": "PARSERS parse_count",
    "evaluation": "parse_count predict load_predictions",
    "statistics": "score confusion interval compare response_curve",
    "audit": "annotate audit audit_summary",
    "curves": "response_curve scaling break_point calibration position_map error_model",
    "patching": "Pair count_pairs patch effects",
    "faults": "FAULTS CAUSES plant",
    "extraction": "POOLINGS States extract open_states read_lens",
    "probing": "PROBES folds probe probe_layers controls",
    "training": "HeadConfig train_head load_head answer_with_head",
    "diagnosis": "FAULTS plant patch diagnose",
    "published": "load_release load_published regression_table check_reports measure",
    "figures": "FIGURES",
    "runs": "RUNS TYPES Parameter perform run execute plan_sweep sweep main",
    "sweeps": "grid_values plan_sweep sweep paper_grids",
    "commands": "COMMANDS",
    "terminal": "main",
    "photographs": "build_bpc fetch_images choose_rows",
    "paper.tables": "TABLES check_printed",
    "paper.findings": "CLAIMS Material findings conclusions",
    "paper.browser": "browser_page write_browser show_browser check_run",
    "paper.pages": "PAGES inventory compared browse_runs",
}


def code_lines(cell: dict) -> list[str]:
    "The lines of a code cell without its `#|` options."
    return [line for line in cell["source"].split("\n") if not line.startswith("#|")]


def is_exported(cell: dict) -> bool:
    return cell["cell_type"] == "code" and bool(re.search(r"^#\|\s*export", cell["source"], re.MULTILINE))


@cache
def order() -> dict[str, int]:
    "Module -> number of its notebook."
    numbers = {docs.module_name(path): int(re.match(r"\d+", path.name)[0]) for path in ROOMS}
    return {module: number for module, number in numbers.items() if module}


def module_file(module: str) -> Path:
    return ROOT / "vlm_counting" / f"{module.replace('.', '/')}.py"


def imported_modules(source: str, module: str = "core") -> set[str]:
    "Rooms that a module imports, at its top or inside functions."
    found, package = set(), f"vlm_counting.{module}".split(".")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*(package[: -node.level] if node.level else []), *filter(None, [node.module])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {name.removeprefix("vlm_counting.") for name in names if name.startswith("vlm_counting.")}
    return found & set(order())


@cache
def imports_of(module: str) -> set[str]:
    return imported_modules(module_file(module).read_text(encoding="utf-8"), module)


# --- layers


def test_every_numbered_notebook_defines_a_module():
    modules = [docs.module_name(path) for path in ROOMS]
    assert all(modules) and len(set(modules)) == len(modules)
    for path, module in zip(ROOMS, modules, strict=True):
        assert module.rpartition(".")[2] == docs.page_name(path), f"{path.name} defines the module {module}"
        assert module_file(module).exists(), f"{path.name} is not exported. Run: nbdev_export"


def test_imports_are_seen_wherever_they_stand():
    source = (
        "from .models import VLM\nfrom . import datasets\nimport torch\n"
        "def f():\n    import vlm_counting.core\n    from vlm_counting import statistics"
    )
    assert imported_modules(source) == {"models", "datasets", "core", "statistics"} & set(order())
    nested = "from ..core import Sample\nfrom .tables import TABLES\nfrom .. import models\nfrom . import findings"
    assert imported_modules(nested, "paper.pages") == {"core", "paper.tables", "models", "paper.findings"}


def test_the_parts_are_folders_in_reading_order():
    "The first digit of a notebook is that of its part, so that one order holds between parts and inside them."
    assert sorted({path.parent.name for path in ROOMS}) == sorted(PARTS)
    for path in ROOMS:
        assert path.name[0] == path.parent.name[0], f"{path.name} stands in {path.parent.name}"
    numbers = [int(path.name[:2]) for path in ROOMS]
    assert numbers == sorted(set(numbers)), "two notebooks have one number"
    wings = {"paper": "5_paper", "tiny_training": "7_tiny"}  # subpackages, and the part that each belongs to
    for path in ROOMS:
        wing = docs.module_name(path).rpartition(".")[0]
        assert not wing or wings[wing] == path.parent.name, f"{path.name} defines a module of {wing}"


def test_a_module_imports_only_lower_numbers():
    "Between parts and inside a part."
    numbers = order()
    for module, number in numbers.items():
        for other in imports_of(module):
            assert numbers[other] < number, f"{module} ({number:02}) imports {other} ({numbers[other]:02})"


def late_calls(source: str) -> list[tuple[str, bool]]:
    "(room, is it inside a function?) of each call of `later`; a room that is not named by a text is ''."
    tree, found = ast.parse(source), []
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)]
    inside = {id(node) for each in functions for node in ast.walk(each)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "later":
            room = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else ""
            found.append((room, id(node) in inside))
    return found


def test_late_calls_are_seen():
    source = "later('a')\ndef f(x):\n    later(x)\n    return later('b').g\nh = lambda: later('c')"
    assert sorted(late_calls(source)) == [("", True), ("a", False), ("b", True), ("c", True)]


def test_only_records_look_ahead():
    "`later` loads a room when a record draws or saves itself, or when a rare name is asked for; never on import."
    numbers = order()
    for module in numbers:
        for room, inside in late_calls(module_file(module).read_text(encoding="utf-8")):
            assert inside, f"{module} calls later('{room}') on import"
            assert room in numbers and room != module, f"{module} calls later({room!r}), which is no other room"


def test_what_takes_a_model_and_samples_does_not_load_them():
    for module, number in order().items():
        if 24 <= number < 60 and module not in ("paper.pages", "paper.tables"):
            known = imports_of(module) & {"models", "datasets"}
            assert not known, f"{module} imports {known.pop()}: let the caller pass in a model or samples"


# --- notebooks and the package


def test_notebooks_are_clean_and_in_sync(tmp_path):
    "Clean and export a copy of the repository: nothing may change."
    for name in ("nbs", "vlm_counting"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "twins", ".*"))
    for name in ("settings.ini", "setup.py", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    env = {key: value for key, value in os.environ.items() if key != "IN_TEST"}  # nbdev exports nothing under IN_TEST
    script = "from nbdev.clean import nbdev_clean as clean; from nbdev.doclinks import nbdev_export as export\n"
    script += "clean.__wrapped__(); export.__wrapped__()"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    copies = sorted([*(tmp_path / "nbs").rglob("*.ipynb"), *(tmp_path / "vlm_counting").rglob("*.py")])
    originals = [ROOT / copy.relative_to(tmp_path) for copy in copies]
    stale = [
        original.relative_to(ROOT).as_posix()
        for copy, original in zip(copies, originals, strict=True)
        if not original.exists() or original.read_bytes() != copy.read_bytes()
    ]
    assert not stale, f"not clean or not in sync: {', '.join(stale)}. Run: nbdev_export && nbdev_clean"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=named)
def test_notebook_opens_with_title_and_promise(notebook):
    first = cells(notebook)[0]
    assert first["cell_type"] == "markdown", f"the first cell of {notebook.name} is not text"
    lines = [line for line in first["source"].split("\n") if line.strip()]
    title = lines[0].removeprefix("# ").strip()
    assert lines[0].startswith("# ") and lines[1].startswith("> "), f"{notebook.name}: expected '# title', '> promise'"
    if notebook in ROOMS:
        assert title == docs.page_name(notebook)


@pytest.mark.parametrize("notebook", ROOMS, ids=named)
def test_exported_cells_are_short(notebook):
    for cell in filter(is_exported, cells(notebook)):
        lines = code_lines(cell)
        assert len(lines) <= 40, f"{notebook.name}: an exported cell of {len(lines)} lines starts with {lines[0]!r}"


def test_notebooks_read_as_chapters():
    "Prose, short cells, and an example behind each definition, over all of them; no long stretch of code in any."
    found = {path.stem: reading(path) for path in ROOMS}
    sizes = [size for about in found.values() for size in about["sizes"]]
    public = [(name, about) for about in found.values() for names in about["defined"] for name in names]
    called = [name for name, about in public if re.search(rf"\b{name}\b", about["code"])]
    defined = sum(len(about["defined"]) for about in found.values())
    assert sum(about["words"] for about in found.values()) / sum(sizes) >= 2.7
    assert statistics.median(sizes) <= 15
    assert sum(about["shown"] for about in found.values()) >= 0.8 * defined
    assert len(called) >= 0.9 * len(public)
    assert {name: about["stretch"] for name, about in found.items() if about["stretch"] > 100} == {}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=named)
def test_import_cells_hold_imports_only(notebook):
    for cell in filter(is_exported, cells(notebook)):
        tree = ast.parse(cell["source"]).body
        imports = [isinstance(node, ast.Import | ast.ImportFrom) for node in tree]
        assert all(imports) or not any(imports), (
            f"{notebook.name}: imports and code share the cell {cell['source'][:60]!r}"
        )


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=named)
def test_outputs_are_saved(notebook):
    "The site shows saved outputs, so a notebook that prints or shows something is saved after it has run."
    code = [cell for cell in cells(notebook) if cell["cell_type"] == "code" and not is_exported(cell)]
    shows = [cell for cell in code if re.search(r"^print\(|\.figure$", cell["source"], re.MULTILINE)]
    empty = [cell["source"] for cell in shows if not cell["outputs"] and "#| eval: false" not in cell["source"]]
    assert not empty, f"{notebook.name}: no saved output of {empty[0][:80]!r}. Run the notebook and save it"


def output_text(cell: dict) -> str:
    "Everything a reader sees of a cell's outputs but pictures."
    pieces = []
    for output in cell.get("outputs", []):
        pieces.append("".join(output.get("text", "")))
        pieces += ["".join(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return re.sub(r"data:image/[^\"')]+", "", "\n".join(pieces))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=named)
def test_saved_outputs_are_small_and_fit_for_readers(notebook):
    size = notebook.stat().st_size
    assert size < 1_500_000, f"{notebook.name} has {size:,} bytes, expected less than 1.5 MB: save smaller pictures"
    for cell in cells(notebook):
        errors = [output for output in cell.get("outputs", []) if output["output_type"] == "error"]
        assert not errors, f"{notebook.name} has a saved error: {errors[0]['ename']}: {errors[0]['evalue']}"
        found = MACHINE.search(output_text(cell))
        assert not found, f"{notebook.name} shows the path of a machine: {found[0]}"
        widgets = [
            output for output in cell.get("outputs", []) if any("widget" in kind for kind in output.get("data", {}))
        ]
        assert not widgets, f"{notebook.name} has a saved progress bar: remove it, a page cannot move it"


def test_a_path_of_a_machine_is_recognised():
    for path in ("/" + "home/me/x.png", "at '/" + "tmp/abc/x.png'", "/" + "root/.cache"):
        assert MACHINE.search(path)
    for text in ("results/tmp/x.png", "https://example.org/home/x", "nbs/home/x"):
        assert not MACHINE.search(text)


# --- verbs


@pytest.mark.parametrize("notebook", VERBS, ids=named)
def test_verb_is_a_short_notebook_with_parameters(notebook):
    code = [cell for cell in cells(notebook) if cell["cell_type"] == "code"]
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1, f"{notebook.name} has {len(tagged)} cells tagged 'parameters', expected one"
    assert len(code) <= 10, f"{notebook.name} has {len(code)} code cells, expected at most 10"
    for cell in code:
        most = 30 if cell in tagged else 25  # of parameters, each on its line
        assert len(code_lines(cell)) <= most, (
            f"{notebook.name}: a cell of {len(code_lines(cell))} lines, at most {most}"
        )
        assert not is_exported(cell) and "default_exp" not in cell["source"], f"{notebook.name} exports: verbs do not"


@pytest.mark.parametrize("notebook", VERBS, ids=named)
def test_parameters_are_plain_and_explained(notebook):
    "papermill shows the comments as help, and can replace plain values only."
    tagged = [cell for cell in cells(notebook) if "parameters" in cell["metadata"].get("tags", [])]
    for line in filter(str.strip, code_lines(tagged[0])):
        assert re.match(r"\w+(: [\w\[\], |]+)? = .+  # .+", line), f"{notebook.name}: {line!r} has no comment"
        ast.literal_eval(ast.parse(line).body[0].value)


# --- import


def import_seconds(module: str) -> tuple[float, list[str]]:
    "CPU seconds that imports take in a fresh process, and the heavy packages that they load."
    script = (  # the clock on the wall would also count what other tests do at the same time
        "import sys, time; start = time.process_time()\n"
        f"import {module}\nseconds = time.process_time() - start\n"
        f"print(seconds, *(name for name in {HEAVY} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    seconds, *heavy = done.stdout.split()
    return float(seconds), heavy


def test_import_is_quick_and_without_torch():
    tries = [import_seconds("vlm_counting") for _ in range(3)]
    assert min(seconds for seconds, _ in tries) < 0.5, f"import vlm_counting took {tries}"
    assert not tries[0][1]


DRAWING = """
import sys, time

start = time.process_time()
import pandas, matplotlib.axes, matplotlib.figure
print(time.process_time() - start, flush=True)


def work(module, heavy):
    start = time.process_time()
    __import__(module)
    seconds = time.process_time() - start
    print(seconds, *(name for name in heavy.split(",") if name in sys.modules), flush=True)
"""


class Imports:
    "Imports each room in a process of its own, a fork of one that has the libraries for tables and figures."

    def __init__(self, process: subprocess.Popen):
        self.process, self.drawing = process, float(process.stdout.readline())

    def __call__(self, module: str) -> tuple[float, list[str]]:
        "CPU seconds, and the heavy packages that are loaded."
        self.process.stdin.write(f"{module} {','.join(HEAVY)}\n")
        self.process.stdin.flush()
        told, numbers = [], []  # of the new process, and how it has ended
        while len(numbers) < 2:
            line = self.process.stdout.readline().split()
            (numbers if len(line) == 1 and "." not in line[0] else told).append(line)
        assert numbers[1] == ["0"] and len(told) == 1, f"import {module} failed"
        seconds, *heavy = told[0]
        return float(seconds), heavy


@pytest.fixture(scope="module")
def imports():
    command = [sys.executable, "-c", DRAWING + FORK_EACH_LINE]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Imports(process)
        process.stdin.close()


@pytest.mark.parametrize("module", sorted(order(), key=order().get))
def test_a_room_is_imported_without_torch(module, imports):
    "What the libraries for tables and figures cost alone on this machine is the measure: no room adds as much."
    seconds, heavy = imports(f"vlm_counting.{module}")
    tries = [seconds]
    while min(tries) >= imports.drawing and len(tries) < 4:  # a busy machine is slow at times
        tries.append(imports(f"vlm_counting.{module}")[0])
    assert min(tries) < imports.drawing, f"import vlm_counting.{module} took {tries} s, more than {imports.drawing}"
    assert not heavy, f"import vlm_counting.{module} loads {heavy[0]}: import it inside the function that needs it"


def test_an_import_that_fails_is_seen(imports):
    with pytest.raises(AssertionError, match="failed"):
        imports("vlm_counting.nonsense")


# --- the contract


@pytest.mark.parametrize("module", CONTRACT)
def test_public_names(module):
    "Where they are defined, or where they were before: other programs call them there."
    room = importlib.import_module(f"vlm_counting.{module}")
    missing = [name for name in CONTRACT[module].split() if not hasattr(room, name)]
    assert not missing, f"vlm_counting.{module} has no {missing}"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        getattr(room, "nonsense")  # noqa: B009


@cache
def public_names() -> dict[str, list[str]]:
    "Module -> its `__all__`: what a user types."
    found = {}
    for module in order():
        tree = ast.parse(module_file(module).read_text(encoding="utf-8")).body
        named = [
            node.value for node in tree if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        found[module] = ast.literal_eval(named[0]) if named else []
    return found


def test_a_name_is_public_when_a_user_types_it():
    assert sum(map(len, public_names().values())) <= 200


def visible_code(path: Path) -> str:
    "What a reader sees at work: cells that are neither exported nor hidden."
    shown = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    return "\n".join(cell["source"] for cell in shown if not re.search(r"^#\|\s*(export|hide)", cell["source"], re.M))


@pytest.mark.parametrize("path", ROOMS, ids=named)
def test_public_names_are_shown_at_work(path):
    "In a visible cell of their notebook, or by the package's front door."
    code = visible_code(path)
    public = public_names()[docs.module_name(path)]
    unseen = [name for name in public if not re.search(rf"\b{name}\b", code) and name not in vlm_counting.__all__]
    assert not unseen, f"{path.name} shows no example of {', '.join(unseen)}"


# types that say it all
TELLING = "Path Sample Answer Prediction RunRecord Entity Scene ModelSpec VLM States Axes Generator Random Material"
TELLING = rf"\b({TELLING.replace(' ', '|')})\b"


def undocumented(source: str) -> list[str]:
    "What a reader of signatures misses: a docstring, and for each argument a comment beside it or a type of our own."
    lines, wrong = source.split("\n"), []
    own = [node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    for node in ast.parse(source).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        text = ast.get_docstring(node)
        if not text:
            wrong.append(f"{node.name} has no docstring")
        if isinstance(node, ast.ClassDef):
            continue
        gathered = [argument for argument in (node.args.vararg, node.args.kwarg) if argument]
        for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, *gathered]:
            beside = argument.lineno > node.lineno and " # " in lines[argument.end_lineno - 1]
            told = re.search(rf"\b{argument.arg}\b", text or "")
            hint = ast.unparse(argument.annotation) if argument.annotation else ""
            typed = re.search(TELLING, hint) or any(re.search(rf"\b{name}\b", hint) for name in own)
            if not (beside or told or typed):
                wrong.append(f"{node.name}: what is the argument '{argument.arg}'? Add a comment beside it")
    return wrong


def test_undocumented_arguments_are_seen():
    source = (
        'def f(\n    a: int,  # how many\n    b,\n    c,\n    p: Path,\n):\n    "Explains `b`."\n\n\ndef g(): ...\n'
    )
    assert undocumented(source) == ["f: what is the argument 'c'? Add a comment beside it", "g has no docstring"]


@pytest.mark.parametrize("module", sorted(order(), key=order().get))
def test_exported_functions_are_documented(module):
    wrong = undocumented(module_file(module).read_text(encoding="utf-8"))
    assert not wrong, f"{module}:\n" + "\n".join(wrong)


# --- the rest of the house


def test_ruff():
    for command in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *command, "nbs", "tests", "setup.py"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert not done.returncode, done.stdout + done.stderr


def test_one_version():
    version = SETTINGS["DEFAULT"]["version"]
    assert f'__version__ = "{version}"' in (ROOT / "vlm_counting" / "__init__.py").read_text(encoding="utf-8")
    changes = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert changes[0] == version, f"CHANGELOG.md starts with {changes[0]}, settings.ini says {version}"
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def repository_files() -> list[Path]:
    "The files that git keeps or would keep; those of an unpacked archive otherwise."
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
        return [ROOT / name for name in names if name and (ROOT / name).is_file()]
    places = ["nbs", "vlm_counting", "tests", ".github", ".ci"]
    files = [path for place in places for path in (ROOT / place).rglob("*")] + list(ROOT.glob("*.*"))
    return [path for path in files if path.is_file() and "__pycache__" not in path.parts]


def readable(path: Path) -> str:
    "The text of a file; of a notebook what was written or printed, without pictures."
    if path.suffix == ".ipynb":
        return "\n".join(cell["source"] + "\n" + output_text(cell) for cell in cells(path))
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def test_nothing_of_a_machine_in_the_repository():
    hosts = "|".join(["py" + r"pi\.org", "python" + r"hosted\.org", "index" + "-url", "trusted" + "-host"])
    places = re.compile(rf"{hosts}|(?<![\w.:/-])/(?:ro{{2}}t|wor[k])/|(?<![\w.:/-])/home/\w")
    files = repository_files()
    assert len(files) > 10
    for path in files:
        found = places.search(readable(path))
        assert not found, f"{path.relative_to(ROOT)} mentions {found[0]}"


def test_readme_is_what_the_index_says():
    text = readme.readme(ROOT / "nbs" / "index.ipynb")
    assert (ROOT / "README.md").read_text(encoding="utf-8") == text, "README.md is old. Run: python nbs/_site/readme.py"


def test_readme_is_made_of_text_code_and_outputs(tmp_path):
    source = [
        {
            "cell_type": "markdown",
            "source": ["# house\n", "\n", "See [core](1_data/10_core.ipynb), [how](../CONTRIBUTING.md)."],
        },
        {"cell_type": "code", "source": "#| hide\nsecret = 1", "outputs": []},
        {"cell_type": "code", "source": "#| echo: false\nprint(2)", "outputs": [{"text": ["2\n"]}]},
        {"cell_type": "code", "source": "1 + 2", "outputs": [{"data": {"text/plain": ["3"], "image/png": "AAAA"}}]},
    ]
    notebook = tmp_path / "index.ipynb"
    notebook.write_text(json.dumps({"cells": source}))
    expected = ["# house\n\nSee [core](nbs/1_data/10_core.ipynb), [how](CONTRIBUTING.md).", "```text\n2\n```"]
    expected += ["```python\n1 + 2\n```", "```text\n3\n```"]
    assert readme.readme(notebook) == "\n\n".join(expected) + "\n"


def test_readme_shows_the_commands_that_ci_runs():
    blocks = "\n".join(re.findall(r"```\w*\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL))
    assert re.search(r"pip install -e ['\"]?\.", blocks), "README.md shows no 'pip install -e'"
    assert re.search(r"^pytest( |$)", blocks, re.MULTILINE), "README.md shows no line that starts with 'pytest'"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("status", [0, 3])
def test_ci_installs_and_ends_as_the_tests_end(tmp_path, status):
    "The script itself, in a folder with a README and with stand-ins for python3, pip and pytest."
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    (tmp_path / "README.md").write_text(
        "```sh\ncd x && pip install -e '.[dev]' && y\n```\ntext\n```sh\npytest -x\n```\n"
    )
    (tmp_path / "bin").mkdir()
    venv = 'mkdir -p "$3/bin" && : > "$3/bin/activate" && echo "$3" > venv.txt'
    scripts = {
        "python3": venv,
        "pip": 'echo "pip $*" >> log.txt',
        "pytest": f'echo "pytest $*" >> log.txt; exit {status}',
    }
    for name in ("chromium", "chromedriver", *scripts):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{scripts.get(name, '')}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run([tmp_path / ".ci" / "run"], env=env, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    long = "pytest -m long and not slow\n" if status == 0 else ""
    assert (tmp_path / "log.txt").read_text() == f"pip install -e .[dev]\npytest -x\n{long}"
    assert not Path((tmp_path / "venv.txt").read_text().strip()).exists(), "the environment is left behind"


def test_sidebar_names_every_notebook_once():
    import yaml

    sidebar = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    sections = {item["section"]: item["contents"] for item in sidebar if "section" in item}
    groups = ["Data", "Answers", "States", "Diagnosis", "Paper", "Running", "Tiny models"]
    assert list(sections) == ["Guides", "Commands", *groups, "Project"]
    listed = [item["href"] for item in sidebar if "href" in item]
    listed += [page for part in sections.values() for page in part]
    notebooks = [path.relative_to(ROOT).as_posix() for path in docs.notebooks(ROOT)]
    assert sorted(page for page in listed if page.endswith(".ipynb")) == sorted(notebooks), "mend it in _quarto.yml"
    rooms = [page for name in groups for page in sections[name]]
    assert rooms == [path.relative_to(ROOT).as_posix() for path in ROOMS], "the sidebar is in another order"
    for group, part in zip(groups, PARTS, strict=True):
        assert all(page.startswith(f"nbs/{part}/") for page in sections[group]), f"{group} holds more than {part}"
    assert set(sections["Commands"]) == {f"nbs/{path.name}" for path in VERBS}
    table = (ROOT / "README.md").read_text().partition("## The notebooks")[2]
    readme_rooms = re.findall(r"^\| .*?\| \[\w+\]\((nbs/\d\w+/\d\w+\.ipynb)\)", table, re.MULTILINE)
    assert readme_rooms == rooms, "the README's table of rooms has another order than the sidebar"


def test_citation_names_paper_and_data():
    import yaml

    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cff["cff-version"] == "1.2.0" and cff["title"] == SETTINGS["DEFAULT"]["lib_name"] and cff["authors"]
    titles = " ".join(item["title"] for item in cff["references"])
    for name in ("constructing VLMs' Reasoning in Counting", "CIVET", "PixMo-Count", "Count to Ten"):
        assert name in titles
    assert all(item["authors"] and item["type"] for item in cff["references"])
    licences = {item["title"]: item.get("license") for item in cff["references"]}
    assert licences["PixMo-Count"] == "ODC-By-1.0"


def test_messages_name_notebooks_that_exist():
    "An error that says where to add something is advice that somebody follows."
    for module in order():
        text = module_file(module).read_text(encoding="utf-8")
        named = re.findall(r"(?<!\.\./)\b([\w/]*\w\.ipynb)\b", re.sub(r"(?m)^# %%.*$|File to edit: .*$", "", text))
        wrong = [name for name in named if re.match(r"nbs/\d|\d\d_", name) and not (ROOT / name).exists()]
        assert not wrong, f"{module} names {wrong[0]}, which is not there"
