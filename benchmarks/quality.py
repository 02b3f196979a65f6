"""Compare what the same time of one processor core buys: our networks, other people's, the originals of the lessons.

uv run --group bench python benchmarks/quality.py tune NAME [RATE ...]   train with each of `RATES`; into quality.json
uv run --group bench python benchmarks/quality.py run NAME [SEEDS]       train, draw, measure; into quality.json
uv run --group bench python benchmarks/quality.py floor                  as many real images; into quality.json
uv run --group bench python benchmarks/quality.py table                  quality.json as a table

Each is trained for the same processor seconds, autoencoder included, and draws with at most 20 evaluations of its
network for an image, unguided. Names: those of `OURS` and `CONTENDERS`, and of `RATES` with ", tuned": with the rate
that is best on the validation images.
"""

import json
import platform
import sys
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from fmdiff_helpers.arguments import seeds_for
from fmdiff_helpers.cards import build, latent_shape
from fmdiff_helpers.data import load_fashion_mnist, to_uint8
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.leaderboard import load_judge, measure_floors
from fmdiff_helpers.metrics import mean_and_spread
from fmdiff_helpers.recipes import CARDS, describe_autoencoder, train_network, training_parts
from fmdiff_helpers.run import Run
from fmdiff_helpers.train import check_recipe

N, SEEDS, SECONDS = 500, 3, 600
RESULTS = Path(__file__).with_suffix(".json")


class Ours:
    """A network of ours and, for a denoiser of latents, its autoencoder, which gets a third of the time."""

    evaluations = 20

    def __init__(self, name: str, images: Tensor, labels: Tensor):
        self.name, self.data = name, (images, labels)
        self.autoencoder = CARDS[name]["autoencoder"]

    def networks(self) -> list[nn.Module]:
        """Return what it trains."""
        return [build(CARDS[name]) for name in (self.autoencoder, self.name) if name]

    def begin(self, name: str, **changes: dict) -> tuple[Run, tuple[Tensor, Tensor]]:
        """Return a training of a network by its recipe, and its data; `changes` replace entries of its card."""
        card = CARDS[name] | changes
        card = card | {"recipe": check_recipe(card["recipe"] | {"steps": 100_000}, len(self.data[0]))}
        parts = training_parts(card, *self.data, torch.device("cpu"))
        return Run(build(card), parts.loss, parts.draw, card), parts.data

    def num_steps(self, seconds: float, name: str, **changes: dict) -> int:
        """Return how many training steps fit into the seconds, by the time of a few."""
        (run, data), spent = self.begin(name, **changes), []
        for _ in range(20):
            start = time.process_time()
            run.train_step(*run.next_batch(*data))
            spent.append(time.process_time() - start)
        return round(seconds / sorted(spent)[10])

    def train(self, seconds: float) -> int:
        """Train by the recipe of `fmdiff train`, with fewer steps, and return how many images the denoiser saw."""
        self.folder, start, options = Path(f"runs/quality/{self.name}"), time.process_time(), {}
        changes = {}
        if self.autoencoder:
            encoder = self.folder.with_name(f"{self.name}_autoencoder")
            steps = self.num_steps(seconds / 3, self.autoencoder)
            train_network(self.autoencoder, encoder, steps=steps, every=steps)
            options["autoencoder"] = str(encoder)
            changes["autoencoder"] = describe_autoencoder(str(encoder), latent_shape(CARDS[self.autoencoder]))
        steps = self.num_steps(seconds - (time.process_time() - start), self.name, **changes)
        train_network(self.name, self.folder, steps=steps, every=steps, **options)
        return steps * 128

    def draw(self, n: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """Return n images (n, 1, 28, 28) in [-1, 1], and their labels where it takes them."""
        drawer = load_drawer(self.folder, self.evaluations)
        y = drawer.all_kinds(n)
        return drawer.draw(n, seed, y).clamp(-1, 1), y


# Name -> module and class; what a contender has is seen in `Ours`. Only the one that runs is imported.
CONTENDERS = {
    "smalldiffusion U-Net": ("peers", "small_unet"),
    "smalldiffusion DiT": ("peers", "small_dit"),
    "diffusers UNet2DModel": ("peers", "CourseUNet"),
    "lucidrains U-Net": ("peers", "LucidUNet"),
    "original of lesson 02": ("original_transformer", "Peer"),
    "original of lesson 03": ("original_unet", "Peer"),
    "original of 03, 200 steps": ("original_unet", "WholeChain"),
    "original of lesson 05": ("original_latent", "Peer"),
    "original of lesson 06": ("original_patch_unet", "Peer"),
    "original of lesson 07": ("original_vector", "Peer"),
}
# The two peers that are best out of the box, and the learning rates that they are tried with. Their own rates, 1e-3 and
# 1e-4, are what they have out of the box.
RATES = {
    "diffusers UNet2DModel": (2e-3, 4e-3),
    "lucidrains U-Net": (4e-4, 1.6e-3, 6.4e-3),
}
TUNED = tuple(f"{name}, tuned" for name in RATES)
PACKAGES = ("torch", "diffusers", "smalldiffusion", "denoising-diffusion-pytorch")
OURS = ("transformer", "unet", "latent_unet", "patch_unet", "vector_denoiser")


def load_contender(name: str, images: Tensor, labels: Tensor, **options: float) -> object:
    """Return a contender, untrained; `options` are those of a peer."""
    if name in OURS:
        return Ours(name, images, labels)
    module, kind = CONTENDERS[name]
    return getattr(import_module(module), kind)(images, labels, **options)


def compete(name: str, split: str, seeds: range, **options: float) -> dict:
    """Train a contender, let it draw for each seed, and return what it is and its measures."""
    torch.optim.AdamW([torch.zeros(1)])  # the first in a process takes seconds, which should count for nobody
    torch.manual_seed(0)
    contender = load_contender(name, *load_fashion_mnist("train"), **options)
    start = time.process_time()
    seen = contender.train(SECONDS)
    trained = time.process_time() - start
    judge, measured = load_judge(split=split), []
    for seed in seeds:
        start = time.process_time()
        images, y = contender.draw(N, seed)
        drawn = time.process_time() - start
        measured.append(judge.measure(to_uint8(images), y) | {"seconds_per_1000": drawn / N * 1000})
    weights = sum(p.numel() for network in contender.networks() for p in network.parameters())
    found = options | {"weights": weights, "training_seconds": round(trained), "images_seen": seen}
    found |= {"evaluations": contender.evaluations, "split": split, "seeds": len(seeds), "first_seed": seeds[0]}
    print(name, found | {"measures": mean_and_spread(measured)}, flush=True)
    return found | {"measures": mean_and_spread(measured)}


def read_results() -> dict:
    """Return what has been measured."""
    return json.loads(RESULTS.read_text())


def add(table: str, found: dict) -> None:
    """Add rows to a table of the results."""
    results = read_results() | {"about": about()}
    results[table] = results.get(table, {}) | found
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def tune(name: str, rates: tuple[float, ...]) -> None:
    """Train a peer with each of the rates, and measure it on the validation images with one seed."""
    for lr in rates:
        add("rates", {f"{name}, {lr:g}": compete(name, "validation", seeds_for("validation", 1), lr=lr)})


def best_rate(name: str) -> float:
    """Return the rate of a peer that has the lowest FD on the validation images."""
    rows = read_results()["rates"]
    return min(RATES[name], key=lambda lr: rows[f"{name}, {lr:g}"]["measures"]["fd"][0])


def run(name: str, seeds: int = SEEDS) -> None:
    """Train one contender and measure it on the test images."""
    peer = name.removesuffix(", tuned")
    options = {"lr": best_rate(peer)} if peer != name else {}
    add("rows", {name: compete(peer, "test", seeds_for("test", seeds), **options)})


def measure_floor() -> None:
    """Measure as many real images."""
    add("floors", measure_floors(load_judge(split="test"), N, seeds_for("test")))


def about() -> dict:
    """Return the circumstances of the measurement."""
    versions = {package: version(package) for package in PACKAGES}
    machine = f"one core of {platform.machine()}, {platform.system()}"
    return {"n": N, "seconds": SECONDS, "machine": machine} | versions


def table() -> str:
    """Return the results as a table, best first."""
    measures = ("fd", "label_free_fd", "precision", "recall", "label_accuracy", "copying")
    lines = [
        "| network | weights | images seen | FD | label-free FD | precision | recall | labels | copying | s / 1,000 |"
    ]
    lines.append("|---" * 10 + "|")
    for name, row in sorted(read_results()["rows"].items(), key=lambda item: item[1]["measures"]["fd"][0]):
        cells = [cell(row["measures"].get(m)) for m in measures]
        if row["seeds"] == 1:
            cells = [each.removesuffix(" ± 0") for each in cells]
        about = [name, f"{row['weights'] / 1e6:.2f} M", f"{row['images_seen']:,}"]
        lines.append(f"| {' | '.join([*about, *cells])} | {row['measures']['seconds_per_1000'][0]:.0f} |")
    return "\n".join(lines)


def cell(value: list[float] | None) -> str:
    """Return mean ± spread, or a dash where a network has no such measure."""
    return f"{value[0]:.3g} ± {value[1]:.2g}" if value else "-"


if __name__ == "__main__":
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case ["tune", name, *rates] if name in RATES and set(map(float, rates)) <= set(RATES[name]):
            tune(name, tuple(map(float, rates)) or RATES[name])
        case ["run", name, *numbers] if name in (*OURS, *CONTENDERS, *TUNED) and len(numbers) < 2:
            run(name, *map(int, numbers))
        case ["floor"]:
            measure_floor()
        case ["table"]:
            print(table())
        case _:
            print(__doc__)
