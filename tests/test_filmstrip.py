"""The claims of fmdiff_helpers.filmstrip: a page holds its frames and shows them without a kernel or a network."""

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from fmdiff_helpers.filmstrip import Filmstrip, encode_png

HOSTILE = "</script><b>\"'&amp; $film ${src} $$ \u2028 <!-- \\u003c"


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def decode(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    return np.asarray(image.convert("RGB") if image.mode == "P" else image)


class Page(HTMLParser):
    """What a browser makes of a Filmstrip: its elements with their attributes, its text and what its script holds."""

    def __init__(self, film: Filmstrip):
        super().__init__()
        self.html = film._repr_html_()
        self.elements: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.script = ""
        self.feed(self.html)
        self.close()
        uris, rest = json.JSONDecoder().raw_decode(self.script.split("const panels = ", 1)[1])
        after = self.script.split("const panels = ", 1)[1][rest:]
        self.readout, _ = json.JSONDecoder().raw_decode(after.removeprefix(", readout = "))
        self.panels = [[self.picture(uri) for uri in panel] for panel in uris]

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, text):
        if self.elements[-1][0] == "script" and not self.script:
            self.script = text
        elif text.strip():
            self.text.append(text)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    @staticmethod
    def picture(uri: str) -> np.ndarray:
        kind, code = uri.split(",")
        assert kind == "data:image/png;base64"
        return decode(base64.b64decode(code, validate=True))


def test_a_filmstrip_holds_every_frame_pixel_for_pixel():
    panels = {"grey": noise(4, 28, 30), "colour": noise(4, 9, 8, 3), "a tensor": torch.from_numpy(noise(4, 5, 5))}
    page = Page(Filmstrip(panels, ["a", "b", "c", "d"]))
    assert page.readout == ["a", "b", "c", "d"]
    for shown, frames in zip(page.panels, panels.values(), strict=True):
        assert len(shown) == 4 and all(np.array_equal(*pair) for pair in zip(shown, frames, strict=True))


def test_a_picture_that_never_changes_is_held_once():
    page = Page(Filmstrip({"still": noise(1, 28, 28).repeat(4, axis=0), "moving": noise(4, 28, 28)}, "abcd", start=3))
    assert [len(frames) for frames in page.panels] == [1, 4]
    assert np.array_equal(page.picture(page.all("img")[0]["src"]), noise(1, 28, 28)[0])


@pytest.mark.parametrize("start", [0, 2])
def test_without_scripts_the_page_shows_the_start_frame_and_no_dead_control(start):
    page = Page(Filmstrip({"x_t": noise(3, 28, 14)}, ["t = 0", "t = 1", "t = 2"], height=56, start=start))
    (image,), (slider,), (button,) = (page.all(tag) for tag in ("img", "input", "button"))
    assert np.array_equal(page.picture(image["src"]), noise(3, 28, 14)[start])
    assert "height:56px" in image["style"] and "width:28px" in image["style"]
    assert page.text[0] == "x_t" and page.text[-1] == f"t = {start}"
    assert all("display:none" in control["style"] for control in (slider, button))
    assert (slider["type"], slider["min"], slider["max"], slider["value"]) == ("range", "0", "2", str(start))
    # What a screen reader says.
    assert image["alt"] == f"x_t, t = {start}" and slider["aria-label"] == "timestep" and button["aria-label"]


@pytest.mark.parametrize("height, expected", [(28, "auto"), (29, "pixelated"), (14, "auto")])
def test_only_a_picture_that_is_scaled_up_has_sharp_pixels(height, expected):
    (image,) = Page(Filmstrip({"x": noise(1, 28, 28)}, ["a"], height=height)).all("img")
    assert image["style"].endswith(f"image-rendering:{expected}")


@pytest.mark.parametrize("text", [HOSTILE, "<!-- <script>", "<!--<script", "</script>"])
def test_hostile_text_is_shown_as_it_is_and_ends_no_script(text):
    """After <!-- <script> a browser would read the end of the script, and the page after it, as text."""
    page = Page(Filmstrip({text: noise(2, 3, 3)}, [text, "b"]))
    harmless = Page(Filmstrip({"title": noise(2, 3, 3)}, ["a", "b"]))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in harmless.elements]
    assert page.readout == [text, "b"] and page.text.count(text) == 2
    (image,) = page.all("img")
    assert image["alt"] == f"{text}, {text}" and image["data-title"] == text
    assert page.html.count("</script>") == 1
    assert "<" not in page.script.split("const panels = ", 1)[1].split(";\n")[0]


def test_a_page_needs_nothing_from_the_network():
    page = Page(Filmstrip({"x": noise(2, 3, 3)}, ["a", "b"]))
    assert not re.search(r"https?:|//\w|url\(|import|fetch", re.sub(r"base64,[^\"]*", "", page.html))
    assert {tag for tag, _ in page.elements} <= set("figure div img figcaption button input output script".split())


def test_the_same_frames_give_the_same_page_and_others_another():
    def film(frames: np.ndarray, *readout: str) -> Page:
        return Page(Filmstrip({"x": frames}, readout))

    first, same = film(noise(2, 3, 3), "a", "b"), film(noise(2, 3, 3).copy(), "a", "b")
    assert first.html == same.html
    for other in (film(noise(2, 3, 3)[::-1], "a", "b"), film(noise(2, 3, 3), "a", "c")):
        assert first.all("figure")[0]["data-film"] != other.all("figure")[0]["data-film"]


def test_36_frames_of_ten_images_of_noise_stay_within_400_kB():
    """Noise is what compresses least."""
    size = len(Filmstrip({"x_t": noise(36, 28, 280)}, [f"t = {t}" for t in range(36)])._repr_html_())
    assert size < 400_000


@pytest.mark.parametrize("fps, milliseconds", [(1, 1000), (3, 333), (10, 100)])
def test_the_browser_shows_so_many_frames_a_second(fps, milliseconds):
    page = Page(Filmstrip({"x": noise(2, 3, 3)}, "ab", fps=fps))
    assert re.findall(r"}, (\d+)\);", page.script) == [str(milliseconds)]


def test_a_picture_of_few_colours_is_compressed_and_stays_as_it_is():
    few, many = noise(60, 60, 3) // 64 * 64, noise(60, 60, 3)
    assert np.array_equal(decode(encode_png(few)), few) and np.array_equal(decode(encode_png(many)), many)
    assert len(encode_png(few)) < 0.4 * len(encode_png(many))


@pytest.mark.parametrize(
    "frames, readout, message",
    [
        (np.zeros((2, 3, 3)), "ab", r"panel 'x' is float64 \(2, 3, 3\); expected uint8"),
        (torch.zeros(2, 3, 3, dtype=torch.int64), "ab", r"panel 'x' is int64 \(2, 3, 3\); expected uint8"),
        (noise(3, 3), "abc", r"panel 'x' is uint8 \(3, 3\)"),
        (noise(2, 1, 28, 28), "ab", r"panel 'x' is uint8 \(2, 1, 28, 28\)"),
        (noise(2, 1, 3, 3, 3), "ab", r"panel 'x' is uint8 \(2, 1, 3, 3, 3\)"),
        (noise(2, 28, 28, 4), "ab", r"panel 'x' is uint8 \(2, 28, 28, 4\)"),
        (noise(2, 3, 3), "abc", r"panel 'x' is uint8 \(2, 3, 3\); .* F = 3, one frame for each readout"),
        (noise(0, 3, 3), "", "start is 0"),
    ],
)
def test_frames_that_are_no_film_are_an_error(frames, readout, message):
    with pytest.raises(ValueError, match=message):
        Filmstrip({"fine": noise(len(readout), 3, 3), "x": frames}, readout)


@pytest.mark.parametrize("start", [-1, 2, 0.5])
def test_a_start_that_is_no_frame_is_an_error(start):
    with pytest.raises(ValueError, match=f"start is {start}; expected a frame number from 0 to 1"):
        Filmstrip({"x": noise(2, 3, 3)}, ["a", "b"], start=start)


@pytest.mark.parametrize("option", ["height", "fps"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_film_without_height_or_speed_is_an_error(option, value):
    with pytest.raises(ValueError, match=f"{option} is {value}; expected a number above 0"):
        Filmstrip({"x": noise(2, 3, 3)}, ["a", "b"], **{option: value})


def test_a_film_needs_no_notebook_package_and_no_pytorch():
    code = "import sys, fmdiff_helpers.filmstrip; "
    code += "print([m for m in ('IPython', 'ipywidgets', 'matplotlib', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
