"""Classification: tell the kinds of garments apart."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def shift(x0: Tensor, shifts: Tensor) -> Tensor:
    """Move each image (B, 1, H, W) down and right by its `shifts` (B, 2), at most 2 pixels; black comes in."""
    height, width = x0.shape[2:]
    padded = F.pad(x0, (2, 2, 2, 2), value=-1.0)
    rows = torch.arange(height, device=x0.device) + 2 - shifts[:, :1]
    columns = torch.arange(width, device=x0.device) + 2 - shifts[:, 1:]
    image = torch.arange(len(x0), device=x0.device)
    return padded[image[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


@dataclass(frozen=True)
class Classification:
    """Train a classifier by the cross entropy of images that are moved at random at each step. It cannot draw."""

    kind, max_steps = "classifier", 0

    @classmethod
    def from_card(cls, card: dict, device: torch.device | str = "cpu") -> "Classification":
        """Build it; it has no arguments."""
        return cls()

    def draw(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor]:
        """Draw by how much each image is moved down and right, -2 to 2 pixels, shape (B, 2)."""
        return (torch.randint(-2, 3, (len(x0), 2), generator=generator, device=x0.device),)

    def training_loss(self, num_steps: int) -> Callable:
        """Return the cross entropy of each image (B,), the images moved by the shifts that were drawn."""
        return lambda model, x0, y, shifts: F.cross_entropy(model(shift(x0, shifts)), y, reduction="none")

    def validate(self, model: nn.Module, x0: Tensor, y: Tensor) -> dict[str, float]:
        """Return the mean cross entropy and the accuracy on images that are not moved."""
        logits = model(x0)
        accuracy = (logits.argmax(1) == y).cpu().double().mean().item()
        return {"loss": F.cross_entropy(logits, y).item(), "accuracy": accuracy}
