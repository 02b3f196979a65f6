"""The `fmdiff` command: the lessons without a notebook."""

import os
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"

app = typer.Typer(
    help="Diffusion models on Fashion-MNIST: open a lesson, look after the dataset.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def fail(message: str, code: int) -> typer.Exit:
    """Print one line to stderr and return the exit to raise: 1 for the state of things, 2 for a wrong argument."""
    typer.echo(f"fmdiff: {message}", err=True)
    return typer.Exit(code)


def find_lesson(name: str) -> Path:
    """Return the one notebook whose name starts with `name`, which may be a number such as 1 or 01."""
    lessons = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    prefix = f"{int(name):02d}" if name.isdecimal() else Path(name).stem
    found = [lesson for lesson in lessons if lesson.stem.startswith(prefix)]
    if len(found) != 1:
        known = ", ".join(lesson.stem for lesson in lessons) or f"none in {NOTEBOOKS}: clone the repository"
        raise fail(f"{name!r} names {len(found)} lessons; expected one of: {known}", 2)
    return found[0]


def has_browser() -> bool:
    """Tell whether this machine can show a browser window."""
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


@app.command()
def lab(
    lesson: Annotated[str, typer.Argument(help="A lesson's number or the start of its name.")] = "01",
    port: Annotated[int, typer.Option(help="The first port to try.")] = 8888,
) -> None:
    """Open a lesson in JupyterLab, on this machine only; without a browser, print the address to open."""
    path = find_lesson(lesson).relative_to(NOTEBOOKS.parent).as_posix()
    from jupyterlab.labapp import LabApp  # takes seconds: a wrong lesson is answered before

    # As the default address, not as a file to open: then the address that JupyterLab prints is the lesson's.
    arguments = [f"--ServerApp.root_dir={NOTEBOOKS.parent}", f"--LabApp.default_url=/lab/tree/{path}"]
    arguments += ["--ip=127.0.0.1", f"--port={port}"]
    if not has_browser():
        arguments.append("--no-browser")
        typer.echo("No browser here. Open the address below that starts with http://127.0.0.1 (it holds a token).")
        typer.echo("From another computer, run there first: ssh -L PORT:127.0.0.1:PORT THIS_MACHINE, with its port.")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--allow-root")  # JupyterLab refuses to start as root, the only user of many containers
    if os.environ.get("FMDIFF_DATA"):  # a kernel runs in notebooks/, where a relative path means another folder
        os.environ["FMDIFF_DATA"] = str(Path(os.environ["FMDIFF_DATA"]).expanduser().resolve())
    LabApp.launch_instance(argv=arguments)


@app.command()
def data(
    repair: Annotated[bool, typer.Option("--repair", help="Download missing and damaged files again.")] = False,
) -> None:
    """Fetch Fashion-MNIST if it is missing, verify its four files and say where it is."""
    from http.client import HTTPException

    from fmdiff_helpers.data import DataError, download, fetch_fashion_mnist, find_problems, raw_folder

    try:
        if repair and (broken := find_problems(raw_folder())):
            download(raw_folder(), list(broken))
        raw = fetch_fashion_mnist()
        problems = find_problems(raw) if raw else {}
    except (DataError, OSError, HTTPException, RuntimeError) as error:
        raise fail(" ".join(str(error).split()) or type(error).__name__, 1) from None
    if raw is None:
        raise typer.Exit(1)  # the notice has said why
    for problem in problems.values():
        typer.echo(f"fmdiff: {problem}", err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"Fashion-MNIST is in {raw}: 60,000 training and 10,000 test images, all four files intact.")
