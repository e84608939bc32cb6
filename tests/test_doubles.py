"Guards for `doubles`: what is known of a real checkpoint without its weights holds when it is loaded and asked."

import gzip
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from vlm_counting.core import Sample
from vlm_counting.doubles import _facts, doubled, make_double
from vlm_counting.models import _cache_bytes, _encode, _fitting_tokens, doctor, load_model, squares_image
from vlm_counting.sweeps import rehearse

SHARED = Path(__file__).parents[2] / "shared" / "tokenizers"
WRITING = [name for name in doubled() if name not in ("CLIP", "CoCa")]
QUICK = ("qwen2-vl-7b", "CLIP", "CoCa")  # the others have more tokens for an image, or take long to load
SLOW = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in WRITING]
ALL = [*SLOW, "CLIP", "CoCa"]
TOKENS = {"qwen2-vl-7b": 576, "llava-next-interleave-7b": 729, "paligemma2-10b": 1024, "llava-onevision-7b": 3699,
          "internvl3-8b": 1280}  # fmt: skip


def sample(count: int = 3) -> Sample:
    offer = {"entity": "white_squares", "options": [1, 2, 3, 4, 5]}
    return Sample(f"a/{count}", squares_image(count), "How many white squares are there?", count, offer)


def loaded(name: str, folder: Path, **how):
    return load_model(name, checkpoint=folder, device="cpu", dtype="float32", **how)


@pytest.fixture(scope="module")
def real_tokenizer(tmp_path_factory):
    "Folders with the real tokenizers of Qwen2.5 and Gemma 2, where they are at hand."
    if not SHARED.is_dir():
        pytest.skip("the real tokenizers are not on this machine")
    place = tmp_path_factory.mktemp("tokenizers")
    for kind in ("qwen", "gemma"):
        (place / kind).mkdir()
        (place / kind / "tokenizer.json").write_bytes(
            gzip.decompress((SHARED / kind / "tokenizer.json.gz").read_bytes())
        )
    return lambda name: place / ("gemma" if name == "paligemma2-10b" else "qwen")


@pytest.mark.long
@pytest.mark.parametrize("name", ALL)
def test_old_names_and_new_names_are_one_model(name, tmp_path):
    folders = {way: make_double(name, tmp_path / way, weights=way, shard_size="40MB") for way in ("new", "old")}
    new, old = (loaded(name, folder).answer([sample()])[0] for folder in folders.values())
    assert new == old and new.text
    if name in TOKENS:
        index = json.loads((folders["old"] / "model.safetensors.index.json").read_text())
        assert len(set(index["weight_map"].values())) > 1  # several files
        assert _facts(name)["old_names"]
        assert not any(key.startswith("model.language_model.") for key in index["weight_map"])


@pytest.mark.long
def test_weights_that_are_drawn_are_those_that_are_written(tmp_path):
    written = make_double("CLIP", tmp_path / "written", weights="old")
    drawn = make_double("CLIP", tmp_path / "drawn")
    one, other = (loaded("CLIP", folder).model.state_dict() for folder in (written, drawn))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.long
@pytest.mark.parametrize("name", SLOW)
def test_an_image_becomes_as_many_tokens_as_in_the_real_model(name, tmp_path):
    vlm = loaded(name, make_double(name, tmp_path))
    assert vlm.image_table([sample()])["tokens"].tolist() == [TOKENS[name]]


@pytest.mark.long
@pytest.mark.parametrize("size, tokens", [((200, 200), 100), ((672, 672), 576), ((3000, 2000), 2262)])
def test_the_paper_s_pixel_budget_is_in_force(size, tokens, tmp_path):
    "On the published image processor, which has words of its own for it."
    vlm = loaded("qwen2-vl-7b", make_double("qwen2-vl-7b", tmp_path))
    image = Sample("a", Image.new("RGB", size), "How many?", 0)
    assert vlm.image_table([image])["tokens"].tolist() == [tokens]


@pytest.mark.long
@pytest.mark.parametrize("name", WRITING)
def test_the_real_tokenizer_spells_counts_and_marks_images(name, real_tokenizer, tmp_path):
    from transformers import AutoProcessor

    folder = make_double(name, tmp_path, tokenizer=real_tokenizer(name))
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    spelt = [tokenizer.encode(str(count), add_special_tokens=False) for count in range(21)]
    assert [len(tokens) for tokens in spelt] == [1] * 10 + [2] * 11
    for text, number in _facts(name)["tokens"].items():
        assert tokenizer.convert_tokens_to_ids(text) == number
    question = "How many red stars are there?"
    assert tokenizer.decode(tokenizer.encode(question, add_special_tokens=False)) == question
    assert len(tokenizer.encode(question, add_special_tokens=False)) <= 8  # words, not letters


@pytest.mark.long
@pytest.mark.parametrize("name", SLOW)
def test_with_the_real_tokenizer_it_is_asked_as_the_library_does(name, real_tokenizer, tmp_path):
    "Prompt ids, image tokens and the first logits, against the processor and the model called by hand."
    vlm = loaded(name, make_double(name, tmp_path, tokenizer=real_tokenizer(name)))
    inputs = _encode(vlm, ["How many white squares are there?"], [squares_image(3)])
    ids = inputs["input_ids"]
    assert int(torch.isin(ids, torch.tensor(vlm.image_ids)).sum()) == TOKENS[name]
    text = vlm.wording.text("How many white squares are there?")
    with torch.inference_mode():
        if vlm.spec.prompt:
            plain = vlm.processor(text=vlm.spec.prompt.format(text=text), images=squares_image(3), return_tensors="pt")
        else:
            turn = {
                "role": "user",
                "content": [{"type": "image", "image": squares_image(3)}, {"type": "text", "text": text}],
            }
            how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
            plain = vlm.processor.apply_chat_template([turn], **how)
        assert plain["input_ids"].tolist() == ids.tolist()
        plain.pop("labels", None)
        right = vlm.model(**plain).logits[:, -1]
        assert torch.allclose(vlm.hooks.forward(inputs), right, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITING)
def test_the_doctor_finds_a_double_healthy(name, tmp_path):
    rows = {row["check"]: row for row in doctor(loaded(name, make_double(name, tmp_path)))}
    assert not [check for check, row in rows.items() if row["ok"] is False]
    if name == "qwen2-vl-7b":
        settings = rows["the checkpoint's own generation settings, not used"]["value"]
        assert "temperature=0.01" in settings and "top_k=1" in settings


def test_a_double_of_full_depth_has_every_block(tmp_path):
    config = json.loads((make_double("qwen2-vl-7b", tmp_path, layers=None, width="real") / "config.json").read_text())
    assert (config["num_hidden_layers"], config["vision_config"]["depth"], config["hidden_size"]) == (28, 32, 3584)
    assert not list(tmp_path.glob("*.safetensors"))  # 15 GB are drawn when it is loaded


@pytest.mark.parametrize("name", doubled())
def test_the_real_configuration_has_the_size_of_its_name(name, tmp_path):
    "Parameters of the whole model, counted without memory."
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

    if name == "CoCa":
        pytest.skip("open_clip has no model without memory")
    folder = make_double(name, tmp_path, layers=None, width="real")
    kind = AutoModel if name == "CLIP" else AutoModelForImageTextToText
    with torch.device("meta"):
        model = kind.from_config(AutoConfig.from_pretrained(folder))
    billions = sum(weight.numel() for weight in model.parameters()) / 1e9
    expected = {"qwen2-vl-7b": 8.29, "llava-next-interleave-7b": 8.14, "paligemma2-10b": 9.66, "CLIP": 0.428}
    expected |= {"llava-onevision-7b": 8.03, "internvl3-8b": 7.4}
    assert billions == pytest.approx(expected[name], rel=0.04)


@pytest.mark.parametrize("name, gigabytes", [*((name, 24) for name in WRITING if name != "paligemma2-10b"),
                                             ("paligemma2-10b", 32)])  # fmt: skip
def test_asking_and_training_fit_on_one_card(name, gigabytes, tmp_path):
    "By shapes: weights in bfloat16, twice the cache of a full batch, what its widest layer holds; a head in training."
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(make_double(name, tmp_path, layers=None, width="real"))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype="bfloat16")
    card, text = gigabytes * 1e9, config.get_text_config()
    weights = sum(weight.numel() * weight.itemsize for weight in model.parameters())
    tokens = _fitting_tokens(card, weights, _cache_bytes(model))
    widest = 3 * tokens * text.intermediate_size * 2
    asking = weights + 2 * tokens * _cache_bytes(model) + widest
    head = 4 * model.get_output_embeddings().weight.numel() * 4  # the model itself is let go
    assert asking < card and head < card
    assert tokens >= 4 * TOKENS[name]  # and still several images at once


@pytest.mark.parametrize(
    "how, said",
    [
        ({"name": "tiny-clip"}, "There are no facts about 'tiny-clip'"),
        ({"layers": 0}, "layers is 0, expected None for all of them, or a whole number of at least 1"),
        ({"layers": 2.5}, "layers is 2.5"),
        ({"width": "wide"}, "width is 'wide', expected one of thin, real"),
        ({"weights": "none"}, "weights is 'none', expected one of drawn, new, old"),
        ({"seed": -1}, "seed is -1"),
    ],
    ids=str,
)
def test_a_double_that_cannot_be_made_is_refused(how, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        make_double(**{"name": "CLIP", "folder": tmp_path / "double"} | how)
    assert not (tmp_path / "double").exists()


@pytest.mark.long
def test_seeds_differ_and_repeat(tmp_path):
    folders = [make_double("CLIP", tmp_path / str(step), seed=seed) for step, seed in enumerate((1, 2, 1))]
    one, other, again = (loaded("CLIP", folder).weights for folder in folders)
    assert one == again != other


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2-vl-7b", "CLIP", "CoCa"])
def test_every_command_runs_with_a_double(name):
    "What the paper does with a model, with 36 images each."
    costs = rehearse(name, 36, layers=2, width="thin", device="cpu", dtype="float32")
    assert {cost.command: cost.why for cost in costs if cost.why} == {}
    assert all(cost.seconds[1] > 0 and cost.disk > 0 for cost in costs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava-next-interleave-7b", "paligemma2-10b", "llava-onevision-7b", "internvl3-8b"])
def test_asking_reading_and_training_run_with_a_double(name):
    "The same with as few images as they take: an image is a thousand tokens and more."
    costs = rehearse(name, 4, "evaluate,extract,train", layers=2, width="thin", device="cpu", dtype="float32")
    assert {cost.command: cost.why for cost in costs if cost.why} == {}
