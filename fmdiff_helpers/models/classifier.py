"""The classifier; its features are used to measure generated garments."""

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce


class BatchNorm(nn.BatchNorm2d):
    """Normalise x (B, C, H, W) over the whole batch, also if several processes each train on a part of it.

    PyTorch's SyncBatchNorm does this on GPUs only. (Ioffe & Szegedy 2015, algorithm 1)
    """

    running_mean: Tensor
    running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape as x."""
        if not (self.training and distributed.is_initialized()):
            return super().forward(x)
        # In half precision, E[x^2] - E[x]^2 is inaccurate if the mean is large, and overflows if x is large.
        kind, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
        moments = torch.stack([x.mean(dim=(0, 2, 3)), x.square().mean(dim=(0, 2, 3))])
        mean, square = all_reduce(moments) / distributed.get_world_size()
        variance = square - mean.square()
        n = x[:, 0].numel() * distributed.get_world_size()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight / (variance + self.eps).sqrt()
        return (x * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]).to(kind)


def conv_norm(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution followed by BatchNorm; with `stride` 2 it halves the height and width."""
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, BatchNorm(out_channels))


class ResidualBlock(nn.Module):
    """Add two convolutions of x (B, C, H, W) to x. (He et al. 2016, figure 2)"""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = conv_norm(channels, channels)
        self.conv2 = conv_norm(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape as x."""
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


def convolutions(width: int, channels: int = 1) -> nn.Sequential:
    """Return layers that turn images (B, channels, 28, 28) into maps (B, 4 * width, 7, 7)."""
    return nn.Sequential(
        conv_norm(channels, width),
        nn.ReLU(),
        conv_norm(width, 2 * width, stride=2),  # 14 x 14
        nn.ReLU(),
        ResidualBlock(2 * width),
        conv_norm(2 * width, 4 * width, stride=2),  # 7 x 7
        nn.ReLU(),
        ResidualBlock(4 * width),
    )


class Classifier(nn.Module):
    """Classify images (B, 1, 28, 28) in [-1, 1] into the ten kinds of garments; returns logits (B, 10)."""

    kind = "classifier"

    def __init__(self, width: int = 32, num_classes: int = 10):
        super().__init__()
        self.body = convolutions(width)
        self.head = nn.Linear(4 * width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the input of the last layer, (B, 4 * width); measures compare samples with real images in it."""
        return self.body(x).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, num_classes)."""
        return self.head(self.features(x))
