"""Turn Markdown, code and the saved outputs of notebooks into HTML, for `tools/website.py`.

Formulas become marks first; `Formulas.fill` replaces all marks of the site at once, by KaTeX, which runs in node.
"""

import base64
import html
import io
import itertools
import json
import posixpath
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from PIL import Image
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ASSETS = Path(__file__).parent / "website"
MODULES = ASSETS / "node_modules"  # what package-lock.json fixes, once `make site` has installed it
MARK = re.compile("\ue000(\\d+)\ue001")  # characters for private use, which no text holds
MARK_AND_POINT = re.compile(f"{MARK.pattern}([,.;:?!)]*)")
SHORT = 40  # characters of a formula that stays in one line with the comma behind it
FIGURE = re.compile(r'\s*<img alt="(?P<alt>[^"]*)" src="data:image/png;base64,(?P<png>[^"]+)"[^>]*>\s*')
ASIDES = {"<strong>Predict.": "predict", "<strong>Read.": "read", "<em>Core.": "part", "<em>Optional.": "part"}


def anchor(text: str) -> str:
    """Return the name under which GitHub links to a heading."""
    return re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-")


def plain(page: str) -> str:
    """Return the text of a piece of HTML; formulas stay marks."""
    return html.unescape(re.sub(r"<[^>]+>", "", page))


@dataclass
class Page:
    """A page of the site: its path there, its name, and what stands between header and footer."""

    path: str
    name: str
    body: str
    headings: list[tuple[int, str, str]]
    number: str = ""  # of a lesson
    row: dict = field(default_factory=dict)  # of a lesson, from the README's table


class Formulas:
    """All formulas of the site: `mark` stands for one in a page until `fill` puts its HTML there."""

    def __init__(self):
        self.found: list[tuple[str, bool]] = []

    def mark(self, tex: str, display: bool) -> str:
        """Return the mark of a formula, which `display` sets on a line of its own."""
        self.found.append((tex.strip(), display))
        return f"\ue000{len(self.found) - 1}\ue001"

    def tex(self, text: str) -> str:
        """Return a text with each mark replaced by the TeX of its formula."""
        return MARK.sub(lambda mark: self.found[int(mark[1])][0], text)

    def fill(self, pages: dict[str, str]) -> dict[str, str]:
        """Return the pages with all formulas in place; an error names the formula that KaTeX does not understand."""
        different = list(dict.fromkeys(self.found))
        command = ["node", str(ASSETS / "formulas.js")]
        done = subprocess.run(command, input=json.dumps(different), capture_output=True, text=True, encoding="utf-8")
        if done.returncode:
            raise SystemExit(f"KaTeX failed:\n{done.stderr[-2000:]}")
        rendered = dict(zip(different, json.loads(done.stdout), strict=True))

        def put(mark: re.Match) -> str:
            tex, display = self.found[int(mark[1])]
            whole = rendered[tex, display] + mark[2]
            return f'<span class="together">{whole}</span>' if mark[2] and len(tex) <= SHORT else whole

        return {name: MARK_AND_POINT.sub(put, page) for name, page in pages.items()}


class PageRenderer(IPythonRenderer):
    """Render the Markdown of one page; `headings` collects (level, HTML, anchor), for all its texts together.

    `link` returns where a link of the source leads on the site, or None if it leads nowhere.
    """

    def __init__(self, formulas: Formulas, link: Callable[[str], str | None]):
        super().__init__(escape=False)
        self.formulas, self.leads_to = formulas, link
        self.headings: list[tuple[int, str, str]] = []

    def inline_math(self, body: str) -> str:
        """Return the mark of a formula within a line."""
        return self.formulas.mark(body, display=False)

    def block_math(self, body: str) -> str:
        """Return the mark of a formula on a line of its own."""
        return self.formulas.mark(body, display=True)

    def heading(self, text: str, level: int, **attrs) -> str:
        """Return a heading with an anchor; one that occurs a second time gets a number, as on GitHub."""
        name, taken = anchor(plain(MARK.sub("", text))), [name for *_, name in self.headings]
        name = next(each for k in itertools.count() if (each := f"{name}-{k}" if k else name) not in taken)
        self.headings.append((level, text, name))
        return f'<h{level} id="{name}">{text}</h{level}>\n'

    def paragraph(self, text: str) -> str:
        """Return a paragraph; one that asks, that answers, or that says how long a section takes has a class."""
        for start, kind in ASIDES.items():
            if text.startswith(start):
                return f'<p class="{kind}">{text}</p>\n'
        return f"<p>{text}</p>\n"

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """Return a link, or its text alone."""
        target = self.leads_to(url)
        return text if target is None else f'<a href="{html.escape(target)}">{text}</a>'

    def image(self, text: str, url: str, title: str | None = None) -> str:
        """Return a picture of the folder `figures`, within the page; those of lessons are outputs of cells."""
        file = ASSETS.parents[1] / "figures" / Path(url).name
        if not url.endswith(f"figures/{file.name}") or not file.is_file():
            raise SystemExit(f"a picture in a text, {url}: put it into figures/, or make it an output of a cell")
        shown = base64.b64encode(file.read_bytes()).decode()
        return f'<img src="data:image/png;base64,{shown}" alt="{html.escape(text)}">'

    def block_code(self, code: str, info: str | None = None) -> str:
        """Return a block of code, in colours if it says that it is Python."""
        return python(code) if info == "python" else f"<pre>{html.escape(code.rstrip())}</pre>\n"

    def table(self, text: str) -> str:
        """Return a table that scrolls sideways where the page is narrow."""
        return f'<div class="wide"><table>{text}</table></div>\n'

    def render(self, source: str) -> str:
        """Return a text in Markdown as HTML."""
        return MarkdownWithMath(renderer=self).render(source)


def python(code: str) -> str:
    """Return Python code in colours."""
    return f'<pre class="python">{highlight(code.rstrip(), PythonLexer(), HtmlFormatter(nowrap=True)).rstrip()}</pre>\n'


def relative(target: str, page: str) -> str:
    """Return the address of a file of the site, with an anchor or without, as seen from a page."""
    path, hash_sign, name = target.partition("#")
    if path == page and name:
        return f"#{name}"
    return posixpath.relpath(path, posixpath.dirname(page) or ".") + hash_sign + name


def picture(png: bytes, file: str, alt: str, kept: dict[str, bytes]) -> str:
    """Keep a picture as a file of the site, beside the lesson's page; return the HTML that shows it."""
    kept[f"lessons/{file}"] = png
    width, height = Image.open(io.BytesIO(png)).size
    size = f'width="{width}" height="{height}"'
    return f'<img class="figure" src="{file}" alt="{html.escape(alt)}" {size} loading="lazy">\n'


def output(saved: dict, file: str, alt: str, kept: dict[str, bytes]) -> str:
    """Return a cell's output: a text, a picture, or HTML such as a Filmstrip. `alt` is for pictures without a text."""
    if saved["output_type"] == "stream":
        return f'<pre class="printed">{html.escape(saved["text"].rstrip())}</pre>\n'
    data = saved["data"]
    if found := FIGURE.fullmatch(data.get("text/html", "")):
        return picture(base64.b64decode(found["png"]), file, html.unescape(found["alt"]) or alt, kept)
    if "text/html" in data:
        return data["text/html"] + "\n"
    if "image/png" in data:
        own = saved.get("metadata", {}).get("image/png", {}).get("alt")
        return picture(base64.b64decode(data["image/png"]), file, own or alt, kept)
    return f'<pre class="printed">{html.escape(data["text/plain"])}</pre>\n'


def code_cell(cell: dict, outputs: list[str]) -> str:
    """Return a code cell: the code, which can be folded and which the setup cell hides at first, and its outputs."""
    lines = len(cell["source"].splitlines())
    setup = "setup" in cell["metadata"].get("tags", [])
    name, state = ("Setup", ' data-setup="yes"') if setup else ("Code", " open")
    code = f"<summary>{name}, {lines} line{'s' * (lines != 1)}</summary>\n{python(cell['source'])}"
    shown = f'<div class="output">{"".join(outputs)}</div>\n' if outputs else ""
    return f'<div class="cell" id="{cell["id"]}"><details class="code"{state}>{code}</details>\n{shown}</div>\n'
