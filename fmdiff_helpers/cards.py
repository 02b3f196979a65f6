"""Cards: what a network is, how it was trained and what it measured, as JSON beside its weights.

A card is a dict. These keys are always there, and no other module asks which keys a card has:

    kind           "denoiser", "autoencoder" or "classifier"
    network        its class, as MODULE.CLASS of fmdiff_helpers.models
    arguments      what the class is built with
    process        how it learns and draws: "name" is MODULE.CLASS of fmdiff_helpers.processes, the rest its arguments
    label_dropout  share of the labels that training hides, so that the network learns to do without: 0 for none
    autoencoder    of a denoiser of latents: {"name": ..., "sha256": ...}; else None
    recipe         the steps, and values of `run.DEFAULTS`: only those that differ until `train` fills in the rest
"""

import hashlib
import inspect
import json
import os
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

KEYS = ("kind", "network", "arguments", "process", "label_dropout", "autoencoder", "recipe")
PUBLISHED = Path(__file__).parents[1] / "data" / "weights"


class WeightsError(Exception):
    """Say which weights are missing, damaged or of another shape, and what to do."""


def find_class(package: str, name: str) -> type:
    """Return the class that a card names as MODULE.CLASS of a package of ours; WeightsError where there is none."""
    module, _, attribute = name.partition(".")
    place = f"fmdiff_helpers.{package}.{module}"
    try:
        found = getattr(import_module(place), attribute, None)
    except ImportError:
        found = None
    # Only a class that this file defines: a card is data, and must not reach what the file imports.
    if not isinstance(found, type) or found.__module__ != place:
        raise WeightsError(f"the card names {name!r}; expected MODULE.CLASS of fmdiff_helpers.{package}")
    return found


def build(card: dict) -> nn.Module:
    """Build the network that a card names, untrained: {"network": "unet.UNet", "arguments": {"width": 32}}."""
    network = find_class("models", card["network"])
    try:
        return network(**card["arguments"])
    except TypeError as error:
        raise WeightsError(f"{card['network']} cannot be built: {error}") from None


def build_process(card: dict, device: torch.device | str = "cpu"):
    """Build the process that a card names, with its tables on `device`: how the network learns and draws."""
    process = find_class("processes", card["process"]["name"])
    try:
        return process.from_card(card, device)
    except (AttributeError, KeyError, TypeError) as error:
        raise WeightsError(f"{card['process']} cannot be built: {error}") from None


def takes_labels(card: dict) -> bool:
    """Tell whether a card's network is a denoiser that takes labels, by its `arguments` or by default."""
    parameter = inspect.signature(find_class("models", card["network"])).parameters.get("num_classes")
    has_classes = parameter is not None and card["arguments"].get("num_classes", parameter.default) > 0
    return card["kind"] == "denoiser" and has_classes


def latent_shape(card: dict) -> tuple[int, ...]:
    """Return the shape of one latent of a card's autoencoder."""
    with torch.device("meta"):  # built for its shape alone: no weights, no random numbers
        return build(card).latent_shape


def class_name(card: dict) -> str:
    """Return the name of the network's class, for messages: "UNet"."""
    return card["network"].partition(".")[2]


def upgrade(card: dict) -> dict:
    """Return a card in the form above; cards of version 0.1 had no kind, and were told apart by their keys."""
    if "kind" in card:
        return card
    old: dict[str, Any] = {"schedule": None, "target": "eps", "beta": None}
    old |= {"label_dropout": 0.0, "autoencoder": None} | card
    schedule, target, kl_weight = (old.pop(key) for key in ("schedule", "target", "beta"))
    if schedule:
        kind, process = "denoiser", {"name": "diffusion.Diffusion", **schedule, "target": target}
    elif kl_weight is not None:
        kind, process = "autoencoder", {"name": "autoencoding.VariationalPrior", "kl_weight": kl_weight}
    elif card["network"] == "attention_autoencoder.AttentionAutoencoder":
        kind, process = "autoencoder", {"name": "autoencoding.Reconstruction"}
    else:
        kind, process = "classifier", {"name": "classification.Classification"}
    old["recipe"] = {{"clip": "max_grad_norm"}.get(key, key): value for key, value in old.get("recipe", {}).items()}
    new = old | {"kind": kind, "process": process}
    return {key: new.pop(key) for key in KEYS} | new


def with_relative_path(card: dict, folder: Path) -> dict:
    """Return a card that names its autoencoder, if that is a folder, by its path relative to `folder`: "./../vae"."""
    place = Path(card["autoencoder"]["name"]) if card["autoencoder"] else Path()
    if not place.is_absolute():
        return card
    try:
        relative = Path(os.path.relpath(place.resolve(), folder.resolve())).as_posix()
    except ValueError:  # on Windows no relative path leads from one drive to another
        return card
    return card | {"autoencoder": card["autoencoder"] | {"name": f"./{relative}"}}


def with_absolute_path(card: dict, folder: Path) -> dict:
    """Return a card, read from `folder`, that names its autoencoder by its absolute path: undo `with_relative_path`."""
    name = card["autoencoder"]["name"] if card["autoencoder"] else ""
    if not name.startswith("./"):  # a published network; or, in old cards, a path as it was typed
        return card
    return card | {"autoencoder": card["autoencoder"] | {"name": str((folder / name).resolve())}}


def to_json(card: dict, folder: Path) -> str:
    """Return the text of a card for a file in `folder`, with the autoencoder's path relative to that."""
    return json.dumps(with_relative_path(card, folder), indent=1) + "\n"


def is_place(name: str | Path) -> bool:
    """Tell whether a name means a place on the disk, because it is a Path or has a slash in it."""
    return isinstance(name, Path) or "/" in name or os.sep in name


def weights_at(place: Path) -> Path:
    """Return the path of the weights at a place: a .safetensors file itself, or that in a folder of a training."""
    return place if place.suffix == ".safetensors" else place / "weights.safetensors"


def find_weights(name: str | Path) -> Path:
    """Return the .safetensors file of a published network, or of a folder that a training wrote.

    A Path, or a text with a slash such as "./unet", means a folder or a .safetensors file. Any other text means the
    published network of this name or, if there is none, a folder. WeightsError if there is neither, or both.
    """
    published, own = PUBLISHED / f"{name}.safetensors", weights_at(Path(name))
    if is_place(name) or not published.is_file():
        if not own.is_file():
            raise WeightsError(missing_weights(name))
        return own
    if own.is_file():
        raise WeightsError(
            f"{name!r} is the name of a published network and of a folder here; say ./{name} for the folder, or "
            f"{published} for the published network"
        )
    return published


def missing_weights(name: str | Path) -> str:
    """Return a message: there are no weights of this name, and what to do."""
    if (Path(name) / "checkpoint.pt").is_file():
        return (
            f"the training in {str(name)!r} has no weights yet, or lost them; run its `fmdiff train` again, which goes "
            "on from its checkpoint"
        )
    if not PUBLISHED.is_dir():
        return (
            f"there are no weights {str(name)!r}: the installed package does not hold the published networks; work in "
            "a copy of the repository, which has them in data/weights, or name a folder of `fmdiff train`"
        )
    known = ", ".join(sorted(file.stem for file in PUBLISHED.glob("*.safetensors"))) or "none yet"
    return f"there are no weights {str(name)!r}; published are: {known}; or name a folder of `fmdiff train`"


def name_of(weights: Path) -> str:
    """Return what a card calls a .safetensors file: the name of a published network, or an absolute path."""
    folder = weights.parent if weights.name == "weights.safetensors" else weights
    return weights.stem if weights.parent == PUBLISHED else str(folder.resolve())


def published_first(name: str) -> str | Path:
    """Return what a card or recipe means by a name: the published network, whatever folders are here, or a folder."""
    published = PUBLISHED / f"{name}.safetensors"
    return published if not is_place(name) and published.is_file() else name


def next_card(weights: Path) -> Path:
    """Return where a writer puts a new card before it exchanges first the weights and then the card."""
    return weights.with_name(f".{weights.stem}.next.json")


def parse_card(path: Path) -> dict:
    """Return the card in a file, in today's form; WeightsError if it is missing or damaged."""
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        missing = {"network", "arguments", "sha256", *(KEYS if "kind" in card else ())} - set(card)
        is_whole = isinstance(card, dict) and not missing
        found = with_absolute_path(upgrade(card), path.parent) if is_whole else card
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise WeightsError(f"{path} is missing or damaged ({error}); get the file again, or train anew") from None
    if not is_whole:
        raise WeightsError(f"{path} is no card: it lacks {', '.join(sorted(missing))}; get it again, or train anew")
    return found


def read_card(name: str | Path) -> dict:
    """Return the card of a published network, or of a folder that a training wrote; WeightsError if there is none.

    If its autoencoder is a folder, the card names its absolute path.
    """
    weights = find_weights(name)
    if next_card(weights).is_file():  # a writer is at work, or was killed: it may have exchanged the weights already
        with suppress(WeightsError):  # it has just ended
            card = parse_card(next_card(weights))
            if card["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest():
                return card
    return parse_card(weights.with_suffix(".json"))
