"""Sinusoidal time embedding and linear attention, shared by the U-Nets and the transformer."""

import math

import torch
from torch import Tensor, nn


def sinusoids(t: Tensor, dim: int) -> Tensor:
    """Return sines and cosines of t (B,) at `dim` / 2 wavelengths from 2 pi towards 20,000 pi, shape (B, dim).

    (Vaswani et al. 2017, section 3.5) Built in lesson 03.
    """
    frequency = torch.exp(-math.log(10_000) * torch.arange(dim // 2, device=t.device) / (dim // 2))
    angle = t[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class TimeEmbedding(nn.Module):
    """Turn steps t (B,) into vectors (B, 4 * dim) that tell how noisy the picture is. (Ho et al. 2020, appendix B)"""

    def __init__(self, dim: int):
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"dim of the time is {dim}; expected an even number, at least 2: sines and cosines")
        self.dim = dim
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, 4 * dim))

    def forward(self, t: Tensor) -> Tensor:
        """Return the embedding (B, 4 * dim)."""
        return self.mlp(sinusoids(t, self.dim))


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Mix the values v (B, heads, n, d) of n places in O(n) time; q and k have the same shape as v.

    The weights are the n x n matrix softmax_d(q) softmax_n(k)^T, which is never computed. No entry is negative, and
    each row sums to 1.
    (Shen et al. 2021, eq. 6) Built in lesson 02.
    """
    context = k.softmax(dim=-2).transpose(-1, -2) @ v  # (B, heads, d, d): a summary of all places
    return q.softmax(dim=-1) @ context
