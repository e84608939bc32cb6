"""Layers and output layer of every shipped twin: what was found, and how long it took.

Run `python tests/benchmarks/twins.py`. It runs the verbs `extract` and `probe` on all seven twins and `train` on
the five that write, as `vlm-counting run` does with its defaults, and writes twins.json and twins.md. What is
finished already is not repeated; its seconds are those of the first time.
"""

import argparse
import json
import platform
import time
from datetime import date
from pathlib import Path

import pandas as pd

from vlm_counting.core import versions
from vlm_counting.models import MODELS
from vlm_counting.probing import what_remains
from vlm_counting.runs import run, run_folder

TWINS = [name for name, spec in MODELS.items() if spec.repo.startswith("twin:")]


def timed(verb: str, name: str) -> tuple[Path, float]:
    "Run a verb on a twin unless its folder holds a finished run: the folder, and seconds."
    folder = run_folder({"run": verb, "model": name, "dataset": "balanced"})
    clock = folder / "seconds.txt"
    if not (clock.exists() and (folder / "report.html").exists()):
        start = time.perf_counter()
        run(verb, model=name)
        clock.write_text(f"{time.perf_counter() - start:.0f}\n")
    return folder, float(clock.read_text())


def layers(name: str) -> dict:
    "What a linear probe reads from a twin, and what the controls leave of it."
    _, reading = timed("extract", name)
    folder, probing = timed("probe", name)
    table = pd.read_csv(folder / "probes.csv").astype({"layer": "Int64"})
    best = table[table["control"] == "none"].sort_values("accuracy").groupby(["probe", "rule"]).tail(1)
    found = {f"{row.probe}, {row.rule}": round(row.accuracy, 3) for row in best.itertuples() if row.rule == "layout"}
    others = table[(table["control"] != "none") & (table["rule"] == "layout")].groupby("control")["accuracy"].max()
    controls = others.drop("control task").to_dict()
    row = {"extract, s": reading, "probe, s": probing, "best": found, "controls": controls}
    return row | {"remains": what_remains(table)}


def heads(name: str) -> dict:
    "What retraining the output layer did to a twin."
    folder, seconds = timed("train", name)
    table = pd.read_csv(folder / "scores.csv").set_index(["set", "head", "among"])
    cost = pd.read_csv(folder / "forgetting.csv").set_index("head").loc["trained"]
    rows = {f"{part}, {how}": table.loc[(part, "trained", how)].round(3).to_dict()
            for part in ("held-out", "test", "transfer") for how in ("vocabulary", "generation")}  # fmt: skip
    return {"train, s": seconds, "rows": rows, "changed": round(cost["changed"], 3),
            "numbers": round(cost["numbers"], 3), "kl": round(cost["kl"], 3)}  # fmt: skip


def gain(row: dict) -> str:
    "Accuracy before and after, and the difference with its interval, in points."
    before, after, low, high = (100 * row[key] for key in ("first", "second", "low", "high"))
    return f"{before:.0f} to {after:.0f} ({after - before:+.0f} [{low:.0f}, {high:.0f}])"


def read_row(name: str, row: dict) -> str:
    "A line of the first table: the best score of each kind of row, in percent."
    best, controls = max(row["best"].values()), row["controls"]
    kinds = ("lit area by kind", "untrained", "lit area", "pixels", "shuffled")
    numbers = [f"{100 * controls[kind]:.0f}" if kind in controls else "-" for kind in kinds]
    return (
        f"| {name} | {row['extract, s']:.0f} + {row['probe, s']:.0f} | **{100 * best:.0f}** | {' | '.join(numbers)} |"
    )


def report(read: dict, trained: dict, machine: str) -> str:
    "All of it as Markdown."
    lines = [f"# Every twin\n\n{date.today()}; {machine}. Made by `python tests/benchmarks/twins.py`.\n"]
    lines += ["## What can be read from the layers, and what the controls leave of it\n"]
    lines += ["216 pictures of `balanced`. Percent of the counts read on new layouts, at best over probes, layers and "
              "poolings (a maximum, so a little too high), and at best from each control. The control task is left "
              "out: it needs more pictures (`limit=648`).\n"]  # fmt: skip
    lines += [
        "| twin | extract + probe, s | best probe | lit area by kind | untrained | lit area | pixels | shuffled |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    lines += [read_row(name, row) for name, row in read.items()]
    lines += ["\nNothing of any of these scores has to be counting: objects have one size, so the lit area and the "
              "kind of object give the count away.\n"]  # fmt: skip
    lines += ["## The output layer, retrained on `unseen_combinations`\n"]
    lines += ["Accuracy in percent before and after, best token of the whole vocabulary, with the 95 % interval of "
              "the difference: on held-out pictures of the training condition, on `balanced`, and on `two_groups`. The "
              "last column: next words that change when something else is asked; in brackets how many of them were "
              "numbers before, for then it says little about forgetting. The two contrastive twins have no output "
              "layer.\n"]  # fmt: skip
    lines += [
        "| twin | seconds | held out | balanced | two groups | other words changed |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in trained.items():
        cells = [gain(row["rows"][f"{part}, vocabulary"]) for part in ("held-out", "test", "transfer")]
        words = f"{100 * row['changed']:.0f} % ({100 * row['numbers']:.0f} %)"
        lines.append(f"| {name} | {row['train, s']:.0f} | {' | '.join(cells)} | {words} |")
    sides = [
        [row["rows"][f"{part}, vocabulary"] for row in trained.values()] for part in ("held-out", "test", "transfer")
    ]
    within, others = sum(row["low"] > 0 for row in sides[0]), sum(row["high"] < 0 for side in sides[1:] for row in side)
    lines.append(
        f"\n{within} of {len(trained)} gain in the condition that they were retrained in, and {others} of "
        f"{2 * len(trained)} comparisons elsewhere show a loss (intervals that leave out zero)."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    read = {name: layers(name) for name in TWINS}
    trained = {name: heads(name) for name in TWINS if MODELS[name].kind == "generative"}
    machine, here = f"{platform.machine()}, torch {versions()['torch']}", Path(__file__).parent
    (here / "twins.json").write_text(
        json.dumps({"versions": versions(), "layers": read, "heads": trained}, indent=1) + "\n"
    )
    (here / "twins.md").write_text(report(read, trained, machine))
    print(report(read, trained, machine))


if __name__ == "__main__":
    main()
