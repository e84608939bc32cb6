"Small images, and a cache of their own, for tests that read sets."

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_COUNTING_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def picture(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (255, shade, 0)).save(path)
    return path
