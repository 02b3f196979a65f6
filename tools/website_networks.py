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
# What the page offers: for each network its name there, what it is, what guidance does to it, and a weaker network
# that leads it away, if it was never trained without labels. The rest comes from its card.
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
}


class Denoiser(nn.Module):
    """A denoiser that takes steps and labels as int32, which browsers have: their int64 is another kind of number."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the prediction, shaped like x (B, ...); t and y are (B,)."""
        return self.network(x, t.long(), y.long())


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
    made_by = [read_card(name)["sha256"], *map(inspect.getsource, (Denoiser, Decoder, to_onnx, halve))]
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
    steps, labels = torch.zeros(2, 2, dtype=torch.int32)  # not one tensor for both: the export would take t for y
    return export(
        name, lambda: (Denoiser(load_pretrained(name)), {"x": torch.zeros(2, *shape), "t": steps, "y": labels})
    )


def network_files() -> tuple[dict[str, dict], dict[str, bytes]]:
    """Return the page's table of networks, and the files that it names.

    WeightsError for a network that the page's sampler cannot draw with.
    """
    table, files = {}, {}

    def part(name: str, content: bytes) -> dict:
        files[name] = content
        return {"path": f"networks/{name}.onnx", "bytes": len(content)}

    for name, words in NETWORKS.items():
        card = read_card(name)
        process, autoencoder = card["process"], autoencoder_of(card, "cpu")
        if process["name"] != "diffusion.Diffusion" or process["target"] != "v" or process["beta"] != "cosine_beta":
            raise WeightsError(f"the process of {name!r} is {process}; teach it to tools/website/draw-sampler.js first")
        if not words["guide"] and not card["label_dropout"]:
            raise WeightsError(f"{name!r} was never trained without labels; name a weaker network as its guide")
        shape = autoencoder.latent_shape if autoencoder else build_process(card).shape
        decoder = None
        if autoencoder:
            latents = {"z": torch.zeros(2, *shape)}
            decoded = card["autoencoder"]["name"]
            decoder = part(decoded, export(decoded, lambda module=autoencoder, z=latents: (Decoder(module), z)))
        table[name] = words | {
            "T": process["T"],
            "beta": process["beta"],
            "target": process["target"],
            "shape": list(shape),
            "network": part(name, denoiser(name, shape)),
            "decoder": decoder,
            "guide": part(words["guide"], denoiser(words["guide"], shape)) if words["guide"] else None,
        }
    return table, files


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(f"expected one argument, the folder to write; got {sys.argv[1:]}")
    for name, content in network_files()[1].items():
        Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
        (Path(sys.argv[1]) / f"{name}.onnx").write_bytes(content)
        print(f"{name}.onnx: {len(content) / 1e6:.2f} MB")
