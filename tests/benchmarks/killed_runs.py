"""A real run, killed with SIGKILL at thirty random moments and started again, against one that was left alone.

`python tests/benchmarks/killed_runs.py` prints one line per kill and writes killed_runs.md. The toy version in
tests/test_evaluation.py runs with every test; this one goes through console command, papermill, kernel and tiny
twin.
"""

import datetime
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = [str(Path(sys.executable).parent / "vlm-counting"), "run", "evaluate", "limit=1080", "batch_size=2"]
COMPARED = [
    "predictions.jsonl",
    "scores.csv",
    "scores_per_count.csv",
    "scores_per_entity.csv",
    "per_class.csv",
    "confusion.csv",
]
KILLS = 30


def start(results: Path) -> subprocess.Popen:
    "The command in a process group of its own, so that the notebook's kernel can be killed with it."
    environment = os.environ | {"VLM_COUNTING_RESULTS": str(results)}
    return subprocess.Popen(
        COMMAND, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def answered(path: Path) -> int:
    "Whole lines in a file of predictions."
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_while_running(results: Path, folder: Path, moment: str, rng: random.Random) -> str:
    "Start, wait for a random moment of the named kind, kill everything; what had been reached."
    path, process = folder / "predictions.jsonl", start(results)
    before = answered(path)
    if moment == "answering":
        while process.poll() is None and answered(path) == before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
    else:
        time.sleep(rng.uniform(0, 8))
    finished = process.poll() is not None
    if not finished:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return f"{'had finished' if finished else 'killed'} {moment}, {before} -> {answered(path)} answers on disk"


def main() -> None:
    rng, place = random.Random(0), Path(tempfile.mkdtemp())
    folders = {name: place / name / "evaluate" / "tiny-qwen2-vl" / "balanced" for name in ("calm", "killed")}
    output, error = start(place / "calm").communicate()
    assert "report.html" in output, error
    lines = []
    for number in range(1, KILLS + 1):
        moment = "answering" if number % 3 else "at any moment"
        lines.append(f"{number}. {kill_while_running(place / 'killed', folders['killed'], moment, rng)}")
        print(lines[-1], flush=True)
    output, error = start(place / "killed").communicate()
    assert "report.html" in output, error
    same = {name: (folders["calm"] / name).read_bytes() == (folders["killed"] / name).read_bytes() for name in COMPARED}
    verdict = "; ".join(f"{name}: {'identical' if equal else 'DIFFERENT'}" for name, equal in same.items())
    print(verdict)
    text = [
        f"# A run killed {KILLS} times",
        "",
        f"{datetime.date.today()}, 2 shared x86-64 cores. `python tests/benchmarks/killed_runs.py`",
        "",
        f"`{' '.join(['vlm-counting', *COMMAND[1:]])}`, started again after every SIGKILL of the whole process group.",
        "",
        *lines,
        "",
        f"Then left alone: {verdict}.",
    ]
    (Path(__file__).parent / "killed_runs.md").write_text("\n".join(text) + "\n")
    if not all(same.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
