"""The explorers of lesson 10: hide a part of a garment, or blur it, and watch a method find it; sketch a garment."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fmdiff_helpers.canvas import SIZE, Canvas
from fmdiff_helpers.controls import dropdown, kind_list, number_box, steps_list
from fmdiff_helpers.data import CLASS_NAMES, to_model
from fmdiff_helpers.drawing import Drawer
from fmdiff_helpers.explorer import ChainExplorer, of_kind, snr_line, tiles
from fmdiff_helpers.measurements import Mask, Measurement, blur, shrink
from fmdiff_helpers.repair import sample_ddnm, sample_dps, sample_repaint, sample_replacing, sample_sdedit

METHODS = {
    "replacing": sample_replacing,
    "RePaint": sample_repaint,
    "DDNM": sample_ddnm,
    "DPS": sample_dps,
}
STRENGTHS = (0.3, 1.0, 2.0, 5.0, 20.0)
MASK_PENS = {"seen": "transparent", "hidden": "#E69F00D0"}
GREY_PENS = {"black": "#000", "dark grey": "#555", "light grey": "#AAA", "white": "#FFF"}


class RepairExplorer(ChainExplorer):
    """Explore repair: choose a garment, what is seen of it, a method and its strength, and slide through the chain.

    A part of the garment can be hidden, at first its right half, by painting on it; "7 x 7" and "blurred" see all of
    it, but less. The network takes labels. `strength` counts for DPS alone. Images are uint8 (N, 1, 28, 28) with
    labels (N,).
    """

    opens_at = 1.0
    film_frames = 8

    def __init__(self, drawer: Drawer, images: Tensor, labels: Tensor, garment: str = "Ankle boot", seed: int = 0):
        self.images, self.labels = images, labels
        controls = {
            "garment": kind_list("garment", "garment", garment),
            "index": number_box("which one"),
            "seen": dropdown("seen", ("what is not hidden", "7 x 7", "blurred"), "what is not hidden"),
            "method": dropdown("method", list(METHODS), "RePaint"),
            "strength": dropdown("strength", STRENGTHS, 2.0),
            "num_steps": steps_list(drawer, (25, 50, 100), 25),
            "seed": number_box("seed", seed),
            "hidden": Canvas("hide a part", MASK_PENS, (torch.arange(SIZE) >= SIZE // 2).long().expand(SIZE, SIZE)),
        }
        super().__init__(drawer, **controls)

    def measurement(self) -> tuple[Measurement, Tensor]:
        """Return the chosen measurement, and the pixels (28, 28) that it does not see, or not well.

        ValueError if nothing is hidden, or all.
        """
        device, seen = self.schedule.beta.device, self.controls["seen"].value
        if seen != "what is not hidden":
            everything = torch.ones(SIZE, SIZE, dtype=torch.bool, device=device)
            return (shrink(4) if seen == "7 x 7" else blur(1.5)), everything
        hidden = (self.controls["hidden"].cells > 0).to(device)
        if hidden.all() or not hidden.any():
            raise ValueError(f"{int(hidden.sum())} of {SIZE**2} cells are hidden; expected some, but not all")
        return Mask(~hidden), hidden

    def method(self) -> Callable:
        """Return the sampler of the chosen method, with its strength or its repetitions."""
        name, num_steps = self.controls["method"].value, self.controls["num_steps"].value
        options = {"DPS": {"strength": self.controls["strength"].value}, "RePaint": {"jump": num_steps // 5}}
        return partial(METHODS[name], **options.get(name, {}))

    def prepare(self) -> int:
        """Draw four pictures that fit what is seen, and record every step."""
        places = of_kind(self.labels, self.controls["garment"].value)
        place = places[self.controls["index"].among(len(places))]
        x = self.noise(4)
        self.controls["hidden"].show_below(self.images[place, 0].cpu().numpy())
        self.x0 = to_model(self.images[place])[None].to(x)
        measurement, unseen = self.measurement()
        seen = measurement.apply(self.x0).expand(4, -1, -1, -1)
        self.shown, method = measurement.pseudo_inverse(seen[:1]), self.method()

        def sample(
            model: Callable, x: Tensor, schedule: object, generator: torch.Generator, *choice, **options
        ) -> Tensor:
            return method(model, x, schedule, measurement, seen, generator, *choice, **options)

        y = torch.full((4,), CLASS_NAMES.index(self.controls["garment"].value), device=x.device)
        count = self.record(sample, self.model, x, self.controls["num_steps"].value, y)
        drawn = self.steps[-1].x_prev
        misfit = (measurement.apply(drawn) - seen).square().mean().sqrt().item()
        apart = (drawn - self.x0)[..., unseen]
        off, spread = apart.mean(0).square().mean().sqrt(), apart.var(0).mean().sqrt()
        self.about = f"in the end known part {misfit:.3f} off, unknown part: mean {off:.2f} off, spread {spread:.2f}"
        return count

    def render(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return the garment, what is seen of it, x_t, the predicted x0, and what the step led to."""
        step = self.steps[t]
        one = {"the garment": self.x0, "seen": self.shown}
        four = {"x_t": step.xt, "x0_hat, predicted": step.x0_hat, "the next x_t": step.x_prev}
        return tiles(one, columns=1) | tiles(four, columns=2), f"{snr_line(step.t, self.schedule)}   {self.about}"


class SketchExplorer(ChainExplorer):
    """Explore SDEdit: draw a sketch in four greys, choose a kind and a depth, and slide through the chain.

    `sketch` (28, 28), from -1 to 1, is there at first. The network takes labels.
    """

    opens_at = 1.0
    film_frames = 8

    def __init__(self, drawer: Drawer, sketch: Tensor, label: str = "T-shirt", depth: int = 120, seed: int = 0):
        controls = {
            "label": kind_list("label", "label", label),
            "depth": number_box("depth", depth),
            "num_steps": steps_list(drawer, (10, 25, 50), 25),
            "seed": number_box("seed", seed),
            "sketch": Canvas("draw a sketch", GREY_PENS, ((sketch + 1) / 2 * (len(GREY_PENS) - 1)).round().long()),
        }
        super().__init__(drawer, **controls)

    def prepare(self) -> int:
        """Make four garments of the sketch, and record every step."""
        device, depth = self.schedule.beta.device, self.controls["depth"].among(self.schedule.T)
        generator = torch.Generator(device).manual_seed(self.controls["seed"].value)
        self.x0 = (self.controls["sketch"].cells / (len(GREY_PENS) - 1) * 2 - 1)[None, None].to(device)
        y = torch.full((4,), CLASS_NAMES.index(self.controls["label"].value), device=device)
        x, num_steps, self.steps = self.x0.expand(4, -1, -1, -1), min(self.controls["num_steps"].value, depth + 1), []
        sample_sdedit(self.model, x, self.schedule, depth, generator, num_steps, y, watch=self.steps.append)
        self.off = (self.steps[-1].x_prev - self.x0).square().mean().sqrt().item()
        return len(self.steps)

    def render(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return the sketch, x_t, the predicted x0, and what the step led to."""
        step = self.steps[t]
        four = {"x_t": step.xt, "x0_hat, predicted": step.x0_hat, "the next x_t": step.x_prev}
        line = f"{snr_line(step.t, self.schedule)}   in the end {self.off:.2f} off the sketch"
        return tiles({"the sketch": self.x0}, columns=1) | tiles(four, columns=2), line
