"The lines that a researcher types first (design, section 1) work as typed, on tiny models."

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vlm_counting as vc

ROOT = Path(__file__).resolve().parents[1]
QUESTION = "How many red stars are there?"


@pytest.fixture(scope="module")
def vlm():
    return vc.load_model("tiny-qwen2-vl", device="cpu")


@pytest.fixture(scope="module")
def samples():
    return vc.load_dataset("balanced", limit=36)


@pytest.fixture(scope="module")
def result(vlm, samples):
    return vc.evaluate(vlm, samples, progress=False)


# --- the root


def test_the_root_is_quick_and_light():
    script = (
        "import time; start = time.perf_counter(); import vlm_counting as vc; took = time.perf_counter() - start\n"
        "import sys; print(took, *(heavy for heavy in ('torch', 'numpy', 'pandas') if heavy in sys.modules))"
    )
    tries = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        seconds, *heavy = done.stdout.split()
        assert not heavy
        tries.append(float(seconds))
    assert min(tries) < 0.05, f"import vlm_counting took {tries} s"


def test_every_name_of_the_front_door_is_there():
    assert 15 <= len(vc.__all__) <= 30
    for name in vc.__all__:
        assert getattr(vc, name) is not None, name
        assert name in dir(vc)


def test_a_name_that_is_not_there_is_answered_with_the_nearest():
    with pytest.raises(AttributeError, match="Did you mean 'load_model'?"):
        vc.load_modle("tiny-qwen2-vl")
    assert vc.stimuli.Scene is vc.Scene  # a module of the package is a name, too


# --- asking


def test_an_image_in_any_form_is_asked_without_uid_and_truth(vlm, tmp_path):
    image = vc.scene("red_stars", 4, seed=3).render()
    image.save(tmp_path / "stars.png")
    forms = [tmp_path / "stars.png", str(tmp_path / "stars.png"), (tmp_path / "stars.png").read_bytes(), image]
    answers = [vlm.ask(form, QUESTION) for form in [*forms, np.asarray(image)]]
    assert len({answer.text for answer in answers}) == 1 and all(len(answer.logprobs) == 21 for answer in answers)
    assert all(answer.logprobs == pytest.approx(answers[0].logprobs, abs=1e-4) for answer in answers)


def test_a_contrastive_model_is_asked_a_closed_question():
    clip, image = vc.load_model("tiny-clip", device="cpu"), vc.scene("red_stars", 4, seed=3).render()
    answer = clip.ask(image, f"{QUESTION} Choose from [4, 2, 9].")
    assert answer.count in (2, 4, 9) and answer.text == f"a photo of {answer.count} red stars"
    with pytest.raises(ValueError, match="names no counts to choose among. Ask as in"):
        clip.ask(image, QUESTION)


@pytest.mark.parametrize(
    "image, message",
    [(3, "Found a int for an image"), (None, "Found a NoneType"), (np.zeros((4, 4, 3)), r"float64 \(4, 4, 3\)")],
)
def test_what_is_no_image_is_refused(vlm, image, message):
    with pytest.raises(TypeError, match=message):
        vlm.ask(image, QUESTION)


def test_bytes_that_are_no_image_are_refused(vlm):
    with pytest.raises(ValueError, match="Cannot read the image .*5 bytes in memory"):
        vlm.ask(b"hello", QUESTION)


def test_the_device_is_a_device(vlm):
    import torch

    assert vlm.device == torch.device("cpu") and vlm.device_name == "cpu"
    assert torch.zeros(1).to(vlm.device).device == vlm.device


# --- evaluating


@pytest.mark.long
def test_an_evaluation_scores_and_draws_itself(result, samples, tmp_path):
    assert [row.uid for row in result.predictions] == [sample.uid for sample in samples]
    assert 0 <= result.scores()["accuracy"].item() <= 1 and len(result.scores(by="target")) == 9
    assert {"accuracy_per_count", "confusion", "wrong_answers"} <= set(result.figures())
    folder = result.save(tmp_path / "saved")
    assert {"predictions.jsonl", "scores.csv", "run.json", "browser.html", "confusion.png"} <= {
        path.name for path in folder.iterdir()
    }
    assert "accuracy" in repr(result)


@pytest.mark.long
def test_a_saved_evaluation_goes_on_and_knows_how_it_was_made(vlm, samples, result, tmp_path, monkeypatch):
    folder = result.save(tmp_path / "saved")
    monkeypatch.setattr(vlm, "answer_prepared", lambda *given, **more: pytest.fail("somebody was asked"))
    assert vc.evaluate(vlm, samples, path=folder, progress=False).predictions == result.predictions
    monkeypatch.undo()
    with pytest.raises(FileExistsError, match="instruction' is 'Count.' now and was 'Answer using"):
        vc.evaluate(vlm, samples, path=folder, instruction="Count.", progress=False)


def test_another_wording_is_one_word_and_another_run(vlm, samples, tmp_path):
    told = {"instruction": "Count carefully.", "prompt": "{question} {instruction}", "system": "You count."}
    worded = vc.evaluate(vlm, samples[:9], path=tmp_path / "a", **told, progress=False)
    plain = vc.evaluate(vlm, samples[:9], progress=False)
    assert [row.logprobs for row in worded.predictions] != [row.logprobs for row in plain.predictions]
    kept = json.loads((tmp_path / "a" / "run.json").read_text())["parameters"]
    assert {name: kept[name] for name in told} == told
    for name in told:
        with pytest.raises(FileExistsError, match=f"parameter '{name}'"):
            vc.evaluate(vlm, samples[:9], path=tmp_path / "a", **(told | {name: "{question}"}), progress=False)
    assert vlm.wording.system == ""  # the model itself is as it was


def test_a_model_is_loaded_with_a_wording():
    loaded = vc.load_model("tiny-qwen2-vl", device="cpu", instruction="", system="You count.")
    from vlm_counting.models import _prompt_text

    text = _prompt_text(loaded.spec, loaded.processor, QUESTION, loaded.wording)
    assert "You count." in text and "few words" not in text and QUESTION in text


@pytest.mark.parametrize(
    "told, message",
    [
        ({"prompt": "{instruction}"}, "leaves out the question"),
        ({"prompt": "{text} {question}"}, "has {text}, expected only"),
        ({"prompt": "{question"}, "no template"),
    ],
)
def test_a_prompt_that_does_not_hold_together_is_refused_at_once(told, message):
    with pytest.raises(ValueError, match=message):
        vc.load_model("tiny-qwen2-vl", device="cpu", **told)


def test_a_system_turn_that_the_template_drops_is_refused(vlm, monkeypatch):
    monkeypatch.setattr(vlm.processor, "chat_template", "{{ messages[-1]['content'][-1]['text'] }}")
    with pytest.raises(ValueError, match="takes no system turn.*Put the text into prompt"):
        vlm.reworded(system="You count.")


def test_who_ranks_captions_is_told_nothing(samples):
    clip = vc.load_model("tiny-clip", device="cpu")
    with pytest.raises(ValueError, match="ranks captions and reads no instruction"):
        vc.evaluate(clip, samples[:9], instruction="Count.", progress=False)


def test_a_parser_of_one_s_own(vlm, samples, tmp_path):
    if "first_digit" not in vc.PARSERS:
        vc.PARSERS.add("first_digit", lambda text: next((int(sign) for sign in text if sign.isdigit()), None))
    mine = vc.evaluate(vlm, samples[:9], parser="first_digit", path=tmp_path / "mine", progress=False)
    assert all(row.counts.keys() == {"first_digit"} for row in mine.predictions)
    assert mine.scores()["parsed"].item() == 9
    assert json.loads((tmp_path / "mine" / "run.json").read_text())["parameters"]["parser"] == "first_digit"
    with pytest.raises(FileExistsError, match="parser' is 'strict' now and was 'first_digit'"):
        vc.evaluate(vlm, samples[:9], path=tmp_path / "mine", progress=False)
    with pytest.raises(KeyError, match="Did you mean 'strict'"):
        vc.evaluate(vlm, samples[:9], parser="stirct", progress=False)


def test_a_parser_that_gives_no_count_is_told_so(vlm, samples):
    if "wordy" not in vc.PARSERS:
        vc.PARSERS.add("wordy", lambda text: text)
    with pytest.raises(TypeError, match="'wordy' gave '.*' for '.*', expected a whole number"):
        vc.evaluate(vlm, samples[:2], parser="wordy", progress=False)


def test_who_has_no_true_counts_only_asks(vlm):
    images = [vc.scene("red_stars", count).render() for count in (2, 3)]
    asked = [vc.Sample(f"mine/{place}", image, QUESTION) for place, image in enumerate(images)]
    found = vc.evaluate(vlm, asked, progress=False)
    assert len(found) == 2 and found.tables() == {} and found.figures() == {} and "no true counts" in repr(found)
    with pytest.raises(ValueError, match="have no target"):
        found.scores()
    with pytest.raises(ValueError, match="1 of 2 have no target, the first is 'mine/1'"):
        vc.evaluate(vlm, [vc.Sample("mine/0", images[0], QUESTION, 2), asked[1]], progress=False)


def test_two_evaluations_are_compared(vlm, samples, result):
    other = vc.evaluate(vlm, samples, instruction="", progress=False)
    row = vc.compare(result, other).iloc[0]
    assert row["n"] == 36 and row["low"] <= row["difference"] <= row["high"]


def test_a_model_of_one_s_own_that_answers_in_plain_text(samples):
    class Mine:
        name = "mine"

        def answer(self, samples, max_new_tokens=5):
            return ["three" for _ in samples]

    found = vc.evaluate(Mine(), samples, progress=False)
    assert found.scores()["accuracy"].item() == pytest.approx(1 / 9)
    with pytest.raises(TypeError, match="'mine' cannot be told another instruction"):
        vc.evaluate(Mine(), samples, instruction="Count.", progress=False)


# --- stimuli


def test_scenes_and_families(tmp_path):
    assert isinstance(vc.scene("red_stars", 3).render(), Image.Image)
    two = vc.scene({"red_stars": 3, "blue_circles": [(0, 0), (8, 8)]}, seed=2)
    assert two.count("red_stars") == 3 and two.count("blue_circles") == 2
    assert (
        two.render().tobytes()
        == vc.scene({"red_stars": 3, "blue_circles": [(0, 0), (8, 8)]}, seed=2).render().tobytes()
    )
    assert len(vc.generate("area_matched", tmp_path / "area", seed=1, limit=18)) == 18
    for wrong in (
        lambda: vc.scene("red_stars"),
        lambda: vc.scene({"red_stars": 2}, 3),
        lambda: vc.scene("red_stars", -1),
    ):
        with pytest.raises(ValueError, match="[Ee]xpected"):
            wrong()
    with pytest.raises(KeyError, match="Did you mean"):
        vc.scene("redd_stars", 3)


# --- inside


@pytest.fixture(scope="module")
def states(vlm, samples):
    return vc.extract(vlm, samples, layers=[0, 4], progress=False)


def test_states_in_memory(states, samples):
    assert states[4, "last"].shape == (36, 128) and states[4, "last"].dtype == np.float32
    assert states.targets.tolist() == [sample.target for sample in samples]
    with pytest.raises(KeyError, match="Did you mean 'last'"):
        states[4, "lsat"]
    with pytest.raises(KeyError, match="99"):
        states[99, "last"]


def test_a_probe_by_name_and_by_estimator(states):
    from sklearn.linear_model import LogisticRegression

    mine = vc.probe(
        states, layer=4, pooling="last", probe=LogisticRegression(max_iter=2000), rule="random", progress=False
    )
    named = vc.probe(states, layer=4, pooling="last", rule="random", progress=False)
    assert 0 <= mine.accuracy <= 1 and len(mine.predictions) == len(named.predictions) == 36
    assert vc.probe(states[4, "last"], states.targets, progress=False).accuracy >= 0
    with pytest.raises(KeyError, match="Did you mean 'svm'"):
        vc.probe(states, layer=4, probe="svn", progress=False)


@pytest.mark.long
def test_a_head_is_trained_and_put_back(vlm, tmp_path):
    more = vc.load_dataset("balanced", limit=90)
    head = vc.train_head(vlm, train=more[::2], test=more[1::2], progress=False)
    assert {"n", "difference", "low", "high", "p"} <= set(head.gain) and len(head.curves)
    assert head.put_back(vlm).ask(vc.scene("red_stars", 3).render(), QUESTION).text


def test_states_are_exchanged_between_images(vlm):
    pairs = vc.count_pairs(vc.load_dataset("balanced", limit=432))[:4]
    rows = vc.patch(vlm, pairs, layers=[4])
    assert set(rows["position"]) == {"last", "image"} and len(rows) == 8


@pytest.mark.slow
def test_a_diagnosis_makes_everything_itself():
    found = vc.diagnose(vc.load_model("tiny-clip", device="cpu"), progress=False)
    assert found.verdict.likeliest and found.evidence and "The paper's rule says" in str(found)
    with pytest.raises(TypeError, match="conclude"):
        vc.diagnose({"accuracy": 0.5})


@pytest.mark.slow
def test_a_report_from_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path))
    made = vc.report(runs="*")
    assert len(made.conclusions) and made.folder is None and not list(tmp_path.rglob("*.csv"))


# --- what is typed wrongly, or unusually


@pytest.mark.parametrize("most", [0, -1, True, 5.0, "5", None])
def test_no_length_of_an_answer_is_refused_before_anything_is_asked(vlm, most, monkeypatch):
    monkeypatch.setattr(vlm, "prepare", lambda samples: pytest.fail("somebody was asked"))
    for ask in (lambda: vlm.ask(b"", QUESTION, most), lambda: vlm.answer([vc.Sample("a", b"", QUESTION)], most)):
        with pytest.raises(ValueError, match=f"max_new_tokens is {most!r}, expected a whole number of at least 1"):
            ask()


def test_what_is_no_question_is_refused(vlm):
    image = vc.scene("red_stars", 3).render()
    for question, found in ((image, "'Image'"), (" ", "' '"), (None, "'NoneType'")):
        with pytest.raises(ValueError, match=f"The question is {found}, expected text. The image comes first"):
            vlm.ask(image, question)
    with pytest.raises(TypeError, match="Found a Image among the samples.*About one image: ask"):
        vlm.answer([image])
    one = vc.Sample("a", image, QUESTION)
    assert vlm.answer([]) == [] and vlm.answer(one)[0].text == vlm.answer(iter([one]), np.int64(5))[0].text


@pytest.mark.parametrize(
    "prompt, found",
    [
        ("{question:{x}}", "it has {question:{x}}, expected only {instruction} and {question}"),
        ("{question!r}", "it has {question!r}"),
        ("{question.x}", "it has {question.x}"),
        ("{question[0]}", "it has {question[0]}"),
        ("{} {question}", "it has {}, expected"),
        ("question}", "no template: Single '}' encountered"),
        ("", "leaves out the question"),
        (3, "prompt is 3, expected text"),
    ],
)
def test_a_broken_prompt_is_named(vlm, prompt, found):
    with pytest.raises(ValueError) as caught:
        vlm.reworded(prompt=prompt)
    assert found in str(caught.value)


def test_numbers_of_numpy_are_numbers(vlm, tmp_path):
    whole = np.int64
    assert vc.scene("red_stars", whole(3), whole(2), whole(9), whole(672)) == vc.scene("red_stars", 3, 2)
    assert vc.scene({"red_stars": np.array([[0, 1]])}) == vc.scene({"red_stars": [(0, 1)]})
    given = {"limit": whole(4), "seed": whole(1), "counts": np.array([2, 1]), "grid": whole(9), "workers": whole(1)}
    made = vc.generate("balanced", tmp_path, **given)
    assert vc.generate("balanced", tmp_path, limit=4, seed=1, counts=[1, 2]) == made
    assert vc.core.Answer("3", None, whole(3)).count == 3
    assert type(vc.core.Answer("3", None, whole(3)).count) is int
    with pytest.raises(ValueError, match="count is 'three', expected a whole number"):
        vc.core.Answer("3", None, "three")


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: vc.scene("red_stars", "3"), "number of red_stars is '3', expected 0 to 81"),
        (lambda: vc.scene("red_stars", True), "number of red_stars is True"),
        (lambda: vc.scene(["red_stars"]), r"Found objects=\['red_stars'\]"),
        (lambda: vc.scene({"red_stars": [3]}), r"Found the place 3 for red_stars, expected \(row, column\)"),
        (lambda: vc.scene({"red_stars": [(0, "a")]}), "expected two numbers: row and column"),
        (lambda: vc.scene("red_stars", 3, seed=-1), "seed is -1, expected a whole number of at least 0"),
        (lambda: vc.scene("red_stars", 3, grid=2.5), "grid is 2.5, expected a whole number"),
        (lambda: vc.scene("stars", 3), "Found 'stars' for a kind of object, expected a colour and a shape"),
        (lambda: vc.generate(["balanced"]), r"Found \['balanced'\] for the family, expected one name"),
        (lambda: vc.generate("balanced", seed=1.5), "seed is 1.5, expected a whole number"),
        (lambda: vc.generate("balanced", image_size="672"), "image_size is '672', expected a whole number"),
        (lambda: vc.generate("balanced", counts="12"), r"counts are \['12'\], expected whole numbers"),
        (lambda: vc.generate("balanced", counts=True), r"counts are \[True\], expected whole numbers"),
        (lambda: vc.generate("balanced", entities=3), "Found 3 for a kind of object"),
    ],
)
def test_what_cannot_be_drawn_is_said(wrong, message):
    with pytest.raises((ValueError, TypeError, KeyError), match=message):
        wrong()
