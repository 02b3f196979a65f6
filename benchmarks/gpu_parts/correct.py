"""Does the device compute what the processor does?"""

import math
import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fmdiff_helpers import recipes
from fmdiff_helpers.batching import this_process
from fmdiff_helpers.cards import read_card
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.data import to_model
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.recipes import CARDS, train_network, training_parts
from fmdiff_helpers.run import Run, best_precision
from gpu_parts.loops import DENOISERS, LOOPS, NAMES, begin, stepper, training_data
from gpu_parts.report import Report, Size

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = {"prediction": 1e-4, "loss": 1e-4, "gradient": 1e-3, "samples": 1e-2}  # |GPU - CPU| / |CPU|


def relative(found: list[Tensor], expected: list[Tensor]) -> float:
    """Return |found - expected| / |expected| over all tensors."""
    found, expected = (torch.cat([t.detach().double().cpu().flatten() for t in each]) for each in (found, expected))
    return ((found - expected).norm() / expected.norm()).item()


def answers(name: str, size: Size, device: str, x0: Tensor, y: Tensor) -> dict[str, list[Tensor]]:
    """Return what a published network says, its loss, its gradient and, where it draws, samples, on a device."""
    card, outputs = CARDS[name] | {"autoencoder": None, "recipe": {"steps": 100}}, []
    held_out = torch.zeros((recipes.NUM_VALIDATION + 1, *x0.shape[1:]))
    data = held_out, torch.zeros(len(held_out), dtype=torch.long)
    drawn = training_parts(card, *data, torch.device("cpu")).draw(x0, torch.Generator().manual_seed(1))
    loss_fn = training_parts(card, *data, torch.device(device)).loss
    model = load_pretrained(name, device).requires_grad_(True)

    def watched(*inputs: Tensor) -> Tensor:
        outputs.append(model(*inputs))
        return outputs[-1]

    loss = loss_fn(watched, x0.to(device), y.to(device), *(value.to(device) for value in drawn))
    gradient = torch.autograd.grad(loss.mean(), list(model.parameters()), allow_unused=True)
    outputs = [part for part in tree_leaves(outputs) if isinstance(part, Tensor)]
    found = {"prediction": outputs, "loss": [loss], "gradient": [part for part in gradient if part is not None]}
    if name in DENOISERS:
        drawer = load_drawer(name, device=device)
        labels = y.to(device) if drawer.takes_labels else None
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2)).to(device)
        clip = math.inf if drawer.autoencoder else 1.0
        found["samples"] = [drawer.process.sample(drawer.model, noise, None, size.steps, y=labels, clip=clip)]
    return found


def agrees(name: str, size: Size) -> dict:
    """Compare a published network on the device with itself on the processor, without TF32."""
    x, y = training_data(CARDS[name]["autoencoder"], size.data)
    x0, y = x[: size.compared].cpu(), y[: size.compared].cpu()
    x0 = x0 if x0.is_floating_point() else to_model(x0)
    here, there = (answers(name, size, device, x0, y) for device in ("cpu", str(this_process().device)))
    difference = {what: relative(there[what], here[what]) for what in here}
    passed = all(difference[what] <= TOLERANCE[what] for what in difference)
    return {"passed": passed, "difference": difference, "tolerance": TOLERANCE, "n": size.compared}


def steps_are_finite(name: str, size: Size, loop: str) -> dict:
    """Take two training steps in mixed precision, and count how often a step waits for the GPU."""
    run, data, _ = begin(name, loop, size, size.resumed_batch)
    step = stepper(run, data)
    losses = [step().item() for _ in range(2)]
    passed = all(map(math.isfinite, losses)) and all(p.isfinite().all().item() for p in run.plain.parameters())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
        step()
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
    waits = [
        f"{'/'.join(Path(w.filename).parts[-2:])}:{w.lineno}"
        for w in caught
        if "called a synchronizing" in str(w.message)
    ]
    return {"passed": passed, "precision": best_precision(), "losses": losses, "waits_a_step": waits}


def resumes(out: Path, size: Size) -> dict:
    """Stop a training half-way, go on with it on the device and, in a process without a GPU, on the processor."""
    recipe = {"steps": size.resumed, "every": size.resumed // 2, "batch_size": size.resumed_batch}
    name, halves = "transformer", [out / "resume" / place for place in ("device", "processor")]

    def stop(run: Run) -> None:
        if run.step >= recipe["every"]:
            raise KeyboardInterrupt

    whole, _ = train_network(name, out / "resume" / "whole", **recipe)
    for folder in halves:
        train_network(name, folder, stop, **recipe)
    again, _ = train_network(name, halves[0], **recipe)
    code = "import sys; sys.path.insert(0, sys.argv[1]); from fmdiff_helpers import recipes; "
    code += f"recipes.NUM_VALIDATION = {recipes.NUM_VALIDATION}; "  # as here, also in a rehearsal
    code += f"recipes.train_network({name!r}, sys.argv[2], **{recipe})"
    alone = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code, str(ROOT), str(halves[1])]
    done = subprocess.run(command, env=alone, capture_output=True, text=True)
    ends = [read_card(out / "resume" / place)["history"][-1] for place in ("whole", "device", "processor")]
    difference = relative(list(again.parameters()), list(whole.parameters()))
    losses = [end["validation"]["loss"] for end in ends]
    on_device = ends[1]["step"] == size.resumed and difference <= 1e-2
    on_processor = done.returncode == 0 and ends[2]["step"] == size.resumed and abs(losses[2] / losses[0] - 1) < 0.05
    found = {"passed": on_device and on_processor, "difference_of_weights": difference, "tolerance": 1e-2}
    found |= {"steps": [end["step"] for end in ends], "losses": losses, "loss_tolerance_processor": 0.05}
    return found | ({"error": done.stderr[-600:]} if done.returncode else {})


def correct(report: Report, out: Path, size: Size) -> None:
    """Prove that the device computes what the processor does."""
    for name in NAMES:
        report.add(name, partial(agrees, name, size))
    report.add("resume: whole, on the device, on the processor", partial(resumes, out, size))
    for name in NAMES:
        for loop in LOOPS[:2]:
            report.add(f"steps of {name}, {loop}", partial(steps_are_finite, name, size, loop))
