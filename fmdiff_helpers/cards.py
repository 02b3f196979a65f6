"""Cards: what a network is, how it was trained and what it measured, as JSON beside its weights.

A card is a dict. These keys are always there, and no other module asks which keys a card has:

    kind           "denoiser", "autoencoder", "classifier" or "encoder"
    network        its class, as MODULE.CLASS of fmdiff_helpers.models
    arguments      what the class is built with
    process        how it learns and draws: "name" is MODULE.CLASS of fmdiff_helpers.processes, the rest its arguments
    label_dropout  share of the labels that training hides, so that the network learns to do without: 0 for none
    autoencoder    of a denoiser of latents: {"name": ..., "sha256": ...}; else None
    recipe         the steps, and values of `run.DEFAULTS`: only those that differ until `train` fills in the rest

Cards of trained networks also have "data": what they were trained on (see `entries`).

A card may come from anyone. It is checked before anything is built from it: its classes are ours and fit its kind, and
its numbers are of a size that this machine can hold.
"""

import hashlib
import inspect
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from reprlib import repr as shorten  # a value may be long or deeply nested
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from fmdiff_helpers.entries import (
    check_arguments,
    check_data,
    check_sha256,
    check_value,
    expect,
    number_of_kinds,
)

KEYS = ("kind", "network", "arguments", "process", "label_dropout", "autoencoder", "recipe")
PUBLISHED = Path(__file__).parents[1] / "data" / "weights"
MAX_NUMBERS = 100_000_000  # in the weights of one network, 400 MB


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
        raise WeightsError(f"the card names {shorten(name)}; expected MODULE.CLASS of fmdiff_helpers.{package}")
    return found


@contextmanager
def limited_size() -> Iterator[None]:
    """Raise ValueError while a network is built, as soon as it has more numbers than `MAX_NUMBERS`."""
    numbers = 0

    def count(module: nn.Module, name: str, weights: nn.Parameter | None) -> None:
        # A new tensor takes no memory until it is filled, which happens after this.
        nonlocal numbers
        numbers += 0 if weights is None else weights.numel()
        expect("the number of its weights", numbers, numbers <= MAX_NUMBERS, f"at most {MAX_NUMBERS:,}")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def build(card: dict) -> nn.Module:
    """Build the network that a card names, untrained: {"network": "unet.UNet", "arguments": {"width": 32}}.

    WeightsError for arguments that the class does not take, or that make too large a network.
    """
    network, arguments = find_class("models", card["network"]), card["arguments"]
    try:
        check_arguments(card["network"], network, arguments, number_of_kinds(card))
        with limited_size():
            return network(**arguments)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{card['network']} cannot be built ({reason}); correct its card") from None


def build_process(card: dict, device: torch.device | str = "cpu"):
    """Build the process that a card names, with its tables on `device`: how the network learns and draws.

    WeightsError for arguments that it does not take.
    """
    name, arguments = split_process(card)
    process = find_class("processes", name)
    try:
        check_arguments(name, process.from_card, arguments)
        return process.from_card(card, device, **arguments)
    except ValueError as error:
        raise WeightsError(f"{name} cannot be built ({error}); correct its card") from None


def split_process(card: dict) -> tuple[str, dict]:
    """Return the name of a card's process, and its arguments."""
    return card["process"]["name"], {key: value for key, value in card["process"].items() if key != "name"}


def check_card(card: dict) -> dict:
    """Return a card whose entries all have the right form, and whose classes fit its kind; ValueError for any other.

    WeightsError where it names a class that there is not.
    """
    types = {"network": str, "arguments": dict, "process": dict, "label_dropout": float, "recipe": dict}
    for key, kind in types.items():
        check_value(key, card[key], kind)
    name, arguments = split_process({"process": {"name": None} | card["process"]})
    check_value("the name of the process", name, str)
    network, process = find_class("models", card["network"]), find_class("processes", name)
    for what, found in ((card["network"], network), (name, process)):
        kind = getattr(found, "kind", "part of a network")
        expect("kind", card["kind"], card["kind"] == kind, f"{kind!r}, because {what} is one")
    check_data(card.get("data"))
    check_arguments(card["network"], network, card["arguments"], number_of_kinds(card))
    check_arguments(name, process.from_card, arguments)
    if T := card["arguments"].get("T"):
        expect("T of the network", T, T == arguments.get("T"), f"{arguments.get('T')}, as the process has")
    expect("label_dropout", card["label_dropout"], card["label_dropout"] <= 1, "a share from 0 to 1")
    for key, value in card["recipe"].items():
        expect(f"recipe: {shorten(key)}", value, type(value) in (int, float) and abs(value) < math.inf, "a number")
    check_sha256("sha256", card["sha256"])
    check_autoencoder(card)
    return card


def check_autoencoder(card: dict) -> None:
    """Raise ValueError unless a card's entry "autoencoder" is None, or names the one of a denoiser of latents."""
    entry = card["autoencoder"]
    if entry is None:
        return
    expect("autoencoder", entry, card["kind"] == "denoiser", f"null, because the kind is {card['kind']!r}")
    is_right = isinstance(entry, dict) and entry.keys() == {"name", "sha256"}
    expect("autoencoder", entry, is_right, 'null, or {"name": ..., "sha256": ...}')
    name = entry["name"]
    is_right = isinstance(name, str) and len(name) <= 1000 and all(len(part) <= 200 for part in name.split("/"))
    expect("autoencoder: name", name, is_right, "the name of a network or a folder")
    check_sha256("autoencoder: sha256", entry["sha256"])


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
    for key, value in (("schedule", schedule or {}), ("recipe", old.setdefault("recipe", {}))):
        check_value(key, value, dict)
    if schedule:
        kind, process = "denoiser", {"name": "diffusion.Diffusion", **schedule, "target": target}
    elif kl_weight is not None:
        kind, process = "autoencoder", {"name": "autoencoding.VariationalPrior", "kl_weight": kl_weight}
    elif card["network"] == "attention_autoencoder.AttentionAutoencoder":
        kind, process = "autoencoder", {"name": "autoencoding.Reconstruction"}
    else:
        kind, process = "classifier", {"name": "classification.Classification"}
    old["recipe"] = {{"clip": "max_grad_norm"}.get(key, key): value for key, value in old["recipe"].items()}
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
    is_file = place.suffix == ".safetensors" and not place.is_dir()
    return place if is_file else place / "weights.safetensors"


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
    if weights_at(Path("runs", name)).is_file():
        return f"there are no weights {str(name)!r}; do you mean {str(Path('runs', name))!r}?"
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
        found = with_absolute_path(check_card(upgrade(card)), path.parent) if is_whole else card
    except (OSError, ValueError, TypeError, RecursionError, WeightsError) as error:
        raise WeightsError(f"{path} is missing or damaged ({error}); get the file again, or train anew") from None
    if not is_whole:
        reason = f"it lacks {', '.join(sorted(missing))}" if missing else "it is a list"
        raise WeightsError(f"{path} is no card: {reason}; get it again, or train anew")
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
