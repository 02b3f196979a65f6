"""The claims of fmdiff_helpers.models.ideal: the mean of what may have led to xt, which no denoiser beats, and copies.

Brute force is a plain loop over all images; where there are two of them, the weight of each is a sigmoid.
"""

import math

import pytest
import torch
from torch.testing import assert_close

from fmdiff_helpers.data import to_model, to_uint8
from fmdiff_helpers.diffusion import add_noise
from fmdiff_helpers.models.ideal import IdealDenoiser
from fmdiff_helpers.samplers import generate, noise_predictor, sample_ddim, sample_ddpm
from fmdiff_helpers.schedules import Schedule, cosine_beta
from fmdiff_helpers.standin import draw_garments

EXACT = {"rtol": 1e-9, "atol": 1e-9}  # float64
COSINE = Schedule(cosine_beta(50))
STEPS = torch.tensor([0, 3, 9, 17, 25, 33, 41, 49])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


# A dozen little pictures of three kinds: so few pixels that many of them may have led to a noisy one.
IMAGES = torch.rand((12, 1, 2, 3), generator=seeded(), dtype=torch.float64) * 2 - 1
LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 2, 2, 0, 1, 2, 0])


def ideal(images: torch.Tensor = IMAGES, labels: torch.Tensor | None = None, schedule: Schedule = COSINE):
    labels = (LABELS if images is IMAGES else torch.zeros(len(images)).long()) if labels is None else labels
    return IdealDenoiser(images, labels, schedule.signal_scale, schedule.noise_scale)


def scales(t: int, schedule: Schedule = COSINE) -> tuple[float, float]:
    alpha_bar = math.prod(1 - beta for beta in schedule.beta[: t + 1].tolist())
    return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)


def chances(x: torch.Tensor, t: int, images: torch.Tensor = IMAGES) -> list[float]:
    """Return how likely each of the images is to have led to x at step t: Bayes' rule, one image after the other."""
    signal, noise = scales(t)
    logs = []
    for image in images:
        apart = [a - signal * b for a, b in zip(x.flatten().tolist(), image.flatten().tolist(), strict=True)]
        logs.append(-sum(value**2 for value in apart) / (2 * noise**2))
    likelihoods = [math.exp(log - max(logs)) for log in logs]
    return [likelihood / sum(likelihoods) for likelihood in likelihoods]


def mean_of(chance: list[float], images: torch.Tensor = IMAGES) -> torch.Tensor:
    return sum(share * image for share, image in zip(chance, images, strict=True))


def noisy(images: torch.Tensor, t: torch.Tensor, schedule: Schedule = COSINE, seed: int = 1) -> torch.Tensor:
    return add_noise(images, t, normal(*images.shape, seed=seed).to(images), schedule)


def garments(n: int) -> torch.Tensor:
    return to_model(draw_garments(n)[0]).double()


# The mean of all images, each as likely as it led to xt


@pytest.mark.parametrize("t", STEPS.tolist())
def test_it_is_the_posterior_mean_over_all_images(t):
    x = noisy(IMAGES, torch.full((12,), t))
    expected = torch.stack([mean_of(chances(xt, t)) for xt in x])
    assert_close(ideal()(x, torch.full((12,), t)), expected, **EXACT)


def test_each_image_of_a_batch_has_a_step_of_its_own():
    """In between many images may have led to one that is noisy: no mean of theirs is one of them."""
    t = STEPS.flip(0)
    x = noisy(IMAGES[: len(t)], t)
    every = [chances(x[k], t[k]) for k in range(len(t))]
    found = ideal()(x, t)
    assert_close(found, torch.stack([mean_of(chance) for chance in every]), **EXACT)
    assert sum(0.15 < max(chance) < 0.9 for chance in every) >= 3
    order = torch.tensor([3, 0, 7, 5, 1, 2, 6, 4])
    assert_close(ideal()(x[order], t[order]), found[order], **EXACT)


def test_far_from_all_images_the_nearest_one_is_the_answer_and_nothing_overflows():
    x = 1e6 * normal(8, 1, 2, 3)
    found = ideal()(x, STEPS)
    assert_close(found, torch.stack([mean_of(chances(x[k], t)) for k, t in enumerate(STEPS.tolist())]), **EXACT)


@pytest.mark.parametrize("t", [5, 20, 40, 49])
def test_of_two_images_each_has_the_weight_that_a_sigmoid_gives(t):
    """Of 0.2 and -0.6 at 0.3; and half way between both, in the noise, both are as likely."""
    two, (signal, noise) = column(0.2, -0.6), scales(t)
    log_odds = ((0.3 + signal * 0.6) ** 2 - (0.3 - signal * 0.2) ** 2) / (2 * noise**2)
    weight = 1 / (1 + math.exp(-log_odds))
    x, expected = column(0.3, signal * (0.2 - 0.6) / 2), column(weight * 0.2 - (1 - weight) * 0.6, -0.2)
    assert_close(ideal(two)(x, torch.full((2,), t)), expected, **EXACT)


def test_an_image_that_is_there_twice_counts_twice():
    x = noisy(IMAGES[:8], STEPS)
    twice = ideal(torch.cat([IMAGES, IMAGES[:1]]))(x, STEPS)
    for k, t in enumerate(STEPS.tolist()):
        chance = chances(x[k], t)
        chance = [share / (1 + chance[0]) for share in [2 * chance[0], *chance[1:]]]
        assert_close(twice[k], mean_of(chance), **EXACT)


# Labels


def test_with_labels_only_images_of_that_kind_count():
    x, t, y = noisy(IMAGES[:8], STEPS), STEPS, torch.tensor([2, 1, 0, 0, 1, 2, 2, 0])
    found = ideal()(x, t, y)
    for k in range(8):
        of_kind = IMAGES[y[k] == LABELS]
        assert_close(found[k], mean_of(chances(x[k], t[k], of_kind), of_kind), **EXACT)
        assert_close(found[k : k + 1], ideal(of_kind)(x[k : k + 1], t[k : k + 1]), **EXACT)
    assert ((found - ideal()(x, t)).abs().amax(dim=(1, 2, 3)) > 1e-2).sum() >= 6


def test_where_all_images_are_of_one_kind_the_label_says_nothing():
    x, labels = noisy(IMAGES[:8], STEPS), torch.full((12,), 7)
    assert_close(ideal(labels=labels)(x, STEPS, torch.full((8,), 7)), ideal()(x, STEPS), **EXACT)


def test_of_a_kind_with_a_single_image_that_is_the_answer_however_noisy():
    labels = torch.tensor([*range(9), 0, 0, 0])
    y = torch.tensor([8, 7, 6, 5, 4, 3, 2, 1])
    assert_close(ideal(labels=labels)(10 * normal(8, 1, 2, 3), STEPS, y), IMAGES[y], **EXACT)


# From the least noise to the most


def test_at_the_least_noisy_step_a_training_image_comes_back_as_itself():
    images, schedule = garments(40), Schedule(cosine_beta(200))
    t = torch.zeros(40).long()
    x = noisy(images, t, schedule)
    assert_close(ideal(images, schedule=schedule)(x, t), images, **EXACT)
    assert ((x - images).abs().amax(dim=(1, 2, 3)) > 0.02).all()


def test_at_the_noisiest_step_it_is_the_mean_of_all_images_or_of_a_kind():
    """But for the last 0.005 % of signal."""
    images, schedule = garments(40), Schedule(cosine_beta(1000))
    x, t, labels = normal(5, 1, 28, 28), torch.full((5,), 999), torch.arange(40) % 4
    denoiser = ideal(images, labels, schedule)
    assert_close(denoiser(x, t), images.mean(dim=0).expand(5, 1, 28, 28), rtol=0, atol=2e-3)
    means = torch.stack([images[labels == kind].mean(dim=0) for kind in (3, 1, 0, 2, 3)])
    assert_close(denoiser(x, t, torch.tensor([3, 1, 0, 2, 3])), means, rtol=0, atol=2e-3)
    assert (means[0] - means[1]).abs().max() > 0.1


# The gradient, and the loss


@pytest.mark.parametrize("y", [None, torch.tensor([2, 1, 0, 0, 1, 2, 2, 0])], ids=["all", "of a kind"])
def test_its_answer_points_up_the_gradient_of_the_density_of_xt(y):
    """A mixture of Gaussians, one around each image: the sum of N(xt; signal x_i, noise^2)."""
    x = noisy(IMAGES[:8], STEPS).requires_grad_()
    signal, noise = (column(*each).reshape(8, 1, 1) for each in zip(*map(scales, STEPS.tolist()), strict=True))
    around = torch.distributions.Normal(signal * IMAGES.flatten(1), noise)
    logs = around.log_prob(x.flatten(1)[:, None]).sum(dim=2)
    if y is not None:
        logs = logs.where(y[:, None] == LABELS, -torch.inf)
    (score,) = torch.autograd.grad(logs.logsumexp(dim=1).sum(), x)
    signal, noise, x = signal[..., None], noise[..., None], x.detach()
    found = (signal * ideal()(x, STEPS, y) - x) / noise**2
    assert_close(found, score, **EXACT)
    assert_close(noise_predictor(ideal(), COSINE)(x, STEPS, y), -noise * score, **EXACT)


@pytest.mark.parametrize("t", [0, 17, 33, 49])
def test_any_other_answer_has_a_higher_expected_error_by_the_square_of_how_far_it_lies_away(t):
    """Over the exact posterior: each pixel a little up or down, and everything somewhere else."""
    x = noisy(IMAGES[:1], torch.tensor([t]))
    answer, chance = ideal()(x, torch.tensor([t]))[0], chances(x[0], t)

    def error(guess: torch.Tensor) -> float:
        return sum(p * (guess - image).square().sum().item() for p, image in zip(chance, IMAGES, strict=True))

    changes = [*(sign * 0.01 * torch.eye(6).double().reshape(6, 1, 2, 3) for sign in (1, -1)), normal(5, 1, 2, 3)]
    for change in torch.cat(changes):
        assert error(answer + change) > error(answer)
        assert error(answer + change) - error(answer) == pytest.approx(change.square().sum().item(), rel=1e-6)


@pytest.mark.parametrize(
    "other",
    [
        lambda answer, x: 0.9 * answer,
        lambda answer, x: answer + 0.1,
        lambda answer, x: IMAGES.mean(dim=0).expand_as(x),
        lambda answer, x: x.clamp(-1, 1),
        lambda answer, x: answer.sign(),
    ],
)
def test_no_denoiser_has_a_lower_training_loss(other):
    """What another one says costs as much more as it lies away: over draws, at 5 standard errors."""
    n = 20_000
    t = torch.randint(COSINE.T, (n,), generator=seeded())
    x0 = IMAGES[torch.randint(12, (n,), generator=seeded(1))]
    x = noisy(x0, t)
    answer = ideal()(x, t)
    losses, best = ((said - x0).square().flatten(1).sum(1) for said in (other(answer, x), answer))
    away = (other(answer, x) - answer).square().flatten(1).sum(1)
    more = losses - best
    assert more.mean() > 5 * more.std() / math.sqrt(n)
    assert abs((more - away).mean()) < 5 * (more - away).std() / math.sqrt(n)


# What it draws


@pytest.mark.parametrize("sampler", [sample_ddpm, sample_ddim])
@pytest.mark.parametrize("labelled", [False, True])
def test_what_is_drawn_with_it_are_exact_copies(sampler, labelled):
    """Of several images, and with labels of that kind."""
    images, labels, y = garments(8), torch.arange(8) % 2, torch.arange(12) % 2
    model = noise_predictor(ideal(images, labels), COSINE)
    samples = sampler(model, normal(12, 1, 28, 28), COSINE, seeded(), y=y if labelled else None)
    apart = (samples[:, None] - images).abs().amax(dim=(2, 3, 4))
    nearest = apart.argmin(dim=1)
    assert apart.amin(dim=1).max() < 1e-9 and len(nearest.unique()) > 2
    assert labels[nearest].equal(y) is labelled


@pytest.mark.parametrize("num_steps", [None, 10])
def test_in_float32_copies_are_the_same_images_to_the_last_grey_value(num_steps):
    images, _ = draw_garments(8)
    model = noise_predictor(ideal(to_model(images)), COSINE)
    samples = to_uint8(generate(model, COSINE, 12, num_steps=num_steps))
    assert all(any(sample.equal(image) for image in images) for sample in samples)


# Types and shapes


def test_float32_images_go_with_a_float64_schedule():
    images = garments(30)
    t = torch.tensor([0, 3, 9, 17, 25, 33, 41, 49])
    x, y = noisy(images[:8], t), torch.arange(8) % 3
    single, double = ideal(images.float(), torch.arange(30) % 3), ideal(images, torch.arange(30) % 3)
    for labels in (None, y):
        found = single(x.float(), t, labels)
        assert found.dtype == torch.float32
        assert_close(found, double(x, t, labels).float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 28, 28), (4, 7, 7), (5,)])
@pytest.mark.parametrize("B", [1, 3])
def test_the_answer_is_shaped_like_xt(shape, B):
    """Images, latents and points; also where there are as many images as in the batch, or a single one."""
    for n in {1, B, 6}:
        found = ideal(normal(n, *shape))(normal(B, *shape), torch.arange(B))
        assert found.shape == (B, *shape) and found.isfinite().all()
