"""Measure how well lesson 10's methods repair garments of the test images, beside simple baselines.

uv run python benchmarks/repair.py choose                  the strength of DPS, on the validation images
uv run python benchmarks/repair.py run [QUESTION [ROW]]    all rows, those of a question, or one, on the test images
uv run python benchmarks/repair.py table                   repair.json as a table

Choose first; both write into repair.json. Questions: "hole", whose right half is not known, and "7 x 7". Rows: "truth",
which is the garments themselves, those of `BASELINES`, and those of `METHODS`. Each row is written as soon as it is
measured, and a row that fails stops the run.
"""

import json
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fmdiff_helpers.arguments import seeds_for
from fmdiff_helpers.data import load_fashion_mnist, to_model, to_uint8
from fmdiff_helpers.drawing import Drawer, load_drawer
from fmdiff_helpers.leaderboard import load_judge
from fmdiff_helpers.measurements import Mask, Measurement, shrink
from fmdiff_helpers.metrics import Judge, features, frechet_distance, mean_and_spread
from fmdiff_helpers.repair import rectify, sample_ddnm, sample_dps, sample_repaint, sample_replacing

# For FD: n garments for each seed. For the spread of the answers: `few` garments, of which each gets K answers, and one
# more, which takes the place of the truth. For the strength: `chosen` garments.
SIZES = {"n": 1000, "few": 16, "answers": 20, "chosen": 50, "steps": 25, "seeds": 3}
STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
RESULTS = Path(__file__).with_suffix(".json")

KEEP = torch.ones(28, 28, dtype=torch.bool)
KEEP[:, 14:] = False
# What is seen, and the pixels that are not known.
QUESTIONS: dict[str, tuple[Measurement, Tensor]] = {
    "hole": (Mask(KEEP), ~KEEP),
    "7 x 7": (shrink(4), torch.ones_like(KEEP)),
}


def nearest_fill(measurement: Measurement, seen: Tensor, train: Tensor) -> Tensor:
    """Return, for each of `seen`, the training garment whose measurement is nearest, rectified."""
    known = measurement.apply(train).flatten(1)
    return rectify(train[torch.cdist(seen.flatten(1), known).argmin(1)], measurement, seen)


def mean_fill(measurement: Measurement, seen: Tensor, train: Tensor) -> Tensor:
    """Return, for each of `seen`, the mean training garment, rectified."""
    return rectify(train.mean(0, keepdim=True).expand(len(seen), -1, -1, -1), measurement, seen)


def line_fill(measurement: Measurement, seen: Tensor, train: Tensor) -> Tensor:
    """Hold the last known pixel of each row to the right; of a small picture, draw straight lines between its pixels.

    The lines of the small picture are not rectified.
    """
    if seen.shape[-1] < 28:
        return F.interpolate(seen, size=28, mode="bilinear")
    last = torch.arange(28).where(KEEP, 0).cummax(dim=1).values
    return rectify(seen.gather(3, last.expand_as(seen)), measurement, seen)


BASELINES = {"mean": mean_fill, "nearest": nearest_fill, "line": line_fill}
METHODS = {
    "replacing": (sample_replacing, {}),
    "RePaint": (sample_repaint, {"repeats": 5, "jump": SIZES["steps"] // 5}),
    "DDNM": (sample_ddnm, {}),
    "DPS": (sample_dps, {}),
}
ROWS = ("truth", *BASELINES, *METHODS)


def method_fill(name: str, drawer: Drawer, strength: float) -> Callable:
    """Return a function (measurement, seen, y, generator) that repairs by a method, 100 garments at once."""
    sampler, options = METHODS[name]
    options = options | ({"strength": strength} if name == "DPS" else {})

    def fill(measurement: Measurement, seen: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        done = []
        for part, labels in zip(seen.split(100), y.split(100), strict=True):
            x = torch.randn((len(part), 1, 28, 28), generator=generator)
            schedule, steps = drawer.process.schedule, SIZES["steps"]
            done.append(sampler(drawer.model, x, schedule, measurement, part, generator, steps, labels, **options))
        return torch.cat(done)

    return fill


def take(split: str, number: int, seed: int) -> tuple[Tensor, Tensor, torch.Generator]:
    """Return that many garments of a split, others for each seed, their labels, and what draws the noise for them."""
    images, labels = load_fashion_mnist(split)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images), generator=generator)[:number]
    return to_model(images[chosen]), labels[chosen], generator


def rms(x: Tensor) -> float:
    """Return the root of the mean square."""
    return x.square().mean().sqrt().item()


def quality(x: Tensor, x0: Tensor, measurement: Measurement, unknown: Tensor, judge: Judge) -> dict[str, float]:
    """Return what one answer x to each garment x0 is worth: both FDs, and how far off it is."""
    images = to_uint8(x)
    found = {
        "fd": frechet_distance(judge.features(images), judge.test_features),
        "label_free_fd": frechet_distance(features(judge.encoder, images), judge.label_free_features),
    }
    changed = (measurement.apply(x) - measurement.apply(x0)).abs().max().item()
    return found | {"one": rms((x - x0)[..., unknown]), "changed": changed}


def is_within(truth: Tensor, answers: Tensor) -> Tensor:
    """Tell where the truth (...) lies between the 5 % and the 95 % quantile of the answers (K, ...), or on one."""
    low, high = answers.float().quantile(torch.tensor([0.05, 0.95]), dim=0)
    return (low <= truth) & (truth <= high)


def honesty(answers: Tensor, x0: Tensor, unknown: Tensor) -> dict[str, float]:
    """Return what K + 1 answers (K + 1, n, 1, H, W) to garments x0 say of their spread.

    `within` is the share of the unknown pixels at which the truth lies `is_within` K answers, in whole grey values.
    `own` is the same for the last answer in place of the truth: what an honest method would reach. `ratio` is the
    squared error of the mean over the variance, times K / (K + 1): 1 on average for an honest method, the median here.
    """
    greys, truth = to_uint8(answers)[..., unknown], to_uint8(x0)[..., unknown]
    found = {"within": is_within(truth, greys[:-1]), "own": is_within(greys[-1], greys[:-1])}
    off, variance = (answers[:-1].mean(0) - x0)[..., unknown], answers[:-1].var(0)[..., unknown]
    K = len(answers) - 1
    ratio = off.square().flatten(1).mean(1) / ((1 + 1 / K) * variance.flatten(1).mean(1))
    shares = {name: where.float().mean().item() for name, where in found.items()}
    return shares | {"mean": rms(off), "spread": variance.mean().sqrt().item(), "ratio": ratio.median().item()}


def report(question: str, row: str, strength: float, drawer: Drawer, judge: Judge) -> dict[str, tuple[float, float]]:
    """Return mean and spread of all measures of a row, over the seeds: on garments of the test images."""
    (measurement, unknown), measured = QUESTIONS[question], []
    train = to_model(judge.train_images) if row in BASELINES else None
    for seed in seeds_for("test", SIZES["seeds"]):
        x0, y, generator = take("test", SIZES["n"], seed)
        seen, start = measurement.apply(x0), time.process_time()
        if row in METHODS:
            fill = method_fill(row, drawer, strength)
            x = fill(measurement, seen, y, generator)
        else:
            x = x0 if row == "truth" else BASELINES[row](measurement, seen, train)
        seconds = (time.process_time() - start) * 100 / len(x0)
        found = quality(x, x0, measurement, unknown, judge)
        if row in METHODS:
            number = SIZES["answers"] + 1
            x0, y, seen = (each[: SIZES["few"]] for each in (x0, y, seen))
            many = fill(measurement, seen.repeat(number, 1, 1, 1), y.repeat(number), generator)
            found |= honesty(many.reshape(number, *x0.shape), x0, unknown) | {"seconds": seconds}
        measured.append(found)
    return mean_and_spread(measured)


def choose(question: str, drawer: Drawer) -> dict[str, tuple[float, float]]:
    """Return how far off DPS is with each strength, over the whole picture: on garments of the validation images."""
    (measurement, _), measured = QUESTIONS[question], []
    for seed in seeds_for("validation", SIZES["seeds"]):
        errors = {}
        for strength in STRENGTHS:  # each on the same garments, with the same noise
            x0, y, generator = take("validation", SIZES["chosen"], seed)
            fill = method_fill("DPS", drawer, strength)
            errors[f"{strength:g}"] = rms(fill(measurement, measurement.apply(x0), y, generator) - x0)
        measured.append(errors)
    return mean_and_spread(measured)


def read_results() -> dict:
    """Return what has been measured."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"strengths": {}, "rows": {}}


def best_strength(question: str) -> float:
    """Return the strength of DPS that `choose` found best; KeyError where it has not run yet."""
    errors = read_results()["strengths"][question]["error"]
    return float(min(errors, key=lambda strength: errors[strength][0]))


def add(part: str, question: str, found: dict) -> None:
    """Write results at once: another run may be stopped."""
    results = read_results()
    results[part][question] = results[part].get(question, {}) | found
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(question, found, flush=True)


def about(split: str) -> dict:
    """Return the circumstances of a measurement, which each row keeps: rows may be measured one by one."""
    machine = {"machine": f"one core of {platform.machine()}, {platform.system()}", "torch": version("torch")}
    return SIZES | {"split": split, "first_seed": seeds_for(split)[0]} | machine


def run(questions: tuple[str, ...], rows: tuple[str, ...]) -> None:
    """Measure rows on the test images."""
    strengths = {question: best_strength(question) for question in questions}  # fails here, not after half an hour
    drawer, judge = load_drawer("patch_unet"), load_judge(split="test")
    for question in questions:
        for row in rows:
            options = {"strength": strengths[question]} if row == "DPS" else {}
            found = {"measures": report(question, row, strengths[question], drawer, judge)}
            add("rows", question, {row: about("test") | options | found})


def table() -> str:
    """Return the results as tables, one for each question."""
    heads = {"fd": "FD", "label_free_fd": "label-free FD", "one": "one answer off", "mean": "their mean off"}
    heads |= {"spread": "spread", "ratio": "ratio", "within": "truth within", "own": "own within"}
    heads |= {"changed": "known changed by", "seconds": "s / 100"}
    tables = []
    for question, rows in read_results()["rows"].items():
        lines = [f"| {question} | {' | '.join(heads.values())} |", "|---" * (1 + len(heads)) + "|"]
        for name in rows:
            found = rows[name]["measures"]
            cells = [f"{found[m][0]:.3g} ± {found[m][1]:.1g}" if m in found else "-" for m in heads]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


if __name__ == "__main__":
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case ["choose"]:
            for question in QUESTIONS:
                error = choose(question, load_drawer("patch_unet"))
                add("strengths", question, about("validation") | {"error": error})
        case ["run"]:
            run(tuple(QUESTIONS), ROWS)
        case ["run", question] if question in QUESTIONS:
            run((question,), ROWS)
        case ["run", question, row] if question in QUESTIONS and row in ROWS:
            run((question,), (row,))
        case ["table"]:
            print(table())
        case _:
            print(__doc__)
