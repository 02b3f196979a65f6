"""An autoencoder that turns a picture into 64 numbers; its blocks use channel attention."""

import torch
from torch import Tensor, nn


class ChannelAttention(nn.Module):
    """Weigh each channel of x (B, C, H, W); the weights depend on the mean of each channel over the picture.

    (Hu et al. 2018, section 3) Built in lesson 07.
    """

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // reduction, 1),
            nn.ReLU(),
            nn.Conv2d(channels // reduction, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return x with each channel times its weight, a number between 0 and 1."""
        return x * self.weigh(x)


class AttentionBlock(nn.Module):
    """Add to x (B, C, H, W) two convolutions of x, with their channels weighed.

    (Zhang et al. 2018, section 3.3) Built in lesson 07.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )
        self.attention = ChannelAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape as x."""
        return x + self.attention(self.convs(x))


class AttentionAutoencoder(nn.Module):
    """Encode images (B, 1, 28, 28) to 64 numbers (B, 1, 8, 8) and decode them; `width` is the channels at 16 x 16.

    With `places` the numbers are a map: each belongs to 4 x 4 pixels and their surroundings. Without, each number can
    depend on the whole picture, and their order means nothing. `shift` and `scale` (1, 8, 8) standardise latents;
    training measures them, and they are saved with the weights.
    """

    kind = "autoencoder"
    latent_shape = (1, 8, 8)

    def __init__(self, width: int = 32, places: bool = False):
        super().__init__()
        if width < 8:
            raise ValueError(f"width is {width}; expected at least 8, or some layers would have no channels")
        self.places = places
        self.encoder = nn.Sequential(
            nn.ConstantPad2d(2, -1.0),  # 28 pixels can be halved to 14 and 7, and 32 to 16 and 8
            nn.Conv2d(1, width, 4, stride=2, padding=1),
            AttentionBlock(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            AttentionBlock(2 * width),
            nn.ReLU(),
            nn.Conv2d(2 * width, 1, 1) if places else nn.Conv2d(2 * width, 64, 8),
        )
        # Kernels as large as their stride write each pixel once, so there is no checkerboard pattern.
        self.decoder = nn.Sequential(
            nn.Conv2d(1, 2 * width, 1) if places else nn.ConvTranspose2d(64, 2 * width, 8),
            AttentionBlock(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 2, stride=2),
            AttentionBlock(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width // 2, 2, stride=2),
            AttentionBlock(width // 2),
            nn.ReLU(),
            nn.Conv2d(width // 2, 1, 3, padding=1),
            nn.ConstantPad2d(-2, 0.0),
        )
        self.register_buffer("shift", torch.zeros(self.latent_shape))
        self.register_buffer("scale", torch.ones(self.latent_shape))

    def encode(self, x0: Tensor) -> Tensor:
        """Return the latent of each image, (B, 1, 8, 8)."""
        return self.encoder(x0).reshape(-1, *self.latent_shape)

    def decode(self, z: Tensor) -> Tensor:
        """Return the images (B, 1, 28, 28) of latents from `encode`."""
        return self.decoder(z if self.places else z.reshape(-1, 64, 1, 1))

    def to_latent(self, x0: Tensor) -> Tensor:
        """Return the standardised latent of each image."""
        return (self.encode(x0) - self.shift) / self.scale

    def from_latent(self, z: Tensor) -> Tensor:
        """Return the image of each standardised latent."""
        return self.decode(z * self.scale + self.shift)

    def forward(self, x0: Tensor) -> Tensor:
        """Return x_hat, each image encoded to 64 numbers and decoded again."""
        return self.decode(self.encode(x0))
