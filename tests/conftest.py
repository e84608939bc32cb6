"What all tests share: few threads, no network, no window, and no results left in the clone."

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter

import pytest

pytest.register_assert_rewrite("broken")  # a file of fixtures
WORKER = "PYTEST_XDIST_WORKER" in os.environ  # one of several processes of `pytest -n 2`

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.modules.setdefault(
    "rfc3987_syntax", None
)  # seconds of grammars for jsonschema, which works without: see chapter runs


def pytest_configure(config):
    "Before a test is collected, and so before torch counts its threads."
    sends = not WORKER and bool(getattr(config.option, "tx", None))  # runs no test itself, and workers inherit from it
    os.environ.setdefault("OMP_NUM_THREADS", "1" if sends else "2")
    if "VLM_COUNTING_RESULTS" not in os.environ and not sends:
        folder = tempfile.TemporaryDirectory(prefix="vlm-counting-results-")
        config.add_cleanup(folder.cleanup)
        os.environ["VLM_COUNTING_RESULTS"] = folder.name


FIRST = ("test_notebooks", "test_guides", "test_runs", "test_sweeps", "test_report", "test_diagnosis", "test_probing",
        "test_extraction", "test_generative", "test_stimuli", "test_site", "test_contrastive",
        "test_training", "test_architectures", "test_front_door", "test_models", "test_findings",
        "test_figures")  # fmt: skip


# 5 s and more to make: who uses one is a long test
LONG_FIXTURES = {"diagnosed", "forker", "owned", "patched", "result"}


def is_long(item, seen: Counter) -> bool:
    "Does it use what takes long to make, or is it one of many of its kind, after the first ones?"
    name = item.nodeid.partition("[")[0]
    seen[name] += 1
    several = item.get_closest_marker("long_after")
    return bool(LONG_FIXTURES & set(item.fixturenames)) or bool(several and seen[name] > several.args[0])


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    "Which tests are long; and files that take long come first, so that two processes end at about the same time."
    seen = Counter()
    for item in [item for item in items if is_long(item, seen)]:
        item.add_marker(pytest.mark.long)
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "With `-n 2`, a file stays in one process, which makes its fixtures once; notebooks share nothing."
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False  # the order below is better: long files first, none of them left over

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return nodeid if file.endswith("test_notebooks.py") else file

    return Files(config, log)


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
