"Guards for asking: an answer does not depend on its batch, its place in the list, its process or a full memory."

import random
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from vlm_counting.core import Answer, Sample, load_image, lock_folder, write_jsonl
from vlm_counting.evaluation import _join_parts, load_predictions, plan_batches, predict, shard_samples
from vlm_counting.models import VLM, load_model
from vlm_counting.stimuli import generate

TOLERANCE = 2e-3  # of a log-probability, float32, between batches of different sizes


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return load_model("tiny-qwen2-vl", device="cpu")


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[Sample]:
    "Twenty questions: a square and an oblong picture size, with and without a list of candidates, in no order."
    mixed = []
    for size in (672, 336):
        for form in ("closed", "open"):
            rows = generate("balanced", tmp_path_factory.mktemp(form), limit=5, form=form, image_size=size)
            mixed += [Sample(f"{size}-{row.uid}", row.image, row.question, row.target, row.factors) for row in rows]
    for sample in mixed[10:]:
        wide = Image.new("RGB", (504, 336))
        wide.paste(load_image(sample.image), (84, 0))
        wide.save(sample.image)
    random.Random(0).shuffle(mixed)
    return mixed


@pytest.fixture(scope="module")
def reference(vlm, samples) -> list:
    "One by one: nothing to pad, nothing to sort."
    return predict(vlm, samples, batch_size=1, progress=False)


def assert_same(predictions: list, reference: list) -> None:
    "Same uids in the same order, same text and counts, log-probabilities to `TOLERANCE`."
    assert [row.uid for row in predictions] == [row.uid for row in reference]
    for row, expected in zip(predictions, reference, strict=True):
        assert (row.text, row.count, row.count_paper) == (expected.text, expected.count, expected.count_paper), row.uid
        assert row.logprobs == pytest.approx(expected.logprobs, abs=TOLERANCE), row.uid


def test_the_samples_are_really_mixed(vlm, samples):
    lengths = [vlm.length(sample) for sample in samples]
    assert len(set(lengths)) >= 4 and lengths != sorted(lengths) and lengths != sorted(lengths, reverse=True)
    for sample, length in zip(samples, lengths, strict=True):
        assert abs(length - vlm.prepare([sample])["input_ids"].shape[1]) <= 2  # estimated well enough


@pytest.mark.parametrize("batch_size", [3, 8, "auto"])
def test_batch_size_changes_nothing(vlm, samples, reference, batch_size, tmp_path):
    predictions = predict(vlm, samples, tmp_path / "p.jsonl", batch_size, progress=False)
    assert_same(predictions, reference)
    assert load_predictions(tmp_path / "p.jsonl") == predictions


@pytest.mark.long
def test_order_of_the_samples_changes_nothing(vlm, samples, reference):
    order = list(range(len(samples)))
    random.Random(1).shuffle(order)
    predictions = predict(vlm, [samples[place] for place in order], batch_size=4, progress=False)
    assert_same(predictions, [reference[place] for place in order])


@pytest.mark.long
def test_shards_change_nothing(vlm, samples, reference, tmp_path):
    for number in (1, 4):
        for part in range(1, number + 1):
            folder = tmp_path / str(number)
            rows = predict(vlm, samples, folder / "predictions.jsonl", 8, progress=False, shard=f"{part}/{number}")
            assert [row.uid for row in rows] == [sample.uid for sample in samples[part - 1 :: number]]
        assert_same(_join_parts(folder / "predictions.jsonl", samples, vlm.name), reference)
        assert_same(load_predictions(folder), reference)


class Tight:
    "A real model on a device that holds `most` samples of a batch, and fails as CUDA does when there are more."

    def __init__(self, vlm: VLM, most: int, trouble: range):
        self.vlm, self.name, self.length, self.prepare = vlm, vlm.name, vlm.length, vlm.prepare
        self.most, self.trouble, self.calls, self.failed, self.asked = most, trouble, 0, [], []

    def answer_prepared(self, samples, inputs, max_new_tokens=5):
        self.calls += 1
        if self.calls in self.trouble and len(samples) > self.most:
            self.failed.append(len(samples))
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.asked += [sample.uid for sample in samples]
        return self.vlm.answer_prepared(samples, inputs, max_new_tokens=max_new_tokens)

    def answer(self, samples, max_new_tokens=5):
        return self.answer_prepared(samples, self.prepare(samples), max_new_tokens)


@pytest.mark.long_after(1)
@pytest.mark.parametrize("batch_size", [8, "auto"])
def test_out_of_memory_in_the_middle(vlm, samples, reference, batch_size, tmp_path):
    tight = Tight(vlm, most=2, trouble=range(2, 99))
    predictions = predict(tight, samples, tmp_path / "p.jsonl", batch_size, progress=False)
    assert_same(predictions, reference)
    assert tight.failed and sorted(tight.asked) == sorted(sample.uid for sample in samples)  # none lost, none twice
    assert len(tight.failed) <= 3  # remembered: not every later batch fails first
    assert load_predictions(tmp_path / "p.jsonl") == predictions


def test_one_sample_too_large_is_named(vlm, samples):
    with pytest.raises(RuntimeError, match=f"Sample '{samples[0].uid}': CUDA out of memory"):
        predict(Tight(vlm, 0, range(1, 99)), samples[:1], progress=False)


def test_a_lost_picture_is_named(vlm, samples, tmp_path):
    bad = Sample("bad/1", tmp_path / "lost.png", "How many?", 1)
    with pytest.raises(FileNotFoundError, match="Sample 'bad/1': No (image at|such file)"):
        predict(vlm, [*samples[:5], bad, *samples[5:7]], batch_size=4, progress=False)


def test_only_the_preparing_thread_uses_the_tokeniser(vlm, samples, monkeypatch):
    "Its padding is switched on and off in place: used by two threads at once, a batch may come out unpadded."
    kind, users = type(vlm.tokenizer), []
    plain = kind.set_truncation_and_padding

    def spy(self, *arguments, **options):
        users.append(threading.current_thread().name.split("_")[0])
        return plain(self, *arguments, **options)

    vlm.answer(samples[:1])
    inputs = vlm.prepare(samples[:2])
    monkeypatch.setattr(kind, "set_truncation_and_padding", spy)
    vlm.answer_prepared(samples[:2], inputs)
    assert users == [], "answer_prepared encodes text: keep the tokens of the counts from the time of loading"


# --- toys: what needs no weights


class Letters:
    "Answers with the length of the uid; knows lengths, and notes what was prepared and asked when."

    name, token_budget = "letters", 40

    def __init__(self, pause: float = 0.0, die_at: int = 0):
        self.pause, self.die_at, self.events, self.done = pause, die_at, [], 0

    def length(self, sample):
        return len(sample.uid)

    def prepare(self, samples):
        self.events.append(("prepare", time.perf_counter()))
        time.sleep(self.pause)
        return [str(len(sample.uid)) for sample in samples]

    def answer_prepared(self, samples, inputs, max_new_tokens=5):
        self.done += 1
        if self.done == self.die_at:
            raise KeyboardInterrupt
        time.sleep(self.pause)
        self.events.append(("answered", time.perf_counter()))
        return [Answer(text, [-0.12345, None]) for text in inputs]


def words(count: int) -> list[Sample]:
    rng = random.Random(count)
    return [Sample(f"{n:03}" + "x" * rng.randrange(9), "none.png", "How long?", n % 10) for n in range(count)]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100, "auto"])
def test_plan(batch_size):
    lengths = [len(sample.uid) for sample in words(50)]
    batches = plan_batches(lengths, batch_size, budget=40)
    assert sorted(position for batch in batches for position in batch) == list(range(50))
    assert [lengths[p] for batch in batches for p in batch] == sorted(lengths, reverse=True)
    if batch_size == "auto":
        assert all(len(batch) * lengths[batch[0]] <= 40 for batch in batches) and len(batches) < 25
    else:
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert plan_batches(lengths, batch_size, budget=40) == batches


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, "8", None])
def test_batch_sizes_that_are_none(batch_size):
    with pytest.raises(ValueError, match="expected 'auto' or a whole number"):
        predict(Letters(), words(3), batch_size=batch_size, progress=False)


def test_a_sample_longer_than_the_budget_is_asked_alone():
    assert plan_batches([500, 10, 10], "auto", budget=40) == [[0], [1, 2]]


@pytest.mark.parametrize("batch_size", [1, 3, 7, "auto"])
def test_bytes_depend_neither_on_batches_nor_on_interruptions(batch_size, tmp_path):
    samples = words(40)
    predict(Letters(), samples, tmp_path / "calm.jsonl", 16, progress=False)
    for die_at in range(1, 7):
        path = tmp_path / f"{die_at}.jsonl"
        with pytest.raises(KeyboardInterrupt):
            predict(Letters(die_at=die_at), samples, path, batch_size, progress=False)
        if die_at % 2 and path.exists():
            path.write_bytes(path.read_bytes()[:-7])  # the last line was being written
        with pytest.warns(UserWarning) if die_at % 2 and path.exists() else _nothing():
            predict(Letters(), samples, path, batch_size, progress=False)
        assert path.read_bytes() == (tmp_path / "calm.jsonl").read_bytes()


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


def test_resuming_repeats_no_finished_batch(tmp_path):
    samples, again = words(40), Letters()
    with pytest.raises(KeyboardInterrupt):
        predict(Letters(die_at=6), samples, tmp_path / "p.jsonl", 4, progress=False)
    predict(again, samples, tmp_path / "p.jsonl", 4, progress=False)
    assert again.done == 5  # of 10
    finished = Letters()
    assert len(predict(finished, samples, tmp_path / "p.jsonl", 4, progress=False)) == 40 and not finished.done


def test_going_on_with_another_batch_size_keeps_what_is_whole(tmp_path):
    samples, again = words(40), Letters()
    with pytest.raises(KeyboardInterrupt):
        predict(Letters(die_at=6), samples, tmp_path / "p.jsonl", 4, progress=False)  # 20 answered
    predictions = predict(again, samples, tmp_path / "p.jsonl", 8, progress=False)
    assert again.done == 3  # 16 of the 20 are whole batches of 8
    assert [row.uid for row in predictions] == [sample.uid for sample in samples]


def test_a_finished_file_in_another_order_is_put_right(tmp_path):
    samples = words(20)
    rows = predict(Letters(), samples, progress=False)
    write_jsonl(tmp_path / "p.jsonl", rows[::-1])  # as if killed before the last step
    nobody = Letters(die_at=1)
    assert (
        predict(nobody, samples, tmp_path / "p.jsonl", progress=False) == rows == load_predictions(tmp_path / "p.jsonl")
    )


def test_files_of_others_are_refused(tmp_path):
    samples, path = words(20), tmp_path / "p.jsonl"
    rows = predict(Letters(), samples, path, progress=False)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=f"line 4 answers '{samples[3].uid}', which is none of the 19 samples"):
        predict(Letters(), samples[:3] + samples[4:], path, progress=False)
    stranger = Letters()
    stranger.name = "stranger"
    with pytest.raises(FileExistsError, match="line 1 is an answer of 'letters', expected 'stranger'"):
        predict(stranger, samples, path, progress=False)
    assert path.read_bytes() == before
    write_jsonl(path, [*rows[:3], replace(rows[1], text="9", count=9, count_paper=9)])
    with pytest.raises(FileExistsError, match=f"line 4 .'{rows[1].uid}'. is there a second time, with another answer"):
        predict(Letters(), samples, path, progress=False)
    write_jsonl(path, [*rows, rows[1]])  # two writers where locks do nothing: the very same line counts once
    assert predict(Letters(), samples, path, progress=False) == rows and path.read_bytes() == before


def test_a_uid_that_occurs_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Two samples have the uid '000"):
        predict(Letters(), [*words(3), words(3)[0]], tmp_path / "p.jsonl", progress=False)


def test_preparing_overlaps_with_answering():
    model = Letters(pause=0.03)
    predict(model, words(32), batch_size=4, progress=False)
    prepared = [moment for what, moment in model.events if what == "prepare"]
    answered = [moment for what, moment in model.events if what == "answered"]
    early = [start < end for start, end in zip(prepared[1:], answered[:-1], strict=True)]
    assert all(early)  # the next is begun before this one is answered


def test_several_threads_may_prepare():
    class Many(Letters):
        prepare_threads = 3

        def prepare(self, samples):
            time.sleep(random.random() / 50)  # finished in another order than begun
            self.events.append(("by", threading.current_thread().name))
            return super().prepare(samples)

    model = Many()
    assert predict(model, words(60), batch_size=2, progress=False) == predict(Letters(), words(60), progress=False)
    assert len({name for what, name in model.events if what == "by"}) == 3


def test_an_interruption_does_not_wait_for_the_next_batches():
    model, start = Letters(pause=0.2, die_at=2), time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        predict(model, words(200), batch_size=2, progress=False)
    assert time.perf_counter() - start < 3 and len(model.events) < 8  # of 100 batches, 40 s
    time.sleep(0.4)
    assert not [t for t in threading.enumerate() if t.name.startswith("prepare")]


class Pieces(Letters):
    "Runs out of memory above `room` tokens, in the way that is asked for."

    def __init__(self, room: int, error: Exception, where: str = "answer_prepared"):
        super().__init__()
        self.room, self.error, self.where, self.failures, self.sizes = room, error, where, 0, []

    def check(self, samples, where):
        if where == self.where and len(samples) * max(map(self.length, samples)) > self.room:
            self.failures += 1
            raise self.error

    def prepare(self, samples):
        self.check(samples, "prepare")
        return super().prepare(samples)

    def answer_prepared(self, samples, inputs, max_new_tokens=5):
        self.check(samples, "answer_prepared")
        self.sizes.append(len(samples))
        return super().answer_prepared(samples, inputs, max_new_tokens)

    def answer(self, samples, max_new_tokens=5):
        return self.answer_prepared(samples, self.prepare(samples), max_new_tokens)


@pytest.mark.parametrize("where", ["prepare", "answer_prepared"])
@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA out of memory."), RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory"),
     RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), MemoryError()],
)  # fmt: skip
def test_every_kind_of_full_memory(where, error, tmp_path):
    samples, model = words(60), Pieces(21, error, where)
    expected = predict(Letters(), samples, tmp_path / "calm.jsonl", "auto", progress=False)
    assert predict(model, samples, tmp_path / "tight.jsonl", "auto", progress=False) == expected
    assert (tmp_path / "tight.jsonl").read_bytes() == (tmp_path / "calm.jsonl").read_bytes()
    assert 1 <= model.failures <= 4 and sum(model.sizes) == 60


def test_other_errors_are_not_retried():
    model = Pieces(21, RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(RuntimeError, match="Samples '.*' to '.*': CUDA error: device-side assert"):
        predict(model, words(60), batch_size=8, progress=False)
    assert model.failures == 1


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1", "a/b", "1/0", "-1/4"])
def test_shards_that_are_none(shard):
    with pytest.raises(ValueError, match="expected 'i/n'"):
        predict(Letters(), words(3), shard=shard, progress=False)


def test_shards_part_the_samples():
    samples = words(11)
    parts = [shard_samples(samples, f"{part}/4") for part in (1, 2, 3, 4)]
    assert sorted(s.uid for part in parts for s in part) == sorted(s.uid for s in samples)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def joined(folder: Path, samples: list[Sample]) -> list:
    "All parts of a run of `Letters`; nobody is asked."
    return _join_parts(folder / "predictions.jsonl", samples, "letters")


def test_joining_names_what_is_missing(tmp_path):
    samples, path = words(11), tmp_path / "predictions.jsonl"
    for shard in ("1/4", "2/4", "4/4"):
        predict(Letters(), samples, path, 1, progress=False, shard=shard)
    with pytest.raises(ValueError, match=r"part-3-of-4.predictions.jsonl lacks 3 of 3 samples.*Start .*shard='3/4'"):
        predict(Letters(die_at=1), samples, path, progress=False)
    with pytest.raises(KeyboardInterrupt):
        predict(Letters(die_at=2), samples, path, 1, progress=False, shard="3/4")
    with pytest.raises(ValueError, match=r"part-3-of-4.predictions.jsonl lacks 2 of 3 samples.*shard='3/4'"):
        joined(tmp_path, samples)
    assert not path.exists()
    part = tmp_path / "part-3-of-4" / "predictions.jsonl"
    with open(part, "a") as file:
        file.write('{"uid": "00')  # that part is being written just now
    before = part.read_bytes()
    with pytest.warns(UserWarning, match="torn last line"), pytest.raises(ValueError, match="lacks 2 of 3"):
        joined(tmp_path, samples)
    assert part.read_bytes() == before
    with pytest.warns(UserWarning, match="torn last line"):
        predict(Letters(), samples, path, 1, progress=False, shard="3/4")
    predict(Letters(), samples, tmp_path / "whole.jsonl", progress=False)
    assert [row.uid for row in joined(tmp_path, samples)] == [sample.uid for sample in samples]
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    with pytest.raises(FileExistsError, match="part-1-of-4.*, line 3 answers '.*', which is none of the 2 samples"):
        joined(tmp_path, samples[:8])
    predict(Letters(), samples, path, progress=False, shard="1/2")
    with pytest.raises(ValueError, match="holds shards of 2 and of 4 parts"):
        joined(tmp_path, samples)


def test_parts_of_two_models_are_not_joined(tmp_path):
    for part, name in ((1, "letters"), (2, "other")):
        model = Letters()
        model.name = name
        predict(model, words(4), tmp_path / "predictions.jsonl", progress=False, shard=f"{part}/2")
    with pytest.raises(FileExistsError, match="part-2-of-2.*, line 1 is an answer of 'other', expected 'letters'"):
        joined(tmp_path, words(4))


def test_more_shards_than_samples(tmp_path):
    samples = words(2)
    for part in (1, 2, 3):
        predict(Letters(), samples, tmp_path / "predictions.jsonl", progress=False, shard=f"{part}/3")
    assert [row.count for row in joined(tmp_path, samples)] == [len(sample.uid) for sample in samples]


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_asking import Letters, words
from vlm_counting.evaluation import predict
predict(Letters(pause=0.02), words(60), Path(sys.argv[1]) / "predictions.jsonl", 2, progress=False, shard=sys.argv[2])
"""


@pytest.mark.long
def test_processes_share_a_folder(tmp_path):
    start = [sys.executable, "-W", "ignore", "-c", CHILD, str(tmp_path)]
    children = [subprocess.Popen([*start, f"{part}/3", str(Path(__file__).parent)]) for part in (1, 2, 3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    expected = predict(Letters(), words(60), progress=False)
    assert joined(tmp_path, words(60)) == expected


def test_one_writer_for_each_shard(tmp_path):
    code = "import sys; from vlm_counting.core import lock_folder\n"
    code += "with lock_folder(sys.argv[1]): print(1, flush=True); sys.stdin.read()"
    path = tmp_path / "predictions.jsonl"
    predict(Letters(), words(3), path, progress=False, shard="1/2")
    lock = next(folder for folder in tmp_path.iterdir() if folder.is_dir())
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "1\n"
    with pytest.raises(BlockingIOError, match="Another process is writing"):
        predict(Letters(), words(3), path, progress=False, shard="1/2")
    predict(Letters(), words(3), path, progress=False, shard="2/2")
    other.communicate()
    with lock_folder(lock):
        pass


def test_counts_that_were_chosen_are_not_parsed():
    class Chooser:
        name = "chooser"

        def answer(self, samples, max_new_tokens=5):
            return [Answer("a photo of seven or 4 stones", [None, -0.123456], count=4) for _ in samples]

    row = predict(Chooser(), words(1), progress=False)[0]
    assert (row.count, row.count_paper, row.logprobs) == (4, 4, [None, -0.1235])
