"""What the parts of a network give, and the drawing of a U."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fmdiff_helpers.models.unet import number_of_heads
from fmdiff_helpers.plots import curves
from fmdiff_helpers.unet_plots import draw_u, legend_beside, part_outputs


class Crossed(nn.Module):
    """Two parts that work in the other order than they were made in."""

    def __init__(self):
        super().__init__()
        self.second, self.first, self.idle = nn.Linear(3, 2), nn.Linear(4, 3), nn.Linear(1, 1)

    def forward(self, x):
        return self.second(self.first(x))


def test_outputs_come_by_name_in_the_order_of_work_and_no_hook_stays():
    network, x = Crossed(), torch.randn(5, 4)
    found = part_outputs(network, x)
    assert list(found) == ["first", "second"]
    assert_close(found["first"], network.first(x).detach())
    assert_close(found["second"], network(x).detach())
    assert not any(part._forward_hooks for part in network.children())


def test_no_hook_stays_after_an_error():
    network = Crossed()
    with pytest.raises(RuntimeError, match="shapes"):
        part_outputs(network, torch.randn(5, 3))
    assert not any(part._forward_hooks for part in network.children())


MAPS = {"x": (1, 1, 8, 8), "down_outer": (1, 6, 4, 4), "middle": (1, 9, 2, 2), "up": (1, 6, 4, 4), "out": (1, 1, 8, 8)}


def test_a_picture_of_each_map_lower_where_the_map_is_smaller_and_an_arrow_to_the_next():
    (axis,) = draw_u({name: torch.zeros(shape) for name, shape in MAPS.items()}, [("down_outer", "up")]).axes
    written = {text.get_text(): text.get_position() for text in axis.texts if text.get_text()}
    assert written == {
        "x\n1 channel": (0, -0.46),
        "down outer\n6 channels": (1, -2.66),
        "middle\n9 channels": (2, -4.86),
        "up\n6 channels": (3, -2.66),
        "out\n1 channel": (4, -0.46),
    }
    assert [image.get_array().shape for image in axis.images] == [shape[2:] for shape in MAPS.values()]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["8 x 8", "4 x 4", "2 x 2"]
    assert len(axis.texts) == 5 + 4 + 1  # maps, arrows between them, the arrow of the skip
    lane = axis.lines[0].get_xydata()
    assert lane[0][0] == 1 and lane[-1][0] == 3 and lane[1][1] > -2.2 + 0.4


@pytest.mark.parametrize(("channels", "heads"), [(1, 1), (32, 1), (64, 2), (96, 3), (65, 1), (100, 2)])
def test_a_head_has_at_least_32_channels_and_all_have_as_many(channels, heads):
    assert number_of_heads(channels) == heads


def test_a_legend_beside_the_axes_names_all_curves_and_covers_none():
    figure = legend_beside(curves([0, 1], {"up": [0, 1], "down": [1, 0]}, "x", "y"))
    figure.draw_without_rendering()
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["up", "down"]
    assert axis.get_legend().get_window_extent().x0 >= axis.get_window_extent().x1
