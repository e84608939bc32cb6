"Guards of `commands`: sets of others go through them, and what cannot be shown is left out where that was asked for."

import json
import os
from dataclasses import replace

import pytest
from PIL import Image

from vlm_counting.core import RunRecord
from vlm_counting.datasets import export_released, load_dataset
from vlm_counting.runs import run
from vlm_counting.stimuli import generate


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path / "results"))
    return tmp_path


@pytest.mark.long
def test_a_released_folder_is_asked_read_and_probed_by_the_papers_folds(home):
    samples = generate("distractors_1_small_red_star", limit=54)
    folder = export_released(samples, home / "set")
    assert {Image.open(path).mode for path in (folder / "images").glob("*")} == {"RGB"}
    asked = run("evaluate", dataset=str(folder), limit=None, run="asked")
    own = run("extract", dataset=str(folder), limit=None, run="read", layers="4", poolings="last")
    probed = run(
        "probe", dataset=str(folder), states="read", run="p", rules="paper,layout", probes="ridge", untrained=None
    )
    assert RunRecord.load(asked).samples == RunRecord.load(own).samples == len(samples)
    rows = (probed / "probes.csv").read_text().splitlines()
    assert any(",paper," in row for row in rows) and any(",layout," in row for row in rows)
    kept = [json.loads(line) for line in (asked / "predictions.jsonl").read_text().splitlines()]
    seen, drawn = [row["factors"] for row in kept], [sample.factors for sample in samples]
    assert [sorted(one["positions"]) for one in seen] == [sorted(one["positions"]) for one in drawn]


@pytest.mark.slow
def test_a_head_is_trained_as_the_released_lists_say(home):
    samples = generate("unseen_combinations", limit=90)
    folder = export_released(samples, home / "set")
    for split in ("train", "valid"):
        ids = [number for number, sample in enumerate(samples) if sample.factors["split"] == split]
        (folder / f"{split}_ids.json").write_text(json.dumps(ids))
    trained = run("train", training=str(folder), training_limit=None, limit=27, epochs=1, controls=False, run="t")
    assert RunRecord.load(trained).status == "finished"


@pytest.mark.long
def test_what_cannot_be_shown_is_left_out_and_counted(home):
    sizes = [(224, 224), (2010, 9), (200, 200), (224, 224)]  # the second is too long for Qwen2-VL
    for number, size in enumerate(sizes):
        Image.new("RGB", size, (40 * number, 0, 0)).save(home / f"{number}.png")
    (home / "3.png").write_bytes(b"none")
    rows = [{"uid": f"a/{n}", "image": f"{n}.png", "question": "How many?", "target": n} for n in range(4)]
    (home / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    about = {"dataset": str(home / "manifest.jsonl"), "limit": None}
    with pytest.raises(ValueError, match="1 problem.*\n.*'a/3'"):
        run("evaluate", **about)
    assert not os.path.exists(home / "results" / "evaluate")
    with pytest.warns(UserWarning, match="left out: 'a/1': tiny-qwen2-vl refuses it"):
        folder = run("evaluate", **about, on_error="skip")
    kept = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["uid"] for row in kept] == ["a/0", "a/2"] and kept[0]["factors"]["coverage"] == [2, 4]
    scores = dict(zip(*[line.split(",") for line in (folder / "scores.csv").read_text().splitlines()], strict=True))
    assert (scores["images"], scores["rows"], scores["coverage"]) == ("2", "4", "0.5")
    with pytest.warns(UserWarning):
        states = run("extract", **about, on_error="skip", layers="4", poolings="last")
    assert RunRecord.load(states).samples == 2


@pytest.mark.long
def test_python_leaves_out_too(home):
    from vlm_counting import evaluate, extract, load_model

    samples = load_dataset("balanced", limit=4)
    (home / "cut.png").write_bytes(samples[1].image.read_bytes()[:99])
    broken = [
        replace(sample, image=home / "cut.png", sha256="") if n == 1 else sample for n, sample in enumerate(samples)
    ]
    vlm = load_model("tiny-clip")
    with pytest.warns(UserWarning, match=f"1 of 4 images left out: '{samples[1].uid}'"):
        done = evaluate(vlm, broken, on_error="skip", progress=False)
    assert len(done) == 3 and done.tables()["scores"]["coverage"].iloc[0] == 0.75
    with pytest.warns(UserWarning):
        assert len(extract(vlm, broken, on_error="skip", progress=False)) == 3
    for call in (evaluate, extract):
        with pytest.raises(KeyError, match="No way to deal with an error named 'ignore'"):
            call(vlm, samples, on_error="ignore")


@pytest.mark.parametrize("target", [10**20, 10**400])
def test_an_id_for_a_count_is_refused_before_anything_is_asked(home, target):
    from vlm_counting import evaluate, load_model

    samples = load_dataset("balanced", limit=3)
    with pytest.raises(ValueError, match=f"Sample '{samples[0].uid}': the answer is about 10.*Is it an id"):
        evaluate(load_model("tiny-clip"), [replace(samples[0], target=target), *samples[1:]], home / "run")
    assert not (home / "run").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*can be used")
def test_photographs_that_were_built_go_through_every_command(home, monkeypatch):
    "The rehearsal of `build_bpc`, in the released layout, is asked, read, probed, and an output layer learns from it."
    monkeypatch.setenv("VLM_COUNTING_DATA", str(home / "data"))
    run("build_bpc", per_count=12, workers=4)
    place = home / "data" / "pixmo-count-example"
    for split in ("train", "valid", "test"):
        listed = json.loads((place / split / "samples.json").read_text())
        names = {row["image_path"].rpartition("/")[2] for row in listed}
        assert {path.name for path in (place / split / "images").iterdir()} <= names
    about = {"dataset": f"{place}@test", "limit": None, "device": "cpu"}
    asked = run("evaluate", **about)
    read = run("extract", **about, layers="2,4", poolings="last")
    samples = load_dataset(f"{place}@test")
    assert RunRecord.load(asked).samples == RunRecord.load(read).samples == len(samples) > 10
    assert "coverage" in (asked / "scores.csv").read_text().splitlines()[0]
    probed = run("probe", dataset=about["dataset"], rules="random", probes="ridge", untrained=None, jobs=1)
    assert len((probed / "probes.csv").read_text().splitlines()) > 2
    sets = {"training": f"{place}@train+valid", "dataset": about["dataset"], "transfer": f"{place}@valid"}
    learned = {"training_limit": None, "limit": None, "epochs": 1, "controls": False, "device": "cpu"}
    with pytest.raises(ValueError, match="share"):  # what it is chosen on is no test
        run("train", **sets, **learned)
    trained = run("train", **sets | {"transfer": "balanced"}, **learned | {"limit": 27}, run="again")
    assert RunRecord.load(trained).status == "finished" and (trained / "heads" / "trained.safetensors").exists()


@pytest.mark.slow
def test_photographs_are_exported_in_the_synthetic_layout_and_read_back(home, monkeypatch):
    "The paper's folds go by layout, which photographs have not: that is said, and random folds take them."
    monkeypatch.setenv("VLM_COUNTING_DATA", str(home / "data"))
    run("build_bpc", per_count=12, workers=4)
    built = load_dataset(f"{home / 'data' / 'pixmo-count-example'}@train")
    kinds = [replace(s, factors={"entity": s.factors["label"].replace(" ", "_"), "form": "open"}) for s in built]
    folder = export_released(kinds, home / "released")
    about = {"dataset": str(folder), "limit": None}
    asked = run("evaluate", **about, device="cpu")
    run("extract", **about, layers="4", poolings="last", device="cpu")
    how = {"dataset": str(folder), "probes": "ridge", "untrained": None, "jobs": 1}
    with pytest.raises(KeyError, match="Fold rule 'paper' needs the factor 'layout'"):
        run("probe", rules="paper", run="folds", **how)
    probed = run("probe", rules="random", **how)
    assert RunRecord.load(asked).samples == len(kinds)
    assert any(",random," in row for row in (probed / "probes.csv").read_text().splitlines())
