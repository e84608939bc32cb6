"Pages that `diagnose` and `build_bpc` leave of sets whose every text would like to be a program, in a browser."

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from chromium import open_chromium
from test_real_images import jpeg, link, table
from test_real_images import web as web  # a fixture

from vlm_counting.core import write_jsonl
from vlm_counting.stimuli import generate

ATTACKS = [
    "<script>document.documentElement.dataset.pwned=1</script>",
    '<img src=x onerror="document.documentElement.dataset.pwned=1">',
    "</td></table><svg onload=document.documentElement.dataset.pwned=1></svg>",
    '"><iframe srcdoc="<script>parent.document.documentElement.dataset.pwned=1</script>"></iframe>',
    "$\\href{javascript:document.documentElement.dataset.pwned=1}{x}$",
    "[a](javascript:document.documentElement.dataset.pwned=1)",
]


def perform(place: Path, command: str, *words: str) -> Path:
    "A command as typed, in a process of its own; the page that it leaves."
    places = {
        "VLM_COUNTING_RESULTS": str(place / "results"),
        "VLM_COUNTING_DATA": str(place / "data"),
    }
    asked = [Path(sys.executable).parent / "vlm-counting", command, *words]
    done = subprocess.run(asked, env=os.environ | places, cwd=place, capture_output=True, text=True, timeout=900)
    assert not done.returncode, done.stderr[-3000:]
    (page,) = (place / "results").rglob("report.html")
    return page


def opened(page: Path, named: list[str]) -> None:
    "Nothing runs in a page; its policy is there, and some of the names are read as they are."
    text = page.read_text(encoding="utf-8")
    assert text.index("Content-Security-Policy") < text.index("<style")
    with open_chromium(f"the page of {page.parent}") as driver:
        driver.get(page.as_uri())
        driver.implicitly_wait(1)
        said = driver.find_element("tag name", "body").get_attribute("textContent")
        assert driver.execute_script("return document.documentElement.dataset.pwned") is None
        assert not driver.find_elements("css selector", "iframe, [onerror], [onload], a[href^='javascript:']")
        loaded = driver.execute_script("return performance.getEntriesByType('resource').map(each => each.name)")
        assert not [name for name in loaded if not name.startswith(("data:", "file:"))]
    assert all(name in said for name in named), said[:2000]


def hostile(folder: Path, family: str) -> str:
    "A manifest with the samples of a family, their names taken over."
    rows = []
    for number, sample in enumerate(generate(family, limit=36)):
        attack = ATTACKS[number % len(ATTACKS)]
        names = {"entity": f"{sample.factors['entity']}{attack}", "label": attack, "note": attack}
        changed = replace(sample, factors=sample.factors | names, question=f"{sample.question} {attack}")
        rows.append({name: value for name, value in vars(changed).items() if name != "sha256"})
        rows[-1] |= {"uid": f"{family}/{number}{attack}", "image": str(sample.image)}
    folder.mkdir()
    write_jsonl(folder / "manifest.jsonl", rows)
    return str(folder / "manifest.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny-clip", "tiny-qwen2-vl"])
def test_a_diagnosis_runs_nothing_that_its_sets_bring_along(model, tmp_path):
    sets = [hostile(tmp_path / family, family) for family in ("balanced", "two_groups")]
    named = [f"model={model}", f"dataset={sets[0]}", f"transfer={sets[1]}", "limit=None", "device=cpu"]
    opened(perform(tmp_path, "diagnose", *named), [model, "what a reader of the last state keeps"])


@pytest.mark.slow
def test_a_set_of_photographs_runs_nothing_that_its_table_brings_along(web, tmp_path):
    parts = {}
    for base, (split, number) in enumerate({"train": 40, "valid": 12, "test": 12}.items()):
        kinds = ["gone" if n % 5 == 4 else "good" for n in range(number)]
        parts[split] = [
            link(web, f"/{kind}/{split}{n}", jpeg(100 * base + n, (40 + n, 30)), count=n % 10, label=ATTACKS[n % 6])
            for n, kind in enumerate(kinds)
        ]
    source = table(tmp_path / "hub", parts)
    words = [f"source={source}", f"folder={tmp_path / 'bpc'}", "per_count=3", "private_hosts=['127.0.0.1']"]
    opened(perform(tmp_path, "build_bpc", *words), ATTACKS[:2])
    assert json.loads((tmp_path / "bpc" / "test" / "samples.json").read_text())[0]["label"] in ATTACKS
