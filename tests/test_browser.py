"""A reader's first minutes in a real JupyterLab: open a lesson, run it, move the sliders, look at the pixels."""

import contextlib
import json
import re
from pathlib import Path

import nbformat
import pytest
from browser import (
    CHROMIUM,
    change_parameters,
    chromium,
    drag,
    empty_cells,
    jupyterlab,
    open_lesson,
    press_keys,
    run_all,
)
from nbconvert import HTMLExporter
from test_notebooks import code_cells, needed

FILMS = {"01": 3, "02": 1, "03": 1, "04": 2, "05": 2, "06": 1, "07": 2, "08": 1, "10": 2}  # Filmstrips of a lesson
LESSONS = {path.name[:2]: path for path in (Path(__file__).parents[1] / "notebooks").glob("*.ipynb")}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]


def pixels(locator):
    """What is painted, as bytes."""
    return locator.screenshot(animations="disabled")


def check_changes(page, picture, before, seconds=60):
    """The picture becomes another than `before`; where a network draws it, this takes a while."""
    for _ in range(5 * seconds):
        if pixels(picture) != before:
            return
        page.wait_for_timeout(200)
    raise AssertionError(f"the picture was still the same after {seconds} s")


def check_choice(page, root, control, choice, picture):
    """Another choice in a drop-down list, by its number in `root`, changes the picture."""
    before = pixels(picture)
    root.locator("select").nth(control).select_option(choice)
    check_changes(page, picture, before)


def check_slider_moves_picture(page, root, handle, track, presses=5):
    """From its first frame the picture changes by arrow key, then by drag, and comes back when the slider does."""
    picture = root.locator("img").last
    handle.scroll_into_view_if_needed()
    handle.focus()
    page.keyboard.press("Home")
    page.wait_for_timeout(500)
    first = pixels(picture)
    press_keys(page, root, handle, presses)
    after_keys = pixels(picture)
    assert after_keys != first
    drag(page, handle, track, share=0.7)
    assert pixels(picture) not in (first, after_keys)
    handle.focus()
    page.keyboard.press("Home")
    page.wait_for_timeout(500)
    assert pixels(picture) == first


def quick_parameters(number):
    """The values with which nbmake shortens a lesson, without `epochs`: no network is trained here."""
    cells = json.loads(LESSONS[number].read_text(encoding="utf-8"))["cells"]
    mocks = [cell["metadata"]["nbmake"]["mock"] for cell in cells if "nbmake" in cell["metadata"]]
    return {name: value for mock in mocks for name, value in mock.items() if name != "epochs"}


def needed_by_players(number):
    """The ids of the cells with a player, and of those that they need."""
    cells = code_cells(nbformat.read(LESSONS[number], as_version=4))
    last = [cell for cell in cells if re.search(r"^(Filmstrip|LatentWalk|\w+Explorer)\(", cell.source, re.M)]
    return [cell.id for cell in needed(cells, last)]


@contextlib.contextmanager
def lesson_run(number):
    """The page of a lesson after Run All: no error, no warning, the file as before; saved Filmstrips are pictures.

    Except in lesson 01, cells that no player needs are emptied first: nbmake runs all cells, and takes minutes.
    """
    committed = LESSONS[number].read_bytes()
    kept = needed_by_players(number) if number != "01" else []
    with jupyterlab(number) as address, chromium() as page:
        open_lesson(page, address)
        untrusted = page.locator(".jp-OutputArea figure")
        assert untrusted.count() == FILMS[number] and untrusted.first.locator("img").first.is_visible()
        assert not any(slider.is_visible() for slider in page.locator(".jp-OutputArea figure input").all())

        change_parameters(page, quick_parameters(number))
        if kept:
            empty_cells(page, kept)
        run_all(page)
        prompts = page.locator(".jp-CodeCell .jp-InputArea-prompt").all_inner_texts()
        if kept:
            prompts = [prompt for prompt in prompts if prompt != "[ ]:"]
            assert len(prompts) == len(kept)
        assert prompts == [f"[{k + 1}]:" for k in range(len(prompts))]
        assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
        warnings = page.locator("[data-mime-type='application/vnd.jupyter.stderr']").all_inner_texts()
        # Without the dataset: that a download is tried, and that drawings take its place.
        expected = r"(?s)(Downloading Fashion-MNIST.*)?NOTICE: Fashion-MNIST is not on this machine"
        assert all(re.match(expected, text) for text in warnings), warnings
        yield page
    assert LESSONS[number].read_bytes() == committed


def check_explorer(page, presses=5):
    """The first explorer's timestep slider moves its picture; return the explorer, and its slider's handle."""
    explorer = page.locator(".jp-OutputArea-output", has=page.locator(".noUi-handle")).first
    handle = explorer.locator(".widget-hslider .noUi-handle").first
    check_slider_moves_picture(page, explorer, handle, explorer.locator(".noUi-base").first, presses)
    return explorer, handle


def check_film(page, film):
    """A Filmstrip's slider moves its picture."""
    slider = film.locator("input")
    check_slider_moves_picture(page, film, slider, slider)


def slide_to_the_end(page, handle):
    """Take the slider to its last step and wait for the picture."""
    handle.focus()
    page.keyboard.press("End")
    page.wait_for_timeout(500)


def test_lesson_01_in_jupyterlab():
    with lesson_run("01") as page:
        explorer, _ = check_explorer(page)
        check_choice(page, explorer, 0, "Dress", explorer.locator("img").last)
        films = page.locator("figure.fmdiff-film")
        assert films.count() == 2  # the third stood for the explorer in the saved lesson
        check_film(page, films.first)
        # Every figure is a picture with a name that a screen reader reads; JupyterLab gives none to a PNG.
        assert page.get_by_role("img", name=re.compile(r"^Curves: weights add to one, from 0\.\d+ to 1")).count() == 1
        assert (
            page.locator(".jp-RenderedHTML > img:not([alt])").count() == page.locator(".jp-RenderedImage").count() == 0
        )


def test_lesson_02_in_jupyterlab():
    with lesson_run("02") as page:
        explorer, handle = check_explorer(page)
        slide_to_the_end(page, handle)
        check_choice(page, explorer, 0, "DDPM", explorer.locator("img").last)


def test_lesson_03_in_jupyterlab():
    with lesson_run("03") as page:
        explorer, handle = check_explorer(page)
        slide_to_the_end(page, handle)
        xt = explorer.locator("img").first
        before = pixels(xt)
        explorer.locator("input[type=number]").first.fill("7")
        page.keyboard.press("Enter")
        check_changes(page, xt, before)


def check_second_explorer(page):
    """The slider of the first explorer with a drop-down list moves its picture; return both."""
    explorer = page.locator(".jp-OutputArea-output", has=page.locator("select"))
    slider = explorer.locator(".widget-hslider .noUi-handle").first
    check_slider_moves_picture(page, explorer, slider, explorer.locator(".noUi-base").first)
    return explorer, slider


def test_lesson_04_in_jupyterlab():
    with lesson_run("04") as page:
        check_explorer(page, presses=2)  # there are five betas
        walk, _ = check_second_explorer(page)
        check_choice(page, walk, 0, "Dress", walk.locator("img").nth(1))


def test_lesson_05_in_jupyterlab():
    with lesson_run("05") as page:
        check_explorer(page, presses=2)  # there are seven numbers of steps
        chain, slider = check_second_explorer(page)
        slide_to_the_end(page, slider)
        check_choice(page, chain, -1, "1.0", chain.locator("img").last)


def test_lesson_06_in_jupyterlab():
    with lesson_run("06") as page:
        explorer, handle = check_explorer(page)
        slide_to_the_end(page, handle)
        for control, choice in enumerate(("Trouser", "8.0")):
            check_choice(page, explorer, control, choice, explorer.locator("img").last)


def test_lesson_07_in_jupyterlab():
    with lesson_run("07") as page:
        explorer, handle = check_explorer(page)
        slide_to_the_end(page, handle)
        check_choice(page, explorer, 0, "Bag", explorer.locator("img").first)
        check_film(page, page.locator("figure.fmdiff-film").last)


def test_lesson_08_in_jupyterlab():
    with lesson_run("08") as page:
        check_film(page, page.locator("figure.fmdiff-film"))


def test_lesson_10_in_jupyterlab():
    with lesson_run("10") as page:
        explorer, handle = check_explorer(page)
        slide_to_the_end(page, handle)
        canvas, seen = explorer.locator("canvas"), explorer.locator("img").nth(1)
        before = pixels(seen)
        canvas.click()  # the left edge of the hidden half is in the middle
        assert pixels(seen) == before, "nothing is drawn before the button is pressed"
        explorer.locator(".use").click()
        check_changes(page, seen, before)
        page.wait_for_function("() => !document.querySelector('.fmdiff-canvas textarea').disabled")
        before = pixels(seen)
        canvas.focus()
        for key in ("ArrowUp", "ArrowUp", "Space", "Enter"):
            page.keyboard.press(key)
        check_changes(page, seen, before)


@pytest.mark.parametrize(("number", "count"), FILMS.items())
def test_exported_html_plays_without_a_kernel_and_without_a_network(tmp_path, number, count):
    page_file = tmp_path / "lesson.html"
    page_file.write_text(HTMLExporter().from_filename(str(LESSONS[number]))[0])
    with chromium() as page:
        page.route("**/*", lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort())
        page.goto(page_file.as_uri(), wait_until="domcontentloaded")
        films = page.locator("figure.fmdiff-film")
        assert films.count() == count
        for film in films.all():
            slider = film.locator("input")
            presses = min(5, int(slider.get_attribute("max")) // 2)
            check_slider_moves_picture(page, film, slider, slider, presses)
        film, play = films.last, films.last.locator("button")
        picture = film.locator("img").last
        before = pixels(picture)
        play.click()
        check_changes(page, picture, before)
        play.click()
        paused = pixels(picture)
        page.wait_for_timeout(500)
        assert pixels(picture) == paused
