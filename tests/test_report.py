"Guards for `pages` and the command `report`: it works with none, some or all runs, and says what is missing."

import io
import re
import shutil
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from vlm_counting.core import Prediction, RunRecord, fingerprint, write_jsonl
from vlm_counting.datasets import load_dataset
from vlm_counting.figures import Picture, save_figure
from vlm_counting.paper import pages
from vlm_counting.paper.findings import (
    CLAIMS,
    Material,
    _gather,
    conclusions,
    findings,
    own_material,
    paper_material,
    released_material,
)
from vlm_counting.paper.pages import (
    PAGES,
    _answer_tables,
    _draw_claims,
    _draw_compared,
    _verdicts,
    browse_runs,
    compared,
    inventory,
)
from vlm_counting.published import load_release
from vlm_counting.runs import execute

pytestmark = pytest.mark.long

RELEASED = Path(__file__).resolve().parents[2] / "shared" / "reference" / "predictions"
needs_shared = pytest.mark.skipif(not RELEASED.exists(), reason="the released answers are not beside this clone")


def asked(model: str, dataset: str, limit: int = 108, seed: int = 0) -> tuple[list, list[Prediction]]:
    "Samples of a set and made-up answers: small numbers right, large ones one too low now and then; sure of itself."
    samples, rng, rows = load_dataset(dataset, limit=limit), np.random.default_rng(seed), []
    for sample in samples:
        count = sample.target - int(rng.random() < sample.target / 15)
        logprobs = np.log(np.full(21, 0.01))
        logprobs[count] = np.log(0.8)
        rows.append(
            Prediction(sample.uid, model, str(count), count, count, sample.target, tuple(logprobs), sample.factors)
        )
    return samples, rows


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    "A results folder with two finished runs of `evaluate` and one that failed."
    place = tmp_path_factory.mktemp("results")
    for model, dataset, status in (("tiny-clip", "balanced", "finished"), ("tiny-clip", "clustered", "finished"),
                                   ("CLIP", "scattered", "failed"), ("CLIP", "balanced", "finished")):  # fmt: skip
        samples, rows = asked(model, dataset)
        folder = place / "evaluate" / model / dataset
        folder.mkdir(parents=True)
        record = RunRecord("evaluate", {"limit": 108}, model=model, dataset=dataset, status=status, seeds={"seed": 0},
                           fingerprint=fingerprint(samples), samples=len(samples))  # fmt: skip
        record.sessions = [{"finished": "2026-01-01T00:00:00+00:00"}]
        record.save(folder)
        write_jsonl(folder / "predictions.jsonl", rows)
    return place


class Links(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if tag == "a" and name == "href"]


def one_of_a_kind(figure, stem: Path) -> None:
    "Of figures that are alike the first is saved, of the others only the names: two thirds of a report's time."
    kind = re.match(r"claim|[a-z0-9]+(?=_)|.*", stem.name)[0]
    if not [path for path in stem.parent.glob(f"{kind}*.png") if path.stat().st_size]:
        save_figure(figure, stem)
    else:
        assert isinstance(figure, Figure)
        for end in (".png", ".svg"):
            Path(f"{stem}{end}").touch()


@pytest.fixture(scope="module")
def made(results, tmp_path_factory) -> pages.Report:
    "What the function makes of the same runs, in a folder; the slow tests have `whole`, with all of its figures."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "save_figure", one_of_a_kind)
        return pages.report(tmp_path_factory.mktemp("made"), results=results, images="some", progress=False)


@pytest.fixture(scope="module")
def whole(results, tmp_path_factory) -> pages.Report:
    return pages.report(tmp_path_factory.mktemp("whole"), results=results, images="some", progress=False)


@pytest.fixture(scope="module")
def report(results) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_COUNTING_RESULTS", str(results))
        return execute("report", images="some")


def test_the_report_has_every_table_figure_and_conclusion(made):
    assert set(pd.read_csv(made.folder / "conclusions.csv")["claim"]) == set(CLAIMS)
    for name in ("headline", "shapes", "colours", "spacing", "forms", "distractor_types", "distractor_numbers",
                 "tuning_synthetic", "tuning_real", "errors", "errors_elsewhere"):  # fmt: skip
        assert (made.folder / f"table_{name}.csv").exists(), name
    for name in ("f1_per_count_the_paper", "f1_closed_open_the_paper", "distractors_the_paper", "gain_real_the_paper",
                 "layers_qwen2-vl-7b_the_paper", "map_internvl3-8b_the_paper", "objects_CoCa_the_paper",
                 "response_balanced_our_runs", "break_balanced_our_runs", "reliability_balanced_our_runs",
                 "places_balanced_CLIP_our_runs", "regression", "claim_spacing"):  # fmt: skip
        assert (made.folder / f"{name}.png").exists() and (made.folder / f"{name}.svg").exists(), name


@pytest.mark.slow
def test_the_page_says_every_conclusion(report):
    page = (report / "report.html").read_text(encoding="utf-8")
    assert all(says in page for says in pd.read_csv(report / "conclusions.csv")["says"])
    assert "Traceback" not in page and "Warning" not in page


def kept(folder: Path) -> dict:
    "File -> bytes, without the notebook and its page."
    paths = [path for path in folder.iterdir() if path.suffix in (".csv", ".png", ".svg")]
    return {path.name: path.read_bytes() for path in paths}


@pytest.mark.slow
def test_the_function_leaves_what_the_command_leaves(report, whole):
    one, two = kept(report), kept(whole.folder)
    assert one.keys() == two.keys() and [name for name in one if one[name] != two[name]] == []


@pytest.mark.slow
def test_a_report_in_memory_is_that_in_a_folder(results, made):
    alone = pages.report(results=results, progress=False)
    assert alone.folder is None and alone.tables().keys() == made.tables().keys()
    assert {f"{name}.csv" for name in made.tables()} == {name for name in kept(made.folder) if name.endswith(".csv")}
    for name, table in alone.tables().items():
        pd.testing.assert_frame_equal(table, made.tables()[name])
    assert alone.paragraphs() == made.paragraphs() and alone.checks() == made.checks()
    assert alone.drawn.keys() == alone.figures().keys() == made.drawn.keys()
    assert alone.drawn is alone.drawn  # once


def test_of_figures_that_are_alike_some_are_shown(made):
    shown, stems = list(made.figures()), [path.stem for path in made.folder.glob("*.svg")]
    assert set(shown) < set(made.drawn) == set(stems) and "regression" in shown
    assert {name for name in made.drawn if name.startswith("claim_")} <= set(shown)
    for source in ("the_paper", "our_runs"):
        first = [name.split("_")[0] for name in shown if name.endswith(source)]
        assert len(first) == len(set(first)) > 4
    drawn = {source: [item for item in some if isinstance(item, Picture)] for source, some in made.pages().items()}
    stems = {"the paper": "_the_paper", "our runs": "_our_runs"}
    assert {source: len(some) for source, some in drawn.items()} == {
        source: len([name for name in shown if name.endswith(stem)]) for source, stem in stems.items()
    }


def test_what_a_report_says(results, made):
    assert set(made.paragraphs()) == set(CLAIMS) == set(made.conclusions["claim"])
    for name, text in made.paragraphs().items():
        assert text.startswith("### ") and ("- From " in text or "**No data.**" in text)
        said = made.effects.loc[made.effects["claim"] == name, "sentence"]
        assert text.count("\n- ") == max(1, (made.conclusions["claim"] == name).sum()) + len(said)
    assert set(made.styled()) == {name.removeprefix("table_") for name in made.tables() if name.startswith("table_")}
    assert "131 published cells were not run" in made.checks()[-1] and len(made.checks()) == 1
    assert made.links().count("browser.html") == 3 and made.verdicts().empty
    assert repr(made) == f"Report: {len(CLAIMS)} conclusions, held against the paper (7 models), our runs (2 models)"
    assert "<table" in made._repr_html_()


@pytest.mark.slow
def test_names_in_a_report_are_text(tmp_path):
    "A run of a model whose name would like to be a program."
    name = "<script>alert(1)</script>"
    samples, rows = asked(name, "balanced")
    folder = tmp_path / "evaluate" / "bad" / "balanced"
    folder.mkdir(parents=True)
    record = RunRecord("evaluate", {"limit": 108}, model=name, dataset="balanced", status="finished",
                       fingerprint=fingerprint(samples), samples=len(samples))  # fmt: skip
    record.sessions = [{"finished": "2026-01-01T00:00:00+00:00"}]
    record.save(folder)
    write_jsonl(folder / "predictions.jsonl", rows)
    made = pages.report(results=tmp_path, progress=False)
    shown = [*made.paragraphs().values(), *(table.to_html() for table in made.styled().values()), made._repr_html_()]
    shown += [item.to_html() for some in made.pages().values() for item in some if not isinstance(item, Picture)]
    assert not any(name in text for text in shown) and any("&#60;script" in text for text in shown[: len(CLAIMS)])
    assert name in made.inventory["model"].tolist()


def test_a_report_that_cannot_be_made(results, tmp_path):
    with pytest.raises(ValueError, match="No choice of images named 'som'. Did you mean 'some'"):
        pages.report(images="som")
    with pytest.raises(FileNotFoundError, match="No run is named 'paper-x'. There are evaluate"):
        pages.report(results=results, runs="paper-x")
    with pytest.raises(FileNotFoundError, match="There is no folder no_such_place"):
        pages.report(release="no_such_place", results=results)
    taken = next(results.rglob("run.json")).parent
    before = sorted(path.name for path in taken.iterdir())
    with pytest.raises(FileExistsError, match="holds a run of 'evaluate'. Choose another folder"):
        pages.report(taken, results=results)
    assert sorted(path.name for path in taken.iterdir()) == before


@pytest.mark.slow
def test_ours_stand_beside_the_papers(report):
    table = pd.read_csv(report / "table_spacing.csv", index_col=[0, 1])
    assert (
        set(table.index.get_level_values(0)) == {"the paper", "our runs"} and ("our runs", "tiny-clip") in table.index
    )
    assert table.loc[("the paper", "average"), "clustered"] == pytest.approx(59.12, abs=0.005)


@pytest.mark.slow
def test_links_lead_to_pages_of_runs(report):
    links = [link for link in Links((report / "report.html").read_text(encoding="utf-8")).found if "browser" in link]
    assert len(links) == 3 and all((report / link).is_file() for link in links)
    assert "no picture" not in (report / links[0]).read_text(encoding="utf-8").split("<body")[0]


def test_a_wrong_release_is_named():
    with pytest.raises(FileNotFoundError, match="There is no folder no_such_place"):
        released_material("no_such_place")
    assert released_material(None).models == []


def test_only_what_was_run_is_judged(results):
    table = compared(own_material(results))
    run_cells = table[table["verdict"] != "not run"]
    assert set(run_cells["model"]) == {"CLIP", "tiny-clip"} and table.attrs["not_run"] == 131
    assert set(run_cells.query("model == 'tiny-clip'")["verdict"]) == {"not published"}
    assert _draw_compared(table).keys() == {"regression"} and _draw_compared(table[table["ours"].isna()]) == {}


@pytest.mark.slow
def test_pictures_of_answers_rest_on_answers(results):
    material = own_material(results)
    names = {name for draw in PAGES.values() for name in draw(material)}
    assert {"objects_CLIP", "response_balanced", "break_clustered", "confusion_balanced_CLIP", "reliability_clustered",
            "places_clustered_tiny-clip", "f1_per_count"} <= names  # fmt: skip
    bare = _gather("bare", [row for rows in material.answers.values() for row in strip(rows)])
    left = {name for draw in PAGES.values() for name in draw(bare)}
    assert not any(name.startswith(("reliability", "places")) for name in left) and "response_balanced" in left
    assert set(_answer_tables(bare)) == {"scaling", "break_points"}
    assert set(_answer_tables(material)) == {"scaling", "break_points", "calibration", "places"}


def strip(rows: list[Prediction]) -> list[Prediction]:
    "The same without certainty and places, as released answers are."
    return [
        replace(row, logprobs=None, factors={k: v for k, v in row.factors.items() if k != "positions"}) for row in rows
    ]


def test_a_page_is_made_again_only_for_new_answers(results):
    material = own_material(results)
    made = {name: page.stat().st_mtime_ns for name, page in browse_runs(material).items()}
    assert made == {name: page.stat().st_mtime_ns for name, page in browse_runs(material).items()} and len(made) == 3


def test_pictures_of_another_set_are_not_shown(results, tmp_path):
    folder = own_material(results).runs[0]
    record = RunRecord.load(folder)
    assert len(pages._run_samples(folder)) == 108
    record.fingerprint = "another"
    record.save(tmp_path)
    assert pages._run_samples(tmp_path) == []


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_drawn_of_nothing(name):
    empty = Material("nothing", paper_material().cells.iloc[:0])
    assert PAGES[name](empty) == {}


def test_inventory_and_verdicts_of_nothing(tmp_path):
    assert inventory([own_material(tmp_path)]).empty and _verdicts(tmp_path).empty
    assert _draw_claims(findings([own_material(tmp_path)])) == {}


@needs_shared
def test_photographs_before_and_after_pair_by_picture():
    "The released answers of two models to the same 471 photographs, own and retrained head."
    rows = [row for model in ("paligemma2-10b", "qwen2-vl-7b") for place in ("baseline/pixmo-count",
            "training/real-world/test-real-data") for row in load_release(RELEASED / model / place)]  # fmt: skip
    table = findings([_gather("released answers", rows)]).query("claim == 'head_real'").set_index("model")
    assert table.loc["paligemma2-10b", "effect"] == pytest.approx(100 * (350 - 314) / 471)
    assert table.loc["qwen2-vl-7b", "effect"] == pytest.approx(100 * (309 - 295) / 471)
    assert table["test"].str.contains("McNemar").all() and set(table["n"]) == {471}
    assert set(table["verdict"]) == {"holds"}
    assert set(conclusions(table.reset_index())["verdict"]) == {"not controlled", "no data"}  # five tokens against one


def two_sorts(number: int = 8) -> Material:
    "Eight models, of which the last says no number; all say how sure they were."
    rows = [row for model in range(number - 1) for row in asked(f"model {model}", "balanced", 54, model)[1]]
    mute = [replace(row, model="mute", text="many", count=None, count_paper=None) for row in rows[:54]]
    return _gather("our runs", rows + mute)


@pytest.mark.slow
def test_more_models_than_colours_share_several_pictures():
    "Eight models raised ValueError in two pictures, and the eighth was missing from a third."
    makers, material = (pages._draw_answers, pages._draw_certainty, pages._draw_objects), two_sorts()
    drawn = {name: picture for draw in makers for name, picture in draw(material).items()}
    for name in ("response_balanced", "break_balanced", "reliability_balanced", "groups_shape", "groups_colour"):
        shown = [f"{name}_{part}" for part in (1, 2)]
        assert set(shown) <= set(drawn) and name not in drawn, name
        legends = [ax.get_legend() for part in shown for ax in drawn[part].axes]
        told = " ".join(text.get_text() for legend in legends if legend for text in legend.get_texts())
        assert all(f"model {model}" in told for model in range(7)) and "mute" in told, (name, told)


@pytest.mark.slow
def test_seven_models_fit_into_a_picture():
    "The legend of seven breaks was higher than the figure, and the axes were pressed flat."
    rows = [row for model in range(7) for row in asked(f"model {model}", "balanced", 54, model)[1]]
    drawn = pages._draw_answers(_gather("our runs", rows))
    assert {"response_balanced", "break_balanced"} <= set(drawn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn["break_balanced"].savefig(io.BytesIO(), format="png")


def test_a_model_without_numbers_is_left_out_alone():
    "It took the whole report with it: `scaling` has nothing to fit."
    tables = _answer_tables(two_sorts(3))
    assert set(tables["scaling"]["model"]) == {"model 0", "model 1"}
    assert set(tables["calibration"]["model"]) == {"model 0", "model 1", "mute"}
    left = tables["left_out"].set_index(["model", "table"])
    assert list(left.index) == [("mute", "scaling")] and "two answers above zero" in left["why"].iloc[0]
    few = [row for rows in two_sorts(3).answers.values() for row in rows if row.target < 4]
    tables = _answer_tables(_gather("few counts", few))
    assert "break_points" not in tables and set(tables["left_out"]["table"]) == {"scaling", "break_points"}
    assert "break_balanced" not in pages._draw_answers(_gather("few counts", few))


def test_only_too_little_data_leaves_a_model_out():
    "Any other error is one of ours, and has to be seen."
    rows = two_sorts(3).answers["model 0", "balanced"]

    def broken(mine):
        raise ValueError("operands could not be broadcast together")

    with pytest.raises(ValueError, match="could not be broadcast"):
        pages._each(broken, rows)
    misplaced = [replace(row, factors=row.factors | {"positions": [[99, 99]]}) for row in rows]
    with pytest.raises(ValueError, match="places outside the 9 x 9 grid"):
        _answer_tables(_gather("misplaced", misplaced))
    alike = [replace(row, factors=row.factors | {"positions": [[4, 4]]}) for row in rows]
    left = _answer_tables(_gather("alike", alike))["left_out"]
    assert list(left["table"]) == ["places"] and "nothing to compare" in left["why"].iloc[0]


def test_bins_do_not_depend_on_who_else_is_in_the_picture(monkeypatch):
    asked_for, plain = [], pages.reliability

    def noting(rows, by, bins):
        asked_for.append(bins)
        return plain(rows, by=by, bins=bins)

    monkeypatch.setattr(pages, "reliability", noting)
    sizes = {"model 0": 850, "model 1": 650}
    rows = [
        replace(row, uid=f"{row.uid}-{place}", model=model)
        for model, size in sizes.items()
        for place, row in enumerate((asked(model, "balanced", 54)[1] * 20)[:size])
    ]
    for models in (("model 1",), ("model 0", "model 1"), ("model 0",)):
        pages._draw_certainty(_gather("made", [row for row in rows if row.model in models]))
    assert asked_for == [3, 3, 4]


def damaged(results: Path, place: Path) -> Path:
    "A copy of the results, and in it the folder of a run of `evaluate` that may be damaged."
    shutil.copytree(results, place / "results")
    return next(path.parent for path in sorted((place / "results").rglob("predictions.jsonl")))


DAMAGES = {
    "emptied": ("predictions.jsonl", ""),
    "lost": ("predictions.jsonl", None),
    "cut": ("predictions.jsonl", -40),
    "no json": ("predictions.jsonl", "{"),
    "numbers": ("predictions.jsonl", "5\n"),
    "deep": ("predictions.jsonl", "[" * 10**5 + "\n"),
    "fewer": ("predictions.jsonl", 0.5),
    "record emptied": ("run.json", ""),
    "record cut": ("run.json", 0.5),
    "record a number": ("run.json", "5"),
    "record null": ("run.json", "null"),
    "record of null": ("run.json", '{"verb": "evaluate", "parameters": null}'),
    "record of odd sessions": ("run.json", '{"verb": "evaluate", "parameters": {}, "sessions": [5]}'),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*torn last line")
@pytest.mark.parametrize("file, how", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_run_is_named_and_stops_no_report(results, tmp_path, file, how):
    folder = damaged(results, tmp_path)
    text = (folder / file).read_text()
    if how is None:
        (folder / file).unlink()
    else:
        lines = text.splitlines(keepends=True)
        cut = how if isinstance(how, str) else "".join(lines[: len(lines) // 2]) if how == 0.5 else text[:how]
        (folder / file).write_text(cut)
    found = own_material(tmp_path / "results")
    assert folder not in found.runs and len(found.runs) == len(own_material(results).runs) - 1
    assert len(found.left_out) == 1 and found.left_out[0].startswith(f"{folder} is left out: ")


def test_an_emptied_run_takes_no_good_one_s_place(results, tmp_path):
    "The later run of the same model and set counts, unless it has lost its answers."
    good = damaged(results, tmp_path)
    later = tmp_path / "results" / "zz" / good.parent.name / good.name
    shutil.copytree(good, later)
    record = RunRecord.load(later)
    record.sessions = [*record.sessions, {"finished": "2999-01-01"}]
    record.save(later)
    assert later in own_material(tmp_path / "results").runs
    (later / "predictions.jsonl").write_text("")
    assert good in own_material(tmp_path / "results").runs


VERDICTS = ["", "{", "5", "{}", '{"probabilities": {}, "fault": null, "paper": "say"}', '{"fault": "say"}', "[" * 10**5]


@pytest.mark.parametrize("text", VERDICTS)
def test_a_damaged_verdict_is_left_out(tmp_path, text):
    folder = tmp_path / "diagnose" / "mine" / "balanced"
    RunRecord("diagnose", {}, model="mine", dataset="balanced", status="finished").save(folder)
    (folder / "verdict.json").write_text(text)
    assert _verdicts(tmp_path).empty and len(own_material(tmp_path).left_out) == 1


@pytest.mark.parametrize("status", ["new", "running", "scored", "failed"])
def test_a_run_without_its_pages_is_no_finished_one(results, tmp_path, status):
    folder = damaged(results, tmp_path)
    record = RunRecord.load(folder)
    record.status = status
    record.save(folder)
    assert folder not in own_material(tmp_path / "results").runs
