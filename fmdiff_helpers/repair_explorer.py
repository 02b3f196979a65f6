"""The explorer of lesson 10: cover a part of a garment, or blur it, and watch a method find what is not seen."""

from collections.abc import Callable
from functools import partial

import ipywidgets as widgets
import numpy as np
import torch
from torch import Tensor

from fmdiff_helpers.controls import dropdown, kind_list, number_box, steps_list
from fmdiff_helpers.data import CLASS_NAMES, to_model
from fmdiff_helpers.drawing import Drawer
from fmdiff_helpers.explorer import ChainExplorer, of_kind, snr_line, tiles
from fmdiff_helpers.measurements import Mask, Measurement, blur, shrink
from fmdiff_helpers.repair import sample_ddnm, sample_dps, sample_repaint, sample_replacing

METHODS = {
    "replacing": sample_replacing,
    "RePaint": sample_repaint,
    "DDNM": sample_ddnm,
    "DPS": sample_dps,
}
STRENGTHS = (0.3, 1.0, 2.0, 5.0, 20.0)


def hole_slider(description: str, ends: tuple[int, int]) -> widgets.IntRangeSlider:
    """Return a slider with two ends, for the rows or the columns of a hole: from the first to before the second."""
    return widgets.IntRangeSlider(value=ends, min=0, max=28, description=description, continuous_update=False)


class RepairExplorer(ChainExplorer):
    """Explore repair: choose a garment, what is seen of it, a method and its strength, and slide through the chain.

    The hole lies where its rows and its columns meet; "7 x 7" and "blurred" see all of the garment, but less. The
    network takes labels. `strength` counts for DPS alone. Images are uint8 (N, 1, 28, 28) with labels (N,).
    """

    opens_at = 1.0
    film_frames = 8

    def __init__(self, drawer: Drawer, images: Tensor, labels: Tensor, garment: str = "Ankle boot", seed: int = 0):
        self.images, self.labels = images, labels
        controls = {
            "garment": kind_list("garment", "garment", garment),
            "index": number_box("which one"),
            "seen": dropdown("seen", ("all but a hole", "7 x 7", "blurred"), "all but a hole"),
            "rows": hole_slider("rows", (0, 28)),
            "columns": hole_slider("columns", (14, 28)),
            "method": dropdown("method", list(METHODS), "RePaint"),
            "strength": dropdown("strength", STRENGTHS, 2.0),
            "num_steps": steps_list(drawer, (25, 50, 100), 25),
        }
        super().__init__(drawer, seed=number_box("seed", seed), **controls)

    def measurement(self) -> tuple[Measurement, Tensor]:
        """Return the chosen measurement, and the pixels (28, 28) that it does not see, or not well.

        ValueError if the hole has no pixel, or if nothing is left.
        """
        device, seen = self.schedule.beta.device, self.controls["seen"].value
        keep = torch.ones(28, 28, dtype=torch.bool, device=device)
        if seen != "all but a hole":
            return (shrink(4) if seen == "7 x 7" else blur(1.5)), keep
        (top, bottom), (left, right) = self.controls["rows"].value, self.controls["columns"].value
        keep[top:bottom, left:right] = False
        if keep.all():
            raise ValueError("the hole has no pixel; move the ends of rows and columns apart")
        return Mask(keep), ~keep

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
        self.about = f"known part {misfit:.3f} off   unknown part: mean {off:.2f} off, spread {spread:.2f}"
        return count

    def render(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return the garment, what is seen of it, x_t, the predicted x0, and what the step led to."""
        step = self.steps[t]
        one = {"the garment": self.x0, "seen": self.shown}
        four = {"x_t": step.xt, "x0_hat, predicted": step.x0_hat, "the next x_t": step.x_prev}
        return tiles(one, columns=1) | tiles(four, columns=2), f"{snr_line(step.t, self.schedule)}   {self.about}"
