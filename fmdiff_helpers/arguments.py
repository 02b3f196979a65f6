"""What the commands share: options, checks of arguments, and errors in one line."""

import math
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

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


def is_first() -> bool:
    """Tell whether this is the first of the processes of `accelerate launch`: it alone prints and writes samples."""
    return os.environ.get("RANK", "0") == "0"


def fail(message: str, code: int) -> typer.Exit:
    """Print one line to stderr and return the exit to raise: code 2 for a wrong argument, 1 for any other failure."""
    if code == 1 or is_first():  # a wrong argument is wrong in all processes: one of them says so
        typer.echo(f"fmdiff: {' '.join(message.split())}", err=True)
    return typer.Exit(code)


def check_choice(what: str, value: str, allowed: list[str]) -> None:
    """Fail unless `value` is one of `allowed`."""
    if value not in allowed:
        raise fail(f"{what} is {value!r}; expected one of {', '.join(allowed)}", 2)


def check_at_least(option: str, value: float | None, least: float) -> None:
    """Fail if a number was given and is below `least`, infinite or NaN."""
    if value is not None and not least <= value < math.inf:
        raise fail(f"{option} is {value:g}; expected at least {least:g}", 2)


def check_place(out: Path, folder: bool) -> None:
    """Fail, before hours of work, if `out` cannot be written as a file, or as a folder."""
    found = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    is_new = found != out.absolute()
    if found.is_dir() != (folder or is_new) or not os.access(found, os.W_OK):
        kind = "folder" if folder else "file"
        raise fail(f"--out is {out}; name a {kind} in a folder that you may write to", 2)


def typed(folder: Path) -> str:
    """Return a folder as one types it in a command: quoted, and with a slash, so that it means no published network."""
    from fmdiff_helpers.cards import is_place

    text = str(folder)
    return shlex.quote(text if is_place(text) else f"./{text}")


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn the errors that the package raises on purpose into one line; the exit codes are those of `fail`."""
    from fmdiff_helpers.cards import WeightsError
    from fmdiff_helpers.data import DataError

    try:
        yield
    except (FloatingPointError, MemoryError, ConnectionError, DataError) as error:
        raise fail(str(error), 1) from None
    except (WeightsError, ValueError, OSError) as error:
        raise fail(str(error), 2) from None
