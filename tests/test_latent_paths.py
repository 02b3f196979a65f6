"""The claims of fmdiff_helpers.latent_paths: chains with all their states, loops, and paths between two latents.

For Gaussian data the best model is known, and with it the path of DDIM: straight lines from noise to data.
"""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.data import to_model
from fmdiff_helpers.diffusion import eps_from_x0
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.latent_paths import (
    diffusion_path,
    draw_chain,
    encode,
    path_length,
    principal_axes,
    record_chain,
    there_and_back,
    way_there,
)
from fmdiff_helpers.samplers import invert_ddim, sample_ddim, slerp
from fmdiff_helpers.schedules import Schedule, cosine_beta
from fmdiff_helpers.standin import draw_garments

COSINE, LONG = Schedule(cosine_beta(50)), Schedule(cosine_beta(1000))
UNEVEN = Schedule(torch.tensor([0.1, 0.4, 0.2, 0.6], dtype=torch.float64))
CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64 round-off after 50 steps


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def two_points(schedule: Schedule):
    """Return the best model where each number is 1 or -1, and of the opposite sign for odd labels: E[eps | xt]."""

    def model(xt, t, y):
        a, b = (table[t].reshape(-1, *[1] * (xt.ndim - 1)) for table in (schedule.signal_scale, schedule.noise_scale))
        sign = 1 - 2 * (y % 2).reshape(a.shape)
        return eps_from_x0(xt, t, sign * (1.5 * a * xt / b**2).tanh(), schedule)

    return model


Y = torch.tensor([0, 1, 3])


# Chains as they were walked


@pytest.mark.parametrize("num_steps", [None, 7, 1])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_chain_is_recorded_from_the_noise_to_the_sample_that_ddim_draws_with_the_same_random_numbers(eta, num_steps):
    """Each state is the input of a step, and nothing is clipped."""
    x, steps, model = 3 * normal(3, 1, 4, 4), [], two_points(COSINE)
    path, times = record_chain(model, x, COSINE, seeded(), num_steps, Y, eta)
    options = {"num_steps": num_steps, "clip": math.inf, "eta": eta, "watch": steps.append}
    sample = sample_ddim(model, x, COSINE, seeded(), y=Y, **options)
    assert path.shape == ((num_steps or 50) + 1, 3, 1, 4, 4) and path[0].equal(x) and path[-1].equal(sample)
    assert all(state.equal(step.xt) for state, step in zip(path, steps, strict=False))
    assert times == [step.t for step in steps] and times[0] == 49 and (num_steps == 1 or times[-1] == 0)
    assert all(later < sooner for sooner, later in pairwise(times)) and len(times) == len(path) - 1
    again, _ = record_chain(model, x, COSINE, seeded(1), num_steps, Y, eta)
    assert again.equal(path) == (eta == 0 or num_steps == 1)
    grown, _ = record_chain(lambda xt, t, y: 0 * xt, x, COSINE, num_steps=num_steps)
    assert_close(grown[-1], x / COSINE.signal_scale[-1], **CLOSE)


def test_a_seed_and_labels_draw_a_chain_of_ddim_in_the_latent_of_an_autoencoder():
    model, before = two_points(LONG), torch.get_rng_state()
    process = SimpleNamespace(device=torch.device("cpu"), schedule=LONG)
    autoencoder = SimpleNamespace(latent_shape=(1, 3, 2))
    drawer = SimpleNamespace(process=process, autoencoder=autoencoder, model=model, num_steps=5, takes_labels=True)
    for seed in (4, 5, 0):
        path, times = draw_chain(drawer, Y, *([seed] if seed else []))
        x = torch.randn((3, 1, 3, 2), generator=seeded(seed))
        expected = record_chain(model, x, LONG, seeded(), 5, Y)
        assert path.equal(expected[0]) and times == expected[1] and path[0].equal(x)
    assert torch.get_rng_state().equal(before)


# There and back


@pytest.fixture(scope="module")
def loop() -> SimpleNamespace:
    """A chain of K = 10 steps of 50 that is not straight, and its loop."""
    path, times = record_chain(two_points(COSINE), normal(3, 1, 4, 4), COSINE, num_steps=10, y=Y)
    return SimpleNamespace(path=path, times=times, frames=there_and_back(path, times, COSINE), K=10)


def test_a_loop_begins_and_ends_with_the_sample_and_its_way_back_is_the_chain(loop):
    assert loop.frames.shape == (2 * loop.K + 1, 3, 1, 4, 4)
    assert loop.frames[0].equal(loop.path[-1]) and loop.frames[loop.K + 1 :].equal(loop.path[1:])


def test_on_its_way_to_noise_a_loop_mixes_the_sample_and_the_noise_that_the_chain_began_with(loop):
    """By the signal and the noise scales of the chain's steps; in the middle it is nearly that noise."""
    rising = sorted(loop.times)
    assert rising[0] == 0 and rising[-1] == 49
    for frame, t in zip(loop.frames[1 : loop.K + 1], rising, strict=True):
        alpha_bar = (1 - COSINE.beta)[: t + 1].prod()
        assert_close(frame, alpha_bar.sqrt() * loop.path[-1] + (1 - alpha_bar).sqrt() * loop.path[0], **CLOSE)
    signal = COSINE.signal_scale[-1].item()
    assert_close(loop.frames[loop.K], loop.path[0], rtol=0, atol=1.1 * signal)


def test_a_loop_is_no_mirror(loop):
    """The two states of each step differ, most in the middle of the chain."""
    apart = [(loop.frames[k] - loop.frames[2 * loop.K - k]).abs().max().item() for k in range(1, loop.K)]
    assert min(apart) > 1e-6 and max(apart) > 0.3


def test_a_way_there_needs_no_chain_and_takes_any_noise():
    """Between perpendicular ends of one length it is a quarter of a circle."""
    x0, eps = torch.eye(2).double().unsqueeze(1)
    way = way_there(x0, eps, list(range(999, -1, -1)), LONG)
    assert way.shape == (1001, 1, 2) and way[0].equal(x0)
    assert_close(way.norm(dim=2), torch.ones(1001, 1).double(), **CLOSE)
    assert_close(path_length(way), torch.tensor([math.pi / 2]).double(), rtol=0, atol=1e-2)


# Lengths


def test_a_straight_path_is_as_long_as_the_distance_of_its_ends_however_many_steps_it_has():
    a, b = normal(3, 2, 4), normal(3, 2, 4, seed=1)
    for num in (2, 11):
        way = torch.stack([torch.lerp(a, b, share) for share in torch.linspace(0, 1, num).double()])
        assert_close(path_length(way), (a - b).flatten(1).norm(dim=1), **CLOSE)


def test_the_steps_of_a_zigzag_are_summed_for_each_path():
    """3-4-5 triangles there and back, and one path that stays where it is."""
    zigzag = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[3.0, 4.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, 1.0]]])
    assert path_length(zigzag).tolist() == [10, 0]
    assert path_length(zigzag[:1]).tolist() == [0, 0]


# From one garment to another

MEAN, STD = torch.tensor([0.5, -1.0, 0.2]).double(), torch.tensor([0.3, 1.5, 0.5]).double()


def gaussian(xt, t, y):
    """The best model for data N(MEAN, STD^2), whatever the label: E[eps | xt]."""
    a, b = LONG.signal_scale[t, None], LONG.noise_scale[t, None]
    return b * (xt - a * MEAN) / (a**2 * STD**2 + b**2)


def test_on_gaussian_data_the_path_is_the_arc_from_noise_to_noise_and_twice_the_steps_halve_its_error():
    """DDIM leads from the noise z to STD z + MEAN, and an arc of noises to a path from end to end."""
    noises, share, errors = (normal(1, 3), normal(1, 3, seed=1)), torch.linspace(0, 1, 5).double(), []
    ends = [MEAN + STD * noise for noise in noises]
    expected = MEAN + STD * slerp(*(noise.expand(5, 3) for noise in noises), share)
    for num_steps in (50, 100, 200):
        found = [invert_ddim(gaussian, end, LONG, num_steps) for end in ends]
        way = diffusion_path(gaussian, LONG, found, torch.tensor([[3], [8]]), share, num_steps)
        errors.append((way - expected).norm(dim=1))
    assert_close(expected[[0, -1]], torch.cat(ends), **CLOSE)
    assert errors[-1].max() < 0.03
    for coarse, fine in pairwise(errors):
        assert_close(fine / coarse, torch.full((5,), 0.5).double(), rtol=0, atol=0.08)


def test_on_a_path_the_predictions_are_blended_by_share():
    """If the predicted noise depends on the label alone, all steps of DDIM are one: x = a z + b eps."""
    said, calls = {2: normal(1, 3, seed=2), 7: normal(1, 3, seed=3)}, []

    def model(xt, t, y):
        calls.append((t.unique().tolist(), y.tolist()))
        return said[y[0].item()].expand(xt.shape)

    noises, share = (normal(1, 3), normal(1, 3, seed=1)), torch.tensor([0.0, 0.3, 1.0]).double()
    way = diffusion_path(model, UNEVEN, noises, torch.tensor([[2], [7]]), share, 3)
    a, b = UNEVEN.signal_scale[-1], UNEVEN.noise_scale[-1]
    blended = said[2] + share[:, None] * (said[7] - said[2])
    assert_close(way, (slerp(*(noise.expand(3, 3) for noise in noises), share) - b * blended) / a, **CLOSE)
    assert calls == [([t], [kind] * 3) for t in (3, 2, 0) for kind in (2, 7)]


def test_many_pairs_are_walked_at_once_each_with_its_own_noises_labels_and_share():
    noises, share = (normal(3, 1, 2, 2), normal(3, 1, 2, 2, seed=1)), torch.tensor([0.2, 0.9, 0.5]).double()
    kinds, model = (Y, Y.flip(0)), two_points(COSINE)
    together = diffusion_path(model, COSINE, noises, kinds, share, 5)
    for k, each in enumerate(together):
        one = slice(k, k + 1)
        alone = diffusion_path(model, COSINE, [z[one] for z in noises], [y[one] for y in kinds], share[one], 5)
        assert_close(each[None], alone, **CLOSE)


# What is published

KINDS = torch.arange(10).repeat(10)


def test_a_published_chain_starts_as_noise_and_ends_as_garments_of_its_kinds():
    """Ten chains for each kind."""
    drawer, classifier = load_drawer("vector_denoiser", 20), load_pretrained("classifier")
    path, _ = draw_chain(drawer, KINDS, seed=1)
    start, end = path[0], path[-1]
    assert abs(start.mean()) < 0.05 and 0.95 < start.std() < 1.05
    noise, found = (classifier(drawer.decode(z)).argmax(1) == KINDS for z in (start, end))
    assert noise.sum() <= 25 and found.sum() >= 75


# Principal axes and latents


def test_the_principal_axes_of_a_cloud_are_those_in_which_it_was_stretched_most_the_longer_first():
    """Points in pairs about the middle, along four directions at right angles: their covariance is known exactly."""
    directions, middle = torch.linalg.qr(normal(4, 4)).Q, normal(4, seed=1)
    arms = torch.tensor([1.0, 3.0, 0.5, 2.0]).double()[:, None] * directions.T
    points = middle + torch.cat([arms, -arms])
    mean, axes = principal_axes(points.reshape(8, 1, 2, 2))
    assert_close(mean, middle, **CLOSE)
    assert axes.shape == (4, 2)
    assert_close(axes.T @ axes, torch.eye(2).double(), **CLOSE)
    assert_close((axes * directions[:, [1, 3]]).sum(dim=0).abs(), torch.ones(2).double(), **CLOSE)
    three = principal_axes(points, 3)[1]  # more of them begin with the same two
    assert three.shape == (4, 3) and three[:, :2].equal(axes)
    assert_close((three[:, 2] * directions[:, 0]).sum().abs(), torch.tensor(1.0).double(), **CLOSE)


def test_images_are_encoded_in_order_without_gradients():
    """More images than one batch has, by a network that has just been trained."""
    scale = nn.Parameter(torch.tensor(2.0))
    autoencoder = SimpleNamespace(to_latent=lambda x0: scale * x0[:, :, 10:18, 10:18])
    images, _ = draw_garments(230)
    z = encode(autoencoder, images)
    assert z.equal((2 * to_model(images)[:, :, 10:18, 10:18]).flatten(1)) and not z.requires_grad
