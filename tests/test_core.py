"Guards for the room `core`: files survive full disks and bad places, folders belong to one run at a time."

import csv
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from vlm_counting.core import (
    Journal,
    RunRecord,
    Sample,
    claim_folder,
    code_hash,
    csv_text,
    describe_run,
    file_hash,
    fingerprint,
    load_image,
    lock_folder,
    read_jsonl,
    stratify,
    write_atomic,
    write_jsonl,
)

RECORD = RunRecord(
    "evaluate", {"limit": 4, "model": "m"}, weights="w", processor="p", fingerprint="f", seeds={"seed": 0}
)


def test_rows_survive_a_round_trip(tmp_path):
    rows = [
        Sample(f"a/{i}", tmp_path / "0.png", "Wie viele Sterne? \u2605", i, {"positions": [[i, 2]]}) for i in range(5)
    ]
    path = write_jsonl(tmp_path / "deep" / "rows.jsonl", rows[:2])
    write_jsonl(path, rows[2:], append=True)
    assert read_jsonl(path, Sample) == rows
    write_jsonl(path, rows[:1])
    assert read_jsonl(path, Sample) == rows[:1] and len(list(path.parent.iterdir())) == 1  # no temporary file is left


@pytest.mark.parametrize("cut", range(2, 60, 7))
def test_a_torn_last_line_is_dropped_wherever_it_was_torn(tmp_path, cut):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"uid": "a"}, {"uid": "b", "text": "x" * 60}])
    os.truncate(path, path.stat().st_size - cut)
    with pytest.warns(UserWarning, match="torn last line"):
        assert read_jsonl(path, repair=True) == [{"uid": "a"}]
    assert read_jsonl(path) == [{"uid": "a"}]  # repaired: no warning now


@pytest.mark.parametrize(
    "line, complaint", [("{", "line 2"), ('{"uid": 1, "colour": 2}', "no field 'colour'"), ("[]", "line 2")]
)
def test_damage_elsewhere_is_an_error_that_names_the_line(tmp_path, line, complaint):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"uid": "a", "image": "b", "question": "c", "target": 1}) + f"\n{line}\n")
    with pytest.raises(ValueError, match=complaint) as error:
        read_jsonl(path, Sample)
    assert "rows.jsonl, line 2" in str(error.value)


def test_a_full_disk_loses_no_finished_batch(small_disk):
    path, batch = small_disk / "rows.jsonl", [{"uid": str(i), "text": "x" * 400} for i in range(25)]
    with pytest.raises(OSError, match="Finished batches are kept") as error:
        for _ in range(20):
            write_jsonl(path, batch, append=True)
    assert error.value.errno == errno.ENOSPC
    kept = read_jsonl(path)  # warns (an error here) if a torn line were left
    assert kept == batch * (len(kept) // 25) and len(kept) >= 25


def test_a_full_disk_leaves_the_old_file(small_disk):
    path = write_atomic(small_disk / "run.json", "old")
    with pytest.raises(OSError, match="The old file, if any, is untouched"):
        write_atomic(path, "x" * 200_000)
    assert path.read_text() == "old" and [p.name for p in small_disk.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    "change, named",
    [
        ({"parameters": {"limit": 8, "model": "m"}}, "parameter 'limit' is 8 now and was 4"),
        ({"weights": "other"}, "weights is 'other' now and was 'w'"),
        ({"fingerprint": "other"}, "fingerprint"),
        ({"seeds": {"seed": 1}}, "seed 'seed' is 1 now and was 0"),
        ({"verb": "probe"}, "verb"),
    ],
)
def test_a_folder_of_another_run_is_refused_by_name(tmp_path, change, named):
    with claim_folder(RECORD, tmp_path):
        write_atomic(tmp_path / "predictions.jsonl", "precious")
    with pytest.raises(FileExistsError, match="overwrite=True") as error:
        with claim_folder(replace(RECORD, **change), tmp_path):
            raise AssertionError("must not be entered")
    assert named in str(error.value)
    assert (tmp_path / "predictions.jsonl").read_text() == "precious"
    with claim_folder(replace(RECORD, **change), tmp_path, overwrite=True):
        assert not (tmp_path / "predictions.jsonl").exists()
    assert (tmp_path / "replaced" / "predictions.jsonl").read_text() == "precious"  # nothing is lost


def test_the_same_run_is_claimed_again_and_its_sessions_add_up(tmp_path):
    for _ in range(2):
        with claim_folder(replace(RECORD, device="cpu"), tmp_path):
            pass
    record = RunRecord.load(tmp_path)
    assert record.status == "finished" and len(record.sessions) == 2
    assert {"started", "finished", "seconds", "peak_memory", "versions", "git"} <= set(record.sessions[1])


def test_a_failure_is_recorded(tmp_path):
    with pytest.raises(ZeroDivisionError), claim_folder(RECORD, tmp_path):
        1 / 0  # noqa: B018
    assert (RunRecord.load(tmp_path).status, RunRecord.load(tmp_path).error) == (
        "failed",
        "ZeroDivisionError: division by zero",
    )


def test_strange_files_and_broken_records_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="holds 'thesis.tex' but no run.json"), claim_folder(RECORD, tmp_path):
        pass
    (tmp_path / "run.json").write_text('{"verb": "eval')
    with pytest.raises(ValueError, match="run.json is not a run record"), claim_folder(RECORD, tmp_path):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_two_processes_cannot_write_to_one_folder(tmp_path):
    code = (
        "import sys; from vlm_counting.core import RunRecord, claim_folder; from pathlib import Path\n"
        "with claim_folder(RunRecord('evaluate', {}), Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"in\n"
    with (
        pytest.raises(BlockingIOError, match="Another process is writing"),
        claim_folder(RunRecord("evaluate", {}), tmp_path),
    ):
        pass
    other.kill()  # a lock must not outlive its process
    other.wait()
    with claim_folder(RunRecord("evaluate", {}), tmp_path):
        pass


def test_an_unwritable_place_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="VLM_COUNTING_RESULTS"), claim_folder(RECORD, tmp_path / "file" / "run"):
        pass
    if os.geteuid() == 0 and not Path("/proc/1").exists():
        pytest.skip("no read-only place to try as root")
    with pytest.raises(OSError, match="VLM_COUNTING_RESULTS"), claim_folder(RECORD, Path("/proc/1/run")):
        pass


def test_stratify_is_fair_repeatable_and_keeps_pairs():
    rows = [Sample(f"a/{i}", "0.png", "", i // 40, {"entity": i % 5}) for i in range(360)]
    part = stratify(rows, 90, seed=3)
    assert part == stratify(rows, 90, seed=3) != stratify(rows, 90, seed=4)
    for key in (lambda row: row.target, lambda row: (row.target, row.factors["entity"])):
        sizes = [sum(key(row) == value for row in part) for value in {key(row) for row in rows}]
        assert max(sizes) - min(sizes) == 0
    pairs = [Sample(f"b/{i}", "0.png", "", i % 7, {"pair": str(i // 2)}) for i in range(40)]
    kept = [row.factors["pair"] for row in stratify(pairs, 11)]
    assert len(kept) == 10 and all(kept.count(pair) == 2 for pair in kept)
    assert stratify(rows, None) == rows and len(stratify(rows, 10_000)) == 360


def test_a_fingerprint_depends_on_content_and_not_on_place(tmp_path):
    samples = []
    for name in ("here", "there"):
        (tmp_path / name).write_bytes(b"pixels")
        samples.append(Sample("a/0", tmp_path / name, "How many?", 3, {"b": 1, "a": 2}))
    assert fingerprint(samples[:1]) == fingerprint(samples[1:])
    assert fingerprint(samples[:1]) == fingerprint([replace(samples[0], sha256=file_hash(tmp_path / "here"))])
    for change in ({"target": 4}, {"question": "?"}, {"uid": "a/1"}, {"factors": {}}, {"image": b"others"}):
        assert fingerprint([replace(samples[0], **change)]) != fingerprint(samples[:1])


def test_a_batch_is_never_appended_to_half_a_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"uid": "a"}\n{"uid": "x')
    with pytest.warns(UserWarning, match="torn last line"):
        write_jsonl(path, [{"uid": "b"}], append=True)
    assert [row["uid"] for row in read_jsonl(path)] == ["a", "b"]


def squares(*numbers: int) -> list[dict]:
    return [{"root": number, "square": number**2} for number in numbers]


@pytest.mark.long
def test_a_journal_cut_anywhere_ends_in_the_same_bytes(tmp_path):
    "Whatever a kill left of it: whole pieces are kept, the rest is done again, the finished file is the same."
    pieces, path, root = [(5, 6), (1, 2), (3, 4)], tmp_path / "squares.jsonl", itemgetter("root")

    def work() -> list[tuple]:
        journal = Journal(path, root)
        left = journal.left(pieces, list)
        for piece in left:
            journal.append(squares(*piece))
        assert journal.finish(range(1, 7)) == squares(*range(1, 7)) == list(Journal(path, root).done.values())
        return left

    assert work() == pieces and work() == []
    whole = path.read_bytes()
    grown = "".join(json.dumps(row) + "\n" for row in squares(5, 6, 1, 2, 3, 4)).encode()
    for cut in range(len(grown) + 1):
        path.write_bytes(grown[:cut])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            left = work()
        assert path.read_bytes() == whole and len(left) == 3 - grown[:cut].count(b"}") // 2, cut


def test_a_journal_of_other_work_is_refused_and_stays_as_it_is(tmp_path):
    path, root = tmp_path / "squares.jsonl", itemgetter("root")
    Journal(path, root).append([*squares(1, 2, 3), {"root": 2, "square": 5}])
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="squares.jsonl, line 4 is there twice"):
        Journal(path, root, strange=lambda row, done: "is there twice" if row["root"] in done else "")
    assert path.read_bytes() == before and list(Journal(path, root).done) == [1, 2, 3]
    with open(path, "a") as file:
        file.write("{")
    with pytest.warns(UserWarning, match="torn last line"):
        Journal(path, root, repair=False)  # another process is writing it
    assert path.read_bytes() == before + b"{"
    kept = Journal(None, root)
    kept.append(squares(2, 1))
    assert kept.left([(1,), (3,)], list) == [(3,)] and kept.finish([1, 2]) == squares(1, 2)
    kept.append([])
    assert not (tmp_path / "None").exists()


@pytest.mark.parametrize("again", [(1,), (1, 2, 3), (3, 1)])
def test_what_two_processes_did_at_once_counts_once(tmp_path, again):
    "On a file system where locks do nothing both append their rows."
    path, root = tmp_path / "squares.jsonl", itemgetter("root")
    Journal(path, root).append([*squares(1, 2), *squares(*again), *squares(3)])

    def strange(row: dict, done: dict) -> str:
        return "is there twice" if row["root"] in done else ""

    assert Journal(path, root, strange=strange).finish([1, 2, 3]) == squares(1, 2, 3)
    assert read_jsonl(path) == squares(1, 2, 3)


@pytest.mark.parametrize("text", ['{"a": 1}\n\n{"b": 2}\n', '\n{"a": 1}\n  \n{"b": 2}\n\n', '{"a": 1}\r\n{"b": 2}\r\n'])
def test_a_blank_line_says_nothing(tmp_path, text):
    (tmp_path / "rows.jsonl").write_bytes(text.encode())
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize("line", ["[" * 10**5, '{"a": ' * 10**5, '{"a": [' * 60 + "]}" * 60, '{"a": 1, "a": 2}', "5x"])
@pytest.mark.parametrize("cls", [None, Sample, RunRecord])
def test_json_that_nobody_can_use_is_an_error_of_its_line(tmp_path, line, cls):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"rows.jsonl, line 1: "):
        read_jsonl(path, cls)
    (tmp_path / "run.json").write_text(line)
    with pytest.raises(ValueError, match="run.json is not a run record"):
        RunRecord.load(tmp_path)


BROKEN_RECORDS = {
    "empty": "", "a number": "5", "null": "null", "a list": "[]",
    "no parameters": '{"verb": "evaluate", "parameters": null}',
    "sessions": '{"verb": "evaluate", "parameters": {}, "sessions": null}',
    "samples": '{"verb": "evaluate", "parameters": {}, "samples": "9"}',
    "text": '{"verb": 5, "parameters": {}}', "truth": '{"verb": "evaluate", "parameters": {}, "samples": true}',
}  # fmt: skip


@pytest.mark.parametrize("text", BROKEN_RECORDS.values(), ids=BROKEN_RECORDS)
def test_a_record_of_other_types_is_named(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match="run.json is not a run record"):
        RunRecord.load(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "device", "pipe behind a link"])
def test_a_pipe_or_a_device_is_no_file(tmp_path, kind):
    "It would be waited for, or read, without end."
    path = tmp_path / "a"
    if kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe") if "link" in kind else os.rename(tmp_path / "pipe", path)
    for read in (read_jsonl, file_hash, lambda path: Journal(path, itemgetter("uid"))):
        with pytest.raises(ValueError, match="is a pipe or a device"):
            read(path)
    (tmp_path / "run.json").symlink_to(path)
    with pytest.raises(ValueError, match="is a pipe or a device"):
        RunRecord.load(tmp_path)


def test_half_files_of_killed_processes_are_taken_away(tmp_path):
    "And those of living ones are not: they may be about to be renamed."
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for number in (dead.pid, os.getpid()):
        (tmp_path / f".scores.csv.{number}.tmp").write_text("half")
    with lock_folder(tmp_path):
        left = [path.name for path in tmp_path.glob(".*.tmp")]
    assert left == [f".scores.csv.{os.getpid()}.tmp"]


def test_a_last_line_that_only_lacks_its_newline_is_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"uid": "a"}\n{"uid": "b"}')
    assert [row["uid"] for row in read_jsonl(path, repair=True)] == ["a", "b"]
    assert path.read_text().endswith('"b"}\n')


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_what_is_no_json_is_refused_by_uid(tmp_path, value):
    with pytest.raises(ValueError, match="record 'a/7' cannot be written"):
        write_jsonl(tmp_path / "rows.jsonl", [{"uid": "a/7", "value": value}])
    assert not (tmp_path / "rows.jsonl").exists()


def test_pictures_of_many_modes_are_read_alike(tmp_path):
    import numpy as np
    from PIL import Image

    grey = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    assert (np.asarray(load_image(tmp_path / "8.png")) == np.asarray(load_image(tmp_path / "16.png"))).all()
    turned = Image.fromarray(grey)
    turned.getexif()[0x0112] = 6  # "rotate by 90 degrees to view"
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif())
    assert load_image(tmp_path / "turned.jpg").size == (4, 256)
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="float.tiff: its pixels are of mode 'F'"):
        load_image(tmp_path / "float.tiff")


def test_a_limit_below_a_pair_is_refused():
    pairs = [Sample(f"b/{i}", "0.png", "", i % 7, {"pair": str(i // 2)}) for i in range(40)]
    with pytest.raises(ValueError, match="groups of 2"):
        stratify(pairs, 1)


def test_a_part_belongs_to_its_run(tmp_path):
    with claim_folder(replace(RECORD), tmp_path / "part-1-of-2"):
        pass
    with pytest.raises(FileExistsError, match=r"part-1-of-2 belongs to another run: weights is 'other' now"):
        with claim_folder(replace(RECORD, weights="other"), tmp_path):
            pass
    assert not (tmp_path / "run.json").exists()
    with claim_folder(replace(RECORD), tmp_path):
        pass
    assert len(RunRecord.load(tmp_path).sessions) == 1
    with claim_folder(replace(RECORD, weights="other"), tmp_path, overwrite=True):
        assert (tmp_path / "replaced" / "part-1-of-2" / "run.json").exists()


def test_nothing_is_lost_however_often_a_folder_is_replaced(tmp_path):
    for number in range(4):
        with claim_folder(replace(RECORD, weights=str(number)), tmp_path, overwrite=True):
            write_atomic(tmp_path / "notes.txt", f"written by hand in {number}")
    kept = [(tmp_path / name / "notes.txt").read_text()[-1] for name in ("replaced-1", "replaced-2", "replaced", ".")]
    assert kept == ["0", "1", "2", "3"]


def failed(folder: Path, **files: str) -> None:
    "A run that ends with an error, after it has kept these files."
    with pytest.raises(ZeroDivisionError), claim_folder(replace(RECORD), folder):
        for name, text in files.items():
            write_atomic(folder / f"{name}.jsonl", text)
        raise ZeroDivisionError


def test_a_run_that_failed_before_it_kept_a_thing_is_in_nobody_s_way(tmp_path):
    failed(tmp_path)
    with claim_folder(replace(RECORD, weights="other"), tmp_path):
        pass
    assert RunRecord.load(tmp_path).weights == "other"
    failed(tmp_path / "more", predictions="precious")
    with pytest.raises(FileExistsError, match="weights is 'other' now"):
        with claim_folder(replace(RECORD, weights="other"), tmp_path / "more"):
            pass


@pytest.mark.parametrize("begun, status, refused", [
    ("0.5.9", "running", True), ("0.5.9", "failed", True), ("0.5.9", "finished", False), ("0.6.0", "failed", False),
    ("0.10.0", "running", False),
])  # fmt: skip
def test_a_run_half_done_by_a_version_that_asked_in_another_way(tmp_path, begun, status, refused):
    write_atomic(tmp_path / "predictions.jsonl", "precious")
    replace(RECORD, status=status, sessions=[{"versions": {"vlm_counting": begun}}]).save(tmp_path)
    with (
        pytest.raises(FileExistsError, match=f"begun by version {begun}.*overwrite=True") if refused else nullcontext()
    ):
        with claim_folder(replace(RECORD), tmp_path):
            pass
    assert (tmp_path / "predictions.jsonl").read_text() == "precious"


@pytest.mark.parametrize(
    "parameters, words", [({"limit": 4}, "begun by a command"), ({"model": "m"}, "begun by Python")]
)
def test_python_and_the_command_line_know_whose_folder_it_is(tmp_path, parameters, words):
    other = {"model": "m", "limit": 4} if words.endswith("command") else {"limit": 4}
    with claim_folder(replace(RECORD, parameters=other), tmp_path):
        write_atomic(tmp_path / "predictions.jsonl", "precious")
    with pytest.raises(FileExistsError, match=words), claim_folder(replace(RECORD, parameters=parameters), tmp_path):
        pass


@pytest.mark.parametrize("place", ["file.txt", "file.txt/run", "file.txt/run/deeper"])
def test_a_file_is_no_folder(tmp_path, place):
    (tmp_path / "file.txt").write_text("mine")
    with pytest.raises(NotADirectoryError, match="file.txt is a file, expected a folder"):
        with claim_folder(replace(RECORD), tmp_path / place):
            pass


def test_a_fingerprint_sees_the_images_as_they_are(tmp_path):
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for path, colour in zip(paths, ("red", "blue"), strict=True):
        Image.new("RGB", (4, 4), colour).save(path)
    sample = Sample("set/1", paths[0], "How many?", 1, sha256=file_hash(paths[0]))
    other = replace(sample, image=paths[1])  # keeps the sha256 of the first
    assert fingerprint([sample]) != fingerprint([other]) == fingerprint([replace(other, sha256="")])
    paths[1].write_bytes(paths[0].read_bytes())
    assert fingerprint([sample]) == fingerprint([other])
    paths[0].unlink()
    assert fingerprint([sample]) == fingerprint([other])  # of an image that is gone, what was known


def test_a_run_from_python_knows_its_set_where_the_uids_tell_it():
    samples = [Sample(f"balanced/{number}", b"x", "How many?", 1) for number in range(2)]
    assert describe_run("evaluate", {}, samples=samples).dataset == "balanced"
    assert describe_run("evaluate", {}, samples=[*samples, replace(samples[0], uid="other/1")]).dataset == ""
    assert describe_run("evaluate", {}, samples=samples, known=replace(RECORD, dataset="mine")).dataset == "mine"


def test_two_classes_of_one_kind_have_hashes_of_their_own():
    "A name that stands in a class and in its parent does not stop the hash."

    class Parent:
        def predict(self, x):
            return x

    class Child(Parent):
        def predict(self, x):
            return -x

    class Other(Parent):
        def predict(self, x):
            return x + 1

    assert len({code_hash(kind) for kind in (Parent, Child, Other)}) == 3 and code_hash(Child()) == code_hash(Child())


def test_copying_changes_no_hash():
    "Python notes in a class that one of its instances was copied."

    class Mine:
        def predict(self, x):
            return x

    before = code_hash(Mine())
    deepcopy(Mine())
    assert code_hash(Mine()) == before


def test_a_class_is_known_by_all_that_stands_in_it():
    "Attributes, static methods, properties; of things that `repr` cuts short, all."

    def made(**inside):
        return type("Mine", (), inside)

    kinds = [made(k=1), made(k=2), made(f=staticmethod(lambda x: x)), made(f=classmethod(lambda x: x))]
    kinds += [made(f=staticmethod(lambda x: -x)), made(p=property(lambda x: 1)), made(p=property(lambda x: 2))]
    assert len({code_hash(kind) for kind in kinds}) == len(kinds)
    long = [re.compile("a" * 300 + end) for end in "bc"]
    assert code_hash(long[0]) != code_hash(long[1]) and code_hash(itemgetter(1)) != code_hash(itemgetter(2))


def test_who_takes_over_a_folder_that_holds_nothing_inherits_nothing(tmp_path):
    "A run of an old version failed at once; ours was interrupted later: it is ours that goes on."
    replace(RECORD, status="failed", sessions=[{"versions": {"vlm_counting": "0.5.0"}}]).save(tmp_path)
    with pytest.raises(KeyboardInterrupt), claim_folder(replace(RECORD, weights="other"), tmp_path):
        write_atomic(tmp_path / "predictions.jsonl", "precious")
        raise KeyboardInterrupt
    with claim_folder(replace(RECORD, weights="other"), tmp_path):
        pass
    assert len(RunRecord.load(tmp_path).sessions) == 2


def test_parts_of_two_versions_are_not_joined(tmp_path):
    for number, version in ((1, "0.5.0"), (2, "0.6.0")):
        part = tmp_path / f"part-{number}-of-2"
        part.mkdir()
        replace(RECORD, status="finished", sessions=[{"versions": {"vlm_counting": version}}]).save(part)
    with pytest.raises(FileExistsError, match="part-1-of-2 was begun by version 0.5.0"):
        with claim_folder(replace(RECORD), tmp_path):
            pass


def test_one_may_delete_what_was_set_aside(tmp_path):
    for number in range(4):
        with claim_folder(replace(RECORD, weights=str(number)), tmp_path, overwrite=True):
            pass
    shutil.rmtree(tmp_path / "replaced-1")
    with claim_folder(replace(RECORD, weights="5"), tmp_path, overwrite=True):
        pass
    assert {"replaced", "replaced-2", "replaced-3"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("place", ["nowhere.png", "."])
def test_an_image_that_is_not_there_is_named_with_its_sample(tmp_path, place):
    with pytest.raises(FileNotFoundError, match=r"No image at .* for sample 'set/1'.*mistyped"):
        fingerprint([Sample("set/1", tmp_path / place, "How many?", 1)])


def test_functions_of_one_s_own_identify_a_run_by_command_too(tmp_path):
    "A command knows its parameters already; what it cannot know of them is kept beside them."
    known = RunRecord("evaluate", {"model": "m", "parser": "mine"})
    one, two = (describe_run("evaluate", {"parser_code": code}, known=known) for code in ("abc", "abd"))
    assert one.parameters == known.parameters and one.code == {"parser_code": "abc"}
    with claim_folder(one, tmp_path):
        write_atomic(tmp_path / "predictions.jsonl", "precious")
    with pytest.raises(FileExistsError, match="code is .*abd.* now and was .*abc"), claim_folder(two, tmp_path):
        pass
    assert "code" not in json.loads(RECORD.save(tmp_path / "other").read_text())


def test_a_part_that_was_killed_before_its_record_was_written_is_in_nobody_s_way(tmp_path):
    (tmp_path / "part-1-of-2").mkdir()
    with claim_folder(replace(RECORD), tmp_path):
        pass
    assert RunRecord.load(tmp_path).status == "finished"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", " =", "\n@"])
def test_no_cell_of_a_csv_is_a_formula(start):
    text = f"{start}cmd|' /C calc'!A0"
    numbers = {text: [-1.5, 2.0, 3.0], "n": pd.array([1, None, -3], "Int64")}
    table = pd.DataFrame({"label": [text, "cats", None]} | numbers)
    rows = list(csv.reader(io.StringIO(csv_text(table))))
    assert [row[0] for row in rows[1:]] == [f"'{text}", "cats", ""] and rows[0][1] == f"'{text}"
    assert [row[1] for row in rows[1:]] == ["-1.5", "2.0", "3.0"] and [row[2] for row in rows[1:]] == ["1", "", "-3"]
    named = list(csv.reader(io.StringIO(csv_text(table.set_index(["label", "n"]), index=True))))
    assert named[1][0] == f"'{text}"


def test_a_plain_table_is_written_as_pandas_writes_it():
    table = pd.DataFrame(
        {"a": ["x", 'y"z'], "b": [0.1, float("nan")], "c": [True, False], "d": pd.Categorical(["u", "v"])}
    )
    assert csv_text(table) == table.to_csv(index=False) and csv_text(table.iloc[:0]) == table.iloc[:0].to_csv(
        index=False
    )
    assert csv_text(table, index=True) == table.to_csv()


def test_a_carriage_return_begins_no_row():
    assert csv_text(pd.DataFrame({"label": ["cats\r=cmd"]})) == "label\ncats =cmd\n"


WITHOUT_LOCKS = """
import errno, fcntl, sys
from vlm_counting.core import lock_folder

def flock(file, operation):
    raise OSError(int(sys.argv[2]), "no locks here")

fcntl.flock = flock
try:
    with lock_folder(sys.argv[1]), lock_folder(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.read()
except BlockingIOError as error:
    print(error)
"""


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:flock not supported")
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_has_one_writer_all_the_same(tmp_path, code):
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_LOCKS, str(tmp_path), str(code)]
    how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **how) as first:
        assert first.stdout.readline() == "held\n"
        second = subprocess.run(command, input="", capture_output=True, text=True)
        assert second.stdout.startswith("Another process is writing to")
        first.kill()
    again = subprocess.run(command, input="", capture_output=True, text=True)  # who was killed holds nothing
    assert again.stdout == "held\n"
