"""What the explorers share: ipywidgets controls and a slider, with pictures that Python draws when they are looked at.

A saved notebook keeps a Filmstrip in place of an explorer. Only ipywidgets calls that 7.7 (Colab) and 8 share.
"""

import html
import math
import time
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import ipywidgets as widgets
import numpy as np
import torch
from IPython.display import display
from PIL import Image, ImageDraw
from torch import Tensor

from fmdiff_helpers.controls import StepSlider
from fmdiff_helpers.data import CLASS_NAMES, to_uint8
from fmdiff_helpers.drawing import Drawer
from fmdiff_helpers.filmstrip import Filmstrip, encode_png, rendering
from fmdiff_helpers.frames import as_frame, histogram_frame
from fmdiff_helpers.latent_paths import principal_axes
from fmdiff_helpers.plots import class_clouds, loss_curves, tile
from fmdiff_helpers.schedules import Schedule

if TYPE_CHECKING:
    from fmdiff_helpers.train import Run


def of_kind(labels: Tensor, kind: str) -> list[int]:
    """Return the places in labels (N,) where garments of the kind are; ValueError if there are none."""
    places = (labels == CLASS_NAMES.index(kind)).nonzero().flatten().tolist()
    if not places:
        raise ValueError(f"there is no {kind} among the {len(labels)} images")
    return places


def tiles(images: dict[str, Tensor], columns: int) -> dict[str, np.ndarray]:
    """Lay out images (N, 1, H, W) from -1 to 1 in rows of `columns`, as one uint8 picture for each title."""
    return {title: tile(to_uint8(x).cpu(), columns).numpy() for title, x in images.items()}


def snr_line(t: int, schedule: Schedule, formula: str = "") -> str:
    """Return the readout of step t: its number, `formula` and the signal-to-noise ratio."""
    return f"t = {t:4d}   {formula}SNR {schedule.log_snr_db[t].item():6.1f} dB"


class Explorer:
    """Show controls, a slider with a play button, and the pictures of the slider's step.

    A subclass has two methods. `prepare()` runs after each choice, does the slow work and returns the number of steps.
    `render(t)` returns the pictures of step t and runs when that step is first looked at. `slider.value` may be read,
    set and linked from Python; ValueError for a step that is not on the slider.
    """

    height = 168  # of the pictures, in CSS pixels
    film_frames = 20  # of the Filmstrip that a saved notebook keeps; fewer where frames are large
    slider_name = "timestep t"
    opens_at = 0.0  # share of the slider's length where it stands at first

    def __init__(self, **controls: widgets.Widget):
        self.controls = controls
        self.slider = StepSlider(description=self.slider_name, min=0, max=1, layout={"width": "420px"})
        self.play = widgets.Play(min=0, max=1, interval=100)  # counts frames, at most 50 for the whole chain
        self.readout = widgets.HTML()
        self.pictures = widgets.HBox()
        style = widgets.HTML("<style>img.fmdiff-pixelated {image-rendering: pixelated}</style>")
        top = widgets.HBox(list(controls.values()), layout={"flex_flow": "row wrap"})
        self.view = widgets.VBox([style, top, self.pictures, widgets.HBox([self.play, self.slider]), self.readout])
        # No gradients, also if the network has just been trained. Few frames: a widget lives as long as its kernel.
        self.frame = lru_cache(maxsize=128)(torch.no_grad()(self.render))
        self._choose()
        for control in controls.values():
            control.observe(self._choose, "value")
        self.slider.observe(self._show, "value")
        self.play.observe(self._play, "value")

    def prepare(self) -> int:
        """Do the slow work of a choice and return the number of steps T."""
        raise NotImplementedError

    def render(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return the panels of step t, uint8 by title, and the line below them."""
        raise NotImplementedError

    def choice(self) -> list:
        """Return the values of the controls, in their order."""
        return [control.value for control in self.controls.values()]

    def histogram(self, x: Tensor) -> dict[str, np.ndarray]:
        """Return the panel with the histogram of x_t."""
        return {"pixels of x_t against N(0, 1)": histogram_frame(x, self.height)}

    def _choose(self, change=None) -> None:
        """Prepare a new choice; meanwhile the controls are locked, so that no second one waits behind it."""
        if self.slider.disabled:  # `prepare` itself moves a control
            return
        self._lock(True)
        self.readout.value = "drawing ..."
        self.frame.cache_clear()
        try:
            last = torch.no_grad()(self.prepare)() - 1
            share = self.slider.value / max(1, self.slider.max)
            self.play.max, self.slider.max = min(last, 50), last
            self.slider.value = int(self.opens_at * last) if change is None else round(share * last)
        except Exception as error:
            self._say(error)
            raise
        finally:
            self._lock(False)
        self._show()

    def _play_frame(self) -> int:
        """Return the frame of the play button for the slider's step: the last frame is the last step."""
        return round(self.slider.value / max(1, self.slider.max) * self.play.max)

    def _play(self, change) -> None:
        """Move the slider with the play button."""
        if not self.slider.disabled and change["new"] != self._play_frame():
            self.slider.value = round(change["new"] / max(1, self.play.max) * self.slider.max)

    def _say(self, error: Exception) -> None:
        """Show an error, because a kernel hides what a widget raises."""
        self.readout.value = html.escape(f"{type(error).__name__}: {error}")

    def _lock(self, locked: bool) -> None:
        for control in [*self.controls.values(), self.slider, self.play]:
            control.disabled = locked

    def _show(self, change=None) -> None:
        """Show the pictures of the slider's step."""
        if self.slider.disabled:  # a choice is being prepared, and is shown when it is ready
            return
        self.play.value = self._play_frame()
        try:
            panels, readout = self.frame(self.slider.value)
        except Exception as error:
            self._say(error)
            raise
        if not self.pictures.children:
            self.pictures.children = [self._panel(title, frame) for title, frame in panels.items()]
        for box, frame in zip(self.pictures.children, panels.values(), strict=True):
            box.children[1].value = encode_png(frame)
        self.readout.value = f'<code style="white-space:pre">{html.escape(readout)}</code>'

    def _panel(self, title: str, frame: np.ndarray) -> widgets.VBox:
        image = widgets.Image(format="png", layout={"height": f"{self.height}px", "object_fit": "contain"})
        image.add_class(f"fmdiff-{rendering(frame, self.height)}")
        return widgets.VBox([widgets.HTML(html.escape(title)), image], layout={"margin": "0 12px 0 0"})

    def filmstrip(self, num_frames: int | None = None) -> Filmstrip:
        """Return a Filmstrip of `num_frames` steps of the current choice, evenly spaced from the first to the last.

        All of them if there are fewer. ValueError if `num_frames` is below 2.
        """
        num_frames = self.film_frames if num_frames is None else num_frames
        if num_frames < 2:
            raise ValueError(f"num_frames is {num_frames}; expected at least 2, the first step and the last")
        num_frames = min(num_frames, self.slider.max + 1)
        steps = np.linspace(0, self.slider.max, num_frames).round().astype(int)
        drawn = [self.frame(int(t)) for t in steps]
        panels = {title: np.stack([frames[title] for frames, _ in drawn]) for title in drawn[0][0]}
        start = int(np.abs(steps - self.slider.value).argmin())
        fps = min(10, max(1, len(steps) // 2))  # a film of few frames still lasts two seconds
        return Filmstrip(panels, [readout for _, readout in drawn], height=self.height, start=start, fps=fps)

    def _repr_mimebundle_(self, **kwargs) -> dict:
        """Return the live widget, and the Filmstrip that exports show and that `make notebooks` keeps in its place."""
        widget = {"version_major": 2, "version_minor": 0, "model_id": self.view.model_id}
        page, name = self.filmstrip()._repr_html_(), type(self).__name__
        return {"application/vnd.jupyter.widget-view+json": widget, "text/html": page, "text/plain": name}


class ChainExplorer(Explorer):
    """Explore chains that the network of a `Drawer` walks, from noise that the control "seed" decides.

    `drawer.model(x, t, y)` predicts the noise. `drawer.autoencoder` is None for a network of pixels. Both of them and
    `drawer.process.schedule` are on one device. A list of numbers of steps opens on `drawer.num_steps`, if set.
    """

    slider_name = "steps taken"

    def __init__(self, drawer: Drawer, **controls: widgets.Widget):
        self.model, self.schedule, self.autoencoder = drawer.model, drawer.process.schedule, drawer.autoencoder
        self.num_steps = drawer.num_steps
        super().__init__(**controls)

    def noise(self, number: int) -> Tensor:
        """Draw noise (number, ...) with the chosen seed; `generator` goes on from there."""
        shape, device = self.autoencoder.latent_shape if self.autoencoder else (1, 28, 28), self.schedule.beta.device
        self.generator = torch.Generator(device).manual_seed(self.controls["seed"].value)
        return torch.randn((number, *shape), generator=self.generator, device=device)

    def noise_for_kinds(self, number: int) -> tuple[Tensor, Tensor]:
        """Draw noise and repeat it for each of the ten kinds, (10 * number, ...); return it and the labels."""
        x = self.noise(number).repeat(10, 1, 1, 1)
        return x, torch.arange(10, device=x.device).repeat_interleave(number)

    def record(self, sampler: Callable, model: Callable, x: Tensor, *choice, **options) -> int:
        """Walk from noise x by a sampler, keep its steps in `steps` and return their number.

        Further arguments are those of the sampler, from `num_steps` on.
        """
        self.steps = []
        sampler(model, x, self.schedule, self.generator, *choice, watch=self.steps.append, **options)
        return len(self.steps)


class GarmentMap:
    """Draw the latents (N, ...) of garments with labels (N,) as a map, `height` pixels high, to draw a way on.

    Its axes are the two principal components of the latents.
    """

    def __init__(self, z: Tensor, labels: Tensor, height: int):
        self.middle, self.axes = principal_axes(z)
        figure = class_clouds(self.place(z), labels, CLASS_NAMES, size=height / 75)
        figure.set_dpi(75)
        self.picture, (self.origin, unit) = as_frame(figure, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        self.unit = unit - self.origin

    def place(self, z: Tensor) -> Tensor:
        """Return the two principal components of latents (N, ...), (N, 2)."""
        return (z.flatten(1) - self.middle) @ self.axes

    def pixels(self, z: Tensor) -> np.ndarray:
        """Return where latents (N, ...) lie in the picture, (N, 2): pixels from the left and from the top."""
        return self.place(z).cpu().numpy() * self.unit + self.origin

    def with_way(self, way: np.ndarray, dot: np.ndarray, ring: np.ndarray | None = None, width: int = 2) -> np.ndarray:
        """Return the map, uint8 (H, W, 3), with a line through the pixels `way` (K, 2), a dot and perhaps a ring."""
        picture = Image.fromarray(self.picture)
        drawing = ImageDraw.Draw(picture)
        drawing.line([tuple(point) for point in way], fill="black", width=width)
        if ring is not None:
            drawing.ellipse([*(ring - 6), *(ring + 6)], outline="black", width=2)
        drawing.ellipse([*(dot - 5), *(dot + 5)], fill="black")
        return np.array(picture)


class LiveLoss:
    """Draw the loss in place while a network trains, at most twice a second: `train(..., report=LiveLoss())`."""

    def __init__(self):
        self.handle, self.drawn = None, -math.inf

    def __call__(self, run: "Run") -> None:
        """Draw the training loss of `run.history` and, where there is one, the validation loss."""
        if time.monotonic() - self.drawn < 0.5 and "validation" not in run.history[-1]:
            return
        figure = loss_curves(run.history)
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)
        self.drawn = time.monotonic()
