"""What only a GPU can tell, in one go: speed and memory of every command at the size of the real models.

Run `python tests/benchmarks/gpu.py --out gpu.json` on one GPU of 40 GB and more (nine minutes at most on an H100 or
H200). Nothing is fetched: the models are doubles of full size, whose weights are drawn on the device. Every part
writes its figures as soon as it has them, so that whatever ends the script, what was measured is kept; a part that
fails says why and the next one begins. `--minutes` ends it between two parts.

Without a network, carry the wheels of this package's requirements (`pip download -r`), torch for the CUDA at hand
among them. To try the script itself on a CPU:

    python tests/benchmarks/gpu.py --device cpu --width thin --layers 2 --images 4 --states 64 --out /tmp/gpu.json
"""

import argparse
import gc
import json
import tempfile
import time
import traceback
from datetime import date
from pathlib import Path

import torch
from evaluate import matrix_rate, plain_generative, prefill, timed
from train_head import PlainLoop, make

from vlm_counting.core import stratify, versions
from vlm_counting.diagnosis import diagnose
from vlm_counting.doubles import make_double
from vlm_counting.evaluation import predict
from vlm_counting.extraction import extract
from vlm_counting.models import choose_models, load_model
from vlm_counting.stimuli import generate
from vlm_counting.training import HeadConfig, _begin_training, _train_epoch, train_head

MODELS = ("qwen2-vl-7b", "paligemma2-10b")
GIB = 2**30


class Figures:
    "What was measured, on disk after each part."

    def __init__(self, options):
        self.options, self.began, self.found = options, time.monotonic(), {}
        device = torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device
        about = {"date": date.today().isoformat(), "device": device, "versions": versions(), "options": vars(options)}
        self.keep("about", about)

    def keep(self, name: str, figures: dict) -> None:
        self.found[name] = figures
        Path(self.options.out).write_text(json.dumps(self.found, indent=1, default=str))
        print(f"{time.monotonic() - self.began:6.1f} s  {name}: {json.dumps(figures, default=str)[:400]}", flush=True)

    def part(self, name: str, measure, *arguments):
        "Measure, and keep what came of it: figures, or why there are none. The peak of memory goes with them."
        if time.monotonic() - self.began > 60 * self.options.minutes:
            return self.keep(name, {"left out": f"after {self.options.minutes} minutes"})
        gc.collect()
        if self.options.device.startswith("cuda"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        try:
            figures = measure(*arguments)
        except Exception as error:  # whatever it is: the next part is worth having
            figures = {"failed": f"{type(error).__name__}: {error}", "where": traceback.format_exc(limit=-3)}
        figures["seconds in all"] = round(time.perf_counter() - start, 1)
        if self.options.device.startswith("cuda"):
            figures["peak GiB"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
        return self.keep(name, figures)


def by_turns(ways: dict, device: str, rounds: int) -> dict:
    "Median seconds of each way, by turns, and each as a multiple of the first."
    for way in ways.values():
        way()  # warm
    spent = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            spent[name].append(timed(way, device, 1))
    middle = {name: sorted(seconds)[len(seconds) // 2] for name, seconds in spent.items()}
    first = next(iter(middle.values()))
    return {"seconds": middle, "ratio": {name: seconds / first for name, seconds in middle.items()}}


def asking(vlm, samples, rounds: int) -> dict:
    "A plain loop, one image at a time, against ours, one at a time and as many as fit."
    loop = plain_generative(vlm.spec, vlm.model, vlm.processor)
    ours = lambda size: predict(vlm, samples, batch_size=size, progress=False)  # noqa: E731
    ways = {"plain loop, 1": lambda: loop(samples, 1), "ours, 1": lambda: ours(1), "ours, auto": lambda: ours("auto")}
    same = [text.strip() for text in loop(samples, 1)] == [row.text for row in ours(1)]
    return by_turns(ways, str(vlm.device), rounds) | {"images": len(samples), "same answers": same}


def reading(vlm, samples, rounds: int) -> dict:
    "Every layer and pooling, against plain forward passes of the same batches."
    from vlm_counting.evaluation import plan_batches

    batches = plan_batches([vlm.length(sample) for sample in samples], "auto", vlm.token_budget)
    prepared = [vlm.prepare([samples[place] for place in batch]) for batch in batches]

    def forward():
        with torch.inference_mode():
            for inputs in prepared:
                vlm.hooks.forward({name: tensor.to(vlm.device) for name, tensor in inputs.items()})

    ways = {"plain forward": forward, "extract": lambda: extract(vlm, samples, progress=False)}
    return by_turns(ways, str(vlm.device), rounds) | {"images": len(samples)}


def heads(vlm, states: int, device: str, rounds: int) -> dict:
    "One epoch of the output layer, against a plain loop in the manner of the release."
    weight = vlm.model.get_output_embeddings().weight
    head, data = make(*weight.shape, states, device)
    order, mine = torch.arange(states), data.to(device)
    ours = _begin_training(head, range(16, 25), HeadConfig())
    plain = PlainLoop(head, data, lambda tokens: str(tokens[0]), device)
    ways = {"plain loop": lambda: plain.epoch(order), "ours": lambda: _train_epoch(ours, mine, order)}
    return by_turns(ways, device, rounds) | {"states": states, "GiB of one copy": weight.numel() * 4 / GIB}


def training(vlm, samples, folder: Path) -> dict:
    "The command's own call: states, head, answers again."
    done = train_head(vlm, samples, path=folder / "train", config=HeadConfig(epochs=2), progress=False)
    return {"gain": str(done)}


def diagnosing(vlm, count: int, folder: Path) -> dict:
    "Everything it needs made by itself."
    return {"verdict": str(diagnose(vlm, limit=count, path=folder / "diagnose", progress=False))[:300]}


def precision(name: str, device: str, samples) -> dict:
    "Answers of a trained tiny model in bfloat16 and in float32."
    said = {}
    for dtype in ("float32", "bfloat16"):
        vlm = load_model(name, device=device, dtype=dtype)
        said[dtype] = [answer.text for answer in vlm.answer(samples)]
    same = sum(one == other for one, other in zip(*said.values(), strict=True))
    return {"images": len(samples), "same answers": same / len(samples)}


def measure_model(figures: Figures, name: str, samples, rate: float, folder: Path) -> None:
    "All parts of one model."
    options = figures.options
    double = make_double(name, folder / name, layers=options.layers, width=options.width)
    start = time.perf_counter()
    vlm = load_model(name, checkpoint=double, device=options.device, dtype=options.dtype)
    figures.keep(f"{name}: loaded", {"model": repr(vlm), "seconds": time.perf_counter() - start})
    figures.part(f"{name}: asking", asking, vlm, samples, options.rounds)
    figures.part(f"{name}: prefill", prefill, vlm, samples[: options.images // 2 or 1], rate)
    figures.part(f"{name}: reading", reading, vlm, samples, options.rounds)
    figures.part(f"{name}: one epoch of a head", heads, vlm, options.states, options.device, options.rounds)
    figures.part(f"{name}: train", training, vlm, generate("unseen_combinations", limit=options.limit), folder)
    figures.part(f"{name}: diagnose", diagnosing, vlm, options.limit, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="gpu.json", help="where the figures go, as they come")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="auto", help="of the weights; auto: bfloat16, as published")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--layers", type=int, default=None, help="blocks of decoder and vision tower; all by default")
    parser.add_argument("--width", default="real", choices=("real", "thin"))
    parser.add_argument("--images", type=int, default=24, help="asked and read by each way in each round")
    parser.add_argument("--limit", type=int, default=72, help="samples of train and of diagnose")
    parser.add_argument("--states", type=int, default=2048, help="of one epoch of head training")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=8192, help="of the matrices that tell the card's rate")
    parser.add_argument("--minutes", type=float, default=8.5, help="after which no further part begins")
    options = parser.parse_args()
    figures = Figures(options)
    rate = matrix_rate(options.device, options.side)
    figures.keep("matrix rate", {"bf16 TFLOP/s": rate / 1e12})
    samples = stratify(generate("balanced"), options.images)
    for tiny in [name for name in choose_models("twins") if "coca" not in name]:
        figures.part(f"{tiny}: bfloat16 against float32", precision, tiny, options.device, samples)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models.split(","):
            measure_model(figures, name, samples, rate, Path(folder))


if __name__ == "__main__":
    main()
