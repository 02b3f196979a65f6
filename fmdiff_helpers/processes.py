"""Several processes as one: what `accelerate launch` starts does its share each, and all of them know the result.

On a machine with GPUs each process has one of them; without, they share the processor. Started on its own, a process
is the only one, and its share is everything.
"""

from collections.abc import Iterable

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor


def join() -> PartialState:
    """Join the other processes of this launch; the state says how many there are, and which of them this one is."""
    # Unless it is told so, accelerate takes processes without a GPU for strangers, each of which does all the work.
    return PartialState(cpu=not torch.accelerator.is_available())


def at_once(device: torch.device) -> int:
    """Return how many images a network should see at once on a device: 100 on a CPU, 2,000 on CUDA, else 500."""
    # 100 images stay in the cache of a CPU core: with 500 at once, networks on pixels take 9 to 13 % longer, those on
    # latents 5 to 8 % less (benchmarks/tricks.py); and fewer at once are dealt more evenly.
    # On a GPU more at once are faster, as it waits for the processor to start the operations (benchmarks/gpu.py).
    return {"cpu": 100, "cuda": 2000}.get(device.type, 500)


def deal(parts: Iterable, shared: bool) -> dict[int, object]:
    """Return the parts that are this process's to work on, by number; all of them if they are not `shared`."""
    state, numbered = join(), list(enumerate(parts))
    return dict(numbered[state.process_index :: state.num_processes] if shared else numbered)


def collect(done: dict[int, Tensor], shared: bool) -> Tensor:
    """Return as one tensor what was made of all parts, in order of their numbers; on the CPU if they were `shared`.

    Every process must make the call, and all get the same.
    """
    if shared and join().num_processes > 1:
        done = dict(gather_object([(number, part.cpu()) for number, part in done.items()]))
    return torch.cat([done[number] for number in sorted(done)])
