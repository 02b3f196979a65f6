"""The community's U-Net of patch convolutions as its author trained it, for comparison: network, recipe and sampler.

Network: 64 to 512 channels, linear attention at every level, 25,268,033 parameters. Recipe: T = 100 linear betas, a
curriculum of steps, AdamW at 2e-4. Written anew from its description, with its faults.
"""

import math
import time

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fmdiff_helpers.batching import in_batches
from fmdiff_helpers.data import batches
from fmdiff_helpers.diffusion import add_noise
from fmdiff_helpers.models.patch_unet import PatchConv, PatchExpand
from fmdiff_helpers.samplers import sample_ddpm
from fmdiff_helpers.schedules import Schedule, linear_beta

EMB_DIM, HEADS = 256, 8
T, EPOCHS, BATCH_SIZE = 100, 150, 128
LR, WARM_UP = 2e-4, 0.1
# Channels: in and out on the way down; in, of the skip and out on the way up.
DOWN = ((64, 128), (128, 256), (256, 256))
UP = ((256, 256, 128), (128, 128, 64), (64, 64, 64))


class OriginalDoubleConv(nn.Module):
    """Two 3x3 convolutions, each normalised over the whole picture and dropped out; around a shortcut or not."""

    def __init__(self, in_channels: int, out_channels: int, middle: int | None = None, residual: bool = False):
        super().__init__()
        middle, self.residual = middle or out_channels, residual
        self.net = nn.Sequential(
            nn.Conv2d(in_channels, middle, 3, padding=1, bias=False),
            nn.GroupNorm(1, middle),
            nn.GELU(),
            nn.Dropout2d(0.1),
            nn.Conv2d(middle, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(1, out_channels),
            nn.Dropout2d(0.1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, H, W) of x (B, in_channels, H, W)."""
        return F.gelu(x + self.net(x) if self.residual else self.net(x))


class OriginalAttention(nn.Module):
    """Attention in O(n) with eight heads, three times as wide as its input."""

    def __init__(self, channels: int):
        super().__init__()
        self.q, self.k, self.v = (
            nn.Sequential(nn.GroupNorm(1, channels), nn.Conv2d(channels, 3 * channels, 1)) for _ in range(3)
        )
        self.out = nn.Conv2d(3 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape as x."""
        q, k, v = (rearrange(f(x), "b (h d) y x -> b h (y x) d", h=HEADS) for f in (self.q, self.k, self.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        # As there: the keys are divided by their sum over all places, the queries by nothing. What a place gathers is
        # some fifty times a mean.
        context = (k / k.sum(dim=-2, keepdim=True)).transpose(-1, -2) @ v
        # As there: without a shortcut, what is gathered replaces x.
        return self.out(rearrange(q @ context, "b h (y x) d -> b (h d) y x", y=x.shape[2]))


class OriginalLevel(nn.Module):
    """Two double convolutions, what step and label have to say added to each channel, and attention."""

    def __init__(self, in_channels: int, out_channels: int, middle: int):
        super().__init__()
        self.convs = nn.Sequential(
            OriginalDoubleConv(in_channels, in_channels, residual=True),
            OriginalDoubleConv(in_channels, out_channels, middle),
        )
        self.emb = nn.Sequential(nn.SiLU(), nn.Linear(EMB_DIM, out_channels))
        self.attention = OriginalAttention(out_channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Return (B, out_channels, H, W) of x (B, in_channels, H, W) and emb (B, EMB_DIM)."""
        return self.attention(self.convs(x) + self.emb(emb)[:, :, None, None])


class OriginalPatchUNet(nn.Module):
    """Predict the noise in xt (B, 1, 28, 28) at step t (B,), given labels y (B,), in the same shape."""

    def __init__(self):
        super().__init__()
        self.time = nn.Sequential(
            nn.Linear(1, EMB_DIM), nn.SiLU(), nn.Linear(EMB_DIM, EMB_DIM), nn.SiLU(), nn.Linear(EMB_DIM, EMB_DIM)
        )
        self.label = nn.Embedding(10, EMB_DIM)
        self.first = OriginalDoubleConv(1, 64)
        self.fold = nn.ModuleList(PatchConv(outer, outer) for outer, _ in DOWN)
        self.down = nn.ModuleList(OriginalLevel(outer, inner, inner) for outer, inner in DOWN)
        self.middle = nn.Sequential(
            OriginalDoubleConv(256, 512), OriginalDoubleConv(512, 512), OriginalDoubleConv(512, 256)
        )
        self.unfold = nn.ModuleList(PatchExpand(inner, inner) for inner, _, _ in UP)
        self.up = nn.ModuleList(OriginalLevel(i + skip, outer, (i + skip) // 2) for i, skip, outer in UP)
        self.out = nn.Sequential(OriginalDoubleConv(64, 64), nn.Conv2d(64, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the predicted noise, shaped like x."""
        emb = self.time(t[:, None] / T) + self.label(y)  # as there: the step is one number, no waves
        skips = [self.first(x)]
        for fold, level in zip(self.fold, self.down, strict=True):
            skips.append(level(fold(skips[-1]), emb))  # 28, 14, 7 and, padded, 4
        h = self.middle(skips.pop())
        for unfold, level in zip(self.unfold, self.up, strict=True):
            skip = skips.pop()
            # As there: the zeros went to the bottom and right of the 7x7 map, the crop takes from the top and left.
            # All that comes back from 4x4 is shifted by one place.
            h = unfold(h)[:, :, -skip.shape[2] :, -skip.shape[3] :]
            h = level(torch.cat([skip, h], dim=1), emb)
        return self.out(h)


def rate_of(share: float) -> float:
    """Return the learning rate after a share of the training: a straight rise, then half a cosine to 0."""
    if share < WARM_UP:
        return LR * share / WARM_UP
    return LR * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))) / 2


class Peer:
    """The U-Net of patch convolutions, its recipe and its sampler.

    T = 100 linear betas, no flips, squared error of the noise, AdamW at 2e-4 with weight decay 0.02, warm-up and
    cosine, gradients clipped to 1, dropout 0.1, no average of the weights. The 150 epochs of learning rate and
    curriculum are fitted into the time given. Drawing takes 20 evenly spaced steps; the original takes all 100.
    """

    evaluations = 20

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images, labels
        # As there: 60 % of the picture is left at the last step, but drawing starts from pure noise.
        self.schedule = Schedule(linear_beta(T))
        self.network = OriginalPatchUNet()
        assert sum(p.numel() for p in self.network.parameters()) == 25_268_033  # as the original's

    def networks(self) -> list[nn.Module]:
        """Return the networks that are trained."""
        return [self.network]

    def train(self, seconds: float) -> int:
        """Train for so many processor seconds; return how many images were seen."""
        self.network.train()
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=LR, weight_decay=0.02, betas=(0.9, 0.99))
        start, seen = time.process_time(), 0
        while True:
            for x0, y in batches(self.images, self.labels, BATCH_SIZE, torch.default_generator):
                share = (time.process_time() - start) / seconds
                if share >= 1:
                    return seen
                optimizer.param_groups[0]["lr"] = rate_of(share)
                # As there: the noisy steps come late, the last of them when the learning rate is nearly 0.
                reached = min(int(int(share * EPOCHS) / EPOCHS * T) + 10, T)
                t, eps = torch.randint(reached, (len(x0),)), torch.randn_like(x0)
                optimizer.zero_grad()
                F.mse_loss(self.network(add_noise(x0, t, eps, self.schedule), t, y), eps).backward()
                nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
                optimizer.step()
                seen += len(x0)

    @torch.no_grad()
    def draw(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return n images (n, 1, 28, 28) in [-1, 1] and their labels (n,), garment by garment in turn."""
        self.network.eval()
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn((n, 1, 28, 28), generator=generator), torch.arange(n) % 10

        def sample(x: Tensor, y: Tensor) -> Tensor:
            return sample_ddpm(self.network, x, self.schedule, generator, num_steps=self.evaluations, y=y)

        return in_batches(sample, x, y, batch_size=250).clamp(-1, 1), y
