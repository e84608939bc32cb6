"""Scores, intervals and comparisons, against hand counts, scikit-learn, scipy and simulated worlds."""

import time
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from sklearn.metrics import classification_report, f1_score

from vlm_counting.core import Prediction, project_root, read_jsonl
from vlm_counting.statistics import compare, confusion, interval, per_class, response_curve, score, tabulate
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
    with pytest.raises(KeyError, match="'bootstrap'"):
        score(predictions([(1, 1)]), interval="bootstap")
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


def test_same_seed_same_interval():
    rows = crossed(entities=6, layouts=9)
    assert score(rows, seed=3).equals(score(rows, seed=3))
    assert not score(rows, seed=3).equals(score(rows, seed=4))


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


def test_single_answers_bootstrap_is_the_binomial_one():
    right = np.repeat([1, 0], [600, 400])
    low, high = interval(right, draws=4000)
    width = 2 * 1.96 * (0.6 * 0.4 / 1000) ** 0.5
    assert high - low == pytest.approx(width, rel=0.06)
    assert interval(right, clusters=[range(1000), range(1000)], draws=4000) == (low, high)


def test_whole_families_are_drawn():
    "Ten copies of each answer add no information."
    right = np.random.default_rng(0).integers(0, 2, 100)
    once = interval(right, draws=4000)
    copies = interval(np.repeat(right, 10), clusters=[np.repeat(np.arange(100), 10)], draws=4000)
    naive = interval(np.repeat(right, 10), draws=4000)
    assert copies[1] - copies[0] == pytest.approx(once[1] - once[0], rel=0.08)
    assert naive[1] - naive[0] < 0.4 * (copies[1] - copies[0])


def test_fixed_counts_do_not_vary():
    "Accuracy that depends on the count alone has no uncertainty when counts are fixed."
    right, counts = np.repeat([1, 0], 50), np.repeat([1, 2], 50)
    assert interval(right, strata=counts) == (0.5, 0.5)
    low, high = interval(right)
    assert high - low > 0.15


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
    assert width(rows, draws=4000) == pytest.approx(width(half, draws=4000), rel=0.08)
    assert width(alone, draws=4000) == pytest.approx(width(rows, draws=4000) / 2**0.5, rel=0.08)
    other = [replace(row, uid=f"x{row.uid}", factors=row.factors | {"family": "mine"}) for row in rows]
    assert tabulate([*rows, *other])["_layout"].nunique() == 400  # the same pair in another family is another picture
    gains = [replace(row, count=2) for row in rows]
    both, single = (compare(side, [gains[i] for i in range(0, len(gains), step)], draws=4000).iloc[0]
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
            low, high = interval(right, clusters, draws=300)
            hits[number] += low <= 0.65 <= high
    assert hits[0] / worlds < 0.65
    assert 0.9 <= hits[1] / worlds <= 0.99


def test_full_run_takes_seconds():
    rows = crossed()
    assert len(rows) == 17_496
    start = time.perf_counter()
    score(rows, by="target", draws=2000)
    score(rows, draws=2000)
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


def test_response_curve():
    table = response_curve(predictions([(2, 1), (2, 3), (2, None), (5, None)])).set_index("target")
    assert (table.loc[2, "n"], table.loc[2, "parsed"], table.loc[2, "mean"]) == (3, 2, 2)
    assert table.loc[2, "sd"] == pytest.approx(2**0.5) and table.loc[2, "variation"] == pytest.approx(2**0.5 / 2)
    assert table.loc[5, "parsed"] == 0 and np.isnan(table.loc[5, ["mean", "sd", "median"]].astype(float)).all()
