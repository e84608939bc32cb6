"Guards for the room `models`: the log-probabilities are the model's own, and a broken checkpoint is noticed."

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from vlm_counting.core import Sample, UnknownName
from vlm_counting.datasets import load_dataset
from vlm_counting.extraction import extract
from vlm_counting.models import (
    MODELS,
    captions_for,
    checkpoint_hashes,
    doctor,
    find_checkpoint,
    find_entry,
    load_model,
    put_head,
    substitute_count,
    twins_dir,
)

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
    weights, processor = checkpoint_hashes(TWIN)
    assert checkpoint_hashes(copy) == (weights, processor)
    config = json.loads((copy / "processor_config.json").read_text())
    (copy / "processor_config.json").write_text(json.dumps(config | {"extra": 1}))
    assert checkpoint_hashes(copy)[0] == weights and checkpoint_hashes(copy)[1] != processor


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
    assert loose == {"llava-next-interleave-7b", "CoCa"}  # their commits could not be looked up; runs record the hash


def test_an_eighth_model_is_one_call(samples, monkeypatch):
    monkeypatch.setattr(MODELS, "_items", dict(MODELS))  # whatever is added here is gone afterwards
    MODELS.add("eighth", replace(MODELS["tiny-qwen2-vl"], citation="a test"))
    assert load_model("eighth", device="cpu").answer(samples[:2])[0].text.isdigit()


def test_nobody_asks_for_a_model_by_name():
    names = "|".join(re.escape(name) for name in MODELS)
    for path in twins_dir().parent.glob("*.py"):
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
    assert substitute_count(caption)[9] == paper and substitute_count(caption, "strict")[9] == strict
    assert list(substitute_count(caption)) == list(range(2, 11))


def test_captions_offer_the_counts_of_the_closed_question():
    sample = Sample("a/0", "0.png", "How many?", 3, {"entity": "red_plusses", "options": [3, 1, 2]})
    assert captions_for(sample) == {n: f"a photo of {n} red plusses" for n in (1, 2, 3)}
    with pytest.raises(ValueError, match="offers no counts"):
        captions_for(replace(sample, factors={"entity": "red_plusses"}))


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
    from vlm_counting.training import HeadConfig, examples, load_head, save_head, train_head

    vlm, samples = load_model(name, device="cpu", dtype="bfloat16"), load_dataset("balanced", limit=18)
    last = len(vlm.anatomy.blocks)
    store = extract(vlm, samples, folder / "states", [last], ["last"], len(samples), lens=False, progress=False)
    states = store.array(last, "last")
    data = examples(states, [sample.target for sample in samples][::-1], vlm.spelt)
    settings = HeadConfig(epochs=30, rate=1e-2)
    head, _ = train_head(load_head(vlm.folder), data, data, vlm.spelt, settings, progress=False)
    return head, save_head(head, folder / "head.safetensors", {"weights": vlm.weights}), vlm, samples, states


@pytest.mark.parametrize("name", ["tiny-qwen2-vl", "tiny-paligemma2"])
def test_a_head_says_in_bfloat16_what_it_says_to_extracted_states(name, tmp_path):
    "A head keeps float32 there: the first token agrees wherever the best two are not a rounding apart."
    import torch

    from vlm_counting.training import answer_with_head

    head, path, vlm, samples, states = nonsense_head(name, tmp_path)
    tuned = load_model(name, device="cpu", dtype="bfloat16", head=path)
    assert tuned.model.get_output_embeddings().weight.dtype == torch.float32
    expected = answer_with_head(head, states, vlm.spelt, vlm.tokenizer.decode)
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
    put_head(vlm.model, tmp_path / "head.safetensors")
    layer = vlm.model.get_output_embeddings()
    assert torch.equal(layer(torch.ones(1, 128, dtype=torch.bfloat16)), layer(torch.ones(1, 128)))
    vlm.model.lm_head.to("meta")  # as if on another device than the states
    out = layer(torch.ones(1, 128, dtype=torch.bfloat16))
    assert out.device.type == "meta" and out.dtype == torch.float32
    with pytest.raises(ValueError, match="not in memory but on disk.*Load the model on a device that holds all of it"):
        put_head(vlm.model, tmp_path / "head.safetensors")


def test_no_head_for_untrained_weights():
    with pytest.raises(ValueError, match="untrained=0 and head='some.safetensors' do not go together"):
        load_model("tiny-qwen2-vl", untrained=0, head="some.safetensors")


def test_an_untrained_model_needs_a_seed():
    with pytest.raises(ValueError, match="untrained is 'auto', expected a seed"):
        load_model("tiny-qwen2-vl", untrained="auto")
