"""The claims of fmdiff_helpers.models.vae: the loss is an ELBO, clouds are drawn as they say, the latent is a map."""

import math
import re

import network_checks
import pytest
import torch
from network_checks import CLOSE, EXACT, differ, normal, without_gradient
from torch.distributions import Normal
from torch.distributions import kl_divergence as exact_kl
from torch.testing import assert_close

from fmdiff_helpers.batching import in_batches
from fmdiff_helpers.cards import PUBLISHED, upgrade
from fmdiff_helpers.checkpoints import load_pretrained, save_weights
from fmdiff_helpers.data import load_fashion_mnist, to_model
from fmdiff_helpers.models.vae import VAE, active_units, kl_divergence, reparameterize, vae_loss
from fmdiff_helpers.processes.autoencoding import draw_gaussian
from fmdiff_helpers.standin import draw_garments

MU = torch.tensor([0.0, 1.5, -2.0, 0.3], dtype=torch.float64)
LOG_VAR = torch.tensor([0.0, -1.0, 1.2, -4.0], dtype=torch.float64)

every_grid = pytest.mark.parametrize("grid", [7, 1])


def made(**options) -> VAE:
    """Build a small network."""
    return network_checks.made(VAE, **{"width": 8} | options).requires_grad_(False)


def garments(n: int = 40) -> torch.Tensor:
    return to_model(draw_garments(n)[0])


# The KL divergence


@pytest.mark.parametrize("shape", [(5, 4, 7, 7), (5, 3, 1, 1), (5, 2), (1, 4)])
def test_the_kl_divergence_is_that_of_the_normal_distributions_summed_over_the_latent(shape):
    mu, log_var = 2 * normal(*shape), normal(*shape, seed=1)
    expected = exact_kl(Normal(mu, log_var.exp().sqrt()), Normal(0.0, 1.0)).reshape(shape[0], -1).sum(dim=1)
    assert_close(kl_divergence(mu, log_var), expected, **EXACT)


# Draws from a cloud


def test_the_noise_says_by_how_many_standard_deviations_a_draw_lies_beside_the_mean():
    for eps in (0.0, 1.0, -2.5):
        expected = [m + eps * math.exp(v / 2) for m, v in zip(MU.tolist(), LOG_VAR.tolist(), strict=True)]
        assert reparameterize(MU, LOG_VAR, torch.full_like(MU, eps)).tolist() == pytest.approx(expected, rel=1e-9)


def test_the_gradient_goes_through_the_draw_to_mean_and_log_variance():
    """d z / d mu is 1 and d z / d log_var half the standard deviation times the noise."""
    mu, log_var, eps = MU.clone().requires_grad_(), LOG_VAR.clone().requires_grad_(), normal(4)
    reparameterize(mu, log_var, eps).sum().backward()
    assert_close(mu.grad, torch.ones(4).double(), **EXACT)
    assert_close(log_var.grad, 0.5 * (LOG_VAR / 2).exp() * eps, **EXACT)


# The loss


@pytest.mark.parametrize("beta", [0.01, 0.5, 1.0, 4.0])
def test_the_loss_is_beta_times_the_negative_elbo_of_pixels_of_variance_beta_up_to_a_constant(beta):
    """The same constant for each image, whatever is in it: -beta times half the log of 2 pi beta, for each pixel."""
    x0, x_hat = normal(6, 1, 5, 4), normal(6, 1, 5, 4, seed=1)
    mu, log_var = normal(6, 2, 3, 3, seed=2), normal(6, 2, 3, 3, seed=3)
    log_likelihood = Normal(x_hat, torch.tensor(beta, dtype=torch.float64).sqrt()).log_prob(x0).flatten(1).sum(dim=1)
    kl = exact_kl(Normal(mu, (log_var / 2).exp()), Normal(0.0, 1.0)).flatten(1).sum(dim=1)
    loss, negative_elbo = vae_loss(x_hat, x0, mu, log_var, beta), -(log_likelihood - kl)
    assert_close(loss[1:] - loss[0], beta * (negative_elbo[1:] - negative_elbo[0]), rtol=1e-9, atol=1e-9)
    constant = -beta * 20 / 2 * math.log(2 * math.pi * beta)
    assert_close(loss - beta * negative_elbo, torch.full((6,), constant, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_the_loss_sums_over_the_pixels_and_the_latent_of_each_image():
    """784 pixels that are off by 0.5 are 98, half of 196; 196 numbers at 3 standard deviations are 882 nats."""
    x0, zero = torch.zeros(3, 1, 28, 28), torch.zeros(3, 4, 7, 7)
    x_hat, mu = x0.clone(), zero.clone()
    x_hat[0], x_hat[1], mu[1], mu[2] = 0.5, -0.5, 3.0, 3.0
    assert vae_loss(x_hat, x0, mu, zero, 0.01).tolist() == pytest.approx([98, 98 + 8.82, 8.82])
    assert vae_loss(x_hat, x0, mu, zero, 0.0).tolist() == pytest.approx([98, 98, 0])


# Active units


def test_units_whose_mean_differs_from_image_to_image_are_counted():
    """Sample variances, by hand: 0, 0.02, 1 / 3, 0.0024."""
    mu = torch.tensor([[5.0, 0.1, 0.0, 0.03], [5.0, -0.1, 0.0, 0.03], [5.0, 0.2, 0.0, -0.04], [5.0, 0.2, 0.0, 0.08]])
    mu[:, 2] = torch.tensor([-0.5, 0.5, -0.5, 0.5]) + 7
    assert mu.var(dim=0).tolist() == pytest.approx([0, 0.02, 1 / 3, 0.0024333], rel=1e-3)
    counts = {threshold: active_units(mu, threshold) for threshold in (0.5, 0.1, 0.018, 0.001)}
    assert counts == {0.5: 0, 0.1: 1, 0.018: 2, 0.001: 3}
    assert active_units(mu) == 2 and isinstance(active_units(mu), int)


def test_each_place_of_a_map_is_a_unit_and_places_that_differ_in_all_images_alike_are_none():
    mu = normal(1, 2, 3, 3).repeat(50, 1, 1, 1)
    assert active_units(mu) == 0
    mu[:, 1, 0, 2] += normal(50)
    mu[:, 0, 2, :] += normal(50, 3, seed=1)
    assert active_units(mu) == 4


# The network


@every_grid
@pytest.mark.parametrize(("width", "channels"), [(8, 4), (8, 1), (12, 6), (16, 32)])
def test_images_become_latents_and_latents_images_of_the_shapes_it_says(width, channels, grid):
    vae, x0 = made(width=width, channels=channels, grid=grid), garments(3)
    assert vae.latent_shape == (channels, grid, grid) and VAE().latent_shape == (4, 7, 7)
    mu, log_var = vae.encode(x0)
    assert mu.shape == log_var.shape == vae.to_latent(x0).shape == (3, channels, grid, grid)
    for decode in (vae.decode, vae.from_latent):
        assert decode(normal(5, channels, grid, grid).float()).shape == (5, 1, 28, 28)


@pytest.mark.parametrize("grid", [14, 0, 28, -7, "7"])
def test_another_grid_is_refused_by_value(grid):
    message = f"grid is {grid!r}; expected 7, for a map of 7 x 7 places, or 1, for a vector"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        VAE(grid=grid)


@every_grid
@pytest.mark.parametrize("sign", [1, -1])
def test_a_log_variance_beyond_20_is_cut_off_and_a_mean_is_not(grid, sign):
    vae, x0 = made(grid=grid), garments(2)
    before, _ = vae.encode(x0)
    vae.encoder[-1].bias += sign * 1000  # of the means, the first half, and of the log-variances
    mu, log_var = vae.encode(x0)
    assert log_var.unique().tolist() == [sign * 20]
    assert_close(mu, before + sign * 1000, rtol=0, atol=1e-3)
    assert kl_divergence(mu, log_var).isfinite().all()


@every_grid
def test_a_log_variance_within_20_is_what_the_encoder_says(grid):
    vae, x0 = made(grid=grid), garments(2)
    for mu_or_log_var, said in zip(vae.encode(x0), vae.encoder(x0).split(4, dim=1), strict=True):
        assert mu_or_log_var.equal(said) and differ(said, torch.zeros_like(said), by=0.01)


@every_grid
def test_the_network_encodes_draws_and_decodes(grid):
    vae, x0, eps = made(grid=grid), garments(3), normal(3, 4, grid, grid).float()
    x_hat, *cloud = vae(x0, eps)
    for found, expected in zip(cloud, vae.encode(x0), strict=True):
        assert found.equal(expected)
    assert x_hat.equal(vae.decode(reparameterize(*cloud, eps)))
    assert differ(x_hat, vae(x0, torch.zeros_like(eps))[0])
    assert vae(x0, torch.zeros_like(eps))[0].equal(vae.decode(cloud[0]))


@every_grid
def test_each_image_is_seen_on_its_own(grid):
    vae, x0, eps = made(grid=grid), garments(3), normal(3, 4, grid, grid).float()
    x0[1] = 20 * x0[1] + 3  # an image that would upset a normalisation over the batch
    together = vae(x0, eps)
    for i in range(3):
        for whole, alone in zip(together, vae(x0[i : i + 1], eps[i : i + 1]), strict=True):
            assert_close(whole[i : i + 1], alone, **CLOSE)


@every_grid
def test_every_parameter_gets_a_gradient(grid):
    """At the published width: where a normalisation has one channel for each group, the bias before it is idle."""
    vae = made(width=32, grid=grid).requires_grad_()
    x0, eps = garments(2), normal(2, 4, grid, grid).float()
    x_hat, mu, log_var = vae(x0, eps)
    vae_loss(x_hat, x0, mu, log_var, 0.01).sum().backward()
    assert without_gradient(vae) == []


# The latent is a map


@pytest.mark.parametrize("row", [0, 6])
@pytest.mark.parametrize("column", [0, 6])
def test_a_corner_of_the_map_is_that_corner_of_the_picture_both_ways(row, column):
    """Four pixels are one place. What changes in one corner changes the other around there: there is its centre."""
    vae, x0, noise = made(), garments(), 0.1 * normal(40, 4, 1, 1).float()

    def check_centre(moved: torch.Tensor) -> None:
        """Check where in (N, 7, 7) most has changed."""
        share, place = moved.mean(dim=0) / moved.mean(dim=0).sum(), torch.arange(7.0)
        centre = (share.sum(dim=1) * place).sum().item(), (share.sum(dim=0) * place).sum().item()
        assert abs(centre[0] - row) < 2.5 and abs(centre[1] - column) < 2.5

    changed = x0.clone()
    changed[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += noise[:, :1]
    mu, _ = vae.encode(x0)
    check_centre((vae.encode(changed)[0] - mu).square().sum(dim=1))
    z = mu.clone()
    z[:, :, row : row + 1, column : column + 1] += noise
    check_centre((vae.decode(z) - vae.decode(mu)).square().reshape(40, 7, 4, 7, 4).sum(dim=(2, 4)))


# Standardised latents


@every_grid
def test_latents_are_standardised_by_shift_and_scale_and_decoded_by_undoing_it(grid):
    vae, x0, z = made(grid=grid), garments(3), normal(3, 4, grid, grid).float()
    mu, _ = vae.encode(x0)
    assert vae.to_latent(x0).equal(mu) and vae.from_latent(z).equal(vae.decode(z))  # 0 and 1 until they are measured
    vae.shift.copy_(torch.tensor([0.5, -1.0, 0.0, 3.0]).reshape(4, 1, 1))
    vae.scale.copy_(torch.tensor([2.0, 0.5, 1.0, 0.25]).reshape(4, 1, 1))
    scaled = torch.stack([(mu[:, 0] - 0.5) / 2, (mu[:, 1] + 1) * 2, mu[:, 2], (mu[:, 3] - 3) * 4], dim=1)
    assert_close(vae.to_latent(x0), scaled, **CLOSE)
    undone = torch.stack([2 * z[:, 0] + 0.5, z[:, 1] / 2 - 1, z[:, 2], z[:, 3] / 4 + 3], dim=1)
    assert_close(vae.from_latent(undone), vae.decode(vae.scale * undone + vae.shift), **CLOSE)
    assert_close(vae.from_latent(z), vae.decode(undone), **CLOSE)


@every_grid
def test_shift_and_scale_lie_with_the_weights_and_are_not_trained(tmp_path, grid):
    arguments = {"width": 8, "channels": 3, "grid": grid}
    vae, path = made(**arguments), tmp_path / "weights.safetensors"
    vae.shift.copy_(normal(3, 1, 1))
    vae.scale.copy_(normal(3, 1, 1, seed=1).exp())
    save_weights(path, vae, upgrade({"network": "vae.VAE", "arguments": arguments, "beta": 1.0}))
    loaded = load_pretrained(tmp_path)
    assert loaded.shift.equal(vae.shift) and loaded.scale.equal(vae.scale)
    assert not {"shift", "scale"} & {name for name, _ in vae.named_parameters()}


@pytest.mark.skipif(
    not (PUBLISHED / "vae.safetensors").is_file(), reason="data/weights/vae.safetensors is not there: no VAE published"
)
def test_the_published_latents_of_unseen_images_are_standard_and_no_place_is_like_the_next(real_raw):
    vae, x0 = load_pretrained("vae"), to_model(load_fashion_mnist("test")[0][:2000])
    z = in_batches(vae.to_latent, x0)
    assert z.mean(dim=(0, 2, 3)).abs().max() < 0.1
    assert z.std(dim=(0, 2, 3)).min() > 0.9 and z.std(dim=(0, 2, 3)).max() < 1.1
    within = z.std(dim=(2, 3))  # (2000, channels)
    assert within.mean(dim=0).min() > 0.3, "no channel is the same everywhere"
    assert within.mean(dim=1).min() > 0.1, "no image is"


# A prior that is fitted to latents


def test_points_of_the_fitted_gaussian_have_the_mean_and_the_covariance_of_the_latents():
    z = normal(500, 3) @ torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.5, -1.0], [0.0, 0.0, 0.1]]).double() + 5
    points = draw_gaussian(z.reshape(500, 3, 1, 1), 200_000, torch.Generator().manual_seed(1))
    assert points.shape == (200_000, 3, 1, 1) and points.dtype == z.dtype
    assert_close(points.flatten(1).mean(dim=0), z.mean(dim=0), rtol=0, atol=0.02)
    assert_close(torch.cov(points.flatten(1).T), torch.cov(z.T), rtol=0, atol=0.05)


def test_a_number_that_is_the_same_for_all_latents_is_the_same_for_all_points():
    z = torch.cat([normal(50, 2), torch.full((50, 1), 3.0).double()], dim=1)
    points = draw_gaussian(z, 20, torch.Generator().manual_seed(0))
    assert_close(points[:, 2], torch.full((20,), 3.0).double(), rtol=0, atol=1e-6)
    again = draw_gaussian(z, 20, torch.Generator().manual_seed(0))
    assert points.equal(again) and differ(points, draw_gaussian(z, 20, torch.Generator().manual_seed(1)))
