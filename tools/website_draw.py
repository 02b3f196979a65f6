"""The page on which networks draw: its controls, the table that its scripts read, and a recording for old browsers."""

import html
import json
from string import Template

import torch
from website_html import ASSETS, MODULES, Page
from website_networks import network_files

from fmdiff_helpers.data import CLASS_NAMES, to_uint8
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.filmstrip import Filmstrip
from fmdiff_helpers.tiling import tile

SCRIPTS = ("draw.js", "draw-worker.js", "draw-networks.js", "draw-sampler.js")
# Builds of onnxruntime-web: its script, the script's helper, and the WebAssembly that they start. A browser loads one.
# "jspi" also computes on a graphics card, and needs WebAssembly that can wait (JavaScript Promise Integration).
RUNTIMES = {
    "wasm": ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    "jspi": ("ort.jspi.min.mjs", "ort-wasm-simd-threaded.jspi.mjs", "ort-wasm-simd-threaded.jspi.wasm"),
}
RECORDED = {"name": "patch_unet", "num_steps": 10, "guidance": 2.0}


def recording() -> str:
    """Return a Filmstrip of a chain that this machine draws: the ten kinds, in two rows of five."""
    steps = []
    drawer = load_drawer(**RECORDED)
    drawer.draw(10, seed=1, y=drawer.all_kinds(10), watch=steps.append)
    titles = {"x_t": "the noisy picture x_t", "x0_hat": "what the network sees in it"}
    frames = {
        "x_t": [*(step.xt for step in steps), steps[-1].x_prev],
        "x0_hat": [*(step.x0_hat for step in steps), steps[-1].x_prev],
    }
    panels = {titles[k]: torch.stack([tile(to_uint8(x), 5, gap=1) for x in frames[k]]) for k in frames}
    readout = [f"t = {step.t:3d}" for step in steps] + ["sample "]
    return Filmstrip(panels, readout, height=174, start=len(steps) // 2)._repr_html_()


def choices(name: str, values: dict[str, str]) -> str:
    """Return radio buttons, values and the words beside them; the first one is chosen unless `name` is "kind"."""
    first = "" if name == "kind" else " checked"
    return "\n".join(
        f'<label><input type="radio" name="{name}" value="{value}"{"" if k else first}>'
        f"<span>{html.escape(words)}</span></label>"
        for k, (value, words) in enumerate(values.items())
    )


def runtimes(kept: dict[str, bytes]) -> dict[str, dict]:
    """Return the page's table of runtimes; their files join `kept`."""
    folder, table = MODULES / "onnxruntime-web/dist", {}
    for build, names in RUNTIMES.items():
        kept |= {f"assets/onnxruntime/{name}": (folder / name).read_bytes() for name in names}
        script, _, binary = (f"onnxruntime/{name}" for name in names)
        table[build] = {"script": script, "path": binary, "bytes": len(kept[f"assets/{binary}"])}
    return table


def draw_page(kept: dict[str, bytes]) -> Page:
    """Return the page; networks, runtimes and scripts join `kept`."""
    networks, files = network_files()
    kept |= {f"assets/networks/{name}.onnx": content for name, content in files.items()}
    kept |= {f"assets/{name}": (ASSETS / name).read_bytes() for name in SCRIPTS}
    table = {"kinds": list(CLASS_NAMES), "networks": networks, "runtimes": runtimes(kept)}
    body = Template((ASSETS / "draw.html").read_text(encoding="utf-8")).substitute(
        kinds=choices("kind", {str(k): name for k, name in enumerate(CLASS_NAMES)}),
        networks=choices("network", {name: words["title"] for name, words in networks.items()}),
        recording=recording(),
        table=json.dumps(table).replace("<", "\\u003c"),
    )
    return Page("draw.html", "Draw", body, [])
