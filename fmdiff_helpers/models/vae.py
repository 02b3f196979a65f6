"""A variational autoencoder: it encodes a picture to a normal distribution in a latent, and decodes any point."""

import math

import torch
from torch import Tensor, nn


def kl_divergence(mu: Tensor, log_var: Tensor) -> Tensor:
    """Return KL(N(mu, exp(log_var)) || N(0, I)) of each latent (B, ...), in nats, (B,).

    (Kingma & Welling 2014, appendix B) Built in lesson 04.
    """
    return 0.5 * (mu.square() + log_var.exp() - 1 - log_var).flatten(1).sum(dim=1)


def reparameterize(mu: Tensor, log_var: Tensor, eps: Tensor) -> Tensor:
    """Draw z ~ N(mu, exp(log_var)) with the noise `eps`. (Kingma & Welling 2014, section 2.4) Built in lesson 04."""
    return mu + (0.5 * log_var).exp() * eps


def vae_loss(x_hat: Tensor, x0: Tensor, mu: Tensor, log_var: Tensor, beta: float) -> Tensor:
    """Return half the squared error, summed over the pixels, plus `beta` times the KL divergence, for each image (B,).

    Up to a constant, this is beta times the negative ELBO of a decoder whose pixels have variance beta.
    (Kingma & Welling 2014, eq. 3; Higgins et al. 2017, eq. 4) Built in lesson 04.
    """
    squared_error = (x_hat - x0).square().flatten(1).sum(dim=1)
    return 0.5 * squared_error + beta * kl_divergence(mu, log_var)


def active_units(mu: Tensor, threshold: float = 0.01) -> int:
    """Count the numbers of the latent whose mean mu (N, ...) has a variance over the images above `threshold`.

    (Burda et al. 2016, section 5.2) Built in lesson 04.
    """
    return int((mu.var(dim=0) > threshold).sum())


class ResidualBlock(nn.Module):
    """Add two convolutions of x (B, C, H, W) to x. (He et al. 2016)"""

    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.GroupNorm(math.gcd(8, channels), channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(math.gcd(8, channels), channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape as x."""
        return x + self.net(x)


def encoder_layers(width: int, channels: int, grid: int) -> nn.Sequential:
    """Return the layers from pictures to means and log-variances, (B, 2 * channels, grid, grid). Built in lesson 04."""
    kernel, padding = (3, 1) if grid == 7 else (7, 0)  # a 7 x 7 kernel turns 7 x 7 places into one
    return nn.Sequential(
        nn.Conv2d(1, width, 4, stride=2, padding=1),
        ResidualBlock(width),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        ResidualBlock(2 * width),
        nn.GroupNorm(math.gcd(8, width), 2 * width),
        nn.SiLU(),
        nn.Conv2d(2 * width, 2 * channels, kernel, padding=padding),
    )


def decoder_layers(width: int, channels: int, grid: int) -> nn.Sequential:
    """Return the layers from latents (B, channels, grid, grid) to pictures. Built in lesson 04."""
    kernel, padding = (3, 1) if grid == 7 else (7, 0)
    return nn.Sequential(
        nn.ConvTranspose2d(channels, 2 * width, kernel, padding=padding),
        ResidualBlock(2 * width),
        ResidualBlock(2 * width),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(2 * width, width, 3, padding=1),
        ResidualBlock(width),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(width, width // 2, 3, padding=1),
        ResidualBlock(width // 2),
        nn.GroupNorm(math.gcd(8, width // 2), width // 2),
        nn.SiLU(),
        nn.Conv2d(width // 2, 1, 3, padding=1),
    )


class VAE(nn.Module):
    """Encode images (B, 1, 28, 28) to latents (B, channels, grid, grid) and decode them.

    `grid` is 7, for a map of the garment, or 1, for a vector; `width` is the number of channels at 14 x 14. `shift` and
    `scale` (channels, 1, 1) standardise latents; training measures them, and they are saved with the weights.
    Built in lesson 04.
    """

    kind = "autoencoder"

    def __init__(self, width: int = 32, channels: int = 4, grid: int = 7):
        super().__init__()
        if width < 2:
            raise ValueError(f"width is {width}; expected at least 2, or some layers would have no channels")
        if grid not in (1, 7):
            raise ValueError(f"grid is {grid!r}; expected 7, for a map of 7 x 7 places, or 1, for a vector")
        self.latent_shape = (channels, grid, grid)
        self.encoder = encoder_layers(width, channels, grid)
        self.decoder = decoder_layers(width, channels, grid)
        self.register_buffer("shift", torch.zeros(channels, 1, 1))
        self.register_buffer("scale", torch.ones(channels, 1, 1))

    def encode(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and log-variance of each image's latent, two tensors (B, channels, grid, grid)."""
        mu, log_var = self.encoder(x0).chunk(2, dim=1)
        return mu, log_var.clamp(-20, 20)

    def decode(self, z: Tensor) -> Tensor:
        """Return the images (B, 1, 28, 28) of latents on the scale of `encode`."""
        return self.decoder(z)

    def to_latent(self, x0: Tensor) -> Tensor:
        """Return the standardised latent of each image: its mean minus `shift`, divided by `scale`."""
        return (self.encode(x0)[0] - self.shift) / self.scale

    def from_latent(self, z: Tensor) -> Tensor:
        """Return the image of each standardised latent."""
        return self.decode(z * self.scale + self.shift)

    def forward(self, x0: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return x_hat, mu and log_var; `eps` (B, channels, grid, grid) is the noise that draws each latent."""
        mu, log_var = self.encode(x0)
        return self.decode(reparameterize(mu, log_var, eps)), mu, log_var
