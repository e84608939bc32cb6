"Guards for the verb `paper`: what it plans for whom, and that nothing that failed is hidden."

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from notebook_cells import cells

from vlm_counting.core import UnknownName
from vlm_counting.models import _GROUPS
from vlm_counting.runs import RUNS, check_parameters
from vlm_counting.sweeps import Outcome
from vlm_counting.terminal import main

NOTEBOOK = Path(__file__).resolve().parents[1] / "nbs" / "paper.ipynb"
CODE = [cell["source"] for cell in cells(NOTEBOOK) if cell["cell_type"] == "code"]


@pytest.fixture
def paper(tmp_path, monkeypatch):
    "Runs the notebook's cells with given parameters; gives its result."
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path))

    def run(**given):
        names = {"__name__": "__main__"}
        for number, source in enumerate(CODE):
            exec(compile(source, f"cell {number}", "exec"), names)
            names |= given if number == 1 else {}  # below the cell of parameters
        return names["result"]

    return run


def test_the_twins_do_everything(paper):
    planned = paper(dry_run=True, measure=0).cells
    assert Counter(cell.verb for cell in planned) == {
        "evaluate": 7 * 15 + 5, "extract": 7, "probe": 7, "train": 5, "diagnose": 7, "report": 1,
    }  # fmt: skip
    assert planned[-1].verb == "report" and planned[-1].parameters["runs"] == "paper-*"
    assert {cell.parameters.get("limit") for cell in planned if cell.verb == "evaluate"} == {216, 108}
    assert all(cell.name.startswith(f"paper-{cell.verb}") for cell in planned)
    for cell in planned:
        if cell.verb == "probe":
            assert cell.needs == (cell.name.replace("probe", "extract"),)


def test_the_real_models_do_the_same_at_the_size_of_the_paper(paper):
    planned = paper(
        models="paper", scale="full", photographs=True, scheduler="tcp://host:8786", dry_run=True, measure=0
    ).cells
    size = {(cell.verb, cell.parameters.get("dataset")): cell.samples for cell in planned}
    assert (
        size["evaluate", "balanced"] == size["extract", "balanced"] == 17_496 and size["evaluate", "scattered"] == 9408
    )
    assert size["evaluate", "distractors_9_large_red_star"] == 2187
    asked = {cell.parameters["model"] for cell in planned if cell.parameters.get("dataset") == "CountBenchQA"}
    assert asked == set(_GROUPS["paper"])  # the paper asked CLIP and CoCa too
    real = [cell for cell in planned if cell.verb == "train" and cell.parameters["dataset"] == "pixmo-count"]
    assert len(real) == 5 and real[0].parameters["training"] == "pixmo-count-train"


def test_encoders_alone_have_no_words_to_train(paper):
    assert {cell.verb for cell in paper(models="tiny-clip", dry_run=True, measure=0).cells} == {
        "evaluate",
        "extract",
        "probe",
        "diagnose",
        "report",
    }


def test_wrong_words_are_refused():
    with pytest.raises(UnknownName, match="Did you mean 'twins'"):
        check_parameters("paper", {"models": "twin"})
    with pytest.raises(UnknownName, match="small, full"):
        check_parameters("paper", {"scale": "medium"})
    with pytest.raises(ValueError, match=re.escape("such as tcp://host:8786")):
        check_parameters("paper", {"scheduler": "host"})
    with pytest.raises(ValueError, match="workers is 0"):
        check_parameters("paper", {"workers": 0})


def test_a_dry_run_starts_nothing(paper, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("vlm_counting.sweeps.sweep", lambda *_: pytest.fail("it was started"))
    paper(models="tiny-clip", dry_run=True, measure=0)
    said = capsys.readouterr().out
    assert "paper-evaluate/tiny-clip/clustered" in said and "Nothing was started" in said
    assert not (tmp_path / "paper").exists()


def test_weights_are_fetched_or_it_is_said_how_to_have_them(capsys, monkeypatch):
    assert main(["fetch", "tiny-clip,tiny-coca"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["tiny-clip", "tiny-coca"]
    assert main(["fetch", "tiny-clap"]) == 2 and "Did you mean 'tiny-clip'?" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: 1 / 0)
    assert main(["fetch", "CLIP"]) == 2 and "checkpoint=..." in capsys.readouterr().err


def test_every_verb_is_listed_with_what_it_promises(capsys):
    assert main(["list", "verbs"]) == 0
    listed = capsys.readouterr().out
    for verb, path in RUNS.items():
        (promise,) = [line[2:] for line in cells(path)[0]["source"].splitlines() if line.startswith("> ")]
        assert re.search(rf"^  {verb} +{re.escape(promise)}$", listed, re.MULTILINE)


def test_the_table_is_kept_and_a_failure_is_told(paper, monkeypatch, tmp_path):
    def most(cells, *_):
        found = [Outcome(cell.name, "done", 1.0, "accuracy 0.5") for cell in cells]
        return [replace(found[0], status="failed", error="ValueError: no such thing"), *found[1:]]

    monkeypatch.setattr("vlm_counting.sweeps.sweep", most)
    with pytest.raises(RuntimeError, match=r"1 runs failed.*retry=True.*\n.*ValueError: no such thing"):
        paper(models="tiny-clip")
    kept = (tmp_path / "paper" / "outcomes.csv").read_text().splitlines()
    assert len(kept) == 1 + 15 + 4 and kept[1].startswith("evaluate,paper-evaluate/tiny-clip/balanced,failed")
