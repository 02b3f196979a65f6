"""Write the series as a folder of pages: `make site`.

python tools/website.py [FOLDER]     by default site

The pages load nothing from elsewhere. They need a server for plain files or none: they also work from a disk. The build
needs node and npm, for the formulas. All words and numbers come from README, docs and lessons.
"""

import html
import json
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from string import Template

import colab
import nbformat
from website_draw import draw_page
from website_front import costs, front_page, lesson_rows, readme_parts
from website_html import ASSETS, MARK, MODULES, Formulas, Page, PageRenderer, code_cell, output, plain, relative
from website_words import search_index, words_page

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TEMPLATE = Template((ASSETS / "page.html").read_text(encoding="utf-8"))
SCRIPTS = ("style.css", "page.js", "search.js", "icon.svg")
SEARCH = """<h1 id="search">Search</h1>
<form class="search" action="search.html"><label>Words <input type="search" name="q" autocomplete="off"></label>
<button>Search</button></form>
<p role="status" id="count"><noscript>Search needs JavaScript.</noscript></p>
<ol id="results"></ol>
<script src="assets/search-index.js"></script>
<script src="assets/search.js"></script>
"""


def page_paths(rows: list[dict[str, str]]) -> dict[str, str]:
    """Return the path on the site of each file of the repository that becomes a page."""
    texts = [*ROOT.glob("docs/*.md"), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks/README.md"]
    paths = {"README.md": "index.html"} | {f"notebooks/{r['file']}.ipynb": f"lessons/{r['file']}.html" for r in rows}
    for text in sorted(texts):
        name = text.stem.lower() if text.stem != "README" else text.parent.name
        paths[text.relative_to(ROOT).as_posix()] = f"docs/{name}.html"
    return paths


def find_link(source: str, page: str, paths: dict[str, str]) -> Callable[[str], str | None]:
    """Return where links of a file lead from its page: to a page, and else to the repository, if it has an address."""

    def leads_to(url: str) -> str | None:
        file, _, name = url.partition("#")
        if re.match(r"https?:", url):
            return url
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), file)) if file else source
        if path in paths:
            return relative(f"{paths[path]}#{name}" if name else paths[path], page)
        repo = colab.repository()
        return f"https://github.com/{repo}/blob/main/{path}" if repo else None

    return leads_to


def lesson_page(row: dict, paths: dict, formulas: Formulas, kept: dict[str, bytes]) -> Page:
    """Return a lesson as a page; its pictures, and the notebook without outputs, join `kept`."""
    source, number = f"notebooks/{row['file']}.ipynb", row["number"]
    nb = nbformat.read(ROOT / source, as_version=4)
    texts = PageRenderer(formulas, find_link(source, paths[source], paths))
    parts = []
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            text = texts.render(colab.BADGE_LINE.sub("", cell.source))
            parts.append(f'<div class="text" id="{cell.id}">{text}</div>\n')
            continue
        alt = formulas.tex(f"Figure in the section {plain(texts.headings[-1][1])}")
        names = [f"{number}-{cell.id}{f'-{k}' if k else ''}.png" for k in range(len(cell.outputs))]
        shown = [output(each, name, alt, kept) for each, name in zip(cell.outputs, names, strict=True)]
        row.setdefault("films", []).extend(each for each in shown if "fmdiff-film" in each)
        if "cover" in cell.metadata.get("tags", []):
            row["cover"] = next(kept[f"lessons/{name}"] for name in names if f"lessons/{name}" in kept)
        parts.append(code_cell(cell, shown))
        cell.outputs = []
    kept[f"lessons/{row['file']}.ipynb"] = nbformat.writes(nb).encode()
    body = "".join(parts).replace("</h1>\n", f"</h1>\n{lesson_line(row)}", 1)
    return Page(paths[source], f"{number} {row['title']}", body, texts.headings, number, row)


def lesson_line(row: dict) -> str:
    """Return the line under a lesson's title: how long it takes, and how to run it."""
    links = [f'<a href="{row["file"]}.ipynb" download>Download the notebook</a>']
    if badge := colab.badge(colab.repository(), row["file"]):
        links.append(f'<a href="{badge.strip()[:-1].rpartition("(")[2]}">Open in Colab</a>')
    links.append('<a href="../index.html#start">How to start</a>')
    return f'<p class="line"><span>{costs(row)}</span> {" ".join(links)}</p>\n'


def text_page(source: str, paths: dict, formulas: Formulas) -> Page:
    """Return a text of the repository as a page."""
    texts = PageRenderer(formulas, find_link(source, paths[source], paths))
    body = texts.render((ROOT / source).read_text(encoding="utf-8"))
    return Page(paths[source], plain(texts.headings[0][1]), body, texts.headings)


def neighbours(page: Page, lessons: list[Page]) -> str:
    """Return the links to the previous and the next lesson."""
    if not page.number:
        return ""
    k, links = lessons.index(page), []
    for name, rel, other in (("Previous", "prev", k - 1), ("Next", "next", k + 1)):
        if 0 <= other < len(lessons):
            words = f"<span>{name}</span> {lessons[other].name}"
            links.append(f'<a rel="{rel}" href="{relative(lessons[other].path, page.path)}">{words}</a>')
    return f'<nav class="neighbours" aria-label="Previous and next lesson">{"".join(links)}</nav>'


def whole(page: Page, title: str, lessons: list[Page], links: dict[str, str]) -> str:
    """Return the HTML of a page with head, header and contents. `title` names the site, `links` lead to its parts."""
    root = relative("index.html", page.path).removesuffix("index.html")
    entries = [f'<li class="level{level}"><a href="#{name}">{text}</a></li>' for level, text, name in page.headings[1:]]
    here = ' aria-current="page"'
    return TEMPLATE.substitute(
        title=html.escape(page.name if page.name == title else f"{page.name} · {title}"),
        home=title,
        root=root,
        formulas=f'<link rel="stylesheet" href="{root}assets/katex/katex.min.css">' if MARK.search(page.body) else "",
        kind="lesson" if page.number else "text",
        links="".join(
            f'<a href="{root}{path}"{here if path == page.path else ""}>{name}</a>' for path, name in links.items()
        ),
        entries="".join(entries),
        hidden="" if len(entries) > 2 and page.path != "index.html" else " hidden",
        body=page.body,
        neighbours=neighbours(page, lessons),
    )


def all_pages(formulas: Formulas, kept: dict[str, bytes]) -> dict[str, str]:
    """Return the HTML of all pages by path, with marks for formulas; other files of the site join `kept`."""
    parts = readme_parts(README.read_text(encoding="utf-8"))
    rows = lesson_rows(parts["Lessons"])
    paths = page_paths(rows)
    lessons = [lesson_page(row, paths, formulas, kept) for row in rows]
    texts = PageRenderer(formulas, find_link("README.md", "index.html", paths))
    front = Page("index.html", "", front_page(parts, lessons, texts, kept), texts.headings)
    front.name = plain(front.headings[0][1])
    sources = [source for source in paths if source.endswith(".md") and source != "README.md"]
    documents = [text_page(source, paths, formulas) for source in sources]
    words, missing = words_page(lessons, formulas)
    found = [*lessons, *documents, words, draw_page(kept)]  # by search; the front page has the README's words alone
    pages = [front, *found, Page("search.html", "Search", SEARCH, [(1, "Search", "search")])]
    links = {"index.html#lessons": "Lessons", "words.html": "Symbols and terms", "draw.html": "Draw"}
    if missing:
        print(f"In words.toml, but in no lesson: {', '.join(missing)}")
    index = search_index(found, formulas)
    kept["assets/search-index.js"] = f"const searchIndex = {json.dumps(index, ensure_ascii=False)};\n".encode()
    return {page.path: whole(page, front.name, lessons, links) for page in pages}


def install_modules() -> None:
    """Install what package-lock.json fixes, unless it is there already."""
    packages = json.loads((ASSETS / "package-lock.json").read_text(encoding="utf-8"))["packages"]

    def is_there(name: str) -> bool:
        file = ASSETS / name / "package.json"
        return file.exists() and json.loads(file.read_text(encoding="utf-8"))["version"] == packages[name]["version"]

    if all(map(is_there, filter(None, packages))):
        return
    if not all(map(shutil.which, ("node", "npm"))):
        raise SystemExit("The site needs node and npm: install them, for example by `apt-get install nodejs npm`.")
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"], cwd=ASSETS, check=True)


def build(target: Path) -> None:
    """Write the site into a folder, in place of an earlier one. A folder with anything else in it is refused."""
    if target.exists() and any(target.iterdir()) and not (target / "assets/page.js").exists():
        raise SystemExit(f"{target} holds other things than a site: name an empty or a new folder")
    install_modules()
    formulas, kept = Formulas(), {}
    # First what marks the folder as a site, so that a build that is stopped can be done again.
    files = {f"assets/{name}": (ASSETS / name).read_bytes() for name in ("page.js", *SCRIPTS)}
    files |= {path: page.encode() for path, page in formulas.fill(all_pages(formulas, kept)).items()} | kept
    katex = MODULES / "katex/dist"
    css = (katex / "katex.min.css").read_text(encoding="utf-8")
    css = re.sub(r',url\([^)]*\.(woff|ttf)\) format\("\w+"\)', "", css)  # fonts for browsers before 2016
    files["assets/katex/katex.min.css"] = css.encode()
    files |= {f"assets/katex/{name}": (katex / name).read_bytes() for name in re.findall(r"url\(([^)]+)\)", css)}
    shutil.rmtree(target, ignore_errors=True)
    for path, content in files.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_bytes(content)
    pages = sum(path.endswith(".html") for path in files)
    print(f"{target}: {pages} pages, {sum(map(len, files.values())) / 1e6:.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        raise SystemExit(f"expected at most one argument, the folder to write; got {sys.argv[1:]}")
    build(Path(sys.argv[1] if sys.argv[1:] else "site"))
