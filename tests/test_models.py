"Guards for the room `models`: the log-probabilities are the model's own, and a broken checkpoint is noticed."

import json
import math
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from vlm_counting import models
from vlm_counting.core import Sample, UnknownName, describe_run
from vlm_counting.datasets import load_dataset
from vlm_counting.evaluation import evaluate
from vlm_counting.extraction import extract_states
from vlm_counting.models import (
    _TINY,
    MODELS,
    _captions_for,
    _checkpoint_hashes,
    _put_head,
    _substitute_count,
    choose_models,
    doctor,
    find_checkpoint,
    find_entry,
    load_model,
    twins_dir,
)
from vlm_counting.stimuli import generate

TWIN = twins_dir() / "tiny-qwen2-vl"


@pytest.fixture(scope="module")
def vlm():
    return load_model("tiny-qwen2-vl", device="cpu")


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    closed, opened = load_dataset("balanced", limit=9), load_dataset("balanced-open", limit=9)
    return closed[::2] + opened[::2]  # prompts of different lengths, so that a batch needs padding


def test_answers_do_not_depend_on_the_batch(vlm, samples):
    together, alone = vlm.answer(samples), [vlm.answer([sample])[0] for sample in samples]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-3)


def longer(vlm, inputs: dict, text: str):
    "The inputs with the tokens of `text` after the prompt: what the cache must agree with."
    import torch

    added = (
        torch.tensor([vlm.tokenizer.encode(text, add_special_tokens=False)]) if text else torch.empty(1, 0, dtype=int)
    )
    fill = {"input_ids": added, "attention_mask": torch.ones_like(added), "mm_token_type_ids": torch.zeros_like(added)}
    return {name: torch.cat([value, fill[name]], 1) if name in fill else value for name, value in inputs.items()}


def test_log_probabilities_equal_whole_forward_passes(vlm, samples):
    import torch

    answer, inputs = vlm.answer(samples[:1])[0], vlm.prepare(samples[:1])
    assert len(answer.logprobs) == 21 and sum(map(math.exp, answer.logprobs)) <= 1 + 1e-6

    def after(text: str):
        with torch.inference_mode():
            logits = vlm.model(**longer(vlm, inputs, text), use_cache=False).logits[0, -1]
        return logits.log_softmax(-1)

    digit = {n: vlm.tokenizer.encode(str(n), add_special_tokens=False)[0] for n in range(10)}
    further = sum(after("1")[digit[n]].exp() for n in range(10))  # '1' that goes on as '10' ... '19'
    expected = {3: after("")[digit[3]], 12: after("")[digit[1]] + after("1")[digit[2]]}
    expected |= {20: after("")[digit[2]] + after("2")[digit[0]], 1: after("")[digit[1]] + torch.log1p(-further)}
    for count, value in expected.items():
        assert answer.logprobs[count] == pytest.approx(float(value), abs=2e-3), count


def test_the_picture_matters(vlm, samples, tmp_path):
    from PIL import Image

    Image.new("RGB", (672, 672)).save(tmp_path / "black.png")
    blind = [Sample(s.uid, tmp_path / "black.png", s.question, s.target) for s in samples]
    assert [a.text for a in vlm.answer(blind)] != [a.text for a in vlm.answer(samples)]


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(TWIN, tmp_path / "copy")


def test_a_folder_is_a_model_too(copy, samples, vlm):
    with pytest.warns(UserWarning, match="has no entry in MODELS"):
        other = load_model(str(copy), device="cpu")
    assert other.weights == vlm.weights and other.processor_hash == vlm.processor_hash
    assert other.answer(samples[:2]) == vlm.answer(samples[:2])


def test_a_missing_head_is_noticed(copy):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks the weights 'lm_head.weight'"):
        load_model("tiny-qwen2-vl", checkpoint=copy, device="cpu")


def test_weights_without_a_place_are_noticed(copy):
    "A head's bias, which this architecture does not have, would be dropped in silence."
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    weights["lm_head.bias"] = torch.zeros(len(weights["lm_head.weight"]))
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"holds 1 weights .* 'lm_head.bias'"):
        load_model("tiny-qwen2-vl", checkpoint=copy, device="cpu")


def test_a_prompt_without_a_picture_is_noticed(copy):
    template = (copy / "chat_template.jinja").read_text()
    assert "<|image_pad|>" in template
    (copy / "chat_template.jinja").write_text(template.replace("<|image_pad|>", ""))
    with pytest.raises(ValueError, match="no image token '<|image_pad|>'"):
        load_model("tiny-qwen2-vl", checkpoint=copy, device="cpu")


def test_pickled_weights_are_not_opened(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_model("tiny-qwen2-vl", checkpoint=copy, device="cpu")


def test_an_entry_may_name_a_pickled_file_which_is_read_for_its_numbers_alone(tmp_path, monkeypatch):
    "CLIP's repository holds no safetensors."
    assert MODELS["CLIP"].weights == "pytorch_model.bin" and MODELS["CoCa"].weights == "open_clip_pytorch_model.bin"
    import torch
    from safetensors.torch import load_file

    folder, samples = shutil.copytree(TWIN.parent / "tiny-clip", tmp_path / "clip"), load_dataset("balanced", limit=9)
    numbers = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(numbers, folder / "pytorch_model.bin")
    usual = load_model("tiny-clip", device="cpu").answer(samples)
    entry = replace(MODELS["tiny-clip"], weights="pytorch_model.bin")
    monkeypatch.setattr("vlm_counting.models.find_entry", lambda name: entry)
    pickled = load_model("tiny-clip", checkpoint=folder, device="cpu").answer(samples)
    assert pickled == usual

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"weight": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match="(?i)weights.?only"):
        load_model("tiny-clip", checkpoint=folder, device="cpu")
    assert not (tmp_path / "exploded").exists()


def test_hashes_follow_content(copy):
    weights, processor = _checkpoint_hashes(TWIN)
    assert _checkpoint_hashes(copy) == (weights, processor)
    config = json.loads((copy / "processor_config.json").read_text())
    (copy / "processor_config.json").write_text(json.dumps(config | {"extra": 1}))
    assert _checkpoint_hashes(copy)[0] == weights and _checkpoint_hashes(copy)[1] != processor


def test_names_that_do_not_exist(tmp_path):
    with pytest.raises(UnknownName, match="Did you mean 'qwen2-vl-7b'"):
        find_entry("qwen2-vl-7B-instruct")
    with pytest.raises(FileNotFoundError, match="neither config.json nor"):
        find_checkpoint("qwen2-vl-7b", MODELS["qwen2-vl-7b"], tmp_path)
    with pytest.raises(ValueError, match="expected one of auto, float32"):
        load_model("tiny-qwen2-vl", dtype="int8")
    with pytest.raises(ValueError, match="this machine has"):
        load_model("tiny-qwen2-vl", device="cuda:99" if not __import__("torch").cuda.is_available() else "mps")


def test_every_entry_is_complete():
    for name, spec in MODELS.items():
        assert spec.licence and spec.citation, name
    loose = {name for name, spec in MODELS.items() if not spec.repo.startswith("twin:") and len(spec.revision) != 40}
    later = choose_models("later")
    assert loose == {
        "llava-next-interleave-7b",
        "CoCa",
        *later,
    }  # could not be looked up; runs record the hash


def test_an_eighth_model_is_one_call(samples, monkeypatch):
    monkeypatch.setattr(MODELS, "_items", dict(MODELS))  # whatever is added here is gone afterwards
    MODELS.add("eighth", replace(MODELS["tiny-qwen2-vl"], citation="a test"))
    assert load_model("eighth", device="cpu").answer(samples[:2])[0].text.isdigit()


def test_nobody_asks_for_a_model_by_name():
    names = "|".join(re.escape(name) for name in MODELS)
    for path in twins_dir().parent.rglob("*.py"):
        assert not re.search(rf"""(==|!=|\bin)\s*[(\[{{]?\s*["']({names})["']|model_name""", path.read_text()), (
            path.name
        )


@pytest.mark.parametrize(
    "caption, paper, strict",
    [
        ("Two dogs", "nine dogs", "nine dogs"),
        ("two dogs and TWO cats", "nine dogs and TWO cats", "nine dogs and TWO cats"),
        ("a weight of three stones", "a wnine of three stones", "a weight of nine stones"),
        ("ten often", "nine ofnine", "nine often"),
    ],
)
def test_caption_substitution_as_published_and_strict(caption, paper, strict):
    assert _substitute_count(caption)[9] == paper and _substitute_count(caption, "strict")[9] == strict
    assert list(_substitute_count(caption)) == list(range(2, 11))


def test_captions_offer_the_counts_of_the_closed_question():
    sample = Sample("a/0", "0.png", "How many?", 3, {"entity": "red_plusses", "options": [3, 1, 2]})
    assert _captions_for(sample) == {n: f"a photo of {n} red plusses" for n in (1, 2, 3)}
    with pytest.raises(ValueError, match="offers no counts"):
        _captions_for(replace(sample, factors={"entity": "red_plusses"}))


@pytest.mark.long
def test_the_doctor_finds_the_twin_healthy_and_notices_a_sick_one(vlm, monkeypatch):
    rows = doctor(vlm)
    assert len(rows) >= 8 and not [row for row in rows if row["ok"] is False]
    json.dumps(rows)
    monkeypatch.setattr(vlm.tokenizer, "padding_side", "right")  # the last position is then a pad
    sick = {row["check"]: row["ok"] for row in doctor(vlm)}
    assert sick["batch of 4, padded, against 1"] is False


# --- another head


def nonsense_head(name: str, folder):
    "A head trained on wrong counts, so that it changes answers; its file, and what is to go through it."
    from vlm_counting.training import HeadConfig, _save_head, examples, fit_head, load_head

    vlm, samples = load_model(name, device="cpu", dtype="bfloat16"), load_dataset("balanced", limit=18)
    last = len(vlm.hooks.blocks)
    store = extract_states(vlm, samples, folder / "states", [last], ["last"], len(samples), lens=False, progress=False)
    states = store.array(last, "last")
    data = examples(states, [sample.target for sample in samples][::-1], vlm.count_token_ids)
    settings = HeadConfig(epochs=30, rate=1e-2)
    head, _ = fit_head(load_head(vlm.folder), data, data, vlm.count_token_ids, settings, progress=False)
    return head, _save_head(head, folder / "head.safetensors", {"weights": vlm.weights}), vlm, samples, states


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-qwen2-vl", "tiny-paligemma2"])
def test_a_head_says_in_bfloat16_what_it_says_to_extracted_states(name, tmp_path):
    "A head keeps float32 there: the first token agrees wherever the best two are not a rounding apart."
    import torch

    from vlm_counting.training import answer_with_head

    head, path, vlm, samples, states = nonsense_head(name, tmp_path)
    tuned = load_model(name, device="cpu", dtype="bfloat16", head=path)
    assert tuned.model.get_output_embeddings().weight.dtype == torch.float32
    expected = answer_with_head(head, states, vlm.count_token_ids, vlm.tokenizer.decode)
    said, before = tuned.answer(samples, max_new_tokens=1), vlm.answer(samples, max_new_tokens=1)
    best = head.scores(torch.tensor(states)).topk(2).values
    clear = (best[:, 0] - best[:, 1] > best.abs().max() * 2**-8).tolist()  # bfloat16 has eight binary digits
    assert sum(clear) >= 12, clear
    told = [(one.text, two.text) for one, two, sure in zip(said, expected, clear, strict=True) if sure]
    assert all(one == two for one, two in told), told
    assert [answer.text for answer in said] != [answer.text for answer in before]


def test_a_head_works_where_its_weights_are_and_not_on_disk(tmp_path):
    "Several GPUs or an offloaded layer, with torch's device without memory in their place."
    import torch
    from safetensors.torch import save_file

    vlm = load_model("tiny-qwen2-vl", device="cpu")
    save_file({"weight": vlm.model.lm_head.weight.detach().clone()}, tmp_path / "head.safetensors")
    _put_head(vlm, tmp_path / "head.safetensors")
    layer = vlm.model.get_output_embeddings()
    assert torch.equal(layer(torch.ones(1, 128, dtype=torch.bfloat16)), layer(torch.ones(1, 128)))
    vlm.model.lm_head.to("meta")  # as if on another device than the states
    out = layer(torch.ones(1, 128, dtype=torch.bfloat16))
    assert out.device.type == "meta" and out.dtype == torch.float32
    with pytest.raises(ValueError, match="not in memory but on disk.*Load the model on a device that holds all of it"):
        _put_head(vlm, tmp_path / "head.safetensors")


def test_no_head_for_untrained_weights():
    with pytest.raises(ValueError, match="untrained=0 and head='some.safetensors' do not go together"):
        load_model("tiny-qwen2-vl", untrained=0, head="some.safetensors")


def test_an_untrained_model_needs_a_seed():
    with pytest.raises(ValueError, match="untrained is 'auto', expected a seed"):
        load_model("tiny-qwen2-vl", untrained="auto")


# --- what a checkpoint brings along and must not change


WRITERS = ["tiny-qwen2-vl", "tiny-llava-next-interleave", "tiny-paligemma2", "tiny-llava-onevision", "tiny-internvl3"]


def change_json(path: Path, part: str = "", **values) -> None:
    "Write other values into a JSON file, or into an object in it."
    whole = json.loads(path.read_text())
    (whole[part] if part else whole).update(values)
    path.write_text(json.dumps(whole))


@pytest.fixture
def twin_copy(tmp_path):
    return lambda name: Path(shutil.copytree(twins_dir() / name, tmp_path / name))


def said(name: str, samples: list[Sample], checkpoint: Path | None = None) -> list:
    return load_model(name, checkpoint, device="cpu").answer(samples)


@pytest.mark.long_after(1)
@pytest.mark.parametrize("name", WRITERS)
def test_a_checkpoint_that_was_saved_without_its_cache_can_be_asked(name, samples, twin_copy):
    "Trainers switch the cache off and save that: in either configuration, or in the settings of generation."
    folder = twin_copy(name)
    change_json(folder / "config.json", use_cache=False)
    change_json(folder / "config.json", "text_config", use_cache=False)
    change_json(folder / "generation_config.json", use_cache=False)
    assert said(name, samples, folder) == said(name, samples)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 5.0},
        {"encoder_repetition_penalty": 5.0},
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": 3},
        {"num_beams": 3},
        {"cache_implementation": "static"},
        {"do_sample": True, "temperature": 9.0, "top_k": 50},
        {"suppress_tokens": list(range(200))},
        {"max_length": 3},
        {"bad_words_ids": [[number] for number in range(40, 60)]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_greedy_means_greedy_whatever_the_checkpoint_wants(settings, samples, vlm, twin_copy):
    folder = twin_copy("tiny-qwen2-vl")
    change_json(folder / "generation_config.json", **settings)
    other = load_model("tiny-qwen2-vl", folder, device="cpu")
    assert other.answer(samples) == vlm.answer(samples)
    assert other.unused_generation == {name: value for name, value in settings.items() if name != "top_k"}
    assert vlm.unused_generation == {}


ODD_SETTINGS = [
    {"repetition_penalty": 5.0},
    {"encoder_repetition_penalty": 5.0},
    {"no_repeat_ngram_size": 1},
    {"min_new_tokens": 3},
    {"num_beams": 3},
    {"num_beams": 2, "num_return_sequences": 2},
    {"use_cache": False},
    {"do_sample": True, "temperature": 0.01, "top_k": 1},
    {"suppress_tokens": list(range(200))},
    {"max_length": 3},
    {"bad_words_ids": [[number] for number in range(40, 60)]},
    {"stop_strings": ["e"]},
]


def plainly_generated(folder: Path, samples: list[Sample]) -> list[str]:
    "What the library's own `generate` says with the settings that it finds in the folder."
    import torch
    from transformers import AutoModelForImageTextToText

    vlm = load_model("tiny-qwen2-vl", folder, device="cpu")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()
    if model.generation_config.num_return_sequences:
        model.generation_config.num_return_sequences = 1
    inputs = vlm.prepare(samples)
    more = {"tokenizer": vlm.tokenizer} if model.generation_config.stop_strings else {}
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=5, **more)
    new = out[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in vlm.processor.batch_decode(new, skip_special_tokens=True)]


@pytest.mark.long
@pytest.mark.parametrize("settings", ODD_SETTINGS, ids=lambda settings: "-".join(settings))
def test_what_the_checkpoint_wants_is_done_when_asked_for(settings, samples, vlm, twin_copy):
    folder = twin_copy("tiny-qwen2-vl")
    change_json(folder / "generation_config.json", **settings)
    other = load_model("tiny-qwen2-vl", folder, device="cpu", generation="checkpoint")
    said, plain = other.answer(samples), vlm.answer(samples)
    assert [answer.text for answer in said] == plainly_generated(folder, samples)
    assert [answer.logprobs for answer in said] == [pytest.approx(answer.logprobs, abs=1e-4) for answer in plain]


@pytest.mark.long
def test_settings_of_the_checkpoint_are_recorded_where_they_decide(samples, twin_copy, vlm):
    folder = twin_copy("tiny-qwen2-vl")
    change_json(folder / "generation_config.json", repetition_penalty=5.0)
    other = load_model("tiny-qwen2-vl", folder, device="cpu")
    greedy, own = (evaluate(other, samples, generation=way, progress=False) for way in ("greedy", "checkpoint"))
    assert "generation" not in greedy.record.parameters
    assert own.record.parameters["generation"] == "checkpoint"
    assert own.record.parameters["checkpoint_generation"] == {"repetition_penalty": 5.0}


@pytest.mark.long
@pytest.mark.parametrize("name", ["tiny-qwen2-vl", "tiny-paligemma2"])
def test_drawn_answers_belong_to_sample_and_seed(name, samples):
    vlm = load_model(name, device="cpu")
    hot = vlm.with_generation("sample", temperature=2.0, sampling_seed=1)
    together = hot.answer(samples)
    assert [hot.answer([sample])[0].text for sample in samples] == [answer.text for answer in together]
    assert [answer.text for answer in hot.answer(samples[::-1])] == [answer.text for answer in together[::-1]]
    other = hot.with_generation(sampling_seed=2).answer(samples)
    assert [answer.text for answer in other] != [answer.text for answer in together]
    cold = vlm.with_generation("sample", temperature=1e-4).answer(samples)
    assert [answer.text for answer in cold] == [answer.text for answer in vlm.answer(samples)]
    assert together[0].logprobs == pytest.approx(vlm.answer(samples)[0].logprobs, abs=1e-4)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"generation": "nucleus"}, "generation is 'nucleus', expected one of greedy, sample, checkpoint"),
        ({"temperature": 0.7}, "temperature is 0.7, but generation is 'greedy'"),
        ({"generation": "sample", "temperature": 0}, "temperature is 0, expected a number of more than 0"),
        ({"generation": "sample", "temperature": math.nan}, "temperature is nan"),
        ({"generation": "sample", "temperature": "hot"}, "temperature is 'hot'"),
        ({"generation": "sample", "sampling_seed": -1}, "sampling_seed is -1, expected a whole number of at least 0"),
    ],
    ids=str,
)
def test_generation_that_is_none_is_refused_before_loading(wrong, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        load_model("hf:org/name", **wrong)


def test_a_ranker_draws_no_words():
    with pytest.raises(ValueError, match="ranks captions and writes nothing: there is no generation"):
        load_model("tiny-clip", generation="sample")


@pytest.mark.long
def test_the_doctor_tells_what_a_checkpoint_wanted(twin_copy):
    folder = twin_copy("tiny-paligemma2")
    change_json(folder / "generation_config.json", repetition_penalty=1.05)
    rows = {row["check"]: row["value"] for row in doctor(load_model("tiny-paligemma2", folder, device="cpu"))}
    assert rows["the checkpoint's own generation settings, not used"] == "repetition_penalty=1.05"


def with_bos(folder: Path) -> None:
    "Let template and tokenizer both put a first token in front, as many published checkpoints do."
    change_json(folder / "tokenizer_config.json", bos_token="<|im_start|>", add_bos_token=True)
    whole = json.loads((folder / "tokenizer.json").read_text())
    number = next(token["id"] for token in whole["added_tokens"] if token["content"] == "<|im_start|>")
    first = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    whole["post_processor"] = {
        "type": "TemplateProcessing", "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [number], "tokens": ["<|im_start|>"]}},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(whole))


@pytest.mark.long_after(1)
@pytest.mark.parametrize("begins", [True, False], ids=["template begins with it", "template does not"])
def test_a_prompt_begins_once_and_as_transformers_has_it(begins, samples, twin_copy):
    from vlm_counting.core import load_image
    from vlm_counting.models import INSTRUCTION, _encode

    folder = twin_copy("tiny-qwen2-vl")
    with_bos(folder)
    if not begins:
        template = folder / "chat_template.jinja"
        template.write_text("Asked: " + template.read_text())
    other, sample = load_model("tiny-qwen2-vl", folder, device="cpu"), samples[0]
    image, text = load_image(sample.image), f"{INSTRUCTION} {sample.question}"
    turn = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}
    plain = other.processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=True, return_dict=True)
    ours = _encode(other, [sample.question], [image])["input_ids"][0].tolist()
    assert other.tokenizer.bos_token == "<|im_start|>" and other.tokenizer("a").input_ids[0] == ours[0]
    assert ours == plain["input_ids"][0] and 0 <= other.length(sample) - len(ours) <= 1


def published(folder: Path, smallest: int = 3136, largest: int = 12845056) -> Path:
    "A processor folder as Qwen2-VL's is published: a budget as `min_pixels` and `max_pixels`, and no `size`."
    whole = json.loads((folder / "processor_config.json").read_text())
    images = whole.pop("image_processor") | {"min_pixels": smallest, "max_pixels": largest}
    images.pop("size", None)
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    (folder / "processor_config.json").unlink()
    return folder


@pytest.mark.long
def test_the_paper_s_pixel_budget_is_in_force_on_a_published_folder(twin_copy, monkeypatch):
    from vlm_counting.models import _QWEN2_VL, image_tokens

    folder, entry = published(twin_copy("tiny-qwen2-vl")), replace(_QWEN2_VL, dtype="float32")
    monkeypatch.setitem(MODELS._items, "qwen", entry)
    loaded = load_model("qwen", folder, device="cpu")
    size = dict(loaded.processor.image_processor.size)
    assert (size["shortest_edge"], size["longest_edge"]) == (100 * 28 * 28, 2304 * 28 * 28)
    patch = loaded.processor.image_processor.patch_size * loaded.processor.image_processor.merge_size
    least, most = (edge / patch**2 for edge in (100 * 28 * 28, 2304 * 28 * 28))
    assert least <= image_tokens(loaded, (60, 60)) <= 1.3 * least
    assert 0.9 * most <= image_tokens(loaded, (3000, 2000)) <= most
    assert entry.processor_options == {"size": {"shortest_edge": 78400, "longest_edge": 1806336}}


def test_an_option_without_effect_is_refused(monkeypatch):
    entry = replace(MODELS["tiny-qwen2-vl"], processor_options={"sise": {"shortest_edge": 1}})
    monkeypatch.setitem(MODELS._items, "typo", entry)
    with pytest.raises(ValueError, match="asks for sise=.*no setting of the processor.*Correct processor_options"):
        load_model("typo", device="cpu")


def test_a_head_that_is_set_is_part_of_who_the_model_is():
    vlm = load_model("tiny-qwen2-vl", device="cpu")
    other, before = vlm.reworded(instruction=""), (vlm.name, vlm.weights)
    assert before == ("tiny-qwen2-vl", _checkpoint_hashes(vlm.folder)[0])
    own = vlm.model.get_output_embeddings().weight.detach().clone()
    for wrong, found in (({"weight": own[:5]}, r"\(5, 128\)"), ({"head": own}, "head"), ({}, "{}")):
        with pytest.raises(ValueError, match=f"The given head holds .*{found}.*but the model has a head of"):
            vlm.set_head(wrong)
    assert (vlm.name, vlm.weights) == before
    vlm.set_head({"weight": own.flip(0)})
    first, record = vlm.weights, describe_run("ask", {}, other)
    assert first != before[1] and (record.model, record.weights) == ("tiny-qwen2-vl+head", first)
    assert vlm.reworded(system="You count.").weights == first
    vlm.set_head({"weight": (2 * own).numpy()})
    assert vlm.name == "tiny-qwen2-vl+head" and vlm.weights not in (before[1], first)
    vlm.set_head({"weight": own.flip(0)})
    assert vlm.weights == other.weights == first
    copied = vlm.copy("mine", "its own head again")
    known = copied.weights
    copied.set_head({"weight": own}, signed=True)
    assert (copied.name, copied.weights) == ("mine", known) and vlm.weights == first
    with pytest.raises(ValueError, match="no head: it ranks captions"):
        load_model("tiny-coca", device="cpu").set_head({"weight": own})


@pytest.mark.parametrize("name", ["tiny-internvl3", "tiny-llava-next-interleave", "tiny-qwen2-vl"])
def test_a_system_turn_is_tokenised_as_the_template_gives_it(name, monkeypatch):
    "And a prompt that is not is refused at load, as without a system turn."
    vlm = load_model(name, device="cpu", system="You count things.")
    black = models._two_images()[0]
    ids = models._template_ids(vlm, "How many?", black)
    assert models._bare_prompt(vlm, black)["input_ids"][0].tolist() == ids.tolist()
    assert len(ids) > len(models._template_ids(vlm.reworded(system=""), "How many?", black))
    whole = models._with_system
    monkeypatch.setattr(models, "_with_system", lambda *given: whole(*given[:2], "You count other things, twice."))
    with pytest.raises(ValueError, match="but the library makes"):
        models._check_ids(vlm, models._bare_prompt(vlm.reworded(system=""), black), black)


@pytest.mark.long_after(1)
@pytest.mark.parametrize("name", [name for name in _TINY if "coca" not in name])
def test_a_folder_of_the_time_before_processor_config_is_completed(name, tmp_path):
    "Patch size, tokens of an image and the like stand in the model's configuration."
    samples, old = generate("balanced", limit=9)[:2], tmp_path / name
    shutil.copytree(twins_dir() / name, old)
    told = json.loads((old / "processor_config.json").read_text())
    (old / "processor_config.json").unlink()
    (old / "preprocessor_config.json").write_text(json.dumps(told["image_processor"]))
    if "video_processor" in told:
        (old / "video_preprocessor_config.json").write_text(json.dumps(told["video_processor"]))
    answers = [load_model(name, checkpoint=folder).answer(samples) for folder in (None, old)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "lost", ["processor_config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja"]
)
@pytest.mark.parametrize("name", ["tiny-qwen2-vl", "tiny-clip", "tiny-internvl3"])
def test_a_part_that_is_missing_is_named(name, lost, tmp_path):
    if not (twins_dir() / name / lost).exists():
        pytest.skip(f"{name} has no {lost}")
    shutil.copytree(twins_dir() / name, tmp_path / name)
    (tmp_path / name / lost).unlink()
    said = {"chat_template.jinja": "has no chat template", "tokenizer_config.json": "has no tokenizer_config.json"}
    with pytest.raises(ValueError, match=said.get(lost, "The processor of .* cannot be made")) as error:
        load_model(name, checkpoint=tmp_path / name)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("name", ["tiny-qwen2-vl", "tiny-internvl3", "tiny-clip"])
def test_a_transparent_image_is_put_on_white_by_the_processor(name, tmp_path):
    from PIL import Image

    from vlm_counting.core import Sample, load_image

    vlm, clear = load_model(name), Image.new("RGBA", (224, 200), (0, 0, 0, 0))
    clear.paste((255, 0, 0, 255), (20, 20, 80, 80))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    clear.save(tmp_path / "turned.png", exif=exif)
    white = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB").rotate(-90, expand=True)
    white.save(tmp_path / "white.png")
    assert load_image(tmp_path / "turned.png").tobytes() == white.tobytes()
    samples = [Sample(name, tmp_path / f"{name}.png", "How many?") for name in ("turned", "white")]
    made = [vlm.prepare([sample]) for sample in samples]
    for key in made[0]:
        assert (made[0][key] == made[1][key]).all(), key


def test_a_processor_without_a_way_to_deal_with_transparency_gets_white(monkeypatch):
    from PIL import Image

    from vlm_counting.core import Sample

    vlm = load_model("tiny-qwen2-vl")
    monkeypatch.setattr(vlm.processor.image_processor, "do_convert_rgb", False)
    clear = Sample("a", Image.new("RGBA", (224, 224), (0, 0, 0, 0)), "How many?")
    white = Sample("b", Image.new("RGB", (224, 224), "white"), "How many?")
    assert (vlm.prepare([clear])["pixel_values"] == vlm.prepare([white])["pixel_values"]).all()


HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
    "{% endfor %}",
    "loops that write": "{% for a in range(99999) %}{% for b in range(99999) %}word {% endfor %}{% endfor %}",
    "long": "{% for a in range(99999) %}{{ messages[0].content }} {{ 'a' * 100 }}{% endfor %}",
    "at once": "{{ 'a' * 9000000 }}",
    "itself": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
}


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("system", ["", "Count."])
def test_a_template_that_does_not_end_is_refused_in_time(template, system, twin_copy, monkeypatch):
    "A checkpoint brings it along; it is run shut in, and with an end."
    monkeypatch.setattr(models, "_SECONDS", 0.3)
    folder = twin_copy("tiny-qwen2-vl")
    for name in ("chat_template.jinja", "chat_template.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "chat_template.jinja").write_text(template)
    begun = time.monotonic()
    with pytest.raises(ValueError, match="template|recursion"):
        load_model("tiny-qwen2-vl", folder, system=system)
    assert time.monotonic() - begun < 20


@pytest.mark.long
def test_what_is_in_time_is_never_stopped_and_what_is_late_always():
    "Whatever the moment at which the clock strikes; and in other threads too."

    def ask(seconds: float) -> str:
        end = time.monotonic() + seconds
        try:
            return models._in_time(lambda: next("done" for _ in iter(int, 1) if time.monotonic() > end), 1)
        except TimeoutError:
            return "stopped"

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, [0.01, 0.02, 5, 6] * 5 + [0.99, 1.0, 1.05, 1.1]))
    assert found[:20] == ["done", "done", "stopped", "stopped"] * 5 and set(found[20:]) <= {"done", "stopped"}
    assert ask(0.01) == "done"
