"""What leads readers to a place on the site: the search index, and the page of symbols and terms."""

import html
import re
import tomllib
from collections.abc import Iterator

from bs4 import BeautifulSoup, Tag
from website_html import ASSETS, MARK, Formulas, Page

HEADINGS = ("h1", "h2", "h3")
NAMES = (
    "alpha",
    "beta",
    "epsilon",
    "eta",
    "mu",
    "nabla",
    "omega",
    "pi",
    "sigma",
    "theta",
    "varnothing",
    "propto",
    "cdot",
)
NAMES += ("sqrt", "mid", "lVert", "rVert", "int", "sum", "leftarrow", "to")
SIGNS = dict(zip(NAMES, "αβεημ∇ωπσθ∅∝·√|‖‖∫∑←→", strict=True))
ACCENTS = {"hat": "\u0302", "bar": "\u0304", "tilde": "\u0303"}
POINTER = re.compile(r"\(?(This|That|It|Its|Such|These|Then|So|Therefore|Known|Also)\b")
ABBREVIATION = re.compile(r"(?:\bal|\be\.g|\bi\.e|\beqs?|\bvs)\.$")


def readable(tex: str) -> str:
    r"""Return a formula as a line of text, for what search shows: `\sqrt{\bar\alpha_t}` becomes `√ᾱ_t`."""
    text = re.sub(r"\\[^A-Za-z]|\\(text|math\w+|operatorname|boxed|underbrace|q?quad|[Bb]ig\w?)\b", " ", tex)
    text = re.sub(r"\\frac\{([^{}]+)\}\{([^{}]+)\}", r"\1 / \2", text)
    accented = r"\\(hat|bar|tilde) ?\{?(?:\\([a-z]+)|(\w))\}?"
    text = re.sub(accented, lambda found: (SIGNS.get(found[2]) or found[3] or "") + ACCENTS[found[1]], text)
    text = re.sub(r"\\([A-Za-z]+)", lambda name: SIGNS.get(name[1], f"{name[1]} "), text)
    return " ".join(re.sub(r"[{}&]", "", text).split())


def sections(page: Page) -> Iterator[tuple[str, str, list[Tag]]]:
    """Yield anchor, heading and elements of each section of a page, up to the next heading of any level."""
    name, title, elements = "", "", []
    # Without the colours of the code and without players: they are most of the page, and hold no words. And without
    # what is said where scripts do not run: there search does not run, either.
    unsaid = r'<figure class="fmdiff-film".*?</figure>|<noscript>.*?</noscript>|<span class="\w+">|</span>'
    body = re.sub(unsaid, "", page.body, flags=re.S)
    for element in BeautifulSoup(body, "html.parser").find_all([*HEADINGS, "p", "li", "td", "pre"]):
        if element.name in HEADINGS:
            if elements or title:
                yield name, title, elements
            name, title, elements = element.get("id", ""), element.get_text(), []
        elif not element.find_parent("li"):  # which holds its paragraphs
            elements.append(element)
    yield name, title, elements


def search_index(pages: list[Page], formulas: Formulas) -> list[list[str]]:
    """Return [page title, heading, address, text, code] of each section and each term of `pages`."""

    def words(text: str) -> str:
        return " ".join(MARK.sub(lambda mark: readable(formulas.found[int(mark[1])][0]), text).split())

    index = []
    for page in pages:
        for name, title, elements in sections(page):
            texts = [part.get_text() for part in elements if "python" not in part.get("class", [])]
            code = [part.get_text() for part in elements if "python" in part.get("class", [])]
            row = [page.name, words(title), f"{page.path}#{name}", words(" ".join(texts)), words(" ".join(code))]
            index.append(row)
        for term in BeautifulSoup(page.body, "html.parser").find_all("dt", id=True) if "<dt" in page.body else []:
            text = words(term.find_next_sibling("dd").get_text())
            index.append([page.name, term.get_text(), f"{page.path}#{term['id']}", text, ""])
    return index


def sentence(element: Tag, strong: Tag) -> str:
    """Return the sentence of a paragraph that holds `strong`, as HTML with no tags but `strong` and `code`.

    The sentence before it comes along if this one begins with a word such as "This".
    """
    here = "\ue002"  # stands before the term while the text is taken apart
    strong.insert(0, here)
    text = re.sub(r"</?(?!strong|/|code)[^>]*>", "", element.decode_contents().replace("\n", " "))
    strong.contents[0].extract()
    parts = re.split(r"(?<=[.?!])\)? +(?=[^a-z])", text)
    k = next(k for k, part in enumerate(parts) if here in part)
    start, end = k, k + 1
    while start and (ABBREVIATION.search(parts[start - 1]) or (start == k and POINTER.match(parts[k]))):
        start -= 1
    while end < len(parts) and ABBREVIATION.search(parts[end - 1]):
        end += 1
    found = " ".join(parts[start:end]).replace(here, "").strip(" ;:")
    found = found.replace("(", "", 1) if found.count("(") > found.count(")") else found
    found = found.rstrip(")") if found.count(")") > found.count("(") else found
    return found if found[-1] in ".?!" else f"{found}."


def same(text: str) -> str:
    """Return a term without what may differ from place to place: capitals and kinds of dashes."""
    return text.replace("\N{EN DASH}", "-").strip().lower()


def find_term(bold: str, lessons: list, start: str) -> tuple[str, str] | None:
    """Return the first sentence with a term in bold, from the lesson `start` on, and the address of its section."""
    for lesson, parts in lessons:
        for name, title, elements in parts if lesson.number >= start else []:
            if title in ("Summary", "Exercises", "References") or name == lesson.headings[0][2]:
                continue
            for element in elements:
                for strong in element.find_all("strong"):
                    if same(strong.get_text()) == same(bold):
                        return sentence(element, strong), f"{lesson.path}#{name}"
    return None


def find_symbol(tex: str, lessons: list, formulas: Formulas) -> str | None:
    """Return the address of the first section that has a formula with this piece of TeX."""
    for lesson, parts in lessons:
        for name, _, elements in parts:
            for mark in (mark for element in elements for mark in MARK.finditer(element.get_text())):
                if tex in formulas.found[int(mark[1])][0]:
                    return f"{lesson.path}#{name}"
    return None


def place(address: str, lessons: list) -> str:
    """Return the link to a section, with the lesson's number and the heading as its words."""
    lesson = next(each for each, _ in lessons if address.startswith(each.path))
    title = next(title for _, title, name in lesson.headings if name == address.partition("#")[2])
    return f'<a href="{address}">Lesson {lesson.number}: {title}</a>'


def words_page(pages: list[Page], formulas: Formulas) -> tuple[Page, list[str]]:
    """Return the page of symbols and terms, and what words.toml names but no lesson has."""
    listed = tomllib.loads((ASSETS / "words.toml").read_text(encoding="utf-8"))
    lessons = [(page, list(sections(page))) for page in pages]
    missing, symbols, terms = [], [], []
    for tex, code, meaning, *search in listed["symbols"]:
        address = find_symbol(search[0] if search else tex, lessons, formulas)
        if address is None:
            missing.append(tex)
            continue
        code = f"<code>{code}</code>" if code else ""
        cells = [formulas.mark(tex, display=False), code, html.escape(meaning), place(address, lessons)]
        symbols.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    for entry in listed["terms"]:
        name, bold, start = (entry, entry, "") if isinstance(entry, str) else entry
        found = find_term(bold, lessons, start)
        if found is None:
            missing.append(name)
            continue
        text, address = found
        anchor = "term-" + re.sub(r"\W+", "-", name.lower()).strip("-")
        terms.append(
            (same(name), f'<dt id="{anchor}">{html.escape(name)}</dt><dd>{text} {place(address, lessons)}</dd>')
        )
    heads = [(1, "Symbols and terms", "symbols-and-terms"), (2, "Symbols", "symbols"), (2, "Terms", "terms")]
    columns = "".join(f'<th scope="col">{name}</th>' for name in ("symbol", "in the code", "meaning", "first used in"))
    body = f"""<h1 id="{heads[0][2]}">{heads[0][1]}</h1>
<p>Each line leads to the section that first uses the symbol, or that introduces the term.</p>
<h2 id="symbols">Symbols</h2>
<div class="wide"><table class="symbols">
<thead><tr>{columns}</tr></thead><tbody>{"".join(symbols)}</tbody>
</table></div>
<h2 id="terms">Terms</h2>
<p>Each term stands here with the sentence that introduces it.</p>
<dl class="terms">{"".join(line for _, line in sorted(terms))}</dl>
"""
    return Page("words.html", heads[0][1], body, heads), missing
