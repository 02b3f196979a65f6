"""The claims of fmdiff_helpers.flow_samplers: where each ends, how fast its error falls, what `watch` sees."""

import math
from itertools import pairwise

import pytest
import torch
from test_flows import S, guess, linear_flow, normal
from torch.testing import assert_close

from fmdiff_helpers.flow_samplers import even_times, sample_dpm, sample_euler, sample_heun, sample_jumps
from fmdiff_helpers.flows import eps_from_flow, straight_path, x0_from_flow

SAMPLERS = {"euler": sample_euler, "heun": sample_heun, "dpm": sample_dpm}
ORDERS = {"euler": 1, "heun": 2, "dpm": 2}
EXACT = {"rtol": 1e-9, "atol": 1e-9}

every_sampler = pytest.mark.parametrize("name", SAMPLERS)


@every_sampler
def test_the_error_falls_with_the_order_of_the_sampler(name):
    """Where data are N(0, S^2), the flow takes noise x to S x. Twice the steps, half or a quarter of the error.

    DPM-Solver++ needs many steps for it: its first and its last are of order 1.
    """
    x = normal(10, 2)
    errors = [(SAMPLERS[name](linear_flow, x, n, clip=math.inf) - S * x).abs().max().item() for n in (80, 160, 320)]
    for more, fewer in pairwise(errors):
        assert math.log2(more / fewer) == pytest.approx(ORDERS[name], abs=0.25)


@every_sampler
@pytest.mark.parametrize("num_steps", [1, 2, 9])
def test_one_line_is_followed_exactly_to_its_end(name, num_steps):
    x0, eps = normal(4, 1, 3), normal(4, 1, 3, seed=1)
    found = SAMPLERS[name](lambda x, t, y: eps - x0, eps, num_steps, clip=math.inf)
    assert_close(found, x0, **EXACT)


@every_sampler
def test_times_may_be_uneven_and_none_are_even_ones(name):
    x, times = normal(4, 3), [1.0, 0.9, 0.3, 0.0]
    sample = SAMPLERS[name]
    assert torch.equal(sample(guess, x, 5), sample(guess, x, times=even_times(5)))
    assert not torch.allclose(sample(guess, x, 3), sample(guess, x, times=times))


@every_sampler
def test_the_clip_holds_the_guess_and_so_the_sample(name):
    x = 3 * normal(50, 4)
    assert SAMPLERS[name](linear_flow, x, 5, clip=0.5).abs().max() <= 0.5 + 1e-9
    assert SAMPLERS[name](linear_flow, x, 5, clip=math.inf).abs().max() > 1
    free, wide = (SAMPLERS[name](guess, x, 5, clip=clip) for clip in (math.inf, 1e6))
    assert_close(free, wide, **EXACT)


@every_sampler
def test_what_watch_sees_is_the_walk(name):
    steps, x = [], normal(4, 3)
    found = SAMPLERS[name](guess, x, 6, clip=math.inf, watch=steps.append)
    assert [step.t for step in steps] == even_times(6)[:-1]
    assert torch.equal(steps[0].xt, x) and torch.equal(steps[-1].x_prev, found)
    for step, following in pairwise(steps):
        assert torch.equal(step.x_prev, following.xt)
    for step in steps:
        t = torch.full((4,), step.t, dtype=torch.float64)
        u = guess(step.xt, t)
        assert_close(step.x0_hat, x0_from_flow(step.xt, t, u), **EXACT)
        assert_close(step.eps_hat, eps_from_flow(step.xt, t, u), **EXACT)
        assert_close(straight_path(step.x0_hat, t, step.eps_hat), step.xt, **EXACT)


@pytest.mark.parametrize("name, count", [("euler", 8), ("heun", 15), ("dpm", 8)])
def test_evaluations_are_as_many_as_the_docstring_says(name, count):
    calls = []
    SAMPLERS[name](lambda x, t, y: calls.append(t) or x, normal(2, 3), 8)
    assert len(calls) == count


@every_sampler
@pytest.mark.parametrize("num_steps", [0, -1, 2.5, "3"])
def test_a_number_of_steps_that_makes_no_sense_is_refused(name, num_steps):
    with pytest.raises(ValueError, match=f"num_steps is {num_steps!r}; expected a whole number of at least 1"):
        SAMPLERS[name](guess, normal(2, 3), num_steps)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_jumps_along_the_mean_velocity_of_a_known_flow_end_where_the_flow_does(num_steps):
    """Where data are N(0, S^2), the mean velocity from t to r is that of the way between its two ends."""

    def scale(t):
        return ((1 - t) ** 2 * S**2 + t**2).sqrt()[:, None]

    def mean_velocity(x, t, y, r):
        return (x - x * scale(r) / scale(t)) / (t - r)[:, None]

    x = normal(5, 3)
    assert_close(sample_jumps(mean_velocity, x, num_steps, clip=math.inf), S * x, **EXACT)
    assert sample_jumps(mean_velocity, 9 * x, num_steps, clip=1.0).abs().max() == 1
