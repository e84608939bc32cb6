"The docs site is built and opened in a browser: every page loads, every link leads somewhere, every figure is shown."

import html
import json
import re
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
from _site import docs
from chromium import open_chromium
from execnb.nbio import dict2nb
from fastcore.basics import AttrDict

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = re.compile(r"(@import|url\()\s*(url\()?['\"]?(https?:)?//")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    return docs.build(ROOT, tmp_path_factory.mktemp("docs") / "site")


class Page(HTMLParser):
    "What a page links to, what it loads, and the anchors it has."

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.links, self.loads, self.anchors, self.unseen = path, [], [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values[key] for key in ("id", "name") if values.get(key)}
        if tag == "a" and values.get("href") is not None:
            self.links.append(values["href"])
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload", "modulepreload"):
            self.loads.append(values["href"])
        if tag == "img" and not (values.get("alt") or "").strip():
            self.unseen.append(values.get("src", "")[:60])
        if tag in ("script", "img", "iframe", "source", "video") and values.get("src"):
            self.loads.append(values["src"])


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def target(page: Page, link: str) -> tuple[Path, str]:
    "The file and the anchor that a relative link leads to."
    parts = urlsplit(link)
    path = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
    return (path / "index.html" if path.is_dir() else path), unquote(parts.fragment)


def page_of(notebook: Path) -> str:
    "Where a notebook's page is on the site."
    shelf = "nbs/guides" if notebook.parent.name == "guides" else "nbs"
    return f"{shelf}/{docs.page_name(notebook)}.html"


def test_every_notebook_has_a_page(site):
    for notebook in docs.notebooks(ROOT):
        assert (site / page_of(notebook)).exists(), f"no page for {notebook.name}"
    assert "nbs/index.html" in (site / "index.html").read_text()


def test_every_link_leads_somewhere(pages):
    wrong = []
    for page in pages.values():
        for link in page.links:
            if urlsplit(link).scheme in ("http", "https", "mailto", "data"):
                continue
            path, anchor = target(page, link)
            if not path.exists():
                wrong.append(f"{page.path.name}: {link} (no such page)")
            elif anchor and path in pages and anchor not in pages[path].anchors:
                wrong.append(f"{page.path.name}: {link} (no such place on that page)")
    assert not wrong, "\n".join(wrong)


def test_nothing_is_fetched_from_elsewhere(pages, site):
    sheets = list(site.rglob("*.css"))
    wrong = [f"{sheet.name} imports a style from the net" for sheet in sheets if ELSEWHERE.search(sheet.read_text())]
    assert sheets
    for page in pages.values():
        for load in page.loads:
            scheme = urlsplit(load).scheme
            if scheme in ("http", "https") or load.startswith("//"):
                wrong.append(f"{page.path.name} loads {load}; for maths that means $...$: write it in words or code")
            elif scheme != "data" and not target(page, load)[0].exists():
                wrong.append(f"{page.path.name} loads {load}, which does not exist")
    assert not wrong, "\n".join(wrong)


def test_every_picture_has_a_text(pages):
    wrong = [f"{page.path.name}: {source}" for page in pages.values() for source in page.unseen]
    assert not wrong, "pictures without alt:\n" + "\n".join(wrong)


def letters(text: str) -> str:
    "Letters and digits alone, whatever is a link, code, a heading or the number of an item."
    return re.sub(r"\W|_", "", re.sub(r"\]\([^)]*\)|^```\w*|^\d+\. ", "", text, flags=re.MULTILINE))


@pytest.mark.parametrize("notebook", docs.notebooks(ROOT), ids=lambda path: path.stem)
def test_a_page_says_all_that_its_notebook_says(notebook, site):
    "Also what stands in one cell with the title, which nbdev makes the page's head."
    folder = site / "nbs" / ("guides" if notebook.parent.name == "guides" else "")
    page = (folder / f"{docs.page_name(notebook)}.html").read_text(encoding="utf-8")
    shown = letters(html.unescape(re.sub(r"<[^>]+>", "", page)))
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    said = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    lost = [part for text in said for part in text.split("\n\n") if letters(part) not in shown]
    assert not lost, f"the page does not say: {lost[0][:200]}"


def test_what_stands_below_a_title_is_kept():
    text = "# evaluate\n\n> Ask.\n> Twice.\n\n```sh\n# a comment\n```\n\n- not: yaml"
    nb = dict2nb({"cells": [{"cell_type": "markdown", "source": text, "outputs": []}]})
    docs.keep_introduction(nb)
    assert [cell.source for cell in nb.cells] == [text[:28].strip(), text[28:].strip()]
    for whole in ("# evaluate", "# evaluate\n\n> Ask.", "No title.\n\n# Later"):
        nb = dict2nb({"cells": [{"cell_type": "markdown", "source": whole, "outputs": []}]})
        docs.keep_introduction(nb)
        assert [cell.source for cell in nb.cells] == [whole]


def test_a_picture_is_described_by_what_it_draws_or_by_the_sentence_before():
    text = "# Head\n\nIt *counts*. Wrong ones\nare `framed`, as in [room](a.ipynb#b), at 1.5 of 2.\n\n```\nx\n```"
    assert docs.last_sentence(text) == "Wrong ones are framed, as in room, at 1.5 of 2."
    assert docs.last_sentence("## What it looks like") == "What it looks like" and docs.last_sentence("") == "Figure"
    assert docs.last_sentence("One has a sentence before it. And on twins:").startswith("One has")
    assert docs.last_sentence("Say.\n- one\n- `two` of a list, with words enough to stand").startswith("two of a")
    assert docs.drawings(ROOT)["plot_gap"].startswith("Both accuracies of each count")

    def alts(source: str, *outputs: dict) -> list[str]:
        cells = [("markdown", "## All of `it`\n\nA sentence that is long enough for it:"), ("code", source)]
        nb = dict2nb({"cells": [{"cell_type": kind, "source": text, "outputs": []} for kind, text in cells]})
        nb.cells[1]["outputs"] = [AttrDict(output_type="display_data", data=dict(data)) for data in outputs]
        docs.describe_figures(nb, {"plot_gap": "The gap."})
        shown = ["".join(output.data.get("text/html", "")) for output in nb.cells[1].outputs]
        assert all('src="data:image/png;base64,QUJD"' in text for text in shown if text)
        return [re.search('alt="(.*)"', text)[1] for text in shown if text]

    picture, heading = {"image/png": "QUJD\n"}, {"text/markdown": "### Balanced\n\nMuch."}
    assert alts('plot_gap(x, title="Bars <b>")', picture) == ["The gap. Bars &lt;b&gt;"]
    assert alts("sheet()", picture) == ["A sentence that is long enough for it"]
    assert alts("plot_gap(x)", picture) == ["The gap. A sentence that is long enough for it"]
    assert alts("plot_gap(x)", picture, heading, picture) == [
        "All of it (1 of 2)",
        "Balanced (2 of 2)",
    ]


def test_names_in_backticks_are_links(pages, site):
    core = pages[site / "nbs" / "core.html"]
    assert any(target(core, link)[1] == "sample" for link in core.links)
    others = [page for page in pages.values() if page.path.stem not in ("core", "index")]
    places = [target(page, link) for page in others for link in page.links if not urlsplit(link).scheme]
    assert (core.path, "sample") in places, "no page links to `Sample`"


def test_pages_show_the_code_that_their_notebooks_export(pages, site):
    text = (site / "nbs" / "core.html").read_text(encoding="utf-8")
    assert "Source of Sample" in text and 'id="registry"' in text and "default_exp" not in text


def test_names_are_linked_outside_code_only():
    places = {"Sample": "core.ipynb#sample"}
    text = "A `Sample` or `Sample()`, [`Sample`](x), `other`.\n\n```\n`Sample`\n```\n\n## `Sample`"
    linked = docs.link_names(text, places)
    assert linked.startswith(
        "A [`Sample`](core.ipynb#sample) or [`Sample()`](core.ipynb#sample), [`Sample`](x), `other`."
    )
    assert linked.endswith("\n\n```\n`Sample`\n```\n\n## `Sample`")


def test_links_between_notebooks_and_files():
    text = "[a](1_data/10_core.ipynb#b) [c](../CHANGELOG.md) [d](../LICENSE) [e](https://example.org/1_x.ipynb)"
    expected = "[a](core.ipynb#b) [c](changelog.md) [d](S/LICENSE) [e](https://example.org/1_x.ipynb)"
    assert docs.fix_links(text, "S") == expected
    text = "[a](12_stimuli.ipynb) [b](../3_states/32_probing.ipynb#c) [d](../evaluate.ipynb) [e](../../LICENSE) [f](#g)"
    expected = "[a](stimuli.ipynb) [b](probing.ipynb#c) [d](evaluate.ipynb) [e](S/LICENSE) [f](#g)"
    assert docs.fix_links(text, "S", "nbs/1_data") == expected
    text = "[a](../1_data/10_core.ipynb#b) [c](../../CHANGELOG.md) [e](../evaluate.ipynb) [f](extend.ipynb)"
    expected = "[a](../core.ipynb#b) [c](../changelog.md) [e](../evaluate.ipynb) [f](extend.ipynb)"
    assert docs.fix_links(text, "S", "nbs/guides") == expected
    text = "[a](nbs/1_data/10_core.ipynb) [b](tests/) ![c](nbs/images/d.svg)"
    assert docs.fix_links(text, "S", "") == "[a](core.ipynb) [b](S/tests) ![c](images/d.svg)"


def test_guides_link_to_rooms_and_names(pages, site):
    for guide in (site / "nbs" / "guides").glob("*.html"):
        places = [target(pages[guide], link)[0] for link in pages[guide].links if not urlsplit(link).scheme]
        assert site / "nbs" / "probing.html" in places, f"{guide.name} links to no name of room 'probing'"


def test_captioned_figures_are_numbered_and_referred_to():
    first = {"cell_type": "code", "source": "#| label: fig-b\n#| fig-cap: Two bars\nplot()"}
    second = {"cell_type": "code", "source": '#| fig-cap: "Three"\nplot()'}
    text = {"cell_type": "markdown", "source": "See @fig-b."}
    docs.number_figures({"cells": [text, first, second]})
    assert text["source"] == "See [Figure 1](#fig-b)."
    assert '#| fig-cap: "Figure 1: Two bars"' in first["source"] and '"Figure 2: Three"' in second["source"]


def test_signature_is_what_is_written():
    source = (
        '@dataclass\nclass A:\n    "One."\n\n    x: int  # how many\n\n    def go(self) -> int:\n        "Goes."\n'
        '\n\ndef f(\n    a: int,  # first\n) -> A:  # best\n    "Does."\n    return A(a)'
    )
    entries = docs.reference(source, {})
    assert (
        '@dataclass\nclass A:\n    x: int  # how many\n    def go(self) -> int:\n        "Goes."\n```' in entries["A"]
    )
    assert "def f(\n    a: int,  # first\n) -> A:  # best\n```\n\nDoes." in entries["f"] and "A.go" in entries


def shown_images(notebook: Path) -> int:
    "How many pictures a notebook's visible cells have saved."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    visible = [cell for cell in cells if cell["cell_type"] == "code" and "#| hide\n" not in "".join(cell["source"])]
    outputs = [output.get("data", {}) for cell in visible for output in cell["outputs"]]
    return sum(bool({"image/png", "image/jpeg"} & set(data)) and "text/html" not in data for data in outputs)


class Quiet(SimpleHTTPRequestHandler):
    "Serves the site and keeps what was asked for in vain."

    missing: list = []

    def log_message(self, *_):
        pass

    def send_error(self, code, message=None, explain=None):
        self.missing.append(f"{code} {self.path}")
        super().send_error(code, message, explain)


@pytest.fixture(scope="module")
def address(site):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with open_chromium("the site") as driver:
        yield driver


LOOK = """
const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
const images = [...document.querySelectorAll('main img')];
const sidebar = document.querySelector('#quarto-sidebar');
return {title: document.title, heading: document.querySelectorAll('h1').length, wide: wide,
        sidebar: sidebar ? sidebar.querySelectorAll('a').length : 0, images: images.length,
        broken: images.filter(image => !image.complete || image.naturalWidth == 0 || image.width == 0).length};
"""


@pytest.mark.slow
def test_pages_in_a_browser(browser, address, site, pages):
    figures = {page_of(path): shown_images(path) for path in docs.notebooks(ROOT)}
    assert figures["nbs/guides/tutorial.html"] >= 4
    figures["nbs/index.html"] += 1  # the picture that explains the project
    wrong = []
    for path in pages:
        name = path.relative_to(site).as_posix()
        browser.get(f"{address}/{name}")
        found = browser.execute_script(LOOK)
        errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        wrong += [f"{name}: console error: {error}" for error in errors]
        if name == "index.html":
            continue
        if not found["title"] or found["heading"] != 1:
            wrong.append(f"{name}: title {found['title']!r}, {found['heading']} first-level headings, expected one")
        if found["sidebar"] < 10:
            wrong.append(f"{name}: no sidebar")
        if found["broken"]:
            wrong.append(f"{name}: {found['broken']} of {found['images']} images are not shown")
        if found["images"] < figures.get(name, 0):
            wrong.append(f"{name}: shows {found['images']} images, the notebook has {figures[name]}")
        if found["wide"] > 1:
            wrong.append(f"{name}: {found['wide']} pixels wider than the window")
    wrong += [f"asked for in vain: {request}" for request in Quiet.missing]
    assert not wrong, "\n".join(wrong)


def test_start_page_and_navigation(browser, address):
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(f"{address}/")
    WebDriverWait(browser, 10).until(lambda driver: driver.current_url.endswith("/nbs/index.html"))
    browser.get(f"{address}/nbs/core.html")
    sections = browser.execute_script(
        "return [...document.querySelectorAll('#quarto-sidebar .sidebar-item-section > .sidebar-item-container')]"
        ".map(item => item.innerText.trim())"
    )
    groups = ["Data", "Answers", "States", "Diagnosis", "Paper", "Running", "Tiny models"]
    assert [name for name in sections if name] == ["Guides", "Commands", *groups, "Project"]
    here = browser.execute_script("return document.querySelector('#quarto-sidebar a.active').innerText.trim()")
    assert here == "core"


def test_benchmarks_are_one_page_whose_sections_can_be_linked(pages, site):
    text = docs.benchmarks_page(ROOT / "tests" / "benchmarks")
    assert text.startswith("---\ntitle: Benchmarks\n") and "\n# " not in text
    stems = {path.stem for path in (ROOT / "tests" / "benchmarks").glob("*.md")}
    assert stems and stems <= pages[site / "nbs" / "benchmarks.html"].anchors
    links = {
        "x](../tests/benchmarks/twins.md)": "x](benchmarks.md#twins)",
        "x](../tests/benchmarks/)": "x](benchmarks.md)",
    }
    for link, expected in links.items():
        assert docs.fix_links(link, "S") == expected
    assert docs.fix_links("x](../../tests/benchmarks/twins.md)", "S", "nbs/guides") == "x](../benchmarks.md#twins)"


def test_bibtex_has_project_and_paper():
    import yaml

    text = docs.bibtex(yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8")))
    assert text.count("\n@") == 1 and text.startswith("@software{vlm_counting,") and text.count("{") == text.count("}")
    assert "Alghisi, Simone and Roccabruna, Gabriel" in text and "arXiv:2510.19555" in text
    assert text in docs.page_text(ROOT / "CITATION.cff")
