"""Measure lesson 03's choice: what it gains that the network knows the scales of its schedule.

uv run python benchmarks/unet_choices.py train NAME     one network, 1500 steps; 12 minutes of a processor core
uv run python benchmarks/unet_choices.py measure NAME   on the validation images, into the card of the published network

Names: those of `VARIANTS`.
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

STEPS, N = 1500, 1000
VARIANTS = {"as published": CARDS["unet"]["arguments"]}  # name -> the arguments of the network
VARIANTS["without the scales"] = {key: value for key, value in VARIANTS["as published"].items() if key != "T"}
DRAWN = {"DDPM": None, "DDIM": 50}  # in how many steps; None is all of them


def folder_of(name: str) -> str:
    """Return where a variant is trained."""
    return f"runs/unet_{name.replace(' ', '_')}"


def train_variant(name: str) -> None:
    """Train one variant."""
    card = CARDS["unet"] | {"arguments": VARIANTS[name], "data": describe_data()}
    train_card(card | {"recipe": card["recipe"] | {"steps": STEPS}}, folder_of(name))


def measure(name: str) -> None:
    """Measure one variant, drawing by both samplers; all steps of DDPM with one seed only, because they take long."""
    judge, seeds = load_judge(split="validation"), seeds_for("validation")
    loss = read_card(folder_of(name))["history"][-1]["validation"]["loss"]
    for sampler, num_steps in DRAWN.items():
        some = seeds if num_steps else seeds[:1]
        found = measure_drawer(judge, load_drawer(folder_of(name), num_steps), N, some)
        about = compared("validation", N) | {"training_steps": STEPS}
        publish("unet", "choices", {f"{name}, {sampler}": found | {"seeds": len(some), "loss": loss}}, **about)


if __name__ == "__main__":
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case ["train", name] if name in VARIANTS:
            train_variant(name)
        case ["measure", name] if name in VARIANTS:
            measure(name)
        case _:
            print(__doc__)
