"Guards for what people type: types of parameters, one dialect, runs without a kernel, progress, Ctrl-C, closed pipes."

import ast
import fcntl
import json
import math
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import psutil
import pytest
from clusters import wait_until

from vlm_counting import core, runs, sweeps, terminal
from vlm_counting.__main__ import stopped, version_line
from vlm_counting.core import Progress, RunRecord, UnknownName, claim_folder, progress_bar
from vlm_counting.paper.findings import find_runs
from vlm_counting.runs import (
    RUNS,
    TOOLS,
    TYPES,
    Count,
    Limit,
    Model,
    Parameter,
    RunNotebooks,
    check_parameters,
    check_value,
    declared_parameters,
    execute,
    perform,
    run,
    run_folder,
)
from vlm_counting.terminal import _summary, main

BIN = Path(sys.executable).parent
HERE = Path(__file__).resolve().parents[1]


@pytest.fixture
def results(tmp_path, monkeypatch):
    "An empty results folder."
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path / "results"))
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


# --- types of parameters


@pytest.mark.parametrize(
    "command, name, value, complaint",
    [
        ("evaluate", "model", 5, "model is 5, expected a name in MODELS"),
        ("evaluate", "model", "~nobody-at-all/x", "model: "),
        ("evaluate", "dataset", "~nobody-at-all/x", "dataset"),
        ("evaluate", "device", "cuda:99999999999", "No device named 'cuda:99999999999'"),
        ("evaluate", "checkpoint", "no-such-folder", "checkpoint: there is no folder 'no-such-folder'"),
        ("evaluate", "head", "no-such-file", "head: there is no file 'no-such-file'. Expected heads/trained"),
        ("evaluate", "prompt", "What is it?", "leaves out the question"),
        ("evaluate", "prompt", "{question} {word}", "{word}"),
        ("evaluate", "instruction", None, "instruction is None, expected text"),
        ("evaluate", "parser", "strikt", "No parser named 'strikt'. Did you mean 'strict'?"),
        ("evaluate", "limit", True, "limit is True, expected a whole number"),
        ("evaluate", "limit", [3], "limit is [3], expected a whole number"),
        ("evaluate", "max_new_tokens", None, "max_new_tokens is None"),
        ("evaluate", "shard", "5/4", "shard is '5/4'"),
        ("evaluate", "run", "", "run is ''"),
        ("extract", "layers", "1,x", "layers is '1,x'"),
        ("extract", "untrained", "auto", "untrained is 'auto', expected a whole number of at least 0, or None"),
        ("probe", "states", 3, "states is 3, expected the name of a run"),
        ("train", "learning_rate", float("1e999"), "learning_rate is inf, expected a number of more than 0"),
        pytest.param("train", "learning_rate", 10**400, "expected a number of more than 0", id="a huge number"),
        ("train", "teacher", float("nan"), "teacher is nan, expected a number of at least 0"),
        ("train", "training_limit", 1, "training_limit is 1, expected a whole number of at least 3"),
        ("train", "transfer", "two_group", "transfer: No dataset named 'two_group'. Did you mean 'two_groups'?"),
        ("report", "runs", "/", "runs is '/', expected a pattern"),
        ("paper", "models", "tiny-clap", "Did you mean 'tiny-clip'?"),
        ("build_bpc", "per_count", 0, "per_count is 0"),
        ("build_bpc", "per_count", -1, "per_count is -1"),
        ("build_bpc", "per_label", 0, "per_label is 0, expected a whole number of at least 1, or None for any number"),
        ("build_bpc", "rule", "evil", "No rule named 'evil'"),
        ("build_bpc", "categories", "evil", "evil"),
        ("build_bpc", "private_hosts", "localhost", "private_hosts is 'localhost', expected a list"),
        ("plant_faults", "names", "tiny-qwen2-vl,tiny-clap", "No names named 'tiny-clap'"),
        ("plant_faults", "seeds", "0,x", "seeds is '0,x', expected whole numbers"),
        ("train_twins", "budget", "half", "No budget named 'half'"),
    ],
)
def test_a_bad_value_is_refused_in_the_first_second(command, name, value, complaint):
    "By name, with what was found and expected, before anything is loaded."
    with pytest.raises((UnknownName, ValueError, FileNotFoundError)) as refused:
        check_parameters(command, {name: value})
    assert complaint in str(refused.value) and name.rstrip("s") in str(refused.value).replace("choice of ", "")


@pytest.mark.parametrize(
    "command, given",
    [
        ("evaluate", {"limit": None, "batch_size": 3, "device": "cuda:3", "instruction": "Look, then count."}),
        ("evaluate", {"prompt": "{question}", "system": "", "parser": "paper", "shard": "2/3"}),
        ("extract", {"layers": 3, "poolings": "mean, last", "untrained": 0}),
        ("probe", {"untrained": None, "probes": "svm", "rules": "auto", "scheduler": "tcp://host:8786"}),
        ("train", {"learning_rate": 1, "teacher": 0, "stop": 3, "training_limit": 3}),
        ("plant_faults", {"twice": False, "doses": "mild"}),
        ("build_bpc", {"categories": ["cats"], "source": None}),
    ],
)
def test_a_good_value_passes_as_it_is(command, given):
    found = check_parameters(command, given)
    assert {name: found[name] for name in given} == given


def test_every_parameter_of_every_command_names_its_type():
    for command in RUNS:
        for name, one in runs._declared(command).items():
            assert any(one.type is known for known in TYPES.values()), f"{command}: {name} has no type of its own"


def test_what_has_a_folder_of_its_own_is_where_a_run_lives():
    "`run_folder` makes results/<run>/<model>/<dataset>/part-..; a sweep asks the types which parameters those are."
    own = {name for command in RUNS for name, one in runs._declared(command).items() if one.type.folder}
    assert own == {"model", "name", "dataset", "shard"}
    given = check_parameters("evaluate", {"run": "r", "shard": "1/2"})
    assert run_folder(given).parts[-4:] == ("r", "tiny-qwen2-vl", "balanced", "part-1-of-2")


def test_papermill_shows_the_parameters_and_their_types():
    from papermill import inspect_notebook

    for command, path in RUNS.items():
        seen, declared = inspect_notebook(path), declared_parameters(command)
        assert seen.keys() == declared.keys(), command
        for name, one in seen.items():
            assert one["inferred_type_name"].strip() in TYPES and one["help"] == declared[name][1], f"{command}: {name}"


CELL = """
a: Limit = 3  # of the first
b: Count | None = None  # of the second
c: None | Model = None
d: int | str = 5  # both
e: list[str] = []  # some
f: "Count" = 2
g = 1.5  # without
h = "x"
"""


def test_a_cell_of_parameters_is_read_and_not_run():
    found = runs._declared_in(CELL)
    assert list(found) == list("abcdefgh")
    assert (found["a"].type, found["a"].default, found["a"].meaning) == (Limit, 3, "of the first")
    assert check_value(found["b"].type, "b", None) is None and check_value(found["b"].type, "b", 4) == 4
    assert check_value(found["c"].type, "c", "tiny-clip") == "tiny-clip"
    assert [check_value(found["d"].type, "d", value) for value in (1, "one")] == [1, "one"]
    assert check_value(found["e"].type, "e", ["x"]) == ["x"] and found["f"].type is Count
    assert check_value(found["g"].type, "g", 2) == 2.0 and check_value(found["h"].type, "h", None) is None
    for name, wrong in (("b", 0), ("b", "x"), ("c", "tiny-clap"), ("d", 1.5), ("e", "x"), ("g", "x"), ("h", 3)):
        with pytest.raises((UnknownName, ValueError), match=name):
            check_value(found[name].type, name, wrong)
    with pytest.raises(UnknownName, match="Did you mean 'Limit'"):
        runs._declared_in("a: Limmit = 3  # of the first")


def test_annotations_are_legal_python():
    names = {"Limit": Limit, "Model": Model, "Count": Count}
    exec("a: Limit = 3\nb: Count | None = None\nc: None | Model = None\nd: int | Count = 5\ne: Count | str = 1", names)
    assert isinstance(names["__annotations__"]["b"], Parameter)
    assert check_value(names["__annotations__"]["d"], "d", 5) == 5


# --- what was typed


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "limit=18", "overwrite=True", "run=007"],
        ["run", "evaluate", "limit=18", "overwrite=True", "run=007"],
        ["evaluate", "--limit", "18", "--overwrite", "--run", "007"],
        ["evaluate", "--limit=18", "run=007", "--overwrite"],
    ],
)
def test_one_dialect(words, results, monkeypatch):
    asked = []
    monkeypatch.setattr(terminal, "_run_and_tell", lambda *what: asked.append(what) or 0)
    assert main(words) == 0
    assert asked == [("evaluate", check_parameters("evaluate", {"limit": 18, "overwrite": True, "run": "007"}))]


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["evalute"], "No command named 'evalute'. Did you mean 'evaluate'?"),
        (["run", "dokter"], "Did you mean 'doctor'?"),
        (["doctor"], "doctor wants to know its model: model=..."),
        (["doctor", "tiny-clip", "chekpoint=x"], "Did you mean 'checkpoint'?"),
        (["fetch", "models=tiny-clap"], "Did you mean 'tiny-clip'?"),
        (["list", "model"], "Did you mean 'models'?"),
        (["sweep", "command=evaluate", "workers=0"], "workers is 0"),
        (["sweep", "command=evalute"], "Did you mean 'evaluate'?"),
        (["sweep", "a.yaml", "b.yaml"], "There are 2 files"),
    ],
)
def test_a_wrong_word_is_answered_with_the_nearest(words, complaint, results, capsys):
    assert main(words) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["doctor", "tiny-clip", "--checkpoint", "FOLDER", "--json"],
        ["doctor", "model=tiny-clip", "checkpoint=FOLDER", "json=True"],
        ["run", "doctor", "--model", "tiny-clip", "checkpoint=FOLDER", "--json"],
    ],
)
def test_the_doctor_hears_the_old_words_and_the_new_ones(words, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(terminal, "load_model", lambda *what, **more: asked.append(what))
    monkeypatch.setattr(terminal, "doctor", lambda vlm: [{"check": "head", "ok": False, "value": 1, "expected": 2}])
    assert main([word.replace("FOLDER", str(tmp_path)) for word in words]) == 1
    assert asked == [("tiny-clip", str(tmp_path), "auto", "auto")]
    assert json.loads(capsys.readouterr().out)[0]["check"] == "head"


@pytest.mark.parametrize("given", [["workers=2", "retry=True"], ["--workers", "2", "--retry"]])
def test_a_sweep_has_words_of_its_own(given, results, monkeypatch):
    asked = []
    monkeypatch.setattr(terminal, "sweep", lambda cells, *what: asked.append((len(cells), *what[:3])) or [])
    assert main(["sweep", "command=evaluate", "model=tiny-c*", "limit=9", *given]) == 0
    assert asked == [(2, 2, None, True)]


@pytest.mark.parametrize("given", ["dry_run=True", "--dry-run"])
def test_a_dry_run_needs_no_kernel(given, results, monkeypatch, capsys):
    monkeypatch.setattr(runs, "_execute", lambda *_: pytest.fail("a kernel was started"))
    assert main(["paper", "models=tiny-clip", "measure=0", given]) == 0
    told = capsys.readouterr().out
    assert "paper-evaluate/tiny-clip/clustered" in told and "Nothing was started" in told
    assert list(results.iterdir()) == []


@pytest.mark.parametrize("command", [*RUNS, *TOOLS])
def test_every_command_helps(command, capsys):
    assert main([command, "--help"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"vlm-counting {command} name=value")
    for name, one in runs._declared(command).items():
        assert re.search(rf"^  {name}=.* {re.escape(one.meaning)}$", told, re.MULTILINE), name


def test_the_command_alone_says_what_there_is(capsys):
    assert main([]) == main(["run"]) == 2 and main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"\n  {command} " in told for command in [*RUNS, *TOOLS])


def called(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize("how", [[BIN / "vlm-counting"], [sys.executable, "-m", "vlm_counting"]])
def test_versions_are_told_without_loading_torch(how, capsys):
    done = called(*how, "--version")
    assert done.returncode == 0 and done.stdout.strip() == version_line()
    assert main(["--version"]) == 0 and capsys.readouterr().out.strip() == version_line()
    assert re.fullmatch(r"vlm_counting [\d.]+, Python [\d.]+, torch [\w.+]+, transformers [\w.]+", version_line())
    check = "import sys, vlm_counting.__main__ as m; m.version_line(); print({'torch', 'numpy'} & set(sys.modules))"
    assert called(sys.executable, "-c", check).stdout.strip() == "set()"


@pytest.mark.long
def test_python_m_runs_the_command():
    done = called(sys.executable, "-m", "vlm_counting", "evaluat")
    assert done.returncode == 2 and "Did you mean 'evaluate'?" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.long_after(1)
@pytest.mark.parametrize("words", [["list"], ["list", "models"], ["evaluate", "--help"], ["--help"]])
def test_a_closed_pipe_is_no_error(words):
    "As `| head -1` leaves it behind: nobody reads what is printed."
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([BIN / "vlm-counting", *words], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


# --- what was run


def a_run(folder: Path, **about) -> RunRecord:
    "A record of a finished run in a folder."
    session = {"started": "2026-01-02T03:04:05+00:00", "finished": "2026-01-02T04:04:05+00:00", "seconds": 1.0}
    fields = {"model": "tiny-clip", "dataset": "balanced", "samples": 1216, "status": "finished"}
    record = RunRecord("evaluate", {"limit": 1}, sessions=[session], **fields | about)
    folder.mkdir(parents=True)
    record.save(folder)
    return record


def test_results_are_listed_and_broken_folders_stop_nobody(results, capsys):
    assert main(["list", "results"]) == 0 and "There are no runs" in capsys.readouterr().out
    a_run(results / "evaluate" / "tiny-clip" / "balanced")
    (results / "evaluate" / "tiny-clip" / "balanced" / "scores.csv").write_text("n,accuracy\n9,0.4444\n")
    a_run(results / "evaluate" / "tiny-clip" / "balanced" / "part-1-of-2")
    a_run(results / "evaluate" / "tiny-clip" / "clustered" / "replaced")
    a_run(results / "evaluate" / "tiny-clip" / "clustered" / "replaced-12")
    a_run(results / "mine" / "tiny-coca" / "balanced", model="tiny-coca", status="failed", error="ValueError: no")
    for name, text in (("a", ""), ("b", "{"), ("c", "[]"), ("d", '{"verb": 5'), ("e", "null"), ("f", "[" * 10**5)):
        (results / "broken" / name).mkdir(parents=True)
        (results / "broken" / name / "run.json").write_text(text)
    (results / "broken" / "g").mkdir()
    os.mkfifo(results / "broken" / "g" / "run.json")  # nobody writes into it: whoever opens it waits
    assert main(["list", "results"]) == 0
    told = capsys.readouterr()
    header, *rows = [re.split(r"  +", line.strip()) for line in told.out.splitlines()]
    assert header == ["run", "command", "model", "dataset", "samples", "score", "when", "status"]
    assert rows == [
        ["evaluate", "evaluate", "tiny-clip", "balanced", "1,216", "accuracy 0.444", "2026-01-02 04:04", "finished"],
        ["mine", "evaluate", "tiny-coca", "balanced", "1,216", "2026-01-02 04:04", "failed"],
    ]
    assert told.err.count("is left out: ") == 6 and str(results / "broken" / "f") in told.err


@pytest.mark.long
def test_a_run_from_python_starts_no_kernel_and_leaves_the_same_files(results, monkeypatch):
    from vlm_counting import evaluate, load_dataset, load_model

    monkeypatch.setattr(runs, "_execute", lambda *_: pytest.fail("a kernel was started"))
    folder = run("evaluate", model="tiny-clip", limit=18, batch_size=4)
    assert folder == results / "evaluate" / "tiny-clip" / "balanced"
    vlm, samples = load_model("tiny-clip"), load_dataset("balanced", limit=18)
    evaluate(vlm, samples, results / "own", batch_size=4).figures()
    there, own = (
        sorted(path.name for path in place.iterdir() if path.name[0] != ".") for place in (folder, results / "own")
    )
    assert there == own and {"run.json", "scores.csv", "confusion.png", "browser.html"} <= set(there)
    for name in set(there) - {"run.json"}:
        assert (folder / name).read_bytes() == (results / "own" / name).read_bytes(), name
    record = RunRecord.load(folder)
    assert record.status == "finished" and record.dataset == "balanced" and record.samples == 18
    assert record.parameters["instruction"].startswith("Answer") and record.parameters["parser"] == "strict"


@pytest.mark.long
def test_another_run_s_folder_is_refused_before_a_model_is_loaded(results, monkeypatch):
    run("evaluate", model="tiny-clip", limit=9)
    monkeypatch.setattr("vlm_counting.commands.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    for given, complaint in (
        ({"limit": 18}, "parameter 'limit' is 18 now and was 9"),
        ({"limit": 9, "instruction": "Count."}, "parameter 'instruction' is 'Count.' now and was 'Answer"),
        ({"limit": 9, "parser": "paper"}, "parameter 'parser' is 'paper' now and was 'strict'"),
    ):
        with pytest.raises(FileExistsError, match=complaint):
            run("evaluate", model="tiny-clip", **given)


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on(results):
    "It did not know the wording and the parser: it did what their defaults say."
    folder = run("evaluate", model="tiny-clip", limit=9)
    record, before = json.loads((folder / "run.json").read_text()), (folder / "scores.csv").read_bytes()
    for name in ("instruction", "prompt", "system", "parser"):
        del record["parameters"][name]
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(FileExistsError, match="parameter 'system' is 'Look.' now and was ''"):
        run("evaluate", model="tiny-clip", limit=9, system="Look.")
    (folder / "notebook.ipynb").write_text("{}")
    assert (
        sweeps.folder_state("evaluate", check_parameters("evaluate", {"model": "tiny-clip", "limit": 9}))[0] == "done"
    )
    assert run("evaluate", model="tiny-clip", limit=9) == folder
    assert (folder / "scores.csv").read_bytes() == before and len(RunRecord.load(folder).sessions) == 2
    assert RunRecord.load(folder).parameters["parser"] == "strict"


@pytest.mark.long
def test_who_was_killed_is_stopped_and_who_works_is_running(results):
    a_run(results / "evaluate" / "tiny-clip" / "balanced", status="running")
    folder = results / "evaluate" / "tiny-coca" / "balanced"
    with claim_folder(RunRecord("evaluate", {}, model="tiny-coca"), folder):
        code = "from vlm_counting.terminal import _find_results; print([row['status'] for row in _find_results()[0]])"
        seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert sorted(ast.literal_eval(seen)) == ["running", "stopped"]


@pytest.mark.parametrize(
    "words", [["limit=9", "limit=18"], ["limit=9", "--limit", "9"], ["--overwrite", "overwrite=x"]]
)
def test_a_parameter_is_given_once(words, capsys):
    assert main(["evaluate", "model=tiny-clip", *words]) != 0
    assert f"{words[0].removeprefix('--').partition('=')[0]} is given twice" in capsys.readouterr().err


def test_a_notebook_s_parameters_of_any_type_are_seen(results, monkeypatch):
    asked, notebook = [], {"__name__": "__main__", "math": math}
    monkeypatch.setattr("vlm_counting.commands.COMMANDS", {"evaluate": lambda p, *_: asked.append(p.limit)})
    perform("evaluate", notebook | {"limit": np.int64(9)})
    assert asked == [9] and type(asked[0]) is int
    with pytest.raises(ValueError, match="limit is a tuple"):
        perform("evaluate", notebook | {"limit": (9,)})


def test_a_notebook_s_names_are_its_parameters(results, monkeypatch):
    "Whatever stands among them: what is no plain value, what is hidden, and what later cells leave behind."
    asked = []
    work = {"evaluate": lambda *what: asked.append(what) or SimpleNamespace()}
    monkeypatch.setattr("vlm_counting.commands.COMMANDS", work)
    names = {"__name__": "__main__", "In": ["x"], "Out": {}, "_": 3, "_i1": "x", "Limit": Limit, "json": json}
    perform("evaluate", names | {"limit": 9})
    names |= {"limit": 18}
    perform("evaluate", names)
    perform("evaluate", names | {"name": "scores", "number": 3})  # of a loop in a later cell; the cell is run again
    assert [p.limit for p, _, _ in asked] == [9, 18, 18]
    parameters, folder, record = asked[0]
    assert folder == results / "evaluate" / "tiny-qwen2-vl" / "balanced" and record.parameters["limit"] == 9
    assert record.dataset == "balanced" and record.seeds == {"seed": 0} and "device" not in record.parameters
    with pytest.raises(UnknownName, match="Did you mean 'limit'"):
        perform("evaluate", {"__name__": "__main__", "limt": 9})
    with pytest.raises(ValueError, match="limit is a object"):
        perform("evaluate", {"limit": object()})
    perform("evaluate", {"shard": "1/2"})
    assert asked[-1][1] == folder and asked[-1][0].shard == "1/2"


def test_a_summary_begins_with_what_the_record_says(results):
    folder = results / "evaluate" / "tiny-clip" / "balanced"
    a_run(folder)
    cell = nbformat.v4.new_code_cell('result = perform("evaluate", globals())\nresult')
    cell.outputs = [
        nbformat.v4.new_output("execute_result", {"text/plain": "9 answers, accuracy 0.444", "text/html": "x"})
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / "notebook.ipynb")
    (folder / "scores.csv").write_text("evidence,model\nboth,1\n")
    lines = _summary(folder).splitlines()
    assert lines[0].startswith("tiny-clip on balanced: 1216 samples") and lines[1] == "9 answers, accuracy 0.444"
    assert "evidence" not in _summary(folder)  # a column of names without numbers says nothing
    assert f"Open {folder / 'report.html'}" in lines[-1]


# --- kernels, progress and Ctrl-C, with a quick command of one's own

NOTEBOOK = """
import time
from vlm_counting.core import RunRecord, claim_folder, progress_bar, results_dir

with claim_folder(RunRecord("fake", {"word": word}), results_dir() / run, overwrite) as folder:
    (results_dir() / "begun").write_text(__import__("sys").executable)
    with progress_bar(40, 10, "tiny") as bar:
        for _ in range(30):
            bar.update()
            time.sleep(wait)
print("said by the notebook")
"""
PARAMETERS = """
word: Text = "well"  # of nothing
wait: Weight = 0.0  # seconds between two images
run: RunName = "fake"  # name of the run
overwrite: Overwrite = False  # replace
"""
DRIVER = """
import sys
from vlm_counting import runs
from vlm_counting.__main__ import main

runs.RUNS.add("fake", __import__("pathlib").Path(sys.path[0]) / "fake.ipynb")
sys.exit(main())
"""


@pytest.fixture
def fake(results, monkeypatch):
    "A command that takes no time, and a driver that knows it; the folder of both."
    first = nbformat.v4.new_code_cell("from vlm_counting.runs import Overwrite, RunName, Text, Weight")
    cells = [first, *map(nbformat.v4.new_code_cell, (PARAMETERS.strip(), NOTEBOOK.strip()))]
    cells[1].metadata["tags"] = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(notebook, results.parent / "fake.ipynb")
    (results.parent / "driver.py").write_text(DRIVER)
    monkeypatch.setitem(RUNS._items, "fake", results.parent / "fake.ipynb")
    return results.parent


def start(*command, **options) -> subprocess.Popen:
    "In a process group of its own and with ears for Ctrl-C, as a terminal starts it."
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  # whoever tests in the background has none
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([*map(str, command)], start_new_session=True, preexec_fn=listen, **options)


@pytest.mark.long
def test_the_kernel_is_this_interpreter_whatever_is_installed(fake, tmp_path, monkeypatch):
    (tmp_path / "jupyter" / "kernels" / "python3").mkdir(parents=True)
    spec = {"argv": ["/bin/false", "-f", "{connection_file}"], "display_name": "other", "language": "python"}
    (tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    done = called(sys.executable, fake / "driver.py", "fake")
    assert done.returncode == 0, done.stderr
    assert (fake / "results" / "begun").read_text() == sys.executable
    lines = done.stderr.splitlines()  # what a log shows: the notebook's words, and how far it is
    assert "said by the notebook" in lines
    assert any(re.fullmatch(r"tiny: 40 of 40 images, [\d,.]+ images/s", line) for line in lines), lines
    assert "cell" not in done.stderr


@pytest.mark.slow
def test_a_terminal_shows_one_bar_of_images(fake):
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = start(sys.executable, fake / "driver.py", "fake", "wait=0.05", stdout=child, stderr=child, stdin=child)
    os.close(child)
    told = b""
    while chunk := read_some(parent):
        told += chunk
    assert process.wait(timeout=60) == 0
    told = told.decode(errors="replace")
    assert "fake is at work" in told and re.search(r"tiny: .*\d+/40 \[.* images/s\]", told)
    assert "said by the notebook" in told and "cell" not in told.split("Open ")[0]


def read_some(place: int) -> bytes:
    try:
        return os.read(place, 4096)
    except OSError:  # the terminal was closed
        return b""


@pytest.mark.slow
@pytest.mark.parametrize("pressed", [[0], [0, 0.02], [0, 0.3, 0.3]])
def test_control_c_while_a_kernel_runs(fake, pressed):
    "One sentence, 130, nothing left behind; and the same command goes on. Also when it is pressed again and again."
    process = start(sys.executable, fake / "driver.py", "fake", "wait=60", "word=two words")
    wait_until(lambda: (fake / "results" / "begun").exists())
    started = psutil.Process(process.pid).children(recursive=True)
    assert started
    for pause in pressed:
        time.sleep(pause)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert re.fullmatch(r"\s*Stopped: [^\n]* from there: vlm-counting fake wait=60 'word=two words'\s*", err)
    wait_until(lambda: not any(child.is_running() for child in started), seconds=20)
    assert not list((fake / "results" / "fake").glob("*.html"))
    assert RunRecord.load(fake / "results" / "fake").status != "finished"
    done = called(sys.executable, fake / "driver.py", "fake", "word=two words", "wait=0")
    assert done.returncode == 0 and (fake / "results" / "fake" / "report.html").exists()


@pytest.mark.slow  # rests on tenths of a second, which a busy machine does not keep
@pytest.mark.parametrize("seconds", [0, 0.1, 0.25, 0.4, 0.6, 0.9])
@pytest.mark.parametrize("words", [["list"], ["evaluate", "limit=432"]])
def test_control_c_in_the_first_second(words, seconds, results):
    "From the moment when our own first line is reached; what comes before is Python's own start."
    script = f"import sys; from vlm_counting.__main__ import main; sys.argv = ['vlm-counting', *{words}]\n"
    script += "print('here', file=sys.stderr, flush=True)\nsys.exit(main())"
    process = start(sys.executable, "-c", script)
    assert process.stderr.readline() == "here\n"
    time.sleep(seconds or 0.005)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.01)
    try:
        os.killpg(process.pid, signal.SIGINT)
    except ProcessLookupError:
        pass
    _, err = process.communicate(timeout=60)
    if process.returncode == 0 and words == ["list"]:
        return  # it was through before
    assert process.returncode == 130 and "Traceback" not in err, err
    assert err.count("Stopped: ") == 1 and f"vlm-counting {' '.join(words)}" in err


def test_an_interrupt_of_what_calls_us_is_told_in_the_same_words(results, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(terminal, "_run_and_tell", interrupt)
    before = signal.getsignal(signal.SIGINT)
    assert main(["evaluate", "run=my run"]) == 130
    assert capsys.readouterr().err.strip().endswith("vlm-counting evaluate 'run=my run'")
    assert signal.getsignal(signal.SIGINT) is before


def test_going_on_does_not_begin_anew(results, monkeypatch, capsys):
    "Whoever asked for `overwrite` has the folder by now: typed again, the same word would throw away what is there."

    def interrupt(command, parameters):
        record = runs._record(command, parameters)
        record.status = "running"
        record.save(core.make_folder(run_folder(parameters, command)))
        raise KeyboardInterrupt

    monkeypatch.setattr(terminal, "_run_and_tell", interrupt)
    assert main(["evaluate", "limit=9", "--overwrite"]) == 130
    assert capsys.readouterr().err.strip().endswith("from there: vlm-counting evaluate limit=9")
    monkeypatch.setattr(terminal, "_run_and_tell", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["evaluate", "limit=18", "overwrite=True"]) == 130  # before the folder is taken over
    assert capsys.readouterr().err.strip().endswith("vlm-counting evaluate limit=18 overwrite=True")
    assert stopped(["list"]) == 130


@pytest.mark.long
def test_a_run_that_fails_is_told_in_one_line(fake, capsys):
    source = (fake / "fake.ipynb").read_text().replace("import time", "raise ValueError('no such star')")
    (fake / "fake.ipynb").write_text(source)
    assert main(["fake"]) == 1
    told = capsys.readouterr()
    assert "vlm-counting: fake failed. ValueError: no such star" in told.err and "Traceback" not in told.err


@pytest.mark.long
def test_execute_says_where_the_run_is(fake):
    assert execute("fake", word="x") == fake / "results" / "fake"
    assert (fake / "results" / "fake" / "report.html").exists()


# --- progress


def test_a_line_says_how_far_it_is(monkeypatch):
    bar = Progress(17_496, 200, "tiny-clip")
    assert str(bar) == "tiny-clip: 200 of 17,496 images"
    bar.update(1000)
    bar.began = time.monotonic() - 1000 / 35.1
    assert str(bar) == "tiny-clip: 1,200 of 17,496 images, 35.1 images/s, 7 min 44 s left"
    bar.began = time.monotonic() - 1000
    assert str(bar).endswith("1.0 images/s, 4 h 31 min left")
    bar.began = time.monotonic() - 2500
    assert ", 2.5 s each, " in str(bar)
    bar.update(16_296)
    assert "left" not in str(bar)
    assert str(Progress(3, unit="epoch")) == "0 of 3 epochs"


def test_a_log_has_a_line_a_minute_and_one_at_the_end(monkeypatch, capsys):
    monkeypatch.delenv("VLM_COUNTING_PROGRESS", raising=False)
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(core.time, "monotonic", lambda: clock.now)
    with progress_bar(300, label="tiny") as bar:
        for _ in range(250):
            clock.now += 1
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == [f"tiny: {n} of 300 images" for n in (60, 120, 180, 240, 250)]
    with progress_bar(300, shown=False) as bar:
        bar.update(300)
    assert capsys.readouterr().err == "" and bar.done == 300


@pytest.mark.parametrize("place", ["state.json", "no-such-folder/state.json", ""])
def test_the_channel_tells_and_never_stops_the_work(place, tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_COUNTING_PROGRESS", str(tmp_path / place) if place else str(tmp_path))
    with progress_bar(3, 1, "tiny", unit="image") as bar:
        bar.update(2)
    assert bar.done == 3
    if place == "state.json":
        state = json.loads((tmp_path / place).read_text())
        expected = {"total": 3, "initial": 1, "done": 3, "label": "tiny", "unit": "image", "over": True}
        assert {name: state[name] for name in expected} == expected
        assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.long
def test_whoever_follows_shows_each_piece_of_work_and_survives_nonsense(tmp_path, monkeypatch, capsys):
    channel, over = tmp_path / "state.json", threading.Event()
    follower = threading.Thread(target=runs._follow, args=(channel, "evaluate", over))
    follower.start()
    for label, total, pause in (("first", 5, 0), ("second", 7, 0.9), ("third", 3, 0.9)):
        monkeypatch.setenv("VLM_COUNTING_PROGRESS", str(channel))
        bar = progress_bar(total, label=label)
        with bar as state:
            monkeypatch.delenv("VLM_COUNTING_PROGRESS")
            state.update(1)
            time.sleep(0.9)
            state.update(total - 1)
        time.sleep(pause)  # none: the next one begins before anybody has seen how this one ended
    over.set()
    follower.join(timeout=10)
    told = [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == ["first: 5 of 5 images", "second: 7 of 7 images", "third: 3 of 3 images"]
    channel.write_text("{")
    over.clear()
    runs._follow(channel, "evaluate", over)  # returns


def status(place: Path) -> str:
    return next(json.loads(path.read_text())["status"] for path in place.rglob("run.json"))


@pytest.mark.long
@pytest.mark.parametrize("command", ["evaluate", "extract"])
def test_a_run_is_finished_when_its_figures_are_there(command, results, monkeypatch):
    "Its record says so, and who looks for finished runs takes no other."
    kind = {"evaluate": "evaluation.Evaluation", "extract": "extraction.States"}[command]
    asked = {"model": "tiny-clip", "limit": 9, "device": "cpu"}

    def fail(self):
        raise RuntimeError("no such colour")

    with monkeypatch.context() as broken:
        broken.setattr(f"vlm_counting.{kind}.figures", fail)
        with pytest.raises(RuntimeError, match="no such colour"):
            run(command, **asked)
    assert status(results) == "failed" and find_runs(results) == {}
    run(command, **asked)
    assert status(results) == "finished" and len(find_runs(results)) == 1


@pytest.mark.long
def test_a_run_is_finished_when_its_page_is_there(results, monkeypatch):
    "While a notebook is being run, what is scored is not finished; who runs it says how it ended."
    asked = {"model": "tiny-clip", "limit": 9, "device": "cpu"}
    parameters = check_parameters("evaluate", asked)
    folder = run_folder(parameters)
    notebook = {"cells": [], "metadata": {"papermill": {"parameters": asked}}, "nbformat": 4, "nbformat_minor": 5}
    about = notebook["metadata"]["papermill"]
    RunNotebooks().write(json.dumps(notebook), "vlm-counting://evaluate.ipynb")
    perform("evaluate", asked)
    assert status(results) == "scored" and find_runs(results) == {}
    about |= {"end_time": "now", "exception": True}
    RunNotebooks().write(json.dumps(notebook), "vlm-counting://evaluate.ipynb")
    assert status(results) == "failed" and (folder / "notebook-failed.ipynb").exists()
    about |= {"end_time": None, "exception": None}
    RunNotebooks().write(json.dumps(notebook), "vlm-counting://evaluate.ipynb")
    perform("evaluate", asked)
    about |= {"end_time": "now"}
    RunNotebooks().write(json.dumps(notebook), "vlm-counting://evaluate.ipynb")
    assert status(results) == "finished" and (folder / "report.html").exists() and len(find_runs(results)) == 1
    perform("evaluate", asked)  # in a notebook that somebody runs by hand, no page follows
    assert status(results) == "finished"
