"""What the benchmarks of a lesson's choices share: variants that are trained, and results in a published card."""

from pathlib import Path

import torch
from torch import nn

from fmdiff_helpers.arguments import seeds_for
from fmdiff_helpers.cards import PUBLISHED, build, read_card, to_json
from fmdiff_helpers.data import load_fashion_mnist
from fmdiff_helpers.recipes import training_parts
from fmdiff_helpers.train import train


def train_card(card: dict, folder: Path | str, model: nn.Module | None = None, **parts: object) -> nn.Module:
    """Train the network of a card on the processor, by default from the first weights of its seed, and return it.

    `parts` replace some of those that `training_parts` returns.
    """
    if model is None:
        torch.manual_seed(card["recipe"].get("seed", 0))
        model = build(card)
    usual = training_parts(card, *load_fashion_mnist("train"), torch.device("cpu"))
    train(model, *usual._replace(**parts), folder, card)
    return model


def compared(split: str, n: int) -> dict[str, object]:
    """Return a table's entries that say what its n images were compared with: "validation" chooses, "test" reports."""
    seeds = seeds_for(split)
    return {"n": n, "seeds": len(seeds), "first_seed": seeds[0], "split": split}


def publish(name: str, table: str, results: dict, **about: object) -> None:
    """Add results to a table of a published network's card."""
    card = read_card(name)
    card[table] = card.get(table, {}) | about | results
    (PUBLISHED / f"{name}.json").write_text(to_json(card, PUBLISHED))
    print(name, results, flush=True)
