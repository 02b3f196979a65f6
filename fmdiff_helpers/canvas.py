"""A canvas to draw on by mouse, touch or keyboard, as a control of an explorer: Python reads what was drawn.

Plain HTML and JavaScript in an HTML widget, beside a hidden text box: the script writes the drawing into the box and
says so, as if a reader had typed it. It starts when its style sheet is loaded, because an HTML widget runs no <script>.
Only ipywidgets calls that 7.7 (Colab) and 8 share.
"""

import html
import json
from string import Template
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
from torch import Tensor
from traitlets import Bool, Unicode, link, validate

from fmdiff_helpers.filmstrip import encode_frames

SIZE, PIXELS = 28, 9  # cells on a side, and screen pixels on the side of a cell
SCRIPT = Template("""\
const begin = style => {
  const root = style.closest(".fmdiff-canvas"), area = root && root.querySelector("textarea");
  if (!area) return style.isConnected && setTimeout(begin, 50, style);  // the parts come into the page one by one
  const [board, pen, brush, clear, use, said] =
    ["canvas", ".pen", ".brush", ".clear", ".use", "output"].map(name => root.querySelector(name));
  const colors = $colors, names = $names, size = $size, side = $pixels, context = board.getContext("2d");
  const now = board.now ||= {cells: [], sent: null, row: size >> 1, column: size >> 1};  // JupyterLab may take it away
  const within = place => Math.max(0, Math.min(size - 1, place));
  const reach = () => (brush.value - 1) / 2;
  const show = () => {
    context.clearRect(0, 0, board.width, board.height);
    now.cells.forEach((cell, k) => {
      context.fillStyle = colors[cell];
      context.fillRect(k % size * side, Math.floor(k / size) * side, side, side);
    });
    context.strokeStyle = "#0072B2";
    context.lineWidth = 2;
    const edge = brush.value * side;
    context.strokeRect((now.column - reach()) * side, (now.row - reach()) * side, edge, edge);
    board.style.opacity = area.disabled ? 0.5 : 1;
    use.disabled = area.disabled || now.cells.join("") === now.sent;
  };
  const paint = color => {
    for (let k = 0; k < size * size; k++) {
      const down = Math.abs(Math.floor(k / size) - now.row), right = Math.abs(k % size - now.column);
      if (!area.disabled && down <= reach() && right <= reach()) now.cells[k] = color;
    }
  };
  const go = (row, column, color) => {  // cell by cell, so that a fast pen leaves no gaps
    const [top, left] = [now.row, now.column], steps = Math.max(1, Math.abs(row - top), Math.abs(column - left));
    for (let k = 1; k <= steps; k++) {
      now.row = within(Math.round(top + (row - top) * k / steps));
      now.column = within(Math.round(left + (column - left) * k / steps));
      if (color !== null) paint(color);
    }
    said.value = `row $${now.row + 1}, column $${now.column + 1}: $${names[now.cells[now.row * size + now.column]]}`;
    show();
  };
  const send = () => {
    if (area.disabled) return;
    area.value = now.sent = now.cells.join("");
    ["input", "change"].forEach(kind => area.dispatchEvent(new Event(kind, {bubbles: true})));
    show();
  };
  const follow = (event, color) => {
    const box = board.getBoundingClientRect();
    const place = (at, from, length) => within(Math.floor((at - from) / length * size));
    go(place(event.clientY, box.top, box.height), place(event.clientX, box.left, box.width), color);
  };
  board.onpointerdown = event => {
    board.setPointerCapture(event.pointerId);
    follow(event, null);
    follow(event, pen.value);
  };
  board.onpointermove = event => board.hasPointerCapture(event.pointerId) && follow(event, pen.value);
  board.onkeydown = event => {
    const way = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
    if (way) go(now.row + way[0], now.column + way[1], event.shiftKey ? pen.value : null);
    else if (event.key === " ") go(now.row, now.column, pen.value);
    else if (event.key === "Delete" || event.key === "Backspace") go(now.row, now.column, "0");
    else if (event.key === "Enter") send();
    else return;
    event.preventDefault();
  };
  root.onkeydown = event => event.stopPropagation();  // or JupyterLab takes the keys
  clear.onclick = () => { if (!area.disabled) now.cells.fill("0"); show(); };
  use.onclick = send;
  brush.onchange = show;
  root.querySelector(".note").style.display = "none";
  root.querySelector(".tools").style.display = "";
  clearInterval(now.timer);
  const look = () => {  // Python may change the drawing, or lock it
    if (!root.isConnected) return clearInterval(now.timer);
    if (area.value !== now.sent) now.cells = [...(now.sent = area.value)];
    show();
  };
  now.timer = setInterval(look, 200);
  look();  // or what is drawn at once would be lost
};
begin(this);
""")
PAGE = Template("""\
<style onload="$script">
.fmdiff-canvas canvas {touch-action: none; outline: 1px solid #888; cursor: crosshair; image-rendering: pixelated}
.fmdiff-canvas canvas:focus-visible {outline: 3px solid #0072B2; outline-offset: 2px}
</style>
<div class="note">$name: a canvas to draw on, which needs scripts. They do not run here.</div>
<div class="tools" style="display:none;padding:4px" data-lm-suppress-shortcuts="true">
<div>$name</div>
<canvas width="$side" height="$side" tabindex="0" role="application" aria-label="$name: arrow keys move, space paints,
 with shift each move paints, delete erases, enter uses the drawing"></canvas>
<div><label>pen <select class="pen">$pens</select></label> <label>size <select class="brush"><option>1</option>
<option selected>3</option><option>5</option><option>9</option></select></label>
<button type="button" class="clear">clear</button> <button type="button" class="use">use it</button></div>
<output aria-live="polite" style="font-size:90%"></output></div>""")


class Canvas(widgets.VBox):
    """Draw on 28 x 28 cells with some pens; `value` holds a digit for each cell, row by row: the place of its pen.

    `pens`, at most ten, maps a pen's name to its CSS colour; the first one erases, and the last one is offered first.
    `cells` (28, 28) are the numbers of the pens to begin with. What is drawn counts when "use it" or Enter is pressed.
    ValueError for a `value` that is no such drawing.
    """

    value = Unicode()
    disabled = Bool(False)

    def __init__(self, name: str, pens: dict[str, str], cells: Tensor):
        self.number = len(pens)
        options = [f'<option value="{k}">{html.escape(pen)}</option>' for k, pen in enumerate(pens)][::-1]
        colors, names = json.dumps(list(pens.values())), json.dumps(list(pens))
        script = SCRIPT.substitute(colors=colors, names=names, size=SIZE, pixels=PIXELS)
        parts = {"script": html.escape(script), "name": html.escape(name), "pens": "".join(options)}
        self.box, self.below = widgets.Textarea(layout={"display": "none"}), widgets.HTML()
        super().__init__([self.box, self.below, widgets.HTML(PAGE.substitute(parts, side=SIZE * PIXELS))])
        self.value = "".join(map(str, cells.flatten().tolist()))
        link((self, "value"), (self.box, "value"))
        link((self, "disabled"), (self.box, "disabled"))
        self.add_class("fmdiff-canvas").add_class(f"fmdiff-{self.model_id}")

    @validate("value")
    def _validate_value(self: Any, proposal: dict) -> str:
        text, digits = proposal["value"], "0123456789"[: self.number]
        if len(text) != SIZE**2 or set(text) - set(digits):
            raise ValueError(f"value is {text[:40]!r} ...; expected {SIZE**2} digits from 0 to {self.number - 1}")
        return text

    @property
    def cells(self) -> Tensor:
        """Return the number of each cell's pen, int64 (28, 28)."""
        return torch.tensor([int(digit) for digit in self.value]).reshape(SIZE, SIZE)

    def show_below(self, picture: np.ndarray) -> None:
        """Show a uint8 picture (28, 28) below what is drawn."""
        (uri,) = encode_frames(picture[None])
        self.below.value = f"<style>.fmdiff-{self.model_id} canvas {{background: url({uri}) 0 0 / 100% 100%}}</style>"
