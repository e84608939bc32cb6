"Any image-text-to-text checkpoint with a chat template: right in every number, or refused in a sentence."

import shutil
import warnings

import pytest
import torch
import transformers
from architecture_checks import compare, four_samples
from architectures import ARCHITECTURES, CONTRASTIVE, build, build_contrastive

from vlm_counting.core import load_image
from vlm_counting.diagnosis import diagnose
from vlm_counting.extraction import extract
from vlm_counting.models import doctor, load_model, twins_dir
from vlm_counting.patching import count_pairs, exchangeable_layers, patch
from vlm_counting.stimuli import generate

REFUSED = {  # architecture -> what its sentence says
    "text-only": "is a language model without eyes, by its model_type 'qwen2'",
    "no-template": "has no chat template",
    "paligemma2": "has no chat template",  # its prompt is in the entry of paligemma2-10b
    "gemma3n": r"head\(final norm\) differs from the logits",  # four streams behind the last block
    "t5gemma2": "cannot be asked: with one image and one question in its chat template, T5Gemma2",
    "llama4": "cannot be asked: .* Llama4ForConditionalGeneration of transformers fails",
    "got_ocr2": "cannot be asked: ",
    "chameleon": "cannot be asked: ",
    "fuyu": "cannot be asked: ",
    "phi4_multimodal": "cannot be asked: ",
    "kosmos2": "cannot be asked: ",
    "florence2": r"head\(final norm\) differs from the logits",
    "instructblip": "cannot be asked: ",
    "blip2-opt": "cannot be asked: ",
    "blip2-t5": "has no 'norm' for its norm",
    "blip": "has no 'norm' for its norm",
    "git": "has no 'norm' for its norm",
}
HALF = {"aria-bf16", "deepseek_vl_hybrid-bf16"}  # saved in bfloat16: a batch rounds otherwise
ALONE = {"emu3", "hunyuan_vl"}  # batches answer otherwise in transformers itself
RIGHT = [name for name in ARCHITECTURES if name not in REFUSED]
QUICK = {"qwen2_5_vl", "gemma3", "mllama", "granite4_vision", "lfm2_vl", "emu3"}
AROUND = {"qwen3_vl": [3], "mllama": [4], "gemma4": [4], "granite4_vision": [4]}  # -> layers that can be patched


def chosen(names) -> list:
    "Those that show a kind of their own are always run, the others with the slow tests."
    return [
        pytest.param(name, marks=[] if name in QUICK | {"text-only", "t5gemma2"} else pytest.mark.slow)
        for name in names
    ]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    "Builds each once."
    made = {}

    def make(name):
        if name not in made:
            made[name] = build(name, tmp_path_factory.mktemp("checkpoints") / name)
        return made[name]

    return make


def loaded(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_model(str(folder), device="cpu")


@pytest.mark.long_after(1)
@pytest.mark.parametrize("name", chosen(RIGHT))
def test_it_answers_as_plain_code_does(name, checkpoint):
    vlm = loaded(checkpoint(name))
    found = compare(vlm, checkpoint(name))
    assert (found.ids, found.texts) == (0, 0)
    assert max(found.first, found.second) < (0.05 if name in HALF else 1e-3)
    assert found.batch < (0.1 if name in HALF else 1e-3)
    assert found.head < (0.1 if name in HALF else 1e-3)
    assert vlm.alone == (name in ALONE)


@pytest.mark.parametrize("name", chosen(REFUSED))
def test_what_cannot_be_asked_is_refused_in_a_sentence(name, checkpoint):
    with pytest.raises((ValueError, AttributeError), match=REFUSED[name]) as error:
        loaded(checkpoint(name))
    assert len(str(error.value)) < 600


def test_a_batch_that_answers_otherwise_is_told(checkpoint):
    with pytest.warns(UserWarning, match="answers otherwise in a batch .* asked one by one"):
        load_model(str(checkpoint("emu3")), device="cpu")


@pytest.mark.parametrize("name", chosen(AROUND))
def test_a_layer_that_the_image_gets_around_is_not_patched(name, checkpoint):
    vlm = loaded(checkpoint(name))
    kinds = {"entities": ["red_squares", "blue_stars"], "counts": [2, 9], "limit": 8}
    pairs = count_pairs(generate("balanced", seed=1, **kinds))
    layers = list(range(len(vlm.hooks.blocks) + 1))
    sound = exchangeable_layers(vlm, pairs, layers)
    assert sound == AROUND[name]
    with pytest.raises(ValueError, match="The image gets around the states at layer|has no states of image tokens"):
        patch(vlm, pairs)
    assert set(patch(vlm, pairs, layers=sound, positions="last")["layer"]) == set(sound)


def test_image_tokens_are_those_that_carry_the_image(checkpoint):
    "Gemma 3's processor names the mark in front of them; Llama 3.2 Vision has none."
    gemma = loaded(checkpoint("gemma3"))
    assert gemma.processor.image_token == "<start_of_image>"
    assert gemma.tokenizer.convert_ids_to_tokens(gemma.image_ids) == ["<image_soft_token>"]
    mllama = loaded(checkpoint("mllama"))
    assert mllama.image_ids == () and "image" not in mllama.hooks.tokens
    (row,) = [row for row in doctor(mllama) if row["check"].startswith("image tokens")]
    assert row["value"] == "none: the image comes in beside the prompt"


@pytest.mark.long_after(1)
@pytest.mark.parametrize("name", sorted(set(CONTRASTIVE) - {"siglip2"}))
def test_who_ranks_captions_is_known_by_its_folder(name, tmp_path):
    "Scores are those of the library's own `logits_per_image`, texts padded as it was trained with (SigLIP in full)."
    vlm = loaded(build_contrastive(name, tmp_path / name))
    samples = generate("balanced", limit=12)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / name)
    padding = "max_length" if name == "siglip" else True
    for sample, answer in zip(samples, vlm.answer(samples), strict=True):
        counts = sorted(sample.factors["options"])
        texts = [f"a photo of {count} {sample.factors['entity'].replace('_', ' ')}" for count in counts]
        options = {"padding": padding, "truncation": True, "return_tensors": "pt"}
        inputs = processor(text=texts, images=load_image(sample.image), **options)
        with torch.inference_mode():
            right = vlm.model(**inputs).logits_per_image[0].log_softmax(-1)
        assert [answer.logprobs[count] for count in counts] == pytest.approx(right.tolist(), abs=1e-4)
    assert all(row["ok"] for row in doctor(vlm))


def test_a_tower_without_blocks_is_asked_and_not_read(tmp_path):
    vlm = loaded(build_contrastive("align", tmp_path / "align"))
    with pytest.raises(ValueError, match="has no blocks whose states could be read"):
        extract(vlm, generate("balanced", limit=9), progress=False)


def test_images_of_any_shape_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is given pixel_attention_mask, spatial_shapes beside the pixels"):
        loaded(build_contrastive("siglip2", tmp_path / "siglip2"))


@pytest.mark.long
def test_a_model_without_image_tokens_is_diagnosed_from_the_rest(checkpoint):
    alone = generate("balanced", counts=[2, 5, 9], limit=27)
    done = diagnose(loaded(checkpoint("mllama")), alone, generate("two_groups", limit=36), progress=False)
    assert {"last", "last_one", "last_two", "form"} < set(done.evidence)
    assert {"first", "halfway", "knob_image", "kinds_apart"} <= set(done.verdict.missing)


@pytest.mark.long
def test_a_model_that_answers_otherwise_in_a_batch_is_asked_one_by_one(checkpoint):
    vlm, samples = loaded(checkpoint("emu3")), four_samples()
    alone = [vlm.answer(sample)[0].logprobs for sample in samples]
    assert [answer.logprobs for answer in vlm.answer(samples)] == alone


def test_a_folder_of_open_clip_is_known(tmp_path):
    folder = shutil.copytree(twins_dir() / "tiny-coca", tmp_path / "coca")
    samples = generate("balanced", limit=9)
    assert loaded(folder).answer(samples) == load_model("tiny-coca", device="cpu").answer(samples)
