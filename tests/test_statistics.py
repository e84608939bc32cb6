"""Scores, intervals and comparisons, against hand counts, scikit-learn, scipy and simulated worlds."""

import time
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from sklearn.metrics import classification_report, f1_score

from vlm_counting.core import Prediction, project_root, read_jsonl
from vlm_counting.curves import (
    _power_law,
    break_point,
    calibration,
    chances,
    edge_cells,
    error_model,
    position_contrast,
    position_map,
    reliability,
    response_curve,
    restricted,
    scaling,
    seam_cells,
)
from vlm_counting.statistics import (
    INTERVALS,
    TooFew,
    compare,
    confusion,
    contrast,
    equivalence,
    gain_test,
    holm,
    images_needed,
    interval,
    interval_of,
    mean_test,
    minimum_effect,
    per_class,
    relatedness,
    score,
    tabulate,
)  # fmt: skip
from vlm_counting.statistics import paired as paired_rows
from vlm_counting.stimuli import FAMILIES, Plan


@pytest.fixture(scope="module")
def example():
    return read_jsonl(project_root() / "data" / "published" / "clustered-red_triangles.jsonl", Prediction)


def predictions(pairs, model="m", **factors):
    return [Prediction(f"d/{i}", model, "", said, said, true, None, factors) for i, (true, said) in enumerate(pairs)]


def crossed(entities=24, layouts=81, counts=range(1, 10), seed=0, spread=0.6):
    "A full crossed run with entity and layout effects."
    rng, rows = np.random.default_rng(seed), []
    hard = {name: spread * rng.standard_normal(size) for name, size in (("entity", entities), ("layout", layouts))}
    for entity in range(entities):
        for count in counts:
            for layout in range(layouts):
                right = hard["entity"][entity] + hard["layout"][layout] + rng.standard_normal() < 0.5
                said = count if right else count + 1
                factors = {"entity": f"e{entity}", "layout": layout}
                rows.append(Prediction(f"d/{len(rows)}", "m", "", said, said, count, None, factors))
    return rows


def test_by_hand():
    row = score(predictions([(2, 2), (2, 4), (3, 2), (3, None), (4, 4)])).iloc[0]
    assert (row["n"], row["parsed"], row["unparsed"]) == (5, 4, pytest.approx(0.2))
    assert row["accuracy"] == pytest.approx(2 / 5)
    assert row["mae"] == pytest.approx(3 / 4) and row["bias"] == pytest.approx(1 / 4)
    assert row["rmse"] == pytest.approx((5 / 4) ** 0.5) and row["within_one"] == pytest.approx(3 / 4)
    assert row["low"] <= row["accuracy"] <= row["high"]


def test_unparsed_is_never_a_number():
    with_none, without = [(3, 3), (3, 5), (9, None)], [(3, 3), (3, 5)]
    one, two = score(predictions(with_none)).iloc[0], score(predictions(without)).iloc[0]
    for name in ("mae", "rmse", "bias", "within_one"):
        assert one[name] == two[name]
    assert one["accuracy"] < two["accuracy"]


def test_against_scikit_learn(example):
    for rule, field in (("strict", "count"), ("paper", "count_paper")):
        for model in ("qwen2-vl-7b", "paligemma2-10b"):
            rows = [row for row in example if row.model == model]
            true = [row.target for row in rows]
            said = [-1 if getattr(row, field) is None else getattr(row, field) for row in rows]
            result = score(rows, rule=rule).iloc[0]
            assert result["accuracy"] == pytest.approx(np.mean(np.array(true) == said))
            expected = f1_score(true, said, labels=sorted(set(true)), average="macro", zero_division=0)
            assert result["macro_f1"] == pytest.approx(expected, abs=1e-12)
            report = classification_report(true, said, labels=sorted(set(true)), output_dict=True, zero_division=0)
            for _, row in per_class(rows, rule=rule).iterrows():
                theirs = report[str(int(row["target"]))]
                assert (row["precision"], row["recall"], row["f1"], row["support"]) == pytest.approx(
                    tuple(theirs.values())
                )


@pytest.mark.parametrize("pairs", [[(4, None)] * 5, [(4, 4)] * 5, [(4, 9)] * 5, [(4, 4)], [(4, None)]])
def test_edges(pairs):
    row = score(predictions(pairs)).iloc[0]
    share = np.mean([said == true for true, said in pairs])
    assert row["accuracy"] == share and 0 <= row["low"] <= share <= row["high"] <= 1
    assert row["high"] - row["low"] > 0.3  # five equal answers are no proof of anything
    assert np.isnan(row["mae"]) == (row["parsed"] == 0)
    assert 0 <= row["macro_f1"] <= 1
    assert confusion(predictions(pairs)).to_numpy().sum() == len(pairs)
    assert len(per_class(predictions(pairs))) == 1


def test_zero_and_huge_counts():
    row = score(predictions([(0, 0), (0, 10**400)])).iloc[0]
    assert row["accuracy"] == 0.5 and np.isfinite(row["rmse"])
    assert confusion(predictions([(0, 0), (0, 30)])).columns.tolist() == [0, 30, "unparsed"]


def test_errors():
    with pytest.raises(ValueError, match="no predictions"):
        score([])
    with pytest.raises(KeyError, match="Did you mean 'colour'"):
        score(predictions([(1, 1)], colour="red"), by="color")
    with pytest.raises(KeyError, match="1 of 2 predictions have no factor 'colour'"):
        score(predictions([(1, 1)], colour="red") + predictions([(1, 1)]), by="colour")
    with pytest.raises(KeyError, match="'strict'"):
        score(predictions([(1, 1)]), rule="stric")
    with pytest.raises(KeyError, match="Did you mean 'wilson'"):
        score(predictions([(1, 1)]), interval="wilsson")
    with pytest.raises(ValueError, match="expected 2 of each"):
        interval([0, 1], clusters=[[1, 2, 3]])
    with pytest.raises(ValueError, match="NaN"):
        interval([0, np.nan])
    with pytest.raises(ValueError, match="0 values"):
        interval([])
    with pytest.raises(ValueError, match="at most two"):
        interval([0, 1], clusters=[[0, 1]] * 3)
    rows = predictions([(1, 1)])
    functions = [score, per_class, confusion, lambda some: compare(some, rows), lambda some: compare(rows, some)]
    for wrong in ([{"target": 1, "count": 1}], "results", rows[0], None):
        kind = type(wrong[0] if isinstance(wrong, list) else wrong).__name__
        for function in functions:
            with pytest.raises(TypeError, match=f"Found a {kind}, expected a list of Prediction"):
                function(wrong)
    for function in (per_class, response_curve):
        with pytest.raises(ValueError, match="Leave 'target' out"):
            function(predictions([(1, 1)]), by="target")


def test_groups(example):
    table = score(example, by=("model", "target"), interval="none")
    assert table.columns[:3].tolist() == ["model", "target", "n"] and table["n"].sum() == len(example)
    assert table["low"].isna().all() and table["macro_f1"].isna().all()
    assert score(example, by="model").equals(score(list(reversed(example)), by=["model"]))
    assert len(score(example, by="options", interval="none")) == len({str(row.factors["options"]) for row in example})


def test_an_interval_is_the_same_each_time_and_in_any_order():
    rows = crossed(entities=6, layouts=9)
    assert score(rows).equals(score(rows))
    pd.testing.assert_frame_equal(score(rows), score(rows[::-1]), rtol=1e-9)


def test_confusion_agrees_with_the_answers(example):
    table = confusion(example, normalise=False)
    assert table.index.tolist() == list(range(2, 10)) and table.columns[-1] == "unparsed"
    assert table["unparsed"].sum() == sum(row.count is None for row in example) > 0
    right = sum(table.loc[count, count] for count in table.index)
    assert right == sum(row.count == row.target for row in example)
    assert np.allclose(confusion(example, normalise=True).sum(axis=1), 1)
    assert confusion(example, rule="paper")["unparsed"].sum() == 0


def test_wilson_is_scipys():
    from scipy.stats import binomtest

    ends = binomtest(3, 10).proportion_ci(method="wilson")
    assert interval([1] * 3 + [0] * 7, method="wilson") == pytest.approx((ends.low, ends.high))


@pytest.mark.parametrize(("right", "n"), [(600, 1000), (40, 49), (9, 9), (0, 2)])
def test_answers_on_their_own_have_wilsons_interval_with_half_an_answer(right, n):
    answers = np.repeat([1, 0], [right, n - right])
    low, high = interval(answers)
    assert interval(answers, clusters=[range(n), ["star"] * n]) == (low, high)
    for end in (low, high):  # where a share is compared with the error at the supposed truth
        reach = NormalDist().inv_cdf(0.975) * (end * (1 - end) / n) ** 0.5 + 0.5 / n
        assert abs(right / n - end) == pytest.approx(reach, rel=1e-6) or end in (0, 1)
    assert low <= interval(answers, method="wilson")[0] and interval(answers, method="wilson")[1] <= high + 1e-9


def test_whole_families_count():
    "Ten copies of each answer add no information."
    right = np.random.default_rng(0).integers(0, 2, 100)
    once = interval(right)
    copies = interval(np.repeat(right, 10), clusters=[np.repeat(np.arange(100), 10)])
    naive = interval(np.repeat(right, 10))
    assert copies[1] - copies[0] == pytest.approx(once[1] - once[0], rel=0.08)
    assert naive[1] - naive[0] < 0.4 * (copies[1] - copies[0])


def test_fixed_counts_hardly_vary():
    "Accuracy that depends on the count alone has little uncertainty when counts are fixed: one more right, one wrong."
    right, counts = np.repeat([1, 0], 50), np.repeat([1, 2], 50)
    low, high = interval(right, strata=counts)
    assert high - low < 0.05
    assert interval(right, strata=counts, method="symmetric") == pytest.approx((0.5, 0.5))
    low, high = interval(right)
    assert high - low > 0.15


@pytest.mark.parametrize("families", [2, 5, 24])
def test_ends_stay_within_0_and_1_and_wrong_answers_mirror_right_ones(families):
    kinds, n = np.repeat(range(families), 6), 6 * families
    order = np.random.default_rng(0).permutation(n)
    for right in range(0, n + 1, max(1, n // 18)):
        answers = np.isin(range(n), order[:right]).astype(int)
        low, high = interval(answers, [kinds])
        assert 0 <= low <= right / n <= high <= 1
        assert interval(1 - answers, [kinds]) == pytest.approx((1 - high, 1 - low), abs=1e-9)
    assert low > 0  # all right: they prove something


def test_all_right_is_no_proof():
    "The fewer the kinds of objects, the less they prove."
    lows = [interval([1] * 54, [np.repeat(range(kinds), 54 // kinds)])[0] for kinds in (2, 3, 6, 27, 54)]
    assert lows == sorted(lows) and lows[0] < 0.3 < 0.85 < lows[-1] < interval([1] * 54, method="wilson")[0]


def test_few_answers_a_count_are_not_taken_for_certain():
    "One answer for each count would leave nothing to draw, were the counts fixed."
    rows = predictions([(count, count + count % 2) for count in range(1, 10)])
    row = score(rows).iloc[0]
    assert row["high"] - row["low"] > 0.5


def test_two_ways_are_never_narrower_than_one():
    for seed in range(3):
        table = tabulate(crossed(entities=8, layouts=9, counts=range(2, 5), seed=seed))
        width = {}
        for name, ways in (("entity", ["_entity"]), ("layout", ["_layout"]), ("both", ["_layout", "_entity"])):
            low, high = interval(table["_correct"], [table[way] for way in ways], table["_target"])
            width[name] = high - low
        assert width["both"] >= max(width["entity"], width["layout"]) - 1e-12


def test_missing_and_single_factors_fall_back():
    rows = crossed(entities=1, layouts=20)
    without = [Prediction(row.uid, "m", "", row.count, row.count, row.target, None, {"layout": row.factors["layout"]})
               for row in rows]  # fmt: skip
    assert score(rows).drop(columns="n").equals(score(without).drop(columns="n"))
    bare = [Prediction(row.uid, "m", "", row.count, row.count, row.target) for row in rows]
    assert score(bare)["low"].item() > score(rows)["low"].item()
    labelled = predictions([(2, 2)] * 20, label="dogs") + predictions([(2, 3)] * 20, label="cats")
    assert score(labelled)["high"].item() - score(labelled)["low"].item() > 0.9  # two labels, one always wrong


def paired(pictures=200, family="two_groups"):
    "Two questions to each picture, of different entities and layouts, always right or wrong together."
    rng, rows = np.random.default_rng(0), []
    for picture in range(pictures):
        right = rng.random() < 0.5
        for turn in range(2):
            factors = {"family": family, "pair": str(picture), "entity": f"e{picture}-{turn}"}
            factors["layout"] = 2 * picture + turn
            rows.append(Prediction(f"{family}/{2 * picture + turn}", "m", "", 2, 2, 2 if right else 3, None, factors))
    return rows


def width(rows, **more):
    row = score(rows, **more).iloc[0]
    return row["high"] - row["low"]


def test_two_questions_to_one_picture_are_relatives():
    rows = [replace(row, target=2, count=2 if row.target == 2 else 3) for row in paired()]
    alone = [replace(row, factors={k: v for k, v in row.factors.items() if k != "pair"}) for row in rows]
    half = rows[::2]
    assert width(rows) == pytest.approx(width(half), rel=0.08)
    assert width(alone) == pytest.approx(width(rows) / 2**0.5, rel=0.08)
    other = [replace(row, uid=f"x{row.uid}", factors=row.factors | {"family": "mine"}) for row in rows]
    assert tabulate([*rows, *other])["_layout"].nunique() == 400  # the same pair in another family is another picture
    gains = [replace(row, count=2) for row in rows]
    both, single = (compare(side, [gains[i] for i in range(0, len(gains), step)]).iloc[0]
                    for side, step in ((rows, 1), (half, 2)))  # fmt: skip
    assert both["high"] - both["low"] == pytest.approx(single["high"] - single["low"], rel=0.08)


def test_pictures_of_the_same_places_are_relatives_too():
    "In `two_groups` all entities share 72 arrangements; by its number a layout says where the asked objects stand."
    rows = [row for row in FAMILIES["two_groups"](Plan("two_groups"))]
    asked = [Prediction(f"d/{row.index}", "m", "", 1, 1, row.target, None, row.factors) for row in rows]
    families = {}
    for row, family in zip(rows, tabulate(asked)["_layout"], strict=True):
        places = sorted(map(tuple, row.factors["positions"] + row.factors["others"][0]["positions"]))
        families.setdefault(family, set()).add(tuple(places))
    assert len(families) == 72 and all(len(places) == 1 for places in families.values())
    mixed = tabulate([*asked, *crossed(entities=2, layouts=9)])["_layout"]
    assert mixed.nunique() == 72 + 9 and mixed[len(asked) :].nunique() == 9


def test_coverage():
    "With entity effects the naive interval fails; the clustered one stays near 95 %."
    rng, hits, worlds = np.random.default_rng(1), np.zeros(2), 200
    layout, entity = np.divmod(np.arange(49 * 24), 24)
    threshold = NormalDist().inv_cdf(0.65) * (1 + 0.3**2 + 0.6**2) ** 0.5
    for _ in range(worlds):
        hard = 0.3 * rng.standard_normal(49)[layout] + 0.6 * rng.standard_normal(24)[entity]
        right = hard + rng.standard_normal(49 * 24) < threshold
        for number, clusters in enumerate(((), (layout, entity))):
            low, high = interval(right, clusters)
            hits[number] += low <= 0.65 <= high
    assert hits[0] / worlds < 0.65
    assert 0.9 <= hits[1] / worlds <= 0.99


def test_full_run_takes_seconds():
    rows = crossed()
    assert len(rows) == 17_496
    start = time.perf_counter()
    score(rows, by="target")
    score(rows)
    assert time.perf_counter() - start < 8


def test_compare(example):
    qwen, paligemma = ([row for row in example if row.model == model] for model in ("qwen2-vl-7b", "paligemma2-10b"))
    row, back = compare(qwen, paligemma).iloc[0], compare(paligemma, qwen).iloc[0]
    assert row["difference"] == pytest.approx(row["second"] - row["first"]) == pytest.approx(-back["difference"])
    assert (row["only_first"], row["only_second"]) == (back["only_second"], back["only_first"])
    assert row["p"] == back["p"] and row["low"] < row["difference"] < row["high"]
    assert row["low"] == pytest.approx(-back["high"])
    assert compare(qwen, paligemma[:100])["n"].item() == 100


def test_compare_mcnemar_by_hand():
    one, two = predictions([(2, 2)] * 10 + [(2, 3)] * 10), predictions([(2, 3)] * 1 + [(2, 2)] * 19)
    row = compare(one, two).iloc[0]
    assert (row["only_first"], row["only_second"]) == (1, 10)
    assert row["p"] == pytest.approx(2 * (1 + 11) / 2**11)  # two-sided binomial tail of 10 or more in 11


@pytest.mark.parametrize(("said", "gain"), [((2, 2), 0), ((2, 3), -1), ((3, 2), 1)])
def test_compare_without_variation(said, gain):
    row = compare(*(predictions([(2, count)] * 20) for count in said)).iloc[0]
    assert row["difference"] == gain and -1 <= row["low"] <= gain <= row["high"] <= 1
    assert 0.1 < row["high"] - row["low"] < 0.4


def test_compare_refuses(example):
    rows = predictions([(2, 2), (3, 3)])
    with pytest.raises(ValueError, match="uids twice"):
        compare(example, example)
    with pytest.raises(ValueError, match="no uid in common"):
        compare(rows[:1], rows[1:])
    with pytest.raises(ValueError, match="has target 2 on one side and 4"):
        compare(rows, predictions([(4, 4)]))


def varied(seed: int) -> tuple[list, list]:
    "Answers about 24 kinds of objects, 18 of each; gains differ from kind to kind (sd 15 points), their mean is zero."
    rng, entity = np.random.default_rng(seed), np.repeat(np.arange(24), 18)
    gain, luck = rng.normal(0, 0.15, 24).clip(-0.3, 0.3)[entity], rng.random(24 * 18)
    second = np.where(luck < 0.15 + gain / 2, 1, 0)  # the second alone; the first alone at the other end
    first = np.where(luck > 0.85 + gain / 2, 1, 0)
    return tuple(
        [Prediction(f"f/{i}", "m", "", 2 + (not right), 0, 2, None, {"entity": f"e{kind:02}"})
         for i, (right, kind) in enumerate(zip(side, entity, strict=True))] for side in (first, second)
    )  # fmt: skip


@pytest.mark.long
def test_compare_knows_of_families():
    "McNemar's test alone finds a difference in one of five such worlds."
    rows = [compare(*varied(seed)).iloc[0] for seed in range(150)]
    exact = [binomtest(int(row["only_first"]), int(row["only_first"] + row["only_second"])).pvalue for row in rows]
    assert np.mean(np.array(exact) < 0.05) > 0.12
    assert np.mean([row["p"] < 0.05 for row in rows]) < 0.09
    assert all(row["p"] >= plain for row, plain in zip(rows, exact, strict=True))
    bare = [[replace(row, factors={}) for row in side] for side in varied(0)]
    assert compare(*bare)["p"].item() == pytest.approx(exact[0])  # no families: as it was
    assert compare(bare[0][:1], bare[1][:1])["p"].item() == 1


def test_pictures_of_another_seed_are_no_pairs():
    one, two = crossed(entities=2, layouts=9), crossed(entities=2, layouts=9)
    placed = [replace(row, factors=row.factors | {"positions": [[1, i % 9]]}) for i, row in enumerate(one)]
    moved = [replace(row, factors=row.factors | {"positions": [[2, i % 9]]}) for i, row in enumerate(one)]
    with pytest.raises(ValueError, match="positions .*1, 0.* on one side and .*2, 0.*made with one `seed`"):
        compare(placed, moved)
    assert compare(placed, two)["n"].item() == len(one)  # released answers know no places
    tuples = [replace(row, factors=row.factors | {"positions": ((1, i % 9),)}) for i, row in enumerate(one)]
    assert compare(placed, tuples)["n"].item() == len(one)
    other = [replace(row, factors=row.factors | {"entity": "stars"}) for row in two]
    with pytest.raises(ValueError, match="entity .* on one side and stars"):
        equivalence(one, other, 0.1)


def test_response_curve():
    table = response_curve(predictions([(2, 1), (2, 3), (2, None), (5, None)])).set_index("target")
    assert (table.loc[2, "n"], table.loc[2, "parsed"], table.loc[2, "mean"]) == (3, 2, 2)
    assert table.loc[2, "sd"] == pytest.approx(2**0.5) and table.loc[2, "variation"] == pytest.approx(2**0.5 / 2)
    assert table.loc[5, "parsed"] == 0 and np.isnan(table.loc[5, ["mean", "sd", "median"]].astype(float)).all()


# --- by formula, equivalence, power


def related(entities=24, layouts=9, counts=1, spread=0.3, seed=0):
    "A crossed design: entity, count and layout of each answer, and how hard it is."
    rng = np.random.default_rng(seed)
    entity, count, layout = np.indices((entities, counts, layouts)).reshape(3, -1)
    hard = spread * (rng.standard_normal(entities)[entity] + rng.standard_normal(layouts)[layout])
    return rng, entity, count + 1, layout, hard


def test_interval_by_formula_is_the_textbook_one():
    from scipy.stats import ttest_1samp

    values = np.random.default_rng(0).standard_normal(50)
    ends = ttest_1samp(values, 0).confidence_interval()
    for method in ("t", "symmetric"):
        assert interval(values, method=method) == pytest.approx((ends.low, ends.high))
    copies = interval(np.repeat(values, 10), [np.repeat(np.arange(50), 10)])
    assert copies[1] - copies[0] == pytest.approx(ends.high - ends.low, rel=0.01)  # statsmodels: (499 / 499)


def test_formula_and_bootstrap_agree():
    rng, entity, count, layout, hard = related(layouts=49, counts=3)
    right = (hard + rng.standard_normal(len(hard)) < 0.3).astype(float)
    table = pd.DataFrame({"_layout": layout, "_entity": entity, "_target": count})
    drawn = interval_of(lambda weights: np.array([np.average(right, weights=weights)]), table, draws=1000)[:, 0]
    for method in ("t", "symmetric"):
        low, high = interval(right, (layout, entity), count, method)
        assert high - low == pytest.approx(drawn[2] - drawn[1], rel=0.1)
        assert (low + high) / 2 == pytest.approx(drawn[0], abs=0.01)


@pytest.mark.parametrize(("accuracy", "entities"), [(0.65, 3), (0.95, 24), (0.05, 8)])
def test_coverage_by_formula(accuracy, entities):
    "Never below 93 %, less three points for chance (the whole game: tests/benchmarks/intervals.py)."
    hits, worlds = np.zeros(2), 150
    entity, layout = np.indices((entities, 27)).reshape(2, -1)
    for world in range(worlds):
        rng = np.random.default_rng(world)
        hard = 0.7 * rng.standard_normal(entities)[entity] + 0.2 * rng.standard_normal(27)[layout]
        right = hard + rng.standard_normal(len(hard)) < NormalDist().inv_cdf(accuracy) * (1 + 0.7**2 + 0.2**2) ** 0.5
        for number, method in enumerate(("t", "symmetric")):
            low, high = interval(right, (layout, entity), method=method)
            hits[number] += low <= accuracy <= high
    assert hits[0] / worlds >= 0.9
    assert hits[1] <= hits[0] and (hits[1] / worlds < 0.9) == (accuracy != 0.65)  # symmetric: right in the middle only


@pytest.mark.long
def test_mcnemar_and_holm_are_statsmodels():
    from statsmodels.stats.contingency_tables import mcnemar
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(0)
    for _ in range(5):
        sides = [[(2, 2 if right else 3) for right in rng.random(60) < share] for share in (0.5, 0.7)]
        row = compare(*map(predictions, sides)).iloc[0]
        table = np.zeros((2, 2))
        for one, two in zip(*sides, strict=True):
            table[int(one == (2, 2)), int(two == (2, 2))] += 1
        assert row["p"] == pytest.approx(mcnemar(table, exact=True).pvalue)
    p = rng.random(20)
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    by_hand = np.maximum.accumulate(np.sort(p) * np.arange(20, 0, -1)).clip(max=1)
    assert np.sort(holm(p)) == pytest.approx(by_hand)


def answered(entity, count, layout, right):
    "Predictions of such a design: the count where right, one more where wrong."
    rows = predictions([(true, true + (not ok)) for true, ok in zip(count.tolist(), right.tolist(), strict=True)])
    places = zip(layout.tolist(), entity.tolist(), strict=True)
    return [
        replace(row, factors={"layout": where, "entity": f"e{kind:02}"})
        for row, (where, kind) in zip(rows, places, strict=True)
    ]


def gains(gain, seed, size=216, discordant=0.3, spread=0.0):
    "Two runs whose answers differ in three pictures of ten, the second better by `gain` on average over worlds."
    rng, entity, _, layout, hard = related(size // 9, 9, spread=spread, seed=seed)
    better = np.clip((discordant + gain + hard) / 2, 0, discordant)
    draw = rng.random(len(hard))
    wrong = (draw < better), (better <= draw) & (draw < discordant)
    return [answered(entity, np.full(len(hard), 2), layout, ~side) for side in wrong]


@pytest.mark.long
def test_equivalence_makes_the_promised_mistakes():
    "At the edge of the margin, two runs are called equivalent at most one time in twenty; far inside, nearly always."
    worlds = 60
    outcome = {}
    for gain, margin in ((0.0, 0.25), (0.15, 0.15), (0.2, 0.02)):
        rows = [equivalence(*gains(gain, seed), margin).iloc[0] for seed in range(worlds)]
        outcome[gain, margin] = (pd.DataFrame(rows)[["p_equivalent", "p_different"]] < 0.05).mean().to_numpy()
        assert all((row["p_equivalent"] < 0.05) == (-margin < row["low"] and row["high"] < margin) for row in rows)
        assert np.mean([row["low"] <= gain <= row["high"] for row in rows]) >= 0.83  # 90 % promised
    assert outcome[0.0, 0.25][0] > 0.95 and outcome[0.0, 0.25][1] < 0.12
    assert outcome[0.15, 0.15][0] < 0.12
    assert outcome[0.2, 0.02][0] == 0 and outcome[0.2, 0.02][1] > 0.9


def test_equivalence_of_runs_that_never_differ():
    rows = predictions([(2, 2)] * 200)
    row = equivalence(rows, rows, 0.02).iloc[0]
    assert row["p_equivalent"] == pytest.approx(0.98**200) and row["verdict"] == "equivalent"
    assert row["high"] == pytest.approx(1 - 0.05 ** (1 / 200)) and row["p_different"] == 1
    few = [replace(row, factors={"layout": i % 5}) for i, row in enumerate(rows)]
    assert equivalence(few, few, 0.02)["verdict"].item() == "undecided"  # 200 answers, but five layouts
    worse = predictions([(2, 3)] * 200)
    assert equivalence(rows, worse, 0.02)["verdict"].item() == "different"
    for margin in (0, 1, -0.1, float("nan")):
        with pytest.raises(ValueError, match="expected a difference of accuracies"):
            equivalence(rows, rows, margin)


def test_minimum_effect_against_statsmodels_and_simulation():
    from statsmodels.stats.power import NormalIndPower
    from statsmodels.stats.proportion import proportion_effectsize

    theirs = NormalIndPower().power(proportion_effectsize(0.5 + minimum_effect(500), 0.5), 500, 0.05)
    assert theirs == pytest.approx(0.8, abs=0.01)
    rng, effect = np.random.default_rng(0), minimum_effect(400, accuracy=0.3)
    one, two = rng.binomial(400, 0.3, 5000) / 400, rng.binomial(400, 0.3 + effect, 5000) / 400
    mean = (one + two) / 2
    assert (np.abs(two - one) / np.sqrt(mean * (1 - mean) / 200) > 1.96).mean() == pytest.approx(0.8, abs=0.025)
    effect = minimum_effect(216, discordant=0.3, entities=24, shared=(0, 0.02))
    spread = (0.02 * 0.3) ** 0.5
    hits = []
    for seed in range(150):
        rng, entity, _, layout, _ = related(24, 9, seed=seed)
        mean = np.clip(effect + spread * rng.standard_normal(24)[entity], -0.3, 0.3)
        draw = rng.random(216)
        gain = np.where(draw < (0.3 + mean) / 2, 1.0, np.where(draw < 0.3, -1.0, 0.0))
        low, high = interval(gain, [entity], method="symmetric")
        hits.append(low > 0 or high < 0)
    assert np.mean(hits) == pytest.approx(0.8, abs=0.08)


def test_images_needed_undoes_minimum_effect():
    for plan in ({}, {"discordant": 0.3}, {"accuracy": 0.9},
                 {"discordant": 0.3, "layouts": 81, "entities": 24, "shared": (0.02, 0.01)}):  # fmt: skip
        effect = minimum_effect(2000, **plan)
        assert images_needed(effect, **plan) == pytest.approx(2000, abs=2)
        assert minimum_effect(4000, **plan) < effect < minimum_effect(2000, power=0.9, **plan)
    with pytest.raises(ValueError, match="at most 0.30"):
        images_needed(0.4, discordant=0.3)
    with pytest.raises(ValueError, match="accuracy 1, expected a share"):
        minimum_effect(100, accuracy=1)
    with pytest.raises(ValueError, match="add up to less than 1"):
        minimum_effect(100, layouts=9, shared=(1.0, 0))
    with pytest.raises(ValueError, match="Found 0 images"):
        minimum_effect(0)
    assert minimum_effect(100, entities=1) == minimum_effect(100) < minimum_effect(100, entities=3)


def test_relatedness_finds_the_planted_shares():
    shares = []
    for seed in range(30):
        rng, entity, count, layout, _ = related(24, 27, seed=seed)
        values = 0.5 * rng.standard_normal(24)[entity] + 0.3 * rng.standard_normal(27)[layout]
        shares.append(relatedness(values + rng.standard_normal(len(values)), (layout, entity)))
    total = 0.25 + 0.09 + 1
    assert np.mean(shares, axis=0) == pytest.approx([0.09 / total, 0.25 / total], abs=0.03)
    assert relatedness([1, 1, 2, 2], [["a", "a", "b", "b"]]) == (1.0,)
    with pytest.raises(ValueError, match="expected at least two"):
        relatedness([1, 2], [["a", "b"]])


# --- calibration


def sure(odds, target, said=None, **factors):
    "A prediction with these probabilities (count -> probability)."
    logprobs = [float(np.log(odds[count])) if odds.get(count) else None for count in range(21)]
    return Prediction(f"d/{target}", "m", "", said, said, target, logprobs, factors)


def test_calibration_by_hand():
    rows = [sure({2: 0.7, 3: 0.3}, 2), sure({2: 0.7, 3: 0.3}, 3), sure({4: 0.9, 5: 0.1}, 4), sure({4: 0.9, 5: 0.1}, 4)]
    rows = [replace(row, uid=f"d/{i}") for i, row in enumerate(rows)]
    row = calibration(rows, bins=2, draws=20).iloc[0]
    assert row["ece"] == pytest.approx((abs(0.7 - 0.5) + abs(0.9 - 1)) / 2)
    assert row["brier"] == pytest.approx((2 * 0.09 + 2 * 0.49 + 2 * 2 * 0.01) / 4)
    assert row["nll"] == pytest.approx(-np.log([0.7, 0.3, 0.9, 0.9]).mean())
    assert (row["accuracy"], row["free"], row["confidence"]) == (0.75, 0, pytest.approx(0.8))
    table = reliability(rows, bins=2)
    assert table["n"].tolist() == [2, 2] and table["accuracy"].tolist() == [0.5, 1]
    assert table["confidence"].to_numpy() == pytest.approx([0.7, 0.9])
    assert len(reliability(rows, bins=10)) == 2  # equal confidences share a bin


def test_chances_are_within_the_counts():
    row = sure({2: 0.02, 3: 0.06}, 3)  # 8 % of the mass is on counts, the rest on other words
    assert chances([row])[0, 3] == pytest.approx(0.75) and chances([row]).sum() == pytest.approx(1)
    assert calibration([row] * 2, draws=5)["mass"].item() == pytest.approx(0.08)
    best = restricted([row])[0]
    assert (best.count, best.count_paper, best.text, best.uid) == (3, 3, row.text, row.uid) and row.count is None
    for wrong in (replace(row, logprobs=None), replace(row, logprobs=[0.0] * 5)):
        with pytest.raises(ValueError, match="1 of 2 predictions have no 21"):
            chances([row, wrong])
    with pytest.raises(ValueError, match="outside 0..20"):
        chances([replace(row, target=21)])


def test_brier_is_scikit_learns():
    from sklearn.metrics import log_loss

    rng = np.random.default_rng(0)
    rows = []
    for i, weights in enumerate(rng.dirichlet(np.ones(21), 60)):
        rows.append(replace(sure(dict(enumerate(weights)), int(rng.integers(21))), uid=f"d/{i}"))
    row, chance = calibration(rows, draws=5).iloc[0], chances(rows)
    truth = np.array([row.target for row in rows])
    assert row["nll"] == pytest.approx(log_loss(truth, chance, labels=range(21)))
    assert row["brier"] == pytest.approx(((chance - np.eye(21)[truth]) ** 2).sum(axis=1).mean())


@pytest.mark.long
def test_coverage_of_calibration():
    "A model that is exactly as sure as it should be is seldom accused; the Brier score's interval holds the truth."
    accused, hits, worlds = 0, 0, 60
    for world in range(worlds):
        rng, entity, count, layout, hard = related(24, 9, spread=0.3, seed=world)
        confidence = rng.uniform(0.5, 1, len(hard))
        inverse = np.array([NormalDist().inv_cdf(value) for value in confidence])
        right = hard + rng.standard_normal(len(hard)) < inverse * (1 + 2 * 0.3**2) ** 0.5
        rows = []
        for i, (value, ok) in enumerate(zip(confidence, right, strict=True)):
            row = sure({2: value, 3: 1 - value} if ok else {3: value, 2: 1 - value}, 2)
            rows.append(replace(row, uid=f"d/{i}", factors={"layout": int(layout[i]), "entity": f"e{entity[i]}"}))
        row = calibration(rows, draws=60, seed=world).iloc[0]
        accused += row["p_calibrated"] < 0.05
        hits += row["brier_low"] <= 1 / 3 <= row["brier_high"]  # the mean of 2 c (1 - c) for c from 1/2 to 1
    assert accused / worlds < 0.13 and hits / worlds > 0.86


# --- curves


def test_interval_of_a_mean_is_the_interval():
    rng, entity, count, layout, hard = related(12, 27, counts=2)
    right = hard + rng.standard_normal(len(hard)) < 0
    table = tabulate(answered(entity, count, layout, right))
    right = table["_correct"].to_numpy()
    drawn = interval_of(lambda weights: np.array([np.average(right, weights=weights)]), table, draws=800)
    found, low, high = drawn[:, 0]
    ours = interval(right, [table["_layout"], table["_entity"]], table["_target"])
    assert found == right.mean() and high - low == pytest.approx(ours[1] - ours[0], rel=0.12)
    alone = interval_of(lambda weights: np.array([weights.sum()]), table.iloc[:1])
    assert np.isnan(alone[1:]).all()  # a single answer cannot show how much it varies


def lognormal(entities=24, layouts=27, seed=0, spread=0.0):
    "Answers 1.1 n^0.8 times a lognormal of spread 0.15, before rounding to thousandths of an object."
    rng, entity, count, layout, hard = related(entities, layouts, counts=9, spread=spread, seed=seed)
    answers = 1.1 * count**0.8 * np.exp(hard + 0.15 * rng.standard_normal(len(hard)))
    return pd.DataFrame({"_target": count, "_answer": answers, "_layout": layout, "_entity": entity})


@pytest.mark.long
def test_scaling_finds_the_planted_law():
    hits = []
    for seed in range(40):
        table = lognormal(12, 9, seed, 0.05)
        ends = interval_of(_power_law(table["_target"].to_numpy(float), table["_answer"].to_numpy()), table, draws=60)
        hits.append((ends[1, 0] <= 0.8 <= ends[2, 0], ends[0, 1]))
    assert np.mean(hits, axis=0) == pytest.approx([0.95, np.log(0.166)], abs=0.1)
    rows = predictions([(count, count + (i % 3 - 1)) for count in (10, 20) for i in range(30)] + [(10, 0), (20, None)])
    row = scaling(rows, draws=20).iloc[0]
    spread = (2 / 3 * 30 / 29) ** 0.5
    assert row["weber"] == pytest.approx((spread / 10 + spread / 20) / 2) and row["relative_bias"] == pytest.approx(0)
    assert row["left_out"] == pytest.approx(2 / 62) and row["n"] == 60
    for one in ("slope", "weber", "relative_bias"):
        assert row[f"{one}_low"] <= row[one] + 1e-12 and row[one] <= row[f"{one}_high"] + 1e-12
    with pytest.raises(ValueError, match="a slope needs two points"):
        scaling(predictions([(3, 3)] * 5 + [(4, 0)] * 5))


def falling(accuracy, seed, entities=12, layouts=27, spread=0.3):
    rng, entity, count, layout, hard = related(entities, layouts, counts=9, spread=spread, seed=seed)
    wanted = np.array([NormalDist().inv_cdf(accuracy(int(value))) for value in range(1, 10)])[count - 1]
    right = hard + rng.standard_normal(len(hard)) < wanted * (1 + 2 * spread**2) ** 0.5
    return answered(entity, count, layout, right)


@pytest.mark.long_after(1)
@pytest.mark.parametrize("knee", [3, 4.5, 6])
def test_break_point_is_recovered(knee):
    worlds = 12
    found = pd.concat([break_point(falling(lambda n: 0.97 - 0.16 * max(0, n - knee), seed), draws=100)
                       for seed in range(worlds)])  # fmt: skip
    assert found["break_at"].mean() == pytest.approx(knee, abs=0.2) and (found["p"] < 0.05).mean() > 0.9
    assert ((found["low"] <= knee + 0.03) & (knee - 0.03 <= found["high"])).sum() >= worlds - 2
    assert found[["before", "after"]].mean().to_numpy() == pytest.approx([0, -0.16], abs=0.03)


@pytest.mark.long
def test_no_break_is_seldom_found():
    worlds = [falling(lambda n: 0.95 - 0.09 * (n - 1), seed, 8, 9) for seed in range(40)]
    found = [break_point(rows, draws=100)["p"].item() for rows in worlds]
    assert np.mean(np.array(found) < 0.05) < 0.17


def test_break_point_of_errors_and_odd_cases():
    rows = predictions([(n, n + (2 * max(0, n - 5) if i % 2 else 0)) for n in range(1, 10) for i in range(20)])
    row = break_point(rows, measure="error").iloc[0]
    assert row["break_at"] == pytest.approx(5) and row["after"] == pytest.approx(1) and row["p"] < 0.05
    assert row["level"] == pytest.approx(0, abs=1e-9)
    row = break_point(predictions([(n, n) for n in range(1, 10) for _ in range(20)])).iloc[0]
    assert row["p"] > 0.5  # always right: no break to speak of
    row = break_point(predictions([(n, None) for n in range(1, 10) for _ in range(20)])).iloc[0]
    assert row["p"] > 0.5
    with pytest.raises(ValueError, match="Found 0 true counts"):
        break_point(predictions([(n, None) for n in range(1, 10)]), measure="error")
    with pytest.raises(KeyError, match="'error'"):
        break_point(rows, measure="errors")


def test_bias_has_an_interval():
    row = response_curve(predictions([(5, 4), (5, 5)] * 50)).iloc[0]
    assert row["bias"] == -0.5 and row["bias_low"] < -0.5 < row["bias_high"] < -0.35


# --- places


def placed(places, right, target=None, **factors):
    said = target or len(places)
    return Prediction("d", "m", "", said, said, said if right else said + 1, None, {"positions": places} | factors)


def test_position_map_by_hand():
    rows = [placed([[0, 0], [1, 1]], True), placed([[0, 0], [2, 2]], False)]
    rows = [replace(row, uid=f"d/{i}", target=2, count=2 + i) for i, row in enumerate(rows)]
    table = position_map(rows, grid=(3, 3)).set_index(["row", "column"])
    assert len(table) == 9 and table["n"].sum() == 4
    assert [table.loc[cell, "accuracy"] for cell in ((0, 0), (1, 1), (2, 2))] == [0.5, 1, 0]
    assert (table["expected"].dropna() == 0.5).all() and table.loc[(0, 0), "low"] < 0.5
    with pytest.raises(ValueError, match="outside the 2 x 2 grid"):
        position_map(rows, grid=(2, 2))
    with pytest.raises(ValueError, match="no factor 'positions'"):
        position_map(predictions([(2, 2)]))
    both = position_map(rows + [replace(row, model="n") for row in rows], by="model", grid=(3, 3))
    assert both["model"].tolist() == ["m"] * 9 + ["n"] * 9


def test_masks():
    assert edge_cells((3, 4)).sum() == 10 and edge_cells().sum() == 32 and edge_cells(rim=2).sum() == 81 - 25
    assert seam_cells((1, 1)).sum() == 0
    assert seam_cells((2, 1), (9, 9)).any(axis=1).tolist() == [False] * 4 + [True] + [False] * 4
    assert np.flatnonzero(seam_cells((1, 3))[0]).tolist() == [2, 3, 5, 6]
    assert np.flatnonzero(seam_cells((1, 2), (2, 8))[0]).tolist() == [3, 4]


def at_places(effect, seed, layouts=40, entities=6):
    "One to four objects in random cells; accuracy is 0.8, less `effect` times the share of them at the edge."
    rng, rows = np.random.default_rng(seed), []
    for layout in range(layouts):
        for count in range(1, 5):
            places = [list(map(int, divmod(cell, 9))) for cell in rng.permutation(81)[:count]]
            share = np.isin(places, (0, 8)).any(axis=1).mean()
            for entity in range(entities):
                right = rng.random() < 0.8 - 0.05 * (count - 1) - effect * share
                factors = {"positions": places, "layout": layout, "entity": f"e{entity}"}
                rows.append(Prediction(f"d/{len(rows)}", "m", "", count, count, count, None, factors))
                rows[-1] = rows[-1] if right else replace(rows[-1], count=count + 1)
    return rows


@pytest.mark.long
def test_edge_contrast_is_recovered_and_seldom_imagined():
    worlds = 25
    some, none = (pd.concat([position_contrast(at_places(effect, seed), edge_cells()) for seed in range(worlds)])
                  for effect in (0.2, 0.0))  # fmt: skip
    for table, truth in ((some, -0.2), (none, 0)):
        assert table["contrast"].mean() == pytest.approx(truth, abs=0.03)
        assert ((table["low"] <= truth) & (truth <= table["high"])).mean() > 0.85
    assert (none["p"] < 0.05).mean() < 0.15 and (some["p"] < 0.05).mean() > 0.5


# --- the error model


def erring(coefficients, seed=0, size=3000):
    "Answers whose log-odds of too few are 1, target, distractors and 'shape is star' times the coefficients."
    rng, rows = np.random.default_rng(seed), []
    for i in range(size):
        target, many, star = int(rng.integers(2, 10)), int(rng.integers(0, 10)), bool(rng.integers(2))
        odds = np.exp([np.dot(coefficients, [1, target, many, star]), -2, 0])
        said = target + int(rng.choice([-1, 1, 0], p=odds / odds.sum()))
        factors = {"distractors": many, "shape": "star" if star else "circle", "layout": i % 100}
        rows.append(Prediction(f"d/{i}", "m", "", said, said, target, None, factors))
    return rows


@pytest.mark.long
def test_error_model_recovers_what_was_planted():
    planted, hits = [-3, 0.3, 0.1, 0.8], []
    for seed in range(10):
        rows = erring(planted, seed, 2000)
        table = error_model(rows, ("target", "distractors", "shape"))
        name = next(term for term in table["term"] if term.startswith("shape"))
        sign = 1 if name == "shape: star" else -1
        found = table.set_index(["outcome", "term"])
        truth = {"target": 0.3, "distractors": 0.1, name: sign * 0.8}
        hits += [found.loc[("too few", term), "low"] <= value <= found.loc[("too few", term), "high"]
                 for term, value in truth.items()]  # fmt: skip
        hits += [found.loc[("too many", term), "low"] <= 0 <= found.loc[("too many", term), "high"] for term in truth]
    assert np.mean(hits) > 0.87
    assert table["odds"].to_numpy() == pytest.approx(np.exp(table["coefficient"])) and (table["n"] == 2000).all()


def test_error_model_knows_relatives():
    "Ten copies of each answer tell nothing new."
    rows = erring([-2, 0.2, 0, 0], size=400)
    rows = [replace(row, factors=row.factors | {"layout": i}) for i, row in enumerate(rows)]
    once, copies = (error_model(some, "target") for some in (rows, rows * 10))
    assert copies["coefficient"].to_numpy() == pytest.approx(once["coefficient"].to_numpy(), abs=1e-6)
    assert copies["error"].to_numpy() == pytest.approx(once["error"].to_numpy(), rel=0.02)


def test_error_model_refuses():
    rows = erring([-2, 0.2, 0, 0], size=300)
    with pytest.raises(ValueError, match="'family' is always 'x'"):
        error_model([replace(row, factors=row.factors | {"family": "x"}) for row in rows], ("target", "family"))
    with pytest.raises(ValueError, match="say the same twice"):
        error_model(
            [replace(row, factors=row.factors | {"double": 2 * row.target}) for row in rows], ("target", "double")
        )
    with pytest.raises(ValueError, match="separates 'too few'"):
        error_model([replace(row, count=row.target - (row.target > 5)) for row in rows], "target")
    with pytest.raises(ValueError, match="All answers are right"):
        error_model([replace(row, count=row.target) for row in rows], "target")
    with pytest.raises(ValueError, match="have no spacing"):
        error_model(rows, ("target", "spacing"))
    with pytest.raises(KeyError, match="Did you mean 'distractors'"):
        error_model(rows, ("target", "distractor"))


# --- tiny inputs: no interval, or a sentence


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("said", [2, 3, None])
def test_a_handful_of_answers_has_no_error_but_does_not_fail(count, said):
    rows = predictions([(2, said)] * count)
    found = contrast(rows, predictions([(2, 2)]))
    assert found["n_first"] == count and found["second"] == 1
    assert np.isnan(found["p"]) == np.isnan(found["low"]) == (count + 1 <= 2)
    assert compare(rows, rows)["n"].item() == equivalence(rows, rows, 0.05)["n"].item() == count
    assert {"symmetric", "t", "wilson", "none"} == {name for name in INTERVALS if len(score(rows, interval=name)) == 1}


def test_an_error_model_of_no_counts_says_so():
    with pytest.raises(TooFew, match="In none of 2 answers there is a number"):
        error_model(predictions([(1, None), (2, None)]), terms="target")


def test_a_contrast_with_nobody_left_on_one_side_is_refused():
    kinds = [[(1, "x"), (2, "y")], [(1, "z"), (3, "x")]]
    sides = [[predictions([(target, target)], entity=kind)[0] for target, kind in side] for side in kinds]
    with pytest.raises(ValueError, match="there is nothing to compare"):
        contrast(*sides)


def test_compare_of_a_model_says_what_is_expected():
    with pytest.raises(TypeError, match="expected a list of Prediction"):
        compare(object(), predictions([(1, 1)]))


def test_no_difference_of_accuracies_is_larger_than_one():
    "Student's t is not cut by itself: three answers that all flip were said to differ by 0.37 to 1.63."
    for n, kept in ((2, 0), (3, 0), (200, 2), (20, 1)):
        right, wrong = predictions([(3, 3)] * n), predictions([(3, 4)] * (n - kept) + [(3, 3)] * kept)
        for one, two in ((right, wrong), (wrong, right)):
            for found in (gain_test(paired_rows(one, two)), contrast(one, two), compare(one, two).iloc[0]):
                assert -1 <= found["low"] < found["high"] <= 1, (n, kept, dict(found))
    assert mean_test([0.99, 1.0, 0.8], within=(0, 1))["high"] == 1
    assert mean_test([10.0, 12.0, 14.0])["high"] <= 14  # of another unit


def test_a_side_of_one_answer_or_of_answers_all_alike_proves_nothing():
    alone = contrast(predictions([(3, 3)]), predictions([(3, 4)]))
    assert alone["difference"] == -1 and np.isnan([alone["low"], alone["high"], alone["p"]]).all()
    for n in (2, 3):
        assert (
            contrast(predictions([(3, 3)] * n), predictions([(3, 4)] * n))["p"] >= 0.03
        )  # it was 1e-47: rounding taken for an error
    alike = contrast(predictions([(3, 4)] * 3), predictions([(3, 4)] * 3))
    assert alike["difference"] == 0 and alike["p"] == 1 and alike["low"] < 0 < alike["high"]


@pytest.mark.parametrize("wrong", [0, 1, -1, 2, float("nan"), float("inf")])
def test_levels_and_powers_are_shares(wrong):
    for ask in (
        lambda: interval([0, 1, 1], level=wrong),
        lambda: minimum_effect(100, power=wrong),
        lambda: minimum_effect(100, level=wrong),
        lambda: images_needed(0.1, power=wrong),
        lambda: images_needed(0.1, level=wrong),
    ):
        with pytest.raises(ValueError, match="expected a share between 0 and 1"):
            ask()


@pytest.mark.parametrize("images", [0, -1, float("nan"), float("inf")])
def test_images_are_a_number_of_images(images):
    with pytest.raises(ValueError, match="expected at least one"):
        minimum_effect(images)


@pytest.mark.parametrize("lost", [None, float("nan"), float("-inf"), float("inf")])
def test_log_probabilities_that_are_none_are_not_calibrated(lost):
    rows = [replace(row, logprobs=[lost] * 21) for row in predictions([(3, 3)] * 40)]
    for ask in (calibration, reliability, restricted):
        with pytest.raises(TooFew, match="40 of 40 predictions have a log-probability that is no number"):
            ask(rows)


@pytest.mark.parametrize("score_of_each", [-1.0, 0.0, 12.0, 800.0])
def test_scores_are_no_probabilities(score_of_each):
    rows = [replace(row, logprobs=[score_of_each] * 21) for row in predictions([(3, 3)] * 40)]
    for ask in (calibration, reliability):
        with pytest.raises(TooFew, match="expected at most 1"):
            ask(rows)


def test_calibration_of_answers_all_wrong_has_an_interval():
    rows = [replace(row, logprobs=[-4.0] * 4 + [-0.1] + [-4.6] * 16) for row in predictions([(3, 4)] * 40)]
    rows = [replace(row, logprobs=[value - 1 for value in row.logprobs]) for row in rows]
    found = calibration(rows).iloc[0]
    assert found["accuracy"] == 0 and found["accuracy_low"] == 0 and 0.05 < found["accuracy_high"] < 0.2


@pytest.mark.parametrize("absurd", [101, 99_999, 10**30])
def test_absurd_answers_are_named_beside_the_mean_that_they_make(absurd):
    row = score(predictions([(3, 3)] * 5 + [(4, 5)] * 2 + [(9, absurd)] * 2 + [(9, None)])).iloc[0]
    assert row["out_of_range"] == 2 / 9 and row["median_error"] == 0 and row["mae"] > 20
    fine = score(predictions([(50, 400), (50, 50), (3, 100)])).iloc[0]
    assert fine["out_of_range"] == 0  # 400 is a bad count of 50, and still one
    assert np.isnan(score(predictions([(3, None)])).iloc[0]["out_of_range"])
