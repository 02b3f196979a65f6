"""One training loop for every network: a CPU, one GPU or several, interrupted and resumed to the same numbers.

A task is two functions. `draw(x0, generator)` returns all the randomness of a step as tensors (B, ...), and
`loss_fn(model, x0, y, *drawn)` the loss of each image (B,). Drawn apart from the loss, the same randomness can be
split over several processes, or fixed once for validation. A loss with a memory is an nn.Module; checkpoints keep it.
"""

import copy
import math
import platform
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from fmdiff_helpers.checkpoints import build, load_pretrained, save_weights, write_atomically
from fmdiff_helpers.data import to_model
from fmdiff_helpers.processes import join

REPORT_EVERY = 50  # steps between two points of the loss curve
# What a recipe says unless it says otherwise. `lr` is the highest learning rate, reached after `warmup` steps; the norm
# of a gradient is at most `clip`; `every` is the number of steps between two validations and checkpoints. After the
# warm-up the learning rate falls from its peak to `floor` times that in each of `cycles` equal parts of the training.
DEFAULTS = {
    "batch_size": 128,
    "lr": 2e-3,
    "warmup": 100,
    "cycles": 1,
    "floor": 0.0,
    "weight_decay": 0.0,
    "clip": 1.0,
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
    """Name the hardware, for the card: the GPU's own name, or how many threads of which processor; and how often."""
    name = f"{device.type}, {torch.get_num_threads()} threads, {platform.machine()}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else name
    return name if join().num_processes == 1 else f"{join().num_processes} x ({name})"


def learning_rate(step: int, steps: int, warmup: int, cycles: int = 1, floor: float = 0.0) -> float:
    """Return the share of the full learning rate at a step: a linear rise, then `cycles` half cosines down to `floor`.

    (Loshchilov & Hutter 2017, eq. 5, with cycles of equal length)
    """
    if step < warmup:
        return (step + 1) / warmup
    cosine = math.cos(math.pi * (cycles * (step - warmup) / max(1, steps - warmup) % 1))
    return floor + (1 - floor) * 0.5 * (1 + cosine)


class Run:
    """The state of a training: everything that a checkpoint holds, and one method for each thing that happens to it.

    `batch_size` counts the images of all processes together, so that a recipe means the same on every machine.
    """

    def __init__(self, model: nn.Module, loss_fn: Callable, draw: Callable, card: dict):
        join()
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
        self.remember()

    def average(self) -> None:
        """Move the averaged parameters a little towards the current ones; faster at first, to forget the start."""
        decay = min(self.recipe["ema_decay"], (1 + self.step) / (10 + self.step)) if self.step > 1 else 0.0
        averaged, current = ([p.detach() for p in model.parameters()] for model in (self.ema.module, self.plain))
        # One call for all weights gains nothing on a CPU; a GPU gets one instruction in place of hundreds. And
        # AveragedModel's own update waits at every step until the GPU has done all (benchmarks/gpu.py).
        torch._foreach_lerp_(averaged, current, 1 - decay)
        for kept, now in zip(self.ema.module.buffers(), self.plain.buffers(), strict=True):
            kept.copy_(now)

    def share(self, batch: Tensor) -> Tensor:
        """Return this process's part of a batch."""
        return batch.chunk(self.accelerator.num_processes)[self.accelerator.process_index]

    def next_batch(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images and labels of this step: each epoch is shuffled by its own number, so any can be redone."""
        epoch, k = divmod(self.step, len(images) // self.recipe["batch_size"])
        if epoch != self.epoch:
            shuffle = torch.Generator().manual_seed(1000 * self.recipe["seed"] + epoch)
            self.epoch, self.order = epoch, torch.randperm(len(images), generator=shuffle).to(images.device)
        index = self.order[k * self.recipe["batch_size"] :][: self.recipe["batch_size"]]
        batch = images.index_select(0, index)  # five times as fast as images[index] on a CPU
        return batch if batch.is_floating_point() else to_model(batch), labels[index]

    def draw_step(self, x0: Tensor) -> tuple[Tensor, ...]:
        """Return the random numbers of this step, its own whatever was drawn before: any machine can go on with it."""
        self.generator.manual_seed(1_000_003 * (self.recipe["seed"] + 1) + self.step)
        return self.draw(x0, self.generator)

    def train_step(self, x0: Tensor, y: Tensor) -> Tensor:
        """Take one step down the loss of a batch; return the loss, still on the device."""
        drawn = self.draw_step(x0)
        course = (self.recipe[key] for key in ("steps", "warmup", "cycles", "floor"))
        share = learning_rate(self.step, *course)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe["lr"] * share
        self.optimizer.zero_grad()
        loss = self.loss_fn(self.model, *map(self.share, (x0, y, *drawn))).mean()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe["clip"])
        self.optimizer.step()
        self.step += 1
        self.average()
        return loss.detach()

    def validation(self, validate: Callable) -> dict:
        """Return what `validate` says of the averaged weights, in float32."""
        with torch.no_grad():
            return validate(self.ema.module)

    def advance(self, images: Tensor, labels: Tensor, validate: Callable, bar: tqdm) -> dict:
        """Take steps up to the next point of the loss curve and return it; FloatingPointError if it is not finite."""
        start, every = time.monotonic(), self.recipe["every"]
        first, total = self.step, 0.0
        ends = (first - first % stride + stride for stride in (REPORT_EVERY, every))
        end = min(*ends, self.recipe["steps"])
        while self.step < end:
            total += self.train_step(*self.next_batch(images, labels))
            bar.update()
        loss = self.accelerator.reduce(total, "mean").item() / (end - first)
        finite = torch.stack([p.isfinite().all() for p in self.plain.parameters()]).all()  # a GPU is waited for once
        if not (math.isfinite(loss) and finite):
            self.give_up(loss)
        point = {"step": end, "loss": loss}
        if end % every == 0 or end == self.recipe["steps"]:
            point["validation"] = self.validation(validate)
            if not math.isfinite(point["validation"]["loss"]):
                self.give_up(point["validation"]["loss"])
        self.seconds += time.monotonic() - start
        self.history.append(point)
        return point

    def remember(self) -> None:
        """Keep a copy of everything, to go back to if the next steps fail or are cut short."""
        self.good = copy.deepcopy(self.state())

    def give_up(self, loss: float) -> None:
        """Go back to the last good weights and say so."""
        failed = self.step
        self.load_state(self.good)
        raise FloatingPointError(
            f"the loss was {loss:.3g} and the weights not all finite after step {failed}; the network has its weights "
            f"of step {self.step} again. Lower lr, which is {self.recipe['lr']:g}, or look for a division by 0"
        )

    def state(self) -> dict:
        """Return all that makes the next step what it would have been."""
        return {
            "card": self.card,
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "model": self.plain.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "loss": self.loss_fn.state_dict() if isinstance(self.loss_fn, nn.Module) else None,
            "rng": [torch.get_rng_state(), *torch.cuda.get_rng_state_all()],  # for networks with dropout
        }

    def load_state(self, state: dict) -> None:
        """Go on where `state` was taken, here or on another kind of machine: what only one of them has is left out."""
        self.step, self.seconds, self.history = state["step"], state["seconds"], list(state["history"])
        self.plain.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if isinstance(self.loss_fn, nn.Module):
            self.loss_fn.load_state_dict(state["loss"])
        rng, *cuda = state["rng"]
        torch.set_rng_state(rng)
        if len(cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(cuda)


def largest_batch(run: Run, x0: Tensor, y: Tensor) -> int:
    """Halve the batch until its loss and gradient fit into memory; return how many images that is, 0 if none do.

    Each process sees its share of a batch only, and the images of all processes together are counted.
    """
    size = len(x0) // run.accelerator.num_processes // 2
    while size:
        try:
            drawn = run.draw(x0[:size], run.generator)
            with run.accelerator.autocast():
                loss = run.loss_fn(run.plain, x0[:size], y[:size], *drawn).mean()
            loss.backward()
            return size * run.accelerator.num_processes
        except torch.OutOfMemoryError:
            size //= 2
    return 0


def check_recipe(recipe: dict, num_images: int) -> dict:
    """Return the recipe with `DEFAULTS` filled in; ValueError names what makes no sense."""
    if unknown := recipe.keys() - DEFAULTS.keys() - {"steps"}:
        raise ValueError(f"the recipe has {sorted(unknown)}; expected steps and any of {', '.join(DEFAULTS)}")
    recipe = DEFAULTS | recipe
    for name in ("steps", "batch_size", "every"):
        if not isinstance(recipe.get(name), int) or recipe[name] < 1:
            raise ValueError(f"{name} is {recipe.get(name)!r}; expected a whole number of at least 1")
    processes = join().num_processes
    if recipe["batch_size"] > num_images or recipe["batch_size"] % processes:
        raise ValueError(
            f"batch_size is {recipe['batch_size']}; expected at most the {num_images} images there are, "
            f"and a multiple of the number of processes, {processes}"
        )
    return recipe


def resume(run: Run, path: Path) -> None:
    """Go on where the checkpoint at `path` was written; ValueError if it is another training's, or no checkpoint."""
    try:
        if broken := zipfile.ZipFile(path).testzip():  # torch.load does not look at the checksums
            raise OSError(f"checksum of {broken}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        # What a recipe did not yet know when it was written was as it is by default.
        there, now = ({**DEFAULTS, **card, **card["recipe"]} for card in (state["card"], run.card))
    except Exception as error:  # a damaged file ends in any of a dozen errors
        raise ValueError(f"{path} is no checkpoint ({type(error).__name__}); delete it to start over") from None
    differ = [key for key in {**now, **there} if key != "recipe" and there.get(key) != now.get(key)]
    if differ:
        changes = ", ".join(f"{key}: {there.get(key)} there, {now.get(key)} now" for key in differ)
        raise ValueError(
            f"{path} is another training ({changes}); name another folder, or delete the file to start over"
        )
    try:
        run.load_state(state)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]  # PyTorch names every tensor
        raise ValueError(
            f"{path} does not fit this network or this version ({type(error).__name__}: {reason}); "
            "name another folder, or delete the file to start over"
        ) from None
    run.remember()


def check_together(run: Run, folder: Path) -> None:
    """Raise ValueError unless all processes, on all machines, see the same folder and go on from the same step."""
    if run.accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    run.accelerator.wait_for_everyone()
    steps = gather_object([run.step if folder.is_dir() else None])
    if len(set(steps)) > 1:
        raise ValueError(
            f"the processes would start from the steps {steps} (None: no such folder there); name a folder that all "
            f"machines share in place of {folder}"
        )


def so_far(seconds: float, history: list[dict]) -> dict:
    """Return what a card says of how a training went: where, for how long, and how each validation ended."""
    history = [point for point in history if "validation" in point]
    return {"device": device_name(join().device), "seconds": round(seconds), "history": history}


def keep_best(run: Run, folder: Path) -> None:
    """Write the averaged weights if their validation loss is the lowest so far."""
    results = so_far(run.seconds, run.history)
    losses = [point["validation"]["loss"] for point in results["history"]]
    if losses[-1] <= min(losses):
        save_weights(folder / "weights.safetensors", run.ema.module, run.card | results)


def write_checkpoint(run: Run, folder: Path) -> None:
    """Write all that it takes to go on."""
    write_atomically(folder / "checkpoint.pt", lambda file: torch.save(run.state(), file))


def load_checkpoint(folder: Path | str) -> tuple[nn.Module, dict]:
    """Return the network of a training that goes on, with its averaged weights as they are by now, and its card."""
    state = torch.load(Path(folder) / "checkpoint.pt", map_location="cpu", weights_only=True)
    with torch.random.fork_rng(devices=[]):  # the training's own random numbers stay as they are
        model = build(state["card"]).requires_grad_(False).eval()
    model.load_state_dict({name.removeprefix("module."): w for name, w in state["ema"].items() if name != "n_averaged"})
    return model, state["card"] | so_far(state["seconds"], state["history"])


class PeerEnded(RuntimeError):
    """Say that another process of this training has ended."""


def stop_alone(number: int, frame: object) -> None:
    """Handle a request to end (SIGTERM) of the only process: as Ctrl-C."""
    raise KeyboardInterrupt


def stop_together(number: int, frame: object) -> None:
    """Handle a request to end of one of several: `accelerate launch` sends it where another process has ended."""
    raise PeerEnded


@contextmanager
def handled(action: Callable | signal.Handlers) -> Iterator[None]:
    """Handle a request to end (SIGTERM) by `action` for a while."""
    if threading.current_thread() is not threading.main_thread():  # no other may handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, action)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def train(
    model: nn.Module,
    loss_fn: Callable,
    draw: Callable,
    data: tuple[Tensor, Tensor],
    validate: Callable[[nn.Module], dict],
    folder: Path | str,
    card: dict,
    report: Callable[[list[dict]], None] = lambda history: None,
) -> list[dict]:
    """Train `model`, leave the best averaged weights in it and in `folder`, and return the history of the loss.

    `data` are images uint8 (N, 1, 28, 28) and labels (N,); `card` names the network (see `checkpoints.build`) and its
    "recipe": the steps and whatever differs from `DEFAULTS`. Each `every` steps `validate(model)` returns the
    validation loss as {"loss": ..., ...}, the averaged weights are kept if it is the lowest so far, and a checkpoint is
    written, from which the same call goes on. Ctrl-C, SIGTERM or stopping the cell keeps what is done and validates it.
    `report` gets the history whenever it grows.

    ValueError for a recipe that makes no sense, a checkpoint of another one, or machines that do not share `folder`;
    FloatingPointError where the loss is not finite; MemoryError, with the batch that fits, where the device has not
    enough; ConnectionError where another process of the same launch has ended.
    """
    folder = Path(folder)
    recipe = check_recipe(card["recipe"], len(data[0]))
    run = Run(model, loss_fn, draw, card | {"recipe": recipe})
    if (folder / "checkpoint.pt").exists():
        resume(run, folder / "checkpoint.pt")
    if run.accelerator.num_processes > 1:
        check_together(run, folder)
    images, labels = (values.to(run.accelerator.device) for values in data)
    main = run.accelerator.is_main_process
    was_training, out_of_memory = model.training, False
    model.train()
    try:
        bar = tqdm(total=recipe["steps"], initial=run.step, unit="step", mininterval=0.5, disable=not main)
        with handled(stop_alone if run.accelerator.num_processes == 1 else stop_together), bar:
            while run.step < recipe["steps"]:
                point = run.advance(images, labels, validate, bar)
                if main and "validation" in point:
                    keep_best(run, folder)
                run.remember()  # once the best weights are written: a stop before that goes back to before the point
                if main and "validation" in point:
                    write_checkpoint(run, folder)
                bar.set_postfix(loss=f"{point['loss']:.4f}", refresh=False)
                report(run.history)
        run.accelerator.wait_for_everyone()
        model.load_state_dict(load_pretrained(folder).state_dict())
    except KeyboardInterrupt:
        run.load_state(run.good)
        if main:
            with handled(signal.SIG_IGN):
                write_checkpoint(run, folder)
            print(f"Stopped at step {run.step} of {recipe['steps']}; do the same again to go on from there.")
        if not run.history or "validation" not in run.history[-1]:  # how good is what there is?
            last = run.history.pop() if run.history else {"step": run.step}
            run.history.append(last | {"validation": run.validation(validate)})
        model.load_state_dict(run.ema.module.state_dict())
    except torch.OutOfMemoryError:
        out_of_memory = True  # and out of here, because the error holds on to the memory of the failed step
    except RuntimeError as error:
        # NCCL has an error class of its own; gloo only says so.
        lost = isinstance(error, PeerEnded | torch.distributed.DistBackendError) or "peer" in str(error)
        if run.accelerator.num_processes == 1 or not lost:
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher sends it by now: first this is written and said
        run.load_state(run.good)
        if main:
            write_checkpoint(run, folder)
        raise ConnectionError(
            "a process of this training has ended, or was told to, and the others cannot go on without it; the same "
            f"command goes on from the last checkpoint in {folder}"
        ) from None
    finally:
        model.train(was_training)
        run.accelerator.unwrap_model(run.model, keep_fp32_wrapper=False)  # takes mixed precision out of the forward
        vars(model).pop("_is_accelerate_prepared", None)  # or accelerate would not prepare it a second time
    if out_of_memory:
        run.optimizer.zero_grad()
        fits = largest_batch(run, *run.next_batch(images, labels))
        advice = f"batch_size={fits} does" if fits else "nor does a single one"
        place = f"the memory of {run.accelerator.device}"
        raise MemoryError(f"a batch of {recipe['batch_size']} images does not fit into {place}; {advice}")
    return run.history
