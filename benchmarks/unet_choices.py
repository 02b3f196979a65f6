"""Measure lesson 03's choices: what the scales of the schedule gain, and what longer trainings would.

uv run python benchmarks/unet_choices.py train NAME     one network; 6 to 12 minutes of a core; of `LONGER` 55 to 70
uv run python benchmarks/unet_choices.py measure NAME   on the validation images, into the card of the published network

Names: those of `SHORT` and `LONGER`.
"""

import sys

import torch
from exhibits import compared, publish, train_card

from fmdiff_helpers.arguments import seeds_for
from fmdiff_helpers.cards import read_card
from fmdiff_helpers.data import describe_data
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.leaderboard import load_judge, measure_drawer
from fmdiff_helpers.recipes import CARDS

N = 1000
ARGUMENTS, RECIPE = CARDS["unet"]["arguments"], CARDS["unet"]["recipe"]
# Name -> what its card changes. The short trainings compare the network with and without the scales.
SHORT = {
    "as published": {"recipe": RECIPE | {"steps": 1500}},
    "without the scales": {
        "recipe": RECIPE | {"steps": 1500},
        "arguments": {key: value for key, value in ARGUMENTS.items() if key != "T"},
    },
}
# What more training would bring, beside `unet` and `unet, noisy` (200 steps) of the leaderboard, which had 8,000 steps.
LONGER = {
    "14,000 steps": {"recipe": RECIPE | {"steps": 14_000, "floor": 0.1, "ema_decay": 0.9995}},
    "36 channels, 12,000 steps": {"recipe": RECIPE | {"steps": 12_000}, "arguments": ARGUMENTS | {"width": 36}},
}
VARIANTS = SHORT | LONGER
DRAWN = {"DDPM": None, "DDIM": 50}  # in how many steps; None is all of them


def folder_of(name: str) -> str:
    """Return where a variant is trained."""
    return f"runs/unet_{name.replace(',', '').replace(' ', '_')}"


def train_variant(name: str) -> None:
    """Train one variant."""
    train_card(CARDS["unet"] | {"data": describe_data()} | VARIANTS[name], folder_of(name))


def measure(name: str) -> None:
    """Measure one variant by both samplers; a short training draws with all steps of DDPM for one seed only."""
    judge, seeds = load_judge(split="validation"), seeds_for("validation")
    trained, table = read_card(folder_of(name)), "longer" if name in LONGER else "choices"
    says = {"training_steps": trained["recipe"]["steps"], "loss": trained["history"][-1]["validation"]["loss"]}
    for sampler, num_steps in DRAWN.items():
        some = seeds if num_steps or name in LONGER else seeds[:1]
        found = measure_drawer(judge, load_drawer(folder_of(name), num_steps), N, some)
        found |= says | {"seeds": len(some)}
        publish("unet", table, {f"{name}, {sampler}": found}, **compared("validation", N))


if __name__ == "__main__":
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case ["train", name] if name in VARIANTS:
            train_variant(name)
        case ["measure", name] if name in VARIANTS:
            measure(name)
        case _:
            print(__doc__)
