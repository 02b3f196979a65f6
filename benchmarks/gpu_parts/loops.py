"""The training loops that are compared, and their clock: as the package has it, as a CUDA graph, and compiled."""

import math
import time
from collections.abc import Callable
from functools import cache
from types import MethodType

import torch
from machine import middle
from torch import Tensor, nn

from fmdiff_helpers.batching import in_batches, this_process
from fmdiff_helpers.cards import build, latent_shape
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.data import describe_data, load_fashion_mnist, to_model
from fmdiff_helpers.recipes import CARDS, describe_autoencoder, training_parts
from fmdiff_helpers.run import Run, learning_rate
from fmdiff_helpers.train import check_recipe
from gpu_parts.report import Size

# Networks with a teacher are left out: their loss asks it about a part of a batch, and a graph has fixed shapes.
NAMES = tuple(name for name, card in CARDS.items() if "teacher" not in card["process"])
DENOISERS = tuple(name for name in NAMES if CARDS[name]["kind"] == "denoiser")
GOOD = ("unet", "patch_unet", "latent_unet", "transformer")  # those that are trained for a minute
LOOPS = ("eager", "graph", "compiled", "compiled graph")
HIGHEST_RATE = 4e-3  # of any recipe


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
    device = this_process().device
    images, labels = (part[:number] for part in load_fashion_mnist("train", device))
    if autoencoder:
        vae = load_pretrained(autoencoder, device)
        images = in_batches(lambda part: vae.to_latent(to_model(part)), images)
    return images, labels


class GraphRun(Run):
    """A training whose step, but for batch, draws and averages, is one CUDA graph; on a processor just that step."""

    def __init__(self, model: nn.Module, loss_fn: Callable, draw: Callable, card: dict):
        super().__init__(model, loss_fn, draw, card)
        if self.accelerator.scaler:
            raise RuntimeError("a step in fp16 chooses by its gradient whether to happen, which no graph can")
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
        nn.utils.clip_grad_norm_(self.plain.parameters(), self.recipe["max_grad_norm"])
        self.optimizer.step()
        return loss.detach()

    def capture(self) -> Callable[[], Tensor]:
        """Return what replays `work`; RuntimeError, before a capture could break, where the step waits for the GPU."""
        loss_memory = self.loss_fn.buffers() if isinstance(self.loss_fn, nn.Module) else ()
        kept = [value.detach() for value in (*self.plain.parameters(), *loss_memory)]
        before, side = [value.clone() for value in kept], torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for mode in ("default", "default", "error"):
                torch.cuda.set_sync_debug_mode(mode)
                try:
                    self.work()
                finally:
                    torch.cuda.set_sync_debug_mode("default")
        torch.cuda.current_stream().wait_stream(side)
        zeros = [value for values in self.optimizer.state.values() for value in values.values()]
        for value, old in zip(kept, before, strict=True):  # as if the steps above, to get ready, had not been
            value.copy_(old)
        for value in zeros:
            value.zero_()
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad()
        with torch.cuda.graph(graph):
            loss = self.work()
        return lambda: (graph.replay(), loss)[1]

    def train_step(self, x0: Tensor, y: Tensor) -> Tensor:
        """Take one step down the loss of a batch; return the loss, still on the device."""
        values = (x0, y, *self.draw_step(x0))
        course = (self.recipe[key] for key in ("steps", "warmup", "cycles", "floor"))
        self.rate.fill_(self.recipe["lr"] * learning_rate(self.step, *course))
        if not self.inputs:
            self.inputs = [value.clone() for value in values]
            self.replay = self.capture() if self.accelerator.device.type == "cuda" else self.work
        for place, value in zip(self.inputs, values, strict=True):
            place.copy_(value)
        loss = self.replay()
        self.step += 1
        self.average()
        return loss


def begin(name: str, loop: str, size: Size, batch: int, **recipe: int) -> tuple[Run, tuple, Callable]:
    """Return the training of a network by one of `LOOPS`, its data and its validation; lr grows as batch^(1/2)."""
    card, device = CARDS[name], this_process().device
    lr = min(HIGHEST_RATE, card["recipe"]["lr"] * math.sqrt(batch / 128)) if batch > 128 else card["recipe"]["lr"]
    recipe = {"steps": 100_000, "batch_size": batch, "lr": lr} | recipe
    card = card | {"recipe": check_recipe(card["recipe"] | recipe, size.data), "data": describe_data()}
    images, labels = training_data(card["autoencoder"], size.data)
    parts = training_parts(card | {"autoencoder": None}, images, labels, device)  # the latents are made
    if encoder := card["autoencoder"]:
        card["autoencoder"] = describe_autoencoder(encoder, latent_shape(CARDS[encoder]))
    torch.manual_seed(0)
    model = build(card)
    if "compiled" in loop:
        backend = "inductor" if device.type == "cuda" else "eager"
        model.forward = MethodType(torch.compile(type(model).forward, backend=backend), model)
    run = (GraphRun if "graph" in loop else Run)(model, parts.loss, parts.draw, card)
    if "compiled" in loop:
        del run.ema.module.forward  # validation is rare: it need not be compiled
    return run, parts.data, parts.validate


def stepper(run: Run, data: tuple[Tensor, Tensor]) -> Callable[[], Tensor]:
    """Return what takes a training step."""
    return lambda: run.train_step(*run.next_batch(*data))
