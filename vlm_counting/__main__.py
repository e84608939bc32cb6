"""The command `vlm-counting`, also as `python -m vlm_counting`: what Ctrl-C means from the first moment on.

Everything else is in the module `terminal`, which takes a second to load; an interrupt during that second is heard here.
"""

import _thread
import os
import shlex
import signal
import sys

__all__ = ["HEARD", "main", "stopped", "version_line"]


def version_line() -> str:
    "The versions that an answer depends on most, without loading any of these packages."
    from importlib.metadata import PackageNotFoundError, version

    from vlm_counting import __version__

    found = [f"vlm_counting {__version__}", f"Python {sys.version.split()[0]}"]
    for package in ("torch", "transformers"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} is not installed")
    return ", ".join(found)


HEARD = []  # Ctrl-C, as often as it was pressed


def _hear(number, frame):
    "Raise KeyboardInterrupt, and again after some seconds where it was swallowed: an import or a callback may do so."
    HEARD.append(number)
    logging, warnings = sys.modules.get("logging"), sys.modules.get("warnings")
    if hasattr(logging, "disable"):  # nothing is imported here: it might be what was interrupted
        logging.disable(50)
    if hasattr(warnings, "simplefilter"):
        warnings.simplefilter("ignore")
    sys.unraisablehook = lambda said: _thread.interrupt_main() if said.exc_type is KeyboardInterrupt else None
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _hear)
        signal.setitimer(signal.ITIMER_REAL, 5)
    raise KeyboardInterrupt


def stopped(words: list[str]) -> int:
    "Say in one sentence how to go on. From here on, another Ctrl-C changes nothing."
    if getattr(signal.getsignal(signal.SIGINT), "__name__", "") == "_hear":  # our own; a caller's stays
        for name in {"SIGINT", "SIGALRM"} & set(dir(signal)):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    again = shlex.join(["vlm-counting", *words])
    print(f"\nStopped: what is finished stays, and the same command goes on from there: {again}", file=sys.stderr)
    return 130


def _end_children() -> None:
    "End the kernels and workers that this process started, and that have not ended by themselves."
    import psutil

    children = psutil.Process().children(recursive=True)
    for end in ("terminate", "kill"):
        for child in children:
            try:
                getattr(child, end)()
            except psutil.Error:
                continue
        _, children = psutil.wait_procs(children, timeout=3)


def main() -> int:
    "Run the command. The exit status is that of `terminal.main`."
    words, status = sys.argv[1:], 130
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # whoever starts it in the background has none
        signal.signal(signal.SIGINT, _hear)
    try:
        if words in (["--version"], ["-V"]):
            print(version_line(), flush=True)
            return 0
        from vlm_counting import terminal

        status = terminal.main(words)
    except KeyboardInterrupt:
        status = stopped(words)
    if status == 130:
        _end_children()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)  # whatever is still to be cleaned up would only say that it was interrupted
    return status


if __name__ == "__main__":  # python -m vlm_counting: this file under another name
    from vlm_counting.__main__ import main

    sys.exit(main())
