"""The U-Net of "The Annotated Diffusion Model", corrected: every skip is used, every attention row sums to 1."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fmdiff_helpers.models.layers import TimeEmbedding, linear_attention
from fmdiff_helpers.schedules import Schedule, cosine_beta

SPAN = 100  # steps that count as one for the length of a jump: what a network says of jumps must change slowly with it


class ResNetBlock(nn.Module):
    """Add two convolutions of x (B, C, H, W) to x; in between, time scales and shifts each channel. Built in lesson 03.

    (He et al. 2016; Nichol & Dhariwal 2021, section 3, for scale and shift)
    """

    def __init__(self, in_channels: int, out_channels: int, time_dim: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(math.gcd(8, in_channels), in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_dim, 2 * out_channels)
        self.norm2 = nn.GroupNorm(math.gcd(8, out_channels), out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return (B, out_channels, H, W); `time` is (B, time_dim)."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time(F.silu(time))[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return h + self.shortcut(x)


class ConvNeXtBlock(nn.Module):
    """Apply a 7x7 depthwise convolution, add time, then apply two full convolutions, and add a shortcut.

    This follows the Annotated Diffusion Model; the paper has 1x1 convolutions instead of the full ones.
    (Liu et al. 2022, section 2)
    """

    def __init__(self, in_channels: int, out_channels: int, time_dim: int):
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 7, padding=3, groups=in_channels)
        self.time = nn.Linear(time_dim, in_channels)
        self.net = nn.Sequential(
            nn.GroupNorm(1, in_channels),
            nn.Conv2d(in_channels, 2 * out_channels, 3, padding=1),
            nn.GELU(),
            nn.GroupNorm(1, 2 * out_channels),
            nn.Conv2d(2 * out_channels, out_channels, 3, padding=1),
        )
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return (B, out_channels, H, W); `time` is (B, time_dim)."""
        h = self.depthwise(x) + self.time(F.gelu(time))[:, :, None, None]
        return self.net(h) + self.shortcut(x)


def number_of_heads(channels: int) -> int:
    """Return how many heads share the channels: one for each 32 of them, or fewer if these do not divide them."""
    return next(n for n in range(max(1, channels // 32), 0, -1) if channels % n == 0)


class Attention(nn.Module):
    """Let all places of x (B, C, H, W) see each other, by linear or full attention, and add the result to x.

    (Vaswani et al. 2017, section 3.2; Shen et al. 2021) Built in lesson 03.
    """

    def __init__(self, channels: int, linear: bool):
        super().__init__()
        self.attend = linear_attention if linear else F.scaled_dot_product_attention
        self.heads = number_of_heads(channels)
        self.norm = nn.GroupNorm(1, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape as x."""
        places = "b (three h d) y x -> three b h (y x) d"
        qkv = rearrange(self.qkv(self.norm(x)), places, three=3, h=self.heads)
        mixed = rearrange(self.attend(*qkv), "b h (y x) d -> b (h d) y x", y=x.shape[2])
        return x + self.out(mixed)


class Halve(nn.Conv2d):
    """Halve height and width of x (B, C, H, W), rounded up: an odd size first gets one row or column of zeros."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H / 2, W / 2)."""
        return super().forward(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)))


class Stage(nn.Module):
    """Apply a block, then attention: the unit that the U-Net repeats."""

    def __init__(self, block: type, in_channels: int, out_channels: int, time_dim: int, linear: bool):
        super().__init__()
        self.block = block(in_channels, out_channels, time_dim)
        self.attention = Attention(out_channels, linear)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return (B, out_channels, H, W)."""
        return self.attention(self.block(x, time))


class UNet(nn.Module):
    """Predict the noise in xt (B, channels, H, W) at step t (B,), or v, in the same shape. (Ho et al. 2020, appendix B)

    The levels have `width` times each of `mults` channels, from the outside in. First, each `patch` x `patch` pixels
    are folded into channels; H and W are multiples of `patch`. A level has `depth` stages on the way down and as many
    on the way up. `block` is "resnet" or "convnext". With num_classes above 0 the network takes labels y (B,);
    label `num_classes` is the null label and means the same as None.

    With T above 0 the network knows the scales of signal and noise of the cosine schedule of T steps, and its layers
    F need not find the noise alone: it returns noise_scale * xt + signal_scale * F. An error of F is then no longer
    divided by signal_scale in the predicted x0, where hardly any signal is left. (Salimans & Ho 2022, appendix D)

    With `spans` it predicts the mean velocity on the way from t to a second time r. (Geng et al. 2025)
    """

    kind = "denoiser"

    def __init__(
        self,
        width: int = 32,
        mults: tuple[int, ...] = (1, 2),
        patch: int = 2,
        depth: int = 1,
        block: str = "resnet",
        num_classes: int = 0,
        channels: int = 1,
        T: int = 0,
        spans: bool = False,
    ):
        super().__init__()
        blocks = {"resnet": ResNetBlock, "convnext": ConvNeXtBlock}
        if block not in blocks:
            raise ValueError(f"block is {block!r}; expected one of {', '.join(map(repr, blocks))}")
        block = blocks[block]
        widths, time_dim = [width * mult for mult in mults], 4 * width
        self.num_classes = num_classes
        self.patch = patch
        self.time = TimeEmbedding(width)
        self.span = TimeEmbedding(width) if spans else None
        self.label = nn.Embedding(num_classes + 1, time_dim) if num_classes else None
        self.stem = nn.Sequential(nn.PixelUnshuffle(patch), nn.Conv2d(patch**2 * channels, width, 3, padding=1))
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, (outer, inner) in enumerate(zip([width, *widths], widths, strict=False)):
            deepest = level == len(widths) - 1
            stage = partial(Stage, block, out_channels=inner, time_dim=time_dim, linear=not deepest)
            way_down = [stage(in_channels=inner if k else outer) for k in range(depth)]
            halve = nn.Identity() if deepest else Halve(inner)
            self.down.append(nn.ModuleList([*way_down, halve]))
            way_up = [stage(in_channels=2 * inner) for _ in range(depth)]
            double = [nn.Upsample(scale_factor=2), nn.Conv2d(inner, outer, 3, padding=1)] if level else []
            self.up.insert(0, nn.ModuleList([*way_up, nn.Sequential(*double)]))
        middle = Stage(block, inner, inner, time_dim, linear=False)
        self.middle = nn.ModuleList([middle, block(inner, inner, time_dim)])
        self.last = block(widths[0] + width, width, time_dim)
        self.out = nn.Sequential(
            nn.GroupNorm(math.gcd(8, width), width),
            nn.SiLU(),
            nn.Conv2d(width, patch**2 * channels, 3, padding=1),
            nn.PixelShuffle(patch),
        )
        nn.init.zeros_(self.out[2].weight)  # the untrained network predicts 0, the best guess without data
        nn.init.zeros_(self.out[2].bias)
        if self.span is not None:  # at first the network is one that does not know the second time
            nn.init.zeros_(self.span.mlp[2].weight)
            nn.init.zeros_(self.span.mlp[2].bias)
        scales = Schedule(cosine_beta(T)) if T else None
        for name in ("signal_scale", "noise_scale"):
            self.register_buffer(name, getattr(scales, name).float() if T else None, persistent=False)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, r: Tensor | None = None) -> Tensor:
        """Return the prediction, shaped like x; with `spans`, r (B,) is the time where the way ends, by default t."""
        time = self.embed(x, t, y)
        if self.span is not None:
            time = time + self.span(torch.zeros_like(t) if r is None else (t - r) / SPAN)
        h = stem = self.stem(x)
        skips = []
        for *stages, halve in self.down:
            for stage in stages:
                h = stage(h, time)
                skips.append(h)
            h = halve(h)
        for stage in self.middle:
            h = stage(h, time)
        for *stages, double in self.up:
            for stage in stages:
                skip = skips.pop()
                height, width = skip.shape[2:]  # an odd size is one too large after halving and doubling
                h = stage(torch.cat([h[:, :, :height, :width], skip], dim=1), time)
            h = double(h)
        found = self.out(self.last(torch.cat([h, stem], dim=1), time))
        if self.noise_scale is None:
            return found
        signal, noise = (scale[t].reshape(-1, 1, 1, 1) for scale in (self.signal_scale, self.noise_scale))
        return noise * x + signal * found

    def embed(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """Check the input and return the embedding for all blocks: the step and, with labels, the kind of garment."""
        if x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise ValueError(f"images are {tuple(x.shape)}; expected height and width that divide by {self.patch}")
        if y is not None and self.label is None:
            raise ValueError("y was given to a network without labels; build it with num_classes=10, or leave y out")
        if self.label is None:
            return self.time(t)
        return self.time(t) + self.label(torch.full_like(t, self.num_classes, dtype=torch.int64) if y is None else y)
