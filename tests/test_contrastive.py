"The contrastive tiny models: their folders, that they count by choosing captions, and how they were trained."

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vlm_counting.core import file_hash, load_image
from vlm_counting.models import load_model, twins_dir
from vlm_counting.tiny_training import contrastive, world

NAMES = tuple(
    name for name, architecture in world.ARCHITECTURES.items() if architecture.recipe is contrastive._MATCHING
)
FOLDERS = {name: twins_dir() / name for name in NAMES}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    "A folder for the rendered images of this module."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_COUNTING_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def balanced(name, rendered):
    return world._ask_family(load_model(name), "balanced", 108, seed=11)


def accuracy(rows):
    return float(np.mean([row["count"] == row["target"] for row in rows]))


def test_both_models_are_there():
    assert set(NAMES) == {"tiny-clip", "tiny-coca"}


def test_folder_is_small_and_holds_no_pickle(name):
    files = list(FOLDERS[name].iterdir())
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    assert sum(path.stat().st_size for path in files) < 6e6


def test_record_speaks_of_these_weights(name):
    record = world.read_training(FOLDERS[name])
    assert record["name"] == name and record["cpu_seconds"] < 15 * 60
    assert record["upbringing"] == world._config_record(world.config_for(name))
    steps = sum(stage.steps for stage in contrastive._CONTRASTIVE_STAGES)
    assert record["curve"][-1]["step"] == steps and {row["stage"] for row in record["curve"]} == {"seeing", "answering"}


def test_recorded_test_is_human_like(name):
    record = world.read_training(FOLDERS[name])
    exam = {row["family"]: row for row in record["exam"]}
    assert set(exam) == set(world.TEST_SETS) and record["swap"][0]["pictures"] >= 300
    assert 0.3 <= exam["balanced"]["accuracy"] < 0.95
    for family, drop in (("balanced", 0.05), ("two_groups", 0.3)):
        assert exam[family]["1"] > np.mean([exam[family][n] for n in "789"]) + drop


@pytest.mark.long_after(1)
def test_counts_fresh_images_above_chance(balanced):
    assert len(balanced) == 108 and accuracy(balanced) >= 0.3
    few, many = ([row for row in balanced if low <= row["target"] <= high] for low, high in ((1, 1), (7, 9)))
    assert accuracy(few) > accuracy(many)


def test_answers_are_offered_counts(balanced):
    assert all(row["count"] in range(1, 10) and row["text"] == str(row["count"]) for row in balanced)


def library(name: str, folder: Path) -> tuple:
    "Two functions, images -> vectors and captions -> vectors, by the classes that the library's documentation names."
    return {"tiny-clip": library_clip, "tiny-coca": library_coca}[name](folder)


def library_clip(folder: Path) -> tuple:
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    return (
        lambda images: model.get_image_features(**processor(images=images, return_tensors="pt")).pooler_output,
        lambda texts: model.get_text_features(**processor(text=texts, padding=True, return_tensors="pt")).pooler_output,
    )


def library_coca(folder: Path) -> tuple:
    import open_clip
    import torch

    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    return (
        lambda images: model.encode_image(torch.stack([transform(image) for image in images])),
        lambda texts: model.encode_text(tokenizer(texts)),
    )


@pytest.mark.slow
def test_the_library_chooses_the_same_captions(name, balanced, rendered):
    "`load_model` ranks as the library's own classes do, and the test counts what was chosen."
    import torch
    from torch.nn.functional import normalize

    vlm, (look, read) = load_model(name), library(name, FOLDERS[name])
    samples = world.generate("balanced", seed=11, limit=108)
    answers = [answer for start in range(0, 108, 27) for answer in vlm.answer(samples[start : start + 27])]
    assert [answer.count for answer in answers] == [row["count"] for row in balanced]
    for sample, answer in zip(samples, answers, strict=True):
        things = sample.factors["entity"].replace("_", " ")
        offers = [f"a photo of {count} {things}" for count in sample.factors["options"]]
        with torch.inference_mode():
            cosines = normalize(look([load_image(sample.image)]), dim=-1) @ normalize(read(offers), dim=-1).T
        best = int(cosines.argmax())
        assert (answer.text, answer.count) == (offers[best], sample.factors["options"][best])


def test_reads_the_caption(name, rendered):
    rows = world._ask_family(load_model(name), "two_groups", 72, seed=11)
    swap = world._swap_test(rows)
    assert swap["pictures"] == 36 and swap["same_answer"] < 0.75
    assert world._swap_test(rows, most=5)["both_right"] > 0.2


@pytest.mark.long_after(1)
@pytest.mark.parametrize("short", NAMES)
def test_short_cuts_lead_to_the_library(short, rendered):
    "The tower in two parts and the cut captions, with the shipped weights, against the library's own classes."
    import torch

    trainee = world._build_trainee(short)
    architecture, model = trainee.architecture, trainee.model
    model.load_state_dict(read_weights(FOLDERS[short]), strict=False)
    samples = world.generate("two_groups", seed=3, limit=8)
    images = [load_image(sample.image) for sample in samples]
    look, read = library(short, FOLDERS[short])
    pixels = trainee.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        split = architecture.gather(model, architecture.blocks(model, pixels))[0]
        captions = architecture.read(model, contrastive._tokenise_captions(trainee))[0]
        for ours, theirs in ((split, look(images)), (captions, read(contrastive._all_captions()))):
            ours, theirs = (vectors / vectors.norm(dim=-1, keepdim=True) for vectors in (ours, theirs))
            assert (ours - theirs).abs().max() < 1e-4


def read_weights(folder):
    from safetensors.torch import load_file

    return load_file(world._weights_file(folder))


def test_coca_writes_captions(rendered):
    "Greedy decoding with the library's own forward pass names a kind that is in the image, mostly."
    import open_clip
    import torch

    folder = f"local-dir:{FOLDERS['tiny-coca']}"
    model, transform = open_clip.create_model_from_pretrained(folder)
    tokenizer = open_clip.get_tokenizer(folder).tokenizer
    samples = world.generate("balanced", seed=5, limit=18)
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
    matches = contrastive._choose_captions(rng, counts, numbered).reshape(500, 24, 10)
    assert (matches.sum(-1) == (counts > 0)).all() and not matches[:, ~numbered, 1:].any()
    scene, kind, number = matches.nonzero()
    assert ((number == 0) | (number == counts[scene, kind])).all()
    share = (number == 0)[numbered[kind]].mean()
    assert abs(share - contrastive._NUMBERLESS) < 0.03
    texts = np.array(contrastive._all_captions())[contrastive._written_captions(numbered)]
    assert len(texts) == 24 + 9 * 20 and "a photo of red squares" in texts and "a photo of 3 red squares" not in texts


def test_captions_that_nobody_writes_do_not_count():
    import torch

    generator = torch.Generator().manual_seed(0)
    taught = torch.from_numpy(contrastive._written_captions(np.arange(24) > 3))
    counts = np.random.default_rng(1).integers(0, 10, (16, 24))
    matches = torch.from_numpy(contrastive._choose_captions(np.random.default_rng(2), counts, np.arange(24) > 3))
    scores = torch.randn(matches.shape, generator=generator)
    other = torch.where(taught, scores, torch.randn(matches.shape, generator=generator) + 5)
    assert (
        contrastive._contrastive_loss(scores, matches, taught)[0]
        == contrastive._contrastive_loss(other, matches, taught)[0]
    )
    better = scores + 3 * matches
    assert (
        contrastive._contrastive_loss(better, matches, taught)[0]
        < contrastive._contrastive_loss(scores, matches, taught)[0]
    )


@pytest.mark.slow
def test_same_configuration_same_weights(tmp_path):
    "Also with the tower taken over from itself: the writer's chance goes on as if it had learned to see here."
    config = world.shorten(world.config_for("tiny-coca"), 0.002)
    folders = [world.train_tiny(config, tmp_path / place) for place in ("one", "two")]
    folders.append(world.train_tiny(config, tmp_path / "three", tower=folders[0]))
    assert len({file_hash(world._weights_file(folder)) for folder in folders}) == 1
    assert world.read_training(folders[2])["tower_from"] == "tiny-coca"
    with open(world._weights_file(folders[1]), "ab") as file:
        file.write(b" ")
    with pytest.raises(ValueError, match="other weights"):
        world.read_training(folders[1])


def test_ship_refuses_a_model_that_does_not_count(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="0 safetensors"):
        world._weights_file(folder)
    (folder / "model.safetensors").write_bytes(b"weights")
    record = {"name": "tiny-clip", "weights_sha256": file_hash(folder / "model.safetensors")}
    world._write_training(folder, record)
    with pytest.raises(ValueError, match="has not been tested"):
        world.ship(folder, tmp_path / "place")
    world._write_training(folder, record | {"exam": [{"family": "balanced", "accuracy": 0.2}]})
    with pytest.raises(ValueError, match="20% of 'balanced' right; shipping needs 30%"):
        world.ship(folder, tmp_path / "place")
    assert not (tmp_path / "place").exists()
    world._write_training(folder, record | {"exam": [{"family": "balanced", "accuracy": 0.5}]})
    assert (world.ship(folder, tmp_path / "place") / "training.json").exists()


def test_importing_the_module_is_light():
    names = "('torch', 'transformers', 'open_clip')"
    code = f"import sys, vlm_counting.tiny_training.contrastive; print(any(name in sys.modules for name in {names}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
