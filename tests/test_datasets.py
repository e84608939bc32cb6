"Guards of `datasets`: every bad input is refused by file and id, every form is read and written, archives are safe."

import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from pictures import picture, places  # noqa: F401 # a fixture
from PIL import Image

from vlm_counting import datasets as room
from vlm_counting import stimuli
from vlm_counting.audit import annotate, audit
from vlm_counting.core import Sample, file_hash, write_jsonl
from vlm_counting.datasets import (
    DATASETS,
    _check_images,
    _find_source,
    check_source,
    export_parquet,
    export_released,
    extract_archive,
    load_dataset,
)

SHARED = Path(__file__).resolve().parents[2] / "shared"
ARCHIVES = SHARED / "reference" / "archives"
needs_archives = pytest.mark.skipif(not ARCHIVES.exists(), reason="the released archives are not on this machine")
ASK = "How many red stars are there? Choose from [3, 1, 2]."


def make(folder: Path, count: int = 3) -> Path:
    "A sound dataset in the released layout."
    questions = {str(i): {"red_stars": {"count_closed": ASK}} for i in range(count)}
    answers = {str(i): {"red_stars": {"count_closed": i + 1}} for i in range(count)}
    for i in range(count):
        picture(folder / "images" / f"{i}.png", i)
    (folder / "questions.json").write_text(json.dumps(questions, indent=4))
    (folder / "answers.json").write_text(json.dumps(answers, indent=4))
    return folder


def edit(path: Path, change) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def bare(samples: list[Sample]) -> list[Sample]:
    "Samples apart from where their images lie."
    return [replace(sample, image=Path()) for sample in samples]


def answer(value):
    return lambda folder: edit(
        folder / "answers.json", lambda tree: tree["1"].update(red_stars={"count_closed": value})
    )


def rewrite(name: str, old: str, new: str):
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return change


def cut(name: str, keep: float):
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return change


def flip(folder: Path) -> None:
    path = folder / "images" / "1.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


BAD_FOLDERS = {
    "missing image": (
        lambda f: (f / "images/1.png").unlink(),
        "images/1.png is missing (id '1/red_stars/count_closed')",
    ),
    "no images at all": (lambda f: shutil.rmtree(f / "images"), "3 problems"),
    "question without answer": (
        lambda f: edit(f / "answers.json", lambda tree: tree.pop("1")),
        "answers.json: id '1/red_stars/count_closed' has no answer",
    ),
    "answer without question": (
        lambda f: edit(f / "questions.json", lambda tree: tree.pop("1")),
        "answers.json: id '1/red_stars/count_closed' has no question",
    ),
    "entities that differ": (
        rewrite("answers.json", "red_stars", "red_circles"),
        "id '0/red_stars/count_closed' has no answer",
    ),
    "negative": (answer(-1), "id '1/red_stars/count_closed': the answer is -1"),
    "bool": (answer(True), "the answer is True (bool)"),
    "text": (answer("2"), "the answer is '2' (str)"),
    "float": (answer(2.0), "the answer is 2.0 (float)"),
    "null": (answer(None), "the answer is None"),
    "list": (answer([2]), "the answer is [2]"),
    "empty question": (
        rewrite("questions.json", ASK, " "),
        "questions.json: id '0/red_stars/count_closed': the question is ' '",
    ),
    "duplicated id": (rewrite("questions.json", '"2":', '"1":'), "questions.json: id '1' occurs twice"),
    "duplicated id, answers": (rewrite("answers.json", '"2":', '"0":'), "answers.json: id '0' occurs twice"),
    "duplicated entity": (
        rewrite("answers.json", '"red_stars": {', '"red_stars": {"count_closed": 2}, "red_stars": {'),
        "answers.json: id '0/red_stars' occurs twice",
    ),
    "truncated questions": (cut("questions.json", 0.6), "questions.json is not whole JSON"),
    "truncated answers": (cut("answers.json", 0.9), "answers.json is not whole JSON"),
    "empty file": (cut("answers.json", 0), "answers.json is not whole JSON"),
    "not UTF-8": (lambda f: (f / "questions.json").write_bytes(b'{"\xff": 1}'), "questions.json is not whole JSON"),
    "a list": (lambda f: (f / "questions.json").write_text("[]"), "questions.json holds a list"),
    "empty set": (
        lambda f: [(f / name).write_text("{}") for name in ("questions.json", "answers.json")],
        "there is no question in it",
    ),
    "too flat": (lambda f: edit(f / "questions.json", lambda tree: tree.update({"1": ASK})), "id '1' is not nested"),
    "empty entity": (lambda f: edit(f / "questions.json", lambda tree: tree.update({"1": {}})), "id '1' is not nested"),
    "too deep": (
        lambda f: edit(f / "questions.json", lambda tree: tree.update({"1": {"a": {"b": {"c": {"d": ASK}}}}})),
        "id '1/a/b/c/d' is not nested",
    ),
    "endless nesting": (
        lambda f: (f / "questions.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000),
        "questions.json is not whole JSON",
    ),
    "PNG cut off": (cut("images/1.png", 0.7), "images/1.png is broken"),
    "PNG without its end": (cut("images/1.png", 0.9), "images/1.png is broken"),
    "PNG damaged": (flip, "images/1.png is broken"),
    "PNG empty": (cut("images/1.png", 0), "images/1.png is broken"),
    "PNG of text": (lambda f: (f / "images/1.png").write_text("<html>404</html>"), "images/1.png is broken"),
    "no answers.json": (lambda f: (f / "answers.json").unlink(), "No answers.json in"),
    "no questions.json": (lambda f: (f / "questions.json").unlink(), "No questions.json in"),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_bad_folder_is_refused_by_file_and_id(tmp_path, name):
    folder = make(tmp_path / "set")
    assert [sample.target for sample in load_dataset(folder)] == [1, 2, 3]
    change, message = BAD_FOLDERS[name]
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_dataset(folder)
    assert message in str(caught.value)


def test_a_png_is_whole_up_to_its_end_mark(tmp_path):
    "Every cut is seen but one in the last four bytes, and every byte that is not what it was, of all that is decoded."
    whole = picture(tmp_path / "0.png").read_bytes()
    sample = Sample("a/0", b"", "How many?", 1)
    for end in range(len(whole) - 4):
        with pytest.raises(ValueError, match="'a/0': the image .* is broken"):
            _check_images([replace(sample, image=whole[:end])])
    for place in range(len(whole) - 12):
        wrong = bytes(byte ^ 4 * (number == place) for number, byte in enumerate(whole))
        with pytest.raises(ValueError, match="'a/0': the image .* is broken"):
            _check_images([replace(sample, image=wrong)])


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP"])
def test_images_of_other_kinds_are_seen_to_be_cut(kind):
    file = io.BytesIO()
    Image.effect_noise((60, 50), 80).convert("RGB").save(file, kind)
    sample = Sample("a/0", file.getvalue(), "How many?", 1)
    assert _check_images([sample])[0].sha256
    for part in (0.5, 0.9):
        with pytest.raises(ValueError, match="'a/0': the image .* is broken"):
            _check_images([replace(sample, image=sample.image[: int(part * len(sample.image))])])


def test_problems_are_shown_together_five_by_name(tmp_path):
    folder = make(tmp_path / "set", 9)
    for i in range(8):
        (folder / "images" / f"{i}.png").unlink()
    with pytest.raises(ValueError) as caught:
        load_dataset(folder)
    lines = str(caught.value).splitlines()
    assert len(lines) == 7 and "8 problems" in lines[0] and "and 3 more" in lines[-1]


def test_refusal_comes_before_anything_heavy(tmp_path):
    folder = make(tmp_path / "set")
    (folder / "images/2.png").unlink()
    code = (
        "import sys; from vlm_counting.datasets import load_dataset\n"
        f"try: load_dataset({str(folder)!r})\n"
        "except ValueError as error: assert 'images/2.png is missing' in str(error), error\n"
        "else: raise SystemExit('not refused')\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_several_entities_and_deeper_nesting(tmp_path):
    folder = tmp_path / "mixed"
    picture(folder / "images" / "a-1.png")
    picture(folder / "images" / "b.jpg")
    questions = {
        "a-1": {
            "red_stars": {"count_closed": ASK},
            "blue_things": {"count": {"plain": "How many?", "polite": "Please?"}},
        },
        "b": {"red_stars": {"count_open": "How many red stars are there?"}},
    }
    answers = {
        "a-1": {"red_stars": {"count_closed": 0}, "blue_things": {"count": {"plain": 4, "polite": 4}}},
        "b": {"red_stars": {"count_open": 1}},
    }
    (folder / "questions.json").write_text(json.dumps(questions))
    (folder / "answers.json").write_text(json.dumps(answers))
    samples = load_dataset(folder)
    assert [s.uid for s in samples] == [
        "mixed/a-1-red_stars-count_closed",
        "mixed/a-1-blue_things-count-plain",
        "mixed/a-1-blue_things-count-polite",
        "mixed/b",
    ]
    assert [s.target for s in samples] == [0, 4, 4, 1]
    assert samples[0].factors["options"] == [3, 1, 2] and samples[0].factors["colour"] == "red"
    assert samples[0].factors["shape"] == "star" and "colour" not in samples[1].factors
    assert [s.factors["form"] for s in samples] == ["closed", "open", "open", "open"]
    assert {s.factors.get("pair") for s in samples} == {"mixed/a-1", None}
    export_released(samples, tmp_path / "again" / "mixed")
    assert bare(load_dataset(tmp_path / "again" / "mixed")) == bare(samples)
    assert json.loads((tmp_path / "again/mixed/questions.json").read_text()) == questions
    assert json.loads((tmp_path / "again/mixed/answers.json").read_text()) == answers
    assert len(load_dataset(folder, limit=3)) == 3  # questions to one image stay together


def test_image_ids_cannot_climb_out(tmp_path):
    folder = make(tmp_path / "set")
    picture(tmp_path / "outside.png")
    for name in ("questions.json", "answers.json"):
        rewrite(name, '"1"', '"../../outside"')(folder)
    with pytest.raises(ValueError, match="is missing"):
        load_dataset(folder)
    sample = Sample("a/0", tmp_path / "outside.png", "How many?", 1, {"released": ["../../evil", "red_stars", "count"]})
    with pytest.raises(ValueError, match="is no file name"):
        export_released([sample], tmp_path / "out" / "set")
    assert not list(tmp_path.glob("**/evil*"))


def test_open_form_takes_the_choices_away(tmp_path):
    samples = load_dataset(make(tmp_path / "set"), form="open")
    assert {s.question for s in samples} == {"How many red stars are there?"}
    assert [s.uid for s in samples] == ["set-open/0", "set-open/1", "set-open/2"]
    assert all(s.factors["form"] == "open" and s.factors["options"] == [3, 1, 2] for s in samples)
    assert [s.question for s in load_dataset(tmp_path / "set", form="closed")] == [ASK] * 3
    export_released(samples, tmp_path / "open")
    with pytest.raises(ValueError, match="has no closed form"):
        load_dataset(tmp_path / "open", form="closed")
    with pytest.raises(ValueError, match="Did you mean 'open'"):
        load_dataset(tmp_path / "open", form="opened")


@pytest.mark.parametrize("limit", [0, -1, True, 2.5, "4"])
def test_wrong_limit_is_refused_first(limit):
    with pytest.raises(ValueError, match="at least 1"):
        load_dataset("no such dataset", limit=limit)


def test_unknown_names_and_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyError, match="Did you mean 'clustered'"):
        load_dataset("clusterd")
    with pytest.raises(FileNotFoundError, match="hf:org/name"):
        load_dataset("org/name")
    with pytest.raises(FileNotFoundError, match="nothing at"):
        load_dataset(tmp_path / "gone.tar.gz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no dataset"):
        load_dataset(tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="of no kind"):
        load_dataset(tmp_path / "notes.txt")
    make(tmp_path / "clustered")
    assert len(load_dataset("./clustered")) == len(load_dataset(Path("clustered"))) == 3


# ---------------------------------------------------------------------------------------------------- archives


def pack(path: Path, folder: Path, name: str, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        tar.add(folder, name)
    return path


@pytest.mark.parametrize("name", ["./set", "set", ".", "deep/set"])
@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_archive_in_every_packing(tmp_path, name, mode):
    archive = pack(tmp_path / "set.tar.gz", make(tmp_path / "set"), name, mode)
    if name == "deep/set":
        with pytest.raises(ValueError, match="expected one"):
            load_dataset(archive)
        return
    samples = load_dataset(archive)
    assert bare(samples) == bare(load_dataset(tmp_path / "set"))
    assert all((tmp_path / "cache" / "archives") in s.image.parents for s in samples)


def test_archive_is_unpacked_once(tmp_path, monkeypatch):
    archive = pack(tmp_path / "set.tar.gz", make(tmp_path / "set"), "set")
    place = extract_archive(archive)
    monkeypatch.setattr(room, "_unpack", lambda *rest: pytest.fail("unpacked again"))
    assert extract_archive(shutil.copy(archive, tmp_path / "other.tgz")) == place
    assert [path.name for path in (tmp_path / "cache" / "archives").iterdir()] == [file_hash(archive)[:16]]


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


EVIL = {
    "absolute": ([(member("/tmp/vlm_counting_evil"), b"x")], "points outside"),
    "climbing": ([(member("set/../../vlm_counting_evil"), b"x")], "points outside"),
    "climbing, backslash": ([(member("set\\..\\..\\vlm_counting_evil"), b"x")], "points outside"),
    "drive": ([(member("C:/vlm_counting_evil"), b"x")], "points outside"),
    "symbolic link": ([(member("set/a", tarfile.SYMTYPE, "/etc/passwd"), b"")], "is a link"),
    "link, then through it": (
        [(member("set/a", tarfile.SYMTYPE, ".."), b""), (member("set/a/vlm_counting_evil"), b"x")],
        "is a link",
    ),
    "hard link": ([(member("set/a", tarfile.LNKTYPE, "/etc/passwd"), b"")], "is a link"),
    "device": ([(member("set/a", tarfile.CHRTYPE), b"")], "a device"),
    "pipe": ([(member("set/a", tarfile.FIFOTYPE), b"")], "a device or another special"),
    "a long name": ([(member(f"set/{'a' * 300}"), b"x")], "longer or deeper than files may have"),
    "deep folders": ([(member("set/" + "a/" * 3000 + "b"), b"x")], "longer or deeper than files may have"),
    "twice": ([(member("set/a"), b"x"), (member("./set/a"), b"y")], "occurs twice"),
    "file as folder": ([(member("set/a"), b"x"), (member("set/a/b"), b"y")], "was not unpacked"),
    "no dataset": ([(member("set/notes.txt"), b"x")], "holds 0 datasets"),
    "nothing": ([], "holds nothing"),
    "two datasets": ([(member(f"{n}/questions.json"), b"{}") for n in "ab"], "holds 2 datasets"),
}


@pytest.mark.parametrize("name", EVIL)
def test_evil_archive_leaves_nothing_behind(tmp_path, name):
    members, message = EVIL[name]
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(ValueError) as caught:
        load_dataset(tmp_path / "evil.tar.gz")
    assert message in str(caught.value) and "evil.tar.gz" in str(caught.value)
    assert not list((tmp_path / "cache" / "archives").iterdir())
    assert not list(tmp_path.glob("**/vlm_counting_evil")) and not Path("/tmp/vlm_counting_evil").exists()


def test_archive_limits(tmp_path):
    archive = pack(tmp_path / "set.tar.gz", make(tmp_path / "set"), "set")
    for limits, message in (
        ({"max_members": 3}, "more than 3 members"),
        ({"max_file": 100}, "more than 100"),
        ({"max_total": 500}, "more than 500 bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            extract_archive(archive, **limits)
    assert not list((tmp_path / "cache" / "archives").iterdir())
    assert extract_archive(archive).name == "set"


def test_archive_with_a_huge_name_stops_early(tmp_path):
    info = tarfile.TarInfo("set/a")
    info.pax_headers = {"comment": "x" * 2**23}  # read into memory before a member is seen
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)
    with pytest.raises(ValueError, match="was not unpacked: it unpacks to more"):
        extract_archive(tmp_path / "bomb.tar.gz", max_file=1000)


def test_archive_with_much_behind_its_end_stops_early(tmp_path):
    import gzip

    packed = pack(tmp_path / "set.tar", make(tmp_path / "set"), "set", "w").read_bytes() + bytes(2**23)
    (tmp_path / "tail.tar.gz").write_bytes(gzip.compress(packed))
    with pytest.raises(ValueError, match="was not unpacked: it unpacks to more than the files in it"):
        extract_archive(tmp_path / "tail.tar.gz")


@pytest.mark.parametrize("keep", [0, 1, 10, 0.3, 0.9, -1, -5])
def test_archive_cut_off(tmp_path, keep):
    data = pack(tmp_path / "set.tar.gz", make(tmp_path / "set"), "set").read_bytes()
    end = int(len(data) * keep) if isinstance(keep, float) else keep
    (tmp_path / "cut.tar.gz").write_bytes(data[:end])
    with pytest.raises(ValueError, match="cut.tar.gz"):
        load_dataset(tmp_path / "cut.tar.gz")
    assert not list((tmp_path / "cache" / "archives").iterdir())


def test_archive_damaged_or_of_another_kind(tmp_path):
    data = bytearray(pack(tmp_path / "set.tar.gz", make(tmp_path / "set"), "set").read_bytes())
    data[len(data) // 2] ^= 0xFF
    rng = random.Random(0)
    for wrong in (
        data,
        b"<html>404 not found</html>" * 100,
        b"PK\x03\x04" + rng.randbytes(5000),
        rng.randbytes(20_000),
    ):
        (tmp_path / "wrong.tar.gz").write_bytes(wrong)
        with pytest.raises(ValueError, match="wrong.tar.gz"):
            load_dataset(tmp_path / "wrong.tar.gz")
    assert not list((tmp_path / "cache" / "archives").iterdir())


@pytest.mark.long
@needs_archives
@pytest.mark.parametrize(
    "name, number, counts, entity",
    [
        ("clustered", 392, range(2, 10), "red_triangles"),
        pytest.param("distractors_1_small_red_star", 2187, range(1, 10), "magenta_circles", marks=pytest.mark.slow),
    ],
)
def test_released_archive(tmp_path, name, number, counts, entity):
    samples = load_dataset(ARCHIVES / f"{name}.tar.gz")
    assert len(samples) == number and [s.uid for s in samples] == [f"{name}/{i}" for i in range(number)]
    assert [s.target for s in samples] == [count for count in counts for _ in range(number // len(counts))]
    words = entity.replace("_", " ")
    for index, sample in enumerate(samples):
        assert sample.question == f"How many {words} are there? Choose from {sample.factors['options']}."
        assert sorted(sample.factors["options"]) == list(counts)
        assert sample.factors["entity"] == entity and sample.image.name == f"{index}.png"
        assert sample.factors["released"] == [str(index), entity, "count_closed"]
    assert len({tuple(s.factors["options"]) for s in samples}) == number
    assert {s.question for s in load_dataset(ARCHIVES / f"{name}.tar.gz", form="open")} == {
        f"How many {words} are there?"
    }
    again = export_released(samples, tmp_path / "out" / name)
    assert bare(load_dataset(again)) == bare(samples)
    for file in ("questions.json", "answers.json"):
        assert (again / file).read_bytes() == (extract_archive(ARCHIVES / f"{name}.tar.gz") / file).read_bytes()
    part = load_dataset(ARCHIVES / f"{name}.tar.gz", limit=2 * len(counts), seed=1)
    assert [s.target for s in part] == [count for count in counts for _ in range(2)]
    assert bare(part) == bare(load_dataset(again, limit=2 * len(counts), seed=1))


@needs_archives
def test_archive_without_its_images():
    with pytest.raises(ValueError, match=r"of 471 images \(test\) none can be used \(471 not there\)"):
        load_dataset(ARCHIVES / "pixmo-count-image-free.tar.gz")


# --------------------------------------------------------------------------------------------------- manifests


def manifest(folder: Path, **changes) -> Path:
    "Three lines, the middle one changed; a change to None removes the field."
    rows = []
    for i in range(3):
        image = picture(folder / f"{i}.png", i)
        rows.append(
            {"uid": f"m/{i}", "image": image.name, "question": ASK, "target": i, "factors": {"entity": "red_stars"}}
        )
    rows[1] = {key: value for key, value in (rows[1] | changes).items() if value is not None}
    write_jsonl(folder / "manifest.jsonl", rows)
    return folder / "manifest.jsonl"


BAD_ROWS = {
    "negative": ({"target": -1}, "line 2: id 'm/1': the answer is -1"),
    "bool": ({"target": True}, "line 2: id 'm/1': the answer is True"),
    "float": ({"target": 1.5}, "line 2: id 'm/1': the answer is 1.5"),
    "text": ({"target": "one"}, "line 2: id 'm/1': the answer is 'one'"),
    "text of no whole number": ({"target": "1.5"}, "line 2: id 'm/1': the answer is '1.5'"),
    "no answer": ({"target": None}, "line 2"),
    "an id for a count": ({"target": 10**20}, "line 2: id 'm/1': the answer is about 10^20, no number of objects"),
    "a very long id": ({"target": 10**400}, "line 2: id 'm/1': the answer is about 10^"),
    "no uid": ({"uid": None}, "line 2"),
    "duplicated id": ({"uid": "m/0"}, "id 'm/0' occurs 2 times"),
    "number as uid": ({"uid": 1}, "'uid' is 1"),
    "empty question": ({"question": ""}, "id 'm/1': 'question' is ''"),
    "factors of another kind": ({"factors": [1]}, "id 'm/1': 'factors' is [1]"),
    "missing image": ({"image": "gone.png"}, "'m/1': there is no image"),
    "folder as image": ({"image": "."}, "'m/1': the image"),
    "other image": ({"sha256": "0" * 64}, "'m/1': the image"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_manifest_is_refused_by_line_and_id(tmp_path, name):
    change, message = BAD_ROWS[name]
    with pytest.raises(ValueError) as caught:
        load_dataset(manifest(tmp_path / "set", **change))
    assert message in str(caught.value) and "set" in str(caught.value)


def test_manifest_torn_empty_or_moved(tmp_path):
    path = manifest(tmp_path / "set")
    assert bare(load_dataset(path)) == bare(load_dataset(path.parent)) and len(load_dataset(path, limit=2)) == 2
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert len(load_dataset(path)) == 3  # only the last line's end is missing
    path.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="line 3 is not whole JSON"):
        load_dataset(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="there is no sample in it"):
        load_dataset(path)
    path.write_bytes(b"[1]\n")
    with pytest.raises(ValueError, match="line 1: expected an object"):
        load_dataset(path)
    path.write_bytes(whole)
    path.parent.rename(tmp_path / "moved")
    assert len(load_dataset(tmp_path / "moved")) == 3


# ------------------------------------------------------------------------------------------------ Hugging Face


def test_parquet_round_trip(tmp_path):
    samples = load_dataset(make(tmp_path / "set"))
    samples[1] = replace(
        samples[1], factors={"positions": [[0, 1], [2, 3]], "entity": "red_stars", "Größe": None, "x": 0.5}
    )
    folder = export_parquet(samples, tmp_path / "parquet")
    assert bare(load_dataset(folder)) == bare(samples) == bare(load_dataset(f"{folder}@test"))
    assert bare(load_dataset(next(folder.glob("data/*.parquet")))) == bare(samples)

    import datasets

    table = datasets.load_dataset(str(folder), split="test", cache_dir=str(tmp_path / "hf"))
    assert table[2]["image"].size == (12, 10) and table[2]["image"].getpixel((0, 0)) == (255, 2, 0)
    assert table["target"][:] == [1, 2, 3] and table.column_names[0] == "image"
    table.save_to_disk(str(tmp_path / "saved"))
    assert bare(load_dataset(tmp_path / "saved")) == bare(samples)
    datasets.DatasetDict({"train": table, "valid": table}).save_to_disk(str(tmp_path / "splits"))
    assert len(load_dataset(tmp_path / "splits@valid")) == 3
    with pytest.raises(ValueError, match="splits@train"):
        load_dataset(tmp_path / "splits")


def table_of(rows: dict, folder: Path) -> Path:
    "A Parquet folder as other people write it."
    import datasets

    (folder / "data").mkdir(parents=True)
    images = [image and {"bytes": Path(image).read_bytes(), "path": None} for image in rows["image"]]
    datasets.Dataset.from_dict(rows | {"image": images}).cast_column("image", datasets.Image()).to_parquet(
        folder / "data/test-0.parquet"
    )
    return folder


def test_other_peoples_columns_and_only_the_chosen_images(tmp_path):
    images = [str(picture(tmp_path / f"{i}.png", i)) for i in range(6)]
    rows = {"image": images, "question": ["How many?"] * 6, "number": [2, 2, 3, 3, 4, 4], "text": list("abcdef")}
    folder = table_of(rows, tmp_path / "other")
    samples = load_dataset(folder, limit=3)
    assert [s.target for s in samples] == [2, 3, 4] and samples[0].uid in ("other/0", "other/1")
    row = samples[0].factors["row"]
    assert samples[0].factors == {"caption": "ab"[row], "row": row}  # 'text' beside 'number' is CountBenchQA's caption
    assert len(list((tmp_path / "cache/images").glob("*/*.png"))) == 3
    assert len(load_dataset(folder)) == 6 and len(list((tmp_path / "cache/images").glob("*/*.png"))) == 6


@pytest.mark.parametrize(
    "change, message",
    [
        ({"number": [1, -2]}, "row 1: id 'other/1': the answer is -2"),
        ({"number": ["one", "2"]}, "row 0: id 'other/0': the answer is 'one'"),
        ({"number": [1, None]}, "row 1: id 'other/1': the answer is None"),
        ({"question": ["How many?", ""]}, "row 1: id 'other/1': 'question' is ''"),
        ({"uid": ["a", "a"]}, "id 'a' occurs twice"),
        ({"factors": ["{}", "{"]}, "row 1"),
        ({"image": [None, None]}, "its image is missing"),
    ],
)
def test_bad_tables_are_refused_by_row(tmp_path, change, message):
    images = [str(picture(tmp_path / f"{i}.png", i)) for i in range(2)]
    rows = {"image": images, "question": ["How many?"] * 2, "number": [1, 2]} | change
    with pytest.raises(ValueError) as caught:
        load_dataset(table_of(rows, tmp_path / "other"))
    assert message in str(caught.value)


@pytest.mark.long
def test_tables_without_a_column_broken_or_offline(tmp_path):
    folder = table_of({"image": [str(picture(tmp_path / "0.png"))], "question": ["How many?"]}, tmp_path / "other")
    with pytest.raises(ValueError, match="has no column for the target"):
        load_dataset(folder)
    (folder / "data/test-0.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="cannot be read as a Hugging Face dataset"):
        load_dataset(folder)
    code = (
        "from vlm_counting.datasets import load_dataset\n"
        "try: load_dataset('hf:nobody/nothing')\nexcept ConnectionError as error: print(error)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert "Cannot reach the dataset 'nobody/nothing'" in run.stdout and "--local-dir FOLDER" in run.stdout


# ------------------------------------------------------------------------------------------- synthetic families


def test_every_family_is_a_dataset_in_both_forms():
    assert set(DATASETS) >= {name + end for name in stimuli.FAMILIES for end in ("", "-open")}
    assert len(stimuli.FAMILIES) >= 16


def test_a_source_is_told_without_reading_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    make(tmp_path / "set"), (tmp_path / "empty").mkdir()
    for name in ("set.tar.gz", "set.tgz", "a.jsonl", "a.parquet", "note.txt"):
        (tmp_path / name).write_bytes(b"no such thing")
    expected = {"balanced": "name", "balanced-open": "name", "hf:org/name@valid": "hub", "~/set": "released",
                "~/set@train": "released", "~/set.tar.gz": "archive", "~/set.tgz": "archive", "~/a.jsonl": "manifest",
                "~/a.parquet@test": "table", tmp_path / "set": "released"}  # fmt: skip
    assert {name: _find_source(name)[0] for name in expected} == expected
    assert _find_source("hf:org/name@valid") == ("hub", "org/name", "valid")
    assert _find_source("~/set@train") == ("released", str(tmp_path / "set"), "train")
    assert [check_source(str(name)) for name in expected] == [None] * len(expected)
    for wrong, error, message in (
        ("balancd", KeyError, "Did you mean 'balanced'.*and .. more.*vlm-counting list datasets"),
        ("~/gone", FileNotFoundError, "There is nothing at"),
        ("gone@test", KeyError, "No dataset named 'gone@test'"),
        ("@", KeyError, "No dataset named '@'"),
        ("~/empty", ValueError, "one level too high"),
        ("~/note.txt", ValueError, "no kind that can be read"),
        ("hf:@test", ValueError, "Expected 'hf:org/name'"),
    ):
        for function in (check_source, load_dataset):
            with pytest.raises(error, match=message):
                function(wrong)
    assert len(load_dataset("~/set")) == len(load_dataset(Path("~/set"))) == 3


def test_a_dataset_is_one_decorated_function(tmp_path, monkeypatch):
    monkeypatch.setattr(DATASETS, "_items", dict(DATASETS._items))
    picture(tmp_path / "0.png")

    @DATASETS.add("mine")
    def mine(limit, seed):
        "Mine."
        return [Sample(f"mine/{i}", tmp_path / "0.png", "How many?", i) for i in range(4)]

    assert [s.target for s in load_dataset("mine")] == [0, 1, 2, 3] and len(load_dataset("mine", limit=2)) == 2
    (tmp_path / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match="'mine/0': the image"):
        load_dataset("mine")


def test_limited_family_renders_only_what_it_returns(tmp_path):
    samples = load_dataset("clustered", limit=8)
    assert sorted(s.target for s in samples) == list(range(2, 10))
    assert len(list((tmp_path / "cache").rglob("*.png"))) == 8
    assert load_dataset("clustered", limit=8) == samples
    assert [s.sha256 for s in samples] == [file_hash(s.image) for s in samples]
    opened = load_dataset("clustered-open", limit=8)
    assert all("Choose" not in s.question and s.factors["form"] == "open" for s in opened)
    assert load_dataset("clustered", limit=8, form="open") == opened
    with pytest.raises(ValueError, match="has no closed form"):
        load_dataset("clustered-open", limit=8, form="closed")


def test_family_written_and_read_again(tmp_path):
    samples = load_dataset("distractors_1_small_red_star", limit=9)
    assert bare(load_dataset(export_parquet(samples, tmp_path / "parquet"))) == bare(samples)
    read = load_dataset(export_released(samples, tmp_path / "released"))
    assert [s.uid for s in read] == [f"released/{i}" for i in range(9)]
    for before, after in zip(samples, annotate(read), strict=True):
        assert (before.question, before.target) == (after.question, after.target)
        stored, plain = (Image.open(sample.image) for sample in (before, after))
        assert (stored.mode, plain.mode) == ("P", "RGB")  # the authors' loader resizes before it makes three colours
        assert stored.convert("RGB").tobytes() == plain.tobytes()
        for key in ("entity", "colour", "shape", "size", "options", "form", "distractors", "distractor"):
            assert before.factors[key] == after.factors[key], key
        for key in ("positions", "distractor_positions"):
            assert sorted(before.factors[key]) == sorted(after.factors[key])


@pytest.mark.long
@needs_archives
def test_annotate_reads_the_released_pictures():
    samples = annotate(load_dataset(ARCHIVES / "distractors_1_small_red_star.tar.gz", limit=54))
    assert all(len(s.factors["positions"]) == s.target and s.factors["distractors"] == 1 for s in samples)
    assert {s.factors["distractor"] for s in samples} == {"small_red_star"}
    wrong = [replace(samples[0], target=7)]
    with pytest.raises(ValueError, match="the image shows 1 magenta_circles, the answer is 7"):
        annotate(wrong)


def test_annotate_leaves_photographs_alone(tmp_path):
    Image.effect_noise((64, 64), 80).convert("RGB").save(tmp_path / "noise.png")
    sample = Sample("p/0", tmp_path / "noise.png", "How many dogs are there?", 2, {"entity": "dogs"})
    with pytest.warns(UserWarning, match="1 of 1 images"):
        assert annotate([sample]) == [sample]


# ------------------------------------------------------------------------------------------- writing and audit


@pytest.mark.parametrize("export", [export_released, export_parquet])
def test_export_replaces_only_what_it_wrote(tmp_path, export):
    samples = load_dataset(make(tmp_path / "set"))
    folder = tmp_path / "out"
    export(samples, folder)
    with pytest.raises(FileExistsError, match="not empty"):
        export(samples, folder)
    assert len(load_dataset(folder)) == 3
    assert len(load_dataset(export(samples[:2], folder, overwrite=True))) == 2
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="thesis.tex"):
        export(samples, folder, overwrite=True)
    assert (folder / "thesis.tex").exists() and len(load_dataset(folder)) == 2
    with pytest.raises(FileExistsError, match="is a file"):
        export(samples, folder / "thesis.tex")
    samples[2].image.unlink()
    with pytest.raises(ValueError, match="there is no image"):
        export(samples, tmp_path / "half")
    assert sorted(path.name for path in tmp_path.iterdir() if "half" in path.name) == []


def test_released_layout_has_room_for_one_sample_a_key(tmp_path):
    samples = load_dataset(make(tmp_path / "set"))
    with pytest.raises(ValueError, match="would both be '0/red_stars/count_closed'"):
        export_released([*samples, replace(samples[0], uid="other/0")], tmp_path / "out")
    with pytest.raises(ValueError, match="has no factor 'entity'"):
        export_released([replace(samples[0], factors={})], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_audit_sees_copies_contradictions_and_broken_files(tmp_path):
    folder = make(tmp_path / "set", 5)
    shutil.copy(folder / "images/0.png", folder / "images/1.png")
    samples = load_dataset(folder)
    cut("images/3.png", 0.8)(folder)
    samples[4].image.unlink()
    table = audit(samples).set_index("uid")
    assert table["copies"].tolist() == [2, 2, 1, 1, 1]
    assert table["contradicted"].tolist() == [True, True, False, False, False]
    assert table["error"].astype(bool).tolist() == [False, False, False, True, True]
    assert (table.loc["set/2", ["width", "height", "mode"]] == [12, 10, "RGB"]).all()
    assert list(audit([]).columns) == list(audit(samples).columns)


# ------------------------------------------------------------------------------- what a set may hold, kind by kind


def line(**changes) -> str:
    row = {"uid": "a/0", "image": "0.png", "question": "How many?", "target": 1, "factors": {"entity": "red_stars"}}
    return json.dumps(row | changes)


ONE = line()
TWISTED = {
    "a field twice": ONE[:-1] + ', "target": 7}',
    "a factor twice": ONE.replace('"entity"', '"entity": "x", "entity"'),
    "a key twice, deep": ONE.replace('"red_stars"', '"x", "a": [{"b": 1, "b": 2}]'),
    "lists in lists": line(factors={"x": 0}).replace('"x": 0', '"x": ' + "[" * 100_000 + "]" * 100_000),
    "objects in objects": line(factors={"x": 0}).replace('"x": 0', '"x": ' + '{"a":' * 2000 + "1" + "}" * 2000),
    "a few hundred lists": line(factors={"x": 0}).replace('"x": 0', '"x": ' + "[" * 300 + "]" * 300),
    "half a character, question": line(question="How many \ud800?"),
    "half a character, uid": line(uid="a/\ud800"),
    "half a character, factor": line(factors={"entity": "\udfff"}),
    "half a character, name of a factor": line(factors={"\ud800": 1}),
    "half a character, image": line(image="\ud800.png"),
    "blank question": line(question=" \n"),
    "blank uid": line(uid="  "),
    "a number too long": ONE.replace('"target": 1', '"target": 1' + "0" * 5000),
}


@pytest.mark.parametrize("name", TWISTED)
def test_a_line_has_one_meaning_and_can_be_written_again(tmp_path, name):
    picture(tmp_path / "0.png")
    (tmp_path / "m.jsonl").write_text(f"{line(uid='a/first')}\n{TWISTED[name]}\n")
    with pytest.raises(ValueError, match=r"m\.jsonl, line 2"):
        load_dataset(tmp_path / "m.jsonl")


WRONG = {
    "entity": [None, 3, ["x"], " ", {}],
    "colour": [None, 3],
    "shape": [None, ["star"]],
    "label": [None, 3, ["a"], ""],
    "form": [None, 3],
    "split": [None, 3],
    "relation": [3],
    "caption": [None, 4],
    "pair": [None, [1], {}, 1.5, True],
    "layout": [None, [1], 2.5],
    "size": [None, [1]],
    "options": [None, 3, [], "123", [1.5], ["one"], [None], [-1], [True]],
    "coverage": [None, "half", 3, [], [0, 0], [3, 2], ["a", "b"], [1, 2, 3]],
    "positions": [None, "x", [1], [[1]], [[1, "a"]]],
    "distractors": [None, "x", -1],
    "others": [None, 3, ["x"], [{"count": 1}]],
    "released": [None, 3, ["a"]],
    "width": [None, "x"],
    "mine": [float("nan"), float("inf"), [{"a": -float("inf")}]],
}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in WRONG.items() for value in values])
def test_a_factor_of_another_kind_is_refused_by_line_uid_and_name(tmp_path, name, value):
    from vlm_counting.datasets import check_words

    picture(tmp_path / "0.png")
    (tmp_path / "m.jsonl").write_text(f"{line(uid='a/first')}\n{line(factors={name: value})}\n")
    with pytest.raises(ValueError, match=f"line 2: id 'a/0': the factor '{name}' is "):
        load_dataset(tmp_path / "m.jsonl")
    with pytest.raises(ValueError, match=f"'b/0': the factor '{name}' is "):
        check_words([Sample("b/0", tmp_path / "0.png", "How many?", 1, {name: value})], "mine")


@pytest.mark.long
def test_factors_of_our_own_sets_and_free_ones_are_taken(tmp_path):
    from vlm_counting.datasets import factor_problem

    for family in stimuli.FAMILIES:
        assert not any(factor_problem(sample.factors) for sample in stimuli.generate(family, limit=4))
    free = {"mine": [None, 0.5, {"a": [True]}], "source": None, "layout": "b7", "pair": 3, "Größe": "", "size": 24}
    assert factor_problem(free) == ""


def parquet(path: Path, rows: list[dict]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def rows_of(folder: Path, **columns) -> list[dict]:
    data = picture(folder / "images" / "0.png").read_bytes()
    return [{"image": {"bytes": data, "path": None}, "count": number, **columns} for number in range(3)]


@pytest.mark.parametrize("label", [1, 0, 1.5, True, ["cat"], {"a": "cat"}, b"cat", "  ", "", None, "3", "12.0", "-1"])
def test_a_label_names_what_is_counted(tmp_path, label):
    with pytest.raises(ValueError, match=r"row 0: id 't/0': its label is .*, .*expected the name"):
        load_dataset(parquet(tmp_path / "t.parquet", rows_of(tmp_path, label=label)))


def test_labels_that_the_table_knows_by_number_are_asked_by_name(tmp_path):
    import datasets

    names = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cats", "dogs"]),
            "count": datasets.Value("int64"),
        }
    )
    image = {"bytes": picture(tmp_path / "0.png").read_bytes(), "path": None}
    table = datasets.Dataset.from_dict({"image": [image] * 2, "label": [1, 0], "count": [2, 3]}, features=names)
    table.save_to_disk(str(tmp_path / "saved"))
    samples = load_dataset(tmp_path / "saved")
    assert [sample.question for sample in samples] == ["How many dogs are there?", "How many cats are there?"]
    assert samples[0].factors["label"] == "dogs"


@pytest.mark.parametrize(
    "column, value",
    [
        *[("question", value) for value in ("   ", "", 3, ["a"], None)],
        *[("factors", value) for value in ("[1]", "{1", "[" * 9999, '{"a": 1, "a": 2}', '{"a": NaN}', "3", 3, [1])],
        *[("uid", value) for value in (" ", "", None, 1.5, ["a"])],
        *[("weight", float("inf")), ("factors", '{"entity": 3}'), ("factors", '{"options": "1, 2"}')],
    ],
)
def test_a_bad_row_of_a_table_is_refused_by_its_number(tmp_path, column, value):
    rows = rows_of(tmp_path, **{"question": "How many?"} | {column: value})
    with pytest.raises(ValueError, match=r"t\.parquet, row 0: "):
        load_dataset(parquet(tmp_path / "t.parquet", rows))


def test_what_a_row_lacks_is_left_out_and_numbers_are_names_too(tmp_path):
    rows = [row | {"uid": n} for n, row in enumerate(rows_of(tmp_path, question="How many?", weight=float("nan")))]
    rows[1]["weight"] = 0.5
    samples = load_dataset(parquet(tmp_path / "t.parquet", rows))
    assert [sample.uid for sample in samples] == ["0", "1", "2"]
    assert [sample.factors.get("weight") for sample in samples] == [None, 0.5, None]


def test_a_table_names_no_file_outside_of_its_folder(tmp_path):
    secret, inside = picture(tmp_path / "secret.png"), picture(tmp_path / "set" / "in.png")
    (tmp_path / "set" / "link.png").symlink_to(secret)
    outside = (str(secret), "../secret.png", "link.png", "x/../../secret.png")
    for number, path in enumerate((str(inside), "in.png", *outside)):
        for kind, image in (("a", {"bytes": None, "path": path}), ("b", path)):
            rows = [{"image": image, "question": "How many?", "count": 1}]
            table = parquet(tmp_path / "set" / f"{number}{kind}.parquet", rows)
            if path not in outside:
                assert load_dataset(table)[0].image == inside
                continue
            with pytest.raises(ValueError, match=r"'.*/0': its image is .*secret|link.*which may name any file"):
                load_dataset(table)
    (tmp_path / "m.jsonl").write_text(line(image=str(secret)) + "\n")
    assert load_dataset(tmp_path / "m.jsonl")[0].image == secret  # one's own list may


def test_one_of_several_configurations_is_named(tmp_path):
    for name in ("en", "de"):
        (tmp_path / "set" / name).mkdir(parents=True)
        parquet(tmp_path / "set" / name / "test-0.parquet", rows_of(tmp_path, question=f"How many in {name}?"))
    entries = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("en", "de"))
    (tmp_path / "set" / "README.md").write_text(f"---\nconfigs:\n{entries}---\n")
    with pytest.raises(ValueError, match=r"There are: en, de\. Say which, e\.g\. '.*set@en:test'"):
        load_dataset(tmp_path / "set")
    with pytest.raises(ValueError, match="No configuration named 'fr'"):
        load_dataset(f"{tmp_path}/set@fr")
    for part in ("de", "de:train", "de:"):
        assert load_dataset(f"{tmp_path}/set@{part}")[0].question == "How many in de?"
    with pytest.raises(ValueError, match="No split named 'valid'"):
        load_dataset(f"{tmp_path}/set@de:valid")


# --------------------------------------------------------------------------------------- images, before any model


def gradient() -> Image.Image:
    "A little like a photograph."
    return Image.frombytes("RGB", (32, 32), random.Random(0).randbytes(32 * 32 * 3)).resize((256, 256), Image.BICUBIC)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


JPEGS = ({}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0, "quality": 95}, {"optimize": True})


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", JPEGS)
def test_half_a_jpeg_is_found_behind_its_end_mark(mode, options):
    data = saved(gradient().convert(mode), "JPEG", **options)
    for tail in (b"", bytes(16), b"<!-- junk -->"):
        assert room.inspect_image(data + tail)[1] == ""
    for part in (0.35, 0.6, 0.9):
        assert "cut off, with an end mark" in room.inspect_image(data[: int(part * len(data))] + b"\xff\xd9")[1]
        assert "cut off" in room.inspect_image(data[: int(part * len(data))])[1]


def test_what_cannot_be_known_of_a_jpeg_is_taken():
    half = saved(gradient(), "JPEG")
    half = half[: len(half) // 2] + b"\xff\xd9"
    assert room.inspect_image(saved(Image.open(io.BytesIO(half)), "JPEG"))[1] == ""  # opened and saved anew


def bad_images() -> dict[str, bytes]:
    from PIL import PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "a" * 70_000_000, zip=True)
    grey = gradient().convert("L")
    broken = saved(gradient(), "PNG")
    return {
        "a text of 70 MB": saved(gradient(), "PNG", pnginfo=text),
        "182 megapixels": saved(Image.new("1", (13_500, 13_500)), "PNG"),
        "cut GIF": saved(gradient(), "GIF")[:5000],
        "cut BMP": saved(gradient(), "BMP")[:5000],
        "cut WebP": saved(gradient(), "WEBP")[:500],
        "32 bits": saved(grey.convert("I"), "TIFF"),
        "float": saved(grey.convert("F"), "TIFF"),
        "PNG of too few rows": broken[:8] + broken[8:].replace(b"\0\0\1\0\0\0\1\0", b"\0\0\1\0\0\0\2\0", 1),
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "HTML": b"<html>404</html>",
        "nothing": b"",
    }


@pytest.mark.long
@pytest.mark.parametrize("name", bad_images())
def test_an_image_that_no_model_could_be_shown_is_found_at_once_or_left_out(tmp_path, name):
    for number in range(3):
        picture(tmp_path / f"{number}.png", number)
    (tmp_path / "1.png").write_bytes(bad_images()[name])
    (tmp_path / "m.jsonl").write_text("\n".join(line(uid=f"a/{n}", image=f"{n}.png") for n in range(3)))
    with pytest.raises(ValueError, match=r"1 problem\):\n  'a/1': the image .*1\.png is broken"):
        load_dataset(tmp_path / "m.jsonl")
    with pytest.warns(UserWarning, match=r"1 of 3 images left out: 'a/1': the image"):
        left = load_dataset(tmp_path / "m.jsonl", on_error="skip")
    assert [sample.uid for sample in left] == ["a/0", "a/2"] and left[0].factors["coverage"] == [2, 3]


def test_only_listed_formats_are_opened_and_nothing_is_started(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    from vlm_counting.core import load_image, open_image

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("Ghostscript was started"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "b.png").write_bytes(eps)
    for source in (tmp_path / "b.png", eps):
        with pytest.raises(ValueError, match="in no known format"):
            load_image(source)
        with pytest.raises(OSError), open_image(source):
            pass
        assert "in no known format" in room.inspect_image(source)[1]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_or_a_device_is_no_image(tmp_path):
    from vlm_counting.core import fingerprint, load_image

    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.png"):
        sample = Sample("a/0", tmp_path / name, "How many?", 1)
        assert "a pipe or a device" in room.inspect_image(sample.image)[1]
        with pytest.raises(ValueError, match="a pipe or a device"):
            load_image(sample.image)
        with pytest.raises(FileNotFoundError, match="sample 'a/0'.*a pipe or a device"):
            fingerprint([sample])


def test_left_out_of_every_kind_of_source_and_never_all(tmp_path):
    folder = make(tmp_path / "set")
    (folder / "images" / "1.png").unlink()
    with pytest.raises(ValueError, match=r"images/1\.png is missing"):
        load_dataset(folder)
    with pytest.warns(UserWarning, match="1 of 3 images left out"):
        assert [sample.target for sample in load_dataset(folder, on_error="skip")] == [1, 3]
    rows = rows_of(tmp_path, question="How many?")
    rows[2]["image"] = {"bytes": None, "path": "/etc/hostname"}
    with pytest.warns(UserWarning, match="1 of 3 images left out"):
        left = load_dataset(parquet(tmp_path / "t.parquet", rows), on_error="skip")
    assert [sample.factors["coverage"] for sample in left] == [[2, 3]] * 2
    for number in (0, 2):
        (folder / "images" / f"{number}.png").write_bytes(b"no")
    with pytest.raises(ValueError, match="3 problems"):
        load_dataset(folder, on_error="skip")
    with pytest.raises(ValueError, match="No way to deal with an error named 'ignore'"):
        load_dataset(folder, on_error="ignore")
    assert "coverage" not in load_dataset(make(tmp_path / "whole"), on_error="skip")[0].factors


# ------------------------------------------------------------------------------------- parts of the released layout


def test_the_released_lists_of_positions_are_splits(tmp_path):
    folder = make(tmp_path / "set", 5)
    (folder / "train_ids.json").write_text('["0", "3", "1"]')
    (folder / "valid_ids.json").write_text("[4]")
    samples = load_dataset(folder)
    assert [sample.factors.get("split") for sample in samples] == ["train", "train", None, "train", "valid"]
    assert [s.uid for s in load_dataset(f"{folder}@valid")] == ["set/4"]
    assert len(load_dataset(f"{folder}@train+valid+open")) == 4
    with pytest.raises(ValueError, match="No part named 'test'"):
        load_dataset(f"{folder}@test")
    for text, message in (
        ("[0, 5]", "5 is no position of a question, expected 0 to 4"),
        ("[4, 4]", "a position occurs twice"),
        ("[3]", "both have 3"),
        ("[true]", "True is no position"),
        ("[", "valid_ids.json is not whole JSON"),
    ):
        (folder / "valid_ids.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_dataset(folder)


def test_any_folder_archive_or_manifest_can_be_asked_openly(tmp_path):
    folder = make(tmp_path / "set")
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as tar:
        tar.add(folder, "set")
    for source in (folder, tmp_path / "set.tar.gz"):
        opened = load_dataset(f"{source}@open")
        assert opened == load_dataset(source, form="open") == load_dataset(f"{source}@open", form="open")
        assert opened[0].question == "How many red stars are there?" and opened[0].factors["options"] == [3, 1, 2]
    check_source(f"{folder}@open")
    with pytest.raises(ValueError, match="another form of question"):
        load_dataset(f"{folder}@open", form="closed")


def test_photographs_lie_where_the_authors_loader_looks(tmp_path):
    for place in ("test/images", "test"):
        folder = tmp_path / place.replace("/", "-")
        image = picture(folder / place / "0.jpg")
        row = {"image_url": "https://x.org/0", "label": "cats", "count": 3, "image_path": "0.jpg"}
        (folder / "test" / "samples.json").write_text(json.dumps([row | {"image_sha256": file_hash(image)}]))
        assert load_dataset(f"{folder}@test")[0].image == image
    text = (folder / "test" / "samples.json").read_text()
    (folder / "test" / "samples.json").write_text(text.replace('"count": 3', '"count": 3, "count": 4'))
    with pytest.raises(ValueError, match="'count' occurs twice"):
        load_dataset(f"{folder}@test")
