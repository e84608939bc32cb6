"""Draw the picture that explains the project: `python nbs/_site/picture.py` writes `nbs/images/seeing-or-saying.svg`.

Its numbers come from the study of planted faults that ships with the package (`load_planted`); none is typed here.
"""

import sys
from io import BytesIO
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

from vlm_counting.core import write_atomic
from vlm_counting.figures import _FAINT, _GRID, _INK, COLOURS, Picture, style
from vlm_counting.held_out import load_planted, planted_file
from vlm_counting.stimuli import COLOURS as PAINT
from vlm_counting.stimuli import SHAPES, Scene

FILE = Path(__file__).resolve().parents[2] / "nbs" / "images" / "seeing-or-saying.svg"
TWINS = {  # recipe of the study, at its highest dose -> what the picture says of it
    "none": ("healthy", "it counts"),
    "say_bias": ("output layer broken", "sees it, often errs"),
    "see_merge": ("vision tower broken", "sees part of it"),
}
READ, SAID = COLOURS[0], COLOURS[1]
SCENE = Scene().add("yellow_stars", [(1, 2), (2, 6), (4, 4), (6, 1), (7, 6)])
SCENE = SCENE.add("magenta_circles", [(0, 7), (3, 0), (5, 7)])  # not asked for


def numbers() -> pd.DataFrame:  # recipe, twins, read, said; shares 0..1, means over twins
    "What a probe reads from the last token, and what is said, in twins with one kind of fault."
    study = load_planted(planted_file("evidence.csv"))  # the first version's study has probes as well
    rows = study[study["recipe"].isin(TWINS) & study["step"].isin([0, 3])]
    found = rows.groupby("recipe").agg(twins=("seed", "size"), read=("probe_last", "mean"), said=("accuracy", "mean"))
    return found.loc[list(TWINS)].reset_index()


def told(
    rows: pd.DataFrame,  # of `numbers`
) -> str:
    "The numbers in one line; the file keeps it as its description."
    return "; ".join(f"{row.recipe} n={row.twins} read={row.read:.4f} said={row.said:.4f}" for row in rows.itertuples())


def draw_scene(
    ax: Axes,
    left: float,  # of the picture, in the units of the axes
    bottom: float,
    side: float,
) -> None:
    "The stimulus, drawn from the shapes that `render` paints."
    ax.add_patch(Rectangle((left, bottom), side, side, facecolor="black"))
    pixel = side / SCENE.image_size
    for item in SCENE.objects:
        top, across, size = SCENE.box(item)
        paint = tuple(value / 255 for value in PAINT[item.entity.colour])
        corner = (left + across * pixel, bottom + side - (top + size) * pixel)
        for part in SHAPES[item.entity.shape]:
            if part:
                points = [(corner[0] + x * size * pixel, corner[1] + (1 - y) * size * pixel) for x, y in part]
                ax.add_patch(Polygon(points, facecolor=paint, edgecolor=paint, linewidth=0.2))
            else:
                middle = [start + size * pixel / 2 for start in corner]
                ax.add_patch(Circle(middle, size * pixel / 2, facecolor=paint))


def box(ax: Axes, left: float, bottom: float, width: float, height: float, text: str, **look) -> None:
    "A rounded box with words in its middle."
    look = {"facecolor": "#eef3f8", "edgecolor": _FAINT, "linewidth": 1} | look
    ax.add_patch(FancyBboxPatch((left, bottom), width, height, "round,pad=0,rounding_size=0.08", **look))
    ax.text(left + width / 2, bottom + height / 2, text, ha="center", va="center", fontsize=9.5, linespacing=1.3)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = _FAINT) -> None:
    "A plain arrow."
    look = {"arrowstyle": "-|>", "mutation_scale": 11, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
    ax.add_patch(FancyArrowPatch(start, end, color=colour, **look))


def draw_model(ax: Axes) -> None:
    "From the picture to the word, and the two questions below."
    draw_scene(ax, 0.15, 3.05, 1.65)
    ax.text(0.15, 2.84, "How many yellow\nstars are there?", fontsize=9.5, va="top", linespacing=1.3)
    arrow(ax, (1.88, 3.88), (2.2, 3.88))
    box(ax, 2.25, 3.4, 0.95, 0.95, "vision\ntower")
    arrow(ax, (3.22, 3.88), (3.46, 3.88))
    for number in range(5):
        left = 3.5 + 0.5 * number
        box(ax, left, 3.05, 0.4, 1.65, "", facecolor="#dbe8f4")
        for dot in range(6):
            last = dot == 0
            ax.add_patch(Circle((left + 0.2, 3.22 + 0.26 * dot), 0.065, facecolor=READ if last else "#9fb9d1"))
    ax.text(4.65, 4.83, "language model, layer by layer", fontsize=9.5, ha="center")
    arrow(ax, (5.95, 3.88), (6.33, 3.88))
    box(ax, 6.38, 3.4, 0.95, 0.95, "output\nlayer")
    arrow(ax, (7.38, 3.88), (7.68, 3.88))
    box(ax, 7.725, 3.5, 0.95, 0.76, "", facecolor="white", edgecolor=SAID, linewidth=1.6)
    ax.text(8.2, 3.87, "“5”", fontsize=17, ha="center", va="center", color=_INK)
    ax.text(9.1, 3.87, "A wrong answer looks\nthe same, whichever\npart has failed.", fontsize=9.5, va="center")
    arrow(ax, (4.65, 3.0), (4.65, 2.62), READ)
    arrow(ax, (8.2, 3.42), (8.2, 2.62), SAID)
    ax.text(4.65, 2.5, "Is the count in there?", fontsize=11.5, weight="bold", ha="center", va="top", color=READ)
    ax.text(4.65, 2.24, "a linear probe reads it", fontsize=9.5, ha="center", va="top")
    ax.text(8.2, 2.5, "Is it said?", fontsize=11.5, weight="bold", ha="center", va="top", color="#a84600")
    ax.text(8.2, 2.24, "the answer", fontsize=9.5, ha="center", va="top")


def draw_twins(
    ax: Axes,
    rows: pd.DataFrame,  # of `numbers`
) -> None:
    "One line a fault: how often the probe reads the count, how often it is said, and what that means."
    for number, row in enumerate(rows.itertuples()):
        middle, (name, meaning) = 1.55 - 0.47 * number, TWINS[row.recipe]
        ax.text(0.15, middle, name, fontsize=10, va="center", weight="bold")
        for left, share, colour in ((3.65, row.read, READ), (7.2, row.said, SAID)):
            ax.add_patch(Rectangle((left, middle - 0.13), 2.0, 0.26, facecolor=_GRID))
            ax.add_patch(Rectangle((left, middle - 0.13), 2.0 * share, 0.26, facecolor=colour))
            ax.text(left + 2.07, middle, f"{100 * share:.0f} %", fontsize=10, va="center")
        ax.text(10.1, middle, meaning, fontsize=10, va="center")
    small = {"fontsize": 8, "color": _FAINT, "va": "bottom"}
    twins = f"{rows['twins'].min()} to {rows['twins'].max()} tiny models of three architectures"
    ax.text(0.15, 0.1, f"Means over {twins}; the faults were planted. Guessing gets {1 / 9:.0%}.", **small)


@style()
def draw() -> Picture:
    "The whole picture, on a white card of its own: it reads the same on a light and on a dark page."
    figure = Picture(figsize=(9.9, 4.15))
    ax = figure.add_axes((0, 0, 1, 1), xlim=(-0.1, 12.6), ylim=(-0.1, 5.2))
    ax.set_axis_off()
    card = {"facecolor": "white", "edgecolor": _GRID, "linewidth": 1, "zorder": -1}
    ax.add_patch(FancyBboxPatch((0, 0), 12.5, 5.1, "round,pad=0,rounding_size=0.15", **card))
    draw_model(ax)
    draw_twins(ax, numbers())
    return figure


def main() -> int:
    "Write the file."
    data = BytesIO()
    with style():
        about = {"Date": None, "Creator": None, "Description": told(numbers())}
        draw().savefig(data, format="svg", transparent=True, metadata=about)
    write_atomic(FILE, data.getvalue())
    print(f"{FILE.name}: {FILE.stat().st_size:,} bytes; {told(numbers())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
