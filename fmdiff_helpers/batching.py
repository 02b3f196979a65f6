"""Work in batches, and share them among the processes that `accelerate launch` starts.

On a machine with GPUs each process has one of them; without, they share the processor. A process that was started on
its own does everything.
"""

from collections.abc import Callable, Iterable

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm.auto import tqdm


def this_process() -> PartialState:
    """Join the other processes of this launch; the state says how many there are, and which of them this one is."""
    # Without cpu=True, accelerate treats CPU processes as unrelated, and each repeats all the work.
    return PartialState(cpu=not torch.accelerator.is_available())


def batch_size_on(device: torch.device) -> int:
    """Return how many images a network should see at once on a device: 100 on a CPU, 2,000 on CUDA, else 500."""
    # 100 images stay in the cache of a CPU core: with 500 at once, networks on pixels take 9 to 13 % longer, those on
    # latents 5 to 8 % less (benchmarks/tricks.py); and smaller batches are shared more evenly.
    # A GPU waits for the processor to start each operation, so larger batches are faster (benchmarks/gpu.py).
    return {"cpu": 100, "cuda": 2000}.get(device.type, 500)


def own_parts(parts: Iterable, shared: bool) -> dict[int, object]:
    """Return the parts that this process works on, by number: every num_processes-th if `shared`, else all."""
    state, numbered = this_process(), list(enumerate(parts))
    return dict(numbered[state.process_index :: state.num_processes] if shared else numbered)


def gather_parts(done: dict[int, Tensor], shared: bool) -> Tensor:
    """Return the results of all parts as one tensor, in order of their numbers; on the CPU if they were `shared`.

    If `shared`, every process must make the call, and all get the same.
    """
    if shared and this_process().num_processes > 1:
        done = dict(gather_object([(number, part.cpu()) for number, part in done.items()]))
    return torch.cat([done[number] for number in sorted(done)])


def in_batches(
    apply: Callable[..., Tensor], *inputs: Tensor, batch_size: int | None = None, shared: bool = False
) -> Tensor:
    """Apply a function to inputs (N, ...) in batches, smaller ones where memory runs out; show progress.

    A batch has `batch_size_on` images; the results are on the inputs' device. If `shared`, each process of
    `accelerate launch` works on a part of the batches: all of them must make the call, and all get all N results.
    ValueError where there are no inputs.
    """
    n, device = len(inputs[0]), inputs[0].device
    if not n:
        raise ValueError("there are 0 inputs; expected at least 1: ask for at least one image")
    batch_size = batch_size or batch_size_on(device)
    starts = range(0, n, batch_size)
    todo = [(start, min(start + batch_size, n)) for start in own_parts(starts, shared).values()]
    done, total = {}, sum(last - first for first, last in todo)
    with tqdm(total=total, unit="image", leave=False, disable=n <= 500 or not this_process().is_main_process) as bar:
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
