"""How fast pictures are planned, drawn and written, and how large they are.

Run `python tests/benchmarks/stimuli.py`. It draws each family into a temporary folder and writes stimuli.md.
"""

import argparse
import io
import os
import platform
import shutil
import tempfile
import time
from datetime import date
from functools import partial
from hashlib import sha256
from pathlib import Path

import PIL
from PIL import Image

from vlm_counting.stimuli import FAMILIES, Plan, Scene, draw_scene, encode_png, generate

SHOWN = ("balanced", "clustered", "distractors_9_large_red_circle", "two_groups", "area_matched", "size_varied", "free")


def seconds(function, *arguments, repeat: int = 1, clock=time.perf_counter, **options) -> tuple[float, object]:
    "Best time of `repeat` calls, and the last result."
    best = float("inf")
    for _ in range(repeat):
        start = clock()
        result = function(*arguments, **options)
        best = min(best, clock() - start)
    return best, result


processor_seconds = partial(seconds, clock=time.process_time)


def drawn(number: int) -> list[tuple]:
    "Images of `balanced` as colour numbers and colours."
    rows = list(FAMILIES["balanced"](Plan("balanced")))
    return [draw_scene(Scene.from_factors(row.factors)) for row in rows[:: len(rows) // number]]


def encoders(number: int) -> list[str]:
    "Our PNG writer against Pillow's, on the same images, one core; drawing not counted."
    pictures = drawn(number)

    def with_pillow(mode: str, level: int) -> int:
        total = 0
        for pixels, colours in pictures:
            image, file = Image.fromarray(pixels), io.BytesIO()
            image.putpalette([value for colour in colours for value in colour])
            image = image if mode == "P" else image.convert(mode)
            image.save(file, "PNG", compress_level=level)
            total += file.tell()
        return total

    ours = processor_seconds(lambda: sum(len(encode_png(*picture)) for picture in pictures), repeat=3)
    rows = [("ours, indexed", *ours)]
    for mode, level in (("P", 1), ("P", 6), ("RGB", 1), ("RGB", 6)):
        name = f"Pillow, {'indexed' if mode == 'P' else 'RGB'}, level {level}"
        rows.append((name, *processor_seconds(with_pillow, mode, level, repeat=2)))
    return [f"| {name} | {1000 * t / len(pictures):.2f} | {size / len(pictures):.0f} |" for name, t, size in rows]


def identities(number: int) -> list[str]:
    "What it takes to know an image of a file: by the file's bytes, or decoded and by its pixels."
    files = [encode_png(*picture) for picture in drawn(number)]

    def pixels(mode: str) -> list[bytes]:
        return [Image.open(io.BytesIO(file)).convert(mode).tobytes() for file in files]

    ways = {
        "bytes of the file": lambda: [sha256(file).digest() for file in files],
        "decoded, colour numbers": lambda: [sha256(data).digest() for data in pixels("P")],
        "decoded, RGB": lambda: [sha256(data).digest() for data in pixels("RGB")],
    }
    times = {name: processor_seconds(way, repeat=3)[0] for name, way in ways.items()}
    return [f"| {name} | {1000 * time / len(files):.3f} |" for name, time in times.items()]


def family_row(name: str, workers: int) -> str:
    "Plan, draw and write a whole family; then once more from the cache."
    folder = Path(tempfile.mkdtemp(prefix="stimuli-"))
    try:
        plan_time, rows = seconds(lambda: list(FAMILIES[name](Plan(name))), repeat=3)
        first, samples = seconds(generate, name, folder, workers=workers)
        images = {sample.image for sample in samples}
        size = sum(path.stat().st_size for path in images) / len(images)
        again, _ = seconds(generate, name, folder, workers=workers)
        return (f"| {name} | {len(rows)} | {plan_time:.2f} | {len(images)} | {first:.1f} | "
                f"**{len(images) / first:.0f}** | {size:.0f} | {again:.1f} |")  # fmt: skip
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that draw")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    generate("balanced", Path(tempfile.mkdtemp(prefix="stimuli-")), limit=1000, workers=options.workers)  # warm up
    lines = [
        "# Stimuli: speed and size",
        "",
        f"{date.today()}; {options.workers} worker processes on {os.cpu_count()} shared {platform.machine()} cores; "
        f"Python {platform.python_version()}, Pillow {PIL.__version__}; 672 x 672 pixels. "
        "Made by `python tests/benchmarks/stimuli.py`.",
        "",
        "Images per second count everything: planning, drawing, encoding, hashing, writing files and manifest.",
        "",
        "| family | samples | plan (s) | images | generate (s) | images/s | PNG bytes per image | from the cache (s) |",
        "|---|---|---|---|---|---|---|---|",
        *(family_row(name, options.workers) for name in SHOWN),
        "",
        "Encoding alone, processor time, images of `balanced`:",
        "",
        "| PNG writer | ms per image | bytes per image |",
        "|---|---|---|",
        *encoders(200),
        "",
        "Hashing alone, processor time. What Pillow writes depends on the zlib that it was built with;",
        "it would have to be known by its pixels:",
        "",
        "| sha256 of | ms per image |",
        "|---|---|",
        *identities(200),
    ]
    print("\n".join(lines))
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
