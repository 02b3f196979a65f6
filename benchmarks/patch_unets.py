"""Measure lesson 06's choices: how far to guide and when; and the parts of the network and of its training.

uv run python benchmarks/patch_unets.py train NAME   one network, 1000 steps; 10 minutes of a processor core
uv run python benchmarks/patch_unets.py choices      all of them, or those named, into the card of the published network
uv run python benchmarks/patch_unets.py guidance     the published one over w and ranges of steps, into the same card
uv run python benchmarks/patch_unets.py reported     what was chosen so, on the test images, into the same card

Names: those of `VARIANTS`.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from exhibits import compared, publish, train_card
from torch import Tensor

from fmdiff_helpers.arguments import seeds_for
from fmdiff_helpers.cards import build, build_process
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.data import describe_data, load_fashion_mnist, to_model, to_uint8
from fmdiff_helpers.drawing import Drawer, load_drawer
from fmdiff_helpers.leaderboard import load_judge
from fmdiff_helpers.metrics import Judge, mean_and_spread, spread_within
from fmdiff_helpers.recipes import CARDS, draw_with_u, training_parts
from fmdiff_helpers.run import device_name

STEPS, N, NUM_STEPS = 1000, 1000, 20
# Name -> what differs from `fmdiff train patch_unet`, by entry of its card.
VARIANTS = {
    "as published": {},
    "width 32": {"arguments": {"width": 32}},
    "patches of 4, width 96": {"arguments": {"patch_size": 4, "width": 96}},
    "a third level, 4 x 4": {"arguments": {"mults": [1, 2, 2]}},
    "no attention": {"arguments": {"attention": False}},
    "batch normalisation": {"arguments": {"norm": "batch"}},
    "predicts the noise": {"process": {"target": "eps"}},
    "100 linear steps": {"process": {"beta": "linear_beta", "T": 100}},
    "curriculum": {},
}
# w, and the steps it is kept to.
GUIDANCE = [(w, None) for w in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)]
GUIDANCE += [(3.0, interval) for interval in ((0, 99), (60, 139), (100, 199))]
REPORTED = [(2.0, None), (3.0, (60, 139))]


def folder_of(name: str) -> str:
    """Return where a variant is trained."""
    return f"runs/patch_unet_{name.replace(' ', '_').replace(',', '')}"


class Curriculum:
    """Draw steps as the original does: from the first few at the start of the training, from all of them at its end."""

    def __init__(self, draw: Callable, T: int):
        self.draw, self.T, self.step = draw, T, 0

    def __call__(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return what the usual draw does, with t spread over the steps reached so far."""
        t, *others = self.draw(x0, generator)
        reached = min(int(self.step / STEPS * self.T) + self.T // 10, self.T)
        self.step += 1
        return t * reached // self.T, *others


def card_of(name: str) -> dict:
    """Return the card of a variant: everything but its own choice is as published."""
    card = CARDS["patch_unet"]
    card = card | {entry: card[entry] | changes for entry, changes in VARIANTS[name].items()}
    return card | {"recipe": card["recipe"] | {"steps": STEPS}, "data": describe_data(), "choice": name}


def train_variant(name: str) -> None:
    """Train one variant; a curriculum cannot go on after a stop: it would begin again with the clean steps."""
    if name == "curriculum" and Path(folder_of(name), "checkpoint.pt").exists():
        raise SystemExit(f"{folder_of(name)} holds a training, whole or stopped; remove it to train anew")
    torch.set_num_threads(1)
    card = card_of(name)
    usual = partial(draw_with_u, build_process(card).draw)
    parts = {"draw": Curriculum(usual, card["process"]["T"])} if name == "curriculum" else {}
    train_card(card, folder_of(name), **parts)


def measure(judge: Judge, drawer: Drawer, seeds: range) -> dict:
    """Return mean and spread of all measures of a denoiser's samples, and of the seconds that drawing them takes."""
    y, measured = drawer.all_kinds(N), []
    for seed in seeds:
        start = time.monotonic()
        samples = drawer.draw(N, seed, y).clamp(-1, 1)
        seconds = time.monotonic() - start
        found = judge.measure(to_uint8(samples), y)
        measured.append(found | {"spread": spread_within(samples, y), "seconds": seconds})
    return mean_and_spread(measured)


def step_times(rounds: int = 5) -> dict[str, tuple[float, float]]:
    """Return how long a training step takes, relative to that of the network as published: mean and spread."""
    data, ratios = load_fashion_mnist("train"), []
    networks = {name: build(card_of(name)) for name in VARIANTS}
    parts = {name: training_parts(card_of(name), *data, torch.device("cpu")) for name in VARIANTS}
    x0, y, generator = to_model(data[0][:128]), data[1][:128], torch.Generator()
    for _ in range(rounds + 1):
        seconds = {}
        for name, (loss, draw, *_) in parts.items():
            start = time.monotonic()
            loss(networks[name], x0, y, *draw(x0, generator)).mean().backward()
            seconds[name] = time.monotonic() - start
        ratios.append({name: each / seconds["as published"] for name, each in seconds.items()})
    return mean_and_spread(ratios[1:])  # the first one warms up


def add(table: str, results: dict, split: str = "validation", **about: object) -> None:
    """Add results to a table of the published network's card."""
    about |= compared(split, N) | {"steps": NUM_STEPS, "device": device_name(torch.device("cpu"))}
    publish("patch_unet", table, results, **about)


def measure_choices(names: list[str]) -> None:
    """Measure variants that have been trained."""
    judge, times = load_judge(split="validation"), step_times()
    for name in names:
        weights = sum(p.numel() for p in load_pretrained(folder_of(name)).parameters())
        found = measure(judge, load_drawer(folder_of(name), NUM_STEPS), seeds_for("validation"))
        add("choices", {name: found | {"step_time": times[name], "weights": weights}}, training_steps=STEPS)


def measure_guidance(judge: Judge, split: str, rows: list, table: str) -> None:
    """Measure the published network for each w and range of steps."""
    for w, interval in rows:
        name = f"w {w:g}" + (f", steps {interval[0]} to {interval[1]}" if interval else "")
        drawer = load_drawer("patch_unet", NUM_STEPS, w, interval=interval)
        add(table, {name: measure(judge, drawer, seeds_for(split))}, split)


def measure_reported() -> None:
    """Measure on the test images what was chosen."""
    measure_guidance(load_judge(split="test"), "test", REPORTED, "reported")


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    match sys.argv[1:]:
        case ["train", name] if name in VARIANTS:
            train_variant(name)
        case ["choices", *names]:
            measure_choices(names or list(VARIANTS))
        case ["guidance"]:
            measure_guidance(load_judge(split="validation"), "validation", GUIDANCE, "guidance")
        case ["reported"]:
            measure_reported()
        case _:
            print(__doc__)
