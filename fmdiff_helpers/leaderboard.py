"""Measure networks that draw; the leaderboard compares the main published ones, some with several options."""

import json
import time
from collections.abc import Sequence

import torch
from torch import nn

from fmdiff_helpers.batching import this_process
from fmdiff_helpers.cards import PUBLISHED, WeightsError, find_weights
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.data import load_fashion_mnist, to_uint8
from fmdiff_helpers.drawing import Drawer, load_drawer
from fmdiff_helpers.metrics import Judge, mean_and_spread

STORED = PUBLISHED.parent / "leaderboard.json"
# Row -> the arguments of `load_drawer`. Two rows that differ in one argument show what this argument gains.
ROWS = {
    "transformer": {"name": "transformer", "num_steps": 10},
    "transformer, led away": {
        "name": "transformer",
        "num_steps": 10,
        "guidance": 1.5,
        "guide": "transformer_linear",
    },
    "unet": {"name": "unet", "num_steps": 200},
    "unet, 50 steps": {"name": "unet", "num_steps": 50},
    "vae": {"name": "vae"},
    "latent_unet": {"name": "latent_unet", "num_steps": 50},
    "latent_unet, led away": {
        "name": "latent_unet",
        "num_steps": 50,
        "guidance": 2.0,
        "guide": "latent_unet_unit_1",
    },
    "patch_unet": {"name": "patch_unet", "num_steps": 20},
    "patch_unet, w = 1.5": {"name": "patch_unet", "num_steps": 20, "guidance": 1.5},
    "patch_unet, w = 3 half-way": {"name": "patch_unet", "num_steps": 20, "guidance": 3.0, "interval": [60, 139]},
    "vector_denoiser": {"name": "vector_denoiser", "num_steps": 50},
    "vector_denoiser, w = 1.5": {"name": "vector_denoiser", "num_steps": 50, "guidance": 1.5},
}

Measures = dict[str, tuple[float, float]]  # measure -> its mean and its spread over several sets of images


def read_leaderboard() -> dict:
    """Return the stored leaderboard: the output of `fmdiff evaluate all --json`, and what benchmarks have added."""
    return json.loads(STORED.read_text(encoding="utf-8"))


def load_judge(device: torch.device | str = "cpu") -> Judge:
    """Return the judge of images: it has the published classifier and encoder, and the dataset on `device`.

    WeightsError or DataError where one of them is missing or damaged.
    """
    for name in ("classifier", "encoder"):
        try:
            find_weights(name)
        except WeightsError:
            raise WeightsError(
                f"all measures need the published network {name!r}, which is not here; work in a copy of the "
                "repository, which has it in data/weights"
            ) from None
    classifier, encoder = (load_pretrained(name, device) for name in ("classifier", "encoder"))
    with this_process().local_main_process_first():
        images = [load_fashion_mnist(split, device)[0] for split in ("train", "test")]
    return Judge(classifier, *images, encoder)


def clock(device: torch.device | str) -> float:
    """Return the time in seconds: processor time on a CPU, where other programs may run, too.

    On other devices it is wall-clock time, and is read after the device has finished its work.
    """
    if torch.device(device).type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.monotonic()


def measure_drawer(judge: Judge, drawer: Drawer, n: int, seeds: Sequence[int]) -> Measures:
    """Return all measures of n images, all kinds in turn, over the seeds.

    One more is `seconds`: the time to draw 1,000 images, by `clock`.
    """
    device, y = drawer.process.device, drawer.all_kinds(n)
    # The first images take longer, because the device gets ready.
    drawer.draw(min(n, 10), seeds[0], None if y is None else y[:10])
    measured = []
    for seed in seeds:
        start = clock(device)
        images = to_uint8(drawer.draw(n, seed, y))
        seconds = (clock(device) - start) * 1000 / n
        measured.append(judge.measure(images, y) | {"seconds": seconds})
    return mean_and_spread(measured)


def measure_row(judge: Judge, row: str, n: int, seeds: Sequence[int], device: torch.device | str = "cpu") -> dict:
    """Return a row of `ROWS` with its measures."""
    return ROWS[row] | {"measures": measure_drawer(judge, load_drawer(**ROWS[row], device=device), n, seeds)}


def measure_floors(judge: Judge, n: int) -> dict[str, Measures]:
    """Return the measures of n real images, by row: images at random, and as many of each kind."""
    floors = {"floor": judge.floor(n), "floor, equal kinds": judge.floor(n, labels=load_fashion_mnist("train")[1])}
    return {row: mean_and_spread(measured) for row, measured in floors.items()}


def measure_columns(
    judge: Judge, n: int, seeds: Sequence[int], drawer: Drawer | None, autoencoder: nn.Module | None
) -> dict[str, Measures]:
    """Return the measures of n images in up to three columns.

    "measures": samples of a drawer, over the seeds. "floor": real images. "ceiling": real images that an autoencoder
    has reconstructed.
    """
    columns = {"floor": mean_and_spread(judge.floor(n))}
    if drawer:
        y = drawer.all_kinds(n)
        measured = [judge.measure(to_uint8(drawer.draw(n, seed, y)), y) for seed in seeds]
        columns = {"measures": mean_and_spread(measured)} | columns
    if autoencoder:
        columns["ceiling"] = mean_and_spread(judge.ceiling(n, autoencoder))
    return columns
