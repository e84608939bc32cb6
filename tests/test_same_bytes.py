"One code path: the terminal, papermill, a cell of a sweep on Dask and Python leave the same answers and tables."

import os
import subprocess
import sys
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits

import vlm_counting as vc
from vlm_counting.sweeps import plan_sweep, sweep

ROOT = Path(__file__).resolve().parents[1]
ASKED = {"model": "tiny-clip", "dataset": "balanced", "limit": 27}
KEPT = (
    "predictions.jsonl",
    "scores.csv",
    "scores_per_count.csv",
    "per_class.csv",
    "scores_per_entity.csv",
    "confusion.csv",
)


def by_python(results: Path) -> None:
    vlm, samples = vc.load_model(ASKED["model"]), vc.load_dataset(ASKED["dataset"], limit=ASKED["limit"])
    vc.evaluate(vlm, samples, path=results / "evaluate/tiny-clip/balanced", progress=False)


def by_run(results: Path) -> None:
    vc.run("evaluate", **ASKED)


def by_terminal(results: Path) -> None:
    words = [f"{name}={value}" for name, value in ASKED.items()]
    subprocess.run(
        [sys.executable, "-m", "vlm_counting", "evaluate", *words], check=True, capture_output=True, cwd=ROOT
    )


def by_papermill(results: Path) -> None:
    words = [word for name, value in ASKED.items() for word in ("-p", name, str(value))]
    command = [sys.executable, "-m", "papermill", "nbs/evaluate.ipynb", *words]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)


def by_sweep(results: Path) -> None:
    outcomes = sweep(plan_sweep({"verb": "evaluate", **ASKED}), workers=2, tell=lambda line: None)
    assert [outcome.status for outcome in outcomes] == ["done"], outcomes


WAYS = {way.__name__: way for way in (by_python, by_run, by_terminal, by_papermill, by_sweep)}


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    "Way -> file -> its bytes."
    found = {}
    for name, way in WAYS.items():
        results = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VLM_COUNTING_RESULTS", str(results))
            patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
            way(results)
        folder = results / "evaluate" / "tiny-clip" / "balanced"
        found[name] = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("way", [name for name in WAYS if name != "by_python"])
def test_every_way_leaves_the_same_bytes(left, way):
    assert set(KEPT) <= set(left["by_python"])
    for file in KEPT:
        assert left[way][file] == left["by_python"][file], file


@pytest.mark.slow
def test_figures_are_the_same_too(left):
    for file, data in left["by_run"].items():
        if file.endswith((".png", ".svg")):
            assert left["by_terminal"][file] == left["by_sweep"][file] == data, file


READS = {"model": "tiny-qwen2-vl", "dataset": "balanced", "limit": 72}


def files_of(folder: Path) -> dict[str, bytes]:
    "File -> its bytes, but those that tell times and how a run was started."
    left_out = ("run.json", "notebook.ipynb", "report.html", ".lock", "browser.html")
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in left_out]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.slow
def test_what_is_read_and_probed_is_the_same_from_python_and_by_command(tmp_path, monkeypatch):
    "States, lens, tables, rows of probes: of a model that writes, one thread for each sum."
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path))
    probed = {"probes": "ridge", "rules": "random", "untrained": None, "jobs": 1}
    vlm, samples = vc.load_model(READS["model"]), vc.load_dataset(READS["dataset"], limit=READS["limit"])
    with threadpool_limits(1):
        vc.run("evaluate", **READS)
        vc.run("extract", **READS)
        vc.run("probe", model=READS["model"], **probed)
        vc.evaluate(vlm, samples, tmp_path / "python/evaluate", progress=False).figures()
        states = vc.extract(vlm, samples, tmp_path / "python/extract", progress=False)
        states.figures()
        how = {"probe": "ridge", "rule": "random", "samples": samples, "jobs": 1, "progress": False}
        vc.probe(states, path=tmp_path / "python/probe", **how).figures()
    for command in ("evaluate", "extract", "probe"):
        by_command = files_of(tmp_path / command / READS["model"] / READS["dataset"])
        by_python = files_of(tmp_path / "python" / command)
        assert by_command.keys() == by_python.keys() and len(by_python) > 5, command
        assert [name for name, data in by_python.items() if by_command[name] != data] == [], command
