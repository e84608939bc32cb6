"The contrastive twins: what is in their folders, that they count by choosing captions, and how they were raised."

import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest

from vlm_counting import pairing, raising
from vlm_counting.core import file_hash, load_image
from vlm_counting.models import load_model, twins_dir

NAMES = tuple(pairing.BODIES)
FOLDERS = {name: twins_dir() / name for name in NAMES}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    "A folder for the rendered pictures of this module."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_COUNTING_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def balanced(name, pictures):
    return pairing.examine_pair(name, FOLDERS[name], "balanced", 108, seed=11)


def accuracy(predictions):
    return float(np.mean([prediction.count == prediction.target for prediction in predictions]))


def test_both_twins_are_there():
    assert set(NAMES) == {"tiny-clip", "tiny-coca"}


def test_folder_is_small_and_holds_no_pickle(name):
    files = list(FOLDERS[name].iterdir())
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    assert sum(path.stat().st_size for path in files) < 6e6


def test_record_speaks_of_these_weights(name):
    record = pairing.read_pair_training(FOLDERS[name])
    assert record["name"] == name and record["cpu_seconds"] < 15 * 60
    assert record["upbringing"] == json.loads(json.dumps(asdict(pairing.pair_upbringing(name))))
    steps = sum(lesson.steps for lesson in pairing.PAIR_LESSONS)
    assert record["curve"][-1]["step"] == steps and {row["stage"] for row in record["curve"]} == {"seeing", "answering"}


def test_recorded_exam_is_human_like(name):
    record = pairing.read_pair_training(FOLDERS[name])
    exam = {row["family"]: row for row in record["exam"]}
    assert set(exam) == set(raising.EXAM) and record["swap"][0]["pictures"] >= 300
    assert 0.3 <= exam["balanced"]["accuracy"] < 0.95
    for family, drop in (("balanced", 0.05), ("two_groups", 0.3)):
        assert exam[family]["1"] > np.mean([exam[family][n] for n in "789"]) + drop


def test_counts_fresh_pictures_above_chance(balanced):
    assert len(balanced) == 108 and accuracy(balanced) >= 0.3
    few, many = ([row for row in balanced if low <= row.target <= high] for low, high in ((1, 1), (7, 9)))
    assert accuracy(few) > accuracy(many)


def test_answers_are_offered_counts(balanced):
    assert all(row.count in row.factors["options"] and f" {row.count} " in row.text for row in balanced)


def test_ranker_gives_the_same_answers(name, balanced, pictures):
    "`load_model` and the library's own classes choose the same captions."
    vlm = load_model(name)
    samples = raising.generate("balanced", seed=11, limit=108)
    answers = [answer for start in range(0, 108, 27) for answer in vlm.answer(samples[start : start + 27])]
    assert [answer.count for answer in answers] == [row.count for row in balanced]
    assert [answer.text for answer in answers] == [row.text for row in balanced]


def test_reads_the_caption(name, pictures):
    rows = pairing.exam_rows(pairing.examine_pair(name, FOLDERS[name], "two_groups", 72, seed=11))
    swap = raising.swap_test(rows)
    assert swap["pictures"] == 36 and swap["same_answer"] < 0.75
    assert raising.swap_test(rows, most=5)["both_right"] > 0.2


@pytest.mark.parametrize("short", NAMES)
def test_short_cuts_lead_to_the_library(short, pictures):
    "The body in two parts and the cut captions, with the shipped weights, against the library's own classes."
    import torch

    pair = pairing.enrol_pair(short)
    weights = read_weights(FOLDERS[short])
    pair.model.load_state_dict(weights, strict=False)
    samples = raising.generate("two_groups", seed=3, limit=8)
    images = [load_image(sample.image) for sample in samples]
    look, read = pair.body.load(FOLDERS[short])
    with torch.no_grad():
        split = pair.body.gather(pair.model, pair.body.see(pair.model, pair.body.preprocess(images)))[0]
        captions = pair.body.read(pair.model, pair.captions)[0]
        for ours, theirs in ((split, look(images)), (captions, read(pairing.all_captions()))):
            ours, theirs = (vectors / vectors.norm(dim=-1, keepdim=True) for vectors in (ours, theirs))
            assert (ours - theirs).abs().max() < 1e-4


def read_weights(folder):
    from safetensors.torch import load_file

    return load_file(pairing.weights_file(folder))


def test_coca_writes_captions(pictures):
    "Greedy decoding with the library's own forward pass names a kind that is in the picture, mostly."
    import open_clip
    import torch

    folder = f"local-dir:{FOLDERS['tiny-coca']}"
    model, transform = open_clip.create_model_from_pretrained(folder)
    tokenizer = open_clip.get_tokenizer(folder).tokenizer
    samples = raising.generate("balanced", seed=5, limit=18)
    pixels = torch.stack([transform(load_image(sample.image)) for sample in samples])
    words = torch.full((len(samples), 1), tokenizer.bos_token_id)
    with torch.inference_mode():
        for _ in range(9):
            logits = model.eval()(pixels, words, output_labels=False)["logits"]
            words = torch.cat([words, logits[:, -1:].argmax(-1)], 1)
    texts = [text.split("<|endoftext|>")[0].split("<|startoftext|>")[1] for text in tokenizer.batch_decode(words)]
    assert all(text.startswith("a photo of ") for text in texts)
    named = [s.factors["entity"].replace("_", " ") in text for s, text in zip(samples, texts, strict=True)]
    assert np.mean(named) > 0.8


def test_captions_have_numbers_only_where_they_may():
    rng, numbered = np.random.default_rng(0), np.arange(24) % 6 > 0
    counts = rng.integers(0, 10, (500, 24))
    matches = pairing.choose_captions(rng, counts, numbered).reshape(500, 24, 10)
    assert (matches.sum(-1) == (counts > 0)).all() and not matches[:, ~numbered, 1:].any()
    scene, kind, number = matches.nonzero()
    assert ((number == 0) | (number == counts[scene, kind])).all()
    share = (number == 0)[numbered[kind]].mean()
    assert abs(share - pairing.NUMBERLESS) < 0.03
    texts = np.array(pairing.all_captions())[pairing.written_captions(numbered)]
    assert len(texts) == 24 + 9 * 20 and "a photo of red squares" in texts and "a photo of 3 red squares" not in texts


def test_captions_that_nobody_writes_do_not_count():
    import torch

    generator = torch.Generator().manual_seed(0)
    taught = torch.from_numpy(pairing.written_captions(np.arange(24) > 3))
    counts = np.random.default_rng(1).integers(0, 10, (16, 24))
    matches = torch.from_numpy(pairing.choose_captions(np.random.default_rng(2), counts, np.arange(24) > 3))
    scores = torch.randn(matches.shape, generator=generator)
    other = torch.where(taught, scores, torch.randn(matches.shape, generator=generator) + 5)
    assert pairing.pairing_loss(scores, matches, taught)[0] == pairing.pairing_loss(other, matches, taught)[0]
    better = scores + 3 * matches
    assert pairing.pairing_loss(better, matches, taught)[0] < pairing.pairing_loss(scores, matches, taught)[0]


def test_same_upbringing_same_weights(tmp_path):
    upbringing = raising.shorten(pairing.pair_upbringing("tiny-coca"), 0.002)
    folders = [pairing.raise_pair(upbringing, tmp_path / place) for place in ("one", "two")]
    assert len({file_hash(pairing.weights_file(folder)) for folder in folders}) == 1
    with open(pairing.weights_file(folders[1]), "ab") as file:
        file.write(b" ")
    with pytest.raises(ValueError, match="other weights"):
        pairing.read_pair_training(folders[1])


def test_ship_refuses_a_twin_that_does_not_count(tmp_path):
    folder = tmp_path / "twin"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="0 safetensors"):
        pairing.weights_file(folder)
    (folder / "model.safetensors").write_bytes(b"weights")
    record = {"name": "tiny-clip", "weights_sha256": file_hash(folder / "model.safetensors")}
    raising.write_training(folder, record)
    with pytest.raises(ValueError, match="has not sat the exam"):
        pairing.ship_pair(folder, tmp_path / "place")
    raising.write_training(folder, record | {"exam": [{"family": "balanced", "accuracy": 0.2}]})
    with pytest.raises(ValueError, match="20% of 'balanced'"):
        pairing.ship_pair(folder, tmp_path / "place")
    assert not (tmp_path / "place").exists()
    raising.write_training(folder, record | {"exam": [{"family": "balanced", "accuracy": 0.5}]})
    assert (pairing.ship_pair(folder, tmp_path / "place") / "training.json").exists()


def test_importing_the_room_is_light():
    names = "('torch', 'transformers', 'open_clip')"
    code = f"import sys, vlm_counting.pairing; print(any(name in sys.modules for name in {names}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
