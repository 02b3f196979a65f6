"""Prove on a GPU what only a GPU can prove: that all is correct there, how fast it is, and how good in a minute.

python benchmarks/gpu.py [--parts correct fast good lessons] [--out FOLDER] [--minutes 8]    writes FOLDER/gpu.json
python benchmarks/gpu.py --rehearse        the same at a tiny size on the processor, where no number means anything

The parts, each in a process of its own, with its share of the minutes:
correct   every network on the GPU against the processor, in float32; bf16 steps; a training resumed, also without GPU
fast      images a second of whole training loops, ours and others', beside the ceilings of the machine; of sampling
good      networks trained for about a minute each, with their weights in FOLDER, and how good their samples are
lessons   the training cells of the lessons, with epochs = "auto"
It needs no installation: PyTorch, accelerate, einops, safetensors, tqdm and the working tree do. After each measurement
gpu.json is written; what fails is an "error" there, and what finds no time is "left out".
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from machine import about, middle  # noqa: E402

from fmdiff_helpers import checkpoints, recipes, samplers  # noqa: E402
from fmdiff_helpers.checkpoints import build, load_pretrained, read_card, write_atomically  # noqa: E402
from fmdiff_helpers.data import describe_data, load_fashion_mnist, to_model, to_uint8  # noqa: E402
from fmdiff_helpers.leaderboard import labels_for  # noqa: E402
from fmdiff_helpers.metrics import covered, features, frechet_distance, mean_and_spread  # noqa: E402
from fmdiff_helpers.processes import join  # noqa: E402
from fmdiff_helpers.recipes import (  # noqa: E402
    CARDS,
    NUM_VALIDATION,
    describe_autoencoder,
    latent_shape,
    load_denoiser,
    load_sampler,
    task,
    train_network,
)
from fmdiff_helpers.samplers import in_batches, sample_ddim, sample_ddpm  # noqa: E402
from fmdiff_helpers.schedules import Schedule, linear_beta  # noqa: E402
from fmdiff_helpers.train import Run, best_precision, check_recipe, keep_best, learning_rate  # noqa: E402

PARTS = {"correct": 1, "fast": 3, "good": 4, "lessons": 1}  # part -> its share of the minutes
DENOISERS = tuple(name for name, card in CARDS.items() if "schedule" in card)
GOOD = ("unet", "patch_unet", "latent_unet", "transformer")
LOOPS = ("eager", "graph", "compiled", "compiled graph")
TOLERANCE = {"prediction": 1e-4, "loss": 1e-4, "gradient": 1e-3, "samples": 1e-2}  # |GPU - CPU| / |CPU|
HIGHEST_RATE = 4e-3  # of any recipe


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    data: int = 60_000  # training images, the validation images among them
    batches: tuple[int, ...] = (512, 128, 2048)
    seconds: float = 0.25  # of a round of timing
    rounds: int = 3
    compared: int = 64  # images on which GPU and processor are compared
    steps: int = 20  # of a sampler
    resumed: int = 100  # steps of the training that is interrupted
    resumed_batch: int = 128
    drawn: int = 1000  # images a timing of a sampler draws
    judged: int = 5000  # images whose FD is measured
    seeds: int = 3
    good_batch: int = 512
    good_seconds: float = 60
    matrix: int = 8192
    copied: int = 2**30  # bytes
    epochs: float | str = "auto"  # of a lesson


TINY = Size(
    2100, (8, 4), 0.01, 2, 4, 2, 4, 8, 8, 300, 1, 8, 0.5, 128, 2**20, 0.01
)  # fmt: skip


class Report:
    """What has been measured, by part and name, in a file that is written anew after each measurement."""

    def __init__(self, out: Path, part: str, minutes: float):
        self.path, self.part, self.end = out / "gpu.json", part, time.monotonic() + 60 * minutes
        self.results = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.rows = self.results[part] = {}

    def left(self) -> float:
        """Return how many seconds are left."""
        return self.end - time.monotonic()

    def add(self, name: str, work: Callable[[], dict]) -> dict:
        """Measure something, write what was found, or how it failed, and return it."""
        start = time.monotonic()
        try:
            found = work() if self.left() > 0 else {"left out": "no time was left"}
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            found = {"error": f"{type(error).__name__}: {error}"[:600], "where": f"{where.filename}:{where.lineno}"}
        self.rows[name] = found | {"took_seconds": round(time.monotonic() - start, 2)}
        write_atomically(self.path, lambda file: file.write_text(json.dumps(self.results, indent=1) + "\n"))
        print(self.part, name, json.dumps(self.rows[name])[:500], flush=True)
        return found


def synchronize() -> None:
    """Wait until the GPU has done all."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], object], times: int = 1) -> float:
    """Return the seconds of some work, done so many times."""
    synchronize()
    start = time.perf_counter()
    for _ in range(times):
        work()
    synchronize()
    return time.perf_counter() - start


def rate(work: Callable[[], object], images: int, size: Size) -> dict:
    """Return the images a second of warm work on so many images: median, lowest and highest of the rounds."""
    times = max(1, round(size.seconds / (timed(work, 3) / 3)))
    found = middle([times * images / timed(work, times) for _ in range(size.rounds)])
    return found | {"rounds": size.rounds, "times_a_round": times}


@cache
def training_data(autoencoder: str | None, number: int) -> tuple[Tensor, Tensor]:
    """Return the training images, or their latents, and labels, on the device."""
    device = join().device
    images, labels = (part[:number] for part in load_fashion_mnist("train", device))
    if autoencoder:
        vae = load_pretrained(autoencoder, device)
        images = in_batches(lambda part: vae.to_latent(to_model(part)), images)
    return images, labels


class GraphRun(Run):
    """A training whose step, but for batch, draws and averages, is one CUDA graph; on a processor just that step."""

    def __init__(self, model: nn.Module, loss_fn: Callable, draw: Callable, card: dict):
        super().__init__(model, loss_fn, draw, card)
        on_gpu = self.accelerator.device.type == "cuda"
        self.rate = torch.tensor(self.recipe["lr"], device=self.accelerator.device)  # what a graph reads anew
        decay = self.recipe["weight_decay"]
        self.optimizer = torch.optim.AdamW(
            self.plain.parameters(), self.rate, weight_decay=decay, fused=True, capturable=on_gpu
        )
        self.inputs, self.replay = [], self.work

    def work(self) -> Tensor:
        """Take a step down the loss of the inputs as they lie there."""
        self.optimizer.zero_grad()
        loss = self.loss_fn(self.model, *self.inputs).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.plain.parameters(), self.recipe["clip"])
        self.optimizer.step()
        return loss.detach()

    def capture(self) -> Callable[[], Tensor]:
        """Return what replays `work`; RuntimeError, before a capture could break, where the step waits for the GPU."""
        before, side = [p.detach().clone() for p in self.plain.parameters()], torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for mode in ("default", "default", "error"):
                torch.cuda.set_sync_debug_mode(mode)
                try:
                    self.work()
                finally:
                    torch.cuda.set_sync_debug_mode("default")
        torch.cuda.current_stream().wait_stream(side)
        with torch.no_grad():  # the steps above were to get ready: all starts as if they had not been
            torch._foreach_copy_(list(self.plain.parameters()), before)
            for values in self.optimizer.state.values():
                torch._foreach_zero_(list(values.values()))
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad()
        with torch.cuda.graph(graph):
            loss = self.work()
        return lambda: (graph.replay(), loss)[1]

    def train_step(self, x0: Tensor, y: Tensor) -> Tensor:
        """Take one step down the loss of a batch; return the loss, still on the device."""
        values = (x0, y, *self.draw(x0, self.generator))
        course = (self.recipe[key] for key in ("steps", "warmup", "cycles", "floor"))
        self.rate.fill_(self.recipe["lr"] * learning_rate(self.step, *course))
        if not self.inputs:
            self.inputs = [value.clone() for value in values]
            self.replay = self.capture() if self.accelerator.device.type == "cuda" else self.work
        for place, value in zip(self.inputs, values, strict=True):
            place.copy_(value)
        loss = self.replay()
        self.step += 1
        self.ema.update_parameters(self.plain)
        return loss


def begin(name: str, loop: str, size: Size, batch: int, **recipe: int) -> tuple[Run, tuple, Callable]:
    """Return the training of a network by one of `LOOPS`, its data and its validation; lr grows as batch^(1/2)."""
    card, device = CARDS[name], join().device
    lr = min(HIGHEST_RATE, card["recipe"]["lr"] * math.sqrt(batch / 128)) if batch > 128 else card["recipe"]["lr"]
    recipe = {"steps": 100_000, "batch_size": batch, "lr": lr} | recipe
    card = card | {"recipe": check_recipe(card["recipe"] | recipe, size.data), "data": describe_data()}
    images, labels = training_data(card.get("autoencoder"), size.data)
    plain = {key: value for key, value in card.items() if key != "autoencoder"}  # the latents are made
    loss, draw, data, validate = task(plain, images, labels, device)
    if encoder := card.get("autoencoder"):
        card["autoencoder"] = describe_autoencoder(encoder, latent_shape(CARDS[encoder]))
    torch.manual_seed(0)
    model = build(card)
    if "compiled" in loop:
        backend = "inductor" if device.type == "cuda" else "aot_eager"
        model.forward = MethodType(torch.compile(type(model).forward, backend=backend), model)
    run = (GraphRun if "graph" in loop else Run)(model, loss, draw, card)
    vars(run.ema.module).pop("forward", None)  # validation is rare: it need not be compiled
    return run, data, validate


def stepper(run: Run, data: tuple[Tensor, Tensor]) -> Callable[[], Tensor]:
    """Return what takes a training step."""
    return lambda: run.train_step(*run.next_batch(*data))


# --- correct


def relative(found: list[Tensor], expected: list[Tensor]) -> float:
    """Return |found - expected| / |expected| over all tensors."""
    found, expected = (torch.cat([t.detach().double().cpu().flatten() for t in each]) for each in (found, expected))
    return ((found - expected).norm() / expected.norm()).item()


def answers(name: str, size: Size, device: str, x0: Tensor, y: Tensor) -> dict[str, list[Tensor]]:
    """Return what a published network says, its loss, its gradient and, where it draws, samples, on a device."""
    card, outputs = {k: v for k, v in CARDS[name].items() if k != "autoencoder"}, []
    card = card | {"recipe": {"steps": 100}}
    held_out = torch.zeros((NUM_VALIDATION + 1, *x0.shape[1:]))
    loss_fn, draw, _, _ = task(card, held_out, torch.zeros(len(held_out), dtype=torch.long), torch.device("cpu"))
    drawn = draw(x0, torch.Generator().manual_seed(1))
    loss_fn, *_ = task(card, held_out, torch.zeros(len(held_out), dtype=torch.long), torch.device(device))
    model = load_pretrained(name, device).requires_grad_(True)

    def watched(*inputs: Tensor) -> Tensor:
        outputs.append(model(*inputs))
        return outputs[-1]

    loss = loss_fn(watched, x0.to(device), y.to(device), *(value.to(device) for value in drawn))
    gradient = torch.autograd.grad(loss.mean(), list(model.parameters()), allow_unused=True)
    outputs = [part for part in tree_leaves(outputs) if isinstance(part, Tensor)]
    found = {"prediction": outputs, "loss": [loss], "gradient": [part for part in gradient if part is not None]}
    if name in DENOISERS:
        predict, schedule = load_denoiser(name, device)
        labels = y.to(device) if CARDS[name]["arguments"]["num_classes"] else None
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2)).to(device)
        clip = math.inf if "autoencoder" in CARDS[name] else 1.0
        found["samples"] = [sample_ddim(predict, noise, schedule, num_steps=size.steps, y=labels, clip=clip)]
    return found


def agrees(name: str, size: Size) -> dict:
    """Compare a published network on the device with itself on the processor, without TF32."""
    x, y = training_data(CARDS[name].get("autoencoder"), size.data)
    x0, y = x[: size.compared].cpu(), y[: size.compared].cpu()
    x0 = x0 if x0.is_floating_point() else to_model(x0)
    here, there = (answers(name, size, device, x0, y) for device in ("cpu", str(join().device)))
    difference = {what: relative(there[what], here[what]) for what in here}
    passed = all(difference[what] <= TOLERANCE[what] for what in difference)
    return {"passed": passed, "difference": difference, "tolerance": TOLERANCE, "n": size.compared}


def steps_are_finite(name: str, size: Size, loop: str) -> dict:
    """Take two training steps in mixed precision, and count how often a step waits for the GPU."""
    run, data, _ = begin(name, loop, size, size.resumed_batch)
    step = stepper(run, data)
    losses = [step().item() for _ in range(2)]
    passed = all(map(math.isfinite, losses)) and all(p.isfinite().all().item() for p in run.plain.parameters())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
        step()
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
    waits = [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
    return {"passed": passed, "precision": best_precision(), "losses": losses, "waits_a_step": waits}


def resumes(out: Path, size: Size) -> dict:
    """Stop a training half-way, go on with it on the device and, in a process without a GPU, on the processor."""
    recipe = {"steps": size.resumed, "every": size.resumed // 2, "batch_size": size.resumed_batch}
    name, halves = "transformer", [out / "resume" / place for place in ("device", "processor")]

    def stop(history: list[dict]) -> None:
        if history[-1]["step"] >= recipe["every"]:
            raise KeyboardInterrupt

    whole, _ = train_network(name, out / "resume" / "whole", **recipe)
    for folder in halves:
        train_network(name, folder, stop, **recipe)
    again, _ = train_network(name, halves[0], **recipe)
    code = "import sys; sys.path.insert(0, sys.argv[1]); from fmdiff_helpers.recipes import train_network as train; "
    code += f"train({name!r}, sys.argv[2], **{recipe})"
    alone = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code, str(ROOT), str(halves[1])]
    done = subprocess.run(command, env=alone, capture_output=True, text=True)
    ends = [read_card(out / "resume" / place)["history"][-1] for place in ("whole", "device", "processor")]
    difference = relative(list(again.parameters()), list(whole.parameters()))
    losses = [end["validation"]["loss"] for end in ends]
    on_device = ends[1]["step"] == size.resumed and difference <= 1e-2
    on_processor = done.returncode == 0 and ends[2]["step"] == size.resumed and abs(losses[2] / losses[0] - 1) < 0.05
    found = {"passed": on_device and on_processor, "difference_of_weights": difference, "tolerance": 1e-2}
    found |= {"steps": [end["step"] for end in ends], "losses": losses, "loss_tolerance_processor": 0.05}
    return found | ({"error": done.stderr[-600:]} if done.returncode else {})


def correct(report: Report, out: Path, size: Size) -> None:
    """Prove that the device computes what the processor does."""
    for name in CARDS:
        report.add(name, partial(agrees, name, size))
    report.add("resume: whole, on the device, on the processor", partial(resumes, out, size))
    for name in CARDS:
        for loop in LOOPS[:2]:
            report.add(f"steps of {name}, {loop}", partial(steps_are_finite, name, size, loop))


# --- fast


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
    device = join().device
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
    """Return a speed as a share of what the operations, the bytes, and the fewest bytes would allow."""
    return {
        "of_operations": speed * costs["gflop_an_image"] / (best["tflops"] * 1e3),
        "of_bytes": speed * costs["mb_an_image"] / (best["gb_a_second"] * 1e3),
        "of_fused_bytes": speed * costs["mb_an_image_fused"] / (best["gb_a_second"] * 1e3),
    }


def loop_speed(name: str, loop: str, batch: int, size: Size, best: dict) -> dict:
    """Return the images a second of a whole training loop; the first step apart, compilation and capture included."""
    run, data, _ = begin(name, loop, size, batch)
    step = stepper(run, data)
    start_up = timed(step)
    timed(step, 3)
    found = {"images_per_second": rate(step, batch, size), "first_step_seconds": start_up, "batch": batch}
    if loop == "eager" and best.get("tflops"):
        found |= cost(step, batch)
        found["share"] = shares(found["images_per_second"]["median"], found, best)
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
    source = (x for _ in iter(int, 1) for x in loader) if shipped else (x for x, _ in by_index(images, labels, batch))

    def step() -> None:
        x0 = next(source).to(device)
        t, eps = torch.randint(200, (len(x0),), device=device), torch.randn_like(x0)
        optimizer.zero_grad()
        F.smooth_l1_loss(model(add_noise(x0, t, eps, schedule), t), eps).backward()
        optimizer.step()

    return step


def course_unet(images: Tensor, labels: Tensor, batch: int) -> Callable[[], None]:
    """Return what trains diffusers' UNet2DModel, as `peers.CourseUNet` sets it up, for a step."""
    from peers import CourseUNet, DDPMScheduler

    peer, device = CourseUNet(images, labels), images.device
    for network in peer.networks():
        network.to(device).train()
    scheduler, source = DDPMScheduler(**peer.betas), by_index(images, labels, batch)

    def step() -> None:
        x0, y = next(source)
        t, eps = torch.randint(1000, (batch,), device=device), torch.randn_like(x0)
        peer.optimizer.zero_grad()
        F.mse_loss(peer.predict(scheduler.add_noise(x0, eps, t), t, y), eps).backward()
        peer.optimizer.step()

    return step


def peer_speed(peer: Callable, batch: int, size: Size) -> dict:
    """Return the images a second of another's training, in PyTorch's own settings, as its authors run it."""
    step = peer(*training_data(None, size.data), batch)
    start_up = timed(step)
    return {"images_per_second": rate(step, batch, size), "first_step_seconds": start_up, "batch": batch}


def sampling_speed(name: str, size: Size) -> dict:
    """Return the images a second that a published network draws, decoded, in float32 and in mixed precision."""
    device = join().device
    draw, y = load_sampler(name, size.steps, device=device), labels_for(name, size.drawn)
    found = {"steps": size.steps, "n": size.drawn}
    for precision, on in (("float32", False), ("bf16", True)):
        with torch.autocast(device.type, torch.bfloat16, enabled=on):
            found[precision] = rate(lambda: draw(size.drawn, 0, y), size.drawn, size)
    return found


def annotated_sampling(size: Size) -> dict:
    """Return the images a second that the Annotated Diffusion Model draws with all of its 200 steps."""
    from original_unet import OriginalUNet

    device, steps = join().device, 200 if size.steps > 2 else 2
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
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, key))
    total = sum(getattr(event, key) for event in events)
    rows = [[event.key[:90], event.count, round(getattr(event, key) / total, 4)] for event in events[:15]]
    return {"network": name, "batch": batch, "steps": 5, "microseconds": total, "operation, calls, share": rows}


def fast(report: Report, out: Path, size: Size) -> None:
    """Measure how fast networks train and draw."""
    best, shown = report.add("ceilings", partial(ceilings, size)), {}

    def measure(name: str, loop: str, batch: int) -> None:
        label = f"train {name}, {loop}, batch {batch}"
        shown[label] = report.add(label, partial(loop_speed, name, loop, batch, size, best))

    first = size.batches[0]
    for batch in size.batches:
        for loop in LOOPS[:2]:
            for name in CARDS:
                measure(name, loop, batch)
        for label, peer in (("Annotated Diffusion Model", annotated), ("diffusers UNet2DModel", course_unet)):
            report.add(f"train {label}, eager, batch {batch}", partial(peer_speed, peer, batch, size))
    shipped = partial(annotated, shipped=True)
    report.add("train Annotated Diffusion Model, as shipped, batch 128", partial(peer_speed, shipped, 128, size))
    for name in DENOISERS:
        report.add(f"sample {name}", partial(sampling_speed, name, size))
    report.add("sample Annotated Diffusion Model", partial(annotated_sampling, size))
    share = {n: shown[f"train {n}, eager, batch {first}"].get("share", {}).get("of_fused_bytes", 1) for n in DENOISERS}
    report.add("profile of the slowest", partial(profile, min(share, key=share.get), first, size))
    for name in GOOD:  # last: a compilation takes half a minute
        for loop in LOOPS[2:]:
            measure(name, loop, first)


# --- good


def fastest(results: dict, name: str, batch: int) -> list[str]:
    """Return the loops that ran at a batch, the fastest first; eager and graph where none was timed."""
    rows = {loop: results.get("fast", {}).get(f"train {name}, {loop}, batch {batch}", {}) for loop in LOOPS}
    ran = {loop: row["images_per_second"]["median"] for loop, row in rows.items() if "images_per_second" in row}
    return sorted(ran, key=ran.get, reverse=True) or ["graph", "eager"]


def train_for(name: str, loop: str, folder: Path, seconds: float, size: Size) -> dict:
    """Train a network for so many seconds, its learning rate down to its end; write weights, card and history."""
    trial, data, _ = begin(name, loop, size, size.good_batch)
    timed(stepper(trial, data), 5)  # compilation and capture, too
    steps = max(4, round(0.9 * seconds * 20 / timed(stepper(trial, data), 20)))
    every = min(steps, max(50, round(steps / 5 / 50) * 50))
    run, (x, y), validate = begin(name, loop, size, size.good_batch, steps=steps, every=every)
    bar, start = tqdm(disable=True), time.monotonic()
    while run.step < steps:
        if "validation" in run.advance(x, y, validate, bar):
            keep_best(run, folder)
    (folder / "history.json").write_text(json.dumps(run.history))
    found = {"loop": loop, "steps": steps, "batch": size.good_batch, "lr": run.recipe["lr"], "seconds": run.seconds}
    losses = [point["validation"]["loss"] for point in run.history if "validation" in point]
    return found | {"wall_seconds": time.monotonic() - start, "images_seen": steps * size.good_batch, "losses": losses}


@cache
def real_features(split: str) -> Tensor:
    """Return the features of real images: all test images, the validation images, or 5,000 of the others."""
    classifier = load_pretrained("classifier", join().device)
    images = load_fashion_mnist("test" if split == "test" else "train", join().device)[0]
    part = {"test": slice(None), "validation": slice(-NUM_VALIDATION, None), "floor": slice(5000)}[split]
    return features(classifier, images[part])


def distances(found: Tensor) -> dict[str, float]:
    """Return what features (N, d) score: FD to the test and to the validation images, precision and recall."""
    test, device = real_features("test"), join().device
    return {
        "fd": frechet_distance(found, test),
        "fd_validation": frechet_distance(found, real_features("validation")),
        "precision": covered(found.to(device), test.to(device)),
        "recall": covered(test.to(device), found.to(device)),
    }


def quality(name: Path | str, kind: str, size: Size, guidance: float | None = None) -> dict:
    """Return mean and spread over the seeds of what samples of a network score."""
    device, y = join().device, labels_for(kind, size.judged)
    draw = load_sampler(name, size.steps, guidance, device=device)
    classifier = load_pretrained("classifier", device)
    scores = [distances(features(classifier, to_uint8(draw(size.judged, seed, y)))) for seed in range(size.seeds)]
    return {"measures": mean_and_spread(scores), "n": size.judged, "seeds": size.seeds, "sampler_steps": size.steps}


def good(report: Report, out: Path, size: Size) -> None:
    """Train networks for about a minute each and measure their samples, beside the published ones."""
    report.add("floor: 5,000 training images", lambda: distances(real_features("floor")))
    for number, name in enumerate(GOOD):
        seconds = min(size.good_seconds, 0.75 * report.left() / (len(GOOD) - number))
        for loop in fastest(report.results, name, size.good_batch):
            label = f"train {name}, {loop}"
            if "error" not in report.add(label, partial(train_for, name, loop, out / name, seconds, size)):
                break
        report.add(f"samples of {name}", partial(quality, out / name, name, size))
        if "label_dropout" in CARDS[name]:
            report.add(f"samples of {name}, w = 1.5", partial(quality, out / name, name, size, guidance=1.5))
    for name in GOOD:
        report.add(f"samples of the published {name}", partial(quality, name, name, size))


# --- lessons


def training_cell(path: Path) -> str:
    """Return the source of the cell of a lesson that trains its network as a whole."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return next(source for source in sources if 'epochs == "auto"' in source and "train_network(" in source)


def lesson_seconds(path: Path, seconds: float, size: Size) -> dict:
    """Run a lesson's training cell, each of its trainings for so many seconds at most, and say how long all take."""
    from fmdiff_helpers.results import Results

    trained, device = {}, join().device.type

    def timed_training(name: str, folder: Path | str, report: Callable, **options: object) -> tuple:
        start = time.monotonic()
        seen = []  # (seconds, step) at each point of the loss curve

        def until(history: list[dict]) -> None:
            report(history)
            seen.append((time.monotonic() - start, history[-1]["step"]))
            if seen[-1][0] > seconds and any("validation" in point for point in history):
                raise KeyboardInterrupt

        found = train_network(name, folder, until, **options)
        spent, step = seen[-1]
        warm = (spent - seen[0][0]) / max(1, step - seen[0][1])  # the first steps wait for the device to get ready
        whole = spent + warm * (options["steps"] - step)
        trained[name] = {"seconds": whole, "steps": options["steps"], "timed_seconds": spent, "timed_steps": step}
        return found

    names = {**vars(samplers), **vars(recipes), **vars(checkpoints), "Path": Path, "torch": torch, "Results": Results}
    names |= {"train_network": timed_training, "LiveLoss": lambda: lambda history: None, "published": None}
    exec(training_cell(path), names | {"epochs": size.epochs, "device": device, "schedule": None})
    return {"seconds": sum(each["seconds"] for each in trained.values()), "trainings": trained}


def lessons(report: Report, out: Path, size: Size) -> None:
    """Time the training cells of the lessons; where there is no time for all of it, from their beginnings."""
    paths = sorted((ROOT / "notebooks").glob("0[2-7]_*.ipynb"))
    os.environ["FMDIFF_DATA"] = str(Path(os.environ.get("FMDIFF_DATA") or ROOT / "data").resolve())
    (out / "lessons").mkdir(parents=True, exist_ok=True)
    os.chdir(out / "lessons")  # that is where they leave what they train
    for number, path in enumerate(paths):
        seconds = report.left() / (len(paths) + 1 - number)  # the last one trains two networks
        report.add(path.stem, partial(lesson_seconds, path, seconds, size))


# --- all


def circumstances(size: Size, rehearsal: bool) -> dict:
    """Return where and how all was measured."""
    on_gpu = torch.cuda.is_available()
    gpu = torch.cuda.get_device_name() if on_gpu else "none"
    found = about() | {"gpu": gpu, "cuda": torch.version.cuda, "precision": best_precision(), "data": describe_data()}
    found |= {"python": sys.version.split()[0], "size": asdict(size)}
    if rehearsal:
        found["rehearsal"] = "tiny and on the processor: no number means anything, and no graph was captured"
    return found


def run_part(part: str, out: Path, minutes: float, size: Size) -> None:
    """Do one part in this process."""
    torch.backends.cuda.matmul.allow_tf32 = False  # as it is by default
    if part == "correct":
        torch.backends.cudnn.allow_tf32 = False  # for convolutions it is on by default
    if size is TINY:  # a lesson encodes all images
        recipes.load_fashion_mnist = lambda *where: tuple(values[: size.data] for values in load_fashion_mnist(*where))
    {"correct": correct, "fast": fast, "good": good, "lessons": lessons}[part](Report(out, part, minutes), out, size)


def run_parts(parts: list[str], out: Path, minutes: float, options: list[str]) -> None:
    """Do each part in a process of its own: one that breaks, or breaks the GPU's state, leaves the others alone."""
    end = time.monotonic() + 60 * minutes
    for number, part in enumerate(parts):
        share = PARTS[part] / sum(PARTS[each] for each in parts[number:])
        left = share * (end - time.monotonic())
        command = [sys.executable, __file__, "--parts", part, "--out", str(out), "--minutes", f"{left / 60:.3f}"]
        try:
            ended = f"status {subprocess.run([*command, *options], timeout=left + 30).returncode}"
        except subprocess.TimeoutExpired:
            ended = "stopped: it took half a minute longer than its share"
        results = json.loads((out / "gpu.json").read_text())
        results["ended"] = results.get("ended", {}) | {part: ended}
        (out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")


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
    out, size = options.out.resolve(), TINY if options.rehearse else Size()
    if len(options.parts) > 1:
        out.mkdir(parents=True, exist_ok=True)
        (out / "gpu.json").write_text(json.dumps({"about": circumstances(size, options.rehearse)}))
        run_parts(options.parts, out, options.minutes, ["--rehearse"] if options.rehearse else [])
    else:
        run_part(options.parts[0], out, options.minutes, size)


if __name__ == "__main__":
    main()
