"A disk that refuses locks: one sentence, or another way; nothing that was written is lost, and nobody is kept out."

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from vlm_counting.core import lock_folder, write_atomic
from vlm_counting.stimuli import generate

REFUSED = [errno.EIO, errno.ESTALE, errno.EPERM, errno.ENOMEM]  # ENOLCK and its like: see test_core


def refusing(monkeypatch, code: int, unlocking: bool) -> None:
    "From now on `flock` raises: on locking, or on unlocking."
    real = fcntl.flock

    def flock(file, operation):
        if bool(operation & fcntl.LOCK_UN) == unlocking:
            raise OSError(code, os.strerror(code))
        return real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("code", REFUSED, ids=errno.errorcode.get)
def test_a_lock_that_cannot_be_had_is_one_sentence(tmp_path, monkeypatch, code):
    (tmp_path / "kept").write_text("as it was")
    refusing(monkeypatch, code, unlocking=False)
    with pytest.raises(OSError, match=rf"Cannot lock the results folder .*: {os.strerror(code)}") as error:
        with lock_folder(tmp_path):
            raise AssertionError("nobody gets here")
    assert error.value.errno == code and "\n" not in str(error.value)
    monkeypatch.undo()
    with lock_folder(tmp_path):  # as soon as the disk is well
        assert (tmp_path / "kept").read_text() == "as it was"


@pytest.mark.parametrize("code", [*REFUSED, errno.ENOLCK], ids=errno.errorcode.get)
def test_a_lock_that_is_not_taken_back_takes_nothing_with_it(tmp_path, monkeypatch, code):
    refusing(monkeypatch, code, unlocking=True)
    with lock_folder(tmp_path):
        write_atomic(tmp_path / "written", "whole")
    with pytest.raises(OSError, match="Cannot lock .*: the disk does not take back an earlier lock"):
        with lock_folder(tmp_path):
            raise AssertionError("nobody gets here")
    with pytest.raises(KeyError, match="its own"), lock_folder(tmp_path / "other"):  # and hides no error
        raise KeyError("its own")
    monkeypatch.undo()
    with lock_folder(tmp_path), lock_folder(tmp_path):
        assert (tmp_path / "written").read_text() == "whole"
    script = f"from vlm_counting.core import lock_folder\nwith lock_folder({str(tmp_path)!r}): print('held')"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "held\n"


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOLCK], ids=errno.errorcode.get)
def test_images_are_drawn_without_locks_or_refused_in_a_sentence(tmp_path, monkeypatch, code):
    monkeypatch.setenv("VLM_COUNTING_DATA", str(tmp_path))
    refusing(monkeypatch, code, unlocking=False)
    if code == errno.ENOLCK:
        assert len(generate("balanced", limit=9)) == 9
        return
    with pytest.raises(OSError, match=os.strerror(code)) as error:
        generate("balanced", limit=9)
    assert str(tmp_path) in str(error.value)


def test_a_leftover_that_cannot_be_taken_away_stops_nobody(tmp_path, monkeypatch):
    left = tmp_path / ".run.json.4194305.tmp"  # no process has this number
    left.write_text("half")
    real = os.unlink

    def unlink(path, *more, **how):
        if os.path.basename(path) == left.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *more, **how)

    monkeypatch.setattr(os, "unlink", unlink)
    with lock_folder(tmp_path):
        pass
    monkeypatch.undo()
    with lock_folder(tmp_path):
        assert not left.exists()
