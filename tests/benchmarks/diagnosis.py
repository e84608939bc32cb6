"""How often the verdict of `diagnose` is right, on tiny models whose fault was planted.

Run `python tests/benchmarks/diagnosis.py`. It reads the table that ships with the package (made by
`nbs/plant_faults.ipynb`, see there for how to make it again) and writes diagnosis.md.
"""

from pathlib import Path

import pandas as pd

from vlm_counting.diagnosis import QUESTIONS, decide
from vlm_counting.held_out import ARGUABLE, hit_rate, load_planted, procedure_hash, worth

HERE = Path(__file__).parent


def percent(rate: dict) -> str:
    return f"{100 * rate['right']:.0f} [{100 * rate['low']:.0f}, {100 * rate['high']:.0f}]"


def rates(groups: dict[str, pd.DataFrame]) -> str:
    "The table of hit rates, a row a group."
    lines = ["| models | n | named | or an arguable name | given | right of those given | the paper's rule |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, rows in groups.items():
        strict, lenient, paper = hit_rate(rows), hit_rate(rows, lenient=True), hit_rate(rows, by="paper")
        given, right = f"{100 * strict['given']:.0f}", hit_rate(rows, by="verdict")["right_if_given"]
        lines.append(f"| {name} | {strict['n']} | {percent(strict)} | {percent(lenient)} | {given} | "
                     f"{100 * right:.0f} | {percent(paper)} |")  # fmt: skip
    return "\n".join(lines)


def groups(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    "All, and by family, fault, architecture, and what the fault cost."
    found = {"all": rows}
    broken = rows[rows["fault"] != "none"]
    for name in ("family", "fault", "architecture", "dose"):
        found |= {f"{name}: {value}": part for value, part in (rows if name == "fault" else broken).groupby(name)}
    cost = pd.cut(broken["loss"], [0, 0.25, 0.5, 1.01], labels=["10 to 25", "25 to 50", "more than 50"])
    return found | {f"lost {value} points": part for value, part in broken.groupby(cost, observed=True)}


def recipes(rows: pd.DataFrame) -> str:
    "What each recipe is called."
    lines = ["| fault | recipe | right as well | named | withheld | the paper's rule |", "|---|---|---|---|---|---|"]
    tally = lambda column: ", ".join(f"{name} {count}" for name, count in column.value_counts().items())  # noqa: E731
    for (fault, recipe), part in rows.groupby(["fault", "recipe"], sort=False):
        either, silent = ", ".join(ARGUABLE.get(recipe, ())), (part["verdict"] == "withheld").sum()
        lines.append(
            f"| {fault} | {recipe} | {either} | {tally(part['likeliest'])} | {silent} | {tally(part['paper'])} |"
        )
    return "\n".join(lines)


def without(rows: pd.DataFrame) -> str:
    "The list of questions with one left out."
    lines = ["| left out | named |", "|---|---|"]
    evidence = [{name: value for name, value in row.items() if pd.notna(value)} for row in rows.to_dict("records")]
    for name in ["nothing", *QUESTIONS]:
        said = [decide(one, without=[name]).fault for one in evidence]
        lines.append(f"| {name} | {percent(hit_rate(rows.assign(likeliest=said)))} |")
    return "\n".join(lines)


def main() -> None:
    rows = load_planted()
    single = worth(rows)
    text = f"""# Does the instrument tell seeing from saying?

Made by `python tests/benchmarks/diagnosis.py` from {len(rows)} tiny models, of which {len(single)} are healthy or lost
ten points or more to one planted fault. Hash of questions, limits and knobs: `{procedure_hash()}`. Percent, with 95 %
intervals that take models of one recipe, and of one architecture, as related. *Named*: what the list of questions says;
it becomes a verdict (*given*) unless a small change of a limit would change it.

{rates(groups(single))}

## Recipe by recipe

{recipes(single)}

## Each question left out

{without(single)}
"""
    (HERE / "diagnosis.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
