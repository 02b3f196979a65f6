"""What `fmdiff evaluate --images` does: train the judge if it is not there yet, measure, and print."""

import sys
from pathlib import Path

import typer

from fmdiff_helpers.arguments import plain_errors
from fmdiff_helpers.batching import this_process
from fmdiff_helpers.cards import WeightsError, build_process, find_weights, read_card
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.entries import own_pictures
from fmdiff_helpers.evaluation import describe_seeded, print_json
from fmdiff_helpers.metrics import mean_and_spread
from fmdiff_helpers.models.encoder import Encoder
from fmdiff_helpers.picture_judge import PictureJudge
from fmdiff_helpers.pictures import Pictures, fitting_batch, read_same
from fmdiff_helpers.recipes import profiles, train_network
from fmdiff_helpers.reports import describe_request, describe_seeds, evaluation_table

LEAST_COMPARED = 50  # held-out pictures: fewer say too little about how pictures are distributed
MOST_FEATURES = 128  # of an encoder; as many images cannot tell its covariances
USUAL_NUMBER = 1000  # of images for each seed, where there are as many training pictures


def recipe_of_judge(folder: Path, pictures: Pictures) -> dict | None:
    """Return the recipe of the encoder in a folder, None if there is none yet; ValueError if it knows others."""
    try:
        card = read_card(folder)
    except WeightsError:
        return None
    if card["kind"] != "encoder" or (own_pictures(card) or {}).get("sha256") != pictures.sha256:
        raise ValueError(f"--judge is {folder}, which holds no encoder of these pictures; name another folder")
    return card["recipe"]


def find_judge(folder: Path, pictures: Pictures) -> Encoder | None:
    """Return the encoder in a folder, trained there to its end if needed; None if too few pictures are held out.

    ValueError if there is another network, or one of other pictures; KeyboardInterrupt if its training is stopped.
    """
    if pictures.held_out < LEAST_COMPARED:
        return None
    recipe = recipe_of_judge(folder, pictures)
    if recipe is None:
        recipe = profiles("encoder")["full"] | {"batch_size": fitting_batch(pictures, 128)}
        if this_process().is_main_process:
            print(f"First an encoder, which measures, is trained on the pictures, in {folder}.", file=sys.stderr)
    elif not (folder / "checkpoint.pt").exists():
        return load_pretrained(folder, this_process().device)
    _, history = train_network("encoder", folder, own=pictures, **recipe)  # nothing is left to do if it has ended
    if history[-1]["step"] < recipe["steps"]:
        raise KeyboardInterrupt
    return load_pretrained(folder, this_process().device)


def check_number(n: int | None, pictures: Pictures) -> int:
    """Return how many images to measure for each seed; ValueError unless a floor can have as many."""
    most = len(pictures.part("train")[0])
    n = min(USUAL_NUMBER, most) if n is None else n
    least = min(pictures.held_out // 2, MOST_FEATURES) + 1 if pictures.held_out >= LEAST_COMPARED else 1
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
        pictures = read_same(name, card, place)
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
