"""The claims of fmdiff_helpers.canvas: what is drawn by mouse, finger or keys arrives in Python; without a kernel, not.

Here the page holds the two parts of a canvas without JupyterLab, so that this is fast; test_browser.py has it all.
"""

import re

import pytest
import torch
from browser import CHROMIUM, chromium

from fmdiff_helpers.canvas import Canvas

PENS = {"black": "#000", "<grey>": "#888", "white": "#FFF"}
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
# What ipywidgets makes of the parts, and a reader that notes what a text box says.
WIDGETS = """<div class="fmdiff-canvas"><div>{page}</div></div>
<script>
var heard = [], keys = [];
addEventListener("keydown", event => keys.push(event.key));
setTimeout(() => {{
  const area = document.createElement("textarea");  // the box may come later than the page
  area.style.display = "none";
  area.value = "{value}";
  for (const kind of ["input", "change"]) area.addEventListener(kind, () => heard.push(kind + " " + area.value));
  document.querySelector(".fmdiff-canvas").append(area);
}}, 100);
</script>"""


def canvas(cells=None):
    return Canvas("draw", PENS, torch.zeros(28, 28, dtype=torch.int64) if cells is None else cells)


def cells(value: str) -> torch.Tensor:
    return torch.tensor([int(digit) for digit in value]).reshape(28, 28)


def test_its_value_is_a_digit_for_each_cell_and_the_box_says_the_same():
    start = (torch.arange(784) % 3).reshape(28, 28)
    drawing = canvas(start)
    assert drawing.value == drawing.box.value == "012" * 261 + "0" and drawing.cells.equal(start)
    drawing.box.value = "1" * 784  # as the script does
    assert drawing.value == "1" * 784 and drawing.cells.equal(torch.ones_like(start))
    drawing.disabled = True
    assert drawing.box.disabled


@pytest.mark.parametrize("value", ["0" * 783, "0" * 785, "3" + "0" * 783, "-" + "0" * 783, ""])
def test_a_value_that_is_no_drawing_is_refused(value):
    drawing = canvas()
    with pytest.raises(ValueError, match=re.escape("expected 784 digits from 0 to 2")):
        drawing.value = value
    assert drawing.value == drawing.box.value == "0" * 784


def test_what_lies_below_belongs_to_one_canvas_only():
    one, other = canvas(), canvas()
    one.show_below(torch.zeros(28, 28, dtype=torch.uint8).numpy())
    (name,) = re.findall(r"\.(fmdiff-\w+) canvas", one.below.value)
    assert name in one._dom_classes and name not in other._dom_classes


@pytest.fixture(scope="module")
def page():
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with chromium(width=600, height=600) as page:
        yield page


@pytest.fixture
def board(page):
    """The canvas of a new page, of 28 x 28 cells that are black, with a pen of one cell."""
    drawing = canvas()
    page.set_content(WIDGETS.format(page=drawing.children[2].value, value=drawing.value))
    page.locator(".brush").wait_for()
    page.locator(".brush").select_option("1")
    page.locator("canvas").focus()
    return page.locator("canvas")


def place(board, row: int, column: int) -> tuple[float, float]:
    """The middle of a cell, in pixels of the page."""
    box = board.bounding_box()
    return box["x"] + (column + 0.5) * box["width"] / 28, box["y"] + (row + 0.5) * box["height"] / 28


def used(page) -> torch.Tensor:
    """What has been said once the button is pressed: `input` and `change`, with the same drawing."""
    page.evaluate("heard = []")
    page.locator(".use").click()
    kinds, values = zip(*(each.split() for each in page.evaluate("heard")), strict=True)
    assert kinds == ("input", "change") and len(set(values)) == 1
    return cells(values[0])


def line(row: int, columns: range, pen: int = 2) -> torch.Tensor:
    found = torch.zeros(28, 28, dtype=torch.int64)
    found[row, columns] = pen
    return found


@in_browser
@pytest.mark.browser
def test_a_mouse_draws_without_gaps_and_nothing_is_said_before_the_button(page, board):
    page.mouse.move(*place(board, 3, 2))
    page.mouse.down()
    page.mouse.move(*place(board, 3, 20))
    page.mouse.up()
    page.mouse.move(*place(board, 9, 9))
    page.mouse.move(1, 1)  # pressed elsewhere, it does not draw here
    page.mouse.down()
    page.mouse.move(*place(board, 9, 9))
    page.mouse.up()
    assert page.evaluate("heard") == []
    assert used(page).equal(line(3, range(2, 21)))
    assert page.locator(".use").is_disabled()


@in_browser
@pytest.mark.browser
def test_a_finger_draws_and_does_not_scroll_the_page(page, board):
    touch = page.context.new_cdp_session(page)
    for kind, column in (("touchStart", 5), ("touchMove", 8), ("touchEnd", None)):
        points = [] if column is None else [dict(zip("xy", place(board, 10, column), strict=True))]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert used(page).equal(line(10, range(5, 9)))


@in_browser
@pytest.mark.browser
def test_arrows_move_space_paints_shift_draws_delete_erases_and_enter_uses(page, board):
    page.locator(".pen").select_option("<grey>")
    board.focus()
    for key in ("ArrowUp", "ArrowLeft", "Space", *["Shift+ArrowRight"] * 4, "ArrowLeft", "Delete", "Enter"):
        page.keyboard.press(key)
    kind, value = page.evaluate("heard[0]").split()
    expected = line(13, range(13, 18), 1)
    expected[13, 16] = 0
    assert kind == "input" and cells(value).equal(expected)
    assert page.locator("output").inner_text() == "row 14, column 17: black"
    assert page.evaluate("[keys, scrollY]") == [[], 0], "keys reach nothing else"
    assert "3px" in board.evaluate("element => getComputedStyle(element).outline")


@in_browser
@pytest.mark.browser
def test_a_wide_pen_stops_at_the_edge_and_clear_erases_all(page, board):
    page.locator(".brush").select_option("5")
    page.mouse.click(*place(board, 0, 27))
    corner = used(page)
    assert corner[:3, 25:].eq(2).all() and corner.sum() == 2 * 9
    page.locator(".clear").click()
    assert used(page).sum() == 0


@in_browser
@pytest.mark.browser
def test_a_drawing_of_pythons_is_shown_and_while_it_is_locked_nothing_can_be_drawn(page, board):
    page.evaluate("document.querySelector('textarea').value = '1'.repeat(784)")
    page.wait_for_function("document.querySelector('canvas').now.cells[0] === '1'")
    pixel = "element => [...element.getContext('2d').getImageData(2, 2, 1, 1).data]"
    assert board.evaluate(pixel) == [136, 136, 136, 255]
    page.evaluate("document.querySelector('textarea').disabled = true")
    page.wait_for_function("document.querySelector('canvas').style.opacity === '0.5'")
    page.mouse.click(*place(board, 5, 5))
    page.locator(".clear").click()
    board.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("heard") == [] and page.locator(".use").is_disabled()
    page.evaluate("document.querySelector('textarea').disabled = false")
    page.mouse.click(*place(board, 5, 5))
    assert used(page).sum() == 783 + 2


@in_browser
@pytest.mark.browser
def test_where_no_script_runs_a_line_says_so_in_its_place(page):
    page.set_content(canvas().children[2].value.replace("onload=", "data-script="))
    assert page.get_by_text("draw: a canvas to draw on, which needs scripts").is_visible()
    assert not page.locator("canvas").is_visible() and not page.locator(".use").is_visible()
