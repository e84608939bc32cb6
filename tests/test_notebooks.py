"Every numbered notebook runs from top to bottom, in this process; cells flagged `slow` or `gpu` are left out."

import os
from configparser import ConfigParser
from pathlib import Path

import pytest
from nbdev.test import test_nb as run_notebook  # under another name, or pytest would collect it

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")


def test_there_are_notebooks():
    assert NOTEBOOKS, "no numbered notebook in nbs/"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(notebook, monkeypatch, capsys):
    monkeypatch.setenv("IN_TEST", "1")  # run_notebook sets it and would leave it set
    here = os.getcwd()
    passed, _ = run_notebook(notebook, skip_flags=SETTINGS["DEFAULT"]["tst_flags"].split())
    assert os.getcwd() == here
    assert passed, f"{notebook.name} failed:\n{capsys.readouterr().err[-6000:]}"
