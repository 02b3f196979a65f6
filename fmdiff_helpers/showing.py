"""What `fmdiff show` draws."""

from dataclasses import replace
from pathlib import Path

import torch

from fmdiff_helpers.batching import this_process
from fmdiff_helpers.cards import read_card
from fmdiff_helpers.data import load_fashion_mnist, to_uint8
from fmdiff_helpers.drawing import load_autoencoder, load_drawer
from fmdiff_helpers.entries import describe_pictures, own_pictures
from fmdiff_helpers.export import save_animation, save_figures
from fmdiff_helpers.latent_paths import draw_chain, there_and_back
from fmdiff_helpers.latent_plots import chain_figures, latent_map, reconstructions
from fmdiff_helpers.metrics import nearest
from fmdiff_helpers.pictures import read_same
from fmdiff_helpers.plots import image_grid
from fmdiff_helpers.processes.diffusion import Diffusion


def show_images(what: str, name: str, out: Path, tsne: bool) -> None:
    """Draw ten test images that an autoencoder reconstructs, or a map of the latents of 2,000."""
    device = this_process().device
    autoencoder, (images, labels) = load_autoencoder(name, device), load_fashion_mnist("test", device)
    if what == "reconstructions":
        save_figures(out, reconstructions(autoencoder, images[:10]))
    else:
        save_figures(out, latent_map(autoencoder, images[:2000], labels[:2000], "tsne" if tsne else "pca"))


def show_chain(what: str, name: str, out: Path, label: str | None, seed: int, num_steps: int | None) -> None:
    """Draw the path of one chain of DDIM among 2,000 test images, or five chains as a loop to noise and back.

    `label` None means a dress, for a network that takes labels; `num_steps` None means 20, or all if there are fewer.
    ValueError for a network that learned by another process than diffusion: DDIM cannot use what it predicts.
    """
    drawer = load_drawer(name, num_steps, device=this_process().device)
    if not isinstance(drawer.process, Diffusion):
        learned = type(drawer.process).__name__
        raise ValueError(f"{name!r} learned by {learned}, and DDIM has no {what} for it; name latent_unet, for example")
    if num_steps is None:
        drawer = replace(drawer, num_steps=min(20, drawer.process.max_steps))
    if label is None and drawer.takes_labels:
        label = "Dress"
    y = torch.zeros(5) if label is None else drawer.one_kind(label, 5)
    path, times = draw_chain(drawer, y, seed)
    if what == "loop":
        frames = there_and_back(path, times, drawer.process.schedule)
        save_animation(out, [to_uint8(drawer.decode(z)) for z in frames], columns=5)
    else:
        images, labels = (part[:2000] for part in load_fashion_mnist("test", path.device))
        save_figures(out, *chain_figures(drawer.autoencoder, path[:, 0], times, images, labels))


def show_nearest(name: str, out: Path, place: Path | None, seed: int, num_steps: int | None) -> None:
    """Draw ten samples and below each the training picture that is nearest to it, with the distance in grey values.

    `place` is where pictures of one's own are, None for Fashion-MNIST. ValueError if the network was trained on others.
    """
    card = read_card(name)
    if place is not None:
        images = read_same(name, card, place).part("train")[0]
    elif own := own_pictures(card):
        raise ValueError(f"{name!r} was trained on {describe_pictures(own)}; name their folder with --images, too")
    else:
        images = load_fashion_mnist("train")[0]
    drawer = load_drawer(name, num_steps, device=this_process().device)
    samples = to_uint8(drawer.draw(10, seed, drawer.all_kinds(10))).cpu()
    distance, index = nearest(samples, images)
    heads = [f"{value:.0f}" for value in distance.tolist()]
    save_figures(out, image_grid(torch.cat([samples, images[index]]), 10, heads, ["sample", "nearest"]))
