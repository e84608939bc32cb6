"Guards for the room `evaluation`: both parsers on every quirk we know, and runs that are killed again and again."

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import answers
import numpy as np
import pytest
from forking import FORK_EACH_LINE
from PIL import Image

from vlm_counting.core import Answer, Sample
from vlm_counting.evaluation import PARSERS, evaluate, load_predictions, parse_count, predict

PAPER = {  # spec of the released system, section 3
    **dict.fromkeys(["someone", "phone", "stone", "money", "alone", "another one"], 1),
    **dict.fromkeys(["height", "weight", "freight", "eighteen"], 8),
    **dict.fromkeys(["None", "There are none", "nones"], 0),
    **dict.fromkeys(["no", "a", "a few", "dozen", "", "eleven", "twelve", "thirteen", "fifteen", "twenty"], None),
    **dict.fromkeys(["often", "attention", "tension", "tenth"], 10),
    **{"fourteen": 4, "sixteen": 6, "fivesix": 5, "seventeen": 7, "nineteen": 9, "canine": 9, "network": 2, "twone": 2},
    **{"three 4": 4, "Two or 3": 3, "-3": 3, "3.5": 3, "1,000": 1, "007": 7, "x12y": 12, "1st": 1, "one hundred": 1},
    **{"2 or 3": 2, "\u0663": 3, "\uff15": 5, "\u00b2": None, "\u00bd": None, "\u2460": None, "6, 4": 6},
    **{"There are 6 blue": 6, "zero": 0, "TEN": 10, "30": 30},
}
STRICT = {
    **dict.fromkeys(
        ["someone", "phone", "stones", "another one", "the one", "often", "tenth", "canine", "network"], None
    ),
    **dict.fromkeys(
        ["a", "a few", "many", "", "several", "I see stars", "1st", "2nd", "x12y", "\u00b2", "\u00bd"], None
    ),
    **dict.fromkeys(
        ["-3", "3.5", "3,5", "1/2", "30%", "30 %", "5+", "at least 3", "more than five", "2 or more"], None
    ),
    **dict.fromkeys(
        ["2-3", "2 \u2013 3", "2 or 3", "two or three", "2 to 3", "6, 4", "1,2,3", "five six", "over 10"], None
    ),
    **dict.fromkeys(
        ["0", "zero", "none", "None.", "no stars", "There are no red stars.", "No.", "no one", "nobody"], 0
    ),
    **{"3": 3, " 3.": 3, "3 stars": 3, "(3)": 3, "**3**": 3, "three (3)": 3, "3. There are 3 stars": 3, "about 3": 3},
    **{"One": 1, "only one": 1, "there is one star": 1},
    **{
        "fourteen": 14,
        "eighteen": 18,
        "twelve": 12,
        "twenty": 20,
        "twenty-one": 21,
        "Twenty one.": 21,
        "forty two": 42,
    },
    **{"1,000": 1000, "12,345,678": 12345678, "one hundred": 100, "one hundred and five": 105, "007": 7, "\uff15": 5},
    **{"There are 6 blue": 6, "No, there are 3 stars": 3, "- 3 stars": 3, "the one red star": 1, "Count: 7": 7},
}


@pytest.mark.parametrize("text, count", PAPER.items())
def test_paper_rule_keeps_every_quirk(text, count):
    assert parse_count(text, "paper") == count


@pytest.mark.parametrize("text, count", STRICT.items())
def test_strict_rule_reads_like_a_careful_person(text, count):
    assert parse_count(text) == count


def wrong_counts(table: dict, parser: str) -> list:
    return [
        (text, parse_count(text, parser), count)
        for count, texts in table.items()
        for text in texts
        if parse_count(text, parser) != count
    ]


def test_hundreds_of_answers_by_kind():
    "Refusals, multiples, parts, signs, bounds, negations, scripts, cut answers; and what is a plain count."
    assert sum(map(len, answers.STRICT.values())) > 400
    assert wrong_counts(answers.STRICT, "strict") == []


def test_the_conclusion_of_a_reasoner():
    assert wrong_counts(answers.LAST, "last") == []


@pytest.mark.parametrize("parser", ["strict", "paper", "last"])
@pytest.mark.parametrize("digits", ["9" * 4301, "1" * 10_000 + " stars", "\u0663" * 5000, "Answer: " + "7" * 4400])
def test_a_number_of_thousands_of_digits_is_no_count(digits, parser):
    assert parse_count(digits, parser) is None


@pytest.mark.parametrize("dash", "-\u2010\u2011\u2012\u2013\u2014\u2212\ufe58\ufe63\uff0d\u207b\u2796\u00ad\u2043")
def test_every_dash_is_a_sign(dash):
    for text in (f"{dash}3", f"{dash}three", f"There are {dash}3 stars", f"\u7b54\u6848: {dash}3"):
        assert parse_count(text) is None
    assert parse_count(f"twenty{dash}one") == 21


# of Chinese, Japanese, Korean, Thai, Khmer, Lao, Burmese
COUNTERS = (
    "\u4e2a \u500b \u53ea \u3064 \u679a \u30b3 \uac1c "
    "\u0e14\u0e27\u0e07 \u179a\u17bc\u1794 \u0ead\u0eb1\u0e99 \u1001\u102f"
)


@pytest.mark.parametrize("counter", COUNTERS.split())
@pytest.mark.parametrize("digit", "4\uff14\u0e54\u0664")
def test_digits_beside_letters_of_scripts_without_spaces(digit, counter):
    assert [parse_count(f"{digit}{counter}"), parse_count(f"{counter}{digit}{counter}")] == [4, 4]
    assert parse_count(f"{digit}{counter}{digit}5{counter}") is None


@pytest.mark.parametrize(
    "piece", [" ", "9", "3 ", "no ", "not a ", "<a", "{", "\\boxed{", "answer: ", "1,000", "\n", "a. "]
)
@pytest.mark.parametrize("parser", ["strict", "last"])
def test_a_long_answer_is_read_in_no_time(piece, parser):
    "Twice the text may take twice as long, not four times: 100,000 characters in seconds."
    begun = time.process_time()
    parse_count("3" + piece * (20_000 // len(piece)), parser)
    assert time.process_time() - begun < 2


def test_last_is_kept_beside_the_two_and_old_files_stay_readable(tmp_path):
    done = evaluate(Echo(), few(), tmp_path, parser="last", progress=False)
    assert [row.counts for row in done.predictions] == [{"last": row.count} for row in done.predictions]
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    before = [{name: value for name, value in json.loads(line).items() if name != "counts"} for line in lines]
    (tmp_path / "old.jsonl").write_text("".join(json.dumps(line) + "\n" for line in before))
    assert [row.count for row in load_predictions(tmp_path / "old.jsonl")] == [row.count for row in done.predictions]


class Counter:
    "A model that needs no weights: slow enough to be killed between, before and inside batches."

    name = "counter"

    def __init__(self, pause: float = 0.0):
        self.pause, self.asked = pause, 0

    def answer(self, samples, max_new_tokens=5):
        time.sleep(self.pause)
        self.asked += len(samples)
        return [
            Answer(f"There are {sample.target}", [-0.5 * abs(n - sample.target) for n in range(21)])
            for sample in samples
        ]


def questions(count: int) -> list[Sample]:
    return [
        Sample(f"demo/{i}", "none.png", "How many?", i % 10, {"entity": f"kind {i % 3}", "layout": i})
        for i in range(count)
    ]


CHILD = """
# Loads what it needs once, then forks: each line of standard input is a folder, and starts one run of 240 questions.
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import pandas
from test_evaluation import Counter, questions
from vlm_counting.core import RunRecord, claim_folder, write_atomic
from vlm_counting.evaluation import predict
from vlm_counting.statistics import score

def work(folder):
    folder = Path(folder)
    with claim_folder(RunRecord("evaluate", {"limit": 240}), folder):
        path, rows = folder / "predictions.jsonl", questions(240)
        predictions = predict(Counter(pause=0.02), rows, path, batch_size=3, progress=False)
        write_atomic(folder / "scores.csv", score(predictions, by="target").to_csv(index=False))
"""


@pytest.fixture
def forker():
    command = [sys.executable, "-W", "ignore", "-c", CHILD + FORK_EACH_LINE, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        yield process
        process.stdin.close()


def start(forker: subprocess.Popen, folder: Path) -> int:
    "A run that has just begun: the number of its process."
    forker.stdin.write(f"{folder}\n".encode())
    return int(forker.stdout.readline())


def runs(forker: subprocess.Popen) -> bool:
    return not select.select([forker.stdout], [], [], 0)[0]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_run_killed_thirty_times_ends_with_the_same_bytes(forker, tmp_path):
    start(forker, tmp_path / "calm")
    assert int(forker.stdout.readline()) == 0
    rng, killed, at_kill = random.Random(0), 0, []
    while True:
        path = tmp_path / "killed" / "predictions.jsonl"
        before = path.stat().st_size if path.exists() else 0
        child = start(forker, tmp_path / "killed")
        while runs(forker) and (not path.exists() or path.stat().st_size == before) and killed % 3:
            time.sleep(0.002)  # two times in three: wait until the first new batch is being written
        time.sleep(rng.uniform(0, 0.03 if killed % 3 else 0.1))
        if killed < 30 and runs(forker):
            os.kill(child, signal.SIGKILL)
        status = int(forker.stdout.readline())
        if status == 0:
            break
        assert killed < 30 and status == -signal.SIGKILL
        killed += 1
        at_kill.append(path.stat().st_size if path.exists() else 0)
    assert killed == 30 and len(set(at_kill)) > 10  # it was really killed at different places
    for name in ("predictions.jsonl", "scores.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()


# --- what one brings along: models, parsers, samples


class Echo:
    "Answers as it was told to; without, the truth."

    name = "echo"

    def __init__(self, say=lambda samples: [Answer(str(sample.target)) for sample in samples]):
        self.say, self.asked = say, 0

    def answer(self, samples, max_new_tokens=5):
        self.asked += 1
        return self.say(samples)


def few(**more):
    return [Sample(f"few/{place}", Image.new("RGB", (8, 8)), "?", 1 + place % 3, **more) for place in range(4)]


@pytest.mark.parametrize(
    "vlm, samples, more, message",
    [
        ("tiny-clip", few(), {}, r'expected a model. Load it: load_model\("tiny-clip"\)'),
        (Echo, few(), {}, "Found the class Echo for a model"),
        (few(), Echo(), {}, "Found a list for a model"),
        (Echo(), "balanced", {}, r'Load them: load_dataset\("balanced"\)'),
        (Echo(), [], {}, "no samples to ask"),
        (Echo(), few()[0], {}, r"Put it into one: \[sample\]"),
        (Echo(), [*few(), 3], {}, "Found a int for a sample"),
        (Echo(), few() * 2, {}, "Two samples have the uid"),
        (Echo(), few(factors={"where": {1}}), {}, r"factor 'where' is \{1\}, which cannot be written as JSON"),
        (Echo(), few(factors={"area": float("nan")}), {}, "factor 'area' is nan"),
        (Echo(), few(), {"parser": "strikt"}, "Did you mean 'strict'"),
        (Echo(), few(), {"parser": parse_count}, r'PARSERS.add\("parse_count", ...\), and say parser="parse_count"'),
        (Echo(), few(), {"shard": "third"}, "shard is 'third'"),
        *[(Echo(), few(), {"batch_size": size}, "batch_size is .*'auto' or a whole") for size in (0, -1, 1.5, "big")],
        *[(Echo(), few(), {"max_new_tokens": size}, "max_new_tokens is .*a whole") for size in (0, True, 2.5)],
    ],
)
def test_what_cannot_be_asked_is_refused_before_a_folder_is_made(vlm, samples, more, message, tmp_path):
    with pytest.raises((TypeError, ValueError, KeyError), match=message):
        evaluate(vlm, samples, tmp_path / "run", progress=False, **more)
    assert not (tmp_path / "run").exists()


def test_whole_numbers_of_numpy_are_whole_numbers(tmp_path):
    given = {"batch_size": np.int64(2), "max_new_tokens": np.int32(3)}
    evaluate(Echo(), few(), tmp_path, progress=False, **given)
    kept = json.loads((tmp_path / "run.json").read_text())["parameters"]
    assert kept == {"parser": "strict", "batch_size": 2, "max_new_tokens": 3}


def test_in_memory_too_nothing_is_asked_that_cannot_be_described():
    lost = [Sample("few/0", "lost.png", "?", 1)]
    with pytest.raises(FileNotFoundError):
        evaluate(vlm := Echo(), lost, progress=False)
    assert vlm.asked == 0


@pytest.mark.parametrize(
    "say, message",
    [
        (lambda samples: {"1": 1}, "'echo' answered with a dict, expected a list of 4 Answer"),
        (lambda samples: None, "'echo' answered with a NoneType"),
        (lambda samples: "3", "'echo' answered with a str"),
        (lambda samples: ["3"], "'echo' gave 1 answers to 4 samples"),
        (lambda samples: [3] * 4, "'echo' gave 3 for an answer"),
        (lambda samples: [Answer(None)] * 4, r"'echo' gave Answer\(text=None"),
    ],
)
def test_a_model_that_does_not_answer_is_named_and_leaves_nothing_behind(say, message, tmp_path):
    with pytest.raises((TypeError, ValueError), match=f"Samples 'few/0' to 'few/3': {message}"):
        evaluate(Echo(say), few(), tmp_path, progress=False)
    assert len(evaluate(Echo(), few(), tmp_path, batch_size=2, progress=False)) == 4


@pytest.fixture
def parsers(monkeypatch):
    monkeypatch.setattr(PARSERS, "_items", dict(PARSERS._items))
    return PARSERS


@pytest.mark.parametrize(
    "parse, message",
    [
        *[(lambda text, gives=gives: gives, "gave") for gives in ({}, 2.0, True, -1, "2", np.True_, np.ones(2))],
        (lambda text: {}[text], "failed"),
    ],
)
def test_a_parser_that_fails_is_named_with_sample_and_text(parse, message, parsers):
    parsers.add("mine", parse)
    with pytest.raises((TypeError, ValueError), match=f"Sample 'few/0': The parser 'mine' {message}.* for '1'"):
        evaluate(Echo(), few(), parser="mine", progress=False)


def test_another_function_of_the_same_name_is_another_run(parsers, tmp_path):
    parsers.add("mine", lambda text: np.int64(text))
    assert evaluate(Echo(), few(), tmp_path, parser="mine", progress=False).predictions[1].counts == {"mine": 2}
    evaluate(Echo(), few(), tmp_path, parser="mine", progress=False)
    parsers._items["mine"] = lambda text: 1 + np.int64(text)
    with pytest.raises(FileExistsError, match="parameter 'parser_code' is '[0-9a-f]{12}' now and was"):
        evaluate(Echo(), few(), tmp_path, parser="mine", progress=False)


@pytest.mark.long
def test_saving_leaves_the_evaluation_as_it_is(tmp_path):
    done = evaluate(Echo(), few(), progress=False)
    done.save(tmp_path)
    assert done.record.sessions == [] and done.record.status == "new"
    assert len(json.loads((tmp_path / "run.json").read_text())["sessions"]) == 1


def test_a_parser_that_counts_what_it_reads_goes_on_in_its_folder(tmp_path, monkeypatch):
    "Its state makes it no other parser."
    monkeypatch.setattr(PARSERS, "_items", dict(PARSERS._items))

    class Mine:
        seen = 0

        def __call__(self, text):
            self.seen += 1
            return 3

    PARSERS.add("counting", mine := Mine())
    done = [evaluate(Echo(), few(), tmp_path, parser="counting", progress=False) for _ in range(2)]
    assert mine.seen and done[0].predictions == done[1].predictions


def shades(count: int, **more: object) -> list[Sample]:
    "Questions about images of different shades."
    made = [Image.new("RGB", (8, 8), (7 * number, 0, 0)) for number in range(count)]
    return [Sample(f"s/{number}", image, "How many?", number, **more) for number, image in enumerate(made)]


class Shade:
    "Says the number of the shade that it sees; counts what it is asked."

    name = "shade"

    def __init__(self):
        self.asked = 0

    def answer(self, samples: list[Sample], max_new_tokens: int = 5) -> list[Answer]:
        self.asked += len(samples)
        return [Answer(str(sample.image.getpixel((0, 0))[0] // 7), [-0.5] * 21) for sample in samples]


EDITS = {
    "count": {"count": 7}, "other count": {"count_paper": 7}, "counts": {"count": 0, "count_paper": 0},
    "text": {"text": "9"}, "half": {"count": 3.5}, "truth": {"count": True}, "text for a count": {"count": "3"},
    "number for a text": {"text": 5}, "no text": {"text": None}, "target": {"target": 9},
    "half target": {"target": 1.5}, "text for a target": {"target": "1"}, "no target": {"target": None},
    "factors": {"factors": {"entity": "dogs"}}, "no factors": {"factors": None},
    "nan": {"logprobs": [float("nan")] * 21}, "infinite": {"logprobs": [float("-inf")] * 21},
    "positive": {"logprobs": [1.0] * 21}, "words": {"logprobs": ["-1"] * 21}, "truths": {"logprobs": [False] * 21},
    "few": {"logprobs": [-1.0]}, "no list": {"logprobs": 3}, "asked": {"asked": "0123456789abcdef"},
    "other parsers": {"counts": {"mine": "3"}}, "no dict": {"counts": [3]}, "model": {"model": "another"},
    "uid": {"uid": "s/99"}, "no uid": {"uid": 5}, "field": {"foo": 1},
}  # fmt: skip


@pytest.mark.parametrize("whole", [True, False], ids=["finished", "unfinished"])
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edited_answer_is_named_with_its_file_and_line(edit, whole, tmp_path):
    samples, path = shades(6), tmp_path / "predictions.jsonl"
    rows = [json.loads(json.dumps(vars(row))) for row in predict(Shade(), samples, path, progress=False)]
    kept = rows if whole else rows[:4]
    kept[2] = kept[2] | edit
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    before = path.read_bytes()
    with pytest.raises((ValueError, FileExistsError), match=r"predictions.jsonl(, line 3| has answers)"):
        predict(Shade(), samples, path, progress=False)
    assert path.read_bytes() == before
    part = tmp_path / "joined" / "part-1-of-1" / "predictions.jsonl"
    part.parent.mkdir(parents=True)
    part.write_bytes(before)
    with pytest.raises((ValueError, FileExistsError), match="predictions.jsonl"):
        predict(Shade(), samples, tmp_path / "joined" / "predictions.jsonl", progress=False)


@pytest.mark.parametrize(
    "line", ['{"uid": "s/2", "uid": "s/3"}', "[" * 10**5, "5", "null", "[1]", "{}", '{"uid": "s/2"']
)
def test_a_line_that_is_no_answer_is_named(line, tmp_path):
    path = tmp_path / "predictions.jsonl"
    predict(Shade(), shades(6), path, progress=False)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[3:], ""]))
    for read in (load_predictions, lambda path: predict(Shade(), shades(6), path, progress=False)):
        with pytest.raises(ValueError, match="predictions.jsonl, line 3"):
            read(path)


def other_samples() -> dict[str, list[Sample]]:
    "The same uids, and something else."
    same, red = shades(6), Image.new("RGB", (8, 8), "red")
    return {
        "images": [replace(sample, image=red) for sample in same],
        "one image": [replace(sample, image=red) if sample.uid == "s/4" else sample for sample in same],
        "questions": [replace(sample, question="How many dogs?") for sample in same],
        "true counts": [replace(sample, target=9) for sample in same],
        "factors": shades(6, factors={"entity": "dogs"}),
        "no true counts": [replace(sample, target=None) for sample in same],
    }


@pytest.mark.parametrize("what", other_samples())
def test_answers_about_something_else_are_not_taken_over(what, tmp_path):
    "Two sets may share uids: 'balanced' with seed 0 and with seed 1 do."
    path = tmp_path / "predictions.jsonl"
    predict(Shade(), shades(6), path, progress=False)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="predictions.jsonl, line "):
        predict(Shade(), other_samples()[what], path, progress=False)
    assert path.read_bytes() == before


def test_a_deleted_line_is_asked_again_and_an_old_file_is_read(tmp_path):
    path, vlm = tmp_path / "predictions.jsonl", Shade()
    whole = predict(vlm, shades(6), path, 1, progress=False)
    before = path.read_bytes()
    lines = before.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    assert predict(vlm, shades(6), path, 1, progress=False) == whole and path.read_bytes() == before and vlm.asked == 7
    rows = [json.loads(line) for line in lines]
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "asked"}) + "\n" for row in rows))
    assert [row.count for row in predict(vlm, shades(6), path, 1, progress=False)] == [row.count for row in whole]
    assert vlm.asked == 7


def test_identical_answers_of_two_writers_count_once(tmp_path):
    path = tmp_path / "predictions.jsonl"
    whole = predict(Shade(), shades(6), path, progress=False)
    before = path.read_bytes()
    path.write_bytes(before + before)
    assert predict(Shade(), shades(6), path, progress=False) == whole and path.read_bytes() == before


def test_a_chosen_count_need_not_be_in_the_words(tmp_path):
    class Chooser(Shade):
        def answer(self, samples: list[Sample], max_new_tokens: int = 5) -> list[Answer]:
            return [Answer("as few as possible", None, 3) for _ in samples]

    path = tmp_path / "predictions.jsonl"
    whole = predict(Chooser(), shades(3), path, progress=False)
    assert predict(Chooser(), shades(3), path, progress=False) == whole and whole[0].count == 3


@pytest.mark.parametrize("name", [*PARSERS])
def test_every_parser_makes_a_count_or_none_of_any_text(name):
    texts = [
        "",
        " ",
        "3",
        "There are three.",
        "none of them",
        "-2",
        "2.5",
        "1e999",
        "9" * 5000,
        "١٢",
        "½",
        "\x00",
        "3\n4",
        "{}",
    ]
    for text in texts:
        count = PARSERS[name](text)
        assert count is None or type(count) is int, (text, count)
        assert PARSERS[name](text) == count
