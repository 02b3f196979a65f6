"""Frames for players: pictures that are drawn once for each step, and fast."""

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fmdiff_helpers.plots import COLORS, normal_density


def as_frame(figure: Figure, points: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return a figure as uint8 (H, W, 3) in 64 colours, and the pixels (N, 2) at which points (N, 2) of its axes lie.

    Players draw the figure once, and draw moving parts on top.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[:, :, :3]).quantize(64).convert("RGB")
    pixels = figure.axes[0].transData.transform(points.cpu().numpy())
    return np.array(picture), pixels * [1, -1] + [0, picture.height]


def histogram_frame(x: Tensor, height: int = 224) -> np.ndarray:
    """Draw the density of the values of `x` from -4 to 4 against N(0, 1), as uint8 (height, 300, 3).

    For players: a matplotlib figure would be too slow. Bars are cut off at a density of 0.8.
    """
    width, top, scale = 300, 0.8, 2  # drawn twice as large and then reduced: smooth edges
    W, H, foot = scale * width, scale * height, scale * 22
    edges = np.linspace(-4, 4, 41)
    counts, _ = np.histogram(x.detach().float().cpu().numpy(), edges)
    density = counts / (max(1, x.numel()) * (edges[1] - edges[0]))  # values outside count, too

    def place(value, density):
        return (value + 4) / 8 * W, (H - foot) * (1 - min(density, top) / top)

    picture = Image.new("RGB", (W, H), "white")
    draw = ImageDraw.Draw(picture)
    for left, right, d in zip(edges[:-1], edges[1:], density, strict=True):
        draw.rectangle([*place(left, d), place(right, 0)[0] - 2, H - foot], fill=COLORS[5] if d else "white")
    points = np.linspace(-4, 4, 161)
    draw.line([place(v, d) for v, d in zip(points, normal_density(points), strict=True)], fill="black", width=3)
    draw.line([0, H - foot, W, H - foot], fill="black", width=2)
    font = ImageFont.load_default(scale * 12)
    for tick in range(-3, 4):
        draw.text((place(tick, 0)[0], H - foot + 8), str(tick), fill="black", font=font, anchor="mt")
    return np.array(picture.reduce(scale))


def label_frame(labels: Sequence[str], height: int = 56) -> np.ndarray:
    """Write each label into the middle of a row that is `height` pixels high, as uint8 (rows * height, W)."""
    font = ImageFont.load_default(height * 0.42)
    width = max(int(font.getlength(label)) for label in labels) + height // 4
    picture = Image.new("L", (width, height * len(labels)), 255)
    draw = ImageDraw.Draw(picture)
    for row, label in enumerate(labels):
        draw.text((0, (row + 0.5) * height), label, fill=0, font=font, anchor="lm")
    return np.array(picture)
