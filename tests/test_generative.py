"How the generative tiny models are trained: the short cuts lead to the real classes, a tower can be taken over."

import shutil
from dataclasses import replace

import numpy as np
import pytest
from prompts import prompt_of

from vlm_counting.core import file_hash
from vlm_counting.models import MODELS, twins_dir
from vlm_counting.tiny_training import contrastive, generative, world

OTHERS = ["tiny-llava-next-interleave", "tiny-paligemma2", "tiny-internvl3", "tiny-llava-onevision"]
SHIPPED = [name for name in OTHERS if (twins_dir() / name).exists()]
EVERY = ["tiny-qwen2-vl", *OTHERS]
MATCHERS = ["tiny-clip", "tiny-coca"]


def test_one_training_for_all():
    assert set(world.ARCHITECTURES) == {*EVERY, *MATCHERS}
    recipes = {name: architecture.recipe for name, architecture in world.ARCHITECTURES.items()}
    assert all(recipes[name] is world.ANSWERING for name in EVERY)
    assert all(recipes[name] is contrastive._MATCHING for name in MATCHERS)
    for name, architecture in world.ARCHITECTURES.items():
        assert world.config_for(name, 3).seed == 3 and architecture.entry in MODELS


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_were_trained_as_written_here(name):
    record = world.read_training(twins_dir() / name)
    assert record["upbringing"] == world._config_record(world.config_for(name))


@pytest.mark.long_after(1)
@pytest.mark.parametrize("name", EVERY)
def test_training_reads_as_the_real_class_does(name):
    "The short cut of the stages leads to the logits of the real class with the real processor."
    import torch

    trainee = world._build_trainee(name)
    cells, small = np.full((1, 81), -1), np.zeros((1, 81), bool)
    cells[0, [0, 40, 79]], cells[0, 80] = 7, 12
    scene = world.Scene().add(world.ENTITIES[7], [(0, 0), (4, 4), (8, 7)]).add(world.ENTITIES[12], [(8, 8)])
    seen = world._cache_scenes(trainee, cells, small)
    form = world._tokenise_form(trainee, world._FORMS["brief open"])
    ids = world._write_questions(np.random.default_rng(0), form, np.array([[12, 7]]), np.array([[1, 3]]))
    inputs = processed(name, trainee.processor, world.render(scene), f"How many {world.KINDS[7]} are there?")
    with torch.no_grad():
        image = trainee.architecture.project(trainee.model, seen.tokens.float())
        states, _ = trainee.architecture.read(trainee, image, np.arange(81)[None], ids)
        ours, real = world._output_logits(trainee.model, states[0, 1, 0]), trainee.model(**inputs).logits[0, -1]
    assert (ours - real).abs().max() < 0.02 * real.abs().max()


def processed(name: str, processor, image, question: str) -> dict:
    inputs = processor(images=image, text=prompt_of(name, processor, question), return_tensors="pt")
    inputs.pop("labels", None)
    return inputs


def test_questions_come_first_where_they_should():
    trainee = world._build_trainee("tiny-llava-next-interleave")
    form = world._tokenise_form(trainee, world._FORMS["open"])
    ids = world._write_questions(np.random.default_rng(0), form, np.array([[3]]), np.array([[4]]))[0]
    left, right = generative._lay_out(generative._LLAVA_LAYOUT, trainee.tokenizer, ids)
    assert trainee.tokenizer.decode(left[0]) == f"<|im_start|>user\nHow many {world.KINDS[3]} are there?\n"
    assert trainee.tokenizer.decode(right[0]) == "<|im_end|>\n<|im_start|>assistant\n4"


def test_nobody_sees_the_answer_before_it_is_given():
    for prefix in (False, True):
        open_to = generative._row_mask(6, prefix)[0, 0] == 0
        assert not open_to[:-1, -1].any() and open_to[-1].all()
        assert open_to[0, 4] == prefix


@pytest.mark.long
def test_a_tower_trained_otherwise_is_refused(tmp_path):
    name = SHIPPED[0]
    shutil.copytree(twins_dir() / name, tmp_path / name)
    config = world.shorten(world.config_for(name), 0.002)
    with pytest.raises(ValueError, match="seeing_steps"):
        world.train_tiny(config, tmp_path / "new", tower=tmp_path / name)
    other = replace(config, name="tiny-internvl3", seeing_steps=world.config_for(name).seeing_steps)
    with pytest.raises(ValueError, match="other layers"):
        world.train_tiny(other, tmp_path / "new", tower=tmp_path / name)


@pytest.mark.slow
def test_a_tower_taken_over_gives_the_same_model(tmp_path):
    config = world.shorten(world.config_for("tiny-llava-next-interleave"), 0.002)
    world.train_tiny(config, tmp_path / "first")
    other = replace(config, name="tiny-paligemma2")
    alone = world.train_tiny(other, tmp_path / "alone")
    taken = world.train_tiny(other, tmp_path / "taken", tower=tmp_path / "first")
    assert file_hash(alone / "model.safetensors") == file_hash(taken / "model.safetensors")
    assert world.read_training(taken)["tower_from"] == "tiny-llava-next-interleave"
