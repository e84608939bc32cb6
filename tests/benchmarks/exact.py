"""Exact support vector machines against the library, against what they replace, and against their own conditions.

Run `OMP_NUM_THREADS=1 python tests/benchmarks/exact.py`. It prints tables and writes exact.json and exact.md.

1. Speed: `probing.svm` (exact) against the same function of an earlier commit (`--before`, LIBSVM on a shared Gram
matrix, tolerance .001), against scikit-learn's SVC(kernel="linear", C=1) at its default tolerance and at a hundredth of
it, and against scikit-learn-intelex where it is installed. Three folds, fit and predict. All take turns in one process
with one thread; processor seconds; ratios within a round, their median, smallest and largest over five rounds
(`--rounds`). Seven kinds of states, two sizes. 2. Conditions: all machines of a full probing of two tiny models, each
with the largest breach of its KKT conditions, in units of the margin, on float64 states; and the readings beside SVC's
at tolerance 1e-5, every one that differs with its smallest decision. 3. Memory: one representation of 17,496 x 3,584,
probed by either in a process of its own.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Callable
from datetime import date
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import sklearn
from probe import design, simulate
from sklearn.svm import SVC

from vlm_counting import probing
from vlm_counting.core import peak_memory, versions
from vlm_counting.extraction import extract
from vlm_counting.models import load_model
from vlm_counting.stimuli import generate

SIZES = ((540, 1024), (1458, 2048))
REAL = (540, 1458)
LOOSE, TIGHT = 1e-3, 1e-5


# --- states


def structured(samples: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    "200 directions of a power law, noise, a curved scale of the count; hard to read."
    rng = np.random.default_rng(seed)
    counts = rng.permutation(np.arange(samples) % 9 + 1)
    states = (rng.standard_normal((samples, 200)) * np.arange(1, 201) ** -0.7) @ rng.standard_normal((200, dim)) * 2
    states += 0.35 * rng.standard_normal((samples, dim))
    scale = (counts - 5) / 2.6
    states += 0.2 * np.outer(scale, rng.standard_normal(dim)) + 0.2 * np.outer(scale**2, rng.standard_normal(dim))
    return states, counts


def gaussian(samples: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    counts = rng.permutation(np.arange(samples) % 9 + 1)
    return rng.standard_normal((samples, dim)) + 0.12 * rng.standard_normal((10, dim))[counts], counts


def low_rank(samples: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    states, counts = gaussian(samples, 100)
    return states @ np.random.default_rng(1).standard_normal((100, dim)), counts


def massive(number: int, factor: float) -> Callable:
    def make(samples: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
        states, counts = structured(samples, dim)
        states[:, np.random.default_rng(2).choice(dim, number, replace=False)] *= factor
        return states, counts

    return make


def near_duplicates(samples: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    "Each four times, but for a ten thousandth."
    states, counts = structured(-(-samples // 4), dim)
    states, counts = np.repeat(states, 4, axis=0)[:samples], np.repeat(counts, 4)[:samples]
    return states + 1e-4 * np.random.default_rng(3).standard_normal(states.shape), counts


def offsets(samples: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    "Not scaled, not centred."
    states, counts = structured(samples, dim)
    return 5 * states + 30 * np.random.default_rng(4).standard_normal(dim), counts


KINDS = {
    "plain gaussian": gaussian,
    "low rank (100)": low_rank,
    "3 massive dimensions x 80": massive(3, 80),
    "5 massive dimensions x 100": massive(5, 100),
    "near duplicates": near_duplicates,
    "unscaled offsets": offsets,
}


def real_states(name: str, samples: int, **asked: object) -> object:
    return extract(load_model(name), generate("balanced", limit=samples), lens=False, progress=False, **asked)


# --- what is compared


def earlier(revision: str) -> types.ModuleType:
    "`probing` of another commit."
    command = ["git", "show", f"{revision}:vlm_counting/probing.py"]
    source = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]).stdout
    module = types.ModuleType("vlm_counting.earlier_probing")
    sys.modules[module.__name__], module.__package__ = module, "vlm_counting"
    exec(compile(source, "earlier_probing.py", "exec"), module.__dict__)  # noqa: S102 our own, of another day
    return module


def by_library(make: Callable, states: np.ndarray, counts: np.ndarray, fold: np.ndarray) -> np.ndarray:
    said = np.empty_like(counts)
    for number in range(3):
        train = fold != number
        said[~train] = make().fit(states[train], counts[train]).predict(states[~train])
    return said


def peers(before: types.ModuleType) -> dict[str, Callable]:
    "Name -> function of states, counts and folds."
    found = {
        "exact": lambda states, *rest: probing.svm(probing.Features(states), *rest, tolerance=0),
        "before": lambda states, *rest: before.svm(before.Features(states), *rest),
    }
    for tolerance in (LOOSE, TIGHT):
        make = lambda tolerance=tolerance: SVC(kernel="linear", C=1, tol=tolerance, max_iter=10**7)  # noqa: E731
        found[f"SVC {tolerance:g}"] = lambda *given, make=make: by_library(make, *given)
    if find_spec("sklearnex"):
        from sklearnex.svm import SVC as Faster

        found["intelex"] = lambda *given: by_library(lambda: Faster(kernel="linear", C=1), *given)
    return found


# --- 1. speed


def speed_row(kind: str, states: np.ndarray, counts: np.ndarray, methods: dict, rounds: int, limit: float) -> dict:
    "By turns; who took longer than the limit is run no second time, and that is kept."
    states, fold = states.astype(np.float32), np.random.default_rng(1).permutation(len(counts)) % 3
    seconds, said = {name: [] for name in methods}, {}
    for _ in range(rounds):
        for name, read in methods.items():
            if max(seconds[name], default=0) > limit:
                continue
            start = time.process_time()
            said[name] = read(states, counts, fold)
            seconds[name].append(time.process_time() - start)
    features = probing.Features(states)
    probing.svm(features, counts, fold, tolerance=0)
    row = {"kind": kind, "n": len(counts), "d": states.shape[1], "accuracy": float((said["exact"] == counts).mean())}
    row |= {"seconds": seconds, "solved": dict(features.solved)}
    row["agree"] = {name: float((other == said["exact"]).mean()) for name, other in said.items()}
    row["loose agrees with tight"] = float((said[f"SVC {LOOSE:g}"] == said[f"SVC {TIGHT:g}"]).mean())
    row["differing"] = differing(features, counts, fold, said["exact"], said[f"SVC {TIGHT:g}"])
    print(speed_line(row), row["solved"], row["agree"], flush=True)
    return row


def ratio(row: dict, name: str) -> str:
    "Median, smallest and largest of a round's ratios to the exact ones."
    if name not in row["seconds"]:
        return ""
    every = [theirs / ours for theirs, ours in zip(row["seconds"][name], row["seconds"]["exact"], strict=False)]
    spread = f" ({min(every):.2g}..{max(every):.2g})" if len(every) > 1 else " (one round)"
    return f"{statistics.median(every):.2f}{spread}"


def speed_line(row: dict) -> str:
    cells = [row["kind"], f"{row['n']:,} x {row['d']:,}", f"{row['accuracy']:.2f}"]
    cells += [f"{statistics.median(row['seconds']['exact']):.2f}"]
    cells += [ratio(row, name) for name in ("before", f"SVC {LOOSE:g}", f"SVC {TIGHT:g}", "intelex")]
    cells += [f"{row['agree'][f'SVC {TIGHT:g}']:.4f}", f"{row['loose agrees with tight']:.4f}"]
    return f"| {' | '.join(cells)} |"


# --- 2. conditions


def differing(features, counts: np.ndarray, fold: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> list[dict]:
    "Of each sample that is read otherwise by the library: the decisions of the pair of both readings."
    found = []
    for index in np.flatnonzero(ours != theirs):
        train, classes = np.flatnonzero(fold != fold[index]), np.unique(counts)
        weights, offset = probing._exact_pairs(features, counts, train, gram=False)
        said = (probing._decide(features, train, np.array([index]), weights, gram=False) + offset)[0]
        found.append({"sample": int(index), "smallest decision": float(np.abs(said).min()), "pairs": len(classes)})
    return found


def library_breach(features, rows: np.ndarray, sign: np.ndarray) -> float:
    "By how much the library's machine at the small tolerance misses the conditions, on float64 states."
    machine = SVC(kernel="linear", C=1, tol=TIGHT, max_iter=10**7).fit(features.states[rows].astype(float), sign)
    slice, alpha = probing._of_states(features.less_mean(rows), sign), np.zeros(len(rows))
    alpha[machine.support_] = np.abs(machine.dual_coef_[0])
    whole = features.states[rows].astype(float).mean(axis=0)
    return probing._breach(slice, alpha, float(machine.intercept_[0] + whole @ machine.coef_[0]))


def conditions(name: str, samples: int) -> dict:
    "Every machine of a full probing of a tiny model; and readings beside the library's."
    states, breaches, real = real_states(name, samples), [], probing._machine

    def watched(features, rows, sign, gram):
        weights, offset = real(features, rows, sign, gram)
        slice = probing._of_states(features.less_mean(rows), sign)
        breaches.append(probing._breach(slice, weights * sign, offset + float(slice.level @ weights)))
        return weights, offset

    probing._machine = watched
    done = probing.probe(states, probe=["svm", "svm_standardised"], rule="layout", jobs=1, progress=False)
    probing._machine = real
    fold, readings, others, theirs = probing.folds(states.targets, states.factors, "layout"), 0, [], []
    for layer, pooling in states.keys():
        features = probing.Features(states.array(layer, pooling))
        ours = probing.svm(features, states.targets, fold, tolerance=0)
        make = lambda: SVC(kernel="linear", C=1, tol=TIGHT, max_iter=10**7)  # noqa: E731
        library = by_library(make, features.states, states.targets, fold)
        readings += len(ours)
        others += differing(features, states.targets, fold, ours, library)
        rows = np.flatnonzero((fold != 0) & np.isin(states.targets, (4, 5)))
        theirs.append(library_breach(features, rows, np.where(states.targets[rows] == 5, 1.0, -1.0)))
    found = {"model": name, "representations": len(states.keys()), "samples": samples, "machines": len(breaches)}
    found |= {"median breach": statistics.median(breaches), "largest breach": max(breaches)}
    found |= {"of the library": max(theirs), "fallbacks": int(done.table["fallbacks"].sum())}
    found |= {"readings": readings, "differing": others}
    print(found, flush=True)
    return found


# --- 3. memory


def measure_memory(which: str, before: str, size: tuple[int, int, int]) -> None:
    "In a process of its own: prints one line of JSON."
    module = probing if which == "exact" else earlier(before)
    entities, layouts, dim = size
    targets, factors = design(entities, layouts)
    fold = probing.folds(targets, factors, "layout")
    states = simulate(entities, layouts, dim, 0.1, 0)
    start, clock = time.perf_counter(), time.process_time()
    features = module.Features(states)
    del states
    said = module.svm(features, targets, fold)
    found = {"seconds": time.process_time() - clock, "wall": time.perf_counter() - start}
    found |= {"accuracy": float((said == targets).mean()), "solved": dict(getattr(features, "solved", {}))}
    print(json.dumps(found | {"peak MiB": peak_memory()["process"], "n": len(targets), "d": dim}))


def memory_rows(before: str, size: tuple[int, int, int]) -> dict:
    found = {}
    for which in ("before", "exact"):
        command = [sys.executable, __file__, "--memory", which, "--before", before, "--size", json.dumps(size)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        found[which] = json.loads(lines[-1])
        print(which, found[which], flush=True)
    return found


# --- the report


def report(record: dict) -> str:
    lines = [
        "# Exact machines: time, proof, memory", "",
        f"{record['date']}; 1 thread on {record['cores']} shared {platform.machine()} cores; scikit-learn "
        f"{sklearn.__version__}, numpy {np.__version__}. Made by `OMP_NUM_THREADS=1 python tests/benchmarks/exact.py`; "
        f"*before* is commit {record['before']}.", "",
    ]  # fmt: skip
    if "speed" in record:
        lines += [
            "Processor seconds of the exact machines (three folds, fit and predict); of the others how many times as "
            f"long they took in the same round: median (smallest..largest) of {record['rounds']} rounds by turns. Who "
            f"took longer than {record['limit']:g} s was run once.", "",
            "| states | size | accuracy | exact, s | before | SVC .001 | SVC 1e-5 | intelex | readings as SVC 1e-5 | "
            "SVC .001 as SVC 1e-5 |", "|---" * 10 + "|", *map(speed_line, record["speed"]), "",
        ]  # fmt: skip
        every = [one for row in record["speed"] for one in row["differing"]]
        total = sum(row["n"] for row in record["speed"])
        listed = ", ".join(f"{one['smallest decision']:.1e}" for one in every) or "none"
        lines += [
            f"Of {total:,} readings {len(every)} differ from SVC at 1e-5. Their smallest decisions: {listed}.",
            "",
        ]
        fell = sum(row["solved"].get("LIBSVM", 0) for row in record["speed"])
        lines += [f"Machines that could not be proved: {fell}.", ""]
    if "conditions" in record:
        lines += [
            "Every machine of a full probing (`svm`, `svm_standardised`, rule `layout`, controls): its largest breach "
            "of the KKT conditions on float64 states, in units of the margin.", "",
            "| model | representations | machines | median | largest | fallbacks | SVC 1e-5, largest seen | readings | "
            "differing from SVC 1e-5 |", "|---" * 9 + "|",
        ]  # fmt: skip
        for one in record["conditions"]:
            decisions = ", ".join(f"{other['smallest decision']:.0e}" for other in one["differing"])
            lines.append(
                f"| {one['model']} | {one['representations']} | {one['machines']:,} | {one['median breach']:.0e} | "
                f"{one['largest breach']:.0e} | {one['fallbacks']} | {one['of the library']:.0e} | "
                f"{one['readings']:,} | {len(one['differing'])} {f'(decisions {decisions})' * bool(decisions)} |"
            )
        lines.append("")
    if "memory" in record:
        lines += ["One representation of the paper's size, rule `layout`:", ""]
        lines += ["| | n x d | processor s | wall s | accuracy | peak resident, GiB |", "|---" * 6 + "|"]
        for name, one in record["memory"].items():
            lines.append(
                f"| {name} | {one['n']:,} x {one['d']:,} | {one['seconds']:.0f} | {one['wall']:.0f} | "
                f"{one['accuracy']:.4f} | {one['peak MiB'] / 1024:.2f} |"
            )
        lines.append("")
    return "\n".join(lines)


def measure_speed(options: argparse.Namespace) -> list[dict]:
    methods, rows = peers(earlier(options.before)), []
    for samples, dim in ((90, 300),) if options.quick else SIZES:
        for kind, make in KINDS.items():
            rows.append(speed_row(kind, *make(samples, dim), methods, options.rounds, options.limit))
    for samples in (54,) if options.quick else REAL:
        states = real_states("tiny-qwen2-vl", samples, layers=[3], poolings=["image_mean"])
        row = states.array(3, "image_mean"), np.asarray(states.targets)
        rows.append(speed_row("a tiny model's", *row, methods, options.rounds, options.limit))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=20, help="seconds after which a method is run no second time")
    parser.add_argument("--before", default="4b90558", help="commit to compare with")
    parser.add_argument("--quick", action="store_true", help="small sizes; writes nothing")
    parser.add_argument("--parts", default="speed,conditions,memory", help="which to measure; the others are kept")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(""), help="without its ending")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        return measure_memory(options.memory, options.before, tuple(options.size))
    warnings.simplefilter("ignore")
    kept, parts = options.output.with_suffix(".json"), options.parts.split(",")
    record = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() and not options.quick else {}
    record |= {"date": str(date.today()), "cores": os.cpu_count(), "before": options.before, "versions": versions()}
    if "speed" in parts:
        record |= {"rounds": options.rounds, "limit": options.limit, "speed": measure_speed(options)}
    if "conditions" in parts:
        sample = 54 if options.quick else 216
        record["conditions"] = [conditions(name, sample) for name in ("tiny-qwen2-vl", "tiny-clip")]
    if "memory" in parts:
        record["memory"] = memory_rows(options.before, (2, 9, 300) if options.quick else (24, 81, 3584))
    text = report(record)
    print(text)
    if not options.quick:
        kept.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        options.output.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
