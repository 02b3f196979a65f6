"""Measure lesson 07's choice: 64 numbers with places or without, and which network draws them.

uv run python benchmarks/vectors.py train vector       an autoencoder and two denoisers of its latents; or `train map`
uv run python benchmarks/vectors.py train alike        the autoencoder without places, all its channels weighed alike
uv run python benchmarks/vectors.py train early        the published denoiser, its weights kept early on, too
uv run python benchmarks/vectors.py measure latents    both kinds, into the card of the published denoiser
uv run python benchmarks/vectors.py measure guidance   the published denoiser, guided
"""

import os
import sys
from pathlib import Path

import torch
from exhibits import publish, train_card
from torch import nn

from fmdiff_helpers.cards import build, read_card
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.data import describe_data, to_uint8
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.leaderboard import load_judge
from fmdiff_helpers.metrics import Judge, mean_and_spread
from fmdiff_helpers.models.attention_autoencoder import ChannelAttention
from fmdiff_helpers.recipes import CARDS, describe_autoencoder, profiles, train_network
from fmdiff_helpers.results import Results
from fmdiff_helpers.run import device_name

N, SEEDS, NUM_STEPS, TRAINING_STEPS = 1000, 3, 50, 3000
SCALES = (1.5, 2.0, 3.0)
STEPS = profiles("attention_autoencoder")["full"]["steps"]
LATENTS = {"vector": False, "map": True}  # without places, or with
DENOISERS = {
    "transformer": {
        "network": "transformer.Transformer",
        "arguments": {"image_size": 8, "patch": 2, "dim": 128, "depth": 4, "num_classes": 10, "attention": "softmax"},
    },
    "U-Net": {},  # as published
}


def folder_of(*names: str) -> str:
    """Return where a network is trained: an autoencoder, or a denoiser of its latents."""
    return "_".join(["runs/latent", *names])


class Ones(nn.Module):
    """Stand in for the last layer of the channels' weights: 1 for all of them, whatever the picture."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ones shaped like x."""
        return torch.ones_like(x)


def train_for(steps: int, card: dict, folder: str, alike: bool = False) -> None:
    """Train the network of a card for so many steps, from the weights of seed 0; or with its channels weighed alike."""
    card = card | {"recipe": card["recipe"] | {"steps": steps}, "data": describe_data()}
    torch.manual_seed(0)
    model = build(card)
    for part in model.modules():
        if alike and isinstance(part, ChannelAttention):
            part.weigh[-1] = Ones()
    train_card(card, folder, model)


def train_latent(latent: str) -> None:
    """Train an autoencoder, and both denoisers in its latent."""
    card = CARDS["attention_autoencoder"]
    card = card | {"arguments": card["arguments"] | {"places": LATENTS[latent]}}
    train_for(STEPS, card, folder_of(latent))
    for name, changes in DENOISERS.items():
        card = CARDS["vector_denoiser"] | {"recipe": {"lr": 1e-3, "floor": 0.1}} | changes
        card |= {"label_dropout": 0.0}  # a transformer always wants to know the label
        card |= {"autoencoder": describe_autoencoder(folder_of(latent), (1, 8, 8))}
        train_for(TRAINING_STEPS, card, folder_of(latent, name))


def final_error(folder: str) -> float:
    """Return the squared error of a pixel on the images held out of an autoencoder's training, at its end."""
    return read_card(folder)["history"][-1]["validation"]["loss"]


def train_early() -> None:
    """Train the denoiser that is published, and keep its weights after each 500 steps, with pictures."""
    folder = Path("runs/vector_denoiser")
    train_network("vector_denoiser", folder, report=Results(folder, keep_every=1))


def about() -> dict:
    """Return how everything here is measured."""
    return {"n": N, "seeds": SEEDS, "steps": NUM_STEPS, "device": device_name(torch.device("cpu"))}


def measured(judge: Judge, name: str, guidance: float | None = None) -> dict:
    """Return what a denoiser draws, measured."""
    drawer = load_drawer(name, NUM_STEPS, guidance)
    y = drawer.all_kinds(N)
    found = mean_and_spread([judge.measure(to_uint8(drawer.draw(N, seed, y)), y) for seed in range(SEEDS)])
    print(f"{name}: {found}", flush=True)
    return found


def measure_latents(judge: Judge) -> dict:
    """Measure both kinds of latent: what they keep, and what the denoisers draw there."""
    results = about() | {"training_steps": TRAINING_STEPS}
    results["error, channels weighed"] = final_error(folder_of("vector"))
    results["error, channels alike"] = final_error(folder_of("alike"))
    for latent in LATENTS:
        autoencoder = load_pretrained(folder_of(latent))
        size = {"weights": sum(p.numel() for p in autoencoder.parameters())}
        results[f"ceiling of the {latent}"] = mean_and_spread(judge.ceiling(N, autoencoder)) | size
        for name in DENOISERS:
            folder = folder_of(latent, name)
            size = {"weights": sum(p.numel() for p in load_pretrained(folder).parameters())}
            results[f"{name} on the {latent}"] = measured(judge, folder) | size
    return results


def measure_guidance(judge: Judge) -> dict:
    """Measure the published denoiser, guided."""
    return about() | {f"w {w:g}": measured(judge, "vector_denoiser", w) for w in SCALES}


def measure(what: str) -> None:
    """Measure one of `MEASURES` and write it into the card of the published denoiser."""
    publish("vector_denoiser", what, MEASURES[what](load_judge()))


MEASURES = {"latents": measure_latents, "guidance": measure_guidance}

if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    match sys.argv[1:]:
        case ["train", "alike"]:
            train_for(STEPS, CARDS["attention_autoencoder"], folder_of("alike"), alike=True)
        case ["train", "early"]:
            train_early()
        case ["train", latent] if latent in LATENTS:
            train_latent(latent)
        case ["measure", what] if what in MEASURES:
            measure(what)
        case _:
            print(__doc__)
