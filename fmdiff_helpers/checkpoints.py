"""Weights as safetensors, each beside its card: published in `data/weights`, or written by a training.

Nothing is ever unpickled here.
"""

import glob
import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from fmdiff_helpers.cards import WeightsError, build, find_weights, next_card, read_card, to_json


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, then rename it: readers see the old file or the new one, never a part.

    OSError, which names the file, where it cannot be written: then the old one stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
            with suppress(FileNotFoundError):  # another writer has just finished it
                if time.time() - left.stat().st_mtime > 3600:  # its writer was killed
                    left.unlink()
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{path} cannot be written ({reason}); what was there before is unchanged") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def to_files(path: Path, state: dict[str, Tensor], card: dict) -> tuple[bytes, str]:
    """Return the content of a .safetensors file at `path` with these weights, and the text of its card.

    The card has the sha256 of the weights, and names an autoencoder by its path relative to this folder, so that both
    can be moved together.
    """
    content = save({name: tensor.contiguous() for name, tensor in state.items()})
    return content, to_json(card | {"sha256": hashlib.sha256(content).hexdigest()}, path.parent)


def holds(path: Path, state: dict[str, Tensor], card: dict) -> bool:
    """Tell whether a .safetensors file and the card beside it are exactly what `save_state` would write."""
    with suppress(OSError, ValueError):
        found = path.read_bytes(), path.with_suffix(".json").read_text(encoding="utf-8")
        return found == to_files(path, state, card) and not next_card(path).exists()
    return False


def save_state(path: Path, state: dict[str, Tensor], card: dict) -> None:
    """Write weights to `path`, a .safetensors file, and their card to a .json file beside it.

    Readers find the old pair or the new one, also where this is killed half-way.
    """
    content, text = to_files(path, state, card)
    write_atomically(next_card(path), lambda file: file.write_text(text, encoding="utf-8"))
    write_atomically(path, lambda file: file.write_bytes(content))
    os.replace(next_card(path), path.with_suffix(".json"))


def save_weights(path: Path, model: nn.Module, card: dict) -> None:
    """Write the weights of a network and its card, as `save_state` does."""
    save_state(path, model.state_dict(), card)


def read_pair(name: str | Path) -> tuple[bytes, dict]:
    """Return the content of a weights file, and the card that belongs to it; WeightsError if none does."""
    for _ in range(20):  # for a second, because a writer may just exchange them
        path = find_weights(name)
        content, card = path.read_bytes(), read_card(name)
        found = hashlib.sha256(content).hexdigest()
        if found == card["sha256"]:
            return content, card
        time.sleep(0.05)
    raise WeightsError(
        f"{path} is not the file of its card: expected sha256 {card['sha256']}, found {found}; get both again "
        "(`git restore data/weights`, or run the same `fmdiff train` again)"
    )


def load_pretrained(name: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """Return a network with its trained weights, in eval mode, on `device`.

    `name` is a published network such as "unet", or a folder that a training wrote. WeightsError where the file is
    not the one of the card (sha256) or its tensors do not fit the network.
    """
    content, card = read_pair(name)
    with torch.random.fork_rng(devices=[]):  # building draws random weights; the caller's random numbers stay
        model = build(card)
    try:
        model.load_state_dict(load(content))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]  # PyTorch names every tensor
        where, what = find_weights(name), f"{card['network']}({card['arguments']})"
        raise WeightsError(f"{where} does not fit {what}: {reason}") from None
    return model.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)
