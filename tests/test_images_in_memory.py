"Images that are in no file go wherever images go: asked, scored, browsed, drawn, audited, probed, exported."

import numpy as np
import pytest
from PIL import Image

import vlm_counting as vc
from vlm_counting.audit import annotate, audit
from vlm_counting.core import as_source, fingerprint, image_file, load_image
from vlm_counting.datasets import _add_sizes, _check_images, export_parquet, export_released, load_dataset
from vlm_counting.probing import _lit_area, controls
from vlm_counting.stimuli import contact_sheet, render

COUNTS = [1, 2, 3] * 6


def make(form: str) -> list[vc.Sample]:
    "Eighteen images of red stars as PIL images, bytes of a PNG or arrays."
    scenes = [vc.scene("red_stars", count, seed=number, grid=9, image_size=672) for number, count in enumerate(COUNTS)]
    as_form = {"PIL": lambda image: image, "bytes": lambda image: image_file(image)[0], "array": np.asarray}[form]
    question, factors = "How many red stars are there? Choose from [3, 1, 2].", {"entity": "red_stars"}
    return [
        vc.Sample(f"mine/{number}", as_form(each.render()), question, count, factors | {"options": [3, 1, 2]})
        for number, (each, count) in enumerate(zip(scenes, COUNTS, strict=True))
    ]


@pytest.fixture(params=["PIL", "bytes", "array"])
def samples(request):
    return make(request.param)


@pytest.fixture(scope="module")
def vlm():
    return vc.load_model("tiny-clip", device="cpu")


@pytest.fixture(scope="module")
def said(vlm) -> list[str]:
    "What the model says of the images as PIL has them."
    return [row.text for row in vc.evaluate(vlm, make("PIL"), progress=False).predictions]


@pytest.mark.long
def test_evaluated_and_kept(samples, vlm, said, tmp_path):
    result = vc.evaluate(vlm, samples, path=tmp_path / "run", progress=False)
    assert set(result.figures()) and (tmp_path / "run" / "browser.html").stat().st_size > 10_000
    assert [row.text for row in result.predictions] == said


@pytest.mark.long_after(1)
def test_looked_at(samples, tmp_path):
    assert contact_sheet(samples[:4]).width > 100
    table = audit(samples)
    assert table["error"].eq("").all() and table["width"].eq(672).all() and table["sha256"].nunique() == 18
    assert _add_sizes(samples)[0].factors["height"] == 672
    assert [len(sample.factors["positions"]) for sample in annotate(samples)] == COUNTS
    assert all(len(sample.sha256) == 64 for sample in _check_images(samples))
    read = controls(samples, ("ridge",), ("random",), progress=False)
    assert {"lit area", "pixels"} <= set(read["control"])


@pytest.mark.long_after(1)
def test_exported_and_read_again(samples, tmp_path):
    for export in (export_released, export_parquet):
        folder = export(samples, tmp_path / export.__name__)
        again = load_dataset(folder)
        assert [sample.target for sample in again] == COUNTS
        first = Image.open(again[0].image)
        assert _lit_area(first.convert("RGB")) == vc.scene("red_stars", 1, seed=0).object_area()


def test_fingerprints_are_of_what_is_seen():
    one, other = make("PIL"), make("PIL")
    assert fingerprint(one) == fingerprint(other) != fingerprint(make("bytes"))
    other[3] = vc.Sample("mine/3", render(vc.scene("red_stars", 1, seed=99)), other[3].question, 1, other[3].factors)
    assert fingerprint(one) != fingerprint(other)


def test_a_broken_image_is_named():
    broken = vc.Sample("mine/0", image_file(render(vc.scene("red_stars", 2)))[0][:200], "How many?", 2)
    for use in (lambda: _check_images([broken]), lambda: _add_sizes([vc.Sample("mine/0", b"nothing", "How many?", 2)])):
        with pytest.raises(ValueError, match="'mine/0'.*in memory"):
            use()


def test_images_of_one_s_own_are_found_and_read(tmp_path, monkeypatch):
    import torch

    monkeypatch.setenv("HOME", str(tmp_path))
    array = np.zeros((4, 5, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / "mine.png")
    forms = ["~/mine.png", tmp_path / "mine.png", memoryview((tmp_path / "mine.png").read_bytes())]
    forms += [array, array[..., 0], array[..., :1], torch.tensor(array)]
    assert {load_image(as_source(form)).size for form in forms} == {(5, 4)}


@pytest.mark.parametrize(
    "shape, dtype, message",
    [
        ((0, 0, 3), "uint8", r"ndarray of uint8 \(0, 0, 3\).*This one is empty"),
        ((3, 5, 6), "uint8", r"Put the colours last: image.transpose\(1, 2, 0\)"),
        ((5, 6, 3), "float32", r"from 0 to 1: \(255 \* image\).astype\('uint8'\)"),
        ((5, 6, 3), "int64", r"from 0 to 255: image.astype\('uint8'\)"),
        ((2, 5, 6, 3), "uint8", "several images"),
    ],
)
def test_an_array_that_is_no_image_is_told_how_to_become_one(shape, dtype, message):
    with pytest.raises(TypeError, match=message):
        as_source(np.zeros(shape, dtype))
    if dtype == "float32":
        import torch

        with pytest.raises(TypeError, match=r"Put the colours last: image.permute.*\(255 \* image\).byte\(\)"):
            as_source(torch.zeros(3, 5, 6))


def test_an_image_that_cannot_be_read_is_explained(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    for image, kind, message in (
        (tmp_path / "gone.png", FileNotFoundError, "No image at .*gone.png. Is it spelt right"),
        ("gone.png", FileNotFoundError, "Paths that do not begin with / are seen from"),
        ("https://here.org/a.png", FileNotFoundError, "Addresses are not fetched: download it"),
        (tmp_path, ValueError, "is a folder, expected an image"),
        (tmp_path / "text.png", ValueError, "in no known format.*if it is yours, save it anew"),
        (b"", ValueError, r"\(0 bytes in memory\): it is in no known format .*. Expected a whole PNG or JPEG.$"),
        (Image.new("RGB", (0, 0)), ValueError, "it has no pixels"),
    ):
        with pytest.raises(kind, match=message):
            load_image(as_source(image))
