"""A transformer that reads a noisy picture as a sequence of patches and predicts the clean picture."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fmdiff_helpers.models.layers import TimeEmbedding, linear_attention, sinusoids

ATTENTION = {"linear": linear_attention, "softmax": F.scaled_dot_product_attention}


def patchify(x: Tensor, patch: int) -> Tensor:
    """Cut images x (B, 1, S, S) into n = (S / patch)^2 patches, row by row, shape (B, n, patch^2).

    (Dosovitskiy et al. 2021, section 3.1) Built in lesson 02.
    """
    return rearrange(x, "b 1 (r p) (c q) -> b (r c) (p q)", p=patch, q=patch)


def unpatchify(tokens: Tensor, patch: int) -> Tensor:
    """Join patches (B, n, patch^2) into square images (B, 1, S, S), as they were before. Built in lesson 02."""
    rows = math.isqrt(tokens.shape[1])
    return rearrange(tokens, "b (r c) (p q) -> b 1 (r p) (c q)", r=rows, p=patch, q=patch)


def attention_matrix(q: Tensor, k: Tensor, attention: str) -> Tensor:
    """Return the weights (B, heads, n, n) that `attention` gives to the values.

    Row i says how much token i takes from each token; no weight is negative, and each row sums to 1. "softmax" is
    Vaswani et al. 2017, eq. 1, and "linear" is Shen et al. 2021, eq. 6. For plots and tests only: the network never
    computes this matrix.
    """
    if attention == "linear":
        return q.softmax(dim=-1) @ k.softmax(dim=-2).transpose(-1, -2)
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)


class PatchEmbedding(nn.Module):
    """Turn images (B, 1, S, S) into tokens (B, n, dim) and add to each a code of its place in the picture.

    `position` is "learned" or "sinusoidal": half of the numbers encode the row, half the column.
    (Dosovitskiy et al. 2021, section 3.1; Vaswani et al. 2017, section 3.5)
    """

    def __init__(self, image_size: int, patch: int, dim: int, position: str):
        super().__init__()
        if position not in ("learned", "sinusoidal"):
            raise ValueError(f"position is {position!r}; expected 'learned' or 'sinusoidal'")
        self.patch, rows = patch, image_size // patch
        self.project = nn.Linear(patch**2, dim)
        if position == "learned":
            self.position = nn.Parameter(0.02 * torch.randn(rows**2, dim))
        else:
            place = torch.arange(rows**2)
            code = torch.cat([sinusoids(place // rows, dim // 2), sinusoids(place % rows, dim // 2)], dim=1)
            self.register_buffer("position", code, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens (B, n, dim)."""
        return self.project(patchify(x, self.patch)) + self.position


class SelfAttention(nn.Module):
    """Let each token of h (B, n, dim) read all tokens; `attention` is "linear" or "softmax". Built in lesson 02."""

    def __init__(self, dim: int, heads: int, attention: str):
        super().__init__()
        self.heads, self.attend = heads, ATTENTION[attention]
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def split(self, h: Tensor) -> Tensor:
        """Return queries, keys and values in one tensor (3, B, heads, n, dim / heads)."""
        return rearrange(self.qkv(h), "b n (three h d) -> three b h n d", three=3, h=self.heads)

    def forward(self, h: Tensor) -> Tensor:
        """Return what each token has read, (B, n, dim)."""
        return self.out(rearrange(self.attend(*self.split(h)), "b h n d -> b n (h d)"))


class TransformerBlock(nn.Module):
    """Apply self-attention, then two layers to each token alone; both depend on step and label. Built in lesson 02.

    Each half normalises its input first, and its result is added through a gate that starts at 0.
    (Peebles & Xie 2023, section 3.2)
    """

    def __init__(self, dim: int, heads: int, ff_dim: int, attention: str):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False)
        self.attention = SelfAttention(dim, heads, attention)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False)
        self.feed_forward = nn.Sequential(nn.Linear(dim, ff_dim), nn.GELU(), nn.Linear(ff_dim, dim))
        self.adapt = nn.Linear(dim, 6 * dim)
        nn.init.zeros_(self.adapt.weight)
        nn.init.zeros_(self.adapt.bias)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """Return tokens shaped like h (B, n, dim); `condition` is (B, dim)."""
        adapt = self.adapt(F.silu(condition))[:, None]
        scale1, shift1, gate1, scale2, shift2, gate2 = adapt.chunk(6, dim=-1)
        h = h + gate1 * self.attention(self.norm1(h) * (1 + scale1) + shift1)
        return h + gate2 * self.feed_forward(self.norm2(h) * (1 + scale2) + shift2)


def check_arguments(image_size: int, patch: int, dim: int, heads: int, attention: str) -> None:
    """Raise ValueError unless the arguments of a `Transformer` fit together."""
    if image_size % patch:
        raise ValueError(f"image_size is {image_size} and patch {patch}; expected a patch that divides the size")
    if dim % heads:
        raise ValueError(f"dim is {dim} and heads {heads}; expected heads that divide dim")
    if attention not in ATTENTION:
        raise ValueError(f"attention is {attention!r}; expected one of {', '.join(map(repr, ATTENTION))}")


def check_input(x: Tensor, y: Tensor | None, image_size: int) -> None:
    """Raise ValueError unless a `Transformer` can read images x with labels y."""
    if x.shape[1:] != (1, image_size, image_size):
        raise ValueError(f"images are {tuple(x.shape)}; expected (B, 1, {image_size}, {image_size})")
    if y is None:
        raise ValueError("y is None; this network draws garments of a kind: give labels (B,), 0 to 9")


class Transformer(nn.Module):
    """Predict x0, or v, of xt (B, 1, S, S) at step t (B,) with labels y (B,); the shape is that of xt.

    S is `image_size`, a multiple of `patch`. There are `depth` blocks; tokens have `dim` numbers, a multiple of 8 and
    of `heads`. `attention` is "linear" or "softmax", `position` is "learned" or "sinusoidal".
    (Peebles & Xie 2023; Li & He 2025 for x0 as the target) Built in lesson 02.
    """

    kind = "denoiser"

    def __init__(
        self,
        image_size: int = 28,
        patch: int = 4,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        ff_dim: int = 256,
        num_classes: int = 10,
        attention: str = "linear",
        position: str = "learned",
    ):
        super().__init__()
        check_arguments(image_size, patch, dim, heads, attention)
        self.image_size, self.patch = image_size, patch
        self.embed = PatchEmbedding(image_size, patch, dim, position)
        self.time = TimeEmbedding(dim // 4)
        self.label = nn.Embedding(num_classes, dim)
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, ff_dim, attention) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, patch**2)
        nn.init.zeros_(self.out.weight)  # the untrained network predicts 0, medium grey
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """Return the prediction, shaped like x."""
        check_input(x, y, self.image_size)
        condition = self.time(t) + self.label(y)
        h = self.embed(x)
        for block in self.blocks:
            h = block(h, condition)
        return unpatchify(self.out(self.norm(h)), self.patch)
