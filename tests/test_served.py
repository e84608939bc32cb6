"Guards for served models: what goes over the wire and comes back, a server that fails, a killed run, and the key."

import base64
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("openai", reason="openai is not installed: pip install -e '.[served]'")

import torch

import vlm_counting as vc
from vlm_counting.core import RunRecord, Sample, load_image, read_jsonl
from vlm_counting.evaluation import evaluate, load_predictions, predict
from vlm_counting.models import _count_logprob, doctor, find_entry, load_model, twins_dir
from vlm_counting.served import _count_logprobs, _explained
from vlm_counting.stimuli import generate

KEY = "sk-the-key-of-this-test-0123456789"


class Server(ThreadingHTTPServer):
    "Speaks chat completions, fails as it is told to, and keeps what it was asked. A tiny model is behind it."

    daemon_threads = True

    def __init__(self, vlm=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.vlm, self.lock, self.asked = vlm, threading.Lock(), []
        self.failures = []  # for the next requests: a status, or 'hang up'
        self.refused = lambda body: ""  # why a request is not taken
        self.ignored = ()  # fields that are taken and not heeded
        self.met, self.expected = threading.Event(), 0  # questions wait for each other until so many are under way
        self.met.set()
        self.delay, self.busy, self.most_busy, self.key, self.listed = 0.0, 0, 0, None, {"owned_by": "us"}
        self.address = f"openai:http://127.0.0.1:{self.server_port}/v1#tiny"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def questions(self) -> Counter:
        "How often each question was answered, the greeting left out."
        texts = [json.dumps(body["messages"]) for body in self.asked]
        return Counter(text for text in texts if "number twelve" not in text)


class Handler(BaseHTTPRequestHandler):
    def say(self, status: int, told: object) -> None:
        text = told.encode() if isinstance(told, str) else json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if isinstance(told, str) else "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Retry-After-Ms", "5")
        self.end_headers()
        self.wfile.write(text)

    def refuses_key(self) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.server.key in (None, given):
            return False
        self.say(401, {"error": {"message": f"Incorrect API key provided: {given}."}})
        return True

    def do_GET(self) -> None:
        if not self.refuses_key():
            model = {"id": "tiny", "object": "model", "created": time.time_ns()} | self.server.listed
            self.say(200, {"object": "list", "data": [model]})

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refuses_key():
            return
        with server.lock:
            server.busy += 1
            server.most_busy = max(server.busy, server.most_busy)
            failure = server.failures.pop(0) if server.failures else None
            if server.busy >= server.expected:
                server.met.set()
        try:
            server.met.wait(20)
            time.sleep(server.delay)
            if failure == "hang up":
                self.connection.shutdown(socket.SHUT_RDWR)
            elif failure:
                self.say(failure, {"error": {"message": "as it was told"}})
            elif why := server.refused(body):
                self.say(400, {"error": {"message": why}})
            else:
                server.asked.append(body)
                self.say(200, answered(server, body))
        except BrokenPipeError:  # whoever asked was killed
            pass
        finally:
            with server.lock:
                server.busy -= 1

    def log_message(self, *about) -> None:
        pass


def likeliest(tokenizer, logits, token: int, tops: int) -> dict:
    "One position of an answer, as a server tells it."
    logprobs = logits.float().log_softmax(-1)
    best = logprobs.topk(tops).indices.tolist()
    told = [{"token": tokenizer.decode([each]), "logprob": float(logprobs[each]), "bytes": None} for each in best]
    return {"token": tokenizer.decode([token]), "logprob": float(logprobs[token]), "bytes": None, "top_logprobs": told}


def answered(server: Server, body: dict) -> dict:
    "A chat completion by the tiny model; without one, the answer is 3."
    tops = 0 if "logprobs" in server.ignored else body.get("top_logprobs", 0)
    content, text, cost = None, "3", {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
    if server.vlm:
        image, said = body["messages"][-1]["content"]
        system = body["messages"][0]["content"] if len(body["messages"]) > 1 else None
        with server.lock, torch.inference_mode():
            vlm = server.vlm.reworded(system=system)
            image = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
            inputs = vlm.prepare([Sample("asked", image, said["text"])])
            most = body.get("max_tokens", body.get("max_completion_tokens"))
            how = {"max_new_tokens": most, "output_logits": True, "return_dict_in_generate": True}
            out = vlm.model.generate(**inputs, **how)
        tokens = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        text = vlm.tokenizer.decode(tokens, skip_special_tokens=True)
        if tops:
            pairs = zip(out.logits, tokens, strict=True)
            content = [likeliest(vlm.tokenizer, logits[0], token, tops) for logits, token in pairs]
    message = {"role": "assistant", "content": text}
    logprobs = {"content": content} if content else None
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}
    about = {"id": "1", "object": "chat.completion", "created": 0, "model": "tiny", "system_fingerprint": "fp_1"}
    return about | {"choices": [choice], "usage": cost}


@pytest.fixture(scope="module")
def local():
    return load_model("tiny-qwen2-vl", device="cpu", instruction="")


@pytest.fixture
def server(monkeypatch):
    "One that says 3."
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    made = Server()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def wise(server, local):
    "One with a tiny model behind it."
    server.vlm = local
    return server


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[Sample]:
    return generate("balanced", tmp_path_factory.mktemp("images"), limit=18, image_size=336)


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- the same answers


@pytest.mark.long
@pytest.mark.parametrize("wording", [{}, {"instruction": ""}, {"prompt": "{question} {instruction}"}], ids=str)
def test_answers_are_those_of_the_model_behind_the_server(wise, local, samples, wording):
    own = local.reworded(**{"instruction": "Answer using as few words as possible"} | wording)
    vlm = load_model(wise.address, **wording)
    there, here = (evaluate(one, samples, progress=False).predictions for one in (vlm, own))
    assert [row.text for row in there] == [row.text for row in here]
    known = 0
    for far, near in zip(there, here, strict=True):
        pairs = [(one, two) for one, two in zip(far.logprobs, near.logprobs, strict=True) if one is not None]
        known += len(pairs)
        assert max(abs(one - two) for one, two in pairs) < 2e-3
        assert near.count in (1, 2) or far.logprobs[near.count] is not None  # what was said is among the likeliest
    assert known < 21 * len(samples)  # '12' is two tokens here, so most of what follows '1' is never told


def test_log_probabilities_are_those_of_a_model_whose_tables_are_known():
    "A language of ten digits and an end: every probability by its tables, against what 20 tokens tell of it."
    rng, names = np.random.default_rng(0), [*"0123456789", "."]
    for _ in range(50):
        tables = torch.tensor(rng.normal(0, 2, (11, 11))).log_softmax(-1)  # after nothing, after '0', after '1', ...
        following = {(): tables[10:11], (1,): tables[1:2], (2,): tables[2:3]}
        tokens = {count: tuple(map(int, str(count))) for count in range(21)}
        true = [float(_count_logprob(tokens[count], following, list(range(10)))) for count in range(21)]
        said = int(tables[10].argmax())
        content = [position(names, tables[10], said)]
        if said < 10:
            content.append(position(names, tables[said], int(tables[said].argmax())))
        told = _count_logprobs(content, "digits")
        known = [count for count in range(21) if told[count] is not None]
        assert np.allclose([told[count] for count in known], [true[count] for count in known], atol=1e-6)
        reachable = {0, *range(3, 10)} | ({1, *range(10, 20)} if said == 1 else {2, 20} if said == 2 else set())
        assert set(known) == reachable
        if said in (1, 2):  # without knowing how numbers are spelt, '1' may be the beginning of '12'
            assert _count_logprobs(content[:1])[said] is None


def position(names: list[str], logprobs, said: int) -> SimpleNamespace:
    tops = [SimpleNamespace(token=name, logprob=float(p)) for name, p in zip(names, logprobs, strict=True)]
    return SimpleNamespace(token=names[said], logprob=float(logprobs[said]), top_logprobs=tops)


def test_where_twelve_is_one_token_everything_stands_in_the_first_list():
    names = [*map(str, range(13)), "many"]
    logprobs = torch.tensor(np.random.default_rng(1).normal(0, 1, 14)).log_softmax(-1)
    told = _count_logprobs([position(names, logprobs, 1)])
    assert np.allclose(told[:13], logprobs[:13]) and told[13:] == [None] * 8


def test_what_is_sent_is_the_image_the_words_and_no_dice(wise):
    pixels = np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    vlm = load_model(wise.address, prompt="{question} {instruction}", system="You count.")
    vlm.answer([Sample("a", Image.fromarray(pixels), "How many?")], max_new_tokens=7)
    body = wise.asked[-1]
    system, turn = body["messages"]
    assert system == {"role": "system", "content": "You count."}
    image, text = turn["content"]
    assert text["text"] == "How many? Answer using as few words as possible"
    kind, _, data = image["image_url"]["url"].partition(";base64,")
    assert kind == "data:image/png" and Image.open(BytesIO(base64.b64decode(data))).format == "PNG"
    assert np.array_equal(load_image(base64.b64decode(data)), pixels)
    assert (body["temperature"], body["max_tokens"], body["top_logprobs"]) == (0, 7, 20)
    assert body["model"] == "tiny" and body["logprobs"] is True


@pytest.mark.parametrize(
    "chosen, sent",
    [
        ({"generation": "sample", "temperature": 0.7, "sampling_seed": 3}, {"temperature": 0.7, "seed": 3}),
        ({"generation": "checkpoint"}, {}),  # as the server is set
        ({}, {"temperature": 0}),
    ],
    ids=str,
)
def test_dice_are_sent_where_they_are_asked_for(wise, samples, chosen, sent):
    load_model(wise.address, **chosen).answer(samples[:1])
    assert {name: wise.asked[-1][name] for name in ("temperature", "seed") if name in wise.asked[-1]} == sent


# --- a server that fails


@pytest.mark.long
def test_failures_are_waited_out(wise, local, samples, tmp_path):
    vlm = load_model(wise.address, instruction="")
    wise.failures = [429, 500, 503, 429, "hang up", 502]
    done = evaluate(vlm, samples, tmp_path / "run", instruction="", progress=False)
    assert [row.text for row in done.predictions] == [answer.text for answer in local.answer(samples)]
    usage = RunRecord.load(tmp_path / "run").sessions[-1]["usage"]
    assert usage["requests"] == len(samples) and usage["retries"] == 6
    assert usage["prompt_tokens"] == 10 * len(samples) and usage["completion_tokens"] == len(samples)
    assert set(wise.questions.values()) == {1}


def test_a_server_that_takes_too_long_is_asked_again(server, samples, quiet):
    vlm = load_model(server.address)
    vlm.client = vlm.client.with_options(timeout=0.3)
    server.delay = 1.0
    timer = threading.Timer(0.7, lambda: setattr(server, "delay", 0))
    timer.start()
    assert vlm.answer(samples[:1])[0].text == "3" and vlm.usage["retries"] >= 1


def test_a_run_that_failed_goes_on_and_asks_nothing_twice(server, samples, tmp_path, quiet):
    vlm = load_model(server.address)
    vlm.client = vlm.client.with_options(max_retries=1)
    real, done = server.refused, 0

    def answer_eight(body):
        nonlocal done
        done += 1
        if done > 8:
            server.failures = [503] * 1000
        return ""

    server.refused = answer_eight
    with pytest.raises(ConnectionError, match="failed too often .*start the run again to go on"):
        evaluate(vlm, samples, tmp_path, batch_size=2, progress=False)
    record = RunRecord.load(tmp_path)
    assert record.status == "failed" and "start the run again" in record.error
    kept = {row.uid for row in load_predictions(tmp_path)}
    assert 0 < len(kept) < len(samples)
    time.sleep(0.3)
    server.refused, server.failures, server.asked = real, [], []
    whole = evaluate(vlm, samples, tmp_path, batch_size=2, progress=False)
    assert len(whole.predictions) == len(samples)
    assert len(server.asked) == len(samples) - len(kept)  # what is in the file was not asked again
    assert set(server.questions.values()) == {1}
    first, second = RunRecord.load(tmp_path).sessions
    assert first["usage"]["requests"] >= len(kept) and second["usage"]["requests"] == len(samples) - len(kept)


CHILD = """
import sys
from vlm_counting.evaluation import evaluate
from vlm_counting.models import load_model
from vlm_counting.stimuli import generate
address, images, folder = sys.argv[1:]
samples = generate("balanced", images, limit=60, image_size=56)
evaluate(load_model(address), samples, folder, batch_size=3, progress=False)
"""


@pytest.mark.long
@pytest.mark.parametrize("kills", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_and_asks_nothing_twice(server, tmp_path, kills, quiet):
    "By SIGKILL; what a start finds in the file is never asked again."
    server.delay, path, asked = 0.1, tmp_path / "run" / "predictions.jsonl", Counter()
    command = [sys.executable, "-c", CHILD, server.address, tmp_path / "images", tmp_path / "run"]
    known = {}
    samples = generate("balanced", tmp_path / "images", limit=60, image_size=56)
    for sample in samples:
        file = BytesIO()
        load_image(sample.image).save(file, "PNG")
        known[(base64.b64encode(file.getvalue()).decode(), sample.question)] = sample.uid
    for start in range(kills + 1):
        before = {row["uid"] for row in read_jsonl(path)} if path.exists() else set()
        server.asked = []
        child = subprocess.Popen(command)
        while start < kills and child.poll() is None:
            lines = path.read_bytes().count(b"\n") if path.exists() else 0
            if lines >= len(before) + 6:
                os.kill(child.pid, signal.SIGKILL)
            time.sleep(0.01)
        assert child.wait() == (-signal.SIGKILL if start < kills else 0)
        time.sleep(0.3)
        for body in server.asked:
            image, text = body["messages"][-1]["content"]
            data, question = image["image_url"]["url"].partition(";base64,")[2], text["text"]
            uids = [uid for (png, asks), uid in known.items() if png == data and question.endswith(asks)]
            assert not before & set(uids), "asked although it was in the file"
            asked.update(uids)
    assert {row.uid for row in load_predictions(path)} == {sample.uid for sample in samples} == set(asked)
    assert sum(asked.values()) <= 60 + kills * 6  # a kill costs two batches at most
    server.delay = 0
    whole = evaluate(load_model(server.address), samples, tmp_path / "whole", batch_size=3, progress=False)
    assert whole.predictions == load_predictions(path)


def test_what_waits_in_line_is_taken_back_when_a_run_ends_early(server, samples, quiet):
    vlm = load_model(server.address)
    vlm.client = vlm.client.with_options(max_retries=0)
    server.delay, server.failures = 0.1, [500]
    with pytest.raises(ConnectionError):
        predict(vlm, samples, batch_size=4, progress=False)
    time.sleep(0.5)
    assert len(server.questions) <= 8  # those of the first batch, and what the four threads had taken up of the second


# --- what a server does not give


@pytest.mark.parametrize(
    ("takes", "way"),
    [
        (lambda body: body.get("top_logprobs", 0) <= 5, ("max_tokens", 5)),
        (lambda body: "logprobs" not in body, ("max_tokens", 0)),
        (lambda body: "max_tokens" not in body, ("max_completion_tokens", 20)),
        (lambda body: not {"max_tokens", "logprobs"} & set(body), ("max_completion_tokens", 0)),
    ],
    ids=["five", "none", "another limit", "neither"],
)
def test_wishes_that_are_refused_are_left_out(wise, local, samples, quiet, takes, way):
    wise.refused = lambda body: "" if takes(body) else "Unsupported parameter"
    vlm = load_model(wise.address, instruction="")
    assert vlm.way == way
    before, answers = len(wise.asked), vlm.answer(samples[:6])
    assert len(wise.asked) == before + 6  # settled when it was loaded, so each is asked once
    assert [answer.text for answer in answers] == [answer.text for answer in local.answer(samples[:6])]
    assert all((answer.logprobs is None) == (way[1] == 0) for answer in answers)


def test_a_server_that_ignores_the_wish_is_found_out_and_said(wise):
    wise.ignored = ("logprobs",)
    with pytest.warns(UserWarning, match="tells no log-probabilities: its answers are texts only"):
        vlm = load_model(wise.address)
    assert vlm.way[1] == 0 and vlm.ask(Image.new("RGB", (56, 56)), "How many?").logprobs is None


def test_a_server_that_takes_no_image_or_no_temperature_0_is_refused(server):
    server.refused = lambda body: "temperature must be 1" if body["temperature"] == 0 else ""
    with pytest.raises(ValueError, match="refuses the question .*temperature must be 1.*Does 'tiny' take an image"):
        load_model(server.address)


def test_a_page_of_html_is_no_answer(server, monkeypatch):
    monkeypatch.setattr(Handler, "do_POST", lambda self: self.say(200, "<html>Welcome!</html>"))
    with pytest.raises(ValueError, match="not with a chat completion .*often in '/v1'"):
        load_model(server.address)


# --- many at once


@pytest.mark.parametrize(("batch_size", "most"), [("auto", 8), (3, 3), (16, 16)])
def test_so_many_questions_are_under_way_as_a_batch_has_samples(server, samples, batch_size, most, quiet):
    vlm = load_model(server.address)
    server.expected, server.delay = most, 0.05
    server.met.clear()
    evaluate(vlm, samples, batch_size=batch_size, progress=False)
    assert server.most_busy == most and set(server.questions.values()) == {1}


@pytest.mark.long
def test_answers_come_back_in_the_order_of_the_samples(wise, local, samples):
    shuffled = samples[:]
    random.Random(0).shuffle(shuffled)
    vlm = load_model(wise.address, instruction="")
    assert [answer.text for answer in vlm.answer(shuffled)] == [answer.text for answer in local.answer(shuffled)]


# --- the key


def files_with(text: str, *folders) -> list:
    return [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and text.encode() in path.read_bytes()
    ]


@pytest.mark.long
def test_no_file_of_a_run_holds_the_key(server, samples, tmp_path, monkeypatch, quiet):
    "A run that goes well, one by the command, one that the server refuses and repeats the key in its message."
    server.key = KEY
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path / "results"))
    vlm = load_model(server.address)
    evaluate(vlm, samples, tmp_path / "good", progress=False)
    folder = vc.run("evaluate", model=server.address, limit=9)
    assert (folder / "predictions.jsonl").exists() and KEY not in repr(vlm) + str(doctor(vlm))
    server.key = "another"
    with pytest.raises(PermissionError, match="It was given the key of the environment variable") as refused:
        evaluate(vlm, samples, tmp_path / "bad", progress=False)
    assert KEY not in str(refused.value) and "***" in str(refused.value)
    assert RunRecord.load(tmp_path / "bad").status == "failed"
    assert not files_with(KEY, tmp_path) and files_with("served: id=tiny", tmp_path)


@pytest.mark.parametrize("place", ["me:{key}@127.0.0.1:1/v1", "127.0.0.1:1/v1?api_key={key}", "127.0.0.1:1/{key}/v1"])
def test_an_address_with_a_key_in_it_is_refused_before_anything_is_written(place, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path / "results"))
    name = f"openai:http://{place.format(key=KEY)}#m"
    for ask in (load_model, lambda name: vc.run("evaluate", model=name, limit=9)):
        with pytest.raises(ValueError, match="put the key into the environment variable OPENAI_API_KEY") as refused:
            ask(name)
        assert KEY not in str(refused.value)
    assert not files_with(KEY, tmp_path) and not list(tmp_path.rglob("run.json"))


def test_without_a_key_one_is_told_where_it_goes(server, monkeypatch):
    server.key = KEY
    with pytest.raises(PermissionError, match="no key, as there is none in the environment variable OPENAI_API_KEY"):
        load_model(server.address)


# --- names and what is not there


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("openai:localhost:8000/v1#m", "it does not begin with http:// or https://"),
        ("openai:", "it does not begin with http:// or https://"),
        ("openai:http://#m", "it has no host"),
        ("openai:http://host:80o0/v1#m", "its port is no number"),
        ("openai:http://host:8000/v1", "it names no model behind '#'. http://host:8000/v1/models lists"),
    ],
)
def test_a_wrong_address_says_what_is_wrong(name, told):
    for ask in (find_entry, load_model):
        with pytest.raises(KeyError) as refused:
            ask(name)
        assert told in str(refused.value) and "openai:http://host:port/v1#name" in str(refused.value)


def test_a_wrong_name_says_what_the_server_has(server):
    with pytest.raises(KeyError, match="Did you mean 'tiny'"):
        load_model(server.address.replace("#tiny", "#tinny"))
    assert not server.asked


def test_nobody_at_the_address(monkeypatch):
    from openai import APIConnectionError

    error = _explained(APIConnectionError(request=None), "http://host/v1", "m")
    assert isinstance(error, ConnectionError) and "http://host/v1 does not answer" in str(error)


def test_without_the_client_one_is_told_what_to_install(monkeypatch, server):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match="pip install 'openai"):
        load_model(server.address)


@pytest.mark.parametrize(
    "given", [{"head": "a.safetensors"}, {"untrained": 0}, {"dtype": "float32"}, {"checkpoint": "x"}], ids=str
)
def test_what_only_weights_have_cannot_be_chosen(server, given):
    with pytest.raises(ValueError, match=f"is served, so {next(iter(given))}="):
        load_model(server.address, **given)
    assert not server.asked


def test_what_needs_more_than_answers_refuses_in_one_sentence(server, samples, quiet):
    vlm = load_model(server.address)
    pairs = [(samples[0], samples[1])]
    for need in (
        lambda: vc.extract(vlm, samples),
        lambda: vc.train_head(vlm, samples, samples),
        lambda: vc.patch(vlm, pairs),
        lambda: vc.diagnose(vlm),
    ):
        with pytest.raises(TypeError, match="weights on this machine.*can only be evaluated") as refused:
            need()
        assert "\n" not in str(refused.value)


# --- records


def test_the_record_says_who_was_asked_and_what_it_cost(server, samples, tmp_path, quiet):
    server.listed = {"owned_by": "vllm", "root": "org/weights", "max_model_len": 4096, "permission": [time.time()]}
    evaluate(load_model(server.address), samples, tmp_path, progress=False)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["model"] == server.address and record["device"] == server.address[7:].partition("#")[0]
    assert record["weights"] == "served: id=tiny, owned_by=vllm, root=org/weights, max_model_len=4096"
    assert record["sessions"][0]["usage"] == {
        "requests": 18, "retries": 0, "prompt_tokens": 180, "completion_tokens": 18,
    }  # fmt: skip
    evaluate(load_model(server.address), samples, tmp_path, progress=False)  # times of the server's list do not matter
    server.listed = {"owned_by": "vllm", "root": "org/other"}
    with pytest.raises(FileExistsError, match="root=org/other"):
        evaluate(load_model(server.address), samples, tmp_path, progress=False)


def test_the_doctor_says_what_can_be_said(wise):
    rows = {row["check"]: row for row in doctor(load_model(wise.address, instruction=""))}
    assert rows["weights"]["value"].startswith("served: id=tiny") and rows["answered by"]["value"] == "tiny fp_1"
    assert rows["answers that change when asked again"]["value"] == "0 of 5"
    assert rows["answers that change in company"]["ok"] is True
    assert rows["log-probabilities"]["value"] == "the 20 likeliest at each position"
    assert "16 requests" in rows["spent since it was loaded"]["value"]


# --- a real server


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory):
    "The address of `transformers serve` with a tiny model; the server is ended afterwards."
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'transformers[serving]'")
    here, folder, log = port(), str(twins_dir() / "tiny-qwen2-vl"), tmp_path_factory.mktemp("serve") / "log.txt"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", folder]
    command += ["--port", str(here), "--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32"]
    with log.open("w") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out)
    for _ in range(600):
        with socket.socket() as knock:
            if not knock.connect_ex(("127.0.0.1", here)):
                break
        assert child.poll() is None, f"transformers serve ended: {log.read_text()[-2000:]}"
        time.sleep(0.2)
    yield f"openai:http://127.0.0.1:{here}/v1#{folder}"
    child.terminate()
    child.wait(20)


@pytest.mark.slow
def test_transformers_serve_answers_as_the_model_does_here(transformers_serve, local, samples, tmp_path):
    with pytest.warns(UserWarning, match="tells no log-probabilities"):
        vlm = load_model(transformers_serve, instruction="")
    there = evaluate(vlm, samples, tmp_path, progress=False)
    here = evaluate(local, samples, progress=False)
    assert [row.text for row in there.predictions] == [row.text for row in here.predictions]
    assert [row.count for row in there.predictions] == [row.count for row in here.predictions]
    usage = RunRecord.load(tmp_path).sessions[-1]["usage"]
    assert usage["requests"] == len(samples) and usage["prompt_tokens"] > len(samples)
    wrong = [row for row in doctor(vlm) if row["ok"] is False]
    assert not wrong
