"Guards for `figures`: what a figure shows is what the table says, nothing is cut off, bad tables are refused."

import dataclasses
import subprocess
import sys
import time
from functools import cache
from io import BytesIO

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from vlm_counting import figures
from vlm_counting.core import Prediction, Sample
from vlm_counting.statistics import confusion, per_class, score

COLOURS, SHAPES = ("red", "green", "blue", "magenta", "yellow", "cyan"), ("square", "circle", "triangle", "star")


def count_rows(models=("one", "two")) -> pd.DataFrame:
    rows = [
        {
            "model": model,
            "target": target,
            "n": 80 + target,
            "accuracy": 1 - 0.09 * target - 0.05 * m,
            "f1": 0.1 * target,
        }
        for m, model in enumerate(models)
        for target in range(1, 10)
    ]
    table = pd.DataFrame(rows)
    return table.assign(low=table["accuracy"] - 0.04, high=table["accuracy"] + 0.02, support=table["n"])


def entity_rows() -> pd.DataFrame:
    rows = [{"colour": colour, "shape": shape} for shape in SHAPES for colour in COLOURS]
    accuracy = np.linspace(0.3, 0.9, len(rows))
    return pd.DataFrame(rows).assign(n=729, accuracy=accuracy, low=accuracy - 0.03, high=accuracy + 0.05)


def layer_rows(layers=29) -> pd.DataFrame:
    "Four poolings and the lens, with controls, as `probe_layers` and `controls` have them."
    poolings = ("mean", "last", "image_mean", "image_last")
    rows = [
        {"control": control, "layer": layer, "pooling": pooling, "accuracy": top - 0.05 * i + 0.003 * layer}
        for control, top in (("none", 0.9), ("shuffled", 0.2), ("control task", 0.3), ("untrained", 0.6))
        for i, pooling in enumerate(poolings)
        for layer in range(layers)
    ]
    rows += [{"control": name, "layer": None, "pooling": None, "accuracy": 0.5} for name in ("lit area", "pixels")]
    table = pd.DataFrame(rows).assign(n=17_496, std=0.01).astype({"layer": "Int64"})
    return table.assign(low=table["accuracy"] - 0.02, high=table["accuracy"] + 0.01)


def lens_rows() -> pd.DataFrame:
    table = pd.DataFrame([{"layer": layer, "norm": norm} for layer in range(29) for norm in (False, True)])
    return table.assign(n=216, accuracy=table["layer"] / 28 * table["norm"], probability=table["layer"] / 40)


def gap_rows() -> pd.DataFrame:
    table = pd.DataFrame({"target": range(1, 10), "n": 24}).assign(
        first=lambda rows: 1 - rows["target"] / 10, second=0.8
    )
    table["difference"] = table["second"] - table["first"]
    return table.assign(low=table["difference"] - 0.1, high=table["difference"] + 0.05)


def wording_rows() -> pd.DataFrame:
    "One wording of a word, one longer than a line."
    long = "Please count the {label}s, all of them, and costs $5 $6"
    table = pd.DataFrame({"wording": ["How many?", long, "Count."], "n": 90})
    return table.assign(accuracy=[0.8, 0.4, 0.7], low=[0.7, 0.3, 0.6], high=[0.9, 0.5, 0.8])


def crossed(extra=()) -> pd.DataFrame:
    table = pd.DataFrame(np.diag([10, 8, 6]) + np.eye(3, k=-1, dtype=int), index=[2, 3, 4], columns=[2, 3, 4])
    for answer in extra:
        table[answer] = [0, 0, 1]
    return table.assign(unparsed=[0, 2, 0])


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def learning_rows() -> pd.DataFrame:
    rows = [{"head": head, "epoch": epoch} for head in ("trained", "bias only") for epoch in range(1, 51)]
    table = pd.DataFrame(rows).assign(n_train=1080, n_valid=720)
    return table.assign(train_nll=3 / table["epoch"], valid_nll=4 / table["epoch"], valid_accuracy=table["epoch"] / 60)


def improvement_rows() -> pd.DataFrame:
    rows = [{"measure": measure, "target": target} for measure in ("f1", "mae") for target in range(1, 10)]
    table = pd.DataFrame(rows).assign(n=48, before=0.05 * pd.DataFrame(rows)["target"], gain=-0.04)
    return table.assign(low=-0.1, high=0.02)


def twin_rows() -> pd.DataFrame:
    "Five planted faults at three doses and healthy twins, with evidence, a verdict and the paper's rule."
    places = [
        ("none", 0),
        *((fault, step) for fault in ("format", "route", "bind", "see", "say") for step in (1, 2, 3)),
    ]
    rows = [
        {
            "twin": f"{architecture}-{fault}-{step}-{seed}",
            "fault": fault,
            "step": step,
            "loss": step / 6,
            "accuracy": 0.9 - step / 6 + 0.02 * seed,
            "probe_last": 0.9 - (fault == "see") * step / 6 - 0.01 * seed,
            "other_count": np.nan if architecture == "b" else 0.05 + (fault == "bind") * step / 10,
            "a_rather_long_name_of_evidence": 0.5,
            "verdict": "withheld" if step == 1 and seed else fault,
            "paper": "none" if fault == "none" else "see" if fault == "see" else "say",
        }
        for architecture in "ab"
        for fault, step in places
        for seed in range(3)
    ]
    return pd.DataFrame(rows)


def patch_rows(layers=7) -> pd.DataFrame:
    table = pd.DataFrame(
        [{"layer": layer, "position": place} for layer in range(layers) for place in ("all", "last", "image", "answer")]
    )
    effect = np.linspace(-0.1, 1.1, len(table))
    return table.assign(pairs=72, effect=effect, null=0.03, low=effect - 0.1, high=effect + 0.1, moved=0.5)


def group_rows() -> pd.DataFrame:
    rows = [{"model": model, "group": group} for model in ("one", "two", "three") for group in SHAPES]
    accuracy = np.linspace(0.2, 0.98, len(rows))
    return pd.DataFrame(rows).assign(n=4374, accuracy=accuracy, low=accuracy - 0.1, high=accuracy + 0.06)


def distractor_rows() -> pd.DataFrame:
    "The baseline and four kinds of distractors, one, five or nine of them; not in this order."
    rows = [{"distractors": 0, "distractor": ""}] + [
        {"distractors": number, "distractor": kind}
        for kind in ("small_red_star", "large_red_star", "large_red_circle", "large_magenta_star")
        for number in (9, 1, 5)
    ]
    accuracy = 0.8 - 0.04 * pd.DataFrame(rows)["distractors"]
    return pd.DataFrame(rows).assign(n=2187, accuracy=accuracy, low=accuracy - 0.05, high=accuracy + 0.02)


def response_rows() -> pd.DataFrame:
    rows = [{"model": model, "target": target} for model in ("one", "two") for target in range(1, 10)]
    table = pd.DataFrame(rows).assign(parsed=48, sd=0.7)
    table["bias"] = np.where(table["model"] == "one", 0.1, -0.2) * table["target"]
    table["mean"] = table["target"] + table["bias"]
    ends = {"q25": table["mean"] - 0.5, "q75": table["mean"] + 1}
    return table.assign(**ends, bias_low=table["bias"] - 0.3, bias_high=table["bias"] + 0.2)


def break_rows() -> pd.DataFrame:
    table = pd.DataFrame({"model": ["one", "two"], "break_at": [4.0, 5.5], "low": [3.5, 4], "high": [4.2, 7]})
    return table.assign(level=[0.95, 0.6], before=[0, -0.05], after=[-0.1, -0.2], p=[0.0004, 0.31])


def position_rows() -> pd.DataFrame:
    "A 9 x 9 map: 20 points above what is expected on the left, 20 below on the right, as expected between."
    table = pd.DataFrame([{"row": row, "column": column} for row in range(9) for column in range(9)])
    accuracy = 0.5 + 0.2 * (table["column"] < 3) - 0.2 * (table["column"] > 5)
    table = table.assign(n=60 + table["row"], accuracy=accuracy, low=accuracy - 0.1, high=accuracy + 0.1, expected=0.5)
    table.loc[0, "n"] = 0
    table.loc[0, ["accuracy", "low", "high", "expected"]] = np.nan
    return table


def reliability_rows() -> pd.DataFrame:
    rows = [{"model": model, "bin": number} for model in ("one", "two") for number in range(10)]
    table = pd.DataFrame(rows).assign(n=lambda rows: 40 + rows["bin"], confidence=lambda rows: 0.09 * rows["bin"] + 0.1)
    accuracy = table["confidence"] - np.where(table["model"] == "one", 0, 0.1)
    return table.assign(accuracy=accuracy, low=accuracy - 0.1, high=accuracy + 0.05)


def difference_rows() -> pd.DataFrame:
    "Two groups of comparisons, one of them not measured, one label of a whole sentence."
    table = pd.DataFrame({"group": ["clustered - scattered"] * 3 + ["closed - open"] * 2})
    sentence = "A conclusion that takes a whole sentence to say, and more than two lines to print"
    table["label"] = ["one", "two", sentence, "one", "two"]
    table["difference"] = [0.1, -0.02, np.nan, 0.3, -0.25]
    verdict = ["survives", "undecided", "not measured", "survives", "does not survive"]
    ends = {"low": table["difference"] - 0.05, "high": table["difference"] + 0.04}
    return table.assign(n=[17_496, 17_496, np.nan, 392, 392], verdict=verdict, **ends)


def regression_rows() -> pd.DataFrame:
    "Six comparisons inside, two outside, one without an interval, one not published, three not run."
    verdicts = ["inside interval"] * 6 + ["outside"] * 2 + ["no interval", "not published"] + ["not run"] * 3
    table = pd.DataFrame({"model": "m", "experiment": "balanced", "dataset": "balanced", "verdict": verdicts})
    table["published"] = np.linspace(0.1, 0.9, len(table))
    table["ours"] = table["published"] + np.where(table["verdict"] == "outside", 0.2, 0.02)
    table = table.assign(entity=table.index.astype(str), n=729, low=table["ours"] - 0.02, high=table["ours"] + 0.03)
    table["difference_low"], table["difference_high"] = table["ours"] - table["published"] - 0.05, 0.3
    table.loc[table["verdict"] == "no interval", ["low", "high", "difference_low", "difference_high"]] = np.nan
    table.loc[table["verdict"] == "not published", "published"] = np.nan
    table.loc[table["verdict"] == "not run", ["n", "ours", "low", "high"]] = np.nan
    return table


def chain_rows():
    "A number that is lost between image tokens and last state."
    places = ["first", "halfway", "last", "own_words", "among", "said"]
    rows = pd.DataFrame({"place": places, "n": 80, "all": [0.97, 0.96, 0.7, 0.5, 0.55, 0.5]})
    rows["of_wrong"] = [0.95, 0.94, 0.4, 0.1, 0.1, 0.0]
    return rows.assign(low=(rows["of_wrong"] - 0.08).clip(lower=0), high=rows["of_wrong"] + 0.05)


DRAWN = {
    "accuracy_per_count": lambda: figures.plot_accuracy_per_count(count_rows(), chance=1 / 9),
    "f1_per_count": lambda: figures.plot_f1_per_count(count_rows(), chance=1 / 9),
    "confusion": lambda: figures.plot_confusion(crossed((0, 1000))),
    "answers": lambda: figures.plot_answers(crossed((0, 1000))),
    "entities": lambda: figures.plot_entities(entity_rows()),
    "entity_grid": lambda: figures.plot_entity_grid(entity_rows()),
    "layer_map": lambda: figures.plot_layer_map(figures.true_labels(layer_rows())),
    "layers": lambda: figures.plot_layers(layer_rows(), chance=1 / 9),
    "lens_curves": lambda: figures.plot_lens_curves(lens_rows(), chance=1 / 9),
    "gap": lambda: figures.plot_gap(gap_rows()),
    "wordings": lambda: figures.plot_wordings(wording_rows()),
    "learning": lambda: figures.plot_learning(learning_rows())[0],
    "improvement": lambda: figures.plot_improvement(improvement_rows())[0],
    "evidence": lambda: figures.plot_evidence(twin_rows()),
    "dose_response": lambda: figures.plot_dose_response(twin_rows(), "other_count"),
    "verdicts": lambda: figures.plot_verdicts(twin_rows()),
    "hits": lambda: figures.plot_hits(twin_rows()),
    "patching": lambda: figures.plot_patching(patch_rows()),
    "chain": lambda: figures.plot_chain(chain_rows()),
    "groups": lambda: figures.plot_groups(group_rows()),
    "distractors": lambda: figures.plot_distractors(distractor_rows()),
    "response": lambda: figures.plot_response(response_rows())[0],
    "break": lambda: figures.plot_break(count_rows(), break_rows()),
    "position_map": lambda: figures.plot_position_map(position_rows(), seams=(2, 2)),
    "reliability": lambda: figures.plot_reliability(reliability_rows(), ece={"one": 0.01, "two": 0.1}),
    "differences": lambda: figures.plot_differences(difference_rows()),
    "regression": lambda: figures.plot_regression(regression_rows()),
}
UNITS = dict.fromkeys(DRAWN, "questions") | dict.fromkeys(("evidence", "dose_response", "verdicts", "hits"), "models")
UNITS |= {"patching": "pairs", "chain": "wrong answers"}  # what n counts in each figure


@cache
def drawn(name: str):
    "A figure that several tests look at."
    return DRAWN[name]()


def test_every_figure_is_tested_here():
    assert set(DRAWN) | {"wrong_answers"} == set(figures.FIGURES)


@pytest.mark.long_after(1)
@pytest.mark.parametrize("name", DRAWN)
def test_nothing_is_cut_off_and_n_is_stated(name):
    "Each text lies on the sheet, tick labels of an axis do not touch, the caption says n, axes are labelled in words."
    ax = drawn(name)
    figure = ax.figure
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, sheet = canvas.get_renderer(), figure.bbox
    for text in figure.findobj(Text):
        box = text.get_window_extent(renderer)
        if text.get_visible() and text.get_text() and box.width and text.axes is not None:
            assert box.x0 >= sheet.x0 - 1 and box.x1 <= sheet.x1 + 1, text.get_text()
            assert box.y0 >= sheet.y0 - 1 and box.y1 <= sheet.y1 + 1, text.get_text()
    for axis in (ax.xaxis, ax.yaxis):
        boxes = [label.get_window_extent(renderer) for label in axis.get_ticklabels() if label.get_text()]
        assert not any(one.overlaps(two) for one, two in zip(boxes, boxes[1:], strict=False))
    assert any("n = " in text and UNITS[name] in text for text in texts(figure))
    assert len(ax.get_xlabel()) > 4 and len(ax.get_ylabel()) > 4 and ax.get_title(loc="left")
    assert figure.get_facecolor() == (1, 1, 1, 1)


FORMULA = r"$\frac{$ <i>&"  # matplotlib takes what stands between two dollar signs for a formula; this one is none


@pytest.mark.parametrize("name", DRAWN)
def test_no_text_is_taken_for_a_formula(name):
    assert not [text.get_text() for text in drawn(name).figure.findobj(Text) if text.get_parse_math()]


@pytest.mark.long
def test_names_that_look_like_formulas_are_drawn_as_they_stand(asked, tmp_path):
    "Names of models, groups and sets, in title, legend, labels of an axis and suptitle; on axes of somebody else too."
    rows, groups = count_rows((FORMULA, "two")), group_rows().replace({"star": FORMULA, "one": FORMULA})
    elsewhere = Figure().subplots()
    sheets = [
        figures.plot_accuracy_per_count(rows, title=FORMULA).figure,
        figures.plot_accuracy_per_count(rows, elsewhere, title=FORMULA).figure,
        figures.plot_groups(groups, title=FORMULA, label=FORMULA).figure,
        figures.plot_groups(groups, Figure().subplots(), title=FORMULA, label=FORMULA).figure,
        figures.wrong_answers(asked[0], [dataclasses.replace(row, model=FORMULA) for row in asked[1]], count=2),
    ]
    for number, figure in enumerate(sheets):  # every kind of file, of one sheet
        figures.save_figure(figure, tmp_path / str(number), ("svg",) if number else ("png", "svg", "pdf"))
        assert FORMULA in (tmp_path / f"{number}.svg").read_text().replace("&lt;", "<").replace("&gt;", ">").replace(
            "&amp;", "&"
        )


@pytest.mark.parametrize("name", DRAWN)
def test_table_and_settings_of_the_caller_are_untouched(name, monkeypatch):
    before, made = dict(matplotlib.rcParams), []
    for maker, function in list(globals().items()):
        if not (maker.endswith("_rows") or maker == "crossed"):
            continue

        def recorded(*arguments, make=function):
            table = make(*arguments)
            made.append((table, table.copy()))
            return table

        monkeypatch.setitem(globals(), maker, recorded)
    DRAWN[name]()
    assert made
    for table, copy in made:
        pd.testing.assert_frame_equal(table, copy)
    assert dict(matplotlib.rcParams) == before


def test_accuracy_and_interval_are_those_of_the_table():
    ax = figures.plot_accuracy_per_count(count_rows(), chance=1 / 9)
    first, second = ax.containers
    rows = count_rows().query("model == 'two'")
    line, _, (bars,) = second.lines
    assert np.allclose(line.get_ydata(), 100 * rows["accuracy"])
    assert np.allclose([path[:, 1] for path in bars.get_segments()], 100 * rows[["low", "high"]])
    assert first.lines[0].get_color() != line.get_color()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "two", "chance (11.1 %)"]
    assert any("n = 81 to 89 questions" in text for text in texts(ax.figure))


def test_order_of_rows_does_not_matter():
    shuffled = count_rows(("one",)).sample(frac=1, random_state=0)
    line = figures.plot_accuracy_per_count(shuffled).containers[0].lines[0]
    assert list(line.get_xdata()) == list(range(1, 10)) and np.all(np.diff(line.get_ydata()) < 0)


def test_missing_intervals_are_said():
    ax = figures.plot_accuracy_per_count(count_rows().assign(low=np.nan, high=np.nan))
    assert any("No interval" in text for text in texts(ax.figure))


def test_f1_bars():
    ax = figures.plot_f1_per_count(count_rows(("one",)))
    assert np.allclose([bar.get_height() for bar in ax.patches], 10 * np.arange(1, 10))


def caption(ax) -> str:
    "What stands under the title, in one line."
    return next(text.get_text() for text in reversed(ax.texts) if "n = " in text.get_text()).replace("\n", " ")


def segments(container, axis=1) -> np.ndarray:  # (points, 2)
    "The ends of the bars of an errorbar; of those that are drawn."
    ends = [path[:, axis] for path in container.lines[2][0].get_segments() if path.ndim == 2]
    return np.array([pair for pair in ends if len(pair) and np.isfinite(pair).all()])


def test_f1_bars_with_intervals_of_the_table():
    rows = count_rows(("CLIP", "CoCa", "mean")).assign(
        low=lambda rows: rows["f1"] - 0.1, high=lambda rows: rows["f1"] + 0.2
    )
    rows.loc[rows["model"] != "mean", ["low", "high"]] = np.nan
    ax = figures.plot_f1_per_count(rows, bars="one standard deviation")
    bars = [container for container in ax.containers if hasattr(container, "has_yerr")]
    assert np.allclose(segments(bars[2]), 10 * np.arange(1, 10)[:, None] + [-10, 20]) and not len(segments(bars[0]))
    assert "Bars: one standard deviation." in caption(ax) and ax.get_ylim()[1] > 110
    assert len({patch.get_hatch() for patch in ax.patches}) == 3  # a grey print tells them apart
    assert "no interval" in caption(figures.plot_f1_per_count(count_rows().drop(columns=["low", "high"])))


def test_groups_stand_in_the_order_of_the_table():
    ax = figures.plot_groups(group_rows(), chance=0.125)
    assert [label.get_text() for label in ax.get_xticklabels()] == list(SHAPES)
    assert np.allclose([bar.get_height() for bar in ax.patches], 100 * group_rows()["accuracy"])
    assert ax.get_legend().get_texts()[-1].get_text() == "chance (12.5 %)"
    few = figures.plot_groups(group_rows().query("model == 'one'"))
    assert {"20", "27", "34", "41"} <= set(texts(few.figure))


def test_distractors_start_at_the_baseline():
    ax = figures.plot_distractors(distractor_rows())
    lines = {container.get_label(): container.lines[0] for container in ax.containers}
    assert set(lines) - {"_nolegend_"} >= {"small red star", "large magenta star"}
    line = lines["large red circle"]
    assert np.allclose(line.get_ydata(), [80, 76, 60, 44]) and np.allclose(line.get_xdata(), [0, 1, 5, 9], atol=0.3)
    assert ax.lines[0].get_ydata()[0] == pytest.approx(80) and "none (80.0 %)" in texts(ax.figure)


def test_response_has_means_bands_and_bias():
    rows = response_rows().sample(frac=1, random_state=0)
    for band, reach in (("quartiles", (0.5, 1)), ("sd", (0.7, 0.7))):
        answer, bias = figures.plot_response(rows, band=band)
        assert np.allclose(answer.lines[0].get_ydata(), 1.1 * np.arange(1, 10))  # colours go in order of appearance
        outline = answer.collections[0].get_paths()[0].vertices[:, 1]
        assert (outline.min(), outline.max()) == pytest.approx((1.1 - reach[0], 9.9 + reach[1]))
        one = next(container for container in bias.containers if container.get_label() == "one")
        assert np.allclose(segments(one), 0.1 * np.arange(1, 10)[:, None] + [-0.3, 0.2])
        assert "n = 48 questions with a number" in caption(answer)


def test_one_wild_answer_does_not_flatten_the_response():
    rows = response_rows()
    rows.loc[3, ["mean", "bias", "bias_high", "q75"]] = 900
    answer, bias = figures.plot_response(rows)
    assert answer.get_ylim()[1] == 18 and bias.get_ylim()[1] == 9
    assert "Cut at -1 and 18." in caption(answer) and "Cut at -9 and 9." in caption(bias)
    assert "Cut" not in caption(figures.plot_response(response_rows())[0])


def test_break_joins_two_pieces_over_the_points():
    rows = count_rows().assign(mae=lambda rows: rows["target"] / 10)
    ax = figures.plot_break(rows, break_rows().iloc[::-1])
    first, second = (line for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 3)
    assert list(first.get_xdata()) == [1, 4, 9] and np.allclose(first.get_ydata(), [95, 95, 45])
    assert list(second.get_xdata()) == [1, 5.5, 9] and np.allclose(second.get_ydata(), [82.5, 60, -10])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["one\nbreak 4.0 [3.5, 4.2]\np < 0.001", "two\nbreak 5.5 [4.0, 7.0]\np = 0.310"]
    error = figures.plot_break(rows, break_rows(), measure="error")
    assert np.allclose(error.containers[0].lines[0].get_ydata(), np.arange(1, 10) / 10)
    assert not len(segments(error.containers[0])) and "No bars." in caption(error)


def test_position_map_is_centred_on_what_is_expected():
    ax = figures.plot_position_map(position_rows(), seams=(3, 2))
    cells, fills = cells_of(ax), fills_of(ax)
    assert (cells[1, 0], cells[4, 0], cells[8, 8]) == ("+20", "0", "-20") and (0, 0) not in cells
    red, _, blue, _ = np.subtract(fills[8, 8], fills[1, 0])
    assert red > 0 > blue and fills[4, 4][:3] == pytest.approx(matplotlib.colormaps["RdBu"](0.5)[:3], abs=0.01)
    hatched = [patch for patch in ax.patches if patch.get_hatch()]
    assert [(patch.get_x(), patch.get_y()) for patch in hatched] == [(0, 0)]
    framed = {(patch.get_x(), patch.get_y()) for patch in ax.patches if not patch.get_fill()}
    assert framed == {(x, y) for x in (0, 1, 2, 6, 7, 8) for y in range(9)} - {(0, 0)}
    assert "53 of 80 cells; by chance 4" in caption(ax) and "Hatched" in caption(ax) and "n = 60 to 68" in caption(ax)
    down = [line.get_ydata()[0] for line in ax.lines if line.get_ydata()[0] == line.get_ydata()[1]]
    assert down == [3, 6] and 4.5 in [line.get_xdata()[0] for line in ax.lines]
    lighter = fills_of(figures.plot_position_map(position_rows(), limit=40))
    assert min(lighter[8, 8][:3]) > min(fills[8, 8][:3])


def test_a_large_position_map_has_no_numbers():
    table = pd.DataFrame([{"row": row, "column": column} for row in range(13) for column in range(13)])
    table = table.assign(n=9, accuracy=0.5, low=0.1, high=0.9, expected=0.5)
    assert not cells_of(figures.plot_position_map(table))


def test_reliability_draws_each_bin_and_says_the_error():
    ax = figures.plot_reliability(reliability_rows().sample(frac=1, random_state=1), ece=None)
    shown = {cloud.get_label(): cloud for cloud in ax.collections if cloud.get_label() in ("one", "two")}
    rows = reliability_rows().query("model == 'two'")
    assert np.allclose(shown["two"].get_offsets(), 100 * rows[["confidence", "accuracy"]])
    assert np.allclose(shown["two"].get_sizes() / shown["two"].get_sizes()[-1], rows["n"] / 49)
    assert "calibration error" not in caption(ax)
    assert "error: one 0.010, two 0.100." in caption(DRAWN["reliability"]())
    assert "error: 0.031." in caption(figures.plot_reliability(reliability_rows(), ece=0.0312))


def test_differences_are_those_of_the_table_from_top_to_bottom():
    ax, rows = figures.plot_differences(difference_rows()), difference_rows()
    survives = ax.containers[0]
    assert np.allclose(segments(survives, axis=0), 100 * rows.loc[[0, 3], ["low", "high"]])
    assert list(ax.get_yticks()) == sorted(ax.get_yticks()) and ax.yaxis_inverted()
    shown = [text.get_text() for text in ax.texts]
    assert "+10.0 [+5.0, +14.0]\nn = 17,496, survives" in shown and "not measured, not measured" not in shown
    assert "not measured" in shown and "Not measured: 1." in caption(ax)
    assert {"clustered - scattered", "closed - open"} <= set(shown)
    assert "n = 0 questions" in caption(figures.plot_differences(rows.iloc[[2]]))
    few = rows.query("group == 'closed - open'").drop(columns=["group", "verdict"])
    plain = figures.plot_differences(few, scale=1, unit="pictures")
    assert "+0.30 [+0.25, +0.34], n = 392" in [text.get_text() for text in plain.texts]
    assert "n = 392 pictures a row" in caption(plain)


def test_regression_bars_cross_the_diagonal_just_where_the_verdict_says_so():
    ax, rows = figures.plot_regression(regression_rows()), regression_rows()
    shown = {container.get_label(): container for container in ax.containers}
    assert list(shown) == ["inside interval (6)", "outside (2)", "no interval (1)"]
    inside = rows.query("verdict == 'inside interval'")
    assert np.allclose(shown["inside interval (6)"].lines[0].get_ydata(), 100 * inside["ours"])
    low, high = segments(shown["inside interval (6)"]).T
    assert np.allclose(low, 100 * inside["ours"] - 5) and np.allclose(high, 100 * inside["published"] + 30)
    tally = "6 inside, 2 outside; by chance 0.4 would be. Not drawn: 3 without ours. Not drawn: 1 not published."
    assert tally in caption(ax) and "n = 729 questions a point" in caption(ax)
    own = figures.plot_regression(
        rows.drop(columns=["difference_low", "difference_high"]), bars="95 % interval of ours"
    )
    assert np.allclose(segments(own.containers[0]), 100 * inside[["low", "high"]])


def test_nothing_run_yet_is_a_figure_too():
    assert "Not drawn: 3 without ours." in caption(
        figures.plot_regression(regression_rows().query("verdict == 'not run'"))
    )


def test_confusion_shows_row_percentages_and_frames_the_diagonal():
    ax = figures.plot_confusion(crossed((0, 1000)))
    shown = texts(ax.figure)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["< 2", "2", "3", "4", "> 4", "no\nnumber"]
    assert {"100", "73", "9", "18", "67", "11"} <= set(shown)  # 10/10, 8/11, 1/11, 2/11, 6/9, 1/9
    assert {"n = 10", "n = 11", "n = 9"} <= set(shown)
    frames = [patch for patch in ax.patches if not patch.get_fill()]
    assert [(patch.get_x(), patch.get_y()) for patch in frames] == [(1, 0), (2, 1), (3, 2)]


def test_answers_leave_out_what_is_no_number_or_far_too_large():
    ax = figures.plot_answers(crossed((1000,)))
    assert ax.get_ylim()[1] < 10 and "Not drawn: 3 without" in " ".join(texts(ax.figure)).replace("\n", " ")
    mean = next(line for line in ax.lines if line.get_label() == "mean of those drawn").get_ydata()
    assert np.allclose(mean, [2, (8 * 3 + 2) / 9, (6 * 4 + 3) / 7])


def test_confusion_of_shares_is_refused():
    table = crossed()
    with pytest.raises(ValueError, match="not normalised"):
        figures.plot_confusion(table.div(table.sum(axis=1), axis=0))


def test_layer_map_is_in_the_papers_order_with_the_encoder_alone():
    rows = figures.true_labels(layer_rows(3))
    ax = figures.plot_layer_map(
        pd.concat([rows, rows.query("pooling == 'mean'").assign(pooling="lens", accuracy=0.25)])
    )
    names = [label.get_text().replace("\n", " ") for label in ax.get_xticklabels()]
    assert names == ["encoder", "image mean", "image last", "all mean", "last token", "lens"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["2", "1", "0"]
    cells = {tuple(int(place) for place in t.get_position()): t.get_text() for t in ax.texts if t.get_text().isdigit()}
    assert cells[0, 2] == "80" and (0, 0) not in cells and (1, 2) not in cells and cells[5, 0] == "25"
    assert cells[1, 0] == "81" and cells[3, 0] == "91"  # image mean and all mean of the deepest layer


def test_layers_draw_curves_bands_and_lines():
    rows = layer_rows(5)
    ax = figures.plot_layers(rows, chance=1 / 9)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    curves = ["image mean", "image last", "all mean", "last token"]
    assert labels[-1] == "chance (11.1 %)" and set(labels[:-1]) == set(curves) | set(rows["control"]) - {"none"}
    shown = {container.get_label(): container for container in ax.containers}
    assert list(shown) == curves
    line, _, (bars,) = shown["last token"].lines
    mine = rows.query("control == 'none' and pooling == 'last'")
    assert np.allclose(line.get_ydata(), 100 * mine["accuracy"])
    assert np.allclose([path[:, 1] for path in bars.get_segments()], 100 * mine[["low", "high"]].astype(float))
    band = next(patch for patch in ax.collections if patch.get_label() == "untrained").get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((45 - 0.6, 61.2 + 0.6))
    published = figures.true_labels(rows).drop(columns=["low", "high", "control"])
    assert any("std over folds" in text for text in texts(figures.plot_layers(published).figure))


def test_lens_curves_tell_norm_from_no_norm():
    lines = {line.get_label().replace("\n", " "): line for line in figures.plot_lens_curves(lens_rows()).lines}
    assert np.allclose(lines["without norm: its word is right"].get_ydata(), 0)
    assert np.allclose(lines["with norm: its word is right"].get_ydata(), np.linspace(0, 100, 29))


def test_gap_is_the_difference_of_the_table():
    ax = figures.plot_gap(gap_rows())
    assert np.allclose([bar.get_height() for bar in ax.patches], 100 * gap_rows()["difference"])
    assert any("probe minus answer" in text.replace("\n", " ") for text in texts(ax.figure))


def cells_of(ax) -> dict[tuple[float, float], str]:
    "What is written in the cells of a heat map, by the corner of the cell."
    inside = [text for text in ax.texts if text.get_text() and 0 <= text.get_position()[0] <= ax.get_xlim()[1]]
    inside = [text for text in inside if text.get_position()[1] % 1 == 0.5 and text.get_ha() == "center"]
    return {tuple(int(place) for place in text.get_position()): text.get_text() for text in reversed(inside)}


def fills_of(ax) -> dict[tuple[int, int], tuple]:
    return {(int(cell.get_x()), int(cell.get_y())): cell.get_facecolor() for cell in ax.patches if cell.get_fill()}


def test_evidence_is_the_mean_of_the_table_coloured_by_its_distance_from_healthy_twins():
    rows, faults = twin_rows(), ["none", "say", "see", "bind", "route", "format"]
    evidence = ["accuracy", "probe_last", "other_count", "a_rather_long_name_of_evidence"]
    assert figures._evidence_columns(rows) == evidence
    ax = figures.plot_evidence(rows, names={"probe_last": "probe"})
    assert [label.get_text().split("\n")[0] for label in ax.get_xticklabels()] == faults
    assert [label.get_text() for label in ax.get_yticklabels()][:3] == ["accuracy", "probe", "other count"]
    cells, fills = cells_of(ax), fills_of(ax)
    means = rows.groupby("fault")[evidence].mean()
    for row, name in enumerate(evidence):
        assert [cells[column, row] for column in range(6)] == [f"{means.loc[fault, name]:.2f}" for fault in faults]
    assert fills[2, 1] != fills[1, 1] == fills[0, 1] == fills[0, 3] == fills[3, 3]  # only `see` moves the probe
    assert fills[2, 1][0] > fills[2, 1][2] and fills[3, 2][2] > fills[3, 2][0]  # below: red; above: blue
    assert list(cells_of(figures.plot_evidence(rows, evidence=["other_count"])).values()).count("0.05") == 5
    lacking = rows.assign(probe_last=rows["probe_last"].where(rows["fault"] != "see"))
    assert (2, 1) not in cells_of(figures.plot_evidence(lacking))


def test_colour_of_evidence_ends_at_two_standard_deviations():
    far = pd.DataFrame({"twin": range(40), "fault": ["none"] * 20 + ["say"] * 19 + ["see"], "lens": [0.0] * 39 + [1.0]})
    further = far.assign(lens=far["lens"] * 100)
    for table in (far, further):  # 'see' lies 6.3 standard deviations away
        ends = fills_of(figures.plot_evidence(table))[2, 0]
        assert ends == matplotlib.colormaps["RdBu"](0.9)


def test_dose_response_starts_healthy_and_has_the_means_and_bars_of_the_table():
    rows = twin_rows().sample(frac=1, random_state=0)
    ax = figures.plot_dose_response(rows, "accuracy")
    lines = {container.get_label(): container for container in ax.containers if container.get_label()[0] != "_"}
    assert list(lines) == ["say", "see", "bind", "route", "format"]
    line, _, (bars,) = lines["bind"].lines
    values = [0.92, *(0.92 - step / 6 for step in (1, 2, 3))]
    assert np.allclose(line.get_ydata(), values) and np.allclose(np.round(line.get_xdata()), range(4))
    reach = 2.570582 * np.std([0, 0.02, 0.04] * 2, ddof=1) / np.sqrt(6)  # Student, five degrees of freedom
    drawn = [path[:, 1] for path in bars.get_segments() if np.isfinite(path).all() and len(path)]
    assert np.allclose(drawn, [[value - reach, value + reach] for value in values[1:]])
    assert any("n = 6 models" in text for text in texts(ax.figure))
    partly = figures.plot_dose_response(rows, "other_count")  # half of the twins lack it
    assert any("n = 3 models" in text for text in texts(partly.figure))


def test_a_fault_keeps_its_colour_and_one_twin_alone_has_no_bar():
    rows = twin_rows()
    colour = {
        container.get_label(): container.lines[0].get_color()
        for container in figures.plot_dose_response(rows, "accuracy").containers
    }
    some = rows[rows["fault"].isin(["none", "route"]) & rows["twin"].str.match("a-.*-0$")]
    alone = figures.plot_dose_response(some, "accuracy").containers
    assert alone[0].get_label() == "route" and alone[0].lines[0].get_color() == colour["route"]
    assert not any(np.isfinite(path).all() for path in alone[0].lines[2][0].get_segments() if len(path))


def test_verdicts_are_counted_and_hits_framed():
    ax = figures.plot_verdicts(twin_rows())
    names = ["none", "say", "see", "bind", "route", "format"]
    assert [label.get_text() for label in ax.get_yticklabels()] == names
    assert [label.get_text() for label in ax.get_xticklabels()] == [*names, "withheld"]
    assert {at: word for at, word in cells_of(ax).items() if at[0] == at[1]} == {
        (i, i): "14" if i else "6" for i in range(6)
    }
    frames = [(patch.get_x(), patch.get_y()) for patch in ax.patches if not patch.get_fill()]
    assert frames == [(i, i) for i in range(6)]
    notes = [text for text in texts(ax.figure) if " of " in text and text.endswith("%")]
    assert notes == ["6 of 6 [61, 100] %"] + ["14 of 18 [55, 91] %"] * 5
    assert any("n = 96 models, 79 % named rightly" in text.replace("\n", " ") for text in texts(ax.figure))


def test_the_papers_rule_has_three_words():
    ax = figures.plot_verdicts(twin_rows(), by="paper")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["none", "say", "see"]
    assert cells_of(ax) == {(0, 0): "6", (1, 1): "18", (2, 2): "18", (1, 3): "18", (1, 4): "18", (1, 5): "18"}
    assert [text for text in texts(ax.figure) if text.startswith("0 of 18 [0, 18]")] == ["0 of 18 [0, 18] %"] * 3
    assert len([patch for patch in ax.patches if not patch.get_fill()]) == 3


def test_hits_of_both_judges_are_those_of_the_table():
    ax = figures.plot_hits(twin_rows())
    battery, paper = ax.containers
    assert np.allclose(battery.lines[0].get_xdata(), [100, *[100 * 14 / 18] * 5, 100 * 76 / 96])
    assert np.allclose(paper.lines[0].get_xdata(), [100, 100, 100, 0, 0, 0, 100 * 42 / 96])
    low, high = battery.lines[2][0].get_segments()[1][:, 0]
    assert (low, high) == pytest.approx((54.79, 91.00), abs=0.01)  # Wilson, 14 of 18, by hand
    assert [label.get_text() for label in ax.get_yticklabels()][-1] == "all (n = 96)"


def test_patching_shows_effect_and_null_of_each_layer_and_position():
    rows = patch_rows().sample(frac=1, random_state=0)
    rows.loc[rows["layer"] == 6, "null"] = np.nan
    ax = figures.plot_patching(rows)
    places = [label.get_text().replace("\n", " ") for label in ax.get_xticklabels()]
    assert places == ["image", "last token", "all", "answer"]
    assert [label.get_text() for label in ax.get_yticklabels()] == list("6543210")
    cells, effect = cells_of(ax), rows.set_index(["position", "layer"])["effect"]
    for column, place in enumerate(("image", "last", "all", "answer")):
        assert [cells[column, 6 - layer] for layer in range(7)] == [f"{100 * effect[place, i]:.0f}" for i in range(7)]
    assert [text.get_text() for text in ax.texts if text.get_fontsize() == 6.5] == ["3"] * 24
    fills = fills_of(ax)
    assert fills[2, 6] == fills_of(figures.plot_patching(rows.assign(effect=0.0)))[0, 0]  # -10 is as light as 0


def test_entities_are_drawn_at_their_colour_in_their_colour():
    ax = figures.plot_entities(entity_rows())
    assert [label.get_text() for label in ax.get_xticklabels()] == ["red", "green", "blue", "cyan", "magenta", "yellow"]
    clouds = [
        cloud for cloud in ax.collections if len(cloud.get_offsets()) == 6 and cloud.get_label() != "mean of a colour"
    ]
    clouds = [cloud for cloud in clouds if hasattr(cloud, "get_sizes")]
    assert len(clouds) == 4
    for cloud, shape in zip(clouds, SHAPES, strict=True):
        for (x, y), face in zip(cloud.get_offsets(), cloud.get_facecolors(), strict=True):
            colour = ["red", "green", "blue", "cyan", "magenta", "yellow"][round(float(x))]
            row = entity_rows().query(f"colour == '{colour}' and shape == '{shape}'").iloc[0]
            assert np.isclose(y, 100 * row["accuracy"])
            assert tuple(face[:3]) == matplotlib.colors.to_rgb(figures._COLOUR_FILLS[colour])


def test_grid_means():
    shown = texts(figures.plot_entity_grid(entity_rows()).figure)
    wide = entity_rows().pivot(index="colour", columns="shape", values="accuracy")
    for value in (*wide.mean(axis=0), *wide.mean(axis=1), wide.to_numpy().mean()):
        assert f"{100 * value:.0f}" in shown


def test_entities_that_are_missing_leave_a_hole():
    rows = entity_rows().iloc[:-1]
    figures.plot_entities(rows)
    assert "nan" not in texts(figures.plot_entity_grid(rows).figure)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.plot_accuracy_per_count(count_rows().iloc[:0]), "empty"),
        (lambda: figures.plot_accuracy_per_count(count_rows().drop(columns="low")), "no column 'low'"),
        (lambda: figures.plot_accuracy_per_count(count_rows().drop(columns="model")), "several rows for target"),
        (lambda: figures.plot_accuracy_per_count(count_rows("abcdefgh")), "8 values of 'model'"),
        (lambda: figures.plot_f1_per_count(count_rows().drop(columns="f1")), "per_class"),
        (lambda: figures.plot_entity_grid(pd.concat([entity_rows()] * 2)), "several rows for colour"),
        (lambda: figures.plot_confusion(pd.DataFrame()), "empty"),
        (lambda: figures.plot_layers(pd.concat([layer_rows()] * 2)), "several rows for layer"),
        (lambda: figures.plot_layer_map(layer_rows()), "several rows for layer"),
        (lambda: figures.plot_lens_curves(lens_rows().drop(columns="norm")), "no column 'norm'"),
        (lambda: figures.plot_gap(gap_rows().drop(columns="second")), "compare"),
        (lambda: figures.plot_evidence(twin_rows().query("fault != 'none'")), "no healthy model"),
        (lambda: figures.plot_evidence(pd.concat([twin_rows()] * 2)), "several rows for twin"),
        (lambda: figures.plot_evidence(twin_rows()[["twin", "fault", "loss"]]), "no column of evidence"),
        (lambda: figures.plot_evidence(twin_rows(), evidence=["lens"]), "no column 'lens'"),
        (lambda: figures.plot_dose_response(twin_rows().assign(lens=np.nan), "lens"), "models that have 'lens'"),
        (lambda: figures.plot_verdicts(twin_rows().drop(columns="verdict")), "no column 'verdict'"),
        (lambda: figures.plot_hits(twin_rows().assign(paper=None)), "have no 'paper'"),
        (lambda: figures.plot_patching(pd.concat([patch_rows()] * 2)), "several rows for layer 0, position all"),
        (lambda: figures.plot_patching(patch_rows().drop(columns="null")), "no column 'null'"),
        (lambda: figures.plot_groups(group_rows().drop(columns="model")), "several rows for group square"),
        (lambda: figures.plot_distractors(distractor_rows().iloc[1:]), "0 rows with 0 distractors"),
        (lambda: figures.plot_response(response_rows().drop(columns="q75")), "no column 'q75'"),
        (lambda: figures.plot_break(count_rows(), break_rows().iloc[:1]), "Found 0 breaks for 'two'"),
        (lambda: figures.plot_break(count_rows(), break_rows().drop(columns="p")), "no column 'p'"),
        (lambda: figures.plot_position_map(position_rows().iloc[:1]), "empty"),
        (lambda: figures.plot_reliability(reliability_rows().drop(columns="model")), "several rows for bin"),
        (lambda: figures.plot_differences(pd.concat([difference_rows()] * 2)), "several rows for label one, group"),
        (lambda: figures.plot_regression(regression_rows().drop(columns="verdict")), "no column 'verdict'"),
    ],
)
def test_bad_tables_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_unknown_words_are_refused():
    with pytest.raises(KeyError, match="Did you mean 'quartiles'"):
        figures.plot_response(response_rows(), band="quartile")
    with pytest.raises(KeyError, match="There are: accuracy, error"):
        figures.plot_break(count_rows(), break_rows(), measure="mae")


def test_no_table_at_all():
    with pytest.raises(TypeError, match="Got list"):
        figures.plot_entities([1])


@pytest.fixture
def asked(tmp_path):
    "Twenty-four pictures, six of each count 1 to 4; the model says 2 throughout, once without a number."
    samples, predictions = [], []
    for index in range(24):
        path = tmp_path / f"{index}.png"
        Image.new("RGB", (40, 30), (10 * index, 0, 0)).save(path)
        samples.append(Sample(f"demo/{index}", path, "How many dots are there? Choose from [1, 2].", 1 + index % 4))
        said = None if index == 0 else 2
        predictions.append(Prediction(f"demo/{index}", "m", "many" if said is None else "2", said, 2, 1 + index % 4))
    return samples, predictions


def captions(figure: Figure) -> list[str]:
    return [ax.get_title() for ax in figure.axes if ax.get_title()]


def test_wrong_answers_are_wrong_and_spread_over_counts(asked):
    figure = figures.wrong_answers(*asked, count=6)
    assert captions(figure) == [f'true {count}, said "2"' for count in (1, 1, 3, 3, 4, 4)]
    assert "18 of 24 answers are wrong; 6 shown" in figure.get_suptitle()
    assert captions(figures.wrong_answers(*asked, count=100)).count('true 1, said "many"') == 1
    assert all("Choose from" not in text for text in texts(figure))


@pytest.mark.long_after(1)
@pytest.mark.parametrize("said", ["2", "There are many, many of them in this picture", "n" * 60])
@pytest.mark.parametrize(
    "question", ["How many dots?", "How many magnificent magenta plusses are there in this picture? " * 3]
)
def test_wrong_answers_leave_room_for_pictures_and_words(asked, said, question):
    samples = [dataclasses.replace(sample, question=question) for sample in asked[0]]
    predictions = [dataclasses.replace(row, text=said) for row in asked[1]]
    figure = figures.wrong_answers(samples, predictions)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert all(ax.get_window_extent().width > 1.2 * figure.dpi for ax in figure.axes)
    words = [*figure.findobj(lambda text: isinstance(text, Text) and text.get_fontsize() != 9)]  # 9: hidden tick labels
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in words if text.get_text()]
    assert len(boxes) == 2 * 12 + 1
    assert not any(one.overlaps(two) for i, one in enumerate(boxes) for two in boxes[:i] if one.width and two.width)
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and figure.bbox.y0 <= box.y0 for box in boxes)


def test_wrong_answers_are_the_same_each_time(asked):
    one, two = (figures.wrong_answers(*asked, count=2)._repr_png_() for _ in range(2))
    assert one == two and one.startswith(b"\x89PNG")


def test_no_wrong_answer_is_said(asked):
    samples, predictions = asked
    right = [row for row in predictions if row.count == row.target]
    assert any("no answer is wrong" in text for text in texts(figures.wrong_answers(samples, right)))


def test_released_file_without_text(asked):
    samples, predictions = asked
    bare = [Prediction(row.uid, "m", "", row.count, None, row.target) for row in predictions]
    assert {"true 1, said nothing", "true 1, said 2"} <= set(captions(figures.wrong_answers(samples, bare, count=100)))


@pytest.mark.filterwarnings("ignore:Glyph")  # the font has no Chinese; it draws boxes
def test_strange_answers_stay_in_their_place(asked):
    samples, predictions = asked
    texts_of = ["$\\frac$", "$x^2$ \\frac $", "a\nb\tc", "很多", "x" * 400, "  ", "_{", "<b>"]
    odd = [
        Prediction(row.uid, "m", text, None, None, row.target) for row, text in zip(predictions, texts_of, strict=False)
    ]
    assert figures.wrong_answers(samples, odd)._repr_png_()


def test_wrong_answers_refuse_what_does_not_fit(asked):
    samples, predictions = asked
    other = Prediction("demo/0", "n", "2", 2, 2, 1)
    for arguments, message in [
        ((samples, [*predictions, other]), "2 models"),
        ((samples, []), "0 models"),
        ((samples[:3], predictions), "have no sample"),
    ]:
        with pytest.raises(ValueError, match=message):
            figures.wrong_answers(*arguments)
    with pytest.raises(ValueError, match="at least 1"):
        figures.wrong_answers(samples, predictions, count=0)


@pytest.mark.long
def test_saved_files_are_the_same_each_time_and_white(tmp_path):
    for name in ("one", "two"):
        figure = DRAWN["confusion"]().figure
        assert figures.save_figure(figure, tmp_path / "deep" / name) is figure
        assert sorted(path.name for path in tmp_path.glob(f"deep/{name}.*")) == [f"{name}.png", f"{name}.svg"]
        figures.save_figure(figure, tmp_path / "deep" / name, ["pdf"])
    for kind in ("png", "svg", "pdf"):
        one, two = ((tmp_path / "deep" / f"{name}.{kind}").read_bytes() for name in ("one", "two"))
        assert one == two
    assert b"/FontFile2" in one and b"/CreationDate" not in one  # the font is in the PDF, the date is not
    assert ">True number of objects</text>" in (tmp_path / "deep" / "one.svg").read_text()
    with pytest.raises(KeyError, match="'svg'"):
        figures.save_figure(figure, tmp_path / "three", ("png", "svgz"))
    assert not list(tmp_path.glob("three.*"))
    with Image.open(tmp_path / "deep" / "one.png") as image:
        assert image.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)


@pytest.mark.long
def test_a_notebook_keeps_few_colours_of_a_figure_and_all_of_a_photograph():
    figure, data = DRAWN["position_map"]().figure, BytesIO()
    with figures.style():
        figure.savefig(data, dpi=figure.dpi, bbox_inches="tight")
    small, full = Image.open(BytesIO(figure._repr_png_())), Image.open(data)
    assert small.mode == "P" and small.size == full.size
    difference = np.abs(np.asarray(small.convert("RGB")).astype(int) - np.asarray(full.convert("RGB"))).max(axis=2)
    assert np.mean(difference > 12) < 0.01 and len(figure._repr_png_()) < 0.6 * len(data.getvalue())
    photograph = figures.new_axes()
    photograph.imshow(np.random.default_rng(0).integers(0, 256, (150, 150, 3), dtype=np.uint8))
    assert Image.open(BytesIO(photograph.figure._repr_png_())).mode == "RGBA"


@pytest.mark.long
def test_needs_no_display_and_no_pyplot():
    code = (
        "import sys, vlm_counting.figures as f; f.new_axes().figure._repr_png_();"
        "print([name for name in ('matplotlib.pyplot', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_gain_and_the_most_possible_are_those_of_the_table():
    rows = improvement_rows()
    one, two = figures.plot_improvement(rows)
    for ax, measure, scale in ((one, "f1", 100), (two, "mae", 1)):
        group = rows[rows["measure"] == measure]
        bars = [patch.get_height() for patch in ax.patches]
        most = 100 - 100 * group["before"] if measure == "f1" else group["before"]
        assert np.allclose(bars[:9], most) and np.allclose(bars[9:], scale * group["gain"])
        segments = ax.containers[-1].lines[2][0].get_segments()
        assert np.allclose([path[:, 1] for path in segments], scale * group[["low", "high"]])


@pytest.mark.long
def test_the_epoch_that_is_kept_is_marked():
    loss, accuracy = figures.plot_learning(learning_rows())
    marked = [line for line in accuracy.lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in marked] == [50, 50]
    assert np.allclose(loss.lines[1].get_ydata(), learning_rows().query("head == 'trained'")["valid_nll"])


@pytest.mark.parametrize(
    "own", [{"red": "orange"}, {"red": "mauve", "blue": "café"}, {"star": "heart", "circle": "<b>"}, {"red": "7"}]
)
def test_colours_and_shapes_of_one_s_own_are_drawn(own):
    "They ended `evaluate` in its last cell, after everything was asked."
    rows = entity_rows().replace(own)
    grid, markers = figures.plot_entity_grid(rows), figures.plot_entities(rows)
    assert {str(name) for name in own.values()} <= {
        label.get_text() for axes in (grid, markers) for label in (*axes.get_xticklabels(), *axes.get_yticklabels())
    } | {text.get_text() for text in markers.get_legend().get_texts()}


@pytest.mark.parametrize("big", [300, 100_000, 10**9, 2**52])
def test_one_absurd_count_is_drawn_in_no_time(big):
    "A column for each number up to it was; 100,000 hung `evaluate` after all was asked."
    rows = [Prediction(f"a/{i}", "m", "4", 4, 4, [1, 2, 3, 4, 5, big][i % 6], None, {}) for i in range(30)]
    begun, table = time.process_time(), confusion(rows)
    axes = [
        figures.plot_confusion(table),
        figures.plot_answers(table),
        figures.plot_accuracy_per_count(score(rows, by="target")),
    ]
    axes.append(figures.plot_f1_per_count(per_class(rows)))
    for ax in axes:
        ax.figure.canvas.draw()
        assert max(ax.figure.get_size_inches()) < 30
    assert time.process_time() - begun < 10


def test_of_many_true_counts_those_with_room_are_drawn_and_the_others_named():
    rows = [Prediction(f"a/{i}", "m", "", i, i, i, None, {}) for i in range(1, 601)]
    ax = figures.plot_confusion(confusion(rows))
    assert max(ax.figure.get_size_inches()) < 30
    assert "Not drawn: 560 true counts above 40 (560 questions)" in " ".join(" ".join(texts(ax.figure)).split())


def test_a_mean_error_of_thousands_is_not_drawn_without_a_word():
    rows = pd.DataFrame({"measure": "mae", "target": [1, 2], "n": 9, "before": [2.0, 1.0], "gain": [1.0, -4000.0]})
    said = {}
    for name, table in (("fine", rows.assign(gain=0.5)), ("absurd", rows)):
        (ax,) = figures.plot_improvement(table.assign(low=table["gain"] - 1, high=table["gain"] + 1))
        said[name] = " ".join(" ".join(texts(ax.figure)).split())
    assert "far out of range" in said["absurd"] and "far out of range" not in said["fine"]
