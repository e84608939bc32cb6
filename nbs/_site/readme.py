"""Write README.md from `nbs/index.ipynb`, without Quarto: its text, its code and its text outputs, links made good.

`python nbs/_site/readme.py` writes the file; `python nbs/_site/readme.py --check` only says whether it is up to date.
"""

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(\]\()(?!https?:|mailto:|#|/)([^)\s]+)(\))")


def joined(
    text: str | list[str],  # a notebook stores text as one string or as a list of lines
) -> str:
    "Notebook text as one string."
    return text if isinstance(text, str) else "".join(text)


def split_options(
    source: str,  # of a code cell
) -> tuple[dict[str, str], str]:  # {'hide': '', 'echo': 'false', ...} and the code below the options
    "Separate the leading `#|` lines of a code cell from its code."
    lines = source.split("\n")
    options = {}
    while lines and lines[0].startswith("#|"):
        key, _, value = lines.pop(0)[2:].strip().partition(":")
        options[key.strip()] = value.strip()
    return options, "\n".join(lines).strip("\n")


def from_root(
    text: str,  # Markdown of a notebook, its links relative to nbs/
) -> str:  # the same with links relative to the repository
    "Make the links of a notebook good for a file in the root folder."

    def fix(match: re.Match) -> str:
        target = match[2]
        return match[1] + (target[3:] if target.startswith("../") else f"nbs/{target}") + match[3]

    return LINK.sub(fix, text)


def cell_text(
    cell: dict,  # of a notebook
) -> list[str]:  # pieces of Markdown, none for a hidden cell
    "One notebook cell as Markdown."
    source = joined(cell["source"]).strip("\n")
    if cell["cell_type"] == "markdown":
        return [from_root(source)]
    options, code = split_options(source)
    hidden = {"hide", "default_exp", "export"} & set(options) or options.get("include") == "false"
    if cell["cell_type"] != "code" or hidden:
        return []
    pieces = [f"```python\n{code}\n```"] if code and options.get("echo") != "false" else []
    for output in cell["outputs"] if options.get("output") != "false" else []:
        data = output.get("data", {})
        if "text/markdown" in data:
            pieces.append(from_root(joined(data["text/markdown"]).strip("\n")))
        elif text := joined(output.get("text") or data.get("text/plain", "")).strip("\n"):
            pieces.append(f"```text\n{text}\n```")
    return pieces


def readme(
    notebook: Path,  # nbs/index.ipynb
) -> str:  # Markdown, one blank line between cells
    "The README that a notebook stands for."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(piece for cell in cells for piece in cell_text(cell) if piece) + "\n"


def main(arguments: list[str] | None = None) -> int:  # 0, or 1 when --check finds the README out of date
    "Write or check README.md."
    parser = argparse.ArgumentParser(description="Write README.md from nbs/index.ipynb.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if README.md is out of date")
    check = parser.parse_args(arguments).check
    path, text = ROOT / "README.md", readme(ROOT / "nbs" / "index.ipynb")
    if check:
        same = path.read_text(encoding="utf-8") == text
        print("README.md is up to date." if same else "README.md is out of date. Run: python nbs/_site/readme.py")
        return 0 if same else 1
    path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
