"""Compare training speeds in one run: lesson 03's network and loop against the Annotated Diffusion Model's.

uv run python benchmarks/training.py [THREADS]      writes benchmarks/training.json

Whole loops, data loading included, at batch 128, in turns, so that a slow minute of the machine hits both.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from original_unet import BATCH_SIZE, OriginalUNet, train_original
from torch import Tensor

from fmdiff_helpers.checkpoints import build
from fmdiff_helpers.data import load_fashion_mnist
from fmdiff_helpers.recipes import CARDS, task
from fmdiff_helpers.train import Run, check_recipe

ROUNDS, SECONDS = 3, 12


def our_steps(images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Return a function that takes one training step of lesson 03's network."""
    card = CARDS["unet"]
    card = card | {"recipe": check_recipe(card["recipe"] | {"steps": 100_000, "batch_size": BATCH_SIZE}, len(images))}
    loss, draw, data, _ = task(card, images, labels, torch.device("cpu"))
    run = Run(build(card), loss, draw, card)
    return lambda: run.train_step(*run.next_batch(*data))


def speed(step: Callable[[], object]) -> float:
    """Return images a second over at least `SECONDS` seconds."""
    start, count = time.monotonic(), 0
    while time.monotonic() - start < SECONDS:
        step()
        count += 1
    return count * BATCH_SIZE / (time.monotonic() - start)


def main() -> None:
    """Measure both in turns and write the result with machine and versions."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else os.cpu_count())
    images, labels = load_fashion_mnist("train")
    network = OriginalUNet()
    assert sum(p.numel() for p in network.parameters()) == 2_996_315  # as the original's
    original = train_original(network, images)
    steps = {"ours": our_steps(images, labels), "original": lambda: next(original)}
    for step in steps.values():
        step()  # warm up
    rounds = [{name: speed(step) for name, step in steps.items()} for _ in range(ROUNDS)]
    ratios = sorted(r["ours"] / r["original"] for r in rounds)
    result = {
        "what": f"training images a second, whole loops at batch {BATCH_SIZE}, {ROUNDS} x {SECONDS} s in turns",
        "machine": f"{os.cpu_count()} x {platform.machine()}, {platform.system()}, {torch.get_num_threads()} threads",
        "torch": version("torch"),
        "images_per_second": [{name: round(value, 1) for name, value in r.items()} for r in rounds],
        "ratio": {
            "median": round(ratios[ROUNDS // 2], 2),
            "lowest": round(ratios[0], 2),
            "highest": round(ratios[-1], 2),
        },
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
