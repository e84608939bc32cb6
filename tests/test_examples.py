"Guards of examples before the question: seen by the model, never asked, refused where a prompt holds one image."

import pytest

from vlm_counting.evaluation import evaluate
from vlm_counting.models import load_model
from vlm_counting.runs import perform
from vlm_counting.stimuli import generate


@pytest.fixture(scope="module")
def sets():
    return generate("balanced", limit=6), generate("balanced", seed=1, limit=2)


@pytest.mark.parametrize("name", ["tiny-qwen2-vl", "tiny-llava-onevision"])
def test_examples_reach_the_prompt_with_their_answers(name, sets):
    samples, examples = sets
    plain = load_model(name)
    shown = plain.with_examples(examples)
    ids = shown.prepare(samples[:1])["input_ids"][0]
    text = shown.tokenizer.decode(ids)
    for sample in (*examples, samples[0]):
        assert sample.question in text
    places = [text.index(sample.question) for sample in (*examples, samples[0])]
    assert (
        places == sorted(places) and f"{examples[0].target}" in text[places[0] + len(examples[0].question) : places[1]]
    )
    assert plain.examples == () and plain.answer(samples[:2]) == load_model(name).answer(samples[:2])
    other = plain.with_examples(examples[::-1])
    assert shown.answer(samples)[0].logprobs != other.answer(samples)[0].logprobs  # what is shown matters


@pytest.mark.parametrize("name, why", [("tiny-paligemma2", "of one image"), ("tiny-clip", "it ranks captions")])
def test_a_prompt_of_one_image_is_refused(name, why, sets):
    with pytest.raises(ValueError, match=f"takes no examples: .*{why}"):
        load_model(name).with_examples(sets[1])


def test_no_example_is_asked(sets):
    samples, examples = sets
    with pytest.raises(ValueError, match="shows the image of"):
        evaluate(load_model("tiny-qwen2-vl"), samples, examples=samples[:1], progress=False)
    first, second = (
        evaluate(load_model("tiny-qwen2-vl"), samples[:2], examples=e, progress=False) for e in (examples, None)
    )
    assert first.record.parameters["examples"] and "examples" not in second.record.parameters


def test_shots_of_a_command(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_COUNTING_RESULTS", str(tmp_path / "results"))
    for sample in generate("balanced", tmp_path / "set", limit=6):
        assert sample.image.exists()
    asked = {"model": "tiny-qwen2-vl", "dataset": str(tmp_path / "set"), "limit": None, "shots": 2}
    assert len(perform("evaluate", asked)) == 4
    with pytest.raises(ValueError, match="too few images for shots=6"):
        perform("evaluate", asked | {"shots": 6, "run": "many"})
    with pytest.raises(ValueError, match="reads no question"):
        perform("evaluate", {"model": "tiny-clip", "limit": 9, "question": "How many {label}s?", "run": "words"})
