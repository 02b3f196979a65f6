"""Measure networks that draw; the leaderboard compares the main published ones, some with several options."""

import json
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

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
    "transformer, noisy": {"name": "transformer", "num_steps": 20, "eta": 1.0},
    "transformer, all steps": {"name": "transformer", "num_steps": 200},
    "transformer, led away": {
        "name": "transformer",
        "num_steps": 10,
        "guidance": 1.5,
        "guide": "transformer_linear",
    },
    "unet": {"name": "unet", "num_steps": 50},
    "unet, noisy": {"name": "unet", "num_steps": 50, "eta": 1.0},
    "unet, all steps": {"name": "unet", "num_steps": 200},
    "vae": {"name": "vae"},
    "latent_unet": {"name": "latent_unet", "num_steps": 50},
    "latent_unet, led away": {
        "name": "latent_unet",
        "num_steps": 50,
        "guidance": 2.5,
        "guide": "latent_unet_unit_1",
    },
    "reflow_unet": {"name": "reflow_unet", "num_steps": 1},
    "shortcut_unet": {"name": "shortcut_unet", "num_steps": 1},
    "shortcut_unet, 2 steps": {"name": "shortcut_unet", "num_steps": 2},
    "patch_unet": {"name": "patch_unet", "num_steps": 20},
    "patch_unet, noisy": {"name": "patch_unet", "num_steps": 50, "eta": 1.0},
    "patch_unet, all steps": {"name": "patch_unet", "num_steps": 200},
    "patch_unet, w = 1.5": {"name": "patch_unet", "num_steps": 20, "guidance": 1.5},
    "patch_unet, w = 3 at 60-139": {"name": "patch_unet", "num_steps": 20, "guidance": 3.0, "interval": [60, 139]},
    "vector_denoiser": {"name": "vector_denoiser", "num_steps": 50},
    "vector_denoiser, w = 1.5": {"name": "vector_denoiser", "num_steps": 50, "guidance": 1.5},
}

Measures = dict[str, tuple[float, float]]  # measure -> its mean and its spread over several sets of images


def read_leaderboard() -> dict:
    """Return the stored leaderboard: the output of `fmdiff evaluate all --json`, and what benchmarks have added."""
    return json.loads(STORED.read_text(encoding="utf-8"))


def load_judge(device: torch.device | str = "cpu", split: str = "test") -> Judge:
    """Return the judge of images: it has the published classifier and encoder, and the dataset on `device`.

    It compares with a split: "test", to report, or "validation", to choose; its training images are then those without
    the validation images. ValueError for another split; WeightsError or DataError where a network or the data are
    missing or damaged.
    """
    if split not in ("validation", "test"):
        raise ValueError(f"split is {split!r}; expected 'validation', to choose, or 'test', to report")
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
        train_images, images = (load_fashion_mnist(part, device)[0] for part in ("train", split))
    if split == "validation":  # the end of the training split
        train_images = train_images[: -len(images)]
    return Judge(classifier, train_images, images, encoder)


def kinds_of(judge: Judge) -> Tensor:
    """Return the labels (N,) of a judge's training images, for a floor with equally many of each kind."""
    return load_fashion_mnist("train")[1][: len(judge.train_images)]


def has_equal_kinds(labels: Tensor | None) -> bool:
    """Tell whether labels (N,) have equally many of each of the ten kinds, but for one; False for None."""
    return labels is not None and bool((count := labels.bincount(minlength=10)).max() - count.min() <= 1)


def clock(device: torch.device | str) -> float:
    """Return the time in seconds: processor time on a CPU, where other programs may run, too.

    On other devices it is wall-clock time, and is read after the device has finished its work.
    """
    if torch.device(device).type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.monotonic()


def count_evaluations(drawer: Drawer, n: int = 10) -> float:
    """Draw n images, and return how often denoisers were evaluated for each: a guided step takes two."""
    seen = 0

    def count(module: nn.Module, inputs: tuple) -> None:
        nonlocal seen
        seen += len(inputs[0]) if getattr(module, "kind", None) == "denoiser" else 0

    hook = register_module_forward_pre_hook(count)
    try:
        drawer.draw(n, 0, drawer.all_kinds(n))
    finally:
        hook.remove()
    return seen / n


def measure_drawer(judge: Judge, drawer: Drawer, n: int, seeds: Sequence[int]) -> Measures:
    """Return all measures of n images, all kinds in turn, over the seeds.

    Two more are `evaluations` of denoisers for an image, and `seconds`: the time to draw 1,000 images, by `clock`.
    """
    device, y = drawer.process.device, drawer.all_kinds(n)
    evaluations = count_evaluations(drawer)  # first, because the first images take longer: the device gets ready
    measured = []
    for seed in seeds:
        start = clock(device)
        images = to_uint8(drawer.draw(n, seed, y))
        seconds = (clock(device) - start) * 1000 / n
        measured.append(judge.measure(images, y) | {"evaluations": evaluations, "seconds": seconds})
    return mean_and_spread(measured)


def measure_row(judge: Judge, row: str, n: int, seeds: Sequence[int], device: torch.device | str = "cpu") -> dict:
    """Return a row of `ROWS` with its measures."""
    return ROWS[row] | {"measures": measure_drawer(judge, load_drawer(**ROWS[row], device=device), n, seeds)}


def measure_floors(judge: Judge, n: int, seeds: Sequence[int]) -> dict[str, Measures]:
    """Return the measures of n real images, by row: images at random, and equally many of each kind."""
    floors = {"floor": judge.floor(n, seeds), "floor, equal kinds": judge.floor(n, seeds, kinds_of(judge))}
    return {row: mean_and_spread(measured) for row, measured in floors.items()}


def of_equal_kinds(drawer: Drawer | None, autoencoder: nn.Module | None) -> bool:
    """Tell whether what is measured has equally many of each kind: a network's that takes labels, an autoencoder's."""
    return autoencoder is not None or (drawer is not None and drawer.takes_labels)


def measure_columns(
    judge: Judge, n: int, seeds: Sequence[int], drawer: Drawer | None, autoencoder: nn.Module | None
) -> dict[str, Measures]:
    """Return the measures of n images in up to three columns, each over the seeds.

    "measures": samples of a drawer. "floor": real images, equally many of each kind, or at random unless
    `of_equal_kinds`. "limit": as many that an autoencoder has reconstructed.
    """
    kinds = kinds_of(judge) if of_equal_kinds(drawer, autoencoder) else None
    columns = {"floor": mean_and_spread(judge.floor(n, seeds, kinds))}
    if drawer:
        y = drawer.all_kinds(n)
        measured = [judge.measure(to_uint8(drawer.draw(n, seed, y)), y) for seed in seeds]
        columns = {"measures": mean_and_spread(measured)} | columns
    if autoencoder:
        columns["limit"] = mean_and_spread(judge.limit(n, autoencoder, seeds, kinds))
    return columns
