"""The whole paper in miniature from a clean clone: how long it takes, how much memory, what comes out.

`python tests/benchmarks/paper.py` clones this repository as it is committed into a temporary folder and there runs
`vlm-counting run paper` (the seven twins), with empty results and data folders and the hub switched off. It writes
paper.json and paper.md. `--words` replaces
what is run, such as `--words "models=tiny-clip"` for a quick look, which then keeps nothing.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from datetime import date
from pathlib import Path

import pandas as pd
import psutil

from vlm_counting.core import make_folder, versions

HERE = Path(__file__).parent


def watch(process: psutil.Process, peak: dict, every: float = 2.0) -> None:
    "Until a process ends: the most memory that it and its children held, shared pages counted once."
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        sizes, kernels = [], 0
        for one in [process, *process.children(recursive=True)]:
            try:
                sizes.append(one.memory_full_info().pss / 2**20)
                kernels += "ipykernel_launcher" in " ".join(one.cmdline())
            except psutil.Error:  # gone meanwhile
                continue
        if sizes:
            found = {"together_mb": sum(sizes), "largest_mb": max(sizes), "kernels": kernels}
            for name, size in found.items():
                peak[name] = round(max(peak.get(name, 0), size))
        time.sleep(every)


def size_mb(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 1)


def run_paper(place: Path, words: list[str]) -> dict:
    "Clone, run, measure. `SystemExit` with the command's last lines if it failed."
    clone, results, data = place / "clone", place / "results", place / "data"
    subprocess.run(["git", "clone", "--quiet", HERE.parents[1], clone], check=True)
    own = {"PYTHONPATH": clone, "VLM_COUNTING_RESULTS": results, "VLM_COUNTING_DATA": data, "HF_HUB_OFFLINE": 1}
    environment = os.environ | {name: str(value) for name, value in own.items()}
    command, clock, peak = [Path(sys.executable).parent / "vlm-counting", "run", "paper", *words], time.monotonic(), {}
    with open(place / "said", "w") as said:
        process = subprocess.Popen(command, cwd=clone, env=environment, stdout=said, stderr=said)
        watcher = threading.Thread(target=watch, args=(psutil.Process(process.pid), peak), daemon=True)
        watcher.start()
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit((place / "said").read_text()[-4000:])
    outcomes = pd.read_csv(results / "paper" / "outcomes.csv")
    by_verb = outcomes.groupby("verb", sort=False)["seconds"].agg(["size", "sum", "max"])
    return {
        "commit": subprocess.check_output(["git", "-C", clone, "rev-parse", "--short=12", "HEAD"], text=True).strip(),
        "words": words, "minutes": round((time.monotonic() - clock) / 60, 1),
        "cpu_minutes": round((used.ru_utime + used.ru_stime) / 60, 1), **peak, "results_mb": size_mb(results),
        "pictures_mb": size_mb(data), "runs": len(outcomes), "done": int((outcomes["status"] == "done").sum()),
        "verbs": by_verb.round(1).T.to_dict(), "load": os.getloadavg()[2],
    }  # fmt: skip


def describe(results: Path) -> list[str]:
    "What the report rests on and says."
    folder = results / "paper-report"
    there, ended = pd.read_csv(folder / "inventory.csv"), pd.read_csv(folder / "conclusions.csv")
    tables = {path.stem.removeprefix("table_"): pd.read_csv(path, index_col=[0, 1]) for path in folder.glob("table_*")}
    ours = sorted(name for name, table in tables.items() if "our runs" in table.index.get_level_values(0))
    pictures, mine = list(folder.glob("*.png")), there[there["source"] == "our runs"]
    without = ", ".join(sorted(set(tables) - set(ours))) or "none"
    lines = [
        f"The report rests on {mine['answers'].sum():,} answers of "
        f"{len(mine)} models of ours beside the paper's numbers. It has {len(tables)} tables, {len(ours)} of them with "
        f"rows of ours (without: {without}), and {len(pictures)} pictures.",
        "", "| conclusion of the paper | the paper's numbers | our runs |", "|---|---|---|",
    ]  # fmt: skip
    for claim, rows in ended.groupby("claim", sort=False):
        verdict = dict(zip(rows["source"], rows["verdict"], strict=True))
        found = [str(verdict.get(source, "-")) for source in ("the paper", "our runs")]
        lines.append(f"| {rows['says'].iloc[0]} (`{claim}`) | {' | '.join(found)} |")
    return lines


def write(row: dict, found: list[str]) -> None:
    about = {"date": str(date.today()), "cores": os.cpu_count(), "machine": platform.machine(), "versions": versions()}
    (HERE / "paper.json").write_text(json.dumps(row | about, indent=1) + "\n")
    lines = [
        "# The whole paper in miniature", "",
        f"{about['date']}, {about['cores']} shared {about['machine']} cores, commit {row['commit']}. In a clean clone,",
        "with empty folders and the hub switched off, `vlm-counting run paper` took",
        f"**{row['minutes']:.0f} minutes** ({row['cpu_minutes']:.0f} of processor time; load {row['load']:.1f}).", "",
        "| what | figure |", "|---|---|", f"| runs | {row['done']} of {row['runs']} done |",
        f"| peak memory, all processes | {row['together_mb']:,} MB |",
        f"| peak memory, largest process | {row['largest_mb']:,} MB |",
        f"| results on disk | {row['results_mb']:,.0f} MB |",
        f"| pictures on disk | {row['pictures_mb']:,.0f} MB |", "",
        "| verb | runs | seconds, all | longest |", "|---|---|---|---|",
        *(f"| {verb} | {v['size']:.0f} | {v['sum']:,.0f} | {v['max']:,.0f} |" for verb, v in row["verbs"].items()), "",
        "The twins were raised to count; what the paper found of real models need not hold of them. What this shows is",
        "that every table and figure is filled from a clean clone.", "", *found, "",
    ]  # fmt: skip
    (HERE / "paper.md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--words", default="", help="name=value ... of the verb `paper`")
    parser.add_argument("--keep", type=Path, help="a folder for clone, results and data, which then stay there")
    given = parser.parse_args()
    with nullcontext(given.keep) if given.keep else tempfile.TemporaryDirectory() as folder:
        place = make_folder(Path(folder))
        row = run_paper(place, given.words.split())
        found = describe(place / "results")
        print(json.dumps(row, indent=1), *found, sep="\n")
        if not given.words:
            write(row, found)


if __name__ == "__main__":
    main()
