"""Measure how long a lesson takes from top to bottom, and its start after an installation and later; and the imports.

OMP_NUM_THREADS=1 uv run python benchmarks/lessons.py [NN ...]    writes benchmarks/lessons.json; those lessons, or all

Seconds by the clock, on one core, which nothing else may use meanwhile. "Cold" is a start with no compiled modules and
no font list, as after an installation; files that the system still holds in memory are read from there.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from machine import about, middle, save
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
LESSONS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
BASE = "import torch, torchvision, matplotlib"
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "fmdiff_helpers").rglob("*.py"))
    if path.name != "__init__.py"
]
ROUNDS = 5


def with_cache(folder: str) -> dict[str, str]:
    """Return the environment of a process that keeps compiled modules and its list of fonts in a folder."""
    return os.environ | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": folder, "MPLCONFIGDIR": folder}


def run(path: Path, environment: dict[str, str], only_start: bool = False) -> float:
    """Return the seconds of a lesson in a kernel of its own; of its first three code cells if `only_start`."""
    nb = nbformat.read(path, as_version=4)
    if only_start:
        code = [k for k, cell in enumerate(nb.cells) if cell.cell_type == "code"]
        nb.cells = nb.cells[: code[2] + 1]  # setup, parameters, imports
    client = NotebookClient(nb, timeout=1800, kernel_name="python3", resources={"metadata": {"path": path.parent}})
    start = time.monotonic()
    client.execute(env=environment)
    return time.monotonic() - start


def import_time(code: str, environment: dict[str, str]) -> float:
    """Return the seconds of a process that runs some imports."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment)
    return time.monotonic() - start


def main() -> None:
    """Measure and write what was asked for, lesson by lesson."""
    there = Path(__file__).with_suffix(".json")
    result = json.loads(there.read_text()) if there.exists() else {"lessons": {}}
    result |= {"what": "seconds by the clock", **about("nbclient", "ipykernel")}
    ours = "import " + ", ".join(MODULES)
    times = {"base": [], "ours": [], "both": []}
    with tempfile.TemporaryDirectory() as folder:
        environment = with_cache(folder)
        import_time(f"{BASE}; {ours}", environment)
        for _ in range(ROUNDS):
            for name, code in {"base": BASE, "ours": ours, "both": f"{BASE}; {ours}"}.items():
                times[name].append(import_time(code, environment))
    names = {"base": BASE, "ours": "all our modules", "both": "both"}
    result["imports"] = {names[key]: middle(seconds) for key, seconds in times.items()}
    save(__file__, result)
    for path in LESSONS:
        if sys.argv[1:] and path.stem[:2] not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            environment = with_cache(folder)
            found = {"start, cold": run(path, environment, only_start=True)}
            found |= {"start": run(path, environment, only_start=True), "Run All": run(path, environment)}
        result["lessons"][path.stem] = {name: round(seconds, 1) for name, seconds in found.items()}
        print(path.stem, result["lessons"][path.stem], flush=True)
        save(__file__, result)


if __name__ == "__main__":
    main()
