"""The state of a training (network, averaged weights, optimizer, history), and the methods that change it.

A training needs two functions. `draw(x0, generator)` returns all random numbers of a step as tensors (B, ...), and
`loss_fn(model, x0, y, *drawn)` the loss of each image (B,). Because the loss draws nothing itself, its random numbers
can be split over several processes, or be fixed for validation. A loss with a memory is an nn.Module; checkpoints keep
it.
"""

import copy
import math
import platform
import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from fmdiff_helpers.batching import own_part, this_process
from fmdiff_helpers.data import to_model
from fmdiff_helpers.endings import Signals

REPORT_EVERY = 50  # steps between two points of the loss curve
# A recipe that leaves these out means these. `lr` is the highest learning rate, reached after `warmup` steps. Then the
# rate falls to `floor` times that in each of `cycles` equal parts of the training. The norm of a gradient is at most
# `max_grad_norm`. `every` is the number of steps between two validations and checkpoints.
DEFAULTS = {
    "batch_size": 128,
    "lr": 2e-3,
    "warmup": 100,
    "cycles": 1,
    "floor": 0.0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "ema_decay": 0.999,
    "every": 500,
    "seed": 0,
}


def best_precision() -> str:
    """Return the mixed precision that this machine does in hardware: "bf16", "fp16", or "no" on CPUs and mps."""
    if not torch.cuda.is_available():
        return "no"  # bf16 on a CPU without bf16 units is ten times slower than float32
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def device_name(device: torch.device) -> str:
    """Name the hardware for the card: the GPU, or the processor and its threads, and how many of them if several."""
    name = f"{device.type}, {torch.get_num_threads()} threads, {platform.machine()}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else name
    return name if this_process().num_processes == 1 else f"{this_process().num_processes} x ({name})"


def learning_rate(step: int, steps: int, warmup: int, cycles: int = 1, floor: float = 0.0) -> float:
    """Return the share of the full learning rate at a step: a linear rise, then `cycles` half cosines down to `floor`.

    (Loshchilov & Hutter 2017, eq. 5, with cycles of equal length)
    """
    if step < warmup:
        return (step + 1) / warmup
    cosine = math.cos(math.pi * (cycles * (step - warmup) / max(1, steps - warmup) % 1))
    return floor + (1 - floor) * 0.5 * (1 + cosine)


class Run:
    """Hold all that a checkpoint needs, with the methods that change it.

    `batch_size` counts the images of all processes together, so that a recipe means the same on every machine.
    """

    def __init__(self, model: nn.Module, loss_fn: Callable, draw: Callable, card: dict):
        this_process()
        self.accelerator = Accelerator(mixed_precision=best_precision())
        self.loss_fn, self.draw, self.card, self.recipe = loss_fn, draw, card, card["recipe"]
        # Gains on one CPU core (benchmarks/tricks.py): channels_last 1 to 6 % for U-Nets, nothing for the transformer;
        # the fused optimizer 0 to 4 %.
        self.plain = model.to(self.accelerator.device, memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(
            model.parameters(), self.recipe["lr"], weight_decay=self.recipe["weight_decay"], fused=True
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        # Parameters only. Averaging buffers too would slowly corrupt the tables that some projects keep there.
        self.ema = AveragedModel(self.plain, use_buffers=False)
        # The average is what counts in the end, so validation measures it in float32.
        self.accelerator.unwrap_model(self.ema.module, keep_fp32_wrapper=False)
        self.ema.eval()
        self.generator = torch.Generator(self.accelerator.device)
        self.step, self.epoch, self.seconds, self.history = 0, None, 0.0, []
        self.since, self.total = 0, 0.0  # the step of the last point of the loss curve, and the sum of the losses since
        self.best = None  # the averaged weights of the lowest validation loss, and their card
        self.remember()

    def average(self) -> None:
        """Move the averaged parameters a little towards the current ones; more at first, to forget the beginning."""
        decay = min(self.recipe["ema_decay"], (1 + self.step) / (10 + self.step)) if self.step > 1 else 0.0
        averaged, current = ([p.detach() for p in model.parameters()] for model in (self.ema.module, self.plain))
        # One call for all weights gains nothing on a CPU; a GPU gets one instruction in place of hundreds.
        # AveragedModel's own update makes a GPU wait at every step (benchmarks/gpu.py).
        get_ema_multi_avg_fn(decay)(averaged, current, None)
        for kept, now in zip(self.ema.module.buffers(), self.plain.buffers(), strict=True):
            kept.copy_(now)

    def next_batch(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images and labels of this step; the order of an epoch depends only on the seed and its number."""
        epoch, k = divmod(self.step, len(images) // self.recipe["batch_size"])
        if epoch != self.epoch:
            shuffle = torch.Generator().manual_seed(1000 * self.recipe["seed"] + epoch)
            self.epoch, self.order = epoch, torch.randperm(len(images), generator=shuffle).to(images.device)
        index = self.order[k * self.recipe["batch_size"] :][: self.recipe["batch_size"]]
        batch = images.index_select(0, index)  # five times as fast as images[index] on a CPU
        return batch if batch.is_floating_point() else to_model(batch), labels[index]

    def draw_step(self, x0: Tensor) -> tuple[Tensor, ...]:
        """Return the random numbers of this step; they depend only on seed and step, so any machine can go on."""
        self.generator.manual_seed(1_000_003 * (self.recipe["seed"] + 1) + self.step)
        return self.draw(x0, self.generator)

    def train_step(self, x0: Tensor, y: Tensor) -> Tensor:
        """Take one step down the loss of a batch; return the loss, still on the device."""
        drawn = self.draw_step(x0)
        course = (self.recipe[key] for key in ("steps", "warmup", "cycles", "floor"))
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe["lr"] * learning_rate(self.step, *course)
        self.optimizer.zero_grad()
        loss = self.loss_fn(self.model, *map(own_part, (x0, y, *drawn))).mean()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe["max_grad_norm"])
        self.optimizer.step()
        self.step += 1
        self.average()
        return loss.detach()

    def validation(self, validate: Callable) -> dict:
        """Return what `validate` measures with the averaged weights, in float32."""
        with torch.no_grad():
            return validate(self.ema.module)

    def next_point(self) -> int:
        """Return the step of the next point of the loss curve."""
        ends = (self.since - self.since % stride + stride for stride in (REPORT_EVERY, self.recipe["every"]))
        return min(*ends, self.recipe["steps"])

    def mean_loss(self) -> float:
        """Return the mean training loss since the last point, over all processes."""
        total = torch.as_tensor(self.total, device=self.accelerator.device)
        return self.accelerator.reduce(total, "mean").item() / (self.step - self.since)

    def advance(self, images: Tensor, labels: Tensor, validate: Callable, signals: Signals, bar: tqdm) -> dict:
        """Take steps up to the next point of the loss curve and return it; FloatingPointError if it is not finite.

        A signal to end lets it finish its step and raises KeyboardInterrupt.
        """
        start, end = time.monotonic(), self.next_point()
        while self.step < end:
            self.total += self.train_step(*self.next_batch(images, labels))
            bar.update()
            if signals.asked:
                self.seconds += time.monotonic() - start
                self.remember()
                raise KeyboardInterrupt
        loss = self.mean_loss()
        finite = torch.stack([p.isfinite().all() for p in self.plain.parameters()]).all()  # one wait for the GPU
        if not (math.isfinite(loss) and finite):
            self.give_up(loss)
        point = {"step": end, "loss": loss}
        if end % self.recipe["every"] == 0 or end == self.recipe["steps"]:
            point["validation"] = self.validate_or_stop(validate, signals)
        self.seconds += time.monotonic() - start
        self.history.append(point)
        self.since, self.total = end, 0.0
        if "validation" in point and point["validation"]["loss"] <= min(self.validation_losses()):
            self.best = copy.deepcopy({"weights": self.ema.module.state_dict(), "card": self.full_card()})
        return point

    def validate_or_stop(self, validate: Callable, signals: Signals) -> dict:
        """Return what `validate` measures; a signal stops this at once, and keeps all steps."""
        before = self.good
        self.remember()
        with signals.at_once(self.step < self.recipe["steps"]):  # the last one ends the training: worth the wait
            found = self.validation(validate)
        if not math.isfinite(found["loss"]):
            self.good = before
            self.give_up(found["loss"])
        return found

    def validation_losses(self) -> list[float]:
        """Return the validation losses so far."""
        return [point["validation"]["loss"] for point in self.history if "validation" in point]

    def remember(self) -> None:
        """Keep a copy of the state, to go back to if the next steps fail or are interrupted."""
        self.good = copy.deepcopy(self.state())

    def give_up(self, loss: float) -> None:
        """Go back to the last good weights and raise FloatingPointError."""
        failed = self.step
        self.load_state(self.good)
        raise FloatingPointError(
            f"the loss or a weight was not finite after step {failed} (loss {loss:.3g}); the network has its weights "
            f"of step {self.step} again. Lower lr, which is {self.recipe['lr']:g}, or look for a division by 0"
        )

    def full_card(self) -> dict:
        """Return the card with the device, the seconds and all validations so far."""
        history = [point for point in self.history if "validation" in point]
        device = device_name(self.accelerator.device)
        return self.card | {"device": device, "seconds": round(self.seconds), "history": history}

    def state(self) -> dict:
        """Return all that the next step depends on."""
        return {
            "card": self.card,
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "since": self.since,
            "total": float(self.total),
            "best": self.best,
            "model": self.plain.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "loss": self.loss_fn.state_dict() if isinstance(self.loss_fn, nn.Module) else None,
            "rng": [torch.get_rng_state(), *torch.cuda.get_rng_state_all()],  # for networks with dropout
        }

    def load_state(self, state: dict) -> None:
        """Go on from `state`, which may come from another kind of machine: what only one of the two has is left out."""
        self.step, self.seconds, self.history = state["step"], state["seconds"], list(state["history"])
        # Checkpoints of earlier versions were written at points only, and left the best weights to their own file.
        self.since, self.total, self.best = state.get("since", self.step), state.get("total", 0.0), state.get("best")
        self.plain.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if isinstance(self.loss_fn, nn.Module):
            self.loss_fn.load_state_dict(state["loss"] or {})  # None where the loss had no memory, and was no module
        rng, *cuda = state["rng"]
        torch.set_rng_state(rng)
        if len(cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(cuda)
