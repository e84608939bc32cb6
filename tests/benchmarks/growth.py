"""How time and memory of each verb grow with the number of samples: 1,000, 4,000 and all 17,496 of `balanced`.

`OMP_NUM_THREADS=1 python tests/benchmarks/growth.py` runs every verb on a twin in results and data folders of its
own, one after the other, as the command line does, and writes growth.json and growth.md. What is measured is kept
row by row: started again, it goes on with what is missing (`--again` measures all). Time is that of the processors,
of a command with all its processes: other work on the machine does not count. Memory is the peak of the largest
process.

`probe` on a twin has 128 numbers a state; a model of seven billion weights has 3,584, where a Gram matrix pays.
So the last row probes one such representation of random numbers, with the same function.
"""

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from vlm_counting.core import git_commit, project_root, versions

HERE, MODEL, SIZES, START = Path(__file__).parent, "tiny-internvl3", (1_000, 4_000, 17_496), 90
STIMULI = "from vlm_counting.datasets import load_dataset; load_dataset('balanced', limit={n})"
WIDE = """
from growth import Numbers
from vlm_counting.probing import probe_layers

probe_layers(Numbers({n}, 3584), rules=("random",), controls=(), jobs=1, progress=False)
"""
VERBS = {  # row -> (words for Python or for `vlm-counting run`, what to know of it)
    "stimuli": (STIMULI, "672 x 672 pixels, drawn and written"),
    "evaluate": ("evaluate model={m} limit={n}", "with scores, figures and the browser page"),
    "extract": ("extract model={m} limit={n}", "all layers, all poolings, lens"),
    "probe": (
        "probe model={m} states=narrow probes=svm rules=paper untrained=None jobs=1",
        "two representations of 128 numbers, with controls",
    ),
    "train": (
        "train model={m} limit={n} training_limit={t} epochs=20 controls=False",
        "one head, 20 epochs on up to 7,290 samples, tested on all",
    ),
    "diagnose": ("diagnose model={m} limit={n}", "with each of two sets"),
    "report": ("report", "with the runs above"),
    "wide probe": (WIDE, "one representation of 3,584 numbers, no controls; see below"),
}
ALONE = {"OMP_NUM_THREADS": "1", "LOKY_MAX_CPU_COUNT": "1"}  # no helpers whose time nobody would count
BEFORE = {"probe": "extract model={m} limit={n} run=narrow layers=3 poolings=mean,last"}  # not measured


@dataclass(frozen=True)
class Numbers:
    "Random states in memory, with the interface of a store."

    samples: int
    dim: int
    model: str = "random numbers"

    @property
    def targets(self) -> np.ndarray:
        return 1 + np.arange(self.samples) % 9

    @property
    def uids(self) -> list[str]:
        return [str(number) for number in range(self.samples)]

    @property
    def factors(self) -> list[dict]:
        return [{"layout": number // 9 % 81, "entity": f"kind {number // 729}"} for number in range(self.samples)]

    def keys(self) -> list[tuple[int, str]]:
        return [(0, "mean")]

    def array(self, layer: int, pooling: str, check: bool = False) -> np.ndarray:
        random = np.random.default_rng(0)
        ways = 8 * random.standard_normal((9, self.dim)) / self.dim**0.5
        return (ways[self.targets - 1] + random.standard_normal((self.samples, self.dim))).astype(np.float32)


def measured(words: str, size: int, places: dict[str, str]) -> dict:
    "Processor seconds and peak memory of one command with all its processes. `SystemExit` with what it said."
    filled = words.format(m=MODEL, n=size, t=min(size, 7290))
    command = [Path(sys.executable).parent / "vlm-counting", "run", *filled.split()]
    command = [sys.executable, "-c", filled] if "import" in words else command
    with tempfile.TemporaryFile() as said:
        environment = os.environ | {"PYTHONPATH": f"{project_root()}{os.pathsep}{HERE}"} | places | ALONE
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        if status:
            said.seek(0)
            raise SystemExit(f"{filled}\n{said.read().decode()[-3000:]}")
    row = {"seconds": round(used.ru_utime + used.ru_stime, 2), "memory_mb": round(used.ru_maxrss / 1024)}
    return row | {"commit": git_commit(), "date": str(date.today())}


def _slopes(found: list[dict | None]) -> tuple[float | None, ...]:
    "Milliseconds for one sample more between the smaller and between the larger sizes, and kB for one more."
    (one, two, three), (small, middle, large) = found, SIZES
    first = 1e3 * (two["seconds"] - one["seconds"]) / (middle - small)
    if three is None:
        return first, None, None
    second = 1e3 * (three["seconds"] - two["seconds"]) / (large - middle)
    return first, second, 1024 * (three["memory_mb"] - two["memory_mb"]) / (large - middle)


def table(rows: dict) -> list[str]:
    "One line a verb: seconds and memory at each size, and what one more sample costs, between the sizes."
    sizes = " | ".join(f"{size:,}" for size in SIZES)
    _, middle, large = SIZES
    lines = [
        f"| verb | {sizes} | ms for one more, up to {middle:,} | up to {large:,} | ratio | kB for one more |",
        "|---" * 8 + "|",
    ]
    for verb in VERBS:
        found = [rows.get(f"{verb} {size}") for size in SIZES]
        if None in found[:2]:
            continue
        each = " | ".join(
            f"{row['seconds']:,.0f} s, {row['memory_mb']:,} MB" if row else "not measured" for row in found
        )
        slopes = _slopes(found)
        ratio = f"**{slopes[1] / slopes[0]:.2f}**" if slopes[1] is not None and slopes[0] > 0 else "-"
        first, second, more = (f"{number:.1f}" if number is not None else "-" for number in slopes)
        lines.append(f"| {verb} | {each} | {first} | {second} | {ratio} | {more} |")
    return lines


def exponent(rows: dict, verb: str, what: str) -> float:
    "Slope in a double logarithmic picture, between the two larger sizes; what hardly any samples need is taken off."
    second, third = (rows[f"{verb} {size}"][what] - rows[f"{verb} {START}"][what] for size in SIZES[1:])
    return math.log(third / second) / math.log(SIZES[2] / SIZES[1])


def write(rows: dict) -> None:
    (HERE / "growth.json").write_text(json.dumps(rows, indent=1) + "\n")
    about = f"{date.today()}; one thread on {os.cpu_count()} shared {platform.machine()} cores; "
    about += ", ".join(f"{name} {versions()[name]}" for name in ("torch", "transformers", "scikit-learn"))
    lines = [
        "# How the verbs grow with the number of samples",
        "",
        f"{about}. Made by `python tests/benchmarks/growth.py`.",
        "",
    ]
    lines += [
        f"`{MODEL}` on `balanced`. Processor seconds of the whole command, start included, and peak memory of its",
        "largest process. `ratio`: what one more sample costs between the larger sizes, over what it costs between the",
        "smaller. 1 is linear; below 1 something was shared.", "", *table(rows), "",
        *(f"- `{verb}`: {about}" for verb, (_, about) in VERBS.items() if f"{verb} {SIZES[1]}" in rows), "",
        f"Not measured at any size: {', '.join(v for v in VERBS if f'{v} {SIZES[0]}' not in rows) or 'none'}.",
        f"Rows were measured at the commits {', '.join(sorted({row['commit'] for row in rows.values()}))}.", "",
    ]  # fmt: skip
    wide = "wide probe"
    if all(f"{wide} {size}" in rows for size in (START, *SIZES)):
        time, memory = exponent(rows, wide, "seconds"), exponent(rows, wide, "memory_mb")
        lines += [
            "Probes grow faster than their samples, as the mathematics says: a support vector machine needs the",
            "products of all pairs of samples (the Gram matrix, 4 n^2 bytes; in `probe` for the control that reads",
            "pixels), and its solver visits each sample more than once. `diagnose` probes eight representations under",
            "five rules, each with shuffled counts beside it, which no machine separates. The last row: time as",
            f"n^{time:.1f}, memory as n^{memory:.1f}.", "",
        ]  # fmt: skip
    (HERE / "growth.md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--again", action="store_true", help="measure all rows anew")
    parser.add_argument("--rows", default=",".join(VERBS), help="some of the rows, joined by commas")
    parser.add_argument("--keep", type=Path, help="a folder for results and data, in which a second start goes on")
    given = parser.parse_args()
    kept = HERE / "growth.json"
    rows = json.loads(kept.read_text()) if kept.exists() and not given.again else {}
    chosen = [verb for verb in VERBS if verb in given.rows.split(",")]
    with nullcontext(given.keep) if given.keep else tempfile.TemporaryDirectory() as place:
        for size in SIZES:
            places = {"VLM_COUNTING_RESULTS": f"{place}/{size}", "VLM_COUNTING_DATA": f"{place}/data-{size}"}
            for verb in [verb for verb in chosen if f"{verb} {size}" not in rows]:
                for begun in (verb, "narrow"):  # a run that was cut off would go on, and seem quicker
                    shutil.rmtree(Path(place, str(size), begun), ignore_errors=True)
                if verb in BEFORE:
                    measured(BEFORE[verb], size, places)
                rows[f"{verb} {size}"] = measured(VERBS[verb][0], size, places)
                print(verb, size, rows[f"{verb} {size}"], flush=True)
                write(rows)
        if "wide probe" in chosen:
            rows[f"wide probe {START}"] = measured(WIDE, START, {})
    write(rows)


if __name__ == "__main__":
    main()
