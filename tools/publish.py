"""Publish the weights of a training: copy them to data/weights, with a card that holds their measures.

Denoisers are published in half precision, so that a copy of the repository stays small. The others keep single
precision: all numbers depend on the judges, and all denoisers of its latents on an autoencoder.

If they replace other weights, the new card keeps the measures of those under "earlier". It also keeps "choices", which
were measured in separate trainings.

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
    """Write data/weights/NAME.safetensors and its card; `command` is the command that trained the network."""
    card = read_card(folder)
    data = card.get("data", "unnamed dataset")
    if not str(data).startswith("Fashion-MNIST"):
        raise SystemExit(f"{folder} was trained on the {data}; set FMDIFF_DATA and train again")
    card |= {"command": command, "version": version("fmdiff-helpers"), "torch": torch.__version__.split("+")[0]}
    card["measures"] = json.loads(Path(measures).read_text(encoding="utf-8")) | {"network": name}  # not its folder
    path = PUBLISHED / f"{name}.safetensors"
    if path.with_suffix(".json").exists():
        before = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        kept = {key: before[key] for key in ("arguments", "recipe", "device", "seconds", "measures") if key in before}
        card["earlier"] = [*before.get("earlier", []), kept]
        card |= {"choices": before["choices"]} if "choices" in before else {}
    model = load_pretrained(folder)
    save_weights(path, model.half() if card["kind"] == "denoiser" else model, card)
    return path


if __name__ == "__main__":
    if len(sys.argv) != 5:
        raise SystemExit(__doc__)
    path = publish(*sys.argv[1:])
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
