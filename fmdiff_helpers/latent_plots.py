"""Figures of a latent space: a map, chains on the map, and the images that an autoencoder reconstructs."""

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from torch import Tensor, nn

from fmdiff_helpers.data import CLASS_NAMES, to_model, to_uint8
from fmdiff_helpers.latent_paths import encode, principal_axes
from fmdiff_helpers.plots import class_clouds, image_grid


def with_legend(figure: Figure, *marks: Artist) -> Figure:
    """Name the kinds beside a map of `class_clouds`, in the colours of their points, and then `marks` by their labels.

    The names on the map move behind what is drawn there later.
    """
    (axis,), (width, height) = figure.axes, figure.get_size_inches()
    cloud = next(each for each in axis.collections if isinstance(each, PathCollection))
    dots = cloud.legend_elements(num=list(range(len(CLASS_NAMES))))[0]
    for dot in dots:
        dot.set_markersize(7)
    for name in axis.texts:
        name.set(zorder=1.5, color="0.25")
    names = [*CLASS_NAMES, *(mark.get_label() for mark in marks)]
    axis.legend([*dots, *marks], names, loc="upper left", bbox_to_anchor=(1, 1), fontsize=9, frameon=False)
    figure.set_size_inches(width + 1.6, height)
    return figure


def latent_map(autoencoder: nn.Module, images: Tensor, labels: Tensor, method: str = "pca") -> Figure:
    """Draw the latents of images uint8 (N, 1, 28, 28) as points in a plane, coloured by their `labels` (N,).

    `method` "pca" keeps the two directions of largest variance. "tsne" keeps neighbours together, but neither distances
    nor directions; it takes up to a minute for 2000 images. (van der Maaten & Hinton 2008)
    ValueError for another method.
    """
    if method not in ("pca", "tsne"):
        raise ValueError(f"method is {method!r}; expected 'pca' or 'tsne'")
    z = encode(autoencoder, images)
    if method == "pca":
        middle, axes = principal_axes(z)
        return with_legend(class_clouds((z - middle) @ axes, labels, CLASS_NAMES))
    from sklearn.manifold import TSNE  # an import of seconds, which only this map needs

    figure = class_clouds(torch.from_numpy(TSNE(random_state=0).fit_transform(z.cpu().numpy())), labels, CLASS_NAMES)
    figure.axes[0].set(xlabel="", ylabel="")  # the axes of t-SNE mean nothing
    return with_legend(figure)


@torch.no_grad()
def reconstructions(autoencoder: nn.Module, images: Tensor) -> Figure:
    """Draw images uint8 (N, 1, 28, 28), their reconstructions by an autoencoder, and the differences, in three rows."""
    x0 = to_model(images)
    x_hat = autoencoder.from_latent(autoencoder.to_latent(x0))
    rows = ["picture", "from its latent", "difference"]
    return image_grid(torch.cat([x0, x_hat, x_hat - x0]), len(x0), row_labels=rows)


def roomiest(axis: Axes, place: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the offset (2,) from a place, 45 points long, at which a small picture is least among others (N, 2)."""
    axis.autoscale_view()  # or the transformation to points is that of an empty figure
    angle = np.arange(0, 2 * np.pi, np.pi / 8)
    offsets = 45 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    away = (axis.transData.transform(others) - axis.transData.transform(place)) * 72 / axis.figure.dpi
    squares = ((offsets[:, None] - away) ** 2).sum(axis=2)
    return offsets[(1 / (1 + squares)).sum(axis=1).argmin()]


@torch.no_grad()
def draw_ways(autoencoder: nn.Module, paths: Tensor, images: Tensor, labels: Tensor, size: float = 7) -> Figure:
    """Draw chains (K + 1, B, ...) of `record_chain` on the map of `latent_map`: a dot at the noise, a cross at the end.

    A thin line joins each cross with the garment.
    """
    z = encode(autoencoder, images)
    middle, axes = principal_axes(z)
    figure = class_clouds((z - middle) @ axes, labels, CLASS_NAMES, size)
    ways = ((paths.flatten(2) - middle) @ axes).cpu().numpy()
    (axis,) = figure.axes
    line, *_ = axis.plot(*ways.transpose(2, 0, 1), color="black", marker="o", markevery=[0], markersize=7)
    for end, garment in zip(ways[-1], to_uint8(autoencoder.from_latent(paths[-1])).cpu(), strict=True):
        picture = OffsetImage(garment[0].numpy(), zoom=1, cmap="gray", norm=Normalize(0, 255))
        beside = {"xybox": roomiest(axis, end, ways.reshape(-1, 2)), "boxcoords": "offset points"}
        beside |= {"arrowprops": {"arrowstyle": "-", "linewidth": 0.8}}
        axis.add_artist(AnnotationBbox(picture, end, pad=0.1, **beside))
    figure.set_label("map of points, each kind in its colour, with lines from a dot at the noise to a garment")
    look = {"color": "black", "marker": "X", "s": 70, "zorder": 3, "edgecolors": "white"}
    crosses = axis.scatter(*ways[-1].T, **look, label="its end")
    line.set_label("a chain, from its noise")
    return with_legend(figure, line, crosses)


@torch.no_grad()
def chain_figures(
    autoencoder: nn.Module, path: Tensor, times: list[int], images: Tensor, labels: Tensor, columns: int = 9
) -> list[Figure]:
    """Draw one chain (K + 1, ...) of `record_chain`: at most `columns` states as images, and its path on the map."""
    shown = torch.linspace(0, len(times), min(columns, len(path))).round().long().tolist()
    heads = [f"t = {times[k]}" if k < len(times) else "sample" for k in shown]
    pictures = image_grid(autoencoder.from_latent(path[shown]), len(shown), heads)
    return [pictures, draw_ways(autoencoder, path[:, None], images, labels)]
