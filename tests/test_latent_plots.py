"""The claims of fmdiff_helpers.latent_plots: maps, reconstructions and chains show the right points and images."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.colors import to_rgba
from torch import nn
from torch.testing import assert_close

from fmdiff_helpers.data import CLASS_NAMES, to_model, to_uint8
from fmdiff_helpers.latent_paths import principal_axes
from fmdiff_helpers.latent_plots import chain_figures, draw_ways, latent_map, reconstructions, roomiest
from fmdiff_helpers.standin import draw_garments


class Cut(nn.Module):
    """Keep 8 x 8 pixels of the middle, doubled, and put them back on grey.

    Its parameter asks for gradients, as those of a network that has just been trained do.
    """

    def __init__(self):
        super().__init__()
        self.two = nn.Parameter(torch.tensor(2.0))

    def to_latent(self, x0):
        return self.two * x0[:, :, 10:18, 10:18]

    def from_latent(self, z):
        return F.pad(z / self.two, (10, 10, 10, 10))


IMAGES, LABELS = draw_garments(40)
Z = (2 * to_model(IMAGES)[:, :, 10:18, 10:18]).flatten(1)


def on_the_map(z: torch.Tensor) -> torch.Tensor:
    middle, axes = principal_axes(Z)
    return (z.flatten(1) - middle) @ axes


def points(figure) -> torch.Tensor:
    """Return where the points of a map lie, (N, 2); they have the colours of their kinds."""
    cloud = figure.axes[0].collections[0]
    assert cloud.get_array().tolist() == LABELS.tolist()
    return torch.tensor(cloud.get_offsets().data).float()


def pictures(figure, rows: int, columns: int) -> torch.Tensor:
    """Cut the pictures of an image grid out of it, (rows, columns, 28, 28)."""
    whole = torch.tensor(np.asarray(figure.axes[0].images[0].get_array()))
    assert whole.shape == (29 * rows, 29 * columns)
    return whole.reshape(rows, 29, columns, 29).transpose(1, 2)[..., :28, :28]


def test_a_map_shows_the_latents_along_their_principal_axes():
    figure = latent_map(Cut(), IMAGES, LABELS)
    assert_close(points(figure), on_the_map(Z))
    axis = figure.axes[0]
    assert axis.get_xlabel() == "first principal component" and axis.get_ylabel() == "second principal component"


def test_another_way_to_make_a_map_is_refused():
    with pytest.raises(ValueError, match="method is 'PCA'; expected 'pca' or 'tsne'"):
        latent_map(Cut(), IMAGES, LABELS, "PCA")


def test_a_map_by_tsne_keeps_neighbours_together_and_names_no_axes():
    """Images of the same brightness lie nearer to each other than to the others."""
    bright, noise = (
        torch.arange(40) < 15,
        torch.randint(0, 20, (40, 1, 28, 28), generator=torch.Generator().manual_seed(0)),
    )
    figure = latent_map(Cut(), (noise + 200 * bright[:, None, None, None]).byte(), LABELS, "tsne")
    apart = torch.cdist(points(figure), points(figure)).fill_diagonal_(math.inf)
    assert points(figure).shape == (40, 2) and bright[apart.argmin(dim=1)].equal(bright)
    assert figure.axes[0].get_xlabel() == figure.axes[0].get_ylabel() == ""


# Pictures


def test_reconstructions_are_three_rows_and_the_third_is_the_difference_of_the_first_two():
    figure, x0 = reconstructions(Cut(), IMAGES[:4]), to_model(IMAGES[:4])[:, 0]
    first, second, third = pictures(figure, 3, 4)
    middle = torch.zeros(4, 28, 28)
    middle[:, 10:18, 10:18] = x0[:, 10:18, 10:18]
    assert first.equal(x0) and second.equal(middle) and third.equal(middle - x0)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["picture", "from its latent", "difference"]


# Three chains of 10 steps.
PATH, TIMES = torch.randn((11, 3, 1, 8, 8), generator=torch.Generator().manual_seed(1)), list(range(49, -1, -5))


@pytest.mark.parametrize("options, shown", [({"columns": 5}, [0, 2, 5, 8, 10]), ({"columns": 99}, list(range(11)))])
def test_a_chain_is_drawn_as_pictures_with_their_steps_and_as_a_path_on_the_map(options, shown):
    """As many pictures as there are columns, or states, from the noise to the sample."""
    path = PATH[:, 1]
    row, chart = chain_figures(Cut(), path, TIMES, IMAGES, LABELS, **options)
    assert pictures(row, 1, len(shown))[0].equal(F.pad(path[shown] / 2, (10, 10, 10, 10))[:, 0])
    heads = [label.get_text() for label in row.axes[0].get_xticklabels()]
    assert heads == [f"t = {TIMES[k]}" for k in shown[:-1]] + ["sample"] and heads[0] == "t = 49"
    assert_close(lines(chart), on_the_map(path)[None])


def lines(figure) -> torch.Tensor:
    """Return the lines of a figure, (lines, points, 2)."""
    return torch.tensor(np.stack([line.get_xydata() for line in figure.axes[0].lines])).float()


def test_chains_on_the_map_lead_from_a_dot_at_the_noise_to_their_garment():
    figure = draw_ways(Cut(), PATH, IMAGES, LABELS)
    ways = torch.stack([on_the_map(state) for state in PATH], dim=1)
    assert_close(lines(figure), ways)
    assert all(line.get_marker() == "o" and line.get_markevery() == [0] for line in figure.axes[0].lines)
    for k, garment in enumerate(figure.axes[0].artists):
        assert_close(torch.tensor(np.array(garment.xy)), ways[k, -1])
        assert (garment.offsetbox.get_data() == to_uint8(F.pad(PATH[-1] / 2, (10, 10, 10, 10)))[k, 0].numpy()).all()
    assert len(figure.axes[0].artists) == 3
    assert_close(points(figure), on_the_map(Z))


def test_a_garment_stands_beside_the_way_and_not_on_it():
    """The way comes from the left, so the picture stands on the right of its end."""
    figure = draw_ways(Cut(), PATH, IMAGES, LABELS)
    (axis,) = figure.axes
    others = np.stack([np.linspace(-1, 0, 20), np.zeros(20)], axis=1)
    assert all(np.linalg.norm(garment.xybox) == pytest.approx(45) for garment in axis.artists)
    right, up = roomiest(axis, others[-1], others)
    assert right == pytest.approx(45) and abs(up) < 1e-9
    assert roomiest(axis, -others[-1], -others)[0] == pytest.approx(-45)


@pytest.mark.parametrize("draw", [latent_map, lambda *about: draw_ways(about[0], PATH, *about[1:])])
def test_a_legend_beside_the_map_names_each_kind_in_the_colour_of_its_points(draw):
    axis = draw(Cut(), IMAGES, LABELS).axes[0]
    legend, cloud = axis.get_legend(), axis.collections[0]
    assert [text.get_text() for text in legend.get_texts()][:10] == list(CLASS_NAMES)
    for kind, mark in enumerate(legend.legend_handles[:10]):
        assert to_rgba(mark.get_color()) == pytest.approx(cloud.cmap(cloud.norm(kind)))


def test_a_legend_says_which_mark_is_the_end_of_a_chain():
    figure = draw_ways(Cut(), PATH, IMAGES, LABELS)
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names[10:] == ["a chain, from its noise", "its end"]
    assert_close(torch.tensor(figure.axes[0].collections[1].get_offsets().data).float(), on_the_map(PATH[-1]))
