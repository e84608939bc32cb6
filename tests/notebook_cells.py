"How the tests of notebooks read and run them."

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
