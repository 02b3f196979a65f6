"""The `fmdiff` command: the lessons without a notebook."""

import json
import math
import os
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"

app = typer.Typer(
    help="Diffusion models on Fashion-MNIST: open a lesson, train a network, sample from it, measure the samples.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def is_first() -> bool:
    """Tell whether this process speaks for all that `accelerate launch` has started."""
    return os.environ.get("RANK", "0") == "0"


def fail(message: str, code: int) -> typer.Exit:
    """Print one line to stderr and return the exit to raise: 1 for the state of things, 2 for a wrong argument."""
    if code == 1 or is_first():  # a wrong argument is wrong in all processes
        typer.echo(f"fmdiff: {' '.join(message.split())}", err=True)
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


def check_choice(what: str, value: str, allowed: list[str]) -> None:
    """Fail unless `value` is one of `allowed`."""
    if value not in allowed:
        raise fail(f"{what} is {value!r}; expected one of {', '.join(allowed)}", 2)


def check_at_least(option: str, value: float | None, least: float) -> None:
    """Fail if a number was given and is below `least` or endless."""
    if value is not None and not least <= value < math.inf:
        raise fail(f"{option} is {value:g}; expected at least {least:g}", 2)


def check_place(out: Path, folder: bool) -> None:
    """Fail, before hours of work, where no file, or no folder, can be written."""
    found = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    is_new = found != out.absolute()
    if found.is_dir() != (folder or is_new) or not os.access(found, os.W_OK):
        kind = "folder" if folder else "file"
        raise fail(f"--out is {out}; name a {kind} in a folder that you may write to", 2)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Say in one line what the package raises on purpose: exit 1 for the state of things, 2 for a wrong request."""
    from fmdiff_helpers.cards import WeightsError
    from fmdiff_helpers.data import DataError

    try:
        yield
    except (FloatingPointError, MemoryError, ConnectionError, DataError) as error:
        raise fail(str(error), 1) from None
    except (WeightsError, ValueError, OSError) as error:
        raise fail(str(error), 2) from None


def choose_labels(label: str | None, n: int, takes_labels: bool):
    """Return n labels: of the kind that `label` names, by name or number, or all ten in turn; None where none are."""
    import torch

    from fmdiff_helpers.data import CLASS_NAMES

    if label is None:
        return torch.arange(n) % len(CLASS_NAMES) if takes_labels else None
    if not takes_labels:
        raise fail(f"--label is {label!r}, but this network draws garments as they come; leave --label out", 2)
    names = [name.lower() for name in CLASS_NAMES]
    numbers = [str(number) for number in range(len(names))]
    if label.lower() not in names + numbers:
        known = ", ".join(f"{number} {name}" for number, name in enumerate(CLASS_NAMES))
        raise fail(f"--label is {label!r}; expected a name or a number of: {known}", 2)
    return torch.full((n,), (names + numbers).index(label.lower()) % len(names))


Network = Annotated[str, typer.Argument(help="A published network, or a folder that `fmdiff train` wrote.")]
Guidance = Annotated[float | None, typer.Option(help="How far to follow the label: 1 as it is, 2 twice as far.")]
Guide = Annotated[str | None, typer.Option(help="A weaker network to lead away from; else itself without labels.")]
Interval = Annotated[
    tuple[int, int] | None, typer.Option(help="The first and the last step that guidance acts at; all if left out.")
]
NumSteps = Annotated[int | None, typer.Option("--steps", help="DDIM with so many steps, if fewer than all; else DDPM.")]


@app.command()
def train(
    name: Annotated[
        str,
        typer.Argument(
            help="The network: unet, transformer, vae, latent_unet, patch_unet, attention_autoencoder, vector_denoiser "
            "or classifier."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="The folder to write to; runs/NAME if left out.")] = None,
    profile: Annotated[str, typer.Option(help="How long: smoke (under a minute), quick or full.")] = "full",
    epochs: Annotated[float | None, typer.Option(help="Passes over the data, in place of a profile.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images a step, of all processes together.")] = 128,
    seed: Annotated[int, typer.Option(min=0, max=2**32, help="Another seed gives another network.")] = 0,
    autoencoder: Annotated[
        str | None, typer.Option(help="For a denoiser of latents: a published autoencoder, or a folder.")
    ] = None,
    pictures: Annotated[bool, typer.Option("--pictures", help="Draw garments after each epoch, into --out.")] = False,
) -> None:
    """Train a network by its recipe; stopped or killed, the same command goes on where it was."""
    from fmdiff_helpers.cards import build_process
    from fmdiff_helpers.recipes import CARDS, profiles, train_network

    check_choice("network", name, list(CARDS))
    check_choice("--profile", profile, list(profiles(name)))
    check_at_least("--epochs", epochs, 0.01)
    check_at_least("--batch-size", batch_size, 1)
    if autoencoder is not None and not CARDS[name]["autoencoder"]:
        raise fail(f"--autoencoder is {autoencoder!r}, but {name} sees images, not latents; leave it out", 2)
    changes = {"batch_size": batch_size, "seed": seed} | profiles(name)[profile]
    if epochs is not None:
        changes["steps"] = max(1, round(epochs * 58_000 / batch_size))
    folder, options, max_steps = out or Path("runs") / name, {}, build_process(CARDS[name]).max_steps
    check_place(folder, folder=True)
    if pictures:
        from fmdiff_helpers.results import Results  # brings matplotlib, which servers need not have

        if max_steps < 2:
            raise fail(f"--pictures is for networks that draw step by step, which {name} does not; leave it out", 2)
        changes = {"every": max(1, 58_000 // batch_size)} | changes  # an epoch
        options = {"report": Results(folder)} if is_first() else {}
    with plain_errors():
        _, history = train_network(name, folder, autoencoder=autoencoder, **options, **changes)
    if history[-1]["step"] < changes["steps"]:
        raise typer.Exit(130)  # the exit code of shells for "interrupted"
    typer.echo(f"{folder}: validation loss {history[-1]['validation']['loss']:.4f} after {changes['steps']} steps.")
    typer.echo(f"Next: fmdiff evaluate {folder}" + (f", or fmdiff sample {folder}" if max_steps else ""))


@app.command()
def sample(
    name: Network,
    n: Annotated[int, typer.Option("-n", help="How many images.")] = 64,
    seed: Annotated[int, typer.Option(min=0, max=2**32, help="The same seed gives the same images.")] = 0,
    out: Annotated[Path, typer.Option("-o", "--out", help="A .png, .gif, .webp or .npz file.")] = Path("samples.png"),
    steps: NumSteps = None,
    guidance: Guidance = None,
    guide: Guide = None,
    interval: Interval = None,
    label: Annotated[str | None, typer.Option(help="A garment, as Dress or 3; all ten in turn if left out.")] = None,
    grid: Annotated[bool, typer.Option("--grid", help="Write the kinds' names above the columns of a .png.")] = False,
) -> None:
    """Draw samples: a .png grid, a .gif or .webp of how they came about, or a .npz with `images` uint8 (N, 28, 28).

    A .npz of a network that takes labels holds `labels` (N,) too; in a grid of all kinds each has its column.
    """
    from fmdiff_helpers.batching import this_process
    from fmdiff_helpers.data import CLASS_NAMES, to_uint8
    from fmdiff_helpers.drawing import load_drawer
    from fmdiff_helpers.export import KINDS, save_animation, save_images

    check_at_least("-n", n, 1)
    check_choice("the ending of --out", out.suffix, list(KINDS))
    check_place(out, folder=False)
    animated = out.suffix in (".gif", ".webp")
    if animated and n > 100:
        raise fail(f"-n is {n}; expected at most 100 for an animation", 2)
    with plain_errors():
        drawer = load_drawer(name, steps, guidance, guide, interval, this_process().device)
    if animated and drawer.process.max_steps == 1:
        raise fail(f"{name!r} draws in one step, with nothing to animate; let --out end in .png or .npz", 2)
    y, frames = choose_labels(label, n, drawer.takes_labels), []
    columns = 10 if drawer.takes_labels and label is None else None  # one for each kind
    if grid and (columns is None or out.suffix != ".png"):
        raise fail("--grid wants a .png of all ten kinds: a network that takes labels, no --label, --out x.png", 2)
    keep = (lambda step: frames.append(to_uint8(drawer.decode(step.xt)))) if animated else None
    images = drawer.draw(n, seed, y, keep)
    if not is_first():
        return
    try:
        if animated:
            kept = frames[:: math.ceil(len(frames) / 30)]  # thirty steps at most
            save_animation(out, [*kept, to_uint8(images)], columns=columns)
        else:
            save_images(out, to_uint8(images), y, columns, CLASS_NAMES if grid else ())
    except OSError as error:
        raise fail(f"--out is {out}: {error.strerror}; name a file in a folder that you may write to", 2) from None
    typer.echo(f"{n} images in {out}")


@app.command("show")
def show_latent(
    what: Annotated[str, typer.Argument(help="One of reconstructions, latents, path and loop.")],
    name: Network,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="WHAT.png if left out, loop.gif for a loop.")] = None,
    label: Annotated[str | None, typer.Option(help="For path and loop: a garment, Dress if left out.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32, help="For path and loop: which chain.")] = None,
    steps: Annotated[int | None, typer.Option(help="For path and loop: steps of DDIM, 20 if left out.")] = None,
    tsne: Annotated[bool, typer.Option("--tsne", help="For latents: neighbours together, in place of PCA.")] = False,
) -> None:
    """Draw what happens in a latent: of an autoencoder, or of the denoiser that draws there.

    reconstructions: garments, what the autoencoder makes of them, and the difference. latents: where it puts the test
    images. path: one chain from noise, and its way among them. loop: a garment to noise and back, a .gif or .webp.
    """
    from fmdiff_helpers.batching import this_process
    from fmdiff_helpers.cards import class_name, read_card
    from fmdiff_helpers.data import load_fashion_mnist, to_uint8
    from fmdiff_helpers.drawing import load_autoencoder, load_drawer
    from fmdiff_helpers.export import save_animation, save_figures
    from fmdiff_helpers.latent_paths import draw_chain, there_and_back
    from fmdiff_helpers.latent_plots import chain_figures, latent_map, reconstructions

    of_chains = what in ("path", "loop")
    check_choice("what to show", what, ["reconstructions", "latents", "path", "loop"])
    out = out or Path("loop.gif" if what == "loop" else f"{what}.png")
    check_choice("the ending of --out", out.suffix, [".gif", ".webp"] if what == "loop" else [".png"])
    check_place(out, folder=False)
    useless = {} if of_chains else {"--label": label, "--seed": seed, "--steps": steps}
    for option, value in (useless | ({} if what == "latents" else {"--tsne": tsne or None})).items():
        if value is not None:
            raise fail(f"{option} is given, but means nothing for {what}; leave it out", 2)
    y, device = choose_labels(label or "Dress", 5, takes_labels=True), this_process().device
    with plain_errors():
        card, autoencoder = read_card(name), load_autoencoder(name, device)
        if autoencoder is None or (of_chains and not card["autoencoder"]):
            known = "a denoiser of latents" + ("" if of_chains else ", or an autoencoder")
            raise ValueError(f"{name!r} ({class_name(card)}) has no {what} to show; name {known}")
        if of_chains:
            drawer = load_drawer(name, 20 if steps is None else steps, device=device)
            path, times = draw_chain(drawer, y, seed or 0)
        if what == "loop":
            frames = there_and_back(path, times, drawer.process.schedule)
            save_animation(out, [to_uint8(autoencoder.from_latent(z)) for z in frames], columns=5)
        else:
            images, labels = (part[:2000] for part in load_fashion_mnist("test", device))
            figures = {
                "reconstructions": lambda: [reconstructions(autoencoder, images[:10])],
                "latents": lambda: [latent_map(autoencoder, images, labels, "tsne" if tsne else "pca")],
                "path": lambda: chain_figures(autoencoder, path[:, 0], times, images, labels),
            }
            save_figures(out, *figures[what]())
    typer.echo(f"{what} of {name} in {out}")


def evaluate_all(n: int, seeds: int, device, as_json: bool) -> None:
    """Print the leaderboard: as JSON in the end, or row by row."""
    from fmdiff_helpers.data import load_fashion_mnist
    from fmdiff_helpers.leaderboard import ROWS, load_judge, measure_row
    from fmdiff_helpers.metrics import mean_and_spread
    from fmdiff_helpers.reports import board_head, board_line

    with plain_errors():
        judge, numbers, labels = load_judge(device), range(seeds), load_fashion_mnist("train")[1]
    floors = {"floor": judge.floor(n), "floor, equal kinds": judge.floor(n, labels=labels)}
    floors = {name: mean_and_spread(measures) for name, measures in floors.items()}
    board = {"n": n, "seeds": seeds, "device": str(device)} | floors | {"rows": {}}
    say = (lambda line: None) if as_json else typer.echo
    say(board_head(n, seeds, device))
    for name, measures in floors.items():
        say(board_line(name, measures))
    for row in ROWS:
        with plain_errors():
            board["rows"][row] = measure_row(judge, row, n, numbers, device)
        say(board_line(row, board["rows"][row]["measures"]))
    if as_json:
        typer.echo(json.dumps(board, indent=1))


@app.command()
def evaluate(
    name: Annotated[str, typer.Argument(help="A published network, a folder that `fmdiff train` wrote, or all.")],
    n: Annotated[int, typer.Option("-n", help="Images for each seed.")] = 1000,
    seeds: Annotated[int, typer.Option(help="How many sets of images, for the spread.")] = 3,
    steps: NumSteps = None,
    guidance: Guidance = None,
    guide: Guide = None,
    interval: Interval = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Measure samples against the test images, beside as many real ones; or a classifier's accuracy on them.

    For an autoencoder, and a denoiser of its latents, also what it makes of real images: no such sample can be better.
    `all` measures every row of the leaderboard, each network as it draws best.
    """
    from fmdiff_helpers.batching import this_process
    from fmdiff_helpers.cards import build_process, read_card
    from fmdiff_helpers.checkpoints import load_pretrained
    from fmdiff_helpers.data import load_fashion_mnist, to_uint8
    from fmdiff_helpers.drawing import load_autoencoder, load_drawer
    from fmdiff_helpers.leaderboard import load_judge
    from fmdiff_helpers.metrics import accuracy, mean_and_spread
    from fmdiff_helpers.reports import describe_request, evaluation_table

    check_at_least("-n", n, 200)
    check_at_least("--seeds", seeds, 1)
    device, request = this_process().device, (steps, guidance, guide, interval)
    chosen = request != (None, None, None, None)
    if name == "all":
        if chosen:
            raise fail("all rows of the leaderboard have their own steps and guidance; leave those options out", 2)
        evaluate_all(n, seeds, device, as_json)
        return
    with plain_errors():
        card = read_card(name)
        draws = build_process(card).max_steps > 0
        if chosen and not draws:
            raise ValueError(f"{name!r} draws nothing; leave --steps, --guidance, --guide and --interval out")
        if card["kind"] == "classifier":
            found = accuracy(load_pretrained(name, device), *load_fashion_mnist("test"))
            right = json.dumps({"test_accuracy": found})
            typer.echo(right if as_json else f"{name}: {found:.2%} of the test images right")
            return
        drawer = load_drawer(name, *request, device) if draws else None
        autoencoder, judge = load_autoencoder(name, device), load_judge(device)
    columns = {"floor": mean_and_spread(judge.floor(n))}
    if drawer:
        y = drawer.all_kinds(n)
        measured = [judge.measure(to_uint8(drawer.draw(n, seed, y)), y) for seed in range(seeds)]
        columns = {"measures": mean_and_spread(measured)} | columns
    if autoencoder:
        columns["ceiling"] = mean_and_spread(judge.ceiling(n, autoencoder))
    num_steps = drawer.num_steps or drawer.process.max_steps if card["kind"] == "denoiser" else None
    if as_json:
        about = {"network": name, "n": n, "seeds": seeds, "steps": num_steps, "device": str(device)}
        about |= {} if guidance is None else {"guidance": guidance, "guide": guide}
        about |= {} if interval is None else {"interval": interval}
        typer.echo(json.dumps(about | columns, indent=2))
        return
    how = describe_request(num_steps, guidance, guide, interval)
    typer.echo(f"{name}: {n} images for each of {seeds} seeds, {how}on {device}")
    typer.echo(evaluation_table(columns))


if __name__ == "__main__":  # for `accelerate launch -m fmdiff_helpers.cli`
    if not is_first():
        sys.stdout = open(os.devnull, "w")
    app()
