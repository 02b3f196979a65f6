"""An encoder that has never seen a label; its features are a second way to measure generated garments."""

import torch.nn.functional as F
from torch import Tensor, nn

from fmdiff_helpers.models.classifier import convolutions


class Encoder(nn.Module):
    """Describe images (B, channels, H, W) in [-1, 1] by directions (B, `directions`), which training compares.

    What measures compare are the `features` before the last two layers: these two forget what training does not need.
    (Chen et al. 2020, section 4.2)
    """

    kind = "encoder"

    def __init__(self, width: int = 32, directions: int = 64, channels: int = 1):
        super().__init__()
        self.body = convolutions(width, channels)
        self.project = nn.Sequential(nn.Linear(4 * width, 4 * width), nn.ReLU(), nn.Linear(4 * width, directions))

    def features(self, x: Tensor) -> Tensor:
        """Return the features (B, 4 * width)."""
        return self.body(x).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return directions: vectors of length 1, (B, directions)."""
        return F.normalize(self.project(self.features(x)), dim=1)
