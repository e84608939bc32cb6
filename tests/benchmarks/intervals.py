"""How often intervals of an accuracy hold the true one, and how wide they are: by simulation.

Run `OMP_NUM_THREADS=1 python tests/benchmarks/intervals.py` (about ten minutes). It writes intervals.md. The methods
are those of `vlm_counting.statistics`, for many worlds at once; in every setting a few worlds are held against
`interval` itself.
"""

import argparse
import platform
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import beta, norm, t

from vlm_counting.statistics import _POWER, FEW, interval

ENTITIES = (2, 3, 4, 6, 8, 12, 24)
LAYOUTS = (9, 27, 81)
ACCURACIES = (0.05, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98)
DRAWS = 400  # of the bootstrap
HELD = 2  # worlds in each setting that `interval` itself has to agree on
POWERS = {"t, power 1": 1.0, "t, power 7/6": 7 / 6, "t": _POWER, "t, power 3/2": 1.5, "t, power 2": 2.0}
METHODS = ("bootstrap", "symmetric", "Korn-Graubard", *POWERS)
SHOWN = ("bootstrap", "symmetric", "Korn-Graubard", "t")


@dataclass(frozen=True)
class Nature:
    "How much things differ: standard deviations of difficulty in probits; an answer's own is 1."

    counts: int  # 1, or 9 of falling accuracy
    entity: float  # of a kind of object, at all counts
    both: float  # of a kind of object at one count
    layout: float

    @property
    def name(self) -> str:
        own = f" and {self.both:g} by count" if self.both else ""
        return f"{self.counts} count{'s' * (self.counts > 1)}; entities {self.entity:g}{own}, layouts {self.layout:g}"


USUAL = (
    Nature(1, 0, 0, 0),
    Nature(1, 0.45, 0, 0.2),
    Nature(1, 0.7, 0, 0.3),
    Nature(9, 0, 0, 0),
    Nature(9, 0.1, 0.45, 0.2),
    Nature(9, 0.3, 0.7, 0.3),
)
BEYOND = (Nature(1, 0.9, 0, 0.3), Nature(1, 1.5, 0, 0.3))


def play(rng: np.random.Generator, nature: Nature, sizes: tuple[int, int], accuracy: float, worlds: int) -> np.ndarray:
    "Right or wrong: (worlds, entities, layouts, counts), true in `accuracy` of all worlds."
    entities, layouts = sizes
    fall = np.linspace(1, -1, nature.counts) if nature.counts > 1 else np.zeros(1)
    middle = brentq(lambda value: norm.cdf(value + fall).mean() - accuracy, -9, 9)
    whole = (1 + nature.entity**2 + nature.both**2 + nature.layout**2) ** 0.5
    hard = nature.entity * rng.standard_normal((worlds, entities, 1, 1), dtype=np.float32)
    hard = hard + nature.both * rng.standard_normal((worlds, entities, 1, nature.counts), dtype=np.float32)
    hard = hard + nature.layout * rng.standard_normal((worlds, 1, layouts, 1), dtype=np.float32)
    own = rng.standard_normal((worlds, entities, layouts, nature.counts), dtype=np.float32)
    return own + hard < ((middle + fall) * whole).astype(np.float32)


@dataclass(frozen=True)
class Answers:
    "The answers of many worlds to the same questions, added up over cells: those of one entity, layout and world."

    cells: np.ndarray  # (worlds, cells) number right
    strata: np.ndarray  # (worlds, counts) number right
    number: np.ndarray  # (counts, cells) of answers
    ways: tuple[np.ndarray, ...]  # families of the cells, each (cells,): layouts, entities; only those with two or more
    some: list[tuple]  # values, clusters and strata of a few worlds, answer by answer, for `interval`

    @property
    def n(self) -> int:
        return int(self.number.sum())

    @property
    def share(self) -> np.ndarray:  # (worlds,)
        return self.strata.sum(axis=1) / self.n

    @property
    def related(self) -> bool:
        return any(0 < codes.max() < self.n - 1 for codes in self.ways)


def asked(right: np.ndarray, kept: np.ndarray | None = None) -> Answers:
    "All answers; or those `kept`, (n,) bool, where there is a single count."
    _, entities, layouts, counts = right.shape
    entity, layout = np.indices((entities, layouts)).reshape(2, -1)
    count = np.tile(np.arange(counts), entities * layouts)
    right = right.reshape(len(right), entities * layouts, counts)
    if kept is not None:
        entity, layout, right, count = entity[kept], layout[kept], right[:, kept], count[kept]
    codes = [np.unique(labels, return_inverse=True)[1] for labels in (layout, entity)]
    ways = tuple(labels for labels in codes if labels.max() > 0)
    large = np.bincount(count).min() >= FEW
    strata = right.sum(axis=1, dtype=np.float64)
    number = np.full((counts, len(entity)), 1.0)
    if not large:
        strata, number, count = strata.sum(axis=1, keepdims=True), number.sum(axis=0, keepdims=True), 0 * count
    each = [np.repeat(labels, counts) for labels in ways]
    some = [(right[world].ravel().astype(float), each, count) for world in range(min(HELD, len(right)))]
    return Answers(right.sum(axis=2, dtype=np.float64), strata, number, ways, some)


def sums(values: np.ndarray, codes: np.ndarray) -> np.ndarray:  # (worlds, families)
    "Sums over families."
    return values @ np.eye(codes.max() + 1)[codes] if codes.max() < 100 else values


def families(answers: Answers) -> list[np.ndarray]:
    "Each way to group the cells, and with two, the cells."
    alone = np.arange(answers.cells.shape[1])
    return [*answers.ways, alone] if len(answers.ways) == 2 else list(answers.ways) or [alone]


def together(parts: list[np.ndarray]) -> np.ndarray:
    "Two ways less their cells, and no less than one of them."
    if len(parts) < 3:
        return parts[0]
    return np.maximum(parts[0] + parts[1] - parts[2], np.maximum(parts[0], parts[1]))


def clustered(answers: Answers) -> tuple[np.ndarray, int]:  # (worlds,), degrees of freedom
    "Variance of the mean under crossed families, around the means of the counts."
    n, parts = answers.n, []
    apart = answers.cells - (answers.strata / answers.number.sum(axis=1)) @ answers.number
    for codes in families(answers):
        size = codes.max() + 1
        factor = size / (size - 1) * (n - 1) / (n - len(answers.number))
        parts.append(factor * (sums(apart, codes) ** 2).sum(axis=1) / n**2)
    return together(parts), int(min(codes.max() for codes in families(answers)))


def wilson(share: np.ndarray, number: int) -> np.ndarray:  # (2, worlds)
    "Wilson's interval, as if answers were independent."
    z = norm.ppf(0.975)
    centre, reach = share + z**2 / 2 / number, z * (share * (1 - share) / number + z**2 / 4 / number**2) ** 0.5
    return np.array([centre - reach, centre + reach]) / (1 + z**2 / number)


def bootstrap(seed: list[int], answers: Answers) -> np.ndarray:
    "Percentiles of families drawn anew: the default before."
    share, parts = answers.share, []
    for codes in families(answers):
        size, number = codes.max() + 1, sums(answers.number.sum(axis=0)[None], codes)[0]
        weights = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), DRAWS).astype(np.float32)
        means = sums(answers.cells, codes).astype(np.float32) @ weights.T / (weights @ number.astype(np.float32))
        ends = np.quantile(means, [0.025, 0.975], axis=1)
        parts.append(np.maximum([share - ends[0], ends[1] - share], 0) ** 2 * size / (size - 1))
    low, high = together(parts) ** 0.5
    ends = np.clip([share - low, share + high], 0, 1)
    return np.where((share == 0) | (share == 1), wilson(share, answers.n), ends)


def korn_graubard(share: np.ndarray, variance: np.ndarray, number: int, quantile: float) -> np.ndarray:
    "Clopper and Pearson's interval for the effective number of answers: what surveys use."
    spread = share * (1 - share)
    size = np.divide(spread, variance, out=np.full(len(share), float(number)), where=(variance > 0) & (spread > 0))
    size = np.minimum(size, number) * (norm.ppf(0.975) / quantile) ** 2
    right, wrong = share * size, (1 - share) * size
    with np.errstate(invalid="ignore"):
        ends = beta.ppf(0.025, right, wrong + 1), beta.ppf(0.975, right + 1, wrong)
    return np.array([np.where(right > 0, ends[0], 0), np.where(wrong > 0, ends[1], 1)])


def of_relatives(answers: Answers, variance: np.ndarray, quantile: float, power: float) -> np.ndarray:
    "The method 't' of the library."
    n, number, share = answers.n, answers.number.sum(axis=1), answers.share
    near = (answers.strata + number / n) / (number + 2 * number / n)
    least = (number * near * (1 - near)).sum(axis=1) / n**2
    if answers.related:
        variance = np.maximum(variance, least)
    else:  # Wilson's, with half an answer
        variance, quantile, power = least, norm.ppf(0.975), 1
    near = (share * n + 1) / (n + 2)
    spread = near * (1 - near)

    def inside(truth: np.ndarray) -> np.ndarray:
        own = np.maximum(truth * (1 - truth), 1e-12)
        size = spread / variance * np.minimum(1, (spread / own) ** (power - 1))
        return abs(share - truth) <= quantile * (own / size) ** 0.5 + 0.5 / size

    ends = []
    for end in (0.0, 1.0):
        outer, inner = np.full(len(share), end), share.copy()
        outer = np.where(inside(outer), share, outer)
        for _ in range(32):
            middle = (outer + inner) / 2
            within = inside(middle)
            inner, outer = np.where(within, middle, inner), np.where(within, outer, middle)
        ends.append(np.where(inside(np.full(len(share), end)), end, inner))
    return np.array(ends)


def intervals(seed: list[int], answers: Answers) -> dict[str, np.ndarray]:  # method -> (2, worlds)
    "Every method; 't' and 'symmetric' have to be those of the library in some worlds."
    share, n = answers.share, answers.n
    variance, freedom = clustered(answers)
    quantile = t.ppf(0.975, freedom)
    reach = quantile * variance**0.5
    found = {"bootstrap": bootstrap(seed, answers), "Korn-Graubard": korn_graubard(share, variance, n, quantile)}
    found["symmetric"] = np.array([share - reach, share + reach])
    found |= {name: of_relatives(answers, variance, quantile, power) for name, power in POWERS.items()}
    for world, (values, clusters, strata) in enumerate(answers.some):
        for method in ("t", "symmetric"):
            ours = interval(values, clusters, strata, method)
            assert np.allclose(ours, found[method][:, world], atol=1e-6), (method, ours, found[method][:, world])
    found["symmetric"] = np.where((share == 0) | (share == 1), wilson(share, n), np.clip(found["symmetric"], 0, 1))
    return found


def setting(seed: list[int], nature: Nature, sizes: tuple[int, int], accuracy: float, worlds: int, kept: float) -> dict:
    "Coverage and mean width of every method in one setting, in chunks that fit into memory."
    rng, held, wide = np.random.default_rng(seed), {}, {}
    cells = sizes[0] * sizes[1]
    some = np.isin(np.arange(cells), rng.permutation(cells)[: round(kept * cells)])
    step = max(100, min(worlds, 8_000_000 // cells // nature.counts))
    for start in range(0, worlds, step):
        right = play(rng, nature, sizes, accuracy, min(step, worlds - start))
        for name, (low, high) in intervals(seed, asked(right, None if kept == 1 else some)).items():
            held[name] = held.get(name, 0) + int(((low <= accuracy) & (accuracy <= high)).sum())
            wide[name] = wide.get(name, 0) + float((high - low).sum())
    row = {"nature": nature.name, "entities": sizes[0], "layouts": sizes[1], "accuracy": accuracy, "kept": kept}
    return row | {f"{name} {what}": total / worlds for what, totals in (("held", held), ("wide", wide))
                  for name, total in totals.items()}  # fmt: skip


def grid(natures: tuple[Nature, ...], entities: tuple[int, ...], worlds: int, kept: float = 1.0) -> pd.DataFrame:
    "All settings."
    rows = []
    for place, nature in enumerate(natures):
        for size in entities:
            for layouts in LAYOUTS:
                for accuracy in ACCURACIES:
                    seed = [place, size, layouts, round(1000 * accuracy), round(10 * kept), len(natures)]
                    rows.append(setting(seed, nature, (size, layouts), accuracy, worlds, kept))
        print(nature.name, entities, kept, f"{time.process_time():.0f} s", flush=True)
    return pd.DataFrame(rows)


def lines(table: pd.DataFrame, by: str, methods: tuple[str, ...] = SHOWN) -> list[str]:
    "Markdown: lowest coverage and mean width for each value of a column."
    said = [f"| {by} | settings | " + " | ".join(methods) + " |", "|---" * (2 + len(methods)) + "|"]
    for value, rows in table.groupby(by, sort=False):
        held = [100 * rows[f"{name} held"].min() for name in methods]
        wide = [100 * rows[f"{name} wide"].mean() for name in methods]
        cells = [f"{low:.1f} / {width:.1f}" for low, width in zip(held, wide, strict=True)]
        said.append(f"| {value} | {len(rows)} | " + " | ".join(cells) + " |")
    return said


def summary(table: pd.DataFrame, methods: tuple[str, ...]) -> list[str]:
    "Markdown: one row a method."
    said = ["| method | lowest coverage | settings below 93 % | mean width (points) |", "|---|---|---|---|"]
    for name in methods:
        held = table[f"{name} held"]
        said.append(f"| {name} | {100 * held.min():.1f} % | {100 * (held < 0.93).mean():.1f} % "
                    f"| {100 * table[f'{name} wide'].mean():.1f} |")  # fmt: skip
    return said


HEAD = """# Intervals: do they keep their promise?

{date}; {settings} settings of {worlds:,} worlds each (one standard error of a coverage of 93 %: {error:.1f} points);
{minutes:.0f} minutes on one {machine} core. Made by `python tests/benchmarks/intervals.py`.

A world: kinds of objects and layouts get random difficulties, an answer is right if a normal variable falls below a
threshold, and the true accuracy (5 to 98 %) is known by construction. 2 to 24 entities are crossed with 9 to 81
layouts, and with one count, or with nine of falling accuracy. How much entities differ is taken from the released
reports (`data/published`): for the five vision-language models, 0.17 probits over all counts (median; at most 0.4) and
0.44 at single counts (median; nine of ten are below 0.7). An interval of 95 % should hold the truth in 95 of 100
worlds.

"""
TAIL = """
*bootstrap*: percentiles over crossed families, the default until 0.6. *symmetric*: the mean and Student's t times the
two-way clustered error, the `t` until 0.6 (all answers equal: Wilson's). *Korn-Graubard*: Clopper and Pearson's for the
effective number of answers, as in surveys. *t*: the default since, explained in the notebook on statistics. Its power
is {power:.2f}; the rows beside it show what the power does.

Lowest coverage in per cent / mean width in points:

"""


def page(usual: pd.DataFrame, others: dict[str, pd.DataFrame], worlds: int) -> str:
    "The whole of intervals.md."
    about = {
        "date": date.today(), "settings": len(usual), "worlds": worlds, "machine": platform.machine(),
        "error": 100 * (0.93 * 0.07 / worlds) ** 0.5, "minutes": time.process_time() / 60,
    }  # fmt: skip
    text = [*summary(usual, METHODS)]
    tables = [line for by in ("entities", "layouts", "accuracy", "nature") for line in [*lines(usual, by), ""]]
    for name, table in others.items():
        tables += [f"{name}:", "", *lines(table, "nature"), ""]
    return HEAD.format(**about) + "\n".join(text) + "\n" + TAIL.format(power=_POWER) + "\n".join(tables)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=2700, help="worlds in each setting")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    usual = grid(USUAL, ENTITIES, options.worlds)
    few = options.worlds // 2
    others = {
        "Every fifth image only": grid(USUAL[1:3], (6, 24), few, kept=0.2),
        "One entity, of which alone the interval speaks": grid((Nature(1, 0, 0, 0.3), Nature(9, 0, 0, 0.3)), (1,), few),
        "Beyond: entities as different as those of CLIP and CoCa at single counts (median 0.9; one in ten above 1.5)": (
            grid(BEYOND, (3, 6, 24), few)
        ),
    }
    options.output.write_text(page(usual, others, options.worlds))


if __name__ == "__main__":
    main()
