"How the tests of notebooks read and run them."

import ast
import json
import re
from configparser import ConfigParser
from functools import partial
from pathlib import Path

from nbdev import test

MACHINE = re.compile(r"(?<![\w.:/-])/(?:ro{2}t|home|wor[k]|tmp|Users|var/folders|mnt|private)/[\w.-]+|\b[A-Z]:\\+Users")

SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(Path(__file__).resolve().parents[1] / "settings.ini", encoding="utf-8")


def named(path: Path) -> str:
    return path.stem


def cells(notebook: Path) -> list[dict]:
    "Cells with their source as one string."
    loaded = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in loaded]


def run_notebook(path: Path, monkeypatch) -> bool:
    "From top to bottom in this process, without cells flagged `slow` or `gpu`; pictures with half the dots."
    monkeypatch.setenv("IN_TEST", "1")  # nbdev sets it and would leave it set
    monkeypatch.setattr(test, "CaptureShell", partial(test.CaptureShell, mpl_format="png"))
    return test.test_nb(path, skip_flags=SETTINGS["DEFAULT"]["tst_flags"].split())[0]


def _is_example(cell: dict, tree: ast.Module) -> bool:
    "Whether a reader sees it at work: neither exported, nor hidden, nor imports only."
    imports = all(isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body)
    return not re.search(r"^#\|\s*(export|hide)", cell["source"], re.M) and not imports


def reading(notebook: Path) -> dict:
    "How a chapter reads: words of prose, lines of exported cells, definitions with an example behind them, ..."
    words, sizes, run, stretch, defined, shown, waiting, code = 0, [], 0, 0, [], 0, False, ""
    for cell in cells(notebook):
        if cell["cell_type"] != "code":
            words += len(re.findall(r"\b[\w'-]+\b", re.sub(r"```.*?```", "", cell["source"], flags=re.S)))
            continue
        tree = ast.parse(re.sub(r"^\s*[%!].*$", "", cell["source"], flags=re.M))
        if _is_example(cell, tree):
            run, shown, waiting, code = 0, shown + waiting, False, f"{code}\n{cell['source']}"
        elif re.search(r"^#\|\s*export", cell["source"], re.M):
            lines = [line for line in cell["source"].splitlines() if line.strip() and not line.startswith("#|")]
            names = [getattr(node, "name", "_") for node in tree.body]
            public = [name for name in names if not name.startswith("_")]
            sizes.append(len(lines))
            run += len(lines)
            stretch, waiting = max(stretch, run), waiting if not public else True
            defined += [public] if public else []
    return {"words": words, "sizes": sizes, "stretch": stretch, "defined": defined, "shown": shown, "code": code}
