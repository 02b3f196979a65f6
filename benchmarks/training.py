"""Compare training speeds in one run: each lesson's network and loop, and other people's, on one processor core.

uv run --group bench python benchmarks/training.py          writes benchmarks/training.json
uv run --group bench python benchmarks/training.py table    training.json as a table

Whole loops at batch 128, data, optimiser and averaged weights included, in turns, so that a slow minute of the machine
hits all; processor seconds, of which other work takes least. Peers get their batches by index, as we do, but for the
original of lesson 03, which loads its own. Floating-point operations are those that PyTorch counts in one step.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import about, command, middle, peak
from quality import OURS, PACKAGES, Ours, load_contender
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fmdiff_helpers.cards import latent_shape
from fmdiff_helpers.data import load_fashion_mnist
from fmdiff_helpers.recipes import CARDS, describe_autoencoder
from fmdiff_helpers.run import Run

ROUNDS, SECONDS = 3, 8
REFERENCE = "original of lesson 03"  # the Annotated Diffusion Model
PEERS = (REFERENCE, "diffusers UNet2DModel", "lucidrains U-Net", "smalldiffusion U-Net", "smalldiffusion DiT")


def our_run(name: str, images: Tensor, labels: Tensor) -> tuple[Run, tuple[Tensor, Tensor]]:
    """Return the training of a network of ours, in the latent of a published autoencoder if in any, and its data."""
    encoder = CARDS[name]["autoencoder"]
    changes = {"autoencoder": describe_autoencoder(encoder, latent_shape(CARDS[encoder]))} if encoder else {}
    return Ours(name, images, labels).begin(name, **changes)


def our_training(name: str, images: Tensor, labels: Tensor) -> tuple[Callable[[float], int], int]:
    """Return what trains a network of ours for so many seconds and says how many images it saw, and its weights."""
    run, data = our_run(name, images, labels)

    def train(seconds: float) -> int:
        end, seen = time.process_time() + seconds, 0
        while time.process_time() < end:
            run.train_step(*run.next_batch(*data))
            seen += run.recipe["batch_size"]
        return seen

    return train, sum(p.numel() for p in run.plain.parameters())


def measure() -> dict:
    """Measure all in turns and return the result."""
    images, labels = (part[:12_000] for part in load_fashion_mnist("train"))
    torch.optim.AdamW([torch.zeros(1)])  # the first in a process takes seconds, which should count for nobody
    train, rows = {}, {}
    for name in (*OURS, *PEERS):
        if name in OURS:
            train[name], weights = our_training(name, images, labels)
        else:
            contender = load_contender(name, images, labels)
            train[name] = contender.train
            weights = sum(p.numel() for network in contender.networks() for p in network.parameters())
        train[name](0.01)  # warm up
        with FlopCounterMode(display=False) as counter:
            seen = train[name](0.01)
        rows[name] = {"weights": weights, "gflop_per_image": round(counter.get_total_flops() / seen / 1e9, 4)}
    rounds, peaks = [], []
    for _ in range(ROUNDS):
        peaks.append(peak())
        speeds = {}
        for name, work in train.items():
            start = time.process_time()
            speeds[name] = work(SECONDS) / (time.process_time() - start)
        rounds.append(speeds)
        print(speeds, flush=True)
    for name, row in rows.items():
        row["images_per_second"] = middle([speeds[name] for speeds in rounds])
        row["times the reference"] = middle([speeds[name] / speeds[REFERENCE] for speeds in rounds])
        row["share of peak"] = round(row["images_per_second"]["median"] * row["gflop_per_image"] * 1e9 / max(peaks), 3)
    what = f"training images a second of one core, {ROUNDS} x {SECONDS} processor seconds in turns, batch 128"
    return {"what": what, **about(*PACKAGES[1:]), "peak_gflops": middle([p / 1e9 for p in peaks]), "rows": rows}


def table() -> str:
    """Return the result as a table, fastest first."""
    result = json.loads(Path(__file__).with_suffix(".json").read_text())
    lines = ["| network | weights | images / s | times the Annotated Diffusion Model | GFLOP / image | share of peak |"]
    lines.append("|---" * 6 + "|")
    for name, row in sorted(result["rows"].items(), key=lambda item: -item[1]["images_per_second"]["median"]):
        speed, ratio = row["images_per_second"], row["times the reference"]
        cells = [name, f"{row['weights'] / 1e6:.2f} M", f"{speed['median']:.0f}"]
        cells += [f"{ratio['median']:.1f} ({ratio['lowest']:.1f} to {ratio['highest']:.1f})"]
        cells += [f"{row['gflop_per_image']:.3f}", f"{100 * row['share of peak']:.0f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    command(__file__, __doc__, measure, table)
