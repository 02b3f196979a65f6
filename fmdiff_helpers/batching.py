"""Work in batches, and share them among the processes that `accelerate launch` starts.

On a machine with GPUs each process has its own GPU; on others all processes share the CPU. A process that was started
alone does all the work.
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor
from tqdm.auto import tqdm


def this_process() -> PartialState:
    """Return the state of this process: its device, its number, and how many processes this launch has."""
    # Without cpu=True, accelerate treats CPU processes as unrelated, and each repeats all the work.
    return PartialState(cpu=not torch.accelerator.is_available())


def shows_bars() -> bool:
    """Tell whether this process shows bars: in a notebook or on a terminal, but not where the output is a file."""
    in_notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    return this_process().is_main_process and (in_notebook or sys.stderr.isatty())


def batch_size_on(device: torch.device) -> int:
    """Return the number of images in a batch on a device: 100 on a CPU, 2,000 on CUDA, else 500."""
    # 100 images stay in the cache of a CPU core. With 500, networks on pixels take 9 to 13 % longer, those on latents
    # 5 to 8 % less (benchmarks/tricks.py). Smaller batches are also shared more evenly.
    # A GPU waits for the CPU to start each operation, so larger batches are faster (benchmarks/gpu.py).
    return {"cpu": 100, "cuda": 2000}.get(device.type, 500)


def own_part(batch: Tensor) -> Tensor:
    """Return the part of a batch (B, ...) that this process trains on."""
    return batch.chunk(this_process().num_processes)[this_process().process_index]


def mean_of_processes(x: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes that share a batch, so that all of them go on alike."""
    return reduce(x, "mean")


def own_parts(parts: Iterable, shared: bool) -> dict[int, Any]:
    """Return the parts that this process works on, by their numbers: every num_processes-th if `shared`, else all."""
    state, numbered = this_process(), list(enumerate(parts))
    return dict(numbered[state.process_index :: state.num_processes] if shared else numbered)


def gather_parts(done: dict[int, Tensor], shared: bool) -> Tensor:
    """Return the results of all parts as one tensor, in the order of their numbers.

    If `shared`, all processes must call this, and all get the same tensor, on the CPU if there are several.
    """
    if shared and this_process().num_processes > 1:
        done = dict(gather_object([(number, part.cpu()) for number, part in done.items()]))
    return torch.cat([done[number] for number in sorted(done)])


def in_batches(
    apply: Callable[..., Tensor], *inputs: Tensor, batch_size: int | None = None, shared: bool = False
) -> Tensor:
    """Apply a function to inputs (N, ...) in batches, in smaller ones where memory runs out; show progress.

    A batch has `batch_size` inputs, or `batch_size_on` their device, where the results are, too. If `shared`, each
    process of `accelerate launch` works on a part of the batches: all must call this, and all get all N results.
    ValueError where there are no inputs.
    """
    n, device = len(inputs[0]), inputs[0].device
    if not n:
        raise ValueError("there are 0 inputs; expected at least 1: ask for at least one image")
    batch_size = batch_size or batch_size_on(device)
    starts = range(0, n, batch_size)
    todo = [(start, min(start + batch_size, n)) for start in own_parts(starts, shared).values()]
    done, total = {}, sum(last - first for first, last in todo)
    with tqdm(total=total, unit="image", leave=False, disable=n <= 500 or not shows_bars()) as bar:
        while todo:
            first, last = todo.pop(0)
            try:
                done[first] = apply(*(x[first:last] for x in inputs))
            except torch.OutOfMemoryError:
                if last - first == 1:
                    raise
                half = (last - first) // 2
                todo = [(k, min(k + half, b)) for a, b in ((first, last), *todo) for k in range(a, b, half)]
                continue
            bar.update(last - first)
    return gather_parts(done, shared).to(device)
