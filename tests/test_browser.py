"""A newcomer's first minutes, in a real JupyterLab: open lesson 01, run it, move the sliders, look at the pixels."""

from pathlib import Path

import pytest
from browser import CHROMIUM, chromium, drag, jupyterlab, open_lesson, press_keys, run_all
from nbconvert import HTMLExporter

LESSON = Path(__file__).parents[1] / "notebooks" / "01_forward_noising.ipynb"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]


def pixels(locator):
    """What is painted, as bytes."""
    return locator.screenshot(animations="disabled")


def check_slider_moves_picture(page, root, handle, track):
    """From its first frame the picture changes by arrow key, then by drag, and comes back when the slider does."""
    picture = root.locator("img").last
    handle.scroll_into_view_if_needed()
    handle.focus()
    page.keyboard.press("Home")
    page.wait_for_timeout(500)
    first = pixels(picture)
    press_keys(page, root, handle, presses=5)
    after_keys = pixels(picture)
    assert after_keys != first
    drag(page, handle, track, share=0.7)
    assert pixels(picture) not in (first, after_keys)
    handle.focus()
    page.keyboard.press("Home")
    page.wait_for_timeout(500)
    assert pixels(picture) == first


def test_lesson_01_in_jupyterlab():
    committed = LESSON.read_bytes()
    with jupyterlab("01") as address, chromium() as page:
        open_lesson(page, address)
        films = page.locator("figure.fmdiff-film")
        untrusted = page.locator(".jp-OutputArea figure")
        assert untrusted.count() == 3 and untrusted.first.locator("img").first.is_visible()
        assert not any(slider.is_visible() for slider in page.locator(".jp-OutputArea figure input").all())

        run_all(page)
        prompts = page.locator(".jp-CodeCell .jp-InputArea-prompt").all_inner_texts()
        assert prompts == [f"[{k + 1}]:" for k in range(len(prompts))]
        assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
        warnings = page.locator("[data-mime-type='application/vnd.jupyter.stderr']").all_inner_texts()
        assert all(text.startswith("NOTICE: Fashion-MNIST is not on this machine") for text in warnings)

        explorer = page.locator(".jp-OutputArea-output", has=page.locator(".noUi-handle")).first
        handle = explorer.locator(".widget-hslider .noUi-handle").first
        check_slider_moves_picture(page, explorer, handle, explorer.locator(".noUi-base").first)

        before = pixels(explorer.locator("img").last)
        explorer.locator("select").first.select_option("Dress")
        page.wait_for_timeout(1000)
        assert pixels(explorer.locator("img").last) != before

        assert films.count() == 2  # the explorer's film is what a saved notebook shows in its place
        slider = films.first.locator("input")
        check_slider_moves_picture(page, films.first, slider, slider)
    assert LESSON.read_bytes() == committed


def test_exported_html_plays_without_a_kernel_and_without_a_network(tmp_path):
    page_file = tmp_path / "lesson.html"
    page_file.write_text(HTMLExporter().from_filename(str(LESSON))[0])
    with chromium() as page:
        page.route("**/*", lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort())
        page.goto(page_file.as_uri(), wait_until="domcontentloaded")
        films = page.locator("figure.fmdiff-film")
        assert films.count() == 3
        for film in films.all():
            check_slider_moves_picture(page, film, film.locator("input"), film.locator("input"))
        film = films.last
        before = pixels(film.locator("img").last)
        film.locator("button").click()
        page.wait_for_timeout(1000)
        film.locator("button").click()
        paused = pixels(film.locator("img").last)
        assert paused != before
        page.wait_for_timeout(500)
        assert pixels(film.locator("img").last) == paused
