"""Contrastive learning: two views of one image get similar directions, and views of two images different ones."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_gather

from fmdiff_helpers.batching import own_part

LEAST_SIZE = 0.5  # of the part that a view shows, as a share of the image's height and width
OVER_THE_EDGE = 0.1  # so far a view may show what is outside the image, as a share of half its width
BRIGHTNESS = 0.4  # each view is up to this share brighter or darker


def view(x0: Tensor, u: Tensor) -> Tensor:
    """Return a random part of each image (B, 1, H, W), brighter or darker, as an image of the same size.

    u (B, 5), uniform in [0, 1), says width, height, two coordinates of the centre, and brightness. Nothing is flipped.
    """
    size = LEAST_SIZE + (1 - LEAST_SIZE) * u[:, :2]
    centre = (2 * u[:, 2:4] - 1) * (1 - size + OVER_THE_EDGE)
    place = torch.cat([torch.diag_embed(size), centre[:, :, None]], dim=2)
    grid = F.affine_grid(place, list(x0.shape), align_corners=False)
    part = F.grid_sample(x0 + 1, grid, align_corners=False)  # black, which is 0 here, is outside the image
    gain = 1 + BRIGHTNESS * (2 * u[:, 4] - 1)
    return (part * gain[:, None, None, None]).clamp(max=2) - 1


def contrastive_loss(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Return the loss of each image (B,), from the directions (B, d) of two views of it.

    It is the cross entropy of finding the other view of an image among all views of all images of the batch, by
    their similarity; the mean over both views. (Chen et al. 2020, eq. 1)
    """
    both = torch.cat([one, other])
    similarity = both @ both.T / temperature
    similarity = similarity.masked_fill(torch.eye(len(both), dtype=torch.bool, device=both.device), -torch.inf)
    partner = torch.arange(len(both), device=both.device).roll(len(one))
    return F.cross_entropy(similarity, partner, reduction="none").reshape(2, -1).mean(dim=0)


def whole_batch(part: Tensor) -> Tensor:
    """Return the parts (B, ...) that all processes have as one tensor; gradients flow back to all of them."""
    return torch.cat(all_gather(part)) if distributed.is_initialized() else part


@dataclass(frozen=True)
class Contrast:
    """Train an encoder without labels: it learns what two views of one image have in common. It cannot draw."""

    temperature: float
    kind, max_steps = "encoder", 0

    @classmethod
    def from_card(cls, card: dict, device: torch.device | str = "cpu", *, temperature: float) -> "Contrast":
        """Build it from temperature=0.2; ValueError if that is 0."""
        if not temperature:
            raise ValueError("temperature is 0; expected a number above 0")
        return cls(temperature)

    def draw(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor]:
        """Draw which two views of each image are compared, (B, 2, 5)."""
        return (torch.rand((len(x0), 2, 5), generator=generator, device=x0.device),)

    def directions(self, model: Callable, x0: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the directions (B, d) of both views of each image."""
        one, other = model(torch.cat([view(x0, u[:, 0]), view(x0, u[:, 1])])).chunk(2)
        return one, other

    def loss(self, model: Callable, x0: Tensor, y: Tensor | None, u: Tensor) -> Tensor:
        """Return the loss of each image (B,); `y` is not used.

        Several processes that each have a part of a batch compare the views of the whole batch.
        """
        one, other = (whole_batch(part) for part in self.directions(model, x0, u))
        return own_part(contrastive_loss(one, other, self.temperature))

    def training_loss(self, num_steps: int) -> Callable:
        """Return the loss to train with."""
        return self.loss

    def validate(self, model: nn.Module, x0: Tensor, y: Tensor | None = None) -> dict[str, float]:
        """Return the loss for views that are the same at each call."""
        u = torch.rand((len(x0), 2, 5), generator=torch.Generator().manual_seed(0)).to(x0.device)
        return {"loss": contrastive_loss(*self.directions(model, x0, u), self.temperature).mean().item()}
