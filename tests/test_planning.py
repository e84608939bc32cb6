"Guards for `planning`: what is counted is what would be done, schedules keep their promises, nonsense is refused."

import math
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from vlm_counting import planning
from vlm_counting.core import RunRecord, UnknownName
from vlm_counting.extraction import extract_states
from vlm_counting.figures import plot_growth
from vlm_counting.models import load_model
from vlm_counting.planning import (
    BLUEPRINTS,
    DEVICES,
    Assumptions,
    Blueprint,
    Costs,
    Device,
    Work,
    count_work,
    describe_costs,
    fit_growth,
    fit_probe,
    growth_table,
    makespan,
    measure_costs,
    plan_costs,
    predict_costs,
    sample_seconds,
    store_bytes,
)
from vlm_counting.probing import count_jobs, job_bytes
from vlm_counting.runs import check_parameters, run_folder
from vlm_counting.stimuli import generate
from vlm_counting.sweeps import Cell, paper_grids, plan_sweep


@pytest.fixture(scope="module")
def samples() -> list:
    return generate("balanced", limit=96)


@pytest.fixture(scope="module")
def twin():
    return load_model("tiny-llava-next-interleave", device="cpu")


def work(model="qwen2-vl-7b", **other) -> Work:
    "A model of eight billion weights, roughly."
    sizes = {"parameters": 8 * 10**9, "dtype": "bfloat16", "layers": 28, "dim": 3584, "vocabulary": 152_064}
    sizes |= {"poolings": ("mean", "last", "image_mean", "image_last"), "tokens": 620, "picture": 576, "flops": 1e13}
    return Work(model, **(sizes | {"vision": 4e12, "cache": 57_344, "width": 18_944, "prepare": 0.02} | other))


def cell(verb="evaluate", model="qwen2-vl-7b", number=17_496, **other) -> Cell:
    known = {name: other.pop(name) for name in ("state", "needs") if name in other}
    name = f"{verb}/{model}/{number}/{len(other)}"
    return Cell(name, verb, check_parameters(verb, {"model": model, "limit": None} | other), samples=number, **known)


LAW = fit_probe(
    pd.DataFrame(
        [{"samples": n, "dim": 256, "seconds": 1e-6 * n**2 + 1e-9 * n, "matrix": 1e-9 * n} for n in (1000, 1400, 2000)]
    )
)


# --- what is counted


@pytest.mark.parametrize("name", ["tiny-llava-next-interleave", "tiny-qwen2-vl", "tiny-clip"])
def test_operations_counted_without_weights_are_those_of_the_loaded_model(name, samples, monkeypatch):
    "A blueprint that changes nothing has to count the twin itself."
    monkeypatch.setitem(planning.BLUEPRINTS._items, name, Blueprint(name, {}))
    counted, real = count_work(name, samples[0]), planning.loaded_work(load_model(name, device="cpu"), samples[0])
    for what in ("flops", "parameters", "tokens", "picture", "layers", "dim", "poolings", "cache", "vocabulary"):
        assert getattr(counted, what) == getattr(real, what), what


@pytest.mark.parametrize("name", ["paligemma2-10b", "CoCa"])
def test_operations_follow_the_rule_of_thumb(name, samples):
    found = count_work(name, samples[0])
    towers = 0.45 if name == "CoCa" else 1  # the part of the weights that looks at pictures
    assert 0.8 < found.flops / (2 * towers * found.parameters * found.tokens) < 1.2
    assert found.vision <= found.flops and found.picture < found.tokens and found.prepare > 0


def test_every_model_of_the_paper_has_a_blueprint_with_a_source():
    paper = {name for name, spec in planning.MODELS.items() if not spec.repo.startswith("twin:")}
    assert set(BLUEPRINTS) == paper and all(each.source for each in BLUEPRINTS.values())


@pytest.mark.parametrize("layers, poolings", [("all", "all"), ("0,3", "last"), ("2", "mean,image_mean")])
def test_the_store_has_as_many_bytes_as_predicted(layers, poolings, twin, samples, tmp_path):
    chosen = planning.parse_layers(layers), planning.parse_poolings(poolings)
    states = extract_states(twin, samples[:10], tmp_path / "states", *chosen, progress=False)
    written = sum(path.stat().st_size for path in states.folder.glob("*.npy"))
    known, counts = planning.loaded_work(twin, samples[0]), len(twin.anatomy.counts)
    assert written == store_bytes(known, 10, layers, poolings, counts)


# --- what is measured


def test_costs_measured_at_one_size_predict_another(twin, samples):
    "Four times the samples, within a factor: processors of a busy machine are not equally fast from second to second."
    costs = measure_costs(twin, samples[:24], rounds=2)
    large = measure_costs(twin, samples, rounds=1)
    row = predict_costs([cell("extract", twin.name, 96)], "cpu", [costs], assumed=Assumptions(start=(0, 0))).iloc[0]
    assert row["basis"] == "measured" and row["low"] <= row["high"]
    assert row["low"] / 2 < 96 * large.extract[0] / 3600 < 2 * row["high"]
    assert row["disk_gb"] * 1e9 == pytest.approx(96 * large.store, rel=1e-3)
    assert costs.clock == "processor" and costs.device == "cpu" and costs.peak is None


def test_a_law_is_found_again_and_its_interval_means_what_it_says():
    "What is peculiar to a size is shared by its rounds, as with models of several widths: they are not independent."
    random, inside = np.random.default_rng(0), 0
    sizes, rounds = np.array([10, 20, 40, 100]), 2
    for _ in range(300):
        noise = np.tile(0.1 * random.standard_normal(4), rounds) + 0.03 * random.standard_normal(4 * rounds)
        size = np.tile(sizes, rounds)
        law = fit_growth(pd.DataFrame({"size": size, "seconds": 2e-3 * size**1.5 * np.exp(noise)}))
        inside += abs(law.exponents[0] - 1.5) <= law.spread[0]
        low, likely, high = law.at(1000)
        assert low < likely < high and law.n == 4
    assert 0.91 < inside / 300 < 0.99  # 0.73 if each round counts
    assert law.at(20)[2] / law.at(20)[0] < law.at(10_000)[2] / law.at(10_000)[0]  # far away one knows less


def test_a_law_in_two_sizes_is_least_squares():
    random = np.random.default_rng(1)
    rows = pd.DataFrame([{"size": n, "dim": d} for n in (10, 20, 40) for d in (5, 9, 30)])
    rows["seconds"] = 0.3 * rows["size"] ** 2 * rows["dim"] ** 0.5 * np.exp(0.01 * random.standard_normal(9))
    law = fit_growth(rows, sizes=("size", "dim"))
    assert np.allclose(law.exponents, (2, 0.5), atol=0.05) and all(0 < each < 0.05 for each in law.spread)
    assert law.at(40, 30)[1] == pytest.approx(0.3 * 1600 * 30**0.5, rel=0.05)


def test_the_probe_is_measured_through_the_room_that_probes():
    row = planning.measure_probe(108, 16, memory=True)
    assert row["seconds"] > 0 and row["bytes"] > 4 * 108 * 16
    assert math.isnan(planning.measure_probe(54, 8, "ridge")["bytes"])


def test_stretched_models_have_the_asked_sizes(tmp_path, samples):
    grown = planning.grow_models("layers", (1, 3), samples[:2], rounds=1, dim=64)
    assert grown["size"].tolist() == [1, 1, 3, 3] and set(grown["verb"]) == {"forward", "extract"}
    assert grown["flops"].is_monotonic_increasing and grown["bytes"].nunique() == 2
    assert set(grown.dropna(subset=["bytes"])["verb"]) == {"extract"}  # a forward pass writes nothing
    with pytest.raises(ValueError, match="multiple of 32"):
        planning.stretched(tmp_path, dim=100)
    with pytest.raises(UnknownName, match="There are: layers, dimensions"):
        planning.grow_models("width", (32, 64), samples[:2])


def test_answers_write_no_states_and_bytes_have_no_interval(twin, samples):
    grown = planning.grow_images(twin, samples[:4], (2, 3, 4))
    assert grown.groupby("verb")["bytes"].count().to_dict() == {"answer": 0, "extract": 3}
    laws = growth_table(grown).set_index(["verb", "value"])
    assert set(laws.index) == {("answer", "seconds"), ("extract", "seconds"), ("extract", "bytes")}
    assert laws.loc[("extract", "bytes"), ["low", "high"]].isna().all() and laws["exponent"].notna().all()
    assert laws.loc[("extract", "seconds"), ["low", "high"]].notna().all()
    (ax,) = plot_growth(grown, growth_table(grown), "bytes", "Bytes")
    assert [text.get_text() for text in ax.get_legend().get_texts()][
        0
    ] == f"extract: {laws.loc[('extract', 'bytes'), 'exponent']:.2f}"


def test_memory_is_that_of_all_gpus(monkeypatch):
    "A model on several GPUs, or on another than the first."
    import torch

    forgotten, used = [], {None: 1, 0: 10, 1: 5}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda number=None: forgotten.append(number))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda number=None: used[number])
    runs = lambda vlm, samples, place: place.mkdir() or ({"answer": int, "extract": int}, place)  # noqa: E731
    monkeypatch.setattr(planning, "_whole_runs", runs)
    monkeypatch.setattr(planning, "loaded_work", lambda vlm, sample: work())
    vlm = SimpleNamespace(device=SimpleNamespace(type="cuda"), device_name="cuda:1 (NVIDIA H100)")
    assert measure_costs(vlm, [1, 2], rounds=1).peak == 15 and forgotten == [0, 1]


# --- what is predicted


def test_seconds_follow_operations_and_never_beat_the_device():
    times = sample_seconds(work(), "h100-80gb")
    for verb in ("answer", "extract"):
        assert 1e13 / 989e12 < times[verb][0] < times[verb][1]
    double = sample_seconds(work(flops=2e13), "h100-80gb")
    assert 1.6 < double["extract"][1] / times["extract"][1] <= 2
    assert sample_seconds(work(), "a100-80gb")["answer"][0] > 2.5 * times["answer"][0]


def test_preparing_pictures_counts_where_it_is_slower_than_the_gpu():
    rows = [predict_costs([cell()], works={"qwen2-vl-7b": work(prepare=each)}).iloc[0] for each in (0.0, 2.0)]
    assert [row["bound"] for row in rows] == ["GPU", "pictures"] and rows[1]["high"] > 10 * rows[0]["high"]
    assert rows[1]["high"] == pytest.approx(2.0 * 1.5 * 17_496 / 3600, rel=0.02)


def test_a_measurement_comes_before_a_count_and_lends_its_share_to_others():
    known = {"qwen2-vl-7b": work(), "internvl3-8b": work("internvl3-8b")}
    measured = Costs(work(), "cuda:0 (NVIDIA H100 80GB HBM3)", "wall", 20, (0.5,), (0.1,), 1e6, peak=33e9)
    cells = [cell("extract"), cell("extract", "internvl3-8b")]
    ours, other = predict_costs(cells, "h100-80gb", [measured], works=known).to_dict("records")
    assert (ours["basis"], other["basis"]) == ("measured", "counted") and ours["gpu_gb"] == 33
    assert ours["high"] - ours["begin_high"] == pytest.approx(1.25 * 0.1 * 17_496 / 3600)
    assert other["low"] - other["begin_low"] == pytest.approx(0.1 * 17_496 / 3600, rel=0.2)  # 1e13 at the same share
    elsewhere = predict_costs(cells[:1], "a100-80gb", [measured], works=known).iloc[0]
    assert elsewhere["basis"] == "counted"  # an H100 says nothing of an A100
    ours, other = (row[["low", "high"]] - row[["begin_low", "begin_high"]].to_numpy() for row in (
        pd.Series(ours), pd.Series(other)))  # fmt: skip
    assert other["high"] / other["low"] >= ours["high"] / ours["low"]  # nobody is surer of what was not measured


def test_a_share_is_lent_to_weights_of_the_same_kind_only():
    measured = Costs(work(), "cuda:0 (NVIDIA H100 80GB HBM3)", "wall", 64, (0.5,), (0.1,), 1e6)
    assert planning.measured_utilisation([measured], "h100-80gb", "float32") is None
    best, worst = planning.measured_utilisation([measured], "h100-80gb", "bfloat16")
    assert best == pytest.approx(1e13 / 0.1 / 989e12 / 0.9) and worst == pytest.approx(1e13 / 0.1 / 989e12 / 1.25)
    clip = work("CLIP", dtype="float32", vocabulary=0)
    rows = [predict_costs([cell(model="CLIP")], costs=costs, works={"CLIP": clip}) for costs in ([], [measured])]
    assert rows[0].equals(rows[1])


@pytest.mark.parametrize("device, name", [
    ("h100-80gb", "NVIDIA H100 PCIe"), ("h200-141gb", "NVIDIA GH200 480GB"), ("a100-80gb", "NVIDIA A100-SXM4-40GB"),
    ("l40s-48gb", "NVIDIA L40"),
])  # fmt: skip
def test_a_device_of_a_similar_name_is_another(device, name):
    mine = Costs(work(), f"cuda:0 ({DEVICES[device].driver_name})", "wall", 64, (0.5,), (0.1,), 1e6)
    other = Costs(work(), f"cuda:0 ({name})", "wall", 64, (0.5,), (0.1,), 1e6)
    assert planning._measured_on([mine, other], device) == [mine]


def test_a_store_is_priced_as_it_would_be_written():
    known = work()
    some = store_bytes(known, 10, "7,3", "last,mean")
    assert store_bytes(known, 10, "3,7,7", "mean,last,mean") == some
    with pytest.raises(ValueError, match="There is no layer 999"):
        store_bytes(known, 10, "999")
    with pytest.raises(UnknownName, match="This model has no pooling 'class'"):
        store_bytes(known, 10, poolings="class")


def test_a_way_to_cut_that_nobody_knows_is_answered_with_the_nearest():
    rows = predict_costs([cell("extract")], works={"qwen2-vl-7b": work()})
    with pytest.raises(UnknownName, match="Did you mean 'all cut'"):
        planning.cut_runs(rows, 2, "all cuts")
    with pytest.raises(UnknownName, match="Did you mean 'all cut'"):
        planning.describe_costs(planning.plan_costs(rows), cut="all cuts")


def test_a_device_that_names_no_driver_has_no_measurements(monkeypatch):
    monkeypatch.setitem(DEVICES._items, "mine", Device({"bfloat16": 1e14}, 4e10, 1e12, 1.0, "its maker"))
    here = Costs(work(), "cpu", "processor", 64, (900.0,), (900.0,), 1e6)
    row = predict_costs([cell()], "mine", [here], works={"qwen2-vl-7b": work()}).iloc[0]
    assert row["basis"] == "counted" and row["high"] < 100
    assert planning.measured_utilisation([here], "mine", "bfloat16") is None


def test_what_is_done_costs_nothing_and_what_is_unknown_is_listed():
    cells = [cell(), cell(state="done", seed=1), cell("diagnose"), replace(cell(seed=2), samples=None)]
    rows = predict_costs(cells, works={"qwen2-vl-7b": work()})
    assert rows["low"].notna().tolist() == [True, False, False] and len(rows) == 3
    plan = plan_costs(rows)
    assert set(plan["runs"]) == {1} and set(plan["not_predicted"]) == {2}
    assert "Not predicted, and not in these numbers: 2 runs" in describe_costs(plan)


def test_probes_are_counted_by_representation_rule_and_probe():
    known, extraction = {"qwen2-vl-7b": work()}, cell("extract", layers="0,14", poolings="mean,last")
    probe = Cell("p", "probe", check_parameters("probe", {"probes": "svm,ridge"}), (extraction.name,), 9000)
    probe = replace(probe, parameters=probe.parameters | {"model": "qwen2-vl-7b"})
    row = predict_costs([extraction, probe], law=LAW, works=known).iloc[1]
    seconds = 4 * 2 * (LAW.matrix(9000, 3584) + 2 * 81)  # representations, probes, rules
    assert row["representations"] == 4 and row["core_low"] == pytest.approx(0.7 * seconds / 3600, rel=1e-3)
    assert row["core_high"] == pytest.approx(1.5 * seconds / 3600, rel=1e-3)
    assert row["job_gb"] == job_bytes(9000, 3584) / 1e9
    assert int(100 // row["job_gb"]) == count_jobs(9000, 3584, memory=100e9 / 2**30, processors=10**6)
    unmeasured = predict_costs([extraction, probe], works=known).iloc[1]
    assert math.isnan(unmeasured["core_low"]) and unmeasured["run"] == "p"
    done = predict_costs([replace(extraction, state="done"), probe], law=LAW, works=known)
    assert len(done) == 1 and done.iloc[0]["representations"] == 4  # its states are what they are


def test_probes_of_an_earlier_run_read_what_it_wrote(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path))
    known, given = {"qwen2-vl-7b": work()}, {"model": "qwen2-vl-7b", "dataset": "balanced"}
    parameters = check_parameters("extract", given | {"layers": "0,14,28", "poolings": "last", "run": "before"})
    folder = run_folder(parameters)
    assert tmp_path in folder.parents
    probe = Cell("p", "probe", check_parameters("probe", {}) | given | {"states": "before"}, samples=9000)
    assert predict_costs([probe], law=LAW, works=known).iloc[0]["representations"] == 4 * 29  # nothing there
    RunRecord("extract", parameters, samples=9000).save(folder)
    assert predict_costs([probe], law=LAW, works=known).iloc[0]["representations"] == 3


def test_training_a_head_extracts_and_answers():
    "All pictures are read once, and those of the test again with other questions; two heads answer three sets."
    train = cell("train", training_limit=None)
    assert planning._train_sets(train.parameters) == {
        "test": 17_496, "transfer": 10_368, "other-questions": 17_496, "train": 4860, "valid": 1323, "held-out": 1107,
    }  # fmt: skip
    assert planning._count_passes(train) == {"extract": 52_650, "answer": 2 * (17_496 + 10_368 + 1107)}
    few = planning._train_sets(cell("train", limit=432, training_limit=1800).parameters)
    assert few["other-questions"] == few["test"] == 432 and few["train"] + few["valid"] + few["held-out"] == 1800
    real = cell("train", limit=500, training_limit=600, training="pixmo-count-train", dataset="pixmo-count")
    assert planning._train_sets(real.parameters)["train"] == 400


def test_training_sets_are_those_that_the_verb_makes():
    from vlm_counting.training import split_samples

    made = split_samples(generate("unseen_combinations", limit=216))
    sizes = planning._train_sets(cell("train", limit=9, training_limit=216).parameters)
    assert [sizes[name] for name in ("train", "valid", "held-out")] == list(map(len, made))


def test_training_adds_the_operations_and_the_traffic_of_its_heads():
    model, weights = work(), 152_064 * 3584
    plain = cell("train", training_limit=None, epochs=50, controls=False)
    operations, moved = planning._head_work(model, plain.parameters)
    assert operations == 50 * weights * (4 * 4860 + 2 * 1323) and moved == 36 * weights * 50 * 152  # batches of 32
    more = planning._head_work(model, plain.parameters | {"controls": True})  # shuffled counts; bias and rows: light
    assert more == (50 * weights * (12 * 4860 + 8 * 1323), 2 * moved)
    assert planning._head_work(model, plain.parameters | {"part": "bias"})[1] == 0
    rows = [predict_costs([cell("train", training_limit=None, controls=False, epochs=each)],
                          works={model.model: model}).iloc[0] for each in (50, 100)]  # fmt: skip
    added = operations / (0.5 * 67e12) + moved / (0.8 * 3.35e12)
    assert 3600 * (rows[1]["low"] - rows[0]["low"]) == pytest.approx(added, rel=1e-6)


def test_the_grid_of_the_paper_is_planned(tmp_path, monkeypatch):
    "With runs that nobody has described: they are counted as not predicted."
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path))
    cells = plan_sweep(*paper_grids("paper", "full", run="planned"))
    known = {name: work(name) for name in BLUEPRINTS}
    predicted = predict_costs(cells, law=LAW, works=known)
    unknown = predicted[predicted[["low", "core_low"]].isna().all(axis=1)]
    assert len(predicted) == len(cells) and unknown["verb"].value_counts().to_dict() == {"diagnose": 7, "report": 1}
    assert "Not predicted, and not in these numbers: 8 runs" in describe_costs(plan_costs(predicted))


# --- the schedule


def test_makespan_keeps_its_bounds():
    random = np.random.default_rng(0)
    for _ in range(200):
        hours, workers = random.exponential(size=random.integers(1, 40)), int(random.integers(1, 20))
        wall, least = makespan(hours, workers), max(hours.max(), hours.sum() / workers)
        assert least - 1e-9 <= wall <= (4 / 3) * least + hours.max() and wall <= hours.sum() + 1e-9
        assert makespan(hours, 1) == pytest.approx(hours.sum()) and makespan(hours, 50) == hours.max()
    assert makespan([1, 1, 2], 2) == 2  # the longest first; in the given order it would be 3


def test_makespan_is_as_near_to_the_best_as_graham_says():
    random, off = np.random.default_rng(0), 0
    for _ in range(60):
        hours, workers = random.integers(1, 10, random.integers(1, 8)), int(random.integers(2, 4))
        loads = (np.bincount(given, hours, workers).max() for given in product(range(workers), repeat=len(hours)))
        best, wall = min(loads), makespan(hours.tolist(), workers)
        assert best <= wall <= best * (4 / 3 - 1 / (3 * workers)) + 1e-9
        off += wall > best
    assert off  # some of these are hard


def test_plans_keep_their_bounds():
    known = {"qwen2-vl-7b": work()}
    cells = [cell(number=number) for number in (17_496, 9408, 9408 + 1, 2187)]
    cells += [cell("train", number=20_000, training_limit=None)]
    predicted = predict_costs(cells, works=known)
    plan = plan_costs(predicted, gpus=(1, 8, 64), price=2.0).set_index(["cut", "gpus"])
    for (cut, gpus), row in plan.iterrows():
        for end in ("low", "high"):
            total, longest = predicted[end].sum(), predicted[end].max()
            assert (
                row[f"wall_{end}"] >= row[f"gpu_hours_{end}"] / gpus - 1e-9 and row[f"gpu_hours_{end}"] >= total - 1e-9
            )
            assert row[f"used_{end}"] == pytest.approx(2 * row[f"gpu_hours_{end}"])
            assert row[f"rent_{end}"] >= row[f"used_{end}"] - 1e-9
            if gpus == 1:
                assert row[f"wall_{end}"] == pytest.approx(total) and row["parts"] == len(cells)
            if cut == "whole runs":
                assert row[f"wall_{end}"] >= longest - 1e-9
    whole, all_cut = (plan.loc[cut, "wall_high"] for cut in ("whole runs", "all cut"))
    assert (all_cut <= whole + 1e-9).all() and all_cut[64] < whole[64] / 4
    assert whole[64] == pytest.approx(predicted["high"].max())  # 64 GPUs do not help one run
    assert plan.loc[("all cut", 64), "gpu_hours_high"] > predicted["high"].sum()  # each part loads the model again


def test_parts_of_an_extraction_need_their_own_disk():
    rows = predict_costs([cell("extract"), cell("extract", number=90, layers="0")], works={"qwen2-vl-7b": work()})
    plan = plan_costs(rows, gpus=(1, 8)).set_index(["cut", "gpus"])
    whole, large = rows["disk_gb"].sum(), rows["disk_gb"].max()
    assert (plan["disk_gb"] == whole).all() and (plan.loc["whole runs", "disk_peak_gb"] == whole).all()
    assert plan.loc["cut where possible", "disk_peak_gb"].tolist() == pytest.approx([whole, whole + large])
    told = describe_costs(plan.reset_index())
    assert f"{whole:.0f} GB, {whole + large:.0f} with the parts" in told
    assert "with the parts" not in describe_costs(plan.reset_index(), cut="whole runs")


def test_the_sentence_has_the_numbers():
    plan = plan_costs(predict_costs([cell()], works={"qwen2-vl-7b": work()}), gpus=(8,))
    text = describe_costs(plan, "h100-80gb", "whole runs")
    assert (
        text.startswith("8 h100-80gb: ")
        and " dollars of use" in text
        and "1 run." in text
        and "GB of 80, and fits" in text
    )
    small = plan.assign(gpu_gb=79)
    assert "does NOT fit" in describe_costs(small)
    assert "hour of one core's work" not in text
    here = Costs(work(), "cpu", "processor", 64, (1.0,), (1.0,), 1e6)
    told = describe_costs(plan_costs(predict_costs([cell()], "cpu", [here]), "cpu", gpus=(2,)), "cpu")
    assert told.startswith("2 cpu: ") and " processor hours.\n" in told and "hour of one core's work" in told


# --- nonsense


@pytest.mark.parametrize("gpus", [[0], [-8], [2.5], [True]])
def test_no_gpu_is_refused(gpus):
    predicted = predict_costs([cell()], works={"qwen2-vl-7b": work()})
    with pytest.raises(ValueError, match="whole numbers of at least 1"):
        plan_costs(predicted, gpus=gpus)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'h100-80gb'"):
        predict_costs([cell()], "h100-80bg", works={"qwen2-vl-7b": work()})
    with pytest.raises(UnknownName, match=r"Add one: DEVICES.add\(name, Device\(...\)\)"):
        predict_costs([], "mine")
    with pytest.raises(UnknownName, match="Did you mean 'internvl3-8b'"):
        count_work("internvl3-8")


def test_a_device_without_a_rate_needs_a_measurement():
    assert not DEVICES["cpu"].rates
    with pytest.raises(ValueError, match="Measure it there"):
        predict_costs([cell()], "cpu", works={"qwen2-vl-7b": work()})


def test_too_few_measurements_are_refused(twin, samples):
    with pytest.raises(ValueError, match="Measure more sizes"):
        fit_growth(pd.DataFrame({"size": [4, 4, 4], "seconds": [1, 2, 3]}))
    with pytest.raises(ValueError, match="Found 24 samples and 0 rounds.* at least one full batch"):
        measure_costs(twin, samples[:24], rounds=0)
    with pytest.raises(ValueError, match="Nothing to schedule"):
        plan_costs(predict_costs([cell("diagnose")]))
