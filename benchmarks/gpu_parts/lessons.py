"""How long do the lessons' own training cells take with a GPU, where epochs is "auto"?"""

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from fmdiff_helpers import checkpoints, recipes, samplers
from fmdiff_helpers.processes import join
from fmdiff_helpers.recipes import train_network
from fmdiff_helpers.results import Results
from gpu_parts.report import Report, Size

ROOT = Path(__file__).resolve().parents[2]


def training_cell(path: Path) -> str:
    """Return the source of the cell of a lesson that trains its network as a whole."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return next(source for source in sources if 'epochs == "auto"' in source and "train_network(" in source)


def lesson_seconds(path: Path, seconds: float, size: Size) -> dict:
    """Run a lesson's training cell, each of its trainings for so many seconds at most, and say how long all take."""
    trained, device = {}, join().device.type

    def timed_training(name: str, folder: Path | str, report: Callable, **options: object) -> tuple:
        start = time.monotonic()
        seen = []  # (seconds, step) at each point of the loss curve

        def until(history: list[dict]) -> None:
            report(history)
            seen.append((time.monotonic() - start, history[-1]["step"]))
            if seen[-1][0] > seconds and any("validation" in point for point in history):
                raise KeyboardInterrupt

        found = train_network(name, folder, until, **options)
        spent, step = seen[-1]
        warm = (spent - seen[0][0]) / max(1, step - seen[0][1])  # the first steps wait for the device to get ready
        whole = spent + warm * (options["steps"] - step)
        trained[name] = {"seconds": whole, "steps": options["steps"], "timed_seconds": spent, "timed_steps": step}
        return found

    names = {**vars(samplers), **vars(recipes), **vars(checkpoints), "Path": Path, "torch": torch, "Results": Results}
    names |= {"train_network": timed_training, "LiveLoss": lambda: lambda history: None, "published": None}
    exec(training_cell(path), names | {"epochs": size.epochs, "device": device, "schedule": None})
    return {"seconds": sum(each["seconds"] for each in trained.values()), "trainings": trained}


def lessons(report: Report, out: Path, size: Size) -> None:
    """Time the training cells of the lessons; where there is no time for all of it, from their beginnings."""
    paths = sorted((ROOT / "notebooks").glob("0[2-7]_*.ipynb"))
    os.environ["FMDIFF_DATA"] = str(Path(os.environ.get("FMDIFF_DATA") or ROOT / "data").resolve())
    (out / "lessons").mkdir(parents=True, exist_ok=True)
    os.chdir(out / "lessons")  # that is where they leave what they train
    for number, path in enumerate(paths):
        seconds = report.left() / (len(paths) + 1 - number)  # the last one trains two networks
        report.add(path.stem, partial(lesson_seconds, path, seconds, size))
