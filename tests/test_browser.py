"The error browser in headless Chromium: opened from disk, filtered, sorted, paged, read, and attacked."

import csv
import hashlib
import json
import re
import time
from dataclasses import replace
from importlib.resources import files
from math import exp
from pathlib import Path

import numpy as np
import pytest
from chromium import open_chromium
from PIL import Image

from vlm_counting.core import Prediction, Sample, UnknownName
from vlm_counting.paper.browser import _encode_column, _thumbnail, browser_page, check_run, show_browser, write_browser
from vlm_counting.stimuli import generate

ESCAPE = "\ue00c"
NASTY = [
    '<img src=x onerror="window.bad=1">',
    "</script><script>window.bad=1</script><!-- <script>",
    'it\'s "quoted", with\nnewlines,\r\nand\ttabs & &amp; \u2028 {{answers}}',
    "שלום \u202eevil\u202c مرحبا",
    "🟥🟦 семь \ud83d \x00 <b>7</b>",
    "many " * 2000,
]


def asked(folder: Path) -> list[Sample]:
    "Drawn samples of two families, a photograph with thirty things, and one whose texts are nasty everywhere."
    samples = generate("balanced", folder / "b", limit=54, entities=["red_stars", "cyan_circles", "blue_squares"])
    samples += generate("clustered", folder / "c", limit=16, entities=["red_stars"])
    grey = np.linspace(0, 255, 300 * 200 * 3).reshape(200, 300, 3).astype(np.uint8)
    Image.fromarray(grey).save(folder / "photo.jpg")
    samples.append(
        Sample("photo/<b>&'\"", folder / "photo.jpg", NASTY[1], 30, {"<u>label</u>": NASTY[0], "a.b": 1.5, "uid": "x"})
    )
    return samples


def answered(samples: list[Sample]) -> list[Prediction]:
    "Two models: 'one' says one too few from five on and knows its chances; 'two' says nasty things, or no number."
    rows = []
    for sample in samples:
        said = sample.target - (sample.target >= 5)
        logits = [-abs(count - said) - 0.25 * abs(count - sample.target) for count in range(21)]
        chances = [value - np.log(sum(map(exp, logits))) for value in logits]
        rows.append(Prediction(sample.uid, "one", str(said), said, said, sample.target, chances, sample.factors))
    for number, sample in enumerate(samples):
        said = None if number % 3 == 0 else sample.target + number % 5
        text = NASTY[number % len(NASTY)]
        rows.append(Prediction(sample.uid, "two <i>", text, said, said, sample.target, None, sample.factors))
    return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[list[Sample], list[Prediction]]:
    samples = asked(tmp_path_factory.mktemp("pictures"))
    return samples, answered(samples)


# --- what is written


def test_errors_say_what_to_do(run, tmp_path):
    samples, predictions = run
    with pytest.raises(ValueError, match=r"no predictions to browse.*load_predictions"):
        browser_page(samples, [])
    with pytest.raises(ValueError, match=r"two predictions of 'one' for .*replace"):
        check_run(samples, [predictions[0], predictions[0]])
    with pytest.raises(ValueError, match=r"holds 30 objects, its prediction says 1\b.*two sets"):
        check_run(samples, [replace(predictions[0], uid=samples[-1].uid)])
    with pytest.raises(UnknownName, match=r"'strct'.*Did you mean 'strict'"):
        browser_page([], predictions, rule="strct")
    broken = tmp_path / "broken.png"
    broken.write_bytes(samples[0].image.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"broken\.png"):
        browser_page([replace(samples[0], image=broken, sha256="")], predictions, progress=False)
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        browser_page([replace(samples[0], image=tmp_path / "gone.png", sha256="")], predictions, progress=False)


def test_thumbnails_keep_colours_and_shape(run, tmp_path):
    samples, _ = run
    small = tmp_path / "small"
    small.write_bytes(_thumbnail(samples[0].image))
    with Image.open(small) as image, Image.open(samples[0].image) as full:
        assert image.format == "PNG" and image.size == (336, 336)
        assert set(image.convert("RGB").getdata()) == set(full.convert("RGB").getdata())
    small.write_bytes(_thumbnail(samples[-1].image, 90))
    with Image.open(small) as image:
        assert image.format == "WEBP" and image.size == (90, 60)


def test_columns_come_back():
    values = ["7", 7, 7.5, None, [1, [2]], {"a": 1}, True, 1, "7", np.int64(7), float("nan")]
    column = _encode_column(values)
    back = [column["values"][code] for code in column["codes"]]
    assert back[:9] == values[:9] and back[9:] == [7, "nan"] and back[6] is True and len(column["values"]) == 9
    json.dumps(column, allow_nan=False)


def test_page_is_self_contained_and_names_no_place(run):
    samples, predictions = run
    page = browser_page(samples, predictions, title="A </title> & B", progress=False)
    assert str(samples[0].image.parent.parent) not in page and "A &lt;/title&gt; &amp; B" in page
    assert page.count("</script>") == 4 and not re.search(r"<(script|img|link|iframe)[^>]+(src|href)=", page)
    assert "sourceMappingURL" not in page and "default-src 'none'" in page
    again = browser_page(samples, predictions, title="A </title> & B", progress=False)
    assert page == again
    pictures = json.loads(re.search(r'<script id="pictures"[^>]*>(.*?)</script>', page, re.DOTALL)[1])
    assert len(pictures) == len({sample.sha256 for sample in samples}), "each picture is stored once"
    strange = browser_page([], [replace(row, text=row.text[:5]) for row in predictions], rule="paper")
    assert len(strange) < len(page)


def test_vendored_files_are_the_published_ones():
    folder = files("vlm_counting") / "vendor" / "tabulator"
    listed = dict(re.findall(r"^\| (\S+) \| ([0-9a-f]{64}) \|", (folder / "README.md").read_text(), re.MULTILINE))
    assert set(listed) == {"tabulator.min.js", "tabulator.min.css", "LICENSE"}
    for name, expected in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected, name
    assert "MIT" in (folder / "LICENSE").read_text()


# --- what is seen


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with open_chromium("the error browser") as driver:
        downloads = tmp_path_factory.mktemp("downloads")
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
        yield Page(driver, downloads)


class Page:
    "An open error browser, and what a reader does with it."

    def __init__(self, driver, downloads: Path):
        self.driver, self.downloads = driver, downloads

    def open(self, address: str) -> "Page":
        self.driver.get("about:blank")
        self.driver.get(address)
        self.until(lambda: self.run("return document.body.dataset.ready"), "the page is not ready")
        return self

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def until(self, condition, message: str):
        end = time.monotonic() + 15
        while not (value := condition()):
            assert time.monotonic() < end, message
            time.sleep(0.02)
        return value

    def press(self, keys: str) -> None:
        self.driver.find_element("tag name", "body").send_keys(keys)

    def choose(self, name: str, text: str) -> None:
        "Choose the option of a filter that starts with a text; '' = all."
        script = (
            "const [name, text] = arguments, select = document.getElementById('filter-' + name);"
            "const fits = option => text ? option.text.startsWith(text + ' (') : !option.value;"
            "const option = [...select.options].find(fits);"
            "select.value = option.value; select.dispatchEvent(new Event('change')); return option.text"
        )
        shown = self.run(script, name, text)
        if text:
            self.option = int(re.search(r"\(([\d,]+)\)$", shown)[1].replace(",", ""))

    @property
    def left(self) -> int:
        return int(self.run("return document.getElementById('status').textContent").split(" of ")[0].replace(",", ""))

    def column(self, field: str) -> list[str]:
        "The cells of the rows that are drawn, in their order."
        cells = "return [...document.querySelectorAll(arguments[0])].map(cell => cell.innerText)"
        return self.run(cells, f".tabulator-cell[tabulator-field='{field}']")

    @property
    def chosen(self) -> str:
        return self.run("return document.querySelector('#detail h2').textContent")

    @property
    def detail(self) -> str:
        return self.run("return document.getElementById('detail').innerText.toWellFormed()")

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def written(run, tmp_path_factory) -> str:
    return write_browser(tmp_path_factory.mktemp("page") / "browser.html", *run, progress=False).as_uri()


@pytest.fixture
def page(chromium, written) -> Page:
    chromium.errors()
    yield chromium.open(written)
    assert chromium.errors() == [] and chromium.run("return window.bad") is None


def test_opens_from_disk_and_shows_pictures(page, run):
    total = len(run[1])
    assert page.run("return document.getElementById('status').textContent") == f"{total} of {total}"
    assert page.run("return document.querySelectorAll('.tabulator-row').length") >= 5
    shown = "return [...document.querySelectorAll('.tabulator-cell img, #detail img')].map(image => image.naturalWidth)"
    page.until(lambda: all(page.run(shown)), "some picture is not shown")
    assert set(page.run(shown)) == {336}
    right = sum(row.count == row.target for row in run[1]) / total
    assert f"✓ right {100 * right:.1f} %" in page.run("return document.getElementById('legend').innerText")
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.run(wide) <= 0


def matching(rows, **wanted) -> int:
    return sum(
        all(getattr(row, name, row.factors.get(name)) == value for name, value in wanted.items()) for row in rows
    )


@pytest.mark.long
def test_filters_and_their_counts(page, run):
    rows = run[1]
    page.choose("target", "6")
    assert page.left == page.option == matching(rows, target=6)
    page.choose("entity", "red stars")
    assert page.left == page.option == matching(rows, target=6, entity="red_stars")
    page.choose("family", "clustered")
    assert page.left == page.option == matching(rows, target=6, entity="red_stars", family="clustered")
    page.choose("model", "one")
    assert page.left == page.option == 2 and set(page.column("target")) == {"6"}
    page.run("document.activeElement.blur()")
    page.press(ESCAPE)
    assert page.left == len(rows)
    errors = [None if row.count is None else row.count - row.target for row in rows]
    for text, size in (("0", 0), ("±1", 1), ("±2", 2)):
        page.choose("size", text)
        assert page.left == page.option == sum(error is not None and abs(error) == size for error in errors) > 0
    page.choose("size", "±3 or more")
    assert page.left == sum(error is not None and abs(error) > 2 for error in errors) > 0
    page.choose("size", "no number")
    assert page.left == errors.count(None) > 0 and set(page.column("result")) == {"– no number"}
    page.choose("size", "")
    page.choose("result", "too few")
    assert page.left == sum(error is not None and error < 0 for error in errors) > 0
    page.choose("result", "wrong")
    assert page.left == page.option == sum(error != 0 for error in errors)
    page.choose("count", "4")  # behind the button 'Filters'
    assert page.left == sum(row.count == 4 and row.target != 4 for row in rows) > 0


def test_search_finds_words_anywhere(page, run):
    page.press("/")
    page.driver.switch_to.active_element.send_keys("CYAN circles семь")
    expected = sum("семь" in row.text and row.factors.get("entity") == "cyan_circles" for row in run[1])
    page.until(lambda: page.left == expected, f"found {page.left}, expected {expected}")
    page.driver.switch_to.active_element.send_keys(" zzz")
    page.until(lambda: page.left == 0, "nothing should be left")
    assert "No answer is left" in page.detail and "No answer is left" in page.run(
        "return document.querySelector('.tabulator-placeholder').innerText"
    )
    page.driver.switch_to.active_element.send_keys(ESCAPE)
    page.until(lambda: page.left == len(run[1]), "Escape clears the search")
    assert page.chosen


def test_search_in_one_factor(page, run):
    rows, search = run[1], page.driver.find_element("id", "search")
    layout = next(row.factors["layout"] for row in rows if row.factors.get("layout", 0) > 9)
    for text, wanted in ((f"layout={layout}", {"layout": layout}), ("entity=red_stars", {"entity": "red_stars"})):
        search.clear()
        search.send_keys(text)
        expected = matching(rows, **wanted)
        page.until(lambda expected=expected: page.left == expected, f"{text}: {page.left}, expected {expected}")
        assert 0 < expected < len(rows)


def test_a_factor_with_many_values_has_a_filter(chromium, run, tmp_path):
    rows = [replace(row, uid=f"x/{n}", factors={"layout": n % 81}) for n, row in enumerate(run[1])]
    chromium.open(write_browser(tmp_path / "layouts.html", [], rows).as_uri())
    chromium.choose("factor-layout", "80")
    assert chromium.left == chromium.option == matching(rows, layout=80) > 0


@pytest.mark.long
def test_models_that_disagree_and_answers_that_are_sure(page, run):
    rows = run[1]
    counts = {row.uid: [other.count for other in rows if other.uid == row.uid] for row in rows}
    right = {row.uid: [other.count == other.target for other in rows if other.uid == row.uid] for row in rows}
    page.choose("models", "all right")
    assert page.left == page.option == sum(all(right[row.uid]) for row in rows) > 0
    page.choose("models", "all wrong")
    assert page.left == page.option == sum(not any(right[row.uid]) for row in rows) > 0
    page.choose("models", "disagree")
    assert page.left == page.option == sum(len(set(counts[row.uid])) > 1 for row in rows) > 0
    page.choose("models", "")
    sure = [row.logprobs and max(map(exp, row.logprobs)) / sum(map(exp, row.logprobs)) for row in rows]
    wrong = [row.count != row.target for row in rows]
    assert sum(value is not None and value > 0.9 for value in sure) == 0  # the run has none: see the next page
    page.choose("certainty", "unsure")
    assert page.left == page.option == sum(value is not None for value in sure) > 0
    page.choose("result", "wrong")
    assert page.left == sum(value is not None and bad for value, bad in zip(sure, wrong, strict=True)) > 0


@pytest.mark.long
def test_wrong_and_sure(chromium, run, tmp_path):
    rows = [row for row in run[1] if row.logprobs]
    sharp = [replace(row, logprobs=[9 * value for value in row.logprobs]) for row in rows]
    chromium.open(write_browser(tmp_path / "sure.html", [], sharp).as_uri())
    sure = [max(map(exp, row.logprobs)) / sum(map(exp, row.logprobs)) > 0.9 for row in sharp]
    chromium.choose("certainty", "sure")
    assert chromium.left == chromium.option == sum(sure) > 0
    chromium.choose("certainty", "wrong and sure")
    wrong = sum(value and row.count != row.target for value, row in zip(sure, sharp, strict=True))
    assert chromium.left == chromium.option == wrong > 0
    assert not chromium.run("return document.getElementById('filter-models')"), "there is one model"


@pytest.mark.long
def test_escape_leaves_one_thing_at_a_time(page, run):
    total = len(run[1])
    page.choose("target", "6")
    left = page.left
    page.run("document.querySelector('#columns summary').click()")
    page.press(ESCAPE)
    assert page.left == left and not page.run("return document.querySelector('details[open]')")
    page.press("/")
    page.driver.switch_to.active_element.send_keys("cyan")
    page.until(lambda: page.left < left, "the search finds nothing less")
    page.driver.switch_to.active_element.send_keys(ESCAPE)
    assert page.left == left and page.run("return document.getElementById('search').value") == ""
    page.run("document.getElementById('filter-target').focus()")
    page.driver.switch_to.active_element.send_keys(ESCAPE)
    assert page.left == left and page.run("return document.activeElement === document.body")
    page.press(ESCAPE)
    assert page.left == total


@pytest.mark.long
def test_by_keyboard_and_read_aloud(page, run):
    heading = "document.querySelector('.tabulator-col[tabulator-field=error]')"
    assert page.run(f"return {heading}.tabIndex") == 0
    page.run(f"{heading}.focus()")
    page.driver.switch_to.active_element.send_keys("\ue007")
    page.until(lambda: page.run(f"return {heading}.ariaSort") == "ascending", "Enter does not sort")
    assert page.run(f"return document.activeElement === {heading}")
    chosen = "return [...document.querySelectorAll('[aria-selected=true]')].map(row => row.innerText)"
    page.press("j")
    uid = page.chosen.split(" · ")[0]
    page.until(lambda: len(page.run(chosen)) == 1 and uid in page.run(chosen)[0], "the chosen row is not said to be")
    page.run("window.verdict = document.querySelector('#detail [aria-live=polite]')")
    before, said = page.chosen, page.run("return window.verdict.textContent")
    page.press("w")
    page.press("j")
    assert page.chosen != before and page.run("return window.verdict.isConnected"), "a new line is not read aloud"
    assert page.run("return window.verdict.textContent") != said or page.left < 3
    page.run("document.getElementById('detail').focus()")
    before = page.chosen
    page.driver.switch_to.active_element.send_keys("\ue015\ue014")
    assert page.chosen == before, "the arrow keys scroll the panel while it has the focus"


def test_picture_at_full_size(page):
    page.run("document.querySelector('#detail .picture').click()")
    width = page.run("return document.querySelector('#large img').getBoundingClientRect().width")
    assert width > 1.5 * page.run("return document.querySelector('#detail img').getBoundingClientRect().width")
    before = page.chosen
    page.press("j")
    assert page.chosen == before
    page.press(ESCAPE)
    page.until(lambda: not page.run("return document.getElementById('large').open"), "Escape closes the picture")


def test_chart_is_in_sight_on_a_small_screen(page):
    page.driver.set_window_size(1280, 800)
    try:
        bottom = page.run(
            "return document.querySelector('#detail .chart').getBoundingClientRect().bottom - innerHeight"
        )
        assert bottom <= 0 and page.run("return document.getElementById('detail').scrollTop") == 0
        assert page.run("return document.querySelector('#detail img').getBoundingClientRect().height") <= 200
    finally:
        page.driver.set_window_size(1280, 900)


@pytest.mark.long
def test_address_keeps_answer_and_filters(page, run):
    page.choose("target", "6")
    page.choose("result", "too few")
    page.press("/")
    page.driver.switch_to.active_element.send_keys("stars red")
    page.until(lambda: "search=" in page.run("return location.hash"), "the search is not in the address")
    page.run("document.activeElement.blur()")
    page.press("j")
    address, left, chosen = page.driver.current_url, page.left, page.chosen
    assert "result=too+few" in address and "target=6" in address and "red" in address
    page.open(address)
    assert (page.left, page.chosen) == (left, chosen) and 1 < left < len(run[1])
    assert page.run("return document.getElementById('search').value") == "stars red"
    page.open(address.split("?")[0])
    assert page.left == len(run[1]) and page.chosen == chosen
    page.open(address.split("#")[0] + "#?result=nonsense&target=6")
    assert page.left == matching(run[1], target=6)


@pytest.mark.long
def test_sort_and_page(page, run):
    heading = "document.querySelector('.tabulator-col[tabulator-field={}] .tabulator-col-title').click()"
    page.run(heading.format("truth"))
    page.until(lambda: page.column("truth")[0] != page.column("sure")[0], "not sorted")
    known = [row for row in run[1] if row.logprobs and row.target <= 20]
    least = min(exp(row.logprobs[row.target]) for row in known)
    assert page.column("truth")[0] == f"{100 * least:.1f} %"
    page.run(heading.format("error"))
    smallest = min(row.count - row.target for row in run[1] if row.count is not None)
    page.until(lambda: page.column("error")[0] == str(smallest).replace("-", "−"), page.column("error")[0])
    page.run(heading.format("error"))
    largest = max(row.count - row.target for row in run[1] if row.count is not None)
    page.until(lambda: page.column("error")[0] == f"+{largest}", page.column("error")[0])
    page.press("\ue014")  # right
    number = "return document.querySelector('.tabulator-page.active').textContent"
    page.until(lambda: page.run(number) == "2", "no second page")
    assert page.run("return document.querySelector('.tabulator-page-counter').innerText") == (
        f"Showing 51-100 of {len(run[1])} rows"
    )
    page.press("\ue012")
    page.until(lambda: page.run(number) == "1", "not back")
    page.run(
        "const s = document.querySelector('.tabulator-page-size'); s.value = 25; s.dispatchEvent(new Event('change'))"
    )
    page.until(lambda: "1-25" in page.run("return document.querySelector('.tabulator-page-counter').innerText"), "size")


@pytest.mark.long
def test_keys(page, run):
    rows = run[1]
    assert page.chosen == f"{rows[0].uid} · one"
    page.press("jj")
    assert page.chosen == f"{rows[2].uid} · one"
    page.press("k\ue015\ue015\ue013")  # up, down, down, up
    assert page.chosen == f"{rows[2].uid} · one"
    page.press("j" * 50)
    page.until(lambda: page.chosen == f"{rows[52].uid} · one", f"{page.chosen} after 50 x j")
    marked = "return [...document.querySelectorAll('.tabulator-selected')].map(row => row.innerText)"
    page.until(lambda: len(page.run(marked)) == 1 and rows[52].uid in page.run(marked)[0], "the row is not marked")
    page.press("w")
    assert page.left == sum(row.count != row.target for row in rows)
    page.press("w")
    assert page.left == len(rows)
    page.press("?")
    assert page.run("return document.getElementById('help').open") and "wrong answers only" in page.run(
        "return document.getElementById('help').innerText"
    )
    page.press(ESCAPE)
    page.until(lambda: not page.run("return document.getElementById('help').open"), "Escape closes the help")


@pytest.mark.long
def test_detail_says_what_the_prediction_says(page, run):
    samples, rows = run
    row = next(row for row in rows if row.model == "one" and row.target == 8)
    page.open(f"{page.driver.current_url.split('#')[0]}#{row.uid}@one")
    assert page.chosen == f"{row.uid} · one"
    detail = page.detail
    assert "8 true, 7 said (−1) ▼ too few" in detail and next(s for s in samples if s.uid == row.uid).question in detail
    bars = page.run("return [...document.querySelectorAll('.bar')].map(bar => Number(bar.dataset.chance))")
    total = sum(map(exp, row.logprobs))
    assert (
        len(bars) == 21 and max(abs(b - exp(value) / total) for b, value in zip(bars, row.logprobs, strict=True)) < 2e-5
    )
    assert f"true 8: {100 * exp(row.logprobs[8]) / total:.1f} %" in detail
    assert f"said 7: {100 * exp(row.logprobs[7]) / total:.1f} %" in detail
    marked = "return ['true', 'said'].map(name => document.querySelector('.bar.' + name).innerText.trim())"
    assert page.run(marked) == ["8", "7"]
    for name, value in row.factors.items():
        expected = value.replace("_", " ") if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        if name not in ("entity", "family"):
            assert f"{name.replace('_', ' ')}\n{expected}" in detail
    other = next(other for other in rows if other.uid == row.uid and other.model != "one")
    page.run("document.querySelector('.others button').click()")
    page.until(lambda: page.chosen == f"{row.uid} · {other.model}", "the other model's answer is not shown")
    assert not page.run("return document.querySelectorAll('.bar').length")
    assert page.run("return decodeURIComponent(location.hash)") == f"#{row.uid}@{other.model}"


@pytest.mark.long
def test_nasty_texts_are_texts(page, run):
    samples, rows = run
    for row in rows[-7:]:
        page.run("location.hash = encodeURIComponent(arguments[0])", f"{row.uid}@{row.model}")
        page.until(lambda row=row: page.chosen == f"{row.uid} · {row.model}", row.uid)
        given = json.loads(page.run("return JSON.stringify(document.querySelector('.given').textContent)"))
        assert given == row.text
        assert page.run("return document.querySelector('.given').childElementCount") == 0
    assert page.run("return document.querySelector('#detail p[dir]').textContent") == samples[-1].question
    assert NASTY[0] in page.detail and "<u>label</u>" in page.detail
    assert (
        page.run("return document.querySelectorAll('#table b b, #table u, #table img[src=x], #detail u').length") == 0
    )
    page.run("document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\" onerror=\"window.bad=1\">')")
    time.sleep(0.1)
    assert page.run("return window.bad") is None, "the policy of the page stops what were injected all the same"
    refused = page.errors()
    assert refused and all("Content Security Policy" in message for message in refused)


def test_csv_is_what_the_filters_leave(page, run):
    page.choose("target", "30")
    page.run("document.getElementById('csv').click()")
    found = page.until(lambda: list(page.downloads.glob("*.csv")), "no CSV was saved")
    with open(found[0], newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["Model"] for row in table] == ["one", "two <i>"] and [row["True"] for row in table] == ["30", "30"]
    texts = [row.text.replace("\ud83d", "\ufffd") for row in run[1] if row.target == 30]  # half a character is no UTF-8
    assert [row["Answer as given"] for row in table] == texts
    assert table[0]["uid"] == run[0][-1].uid and table[0]["Error"] == "-1" and table[0]["Result"] == "too few"
    assert table[0]["<u>label</u>"] == NASTY[0] and table[0]["Question"] == NASTY[1]


@pytest.mark.long
def test_in_a_frame_of_a_notebook(chromium, run, tmp_path):
    samples, rows = run
    html = show_browser(samples, rows, limit=20).data
    (tmp_path / "notebook.html").write_text(f"<!doctype html><body>{html}</body>", encoding="utf-8")
    assert str(samples[0].image.parent) not in html and len(html) < 250_000
    chromium.errors()
    chromium.driver.get((tmp_path / "notebook.html").as_uri())
    chromium.driver.switch_to.frame(0)
    chromium.until(lambda: chromium.run("return document.body && document.body.dataset.ready"), "the frame is empty")
    assert chromium.left == 20 and "20 of 142 answers" in chromium.run(
        "return document.querySelector('.note').innerText"
    )
    chromium.until(lambda: chromium.run("return document.querySelector('#detail img')?.naturalWidth"), "no picture")
    chromium.driver.find_element("id", "status").click()  # a frame hears keys once it has been clicked
    before = chromium.chosen
    chromium.press("j")
    assert chromium.chosen != before
    chromium.press("w")
    assert 0 < chromium.left < 20
    chromium.driver.switch_to.default_content()
    assert chromium.errors() == []


def test_only_predictions(chromium, run, tmp_path):
    chromium.open(write_browser(tmp_path / "bare.html", [], run[1][:10]).as_uri())
    assert "no picture" in chromium.detail and "not kept in this file" in chromium.detail
    assert chromium.left == 10 and chromium.errors() == []


@pytest.mark.slow
def test_seventeen_thousand_answers(chromium, run, tmp_path):
    samples, rows = run
    many_samples = [replace(samples[n % 70], uid=f"many/{n}", target=samples[n % 70].target) for n in range(17_496)]
    many = [replace(rows[n % 70], uid=f"many/{n}") for n in range(17_496)]
    path = write_browser(tmp_path / "many.html", many_samples, many, size=96, progress=False)
    start = time.monotonic()
    chromium.open(path.as_uri())
    assert time.monotonic() - start < 10 and chromium.left == 17_496
    wrong = sum(row.count != row.target for row in many)
    press = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'w', bubbles: true}));"
    milliseconds = chromium.run(f"const start = performance.now(); {press} return performance.now() - start")
    assert chromium.left == wrong and milliseconds < 3000
    assert chromium.run("return document.querySelectorAll('.tabulator-row').length") <= 100, (
        "all rows are drawn at once"
    )
    assert chromium.errors() == []
