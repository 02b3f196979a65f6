"""Measure lesson 07's choice: 64 numbers with places or without, and which network draws them.

uv run python benchmarks/vectors.py train vector       an autoencoder and two denoisers of its latents; or `train map`
uv run python benchmarks/vectors.py train alike        the autoencoder without places, all its channels weighed alike
uv run python benchmarks/vectors.py train early        the published denoiser, its weights kept early on, too
uv run python benchmarks/vectors.py measure latents    both kinds, into the card of the published denoiser
uv run python benchmarks/vectors.py measure guidance   the published denoiser, guided
uv run python benchmarks/vectors.py measure reported   what was chosen so, on the test images
"""

import os
import sys
from pathlib import Path

import torch
from exhibits import compared, publish, train_card
from torch import nn

from fmdiff_helpers.arguments import seeds_for
from fmdiff_helpers.cards import build, read_card
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.data import describe_data, to_uint8
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.leaderboard import kinds_of, load_judge
from fmdiff_helpers.metrics import Judge, mean_and_spread
from fmdiff_helpers.models.attention_autoencoder import ChannelAttention
from fmdiff_helpers.recipes import CARDS, describe_autoencoder, profiles, train_network
from fmdiff_helpers.results import Results
from fmdiff_helpers.run import device_name

N, NUM_STEPS, TRAINING_STEPS = 1000, 50, 3000
SCALES, REPORTED = (1.0, 1.5, 2.0, 3.0), (1.5, 2.0)
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


def about(split: str) -> dict:
    """Return how everything here is measured."""
    return compared(split, N) | {"steps": NUM_STEPS, "device": device_name(torch.device("cpu"))}


def measured(judge: Judge, split: str, name: str, guidance: float | None = None) -> dict:
    """Return what a denoiser draws, measured."""
    drawer = load_drawer(name, NUM_STEPS, guidance)
    y = drawer.all_kinds(N)
    found = mean_and_spread([judge.measure(to_uint8(drawer.draw(N, seed, y)), y) for seed in seeds_for(split)])
    print(f"{name}: {found}", flush=True)
    return found


def measure_latents() -> dict:
    """Measure both kinds of latent: what they keep, and what the denoisers draw there."""
    judge, results = load_judge(split="validation"), about("validation") | {"training_steps": TRAINING_STEPS}
    results["error, channels weighed"] = final_error(folder_of("vector"))
    results["error, channels alike"] = final_error(folder_of("alike"))
    for latent in LATENTS:
        autoencoder = load_pretrained(folder_of(latent))
        size = {"weights": sum(p.numel() for p in autoencoder.parameters())}
        limit = judge.limit(N, autoencoder, seeds_for("validation"), kinds_of(judge))
        results[f"limit of the {latent}"] = mean_and_spread(limit) | size
        for name in DENOISERS:
            folder = folder_of(latent, name)
            size = {"weights": sum(p.numel() for p in load_pretrained(folder).parameters())}
            results[f"{name} on the {latent}"] = measured(judge, "validation", folder) | size
    return results


def measure_guidance(judge: Judge, split: str, scales: tuple[float, ...]) -> dict:
    """Measure the published denoiser, guided."""
    return about(split) | {f"w {w:g}": measured(judge, split, "vector_denoiser", w) for w in scales}


def measure_scales() -> dict:
    """Measure the published denoiser over w."""
    return measure_guidance(load_judge(split="validation"), "validation", SCALES)


def measure_reported() -> dict:
    """Measure on the test images what was chosen."""
    return measure_guidance(load_judge(split="test"), "test", REPORTED)


MEASURES = {"latents": measure_latents, "guidance": measure_scales, "reported": measure_reported}

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
            publish("vector_denoiser", what, MEASURES[what]())
        case _:
            print(__doc__)
