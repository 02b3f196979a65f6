"""Measure networks that draw in few calls, and what lesson 09 asks about them.

uv run python benchmarks/flows.py train NAME       `reflow_unet` or another of `trainings`, into runs/
uv run python benchmarks/flows.py few [NAME ...]   1 to 8 steps, on the test images, into the card of `shortcut_unet`
uv run python benchmarks/flows.py times            three short trainings, on the validation images, into the same card

`shortcut_unet` itself is trained by `fmdiff train shortcut_unet`. Names of `few`: those of `FEW`.
"""

import os
import sys
from functools import partial

import torch
from exhibits import compared, publish, train_card

from fmdiff_helpers.arguments import seeds_for
from fmdiff_helpers.cards import latent_shape, read_card
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.data import describe_data
from fmdiff_helpers.drawing import Drawer, drawer_of, load_drawer
from fmdiff_helpers.leaderboard import load_judge, measure_drawer, measure_floors
from fmdiff_helpers.recipes import CARDS, describe_autoencoder, first_weights, profiles
from fmdiff_helpers.run import DEFAULTS

N, STEPS = 1000, (1, 2, 4, 8)
# Name -> the times that a flow is trained on: arguments of its process.
TIMES = {"uniform": {}, "logit-normal": {"times": "logit_normal"}, "shifted, c = 2": {"shift": 2.0}}
TIMES_STEPS, DRAWING_STEPS = 1500, 10


def trainings() -> dict[str, dict]:
    """Return the cards of all trainings of this benchmark, by name."""
    latent, shortcut = CARDS["latent_unet"], CARDS["shortcut_unet"]
    alone = {key: value for key, value in shortcut["process"].items() if key not in ("guide", "guidance")}
    full = shortcut["recipe"] | profiles("shortcut_unet")["full"]
    cards = {
        "reflow_unet": latent | {"process": alone | {"name": "flow.Reflow"}, "recipe": full},
    }
    short = latent["recipe"] | {"steps": TIMES_STEPS, "every": TIMES_STEPS}
    for name, times in TIMES.items():
        cards[name] = latent | {"process": {"name": "flow.Flow", "T": 1000} | times, "recipe": short}
    return cards


def folder_of(name: str) -> str:
    """Return where a training of this benchmark is."""
    return f"runs/flows_{name.replace(',', '').replace(' ', '_')}"


def train(name: str) -> None:
    """Train a network of `trainings`, or go on from its checkpoint."""
    card = trainings()[name] | {"data": describe_data()}
    card |= {"autoencoder": describe_autoencoder("vae", latent_shape(CARDS["vae"]))}
    card |= {"recipe": DEFAULTS | card["recipe"]}
    train_card(card, folder_of(name), first_weights(card))


def as_flow(num_steps: int) -> Drawer:
    """Return `latent_unet` as it draws when it is converted to a flow, by Euler's method."""
    process = {"name": "flow.Flow", "T": 1000, "beta": "cosine_beta"}
    card = read_card("latent_unet") | {"process": process}
    return drawer_of(card, load_pretrained("latent_unet"), num_steps, "cpu")


# Name -> what returns its drawer for a number of steps. A step that is led away is two calls.
FEW = {
    "latent_unet": partial(load_drawer, "latent_unet"),
    "latent_unet, led away": partial(load_drawer, "latent_unet", guidance=2.5, guide="latent_unet_unit_1"),
    "latent_unet, as a flow": as_flow,
    "reflow_unet": partial(load_drawer, "reflow_unet"),
    "shortcut_unet": partial(load_drawer, "shortcut_unet"),
}


def measure_few(names: list[str]) -> None:
    """Report on networks that draw in few steps, and on as many real images."""
    judge, seeds = load_judge(split="test"), seeds_for("test")
    publish("shortcut_unet", "few_steps", measure_floors(judge, N, seeds), **compared("test", N))
    for name in names:
        for num_steps in STEPS:
            found = measure_drawer(judge, FEW[name](num_steps=num_steps), N, seeds)
            publish("shortcut_unet", "few_steps", {f"{name}: {num_steps}": found})


def measure_times() -> None:
    """Train flows that differ in the times of the training alone, and compare what they draw."""
    judge, seeds = load_judge(split="validation"), seeds_for("validation")
    about = compared("validation", N) | {"training_steps": TIMES_STEPS, "steps": DRAWING_STEPS}
    for name in TIMES:
        train(name)
        found = measure_drawer(judge, load_drawer(folder_of(name), DRAWING_STEPS), N, seeds)
        publish("shortcut_unet", "times", {name: found}, **about)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    match sys.argv[1:]:
        case ["train", name] if name in trainings():
            train(name)
        case ["few", *names] if set(names) <= set(FEW):
            measure_few(names or list(FEW))
        case ["times"]:
            measure_times()
        case _:
            print(__doc__)
