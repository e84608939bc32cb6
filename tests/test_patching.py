"""Guards for the notebook `patching`: exchanged states do what they say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from broken import hooks
from PIL import Image

from vlm_counting.core import Sample, UnknownName
from vlm_counting.patching import POSITIONS, Pair, against_blank, count_pairs, effects, patch
from vlm_counting.stimuli import generate

pytest_plugins = ("broken",)  # the fixtures


@pytest.fixture(scope="session")
def exam():
    "One kind of object, and two."
    return generate("balanced", limit=27), generate("two_groups", limit=36)


# --- exchanged states


@pytest.fixture(scope="session")
def pairs():
    some = [sample for sample in generate("balanced", limit=432) if sample.target in (2, 5, 9)]
    return count_pairs(some, seed=3)


@pytest.fixture(scope="session")
def patched(vlm, pairs):
    return patch(vlm, pairs, None, list(POSITIONS))


def test_patches_are_exact_where_they_must_be(vlm, pairs, patched):
    top, table = len(vlm.hooks.blocks), effects(patched, draws=50).set_index(["position", "layer"])
    assert len(patched) == len(pairs) * (top + 1) * 4 and set(table["pairs"]) == {6}
    assert table.loc["all", "effect"].tolist() == pytest.approx([1] * (top + 1), abs=1e-4)
    for name, layer, effect in (
        ("image", 0, 1),
        ("last", top, 1),
        ("last", 0, 0),
        ("image", top, 0),
        ("question", 0, 0),
    ):
        assert table.loc[(name, layer), "effect"] == pytest.approx(effect, abs=1e-4)
    assert (table.loc["all", "moved"] == 1).all() and table.loc[("last", 0), "moved"] == 0
    parts = [patched[patched["position"] == name].reset_index()["shift"] for name in ("image", "all")]
    assert np.allclose(*(part[:9] for part in parts), atol=1e-3)  # layer 0: only the picture differs
    assert hooks(vlm) == 0


def test_patches_do_not_depend_on_the_batch(vlm, pairs, patched):
    again = patch(vlm, pairs, [1, 3], ["image", "last"], batch_size=4)
    old = patched.merge(again, on=["pair", "layer", "position", "donor", "recipient"], suffixes=("", "_again"))
    assert len(old) == len(again) == len(pairs) * 4
    for name in ("shift", "full", "apart", "moved"):
        assert np.allclose(old[name], old[f"{name}_again"], atol=1e-3, equal_nan=True)
    assert again["full"].isna().equals(again["donor"] == again["recipient"])


@pytest.mark.long
def test_a_planted_fault_can_be_patched(planted, pairs):
    "Its own hooks stay in place, those of the patch go."
    for name in ("see_blur", "route_cut"):
        twin = planted(name)
        before = hooks(twin)
        table = effects(patch(twin, pairs, [0, 4], ["image", "last", "all"]), draws=2).set_index(["position", "layer"])
        assert table.loc[[("all", 0), ("all", 4), ("image", 0), ("last", 4)], "effect"].tolist() == pytest.approx(
            [1] * 4, abs=1e-3
        )
        assert hooks(twin) == before > 0


def test_no_hook_is_left_behind_by_a_failure(vlm, pairs):
    twin, calls = vlm.copy("by hand", "by hand"), []
    body = twin.hooks

    def failing(inputs):
        calls.append(1)
        if len(calls) == 3:  # donor, recipient, and now the first patch
            raise RuntimeError("out of memory")
        return body.forward(inputs)

    twin.hooks = replace(body, forward=failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        patch(twin, pairs[:2], [1], ["last"])
    assert len(calls) == 3 and hooks(twin) == 0


def test_patches_that_cannot_be_had_say_so(vlm, clip, pairs, tmp_path):
    with pytest.raises(UnknownName, match="No position named 'lost'.*Did you mean 'last'"):
        patch(vlm, pairs[:1], [0], ["lost"])
    with pytest.raises(ValueError, match="There is no layer 5: this model has 0 .* to 4"):
        patch(vlm, pairs[:1], [5])
    with pytest.raises(ValueError, match="'tiny-clip' writes no words.*Take a generative model"):
        patch(clip, pairs[:1])
    wide = tmp_path / "wide.png"
    Image.new("RGB", (504, 252)).save(wide)
    with pytest.raises(ValueError, match="different numbers of tokens. Pair images of one size"):
        patch(vlm, [Pair(replace(pairs[0].donor, image=wide), pairs[0].recipient)], [0])
    assert hooks(vlm) == 0


def test_effects_by_hand():
    "Two pairs that differ and one that does not: shift 3 of 4, or the mean of null 0.5 against a mean lead of 2."
    rows = pd.DataFrame({"layer": 1, "position": "last", "shift": [1.0, 2.0, 0.5], "full": [1.0, 3.0, np.nan],
                         "apart": [1.0, 0.5, 0.2], "moved": [1.0, np.nan, np.nan]})  # fmt: skip
    row = effects(rows).iloc[0]
    assert row["pairs"] == 2 and row["effect"] == 0.75 and row["null"] == 0.25 and row["moved"] == 1
    assert row["low"] == pytest.approx(2 / 3) and row["high"] == 1


def make(target, place=0, kind="red_squares"):
    return Sample(f"by hand/{kind}-{target}-{place}", Path("none.png"), "How many?", target, {"entity": kind})


def test_pairs_are_of_every_two_counts():
    samples = generate("balanced", limit=432)
    pairs, counts = count_pairs(samples, each=2, seed=1), range(1, 10)
    assert [(pair.donor.target, pair.recipient.target) for pair in pairs] == [
        (n, m) for n in counts for m in counts for _ in range(2)
    ]
    for pair in pairs:
        assert pair.donor.factors["entity"] == pair.recipient.factors["entity"]
        assert pair.donor.uid != pair.recipient.uid and pair.donor.image != pair.recipient.image
    assert count_pairs(samples, each=2, seed=1) == pairs != count_pairs(samples, each=2, seed=2)
    assert len({pair.recipient.factors["entity"] for pair in pairs}) > 3  # not always the first kind


def test_a_pair_that_cannot_be_had_is_refused():
    lonely = [make(1), make(1, 1), make(2)]  # 2 against 2 needs a second picture
    with pytest.raises(
        ValueError, match="No two images of one kind with 2 and 2 objects among 3 samples.*at least two"
    ):
        count_pairs(lonely)
    assert len(count_pairs([*lonely, make(2, 1)])) == 4
    with pytest.raises(ValueError, match="of one kind with 1 and 2"):
        count_pairs([make(1), make(1, 1), make(2, kind="blue_stars"), make(2, 1, "blue_stars")])


def test_black_pictures_hold_nothing(vlm, shown, tmp_path):
    into, out = (against_blank(shown[:3], tmp_path, way) for way in ("blank", "image"))
    assert [pair.donor for pair in into] == [pair.recipient for pair in out] == shown[:3]
    assert [pair.recipient for pair in into] == [pair.donor for pair in out]
    for sample, pair in zip(shown, into, strict=False):
        black = pair.recipient
        assert black.target == 0 and black.question == sample.question and black.uid != sample.uid
        with Image.open(black.image) as image, Image.open(sample.image) as own:
            assert image.size == own.size and not np.asarray(image).any()
    assert len(list(tmp_path.iterdir())) == 1  # one black picture of each size
    with pytest.raises(ValueError, match="blank"):
        against_blank(shown[:1], tmp_path, "black")
    rows = patch(vlm, into, [0], ["image"])
    assert (rows["recipient"] == 0).all() and np.allclose(rows["shift"], rows["full"], atol=1e-3)


def test_patching_takes_one_or_many_of_everything(vlm, pairs):
    some = pairs[:3]
    wanted = patch(vlm, some, [2], ["last"])
    as_tuples = [(pair.donor, pair.recipient) for pair in some]
    for given in (
        (iter(some), np.int64(2), "last"),
        (tuple(as_tuples), (layer for layer in [2]), (name for name in ["last"]), np.int64(27)),
        (some, np.array([2]), ("last", "last"), "auto"),
    ):
        pd.testing.assert_frame_equal(patch(vlm, *given), wanted, rtol=1e-4, atol=1e-5)
    assert len(patch(vlm, some[0], 2, "last")) == 1


def test_what_cannot_be_patched_or_paired_is_said(vlm, clip, pairs, exam):
    alone, bare = exam[0], replace(exam[0][0], target=None, uid="bare")
    for wrong, kind, message in (
        (lambda: patch(vlm, []), ValueError, "There are no pairs"),
        (lambda: patch(vlm, alone[:2]), TypeError, "among the pairs, expected each to be a Pair"),
        (lambda: patch(vlm, pairs[:1], True), ValueError, "There is no layer True"),
        (lambda: patch(vlm, pairs[:1], 2, []), ValueError, "positions is empty"),
        (lambda: patch(vlm, pairs[:1], 2, "lsat"), UnknownName, "Did you mean 'last'"),
        (lambda: patch(vlm, pairs[:1], 2, batch_size=0), ValueError, "batch_size is 0, expected 'auto' or a whole"),
        (lambda: patch(vlm, [(alone[0], bare)]), ValueError, "1 of 2 samples have no target, the first is 'bare'"),
        (lambda: patch(clip, pairs[:1]), ValueError, "'tiny-clip' writes no words"),
        (lambda: patch("tiny-clip", pairs[:1]), TypeError, "states of a str cannot be read"),
        (lambda: count_pairs([]), ValueError, "There are no samples"),
        (lambda: count_pairs("balanced"), TypeError, "Found 'balanced' among the samples"),
        (lambda: count_pairs([bare]), ValueError, "1 of 1 samples have no target"),
        (lambda: count_pairs(alone, each=0), ValueError, "each is 0, expected a whole number"),
    ):
        with pytest.raises(kind, match=message):
            wrong()


def test_pairs_of_a_generator_are_those_of_a_list():
    samples = generate("balanced", limit=432)
    assert count_pairs(iter(samples), np.int64(1)) == count_pairs(samples)
    same = pd.DataFrame({"layer": [1], "position": ["last"], "full": [np.nan], "shift": [0.0], "moved": [np.nan]})
    with pytest.raises(ValueError, match="No pair has two different counts"):
        effects(same)
