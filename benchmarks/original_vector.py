"""The community's diffusion of 64 numbers as its author trained it, for comparison: networks, recipe and sampler.

Autoencoder: channel attention, 64 numbers, 264,161 parameters. U-Net: 32 to 128 channels, attention at its bottom,
1,683,201 parameters; it sees the 64 numbers as an image of 8x8. Recipe: T = 1000 linear betas, unsquared errors, AdamW
at 1e-3. Written anew from its description, with its faults.
"""

import math
import time
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from original_latent import Clock
from torch import Tensor, nn

from fmdiff_helpers.batching import in_batches
from fmdiff_helpers.diffusion import add_noise
from fmdiff_helpers.models.layers import sinusoids
from fmdiff_helpers.samplers import sample_ddpm
from fmdiff_helpers.schedules import Schedule, linear_beta

SHAPE, WIDTHS, EMB_DIM, HEADS, DROPOUT = (1, 8, 8), (32, 64, 128), 16, 4, 0.2
T, EPOCHS, BATCH_SIZE = 1000, 100, 256
AUTOENCODER_LR, LR = 1e-4, 1e-3


class OriginalAttentionBlock(nn.Module):
    """Add two convolutions of x (B, C, H, W), each channel weighed by what the picture has in all, to x."""

    def __init__(self, channels: int, reduction: int = 8):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // reduction, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels // reduction, channels, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape as x."""
        h = self.convs(x)
        return x + h * self.weigh(h)


class OriginalAutoencoder(nn.Module):
    """Encode images (B, 1, 28, 28) in [0, 1] to 64 numbers (B, 1, 8, 8) and decode those.

    As there: a linear layer makes them, so that their order in the 8x8 image means nothing.
    """

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            OriginalAttentionBlock(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 4, stride=2, padding=1),
            nn.Conv2d(16, 32, 3, padding=1),
            OriginalAttentionBlock(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 4, stride=2, padding=1),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 64),
            nn.Unflatten(1, SHAPE),
        )
        self.decoder = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 32 * 7 * 7),
            nn.Unflatten(1, (32, 7, 7)),
            nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),
            OriginalAttentionBlock(16),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, x0: Tensor) -> Tensor:
        """Return each image as it comes back from its 64 numbers."""
        return self.decoder(self.encoder(x0))


class OriginalResidualBlock(nn.Module):
    """Two convolutions on x (B, C, H, W), step and label in between, added to each channel."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.GroupNorm(8, in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.time = nn.Sequential(nn.Linear(EMB_DIM, out_channels), nn.SiLU())
        self.label = nn.Sequential(nn.Linear(EMB_DIM, out_channels), nn.SiLU())
        self.conv2 = nn.Sequential(
            nn.GroupNorm(8, out_channels),
            nn.SiLU(),
            nn.Dropout(DROPOUT),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """Return (B, out_channels, H, W); `time` and `label` are (B, EMB_DIM)."""
        h = self.conv1(x) + (self.time(time) + self.label(label))[:, :, None, None]
        return self.conv2(h) + self.shortcut(x)


class OriginalAttention(nn.Module):
    """Let all places of x (B, C, H, W) see each other: full attention with four heads, added to x."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        """Return a tensor of the same shape as x."""
        qkv = rearrange(self.qkv(self.norm(x)), "b (three h d) y x -> three b h (y x) d", three=3, h=HEADS)
        mixed = F.scaled_dot_product_attention(*qkv)
        return x + self.out(rearrange(mixed, "b h (y x) d -> b (h d) y x", y=x.shape[2]))


class OriginalVectorUNet(nn.Module):
    """Predict the noise in zt (B, 1, 8, 8) at step t (B,), given labels y (B,), in the same shape."""

    def __init__(self):
        super().__init__()
        # As there: step and label are told in no more than 16 numbers each.
        self.time = nn.Sequential(nn.Linear(EMB_DIM, EMB_DIM), nn.SiLU(), nn.Linear(EMB_DIM, EMB_DIM))
        self.label = nn.Sequential(
            nn.Embedding(10, EMB_DIM), nn.Linear(EMB_DIM, EMB_DIM), nn.SiLU(), nn.Linear(EMB_DIM, EMB_DIM)
        )
        block = OriginalResidualBlock
        self.first = nn.Conv2d(1, WIDTHS[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for outer, inner in pairwise(WIDTHS):
            halve = nn.Conv2d(outer, inner, 4, stride=2, padding=1)
            self.down.append(nn.ModuleList([block(outer, outer), block(outer, outer), halve]))
        # As there: attention between the 2x2 places that are left.
        self.middle = nn.ModuleList([block(128, 128), OriginalAttention(128), block(128, 128)])
        for inner, outer in pairwise(reversed(WIDTHS)):
            double = nn.ConvTranspose2d(inner, inner, 4, stride=2, padding=1)
            self.up.append(nn.ModuleList([double, block(inner + outer, outer), block(outer, outer)]))
        self.dropout = nn.Dropout(DROPOUT)
        self.last = block(2 * WIDTHS[0], WIDTHS[0])
        self.out = nn.Conv2d(WIDTHS[0], 1, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, a=0.2)
                nn.init.zeros_(module.bias)

    def forward(self, z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the predicted noise, shaped like z."""
        told = self.time(sinusoids(t, EMB_DIM)), self.label(y)
        first = h = self.first(z)
        skips = []
        for block1, block2, halve in self.down:
            h = block2(block1(h, *told), *told)
            skips.append(h)
            h = halve(h)
        h = self.dropout(h)
        for layer in self.middle:
            h = layer(h, *told)
        for double, block1, block2 in self.up:
            h = block2(block1(torch.cat([double(h), skips.pop()], dim=1), *told), *told)
        return self.out(self.last(torch.cat([self.dropout(h), first], dim=1), *told))


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean distance of two batches (B, ...).

    As there, for images and for noise: it is not squared. What is learned is a median, where drawing needs the mean.
    """
    return ((a - b).square().flatten(1).sum(dim=1) + 1e-8).sqrt().mean()


class Peer:
    """The diffusion of 64 numbers, its recipe and its sampler.

    Autoencoder: Adam at 1e-4, a third of the time. Denoiser: T = 1000 linear betas, AdamW at 1e-3 with weight decay
    5e-4, halved where the loss of 5 epochs brought nothing, gradients clipped to 1, dropout 0.2, no average of the
    weights. Batches of 256. Its 100 epochs are fitted into the time given. Drawing takes 20 evenly spaced steps,
    without a clip; the original takes all 1000, with beta for variance, which so few would make too large.
    """

    evaluations = 20

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images, labels
        self.schedule = Schedule(linear_beta(T))
        self.autoencoder, self.network = OriginalAutoencoder(), OriginalVectorUNet()
        counts = [sum(p.numel() for p in network.parameters()) for network in self.networks()]
        assert counts == [264_161, 1_683_201]  # as the original's

    def networks(self) -> list[nn.Module]:
        """Return the networks that are trained."""
        return [self.autoencoder, self.network]

    def train(self, seconds: float) -> int:
        """Train for so many processor seconds; return how many images the denoiser has seen."""
        start = time.process_time()
        self.train_autoencoder(Clock(seconds / 3))
        return self.train_denoiser(Clock(seconds - (time.process_time() - start)))

    def train_autoencoder(self, clock: Clock) -> None:
        """Train the autoencoder until the time has passed."""
        self.autoencoder.train()
        optimizer = torch.optim.Adam(self.autoencoder.parameters(), lr=AUTOENCODER_LR)
        for x0, _ in clock.batches(self.images, self.labels, BATCH_SIZE):
            optimizer.zero_grad()
            distance(self.autoencoder(x0), x0).backward()
            optimizer.step()

    def train_denoiser(self, clock: Clock) -> int:
        """Train the denoiser until the time has passed; return how many images it has seen."""
        self.autoencoder.eval()
        self.network.train()
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=LR, weight_decay=5e-4)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=5)
        seen, epoch, losses = 0, 0, []
        for x0, y in clock.batches(self.images, self.labels, BATCH_SIZE):
            with torch.no_grad():
                z0 = self.autoencoder.encoder(x0)  # as there: not standardised, tens of times as large as the noise
            t, eps = torch.randint(T, (len(z0),)), torch.randn_like(z0)
            optimizer.zero_grad()
            loss = distance(self.network(add_noise(z0, t, eps, self.schedule), t, y), eps)
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            optimizer.step()
            seen += len(z0)
            losses.append(loss.item())
            if int(clock.share() * EPOCHS) > epoch:
                epoch = int(clock.share() * EPOCHS)
                plateau.step(sum(losses) / len(losses))  # as there: by the loss in training, noisy as it is
                losses = []
        return seen

    @torch.no_grad()
    def draw(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return n images (n, 1, 28, 28) in [-1, 1] and their labels (n,), garment by garment in turn."""
        self.autoencoder.eval()
        self.network.eval()
        generator = torch.Generator().manual_seed(seed)
        z, y = torch.randn((n, *SHAPE), generator=generator), torch.arange(n) % 10

        def sample(z: Tensor, y: Tensor) -> Tensor:
            z0 = sample_ddpm(self.network, z, self.schedule, generator, self.evaluations, y, clip=math.inf)
            return 2 * self.autoencoder.decoder(z0) - 1

        return in_batches(sample, z, y, batch_size=250), y
