"""Guards for the room `diagnosis`: planted faults do what they say and nothing else; evidence and verdicts, by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from vlm_counting import diagnosis, faults, patching
from vlm_counting.core import Prediction, RunRecord, Sample, UnknownName, fingerprint
from vlm_counting.datasets import load_dataset
from vlm_counting.diagnosis import (
    _LOSS,
    _SIGNS,
    _TWICE,
    EVIDENCE,
    Planting,
    _answer_evidence,
    _attention_evidence,
    _conclude,
    _fit_rule,
    _head_evidence,
    _judge,
    _paper_rule,
    _patch_evidence,
    _probe_token,
    _read_signs,
    _swap_evidence,
    _weigh,
    diagnose,
    examine,
    judge_unseen,
    load_planted,
    plan_plantings,
    plant_all,
    remember_inputs,
)
from vlm_counting.evaluation import parse_count, predict
from vlm_counting.faults import CAUSES, FAULTS, plant
from vlm_counting.models import load_model
from vlm_counting.patching import POSITIONS, Pair, against_blank, count_pairs, effects, patch
from vlm_counting.probing import PROBES, Features, folds
from vlm_counting.stimuli import generate
from vlm_counting.training import head_of

BY_KIND = {kind: [name for name, fault in FAULTS.items() if fault.kind == kind] for kind in CAUSES}
NO_CHANCE = ("none", "see_merge")  # the seed changes nothing but the pictures that the planting looks at


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


# --- planting


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_changes_its_copy_and_leaves_the_original(name, vlm, planted, looked_at, shown, healthy):
    twin, dose = planted(name), FAULTS[name].doses[-1]
    said = twin.answer(shown, 1)
    assert vlm.answer(shown, 1) == healthy  # text and log-probabilities, bit by bit
    assert (said == healthy) == (name == "none")
    assert plant(vlm, name, dose, 0, looked_at).answer(shown, 1) == said
    other = plant(vlm, name, dose, 1, looked_at)
    assert (other.answer(shown, 1) == said) == (name in NO_CHANCE)
    assert len({vlm.weights, twin.weights, other.weights}) == 3 and twin.name == f"{vlm.name}~{name}-{dose:g}-0"
    assert np.isfinite([answer.logprobs for answer in said]).all()


def test_every_kind_has_recipes_whose_doses_rise():
    assert all(len(names) >= 2 for kind, names in BY_KIND.items() if kind != "none") and BY_KIND["none"] == ["none"]
    assert sum(map(len, BY_KIND.values())) == len(FAULTS)
    for name in set(FAULTS) - {"none"}:
        low, middle, high = FAULTS[name].doses
        assert 0 < low < middle < high, name


@pytest.mark.parametrize("name", [*BY_KIND["say"], *BY_KIND["format"]])
def test_saying_otherwise_leaves_what_is_held(name, vlm, planted, shown):
    twin = planted(name)
    assert np.array_equal(patching.last_states(twin, shown), patching.last_states(vlm, shown))
    assert hooks(twin) == hooks(vlm) == 0
    assert not torch.equal(twin.hooks.head(torch.eye(twin.hooks.dim)), vlm.hooks.head(torch.eye(vlm.hooks.dim)))


@pytest.mark.parametrize("name", BY_KIND["see"])
def test_seeing_changes_image_tokens_alone(name, vlm, planted, mixed):
    (before, masks), (after, _) = (look(model, mixed, [0]) for model in (vlm, planted(name)))
    changed = (before[0] != after[0]).any(-1)
    assert not changed[~masks["image"]].any() and changed[masks["image"]].float().mean() > 0.02
    assert torch.equal(head_of(planted(name)).weight, head_of(vlm).weight)


@pytest.mark.parametrize("name", BY_KIND["bind"])
def test_binding_changes_words_alone(name, vlm, planted, shown, looked_at):
    "And so no state of a picture that stands in front of the words of a causal model."
    layers = range(len(vlm.hooks.blocks) + 1)
    (before, masks), (after, _) = (look(model, shown, layers) for model in (vlm, planted(name)))
    changed, words = (before[0] != after[0]).any(-1), sum(faults._kind_words(vlm, looked_at), [])
    assert changed.any() and not changed[~torch.isin(masks["ids"], torch.tensor(words))].any()
    assert changed.any(1).float().mean() > 0.5  # most questions hold a word that is heard otherwise
    for layer in layers:
        torch.testing.assert_close(after[layer][masks["image"]], before[layer][masks["image"]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", BY_KIND["route"])
def test_routing_leaves_the_picture_and_changes_words(name, vlm, planted, shown):
    top = len(vlm.hooks.blocks)
    (before, masks), (after, _) = (look(model, shown, range(top + 1)) for model in (vlm, planted(name)))
    assert torch.equal(before[0][~masks["image"]], after[0][~masks["image"]])
    for layer in range(top + 1):  # to rounding: attention is computed another way, in the vision tower as well
        torch.testing.assert_close(after[layer][masks["image"]], before[layer][masks["image"]], rtol=0, atol=1e-4)
    last = (after[top] - before[top])[:, -1].abs().amax(-1)
    assert (last > 1e-2).all()


def write(vlm, samples, words=5):
    "Five words one by one, whether or not the model would stop: tokens (samples, words), logits (samples, words, all)."
    inputs = vlm.prepare(samples)
    with torch.inference_mode():
        out = vlm.model.generate(
            **inputs, max_new_tokens=words, min_new_tokens=words, do_sample=False, output_logits=True,
            return_dict_in_generate=True, pad_token_id=vlm.tokenizer.pad_token_id,
        )  # fmt: skip
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1).log_softmax(-1)


def check_batches(twin, mixed):
    order = [3, 1, 4, 0, 2]
    places = [order.index(place) for place in range(5)]
    alone = [twin.answer([sample], 5)[0] for sample in mixed]
    shuffled = twin.answer([mixed[place] for place in order], 5)
    for together in (twin.answer(mixed, 5), [shuffled[place] for place in places]):
        assert [answer.text for answer in together] == [answer.text for answer in alone]
        far = np.subtract([answer.logprobs for answer in together], [answer.logprobs for answer in alone])
        assert np.abs(far).max() < 1e-4
    one, many = [write(twin, [sample]) for sample in mixed], write(twin, [mixed[place] for place in order])
    assert torch.equal(torch.cat([tokens for tokens, _ in one]), many[0][places])
    torch.testing.assert_close(torch.cat([odds for _, odds in one]), many[1][places], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FAULTS)
def test_answers_do_not_depend_on_the_batch(name, planted, mixed):
    check_batches(planted(name), mixed)


@pytest.mark.parametrize("name", ["see_blur", "see_weber", "bind_words", "route_cut", "route_noise"])
def test_nor_where_the_picture_sees_the_words(name, gemma, planted, mixed):
    "PaliGemma's prompts are read in both directions, and some of its blocks attend through a window."
    twin = planted(name, base=gemma)
    check_batches(twin, mixed)
    assert twin.answer(mixed, 1) != gemma.answer(mixed, 1)


@pytest.mark.parametrize("name", [*BY_KIND["see"], *BY_KIND["route"], *BY_KIND["bind"]])
def test_a_fault_lasts_while_words_are_written(name, planted, mixed):
    "Written one by one with a cache, or read all at once without it: the same fault."
    twin, sample = planted(name), mixed[2]
    tokens, odds = write(twin, [sample])
    inputs = dict(twin.prepare([sample]))
    size = inputs["input_ids"].shape
    for key, value in inputs.items():
        if value.shape == size:
            fill = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}.get(key, torch.zeros_like(tokens))
            inputs[key] = torch.cat([value, fill.to(value)], 1)
    with torch.inference_mode():
        whole = twin.model(**inputs, use_cache=False).logits[:, size[1] - 1 : -1].log_softmax(-1)
    torch.testing.assert_close(odds, whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dose", FAULTS["format_preamble"].doses)
def test_a_preamble_hides_its_share_of_answers(dose, planted, looked_at, shown):
    twin = planted("format_preamble", dose)
    silent = lambda samples, words: np.mean([parse_count(a.text) is None for a in twin.answer(samples, words)])  # noqa: E731
    assert silent(looked_at, 1) == pytest.approx(dose, abs=0.02)  # those that the dose was measured on
    assert silent(shown, 5) == pytest.approx(dose, abs=0.35)  # 17 others; it never gets to the number
    assert silent(shown, 5) >= silent(shown, 1)  # it may even cling to one


def test_words_of_its_own_are_a_code(planted, looked_at):
    found = _answer_evidence(predict(planted("format_words"), looked_at, batch_size=36, progress=False))
    assert found["accuracy"] == 0 and found["unparsed"] == 1 and found["codebook"] > 0.7
    some = _answer_evidence(predict(planted("format_words", 4), looked_at, batch_size=36, progress=False))
    assert 0.2 < some["unparsed"] < 0.7 and some["codebook"] - some["accuracy"] > 0.2


@pytest.mark.parametrize("dose", FAULTS["say_swap"].doses)
def test_a_swap_moves_as_many_rows_as_its_dose(dose, vlm, planted):
    old, new = head_of(vlm).weight, head_of(planted("say_swap", dose)).weight
    moved = (old != new).any(1).nonzero().flatten().tolist()
    assert len(moved) == dose and set(moved) <= set(faults._number_tokens(vlm))
    assert sorted(map(tuple, old[moved].tolist())) == sorted(map(tuple, new[moved].tolist()))


def test_one_fault_on_another_is_both(vlm, planted, looked_at, mixed):
    "The first twin stays as it was; the second sees as the first does and hears as its own fault has it."
    first, second = planted("see_merge"), planted("bind_words")
    before = first.answer(mixed, 1)
    both = plant(first, "bind_words", 1.0, 0, looked_at)
    assert first.answer(mixed, 1) == before and hooks(both) == hooks(first) > hooks(vlm)
    assert both.weights not in (first.weights, second.weights) and both.name == f"{first.name}~bind_words-1-0"
    (one, masks), (two, _), (sum_, _) = (look(model, mixed, [0]) for model in (first, second, both))
    assert torch.equal(sum_[0], torch.where(masks["image"][..., None], one[0], two[0]))
    again = plant(second, "see_merge", FAULTS["see_merge"].doses[-1], 0, looked_at)
    assert [a.logprobs for a in again.answer(mixed, 1)] == [a.logprobs for a in both.answer(mixed, 1)]


def test_what_cannot_be_planted_says_so(vlm, clip, looked_at):
    with pytest.raises(UnknownName, match="No fault named 'say_swop'. Did you mean 'say_swap'"):
        plant(vlm, "say_swop", 2, 0, looked_at)
    with pytest.raises(ValueError, match="needs samples to look at.*Pass samples="):
        plant(vlm, "see_merge", 2)
    with pytest.raises(ValueError, match="ranks captions.*Expected a model that answers in words"):
        plant(clip, "say_swap", 2, 0, looked_at)


def test_tied_words_and_output_part_ways(gemma, planted):
    "PaliGemma's output layer is its word embeddings; each can be broken without the other."
    parts = lambda model: (model.model.get_input_embeddings().weight, model.model.get_output_embeddings().weight)  # noqa: E731
    words, head = parts(gemma)
    assert words is head
    for name, touched in (("say_swap", 1), ("format_words", 1), ("bind_words", 0), ("bind_swap", 0)):
        mine = parts(planted(name, base=gemma))
        assert not torch.equal(mine[touched], words) and torch.equal(mine[1 - touched], words)
    assert parts(gemma)[0] is parts(gemma)[1] and gemma.model.config.tie_word_embeddings


# --- exchanged states


@pytest.fixture(scope="session")
def pairs():
    some = [sample for sample in generate("balanced", limit=432) if sample.target in (2, 5, 9)]
    return count_pairs(some, seed=3)


@pytest.fixture(scope="session")
def patched(vlm, pairs):
    return patch(vlm, pairs, None, list(POSITIONS))


def test_patches_are_exact_where_they_must_be(vlm, pairs, patched):
    top, table = len(vlm.hooks.blocks), effects(patched, draws=50).set_index(["position", "layer"])
    assert len(patched) == len(pairs) * (top + 1) * 4 and set(table["pairs"]) == {6}
    assert table.loc["all", "effect"].tolist() == pytest.approx([1] * (top + 1), abs=1e-4)
    for name, layer, effect in (
        ("image", 0, 1),
        ("last", top, 1),
        ("last", 0, 0),
        ("image", top, 0),
        ("question", 0, 0),
    ):
        assert table.loc[(name, layer), "effect"] == pytest.approx(effect, abs=1e-4)
    assert (table.loc["all", "moved"] == 1).all() and table.loc[("last", 0), "moved"] == 0
    parts = [patched[patched["position"] == name].reset_index()["shift"] for name in ("image", "all")]
    assert np.allclose(*(part[:9] for part in parts), atol=1e-3)  # layer 0: only the picture differs
    assert hooks(vlm) == 0


def test_patches_do_not_depend_on_the_batch(vlm, pairs, patched):
    again = patch(vlm, pairs, [1, 3], ["image", "last"], batch_size=4)
    old = patched.merge(again, on=["pair", "layer", "position", "donor", "recipient"], suffixes=("", "_again"))
    assert len(old) == len(again) == len(pairs) * 4
    for name in ("shift", "full", "apart", "moved"):
        assert np.allclose(old[name], old[f"{name}_again"], atol=1e-3, equal_nan=True)
    assert again["full"].isna().equals(again["donor"] == again["recipient"])


def test_a_planted_fault_can_be_patched(planted, pairs):
    "Its own hooks stay in place, those of the patch go."
    for name in ("see_blur", "route_cut"):
        twin = planted(name)
        before = hooks(twin)
        table = effects(patch(twin, pairs, [0, 4], ["image", "last", "all"]), draws=2).set_index(["position", "layer"])
        assert table.loc[[("all", 0), ("all", 4), ("image", 0), ("last", 4)], "effect"].tolist() == pytest.approx(
            [1] * 4, abs=1e-3
        )
        assert hooks(twin) == before > 0


def test_no_hook_is_left_behind_by_a_failure(vlm, pairs):
    twin, calls = vlm.copy("by hand", "by hand"), []
    body = twin.hooks

    def failing(inputs):
        calls.append(1)
        if len(calls) == 3:  # donor, recipient, and now the first patch
            raise RuntimeError("out of memory")
        return body.forward(inputs)

    twin.hooks = replace(body, forward=failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        patch(twin, pairs[:2], [1], ["last"])
    assert len(calls) == 3 and hooks(twin) == 0


def test_patches_that_cannot_be_had_say_so(vlm, clip, pairs, tmp_path):
    with pytest.raises(UnknownName, match="No position named 'lost'.*Did you mean 'last'"):
        patch(vlm, pairs[:1], [0], ["lost"])
    with pytest.raises(ValueError, match="There is no layer 5: this model has 0 .* to 4"):
        patch(vlm, pairs[:1], [5])
    with pytest.raises(ValueError, match="'tiny-clip' writes no words.*Take a generative model"):
        patch(clip, pairs[:1])
    wide = tmp_path / "wide.png"
    Image.new("RGB", (504, 252)).save(wide)
    with pytest.raises(ValueError, match="different numbers of tokens. Pair images of one size"):
        patch(vlm, [Pair(replace(pairs[0].donor, image=wide), pairs[0].recipient)], [0])
    assert hooks(vlm) == 0


def test_effects_by_hand():
    "Two pairs that differ and one that does not: shift 3 of 4, or the mean of null 0.5 against a mean lead of 2."
    rows = pd.DataFrame({"layer": 1, "position": "last", "shift": [1.0, 2.0, 0.5], "full": [1.0, 3.0, np.nan],
                         "apart": [1.0, 0.5, 0.2], "moved": [1.0, np.nan, np.nan]})  # fmt: skip
    row = effects(rows).iloc[0]
    assert row["pairs"] == 2 and row["effect"] == 0.75 and row["null"] == 0.25 and row["moved"] == 1
    assert row["low"] == pytest.approx(2 / 3) and row["high"] == 1
    both = pd.concat([rows.assign(pair=range(3), position=name) for name in ("image", "last")])
    found = _patch_evidence(both.assign(full=[1.0, -3.0, np.nan] * 2), 1)
    assert found["picture_moves"] == 0.75 and found["picture_leads"] == 0.5 and found["patch_last"] == -1  # -1.5, cut


def make(target, place=0, kind="red_squares"):
    return Sample(f"by hand/{kind}-{target}-{place}", Path("none.png"), "How many?", target, {"entity": kind})


def test_pairs_are_of_every_two_counts():
    samples = generate("balanced", limit=432)
    pairs, counts = count_pairs(samples, each=2, seed=1), range(1, 10)
    assert [(pair.donor.target, pair.recipient.target) for pair in pairs] == [
        (n, m) for n in counts for m in counts for _ in range(2)
    ]
    for pair in pairs:
        assert pair.donor.factors["entity"] == pair.recipient.factors["entity"]
        assert pair.donor.uid != pair.recipient.uid and pair.donor.image != pair.recipient.image
    assert count_pairs(samples, each=2, seed=1) == pairs != count_pairs(samples, each=2, seed=2)
    assert len({pair.recipient.factors["entity"] for pair in pairs}) > 3  # not always the first kind


def test_a_pair_that_cannot_be_had_is_refused():
    lonely = [make(1), make(1, 1), make(2)]  # 2 against 2 needs a second picture
    with pytest.raises(
        ValueError, match="No two images of one kind with 2 and 2 objects among 3 samples.*at least two"
    ):
        count_pairs(lonely)
    assert len(count_pairs([*lonely, make(2, 1)])) == 4
    with pytest.raises(ValueError, match="of one kind with 1 and 2"):
        count_pairs([make(1), make(1, 1), make(2, kind="blue_stars"), make(2, 1, "blue_stars")])


def test_black_pictures_hold_nothing(vlm, shown, tmp_path):
    into, out = (against_blank(shown[:3], tmp_path, way) for way in ("blank", "image"))
    assert [pair.donor for pair in into] == [pair.recipient for pair in out] == shown[:3]
    assert [pair.recipient for pair in into] == [pair.donor for pair in out]
    for sample, pair in zip(shown, into, strict=False):
        black = pair.recipient
        assert black.target == 0 and black.question == sample.question and black.uid != sample.uid
        with Image.open(black.image) as image, Image.open(sample.image) as own:
            assert image.size == own.size and not np.asarray(image).any()
    assert len(list(tmp_path.iterdir())) == 1  # one black picture of each size
    with pytest.raises(ValueError, match="blank"):
        against_blank(shown[:1], tmp_path, "black")
    rows = patch(vlm, into, [0], ["image"])
    assert (rows["recipient"] == 0).all() and np.allclose(rows["shift"], rows["full"], atol=1e-3)


# --- evidence


@pytest.fixture
def tokens(monkeypatch):
    "108 samples, and a way to say what their image tokens are."
    samples = generate("balanced", limit=108)

    def give(states):
        known = torch.tensor(states, dtype=torch.float32)
        monkeypatch.setattr(diagnosis, "image_batches", lambda vlm, asked, size: iter(known.split(size)))
        return samples, np.array([sample.target for sample in samples])

    return samples, give


def test_a_token_that_holds_the_number_is_found(tokens):
    "Another place in every picture; the other 35 tokens say nothing."
    samples, give = tokens
    rng, targets = np.random.default_rng(0), np.array([sample.target for sample in samples])
    states = 0.3 * rng.normal(size=(108, 36, 12))
    states[np.arange(108), rng.integers(36, size=108)] = 8 * np.eye(12)[targets]
    assert _probe_token(None, *give(states)[:1]) > 0.95


def test_tokens_are_read_batch_by_batch(vlm, tokens, monkeypatch):
    "All image tokens of 216 large pictures at once were 9 GB a copy."
    samples, give = tokens
    rng, targets = np.random.default_rng(1), np.array([sample.target for sample in samples])
    states = rng.normal(size=(108, 36, 12))
    states[np.arange(108), rng.integers(36, size=108)] += 6 * np.eye(12)[targets]  # hard: right in some
    some, fold = give(states)[0], folds(targets.tolist(), [sample.factors for sample in samples], "layout")
    found = {size: _probe_token(None, some, batch_size=size) for size in (1, 27, 108)}
    assert len(set(found.values())) == 1 and 0.2 < found[1] < 0.98
    whole = torch.tensor(states, dtype=torch.float32)
    learned, mean, spread = diagnosis._some_tokens(iter(whole.split(10)), fold, 5, 0)
    assert [len(part) for part in learned] == [(fold != part).sum() for part in range(3)]
    for part, tokens in enumerate(learned):  # five different ones of that very picture
        near = (tokens[:, :, None] == states[fold != part].astype(np.float32)[:, None]).all(-1)
        assert near.any(2).all() and (near.any(1).sum(1) == 5).all()
    assert np.allclose(mean, states.mean((0, 1)), atol=1e-5) and np.allclose(spread, states.std((0, 1)), atol=1e-5)
    monkeypatch.undo()
    batches = [len(some) for some in diagnosis.image_batches(vlm, samples[:10], 4)]
    assert batches == [4, 4, 2]


def test_a_number_of_equal_tokens_is_no_token_that_holds_it(tokens):
    "Counting lit places is easy for whoever sees their mean, and no single one tells."
    samples, give = tokens
    rng, targets = np.random.default_rng(0), np.array([sample.target for sample in samples])
    lit = rng.permuted(np.arange(36) < targets[:, None], axis=1)
    states = lit[..., None] * np.ones(12) + 0.01 * rng.normal(size=(108, 36, 12))
    assert _probe_token(None, *give(states)[:1]) < 0.3  # chance: 0.11
    fold, mean = folds(targets.tolist(), [sample.factors for sample in samples], "layout"), states.mean(1)
    assert (np.round(PROBES["ridge"](Features(mean), targets, fold)) == targets).mean() > 0.95
    machine = PROBES["svm"](Features(1000 * mean), targets, fold)
    assert (machine == targets).mean() > 0.95


def said(text, target, count=None, logprobs=None, **factors):
    return Prediction("u", "m", text, count, count, target, logprobs, factors)


def odds(**likely):
    "21 log-probabilities: these, and 0.001 for all others."
    return np.log([likely.get(f"n{count}", 0.001) for count in range(21)]).tolist()


def test_answers_by_hand():
    rows = [
        said(*row, odds(n2=0.6, n3=0.2), layout=layout) for layout in range(4) for row in (("2", 2, 2), ("a", 3, None))
    ]
    found = _answer_evidence(rows)
    assert found["accuracy"] == found["unparsed"] == found["among_counts"] == 0.5
    assert found["codebook"] == 1  # 'a' always stands for 3
    assert found["sure"] == pytest.approx(0.6 / 0.819)
    fickle = [said("ab"[layout % 2], 2 + layout // 2, None, odds(n2=0.9), layout=layout) for layout in range(4)]
    assert _answer_evidence(fickle)["codebook"] <= 0.5 and _answer_evidence(fickle)["accuracy"] == 0
    with pytest.raises(ValueError, match="1 of 9 predictions have no 21 count log-probabilities"):
        _answer_evidence([*rows, said("2", 2, 2, None, layout=0)])


def test_what_a_ranking_model_cannot_choose_is_never_its_answer():
    ranked = [None, None, math.log(0.75), math.log(0.25), *[None] * 17]
    rows = [said("a photo of 2 cats", target, 2, ranked, layout=layout) for layout in range(4) for target in (2, 3)]
    found = _answer_evidence(rows)
    assert found["among_counts"] == found["accuracy"] == 0.5 and found["sure"] == pytest.approx(0.75)


def test_captions_that_differ_in_kind_are_one_word_of_the_codebook():
    ranked = [None, None, math.log(0.75), math.log(0.25), *[None] * 17]
    rows = [said(f"a photo of {n} {kind}", n, n, ranked, layout=layout)
            for layout, kind in enumerate(("cats", "dogs", "owls", "bees")) for n in (2, 3)]  # fmt: skip
    assert _answer_evidence(rows)["accuracy"] == 1 and _answer_evidence(rows)["codebook"] == 1


def test_swaps_by_hand():
    "Four pictures: both right, one right, the kinds swapped, and one of which only a single question was kept."
    plan = [
        ("a", 2, 2, 5),
        ("a", 5, 5, 2),
        ("b", 3, 3, 4),
        ("b", 9, 4, 3),
        ("c", 8, 1, 8),
        ("c", 1, 8, 1),
        ("d", 6, 6, 7),
    ]
    rows = [said(str(n), target, n, pair=pair, others=[{"count": rest}]) for pair, n, target, rest in plan]
    found = _swap_evidence(rows)
    assert found["two_accuracy"] == pytest.approx(4 / 7) and found["both_right"] == pytest.approx(1 / 3)
    assert found["other_count"] == pytest.approx(2 / 7)


def test_a_new_output_layer_mends_what_is_only_said_wrong(vlm, planted):
    alone, groups = generate("balanced", limit=216), generate("two_groups", limit=18)
    one, two = (patching.last_states(vlm, samples) for samples in (alone, groups))
    sound, broken = (_head_evidence(model, one, alone, two, groups) for model in (vlm, planted("say_swap")))
    assert abs(sound["head_gain"]) < 0.05 and abs(sound["head_across"]) < 0.1
    assert broken["head_gain"] > 0.5 and broken["head_across"] > 0.3


@pytest.mark.parametrize("name", ["none", "route_cut"])
def test_attention_is_computed_as_before_once_it_was_looked_at(name, planted, pairs, mixed):
    twin = planted(name)
    way = lambda: (twin.model.config._attn_implementation, twin.model.config.get_text_config()._attn_implementation)  # noqa: E731
    before, answers, number = way(), twin.answer(mixed, 1), hooks(twin)
    found = _attention_evidence(twin, pairs, batch_size=4)
    assert found == pytest.approx(_attention_evidence(twin, pairs), abs=1e-5)
    assert way() == before and (before[1] == "eager") == (name == "route_cut")
    assert twin.answer(mixed, 1) == answers and hooks(twin) == number
    assert 0 < found["attention_share"] < 1 and 0 < found["attention_moves"] < 1
    if name == "route_cut":
        assert found["attention_share"] < _attention_evidence(planted("none"), pairs)["attention_share"] / 2


def test_a_failure_leaves_attention_as_it_was(vlm, pairs):
    twin = vlm.copy("by hand", "by hand")
    before = twin.model.config._attn_implementation
    twin.hooks = replace(twin.hooks, forward=lambda inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _attention_evidence(twin, pairs[:2])
    assert twin.model.config._attn_implementation == before != "eager" and hooks(twin) == 0


@pytest.fixture(scope="session")
def exam():
    return generate("balanced", limit=27), generate("two_groups", limit=36)


def test_an_examination_is_resumed(vlm, exam, pairs, tmp_path, monkeypatch):
    ask = lambda: examine(vlm, *exam, pairs, tmp_path, layers=[2], positions=["image", "last"])  # noqa: E731
    first, tables = ask()
    assert list(first) == list(EVIDENCE) and set(tables) == {"probes", "lens", "patches"}
    assert all(type(value) is float and math.isfinite(value) for value in first.values())

    def asked_again(*arguments):
        raise AssertionError("asked a second time")

    monkeypatch.setattr(vlm, "answer_prepared", asked_again, raising=False)
    second, again = ask()
    assert second == first
    for name, table in tables.items():
        pd.testing.assert_frame_equal(again[name], table)


def test_a_ranking_model_gives_what_it_can(clip, exam, tmp_path):
    found, tables = examine(clip, *exam, [], tmp_path)
    assert list(found) == [name for name in EVIDENCE if name in found] and set(tables) == {"probes"}
    assert {"accuracy", "two_accuracy", "probe_last", "probe_image", "other_count"} <= set(found)
    assert not {"lens", "head_gain", "patch_image", "attention_share", "probe_token"} & set(found)
    assert all(math.isfinite(value) for value in found.values())


# --- the study


def test_the_plan_has_every_recipe_at_every_dose_and_nothing_twice():
    plan = plan_plantings(["a", "b"], seeds=range(2), healthy=range(3), twice=(4,))
    assert len(plan) == len(set(plan)) == 2 * (2 * 3 * (len(FAULTS) - 1) + 3 + len(_TWICE))
    recipes = [name for name in FAULTS if name != "none"]
    for name in "ab":
        mine = [planting for planting in plan if planting.architecture == name]
        once = {(one.recipe, one.step, one.seed) for one in mine if "+" not in one.recipe and one.recipe != "none"}
        assert once == {(recipe, step, seed) for recipe in recipes for step in (1, 2, 3) for seed in (0, 1)}
        assert {one.seed for one in mine if one.recipe == "none"} == {0, 1, 2}
        assert {one.recipe for one in mine if "+" in one.recipe} == set(_TWICE)
    assert all(one.fault in CAUSES for one in plan if "+" not in one.recipe)
    assert [one.seed for one in plan] == sorted(one.seed for one in plan)  # what is finished early is of every kind
    for recipe in _TWICE:
        first, second = recipe.split("+")
        assert Planting("a", recipe, 2, 4).fault == f"{FAULTS[first].kind}+{FAULTS[second].kind}"
        assert FAULTS[first].kind != FAULTS[second].kind


@pytest.mark.parametrize("recipe, step", [("none", 0), ("see_weber", 1), (_TWICE[0], 2), (_TWICE[-1], 2)])
def test_planting_all_is_planting_one_after_the_other(recipe, step, vlm, looked_at, mixed):
    both, one = plant_all(vlm, Planting(vlm.name, recipe, step, 3), looked_at), vlm
    for name in recipe.split("+"):
        one = plant(one, name, FAULTS[name].doses[max(step - 1, 0)], 3, looked_at)
    assert (both.name, both.weights) == (one.name, one.weights) and both.answer(mixed, 1) == one.answer(mixed, 1)


def test_remembered_inputs_are_the_same_inputs(vlm, mixed):
    fresh = load_model("tiny-qwen2-vl", device="cpu")
    expected = [fresh.answer(part, 5) for part in (mixed, mixed[::-1], mixed[:2])]
    for _ in range(2):
        assert [vlm.answer(part, 5) for part in (mixed, mixed[::-1], mixed[:2])] == expected
    one, two = vlm.prepare(mixed), vlm.prepare(mixed)
    assert one is not two and all(torch.equal(one[name], two[name]) for name in fresh.prepare(mixed))
    one.pop("input_ids")
    assert "input_ids" in vlm.prepare(mixed)
    other = [replace(mixed[0], question="How many?"), *mixed[1:]]  # the same uid and another question
    assert vlm.answer(other, 1) == fresh.answer(other, 1) != vlm.answer(mixed, 1)


def test_loss_is_against_the_healthy_twin_of_the_same_pictures(tmp_path):
    rows = [("a", "none", 0, 0, 1.0, 0.9), ("a", "none", 0, 1, 0.8, 0.7), ("b", "none", 0, 0, 0.6, 0.5),
            ("a", "say_swap", 1, 0, 0.5, 0.6), ("a", "say_swap", 1, 1, 0.5, 0.6), ("b", "say_swap", 1, 0, 0.6, 0.1),
            ("b", "see_blur", 3, 0, 0.7, 0.6)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["architecture", "recipe", "step", "seed", "accuracy", "two_accuracy"])
    table.insert(4, "fault", [FAULTS[name].kind for name in table["recipe"]])
    table.to_csv(tmp_path / "evidence.csv", index=False)
    found = load_planted(tmp_path / "evidence.csv")
    assert found["loss"].tolist() == pytest.approx([0, 0, 0, 0.5, 0.3, 0.4, -0.1])  # the worse of two
    assert found["twin"].iloc[3] == "a~say_swap-1-0" and found["twin"].is_unique
    with pytest.raises(FileNotFoundError, match="vlm-counting run plant_faults"):
        load_planted(tmp_path / "nowhere.csv")


def test_loss_stands_in_front_of_the_evidence():
    found = list(load_planted())
    assert found[: found.index("loss")] == [name for name in found if name not in EVIDENCE and name != "loss"]


def test_the_shipped_table_can_be_read():
    rows = load_planted()
    assert rows["twin"].is_unique and set(EVIDENCE) <= set(rows)
    assert (rows.loc[rows["recipe"] == "none", "loss"] == 0).all()


# --- verdicts


def test_signs_by_hand():
    rows = pd.DataFrame({"accuracy": [0.5, 1.0, 0.98], "codebook": [0.9, 1.0, 1.0], "unparsed": [0.25, 0, 0],
                         "two_accuracy": [0.4, 1.0, 0.0], "other_count": [0.3, 0.0, 0.9], "head_gain": [-0.9, 0, 0],
                         "probe_token": [0.7, 0.1, 0.2]}, index=[7, 8, 9])  # fmt: skip
    signs = _read_signs(rows)
    expected = {
        "lost_one": [0.5, 0, 0.02], "lost_two": [0.6, 0, 1], "unparsed": [0.5, 0, 0], "own_words": [0.8, 0, 0.4],
        "mended": [-1, 0, 0], "rival": [0.5, 0, 0.9], "only_two": [0.1 / 0.6, 0, 0.98], "token": [0.7, 0.1, 0.2],
    }  # fmt: skip
    assert set(signs) == set(expected) and signs.index.tolist() == [7, 8, 9]
    for name, values in expected.items():  # of the third row one in fifty is wrong, which counts as one in twenty
        assert signs[name].tolist() == pytest.approx(values), name
    assert all(set(sign.needs) <= set(EVIDENCE) for sign in _SIGNS.values())


SYMPTOMS = {  # what each fault does to evidence that is otherwise as in a healthy model
    "none": {},
    "say": {"accuracy": 0.4, "among_counts": 0.4, "two_accuracy": 0.4, "head_gain": 0.5, "head_across": 0.5},
    "see": {"accuracy": 0.4, "among_counts": 0.4, "codebook": 0.4, "two_accuracy": 0.4, "probe_top": 0.4, "lens": 0.4,
            "probe_last": 0.4, "probe_token": 0.1, "probe_image": 0.6, "probe_two": 0.4},
    "bind": {"two_accuracy": 0.4, "other_count": 0.5, "probe_two": 0.4},
    "route": {"accuracy": 0.4, "among_counts": 0.4, "codebook": 0.4, "two_accuracy": 0.4, "probe_top": 0.4, "lens": 0.4,
              "probe_last": 0.4, "attention_share": 0.1},
    "format": {"accuracy": 0.4, "unparsed": 0.6, "two_accuracy": 0.4, "head_gain": 0.5, "head_across": 0.5},
}  # fmt: skip
WELL = dict.fromkeys(EVIDENCE, 0.95) | dict.fromkeys(
    ("unparsed", "other_count", "head_gain", "head_across", "probe_rival"), 0.02
)


def simulate(each=6, seed=0, faults=tuple(CAUSES), architectures=("a", "b", "c"), noise=0.03):
    "A table as `load_planted` gives it: every fault at every dose in every architecture."
    rng, rows = np.random.default_rng(seed), []
    for name in architectures:
        for fault in faults:
            for step in (1, 2, 3) if fault != "none" else (0,):
                for number in range(each):
                    about = {
                        "twin": f"{name}~{fault}-{step}-{number}",
                        "architecture": name,
                        "recipe": f"{fault}_x",
                        "step": step,
                        "seed": number,
                        "fault": fault,
                        "loss": 0.0 if fault == "none" else 0.5,
                    }
                    values = {key: value + noise * rng.normal() for key, value in (WELL | SYMPTOMS[fault]).items()}
                    rows.append(about | values)  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def known():
    return simulate()


@pytest.fixture(scope="module")
def rule(known):
    return _fit_rule(known)


def test_the_rule_recovers_what_was_planted(known, rule):
    fresh = simulate(seed=1)
    weights = _weigh(rule, fresh)
    assert np.allclose(weights.sum(axis=1), 1) and (weights >= 0).all(axis=None) and set(weights) == set(CAUSES)
    assert (weights.idxmax(axis=1) == fresh["fault"]).mean() > 0.98
    extreme = _weigh(rule, fresh.assign(**{name: 1e9 for name in EVIDENCE}))
    assert np.isfinite(extreme).all(axis=None) and np.allclose(extreme.sum(axis=1), 1)


def test_two_faults_are_told_apart_and_one_is_refused(known):
    two = known[known["fault"].isin(["say", "see"])]
    weights = _weigh(_fit_rule(two), two)
    assert list(weights) == ["say", "see"] and (weights.idxmax(axis=1) == two["fault"]).all()
    for rows in (known[known["fault"] == "say"], known.assign(loss=0.0), known.assign(fault="say+see")):
        with pytest.raises(ValueError, match="Found the faults .* among .* expected at least two that cost 10%"):
            _fit_rule(rows)


def test_the_rule_learns_from_single_faults_that_cost_something(known, rule):
    "Two faults at once, and faults that cost nothing, are not what it learns from."
    odd = known.sample(40, random_state=0).assign(**dict.fromkeys(EVIDENCE, 5.0))
    more = pd.concat([known, odd.assign(fault="say+bind"), odd.assign(fault="see", loss=_LOSS / 2)])
    again = _fit_rule(more)
    assert np.allclose(again.weights, rule.weights) and again.centre.equals(rule.centre)
    some = _fit_rule(known, ["token", "mended"])
    assert list(some.weights) == [name for name in _SIGNS if name in ("token", "mended")]
    gappy = known.assign(probe_token=[np.nan, *known["probe_token"][1:]])
    with pytest.raises(ValueError, match=r"gaps in token \(1 models\)"):
        _fit_rule(gappy)
    assert "token" not in _fit_rule(known.drop(columns="probe_token")).weights


def test_a_verdict_names_reasons_or_abstains(rule):
    say = WELL | SYMPTOMS["say"]
    verdict = _conclude(say, rule)
    assert (
        verdict.fault == "say"
        and verdict.strange <= verdict.reach
        and sum(verdict.probabilities.values()) == pytest.approx(1)
    )
    assert (
        list(verdict.probabilities.values()) == sorted(verdict.probabilities.values(), reverse=True)
        and verdict.missing == ()
    )
    forces = [force for *_, force in verdict.reasons]
    assert forces == sorted(forces, reverse=True) and {name for name, *_ in verdict.reasons} == set(rule.centre.index)
    first, second = list(verdict.probabilities)[:2]
    offset = dict(zip(rule.model.classes_, rule.model.intercept_, strict=True))
    lead = sum(forces) + offset[first] - offset[second]
    assert lead == pytest.approx(np.log(verdict.probabilities[first] / verdict.probabilities[second]))
    assert str(verdict).startswith(f"say: {CAUSES['say']} (probability ") and verdict.reasons[0][1] in str(verdict)
    json.dumps([verdict.probabilities, verdict.reasons])
    strict = _conclude(say, rule, certain=1.01)
    assert strict.fault is None and strict.probabilities == verdict.probabilities
    assert str(strict).startswith("abstains between say and ")


def test_it_abstains_where_the_odds_are_split(known):
    "Halfway between two faults."
    two = _fit_rule(known[known["fault"].isin(["say", "see"])])
    ends = [WELL | SYMPTOMS[fault] for fault in ("say", "see")]

    def between(share):
        return {name: share * ends[0][name] + (1 - share) * ends[1][name] for name in EVIDENCE}

    low, high = 0.0, 1.0  # shares of 'say'
    for _ in range(12):
        split = (low + high) / 2
        low, high = (split, high) if _conclude(between(split), two).probabilities["say"] < 0.5 else (low, split)
    assert _conclude(between(split), two, certain=0.6).fault is None
    assert [_conclude(end, two, certain=0.6).fault for end in ends] == ["say", "see"]


def test_a_verdict_on_less_evidence_says_what_is_missing(known, monkeypatch):
    monkeypatch.setattr(diagnosis, "load_planted", lambda: known)
    lacking = ("probe_token", "lens", "head_gain", "head_across", "picture_moves", "picture_leads", "patch_image",
               "patch_last", "attention_share", "attention_moves")  # fmt: skip
    clip = {name: value for name, value in (WELL | SYMPTOMS["bind"]).items() if name not in lacking}
    for evidence in (clip, clip | dict.fromkeys(lacking, np.nan), clip | {"beauty": 1.0}):
        verdict = _conclude(evidence)
        assert verdict.missing == lacking and verdict.fault == "bind"
        assert not {"token", "mended", "moves"} & {name for name, *_ in verdict.reasons}
    for nonsense in ({}, {"beauty": 1.0}, {"accuracy": np.nan}, {"probe_rival": 0.5}):
        with pytest.raises(ValueError, match="allows no sign. Expected what `examine` gives"):
            _conclude(nonsense)


def test_a_rule_that_needs_more_evidence_says_so(rule):
    with pytest.raises(ValueError, match="head_gain"):
        _conclude({name: WELL[name] for name in ("accuracy", "two_accuracy")}, rule)


def test_the_papers_rule_by_hand():
    rows = pd.DataFrame({  # accuracy, probes, gain -> what it says
        "accuracy": [0.95, 0.5, 0.5, 0.5, 0.5, 0.9], "probe_last": [1.0, 0.9, 0.5, 0.9, 0.5, 1.0],
        "probe_image": [1.0, 0.5, 0.9, 0.9, 0.5, 1.0], "head_gain": [0.5, 0.3, 0.3, 0.0, 0.3, 0.5],
    }, index=range(10, 16))  # fmt: skip
    assert _paper_rule(rows).tolist() == ["none", "say", "say", "see", "see", "none"]
    assert _paper_rule(rows).index.tolist() == list(range(10, 16))


def test_verdicts_on_many_are_those_on_one(known, rule):
    fresh = simulate(each=1, seed=2, noise=0.1)
    judged = _judge(fresh, known)
    assert len(judged) == len(fresh) and judged.index.equals(fresh.index) and not set(EVIDENCE) & set(judged)
    for place, row in fresh.iterrows():
        verdict, mine = _conclude(row[list(EVIDENCE)].to_dict(), rule), judged.loc[place]
        assert mine["verdict"] == (verdict.fault or "abstains") and mine["likeliest"] == next(
            iter(verdict.probabilities)
        )
        assert mine["certainty"] == pytest.approx(max(verdict.probabilities.values()))
    assert (_judge(fresh, known, certain=1.01)["verdict"] == "abstains").all()


def test_a_healthy_model_is_judged_alike_alone_and_among_many(known):
    "One rule for both, also where no healthy twin was learned from, or more is asked than certainty."
    for taught in (known, known[known["fault"].isin(["say", "see"])]):
        rule = _fit_rule(taught)
        for certain in (0.5, 1.01):
            verdict = _conclude(WELL, rule, certain)
            mine = _judge(pd.DataFrame([WELL]), taught, certain).iloc[0]
            assert verdict.fault == ("none" if certain < 1 else None) and mine["likeliest"] == "none"
            assert mine["verdict"] == (verdict.fault or "abstains") and mine["strange"] == verdict.strange == 0


def test_nobody_is_judged_by_what_was_learned_from_it(monkeypatch):
    rows, learned = simulate(each=5), []
    fit = diagnosis._fit_rule

    def record(some, *rest):
        learned.append(some)
        return fit(some, *rest)

    monkeypatch.setattr(diagnosis, "_fit_rule", record)
    judged = judge_unseen(rows)
    assert len(learned) == 3 and judged["twin"].is_unique
    for taught, (name, mine) in zip(learned, judged.groupby("architecture", sort=False), strict=True):
        assert name not in set(taught["architecture"]) and not set(taught["twin"]) & set(mine["twin"])
        assert set(taught["architecture"]) | {name} == {"a", "b", "c"}
        assert set(taught["seed"]) == {0, 1, 2} and set(mine["seed"]) == {3, 4}
        assert set(taught["step"]) == {0, 1, 3} and set(mine["step"]) == {0, 2}
        assert not any(taught["loss"].isna()) and set(mine["fault"]) == set(CAUSES)
    assert (judged["verdict"] == judged["fault"]).mean() > 0.9
    known = rows.assign(seed=rows["seed"] + 10)
    with pytest.raises(ValueError, match="expected at least two"):
        judge_unseen(known)  # no seed to learn from


# --- the experiment


def contents(folder):
    "File -> bytes, of all that is kept of a diagnosis; without states and the notes of probes, which only a run keeps."
    paths = [path for path in folder.rglob("*.*") if "states" not in path.parts and path.is_file()]
    return {path.name: path.read_bytes() for path in paths if path.name not in ("run.json", "rules.jsonl", ".lock")}


@pytest.fixture(scope="session")
def few(exam):
    "What is quickly examined: samples of each kind, and pairs for three counts."
    some = [sample for sample in generate("balanced", limit=432) if sample.target in (2, 5)]
    return {"alone": exam[0], "groups": exam[1], "pairs": count_pairs(some), "progress": False}


@pytest.fixture(scope="session")
def diagnosed(vlm, few):
    return diagnose(vlm, **few)


@pytest.mark.slow
def test_a_diagnosis_in_memory_is_that_in_a_folder(vlm, few, diagnosed, tmp_path):
    kept = diagnose(vlm, **few, path=tmp_path / "run")
    kept.figures()
    assert diagnosed.folder is None and kept.folder == tmp_path / "run"
    assert diagnosed.save(tmp_path / "saved") == tmp_path / "saved"
    one, two = contents(tmp_path / "run"), contents(tmp_path / "saved")
    assert one.keys() == two.keys() and [name for name in one if one[name] != two[name]] == []
    tables = {f"{name}.csv" for name in ("probes", "rules", "lens", "patches", "scores")}
    drawn = {f"{name}.{kind}" for name in ("probes", "lens", "patching") for kind in ("png", "svg")}
    assert set(one) == {"predictions.jsonl", "evidence.json", "verdict.json"} | tables | drawn
    assert json.loads(one["verdict.json"])["paper"] == diagnosed.paper
    records = [RunRecord.load(tmp_path / name) for name in ("run", "saved")]
    assert records[0].parameters == records[1].parameters and records[0].fingerprint == records[1].fingerprint


def test_what_a_diagnosis_says(vlm, exam, pairs, diagnosed, few, tmp_path):
    evidence, tables = examine(vlm, *exam, few["pairs"], tmp_path)
    assert diagnosed.evidence == evidence and diagnosed.verdict == _conclude(evidence)
    for name, table in tables.items():
        pd.testing.assert_frame_equal(diagnosed.details[name], table)
    assert set(diagnosed.details["rules"]["rule"]) == {"layout", "entity", "colour", "shape"}  # too few for 'paper'
    assert list(diagnosed.tables()["scores"]["evidence"]) == list(EVIDENCE)
    assert list(diagnosed.reasons["sign"]) == [name for name, *_ in diagnosed.verdict.reasons]
    assert diagnosed.probabilities is diagnosed.verdict.probabilities
    lines = str(diagnosed).splitlines()
    assert lines[0] == f"tiny-qwen2-vl: {diagnosed.verdict}" and lines[2] == "All evidence was to be had."
    assert lines[1] == f"The paper's rule says: {diagnosed.paper}." and "here were 27 and 36" in lines[3]
    assert "\n" not in repr(diagnosed) and "<table" in diagnosed._repr_html_()


@pytest.mark.slow
def test_a_diagnosis_that_was_killed_goes_on(vlm, few, diagnosed, tmp_path, monkeypatch):
    "Answers and states are read, the rest is done again; another examination in the folder is refused."
    with monkeypatch.context() as dying:
        dying.setattr(diagnosis, "_probe_token", lambda *given, **named: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            diagnose(vlm, **few, path=tmp_path)
    assert RunRecord.load(tmp_path).status == "failed"
    with monkeypatch.context() as deaf:
        deaf.setattr(diagnosis, "predict", lambda vlm, samples, path, *given, **named: diagnosis.load_predictions(path))
        deaf.setattr(vlm, "answer_prepared", None, raising=False)
        again = diagnose(vlm, **few, path=tmp_path)
    assert again.evidence == diagnosed.evidence and RunRecord.load(tmp_path).status == "finished"
    for change, found in (
        ({"seed": 1}, "parameter 'seed' is 1 now and was 0"),
        ({"pairs": few["pairs"][:2]}, "parameter 'pairs' is"),
        ({"groups": few["groups"][:18]}, "fingerprint is"),
    ):
        with pytest.raises(FileExistsError, match=found):
            diagnose(vlm, **few | change, path=tmp_path)
    with pytest.raises(FileExistsError, match="parameter 'system' is 'Count.' now and was ''"):
        diagnose(vlm.reworded(system="Count."), **few, path=tmp_path)


def test_it_makes_what_it_needs(vlm, clip, monkeypatch):
    "The samples that a command would load, and pairs of four times as many, or of more where those are too few."
    looked_at = []

    def look(model, alone, groups, pairs, *rest, **named):
        looked_at.append((alone, groups, pairs))
        raise KeyboardInterrupt

    monkeypatch.setattr(diagnosis, "examine", look)
    for model, given in ((vlm, {"limit": 108}), (clip, {"limit": 27, "seed": 1})):
        with pytest.raises(KeyboardInterrupt):
            diagnose(model, **given)
        alone, groups, pairs = looked_at[-1]
        loaded = [load_dataset(name, **given) for name in ("balanced", "two_groups")]
        assert [alone, groups] == loaded and fingerprint(alone + groups) == fingerprint(sum(loaded, []))
        assert pairs == (count_pairs(load_dataset("balanced", limit=432)) if model is vlm else [])
    with pytest.raises(KeyboardInterrupt):
        diagnose(vlm, limit=18)
    assert len(looked_at[-1][2]) == 81 and len(looked_at[-1][0]) == 18
    some = [sample for sample in generate("balanced", limit=432) if sample.target in (2, 5)]
    with pytest.raises(KeyboardInterrupt):
        diagnose(vlm, some, limit=18)
    assert looked_at[-1][0] == some and looked_at[-1][2] == count_pairs(some)
    with pytest.raises(ValueError, match="No two images of one kind.*Or pass pairs=count_pairs"):
        diagnose(vlm, generate("balanced", limit=18))


def test_what_cannot_be_diagnosed_is_refused_before_anything_is_asked(vlm, exam, pairs, monkeypatch):
    monkeypatch.setattr(diagnosis, "examine", None)
    alone, groups = exam
    bare = [replace(sample, factors={"entity": "red_stars"}) for sample in alone]
    for model, one, two, kind, found in (
        ({"accuracy": 0.5}, None, None, TypeError, "hidden states of a dict cannot be read. Expected a model"),
        (object(), None, None, TypeError, "hidden states of a object cannot be read. Expected a model of `load_model`"),
        (
            vlm,
            bare,
            groups,
            ValueError,
            "one kind of object found 27 samples, not all of them with the f.*'layout'",
        ),
        (vlm, alone, alone, ValueError, "two kinds found 27 samples, not all of them with the factor 'others'"),
        (vlm, alone, [], ValueError, "two kinds found no samples. Expected synthetic sets such as"),
        (vlm, [replace(alone[0], target=None)], groups, ValueError, "1 samples, not all of them with a target"),
        (
            vlm,
            [replace(alone[0], target=10)],
            groups,
            ValueError,
            "The number 10 is no single token of",
        ),
    ):
        with pytest.raises(kind, match=found):
            diagnose(model, one, two, pairs=pairs)


def test_a_model_that_miscounts_nothing_has_nothing_to_explain(vlm, few, monkeypatch):
    monkeypatch.setattr(diagnosis, "examine", lambda *given, **named: (dict(WELL), {"probes": pd.DataFrame()}))
    monkeypatch.setattr(diagnosis, "_probe_rules", lambda folder: pd.DataFrame())
    monkeypatch.setattr(diagnosis, "load_predictions", lambda folder: [])
    healthy = diagnose(vlm, **few)
    assert healthy.verdict.fault == "none" == healthy.paper and healthy.probabilities["none"] == 1
    assert str(healthy).startswith("tiny-qwen2-vl: none: nothing is wrong (probability 1.00)")


def test_a_ranking_model_is_diagnosed_by_what_it_gives(clip, exam, tmp_path):
    found = diagnose(clip, *exam, path=tmp_path, progress=False)
    assert found.paper == diagnosis._NO_HEAD and set(found.details) == {"probes", "rules"}
    assert {"lens", "head_gain"} <= set(found.verdict.missing) and "Not to be had: probe_token" in str(found)
    assert set(found.figures()) == {"probes"} and (tmp_path / "probes.svg").exists()
    assert list(found.tables()["scores"]["evidence"]) == list(found.evidence)


def test_patching_takes_one_or_many_of_everything(vlm, pairs):
    some = pairs[:3]
    wanted = patch(vlm, some, [2], ["last"])
    as_tuples = [(pair.donor, pair.recipient) for pair in some]
    for given in (
        (iter(some), np.int64(2), "last"),
        (tuple(as_tuples), (layer for layer in [2]), (name for name in ["last"]), np.int64(27)),
        (some, np.array([2]), ("last", "last"), "auto"),
    ):
        pd.testing.assert_frame_equal(patch(vlm, *given), wanted, rtol=1e-4, atol=1e-5)
    assert len(patch(vlm, some[0], 2, "last")) == 1


def test_what_cannot_be_patched_or_paired_is_said(vlm, clip, pairs, exam):
    alone, bare = exam[0], replace(exam[0][0], target=None, uid="bare")
    for wrong, kind, message in (
        (lambda: patch(vlm, []), ValueError, "There are no pairs"),
        (lambda: patch(vlm, alone[:2]), TypeError, "among the pairs, expected each to be a Pair"),
        (lambda: patch(vlm, pairs[:1], True), ValueError, "There is no layer True"),
        (lambda: patch(vlm, pairs[:1], 2, []), ValueError, "positions is empty"),
        (lambda: patch(vlm, pairs[:1], 2, "lsat"), UnknownName, "Did you mean 'last'"),
        (lambda: patch(vlm, pairs[:1], 2, batch_size=0), ValueError, "batch_size is 0, expected 'auto' or a whole"),
        (lambda: patch(vlm, [(alone[0], bare)]), ValueError, "1 of 2 samples have no target, the first is 'bare'"),
        (lambda: patch(clip, pairs[:1]), ValueError, "'tiny-clip' writes no words"),
        (lambda: patch("tiny-clip", pairs[:1]), TypeError, "states of a str cannot be read"),
        (lambda: count_pairs([]), ValueError, "There are no samples"),
        (lambda: count_pairs("balanced"), TypeError, "Found 'balanced' among the samples"),
        (lambda: count_pairs([bare]), ValueError, "1 of 1 samples have no target"),
        (lambda: count_pairs(alone, each=0), ValueError, "each is 0, expected a whole number"),
        (lambda: diagnose(vlm, alone[:1], exam[1]), ValueError, "one kind of object found 1 samples .*too few"),
        (lambda: diagnose(vlm, iter(alone), exam[1][:2]), ValueError, "two kinds found 2 samples .*too few"),
        (lambda: diagnose(vlm, "balanced"), TypeError, "Found 'balanced' among the samples"),
        (lambda: diagnose(vlm, batch_size=0), ValueError, "batch_size is 0"),
        (lambda: diagnose(vlm, pairs=[3]), TypeError, "Found 3 among the pairs"),
    ):
        with pytest.raises(kind, match=message):
            wrong()


def test_pairs_of_a_generator_are_those_of_a_list():
    samples = generate("balanced", limit=432)
    assert count_pairs(iter(samples), np.int64(1)) == count_pairs(samples)
    same = pd.DataFrame({"layer": [1], "position": ["last"], "full": [np.nan], "shift": [0.0], "moved": [np.nan]})
    with pytest.raises(ValueError, match="No pair has two different counts"):
        effects(same)


def test_remembered_inputs_are_of_these_pixels_and_this_wording():
    vlm = remember_inputs(load_model("tiny-qwen2-vl", device="cpu"))
    images = [Image.new("RGB", (84, 84), colour) for colour in ("red", "red", "blue")]
    samples = [Sample("same", image, "How many?") for image in images]
    made = [vlm.prepare([sample]) for sample in samples]
    pixels = [inputs["pixel_values"] for inputs in made]
    assert pixels[0] is pixels[1] and not torch.equal(pixels[0], pixels[2])
    told = vlm.reworded(instruction="Count carefully, one by one, and take your time.")
    assert told.prepare(samples[:1])["input_ids"].shape != made[0]["input_ids"].shape
    assert vlm.copy("mine", "nothing").prepare(samples[:1])["pixel_values"] is pixels[0]
    assert repr(vlm).startswith("VLM tiny-qwen2-vl")
