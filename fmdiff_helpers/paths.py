"""Ways through a latent space: chains as they were walked, there and back, and from one garment to another."""

import math
from collections.abc import Callable

import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from torch import Tensor, nn

from fmdiff_helpers.data import CLASS_NAMES, to_model, to_uint8
from fmdiff_helpers.diffusion import add_noise
from fmdiff_helpers.plots import class_clouds, image_grid
from fmdiff_helpers.samplers import in_batches, invert_ddim, sample_ddim, slerp
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
    """Return every state of a chain from noise x (B, ...) to the sample, (K + 1, B, ...), and the K steps t taken.

    Arguments are those of `sample_ddim`, whose sample comes last; latents are not clipped. Built in lesson 07.
    """
    steps = []
    sample = sample_ddim(model, x, schedule, generator, num_steps, y, math.inf, eta, steps.append)
    return torch.stack([*(step.xt for step in steps), sample]), [step.t for step in steps]


def draw_chain(
    model: Callable, schedule: Schedule, autoencoder: nn.Module, y: Tensor, seed: int = 0, num_steps: int = 50
) -> tuple[Tensor, list[int]]:
    """Record chains (K + 1, B, ...) of DDIM for the labels y (B,), as `record_chain` does, from noise of a seed."""
    generator = torch.Generator(schedule.beta.device).manual_seed(seed)
    x = torch.randn((len(y), *autoencoder.latent_shape), generator=generator, device=generator.device)
    return record_chain(model, x, schedule, generator, num_steps, y.to(x.device))


def there_and_back(path: Tensor, times: list[int], schedule: Schedule) -> Tensor:
    """Return a loop, (2 K + 1, B, ...): the sample noised up to where its chain began, and the chain back to it.

    `path` and `times` are a chain as `record_chain` returns it. There, each state is a draw from q(x_t | x_0) with the
    noise that the chain began with; back, they are the chain's own: two different ways. Built in lesson 07.
    """
    x0, eps = path[-1], path[0]
    up = [add_noise(x0, torch.full(x0.shape[:1], t, device=x0.device), eps, schedule) for t in reversed(times)]
    return torch.stack([x0, *up, *path[1:]])


def path_length(path: Tensor) -> Tensor:
    """Return how long ways (K, B, ...) are, as the sum of their steps, (B,). Built in lesson 07."""
    return (path[1:] - path[:-1]).flatten(2).norm(dim=2).sum(dim=0)


def diffusion_path(
    model: Callable,
    schedule: Schedule,
    ends: tuple[Tensor, Tensor],
    kinds: tuple[int, int],
    share: Tensor,
    num_steps: int | None = None,
) -> Tensor:
    """Walk between two latents `ends` (1, ...) through their noise, to `share` (K,) of the way; returns (K, ...).

    DDIM takes both to noise, an arc leads from the one to the other, and DDIM back, its prediction blended from those
    for the two `kinds` as `share` says. (Song et al. 2021, section 5.3) Built in lesson 07.
    """
    y = [torch.full(share.shape, kind, device=share.device) for kind in kinds]
    noises = [invert_ddim(model, z, schedule, num_steps, kind[:1]) for z, kind in zip(ends, y, strict=True)]

    def blended(x: Tensor, t: Tensor, _: None = None) -> Tensor:
        return torch.lerp(model(x, t, y[0]), model(x, t, y[1]), share.reshape(-1, *[1] * (x.ndim - 1)))

    x = slerp(*(noise.expand(len(share), *noise.shape[1:]) for noise in noises), share)
    return sample_ddim(blended, x, schedule, num_steps=num_steps, clip=math.inf)


def principal_axes(z: Tensor, number: int = 2) -> tuple[Tensor, Tensor]:
    """Return the mean (d,) of points (N, ...) and the `number` directions (d, number) in which they spread most."""
    z = z.flatten(1)
    return z.mean(dim=0), torch.linalg.eigh(torch.cov(z.T)).eigenvectors[:, -number:].flip(1)


@torch.no_grad()
def encode(autoencoder: nn.Module, images: Tensor) -> Tensor:
    """Return the standardised latents (N, d) of images uint8 (N, 1, 28, 28)."""
    return in_batches(lambda part: autoencoder.to_latent(to_model(part)), images).flatten(1)


def latent_map(autoencoder: nn.Module, images: Tensor, labels: Tensor, method: str = "pca") -> Figure:
    """Draw where an autoencoder puts images uint8 (N, 1, 28, 28) of the kinds `labels` (N,), on a plane.

    `method` "pca" keeps the two directions of most variance; "tsne" keeps neighbours together, and neither distances
    nor directions: under a minute for 2000 images. (van der Maaten & Hinton 2008)
    """
    z = encode(autoencoder, images)
    if method == "pca":
        middle, axes = principal_axes(z)
        return class_clouds((z - middle) @ axes, labels, CLASS_NAMES)
    from sklearn.manifold import TSNE  # takes seconds, which those who draw no such map need not wait

    figure = class_clouds(torch.from_numpy(TSNE(random_state=0).fit_transform(z.cpu().numpy())), labels, CLASS_NAMES)
    figure.axes[0].set(xlabel="", ylabel="")  # they mean nothing
    return figure


@torch.no_grad()
def reconstructions(autoencoder: nn.Module, images: Tensor) -> Figure:
    """Draw images uint8 (N, 1, 28, 28), what an autoencoder makes of them, and the difference."""
    x0 = to_model(images)
    x_hat = autoencoder.from_latent(autoencoder.to_latent(x0))
    rows = ["picture", "from its latent", "difference"]
    return image_grid(torch.cat([x0, x_hat, x_hat - x0]), len(x0), row_labels=rows)


@torch.no_grad()
def draw_ways(autoencoder: nn.Module, paths: Tensor, images: Tensor, labels: Tensor, size: float = 7) -> Figure:
    """Draw chains (K + 1, B, ...) of `record_chain` on the map of `latent_map`, each with the garment at its end."""
    z = encode(autoencoder, images)
    middle, axes = principal_axes(z)
    figure = class_clouds((z - middle) @ axes, labels, CLASS_NAMES, size)
    ways = ((paths.flatten(2) - middle) @ axes).cpu().numpy()
    for way, garment in zip(ways.swapaxes(0, 1), to_uint8(autoencoder.from_latent(paths[-1])).cpu(), strict=True):
        figure.axes[0].plot(*way.T, color="black", marker="o", markevery=[0], markersize=7)
        picture = OffsetImage(garment[0].numpy(), zoom=1, cmap="gray", norm=Normalize(0, 255))
        above = {"xybox": (0, 24), "boxcoords": "offset points"}  # so that it does not hide a short way
        figure.axes[0].add_artist(AnnotationBbox(picture, way[-1], pad=0.1, **above))
    return figure


@torch.no_grad()
def chain_figures(
    autoencoder: nn.Module, path: Tensor, times: list[int], images: Tensor, labels: Tensor, columns: int = 9
) -> list[Figure]:
    """Draw one chain (K + 1, ...) of `record_chain`: its pictures, and its way on the map of `latent_map`."""
    shown = torch.linspace(0, len(times), min(columns, len(path))).round().long().tolist()
    heads = [f"t = {times[k]}" if k < len(times) else "sample" for k in shown]
    pictures = image_grid(autoencoder.from_latent(path[shown]), len(shown), heads)
    return [pictures, draw_ways(autoencoder, path[:, None], images, labels)]
