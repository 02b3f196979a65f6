"""Measure how far trainings of one recipe differ: the same network three times, with other first weights and batches.

uv run python benchmarks/spread.py train NAME SEED   one training, into runs/spread
uv run python benchmarks/spread.py measure NAME      all of them on the validation images, into the card of the network

Names: those of `LENGTHS`. Lessons 05 and 06 compare variants that were trained for these numbers of steps.
"""

import sys
from pathlib import Path

import torch
from exhibits import compared, publish

from fmdiff_helpers.arguments import seeds_for
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.leaderboard import load_judge, measure_drawer
from fmdiff_helpers.metrics import mean_and_spread
from fmdiff_helpers.recipes import train_network

TRAININGS, N = 3, 1000
LENGTHS = {"latent_unet": (1500, 50), "patch_unet": (1000, 20)}  # network -> its training steps, and those of drawing


def folder_of(name: str, seed: int) -> Path:
    """Return where the training with this seed is."""
    return Path(f"runs/spread/{name}_{seed}")


def measure(name: str) -> None:
    """Measure each training by its mean over three sets of images; and mean and spread over the trainings."""
    judge, seeds, (training_steps, num_steps) = load_judge(split="validation"), seeds_for("validation"), LENGTHS[name]
    trainings = []
    for seed in range(TRAININGS):
        found = measure_drawer(judge, load_drawer(folder_of(name, seed), num_steps), N, seeds)
        trainings.append({measure: mean for measure, (mean, _) in found.items() if measure != "seconds"})
    about = compared("validation", N) | {"training_steps": training_steps, "steps": num_steps}
    publish(name, "spread", mean_and_spread(trainings), trainings=trainings, **about)


if __name__ == "__main__":
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case ["train", name, seed] if name in LENGTHS and seed in map(str, range(TRAININGS)):
            train_network(name, folder_of(name, int(seed)), steps=LENGTHS[name][0], seed=int(seed))
        case ["measure", name] if name in LENGTHS:
            measure(name)
        case _:
            print(__doc__)
