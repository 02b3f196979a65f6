"""The community's patch transformer as its author trained it, for comparison: network, recipe and feed-back sampler.

Network: 64 patches of 16x16 images, three blocks of dim 128, 407,684 parameters. It predicts x0, and drawing feeds each
answer back as the next input, ten times. Written anew from its description, with its faults.
"""

import math
import time

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fmdiff_helpers.batching import in_batches
from fmdiff_helpers.data import batches
from fmdiff_helpers.models.transformer import patchify, unpatchify

IMAGE_SIZE, PATCH, DIM, HEADS = 16, 2, 128, 4
T, EPOCHS, CYCLE, BATCH_SIZE = 10, 50, 5, 128
MAX_LR, MIN_LR = 3e-4, 1e-6


class OriginalAttention(nn.Module):
    """Attention in O(n), without the softmax of the queries; that of the keys is over the wrong dimension."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM, bias=False)
        self.out = nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(0.1))

    def forward(self, h: Tensor) -> Tensor:
        """Return what each token of h (B, n, DIM) has gathered, shaped like h."""
        q, k, v = rearrange(self.qkv(h), "b n (three h d) -> three b h n d", three=3, h=HEADS)
        # As there: each key sums to 1 over its features and not over the tokens. The weights that this implies have
        # any sign and any sum.
        context = k.softmax(dim=-1).transpose(-1, -2) @ v
        gathered = q / math.sqrt(q.shape[-1]) @ context
        return self.out(rearrange(gathered, "b h n d -> b n (h d)"))


class OriginalBlock(nn.Module):
    """Gather from all tokens, then think alone; pre-norm."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attention = nn.Sequential(OriginalAttention(), nn.Dropout(0.1))  # as there: dropped out twice
        self.feed_forward = nn.Sequential(
            nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * DIM, DIM), nn.Dropout(0.1)
        )

    def forward(self, h: Tensor) -> Tensor:
        """Return tokens shaped like h (B, n, DIM)."""
        h = h + self.attention(self.norm1(h))
        return h + self.feed_forward(self.norm2(h))


class OriginalTransformer(nn.Module):
    """Predict x0 from xt (B, 1, 16, 16), its level of noise t / T (B,) and labels y (B,), in the shape of xt."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(PATCH**2, DIM)
        self.first = nn.Parameter(torch.zeros(1, 1, DIM))
        self.position = nn.Parameter(torch.zeros(1, 1 + (IMAGE_SIZE // PATCH) ** 2, DIM))
        self.label = nn.Embedding(10, DIM)
        self.level = nn.Linear(1, DIM)  # as there: the level is one number, mapped linearly
        self.blocks = nn.Sequential(*(OriginalBlock() for _ in range(3)))
        self.norm = nn.LayerNorm(DIM)
        self.out = nn.Linear(DIM, PATCH**2)

    def forward(self, x: Tensor, level: Tensor, y: Tensor) -> Tensor:
        """Return the prediction, shaped like x."""
        # As there: only the first token, which belongs to no patch, is told of label and level.
        first = self.first + (self.label(y) + self.level(level[:, None]))[:, None]
        h = self.blocks(torch.cat([first, self.embed(patchify(x, PATCH))], dim=1) + self.position)
        return unpatchify(self.out(self.norm(h[:, 1:])), PATCH)


def original_loss(x0_hat: Tensor, x0: Tensor, epoch: int) -> Tensor:
    """Return the mix of squared and absolute error, whose weights move from 0.9 : 0.1 towards 0.5 : 0.5."""
    weight = 0.9 - 0.4 * epoch / EPOCHS
    squared, absolute = F.mse_loss(x0_hat, x0), F.l1_loss(x0_hat, x0)
    # As there: the scale is set anew in each batch. The value is then the squared error alone, the gradient is not.
    scale = squared.item() / absolute.item()
    return weight * squared + (1 - weight) * scale * absolute


def rate_of(epoch: int) -> float:
    """Return the learning rate of an epoch: a cosine that starts again every `CYCLE` epochs.

    As there: it moves from epoch to epoch, so that even the last one does not reach the minimum.
    """
    return MIN_LR + (MAX_LR - MIN_LR) * (1 + math.cos(math.pi * (epoch % CYCLE) / CYCLE)) / 2


class Peer:
    """The patch transformer, its recipe and its sampler.

    T = 10, no flips, AdamW at 3e-4 with weight decay 0.05 and ten warm restarts, gradients clipped to 1, dropout 0.1,
    no average of the weights. The 50 epochs of loss weight and learning rate are fitted into the time given.
    """

    evaluations = T

    def __init__(self, images: Tensor, labels: Tensor):
        # As there: pictures of 16x16. Made once and not in each epoch, which favours the original.
        size = (IMAGE_SIZE, IMAGE_SIZE)
        self.images, self.labels = F.interpolate(images, size, mode="bilinear", antialias=True), labels
        self.network = OriginalTransformer()
        assert sum(p.numel() for p in self.network.parameters()) == 407_684  # as the original's

    def networks(self) -> list[nn.Module]:
        """Return the networks that are trained."""
        return [self.network]

    def train(self, seconds: float) -> int:
        """Train for so many processor seconds; return how many images were seen."""
        self.network.train()
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=MAX_LR, weight_decay=0.05)
        start, seen = time.process_time(), 0
        while True:
            for x0, y in batches(self.images, self.labels, BATCH_SIZE, torch.default_generator):
                share = (time.process_time() - start) / seconds
                if share >= 1:
                    return seen
                epoch = int(share * EPOCHS)
                optimizer.param_groups[0]["lr"] = rate_of(epoch)
                level = torch.randint(1, T + 1, (1,)) / T  # as there: one step for the whole batch
                # As there: the picture is not scaled down. x_T still holds all of it, but drawing starts without.
                xt = x0 + level * torch.randn_like(x0)
                optimizer.zero_grad()
                original_loss(self.network(xt, level.expand(len(x0)), y), x0, epoch).backward()
                nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
                optimizer.step()
                seen += len(x0)

    @torch.no_grad()
    def draw(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return n images (n, 1, 28, 28) in [-1, 1] and their labels (n,), garment by garment in turn."""
        self.network.eval()
        x = torch.randn((n, 1, IMAGE_SIZE, IMAGE_SIZE), generator=torch.Generator().manual_seed(seed))
        y = torch.arange(n) % 10
        return in_batches(self.feed_back, x, y, batch_size=250), y

    def feed_back(self, x: Tensor, y: Tensor) -> Tensor:
        """Return images (B, 1, 28, 28) of noise x (B, 1, 16, 16)."""
        for t in range(T, 0, -1):
            # As there: the answer is the next input, as if it were as noisy as the level says; nothing is clipped.
            x = self.network(x, torch.full((len(x),), t / T), y)
        return F.interpolate(x, (28, 28), mode="bilinear").clamp(-1, 1)
