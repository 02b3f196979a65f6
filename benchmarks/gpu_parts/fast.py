"""How fast do networks train and draw, beside others and beside what the device could do at best?"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fmdiff_helpers import batching
from fmdiff_helpers.batching import batch_size_on, in_batches, this_process
from fmdiff_helpers.data import to_model
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.run import best_precision
from fmdiff_helpers.samplers import sample_ddpm
from fmdiff_helpers.schedules import Schedule, linear_beta
from gpu_parts.loops import DENOISERS, GOOD, LOOPS, NAMES, begin, rate, stepper, timed, training_data
from gpu_parts.report import Report, Size

COMPILING = 75  # seconds that a network may take to be compiled and timed


class ByteCounter(TorchDispatchMode):
    """Count the bytes that go in and out of all operations, and of those that no compiler fuses with others."""

    def __init__(self):
        super().__init__()
        self.all = self.heavy = 0

    def __torch_dispatch__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        """Do the operation and count."""
        result = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func.name():
            moved = sum(part.nbytes for part in tree_leaves((args, kwargs, result)) if isinstance(part, Tensor))
            self.all += moved
            self.heavy += moved if re.search("conv|mm|attention", func.name()) else 0
        return result


def cost(step: Callable[[], object], batch: int) -> dict[str, float]:
    """Return what an image of a step costs: floating-point operations, and bytes as they are and at best."""
    with FlopCounterMode(display=False) as flops, ByteCounter() as moved:
        step()
    return {
        "gflop_an_image": flops.get_total_flops() / batch / 1e9,
        "mb_an_image": moved.all / batch / 1e6,
        "mb_an_image_fused": moved.heavy / batch / 1e6,
    }


def ceilings(size: Size) -> dict:
    """Return what the device does at best: operations in a product of matrices, bytes read and written in a copy."""
    device = this_process().device
    dtype = torch.bfloat16 if best_precision() == "bf16" else torch.float32
    a, b = torch.randn(2, size.matrix, size.matrix, device=device, dtype=dtype)
    source = torch.ones(size.copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    products, copies = rate(lambda: a @ b, 1, size), rate(lambda: target.copy_(source), 1, size)
    flops, moved = (
        each["highest"] * amount for each, amount in ((products, 2 * size.matrix**3), (copies, 2 * size.copied))
    )
    return {"tflops": flops / 1e12, "gb_a_second": moved / 1e9, "dtype": str(dtype), "matrix": size.matrix}


def shares(speed: float, costs: dict, best: dict) -> dict[str, float]:
    """Return a speed as a share of what the operations, the bytes, and the fewest bytes would allow.

    The ceiling is the lower one of operations and fewest bytes: "of_ceiling".
    """
    found = {
        "of_operations": speed * costs["gflop_an_image"] / (best["tflops"] * 1e3),
        "of_bytes": speed * costs["mb_an_image"] / (best["gb_a_second"] * 1e3),
        "of_fused_bytes": speed * costs["mb_an_image_fused"] / (best["gb_a_second"] * 1e3),
    }
    return found | {"of_ceiling": max(found["of_operations"], found["of_fused_bytes"])}


def loop_speed(name: str, loop: str, batch: int, size: Size, best: dict, eager: dict) -> dict:
    """Return the images a second of a whole training loop; the first step, with compilation and capture, apart.

    `eager` is what was found for the eager loop, where that is another: a step costs the same.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    run, data, _ = begin(name, loop, size, batch)
    step = stepper(run, data)
    start_up = timed(step)
    timed(step, 3)
    found = {"images_per_second": rate(step, batch, size), "first_step_seconds": start_up, "batch": batch}
    if torch.cuda.is_available():
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    if loop == "eager":
        found["cost"] = cost(step, batch)
    costs = found.get("cost") or eager.get("cost")
    if costs and "tflops" in best:
        found["share"] = shares(found["images_per_second"]["median"], costs, best)
    return found


def by_index(images: Tensor, labels: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random batches from a tensor."""
    while True:
        index = torch.randint(len(images), (batch,), device=images.device)
        yield to_model(images[index]), labels[index]


def annotated(images: Tensor, labels: Tensor, batch: int, shipped: bool = False) -> Callable[[], None]:
    """Return what trains the Annotated Diffusion Model for a step, with batches by index or, as shipped, its loader."""
    from original_unet import OriginalUNet, Pictures, add_noise

    device = images.device
    model, schedule = OriginalUNet().to(device), Schedule(linear_beta(200)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = torch.utils.data.DataLoader(Pictures(images.cpu()), batch, shuffle=True) if shipped else None
    source = chain.from_iterable(repeat(loader)) if shipped else (x for x, _ in by_index(images, labels, batch))

    def step() -> None:
        x0 = next(source).to(device)
        t, eps = torch.randint(200, (len(x0),), device=device), torch.randn_like(x0)
        optimizer.zero_grad()
        F.smooth_l1_loss(model(add_noise(x0, t, eps, schedule), t), eps).backward()
        optimizer.step()

    return step


def course_unet(images: Tensor, labels: Tensor, batch: int) -> Callable[[], None]:
    """Return what trains diffusers' UNet2DModel, as `peers.CourseUNet` sets it up, for a step."""
    from peers import CourseUNet

    peer, device = CourseUNet(images, labels), images.device
    for network in peer.networks():
        network.to(device).train()
    source = by_index(images, labels, batch)

    def step() -> None:
        x0, y = next(source)
        t, eps = torch.randint(1000, (batch,), device=device), torch.randn_like(x0)
        peer.optimizer.zero_grad()
        F.mse_loss(peer.predict(peer.noising.add_noise(x0, eps, t), t, y), eps).backward()
        peer.optimizer.step()

    return step


def peer_speed(peer: Callable, batch: int, size: Size) -> dict:
    """Return the images a second of another's training, in PyTorch's own settings, as its authors run it."""
    step = peer(*training_data(None, size.data), batch)
    start_up = timed(step)
    return {"images_per_second": rate(step, batch, size), "first_step_seconds": start_up, "batch": batch}


def sampling_speed(name: str, size: Size) -> dict:
    """Return the images a second that a published network draws, decoded: as it is, in bf16, and 500 images at once."""
    device = this_process().device
    drawer = load_drawer(name, size.steps, device=device)
    found, usual = {"steps": size.steps, "n": size.drawn}, batch_size_on(device)
    for label, bf16, number in (("float32", False, usual), ("bf16", True, usual), ("float32, 500 at once", False, 500)):
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=bf16),
            patch.object(batching, "batch_size_on") as size_of,
        ):
            size_of.return_value = number
            found[label] = rate(lambda: drawer.draw(size.drawn, 0, drawer.all_kinds(size.drawn)), size.drawn, size)
    return found


def annotated_sampling(size: Size) -> dict:
    """Return the images a second that the Annotated Diffusion Model draws with all of its 200 steps."""
    from original_unet import OriginalUNet

    device, steps = this_process().device, 200 if size.steps > 2 else 2
    model, schedule = OriginalUNet().to(device).eval(), Schedule(linear_beta(200)).to(device)
    noise = torch.randn(size.drawn, 1, 28, 28, device=device)
    draw = partial(sample_ddpm, model, schedule=schedule, num_steps=steps)
    return {"steps": steps, "n": size.drawn, "float32": size.drawn / timed(lambda: in_batches(draw, noise))}


def profile(name: str, batch: int, size: Size) -> dict:
    """Return the 15 operations on which a training of a network spends most of the device's time."""
    run, data, _ = begin(name, "eager", size, batch)
    timed(stepper(run, data), 3)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    with torch.profiler.profile(activities=kinds) as profiler:
        timed(stepper(run, data), 5)
    key = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    events = [event for event in profiler.key_averages() if event.device_type == torch.autograd.DeviceType.CPU]
    events.sort(key=lambda event: -getattr(event, key))  # operations; their kernels are events of the GPU
    total = sum(getattr(event, key) for event in events)
    rows = [[event.key[:90], event.count, round(getattr(event, key) / total, 4)] for event in events[:15]]
    return {"network": name, "batch": batch, "steps": 5, "microseconds": total, "operation, calls, share": rows}


def slowest(report: Report, out: Path, size: Size) -> None:
    """Profile the denoiser whose training is furthest from its ceiling; apart, as eager loops were slower after it."""
    first = size.batches[0]
    rows = {name: report.results.get("fast", {}).get(f"train {name}, eager, batch {first}", {}) for name in DENOISERS}
    share = {name: row.get("share", {}).get("of_ceiling", 1) for name, row in rows.items()}
    report.add("profile", partial(profile, min(share, key=share.get), first, size))


def fast(report: Report, out: Path, size: Size) -> None:
    """Measure how fast networks train and draw: first what is sure to work, last what takes half a minute each."""
    best, first, found = report.add("ceilings", partial(ceilings, size)), size.batches[0], {}

    def measure(loops: tuple[str, ...], names: Iterable[str], batch: int) -> None:
        for name in names:
            for loop in loops:
                work = partial(loop_speed, name, loop, batch, size, best, found.get((name, "eager", batch), {}))
                if "compiled" in loop and torch.cuda.is_available() and report.left() < COMPILING:
                    work = partial(dict, {"left out": f"less than {COMPILING} seconds were left to compile it"})
                found[name, loop, batch] = report.add(f"train {name}, {loop}, batch {batch}", work)

    def measure_peers(batch: int) -> None:
        for label, peer in (("Annotated Diffusion Model", annotated), ("diffusers UNet2DModel", course_unet)):
            report.add(f"train {label}, eager, batch {batch}", partial(peer_speed, peer, batch, size))

    measure(("eager",), NAMES, first)
    measure_peers(first)
    shipped = partial(annotated, shipped=True)
    report.add("train Annotated Diffusion Model, as shipped, batch 128", partial(peer_speed, shipped, 128, size))
    for name in DENOISERS:
        report.add(f"sample {name}", partial(sampling_speed, name, size))
    report.add("sample Annotated Diffusion Model", partial(annotated_sampling, size))
    measure(("graph",), NAMES, first)
    for batch in size.batches[1:]:
        measure(LOOPS[:2], NAMES, batch)
        measure_peers(batch)
    measure(("compiled graph", "compiled"), GOOD, first)
