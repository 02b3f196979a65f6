"""Paths in a latent space: recorded chains, loops to noise and back, and paths from one garment to another."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fmdiff_helpers.batching import in_batches
from fmdiff_helpers.data import to_model
from fmdiff_helpers.diffusion import add_noise
from fmdiff_helpers.drawing import Drawer
from fmdiff_helpers.samplers import sample_ddim, slerp
from fmdiff_helpers.schedules import Schedule


def record_chain(
    model: Callable,
    x: Tensor,
    schedule: Schedule,
    generator: torch.Generator | None = None,
    num_steps: int | None = None,
    y: Tensor | None = None,
    eta: float = 0.0,
) -> tuple[Tensor, list[int]]:
    """Return all states (K + 1, B, ...) of a chain from noise x (B, ...) to the sample, and its K steps t.

    The arguments are those of `sample_ddim`; the last state is its sample. Nothing is clipped. Built in lesson 07.
    """
    steps = []
    sample = sample_ddim(model, x, schedule, generator, num_steps, y, math.inf, eta, steps.append)
    return torch.stack([*(step.xt for step in steps), sample]), [step.t for step in steps]


def draw_chain(drawer: Drawer, y: Tensor, seed: int = 0) -> tuple[Tensor, list[int]]:
    """Record chains of DDIM as `record_chain` does, for the labels y (B,), from the noise of a seed.

    `drawer` must have an autoencoder. If it takes no labels, only the number of chains, B, counts.
    """
    generator = torch.Generator(drawer.process.device).manual_seed(seed)
    x = torch.randn((len(y), *drawer.autoencoder.latent_shape), generator=generator, device=generator.device)
    y = y.to(x.device) if drawer.takes_labels else None
    return record_chain(drawer.model, x, drawer.process.schedule, generator, drawer.num_steps, y)


def way_there(x0: Tensor, eps: Tensor, times: list[int], schedule: Schedule) -> Tensor:
    """Return a way (K + 1, B, ...) from latents x0 (B, ...) to the noise eps, by q(x_t | x_0) at the steps `times`.

    `times` (K,) fall, as `record_chain` returns them. No network takes part. Built in lesson 07.
    """
    steps = [torch.full(x0.shape[:1], t, device=x0.device) for t in reversed(times)]
    return torch.stack([x0, *(add_noise(x0, t, eps, schedule) for t in steps)])


def there_and_back(path: Tensor, times: list[int], schedule: Schedule) -> Tensor:
    """Return a loop (2 K + 1, B, ...) from the sample to the noise that its chain began with, and back to the sample.

    `path` and `times` are a chain from `record_chain`. On the way there, each state is a draw from q(x_t | x_0) with
    that noise; on the way back, the states are those of the chain. The two ways differ. Built in lesson 07.
    """
    return torch.cat([way_there(path[-1], path[0], times, schedule), path[1:]])


def path_length(path: Tensor) -> Tensor:
    """Return the lengths (B,) of paths (K, B, ...), each the sum of the lengths of its steps. Built in lesson 07."""
    return (path[1:] - path[:-1]).flatten(2).norm(dim=2).sum(dim=0)


def diffusion_path(
    model: Callable,
    schedule: Schedule,
    noises: tuple[Tensor, Tensor],
    kinds: tuple[Tensor, Tensor],
    share: Tensor,
    num_steps: int | None = None,
) -> Tensor:
    """Return latents (K, ...) on paths between two garments, through noise, at `share` (K,) of the way, 0 to 1.

    `noises` are those of the garments, from `invert_ddim`, and `kinds` their labels: one pair, (1, ...) and (1,), or K
    of them. `slerp` interpolates between the noises, and DDIM takes the results to latents. There, the prediction is
    interpolated, too, between those for the two kinds. (Song et al. 2021, section 5.3) Built in lesson 07.
    """
    start, end = (noise.expand(len(share), *noise.shape[1:]) for noise in noises)
    y = [kind.expand(len(share)) for kind in kinds]

    def blended(x: Tensor, t: Tensor, _: None = None) -> Tensor:
        return torch.lerp(model(x, t, y[0]), model(x, t, y[1]), share.reshape(-1, *[1] * (x.ndim - 1)))

    x = slerp(start, end, share)
    return sample_ddim(blended, x, schedule, num_steps=num_steps, clip=math.inf)


def principal_axes(z: Tensor, number: int = 2) -> tuple[Tensor, Tensor]:
    """Return the mean (d,) of points (N, ...) and the `number` directions (d, number) of largest variance, in order."""
    z = z.flatten(1)
    return z.mean(dim=0), torch.linalg.eigh(torch.cov(z.T)).eigenvectors[:, -number:].flip(1)


@torch.no_grad()
def encode(autoencoder: nn.Module, images: Tensor) -> Tensor:
    """Return the standardised latents (N, d) of images uint8 (N, 1, 28, 28)."""
    return in_batches(lambda part: autoencoder.to_latent(to_model(part)), images).flatten(1)
