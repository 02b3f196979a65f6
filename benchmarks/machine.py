"""What the benchmarks share: where they ran, how fast that machine can be, and results as files."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch


def about(*packages: str) -> dict[str, str]:
    """Return the machine and the versions of torch and other packages."""
    machine = f"{os.cpu_count()} x {platform.machine()}, {platform.system()}, {torch.get_num_threads()} threads"
    return {"machine": machine} | {package: version(package) for package in ("torch", *packages)}


def peak(size: int = 512, seconds: float = 2.0) -> float:
    """Return how many floating-point operations a second a product of two square matrices reaches here, at best."""
    a, b, best, end = *torch.randn(2, size, size), 0.0, time.process_time() + seconds
    while time.process_time() < end:
        start = time.process_time()
        for _ in range(10):
            a @ b
        best = max(best, 10 * 2 * size**3 / (time.process_time() - start))
    return best


def middle(values: list[float]) -> dict[str, float]:
    """Return the median of some rounds, the lowest and the highest."""
    ordered = [float(f"{value:.4g}") for value in sorted(values)]
    return {"median": ordered[len(ordered) // 2], "lowest": ordered[0], "highest": ordered[-1]}


def command(script: str, doc: str, measure: Callable[[], dict], table: Callable[[], str]) -> None:
    """Do what the command line asks for, on one thread: measure and write, or print what is written as a table."""
    torch.set_num_threads(1)
    if sys.argv[1:] not in ([], ["table"]):
        print(doc)
        return
    if not sys.argv[1:]:
        save(script, measure())
    print(table())


def save(script: str, result: dict) -> None:
    """Write a script's result beside it."""
    Path(script).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
