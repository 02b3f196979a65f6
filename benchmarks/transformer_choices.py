"""Measure lesson 02's choices, each trained for the same time; and its sampler against the original's.

uv run python benchmarks/transformer_choices.py train NAME     one network by name, in the time of `LINEAR_STEPS`
uv run python benchmarks/transformer_choices.py measure NAME   one exhibit, into the card of the published network
uv run python benchmarks/transformer_choices.py guidance       the published network, led away, into the same card

Names: those of `VARIANTS`, trained here ("linear", "softmax" and "eps" are published); "right", the published network,
and "fed back", the same in the original's loop.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from exhibits import compared, publish, train_card
from torch import Tensor

from fmdiff_helpers.arguments import seeds_for
from fmdiff_helpers.batching import in_batches
from fmdiff_helpers.cards import build, build_process, read_card
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.data import describe_data, load_fashion_mnist, to_uint8
from fmdiff_helpers.diffusion import at, x0_loss
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.leaderboard import kinds_of, load_judge, measure_drawer
from fmdiff_helpers.metrics import mean_and_spread, spread_within
from fmdiff_helpers.recipes import CARDS, training_parts
from fmdiff_helpers.run import Run
from fmdiff_helpers.samplers import respace
from fmdiff_helpers.schedules import Schedule
from fmdiff_helpers.train import check_recipe

LINEAR_STEPS = 1000  # eight minutes of one processor core
STEPS = 10
GUIDE, SCALES = "transformer_linear", (1, 1.25, 1.5, 1.75, 2, 2.5)
# "linear" is `fmdiff train transformer` at a quarter of its learning rate; what differs from that in the others.
LINEAR = CARDS["transformer"] | {"recipe": CARDS["transformer"]["recipe"] | {"lr": 1e-3}}
VARIANTS = {
    "linear": {},
    "linear, 2nd training": {"recipe": LINEAR["recipe"] | {"seed": 1}},
    "linear, 3rd training": {"recipe": LINEAR["recipe"] | {"seed": 2}},
    "softmax": {"arguments": LINEAR["arguments"] | {"attention": "softmax"}},
    "eps": {"process": LINEAR["process"] | {"target": "eps"}},
    "x0, loss of eps": {},
    "squared": {},
    "patches of 2": {"arguments": LINEAR["arguments"] | {"patch": 2}},
    "patches of 7": {"arguments": LINEAR["arguments"] | {"patch": 7}},
    "four times the rate": {"recipe": LINEAR["recipe"] | {"lr": 4e-3}},
}
PUBLISHED_VARIANTS = ("linear", "softmax", "eps")  # these are in data/weights
TARGETS = ("linear", "x0, loss of eps", "eps")  # these have a table of their own, too
ANOTHER_COST = ("softmax", "patches of 2", "patches of 7")  # their steps take another time than those of "linear"


def stepper(card: dict, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Return a function that takes one training step of a fresh network."""
    card = card | {"recipe": check_recipe(card["recipe"] | {"steps": 1000}, len(images))}
    parts = training_parts(card, images, labels, torch.device("cpu"))
    run = Run(build(card), parts.loss, parts.draw, card)
    return lambda: run.train_step(*run.next_batch(*parts.data))


def equal_steps(card: dict, images: Tensor, labels: Tensor) -> int:
    """Return how many steps take as long as `LINEAR_STEPS` of the linear network, both timed in turns."""
    steppers = [stepper(c, images, labels) for c in (LINEAR, card)]
    seconds = [[], []]
    for _ in range(25):
        for step, found in zip(steppers, seconds, strict=True):
            start = time.process_time()
            step()
            found.append(time.process_time() - start)
    linear, other = (sorted(found)[12] for found in seconds)
    return round(LINEAR_STEPS * linear / other / 20) * 20


def train_variant(name: str) -> None:
    """Train one variant, into runs/transformer_NAME."""
    torch.set_num_threads(1)
    card = LINEAR | VARIANTS[name]
    steps = equal_steps(card, *load_fashion_mnist("train")) if name in ANOTHER_COST else LINEAR_STEPS
    changes = {"steps": steps, "every": steps // 4, "cycles": 1}
    card = card | {"recipe": card["recipe"] | changes, "data": describe_data()}
    losses = {"squared": x0_loss, "x0, loss of eps": x0_as_eps_loss}
    parts = {"loss": partial(losses[name], schedule=build_process(card).schedule)} if name in losses else {}
    train_card(card, folder_of(name), **parts)


def x0_as_eps_loss(model: Callable, x0: Tensor, y: Tensor, t: Tensor, eps: Tensor, schedule: Schedule) -> Tensor:
    """Return the squared error of x0_hat, (B,), times the SNR: that of the noise that x0_hat implies.

    The SNR, 3,900 at t = 0, counts as 5 at most, or nearly all of the loss would be that of the first steps (Hang et
    al. 2023, "min-SNR").
    """
    loss = x0_loss(model, x0, y, t, eps, schedule)
    return loss * at(schedule.log_snr.exp().clamp(max=5), t, loss)


def folder_of(name: str) -> Path:
    """Return where a variant is trained."""
    return Path("runs") / f"transformer_{name.replace(',', '').replace(' ', '_')}"


@torch.no_grad()
def feed_back(model: Callable, x: Tensor, y: Tensor, num_steps: int) -> Tensor:
    """Draw samples as the original does: what the network says is the next step's input, and nothing else is."""
    steps, _ = respace(build_process(read_card("transformer")).schedule, num_steps)
    for t in reversed(steps.tolist()):
        x = model(x, torch.full((len(x),), t), y)
    return x


def draw_samples(name: str, seed: int, y: Tensor) -> Tensor:
    """Return the samples of an exhibit, one for each label."""
    if name == "fed back":
        model = load_pretrained("transformer")
        x = torch.randn((len(y), 1, 28, 28), generator=torch.Generator().manual_seed(seed))
        return in_batches(lambda x, y: feed_back(model, x, y, STEPS), x, y)
    published = {"right": "transformer"} | {each: f"transformer_{each}" for each in PUBLISHED_VARIANTS}
    drawer = load_drawer(published.get(name, folder_of(name)), STEPS)
    return drawer.draw(len(y), seed, y)


def measure(name: str) -> None:
    """Measure one exhibit and add it to the results: variants on the validation images, what is published on test."""
    torch.set_num_threads(1)
    n, table, split = (2000, "choices", "validation") if name in VARIANTS else (10_000, "exhibits", "test")
    judge, seeds = load_judge(split=split), seeds_for(split)
    y, measured = torch.arange(n) % 10, []
    for seed in seeds:
        samples = draw_samples(name, seed, y).clamp(-1, 1)
        measured.append(judge.measure(to_uint8(samples), y) | {"spread": spread_within(samples, y)})
    floor = judge.floor(n, seeds, kinds_of(judge))
    found = {"floor": mean_and_spread(floor), name: mean_and_spread(measured)}
    for each in [table] + ["targets"] * (name in TARGETS):
        publish("transformer", each, found, **compared(split, n), steps=STEPS, device="cpu")


def measure_guidance() -> None:
    """Measure the published network, led away from one that was trained for less time, over w."""
    torch.set_num_threads(1)
    judge, seeds, n = load_judge(split="validation"), seeds_for("validation"), 1000
    for w in SCALES:
        drawer = load_drawer("transformer", STEPS) if w == 1 else load_drawer("transformer", STEPS, w, GUIDE)
        found = {f"w {w:g}": measure_drawer(judge, drawer, n, seeds)}
        publish("transformer", "guidance", found, **compared("validation", n), steps=STEPS, guide=GUIDE, device="cpu")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["train", name] if name in VARIANTS:
            train_variant(name)
        case ["measure", name] if name in ("right", "fed back", *VARIANTS):
            measure(name)
        case ["guidance"]:
            measure_guidance()
        case _:
            print(__doc__)
