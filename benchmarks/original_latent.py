"""The community's latent diffusion model as its author trained it, for comparison: networks, recipe and sampler.

VAE: 32 numbers, 937,665 parameters. U-Net: 64 to 512 channels, full attention at every level, 28,888,864 parameters;
it sees the 32 numbers as a map of 16x16 places. Recipe: T = 50 cosine, a hybrid loss, AdamW at 5e-4, average of the
weights. Written anew from its description, with its faults.
"""

import math
import time
from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fmdiff_helpers.batching import in_batches
from fmdiff_helpers.data import batches
from fmdiff_helpers.diffusion import at
from fmdiff_helpers.models.layers import sinusoids
from fmdiff_helpers.models.vae import kl_divergence, reparameterize
from fmdiff_helpers.schedules import Schedule, cosine_beta

LATENT, GRID, EMB_DIM, HEADS = 32, 16, 256, 8
T, BATCH_SIZE, EMA_DECAY = 50, 256, 0.995
VAE_LR, LR, WARM_UP, FLOOR = 1e-4, 5e-4, 0.1, 0.1
# Channels: in and out on the way down; in, of the skip and out on the way up.
DOWN = ((64, 192), (192, 384), (384, 384))
UP = ((384, 384, 192), (192, 192, 64), (64, 64, 64))


class OriginalVAE(nn.Module):
    """Encode images (B, 1, 28, 28) in [0, 1] to 32 numbers, without places, and decode those."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 64, 4, stride=2, padding=1),
            nn.BatchNorm2d(64),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, 128, 4, stride=2, padding=1),
            nn.BatchNorm2d(128),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
        )
        self.mu, self.log_var = nn.Linear(128 * 7 * 7, LATENT), nn.Linear(128 * 7 * 7, LATENT)
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, 128 * 7 * 7),
            nn.Unflatten(1, (128, 7, 7)),
            nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1),
            nn.BatchNorm2d(64),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 1, 3, padding=1),
            nn.Sigmoid(),
        )

    def encode(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of each image's cloud, two tensors (B, 32)."""
        h = self.encoder(x0)
        return self.mu(h), self.log_var(h)

    def to_map(self, x0: Tensor) -> Tensor:
        """Return what the denoiser sees of each image, (B, 32, 16, 16).

        As there: every place of the map holds the same 32 numbers, so that their mean all but removes the noise. They
        are not standardised.
        """
        mu, _ = self.encode(x0)
        return mu.clamp(-5, 5)[:, :, None, None].expand(-1, -1, GRID, GRID)

    def from_map(self, z: Tensor) -> Tensor:
        """Return the images (B, 1, 28, 28) in [0, 1] of maps (B, 32, 16, 16), each averaged over its places."""
        return self.decoder(z.mean(dim=(2, 3)))


class OriginalDoubleConv(nn.Module):
    """Two 3x3 convolutions around a shortcut, each normalised over the whole map and dropped out."""

    def __init__(self, in_channels: int, out_channels: int, middle: int | None = None):
        super().__init__()
        middle = middle or out_channels
        self.net = nn.Sequential(
            nn.Conv2d(in_channels, middle, 3, padding=1, bias=False),
            nn.GroupNorm(1, middle),
            nn.GELU(),
            nn.Dropout2d(0.1),
            nn.Conv2d(middle, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(1, out_channels),
            nn.Dropout2d(0.1),
        )
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, H, W) of x (B, in_channels, H, W)."""
        return F.gelu(self.shortcut(x) + self.net(x))


class OriginalAttention(nn.Module):
    """Let all places of x (B, C, H, W) see each other: full attention with eight heads, added to x."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape as x."""
        qkv = rearrange(self.qkv(self.norm(x)), "b (three h d) y x -> three b h (y x) d", three=3, h=HEADS)
        mixed = F.scaled_dot_product_attention(*qkv)
        return x + self.out(rearrange(mixed, "b h (y x) d -> b (h d) y x", y=x.shape[2]))


class OriginalLevel(nn.Module):
    """Two double convolutions, what noise and label have to say added to each channel, and attention."""

    def __init__(self, first: OriginalDoubleConv, second: OriginalDoubleConv, channels: int):
        super().__init__()
        self.convs = nn.Sequential(first, second)
        self.emb = nn.Sequential(nn.SiLU(), nn.Linear(EMB_DIM, channels))
        self.attention = OriginalAttention(channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Return (B, channels, H, W) of x (B, in_channels, H, W) and emb (B, EMB_DIM)."""
        return self.attention(self.convs(x) + self.emb(emb)[:, :, None, None])


class OriginalLatentUNet(nn.Module):
    """Predict the noise in zt (B, 32, 16, 16) at its level of noise (B,), given labels y (B,), in the same shape."""

    def __init__(self):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(EMB_DIM, 2 * EMB_DIM), nn.SiLU(), nn.Linear(2 * EMB_DIM, EMB_DIM))
        self.label = nn.Embedding(10, EMB_DIM)
        self.first = nn.Sequential(OriginalDoubleConv(LATENT, 64), OriginalAttention(64))
        self.halve, self.widen = nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for outer, inner in DOWN:
            convs = OriginalDoubleConv(outer, outer), OriginalDoubleConv(outer, inner)
            self.down.append(OriginalLevel(*convs, inner))
        self.middle = nn.Sequential(
            OriginalDoubleConv(384, 512),
            OriginalDoubleConv(512, 512),
            OriginalDoubleConv(512, 384),
            OriginalAttention(384),
        )
        for inner, skip, outer in UP:
            both = inner + skip
            convs = OriginalDoubleConv(both, outer, both // 2), OriginalDoubleConv(outer, outer)
            self.up.append(OriginalLevel(*convs, outer))
        self.out = nn.Conv2d(64, LATENT, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, z: Tensor, level: Tensor, y: Tensor) -> Tensor:
        """Return the predicted noise, shaped like z."""
        # As there: waves made for steps up to 1,000 see levels from 0 to 1, and neighbours look alike.
        emb = self.time(sinusoids(level, EMB_DIM)) + self.label(y)
        skips = [self.first(z)]
        for down in self.down:
            skips.append(down(self.halve(skips[-1]), emb))  # 16, 8, 4 and 2
        h = self.middle(skips.pop())
        for up in self.up:
            h = up(torch.cat([skips.pop(), self.widen(h)], dim=1), emb)
        return self.out(h)


class Clock:
    """Tell which share of so many processor seconds, from now on, has passed."""

    def __init__(self, seconds: float):
        self.start, self.seconds = time.process_time(), seconds

    def share(self) -> float:
        """Return the share, 0 to 1; 1 is the end."""
        return min(1.0, (time.process_time() - self.start) / self.seconds)

    def batches(self, images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, 1, 28, 28) in [0, 1] and labels (B,), epoch after epoch, until the time has passed."""
        while True:
            for x0, y in batches(images, labels, size, torch.default_generator):
                if self.share() == 1:
                    return
                yield (x0 + 1) / 2, y


def vae_rate_of(share: float) -> float:
    """Return the VAE's learning rate after a share of its training: it falls at epochs 10 and 20 of 50."""
    return VAE_LR * (1.0 if share < 0.2 else 0.5 if share < 0.4 else 0.1)


def rate_of(share: float) -> float:
    """Return the denoiser's learning rate after a share of its training: a straight rise, then half a cosine."""
    if share < WARM_UP:
        return LR * share / WARM_UP
    return LR * max(FLOOR, (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))) / 2)


def level_of(t: Tensor) -> Tensor:
    """Return the level of noise that the network is told for steps t (B,), from 0 to nearly 1."""
    return 1 - (t / T * torch.pi / 2).cos()


def original_loss(eps_hat: Tensor, eps: Tensor, level: Tensor) -> Tensor:
    """Return the mix of squared error and angle between two noises (B, ...), weighted by the level of noise (B,).

    As there: noisy steps, which decide what is drawn, weigh as little as a tenth.
    """
    weight = 1 / (1 + 10 * level)
    squared = (eps_hat - eps).square().flatten(1).mean(dim=1)
    angle = 1 - F.cosine_similarity(eps_hat.flatten(1), eps.flatten(1))
    return (weight * (0.85 * squared + 0.15 * angle / squared.detach().clamp(min=1))).mean()


class Peer:
    """The latent diffusion model, its recipe and its sampler.

    VAE: squared error and KL divergence, Adam at 1e-4, a third of the time. Denoiser: T = 50 cosine, AdamW at 5e-4
    with weight decay 0.01, warm-up and cosine, dropout 0.1, an average of the weights that draws. Batches of 256,
    gradients clipped to 1. The 50 and 200 epochs of learning rates and KL weight are fitted into the time given.
    Drawing takes DDIM's way over 20 evenly spaced steps; the original takes 49.
    """

    evaluations = 20

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images, labels
        # As there: the last step, which keeps nothing, is said to keep 0.3 %. Its x0 is 316 times the error, clamped.
        self.alpha_bar = Schedule(cosine_beta(T)).alpha_bar.clamp(min=1e-5)
        self.vae, self.network, self.average = OriginalVAE(), OriginalLatentUNet(), OriginalLatentUNet()
        self.average.load_state_dict(self.network.state_dict())
        self.step = 0
        counts = [sum(p.numel() for p in network.parameters()) for network in self.networks()]
        assert counts == [937_665, 28_888_864]  # as the original's

    def networks(self) -> list[nn.Module]:
        """Return the networks that are trained."""
        return [self.vae, self.network]

    def train(self, seconds: float) -> int:
        """Train for so many processor seconds; return how many images the denoiser has seen."""
        start = time.process_time()
        self.train_vae(Clock(seconds / 3))
        return self.train_denoiser(Clock(seconds - (time.process_time() - start)))

    def train_vae(self, clock: Clock) -> None:
        """Train the VAE until the time has passed."""
        self.vae.train()
        optimizer = torch.optim.Adam(self.vae.parameters(), lr=VAE_LR)
        for x0, _ in clock.batches(self.images, self.labels, BATCH_SIZE):
            mu, log_var = self.vae.encode(x0)
            x_hat = self.vae.decoder(reparameterize(mu, log_var, torch.randn_like(mu)))
            share = clock.share()
            beta = 1e-4 + (1e-3 - 1e-4) * min(1.0, 2 * share)
            optimizer.param_groups[0]["lr"] = vae_rate_of(share)
            optimizer.zero_grad()
            (F.mse_loss(x_hat, x0) + beta * kl_divergence(mu, log_var).mean()).backward()
            nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
            optimizer.step()

    def train_denoiser(self, clock: Clock) -> int:
        """Train the denoiser until the time has passed; return how many images it has seen."""
        self.vae.eval()
        self.network.train()
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=LR, weight_decay=0.01, betas=(0.9, 0.99))
        odds, seen = torch.linspace(1, 0.1, T), 0  # as there: the noisy steps are drawn the least
        for x0, y in clock.batches(self.images, self.labels, BATCH_SIZE):
            with torch.no_grad():
                z0 = self.vae.to_map(x0)
            t, eps = odds.multinomial(len(z0), replacement=True), torch.randn_like(z0)
            zt = at(self.alpha_bar.sqrt(), t, z0) * z0 + at((1 - self.alpha_bar).sqrt(), t, z0) * eps
            optimizer.zero_grad()
            loss = original_loss(self.network(zt, level_of(t), y), eps, level_of(t))
            seen += len(z0)
            if not loss.isfinite():
                continue
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            optimizer.param_groups[0]["lr"] = rate_of(clock.share())
            optimizer.step()
            self.update_average()
        return seen

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the average of the weights towards the present ones."""
        # Not as there, where it decays alike from the first batch on: of a few batches it would know nothing.
        self.step += 1
        decay = min(EMA_DECAY, self.step / (9 + self.step))
        for average, weight in zip(self.average.parameters(), self.network.parameters(), strict=True):
            average.lerp_(weight, 1 - decay)

    @torch.no_grad()
    def draw(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return n images (n, 1, 28, 28) in [-1, 1] and their labels (n,), garment by garment in turn."""
        self.vae.eval()
        self.average.eval()
        z = torch.randn((n, LATENT, GRID, GRID), generator=torch.Generator().manual_seed(seed))
        y = torch.arange(n) % 10
        return in_batches(self.denoise, z, y, batch_size=250), y

    def denoise(self, z: Tensor, y: Tensor) -> Tensor:
        """Return images (B, 1, 28, 28) in [-1, 1] of noise z (B, 32, 16, 16) and labels y (B,)."""
        z = z.clamp(-4, 4)
        # As there: step 0 is where the way ends, never where the network is asked.
        steps = torch.linspace(T - 1, 0, self.evaluations + 1).round().long().tolist()
        for t, t_prev in pairwise(steps):
            now, prev = self.alpha_bar[t].item(), self.alpha_bar[t_prev].item()
            limit = 3 if t < 10 else 5  # as there: clamps in place of a latent of known scale
            eps_hat = self.average(z, level_of(torch.full((len(z),), t)), y).clamp(-limit, limit)
            z0_hat = ((z - math.sqrt(1 - now) * eps_hat) / math.sqrt(now)).clamp(-10, 10)
            z = (math.sqrt(prev) * z0_hat + math.sqrt(1 - prev) * eps_hat).clamp(-20, 20)
        return 2 * self.vae.from_map(z) - 1
