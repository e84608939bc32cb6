"The school of the siblings: its short cuts lead to the real classes, and a tower can be taken over."

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
from prompts import prompt_of

from vlm_counting.core import file_hash
from vlm_counting.models import MODELS, twins_dir
from vlm_counting.tiny_training import contrastive, generative, world

SIBLINGS = ["tiny-llava-next-interleave", "tiny-paligemma2", "tiny-internvl3", "tiny-llava-onevision"]
SHIPPED = [name for name in SIBLINGS if (twins_dir() / name).exists()]
EVERY = ["tiny-qwen2-vl", *SIBLINGS]
MATCHERS = ["tiny-clip", "tiny-coca"]


def test_one_school_for_all():
    assert set(world.ARCHITECTURES) == {*EVERY, *MATCHERS}
    courses = {name: body.course for name, body in world.ARCHITECTURES.items()}
    assert all(courses[name] is world.ANSWERING for name in EVERY)
    assert all(courses[name] is contrastive._MATCHING for name in MATCHERS)
    for name, body in world.ARCHITECTURES.items():
        assert world.upbringing_for(name, 3).seed == 3 and body.entry in MODELS


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_twins_were_raised_as_written_here(name):
    record = world.read_training(twins_dir() / name)
    assert record["upbringing"] == json.loads(json.dumps(asdict(world.upbringing_for(name))))


@pytest.mark.parametrize("name", EVERY)
def test_school_reads_as_the_real_class_does(name):
    "The short cut of the lessons leads to the logits of the real class with the real processor."
    import torch

    pupil = world._enrol(name)
    cells, small = np.full((1, 81), -1), np.zeros((1, 81), bool)
    cells[0, [0, 40, 79]], cells[0, 80] = 7, 12
    scene = world.Scene().add(world.ENTITIES[7], [(0, 0), (4, 4), (8, 7)]).add(world.ENTITIES[12], [(8, 8)])
    seen = world._remember(pupil, cells, small)
    form = world._tokenise_form(pupil, world._FORMS["brief open"])
    ids = world._write_questions(np.random.default_rng(0), form, np.array([[12, 7]]), np.array([[1, 3]]))
    inputs = processed(name, pupil.processor, world.render(scene), f"How many {world.KINDS[7]} are there?")
    with torch.no_grad():
        image = pupil.body.project(pupil.model, seen.tokens.float())
        states, _ = pupil.body.read(pupil, image, np.arange(81)[None], ids)
        ours, real = world._say(pupil.model, states[0, 1, 0]), pupil.model(**inputs).logits[0, -1]
    assert (ours - real).abs().max() < 0.02 * real.abs().max()


def processed(name: str, processor, image, question: str) -> dict:
    inputs = processor(images=image, text=prompt_of(name, processor, question), return_tensors="pt")
    inputs.pop("labels", None)
    return inputs


def test_questions_come_first_where_they_should():
    pupil = world._enrol("tiny-llava-next-interleave")
    form = world._tokenise_form(pupil, world._FORMS["open"])
    ids = world._write_questions(np.random.default_rng(0), form, np.array([[3]]), np.array([[4]]))[0]
    left, right = generative._lay_out(generative._LLAVA_PAGE, pupil.tokenizer, ids)
    assert pupil.tokenizer.decode(left[0]) == f"<|im_start|>user\nHow many {world.KINDS[3]} are there?\n"
    assert pupil.tokenizer.decode(right[0]) == "<|im_end|>\n<|im_start|>assistant\n4"


def test_nobody_sees_the_answer_before_it_is_given():
    for prefix in (False, True):
        open_to = generative._row_mask(6, prefix)[0, 0] == 0
        assert not open_to[:-1, -1].any() and open_to[-1].all()
        assert open_to[0, 4] == prefix


def test_a_tower_raised_otherwise_is_refused(tmp_path):
    name = SHIPPED[0]
    shutil.copytree(twins_dir() / name, tmp_path / name)
    upbringing = world.shorten(world.upbringing_for(name), 0.002)
    with pytest.raises(ValueError, match="seeing_steps"):
        world.raise_twin(upbringing, tmp_path / "new", tower=tmp_path / name)
    other = replace(upbringing, name="tiny-internvl3", seeing_steps=world.upbringing_for(name).seeing_steps)
    with pytest.raises(ValueError, match="other layers"):
        world.raise_twin(other, tmp_path / "new", tower=tmp_path / name)


@pytest.mark.slow
def test_a_tower_taken_over_gives_the_same_twin(tmp_path):
    upbringing = world.shorten(world.upbringing_for("tiny-llava-next-interleave"), 0.002)
    world.raise_twin(upbringing, tmp_path / "first")
    sibling = replace(upbringing, name="tiny-paligemma2")
    alone = world.raise_twin(sibling, tmp_path / "alone")
    taken = world.raise_twin(sibling, tmp_path / "taken", tower=tmp_path / "first")
    assert file_hash(alone / "model.safetensors") == file_hash(taken / "model.safetensors")
    assert world.read_training(taken)["tower_from"] == "tiny-llava-next-interleave"
