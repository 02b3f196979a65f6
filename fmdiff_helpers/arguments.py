"""What the commands share: options, checks of arguments, and errors in one line."""

import errno
import math
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

LEAST_IMAGES = 200  # the measures need more images than there are features, 128
MOST_IMAGES = 60_000  # the training images: a floor of more real images cannot be measured
# The split that samples are compared with -> the first seed. Validation images choose, test images report, and no seed
# does both: what is chosen for its luck with one seed has no luck with another.
FIRST_SEED = {"validation": 0, "test": 3}
NUM_SEEDS = 3
MOST_COLUMNS = 30  # in a picture that has a column for each kind
UsageError: Any = typer.BadParameter.__base__  # of click, or of the copy of click inside newer versions of typer

Network = Annotated[str, typer.Argument(help="A published network, or a folder that `fmdiff train` wrote.")]
Guidance = Annotated[
    float | None, typer.Option(help="The weight of guidance: 1 changes nothing, 2 follows the label twice as far.")
]
Guide = Annotated[
    str | None, typer.Option(help="A weaker network, for autoguidance; if left out, classifier-free guidance.")
]
Interval = Annotated[
    tuple[int, int] | None, typer.Option(help="The first and the last step that are guided; all if left out.")
]
NumSteps = Annotated[
    int | None, typer.Option("--steps", help="The number of steps. DDPM if left out or all of them, DDIM if fewer.")
]
Eta = Annotated[
    float | None,
    typer.Option(
        help="The noise that DDIM adds on the way: 0 none, 1 as much as DDPM. 0 if left out, with fewer steps."
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(
        help="Pictures of your own in place of Fashion-MNIST: a folder, its subfolders being kinds; or a .npz."
    ),
]
Split = Annotated[
    str,
    typer.Option(
        help="What samples are compared with. test: the test images, to report; the first seed is "
        f"{FIRST_SEED['test']}. validation: the last 2,000 training images, to choose a strength or a number of steps, "
        f"for example; the first seed is {FIRST_SEED['validation']}, and the last one {FIRST_SEED['test'] - 1}."
    ),
]


def is_first() -> bool:
    """Tell whether this is the first of the processes of `accelerate launch`: it alone prints and writes samples."""
    return os.environ.get("RANK", "0") == "0"


def fail(message: str, code: int) -> typer.Exit:
    """Print one line to stderr and return the exit to raise: code 2 for a wrong argument, 1 for any other failure."""
    if code == 1 or is_first():  # a wrong argument is wrong in all processes: one of them says so
        with suppress(OSError):  # where stderr is full or closed, the exit code still says it
            typer.echo(f"fmdiff: {' '.join(message.split())}", err=True)
    return typer.Exit(code)


def check_choice(what: str, value: str, allowed: list[str]) -> None:
    """Fail unless `value` is one of `allowed`."""
    if value not in allowed:
        raise fail(f"{what} is {value!r}; expected one of {', '.join(allowed)}", 2)


def check_at_least(option: str, value: float | None, least: float) -> None:
    """Fail if a number was given and is below `least`, infinite or NaN."""
    if value is not None and not least <= value < math.inf:
        shown = f"{value:g}" if isinstance(value, float) else str(value)  # an int may be too large for a float
        raise fail(f"{option} is {shown}; expected at least {least:g}", 2)


def check_at_most(option: str, value: float, most: int, what: str) -> None:
    """Fail if a number is above `most`, which is the limit for `what`."""
    if value > most:
        raise fail(f"{option} is {value}; expected at most {most:,} {what}", 2)


def seeds_for(split: str, number: int = NUM_SEEDS) -> range:
    """Return the seeds of the samples that are compared with a split, "validation" or "test"."""
    return range(FIRST_SEED[split], FIRST_SEED[split] + number)


def check_split(split: str, seeds: int) -> None:
    """Fail unless samples are compared with this split, and these are not more seeds than it has for itself."""
    check_choice("--split", split, list(FIRST_SEED))
    most = FIRST_SEED["test"]
    if split == "validation":
        check_at_most("--seeds", seeds, most, f"for validation, since those from {most} on are for the test split")


def check_seeds(split: str, seeds: int | None) -> range:
    """Return the seeds of the samples that are compared with a split, `NUM_SEEDS` of them if None; fail for no such."""
    seeds = NUM_SEEDS if seeds is None else seeds
    check_at_least("--seeds", seeds, 1)
    check_at_most("--seeds", seeds, 100, "sets of images")
    check_split(split, seeds)
    return seeds_for(split, seeds)


def most_images(split: str) -> int:
    """Return how many real images a floor has at most: the training images without those of the split."""
    from fmdiff_helpers.data import NUM_VALIDATION

    return MOST_IMAGES - (NUM_VALIDATION if split == "validation" else 0)


def check_unused(options: dict[str, object], what: str) -> None:
    """Fail if one of these options was given, is not None, although it means nothing for `what`."""
    for option, value in options.items():
        if value is not None:
            raise fail(f"{option} is given, but means nothing for {what}; leave it out", 2)


def number_of_columns(kinds: Sequence[str], label: str | None) -> int | None:
    """Return how many columns a picture has that shows all kinds; None if it shows one, or there are none or many."""
    return len(kinds) if label is None and 0 < len(kinds) <= MOST_COLUMNS else None


def check_grid(takes_labels: bool, columns: int | None, label: str | None, ending: str) -> None:
    """Fail, with the reason, unless the names of the kinds can stand above the columns of a picture."""
    reasons = {
        "this network takes no labels": not takes_labels,
        f"--label is {label!r}, one kind": label is not None,
        f"this network knows more than {MOST_COLUMNS} kinds": columns is None,
        f"--out ends in {ending}": ending != ".png",
    }
    for reason in (reason for reason, holds in reasons.items() if holds):
        raise fail(f"--grid writes the names of all kinds into a .png, but {reason}; leave --grid out", 2)


def check_place(out: Path, folder: bool) -> None:
    """Fail, before hours of work, if `out` cannot be written as a file, or as a folder."""
    place, kind = out.absolute(), "folder" if folder else "file"
    try:
        found = next(path for path in (place, *place.parents) if path.exists())
        fits = found.is_dir() if folder or found != place else found.is_file()
        # A file is written under a longer name first, beside its place.
        fits = fits and os.access(found, os.W_OK) and (folder or len(os.fsencode(out.name)) <= 200)
        fits = fits and (folder or found != place or os.access(place.parent, os.W_OK))
        is_other = place.exists() and place.is_dir() != folder
    except OSError:  # a name that is too long, for example
        fits = is_other = False
    if is_other:
        raise fail(f"--out is {out}, which is a {'file' if folder else 'folder'}; name a {kind}", 2)
    if not fits:
        raise fail(f"--out is {out}; name a {kind} in a folder that you may write to", 2)


def usual_folder(name: str, images: Path | None) -> Path:
    """Return where a training is written if no folder is named: runs/unet or, with pictures, runs/flowers_unet."""
    return Path("runs") / (name if images is None else f"{images.resolve().name}_{name}")


def is_within(out: Path, images: Path) -> bool:
    """Tell whether a folder that a training writes lies among the pictures that it learns from."""
    return out.resolve().is_relative_to(images.resolve())


def check_outside(out: Path, images: Path) -> None:
    """Fail if what a training writes would lie among the pictures that it learns from."""
    if is_within(out, images):
        raise fail(f"--out is {out}, inside of the pictures in {images}; name a folder elsewhere by --out", 2)


def typed(folder: Path) -> str:
    """Return a folder as one types it in a command: quoted, and with a slash, so that it means no published network."""
    from fmdiff_helpers.cards import is_place

    text = str(folder)
    return shlex.quote(text if is_place(text) else f"./{text}")


def next_command(folder: Path, draws: bool, images: Path | None) -> str:
    """Say what one may do with a trained network; `images` are the pictures of one's own that it was trained on."""
    place = typed(folder)
    if images is not None and not draws:
        return f"Next: fmdiff evaluate NAME --images {typed(images)} --judge {place}"
    measured = f"{place} --images {typed(images)}" if images is not None else place
    return f"Next: fmdiff evaluate {measured}" + (f", or fmdiff sample {place}" if draws else "")


def describe_error(error: BaseException) -> str:
    """Return the message of an error; of one of the system its file and reason: "x.png: No space left on device"."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn the errors that the package raises on purpose into one line; the exit codes are those of `fail`."""
    from fmdiff_helpers.cards import WeightsError
    from fmdiff_helpers.data import DataError

    try:
        yield
    except OSError as error:
        raise fail(failure_line(error), 2 if error.errno == errno.ENAMETOOLONG else 1) from None
    except (FloatingPointError, MemoryError, DataError) as error:
        raise fail(describe_error(error), 1) from None
    except (WeightsError, ValueError) as error:
        raise fail(str(error), 2) from None


def stop(number: int, frame: FrameType | None) -> None:
    """Handle Ctrl-C: raise KeyboardInterrupt or, while a package is imported, end at once with exit code 130."""
    while frame:
        # A package may catch KeyboardInterrupt while it is imported, and fail later with any other error.
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


@contextmanager
def stop_at_ctrl_c() -> Iterator[None]:
    """Let `stop` handle Ctrl-C within a `with` block, unless something else handles or ignores it."""
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_default:
        signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        if is_default:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class Commands(TyperGroup):
    """Commands whose errors are one line each: also those of the command line, of the system and of memory."""

    def main(self, args: Sequence[str] | None = None, *more: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command and exit, or return its exit code unless `standalone_mode`. Without arguments, show the help.

        The exit codes are those of `fail`; 130 after Ctrl-C, as in shells.
        """
        args = list(sys.argv[1:] if args is None else args) or ["--help"]
        if not standalone_mode:
            return super().main(args, *more, standalone_mode=False, **extra)
        if hasattr(sys.stdout, "reconfigure"):  # a path may hold characters that a terminal cannot show
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            with stop_at_ctrl_c():
                code = super().main(args, *more, standalone_mode=False, **extra)
        except typer.Abort:  # Ctrl-C, in older versions of typer
            code = 130
        except UsageError as error:
            path = error.ctx.command_path if error.ctx else "fmdiff"
            code = fail(f"{error.format_message().rstrip('.')}; see `{path} --help`", 2).exit_code
        except (ImportError, MemoryError, OSError, RuntimeError) as error:
            code = fail(failure_line(error), 1).exit_code
        sys.exit(code)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; say so if its output goes to a program that has ended, for typer would exit in silence."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise fail(failure_line(error), 1) from None


def failure_line(error: Exception) -> str:
    """Return one line about an error that any command may meet; raise again what is none, but a fault of the code."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        return f"{package!r} is not installed; install all packages: `uv sync`, or `pip install -r requirements.txt`"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
        return f"there is not enough memory ({describe_error(error)}); ask for fewer images"
    if not isinstance(error, OSError):
        raise error
    is_output = error.errno and not error.filename
    return ("the output or a file cannot be written: " if is_output else "") + describe_error(error)
