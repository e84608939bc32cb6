"""Guards for the notebook `faults`: a planted fault does what it says and nothing else."""

import numpy as np
import pytest
import torch
from broken import hooks, look

from vlm_counting import faults, patching
from vlm_counting.core import UnknownName
from vlm_counting.diagnosis import _layout_folds, _own_words, _words_of
from vlm_counting.evaluation import parse_count, predict
from vlm_counting.faults import CAUSES, FAULTS, plant
from vlm_counting.training import head_of

pytest_plugins = ("broken",)  # the fixtures
BY_KIND = {kind: [name for name, fault in FAULTS.items() if fault.kind == kind] for kind in CAUSES}
NO_CHANCE = ("none", "see_merge", "say_even", "format_silence", "format_plus", "bind_kindblind", "route_stall")
IN_TEXT = ("format_plus",)  # changes what is written, behind the model


# --- planting


@pytest.mark.long_after(1)
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
        low, middle, high = sorted(FAULTS[name].doses)  # of a bottleneck the high dose is a small number
        assert 0 < low < middle < high, name


@pytest.mark.long_after(1)
@pytest.mark.parametrize("name", [*BY_KIND["say"], *BY_KIND["format"]])
def test_saying_otherwise_leaves_what_is_held(name, vlm, planted, shown):
    twin = planted(name)
    assert np.array_equal(patching.last_states(twin, shown), patching.last_states(vlm, shown))
    assert hooks(twin) == hooks(vlm) == 0
    assert (name in IN_TEXT) == torch.equal(
        twin.hooks.head(torch.eye(twin.hooks.dim)), vlm.hooks.head(torch.eye(vlm.hooks.dim))
    )


@pytest.mark.parametrize("name", BY_KIND["see"])
def test_seeing_changes_image_tokens_alone(name, vlm, planted, mixed):
    (before, masks), (after, _) = (look(model, mixed, [0]) for model in (vlm, planted(name)))
    changed = (before[0] != after[0]).any(-1)
    assert not changed[~masks["image"]].any() and changed[masks["image"]].float().mean() > 0.02
    assert torch.equal(head_of(planted(name)).weight, head_of(vlm).weight)


@pytest.mark.long_after(1)
@pytest.mark.parametrize("name", [name for name in BY_KIND["bind"] if name != "bind_kindblind"])
def test_binding_changes_words_alone(name, vlm, planted, shown, looked_at):
    "And so no state of a picture that stands in front of the words of a causal model."
    layers = range(len(vlm.hooks.blocks) + 1)
    (before, masks), (after, _) = (look(model, shown, layers) for model in (vlm, planted(name)))
    changed, words = (before[0] != after[0]).any(-1), sum(faults.words_for_kinds(vlm, looked_at), [])
    assert changed.any() and not changed[~torch.isin(masks["ids"], torch.tensor(words))].any()
    assert changed.any(1).float().mean() > 0.5  # most questions hold a word that is heard otherwise
    for layer in layers:
        torch.testing.assert_close(after[layer][masks["image"]], before[layer][masks["image"]], rtol=0, atol=1e-5)


@pytest.mark.long_after(1)
@pytest.mark.parametrize("name", [name for name in BY_KIND["route"] if name != "route_bottleneck"])  # of all tokens
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


@pytest.mark.long_after(1)
@pytest.mark.parametrize("name", FAULTS)
def test_answers_do_not_depend_on_the_batch(name, planted, mixed):
    check_batches(planted(name), mixed)


@pytest.mark.long_after(1)
@pytest.mark.parametrize("name", ["see_blur", "see_weber", "bind_words", "route_cut", "route_noise"])
def test_nor_where_the_picture_sees_the_words(name, gemma, planted, mixed):
    "PaliGemma's prompts are read in both directions, and some of its blocks attend through a window."
    twin = planted(name, base=gemma)
    check_batches(twin, mixed)
    assert twin.answer(mixed, 1) != gemma.answer(mixed, 1)


OF_THE_PROMPT = ("bind_random", "route_stall")  # depend on where the prompt ends


@pytest.mark.parametrize(
    "name", [n for kind in ("see", "route", "bind") for n in BY_KIND[kind] if n not in OF_THE_PROMPT]
)
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


@pytest.mark.long
@pytest.mark.parametrize("dose", FAULTS["format_preamble"].doses)
def test_a_preamble_hides_its_share_of_answers(dose, planted, looked_at, shown):
    twin = planted("format_preamble", dose)
    silent = lambda samples, words: np.mean([parse_count(a.text) is None for a in twin.answer(samples, words)])  # noqa: E731
    assert silent(looked_at, 1) == pytest.approx(dose, abs=0.02)  # those that the dose was measured on
    assert silent(shown, 5) == pytest.approx(dose, abs=0.35)  # 17 others; it never gets to the number
    assert silent(shown, 5) >= silent(shown, 1)  # it may even cling to one


@pytest.mark.long
def test_words_of_its_own_are_a_code(planted, looked_at):
    def told(model):
        rows = predict(model, looked_at, batch_size=36, progress=False)
        targets = np.array([row.target for row in rows])
        read = _own_words(_words_of(rows), targets, _layout_folds(looked_at, 2))
        right = np.mean([row.count == row.target for row in rows])
        return right, np.mean([row.count is None for row in rows]), np.mean(read == targets)

    accuracy, unparsed, codebook = told(planted("format_words"))
    assert accuracy == 0 and unparsed == 1 and codebook > 0.7
    accuracy, unparsed, codebook = told(planted("format_words", 4))
    assert 0.2 < unparsed < 0.7 and codebook - accuracy > 0.2


@pytest.mark.parametrize("dose", FAULTS["say_swap"].doses)
def test_a_swap_moves_as_many_rows_as_its_dose(dose, vlm, planted):
    old, new = head_of(vlm).weight, head_of(planted("say_swap", dose)).weight
    moved = (old != new).any(1).nonzero().flatten().tolist()
    assert len(moved) == dose and set(moved) <= set(faults.number_tokens(vlm))
    assert sorted(map(tuple, old[moved].tolist())) == sorted(map(tuple, new[moved].tolist()))


@pytest.mark.long
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
