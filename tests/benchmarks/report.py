"""How long the report takes, and what it needs, with the released answers of three models.

Run `python tests/benchmarks/report.py --release FOLDER` (the released predictions). It runs the verb `report` in a
results folder of its own (or in `--results`, with the runs that are there) and writes report.json and
report.md.
"""

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from datetime import date
from pathlib import Path

import pandas as pd

from vlm_counting.core import versions
from vlm_counting.runs import run

HERE = Path(__file__).parent


def measured(release: str | None, results: str) -> dict:
    "Seconds, peak memory of the kernel and what the report rests on."
    os.environ["VLM_COUNTING_RESULTS"] = results
    clock, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    folder = run("report", release=release)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    there = pd.read_csv(folder / "inventory.csv")
    return {
        "seconds": round(time.monotonic() - clock, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "peak_memory_mb": round(after.ru_maxrss / 1024),
        "answers": there.groupby("source")["answers"].sum().to_dict(),
        "pictures": len(list(folder.glob("*.png"))),
        "effects": len(pd.read_csv(folder / "effects.csv")),
        "report_mb": round((folder / "report.html").stat().st_size / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release", help="folder of the released predictions")
    parser.add_argument("--results", help="results folder; without it an empty one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as empty:
        row = measured(given.release, given.results or empty)
    about = {"date": str(date.today()), "cores": os.cpu_count(), "load": os.getloadavg()[0], "versions": versions(),
             "machine": platform.machine()}  # fmt: skip
    (HERE / "report.json").write_text(json.dumps(row | about, indent=1) + "\n")
    answers = ", ".join(f"{source}: {number:,}" for source, number in row["answers"].items())
    lines = [
        "# The report", "",
        f"{about['date']}, {about['cores']} cores ({about['machine']}), load {about['load']:.1f} at the end.", "",
        "| what | figure |", "|---|---|", f"| raw answers | {answers} |", f"| wall | {row['seconds']} s |",
        f"| CPU | {row['cpu_seconds']} s |", f"| peak memory | {row['peak_memory_mb']:,} MB |",
        f"| effects tested | {row['effects']} |", f"| pictures (PNG and SVG each) | {row['pictures']} |",
        f"| report.html | {row['report_mb']} MB |", "", "Made by `python tests/benchmarks/report.py`.",
    ]  # fmt: skip
    (HERE / "report.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
