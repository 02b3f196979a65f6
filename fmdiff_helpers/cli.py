"""The `fmdiff` command: the lessons without a notebook."""

import math
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fmdiff_helpers.arguments import (
    LEAST_IMAGES,
    MOST_IMAGES,
    NUM_SEEDS,
    Commands,
    Eta,
    Guidance,
    Guide,
    Images,
    Interval,
    Network,
    NumSteps,
    Split,
    check_at_least,
    check_at_most,
    check_choice,
    check_grid,
    check_outside,
    check_place,
    check_seeds,
    check_split,
    check_unused,
    describe_error,
    fail,
    is_first,
    most_images,
    next_command,
    number_of_columns,
    plain_errors,
    usual_folder,
)
from fmdiff_helpers.lab import find_lesson, has_browser, lab_arguments

# Each command imports what it needs, so that `fmdiff --help` need not wait seconds for PyTorch. `sample` is long,
# because its imports and checks stand in the order in which a user meets them.

EPOCH = 58_000  # images: the training split without those for validation
# The ending of a file of samples -> the most images that it may hold.
ANIMATED = (100, "for an animation")
LIMITS = {
    ".png": (10_000, "for a picture; a .npz may hold more"),
    ".gif": ANIMATED,
    ".webp": ANIMATED,
    ".npz": (MOST_IMAGES, "images, as many as the training split has; another --seed gives others"),
}

app = typer.Typer(
    cls=Commands,
    help="Diffusion models on Fashion-MNIST, or on pictures of your own: open a lesson, train a network, draw samples, "
    "measure them.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def lab(
    lesson: Annotated[str, typer.Argument(help="The number of a lesson, or the start of its name.")] = "01",
    # JupyterLab also tries ports up to a hundred above the first.
    port: Annotated[int, typer.Option(min=1, max=65_000, help="The first port to try.")] = 8888,
) -> None:
    """Open a lesson in JupyterLab, on this machine only; without a browser, print the address to open."""
    try:
        path = find_lesson(lesson)
    except ValueError as error:
        raise fail(str(error), 2) from None
    from jupyterlab.labapp import LabApp

    browser = has_browser()
    if not browser:
        typer.echo("No browser here. Open the address below that starts with http://127.0.0.1 (it holds a token).")
        typer.echo("On another computer, first run there: ssh -L PORT:127.0.0.1:PORT THIS_MACHINE, with its port.")
    if os.environ.get("FMDIFF_DATA"):  # a kernel runs in notebooks/, where a relative path means another folder
        os.environ["FMDIFF_DATA"] = str(Path(os.path.expanduser(os.environ["FMDIFF_DATA"])).resolve())
    LabApp.launch_instance(argv=lab_arguments(path, port, browser))


@app.command()
def data(
    repair: Annotated[bool, typer.Option("--repair", help="Download missing and damaged files again.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--folder", "--images", help="Look at pictures of your own: a folder, or a .npz.")
    ] = None,
) -> None:
    """Download Fashion-MNIST if it is missing, and check it; or say what is in a folder of your own pictures."""
    if folder is not None:
        check_unused({"--repair": repair or None}, "pictures of your own")
        from fmdiff_helpers.picture_reports import USUAL, describe, read_pictures

        with plain_errors():
            typer.echo(describe(read_pictures(folder, USUAL), folder))
        return
    from http.client import HTTPException

    from fmdiff_helpers.data import DataError, download, fetch_fashion_mnist, find_problems, raw_folder

    try:
        if repair and (broken := find_problems(raw_folder())):
            download(raw_folder(), list(broken))
        raw = fetch_fashion_mnist()
        problems = find_problems(raw) if raw else {}
    except (DataError, OSError, HTTPException, RuntimeError) as error:
        raise fail(describe_error(error), 1) from None
    if raw is None:
        raise typer.Exit(1)  # a notice has already said why
    for problem in problems.values():
        typer.echo(f"fmdiff: {problem}", err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"Fashion-MNIST is in {raw}: 60,000 training and 10,000 test images, all four files intact.")


@app.command()
def train(
    name: Annotated[
        str,
        typer.Argument(
            help="The network: unet, transformer, vae, latent_unet, shortcut_unet, patch_unet, "
            "attention_autoencoder, vector_denoiser, classifier or encoder."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The folder to write to; runs/NAME or runs/FOLDER_NAME if left out.")
    ] = None,
    profile: Annotated[str, typer.Option(help="How long: smoke (under a minute), quick or full.")] = "full",
    epochs: Annotated[float | None, typer.Option(help="Passes over the data, instead of those of a profile.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images in one step, of all processes together.")] = 128,
    seed: Annotated[int, typer.Option(min=0, max=2**32, help="Another seed gives another network.")] = 0,
    autoencoder: Annotated[
        str | None, typer.Option(help="For a denoiser of latents: a published autoencoder, or a folder.")
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Draw samples after each validation, into --out.")
    ] = False,
    images: Images = None,
    size: Annotated[int | None, typer.Option(help="With --images: their width and height, 32 if left out.")] = None,
    grey: Annotated[bool, typer.Option("--grey", help="With --images: make pictures in colour grey.")] = False,
) -> None:
    """Train a network by its recipe. After a stop, the same command continues from the last checkpoint."""
    from fmdiff_helpers.cards import build_process
    from fmdiff_helpers.recipes import CARDS, OWN, profiles, train_network

    check_choice("network", name, list(CARDS))
    check_choice("--profile", profile, list(profiles(name)))
    check_at_least("--epochs", epochs, 0.01)
    check_at_most("--epochs", epochs or 0, 10_000, "passes, which take months")
    check_at_least("--batch-size", batch_size, 1)
    check_at_most("--batch-size", batch_size, EPOCH, "images, all that there are")
    folder, options, max_steps = out or usual_folder(name, images), {}, build_process(CARDS[name]).max_steps
    check_place(folder, folder=True)
    epoch = EPOCH
    if images is None:
        check_unused({"--size": size, "--grey": grey or None}, "Fashion-MNIST, without --images")
    else:
        from fmdiff_helpers.picture_reports import pictures_to_train
        from fmdiff_helpers.pictures import fitting_batch

        check_choice("a network for pictures of your own", name, list(OWN))
        check_outside(folder, images)
        with plain_errors():
            options["own"] = pictures_to_train(images, size, grey)
        epoch = len(options["own"].part("train")[0])
        batch_size = fitting_batch(options["own"], batch_size)
    changes = {"batch_size": batch_size, "seed": seed} | profiles(name)[profile]
    if epochs is not None:
        changes["steps"] = max(1, round(epochs * epoch / batch_size))
    if pictures:
        from fmdiff_helpers.results import Results  # imports matplotlib, which servers may not have

        if max_steps < 2:
            raise fail(f"--pictures is for networks that draw step by step, but {name} does not; leave it out", 2)
        options |= {"report": Results(folder)} if is_first() else {}
    with plain_errors():
        _, history = train_network(name, folder, autoencoder=autoencoder, **options, **changes)
    if history[-1]["step"] < changes["steps"] or "validation" not in history[-1]:
        raise typer.Exit(130)  # the exit code of shells for "interrupted"
    typer.echo(f"{folder}: validation loss {history[-1]['validation']['loss']:.4f} after {changes['steps']} steps.")
    typer.echo(next_command(folder, max_steps > 0, images))


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
    eta: Eta = None,
    label: Annotated[str | None, typer.Option(help="A kind, as Dress or 3; if left out, all in turn.")] = None,
    grid: Annotated[bool, typer.Option("--grid", help="Write the names of the kinds above the columns.")] = False,
) -> None:
    """Draw samples: a .png grid, a .gif or .webp of the sampling steps, or a .npz with `images` uint8 (N, 28, 28).

    In colour, `images` are (N, height, width, 3). For a network that takes labels, a .npz also holds `labels` (N,), and
    a grid of all kinds has a column for each.
    """
    from fmdiff_helpers.batching import this_process
    from fmdiff_helpers.data import to_uint8
    from fmdiff_helpers.drawing import load_drawer
    from fmdiff_helpers.export import save_animation, save_images

    kind = out.suffix.lower()
    animated = kind in (".gif", ".webp")
    check_choice("the ending of --out", kind, list(LIMITS))
    check_at_least("-n", n, 1)
    check_at_most("-n", n, *LIMITS[kind])
    check_place(out, folder=False)
    with plain_errors():
        drawer = load_drawer(name, steps, guidance, guide, interval, this_process().device, eta)
        y = drawer.all_kinds(n) if label is None else drawer.one_kind(label, n)
    if animated and drawer.process.max_steps == 1:
        raise fail(f"{name!r} draws in one step, with nothing to animate; let --out end in .png or .npz", 2)
    columns = number_of_columns(drawer.kinds if drawer.takes_labels else (), label)
    if grid:
        check_grid(drawer.takes_labels, columns, label, kind)
    frames = []
    keep = (lambda step: frames.append(to_uint8(drawer.decode(step.xt)))) if animated else None
    with plain_errors():
        images = to_uint8(drawer.draw(n, seed, y, keep))
    if not is_first():
        return
    try:
        if animated:
            kept = frames[:: math.ceil(len(frames) / 30)]  # at most 30 of the steps
            save_animation(out, [*kept, images], columns=columns)
        else:
            save_images(out, images, y, columns, drawer.kinds if grid else ())
    except OSError as error:
        reason = describe_error(error)
        raise fail(f"--out is {out}: {reason}; name a file in a folder that you may write to", 1) from None
    typer.echo(f"{n} images in {out}")


@app.command("show")
def show_latent(
    what: Annotated[str, typer.Argument(help="One of reconstructions, latents, path, loop and nearest.")],
    name: Network,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="WHAT.png if left out, loop.gif for a loop.")] = None,
    label: Annotated[str | None, typer.Option(help="For path and loop: a garment, Dress if left out.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32, help="For path, loop and nearest: which.")] = None,
    steps: Annotated[int | None, typer.Option(help="How many. For path and loop at most 20 if left out.")] = None,
    tsne: Annotated[bool, typer.Option("--tsne", help="For latents: t-SNE instead of PCA.")] = False,
    images: Images = None,
) -> None:
    """Draw what happens in the latent space of an autoencoder, or of a denoiser of latents; or what samples are near.

    reconstructions: garments, what the autoencoder makes of them, and the difference. latents: a map of the test
    images. path: one chain from noise, and its path on the map. loop: a garment to noise and back, a .gif or .webp.
    nearest: ten samples of any network that draws, and below each the nearest training picture, with the distance.
    """
    from fmdiff_helpers.cards import class_name, read_card

    of_chains = what in ("path", "loop")
    check_choice("what to show", what, ["reconstructions", "latents", "path", "loop", "nearest"])
    out = out or Path("loop.gif" if what == "loop" else f"{what}.png")
    check_choice("the ending of --out", out.suffix.lower(), [".gif", ".webp"] if what == "loop" else [".png"])
    check_place(out, folder=False)
    unused = {} if of_chains else {"--label": label}
    unused |= {"--images": images} if what != "nearest" else {}
    unused |= {"--seed": seed, "--steps": steps} if what in ("reconstructions", "latents") else {}
    check_unused(unused | ({} if what == "latents" else {"--tsne": tsne or None}), what)
    from fmdiff_helpers.showing import show_chain, show_images, show_nearest

    with plain_errors():
        card = read_card(name)
        if what == "nearest":
            show_nearest(name, out, images, seed or 0, steps)
        elif not card["autoencoder"] and (of_chains or card["kind"] != "autoencoder"):
            known = "a denoiser of latents" + ("" if of_chains else ", or an autoencoder")
            raise ValueError(f"{name!r} ({class_name(card)}) has no {what} to show; name {known}")
        elif of_chains:
            show_chain(what, name, out, label, seed or 0, steps)
        else:
            show_images(what, name, out, tsne)
    typer.echo(f"{what} of {name} in {out}")


@app.command()
def evaluate(
    name: Annotated[
        str, typer.Argument(help="A published network, a folder that `fmdiff train` wrote, a .npz of images, or all.")
    ],
    n: Annotated[int | None, typer.Option("-n", help="Images for each seed, 1,000 if left out.")] = None,
    seeds: Annotated[int | None, typer.Option(help=f"Sets of images, for the spread, {NUM_SEEDS} if left out.")] = None,
    split: Split = "test",
    steps: NumSteps = None,
    guidance: Guidance = None,
    guide: Guide = None,
    interval: Interval = None,
    eta: Eta = None,
    images: Images = None,
    judge: Annotated[
        Path | None,
        typer.Option(help="With --images: the folder of the encoder that measures, NAME/judge if left out."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Compare samples with the test images, beside as many real images; or measure the accuracy of a classifier.

    The real images, the floor, have equally many of each kind where the samples do. An autoencoder, and a denoiser of
    its latents, also get the measures of real images that it reconstructs, the limit: no sample can be better. A .npz
    holds `images` uint8 (N, 28, 28) or (N, 1, 28, 28) and, where they are known, `labels` (N,).
    `all` measures every row of the leaderboard; each row has its own options. A network that was trained on pictures of
    your own is measured with --images, by an encoder that is trained on them first.
    """
    from fmdiff_helpers.evaluation import evaluate_all, evaluate_file, evaluate_network

    request = (steps, guidance, guide, interval, eta)
    if images is not None and name != "all" and not name.lower().endswith(".npz"):
        from fmdiff_helpers.picture_evaluation import evaluate_on_pictures

        chosen = check_seeds(split, seeds)
        evaluate_on_pictures(name, images, judge, request, n, chosen, split, as_json)
        return
    check_unused({"--images": images}, "a file of images, or for all")
    check_unused({"--judge": judge}, "Fashion-MNIST, without --images")
    if name.lower().endswith(".npz"):
        names = ("-n", "--seeds", "--steps", "--guidance", "--guide", "--interval", "--eta")
        check_unused(dict(zip(names, (n, seeds, *request), strict=True)), "a file of images")
        check_split(split, NUM_SEEDS)
        evaluate_file(name, split, as_json)
        return
    if name != "all":
        from fmdiff_helpers.cards import read_card

        with plain_errors():
            kind = read_card(name)["kind"]
        check_unused({"-n": n, "--seeds": seeds} if kind in ("classifier", "encoder") else {}, f"the {kind} {name}")
    n, chosen = 1000 if n is None else n, check_seeds(split, seeds)
    check_at_least("-n", n, LEAST_IMAGES)
    check_at_most("-n", n, most_images(split), "images, as many as the floor has")
    if name != "all":
        evaluate_network(name, request, n, chosen, split, as_json)
    elif set(request) == {None}:
        evaluate_all(n, chosen, split, as_json)
    else:
        raise fail("all rows of the leaderboard have their own steps and guidance; leave those options out", 2)


if __name__ == "__main__":  # for `accelerate launch -m fmdiff_helpers.cli`
    if not is_first():
        sys.stdout = open(os.devnull, "w")
    app()
