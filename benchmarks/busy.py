"""Measure what the way in which OpenMP's threads wait costs on a quiet machine, and beside two busy processes.

uv run python benchmarks/busy.py [TASK ...]    writes benchmarks/busy.json after each round; TASK: sample train lesson

Seconds by the clock, all policies in turns, on a machine that does nothing else. A thread that has nothing to do spins
for a while before it sleeps: 300,000 turns, some milliseconds, unless OMP_WAIT_POLICY or GOMP_SPINCOUNT say otherwise.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from lessons import LESSONS, run
from machine import about, middle, save

ROOT = Path(__file__).parents[1]
FMDIFF = Path(sys.executable).with_name("fmdiff")
# GOMP_SPINCOUNT goes before what the package sets; 300,000 is what PyTorch's OpenMP does by itself.
POLICIES = {
    "spin, as PyTorch does": {"GOMP_SPINCOUNT": "300000"},
    "spin 20,000 turns": {"GOMP_SPINCOUNT": "20000"},
    "spin 1,000 turns": {"GOMP_SPINCOUNT": "1000"},
    "sleep at once": {"GOMP_SPINCOUNT": "0"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
ONLY = {"lesson": ("spin, as PyTorch does", "spin 1,000 turns")}  # a lesson takes minutes
ROUNDS = 3
OTHERS = (0, 2)


@contextmanager
def beside(busy: int):
    """Keep so many other processes busy meanwhile, each with one thread."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        yield
    finally:
        for other in others:
            other.kill()


def seconds(task: str, folder: Path, environment: dict[str, str]) -> float:
    """Return the seconds of one task, as somebody would do it."""
    if task == "lesson":
        return run(LESSONS[2], environment)
    shutil.rmtree(folder / "run", ignore_errors=True)  # else a training would go on where it was
    commands = {
        "sample": ["sample", "patch_unet", "-n", "30", "--steps", "20", "--out", folder / "x.png"],
        "train": ["train", "unet", "--profile", "smoke", "--out", folder / "run"],
    }
    start = os.times().elapsed
    subprocess.run([FMDIFF, *commands[task]], check=True, capture_output=True, cwd=ROOT, env=environment)
    return os.times().elapsed - start


def main(tasks: list[str]) -> None:
    """Measure and write what was asked for, round by round."""
    there = Path(__file__).with_suffix(".json")
    result = (json.loads(there.read_text()) if there.exists() else {}) | about()
    base = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    times = {}
    for _ in range(ROUNDS):
        for task in tasks:
            for busy in OTHERS:
                for policy, variables in POLICIES.items():
                    if policy not in ONLY.get(task, POLICIES):
                        continue
                    with tempfile.TemporaryDirectory() as folder, beside(busy):
                        key = (task, f"beside {busy} busy processes", policy)
                        times.setdefault(key, []).append(seconds(task, Path(folder), base | variables))
                        print(*key, f"{times[key][-1]:.1f} s", flush=True)
        for (task, others, policy), found in times.items():
            result.setdefault(task, {}).setdefault(others, {})[policy] = middle(found) | {"rounds": len(found)}
        save(__file__, result)


if __name__ == "__main__":
    main(sys.argv[1:] or ["sample", "train", "lesson"])
