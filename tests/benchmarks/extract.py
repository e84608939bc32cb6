"""What it costs to read the hidden states of every layer, over a plain forward pass of the same batches.

Run `python tests/benchmarks/extract.py`. It prints a table and writes extract.json and extract.md.

Three ways take turns on the same prepared batches, round after round, so that a busy machine is busy for all of
them:

- `forward`: the model's plain forward pass, logits of the last position only; - `extract`: the same pass with
everything that `extract` does: all layers, all poolings, the lens with and without the norm, rows moved to the CPU
and written into the arrays of a store. It flushes them to the disk every ten seconds; a flush is timed on its own
and added in that proportion; - `all states`: the library's `output_hidden_states=True`, everything moved to the CPU
and pooled there.

The ratio is the median over rounds of (seconds of the round) / (seconds of `forward` in the same round). The twins
have three to six layers and a forward pass of milliseconds; so a model of the same classes with more layers and
random weights stands beside them (what weights say does not change the time). torch gets one thread (`--threads`).

`--real` is for a GPU: Qwen2-VL-7B and PaliGemma2-10B at full size with random weights in bfloat16, with peak
memory. `--real --small` tries the same code with a few thousand weights.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
import transformers
from evaluate import ID_NAMES, REAL, real_model

from vlm_counting import extraction
from vlm_counting.core import stratify, versions
from vlm_counting.evaluation import plan_samples
from vlm_counting.extraction import Reader, _choose_poolings, choose_layers
from vlm_counting.models import MODELS, VLM, _pick_device, find_checkpoint, load_model
from vlm_counting.stimuli import generate


def deep_model(layers: int, dim: int, device: str) -> VLM:
    "Qwen2-VL's classes with random float32 weights; words, token numbers and pictures are the twin's."
    name = "tiny-qwen2-vl"
    folder = find_checkpoint(name, MODELS[name])
    own = transformers.AutoConfig.from_pretrained(folder)
    ids = {key: getattr(own, key) for key in ID_NAMES if getattr(own, key, None) is not None}
    text = own.get_text_config().to_dict() | {"hidden_size": dim, "num_hidden_layers": layers, "layer_types": None,
            "num_attention_heads": dim // 32, "num_key_value_heads": dim // 32,
            "intermediate_size": 4 * dim}  # fmt: skip
    vision = own.vision_config.to_dict() | {"hidden_size": dim}
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    torch.manual_seed(0)
    model = transformers.Qwen2VLForConditionalGeneration(config).to(device).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    return VLM(f"{layers} layers of {dim}, random weights", MODELS[name], model, processor, folder)


class Ways:
    "The three ways through a model, on prepared batches."

    def __init__(self, vlm: VLM, samples: list, batch_size: int | str, folder: Path):
        self.body, self.folder, self.samples = vlm.hooks, folder, samples
        body, place = vlm.hooks, {sample.uid: row for row, sample in enumerate(samples)}
        batches, _ = plan_samples(vlm, samples, batch_size)
        self.batches = [([place[sample.uid] for sample in batch], vlm.prepare(batch)) for batch in batches]
        self.reader = Reader(body, choose_layers(body), _choose_poolings(body), body.head is not None)
        self.model = vlm.model
        folder.mkdir()
        extraction._lay_out(folder, self.reader.columns, len(samples))

    def forward(self) -> None:
        for _, inputs in self.batches:
            with torch.inference_mode():
                self.body.forward(inputs)

    def extract(self) -> None:
        for places, inputs in self.batches:
            rows = self.reader.read(inputs)
            extraction._write_rows(self.folder, self.reader.columns, places, len(self.samples), rows)

    def flush(self) -> None:
        notes = extraction._open_notes(self.folder, len(self.samples))
        extraction._note_batches(notes, self.reader.columns, [{"rows": [0]}])

    def all_states(self) -> None:
        for _, inputs in self.batches:
            moved = {name: value.to(self.model.device) for name, value in inputs.items()}
            with torch.inference_mode():
                out = self.model(**moved, use_cache=False, output_hidden_states=True, logits_to_keep=1)
            masks = self.body.masks(inputs)
            for states in out.hidden_states:
                whole = states.cpu().float().numpy()
                for mask in (masks["real"].numpy(), masks["image"].numpy()):
                    for row, keep in zip(whole, mask, strict=True):
                        np.mean(row[keep], axis=0), row[keep][-1].copy()


def timed(way, device: str) -> tuple[float, float, float]:  # wall and CPU seconds, peak GiB of the device
    "One round."
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start, used = time.perf_counter(), time.process_time()
    way()
    if cuda:
        torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    return time.perf_counter() - start, time.process_time() - used, peak


def measure(vlm: VLM, samples: list, options) -> dict:
    "One row of the table."
    with tempfile.TemporaryDirectory() as place:
        ways = Ways(vlm, samples, options.batch_size, Path(place) / "states")
        names = ["forward", "extract"] + ["all_states"] * (vlm.hooks.head is not None)
        seconds, busy = {name: [] for name in names}, {name: [] for name in names}
        peak = dict.fromkeys(names, 0.0)
        for turn in range(options.rounds + 1):
            for name in names if turn % 2 else names[::-1]:
                took, used, high = timed(getattr(ways, name), str(vlm.device))
                if turn:  # the first round warms up
                    seconds[name].append(took)
                    busy[name].append(used)
                    peak[name] = max(peak[name], high)
        ways.extract()
        flush = timed(ways.flush, "cpu")[0]
    whole = 0
    if vlm.hooks.head is not None:
        wide, numbers = max(inputs["input_ids"].shape[1] for _, inputs in ways.batches), next(vlm.model.parameters())
        whole = (len(vlm.hooks.blocks) + 1) * wide * vlm.hooks.dim * numbers.element_size()
    often = {"extract": 1 + flush / extraction._COMMIT_SECONDS}

    def ratio(spent: dict) -> dict:
        pairs = {name: zip(took, spent["forward"], strict=True) for name, took in spent.items()}
        return {name: often.get(name, 1) * statistics.median(a / b for a, b in both) for name, both in pairs.items()}

    return {
        "model": vlm.name, "device": vlm.device_name, "layers": len(vlm.hooks.blocks), "dim": vlm.hooks.dim,
        "samples": len(samples), "batches": len(ways.batches), "seconds": seconds, "flush seconds": flush,
        "CPU seconds": busy, "ratio": ratio(seconds), "CPU ratio": ratio(busy), "peak GiB": peak,
        "bytes per sample": {"extract": 4 * max(c.part.stop for c in ways.reader.columns), "all_states": whole},
    }  # fmt: skip


COLUMNS = ("model", "layers", "dim", "samples", "forward, ms a sample", "extract / forward", "by CPU seconds",
           "all states / forward",
           "moved off the device, kB a sample", "if all states were moved, kB")  # fmt: skip
MEMORY = ("peak GiB: forward", "extract", "all states")


def table_row(row: dict) -> str:
    moved = row["bytes per sample"]
    cells = [row["model"], row["layers"], row["dim"], row["samples"]]
    cells += [f"{1000 * statistics.median(row['seconds']['forward']) / row['samples']:.2f}"]
    cells += [
        f"**{row['ratio']['extract']:.3f}**",
        f"{row['CPU ratio']['extract']:.3f}",
        f"{row['ratio'].get('all_states', float('nan')):.2f}".replace("nan", "-"),
    ]
    cells += [f"{moved['extract'] / 1e3:.1f}", f"{moved['all_states'] / 1e3:,.0f}" if moved["all_states"] else "-"]
    peaks = [f"{peak:.2f}" for peak in row["peak GiB"].values() if peak]
    return f"| {' | '.join(map(str, cells + peaks))} |"


def report(rows: list[dict], options) -> str:
    "The table as Markdown."
    number, columns = torch.get_num_threads(), COLUMNS + (MEMORY if any(rows[0]["peak GiB"].values()) else ())
    processor = f"{number} torch thread{'s' * (number > 1)} on {os.cpu_count()} shared {platform.machine()} cores"
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    lines = ["# Reading every layer: the cost over a plain forward pass", "",
             f"{date.today()}; {processor}, {load}; device {', '.join(sorted({row['device'] for row in rows}))}; "
             f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}. `balanced`, 672 x 672 "
             f"pixels, batch size {options.batch_size}, median of {options.rounds} interleaved rounds. "
             f"Made by `python tests/benchmarks/extract.py{' --real' * options.real}`.", "",
             "`extract` reads all layers and poolings and the lens with and without the norm, and writes them into a "
             f"store that is flushed every {extraction._COMMIT_SECONDS} s. `all states` moves every state to the CPU "
             "(`output_hidden_states=True`) and pools there.", "",
             f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *map(table_row, rows), ""]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", help="names of twins; all that are shipped if left out")
    parser.add_argument("--limit", type=int, default=54, help="samples of `balanced`")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--deep", nargs=2, type=int, default=[12, 256], metavar=("LAYERS", "DIM"))
    parser.add_argument("--batch-size", default="auto", type=lambda text: int(text) if text.isdigit() else text)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--real", action="store_true", help="full-size architectures; needs a GPU of 40 GiB")
    parser.add_argument("--small", action="store_true", help="with --real: try the code with small ones")
    parser.add_argument("--budget", type=int, default=16384, help="with --real: tokens a batch")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(""), help="without its ending")
    options = parser.parse_args()
    options.device = _pick_device(options.device)
    torch.set_num_threads(options.threads)
    samples, rows = stratify(generate("balanced"), options.limit), []
    twins = [name for name, spec in MODELS.items() if spec.repo.startswith("twin:")]
    makers = [lambda name=name: real_model(name, options) for name in REAL if REAL[name][1] in MODELS]
    if not options.real:
        makers = [lambda: deep_model(*options.deep, options.device)]
        names = twins if options.models is None else options.models
        makers += [lambda name=name: load_model(name, device=options.device) for name in names]
    for make in makers:
        vlm = make()
        rows.append(measure(vlm, samples, options))
        print(table_row(rows[-1]), flush=True)
        del vlm
    text = report(rows, options)
    print(text)
    output = options.output.with_name(options.output.name + "-real" * options.real + "-small" * options.small)
    record = {"date": str(date.today()), "versions": versions(), "threads": torch.get_num_threads(), "rows": rows}
    output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
