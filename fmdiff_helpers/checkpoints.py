"""Weights with their story: safetensors beside a JSON card, published in `data/weights` or written by a training.

The card says how to build the network, how it was trained and what it measured. Nothing is ever unpickled here.
"""

import hashlib
import inspect
import json
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

PUBLISHED = Path(__file__).parents[1] / "data" / "weights"


class WeightsError(Exception):
    """Say which weights are missing, damaged or of another shape, and what to do."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, then put it in place: readers see the old file or the new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def network_of(card: dict) -> type[nn.Module]:
    """Return the class that a card names, {"network": "unet.UNet"}; WeightsError where we have no such network."""
    module, _, name = card["network"].partition(".")
    try:
        network = getattr(import_module(f"fmdiff_helpers.models.{module}"), name, None)
    except ImportError:
        network = None
    # Only what that file itself defines: a card is data, and must not reach anything else that a module can see.
    ours = isinstance(network, type) and issubclass(network, nn.Module) and network.__module__.endswith(f".{module}")
    if not ours:
        raise WeightsError(f"network is {card['network']!r}; expected MODULE.CLASS of fmdiff_helpers.models")
    return network


def takes_labels(card: dict) -> bool:
    """Tell whether a card's network is a denoiser that takes labels, by itself or because its `arguments` say so."""
    usual = inspect.signature(network_of(card)).parameters.get("num_classes")
    return "schedule" in card and usual is not None and card["arguments"].get("num_classes", usual.default) > 0


def build(card: dict) -> nn.Module:
    """Build the network that a card names, untrained: {"network": "unet.UNet", "arguments": {"width": 32}}."""
    network = network_of(card)
    try:
        return network(**card["arguments"])
    except TypeError as error:
        raise WeightsError(f"{card['network']} cannot be built: {error}") from None


def point_from(folder: Path, card: dict) -> dict:
    """Return a card whose autoencoder, if it is a folder, is named by the way to it from `folder`, as "./../vae"."""
    place = Path(card["autoencoder"]["name"]) if isinstance(card.get("autoencoder"), dict) else Path()
    if not place.is_absolute():
        return card
    try:
        way = Path(os.path.relpath(place.resolve(), folder.resolve())).as_posix()
    except ValueError:  # on Windows: there is none from one drive to another
        return card
    return card | {"autoencoder": card["autoencoder"] | {"name": f"./{way}"}}


def point_to(folder: Path, card: dict) -> dict:
    """Return a card read in `folder` whose autoencoder is named by its absolute path: undo `point_from`."""
    name = card["autoencoder"]["name"] if isinstance(card.get("autoencoder"), dict) else ""
    if not name.startswith("./"):  # published; or, in cards of before, as it was typed
        return card
    return card | {"autoencoder": card["autoencoder"] | {"name": str((folder / name).resolve())}}


def save_weights(path: Path, model: nn.Module, card: dict) -> None:
    """Write the weights to `path`, a .safetensors file, and the card with their sha256 to a .json file beside it.

    There the autoencoder of a card is named by the way from this folder to it: both can be moved together.
    """
    card = point_from(path.parent, card)
    content = save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    card = json.dumps(card | {"sha256": hashlib.sha256(content).hexdigest()}, indent=1) + "\n"
    write_atomically(path, lambda file: file.write_bytes(content))
    write_atomically(path.with_suffix(".json"), lambda file: file.write_text(card, encoding="utf-8"))


def find_weights(name: str | Path) -> Path:
    """Return the .safetensors file of a published network, or of a folder that a training wrote, first for a Path."""
    published, own = PUBLISHED / f"{name}.safetensors", Path(name) / "weights.safetensors"
    for path in (own, published) if isinstance(name, Path) else (published, own):
        if path.is_file():
            return path
    if not PUBLISHED.is_dir():
        raise WeightsError(
            f"there are no weights {str(name)!r}: the published networks are no part of the installed package; work in "
            "a copy of the repository, which has them in data/weights, or name a folder of `fmdiff train`"
        )
    known = ", ".join(sorted(file.stem for file in PUBLISHED.glob("*.safetensors"))) or "none yet"
    raise WeightsError(
        f"there are no weights {str(name)!r}; published are: {known}; or name a folder of `fmdiff train`"
    )


def read_card(name: str | Path) -> dict:
    """Return the card of a published network, or of a folder that a training wrote; WeightsError if there is none.

    Where its autoencoder is a folder, it is named by its absolute path.
    """
    path = find_weights(name).with_suffix(".json")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        missing = {"network", "arguments", "sha256"} - set(card)
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{path} is missing or damaged ({error}); get the file again, or train anew") from None
    if missing or not isinstance(card, dict):
        raise WeightsError(f"{path} is no card: it lacks {', '.join(sorted(missing))}; get it again, or train anew")
    return point_to(path.parent, card)


def load_pretrained(name: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """Return a network with its trained weights, in eval mode, on `device`.

    `name` is a published network such as "unet", or a folder that a training wrote. WeightsError where the file is
    not the one of the card (sha256) or its tensors do not fit the network.
    """
    path, card = find_weights(name), read_card(name)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != card["sha256"]:
        raise WeightsError(
            f"{path} is not the file of its card: expected sha256 {card['sha256']}, found {found}; "
            "get both again (`git restore data/weights`, or train anew)"
        )
    with torch.random.fork_rng(devices=[]):  # a network starts from random weights: here nobody will see them
        model = build(card)
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]  # PyTorch names every tensor
        raise WeightsError(f"{path} does not fit {card['network']}({card['arguments']}): {reason}") from None
    return model.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)
