"Guards for `tables`: the paper's tables from any scores, to the printed digit, and honest about what is missing."

import numpy as np
import pandas as pd
import pytest

from vlm_counting.core import Prediction, project_root
from vlm_counting.paper.tables import (
    TABLES,
    check_printed,
    distractor_cells,
    entity_rows,
    f1_rows,
    form_rows,
    gain_rows,
    group_rows,
    pick,
    tuned_cells,
)
from vlm_counting.published import example_predictions, load_printed, load_published, measure

PAPER = load_published()


def answers(model="mine", family="balanced", right=1.0, seed=0, **factors) -> list[Prediction]:
    "Nine counts of two shapes in two colours; a share of them answered right, the others one too low."
    rng, rows = np.random.default_rng(seed), []
    for colour in ("red", "blue"):
        for shape in ("square", "star"):
            for target in range(1, 10):
                for layout in range(6):
                    count = target if rng.random() < right else target - 1
                    known = {"family": family, "entity": f"{colour}_{shape}s", "colour": colour, "shape": shape}
                    known |= {"layout": layout} | factors
                    uid = f"{family}/{len(rows)}"
                    rows.append(Prediction(uid, model, str(count), count, count, target, None, known))
    return rows


def test_every_printed_number_that_the_reports_allow():
    checked = check_printed(PAPER)
    assert (checked["verdict"] == "equal").sum() == 78 and not (checked["verdict"] == "differs").any()
    lost = checked[checked["verdict"] == "no data"]
    assert set(lost["table"]) == {"errors"} and len(checked) == len(load_printed())


def test_a_wrong_score_is_seen():
    moved = PAPER.copy()
    mine = (moved["metric"] == "accuracy") & moved["target"].isna() & (moved["experiment"] == "clustered")
    moved.loc[mine & (moved["model"] == "CoCa") & (moved["entity"] == "all"), "value"] += 0.0013
    checked = check_printed(moved).set_index(["table", "row", "column"])["verdict"]
    assert checked["headline", "CoCa", "clustered"] == "differs" and (checked == "differs").sum() <= 2


def test_errors_are_filled_by_answers():
    rows = [*answers("CLIP", right=0.5), *answers("other", right=0.0, seed=1)]
    table = TABLES["errors"](measure(rows))
    assert table.loc["other", "MAE"] == pytest.approx(1) and table.loc["other", "RMSE"] == pytest.approx(1)
    wrong = sum(row.count != row.target for row in rows if row.model == "CLIP") / 216
    assert table.loc["CLIP", "MAE"] == pytest.approx(wrong)
    checked = check_printed(measure(rows)).set_index(["table", "row", "column"])["verdict"]
    assert checked["errors", "CLIP", "MAE"] == "differs" and checked["errors", "CoCa", "MAE"] == "no data"


def test_an_average_is_over_models_that_have_every_column():
    cells = PAPER[~((PAPER["model"] == "CLIP") & (PAPER["experiment"] == "scattered"))]
    table, whole = TABLES["spacing"](cells), TABLES["spacing"](PAPER)
    six = whole.drop(index=["CLIP", "average"])
    assert np.isnan(table.loc["CLIP", "scattered"]) and table.loc["average", "clustered"] == pytest.approx(
        six["clustered"].mean()
    )


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_nothing_are_empty(name):
    assert TABLES[name](PAPER.iloc[:0]).empty


@pytest.mark.parametrize("name", TABLES)
def test_tables_take_any_models(name):
    cells = measure([*answers("mine"), *answers("mine", "clustered", 0.5), *answers("CLIP")])
    table = TABLES[name](cells)
    assert set(table.index) <= {"mine", "CLIP", "average", "std"}
    if len(table):
        assert list(table.index)[0] == "CLIP" or "CLIP" not in table.index  # the paper's models come first


def test_groups_are_means_of_kinds_of_objects():
    rows = entity_rows(PAPER)
    assert len(rows) == 7 * 24 and set(rows["n"]) == {729}
    by_hand = rows.query("model == 'CoCa' and shape == 'star'")["accuracy"].mean()
    assert TABLES["shapes"](PAPER).loc["CoCa", "star"] == pytest.approx(100 * by_hand)
    groups = group_rows(PAPER, "shape").set_index(["model", "group"]).loc[("CoCa", "star")]
    assert groups["accuracy"] == pytest.approx(by_hand) and groups["low"] < by_hand < groups["high"]


def test_figure_rows_are_the_papers():
    rows = f1_rows(PAPER)
    assert list(dict.fromkeys(rows["model"])) == ["CLIP", "CoCa", "5 generative models"]
    values = pick(PAPER, "f1", counts=True, experiment="balanced").query("target == 5").set_index("model")["value"]
    mean = values.drop(["CLIP", "CoCa"])
    row = rows.query("target == 5 and model == '5 generative models'").iloc[0]
    assert row["f1"] == pytest.approx(mean.mean()) and row["high"] - row["f1"] == pytest.approx(mean.std(ddof=0))
    assert set(form_rows(PAPER)["model"]) == {"closed", "open"} and f1_rows(PAPER.iloc[:0]).empty


def test_gain_is_the_spread_of_the_difference():
    rows, pairs = gain_rows(PAPER, "real"), tuned_cells(PAPER, "real", "f1", counts=True).query("entity == 'all'")
    nine = pairs[pairs["target"] == 9]
    gain = nine["after"] - nine["before"]
    row = rows.query("target == 9 and measure == 'f1'").iloc[0]
    assert row["gain"] == pytest.approx(gain.mean()) and row["high"] - row["gain"] == pytest.approx(gain.std(ddof=0))
    assert row["models"] == 5 and set(rows["measure"]) == {"f1"}  # errors need the answers


def test_a_runs_own_baseline_comes_first():
    tuned = answers("mine", right=0.9, experiment="training-synthetic-test")
    own = answers("mine", right=0.5, experiment="training-synthetic-base")
    both = tuned_cells(measure([*tuned, *own, *answers("mine", right=0.1)]), "synthetic").query("entity == 'all'")
    assert len(both) == 1 and both["before"].item() == pytest.approx(np.mean([row.count == row.target for row in own]))


def test_distractors_are_read_from_the_sets_name():
    rows = distractor_cells(PAPER)
    assert set(rows["distractors"]) == {0, 1, 5, 9} and len(rows) == 7 * 13
    assert (rows["distractor"] == "").sum() == 7


@pytest.mark.skipif(project_root() is None, reason="needs the repository")
def test_the_example_fills_only_what_it_has():
    cells = measure(example_predictions())
    assert list(TABLES["headline"](cells).columns) == ["clustered"] and TABLES["forms"](cells).empty
    assert isinstance(TABLES["errors_elsewhere"](cells), pd.DataFrame)
