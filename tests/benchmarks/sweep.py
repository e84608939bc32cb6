"""A sweep on four workers, one killed while it reads states and one while it probes, against a sweep in turn.

`python tests/benchmarks/sweep.py` runs the same grid twice, compares all tables, predictions, states and pictures
byte for byte, and writes sweep.md. Then two hosts, made of network namespaces (needs root on Linux; two processes
of one machine elsewhere), share a results folder and one scheduler: the worker on its host is killed, and the other
host does the rest. The same with one verb and one model is in tests/test_sweeps.py.
"""

import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from clusters import dask_on, start_on, two_hosts  # noqa: E402

MODELS = ["tiny-clip", "tiny-qwen2-vl"]
VERBS = "verb=evaluate,extract,probe"
GRID = [VERBS, f"model={','.join(MODELS)}", "dataset=balanced", "limit=216", "probes=svm"]
COMPARED = ("*.csv", "*.jsonl", "*.npy", "*.png", "states.json")
WORKERS = 4


def start(results: Path, *words: str) -> subprocess.Popen:
    "The command, with its results in a folder of its own and one thread for each process."
    environment = os.environ | {"VLM_COUNTING_RESULTS": str(results), "OMP_NUM_THREADS": "1"}
    command = [Path(sys.executable).parent / "vlm-counting", "sweep", *GRID, *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def worker_of(process: subprocess.Popen, folder: Path) -> int | None:
    "The worker whose kernel holds the lock of a run's folder."
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if any(Path(file.path).parent == folder for file in child.open_files()):
                return child.ppid()
        except psutil.Error:
            continue
    return None


def kill_during(process: subprocess.Popen, folder: Path, growing: str) -> str:
    "Wait until a file of a run grows, kill the worker with SIGKILL; what had been reached."
    while process.poll() is None:
        reached, worker = lines(folder / growing), worker_of(process, folder)
        if reached and worker:
            os.kill(worker, signal.SIGKILL)
            return f"worker killed in `{folder.parents[1].name}/{folder.parent.name}` with {reached} lines of {growing}"
        time.sleep(0.02)
    raise SystemExit(process.communicate()[1])


def try_hosts(calm: Path) -> list[str]:
    "A sweep from one host with workers on both, of which the nearer one is killed; what to report."
    grid = [word.replace(VERBS, "verb=evaluate,extract") for word in GRID if not word.startswith("probes")]
    place = Path(tempfile.mkdtemp())
    log, results = place / "sweep.log", place / "results"
    results.mkdir()
    with two_hosts() as hosts, dask_on(hosts, [results, results], place) as (address, workers):
        names = "network namespaces" if hosts[0].front else "two processes of one machine: namespaces are not allowed"
        sweep = start_on(hosts[0], results, "vlm-counting", "sweep", *grid, "--scheduler", address, log=log)
        reached = 0
        while not reached:  # the worker on the first host is at work
            kernels = psutil.Process(workers[0].pid).children(recursive=True)
            reached = sum(lines(path) for path in results.rglob("predictions.jsonl")) if kernels else 0
            assert sweep.poll() is None, log.read_text()
            time.sleep(0.05)
        os.kill(workers[0].pid, signal.SIGKILL)
        sweep.wait()
    output = log.read_text()
    assert "4 done." in output, output
    print(output, flush=True)
    found = {pattern: pair for pattern, pair in compare(calm, results, "probe").items() if pair[0]}
    files, same = (sum(pair[i] for pair in found.values()) for i in (0, 1))
    assert files == same, found
    return [
        f"Two hosts ({names}) with a worker each and one scheduler, `{' '.join(grid)}`: the worker on the "
        f"scheduler's host was killed with SIGKILL when {reached} answers were on disk, and the other host did the "
        f"rest. {same} of {files} files are identical to those of the sweep in turn.",
        "",
    ]


def compare(calm: Path, killed: Path, without: str = "nothing") -> dict[str, tuple[int, int]]:
    "Pattern -> (files, of which identical)."
    found = {}
    for pattern in COMPARED:
        files = [path.relative_to(calm) for path in sorted(calm.rglob(pattern))]
        files = [path for path in files if path.parts[0] != without]
        same = [(calm / path).read_bytes() == (killed / path).read_bytes() for path in files]
        found[pattern] = (len(files), sum(same))
        for path in [path for path, equal in zip(files, same, strict=True) if not equal]:
            print("DIFFERENT", path, flush=True)
    return found


def main() -> None:
    place = Path(tempfile.mkdtemp())
    clock = time.monotonic()
    output, error = start(place / "calm").communicate()
    calm = time.monotonic() - clock
    assert "6 done." in output, output + error
    print(output, flush=True)
    clock, process, kills = time.monotonic(), start(place / "killed", "--workers", str(WORKERS)), []
    for verb, growing in (("extract", "states/progress.jsonl"), ("probe", "probes.jsonl")):
        kills.append(kill_during(process, place / "killed" / verb / "tiny-qwen2-vl" / "balanced", growing))
        print(kills[-1], flush=True)
    output, error = process.communicate()
    killed = time.monotonic() - clock
    assert "6 done." in output, output + error
    found = compare(place / "calm", place / "killed")
    records = sorted((place / "killed").rglob("run.json"))
    sessions = {
        path.parent.relative_to(place / "killed"): len(json.loads(path.read_text())["sessions"]) for path in records
    }
    again = [f"`{folder.as_posix()}` ({number} sessions)" for folder, number in sessions.items() if number > 1]
    hosts = try_hosts(place / "calm")
    text = [
        "# A sweep whose workers are killed",
        "",
        f"{datetime.date.today()}, 2 shared {platform.machine()} cores. `python tests/benchmarks/sweep.py`",
        "",
        f"`{' '.join(['vlm-counting', 'sweep', *GRID])}`, in turn and with `--workers {WORKERS}`.",
        "",
        *[f"{number}. {kill}" for number, kill in enumerate(kills, start=1)],
        "",
        f"Runs that were begun more than once: {', '.join(again)}.",
        "",
        "| files | there | identical |",
        "|---|---|---|",
        *[f"| `{pattern}` | {number} | {same} |" for pattern, (number, same) in found.items()],
        "",
        f"In turn {calm:.0f} s; with {WORKERS} workers, two of which died, {killed:.0f} s. The machine has two cores "
        "and other work: this shows that nothing is lost, not how much faster four workers are.",
        "",
        *hosts,
        "The table that the sweep on four workers ended in:",
        "",
        "```",
        *output[output.rindex("\ncell") :].strip().splitlines(),
        "```",
    ]
    print("\n".join(text))
    (Path(__file__).parent / "sweep.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    sys.exit(any(number != same for number, same in found.values()))


if __name__ == "__main__":
    main()
