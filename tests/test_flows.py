"""The claims of fmdiff_helpers.flows: paths, losses and the conversion, by closed forms; how likely data are.

Where data are Gaussian the velocity of the flow is known: for N(0, S^2) it is linear in x, and the flow only scales.
"""

import math

import pytest
import torch
from small_networks import tiny_network
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from fmdiff_helpers.diffusion import add_noise, eps_from_v, velocity
from fmdiff_helpers.flow_samplers import sample_euler
from fmdiff_helpers.flows import (
    divergence,
    eps_from_flow,
    flow_loss,
    flow_of,
    log_likelihood,
    mean_flow_loss,
    shifted,
    shortcut_loss,
    step_at,
    straight_path,
    times_of,
    x0_from_flow,
)
from fmdiff_helpers.models.ideal import IdealDenoiser
from fmdiff_helpers.samplers import noise_from_v, respace, sample_ddim
from fmdiff_helpers.schedules import Schedule, cosine_beta, rescaled_linear_beta

SCHEDULES = {"cosine": Schedule(cosine_beta(200)), "linear": Schedule(rescaled_linear_beta(100))}
SHAPES = {"latent_unet": (2, 7, 7), "patch_unet": (1, 28, 28), "vector_denoiser": (1, 8, 8), "transformer": (1, 28, 28)}
EXACT = {"rtol": 1e-9, "atol": 1e-9}
S = 0.7

every_schedule = pytest.mark.parametrize("name", SCHEDULES)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear_flow(x, t, y=None):
    """The velocity where data are N(0, S^2): E[eps - x0 | x]."""
    t = t.reshape(-1, *[1] * (x.ndim - 1))
    return x * (t - (1 - t) * S**2) / ((1 - t) ** 2 * S**2 + t**2)


def guess(x, t, y=None):
    """A model that depends on every number of x and on t, and is not linear."""
    return torch.tanh(x.flip(1) * 0.7 + t.reshape(-1, *[1] * (x.ndim - 1))) + 0.1 * x**2


# Paths


def test_a_path_is_straight_and_its_velocity_leads_to_both_ends():
    x0, eps, t = normal(5, 3), normal(5, 3, seed=1), torch.tensor([0.0, 0.25, 0.5, 0.9, 1.0]).double()
    xt = straight_path(x0, t, eps)
    assert torch.equal(xt[0], x0[0]) and torch.equal(xt[4], eps[4])
    assert_close(xt[1], 0.75 * x0[1] + 0.25 * eps[1], **EXACT)
    assert_close(x0_from_flow(xt, t, eps - x0), x0, **EXACT)
    assert_close(eps_from_flow(xt, t, eps - x0), eps, **EXACT)


@pytest.mark.parametrize("shift, middle", [(1.0, 0.5), (3.0, 0.75), (1 / 3, 0.25)])
def test_a_shift_moves_the_times_between_and_keeps_the_ends(shift, middle):
    assert_close(shifted(torch.tensor([0.0, 0.5, 1.0]), shift), torch.tensor([0.0, middle, 1.0]))


# Losses


def test_the_loss_is_the_mean_squared_error_of_one_lines_velocity():
    x0, eps, t = normal(4, 2, 3), normal(4, 2, 3, seed=1), torch.rand(4, dtype=torch.float64)
    expected = (guess(straight_path(x0, t, eps), t) - (eps - x0)).square().mean(dim=(1, 2))
    assert_close(flow_loss(guess, x0, None, t, eps), expected, **EXACT)


def test_the_velocity_of_one_line_has_the_gradient_of_the_mean_over_all_lines():
    """Three data points, and a model with one weight. The mean velocity comes from the ideal denoiser."""
    data = normal(3, 1, 1, 2)
    number = 100_000
    x0 = data[torch.randint(3, (number,), generator=torch.Generator().manual_seed(2))]
    eps, t = normal(number, 1, 1, 2, seed=3), torch.full((number,), 0.6, dtype=torch.float64)
    xt = straight_path(x0, t, eps)
    ideal = IdealDenoiser(data, torch.zeros(3, dtype=torch.int64), torch.tensor([0.4]), torch.tensor([0.6]))
    x0_hat = ideal(xt, torch.zeros(number, dtype=torch.int64), torch.zeros(number, dtype=torch.int64)).to(xt)
    mean_velocity = (xt - x0_hat) / 0.6
    slopes = []
    for target in (eps - x0, mean_velocity):
        weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        (weight * xt - target).square().mean().backward()
        slopes.append(weight.grad.item())
    assert slopes[0] == pytest.approx(slopes[1], abs=0.01)


@pytest.mark.parametrize("taught", [True, False])
def test_a_shortcut_is_the_mean_of_its_halves_and_where_there_is_no_way_the_velocity(taught):
    """A model that is wrong in a known way: the target is its own answer for the halves, and for r = t the velocity."""
    x0, eps = normal(6, 2), normal(6, 2, seed=1)
    t, r = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]).double(), torch.tensor([0.9, 0.2, 0.7, 0, 0.1, 0.4]).double()

    def model(x, t, y, r):
        return torch.sin(x) + t[:, None] - 2 * r[:, None]

    x = straight_path(x0, t, eps)
    middle = (t + r) / 2
    first = model(x, t, None, middle)
    second = model(x + (middle - t)[:, None] * first, middle, None, r)
    velocity = 3 * x if taught else eps - x0
    target = torch.where((t == r)[:, None], velocity, (first + second) / 2)
    expected = (model(x, t, None, r) - target).square().mean(dim=1)
    teacher = (lambda x, t, y: 3 * x) if taught else None
    assert_close(shortcut_loss(model, x0, None, t, r, eps, teacher), expected, **EXACT)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_mean_velocity_of_a_known_flow_has_no_loss_and_another_one_has(power):
    """Where data are one point c, all lines end there: velocity (x - c) / t, and its mean to any r is the same."""
    c = torch.tensor([[0.3, -0.8]]).double()
    x0, eps = c.expand(50, 2), normal(50, 2, seed=1)
    t, r = torch.rand((2, 50), generator=torch.Generator().manual_seed(0)).double().sort(dim=0, descending=True).values

    def right(x, t, y, r):
        return (x - c) / t[:, None]

    def wrong(x, t, y, r):
        return (x - c) / t[:, None] + r[:, None]

    assert mean_flow_loss(right, x0, None, t, r, eps, power).abs().max() < 1e-12
    assert mean_flow_loss(wrong, x0, None, t, r, eps, power).min() > 1e-6
    assert shortcut_loss(right, x0, None, t, r, eps).abs().max() < 1e-12
    assert shortcut_loss(wrong, x0, None, t, t, eps).min() > 1e-6  # for r < t it is the flow of another velocity


def test_the_target_of_the_mean_velocity_is_a_constant_with_the_slope_along_the_path():
    x0, eps = normal(6, 2), normal(6, 2, seed=1)
    t, r = torch.linspace(0.3, 0.9, 6).double(), torch.linspace(0.1, 0.5, 6).double()
    weight = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)

    def model(x, t, y, r):
        return weight * (torch.sin(x) + (t * t)[:, None] - r[:, None] * x)

    x, u = straight_path(x0, t, eps), eps - x0
    h = 1e-5
    slope = (model(x + h * u, t + h, None, r) - model(x - h * u, t - h, None, r)) / (2 * h)
    target = (u - (t - r)[:, None] * slope).detach()
    expected = (model(x, t, None, r) - target).square().mean(dim=1)
    found = mean_flow_loss(model, x0, None, t, r, eps, power=0.0)
    assert_close(found, expected, rtol=1e-7, atol=1e-9)
    slopes = [torch.autograd.grad(each.sum(), weight, retain_graph=True)[0] for each in (found, expected)]
    assert_close(*slopes, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", SHAPES)
def test_the_derivative_along_a_path_is_that_of_small_steps_for_each_network(name):
    network = tiny_network(name).double()
    x = normal(4, *SHAPES[name])
    y, t, u, h = torch.arange(4), torch.linspace(20.5, 60.5, 4).double(), normal(*x.shape, seed=1), 1e-4
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        found = jvp(lambda x, t: network(x, t, y), (x, t), (u, torch.ones_like(t)))[1]
        expected = (network(x + h * u, t + h, y) - network(x - h * u, t - h, y)) / (2 * h)
    assert_close(found, expected, rtol=1e-3, atol=1e-6)


# A network that predicts v is a flow


@every_schedule
def test_the_time_of_a_step_and_the_step_of_a_time_undo_each_other(name):
    schedule = SCHEDULES[name]
    steps = torch.arange(schedule.T).double()
    assert_close(step_at(times_of(schedule), schedule), steps, rtol=0, atol=1e-6)
    between = (times_of(schedule)[1:] + times_of(schedule)[:-1]) / 2
    assert ((step_at(between, schedule) > steps[:-1]) & (step_at(between, schedule) < steps[1:])).all()
    ends = step_at(torch.tensor([0.0, 1.0]).double(), schedule)
    assert_close(ends, torch.tensor([0.0, schedule.T - 1]).double(), rtol=0, atol=1e-9)


@every_schedule
def test_v_becomes_the_velocity_at_every_step(name):
    schedule = SCHEDULES[name]
    t = torch.arange(schedule.T)
    x0, eps = normal(schedule.T, 1, 2, 2), normal(schedule.T, 1, 2, 2, seed=1)

    def knows(xt, step, y):
        assert_close(xt, add_noise(x0, t, eps, schedule), rtol=1e-6, atol=1e-6)
        assert_close(step, t.double(), rtol=0, atol=1e-6)
        return velocity(x0, t, eps, schedule)

    time = times_of(schedule)
    found = flow_of(knows, schedule)(straight_path(x0, time, eps), time)
    assert_close(found, eps - x0, rtol=1e-6, atol=1e-6)


@every_schedule
@pytest.mark.parametrize("num_steps", [1, 2, 7, 50])
def test_euler_on_the_converted_network_is_ddim(name, num_steps):
    """From the same state of the chain, at the times of DDIM's steps and 0."""
    schedule = SCHEDULES[name]

    def model(x, t, y=None):
        return torch.tanh(x + 0.01 * t.reshape(-1, 1, 1, 1).to(x.dtype))

    x = normal(3, 1, 2, 2)
    expected = sample_ddim(noise_from_v(model, schedule), x, schedule, None, num_steps, clip=math.inf)
    steps, _ = respace(schedule, num_steps)
    times = [*times_of(schedule)[steps].flip(0).tolist(), 0.0]
    start = x / (schedule.signal_scale + schedule.noise_scale)[-1]
    found = sample_euler(flow_of(model, schedule), start, clip=math.inf, times=times)
    assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_conversion_agrees_with_the_noise_that_v_implies():
    schedule, t = SCHEDULES["cosine"], torch.tensor([3, 60, 140])
    xt, v = normal(3, 1, 2, 2), normal(3, 1, 2, 2, seed=1)
    eps, time = eps_from_v(xt, t, v, schedule), times_of(schedule)[t]
    x = xt / (schedule.signal_scale + schedule.noise_scale)[t].reshape(-1, 1, 1, 1)
    found = eps_from_flow(x, time, flow_of(lambda *_: v, schedule)(x, time))
    assert_close(found, eps, rtol=1e-6, atol=1e-6)


# How likely


def test_the_divergence_is_exact_where_the_derivative_is_diagonal_and_right_on_average_elsewhere():
    x, t = normal(4, 3), torch.full((4,), 0.5, dtype=torch.float64)
    signs = torch.randint(2, (2000, 4, 3), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    exact = 3 * linear_flow(torch.ones(1, 1).double(), t[:1]).item()
    assert_close(divergence(linear_flow, x, t, None, signs[:1]), torch.full((4,), exact, dtype=torch.float64), **EXACT)

    def mixing(x, t, y):
        return x @ torch.tensor([[1.0, 2.0, 0.0], [0.5, -3.0, 1.0], [0.0, 4.0, 0.5]]).double()

    assert_close(divergence(mixing, x, t, None, signs), torch.full((4,), -1.5, dtype=torch.float64), rtol=0, atol=0.5)


def test_the_likelihood_of_gaussian_data_is_that_of_the_gaussian():
    x0 = S * normal(6, 4)
    found = log_likelihood(linear_flow, x0, torch.Generator().manual_seed(0), num_steps=200)
    expected = torch.distributions.Normal(0.0, S).log_prob(x0).sum(dim=1)
    assert_close(found, expected, rtol=1e-3, atol=2e-3)
