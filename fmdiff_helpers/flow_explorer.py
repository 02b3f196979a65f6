"""The explorer of lesson 09: the same noise, drawn by several samplers with few evaluations of a network."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fmdiff_helpers.controls import number_box
from fmdiff_helpers.data import CLASS_NAMES
from fmdiff_helpers.explorer import Explorer, tiles
from fmdiff_helpers.frames import label_frame


class FewStepsExplorer(Explorer):
    """Explore what few evaluations can draw: choose a seed, slide through their numbers, and compare samplers.

    `samplers` maps names to functions (x, evaluations, y) that return images (10, 1, 28, 28), in [-1, 1], from noise x
    (10, *shape) and the labels of the ten kinds. All kinds start from the same noise.
    """

    height = 560
    slider_name = "more calls"
    opens_at = 0.4
    numbers = (1, 2, 4, 8, 16, 32)

    def __init__(self, samplers: dict[str, Callable], shape: tuple[int, ...], device: torch.device | str = "cpu"):
        self.samplers, self.shape, self.device = samplers, shape, torch.device(device)
        super().__init__(seed=number_box("seed"))

    def prepare(self) -> int:
        """Draw the noise that all garments start from."""
        generator = torch.Generator(self.device).manual_seed(self.controls["seed"].value)
        x = torch.randn((1, *self.shape), generator=generator, device=self.device)
        self.x, self.y = x.expand(10, *self.shape), torch.arange(10, device=self.device)
        return len(self.numbers)

    def render(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return the garments that each sampler draws with `numbers[t]` evaluations at most."""
        calls = self.numbers[t]
        images: dict[str, Tensor] = {name: draw(self.x, calls, self.y) for name, draw in self.samplers.items()}
        return {"kind": label_frame(CLASS_NAMES)} | tiles(images, columns=1), f"at most {calls} calls of the network"
