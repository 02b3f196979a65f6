"""The claims of fmdiff_helpers.samplers: where DDPM and DDIM end, what a step is, and what a seed changes.

Where data are Gaussian the best model is known, and with it the distribution that a chain of any length ends in. A
claim about random draws is tested at 5 standard errors, and the draws are always the same.
"""

import math
import re
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from fmdiff_helpers.diffusion import add_noise, eps_from_x0, posterior, velocity, x0_from_eps
from fmdiff_helpers.samplers import (
    chain_of,
    invert_ddim,
    noise_from_v,
    noise_predictor,
    respace,
    sample_ddim,
    sample_ddpm,
    slerp,
    trailing,
)
from fmdiff_helpers.schedules import Schedule, cosine_beta, rescaled_linear_beta

# Four steps far apart, and not in order, so that a step taken for its neighbour is seen at once.
UNEVEN = Schedule(torch.tensor([0.1, 0.4, 0.2, 0.6], dtype=torch.float64))
COSINE = Schedule(cosine_beta(50))
LINEAR = Schedule(rescaled_linear_beta(50))
SAMPLERS = {
    "ddpm": sample_ddpm,
    "ddim": sample_ddim,
    "ddim eta 0.5": partial(sample_ddim, eta=0.5),
    "ddim eta 1": partial(sample_ddim, eta=1.0),
}
RANDOM = ["ddpm", "ddim eta 0.5", "ddim eta 1"]
ETAS = {"ddpm": 1.0, "ddim": 0.0, "ddim eta 0.5": 0.5, "ddim eta 1": 1.0}  # DDPM adds as much noise as DDIM at eta = 1
DRAWS = 4000
CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64 round-off after 50 steps

every_sampler = pytest.mark.parametrize("name", SAMPLERS)
every_random_sampler = pytest.mark.parametrize("name", RANDOM)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def guess(xt, t, y):
    """A model that is wrong: no data have it as their best, but it depends on every pixel and on t."""
    return torch.tanh(xt + 0.1 * t.reshape(-1, *[1] * (xt.ndim - 1)))


def knows(x0, schedule):
    """Return the model that is never wrong, because it knows x0."""
    return lambda xt, t, y: eps_from_x0(xt, t, x0, schedule)


def walk(name, schedule, x, model=guess, **options):
    """Return the samples and all steps on the way."""
    steps = []
    options = {"generator": seeded(), "watch": steps.append} | options
    return SAMPLERS[name](model, x, schedule, **options), steps


def check_moments(x, mean, variance):
    """Compare each column of x with a normal distribution, at 5 standard errors of the mean and of the variance."""
    mean, variance = torch.as_tensor(mean, dtype=x.dtype), torch.as_tensor(variance, dtype=x.dtype)
    mean_error, variance_error = (variance / len(x)).sqrt(), variance * math.sqrt(2 / len(x))
    assert_close((x.mean(0) - mean) / mean_error, torch.zeros(x.shape[1:]).to(x), rtol=0, atol=5)
    assert_close((x.var(0) - variance) / variance_error, torch.zeros(x.shape[1:]).to(x), rtol=0, atol=5)


# Gaussian data: the best model is known

MEAN, STD = torch.tensor([0.5, -1.0, 0.2]).double(), torch.tensor([0.3, 1.5, 0.05]).double()  # three kinds of pixel


def best(schedule):
    """Return the best model for data N(MEAN, STD^2): E[eps | xt]."""

    def model(xt, t, y):
        a, b = schedule.signal_scale[t, None], schedule.noise_scale[t, None]
        return b * (xt - a * MEAN) / (a**2 * STD**2 + b**2)

    return model


def end_of_chain(schedule, num_steps, eta):
    """Return mean and standard deviation of what the best model makes of N(0, 1), step by step in closed form.

    d = xt - a MEAN, of variance a^2 STD^2 + b^2 = V were the chain exact, holds the noise b d / V and the signal
    a STD^2 d / V; a step of DDIM (Song et al. 2021, eq. 12) weights both anew and adds noise of variance sigma^2.
    """
    alpha_bar = [1.0] + [schedule.alpha_bar[t].item() for t in respace(schedule, num_steps)[0]]
    d, variance = -math.sqrt(alpha_bar[-1]) * MEAN, torch.ones(3).double()
    for k in range(len(alpha_bar) - 1, 0, -1):
        now, before = alpha_bar[k], alpha_bar[k - 1]
        sigma2 = eta**2 * (1 - before) / (1 - now) * (1 - now / before)
        noise, signal = math.sqrt(1 - now), math.sqrt(now) * STD**2
        factor = (math.sqrt(before) * signal + math.sqrt(1 - before - sigma2) * noise) / (now * STD**2 + 1 - now)
        d, variance = factor * d, factor**2 * variance + sigma2
    return MEAN + d, variance.sqrt()


def check_end(name, schedule, num_steps):
    mean, std = end_of_chain(schedule, num_steps, ETAS[name])
    x, options = normal(DRAWS, 3, seed=1), {"num_steps": num_steps, "clip": math.inf}
    check_moments(SAMPLERS[name](best(schedule), x, schedule, seeded(), **options), mean, std**2)


@every_sampler
@pytest.mark.parametrize(
    ("schedule", "num_steps"),
    [(Schedule(cosine_beta(200)), None), (LINEAR, None), (LINEAR, 10), (COSINE, 7), (COSINE, 1), (UNEVEN, None)],
    ids=["200 of 200", "linear 50 of 50", "linear 10 of 50", "cosine 7 of 50", "cosine 1 of 50", "uneven 4 of 4"],
)
def test_on_gaussian_data_a_chain_of_any_length_ends_as_computed_by_hand(name, schedule, num_steps):
    check_end(name, schedule, num_steps)


# Networks that predict x0 or v


def guess_x0(xt, t, y):
    """A model of x0, or of v, that depends on every pixel, on t and on the label."""
    return torch.tanh(xt - 0.01 * (t + 0 if y is None else t + y).reshape(-1, *[1] * (xt.ndim - 1)))


@pytest.mark.parametrize("schedule", [COSINE, LINEAR, UNEVEN], ids=["cosine", "linear", "uneven"])
def test_the_noise_of_a_network_that_predicts_x0_or_v_leads_back_to_that_x0_or_v(schedule):
    """(xt - a x0) / b, or b xt + a v, with the label or without."""
    t, y, xt = torch.arange(schedule.T), torch.arange(schedule.T) % 10, normal(schedule.T, 1, 4, 4)
    alpha_bar = (1 - schedule.beta).cumprod(0).reshape(-1, 1, 1, 1)
    for label in (None, y):
        said = guess_x0(xt, t, label)
        eps = noise_predictor(guess_x0, schedule)(xt, t, label)
        assert_close(x0_from_eps(xt, t, eps, schedule), said, **CLOSE)
        assert_close(eps, (xt - alpha_bar.sqrt() * said) / (1 - alpha_bar).sqrt(), **CLOSE)
        eps = noise_from_v(guess_x0, schedule)(xt, t, label)
        assert_close(velocity(x0_from_eps(xt, t, eps, schedule), t, eps, schedule), said, **CLOSE)
        assert_close(eps, (1 - alpha_bar).sqrt() * xt + alpha_bar.sqrt() * said, **CLOSE)
    for turn in (noise_predictor, noise_from_v):
        assert turn(guess_x0, schedule)(xt, t).equal(turn(guess_x0, schedule)(xt, t, None))


def test_where_nearly_nothing_but_noise_is_left_float32_still_leads_back():
    """At the noisiest step the signal scale is 2e-4, by which the rounding of the noise is divided."""
    schedule = Schedule(cosine_beta(200))
    xt, t = normal(500, 1, 4, 4).float(), torch.full((500,), 199)
    eps = noise_predictor(guess_x0, schedule)(xt, t)
    assert eps.dtype == torch.float32
    assert_close(x0_from_eps(xt, t, eps, schedule), guess_x0(xt, t, None), rtol=0, atol=2e-3)


def best_x0(schedule):
    """Return the best model of x0 for data N(MEAN, STD^2): E[x0 | xt]."""

    def model(xt, t, y):
        a, b = schedule.signal_scale[t, None], schedule.noise_scale[t, None]
        return MEAN + a * STD**2 * (xt - a * MEAN) / (a**2 * STD**2 + b**2)

    return model


def best_v(xt, t, y):
    """The best model of v: a E[eps | xt] - b E[x0 | xt]."""
    a, b = COSINE.signal_scale[t, None], COSINE.noise_scale[t, None]
    return a * best(COSINE)(xt, t, y) - b * best_x0(COSINE)(xt, t, y)


@every_sampler
@pytest.mark.parametrize("num_steps", [None, 7, 1])
def test_the_best_models_of_x0_and_of_v_draw_what_the_best_model_of_the_noise_draws(name, num_steps):
    x, options = normal(20, 3), {"num_steps": num_steps, "clip": math.inf}
    expected, _ = walk(name, COSINE, x, best(COSINE), **options)
    for model in (noise_predictor(best_x0(COSINE), COSINE), noise_from_v(best_v, COSINE)):
        samples, _ = walk(name, COSINE, x, model, **options)
        assert_close(samples, expected, **CLOSE)


# A model that is never wrong


@pytest.mark.parametrize("num_steps", [None, 2, 7, 49])
def test_ddim_with_a_model_that_knows_x0_keeps_the_noise_it_starts_from(num_steps):
    x0, eps = normal(3, 1, 4, 4).tanh(), normal(3, 1, 4, 4, seed=1)
    start = add_noise(x0, torch.full((3,), 49), eps, LINEAR)
    _, steps = walk("ddim", LINEAR, start, knows(x0, LINEAR), num_steps=num_steps)
    for step in steps:
        assert_close(step.xt, add_noise(x0, torch.full((3,), step.t), eps, LINEAR), **CLOSE)


# DDIM and DDPM


@pytest.mark.parametrize("num_steps", [None, 1, 2, 7, 30])
@pytest.mark.parametrize("clip", [1.0, math.inf])
@pytest.mark.parametrize("schedule", [COSINE, LINEAR], ids=["cosine", "linear"])
def test_ddim_at_eta_1_is_ddpm_given_the_same_noise(schedule, clip, num_steps):
    x = normal(3, 1, 4, 4)
    ddpm, steps = walk("ddpm", schedule, x, num_steps=num_steps, clip=clip)
    ddim, same = walk("ddim eta 1", schedule, x, num_steps=num_steps, clip=clip)
    assert_close(ddim, ddpm, **CLOSE)
    for one, other in zip(steps, same, strict=True):
        assert one.t == other.t
        for a, b in zip(one[1:], other[1:], strict=True):
            assert_close(a, b, **CLOSE)


def test_ddim_at_eta_0_adds_no_noise_and_its_noise_grows_in_proportion_to_eta():
    x = normal(2, 1, 4, 4)
    half, whole = (SAMPLERS["ddim"](guess, x, LINEAR, seeded(), eta=eta, clip=1e-3) for eta in (0.5, 1.0))
    assert not half.equal(whole)
    noises = [walk(name, LINEAR, x)[1][0].noise for name in ("ddim", "ddim eta 0.5", "ddim eta 1")]
    assert_close(noises[0], torch.zeros_like(x), rtol=0, atol=0)
    assert_close(noises[1], 0.5 * noises[2], **CLOSE)
    assert sample_ddim(guess, x, COSINE, seeded(1)).equal(sample_ddim(guess, x, COSINE)), "it needs no generator"


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_an_eta_outside_0_to_1_is_refused_by_value(eta):
    with pytest.raises(ValueError, match=f"^eta is {eta}; expected 0"):
        sample_ddim(guess, normal(1, 1, 4, 4), COSINE, eta=eta)


# DDIM backwards


@pytest.mark.parametrize("num_steps", [None, 1, 2, 7, 49])
@pytest.mark.parametrize("schedule", [COSINE, LINEAR], ids=["cosine", "linear"])
def test_with_a_model_that_always_says_the_same_noise_the_way_back_is_exact(schedule, num_steps):
    """It ends in the data with that much of that noise, and DDIM leads from there to the data again."""
    x0, eps = normal(3, 1, 4, 4), normal(1, 1, 4, 4, seed=1).expand(3, -1, -1, -1)
    x = invert_ddim(lambda xt, t, y: eps, x0, schedule, num_steps)
    assert_close(x, add_noise(x0, torch.full((3,), 49), eps, schedule), **CLOSE)
    back = sample_ddim(lambda xt, t, y: eps, x, schedule, num_steps=num_steps, clip=math.inf)
    assert_close(back, x0, rtol=0, atol=1e-9)


def test_two_steps_back_by_hand():
    """Noise as seen in x0 carries x0 to the first step, noise as seen there to the second."""
    x0, (first, last) = normal(3, 2), (0, 3)
    a, b = UNEVEN.signal_scale.tolist(), UNEVEN.noise_scale.tolist()
    x = a[first] * x0 + b[first] * guess(x0, torch.full((3,), first), None)
    eps = guess(x, torch.full((3,), first), None)
    x = a[last] * (x - b[first] * eps) / a[first] + b[last] * eps
    assert_close(invert_ddim(guess, x0, UNEVEN, 2), x, **CLOSE)
    one = a[last] * x0 + b[last] * guess(x0, torch.full((3,), last), None)
    assert_close(invert_ddim(guess, x0, UNEVEN, 1), one, **CLOSE)


@pytest.mark.parametrize("num_steps", [None, 5])
def test_the_way_back_tells_the_model_its_steps_from_the_least_noisy_and_the_labels(num_steps):
    told, y = [], torch.tensor([4, 2, 7])

    def model(xt, t, labels):
        told.append(t.tolist())
        assert labels is y and not torch.is_grad_enabled()
        return guess(xt, t, labels)

    x0 = normal(3, 1, 4, 4).float()
    kept = x0.clone()
    x = invert_ddim(model, x0, COSINE, num_steps, y)
    steps = respace(COSINE, num_steps)[0].tolist()
    assert told == [[t] * 3 for t in [steps[0], *steps[:-1]]]
    assert x0.equal(kept) and (x.shape, x.dtype) == (x0.shape, x0.dtype)
    assert torch.is_grad_enabled()


# From one noise to another


def turned(a, angle):
    """Return vectors as long as a (B, ...), turned by this angle in a random direction."""
    flat, aside = a.flatten(1), normal(*a.shape, seed=1).flatten(1)
    aside = aside - (aside * flat).sum(1, keepdim=True) / flat.square().sum(1, keepdim=True) * flat
    aside = aside * flat.norm(dim=1, keepdim=True) / aside.norm(dim=1, keepdim=True)
    return (math.cos(angle) * flat + math.sin(angle) * aside).reshape(a.shape)


every_shape_of_noise = pytest.mark.parametrize("shape", [(9, 2), (9, 196), (9, 4, 7, 7)])
SHARE = torch.linspace(0, 1, 9).double()


@every_shape_of_noise
def test_an_arc_leads_from_the_one_noise_to_the_other_each_entry_by_its_own_share(shape):
    """Also where one is longer, or both are the same; a quarter of a circle is cosine and sine."""
    a, b = normal(*shape), 3 * normal(*shape, seed=1)
    kept = a.clone(), b.clone()
    assert_close(slerp(a, b, torch.zeros(9).double()), a, **CLOSE)
    assert_close(slerp(a, b, torch.ones(9).double()), b, **CLOSE)
    assert_close(slerp(a.float(), a.float(), SHARE.float()), a.float(), rtol=0, atol=1e-3)
    together = slerp(a, b, SHARE.flip(0))
    for k in range(9):
        assert_close(together[k : k + 1], slerp(a[k : k + 1], b[k : k + 1], SHARE[8 - k : 9 - k]), **CLOSE)
    assert a.equal(kept[0]) and b.equal(kept[1])
    b, share = turned(a, math.pi / 2), SHARE.flip(0).reshape(-1, *[1] * (len(shape) - 1))
    expected = (share * math.pi / 2).cos() * a + (share * math.pi / 2).sin() * b
    assert_close(slerp(a, b, SHARE.flip(0)), expected, **CLOSE)


@every_shape_of_noise
@pytest.mark.parametrize("angle", [0.1, 1.0, 2.5])
def test_on_an_arc_the_length_stays_and_equal_shares_are_equal_angles(shape, angle):
    """Between two equally long vectors; the straight way is shorter everywhere but at its ends."""
    a = normal(1, *shape[1:]).expand(shape)
    b, length = turned(a[:1], angle).expand(shape), a[0].norm()
    arc, straight = slerp(a, b, SHARE).flatten(1), torch.lerp(a.flatten(1), b.flatten(1), SHARE[:, None])
    assert_close(arc.norm(dim=1), length.expand(9), **CLOSE)
    assert (straight.norm(dim=1)[1:-1] < arc.norm(dim=1)[1:-1]).all()
    chords = (arc[1:] - arc[:-1]).norm(dim=1)
    assert_close(2 * (chords / (2 * length)).arcsin(), torch.full((8,), angle / 8).double(), **CLOSE)


# Fewer steps


@pytest.mark.parametrize("T", [50, 200, 1000])
def test_chosen_steps_are_evenly_spread_and_include_both_ends(T):
    schedule = Schedule(cosine_beta(T))
    for num_steps in range(2, min(T, 60) + 1):
        steps, chain = respace(schedule, num_steps)
        assert steps.dtype == torch.int64
        assert len(steps) == chain.T == num_steps
        assert (steps[0], steps[-1]) == (0, T - 1)
        even = torch.arange(num_steps).double() * (T - 1) / (num_steps - 1)
        assert_close(steps.double(), even, rtol=0, atol=0.5)  # as even as whole numbers can be: rounded
        assert (steps.diff() > 0).all()


@pytest.mark.parametrize("schedule", [COSINE, LINEAR, UNEVEN], ids=["cosine", "linear", "uneven"])
def test_alpha_bar_stays_at_the_chosen_steps_and_one_step_is_the_noisiest(schedule):
    for num_steps in range(1, schedule.T + 1):
        steps, chain = respace(schedule, num_steps)
        assert_close(chain.alpha_bar, schedule.alpha_bar[steps], rtol=1e-9, atol=0)
    assert respace(schedule, 1)[0].tolist() == [schedule.T - 1]


@pytest.mark.parametrize("num_steps", [None, 50])
def test_all_steps_are_the_schedule_itself(num_steps):
    steps, chain = respace(COSINE, num_steps)
    assert steps.tolist() == list(range(50))
    for table in ("beta", "alpha", "alpha_bar", "alpha_bar_prev", "signal_scale", "noise_scale", "log_snr"):
        assert_close(getattr(chain, table), getattr(COSINE, table), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("num_steps", [0, -1, 51, 2.0, "10"])
def test_a_number_of_steps_that_the_schedule_does_not_have_is_refused_by_value(num_steps):
    found = re.escape(f"num_steps is {num_steps!r}; expected 1 to T = 50")
    for refuses in (respace, *(partial(sampler, guess, normal(1, 1, 4, 4)) for sampler in SAMPLERS.values())):
        with pytest.raises(ValueError, match=f"^{found}"):
            refuses(COSINE, num_steps=num_steps)


@every_sampler
@pytest.mark.parametrize("num_steps", [None, 5])
@pytest.mark.parametrize("y", [None, torch.tensor([4, 2, 7])])
def test_the_model_is_told_the_step_of_the_schedule_that_it_was_trained_on_and_the_labels(name, num_steps, y):
    told = []

    def model(xt, t, labels):
        assert labels is y and t.dtype == torch.int64
        told.append(t.tolist())
        return guess(xt, t, labels)

    walk(name, COSINE, normal(3, 1, 4, 4), model, num_steps=num_steps, y=y)
    assert told == [[t] * 3 for t in respace(COSINE, num_steps)[0].flip(0).tolist()]


# What a step is


@every_sampler
@pytest.mark.parametrize("num_steps", [None, 7])
def test_watched_steps_count_down_from_the_start_to_the_sample(name, num_steps):
    x = normal(3, 1, 4, 4)
    samples, steps = walk(name, COSINE, x, num_steps=num_steps)
    assert [step.t for step in steps] == respace(COSINE, num_steps)[0].flip(0).tolist()
    assert steps[0].xt.equal(x)
    assert steps[-1].x_prev.equal(samples)
    for step, following in pairwise(steps):
        assert following.xt.equal(step.x_prev)


@every_sampler
def test_a_step_is_a_draw_around_the_mean_that_its_clipped_x0_implies(name):
    """The mean of DDIM by hand from eq. 12, with eta in its sigma; that of DDPM is the posterior's."""
    _, steps = walk(name, LINEAR, normal(3, 1, 4, 4), num_steps=7)
    chosen, chain = respace(LINEAR, 7)
    for k, step in zip(reversed(range(7)), steps, strict=True):
        a, b = LINEAR.signal_scale[chosen[k]], LINEAR.noise_scale[chosen[k]]
        assert_close(step.eps_hat, guess(step.xt, torch.full((3,), step.t), None), rtol=0, atol=0)
        assert_close(step.x0_hat, ((step.xt - b * step.eps_hat) / a).clamp(-1, 1), **CLOSE)
        mean, _ = posterior(step.x0_hat, step.xt, torch.full((3,), k), chain)
        if name != "ddpm":
            before = LINEAR.alpha_bar[chosen[k - 1]] if k else torch.tensor(1.0).double()
            sigma = ETAS[name] * ((1 - before) / (1 - a**2) * (1 - a**2 / before)).sqrt()
            eps = (step.xt - a * step.x0_hat) / b
            mean = before.sqrt() * step.x0_hat + (1 - before - sigma**2).sqrt() * eps
        assert_close(step.x_prev, mean + step.noise, **CLOSE)


@every_random_sampler
def test_noise_is_drawn_anew_at_each_step_and_for_each_pixel(name):
    _, steps = walk(name, UNEVEN, normal(1, DRAWS, seed=1))
    drawn = torch.cat([step.noise for step in steps[:-1]] + [steps[0].xt])
    assert_close(torch.corrcoef(drawn), torch.eye(4).double(), rtol=0, atol=5 / math.sqrt(DRAWS))


@every_sampler
@pytest.mark.parametrize("num_steps", [None, 1, 7])
def test_no_noise_is_added_at_the_last_step_whose_x0_is_the_sample(name, num_steps):
    samples, steps = walk(name, COSINE, normal(3, 1, 4, 4), num_steps=num_steps)
    assert_close(steps[-1].noise, torch.zeros(3, 1, 4, 4).double(), rtol=0, atol=0)
    assert_close(samples, steps[-1].x0_hat, **CLOSE)


@every_sampler
def test_clip_keeps_the_predicted_x0_in_its_range_and_changes_the_samples(name):
    x, results = normal(3, 1, 4, 4), []
    for clip in (0.5, 1.0, 3.0, math.inf):
        samples, steps = walk(name, COSINE, x, clip=clip)
        assert max(step.x0_hat.abs().max() for step in steps) == min(clip, max(s.x0_hat.abs().max() for s in steps))
        assert samples.abs().max() <= clip
        results.append(samples)
    for i, one in enumerate(results):
        assert not any(torch.allclose(one, other, atol=0.01) for other in results[:i])
    default, _ = walk(name, COSINE, x)
    assert default.equal(results[1])  # 1, where pixels are


@every_sampler
@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (2, 4, 7, 7), (5, 2), (1, 1, 1, 1)])
def test_any_shape_of_image_works_and_the_start_is_left_alone(name, shape):
    for dtype in (torch.float32, torch.float64):
        x = normal(*shape).to(dtype)
        kept = x.clone()
        samples = SAMPLERS[name](guess, x, UNEVEN, seeded())
        assert (samples.shape, samples.dtype) == (shape, dtype)
        assert x.equal(kept)


# Randomness, labels, gradients


@every_sampler
def test_a_seed_decides_the_images_and_global_random_numbers_are_left_alone(name):
    x, before = normal(2, 1, 4, 4), torch.get_rng_state()
    one, same, other = (SAMPLERS[name](guess, x, UNEVEN, seeded(seed)) for seed in (3, 3, 4))
    assert one.equal(same) and torch.allclose(one, other, atol=0.01) is (name not in RANDOM)
    assert torch.get_rng_state().equal(before)


@every_sampler
def test_samples_carry_no_gradient(name):
    weight = torch.ones(1, requires_grad=True).double()
    samples, steps = walk(name, UNEVEN, normal(2, 1, 4, 4), lambda xt, t, y: weight * guess(xt, t, y))
    assert not samples.requires_grad
    assert not any(image.requires_grad for step in steps for image in step[1:])
    assert torch.is_grad_enabled()


@every_sampler
def test_progress_is_shown_only_if_asked_for(name, capsys):
    SAMPLERS[name](guess, normal(2, 1, 4, 4), UNEVEN, seeded())
    assert capsys.readouterr().err == ""
    SAMPLERS[name](guess, normal(2, 1, 4, 4), UNEVEN, seeded(), progress=True)
    assert "/4 [" in capsys.readouterr().err


@pytest.mark.parametrize("T", [50, 200, 1000])
def test_trailing_steps_end_the_equal_parts_of_all_steps(T):
    schedule = Schedule(cosine_beta(T))
    assert trailing(schedule, T).tolist() == list(range(T))
    for num_steps in range(1, min(T, 60) + 1):
        steps = trailing(schedule, num_steps)
        assert steps.dtype == torch.int64 and len(steps) == num_steps and steps[-1] == T - 1
        parts = torch.arange(1, num_steps + 1).double() * T / num_steps
        assert_close(steps.double() + 1, parts, rtol=0, atol=0.5)  # rounded
        assert (steps.diff() > 0).all() and (num_steps > T / 2 or steps[0] > 0)


@pytest.mark.parametrize("steps", [[], [-1, 3], [3, 3], [4, 3], [0, 50]])
def test_steps_that_make_no_chain_are_refused_by_value(steps):
    schedule = Schedule(cosine_beta(50))
    with pytest.raises(
        ValueError, match=re.escape(f"steps begin {steps}; expected some that rise, from 0 to T - 1 = 49")
    ):
        chain_of(schedule, torch.tensor(steps, dtype=torch.int64))


@pytest.mark.parametrize("num_steps", [0, 51])
def test_trailing_steps_are_at_least_one_and_at_most_all(num_steps):
    schedule = Schedule(cosine_beta(50))
    with pytest.raises(ValueError, match=r"steps begin .*; expected some that rise"):
        chain_of(schedule, trailing(schedule, num_steps))


@pytest.mark.parametrize("steps", [[0], [49], [3, 10, 30], list(range(50))])
def test_the_schedule_of_a_shorter_chain_has_alpha_bar_of_the_steps_that_it_visits(steps):
    chain = chain_of(COSINE, torch.tensor(steps))
    assert_close(chain.alpha_bar, COSINE.alpha_bar[steps], rtol=1e-9, atol=0)
    assert chain.T == len(steps)


def test_ddim_of_a_shorter_chain_is_ddim_at_its_steps():
    steps, x = respace(COSINE, 7)[0], normal(2, 1, 4, 4)
    by_hand = sample_ddim(lambda x, k, y: guess(x, steps[k], y), x, chain_of(COSINE, steps), clip=math.inf)
    assert_close(by_hand, sample_ddim(guess, x, COSINE, num_steps=7, clip=math.inf), **CLOSE)
