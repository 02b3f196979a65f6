"""Publish the weights that a training wrote: copy them to data/weights, with a card that says what they measured.

What the weights that they replace had measured stays in the new card, under "earlier", and so do its "choices", which
were measured on trainings of their own.

fmdiff evaluate runs/unet --json > measures.json
python tools/publish.py runs/unet unet "fmdiff train unet" measures.json
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from fmdiff_helpers.cards import PUBLISHED, read_card
from fmdiff_helpers.checkpoints import load_pretrained, save_weights


def publish(folder: str, name: str, command: str, measures: str) -> Path:
    """Write data/weights/NAME.safetensors and its card; the command is the one that trained the network."""
    card = read_card(folder)
    if not card["data"].startswith("Fashion-MNIST"):
        raise SystemExit(f"{folder} was trained on the {card['data']}; set FMDIFF_DATA and train again")
    card |= {"command": command, "version": version("fmdiff-helpers"), "torch": torch.__version__.split("+")[0]}
    card["measures"] = json.loads(Path(measures).read_text(encoding="utf-8"))
    path = PUBLISHED / f"{name}.safetensors"
    if path.with_suffix(".json").exists():
        before = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        kept = {key: before[key] for key in ("arguments", "recipe", "device", "seconds", "measures") if key in before}
        card["earlier"] = [*before.get("earlier", []), kept]
        card |= {"choices": before["choices"]} if "choices" in before else {}
    save_weights(path, load_pretrained(folder), card)
    return path


if __name__ == "__main__":
    if len(sys.argv) != 5:
        raise SystemExit(__doc__)
    path = publish(*sys.argv[1:])
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
