"""Measure how fast each published network draws, against the number of steps, beside the Annotated Diffusion Model.

uv run python benchmarks/sampling.py          writes benchmarks/sampling.json
uv run python benchmarks/sampling.py table    the tables of the README: images a second, and seconds to a given FD

Processor seconds of one core, 100 images at once, in turns. The Annotated Diffusion Model's network is untrained, which
is as fast, and is timed for 10 of its 200 steps. FDs are those that data/leaderboard.json holds.
"""

import json
import time
from functools import partial
from pathlib import Path

import torch
from machine import about, command, middle
from original_unet import OriginalUNet

from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.leaderboard import read_leaderboard
from fmdiff_helpers.samplers import sample_ddpm
from fmdiff_helpers.schedules import Schedule, linear_beta

ROUNDS, N = 3, 100
STEPS = (5, 10, 20, 50)
# Network -> what `load_drawer` takes but for the steps; as in lesson 08's figure of FD against steps.
NETWORKS = {
    "transformer": {"name": "transformer"},
    "unet": {"name": "unet"},
    "latent_unet": {"name": "latent_unet"},
    "latent_unet, led away": {"name": "latent_unet", "guidance": 2.5, "guide": "latent_unet_unit_1"},
    "patch_unet": {"name": "patch_unet"},
    "patch_unet, w = 1.5": {"name": "patch_unet", "guidance": 1.5},
    "vector_denoiser": {"name": "vector_denoiser"},
    "vector_denoiser, w = 1.5": {"name": "vector_denoiser", "guidance": 1.5},
}
REFERENCE = "Annotated Diffusion Model, 200 steps"
GOALS = (5.0, 3.0, 2.0, 1.0, 0.5)


def measure() -> dict:
    """Measure all in turns and return the result."""
    network, schedule = OriginalUNet().requires_grad_(False), Schedule(linear_beta(200))
    x = torch.randn(N, 1, 28, 28)
    jobs = {REFERENCE: (lambda: sample_ddpm(network, x, schedule, num_steps=10), 20.0)}
    for name, options in NETWORKS.items():
        for steps in STEPS:
            drawer = load_drawer(**options, num_steps=steps)
            jobs[f"{name}: {steps}"] = (partial(drawer.draw, N, 0, drawer.all_kinds(N)), 1.0)
    rounds = []
    for _ in range(ROUNDS):
        speeds = {}
        for name, (work, times) in jobs.items():
            start = time.process_time()
            work()
            speeds[name] = N / (times * (time.process_time() - start))
        rounds.append(speeds)
    rows = {
        name: {
            "images_per_second": middle([speeds[name] for speeds in rounds]),
            "times the reference": middle([speeds[name] / speeds[REFERENCE] for speeds in rounds]),
        }
        for name in jobs
    }
    return {"what": f"images a second of one core, {N} at once, {ROUNDS} rounds in turns", **about(), "rows": rows}


def stored_fd() -> dict[str, float]:
    """Return the FD of each network and number of steps, of 1,000 images, mean over three seeds."""
    board, found = read_leaderboard(), {}
    for row in board["board"]["rows"].values():
        for name, options in NETWORKS.items():
            if options == {key: value for key, value in row.items() if key not in ("num_steps", "measures")}:
                found[f"{name}: {row['num_steps']}"] = row["measures"]["fd"][0]
    return found | {name: row["fd"][0] for name, row in board["steps"]["settings"].items()}


def table() -> str:
    """Return images a second and FD by steps, and the quickest way to each FD."""
    rows, fd = json.loads(Path(__file__).with_suffix(".json").read_text())["rows"], stored_fd()
    lines = ["| images a second (FD) | " + " | ".join(f"{steps} steps" for steps in STEPS) + " |"]
    lines.append("|---" * (len(STEPS) + 1) + "|")
    for name in NETWORKS:
        cells = []
        for steps in STEPS:
            key = f"{name}: {steps}"
            speed = rows[key]["images_per_second"]["median"]
            cells.append(f"{speed:.0f} ({fd[key]:.2g})" if key in fd else f"{speed:.0f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    slow = rows[REFERENCE]["images_per_second"]["median"]
    lines.append(f"| {REFERENCE} | {slow:.2f} |" + " |" * (len(STEPS) - 1))
    lines += [
        "",
        "| FD at most | quickest | seconds for 1,000 images | times the Annotated Diffusion Model |",
        "|---" * 4 + "|",
    ]
    for goal in GOALS:
        ways = [key for key in fd if fd[key] <= goal and key in rows]
        if ways:
            best = max(ways, key=lambda key: rows[key]["images_per_second"]["median"])
            ratio, speed = rows[best]["times the reference"]["median"], rows[best]["images_per_second"]["median"]
            lines.append(f"| {goal:g} | {best} steps (FD {fd[best]:.2g}) | {1000 / speed:.1f} | {ratio:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    command(__file__, __doc__, measure, table)
