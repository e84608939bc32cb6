"""Guards for the notebook `knobs`: objects are found, the right knob moves the right model, nothing is left turned."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from broken import hooks

from vlm_counting.core import UnknownName
from vlm_counting.faults import plant
from vlm_counting.knobs import (
    KNOBS,
    gains,
    kind_words,
    landmarks,
    read_chain,
    read_prompts,
    turn_knobs,
    turned,
    without,
)
from vlm_counting.models import load_model
from vlm_counting.stimuli import Scene, generate

pytest_plugins = ("broken",)  # the fixtures


@pytest.fixture(scope="session")
def asked():
    return [*generate("balanced", seed=3, limit=54), *generate("two_groups", seed=3, limit=54)]


@pytest.fixture(scope="session")
def chain(vlm, asked):
    return read_chain(vlm, asked)


def test_what_is_left_out_is_gone_and_the_rest_is_there(shown):
    for sample in shown:
        full, bare = Scene.from_factors(sample.factors), Scene.from_image(without(sample).image)
        rest = Scene.from_image(without(sample, sample.factors["entity"]).image)
        assert bare.objects == () and len(rest.objects) == len(full.objects) - sample.target
        assert without(sample).question == sample.question and not without(sample).sha256


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "each"),
    [("tiny-qwen2-vl", 1), ("tiny-paligemma2", 1), ("tiny-internvl3", 1), ("tiny-llava-onevision", 2)],
)
def test_tokens_of_objects_are_found_whatever_the_processor_does(name, each, shown):
    "One token a cell; OneVision's has two, of the whole image and of a tile."
    model = load_model(name, device="cpu")
    found = read_prompts(model, shown)
    alone = [sample.target for sample in shown]
    others = [sum(other["count"] for other in sample.factors.get("others", ())) for sample in shown]
    assert found.asked.sum(1).tolist() == [each * number for number in alone]
    assert found.objects.sum(1).tolist() == [each * (one + two) for one, two in zip(alone, others, strict=True)]


def test_the_chain_does_not_depend_on_the_batch(vlm, asked, chain):
    again = read_chain(vlm, asked[:20], batch_size=7)
    for name in ("first", "halfway", "last", "logits", "shown"):
        np.testing.assert_allclose(getattr(again, name), getattr(chain, name)[:20], atol=1e-4)
    assert again.words == chain.words[:20]


def test_words_for_kinds_are_found_in_the_prompts(vlm, chain):
    words = kind_words(vlm, chain)
    spoken = {name: {word.strip() for word in vlm.hooks.words(tokens)} for name, tokens in words.items()}
    assert {"red", "blue", "green"} <= spoken["colour"] and {"circles", "stars"} <= spoken["shape"]
    assert not any(word.isdigit() for group in spoken.values() for word in group)


@pytest.mark.long_after(1)
@pytest.mark.parametrize("name", KNOBS)
def test_a_knob_at_rest_changes_no_byte_and_every_hook_is_gone_after_a_failure(name, vlm, asked, chain):
    marks, few, before = landmarks(vlm, chain), read_prompts(vlm, asked[50:58]), hooks(vlm)
    scales = [block.self_attn.scaling for block in vlm.hooks.blocks]
    rest = 0.0 if name.startswith("attention") else 1.0
    with torch.inference_mode(), vlm.eager():
        plain = vlm.hooks.forward(few.inputs)
        with turned(vlm, few, marks, name, rest):
            assert torch.equal(vlm.hooks.forward(few.inputs), plain)
        with turned(vlm, few, marks, name, KNOBS[name].settings[-1]):
            assert not torch.equal(vlm.hooks.forward(few.inputs), plain)
        with pytest.raises(RuntimeError), turned(vlm, few, marks, name, KNOBS[name].settings[-1]):
            raise RuntimeError("something else")
        assert torch.equal(vlm.hooks.forward(few.inputs), plain)
    assert hooks(vlm) == before and scales == [block.self_attn.scaling for block in vlm.hooks.blocks]


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "dose", "sites"),
    [("route_cut", 10.0, {"attention", "attention_early"}), ("see_blur", 0.6, {"image"}), ("say_bias", 2.0, {"last"})],
)
def test_the_knob_of_the_broken_site_brings_answers_back(fault, dose, sites, vlm, asked):
    broken = plant(vlm, fault, dose, 0, generate("balanced", seed=99, limit=108))
    table = gains(turn_knobs(broken, read_chain(broken, asked), most=20)).set_index("knob")
    best = table["gain"].idxmax()
    assert best in sites and table.loc[best, "gain"] > 0.4 and table.loc[best, "p"] < 0.05
    other = table[~table["cause"].isin([table.loc[best, "cause"]])]
    assert other["gain"].max() < table.loc[best, "gain"] - 0.2


@pytest.mark.long
def test_turned_settings_are_kept_and_not_asked_again(vlm, chain, tmp_path, monkeypatch):
    path, some = tmp_path / "knobs.jsonl", ["words", "last"]
    whole = turn_knobs(vlm, chain, some, most=6, path=path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]))  # the machine went down
    pd.testing.assert_frame_equal(turn_knobs(vlm, chain, some, most=6, path=path), whole)
    assert path.read_text().splitlines(keepends=True) == lines
    monkeypatch.setattr("vlm_counting.knobs._say_turned", None)
    pd.testing.assert_frame_equal(turn_knobs(vlm, chain, some, most=6, path=path), whole)
    with pytest.raises(FileExistsError, match=r"knobs.jsonl, line 1 does not hold what 4 samples were answered"):
        turn_knobs(vlm, chain, some, most=2, path=path)


def test_what_cannot_be_turned_says_so(vlm, asked, chain):
    with pytest.raises(UnknownName, match="Did you mean 'words'"):
        turn_knobs(vlm, chain, ["wrds"])
    small = replace(asked[0], image=without(asked[0]).image.resize((672, 224)))
    with pytest.raises(ValueError, match=r"The images have \[\d+, \d+\] image tokens, expected equally many"):
        read_prompts(vlm, [asked[0], small])
    right = replace(chain, logits=np.eye(len(chain.counts))[[list(chain.counts).index(n) for n in chain.targets]])
    assert turn_knobs(vlm, right).empty


def test_each_half_is_measured_at_the_setting_of_the_other():
    "The setting that is best by luck in one half is not measured there."
    rows = [
        {
            "knob": "words",
            "setting": setting,
            "half": half,
            "before": before,
            "after": before or lucky == (setting, half),
        }
        for setting in (2.0, 5.0)
        for half in (0, 1)
        for before in (False, True)
        for lucky in [{0: (2.0, 0), 1: (5.0, 1)}[half]]
        for _ in range(5)
    ]
    row = gains(pd.DataFrame(rows)).iloc[0]
    assert row["gain"] == 0 and row["p"] == 1


def test_the_kind_that_is_asked_about_is_found_whatever_its_set_calls_it(vlm):
    from vlm_counting.knobs import read_prompts

    samples = generate("two_groups", limit=8)
    named = [replace(one, factors=one.factors | {"entity": f"Our <{n}>"}) for n, one in enumerate(samples)]
    plain, own = (read_prompts(vlm, some) for some in (samples, named))
    assert bool((plain.asked == own.asked).all()) and bool(own.asked.any(1).all())
