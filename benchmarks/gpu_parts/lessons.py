"""How long do the lessons' own training cells take with a GPU, where epochs is "auto"?"""

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from fmdiff_helpers import cards, checkpoints, dials, drawing, recipes, samplers
from fmdiff_helpers.batching import this_process
from fmdiff_helpers.processes.diffusion import Diffusion
from fmdiff_helpers.recipes import train_network
from fmdiff_helpers.results import Results
from fmdiff_helpers.run import DEFAULTS, Run
from gpu_parts.report import Report, Size

ROOT = Path(__file__).resolve().parents[2]


def training_cell(path: Path) -> str:
    """Return the source of the cell of a lesson that trains its network as a whole."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return next(source for source in sources if "number_of_epochs(" in source and "train_network(" in source)


def whole(seen: list[tuple[float, int]], every: int, steps: int) -> float:
    """Return the seconds of a training from its beginning, (seconds, step) of points of which the second validates."""
    if len(seen) < 3:
        return seen[-1][0]
    (first, _), (second, start), (third, end) = seen[:3]
    step, validation = (third - second) / (end - start), (second - first) - (third - second)
    return first + step * (steps - seen[0][1]) + max(0.0, validation) * (steps / every)


def lesson_seconds(path: Path, size: Size) -> dict:
    """Run a lesson's training cell, 150 steps of each of its trainings, and say how long all would take."""
    trained, device = {}, this_process().device.type

    def timed_training(name: str, folder: Path | str, report: Callable, **options: object) -> tuple:
        start = time.monotonic()
        seen = []  # (seconds, step) at each point of the loss curve, after 50, 100 and 150 steps

        def until(run: Run) -> None:
            report(run)
            seen.append((time.monotonic() - start, run.step))
            if len(seen) == 3:
                raise KeyboardInterrupt

        every, steps = options.get("every", DEFAULTS["every"]), options["steps"]
        found = train_network(name, folder, until, **options | {"every": 100})
        spent, step = seen[-1]
        estimate = {"seconds": whole(seen, every, steps), "steps": steps, "every": every}
        trained[name] = estimate | {"timed_seconds": spent, "timed_steps": step}
        return found

    names = {"Path": Path, "torch": torch, "Results": Results, "Diffusion": Diffusion, "published": None}
    for module in (cards, checkpoints, dials, drawing, recipes, samplers):
        names |= vars(module)
    names |= {"train_network": timed_training, "LiveLoss": lambda: lambda run: None}
    exec(training_cell(path), names | {"epochs": size.epochs, "device": device, "schedule": None})
    return {"seconds": sum(each["seconds"] for each in trained.values()), "trainings": trained}


def lessons(report: Report, out: Path, size: Size) -> None:
    """Time the training cells of the lessons from their beginnings."""
    paths = sorted((ROOT / "notebooks").glob("0[2-7]_*.ipynb"))
    os.environ["FMDIFF_DATA"] = str(Path(os.environ.get("FMDIFF_DATA") or ROOT / "data").resolve())
    (out / "lessons").mkdir(parents=True, exist_ok=True)
    os.chdir(out / "lessons")  # that is where they leave what they train
    for path in paths:
        report.add(path.stem, partial(lesson_seconds, path, size))
