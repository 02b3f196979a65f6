"""What `fmdiff evaluate --images` does: train the judge if it is not there yet, measure, and print."""

import sys
from pathlib import Path

import typer

from fmdiff_helpers.arguments import plain_errors
from fmdiff_helpers.batching import this_process
from fmdiff_helpers.cards import WeightsError, build_process, find_weights, read_card
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.entries import describe_pictures, image_shape, own_pictures
from fmdiff_helpers.evaluation import describe_seeded, print_json
from fmdiff_helpers.metrics import mean_and_spread
from fmdiff_helpers.models.encoder import Encoder
from fmdiff_helpers.picture_judge import PictureJudge
from fmdiff_helpers.pictures import Pictures, read_pictures
from fmdiff_helpers.recipes import train_network
from fmdiff_helpers.reports import describe_request, describe_seeds, evaluation_table

LEAST_COMPARED = 50  # held-out pictures: fewer say too little about how pictures are distributed
USUAL_NUMBER = 1000  # of images for each seed, where there are as many training pictures


def check_same(name: str, card: dict, place: Path) -> Pictures:
    """Return the pictures at a place; ValueError unless a network was trained on just these."""
    about = own_pictures(card)
    if about is None:
        raise ValueError(f"{name!r} was not trained on pictures of your own; leave --images out")
    channels, height, _ = image_shape(card)
    pictures = read_pictures(place, height, grey=channels == 1)
    now = pictures.entry()
    if now["sha256"] != about["sha256"]:
        raise ValueError(
            f"{name!r} was trained on {describe_pictures(about)}, and {str(place)!r} holds {describe_pictures(now)}; "
            "name the pictures that it was trained on, unchanged"
        )
    return pictures


def is_finished(folder: Path) -> bool:
    """Tell whether the training in a folder took all its steps."""
    try:
        card = read_card(folder)
    except WeightsError:
        return False
    return bool(card.get("history")) and card["history"][-1]["step"] >= card["recipe"].get("steps", 0)


def find_judge(folder: Path, pictures: Pictures) -> Encoder | None:
    """Return the encoder in a folder, trained there first if needed; None if the held-out pictures are too few.

    ValueError if there is another network, or one of other pictures; KeyboardInterrupt if its training is stopped.
    """
    if pictures.held_out < LEAST_COMPARED:
        return None
    if not is_finished(folder):
        if this_process().is_main_process:
            print(f"First an encoder, which measures, is trained on the pictures, in {folder}.", file=sys.stderr)
        batch_size = min(128, len(pictures.part("train")[0]))
        train_network("encoder", folder, own=pictures, batch_size=batch_size)
        if not is_finished(folder):
            raise KeyboardInterrupt
    card = read_card(folder)
    if card["kind"] != "encoder" or (own_pictures(card) or {}).get("sha256") != pictures.entry()["sha256"]:
        raise ValueError(f"--judge is {folder}, which holds no encoder of these pictures; name another folder")
    return load_pretrained(folder, this_process().device)


def check_number(n: int | None, pictures: Pictures) -> int:
    """Return how many images to measure for each seed; ValueError unless a floor can have as many."""
    most = len(pictures.part("train")[0])
    n = min(USUAL_NUMBER, most) if n is None else n
    least = pictures.held_out // 2 + 1 if pictures.held_out >= LEAST_COMPARED else 1
    if not least <= n <= most:
        raise ValueError(f"-n is {n}; expected {least:,} to {most:,}, the number of training pictures")
    return n


def print_measures(about: dict, how: str, columns: dict, as_json: bool) -> None:
    """Print measures by column, as a table below a title, or as JSON with what they are about.

    `how` says how the samples were drawn.
    """
    if as_json:
        print_json(about | columns)
        return
    seeds = range(about["first_seed"], about["first_seed"] + about["seeds"])
    data, held_out = about["data"], f"{about['data']['held_out']:,}"
    drawn = f"{about['network']}: {about['n']:,} images for {describe_seeds(seeds)}, {how}on {about['device']}"
    compared = f"compared with {held_out} pictures of {data['pictures']!r}, {about['split']} split"
    typer.echo(f"{drawn}, {compared}; floor: training pictures")
    typer.echo(evaluation_table(columns))
    if "fd" not in columns["floor"]:
        typer.echo(f"Nothing but copying is measured: {held_out} pictures are too few to compare with.")


def evaluate_on_pictures(
    name: str, place: Path, judge: Path | None, request: tuple, n: int | None, seeds: range, split: str, as_json: bool
) -> None:
    """Print the measures of a network that was trained on the pictures at a place, beside those of such pictures.

    `request` are steps, guidance, guide, interval and eta, None if left out.
    """
    device, (steps, guidance, guide, interval, eta) = this_process().device, request
    with plain_errors():
        card = read_card(name)
        if not build_process(card).max_steps:
            raise ValueError(f"{name!r} draws nothing; name a network that draws, and an encoder as its --judge")
        pictures = check_same(name, card, place)
        n, drawer = check_number(n, pictures), load_drawer(name, steps, guidance, guide, interval, device, eta)
        encoder = find_judge(judge or find_weights(name).parent / "judge", pictures)
        measuring = PictureJudge(pictures, split, encoder)
        columns = {
            "measures": mean_and_spread(measuring.judge(drawer, n, seeds)),
            "floor": mean_and_spread(measuring.floor(n, seeds)),
        }
        steps = drawer.num_steps or drawer.process.max_steps
        about = {"network": name} | describe_seeded(n, seeds) | {"steps": steps, "device": str(device)}
        given = {"guidance": guidance, "guide": guide, "interval": interval, "eta": eta}
        about |= {what: value for what, value in given.items() if value is not None}
        about |= {"data": pictures.entry(), "split": split}
        print_measures(about, describe_request(steps, guidance, guide, interval, eta), columns, as_json)
