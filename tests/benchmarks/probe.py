"""How fast the paper's probe is read, fitted and tested, and how much memory its full size takes.

Run `OMP_NUM_THREADS=1 python tests/benchmarks/probe.py`. It prints tables and writes probe.json and probe.md.

1. Speed: `probing.svm` (one Gram matrix a representation) against scikit-learn's SVC(kernel="linear", C=1), both at
the library's default tolerance, three folds by the paper's rule, fit and predict. Both take turns in one process
with one thread; processor seconds, median of three rounds (`--rounds`). The states are simulated as real ones look:
24 entity offsets (6 for n = 4,374), power-law spectrum, class signal of rank 8, four dimensions of size 100. Where
the row says so, these four also vary more than the others, which makes the solver's work harder on both sides. 2.
Reading: one representation out of a store of plain .npy files, against a pickle stream of one dict a sample, as the
paper's release writes it and reads it. `posix_fadvise` drops the files from memory before each reading (cold),
where the system has it; warm is a reading without that. 3. Memory: a store of 100 representations of 17,496 x 3,584
float32. Two are written in full, the others are sparse files (holes read as zeros), because 25 GB of disk would
prove nothing more. Another process opens it, looks at one number of each and probes the two full ones with
`probe_layers`; its peak resident memory is the figure.

`--quick` tries all parts with small sizes and writes nothing.
"""

import argparse
import json
import os
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from itertools import product
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import sklearn
from sklearn.svm import SVC

from vlm_counting.core import peak_memory, versions
from vlm_counting.probing import Features, folds, probe_layers, svm

FULL = (24, 81, 3584)  # entities, layouts, dimensions
FULL_ONES = 2  # representations that are written in full and probed


def design(entities: int, layouts: int) -> tuple[np.ndarray, list[dict]]:
    "Targets and factors in the released order."
    rows = list(product(range(entities), range(1, 10), range(layouts)))
    return np.array([count for _, count, _ in rows]), [{"entity": f"e{e}", "layout": layout} for e, _, layout in rows]


def simulate(entities: int, layouts: int, dim: int, strength: float, wander: float, seed: int = 0) -> np.ndarray:
    "States (samples, dim), see the head of this file."
    rng, spread = np.random.default_rng(seed), np.arange(1, dim + 1, dtype=np.float32) ** -0.5
    targets = design(entities, layouts)[0]
    states = rng.standard_normal((len(targets), dim), dtype=np.float32) * spread
    states += np.repeat(rng.standard_normal((entities, dim), dtype=np.float32) * spread, 9 * layouts, axis=0)
    directions = np.linalg.qr(rng.standard_normal((dim, 8)))[0].T.astype(np.float32)
    states += strength * (rng.standard_normal((10, 8)).astype(np.float32) @ directions)[targets]
    large = rng.choice(dim, 4, replace=False)
    varied = states[:, large] / states[:, large].std(axis=0)
    states[:, large] = 100 * (1 + wander * varied) if wander else 100 + states[:, large]
    return states


# --- speed


def by_library(states: np.ndarray, targets: np.ndarray, fold: np.ndarray) -> np.ndarray:
    "The paper's probe as its release calls it."
    said = np.empty_like(targets)
    for number in np.unique(fold):
        machine = SVC(kernel="linear", C=1).fit(states[fold != number], targets[fold != number])
        said[fold == number] = machine.predict(states[fold == number])
    return said


def timed(function, clock=time.perf_counter) -> tuple[float, object]:
    start = clock()
    result = function()
    return clock() - start, result


def speed_row(entities: int, layouts: int, dim: int, strength: float, wander: float, rounds: int) -> dict:
    "Both ways by turns."
    (targets, factors), states = design(entities, layouts), simulate(entities, layouts, dim, strength, wander)
    fold = folds(targets, factors)
    ours, theirs = [], []
    for _ in range(rounds):
        seconds, said = timed(lambda: svm(Features(states), targets, fold, gram=True), time.process_time)
        ours.append(seconds)
        seconds, library = timed(lambda: by_library(states, targets, fold), time.process_time)
        theirs.append(seconds)
    row = {"dim": dim, "n": len(targets), "four dimensions": f"vary by {wander:.0%}" if wander else "vary as others"}
    row |= {"accuracy": float((library == targets).mean()), "SVC s": theirs, "ours s": ours}
    row |= {
        "times faster": statistics.median(theirs) / statistics.median(ours),
        "agreement": float((said == library).mean()),
    }
    print(speed_line(row), flush=True)
    return row


# --- reading


def drop_cache(path: Path) -> bool:
    "Ask the system to forget a file's pages."
    if not hasattr(os, "posix_fadvise"):
        return False
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def read_pickles(path: Path, key: str) -> np.ndarray:
    "One representation out of a stream of dicts: there is no way but to read them all."
    rows = []
    with open(path, "rb") as file:
        while True:
            try:
                rows.append(pickle.load(file)[key])  # noqa: S301 our own file
            except EOFError:
                return np.stack(rows)


def reading_row(samples: int, representations: int, dim: int, rounds: int, folder: Path) -> dict:
    "Seconds to get one representation, cold and warm."
    states, keys = np.random.default_rng(0).standard_normal((samples, dim)).astype(np.float32), range(representations)
    with open(folder / "predictions.pkl", "wb") as file:
        for row in states:
            pickle.dump({f"layer_{key}": row + key for key in keys}, file)
    for key in keys:
        np.save(folder / f"layer_{key:02}.mean.npy", states + key)
    found = {
        "samples": samples,
        "representations": representations,
        "dim": dim,
        "cold": drop_cache(folder / "predictions.pkl"),
    }
    middle = representations // 2
    for name in (" cold", " warm"):
        ours, theirs = [], []
        for _ in range(rounds):
            for path in folder.iterdir() if name == " cold" else ():
                drop_cache(path)
            seconds, one = timed(lambda: np.load(folder / f"layer_{middle:02}.mean.npy"))
            ours.append(seconds)
            seconds, other = timed(lambda: read_pickles(folder / "predictions.pkl", f"layer_{middle}"))
            theirs.append(seconds)
        assert (one == other).all()
        found |= {f"pickle s{name}": theirs, f"ours s{name}": ours}
        found[f"times faster{name}"] = statistics.median(theirs) / statistics.median(ours)
    print(found, flush=True)
    return found


# --- memory


@dataclass(frozen=True)
class Store:
    "A folder of .npy files, as `open_states` sees it."

    folder: Path
    targets: np.ndarray
    factors: list
    model: str = "simulated"

    @property
    def uids(self) -> list[str]:
        return [f"s/{index}" for index in range(len(self.targets))]

    def keys(self) -> list[tuple[int, str]]:
        return [(int(path.name.split(".")[0]), "mean") for path in sorted(self.folder.glob("*.npy"))]

    def array(self, layer: int, pooling: str, check: bool = False) -> np.ndarray:
        return np.load(self.folder / f"{layer:03}.{pooling}.npy")


def write_store(folder: Path, size: tuple[int, int, int], full: int, representations: int, strength: float) -> None:
    "`full` representations with states, an entity at a time; the others with holes."
    entities, layouts, dim = size
    shape = (entities * 9 * layouts, dim)
    states = simulate(*size, strength, 0)
    for key in range(representations):
        array = np.lib.format.open_memmap(folder / f"{key:03}.mean.npy", "w+", np.float32, shape)
        if key < full:
            for start in range(0, shape[0], 729):
                array[start : start + 729] = states[start : start + 729]
        array.flush()
        del array


def probe_store(folder: Path, size: tuple[int, int, int], controls: list[str]) -> None:
    "In a process of its own: prints one line of JSON."
    store = Store(folder, *design(*size[:2]))
    before = peak_memory()["process"]
    touched = sum(float(np.load(folder / f"{layer:03}.mean.npy", mmap_mode="r")[-1, -1]) for layer, _ in store.keys())
    seconds, table = timed(
        lambda: probe_layers(store, controls=controls, keys=store.keys()[:FULL_ONES], jobs=1, progress=False)
    )
    rows = table[["control", "accuracy", "std", "low", "high"]].to_dict("records")
    found = {"representations": len(store.keys()), "seconds": seconds, "rows": rows, "touched": touched}
    print(json.dumps(found | {"peak MiB": peak_memory()["process"], "MiB before": before}))


def memory_row(size: tuple[int, int, int], controls: list[str], strength: float, folder: Path) -> dict:
    "Peak memory of probing a store of 100."
    write = "import sys; sys.path.insert(0, sys.argv[1]); import probe; from pathlib import Path; "
    write += f"probe.write_store(Path(sys.argv[2]), {size}, {FULL_ONES}, 100, {strength})"
    here = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", write, here, str(folder)], check=True)
    on_disk = sum(path.stat().st_blocks * 512 for path in folder.glob("*.npy"))
    apparent = sum(path.stat().st_size for path in folder.glob("*.npy"))
    command = [
        sys.executable,
        __file__,
        "--store",
        str(folder),
        "--size",
        json.dumps(size),
        "--controls",
        ",".join(controls),
    ]
    line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    found = {"n": size[0] * 9 * size[1], "dim": size[2], "GB apparent": apparent / 1e9, "GB on disk": on_disk / 1e9}
    found |= json.loads(line)
    print(found, flush=True)
    return found


# --- the report


def speed_line(row: dict) -> str:
    cells = [row["dim"], f"{row['n']:,}", row["four dimensions"], f"{row['accuracy']:.2f}"]
    cells += [f"{statistics.median(row[name]):.2f}" for name in ("SVC s", "ours s")]
    return f"| {' | '.join(map(str, cells))} | **{row['times faster']:.1f}** | {row['agreement']:.4f} |"


def report(speed: list[dict], reading: dict, memory: dict, rounds: int) -> str:
    "The tables as Markdown."
    machine = f"1 thread on {os.cpu_count()} shared {platform.machine()} cores, device cpu"
    lines = [
        "# Probing: time and memory", "",
        f"{date.today()}; {machine}; scikit-learn {sklearn.__version__}, numpy {np.__version__}. "
        "Made by `OMP_NUM_THREADS=1 python tests/benchmarks/probe.py`.", "",
        f"The paper's probe, three folds, fit and predict, processor seconds (median of {rounds} rounds, by turns), "
        "default tolerance. Four dimensions have size 100; where they vary more than the others, the solver needs "
        "more steps on both sides, and no matrix saves those.", "",
        "| d | n | four dimensions | accuracy | SVC | ours | times faster | agreement |", "|---" * 8 + "|",
        *map(speed_line, speed), "",
        f"Reading one of {reading['representations']} representations ({reading['samples']:,} x {reading['dim']:,} "
        "float32):", "", "| | pickle stream (ms) | .npy (ms) | times faster |", "|---|---|---|---|",
    ]  # fmt: skip
    for name in ("cold", "warm"):
        theirs, ours = (1000 * statistics.median(reading[f"{who} s {name}"]) for who in ("pickle", "ours"))
        lines.append(f"| {name} | {theirs:.0f} | {ours:.1f} | **{reading[f'times faster {name}']:.0f}** |")
    found = "; ".join(f"{row['accuracy']:.4f} +- {row['std']:.4f}" for row in memory["rows"])
    lines += [
        "", f"Full size: {memory['n']:,} x {memory['dim']:,}, a store of {memory['representations']} representations "
        f"({memory['GB apparent']:.1f} GB; {FULL_ONES} are written in full, the others are holes: "
        f"{memory['GB on disk']:.2f} GB on disk). Opened, one number of each looked at, and {FULL_ONES} probed by "
        f"`probe_layers` in {memory['seconds']:.0f} s, the true counts only (accuracy {found}): peak resident memory "
        f"**{memory['peak MiB'] / 1024:.2f} GiB**. The others would follow one after another in the same memory.", "",
    ]  # fmt: skip
    return "\n".join(lines)


SPEED = (  # entities, layouts, dim, strength, wander
    (24, 10, 3584, 0.06, 0),
    (24, 10, 3584, 0.1, 0),
    (6, 81, 3584, 0.07, 0),
    (24, 10, 1024, 0.1, 0),
    (24, 10, 3584, 0.1, 0.01),
    (24, 10, 3584, 0.1, 0.03),
)
QUICK = ((4, 6, 300, 0.2, 0), (4, 6, 300, 0.2, 0.2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small sizes; writes nothing")
    parser.add_argument("--parts", default="speed,reading,memory", help="which to measure; the others are kept")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(""), help="without its ending")
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--controls", default="", help="labels for the memory part: shuffled,control task")
    options = parser.parse_args()
    controls = [name for name in options.controls.split(",") if name]
    if options.store:
        return probe_store(options.store, tuple(options.size), controls)
    kept = options.output.with_suffix(".json")
    record = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() and not options.quick else {}
    parts = options.parts.split(",")
    if "speed" in parts:
        record["speed"] = [speed_row(*size, options.rounds) for size in (QUICK if options.quick else SPEED)]
    if "reading" in parts:
        with tempfile.TemporaryDirectory() as folder:
            size = (200, 8, 64) if options.quick else (2000, 50, 1024)
            record["reading"] = reading_row(*size, options.rounds, Path(folder))
    if "memory" in parts:
        with tempfile.TemporaryDirectory() as folder:
            size, strength = ((4, 9, 300), 0.2) if options.quick else (FULL, 0.1)
            record["memory"] = memory_row(size, controls, strength, Path(folder))
    text = report(record["speed"], record["reading"], record["memory"], options.rounds)
    print(text)
    if options.quick:
        return None
    record |= {
        "date": str(date.today()),
        "versions": versions(),
        "device": "cpu",
        "threads": 1,
        "cores": os.cpu_count(),
    }
    kept.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    options.output.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
