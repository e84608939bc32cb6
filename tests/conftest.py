"What all tests share: few threads, no network, no window, and no results left in the clone."

import os
import shutil
import subprocess
import sys
import tempfile

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "VLM_COUNTING_RESULTS" not in os.environ:
    _results = tempfile.TemporaryDirectory(prefix="vlm-counting-results-")
    os.environ["VLM_COUNTING_RESULTS"] = _results.name


@pytest.fixture
def small_disk(tmp_path):
    "A file system of 64 KiB (needs root on Linux)."
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("a small tmpfs needs root on Linux")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this machine does not allow mounting a tmpfs")
    yield disk
    subprocess.run(["umount", disk], check=True)
