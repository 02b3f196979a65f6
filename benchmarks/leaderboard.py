"""Measure what lesson 08 shows: the board, quality against steps and seconds, and kind by kind.

uv run python benchmarks/leaderboard.py board [ROW ...]    what `fmdiff evaluate all` prints, row by row
uv run python benchmarks/leaderboard.py steps [NAME ...]   quality and seconds against steps, on the validation images
uv run python benchmarks/leaderboard.py kinds              FD of each kind of garment, on the test images

All results go into data/leaderboard.json.
"""

import json
import os
import sys

import torch
from exhibits import compared

from fmdiff_helpers.arguments import seeds_for
from fmdiff_helpers.checkpoints import load_pretrained, write_atomically
from fmdiff_helpers.data import dataset_name, load_fashion_mnist, to_uint8
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.leaderboard import ROWS, STORED, load_judge, measure_drawer, measure_floors, measure_row
from fmdiff_helpers.metrics import features, frechet_distance, mean_and_spread

N = 1000
# Name -> what `load_drawer` takes but for the steps, and the steps. Those of the board are chosen among them.
SWEEPS = {
    "transformer": ({"name": "transformer"}, (3, 5, 10, 20, 50)),
    "transformer, noisy": ({"name": "transformer", "eta": 1.0}, (10, 20, 50)),
    "transformer, led away": (
        {"name": "transformer", "guidance": 1.5, "guide": "transformer_linear"},
        (5, 10, 20),
    ),
    "unet": ({"name": "unet"}, (10, 20, 50, 100, 200)),
    "unet, noisy": ({"name": "unet", "eta": 1.0}, (20, 50, 200)),
    "latent_unet": ({"name": "latent_unet"}, (3, 5, 10, 20, 50)),
    "latent_unet, led away": ({"name": "latent_unet", "guidance": 2.5, "guide": "latent_unet_unit_1"}, (5, 10, 20, 50)),
    "reflow_unet": ({"name": "reflow_unet"}, (1, 2, 4)),
    "shortcut_unet": ({"name": "shortcut_unet"}, (1, 2, 4)),
    "patch_unet": ({"name": "patch_unet"}, (5, 10, 20, 50)),
    "patch_unet, noisy": ({"name": "patch_unet", "eta": 1.0}, (20, 50)),
    "patch_unet, w = 1.5": ({"name": "patch_unet", "guidance": 1.5}, (5, 10, 20)),
    "patch_unet, w = 3 at 60-139": ({"name": "patch_unet", "guidance": 3.0, "interval": [60, 139]}, (10, 20)),
    "vector_denoiser": ({"name": "vector_denoiser"}, (3, 5, 10, 20, 50)),
    "vector_denoiser, w = 1.5": ({"name": "vector_denoiser", "guidance": 1.5}, (5, 10, 20, 50)),
}
KINDS_N = 2000  # 200 of each kind: more than there are features
KINDS = ("transformer", "latent_unet, led away", "patch_unet, w = 1.5", "vector_denoiser, w = 1.5")


def add(table: str, found: dict) -> None:
    """Put a table into the stored leaderboard, in place of the one that it has."""
    stored = json.loads(STORED.read_text()) | {table: found}
    write_atomically(STORED, lambda file: file.write_text(json.dumps(stored, indent=1) + "\n"))
    print(table, found, flush=True)


def measure_board(rows: list[str]) -> None:
    """Measure the floors and rows of the board; rows that are measured already stay, if nothing else has changed."""
    judge, seeds = load_judge(split="test"), seeds_for("test")
    about = compared("test", N) | {"device": "cpu", "data": dataset_name()} | measure_floors(judge, N, seeds)
    before = json.loads(STORED.read_text()).get("board", {})
    kept = before["rows"] if json.loads(json.dumps(about)).items() <= before.items() else {}
    for row in rows:
        kept[row] = measure_row(judge, row, N, seeds)
        add("board", about | {"rows": {name: kept[name] for name in ROWS if name in kept}})


def measure_steps(names: list[str]) -> None:
    """Measure each network, drawn in fewer and fewer steps; settings that are not measured again stay."""
    judge, seeds = load_judge(split="validation"), seeds_for("validation")
    about = compared("validation", N) | {"device": "cpu"} | measure_floors(judge, N, seeds)
    before = json.loads(STORED.read_text())["steps"]
    kept = before["settings"] if json.loads(json.dumps(about)).items() <= before.items() else {}
    for name in names:
        options, numbers = SWEEPS[name]
        for num_steps in numbers:
            drawer = load_drawer(**options, num_steps=num_steps)
            kept[f"{name}: {num_steps}"] = measure_drawer(judge, drawer, N, seeds)
            in_order = (f"{name}: {num_steps}" for name, (_, numbers) in SWEEPS.items() for num_steps in numbers)
            add("steps", about | {"settings": {setting: kept[setting] for setting in in_order if setting in kept}})


def measure_kinds() -> None:
    """Measure the FD of each kind alone, for the networks that draw what they are told, and for training images."""
    seeds = seeds_for("test")
    classifier, (test_images, test_labels) = load_pretrained("classifier"), load_fashion_mnist("test")
    real = features(classifier, test_images)
    images, labels = load_fashion_mnist("train")
    y = torch.arange(KINDS_N) % 10

    def by_kind(found: torch.Tensor) -> dict[str, float]:
        return {str(kind): frechet_distance(found[y == kind], real[test_labels == kind]) for kind in range(10)}

    def some(seed: int) -> torch.Tensor:
        generator, number = torch.Generator().manual_seed(seed), KINDS_N // 10
        kinds = [(labels == kind).nonzero().flatten() for kind in range(10)]
        rows = [kind[torch.randperm(len(kind), generator=generator)[:number]] for kind in kinds]
        return images[torch.stack(rows, dim=1).flatten()]  # in turn, as the samples are

    found = {"floor": mean_and_spread([by_kind(features(classifier, some(seed))) for seed in seeds])}
    for row in KINDS:
        drawer = load_drawer(**ROWS[row])
        drawn = [features(classifier, to_uint8(drawer.draw(KINDS_N, seed, y))) for seed in seeds]
        found[row] = mean_and_spread([by_kind(each) for each in drawn])
        add("kinds", found)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    match sys.argv[1:]:
        case ["board", *rows] if set(rows) <= set(ROWS):
            measure_board(rows or list(ROWS))
        case ["steps", *names] if set(names) <= set(SWEEPS):
            measure_steps(names or list(SWEEPS))
        case ["kinds"]:
            measure_kinds()
        case _:
            print(__doc__)
