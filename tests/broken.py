"""What tests of broken models share: tiny models, images, and copies with a planted fault, each made once."""

from dataclasses import replace

import pytest
import torch

from vlm_counting import patching
from vlm_counting.faults import FAULTS, plant
from vlm_counting.held_out import remember_inputs
from vlm_counting.models import load_model
from vlm_counting.stimuli import generate


@pytest.fixture(scope="session")
def vlm():
    return remember_inputs(load_model("tiny-qwen2-vl", device="cpu"))


@pytest.fixture(scope="session")
def gemma():
    return remember_inputs(load_model("tiny-paligemma2", device="cpu"))


@pytest.fixture(scope="session")
def clip():
    return load_model("tiny-clip", device="cpu")


@pytest.fixture(scope="session")
def looked_at():
    "Pictures that a planting may look at: every count, five times."
    return generate("balanced", seed=99, limit=45)


@pytest.fixture(scope="session")
def shown():
    return [*generate("balanced", limit=9), *generate("two_groups", limit=9)]


@pytest.fixture(scope="session")
def mixed(shown):
    "Five questions of different lengths, which a batch pads on the left."
    brief = replace(shown[4], question="How many red squares?")
    wordy = replace(shown[14], question=f"{shown[14].question} Look at the picture carefully, please.")
    return [shown[0], shown[12], brief, wordy, shown[7]]


@pytest.fixture(scope="session")
def healthy(vlm, shown):
    "What the healthy model said before anything was planted."
    return vlm.answer(shown, 1)


@pytest.fixture(scope="session")
def planted(vlm, looked_at, healthy):
    "Twins with a fault, each made once."
    made = {}

    def get(name, dose=None, base=vlm):
        dose = FAULTS[name].doses[-1] if dose is None else dose
        if (base, name, dose) not in made:
            made[base, name, dose] = plant(base, name, dose, 0, looked_at)
        return made[base, name, dose]

    return get


def look(vlm, samples, layers):
    "States of some layers, torch (samples, tokens, dim), and the masks of the prompt."
    inputs, seen = vlm.prepare(samples), {}
    with torch.inference_mode(), patching.record_states(vlm.hooks, layers, seen):
        vlm.hooks.forward(inputs)
    return seen, vlm.hooks.masks(inputs) | {"ids": inputs["input_ids"]}


def hooks(vlm):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in vlm.model.modules())
