"""Autoencoders: images to latents and back. One whose latents follow a known distribution can draw."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fmdiff_helpers.cards import latent_shape
from fmdiff_helpers.models.vae import active_units, kl_divergence, vae_loss


class AnnealedLoss(nn.Module):
    """The loss of a VAE whose beta rises evenly from 0 in the first `num_steps` steps.

    So the VAE learns first to reconstruct and then to order its latent.
    (Bowman et al. 2016, section 3.1) Built in lesson 04.
    """

    def __init__(self, beta: float, num_steps: int):
        super().__init__()
        self.beta, self.num_steps = beta, num_steps
        self.register_buffer("step", torch.tensor(0))

    def forward(self, model: Callable, x0: Tensor, y: Tensor, eps: Tensor) -> Tensor:
        """Return the loss of each image, (B,)."""
        beta = self.beta * (self.step / self.num_steps).clamp(max=1)
        self.step += 1
        x_hat, mu, log_var = model(x0, eps)
        return vae_loss(x_hat, x0, mu, log_var, beta)


def draw_gaussian(z: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw n points (n, ...) from the normal distribution with the mean and the covariance of the latents z (N, ...).

    A prior that is fitted after the training. (Ghosh et al. 2020, section 4) Built in lesson 04.
    """
    flat = z.flatten(1)
    variances, directions = torch.linalg.eigh(torch.cov(flat.T))
    spreads = variances.clamp(min=0).sqrt()  # rounding makes some of them negative
    eps = torch.randn((n, len(spreads)), generator=generator).to(z)
    return (flat.mean(0) + (spreads * eps) @ directions.T).reshape(n, *z.shape[1:])


def standardise(model: nn.Module, z: Tensor, dims: tuple[int, ...]) -> None:
    """Set an autoencoder's `shift` and `scale` to the mean and the spread over `dims` of latents z (N, ...).

    Validation measures them, so that all weights that are written hold them.
    """
    model.shift.copy_(z.mean(dim=dims).reshape(model.shift.shape))
    # At least 1e-6, because a number that is always the same would be divided by 0.
    model.scale.copy_(z.std(dim=dims).reshape(model.scale.shape).clamp(min=1e-6))


@dataclass(frozen=True)
class VariationalPrior:
    """Train a VAE with `kl_weight`, its beta, and draw by decoding noise from its prior N(0, I).

    `shape` is that of one latent.
    """

    kl_weight: float
    shape: tuple[int, ...]
    device: torch.device
    kind, max_steps = "autoencoder", 1

    @classmethod
    def from_card(cls, card: dict, device: torch.device | str = "cpu", *, kl_weight: float) -> "VariationalPrior":
        """Build it from kl_weight=0.01, for the latents of the card's network."""
        return cls(kl_weight, latent_shape(card), torch.device(device))

    def draw(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor]:
        """Draw eps, standard normal (B, *shape): it decides where in its cloud each image's latent lies."""
        return (torch.randn((len(x0), *self.shape), generator=generator, device=x0.device),)

    def training_loss(self, num_steps: int) -> nn.Module:
        """Return the loss to train with, whose beta rises in the first third of the steps."""
        return AnnealedLoss(self.kl_weight, max(1, num_steps // 3)).to(self.device)

    @torch.no_grad()
    def validate(self, model: nn.Module, x0: Tensor, y: Tensor | None = None) -> dict[str, float]:
        """Return the loss, the squared error of a pixel, the KL divergence of an image and the number of active units.

        It also measures `shift` and `scale` on these images, see `standardise`.
        """
        eps = torch.randn((len(x0), *self.shape), generator=torch.Generator().manual_seed(0)).to(x0.device)
        x_hat, mu, log_var = model(x0, eps)
        standardise(model, mu, dims=(0, 2, 3))
        return {
            "loss": vae_loss(x_hat, x0, mu, log_var, self.kl_weight).mean().item(),
            "squared_error": (x_hat - x0).square().mean().item(),
            "kl": kl_divergence(mu, log_var).mean().item(),
            "active_units": active_units(mu),
        }

    def predictor(self, network: nn.Module) -> Callable:
        """Return the decoder."""
        return network.decode

    def sample(self, model: Callable, x: Tensor, *_, **__) -> Tensor:
        """Decode noise x (B, *shape); one step, and no other options."""
        return model(x)


@dataclass(frozen=True)
class Reconstruction:
    """Train an autoencoder without noise: its output should equal its input. It cannot draw."""

    kind, max_steps = "autoencoder", 0

    @classmethod
    def from_card(cls, card: dict, device: torch.device | str = "cpu") -> "Reconstruction":
        """Build it; it has no arguments."""
        return cls()

    def draw(self, x0: Tensor, generator: torch.Generator) -> tuple:
        """Draw no random numbers."""
        return ()

    def training_loss(self, num_steps: int) -> Callable:
        """Return the squared error of each image, mean over pixels, (B,)."""
        return lambda model, x0, y: (model(x0) - x0).square().flatten(1).mean(dim=1)

    @torch.no_grad()
    def validate(self, model: nn.Module, x0: Tensor, y: Tensor | None = None) -> dict[str, float]:
        """Return the loss; it also measures `shift` and `scale` on these images, see `standardise`."""
        z = model.encode(x0)
        standardise(model, z, dims=(0,))
        return {"loss": (model.decode(z) - x0).square().mean().item()}
