"The package as others get it: a source archive and a wheel, installed beside nothing, used from somewhere else."

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from vlm_counting.core import project_root

pytestmark = [pytest.mark.slow, pytest.mark.skipif(project_root() is None, reason="needs the repository")]


def do(*words: object, where: Path, **environment: str) -> str:
    told = {name: value for name, value in os.environ.items() if not name.startswith("VLM_COUNTING")}
    done = subprocess.run(
        list(map(str, words)), cwd=where, env=told | environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    "A source archive of what git knows, and the wheel that is made of that archive."
    place = tmp_path_factory.mktemp("built")
    files = do("git", "ls-files", "-z", where=project_root()).split("\0")
    with tarfile.open(place / "clone.tar", "w") as archive:
        for name in filter(None, files):
            if (project_root() / name).exists():
                archive.add(project_root() / name, f"clone/{name}")
    with tarfile.open(place / "clone.tar") as archive:
        archive.extractall(place, filter="data")
    do(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", place / "dist", where=place / "clone")
    with tarfile.open(next((place / "dist").glob("*.tar.gz"))) as archive:
        archive.extractall(place / "unpacked", filter="data")
    source = next((place / "unpacked").iterdir())
    do(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        place / "dist",
        source,
        where=place,
    )
    return place


def test_a_wheel_made_of_the_source_archive_has_what_the_clone_has(built):
    names = zipfile.ZipFile(next((built / "dist").glob("*.whl"))).namelist()
    commands = {path.name for path in (project_root() / "nbs").glob("[a-z]*.ipynb")}
    assert commands <= {Path(name).name for name in names if name.startswith("vlm_counting/shipped/nbs/")}
    assert {"vlm_counting/shipped/data/published/published.csv", "vlm_counting/twins/tiny-clip/config.json"} <= set(
        names
    )


def test_every_command_works_outside_the_repository(built, tmp_path):
    "Installed in a folder of its own, typed somewhere else."
    site = tmp_path / "site"
    wheel = next((built / "dist").glob("*.whl"))
    do(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel, where=tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def vlm_counting(*words: str) -> str:
        return do(
            sys.executable, "-m", "vlm_counting", *words, where=elsewhere, PYTHONPATH=str(site), HOME=str(tmp_path)
        )

    place = do(
        sys.executable, "-c", "import vlm_counting; print(vlm_counting.__file__)", where=elsewhere, PYTHONPATH=str(site)
    )
    assert place.startswith(str(site))
    assert "evaluate" in vlm_counting("list", "commands")
    vlm_counting("evaluate", "model=tiny-clip", "limit=9")
    folder = elsewhere / "results" / "evaluate" / "tiny-clip" / "balanced"
    assert {"report.html", "notebook.ipynb", "scores.csv"} <= {path.name for path in folder.iterdir()}
    assert "There are: balanced" not in vlm_counting("list", "results") and "finished" in vlm_counting(
        "list", "results"
    )
    vlm_counting("report", "images=some")
    assert (elsewhere / "results" / "report" / "effects.csv").exists()
