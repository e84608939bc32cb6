"""What every command leaves behind, as small dicts that can be kept and compared.

`python tests/golden_files.py` compares with tests/golden/; with `--write` it makes those files anew, after a change
that was meant. Words after that choose steps: `python tests/golden_files.py --write probe-tiny-clip`.
"""

import csv
import hashlib
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).resolve().parent / "golden"


@dataclass(frozen=True)
class Step:
    "One command with its parameters; its golden file is `name`.json."

    command: str
    model: str = ""
    dataset: str = ""
    given: dict = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        return "-".join(word for word in (self.command, self.model, self.dataset) if word)

    @property
    def parameters(self) -> dict:
        named = {"model": self.model, "dataset": self.dataset, "device": "cpu"}
        return self.given | (named if self.model else {})


# as few samples as each command works with; the second set also goes the less usual ways
GIVEN = {
    ("evaluate", "balanced"): {"limit": 54},
    ("extract", "balanced"): {"limit": 144},
    ("probe", "balanced"): {"probes": "svm,ridge", "jobs": 1},
    ("train", "balanced"): {"limit": 54, "training_limit": 216, "epochs": 3, "learning_rate": 1e-3},
    ("diagnose", "balanced"): {"limit": 144},
    ("evaluate", "clustered"): {"limit": 54, "seed": 1, "batch_size": 7},
    ("extract", "clustered"): {"limit": 144, "seed": 1, "layers": "0,3"},
    ("probe", "clustered"): {"probes": "svm,ridge", "rules": "layout", "untrained": None, "jobs": 1},
    ("train", "clustered"): {
        "limit": 54, "training_limit": 216, "epochs": 2, "learning_rate": 1e-3, "part": "counts", "controls": False,
    },
    ("diagnose", "clustered"): {"limit": 144, "seed": 1},
}  # fmt: skip
STEPS = [
    Step(command, model, dataset, given)
    for model in ("tiny-qwen2-vl", "tiny-clip")
    for (command, dataset), given in GIVEN.items()
    if (command, model) != ("train", "tiny-clip")  # it has no output layer to train
] + [Step("report", given={"images": "some"})]  # of all of the above


def needed(step: Step) -> list[Step]:
    "What has to be there before a step."
    if step.command == "report":
        return STEPS[:-1]
    source = Step("extract", step.model, step.dataset).name
    return [other for other in STEPS if step.command == "probe" and other.name == source]


@contextmanager
def one_thread() -> Iterator[None]:
    "Here and in processes that are started: two threads add up in another order, and then a probe flips a sample."
    import torch
    from threadpoolctl import threadpool_limits

    threads, said = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)
        os.environ.pop("OMP_NUM_THREADS") if said is None else os.environ.update(OMP_NUM_THREADS=said)


def make(step: Step, done: dict[str, dict]) -> dict:
    "The summary of a step, run if it is not among those done, after what it needs. VLM_COUNTING_RESULTS says where."
    from vlm_counting.runs import run

    if step.name not in done:
        for before in needed(step):
            make(before, done)
        with one_thread():
            done[step.name] = summarise(run(step.command, **step.parameters))
    return done[step.name]


# --- a folder as a dict ---------------------------------------------------------------------------------------------

ANY = "*"  # stands for a value that differs between runs or machines
NOT_PINNED = {"device", "sessions"}  # of run.json: only which keys they have
BYTES = {
    "sha256",
    "seal",
    "head",
    "train",
    "valid",
}  # of other records: hashes of numbers whose last bit a machine decides
OF_STATES = "states"  # a column with such a hash
OF_KERNELS = ("notebook.ipynb", "report.html")  # left by the command line alone, which test_same_bytes compares
LONGEST = 100  # characters of text kept as they are
FEW = 12  # numbers of a column that are kept one by one
KEPT = {".csv": 100, ".jsonl": 400}  # characters of a column of text that is kept whole


def summarise(folder: Path) -> dict:
    "The names of all files of a run's folder, and what is in those that a program reads. Hidden files are left out."
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    paths = {name: path for name, path in paths.items() if not any(part.startswith(".") for part in name.split("/"))}
    found = {"others": [], "json": {}, "tables": {}, "arrays": {}}
    for name, path in paths.items():
        if path.suffix == ".json":
            found["json"][name] = _json(json.loads(path.read_text(encoding="utf-8")), record=path.name == "run.json")
        elif path.suffix == ".csv":
            found["tables"][name] = _table(_read_csv(path), KEPT[".csv"])
        elif path.suffix == ".jsonl":
            found["tables"][name] = _table(_read_jsonl(path), KEPT[".jsonl"])
        elif path.suffix == ".npy":
            found["arrays"][name] = _array(np.load(path), path.read_bytes())
        elif path.suffix == ".safetensors":
            found["json"][name], tensors = _tensors(path)
            found["arrays"] |= {f"{name}: {key}": _array(tensor) for key, tensor in tensors.items()}
        elif name not in OF_KERNELS:
            found["others"].append(name)
    return found


def _files(summary: dict) -> set[str]:
    "The names of all files of a summary."
    return {name.partition(": ")[0] for names in summary.values() for name in names}


def _hash(data: bytes | str) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:12]


def _number(value: float) -> float | int | str:
    "Seven digits; text for what JSON has no number for."
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else str(value)
    return value


def _json(value: object, record: bool = False, name: str = "") -> object:
    "A JSON value with short numbers, and with * for what no two runs share."
    if record and name == "sessions":  # one more after each interruption: their keys are what counts
        return {key: ANY if key == "peak_memory" else _star(each) for session in value for key, each in session.items()}
    if name in ("sha256", "dims"):  # one for each array, which is looked at itself
        return ANY
    if name in (NOT_PINNED if record else BYTES):
        return _star(value)
    if isinstance(value, dict):
        return {key: _json(each, record, key) for key, each in value.items()}
    if isinstance(value, list):
        return [_json(each, record) for each in value]
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return value[:12]
    return _number(value)


def _star(value: object) -> object:
    return dict.fromkeys(value, ANY) if isinstance(value, dict) else ANY


def _read_csv(path: Path) -> dict[str, list]:
    "The columns of a table, with numbers as numbers; one without a name is called by its place."
    with path.open(newline="", encoding="utf-8") as file:
        names, *rows = csv.reader(file)
    names = [name or f"({place})" for place, name in enumerate(names)]
    return {name: _cells([row[place] for row in rows]) for place, name in enumerate(names)}


def _cells(column: list[str]) -> list:
    "A column of a CSV: numbers if all cells that are not empty are, otherwise text."
    try:
        return [float(cell) if cell else None for cell in column]
    except ValueError:
        return column


def _read_jsonl(path: Path) -> dict[str, list]:
    "The keys of all lines as columns."
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def _table(columns: dict[str, list], kept: int) -> dict:
    "Rows, columns, and the first rows where not all numbers are kept anyway: two of a table, one of a file of lines."
    rows = len(next(iter(columns.values()), ()))
    shown = range(min(rows, 2 if kept == KEPT[".csv"] else 1) if rows > FEW else 0)
    first = [{name: _short(name, values[row]) for name, values in columns.items()} for row in shown]
    return {"rows": rows, "columns": {k: _column(k, values, kept) for k, values in columns.items()}, "first": first}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _column(name: str, values: list, kept: int) -> dict | str:
    "Short text and few numbers as they are, long text as a hash, of many numbers, also in lists, three sums."
    if name == OF_STATES:
        return ANY
    texts = [value if isinstance(value, str) else json.dumps(value, sort_keys=True) for value in values]
    joined, flat = "|".join(texts), [x for value in values for x in (value if isinstance(value, list) else [value])]
    if any(isinstance(value, str | dict | bool) for value in flat) or not any(_is_number(value) for value in flat):
        if len(texts) > 1 and len(set(texts)) == 1 and len(texts[0]) <= LONGEST:
            return {"always": texts[0]}
        return {"text": joined} if len(joined) <= kept else {"hash": _hash(joined), "different": len(set(texts))}
    if len(flat) <= FEW:
        return {"values": [_number(value) for value in flat]}
    if len(joined) <= kept and not any(isinstance(value, float) for value in flat):
        return {"text": joined}
    numbers = np.array([value if _is_number(value) else 0.0 for value in flat])
    sums = [numbers.sum(), numbers @ numbers, numbers @ _weave(len(numbers))]
    blank = sum(not _is_number(value) for value in flat)
    return {"sums": [*(_number(float(value)) for value in sums), len(flat), blank]}


def _weave(number: int) -> np.ndarray:
    "Weights that are all different: a sum with them notices when numbers change places."
    return np.sin(1.0 + np.arange(number))


def _short(name: str, value: object) -> object:
    "A cell of the first rows."
    if name == OF_STATES:
        return ANY
    if isinstance(value, dict) or (isinstance(value, str) and len(value) > LONGEST):
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        return text if len(text) <= LONGEST else f"{text[:50]}... {_hash(text)}"
    return [_number(each) for each in value[:6]] if isinstance(value, list) else _number(value)


MEASURES = ("shape", "type", "mean", "std", "woven", "sha256")  # of an array


def _array(array: np.ndarray, data: bytes | None = None) -> list:
    "Its `MEASURES`: `woven` notices when rows change places; the hash is for information."
    flat = array.astype(np.float64).ravel()
    woven = flat @ _weave(flat.size) / max(math.sqrt(flat.size), 1)
    numbers = [float(f"{value:.6g}") for value in (flat.mean(), flat.std(), woven)]
    return [list(array.shape), str(array.dtype), *numbers, _hash(data or array.tobytes())]


def _tensors(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    "The record and the tensors of a file of weights."
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        record = {key: json.loads(text) if text[:1] in "[{" else text for key, text in (file.metadata() or {}).items()}
        return _json(record), {name: file.get_tensor(name) for name in sorted(file.keys())}


# --- two dicts compared ---------------------------------------------------------------------------------------------

TOLERANCE = 2e-6  # of numbers in tables and records, absolute and relative
LOOSE = {"logprobs": 1e-3}  # column or key -> tolerance, where a float32's noise comes through


def compare(expected: dict, found: dict) -> list[str]:
    "Every difference in a line: file, column or key, what was expected and what was found. Empty if there is none."
    gone, new = (sorted(_files(a) - _files(b)) for a, b in ((expected, found), (found, expected)))
    lines = [f"{name}: expected, and not there" for name in gone] + [f"{name}: there, and not expected" for name in new]
    for kind, differ in (("json", _compare_json), ("tables", _compare_tables), ("arrays", _compare_arrays)):
        for name in expected[kind]:
            if name in found[kind]:
                lines += [f"{name}: {line}" for line in differ(expected[kind][name], found[kind][name])]
    return lines


def other_bytes(expected: dict, found: dict) -> list[str]:
    "Arrays whose bytes are others, which is no mistake on another machine."
    both = expected["arrays"].keys() & found["arrays"].keys()
    return sorted(name for name in both if expected["arrays"][name][-1] != found["arrays"][name][-1])


def _told(what: str, expected: object, found: object) -> str:
    return f"{what}: expected {_said(expected)}, found {_said(found)}"


def _said(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 200 else f"{text[:200]}..."


def _close(a: object, b: object, tolerance: float) -> bool:
    if _is_number(a) and _is_number(b):
        return abs(a - b) <= tolerance * max(1, abs(a), abs(b))
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _compare_json(expected: object, found: object, at: str = "", key: str = "") -> Iterator[str]:
    "Differences of two JSON values, each with the path to it."
    if isinstance(expected, dict) and isinstance(found, dict):
        for name in expected | found:
            where = f"{at}.{name}" if at else name
            if name not in found:
                yield f"{where}: expected {_said(expected[name])}, and not there"
            elif name not in expected:
                yield f"{where}: there with {_said(found[name])}, and not expected"
            else:
                yield from _compare_json(expected[name], found[name], where, name)
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for place, pair in enumerate(zip(expected, found, strict=True)):
            yield from _compare_json(*pair, f"{at}[{place}]", key)
    elif not _close(expected, found, LOOSE.get(key, TOLERANCE)):
        yield _told(at, expected, found)


def _compare_tables(expected: dict, found: dict) -> Iterator[str]:
    "Differences of two tables: rows, columns, then what is in each column."
    if expected["rows"] != found["rows"]:
        yield _told("rows", expected["rows"], found["rows"])
    if list(expected["columns"]) != list(found["columns"]):
        yield _told("columns", list(expected["columns"]), list(found["columns"]))
    for name, column in expected["columns"].items():
        if name in found["columns"]:
            yield from (f"column '{name}', {line}" for line in _compare_columns(name, column, found["columns"][name]))
    for place, pair in enumerate(zip(expected["first"], found["first"], strict=False)):
        shared = [{name: row[name] for name in pair[0] if name in pair[1]} for row in pair]
        yield from (f"row {place}, column {line}" for line in _compare_json(*shared))


SUMS = ("sum", "sum of squares", "woven sum")  # of the numbers in a column, then how many there are and how many blanks


def _compare_columns(name: str, expected: dict | str, found: dict | str) -> Iterator[str]:
    "Differences of two columns; of text that was kept, each row."
    if ANY in (expected, found) or expected.keys() != found.keys():
        if expected != found:
            yield _told("as a whole", expected, found)
    elif "values" in expected:
        lines = _compare_json(expected["values"], found["values"], key=name)
        yield from (f"number {line}" for line in lines)
    elif "sums" in expected:
        *_, number, blank = expected["sums"]
        if [number, blank] != found["sums"][3:]:
            yield _told("numbers and blanks", [number, blank], found["sums"][3:])
        size = max(1, math.sqrt(expected["sums"][1] / number))  # of a usual value
        allowed = LOOSE.get(name, TOLERANCE) * size * math.sqrt(number)
        for part, times, *pair in zip(SUMS, (1, 2 * size, 1), expected["sums"], found["sums"], strict=False):
            if abs(pair[0] - pair[1]) > times * allowed + 1e-6 * abs(pair[0]):  # seven digits are kept
                yield _told(part, *pair)
    elif "text" in expected:
        rows = [column["text"].split("|") for column in (expected, found)]
        if len(rows[0]) == len(rows[1]):
            pairs = enumerate(zip(*rows, strict=True))
            yield from (_told(f"row {place}", *pair) for place, pair in pairs if pair[0] != pair[1])
        else:
            yield _told("text", expected["text"], found["text"])
    elif expected != found:
        yield _told("text", expected, found)


def _compare_arrays(expected: list, found: list) -> Iterator[str]:
    "Differences of two arrays that are no noise."
    allowed = 1e-4 * max(*map(abs, expected[2:4]), 1e-12)
    for name, *pair in list(zip(MEASURES, expected, found, strict=True))[:-1]:
        if pair[0] != pair[1] and not (_is_number(pair[0]) and abs(pair[0] - pair[1]) <= allowed):
            yield _told(name, *pair)


# --- golden files ---------------------------------------------------------------------------------------------------


def pretty(value: object, depth: int, indent: str = "") -> str:
    "JSON that is split into lines down to a depth, so that a change is one line in git."
    if not value or depth == 0 or not isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    inner, marks = indent + " ", "{}" if isinstance(value, dict) else "[]"
    pairs = value.items() if isinstance(value, dict) else ((None, each) for each in value)
    parts = [
        inner + (f"{json.dumps(key, ensure_ascii=False)}: " if key is not None else "") + pretty(each, depth - 1, inner)
        for key, each in pairs
    ]
    return f"{marks[0]}\n" + ",\n".join(parts) + f"\n{indent}{marks[1]}"


def golden_path(step: Step) -> Path:
    return GOLDEN / f"{step.name}.json"


def read_golden(step: Step) -> dict:
    return json.loads(golden_path(step).read_text(encoding="utf-8"))


def write_golden(step: Step, found: dict) -> None:
    GOLDEN.mkdir(exist_ok=True)
    parts = {"others": 1, "json": 2, "tables": 3, "arrays": 1}  # depth to which each is split into lines
    texts = [f' "{part}": {pretty(found[part], depth, " ")}' for part, depth in parts.items()]
    golden_path(step).write_text("{\n" + ",\n".join(texts) + "\n}\n", encoding="utf-8")


def main(words: list[str]) -> int:
    "Run the chosen steps in a folder of their own, and compare or write; the number of files with differences."
    chosen = [word for word in words if not word.startswith("--")]
    steps = [step for step in STEPS if not chosen or any(word in step.name for word in chosen)]
    for name, value in (("MPLBACKEND", "agg"), ("HF_HUB_OFFLINE", "1"), ("TOKENIZERS_PARALLELISM", "false")):
        os.environ.setdefault(name, value)
    done, wrong, began = {}, 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="golden-") as place:
        os.environ["VLM_COUNTING_RESULTS"] = place
        for step in steps:
            found = make(step, done)
            lines = compare(read_golden(step), found) if golden_path(step).exists() else ["there is no golden file"]
            seconds, began = time.monotonic() - began, time.monotonic()
            print("\n  ".join([f"{step.name}: {seconds:.0f} s, {len(lines)} differences", *lines]), flush=True)
            if golden_path(step).exists() and (others := other_bytes(read_golden(step), found)):
                print(f"  {len(others)} of {len(found['arrays'])} arrays have other bytes", flush=True)
            wrong += bool(lines)
            if "--write" in words:
                write_golden(step, found)
    return 0 if "--write" in words else wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
