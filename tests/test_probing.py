"""The probe against scikit-learn and against the paper's words; folds that do not leak; controls; killed runs."""

import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from clusters import wait_until
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

import vlm_counting as vc
from vlm_counting import machines, probing
from vlm_counting.core import UnknownName
from vlm_counting.probing import Features, Task, _find_probe, controls, folds, probe_layers, read_counts
from vlm_counting.statistics import compare, score
from vlm_counting.stimuli import generate

SHAPES, HUES = ("square", "circle", "triangle", "star"), ("red", "green", "blue", "magenta", "yellow", "cyan")


def design(layouts, shapes=SHAPES, hues=HUES, counts=range(1, 10)):
    "Targets and factors in the released order: entity, then count, then layout."
    rows = [
        (count, {"entity": f"{hue}_{shape}s", "colour": hue, "shape": shape, "layout": layout})
        for shape, hue, count, layout in product(shapes, hues, counts, range(layouts))
    ]
    return np.array([count for count, _ in rows]), [row for _, row in rows]


def simulate(targets, factors, dim, strength, seed=0):
    "Like transformer states: entity offsets, power-law spectrum, a signal of rank 8, four dimensions 100 times larger."
    rng, spread = np.random.default_rng(seed), np.arange(1, dim + 1) ** -0.5
    entities = np.unique([row["entity"] for row in factors], return_inverse=True)[1]
    states = rng.standard_normal((len(targets), dim)) * spread
    states += rng.standard_normal((entities.max() + 1, dim))[entities] * spread
    directions = np.linalg.qr(rng.standard_normal((dim, 8)))[0].T
    states += strength * (rng.standard_normal((10, 8)) @ directions)[targets]
    large = rng.choice(dim, 4, replace=False)
    states[:, large] = 100 + states[:, large] / states[:, large].std(axis=0)
    return states.astype(np.float32)


@dataclass(frozen=True)
class Store:
    "States by hand: what `open_states` gives, as far as this room needs it."

    targets: np.ndarray
    factors: list
    broken: tuple = ()  # a key whose array holds a NaN
    model: str = "by hand"
    strength: float = 0.3
    pause: float = 0
    deadly: tuple = ()  # a key that whoever reads it does not survive
    until: str = ""  # a file: as long as it is not there, the last key cannot be read

    @property
    def uids(self):
        return [f"s/{i}" for i in range(len(self.targets))]

    def keys(self):
        return [(layer, pooling) for layer in range(3) for pooling in ("mean", "last")]

    def width(self, layer, pooling):
        return 24

    def array(self, layer, pooling, check=False):
        time.sleep(self.pause)
        if (layer, pooling) == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        while self.until and (layer, pooling) == self.keys()[-1] and not Path(self.until).exists():
            time.sleep(0.05)
        states = simulate(self.targets, self.factors, 24, self.strength * layer, seed=layer + len(pooling))
        if (layer, pooling) == self.broken:
            states[3, 5] = np.nan
        return states


@pytest.fixture(scope="module")
def store():
    return Store(*design(6, shapes=("square", "star"), hues=("red", "cyan")))


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    from vlm_counting.extraction import extract_states
    from vlm_counting.models import load_model

    samples = generate("balanced", limit=216)
    vlm, folder = load_model("tiny-qwen2-vl"), tmp_path_factory.mktemp("twin")
    return extract_states(vlm, samples, folder, [1, 3], lens=False, progress=False)


def by_library(states, targets, fold, tolerance=1e-5):
    "scikit-learn alone, fold by fold."
    said = np.empty_like(targets)
    for number in np.unique(fold):
        machine = SVC(kernel="linear", C=1, tol=tolerance).fit(states[fold != number], targets[fold != number])
        said[fold == number] = machine.predict(states[fold == number])
    return said


def check_equal(states, targets, fold, gram=None):
    "The demand of the specification; returns the accuracy."
    ours = probing.svm(Features(states), targets, fold, tolerance=1e-5, gram=gram)
    theirs = by_library(states, targets, fold)
    assert (ours == theirs).mean() >= 0.999
    for number in np.unique(fold):
        test = fold == number
        difference = abs((ours == targets)[test].mean() - (theirs == targets)[test].mean())
        assert difference <= max(0.001, 2 / test.sum())
    return (theirs == targets).mean()


# --- the probe


@pytest.mark.long_after(1)
@pytest.mark.parametrize("at_once", [0, 10_000])
@pytest.mark.parametrize("strength, accuracy", [(0.098, 0.6), (0.14, 0.85), (0.23, 0.99)])
def test_equals_scikit_learn(strength, accuracy, at_once, monkeypatch):
    "Three separations; pair by pair, and a whole fold at once."
    monkeypatch.setattr(probing, "_AT_ONCE", at_once)
    targets, factors = design(5)
    states = simulate(targets, factors, 768, strength)
    assert check_equal(states, targets, folds(targets, factors)) == pytest.approx(accuracy, abs=0.05)


@pytest.mark.parametrize("gram", [True, False])
def test_equals_scikit_learn_where_classes_overlap(gram):
    "More samples than dimensions, not separable; labels that start at 3 and have a gap."
    targets, factors = design(9, shapes=("star",), counts=(3, 4, 6, 11))
    states = simulate(targets % 10, factors, 20, 0.5)
    assert 0.3 < check_equal(states, targets, folds(targets, factors), gram) < 0.95


@pytest.mark.parametrize("wander", [0, 0.2])
def test_equals_scikit_learn_with_massive_dimensions(wander):
    "Four dimensions of size 50, constant or varying by a fifth: float32 alone would go wrong here."
    targets, factors = design(3, shapes=("star", "square"), counts=(1, 2, 3, 4))
    states = 0.3 * simulate(targets, factors, 400, 0.4)
    states[:, :4] = 50 * (1 + wander * np.random.default_rng(1).standard_normal((len(states), 4)))
    check_equal(states, targets, folds(targets, factors), gram=True)


def test_inner_products_are_exact_where_float32_is_not():
    rng = np.random.default_rng(0)
    states = (rng.standard_normal((50, 300)) + 1000 * (np.arange(300) < 5)).astype(np.float32)
    exact, rows, columns = states.astype(float) @ states.astype(float).T, np.arange(50)[::3], np.arange(50)[5:]
    assert np.abs(Features(states).products(rows, columns) - exact[np.ix_(rows, columns)]).max() < 1e-3
    assert np.abs((states @ states.T).astype(float) - exact).max() > 0.1


@pytest.mark.parametrize("gram, at_once", [(False, 0), (True, 0), (True, 100)])
@pytest.mark.filterwarnings("ignore:Solver terminated early")
def test_a_machine_that_rounding_keeps_from_ending_is_trained_on_centred_states(gram, at_once, monkeypatch):
    "What states share is ten thousand times larger than what they differ in: every fifth machine never ends."
    monkeypatch.setattr(probing, "_STEPS", 1_000_000)  # a thousand are plenty
    monkeypatch.setattr(probing, "_AT_ONCE", at_once)
    monkeypatch.setattr(probing, "_drowned", lambda features: False)  # else these are centred to begin with
    labels, train, test = np.arange(90) % 2, np.arange(60), np.arange(60, 90)
    for seed in range(50):
        states = (7071 + np.random.default_rng(seed).standard_normal((90, 2))).astype(np.float32)
        try:
            probing._read_fold(Features(states), labels, train, test, gram=gram)
        except probing.Stopped:
            break
    with pytest.warns(UserWarning, match="not ended after 1,000,000 steps. Its fold is read from centred states"):
        read = probing.svm(Features(states), labels, np.array([-1, 0]).repeat([60, 30]), tolerance=1e-3, gram=gram)
    centred = states - states.mean(axis=0, dtype=np.float64)
    expected = SVC(kernel="linear", C=1).fit(centred[train], labels[train]).predict(centred[test])
    assert (read[test] == expected).all()


@pytest.mark.parametrize("name", ["svm", "svm_standardised"])
@pytest.mark.filterwarnings("ignore")
def test_a_machine_that_never_ends_is_an_error(name, monkeypatch):
    monkeypatch.setattr(probing, "_STEPS", 1)
    monkeypatch.setattr(probing, "_PROVED", -1)  # none is exact enough, and LIBSVM has to help
    targets, factors = design(3, shapes=("square",))
    states = simulate(targets, factors, 40, 0.4)
    with pytest.raises(probing.Stopped, match="had not ended after 1 steps"):
        probing.PROBES[name](Features(states), targets, folds(targets, factors))


def two_classes(many, dim, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    states, sign = scale * rng.standard_normal((many, dim)), np.where(np.arange(many) % 3 > 0, 1.0, -1.0)
    return states + scale * 0.3 * sign[:, None] * np.eye(dim)[0], sign


KINDS = {
    "plain": lambda states, rng: states,
    "few directions": lambda states, rng: (
        states[:, :6] @ rng.standard_normal((states[:, :6].shape[1], states.shape[1]))
    ),
    "massive": lambda states, rng: states * np.where(np.arange(states.shape[1]) < 4, 60, 1),
    "equal": lambda states, rng: np.repeat(states[::6], 6, axis=0)[: len(states)],
    "nearly equal": lambda states, rng: np.repeat(states[::6], 6, axis=0)[: len(states)] + 1e-4 * states,
    "shifted": lambda states, rng: states + 40 * rng.standard_normal(states.shape[1]),
    "constant": lambda states, rng: states * (np.arange(states.shape[1]) % 2),
    "tiny": lambda states, rng: states * 1e-4,
    "small": lambda states, rng: states * 0.03,
    "huge": lambda states, rng: states * 1e4,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("many, dim", [(40, 300), (90, 100), (120, 8), (60, 1)])
def test_every_machine_is_proved(kind, many, dim):
    "More dimensions than samples and fewer, with a shared matrix and without: the same machine, within its conditions."
    states, sign = two_classes(many, dim)
    features, rows = Features(KINDS[kind](states, np.random.default_rng(1))), np.arange(many)
    found = []
    for gram in (True, False):
        weights, offset = probing._machine(features, rows, sign, gram)
        slice = probing._of_states(features.less_mean(rows), sign)
        scale = 1e-3 if gram else 1e-6  # float32's inner products are those of slightly other states
        assert probing._breach(slice, weights * sign, offset + slice.level @ weights) <= scale
        found.append(weights @ features.less_mean(rows) @ features.less_mean(rows).T + offset)
    assert features.solved == {"proved": 2} and np.abs(found[0] - found[1]).max() < 1e-3


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"huge"}))
@pytest.mark.parametrize("dim", [300, 30])
def test_exact_machines_vote_as_the_library_at_a_small_tolerance(kind, dim):
    "On centred states, whose kernel float32 can hold. Who votes otherwise has a decision that is nearly 0."
    targets, factors = design(4, shapes=("square", "star"), counts=(1, 2, 3, 5))
    states = KINDS[kind](simulate(targets, factors, dim, 0.3) - 100 * (dim < 0), np.random.default_rng(1))
    states = (states - states.mean(axis=0, dtype=np.float64)).astype(np.float32)
    fold, features = folds(targets, factors), Features(states)
    read, library = probing.svm(features, targets, fold, tolerance=0), by_library(states, targets, fold)
    assert features.solved == {"proved": 18}
    for index in np.flatnonzero(read != library):
        train = np.flatnonzero(fold != fold[index])
        weights, offsets = probing._exact_pairs(features, targets, train, gram=False)
        said = probing._decide(features, train, np.array([index]), weights, gram=False) + offsets
        assert np.abs(said).min() < 1e-3
    assert (read == library).mean() > 0.98


def test_one_sample_against_many_and_one_against_one():
    for many in (1, 30):
        states = np.vstack([np.random.default_rng(0).standard_normal((many, 50)), np.full((1, 50), 2.0)])
        sign, features = np.r_[np.full(many, -1.0), 1.0], Features(states)
        weights, offset = probing._machine(features, np.arange(many + 1), sign, True)
        slice = probing._of_states(features.less_mean(np.arange(many + 1)), sign)
        assert probing._breach(slice, weights * sign, offset + slice.level @ weights) < 1e-5


def test_the_library_is_left_where_it_zigzags_and_nowhere_else():
    "Plain states are read as ever; a few large dimensions by proved machines, as at a small tolerance."
    targets, factors = design(4, shapes=("square", "star"), counts=(1, 2, 3, 5))
    plain, fold = simulate(targets, factors, 300, 0.3), folds(targets, factors)
    features = Features(plain)
    assert (probing.svm(features, targets, fold) == probing.svm(features, targets, fold, tolerance=1e-3)).all()
    assert not features.solved
    massive = Features(plain * np.where(np.arange(300) < 4, 200, 1))
    read = probing.svm(massive, targets, fold)
    assert massive.solved["proved"] == 18 and (read == probing.svm(massive, targets, fold, tolerance=0)).all()


def test_the_papers_rule_keeps_the_released_tolerance_and_no_other_does(store):
    tasks = probing._plan_tasks(store.targets, store.factors, ["svm", "ridge"], ["paper", "layout"])
    fits = {(task.probe, task.rule): task.fit for task in tasks}
    assert fits["svm", "layout"] is probing.svm and fits["ridge", "paper"] is probing.PROBES["ridge"]
    states = store.array(2, "mean")
    read = read_counts(states, store.targets, store.factors)
    released = probing.svm(Features(states), store.targets, folds(store.targets, store.factors), tolerance=1e-3)
    assert [row.count for row in read] == released.tolist()
    assert fits["svm", "paper"].keywords == {"tolerance": 1e-3} and pickle.loads(pickle.dumps(fits["svm", "paper"]))


@pytest.mark.parametrize("jobs", [1, 2])
def test_machines_that_could_not_be_proved_are_counted(store, jobs, monkeypatch, tmp_path):
    "In the table, in the notes, and after a restart."
    monkeypatch.setattr(probing, "_zigzags", lambda features: True)  # as if LIBSVM always took too long
    done = probing.probe(store, rule="layout", controls=None, layer=1, progress=False, jobs=1)
    assert (done.table["fallbacks"] == 0).all() and not any("proved" in note for note in done.notes)
    if jobs == 2:  # one that is killed and goes on
        done.rows[0]["fallbacks"] = 7
        assert probing._tidy(done.rows)["fallbacks"].tolist() == [7, 0]
        return
    monkeypatch.setattr(probing, "_PROVED", -1)
    for _ in range(2):
        done = probing.probe(store, rule="layout", controls=None, layer=1, progress=False, jobs=1, path=tmp_path)
    assert (done.table["fallbacks"] == 3 * 36).all()
    assert any("216 machines could not be proved. LIBSVM's are taken" in note for note in done.notes)


def test_a_card_multiplies_as_the_processor_does_or_is_not_asked(monkeypatch):
    "Simulated on the processor, once exactly and once with the ten bits of TF32."
    import torch

    states = np.random.default_rng(0).standard_normal((200, 64)).astype(np.float32)
    plain = Features(states).products(np.arange(200), np.arange(200))
    monkeypatch.setattr(probing, "_card", lambda: "cpu")
    monkeypatch.setattr(probing, "_WORTH", 0)
    monkeypatch.setattr(probing, "_BLOCK", 64)
    used = []
    monkeypatch.setattr(probing, "_by_card", lambda *given, ask=probing._by_card: used.append(ask(*given)) or used[-1])
    there = Features(states).products(np.arange(200), np.arange(200))
    assert used[-1] is not None and np.abs(there - plain).max() < 1e-4
    rough = torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: rough(array).bfloat16().float())
    assert np.abs(Features(states).products(np.arange(200), np.arange(200)) - plain).max() < 1e-4 and used[-1] is None

    def full(array):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch, "from_numpy", full)
    assert np.abs(Features(states).products(np.arange(200), np.arange(200)) - plain).max() < 1e-4 and used[-1] is None


@pytest.mark.parametrize("name", ["logistic", "ridge"])
@pytest.mark.parametrize("dim", [300, 900])
def test_coordinates_read_what_the_states_read(name, dim, monkeypatch):
    "As many as training samples instead of dimensions."
    targets, factors = design(3, shapes=("square", "star"), hues=("red", "cyan"))
    fold, states = folds(targets, factors), simulate(targets, factors, dim, 0.3)
    features = Features(states)
    reduced = probing.PROBES[name](features, targets, fold)
    assert features._last[1]._reduced[1].shape == (108, 72)
    monkeypatch.setattr(probing, "_inputs", lambda features, train: features.standardised(train).states)
    plain = probing.PROBES[name](Features(states), targets, fold)
    if name == "ridge":
        assert np.abs(reduced - plain).max() < 5e-3
    assert (np.round(reduced) == np.round(plain)).mean() > 0.98


def test_a_small_dimension_beside_a_huge_one_is_no_constant():
    states = np.random.default_rng(0).standard_normal((60, 2)).astype(np.float32) * [1e6, 0.01] + [0, 5]
    states = np.column_stack([states, np.full(60, 3.3)]).astype(np.float32)
    spread = probing._standardise(states, np.arange(60)).std(axis=0)
    assert np.allclose(spread, [1, 1, 0], atol=1e-3)


def test_the_control_task_without_a_layout_says_how_to_do_without_it():
    with pytest.raises(KeyError, match="control task' needs the factor 'layout'.*Leave it out: controls="):
        probing._control_labels("control task", [1, 2], [{}, {}], "random")


def test_a_layer_that_is_gone_does_not_stop_the_others(twin, tmp_path):
    "Whichever it is: the last one was read before anything was probed."
    from vlm_counting.extraction import _file_of, open_states

    copy, (layer, pooling) = shutil.copytree(twin.folder, tmp_path / "states"), twin.keys()[-1]
    (copy / _file_of(layer, pooling)).unlink()
    with pytest.raises(RuntimeError, match=f"Layer {layer}, pooling '{pooling}'"):
        probe_layers(open_states(copy), controls=(), path=tmp_path / "p.jsonl", jobs=1, progress=False)
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == len(twin.keys()) - 1
    with pytest.raises(ValueError, match="keys is empty"):
        probe_layers(twin, keys=[])


def zero_rows(folder: Path) -> int:
    "How many files it damages."
    np.load(folder / "layer_03.last.npy", mmap_mode="r+")[::3] = 0
    return 1


def cut(folder: Path) -> int:
    os.truncate(folder / "layer_03.last.npy", (folder / "layer_03.last.npy").stat().st_size - 4)
    return 1


def swap_layers(folder: Path) -> int:
    (folder / "layer_03.last.npy").rename(folder / "between")
    (folder / "layer_01.last.npy").rename(folder / "layer_03.last.npy")
    (folder / "between").rename(folder / "layer_01.last.npy")
    return 2


def other_type(folder: Path) -> int:
    data = (folder / "layer_03.last.npy").read_bytes()
    (folder / "layer_03.last.npy").write_bytes(data.replace(b"<f4", b"<i4", 1))
    return 1


@pytest.mark.long_after(1)
@pytest.mark.parametrize("damage", [zero_rows, cut, swap_layers, other_type])
def test_states_that_changed_are_not_probed(damage, twin, tmp_path):
    "Every third row zeroed was read as it was, and the score was 0.755 instead of 0.949. The other layers are kept."
    from vlm_counting.extraction import open_states

    copy = Path(shutil.copytree(twin.folder, tmp_path / "states"))
    lost = damage(copy)
    with pytest.raises(
        RuntimeError, match="Layer 3, pooling 'last' .*layer_03.last.npy (has changed|is damaged|holds)"
    ):
        probe_layers(open_states(copy), controls=(), path=tmp_path / "p.jsonl", jobs=2, progress=False)
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == len(twin.keys()) - lost


def test_a_store_whose_samples_were_edited_is_not_probed(twin, tmp_path):
    from vlm_counting.extraction import open_states

    copy = Path(shutil.copytree(twin.folder, tmp_path / "states"))
    rows = [json.loads(line) for line in (copy / "samples.jsonl").read_text().splitlines()]
    for row in rows[::3]:
        row["target"] = 1 + row["target"] % 9
    (copy / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="samples.jsonl has changed"):
        open_states(copy)


def test_untrained_states_of_other_images_with_the_same_uids_are_refused(twin):
    other = replace(twin, about=twin.about | {"fingerprint": "0" * 64})
    with pytest.raises(
        ValueError, match="The untrained states are of samples with the same uids, but with other images"
    ):
        probe_layers(twin, untrained=other, controls=(), progress=False)


@pytest.fixture(scope="module")
def owned(tmp_path_factory) -> Path:
    "A manifest of images of one's own, whose states were read."
    from PIL import Image

    from vlm_counting.runs import run

    place, rows = tmp_path_factory.mktemp("owned"), []
    for i in range(9):
        Image.new("RGB", (64, 64), (i * 20, 0, 0)).save(place / f"{i}.png")
        rows.append({"uid": f"u{i}", "image": f"{i}.png", "question": "How many dots are there?", "target": i + 1})
    (place / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_COUNTING_RESULTS", str(place / "results"))
        run("extract", dataset=str(place / "manifest.jsonl"), limit=None, layers="4", poolings="last")
    return place


@pytest.mark.parametrize("change", ["targets", "images"])
def test_the_command_refuses_a_set_that_has_changed_since(change, owned, monkeypatch):
    "Same uids, other counts or blanked images: scores of the old set stood beside controls of the new one."
    from PIL import Image

    from vlm_counting.runs import run

    manifest = owned / "manifest.jsonl"
    before, told = manifest.read_text(), "the true count of sample 0 .* is 9 now and was 1"
    if change == "targets":
        rows = [json.loads(line) for line in before.splitlines()]
        manifest.write_text("".join(json.dumps(row | {"target": 10 - row["target"]}) + "\n" for row in rows))
    else:
        told = "uids, true counts and factors are the same, but questions or images are not"
        for path in owned.glob("*.png"):
            Image.new("RGB", (64, 64)).save(path)
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(owned / "results"))
    with pytest.raises(Exception, match=f"is of other samples: {told}"):
        run("probe", dataset=str(manifest), probes="ridge", untrained=None)
    assert not list((owned / "results" / "probe").rglob("scores.csv"))
    manifest.write_text(before)


def test_library_vote_on_ties():
    "Three classes that each win one pair: the first is chosen, as in libsvm."
    decisions = np.array([[-1.0, 1.0, -1.0], [0.0, -1.0, 1.0], [1.0, 1.0, 1.0]])  # pairs 01, 02, 12
    assert probing._vote(decisions, np.array([5, 6, 7])).tolist() == [5, 5, 7]


@pytest.mark.parametrize("name", probing.PROBES)
def test_every_probe_reads_what_is_plain(name):
    targets, factors = design(6, shapes=("square",))
    states = np.outer(targets, np.ones(12)) + 0.01 * np.random.default_rng(0).standard_normal((len(targets), 12))
    read = read_counts(states, targets, factors, name)
    assert score(read)["accuracy"].iloc[0] > 0.99
    assert {row.factors["fold"] for row in read} == {0, 1, 2} and read[0].model == f"probe {name}"


@pytest.mark.parametrize("name", ["svm_standardised", "logistic", "ridge"])
def test_scale_does_not_matter_to_the_standardised(name):
    targets, factors = design(3, shapes=("square",))
    states, fold = simulate(targets, factors, 40, 0.4), folds(targets, factors)
    small, large = (probing.PROBES[name](Features(scale * states), targets, fold) for scale in (1 / 64, 64))
    assert np.corrcoef(small, large)[0, 1] > 0.999


def test_ridge_extrapolates_and_classifiers_may_not():
    targets, factors = design(4, shapes=("square",))
    states = np.outer(targets, np.ones(5)) + 0.01 * np.random.default_rng(0).standard_normal((len(targets), 5))
    read = read_counts(states, targets, factors, "ridge", "count")
    assert np.abs([float(row.text) - row.target for row in read]).max() < 0.5
    for name in set(probing.PROBES) - {"ridge"}:
        with pytest.raises(ValueError, match="Use probe 'ridge' with rule 'count'"):
            read_counts(states, targets, factors, name, "count")


def test_a_probe_of_ones_own_may_say_that_it_reads_new_counts(monkeypatch):
    mine = lambda features, labels, fold: np.where(fold >= 0, features.states[:, 0], 0)  # noqa: E731
    monkeypatch.setitem(probing.PROBES._items, "mine", mine)
    targets, factors = design(4, shapes=("square",))
    states = np.asarray(targets, dtype=float)[:, None]
    with pytest.raises(ValueError, match="probe 'mine' can only answer counts that it was trained on"):
        read_counts(states, targets, factors, "mine", "count")
    mine.reads_new_counts = True
    assert all(row.count == row.target for row in read_counts(states, targets, factors, "mine", "count"))


def test_predictions_join_answers():
    "A reading and an answer are compared picture by picture, per count."
    targets, factors = design(4, shapes=("square",))
    states, uids = simulate(targets, factors, 40, 0.5), [f"b/{i}" for i in range(len(targets))]
    read = read_counts(states, targets, factors, uids=uids)
    answers = [
        probing.Prediction(uid, "m", "1", 1, 1, int(t), None, f)
        for uid, t, f in zip(uids, targets, factors, strict=True)
    ]
    table = compare(answers, read, by="target").set_index("target")
    assert table.loc[1, "first"] == 1 and table.loc[9, "first"] == 0 and table.loc[9, "difference"] > 0.3


@pytest.mark.parametrize("gram", [True, False])
def test_equals_scikit_learn_on_a_twin(twin, gram):
    fold = folds(twin.targets, twin.factors)
    accuracies = [check_equal(twin.array(layer, "last"), twin.targets, fold, gram) for layer in (1, 3)]
    assert max(accuracies) > 0.5


def test_twin_from_store_to_table(twin, tmp_path):
    table = probe_layers(twin, controls=(), path=tmp_path / "probes.jsonl", progress=False)
    assert list(zip(table["layer"], table["pooling"], strict=True)) == twin.keys()
    assert (table["n"] == 216).all() and (table["model"] == "tiny-qwen2-vl").all() and table["accuracy"].max() > 0.8


# --- folds


def test_paper_folds_against_its_words():
    "Group by entity, stack to (entities, 9 * 81); numpy seed 0; per entity shuffle 0..80; three equal parts."
    targets, factors = design(81)
    expected = np.empty((24, 9, 81), dtype=int)
    np.random.seed(0)
    for entity in range(24):
        positions = list(range(81))
        np.random.shuffle(positions)
        for number in range(3):
            expected[entity, :, positions[27 * number : 27 * (number + 1)]] = number
    ours = folds(targets, factors)
    assert (ours == expected.ravel()).all() and np.bincount(ours).tolist() == [5832] * 3


def test_folds_follow_the_factors_and_not_the_order():
    targets, factors = design(9)
    fold = folds(targets, factors)
    order = np.concatenate([np.arange(1), 1 + np.random.default_rng(0).permutation(len(targets) - 1)])
    entities = list(dict.fromkeys(row["entity"] for row in factors))
    order = sorted(order, key=lambda i: entities.index(factors[i]["entity"]))  # entities in order, all else mixed
    mixed = folds(targets[order], [factors[i] for i in order])
    assert (mixed == fold[order]).all()


def test_paper_folds_of_a_sample_are_even_and_keep_siblings():
    samples = generate("balanced", limit=216)
    targets, factors = [s.target for s in samples], [s.factors for s in samples]
    fold = folds(targets, factors)
    assert np.bincount(fold).min() > 60
    where = {}
    for row, number in zip(factors, fold, strict=True):
        where.setdefault((row["entity"], row["layout"]), set()).add(number)
    assert all(len(numbers) == 1 for numbers in where.values())


def test_variants_of_a_distractor_layout_are_positions():
    targets = np.repeat(range(1, 10), 12)
    factors = [{"entity": "magenta_circles", "layout": i // 3, "variant": i % 3} for _ in range(9) for i in range(12)]
    expected, order = np.empty(12, dtype=int), np.random.RandomState(0).permutation(12)
    for number, part in enumerate(np.split(order, 3)):
        expected[part] = number
    assert (folds(targets, factors) == np.tile(expected, 9)).all()


@pytest.mark.parametrize("rule", ["layout", "entity", "colour", "shape", "count"])
def test_group_rules_never_share_a_group(rule):
    targets, factors = design(9)
    groups = targets if rule == "count" else np.array([str(row[rule]) for row in factors])
    fold = folds(targets, factors, rule)
    assert set(fold) == {0, 1, 2}
    for number in range(3):
        assert not set(groups[fold == number]) & set(groups[fold != number])


def test_layout_folds_keep_questions_about_one_picture_together():
    samples = generate("two_groups", limit=216)
    fold = folds([s.target for s in samples], [s.factors for s in samples], "layout")
    where = {}
    for sample, number in zip(samples, fold, strict=True):
        where.setdefault(sample.factors["pair"], set()).add(number)
    assert all(len(numbers) == 1 for numbers in where.values()) and np.bincount(fold).min() > 40


def test_random_folds_need_no_factor():
    targets = np.repeat([2, 3, 4], [30, 31, 50])
    fold = folds(targets, [{}] * len(targets), "random", number=5)
    for count in (2, 3, 4):
        assert np.ptp(np.bincount(fold[targets == count], minlength=5)) <= 1
    with pytest.raises(KeyError, match="needs the factor 'entity', which 111 of 111 samples lack.*'random'"):
        folds(targets, [{}] * len(targets))


# --- controls


def test_labels_of_controls():
    targets, factors = design(9, hues=("red", "cyan"))
    for rule, kind in (("paper", "layout"), ("layout", "entity")):
        labels, types = probing._control_labels("control task", targets, factors, rule)
        table = pd.DataFrame(
            {"type": types, "label": labels, "kind": [row[kind] for row in factors], "target": targets}
        )
        assert (table.groupby("type")["label"].nunique() == 1).all()
        assert table["type"].nunique() == table.groupby(["kind", "target"]).ngroups
        assert (np.bincount(labels) == np.bincount(targets)).all() and (labels != targets).mean() > 0.7
        assert probing._seen_share(types, folds(targets, factors, rule)) == 1
    arrangements = probing._control_labels("control task", targets, factors, "paper")[1]
    assert probing._seen_share(arrangements, folds(targets, factors, "layout")) == 0


def test_control_labels_of_an_unbalanced_sample_are_the_counts_of_its_types():
    targets, factors = design(4, shapes=("square",), hues=("red",))
    keep = [i for i, row in enumerate(factors) if targets[i] < 3 or row["layout"] == 0]  # 4 layouts of 1 and 2, else 1
    labels, types = probing._control_labels("control task", targets[keep], [factors[i] for i in keep])
    dealt = {name: label for name, label in zip(types, labels, strict=True)}
    assert sorted(dealt.values()) == sorted(count for _, count in dealt) == [1] * 4 + [2] * 4 + list(range(3, 10))


@pytest.mark.long
def test_no_selectivity_where_the_control_task_cannot_be_learnt():
    "At 216 pictures of `balanced` hardly a type comes back: accuracy minus chance is no selectivity."
    samples = generate("balanced", limit=216)
    few = Store([sample.target for sample in samples], [sample.factors for sample in samples])
    settings = {"rules": ("paper", "layout"), "keys": [(2, "mean")], "jobs": 1, "progress": False}
    table = probe_layers(few, **settings)
    seen = table[table["control"] == "control task"].set_index("rule")["seen"]
    assert seen["layout"] == 0 and 0 < seen["paper"] < 0.3 and table["selectivity"].isna().all()
    said = probing.what_remains(table)
    assert "The control task is left out: training shows the type of only 0% of the samples." in said
    assert "At best, the controls get: shuffled" in said and "control task " not in said.partition("controls get")[2]
    ruler = controls(samples, rules=("paper", "layout"), progress=False)  # its row numbers are those of the table
    whole = ruler.query("rule == 'layout'").set_index("control")["accuracy"]
    said = probing.what_remains(pd.concat([table, ruler]))
    assert all(f"{control} {accuracy:.1%}" in said for control, accuracy in whole.items()) and len(whole) == 3
    many = Store(*design(3))  # every cell three times
    table = probe_layers(many, **(settings | {"rules": ("layout",)}))
    assert table["seen"].max() == 1 and table["selectivity"].notna().sum() == 1
    assert "left out" not in probing.what_remains(table)


def test_what_is_trained_on_the_same_part_shares_its_standardised_states(monkeypatch):
    "Three label sets, three probes, three folds: standardised three times; the same numbers as one by one."
    targets, factors = design(3, shapes=("square",))
    states, made, plain = simulate(targets, factors, 40, 0.4), [], probing._standardise
    monkeypatch.setattr(probing, "_standardise", lambda *given: made.append(1) or plain(*given))
    probes, names = ["svm_standardised", "logistic", "ridge"], ("shuffled", "control task")
    tasks = probing._plan_tasks(targets, factors, probes, ["paper", "layout"], names)
    said = probing._read_tasks(Features(states), tasks)
    assert len(tasks) == 18 and len(made) == 2 * 3
    for task, read in zip(tasks, said, strict=True):
        assert np.array_equal(read, task.fit(Features(states), task.labels, task.fold)), task.probe


def test_control_task_finds_a_probe_that_recognises_pictures():
    "States that name the arrangement and nothing else: perfect on seen ones, selectivity 0; chance on new ones."
    targets, factors = design(6, shapes=("square",))
    codes = np.random.default_rng(0).standard_normal((10, 6, 64))
    states = np.array([codes[target, row["layout"]] for target, row in zip(targets, factors, strict=True)])

    class Recognising(Store):
        def keys(self):
            return [(1, "mean")]

        def array(self, layer, pooling, check=False):
            return states

    table = probe_layers(Recognising(targets, factors), rules=("paper", "layout"), jobs=1, progress=False)
    table = table.set_index(["rule", "control"])
    assert table.loc[("paper", "none"), "accuracy"] == 1 and table.loc[("paper", "none"), "selectivity"] == 0
    assert table.loc[("layout", "none"), "accuracy"] < 0.35
    assert table.loc[("paper", "shuffled"), "accuracy"] < 0.3


def test_shuffled_is_chance_and_selectivity_is_a_difference(store):
    table = probe_layers(store, jobs=1, progress=False)
    best = table[table["layer"] == 2].set_index(["pooling", "control"])
    for pooling in ("mean", "last"):
        row, task = best.loc[(pooling, "none")], best.loc[(pooling, "control task")]
        shuffled = best.loc[(pooling, "shuffled")]
        assert row["accuracy"] > 0.5 and row["low"] <= row["accuracy"] <= row["high"] and row["spearman"] > 0.3
        assert shuffled["low"] < 1 / 9 + 0.03 and shuffled["accuracy"] < 0.25
        assert row["selectivity"] == pytest.approx(row["accuracy"] - task["accuracy"])
    assert table["chance"].to_numpy() == pytest.approx(1 / 9, abs=1e-5)


@pytest.mark.long
def test_lit_area_counts_objects_of_one_size():
    samples = [s for s in generate("balanced", limit=432) if s.factors["shape"] == "square"]
    area = controls(samples, rules=("paper", "layout"), progress=False).set_index(["control", "rule"])["accuracy"]
    assert area["lit area"].min() > 0.98 and area["lit area by kind"].min() > 0.98
    mixed = controls(generate("balanced", limit=216), rules=("layout",), progress=False).set_index("control")[
        "accuracy"
    ]
    assert mixed["lit area"] < 0.5 < mixed["lit area by kind"]


def test_lit_area_of_any_background():
    from PIL import Image

    image = Image.new("RGB", (20, 10), (7, 8, 9))
    image.paste((255, 0, 0), (0, 0, 3, 2))
    assert probing._lit_area(image) == 6
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    noise[:, :30] = 5
    assert probing._lit_area(Image.fromarray(noise)) == 400


# --- all layers


def test_row_is_what_the_paper_reports(store):
    row = probe_layers(store, controls=(), keys=[(2, "mean")], jobs=1, progress=False).iloc[0]
    read = read_counts(store.array(2, "mean"), store.targets, store.factors)
    per_fold = [np.mean([r.count == r.target for r in read if r.factors["fold"] == k]) for k in range(3)]
    assert row["accuracy"] == pytest.approx(np.mean(per_fold), abs=1e-6)
    assert row["std"] == pytest.approx(np.std(per_fold, ddof=0), abs=1e-6)
    whole = score(read).iloc[0]
    assert (row["low"], row["high"]) == pytest.approx((whole["low"], whole["high"]), abs=1e-6)


def test_unequal_folds_have_an_interval_around_their_mean(store):
    targets, factors = design(6, hues=("red",))  # 4 shapes in 3 folds
    table = probe_layers(Store(targets, factors), rules=("shape",), controls=(), jobs=1, progress=False)
    assert ((table["low"] <= table["accuracy"]) & (table["accuracy"] <= table["high"])).all()


@pytest.mark.long
def test_processes_give_the_same_table(store, tmp_path):
    one = probe_layers(store, path=tmp_path / "one.jsonl", jobs=1, progress=False)
    two = probe_layers(store, path=tmp_path / "two.jsonl", jobs=2, progress=False)
    pd.testing.assert_frame_equal(one, two)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*torn last line")
def test_cut_anywhere_and_resumed_gives_the_same_bytes(store, tmp_path):
    path, settings = tmp_path / "probes.jsonl", {"controls": ("shuffled",), "jobs": 1, "progress": False}
    table = probe_layers(store, path=path, **settings)
    whole = path.read_bytes()
    for cut in np.random.default_rng(0).integers(0, len(whole), 6):
        path.write_bytes(whole[:cut])
        pd.testing.assert_frame_equal(probe_layers(store, path=path, **settings), table)
        assert path.read_bytes() == whole


@pytest.mark.long
def test_killed_and_resumed_gives_the_same_bytes(store, tmp_path):
    program = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from pathlib import Path
        from test_probing import Store, design, probe_layers
        store = Store(*design(6, shapes=("square", "star"), hues=("red", "cyan")), pause=0.4)
        probe_layers(store, path=Path(sys.argv[2]), jobs=1, progress=False)
    """
    path = tmp_path / "run" / "probes.jsonl"
    folder = os.path.dirname(os.path.abspath(__file__))
    command = [sys.executable, "-c", textwrap.dedent(program), folder, str(path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while (not path.exists() or path.stat().st_size < 1000) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = path.read_bytes()
    table = probe_layers(store, path=path, jobs=1, progress=False)
    undisturbed = probe_layers(store, path=tmp_path / "whole.jsonl", jobs=1, progress=False)
    pd.testing.assert_frame_equal(table, undisturbed)
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert 0 < len(begun) < len(path.read_bytes())


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_names_its_representation_and_keeps_the_rest(store, tmp_path, jobs):
    broken, path = Store(store.targets, store.factors, broken=(1, "last")), tmp_path / "probes.jsonl"
    with pytest.raises(
        RuntimeError, match=r"1 of 6 .*Layer 1, pooling 'last' of by hand.*1 values that are not finite"
    ):
        probe_layers(broken, controls=(), path=path, jobs=jobs, progress=False)
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["layer"], row["pooling"]) for row in kept] == [key for key in store.keys() if key != (1, "last")]
    mended = probe_layers(Store(store.targets, store.factors), controls=(), path=path, jobs=jobs, progress=False)
    undisturbed = probe_layers(Store(store.targets, store.factors), controls=(), jobs=1, progress=False)
    pd.testing.assert_frame_equal(mended, undisturbed)  # the missing one in its place


# --- on a cluster


@pytest.fixture(scope="module")
def cluster():
    "Two workers in processes of their own; one that is killed is replaced."
    from distributed import LocalCluster

    options = {"threads_per_worker": 1, "dashboard_address": None, "memory_limit": None, "silence_logs": 50}
    with LocalCluster(n_workers=2, **options) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with machines.connect(cluster.scheduler_address) as client:
        client.wait_for_workers(2)
        yield client


@pytest.mark.long
def test_workers_open_the_store_themselves_and_give_the_same_bytes(client, store, tmp_path):
    from vlm_counting.core import file_hash, write_jsonl
    from vlm_counting.extraction import _FORMAT, _file_of, open_states

    folder = tmp_path / "states"
    folder.mkdir()
    rows = [
        {"uid": u, "target": int(t), "factors": f}
        for u, t, f in zip(store.uids, store.targets, store.factors, strict=True)
    ]
    write_jsonl(folder / "samples.jsonl", rows)
    for layer, pooling in store.keys():
        np.save(folder / _file_of(layer, pooling), store.array(layer, pooling))
    about = {"format": _FORMAT, "finished": True, "model": "by hand", "samples": len(rows), "layers": [0, 1, 2]}
    about |= {"poolings": ["mean", "last"], "sha256": {path.name: file_hash(path) for path in folder.glob("*.npy")}}
    about |= {"dims": {_file_of(*key): store.array(*key).shape[1] for key in store.keys()}}
    about |= {"fingerprint": "by hand", "settings": {}}
    (folder / "states.json").write_text(json.dumps(about))
    states, files = open_states(folder), [tmp_path / "turn" / "p.jsonl", tmp_path / "cluster" / "p.jsonl"]
    tables = [
        probe_layers(states, path=path, progress=False, **more)
        for path, more in zip(files, ({"jobs": 1}, {"client": client}), strict=True)
    ]
    pd.testing.assert_frame_equal(*tables)
    assert files[0].read_bytes() == files[1].read_bytes() and len(tables[0]) == 18
    tasks = probing._plan_tasks(states.targets, states.factors, ["svm"], ["paper"])
    unit, *_ = probing._plan_units(states, None, tasks, [(1, "mean")], {"folds": 3, "seed": 0})
    sent = pickle.dumps(unit)
    assert (
        len(sent) < 216 * 24 * 4 and folder.parent.name.encode() in sent and b"s/215" not in sent
    )  # no states, no samples


@dataclass(frozen=True)
class Signed(Store):
    "Notes which processes read it."

    signatures: str = ""  # path of a file

    def array(self, layer, pooling):
        with open(self.signatures, "a") as file:
            file.write(f"{os.getpid()}\n")
        return super().array(layer, pooling)


@pytest.mark.long
def test_one_worker_with_one_thread_does_the_work_itself(client, cluster, store, tmp_path):
    "joblib takes a cluster of one thread for a reason to work in the process that asks."
    signed = Signed(store.targets, store.factors, signatures=str(tmp_path / "signatures"))
    cluster.scale(1)
    try:
        wait_until(lambda: len(client.nthreads()) == 1)
        (worker,) = client.run(os.getpid).values()
        probe_layers(signed, controls=(), client=client, progress=False)
    finally:
        cluster.scale(2)
    readers = [int(line) for line in (tmp_path / "signatures").read_text().split()]
    assert readers.count(worker) == len(store.keys()) and os.getpid() not in readers


@pytest.mark.slow
def test_a_worker_killed_while_it_probes_changes_no_byte(client, store, tmp_path):
    path, whole, over = tmp_path / "p.jsonl", tmp_path / "w" / "p.jsonl", tmp_path / "over"
    slow = Store(store.targets, store.factors, pause=0.4, until=str(over))
    settings, killed = {"controls": (), "progress": False}, []
    probe_layers(store, path=whole, jobs=1, **settings)

    def kill():
        while not path.exists() or not path.stat().st_size:
            time.sleep(0.01)
        killed.append(path.stat().st_size)
        os.kill(victim, signal.SIGKILL)
        over.touch()

    victim = next(iter(client.run(os.getpid).values()))
    killer = threading.Thread(target=kill)
    killer.start()
    probe_layers(slow, path=path, client=client, **settings)
    killer.join()
    assert 0 < killed[0] < len(whole.read_bytes()) and path.read_bytes() == whole.read_bytes()
    path.write_bytes(whole.read_bytes()[: killed[0]])  # as if we had been killed ourselves; resumed without a cluster
    probe_layers(store, path=path, jobs=1, **settings)
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs an alarm")
def test_a_representation_that_no_worker_survives_is_an_error(client, cluster, store, tmp_path, monkeypatch):
    "joblib alone would wait for ever. What was read before it is kept."
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits for ever"))
    signal.alarm(100)
    try:
        with pytest.raises(Exception, match="all those workers died while running it"):
            probe_layers(
                Store(store.targets, store.factors, deadly=(1, "last"), pause=0.1), controls=(), jobs=1,
                path=tmp_path / "p.jsonl", client=client, progress=False,
            )  # fmt: skip
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    kept = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [(row["layer"], row["pooling"]) for row in kept] == store.keys()[:3]


@pytest.mark.long
def test_who_does_not_answer_is_refused_within_ten_seconds():
    with socket.create_server(("127.0.0.1", 0)) as other:  # somebody listens, and says nothing
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        clock = time.monotonic()
        with pytest.raises(
            ConnectionError, match=f"No Dask scheduler answers at {address}: .*Start one with `dask sch"
        ):
            machines.connect(address)
        assert time.monotonic() - clock < 10
    with pytest.raises(ConnectionError, match="No Dask scheduler answers at file://x:1"):
        machines.connect("file://x:1")
    with pytest.raises(ConnectionError, match="No Dask scheduler answers at tls://127.0.0.1:1: .*ssl_context"):
        machines.connect("tls://127.0.0.1:1")  # Dask: a TypeError
    assert machines.connect(None) is None


def test_who_answers_too_late_is_hung_up_on(monkeypatch):
    import distributed

    may_answer, closed = threading.Event(), threading.Event()

    class Late:
        def __init__(self, address, timeout):
            may_answer.wait(20)

        close = closed.set

    class Impatient(machines.Future):
        def result(self, timeout=None):
            return super().result(timeout and 0.1)

    monkeypatch.setattr(distributed, "Client", Late)
    monkeypatch.setattr(machines, "Future", Impatient)
    with pytest.raises(ConnectionError, match="somebody listens there and says nothing"):
        machines.connect("tcp://host:8786")
    may_answer.set()
    assert closed.wait(10), "a client that nobody has is open"


def test_jobs_of_a_cluster_are_bounded_by_threads_and_by_each_machines_memory(monkeypatch):
    threads = {"a": 4, "b": 4, "c": 8}  # a and b are on one machine
    rooms = {"a": ("one", 3), "b": ("one", 3), "c": ("two", 99)}
    cluster = SimpleNamespace(nthreads=lambda: threads, run=lambda function, size: rooms)
    assert machines.count_cluster_jobs(cluster, 2**28) == 6  # 3 of the 8 threads on "one"; Dask deals by threads
    rooms["a"] = rooms["b"] = ("one", 8)
    assert machines.count_cluster_jobs(cluster, 2**28) == 16
    rooms["a"] = rooms["b"] = ("one", 1)
    threads |= {"a": 40}
    assert machines.count_cluster_jobs(cluster, 2**28) == 1
    nobody = SimpleNamespace(nthreads=dict, scheduler=SimpleNamespace(address="tcp://host:1"))
    with pytest.raises(ConnectionError, match="at tcp://host:1 has no workers. Start some: dask worker tcp://host:1"):
        machines.count_cluster_jobs(nobody, 2**28)
    assert machines._room_here(2**30)[1] < machines._room_here(2**20)[1]


def test_the_address_is_no_part_of_the_run():
    from vlm_counting.runs import _record, check_parameters

    with_one, without = (check_parameters("probe", given) for given in ({"scheduler": "tcp://host:8786"}, {}))
    assert with_one["scheduler"] == "tcp://host:8786" and _record("probe", with_one) == _record("probe", without)
    with pytest.raises(ValueError, match="scheduler is 'host', expected what `dask scheduler` prints"):
        check_parameters("probe", {"scheduler": "host"})


def test_file_of_other_states_is_refused(store, tmp_path):
    path = tmp_path / "probes.jsonl"
    settings = {"controls": (), "path": path, "jobs": 1, "progress": False}
    probe_layers(store, **settings)
    before = path.read_bytes()
    other = Store(store.targets, [row | {"layout": row["layout"] + 1} for row in store.factors])
    for states, more in ((other, {}), (store, {"seed": 1}), (store, {"rules": ("layout",)})):
        with pytest.raises(FileExistsError, match="other states or settings"):
            probe_layers(states, **(settings | more))
    assert path.read_bytes() == before


def test_untrained_states_must_match(store):
    with pytest.raises(ValueError, match="the same 216"):
        probe_layers(store, untrained=Store(*design(2)), progress=False)


def test_jobs_are_bounded_by_memory():
    paper, small = probing._job_bytes(17_496, 3584), probing._job_bytes(200, 64)
    assert machines.count_fitting(paper, memory=1.5 * 2**30, processors=16) == 1
    assert machines.count_fitting(paper, memory=100 * 2**30, processors=4) == 4
    assert machines.count_fitting(small, processors=3) >= 1
    # standardising holds two copies in float64: 17,496 x 3,584 needs 4 GB, not 3
    assert machines.count_fitting(paper, memory=7 * 2**30, processors=16) == 1


def limit_memory(folder, names, limit, used, cached, other=0):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(names, (limit, used, f"anon {other}\n{names[2]} {cached}"), strict=True):
        (folder / (name if name.startswith("memory.") else "memory.stat")).write_text(f"{text}\n")


@pytest.mark.parametrize(
    "top, line, names, unlimited",
    [("", "0::/slurm/job_7/step_0", ("memory.max", "memory.current", "inactive_file"), "max"),
     ("memory", "5:memory:/slurm/job_7/step_0",
      ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"), 2**63 - 4096)],
)  # fmt: skip
def test_the_memory_of_a_job_is_the_least_on_the_way_up(tmp_path, top, line, names, unlimited):
    root = tmp_path / "sys" / "fs" / "cgroup" / top
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(f"9:cpu,cpuacct:/elsewhere\n{line}\n")
    free = machines.available_memory(tmp_path / "nowhere")
    assert free > 10**6 and abs(machines.available_memory(tmp_path) / free - 1) < 0.5  # no such folders
    limit_memory(root / "elsewhere", names, 10, 1, 1)  # is not ours
    limit_memory(root / "slurm", names, 10**6, 900_000, 100_000)
    limit_memory(root / "slurm" / "job_7" / "step_0", names, unlimited, 5, 1)
    limit_memory(root / "slurm" / "job_7", names, 90_000, 60_000, 20_000)
    assert machines.available_memory(tmp_path) == 50_000
    limit_memory(root / "slurm", names, 10**6, 970_000, 10_000)
    assert machines.available_memory(tmp_path) == 40_000
    limit_memory(root, names, 30_000, 1000, 500)
    assert machines.available_memory(tmp_path) == 29_500


def test_a_new_probe_is_one_function(store):
    @probing.PROBES.add("always_five")
    def always_five(features, labels, fold):
        return np.full_like(labels, 5)

    try:
        row = probe_layers(store, ["always_five"], controls=(), keys=[(1, "mean")], jobs=1, progress=False).iloc[0]
        assert row["accuracy"] == pytest.approx(1 / 9, abs=1e-5) and np.isnan(row["spearman"])
    finally:
        del probing.PROBES._items["always_five"]
    assert isinstance(probing._plan_tasks(store.targets, store.factors, ["svm"], ["paper"])[0], Task)


@pytest.mark.long
def test_sentence_says_what_remains(store):
    table = probe_layers(store, rules=("paper", "layout"), jobs=1, progress=False)
    above = probing.what_remains(table)
    best = table.query("rule == 'layout' and control == 'none'")["accuracy"].max()
    control = table.query("rule == 'layout' and control != 'none'")["accuracy"].max()
    assert above.startswith("The best of 6 probes (svm, layer ")  # three layers, two poolings
    assert f"reads {best:.1%} of 216 counts on new layouts" in above and "does not know of that choice" in above
    assert f"It is {100 * (best - control):.0f} points above the best control, and their intervals overlap." in above
    one = table.query("rule == 'layout' and layer == 2 and pooling == 'mean'")
    assert probing.what_remains(one).startswith("The probe (svm, layer 2, mean)")
    assert "does not know" not in probing.what_remains(one)
    ruler = table.iloc[[0]].assign(rule="layout", control="lit area", layer=None, accuracy=1.0, high=1.0)
    assert "Nothing of the score has to be counting: lit area alone" in probing.what_remains(pd.concat([table, ruler]))
    alone = table[table["control"] == "none"]
    assert "No control was run" in probing.what_remains(alone)


def test_two_class_matrix_and_confusion_against_the_release():
    "Seed 42 once, one permutation of the within-class positions for all entities, three folds, the same machine."
    targets, factors = design(9, shapes=("square",), counts=(2, 3, 5))
    states = simulate(targets, factors, 30, 0.4)
    np.random.seed(42)
    fold = np.empty(9, dtype=int)
    for number, part in enumerate(np.array_split(np.random.permutation(9), 3)):
        fold[part] = number
    fold = fold[[row["layout"] for row in factors]]
    mine = np.isin(targets, (2, 5))
    right = by_library(states[mine], targets[mine], fold[mine], 1e-3) == targets[mine]
    matrix = probing._two_class_matrix(states, targets, factors)
    assert matrix.loc[2, 5] == pytest.approx(np.mean([right[fold[mine] == k].mean() for k in range(3)]), abs=0.03)
    assert np.isnan(matrix.loc[5, 2]) and np.isnan(matrix.loc[3, 3]) and list(matrix) == [2, 3, 5]
    confused = probing._one_vs_all_confusion(states, targets, factors)
    said = by_library(states, targets, fold, 1e-3)
    assert confused.loc[3, 3] == pytest.approx((said == targets)[targets == 3].mean(), abs=0.03)


def test_import_is_light():
    heavy = ("torch", "transformers", "sklearn", "matplotlib", "scipy", "joblib")
    check = f"import sys, vlm_counting.probing; print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.long
def test_the_command_leaves_out_what_is_large_or_not_known(tmp_path, monkeypatch, capsys):
    "States of two layers of four, of a model that is said to have 7 billion weights."
    from vlm_counting.runs import perform, run

    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path))
    home = run("extract", limit=54, layers="0,2", poolings="last")
    about = home / "states" / "states.json"
    described = json.loads(about.read_text())
    described.pop("seal")  # as of an earlier version
    about.write_text(json.dumps(described | {"parameters": 7_000_000_000}))
    result = perform("probe", {"probes": "ridge", "rules": "layout", "jobs": 1})
    folder, said = result.folder, capsys.readouterr().out
    record = json.loads((folder / "run.json").read_text())
    assert not {"jobs", "device"} & set(record["parameters"])  # so that a second start may change them
    assert "tiny-qwen2-vl has 7,000 M weights" in said and "untrained=0 asks for this control" in said
    assert "The deepest layer here is 2, and the model has 4 blocks" in result.notes[-1]
    assert not (folder / "untrained").exists() and not (folder / "gap.csv").exists()
    assert set(pd.read_csv(folder / "probes.csv")["control"]) >= {"none", "shuffled", "control task", "lit area"}


# --- any estimator


def by_estimator(model, states, targets, fold):
    "scikit-learn alone, fold by fold."
    from sklearn.base import clone

    said = np.zeros(len(targets))
    for number in np.unique(fold):
        said[fold == number] = (
            clone(model).fit(states[fold != number], targets[fold != number]).predict(states[fold == number])
        )
    return said


class Nearest:
    "A probe of one's own, that scikit-learn knows nothing of."

    def fit(self, x, y):
        self.x, self.y = x, y

    def predict(self, x):
        return self.y[((x[:, None] - self.x) ** 2).sum(-1).argmin(1)]


@pytest.mark.long_after(1)
@pytest.mark.parametrize(
    "model, name, accuracy",
    [
        (LogisticRegression(C=0.5, max_iter=500), "LogisticRegression(C=0.5, max_iter=500)", 0.5),
        (Ridge(alpha=3), "Ridge(alpha=3)", 0.2),
        (make_pipeline(StandardScaler(), LinearSVC()),
         "Pipeline(steps=[('standardscaler', StandardScaler()), ('linearsvc', LinearSVC())])", 0.5),
    ],
)  # fmt: skip
def test_any_estimator_is_a_probe(store, model, name, accuracy):
    x = store.array(2, "mean")
    done = vc.probe(store, layer=2, pooling="mean", probe=model, rule="paper", controls=None, progress=False)
    said = by_estimator(model, x, store.targets, folds(store.targets, store.factors))
    counts = np.clip(np.round(said), 1, 9).astype(int)
    assert [row.count for row in done.predictions] == counts.tolist()
    row = done.table.iloc[0]
    assert len(done.table) == 1 and row["probe"] == name and row["n"] == len(x)
    assert row["accuracy"] == pytest.approx((counts == store.targets).mean(), abs=1e-5) and row["accuracy"] > accuracy
    assert row["mae"] == pytest.approx(np.abs(counts - store.targets).mean(), abs=1e-5)
    assert not hasattr(getattr(model, "steps", [(0, model)])[-1][1], "coef_"), "the caller's estimator was fitted"


def test_a_class_of_ones_own_is_a_probe(store):
    x, y = store.array(2, "mean"), store.targets
    done = vc.probe(x, y, probe=Nearest(), controls=None, progress=False)
    assert done.table["probe"].item() == "Nearest()" and done.accuracy > 0.3
    by_function = vc.probe(x, y, probe=probing.ridge, controls=None, progress=False)
    by_name = vc.probe(x, y, probe="ridge", controls=None, progress=False)
    assert by_function.table.equals(by_name.table)


def test_regressors_may_meet_new_counts_and_classifiers_not():
    targets, factors = design(4, shapes=("square",))
    x = np.outer(targets, np.ones(5)) + 0.01 * np.random.default_rng(0).standard_normal((len(targets), 5))
    done = vc.probe(x, targets, factors, make_pipeline(StandardScaler(), Ridge(1e-3)), "count", progress=False)
    assert done.accuracy > 0.9 and {float(row.text) for row in done.predictions} != set(range(1, 10))
    assert "of 216 counts that training has not shown" in done.sentence()
    with pytest.raises(ValueError, match=r"probe 'LogisticRegression\(\)' can only answer .* or a regressor of scikit"):
        vc.probe(x, targets, factors, LogisticRegression(), "count", progress=False)


@pytest.mark.parametrize(
    "wrong, error, complaint",
    [
        ("svn", KeyError, "No probe named 'svn'. Did you mean 'svm'.*probe=LogisticRegression"),
        (Ridge, TypeError, r"Ridge is a class, expected one of its kind: probe=Ridge\(\)"),
        (StandardScaler(), TypeError, "Found a StandardScaler for a probe, expected a name .svm, .*`fit` and `pre"),
        (make_pipeline(StandardScaler()), TypeError, "Found a Pipeline for a probe"),
        (KMeans(), TypeError, r"KMeans\(\) learns no counts, expected a classifier or a regressor"),
        (7, TypeError, "Found a int for a probe"),
        (["svm", "ridg"], KeyError, "Did you mean 'ridge'"),
    ],
)  # fmt: skip
def test_what_is_no_probe_is_refused(store, wrong, error, complaint):
    with pytest.raises(error, match=complaint):
        vc.probe(store, layer=1, probe=wrong, progress=False)


def test_predictions_that_are_no_numbers_are_an_error(store):
    class Wrong(Nearest):
        def predict(self, x):
            return np.full(len(x), np.nan)

    with pytest.raises(
        RuntimeError, match=r"ValueError: Wrong\(\) predicts float64 \(72,\), such as \[nan, nan, nan\]"
    ):
        vc.probe(store, layer=1, pooling="mean", probe=Wrong(), progress=False)


def test_the_name_of_an_estimator_is_all_that_was_set_and_no_address():
    from sklearn.preprocessing import FunctionTransformer

    long = make_pipeline(*(FunctionTransformer(print, kw_args={"a" * 200: place}) for place in range(9)), Ridge())
    name, again = probing._written(long), probing._written(clone(long))
    assert name == again and " at 0x" not in name and "..." not in name and "\n" not in name and len(name) > 2000
    assert probing._written(Nearest()) == "Nearest()" and len(probing._file(name)) <= 60
    scaled = probing._written(make_pipeline(StandardScaler(), LinearSVC()))
    assert probing._short(scaled) == "StandardScaler + LinearSVC" and probing._short("Ridge()") == "Ridge()"
    assert probing._file("svm_standardised") == "svm_standardised" and "/" not in probing._file("A(b='/')")


# --- the experiment


@pytest.mark.long
def test_natural_lines(store, tmp_path):
    "As typed: one layer, every layer, arrays, several probes."
    quick = {"progress": False, "jobs": 1}
    done = vc.probe(store, layer=2, **quick)
    assert set(zip(done.table["layer"], done.table["pooling"], strict=True)) == {(2, "mean"), (2, "last")}
    assert done.rules == ["paper", "layout"] and set(done.table["control"]) == {"none", "shuffled", "control task"}
    assert set(vc.probe(store, rule="paper", controls=None, **quick).table["layer"]) == {0, 1, 2}
    x, y = store.array(2, "mean"), store.targets
    alone = vc.probe(x, y, **quick)
    assert alone.rules == ["random"] and list(alone.table["control"]) == ["none", "shuffled"] and alone.accuracy > 0.5
    both = vc.probe(x, y, probe=["svm", "ridge"], rule="random", controls=None, **quick)
    assert both.table.equals(vc.probe(x, y, probe="svm,ridge", rule="random", controls=(), **quick).table)
    assert list(both.scores()["score"]) == ["svm, random", "ridge, random"]
    assert alone.low < alone.accuracy < alone.high and alone.chance == pytest.approx(1 / 9, abs=1e-5)
    assert repr(alone).startswith("Probing of array: 0.") and "\n" not in repr(alone) and "chance 0.111" in repr(alone)
    assert "<table" in alone._repr_html_() and list(alone.figures()) == ["confusion"] and alone.notes == []
    import torch

    tensor = vc.probe(torch.tensor(x).bfloat16(), torch.tensor(y), controls=None, **quick)
    assert tensor.table["n"].item() == len(y)
    assert vc.probe(Features(x), y, **quick).table.equals(alone.table)
    assert vc.probe(pd.DataFrame(x), pd.Series(y), **quick).table.equals(alone.table)


def test_the_best_is_that_of_the_strictest_rule_and_joins_answers(store):
    done = vc.probe(store, layer=[1, 2], rule=["paper", "layout"], controls=None, progress=False, jobs=1)
    strict = done.table[done.table["rule"] == "layout"]
    assert done.accuracy == strict["accuracy"].max() and done.best["rule"] == "layout"
    best = strict.loc[strict["accuracy"].idxmax()]
    read = probing.read_counts(store.array(best["layer"], best["pooling"]), store.targets, store.factors, rule="layout")
    assert [row.count for row in done.predictions] == [row.count for row in read]
    assert [row.uid for row in done.predictions] == store.uids
    answers = [replace(row, count=1, count_paper=1) for row in done.predictions]
    table = compare(answers, done)
    assert table["second"].item() == pytest.approx(np.mean([row.count == row.target for row in read]))
    assert score(done)["n"].item() == len(store.targets)


@pytest.fixture(scope="module")
def lensed():
    "Samples, their states in memory with a lens, and a function that makes those of fresh weights."
    from vlm_counting.models import load_model

    samples = generate("balanced", limit=144)
    given = {"layers": [2, 4], "poolings": "mean,last", "progress": False}
    fresh = lambda place: vc.extract(load_model("tiny-qwen2-vl", untrained=0), samples, lens=False, **given)  # noqa: E731
    return samples, vc.extract(load_model("tiny-qwen2-vl"), samples, **given), fresh


@pytest.mark.long
def test_memory_disk_and_processes_give_the_same(lensed, tmp_path):
    samples, held, _ = lensed
    kept = vc.open_states(held.save(tmp_path / "run"))
    tables = [
        vc.probe(states, rule="layout", progress=False, jobs=jobs).table
        for states, jobs in ((held, 1), (kept, 1), (held, 2))
    ]
    assert tables[0].equals(tables[1]) and tables[0].equals(tables[2])
    tasks = probing._plan_tasks(held.targets, held.factors, ["svm"], ["paper"])
    unit, *_ = probing._plan_units(held, None, tasks, [(2, "mean")], {"folds": 3, "seed": 0})
    assert len(pickle.dumps(unit)) < held[2, "mean"].nbytes + 40_000  # its own array, and none of the others


@pytest.mark.slow
def test_a_folder_keeps_everything_and_goes_on(lensed, tmp_path, monkeypatch):
    samples, held, fresh = lensed
    places, folder = [], tmp_path / "run"
    called = lambda place: places.append(place) or fresh(place)  # noqa: E731
    given = {"probe": ["svm", "ridge"], "untrained": called, "samples": samples, "progress": False, "jobs": 1}
    done = vc.probe(held, path=folder, **given)
    assert places == [folder / "untrained"] and done.folder == folder and done.rules == ["paper", "layout"]
    names = {path.name for path in folder.iterdir() if path.name[0] != "."}
    assert names == {"probes.jsonl", "probes.csv", "scores.csv", "gap.csv", "run.json"}
    assert set(done.table["control"]) > {"none", "shuffled", "control task", "untrained", "lit area", "pixels"}
    assert (folder / "gap.csv").read_text() == done.gap().to_csv(index=False)
    assert set(done.figures()) == {
        "layers_svm_paper",
        "map_svm_paper",
        "layers_ridge_layout",
        "map_ridge_layout",
        "lens_curves",
        "gap",
    }
    files = {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".csv", ".jsonl", ".png", ".svg")
    }
    lines = (folder / "probes.jsonl").read_text().splitlines(keepends=True)
    (folder / "probes.jsonl").write_text("".join(lines[:7]))
    vc.probe(held, path=folder, **given).figures()
    memory = vc.probe(held, **given)
    assert places[-1] is None and memory.folder is None and memory.save(tmp_path / "saved") == tmp_path / "saved"
    for name, data in files.items():
        assert (folder / name).read_bytes() == (tmp_path / "saved" / name).read_bytes() == data, name
    monkeypatch.setattr(probing, "_score_tasks", lambda *given: pytest.fail("something was fitted again"))
    for change, complaint in (
        ({"probe": [Ridge(), "svm"]}, r"parameter 'probes' is \['Ridge\(\)', 'svm'\] now and was \['svm', 'ridge'\]"),
        ({"seed": 1}, "seed 'seed' is 1 now and was 0"),
        ({"rule": "paper"}, r"parameter 'rules' is \['paper'\] now and was \['paper', 'layout'\]"),
        ({"layer": 2}, r"parameter 'layer' is \[2\] now and was None"),
        ({"untrained": None}, "parameter 'untrained' is False now and was True"),
    ):
        with pytest.raises(FileExistsError, match=complaint):
            vc.probe(held, path=folder, **(given | change))
    other = [replace(sample, factors=sample.factors | {"layout": 7}) for sample in samples]
    with pytest.raises(ValueError, match="is of other samples: the factors of sample"):
        vc.probe(held, path=folder, **(given | {"samples": other}))


def test_a_file_of_another_probe_is_refused(store, tmp_path):
    settings = {"controls": (), "path": tmp_path / "p.jsonl", "jobs": 1, "progress": False, "keys": [(1, "mean")]}
    probe_layers(store, [Ridge()], **settings)
    with pytest.raises(FileExistsError, match=r"probe 'Ridge\(\)'.*belongs to other states or settings"):
        probe_layers(store, [Ridge(alpha=2)], **settings)
    probe_layers(store, [Ridge(alpha=1.0)], **settings)  # what it is anyway


def test_too_few_for_a_rule_is_said_and_the_others_stay():
    samples = generate("balanced", limit=54)
    targets, factors = [s.target for s in samples], [s.factors for s in samples]
    x = np.random.default_rng(0).standard_normal((54, 8))
    with pytest.warns(
        UserWarning, match="Fold rule 'paper' found . groups of '.*' for 3 folds: rule 'paper' is left out"
    ):
        done = vc.probe(x, targets, factors, controls=None, progress=False)
    assert done.rules == ["layout"] and len(done.left_out) == len(done.notes) == 1
    with pytest.raises(ValueError, match="Fold rule 'paper' found . groups"):  # asked for by name
        vc.probe(x, targets, factors, rule="paper", controls=None, progress=False)
    with pytest.warns(UserWarning, match="rule 'layout' is left out"):
        one = vc.probe(x, targets, [row | {"layout": 0} for row in factors], controls=None, progress=False)
    assert one.rules == ["random"]
    with pytest.raises(KeyError, match="No fold rule named 'layuot'. Did you mean 'layout'"):
        vc.probe(x, targets, factors, rule="layuot", progress=False)


def test_what_cannot_be_probed_is_said_before_anything_is_made(store, lensed, tmp_path):
    x, y, folder = store.array(1, "mean"), store.targets.tolist(), tmp_path / "run"
    blind = replace(lensed[1], targets=np.array([None] * 144))
    for call, error, complaint in (
        (lambda: vc.probe(x, path=folder), TypeError, r"Expected probe\(x, y\)"),
        (
            lambda: vc.probe(x, y[1:], path=folder),
            ValueError,
            "Found 216 states, 215 targets, 215 factors and 215 uids",
        ),
        (
            lambda: vc.probe(x, [None, *y[1:]], path=folder),
            ValueError,
            "'0' has no true count, and a probe learns from",
        ),
        (lambda: vc.probe(x, [1.5, *y[1:]], path=folder), ValueError, "target of '0' is 1.5, expected a whole number"),
        (lambda: vc.probe(x, ["one", *y[1:]], path=folder), ValueError, "target of '0' is 'one'"),
        (lambda: vc.probe(x, y, layer=3, path=folder), ValueError, "layer is 3, but an array has no layers"),
        (
            lambda: vc.probe(blind, path=folder),
            ValueError,
            "'balanced/.*' has no true count, and a probe learns from those",
        ),
        (lambda: vc.probe(store, layer=7, path=folder), KeyError, "No layer named '7'. There are: 0, 1, 2"),
        (lambda: vc.probe(store, pooling="lsat", path=folder), KeyError, "Did you mean 'last'"),
        (lambda: vc.probe(store, controls="shufled", path=folder), KeyError, "Did you mean 'shuffled'"),
        (lambda: vc.probe(store, y[1:], path=folder), ValueError, "Found 216 states and 215 targets"),
        (lambda: vc.probe(store, samples=lensed[0], path=folder), ValueError, "Found 144 samples for 216 states"),
    ):
        with pytest.raises(error, match=complaint):
            call()
    assert not folder.exists()
    # other targets for the same states: what colour, by number
    hues = [sorted({row["colour"] for row in store.factors}).index(row["colour"]) for row in store.factors]
    done = vc.probe(store, hues, layer=2, pooling="mean", rule="layout", controls=None, progress=False)
    assert done.accuracy > 0.9 and done.chance == 0.5
    assert vc.probe(blind, lensed[1].targets, layer=4, rule="layout", controls=None, progress=False).accuracy > 0.5


def test_a_probing_can_be_sent_and_says_where_the_gap_is(lensed):
    samples, held, _ = lensed
    done = vc.probe(held, layer=4, pooling="last", rule="layout", progress=False)
    sent = pickle.loads(pickle.dumps(done))
    assert repr(sent) == repr(done) and sent.gap().equals(done.gap()) and sent.predictions == done.predictions
    gap, lens = done.gap(), held.lens()
    said = lens[(lens["layer"] == 4) & lens["norm"]]
    right = (said["count"] == said["target"]).fillna(False).groupby(said["target"]).mean()
    assert gap.set_index("target")["first"].to_dict() == pytest.approx(right.to_dict())
    assert done.gap() is done.gap() and list(done.tables()) == ["probes", "scores", "gap"]
    for states, asked, why in (
        (held, {"layer": 2}, "Layer 4 was not probed at the last token"),
        (replace(held, layers=[2]), {}, "The deepest layer here is 2, and the model has 4 blocks"),
        (replace(held, about=held.about | {"lens": None}), {"layer": 4}, "have no lens at the last token"),
    ):
        without = vc.probe(states, rule="layout", controls=None, progress=False, jobs=1, **asked)
        assert why in without.notes[-1] and list(without.tables()) == ["probes", "scores"]
        with pytest.raises(ValueError, match=why):
            without.gap()


# --- probes and arrays of one's own


class Constant:
    "An estimator that does not say how it was set."

    def __init__(self, count=1):
        self.count = count

    def fit(self, states, counts):
        return self

    def predict(self, states):
        return np.full(len(states), self.count)


def plain_states():
    counts = np.arange(30) % 3 + 1
    states = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    return states + counts[:, None] * [1, 0, 0, 0], counts


QUICK = {"progress": False, "controls": None, "jobs": 1}


@pytest.mark.parametrize(
    "pair",
    [
        [Ridge(), Ridge()],
        [Constant(1), Constant(2)],
        [lambda features, labels, fold: labels, lambda features, labels, fold: labels * 0],
        [("mine", Ridge()), ("mine", Constant())],
    ],
)
def test_two_probes_of_one_name_are_refused(pair):
    with pytest.raises(ValueError, match="Two probes are called .* could not be told apart. Give each a name"):
        probing.probe(*plain_states(), probe=pair, **QUICK)


def test_probes_get_names_of_their_own():
    named = [("one", Constant(1)), ("two", Constant(2)), ("three", partial(probing.svm, tolerance=1e-2)), "svm"]
    done = probing.probe(*plain_states(), probe=named, **QUICK)
    assert list(done.table["probe"]) == ["one", "two", "three", "svm"]
    assert done.record.parameters["probe_code"].keys() == {"one", "two", "three"}
    assert list(probing.probe(*plain_states(), probe=named[0], **QUICK).table["probe"]) == ["one"]
    with pytest.raises(ValueError, match="already a probe 'svm'. Give yours another name"):
        probing.probe(*plain_states(), probe=[("svm", Ridge()), "ridge"], **QUICK)


def test_another_probe_of_the_same_name_is_another_run(tmp_path):
    mine = [("mine", fit) for fit in (lambda features, labels, fold: labels, Constant(1), Constant(2), Ridge())]
    for number, probe in enumerate(mine):
        folder = tmp_path / str(number)
        probing.probe(*plain_states(), probe=probe, path=folder, **QUICK)
        probing.probe(*plain_states(), probe=probe, path=folder, **QUICK)
        with pytest.raises(FileExistsError, match="parameter 'probe_code'"):
            probing.probe(*plain_states(), probe=mine[number - 1], path=folder, **QUICK)


def test_an_estimator_that_does_not_say_how_it_was_set_is_not_kept(tmp_path):
    done = probing.probe(*plain_states(), probe=Constant(), **QUICK)
    for keep in (
        lambda: done.save(tmp_path / "run"),
        lambda: probing.probe(*plain_states(), probe=Constant(), path=tmp_path / "run", **QUICK),
    ):
        with pytest.raises(ValueError, match=r'Give it one, probe=\("mine", ...\)'):
            keep()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrap", [lambda model: model, make_pipeline])
def test_what_draws_at_random_reads_the_same_again(wrap):
    forest = wrap(RandomForestClassifier(3))
    one, two = (probing.probe(*plain_states(), probe=forest, seed=3, **QUICK) for _ in range(2))
    assert one.table.equals(two.table) and one.record.seeds == {"seed": 3, "random_state": 3}
    right = np.array([row.count == row.target for row in one.predictions])
    fold = np.array([row.factors["fold"] for row in one.predictions])
    assert np.mean([right[fold == part].mean() for part in range(3)]) == pytest.approx(one.accuracy, abs=1e-6)
    assert not {value for name, value in forest.get_params().items() if name.endswith("random_state")} - {None}


@pytest.mark.parametrize(
    "states, counts",
    [
        (pd.DataFrame, lambda counts: pd.Series(counts, index=range(7, 37))),
        (np.ndarray.tolist, np.ndarray.tolist),
        (csr_matrix, lambda counts: counts.astype(float)),
        (lambda states: states, lambda counts: pd.DataFrame({"count": counts})),
        (lambda states: states, lambda counts: counts[:, None]),
        (lambda states: states, iter),
    ],
)
def test_arrays_in_any_form(states, counts):
    x, y = plain_states()
    known = probing.probe(x, y, **QUICK)
    found = probing.probe(states(x), counts(y), **QUICK)
    assert found.accuracy == known.accuracy


@pytest.mark.parametrize(
    "given, message",
    [
        ({"states": np.ones(30)}, r"states of shape \(30,\), expected \(samples, dim\)"),
        ({"states": [["a"]] * 30}, "The states are no numbers"),
        ({"states": np.full((30, 2), np.nan)}, "60 values in the states that are not finite"),
        ({"targets": [1, 2]}, "Found 30 states, 2 targets"),
        ({"targets": 3}, "Found a int for the targets"),
        ({"targets": "three"}, "Found a str for the targets"),
        ({"targets": ["1"] * 30}, "target of '0' is '1', expected a whole number"),
        ({"targets": [1.5] * 30}, "target of '0' is 1.5"),
        ({"targets": [-1] * 30}, "target of '0' is -1, expected a whole number >= 0"),
        ({"factors": ["red"] * 30}, "Found a str for the factors of a sample"),
        ({"folds": 2.5}, "folds is 2.5, expected a whole number of at least 2"),
        ({"seed": "a"}, "seed is 'a'"),
    ],
)
def test_arrays_that_are_none_are_refused(given, message):
    x, y = plain_states()
    with pytest.raises((TypeError, ValueError), match=message):
        probing.probe(**{"states": x, "targets": y} | given, **QUICK)


def test_own_code_inside_an_estimator_of_a_library_identifies_it():
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    def code(change):
        def turned(x):
            return x * change

        return probing._probe_codes(dict([_find_probe(("mine", make_pipeline(FunctionTransformer(turned), Ridge())))]))

    assert code(1) == code(1) != code(2)  # what a function holds on to is part of it
    assert probing._probe_codes(dict([_find_probe(Ridge())])) == {}  # its text says all


@pytest.mark.parametrize("asked", [("smv", "ridge"), ("logistics", "svm")])
def test_a_misspelt_probe_is_no_name_of_one_s_own(asked):
    with pytest.raises(UnknownName, match="Did you mean"):
        probing._probes(asked)


def test_a_probe_of_ours_may_have_another_name():
    assert probing._probes(("mine", "svm")) == [("mine", "svm")] and probing._probes(("svm", "ridge")) == [
        "svm",
        "ridge",
    ]
    assert _find_probe(("mine", "svm"))[0] == "mine"


@pytest.mark.parametrize("constant", [0.0, 1e6, -1e6, 1e9])
@pytest.mark.parametrize("width", [12, 300], ids=["plain", "with a Gram matrix"])
def test_a_constant_that_drowns_the_rest_in_a_kernel_of_float32_does_no_harm(constant, width):
    "It is said, and the states are centred: the same machines. Beside a weak signal svm read 0.111, which is chance."
    rng, labels = np.random.default_rng(0), np.arange(216) % 9
    states = rng.normal(size=(216, width)).astype(np.float32)
    states[:, :9] += 2 * np.eye(9)[labels]
    drowned = np.hstack([states, np.full((216, 1), constant, np.float32)])
    fold = np.arange(216) // 72
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = probing.PROBES["svm"](Features(drowned), labels, fold)
    assert (
        abs((found == labels).mean() - (probing.PROBES["svm"](Features(states), labels, fold) == labels).mean()) < 0.02
    )
    assert bool(said) == (constant != 0)
