"""The classifier whose features judge all generated garments."""

import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution with BatchNorm, which halves the picture where `stride` is 2."""
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class ResidualBlock(nn.Module):
    """Add to x (B, C, H, W) what two convolutions make of it. (He et al. 2016, figure 2)"""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = conv_norm(channels, channels)
        self.conv2 = conv_norm(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape as x."""
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class Classifier(nn.Module):
    """Tell the ten kinds of garments apart: images (B, 1, 28, 28) in [-1, 1] to logits (B, 10)."""

    def __init__(self, width: int = 32, num_classes: int = 10):
        super().__init__()
        self.body = nn.Sequential(
            conv_norm(1, width),
            nn.ReLU(),
            conv_norm(width, 2 * width, stride=2),  # 14 x 14
            nn.ReLU(),
            ResidualBlock(2 * width),
            conv_norm(2 * width, 4 * width, stride=2),  # 7 x 7
            nn.ReLU(),
            ResidualBlock(4 * width),
        )
        self.head = nn.Linear(4 * width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return what the last layer sees, (B, 4 * width): the space in which samples are compared with real images."""
        return self.body(x).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, num_classes)."""
        return self.head(self.features(x))
