"""Figures in one style: fixed grey scale, labelled axes, colours that colour-blind readers can tell apart.

Each function returns a matplotlib figure, which a notebook shows if it is the last value of a cell. Images are
(N, 1, H, W), uint8 from 0 to 255 or floating point from -1 to 1; values outside are drawn black or white.
"""

from collections.abc import Sequence
from itertools import cycle
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from torch import Tensor

from fmdiff_helpers.ticks import label_plainly
from fmdiff_helpers.tiling import tile

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito 2008
STYLE = {
    "figure.dpi": 80,
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.prop_cycle": plt.cycler(color=COLORS),
}


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[plt.Axes]]:
    """Return a figure in the style of the series with `columns` axes; width and height in inches."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, columns, figsize=(width, height), squeeze=False)
    plt.close(figure)  # otherwise a notebook draws it twice: as pyplot's open figure and as the cell's value
    return figure, list(axes[0])


def image_grid(
    images: Tensor,
    columns: int,
    column_labels: Sequence[str] = (),
    row_labels: Sequence[str] = (),
    scale: int = 3,
) -> Figure:
    """Draw images (N, 1 or 3, H, W) in rows of `columns`, with labels; each pixel becomes `scale` x `scale` pixels."""
    picture = tile(images.detach().cpu(), columns, gap=1).float().numpy()
    black, white = (0, 255) if images.dtype == torch.uint8 else (-1, 1)
    if picture.ndim == 3:  # matplotlib takes colours from 0 to 1
        picture = ((picture - black) / (white - black)).clip(0, 1)
    rows = len(images) // columns
    if len(column_labels) not in (0, columns) or len(row_labels) not in (0, rows):
        found = f"{len(column_labels)} column labels and {len(row_labels)} row labels"
        raise ValueError(f"{found} for {columns} columns and {rows} rows; expected one for each, or none")
    height, width = (size * scale / STYLE["figure.dpi"] for size in picture.shape[:2])  # in inches
    column_labels, size = fitted(column_labels, 72 * width / columns - 3)
    lines = max((label.count("\n") + 1 for label in column_labels), default=0)
    left, top = 1.3 * bool(row_labels), 0.1 * bool(lines) + 0.2 * lines
    figure, (axis,) = new_figure(left + width, top + height)
    # With any other size, some pixels would be wider than others.
    axis.set_position([left / (left + width), 0, width / (left + width), height / (top + height)])
    grey = {"cmap": "gray", "vmin": black, "vmax": white, "interpolation": "nearest"}
    axis.imshow(picture, extent=(0, columns, rows, 0), aspect="auto", **grey)
    axis.set_xticks(np.arange(len(column_labels)) + 0.5, column_labels, fontsize=size)
    axis.set_yticks(np.arange(len(row_labels)) + 0.5, row_labels)
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    axis.grid(False)
    return figure


def fitted(labels: Sequence[str], width: float) -> tuple[list[str], float]:
    """Return labels and their font size, from 11 down to 8 so that each is at most `width` points wide.

    What is too wide even at size 8 is broken at its spaces.
    """
    widths = [TextPath((0, 0), label, size=100).get_extents().width / 100 for label in labels if label.strip()]
    widest = max(widths, default=0.01)  # at size 1
    size = float(np.clip(width / widest, 8, 11))
    letters = max(1, int(max(map(len, labels), default=1) * width / (widest * size)))
    return [fill(label, letters, break_long_words=False) for label in labels], size


def two_ways(images: Tensor, column_labels: Sequence[str], row_labels: Sequence[str], there: str, back: str) -> Figure:
    """Draw images (N, 1, H, W) in rows; an arrow above them points to the right, one below them to the left."""
    figure, room = image_grid(images, len(column_labels), column_labels, row_labels), 0.35  # inches for each arrow
    (axis,), (width, height) = figure.axes, figure.get_size_inches()
    left, _, wide, high = axis.get_position().bounds
    share = height / (height + 2 * room)
    figure.set_size_inches(width, height + 2 * room)
    axis.set_position([left, (1 - share) / 2, wide, high * share])
    middle = room / 2 / (high * height)  # of the room for an arrow, in heights of the axis
    for text, y, tail, head, color in ((there, 1 / high + middle, 0, 1, COLORS[0]), (back, -middle, 1, 0, COLORS[1])):
        look = {"arrowstyle": "-|>", "linewidth": 3, "color": color, "shrinkA": 0, "shrinkB": 0}
        axis.annotate("", (head, y), (tail, y), "axes fraction", arrowprops=look)
        look = {"ha": "center", "va": "center", "backgroundcolor": "white", "color": color}
        axis.text(0.5, y, text, transform=axis.transAxes, **look)
    return figure


def curves(
    x: Tensor | Sequence,
    lines: dict[str, Tensor | Sequence],
    xlabel: str,
    ylabel: str,
    yscale: str = "linear",
    marker: str = "",
    xscale: str = "linear",
    spreads: dict[str, Sequence] | None = None,
) -> Figure:
    """Draw named lines, each as long as `x`, on one pair of axes; scales are "linear" or "log".

    `spreads` maps the names of some or all lines to the half-lengths of their error bars.
    """
    figure, (axis,) = new_figure(7, 3.6)
    x = x.detach().cpu() if isinstance(x, Tensor) else x
    for name, line in lines.items():
        line = torch.as_tensor(line).detach().float().cpu()
        (drawn,) = axis.plot(x, line, marker=marker, label=name)
        if spreads and name in spreads:
            axis.errorbar(x, line, spreads[name], fmt="none", ecolor=drawn.get_color(), capsize=3)
    axis.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale)
    label_plainly(axis.xaxis, axis.yaxis)
    axis.legend()
    return figure


def tradeoff(lines: dict[str, Sequence[tuple[float, float, str]]], xlabel: str, ylabel: str, floor: float) -> Figure:
    """Draw named lines through points (x, y, label) on logarithmic axes; the area below `floor` is grey.

    Names that agree up to the first comma share a colour; each has another marker. A line without points is not drawn:
    the others look as they do beside it. Discs on a thick grey line show the Pareto front: the points that no other
    point beats in both x and y.
    """
    figure, (axis,) = new_figure(10, 6.2)
    kin = {name: [other for other in lines if other.split(",")[0] == name.split(",")[0]] for name in lines}
    firsts = dict.fromkeys(names[0] for names in kin.values())
    colors = dict(zip(firsts, cycle((*COLORS, "black")), strict=False))
    for name, points in lines.items():
        if not points:
            continue
        x, y, _ = zip(*sorted(points), strict=True)
        variant, color = kin[name].index(name), colors[kin[name][0]]
        look = {"color": color, "marker": "os^D"[variant % 4], "linestyle": "--" if variant else "-"}
        axis.plot(x, y, label=name, **look)
    points, best = sorted(point for points in lines.values() for point in points), []
    for x, y, _ in points:
        best += [(x, y)] if not best or y < best[-1][1] else []
    axis.plot(*zip(*best, strict=True), "o-", color="black", linewidth=6, markersize=16, alpha=0.15, zorder=0)
    axis.set(xlabel=xlabel, ylabel=ylabel, xscale="log", yscale="log", ylim=(0.7 * floor, None))
    label_plainly(axis.xaxis, axis.yaxis)
    axis.axhspan(0.7 * floor, floor, color="black", alpha=0.1)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.set_label("trade-off; a thick grey line joins the points that no other beats in both")
    label_points(figure, [(*point, colors[kin[name][0]]) for name in lines for point in sorted(lines[name])])
    return figure


def label_points(figure: Figure, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Label points (x, y, label, color), each on the side where its label covers the fewest points and labels."""
    figure.draw_without_rendering()  # only then the axes have their size
    (axis,) = figure.axes
    centres = axis.transData.transform([point[:2] for point in points])
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in centres]  # in pixels: left, bottom, right, top

    def box(centre: np.ndarray, label: str, side: tuple[float, float]) -> tuple[float, ...]:
        (x, y), width = centre, 6 * len(label)
        left, bottom = x + (5 if side[0] > 0 else -5 - width), y + 9 * side[1] - 5
        return left, bottom, left + width, bottom + 10

    for centre, (x, y, label, color) in zip(centres, points, strict=True):
        sides = [(right, up) for up in (1, -1, 0, 2, -2) for right in (1, -1)] if label else [(1, 1)]
        boxes = [box(centre, label, side) for side in sides]
        covered = [sum(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in taken) for a in boxes]
        place = boxes[covered.index(min(covered))]
        taken.append(place)
        offset = {"xytext": (place[0] - centre[0], place[1] - centre[1]), "textcoords": "offset pixels"}
        axis.annotate(label, (x, y), fontsize=8, color=color, **offset)


def balls(real: Tensor, drawn: Tensor, radius: Tensor) -> Figure:
    """Draw real points (N, 2), the balls of `radius` (N,) around them, and generated points (M, 2)."""
    figure, (axis,) = new_figure(5, 5)
    for centre, reach in zip(real.tolist(), radius.tolist(), strict=True):
        axis.add_patch(plt.Circle(centre, reach, color=COLORS[0], alpha=0.12, linewidth=0))
    axis.scatter(*real.T.cpu(), color=COLORS[0], s=14, label="real")
    axis.scatter(*drawn.T.cpu(), color=COLORS[1], s=14, marker="x", label="drawn")
    axis.set(aspect="equal")
    axis.legend()
    figure.set_label("points in a plane, and a ball around each real one")
    return figure


def loss_curves(history: list[dict]) -> Figure:
    """Draw the training loss of a history, as `train` reports it, and its validation loss if there is one."""
    steps = [point["step"] for point in history]
    validation = [point["validation"]["loss"] if "validation" in point else np.nan for point in history]
    lines = {"training": [point.get("loss", np.nan) for point in history], "validation": validation}
    return curves(steps, lines, xlabel="step", ylabel="loss", marker=".", yscale="log")


def schedule_curves(schedules: dict) -> Figure:
    """Draw named schedules against progress: how much of the picture is left, and the SNR in dB."""
    figure, (left, right) = new_figure(11, 3.8, columns=2)
    dashes = ("-", "--", "-.", ":", (0, (6, 1)))  # so that both of two equal schedules are visible
    for (name, schedule), style in zip(schedules.items(), cycle(dashes), strict=False):
        progress = (torch.arange(schedule.T) + 1) / schedule.T
        left.plot(progress, schedule.signal_scale.cpu(), linestyle=style, label=name)
        right.plot(progress, schedule.log_snr_db.cpu(), linestyle=style, label=name)
    left.set(xlabel="progress (t + 1) / T", ylabel="signal scale", title="How much of the picture is left")
    right.set(xlabel="progress (t + 1) / T", ylabel="SNR in dB", title="The same, as signal-to-noise ratio")
    right.set_ylim(-45, 45)
    right.axhline(0, color="black", linewidth=0.8)
    left.legend()
    return figure


def snr_shares(tables: dict[str, Tensor], width: float = 5, limit: float = 50) -> Figure:
    """Draw how many percent of its steps each named chain spends in each range of `width` dB of its SNR.

    `tables` hold the SNR of each step in dB, (T,). Steps beyond plus or minus `limit` count in the outermost ranges.
    """
    figure, (axis,) = new_figure(9, 3.8)
    edges = np.arange(-limit, limit + width, width)
    for (name, table), style in zip(tables.items(), cycle(("-", "--", "-.", ":", (0, (6, 1)))), strict=False):
        snr = table.detach().cpu().clamp(edges[0] + width / 2, edges[-1] - width / 2).numpy()
        shares = np.histogram(snr, edges)[0] * 100 / len(snr)
        axis.stairs(shares, edges, label=name, linestyle=style, linewidth=1.8)
    axis.set(
        xlabel="SNR in dB (less noise on the left)", ylabel=f"% of the steps in each {width:g} dB", xlim=(limit, -limit)
    )
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def histograms(
    values: dict[str, Tensor],
    gaussians: dict[str, tuple[float, float]] | None = None,
    limits: tuple[float, float] = (-4, 4),
    xlabel: str = "pixel value",
    title: str = "",
    bins: int = 80,
) -> Figure:
    """Draw densities of named values, the first one filled, and named Gaussians (mean, std), the last one black.

    If `gaussians` is None, draw N(0, 1); if it is {}, draw none.
    """
    figure, (axis,) = new_figure(9, 3.4)
    edges = np.linspace(*limits, bins + 1)
    for k, (name, value) in enumerate(values.items()):
        look = {"histtype": "step", "linewidth": 1.5} if k else {"alpha": 0.4}
        value = value.detach().float().flatten().cpu().numpy()
        weights = np.full(len(value), 1 / (len(value) * (edges[1] - edges[0])))  # values outside count, too
        axis.hist(value, edges, weights=weights, label=name, **look)
    plot_gaussians(axis, edges, {"N(0, 1)": (0, 1)} if gaussians is None else gaussians)
    axis.set(xlabel=xlabel, ylabel="density", title=title)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def plot_gaussians(axis: plt.Axes, x: np.ndarray, gaussians: dict[str, tuple[float, float]]) -> None:
    """Plot the densities of named Gaussians (mean, std) at `x`: the last one black, the others dashed."""
    for k, (name, (mean, std)) in enumerate(gaussians.items(), 1):
        look = {"color": "black"} if k == len(gaussians) else {"linestyle": "--"}
        axis.plot(x, normal_density(x, mean, std), label=name, **look)


def class_clouds(points: Tensor, labels: Tensor, names: Sequence[str], size: float = 6) -> Figure:
    """Draw points (N, 2) in ten colours, one for each label (N,); size in inches.

    The name of each kind stands near the median of its points, in a frame of their colour.
    """
    figure, (axis,) = new_figure(size, size)
    points, labels = points.cpu().numpy(), labels.cpu().numpy()
    axis.scatter(*points.T, c=labels, cmap="tab10", vmin=-0.5, vmax=9.5, s=4, linewidths=0)
    middles = np.stack([np.median(points[labels == kind], axis=0) for kind in range(len(names))])
    box = {"boxstyle": "round,pad=0.15", "facecolor": (1, 1, 1, 0.75), "linewidth": 1.5}
    frames = plt.get_cmap("tab10")
    # Names help readers who cannot tell ten colours apart. A name that would cover another moves up.
    wide, high = np.ptp(points, axis=0) * (1.4, 0.35) / size
    placed = []
    for kind in middles[:, 1].argsort():
        x, y = middles[kind]
        while any(abs(x - left) < wide and abs(y - low) < high for left, low in placed):
            y += high / 4
        placed.append((x, y))
        axis.text(x, y, names[kind], ha="center", va="center", fontsize=9, bbox=box | {"edgecolor": frames(kind)})
    axis.set(xlabel="first principal component", ylabel="second principal component")
    figure.set_label("map of points, each kind in its colour")
    return figure


def class_planes(points: dict[str, Tensor], labels: Tensor, names: Sequence[str], reach: float) -> Figure:
    """Draw several named clouds of points (N, 2) side by side, from -reach to reach; each label (N,) has its colour."""
    figure, axes = new_figure(3 * len(points), 3.4, columns=len(points))
    for axis, (title, cloud) in zip(axes, points.items(), strict=True):
        colors = {"c": labels.cpu().numpy(), "cmap": "tab10", "vmin": -0.5, "vmax": 9.5}
        drawn = axis.scatter(*cloud.cpu().numpy().T, **colors, s=3, linewidths=0)
        axis.set(title=title, xlabel="first direction", xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes[0].set_ylabel("second direction")
    marks = drawn.legend_elements(num=list(range(len(names))))[0]
    axes[-1].legend(marks, names, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, frameon=False)
    return figure


def class_distributions(points: Tensor, labels: Tensor, names: Sequence[str], xlabels: Sequence[str]) -> Figure:
    """Draw the distribution of each of the d numbers of points (N, d), kind by kind; a bar marks each median.

    `labels` (N,) are the kinds of the points, `names` the names of the kinds, `xlabels` those of the d numbers.
    """
    figure, axes = new_figure(3.5 * points.shape[1], 4, columns=points.shape[1])
    points, labels = points.cpu().numpy(), labels.cpu().numpy()
    rows = np.arange(len(names))
    for axis, xlabel, values in zip(axes, xlabels, points.T, strict=True):
        kinds = [values[labels == kind] for kind in rows]
        axis.violinplot(kinds, rows, orientation="horizontal", widths=0.9, showmedians=True, showextrema=False)
        axis.set(xlabel=xlabel, yticks=rows, yticklabels=names if axis is axes[0] else [])
        axis.invert_yaxis()
    figure.set_label("how the values of each row are spread; a bar marks each median")
    return figure


def normal_density(x: np.ndarray, mean: float = 0.0, std: float = 1.0) -> np.ndarray:
    """Return the density of N(mean, std^2) at x."""
    return np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
