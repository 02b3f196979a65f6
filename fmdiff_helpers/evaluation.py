"""What `fmdiff evaluate` measures and prints: the leaderboard, a classifier, a file of images, or a network."""

import json
import math
from pathlib import Path

import typer

from fmdiff_helpers.arguments import LEAST_IMAGES, check_at_most, most_images, plain_errors, seeds_for
from fmdiff_helpers.batching import this_process
from fmdiff_helpers.cards import build_process, read_card
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.data import dataset_name, load_fashion_mnist
from fmdiff_helpers.drawing import load_autoencoder, load_drawer
from fmdiff_helpers.entries import describe_pictures, own_pictures
from fmdiff_helpers.images import read_samples
from fmdiff_helpers.leaderboard import (
    ROWS,
    has_equal_kinds,
    kinds_of,
    load_judge,
    measure_columns,
    measure_floors,
    measure_row,
    of_equal_kinds,
)
from fmdiff_helpers.metrics import accuracy, features, linear_probe, mean_and_spread
from fmdiff_helpers.reports import board_head, board_line, describe_request, describe_seeds, evaluation_table


def print_json(found: dict) -> None:
    """Print measures as JSON; FloatingPointError if one is not finite, for which JSON has no word."""

    def check(name: str, value: object) -> None:
        parts = value.items() if isinstance(value, dict) else ()
        parts = [(name, part) for part in value] if isinstance(value, list | tuple) else parts
        for each, part in parts:
            check(each, part)
        if isinstance(value, float) and not math.isfinite(value):
            raise FloatingPointError(f"{name} is {value}: the network or its weights are broken")

    check("it", found)
    typer.echo(json.dumps(found, indent=1))


def describe_seeded(n: int, seeds: range) -> dict[str, int]:
    """Return the entries that say how many images were measured, for how many seeds, and which is the first."""
    return {"n": n, "seeds": len(seeds), "first_seed": seeds[0]}


def describe_compared(split: str) -> str:
    """Return the name of what images are compared with: "Fashion-MNIST, test split"."""
    return f"{dataset_name()}, {split} split"


def evaluate_all(n: int, seeds: range, split: str, as_json: bool) -> None:
    """Print the leaderboard: row by row, or as JSON once all rows are measured."""
    device = this_process().device
    with plain_errors():
        judge = load_judge(device, split)
        floors = measure_floors(judge, n, seeds)
    board = describe_seeded(n, seeds) | {"device": str(device), "data": dataset_name(), "split": split}
    board |= floors | {"rows": {}}
    say = (lambda line: None) if as_json else typer.echo
    say(board_head(n, seeds, device, describe_compared(split)))
    for name, measures in floors.items():
        say(board_line(name, measures))
    for row in ROWS:
        with plain_errors():
            board["rows"][row] = measure_row(judge, row, n, seeds, device)
        say(board_line(row, board["rows"][row]["measures"]))
    if as_json:
        with plain_errors():
            print_json(board)


def evaluate_classifier(name: str, split: str, as_json: bool) -> None:
    """Print the accuracy of a classifier on the images of a split."""
    with plain_errors():
        found = accuracy(load_pretrained(name, this_process().device), *load_fashion_mnist(split))
        if as_json:
            print_json({"network": name, "data": dataset_name(), f"{split}_accuracy": found})
        else:
            typer.echo(f"{name}: {found:.2%} of the {split} images right, of {dataset_name()}")


def evaluate_encoder(name: str, split: str, as_json: bool) -> None:
    """Print how many images of a split one linear layer gets right that is fitted to an encoder's features."""
    with plain_errors():
        encoder = load_pretrained(name, this_process().device)
        train, (images, labels) = load_fashion_mnist("train"), load_fashion_mnist(split)
        if split == "validation":  # the end of the training split
            train = tuple(part[: -len(images)] for part in train)
        found = linear_probe(features(encoder, train[0]), train[1], features(encoder, images), labels)
        if as_json:
            print_json({"network": name, "data": dataset_name(), "split": split, "linear_probe": found})
        else:
            typer.echo(f"{name}: {found:.2%} of the {split} images right by a linear layer, of {dataset_name()}")


def print_columns(title: str, about: dict, columns: dict, split: str, equal_kinds: bool, as_json: bool) -> None:
    """Print measures by column, as a table below its title, or as JSON with what it is about.

    `split` is what images are compared with, `equal_kinds` whether the floor has equally many of each kind.
    """
    if as_json:
        print_json(about | {"data": dataset_name(), "split": split, "equal_kinds": equal_kinds} | columns)
    else:
        floor = "equally many of each kind" if equal_kinds else "kinds at random"
        typer.echo(f"{title}, compared with {describe_compared(split)}; floor: {floor}")
        typer.echo(evaluation_table(columns))


def evaluate_file(name: str, split: str, as_json: bool) -> None:
    """Print the measures of the images in a .npz file, beside as many real images."""
    with plain_errors():
        images, labels = read_samples(Path(name), LEAST_IMAGES)
        check_at_most(f"the number of images in {name!r}", len(images), most_images(split), "images")
        device, n, seeds = this_process().device, len(images), seeds_for(split)
        judge, equal_kinds = load_judge(device, split), has_equal_kinds(labels)
        columns = {
            "measures": mean_and_spread([judge.measure(images, labels)]),
            "floor": mean_and_spread(judge.floor(n, seeds, kinds_of(judge) if equal_kinds else None)),
        }
        about = {"file": name, "n": n, "device": str(device)}
        print_columns(f"{name}: {n} images, on {device}", about, columns, split, equal_kinds, as_json)


def evaluate_network(name: str, request: tuple, n: int, seeds: range, split: str, as_json: bool) -> None:
    """Print the measures of a network; `request` are steps, guidance, guide, interval and eta, None if left out."""
    device = this_process().device
    with plain_errors():
        card = read_card(name)
        if own := own_pictures(card):
            raise ValueError(f"{name!r} was trained on {describe_pictures(own)}; name their folder with --images, too")
        draws = build_process(card).max_steps > 0
        if set(request) != {None} and not draws:
            raise ValueError(f"{name!r} draws nothing; leave --steps, --guidance, --guide, --interval and --eta out")
        if card["kind"] == "classifier":
            evaluate_classifier(name, split, as_json)
            return
        if card["kind"] == "encoder":
            evaluate_encoder(name, split, as_json)
            return
        steps, guidance, guide, interval, eta = request
        drawer = load_drawer(name, steps, guidance, guide, interval, device, eta) if draws else None
        autoencoder, judge = load_autoencoder(name, device), load_judge(device, split)
        columns = measure_columns(judge, n, seeds, drawer, autoencoder)
        num_steps = (drawer.num_steps or drawer.process.max_steps) if drawer and card["kind"] == "denoiser" else None
        about = {"network": name} | describe_seeded(n, seeds) | {"steps": num_steps, "device": str(device)}
        about |= {} if guidance is None else {"guidance": guidance, "guide": guide}
        about |= {} if interval is None else {"interval": interval}
        about |= {} if eta is None else {"eta": eta}
        how = describe_request(num_steps, guidance, guide, interval, eta)
        title = f"{name}: {n} images for {describe_seeds(seeds)}, {how}on {device}"
        print_columns(title, about, columns, split, of_equal_kinds(drawer, autoencoder), as_json)
