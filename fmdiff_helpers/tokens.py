"""What a transformer does with the patches of a picture, made visible; and how large the tensors are that it makes."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fmdiff_helpers.plots import COLORS, new_figure


def patch_maps(
    maps: Tensor,
    marked: Sequence[int],
    column_labels: Sequence[str],
    row_labels: Sequence[str],
    label: str,
    limits: tuple[float, float],
) -> Figure:
    """Draw maps (N, rows, columns), one value for each patch of a picture, in a grid; a bar says what they mean.

    A ring marks patch number `marked[k]` of map k, counted row by row. Values outside `limits` get the end colours.
    ValueError unless there is one map, and one ring, for each row and column label.
    """
    across, down = len(column_labels), len(row_labels)
    if not len(maps) == len(marked) == across * down:
        raise ValueError(f"{len(maps)} maps and {len(marked)} rings for {down} rows of {across}; expected one for each")
    figure, (axis,) = new_figure(1.1 * across + 2.4, 1.1 * down + 0.5)
    rows, columns = maps.shape[1:]
    picture = np.full((down * (rows + 1) - 1, across * (columns + 1) - 1), np.nan)  # a gap between two maps
    for k, one in enumerate(maps.detach().float().cpu().numpy()):
        top, left = k // across * (rows + 1), k % across * (columns + 1)
        picture[top : top + rows, left : left + columns] = one
        place = left + marked[k] % columns, top + marked[k] // columns
        axis.plot(
            *place, marker="o", markersize=7, markerfacecolor="none", markeredgecolor=COLORS[1], markeredgewidth=2
        )
    drawn = axis.imshow(picture, cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="nearest")
    axis.set_xticks(np.arange(across) * (columns + 1) + (columns - 1) / 2, column_labels)
    axis.set_yticks(np.arange(down) * (rows + 1) + (rows - 1) / 2, row_labels)
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    axis.grid(False)
    figure.colorbar(drawn, ax=axis, label=label, shrink=0.9)
    return figure


class Sizes(TorchDispatchMode):
    """Note the number of entries of each tensor that PyTorch makes while this mode is on."""

    def __init__(self):
        super().__init__()
        self.entries = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Do what was asked for, and look at the result."""
        result = function(*args, **(kwargs or {}))
        self.entries += [part.numel() for part in tree_leaves(result) if isinstance(part, Tensor)]
        return result


def tensors_made(function: Callable, *arguments: Tensor) -> list[int]:
    """Return the number of entries of each tensor that a function makes on its way, its result included.

    What a fused operation keeps inside itself does not count.
    """
    with Sizes() as seen, torch.no_grad():
        function(*arguments)
    return seen.entries


def largest_tensor(function: Callable, *arguments: Tensor) -> int:
    """Return the number of entries of the largest tensor that a function makes."""
    return max(tensors_made(function, *arguments), default=0)


def entries_made(function: Callable, *arguments: Tensor) -> int:
    """Return how many entries all tensors that a function makes have together: how much work it is."""
    return sum(tensors_made(function, *arguments))
