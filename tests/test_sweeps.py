"Guards for sweeps: what becomes of a grid, what is refused, what is never run twice, what survives a killed process."

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from clusters import dask_on, start_on, two_hosts, wait_until
from joblib import cpu_count
from notebook_cells import cells

from vlm_counting import machines, runs, sweeps
from vlm_counting.core import UnknownName
from vlm_counting.runs import RUNS
from vlm_counting.sweeps import (
    Outcome,
    _count_samples,
    _count_workers,
    _expand_grid,
    describe_costs,
    describe_outcomes,
    describe_plan,
    first_score,
    grid_values,
    measure_costs,
    plan_sweep,
    read_grids,
    sweep,
)
from vlm_counting.terminal import main

ROOT, BIN = Path(__file__).resolve().parents[1], Path(sys.executable).parent
TYPES = """
from vlm_counting import runs
from vlm_counting.runs import Overwrite, Parameter, RunName, Seed

FakeName = Parameter("a name", folder=True)
FakeStates = Parameter("the name of a run of fake", made_by="fake")
for known in {"FakeName", "FakeStates"} - set(runs.TYPES):
    runs.TYPES.add(known, globals()[known])
"""
PARAMETERS = """
name: FakeName = "a"  # of the thing that it is about
word = "well"  # what it says in the end
states: {states} = "fake"  # name of the run that a reader reads
run: RunName = "{verb}"  # name of the run
seed: Seed = 0  # of nothing at all
overwrite: Overwrite = False  # replace a run of other parameters
"""
WORK = """
import os, signal, time
from vlm_counting.core import RunRecord, claim_folder, results_dir, write_atomic, write_jsonl

kept = {{"name": name, "word": word, "states": states}}
record = RunRecord("{verb}", kept, seeds={{"seed": seed}})
with claim_folder(record, results_dir() / run / name, overwrite) as folder:
    write_jsonl(results_dir() / "log.jsonl", [{{"uid": f"{{run}}/{{name}}"}}], append=True)
    if (results_dir() / f"fail-{{name}}").exists():
        raise RuntimeError("the first line\\nand a second one")
    if (results_dir() / f"kill-{{name}}").exists():
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(30)
    while (results_dir() / f"wait-{{name}}").exists():
        time.sleep(0.05)
    write_atomic(folder / "scores.csv", f"who,n,accuracy\\n{{name}},1,0.5\\n")
"""
DRIVER = """
import sys
from pathlib import Path

from vlm_counting import terminal
TYPES
for verb in {"fake", "reader"} - set(runs.RUNS):  # in a worker too: it imports this file, or a copy
    runs.RUNS.add(verb, Path(FOLDER) / f"{verb}.ipynb")
if __name__ == "__main__":
    sys.exit(terminal.main(sys.argv[1:]))
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    "Two quick verbs, `fake` and its `reader`, and an empty results folder."
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path / "results"))
    (tmp_path / "results").mkdir()
    (tmp_path / "driver.py").write_text(DRIVER.replace("FOLDER", repr(str(tmp_path))).replace("TYPES", TYPES))
    exec(TYPES, {})  # noqa: S102  # our own
    for verb, states in (("fake", "str"), ("reader", "FakeStates")):
        sources = [TYPES, PARAMETERS.format(verb=verb, states=states), WORK.format(verb=verb)]
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source.strip()) for source in sources])
        notebook.cells[1].metadata["tags"] = ["parameters"]
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
        nbformat.write(notebook, tmp_path / f"{verb}.ipynb")
        monkeypatch.setitem(RUNS._items, verb, tmp_path / f"{verb}.ipynb")
    return tmp_path / "results"


def log(results: Path) -> list[str]:
    "Which runs were executed, in order."
    path = results / "log.jsonl"
    return [json.loads(line)["uid"] for line in path.read_text().splitlines()] if path.exists() else []


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def start(results: Path, *words: str) -> subprocess.Popen:
    "The command in a process group of its own and with ears for Ctrl-C, as a terminal starts it."
    driver = results.parent / "driver.py"
    command = [sys.executable, driver] if driver.exists() else [BIN / "vlm-counting"]
    environment = os.environ | {"VLM_COUNTING_RESULTS": str(results)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  # whoever tests in the background has none
    return subprocess.Popen(
        [*command, "sweep", *words], env=environment, start_new_session=True, preexec_fn=listen, **pipes
    )


def call(results: Path, *words: str) -> tuple[int, str, str]:
    process = start(results, *words)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


# --- grids


def test_every_combination_is_a_cell_and_a_repetition_is_none():
    grid = {"verb": ["evaluate", "extract"], "model": "tiny-clip,tiny-coca", "dataset": ["balanced", "two_groups"]}
    cells = _expand_grid(grid | {"limit": [18, 18], "layers": "1,2"})
    assert len(cells) == 8
    assert ("evaluate", {"model": "tiny-coca", "dataset": "two_groups", "limit": 18, "run": "evaluate"}) in cells
    assert all(
        ("layers" in given) == (verb == "extract") and given.get("layers", "1,2") == "1,2" for verb, given in cells
    )


def test_what_varies_names_the_run_and_a_notebook_s_own_value_does_not():
    named = {(given["seed"], given["dtype"]): given["run"] for _, given in _expand_grid(
        {"verb": "evaluate", "seed": "0,3", "dtype": "auto,float32", "model": "tiny-clip"}
    )}  # fmt: skip
    assert named == {
        (0, "auto"): "evaluate", (0, "float32"): "evaluate-dtypefloat32",
        (3, "auto"): "evaluate-seed3", (3, "float32"): "evaluate-seed3-dtypefloat32",
    }  # fmt: skip
    assert _expand_grid({"verb": "evaluate", "seed": 3, "run": "mine"})[0][1]["run"] == "mine-seed3"
    assert [given["run"] for _, given in _expand_grid({"verb": "evaluate,extract", "run": "mine"})] == [
        "mine-evaluate",
        "mine-extract",
    ]
    assert [given["run"] for _, given in _expand_grid({"verb": "evaluate", "device": "cpu,auto"})] == ["evaluate"] * 2
    with pytest.raises(ValueError, match="expected one name"):
        _expand_grid({"verb": "evaluate", "run": "a,b"})


def test_a_probe_follows_its_extraction_through_all_its_values():
    cells = _expand_grid({"verb": "probe,extract", "seed": "0,1", "limit": "18,216"})
    states = {given["run"]: given["states"] for verb, given in cells if verb == "probe"}
    assert states == {
        "probe-limit18": "extract-limit18", "probe": "extract",
        "probe-seed1-limit18": "extract-seed1-limit18", "probe-seed1": "extract-seed1",
    }  # fmt: skip
    assert set(states.values()) == {given["run"] for verb, given in cells if verb == "extract"}
    assert _expand_grid({"verb": "probe,extract", "states": "night"})[0][1]["states"] == "night"


@pytest.mark.parametrize(
    "grid, complaint",
    [
        ({"verb": "evalute"}, "Did you mean 'evaluate'?"),
        ({"verb": "evaluate", "modle": "tiny-clip"}, "Did you mean 'model'?"),
        ({"verb": "probe", "limit": 3}, "No parameter of probe named 'limit'"),
        ({"verb": "evaluate", "model": "tinny-*"}, "No model named 'tinny-*'"),
        ({"model": "tiny-clip"}, "Write command=evaluate"),
        ({"verb": []}, "Write command=evaluate"),
    ],
)
def test_a_grid_that_nobody_understands_is_refused(grid, complaint):
    with pytest.raises((UnknownName, ValueError)) as refused:
        grid_values(grid)
    assert complaint in str(refused.value)


def test_stars_stand_for_names_and_text_is_typed():
    values = grid_values(
        {"verb": "evaluate", "model": "tiny-c*", "limit": "18,all", "dataset": "distractors_9_*_red_star"}
    )
    assert values["model"] == ["tiny-clip", "tiny-coca"] and values["limit"] == [18, None]
    assert values["dataset"] == ["distractors_9_small_red_star", "distractors_9_large_red_star"]


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("verb: evaluate\nmodle: tiny-clip", "Did you mean 'model'?"),
        ("verb: evaluate\ngrid: []", "Did you mean 'grids'?"),
        ("verb: evaluate\nverb: extract", "has the key 'verb' twice"),
        ("grids:\n- verb: evaluate\n  limit: 3\n  limit: 4", "has the key 'limit' twice"),
        ("grids: evaluate", "'grids' is no list of grids"),
        ("grids: []", "'grids' is no list of grids"),
        ("- verb", "holds list, expected keys and values"),
        ("verb: [evaluate", "is no YAML"),
        ("verb: !!python/object/apply:os.system ['true']", "is no YAML"),
        ("layers: '1'\ngrids:\n- verb: evaluate", "No parameter of these commands named 'layers'"),
    ],
)
def test_a_file_is_read_strictly(tmp_path, text, complaint):
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises((UnknownName, ValueError)) as refused:
        read_grids(tmp_path / "grid.yaml")
    assert complaint in str(refused.value)


def test_the_command_line_replaces_what_a_file_says(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("model: [tiny-clip]\ngrids:\n- {verb: evaluate, limit: 9}\n- {verb: probe, seed: [0, 1]}\n")
    assert read_grids(path) == [
        {"model": ["tiny-clip"], "verb": "evaluate", "limit": 9},
        {"model": ["tiny-clip"], "verb": "probe", "seed": [0, 1]},
    ]
    changed = read_grids(path, {"limit": "18", "model": "tiny-coca"})
    assert [grid.get("limit") for grid in changed] == ["18", None]
    assert {grid["model"] for grid in changed} == {"tiny-coca"}
    with pytest.raises(FileNotFoundError, match="Expected a YAML file"):
        read_grids(tmp_path / "none.yaml")


# --- plans


def test_samples_are_counted_without_drawing_a_picture(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_COUNTING_DATA", str(tmp_path))
    base = {"dataset": "balanced", "seed": 0, "limit": None}
    assert _count_samples(base) == 17496 and _count_samples(base | {"limit": 108}) == 108
    assert _count_samples(base | {"limit": 108, "shard": "2/8"}) == 14
    assert _count_samples(base | {"dataset": "clustered-open", "limit": 10**6}) == 9408
    assert _count_samples(base | {"transfer": "two_groups", "limit": 100}) == 200
    assert _count_samples(base | {"dataset": str(tmp_path)}) is None and _count_samples({"run": "report"}) is None
    assert not list(tmp_path.iterdir())


def test_a_plan_stands_in_the_order_of_needs_with_report_last(fake):
    cells = plan_sweep(
        {"verb": "report,probe,extract,evaluate", "model": "tiny-clip", "limit": 18, "dataset": "balanced"}
    )
    assert [cell.verb for cell in cells] == ["extract", "probe", "evaluate", "report"]
    assert cells[1].needs == ("extract/tiny-clip/balanced",) and cells[1].samples == 18 and cells[3].samples is None
    parts = plan_sweep({"verb": "evaluate", "shard": "None,1/2,2/2", "limit": 9})
    assert [cell.parameters["shard"] for cell in parts] == ["1/2", "2/2", None]
    assert set(parts[2].needs) == {cell.name for cell in parts[:2]} and [cell.samples for cell in parts] == [5, 5, 9]


def test_every_cell_is_checked_before_anything_starts(fake, capsys):
    assert main(["sweep", "verb=evaluate", "model=tiny-clip,tiny-cocoa", "limit=9"]) == 2
    assert main(["sweep", "verb=evaluate", "limit=9,0"]) == 2
    assert main(["sweep", "verb=probe", "model=tiny-clip"]) == 2
    assert main(["sweep", "verb=fake", "--wokers", "3"]) == 2
    assert main(["sweep", "verb=fake", "--workers", "many"]) == 2
    assert main(["sweep", "verb=fake", "seed"]) == 2
    assert main(["sweep", "none.yaml"]) == 2
    told = capsys.readouterr().err
    for line in ("Did you mean 'tiny-coca'?", "limit is 0, expected", "Add extract to the comm", "workers is 'many'"):
        assert line in told, line
    assert "'seed' has no value" in told and "There is no file none.yaml" in told
    assert log(fake) == [] and files(fake) == []


def test_two_cells_never_share_a_folder(fake):
    with pytest.raises(ValueError, match="they differ in word"):
        plan_sweep({"verb": "fake", "word": "well"}, {"verb": "fake", "word": "done"})


def test_a_dry_run_writes_nothing(fake, capsys):
    assert main(["sweep", "--dry-run", "verb=fake,reader", "name=a,b"]) == 0
    told = capsys.readouterr().out
    assert told.count("to do") == 4 and "4 cells, 0 done already" in told
    assert log(fake) == [] and files(fake) == []


def test_workers_and_gpus():
    assert _count_workers(3, []) == 3 and _count_workers("auto", ["0", "1"]) == 2
    assert 1 <= _count_workers("auto", []) <= cpu_count()
    with pytest.raises(ValueError, match="the number of GPUs is 2"):
        _count_workers(3, ["0", "1"])
    for wrong in (0, True, 1.5, "two"):
        with pytest.raises(ValueError, match="expected a whole number of at least 1, or 'auto'"):
            _count_workers(wrong, [])


def test_gpus_are_those_that_cuda_may_use(monkeypatch):
    for given, seen in (("", []), ("-1", []), ("0", ["0"]), ("2, 3", ["2", "3"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert machines.visible_gpus() == seen


def test_the_first_score_is_the_accuracy_or_else_the_first_number(tmp_path):
    assert first_score(tmp_path) == ""
    for text, score in (
        ("n,accuracy,low\n9,0.4444,0.1\n", "accuracy 0.444"),
        ("evidence,what,model\nboth_right,swapped,0.25\n", "both_right 0.250"),
        ("evidence,n\nx,3\n", ""),
        ("n,accuracy\n9,\n", ""),
        ("", ""),
    ):
        (tmp_path / "scores.csv").write_text(text)
        assert first_score(tmp_path) == score


def test_a_table_names_every_cell_that_is_not_done():
    outcomes = [Outcome("a", "done", 1.0, "accuracy 0.5"), Outcome("b", "failed", 0.1, "", "X: why")]
    told = describe_outcomes([*outcomes, Outcome("c", "skipped", None, "", "needs b, which failed")])
    assert "3 cells: 1 done, 1 failed, 1 skipped." in told and "X: why" in told and "needs b, which failed" in told
    assert "0 cells" in describe_plan([]) and "0 cells" in describe_outcomes([])


# --- what it will cost


def test_few_images_are_stretched_to_a_range():
    half, whole = {"samples": 10, "work": 2.0, "bytes": 150}, {"samples": 20, "work": 3.0, "bytes": 250}
    assert sweeps._stretch([half, whole], 100, 1) == (11, 15, 1050)
    assert sweeps._stretch([half, whole | {"work": 1.0}], 100, 1) == (1, 5, 1050)  # noise: never negative
    assert sweeps._stretch([half], 40, 1.5) == (16, 16, 600)  # measured once: nobody knows what of it grows
    assert sweeps._stretch([half, half], 10, 1) == (2, 2, 150)  # the whole set is no larger


def test_what_cannot_be_measured_says_why_and_the_rest_is_added_up(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path))
    asked, run = (
        [],
        {"samples": 36, "work": 3.6, "bytes": 360, "rest": 2.0, "memory": {"process": 1000, "device": 2000}},
    )

    def apart(cells, images):
        asked.extend(cell.name for cell in cells)
        return {"runs": {"evaluate": [run | {"samples": 18, "work": 1.8}, run]}, "why": {}, "start": 5, "device": "cpu"}

    monkeypatch.setattr(sweeps, "_measure_apart", apart)
    first, *others = plan_sweep(
        {"command": "evaluate", "model": "tiny-clip", "dataset": ["balanced", "clustered", "scattered"], "limit": 360},
        {"command": "evaluate,report", "model": "tiny-clip", "run": "x", "limit": 90},
    )
    costs = sweeps.measure_costs([replace(first, state="done"), *others])
    assert asked == [first.name]  # the largest set stands for all; it may be done already
    assert [cost.why for cost in costs] == ["", "it is given no model"]
    (cost, _), told = costs, describe_costs(costs)
    assert (cost.runs, cost.samples) == (3, 810) and cost.seconds == pytest.approx((102, 102))  # 3 * (5 + 2) + 81
    assert "Not measured: report: it is given no model" in told and "without the 1 runs" in told
    assert "1.0 GB of memory and 2.1 GB of GPU memory" in told


def test_a_model_that_kills_its_process_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path))
    lost = subprocess.CompletedProcess([], -9, "", "")
    monkeypatch.setattr(sweeps.subprocess, "run", lambda *_, **__: lost)
    told = describe_costs(measure_costs(plan_sweep({"command": "evaluate", "model": "tiny-clip"})))
    assert "ended by signal 9; is the memory large enough?" in told and told.endswith(
        "Nothing of it could be measured."
    )
    with pytest.raises(ValueError, match="images is 0, expected"):
        measure_costs([], 0)


@pytest.mark.slow
def test_a_dry_run_measures_what_is_here_and_fetches_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path / "results"))
    words = ["sweep", "command=evaluate,extract,probe", "model=tiny-clip,qwen2-vl-7b", "limit=54", "--dry-run"]
    assert main([*words, "measure=18"]) == 0
    plan, measured = capsys.readouterr().out.split("Measured here and now, on cpu")
    assert "6 cells, 0 done already" in plan and not (tmp_path / "results").exists()
    rows = [line.split() for line in measured.splitlines() if line.split()[:1] == ["tiny-clip"]]
    assert [row[1:4] for row in rows] == [[each, "1", "54"] for each in ("evaluate", "extract", "probe")]
    assert "Not measured: evaluate, extract, probe with qwen2-vl-7b: FileNotFoundError: The weights of" in measured
    assert measured.strip().endswith("without the 3 runs that were not measured.")


# --- runs, one after the other


@pytest.mark.slow
def test_a_failure_is_told_and_the_others_go_on_and_it_is_run_again_on_request_only(fake, capsys):
    words = ["sweep", "verb=fake,reader", "name=a,b"]
    (fake / "fail-a").write_text("")
    assert main(words) == 1
    told = capsys.readouterr().out
    assert "RuntimeError: the first line" in told and "and a second one" not in told
    assert "needs fake/a, which failed" in told and "4 cells: 2 done, 1 failed, 1 skipped." in told
    assert log(fake) == ["fake/a", "fake/b", "reader/b"] and (fake / "fake" / "a" / "notebook-failed.ipynb").exists()
    (fake / "fail-a").unlink()

    assert main(words) == 1  # nothing is run: the failed cell would need to be asked for
    told = capsys.readouterr().out
    assert "failed before (--retry runs it again): RuntimeError: the first line" in told
    assert "skipped: needs fake/a" in told and len(log(fake)) == 3

    assert main([*words, "--retry"]) == 0
    assert log(fake)[3:] == ["fake/a", "reader/a"] and "4 cells: 4 done." in capsys.readouterr().out
    assert main(words) == 0 and len(log(fake)) == 5
    assert not list(fake.rglob(".attempts"))

    assert main(["sweep", "verb=fake", "name=b", "word=other"]) == 2
    assert "parameter 'word' is 'other' now and was 'well'" in capsys.readouterr().err
    assert main(["sweep", "verb=fake", "name=b", "word=other", "--overwrite"]) == 0
    assert log(fake)[5:] == ["fake/b"] and (fake / "fake" / "b" / "replaced" / "scores.csv").exists()


@pytest.mark.long
def test_a_run_that_finished_without_its_notebook_is_not_done(fake):
    (cell,) = plan_sweep({"verb": "fake"})
    assert sweep([cell], tell=lambda line: None)[0].status == "done"
    assert plan_sweep({"verb": "fake"})[0].state == "done"
    (fake / "fake" / "a" / "notebook.ipynb").rename(fake / "fake" / "a" / ".notebook.1.ipynb")  # killed while it drew
    assert plan_sweep({"verb": "fake"})[0].state == "begun"


def test_a_kernel_that_dies_is_a_failure_in_the_record(fake, monkeypatch):
    def execute(verb, parameters):
        record = runs._record(verb, parameters)
        record.status = "running"
        record.save(runs.run_folder(parameters, verb))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sweeps, "_execute", execute)
    (outcome,) = sweep(plan_sweep({"verb": "fake"}), tell=lambda line: None)
    assert (outcome.status, outcome.error) == ("failed", "OSError: [Errno 28] No space left on device")
    assert plan_sweep({"verb": "fake"})[0].state == "failed"


def test_a_folder_in_which_somebody_else_works_is_left_alone(fake, monkeypatch):
    monkeypatch.setattr(sweeps._wait_for, "__defaults__", (0.6,))
    (cell,) = plan_sweep({"verb": "fake"})
    holder = "import sys; from vlm_counting.core import lock_folder as hold"
    holder += "\nwith hold(sys.argv[1]): print(1, flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    other = subprocess.Popen([sys.executable, "-c", holder, fake / "fake" / "a"], **pipes)
    assert other.stdout.readline() == "1\n"
    (outcome,) = sweep([cell], tell=lambda line: None)
    other.communicate("\n")
    assert outcome.error.startswith("BlockingIOError: Another process is writing to") and log(fake) == []
    assert plan_sweep({"verb": "fake"})[0].state == "new"  # it is no failure of the run


@pytest.mark.long
def test_each_local_worker_has_a_gpu_of_its_own():
    from distributed import Client

    with machines.local_cluster(2, ["3", "5"]) as one, Client(one) as client:
        assert set(client.run(os.getenv, "CUDA_VISIBLE_DEVICES").values()) == {"3", "5"}
        assert client.submit(os.getenv, "OMP_NUM_THREADS", resources={"GPU": 1}).result(timeout=60)
        assert all(address.startswith("tls://127.0.0.1") for address in client.scheduler_info()["workers"])


def test_only_runs_that_ask_a_model_need_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path))
    asked = {}

    class Client:
        def submit(self, function, cell, *_, resources, **__):
            asked[cell.verb] = resources
            return SimpleNamespace(key=cell.name)

    monkeypatch.setattr("distributed.as_completed", lambda futures: [])
    cells = plan_sweep({"verb": "evaluate,extract,train,diagnose,probe,report", "model": "tiny-qwen2-vl"})
    list(sweeps._run_cells(cells, {}, (Client(), "", {"GPU": 1}), "a"))
    assert {verb for verb in asked if asked[verb]} == {"evaluate", "extract", "train", "diagnose"}
    assert asked["probe"] is asked["report"] is None


@pytest.mark.long
def test_an_engine_that_does_not_answer_is_refused_with_advice(fake, capsys):
    clock = time.monotonic()
    assert main(["sweep", "verb=fake", "--scheduler", "tcp://127.0.0.1:1"]) == 2
    assert "No Dask scheduler answers at tcp://127.0.0.1:1" in capsys.readouterr().err
    assert time.monotonic() - clock < 60 and log(fake) == []


# --- processes that are killed


@pytest.mark.slow
def test_what_a_sweep_did_is_done_and_another_limit_is_refused(tmp_path, monkeypatch):
    "The example of chapter sweeps, a model and two processes with torch."
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path))
    grid = {"command": "evaluate", "model": "tiny-clip", "limit": 36}
    (outcome,) = outcomes = sweep(plan_sweep(grid), tell=lambda line: None)
    assert outcome.status == "done" and "1 cells: 1 done" in describe_outcomes(outcomes)
    assert "done already" in describe_plan(plan_sweep(grid))
    with pytest.raises(ValueError, match="parameter 'limit' is 45 now and was 36"):
        plan_sweep(grid | {"limit": 45})


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_without_repeating_what_is_done(fake):
    (fake / "wait-b").write_text("")
    words = ["verb=fake", "name=a,b,c"]
    process = start(fake, *words)
    wait_until(lambda: log(fake) == ["fake/a", "fake/b"])
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    (fake / "wait-b").unlink()
    assert [cell.state for cell in plan_sweep({"verb": "fake", "name": "a,b,c"})] == ["done", "begun", "new"]
    status, out, err = call(fake, *words)
    assert status == 0, err
    assert log(fake) == ["fake/a", "fake/b", "fake/b", "fake/c"] and "goes on" in out


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_control_c_leaves_what_is_done_and_says_how_to_go_on(fake, workers):
    (fake / "wait-b").write_text("")
    process = start(fake, "verb=fake", "name=a,b", "--workers", workers)
    wait_until(lambda: "fake/b" in log(fake) and (fake / "fake" / "a" / "report.html").exists())
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and f"vlm-counting sweep verb=fake name=a,b --workers {workers}" in err
    wait_until(lambda: not any(child.is_running() for child in started), seconds=20)
    assert [cell.state for cell in plan_sweep({"verb": "fake", "name": "a,b"})] == ["done", "begun"]


@pytest.mark.slow
def test_a_cell_that_kills_its_worker_three_times_is_given_up_and_the_others_are_not(fake):
    (fake / "kill-b").write_text("")
    status, out, err = call(fake, "verb=fake,reader", "name=a,b", "--workers", "2")
    assert status == 1, err
    assert log(fake).count("fake/b") == 3 and "3 workers were killed while they ran this cell" in out
    assert "needs fake/b, which failed" in out and "4 cells: 2 done, 1 failed, 1 skipped." in out
    assert [cell.state for cell in plan_sweep({"verb": "fake", "name": "b"})] == ["failed"]


REAL = ("verb=evaluate", "model=tiny-clip", "limit=18", "batch_size=1")  # of a real verb


@pytest.mark.slow
def test_a_host_lost_in_the_middle_changes_no_byte(tmp_path):
    """A real verb, once alone, and once with two hosts and one scheduler, of which the host that asks is killed.

    The second host sees the results folder in another place. The sweep is started on the first.
    """
    status, _, err = call(tmp_path / "alone", *REAL)
    assert status == 0, err
    results, mounted, log = tmp_path / "results", tmp_path / "mounted", tmp_path / "sweep.log"
    results.mkdir()
    mounted.symlink_to(results)
    alone, folder = (place / "evaluate" / "tiny-clip" / "balanced" for place in (tmp_path / "alone", results))
    with two_hosts() as hosts, dask_on(hosts, [results, mounted], tmp_path) as (address, workers):
        process = start_on(hosts[0], results, "vlm-counting", "sweep", *REAL, "--scheduler", address, log=log)
        wait_until(lambda: (folder / "predictions.jsonl").exists())
        (busy,) = [worker for worker in workers if psutil.Process(worker.pid).children()]
        busy.kill()
        process.wait(timeout=240)
    told = log.read_text()
    assert process.returncode == 0 and "1 cells: 1 done." in told, told
    assert len(json.loads((folder / "run.json").read_text())["sessions"]) == 2
    compared = [path for kind in ("jsonl", "csv", "png") for path in sorted(alone.glob(f"*.{kind}"))]
    assert len(compared) >= 10
    assert [path.name for path in compared if path.read_bytes() != (folder / path.name).read_bytes()] == []


# --- a cluster that is there already


@pytest.fixture
def cluster(fake):
    "Start a scheduler with one worker that sees a given results folder."
    from distributed import LocalCluster

    started = []

    def start_one(results: Path) -> str:
        options = {"env": {"VLM_COUNTING_RESULTS": str(results)}, "preload": [str(fake.parent / "driver.py")]}
        started.append(
            LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, memory_limit=None, **options)
        )
        return started[0].scheduler_address

    yield start_one
    for one in started:
        one.close()


@pytest.mark.slow
def test_a_running_cluster_is_used_and_left_as_it_is(fake, cluster):
    address, told = cluster(fake), []
    outcomes = sweep(plan_sweep({"verb": "fake,reader", "name": "a"}), scheduler=address, tell=told.append)
    assert [outcome.status for outcome in outcomes] == ["done", "done"] and len(told) == 2
    assert not list(fake.glob(".sweep-*"))
    (fake / "fail-b").write_text("")
    outcomes = sweep(plan_sweep({"verb": "fake,reader", "name": "b"}), scheduler=address, tell=told.append)
    assert [outcome.status for outcome in outcomes] == ["failed", "skipped"]
    (fake / "fail-b").unlink()  # the scheduler remembers no outcome of an earlier sweep
    outcomes = sweep(plan_sweep({"verb": "fake,reader", "name": "b"}), scheduler=address, retry=True, tell=told.append)
    assert [outcome.status for outcome in outcomes] == ["done", "done"]


@pytest.mark.long
def test_workers_with_another_results_folder_are_refused(fake, cluster, tmp_path):
    address = cluster(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="set VLM_COUNTING_RESULTS to it for the workers"):
        sweep(plan_sweep({"verb": "fake"}), scheduler=address)
    assert files(fake) == [] and not (tmp_path / "elsewhere" / "fake").exists()


@pytest.mark.long
def test_the_example_for_slurm_makes_jobs_that_work(tmp_path, monkeypatch):
    "The example of the notebook, its paths replaced by ones that exist; `sbatch` is a script that starts the job here."
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed: pip install '.[slurm]'")
    from distributed import Client

    texts = [
        cell["source"]
        for cell in cells(ROOT / "nbs" / "6_running" / "64_sweeps.ipynb")
        if cell["cell_type"] == "markdown"
    ]
    example = next(match[1] for text in texts if (match := re.search(r"```python\n(.*SLURMCluster.*?)```", text, re.S)))
    made, scaled = example.split("cluster.scale")
    (tmp_path / "activate").write_text("true\n")
    for given, here in (("/shared/results", tmp_path), ("/shared/env/bin/activate", tmp_path / "activate")):
        made = made.replace(given, str(here))
    (tmp_path / "bin").mkdir()
    for name, script in (
        ("sbatch", 'cp "$1" job; bash job > job.log 2>&1 & echo "Submitted batch job $!"'),
        ("scancel", 'kill "$@"'),
    ):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\ncd {tmp_path}\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    names = {}
    exec(made, names)  # noqa: S102  # our own notebook
    with names["cluster"] as cluster, Client(cluster) as client:
        job = cluster.job_script()
        assert "#SBATCH --gres=gpu:1" in job and "#SBATCH -p gpu" in job and "--resources GPU=1" in job
        worker = next(line for line in job.splitlines() if "dask_worker" in line or "dask worker" in line)
        assert re.findall(r"--memory-limit (\S+)", worker)[-1] == "0" and "--nthreads 1" in worker
        assert job.index(f"export VLM_COUNTING_RESULTS={tmp_path}") < job.index(worker)
        assert "(jobs=" in scaled
        cluster.scale(jobs=1)
        seen = client.submit(os.getenv, "VLM_COUNTING_RESULTS", resources={"GPU": 1})
        assert seen.result(timeout=60) == str(tmp_path)
