"Guards of the photographs: what a link may do, what a killed run leaves, which rows are chosen, what is covered."

import gzip
import io
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from vlm_counting import photographs as room
from vlm_counting.audit import _difference_hash, _near_pairs, _tells, audit, audit_summary
from vlm_counting.core import read_jsonl
from vlm_counting.datasets import PIXMO_COUNTS, _list_pixmo, _read_pixmo, coverage, load_dataset
from vlm_counting.evaluation import load_predictions, predict
from vlm_counting.extraction import extract_states
from vlm_counting.models import _captions_for, _image_size, image_tokens, load_model
from vlm_counting.photographs import (
    Limits,
    _is_public,
    _paper_rows,
    _read_source,
    build_bpc,
    choose_rows,
    fetch_images,
)
from vlm_counting.statistics import score_labels

SHARED = Path(__file__).resolve().parents[2] / "shared"
ARCHIVE = SHARED / "reference" / "archives" / "pixmo-count-image-free.tar.gz"
needs_archive = pytest.mark.skipif(not ARCHIVE.exists(), reason="the released rows are not on this machine")
QUICK = Limits(200_000, 1_000_000, tries=3, connect=2, read=2, total=5, pause=0.01, longest_wait=3)
HERE = ["127.0.0.1"]


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_COUNTING_DATA", str(tmp_path / "cache"))


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def jpeg(number: int, size: tuple[int, int] = (24, 20)) -> bytes:
    "A small picture, another one for each number."
    image = Image.new("RGB", size, (number % 256, number // 256 * 40 % 256, 90))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", comment=str(number))
    return buffer.getvalue()


def row_of(url: str, data: bytes, count: int = 3, label: str = "cats") -> dict:
    return {
        "image_url": url,
        "image_sha256": digest(data),
        "count": count,
        "points": {"x": [], "y": []},
        "label": label,
    }


# ------------------------------------------------------------------------------------------------------- a server


class Web:
    "Answers by path: kind/number. Remembers when it was asked for what."

    def __init__(self):
        self.asked, self.lock, self.files = [], threading.Lock(), {}

    def times(self, path: str) -> int:
        return sum(asked == path for _, asked, _ in self.asked)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        with self.lock:
            self.asked.append((time.monotonic(), handler.path, handler.headers["Host"]))
            before = self.times(handler.path)
        kind, data = handler.path.split("/")[1], self.files.get(handler.path, b"")
        getattr(self, kind, self.gone)(handler, data, before)

    def say(self, handler, code: int, data: bytes = b"", **headers) -> None:
        handler.send_response(code)
        for name, value in {"Content_Length": len(data), **headers}.items():
            if value is not None:
                handler.send_header(name.replace("_", "-"), str(value))
        handler.end_headers()
        handler.wfile.write(data)

    def good(self, handler, data, before):
        self.say(handler, 200, data)

    def slow(self, handler, data, before):
        time.sleep(0.1)
        self.say(handler, 200, data)

    def moved(self, handler, data, before):
        self.say(handler, 302, Location=handler.path.replace("moved/", "good/moved"))

    def busy(self, handler, data, before):
        self.say(handler, *((429,) if before == 1 else (200, data)), **({"Retry_After": 0} if before == 1 else {}))

    def broken(self, handler, data, before):
        self.say(handler, 503)

    def gone(self, handler, data, before):
        self.say(handler, 404)

    def other(self, handler, data, before):
        self.say(handler, 200, data + b"another")

    def cut(self, handler, data, before):
        self.say(handler, 200, data, Content_Length=len(data) + 50)
        handler.close_connection = True

    def large(self, handler, data, before):
        self.say(handler, 200, data)

    def endless(self, handler, data, before):
        handler.close_connection = True
        self.say(handler, 200, Content_Length=None)
        with suppress(OSError):  # until the other side has had enough
            for _ in range(10_000):
                handler.wfile.write(bytes(65536))

    def drip(self, handler, data, before):
        handler.close_connection = True
        self.say(handler, 200, Content_Length=None)
        with suppress(OSError):
            for _ in range(100):
                handler.wfile.write(b".")
                time.sleep(0.05)

    def packed(self, handler, data, before):
        self.say(handler, 200, gzip.compress(bytes(10**7)), Content_Encoding="gzip")

    def loop(self, handler, data, before):
        self.say(handler, 302, Location=handler.path)

    def file(self, handler, data, before):
        self.say(handler, 302, Location="file:///etc/passwd")

    def inward(self, handler, data, before):
        self.say(handler, 302, Location=f"http://localhost:{handler.server.server_port}/good/0")

    def patience(self, handler, data, before):
        first = before == 1 and self.asked[0][1] == handler.path
        time.sleep(0 if first else 0.05)
        self.say(handler, *((429,) if first else (200, data)), Retry_After=1)

    def hours(self, handler, data, before):
        self.say(handler, 503, Retry_After=3600)


def handler_of(web: Web) -> type:
    methods = {"do_GET": lambda self: web.answer(self), "log_message": lambda *words: None}
    return type("Handler", (BaseHTTPRequestHandler,), methods | {"protocol_version": "HTTP/1.1", "timeout": 10})


@contextmanager
def serving(web: Web, certificate: Path | None = None):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(web))
    server.handle_error = lambda *words: None  # a client that hangs up is part of the plan
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def web():
    web = Web()
    with serving(web) as web.address:
        yield web


def link(web: Web, path: str, data: bytes, **more) -> dict:
    web.files[path] = web.files[path.replace("moved/", "good/moved")] = data
    return row_of(web.address + path, data, **more)


def fetch(rows: list[dict], folder: Path, **more):
    return fetch_images(rows, folder, progress=False, **{"limits": QUICK, "private_hosts": HERE} | more)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


# --------------------------------------------------------------------------------------------------- what a link does


def bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(buffer, "PNG")
    return buffer.getvalue()


ANSWERS = {  # kind of link -> outcome, part of the reason, whether asked again by the next call
    "good": ("fetched", "", False),
    "slow": ("fetched", "", False),
    "moved": ("fetched", "", False),
    "busy": ("fetched", "", False),
    "gone": ("dead", "status 404", False),
    "broken": ("dead", "status 503", True),
    "cut": ("dead", "RemoteProtocolError", True),
    "drip": ("dead", "slower than 0.3 s", True),
    "hours": ("dead", "status 503", True),
    "other": ("changed", "its sha256 is", False),
    "large": ("refused", "bytes, more than 200,000", False),
    "endless": ("refused", "more than 200,000 bytes", False),
    "packed": ("refused", "packed with gzip", False),
    "loop": ("refused", "more than 5 redirects", False),
    "file": ("refused", "not http(s): file:", False),
    "inward": ("refused", "localhost has the private address", False),
}
CONTENTS = {
    "bomb": (bomb, "12000 x 12000 pixels"),
    "text": (lambda: b"<html>photo unavailable</html>", "no whole image"),
    "half": (lambda: jpeg(9, (90, 90))[:-200], "no whole image"),
    "empty": (lambda: b"", "no whole image"),
}


@pytest.mark.long
def test_every_kind_of_answer(web, tmp_path):
    large = os.urandom(300_000)
    rows = [link(web, f"/{kind}/1", large if kind == "large" else jpeg(n)) for n, kind in enumerate(ANSWERS)]
    limits = Limits(**vars(QUICK) | {"total": 0.3})
    report = fetch(rows, tmp_path, limits=limits)
    for row, kind, (outcome, why, _later) in zip(report.itertuples(), ANSWERS, ANSWERS.values(), strict=True):
        assert row.outcome == outcome and why in row.why, (kind, row)
    assert names(tmp_path / "images") == {f"{rows[n]['image_sha256']}.jpg" for n in range(4)}
    assert names(tmp_path / "quarantine") == {f"{rows[list(ANSWERS).index('other')]['image_sha256']}.file"}
    assert web.times("/broken/1") == 3 and web.times("/cut/1") == 3 and web.times("/hours/1") == 1
    asked = Counter(path for _, path, _ in web.asked)
    again = fetch(rows, tmp_path, limits=limits)
    new = Counter(path for _, path, _ in web.asked) - asked
    assert set(new) == {f"/{kind}/1" for kind, (_, _, later) in ANSWERS.items() if later}
    assert again[["outcome", "bytes"]].equals(report[["outcome", "bytes"]])
    fetch(rows[4:5], tmp_path, again=True)
    assert web.times("/gone/1") == 2


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("kind", CONTENTS)
def test_what_is_no_picture_is_refused_even_with_the_right_hash(web, tmp_path, kind):
    make, why = CONTENTS[kind]
    report = fetch([link(web, "/good/1", make())], tmp_path)
    assert report.loc[0, "outcome"] == "refused" and why in report.loc[0, "why"]
    assert not names(tmp_path / "images")


def test_private_addresses_are_visited_only_if_asked(web, tmp_path):
    row = link(web, "/good/1", jpeg(1))
    report = fetch([row], tmp_path / "no", private_hosts=[])
    assert report.loc[0, "outcome"] == "refused" and "private" in report.loc[0, "why"] and not web.asked
    assert fetch([row], tmp_path / "yes").loc[0, "outcome"] == "fetched"


@pytest.mark.parametrize(
    "address, public",
    [
        *[(a, False) for a in "10.1.2.3 127.0.0.1 169.254.169.254 172.16.0.1 192.168.0.1 100.64.0.1 0.0.0.0".split()],
        *[(a, False) for a in "255.255.255.255 224.0.0.1 240.0.0.1 ::1 :: fe80::1%eth0 fc00::1 ff02::1".split()],
        *[(a, False) for a in "::ffff:127.0.0.1 64:ff9b::7f00:1 2002:7f00:1:: 2001:db8::1".split()],
        *[(a, True) for a in "8.8.8.8 151.101.1.69 2606:4700::1111 ::ffff:8.8.8.8 64:ff9b::808:808".split()],
    ],
)
def test_public_addresses(address, public):
    assert _is_public(address) == public


def test_the_connection_goes_to_the_address_that_was_checked(web, tmp_path, monkeypatch):
    "A name server that answers otherwise the second time (DNS rebinding) is not asked a second time."
    real, asked = socket.getaddrinfo, []

    def resolve(host, *rest, **more):
        if host not in ("mirror.test", "trap.test"):
            return real(host, *rest, **more)
        asked.append(host)
        addresses = {"mirror.test": ["127.0.0.1"], "trap.test": ["8.8.8.8", "127.0.0.1"]}[host]
        assert asked.count(host) == 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, rest[0])) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    port, data = web.address.rpartition(":")[2], [jpeg(n) for n in range(3)]
    web.files |= {"/good/1": data[1], "/good/2": data[2]}
    rows = [row_of(f"http://mirror.test:{port}/good/{n}", data[n]) for n in (1, 2)]
    rows.append(row_of(f"http://trap.test:{port}/good/0", data[0]))
    report = fetch(rows, tmp_path, private_hosts=["mirror.test"], workers=1)
    assert report["outcome"].tolist() == ["fetched", "fetched", "refused"]
    assert asked == ["mirror.test", "trap.test"]
    assert {host for *_, host in web.asked} == {f"mirror.test:{port}"}


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate of this test")
def test_certificates_are_checked_against_the_name(tmp_path, monkeypatch):
    pem = tmp_path / "server.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", pem, "-out", pem]
    made = subprocess.run(
        [*map(str, command[:-4]), "-keyout", tmp_path / "key", "-out", tmp_path / "crt"], capture_output=True
    )
    assert not made.returncode, made.stderr
    pem.write_bytes((tmp_path / "key").read_bytes() + (tmp_path / "crt").read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "crt"))
    web, data = Web(), jpeg(1)
    with serving(web, pem) as address:
        web.files["/good/1"] = data
        rows = [
            row_of(f"{address.replace('127.0.0.1', 'localhost')}/good/1", data),
            row_of(f"{address}/good/1", jpeg(2)),
        ]
        report = fetch(rows, tmp_path / "set", private_hosts=["localhost", "127.0.0.1"])
    assert report["outcome"].tolist() == ["fetched", "dead"] and "CERTIFICATE" in report.loc[1, "why"].upper()


@pytest.mark.long
def test_a_busy_host_is_left_alone_by_all_workers(web, tmp_path):
    rows = [link(web, f"/patience/{n}", jpeg(n)) for n in range(40)]
    report = fetch(rows, tmp_path, workers=4)
    assert (report["outcome"] == "fetched").all()
    start = web.asked[0][0]
    early = [when - start for when, *_ in web.asked if when - start < 0.95]
    assert len(early) < 12, "more than what was on its way already"


def test_no_network_is_our_fault_and_not_the_links(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        rows = [row_of(f"http://127.0.0.1:{taken.getsockname()[1]}/{n}", jpeg(n)) for n in range(60)]
        with pytest.raises(ConnectionError, match="None of 50 links could be reached"):
            fetch(rows, tmp_path)
    assert all(line["later"] for line in read_jsonl(tmp_path / "fetched.jsonl"))


def test_a_full_disk_stops_the_run_and_loses_nothing(web, small_disk, tmp_path):
    rows = [link(web, f"/good/{n}", jpeg(n, (150, 150)) + os.urandom(9000)) for n in range(30)]
    with pytest.raises(OSError):
        fetch(rows, small_disk / "set", workers=2)
    kept = names(small_disk / "set" / "images")
    assert kept and all(name.endswith(".jpg") for name in kept)
    for name in kept:
        assert digest((small_disk / "set" / "images" / name).read_bytes()) == name[:-4]


def test_rows_with_the_same_picture_are_fetched_once_from_any_of_their_links(web, tmp_path):
    data = jpeg(1)
    rows = [link(web, "/gone/1", data), link(web, "/good/1", data), link(web, "/good/2", data)]
    report = fetch(rows, tmp_path)
    assert report["outcome"].tolist() == ["fetched"] * 3 and web.times("/good/1") == 1 and not web.times("/good/2")
    (tmp_path / "images" / f"{digest(data)}.jpg").write_bytes(b"damaged")
    (tmp_path / "images" / f".{'0' * 64}.part").write_bytes(b"of a run that was killed")
    assert fetch(rows, tmp_path)["outcome"].tolist() == ["fetched"] * 3 and web.times("/good/1") == 2
    assert names(tmp_path / "images") == {f"{digest(data)}.jpg"}


def test_bad_rows_are_refused_before_anything_is_fetched(web, tmp_path):
    good = link(web, "/good/1", jpeg(1))
    for change in (
        {"image_sha256": "../../x"},
        {"image_sha256": None},
        {"image_url": ""},
        {"count": -1},
        {"label": None},
    ):
        with pytest.raises(ValueError, match="row 1: "):
            fetch([good, good | change], tmp_path)
    assert not web.asked


# ------------------------------------------------------------------------------------------------------ killed twice


SCRIPT = """
import json, sys
from vlm_counting.photographs import Limits, fetch_images
rows, folder = json.load(open(sys.argv[1])), sys.argv[2]
limits = Limits(200_000, 1_000_000, tries=3, pause=0.01, read=5)
fetch_images(rows, folder, 8, limits, ["127.0.0.1"], progress=False).to_csv(sys.argv[3], index=False)
"""


def settled(folder: Path, web: Web, rows: list[dict]) -> set[str]:
    "Paths that need not be asked for any more."
    journal = read_jsonl(folder / "fetched.jsonl") if (folder / "fetched.jsonl").exists() else []
    done = {line["image_sha256"] for line in journal if not line["later"]}
    done |= {name[:-4] for name in names(folder / "images") if name.endswith(".jpg")}
    return {row["image_url"].removeprefix(web.address) for row in rows if row["image_sha256"] in done}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*torn last line")
def test_500_images_and_two_kills(web, tmp_path):
    often = {0: "slow", 3: "moved", 6: "busy", 9: "gone", 12: "other", 15: "cut", 18: "file"}
    kinds = [often.get(n % 50, "good") for n in range(495)] + ["large", "packed", "text", "bomb", "half"]
    data = {n: jpeg(n) for n in range(495)} | {495: os.urandom(300_000), 496: jpeg(496)}
    data |= {496 + n: CONTENTS[kind][0]() for n, kind in enumerate(("text", "bomb", "half"), start=1)}
    rows = [link(web, f"/{kind if n < 497 else 'good'}/{n}", data[n]) for n, kind in enumerate(kinds)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    folder, reports = tmp_path / "set", [tmp_path / f"{n}.csv" for n in range(3)]
    for number, (goal, report) in enumerate(zip((120, 300, 10**6), reports, strict=True)):
        before, asked = settled(folder, web, rows), len(web.asked)
        command = [sys.executable, "-c", SCRIPT, tmp_path / "rows.json", folder, report]
        process = subprocess.Popen(list(map(str, command)), cwd=Path(__file__).parents[1])
        while process.poll() is None:
            if len(names(folder / "images")) >= goal:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.005)
        assert process.wait() == (0 if number == 2 else -signal.SIGKILL)
        repeated = before & {path for _, path, _ in web.asked[asked:]}
        assert not repeated, f"asked again for {sorted(repeated)[:3]}"
    good = [n for n, kind in enumerate(kinds) if kind in ("good", "slow", "moved", "busy")]
    assert names(folder / "images") == {f"{rows[n]['image_sha256']}.jpg" for n in good}
    for n in good:
        assert (folder / "images" / f"{rows[n]['image_sha256']}.jpg").read_bytes() == data[n]
    report = fetch(rows, folder, limits=Limits(200_000, 1_000_000, tries=1))
    outcomes = {"gone": "dead", "cut": "dead", "other": "changed"} | {"file": "refused"}
    expected = [outcomes.get(kind, "fetched" if n in set(good) else "refused") for n, kind in enumerate(kinds)]
    assert report["outcome"].tolist() == expected
    assert len(names(folder / "quarantine")) == kinds.count("other")


# ----------------------------------------------------------------------------------------------------- choosing rows


def table(folder: Path, parts: dict[str, list[dict]]) -> Path:
    "Parquet with the hub's columns."
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in parts.items():
        name = {"valid": "validation"}.get(split, split)
        listed = [{key: row[key] for key in room._FIELDS} for row in rows]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(listed), folder / f"{name}-00000-of-00001.parquet")
    return folder


def invented(number: int, split: str, labels: int) -> list[dict]:
    random = room.Random(split)
    return [
        row_of(
            f"http://127.0.0.1:9/{split}/{n}",
            f"{split}{n}".encode(),
            random.randrange(12),
            f"l{random.randrange(labels)}",
        )
        | {"source_row": n}
        for n in range(number)
    ]


@pytest.fixture
def parts():
    parts = {"train": invented(1500, "train", 12), "valid": invented(60, "valid", 5), "test": invented(60, "test", 8)}
    parts["test"][0] |= {"image_sha256": parts["train"][0]["image_sha256"]}
    parts["train"][2] |= {"image_sha256": parts["train"][1]["image_sha256"]}
    return parts


def test_rows_are_balanced_and_distinct(parts):
    chosen = choose_rows(parts, per_count=30)
    assert Counter(row["count"] for row in chosen["train"]) == dict.fromkeys(PIXMO_COUNTS, 30)
    assert {row["label"] for row in chosen["train"]} == {f"l{n}" for n in range(8)}
    for count in PIXMO_COUNTS:
        number = Counter(row["label"] for row in chosen["train"] if row["count"] == count)
        assert max(number.values()) - min(number.values()) <= 2  # in turn, as far as there are rows
    hashes = [row["image_sha256"] for rows in choose_rows(parts, per_count=10**6).values() for row in rows]
    assert len(hashes) == len(set(hashes))
    kept = choose_rows(parts, per_count=10**6, duplicates=True, categories="all")
    assert len(kept["train"]) == sum(row["count"] in PIXMO_COUNTS for row in parts["train"])
    labels = {name: {row["label"] for row in choose_rows(parts, 30, name)["train"]} for name in ("valid", "all")}
    assert labels == {"valid": {f"l{n}" for n in range(5)}, "all": {f"l{n}" for n in range(12)}}
    few = choose_rows(parts, 30, ["l3", "l4"], per_label=2)
    assert Counter(row["count"] for row in few["train"]) == dict.fromkeys(PIXMO_COUNTS, 4)
    assert max(Counter((row["count"], row["label"]) for row in few["test"]).values()) <= 2


@pytest.mark.parametrize(
    "option, message",
    [
        ({"per_count": 0}, "per_count is 0, expected a whole number of at least 1"),
        ({"per_label": 2.5}, "per_label is 2.5"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"categories": "tests"}, "No choice of categories named 'tests'"),
        ({"categories": ["unicorns"]}, "No row is left for train"),
        ({"per_counts": 3}, "Did you mean 'per_count'?"),
    ],
)
def test_wrong_choices_are_refused(parts, tmp_path, option, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        build_bpc(table(tmp_path / "table", parts), tmp_path / "bpc", options=option, fetch=quiet())
    assert not (tmp_path / "bpc" / "record.json").exists()


@pytest.mark.long
def test_choice_depends_on_rows_and_seed_alone(parts, tmp_path):
    "Neither on the process nor on the order of labels; and a row more of one label moves nothing of another."
    (tmp_path / "parts.json").write_text(json.dumps(parts))
    script = "import json, sys; from vlm_counting.photographs import choose_rows\n"
    script += "chosen = choose_rows(json.load(open(sys.argv[1])), 20)\n"
    script += "print([row['source_row'] for rows in chosen.values() for row in rows])"
    said = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path / "parts.json"],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
        )
        assert not done.returncode, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1] and len(said[0]) > 500
    orders = [[row["source_row"] for row in choose_rows(parts, 20, seed=seed)["train"]] for seed in (42, 42, 43)]
    assert orders[0] == orders[1] != orders[2]


def test_source_is_checked(parts, tmp_path):
    folder = table(tmp_path / "table", parts)
    rows = _read_source(folder, "valid")
    assert [{key: row[key] for key in parts["valid"][0]} for row in rows] == parts["valid"]
    listed = [row_of("http://a/1", b"1") | {"points": [{"x": 1.0, "y": 2.0}, {"x": 3.0, "y": 4.0}]}]
    (tmp_path / "points").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(listed), tmp_path / "points" / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="No split named 'test'"):
        _read_source(tmp_path / "points", "test")
    assert _read_source(tmp_path / "points", "train")[0]["points"] == {"x": [1, 3], "y": [2, 4]}
    bad = [row | {"image_sha256": "0"} for row in parts["valid"][:1]]
    with pytest.raises(ValueError, match="row 0: its image_sha256 is '0'"):
        _read_source(table(tmp_path / "bad", {**parts, "valid": bad}), "valid")
    less = pyarrow.Table.from_pylist([{key: row[key] for key in ("image_url", "count")} for row in parts["valid"]])
    pyarrow.parquet.write_table(less, tmp_path / "bad" / "validation-00000-of-00001.parquet")
    pyarrow.parquet.write_table(less, tmp_path / "bad" / "train-00000-of-00001.parquet")
    pyarrow.parquet.write_table(less, tmp_path / "bad" / "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="has no column image_sha256"):
        _read_source(tmp_path / "bad", "valid")


# ------------------------------------------------------------------------------------------------- the released rows


@pytest.fixture
def no_names(monkeypatch):
    "No name can be looked up, as without a network, at once."

    def resolve(host, *rest, **more):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@needs_archive
def test_released_rows_are_the_papers():
    rows = _paper_rows(ARCHIVE)
    counts = {split: Counter(row["count"] for row in part) for split, part in rows.items()}
    assert [counts["train"][n] for n in range(10)] == [299, 300, 294, 297, 290, 296, 293, 292, 292, 295]
    assert [counts["valid"][n] for n in range(10)] == [0, 0, 60, 58, 60, 58, 58, 60, 60, 60]
    assert [counts["test"][n] for n in range(10)] == [0, 0, 59, 60, 60, 60, 58, 56, 59, 59]
    assert {split: len(part) for split, part in rows.items()} == {"train": 2948, "valid": 474, "test": 471}
    labels = {split: Counter(row["label"] for row in part) for split, part in rows.items()}
    assert {split: len(part) for split, part in labels.items()} == {"train": 76, "valid": 51, "test": 59}
    each = [{row["label"] for row in rows["train"] if row["count"] == n} for n in range(10)]
    assert list(map(len, each)) == [76, 54, 66, 67, 65, 61, 47, 37, 30, 19]
    assert {split: round(part["people"] / part.total(), 2) for split, part in labels.items()} == {
        "train": 0.17, "valid": 0.53, "test": 0.52,
    }  # fmt: skip
    asked = set(labels["valid"]) | set(labels["test"])
    assert set(labels["train"]) - asked == {"teapots"}  # tested with counts above 9 only


@pytest.mark.long
@needs_archive
def test_audit_finds_the_duplicates_and_overlaps_of_the_paper():
    samples = [sample for split in ("train", "valid", "test") for sample in _list_pixmo(ARCHIVE, split)]
    assert len(samples) == 3893 and len({sample.uid for sample in samples}) == 3893
    found = audit(samples, counts=PIXMO_COUNTS)
    rows = audit_summary(found).set_index("flaw")["rows"]
    assert rows["row repeats an image of its split"] == 21 and rows["image missing or broken"] == 3893
    assert rows["asked most: people"] == 993 and rows["words disagree with the answer"] == 0
    overlaps = found[found["across"] & (found["split"] == "test")]
    assert sorted(zip(overlaps["label"], overlaps["target"], strict=True)) == [("people", 9), ("scallops", 3)]
    assert found["across"].sum() == 4


@pytest.mark.long
@needs_archive
def test_rule_paper_writes_the_released_rows_and_goes_on_later(tmp_path, no_names):
    for _ in range(2):
        with pytest.raises(ConnectionError, match="no address for live.staticflickr.com"):
            build_bpc(None, tmp_path / "bpc", "paper", ARCHIVE, fetch={"limits": QUICK, "progress": False})
    released = _paper_rows(ARCHIVE)
    for split, number in {"train": 2948, "valid": 474, "test": 471}.items():
        written = json.loads((tmp_path / "bpc" / split / "samples.json").read_text())
        assert len(written) == number
        for row, original in zip(written, released[split], strict=True):
            assert all(row[key] == original[key] for key in room._FIELDS)
            assert row["image_path"] == f"../images/{original['image_sha256']}.jpg"


@pytest.mark.long
@needs_archive
def test_rule_paper_looks_the_rows_up_in_the_table(tmp_path, no_names):
    released = _paper_rows(ARCHIVE)
    short = {split: rows[3:] for split, rows in released.items()}
    with pytest.raises(ConnectionError):
        fetch = {"limits": QUICK, "progress": False}
        build_bpc(table(tmp_path / "hub", short), tmp_path / "bpc", "paper", ARCHIVE, fetch=fetch)
    record = json.loads((tmp_path / "bpc" / "record.json").read_text())
    assert record["not_in_source"] == {"train": [0, 1, 2], "valid": [0, 1, 2], "test": [0, 1, 2]}
    chosen = choose_rows({split: _read_source(tmp_path / "hub", split) for split in released}, per_count=200)
    assert Counter(row["count"] for row in chosen["train"]) == dict.fromkeys(PIXMO_COUNTS, 200)


# ---------------------------------------------------------------------------------------------------------- building


@pytest.fixture
def served(web):
    "A table of 40 + 10 + 10 rows whose pictures are served; two of each split are dead or changed."

    def make(folder: Path) -> Path:
        parts = {}
        for base, (split, number) in enumerate({"train": 40, "valid": 10, "test": 10}.items()):
            kinds = ["gone" if n == 3 else "other" if n == 4 else "good" for n in range(number)]
            parts[split] = [
                link(web, f"/{kind}/{split}{n}", jpeg(100 * base + n, (40 + n, 30)), count=n % 10, label="ab"[n % 2])
                for n, kind in enumerate(kinds)
            ]
        return table(folder, parts)

    return make


def quiet(**more) -> dict:
    return {"limits": QUICK, "private_hosts": HERE, "progress": False} | more


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*can be used")
def test_set_says_what_it_lacks(served, web, tmp_path, monkeypatch):
    folder = tmp_path / "cache" / "pixmo-count"
    built = build_bpc(served(tmp_path / "hub"), folder, options={"per_count": 3}, fetch=quiet())
    assert built[["rows", "images", "dead", "changed"]].values.tolist() == [
        [30, built.loc[0, "images"], *built.loc[0, ["dead", "changed"]]],
        [10, 8, 1, 1],
        [10, 8, 1, 1],
    ]
    record = json.loads((folder / "record.json").read_text())
    assert [(lost["row"], lost["outcome"]) for lost in record["splits"]["test"]["missing"]] == [
        (3, "dead"),
        (4, "changed"),
    ]
    asked = len(web.asked)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = build_bpc(tmp_path / "hub", folder, options={"per_count": 3}, fetch=quiet())
    assert again.equals(built) and len(web.asked) == asked
    assert files == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    test, valid = load_dataset("pixmo-count"), load_dataset("pixmo-count-valid")
    assert coverage(test) == {"images": 8, "rows": 10, "coverage": 0.8}
    assert [sample.factors["row"] for sample in test] == [0, 1, 2, 5, 6, 7, 8, 9]
    assert test[0].factors["width"] == 40 and test[0].question == "How many a are there?"
    both = load_dataset("pixmo-count-train")
    assert {sample.factors["split"] for sample in both} == {"train", "valid"} and len(valid) == 8
    assert load_dataset(f"{folder}@train+valid") == both
    with pytest.raises(ValueError, match="Score one set at a time"):
        coverage([*test, *both])
    with pytest.raises(FileExistsError, match="built otherwise"):
        build_bpc(tmp_path / "hub", folder, options={"per_count": 2}, fetch=quiet())
    rebuilt = build_bpc(None, tmp_path / "again", "paper", folder, fetch=quiet())
    assert rebuilt.equals(built)
    assert [sample.sha256 for sample in load_dataset(tmp_path / "again")] == [sample.sha256 for sample in test]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="'thesis.txt' but no record.json"):
        build_bpc(tmp_path / "hub", tmp_path / "mine", fetch=quiet())


# ----------------------------------------------------------------------------------------------------------- reading


def pixmo(folder: Path, files: dict[str, bytes], **changes) -> Path:
    "A split in the released form. `changes`: file -> what differs in its row."
    folder.mkdir(parents=True)
    rows = []
    for n, (name, data) in enumerate(files.items()):
        (folder / name).write_bytes(data)
        rows.append(
            row_of(f"http://a/{name}", data, count=n % 5, label="cats") | {"image_path": name} | changes.get(name, {})
        )
    (folder / "samples.json").write_text(json.dumps(rows))
    return folder


def saved(image: Image.Image, kind: str, **more) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def modes() -> dict[str, bytes]:
    "One photograph in the forms in which photographs come."
    from sklearn.datasets import load_sample_image

    photograph = Image.fromarray(load_sample_image("flower.jpg")).resize((120, 80))
    turned, exif = photograph.rotate(90, expand=True), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees when it is shown
    return {
        "plain.jpg": saved(photograph, "JPEG"),
        "grey.jpg": saved(photograph.convert("L").resize((60, 100)), "JPEG"),
        "palette.png": saved(photograph.convert("P").resize((150, 60)), "PNG"),
        "cmyk.jpg": saved(photograph.convert("CMYK"), "JPEG"),
        "turned.jpg": saved(turned, "JPEG", exif=exif),
        "alpha.png": saved(photograph.convert("RGBA").resize((64, 160)), "PNG"),
        "large.webp": saved(photograph.resize((300, 200)), "WEBP"),
        "trailer.jpg": saved(photograph.resize((80, 80)), "JPEG") + b"trailing bytes of a camera",
    }


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*can be used")
def test_photographs_of_all_sizes_and_modes_in_one_batch(tmp_path):
    files = modes() | {"cut.jpg": modes()["plain.jpg"][:2000], "wrong.jpg": jpeg(1)}
    folder = pixmo(tmp_path / "set" / "test", files, **{"wrong.jpg": {"image_sha256": "0" * 64}})
    with pytest.warns(UserWarning, match="8 of 10 images .* left out: 1 another image, 1 broken"):
        samples = load_dataset(folder)
    vlm = load_model("tiny-qwen2-vl")
    together = predict(vlm, samples, tmp_path / "8.jsonl", batch_size=8)
    alone = predict(vlm, samples, tmp_path / "1.jsonl", batch_size=1)
    assert [p.text for p in together] == [p.text for p in alone]
    tokens = [image_tokens(vlm, _image_size(sample.image)) for sample in samples]
    assert len(set(tokens)) > 3
    kept = load_predictions(tmp_path / "8.jsonl")
    assert vlm.image_table(samples)["tokens"].tolist() == tokens
    rows = score_labels(kept)
    assert rows.loc[0, ["label", "n", "coverage"]].tolist() == ["cats", 8, 0.8]
    store = extract_states(vlm, samples, tmp_path / "states", [0, 1], ["image_mean"], 8)
    assert store.array(1, "image_mean").shape[0] == 8


@pytest.mark.parametrize(
    "text, message",
    [
        ("[{", "is not whole JSON"),
        ('{"a": 1}', "expected a list of rows"),
        ("[3]", "row 0: expected an object"),
        ('[{"image_url": "http://a", "label": "cats", "image_sha256": "AB", "count": 1}]', "expected 64 hex digits"),
    ],
)
def test_bad_samples_json_is_refused(tmp_path, text, message):
    folder = pixmo(tmp_path / "test", {"a.jpg": jpeg(1)})
    (folder / "samples.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_dataset(folder)


@pytest.mark.filterwarnings("ignore:.*can be used")
def test_splits_counts_and_paths_of_the_released_form(tmp_path):
    files = {f"{n}.jpg": jpeg(n) for n in range(4)}
    for name in ("validation", "test"):
        pixmo(tmp_path / "set" / name, files, **{"2.jpg": {"count": 12}, "3.jpg": {"label": "bowl/basins"}})
    assert [sample.uid for sample in _read_pixmo(tmp_path / "set", "valid")] == [
        f"pixmo-count-valid/{n}" for n in (0, 1, 3)
    ]
    samples = load_dataset(tmp_path / "set")
    assert samples[2].question == "How many bowl/basins are there?" and coverage(samples)["rows"] == 3
    with pytest.raises(ValueError, match="No split named 'train'"):
        load_dataset(f"{tmp_path / 'set'}@train")
    folder = pixmo(tmp_path / "evil" / "test", files, **{"0.jpg": {"image_path": "../../set/test/0.jpg"}})
    with pytest.raises(ValueError, match="points outside"):
        load_dataset(folder)


def countbench(folder: Path, captions: list[str]) -> Path:
    "Parquet with the columns of vikhyatk/CountBenchQA."
    import datasets

    files = list(modes().values())
    rows = {
        "image": [{"bytes": files[n % len(files)], "path": None} for n in range(len(captions))],
        "text": captions,
        "question": ["How many are there?"] * len(captions),
        "number": [2 + n % 9 for n in range(len(captions))],
    }
    types = {"image": datasets.Image(), "number": datasets.Value("int64")}
    features = datasets.Features({key: types.get(key, datasets.Value("string")) for key in rows})
    folder.mkdir(parents=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


@pytest.mark.long
def test_countbench_with_both_kinds_of_model(tmp_path, monkeypatch):
    captions = [
        "Three cats",
        "the weight of five dogs",
        "often two birds",
        "ten of ten",
        "height: four",
        "Six",
        "seven cups",
    ]
    folder = countbench(tmp_path / "cache" / "CountBenchQA", captions)
    with pytest.warns(UserWarning, match="7 rows, the paper's CountBenchQA has 491"):
        samples = load_dataset("CountBenchQA")
    assert [sample.uid for sample in samples] == [f"CountBenchQA/{n}" for n in range(7)]
    assert samples[1].factors["caption"] == captions[1] and coverage(samples)["rows"] == 491
    assert [sample.factors["caption"] for sample in load_dataset(folder)] == captions
    garbled = [_captions_for(samples[n])[3] for n in (1, 2, 4)]
    assert garbled == ["the wthree of five dogs", "ofthree two birds", "hthree: four"]
    words = [_captions_for(samples[n], "strict")[3] for n in (1, 2, 4)]
    assert words == ["the weight of three dogs", "often three birds", "height: three"]
    assert _captions_for(samples[0])[4] == "four cats" and _captions_for(samples[3])[2] == "two of two"
    for name in ("tiny-clip", "tiny-qwen2-vl"):
        vlm = load_model(name)
        predictions = predict(vlm, samples, tmp_path / f"{name}.jsonl", batch_size=4)
        assert len(predictions) == 7 and coverage(predictions) == coverage(samples)
        assert extract_states(vlm, samples, tmp_path / name, [1], ["mean"], 4).array(1, "mean").shape[0] == 7
        if name == "tiny-clip":
            assert all(2 <= prediction.count <= 10 for prediction in predictions)


# ------------------------------------------------------------------------------------------------------------- audit


def test_audit_of_photographs(tmp_path):
    from sklearn.datasets import load_sample_images

    flower, china = (Image.fromarray(image) for image in reversed(load_sample_images().images))
    files = {
        "0.jpg": saved(flower, "JPEG"),
        "1.jpg": saved(china, "JPEG"),
        "2.jpg": saved(flower.resize((300, 200)), "JPEG"),
    }
    changes = {"1.jpg": {"label": "3 pagodas", "count": 3}, "0.jpg": {"points": {"x": [1.0, 2.0], "y": [0.0, 0.0]}}}
    for split in ("train", "test"):
        pixmo(tmp_path / "set" / split, files if split == "train" else {"a.jpg": saved(china, "PNG")}, **changes)
    samples = _read_pixmo(tmp_path / "set", "train+test")
    found = audit(samples, counts=range(1, 10)).set_index("uid")
    assert found["near"].tolist() == [1, 1, 1, 1] and found["copies"].tolist() == [1, 1, 1, 1]
    assert found["across"].tolist() == [False, True, False, True]
    assert found["tells"].tolist() == ["", "question, label", "", ""]
    assert found["disagrees"].tolist() == ["0 is not in 1..9; 2 points", "", "", "0 is not in 1..9"]
    hashes = [_difference_hash(image) for image in (flower, flower.convert("L"), china)]
    assert _near_pairs(room_array(hashes)) == [(0, 1)] and _near_pairs(room_array(hashes), bits=256) == [
        (0, 1),
        (0, 2),
        (1, 2),
    ]


def room_array(hashes: list):
    import numpy

    return numpy.array(hashes)


def test_synthetic_sets_come_out_clean():
    for name in ("balanced", "two_groups"):
        rows = audit_summary(audit(load_dataset(name, limit=54))).set_index("flaw")["rows"]
        assert rows[[flaw for flaw in rows.index if not flaw.startswith(("asked", "row repeats"))]].sum() == 0


@pytest.mark.parametrize(
    "text, target, told",
    [
        ("How many cats?", 3, False), ("three cats", 3, True), ("Three", 3, True), ("threesome", 3, False),
        ("12 eggs", 12, True), ("3", 3, True),
        ("13", 3, False), ("3.5 m", 3, False), ("3.", 3, True), ("a 3-piece", 3, True), ("nr3", 3, False),
    ],
)  # fmt: skip
def test_words_that_tell(text, target, told):
    assert _tells(text, target) == told


@contextmanager
def raw_server(say):
    "A server that says whatever it likes to each connection; gives its address and what was asked."
    heard, listener = [], socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    def talk(connection):
        with connection, suppress(OSError):
            heard.append(connection.recv(65536))
            say(connection)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heard
    finally:
        listener.close()


def drip(*pieces: bytes):
    "Say the pieces again and again, a little at a time."

    def say(connection):
        for piece in pieces[:-1]:
            connection.sendall(piece)
        while True:
            connection.sendall(pieces[-1])
            time.sleep(0.05)

    return say


DRIPS = {
    "status line": drip(b"H"),
    "header": drip(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "headers": drip(b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n"),
    "continue": drip(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "early hints": drip(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
    "body": drip(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n", b"x"),
    "chunks": drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "redirects": drip(b"HTTP/1.1 302 Found\r\nLocation: /", b"x"),
}


@pytest.mark.parametrize("say", DRIPS.values(), ids=DRIPS)
def test_a_server_that_drips_is_left_in_time(say, tmp_path):
    "Whatever it drips: each try has an end, headers and 1xx included."
    limits, begun = Limits(tries=1, connect=2, read=2, total=0.7), time.monotonic()
    with raw_server(say) as (address, _):
        found = fetch_images([row_of(f"{address}/a.jpg", b"a")], tmp_path, 1, limits, HERE, progress=False)
    assert time.monotonic() - begun < 5
    assert found["outcome"][0] == "dead" and ("slower than 0.7 s" in found["why"][0] or "Error" in found["why"][0])


BAD_ADDRESSES = [
    "http://127.0.0.1/\ud800.jpg", "http://\udc00/a.jpg", "http://[::1/a", "http://a b/c", "http://" + "a" * 70000,
    "javascript:alert(1)", "file:///etc/passwd", "http://x\x00y/", "http://127.0.0.1:99999/a",
]  # fmt: skip


def test_an_address_that_is_none_stops_no_other(web, tmp_path):
    good = jpeg(1)
    web.files["/good/1"] = good
    rows = [row_of(bad, f"{place}".encode()) for place, bad in enumerate(BAD_ADDRESSES)]
    found = fetch_images([*rows, row_of(f"{web.address}/good/1", good)], tmp_path, 2, QUICK, HERE, progress=False)
    assert found["outcome"].iloc[-1] == "fetched" and set(found["outcome"].iloc[:-1]) <= {"refused", "dead"}


@pytest.fixture
def proxy(monkeypatch):
    "A proxy that answers everything itself, and what it was asked."
    for name in (
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
        "NO_PROXY",
        "no_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    data = jpeg(7)

    def say(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(data) + data)

    with raw_server(say) as (address, heard):
        monkeypatch.setenv("http_proxy", address)
        yield heard


def test_a_proxy_is_asked_for_what_is_outside(proxy, tmp_path, monkeypatch):
    row = row_of("http://pictures.invalid/7.jpg", jpeg(7))
    found = fetch_images([row], tmp_path / "a", 1, QUICK, progress=False)
    assert list(found["outcome"]) == ["fetched"] and proxy[0].startswith(b"GET http://pictures.invalid/7.jpg HTTP/1.1")
    monkeypatch.setenv("no_proxy", "pictures.invalid")
    found = fetch_images([row], tmp_path / "b", 1, Limits(tries=1), progress=False)
    assert "no address for pictures.invalid" in found["why"][0] and len(proxy) == 1


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "[::1]", "metadata.internal"]
)
def test_a_proxy_is_not_sent_into_the_house(proxy, host, tmp_path):
    found = fetch_images([row_of(f"http://{host}/7.jpg", jpeg(7))], tmp_path, 1, QUICK, progress=False)
    assert list(found["outcome"]) == ["refused"] and "private" in found["why"][0] and not proxy


def test_a_mirror_of_one_s_own_is_visited_without_the_proxy(proxy, web, tmp_path):
    web.files["/good/1"] = jpeg(1)
    found = fetch_images([row_of(f"{web.address}/good/1", jpeg(1))], tmp_path, 1, QUICK, HERE, progress=False)
    assert list(found["outcome"]) == ["fetched"] and not proxy


LEFT = [
    [".record.json.99999999.tmp"],
    ["train/.samples.json.99999999.tmp"],
    [".lock", ".record.json.1.tmp", "train/samples.json"],
]


@pytest.mark.parametrize("left", LEFT, ids=["record", "samples", "both"])
def test_a_build_that_was_killed_before_its_record_goes_on(parts, left, tmp_path):
    "Its own half files are no stranger's."
    for name in left:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("half")
    chosen = choose_rows(parts, per_count=2)
    with room.lock_folder(tmp_path):
        room._write_plan(tmp_path, chosen, {"rule": "balanced", "options": {}})
    assert json.loads((tmp_path / "record.json").read_text())["format"] == 1
    assert not [path for path in tmp_path.rglob(".*.tmp") if "99999999" in path.name]


@pytest.mark.parametrize("text", ["", "{", "5", "null", "{}", '{"rows": 5}', "[" * 10**5])
def test_a_broken_record_of_a_set_is_named(parts, text, tmp_path):
    chosen = choose_rows(parts, per_count=2)
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(ValueError, match="record.json is no record of a set"):
        room._write_plan(tmp_path, chosen, {"rule": "balanced", "options": {}})


@pytest.mark.parametrize(
    "line", ["5", "{}", '{"image_sha256": 5}', '{"image_sha256": "a", "outcome": "fetched"}', "[" * 10**5]
)
def test_a_broken_line_of_the_journal_is_named(line, web, tmp_path):
    (tmp_path / "fetched.jsonl").write_text(f"{line}\n")
    with pytest.raises((ValueError, FileExistsError), match="fetched.jsonl, line 1"):
        fetch_images([row_of(f"{web.address}/good/1", jpeg(1))], tmp_path, 1, QUICK, HERE, progress=False)
