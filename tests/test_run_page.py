"The page of a run and its three numbers: for every command, from the files of its folder alone."

import json
import re
from html.parser import HTMLParser
from math import exp, log

import nbformat
import pandas as pd
import pytest

from vlm_counting.core import Prediction, RunRecord, write_jsonl
from vlm_counting.run_page import SUMMARIES, Number, Summary, run_page, summarise
from vlm_counting.runs import RUNS

VOID = {"meta", "img", "br", "hr", "input", "link", "rect", "line", "col"}


class Balanced(HTMLParser):
    "Tags of a page that were never closed, or closed in the wrong order."

    def __init__(self, page: str):
        super().__init__()
        self.open, self.wrong, self.links, self.ids = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("href", "src")]
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.wrong.append(tag)


def shown(*data: dict, words: str = "") -> str:
    outputs = [nbformat.v4.new_output("display_data", one) for one in data]
    cells = [nbformat.v4.new_markdown_cell("# evaluate\n\n> Its promise."), nbformat.v4.new_markdown_cell(words)]
    return nbformat.writes(nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell("show", outputs=outputs)]))


@pytest.fixture
def folder(tmp_path):
    "An evaluation of 20 answers, one of them wrong and one without a number."
    table = "n,accuracy,low,high,mae,bias,unparsed\n20,0.9,0.7,0.97,0.05,-0.05,0.05\n"
    (tmp_path / "scores.csv").write_text(table)
    rows = pd.DataFrame({"target": [1, 2], "n": [10, 10], "accuracy": [1, 0.8], "low": [0.7, 0.5], "high": [1, 0.95]})
    rows.to_csv(tmp_path / "scores_per_count.csv", index=False)
    record = RunRecord("evaluate", {"model": "m", "prompt": "{instruction} {question}", "instruction": "Be brief."})
    record.model, record.dataset, record.samples, record.seeds = "m", "my_set", 20, {"seed": 3}
    record.sessions = [{"started": "2026-12-01T10:00:00", "seconds": 2.0, "versions": {"torch": "2.14"}, "git": "abc"}]
    record.save(tmp_path)
    return tmp_path


# --- numbers


@pytest.mark.parametrize(
    "number, text",
    [
        (Number("are right", 0.954, 0.91, 0.976, guess=1 / 9), "95.4 % [91.0, 97.6] are right; guessing gives 11.1 %"),
        (Number("on 'test'", -0.472, -0.529, -0.416, "points"), "-47.2 points [-52.9, -41.6] on 'test'"),
        (Number("off", 0.046296, unit="objects"), "0.0463 objects off"),
        (Number("runs", 1200, unit=""), "1,200 runs"),
        (Number("are right", 1.0), "100.0 % are right"),
    ],
)
def test_a_number_is_said_with_what_is_known_of_it(number, text):
    assert str(number) == text


def test_an_evaluation_is_summed_up(folder):
    found = summarise(folder, "evaluate")
    assert [round(number.value, 3) for number in found.numbers] == [0.9, 0.8, 0.05]
    assert found.numbers[0].guess == 0.5 and found.numbers[1].words == "where there are 2, the hardest count"
    assert found.verdict == "Wrong answers are mostly too low. In 5.0 % of all answers there is no number."


def test_probability_on_numbers_is_said_where_it_was_read(folder):
    rows = [Prediction(f"a/{i}", "m", "1", 1, 1, 1, [log(0.5), log(0.25), log(0.05)]) for i in range(4)]
    write_jsonl(folder / "predictions.jsonl", rows)
    assert exp(log(0.5)) == 0.5
    assert "80.0 % of the probability lies on the counts 0 to 2" in summarise(folder, "evaluate").verdict


@pytest.mark.parametrize("bias, mae, words", [(0.2, 0.2, "too high"), (0.0, 0.3, "both sides"), (-0.3, 0.3, "too low")])
def test_to_which_side_answers_err(folder, bias, mae, words):
    table = f"n,accuracy,low,high,mae,bias,unparsed\n20,0.9,0.7,0.97,{mae},{bias},0\n"
    (folder / "scores.csv").write_text(table)
    assert words in summarise(folder, "evaluate").verdict


@pytest.mark.parametrize(
    "mae, bias, unparsed, words",
    [("", "", 1, "No answer holds a number. In 100.0 % of all"), (0, 0, 0.1, "No number is wrong. In 10.0 % of all")],
)
def test_answers_without_a_number_err_to_no_side(folder, mae, bias, unparsed, words):
    (folder / "scores.csv").write_text(f"n,accuracy,low,high,mae,bias,unparsed\n20,0,0,0.2,{mae},{bias},{unparsed}\n")
    assert summarise(folder, "evaluate").verdict.startswith(words)


def test_an_absurd_answer_makes_no_headline(folder):
    head = "n,accuracy,low,high,mae,bias,unparsed,median_error,out_of_range"
    (folder / "scores.csv").write_text(f"{head}\n20,0.9,0.7,0.97,49990,49990,0,1,0.05\n")
    assert summarise(folder, "evaluate").numbers[-1].value == 1


@pytest.mark.parametrize("damage", ["", "n\n", "a,b\n1,2\n", "\x00\x01", "n,accuracy\n20,good\n"])
@pytest.mark.parametrize("command", list(SUMMARIES))
def test_tables_that_somebody_damaged_stop_no_page(folder, command, damage):
    for name in ("scores", "scores_per_count", "representations", "probes", "forgetting", "conclusions"):
        (folder / f"{name}.csv").write_text(damage)
    found = summarise(folder, command)
    assert isinstance(found, Summary) and found.numbers == () and isinstance(found.verdict, str)
    assert "How it was made" in run_page(shown({"text/plain": "x"}), folder)


def test_every_command_that_scores_is_summed_up():
    assert {"evaluate", "extract", "probe", "train", "diagnose", "report"} == set(SUMMARIES) <= set(RUNS)


# --- the page


def test_a_page_says_of_what_it_is_and_how_it_is_made_again(folder):
    page = run_page(shown({"text/markdown": "**A word**"}, words="## What it answers"), folder)
    for words in ("m on my_set", "90.0 %", "[70.0, 97.0]", "Be brief. {question}", "seed 3", "torch 2.14", "2026-12-01",
                  "<strong>A word</strong>", "<h2>What it answers</h2>", "guessing: 50.0 %"):  # fmt: skip
        assert words in page, words
    assert "Its promise" not in page  # of the command, not of this run
    found = Balanced(page)
    assert not found.wrong and not found.open and len(set(found.ids)) == len(found.ids)
    local = [link for link in found.links if not link.startswith(("data:", "#"))]
    assert local and all((folder / link).exists() or link == "notebook.ipynb" for link in local)


def test_names_and_answers_are_text(folder):
    record = RunRecord.load(folder)
    record.model = record.dataset = "<img src=x onerror=alert(1)>"
    record.save(folder)
    (folder / "<b>.csv").write_text("a\n")
    page = run_page(shown({"text/plain": "<not shown>"}, {"text/plain": "a <b> c"}), folder)
    assert "<img src=x" not in page and "&lt;img src=x" in page and "a &lt;b&gt; c" in page and "%3Cb%3E.csv" in page


def test_a_long_table_is_folded_up_and_figures_stand_side_by_side(folder):
    long = "<table><caption>All</caption>" + 30 * "<tr><td>1</td></tr>" + "</table>"
    image = {"image/png": "iVBORw0KGgo="}
    page = run_page(shown({"text/html": long}, image, image, {"text/html": "<table></table>"}, image), folder)
    assert "<summary>All (29 rows)</summary>" in page and page.count('<div class="figures">') == 2
    assert re.findall(r'<figure id="([^"]+)"', page) == ["figure-1", "figure-2", "figure-3"]


def test_the_verdict_is_said_once_and_warnings_come_last(folder):
    verdict = summarise(folder, "evaluate").verdict
    warning = nbformat.v4.new_output(
        "stream", name="stderr", text="x.py:1: UserWarning: 3 images left out\n  do()\n" * 2
    )
    bar = nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "bar"})
    notebook = nbformat.reads(shown({"text/markdown": verdict}, {"text/plain": "after"}), 4)
    notebook.cells[-1].outputs += [warning, bar]
    page = run_page(nbformat.writes(notebook), folder)
    assert page.count(verdict) == 1 and page.count("3 images left out") == 1 and "bar</pre>" not in page
    assert page.index("3 images left out") > page.index("How it was made") > page.index("after")


def test_what_to_type_is_what_was_typed(folder):
    notebook = nbformat.reads(shown({"text/plain": "x"}), 4)
    given = {"model": "m", "dataset": "./my set", "limit": 18, "overwrite": True, "seed": 0}
    notebook.metadata["papermill"] = {"parameters": given, "input_path": "nbs/evaluate.ipynb"}
    page = run_page(nbformat.writes(notebook), folder)
    (line,) = re.findall(r'<pre class="again">(.*)</pre>', page)
    assert line == "vlm-counting evaluate model=m dataset=&#x27;./my set&#x27; limit=18"


def test_without_a_folder_there_are_the_outputs_alone():
    page = run_page(shown({"text/plain": "said"}))
    assert "<pre>said</pre>" in page and json.dumps("") and not Balanced(page).wrong
