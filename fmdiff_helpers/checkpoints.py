"""Weights as safetensors, each beside its card: published in `data/weights`, or written by a training.

Nothing is ever unpickled here.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from fmdiff_helpers.cards import WeightsError, build, find_weights, read_card, to_json


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, then rename it: readers see the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save_weights(path: Path, model: nn.Module, card: dict) -> None:
    """Write the weights to `path`, a .safetensors file, and the card with their sha256 to a .json file beside it.

    The card names an autoencoder by its path relative to this folder, so that both can be moved together.
    """
    content = save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    text = to_json(card | {"sha256": hashlib.sha256(content).hexdigest()}, path.parent)
    write_atomically(path, lambda file: file.write_bytes(content))
    write_atomically(path.with_suffix(".json"), lambda file: file.write_text(text, encoding="utf-8"))


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
    with torch.random.fork_rng(devices=[]):  # building draws random weights; the caller's random numbers stay
        model = build(card)
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]  # PyTorch names every tensor
        raise WeightsError(f"{path} does not fit {card['network']}({card['arguments']}): {reason}") from None
    return model.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)
