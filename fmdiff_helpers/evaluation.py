"""What `fmdiff evaluate` measures and prints: the leaderboard, a classifier, a file of images, or a network."""

import json
import math
from pathlib import Path

import typer

from fmdiff_helpers.arguments import LEAST_IMAGES, MOST_IMAGES, check_at_most, plain_errors
from fmdiff_helpers.batching import this_process
from fmdiff_helpers.cards import build_process, read_card
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.data import dataset_name, load_fashion_mnist
from fmdiff_helpers.drawing import load_autoencoder, load_drawer
from fmdiff_helpers.images import read_samples
from fmdiff_helpers.leaderboard import ROWS, load_judge, measure_columns, measure_floors, measure_row
from fmdiff_helpers.metrics import accuracy, features, linear_probe, mean_and_spread
from fmdiff_helpers.reports import board_head, board_line, describe_request, evaluation_table


def print_json(found: dict) -> None:
    """Print measures as JSON; FloatingPointError if one is not finite, for which JSON has no word."""

    def check(value: object) -> None:
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
            check(part)
        if isinstance(value, float) and not math.isfinite(value):
            raise FloatingPointError("a measure is not finite: the network or its weights are broken")

    check(found)
    typer.echo(json.dumps(found, indent=1))


def evaluate_all(n: int, seeds: int, as_json: bool) -> None:
    """Print the leaderboard: row by row, or as JSON once all rows are measured."""
    device = this_process().device
    with plain_errors():
        judge = load_judge(device)
        floors = measure_floors(judge, n)
    board = {"n": n, "seeds": seeds, "device": str(device), "data": dataset_name()} | floors | {"rows": {}}
    say = (lambda line: None) if as_json else typer.echo
    say(board_head(n, seeds, device, dataset_name()))
    for name, measures in floors.items():
        say(board_line(name, measures))
    for row in ROWS:
        with plain_errors():
            board["rows"][row] = measure_row(judge, row, n, range(seeds), device)
        say(board_line(row, board["rows"][row]["measures"]))
    if as_json:
        with plain_errors():
            print_json(board)


def evaluate_classifier(name: str, as_json: bool) -> None:
    """Print the accuracy of a classifier on the test images."""
    with plain_errors():
        found = accuracy(load_pretrained(name, this_process().device), *load_fashion_mnist("test"))
        if as_json:
            print_json({"network": name, "data": dataset_name(), "test_accuracy": found})
        else:
            typer.echo(f"{name}: {found:.2%} of the test images right, of {dataset_name()}")


def evaluate_encoder(name: str, as_json: bool) -> None:
    """Print how many test images one linear layer gets right that is fitted to an encoder's features."""
    with plain_errors():
        encoder = load_pretrained(name, this_process().device)
        data = (load_fashion_mnist(split) for split in ("train", "test"))
        found = linear_probe(*(part for images, labels in data for part in (features(encoder, images), labels)))
        if as_json:
            print_json({"network": name, "data": dataset_name(), "linear_probe": found})
        else:
            typer.echo(f"{name}: {found:.2%} of the test images right by a linear layer, of {dataset_name()}")


def print_columns(title: str, about: dict, columns: dict, as_json: bool) -> None:
    """Print measures by column, as a table below its title, or as JSON with what it is about."""
    if as_json:
        print_json(about | {"data": dataset_name()} | columns)
    else:
        typer.echo(f"{title}, compared with {dataset_name()}")
        typer.echo(evaluation_table(columns))


def evaluate_file(name: str, as_json: bool) -> None:
    """Print the measures of the images in a .npz file, beside as many real images."""
    with plain_errors():
        images, labels = read_samples(Path(name), LEAST_IMAGES)
        check_at_most(f"the number of images in {name!r}", len(images), MOST_IMAGES, "images")
        device, n = this_process().device, len(images)
        judge = load_judge(device)
        columns = {
            "measures": mean_and_spread([judge.measure(images, labels)]),
            "floor": mean_and_spread(judge.floor(n)),
        }
        about = {"file": name, "n": n, "device": str(device)}
        print_columns(f"{name}: {n} images, on {device}", about, columns, as_json)


def evaluate_network(name: str, request: tuple, n: int, seeds: int, as_json: bool) -> None:
    """Print the measures of a network; `request` are steps, guidance, guide and interval, each None if left out."""
    device = this_process().device
    with plain_errors():
        card = read_card(name)
        draws = build_process(card).max_steps > 0
        if request != (None, None, None, None) and not draws:
            raise ValueError(f"{name!r} draws nothing; leave --steps, --guidance, --guide and --interval out")
        if card["kind"] == "classifier":
            evaluate_classifier(name, as_json)
            return
        if card["kind"] == "encoder":
            evaluate_encoder(name, as_json)
            return
        steps, guidance, guide, interval = request
        drawer = load_drawer(name, steps, guidance, guide, interval, device) if draws else None
        autoencoder, judge = load_autoencoder(name, device), load_judge(device)
        columns = measure_columns(judge, n, range(seeds), drawer, autoencoder)
        num_steps = (drawer.num_steps or drawer.process.max_steps) if drawer and card["kind"] == "denoiser" else None
        about = {"network": name, "n": n, "seeds": seeds, "steps": num_steps, "device": str(device)}
        about |= {} if guidance is None else {"guidance": guidance, "guide": guide}
        about |= {} if interval is None else {"interval": interval}
        how = describe_request(num_steps, guidance, guide, interval)
        title = f"{name}: {n} images for each of {seeds} seeds, {how}on {device}"
        print_columns(title, about, columns, as_json)
