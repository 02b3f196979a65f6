"""A look inside a network: what each of its parts gives, and a drawing of the U that a U-Net is."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from fmdiff_helpers.plots import COLORS, new_figure


@torch.no_grad()
def part_outputs(network: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """Run a network and return what each of its direct parts gave, by name, in the order in which they worked."""
    found = {}

    def keep(name: str):
        return lambda part, given, output: found.update({name: output})

    hooks = [part.register_forward_hook(keep(name)) for name, part in network.named_children()]
    try:
        network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def draw_u(maps: dict[str, Tensor], skips: Sequence[tuple[str, str]]) -> Figure:
    """Draw named maps (B, C, H, W) from left to right; the smaller a map, the lower it stands. Shown is channel 0.

    Solid arrows lead from each map to the next one, a dashed arrow from the first to the second name of each skip.
    """
    figure, (axis,) = new_figure(1.05 * len(maps), 5.2)
    sizes = sorted({each.shape[-1] for each in maps.values()}, reverse=True)
    places = {name: (k, -2.2 * sizes.index(each.shape[-1])) for k, (name, each) in enumerate(maps.items())}
    boxes, blank = {}, {"facecolor": "white", "edgecolor": "none", "pad": 1}
    for name, (x, y) in places.items():
        edges = (x - 0.4, x + 0.4, y - 0.4, y + 0.4)
        boxes[name] = Rectangle((x - 0.4, y - 0.4), 0.8, 0.8, fill=False, edgecolor=COLORS[0], linewidth=1.5)
        axis.add_patch(boxes[name])
        picture = maps[name][0, 0].detach().float().cpu().numpy()
        axis.imshow(picture, cmap="gray", extent=edges, interpolation="nearest")
        channels = maps[name].shape[1]
        words = f"{name.replace('_', ' ')}\n{channels} channel{'s' * (channels > 1)}"
        axis.text(x, y - 0.46, words, ha="center", va="top", fontsize=8, bbox=blank)
    for before, after in pairwise(places):
        look = {"arrowstyle": "-|>", "color": "black", "patchA": boxes[before], "patchB": boxes[after]}
        axis.annotate("", places[after], places[before], arrowprops=look)
    dashes = {"color": COLORS[1], "linestyle": "--", "linewidth": 1.8}
    for before, after in skips:
        (left, y), (right, _) = places[before], places[after]
        lane = y + 0.45 + 0.07 * (right - left)  # the wider a skip, the higher it runs
        axis.plot([left, left, right], [y + 0.42, lane, lane], **dashes)
        axis.annotate("", (right, y + 0.4), (right, lane), arrowprops=dashes | {"arrowstyle": "-|>"})
    axis.plot([], [], **dashes, label="skip: the map is passed on as it is")
    axis.legend(loc="lower left", frameon=False, fontsize=9)
    axis.set(xlim=(-0.6, len(maps) - 0.4), ylim=(-2.2 * len(sizes) + 1, 0.6), xticks=[], aspect="auto")
    axis.set_yticks([-2.2 * level for level in range(len(sizes))], [f"{size} x {size}" for size in sizes])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.grid(False)
    figure.set_label("the U of a U-Net: maps in boxes, large ones above and small ones below, joined by arrows")
    return figure


def legend_beside(figure: Figure) -> Figure:
    """Move the legend of a figure's first axes to their right, where it hides no curve, and return the figure."""
    figure.axes[0].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure
