"""fmdiff_helpers.alt_text: each figure says what it shows, in few words, and the text reaches the reader's notebook."""

import html
import re
from datetime import date

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

from fmdiff_helpers.alt_text import LONGEST, as_html, describe, listing
from fmdiff_helpers.planes import planes
from fmdiff_helpers.plots import class_planes, curves, histograms, image_grid, new_figure, schedule_curves, two_ways
from fmdiff_helpers.schedules import Schedule, cosine_beta, linear_beta
from fmdiff_helpers.tokens import patch_maps

IMAGES = torch.zeros(6, 1, 5, 7)
KINDS = torch.tensor([0, 0, 1])
ENDS = torch.zeros(1, 2), torch.ones(1, 2)


def drawn_by_hand():
    """A figure that no helper has drawn."""
    figure, (axis,) = new_figure(4, 3)
    axis.plot([1, 2, 4], [3, 9, 5], label="one $x_t$")
    axis.bar([1, 2], [1, 2], label="two")
    axis.set(title="By hand?", ylim=(0, 10))
    axis.set_xticks([1, 2, 4], ["a", "b", "c"])
    return figure


CASES = {
    "a grid": (
        lambda: image_grid(IMAGES, 3, ["a", "b", "c"], ["x", "y"]),
        "Pictures in 2 rows and 3 columns. Columns: a, b, c. Rows: x, y.",
    ),
    "a grid without labels": (lambda: image_grid(IMAGES, 3), "Pictures in 2 rows and 3 columns."),
    "a column": (
        lambda: image_grid(IMAGES, 1, row_labels=["w = 1", "", "w = 2", "", "", ""]),
        "Pictures in 6 rows and 1 column. Rows: w = 1, w = 2.",
    ),
    "two arrows": (
        lambda: two_ways(IMAGES, ["a", "b", "c"], ["x", "y"], "there", "back"),
        "Pictures in 2 rows and 3 columns. Columns: a, b, c. Rows: x, y. Written in it: there, back.",
    ),
    "maps": (
        lambda: patch_maps(torch.rand(2, 7, 7), [1, 2], ["a", "b"], ["x"], "cosine", (-0.5, 1)),
        "Pictures in 1 row and 2 columns. Columns: a, b. Rows: x. Grey scale: cosine, -0.5 to 1.",
    ),
    "curves": (
        lambda: curves([0, 1, 2], {"up": [0.0, 1.0, 2.0], "dip": [3.0, 0.5, 1.0]}, "steps", "loss"),
        "Curves: up, from 0 to 2; dip, from 3 to 1, down to 0.5 at 1. "
        "Horizontal axis: steps, 0 to 2. Vertical axis: loss, 0 to 3.",
    ),
    "a logarithmic axis": (
        lambda: curves([1, 2], {"a": [1000.0, 1e-4]}, "steps", "loss", "log"),
        "Curves: a, from 1000 to 0.0001. Horizontal axis: steps, 1 to 2. "
        "Vertical axis: loss, 0.0001 to 1000, logarithmic.",
    ),
    "a level line": (
        lambda: curves([0, 1], {"a": [2.0, 2.0]}, "", ""),
        "Curves: a, at 2.",
    ),
    "tiny values": (
        lambda: curves([0, 1], {"a": [1e-5, 2.0]}, "x", "y"),
        "Curves: a, from 0 to 2. Horizontal axis: x, 0 to 1. Vertical axis: y, 0 to 2.",
    ),
    "missing values": (
        lambda: curves([0, 1, 2], {"a": [np.nan, 1.0, 2.0], "b": [np.nan] * 3, "c": [np.nan, 4.0, np.nan]}, "x", "y"),
        "Curves: a, from 1 to 2; b, without values; c, at 4. Horizontal axis: x, 1 to 2. Vertical axis: y, 1 to 4.",
    ),
    "densities": (
        lambda: histograms({"a": torch.linspace(-1, 1, 80), "b": torch.linspace(-1, 1, 80)}, title="pixels"),
        "Pixels. Bars: a. Outlines: b. Curves: N(0, 1), from 0 to 0, up to 0.399 at 0. "
        "Horizontal axis: pixel value, -4 to 4. Vertical axis: density, 0 to 0.5.",
    ),
    "planes": (
        lambda: class_planes({"t = 0": torch.rand(3, 2), "t = 9": torch.rand(3, 2)}, KINDS, ["Bag", "Coat"], 1e-3),
        "2 charts. Chart 1, t = 0. Vertical axis: second direction, -0.001 to 0.001. Chart 2, t = 9. "
        "Colours: Bag, Coat. 3 points. Horizontal axis: first direction, -0.001 to 0.001.",
    ),
    "arrows": (
        lambda: planes({"t = 0": ({"all": ENDS[0]}, {"the way": ENDS})}, "x", "y"),
        "T = 0. Points: all. Arrows: the way. Horizontal axis: x, -0.05 to 1.05. Vertical axis: y, -0.05 to 1.05.",
    ),
    "by hand": (
        drawn_by_hand,
        "By hand? Curves: one x_t, from 3 to 5, up to 9 at 2. Bars: two. Horizontal axis: a, b, c.",
    ),
}


@pytest.mark.parametrize("make, expected", CASES.values(), ids=CASES)
def test_a_text_names_titles_axes_ranges_legends_and_labels(make, expected):
    assert describe(make()) == expected


def on_axes(draw, **options):
    """A figure of a reader: `draw` does something to its axes."""
    figure = plt.Figure()
    draw(figure.add_subplot(**options))
    return figure


OF_READERS = {
    "words": (
        lambda: on_axes(lambda axes: axes.plot(["a", "b"], ["x", "y"], label="d")),
        "Curves: d. Horizontal axis: a",
    ),
    "days": (
        lambda: on_axes(lambda axes: axes.plot([date(2020, 1, 1), date(2020, 1, 9)], [1, 2], label="d")),
        "Curves: d.",
    ),
    "bars": (lambda: on_axes(lambda axes: axes.bar(["a", "b"], [1, 2])), "2 bars. Horizontal axis: a, b."),
    "a picture": (lambda: on_axes(lambda axes: axes.imshow(np.zeros((5, 7)))), "Picture in 5 rows and 7 columns."),
    "three axes": (
        lambda: on_axes(lambda axes: axes.plot([1, 2], [1, 2], [1, 2], label="d"), projection="3d"),
        "Curves: d",
    ),
    "nothing": (lambda: on_axes(lambda axes: None), "Chart without words."),
}


@pytest.mark.parametrize("make, expected", OF_READERS.values(), ids=OF_READERS)
def test_whatever_a_reader_draws_has_a_text(make, expected):
    assert describe(make()).startswith(expected)


def test_a_figure_that_cannot_be_described_is_still_shown(monkeypatch):
    monkeypatch.setattr("fmdiff_helpers.alt_text.describe", lambda figure: 1 / 0)
    assert as_html(image_grid(IMAGES, 3))["text/html"].startswith('<img alt="a figure" src="data:image/png;base64,')


def test_words_of_ones_own_come_first():
    figure = image_grid(IMAGES, 3)
    figure.set_label("six garments")
    figure.suptitle("All of them")
    assert describe(figure) == "Six garments. All of them. Pictures in 2 rows and 3 columns."


def test_long_lists_are_shortened_until_a_text_can_be_heard():
    names = [f"garment number {k}" for k in range(60)]
    text = describe(image_grid(torch.zeros(60, 1, 5, 7), 60, names))
    assert "garment number 0" in text and "and so on to garment number 59" in text
    figure = curves([0, 1], {name: [0.0, 1.0] for name in names}, "x", "y")
    figure.axes[0].set_title("a very long title " * 50)
    assert LONGEST - 30 < len(describe(figure)) <= LONGEST and describe(figure).endswith("...")
    schedules = {f"{name}, T = {T}": Schedule(beta(T)) for T in (50, 1000) for name, beta in BETAS.items()}
    assert all(part in describe(schedule_curves(schedules)) for part in ("signal scale", "SNR in dB", "progress"))


BETAS = {"linear": linear_beta, "cosine": cosine_beta}


@pytest.mark.parametrize(
    ("words", "most", "expected"),
    [
        ("abc", 3, "a, b, c"),
        ("abcde", 3, "a, b, and so on to e"),
        (["T = 5, linear", "b"], 3, "T = 5, linear; b"),
        (["a", "", "b"], 3, "a, b"),
        ("", 3, ""),
    ],
)
def test_a_list_has_commas_unless_its_words_have_some(words, most, expected):
    assert listing(words, most) == expected


def test_a_text_is_escaped_and_an_empty_figure_is_left_to_ipython():
    page = as_html(curves([0, 1], {'"a" < b & <i>': [0.0, 1.0]}, "x", "y"))["text/html"]
    assert page.count("<") == 1 and page.endswith(">")
    (text,) = re.findall(r'^<img alt="([^"]*)" src="data:image/png;base64,[\w+/=]+">$', page)
    assert '"a" < b & <i>, from 0 to 1' in html.unescape(text)
    assert as_html(plt.Figure()) == {}


FIRST, LATER = "Curves: a, from 0 to 1.", "Curves: a, from 1 to 0."
DRAW = "from fmdiff_helpers.plots import curves\ndef draw(*y): return curves([0, 1], {'a': y}, '', '')\n"
PREPARE = "from importlib import import_module\nimport_module('fmdiff_helpers.start').prepare()"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (DRAW + "draw(0, 1)", [FIRST]),
        (DRAW + "display(draw(0, 1), draw(1, 0))", [FIRST, LATER]),
        (DRAW + "handle = display(draw(0, 1), display_id=True)\nhandle.update(draw(1, 0))", [LATER]),
        ("import matplotlib.pyplot as plt\nplt.plot([0, 1], label='a')\nplt.show()", [FIRST]),
        ("%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([0, 1], label='a');", [FIRST]),
    ],
    ids=["value", "display", "updated", "pyplot", "magic"],
)
def test_in_a_lesson_every_figure_is_one_picture_with_its_text_whoever_draws_it(code, expected):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in (PREPARE, code)])
    NotebookClient(nb, timeout=120, kernel_name="python3").execute()
    outputs = nb.cells[1].outputs
    assert [output.data.keys() for output in outputs] == [{"text/html", "text/plain"}] * len(expected)
    for output, text in zip(outputs, expected, strict=True):
        assert output.data["text/html"].startswith(f'<img alt="{text}')
        assert output.data["text/plain"].startswith(text)
