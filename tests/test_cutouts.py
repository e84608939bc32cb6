"Guards of `cutouts`: counts, boxes and areas are what the pixels say; settings that cannot be are refused."

import io
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from vlm_counting import cutouts as room
from vlm_counting.core import read_jsonl
from vlm_counting.datasets import load_dataset
from vlm_counting.stimuli import FAMILIES, Plan, Scene, generate


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_COUNTING_DATA", str(tmp_path / "cache"))


def pixels(file) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


def bare(factors: dict) -> np.ndarray:
    "The ground alone."
    return room.ground(factors["background"], factors["image_size"], factors["layout"])


def check(sample) -> None:
    "Everything that the manifest says of an image, from its pixels."
    factors, image = sample.factors, pixels(sample.image)
    number, all_things = sample.target, sample.target + factors["distractors"]
    assert len(factors["things"]) == all_things and len(factors["boxes"]) == len(factors["areas"]) == number
    painted = (image != bare(factors)).any(axis=2)
    stages = [room.paint(factors, room.shipped_cutouts(), count) for count in range(all_things + 1)]
    shown = np.zeros(painted.shape, dtype=int)
    for count, (before, after) in enumerate(pairwise(stages), start=1):
        shown[(before != after).any(axis=2)] = count
    assert np.array_equal(stages[-1], image) and np.array_equal(shown > 0, painted)
    areas = np.bincount(shown.ravel(), minlength=all_things + 1)[1:]
    assert areas[:number].tolist() == factors["areas"] and (areas > 0).all()
    assert sum(factors["areas"]) == factors["object_area"]
    for found, (left, top, width, height) in zip(ndimage.find_objects(shown), factors["boxes"], strict=False):
        assert (found[0].start, found[1].start) == (top, left)
        assert (found[0].stop - top, found[1].stop - left) == (height, width)
    if not factors["overlap"]:  # counted without knowing where they are: each is one piece, its holes filled
        pieces, found = ndimage.label(ndimage.binary_fill_holes(painted), np.ones((3, 3)))
        large = np.bincount(pieces.ravel())[1:] > 0.05 * min(factors["areas"])
        assert large.sum() == all_things, sample.uid
    kinds = [thing[0] for thing in factors["things"]]
    assert kinds.count(factors["entity"]) == number and set(kinds[:number]) == {factors["entity"]}


def test_fifty_images_are_what_they_say(tmp_path):
    samples = generate("cutouts", tmp_path / "set", counts=(1, 4, 9), image_size=224, limit=50, workers=1)
    assert {sample.factors["condition"] for sample in samples} == set(room.CONDITIONS)
    for sample in samples:
        check(sample)
    again = generate("cutouts", tmp_path / "again", counts=(1, 4, 9), image_size=224, limit=50, workers=1)
    assert [sample.sha256 for sample in again] == [sample.sha256 for sample in samples]


@pytest.mark.slow
def test_a_thousand_images_are_what_they_say(tmp_path):
    samples = generate("cutouts", tmp_path / "set", image_size=448, limit=1000, seed=3)
    drawn = {str([s.factors[name] for name in ("background", "things", "layout")]) for s in samples}
    assert len({sample.sha256 for sample in samples}) == len(drawn) > 950  # one alone is neither near nor far
    for sample in samples:
        check(sample)


def test_one_thing_changes_at_a_time():
    rows = list(FAMILIES["cutouts"](Plan("cutouts", counts=(5,), image_size=336)))
    one = {row.factors["condition"]: row.factors for row in rows if (row.factors["layout"], row.factors["entity"]) == (2, "presents")}  # fmt: skip  # noqa: E501
    base = one["base"]
    for ground in ("textured", "photographic"):
        assert one[ground]["things"] == base["things"] and one[ground]["background"] == ground
    assert one["cluttered"]["things"][:5] == base["things"] and one["cluttered"]["distractor"] == "flowers"
    assert one["large"]["side"] > base["side"] > one["small"]["side"]
    spread = {name: np.ptp([box[:2] for box in one[name]["boxes"]], axis=0).sum() for name in ("base", "close")}
    assert spread["close"] < 0.8 * spread["base"]
    assert len({thing[3] for thing in one["turned"]["things"]}) > 1 and {thing[3] for thing in base["things"]} == {0}


def test_areas_are_matched_and_overlaps_are_kept():
    whole = {}
    for row in FAMILIES["cutouts"](Plan("cutouts", counts=(2, 5, 9), image_size=448)):
        factors = row.factors
        if factors["condition"] == "area matched":
            whole.setdefault(factors["entity"], []).append(factors["object_area"])
        if factors["condition"] == "overlapping":
            looks = [room.shipped_cutouts().look(*thing[:4]) for thing in factors["things"]]
            own = [np.count_nonzero(look[..., 3]) for look in looks]
            hidden = [1 - seen / area for seen, area in zip(factors["areas"], own, strict=False)]
            assert max(hidden) <= 0.35 and sum(share > 0 for share in hidden) >= row.target // 4
    for areas in whole.values():
        assert np.ptp(areas) < 0.06 * np.mean(areas)


def test_half_of_each_hidden_object_is_to_be_seen(tmp_path):
    for sample in generate("occluded", tmp_path, entities="cyan_squares", limit=45, workers=1):
        image, factors = pixels(sample.image), sample.factors
        grey = (image == 128).all(axis=2)
        whole = np.asarray(Scene.from_factors(factors).render())
        assert grey.all(axis=0).sum() == 37 and np.array_equal(image[~grey], whole[~grey])
        cell, hidden = 74, 0
        for row, column in factors["positions"]:
            box = np.s_[3 + row * cell : 3 + row * cell + cell, 3 + column * cell : 3 + column * cell + cell]
            before, after = (whole[box].any(axis=2).sum(), (image[box].any(axis=2) & ~grey[box]).sum())
            assert after in (before, before // 2)
            hidden += after < before
        assert hidden == factors["hidden"] and len(factors["positions"]) == sample.target


def test_many_are_counted_from_pixels(tmp_path):
    for name, cells in (("large_30", 12), ("large_50", 16)):
        for sample in generate(name, tmp_path / name, limit=20, form="open", workers=1):
            assert Scene.from_image(sample.image, cells).count(sample.factors["entity"]) == sample.target
    assert {row.target for row in FAMILIES["large_50"](Plan("large_50"))} == set(range(5, 51, 5))


def test_cutouts_of_ones_own(tmp_path):
    look = room.shipped_cutouts().look("flowers", 0, 60, 0)
    for name in ("apples/1.png", "apples/2.png", "red_pears.png"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(look).save(tmp_path / "mine" / name)
    how = {"counts": (2, 6), "layouts": 3, "image_size": 224, "clutter": 2, "background": "textured", "turned": True}
    made = room.make_cutouts(tmp_path / "mine", tmp_path / "set", **how)
    read = load_dataset(tmp_path / "set")
    assert [s.sha256 for s in read] == [s.sha256 for s in made] and len(read) == 2 * 2 * 3
    assert {s.question for s in read} == {"How many apples are there?", "How many red pears are there?"}
    assert [s.sha256 for s in room.make_cutouts(tmp_path / "mine", tmp_path / "twice", **how)] == [
        s.sha256 for s in made
    ]
    rows = read_jsonl(tmp_path / "set" / "manifest.jsonl")
    assert rows[0]["image"] == "images/0.png"
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        room.make_cutouts(tmp_path / "mine", tmp_path / "set", counts=(2,))
    assert load_dataset(tmp_path / "set") == read
    fewer = room.make_cutouts(tmp_path / "mine", tmp_path / "set", counts=(2,), layouts=1, overwrite=True)
    left = {path.name for path in (tmp_path / "set" / "images").iterdir()}
    assert left == {row.image.name for row in fewer} and len(left) == 2, "no image of the earlier set is left"
    (tmp_path / "set" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="notes.txt"):
        room.make_cutouts(tmp_path / "mine", tmp_path / "set", counts=(2,), overwrite=True)
    assert (tmp_path / "set" / "notes.txt").read_text() == "mine"


def test_a_set_of_cutouts_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    Image.fromarray(room.shipped_cutouts().look("presents", 0, 40, 0)).save(tmp_path / "mine" / "boxes.png")
    how = {"counts": (2,), "image_size": 224}
    made = room.make_cutouts(tmp_path / "mine", tmp_path / "set", layouts=2, **how)
    painted, paint = [], room.paint
    monkeypatch.setattr(room, "paint", lambda *given: painted.append(1) or (1 / (3 - len(painted)) and paint(*given)))
    with pytest.raises(ZeroDivisionError):
        room.make_cutouts(tmp_path / "mine", tmp_path / "set", layouts=4, overwrite=True, **how)
    assert len(painted) == 3 and load_dataset(tmp_path / "set") == made
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"side": 0.5, "counts": (9,)}, "Found no room for 9 things"),
        ({"side": 1.5}, "side is 1.5, expected a share"),
        ({"gap": -1}, "gap is -1, expected a share"),
        ({"overlap": 0.9}, "overlap is 0.9"),
        ({"background": "beach"}, "No background named 'beach'"),
        ({"clutter": 3}, "clutter=3 needs things of another kind"),
        ({"clutter": -1}, "clutter is -1"),
        ({"colour": "red"}, "No setting named 'colour'"),
        ({"counts": (0,)}, "expected whole numbers of at least 1"),
        ({"layouts": 0}, "layouts is 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, setting, message):
    (tmp_path / "mine").mkdir()
    Image.fromarray(room.shipped_cutouts().look("presents", 0, 40, 0)).save(tmp_path / "mine" / "boxes.png")
    with pytest.raises(ValueError, match=message):
        room.make_cutouts(tmp_path / "mine", tmp_path / "set", **setting)
    assert not list((tmp_path / "set").rglob("*.png"))


def test_what_is_no_cutout_is_refused(tmp_path):
    for name, shade in (("full", 255), ("empty", 0)):
        (tmp_path / name).mkdir()
        Image.new("RGBA", (9, 9), (9, 9, 9, shade)).save(tmp_path / name / "apples.png")
        with pytest.raises(ValueError, match="apples.png has .* transparent pixel"):
            room.read_cutouts(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="There is no PNG"):
        room.read_cutouts(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="'cutouts' counts presents, flowers, not red stars"):
        generate("cutouts", tmp_path / "set", entities="red_stars")


def test_files_are_whole_and_read_by_anybody():
    made = (np.random.default_rng(0).random((31, 47, 3)) * 256).astype(np.uint8)
    assert np.array_equal(pixels(io.BytesIO(room.png_of(made))), made)
