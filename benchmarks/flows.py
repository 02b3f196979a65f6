"""Measure what lesson 09 shows: networks that draw in few calls.

uv run python benchmarks/flows.py few [NAME ...]   1 to 8 steps, on the test images, into the card of `meanflow_unet`

Names: those of `FEW`.
"""

import os
import sys

import torch
from exhibits import compared, publish

from fmdiff_helpers.arguments import seeds_for
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.leaderboard import load_judge, measure_drawer, measure_floors

N, STEPS = 1000, (1, 2, 4, 8)
# Name -> what `load_drawer` takes but for the steps. A step that is led away is two calls.
FEW = {
    "latent_unet": {"name": "latent_unet"},
    "latent_unet, led away": {"name": "latent_unet", "guidance": 2.5, "guide": "latent_unet_unit_1"},
    "meanflow_unet": {"name": "meanflow_unet"},
}


def measure_few(names: list[str]) -> None:
    """Report on networks that draw in few steps, and on as many real images."""
    judge, seeds = load_judge(split="test"), seeds_for("test")
    publish("meanflow_unet", "few_steps", measure_floors(judge, N, seeds), **compared("test", N))
    for name in names:
        for num_steps in STEPS:
            found = measure_drawer(judge, load_drawer(**FEW[name], num_steps=num_steps), N, seeds)
            publish("meanflow_unet", "few_steps", {f"{name}: {num_steps}": found})


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    match sys.argv[1:]:
        case ["few", *names] if set(names) <= set(FEW):
            measure_few(names or list(FEW))
        case _:
            print(__doc__)
