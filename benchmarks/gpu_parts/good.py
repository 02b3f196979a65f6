"""How good are networks after about a minute of training, beside the published ones?"""

import json
import time
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from fmdiff_helpers.arguments import seeds_for
from fmdiff_helpers.batching import this_process
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.data import load_fashion_mnist, to_uint8
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.metrics import features, frechet_distance, mean_and_spread, share_inside
from fmdiff_helpers.recipes import CARDS
from fmdiff_helpers.train import keep_best
from gpu_parts.loops import GOOD, LOOPS, begin, stepper, timed
from gpu_parts.report import Report, Size


def fastest(results: dict, name: str, batch: int) -> list[str]:
    """Return the loops that ran at a batch, the fastest first; eager and graph where none was timed."""
    rows = {loop: results.get("fast", {}).get(f"train {name}, {loop}, batch {batch}", {}) for loop in LOOPS}
    ran = {loop: row["images_per_second"]["median"] for loop, row in rows.items() if "images_per_second" in row}
    return sorted(ran, key=ran.get, reverse=True) or ["graph", "eager"]


def train_for(name: str, loop: str, folder: Path, seconds: float, size: Size) -> dict:
    """Train a network for so many seconds, its learning rate down to its end; write weights, card and history."""
    trial, data, _ = begin(name, loop, size, size.good_batch)
    timed(stepper(trial, data), 5)  # compilation and capture, too
    steps = max(4, round(0.9 * seconds * 20 / timed(stepper(trial, data), 20)))
    every = min(steps, max(50, round(steps / 5 / 50) * 50))
    run, (x, y), validate = begin(name, loop, size, size.good_batch, steps=steps, every=every)
    bar, start = tqdm(disable=True), time.monotonic()
    while run.step < steps:
        if "validation" in run.advance(x, y, validate, bar):
            keep_best(run, folder)
    (folder / "history.json").write_text(json.dumps(run.history))
    found = {"loop": loop, "steps": steps, "batch": size.good_batch, "lr": run.recipe["lr"], "seconds": run.seconds}
    losses = [point["validation"]["loss"] for point in run.history if "validation" in point]
    return found | {"wall_seconds": time.monotonic() - start, "images_seen": steps * size.good_batch, "losses": losses}


@cache
def real_features(split: str, number: int, equal_kinds: bool = False) -> Tensor:
    """Return the features of real images: the first of a split, or the first of each kind, equally many."""
    classifier = load_pretrained("classifier", this_process().device)
    images, labels = load_fashion_mnist(split, this_process().device)
    if equal_kinds:
        images = torch.cat([images[labels == kind][: number // 10] for kind in range(10)])
    return features(classifier, images[:number])


def distances(found: Tensor, size: Size) -> dict[str, float]:
    """Return what features (N, d) score, held against the test images: FD, precision and recall."""
    test, device = real_features("test", size.real), this_process().device
    return {
        "fd": frechet_distance(found, test),
        "precision": share_inside(found.to(device), test.to(device)),
        "recall": share_inside(test.to(device), found.to(device)),
    }


def quality(name: Path | str, size: Size, guidance: float | None = None) -> dict:
    """Return mean and spread over the seeds of what samples of a network score."""
    device = this_process().device
    drawer, classifier = load_drawer(name, size.steps, guidance, device=device), load_pretrained("classifier", device)
    y = drawer.all_kinds(size.judged)
    seeds = seeds_for("test", size.seeds)
    images = (to_uint8(drawer.draw(size.judged, seed, y)) for seed in seeds)
    measures = mean_and_spread([distances(features(classifier, each), size) for each in images])
    about = {"n": size.judged, "seeds": size.seeds, "first_seed": seeds[0], "sampler_steps": size.steps}
    return {"measures": measures} | about


def good(report: Report, out: Path, size: Size) -> None:
    """Train networks for about a minute each and measure their samples, beside the published ones."""
    for label, equal_kinds in (("training images", False), ("training images, equal kinds", True)):
        real = partial(real_features, "train", size.judged, equal_kinds)
        report.add(f"floor: {label}", lambda real=real: distances(real(), size) | {"n": size.judged})
    for number, name in enumerate(GOOD):
        seconds = min(size.good_seconds, 0.75 * report.left() / (len(GOOD) - number))
        for loop in fastest(report.results, name, size.good_batch):
            label = f"train {name}, {loop}"
            if "error" not in report.add(label, partial(train_for, name, loop, out / name, seconds, size)):
                break
        report.add(f"samples of {name}", partial(quality, out / name, size))
        if CARDS[name]["label_dropout"]:
            report.add(f"samples of {name}, w = 1.5", partial(quality, out / name, size, guidance=1.5))
    for name in GOOD:
        report.add(f"samples of the published {name}", partial(quality, name, size))
