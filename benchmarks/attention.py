"""Measure what attention costs as the sentence grows: time, and memory kept for the backward pass.

uv run python benchmarks/attention.py [THREADS]      writes benchmarks/attention.json

Three ways, on 4 heads of 32 numbers: softmax attention with its n x n matrix, the same fused as PyTorch ships it, and
linear attention. In turns, so that a slow moment of the machine hits all three.
"""

import json
import os
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from machine import about, save
from torch import Tensor

from fmdiff_helpers.models.transformer import ATTENTION, attention_matrix

SIZES = [2**k for k in range(4, 13)]
ROUNDS, SECONDS = 5, 0.3
WAYS = {
    "softmax, matrix": lambda q, k, v: attention_matrix(q, k, "softmax") @ v,
    "softmax, fused": ATTENTION["softmax"],
    "linear": ATTENTION["linear"],
}


def sentence(n: int, requires_grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values of n tokens, (1, 4, n, 32) each."""
    return tuple(torch.randn(1, 4, n, 32, requires_grad=requires_grad) for _ in range(3))


def milliseconds(attend: Callable, n: int) -> float:
    """Return the time of one forward pass, the shortest of three or more, as many as take `SECONDS`."""
    inputs, durations = sentence(n), []
    with torch.no_grad():
        attend(*inputs)
        while len(durations) < 3 or sum(durations) < SECONDS:
            begin = time.perf_counter()
            attend(*inputs)
            durations.append(time.perf_counter() - begin)
    return 1000 * min(durations)


def kept_megabytes(attend: Callable, n: int) -> float:
    """Return the memory that autograd keeps until the backward pass; a tensor that is kept twice counts once."""
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend(*sentence(n, requires_grad=True))
    return sum(kept.values()) / 1e6


def slope(values: list[float]) -> float:
    """Return the slope of log value against log n, from 1,024 tokens on."""
    chosen = [k for k, n in enumerate(SIZES) if n >= 1024]
    return float(np.polyfit(np.log([SIZES[k] for k in chosen]), np.log([values[k] for k in chosen]), 1)[0])


def crossing(cheaper_later: list[float], dearer_later: list[float]) -> float:
    """Return the number of tokens from which on the first stays cheaper, interpolated between the sizes measured."""
    gap = np.log(cheaper_later) - np.log(dearer_later)
    last = max((k for k in range(len(SIZES)) if gap[k] > 0), default=None)
    if last is None:
        return SIZES[0]
    share = gap[last] / (gap[last] - gap[last + 1])
    return float(SIZES[last] * (SIZES[last + 1] / SIZES[last]) ** share)


def main() -> None:
    """Measure all three in turns and write the result with machine and versions."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else os.cpu_count())
    rounds = [{way: [milliseconds(f, n) for n in SIZES] for way, f in WAYS.items()} for _ in range(ROUNDS)]
    table = {way: np.median([r[way] for r in rounds], axis=0).tolist() for way in WAYS}
    slopes = {way: [slope(r[way]) for r in rounds] for way in WAYS}
    crossings = {way: [crossing(r["linear"], r[way]) for r in rounds] for way in WAYS if way != "linear"}
    result = {
        "what": f"one forward pass of attention, 4 heads of 32 numbers, one sentence; median of {ROUNDS} rounds",
        **about(),
        "tokens": SIZES,
        "milliseconds": {way: [round(value, 4) for value in values] for way, values in table.items()},
        "kept_megabytes": {way: [round(kept_megabytes(f, n), 3) for n in SIZES] for way, f in WAYS.items()},
        "slope from 1024 tokens on": {way: spread(values, 2) for way, values in slopes.items()},
        "linear is faster from so many tokens on than": {way: spread(values, 0) for way, values in crossings.items()},
    }
    save(__file__, result)
    print(json.dumps(result, indent=1))


def spread(values: list[float], digits: int) -> dict[str, float]:
    """Return the median, the lowest and the highest of the rounds."""
    ordered = [round(value, digits) for value in sorted(values)]
    return {"median": ordered[len(ordered) // 2], "lowest": ordered[0], "highest": ordered[-1]}


if __name__ == "__main__":
    main()
