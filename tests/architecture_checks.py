"What the package says of a checkpoint, held against plain code of transformers. Largest differences, in nats."

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers as tf

from vlm_counting.core import Sample, load_image
from vlm_counting.evaluation import predict
from vlm_counting.models import INSTRUCTION, head_error
from vlm_counting.stimuli import generate

SIZES = (112, 112), (112, 112), (160, 96), (112, 112)  # width, height in pixels


def four_samples() -> list[Sample]:
    "Other images, sizes and lengths of questions."
    base = generate("balanced", limit=54)
    some = [base[index] for index in (0, 9, 18, 5)]
    questions = [
        some[0].question,
        "How many?",
        "How many of the objects that can be seen in this picture are there altogether?",
        some[3].question,
    ]
    told = zip(some, SIZES, questions, strict=True)
    return [
        replace(sample, uid=f"mixed/{index}", image=load_image(sample.image).resize(size), question=text, sha256="")
        for index, (sample, size, text) in enumerate(told)
    ]


def plain_inputs(processor, sample: Sample, numbers):
    "As the library's documentation asks a model."
    content = [
        {"type": "image", "image": load_image(sample.image)},
        {"type": "text", "text": f"{INSTRUCTION} {sample.question}"},
    ]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    return processor.apply_chat_template([{"role": "user", "content": content}], **options).to(numbers)


def plain_answer(model, processor, inputs) -> tuple[str, torch.Tensor]:  # text, (vocabulary,) log-probabilities
    options = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    with torch.inference_mode():
        out = model.generate(**inputs, **options)
    new = out.sequences[0, inputs["input_ids"].shape[1] :]
    return processor.decode(new, skip_special_tokens=True).strip(), out.logits[0][0].float().log_softmax(-1)


def plain_next(model, inputs, token: int) -> torch.Tensor:
    "Log-probabilities behind prompt and token, from one pass over both."
    ids, longer = inputs["input_ids"], {}
    for name, tensor in inputs.items():
        per_token = name != "input_ids" and tensor.shape[:2] == ids.shape
        longer[name] = torch.cat([tensor, tensor[:, -1:]], 1) if per_token else tensor
    longer["input_ids"] = torch.cat([ids, torch.tensor([[token]])], 1)
    with torch.inference_mode():
        return model(**longer, use_cache=False).logits[0, -1].float().log_softmax(-1)


@dataclass
class Found:
    ids: int = 0  # samples whose prompt is not that of the template
    texts: int = 0  # samples with another answer
    first: float = 0.0  # log-probability of a count of one token
    second: float = 0.0  # of the second token of 10 and 20
    batch: float = 0.0  # asked together against asked alone
    head: float = 0.0  # head(final norm(last block)) against logits


def compare_sample(vlm, processor, sample: Sample, found: Found):  # the model's own answer
    "Adds what is found of one sample."
    inputs = plain_inputs(processor, sample, vlm.model.dtype)
    text, first = plain_answer(vlm.model, processor, inputs)
    mine, answer = vlm.prepare([sample])["input_ids"], vlm.answer([sample])[0]
    found.ids += mine.tolist() != inputs["input_ids"].tolist()
    found.texts += answer.text != text
    for count, tokens in vlm.count_token_ids.items():
        if len(tokens) == 1 and count not in (1, 2):  # of 1 and 2, those that go on are taken away
            found.first = max(found.first, abs(answer.logprobs[count] - float(first[tokens[0]])))
    for count in (10, 20):
        one, two = vlm.count_token_ids[count]
        right = float(first[one]) + float(plain_next(vlm.model, inputs, one)[two])
        found.second = max(found.second, abs(answer.logprobs[count] - right))
    return answer


def compare(vlm, folder: Path) -> Found:
    "Four samples of a checkpoint."
    found, samples, processor = Found(), four_samples(), tf.AutoProcessor.from_pretrained(folder)
    alone = [compare_sample(vlm, processor, sample, found) for sample in samples]
    together = predict(vlm, samples, progress=False)
    for one, other in zip(alone, together, strict=True):
        found.batch = max(found.batch, *(abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True)))
    found.head = head_error(vlm, vlm.prepare(samples[:1]))[0]
    return found
