"Guards for `models`: weights of fewer bits, adapters, and hashes that are not made twice."

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from vlm_counting.core import Sample, UnknownName
from vlm_counting.extraction import extract_states
from vlm_counting.models import doctor, load_model, squares_image, twins_dir
from vlm_counting.stimuli import generate

TINY = "tiny-qwen2-vl"


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return generate("balanced", limit=9)


@pytest.fixture(scope="module")
def plain():
    return load_model(TINY, device="cpu")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    "A LoRA on the attention of the language model, as PEFT writes it, that changes what is said."
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = get_peft_model(load_model(TINY, device="cpu").model, config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight *= 8
    adapted.save_pretrained(folder)
    return folder


# --- adapters


@pytest.mark.long
def test_an_adapter_is_in_the_weights(adapter, plain, samples):
    "As the library itself adds it, without merging."
    from peft import PeftModel

    vlm = load_model(TINY, device="cpu", adapter=adapter)
    assert vlm.name == f"{TINY}+adapter" and vlm.weights != plain.weights
    base = load_model(TINY, device="cpu")
    base.model = PeftModel.from_pretrained(base.model, adapter)
    inputs = vlm.prepare(samples[:2])
    with torch.inference_mode():
        right = base.model(**inputs).logits[:, -1]
        assert torch.allclose(vlm.hooks.forward(inputs), right, atol=1e-4)
        assert not torch.allclose(plain.hooks.forward(inputs), right, atol=1e-1)
    assert load_model(TINY, device="cpu", adapter=adapter).weights == vlm.weights


def test_states_of_an_adapter_say_whose_they_are(adapter, samples, tmp_path):
    states = extract_states(load_model(TINY, device="cpu", adapter=adapter), samples[:2], tmp_path, lens=False)
    assert json.loads((tmp_path / "states.json").read_text())["model"] == f"{TINY}+adapter"
    assert states.layers


@pytest.mark.parametrize("name", [TINY, "tiny-paligemma2"])
def test_an_adapter_folder_in_place_of_a_model_says_where_it_belongs(name, adapter):
    for how in ({"name": name, "checkpoint": adapter}, {"name": str(adapter)}):
        with pytest.raises(FileNotFoundError, match=r"holds an adapter \(PEFT\), which is no whole model.*adapter="):
            load_model(**how, device="cpu")


def test_an_adapter_of_another_model_is_refused(adapter):
    with pytest.raises(ValueError, match="does not fit this model"):
        load_model("tiny-paligemma2", device="cpu", adapter=adapter)


def test_an_adapter_whose_weights_have_other_names_is_refused(adapter, tmp_path):
    "As after renaming the parts of a model: nothing would be added, and nobody told."
    from safetensors.torch import load_file, save_file

    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    file = other / "adapter_model.safetensors"
    save_file({key.replace("layers", "blocks"): weight for key, weight in load_file(file).items()}, file)
    with pytest.raises(ValueError, match="does not fit this model"):
        load_model(TINY, device="cpu", adapter=other)


@pytest.mark.parametrize(
    "how, error, said",
    [
        ({"name": "tiny-clip", "adapter": "here"}, ValueError, "adapter is for models that write"),
        ({"name": TINY, "adapter": "nowhere"}, FileNotFoundError, "nowhere holds no adapter: no adapter_config.json"),
        ({"name": TINY, "adapter": "here", "untrained": 0}, ValueError, "adapter and untrained=0 do not go together"),
        (
            {"name": TINY, "adapter": "here", "quantization": "bnb-4bit"},
            ValueError,
            "Merge it and save the model first",
        ),
        ({"name": TINY, "quantization": "int4"}, ValueError, "quantization is 'int4', expected one of bnb-4bit"),
        ({"name": TINY, "quantization": "bnb-4bit", "untrained": 1}, ValueError, "do not go together"),
        ({"name": "tiny-coca", "quantization": "bnb-8bit"}, ValueError, "quantization is for models that write"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(how, error, said, adapter):
    how = {key: str(adapter) if value == "here" else value for key, value in how.items()}
    with pytest.raises(error, match=said):
        load_model(**how, device="cpu")


@pytest.mark.parametrize(
    "how, package", [({"quantization": "bnb-4bit"}, "quantized"), ({"adapter": "here"}, "adapters")]
)
def test_what_is_not_installed_is_named(how, package, adapter, monkeypatch):
    from vlm_counting import models

    how = {key: str(adapter) if value == "here" else value for key, value in how.items()}
    folder = twins_dir() / TINY
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"pip install 'vlm_counting\[{package}\]'"):
        load_model(str(folder), device="cpu", **how)


# --- fewer bits


@pytest.mark.long
@pytest.mark.parametrize("bits", ["bnb-4bit", "bnb-8bit"])
def test_fewer_bits_are_those_of_the_library_and_recorded(bits, plain, samples):
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    vlm = load_model(TINY, device="cpu", quantization=bits)
    config = BitsAndBytesConfig(**{"load_in_4bit" if bits == "bnb-4bit" else "load_in_8bit": True})
    if bits == "bnb-4bit":
        config.bnb_4bit_compute_dtype = torch.float32
    same = AutoModelForImageTextToText.from_pretrained(
        twins_dir() / TINY, dtype="float32", device_map="cpu", quantization_config=config
    )
    for layer in same.modules():
        layer.support_avx512bf16_for_cpu = False  # a shortcut of some CPUs, see the chapter
    inputs = vlm.prepare(samples[:1])
    with torch.inference_mode():
        right = same(**inputs).logits[:, -1]
        assert torch.allclose(vlm.hooks.forward(inputs), right, atol=1e-4)
        assert not torch.equal(plain.hooks.forward(inputs), right)
    assert vlm.hooks.settings["quantization"] == f"bitsandbytes {bits[4]} bits"
    assert "quantization" not in plain.hooks.settings
    assert len(vlm.answer(samples)) == 9
    rows = {row["check"]: row for row in doctor(vlm)}
    assert rows["bfloat16 against float32"]["value"] == "not tried: the weights are quantised"


@pytest.mark.parametrize("shortcut", [True, False])
def test_four_bits_are_the_same_on_every_cpu(shortcut, plain, samples, monkeypatch):
    "bitsandbytes multiplies in bfloat16 where a CPU can, whatever it was told, and breaks on layers 96 wide."
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: shortcut)
    vlm = load_model(TINY, device="cpu", quantization="bnb-4bit")
    layers = [each for each in vlm.model.modules() if isinstance(each, modules.Linear4bit)]
    assert len(layers) > 4 and not any(layer.support_avx512bf16_for_cpu for layer in layers)
    vlm.hooks.forward(vlm.prepare(samples[:1]))
    assert not any(getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers)


@pytest.mark.long
def test_each_part_s_kernel_is_recorded():
    assert load_model("tiny-paligemma2", device="cpu").hooks.settings["attention"] == "text eager, vision sdpa"
    assert load_model(TINY, device="cpu").hooks.settings["attention"] == "sdpa"
    assert load_model("tiny-coca", device="cpu").hooks.settings["attention"] == "library"


@pytest.mark.long
def test_an_image_is_asked_about_with_fewer_bits():
    assert load_model(TINY, device="cpu", quantization="bnb-8bit").ask(squares_image(2), "How many squares?").text


# --- hashes


def test_a_large_file_is_hashed_once_and_again_when_it_was_touched(tmp_path, monkeypatch):
    import os
    import time

    from vlm_counting import core, models

    monkeypatch.setenv("VLM_COUNTING_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(models, "_LARGE", 100)
    (tmp_path / "data").mkdir()
    file, hashed = tmp_path / "model.safetensors", []
    real = core.file_hash
    monkeypatch.setattr(core, "file_hash", lambda path: (hashed.append(path.name), real(path))[1])
    monkeypatch.setattr(models.time, "time_ns", lambda: time.time() * 10**9 + 10**11)  # a while later
    file.write_bytes(b"a" * 200)
    first = models._noted_hash(file)
    core._HASHES.clear()  # as in another process
    assert models._noted_hash(file) == first == real(file) and len(hashed) == 1
    file.write_bytes(b"b" * 200)
    os.utime(file, ns=(1, 1))  # the time of change is not to be forged
    core._HASHES.clear()
    assert models._noted_hash(file) == real(file) != first and len(hashed) == 2
    (tmp_path / "data" / "hashes.json").write_text("{broken")
    core._HASHES.clear()
    assert models._noted_hash(file) == real(file)


# --- any model of open_clip


@pytest.mark.slow
def test_a_model_of_open_clip_by_name_and_tag(samples, tmp_path, monkeypatch):
    "A ResNet with the activation that its tag says, as open_clip itself builds it."
    import open_clip

    right, _, transform = open_clip.create_model_and_transforms("RN50", pretrained=None, force_quick_gelu=True)
    torch.save(right.state_dict(), tmp_path / "RN50.pt")
    monkeypatch.setattr(open_clip, "download_pretrained", lambda about: str(tmp_path / "RN50.pt"))
    monkeypatch.setenv("VLM_COUNTING_DATA", str(tmp_path / "data"))
    with pytest.warns(UserWarning, match="captions such as 'a photo of 3 red stars'"):
        vlm = load_model("open_clip:RN50@openai", device="cpu")
    from vlm_counting.core import load_image

    image = load_image(samples[0].image)
    with torch.inference_mode():
        expected = right.eval().encode_image(transform(image)[None])
        found = vlm.encoder.embed_pixels(vlm.encoder.pixels([image]))
    assert torch.allclose(found, expected, atol=1e-4)
    assert all(answer.count in range(1, 10) for answer in vlm.answer(samples))


@pytest.mark.parametrize(
    "name, said",
    [
        ("open_clip:RN5@openai", "No model of open_clip named 'RN5'. Did you mean 'RN50'"),
        ("open_clip:RN50@opena", "No weights of RN50 named 'opena'. Did you mean 'openai'"),
        ("open_clip:RN50", "No weights of RN50 named ''. There are: openai"),
    ],
)
def test_a_slip_in_a_name_of_open_clip_is_answered_with_the_nearest(name, said):
    with pytest.raises(UnknownName, match=re.escape(said)):
        load_model(name)


def test_weights_of_open_clip_that_cannot_be_had(monkeypatch):
    import open_clip

    def lost(about):
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "download_pretrained", lost)
    with pytest.raises(FileNotFoundError, match=r"cannot be had \(no network\): give a local folder"):
        load_model("open_clip:RN50@openai")
