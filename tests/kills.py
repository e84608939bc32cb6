"""Kill a command at a file operation, type it again, and compare with what an undisturbed run leaves.

`python tests/kills.py SECONDS evaluate train ...` does so for as long as that, and prints what became of each kill.
Each try is a fork of this process, in which models are loaded already; figures are files, but not drawn.
"""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

TINY = {"model": "tiny-qwen2-vl", "device": "cpu"}
COMMANDS = {  # name -> commands that come before, and those that are killed
    "evaluate": ([], [("evaluate", TINY | {"limit": 18, "batch_size": 4})]),
    "extract": ([], [("extract", TINY | {"limit": 18, "batch_size": 6, "layers": "0,2"})]),
    "probe": (
        [("extract", TINY | {"limit": 108, "layers": "0,2", "poolings": "last"})],
        [("probe", {"model": "tiny-qwen2-vl", "probes": "ridge", "rules": "random", "untrained": None, "jobs": 1})],
    ),
    "train": ([], [("train", TINY | {"training_limit": 54, "limit": 18, "epochs": 2, "controls": False})]),
    "diagnose": ([], [("diagnose", TINY | {"limit": 36, "batch_size": 12})]),
    "report": ([("evaluate", TINY | {"limit": 18})], [("report", {"images": "some"})]),
    "build_bpc": ([], [("build_bpc", {"per_count": 2, "workers": 2})]),
    "sweep": ([], [("sweep", {"model": "tiny-clip,tiny-qwen2-vl", "limit": "9"})]),
    "paper": ([], [("paper", {"models": "tiny-clip", "scale": "smoke", "workers": 1})]),
}
OPERATIONS = ("fsync", "replace", "unlink", "rename", "mkdir", "posix_fallocate")


class Undrawn:
    "Stands for axes: drawing takes longer than all that is killed, and touches no file."

    def __init__(self, *given, **more):
        from matplotlib.figure import Figure

        self.figure = Figure((1, 1))

    def __getitem__(self, place: int) -> "Undrawn":
        return self


def get_ready() -> None:
    "Load what every try needs, and have figures not drawn and commands run here."
    import matplotlib.figure

    from vlm_counting import commands, core, extraction, figures, load_model, runs, sweeps
    from vlm_counting.paper import pages

    for module in (figures, pages):
        for name in [name for name in vars(module) if name.startswith("plot_")]:
            setattr(module, name, Undrawn)

    small = {"limit": 54, "crowded": 54, "training": 54, "epochs": 1, "probes": "ridge"}
    sweeps.PAPER_SIZES["smoke"] = small
    kept = {name: load_model(name, device="cpu") for name in ("tiny-qwen2-vl", "tiny-clip")}
    real, commit, known = commands.load_model, core.git_commit(), core.versions()

    def load(name, checkpoint=None, device="auto", **how):
        plain = checkpoint is None and not any(how.get(key) for key in ("head", "adapter", "quantization"))
        return kept[name] if plain and how.get("untrained") is None else real(name, checkpoint, device, **how)

    def execute(command, parameters, *rest):
        about = {"metadata": {"papermill": {"parameters": parameters}}, "cells": [], "nbformat": 4, "nbformat_minor": 5}
        notes = runs.RunNotebooks()
        notes.write(json.dumps(about), f"vlm-counting://{command}.ipynb")
        perform(command, parameters)
        about["metadata"]["papermill"]["end_time"] = "now"
        notes.write(json.dumps(about), f"vlm-counting://{command}.ipynb")

    commands.load_model, sweeps._execute, runs._html = load, execute, lambda *given: "<html>"
    core.git_commit, core.versions, extraction._COMMIT_SECONDS = lambda: commit, lambda: known, 0
    matplotlib.figure.Figure.savefig = lambda self, file, **how: file.write(b"a figure")


def perform(command: str, parameters: dict) -> None:
    "What the command line does, in this process."
    from vlm_counting import runs, sweeps

    if command == "sweep":
        cells = sweeps.plan_sweep({"command": ["evaluate"], **{name: [text] for name, text in parameters.items()}})
        outcomes = sweeps.sweep(cells, 1)
        assert all(outcome.status == "done" for outcome in outcomes), outcomes
        return
    runs.run(command, **parameters)


class Killer:
    "Counts file operations below a folder; at the chosen one the process is gone: before, after or in the middle."

    def __init__(self, place: Path, at: int, how: str):
        self.place, self.at, self.how, self.count = str(place), at, how, 0
        for name in OPERATIONS:
            setattr(os, name, self.around(name, getattr(os, name)))

    def around(self, name: str, real: Callable) -> Callable:
        def operation(*given, **more):
            path = f"/proc/self/fd/{given[0]}" if isinstance(given[0], int) else given[0]
            path = os.readlink(path) if isinstance(given[0], int) else os.path.abspath(os.fspath(path))
            if not path.startswith(self.place):
                return real(*given, **more)
            self.count += 1
            if self.count == self.at:
                note = Path(self.place).with_name("killed.json")
                note.write_text(json.dumps({"operation": name, "file": os.path.relpath(path, self.place)}))
                if self.how == "torn" and path.endswith(".jsonl"):  # a write that was cut short
                    os.truncate(path, max(0, os.path.getsize(path) - 7))
                if self.how == "after":
                    real(*given, **more)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **more)

        return operation


def attempt(todo: list, place: Path, at: int = 0, how: str = "before", seconds: float = 300) -> tuple[str, int, str]:
    "Do it in a fork: how that ended ('killed', 'done', 'failed', 'stuck'), operations, what was said."
    told = place.parent / "told.json"
    told.unlink(missing_ok=True)
    number = os.fork()
    if not number:
        try:
            os.environ |= {"VLM_COUNTING_RESULTS": str(place / "results"), "VLM_COUNTING_DATA": str(place / "data")}
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), 1)
                os.dup2(null.fileno(), 2)
            killer, said = Killer(place, at, how), ""
            try:
                for command, parameters in todo:
                    perform(command, parameters)
            except BaseException:
                said = traceback.format_exc()[-1500:]
            told.write_text(json.dumps([killer.count, said]))
        finally:
            os._exit(0)
    end = time.monotonic() + seconds
    while not (ended := os.waitpid(number, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)
            return "stuck", 0, ""
        time.sleep(0.02)
    if os.WIFSIGNALED(ended[1]):
        return "killed", 0, ""
    count, said = json.loads(told.read_text())
    return ("failed" if said else "done"), count, said


def digest(place: Path) -> dict[str, str]:
    "What lies in a folder: names, and hashes of what is in them; of records all but times and sessions."
    found = {}
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        name, data = path.relative_to(place).as_posix(), path.read_bytes()
        if path.name.startswith((".lock", ".attempts")) or "/huggingface/" in f"/{name}" or "/example/" in f"/{name}":
            continue
        if path.name == "run.json":
            data = json.dumps({key: value for key, value in json.loads(data).items() if key != "sessions"}).encode()
        if path.suffix in (".json", ".csv", ".html"):
            data = re.sub(rb"127\.0\.0\.1:\d+", b"a port", data)  # of the example's server
        if path.name in ("outcomes.csv", "fetched.jsonl"):  # times; in the order in which they came
            data = b"there"
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def try_command(name: str, base: Path, seed: int = 0) -> Iterator[dict]:
    "Kills at one operation after another, in random order, without end."
    before, todo = COMMANDS[name]
    start, whole, tried = (base / part for part in ("start", "whole", "try"))
    start.mkdir(parents=True)
    ended = attempt(before, start)
    assert ended[0] == "done", ended
    shutil.copytree(start, whole)
    began = time.monotonic()
    ended, count, said = attempt(todo, whole, seconds=3600)
    assert ended == "done", said
    patience = 300 + 10 * (time.monotonic() - began)  # a busy machine is not stuck
    expected, random_ = digest(whole), random.Random(seed)
    if name != "build_bpc" and not (start / "data").exists() and (whole / "data").exists():
        shutil.copytree(whole / "data", start / "data")  # images need not be drawn each time
        shutil.rmtree(tried, ignore_errors=True)
        shutil.copytree(start, tried)
        _, count, _ = attempt(todo, tried)
    while True:
        at, how = random_.randint(1, count), random_.choice(["before", "after", "torn"])
        shutil.rmtree(tried, ignore_errors=True)
        shutil.copytree(start, tried)
        (base / "killed.json").unlink(missing_ok=True)
        first = attempt(todo, tried, at, how, patience)[0]
        where = json.loads((base / "killed.json").read_text()) if first == "killed" else {}
        again, _, said = attempt(todo, tried, seconds=patience)
        found = digest(tried)
        lost = [path for path in expected if path not in found]
        other = [path for path in expected if path in found and found[path] != expected[path]]
        extra = [path for path in found if path not in expected]
        yield {"command": name, "at": at, "how": how, **where, "first": first, "again": again, "said": said[-300:],
               "lost": lost, "other": other, "extra": extra}  # fmt: skip


def outcome(line: dict) -> str:
    "A kill in one word."
    if line["again"] != "done":
        return line["again"]
    return next((word for word in ("lost", "other", "extra") if line[word]), "the same")


def main(seconds: float, names: list[str], most: int = 10**9) -> Counter:
    "Kill the commands in turn for so long; (command, operation, outcome) -> how often."
    warnings.simplefilter("ignore")
    get_ready()
    counted, end = Counter(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as base:
        tries = {name: try_command(name, Path(base) / name) for name in names}
        while time.monotonic() < end and sum(counted.values()) < most:
            for name, kills in tries.items():
                line = next(kills)
                counted[name, line.get("operation", "not reached"), outcome(line)] += 1
                if outcome(line) != "the same":
                    print(json.dumps(line), flush=True)
    return counted


if __name__ == "__main__":
    for (name, operation, word), number in sorted(main(float(sys.argv[1]), sys.argv[2:] or list(COMMANDS)).items()):
        print(f"{name:10} {operation:16} {word:10} {number}")
