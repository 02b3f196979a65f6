"""One training loop for every network, on a CPU, one GPU or several: interrupted, it goes on to the same numbers."""

import io
import math
import signal
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from accelerate.utils import gather_object
from safetensors.torch import load
from torch import Tensor, nn
from tqdm.auto import tqdm

from fmdiff_helpers.batching import shows_bars, this_process
from fmdiff_helpers.cards import KEYS, WeightsError, upgrade
from fmdiff_helpers.checkpoints import holds, load_pretrained, read_pair, save_state, write_atomically
from fmdiff_helpers.dials import check_whole
from fmdiff_helpers.endings import PeerEnded, Signals, keep, only_writer
from fmdiff_helpers.entries import brief, without_place
from fmdiff_helpers.run import DEFAULTS, Run

CHECKPOINT_EVERY = 60.0  # seconds; one is also written after each validation


def no_memory(error: BaseException) -> bool:
    """Tell whether an error means that the device's memory is too small."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def largest_batch(run: Run, x0: Tensor, y: Tensor) -> int:
    """Halve the batch until its loss and gradient fit into memory; return its size, 0 if not even one image fits.

    Each process sees only its part of a batch; the number counts the images of all processes together.
    """
    size = len(x0) // run.accelerator.num_processes // 2
    while size:
        try:
            drawn = run.draw(x0[:size], run.generator)
            with run.accelerator.autocast():
                loss = run.loss_fn(run.plain, x0[:size], y[:size], *drawn).mean()
            loss.backward()
            return size * run.accelerator.num_processes
        except RuntimeError as error:
            if not no_memory(error):
                raise
            size //= 2
    return 0


def check_recipe(recipe: dict, num_images: int) -> dict:
    """Return the recipe with `DEFAULTS` filled in; ValueError for a value that makes no sense."""
    if unknown := recipe.keys() - DEFAULTS.keys() - {"steps"}:
        raise ValueError(f"the recipe has {sorted(unknown)}; expected steps and any of {', '.join(DEFAULTS)}")
    recipe = DEFAULTS | recipe
    for name, least in {"steps": 1, "batch_size": 1, "every": 1, "seed": 0}.items():
        check_whole(name, recipe.get(name), least)
    for name, value in recipe.items():
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value!r}; expected a number of at least 0")
    processes = this_process().num_processes
    if recipe["batch_size"] > num_images or recipe["batch_size"] % processes:
        raise ValueError(
            f"batch_size is {recipe['batch_size']}; expected at most the {num_images} images there are, "
            f"and a multiple of the number of processes, {processes}"
        )
    return recipe


def read_checkpoint(path: Path, card: dict) -> dict:
    """Return the state in a checkpoint; ValueError if it is damaged, or of another training than a card's.

    OSError where the file cannot be read: it may be intact.
    """
    content = path.read_bytes()
    try:
        if broken := zipfile.ZipFile(io.BytesIO(content)).testzip():  # torch.load does not look at the checksums
            raise OSError(f"checksum of {broken}")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        # A recipe of an earlier version may lack entries: their values were the defaults of today.
        there, now = ({**DEFAULTS, **each, **each["recipe"]} for each in (upgrade(state["card"]), card))
    except MemoryError:  # the file may be intact
        raise
    except Exception as error:  # a damaged file raises any of a dozen errors
        raise ValueError(f"{path} is no checkpoint ({type(error).__name__}); delete it to start over") from None
    keys = [key for key in {**now, **there} if key != "recipe"]
    differ = [key for key in keys if without_place(there.get(key)) != without_place(now.get(key))]
    if differ:
        changes = ", ".join(f"{key}: {brief(there.get(key))} there, {brief(now.get(key))} now" for key in differ)
        raise ValueError(
            f"{path} is another training ({changes}); name another folder, or delete the file to start over"
        )
    return state


def check_folder(folder: Path, card: dict) -> None:
    """Raise ValueError if a folder holds a checkpoint of another training than that of a card, or a damaged one."""
    if (folder / "checkpoint.pt").exists():
        read_checkpoint(folder / "checkpoint.pt", card)


def resume(run: Run, path: Path) -> None:
    """Go on where the checkpoint at `path` was written; ValueError if it is another training's, or no checkpoint."""
    state = read_checkpoint(path, run.card)
    try:
        run.load_state(state)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]  # PyTorch names every tensor
        raise ValueError(
            f"{path} does not fit this network or this version ({type(error).__name__}: {reason}); "
            "name another folder, or delete the file to start over"
        ) from None
    if run.best:  # the autoencoder may have moved since
        run.best["card"] |= {"autoencoder": run.card["autoencoder"]}
    run.remember()


def check_together(run: Run, folder: Path) -> None:
    """Raise ValueError unless all processes, on all machines, see the same folder and go on from the same step."""
    steps = gather_object([run.step if folder.is_dir() else None])
    if len(set(steps)) > 1:
        raise ValueError(
            f"the processes would start from the steps {steps} (None: no such folder there); name a folder that all "
            f"machines share in place of {folder}"
        )


def keep_best(run: Run, folder: Path) -> None:
    """Write the weights of the lowest validation loss so far, unless the folder holds them already."""
    path = folder / "weights.safetensors"
    if run.best and not holds(path, run.best["weights"], run.best["card"]):
        keep(folder)
        save_state(path, run.best["weights"], run.best["card"])


def write_checkpoint(run: Run, folder: Path) -> None:
    """Write all that is needed to go on from where `run.remember` was called last.

    OSError where another training has the folder by now.
    """
    keep(folder)
    content = io.BytesIO()  # where a disk is full, torch.save would name neither that nor the file
    torch.save(run.good, content)
    write_atomically(folder / "checkpoint.pt", lambda file: file.write_bytes(content.getvalue()))


def tell(bar: tqdm, point: dict, steps: int) -> None:
    """Show a point of the loss curve: in the bar or, where its output is a file, as a line for each validation."""
    bar.set_postfix(loss=f"{point['loss']:.4f}", refresh=False)
    if bar.disable and "validation" in point:
        loss = point["validation"]["loss"]
        print(f"step {point['step']} of {steps}: validation loss {loss:.4f}", file=sys.stderr, flush=True)


def walk(
    run: Run,
    data: tuple[Tensor, Tensor],
    validate: Callable,
    folder: Path,
    report: Callable[[Run], None],
    signals: Signals,
) -> None:
    """Take all steps that are left; write a checkpoint each minute, and after each validation the best weights, too."""
    main, steps, written = run.accelerator.is_main_process, run.recipe["steps"], time.monotonic()
    bar = tqdm(total=steps, initial=run.step, unit="step", mininterval=0.5, disable=not shows_bars())
    with bar:
        while run.since < steps:
            point = run.advance(*data, validate, signals, bar)
            run.remember()
            is_late = time.monotonic() - written > CHECKPOINT_EVERY
            if main and ("validation" in point or is_late):
                keep_best(run, folder)
                write_checkpoint(run, folder)
                written = time.monotonic()
            if main:
                tell(bar, point, steps)
            with signals.at_once(run.since < steps):
                report(run)
    run.accelerator.wait_for_everyone()


def keep_what_is_done(run: Run, folder: Path) -> None:
    """Go back to the last whole step, and write a checkpoint; also the averaged weights if the folder has none yet."""
    run.load_state(run.good)
    if run.accelerator.is_main_process:
        write_checkpoint(run, folder)
        keep_best(run, folder)
        if not run.best:
            save_state(folder / "weights.safetensors", run.ema.module.state_dict(), run.full_card())


def end_history(run: Run, validate: Callable, signals: Signals) -> None:
    """Let the history end with the step that is kept, and measure that, after a stop between two validations."""
    if run.step > run.since:
        run.history.append({"step": run.step, "loss": run.mean_loss()})
    if not run.history:
        run.history.append({"step": run.step})
    if "validation" not in run.history[-1]:
        signals.asked = False
        with suppress(KeyboardInterrupt), signals.at_once():
            run.history[-1] = run.history[-1] | {"validation": run.validation(validate)}


def end_without_peer(run: Run, folder: Path) -> ConnectionError:
    """Write a checkpoint, and return the error that says how to go on after another process has ended."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher may send it now, but the checkpoint comes first
    run.load_state(run.good)
    if run.accelerator.is_main_process:
        write_checkpoint(run, folder)
    return ConnectionError(
        "a process of this training has ended, or was told to, and the others cannot go on without it; the same "
        f"command goes on from the last checkpoint in {folder}"
    )


def memory_advice(run: Run, images: Tensor, labels: Tensor) -> str:
    """Return a message: a batch does not fit into the device's memory, and which size does."""
    run.optimizer.zero_grad()
    fits = largest_batch(run, *run.next_batch(images, labels))
    advice = f"batch_size={fits} fits" if fits else "not even one image fits"
    place = f"the memory of {run.accelerator.device}"
    return f"a batch of {run.recipe['batch_size']} images does not fit into {place}; {advice}"


def lost_peer(run: Run, error: BaseException) -> bool:
    """Tell whether an error means that another process of this launch has ended."""
    # NCCL has an error class of its own; gloo's errors can only be told by their text.
    is_lost = isinstance(error, PeerEnded | torch.distributed.DistBackendError) or "peer" in str(error)
    return run.accelerator.num_processes > 1 and is_lost


def find_best(run: Run, folder: Path) -> None:
    """Fill in the best weights after a checkpoint of an earlier version, which left them to a file of their own."""
    if run.best or not run.validation_losses():
        return
    try:
        content, card = read_pair(folder)
        run.best = {"weights": load(content), "card": card}
    except WeightsError:  # the file is lost, but the average of now is here
        run.best = {"weights": run.ema.module.state_dict(), "card": run.full_card()}


def begin(model: nn.Module, loss_fn: Callable, draw: Callable, card: dict, folder: Path) -> Run:
    """Return a new Run, or the one that the checkpoint in `folder` goes on with; mend weights that are damaged."""
    run = Run(model, loss_fn, draw, card)
    try:
        if (folder / "checkpoint.pt").exists():
            resume(run, folder / "checkpoint.pt")
        if run.accelerator.num_processes > 1:
            check_together(run, folder)
        if run.accelerator.is_main_process:
            find_best(run, folder)
            keep_best(run, folder)
    except BaseException:
        release(run)
        raise
    return run


def release(run: Run) -> None:
    """Make the network an ordinary one again, which can be used and trained anew."""
    run.accelerator.unwrap_model(run.model, keep_fp32_wrapper=False)  # takes mixed precision out of the forward
    vars(run.plain).pop("_is_accelerate_prepared", None)  # or accelerate would not prepare it a second time


def carry_out(
    run: Run,
    data: tuple[Tensor, Tensor],
    validate: Callable,
    folder: Path,
    report: Callable[[Run], None],
    signals: Signals,
) -> None:
    """Take all steps that are left, and leave nothing undone however this ends."""
    memory = False
    try:
        walk(run, data, validate, folder, report, signals)
        run.plain.load_state_dict(load_pretrained(folder).state_dict())
    except KeyboardInterrupt:
        keep_what_is_done(run, folder)
        with suppress(OSError):  # of a terminal that has been closed
            steps = run.recipe["steps"]
            print(f"Stopped at step {run.step} of {steps}; run the same command or cell again to continue.")
        end_history(run, validate, signals)
        run.plain.load_state_dict(run.ema.module.state_dict())
    except BaseException as error:
        if lost_peer(run, error):
            raise end_without_peer(run, folder) from None
        memory = no_memory(error)
        if not memory:
            with suppress(OSError):  # of a full disk
                keep_what_is_done(run, folder)
            raise
    if memory:  # not above, because the error itself keeps the memory of the failed step in use
        raise MemoryError(memory_advice(run, *data))


def train(
    model: nn.Module,
    loss_fn: Callable,
    draw: Callable,
    data: tuple[Tensor, Tensor],
    validate: Callable[[nn.Module], dict],
    folder: Path | str,
    card: dict,
    report: Callable[[Run], None] = lambda run: None,
) -> list[dict]:
    """Train `model`, leave the best averaged weights in it and in `folder`, and return the history of the loss.

    `data` are images uint8 (N, 1, 28, 28), or latents, and labels (N,); `card` has the keys that `fmdiff_helpers.cards`
    lists, its "recipe" the steps and whatever differs from `DEFAULTS`. Every `every` steps `validate(model)` returns
    the validation loss as {"loss": ..., ...}, the averaged weights are kept if it is the lowest so far, and a
    checkpoint is written, from which the same call goes on; one is also written each minute. Ctrl-C, stopping the cell
    or any signal that asks a program to end keeps all steps that are done, and measures the network. `report` is called
    with the `Run` whenever its history grows.

    ValueError for a card or a recipe that makes no sense, a checkpoint of another one, a folder that another training
    is writing to, or machines that do not share `folder`; OSError where a file cannot be written; FloatingPointError
    where the loss is not finite; MemoryError, with the batch that fits, where the device has not enough;
    ConnectionError where another process of the same launch has ended.
    """
    folder = Path(folder)
    if missing := set(KEYS) - card.keys():
        raise ValueError(f"the card lacks {', '.join(sorted(missing))}; see fmdiff_helpers.cards")
    card = card | {"recipe": check_recipe(card["recipe"], len(data[0]))}
    with only_writer(folder), Signals() as signals:
        run, was_training = begin(model, loss_fn, draw, card, folder), model.training
        images, labels = (values.to(run.accelerator.device) for values in data)
        model.train()
        try:
            carry_out(run, (images, labels), validate, folder, report, signals)
        finally:
            release(run)
            model.train(was_training)
    return run.history
