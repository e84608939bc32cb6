"Guards for `findings`: effects that were put in are found, with their sign; what is not there is not claimed."

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vlm_counting.core import Prediction, RunRecord, write_jsonl
from vlm_counting.paper import findings as room
from vlm_counting.paper.findings import (
    CLAIMS,
    VERDICTS,
    Material,
    _gather,
    conclusions,
    findings,
    own_material,
    paper_material,
)
from vlm_counting.paper.tables import TABLES

ENTITIES = [(colour, shape) for colour in ("red", "blue", "cyan") for shape in ("square", "star", "circle")]


@pytest.fixture(scope="module")
def paper() -> pd.DataFrame:
    "What the published numbers say."
    return findings([paper_material()])


def world(family, right, seed=0, model="mine", counts=range(1, 10), layouts=12, **factors) -> list[Prediction]:
    "Answers that are right with a probability of `right(target, entity)`; wrong ones are one too low."
    rng, rows = np.random.default_rng(seed), []
    for colour, shape in ENTITIES:
        for target in counts:
            for layout in range(layouts):
                count = target - int(rng.random() > right(target, (colour, shape)))
                known = {"family": family, "entity": f"{colour}_{shape}s", "colour": colour, "shape": shape}
                known |= {"layout": layout} | factors
                rows.append(Prediction(f"{family}/{len(rows)}", model, str(count), count, count, target, None, known))
    return rows


def flat(share):
    return lambda target, entity: share


def of(table, claim, step="as published") -> pd.Series:
    rows = table[(table["claim"] == claim) & (table["step"] == step)]
    assert len(rows) == 1, rows
    return rows.iloc[0]


def test_an_effect_is_found_with_its_size_and_sign():
    rows = [*world("clustered", flat(0.8)), *world("scattered", flat(0.6), seed=1)]
    found = of(findings([_gather("made", rows)]), "spacing")
    assert found["low"] < -20 < found["high"] and found["verdict"] == "holds" and found["p_holm"] < 0.001
    assert "-" in found["sentence"] and "holds" in found["sentence"] and f"{len(rows):,}" in found["sentence"]


@pytest.mark.long
def test_no_effect_is_negligible_only_with_enough_images():
    small = [*world("clustered", flat(0.7), layouts=3), *world("scattered", flat(0.7), seed=1, layouts=3)]
    assert of(findings([_gather("made", small)]), "spacing")["verdict"] == "undecided"
    large = [*world("clustered", flat(0.97), layouts=90), *world("scattered", flat(0.97), seed=1, layouts=90)]
    assert of(findings([_gather("made", large)]), "spacing")["verdict"] == "negligible"


@pytest.mark.long
def test_false_alarms_are_as_rare_as_promised():
    "Two sides without a difference: the interval leaves out zero in about 5 % of worlds."
    outside = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        kinds = dict(zip(ENTITIES, 0.6 + rng.normal(0, 0.1, len(ENTITIES)), strict=True))
        sides = [world(name, lambda target, entity, kinds=kinds: kinds[entity], seed=1000 + 2 * seed + i,
                       layouts=4, counts=range(2, 6)) for i, name in enumerate(("clustered", "scattered"))]  # fmt: skip
        row = room._side_effect(*sides)
        outside += row["low"] > 0 or row["high"] < 0
    assert 2 <= outside <= 22, outside


def test_signs_are_the_claims():
    falling = world("balanced", lambda target, entity: 1 - target / 12)
    rising = [replace(row, model="up") for row in world("balanced", lambda target, entity: target / 12)]
    table = findings([_gather("made", [*falling, *rising])]).query("claim == 'number'").set_index("model")["verdict"]
    assert table["mine"] == "holds" and table["up"] == "opposite"


def test_kinds_of_objects_that_differ_and_that_do_not():
    differ = world("balanced", lambda target, entity: 0.9 if entity[1] == "star" else 0.5)
    found = of(findings([_gather("made", differ)]), "objects")
    shares = [0.9 if shape == "star" else 0.5 for _, shape in ENTITIES]
    assert found["low"] < 100 * np.std(shares, ddof=1) < found["high"] and found["verdict"] == "holds"
    alike = of(findings([_gather("made", world("balanced", flat(0.7)))]), "objects")
    assert alike["verdict"] in ("undecided", "negligible")


@pytest.mark.long
def test_distractors_are_compared_image_by_image():
    rows = []
    for number, share in ((1, 0.9), (9, 0.5)):
        for kind in room.DISTRACTORS:
            rows += world(f"distractors_{number}_{kind}", flat(share), seed=number, layouts=8)
    table = findings([_gather("made", rows)])
    found = of(table, "more_distractors")
    assert "same images" in found["test"] and found["low"] < -40 < found["high"] and found["verdict"] == "holds"
    assert found["n"] == 4 * 9 * 9 * 8
    alike = table[table["claim"] == "alike_distractors"]  # the same seed for every type: no difference at all
    assert (alike["effect"] == 0).all() and (alike["p"] == 1).all()
    assert (alike["verdict"] == "undecided").all() and (alike["high"] > 25).all()  # eight layouts may hide that much


@pytest.mark.long
def test_a_head_that_helps_and_one_that_does_not():
    base = world("balanced", flat(0.5), experiment="training-synthetic-base")
    same = [replace(row, factors=row.factors | {"experiment": "training-synthetic-test"}) for row in base]
    unchanged = of(findings([_gather("made", [*base, *same])]), "head")
    assert unchanged["effect"] == 0 and unchanged["low"] < 0 < unchanged["high"] and unchanged["verdict"] == "undecided"
    better = world("balanced", flat(0.9), seed=3, experiment="training-synthetic-test")
    found = of(findings([_gather("made", [*base, *better])]), "head")
    assert found["verdict"] == "holds" and found["low"] < 40 < found["high"]


def layers(encoder, last, said, model="mine") -> pd.DataFrame:
    rows = [(0, "image_mean", encoder), (1, "last", last), (2, "last", last), (1, "lens", 0.0), (2, "lens", said)]
    table = pd.DataFrame(rows, columns=["layer", "pooling", "accuracy"])
    low, high = table["accuracy"] - 0.01, table["accuracy"] + 0.01
    return table.assign(model=model, n=1000, low=low, high=high, control="none")


def test_the_gap_has_to_survive_its_control():
    cells = paper_material().cells.iloc[:0]
    known_before = findings([Material("made", cells, layers=layers(0.99, 0.99, 0.5))])
    assert of(known_before, "seen_not_said")["verdict"] == "holds"
    assert of(known_before, "seen_not_said", "control")["verdict"] == "negligible"
    untrained = layers(0.5, 0.2, 0.5).query("pooling == 'last'").assign(control="untrained")
    ours = findings([Material("made", cells, layers=pd.concat([layers(0.99, 0.99, 0.5), untrained]))])
    controls = ours[(ours["claim"] == "seen_not_said") & (ours["step"] == "control")].set_index("what")["effect"]
    assert controls["last state minus untrained weights"] == pytest.approx(79) and len(controls) == 2
    made_inside = findings([Material("made", cells, layers=layers(0.30, 0.99, 0.5))])
    assert of(made_inside, "seen_not_said", "control")["verdict"] == "holds"
    verdicts = [conclusions(table).set_index("claim")["verdict"] for table in (known_before, made_inside)]
    assert [verdict["seen_not_said"] for verdict in verdicts] == ["not decided by the control", "stands"]
    assert verdicts[0]["lens"] == "not controlled"


def test_what_the_papers_own_numbers_say(paper):
    "Facts of the published numbers that the report must not lose."
    spacing = paper.query("claim == 'spacing'").set_index("model")
    assert spacing.loc["paligemma2-10b", "effect"] == pytest.approx(17.74, abs=0.01)
    assert (spacing["verdict"] == "holds").sum() == 3 and {-1, 1} == set(np.sign(spacing["effect"]))
    control = paper.query("claim == 'seen_not_said' and step == 'control'").set_index("model")["verdict"]
    assert (control.drop("paligemma2-10b") == "negligible").all()
    assert (paper.query("claim == 'head_real'")["verdict"] == "undecided").all()
    ended = conclusions(paper).set_index("claim")["verdict"]
    assert ended["head"] == "stands" and ended["lens"] == "not controlled" and ended["head_real"] == "is not shown"
    assert ended["more_distractors"] == "mixed: 4 for, 1 against"


def test_every_sentence_has_effect_interval_and_test(paper):
    assert len(paper) > 90 and set(paper["verdict"]) <= set(VERDICTS)
    for row in paper.itertuples():
        assert f"{row.effect:+.1f} points" in row.sentence and row.test in row.sentence and row.verdict in row.sentence
        assert "[" in row.sentence and "p " in row.sentence and f"{row.n:,}" in row.sentence
    assert (paper["p_holm"] >= paper["p"] - 1e-12).all() and (paper["low"] <= paper["high"]).all()


@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_of_nothing_are_no_claims(claim):
    empty = Material("nothing", paper_material().cells.iloc[:0])
    assert room._measured(CLAIMS[claim].effect, empty) == [] == room._measured(CLAIMS[claim].control, empty)


def run_of(folder: Path, verb: str, rows: list, model="mine", dataset="balanced", **known) -> Path:
    folder = folder / known.pop("run", verb) / model / dataset
    folder.mkdir(parents=True)
    record = RunRecord(verb, {"limit": None}, model=model, dataset=dataset, status=known.get("status", "finished"),
                       weights=known.get("weights", "own"))  # fmt: skip
    record.sessions = [{"finished": known.get("finished", "2026-01-01")}]
    (folder / "run.json").write_text(json.dumps(vars(record)))
    write_jsonl(folder / "predictions.jsonl", rows)
    return folder


@pytest.mark.long
def test_runs_are_found_by_their_records(tmp_path):
    rows = world("balanced", flat(0.7), layouts=2)
    run_of(tmp_path, "evaluate", rows)
    late = run_of(tmp_path, "evaluate", rows, run="again", finished="2026-02-01")
    run_of(tmp_path, "evaluate", rows, dataset="clustered", status="failed")
    run_of(tmp_path, "extract", rows, weights="other", finished="2025-01-01")  # of another checkpoint: not this model
    material = own_material(tmp_path)
    assert material.runs == (late,) and material.models == ["mine"] and list(material.answers) == [("mine", "balanced")]
    assert own_material(tmp_path / "none").runs == ()
    table = conclusions(findings([material]))
    assert table.set_index("claim").loc["forms", "verdict"] == "no data"


@pytest.mark.long
def test_a_run_of_train_says_how_its_p_was_made(tmp_path):
    "Before 0.5.0 it was that of McNemar's test, which knows of no families."
    rows, tests = world("balanced", flat(0.7), layouts=2), []
    score = {"head": "trained", "among": "vocabulary", "set": "test", "n": 162, "difference": 0.1, "low": 0.0,
             "high": 0.2, "p": 0.03}  # fmt: skip
    for version in ("0.4.1", "0.5.0", "0.10.2", None):
        folder = run_of(tmp_path / str(version), "train", rows)
        for head in ("own", "trained"):
            (folder / "answers" / "test" / head).mkdir(parents=True)
            write_jsonl(folder / "answers" / "test" / head / "predictions.jsonl", rows)
        pd.DataFrame([score]).to_csv(folder / "scores.csv", index=False)
        record = RunRecord.load(folder)
        record.sessions[-1] |= {"versions": {"vlm_counting": version}} if version else {}
        record.save(folder)
        tests += [row["test"] for row in room._measured(CLAIMS["head"].control, own_material(tmp_path / str(version)))]
    known = "Student and McNemar on the same images"
    assert tests == ["on the same images", known, known, "on the same images"]


@pytest.mark.long
def test_sets_asked_in_the_open_form_are_sets_of_their_own():
    closed, opened = world("clustered", flat(0.9)), world("clustered", flat(0.1), form="open")
    material = _gather("made", [*closed, *opened, *world("balanced", flat(0.5), form="open")])
    assert set(material.answers) == {("mine", name) for name in ("clustered", "clustered-open", "open-ended")}
    assert len(material.answers["mine", "clustered"]) == len(closed)
    assert list(TABLES["headline"](material.cells).columns) == ["open-ended", "clustered"]


@pytest.mark.long
def test_runs_that_do_not_fit_together_say_nothing():
    one = world("balanced", flat(0.5), counts=range(1, 4))
    other = world("balanced", flat(0.5), counts=range(4, 7))
    assert room._side_effect(one, other) is None
    moved = [replace(row, factors=row.factors | {"layout": row.factors["layout"] + 100}) for row in one]
    assert room._paired_effect([(one, moved)]) is None  # the same numbers, other images
    assert room._paired_effect([(one, one)])["effect"] == 0
    apart = [*world("clustered", flat(0.5), counts=range(1, 4)), *world("scattered", flat(0.5), counts=range(4, 7))]
    assert findings([_gather("made", apart)]).query("claim == 'spacing'").empty  # nor do they end a report


def test_what_becomes_of_a_conclusion_is_a_count():
    claim = CLAIMS["number"]
    rows = {"step": "as published", "effect": 1.0}

    def verdict(*words):
        return room._stands(pd.DataFrame([rows | {"verdict": word} for word in words]), claim)

    assert verdict("holds", "holds") == "stands" and verdict("holds", "undecided") == "holds in 1 of 2"
    assert verdict("holds", "opposite") == "mixed: 1 for, 1 against"
    assert verdict("opposite", "undecided") == "does not stand, opposite in 1 of 2"
    assert verdict("negligible", "negligible") == "does not stand"
    assert verdict("negligible", "undecided") == "is not shown"


WORDS = (*VERDICTS, "")  # "": there is no such row


def became(claim: str, *models: tuple[str, str]) -> str:
    "What becomes of a claim by (effect, control) of each model."
    steps = ("as published", "control")
    rows = [(f"m{i}", *row) for i, both in enumerate(models) for row in zip(steps, both, strict=True) if row[1]]
    return room._stands(pd.DataFrame(rows, columns=["model", "step", "verdict"]), CLAIMS[claim])


@pytest.mark.parametrize("claim", [name for name, claim in CLAIMS.items() if claim.control])
def test_no_control_rescues_an_effect_that_is_not_there(claim):
    "It was enough that the controls hold: a conclusion stood whose own effect was undecided, or the opposite."
    for effect in WORDS:
        for control in WORDS if effect else WORDS[:-1]:
            for others in ([], [("holds", "holds")] * 3):
                said = became(claim, *others, (effect, control))
                assert (said == "stands") == (effect == control == "holds"), (effect, control, said)
                if effect == "opposite":
                    assert "opposite in 1 of 1" in said or said == "mixed: 3 for, 1 against"
    rows = pd.DataFrame({"step": ["as published", "control", "control"], "verdict": ["undecided", "holds", "holds"]})
    assert room._stands(rows, CLAIMS[claim]) == "is not shown"


@pytest.mark.long_after(1)
@pytest.mark.parametrize("claim", CLAIMS)
def test_no_conclusion_stands_beside_a_verdict_that_does_not_hold(claim):
    "The whole table: each verdict of an effect and of a control, in one model and in two."
    controls = WORDS if CLAIMS[claim].control else ("",)
    cases = [(effect, control) for effect in WORDS for control in controls if effect or control]
    needed = [
        case for case in cases if case[0] == "holds" and case[1] in (("holds",) if CLAIMS[claim].control else ("",))
    ]
    assert len(needed) == 1
    for one in cases:
        assert (became(claim, one) == "stands") == (one in needed), one
    for one, two in combinations(cases, 2):
        said = became(claim, one, two)
        assert said != "stands", (one, two)
        if "opposite" in (one[0], two[0]):
            assert "opposite" in said or said.startswith("mixed"), (one, two, said)


def test_what_becomes_of_effects_and_controls_together():
    gap, head = "seen_not_said", "head"  # a control that can only take support away, and one that is like for like
    assert became(gap, ("holds", "negligible")) == became(gap, ("holds", "opposite")) == "not decided by the control"
    assert became(gap, ("holds", "undecided"), ("holds", "holds")) == "not decided by the control"
    assert (
        became(gap, ("holds", "negligible"), ("opposite", "holds")) == "not decided by the control, opposite in 1 of 2"
    )
    assert became(gap, ("undecided", "negligible")) == became(gap, ("undecided", "opposite")) == "is not shown"
    assert became(head, ("undecided", "opposite")) == "does not stand, opposite in 1 of 1"
    assert became(head, ("holds", "opposite"), ("holds", "holds")) == "mixed: 1 for, 1 against"
    assert became(head, ("holds", "negligible")) == became(head, ("undecided", "negligible")) == "does not stand"
    assert became(head, ("holds", "undecided"), ("holds", "holds")) == "holds in 1 of 2"
    for claim in (gap, head):
        assert became(claim, ("holds", "")) == "not controlled"
        assert became(claim, ("holds", ""), ("holds", "holds")) == "holds in 1 of 2"  # it is not said of both
        assert became(claim, ("undecided", "")) == became(claim, ("", "holds")) == "is not shown"
        assert became(claim, ("negligible", "holds")) == became(claim, ("negligible", "")) == "does not stand"
        assert became(claim, ("holds", ""), ("opposite", "")) == "not controlled, opposite in 1 of 2"
        # one model has the effect, the other the control, and none of them both
        assert became(claim, ("undecided", "holds"), ("holds", "")) == "not controlled"


def test_a_claim_without_direction_has_no_opposite():
    free = CLAIMS["spacing"]
    assert not free.expects and not free.control
    rows = [{"low": 5.0, "high": 9.0, "effect": 7.0}, {"low": -9.0, "high": -5.0, "effect": -7.0}]
    assert {room._verdict(pd.Series(row | {"p_holm": 0.01}), 0) for row in rows} == {"holds"}
    table = pd.DataFrame([{"step": "as published", "verdict": "holds", "effect": effect} for effect in (7.0, -7.0)])
    assert room._stands(table, free) == "stands" and "holds in 2 (1 up, 1 down)" in room._counted(table, 0)


@pytest.mark.parametrize("expects", [-1, 0, 1])
def test_what_is_no_number_holds_nothing(expects):
    for row in ({"effect": np.nan, "low": 3.0, "high": 9.0, "p_holm": 0.01}, {"effect": 6.0, "p_holm": np.nan},
                {"effect": 0.0, "low": -9.0, "high": 9.0, "p_holm": 0.01}):  # fmt: skip
        assert room._verdict(pd.Series({"low": 3.0, "high": 9.0} | row), expects) == "undecided"
    half = {"effect": 0.0, "low": -1.0, "high": np.nan, "p_holm": 1.0}
    assert room._verdict(pd.Series(half), expects) == "undecided"  # nobody knows how large it may be
    assert room._verdict(pd.Series(half | {"high": 1.0}), expects) == "negligible"


@pytest.mark.long
def test_a_paragraph_says_what_cannot_be_had():
    cells, known = paper_material().cells.iloc[:0], layers(0.30, 0.99, 0.97)

    def told(table: pd.DataFrame) -> pd.Series:
        found = conclusions(findings([Material("made", cells, layers=table)])).set_index("claim")
        return found.loc["seen_not_said"]

    assert told(known)["verdict"] == "stands"
    small = told(known.assign(low=lambda rows: rows["accuracy"] - 0.03, high=lambda rows: rows["accuracy"] + 0.03))
    assert small["verdict"] == "is not shown" and "undecided in 1 of 1" in small["paragraph"]
    assert "holds in 1 of 1" in small["paragraph"]  # the control, which alone decided before
    wrong = told(layers(0.30, 0.80, 0.97))
    assert wrong["verdict"] == "does not stand, opposite in 1 of 1" and "opposite in 1 of 1" in wrong["paragraph"]
    silent = told(known[known["pooling"] != "lens"])
    assert (
        silent["verdict"] == "is not shown"
        and "The effect itself cannot be had from this source" in silent["paragraph"]
    )
    bare = pd.concat([layers(0.30, 0.99, 0.5), layers(0.30, 0.99, 0.5, "other").query("layer > 0")])
    part = told(bare)
    assert part["verdict"] == "holds in 1 of 2" and ") of other cannot be had from this source" in part["paragraph"]


def test_accuracies_without_intervals_show_nothing():
    bare = pd.Series({"accuracy": 0.9, "low": np.nan, "high": np.nan})
    sure = pd.Series({"accuracy": 0.2, "low": 0.19, "high": 0.21})
    assert room._apart(bare, sure)["p"] == 1 and room._apart(sure, sure)["p"] == 1
    found = room._apart(sure, pd.Series({"accuracy": 0.1, "low": 0.09, "high": 0.11}))
    assert found["mean"] == pytest.approx(0.1) and found["low"] == pytest.approx(0.1 - 0.01 * 2**0.5)


def test_intervals_from_cells_cover_under_related_images():
    "Recalls of nine counts, layouts sharing a part of the variance: the enlarged binomial interval still covers."
    rng, inside = np.random.default_rng(0), 0
    for _ in range(300):
        sides = []
        for share in (0.6, 0.5):
            luck = rng.normal(0, 0.15, 81)[:, None]  # a layout is easy or hard, in all three images of it
            right = rng.random((9, 81, 3)) < np.clip(share + luck, 0, 1)
            sides.append(pd.DataFrame({"value": right.mean(axis=(1, 2)), "n": 243}))
        found = room._cells_effect(*sides)
        inside += found["low"] < 10 < found["high"]
    assert inside > 0.93 * 300


def test_one_answer_a_side_decides_nothing_and_ends_no_report():
    rows = [*world("clustered", flat(0.5)), *world("scattered", flat(0.5))]
    few = [
        next(row for row in rows if row.factors["family"] == name and row.target == 3)
        for name in ("clustered", "scattered")
    ]
    assert room._side_effect(few[:1], few[1:]) is None
    table = findings([_gather("made", few)])
    assert "stands" not in set(conclusions(table)["verdict"])
