"Images that are in no file go wherever images go: asked, scored, browsed, drawn, audited, probed, exported."

import numpy as np
import pytest
from PIL import Image

import vlm_counting as vc
from vlm_counting.core import fingerprint, image_file
from vlm_counting.datasets import (
    add_sizes,
    annotate,
    audit,
    check_images,
    export_parquet,
    export_released,
    load_dataset,
)
from vlm_counting.probing import controls, lit_area
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


def test_evaluated_and_kept(samples, tmp_path):
    vlm = vc.load_model("tiny-clip", device="cpu")
    result = vc.evaluate(vlm, samples, path=tmp_path / "run", progress=False)
    assert set(result.figures()) and (tmp_path / "run" / "browser.html").stat().st_size > 10_000
    again = vc.evaluate(vlm, make("PIL"), progress=False)
    assert [row.text for row in again.predictions] == [row.text for row in result.predictions]


def test_looked_at(samples, tmp_path):
    assert contact_sheet(samples[:4]).width > 100
    table = audit(samples)
    assert table["error"].eq("").all() and table["width"].eq(672).all() and table["sha256"].nunique() == 18
    assert add_sizes(samples)[0].factors["height"] == 672
    assert [len(sample.factors["positions"]) for sample in annotate(samples)] == COUNTS
    assert all(len(sample.sha256) == 64 for sample in check_images(samples))
    read = controls(samples, ("ridge",), ("random",), progress=False)
    assert {"lit area", "pixels"} <= set(read["control"])


def test_exported_and_read_again(samples, tmp_path):
    for export in (export_released, export_parquet):
        folder = export(samples, tmp_path / export.__name__)
        again = load_dataset(folder)
        assert [sample.target for sample in again] == COUNTS
        first = Image.open(again[0].image)
        assert lit_area(first.convert("RGB")) == vc.scene("red_stars", 1, seed=0).lit_area()


def test_fingerprints_are_of_what_is_seen():
    one, other = make("PIL"), make("PIL")
    assert fingerprint(one) == fingerprint(other) != fingerprint(make("bytes"))
    other[3] = vc.Sample("mine/3", render(vc.scene("red_stars", 1, seed=99)), other[3].question, 1, other[3].factors)
    assert fingerprint(one) != fingerprint(other)


def test_a_broken_image_is_named():
    broken = vc.Sample("mine/0", image_file(render(vc.scene("red_stars", 2)))[0][:200], "How many?", 2)
    for use in (lambda: check_images([broken]), lambda: add_sizes([vc.Sample("mine/0", b"nothing", "How many?", 2)])):
        with pytest.raises(ValueError, match="'mine/0'.*in memory"):
            use()
