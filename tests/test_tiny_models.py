"The shipped generative models: their folders, what they learned, and that our answers are the library's own."

import numpy as np
import pytest
from prompts import prompt_of

from vlm_counting.core import file_hash
from vlm_counting.models import load_model, twins_dir
from vlm_counting.stimuli import generate
from vlm_counting.tiny_training import world

OTHERS = ["tiny-llava-next-interleave", "tiny-paligemma2", "tiny-internvl3", "tiny-llava-onevision"]
SHIPPED = [name for name in OTHERS if (twins_dir() / name).exists()]
EVERY = ["tiny-qwen2-vl", *SHIPPED]
CROWDED = pytest.mark.xfail(
    reason="with two kinds in the image it misses more threes than ones (1 to 3: .87, asked for: .9)", strict=True
)
READERS = [pytest.param(name, marks=[CROWDED] if name == "tiny-llava-onevision" else []) for name in SHIPPED]


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_COUNTING_DATA", str(tmp_path_factory.mktemp("data")))
        yield


def accuracy(rows: list[dict]) -> float:
    return float(np.mean([row["count"] == row["target"] for row in rows]))


@pytest.mark.parametrize("name", SHIPPED)
def test_folder_is_small_and_holds_no_pickle(name):
    files = list((twins_dir() / name).iterdir())
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja"}
    assert sum(path.stat().st_size for path in files) < 6e6


@pytest.mark.parametrize("name", SHIPPED)
def test_record_speaks_of_these_weights(name):
    record = world.read_training(twins_dir() / name)
    assert record["name"] == name
    assert record["weights_sha256"] == file_hash(twins_dir() / name / "model.safetensors")
    assert record["upbringing"]["name"] == name and record["upbringing"]["seed"] == 0
    assert record["cpu_seconds"] < 15 * 60
    answering = [row for row in record["curve"] if row["stage"] == "answering"]
    assert answering[-1]["step"] == sum(stage["steps"] for stage in record["upbringing"]["lessons"])
    times = [row["cpu_seconds"] for row in record["curve"]]
    assert times == sorted(times) and times[-1] <= record["cpu_seconds"] + 1


def recorded(name: str) -> tuple[dict, dict]:
    record = world.read_training(twins_dir() / name)
    return {(row["family"], row["form"]): row for row in record["exam"]}, record["swap"][0]


@pytest.mark.parametrize("name", SHIPPED)
def test_recorded_test_shows_that_it_reads_the_question(name):
    exam, swap = recorded(name)
    assert {family for family, _ in exam} == set(world.TEST_SETS)
    assert swap["pictures"] >= 500 and swap["both_right"] >= 0.6


@pytest.mark.parametrize("name", READERS)
def test_recorded_test_falls_with_the_count_in_pairs_too(name):
    pairs = recorded(name)[0]["two_groups", "closed"]
    assert np.mean([pairs[n] for n in "123"]) > 0.9 > np.mean([pairs[n] for n in "789"])


@pytest.mark.parametrize("name", SHIPPED)
def test_recorded_test_is_human_like(name):
    closed = recorded(name)[0]["balanced", "closed"]
    assert 0.5 < closed["accuracy"] < 0.95
    assert np.mean([closed[n] for n in "123"]) > 0.9 > np.mean([closed[n] for n in "789"])


@pytest.mark.long
@pytest.mark.parametrize("name", SHIPPED)
def test_counts_what_is_asked(name):
    vlm = load_model(name, device="cpu")
    rows = world._ask_family(vlm, "balanced", 36, seed=21)
    assert len(rows) == 36 and accuracy(rows) > 0.45  # chance is 0.11
    assert all(row["count"] in range(1, 10) for row in rows)
    swap = world._swap_test(world._ask_family(vlm, "two_groups", 60, seed=21))
    assert swap["pictures"] == 30 and swap["both_right"] > 0.35 and swap["same_answer"] < 0.35


# ---- our answers against the library's own classes, used as its documentation uses them


def followed_by(inputs: dict, token: int) -> dict:
    "The same inputs with one token more, which belongs to the answer."
    import torch

    new = {"input_ids": token, "attention_mask": 1, "token_type_ids": 1, "mm_token_type_ids": 0}
    add = {name: torch.tensor([[value]]) for name, value in new.items()}
    return {name: torch.cat([value, add[name]], 1) if name in add else value for name, value in inputs.items()}


@pytest.mark.long_after(1)
@pytest.mark.parametrize("name", EVERY)
def test_answers_are_the_librarys_own(name):
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    samples = generate("balanced", limit=9, seed=22)[::3] + generate("balanced", limit=9, seed=23, form="open")[1::3]
    answers = load_model(name, device="cpu").answer(samples)  # one padded batch
    processor = AutoProcessor.from_pretrained(twins_dir() / name)
    model = AutoModelForImageTextToText.from_pretrained(twins_dir() / name)
    digits = processor.tokenizer.convert_tokens_to_ids(list("0123456789"))
    for sample, answer in zip(samples, answers, strict=True):
        prompt = prompt_of(name, processor, sample.question)
        image = Image.open(sample.image).convert("RGB")
        inputs = processor(images=image, text=prompt, return_tensors="pt")
        inputs.pop("labels", None)
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=5, do_sample=False)
            first = model(**inputs).logits[0, -1].log_softmax(-1)
            second = model(**followed_by(inputs, digits[1])).logits[0, -1].log_softmax(-1)
        text = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer.text == text.strip()
        for count in (0, 3, 4, 5, 6, 7, 8, 9):
            assert answer.logprobs[count] == pytest.approx(first[digits[count]].item(), abs=2e-3)
        one = first[digits[1]] + torch.log1p(-second[digits].exp().sum())
        assert answer.logprobs[1] == pytest.approx(one.item(), abs=2e-3)
        for count in range(10, 20):
            twelve = first[digits[1]] + second[digits[count - 10]]
            assert answer.logprobs[count] == pytest.approx(twelve.item(), abs=5e-3)
