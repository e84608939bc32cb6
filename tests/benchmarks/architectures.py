"""Which models: what the package can do with each architecture, on tiny random checkpoints.

Run `python tests/benchmarks/architectures.py` (about four minutes). It writes architectures.md. Every "yes" was held
against plain code of transformers (`tests/architecture_checks.py`).
"""

import logging
import platform
import sys
import tempfile
import time
import warnings
from datetime import date
from pathlib import Path

import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from architecture_checks import compare  # noqa: E402
from architectures import ARCHITECTURES, build  # noqa: E402

from vlm_counting.models import load_model  # noqa: E402
from vlm_counting.patching import count_pairs, exchangeable_layers  # noqa: E402
from vlm_counting.stimuli import generate  # noqa: E402

WAYS = {"crop": "cut back", "copy": "copied", "again": "read again"}
HEAD = """# Which models

{day}, transformers {version}, {machine}. Made by `python tests/benchmarks/architectures.py`, on random weights of
64 dimensions.

A folder or `hf:org/name` of one of these architectures needs no entry: `vlm-counting evaluate model=hf:org/name`. For
those of the first table prompt, answer, the log-probabilities of 0 to 20, batches and output layer are those of plain
code ({right} of {all} checkpoints).

- **Image tokens**: how many states of the image there are to be read, in an image of 672 x 672 pixels as these tiny
  processors take it. None: the image comes in by cross-attention.
- **Patching**: layers at which an exchange of every state gives the donor's answer; where it is not all, the image
  gets around the others.
- **Prefix**: how the tokens after "1" and "2" are read, of which the probabilities of 10 to 20 are made.
- **Batches**: alone, where a batch of several sizes answers otherwise in transformers itself.

| architecture | image tokens | patching | prefix | batches | factor of the logits |
|---|---|---|---|---|---|
"""
REFUSED = """
Refused, in one sentence each:

| architecture | what is said |
|---|---|
"""


def row(name: str, folder: Path) -> tuple[bool, str]:  # whether it is right, its row
    "What one architecture can do."
    try:
        vlm = load_model(str(folder), device="cpu")
    except (ValueError, AttributeError) as error:
        said = str(error).replace(str(folder), "FOLDER").replace("|", "/")
        return False, f"| {name} | {said} |"
    found = compare(vlm, folder)
    assert not found.ids and not found.texts and max(found.first, found.second) < 0.05, (name, found)
    samples = generate("balanced", seed=1, entities=["red_squares", "blue_stars"], counts=[2, 9], limit=8)
    layers = list(range(len(vlm.hooks.blocks) + 1))
    sound = exchangeable_layers(vlm, count_pairs(samples), layers)
    tokens = int(vlm.hooks.masks(vlm.prepare(samples[:1]))["image"].sum())
    patched = "all" if sound == layers else ", ".join(map(str, sound)) + f" of {layers[-1]}" if sound else "none"
    cells = [name, tokens or "none", patched, WAYS[vlm._continued], "alone" if vlm.alone else "yes"]
    factor = "" if vlm.logit_scale == 1 else f"{vlm.logit_scale:.4g}"
    return True, "| " + " | ".join(map(str, [*cells, factor])) + " |"


def main() -> None:
    "All of them."
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    fine, refused, begun = [], [], time.time()
    with tempfile.TemporaryDirectory() as place:
        for name in sorted(ARCHITECTURES):
            right, text = row(name, build(name, Path(place) / name))
            (fine if right else refused).append(text)
            print(f"{time.time() - begun:4.0f} s {text}", flush=True)
    head = HEAD.format(
        day=date.today(),
        version=transformers.__version__,
        machine=platform.machine(),
        right=len(fine),
        all=len(ARCHITECTURES),
    )
    text = head + "\n".join(fine) + "\n" + REFUSED + "\n".join(refused) + "\n"
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
