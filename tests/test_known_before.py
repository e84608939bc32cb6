"What can be known before a model's weights are read is refused before; measured by whether they were asked for."

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vlm_counting import diagnosis, models, runs
from vlm_counting.core import write_jsonl
from vlm_counting.models import MODELS, load_model, outline, twins_dir
from vlm_counting.stimuli import generate

pytestmark = pytest.mark.long


@pytest.fixture
def nothing_is_loaded(monkeypatch, tmp_path):
    "Whoever asks for weights fails."
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(models, "_LIBRARIES", dict.fromkeys(models._LIBRARIES, None))


def manifest(folder: Path, *rows: dict, size: tuple[int, int] = (60, 60)) -> str:
    folder.mkdir()
    Image.new("RGB", size).save(folder / "0.png")
    plain = {"image": "0.png", "question": "How many?", "target": 3, "factors": {}}
    write_jsonl(folder / "manifest.jsonl", [plain | {"uid": f"a/{n}"} | row for n, row in enumerate(rows or [{}])])
    return str(folder)


def head(folder: Path, kind: str) -> str:
    path = folder / "head.safetensors"
    if kind == "garbage":
        path.write_text("no tensors " * 9)
    elif kind == "no file":
        path = path.with_name("absent")
        path.write_bytes(b"")
    else:
        weight = {"small": torch.zeros(5, 128)}.get(kind, torch.zeros(471, 128))
        record = {"others": '{"weights": "of another model"}', "odd": "[1]"}.get(kind, "{}")
        save_file({"bias" if kind == "bias" else "weight": weight}, path, metadata={"record": record})
    return str(path)


CLIP, PALI, QWEN = {"model": "tiny-clip"}, {"model": "tiny-paligemma2"}, {"model": "tiny-qwen2-vl"}
REFUSED = [
    *[(verb, {"device": device}, "this machine has") for verb in ("evaluate", "extract", "train", "diagnose")
      for device in ("cuda:9", "cuda:99")],
    *[("extract", {"layers": layers}, "There is no layer") for layers in ("99", "5", "0,99")],
    ("extract", CLIP | {"layers": "7"}, "There is no layer 7: this model has 0 .* to 6"),
    ("extract", {"model": "tiny-coca", "layers": "6"}, "There is no layer 6: this model has 0 .* to 5"),
    ("extract", {"poolings": "last,class"}, "no pooling 'class', only: mean, last"),
    ("extract", CLIP | {"poolings": "last"}, "no pooling 'last', only: mean"),
    ("extract", {"shard": "9/9", "batch_size": 64}, "shard='9/9' has nothing to read"),
    ("evaluate", CLIP | {"generation": "sample"}, "ranks captions and writes nothing: there is no generation"),
    ("evaluate", CLIP | {"system": "You count."}, "ranks captions and reads no"),
    ("extract", CLIP | {"instruction": "Count."}, "ranks captions and reads no instruction"),
    ("evaluate", PALI | {"system": "You count."}, "has no system turn"),
    ("train", PALI | {"system": "You count."}, "has no system turn"),
    ("evaluate", {"attention": "flash_attention_2"}, "needs flash-attn"),
    ("evaluate", CLIP | {"checkpoint": str(twins_dir() / "tiny-qwen2-vl")}, "holds a model that writes .*'tiny-clip'"),
    ("evaluate", QWEN | {"checkpoint": str(twins_dir() / "tiny-clip")}, "holds a model that ranks captions"),
    ("evaluate", QWEN | {"checkpoint": str(twins_dir() / "tiny-coca")}, "holds a model that ranks captions"),
    ("train", CLIP, "writes no words and has no output layer"),
    ("train", {"training": "balanced"}, "expected each to be 'train' or 'valid'"),
    ("diagnose", {"limit": 2}, "too few to learn from"),
    ("diagnose", {"dataset": "two_groups"}, "Two samples have the uid"),
    ("diagnose", {"transfer": "balanced"}, "not all of them with the factor 'others'"),
]  # fmt: skip
SMALL = {"evaluate": {"limit": 9}, "extract": {"limit": 9}, "diagnose": {"limit": 36}}
SMALL["train"] = {"limit": 9, "training_limit": 36}


@pytest.mark.parametrize("command, wrong, said", REFUSED, ids=[f"{v} {list(w.values())[-1]}" for v, w, _ in REFUSED])
def test_a_wrong_choice_is_refused_before_weights_are_read(nothing_is_loaded, tmp_path, command, wrong, said):
    with pytest.raises((ValueError, KeyError, ImportError), match=said):
        runs.run(command, **SMALL[command] | wrong)
    assert not list((tmp_path / "results").rglob("run.json"))


@pytest.mark.parametrize("kind", ["garbage", "no file", "small", "bias", "others", "odd"])
def test_a_head_that_does_not_fit_is_refused_before_weights_are_read(nothing_is_loaded, tmp_path, kind):
    path = head(tmp_path, kind)
    for model in ("tiny-qwen2-vl", "tiny-clip"):
        with pytest.raises(
            (ValueError, FileNotFoundError), match="holds no head|holds {|was trained for weights of an"
        ):
            load_model(model, head=path)


def test_samples_that_a_model_cannot_be_asked_are_refused_before_weights_are_read(nothing_is_loaded, tmp_path):
    wide = manifest(tmp_path / "wide", size=(20_100, 60))
    token = manifest(tmp_path / "token", {}, {"question": "How many <|image_pad|> are there?"})
    for command in ("evaluate", "extract"):
        with pytest.raises(ValueError, match="'a/0': absolute aspect ratio"):
            runs.run(command, dataset=wide, limit=None)
        with pytest.raises(ValueError, match=r"'a/1': its question holds '<\|image_pad\|>'"):
            runs.run(command, dataset=token, limit=None)
    with pytest.raises(ValueError, match="'a/0' offers no counts to choose among"):
        runs.run("evaluate", model="tiny-clip", dataset=manifest(tmp_path / "open"), limit=None)


def test_several_gpus_are_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [models._pick_device(name) for name in ("auto", "cuda", "cuda:1")] == ["cuda", "cuda", "cuda:1"]
    for name in ("cuda:2", "cuda:9", "cuda:x", "cuda:-1"):
        with pytest.raises(
            ValueError, match=rf"device is '{name}', but this machine has cuda, cpu \(cuda:0 to cuda:1\)"
        ):
            models._pick_device(name)


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("tiny-")])
def test_an_outline_says_what_the_model_says(name):
    thin, vlm = outline(name), load_model(name, device="cpu")
    assert all(weight.is_meta for weight in thin.model.parameters())
    for about in ("dim", "tokens", "counts", "settings", "scale", "cap"):
        assert getattr(thin.hooks, about) == getattr(vlm.hooks, about), about
    assert len(thin.hooks.blocks) == len(vlm.hooks.blocks) and (thin.name, thin.weights) == (vlm.name, vlm.weights)
    samples = generate("balanced", limit=9)
    assert [thin.length(sample) for sample in samples] == [vlm.length(sample) for sample in samples]
    told = outline(name, untrained=3)
    assert told.weights == "" and len(told.hooks.blocks) == len(vlm.hooks.blocks)


@pytest.mark.filterwarnings("ignore:.*left out")
def test_a_diagnosis_leaves_out_what_cannot_be_shown_and_counts_it(tmp_path):
    vlm, made = (
        load_model("tiny-clip", device="cpu"),
        [generate(name, limit=144) for name in ("balanced", "two_groups")],
    )
    broken = replace(made[0][5], image=b"none", sha256="")
    alone, groups = [broken if sample.uid == broken.uid else sample for sample in made[0]], made[1]
    with pytest.raises(ValueError, match="Cannot read the image"):
        diagnosis.diagnose(vlm, alone, groups, progress=False)
    done = diagnosis.diagnose(vlm, alone, groups, on_error="skip", path=tmp_path, progress=False)
    assert done.coverage == ({"images": 143, "rows": 144, "coverage": 143 / 144}, {}) and done.sizes == (143, 144)
    assert "Of 144 images with one kind of object 143 could be shown." in str(done)
    assert json.loads((tmp_path / "verdict.json").read_text())["coverage"][0]["images"] == 143
    assert broken.uid not in {row.uid for row in done.predictions}
    with pytest.raises(KeyError, match="raise, skip"):
        diagnosis.diagnose(vlm, alone, groups, on_error="ignore")
