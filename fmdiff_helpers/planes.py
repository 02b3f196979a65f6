"""Figures of planes: clouds of points, arrows between points, and the ways that points go."""

from itertools import cycle

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from fmdiff_helpers.plots import COLORS, new_figure

CLOUD_COLORS, ARROW_COLORS = ("0.8", COLORS[5], "black"), ("black", COLORS[1], COLORS[3])
PANEL = 3.4  # inches
Clouds = dict[str, Tensor]
Arrows = dict[str, tuple[Tensor, Tensor]]


def planes(panels: dict[str, tuple[Clouds, Arrows]], xlabel: str, ylabel: str) -> Figure:
    """Draw planes side by side, all on the same scale; each has a title, up to three clouds and up to three arrows.

    Clouds map names to points (N, 2). Arrows map names to their tails (M, 2) and heads (M, 2). One legend, for the
    names of the first panel, stands below them.
    """
    figure, axes = new_figure(PANEL * len(panels), PANEL, columns=len(panels))
    ends = []
    for axis, (title, (clouds, arrows)) in zip(axes, panels.items(), strict=True):
        for (name, points), color in zip(clouds.items(), CLOUD_COLORS, strict=False):
            axis.scatter(*points.T.cpu(), s=4, color=color, label=name)
        look = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.01, "zorder": 3}
        for (name, (tails, heads)), color in zip(arrows.items(), ARROW_COLORS, strict=False):
            axis.quiver(*tails.T.cpu(), *(heads - tails).T.cpu(), color=color, label=name, **look)
        axis.set(title=title, xlabel=xlabel, aspect="equal")
        ends += [*clouds.values(), *(end for pair in arrows.values() for end in pair)]
    fit(figure, axes, torch.cat(ends))
    axes[0].set(ylabel=ylabel)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), markerscale=3)
    return figure


def ways(panels: dict[str, tuple[Clouds, Tensor]], xlabel: str, ylabel: str) -> Figure:
    """Draw ways side by side, all on the same scale; each panel has a title, up to three clouds, and ways (K, M, 2).

    Each of the M ways leads through K places, has a colour of its own, and ends in a dot.
    """
    figure, axes = new_figure(PANEL * len(panels), PANEL, columns=len(panels))
    for axis, (title, (clouds, paths)) in zip(axes, panels.items(), strict=True):
        for (name, points), color in zip(clouds.items(), CLOUD_COLORS, strict=False):
            axis.scatter(*points.T.cpu(), s=4, color=color, label=name)
        for way, color in zip(paths.unbind(1), cycle(COLORS)):
            axis.plot(*way.T.cpu(), color=color, linewidth=1)
            axis.scatter(*way[-1].cpu(), s=12, color=color, zorder=3)
        axis.set(title=title, xlabel=xlabel, aspect="equal")
    fit(figure, axes, torch.cat([part for clouds, paths in panels.values() for part in (*clouds.values(), *paths)]))
    axes[0].set(ylabel=ylabel)
    return figure


def fit(figure: Figure, axes: list[plt.Axes], points: Tensor) -> None:
    """Give all axes the limits of points (N, 2), and the figure the height that follows."""
    low, high = points.cpu().aminmax(dim=0)
    margin = 0.05 * (high - low).max().item() or 1.0  # a single point has no extent
    (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
    for axis in axes:
        axis.set(xlim=(left, right), ylim=(bottom, top))
    height = 0.85 * PANEL * (top - bottom) / (right - left)
    figure.set_size_inches(PANEL * len(axes), height + 1.2)  # with room for titles and legend
