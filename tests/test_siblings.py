"The shipped generative twins: their folders, what they learned, and that our answers are the library's own."

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest

from vlm_counting import raising, siblings
from vlm_counting.core import file_hash
from vlm_counting.models import INSTRUCTION, load_model, twins_dir
from vlm_counting.stimuli import generate

SIBLINGS = ["tiny-llava-next-interleave", "tiny-paligemma2", "tiny-internvl3", "tiny-llava-onevision"]
SHIPPED = [name for name in SIBLINGS if (twins_dir() / name).exists()]
EVERY = ["tiny-qwen2-vl", *SHIPPED]


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_COUNTING_DATA", str(tmp_path_factory.mktemp("data")))
        yield


def accuracy(rows: list[dict]) -> float:
    return float(np.mean([row["count"] == row["target"] for row in rows]))


def test_siblings_are_shipped():
    assert SHIPPED and SHIPPED == [name for name in SIBLINGS if name in SHIPPED]
    assert set(SIBLINGS) <= set(raising.ARCHITECTURES)


@pytest.mark.parametrize("name", SHIPPED)
def test_folder_is_small_and_holds_no_pickle(name):
    files = list((twins_dir() / name).iterdir())
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja"}
    assert sum(path.stat().st_size for path in files) < 6e6


@pytest.mark.parametrize("name", SHIPPED)
def test_record_speaks_of_these_weights(name):
    record = raising.read_training(twins_dir() / name)
    upbringing = raising.upbringing_for(name)
    assert record["name"] == name
    assert record["upbringing"] == json.loads(json.dumps(asdict(upbringing)))
    assert record["cpu_seconds"] < 15 * 60
    answering = [row for row in record["curve"] if row["stage"] == "answering"]
    assert answering[-1]["step"] == sum(lesson.steps for lesson in upbringing.lessons)
    times = [row["cpu_seconds"] for row in record["curve"]]
    assert times == sorted(times) and times[-1] <= record["cpu_seconds"] + 1


@pytest.mark.parametrize("name", SHIPPED)
def test_recorded_exam_is_human_like(name):
    record = raising.read_training(twins_dir() / name)
    exam = {(row["family"], row["form"]): row for row in record["exam"]}
    assert {family for family, _ in exam} == set(raising.EXAM)
    closed = exam["balanced", "closed"]
    assert 0.5 < closed["accuracy"] < 0.95
    assert np.mean([closed[n] for n in "123"]) > 0.9 > np.mean([closed[n] for n in "789"])
    assert record["swap"][0]["pictures"] >= 500 and record["swap"][0]["both_right"] >= 0.6


@pytest.mark.parametrize("name", SHIPPED)
def test_counts_what_is_asked(name):
    vlm = load_model(name, device="cpu")
    rows = raising.examine(vlm, "balanced", 36, seed=21)
    assert len(rows) == 36 and accuracy(rows) > 0.45  # chance is 0.11
    assert all(row["count"] in range(1, 10) for row in rows)
    swap = raising.swap_test(raising.examine(vlm, "two_groups", 60, seed=21))
    assert swap["pictures"] == 30 and swap["both_right"] > 0.35 and swap["same_answer"] < 0.35


# ---- our answers against the library's own classes, used as its documentation uses them

TEXT_FIRST = {"tiny-llava-next-interleave", "tiny-llava-onevision"}


def prompt_of(name: str, processor, question: str) -> str:
    if name == "tiny-paligemma2":
        return f"<image> answer en {INSTRUCTION} {question}"
    content = [{"type": "image"}, {"type": "text", "text": f"{INSTRUCTION} {question}"}]
    if name in TEXT_FIRST:
        content.reverse()
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def followed_by(inputs: dict, token: int) -> dict:
    "The same inputs with one token more, which belongs to the answer."
    import torch

    new = {"input_ids": token, "attention_mask": 1, "token_type_ids": 1, "mm_token_type_ids": 0}
    add = {name: torch.tensor([[value]]) for name, value in new.items()}
    return {name: torch.cat([value, add[name]], 1) if name in add else value for name, value in inputs.items()}


@pytest.mark.parametrize("name", EVERY)
def test_answers_are_the_librarys_own(name):
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    samples = generate("balanced", limit=9, seed=22)[::3] + generate("balanced-open", limit=9, seed=23)[1::3]
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


# ---- the school


@pytest.mark.parametrize("name", EVERY)
def test_school_reads_as_the_real_class_does(name):
    "The short cut of the lessons leads to the logits of the real class with the real processor."
    import torch

    pupil = raising.enrol(name)
    cells, small = np.full((1, 81), -1), np.zeros((1, 81), bool)
    cells[0, [0, 40, 79]], cells[0, 80] = 7, 12
    scene = raising.Scene().add(raising.ENTITIES[7], [(0, 0), (4, 4), (8, 7)]).add(raising.ENTITIES[12], [(8, 8)])
    world = raising.remember(pupil, cells, small)
    form = raising.tokenise_form(pupil, raising.FORMS["brief open"])
    ids = raising.write_questions(np.random.default_rng(0), form, np.array([[12, 7]]), np.array([[1, 3]]))
    inputs = processed(name, pupil.processor, raising.render(scene), f"How many {raising.KINDS[7]} are there?")
    with torch.no_grad():
        image = pupil.body.project(pupil.model, world.tokens.float())
        states, _ = pupil.body.read(pupil, image, np.arange(81)[None], ids)
        ours, real = raising.say(pupil.model, states[0, 1, 0]), pupil.model(**inputs).logits[0, -1]
    assert (ours - real).abs().max() < 0.02 * real.abs().max()


def processed(name: str, processor, image, question: str) -> dict:
    inputs = processor(images=image, text=prompt_of(name, processor, question), return_tensors="pt")
    inputs.pop("labels", None)
    return inputs


def test_questions_come_first_where_they_should():
    pupil = raising.enrol("tiny-llava-next-interleave")
    form = raising.tokenise_form(pupil, raising.FORMS["open"])
    ids = raising.write_questions(np.random.default_rng(0), form, np.array([[3]]), np.array([[4]]))[0]
    left, right = siblings.lay_out(siblings.LLAVA_PAGE, pupil.tokenizer, ids)
    assert pupil.tokenizer.decode(left[0]) == f"<|im_start|>user\nHow many {raising.KINDS[3]} are there?\n"
    assert pupil.tokenizer.decode(right[0]) == "<|im_end|>\n<|im_start|>assistant\n4"


def test_nobody_sees_the_answer_before_it_is_given():
    for prefix in (False, True):
        open_to = siblings.row_mask(6, prefix)[0, 0] == 0
        assert not open_to[:-1, -1].any() and open_to[-1].all()
        assert open_to[0, 4] == prefix


def test_a_tower_raised_otherwise_is_refused(tmp_path):
    name = SHIPPED[0]
    shutil.copytree(twins_dir() / name, tmp_path / name)
    upbringing = raising.shorten(raising.upbringing_for(name), 0.002)
    with pytest.raises(ValueError, match="seeing_steps"):
        raising.raise_twin(upbringing, tmp_path / "new", tower=tmp_path / name)
    other = replace(upbringing, name="tiny-internvl3", seeing_steps=raising.upbringing_for(name).seeing_steps)
    with pytest.raises(ValueError, match="other layers"):
        raising.raise_twin(other, tmp_path / "new", tower=tmp_path / name)


def test_a_tower_taken_over_gives_the_same_twin(tmp_path):
    upbringing = raising.shorten(raising.upbringing_for("tiny-llava-next-interleave"), 0.002)
    raising.raise_twin(upbringing, tmp_path / "first")
    sibling = replace(upbringing, name="tiny-paligemma2")
    alone = raising.raise_twin(sibling, tmp_path / "alone")
    taken = raising.raise_twin(sibling, tmp_path / "taken", tower=tmp_path / "first")
    assert file_hash(alone / "model.safetensors") == file_hash(taken / "model.safetensors")
    assert raising.read_training(taken)["tower_from"] == "tiny-llava-next-interleave"
