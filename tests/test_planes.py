"""The claims of fmdiff_helpers.planes: points and arrows stand where they should, on one scale, with names."""

import pytest
import torch
from numpy.testing import assert_allclose

from fmdiff_helpers.planes import planes, ways

A, B = torch.tensor([[0.0, 0.0], [4.0, 1.0]]), torch.tensor([[-2.0, 3.0]])
TAILS, HEADS = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 8.0], [-3.0, 1.0]])


@pytest.fixture
def figure():
    return planes({"first": ({"a": A, "b": B}, {"to": (TAILS, HEADS)}), "second": ({"a": A}, {})}, "x", "y")


def test_points_and_arrows_are_where_they_should_be(figure):
    a, b, arrows = figure.axes[0].collections
    assert_allclose(a.get_offsets(), A)
    assert_allclose(b.get_offsets(), B)
    assert_allclose(arrows.XY, TAILS)
    assert_allclose(torch.tensor([*zip(arrows.U, arrows.V, strict=True)]), HEADS - TAILS)
    assert (arrows.angles, arrows.scale_units, arrows.scale) == ("xy", "xy", 1)  # lengths are those of the axes


def test_all_planes_have_one_scale_that_holds_every_point_and_arrow(figure):
    first, second = figure.axes
    assert first.get_xlim() == second.get_xlim() and first.get_ylim() == second.get_ylim()
    assert first.get_xlim()[0] < -3 and first.get_xlim()[1] > 4
    assert first.get_ylim()[0] < 0 and first.get_ylim()[1] > 8
    assert first.get_aspect() == 1


def test_axes_titles_clouds_and_arrows_have_names(figure):
    first, second = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["first", "second"]
    assert (first.get_xlabel(), second.get_xlabel(), first.get_ylabel()) == ("x", "x", "y")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == ["a", "b", "to"]
    colors = [tuple(each.get_facecolor()[0]) for each in first.collections]
    assert len(set(colors)) == 3


def test_ways_lead_through_their_places_and_end_in_a_dot():
    paths = torch.stack([A, A + 5, A - 2])  # three places of two ways
    figure = ways({"first": ({"a": B}, paths), "second": ({}, 2 * paths)}, "x", "y")
    first, second = figure.axes
    for line, way in zip(first.lines, paths.unbind(1), strict=True):
        assert_allclose(line.get_xydata(), way)
    assert_allclose(first.collections[0].get_offsets(), B)
    assert_allclose(torch.tensor([part.get_offsets()[0].tolist() for part in first.collections[1:]]), paths[-1])
    assert first.get_xlim() == second.get_xlim() and second.get_xlim()[1] > 18 and second.get_ylim()[1] > 12
    assert second.get_title() == "second" and len({line.get_color() for line in first.lines}) == 2


def test_a_single_point_is_in_the_middle():
    axis = planes({"": ({"a": TAILS[:1]}, {})}, "x", "y").axes[0]
    assert axis.get_xlim() == axis.get_ylim() == (-1, 1)
