"The guides: they run, they are clean, their saved outputs are fit for readers, and the picture has today's numbers."

import json
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from _site import picture
from nbdev.clean import clean_nb
from notebook_cells import MACHINE, cells, named, run_notebook

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[1]
GUIDES = sorted((ROOT / "nbs" / "guides").glob("*.ipynb"))


def test_there_are_guides():
    assert {path.stem for path in GUIDES} >= {"tutorial", "pitfalls", "extend"}


@pytest.fixture
def own_session(monkeypatch):
    "Modules as a new process finds them, and an environment that is put back: guides add to registries and move about."
    ours = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "vlm_counting"}
    for name in ours:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("VLM_COUNTING_RESULTS", "results")
    here = os.getcwd()
    yield
    os.chdir(here)
    for name in [name for name in sys.modules if name.partition(".")[0] == "vlm_counting" and name not in ours]:
        del sys.modules[name]


SLOW = pytest.mark.slow  # the whole way from a checkpoint to a cure
RUN = [pytest.param(path, marks=[SLOW] * (path.stem == "tutorial")) for path in GUIDES]


@pytest.mark.parametrize("guide", RUN, ids=[path.stem for path in GUIDES])
def test_guide_runs(guide, own_session, monkeypatch, capsys):
    before = {path.name for path in guide.parent.iterdir()}
    passed = run_notebook(guide, monkeypatch)
    assert passed, f"{guide.name} failed:\n{capsys.readouterr().err[-6000:]}"
    assert {path.name for path in guide.parent.iterdir()} == before, f"{guide.name} leaves files behind"


@pytest.mark.parametrize("guide", GUIDES, ids=named)
def test_guide_is_clean_and_was_run(guide):
    notebook = nbformat.read(guide, as_version=4)
    kept = json.loads(json.dumps(notebook))
    clean_nb(notebook)
    assert json.loads(json.dumps(notebook)) == kept, f"{guide.name} is not clean. Run: nbdev_clean --fname {guide}"
    first = cells(guide)[0]["source"].split("\n")
    assert first[0].startswith("# ") and first[2].startswith("> "), f"{guide.name}: expected '# title', '> promise'"
    for cell in cells(guide):
        shows = re.search(r"^print\(|^!|\.figure$|^table\.", cell["source"], re.MULTILINE)
        if cell["cell_type"] == "code" and shows:
            assert cell["outputs"], f"{guide.name}: no saved output of {cell['source'][:80]!r}. Run and save it"
        assert "default_exp" not in cell["source"] and not re.match(r"#\|\s*export", cell["source"])


@pytest.mark.parametrize("guide", GUIDES, ids=named)
def test_outputs_of_guides_are_small_and_fit_for_readers(guide):
    assert guide.stat().st_size < 600_000, f"{guide.name} has {guide.stat().st_size:,} bytes: save smaller pictures"
    for cell in cells(guide):
        assert cell["cell_type"] == "code" or not re.search(
            r"\$[^$\n]+\$", re.sub(r"```.*?```", "", cell["source"], flags=re.S)
        )
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error" and output.get("name") != "stderr", f"{guide.name}: {output}"
            data = output.get("data", {})
            text = "".join(output.get("text", "")) + "".join("".join(data[kind]) for kind in data if "text/" in kind)
            found = MACHINE.search(text)
            assert not found, f"{guide.name} shows the path of a machine: {found[0]}"


def test_the_picture_has_todays_numbers():
    rows = picture.numbers()
    text = picture.FILE.read_text(encoding="utf-8")
    assert picture.told(rows) in text, "nbs/images is old. Run: python nbs/_site/picture.py"
    assert picture.FILE.stat().st_size < 60_000
    assert (rows["twins"] >= 15).all() and rows["read"].between(0, 1).all() and rows["said"].between(0, 1).all()
    index = json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))
    shown = re.findall(
        r"!\[([^\]]+)\]\(images/([\w.-]+)\)", "".join("".join(cell["source"]) for cell in index["cells"])
    )
    assert [name for alt, name in shown if len(alt) > 60] == [picture.FILE.name]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"](nbs/images/{picture.FILE.name})" in readme


def test_the_pictures_scene_is_what_its_question_asks():
    assert picture.SCENE.count("yellow_stars") == 5 and picture.SCENE.count("magenta_circles") > 0
