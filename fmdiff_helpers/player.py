"""Players: slide through the steps of a chain and watch it.

A `Filmstrip` plays recorded frames without a kernel. An `Explorer` is a set of ipywidgets controls whose pictures
Python draws; a saved notebook keeps a Filmstrip in its place. Only ipywidgets calls that 7.7 (Colab) and 8 share.
"""

import base64
import hashlib
import html
import io
import json
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from string import Template

import ipywidgets as widgets
import numpy as np
import torch
from IPython.display import display
from PIL import Image, ImageDraw
from torch import Tensor, nn

from fmdiff_helpers.data import CLASS_NAMES, to_model, to_uint8
from fmdiff_helpers.diffusion import add_noise, x0_from_eps
from fmdiff_helpers.guidance import guided
from fmdiff_helpers.latent_paths import encode, principal_axes, record_chain
from fmdiff_helpers.metrics import spread_within
from fmdiff_helpers.models.vae import kl_divergence
from fmdiff_helpers.plots import as_frame, class_clouds, histogram_frame, label_frame, loss_curves, tile
from fmdiff_helpers.samplers import sample_ddim, sample_ddpm
from fmdiff_helpers.schedules import (
    Schedule,
    cosine_beta,
    linear_beta,
    quadratic_beta,
    rescaled_linear_beta,
    sigmoid_beta,
)

SCHEDULES = {
    "linear": linear_beta,
    "rescaled linear": rescaled_linear_beta,
    "quadratic": quadratic_beta,
    "sigmoid": sigmoid_beta,
    "cosine": cosine_beta,
}
PAGE = Template("""\
<figure class="fmdiff-film" data-film="$film" style="margin:0.5em 0">
<div style="display:flex;flex-wrap:wrap;gap:12px">$pictures</div>
<figcaption style="display:flex;flex-wrap:wrap;align-items:center;gap:8px;margin-top:6px">
<button type="button" style="display:none;width:3em" aria-label="Play or pause">&#9654;</button>
<input type="range" style="display:none;width:min(24em,60%)" min="0" max="$last" value="$start" aria-label="timestep">
<output aria-live="off" style="font-family:monospace;white-space:pre">$shown</output>
</figcaption>
<script>
for (const root of document.querySelectorAll('figure[data-film="$film"]:not([data-ready])')) {
  root.dataset.ready = "yes";
  const panels = $panels, readout = $readout;
  const images = root.querySelectorAll("img"), out = root.querySelector("output");
  const play = root.querySelector("button"), range = root.querySelector("input");
  let timer = null;
  const show = () => {
    const line = readout[range.value];
    images.forEach((img, k) => {
      img.src = panels[k][range.value % panels[k].length];  // a still panel holds one frame
      img.alt = img.dataset.title + ", " + line;
    });
    out.value = line;
    range.setAttribute("aria-valuetext", line);
  };
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "\\u25B6"; };
  const start = () => {
    play.textContent = "\\u23F8";
    timer = setInterval(() => {
      if (!root.isConnected) return stop();
      range.value = (+range.value + 1) % readout.length;
      show();
    }, $interval);
  };
  play.onclick = () => timer ? stop() : start();
  range.oninput = () => { stop(); show(); };
  root.addEventListener("keydown", event => event.stopPropagation());  // or JupyterLab takes the arrow keys
  play.style.display = range.style.display = "";
}
</script></figure>""")
PICTURE = Template("""\
<div><div style="font-size:90%">$title</div>
<img src="$src" alt="$title, $readout" data-title="$title"
 style="height:${height}px;width:${width}px;image-rendering:$rendering"></div>""")


def encode_png(frame: np.ndarray) -> bytes:
    """Encode a uint8 picture, (H, W) grey or (H, W, 3) colour."""
    image, buffer = Image.fromarray(frame), io.BytesIO()
    if frame.ndim == 3 and (colors := image.getcolors(256)):
        image = image.quantize(len(colors))  # as it is, in a third of the bytes
    image.save(buffer, "PNG")
    return buffer.getvalue()


def data_uri(frame: np.ndarray) -> str:
    """Return a uint8 picture as an address that holds the picture itself."""
    return "data:image/png;base64," + base64.b64encode(encode_png(frame)).decode()


def encode_frames(frames: np.ndarray) -> list[str]:
    """Return the frames as addresses, or only one of them where the picture never changes."""
    return [data_uri(frame) for frame in (frames[:1] if (frames == frames[0]).all() else frames)]


def rendering(frame: np.ndarray, height: int) -> str:
    """Return the CSS image-rendering: sharp pixels where a small picture is scaled up to `height`."""
    return "pixelated" if len(frame) < height else "auto"


class Filmstrip:
    """Play recorded frames in plain HTML: slider, play and pause, arrow keys, no kernel, nothing from the network.

    `panels` maps a title to uint8 frames (F, H, W) or (F, H, W, 3), shown side by side at `height` CSS pixels;
    `readout` holds one line for each of the F frames. Where scripts do not run, the frame `start` is a still picture.
    """

    def __init__(
        self,
        panels: dict[str, Tensor | np.ndarray],
        readout: Sequence[str],
        height: int = 168,
        start: int = 0,
        fps: int = 10,
    ):
        self.panels = {title: np.asarray(frames) for title, frames in panels.items()}
        self.readout, self.height, self.start, self.fps = list(readout), height, start, fps
        for title, frames in self.panels.items():
            is_picture = frames.ndim == 3 or (frames.ndim == 4 and frames.shape[3] == 3)
            if frames.dtype != np.uint8 or not is_picture or len(frames) != len(self.readout):
                expected = f"uint8 (F, H, W) or (F, H, W, 3) with F = {len(self.readout)}, one frame for each readout"
                raise ValueError(f"panel {title!r} is {frames.dtype} {frames.shape}; expected {expected}")
        if not 0 <= start < len(self.readout):
            raise ValueError(f"start is {start}; expected a frame number from 0 to {len(self.readout) - 1}")

    def _picture(self, title: str, uris: list[str]) -> str:
        frame = self.panels[title][self.start]
        return PICTURE.substitute(
            title=html.escape(title),
            src=uris[self.start % len(uris)],
            readout=html.escape(self.readout[self.start]),
            height=self.height,
            width=round(self.height * frame.shape[1] / frame.shape[0]),
            rendering=rendering(frame, self.height),
        )

    def _repr_html_(self) -> str:
        uris = {title: encode_frames(frames) for title, frames in self.panels.items()}
        panels, readout = (json.dumps(part).replace("<", "\\u003c") for part in (list(uris.values()), self.readout))
        content = f"{panels}{readout}{self.fps}"
        return PAGE.substitute(
            film=hashlib.sha256(content.encode()).hexdigest()[:12],  # the same frames give the same page
            pictures="".join(self._picture(title, uris[title]) for title in self.panels),
            panels=panels,
            readout=readout,
            shown=html.escape(self.readout[self.start]),
            last=len(self.readout) - 1,
            start=self.start,
            interval=round(1000 / self.fps),
        )


class Explorer:
    """Show the controls of a choice and a timestep slider with play; draw the pictures when they are first looked at.

    A subclass gives `prepare()`, called after each choice, which does the slow work and returns T; and `draw(t)`, which
    returns the uint8 panels by title and the readout. `slider.value` may be read, set and linked from Python.
    """

    height = 168
    film_frames = 20  # of the Filmstrip that a saved notebook keeps; fewer where frames are large

    def __init__(self, controls: dict[str, widgets.Widget]):
        self.controls = controls
        self.slider = widgets.IntSlider(description="timestep t", min=0, max=1, layout={"width": "420px"})
        self.play = widgets.Play(min=0, max=1, interval=100)  # counts frames, at most 50 for the whole chain
        self.readout = widgets.HTML()
        self.pictures = widgets.HBox()
        self.view = widgets.VBox(
            [
                widgets.HTML("<style>img.fmdiff-pixelated {image-rendering: pixelated}</style>"),
                widgets.HBox(list(controls.values()), layout={"flex_flow": "row wrap"}),
                self.pictures,
                widgets.HBox([self.play, self.slider]),
                self.readout,
            ]
        )
        # Pictures need no gradients, also of a network that has just been trained.
        self.frame = lru_cache(maxsize=128)(torch.no_grad()(self.draw))  # a widget lives as long as its kernel
        self._choose()
        for control in controls.values():
            control.observe(self._choose, "value")
        self.slider.observe(self._show, "value")
        self.play.observe(self._play, "value")

    def prepare(self) -> int:
        """Do the slow work of a choice and return the number of steps T."""
        raise NotImplementedError

    def draw(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return the panels at step t, uint8 by title, and the readout."""
        raise NotImplementedError

    def _choose(self, change=None) -> None:
        """Prepare a new choice, with the controls locked so that no second one queues behind it."""
        self._lock(True)
        self.readout.value = "drawing ..."
        self.frame.cache_clear()
        try:
            last = torch.no_grad()(self.prepare)() - 1
            place = self.slider.value / max(1, self.slider.max)
            self.play.max, self.slider.max = min(last, 50), last
            self.slider.value = round(place * last)
        except Exception as error:
            self._say(error)
            raise
        finally:
            self._lock(False)
        self._show()

    def _play_frame(self) -> int:
        """Return the frame of the play button that stands for the slider's step: its last one is the last step."""
        return round(self.slider.value / max(1, self.slider.max) * self.play.max)

    def _play(self, change) -> None:
        """Follow the play button with the slider."""
        if not self.slider.disabled and change["new"] != self._play_frame():
            self.slider.value = round(change["new"] / max(1, self.play.max) * self.slider.max)

    def _say(self, error: Exception) -> None:
        """Show an error, because a kernel hides what a widget raises."""
        self.readout.value = html.escape(f"{type(error).__name__}: {error}")

    def _lock(self, locked: bool) -> None:
        for control in [*self.controls.values(), self.slider, self.play]:
            control.disabled = locked

    def _show(self, change=None) -> None:
        """Swap the pictures of the slider's step in."""
        if self.slider.disabled:  # a choice is being prepared, and will be shown at its end
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
        """Return a Filmstrip of `num_frames` steps of the present choice, evenly spaced from the first to the last."""
        num_frames = min(num_frames or self.film_frames, self.slider.max + 1)
        steps = np.linspace(0, self.slider.max, num_frames).round().astype(int)
        drawn = [self.frame(int(t)) for t in steps]
        panels = {title: np.stack([frames[title] for frames, _ in drawn]) for title in drawn[0][0]}
        start = int(np.abs(steps - self.slider.value).argmin())
        fps = min(10, max(1, len(steps) // 2))  # a film of few steps still lasts two seconds
        return Filmstrip(panels, [readout for _, readout in drawn], height=self.height, start=start, fps=fps)

    def _repr_mimebundle_(self, **kwargs) -> dict:
        """Return the live widget, and the Filmstrip that exports show and that `make notebooks` keeps in its place."""
        widget = {"version_major": 2, "version_minor": 0, "model_id": self.view.model_id}
        page = self.filmstrip()._repr_html_()
        return {
            "application/vnd.jupyter.widget-view+json": widget,
            "text/html": page,
            "text/plain": type(self).__name__,
        }


class NoisingExplorer(Explorer):
    """Explore q(x_t | x_0): choose a garment, a schedule and T, and slide through the steps.

    `images` uint8 (N, 1, 28, 28) and `labels` (N,) are a split of the dataset, `seed` decides the noise, which stays
    the same for every choice, so that only the choice changes the picture.
    """

    def __init__(self, images: Tensor, labels: Tensor, garment: str = "Ankle boot", seed: int = 0):
        self.images, self.labels = images, labels
        self.eps = torch.randn(1, *images.shape[1:], generator=torch.Generator().manual_seed(seed))
        controls = {
            "garment": widgets.Dropdown(options=CLASS_NAMES, value=garment, description="garment"),
            "index": widgets.BoundedIntText(min=0, max=999, description="which one"),
            "schedule": widgets.Dropdown(options=list(SCHEDULES), description="schedule"),
            "T": widgets.Dropdown(options=(50, 100, 200, 300, 1000), value=1000, description="T"),
        }
        for control in controls.values():
            control.layout.width = "200px"
        super().__init__(controls)
        self.slider.value = self.slider.max // 4

    def prepare(self) -> int:
        """Look up the garment and build the schedule."""
        garment, index, name, T = (control.value for control in self.controls.values())
        of_class = (self.labels == CLASS_NAMES.index(garment)).nonzero().flatten()
        if not len(of_class):
            raise ValueError(f"there is no {garment} among the {len(self.labels)} images")
        self.x0 = to_model(self.images[of_class[index % len(of_class)]])[None].cpu()
        self.schedule = Schedule(SCHEDULES[name](T))
        return T

    def draw(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return x0, eps, x_t and the histogram of x_t, with the scales and the log-SNR at t."""
        xt = add_noise(self.x0, torch.tensor([t]), self.eps, self.schedule)
        images = {"x0 (data)": self.x0, "eps (noise)": self.eps, "x_t": xt}
        panels = {title: to_uint8(x)[0, 0].numpy() for title, x in images.items()}
        panels["pixels of x_t against N(0, 1)"] = histogram_frame(xt, height=self.height)
        signal, noise = self.schedule.signal_scale[t].item(), self.schedule.noise_scale[t].item()
        snr = self.schedule.log_snr_db[t].item()
        return panels, f"t = {t:4d}   x_t = {signal:.3f} x0 + {noise:.3f} eps   SNR {snr:6.1f} dB"


class ReverseExplorer(Explorer):
    """Explore the way back from noise: choose a seed, clip or not, and slide through the steps of DDPM.

    `model` and `schedule` are on one device. For each choice four images are drawn by all T steps, which takes seconds.
    """

    def __init__(self, model: Callable, schedule: Schedule, seed: int = 0):
        self.model, self.schedule = model, schedule
        controls = {
            "seed": widgets.BoundedIntText(value=seed, min=0, max=9999, description="seed"),
            "clip": widgets.Checkbox(value=True, description="clip x0_hat to [-1, 1]"),
        }
        controls["seed"].layout.width = "200px"
        super().__init__(controls)
        self.slider.description = "steps taken"
        self.slider.value = self.slider.max

    def prepare(self) -> int:
        """Draw four images and record every step."""
        seed, clip = (control.value for control in self.controls.values())
        generator = torch.Generator(self.schedule.beta.device).manual_seed(seed)
        x = torch.randn((4, 1, 28, 28), generator=generator, device=generator.device)
        self.steps = []
        options = {"clip": 1.0 if clip else float("inf"), "watch": self.steps.append}
        sample_ddpm(self.model, x, self.schedule, generator, **options)
        return self.schedule.T

    def draw(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return what the step after `t` others saw and did, and the histogram of x_t."""
        step = self.steps[t]
        images = {
            "x_t": step.xt,
            "eps_hat, predicted": step.eps_hat,
            "x0_hat, implied": step.x0_hat,
            "noise added (x 5)": 5 * step.noise,
        }
        panels = {title: tile(to_uint8(x.cpu()), columns=2).numpy() for title, x in images.items()}
        panels["pixels of x_t against N(0, 1)"] = histogram_frame(step.xt, height=self.height)
        snr = self.schedule.log_snr_db[step.t].item()
        return panels, f"t = {step.t:4d}   SNR {snr:6.1f} dB   std of the noise added {step.noise.std().item():.3f}"


class KindsExplorer(Explorer):
    """Explore the way to all ten kinds of garments: choose seed, sampler and number of steps, and slide through them.

    `model` predicts the noise and takes labels; it and `schedule` are on one device. Ten rows, one for each kind, with
    the same two starts in all of them, so that the label alone makes the difference.
    """

    height = 560

    def __init__(self, model: Callable, schedule: Schedule, seed: int = 0):
        self.model, self.schedule = model, schedule
        controls = {
            "seed": widgets.BoundedIntText(value=seed, min=0, max=9999, description="seed"),
            "sampler": widgets.Dropdown(options=("DDIM", "DDPM"), description="sampler"),
            "num_steps": widgets.Dropdown(options=(2, 5, 10, 20, 50), value=10, description="steps"),
        }
        for control in controls.values():
            control.layout.width = "200px"
        super().__init__(controls)
        self.slider.description = "steps taken"
        self.slider.value = self.slider.max

    def prepare(self) -> int:
        """Draw two garments of each kind and record every step."""
        seed, name, num_steps = (control.value for control in self.controls.values())
        device = self.schedule.beta.device
        generator = torch.Generator(device).manual_seed(seed)
        x = torch.randn((2, 1, 28, 28), generator=generator, device=device).repeat(10, 1, 1, 1)
        y = torch.arange(10, device=device).repeat_interleave(2)
        self.steps = []
        sampler = {"DDIM": sample_ddim, "DDPM": sample_ddpm}[name]
        sampler(self.model, x, self.schedule, generator, num_steps, y, watch=self.steps.append)
        return num_steps

    def draw(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return what the step after `t` others saw and what it took for the clean picture."""
        step = self.steps[t]
        images = {"x_t": step.xt, "x0_hat, predicted": step.x0_hat}
        panels = {"kind": label_frame(CLASS_NAMES)}
        panels |= {title: tile(to_uint8(x.cpu()), columns=2).numpy() for title, x in images.items()}
        return panels, f"t = {step.t:4d}   SNR {self.schedule.log_snr_db[step.t].item():6.1f} dB"


class StepsExplorer(Explorer):
    """Explore how many steps DDIM needs: slide through their number, with no, some and DDPM's noise on the way.

    `model` predicts the noise of latents of `vae` and takes labels; they and `schedule` are on one device. Ten rows,
    one for each kind, with the same two starts in all of them and whatever the slider says.
    """

    height = 560
    numbers = (1, 2, 5, 10, 20, 50, 100)

    def __init__(self, model: Callable, schedule: Schedule, vae: nn.Module, seed: int = 0):
        self.model, self.schedule, self.vae = model, schedule, vae
        controls = {"seed": widgets.BoundedIntText(value=seed, min=0, max=9999, description="seed")}
        controls["seed"].layout.width = "200px"
        super().__init__(controls)
        self.slider.description = "more steps"
        self.slider.value = 2

    def prepare(self) -> int:
        """Draw the noise that everything starts from."""
        device = self.schedule.beta.device
        generator = torch.Generator(device).manual_seed(self.controls["seed"].value)
        x = torch.randn((2, *self.vae.latent_shape), generator=generator, device=device)
        self.start, self.y = x.repeat(10, 1, 1, 1), torch.arange(10, device=device).repeat_interleave(2)
        return len(self.numbers)

    def draw(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return what so many steps make of the noise, for three values of eta."""
        panels = {"kind": label_frame(CLASS_NAMES)}
        for eta in (0.0, 0.5, 1.0):
            # Of the noise on the way: no seed that can be chosen, or the start would come again.
            generator = torch.Generator(self.start.device).manual_seed(10_000 + self.numbers[t])
            options = {"num_steps": self.numbers[t], "y": self.y, "clip": float("inf"), "eta": eta}
            z = sample_ddim(self.model, self.start, self.schedule, generator, **options)
            panels[f"eta = {eta:g}"] = tile(to_uint8(self.vae.from_latent(z)).cpu(), columns=2).numpy()
        return panels, f"{self.numbers[t]:3d} steps"


class LatentExplorer(Explorer):
    """Explore a chain in the latent: choose seed, steps and eta, and slide through it, latent and pictures in step.

    Arguments as for StepsExplorer. Ten rows, one for each kind; the four channels of a latent lie side by side.
    """

    height = 560
    film_frames = 11  # noise does not pack, and takes 18 kB each time

    def __init__(self, model: Callable, schedule: Schedule, vae: nn.Module, seed: int = 0):
        self.model, self.schedule, self.vae = model, schedule, vae
        controls = {
            "seed": widgets.BoundedIntText(value=seed, min=0, max=9999, description="seed"),
            "num_steps": widgets.Dropdown(options=(5, 10, 20, 50, 200, 1000), value=50, description="steps"),
            "eta": widgets.Dropdown(options=(0.0, 0.5, 1.0), description="eta"),
        }
        for control in controls.values():
            control.layout.width = "200px"
        super().__init__(controls)
        self.slider.description = "steps taken"
        self.slider.value = self.slider.max // 2

    def prepare(self) -> int:
        """Draw a garment of each kind and record every step."""
        seed, num_steps, eta = (control.value for control in self.controls.values())
        device = self.schedule.beta.device
        generator = torch.Generator(device).manual_seed(seed)
        x = torch.randn((1, *self.vae.latent_shape), generator=generator, device=device).expand(10, -1, -1, -1)
        self.steps = []
        options = {"num_steps": num_steps, "clip": float("inf"), "eta": eta, "watch": self.steps.append}
        sample_ddim(self.model, x, self.schedule, generator, y=torch.arange(10, device=device), **options)
        return num_steps

    def draw(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return the latent, the picture that it is, and the picture that the step took for the clean one."""
        step = self.steps[t]
        channels = (step.xt / 3).reshape(-1, 1, *step.xt.shape[2:]).repeat_interleave(4, 2).repeat_interleave(4, 3)
        images = {
            "x_t, the latent": channels,
            "x_t, decoded": self.vae.from_latent(step.xt),
            "x0_hat, decoded": self.vae.from_latent(step.x0_hat),
        }
        panels = {"kind": label_frame(CLASS_NAMES)}
        for title, x in images.items():
            panels[title] = tile(to_uint8(x).cpu(), columns=len(x) // 10).numpy()
        return panels, f"t = {step.t:4d}   SNR {self.schedule.log_snr_db[step.t].item():6.1f} dB"


class GuidanceExplorer(Explorer):
    """Explore guidance: choose a kind, w, a seed and the number of steps, and slide through the chain.

    `model` predicts the noise of images, with labels and without; `classifier` says how many of the twelve samples
    it takes for their kind; both and `schedule` are on one device. `images` uint8 (N, 1, 28, 28) and `labels` (N,)
    are real garments, whose spread the samples' stands beside.
    """

    height = 168
    film_frames = 6  # noise does not pack, and takes 9 kB each time
    scales = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)

    def __init__(
        self,
        model: Callable,
        schedule: Schedule,
        classifier: nn.Module,
        images: Tensor,
        labels: Tensor,
        label: str = "Shirt",
        seed: int = 0,
    ):
        self.model, self.schedule, self.classifier = model, schedule, classifier
        self.images, self.labels = images, labels
        controls = {
            "label": widgets.Dropdown(options=CLASS_NAMES, value=label, description="kind"),
            "w": widgets.Dropdown(options=self.scales, value=2.0, description="w"),
            "seed": widgets.BoundedIntText(value=seed, min=0, max=9999, description="seed"),
            "num_steps": widgets.Dropdown(options=(10, 20, 50), value=20, description="steps"),
        }
        for control in controls.values():
            control.layout.width = "200px"
        super().__init__(controls)
        self.slider.description = "steps taken"
        self.slider.value = self.slider.max // 2

    def prepare(self) -> int:
        """Draw twelve garments of the kind, record every step, and look at them as the classifier does."""
        label, w, seed, num_steps = (control.value for control in self.controls.values())
        device = self.schedule.beta.device
        generator = torch.Generator(device).manual_seed(seed)
        x = torch.randn((12, 1, 28, 28), generator=generator, device=device)
        self.y = torch.full((12,), CLASS_NAMES.index(label), device=device)
        self.steps = []
        model = guided(self.model, w)
        x0 = sample_ddim(model, x, self.schedule, generator, num_steps, self.y, watch=self.steps.append)
        right = int((self.classifier(x0).argmax(1) == self.y).sum())
        real = to_model(self.images[self.labels == CLASS_NAMES.index(label)])
        spreads = (spread_within(each, each.new_zeros(len(each))) for each in (x0, real))
        self.about = "{} of 12 look like their kind   spread {:.2f}, of real ones {:.2f}".format(right, *spreads)
        return num_steps

    def draw(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return x_t, what the network takes for the clean picture with and without label, and the difference."""
        step = self.steps[t]
        index = torch.full_like(self.y, step.t)
        hats = [x0_from_eps(step.xt, index, self.model(step.xt, index, y), self.schedule) for y in (self.y, None)]
        images = {
            "x_t": step.xt,
            "x0_hat with the label": hats[0],
            "x0_hat without": hats[1],
            "with - without": hats[0] - hats[1],
            "x0_hat, guided": step.x0_hat,
        }
        panels = {title: tile(to_uint8(x).cpu(), columns=4).numpy() for title, x in images.items()}
        return panels, f"t = {step.t:4d}   SNR {self.schedule.log_snr_db[step.t].item():6.1f} dB   {self.about}"


class BetaExplorer(Explorer):
    """Explore what beta does to a VAE: slide through VAEs that were trained with more and more of it.

    `vaes` maps each beta to its VAE, in rising order; `images` are uint8 (N, 1, 28, 28). Another seed chooses other
    garments and other points of the prior.
    """

    height = 224

    def __init__(self, vaes: dict[float, nn.Module], images: Tensor, seed: int = 0):
        self.vaes, self.images = vaes, images
        controls = {"seed": widgets.BoundedIntText(value=seed, min=0, max=9999, description="seed")}
        controls["seed"].layout.width = "200px"
        super().__init__(controls)
        self.slider.description = "beta, rising"

    def prepare(self) -> int:
        """Choose 16 garments and 16 points of the prior, the same for all VAEs."""
        generator = torch.Generator().manual_seed(self.controls["seed"].value)
        self.x0 = to_model(self.images[torch.randint(len(self.images), (16,), generator=generator)])
        shape = next(iter(self.vaes.values())).latent_shape
        self.z = torch.randn((16, *shape), generator=generator).to(self.x0.device)
        return len(self.vaes)

    def draw(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return the garments, what the VAE makes of them, and what it draws from the prior."""
        beta, vae = list(self.vaes.items())[t]
        mu, log_var = vae.encode(self.x0)
        through, drawn = vae.decode(mu), vae.decode(self.z)
        images = {"garments": self.x0, "through the latent": through, "drawn from the prior": drawn}
        panels = {title: tile(to_uint8(x).cpu(), columns=4).numpy() for title, x in images.items()}
        error, kl = (through - self.x0).square().mean(), kl_divergence(mu, log_var).mean()
        return panels, f"beta = {beta:<6g} squared error of a pixel {error:.4f}   KL {kl:6.1f} nats"


class LatentWalk(Explorer):
    """Walk from one garment to another, through the latent and through the pixels, and see where that is on a map.

    `images` uint8 (N, 1, 28, 28) and `labels` (N,) are the garments to choose from and to draw the map of: two
    principal components of their latents, which are not standardised, so that idle numbers stay small.
    """

    height = 336
    film_frames = 11  # a map is 15 kB each time

    @torch.no_grad()
    def __init__(self, vae: nn.Module, images: Tensor, labels: Tensor, start: str = "Trouser", end: str = "Coat"):
        self.vae, self.images, self.labels = vae, images, labels
        self.z = torch.cat([vae.encode(to_model(part))[0] for part in images.split(500)])
        self.middle, self.axes = principal_axes(self.z)
        figure = class_clouds(self.place(self.z), labels, CLASS_NAMES, size=self.height / 75)
        figure.set_dpi(75)
        self.map, self.pixels = as_frame(figure, self.place(self.z))
        controls = {
            "start": widgets.Dropdown(options=CLASS_NAMES, value=start, description="from"),
            "end": widgets.Dropdown(options=CLASS_NAMES, value=end, description="to"),
            "index": widgets.BoundedIntText(min=0, max=999, description="which ones"),
        }
        for control in controls.values():
            control.layout.width = "200px"
        super().__init__(controls)
        self.slider.description = "way, in %"
        self.slider.value = 50

    def place(self, z: Tensor) -> Tensor:
        """Return where latents (N, ...) lie on the map, (N, 2)."""
        return (z.flatten(1) - self.middle) @ self.axes

    def prepare(self) -> int:
        """Look the two garments up and decode the way from one to the other."""
        start, end, index = (control.value for control in self.controls.values())
        kinds = [(self.labels == CLASS_NAMES.index(name)).nonzero().flatten() for name in (start, end)]
        # The last one of the second kind, so that a kind leads to another garment of itself.
        self.ends = [kinds[0][index % len(kinds[0])].item(), kinds[1][-1 - index % len(kinds[1])].item()]
        self.names = start, end
        share = torch.linspace(0, 1, 101, device=self.z.device).reshape(-1, 1, 1, 1)
        self.way, self.mix = (torch.lerp(*x[self.ends][:, None], share) for x in (self.z, to_model(self.images)))
        return 101

    def draw(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return the mix of the pixels, the garment at this place of the latent, and the map."""
        panels = {"mixing pixels": self.mix[t], "walking in the latent": self.vae.decode(self.way[t][None])[0]}
        panels = {title: to_uint8(x)[0].cpu().numpy() for title, x in panels.items()}
        (x0, y0), (x1, y1) = self.pixels[self.ends]
        here = x0 + (x1 - x0) * t / 100, y0 + (y1 - y0) * t / 100
        picture = Image.fromarray(self.map)
        drawing = ImageDraw.Draw(picture)
        drawing.line([x0, y0, x1, y1], fill="black", width=1)
        drawing.ellipse([here[0] - 5, here[1] - 5, here[0] + 5, here[1] + 5], fill="black")
        panels["where that is"] = np.array(picture)
        return panels, f"{t:3d} % of the way from {self.names[0]} to {self.names[1]}"


class PathExplorer(Explorer):
    """Explore a chain through a latent: choose a kind, a seed, steps and eta, and slide along its path on a map.

    `model`, `schedule` and `autoencoder` are on one device; `images` uint8 (N, 1, 28, 28) and `labels` (N,) are the
    garments that the map shows, by two principal components of their standardised latents.
    """

    height = 336
    film_frames = 11  # a map is 15 kB each time

    def __init__(
        self,
        model: Callable,
        schedule: Schedule,
        autoencoder: nn.Module,
        images: Tensor,
        labels: Tensor,
        label: str = "Dress",
        seed: int = 0,
    ):
        self.model, self.schedule, self.autoencoder = model, schedule, autoencoder
        z = encode(autoencoder, images)
        self.middle, self.axes = principal_axes(z)
        figure = class_clouds(self.place(z), labels, CLASS_NAMES, size=self.height / 75)
        figure.set_dpi(75)
        self.map, (self.origin, unit) = as_frame(figure, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        self.unit = unit - self.origin
        controls = {
            "label": widgets.Dropdown(options=CLASS_NAMES, value=label, description="kind"),
            "seed": widgets.BoundedIntText(value=seed, min=0, max=9999, description="seed"),
            "num_steps": widgets.Dropdown(options=(10, 20, 50, 200), value=50, description="steps"),
            "eta": widgets.Dropdown(options=(0.0, 0.5, 1.0), description="eta"),
        }
        for control in controls.values():
            control.layout.width = "200px"
        super().__init__(controls)
        self.slider.description = "steps taken"
        self.slider.value = self.slider.max // 2

    def place(self, z: Tensor) -> Tensor:
        """Return where latents (N, ...) lie on the map, (N, 2)."""
        return (z.flatten(1) - self.middle) @ self.axes

    def prepare(self) -> int:
        """Walk one chain of the kind; the last state is the sample."""
        label, seed, num_steps, eta = (control.value for control in self.controls.values())
        device = self.schedule.beta.device
        generator = torch.Generator(device).manual_seed(seed)
        x = torch.randn((1, *self.autoencoder.latent_shape), generator=generator, device=device)
        y = torch.tensor([CLASS_NAMES.index(label)], device=device)
        path, self.times = record_chain(self.model, x, self.schedule, generator, num_steps, y, eta)
        self.path, self.y = path[:, 0], y
        self.pixels = self.place(self.path).cpu().numpy() * self.unit + self.origin
        return num_steps + 1

    def draw(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return the decoded state, what the network takes for the clean one, and the way so far on the map."""
        z = self.path[t][None]
        if t == len(self.times):
            z0_hat, about = z, "the sample"
        else:
            step = torch.tensor([self.times[t]], device=z.device)
            z0_hat = x0_from_eps(z, step, self.model(z, step, self.y), self.schedule)
            about = f"t = {self.times[t]:4d}   SNR {self.schedule.log_snr_db[self.times[t]].item():6.1f} dB"
        pictures = {"the state, decoded": z, "its x0_hat, decoded": z0_hat}
        panels = {title: to_uint8(self.autoencoder.from_latent(z))[0, 0].cpu().numpy() for title, z in pictures.items()}
        picture = Image.fromarray(self.map)
        drawing = ImageDraw.Draw(picture)
        drawing.line([tuple(point) for point in self.pixels[: t + 1]], fill="black", width=2)
        (x, y), (x_hat, y_hat) = self.pixels[t], self.place(z0_hat)[0].cpu().numpy() * self.unit + self.origin
        drawing.ellipse([x_hat - 6, y_hat - 6, x_hat + 6, y_hat + 6], outline="black", width=2)
        drawing.ellipse([x - 5, y - 5, x + 5, y + 5], fill="black")
        panels["the way (ring: x0_hat)"] = np.array(picture)
        moved = (self.path[t] - self.path[0]).norm().item()
        return panels, f"{about}   {moved:5.2f} from where it began"


class LiveLoss:
    """Draw the loss in place while a network trains, at most twice a second: `train(..., report=LiveLoss())`."""

    def __init__(self):
        self.handle, self.drawn = None, 0.0

    def __call__(self, history: list[dict]) -> None:
        """Draw the training loss and, where there is one, the validation loss."""
        if time.monotonic() - self.drawn < 0.5 and "validation" not in history[-1]:
            return
        figure = loss_curves(history)
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)
        self.drawn = time.monotonic()
