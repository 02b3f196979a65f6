"""Export networks to ONNX, for the page on which they draw: `make site` does it.

python tools/website_networks.py FOLDER     writes one file for each part of each network

Needs the dependency group `site`. An export takes seconds, so it is kept beside the page's scripts until the weights,
the versions or the code of the export change.
"""

import hashlib
import inspect
import sys
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn
from website_html import ASSETS

from fmdiff_helpers.cards import WeightsError, build_process, read_card
from fmdiff_helpers.checkpoints import load_pretrained, write_atomically
from fmdiff_helpers.drawing import autoencoder_of

KEPT = ASSETS / "networks"
# What the page's sampler knows, by the name of the process in a network's card: numbers of steps to choose from, the
# first choice, controls that have no use, and what the others do.
PROCESSES = {
    "diffusion.Diffusion": {
        "stops": list(range(1, 51)),
        "start": 12,
        "unused": [],
        "hints": {
            "numSteps": "How often noise is removed. Few steps are quick and coarse.",
            "eta": "How the sampler DDIM walks: at 0 it only removes noise; at 1 it also adds as much as DDPM does.",
        },
    },
    "flow.Shortcut": {
        "stops": [1, 2, 4, 8],
        "start": 1,
        "unused": ["w", "eta"],
        "hints": {
            "numSteps": "How many jumps lead from noise to garment. Each is one call of the network.",
            "eta": "This network jumps, and adds no noise on the way.",
        },
    },
}
# What the page offers: for each network its name there, what it is, what guidance does to it, and a weaker network
# that leads it away, if it is guided but was never trained without labels. The rest comes from its card.
NETWORKS = {
    "patch_unet": {
        "title": "Patch U-Net",
        "about": "Works on the pixels themselves. It draws best, and costs most.",
        "guidance": "How much it listens to the kind: 0 not at all, 1 as trained. More makes each garment more "
        "typical, and all of a kind more alike.",
        "guide": None,
    },
    "latent_unet": {
        "title": "Latent U-Net",
        "about": "Works on 4 x 7 x 7 numbers, which a decoder turns into a picture: two to three times as fast.",
        "guidance": "How far it is led away from a weaker network, of the same shape but hardly trained: 0 draws as "
        "that one, 1 as itself.",
        "guide": "latent_unet_unit_1",
    },
    "shortcut_unet": {
        "title": "Shortcut U-Net",
        "about": "Works on the same numbers as the latent U-Net, and jumps: from noise to a garment in one step. Two "
        "steps draw better.",
        "guidance": "This network needs none: it learned from the latent U-Net with guidance {guidance:g}.",
        "guide": None,
    },
}


class Denoiser(nn.Module):
    """A denoiser that takes steps and labels as int32, which browsers have: their int64 is another kind of number."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the prediction, shaped like x (B, ...); t and y are (B,)."""
        return self.network(x, t.long(), y.long())


class Jumper(nn.Module):
    """A denoiser that is told between which steps it jumps, as real numbers, and takes labels as int32."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, y: Tensor, r: Tensor) -> Tensor:
        """Return the prediction, shaped like x (B, ...); the steps t and r, and the labels y, are (B,)."""
        return self.network(x, t, y.long(), r)


class Decoder(nn.Module):
    """The half of an autoencoder that draws."""

    def __init__(self, autoencoder: nn.Module):
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, z: Tensor) -> Tensor:
        """Return the images (B, 1, 28, 28) of standardised latents (B, ...)."""
        return self.autoencoder.from_latent(z)


def to_onnx(module: nn.Module, inputs: dict[str, Tensor]) -> bytes:
    """Return a network as an ONNX file, for batches of any size; its output is named "out"."""
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own insides
        exported = torch.export.export(
            module.eval(), tuple(inputs.values()), dynamic_shapes=[{0: batch} for _ in inputs]
        )
        program = torch.onnx.export(
            exported, dynamo=True, input_names=list(inputs), output_names=["out"], verbose=False
        )
    return halve(program.model_proto)


def halve(model) -> bytes:
    """Return an ONNX model as a file: weights that lose nothing by it in half precision, and no notes.

    Most published weights are stored in half precision. The runtime widens them once, when it loads the file. The
    exporter's notes say in which line of which file of this machine each operation stands.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph, casts = model.graph, []
    for weight in graph.initializer:
        values = numpy_helper.to_array(weight)
        half = values.astype("float16") if values.dtype == "float32" else values
        if values.size > 64 and half.dtype == "float16" and (half == values).all():
            casts.append(helper.make_node("Cast", [f"{weight.name}_half"], [weight.name], to=TensorProto.FLOAT))
            weight.CopyFrom(numpy_helper.from_array(half, f"{weight.name}_half"))
    nodes = [*casts, *graph.node]
    for part in [model, graph, *nodes, *graph.input, *graph.output]:
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return model.SerializeToString()


def export(name: str, build: Callable[[], tuple[nn.Module, dict[str, Tensor]]]) -> bytes:
    """Return a published network as an ONNX file; `build` returns what to export, and inputs for a batch of two."""
    made_by = [read_card(name)["sha256"], *map(inspect.getsource, (Denoiser, Jumper, Decoder, to_onnx, halve))]
    try:
        made_by += [metadata.version(package) for package in ("torch", "onnx", "onnxscript")]
    except metadata.PackageNotFoundError as error:
        raise SystemExit(f"{error.name} is missing: the page that draws needs `uv sync --all-groups`") from None
    key = hashlib.sha256("\n".join(made_by).encode()).hexdigest()[:12]
    file = KEPT / f"{name}-{key}.onnx"
    if not file.exists():
        KEPT.mkdir(exist_ok=True)
        for old in KEPT.glob(f"{name}-????????????.onnx"):
            old.unlink()
        content = to_onnx(*build())
        write_atomically(file, lambda part: part.write_bytes(content))
    return file.read_bytes()


def denoiser(name: str, shape: tuple[int, ...]) -> bytes:
    """Return a published denoiser of x (B, *shape) as an ONNX file."""
    # Not one tensor for two inputs: the export would take one for the other.
    whole, (t, r) = torch.zeros(2, 2, dtype=torch.int32), torch.zeros(2, 2)
    if read_card(name)["process"]["name"] == "flow.Shortcut":
        module, steps = Jumper, {"t": t, "y": whole[0], "r": r}
    else:
        module, steps = Denoiser, {"t": whole[0], "y": whole[1]}
    return export(name, lambda: (module(load_pretrained(name)), {"x": torch.zeros(2, *shape)} | steps))


def check_network(name: str, card: dict, guide: str | None) -> None:
    """Raise WeightsError for a network that the page's sampler cannot draw with."""
    process = card["process"]
    if process["name"] not in PROCESSES or process.get("target", "v") != "v" or process["beta"] != "cosine_beta":
        raise WeightsError(f"the process of {name!r} is {process}; teach it to tools/website/draw-sampler.js first")
    if "w" not in PROCESSES[process["name"]]["unused"] and not guide and not card["label_dropout"]:
        raise WeightsError(f"{name!r} was never trained without labels; name a weaker network as its guide")


def network_files() -> tuple[dict[str, dict], dict[str, bytes]]:
    """Return the page's table of networks, and the files that it names. Networks may share a decoder.

    WeightsError for a network that the page's sampler cannot draw with.
    """
    table, files = {}, {}

    def part(name: str, content: bytes) -> dict:
        files[name] = content
        return {"path": f"networks/{name}.onnx", "bytes": len(content)}

    for name, words in NETWORKS.items():
        card, guide = read_card(name), words["guide"]
        check_network(name, card, guide)
        process, autoencoder = card["process"], autoencoder_of(card, "cpu")
        shape = autoencoder.latent_shape if autoencoder else build_process(card).shape
        decoder = None
        if autoencoder:
            decoded, given = card["autoencoder"]["name"], (Decoder(autoencoder), {"z": torch.zeros(2, *shape)})
            decoder = part(decoded, export(decoded, lambda given=given: given))
        known = PROCESSES[process["name"]]
        table[name] = known | {
            "title": words["title"],
            "about": words["about"],
            "hints": known["hints"] | {"w": words["guidance"].format_map(process)},
            "process": process["name"],
            "T": process["T"],
            "beta": process["beta"],
            "target": process.get("target", "v"),
            "shape": list(shape),
            "network": part(name, denoiser(name, shape)),
            "decoder": decoder,
            "guide": part(guide, denoiser(guide, shape)) if guide else None,
        }
    return table, files


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(f"expected one argument, the folder to write; got {sys.argv[1:]}")
    for name, content in network_files()[1].items():
        Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
        (Path(sys.argv[1]) / f"{name}.onnx").write_bytes(content)
        print(f"{name}.onnx: {len(content) / 1e6:.2f} MB")
