"""Guards for the notebook `diagnosis`: what readers and knobs tell, questions in their order, doubt, and the run."""

import json
from dataclasses import asdict, fields, replace

import numpy as np
import pytest

from vlm_counting import diagnosis
from vlm_counting.core import Prediction, RunRecord, fingerprint
from vlm_counting.datasets import load_dataset
from vlm_counting.diagnosis import (
    _STEPS,
    EVIDENCE,
    LIMITS,
    QUESTIONS,
    Limits,
    _answer_evidence,
    _kept,
    _moved_limits,
    _own_words,
    _reader_evidence,
    conclude,
    decide,
    diagnose,
    examine,
)
from vlm_counting.faults import CAUSES, plant
from vlm_counting.knobs import KNOBS
from vlm_counting.stimuli import generate

pytest_plugins = ("broken",)  # the fixtures

ILL = {"accuracy": 0.5, "two_accuracy": 0.5, "unparsed": 0.0, "form": 0.1, "rival": 0.1, "rival_held": 0.1,
       "kinds_apart": 1.4, "first": 1.0, "halfway": 1.0, "last": 0.4, "last_one": 0.4, "last_two": 0.4}  # fmt: skip
QUIET = {f"knob_{name}": 0.0 for name in KNOBS}


@pytest.fixture(scope="session")
def exam():
    "One kind of object, and two."
    return generate("balanced", limit=54), generate("two_groups", limit=54)


@pytest.fixture(scope="session")
def ill(vlm, looked_at):
    return plant(vlm, "say_bias", 2.0, 0, looked_at)


@pytest.fixture(scope="session")
def diagnosed(ill, exam):
    return diagnose(ill, *exam, progress=False)


# --- the questions


@pytest.mark.parametrize(
    ("change", "fault", "where"),
    [
        ({}, "route", "between image tokens"),
        ({"accuracy": 0.95, "two_accuracy": 0.92}, "none", "nowhere"),
        ({"unparsed": 0.6, "form": 0.6}, "format", "form"),
        ({"unparsed": 0.6, "form": 0.3}, "route", "between"),  # no number, and not right in disguise either
        ({"kinds_apart": 0.1, "two_accuracy": 0.4}, "bind", "words"),
        ({"kinds_apart": 0.1}, "route", "between"),  # one kind is as hard as two: not for want of a kind
        ({"knob_image": 0.6}, "see", "faint"),
        ({"knob_image": 0.6, "rival": 0.5}, "bind", "words"),  # louder images are no help against the wrong kind
        ({"knob_image": 0.6, "luck_image": 0.3}, "route", "between"),
        ({"knob_image": 0.5, "knob_words": 0.45}, "route", "between"),  # two sites alike: neither is named
        ({"knob_attention": 0.6, "knob_attention_early": 0.59}, "route", "attention"),  # one site, two knobs
        ({"knob_words": 0.6}, "bind", "words"),
        ({"knob_attention": 0.6, "rival": 0.5}, "bind", "words"),
        ({"knob_focus": 0.6, "rival": 0.5}, "route", "wrong places"),
        ({"knob_last": 0.6}, "route", "between"),  # its reader tells better whether the number is there
        ({"knob_last": 0.6, "last_one": 0.9, "last_two": 0.9}, "say", "faint"),
        ({"last_one": 0.9, "last_two": 0.9}, "say", "last state"),
        ({"last_one": 0.9, "last_two": 0.4}, "bind", "words"),  # there with one kind, and not with two
        ({"rival_held": 0.5}, "bind", "words"),
        ({"first": 0.6, "halfway": 0.6}, "see", "lost"),
    ],
)
def test_each_question_names_its_fault(change, fault, where):
    found = decide(ILL | QUIET | change)
    assert found.fault == fault and where in found.where and found.why


def test_every_question_is_needed_and_its_removal_changes_a_verdict():
    asked = {
        "healthy": {"accuracy": 0.95, "two_accuracy": 0.95},
        "format": {"unparsed": 0.9, "form": 0.9},
        "alike": {"kinds_apart": 0.1, "two_accuracy": 0.4},
        "knob": {"knob_image": 0.6},
        "held": {"last_one": 0.9, "last_two": 0.9},
        "rival": {"rival": 0.6},
        "lost": {"first": 0.6, "halfway": 0.6},
    }
    for name, change in asked.items():
        whole, less = decide(ILL | QUIET | change), decide(ILL | QUIET | change, without=[name])
        assert whole.fault != less.fault, name
    assert set(QUESTIONS) - set(asked) == {"stuck"} and decide(ILL, without=list(QUESTIONS)).where == "not to be told"


def test_every_limit_is_moved_both_ways_and_a_border_withholds_the_verdict():
    names = {field.name for field in fields(Limits)} - {"lost", "luck"}  # a tenth, and one in a hundred, are given
    assert set(_STEPS) == names and len(_moved_limits()) == 2 * len(names)
    changed = [{k: v for k, v in asdict(limits).items() if v != getattr(LIMITS, k)} for limits in _moved_limits()]
    assert all(len(change) == 1 for change in changed)
    sure, unsure = (conclude(ILL | {"last_one": held, "last_two": held}) for held in (0.99, 0.86))
    assert sure.fault == "say" and sure.alternatives == () and "say: the number is there" in str(sure)
    assert unsure.fault is None and unsure.likeliest == "say" and unsure.alternatives == ("route",)
    assert str(unsure).startswith("withheld between say and route. For say: ")


def test_what_fails_and_where_are_two_things():
    confused = conclude(ILL | QUIET | {"knob_focus": 0.7, "rival": 0.6})
    assert (confused.fault, confused.fails) == ("route", "which kind") and "attention" in confused.where
    assert conclude(ILL | {"first": 0.3, "halfway": 0.3}).fails == "how many"
    assert conclude(ILL | {"unparsed": 0.9, "form": 0.9}).fails == "the form"
    assert conclude(ILL | {"accuracy": 1.0, "two_accuracy": 1.0}).fails == "nothing"
    assert set(conclude(ILL).missing) == set(EVIDENCE) - set(ILL)


# --- evidence


def test_readers_are_measured_on_wrong_answers_against_right_ones():
    wrong = np.repeat([True, False], 10)
    assert _kept(np.tile([True, False], 10), wrong) == 1  # half of either: nothing is lost by being wrong
    assert _kept(np.array([False] * 10 + [True] * 10), wrong) == 0
    assert _kept(np.ones(20, bool), np.ones(20, bool)) == pytest.approx(1 / 0.9)  # nothing is right to compare with
    said = np.tile([False, True], 20)
    reads = {"said": said, "last": said | (np.arange(40) < 20), "among": said, "own_words": ~said, "first": said}
    found = _reader_evidence(reads, 20)
    assert found == {"form": 1, "first": 0, "last": 0.5, "last_one": 1, "last_two": 0}


def test_own_words_are_read_from_other_layouts_only():
    words = np.array(["a", "b", "a", "c"], object)
    assert _own_words(words, np.array([1, 2, 1, 2]), np.array([0, 0, 1, 1])).tolist() == [1, -1, 1, -1]


def test_answers_by_hand():
    def row(text, count, target, other=None):
        factors = {"others": [{"count": other}]} if other else {}
        return Prediction("", "", text, count, count, target, factors=factors)

    rows = [row("3", 3, 3), row("many", None, 4), row("5", 5, 2, 5), row("2", 2, 2, 5), row("7", 7, 2, 5)]
    found = _answer_evidence(rows)
    assert found == {
        "accuracy": 0.5,
        "two_accuracy": pytest.approx(1 / 3),
        "unparsed": pytest.approx(1 / 3),
        "rival": 0.5,
    }


def test_evidence_has_its_meaning_and_its_order(diagnosed):
    known = [name for name in diagnosed.evidence if not name.startswith("luck_")]
    assert known == [name for name in EVIDENCE if name in known] and diagnosed.verdict.missing == ()
    assert all(np.isfinite(value) for value in diagnosed.evidence.values())


# --- the experiment


def contents(folder):
    "File -> bytes, of all that is kept of a diagnosis; without the notes of knobs, which only a run keeps."
    kept = [path for path in folder.iterdir() if path.name not in ("run.json", "knobs.jsonl", ".lock")]
    return {path.name: path.read_bytes() for path in kept if path.is_file()}


def test_a_diagnosis_says_what_it_found(diagnosed, ill):
    assert diagnosed.verdict.likeliest == "say" and diagnosed.paper == "say" and diagnosed.sizes == (54, 54)
    lines = str(diagnosed).splitlines()
    assert lines[0] == f"{ill.name}: {diagnosed.verdict}" and "The paper's rule says: say." in lines
    assert "\n" not in repr(diagnosed) and "<table" in diagnosed._repr_html_()
    assert set(diagnosed.details) == {"chain", "knobs"} and set(diagnosed.tables()) == {"chain", "knobs", "scores"}
    assert set(diagnosed.figures()) == {"chain", "knobs"}
    places = diagnosed.details["chain"].set_index("place")
    assert places.loc["said", "of_wrong"] == 0 and places.loc["said", "of_right"] == 1
    assert places.loc["last", "of_wrong"] > 0.5 and list(places.index) == list(diagnosis.STAGES)


@pytest.mark.long
def test_in_memory_in_a_folder_and_after_a_kill_it_is_the_same(ill, exam, diagnosed, tmp_path, monkeypatch):
    with monkeypatch.context() as dying:
        dying.setattr(diagnosis, "gains", lambda rows: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            diagnose(ill, *exam, path=tmp_path / "run", progress=False)
    assert RunRecord.load(tmp_path / "run").status == "failed" and (tmp_path / "run" / "knobs.jsonl").exists()
    with monkeypatch.context() as deaf:
        deaf.setattr(ill, "answer_prepared", None, raising=False)
        deaf.setattr("vlm_counting.knobs._say_turned", None)
        kept = diagnose(ill, *exam, path=tmp_path / "run", progress=False)
    kept.figures()
    assert diagnosed.save(tmp_path / "saved") == tmp_path / "saved"
    one, two = contents(tmp_path / "run"), contents(tmp_path / "saved")
    assert one.keys() == two.keys() and [name for name in one if one[name] != two[name]] == []
    assert {"verdict.json", "evidence.json", "chain.csv", "knobs.csv", "scores.csv", "knobs.svg"} <= set(one)
    assert json.loads(one["verdict.json"])["likeliest"] == "say"
    with pytest.raises(FileExistsError, match="parameter 'seed' is 1 now and was 0"):
        diagnose(ill, *exam, path=tmp_path / "run", seed=1)
    with pytest.raises(FileExistsError, match="fingerprint is"):
        diagnose(ill, exam[0], exam[1][:36], path=tmp_path / "run")


@pytest.mark.long
def test_a_healthy_model_has_nothing_to_explain_and_no_knob_is_turned(vlm, exam, tmp_path, monkeypatch):
    right = lambda vlm, samples, path, **how: [  # noqa: E731
        Prediction(s.uid, "", str(s.target), s.target, s.target, s.target, factors=s.factors) for s in samples
    ]
    monkeypatch.setattr(diagnosis, "predict", right)
    monkeypatch.setattr(diagnosis, "turn_knobs", None)
    evidence, tables, paper = examine(vlm, *exam, tmp_path)
    assert conclude(evidence).fault == "none" == paper and set(tables) == {"chain"}


@pytest.mark.long
def test_a_ranking_model_gives_what_it_can(clip, exam, tmp_path):
    found = diagnose(clip, *exam, path=tmp_path, progress=False)
    assert set(found.details) == {"chain"} and {"first", "knob_image"} <= set(found.verdict.missing)
    assert found.verdict.likeliest in CAUSES and "Not to be had: rival_held, kinds_apart" in str(found)
    assert set(found.figures()) == {"chain"}
    assert (tmp_path / "chain.svg").exists() and not (tmp_path / "knobs.csv").exists()


@pytest.mark.long
def test_it_makes_what_it_needs(vlm, clip, monkeypatch):
    looked_at = []

    def look(model, alone, groups, *rest, **named):
        looked_at.append((alone, groups))
        raise KeyboardInterrupt

    monkeypatch.setattr(diagnosis, "examine", look)
    for model, given in ((vlm, {"limit": 108}), (clip, {"limit": 27, "seed": 1})):
        with pytest.raises(KeyboardInterrupt):
            diagnose(model, **given)
        loaded = [load_dataset(name, **given) for name in ("balanced", "two_groups")]
        assert list(looked_at[-1]) == loaded and fingerprint(sum(looked_at[-1], [])) == fingerprint(sum(loaded, []))


def test_what_cannot_be_diagnosed_is_refused_before_anything_is_asked(vlm, exam, monkeypatch):
    monkeypatch.setattr(diagnosis, "examine", None)
    alone, groups = exam
    bare = [replace(sample, factors={"entity": "red_stars", "colour": "red", "shape": "star"}) for sample in alone]
    for model, one, two, kind, found in (
        ({"accuracy": 0.5}, None, None, TypeError, "hidden states of a dict cannot be read. Expected a model"),
        (vlm, bare, groups, ValueError, "one kind of object found 54 samples, not all of them with the f.*'layout'"),
        (vlm, alone, alone, ValueError, "two kinds found 54 samples, not all of them with the factor 'others'"),
        (vlm, alone, [], ValueError, "two kinds found no samples. Expected synthetic sets such as"),
        (vlm, [replace(alone[0], target=None)], groups, ValueError, "1 samples, not all of them with a target"),
        (vlm, [replace(alone[0], target=10)], groups, ValueError, "The number 10 is no single token of"),
        (vlm, alone[:1], groups, ValueError, "one kind of object found 1 samples .*too few"),
        (vlm, "balanced", None, TypeError, "Found 'balanced' among the samples"),
    ):
        with pytest.raises(kind, match=found):
            diagnose(model, one, two)
    with pytest.raises(ValueError, match="batch_size is 0"):
        diagnose(vlm, batch_size=0)
