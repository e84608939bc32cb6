"Guards for the room `extraction`: states are the library's own, and a store survives whatever happens to it."

import builtins
import hashlib
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
import weakref
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from forking import FORK_EACH_LINE

from vlm_counting import core, extraction
from vlm_counting.core import Sample, first_difference, lock_folder, write_jsonl
from vlm_counting.extraction import (
    _LENS_FILES,
    POOLINGS,
    Pooling,
    Reader,
    States,
    _choose_poolings,
    _describe_states,
    _file_of,
    _note,
    check_samples,
    choose_layers,
    extract,
    extract_states,
    lens_curves,
    open_states,
    parse_layers,
    parse_poolings,
    read_lens,
)
from vlm_counting.models import MODELS, load_model
from vlm_counting.runs import check_parameters, perform
from vlm_counting.stimuli import generate

ROOT = Path(__file__).resolve().parents[1]
TWINS = [name for name, spec in MODELS.items() if spec.repo.startswith("twin:")]
WRITERS = [name for name in TWINS if MODELS[name].kind == "generative"]
RANKERS = [name for name in TWINS if MODELS[name].kind == "contrastive"]
LOADED = {}


def load(name: str):
    "Each twin is loaded once."
    if name not in LOADED:
        LOADED[name] = load_model(name, device="cpu")
    return LOADED[name]


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    "Nine closed questions and three open, shorter ones, in no order."
    opened = [replace(sample, uid=f"open-{sample.uid}") for sample in generate("balanced", limit=9, form="open")[::3]]
    mixed = generate("balanced", limit=9) + opened
    random.Random(0).shuffle(mixed)
    return mixed


@pytest.fixture(scope="module")
def store(samples, tmp_path_factory):
    "A finished store of the first twin; tests copy it before they break it."
    return extract_states(load(WRITERS[0]), samples, tmp_path_factory.mktemp("store"), batch_size=5, progress=False)


def reader(name: str, lens: bool = False) -> Reader:
    body = load(name).hooks
    return Reader(body, choose_layers(body), _choose_poolings(body), lens)


def close(ours: np.ndarray, expected, tolerance: float = 1e-5) -> bool:
    "Equal up to a share of the largest number."
    expected = np.asarray(expected, dtype=np.float64)
    return np.abs(ours - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


# --- the states are the library's own


def by_hand(hidden: np.ndarray, real: np.ndarray, image: np.ndarray) -> dict[str, np.ndarray]:
    "Pooled in float64, row by row, without a line of ours; (samples, tokens, dim) and two masks."
    found = {"mean": [], "last": [], "image_mean": [], "image_last": []}
    for states, keep, picture in zip(hidden.astype(np.float64), real, image, strict=True):
        found["mean"].append(states[np.flatnonzero(keep)].mean(0))
        found["last"].append(states[np.flatnonzero(keep)[-1]])
        found["image_mean"].append(states[np.flatnonzero(picture)].mean(0))
        found["image_last"].append(states[np.flatnonzero(picture)[-1]])
    return {name: np.stack(rows) for name, rows in found.items()}


def expected_states(vlm, samples: list[Sample]) -> dict[tuple[int, str], np.ndarray]:
    "All layers, from `output_hidden_states=True` on one padded batch."
    import torch

    inputs = vlm.prepare(samples)
    with torch.inference_mode():
        hidden = vlm.model(**inputs, output_hidden_states=True, use_cache=False).hidden_states
    real, token = inputs["attention_mask"].numpy() == 1, vlm.spec.image_token
    image = inputs["input_ids"].numpy() == vlm.tokenizer.convert_tokens_to_ids(token)
    assert not real.all(), "nothing is padded: the test would show less than it says"
    assert image.any(1).all() and not (image & ~real).any()
    return {
        (k, name): rows
        for k, states in enumerate(hidden)
        for name, rows in by_hand(states.numpy(), real, image).items()
    }


@pytest.mark.long_after(1)
@pytest.mark.parametrize("name", WRITERS)
def test_states_equal_the_librarys_pooled_by_hand(name, samples, tmp_path):
    vlm = load(name)
    expected = expected_states(vlm, samples)
    states = extract_states(vlm, samples, tmp_path, batch_size=len(samples), progress=False)
    assert states.keys() == list(expected) and states.layers == list(range(len(vlm.hooks.blocks) + 1))
    assert states.uids == [sample.uid for sample in samples] and states.targets.tolist() == [s.target for s in samples]
    assert states.factors == [json.loads(json.dumps(sample.factors)) for sample in samples]
    for (layer, pooling), rows in expected.items():
        assert close(states.array(layer, pooling, check=True), rows), f"layer {layer}, {pooling}"


@pytest.mark.parametrize("name", WRITERS)
def test_layer_0_of_the_picture_is_the_projected_picture(name, samples):
    import inspect

    import torch

    vlm, inputs = load(name), load(name).prepare(samples)
    wanted = inspect.signature(vlm.model.get_image_features).parameters
    with torch.inference_mode():
        found = vlm.model.get_image_features(**{key: inputs[key] for key in inputs if key in wanted})
    found = getattr(found, "pooler_output", found)
    flat = torch.cat([part.reshape(-1, vlm.hooks.dim) for part in found]).double()
    sizes = vlm.hooks.masks(inputs)["image"].sum(1).tolist()
    expected = torch.stack([part.mean(0) for part in flat.split(sizes)]).numpy()
    own = reader(name)
    column = next(column for column in own.columns if column.file == _file_of(0, "image_mean"))
    assert close(own.read(vlm.prepare(samples))[:, column.part], expected)


def tower_states(name: str, samples: list[Sample]) -> list:
    "The hidden states of a vision tower as its library gives them, class token first."
    import torch

    vlm = load(name)
    pixels = vlm.prepare(samples)["pixels"]
    with torch.inference_mode():
        if MODELS[name].library == "transformers":
            return list(vlm.model.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states)
        tower = vlm.model.visual
        out = tower.forward_intermediates(pixels, output_fmt="NLC", output_extra_tokens=True)
        blocks = zip(out["image_intermediates_prefix"], out["image_intermediates"], strict=True)
        return [tower._embeds(pixels), *(torch.cat(parts, 1) for parts in blocks)]


@pytest.mark.parametrize("name", RANKERS)
def test_layers_of_encoders_are_those_of_their_vision_tower(name, samples, tmp_path):
    vlm, hidden = load(name), tower_states(name, samples)
    states = extract_states(vlm, samples, tmp_path, batch_size=5, progress=False)
    assert states.poolings == ["mean", "image_mean", "class"] and len(states.layers) == len(hidden) >= 3
    for layer, tokens in enumerate(hidden):
        tokens = tokens.double().numpy()
        assert close(states.array(layer, "mean"), tokens.mean(1))
        assert close(states.array(layer, "image_mean"), tokens[:, 1:].mean(1))
        assert close(states.array(layer, "class"), tokens[:, 0])
    with pytest.raises(ValueError, match="has no lens"):
        read_lens(tmp_path)


def test_encoders_need_no_question_with_a_list(tmp_path):
    bare = [replace(sample, factors={}) for sample in generate("balanced", limit=9)[:2]]
    assert len(extract_states(load(RANKERS[0]), bare, tmp_path, layers=[0], progress=False)) == 2


@pytest.mark.long_after(1)
@pytest.mark.parametrize("name", [WRITERS[0], RANKERS[0]])
@pytest.mark.parametrize("batch_size", [1, 7, "auto"])
def test_batch_size_changes_nothing(name, batch_size, samples, tmp_path):
    states = {
        size: extract_states(load(name), samples, tmp_path / str(size), batch_size=size, progress=False)
        for size in (4, batch_size)
    }
    for key in states[4].keys():
        assert close(states[batch_size].array(*key), states[4].array(*key)), key


@pytest.mark.long
def test_half_precision_is_pooled_in_float32(samples):
    "The mean of the very numbers of a bfloat16 model, not a bfloat16 mean."
    import torch

    vlm = load_model(WRITERS[0], device="cpu", dtype="bfloat16")
    inputs, body = vlm.prepare(samples[:4]), vlm.hooks
    own = Reader(body, [2], ["mean"], False)
    with torch.inference_mode():
        hidden = vlm.model(**inputs, output_hidden_states=True, use_cache=False).hidden_states[2]
    assert hidden.dtype == torch.bfloat16
    pairs = zip(hidden.double(), inputs["attention_mask"].bool(), strict=True)
    expected = torch.stack([states[keep].mean(0) for states, keep in pairs])
    assert close(own.read(inputs), expected, 1e-6)


def test_padding_may_hold_anything(samples):
    "A layer that leaves nan at the padding, as some attention kernels do, spoils no mean."
    own, vlm = reader(WRITERS[0]), load(WRITERS[0])
    inputs = vlm.prepare(samples)
    padding, clean = inputs["attention_mask"] == 0, own.read(inputs)
    assert padding.any()

    def spoil(module, args, out):
        return out.masked_fill(padding[..., None], float("nan"))

    hook = own.body.norm.register_forward_hook(spoil)  # behind the last block, so nobody attends to it any more
    spoilt = own.read(inputs)
    hook.remove()
    assert np.array_equal(spoilt, clean)


def test_no_states_pile_up_while_the_model_runs(samples):
    "What is kept of a layer is its pooled rows: the states themselves are gone when the next block has run."
    own = reader(WRITERS[0], lens=True)
    seen, alive = [], []

    def watch(module, args, out):
        seen.append(weakref.ref(out))
        alive.append(sum(ref() is not None for ref in seen))

    hooks = [block.register_forward_hook(watch) for block in own.body.blocks]
    own.read(load(WRITERS[0]).prepare(samples))
    [hook.remove() for hook in hooks]
    assert len(alive) == len(own.body.blocks) >= 3 and max(alive) <= 2  # of a block, its input and its output
    assert not any(ref() is not None for ref in seen)


def test_hooks_do_not_stay(samples):
    own, vlm = reader(WRITERS[0]), load(WRITERS[0])
    own.read(vlm.prepare(samples[:1]))
    with pytest.raises(Exception):  # noqa: B017  # whatever the library says to half an input
        own.read({"input_ids": None, **{k: v for k, v in vlm.prepare(samples[:1]).items() if k != "input_ids"}})
    for module in vlm.model.modules():
        notes = [
            hook for hook in module._forward_hooks.values() if "extraction" in str(getattr(hook, "__module__", ""))
        ]
        assert not notes and not module._forward_pre_hooks


# --- the lens


@pytest.mark.long_after(1)
@pytest.mark.parametrize("name", WRITERS)
def test_the_lens_at_the_last_layer_is_the_models_own_answer(name, samples, tmp_path):
    import torch

    vlm = load(name)
    states = extract_states(vlm, samples, tmp_path, layers=[0, len(vlm.hooks.blocks)], batch_size=5, progress=False)
    inputs = vlm.prepare(samples)
    with torch.inference_mode():
        said = vlm.model.generate(**inputs, max_new_tokens=1, do_sample=False)[:, -1].tolist()
    tokens = np.load(tmp_path / "lens_token.npy")
    assert tokens[:, -1].tolist() == [[token, token] for token in said]
    table = read_lens(tmp_path)
    assert table["token"][(table.layer > 0) & table.norm].tolist() == [vlm.tokenizer.decode([token]) for token in said]
    # among the counts it gives the probabilities that answers carry ('1' and '2' may go on as '10' and '20')
    counts, logits = states.about["lens"]["counts"], np.load(tmp_path / "lens_logits.npy")[:, -1, 1].astype(float)
    assert counts == list(range(10))
    cap, kept = states.about["lens"]["cap"], [0, 3, 4, 5, 6, 7, 8, 9]
    assert bool(cap) == hasattr(vlm.model.config.get_text_config(), "final_logit_softcapping")
    logits = cap * np.tanh(logits / cap) if cap else logits
    answers = np.array([answer.logprobs for answer in vlm.answer(samples)])
    ours, theirs = np.exp(logits[:, kept]), np.exp(answers[:, kept])
    assert np.abs(ours / ours.sum(1, keepdims=True) - theirs / theirs.sum(1, keepdims=True)).max() < 1e-3
    whole = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rows = table[(table.layer > 0) & table.norm]
    assert np.allclose(rows["probability"], whole[np.arange(len(samples)), [s.target for s in samples]])
    assert ((rows["rank"] == 1).to_numpy() == (whole.argmax(1) == [s.target for s in samples])).all()


def test_the_lens_of_a_middle_layer_by_hand(samples, tmp_path):
    import torch

    vlm = load(WRITERS[0])
    extract_states(vlm, samples, tmp_path, batch_size=len(samples), progress=False)
    with torch.inference_mode():
        hidden = vlm.model(**vlm.prepare(samples), output_hidden_states=True, use_cache=False).hidden_states
        ends = hidden[2][:, -1]
        plain, normed = vlm.model.lm_head(ends), vlm.model.lm_head(vlm.model.get_decoder().norm(ends))
    tokens, logits = np.load(tmp_path / "lens_token.npy"), np.load(tmp_path / "lens_logits.npy")
    digits = [vlm.tokenizer.convert_tokens_to_ids(str(count)) for count in range(10)]
    for place, expected in enumerate((plain, normed)):
        assert tokens[:, 2, place].tolist() == expected.argmax(-1).tolist()
        assert close(logits[:, 2, place], expected[:, digits])
    assert not np.array_equal(tokens[:, 2, 0], tokens[:, 2, 1]) or not close(logits[:, 2, 0], logits[:, 2, 1])


def test_the_lens_where_parts_of_the_model_are_on_different_devices():
    "torch's device without memory stands for a second GPU: the norm moves states there, and the head stays there."
    from types import SimpleNamespace

    import torch

    head = torch.nn.Linear(4, 9, device="meta")
    moving = SimpleNamespace(forward=lambda states: states.to("meta"))
    body = SimpleNamespace(norm=moving, head=lambda states: head(states.to("meta")), counts={0: 3, 1: 4})
    for normed in (False, True):
        best, counts = extraction._lens_row(body, torch.ones(5, 4), normed)
        assert (best.shape, counts.shape) == ((5, 2), (5, 2, 2)) and best.device.type == "meta"


def test_lens_table_and_curves(store):
    table = read_lens(store.folder)
    assert list(table)[:4] == ["uid", "target", "layer", "norm"] and len(table) == len(store) * len(store.layers) * 2
    assert table["probability"].between(0, 1).all() and table["rank"].between(1, 10).all()
    curves = lens_curves(table)
    assert list(curves)[:2] == ["layer", "norm"] and len(curves) == 2 * len(store.layers)
    row = curves[(curves.layer == store.layers[-1]) & curves.norm].iloc[0]
    mine = table[(table.layer == store.layers[-1]) & table.norm]
    assert row["accuracy"] == pytest.approx(np.mean(mine["count"].fillna(-1) == mine["target"])) and row["n"] == len(
        store
    )


def test_counts_of_two_tokens_have_no_rank(samples, tmp_path):
    many = [replace(samples[0], target=12), samples[1]]
    extract_states(load(WRITERS[0]), many, tmp_path, layers=[1], progress=False)
    table = read_lens(tmp_path)
    assert table["rank"].isna().tolist() == table["probability"].isna().tolist() == [True, True, False, False]
    assert lens_curves(table)["probability"].notna().all()


# --- what may be asked for


def test_a_choice_of_layers_and_poolings(store, samples, tmp_path):
    some = extract_states(load(WRITERS[0]), samples, tmp_path, [3, 1], ["last", "mean"], 5, lens=False, progress=False)
    assert some.keys() == [(1, "mean"), (1, "last"), (3, "mean"), (3, "last")]
    assert len(list(tmp_path.glob("*.npy"))) == 4
    for key in some.keys():
        assert np.array_equal(some.array(*key), store.array(*key))
    with pytest.raises(ValueError, match="lens=False"):
        read_lens(tmp_path)


@pytest.mark.parametrize(
    "asked, complaint",
    [({"layers": [5]}, r"no layer 5: this model has 0 .* to 4"), ({"layers": [-1]}, "no layer -1"),
     ({"layers": [True]}, "no layer True"), ({"layers": []}, "layers is empty"),
     ({"poolings": []}, "poolings is empty"),
     ({"poolings": ["meen"]}, "Did you mean 'mean'"), ({"poolings": ["class"]}, "has no pooling 'class', only: mean,"),
     ({"batch_size": 0}, "expected 'auto' or a whole number")],
)  # fmt: skip
def test_what_does_not_exist_is_refused_before_anything_is_written(asked, complaint, samples, tmp_path):
    with pytest.raises((ValueError, KeyError), match=complaint):
        extract_states(load("tiny-qwen2-vl"), samples, tmp_path / "new", progress=False, **asked)
    assert not (tmp_path / "new").exists()


def test_a_new_pooling_is_one_entry(store, samples, tmp_path, monkeypatch):
    monkeypatch.setattr(POOLINGS, "_items", dict(POOLINGS))
    POOLINGS.add("words", Pooling(("prompt", "image"), lambda prompt, image: prompt & ~image))
    states = extract_states(load(WRITERS[0]), samples, tmp_path, layers=[1], batch_size=5, progress=False)
    whole = store.array(1, "mean"), store.array(1, "image_mean"), states.array(1, "words")
    assert states.poolings[-1] == "words" and not close(whole[2], whole[0])


def test_an_eighth_model_says_where_its_blocks_are(monkeypatch):
    monkeypatch.setattr(MODELS, "_items", dict(MODELS))
    MODELS.add("eighth", replace(MODELS["tiny-qwen2-vl"], blocks="body.blocks"))
    with pytest.raises(AttributeError, match="no 'body.blocks' for its blocks. Say where it is"):
        load_model("eighth", device="cpu")


@pytest.mark.long_after(1)
@pytest.mark.parametrize("name", [WRITERS[0], *RANKERS])
def test_untrained_is_another_model_and_always_the_same_one(name, samples, tmp_path):
    trained, fresh = load(name), [load_model(name, device="cpu", untrained=3) for _ in range(2)]
    other = load_model(name, device="cpu", untrained=4)
    assert fresh[0].name == f"{name}-untrained-3" and len(fresh[0].weights) == 64
    assert fresh[0].weights == fresh[1].weights and len({trained.weights, fresh[0].weights, other.weights}) == 3
    first, second = (
        extract_states(vlm, samples[:4], tmp_path / str(n), progress=False) for n, vlm in enumerate((fresh[0], other))
    )
    assert first.model == f"{name}-untrained-3" and not close(first.array(2, "mean"), second.array(2, "mean"))
    with pytest.raises(FileExistsError, match=f"model is '{name}' now and was '{name}-untrained-3'"):
        extract_states(trained, samples[:4], tmp_path / "0", progress=False)


# --- the store


def test_the_store_is_plain(store):
    about = json.loads((store.folder / "states.json").read_text())
    assert about["format"] == 1 and about["finished"] is True and about["samples"] == len(store) == 12
    assert not (store.folder / "progress.jsonl").exists()
    assert about["blocks"] == 4 and 1e5 < about["parameters"] < 1e7
    names = {path.name for path in store.folder.glob("*.npy")}
    assert names == set(about["sha256"]) - {"samples.jsonl"} == set(about["dims"])
    assert names == {_file_of(*key) for key in store.keys()} | {"lens_token.npy", "lens_logits.npy"}
    array = np.load(store.folder / "layer_02.last.npy", mmap_mode="r", allow_pickle=False)
    assert array.dtype == np.float32 and array.shape == (12, 128) and array.flags["C_CONTIGUOUS"]


def test_one_representation_costs_one_read(store, monkeypatch):
    opened, plain = [], builtins.open
    monkeypatch.setattr(builtins, "open", lambda file, *a, **b: opened.append(str(file)) or plain(file, *a, **b))
    store.array(2, "image_mean")
    assert [Path(name).name for name in opened] == ["layer_02.image_mean.npy"]
    opened.clear()
    open_states(store.folder)
    assert not [name for name in opened if name.endswith(".npy")]


def test_a_store_of_before_blocks_and_parameters_were_written_is_read_and_resumed(store, samples, tmp_path):
    folder = broken(store, tmp_path)
    about = {name: value for name, value in store.about.items() if name not in ("blocks", "parameters")}
    (folder / "states.json").write_text(json.dumps(about))
    states = open_states(folder)
    assert "blocks" not in states.about and np.array_equal(states.array(1, "mean"), store.array(1, "mean"))
    assert extract_states(load(WRITERS[0]), samples, folder, batch_size=5, progress=False).uids == store.uids


def test_a_finished_store_is_not_made_again(store, samples, monkeypatch):
    monkeypatch.setattr(Reader, "read", None)
    again = extract_states(load(WRITERS[0]), samples, store.folder, batch_size=3, progress=False)  # in whatever batches
    assert again.uids == store.uids


def broken(store, tmp_path) -> Path:
    return Path(shutil.copytree(store.folder, tmp_path / "copy"))


def test_other_runs_are_refused_by_their_first_difference(store, samples, tmp_path):
    folder, vlm = broken(store, tmp_path), load(WRITERS[0])
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}
    swapped = [samples[1], samples[0], *samples[2:]]
    coarse = load_model(WRITERS[0], device="cpu", dtype="bfloat16")
    for change, complaint in [
        (lambda: extract_states(vlm, samples[1:], folder, progress=False), "samples is 11 now and was 12"),
        (lambda: extract_states(vlm, swapped, folder, progress=False), "fingerprint is '[0-9a-f]+' now and was"),
        (
            lambda: extract_states(vlm, samples, folder, [1], progress=False),
            r"layers is \[1\] now and was \[0, 1, 2, 3, 4\]",
        ),
        (
            lambda: extract_states(vlm, samples, folder, None, ["last"], progress=False),
            r"poolings is \['last'\] now and was",
        ),
        (lambda: extract_states(vlm, samples, folder, lens=False, progress=False), "lens is None now and was"),
        (
            lambda: extract_states(coarse, samples, folder, progress=False),
            "settings: dtype is 'bfloat16' now and was 'float32'",
        ),
        (lambda: extract_states(load(RANKERS[0]), samples, folder, progress=False), "model is '.*' now and was"),
    ]:
        with pytest.raises(FileExistsError, match=complaint):
            change()
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."} == before


def zero_rows(path: Path) -> None:
    "Every third row, as pages of a file may get lost."
    np.load(path, mmap_mode="r+")[::3] = 0


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def swap(path: Path) -> None:
    "The files of two layers, or of two kinds of lens."
    other = {"layer_01.mean.npy": "layer_02.mean.npy", "layer_02.last.npy": "layer_03.last.npy"}
    other |= {"lens_token.npy": "lens_logits.npy", "lens_logits.npy": "lens_token.npy"}
    path.rename(path.with_name("between"))
    path.with_name(other[path.name]).rename(path)
    path.with_name("between").rename(path.with_name(other[path.name]))


def other_head(old: bytes, new: bytes):
    def change(path: Path) -> None:
        data = path.read_bytes()
        assert old in data[:128] and len(old) == len(new)
        path.write_bytes(data[:128].replace(old, new) + data[128:])

    return change


def other_type(path: Path) -> None:
    data = path.read_bytes()
    here, there = (b"<f4", b"<i4") if b"<f4" in data[:128] else (b"<i4", b"<f4")
    path.write_bytes(data[:128].replace(here, there) + data[128:])


def as_objects(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


DAMAGES = {  # what happens to an array file -> what is said of it
    zero_rows: "has changed: its sha256 is .*, expected .* Delete the store and extract again",
    flip_a_bit: "has changed: its sha256 is",
    swap: "has changed: its sha256 is|holds .*, expected ",
    other_type: "holds int32|holds float32",
    other_head(b"(12, ", b"(6,  "): "is damaged",
    other_head(b"False", b"True "): "holds .*, expected ",
    lambda path: os.truncate(path, path.stat().st_size - 100): "is damaged",
    lambda path: os.truncate(path, 50): "is damaged",
    lambda path: path.write_bytes(b""): "is damaged",
    lambda path: path.write_bytes(path.read_bytes() + b"0000"): "is damaged",
    lambda path: np.save(path, np.load(path).astype(np.float64)): "holds float64",
    lambda path: np.save(path, np.load(path)[:-1]): r"holds \w+ \(11, ",
    as_objects: "is damaged|holds object",
}
READERS = {  # who reads a store -> what it reads
    "array": ("layer_01.mean.npy", lambda states: states.array(1, "mean")),
    "lens_token": ("lens_token.npy", lambda states: read_lens(states)),
    "lens_logits": ("lens_logits.npy", lambda states: read_lens(states.folder)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_read_back_is_what_was_written(damage, reader, store, tmp_path):
    file, read = READERS[reader]
    folder = broken(store, tmp_path)
    read(open_states(folder))
    damage(folder / file)
    with pytest.raises(ValueError, match=rf"{file.replace('logits', '(token|logits)')} ({DAMAGES[damage]})"):
        read(open_states(folder))
    open_states(folder).array(4, "last")  # the others can be read


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_finished_store_is_compared_before_it_is_used_again(damage, store, samples, tmp_path, monkeypatch):
    "By `extract`, and so by the commands extract, probe (untrained states) and train."
    folder = broken(store, tmp_path)
    damage(folder / "layer_02.last.npy")
    monkeypatch.setattr(Reader, "read", None)
    with pytest.raises(ValueError, match="layer_0[23].last.npy has changed: its sha256 is .*extract again"):
        extract_states(load(WRITERS[0]), samples, folder, batch_size=5, progress=False)
    with pytest.raises(ValueError, match="layer_0[23].last.npy has changed"):
        _describe_states(open_states(folder))


def test_one_layer_alone_is_compared_too(samples, tmp_path):
    "As `train` reads it: the last layer, and no lens."
    again = lambda: extract_states(load(WRITERS[0]), samples, tmp_path, [4], ["last"], 5, lens=False, progress=False)  # noqa: E731
    states = again()
    zero_rows(tmp_path / "layer_04.last.npy")
    with pytest.raises(ValueError, match="layer_04.last.npy has changed"):
        again()
    with pytest.raises(ValueError, match="layer_04.last.npy has changed"):
        states.array(4, "last")  # opened before it was damaged


def test_each_file_is_hashed_once_unless_somebody_touched_it(store, tmp_path, monkeypatch):
    folder, hashed, plain = broken(store, tmp_path), [], hashlib.sha256
    counted = SimpleNamespace(
        sha256=lambda data: hashed.append(len(data)) or plain(data), file_digest=hashlib.file_digest
    )
    monkeypatch.setattr(core, "hashlib", counted)
    monkeypatch.setattr(core, "_SETTLED", -9)
    states, size = open_states(folder), (folder / "layer_01.mean.npy").stat().st_size
    for _ in range(4):
        states.array(1, "mean")
        open_states(folder).array(1, "mean")
    assert hashed == [size]
    states.array(1, "mean", check=True)
    assert hashed == [size] * 2
    before = (folder / "layer_01.mean.npy").stat()
    flip_a_bit(folder / "layer_01.mean.npy")
    os.utime(folder / "layer_01.mean.npy", ns=(before.st_atime_ns, before.st_mtime_ns))  # as if nothing had happened
    with pytest.raises(ValueError, match="has changed"):
        states.array(1, "mean")
    monkeypatch.setattr(core, "_SETTLED", 3600)  # written a moment ago: its times may not tell the next change
    states.array(2, "mean")
    states.array(2, "mean")
    assert len(hashed) == 5


def edit_target(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3]["target"] += 1
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


SAMPLES_DAMAGES = {
    edit_target: "has changed",
    lambda path: path.write_text("\n".join(path.read_text().splitlines()[::-1]) + "\n"): "has changed",
    lambda path: path.write_text(path.read_text().replace('"layout": ', '"layout": 1')): "has changed",
    lambda path: path.write_text(path.read_text().replace(", ", ",")): "has changed",
    lambda path: path.write_text(path.read_text().split("\n", 1)[1]): "has changed",
    lambda path: path.write_text("{"): "has changed",
    Path.unlink: "is missing",
}


@pytest.mark.parametrize("damage", SAMPLES_DAMAGES)
def test_samples_that_were_edited_are_noticed_and_written_anew(damage, store, samples, tmp_path, monkeypatch):
    folder = broken(store, tmp_path)
    damage(folder / "samples.jsonl")
    with pytest.raises((ValueError, FileNotFoundError), match=f"samples.jsonl {SAMPLES_DAMAGES[damage]}.*once more"):
        open_states(folder)
    monkeypatch.setattr(Reader, "read", None)  # the states are kept
    with nullcontext() if damage is Path.unlink else pytest.warns(UserWarning, match="was not as the samples have it"):
        again = extract_states(load(WRITERS[0]), samples, folder, batch_size=5, progress=False)
    assert again.targets.tolist() == store.targets.tolist() and same_files(folder, store.folder)


def test_a_store_of_before_samples_were_hashed_is_read_as_it_is(store, samples, tmp_path, monkeypatch):
    folder = broken(store, tmp_path)
    hashes = {file: digest for file, digest in store.about["sha256"].items() if file != "samples.jsonl"}
    (folder / "states.json").write_text(json.dumps(store.about | {"sha256": hashes}))
    assert open_states(folder).uids == store.uids
    monkeypatch.setattr(Reader, "read", None)
    edit_target(folder / "samples.jsonl")  # nothing tells, but for the samples themselves
    with pytest.warns(UserWarning, match="was not as the samples have it"):
        again = extract_states(load(WRITERS[0]), samples, folder, batch_size=5, progress=False)
    assert again.targets.tolist() == store.targets.tolist()


def test_damage_is_named(store, tmp_path):
    folder = broken(store, tmp_path)
    path = folder / "layer_01.mean.npy"
    states = open_states(folder)
    path.unlink()
    for read in (lambda: states.array(1, "mean"), lambda: _describe_states(states)):
        with pytest.raises(FileNotFoundError, match="layer_01.mean.npy is missing"):
            read()
    (folder / "samples.jsonl").write_text((folder / "samples.jsonl").read_text().split("\n", 1)[1])
    hashes = {file: digest for file, digest in store.about["sha256"].items() if file != "samples.jsonl"}
    (folder / "states.json").write_text(json.dumps(store.about | {"sha256": hashes}))
    with pytest.raises(ValueError, match="has 11 lines, expected 12"):
        open_states(folder)
    (folder / "states.json").write_text("{")
    with pytest.raises(ValueError, match="states.json is damaged"):
        open_states(folder)
    (folder / "states.json").write_text('{"format": 7}')
    with pytest.raises(ValueError, match="has format 7, expected 1"):
        open_states(folder)


def changed(samples: list[Sample], number: int = 3, **new) -> list[Sample]:
    return [replace(sample, **new) if i == number else sample for i, sample in enumerate(samples)]


def test_other_samples_are_told_by_what_is_other(store, samples, tmp_path):
    "The same uids are not the same samples."
    from PIL import Image

    check_samples(store, samples)
    three, blank = samples[3], tmp_path / "blank.png"
    Image.new("RGB", (672, 672)).save(blank)
    for now, told in (
        (changed(samples, target=8), rf"the true count of sample 3 \('{three.uid}'\) is 8 now and was {three.target}"),
        (changed(samples, factors=three.factors | {"layout": 99}), r"the factors of sample 3 \(.*'layout': 99"),
        (changed(samples, uid="new"), rf"the uid of sample 3 \('{three.uid}'\) is 'new' now"),
        (changed(samples, image=blank, sha256=""), "are the same, but questions or images are not"),
        (changed(samples, question="How many?"), "are the same, but questions or images are not"),
        (samples[:-1], "there are 11 samples now, and there were 12"),
        ([samples[1], samples[0], *samples[2:]], "the uid of sample 0"),
    ):
        with pytest.raises(ValueError, match=f"is of other samples: .*{told}.*Extract again"):
            check_samples(store, now)


def test_what_is_not_in_a_store(store):
    with pytest.raises(KeyError, match="No layer named '9'. There are: 0, 1, 2, 3, 4"):
        store.array(9, "mean")
    with pytest.raises(KeyError, match="Did you mean 'image_mean'"):
        store.array(1, "image_men")


def test_what_is_no_store(store, samples, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no states.json"):
        open_states(tmp_path)
    (tmp_path / "predictions.pkl").write_bytes(b"\x80\x04N.")
    for place in (tmp_path, tmp_path / "predictions.pkl"):
        with pytest.raises(ValueError, match="reading a pickle runs whatever code is in it"):
            open_states(place)
    with pytest.raises(FileExistsError, match="holds 'predictions.pkl' but no states.json"):
        extract_states(load(WRITERS[0]), samples, tmp_path, progress=False)
    run = tmp_path / "run"
    shutil.copytree(store.folder, run / "states")
    assert open_states(run).uids == store.uids  # a run's folder will do


def test_samples_that_cannot_be_read_are_named(samples, tmp_path):
    with pytest.raises(ValueError, match="no samples"):
        extract_states(load(WRITERS[0]), [], tmp_path / "a", progress=False)
    with pytest.raises(ValueError, match="Two samples have the uid"):
        extract_states(load(WRITERS[0]), [*samples, samples[0]], tmp_path / "b", progress=False)
    lost = replace(samples[3], uid="lost/1", image=tmp_path / "lost.png", sha256="0" * 64)
    with pytest.raises(FileNotFoundError, match="Sample 'lost/1'"):
        extract_states(load(WRITERS[0]), [*samples, lost], tmp_path / "c", progress=False)


def test_numbers_that_are_none_are_noticed(samples, tmp_path, monkeypatch):
    own = load_model(WRITERS[0], device="cpu", untrained=0)
    next(own.hooks.blocks[1].parameters()).data[:] = float("nan")
    with pytest.raises(ValueError, match="layer_02.mean.npy would hold numbers that are not finite"):
        extract_states(own, samples, tmp_path, progress=False)


def test_one_writer(samples, tmp_path):
    code = "import sys; from vlm_counting.core import lock_folder\n"
    code += "with lock_folder(sys.argv[1]): print(1, flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "1\n"
    with pytest.raises(BlockingIOError, match="Another process is writing"):
        extract_states(load(WRITERS[0]), samples, tmp_path, progress=False)
    other.communicate()
    with lock_folder(tmp_path):
        pass


def test_a_disk_that_is_too_small_is_found_out_at_once(small_disk, samples):
    folder = small_disk / "states"
    with pytest.raises(OSError, match=r"The states need 0\.1 MB in .*: No space left on device"):
        extract_states(load(WRITERS[0]), samples, folder, progress=False)
    assert not list(folder.glob("*.npy"))  # and nothing clutters it
    extract_states(load(WRITERS[0]), samples, folder.with_name("less"), [1], ["last"], progress=False)


def test_a_disk_that_fills_up_meanwhile(small_disk, samples, monkeypatch):
    "Arrays with holes, as where a file system cannot reserve room; then somebody else takes the rest of the disk."
    folder, filler, plain = small_disk / "states", small_disk / "filler", extraction._lay_out

    def laid_out(*arguments):
        plain(*arguments)
        with open(filler, "wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(4096))
                except OSError:
                    return

    monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.setattr(extraction, "_lay_out", laid_out)
    asked = ([1, 2], ["mean", "last"], 2)
    with pytest.raises(OSError, match="Could not .*: No space left on device.* start .* again"):
        extract_states(load(WRITERS[0]), samples, folder, *asked, progress=False)
    filler.unlink()
    monkeypatch.setattr(extraction, "_lay_out", plain)
    states = extract_states(load(WRITERS[0]), samples, folder, *asked, progress=False)
    assert np.abs(states.array(2, "last")).sum(1).min() > 0


def test_out_of_memory_halves_the_batch(store, samples, tmp_path, monkeypatch):
    sizes, plain = [], Reader.read

    def tight(self, inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(self, inputs)

    monkeypatch.setattr(Reader, "read", tight)
    states = extract_states(load(WRITERS[0]), samples, tmp_path, batch_size=6, progress=False)
    assert max(sizes) == 6 and sum(size for size in sizes if size <= 3) == len(samples)
    assert all(close(states.array(*key), store.array(*key)) for key in store.keys())


# --- killed and started again


class Stop(Exception):
    pass


def test_resuming_repeats_nothing(store, samples, tmp_path, monkeypatch):
    read, plain = [], Reader.read

    def counting(self, inputs):
        if len(read) == 2:
            raise Stop
        read.append(len(inputs["input_ids"]))
        return plain(self, inputs)

    monkeypatch.setattr(Reader, "read", counting)
    with pytest.raises(Stop):
        extract_states(load(WRITERS[0]), samples, tmp_path / "s", batch_size=5, progress=False)
    with pytest.raises(ValueError, match="not finished: 10 of 12 samples are in it. Start the same extraction again"):
        open_states(tmp_path / "s")
    with pytest.raises(FileExistsError, match="batches: size is 4 now and was 5"):
        extract_states(load(WRITERS[0]), samples, tmp_path / "s", batch_size=4, progress=False)
    read[:] = [0]
    extract_states(load(WRITERS[0]), samples, tmp_path / "s", batch_size=5, progress=False)
    assert read == [0, 2]
    for path in store.folder.glob("[!.]*"):
        assert path.read_bytes() == (tmp_path / "s" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("lost", [Path.unlink, lambda path: os.truncate(path, path.stat().st_size - 100)])
def test_an_array_that_is_lost_on_the_way_is_noticed(lost, samples, tmp_path, monkeypatch):
    "Of one that was cut off, the rows that were noted as done came back as zeros."
    read, plain = [], Reader.read
    monkeypatch.setattr(
        Reader, "read", lambda self, inputs: plain(self, inputs) if not read.append(1) and len(read) < 3 else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        extract_states(load(WRITERS[0]), samples, tmp_path, batch_size=5, progress=False)
    lost(tmp_path / "layer_01.mean.npy")
    with pytest.raises(FileNotFoundError, match="has lost 'layer_01.mean.npy', or a part of it, while it grew"):
        extract_states(load(WRITERS[0]), samples, tmp_path, batch_size=5, progress=False)


@pytest.fixture
def half(samples, tmp_path, monkeypatch) -> Path:
    "A store that stopped after two of three batches."
    read, plain = [], Reader.read
    with monkeypatch.context() as patch:
        patch.setattr(
            Reader, "read", lambda self, inputs: plain(self, inputs) if not read.append(1) and len(read) < 3 else 1 / 0
        )
        with pytest.raises(ZeroDivisionError):
            extract_states(load(WRITERS[0]), samples, tmp_path / "half", batch_size=5, progress=False)
    return tmp_path / "half"


def go_on(folder: Path, samples: list[Sample]):
    return extract_states(load(WRITERS[0]), samples, folder, batch_size=5, progress=False)


@pytest.mark.parametrize(
    "rows", ["[999]", "[-1]", "[12]", "[true]", '["1"]', "[1.0]", "[null]", "7", "null", '{"1": 2}']
)
def test_notes_of_rows_that_are_none_are_refused(rows, half, samples):
    "They were counted: with one row too many noted, another was never read."
    with open(half / "progress.jsonl", "a") as file:
        file.write(f'{{"rows": {rows}}}\n')
    with pytest.raises(FileExistsError, match="progress.jsonl, line 3 notes the rows .* expected numbers from 0 to 11"):
        go_on(half, samples)
    (half / "progress.jsonl").write_text('{"row": [1]}\n')
    with pytest.raises(FileExistsError, match="line 1 notes the rows None"):
        go_on(half, samples)
    with pytest.raises(ValueError, match="0 of 12 samples are in it"):
        open_states(half)


def test_rows_noted_twice_count_once(half, samples, store):
    lines = (half / "progress.jsonl").read_text()
    (half / "progress.jsonl").write_text(3 * lines)  # thirty rows
    go_on(half, samples)
    assert same_files(half, store.folder)


def test_notes_of_before_rows_were_hashed_are_taken(half, samples, store):
    lines = [json.loads(line) for line in (half / "progress.jsonl").read_text().splitlines()]
    (half / "progress.jsonl").write_text("".join(json.dumps({"rows": line["rows"]}) + "\n" for line in lines))
    go_on(half, samples)
    assert same_files(half, store.folder)


@pytest.mark.parametrize("file", ["layer_00.mean.npy", "layer_04.image_last.npy", "lens_token.npy", "lens_logits.npy"])
@pytest.mark.parametrize("damage", [zero_rows, flip_a_bit])
def test_noted_rows_that_were_lost_are_read_again(damage, file, half, samples, store):
    noted_rows = [row for line in noted(half) for row in line]
    data = np.load(half / file, mmap_mode="r+")
    if damage is zero_rows:
        data[noted_rows[0]] = 0
    else:
        data[noted_rows[-1]].reshape(-1)[-1:].view("u1")[0] ^= 1
    data.flush()
    del data
    with pytest.warns(UserWarning, match="5 rows of .* are not what was noted. They are read again"):
        go_on(half, samples)
    assert same_files(half, store.folder)


@pytest.mark.parametrize("damage", SAMPLES_DAMAGES)
def test_samples_edited_on_the_way_are_written_anew(damage, half, samples, store):
    damage(half / "samples.jsonl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        go_on(half, samples)
    assert open_states(half).targets.tolist() == store.targets.tolist()
    if "," not in damage.__code__.co_consts:  # other spaces are the same samples
        assert same_files(half, store.folder)


@pytest.mark.parametrize("damage", [other_type, other_head(b"(12, ", b"(6,  "), other_head(b"False", b"True ")])
def test_a_head_of_another_type_is_noticed_on_the_way(damage, half, samples, tmp_path, store):
    damage(half / "layer_01.mean.npy")
    with pytest.raises(FileNotFoundError, match="has lost 'layer_01.mean.npy', or a part of it"):
        go_on(half, samples)
    (half / "progress.jsonl").unlink()  # nothing is noted: the file is made anew
    go_on(half, samples)
    assert same_files(half, store.folder)


def test_a_part_that_has_changed_is_not_joined(samples, tmp_path):
    for shard in ("1/2", "2/2"):
        part = extract_states(load(WRITERS[0]), samples, tmp_path / "states", batch_size=5, progress=False, shard=shard)
    edit_target(part.folder / "samples.jsonl")
    with pytest.raises(ValueError, match="samples.jsonl has changed"):
        go_on(tmp_path / "states", samples)
    with pytest.warns(UserWarning, match="written anew"):
        extract_states(load(WRITERS[0]), samples, tmp_path / "states", batch_size=5, progress=False, shard="2/2")
    swap(part.folder / "layer_01.mean.npy")
    with pytest.raises(ValueError, match="layer_01.mean.npy has changed"):
        go_on(tmp_path / "states", samples)


CHILD = """
# Loads a twin once, then forks: each line of standard input is 'folder, log, events', and starts one extraction, which
# kills itself (SIGKILL) at the given number of file operations; 0: never.
import os, signal, sys
import vlm_counting.extraction as extraction
from vlm_counting.models import load_model
from vlm_counting.stimuli import generate

extraction._COMMIT_SECONDS, extraction._PIECE = 0, 1  # a join copies row by row
vlm, samples, plain = load_model(sys.argv[1], device="cpu"), generate("balanced", limit=27), extraction._write_rows

def work(folder, log, events, shard=None):
    left = [int(events)]
    if shard == "none":
        shard, extraction.Reader.read = None, None  # parts are joined: nobody is asked
    def audit(event, arguments):
        if event in ("open", "os.rename", "os.remove", "os.truncate") and folder in str(arguments[0]):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(audit)
    def writing(folder, columns, places, *rest):
        with open(log, "a") as file:
            file.write(" ".join(map(str, places)) + chr(10))
        plain(folder, columns, places, *rest)
    extraction._write_rows = writing
    extraction.extract_states(vlm, samples, folder, layers=[0, 2], batch_size=3, progress=False, shard=shard)

print("ready", flush=True)
"""


@pytest.fixture(scope="module")
def forker():
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-W", "ignore", "-c", CHILD + FORK_EACH_LINE, WRITERS[0]]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"

        def start(folder: Path, log: Path, events: int = 0, seconds: float | None = None, shard: str = "") -> int:
            "One extraction; its exit status. `seconds`: kill it after so long."
            process.stdin.write(f"{folder} {log} {events} {shard}\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            if seconds is not None:
                time.sleep(seconds)
                try:
                    os.kill(child, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            return int(process.stdout.readline())

        yield start
        process.stdin.close()


def noted(folder: Path) -> list[set[int]]:
    "The batches that are noted, whole lines only."
    path = folder / "progress.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [set(json.loads(line)["rows"]) for line in lines]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_at_random_moments_the_bytes_are_the_same(forker, tmp_path):
    calm, folder, log = tmp_path / "calm", tmp_path / "killed", tmp_path / "log"
    assert forker(calm, tmp_path / "calm-log") == 0
    whole = [set(map(int, line.split())) for line in (tmp_path / "calm-log").read_text().splitlines()]
    assert sorted(row for batch in whole for row in batch) == list(range(27)) and len(whole) == 9
    rng, kills, at = random.Random(0), 0, []
    while True:
        before = noted(folder)
        log.write_text("")
        by_event = {"events": rng.randrange(1, 70)} if kills % 3 else {"seconds": rng.uniform(0.01, 0.15)}
        status = forker(folder, log, **(by_event if kills < 24 else {}))
        again = [set(map(int, line.split())) for line in log.read_text().splitlines()]
        assert not any(batch in before for batch in again), "a batch that was noted was read again"
        assert all(batch in whole for batch in again), "other samples share a batch than in a calm run"
        if status == 0:
            break
        assert status == -signal.SIGKILL
        kills += 1
        try:
            at.append(len(open_states(folder)) // 3)  # killed when all was done
        except (ValueError, FileNotFoundError) as error:
            assert re.search("is not finished|no states.json", str(error))
            at.append(len(noted(folder)))
    assert kills >= 6 and at == sorted(at) and len(set(at)) >= 4  # at different places, never backwards
    names = sorted(path.name for path in calm.glob("[!.]*"))
    assert names == sorted(path.name for path in folder.glob("[!.]*"))
    for name in names:
        assert (calm / name).read_bytes() == (folder / name).read_bytes(), name


def write_notes(folder: Path, states: States) -> None:
    "A progress.jsonl in which every row of a finished store is noted by itself."
    files = [_file_of(layer, pooling) for layer in states.layers for pooling in states.poolings]
    files += _LENS_FILES if states.about["lens"] else []
    rows = np.hstack([np.load(folder / file).reshape(len(states), -1).astype("<f4") for file in files])
    write_jsonl(folder / "progress.jsonl", [_note([row], rows[[row]]) for row in range(len(states))])


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("step", [1, 2, 4, 7])
def test_killed_while_it_is_laid_out_or_finished(forker, tmp_path, step):
    "The first file operations one by one, then, in a second life, the last ones."
    folder, log = tmp_path / "s", tmp_path / "log"
    assert forker(folder, log, events=step) == -signal.SIGKILL
    assert forker(folder, log) == 0
    calm = open_states(folder)
    about = (folder / "states.json").read_bytes()
    (folder / "states.json").write_text(json.dumps({**calm.about, "finished": False}))  # as if killed before the end
    write_notes(folder, calm)
    log.write_text("")
    forker(folder, log, events=2 * step)
    assert forker(folder, log) == 0 and log.read_text() == ""
    assert (folder / "states.json").read_bytes() == about and not (folder / "progress.jsonl").exists()


# --- several processes


def same_files(folder: Path, other: Path) -> bool:
    "Have two folders the same files with the same bytes? Hidden ones do not count."
    names = [sorted(path.name for path in place.glob("[!.]*")) for place in (folder, other)]
    return names[0] == names[1] and all((folder / n).read_bytes() == (other / n).read_bytes() for n in names[0])


def in_parts(name: str, samples: list[Sample], folder: Path, number: int, batch_size: int | str) -> list[int]:
    "Every part of a store; how many samples each has."
    settings = {"batch_size": batch_size, "progress": False}
    shards = [f"{part}/{number}" for part in range(1, number + 1)]
    return [len(extract_states(load(name), samples, folder, shard=shard, **settings)) for shard in shards]


@pytest.mark.long_after(1)
@pytest.mark.parametrize(
    "name, batch_size, number",
    [(WRITERS[0], 5, 3), (WRITERS[0], 1, 2), (WRITERS[0], "auto", 3), (WRITERS[2], "auto", 3), (RANKERS[0], 5, 3)],
)
def test_joined_parts_are_the_whole_store_byte_for_byte(name, batch_size, number, samples, tmp_path, monkeypatch):
    vlm = load(name)
    longest = max(map(vlm.length, samples))
    monkeypatch.setattr(vlm, "token_budget", 4 * longest, raising=False)  # 'auto': about four samples a batch
    whole = extract_states(vlm, samples, tmp_path / "whole", batch_size=batch_size, progress=False)
    sizes = in_parts(name, samples, tmp_path / "run" / "states", number, batch_size)
    assert sum(sizes) == len(samples) and min(sizes) > 0
    monkeypatch.setattr(Reader, "read", None)  # nobody is asked
    monkeypatch.setattr(extraction, "_PIECE", 4 * 2000)
    joined = extract_states(vlm, samples, tmp_path / "run" / "states", batch_size=batch_size, progress=False)
    assert joined.uids == whole.uids and same_files(whole.folder, joined.folder)
    for path in (tmp_path / "run").glob("part-*"):
        shutil.rmtree(path)  # no longer needed
    assert (
        extract_states(vlm, samples, tmp_path / "run" / "states", batch_size=batch_size, progress=False).uids
        == whole.uids
    )


def test_a_join_that_cannot_be_made_says_why_and_writes_nothing(samples, tmp_path):
    name, folder, settings = WRITERS[0], tmp_path / "states", {"batch_size": 3, "progress": False}
    vlm, parts = load(name), [tmp_path / f"part-{part}-of-3" / "states" for part in (1, 2, 3)]

    def refused(complaint: str, error: type = ValueError, asked=samples, **more):
        with pytest.raises(error, match=complaint):
            extract_states(vlm, asked, folder, **(settings | more))
        assert not list(folder.glob("[!.]*"))

    in_parts(name, samples, folder, 3, 3)
    shutil.move(parts[1], tmp_path / "aside")
    refused("Of 12 samples 3 are not in exactly one of the parts in .* is in 0 of them. Start that part: shard='2/3'")
    shutil.copytree(parts[0], parts[1])
    refused("12 samples 9 are not in exactly one .* is in 2 of them. Were all parts made in the same way")
    shutil.rmtree(parts[1])
    shutil.move(tmp_path / "aside", parts[1])
    refused("part-1-of-3.states is of other samples: there are 5 samples now, and there were 6", asked=samples[:-3])
    more = [*samples, replace(samples[0], uid="more")]
    refused("13 samples 1 are not in exactly one .*: 'more' is in 0 of them. Were all parts made", asked=more)
    refused(r"part-1-of-3.states holds other states: layers is \[1\] now and was", FileExistsError, layers=[1])
    moved = [replace(sample, factors=sample.factors | {"layout": -1}) for sample in samples]
    refused("part-1-of-3.states is of other samples: the factors of sample 0 .*'layout': -1", asked=moved)
    shutil.copytree(parts[0], tmp_path / "part-1-of-2" / "states")
    refused("holds shards of 2 and of 3 parts")
    shutil.rmtree(tmp_path / "part-1-of-2")
    about = (parts[2] / "states.json").read_text()
    (parts[2] / "states.json").write_text(extraction._as_json(open_states(parts[2]).about | {"finished": False}))
    refused("part-3-of-3.states is not finished: 0 of 3 samples are in it. Start the same extraction again")
    (parts[2] / "states.json").write_text(about)
    data = bytearray((parts[2] / "layer_01.mean.npy").read_bytes())
    data[-1] ^= 1
    (parts[2] / "layer_01.mean.npy").write_bytes(data)
    with pytest.raises(ValueError, match="part-3-of-3.states.layer_01.mean.npy has changed: its sha256 is"):
        extract_states(vlm, samples, folder, **settings)
    shutil.rmtree(parts[2])
    extract_states(vlm, samples, folder, shard="3/3", **settings)  # and the join goes on behind the first two parts
    whole = extract_states(vlm, samples, tmp_path / "whole", **settings)
    assert same_files(extract_states(vlm, samples, folder, **settings).folder, whole.folder)


def test_a_part_without_a_batch_is_refused(samples, tmp_path):
    for shard, complaint in (("2/2", "12 samples make 1 batches. .*Ask for fewer parts"), ("3/2", "expected 'i/n'")):
        with pytest.raises(ValueError, match=complaint):
            extract_states(load(WRITERS[0]), samples, tmp_path / "s", batch_size=12, progress=False, shard=shard)
    assert not list(tmp_path.iterdir())


def test_parts_are_joined_without_those_that_have_no_batch(samples, tmp_path):
    vlm, folder, settings = load(WRITERS[0]), tmp_path / "run" / "states", {"batch_size": 6, "progress": False}
    extract_states(vlm, samples, folder, shard="1/3", **settings)
    with pytest.raises(ValueError, match="12 samples make 2 batches. The parts are joined without it"):
        extract_states(vlm, samples, folder, shard="3/3", **settings)
    with pytest.raises(ValueError, match="is in 0 of them. Start that part: shard='2/3'"):
        extract_states(vlm, samples, folder, **settings)
    extract_states(vlm, samples, folder, shard="2/3", **settings)
    assert same_files(extract_states(vlm, samples, folder, **settings).folder,
                      extract_states(vlm, samples, tmp_path / "whole", **settings).folder)  # fmt: skip


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_join_killed_at_random_moments_ends_in_the_same_bytes(forker, tmp_path):
    folder, log, calm = tmp_path / "run" / "states", tmp_path / "log", tmp_path / "calm"
    assert forker(calm, tmp_path / "calm-log") == 0
    for shard in ("1/2", "2/2"):
        assert forker(folder, tmp_path / "part-log", shard=shard) == 0
    rng, kills, at = random.Random(0), 0, set()
    while True:
        before = noted(folder)
        log.write_text("")
        status = forker(folder, log, events=rng.randrange(1, 120) if kills < 12 else 0, shard="none")
        again = [set(map(int, line.split())) for line in log.read_text().splitlines()]
        assert not any(rows in before for rows in again), "rows that were noted were copied again"
        if status == 0:
            break
        assert status == -signal.SIGKILL
        kills += 1
        at.add(len(noted(folder)))
    assert kills >= 6 and len(at) >= 4 and same_files(calm, folder)


def test_a_store_that_travels_leaves_its_samples_behind(store):
    import pickle

    sent = pickle.dumps(store.lean())
    assert len(sent) < len(pickle.dumps(store)) and store.uids[0].encode() not in sent
    lean = pickle.loads(sent)
    assert len(lean) == len(store) and all(np.array_equal(lean.array(*key), store.array(*key)) for key in store.keys())


def test_a_store_is_where_it_was_named_and_nobody_is_told_to_delete_what_he_cannot_see(store, tmp_path):
    (tmp_path / "results").symlink_to(store.folder.parent)  # where another machine has its own way to it
    linked = open_states(tmp_path / "results" / store.folder.name).lean()
    assert linked.folder == tmp_path / "results" / store.folder.name and len(linked.array(0, "mean"))
    (tmp_path / "results").unlink()
    with pytest.raises(FileNotFoundError, match="cannot be seen from .*Workers need the results folder at") as error:
        linked.array(0, "mean")
    assert platform.node() in str(error.value) and "Delete" not in str(error.value)


# --- the experiment


def held_files(folder: Path) -> dict[str, bytes]:
    "What is kept in a run's folder but for the record of its sessions."
    names = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in (".lock", "run.json"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in names}


@pytest.mark.long_after(1)
@pytest.mark.parametrize("name", [WRITERS[0], RANKERS[0]])
def test_states_in_memory_are_those_of_a_store(name, samples, tmp_path, monkeypatch):
    vlm, settings = load(name), {"batch_size": 5, "progress": False}
    kept = extract(vlm, samples, tmp_path / "run", **settings)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "temporary")
    held = extract(vlm, samples, **settings)
    assert not list((tmp_path / "temporary").iterdir()), "a file is left behind"
    assert held.folder is None and held.home is None and kept.home == tmp_path / "run" and len(held) == len(samples)
    assert (held.keys(), held.uids, held.factors, held.about) == (kept.keys(), kept.uids, kept.factors, kept.about)
    assert held.targets.tolist() == kept.targets.tolist() and held.description() == kept.description()
    for layer, pooling in held.keys():
        assert held[layer, pooling].tobytes() == kept[layer, pooling].tobytes()
        assert held.width(layer, pooling) == held[layer, pooling].shape[1]
    tables = held.tables()
    assert list(tables) == ["representations", "lens_curves"][: 1 + bool(held.about["lens"])]
    for table, found in tables.items():
        assert found.to_csv(index=False) == (tmp_path / "run" / f"{table}.csv").read_text()
    kept.figures()
    folder = held.save(tmp_path / "saved")
    assert held_files(folder) == held_files(tmp_path / "run")
    records = [json.loads((place / "run.json").read_text()) for place in (folder, tmp_path / "run")]
    assert [record.pop("sessions") for record in records] and records[0] == records[1]
    assert records[0]["status"] == "finished" and records[0]["samples"] == len(samples)
    monkeypatch.setattr(Reader, "read", lambda *given: pytest.fail("the model was asked again"))
    assert extract(vlm, samples, folder, **settings).uids == held.uids


def test_what_is_held_in_memory_is_not_changed_from_outside(samples):
    held = extract(load(WRITERS[0]), samples[:3], layers=1, poolings="last", progress=False)
    rows = held[1, "last"]
    rows[:] = 0
    assert held[1, "last"].any()


@pytest.mark.long
def test_an_extraction_goes_on_and_joins_its_parts(samples, tmp_path, monkeypatch):
    vlm, settings = load(WRITERS[0]), {"batch_size": 3, "layers": [0, 2], "progress": False}
    whole, folder, read, left = extract(vlm, samples, **settings), tmp_path / "run", Reader.read, iter("12")

    def stop(self, inputs):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return read(self, inputs)

    monkeypatch.setattr(Reader, "read", stop)
    with pytest.raises(KeyboardInterrupt):
        extract(vlm, samples, folder, **settings)
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    monkeypatch.undo()
    assert extract(vlm, samples, folder, **settings).description() == whole.description()
    for shard in ("1/2", "2/2"):
        part = extract(vlm, samples, tmp_path / "parts", shard=shard, **settings)
        assert (
            part.home.name == f"part-{shard[0]}-of-2"
            and part.uids == extract(vlm, samples, shard=shard, **settings).uids
        )
    monkeypatch.setattr(Reader, "read", None)
    assert extract(vlm, samples, tmp_path / "parts", **settings).description() == whole.description()


def test_the_wording_belongs_to_the_states(samples, tmp_path):
    vlm, few, settings = load(WRITERS[0]), samples[:4], {"layers": [2], "progress": False}
    plain = extract(vlm, few, tmp_path / "run", **settings)
    assert plain.about["wording"] == vars(vlm.wording) and plain.record.parameters.items() >= vars(vlm.wording).items()
    told = extract(vlm, few, instruction="Count.", system="You count.", **settings)
    assert told.about["wording"] == {"instruction": "Count.", "prompt": vlm.wording.prompt, "system": "You count."}
    assert told.about["fingerprint"] == plain.about["fingerprint"] and not close(told[2, "last"], plain[2, "last"])
    with pytest.raises(FileExistsError, match="parameter 'prompt' is '{question}' now and was '{instruction} {quest"):
        extract(vlm, few, tmp_path / "run", prompt="{question}", **settings)
    other = vlm.reworded(instruction="Count.")
    with pytest.raises(FileExistsError, match="other states: wording: instruction is 'Count.' now and was 'Answer us"):
        extract_states(other, few, plain.folder, **settings)
    with pytest.raises(ValueError, match="ranks captions and reads no instruction"):
        extract(load(RANKERS[0]), few, instruction="Count.", progress=False)
    # a store of before 0.6.0 says nothing of it: there was only one
    about = {key: value for key, value in plain.about.items() if key != "wording"}
    (plain.folder / "states.json").write_text(extraction._as_json(about))
    assert len(extract(vlm, few, tmp_path / "run", **settings)) == 4
    with pytest.raises(FileExistsError, match="wording: instruction is 'Count.' now and was 'Answer using as few"):
        extract_states(other, few, plain.folder, **settings)


@pytest.mark.parametrize(
    "layers, expected",
    [(2, [2]), ("0, 2", [0, 2]), (np.int64(2), [2]), (range(2), [0, 1]), ((2, 0), [0, 2]), ("all", None)],
)
def test_layers_may_be_asked_for_in_any_way(layers, expected, samples):
    held = extract(load(WRITERS[0]), samples[:2], layers=layers, poolings="last", lens=False, progress=False)
    assert held.layers == (expected or [0, 1, 2, 3, 4]) and held.poolings == ["last"]
    json.dumps(held.record.parameters)


def test_what_is_not_there_is_said_with_what_is(store, samples, tmp_path):
    held = extract(load(WRITERS[0]), samples[:2], layers=[1, 3], poolings=["last", "mean"], lens=False, progress=False)
    for key, complaint in (
        ((3, "lsat"), "No pooling named 'lsat'. Did you mean 'last'. There are: mean, last. Extract again with"),
        ((2, "last"), "No layer named '2'. There are: 1, 3. Extract again with layers="),
        (
            3,
            r"states\[3\] is no layer with a pooling. Say states\[3, 'last'\], for one of the layers 1, 3 and poolings",
        ),
        ((1, 2, 3), r"states\[\(1, 2, 3\)\] is no layer with a pooling"),
    ):
        with pytest.raises(KeyError, match=complaint):
            held[key]
    assert np.array_equal(store[2, "last"], store.array(2, "last"))
    vlm, folder = load(WRITERS[0]), tmp_path / "run"
    for given, complaint in (
        ({"layers": 9}, "There is no layer 9"), ({"poolings": "lsat"}, "Did you mean 'last'"),
        ({"layers": "1-3"}, "expected 'all' or numbers"), ({"layers": [True]}, "There is no layer True"),
        ({"batch_size": 0}, "batch_size is 0"),
    ):  # fmt: skip
        with pytest.raises((ValueError, KeyError), match=complaint):
            extract(vlm, samples, folder, progress=False, **given)
    with pytest.raises(ValueError, match="no samples to extract from"):
        extract(vlm, [], folder)
    with pytest.raises(TypeError, match="'mine' does not show its hidden states. Expected a model of `load_model`"):
        extract(type("Mine", (), {"name": "mine"})(), samples, folder)
    assert not folder.exists()  # all of that was said before anything was made
    with pytest.raises(ValueError, match=r"States of .* has no lens: it was extracted with lens=False"):
        held.lens()
    assert held.figures() == {} and list(held.tables()) == ["representations"]


@pytest.mark.long
def test_samples_without_a_true_count_are_read(samples, tmp_path):
    vlm, settings = load(WRITERS[0]), {"layers": [2, 4], "batch_size": 5, "progress": False}
    known = extract(vlm, samples, **settings)
    for targets, tables in (([None] * 12, 1), ([None, *(sample.target for sample in samples[1:])], 2)):
        asked = [replace(sample, target=target) for sample, target in zip(samples, targets, strict=True)]
        held, kept = extract(vlm, asked, **settings), extract(vlm, asked, tmp_path / str(tables), **settings)
        assert held.targets.tolist() == kept.targets.tolist() == targets and held.description() == kept.description()
        assert np.array_equal(held[4, "last"], known[4, "last"]) and len(held.tables()) == len(kept.tables()) == tables
        table = held.lens()
        assert table["target"].isna().sum() == targets.count(None) * 4 and table["token"].notna().all()
        assert table["probability"].isna().sum() == targets.count(None) * 4
    assert (held.tables()["lens_curves"]["n"] == 11).all()


def test_states_in_memory_travel_alone(samples):
    import pickle

    held = extract(load(WRITERS[0]), samples, layers=[1, 2, 3], batch_size=5, progress=False)
    copy = pickle.loads(pickle.dumps(held))
    assert all(np.array_equal(copy[key], held[key]) for key in held.keys()) and copy.lens().equals(held.lens())
    lean = held.lean(2, "last")
    assert len(pickle.dumps(lean)) < held[2, "last"].nbytes + 9000 and held.uids[0].encode() not in pickle.dumps(lean)
    assert np.array_equal(lean[2, "last"], held[2, "last"]) and len(lean) == len(held)
    assert all(np.array_equal(held.lean()[key], held[key]) for key in held.keys())
    assert repr(held).endswith("MB in memory") and "\n" not in repr(held)


# --- the verb


@pytest.mark.long
def test_parts_of_a_run_are_joined_into_the_run_of_one_process(tmp_path, monkeypatch):
    given = {"limit": 18, "layers": "0,2", "batch_size": 4, "device": "cpu"}
    records = {}
    for place, shards in (("alone", [None]), ("shared", ["1/2", "2/2", None])):
        monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path / place))
        for shard in shards:
            left = perform("extract", {"shard": shard} | given)
        records[place] = left.record
    run = Path("extract", "tiny-qwen2-vl", "balanced")
    alone, shared = tmp_path / "alone" / run, tmp_path / "shared" / run
    assert same_files(alone / "states", shared / "states")
    for table in left.tables():
        assert (alone / f"{table}.csv").read_bytes() == (shared / f"{table}.csv").read_bytes()
    assert not first_difference(records["alone"], records["shared"]) and records["shared"].samples == 18
    parts = [json.loads((shared / f"part-{part}-of-2" / "run.json").read_text())["samples"] for part in (1, 2)]
    assert sum(parts) == 18 and parts == [10, 8]


@pytest.mark.parametrize(
    "given, complaint",
    [({"layers": "0-4"}, "expected 'all' or numbers with commas"), ({"poolings": "mean,lost"}, "Did you mean 'last'"),
     ({"untrained": -1}, "untrained is -1, expected a whole number"), ({"pooling": "mean"}, "Did you mean 'poolings'")],
)  # fmt: skip
def test_the_verb_is_asked_rightly(given, complaint):
    with pytest.raises((ValueError, KeyError), match=complaint):
        check_parameters("extract", given)
    asked = check_parameters("extract", {"layers": 3, "poolings": "mean, last", "untrained": 0})  # papermill gives 3
    assert parse_layers(asked["layers"]) == [3] and parse_poolings(asked["poolings"]) == ["mean", "last"]
    assert parse_layers("all") is parse_poolings("all") is None


STATES_JSON = {
    "no hashes": lambda about: about.pop("sha256"),
    "a hash less": lambda about: about["sha256"].pop("layer_02.class.npy"),
    "hashes of nothing": lambda about: about.update(sha256={}),
    "other layers": lambda about: about.update(layers=[0, 1]),
    "other poolings": lambda about: about.update(poolings=["mean"]),
    "no fingerprint": lambda about: about.pop("fingerprint"),
    "samples in words": lambda about: about.update(samples="nine"),
    "no dims": lambda about: about.update(dims=None),
}


@pytest.mark.parametrize("edit", STATES_JSON.values(), ids=STATES_JSON)
def test_a_description_that_does_not_go_together_is_refused_by_name(edit, tmp_path):
    vlm, samples = load_model("tiny-clip", device="cpu"), generate("balanced", limit=9)
    extract(vlm, samples, tmp_path, layers=[0, 2], poolings=["class"], progress=False)
    path = tmp_path / "states" / "states.json"
    about = json.loads(path.read_text())
    edit(about)
    path.write_text(json.dumps(about))
    for again in (open_states, lambda place: extract(vlm, samples, place, layers=[0, 2], poolings=["class"])):
        with pytest.raises(ValueError, match="states.json is damaged"):
            again(tmp_path)


@pytest.mark.parametrize("finished", [True, False])
def test_every_edit_of_a_description_is_noticed(tmp_path, finished):
    "Each field of states.json in turn: changed, or taken out; and the words of the lens, one by one."
    vlm, samples = load(WRITERS[0]), generate("balanced", limit=9)
    how = {"layers": [2], "poolings": ["last"], "progress": False}
    extract(vlm, samples, tmp_path, **how)
    path = tmp_path / "states" / "states.json"
    about = open_states(tmp_path).about | {"finished": finished}
    path.write_text(extraction._as_json(about))
    written = json.loads(path.read_text())
    edits = [{name: value for name, value in written.items() if name != lost} for lost in about]
    other = lambda value: (not value) if isinstance(value, bool) else [value, value]  # noqa: E731
    edits += [written | {name: other(value)} for name, value in about.items()]
    edits += [written | {"model": "tiny-clip"}, written | {"samples": 8}, written | {"parameters": 7}]
    edits += [written | {"words": about["words"] | {token: f"{word}0"}} for token, word in about["words"].items()]
    edits += [written | {"dims": about["dims"] | {"layer_02.last.npy": 64}}, written | {"seal": "0" * 64}]
    edits += [written | {"settings": {"dtype": "float16"}}, written | {"comment": "mine"}]
    for edit in edits:
        path.write_text(json.dumps(edit))
        for read in (open_states, lambda folder: extract(vlm, samples, folder, **how)):
            with pytest.raises(ValueError, match=r"states.json (is damaged|has changed since|has format)"):
                read(tmp_path)
    path.write_text(json.dumps(written, indent=4))  # other spaces say the same
    assert extract(vlm, samples, tmp_path, **how).uids == [sample.uid for sample in samples]
