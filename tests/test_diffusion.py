"""The claims of fmdiff_helpers.diffusion: the forward process, its posterior, eps, x0 and v as one thing, the loss.

A claim about random draws is tested at 5 standard errors: a right formula fails once in 1.7 million fresh draws, and
the draws are always the same.
"""

import math
import re

import pytest
import torch
from torch.testing import assert_close

from fmdiff_helpers.diffusion import (
    add_noise,
    draw_noise,
    eps_from_v,
    eps_from_x0,
    forward_step,
    pixel_baseline,
    posterior,
    simple_loss,
    v_loss,
    validation_grid,
    validation_loss,
    velocity,
    x0_from_eps,
    x0_loss,
)
from fmdiff_helpers.schedules import (
    Schedule,
    cosine_beta,
    linear_beta,
    quadratic_beta,
    rescaled_linear_beta,
    sigmoid_beta,
)

# Four steps far apart, and not in order, so that a step taken for its neighbour is seen at once.
UNEVEN = Schedule(torch.tensor([0.1, 0.4, 0.2, 0.6], dtype=torch.float64))
SCHEDULES = {
    "uneven": UNEVEN,
    "linear": Schedule(linear_beta(1000)),
    "rescaled": Schedule(rescaled_linear_beta(100)),
    "quadratic": Schedule(quadratic_beta(1000)),
    "sigmoid": Schedule(sigmoid_beta(300)),
    "cosine": Schedule(cosine_beta(200)),
}
# The two image arguments of each function.
IMAGES = {
    forward_step: ("x_prev", "eps"),
    add_noise: ("x0", "eps"),
    posterior: ("x0", "xt"),
    x0_from_eps: ("xt", "eps"),
    eps_from_x0: ("xt", "x0"),
    velocity: ("x0", "eps"),
    eps_from_v: ("xt", "v"),
}
DRAWS = 40_000
CLOSE = {"rtol": 1e-10, "atol": 1e-10}  # float64: what dividing by a signal or noise scale of 1e-4 costs, and more

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_function = pytest.mark.parametrize("function", IMAGES, ids=lambda function: function.__name__)


def call(function, a, b, t, schedule):
    """Call by the names of the arguments, and return what came out as a tuple."""
    first, second = IMAGES[function]
    out = function(**{first: a, second: b}, t=t, schedule=schedule)
    return out if isinstance(out, tuple) else (out,)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def scales(schedule: Schedule, step: int) -> tuple[float, float]:
    """Return the signal and the noise scale after `step`, straight from beta; (1, 0) at step -1."""
    alpha_bar = math.prod(1 - beta for beta in schedule.beta[: step + 1].tolist())
    return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)


def scales_of(schedule: Schedule, t: torch.Tensor) -> torch.Tensor:
    """Return the signal and the noise scales of many steps, (2, B)."""
    return torch.tensor([scales(schedule, step) for step in t.tolist()], dtype=torch.float64).T


def check_moments(x, mean, variance):
    """Compare each column of x with a normal distribution, at 5 standard errors of the mean and of the variance."""
    mean, variance = torch.as_tensor(mean, dtype=x.dtype), torch.as_tensor(variance, dtype=x.dtype)
    mean_error, variance_error = (variance / len(x)).sqrt(), variance * math.sqrt(2 / len(x))
    assert_close((x.mean(0) - mean) / mean_error, torch.zeros(x.shape[1:]).to(x), rtol=0, atol=5)
    assert_close((x.var(0) - variance) / variance_error, torch.zeros(x.shape[1:]).to(x), rtol=0, atol=5)


# The forward process


@every_schedule
def test_one_step_and_one_jump_are_their_formulas_at_every_t(schedule):
    x, eps, t = normal(schedule.T, 3), normal(schedule.T, 3, seed=1), torch.arange(schedule.T)
    beta = schedule.beta[:, None]
    assert_close(forward_step(x, t, eps, schedule), (1 - beta).sqrt() * x + beta.sqrt() * eps, **CLOSE)
    signal, noise = scales_of(schedule, t)[..., None]
    assert_close(add_noise(x, t, eps, schedule), signal * x + noise * eps, **CLOSE)


@pytest.mark.parametrize("name", ["uneven", "rescaled", "cosine"])
def test_one_jump_has_the_mean_and_variance_of_its_steps_exactly(name):
    """Without noise, steps shrink x0 as the jump does. With x0 = 0 and noise s in pixel s alone, what is left of each
    pixel is the share of that noise, and the squared shares sum to the variance of the jump."""
    schedule, T = SCHEDULES[name], SCHEDULES[name].T
    mean, shares = normal(1, 3), torch.zeros(1, T, dtype=torch.float64)
    for s, noise in enumerate(torch.eye(T, dtype=torch.float64)):
        t = torch.tensor([s])
        mean = forward_step(mean, t, torch.zeros_like(mean), schedule)
        shares = forward_step(shares, t, noise[None], schedule)
        assert_close(mean, add_noise(normal(1, 3), t, torch.zeros_like(mean), schedule), rtol=1e-10, atol=0)
        one = add_noise(torch.zeros(1, 1).double(), t, torch.ones(1, 1).double(), schedule)
        assert_close(shares.square().sum(), one.square().sum(), rtol=1e-10, atol=0)


@every_function
def test_each_t_of_a_batch_is_applied_to_its_own_image(function):
    a, b, t = normal(5, 1, 4, 4), normal(5, 1, 4, 4, seed=1), torch.tensor([3, 0, 2, 2, 1])
    together = call(function, a, b, t, UNEVEN)
    alone = [call(function, a[i : i + 1], b[i : i + 1], t[i : i + 1], UNEVEN) for i in range(5)]
    for whole, *parts in zip(together, *alone, strict=True):
        assert_close(whole, torch.cat(parts), rtol=0, atol=0)


# The posterior


@every_schedule
def test_the_posterior_is_bayes_rule_at_every_t(schedule):
    """The prior of x_{t-1} is q(x_{t-1} | x_0), the likelihood q(x_t | x_{t-1}). Precisions, 1 / variance, add up; the
    mean is the mean of x_{t-1} and of x_t / sqrt(alpha), weighted by precision."""
    x0, xt, t = normal(schedule.T - 1, 3), normal(schedule.T - 1, 3, seed=1), torch.arange(1, schedule.T)
    mean, variance = posterior(x0, xt, t, schedule)
    beta = schedule.beta[1:, None]
    signal, noise = scales_of(schedule, t - 1)[..., None]
    prior, likelihood = 1 / noise**2, (1 - beta) / beta
    expected = (prior * signal * x0 + likelihood * xt / (1 - beta).sqrt()) / (prior + likelihood)
    assert_close(variance, 1 / (prior + likelihood), rtol=1e-9, atol=0)
    assert_close(mean, expected, **CLOSE)


@every_schedule
def test_the_posterior_at_t_0_is_x0_without_doubt(schedule):
    x0, xt = normal(100, 1, 2, 2), normal(100, 1, 2, 2, seed=1)
    mean, variance = posterior(x0, xt, torch.zeros(100).long(), schedule)
    assert_close(mean, x0, rtol=1e-11, atol=0)
    assert_close(variance, torch.zeros(100, 1, 1, 1, dtype=torch.float64), rtol=0, atol=0)


# eps, x0 and v


@every_schedule
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_eps_x0_and_v_say_the_same_at_every_t(schedule, dtype):
    """In float32 at the steps that neither signal nor noise has all but left: both scales above 0.1."""
    t = torch.arange(schedule.T)
    if dtype == torch.float32:
        t = t[(schedule.signal_scale > 0.1) & (schedule.noise_scale > 0.1)]
    close = CLOSE if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    x0, eps = normal(len(t), 1, 4, 4, dtype=dtype), normal(len(t), 1, 4, 4, seed=1, dtype=dtype)
    xt, v = add_noise(x0, t, eps, schedule), velocity(x0, t, eps, schedule)

    assert_close(x0_from_eps(xt, t, eps, schedule), x0, **close)
    assert_close(eps_from_x0(xt, t, x0, schedule), eps, **close)
    assert_close(eps_from_v(xt, t, v, schedule), eps, **close)
    # From one guess to another and back, for a guess that is not the truth.
    guess = normal(len(t), 1, 4, 4, seed=2, dtype=dtype)
    assert_close(eps_from_x0(xt, t, x0_from_eps(xt, t, guess, schedule), schedule), guess, **close)
    assert_close(x0_from_eps(xt, t, eps_from_x0(xt, t, guess, schedule), schedule), guess, **close)
    implied_eps = eps_from_v(xt, t, guess, schedule)
    implied_x0 = x0_from_eps(xt, t, implied_eps, schedule)
    assert_close(velocity(implied_x0, t, implied_eps, schedule), guess, **close)
    assert_close(add_noise(implied_x0, t, implied_eps, schedule), xt, **close)


@pytest.mark.parametrize("phi", [0.05, 0.5, math.pi / 4, 1.0, 1.5])
def test_v_is_the_rate_at_which_xt_turns_from_x0_to_eps(phi):
    """With signal cos(phi) and noise sin(phi), v is d xt / d phi; here by a central difference, exact to 1e-9."""
    x0, eps, t = normal(1, 32), normal(1, 32, seed=1), torch.tensor([0])

    def one_step(angle: float) -> Schedule:
        return Schedule(torch.tensor([math.sin(angle) ** 2], dtype=torch.float64))

    h = 1e-5
    turned = add_noise(x0, t, eps, one_step(phi + h)) - add_noise(x0, t, eps, one_step(phi - h))
    assert_close(velocity(x0, t, eps, one_step(phi)), turned / (2 * h), rtol=0, atol=1e-8)


# Shapes, dtypes and bad input


@every_function
@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (3, 4, 7, 7), (3, 32), (0, 1, 28, 28)])
def test_any_shape_of_image_works_and_stays_and_the_inputs_too(function, shape):
    a, b, t = normal(*shape), normal(*shape, seed=1), torch.arange(shape[0])
    kept = a.clone(), b.clone(), t.clone()
    result, *variance = call(function, a, b, t, UNEVEN)
    assert result.shape == shape
    assert [tuple(v.shape) for v in variance] == [(shape[0], *[1] * (len(shape) - 1))] * (function is posterior)
    for now, before in zip((a, b, t), kept, strict=True):
        assert_close(now, before, rtol=0, atol=0)


@every_function
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 0), (torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_the_dtype_of_the_images_stays(function, dtype, error):
    """Rounding to 24 or 8 binary digits is all that the result differs by from that in float64."""
    a, b, t = normal(4, 1, 4, 4, dtype=dtype), normal(4, 1, 4, 4, seed=1, dtype=dtype), torch.arange(4)
    exact = call(function, a.double(), b.double(), t, UNEVEN)
    for result, expected in zip(call(function, a, b, t, UNEVEN), exact, strict=True):
        assert result.dtype == dtype
        assert_close(result.double(), expected, rtol=error, atol=error)


@pytest.mark.parametrize("function", [forward_step, add_noise, posterior])
def test_float32_images_lose_nothing_at_the_first_steps(function):
    """1 - alpha_bar is 1e-4 at t = 0; taken in float32 it would be wrong in the fourth digit."""
    schedule, t = SCHEDULES["linear"], torch.arange(1000)
    a, b = normal(1000, 32, dtype=torch.float32), normal(1000, 32, seed=1, dtype=torch.float32)
    exact = call(function, a.double(), b.double(), t, schedule)
    for result, expected in zip(call(function, a, b, t, schedule), exact, strict=True):
        assert_close(result.double(), expected, rtol=2e-6, atol=2e-6 * expected.abs().max().item())


@every_function
@pytest.mark.parametrize(
    ("t", "found"),
    [
        (torch.tensor([0, 1, 2], dtype=torch.int32), "t is torch.int32 of shape (3,); expected int64 of shape (3,)"),
        (torch.tensor([0.0, 1.0, 2.0]), "t is torch.float32 of shape (3,); expected int64 of shape (3,)"),
        (torch.tensor([True, False, True]), "t is torch.bool of shape (3,); expected int64 of shape (3,)"),
        (3, "t is 3; expected int64 of shape (3,)"),
        (torch.tensor([0, 1]), "t is torch.int64 of shape (2,); expected int64 of shape (3,)"),
        (torch.tensor([0]), "t is torch.int64 of shape (1,); expected int64 of shape (3,)"),
        (torch.tensor(0), "t is torch.int64 of shape (); expected int64 of shape (3,)"),
        (torch.tensor([[0], [1], [2]]), "t is torch.int64 of shape (3, 1); expected int64 of shape (3,)"),
        (torch.tensor([0, -1, 2]), "t runs from -1 to 2; expected steps 0 to T - 1 = 3"),
        (torch.tensor([0, 4, 2]), "t runs from 0 to 4; expected steps 0 to T - 1 = 3"),
    ],
)
def test_a_t_that_is_not_one_step_for_each_image_is_refused_by_value(function, t, found):
    with pytest.raises(ValueError, match=re.escape(found)):
        call(function, normal(3, 1, 4, 4), normal(3, 1, 4, 4), t, UNEVEN)


@every_function
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("which", [0, 1])
def test_images_that_are_not_floating_point_are_refused_by_name(function, dtype, which):
    images = [normal(3, 1, 4, 4), normal(3, 1, 4, 4)]
    images[which] = images[which].to(dtype)
    with pytest.raises(ValueError, match=f"^{IMAGES[function][which]} is {dtype}; expected floating-point images"):
        call(function, *images, torch.zeros(3).long(), UNEVEN)


@every_function
@pytest.mark.parametrize(
    ("a", "b"),
    [((3, 1, 28, 28), (3, 28, 28)), ((3, 1, 28, 28), (1, 1, 28, 28)), ((3, 4, 7, 7), (3, 1, 7, 7)), ((3, 32), (3, 1))],
)
def test_images_of_two_shapes_are_refused_even_where_they_would_broadcast(function, a, b):
    (first, second), t = IMAGES[function], torch.zeros(3).long()
    with pytest.raises(ValueError, match=re.escape(f"shapes differ: {{'{first}': {a}, '{second}': {b}}}")):
        call(function, normal(*a), normal(*b), t, UNEVEN)


# The loss


@pytest.mark.parametrize("y", [torch.tensor([7, 7, 1, 0]), None], ids=["labels", "no labels"])
@pytest.mark.parametrize("shape", [(4, 1, 28, 28), (4, 3, 2, 5), (4, 7)])
@pytest.mark.parametrize("loss_fn", [simple_loss, x0_loss, v_loss])
def test_a_loss_is_the_mean_of_the_squared_errors_of_each_image(loss_fn, shape, y):
    """The model sees the noisy images, their steps and labels, and learns from the gradient 2 error / pixels."""
    x0, eps, wrong, t = (*(normal(*shape, seed=seed) for seed in range(3)), torch.tensor([2, 0, 3, 1]))
    signal, noise = (each.reshape(-1, *[1] * (x0.ndim - 1)) for each in scales_of(UNEVEN, t))
    target = {simple_loss: eps, x0_loss: x0, v_loss: signal * eps - noise * x0}[loss_fn]
    said = (target + wrong).requires_grad_()

    def model(xt, step, label):
        assert xt.equal(add_noise(x0, t, eps, UNEVEN)) and step is t and label is y
        return said

    loss = loss_fn(model, x0, y, t, eps, UNEVEN)
    assert_close(loss, wrong.square().flatten(1).sum(dim=1) / wrong[0].numel(), **CLOSE)
    loss.sum().backward()
    assert_close(said.grad, 2 * wrong / wrong[0].numel(), **CLOSE)


def test_a_training_step_draws_every_step_as_often_and_unit_noise_whatever_the_step():
    x0 = torch.zeros(DRAWS, 1, 1, 3)
    t, eps = draw_noise(x0, torch.Generator().manual_seed(0), UNEVEN)
    assert (t.dtype, t.shape, eps.dtype, eps.shape) == (torch.int64, (DRAWS,), x0.dtype, x0.shape)
    share = t.bincount(minlength=4).double() / DRAWS  # one more entry, had a step beyond the last been drawn
    assert_close(share, torch.full((4,), 0.25).double(), rtol=0, atol=5 * math.sqrt(0.25 * 0.75 / DRAWS))
    for step in range(4):
        check_moments(eps[t == step].flatten(1), torch.zeros(3), torch.ones(3))


def test_a_training_step_draws_what_its_generator_says_and_leaves_global_random_numbers_alone():
    x0, before = torch.zeros(50, 2), torch.get_rng_state()
    generator = torch.Generator().manual_seed(3)
    (t, eps), (next_t, next_eps) = draw_noise(x0, generator, UNEVEN), draw_noise(x0, generator, UNEVEN)
    same_t, same_eps = draw_noise(x0, torch.Generator().manual_seed(3), UNEVEN)
    assert t.equal(same_t) and eps.equal(same_eps)
    assert not t.equal(next_t) and not eps.equal(next_eps)
    assert torch.get_rng_state().equal(before)


# Validation


def wrong_by(error, x0, schedule):
    """Return a model that knows x0, and with it the noise, and is off by `error(t)` (B,) in every pixel."""

    def model(xt, t, y):
        eps = eps_from_x0(xt, t, x0, schedule)
        return eps + error(t).reshape(-1, *[1] * (xt.ndim - 1))

    return model


@pytest.mark.parametrize(
    ("n", "T", "expected"),
    [
        (5, 10, [0, 2, 4, 6, 8]),
        (4, 4, [0, 1, 2, 3]),
        (8, 4, [0, 0, 1, 1, 2, 2, 3, 3]),
        (3, 1000, [0, 333, 666]),
        (1, 1000, [0]),
        (2000, 200, [t for t in range(200) for _ in range(10)]),
    ],
)
def test_validation_looks_at_all_steps_alike_from_0_up(n, T, expected):
    t, eps = validation_grid(torch.zeros(n, 2), Schedule(rescaled_linear_beta(T) if T > 20 else linear_beta(T)))
    assert t.dtype == torch.int64
    assert t.tolist() == expected
    assert eps.shape == (n, 2)


def test_validation_is_the_same_at_each_call_and_leaves_global_random_numbers_alone():
    x0, before = torch.zeros(DRAWS, 2), torch.get_rng_state()
    (t, eps), (same_t, same_eps) = validation_grid(x0, UNEVEN), validation_grid(torch.ones(DRAWS, 2), UNEVEN)
    other_t, other_eps = validation_grid(x0, UNEVEN, seed=1)
    assert t.equal(same_t) and eps.equal(same_eps)
    assert t.equal(other_t) and not eps.isclose(other_eps).any(1).all()
    assert torch.get_rng_state().equal(before)
    check_moments(eps, torch.zeros(2), torch.ones(2))


def test_fewer_images_than_ranges_of_steps_are_an_error():
    with pytest.raises(ValueError, match="x0 has 9 images; expected at least 10"):
        validation_loss(lambda xt, t, y: xt, normal(9, 3), None, SCHEDULES["cosine"])
    assert len(validation_loss(lambda xt, t, y: xt, normal(9, 3), None, SCHEDULES["cosine"], bins=9)["bins"]) == 9


@pytest.mark.parametrize(("n", "bins"), [(1000, 10), (2000, 10), (200, 4), (200, 1), (50, 10)])
def test_validation_loss_is_a_mean_over_all_steps_and_its_bins_are_means_from_low_steps_to_high(n, bins):
    """A model off by sqrt(t) has the loss t, whose mean is known for any range of steps."""
    schedule, x0 = SCHEDULES["cosine"], normal(n, 3)
    found = validation_loss(wrong_by(lambda t: t.double().sqrt(), x0, schedule), x0, None, schedule, bins=bins)
    apart = max(1, 200 // n)  # steps are looked at 0, apart, 2 apart, ...
    expected = [torch.arange(low, low + 200 // bins, apart).double().mean() for low in range(0, 200, 200 // bins)]
    assert_close(torch.tensor(found["bins"]).double(), torch.stack(expected), rtol=1e-5, atol=1e-5)
    assert_close(found["loss"], sum(found["bins"]) / bins, rtol=1e-5, atol=0)
    assert all(isinstance(value, float) for value in (found["loss"], *found["bins"]))


def test_validation_takes_another_loss():
    """A model of x0 that is off by sqrt(t) has the x0 loss t, and as a model of the noise another one."""
    schedule, x0 = SCHEDULES["cosine"], normal(200, 3)

    def model(xt, t, y):
        return x0 + t.double().sqrt()[:, None]

    found = validation_loss(model, x0, None, schedule, loss_fn=x0_loss)
    assert_close(torch.tensor(found["bins"]), torch.arange(10) * 20 + 9.5, rtol=1e-5, atol=1e-5)
    assert_close(found["loss"], 99.5, rtol=1e-5, atol=0)
    assert found != validation_loss(model, x0, None, schedule)


def test_validation_has_10_bins_passes_labels_on_and_needs_no_gradient():
    x0, y, seen = torch.zeros(20, 3), torch.arange(20), []

    def model(xt, t, y):
        seen.append((y, torch.is_grad_enabled()))
        return torch.zeros_like(xt)

    found = validation_loss(model, x0, y, UNEVEN)
    assert len(found["bins"]) == 10
    assert seen == [(y, False)]
    assert found == validation_loss(model, x0, y, UNEVEN)
    assert_close(found["loss"], validation_grid(x0, UNEVEN)[1].square().mean().item(), rtol=1e-6, atol=0)


# The baseline of pixels that know nothing of each other

SPREAD = torch.tensor([0.02, 0.3, 1.0, 3.0], dtype=torch.float64)  # the standard deviations of four pixels


@every_schedule
def test_the_pixel_baseline_is_the_mean_over_pixels_of_what_cannot_be_known(schedule):
    x0 = (SPREAD * normal(50, 4)).reshape(50, 1, 2, 2)
    found = pixel_baseline(x0.float(), schedule)
    assert (found.dtype, found.shape) == (torch.float64, (schedule.T,))
    for t in (0, schedule.T // 2, schedule.T - 1):
        a, b = scales(schedule, t)
        values = [x0[:, 0, i // 2, i % 2].tolist() for i in range(4)]
        variances = [sum((v - sum(pixel) / 50) ** 2 for v in pixel) / 49 for pixel in values]
        left = sum(a**2 * variance / (a**2 * variance + b**2) for variance in variances) / 4
        assert_close(found[t].item(), left, rtol=1e-5, atol=0)
