"""The claims of fmdiff_helpers.measurements: each is a matrix, and its adjoint and pseudo-inverse are that matrix's."""

import math

import pytest
import torch
import torch.nn.functional as F
from network_checks import EXACT, normal
from torch.testing import assert_close

from fmdiff_helpers.measurements import Brightness, Mask, Separable, blur, shrink


def holes(*rows: str) -> torch.Tensor:
    """Return a mask drawn with characters: # is True."""
    return torch.tensor([[mark == "#" for mark in row] for row in rows])


OVERLAPPING = torch.stack([holes("##......", *["........"] * 7), holes("#######.", *["........"] * 7)])
MEASUREMENTS = {
    "mask": Mask(torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) > 0.5),
    "shrink": shrink(4, 8),
    "blur": blur(1.0, 8),
    "any two matrices": Separable(normal(3, 8), normal(5, 8, seed=1)),
    "brightness": Brightness(OVERLAPPING),
}
every_measurement = pytest.mark.parametrize("name", MEASUREMENTS)


def matrix_of(function, x: torch.Tensor) -> torch.Tensor:
    """Return the matrix of a linear function of pictures shaped like x (1, ...): what it makes of each unit picture."""
    units = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape[1:])
    return function(units).flatten(1).T


@every_measurement
def test_adjoint_and_pseudo_inverse_are_those_of_the_matrix(name):
    """torch.linalg.pinv of the whole matrix, singular values below the cut left out."""
    measurement = MEASUREMENTS[name]
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    seen = measurement.apply(x)
    matrix, back = matrix_of(measurement.apply, x), matrix_of(measurement.pseudo_inverse, seen)
    assert_close(matrix_of(measurement.adjoint, seen), matrix.T, **EXACT)
    expected = torch.linalg.pinv(matrix, rtol=getattr(measurement, "cut", 1e-9))
    assert_close(back, expected, rtol=1e-9, atol=1e-9)
    if name == "blur":
        values = torch.linalg.svdvals(matrix)
        assert (values < 1e-2 * values.max()).any(), "nothing is cut, and the test of the cut says nothing"


@every_measurement
def test_channels_and_pictures_are_measured_one_by_one_in_their_own_precision(name):
    measurement, x = MEASUREMENTS[name], normal(2, 3, 8, 8).float()
    kept, seen = x.clone(), measurement.apply(x)
    back = measurement.pseudo_inverse(seen)
    assert seen.dtype == back.dtype == torch.float32 and back.shape == x.shape
    one = measurement.apply(x[1:, 2:])
    assert_close(seen[1:, 2:], one, rtol=1e-5, atol=1e-6)
    assert_close(back[1:, 2:], measurement.pseudo_inverse(one), rtol=1e-4, atol=1e-5)
    assert x.equal(kept)


def test_what_is_seen_by_hand():
    x = normal(2, 1, 8, 8)
    assert_close(shrink(4, 8).apply(x), F.avg_pool2d(x, 4), **EXACT)
    assert_close(
        shrink(4, 8).pseudo_inverse(F.avg_pool2d(x, 4)),
        F.avg_pool2d(x, 4).repeat_interleave(4, 2).repeat_interleave(4, 3),
        **EXACT,
    )
    first = Brightness(OVERLAPPING).apply(x)
    assert_close(first, torch.stack([x[:, :, 0, :2].mean(-1), x[:, :, 0, :7].mean(-1)], dim=-1), **EXACT)
    keep = holes("#.", "..")
    assert Mask(keep).apply(torch.full((1, 1, 2, 2), 0.7)).tolist() == [[[[pytest.approx(0.7), 0], [0, 0]]]]


@pytest.mark.parametrize("sigma", [0.5, 1.3, 3.0])
def test_a_blur_is_a_gaussian_filter_that_repeats_the_edge(sigma):
    x, reach = normal(1, 1, 8, 8), int(4 * sigma) + 1
    weights = torch.tensor([math.exp(-(d**2) / (2 * sigma**2)) for d in range(-reach, reach + 1)]).double()
    kernel = weights[:, None] * weights / weights.sum() ** 2
    wide = F.pad(x, [reach] * 4, mode="replicate")
    assert_close(blur(sigma, 8).apply(x), F.conv2d(wide, kernel[None, None]), rtol=1e-6, atol=1e-7)
    assert_close(blur(sigma, 8).apply(torch.ones_like(x)), torch.ones_like(x), **EXACT)


@pytest.mark.parametrize("cut", [1e-1, 1e-2, 1e-4])
def test_the_way_back_magnifies_noise_at_most_by_one_over_the_cut(cut):
    measurement = blur(2.0, 28, cut)
    noise = normal(50, 1, 28, 28)
    grown = measurement.pseudo_inverse(noise).flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
    assert grown.max() < 1 / cut
    assert grown.max() > 0.02 / cut


MESSAGES = {
    "keep is torch.uint8 of shape .4, 4.; expected torch.bool of shape .H, W., such as mask > 0": lambda: Mask(
        torch.ones(4, 4, dtype=torch.uint8)
    ),
    "keep is torch.bool of shape .1, 4, 4.; expected": lambda: Mask(torch.ones(1, 4, 4, dtype=torch.bool)),
    "keep is None; expected torch.bool": lambda: Mask(None),
    "keep is False everywhere; expected True at the known pixels": lambda: Mask(torch.zeros(4, 4, dtype=torch.bool)),
    "x is torch.float32 of shape .1, 1, 5, 4.; expected floating-point, and 4 x 4 at the end": lambda: Mask(
        torch.ones(4, 4, dtype=torch.bool)
    ).apply(torch.zeros(1, 1, 5, 4)),
    "x is torch.uint8 of shape .1, 1, 8, 8.; expected floating-point": lambda: shrink(4, 8).apply(
        torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    ),
    "seen is torch.float32 of shape .1, 1, 8, 8.; expected floating-point, and 2 x 2": lambda: shrink(
        4, 8
    ).pseudo_inverse(torch.zeros(1, 1, 8, 8)),
    "factor is 3; expected a whole number that divides 28": lambda: shrink(3),
    "factor is 2.0; expected a whole number": lambda: shrink(2.0),
    "sigma is 0; expected above 0 and at most 28": lambda: blur(0),
    "sigma is nan; expected above 0": lambda: blur(math.nan),
    "cut is 0; expected above 0 and below 1": lambda: blur(1.0, cut=0),
    "rows is torch.float32 of shape .4, 4.; expected torch.float64": lambda: Separable(torch.eye(4), torch.eye(4)),
    "all rows or all columns are 0; expected a measurement that sees something": lambda: Separable(
        torch.zeros(4, 4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    ),
    r"parts have \[16, 0\] pixels; expected at least one part, and none of 0 pixels": lambda: Brightness(
        torch.stack([torch.ones(4, 4), torch.zeros(4, 4)]).bool()
    ),
    r"parts have \[\] pixels; expected at least one part": lambda: Brightness(torch.ones(0, 4, 4).bool()),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_bad_input_is_an_error_that_says_what_was_expected(message):
    with pytest.raises(ValueError, match=f"^{message}"):
        MESSAGES[message]()
