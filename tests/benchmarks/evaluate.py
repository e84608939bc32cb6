"""How fast `predict` asks every shipped twin, against a loop written as the paper's release works.

Run `python tests/benchmarks/evaluate.py`. It prints a table and writes evaluate.json and evaluate.md.

The loop is the libraries' own classes and nothing of ours: one process, samples in the given order, the processor
called for each batch and then the model. Generative models: batches of 1 (as most published runs were made) and of
4, five new tokens, no log-probabilities. Encoders: one image at a time, its captions embedded again for every
image. `predict` does more (log-probabilities of 21 counts) and ends in the same answers; the table says how many
agree.

torch gets one thread (`--threads`). Where other work runs on the machine, several threads wait for each other in
circles, which slows small batches most and would flatter `predict`. A second core, if there is one, prepares the
next batch.

`--real` is for a GPU: Qwen2-VL-7B and PaliGemma2-10B at full size with random weights in bfloat16 (speed does not
depend on what weights say): images/s, peak memory, and which share of the card's bf16 matrix rate the prefill
reaches. `--real --small` tries the same code with a few thousand weights.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from PIL import Image

from vlm_counting.core import Sample, stratify, versions
from vlm_counting.evaluation import parse_count, predict
from vlm_counting.models import INSTRUCTION, MODELS, VLM, ModelSpec, _pick_device, find_checkpoint, load_model
from vlm_counting.stimuli import generate

ROUNDS = 3  # the paths take turns, so that a busy machine is busy for all of them


# --- the loops to compare with: library calls only


def plain_generative(spec: ModelSpec, model, processor):
    "A function: (samples, batch size) -> texts, as the release asks."
    processor.tokenizer.padding_side = "left"
    pad = processor.tokenizer.pad_token_id

    def prompt(question: str) -> str:
        text = f"{INSTRUCTION} {question}"
        if spec.prompt:
            return spec.prompt.format(text=text)
        parts = [{"type": "image"}, {"type": "text", "text": text}]
        turn = {"role": "user", "content": parts if spec.image_first else parts[::-1]}
        return processor.apply_chat_template([turn], add_generation_prompt=True)

    def ask(samples: list[Sample], batch_size: int) -> list[str]:
        texts = []
        for start in range(0, len(samples), batch_size):
            batch = samples[start : start + batch_size]
            images = [[Image.open(sample.image).convert("RGB")] for sample in batch]
            prompts = [prompt(sample.question) for sample in batch]
            inputs = processor(text=prompts, images=images, padding=True, return_tensors="pt")
            inputs.pop("labels", None)
            inputs = inputs.to(model.device, dtype=model.dtype)
            with torch.no_grad():
                out = model.generate(**inputs, max_new_tokens=5, do_sample=False, pad_token_id=pad)
            new = out[:, inputs["input_ids"].shape[1] :]
            texts += processor.batch_decode(new, skip_special_tokens=True)
        return texts

    return ask


def captions(sample: Sample) -> list[str]:
    "The captions of one image, in ascending order of the counts."
    return [f"a photo of {n} {sample.factors['entity'].replace('_', ' ')}" for n in sorted(sample.factors["options"])]


def plain_clip(folder: Path, device: str):
    "A function: (samples, 1) -> winning captions, with transformers."
    model = transformers.CLIPModel.from_pretrained(folder).to(device).eval()
    processor = transformers.CLIPProcessor.from_pretrained(folder)

    def ask(samples: list[Sample], batch_size: int) -> list[str]:
        texts = []
        for sample in samples:
            offered, image = captions(sample), Image.open(sample.image).convert("RGB")
            inputs = processor(text=offered, images=image, padding=True, return_tensors="pt").to(device)
            with torch.no_grad():
                probabilities = model(**inputs).logits_per_image.softmax(dim=1)
            texts.append(offered[int(probabilities.argmax())])
        return texts

    return ask


def plain_open_clip(folder: Path, device: str):
    "A function: (samples, 1) -> winning captions, with open_clip."
    import open_clip

    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}", device=device)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()

    def ask(samples: list[Sample], batch_size: int) -> list[str]:
        texts = []
        for sample in samples:
            offered = captions(sample)
            pixels = transform(Image.open(sample.image).convert("RGB")).unsqueeze(0).to(device)
            with torch.no_grad():
                image = torch.nn.functional.normalize(model.encode_image(pixels), dim=-1)
                words = torch.nn.functional.normalize(model.encode_text(tokenizer(offered).to(device)), dim=-1)
                probabilities = (100.0 * image @ words.T).softmax(dim=-1)
            texts.append(offered[int(probabilities.argmax())])
        return texts

    return ask


def plain(name: str, device: str):
    "The plain loop of a registered model."
    spec = MODELS[name]
    folder = find_checkpoint(name, spec)
    if spec.kind == "contrastive":
        return (plain_open_clip if spec.library == "open_clip" else plain_clip)(folder, device)
    model = getattr(transformers, spec.model_class).from_pretrained(folder, dtype=spec.dtype).to(device).eval()
    processor = getattr(transformers, spec.processor_class).from_pretrained(folder, **spec.processor_options)
    return plain_generative(spec, model, processor)


# --- measuring


def clock(device: str) -> tuple[float, float]:
    "Wall and processor seconds, once the device has finished."
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def take_turns(paths: dict, device: str) -> tuple[dict, dict]:
    "Run {name: (function, samples)} in `ROUNDS` parts, by turns: {name: rates}, {name: {uid: count}}."
    spent, answers = {name: [0.0, 0.0] for name in paths}, {name: {} for name in paths}
    for part in range(ROUNDS):
        for name, (function, samples) in paths.items():
            mine = samples[part::ROUNDS]
            wall, cpu = clock(device)
            counts = function(mine)
            end = clock(device)
            spent[name] = [spent[name][0] + end[0] - wall, spent[name][1] + end[1] - cpu]
            answers[name] |= {sample.uid: count for sample, count in zip(mine, counts, strict=True)}
    rates = {}
    for name, (_, samples) in paths.items():
        wall, cpu = spent[name]
        rates[name] = {"images": len(samples), "seconds": wall, "images/s": len(samples) / wall,
                       "cpu ms/image": 1000 * cpu / len(samples)}  # fmt: skip
    return rates, answers


def compare(vlm: VLM, loop, samples: list[Sample], more: list[Sample], sizes: list[int], batch_size) -> dict:
    "One row of the table: our path (over `more`) against the loop (over `samples`)."
    device = str(vlm.device)

    def ours(part: list[Sample]) -> list:
        with tempfile.TemporaryDirectory() as folder:
            rows = predict(vlm, part, Path(folder) / "predictions.jsonl", batch_size, progress=False)
        return [row.count for row in rows]

    def theirs(size: int):
        return lambda part: [parse_count(text) for text in loop(part, size)]

    for size in sizes:  # warm up
        theirs(size)(samples[: 2 * size])
    ours(more[:2])
    paths = {f"loop, batch {size}": (theirs(size), samples) for size in sizes} | {"predict": (ours, more)}
    rates, answers = take_turns(paths, device)
    base, both = f"loop, batch {sizes[0]}", answers["predict"].keys() & {sample.uid for sample in samples}
    same = sum(answers["predict"][uid] == answers[base][uid] for uid in both) / len(both)
    factor = {
        name: rates["predict"]["images/s"] / rate["images/s"] for name, rate in rates.items() if name != "predict"
    }
    return {"model": vlm.name, "kind": vlm.spec.kind, "device": vlm.device_name, "rates": rates, "times faster": factor,
            "same answers": same}  # fmt: skip


def twin_rows(names: list[str], options) -> list[dict]:
    "One row a twin."
    rows = []
    samples = stratify(generate("balanced"), options.limit)
    for name in names:
        vlm = load_model(name, device=options.device)
        if vlm.spec.kind == "contrastive":
            more = stratify(generate("balanced"), max(options.encoder_limit, options.limit))
            asked = {sample.uid for sample in more}
            more += [sample for sample in samples if sample.uid not in asked]
            rows.append(compare(vlm, plain(name, options.device), samples, more, [1], options.batch_size))
        else:
            rows.append(compare(vlm, plain(name, options.device), samples, samples, [1, 4], options.batch_size))
        print(table_row(rows[-1]), flush=True)
    return rows


# --- real architectures, random weights


def qwen2_vl(ids: dict, small: bool):
    "Configuration and picture size of Qwen2-VL-7B."
    text = {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
            "intermediate_size": 18944, "vocab_size": 152064, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}}  # fmt: skip
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4, "num_heads": 16, "patch_size": 14,
              "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3}  # fmt: skip
    if small:
        text |= {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
                 "intermediate_size": 512}  # fmt: skip
        vision |= {"depth": 2, "embed_dim": 64, "hidden_size": 256, "num_heads": 2}
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    return config, {"size": {"shortest_edge": 100 * 28 * 28, "longest_edge": 2304 * 28 * 28}, "patch_size": 14,
                    "merge_size": 2}  # fmt: skip


def paligemma2(ids: dict, small: bool):
    "Configuration and picture size of PaliGemma2-10B at 448 pixels: SigLIP So400m and Gemma 2 9B."
    text = {"model_type": "gemma2", "hidden_size": 3584, "num_hidden_layers": 42, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 256, "intermediate_size": 14336, "vocab_size": 257216,
            "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0}  # fmt: skip
    vision = {"model_type": "siglip_vision_model", "hidden_size": 1152, "num_hidden_layers": 27,
              "num_attention_heads": 16, "intermediate_size": 4304, "patch_size": 14, "image_size": 448}  # fmt: skip
    if small:
        text |= {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
                 "head_dim": 64, "intermediate_size": 256}  # fmt: skip
        vision |= {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = transformers.PaliGemmaConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=text["hidden_size"],
        hidden_size=text["hidden_size"],
        **ids,
    )
    return config, {"size": {"height": 448, "width": 448}, "image_seq_length": 1024}


REAL = {"qwen2-vl-7b": (qwen2_vl, "tiny-qwen2-vl"), "paligemma2-10b": (paligemma2, "tiny-paligemma2")}
ID_NAMES = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "bos_token_id",
            "eos_token_id", "pad_token_id")  # fmt: skip


def real_model(name: str, options) -> VLM:
    "A full-size architecture with random weights; words and token numbers are the twin's, pictures its own."
    build, twin = REAL[name]
    folder = find_checkpoint(twin, MODELS[twin])
    processor = getattr(transformers, MODELS[twin].processor_class).from_pretrained(folder)
    own = transformers.AutoConfig.from_pretrained(folder)
    ids = {key: getattr(own, key) for key in ID_NAMES if getattr(own, key, None) is not None}
    config, pictures = build(ids, options.small)
    pixels = type(processor.image_processor)(**(processor.image_processor.to_dict() | pictures))
    processor.image_processor = pixels
    if hasattr(processor, "image_seq_length"):
        processor.image_seq_length = pictures["image_seq_length"]
    kind = getattr(transformers, own.architectures[0])
    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(0)
    with torch.device(options.device):
        model = kind(config)
    torch.set_default_dtype(torch.float32)
    model.generation_config = transformers.GenerationConfig(pad_token_id=processor.tokenizer.pad_token_id)
    spec = replace(MODELS[name], dtype="bfloat16")
    vlm = VLM(f"{name}, random weights", spec, model.to(options.device).eval(), processor, folder)
    vlm.token_budget = options.budget
    return vlm


def timed(function, device: str, repeat: int) -> float:
    "Best seconds of `repeat` calls."
    best = float("inf")
    for _ in range(repeat):
        start = clock(device)[0]
        function()
        best = min(best, clock(device)[0] - start)
    return best


def matrix_rate(device: str, side: int) -> float:
    "FLOP/s of one large bf16 matrix product: what the card can do."
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in "ab")
    return 2 * side**3 / timed(lambda: a @ b, device, 20)


def prefill(vlm: VLM, samples: list[Sample], rate: float) -> dict:
    "Tokens, FLOP and share of the matrix rate of one prefill; only the last position goes through the head."
    from torch.utils.flop_counter import FlopCounterMode

    inputs, device = vlm.prepare(samples).to(vlm.device), str(vlm.device)
    inputs = inputs.to(dtype=vlm.model.dtype)

    def forward():
        with torch.inference_mode():
            return vlm.model(**inputs, use_cache=True, logits_to_keep=1).logits

    with FlopCounterMode(display=False) as counter:
        forward()
    seconds, flop = timed(forward, device, 5), counter.get_total_flops()
    return {"samples": len(samples), "tokens": inputs["input_ids"].numel(), "TFLOP": flop / 1e12, "seconds": seconds,
            "TFLOP/s": flop / seconds / 1e12, "share of matrix rate": flop / seconds / rate}  # fmt: skip


def real_rows(options) -> list[dict]:
    "One row an architecture."
    rate = matrix_rate(options.device, 512 if options.small else 8192)
    print(f"bf16 matrix product: {rate / 1e12:.1f} TFLOP/s")
    samples, rows = stratify(generate("balanced"), options.limit), []
    for name in REAL:
        if REAL[name][1] not in MODELS:
            print(f"{name}: left out, its twin {REAL[name][1]} is not shipped")
            continue
        vlm = real_model(name, options)
        print(vlm, flush=True)
        if options.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        loop = plain_generative(vlm.spec, vlm.model, vlm.processor)
        row = compare(vlm, loop, samples, samples, [1, 4], options.batch_size)
        longest = max(map(vlm.length, samples[:50]))
        filled = max(1, options.budget // longest)
        row["prefill"] = prefill(vlm, samples[:filled], rate) | {"matrix rate": rate / 1e12}
        if options.device.startswith("cuda"):
            row["peak memory GiB"] = torch.cuda.max_memory_allocated() / 2**30
        start = time.perf_counter()
        vlm.prepare(samples[:filled])
        row["prepare ms/image"] = 1000 * (time.perf_counter() - start) / filled
        rows.append(row)
        print(table_row(row), real_row(row), sep="\n", flush=True)
        del vlm, loop
        if options.device.startswith("cuda"):
            torch.cuda.empty_cache()
    return rows


# --- the report


def table_row(row: dict) -> str:
    rates, factor = row["rates"], row["times faster"]
    cells = [row["model"]]
    for path in ("loop, batch 1", "loop, batch 4", "predict"):
        cells.append(f"{rates[path]['images/s']:.1f}" if path in rates else "-")
    cells += [
        f"**{factor['loop, batch 1']:.1f}**",
        f"{factor.get('loop, batch 4', float('nan')):.1f}".replace("nan", "-"),
    ]
    cells += [f"{rates[path]['cpu ms/image']:.1f}" for path in ("loop, batch 1", "predict")]
    return f"| {' | '.join(cells)} | {100 * row['same answers']:.1f} % |"


PATHS = ("model", "loop, batch 1", "loop, batch 4", "predict", "times batch 1", "times batch 4")
COLUMNS = (*PATHS, "CPU ms, batch 1", "CPU ms, predict", "same answers")
REAL_COLUMNS = (
    "model",
    "prefill: samples",
    "tokens",
    "TFLOP/s",
    "of matrix rate",
    "peak memory (GiB)",
    "prepare (ms/image)",
)


def head(columns: tuple) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def real_row(row: dict) -> str:
    prefill, peak = row["prefill"], row.get("peak memory GiB")
    cells = [row["model"], prefill["samples"], prefill["tokens"]]
    cells += [f"{prefill['TFLOP/s']:.3g} of {prefill['matrix rate']:.3g}", f"**{prefill['share of matrix rate']:.2f}**"]
    cells += [f"{peak:.1f}" if peak else "-", f"{row['prepare ms/image']:.1f}"]
    return f"| {' | '.join(map(str, cells))} |"


def report(rows: list[dict], real: list[dict], options) -> str:
    "The table as Markdown."
    number = torch.get_num_threads()
    processor = f"{number} torch thread{'s' * (number > 1)} on {os.cpu_count()} shared {platform.machine()} cores"
    found = {row["device"] for row in rows + real}
    lines = ["# Asking: images per second", "", f"{date.today()}; {processor}; device {', '.join(sorted(found))}; "
             f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}. "
             f"`balanced`, 672 x 672 pixels, {options.limit} samples, batch size {options.batch_size}. "
             "Made by `python tests/benchmarks/evaluate.py`.", "",
             "The loop is written as the paper's release works (see the head of that file) and computes no count "
             "log-probabilities; `predict` does. Both take turns within one run. For encoders `predict` is timed over "
             f"{options.encoder_limit} samples, the embedding of the 216 captions included.", ""]  # fmt: skip
    if rows:
        lines += [*head(COLUMNS), *map(table_row, rows), ""]
    if real:
        lines += ["Real architectures, random weights, bfloat16:", "", *head(COLUMNS), *map(table_row, real), ""]
        lines += [*head(REAL_COLUMNS), *map(real_row, real), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", help="names of twins; all that are shipped if left out")
    parser.add_argument("--limit", type=int, default=270, help="samples of `balanced`")
    parser.add_argument("--encoder-limit", type=int, default=2160, help="samples that `predict` asks an encoder")
    parser.add_argument("--batch-size", default="auto", type=lambda text: int(text) if text.isdigit() else text)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument(
        "--real", action="store_true", help="full-size architectures, random weights; needs a GPU of 40 GiB"
    )
    parser.add_argument("--small", action="store_true", help="with --real: try the code with small ones")
    parser.add_argument("--budget", type=int, default=16384, help="with --real: tokens a batch")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(""), help="without its ending")
    options = parser.parse_args()
    options.device = _pick_device(options.device)
    twins = [name for name, spec in MODELS.items() if spec.repo.startswith("twin:")]
    torch.set_num_threads(options.threads)
    print(*head(COLUMNS), sep="\n")
    rows = [] if options.real else twin_rows(twins if options.models is None else options.models, options)
    real = real_rows(options) if options.real else []
    text = report(rows, real, options)
    print(text)
    output = options.output.with_name(options.output.name + "-real" * options.real + "-small" * options.small)
    record = {"date": str(date.today()), "versions": versions(), "threads": torch.get_num_threads()}
    record |= {"limit": options.limit, "batch_size": options.batch_size, "rows": rows, "real": real}
    output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
