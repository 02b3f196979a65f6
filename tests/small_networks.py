"""Tiny networks of every kind, random as if they were trained, and folders as a training leaves them."""

from pathlib import Path

import torch
from torch import nn

from fmdiff_helpers.cards import build
from fmdiff_helpers.checkpoints import save_weights
from fmdiff_helpers.recipes import CARDS

TINY = {
    "unet": {"width": 8, "mults": [1], "num_classes": 0},
    "transformer": {"patch": 14, "dim": 8, "depth": 1, "heads": 1, "ff_dim": 8, "num_classes": 10},
    "vae": {"width": 4, "channels": 2, "grid": 7},
    "latent_unet": {"width": 8, "mults": [1], "patch": 1, "num_classes": 10, "channels": 2},
    "shortcut_unet": {"width": 8, "mults": [1], "patch": 1, "num_classes": 10, "channels": 2, "spans": True},
    "patch_unet": {"width": 8, "mults": [1], "patch_size": 2, "num_classes": 10},
    "attention_autoencoder": {"width": 8},
    "vector_denoiser": {"width": 8, "mults": [1], "patch": 1, "num_classes": 10, "channels": 1},
    "classifier": {"width": 2},
    "encoder": {"width": 2, "directions": 4},
}


def tiny_card(name: str, **changes) -> dict:
    return CARDS[name] | {"arguments": TINY[name]} | changes


def tiny_network(name: str, seed: int = 0, **changes) -> nn.Module:
    """Build a tiny network, random as if it were trained; an autoencoder standardises its latents somehow."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(tiny_card(name, **changes))
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    for buffer, low, high in (("shift", -0.7, 0.3), ("scale", 0.5, 1.6)):
        if hasattr(model, buffer):
            values = getattr(model, buffer)
            values.copy_(torch.linspace(low, high, values.numel()).reshape(values.shape))
    return model.requires_grad_(False).eval()


def saved(name: str, folder: Path, seed: int = 0, file: str = "weights", **changes) -> nn.Module:
    """Write a tiny network to a folder and return it."""
    model = tiny_network(name, seed, **changes)
    save_weights(folder / f"{file}.safetensors", model, tiny_card(name, **changes))
    return model


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
