"""Prove on a GPU what only a GPU can prove: that all is correct there, how fast it is, and how good in a minute.

python benchmarks/gpu.py [--parts PART ...] [--out FOLDER] [--minutes 8]    writes FOLDER/gpu.json
python benchmarks/gpu.py --rehearse        the same at a tiny size on the processor, where no number means anything

The parts, each in a process of its own, with its share of the minutes:
correct   every network on the GPU against the processor, in float32; bf16 steps; a training resumed, also without GPU
fast      images a second of whole training loops, ours and others', beside the ceilings of the machine; of sampling
slowest   where the training that is furthest from its ceiling spends its time
good      networks trained for about a minute each, with their weights in FOLDER, and how good their samples are
lessons   the training cells of the lessons, with epochs = "auto"
It needs no installation: PyTorch, accelerate, einops, safetensors, tqdm and the working tree do. After each measurement
gpu.json is written: what fails is an "error" there, a peer that is not installed "missing", and what finds no time
"left out". The exit status is 1 where anything failed.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu_parts.correct import correct
from gpu_parts.fast import fast, slowest
from gpu_parts.good import good
from gpu_parts.lessons import lessons
from gpu_parts.report import TINY, TINY_VALIDATION, Report, Size, faults
from machine import about

from fmdiff_helpers import recipes
from fmdiff_helpers.checkpoints import write_atomically
from fmdiff_helpers.data import describe_data, load_fashion_mnist
from fmdiff_helpers.run import best_precision

# Part -> its share of the minutes; what it leaves goes to the others.
PARTS = {"correct": 2, "fast": 4, "slowest": 0.5, "good": 6, "lessons": 1}
LATE = 30  # seconds that a part may take longer than its share: what has begun is finished


def circumstances(size: Size) -> dict:
    """Return where and how all was measured."""
    on_gpu = torch.cuda.is_available()
    gpu = torch.cuda.get_device_name() if on_gpu else "none"
    found = about() | {"gpu": gpu, "cuda": torch.version.cuda, "precision": best_precision(), "data": describe_data()}
    found |= {"python": sys.version.split()[0], "size": asdict(size)}
    if size is TINY:
        found["rehearsal"] = "tiny and on the processor, so no number means anything; graphs are not captured, the "
        found["rehearsal"] += "compiler only traces: of both the shape is tried, no more"
    return found


def run_part(part: str, out: Path, minutes: float, size: Size) -> None:
    """Do one part in this process."""
    if part == "correct":
        torch.backends.cudnn.allow_tf32 = False  # for convolutions it is on by default, for products of matrices off
    if size is TINY:  # the lessons and the validations of a training take all images there are
        recipes.load_fashion_mnist = lambda *where: tuple(values[: size.data] for values in load_fashion_mnist(*where))
        recipes.NUM_VALIDATION = TINY_VALIDATION
    report = Report(out, part, minutes, circumstances(size))
    {"correct": correct, "fast": fast, "slowest": slowest, "good": good, "lessons": lessons}[part](report, out, size)


def run_parts(parts: list[str], out: Path, minutes: float, options: list[str]) -> None:
    """Do each part in a process of its own: one that breaks, or breaks the GPU's state, leaves the others alone."""
    end, path, ended, results = time.monotonic() + 60 * minutes, out / "gpu.json", {}, {}
    path.unlink(missing_ok=True)
    for number, part in enumerate(parts):
        share = PARTS[part] / sum(PARTS[each] for each in parts[number:])
        seconds = max(0.0, share * (end - time.monotonic()))
        command = [sys.executable, __file__, "--parts", part, "--out", str(out), "--minutes", f"{seconds / 60:.3f}"]
        with (out / f"{part}.log").open("w") as log:  # progress bars and warnings
            try:
                status = subprocess.run([*command, *options], stderr=log, timeout=seconds + LATE).returncode
                ended[part] = "well" if status == 0 else f"with status {status}; see {part}.log"
            except subprocess.TimeoutExpired:
                ended[part] = f"stopped, {LATE} seconds after its time"
        results = (json.loads(path.read_text()) if path.exists() else {}) | {"ended": ended}
        write_atomically(path, partial(write_results, results))
    if failed := faults(results):
        sys.exit("failed: " + "; ".join(failed))


def write_results(results: dict, file: Path) -> None:
    """Write the results to a file."""
    file.write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    if options.rehearse:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU here; --rehearse does everything on the processor, at a tiny size")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if len(options.parts) > 1:
        run_parts(options.parts, out, options.minutes, ["--rehearse"] if options.rehearse else [])
    else:
        run_part(options.parts[0], out, options.minutes, TINY if options.rehearse else Size())


if __name__ == "__main__":
    main()
