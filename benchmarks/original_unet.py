"""The Annotated Diffusion Model as its authors trained it in 2022, for comparison: network, data loader and recipe.

Network: ConvNeXt blocks, dim 28, 2,996,315 parameters. Recipe: T = 200 linear betas, horizontal flips, Huber loss,
Adam at 1e-3, no average of the weights, no clip of the predicted x0. Written anew from its description.
"""

import math
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fmdiff_helpers.batching import in_batches
from fmdiff_helpers.diffusion import add_noise
from fmdiff_helpers.models.layers import linear_attention, sinusoids
from fmdiff_helpers.models.unet import ConvNeXtBlock
from fmdiff_helpers.samplers import sample_ddpm
from fmdiff_helpers.schedules import Schedule, linear_beta

WIDTHS = ((18, 28), (28, 56), (56, 112))
BATCH_SIZE = 128


class OriginalAttention(nn.Module):
    """Four heads of 32 numbers at every level; GroupNorm before and, in the linear kind, after."""

    def __init__(self, channels: int, linear: bool):
        super().__init__()
        self.attend = linear_attention if linear else F.scaled_dot_product_attention
        self.norm = nn.GroupNorm(1, channels)
        self.qkv = nn.Conv2d(channels, 3 * 128, 1, bias=False)
        out = nn.Conv2d(128, channels, 1)
        self.out = nn.Sequential(out, nn.GroupNorm(1, channels)) if linear else out

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape as x."""
        qkv = rearrange(self.qkv(self.norm(x)), "b (three h d) y x -> three b h (y x) d", three=3, h=4)
        return x + self.out(rearrange(self.attend(*qkv), "b h (y x) d -> b (h d) y x", y=x.shape[2]))


class OriginalUNet(nn.Module):
    """The network of 2022; its first skip is made and never used, as there."""

    def __init__(self):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(28, 112), nn.GELU(), nn.Linear(112, 112))
        self.stem = nn.Conv2d(1, 18, 7, padding=3)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for inner, outer in WIDTHS:
            halve = nn.Identity() if outer == 112 else nn.Conv2d(outer, outer, 4, 2, 1)
            self.down.append(self.level(inner, outer, halve))
        for outer, inner in reversed(WIDTHS[1:]):
            self.up.append(self.level(2 * inner, outer, nn.ConvTranspose2d(outer, outer, 4, 2, 1)))
        self.middle = nn.ModuleList(
            [ConvNeXtBlock(112, 112, 112), OriginalAttention(112, linear=False), ConvNeXtBlock(112, 112, 112)]
        )
        self.last = ConvNeXtBlock(28, 28, 1)
        del self.last.time  # the only block that is not told the step
        self.out = nn.Conv2d(28, 1, 1)

    def level(self, in_channels: int, out_channels: int, resize: nn.Module) -> nn.ModuleList:
        """Return two blocks, linear attention and the change of size."""
        blocks = [ConvNeXtBlock(in_channels, out_channels, 112), ConvNeXtBlock(out_channels, out_channels, 112)]
        return nn.ModuleList([*blocks, OriginalAttention(out_channels, linear=True), resize])

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the predicted noise, shaped like x."""
        time = self.time(sinusoids(t, 28))
        h, skips = self.stem(x), []
        for block1, block2, attention, halve in self.down:
            h = attention(block2(block1(h, time), time))
            skips.append(h)
            h = halve(h)
        block1, attention, block2 = self.middle
        h = block2(attention(block1(h, time)), time)
        for block1, block2, attention, double in self.up:
            h = double(attention(block2(block1(torch.cat([h, skips.pop()], dim=1), time), time)))
        return self.out(self.last.net(self.last.depthwise(h)) + h)


class Pictures(Dataset):
    """Images one by one, through PIL and torchvision's transforms, as the original loads them."""

    def __init__(self, images: Tensor):
        from torchvision.transforms import Compose, Lambda, RandomHorizontalFlip, ToPILImage, ToTensor

        self.images = images
        self.open = ToPILImage()
        self.transform = Compose([RandomHorizontalFlip(), ToTensor(), Lambda(lambda x: 2 * x - 1)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.open(self.images[index]))


def train_original(model: nn.Module, images: Tensor) -> Iterator[int]:
    """Train by the original recipe for as long as the caller asks; yield the number of images seen after each batch."""
    schedule = Schedule(linear_beta(200))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(Pictures(images), batch_size=BATCH_SIZE, shuffle=True)
    seen = 0
    while True:
        for x0 in loader:
            t = torch.randint(schedule.T, (len(x0),))
            eps = torch.randn_like(x0)
            optimizer.zero_grad()
            F.smooth_l1_loss(model(add_noise(x0, t, eps, schedule), t), eps).backward()
            optimizer.step()
            seen += len(x0)
            yield seen


class Peer:
    """The original as a contender of quality.py: it draws on 20 of its 200 steps, and without a clip, as there."""

    evaluations = 20

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.network = images, OriginalUNet()
        assert sum(p.numel() for p in self.network.parameters()) == 2_996_315  # as the original's

    def networks(self) -> list[nn.Module]:
        """Return what it trains."""
        return [self.network]

    def train(self, seconds: float) -> int:
        """Train for so many processor seconds and return how many images were seen."""
        end = time.process_time() + seconds
        return next(seen for seen in train_original(self.network, self.images) if time.process_time() > end)

    def draw(self, n: int, seed: int) -> tuple[Tensor, None]:
        """Return n images (n, 1, 28, 28) in [-1, 1]; it takes no labels."""
        generator = torch.Generator().manual_seed(seed)
        x, schedule = torch.randn((n, 1, 28, 28), generator=generator), Schedule(linear_beta(200))

        def draw_part(x: Tensor) -> Tensor:
            return sample_ddpm(self.network, x, schedule, generator, self.evaluations, clip=math.inf)

        return in_batches(draw_part, x, batch_size=250).clamp(-1, 1), None


class WholeChain(Peer):
    """The original drawing as its authors do, with all of its 200 steps."""

    evaluations = 200
