"""The claims of fmdiff_helpers.models.ideal: the mean of what may have led to xt, and copies.

Brute force is a plain loop over all images.
"""

import math

import pytest
import torch
from network_checks import normal
from torch.testing import assert_close

from fmdiff_helpers.data import to_model, to_uint8
from fmdiff_helpers.diffusion import add_noise
from fmdiff_helpers.drawing import Drawer
from fmdiff_helpers.models.ideal import IdealDenoiser
from fmdiff_helpers.processes.diffusion import Diffusion
from fmdiff_helpers.samplers import noise_predictor, sample_ddim, sample_ddpm
from fmdiff_helpers.schedules import Schedule, cosine_beta
from fmdiff_helpers.standin import draw_garments

EXACT = {"rtol": 1e-9, "atol": 1e-9}  # float64
COSINE = Schedule(cosine_beta(50))
STEPS = torch.tensor([0, 3, 9, 17, 25, 33, 41, 49])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


def test_it_is_the_posterior_mean_over_all_images_of_each_at_its_own_step():
    """In between many images may have led to one that is noisy: no mean of theirs is one of them."""
    t = torch.cat([STEPS, STEPS.flip(0)[:4]])
    x = noisy(IMAGES, t)
    every = [chances(x[k], t[k]) for k in range(12)]
    assert_close(ideal()(x, t), torch.stack([mean_of(chance) for chance in every]), **EXACT)
    assert sum(0.15 < max(chance) < 0.9 for chance in every) >= 3


def test_far_from_all_images_the_nearest_one_is_the_answer_and_nothing_overflows():
    x = 1e6 * normal(8, 1, 2, 3)
    found = ideal()(x, STEPS)
    assert_close(found, torch.stack([mean_of(chances(x[k], t)) for k, t in enumerate(STEPS.tolist())]), **EXACT)


# Labels


def test_with_labels_only_images_of_that_kind_count():
    x, t, y = noisy(IMAGES[:8], STEPS), STEPS, torch.tensor([2, 1, 0, 0, 1, 2, 2, 0])
    found = ideal()(x, t, y)
    for k in range(8):
        of_kind = IMAGES[y[k] == LABELS]
        assert_close(found[k], mean_of(chances(x[k], t[k], of_kind), of_kind), **EXACT)
        assert_close(found[k : k + 1], ideal(of_kind)(x[k : k + 1], t[k : k + 1]), **EXACT)
    assert ((found - ideal()(x, t)).abs().amax(dim=(1, 2, 3)) > 1e-2).sum() >= 6


# The gradient


@pytest.mark.parametrize("y", [None, torch.tensor([2, 1, 0, 0, 1, 2, 2, 0])], ids=["all", "of a kind"])
def test_its_answer_points_up_the_gradient_of_the_density_of_xt(y):
    """A mixture of Gaussians, one around each image: the sum of N(xt; signal x_i, noise^2)."""
    x = noisy(IMAGES[:8], STEPS).requires_grad_()
    signal, noise = torch.tensor([scales(t) for t in STEPS.tolist()], dtype=torch.float64).T[:, :, None, None]
    around = torch.distributions.Normal(signal * IMAGES.flatten(1), noise)
    logs = around.log_prob(x.flatten(1)[:, None]).sum(dim=2)
    if y is not None:
        logs = logs.where(y[:, None] == LABELS, -torch.inf)
    (score,) = torch.autograd.grad(logs.logsumexp(dim=1).sum(), x)
    found = noise_predictor(ideal(), COSINE)(x.detach(), STEPS, y)
    assert_close(found, -noise[..., None] * score, **EXACT)


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
    process = Diffusion(COSINE, target="x0")
    samples = to_uint8(Drawer(process, process.predictor(ideal(to_model(images))), num_steps).draw(12))
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
