"What tests and benchmarks of sweeps share: two hosts on one machine, and who works for whom."

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Host:
    "Where a process can be started."

    address: str  # of its network, for those that listen
    front: tuple = ()  # words in front of a command; none: this machine as it is


def _ip(*commands: str) -> None:
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True, capture_output=True)


@contextmanager
def two_hosts() -> Iterator[list[Host]]:
    "Two network namespaces with a cable between them, or this machine twice where those are not allowed (no root)."
    names, ends = ([f"vlm{os.getpid()}{side}" for side in "ab"], [f"v{os.getpid()}{side}" for side in "ab"])
    found = [Host(f"10.77.0.{number}", ("ip", "netns", "exec", names[number - 1])) for number in (1, 2)]
    try:
        _ip(*(f"netns add {name}" for name in names), f"link add {ends[0]} type veth peer name {ends[1]}")
        for host, name, end in zip(found, names, ends, strict=True):
            _ip(f"link set {end} netns {name}", f"-n {name} addr add {host.address}/24 dev {end}")
            _ip(f"-n {name} link set {end} up", f"-n {name} link set lo up")
    except (OSError, subprocess.CalledProcessError):
        found = [Host("127.0.0.1"), Host("127.0.0.1")]
    try:
        yield found
    finally:
        for name in names if shutil.which("ip") else ():
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def start_on(host: Host, results: Path, *words: object, log: Path) -> subprocess.Popen:
    "A command of this environment on a host that sees its results folder in a place of its own; it writes to `log`."
    environment = os.environ | {"VLM_COUNTING_RESULTS": str(results), "OMP_NUM_THREADS": "1"}
    command = [*host.front, Path(sys.executable).parent / str(words[0]), *map(str, words[1:])]
    with open(log, "w") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)


@contextmanager
def dask_on(hosts: list[Host], results: list[Path], place: Path) -> Iterator[tuple[str, list[subprocess.Popen]]]:
    "A scheduler on the first host and a worker on each. Its address, and the workers: one that is killed stays dead."
    note, started = place / "scheduler.json", []
    listening = ("--host", hosts[0].address, "--port", "0", "--no-dashboard", "--no-show", "--scheduler-file", note)
    try:
        started.append(start_on(hosts[0], results[0], "dask", "scheduler", *listening, log=place / "scheduler.log"))
        wait_until(lambda: note.exists() and note.read_text().endswith("}"))
        for number, (host, seen) in enumerate(zip(hosts, results, strict=True)):
            plain = ("--nthreads", "1", "--memory-limit", "0", "--no-dashboard", "--no-nanny", "--host", host.address)
            log = place / f"worker-{number}.log"
            started.append(start_on(host, seen, "dask", "worker", "--scheduler-file", note, *plain, log=log))
        for number in range(len(hosts)):
            wait_until(lambda number=number: "Registered to" in (place / f"worker-{number}.log").read_text())
        address = next(line.split()[-1] for line in note.read_text().splitlines() if '"address"' in line)
        yield address.strip('",'), started[1:]
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()


def wait_until(true, seconds: float = 120.0):
    "The first true value of a function."
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.05)
    return found
