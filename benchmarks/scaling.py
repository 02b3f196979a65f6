"""Measure what it takes to say when several processes pay: a training step, and the sum of its gradients.

uv run --group bench accelerate launch --multi_gpu --num_processes 2 benchmarks/scaling.py    writes scaling.json
uv run --group bench python benchmarks/scaling.py table    prints it, and what it says of more processes, as tables

Seconds by the clock, median of `REPEATS`: of a step on a whole batch of 128 images and on half of it, in each process
alone; of a step that two processes take together, half of the batch each; and of the sum of the gradients alone. One
thread a process, all cores busy, and the loopback network of one machine.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import about, save
from quality import OURS
from torch import distributed
from training import our_run

from fmdiff_helpers.batching import this_process
from fmdiff_helpers.data import load_fashion_mnist
from fmdiff_helpers.run import Run

REPEATS = 12
BATCH = 128
SIZES = (1, 1000, 10_000, 100_000, 1_000_000, 4_000_000)  # numbers to sum, for the network alone


def seconds(work: Callable[[], object]) -> float:
    """Return the median of the seconds that some work takes, all processes starting it together."""
    found = []
    for _ in range(REPEATS + 2):
        distributed.barrier()
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return float(f"{statistics.median(found[2:]):.4g}")


def sum_of(numbers: int) -> float:
    """Return the seconds that it takes to sum so many numbers over all processes."""
    values = torch.zeros(numbers)
    return seconds(lambda: distributed.all_reduce(values))


def step_alone(run: Run, x0: torch.Tensor, y: torch.Tensor) -> None:
    """Take a step without asking the other process; what the losses say of each other is still exchanged."""
    with run.model.no_sync():
        run.loss_fn(run.model, x0, y, *run.draw(x0, run.generator)).mean().backward()
    run.optimizer.step()
    run.optimizer.zero_grad()


def stored() -> dict:
    """Return what was measured."""
    return json.loads(Path(__file__).with_suffix(".json").read_text())


def table() -> str:
    """Return what was measured as a table, in milliseconds."""
    lines = [
        "| network | whole batch | half of it | sum | half + sum | both together | times as fast |",
        "|---" * 7 + "|",
    ]
    for name, row in stored()["rows"].items():
        parts = row["whole"], row["half"], row["sum"], row["half"] + row["sum"], row["together"]
        whole, half, total, expected, together = (1000 * part for part in parts)
        cells = [f"{whole:.0f}", f"{half:.0f}", f"{total:.1f}", f"{expected:.0f}", f"{together:.0f}"]
        lines.append(f"| {' | '.join([name, *cells, f'{whole / together:.2f}'])} |")
    return "\n".join(lines)


def step_seconds(row: dict, n: int, latency: float, bandwidth: float) -> float:
    """Estimate the seconds of a step that n processes share, each with a core of its own; the sum goes in a ring."""
    each = (row["whole"] - row["half"]) / (BATCH / 2)  # seconds of one more image
    fixed = max(0, row["whole"] - BATCH * each)
    ring = 2 * (n - 1) * (latency + 4 * row["weights"] / n / bandwidth)
    return fixed + each * BATCH / n + ring


def estimates(names: tuple[str, ...] = ("unet", "latent_unet")) -> str:
    """Return how many times as fast more processes would be, as a table: over this machine's wire and a slower one."""
    rows, sums = stored()["rows"], stored()["sums"]
    latency, bandwidth = sums["1"] / 2, 4 * 4_000_000 / sums["4000000"]
    numbers = [1, 2, 4, 8, 16, 32, 64]
    lines = [f"| processes | {' | '.join(map(str, numbers))} |", "|---" * (len(numbers) + 1) + "|"]
    for name in names:
        for wire, speed in ((f"{bandwidth / 1e9:.1f} GB/s", bandwidth), ("1 Gbit/s", 1e9 / 8)):
            times = [step_seconds(rows[name], n, latency, speed) for n in numbers]
            cells = [f"{times[0] / seconds:.1f}" for seconds in times]
            lines.append(f"| {name}, {wire} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure in all processes, and write the result in one."""
    torch.set_num_threads(1)
    assert this_process().num_processes == 2, "start it with accelerate launch, as the docstring says"
    data = [part[:12_000] for part in load_fashion_mnist("train")]
    rows = {}
    for name in OURS:
        run, of_run = our_run(name, *data)
        x0, y = run.next_batch(*of_run)
        weights = sum(p.numel() for p in run.plain.parameters())
        rows[name] = {
            "weights": weights,
            "whole": seconds(lambda run=run, x0=x0, y=y: step_alone(run, x0, y)),
            "half": seconds(lambda run=run, x0=x0, y=y: step_alone(run, x0[: BATCH // 2], y[: BATCH // 2])),
            "together": seconds(lambda run=run, x0=x0, y=y: run.train_step(x0, y)),
            "sum": sum_of(weights),
        }
    sums = {str(numbers): sum_of(numbers) for numbers in SIZES}
    if this_process().is_main_process:
        what = f"seconds of a training step at batch {BATCH}, two processes"
        save(__file__, {"what": what, **about("accelerate"), "rows": rows, "sums": sums})
        print(rows, sums)


if __name__ == "__main__":
    if sys.argv[1:] == ["table"]:
        print(table(), estimates(), sep="\n\n")
    else:
        main()
