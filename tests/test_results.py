"Two runs side by side, all runs on a set, and answers read back by the programs they are written for."

import json

import numpy as np
import pandas as pd
import pytest

from vlm_counting import results
from vlm_counting.core import Prediction, RunRecord, UnknownName, write_jsonl
from vlm_counting.results import FORMATS, compare_runs, export_answers, find_answers, flat_rows, leaderboard, over_seeds
from vlm_counting.terminal import main


def a_run(root, name, right, seed=0, dataset="balanced", shift=0, asked="", status="finished"):
    "180 answers about the images of a seed, right in the given places."
    rows = []
    for i in range(180):
        target, factors = 1 + i % 9, {"entity": "red_circles", "layout": i // 9, "positions": [[0, i]]}
        count = target if i in right else target % 9 + 1
        logprobs = [-1.0] * 21 if i % 2 else None
        uid = f"{dataset}/{i + shift}"
        rows.append(
            Prediction(uid, name, str(count), count, count, target, logprobs, factors, asked=asked and f"{asked}{i}")
        )
    folder = root / "evaluate" / f"{name}{f'-seed{seed}' * bool(seed)}" / dataset
    write_jsonl(folder / "predictions.jsonl", rows)
    record = RunRecord("evaluate", {"limit": 180}, model=name, dataset=dataset, fingerprint=f"f{seed}", samples=180)
    record.status, record.seeds = status, {"seed": seed}
    record.sessions = [{"started": "2026-12-01T10:00:00+00:00", "versions": {"transformers": "5.24.0"}}]
    record.save(folder)
    return folder


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path))
    draw = np.random.default_rng(1).permutation(180)
    a_run(tmp_path, "good", set(draw[:160]))
    a_run(tmp_path, "as-good", set(draw[2:161]))
    a_run(tmp_path, "poor", set(draw[:60]))
    return tmp_path


# --- two runs


def test_two_runs_are_paired_by_image(root):
    table = compare_runs("evaluate/good/balanced", root / "evaluate" / "poor" / "balanced")
    assert list(table["images"]) == ["all", *map(str, range(1, 10))]
    row = table.iloc[0]
    assert row["n"] == 180 and row["difference"] == pytest.approx(-100 / 180) and row["only_second"] == 0
    assert row["low"] < row["difference"] < row["high"] < 0 and row["p"] < 1e-3
    assert table["difference"][1:].mean() == pytest.approx(row["difference"])


def test_nothing_is_claimed_where_nothing_is_shown(root):
    row = compare_runs("evaluate/good/balanced", "evaluate/as-good/balanced").iloc[0]
    assert results.tell_difference(row, ("good", "as-good")).startswith("Neither is shown to be better on 180 images")
    row = compare_runs("evaluate/poor/balanced", "evaluate/good/balanced").iloc[0]
    assert results.tell_difference(row, ("poor", "good")).startswith("'good' is better on 180 images (+55.6 points")


@pytest.mark.parametrize(
    "name, message",
    [("evaluate/god/balanced", "Did you mean 'evaluate/good/balanced'"), ("", "No run with answers named ''"),
     ("/nowhere", "There are: evaluate/as-good/balanced")],
)  # fmt: skip
def test_a_run_that_is_not_there_is_answered_with_the_nearest(root, name, message):
    with pytest.raises(UnknownName, match=message):
        find_answers(name)


def test_without_any_run_it_is_said_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path))
    with pytest.raises(UnknownName, match="vlm-counting evaluate"):
        find_answers("evaluate/good/balanced")


def test_runs_that_were_asked_otherwise_are_not_compared(root):
    a_run(root, "one", {1}, dataset="mine", asked="a")
    a_run(root, "other", {1}, dataset="mine", asked="b")
    with pytest.raises(
        ValueError, match="180 of 180 images or questions differ between the two runs, the first is 'mine/0'"
    ):
        compare_runs("evaluate/one/mine", "evaluate/other/mine")
    a_run(root, "far", {1}, dataset="mine", shift=500)
    with pytest.raises(ValueError, match="no uid in common"):
        compare_runs("evaluate/one/mine", "evaluate/far/mine")


# --- all runs on a set


def test_a_list_says_who_is_behind_for_certain(root):
    table = leaderboard("balanced")
    assert list(table["model"]) == ["good", "as-good", "poor"] and list(table["behind"]) == [False, False, True]
    assert table["difference"][0] == 0 and (table["low"] < table["accuracy"]).all()
    assert results._standing(table) == (
        "Behind 'evaluate/good/balanced': 1 of 2 (paired by image, Holm over all pairs), and 1 is not shown to be."
    )


def test_runs_on_other_images_unfinished_and_replaced_ones_are_left_out(root):
    a_run(root, "elsewhere", {1}, seed=5)
    a_run(root, "running", {1}, status="running")
    a_run(root / "replaced", "old", {1})
    assert set(leaderboard("balanced")["model"]) == {"good", "as-good", "poor"}
    with pytest.raises(UnknownName, match="Did you mean 'balanced'"):
        leaderboard("balancd")


def test_a_single_run_is_a_list_too(root):
    a_run(root, "one", set(range(90)), dataset="mine")
    table = leaderboard("mine")
    assert (
        len(table) == 1 and not table["behind"].any() and results._standing(table).endswith("only run on these images.")
    )


def test_seeds_are_taken_together(root):
    for seed, right in ((1, 150), (2, 170)):
        a_run(root, "good", set(range(right)), seed=seed)
    row = over_seeds("balanced").set_index("model").loc["good"]
    shares = np.array([160, 150, 170]) / 180
    assert (
        row["seeds"] == 3
        and row["accuracy"] == pytest.approx(shares.mean())
        and row["sd"] == pytest.approx(shares.std(ddof=1))
    )
    assert row["high"] - row["accuracy"] == pytest.approx(4.302653 * shares.std(ddof=1) / 3**0.5)
    assert np.isnan(over_seeds("balanced").set_index("model").loc["poor", "low"])


# --- elsewhere


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_an_export_is_read_back_by_the_program_it_is_for(root, tmp_path, format):
    export_answers("evaluate/good/balanced", tmp_path / "out", format)
    known = flat_rows(find_answers("evaluate/good/balanced"))
    if format == "csv":
        found = pd.read_csv(tmp_path / "out" / "answers.csv")
    elif format == "parquet":
        found = pd.read_parquet(tmp_path / "out" / "answers.parquet")
    elif format == "hf":
        import datasets

        found = datasets.load_dataset(
            str(tmp_path / "out"), split="test", cache_dir=str(tmp_path / "cache")
        ).to_pandas()
        assert (tmp_path / "out" / "README.md").read_text().startswith("---\n")
    else:
        lines = next((tmp_path / "out").glob("samples_vlm_counting_balanced_2026-*.jsonl")).read_text().splitlines()
        found = pd.DataFrame([json.loads(line)["doc"] | json.loads(line) for line in lines])
        assert list(found["exact_match"]) == list(known["correct"].astype(float))
        return
    assert list(found["uid"]) == list(known["uid"]) and list(found["target"]) == list(known["target"])
    assert list(found["correct"]) == list(known["correct"]) and found["logprob_20"].isna().sum() == 90
    assert json.loads(found["factor_positions"][3]) == [[0, 3]]


def test_the_harness_finds_what_it_looks_for(root, tmp_path):
    "Fields that the LM Evaluation Harness writes of a task and its tables read, with their types."
    export_answers("evaluate/good/balanced", tmp_path / "out", "lm-eval")
    told = json.loads(next((tmp_path / "out").glob("results_2026-12-01T10-00-00.json")).read_text())
    task = "vlm_counting_balanced"
    assert told["results"][task]["exact_match,none"] == pytest.approx(160 / 180)
    assert told["results"][task]["exact_match_stderr,none"] == pytest.approx((160 / 180 * 20 / 180 / 179) ** 0.5)
    for name, kind in {"results": dict, "group_subtasks": dict, "configs": dict, "versions": dict, "n-shot": dict,
                       "higher_is_better": dict, "n-samples": dict, "config": dict, "date": float, "model_name": str,
                       "transformers_version": str}.items():  # fmt: skip
        assert isinstance(told[name], kind), name
    assert told["n-samples"][task] == {"original": 180, "effective": 180} and told["config"]["model"] == "good"
    line = json.loads((tmp_path / "out" / f"samples_{task}_2026-12-01T10-00-00.jsonl").read_text().splitlines()[0])
    assert {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"} <= set(line)
    assert line["resps"] == [[line["filtered_resps"][0]]] and line["metrics"] == ["exact_match"]


def test_what_cannot_be_exported_is_refused(root, tmp_path, capsys):
    with pytest.raises(UnknownName, match="No format named 'cvs'. Did you mean 'csv'"):
        export_answers("evaluate/good/balanced", tmp_path, "cvs")
    rows = [Prediction("x/0", "m", "1", 1, 1, None)]
    write_jsonl(root / "evaluate" / "free" / "x" / "predictions.jsonl", rows)
    RunRecord("evaluate", {}, model="m", dataset="x", samples=1).save(root / "evaluate" / "free" / "x")
    with pytest.raises(ValueError, match="no true count"):
        export_answers("evaluate/free/x", tmp_path / "y", "lm-eval")
    assert main(["export", "evaluate/good/balanced", f"to={tmp_path}", "push=me/x"]) == 2
    assert "Expected format=hf" in capsys.readouterr().err


def test_a_push_uploads_the_folder_and_asks_for_nothing_else(root, tmp_path, monkeypatch):
    import huggingface_hub

    done = []

    class Hub:
        def create_repo(self, name, **how):
            done.append(("create", name, how))

        def upload_folder(self, **how):
            done.append(("upload", how))
            return "address"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert main(["export", "evaluate/good/balanced", f"to={tmp_path / 'hf'}", "format=hf", "push=me/answers"]) == 0
    assert done == [
        ("create", "me/answers", {"repo_type": "dataset", "private": True, "exist_ok": True}),
        (
            "upload",
            {
                "repo_id": "me/answers",
                "folder_path": str(tmp_path / "hf"),
                "repo_type": "dataset",
                "allow_patterns": ["data/test-00000-of-00001.parquet", "README.md", "run.json"],
            },
        ),
    ]


# --- the command line


def test_the_commands_print_and_leave_a_page(root, capsys):
    assert main(["compare", "evaluate/poor/balanced", "evaluate/good/balanced"]) == 0
    said = capsys.readouterr().out
    assert "'evaluate/good/balanced' is better on 180 images (+55.6 points" in said
    (page,) = (root / "compare").rglob("report.html")
    assert "+55.6 points" in page.read_text() and (page.parent / "comparison.csv").exists()
    assert main(["leaderboard", "balanced"]) == 0 and "Holm over all pairs" in capsys.readouterr().out
    assert "evaluate/poor/balanced" in (root / "leaderboard" / "balanced" / "report.html").read_text()
    assert main(["leaderboard", "balanced", "--seeds"]) == 0 and "spread" in capsys.readouterr().out
    capsys.readouterr()
    assert main(["compare", "evaluate/poor/balanced", "evaluate/god/balanced"]) == 2
    assert "Did you mean 'evaluate/good/balanced'" in capsys.readouterr().err


def test_two_comparisons_never_share_a_page(root, tmp_path, capsys):
    "Also where the short names of their folders are the same, because they are long, or differ in a stroke."
    end = "x" * 60
    for run in (f"one{end}", f"two{end}"):
        a_run(root, run, {1})
    first, second = (root / "evaluate" / f"{name}{end}" / "balanced" for name in ("one", "two"))
    for one, other in ((first, second), (second, first), (first, "evaluate/good/balanced")):
        assert main(["compare", str(one), str(other)]) == 0
    pages = list((root / "compare").rglob("report.html"))
    assert len(pages) == 3 and len({page.read_text() for page in pages}) == 3


def test_names_of_models_are_text_in_a_page(root, capsys):
    a_run(root, "<b>x", {1}, dataset="mine")
    assert main(["leaderboard", "mine"]) == 0
    page = (root / "leaderboard" / "mine" / "report.html").read_text()
    assert "<b>x" not in page and "&lt;b&gt;x" in page


def test_parts_of_a_run_are_no_runs_and_a_run_may_be_called_replaced_head(root):
    whole = root / "evaluate" / "good" / "balanced"
    for part in (1, 2):
        write_jsonl(whole / f"part-{part}-of-2" / "predictions.jsonl", [])
        RunRecord.load(whole).save(whole / f"part-{part}-of-2")
    a_run(root, "replaced_head", {1})
    assert set(leaderboard("balanced")["model"]) == {"good", "as-good", "poor", "replaced_head"}


def test_a_set_that_is_a_path_gets_no_page_in_its_own_folder(root, tmp_path_factory, capsys):
    photos = tmp_path_factory.mktemp("photos")
    a_run(root, "one", {1}, dataset="photos")
    record = RunRecord.load(root / "evaluate" / "one" / "photos")
    record.dataset = str(photos)
    record.save(root / "evaluate" / "one" / "photos")
    for name in (str(photos), "photos"):
        assert main(["leaderboard", f"dataset={name}"]) == 0
    assert not list(photos.iterdir()) and len(list((root / "leaderboard").rglob("report.html"))) == 2
    files = export_answers("evaluate/one/photos", root / "out", "lm-eval")
    assert all(path.parent == root / "out" for path in files)


def test_answers_are_scored_as_the_run_scores_them(root):
    folder = a_run(root, "thinker", set(), dataset="mine")
    rows = [Prediction(f"mine/{i}", "thinker", "so 3", None, None, 3, counts={"last": 3}) for i in range(20)]
    write_jsonl(folder / "predictions.jsonl", rows)
    record = RunRecord.load(folder)
    record.parameters["parser"] = "last"
    record.save(folder)
    assert leaderboard("mine")["accuracy"][0] == 1 and flat_rows(folder)["correct"].all()
    with pytest.raises(ValueError, match="parsers last and strict"):
        compare_runs(folder, "evaluate/good/balanced")


def test_a_broken_record_is_named_and_stops_no_list(root):
    (a_run(root, "torn", {1}) / "run.json").write_text("{")
    with pytest.warns(UserWarning, match="torn.*is left out"):
        assert "torn" not in set(leaderboard("balanced")["model"])


def test_the_best_of_many_equal_ones_is_seldom_called_better():
    "As it was not named beforehand, any two might have been compared."
    from vlm_counting.statistics import holm

    assert list(holm([0.02, *[1.0] * 9])) == pytest.approx([0.2, *[1.0] * 9])
