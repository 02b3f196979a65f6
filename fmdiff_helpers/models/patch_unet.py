"""A U-Net that changes size by folding patches into channels and back, without pooling or interpolation."""

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmdiff_helpers.models.layers import TimeEmbedding
from fmdiff_helpers.models.unet import Attention


class PatchConv(nn.Module):
    """Fold each patch of patch_size x patch_size pixels into channels, then mix the channels.

    This equals a convolution whose kernel size and stride are `patch_size`. If height or width is no multiple of it,
    zeros are added at the bottom and on the right. (The inverse of Shi et al. 2016, section 2.2) Built in lesson 06.
    """

    def __init__(self, in_channels: int, out_channels: int, patch_size: int = 2):
        super().__init__()
        self.patch_size = patch_size
        self.mix = nn.Conv2d(patch_size**2 * in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, H / patch_size, W / patch_size), rounded up, of x (B, in_channels, H, W)."""
        missing = [-size % self.patch_size for size in x.shape[2:]]
        x = F.pad(x, (0, missing[1], 0, missing[0]))
        return self.mix(F.pixel_unshuffle(x, self.patch_size))


class PatchExpand(nn.Module):
    """Mix the channels, then unfold them into patches: the opposite of `PatchConv`.

    (Shi et al. 2016, eq. 4) Built in lesson 06.
    """

    def __init__(self, in_channels: int, out_channels: int, patch_size: int = 2):
        super().__init__()
        self.patch_size = patch_size
        self.mix = nn.Conv2d(in_channels, patch_size**2 * out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, H * patch_size, W * patch_size) of x (B, in_channels, H, W)."""
        return F.pixel_shuffle(self.mix(x), self.patch_size)


def normalise(norm: str, channels: int) -> nn.Module:
    """Return a layer that normalises (B, C, H, W) over "group" or "batch"; ValueError for any other `norm`."""
    if norm not in ("group", "batch"):
        raise ValueError(f"norm is {norm!r}; expected 'group' or 'batch'")
    return nn.GroupNorm(8, channels) if norm == "group" else nn.BatchNorm2d(channels)


class DoubleConv(nn.Module):
    """Apply two 3x3 convolutions, each normalised, and add a shortcut. Built in lesson 06.

    Between them, `emb`, the embedding of step and label, scales and shifts each channel.
    (He et al. 2016, figure 2; Perez et al. 2018, eq. 1, for scale and shift)
    """

    def __init__(self, in_channels: int, out_channels: int, emb_dim: int, norm: str = "group", dropout: float = 0.0):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm1 = normalise(norm, out_channels)
        self.emb = nn.Linear(emb_dim, 2 * out_channels)
        self.dropout = nn.Dropout2d(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = normalise(norm, out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Return (B, out_channels, H, W) of x (B, in_channels, H, W) and emb (B, emb_dim)."""
        scale, shift = self.emb(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
        h = F.gelu(self.norm1(self.conv1(x)) * (1 + scale) + shift)
        h = self.norm2(self.conv2(self.dropout(h)))
        return F.gelu(h + self.shortcut(x))


class Down(nn.Module):
    """Fold patches to a smaller map, then apply a double convolution and attention."""

    def __init__(self, conv: DoubleConv, attention: bool):
        super().__init__()
        self.fold = PatchConv(conv.in_channels, conv.in_channels)
        self.conv = conv
        self.attention = Attention(conv.out_channels, linear=True) if attention else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Return (B, out_channels, H / 2, W / 2), rounded up, of x (B, in_channels, H, W)."""
        return self.attention(self.conv(self.fold(x), emb))


class Up(nn.Module):
    """Unfold patches to a larger map, join the skip, then apply a double convolution and attention."""

    def __init__(self, in_channels: int, conv: DoubleConv, attention: bool):
        super().__init__()
        self.unfold = PatchExpand(in_channels, conv.out_channels)
        self.conv = conv
        self.attention = Attention(conv.out_channels, linear=True) if attention else nn.Identity()

    def forward(self, x: Tensor, skip: Tensor, emb: Tensor) -> Tensor:
        """Return a map shaped like `skip` (B, out_channels, H, W) of x (B, in_channels, H / 2, W / 2)."""
        height, width = skip.shape[2:]  # cut off what `PatchConv` added at the bottom and on the right
        h = self.unfold(x)[:, :, :height, :width]
        return self.attention(self.conv(torch.cat([h, skip], dim=1), emb))


class PatchUNet(nn.Module):
    """Predict v, or the noise, of xt (B, channels, H, W) at step t (B,) with labels y (B,); the shape is that of xt.

    The levels have `width` times each of `mults` channels. The outermost level has one place for each patch of
    `patch_size` x `patch_size` pixels; H and W are multiples of `patch_size`. Label `num_classes` is the null label
    and means the same as None. `norm` is "group" or "batch". (Ronneberger et al. 2015; Ho et al. 2020, appendix B)
    """

    kind = "denoiser"

    def __init__(
        self,
        width: int = 48,
        mults: tuple[int, ...] = (1, 2),
        patch_size: int = 2,
        num_classes: int = 10,
        attention: bool = True,
        norm: str = "group",
        dropout: float = 0.0,
        channels: int = 1,
    ):
        super().__init__()
        self.num_classes, self.patch_size = num_classes, patch_size
        widths, emb_dim = [width * mult for mult in mults], 4 * width
        conv = partial(DoubleConv, emb_dim=emb_dim, norm=norm, dropout=dropout)
        self.time, self.label = TimeEmbedding(width), nn.Embedding(num_classes + 1, emb_dim)
        self.stem = PatchConv(channels, widths[0], patch_size)
        self.first = conv(widths[0], widths[0])
        self.down = nn.ModuleList(Down(conv(outer, inner), attention) for outer, inner in pairwise(widths))
        self.middle = conv(widths[-1], widths[-1])
        levels = reversed(list(pairwise(widths)))
        self.up = nn.ModuleList(Up(inner, conv(2 * outer, outer), attention) for outer, inner in levels)
        self.last = conv(2 * widths[0], widths[0])
        self.out = PatchExpand(widths[0], channels, patch_size)
        nn.init.zeros_(self.out.mix.weight)  # the untrained network predicts 0, the best guess without data
        nn.init.zeros_(self.out.mix.bias)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the prediction, shaped like x; ValueError if x does not divide into patches."""
        if x.shape[2] % self.patch_size or x.shape[3] % self.patch_size:
            raise ValueError(f"images are {tuple(x.shape)}; expected height and width that divide by {self.patch_size}")
        emb = self.time(t) + self.label(torch.full_like(t, self.num_classes, dtype=torch.int64) if y is None else y)
        stem = self.stem(x)
        skips = [self.first(stem, emb)]
        for down in self.down:
            skips.append(down(skips[-1], emb))
        h = self.middle(skips.pop(), emb)
        for up in self.up:
            h = up(h, skips.pop(), emb)
        return self.out(self.last(torch.cat([h, stem], dim=1), emb))
