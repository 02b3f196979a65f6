"""The leaderboard: every published network that draws, each as it draws best, on the same measures."""

import json
import time
from collections.abc import Sequence

import torch

from fmdiff_helpers.batching import this_process
from fmdiff_helpers.cards import PUBLISHED
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.data import load_fashion_mnist, to_uint8
from fmdiff_helpers.drawing import Drawer, load_drawer
from fmdiff_helpers.metrics import Judge, mean_and_spread

STORED = PUBLISHED.parent / "leaderboard.json"
# Row -> what `load_drawer` takes. A row that differs from another in one thing shows what that thing buys.
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


def read_leaderboard() -> dict:
    """Return the stored leaderboard: what `fmdiff evaluate all --json` has printed, and what benchmarks have added."""
    return json.loads(STORED.read_text(encoding="utf-8"))


def load_judge(device: torch.device | str = "cpu") -> Judge:
    """Return what measures images: the published classifier, and the dataset on `device`. WeightsError or DataError."""
    with this_process().local_main_process_first():
        images = [load_fashion_mnist(split, device)[0] for split in ("train", "test")]
    return Judge(load_pretrained("classifier", device), *images)


def clock(device: torch.device | str) -> float:
    """Return seconds: of processor time on a CPU, whatever else runs there; elsewhere of waiting until all is done."""
    if torch.device(device).type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.monotonic()


def measure_drawer(judge: Judge, drawer: Drawer, n: int, seeds: Sequence[int]) -> dict[str, tuple[float, float]]:
    """Return mean and spread over the seeds of all measures of n images, all kinds in turn.

    Among them `seconds`, to draw 1,000 images, by `clock`.
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
