"Guards for the room `runs`: what users type as it stands, and what they type wrongly."

import json
import os
import pty
import resource
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from chromium import open_chromium

from vlm_counting import runs
from vlm_counting.core import RunRecord, UnknownName
from vlm_counting.runs import (
    RUNS,
    _record,
    _with_output,
    check_folder,
    check_parameters,
    declared_parameters,
    run_folder,
)
from vlm_counting.terminal import _named_values, main

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
EVALUATE = str(ROOT / "nbs" / "evaluate.ipynb")
COUNTED = ["predictions.jsonl", "scores.csv", "scores_per_count.csv", "confusion.csv", "wrong_answers.png"]


def call(*words: str, results: Path, **options) -> subprocess.CompletedProcess:
    environment = os.environ | {"VLM_COUNTING_RESULTS": str(results)}
    return subprocess.run([*map(str, words)], env=environment, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    "One run from the console command, shared by the tests that look at it or disturb it."
    results = tmp_path_factory.mktemp("results")
    done = call(BIN / "vlm-counting", "run", "evaluate", "limit=9", "--batch-size", "4", results=results)
    assert done.returncode == 0, done.stderr[-3000:]
    return results, done.stdout


def test_the_command_prints_scores_and_keeps_everything(first_run):
    results, printed = first_run
    folder = results / "evaluate" / "tiny-qwen2-vl" / "balanced"
    for name in [*COUNTED, "run.json", "notebook.ipynb", "report.html", "confusion.svg"]:
        assert (folder / name).stat().st_size > 0, name
    assert "accuracy" in printed and "report.html" in printed
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished" and record["samples"] == 9 and record["parameters"]["limit"] == 9
    assert all(len(record[name]) == 64 for name in ("weights", "processor", "fingerprint"))
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert sorted(row["target"] for row in rows) == list(range(1, 10))
    assert all(len(row["logprobs"]) == 21 and max(row["logprobs"]) <= 0 for row in rows)
    assert "<script src=" not in (folder / "report.html").read_text()  # readable without a network


def papermill_in_a_terminal(results: Path, *words: str) -> str:
    "Run papermill with a terminal as standard input and output; what it printed."
    environment = os.environ | {"VLM_COUNTING_RESULTS": str(results)}
    parent, child = pty.openpty()
    process = subprocess.Popen([BIN / "papermill", *words], stdin=child, stdout=child, stderr=child, env=environment)
    os.close(child)
    printed = b""
    while True:
        try:
            chunk = os.read(parent, 4096)
        except OSError:  # the terminal was closed: papermill has ended
            break
        if not chunk:
            break
        printed += chunk
    process.wait(timeout=60)
    return printed.decode(errors="replace")


def test_other_uses_of_papermill_are_left_alone(tmp_path):
    elsewhere = tmp_path / "evaluate.ipynb"
    elsewhere.write_text(Path(EVALUATE).read_text())
    for words in (
        [EVALUATE, "out.ipynb"],
        [EVALUATE, "-"],
        ["--help-notebook", EVALUATE],
        [EVALUATE, "--prepare-only"],
        [str(elsewhere), "-p", "limit", "9"],
        [str(ROOT / "nbs" / "index.ipynb")],
        ["-"],
        [],
    ):
        assert _with_output(words) == words
    for words in (
        ["-p", "model", EVALUATE, EVALUATE],
        [EVALUATE, "--log-output", "-k", "python3"],
        [EVALUATE, "--cwd=nbs"],
    ):
        assert _with_output(words) == [*words, "vlm-counting://evaluate.ipynb"]
    probe = "import papermill, sys; print(sys.argv[1:])"  # a program that merely imports papermill
    done = subprocess.run([sys.executable, "-c", probe, EVALUATE], capture_output=True, text=True)
    assert done.stdout.strip() == str([EVALUATE])


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["run", "evaluate", "modle=tiny-qwen2-vl"], "Did you mean 'model'?"),
        (["run", "evaluate", "model=tiny-qwen2vl"], "Did you mean 'tiny-qwen2-vl'?"),
        (["run", "evaluate", "dataset=balancd"], "Did you mean 'balanced'?"),
        (["run", "evaluat"], "Did you mean 'evaluate'?"),
        (["run", "evaluate", "limit=0"], "limit is 0, expected a whole number of at least 1"),
        (["run", "evaluate", "--limit", "-3"], "limit is -3"),
        (["run", "evaluate", "limit=many"], "limit is 'many'"),
        (["run", "evaluate", "batch_size=2.5"], "batch_size is 2.5"),
        (["run", "evaluate", "dtype=float8"], "Did you mean 'float"),
        (["run", "evaluate", "device=gpu"], "No device named 'gpu'"),
        (["run", "evaluate", "seed"], "'seed' has no value"),
        (["run", "evaluate", "overwrite=yes"], "overwrite is 'yes', expected True or False"),
        (["run", "evaluate", "seed=-1"], "seed is -1, expected a whole number of at least 0"),
        (["run", "evaluate", "seed=None"], "seed is None"),
        (["run", "probe", "probes=svmm"], "Did you mean 'svm'?"),
        (["run", "probe", "rules=paper, layuot"], "Did you mean 'layout'?"),
        (["run", "probe", "jobs=-1"], "jobs is -1"),
        (["run", "train", "part=count"], "Did you mean 'counts'?"),
        (["run", "train", "stop=five"], "stop is 'five'"),
        (["run", "train", "epochs=0"], "epochs is 0"),
        (["run", "train", "learning_rate=-1"], "learning_rate is -1, expected a number of more than 0"),
        (["run", "train", "teacher=much"], "teacher is 'much', expected a number of at least 0"),
        (["run", "train", "training=unseen"], "unseen_combinations"),
        (["run", "train", "training_limit=0"], "training_limit is 0"),
        (["run", "extract", "layers=last"], "expected 'all' or numbers"),
        (["run", "extract", "poolings=means"], "Did you mean 'mean'?"),
        (["doctor", "tiny-qwen"], "Did you mean 'tiny-qwen2-vl'?"),
    ],
)
def test_wrong_words_are_refused_with_the_nearest_right_one(words, complaint, capsys):
    assert main(words) == 2
    assert complaint in capsys.readouterr().err


def child_seconds() -> float:
    "CPU seconds of all finished child processes: the clock on the wall would also count other tests."
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_refusal_comes_within_a_second():
    command, fastest = [BIN / "vlm-counting", "run", "evaluate", "modle=x"], 9.0
    for _ in range(3):
        clock = child_seconds()
        done = subprocess.run(command, capture_output=True, text=True)
        fastest = min(fastest, child_seconds() - clock)
        assert done.returncode == 2 and "Traceback" not in done.stderr
    assert fastest < 1


def test_the_notebook_itself_refuses_an_unknown_parameter(tmp_path):
    done = call(BIN / "papermill", EVALUATE, tmp_path / "out.ipynb", "-p", "modle", "x", results=tmp_path / "results")
    assert done.returncode != 0 and "Did you mean 'model'?" in done.stderr
    assert not (tmp_path / "results").exists()


def test_a_folder_of_other_parameters_is_refused_and_kept(first_run):
    results, _ = first_run
    folder = results / "evaluate" / "tiny-qwen2-vl" / "balanced"
    before = {name: (folder / name).read_bytes() for name in [*COUNTED, "notebook.ipynb"]}
    done = call(BIN / "vlm-counting", "run", "evaluate", "limit=18", "batch_size=4", results=results)
    assert done.returncode == 2 and "parameter 'limit' is 18 now and was 9" in done.stderr
    assert "Traceback" not in done.stderr
    assert before == {name: (folder / name).read_bytes() for name in before}
    assert not list(folder.glob(".notebook.*"))


@pytest.mark.slow
def test_weights_that_cannot_be_had_name_the_two_ways_out(tmp_path):
    done = call(BIN / "vlm-counting", "run", "evaluate", "model=qwen2-vl-7b", "limit=9", results=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    line = next(line for line in done.stderr.splitlines() if "cannot be had" in line)
    assert "checkpoint=" in line and "model=tiny-qwen2-vl" in line


def test_an_unwritable_results_folder_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    done = call(BIN / "vlm-counting", "run", "evaluate", "limit=9", results=tmp_path / "file" / "results")
    assert done.returncode == 1 and "VLM_COUNTING_RESULTS" in done.stderr and "Traceback" not in done.stderr


def test_a_command_starts_without_the_grammars_of_jsonschema():
    script = "import sys; from vlm_counting.runs import _import_papermill\n_import_papermill()\n"
    script += "print('jsonschema' in sys.modules, 'lark' in sys.modules, 'rfc3987_syntax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "False"]


def test_every_parameter_of_every_verb_is_explained():
    for verb in RUNS:
        for name, (_, meaning) in declared_parameters(verb).items():
            assert len(meaning) > 8, f"{verb}: {name}"


def test_folders_of_paths_and_hub_names_are_safe(monkeypatch, tmp_path):
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path))
    (tmp_path / "my set.tar.gz").write_text("")
    parameters = {"run": "a/../b", "model": "hf:org/name", "dataset": str(tmp_path / "my set.tar.gz")}
    assert run_folder(parameters) == tmp_path / "a--..--b" / "org--name" / "my_set"
    assert run_folder(parameters | {"run": ".."}) == tmp_path / "_" / "org--name" / "my_set"
    with pytest.raises(UnknownName):
        check_parameters("evaluate", {"model": "/no/such/folder"})


def test_python_values_of_every_kind_arrive_or_are_refused(tmp_path):
    import numpy as np

    (tmp_path / "manifest.jsonl").write_text("")
    given = {"dataset": tmp_path, "checkpoint": tmp_path, "limit": np.int64(4)}
    found = check_parameters("evaluate", given)
    assert (found["dataset"], found["checkpoint"], found["limit"]) == (str(tmp_path), str(tmp_path), 4)
    with pytest.raises(UnknownName, match="Did you mean 'dataset'"):
        check_parameters("evaluate", {"datast": tmp_path})
    with pytest.raises(ValueError, match="limit is a object"):
        check_parameters("evaluate", {"limit": object()})


def test_help_names_every_parameter(capsys):
    assert main(["run", "evaluate", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}=" in printed for name in declared_parameters("evaluate"))


@pytest.mark.slow
def test_own_data_without_colours_and_shapes_is_scored(tmp_path):
    "A folder in the released layout about things that are no stimuli of ours."
    from PIL import Image

    folder = tmp_path / "pets"
    (folder / "images").mkdir(parents=True)
    asked = {str(i): {"dogs": {"count": "How many dogs are there?"}} for i in range(4)}
    (folder / "questions.json").write_text(json.dumps(asked))
    (folder / "answers.json").write_text(json.dumps({i: {"dogs": {"count": int(i) + 1}} for i in asked}))
    for i in asked:
        Image.new("RGB", (90 + int(i), 60), "white").save(folder / "images" / f"{i}.png")
    done = call(
        BIN / "vlm-counting",
        "run",
        "evaluate",
        f"dataset={folder}",
        "limit=None",
        results=tmp_path / "results",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    place = tmp_path / "results" / "evaluate" / "tiny-qwen2-vl" / "pets"
    assert (place / "scores_per_entity.csv").exists() and not (place / "accuracy_per_entity.png").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "pets",
        "results",
    ]  # nothing else is left where it was started


@pytest.mark.slow
def test_parts_of_a_run_are_joined_by_the_same_command_without_shard(first_run, tmp_path):
    "Parts are asked by papermill without an output path, in a terminal and with a pipe, and joined by the command."
    given = [EVALUATE, "-p", "limit", "9", "-p", "batch_size", "4", "-p", "shard"]
    before, pipes = Path(EVALUATE).read_bytes(), {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    environment = os.environ | {"VLM_COUNTING_RESULTS": str(tmp_path)}
    piped = subprocess.Popen([BIN / "papermill", *given, "2/2"], env=environment, stderr=subprocess.PIPE, **pipes)
    printed = papermill_in_a_terminal(tmp_path, *given, "1/2")
    out, err = piped.communicate(timeout=300)
    assert (out, piped.returncode) == (b"", 0), err.decode()[-3000:]
    assert Path(EVALUATE).read_bytes() == before
    whole, folder = (results / "evaluate" / "tiny-qwen2-vl" / "balanced" for results in (first_run[0], tmp_path))
    for part, count in ((1, 5), (2, 4)):
        place = folder / f"part-{part}-of-2"
        for name in [*COUNTED[1:], "notebook.ipynb", "report.html"]:
            assert (place / name).exists() and (place / name).stat().st_size, printed[-3000:]
        record = json.loads((place / "run.json").read_text())
        assert record["samples"] == count and record["parameters"].keys().isdisjoint({"shard", "run"})
    done = call(BIN / "vlm-counting", "run", "evaluate", "limit=9", "--batch-size", "4", results=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in COUNTED[1:]:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    asked, same = (map(json.loads, (place / "predictions.jsonl").read_text().splitlines()) for place in (folder, whole))
    assert {row["uid"]: row["text"] for row in asked} == {row["uid"]: row["text"] for row in same}


@pytest.mark.parametrize("verb", RUNS)
def test_every_default_may_be_typed(verb):
    "Whoever types what the notebook says anyway gets the same run."
    for name, (default, _) in declared_parameters(verb).items():
        if default != "":
            assert check_parameters(verb, _named_values(verb, [f"{name}={default}"]))[name] == default, name


def test_numbers_without_a_point_are_numbers_too():
    assert check_parameters("train", {"teacher": 0, "learning_rate": 1})["learning_rate"] == 1.0


def test_another_device_is_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path))
    given = check_parameters("evaluate", {"device": "cuda:1", "shard": "2/2"})
    folder = run_folder(given)
    folder.mkdir(parents=True)
    _record("evaluate", given).save(folder)
    assert RunRecord.load(folder).parameters.keys().isdisjoint({"run", "shard", "overwrite", "device", "seed"})
    check_folder("evaluate", check_parameters("evaluate", {"device": "cuda:0"}))
    with pytest.raises(FileExistsError, match="part-2-of-2 belongs to another run: parameter 'limit' is 9 now"):
        check_folder("evaluate", check_parameters("evaluate", {"limit": 9}))


HOSTILE = "".join(
    f"{start}document.documentElement.setAttribute('data-pwned', '1'){end}"
    for start, end in (
        ("<script>", "</script>"),
        ('<img src="x" onerror="', '">'),
        ('<svg onload="', '"></svg>'),
        ('<iframe srcdoc="<script>parent.', '</script>"></iframe>'),
    )
)


def test_nothing_that_an_output_brings_along_runs_in_a_report(tmp_path):
    "Tables escape names; should one forget to, the page's policy is there."
    shown = nbformat.v4.new_output("display_data", data={"text/html": HOSTILE + "<b id=there>here</b>"})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=[shown])])
    page = runs._html(nbformat.writes(notebook))
    assert page.index("Content-Security-Policy") < page.index("<style") and "data-pwned" in page
    (tmp_path / "report.html").write_text(page)
    with open_chromium("a report with scripts in it") as driver:
        driver.get((tmp_path / "report.html").as_uri())
        driver.implicitly_wait(1)
        assert driver.find_element("id", "there").text == "here"
        assert driver.execute_script("return document.documentElement.getAttribute('data-pwned')") is None


# --- sets of one's own


@pytest.mark.parametrize("path, name", [
    ("apples/manifest.jsonl", "apples"), ("apples", "apples"), ("apples/may.csv", "may"), ("apples/may.tar.gz", "may"),
    ("apples/data.csv", "apples-data"), ("apples@test", "apples-test"), (".hidden.csv", "_hidden"),
    ("x.v2/a b.tsv", "a_b"),
])  # fmt: skip
def test_a_run_is_called_after_its_set(tmp_path, monkeypatch, path, name):
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path / "results"))
    for one in (tmp_path / "one" / path, tmp_path / "two" / path):
        plain = one.with_name(one.name.partition("@")[0])
        plain.parent.mkdir(parents=True, exist_ok=True)
        plain.touch() if plain.suffix else plain.mkdir(exist_ok=True)
    asked = [{"model": "tiny-clip", "dataset": str(tmp_path / each / path)} for each in ("one", "two")]
    assert [runs.run_folder(each, "evaluate").name for each in asked] == [name, name]
    first = runs.run_folder(asked[0], "evaluate")
    first.mkdir(parents=True)
    (first / "run.json").write_text(json.dumps({"parameters": asked[0]}))
    second = runs.run_folder(asked[1], "evaluate")
    assert runs.run_folder(asked[0], "evaluate") == first and second != first and second.name.startswith(f"{name}-")
    (second / "part-1-of-2").mkdir(parents=True)
    (second / "part-1-of-2" / "run.json").write_text(json.dumps({"parameters": asked[1]}))
    assert runs.run_folder(asked[1], "evaluate") == second
    (first / "run.json").unlink()
    assert runs.run_folder(asked[1], "evaluate") == second  # still its own


def test_a_run_of_before_is_found_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path / "results"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "manifest.jsonl").touch()
    old = tmp_path / "results/evaluate/tiny-clip/manifest.jsonl"
    old.mkdir(parents=True)
    asked = {"model": "tiny-clip", "dataset": str(tmp_path / "set" / "manifest.jsonl")}
    (old / "run.json").write_text(json.dumps({"parameters": asked}))
    assert runs.run_folder(asked, "evaluate") == old


def test_a_set_called_as_one_of_ours_keeps_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path / "results"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "balanced").mkdir()
    own = runs.run_folder({"model": "tiny-clip", "dataset": "./balanced"}, "evaluate")
    assert own.name.startswith("balanced-") and own != runs.run_folder({"model": "tiny-clip", "dataset": "balanced"})


def test_columns_and_questions_are_parameters():
    asked = runs.check_parameters("evaluate", {"columns": {"target": "answer"}, "question": ["How many?", "Count."]})
    assert asked["columns"] == {"target": "answer"} and runs.check_parameters("extract", {})["question"] is None
    for wrong in ({"columns": "answer"}, {"question": " "}, {"question": "a|a"}, {"columns": "tagret:a"}):
        with pytest.raises((ValueError, KeyError), match=next(iter(wrong))):
            runs.check_parameters("evaluate", wrong)
