"""How often the verdict of `diagnose` is right, on twins whose fault was planted, and what it says of the shipped
ones.

Run `python tests/benchmarks/diagnosis.py`. It judges the two tables that ship with the package (made by
`nbs/plant_faults.ipynb`, see there for how to make them again) and writes diagnosis.json and
diagnosis.md. `--battery` also runs the verb `diagnose` on every shipped twin, on two threads, and times it.
"""

import argparse
import json
import platform
import time
from datetime import date
from pathlib import Path

import pandas as pd

from vlm_counting import diagnosis
from vlm_counting.core import versions
from vlm_counting.diagnosis import (
    _LOSS,
    _hit_rate,
    _judge,
    _judge_recipes,
    judge_unseen,
    load_planted,
    planted_file,
    worth,
)
from vlm_counting.faults import CAUSES, FAULTS
from vlm_counting.models import MODELS
from vlm_counting.runs import run, run_folder

HERE = Path(__file__).parent
TWINS = [name for name, spec in MODELS.items() if spec.repo.startswith("twin:")]


def studies() -> dict[str, pd.DataFrame]:
    "Every way to be new to the rule: judged twins."
    planted, fourth = load_planted(), load_planted(planted_file().with_name("fourth.csv"))
    seen = planted["seed"].isin([0, 1, 2]) & planted["step"].isin([0, 1, 3])
    new = ~planted["seed"].isin([0, 1, 2]) & planted["step"].isin([0, 2])
    return {
        "new seeds and doses": _judge(planted[new], planted[seen]),
        "new seeds, doses and architecture (each of three in turn)": judge_unseen(planted),
        "a fourth architecture, never looked at before (InternVL3)": _judge(fourth, planted[seen]),
        "new recipe and architecture (each in turn)": _judge_recipes(planted),
    }


def lines(rows: list[str]) -> str:
    return "\n".join(rows)


def percent(rate: dict) -> str:
    return f"{100 * rate['right']:.0f} [{100 * rate['low']:.0f}, {100 * rate['high']:.0f}]"


def rates(judged: dict[str, pd.DataFrame]) -> list[str]:
    "The table of hit rates."
    table = ["| new to the rule | twins | verdict right | of those given | likeliest right | the paper's rule |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for name, rows in judged.items():
        chosen = worth(rows)
        battery, likeliest, paper = (_hit_rate(chosen, by) for by in ("verdict", "likeliest", "paper"))
        given = f"{100 * battery['right_if_said']:.0f} of {100 * battery['said']:.0f} % given"
        table.append(
            f"| {name} | {len(chosen)} | {percent(battery)} | {given} | {percent(likeliest)} | {percent(paper)} |"
        )
    return table


def by_recipe(judged: dict[str, pd.DataFrame]) -> list[str]:
    "What each recipe is called."
    rows = worth(judged["new seeds, doses and architecture (each of three in turn)"])
    unknown = worth(judged["new recipe and architecture (each in turn)"])
    table = [
        "| fault | recipe | named (all new) | the paper's rule | named (recipe unknown) |",
        "|---|---|---|---|---|",
    ]
    said = lambda part, by: ", ".join(f"{name} {count}" for name, count in part[by].value_counts().items())  # noqa: E731
    for recipe, fault in FAULTS.items():
        one, two = (table[table["recipe"] == recipe] for table in (rows, unknown))
        table.append(
            f"| {fault.kind} | {recipe} | {said(one, 'verdict')} | {said(one, 'paper')} | {said(two, 'verdict')} |"
        )
    return table


def doses() -> list[str]:
    "Hits by what the fault costs."
    planted = load_planted()
    every = pd.concat([
        _judge(planted[planted["architecture"] == name], planted[planted["architecture"] != name])
        for name in planted["architecture"].unique()
    ])  # fmt: skip
    every = every[every["fault"].isin(list(CAUSES)) & (every["fault"] != "none")]
    bins = pd.cut(every["loss"], [-1, 0.05, 0.1, 0.25, 0.5, 1.01], labels=["< 5", "5-10", "10-25", "25-50", "> 50"])
    table = ["| answers lost, points | twins | verdict right | withheld | called healthy |", "|---|---|---|---|---|"]
    for name, part in every.groupby(bins, observed=True):
        rate, none = _hit_rate(part), (part["likeliest"] == "none").mean()
        table.append(
            f"| {name} | {len(part)} | {percent(rate)} | {100 * (1 - rate['said']):.0f} % | {100 * none:.0f} % |"
        )
    return table


def twice(judged: dict[str, pd.DataFrame]) -> str:
    "What becomes of twins with two faults."
    rows = judged["new seeds, doses and architecture (each of three in turn)"]
    rows = rows[rows["fault"].str.contains("+", regex=False)]
    one = [row.likeliest in row.fault.split("+") for row in rows.itertuples()]
    withheld = (rows["verdict"] == "abstains").sum()
    return f"Of {len(rows)} twins {withheld} get no verdict; in {sum(one)} the likeliest fault is one of the two."


def battery() -> list[dict]:
    "The verb on every shipped twin: verdict and seconds."
    found = []
    for name in TWINS:
        start = time.perf_counter()
        run("diagnose", model=name, overwrite=True)
        folder = run_folder({"run": "diagnose", "model": name, "dataset": "balanced"})
        verdict = json.loads((folder / "verdict.json").read_text())
        evidence = json.loads((folder / "evidence.json").read_text())
        first = next(iter(verdict["probabilities"].items()))
        said = {"verdict": verdict["fault"] or "withheld", "likeliest": f"{first[0]} {first[1]:.2f}"}
        asked = {what: f"{100 * evidence[what]:.0f}" for what in ("accuracy", "two_accuracy")}
        seconds = {"seconds": round(time.perf_counter() - start)}
        found.append({"twin": name} | asked | said | {"paper": verdict["paper"].split(":")[0]} | seconds)
    return found


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reader.add_argument("--battery", action="store_true", help="also run and time the verb on every shipped twin")
    judged, path = studies(), HERE / "diagnosis.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    twins = battery() if reader.parse_args().battery else earlier.get("twins", [])
    planted = load_planted()
    numbers = {
        name: {by: _hit_rate(worth(rows), by) for by in ("verdict", "likeliest", "paper")}
        for name, rows in judged.items()
    }
    about = {"date": date.today().isoformat(), "machine": platform.machine(), **versions()}
    path.write_text(json.dumps(about | {"rates": numbers, "twins": twins}, indent=1) + "\n")
    paper = worth(judged["new seeds and doses"])
    blamed = paper[paper["paper"] == "say"]
    touched, made_there = len(blamed), blamed["fault"].isin(["say", "format"]).sum()
    text = f"""# Does the instrument tell seeing from saying?

{about["date"]}; {about["machine"]}, torch {about["torch"]}. Made by `python tests/benchmarks/diagnosis.py` from
{len(planted)} planted twins of three architectures (recipes at three doses, five seeds; pairs of recipes)
and {len(load_planted(planted_file().with_name("fourth.csv")))} of a fourth (InternVL3).
There is one healthy model of each architecture: seeds are of faults and pictures.

## Hit rates

Twins that lost {100 * _LOSS:.0f} points or more, and healthy ones. In percent, with 95 % intervals that take twins of
one recipe, and of one architecture, as related. *Likeliest* is the fault with the highest probability. It
becomes the verdict unless the verdict is *withheld* (in the tables: abstains), which happens where no fault
has a probability of {diagnosis._CERTAIN}, or where the twin resembles none with that fault. That counts as not right.

{lines(rates(judged))}

The paper's rule blames the output layer of {touched} of {len(paper)} twins (first row). It was changed in {made_there}.

## By what the fault costs (each architecture judged by the others, all doses)

{lines(doses())}

## Recipe by recipe

{lines(by_recipe(judged))}

## Two faults at once

{twice(judged)}
"""
    if twins:
        table = [f"| {' | '.join(twins[0])} |", "|" + "---|" * len(twins[0])]
        table += [f"| {' | '.join(str(value) for value in row.values())} |" for row in twins]
        text += (
            f"\n## The shipped twins\n\nThe whole verb, with notebook and figures, on two cores.\n\n{lines(table)}\n"
        )
    (HERE / "diagnosis.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
