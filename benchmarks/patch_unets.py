"""Measure lesson 06's choices: how far to guide and when; and the parts of the network and of its training.

uv run python benchmarks/patch_unets.py train NAME   one network, 1000 steps; 10 minutes of a processor core
uv run python benchmarks/patch_unets.py choices      all of them, or those named, into the card of the published network
uv run python benchmarks/patch_unets.py guidance     the published one over w and ranges of steps, into the same card

Names: those of `VARIANTS`.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fmdiff_helpers.checkpoints import PUBLISHED, build, read_card
from fmdiff_helpers.data import describe_data, load_fashion_mnist, to_model, to_uint8
from fmdiff_helpers.guidance import guided
from fmdiff_helpers.leaderboard import load_judge
from fmdiff_helpers.metrics import Judge, mean_and_spread, spread_within
from fmdiff_helpers.recipes import CARDS, load_denoiser, task
from fmdiff_helpers.samplers import generate
from fmdiff_helpers.schedules import Schedule
from fmdiff_helpers.train import train

STEPS, N, SEEDS, NUM_STEPS = 1000, 1000, 3, 20
CARD = PUBLISHED / "patch_unet.json"
# Name -> what differs from `fmdiff train patch_unet`, by entry of its card.
VARIANTS = {
    "as published": {},
    "width 32": {"arguments": {"width": 32}},
    "patches of 4, width 96": {"arguments": {"patch_size": 4, "width": 96}},
    "a third level, 4 x 4": {"arguments": {"mults": [1, 2, 2]}},
    "no attention": {"arguments": {"attention": False}},
    "batch normalisation": {"arguments": {"norm": "batch"}},
    "dropout 0.1": {"arguments": {"dropout": 0.1}},
    "predicts the noise": {"target": "eps"},
    "100 linear steps": {"schedule": {"beta": "linear_beta", "T": 100}},
    "curriculum": {},
}
# w, and the steps it is kept to; and one w with more images and steps, of one seed.
GUIDANCE = [(w, None) for w in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)]
GUIDANCE += [(3.0, interval) for interval in ((0, 99), (60, 139), (100, 199))]
MORE_W, MORE = 2.0, {"n": 10 * N, "num_steps": 50, "seeds": 1}


def folder_of(name: str) -> str:
    """Return where a variant is trained."""
    return f"runs/patch_unet_{name.replace(' ', '_').replace(',', '')}"


class Curriculum:
    """Draw steps as the original does: from the first few at the start of the training, from all of them at its end."""

    def __init__(self, draw: partial, T: int):
        self.draw, self.T, self.step = draw, T, 0

    def __call__(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return what the usual draw does, with t spread over the steps reached so far."""
        t, *others = self.draw(x0, generator)
        reached = min(int(self.step / STEPS * self.T) + self.T // 10, self.T)
        self.step += 1
        return t * reached // self.T, *others


def card_of(name: str) -> dict:
    """Return the card of a variant: everything but its own choice is as published."""
    card, changes = CARDS["patch_unet"], VARIANTS[name]
    card = card | changes | {"arguments": card["arguments"] | changes.get("arguments", {})}
    return card | {"recipe": card["recipe"] | {"steps": STEPS}, "data": describe_data(), "choice": name}


def train_variant(name: str) -> None:
    """Train one variant."""
    torch.set_num_threads(1)
    card = card_of(name)
    torch.manual_seed(0)
    model = build(card)
    loss, draw, data, validate = task(card, *load_fashion_mnist("train"), torch.device("cpu"))
    draw = Curriculum(draw, card["schedule"]["T"]) if name == "curriculum" else draw
    train(model, loss, draw, data, validate, folder_of(name), card)


def measure(
    judge: Judge, model: Callable, schedule: Schedule, n: int = N, num_steps: int = NUM_STEPS, seeds: int = SEEDS
) -> dict:
    """Return mean and spread of all measures of a denoiser's samples, and of the seconds that drawing them takes."""
    y, measured = torch.arange(n) % 10, []
    for seed in range(seeds):
        start = time.monotonic()
        samples = generate(model, schedule, n, seed, num_steps, y).clamp(-1, 1)
        seconds = time.monotonic() - start
        found = judge.measure(to_uint8(samples), y)
        measured.append(found | {"spread": spread_within(samples, y), "seconds": seconds})
    return mean_and_spread(measured)


def step_times(rounds: int = 5) -> dict[str, tuple[float, float]]:
    """Return how long a training step takes, relative to that of the network as published: mean and spread."""
    data, ratios = load_fashion_mnist("train"), []
    networks = {name: build(card_of(name)) for name in VARIANTS}
    tasks = {name: task(card_of(name), *data, torch.device("cpu"))[:2] for name in VARIANTS}
    x0, y, generator = to_model(data[0][:128]), data[1][:128], torch.Generator()
    for _ in range(rounds + 1):
        seconds = {}
        for name, (loss, draw) in tasks.items():
            start = time.monotonic()
            loss(networks[name], x0, y, *draw(x0, generator)).mean().backward()
            seconds[name] = time.monotonic() - start
        ratios.append({name: each / seconds["as published"] for name, each in seconds.items()})
    return mean_and_spread(ratios[1:])  # the first one warms up


def publish(table: str, results: dict, **about: object) -> None:
    """Add results to a table of the published network's card."""
    card = read_card("patch_unet")
    about |= {"n": N, "seeds": SEEDS, "steps": NUM_STEPS}
    about["device"] = f"cpu, {torch.get_num_threads()} threads, {platform.machine()}"
    card[table] = card.get(table, {}) | about | results
    CARD.write_text(json.dumps(card, indent=1) + "\n")
    print(results, flush=True)


def measure_choices(names: list[str]) -> None:
    """Measure variants that have been trained."""
    judge, times = load_judge(), step_times()
    for name in names:
        card, (model, schedule) = read_card(folder_of(name)), load_denoiser(folder_of(name))
        about = {"step_time": times[name], "weights": sum(p.numel() for p in build(card).parameters())}
        publish("choices", {name: measure(judge, model, schedule) | about}, training_steps=STEPS)


def measure_guidance() -> None:
    """Measure the published network over w and ranges of steps; and once more with more images."""
    judge, (model, schedule) = load_judge(), load_denoiser("patch_unet")
    for w, interval in GUIDANCE:
        name = f"w {w:g}" + (f", steps {interval[0]} to {interval[1]}" if interval else "")
        publish("guidance", {name: measure(judge, guided(model, w, interval), schedule)})
    name = f"w {MORE_W:g}, {MORE['n']} images, {MORE['num_steps']} steps, {MORE['seeds']} seed"
    publish("guidance", {name: measure(judge, guided(model, MORE_W), schedule, **MORE)})
    publish("guidance", {f"floor, {MORE['n']} images": mean_and_spread(judge.floor(MORE["n"]))})


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    match sys.argv[1:]:
        case ["train", name] if name in VARIANTS:
            train_variant(name)
        case ["choices", *names]:
            measure_choices(names or list(VARIANTS))
        case ["guidance"]:
            measure_guidance()
        case _:
            print(__doc__)
