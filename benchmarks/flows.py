"""Train the network of lesson 09 that draws in one call, and measure networks that draw in few.

uv run python benchmarks/flows.py train            `shortcut_unet`, into runs/shortcut_unet; 6,000 steps
uv run python benchmarks/flows.py few [NAME ...]   1 to 8 steps, on the test images, into the card of `shortcut_unet`

Names: those of `FEW`.
"""

import os
import sys

import torch
from exhibits import compared, publish, train_card

from fmdiff_helpers.arguments import seeds_for
from fmdiff_helpers.cards import build, published_first, read_card
from fmdiff_helpers.data import describe_data
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.leaderboard import load_judge, measure_drawer, measure_floors
from fmdiff_helpers.recipes import start_from

N, STEPS = 1000, (1, 2, 4, 8)
# It learns jumps from `latent_unet`, led away as on the leaderboard; so it needs no guidance of its own.
TAUGHT = {"teacher": "latent_unet", "guide": "latent_unet_unit_1", "guidance": 2.5}
PROCESS = {"name": "flow.Shortcut", "T": 1000, "beta": "cosine_beta"} | TAUGHT
RECIPE = {"lr": 1e-3, "floor": 0.1, "steps": 6000, "every": 500}
# Name -> what `load_drawer` takes but for the steps. A step that is led away is two calls.
FEW = {
    "latent_unet": {"name": "latent_unet"},
    "latent_unet, led away": {"name": "latent_unet", "guidance": 2.5, "guide": "latent_unet_unit_1"},
    "shortcut_unet": {"name": "shortcut_unet"},
}


def train() -> None:
    """Train the network that jumps, from the weights of its teacher; its new weights begin at zero."""
    teacher = read_card(published_first("latent_unet"))
    card = {key: teacher[key] for key in ("kind", "network", "label_dropout", "autoencoder")}
    card |= {"arguments": teacher["arguments"] | {"spans": True}, "process": PROCESS, "recipe": RECIPE}
    card |= {"data": describe_data()}
    torch.manual_seed(0)
    model = build(card)
    start_from(model, "latent_unet")
    train_card(card, "runs/shortcut_unet", model)


def measure_few(names: list[str]) -> None:
    """Report on networks that draw in few steps, and on as many real images."""
    judge, seeds = load_judge(split="test"), seeds_for("test")
    publish("shortcut_unet", "few_steps", measure_floors(judge, N, seeds), **compared("test", N))
    for name in names:
        for num_steps in STEPS:
            found = measure_drawer(judge, load_drawer(**FEW[name], num_steps=num_steps), N, seeds)
            publish("shortcut_unet", "few_steps", {f"{name}: {num_steps}": found})


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    match sys.argv[1:]:
        case ["train"]:
            train()
        case ["few", *names] if set(names) <= set(FEW):
            measure_few(names or list(FEW))
        case _:
            print(__doc__)
