"""Does a network learn its pictures by heart? The same network, trained for as many steps on few and on many garments.

uv run python benchmarks/memory.py run [N ...]   train on N garments, draw, measure; into memory.json and memory.npz
uv run python benchmarks/memory.py table         memory.json as a table

N: some of `NUMBERS`, all of them if left out. What is trained lies in runs/memory. Stopped, the same command goes on;
rows that are written are left out.
"""

import io
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from exhibits import compared, train_card
from machine import about
from torch import Tensor, nn

from fmdiff_helpers.arguments import seeds_for
from fmdiff_helpers.cards import build, build_process
from fmdiff_helpers.checkpoints import load_pretrained, write_atomically
from fmdiff_helpers.data import NUM_VALIDATION, describe_data, load_fashion_mnist, to_model, to_uint8
from fmdiff_helpers.drawing import Drawer, drawer_of
from fmdiff_helpers.leaderboard import load_judge
from fmdiff_helpers.metrics import Judge, kinds_in_turn, mean_and_spread, nearest, nearest_ratio
from fmdiff_helpers.recipes import CARDS, repeated
from fmdiff_helpers.train import read_checkpoint

NUMBERS = (10, 100, 1000)
ARGUMENTS = {"mults": [1, 2, 4]}  # lesson 03's network with one more level: 2.1 million weights
# For memorising, steps count more than images, so batches are small (Bonnaire et al. 2025, section 2).
RECIPE = {"lr": 3e-3, "steps": 7500, "batch_size": 16, "every": 750}
N, DRAWN_STEPS, SHOWN = 500, 20, 10
RATIO = 1 / 3  # of the distances to the nearest and to the second nearest garment; below it, a drawing is a copy
COMPARED = 2000  # garments whose loss is measured
RESULTS, PICTURES = (Path(__file__).with_suffix(suffix) for suffix in (".json", ".npz"))


def card_of(n: int) -> dict:
    """Return the card of a network that is trained on n garments, without labels."""
    card = CARDS["unet"] | {"data": f"{describe_data()}, {n} images", "recipe": RECIPE}
    return card | {"arguments": card["arguments"] | ARGUMENTS}


def folder_of(n: int) -> Path:
    """Return where the network that sees n garments is trained."""
    return Path(f"runs/memory/{n}")


def chosen(n: int) -> Tensor:
    """Return which n of the training images are learned from: kinds in turn, and each set holds the smaller ones."""
    labels = load_fashion_mnist("train")[1][:-NUM_VALIDATION]
    return kinds_in_turn(torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)), labels)[:n]


def both_losses(model: nn.Module, validate: partial, own: Tensor) -> dict:
    """Return the loss on the validation images and, as "own", that on the garments that are learned from."""
    return validate(model) | {"own": validate(model, x0=own)["loss"]}


def train_on(n: int) -> None:
    """Train on n garments."""
    card, index = card_of(n), chosen(n)
    images, labels = (part[index] for part in load_fashion_mnist("train"))
    own, held_out = (to_model(repeated(x, COMPARED)[:COMPARED]) for x in (images, load_fashion_mnist("validation")[0]))
    validate = partial(build_process(card).validate, x0=held_out, y=None)
    data = tuple(repeated(part, 1000) for part in (images, labels))  # so that a batch can be larger than n
    train_card(card, folder_of(n), data=data, validate=partial(both_losses, validate=validate, own=own))


def drawers(n: int, state: dict) -> dict[str, Drawer]:
    """Return how the network draws by its weights after all steps, "last", and by those that `train` keeps, "kept".

    Those have the lowest loss on the validation images. `state` is what its checkpoint holds.
    """
    last = build(state["card"]).requires_grad_(False).eval()
    last.load_state_dict({name[7:]: x for name, x in state["ema"].items() if name.startswith("module.")})
    networks = {"last": last, "kept": load_pretrained(folder_of(n))}
    return {name: drawer_of(state["card"], network, DRAWN_STEPS, "cpu") for name, network in networks.items()}


def share_of_copies(images: Tensor, learned: Tensor) -> float:
    """Return the share of uint8 images (B, 1, 28, 28) that are copies of one of those learned from (n, 1, 28, 28)."""
    return (nearest_ratio(images, learned) < RATIO).double().mean().item()


def measure(n: int, state: dict, judge: Judge) -> dict:
    """Report on the network that has learned from n garments; "by_chance" are copies among the validation images."""
    index, seeds = chosen(n), seeds_for("test")
    learned = load_fashion_mnist("train")[0][index]
    points = [(each["step"], each["validation"]) for each in state["history"] if "validation" in each]
    row = {"history": [{"step": step, "own": found["own"], "held_out": found["loss"]} for step, found in points]}
    held_out = load_fashion_mnist("validation")[0]
    row |= {"seconds": round(state["seconds"]), "by_chance": share_of_copies(held_out, learned)}
    for name, drawer in drawers(n, state).items():
        drawn = [to_uint8(drawer.draw(N, seed)) for seed in seeds]
        measured = [judge.measure(images) | {"copies": share_of_copies(images, learned)} for images in drawn]
        row[name] = mean_and_spread(measured)
        if name == "last":
            shown = drawn[0][:SHOWN]
            keep_pictures(n, shown, index[nearest(shown, learned)[1]])
    return row


def keep_pictures(n: int, drawn: Tensor, index: Tensor) -> None:
    """Keep some of what was drawn after n garments, and the numbers of the training images that are nearest to them."""
    arrays = dict(np.load(PICTURES)) if PICTURES.exists() else {}
    arrays |= {f"drawn_{n}": drawn[:, 0].numpy(), f"nearest_{n}": index.numpy()}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_atomically(PICTURES, lambda file: file.write_bytes(content.getvalue()))


def stored() -> dict:
    """Return the results that are there."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}


def run(numbers: list[int]) -> None:
    """Train on each of these numbers of garments and measure, unless it is measured already."""
    judge = load_judge(split="test")
    for n in numbers:
        if str(n) in stored()["rows"]:
            continue
        train_on(n)
        state = read_checkpoint(folder_of(n) / "checkpoint.pt", card_of(n))
        if state["step"] < RECIPE["steps"]:  # it was stopped
            return
        row = measure(n, state, judge)
        results = stored()  # another process may have added a row
        rows = results["rows"] | {str(n): row}
        results |= {"about": about(), "steps": DRAWN_STEPS, "recipe": RECIPE, **compared("test", N)}
        results["weights"] = sum(x.numel() for x in state["model"].values())
        results["floor"] = mean_and_spread(judge.floor(N, seeds_for("test")))
        results["rows"] = {key: rows[key] for key in sorted(rows, key=int)}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{n} garments, copies: {row['last']['copies']}", flush=True)


def cell(value: tuple[float, float] | None) -> str:
    """Return mean ± spread, or a dash where there is none."""
    return f"{value[0]:.3g} ± {round(value[1], 9):.2g}" if value else "-"


def table() -> str:
    """Return the results as a table: for each number of garments the last weights, and those that `train` keeps."""
    results = stored()
    measures = ("copies", "copying", "fd", "label_free_fd", "precision", "recall")
    heads = ("garments", "weights of step", "own loss", "held-out loss", "copies by chance", *measures)
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for n, row in results["rows"].items():
        kept = min(row["history"], key=lambda point: point["held_out"])
        for name, point in (("last", row["history"][-1]), ("kept", kept)):
            known = f"{int(n):,}", f"{point['step']:,}, {name}", f"{point['own']:.4f}", f"{point['held_out']:.4f}"
            cells = (*known, f"{row['by_chance']:.4f}", *(cell(row[name][measure]) for measure in measures))
            lines.append(f"| {' | '.join(cells)} |")
    floor = ("real garments", "", "", "", "", *(cell(results["floor"].get(measure)) for measure in measures))
    return "\n".join([*lines, f"| {' | '.join(floor)} |"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case ["run", *numbers] if set(numbers) <= {*map(str, NUMBERS)}:
            run([int(n) for n in numbers] or list(NUMBERS))
        case ["table"]:
            print(table())
        case _:
            print(__doc__)
