"Every numbered notebook runs from top to bottom, in this process; cells flagged `slow` or `gpu` are left out."

import os
import sys
from pathlib import Path

import pytest
from _site import docs
from notebook_cells import named, run_notebook

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = docs.chapters(ROOT)
# 20 s and more: run with -m slow
SLOW = {
    "21_doubles",
    "32_probing",
    "34_training",
    "42_diagnosis",
    "56_figures",
    "58_pages",
    "70_world",
    "74_contrastive",
}
# 3 s and less: run with each `pytest`
QUICK = {"10_core", "23_parsing"}


def marked(notebook: Path) -> object:
    "A notebook that takes long is run with the long or the slow tests; what it defines has quicker tests of its own."
    marks = [pytest.mark.slow] if notebook.stem in SLOW else [pytest.mark.long] * (notebook.stem not in QUICK)
    return pytest.param(notebook, id=named(notebook), marks=marks)


def test_there_are_notebooks():
    assert NOTEBOOKS, "no numbered notebook in nbs/"
    assert {path.stem for path in NOTEBOOKS} > SLOW | QUICK


@pytest.fixture
def fresh_package():
    "The package as a new process finds it: a notebook that adds to another room's registry must not find itself there."
    fresh = ("vlm_counting", "papermill")  # papermill keeps the room that it has found first as its way to write
    ours = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in fresh}
    for name in ours:
        del sys.modules[name]
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in fresh]:
        del sys.modules[name]
    sys.modules.update(ours)


@pytest.mark.parametrize("notebook", map(marked, NOTEBOOKS))
def test_notebook(notebook, fresh_package, monkeypatch, capsys):
    here = os.getcwd()
    passed = run_notebook(notebook, monkeypatch)
    assert os.getcwd() == here
    assert passed, f"{notebook.name} failed:\n{capsys.readouterr().err[-6000:]}"
