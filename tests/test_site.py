"""The site that `make site` writes: its links and texts; and in a browser, to which no other host answers."""

import functools
import itertools
import json
import posixpath
import re
import shutil
from importlib.util import find_spec
from urllib.parse import unquote

import colab
import nbformat
import pytest
import website
import website_html
import website_words
from browser import CHROMIUM, chromium, visitor
from bs4 import BeautifulSoup

AXE = website.MODULES / "axe-core/axe.min.js"
PATHS = sorted(
    website.page_paths(website.lesson_rows(website.readme_parts(website.README.read_text("utf-8"))["Lessons"])).values()
)
PATHS += ["words.html", "search.html", "draw.html"]
LESSONS = [path for path in PATHS if path.startswith("lessons/")]
SERIOUS = """async options => {
  const { violations } = await axe.run(document, { resultTypes: ["violations"], ...options });
  const serious = violations.filter(each => ["serious", "critical"].includes(each.impact));
  return serious.map(each => `${each.id}: ${each.nodes.slice(0, 3).map(node => node.html.slice(0, 200)).join(" ")}`);
}"""
# Colours of code and parts of formulas are most of a lesson's elements: the first six of each stand for all.
THIN = """() => {
  const rest = kind => [...document.querySelectorAll(kind)].slice(6);
  rest("pre.python").forEach(code => { code.textContent = code.textContent; });
  rest(".katex").forEach(formula => { formula.textContent = "formula"; });
}"""

needs_node = pytest.mark.skipif(
    not (shutil.which("node") and AXE.exists() and find_spec("onnxscript")),
    reason="needs node, npm, the dependency group `site`, and `make site`, which installs KaTeX and axe",
)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


@functools.cache
def soup(file):
    """A page, parsed once, without the tags within formulas and code, which are most of it."""
    text = re.sub(r"</?span[^>]*>|<math.*?</math>|<script>.*?</script>", "", file.read_text("utf-8"), flags=re.S)
    return BeautifulSoup(text, "html.parser")


def is_outside(address):
    return bool(re.match(r"[a-z]+:|//", address))


@needs_node
def test_each_link_and_anchor_leads_somewhere_on_the_site(site):
    assert sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html")) == sorted(PATHS)
    names = {path: [tag["id"] for tag in soup(site / path).find_all(id=True)] for path in PATHS}
    for path in PATHS:
        assert len(names[path]) == len(set(names[path])), f"{path}: an id stands twice"
        tags = soup(site / path).find_all(["a", "link", "script", "img", "form"])
        for address in [tag.get("href") or tag.get("src") or tag.get("action") for tag in tags]:
            if not address or is_outside(address):
                continue
            target, _, name = unquote(address).partition("#")
            file = posixpath.normpath(posixpath.join(posixpath.dirname(path), target)) if target else path
            assert (site / file).is_file(), f"{path}: {address}"
            assert not name or name in names[file], f"{path}: {address}"


@needs_node
def test_nothing_is_loaded_from_elsewhere_and_no_page_names_a_machine(site):
    for path in PATHS:
        for tag in soup(site / path).find_all(src=True) + soup(site / path).find_all("link"):
            address = tag.get("src") or tag["href"]
            assert address.startswith("data:image/") or not is_outside(address), f"{path}: {address[:80]}"
    for file in {*site.rglob("*.css"), *site.rglob("*.js")} - {site / "assets/search-index.js"}:  # which is data
        text = file.read_text(encoding="utf-8")
        own = r"fetch\(new URL\(path, import\.meta\.url\)\)"  # what lies beside the script
        assert not re.search(
            rf"@import|url\(['\"]?(\w+:|//)|(?!{own})\bfetch\(|XMLHttpRequest|https?://(?!www\.w3\.org/)", text
        ), file
    for file in [*site.rglob("*.html"), site / "assets/search-index.js"]:
        text = re.sub(r"data:image/png;base64,[\w+/=]+", "", file.read_text(encoding="utf-8"))
        assert not re.search(r"/(home|root|work|tmp|Users)/\w", text), file


@needs_node
def test_each_picture_has_a_text_and_only_the_covers_on_the_cards_are_decoration(site):
    for path in PATHS:
        for image in soup(site / path).find_all("img"):
            decoration = path == "index.html" and image.find_parent(class_="lessons")
            assert bool(image.get("alt")) != bool(decoration), f"{path}: {str(image)[:100]}"


@needs_node
def test_headings_are_in_order_below_one_title(site):
    for path in PATHS:
        levels = [int(tag.name[1]) for tag in soup(site / path).find_all(re.compile("^h[1-6]$"))]
        assert levels[0] == 1 and levels.count(1) == 1, path
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), path


@needs_node
def test_lessons_are_chained_and_can_be_downloaded_without_outputs(site):
    for before, after in itertools.pairwise(LESSONS):
        assert soup(site / before).find("a", rel="next")["href"] == posixpath.basename(after)
        assert soup(site / after).find("a", rel="prev")["href"] == posixpath.basename(before)
    for path in LESSONS:
        nb = nbformat.read(
            site / soup(site / path).find("a", download=True)["href"].join(["lessons/", ""]), as_version=4
        )
        nbformat.validate(nb)
        assert not any(cell.get("outputs") for cell in nb.cells)


@needs_node
def test_the_front_page_is_small_and_shows_every_lesson(site):
    page = soup(site / "index.html")
    parts = {tag.get("src") or tag["href"] for tag in page.find_all(src=True) + page.find_all("link")}
    files = [site / part for part in parts if not part.startswith("data:")]
    assert sum(file.stat().st_size for file in [site / "index.html", *files]) < 500_000
    assert [link["href"] for link in page.select(".lessons a")] == LESSONS


@needs_node
def test_search_knows_each_section_of_each_lesson_and_of_the_page_that_draws(site):
    script = (site / "assets/search-index.js").read_text(encoding="utf-8")
    index = json.loads(script.removeprefix("const searchIndex = ").rstrip(";\n"))
    addresses = {address for _, _, address, *_ in index}
    for path in [*LESSONS, "draw.html"]:
        for heading in soup(site / path).select("main :is(h1, h2, h3)"):
            assert f"{path}#{heading['id']}" in addresses
    assert not any("JavaScript, which is switched off" in row[3] for row in index)
    index = [row for row in index if not row[2].startswith("docs/")]  # which name folders of Windows
    assert not any(re.search(r"[\ue000-\ue00f]|\\[a-z]", text) for row in index for text in row[:4])


@needs_node
def test_the_header_of_each_page_leads_to_lessons_terms_and_the_page_that_draws(site):
    for path in PATHS:
        links = [link["href"] for link in soup(site / path).select('nav[aria-label="Site"] a')]
        found = [posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) for link in links]
        assert found == ["index.html#lessons", "words.html", "draw.html"], path


@needs_node
def test_symbols_and_terms_are_found_where_lessons_introduce_them(site):
    listed = website_words.tomllib.loads((website.ASSETS / "words.toml").read_text(encoding="utf-8"))
    page = soup(site / "words.html")
    found = len(page.select(".symbols tbody tr")) + len(page.select(".terms dt"))
    assert found >= 0.8 * sum(map(len, listed.values())), "update words.toml; `make site` says what is not found"
    assert all(entry.strong for entry in page.select(".terms dd"))


@needs_node
def test_no_folder_with_other_things_is_overwritten(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(SystemExit, match="other things than a site"):
        website.build(tmp_path)
    assert (tmp_path / "mine.txt").exists()


@needs_node
def test_a_formula_that_katex_does_not_know_is_named():
    formulas = website_html.Formulas()
    page = formulas.mark(r"\unknown_t", display=False)
    with pytest.raises(SystemExit, match=r"KaTeX failed[\s\S]*unknown"):
        formulas.fill({"page": page})


PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


@pytest.mark.parametrize(
    ("data", "metadata", "expected"),
    [
        ({"image/png": PIXEL}, {}, "the section"),
        ({"image/png": PIXEL}, {"image/png": {"alt": "two <curves>"}}, "two &lt;curves&gt;"),
        (
            {"text/html": f'<img alt="two &lt;curves&gt;" src="data:image/png;base64,{PIXEL}">'},
            {},
            "two &lt;curves&gt;",
        ),
    ],
)
def test_a_picture_keeps_its_text_wherever_the_notebook_has_it(data, metadata, expected):
    kept, saved = {}, {"output_type": "display_data", "data": data, "metadata": metadata}
    shown = website_html.output(saved, "a.png", "the section", kept)
    assert f'src="a.png" alt="{expected}" width="1" height="1"' in shown
    assert kept.keys() == {"lessons/a.png"} and kept["lessons/a.png"].startswith(b"\x89PNG")


def test_a_picture_in_a_text_is_within_the_page_and_one_from_elsewhere_is_refused():
    renderer = website_html.PageRenderer(website_html.Formulas(), str)
    shown = renderer.image("two <shirts>", "../figures/01_forward_noising.png")
    assert shown.startswith('<img src="data:image/png;base64,iVBOR') and 'alt="two &lt;shirts&gt;"' in shown
    for url in ("https://example.org/figures/01_forward_noising.png?", "figures/none.png", "../data/README.md"):
        with pytest.raises(SystemExit, match="a picture in a text"):
            renderer.image("a shirt", url)


def test_links_lead_to_pages_else_to_the_repository_else_nowhere(monkeypatch):
    paths = {"notebooks/01_a.ipynb": "lessons/01_a.html", "docs/b.md": "docs/b.html"}
    leads_to = website.find_link("notebooks/01_a.ipynb", "lessons/01_a.html", paths)
    monkeypatch.setattr(colab, "repository", lambda: "")
    assert leads_to("../docs/b.md#c-d") == "../docs/b.html#c-d"
    assert leads_to("#c") == "#c" and leads_to("https://example.org/") == "https://example.org/"
    assert leads_to("../LICENSE") is None
    monkeypatch.setattr(colab, "repository", lambda: "ada/diffusion")
    assert leads_to("../LICENSE") == "https://github.com/ada/diffusion/blob/main/LICENSE"


def test_a_lesson_opens_in_colab_once_there_is_an_address(monkeypatch):
    row = {"file": "01_a", "reading": "5 min", "Run All": "10 s"}
    monkeypatch.setattr(colab, "repository", lambda: "")
    assert "Colab" not in website.lesson_line(row)
    monkeypatch.setattr(colab, "repository", lambda: "ada/diffusion")
    address = "https://colab.research.google.com/github/ada/diffusion/blob/main/notebooks/01_a.ipynb"
    assert f'<a href="{address}">Open in Colab</a>' in website.lesson_line(row)


@pytest.mark.parametrize(
    ("tex", "text"),
    [
        (r"\sqrt{\bar\alpha_t}\,x_0", "√\u03b1\u0304_t x_0"),
        (r"\hat x_0", "x\u0302_0"),
        (r"\frac{1}{2}\lVert x \rVert^2", "1 / 2‖ x ‖^2"),
        (r"\mathcal N(0, I)", "N(0, I)"),
    ],
)
def test_search_shows_a_formula_as_text(tex, text):
    assert website_words.readable(tex) == text


@pytest.mark.parametrize(
    ("paragraph", "expected"),
    [
        (
            "One. Two (Ho et al. 2020) is a <strong>term</strong>. Three.",
            "Two (Ho et al. 2020) is a <strong>term</strong>.",
        ),
        (
            "We undo steps. This is the <strong>term</strong>. Three.",
            "We undo steps. This is the <strong>term</strong>.",
        ),
        (
            "One. (Its <em>usual</em> name is <strong>term</strong>.) Three.",
            "One. Its usual name is <strong>term</strong>.",
        ),
        ("a <strong>term</strong>: what it does;", "a <strong>term</strong>: what it does."),
    ],
)
def test_a_term_comes_with_the_sentence_that_introduces_it(paragraph, expected):
    element = BeautifulSoup(f"<p>{paragraph}</p>", "html.parser").p
    assert website_words.sentence(element, element.strong) == expected


def check_films(page):
    """Each Filmstrip of a page stands still at first, and changes its pictures when its slider moves."""
    for film in page.locator("figure.fmdiff-film").all():
        slider, shown = film.locator("input"), film.locator("output")
        assert slider.input_value() == slider.get_attribute("value"), "it moves by itself"
        slider.focus()
        page.keyboard.press("Home")
        before = film.locator("img").evaluate_all("images => images.map(image => image.src)")
        for _ in range(min(5, int(slider.get_attribute("max")) // 2)):  # a walk may end where it began
            page.keyboard.press("ArrowRight")
        assert film.locator("img").evaluate_all("images => images.map(image => image.src)") != before
        assert slider.get_attribute("aria-valuetext") == shown.evaluate("output => output.value")


def check_accessible(page):
    """No serious fault is found by axe in the light, and none of contrast in the dark."""
    page.evaluate(THIN)
    page.emulate_media(color_scheme="light")
    page.add_script_tag(path=AXE)
    assert page.evaluate(SERIOUS, {}) == [], page.url
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(SERIOUS, {"runOnly": ["color-contrast", "link-in-text-block"]}) == [], page.url


@needs_node
@in_browser
@pytest.mark.browser
@pytest.mark.parametrize(
    "paths",
    [LESSONS[0::2], LESSONS[1::2], [path for path in PATHS if path not in LESSONS]],
    ids=["lessons with odd numbers", "lessons with even numbers", "other pages"],
)
def test_pages_are_alive_and_accessible_and_ask_no_other_host(address, paths):
    with visitor(address, width=390, height=844) as page:
        page.emulate_media(reduced_motion="reduce")
        for path in paths:
            page.goto(address + path)
            if path == "draw.html":
                page.wait_for_selector("form[data-drawn]")
            assert page.evaluate("document.getAnimations().length") == 0
            check_films(page)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path} scrolls sideways"
            check_accessible(page)


@needs_node
@in_browser
@pytest.mark.browser
def test_keyboard_alone_searches_folds_the_code_and_darkens_the_pages(address):
    with visitor(address) as page:
        page.emulate_media(color_scheme="light")
        page.goto(address)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the text"
        while page.evaluate("document.activeElement.name") != "q":
            page.keyboard.press("Tab")
        page.keyboard.type("kullback")
        page.keyboard.press("Enter")
        page.wait_for_url("**/search.html?q=kullback")
        link = page.locator("#results a").first
        assert "section" in page.locator("#count").inner_text() and page.locator("#results mark").count()
        while not link.evaluate("link => link === document.activeElement"):
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_url(re.compile(r"#"))
        assert page.locator(":target").is_visible()

        page.goto(address + LESSONS[0])
        code, light = page.locator(".code > pre"), page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert code.nth(1).is_visible()
        for switch in ("code", "dark"):
            while page.evaluate("document.activeElement.id") != switch:
                page.keyboard.press("Tab")
            page.keyboard.press("Space")
        assert not any(cell.is_visible() for cell in code.all())
        page.goto(address + LESSONS[1])  # the next page remembers both
        assert not any(cell.is_visible() for cell in page.locator(".code > pre").all())
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
        assert page.locator("#dark").is_checked() and not page.locator("#code").is_checked()


@needs_node
@in_browser
@pytest.mark.browser
def test_the_folder_works_from_a_disk_too(site):
    with chromium() as page:
        page.goto(f"{(site / 'search.html').as_uri()}?q=posterior")
        page.locator("#results a").first.click()
        assert page.locator("main h1").is_visible()
