"""fmdiff_helpers.plots and tiling: pictures show the numbers they are given, on one scale, and leave no trace."""

import math
from itertools import pairwise
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.textpath import TextPath
from numpy.testing import assert_allclose

from fmdiff_helpers.data import to_model
from fmdiff_helpers.frames import as_frame, histogram_frame, label_frame
from fmdiff_helpers.plots import (
    COLORS,
    balls,
    class_clouds,
    class_distributions,
    class_planes,
    curves,
    fitted,
    histograms,
    image_grid,
    loss_curves,
    new_figure,
    normal_density,
    schedule_curves,
    snr_shares,
    tradeoff,
    two_ways,
)
from fmdiff_helpers.schedules import Schedule, cosine_beta, linear_beta
from fmdiff_helpers.ticks import plain_number
from fmdiff_helpers.tiling import tile

IMAGES = torch.randint(0, 256, (6, 1, 5, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
POINTS, KINDS = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 9.0], [5.0, 8.0]]), torch.tensor([0, 0, 0, 1])
HISTORY = [
    {"step": 50, "loss": 0.8},
    {"step": 100, "loss": 0.4, "validation": {"loss": 0.5, "kl": 7.0}},
    {"step": 150, "loss": 0.1},
    {"step": 180, "loss": 0.02, "validation": {"loss": 0.3, "kl": 8.0}},
]
LINES = {
    "a": [(8.0, 1.0, "20"), (2.0, 4.0, "5"), (4.0, 2.0, "10")],
    "b": [(3.0, 6.0, "5"), (9.0, 2.5, "10")],
    "a, guided": [(5.0, 3.0, "5"), (16.0, 0.7, "20")],
}
SCHEDULES = {"linear, T = 1000": Schedule(linear_beta(1000)), "cosine, T = 50": Schedule(cosine_beta(50))}


def drawn(figure) -> np.ndarray:
    """The pixels of a figure, as a notebook shows it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def texts(labels) -> list[str]:
    return [label.get_text() for label in labels]


# Every figure

EVERY_FIGURE = {
    "new_figure": lambda: new_figure(4, 3, columns=2)[0],
    "image_grid": lambda: image_grid(IMAGES, 3, ["a", "b", "c"], ["x", "y"]),
    "curves": lambda: curves([0, 1], {"a": torch.tensor([0.0, 1.0])}, "x", "y"),
    "curves with spreads": lambda: curves([0, 1], {"a": [0.0, 1.0]}, "x", "y", spreads={"a": [0.1, 0.2]}),
    "loss_curves": lambda: loss_curves(HISTORY),
    "tradeoff": lambda: tradeoff(LINES, "seconds", "FD", 0.5),
    "balls": lambda: balls(POINTS, POINTS + 1, torch.tensor([1.0, 2.0, 3.0, 4.0])),
    "schedule_curves": lambda: schedule_curves(SCHEDULES),
    "class_clouds": lambda: class_clouds(POINTS, KINDS, ["a", "b"]),
    "class_distributions": lambda: class_distributions(POINTS.repeat(2, 1), KINDS.repeat(2), ["a", "b"], ["x", "y"]),
    "histograms": lambda: histograms({"a": torch.linspace(-1, 1, 50)}),
}
every_figure = pytest.mark.parametrize("make", EVERY_FIGURE.values(), ids=EVERY_FIGURE)


@every_figure
def test_a_figure_is_closed_changes_no_setting_of_matplotlib_and_draws_no_random_number(make):
    """A figure that is left open is shown twice by a notebook."""
    with plt.rc_context():
        plt.rcdefaults()  # what an earlier figure may have changed
        plt.get_backend()  # chosen at its first use
        settings, rng = plt.rcParams.copy(), torch.get_rng_state()
        drawn(figure := make())
        assert isinstance(figure, plt.Figure) and plt.get_fignums() == []
        assert plt.rcParams == settings and torch.equal(torch.get_rng_state(), rng)


@every_figure
def test_a_figure_looks_the_same_whatever_the_settings_of_the_reader(make):
    """Such as a notebook in a dark style; a row of pictures must not change with it."""
    ours = make()
    with plt.rc_context({"figure.dpi": 33, "axes.prop_cycle": plt.cycler(color=["red"]), "axes.spines.top": True}):
        theirs = make()
    assert ours.dpi == theirs.dpi and len(ours.axes) == len(theirs.axes)
    for axis, other in zip(ours.axes, theirs.axes, strict=True):
        assert axis.spines["top"].get_visible() == other.spines["top"].get_visible()
        assert [line.get_color() for line in axis.lines] == [line.get_color() for line in other.lines]


# Images


@pytest.mark.parametrize("columns", [1, 2, 3, 6])
@pytest.mark.parametrize("gap", [0, 2])
@pytest.mark.parametrize("images, white", [(IMAGES, 255), (to_model(IMAGES), 1)], ids=["uint8", "float"])
def test_tile_puts_images_row_by_row_with_white_at_their_right_and_bottom(columns, gap, images, white):
    picture = tile(images, columns, gap)
    H, W = 5 + gap, 7 + gap
    assert picture.shape == (6 // columns * H, columns * W) and picture.dtype == images.dtype
    for k, image in enumerate(images):
        r, c = divmod(k, columns)
        place = picture[H * r : H * (r + 1), W * c : W * (c + 1)]
        assert torch.equal(place[:5, :7], image[0]) and (place[5:] == white).all() and (place[:, 7:] == white).all()


RGB = torch.cat([IMAGES, IMAGES.flip(0), 255 - IMAGES], dim=1)
TWO = IMAGES.expand(-1, 2, -1, -1)
NO_GRIDS = [(IMAGES, 4), (IMAGES, 12), (IMAGES, 0), (IMAGES, -3), (IMAGES[:0], 2), (TWO, 3), (IMAGES[0], 1)]


@pytest.mark.parametrize("convert", [lambda x: x, to_model], ids=["uint8", "float"])
def test_images_in_colour_are_tiled_colour_by_colour_and_drawn_as_they_are(convert):
    picture = tile(RGB, 3, 2)
    assert picture.shape == (2 * 7, 3 * 9, 3) and torch.equal(
        picture, torch.stack([tile(x, 3, 2) for x in RGB.movedim(1, 0)[:, :, None]], dim=2)
    )
    (shown,) = image_grid(convert(RGB), 3).axes[0].images
    np.testing.assert_allclose(shown.get_array() * 255, tile(RGB, 3, 1).numpy(), atol=1e-3)


@pytest.mark.parametrize("images, columns", NO_GRIDS)
@pytest.mark.parametrize("draw", [tile, image_grid])
def test_images_that_fill_no_grid_are_an_error_with_their_shape(draw, images, columns):
    with pytest.raises(ValueError, match=rf"images are \({images.shape[0]}, .*a multiple of {columns} columns"):
        draw(images, columns)


@pytest.mark.parametrize("draw", [tile, image_grid])
def test_images_of_whole_numbers_are_an_error_with_their_type(draw):
    with pytest.raises(ValueError, match=r"images are torch.int64; expected uint8, 0 to 255, or floating point"):
        draw(IMAGES.long(), 3)


@pytest.mark.parametrize("labels", [("ab", ""), ("", "abc"), ("abcd", "xy")])
def test_labels_that_do_not_fit_are_an_error_with_their_numbers(labels):
    found = f"{len(labels[0])} column labels and {len(labels[1])} row labels for 3 columns and 2 rows"
    with pytest.raises(ValueError, match=found):
        image_grid(IMAGES, 3, *labels)


@pytest.mark.parametrize("draw", [lambda x: image_grid(x, 3), lambda x: histograms({"a": x}), histogram_frame])
@pytest.mark.parametrize("convert", [torch.Tensor.bfloat16, torch.Tensor.half, torch.Tensor.requires_grad_])
def test_pictures_may_come_straight_from_a_network(draw, convert):
    """In half precision and with a gradient."""
    draw(convert(to_model(IMAGES)))


@pytest.mark.parametrize("images, limits", [(IMAGES, (0, 255)), (to_model(IMAGES), (-1, 1))], ids=["uint8", "float"])
@pytest.mark.parametrize("factor", [0, 1])
def test_the_grey_scale_is_fixed_whatever_the_images_hold(images, limits, factor):
    (shown,) = image_grid(images * factor, 3).axes[0].images
    assert shown.get_clim() == limits and shown.get_cmap().name == "gray"
    assert shown.get_interpolation() == "nearest"


def cells(figure, rows: int, columns: int) -> np.ndarray:
    """The picture of a figure, cut into (rows, columns, height, width, 3)."""
    screen, (axis,) = drawn(figure), figure.axes
    (left, bottom), (right, top) = axis.get_window_extent().get_points().round().astype(int)
    picture = screen[len(screen) - top : len(screen) - bottom, left:right]
    height, width = picture.shape[0] // rows, picture.shape[1] // columns
    assert picture.shape == (rows * height, columns * width, 3)
    return picture.reshape(rows, height, columns, width, 3).swapaxes(1, 2)


@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize("labels", [{}, {"column_labels": "abc", "row_labels": "xy"}])
@pytest.mark.parametrize("convert", [torch.Tensor.byte, to_model], ids=["uint8", "float"])
def test_each_pixel_is_drawn_as_a_square_of_its_own_grey_and_only_white_stands_between(scale, labels, convert):
    shown = cells(image_grid(convert(IMAGES), 3, scale=scale, **labels), 2, 3)
    height, width = 5 * scale, 7 * scale
    assert shown.shape[2] - height <= scale and shown.shape[3] - width <= scale
    for k, image in enumerate(IMAGES):
        cell = shown[k // 3, k % 3]
        grey = np.kron(image[0], np.ones((scale, scale)))[..., None]
        assert_allclose(cell[:height, :width], grey.repeat(3, axis=-1), atol=1)
        assert (cell[height:] == 255).all() and (cell[:, width:] == 255).all()


def test_values_outside_the_range_are_drawn_black_and_white():
    images = torch.tensor([-7.0, -1, 1, 7]).reshape(4, 1, 1, 1).expand(4, 1, 9, 9)
    assert_allclose(cells(image_grid(images, 4), 1, 4)[0, :, 5, 5, 0], [0, 0, 255, 255], atol=1)


def test_labels_stand_beside_their_columns_and_rows_in_order():
    (axis,) = image_grid(IMAGES, 3, ["a", "b", "c"], ["x", "y"]).axes
    assert texts(axis.get_xticklabels()) == ["a", "b", "c"] and axis.get_xticks().tolist() == [0.5, 1.5, 2.5]
    assert texts(axis.get_yticklabels()) == ["x", "y"] and axis.get_yticks().tolist() == [0.5, 1.5]
    assert axis.get_xlim() == (0, 3) and axis.get_ylim() == (2, 0), "one unit an image, the first row on top"


LONG = ["Ankle boot, w = 1.5", "b", "Ankle boot, again"]


@pytest.mark.parametrize("width, size, lines", [(200, 11, 1), (100, 10, 1), (60, 8, 2)])
def test_long_column_labels_get_smaller_and_then_go_on_in_a_second_line_and_none_is_wider_than_it_may_be(
    width, size, lines
):
    labels, fontsize = fitted(LONG, width)
    assert size <= fontsize < size + 1 and max(label.count("\n") + 1 for label in labels) == lines
    assert [label.replace("\n", " ") for label in labels] == LONG
    written = [TextPath((0, 0), line, size=fontsize) for label in labels for line in label.split("\n")]
    assert max(path.get_extents().width for path in written) <= width + 0.5


@pytest.mark.parametrize("labels", [(), ["", ""]])
def test_no_labels_and_empty_ones_fit_everywhere(labels):
    assert fitted(labels, 5) == (list(labels), 11)


def test_labels_of_a_small_grid_stand_side_by_side_within_the_figure():
    figure = image_grid(torch.zeros(5, 1, 28, 28), 5, [*LONG, "c", "Ankle boot"], scale=2)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert all(0 <= box.x0 and 0 <= box.y0 for box in boxes)
    assert all(box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height for box in boxes)


def test_two_ways_keeps_every_pixel_of_the_grid_between_an_arrow_to_the_right_and_one_to_the_left():
    labels = ["a", "b", "c"], ["x", "y"]
    grid, figure = image_grid(IMAGES, 3, *labels), two_ways(IMAGES, *labels, "there", "back")
    (axis,) = figure.axes
    (plain,), (width, height) = grid.axes, figure.get_size_inches()
    for size, other, side in ((width, grid.get_figwidth(), "width"), (height, grid.get_figheight(), "height")):
        inches = getattr(axis.get_position(), side) * size
        assert_allclose(inches, getattr(plain.get_position(), side) * other)
    there, right, back, left = axis.texts
    assert texts([there, right, back, left]) == ["", "there", "", "back"]
    assert (there.xyann[0], there.xy[0]) == (0, 1) and (back.xyann[0], back.xy[0]) == (1, 0)
    assert there.xy[1] == there.xyann[1] == right.get_position()[1] > 1 > 0 > back.xy[1] == back.xyann[1]
    assert len({image.tobytes() for image in (drawn(figure), drawn(two_ways(IMAGES, *labels, "", "")))}) == 2


# Lines


@pytest.mark.parametrize("spreads", [None, {}])
def test_curves_draws_each_line_under_its_name_and_nothing_else(spreads):
    x, lines = [1, 2, 4], {"up": torch.tensor([0.0, 1.0, 2.0]), "down": torch.tensor([3.0, 2.0, 1.0])}
    (axis,) = curves(x, lines, "steps", "loss", spreads=spreads).axes
    assert [line.get_label() for line in axis.lines] == ["up", "down"]
    assert texts(axis.get_legend().get_texts()) == ["up", "down"]
    for line, y in zip(axis.lines, lines.values(), strict=True):
        assert_allclose(line.get_xydata(), np.stack([x, y], axis=1))
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("steps", "loss")
    assert (axis.get_xscale(), axis.get_yscale()) == ("linear", "linear")
    assert not axis.collections and not axis.patches


POWERS = [(0.01, 1, ["0.01", "0.1", "1"]), (0.02, 0.05, ["0.02", "0.03", "0.04"]), (1, 20_000, ["1", "10", "10000"])]


@pytest.mark.parametrize("low, high, expected", POWERS)
def test_logarithmic_axes_have_plain_numbers_at_their_ticks(low, high, expected):
    figure = curves([low, high], {"a": [low, high]}, "x", "y", yscale="log", xscale="log")
    drawn(figure)
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        found = [label for label in texts(axis.get_ticklabels(which="both")) if label]
        assert set(expected) <= set(found) and all(float(label) > 0 and "e" not in label for label in found)


@pytest.mark.parametrize(
    "x, text", [(0.01, "0.01"), (1e-5, "0.00001"), (12345.6, "12300"), (4096, "4096"), (-2.0, "-2"), (0, "0")]
)
def test_plain_numbers_have_no_exponent_and_three_digits_unless_they_are_whole(x, text):
    assert plain_number(x) == text


def test_schedule_curves_draws_signal_and_SNR_against_progress():
    left, right = schedule_curves(SCHEDULES).axes
    for k, (name, schedule) in enumerate(SCHEDULES.items()):
        for axis, table in ((left, schedule.signal_scale), (right, 10 * (schedule.log_snr.exp()).log10())):
            line = axis.lines[k]
            assert line.get_label() == name and line.get_color() == COLORS[k]
            assert_allclose(line.get_xdata(), np.arange(1, schedule.T + 1) / schedule.T, rtol=1e-6)
            assert_allclose(line.get_ydata(), table, rtol=1e-6, atol=1e-9)
    assert texts(left.get_legend().get_texts()) == list(SCHEDULES)
    assert all(axis.get_xlabel() and axis.get_ylabel() and axis.get_title() for axis in (left, right))


def test_snr_shares_counts_all_steps_of_each_chain_in_percent():
    tables = {"even": torch.tensor([12.0, 7.0, 2.0, -3.0]), "far": torch.tensor([99.0, 3.0, 4.0, -99.0, 1.0])}
    (axis,) = snr_shares(tables, width=5, limit=20).axes
    even, far = (steps.get_data() for steps in axis.patches)
    assert_allclose(even.edges, [-20, -15, -10, -5, 0, 5, 10, 15, 20])
    assert_allclose(even.values, [0, 0, 0, 25, 25, 25, 25, 0])
    assert_allclose(far.values, [20, 0, 0, 0, 60, 0, 0, 20], err_msg="what is beyond the limit counts, too")
    assert axis.get_xlim() == (20, -20) and "5 dB" in axis.get_ylabel() and axis.get_xlabel()
    assert texts(axis.get_legend().get_texts()) == list(tables)


@pytest.mark.parametrize("length", [1, 2, 4])
def test_loss_curves_draw_both_losses_where_there_are_some_logarithmic_over_even_steps(length):
    figure = loss_curves(HISTORY[:length])
    (axis,) = figure.axes
    lines = {line.get_label(): line for line in axis.lines}
    assert list(lines) == texts(axis.get_legend().get_texts()) == ["training", "validation"]
    for name, y in {"training": [0.8, 0.4, 0.1, 0.02], "validation": [np.nan, 0.5, np.nan, 0.3]}.items():
        assert_allclose(lines[name].get_xdata(), [50, 100, 150, 180][:length])
        assert_allclose(lines[name].get_ydata(), y[:length], rtol=1e-6)
    assert (axis.get_yscale(), axis.get_xscale()) == ("log", "linear")
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("step", "loss")
    assert lines["validation"].get_marker() == ".", "a single point between others without one is no line"
    assert len(drawn(figure)), "also before the first validation"


def test_loss_curves_of_a_training_stopped_before_its_first_point_show_its_validation():
    (axis,) = loss_curves([{"step": 0, "validation": {"loss": 0.5}}]).axes
    assert axis.lines[1].get_ydata() == [0.5]


# Densities


@pytest.mark.parametrize("limits, bins", [((-4, 4), 80), ((-1, 3), 20)])
def test_histograms_draws_each_density_the_first_filled_the_others_as_outlines(limits, bins):
    values = {"flat": torch.linspace(-1, 1, 10_001), "shifted": torch.linspace(1, 3, 10_001).reshape(73, 137)}
    options = {} if bins == 80 else {"bins": bins}
    (axis,) = histograms(values, limits=limits, xlabel="x", title="title", **options).axes
    filled, outline = axis.containers[0], axis.patches[-1].get_xy()
    x, heights = (np.array([getattr(bar, f"get_{what}")() for bar in filled]) for what in ("x", "height"))
    edges = np.linspace(*limits, bins + 1)
    assert_allclose(x, edges[:-1], atol=1e-9)
    middles = (edges[:-1] + edges[1:]) / 2
    assert_allclose(heights, np.where(np.abs(middles) < 1, 0.5, 0), atol=0.02)
    assert_allclose(outline[:, 1].max(), 0.5, atol=0.02)
    assert outline[outline[:, 0] < 0.99, 1].max() == 0
    assert set(texts(axis.get_legend().get_texts())) >= {"flat", "shifted"}
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_title()) == ("x", "density", "title")


@pytest.mark.parametrize("gaussians", [None, {"one": (0.5, 0.2), "two": (-1.0, 2.0)}, {}])
def test_histograms_draws_the_named_gaussians_or_else_the_standard_one(gaussians):
    (axis,) = histograms({"flat": torch.linspace(-1, 1, 99)}, gaussians).axes
    expected = {"N(0, 1)": (0, 1)} if gaussians is None else gaussians
    for line, (name, (mean, std)) in zip(axis.lines, expected.items(), strict=True):
        assert line.get_label() == name
        assert_allclose(line.get_ydata(), normal_density(line.get_xdata(), mean, std))
    assert set(texts(axis.get_legend().get_texts())) == {"flat", *expected}


# What is paid, and what for


def test_tradeoff_draws_each_line_in_order_with_a_label_at_each_point():
    (axis,) = tradeoff(LINES, "seconds", "FD", 0.5).axes
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("seconds", "FD")
    for line, (name, points) in zip(axis.lines, LINES.items(), strict=False):
        assert line.get_label() == name
        assert list(zip(*line.get_data(), strict=True)) == sorted((x, y) for x, y, _ in points)
    found = sorted((*label.xy, label.get_text()) for label in axis.texts)
    assert found == sorted(point for points in LINES.values() for point in points)
    plain, other, variant = axis.lines[:3]  # a variant of a name has its colour and another look
    assert plain.get_color() == variant.get_color() != other.get_color()
    assert plain.get_linestyle() == other.get_linestyle() != variant.get_linestyle()


def test_a_line_of_a_tradeoff_without_points_leaves_the_others_as_they_are():
    (whole,), (part,) = (tradeoff(lines, "x", "y", 0.5).axes for lines in (LINES, LINES | {"a": []}))
    assert [line.get_label() for line in part.lines[:2]] == ["b", "a, guided"]
    for one, other in zip(whole.lines[1:3], part.lines[:2], strict=True):
        assert one.get_color() == other.get_color() and one.get_marker() == other.get_marker()


def test_tradeoff_draws_the_pareto_front_and_shades_what_lies_below_the_floor():
    (axis,) = tradeoff(LINES, "x", "y", 0.5).axes
    assert list(zip(*axis.lines[-1].get_data(), strict=True)) == [(2, 4), (4, 2), (8, 1), (16, 0.7)]
    (band,) = axis.patches
    assert_allclose(band.get_bbox().intervaly, [0.35, 0.5])
    assert_allclose(axis.get_ylim()[0], 0.35)


def test_labels_of_a_tradeoff_cover_no_point_and_no_other_label_and_have_the_colour_of_their_line():
    close = {"a": [(1.0, 5.0, "3"), (2.0, 2.0, "10")], "b": [(1.03, 4.9, "3"), (2.1, 2.1, "10"), (40.0, 1.0, "50")]}
    figure = tradeoff(close, "x", "y", 0.5)
    drawn(figure)
    (axis,) = figure.axes
    boxes = [label.get_window_extent() for label in axis.texts]
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])
    for line in axis.lines[:2]:
        for x, y in axis.transData.transform(line.get_xydata()):
            assert not any(box.contains(x, y) for box in boxes)
    colors = {text.get_color() for text in axis.texts}
    assert colors == {line.get_color() for line in axis.lines[:2]} and len(colors) == 2


def test_balls_have_their_centres_and_radii():
    radius = torch.tensor([1.0, 2.0, 3.0, 4.0])
    (axis,) = balls(POINTS, POINTS[:2] + 1, radius).axes
    assert_allclose([circle.center for circle in axis.patches], POINTS)
    assert [circle.radius for circle in axis.patches] == radius.tolist()
    real, drawn = (cloud.get_offsets() for cloud in axis.collections)
    assert_allclose(real, POINTS)
    assert_allclose(drawn, POINTS[:2] + 1)
    assert axis.get_aspect() == 1 and texts(axis.get_legend().get_texts()) == ["real", "drawn"]


def test_class_planes_draws_each_cloud_on_the_same_axes_in_the_colours_of_its_labels():
    figure = class_planes({"near": POINTS, "far": 2 * POINTS}, KINDS, ["shoe", "bag"], reach=20)
    for axis, title, scale in zip(figure.axes, ["near", "far"], [1, 2], strict=True):
        (cloud,) = axis.collections
        assert_allclose(cloud.get_offsets(), scale * POINTS)
        assert cloud.get_array().tolist() == KINDS.tolist() and cloud.get_clim() == (-0.5, 9.5)
        assert axis.get_title() == title and axis.get_xlim() == axis.get_ylim() == (-20, 20) and axis.get_xlabel()
    assert figure.axes[0].get_ylabel()
    assert texts(figure.axes[-1].get_legend().get_texts()) == ["shoe", "bag"]


@pytest.mark.parametrize("given", [(), (-1.5, 0.2), (3, 2.5)])
def test_normal_density_is_the_normal_density_and_standard_unless_told_otherwise(given):
    mean, std = given or (0.0, 1.0)
    x = np.linspace(mean - 9 * std, mean + 9 * std, 201)
    expected = torch.distributions.Normal(torch.tensor(mean).double(), std).log_prob(torch.from_numpy(x)).exp()
    assert_allclose(normal_density(x, *given), expected, rtol=1e-9)


FOOT = 22  # pixels below the bars, for the numbers


def bar_heights(frame: np.ndarray) -> np.ndarray:
    """The heights in pixels of the 40 bars: from the foot up to the highest pixel of their colour, at their middles."""
    middles = ((np.arange(40) + 0.5) * frame.shape[1] / 40).astype(int)
    coloured = (np.abs(frame[:-FOOT, middles].astype(int) - 255 * np.array(to_rgb(COLORS[5]))) < 2).all(axis=-1)
    return np.where(coloured.any(axis=0), len(coloured) - coloured.argmax(axis=0), 0)


def sample(name: str, n: int = 100_000) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    if name == "normal":
        return torch.randn(n, generator=rng)
    low, high = {"uniform": (-1, 1), "narrow and to the right": (2, 3.6)}[name]
    return low + (high - low) * torch.rand(n, generator=rng)


@pytest.mark.parametrize("name", ["uniform", "normal", "narrow and to the right"])
@pytest.mark.parametrize("height", [224, 168])
def test_the_bars_of_a_histogram_frame_are_as_high_as_the_density(name, height):
    x = sample(name)
    frame = histogram_frame(x.reshape(1, 1, 250, 400), height)
    assert frame.dtype == np.uint8 and frame.shape == (height, 300, 3)
    density = torch.histc(x, 40, -4, 4) / len(x) / 0.2
    assert_allclose(bar_heights(frame), (height - FOOT) * density / 0.8, atol=5)  # the line of N(0, 1) may hide the top


def test_a_histogram_frame_shows_the_normal_as_a_black_line():
    frame = histogram_frame(torch.zeros(9))
    dark = frame[:-FOOT, ::10].max(axis=-1) < 200
    x = np.arange(0, 300, 10) / 300 * 8 - 4
    assert_allclose(202 - dark.argmax(axis=0), 202 * normal_density(x) / 0.8, atol=3)


@pytest.mark.parametrize("value, highest", [(0.0, 202), (9.0, 0), (math.nan, 0)])
def test_bars_above_the_top_are_cut_off_there_and_values_outside_have_none(value, highest):
    heights = bar_heights(histogram_frame(torch.full((9,), value)))
    assert heights.max() == highest and np.count_nonzero(heights) == (highest > 0)


def test_values_outside_minus_4_to_4_are_no_crash_and_count():
    """300,000 of them are outside, and 100,000 inside: the bars are a quarter as high."""
    outside = torch.tensor([-100.0, -4.001, 4.001, 1e30, float("inf"), -float("inf")]).repeat(50_000)
    x = torch.cat([outside, sample("uniform")])
    assert_allclose(bar_heights(histogram_frame(x))[15:25], 202 * 0.125 / 0.8, atol=2)
    (axis,) = histograms({"a": x}).axes
    assert_allclose([bar.get_height() for bar in axis.containers[0]][31:49], 0.125, atol=0.01)


def test_a_histogram_frame_may_become_a_tensor_and_draws_no_random_number():
    before = torch.get_rng_state()
    torch.from_numpy(histogram_frame(torch.zeros(9)))  # with a warning, were it read-only
    assert torch.equal(torch.get_rng_state(), before)


def test_labels_stand_in_the_middle_of_their_rows_black_on_white():
    frame = label_frame(["T-shirt", "Ankle boot", ""], height=40)
    assert frame.dtype == np.uint8 and frame.shape[0] == 120 and frame.max() == 255
    for row in range(2):
        ink = (frame[40 * row : 40 * row + 40] < 128).any(axis=1).nonzero()[0]
        assert 8 < ink.min() < ink.max() < 32
    assert (frame[80:] == 255).all() and (frame[:, -1] == 255).all()  # the longest label is not cut off


def test_spreads_are_bars_of_that_half_length_in_the_colour_of_the_line_that_they_name():
    x, lines = [1, 2, 4], {"up": torch.tensor([1.0, 2.0, 3.0]), "bare": [4.0, 4.0, 4.0], "down": [9.0, 6.0, 5.0]}
    spreads = {"down": [0.5, 0.1, 2.0], "up": [0.2, 0.0, 0.3]}
    (axis,) = curves(x, lines, "steps", "loss", yscale="log", xscale="log", spreads=spreads).axes
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    drawn_lines = dict(zip(lines, (line for line in axis.lines if line.get_linestyle() != "None"), strict=True))
    for name, line in drawn_lines.items():
        assert_allclose(line.get_xydata(), np.stack([x, lines[name]], axis=1))
    for name, bars in zip(["up", "down"], axis.collections, strict=True):
        ends = [[(k, y - half), (k, y + half)] for k, y, half in zip(x, lines[name], spreads[name], strict=True)]
        assert_allclose(bars.get_segments(), ends)
        assert to_rgb(bars.get_colors()[0]) == to_rgb(drawn_lines[name].get_color())
    assert texts(axis.get_legend().get_texts()) == list(lines)


def test_a_cloud_has_its_points_and_its_name_at_their_median():
    axis = class_clouds(POINTS, KINDS, ["a", "b"]).axes[0]
    assert axis.collections[0].get_offsets().tolist() == POINTS.tolist()
    assert axis.collections[0].get_array().tolist() == KINDS.tolist()
    assert {text.get_text(): text.get_position() for text in axis.texts} == {"a": (1, 0), "b": (5, 8)}
    cloud = axis.collections[0]
    for kind, text in enumerate(axis.texts):  # the name is framed in the colour of its points
        assert to_rgb(text.get_bbox_patch().get_edgecolor()) == to_rgb(cloud.cmap(cloud.norm(kind)))


def test_distributions_of_each_number_stand_below_each_other_by_kind_each_with_a_bar_at_its_median():
    generator = torch.Generator().manual_seed(0)
    kinds = torch.arange(2).repeat_interleave(101)
    points = torch.randn((202, 2), generator=generator) + torch.tensor([[0.0, 50.0], [9.0, -50.0]])[kinds]
    left, right = class_distributions(points, kinds, ["a", "b"], ["first", "second"]).axes
    for axis, values, label in zip((left, right), points.T, ("first", "second"), strict=True):
        bars = axis.collections[-1].get_segments()
        assert [bar[0, 0] for bar in bars] == [values[kinds == kind].median().item() for kind in (0, 1)]
        assert [bar[:, 1].mean() for bar in bars] == [0, 1] and axis.yaxis_inverted()
        for kind, body in enumerate(axis.collections[:2]):  # the shape of a kind spans its values, and no others
            spanned, own = body.get_paths()[0].vertices[:, 0], values[kinds == kind]
            assert spanned.min() == own.min() and spanned.max() == own.max()
        assert axis.get_xlabel() == label
    assert [text.get_text() for text in left.get_yticklabels()] == ["a", "b"]


def test_a_figure_as_a_frame_says_where_its_points_are():
    """Four points alone on the axes: the pixels at their places are dark."""
    figure, (axis,) = new_figure(4, 3)
    axis.plot(*POINTS.numpy().T, ".", color="black", markersize=10)
    axis.grid(False)
    frame, places = as_frame(figure, POINTS)
    assert frame.dtype == np.uint8 and frame.shape == (240, 320, 3)
    assert len(np.unique(frame.reshape(-1, 3), axis=0)) <= 64
    assert all(frame[round(y), round(x)].max() < 50 for x, y in places)
    assert places[2, 1] < places[0, 1]  # higher up in the figure, nearer to the first row


class Elsewhere(torch.Tensor):
    """A tensor that NumPy cannot have before it is on the CPU, as on a GPU."""

    def __array__(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_lines_balls_and_schedules_may_be_on_a_device():
    x, points = torch.arange(4.0).as_subclass(Elsewhere), torch.rand(4, 2).as_subclass(Elsewhere)
    with pytest.raises(TypeError):
        np.asarray(x)
    line = curves(x, {"line": x}, "x", "y").axes[0].lines[0]
    assert line.get_xydata().tolist() == [[k, k] for k in range(4)]
    real, drawn = balls(points, points + 1, x).axes[0].collections
    assert_allclose(real.get_offsets(), points.tolist())
    assert_allclose(drawn.get_offsets(), (points + 1).tolist())
    left, right = schedule_curves({"one": SimpleNamespace(T=4, signal_scale=x, log_snr_db=x)}).axes
    assert left.lines[0].get_ydata().tolist() == right.lines[0].get_ydata().tolist() == [0, 1, 2, 3]
