"""How fast `fit_head` trains an output layer, against a plain loop in the manner of the paper's release.

Run `python tests/benchmarks/train_head.py`. It prints a table and writes train_head.json and .md.

The plain loop is PyTorch's own: a DataLoader over (state, token) pairs, `torch.nn.Linear`, `torch.optim.AdamW` as
it comes, and after each batch every prediction is decoded by a tokenizer and read as a number, as the release does
to know its accuracy. Both loops see the same batches in the same order, in float32; the table says how far their
losses are apart. They take turns epoch by epoch, so that a busy machine is busy for both.

`--real` is for a GPU: the head of Qwen2-VL-7B (152,064 x 3,584) and 4,860 states, and the time of 50 epochs.
"""

import argparse
import json
import platform
import time
from datetime import date
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from vlm_counting.core import versions
from vlm_counting.evaluation import parse_count
from vlm_counting.models import load_model
from vlm_counting.training import Examples, Head, HeadConfig, _begin_training, _train_epoch

SIZES = {"small": (32_000, 1_024, 960), "real": (152_064, 3_584, 4_860)}  # vocabulary, dim, states


def make(vocabulary: int, dim: int, states: int, device: str) -> tuple[Head, Examples]:
    "A random head, and states whose count a trained head can read."
    generator = torch.Generator().manual_seed(0)
    head = Head((torch.randn(vocabulary, dim, generator=generator) / dim**0.5).to(device))
    directions, targets = torch.randn(9, dim, generator=generator), torch.arange(states) % 9
    vectors = directions[targets] + torch.randn(states, dim, generator=generator)
    return head, Examples(vectors, targets + 16)


class PlainLoop:
    "The loop to compare with."

    def __init__(self, head: Head, data: Examples, decode, device: str):
        self.layer = torch.nn.Linear(head.weight.shape[1], len(head.weight), bias=False, device=device)
        self.layer.weight.data.copy_(head.weight)
        self.optimiser = torch.optim.AdamW(self.layer.parameters(), lr=1e-4, weight_decay=0.01)
        self.data, self.decode, self.device = data, decode, device

    def epoch(self, order) -> float:
        "Mean loss of one epoch."
        pairs = torch.utils.data.TensorDataset(self.data.states[order], self.data.tokens[order])
        total = right = 0
        for states, tokens in torch.utils.data.DataLoader(pairs, batch_size=32):
            states, tokens = states.to(self.device), tokens.to(self.device)
            scores = self.layer(states)
            loss = cross_entropy(scores, tokens, reduction="sum") / len(tokens)
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            total += loss.item() * len(tokens)
            for row, token in zip(scores, tokens, strict=True):
                right += parse_count(self.decode([int(row.argmax())])) == parse_count(self.decode([int(token)]))
        return total / len(self.data)


def clock(device: str) -> float:
    "Seconds, once the device has finished."
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(size: str, epochs: int, device: str) -> dict:
    "Seconds of an epoch, ours and the plain loop's, by turns."
    head, data = make(*SIZES[size], device)
    tokenizer = load_model("tiny-qwen2-vl", device="cpu").tokenizer
    plain = PlainLoop(head, data, lambda ids: tokenizer.decode([number % len(tokenizer) for number in ids]), device)
    training, ours = _begin_training(head, range(16, 25), HeadConfig()), data.to(device)
    seconds, losses = {"plain": [], "ours": []}, {"plain": [], "ours": []}
    for epoch in range(epochs + 1):  # the first one warms up
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(epoch))
        for name in ("plain", "ours") if epoch % 2 else ("ours", "plain"):
            start = clock(device)
            done = _train_epoch(training, ours, order)["train_nll"] if name == "ours" else plain.epoch(order)
            seconds[name].append(clock(device) - start)
            losses[name].append(done)
    middle = {name: sorted(times[1:])[len(times[1:]) // 2] for name, times in seconds.items()}
    apart = max(abs(one - two) for one, two in zip(losses["plain"], losses["ours"], strict=True))
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.startswith("cuda") else None
    return {"vocabulary": len(head.weight), "dim": head.weight.shape[1], "states": len(data), "device": device,
            "seconds": middle, "times faster": middle["plain"] / middle["ours"], "losses apart": apart,
            "50 epochs": 50 * middle["ours"], "peak GiB": peak}  # fmt: skip


def table(rows: list[dict]) -> str:
    "The rows as Markdown."
    lines = ["| vocabulary x dim | states | device | plain, s/epoch | ours, s/epoch | times faster | losses apart "
             "| 50 epochs, s | peak GiB |", "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        peak = "-" if row["peak GiB"] is None else f"{row['peak GiB']:.1f}"
        lines.append(
            f"| {row['vocabulary']:,} x {row['dim']:,} | {row['states']:,} | {row['device']} "
            f"| {row['seconds']['plain']:.2f} | {row['seconds']['ours']:.2f} | **{row['times faster']:.1f}** "
            f"| {row['losses apart']:.1e} | {row['50 epochs']:.0f} | {peak} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", action="store_true", help="the size of Qwen2-VL-7B's head; needs a GPU")
    parser.add_argument("--epochs", type=int, default=3, help="measured epochs of each loop; the median counts")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on a CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if options.real else "cpu"
    rows = [measure("real" if options.real else "small", options.epochs, device)]
    name = torch.cuda.get_device_name() if options.real else f"{options.threads} torch thread, {platform.machine()}"
    here, head = Path(__file__).parent, f"{date.today()}; {name}; torch {torch.__version__}."
    stem = "train_head_gpu" if options.real else "train_head"
    (here / f"{stem}.json").write_text(
        json.dumps({"device": name, "versions": versions(), "rows": rows}, indent=1) + "\n"
    )
    text = (
        f"# Training the output layer\n\n{head} Made by `python tests/benchmarks/train_head.py`.\n\n"
        "`ours` is `fit_head`; `plain` is PyTorch's own loop as the paper's release has it: a DataLoader, "
        "`torch.nn.Linear`, `AdamW` as it comes, and every prediction decoded by a tokenizer and read as a number. "
        "Both see the same batches in the same order, in float32.\n"
    )
    (here / f"{stem}.md").write_text(f"{text}\n{table(rows)}\n")
    print(table(rows))


if __name__ == "__main__":
    main()
