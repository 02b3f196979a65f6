"""The claims of fmdiff_helpers.repair: what each method keeps, and how near it comes to the exact posterior.

Where data are Gaussian the best model, the posterior, and the distribution in which a chain ends are known. A claim
about random draws is tested at 5 standard errors, and the draws are always the same.
"""

import math
import re
from functools import cache, partial
from itertools import pairwise

import pytest
import torch
from network_checks import EXACT, normal
from torch.testing import assert_close

from fmdiff_helpers.diffusion import add_noise, eps_from_x0, posterior
from fmdiff_helpers.measurements import Brightness, Mask, blur, shrink
from fmdiff_helpers.repair import (
    change_kind,
    effective_number,
    first_steps,
    look_and_compare,
    posterior_weights,
    rectify,
    repaint_levels,
    sample_ddnm,
    sample_dps,
    sample_repaint,
    sample_replacing,
    sample_sdedit,
    seen_before,
)
from fmdiff_helpers.samplers import respace, sample_ddpm
from fmdiff_helpers.schedules import Schedule, cosine_beta

COSINE = Schedule(cosine_beta(50))
UNEVEN = Schedule(torch.tensor([0.1, 0.4, 0.2, 0.6], dtype=torch.float64))
SAMPLERS = {
    "replacing": sample_replacing,
    "repaint": partial(sample_repaint, repeats=3, jump=2),
    "ddnm": sample_ddnm,
    "dps": sample_dps,
}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
DRAWS = 2000

# Pictures of 1 x 2 pixels: Gaussian data whose left pixel is known.
MEAN = torch.tensor([0.3, -0.2]).double()
COVARIANCE = torch.tensor([[1.0, 0.8], [0.8, 1.0]]).double()
LEFT = Mask(torch.tensor([[True, False]]))
KNOWN = 1.1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def guess(xt, t, y):
    """A model that is wrong, but depends on every pixel, on t and on the label."""
    kind = 0 if y is None else y.reshape(-1, 1, 1, 1)
    return torch.tanh(xt.roll(1, -1) + 0.1 * t.reshape(-1, 1, 1, 1) - 0.3 * kind)


@cache
def scales(t: int, schedule: Schedule) -> tuple[float, float]:
    """Return the scales a and b after t + 1 steps; 1 and 0 at t = -1."""
    alpha_bar = math.prod(1 - beta for beta in schedule.beta[: t + 1].tolist())
    return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)


@cache
def gain(t: int, schedule: Schedule) -> torch.Tensor:
    """Return G in E[x0 | xt] = MEAN + G (xt - a MEAN): a C (a^2 C + b^2)^-1."""
    a, b = scales(t, schedule)
    return a * COVARIANCE @ torch.linalg.inv(a**2 * COVARIANCE + b**2 * torch.eye(2))


def best(schedule: Schedule, shift: float = 0.0):
    """Return the best model of the noise for data N(MEAN, COVARIANCE); a label y moves the mean by `shift` y."""

    def model(xt, t, y):
        a = schedule.signal_scale[t][:, None]
        mean = MEAN + (0 if y is None else shift * y[:, None])
        x0 = mean + (xt.flatten(1) - a * mean) @ gain(int(t[0]), schedule).T  # all are at the same step
        return eps_from_x0(xt, t, x0.reshape(xt.shape), schedule)

    return model


def by_hand(method: str, schedule: Schedule, levels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean (2,) and covariance (2, 2) of what a method makes of N(0, I), for the best model, in closed form.

    All steps are linear, so that mean and covariance suffice. `levels` are the numbers of noisy steps on the way.
    """
    mean, covariance, left = torch.zeros(2).double(), torch.eye(2).double(), torch.tensor([1.0, 0.0]).double()
    for level, following in pairwise(levels):
        k = min(level, following)
        beta = schedule.beta[k].item()
        if following > level:
            mean, covariance = math.sqrt(1 - beta) * mean, (1 - beta) * covariance + beta * torch.eye(2)
            continue
        (a, b), (a_prev, b_prev) = scales(k, schedule), scales(k - 1, schedule)
        matrix = gain(k, schedule)
        constant = MEAN - a * matrix @ MEAN
        if method == "ddnm":  # the known pixel of x0_hat is known
            matrix, constant = matrix * (1 - left[:, None]), constant * (1 - left) + KNOWN * left
        to_x0, to_xt = a_prev * beta / b**2, math.sqrt(1 - beta) * b_prev**2 / b**2
        step = to_x0 * matrix + to_xt * torch.eye(2)
        mean = step @ mean + to_x0 * constant
        covariance = step @ covariance @ step.T + beta * b_prev**2 / b**2 * torch.eye(2)
        if method == "replacing":
            mean = torch.stack([torch.tensor(a_prev * KNOWN).double(), mean[1]])
            covariance = torch.diag(torch.stack([torch.tensor(b_prev**2).double(), covariance[1, 1]]))
    return mean, covariance


def exact() -> tuple[float, float]:
    """Return mean and variance of the right pixel, given the left one."""
    slope = COVARIANCE[0, 1] / COVARIANCE[0, 0]
    return (MEAN[1] + slope * (KNOWN - MEAN[0])).item(), (COVARIANCE[1, 1] - slope * COVARIANCE[0, 1]).item()


def draw(name: str, schedule: Schedule, **options):
    """Draw pictures whose left pixel is known, with the best model, not clipped."""
    seen = torch.tensor([KNOWN, 0.0]).double().expand(DRAWS, 1, 1, 2)
    x = normal(DRAWS, 1, 1, 2, seed=1)
    return SAMPLERS[name](best(schedule), x, schedule, LEFT, seen, seeded(), clip=math.inf, **options).flatten(1)


def check_moments(x, mean, covariance):
    """Compare samples (N, 2) with a normal distribution, at 5 standard errors of mean and covariance."""
    variance = covariance.diag()
    assert_close((x.mean(0) - mean) / (variance / len(x) + 1e-12).sqrt(), torch.zeros(2).double(), rtol=0, atol=5)
    error = ((variance[:, None] * variance + covariance**2) / len(x)).sqrt() + 1e-12
    assert_close((x.T.cov() - covariance) / error, torch.zeros(2, 2).double(), rtol=0, atol=5)


# Gaussian data: where the chains end, and where they should


@pytest.mark.parametrize("schedule", [COSINE, UNEVEN], ids=["cosine", "uneven"])
@pytest.mark.parametrize("name", ["replacing", "repaint", "ddnm"])
def test_on_gaussian_data_the_samples_are_distributed_as_computed_by_hand(name, schedule):
    levels = repaint_levels(schedule.T, 3 if name == "repaint" else 1, 2)
    mean, covariance = by_hand("ddnm" if name == "ddnm" else "replacing", schedule, levels)
    check_moments(draw(name, schedule), mean, covariance)


def test_going_back_and_forth_comes_nearer_to_the_exact_posterior():
    """Mean and variance of the unknown pixel, in closed form. With very many repetitions only the mean gets better:

    each step back adds a little less noise than it should (Ho et al. 2020, eq. 7), and that adds up.
    """
    schedule = Schedule(cosine_beta(200))
    mean, variance = exact()
    error = {}
    for repeats in (1, 5, 40):
        ends, covariance = by_hand("replacing", schedule, repaint_levels(200, repeats, 10))
        error[repeats] = abs(ends[1].item() - mean), abs(covariance[1, 1].item() / variance - 1)
    assert error[1][0] > 0.2 and error[1][1] > 0.3
    assert error[5][0] < 0.06 and error[5][1] < 0.02
    assert error[40][0] < 0.01 and 0.05 < error[40][1] < 0.15


def test_the_null_space_step_alone_does_not_draw_from_the_exact_posterior():
    """The known pixel is exact; the unknown one learns of it only through the steps of the chain."""
    ends, covariance = by_hand("ddnm", Schedule(cosine_beta(200)), repaint_levels(200, 1, 10))
    assert_close(ends[0].item(), KNOWN, **EXACT)
    assert abs(ends[1].item() - exact()[0]) > 0.2 and covariance[1, 1] > 1.3 * exact()[1]


# What is seen is kept

HALF = torch.ones(8, 8, dtype=torch.bool)
HALF[:, 4:] = False
KEPT = {  # measurement -> how far what is seen of the samples may be from what was seen
    "mask": (Mask(HALF), 1e-3),
    "shrink": (shrink(4, 8), 1e-3),
    "brightness": (Brightness(torch.stack([HALF, ~HALF])), 1e-3),
    "blur": (blur(1.0, 8), 0.03),  # singular values below 0.01 are cut
}


@pytest.mark.parametrize("what", KEPT)
@pytest.mark.parametrize("name", ["replacing", "repaint", "ddnm"])
def test_the_samples_fit_what_was_seen(name, what):
    """For a bad model, too, in float32."""
    measurement, far = KEPT[what]
    seen = measurement.apply(normal(3, 1, 8, 8).float().clamp(-1, 1))
    x = SAMPLERS[name](guess, normal(3, 1, 8, 8, seed=1).float(), COSINE, measurement, seen, seeded(), 10)
    assert x.dtype == torch.float32
    assert_close(measurement.apply(x), seen, rtol=0, atol=far)


@pytest.mark.parametrize("what", KEPT)
def test_rectified_pictures_keep_what_is_not_seen_of_them(what):
    measurement, x = KEPT[what][0], normal(2, 1, 8, 8)
    seen = measurement.apply(normal(2, 1, 8, 8, seed=1))
    once = rectify(x, measurement, seen)
    change = once - x
    assert_close(rectify(change, measurement, measurement.apply(change) * 0), change * 0, rtol=0, atol=1e-9)
    assert_close(rectify(once, measurement, seen), once, rtol=0, atol=1e-9)
    assert (change.abs() > 0.1).any()


# One step of each


@pytest.mark.parametrize("k", [0, 1, 25, 49])
def test_what_is_put_in_has_the_noise_of_the_step_before(k):
    """a s + b A eps; at the end there is no noise left."""
    seen, eps = LEFT.apply(normal(3, 1, 1, 2)), normal(3, 1, 1, 2, seed=1)
    a, b = scales(k - 1, COSINE)
    assert_close(seen_before(k, LEFT, seen, eps, COSINE), LEFT.keep * (a * seen + b * eps), **EXACT)


def watched(name, measurement=LEFT, model=guess, **options):
    """Return what each step saw, and the samples, of pictures of 1 x 2 pixels."""
    found = []
    seen = measurement.apply(normal(3, 1, 1, 2, seed=5))
    x = normal(3, 1, 1, 2, seed=1)
    sample = SAMPLERS[name](model, x, COSINE, measurement, seen, seeded(), watch=found.append, **options)
    return found, sample, seen


@every_sampler
def test_steps_follow_one_another_and_tell_the_model_step_and_label(name):
    asked, y = [], torch.tensor([4, 2, 7])

    def model(xt, t, labels):
        asked.append(int(t[0]))
        assert labels is y and t.shape == (3,)
        return guess(xt, t, labels)

    steps, sample, _ = watched(name, model=model, num_steps=10, y=y)
    chosen = respace(COSINE, 10)[0].tolist()
    levels = repaint_levels(10, 3 if name == "repaint" else 1, 2)
    assert asked == [step.t for step in steps] == [chosen[n] for m, n in pairwise(levels) if n < m]
    assert steps[-1].x_prev.equal(sample) and not sample.requires_grad and torch.is_grad_enabled()
    if name != "repaint":
        assert all(one.x_prev.equal(other.xt) for one, other in pairwise(steps))
    assert sample.equal(watched(name, num_steps=10, y=y)[1]), "the same seed draws the same"


@every_sampler
def test_the_predicted_x0_is_clipped(name):
    steps, _, _ = watched(name, model=lambda xt, t, y: xt - 99, clip=0.5)
    known = LEFT.keep.expand(3, 1, 1, 2)
    for step in steps:
        assert (step.x0_hat[~known] == 0.5).all()
        assert name == "ddnm" or (step.x0_hat == 0.5).all()


def test_without_repetitions_repaint_is_replacing():
    assert watched("repaint", repeats=1, jump=5)[1].equal(watched("replacing")[1])


def test_the_ways_of_repaint_by_hand():
    assert repaint_levels(5, 2, 2) == [5, 4, 3, 4, 5, 4, 3, 2, 1, 2, 3, 2, 1, 0]
    assert repaint_levels(3, 3, 1) == [3, 2, 3, 2, 3, 2, 1, 2, 1, 2, 1, 0]
    assert repaint_levels(4, 1, 2) == [4, 3, 2, 1, 0]


@pytest.mark.parametrize("measurement", [LEFT, Brightness(torch.ones(1, 1, 2).bool())], ids=["mask", "brightness"])
def test_the_slope_of_the_error_goes_through_the_model(measurement):
    """-J^T A^T r / |r|, where J = G is the derivative of the best x0_hat, and r is what is missing."""
    x, seen = normal(4, 1, 1, 2), measurement.apply(normal(4, 1, 1, 2, seed=5))
    for k in (0, 10, 49):
        steps = torch.arange(50)
        _, x0_hat, slope = look_and_compare(best(COSINE), x, k, steps, COSINE, None, math.inf, measurement, seen)
        matrix = gain(k, COSINE)
        assert_close(
            x0_hat.flatten(1), MEAN + (x.flatten(1) - scales(k, COSINE)[0] * MEAN) @ matrix.T, rtol=1e-6, atol=1e-6
        )
        missing = seen - measurement.apply(x0_hat)
        lengths = missing.flatten(1).norm(dim=1, keepdim=True)
        expected = -(measurement.adjoint(missing).flatten(1) / lengths) @ matrix
        assert_close(slope.flatten(1), expected, rtol=1e-6, atol=1e-6)


def test_where_nothing_is_missing_the_slope_is_0():
    x = normal(2, 1, 1, 2)
    model = lambda xt, t, y: eps_from_x0(xt, t, 0 * xt + 0.5, COSINE)  # noqa: E731
    _, _, slope = look_and_compare(model, x, 10, torch.arange(50), COSINE, None, 1.0, LEFT, LEFT.apply(0 * x + 0.5))
    assert slope.isfinite().all()


@pytest.mark.parametrize("strength", [0.0, 0.7])
def test_dps_is_ddpm_and_a_step_down_the_slope(strength):
    steps, sample, seen = watched("dps", strength=strength)
    plain = sample_ddpm(guess, normal(3, 1, 1, 2, seed=1), COSINE, seeded())
    assert sample.equal(plain) == (strength == 0)
    for step in steps:
        index = torch.full((3,), step.t)
        mean, _ = posterior(step.x0_hat, step.xt, index, COSINE)
        _, _, slope = look_and_compare(guess, step.xt, step.t, torch.arange(50), COSINE, None, 1.0, LEFT, seen)
        assert_close(step.x_prev, mean + step.noise - strength * slope, **EXACT)


# Editing


def test_the_first_steps_of_a_chain_are_those_of_the_whole():
    part = first_steps(COSINE, 20)
    assert part.T == 21 and part.alpha_bar.equal(COSINE.alpha_bar[:21])


@pytest.mark.parametrize("num_steps", [None, 5])
def test_sdedit_adds_the_noise_of_a_step_and_walks_back_from_there(num_steps):
    x0, generator = normal(3, 1, 1, 2), seeded()
    noisy = add_noise(x0, torch.full((3,), 20), torch.randn(x0.shape, generator=generator), COSINE)
    expected = sample_ddpm(guess, noisy, first_steps(COSINE, 20), generator, num_steps)
    assert_close(sample_sdedit(guess, x0, COSINE, 20, seeded(), num_steps), expected, **EXACT)


def test_the_deeper_sdedit_goes_the_less_it_keeps():
    """Of a sketch far from the data; at the end it draws from the data."""
    sketch = torch.tensor([4.0, -4.0]).double().expand(2000, 1, 1, 2)
    ends = [sample_sdedit(best(COSINE), sketch, COSINE, t, seeded(), clip=math.inf).flatten(1) for t in (2, 20, 49)]
    far = [(end.mean(0) - MEAN).norm().item() for end in ends]
    assert far[0] > 4 and far[0] > far[1] + 1 and far[1] > far[2] and far[2] < 0.15


def test_a_picture_returns_with_its_own_label_and_the_better_the_more_steps():
    x0, y = 0.5 * normal(3, 1, 1, 2), torch.tensor([1, 2, 3])
    schedule = Schedule(cosine_beta(1000))
    model = best(schedule, shift=0.5)
    errors = [
        (change_kind(model, x0, schedule, y, y, 999, num_steps, math.inf) - x0).abs().max().item()
        for num_steps in (50, 200, 1000)
    ]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.02


def test_another_label_moves_the_picture_as_it_moves_the_mean_and_keeps_the_rest():
    """Where kinds differ in their mean only, all that is special about a picture stays."""
    x0, y = 0.5 * normal(3, 1, 1, 2), torch.tensor([1, 2, 3])
    schedule = Schedule(cosine_beta(1000))
    moved = change_kind(best(schedule, shift=0.5), x0, schedule, y, y.flip(0), 999, clip=math.inf)
    assert_close(moved, x0 + 0.5 * (y.flip(0) - y).reshape(-1, 1, 1, 1), rtol=0, atol=0.02)


# Importance weights


def test_weighted_draws_have_mean_and_covariance_of_the_exact_posterior():
    """For Gaussian data, a sum of two pixels and noise: C - C a a^T C / (a^T C a + s^2)."""
    n, noise, total = 20_000, 0.4, 0.7
    root = torch.linalg.cholesky(COVARIANCE)
    x = (MEAN + normal(n, 2) @ root.T).reshape(n, 1, 1, 2)
    measurement, a = Brightness(torch.ones(1, 1, 2).bool()), torch.tensor([0.5, 0.5]).double()
    weights = posterior_weights(x, measurement, torch.full((1, 1, 1), total).double(), noise)
    assert weights.shape == (1, n)
    pull = COVARIANCE @ a / (a @ COVARIANCE @ a + noise**2)
    mean, covariance = MEAN + pull * (total - a @ MEAN), COVARIANCE - torch.outer(pull, COVARIANCE @ a)
    found = weights[0] @ x.flatten(1)
    apart = x.flatten(1) - found
    number = effective_number(weights)[0]
    assert 1000 < number < n
    assert ((found - mean).abs() < 5 * (covariance.diag() / number).sqrt()).all()
    error = ((covariance.diag()[:, None] * covariance.diag() + covariance**2) / number).sqrt()
    assert (((weights[0, :, None] * apart).T @ apart - covariance).abs() < 5 * error).all()


def test_weights_of_three_pictures_are_bayes_rule():
    x = torch.tensor([0.0, 1.0, 3.0]).double().reshape(3, 1, 1, 1)
    everything = Mask(torch.ones(1, 1, dtype=torch.bool))
    seen = torch.tensor([1.0, 2.5]).double().reshape(2, 1, 1, 1)
    chances = torch.tensor([[math.exp(-((s - v) ** 2) / (2 * 0.5**2)) for v in (0.0, 1.0, 3.0)] for s in (1.0, 2.5)])
    expected = chances / chances.sum(dim=1, keepdim=True)
    assert_close(posterior_weights(x, everything, seen, 0.5).float(), expected, rtol=1e-5, atol=1e-7)
    assert_close(effective_number(torch.tensor([[0.25] * 4, [1.0, 0, 0, 0]])), torch.tensor([4.0, 1.0]), **EXACT)


# Bad input

X = torch.zeros(2, 1, 1, 2)
SEEN = torch.zeros(2, 1, 1, 2)
Y = torch.tensor([0, 1])
MESSAGES = {
    "seen is (2, 1, 2, 2); expected (2, 1, 1, 2), as measurement.apply makes it of (2, 1, 1, 2)": lambda sample: sample(
        guess, X, COSINE, LEFT, torch.zeros(2, 1, 2, 2)
    ),
    "seen is None; expected (2, 1, 1, 2)": lambda sample: sample(guess, X, COSINE, LEFT, None),
    "seen holds nan or infinity; expected numbers": lambda sample: sample(guess, X, COSINE, LEFT, SEEN / 0),
    "num_steps is 51; expected 1 to T = 50": lambda sample: sample(guess, X, COSINE, LEFT, SEEN, num_steps=51),
    "x is torch.float32 of shape (2, 1, 3, 2); expected floating-point, and 1 x 2": lambda sample: sample(
        guess, torch.zeros(2, 1, 3, 2), COSINE, LEFT, SEEN
    ),
}
OTHERS = {
    "repeats is 0; expected a whole number of at least 1": lambda: sample_repaint(
        guess, X, COSINE, LEFT, SEEN, repeats=0
    ),
    "jump is 50; expected 1 to 49: fewer than the 50 steps": lambda: sample_repaint(
        guess, X, COSINE, LEFT, SEEN, jump=50
    ),
    "num_steps is 1; expected at least 2": lambda: sample_repaint(guess, X, COSINE, LEFT, SEEN, num_steps=1),
    "strength is -1.0; expected 0": lambda: sample_dps(guess, X, COSINE, LEFT, SEEN, strength=-1.0),
    "strength is nan; expected 0": lambda: sample_dps(guess, X, COSINE, LEFT, SEEN, strength=math.nan),
    "depth is 50; expected a step from 0": lambda: sample_sdedit(guess, X, COSINE, 50),
    "depth is 0.5; expected a step from 0": lambda: change_kind(guess, X, COSINE, Y, Y, 0.5),
    "num_steps is 9; expected 1 to T = 6": lambda: sample_sdedit(guess, X, COSINE, 5, num_steps=9),
    "noise is 0; expected a standard deviation above 0": lambda: posterior_weights(X, LEFT, SEEN, 0),
    "x holds 0 pictures; expected at least one": lambda: posterior_weights(X[:0], LEFT, SEEN, 1.0),
    "seen is (2, 1, 1, 3); expected (2, 1, 1, 2)": lambda: posterior_weights(X, LEFT, torch.zeros(2, 1, 1, 3), 1.0),
}


@pytest.mark.parametrize("message", MESSAGES)
@every_sampler
def test_a_sampler_says_what_is_wrong_with_its_input(name, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        MESSAGES[message](SAMPLERS[name])


@pytest.mark.parametrize("message", OTHERS)
def test_bad_input_is_an_error_that_says_what_was_expected(message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        OTHERS[message]()
