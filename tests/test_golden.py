"""What commands leave behind is what they left before: run.json, answers, tables, states, probes, verdicts.

After a change that was meant: `python tests/golden_files.py --write`, and look at what git shows.
"""

import json
import warnings

import numpy as np
import pytest
from golden_files import GOLDEN, STEPS, compare, make, other_bytes, pretty, read_golden, summarise
from safetensors.numpy import save_file

FAST = ("evaluate-tiny-qwen2-vl-balanced", "extract-tiny-clip-balanced")  # the others take long


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "Summaries of the steps that were made already, in one results folder."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_COUNTING_RESULTS", str(tmp_path_factory.mktemp("golden")))
        yield {}


@pytest.mark.parametrize(
    "step", [pytest.param(step, id=step.name, marks=[pytest.mark.slow] * (step.name not in FAST)) for step in STEPS]
)
def test_a_command_leaves_what_it_left_before(step, done):
    expected, found = read_golden(step), make(step, done)
    if others := other_bytes(expected, found):
        warnings.warn(f"{step.name}: {len(others)} arrays have other bytes, within the tolerance", stacklevel=1)
    differences = compare(expected, found)
    assert not differences, "\n".join([f"{step.name}: {len(differences)} differences", *differences])


def test_each_step_has_its_file_and_no_file_is_left_over():
    assert sorted(path.stem for path in GOLDEN.iterdir()) == sorted(step.name for step in STEPS)
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) < 250_000


# --- the comparison itself --------------------------------------------------------------------------------------------

RECORD = {
    "verb": "evaluate", "parameters": {"limit": 3, "rate": 0.1}, "weights": "ab" * 32, "device": "cpu", "samples": 3,
    "sessions": [{"started": "now", "versions": {"torch": "2"}, "seconds": 1.5, "peak_memory": {"process": 9}}],
}  # fmt: skip
ANSWERS = [
    {"uid": f"set/{place}", "text": text, "count": count, "logprobs": [-0.1, -2.5], "factors": {"colour": "red" * 40}}
    for place, (text, count) in enumerate([("3", 3), ("four", 4), ("a lot", None)])
]
LAYER = "states/layer_00.mean.npy"


@pytest.fixture
def folder(tmp_path):
    "A run's folder with one file of each kind."
    (tmp_path / "states").mkdir()
    np.save(tmp_path / LAYER, np.arange(12, dtype=np.float32).reshape(3, 4))
    save_file({"weight": np.ones((2, 2), np.float32)}, tmp_path / "own.safetensors", {"record": '{"bias": false}'})
    (tmp_path / "run.json").write_text(json.dumps(RECORD))
    (tmp_path / "scores.csv").write_text("set,n,accuracy\n" + "".join(f"{name},3,{1 / 3}\n" for name in "abcd"))
    (tmp_path / "long.csv").write_text("set,score\n" + "".join(f"x,{number}.5\n" for number in range(15)))
    (tmp_path / "empty.csv").write_text("set,n\n")
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ANSWERS))
    (tmp_path / "states.json").write_text(json.dumps({"layers": [0], "sha256": {"layer_00.mean.npy": "cd"}}))
    for name in ("page.html", ".lock"):
        (tmp_path / name).write_text("anything")
    return tmp_path


def rewrite(folder, name, old, new):
    "Exchange a piece of text in a file, once."
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))


def test_a_summary_survives_the_file_and_the_clock(folder):
    before = json.loads(pretty(summarise(folder), 2))
    assert before == summarise(folder) and before["others"] == ["page.html"]
    for name, old, new in (
        ("run.json", '"now"', '"later"'),
        ("run.json", '"cpu"', '"cuda:0"'),
        ("run.json", '"torch": "2"', '"torch": "3"'),
        ("states.json", '"cd"', '"ef"'),
        ("page.html", "anything", "something else"),
        ("scores.csv", "0.3333333333333333", "0.3333333"),
        ("predictions.jsonl", "-2.5", "-2.5004"),
    ):
        rewrite(folder, name, old, new)
    np.save(folder / LAYER, np.load(folder / LAYER) * np.float32(1 + 1e-6))
    (folder / "own.safetensors").touch()
    assert compare(before, summarise(folder)) == [] and other_bytes(before, summarise(folder)) == [LAYER]


@pytest.mark.parametrize(
    "name, old, new, told",
    [
        ("run.json", '"limit": 3, ', "", "run.json: parameters.limit: expected 3, and not there"),
        ("run.json", '"limit"', '"mode": 1, "limit"', "run.json: parameters.mode: there with 1, and not expected"),
        ("run.json", '"limit": 3', '"limit": 4', "run.json: parameters.limit: expected 3, found 4"),
        ("run.json", '"rate": 0.1', '"rate": 0.1001', "run.json: parameters.rate: expected 0.1, found 0.1001"),
        ("run.json", '"weights": "ab', '"weights": "ba', 'run.json: weights: expected "abab'),
        ("run.json", '"seconds"', '"minutes"', 'run.json: sessions.seconds: expected "*", and not there'),
        ("scores.csv", "0.3333333333333333", "0.334", "scores.csv: column 'accuracy', number [0]: expected 0.3333333"),
        ("scores.csv", "0.3333333333333333", "", "column 'accuracy', number [0]: expected 0.3333333, found null"),
        ("long.csv", ",5.5", ",6.5", "long.csv: column 'score', sum: expected 112.5, found 113.5"),
        ("long.csv", "0.5\nx,1.5", "1.5\nx,0.5", "long.csv: row 0, column score: expected 0.5, found 1.5"),
        ("long.csv", "3.5\nx,4.5", "4.5\nx,3.5", "long.csv: column 'score', woven sum: expected"),
        ("long.csv", ",5.5", ",", "numbers and blanks: expected [15, 0], found [15, 1]"),
        ("scores.csv", "c,3", "e,3", 'scores.csv: column \'set\', row 2: expected "c", found "e"'),
        ("scores.csv", "set,n", "n,set", 'scores.csv: columns: expected ["set", "n", "accuracy"], found ["n", "set"'),
        ("scores.csv", "d,3,0.3333333333333333\n", "", "scores.csv: rows: expected 4, found 3"),
        ("empty.csv", "set,n\n", "set\n", 'empty.csv: columns: expected ["set", "n"], found ["set"]'),
        ("predictions.jsonl", '"a lot"', '"7"', 'column \'text\', row 2: expected "a lot", found "7"'),
        ("predictions.jsonl", "null", "5", "column 'count', number [2]: expected null, found 5"),
        ("predictions.jsonl", "-2.5", "-2.6", "predictions.jsonl: column 'logprobs', number [1]: expected -2.5"),
        ("predictions.jsonl", "redred", "redder", "predictions.jsonl: column 'factors', text: expected"),
        ("states.json", "[0]", "[0, 1]", "states.json: layers: expected [0], found [0, 1]"),
        ("states.json", '"sha256"', '"sha512"', 'states.json: sha256: expected "*", and not there'),
    ],
)
def test_every_change_is_told_with_its_place(folder, name, old, new, told):
    before = summarise(folder)
    rewrite(folder, name, old, new)
    lines = compare(before, summarise(folder))
    assert any(told in line for line in lines), lines
    assert all(line.startswith(f"{name}: ") for line in lines)


def test_changed_files_and_arrays_are_told(folder):
    before, rows = summarise(folder), np.load(folder / LAYER)
    (folder / "page.html").rename(folder / "other.html")
    np.save(folder / LAYER, rows[::-1])  # the same mean and spread
    save_file({"weight": np.ones((2, 2), np.float32) * 1.01}, folder / "own.safetensors", {"record": '{"bias": true}'})
    lines = compare(before, summarise(folder))
    assert lines[:2] == ["page.html: expected, and not there", "other.html: there, and not expected"]
    assert "own.safetensors: record.bias: expected false, found true" in lines
    assert any(line.startswith("own.safetensors: weight: mean: expected 1.0, found 1.01") for line in lines)
    assert any(line.startswith(f"{LAYER}: woven: expected") for line in lines) and len(lines) == 6, lines
    np.save(folder / LAYER, rows[:2])
    assert f"{LAYER}: shape: expected [3, 4], found [2, 4]" in compare(before, summarise(folder))
