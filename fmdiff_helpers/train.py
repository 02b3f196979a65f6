"""One training loop for every network, on a CPU, one GPU or several: interrupted, it goes on to the same numbers."""

import signal
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm.auto import tqdm

from fmdiff_helpers.batching import this_process
from fmdiff_helpers.cards import KEYS, upgrade
from fmdiff_helpers.checkpoints import load_pretrained, save_weights, write_atomically
from fmdiff_helpers.run import DEFAULTS, Run


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
        except torch.OutOfMemoryError:
            size //= 2
    return 0


def check_recipe(recipe: dict, num_images: int) -> dict:
    """Return the recipe with `DEFAULTS` filled in; ValueError for a value that makes no sense."""
    if unknown := recipe.keys() - DEFAULTS.keys() - {"steps"}:
        raise ValueError(f"the recipe has {sorted(unknown)}; expected steps and any of {', '.join(DEFAULTS)}")
    recipe = DEFAULTS | recipe
    for name in ("steps", "batch_size", "every"):
        if not isinstance(recipe.get(name), int) or recipe[name] < 1:
            raise ValueError(f"{name} is {recipe.get(name)!r}; expected a whole number of at least 1")
    processes = this_process().num_processes
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
        # A recipe of an earlier version may lack entries: their values were the defaults of today.
        there, now = ({**DEFAULTS, **card, **card["recipe"]} for card in (upgrade(state["card"]), run.card))
    except Exception as error:  # a damaged file raises any of a dozen errors
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


def keep_best(run: Run, folder: Path) -> None:
    """Write the averaged weights if their validation loss is the lowest so far."""
    card = run.full_card()
    losses = [point["validation"]["loss"] for point in card["history"]]
    if losses[-1] <= min(losses):
        save_weights(folder / "weights.safetensors", run.ema.module, card)


def write_checkpoint(run: Run, folder: Path) -> None:
    """Write all that is needed to go on."""
    write_atomically(folder / "checkpoint.pt", lambda file: torch.save(run.state(), file))


class PeerEnded(RuntimeError):
    """Say that another process of this training has ended."""


def stop_alone(number: int, frame: object) -> None:
    """Handle a request to end (SIGTERM) like Ctrl-C, where this is the only process."""
    raise KeyboardInterrupt


def stop_together(number: int, frame: object) -> None:
    """Handle a request to end of one of several processes: `accelerate launch` sends it after another has ended."""
    raise PeerEnded


@contextmanager
def on_sigterm(action: Callable | signal.Handlers) -> Iterator[None]:
    """Handle a request to end (SIGTERM) by `action` within a `with` block."""
    if threading.current_thread() is not threading.main_thread():  # Python lets only the main thread handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, action)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def walk(run: Run, data: tuple[Tensor, Tensor], validate: Callable, folder: Path, report: Callable) -> None:
    """Take all steps that are left; write the best weights and a checkpoint after each validation."""
    images, labels = data
    main, steps = run.accelerator.is_main_process, run.recipe["steps"]
    bar = tqdm(total=steps, initial=run.step, unit="step", mininterval=0.5, disable=not main)
    with on_sigterm(stop_alone if run.accelerator.num_processes == 1 else stop_together), bar:
        while run.step < steps:
            point = run.advance(images, labels, validate, bar)
            if main and "validation" in point:
                keep_best(run, folder)
            run.remember()  # after the best weights are written: a stop before this repeats the point
            if main and "validation" in point:
                write_checkpoint(run, folder)
            bar.set_postfix(loss=f"{point['loss']:.4f}", refresh=False)
            report(run)
    run.accelerator.wait_for_everyone()


def keep_what_is_done(run: Run, validate: Callable, folder: Path) -> None:
    """After a stop, go back to the last point of the loss curve, write a checkpoint and validate it."""
    run.load_state(run.good)
    if run.accelerator.is_main_process:
        with on_sigterm(signal.SIG_IGN):
            write_checkpoint(run, folder)
        print(f"Stopped at step {run.step} of {run.recipe['steps']}; run the same command or cell again to continue.")
    if not run.history or "validation" not in run.history[-1]:  # measure what is kept
        last = run.history.pop() if run.history else {"step": run.step}
        run.history.append(last | {"validation": run.validation(validate)})


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


def lost_peer(run: Run, error: RuntimeError) -> bool:
    """Tell whether an error means that another process of this launch has ended."""
    # NCCL has an error class of its own; gloo's errors can only be told by their text.
    is_lost = isinstance(error, PeerEnded | torch.distributed.DistBackendError) or "peer" in str(error)
    return run.accelerator.num_processes > 1 and is_lost


def begin(model: nn.Module, loss_fn: Callable, draw: Callable, card: dict, folder: Path) -> Run:
    """Return a new Run, or the one that the checkpoint in `folder` goes on with."""
    run = Run(model, loss_fn, draw, card)
    try:
        if (folder / "checkpoint.pt").exists():
            resume(run, folder / "checkpoint.pt")
        if run.accelerator.num_processes > 1:
            check_together(run, folder)
    except ValueError:
        release(run)
        raise
    return run


def release(run: Run) -> None:
    """Make the network an ordinary one again, which can be used and trained anew."""
    run.accelerator.unwrap_model(run.model, keep_fp32_wrapper=False)  # takes mixed precision out of the forward
    vars(run.plain).pop("_is_accelerate_prepared", None)  # or accelerate would not prepare it a second time


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
    checkpoint is written, from which the same call goes on. Ctrl-C, SIGTERM or stopping the cell keeps what is done and
    validates it.
    `report` is called with the `Run` whenever its history grows.

    ValueError for a card or a recipe that makes no sense, a checkpoint of another one, or machines that do not share
    `folder`;
    FloatingPointError where the loss is not finite; MemoryError, with the batch that fits, where the device has not
    enough; ConnectionError where another process of the same launch has ended.
    """
    folder = Path(folder)
    if missing := set(KEYS) - card.keys():
        raise ValueError(f"the card lacks {', '.join(sorted(missing))}; see fmdiff_helpers.cards")
    run = begin(model, loss_fn, draw, card | {"recipe": check_recipe(card["recipe"], len(data[0]))}, folder)
    images, labels = (values.to(run.accelerator.device) for values in data)
    was_training, out_of_memory = model.training, False
    model.train()
    try:
        walk(run, (images, labels), validate, folder, report)
        model.load_state_dict(load_pretrained(folder).state_dict())
    except KeyboardInterrupt:
        keep_what_is_done(run, validate, folder)
        model.load_state_dict(run.ema.module.state_dict())
    except torch.OutOfMemoryError:
        out_of_memory = True  # handled below, because the error itself keeps the memory of the failed step in use
    except RuntimeError as error:
        if not lost_peer(run, error):
            raise
        raise end_without_peer(run, folder) from None
    finally:
        release(run)
        model.train(was_training)
    if out_of_memory:
        raise MemoryError(memory_advice(run, images, labels))
    return run.history
