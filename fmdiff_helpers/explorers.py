"""The nine explorers of the lessons: in each one the reader makes a choice and moves a slider, and sees what changes.

Images are uint8 (N, 1, 28, 28) with labels (N,). `ChainExplorer` describes `drawer`, and `find_kind` names of kinds.
"""

import math
from collections.abc import Callable

import ipywidgets as widgets
import numpy as np
import torch
from torch import Tensor, nn

from fmdiff_helpers import schedules
from fmdiff_helpers.controls import dropdown, kind_list, number_box, steps_list
from fmdiff_helpers.data import CLASS_NAMES, to_model
from fmdiff_helpers.diffusion import add_noise, x0_from_eps
from fmdiff_helpers.drawing import Drawer
from fmdiff_helpers.explorer import ChainExplorer, Explorer, GarmentMap, of_kind, snr_line, tiles
from fmdiff_helpers.frames import label_frame
from fmdiff_helpers.guidance import guided
from fmdiff_helpers.latent_paths import encode, record_chain
from fmdiff_helpers.metrics import spread_within
from fmdiff_helpers.models.vae import kl_divergence
from fmdiff_helpers.samplers import sample_ddim, sample_ddpm
from fmdiff_helpers.schedules import Schedule

SCHEDULES = {
    "linear": schedules.linear_beta,
    "rescaled linear": schedules.rescaled_linear_beta,
    "quadratic": schedules.quadratic_beta,
    "sigmoid": schedules.sigmoid_beta,
    "cosine": schedules.cosine_beta,
}


class NoisingExplorer(Explorer):
    """Explore q(x_t | x_0): choose a garment, a schedule and T, and slide through the steps.

    `seed` decides the noise. It stays the same for every choice, so that only the choice changes the picture.
    """

    opens_at = 0.25

    def __init__(self, images: Tensor, labels: Tensor, garment: str = "Ankle boot", seed: int = 0):
        self.images, self.labels = images, labels
        self.eps = torch.randn(1, *images.shape[1:], generator=torch.Generator().manual_seed(seed))
        kind, index = kind_list("garment", "garment", garment), number_box("which one")
        schedule, T = dropdown("schedule", list(SCHEDULES), "linear"), dropdown("T", (50, 100, 200, 300, 1000), 1000)
        super().__init__(garment=kind, index=index, schedule=schedule, T=T)

    def prepare(self) -> int:
        """Look up the garment and build the schedule."""
        garment, _, name, T = self.choice()
        places = of_kind(self.labels, garment)
        index = self.controls["index"].among(len(places))
        self.x0 = to_model(self.images[places[index]])[None].cpu()
        self.schedule = Schedule(SCHEDULES[name](T))
        return T

    def render(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return x0, eps, x_t and the histogram of x_t, with the scales and the SNR at t."""
        xt = add_noise(self.x0, torch.tensor([t]), self.eps, self.schedule)
        panels = tiles({"x0 (data)": self.x0, "eps (noise)": self.eps, "x_t": xt}, columns=1)
        signal, noise = self.schedule.signal_scale[t].item(), self.schedule.noise_scale[t].item()
        line = snr_line(t, self.schedule, f"x_t = {signal:.3f} x0 + {noise:.3f} eps   ")
        return panels | self.histogram(xt), line


class ReverseExplorer(ChainExplorer):
    """Explore the way back from noise: choose a seed, clip or not, and slide through the steps of DDPM.

    Each choice draws four images, in as many steps as `drawer.num_steps` says; all T steps take seconds.
    """

    opens_at = 1.0

    def __init__(self, drawer: Drawer, seed: int = 0):
        clip = widgets.Checkbox(value=True, description="clip x0_hat to [-1, 1]")
        super().__init__(drawer, seed=number_box("seed", seed), clip=clip)

    def prepare(self) -> int:
        """Draw four images and record every step."""
        clip = 1.0 if self.controls["clip"].value else math.inf
        return self.record(sample_ddpm, self.model, self.noise(4), self.num_steps, clip=clip)

    def render(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return what step number t of the chain saw and did, and the histogram of x_t."""
        step = self.steps[t]
        images = {"x_t": step.xt, "eps_hat, predicted": step.eps_hat, "x0_hat, implied": step.x0_hat}
        images["noise added (x 5)"] = 5 * step.noise
        line = f"{snr_line(step.t, self.schedule)}   std of the noise added {step.noise.std().item():.3f}"
        return tiles(images, columns=2) | self.histogram(step.xt), line


class KindsExplorer(ChainExplorer):
    """Explore the way to all ten kinds of garments: choose seed, sampler and number of steps, and slide through them.

    The network takes labels. There is a row for each kind. All rows have the same two starts: only the label differs.
    """

    height = 560
    opens_at = 1.0

    def __init__(self, drawer: Drawer, seed: int = 0):
        sampler, steps = dropdown("sampler", ("DDIM", "DDPM"), "DDIM"), steps_list(drawer, (2, 5, 10, 20, 50), 10)
        super().__init__(drawer, seed=number_box("seed", seed), sampler=sampler, num_steps=steps)

    def prepare(self) -> int:
        """Draw two garments of each kind and record every step."""
        _, name, num_steps = self.choice()
        x, y = self.noise_for_kinds(2)
        return self.record({"DDIM": sample_ddim, "DDPM": sample_ddpm}[name], self.model, x, num_steps, y)

    def render(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return what step number t of the chain saw and the clean picture that it predicted."""
        step = self.steps[t]
        panels = tiles({"x_t": step.xt, "x0_hat, predicted": step.x0_hat}, columns=2)
        return {"kind": label_frame(CLASS_NAMES)} | panels, snr_line(step.t, self.schedule)


class StepsExplorer(ChainExplorer):
    """Explore how many steps DDIM needs: choose a seed, slide through the numbers of steps, and compare three eta.

    The network takes latents and labels. There is a row for each kind, with the same two starts in all rows and for
    all numbers of steps.
    """

    height = 560
    slider_name = "more steps"
    opens_at = 1 / 3
    numbers = (1, 2, 5, 10, 20, 50, 100)

    def __init__(self, drawer: Drawer, seed: int = 0):
        super().__init__(drawer, seed=number_box("seed", seed))

    def prepare(self) -> int:
        """Draw the noise that all chains start from."""
        self.x, self.y = self.noise_for_kinds(2)
        return len(self.numbers)

    def render(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return the garments that `numbers[t]` steps make of the noise, for three values of eta."""
        num_steps, images = self.numbers[t], {}
        for eta in (0.0, 0.5, 1.0):
            # A seed that the box does not offer: with that of the start, the noise on the way would repeat it.
            generator = torch.Generator(self.x.device).manual_seed(-num_steps)
            options = {"num_steps": num_steps, "y": self.y, "clip": math.inf, "eta": eta}
            z = sample_ddim(self.model, self.x, self.schedule, generator, **options)
            images[f"eta = {eta:g}"] = self.autoencoder.from_latent(z)
        return {"kind": label_frame(CLASS_NAMES)} | tiles(images, columns=2), f"{num_steps:3d} steps"


class LatentExplorer(ChainExplorer):
    """Explore a chain of latents: choose seed, steps and eta, and slide through latents and their pictures.

    The network takes latents and labels. There is a row for each kind; the channels of a latent stand side by side.
    """

    height = 560
    film_frames = 10  # noise does not compress: 18 kB a frame
    opens_at = 0.5

    def __init__(self, drawer: Drawer, seed: int = 0):
        steps, eta = steps_list(drawer, (5, 10, 20, 50, 200, 1000), 50), dropdown("eta", (0.0, 0.5, 1.0), 0.0)
        super().__init__(drawer, seed=number_box("seed", seed), num_steps=steps, eta=eta)

    def prepare(self) -> int:
        """Draw a garment of each kind and record every step."""
        _, num_steps, eta = self.choice()
        x, y = self.noise_for_kinds(1)
        return self.record(sample_ddim, self.model, x, num_steps, y, clip=math.inf, eta=eta)

    def render(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return the latent, its picture, and the picture of the clean latent that the step predicted."""
        step = self.steps[t]
        # Each number is a square of 4 x 4 pixels: black at -3, white at 3.
        channels = (step.xt / 3).reshape(-1, 1, *step.xt.shape[2:]).repeat_interleave(4, 2).repeat_interleave(4, 3)
        xt, x0_hat = self.autoencoder.from_latent(step.xt), self.autoencoder.from_latent(step.x0_hat)
        panels = {"kind": label_frame(CLASS_NAMES)} | tiles({"x_t, the latent": channels}, columns=step.xt.shape[1])
        panels |= tiles({"x_t, decoded": xt, "x0_hat, decoded": x0_hat}, columns=1)
        return panels, snr_line(step.t, self.schedule)


class GuidanceExplorer(ChainExplorer):
    """Explore guidance: choose a kind, w, a seed and the number of steps, and slide through the chain.

    The network works with labels and without. `classifier` counts how many of the twelve samples look like their kind.
    The spread of the samples is compared with that of `images`. All are on one device.
    """

    film_frames = 6  # noise does not compress: 9 kB a frame
    opens_at = 0.5

    def __init__(
        self,
        drawer: Drawer,
        classifier: Callable,
        images: Tensor,
        labels: Tensor,
        label: str = "Shirt",
        seed: int = 0,
    ):
        self.classifier, self.images, self.labels = classifier, images, labels
        kind, w = kind_list("kind", "label", label), dropdown("w", (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0), 2.0)
        steps = steps_list(drawer, (10, 20, 50), 20)
        super().__init__(drawer, label=kind, w=w, seed=number_box("seed", seed), num_steps=steps)

    def prepare(self) -> int:
        """Draw twelve garments of the kind, record every step, and measure the samples."""
        label, w, _, num_steps = self.choice()
        x = self.noise(12)
        self.y = torch.full((12,), CLASS_NAMES.index(label), device=x.device)
        self.record(sample_ddim, guided(self.model, w), x, num_steps, self.y)
        x0 = self.steps[-1].x_prev
        right = int((self.classifier(x0).argmax(1) == self.y).sum())
        real = to_model(self.images[of_kind(self.labels, label)])
        spreads = (spread_within(each, each.new_zeros(len(each))) for each in (x0, real))
        self.about = "{} of 12 look like their kind   spread {:.2f}, of real ones {:.2f}".format(right, *spreads)
        return num_steps

    def render(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return x_t, the clean pictures predicted with and without the label, their difference, and the guided one."""
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
        return tiles(images, columns=4), f"{snr_line(step.t, self.schedule)}   {self.about}"


class BetaExplorer(Explorer):
    """Explore what beta does to a VAE: slide through VAEs that were trained with more and more of it.

    `vaes` maps each beta to its VAE, in rising order. The seed chooses 16 of the `images` and 16 points of the prior.
    """

    height = 224
    slider_name = "beta, rising"

    def __init__(self, vaes: dict[float, nn.Module], images: Tensor, seed: int = 0):
        self.vaes, self.images = vaes, images
        super().__init__(seed=number_box("seed", seed))

    def prepare(self) -> int:
        """Choose garments and points of the prior, the same for all VAEs."""
        generator = torch.Generator().manual_seed(self.controls["seed"].value)
        self.x0 = to_model(self.images[torch.randint(len(self.images), (16,), generator=generator)])
        shape = next(iter(self.vaes.values())).latent_shape
        self.z = torch.randn((16, *shape), generator=generator).to(self.x0.device)
        return len(self.vaes)

    def render(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return the garments, their reconstructions by VAE number t, and what it draws from the prior."""
        beta, vae = list(self.vaes.items())[t]
        mu, log_var = vae.encode(self.x0)
        through, drawn = vae.decode(mu), vae.decode(self.z)
        images = {"garments": self.x0, "through the latent": through, "drawn from the prior": drawn}
        error, kl = (through - self.x0).square().mean(), kl_divergence(mu, log_var).mean()
        line = f"beta = {beta:<6g} squared error of a pixel {error:.4f}   KL {kl:6.1f} nats"
        return tiles(images, columns=4), line


class LatentWalk(Explorer):
    """Walk from one garment to another, by mixing pixels and through the latent, and see the way on a map.

    The `images` are the garments to choose from and to draw the map of. Their latents are not standardised, so that
    numbers which the VAE does not use stay small.
    """

    height = 336
    film_frames = 11  # a map takes 15 kB a frame
    slider_name = "way, in %"
    opens_at = 0.5

    @torch.no_grad()
    def __init__(self, vae: nn.Module, images: Tensor, labels: Tensor, start: str = "Trouser", end: str = "Coat"):
        self.vae, self.images, self.labels = vae, images, labels
        kinds = {"start": kind_list("from", "start", start), "end": kind_list("to", "end", end)}
        self.z = torch.cat([vae.encode(to_model(part))[0] for part in images.split(500)])
        self.map = GarmentMap(self.z, labels, self.height)
        self.pixels = self.map.pixels(self.z)
        super().__init__(**kinds, index=number_box("which ones"))

    def prepare(self) -> int:
        """Look the two garments up and mix their pixels and their latents, in 101 steps."""
        start, end, _ = self.choice()
        starts, ends = of_kind(self.labels, start), of_kind(self.labels, end)
        index = self.controls["index"].among(min(len(starts), len(ends)))
        # The end is counted from the back, so that the way from a kind to itself leads to another garment.
        self.ends = [starts[index], ends[-1 - index]]
        share = torch.linspace(0, 1, 101, device=self.z.device).reshape(-1, 1, 1, 1)
        pairs = self.z[self.ends], to_model(self.images[self.ends])
        self.way, self.mix = (torch.lerp(*pair[:, None], share) for pair in pairs)
        return 101

    def render(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return the mixed pixels, the garment at t % of the way through the latent, and the map."""
        images = {"mixing pixels": self.mix[t][None], "walking in the latent": self.vae.decode(self.way[t][None])}
        first, last = self.pixels[self.ends]
        way = self.map.with_way([first, last], dot=first + (last - first) * t / 100, width=1)
        start, end, _ = self.choice()
        return tiles(images, columns=1) | {"where that is": way}, f"{t:3d} % of the way from {start} to {end}"


class PathExplorer(ChainExplorer):
    """Explore a chain of latents: choose a kind, a seed, steps and eta, and slide along the chain's way on a map.

    The network takes latents and labels. The map shows the standardised latents of `images`. All are on one device.
    """

    height = 336
    film_frames = 11  # a map takes 15 kB a frame
    opens_at = 0.5

    def __init__(self, drawer: Drawer, images: Tensor, labels: Tensor, label: str = "Dress", seed: int = 0):
        kind, seed = kind_list("kind", "label", label), number_box("seed", seed)
        steps, eta = steps_list(drawer, (10, 20, 50, 200), 50), dropdown("eta", (0.0, 0.5, 1.0), 0.0)
        self.map = GarmentMap(encode(drawer.autoencoder, images), labels, self.height)
        super().__init__(drawer, label=kind, seed=seed, num_steps=steps, eta=eta)

    def prepare(self) -> int:
        """Draw one chain of the kind; its last state is the sample."""
        label, _, num_steps, eta = self.choice()
        x = self.noise(1)
        self.y = torch.tensor([CLASS_NAMES.index(label)], device=x.device)
        path, self.times = record_chain(self.model, x, self.schedule, self.generator, num_steps, self.y, eta)
        self.path = path[:, 0]
        self.pixels = self.map.pixels(self.path)
        return num_steps + 1

    def render(self, t: int) -> tuple[dict[str, np.ndarray], str]:
        """Return the state after t steps and the clean one that the network predicts, decoded, and the way so far."""
        z = self.path[t][None]
        if t == len(self.times):
            z0_hat, about = z, "the sample"
        else:
            step = torch.tensor([self.times[t]], device=z.device)
            z0_hat = x0_from_eps(z, step, self.model(z, step, self.y), self.schedule)
            about = snr_line(self.times[t], self.schedule)
        state, x0_hat = self.autoencoder.from_latent(z), self.autoencoder.from_latent(z0_hat)
        panels = tiles({"the state, decoded": state, "its x0_hat, decoded": x0_hat}, columns=1)
        way = self.map.with_way(self.pixels[: t + 1], dot=self.pixels[t], ring=self.map.pixels(z0_hat)[0])
        moved = (self.path[t] - self.path[0]).norm().item()
        return panels | {"the way (ring: x0_hat)": way}, f"{about}   {moved:5.2f} from where it began"
