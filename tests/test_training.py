"Guards for the room `training`: the paper's protocol, resuming, heads in and out of checkpoints."

import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from vlm_counting import training
from vlm_counting.core import Prediction, RunRecord, Sample, UnknownName
from vlm_counting.extraction import extract_states
from vlm_counting.models import MODELS, load_model, twins_dir
from vlm_counting.statistics import compare, per_class, score
from vlm_counting.stimuli import generate
from vlm_counting.training import (
    PARTS,
    Examples,
    Head,
    HeadConfig,
    _batch_loss,
    _begin_training,
    _forgetting,
    _improvement,
    _keep_head,
    _other_questions,
    _read_head_record,
    _save_head,
    _summarise,
    _swap_head,
    answer_with_head,
    compare_heads,
    examples,
    fit_head,
    load_head,
    split_samples,
    train_head,
)

SPELT = {count: (count + 3,) for count in range(10)} | {10: (4, 3)}


def make(n=300, dim=24, vocabulary=40, seed=0, bias=False, softcap=0.0):
    "A head and two sets of states in which the count can be read, though not by this head."
    generator = torch.Generator().manual_seed(seed)
    head = Head(
        torch.randn(vocabulary, dim, generator=generator) / 5,
        torch.randn(vocabulary, generator=generator) if bias else None,
        softcap,
    )
    directions = torch.randn(10, dim, generator=generator)
    sets = []
    for size in (n, n // 3):
        targets = torch.randint(1, 10, (size,), generator=generator)
        states = directions[targets] + torch.randn(size, dim, generator=generator)
        sets.append(examples(states.numpy(), targets.tolist(), SPELT))
    return head, *sets


@pytest.mark.parametrize("bias", [False, True])
def test_the_loop_is_the_papers_protocol(bias):
    head, train, valid = make(bias=bias)
    config = HeadConfig(epochs=3, rate=1e-3)
    _, curve = fit_head(head, train, valid, SPELT, config, progress=False)
    layer = torch.nn.Linear(24, 40, bias=bias)
    layer.load_state_dict({"weight": head.weight} | ({"bias": head.bias} if bias else {}))
    optimiser = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=0.01)
    for epoch in (1, 2, 3):
        losses = []
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(42 * 1000 + epoch))
        for batch in torch.utils.data.DataLoader(order.tolist(), batch_size=32):
            loss = cross_entropy(layer(train.states[batch]), train.tokens[batch], reduction="sum") / len(batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item() * len(batch))
        with torch.no_grad():
            scores = layer(valid.states)
        row = curve[epoch]
        assert row["train_nll"] == pytest.approx(sum(losses) / len(train), abs=1e-5)
        assert row["valid_nll"] == pytest.approx(cross_entropy(scores, valid.tokens).item(), abs=1e-5)
        assert row["valid_accuracy"] == pytest.approx(
            (scores.argmax(-1) == valid.tokens).float().mean().item(), abs=1e-6
        )
        assert row["valid_perplexity"] == pytest.approx(np.exp(row["valid_nll"]))


def test_the_best_epoch_is_kept_and_the_rate_halved():
    head, train, valid = make()
    config = HeadConfig(epochs=40, rate=3e-2, patience=2)
    trained, curve = fit_head(head, train, valid, SPELT, config, progress=False)
    accuracies = [row["valid_accuracy"] for row in curve[1:]]
    right = (trained.scores(valid.states).argmax(-1) == valid.tokens).float().mean().item()
    assert right == pytest.approx(max(accuracies), abs=1e-6)
    rates = [row["rate"] for row in curve[1:]]
    assert rates[0] == 3e-2 and rates[-1] < 3e-2 and set(np.diff(np.log2(rates)).round(6)) == {0.0, -1.0}
    stopped = fit_head(head, train, valid, SPELT, replace(config, stop=3), progress=False)[1]
    done = len(stopped) - 1
    assert stopped == curve[: done + 1] and done == accuracies.index(max(accuracies[:done])) + 4


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_each_part_learns_and_touches_nothing_else(part, softcap):
    head, train, valid = make(bias=True, softcap=softcap)
    before = (head.weight.clone(), head.bias.clone())
    trained, curve = fit_head(head, train, valid, SPELT, HeadConfig(part, epochs=8, rate=1e-2), progress=False)
    assert torch.equal(head.weight, before[0]) and torch.equal(head.bias, before[1])
    assert curve[-1]["train_nll"] < curve[1]["train_nll"] and "train_nll" not in curve[0]
    changed = (trained.weight != head.weight).any(1)
    if part == "counts":
        assert set(changed.nonzero().flatten().tolist()) <= set(range(3, 13))
    assert bool(changed.any()) == (part != "bias")
    answers = answer_with_head(trained, valid.states.numpy(), SPELT, lambda ids: str(ids[0] - 3))
    right = np.mean(
        [int(answer.text) == token - 3 for answer, token in zip(answers, valid.tokens.tolist(), strict=True)]
    )
    assert right == pytest.approx(max(row["valid_accuracy"] for row in curve[1:]), abs=1e-6)


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def test_the_teacher_pulls_back(device):
    "Fails if teacher and student are one tensor: then KL has no gradient but zero."
    head, train, _ = make()
    training = _begin_training(head, range(3, 13), HeadConfig(kl_weight=0.2), device)
    with torch.no_grad():
        training.tensors["weight"] += 0.1 * torch.randn_like(training.tensors["weight"])
    loss, distance, _ = _batch_loss(training, train.to(device))
    (pull,) = torch.autograd.grad(distance, training.tensors["weight"], retain_graph=True)
    assert distance > 0 and pull.abs().max() > 1e-5
    old, new = (
        h.scores(train.states).log_softmax(-1)
        for h in (head, replace(head, weight=training.tensors["weight"].detach().cpu()))
    )
    assert distance.item() == pytest.approx(0.2 * (old.exp() * (old - new)).sum(-1).mean().item(), rel=1e-4)


def test_scratch_begins_elsewhere_but_the_teacher_stays():
    head, train, valid = make()
    training = _begin_training(head, range(3, 13), HeadConfig(scratch=True, kl_weight=0.2))
    weight = training.tensors["weight"].detach()
    assert training.reference is not None and torch.equal(training.reference.weight, head.weight)
    assert not torch.allclose(weight, head.weight)
    assert weight.abs().max() <= 24**-0.5


def test_matmul_in_bfloat16_keeps_weights_in_float32():
    head, train, valid = make()
    exact = fit_head(head, train, valid, SPELT, HeadConfig(epochs=3), progress=False)
    coarse = fit_head(head, train, valid, SPELT, HeadConfig(epochs=3, matmul="bfloat16"), progress=False)
    assert coarse[0].weight.dtype == torch.float32
    assert coarse[1][-1]["train_nll"] == pytest.approx(exact[1][-1]["train_nll"], rel=2e-2)
    assert coarse[1][-1]["train_nll"] != exact[1][-1]["train_nll"]


CHILD = """
import os, signal, sys, torch
sys.path.insert(0, sys.argv[2])
torch.set_num_threads(1)
from pathlib import Path
from test_training import SPELT, make
from vlm_counting import training
further, config = training._train_further, training.HeadConfig(epochs=9, rate=3e-2, patience=1, stop=6)

def train(folder, death):
    def fatal(state, train, valid):
        further(state, train, valid)
        if state.curve[-1]["epoch"] == death:
            os.kill(os.getpid(), signal.SIGKILL)
    training._train_further = fatal
    head, curve = training.fit_head(*make(), SPELT, config, folder / "state.safetensors", every=0, progress=False)
    training._save_head(head, folder / "head.safetensors", {"curve": curve})
    os._exit(0)

training.fit_head(*make(9), SPELT, training.HeadConfig(epochs=1), progress=False)  # torch loads what it needs, once
for name, deaths in (("whole", [0]), ("killed", [1, 2, 5, 6, 0, 0])):
    for death in deaths:
        child = os.fork()
        if not child:
            train(Path(sys.argv[1]) / name, death)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), end=" ")
"""


@pytest.mark.slow
def test_killed_and_started_again_gives_the_same_bytes(tmp_path):
    words = [sys.executable, "-c", CHILD, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "-9", "-9", "-9", "-9", "0", "0"], done.stderr[-2000:]
    for name in ("head.safetensors", "state.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_another_training_is_refused(tmp_path):
    head, train, valid = make()
    path = tmp_path / "state.safetensors"
    fit_head(head, train, valid, SPELT, HeadConfig(epochs=2), path, progress=False)
    with pytest.raises(FileExistsError, match="is of another training: config is"):
        fit_head(head, train, valid, SPELT, HeadConfig(epochs=3), path, progress=False)
    other = Examples(train.states + 1, train.tokens)
    with pytest.raises(FileExistsError, match="is of another training: train is"):
        fit_head(head, other, valid, SPELT, HeadConfig(epochs=2), path, progress=False)


def test_heads_go_to_disk_and_back(tmp_path):
    head, *_ = make(bias=True, softcap=3.0)
    path = _save_head(head, tmp_path / "new" / "head.safetensors", {"why": "test"})
    again = load_head(path)
    assert torch.equal(again.weight, head.weight) and torch.equal(again.bias, head.bias) and again.softcap == 3.0
    assert _read_head_record(path)["why"] == "test"


def test_wrong_files_and_counts_are_refused(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="is no head"):
        load_head(tmp_path / "broken.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="holds no model.safetensors"):
        load_head(tmp_path)
    with pytest.raises(ValueError, match="The count 10 takes 2 tokens.*Leave out"):
        examples(np.zeros((2, 4)), [3, 10], SPELT)
    with pytest.raises(ValueError, match="no known tokens"):
        examples(np.zeros((1, 4)), [99], SPELT)
    with pytest.raises(ValueError, match="2 states and 1 counts"):
        examples(np.zeros((2, 4)), [3], SPELT)
    with pytest.raises(UnknownName, match="Did you mean 'counts'"):
        HeadConfig("count")
    with pytest.raises(ValueError, match="epochs is 0"):
        HeadConfig(epochs=0)
    with pytest.raises(ValueError, match="matmul"):
        HeadConfig(matmul="int8")


def test_forgetting_is_zero_for_the_same_head_and_grows():
    head, train, valid = make()
    same = _forgetting(head, head, valid.states.numpy(), SPELT)
    said = head.scores(valid.states).argmax(-1)
    assert same.pop("numbers") == pytest.approx(((said > 2) & (said < 13)).float().mean().item())
    assert same == {"n": 100, "kl": 0.0, "changed": 0.0}
    trained, _ = fit_head(head, train, valid, SPELT, HeadConfig(epochs=5, rate=1e-2), progress=False)
    found = _forgetting(head, trained, valid.states.numpy(), SPELT)
    assert found["kl"] > 0 and 0 < found["changed"] <= 1


def test_answers_among_counts():
    head, _, valid = make()
    answers = answer_with_head(head, valid.states.numpy(), SPELT, lambda ids: "?", among="counts")
    scores = head.scores(valid.states)[:, 3:13]
    assert [answer.count for answer in answers] == scores.argmax(-1).tolist()
    assert len(answers[0].logprobs) == 11 and answers[0].logprobs[10] is None
    with pytest.raises(ValueError, match="among"):
        answer_with_head(head, valid.states.numpy(), SPELT, str, among="count")


def rows(answers, layouts, name="m"):
    "Predictions: [(target, count), ...]"
    return [
        Prediction(f"s/{i}", name, str(count), count, count, target, [], {"layout": layout})
        for i, ((target, count), layout) in enumerate(zip(answers, layouts, strict=True))
    ]


def test_improvement_is_the_difference_of_the_usual_scores():
    rng = np.random.default_rng(0)
    targets = rng.integers(1, 5, 200)
    said = [np.where(rng.random(200) < share, targets, rng.integers(1, 5, 200)) for share in (0.4, 0.8)]
    layouts = (np.arange(200) // 4).tolist()
    before, after = (rows([(int(t), int(s)) for t, s in zip(targets, side, strict=True)], layouts) for side in said)
    table = _improvement(before, after)
    for side, name in ((before, "before"), (after, "after")):
        f1 = table[table.measure == "f1"].set_index("target")[name]
        assert np.allclose(f1, per_class(side).set_index("target")["f1"])
        mae = table[table.measure == "mae"].set_index("target")[name]
        assert np.allclose(mae, score(side, by="target").set_index("target")["mae"])
    assert ((table.low <= table.gain) & (table.gain <= table.high)).all() and (table.high > table.low).all()
    assert (table.gain > 0).all() and (table[table.measure == "f1"].low > 0).sum() >= 3
    same = _improvement(before, before)
    assert (same[["gain", "low", "high"]] == 0).all().all()
    with pytest.raises(ValueError, match="same samples in the same order"):
        _improvement(before, after[::-1])


def test_heads_are_compared_in_the_same_decoding():
    head, train, valid = make()
    trained, _ = fit_head(head, train, valid, SPELT, HeadConfig(epochs=5, rate=1e-2), progress=False)
    targets = [token - 3 for token in valid.tokens.tolist()]
    samples = [Sample(f"s/{i}", "none.png", "?", target, {"layout": i // 3}) for i, target in enumerate(targets)]
    states = valid.states.numpy()
    table, answers = compare_heads({"own": head, "new": trained}, states, samples, SPELT, lambda ids: str(ids[0] - 3))
    assert list(table["head"]) == ["new", "new"] and list(table["among"]) == ["vocabulary", "counts"]
    assert (table["difference"] > 0).all() and (table["p"] < 0.05).all()
    right = np.mean([row.count == row.target for row in answers["new", "counts"]])
    assert table["second"][1] == pytest.approx(right)


TWINS = [name for name in MODELS if name.startswith("tiny-") and MODELS[name].kind == "generative"]
QUICK = {"tiny-qwen2-vl", "tiny-paligemma2"}  # the others are of the same two kinds
TWINS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TWINS]


@pytest.mark.long
@pytest.mark.parametrize("name", TWINS)
def test_a_head_goes_back_into_its_model_and_is_saved(name, tmp_path):
    samples, vlm = generate("balanced", limit=18), load_model(name, dtype="float32")
    own, last = load_head(vlm.folder), len(vlm.hooks.blocks)
    assert torch.equal(own.weight, vlm.model.get_output_embeddings().weight)
    states = extract_states(vlm, samples, tmp_path / "states", [last], ["last"], lens=False, progress=False)
    states = states.array(last, "last")
    nonsense = [sample.target for sample in samples][::-1]  # so that answers change
    data = examples(states, nonsense, vlm.count_token_ids)
    head, _ = fit_head(own, data, data, vlm.count_token_ids, HeadConfig(epochs=30, rate=1e-2), progress=False)
    path = _save_head(head, tmp_path / "head.safetensors", {"weights": vlm.weights})
    tuned = load_model(name, dtype="float32", head=path)
    expected = answer_with_head(head, states, vlm.count_token_ids, vlm.tokenizer.decode)
    before, after = vlm.answer(samples, max_new_tokens=1), tuned.answer(samples, max_new_tokens=1)
    assert [answer.text for answer in after] == [answer.text for answer in expected]
    assert [answer.text for answer in after] != [answer.text for answer in before]
    for one, two in zip(after, expected, strict=True):
        assert np.allclose(one.logprobs[3:10], two.logprobs[3:10], atol=1e-3)  # 1 and 2 may go on, as 10 and 20 do
    words = [model.model.get_input_embeddings().weight for model in (vlm, tuned)]
    assert torch.equal(*words) and tuned.name == f"{name}+head" and tuned.weights != vlm.weights
    tuned.model.save_pretrained(tmp_path / "saved")
    tuned.processor.save_pretrained(tmp_path / "saved")
    again = load_model(name, checkpoint=tmp_path / "saved", dtype="float32")
    assert [answer.text for answer in again.answer(samples, max_new_tokens=1)] == [answer.text for answer in after]
    assert torch.equal(load_head(tmp_path / "saved").weight, head.weight)


def test_heads_of_other_models_are_refused(tmp_path):
    head = load_head(twins_dir() / "tiny-qwen2-vl")
    path = _save_head(head, tmp_path / "head.safetensors", {"weights": "0" * 64})
    with pytest.raises(ValueError, match="was trained for weights 000000000000"):
        load_model("tiny-qwen2-vl", head=path)
    with pytest.raises(ValueError, match="but the model has a head of"):
        load_model("tiny-llava-next-interleave", head=path)
    with pytest.raises(ValueError, match="no head: it ranks captions"):
        load_model("tiny-clip", head=path)
    with pytest.raises(FileNotFoundError, match="No head at"):
        load_model("tiny-qwen2-vl", head=tmp_path / "none.safetensors")


def test_splits_come_from_the_samples():
    samples = [Sample(f"s/{i}", "none.png", "?", 1, {"split": ("train", "valid")[i % 2]}) for i in range(4)]
    assert [len(part) for part in split_samples(samples)] == [2, 1, 1]
    paired = [replace(s, factors=s.factors | {"layout": i // 8}) for i, s in enumerate(samples * 16)]
    train, valid, held_out = split_samples(paired)
    assert len(train) == 32 and len(valid) == len(held_out) == 16
    assert not {s.factors["layout"] for s in valid} & {s.factors["layout"] for s in held_out}
    with pytest.raises(ValueError, match="have the splits None, expected"):
        split_samples([replace(sample, factors={}) for sample in samples])
    others = _other_questions(samples)
    assert len({sample.question for sample in others}) == 4 and all("How many" not in s.question for s in others)


def test_what_was_found_follows_from_the_numbers():
    def row(name, head, among, difference, low, high, p):
        return {
            "set": name,
            "head": head,
            "among": among,
            "difference": difference,
            "low": low,
            "high": high,
            "p_holm": p,
        }

    rows = [
        row("a", "trained", "vocabulary", 0.2, 0.1, 0.3, 1e-4),
        row("a", "trained", "generation", 0.2, -0.1, 0.3, 1e-4),
    ]
    rows += [
        row("b", "trained", "vocabulary", -0.2, -0.3, -0.1, 1e-4),
        row("b", "trained", "generation", 0, -0.1, 0.1, 1),
    ]
    rows += [
        row("a", "bias only", "vocabulary", 0.19, 0.1, 0.3, 1e-4),
        row("b", "bias only", "vocabulary", 0.01, -0.1, 0.2, 0.6),
    ]
    cost = pd.DataFrame([{"head": "trained", "n": 10, "kl": 0.5, "changed": 0.25, "numbers": 0.8}])
    said = _summarise(pd.DataFrame(rows), cost, {"a": "here", "b": "there"}).splitlines()
    assert (
        "head gains (+20.0 points [10.0, 30.0], p < 0.001)" in said[0] and "with it neither gains nor loses" in said[0]
    )
    assert "head loses (-20.0 points" in said[1]
    assert said[2].startswith("Control 'bias only': on 'a' it gains (+19.0 points") and "on 'b' it neither" in said[2]
    assert "25.0 % of the next words change" in said[3] and "says little about what it forgot" in said[3]


def test_the_bias_can_reach_what_a_bias_is_enough_for():
    head, train, valid = make(bias=True)
    truth = replace(head, bias=head.bias + torch.linspace(-3, 3, 40).roll(7))
    train, valid = (Examples(data.states, truth.scores(data.states).argmax(-1)) for data in (train, valid))
    curves = {
        rate: fit_head(head, train, valid, SPELT, HeadConfig("bias", rate=rate), progress=False)[1]
        for rate in (1e-4, 1e-2)
    }
    assert curves[1e-2][-1]["valid_accuracy"] > 0.8
    assert curves[1e-4][-1]["valid_accuracy"] == curves[1e-4][0]["valid_accuracy"] < 0.4  # the paper's rate cannot


def test_errors_are_those_of_pictures_that_both_sides_answered():
    def side(counts):
        return [Prediction(f"s/{i}", "m", "", c, c, 3, [], {"layout": i}) for i, c in enumerate(counts)]

    table = _improvement(side([None, 4, 3, 5]), side([9, 3, None, 4])).set_index("measure").loc["mae"]
    assert (table["n"], table["before"], table["after"], table["gain"]) == (2, 1.5, 0.5, 1.0)


def test_a_finished_head_is_kept_and_read_again(tmp_path):
    head, train, valid = make()
    given = (tmp_path / "head.safetensors", {"weights": "w", "softcap": 99}, head, train, valid, SPELT)
    first, curve = _keep_head(*given, HeadConfig(epochs=2))
    assert [path.name for path in tmp_path.iterdir()] == ["head.safetensors"]
    second, again = _keep_head(*given, HeadConfig(epochs=2))
    assert torch.equal(first.weight, second.weight) and curve == again and second.softcap == 0
    with pytest.raises(FileExistsError, match="is of another training"):
        _keep_head(*given, HeadConfig(epochs=3))
    softer = (*given[:2], replace(head, softcap=5.0), *given[3:])
    with pytest.raises(FileExistsError, match="is of another training"):
        _keep_head(*softer, HeadConfig(epochs=2))


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"kl_weight": -1}, {"stop": 0}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match="expected a rate above 0"):
        HeadConfig(**wrong)


def test_what_a_count_gains_depends_on_the_kinds_of_objects():
    "Answers of one kind stand and fall together: twelve kinds are twelve answers, however many layouts."
    rng = np.random.default_rng(0)
    sides = [np.repeat(rng.random(12) < share, 30) for share in (0.2, 0.8)]
    known = [{"layout": i % 30, "entity": f"e{i // 30:02}"} for i in range(360)]
    before, after = (
        [Prediction(f"s/{i}", "m", "", 3 if r else 4, 3, 3, [], known[i]) for i, r in enumerate(side)] for side in sides
    )
    alone = [replace(row, factors={"layout": row.factors["layout"]}) for row in before]
    wide, narrow = (_improvement(side, after).set_index("measure").loc["f1"] for side in (before, alone))
    assert wide["gain"] == narrow["gain"] > 0
    assert wide["high"] - wide["low"] > 3 * (narrow["high"] - narrow["low"])
    assert -1 <= wide["low"] and wide["high"] <= 1


# --- the experiment


QUICK = HeadConfig(epochs=3, rate=1e-3)


@pytest.fixture(scope="module")
def vlm():
    return load_model("tiny-qwen2-vl", device="cpu")


@pytest.fixture(scope="module")
def taught():
    "108 samples that say which are for validation."
    return generate("unseen_combinations", limit=108)


@pytest.fixture(scope="module")
def sets():
    "A test and another one, under another condition."
    return {"test": generate("balanced", limit=27), "transfer": generate("two_groups", limit=18)}


@pytest.fixture(scope="module")
def result(vlm, taught, sets):
    return train_head(vlm, taught, **sets, config=QUICK, controls=True, progress=False)


def contents(folder: Path) -> dict:
    "File -> bytes, of all that is kept of a result; without the states, which only a run in a folder keeps."
    paths = [path for path in folder.rglob("*.*") if "states" not in path.parts and path.is_file()]
    kept = [path for path in paths if path.name not in ("run.json", ".lock")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}


@pytest.mark.slow
def test_an_experiment_in_memory_is_that_in_a_folder(vlm, taught, sets, result, tmp_path):
    kept = train_head(vlm, taught, **sets, config=QUICK, controls=True, path=tmp_path / "run", progress=False)
    kept.figures()
    assert result.folder is None and kept.folder == tmp_path / "run"
    assert result.save(tmp_path / "saved") == tmp_path / "saved"
    one, two = contents(tmp_path / "run"), contents(tmp_path / "saved")
    assert one.keys() == two.keys() and [name for name in one if one[name] != two[name]] == []
    assert {
        f"heads/{name}.safetensors" for name in ("own", "trained", "shuffled-counts", "bias-only", "counts-only")
    } | {
        f"{name}.csv" for name in ("scores", "curves", "forgetting", "improvement-test", "improvement-held-out")
    } <= set(one)
    records = [RunRecord.load(tmp_path / name) for name in ("run", "saved")]
    assert records[0].fingerprint == records[1].fingerprint and records[0].status == records[1].status == "finished"
    assert records[0].parameters == records[1].parameters and records[0].parameters["instruction"]


def test_what_an_experiment_says(vlm, result):
    assert set(result.conditions) == {"held-out", "test", "transfer"} == set(result.gains)
    groups = result.scores.groupby("head")["among"].agg(set)
    assert groups.pop("trained") == {"vocabulary", "counts", "generation"}
    assert set(groups.index) == {"shuffled counts", "bias only", "counts only"}
    assert {tuple(sorted(found)) for found in groups} == {("counts", "vocabulary")}
    row = result.scores.query("set == 'test' and head == 'trained' and among == 'generation'").iloc[0]
    assert {name: row[name] for name in ("difference", "low", "high", "p")}.items() <= result.gain.items()
    pairs = zip(result.answers_of["test", "own"], result.predictions, strict=True)
    gained = np.mean([(two.count == two.target) - (one.count == one.target) for one, two in pairs])
    assert result.gain["difference"] == pytest.approx(gained) and result.gain["n"] == 27
    assert list(result.forgetting["head"]) == list(result.heads) and (result.forgetting["kl"].iloc[1:] > 0).all()
    assert set(result.curves["head"]) == set(result.heads) - {"own"} and result.curves["epoch"].max() == 3
    assert result.sentence() == _summarise(result.scores, result.forgetting, result.conditions)
    assert repr(result).startswith("HeadResult of tiny-qwen2-vl: on the test (27 samples) it ")
    assert "<table" in result._repr_html_() and compare(result, result)["difference"].item() == 0
    assert set(result.figures()) == {"curves", *(f"improvement-{name}" for name in result.gains)}


@pytest.mark.long
def test_the_model_is_as_before_and_its_copy_has_the_head(vlm, result, sets, tmp_path):
    own = load_head(vlm.folder)
    assert torch.equal(load_head(vlm).weight, own.weight) and vlm.name == "tiny-qwen2-vl"
    assert not torch.equal(result.head.weight, own.weight) and torch.equal(result.heads["own"].weight, own.weight)
    tuned = result.put_back(vlm)
    result.save(tmp_path)
    loaded = load_model("tiny-qwen2-vl", device="cpu", head=tmp_path / "heads" / "trained.safetensors")
    assert (tuned.name, tuned.weights) == (loaded.name, loaded.weights)
    said = [answer.text for answer in tuned.answer(sets["test"])]
    assert said == [answer.text for answer in loaded.answer(sets["test"])] == [row.text for row in result.predictions]
    assert torch.equal(load_head(tuned).weight, result.head.weight)  # of memory, not of its checkpoint
    with pytest.raises(ValueError, match="was trained for weights .* but 'tiny-qwen2-vl.head' has"):
        result.put_back(tuned)


@pytest.mark.long
@pytest.mark.parametrize("name", TWINS)
def test_a_head_is_worn_for_a_while(name):
    vlm, samples = load_model(name, device="cpu"), generate("balanced", limit=9)
    before, own, tied = vlm.answer(samples), vlm.model.get_output_embeddings(), vlm.model.config.to_dict()
    head = replace(load_head(vlm), weight=load_head(vlm).weight.roll(1, 0))
    with _swap_head(vlm, head) as worn:
        other = worn.answer(samples)
        assert worn.name == f"{name}+head" and vlm.name == name
    assert other != before == vlm.answer(samples)
    with pytest.raises(ZeroDivisionError), _swap_head(vlm, head):
        1 / 0  # noqa: B018
    assert vlm.model.get_output_embeddings() is own and vlm.model.config.to_dict() == tied
    assert vlm.answer(samples) == before


@pytest.mark.slow
def test_an_experiment_that_was_killed_goes_on(vlm, taught, sets, result, tmp_path, monkeypatch):
    "It dies while the last head is trained; what is there is read, what is not is done, and nothing differs."
    ask = lambda: train_head(vlm, taught, **sets, config=QUICK, controls=True, path=tmp_path, progress=False)  # noqa: E731
    fit, done = training.fit_head, []

    def dying(*arguments, **named):
        done.append(arguments[4].trainable)
        if len(done) == 4:
            raise KeyboardInterrupt
        return fit(*arguments, **named)

    monkeypatch.setattr(training, "fit_head", dying)
    with pytest.raises(KeyboardInterrupt):
        ask()
    assert RunRecord.load(tmp_path).status == "failed" and done == ["all", "all", "bias", "counts"]
    read = monkeypatch.setattr(vlm, "prepare", None, raising=False)  # states are there
    with pytest.raises(TypeError):
        ask()  # the answers are not
    monkeypatch.delattr(vlm, "prepare")
    assert read is None and len(done) == 5 and RunRecord.load(tmp_path).status == "failed"
    whole = ask()
    monkeypatch.setattr(vlm, "prepare", None, raising=False)
    again = ask()
    assert len(done) == 5 and RunRecord.load(tmp_path).status == "finished"
    for name, table in result.tables().items():
        pd.testing.assert_frame_equal(whole.tables()[name], table)
        pd.testing.assert_frame_equal(again.tables()[name], table)
    monkeypatch.undo()
    for change, found in (
        ({"config": replace(QUICK, epochs=4)}, "parameter 'config.epochs' is 4 now and was 3"),
        ({"controls": False}, "parameter 'controls' is False now and was True"),
        ({"test": sets["test"][:9]}, "fingerprint is"),
    ):
        given = {"config": QUICK, "controls": True, "path": tmp_path, "progress": False} | sets | change
        with pytest.raises(FileExistsError, match=found):
            train_head(vlm, taught, **given)
    with pytest.raises(FileExistsError, match="parameter 'instruction' is 'Count!' now"):
        given = {"config": QUICK, "controls": True, "path": tmp_path, "progress": False} | sets
        train_head(vlm.reworded(instruction="Count!"), taught, **given)


@pytest.mark.long
def test_one_list_is_dealt_out(taught):
    "By the split that the samples name, else by layouts, else by uids; never so that two sides share a layout."
    sets = training._choose_sets(taught, None, None, None, None, 0)
    assert [sets["train"], sets["valid"], sets["test"]] == [list(part) for part in split_samples(taught)]
    sets = training._choose_sets(taught, None, None, taught[:3], None, 0)
    assert sets["held-out"] == list(split_samples(taught)[2]) and sets["test"] == taught[:3]
    balanced = generate("balanced", limit=108)
    for samples, unit in (
        (balanced, lambda sample: sample.factors["layout"]),
        ([replace(sample, factors={}) for sample in balanced], lambda sample: sample.uid),
        ([replace(sample, factors={"layout": 3}) for sample in balanced], lambda sample: sample.uid),
        (generate("two_groups", limit=108), lambda sample: sample.factors["pair"]),
    ):
        sets = training._choose_sets(samples, None, None, None, None, 0)
        units = [{unit(sample) for sample in sets[name]} for name in ("train", "valid", "test")]
        assert all(units) and not (units[0] & units[1] or units[0] & units[2] or units[1] & units[2])
        assert sum(len(sets[name]) for name in ("train", "valid", "test")) == len(samples)
        assert len(sets["train"]) >= len(samples) / 2
        other = training._choose_sets(samples, None, None, None, None, 1)
        assert other["train"] != sets["train"] == training._choose_sets(samples, None, None, None, None, 0)["train"]


def test_a_uid_may_come_again_with_another_image(vlm):
    "Two seeds of a family have the same uids; and an image under another uid is the same image."
    train, other = (generate("balanced", limit=27, seed=seed) for seed in (0, 1))
    test = [replace(two, uid=one.uid) for one, two in zip(train, other, strict=True)]
    training._check_training({"train": train[9:], "valid": train[:9], "test": test}, vlm.count_token_ids)
    hidden = [replace(sample, uid=f"mine/{place}", sha256="") for place, sample in enumerate(train)]
    with pytest.raises(ValueError, match="'train' and 'test' share 18 samples, the first is 'mine/9'"):
        training._check_training({"train": train[9:], "valid": train[:9], "test": hidden}, vlm.count_token_ids)


class Deaf:
    "A model that must not be asked."

    def __init__(self, vlm):
        self.name, self.hooks, self.count_token_ids = vlm.name, vlm.hooks, getattr(vlm, "count_token_ids", None)


def test_what_cannot_be_trained_is_refused_before_anything_is_read(vlm, taught, sets):
    balanced = generate("balanced", limit=27)
    train, valid = balanced[:18], balanced[18:]
    given = {"test": sets["transfer"], "valid": valid}
    ten, unknown = replace(train[0], target=10), replace(train[0], target=None)
    for samples, more, found in (
        ([*train, replace(ten, uid="ten")], {}, "The count 10 takes 2 tokens.*Leave out the samples whose count is 10"),
        (train, {"valid": [ten]}, "The count 10 takes 2 tokens"),
        (
            [replace(sample, target=3) for sample in train],
            {},
            "All 18 samples to train on have the count 3. Expected two",
        ),
        (train, {"test": balanced}, "'train' and 'test' share 18 samples, the first is 'balanced/.*leave those out"),
        (train, {"test": valid[:2]}, "'valid' and 'test' share 2 samples"),
        (train, {"valid": train[:1]}, "'train' and 'valid' share 1 samples"),
        (train, {"transfer": train[:4]}, "'train' and 'transfer' share 4 samples"),
        (train, {"held_out": train[:4]}, "'train' and 'held-out' share 4 samples"),
        ([*train, replace(unknown, uid="u")], {}, "In 'train' found 1 samples without a target, the first is 'u'"),
        (train, {"test": []}, "In 'test' found no samples. Expected samples whose true count is known"),
        (train, {"test": None}, "samples to choose the epoch on .valid. and none to test on. Pass test="),
        ([*train, train[0]], {}, "Two samples have the uid"),
        (train[:5], {"valid": None, "test": None}, "Found 5 samples to train on, which cannot be split"),
        (train, {"reload": print}, "reload reads a head from a file, and without path"),
    ):
        with pytest.raises(ValueError, match=found):
            train_head(Deaf(vlm), samples, **given | more)
    with pytest.raises(ValueError, match="'tiny-clip' writes no words and has no output layer.*Expected a generative"):
        train_head(Deaf(load_model("tiny-clip", device="cpu")), train, **given)


@pytest.mark.slow
def test_one_model_is_held_at_a_time(taught, sets, tmp_path):
    "A command loads three, one after the other: with 7 B parameters each, two at once are 30 GB."
    made, loads = [], []

    def load(head=None):
        assert all(one() is None for one in made), "the model before is still held"
        vlm = load_model("tiny-qwen2-vl", device="cpu", head=head)
        made[:] = [weakref.ref(vlm.model)]
        loads.append(head and head.name)
        return vlm

    fit, freed = training.fit_head, []

    def fitting(*arguments, **named):
        freed.append(made[0]() is None)
        return fit(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "fit_head", fitting)
        done = train_head(  # as the command calls it: `**named` would hold the model
            load(), taught, sets["test"], config=QUICK, path=tmp_path, reload=load, progress=False
        )
    assert loads == [None, "own.safetensors", "trained.safetensors"] and freed == [True] and made[0]() is None
    assert {row.model for row in done.predictions} == {"tiny-qwen2-vl+head"}


def test_four_copies_of_a_head_are_trained_on_the_device():
    "Weights, gradient and two moments; the head that it began with and the best epoch's stay in host memory."
    head, train, valid = make()
    training = _begin_training(head, range(3, 13), HeadConfig(), "meta")
    assert {tensor.device.type for tensor in training.tensors.values()} == {"meta"}
    assert {tensor.device.type for tensor in training.best.values()} == {"cpu"}
    assert training.head.weight.numel() == 0 and training.reference is None
    kept = _begin_training(head, range(3, 13), HeadConfig(trainable="counts"), "meta")
    assert kept.head.weight.shape == head.weight.shape and kept.tensors["rows"].shape[0] == 10
