"""Measure what five bugs cost lesson 03's network, and the Annotated Diffusion Model as it was.

uv run python benchmarks/bugs.py train linear       the published network, trained on with T = 200 linear betas
uv run python benchmarks/bugs.py train flipped      the same with pictures flipped at random, left to right
uv run python benchmarks/bugs.py original SECONDS   the Annotated Diffusion Model, for so many processor seconds
uv run python benchmarks/bugs.py measure NAME       one exhibit, into the card of the published network

Both trainings take 800 more steps than the published network had: what they lose is the bug's.
"""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from exhibits import compared, publish
from original_unet import OriginalUNet, train_original
from torch import nn

from fmdiff_helpers.arguments import seeds_for
from fmdiff_helpers.batching import in_batches
from fmdiff_helpers.cards import KEYS, build_process, read_card
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.data import NUM_VALIDATION, describe_data, load_fashion_mnist, to_uint8
from fmdiff_helpers.leaderboard import load_judge
from fmdiff_helpers.metrics import mean_and_spread
from fmdiff_helpers.recipes import training_parts
from fmdiff_helpers.samplers import sample_ddpm
from fmdiff_helpers.schedules import Schedule, cosine_beta, linear_beta
from fmdiff_helpers.train import train

N = 200
ORIGINAL = Path("runs/original.pt")


def train_with_bug(bug: str) -> None:
    """Train the published network on with a bug, into runs/unet_BUG."""
    images, labels = load_fashion_mnist("train")
    card = {key: read_card("unet")[key] for key in KEYS}
    card |= {"recipe": {"steps": 800, "lr": 1e-3}, "start": "unet", "bug": bug, "data": describe_data()}
    if bug == "linear":
        card["process"]["beta"] = "linear_beta"
    else:  # each picture and its mirror image
        images, labels = torch.cat([images.flip(-1), images]), torch.cat([labels, labels])
    model = load_pretrained("unet").requires_grad_(True)
    train(model, *training_parts(card, images, labels, torch.device("cpu")), f"runs/unet_{bug}", card)


def train_as_the_original(seconds: float) -> None:
    """Train the Annotated Diffusion Model for that many seconds of processor time, into `ORIGINAL`."""
    model = OriginalUNet()
    images = load_fashion_mnist("train")[0][:-NUM_VALIDATION]
    start = time.process_time()
    steps = train_original(model, images)
    seen = next(steps)
    while time.process_time() - start < seconds:
        seen = next(steps)
    ORIGINAL.parent.mkdir(exist_ok=True)
    torch.save({"model": model.state_dict(), "images": seen, "seconds": seconds}, ORIGINAL)


def averaged_table(old: Schedule, new: Schedule, updates: int = 2000, decay: float = 0.999) -> Schedule:
    """Return what an average over buffers makes of alpha_bar when a run goes on with another schedule."""
    kept = decay**updates
    alpha_bar = kept * old.alpha_bar + (1 - kept) * new.alpha_bar
    return Schedule(1 - alpha_bar / torch.cat([torch.ones(1, dtype=alpha_bar.dtype), alpha_bar[:-1]]))


def late(model: nn.Module, T: int) -> Callable:
    """Return the network as it answers when it is told t + 1, the papers' count from 1."""
    return lambda x, t, y=None: model(x, (t + 1).clamp(max=T - 1), y)


def exhibits() -> dict:
    """Return, by name, how to make (model, schedule, clip)."""
    unet, linear = load_pretrained("unet"), Schedule(linear_beta(200))
    cosine = build_process(read_card("unet")).schedule

    def original() -> tuple:
        model = OriginalUNet().to(memory_format=torch.channels_last)  # a third faster on a CPU, the same numbers
        model.load_state_dict(torch.load(ORIGINAL, weights_only=True)["model"])
        return model.eval(), linear, math.inf

    return {
        "right": lambda: (unet, cosine, 1.0),
        "linear": lambda: (load_pretrained("unet_linear"), linear, 1.0),
        "unclipped": lambda: (unet, cosine, math.inf),
        "flipped": lambda: (load_pretrained("unet_flipped"), cosine, 1.0),
        "averaged buffers": lambda: (unet, averaged_table(linear, Schedule(cosine_beta(200))), 1.0),
        "off by one": lambda: (late(unet, cosine.T), cosine, 1.0),
        "original": original,
    }


def measure(name: str) -> None:
    """Measure one exhibit and add it to the results."""
    model, schedule, clip = exhibits()[name]()
    judge, seeds = load_judge(split="test"), seeds_for("test")
    measured = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn((N, 1, 28, 28), generator=generator)
        samples = in_batches(
            lambda part, g=generator: sample_ddpm(model, part, schedule, g, clip=clip), x, batch_size=125
        )
        measured.append(judge.measure(to_uint8(samples)))
    found = {"floor": mean_and_spread(judge.floor(N, seeds)), name: mean_and_spread(measured)}
    publish("unet", "exhibits", found, **compared("test", N), device="cpu")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["train", "linear" | "flipped" as bug]:
            train_with_bug(bug)
        case ["original", seconds]:
            train_as_the_original(float(seconds))
        case ["measure", name] if name in exhibits():
            measure(name)
        case _:
            print(__doc__, "\nexhibits:", ", ".join(exhibits()))
