"""A denoiser of lists of numbers: an MLP, for which the order of the numbers means nothing."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmdiff_helpers.models.layers import TimeEmbedding


class MLPBlock(nn.Module):
    """Add two layers of h (B, width) to h; in between, step and label scale and shift each number."""

    def __init__(self, width: int, condition_dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.layer1 = nn.Linear(width, width)
        self.adapt = nn.Linear(condition_dim, 2 * width)
        self.norm2 = nn.LayerNorm(width)
        self.layer2 = nn.Linear(width, width)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """Return a tensor shaped like h; `condition` is (B, condition_dim)."""
        scale, shift = self.adapt(F.silu(condition)).chunk(2, dim=1)
        inner = self.layer1(F.silu(self.norm1(h)))
        return h + self.layer2(F.silu(self.norm2(inner) * (1 + scale) + shift))


class MLP(nn.Module):
    """Predict the noise in xt (B, ...) of `size` numbers each, at step t (B,), or v, in the same shape.

    Any new order of the numbers can be had by a new order of the weights of the first and the last layer. Labels y
    (B,) are kinds; label `num_classes` is the null label and means the same as None.
    """

    kind = "denoiser"

    def __init__(self, size: int = 64, width: int = 256, depth: int = 3, num_classes: int = 10):
        super().__init__()
        self.num_classes = num_classes
        self.time = TimeEmbedding(32)
        self.label = nn.Embedding(num_classes + 1, 128)
        self.enter = nn.Linear(size, width)
        self.blocks = nn.ModuleList(MLPBlock(width, 128) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, size)
        nn.init.zeros_(self.out.weight)  # the untrained network predicts 0, the best guess without data
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the prediction, shaped like x."""
        y = torch.full_like(t, self.num_classes, dtype=torch.int64) if y is None else y
        condition = self.time(t) + self.label(y)
        h = self.enter(x.flatten(1))
        for block in self.blocks:
            h = block(h, condition)
        return self.out(F.silu(self.norm(h))).reshape(x.shape)
