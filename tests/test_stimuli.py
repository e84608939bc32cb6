"Guards for the room `stimuli`: the released pixels, the layout rules on the released sets and on ours, files, errors."

import errno
import io
import json
import random
import subprocess
import sys
import tarfile
import time
from collections import Counter
from functools import lru_cache
from hashlib import sha256
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from joblib import Parallel, delayed
from PIL import Image, ImageChops

from vlm_counting import stimuli
from vlm_counting.core import Sample, fingerprint, load_image, read_jsonl
from vlm_counting.stimuli import (
    ENTITIES,
    FAMILIES,
    SHAPES,
    Entity,
    Plan,
    Scene,
    _ask,
    _compactness,
    _hull_area,
    _shape_mask,
    candidate_lists,
    contact_sheet,
    draw_scene,
    encode_png,
    generate,
    render,
)

SHARED = Path(__file__).resolve().parents[2] / "shared"
ARCHIVES = ("clustered", "distractors_1_small_red_star")
needs_shared = pytest.mark.skipif(not (SHARED / "reference").is_dir(), reason="the released files are not here")
DISTRACTORS = [name for name in FAMILIES if name.startswith("distractors_")]
MASKS = {  # sha256 of the ten released masks, one byte a pixel, row by row
    "square 74": "7babe4d2291c0af48c6f636e7058247be9cbf663e74e70328f2ace7384e2f86a",
    "square 37": "59a68d68a15ba0e6f5600f98ea1487c7fc1b0d7bb4ec65dc565d4f916feb3083",
    "circle 74": "f95c035a655bae2078a386dd30f367fffde1a380404d84fd74a087a2a43057a6",
    "circle 37": "a750f927f507f4463f31f40bf61fe81dad5e34d9538cab2a35b47a8311c1252b",
    "triangle 74": "ef66aa5ffa49e258013ccbc958222c958eed1983d3e056bb5377908187de76e5",
    "triangle 37": "43d655b4aa85261550727c3d0954ac7bede4b50a22464ee431169ef7951d2cd4",
    "star 74": "256791480fcff42b199fa8e641feea8a22f83f5cc4120294d5540306705c5075",
    "star 37": "ed1bac42924a9aab976f0edd36e69b5cce30fff4aef22a408b9e0387b94c5764",
    "plus 74": "f795945b18b80fc4931d08c4333a1e7fe66d4a4dec86dccecd92be7767751bb0",
    "plus 37": "509bdbd96858d498f22ddda15745be8023015a170343192da90f61c626a36cbd",
}


@lru_cache
def planned(family: str, seed: int = 0) -> list:
    return list(FAMILIES[family](Plan(family, seed)))


def cells(row) -> frozenset:
    return frozenset(map(tuple, row.factors["positions"]))


def by_count(rows) -> dict[int, list]:
    "count -> places of the asked objects, in order of the layouts; the same for every entity, or this fails."
    found = {}
    for row in rows:
        found.setdefault(row.factors["entity"], {}).setdefault(row.target, []).append(cells(row))
    first, *others = found.values()
    assert all(other == first for other in others)
    return first


# --- The layout rules. The same functions judge the released sets and ours. ---


def check_nested(layouts: dict[int, list[frozenset]]) -> None:
    assert all(len(group) == 81 for group in layouts.values())
    for count, group in layouts.items():
        for i, places in enumerate(group):
            assert len(places) == count and divmod(i, 9) in places
            assert count + 1 not in layouts or places < layouts[count + 1][i]


def check_clustered(layouts: dict[int, list[frozenset]]) -> None:
    assert list(layouts) == list(range(2, 10)) and all(len(group) == 49 for group in layouts.values())
    for count, group in layouts.items():
        around = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if row or column]
        best = min(_compactness([(0, 0), *others]) for others in combinations(around, count - 1))
        for k, places in enumerate(group):
            row, column = 1 + k % 7, 1 + k // 7
            assert len(places) == count and (row, column) in places
            assert all(max(abs(r - row), abs(c - column)) <= 1 for r, c in places)
            assert _compactness(places) == pytest.approx(best)


def check_scattered(layouts: dict[int, list[frozenset]]) -> None:
    assert list(layouts) == list(range(2, 10))
    for count, group in layouts.items():
        assert len(set(group)) == len(group) == 49 and {len(places) for places in group} == {count}
        assert all(abs(a[0] - b[0]) + abs(a[1] - b[1]) >= 3 for places in group for a, b in combinations(places, 2))


def check_distractors(targets: dict[int, list[frozenset]], others: dict[int, list[frozenset]], number: int) -> None:
    "243 = 81 layouts x 3 variants; index 3 i + v."
    for variant in range(3):
        check_nested({count: group[variant::3] for count, group in targets.items()})
    for count in range(1, 10):
        assert len(targets[count]) == 243 and others[count] == others[9]
        assert all(len(set(targets[count][i : i + 3])) == 1 for i in range(0, 243, 3))
    for i in range(243):
        assert len(others[9][i]) == number and not others[9][i] & targets[9][i]
    assert all(len(set(others[9][i : i + 3])) == 3 for i in range(0, 243, 3))


def check_candidates(lists: list[tuple], counts: range, distinct: int) -> None:
    assert all(sorted(options) == list(counts) for options in lists) and len(set(lists)) == distinct


# --- The released pictures ---


def read_back(name: str, png: bytes) -> tuple[int, Scene]:
    "The scene in a released picture, which drawn again must give every pixel back."
    picture = Image.open(io.BytesIO(png))
    scene = Scene.from_image(picture)
    assert ImageChops.difference(render(scene), picture).getbbox() is None and picture.mode == "RGB", name
    return int(Path(name).stem), scene


@lru_cache
def released(name: str) -> tuple[dict[str, bytes], list[str], list[int]]:
    "Pictures, questions and counts of a released archive, in order of their ids."
    with tarfile.open(SHARED / "reference/archives" / f"{name}.tar.gz") as archive:
        files = {Path(member.name).name: archive.extractfile(member).read() for member in archive if member.isfile()}
    asked, told = (json.loads(files[f"{kind}.json"]) for kind in ("questions", "answers"))
    (entity,) = {kind for question in asked.values() for kind in question}
    questions = [asked[str(i)][entity]["count_closed"] for i in range(len(asked))]
    counts = [told[str(i)][entity]["count_closed"] for i in range(len(asked))]
    return {path: data for path, data in files.items() if path.endswith(".png")}, questions, counts


@lru_cache
def released_scenes(name: str, every: int = 1) -> dict[int, Scene]:
    "Id -> the scene in the picture; of every so many pictures one, which touches every count and variant."
    pictures = released(name)[0]
    chosen = [(f"{i}.png", pictures[f"{i}.png"]) for i in range(0, len(pictures), every)]
    return dict(Parallel(n_jobs=2 if every == 1 else 1)(delayed(read_back)(*picture) for picture in chosen))


def released_places(name: str, entity: Entity) -> dict[int, list[frozenset]]:
    found = {}
    for number, scene in released_scenes(name).items():
        places = frozenset((item.row, item.column) for item in scene.objects if item.entity == entity)
        found.setdefault(released(name)[2][number], []).append(places)
    return found


@needs_shared
@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name, number", zip(ARCHIVES, (392, 2187), strict=True))
def test_every_released_picture_comes_back_pixel_for_pixel(name, number, every):
    scenes, counts = released_scenes(name, every), released(name)[2]
    assert len(released(name)[0]) == len(counts) == number and counts == sorted(counts)
    assert list(scenes) == list(range(0, number, every)) and {counts[i] for i in scenes} == set(counts)
    asked = Entity("red", "triangle") if name == "clustered" else Entity("magenta", "circle")
    assert [sum(item.entity == asked for item in scenes[i].objects) for i in scenes] == [counts[i] for i in scenes]
    others = {item.entity for scene in scenes.values() for item in scene.objects} - {asked}
    assert others == (set() if name == "clustered" else {Entity("red", "star", "small")})


@needs_shared
@pytest.mark.slow
def test_the_released_sets_obey_the_rules_that_ours_are_held_to():
    check_clustered(released_places("clustered", Entity("red", "triangle")))
    targets = released_places("distractors_1_small_red_star", Entity("magenta", "circle"))
    others = released_places("distractors_1_small_red_star", Entity("red", "star", "small"))
    check_distractors(targets, others, 1)


@needs_shared
@pytest.mark.parametrize("name", ARCHIVES)
def test_questions_are_worded_as_released(name):
    _, questions, counts = released(name)
    lists = []
    for question in questions:
        options = question.split("[")[1].split("]")[0].split(", ")
        lists.append(tuple(map(int, options)))
        colour, shape = ("red", "triangle") if name == "clustered" else ("magenta", "circle")
        factors = {"colour": colour, "shape": shape, "options": lists[-1]}
        assert _ask(factors) == question
        assert _ask(factors, "open") == question.split(" Choose from")[0]
    check_candidates(lists, range(min(counts), 10), len(questions))
    ours = planned(name)
    first = [row for row in ours if row.factors["entity"] == ours[0].factors["entity"]]
    assert [row.target for row in first] == counts  # the same order of counts


@needs_shared
def test_masks_are_the_released_ones():
    masks = np.load(SHARED / "reference/masks.npz")
    assert len(masks) == 10
    for name, mask in masks.items():
        assert np.array_equal(_shape_mask(name.split("_")[0], len(mask)), mask), name


def test_masks_keep_their_digests():
    found = {
        f"{shape} {side}": sha256(_shape_mask(shape, side).tobytes()).hexdigest()
        for shape in SHAPES
        for side in (74, 37)
    }
    assert found == MASKS


# --- Our families ---


def test_sizes_are_those_of_the_paper():
    sizes = {
        name: len(planned(name)) for name in ("balanced", "unseen_combinations", "clustered", "scattered", *DISTRACTORS)
    }
    assert sizes["balanced"] == 17496 and sizes["unseen_combinations"] == 7290
    assert sizes["clustered"] == sizes["scattered"] == 9408
    assert len(DISTRACTORS) == 12 and {sizes[name] for name in DISTRACTORS} == {2187}


@pytest.mark.parametrize("family, number", [("balanced", 81), ("clustered", 49), ("scattered", 49)])
def test_order_is_entity_count_layout(family, number):
    names = [f"{c}_{s}" for s in ("squares", "circles", "triangles", "stars")
             for c in ("red", "green", "blue", "magenta", "yellow", "cyan")]  # fmt: skip
    counts = range(1 if family == "balanced" else 2, 10)
    expected = [(name, count, layout) for name in names for count in counts for layout in range(number)]
    rows = planned(family)
    assert [(row.factors["entity"], row.target, row.factors["layout"]) for row in rows] == expected
    assert [row.index for row in rows] == [row.image for row in rows] == list(range(len(rows)))


def test_red_triangles_of_clustered_stand_where_the_archive_says():
    rows = [row for row in planned("clustered") if row.factors["entity"] == "red_triangles"]
    assert (rows[0].index, rows[-1].index) == (4704, 5095)


@pytest.mark.long
def test_nested_families():
    for family in ("balanced", "unseen_combinations", "area_matched", "size_varied"):
        check_nested(by_count(planned(family)))
    assert (
        by_count(planned("balanced")) == by_count(planned("unseen_combinations")) == by_count(planned("area_matched"))
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_clustered_and_scattered(seed):
    check_clustered(by_count(planned("clustered", seed)))
    check_scattered(by_count(planned("scattered", seed)))


@pytest.mark.parametrize("family", DISTRACTORS)
def test_distractor_sets(family):
    _, number, kind = family.split("_", 2)
    rows = planned(family)
    others = {}
    for i, row in enumerate(rows):
        factors = row.factors
        assert (factors["entity"], factors["size"]) == ("magenta_circles", "large")
        assert (factors["distractors"], factors["distractor"], factors["variant"]) == (int(number), kind, i % 3)
        assert factors["layout"] == i % 243 // 3
        others.setdefault(row.target, []).append(frozenset(map(tuple, factors["distractor_positions"])))
    targets = by_count(rows)
    check_distractors(targets, others, int(number))
    balanced = by_count(planned("balanced"))
    assert all(targets[count][::3] == balanced[count] for count in balanced)  # the layouts of `balanced`


def test_more_distractors_add_to_fewer():
    for kind in ("small_red_star", "large_red_circle"):
        sets = [planned(f"distractors_{number}_{kind}") for number in (1, 5, 9)]
        for one, five, nine in zip(*sets, strict=True):
            few, some, many = (row.factors["distractor_positions"] for row in (one, five, nine))
            assert few == some[:1] and some == many[:5]


def test_candidate_lists_are_shared_as_released():
    def lists(family):
        found = {}
        for row in planned(family):
            found.setdefault(row.factors["entity"], []).append(tuple(row.factors["options"]))
        first, *others = found.values()
        assert all(other == first for other in others)
        return first

    assert lists("clustered") == lists("scattered")
    assert all(lists(family) == lists(DISTRACTORS[0]) for family in DISTRACTORS)
    check_candidates(lists("clustered"), range(2, 10), 392)
    check_candidates(lists(DISTRACTORS[0]), range(1, 10), 2187)
    check_candidates(lists("balanced"), range(1, 10), 729)


def test_more_pictures_than_orders_use_each_equally():
    lists = candidate_lists([1, 2, 3], 15, Plan("x").random("x"))
    used = Counter(map(tuple, lists))
    assert len(lists) == 15 and len(used) == 6 and set(used.values()) == {2, 3}
    assert lists != sorted(lists)


def test_unseen_combinations_split():
    rows = planned("unseen_combinations")
    entities = list(dict.fromkeys(row.factors["entity"] for row in rows))
    assert entities == ["white_squares", "white_circles", "white_triangles", "white_stars",
                        *(f"{c}_plusses" for c in ("red", "green", "blue", "magenta", "yellow", "cyan"))]  # fmt: skip
    assert Counter(row.factors["split"] for row in rows) == {"train": 4860, "valid": 2430}
    valid = {}
    for row in rows:
        block = valid.setdefault(row.factors["entity"], {}).setdefault(row.target, [])
        block += [row.factors["layout"]] * (row.factors["split"] == "valid")
    assert all(len(block) == 27 and block == blocks[1] for blocks in valid.values() for block in blocks.values())
    assert len({tuple(blocks[1]) for blocks in valid.values()}) == 10


@pytest.mark.long
def test_two_groups_ask_both_kinds_of_one_picture():
    rows = planned("two_groups")
    assert Counter(row.factors["relation"] for row in rows) == {
        kind: len(rows) // 3 for kind in ("colour", "shape", "nothing")
    }
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        a, b = first.factors, second.factors
        assert first.image == second.image and a["pair"] == b["pair"] and first.target != second.target
        assert a["others"] == [{"entity": b["entity"], "count": second.target, "positions": b["positions"]}]
        assert b["others"] == [{"entity": a["entity"], "count": first.target, "positions": a["positions"]}]
        shared = {"colour": a["colour"] == b["colour"], "shape": a["shape"] == b["shape"]}
        assert shared == {kind: kind == a["relation"] for kind in shared}
        assert Scene.from_factors(a) == Scene.from_factors(b)
    assert Counter(row.target for row in rows) == dict.fromkeys(range(1, 10), len(rows) // 9)


def test_area_matched_lights_the_same_area_for_every_count():
    areas = {}
    for row in planned("area_matched")[::7]:
        areas.setdefault(row.factors["shape"], []).append(Scene.from_factors(row.factors).object_area())
        assert max(row.factors["sizes"]) - min(row.factors["sizes"]) <= 4
    for shape, found in areas.items():
        one = _shape_mask(shape, 74).sum()
        assert max(abs(area / one - 1) for area in found) < 0.01, shape
    rows = FAMILIES["area_matched"](Plan("area_matched", image_size=224))
    areas = [(row.factors["shape"], Scene.from_factors(row.factors).object_area()) for row in list(rows)[::81]]
    assert all(abs(area / _shape_mask(shape, 24).sum() - 1) < 0.02 for shape, area in areas)


def test_object_area_is_counted_in_the_image():
    for family in ("balanced", "size_varied", "free", "distractors_5_large_red_star"):
        scene = Scene.from_factors(planned(family)[1234].factors)
        assert scene.object_area() == np.asarray(render(scene)).any(axis=2).sum()


def test_hull_matched_keeps_its_hull():
    layouts = by_count(planned("hull_matched"))
    assert list(layouts) == list(range(3, 10))
    for i in range(81):
        areas = {_hull_area(group[i]) for group in layouts.values()}
        assert len(areas) == 1 and 16 <= areas.pop() <= 32
        assert all(layouts[n][i] < layouts[n + 1][i] for n in range(3, 9))
    assert _hull_area([(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]) == 4 and _hull_area([(0, 0), (1, 1), (2, 2)]) == 0


def test_free_scenes_have_no_grid_and_no_overlap():
    rows = planned("free")
    assert any(place % 1 for place in np.ravel(rows[-1].factors["positions"]))
    for row in rows[:729:8]:
        scene = Scene.from_factors(row.factors)  # refuses an overlap
        assert scene.object_area() == row.target * 4096 == np.asarray(render(scene)).any(axis=2).sum()


def test_size_varied_keeps_the_size_of_a_nested_object():
    rows = planned("size_varied")
    sizes = {(row.factors["entity"], row.target, row.factors["layout"]): row.factors["sizes"] for row in rows}
    assert all(found == sizes["red_squares", 9, layout][:count] for (_, count, layout), found in sizes.items())
    every = [size for found in sizes.values() for size in found]
    assert min(every) == 24 and max(every) == 74 and len(set(every)) > 45


def test_planning_is_fast_and_leaves_global_seeds_alone():
    random.seed(1), np.random.seed(1)
    before, legacy = random.getstate(), np.random.get_state()[1].copy()
    start = time.process_time()
    rows = list(FAMILIES["balanced"](Plan("balanced")))
    assert time.process_time() - start < 2 and len(rows) == 17496
    assert random.getstate() == before and (np.random.get_state()[1] == legacy).all()


@pytest.mark.long_after(1)
@pytest.mark.parametrize("grid, size", [(7, 224), (10, 500), (12, 672)])
def test_every_rule_holds_on_other_grids_and_sizes(grid, size):
    for family in (name for name in FAMILIES if name not in DISTRACTORS[:-1] and not hasattr(FAMILIES[name], "draw")):
        rows = list(FAMILIES[family](Plan(family, grid=grid, image_size=size, entities=(Entity("magenta", "circle"),))))
        for row in rows[:: len(rows) // 9]:
            scene = Scene.from_factors(row.factors)
            picture = render(scene)
            assert picture.size == (size, size) and scene.count(row.factors["entity"]) == row.target
            if family != "free":
                cells = row.factors["grid"]
                assert np.array_equal(np.asarray(render(Scene.from_image(picture, cells))), np.asarray(picture))


def test_too_small_a_grid_is_refused():
    for family in ("balanced", "distractors_9_large_red_star", "two_groups", "scattered", "clustered", "hull_matched"):
        with pytest.raises(ValueError, match="grid"):
            list(FAMILIES[family](Plan(family, grid=2)))
    with pytest.raises(ValueError, match="those are its distractors"):
        generate("distractors_1_large_red_circle", entities=["red_circles"])


def test_a_family_is_added_in_one_place(tmp_path):
    @FAMILIES.add("corners")
    def corners(plan):
        "A test."
        return stimuli.plan_rows(plan, ENTITIES[:2], {4: [stimuli.Layout(0, [[0, 0], [0, 8], [8, 0], [8, 8]], {})]})

    try:
        samples = generate("corners", tmp_path)
    finally:
        FAMILIES._items.pop("corners")
    assert [sample.uid for sample in samples] == ["corners/0", "corners/1"]
    assert Scene.from_image(samples[0].image) == Scene().add("red_squares", [(0, 0), (0, 8), (8, 0), (8, 8)])


# --- Reading and drawing ---


@pytest.fixture
def scene():
    shapes = [
        Entity(colour, shape, size) for colour in stimuli.COLOURS for shape in SHAPES for size in ("large", "small")
    ]
    return Scene(tuple((entity, *divmod(i, 9)) for i, entity in enumerate(shapes)))


def test_all_seventy_sprites_are_read_back_in_every_format(scene, tmp_path):
    picture = render(scene)
    picture.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(encode_png(*draw_scene(scene)))
    clear = np.asarray(picture.convert("RGBA")).copy()
    clear[~clear[..., :3].any(axis=2)] = (0, 0, 0, 0)  # a transparent ground
    ways = [picture, picture.convert("RGBA"), picture.convert("P", palette=Image.Palette.ADAPTIVE), clear]
    ways += [Image.fromarray(clear), np.asarray(picture), tmp_path / "a.png", str(tmp_path / "b.png")]
    ways += [Sample("a/0", tmp_path / "a.png", "How many?", 1)]
    assert len(scene.objects) == 70 and all(Scene.from_image(way) == scene for way in ways)


def test_a_scene_is_read_as_the_models_see_it(scene, tmp_path):
    "The same picture as a file and in memory, whatever lies under its transparent ground."
    clear = np.asarray(render(scene).convert("RGBA")).copy()
    clear[~clear[..., :3].any(axis=2)] = (255, 255, 255, 0)  # white underneath
    Image.fromarray(clear).save(tmp_path / "white.png")
    assert np.asarray(load_image(tmp_path / "white.png")).any(axis=2).all()  # models see the white
    for way in (clear, Image.fromarray(clear), tmp_path / "white.png"):
        with pytest.raises(ValueError, match="outside the 9 x 9 grid|holds no known object"):
            Scene.from_image(way)


def test_a_sample_or_a_name_will_do(tmp_path):
    sample = generate("distractors_5_small_red_star", tmp_path, limit=1)[0]
    scene = Scene.from_factors(sample.factors)
    assert Scene.from_image(sample) == scene and render(sample).tobytes() == render(scene).tobytes()
    assert Scene((("red_star", 1, 1), ["small_blue_circles", 2, 2])).count("blue_circle") == 1
    for call, error, message in (
        (lambda: render(sample.factors), TypeError, "Found a dict, expected a Scene"),
        (lambda: render(Sample("x", sample.image, "How many?", 1)), KeyError, "no factor 'colour'.*Scene.from_image"),
        (lambda: Scene.from_factors({"colour": "red", "shape": "star"}), KeyError, "no factor 'positions'"),
        (lambda: Scene((("red_star", 1),)), ValueError, "expected .entity or its name, row, column"),
        (lambda: Scene((("red_sta", 1, 1),)), KeyError, "Did you mean 'star'"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_one_entity_or_count_needs_no_list(tmp_path):
    star = [sample.sha256 for sample in generate("balanced", tmp_path / "a", entities=["red_stars"], counts=[3])]
    for i, (entities, counts) in enumerate([("red_stars", 3), (Entity("red", "star"), np.int64(3))]):
        assert [s.sha256 for s in generate("balanced", tmp_path / str(i), entities=entities, counts=counts)] == star


def test_entities_of_any_size_are_placed(tmp_path):
    sizes = [Entity("red", "star", 30), Entity("red", "star", 31), Entity("blue", "star", 30)]
    samples = generate("balanced", tmp_path / "a", entities=sizes, limit=27)
    assert {s.factors["size"] for s in samples} == {30, 31} and len({s.uid for s in samples}) == 27
    assert all(Scene.from_image(s) == Scene.from_factors(s.factors) for s in samples)
    alone = {s.uid: s.factors for s in generate("balanced", tmp_path / "b", entities=sizes[1], counts=None)}
    assert all(alone[s.uid] == s.factors for s in samples if s.factors["size"] == 31)  # the same place in the set
    with pytest.raises(ValueError, match="red stars of 75 pixels are larger than a cell, which has 74"):
        generate("balanced", tmp_path / "c", entities=[Entity("red", "star", 75)])
    for sample in generate("two_groups", tmp_path / "d", entities=["small_red_stars", sizes[2]], limit=8):
        assert Scene.from_image(sample) == Scene.from_factors(sample.factors)


def test_a_scene_comes_back_from_the_factors_of_its_sample(tmp_path):
    for family in ("balanced", "two_groups", "distractors_9_small_red_star", "size_varied", "area_matched"):
        for sample in generate(family, tmp_path / family, limit=6):
            drawn = render(Scene.from_factors(sample.factors))
            assert np.array_equal(np.asarray(drawn), np.asarray(load_image(sample.image)))


def test_what_is_no_scene_is_refused_by_cell():
    picture = render(Scene().add("red_squares", [(2, 3)]))
    grey = Image.new("RGB", (672, 672), (0, 0, 1))
    dot, edge, mixed = (np.asarray(picture).copy() for _ in range(3))
    dot[700 // 74 * 74 - 300, 300] = 255
    edge[0, 0] = 255
    mixed[200, 260] = (0, 255, 0)
    for image, message in (
        (grey, "outside the 9 x 9 grid|holds no known object"),
        (dot, "row .* column .* holds no known object"),
        (edge, "outside the 9 x 9 grid"),
        (mixed, "row 2, column 3 holds no known object"),
        (picture.resize((672, 600)), "expected a square"),
    ):
        with pytest.raises(ValueError, match=message):
            Scene.from_image(image)
    with pytest.raises(ValueError, match="grid is 200"):
        Scene.from_image(picture, grid=200)


@pytest.mark.parametrize("colours", [1, 2, 3, 4, 5, 16, 17, 256])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (64, 61), (20, 300), (5, 2000)])
def test_our_png_is_read_by_pillow(colours, shape):
    generator = np.random.default_rng(colours)
    palette = [tuple(colour) for colour in generator.integers(0, 256, (colours, 3)).tolist()]
    noise = generator.integers(0, colours, shape).astype(np.uint8)
    stripes = np.repeat(noise[:, :1], shape[1], axis=1)
    sparse = np.where(generator.random(shape) < 0.02, noise, 0).astype(np.uint8)
    for pixels in (noise, stripes, sparse, noise * 0):
        with Image.open(io.BytesIO(encode_png(pixels, palette))) as picture:
            assert picture.mode == "P" or colours <= 2
            assert np.array_equal(np.asarray(picture.convert("RGB")), np.array(palette, dtype=np.uint8)[pixels])


def test_bad_entities_and_scenes_are_refused():
    for bad, message in (({"colour": "pink"}, "No colour named 'pink'"), ({"shape": "heart"}, "No shape named 'heart'"),
                         ({"size": 0}, "expected 'large', 'small'")):  # fmt: skip
        with pytest.raises((KeyError, ValueError), match=message):
            Entity(**({"colour": "red", "shape": "star"} | bad))
    with pytest.raises(ValueError, match="rows and columns go from 0 to 8"):
        Scene().add("red_stars", [(0, 9)])
    with pytest.raises(ValueError, match="overlap"):
        Scene().add("red_stars", [(1, 1), (1.9, 1.9)])


# --- Files ---


@pytest.mark.long
def test_same_family_and_seed_same_bytes(tmp_path):
    one, two = (generate("two_groups", tmp_path / name, limit=60, workers=n) for name, n in (("one", 1), ("two", 2)))
    files = [
        sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*") if p.is_file()) for n in ("one", "two")
    ]
    assert files[0] == files[1] and len(files[0]) == 33  # 30 pictures for 60 questions, manifest, set.json, .lock
    assert all((tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes() for path in files[0])
    assert (
        fingerprint(one)
        == fingerprint(two)
        != fingerprint(generate("two_groups", tmp_path / "three", seed=1, limit=60))
    )


@pytest.mark.long
def test_the_bytes_are_the_same_on_every_machine(tmp_path):
    "PNG bytes included: we write the compressed stream ourselves. A change here must raise `stimuli._DRAWING`."
    found = {family: fingerprint(generate(family, tmp_path / family, limit=20))[:16] for family in PINNED}
    assert stimuli._DRAWING == 1 and found == PINNED


PINNED = {  # first digits of the fingerprint of 20 samples
    "balanced": "a0d1c5070c382947",
    "unseen_combinations": "79631db6a3688511",
    "distractors_5_small_red_star": "cbde81c937987001",
    "clustered": "7e678bd77b6bb98f",
    "scattered": "af53e7e3c3c4954d",
    "two_groups": "426fe31eed7547a2",
    "area_matched": "b1842a3752dbdd8a",
    "size_varied": "bb87b6e21f3ecf9a",
    "hull_matched": "bea33a8c5ea23865",
    "free": "5e4dc492e1757679",
}


def test_the_manifest_is_relative_and_complete(tmp_path):
    samples = generate("balanced", tmp_path, limit=18, form="open")
    rows = read_jsonl(tmp_path / "manifest.jsonl", Sample)
    assert [row.uid for row in rows] == [sample.uid for sample in samples] and rows[0].uid.startswith("balanced-open/")
    for row, sample in zip(rows, samples, strict=True):
        assert not row.image.is_absolute() and sample.image == tmp_path / row.image
        assert sha256(sample.image.read_bytes()).hexdigest() == row.sha256 == sample.sha256
        assert row.factors == sample.factors and row.factors["form"] == "open" and "Choose" not in row.question
    assert Counter(sample.target for sample in samples) == dict.fromkeys(range(1, 10), 2)


def test_only_what_is_missing_is_drawn(tmp_path):
    samples = generate("clustered", tmp_path, limit=16)
    times = {sample.image: sample.image.stat().st_mtime_ns for sample in samples}
    samples[3].image.unlink()
    samples[5].image.write_bytes(samples[5].image.read_bytes()[:-30])
    assert generate("clustered", tmp_path, limit=16) == samples
    changed = [sample for sample in samples if sample.image.stat().st_mtime_ns != times[sample.image]]
    assert changed == [samples[3], samples[5]]
    (tmp_path / "manifest.jsonl").write_text("damaged\n")
    assert generate("clustered", tmp_path, limit=16) == samples


def test_entities_keep_their_place_in_the_set(tmp_path):
    whole = {row.index: row for row in planned("balanced")}
    for sample in generate("balanced", tmp_path / "a", entities=["cyan_stars", "red_squares"], limit=20):
        index = int(sample.image.stem)
        assert whole[index].factors | {"form": "closed"} == sample.factors and sample.uid == f"balanced/{index}"
    white = generate("balanced", tmp_path / "b", entities=["white_squares", "small_red_stars"], limit=4)
    assert {sample.factors["colour"] for sample in white} == {"white", "red"} and int(white[0].image.stem) >= 17496
    few = generate("scattered", tmp_path / "c", counts=[3, 12], grid=14, limit=4)
    assert {sample.target for sample in few} == {3, 12} and sorted(few[0].factors["options"]) == [3, 12]


@pytest.mark.long
def test_a_folder_of_another_set_is_refused(tmp_path):
    generate("balanced", tmp_path, limit=9)
    for other, difference in (
        ({"family": "clustered"}, "its family is 'balanced', not 'clustered'"),
        ({"seed": 1}, "its seed is 0, not 1"),
        ({"image_size": 224}, "its image_size is 672, not 224"),
        ({"form": "open"}, "its form is 'closed', not 'open'"),
        ({"counts": 9}, "its counts is \\[\\], not \\[9\\]"),
    ):
        with pytest.raises(FileExistsError, match=f"holds another set: {difference}.*Choose another folder"):
            generate(**({"family": "balanced", "limit": 9} | other), folder=tmp_path)
    (tmp_path / "set.json").write_text("{")
    with pytest.raises(FileExistsError, match="its set.json is damaged"):
        generate("balanced", tmp_path, limit=9)
    (tmp_path / "set.json").unlink()  # as in folders of earlier versions
    for other in ({"family": "clustered"}, {"family": "balanced", "seed": 1}):
        with pytest.raises(FileExistsError, match="holds another set: its 'balanced/.*Choose another folder"):
            generate(**other, folder=tmp_path)
    assert not (tmp_path / "set.json").exists()


@pytest.mark.long
def test_a_folder_grows(tmp_path):
    many, few = (generate("two_groups", tmp_path / "a", limit=limit) for limit in (30, 8))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*.*")}
    assert generate("two_groups", tmp_path / "a", limit=30) == many and len(few) == 8
    assert times == {path: path.stat().st_mtime_ns for path in times}  # nothing was drawn or written again
    generate("two_groups", tmp_path / "a", entities="red_stars", limit=12)
    for limit in (8, 30):
        generate("two_groups", tmp_path / "b", limit=limit)
    generate("two_groups", tmp_path / "c", entities="red_stars", limit=12)
    generate("two_groups", tmp_path / "c", limit=30), generate("two_groups", tmp_path / "c", limit=8)
    rows = read_jsonl(tmp_path / "a" / "manifest.jsonl", Sample)
    numbers = [int(row.uid.split("/")[1]) for row in rows]
    assert numbers == sorted(set(numbers)) and {s.uid for s in (*many, *few)} < {row.uid for row in rows}
    manifests = [(tmp_path / name / "manifest.jsonl").read_bytes() for name in "abc"]
    assert manifests[0] == manifests[2] != manifests[1]  # the same samples, the same bytes, in any order


@pytest.mark.long
def test_two_processes_may_fill_one_cache(tmp_path):
    code = (
        "import sys; from vlm_counting.stimuli import generate; generate('balanced', sys.argv[1], limit=700, workers=1)"
    )
    code = code.replace("700", "int(sys.argv[2])")
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), limit]) for limit in ("700", "30")]
    assert [process.wait() for process in both] == [0, 0]
    rows = read_jsonl(tmp_path / "manifest.jsonl", Sample)
    asked = {sample.uid for limit in (700, 30) for sample in generate("balanced", tmp_path, limit=limit)}
    assert {row.uid for row in rows} == asked and len(rows) == len(asked) >= 700
    assert all(sha256((tmp_path / r.image).read_bytes()).hexdigest() == r.sha256 for r in rows)
    assert len(list((tmp_path / "images").iterdir())) == len(rows)  # no temporary file is left


def test_the_cache_lies_below_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_COUNTING_DATA", str(tmp_path))
    closed, again, other = (generate("balanced", limit=2, **more) for more in ({}, {}, {"form": "open"}))
    assert closed == again and closed[0].image.is_relative_to(tmp_path / "stimuli") and closed[0].image.is_absolute()
    assert closed[0].image != other[0].image and closed[0].sha256 == other[0].sha256


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"family": "balancd"}, "Did you mean 'balanced'"),
        ({"form": "opne"}, "expected 'closed' or 'open'"),
        ({"limit": 0}, "at least 1"),
        ({"entities": ["red_stars", "pink_stars"]}, "No colour named 'pink'"),
        ({"grid": 2}, "larger grid"),
        ({"grid": 0}, "grid is 0"),
        ({"counts": [0, 3]}, "counts"),
        ({"counts": [90]}, "larger grid"),
        ({"counts": 2.5}, "counts are .2.5., expected whole numbers"),
        ({"family": "two_groups", "counts": 3}, "has no sample with counts .3."),
        ({"family": "two_groups", "limit": 1}, "limit is 1.* groups of 2"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path, wrong, message):
    with pytest.raises((KeyError, ValueError), match=message):
        generate(**({"family": "balanced", "folder": tmp_path / "new"} | wrong))
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="Cannot write .*file.*VLM_COUNTING_DATA"):
        generate("balanced", tmp_path / "file" / "set", limit=2)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_said_and_leaves_whole_pictures(small_disk, workers):
    with pytest.raises(OSError, match="No space left.*Free some space and generate again") as error:
        generate("balanced", small_disk, limit=300, workers=workers)
    assert error.value.errno == errno.ENOSPC
    pictures = list((small_disk / "images").glob("*"))
    assert pictures and all(path.suffix == ".png" and load_image(path).size == (672, 672) for path in pictures)


def test_a_contact_sheet_takes_photographs_of_any_size(tmp_path):
    samples = []
    for i, size in enumerate([(640, 480), (90, 300), (30, 20)]):
        Image.effect_noise(size, 80).convert("RGB").save(tmp_path / f"{i}.jpg")
        samples.append(
            Sample(f"photo/{i}", tmp_path / f"{i}.jpg", "How many?", i, {"label": "very long name of a thing" * 3})
        )
    sheet = contact_sheet(samples, columns=2, size=80, titles=["one", "two\nlines", "right"])
    assert sheet.mode == "RGB" and sheet.width == 2 * 80 + 3 * 5
    taller = contact_sheet(samples, columns=2, size=80).height
    assert contact_sheet(samples, columns=2, size=80, captions=False).height < taller < sheet.height
    assert contact_sheet([Scene().add("red_stars", [(0, 0)])], size=672).size[0] == 672 + 2 * 42
    for wrong in ({"samples": []}, {"samples": samples, "titles": ["one"]}):
        with pytest.raises(ValueError, match="expected at least one"):
            contact_sheet(**wrong)
