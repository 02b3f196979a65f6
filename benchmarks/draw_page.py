"""Measure the page that draws in a headless Chromium on Linux, after `make site`: how soon, how fast, how large.

uv run python benchmarks/draw_page.py          writes benchmarks/draw_page.json
uv run python benchmarks/draw_page.py table    prints it as a table
"""

import functools
import gzip
import http.server
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from machine import about, command, middle

ROOT = Path(__file__).parents[1]
SITE = ROOT / "site"
RESULT = Path(__file__).with_suffix(".json")
ROUNDS = 3
# The network, its steps and guidance, and how many drawings make a round; what is given is the time of one.
DRAWINGS = {
    "patch_unet, w = 1": ("patch_unet", 20, 1, 1),
    "patch_unet, w = 2": ("patch_unet", 20, 2, 1),
    "latent_unet, w = 1": ("latent_unet", 20, 1, 1),
    "latent_unet, w = 2": ("latent_unet", 20, 2, 1),
    "shortcut_unet, 1 step": ("shortcut_unet", 1, None, 20),
}
PAGE = ("draw.html", "assets/*.css", "assets/page.js", "assets/draw*", "assets/networks/*")
LOAD = """async name => {
  const { loadDrawer } = await import("./assets/draw-networks.js");
  const { noiseFor } = await import("./assets/draw-sampler.js");
  const { networks, runtimes } = JSON.parse(document.getElementById("table").textContent);
  const drawer = await loadDrawer(networks[name], runtimes.wasm, "wasm"), y = [...Array(10).keys()];
  globalThis.drawTen = async (w, numSteps, times) => {
    for (; times > 0; times--) {
      await drawer.decode(await drawer.sample(noiseFor(1, y, drawer.size)(), { numSteps, y, w }));
    }
  };
  await drawTen(2, 10, 1);
}"""
# No picture is left that was not drawn yet.
FIRST = """() => document.querySelectorAll("canvas").length &&
  ![...document.querySelectorAll("canvas")].some(canvas => canvas.ariaLabel.endsWith("not drawn yet"))"""


def processor_seconds() -> float:
    """Return the processor time of all processes that this one has started and that still run."""
    times, children = {}, {}
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        children.setdefault(int(fields[1]), []).append(int(process))
        times[int(process)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    waiting, total = [os.getpid()], 0.0
    while waiting:
        found = children.get(waiting.pop(), [])
        total += sum(times[process] for process in found)
        waiting += found
    return total


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Return the processor seconds and the seconds that something takes in the browser."""
    before, start = processor_seconds(), time.monotonic()
    run()
    return processor_seconds() - before, time.monotonic() - start


def rounds(run: Callable[[], object], times: int) -> dict[str, dict]:
    """Return processor seconds and seconds of several rounds, divided by the number of times that one does it."""
    both = [timed(run) for _ in range(ROUNDS)]
    processor, seconds = (middle([each[k] / times for each in both]) for k in range(2))
    return {"processor_seconds": processor, "seconds": seconds}


def opening(address: str) -> dict[str, dict]:
    """Return the time from opening the page, in a browser that knows nothing of it, to the first pictures."""
    from browser import chromium

    both = []
    for _ in range(ROUNDS):
        with chromium() as page:
            page.set_default_timeout(120_000)
            both.append(timed(lambda page=page: (page.goto(f"{address}draw.html"), page.wait_for_function(FIRST))))
    return {"processor_seconds": middle([each[0] for each in both]), "seconds": middle([each[1] for each in both])}


def drawing(address: str) -> dict[str, dict]:
    """Return the time of a drawing of ten kinds, for each of `DRAWINGS`."""
    from browser import chromium

    result = {}
    for what, (name, steps, w, times) in DRAWINGS.items():
        with chromium() as page:
            page.set_default_timeout(120_000)
            page.goto(f"{address}draw.html")
            page.wait_for_selector("form[data-drawn]")
            page.evaluate(LOAD, name)
            run = functools.partial(page.evaluate, f"drawTen({json.dumps(w)}, {steps}, {times})")
            result[what] = rounds(run, times)
    return result


def sizes() -> dict[str, dict[str, int]]:
    """Return the bytes that a browser loads with all networks, by build of the runtime: as they are, and gzipped."""
    import website_draw

    result = {}
    for build, names in website_draw.RUNTIMES.items():
        files = [file for pattern in PAGE for file in SITE.glob(pattern)]
        files += [SITE / "assets/onnxruntime" / name for name in names]
        packed = sum(len(gzip.compress(file.read_bytes())) for file in files)
        result[build] = {"bytes": sum(file.stat().st_size for file in files), "gzipped": packed}
    return result


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A plain server for files that logs nothing."""

    def log_message(self, *args) -> None:
        """Say nothing."""


def measure() -> dict:
    """Serve the site and measure its page that draws."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools")]
    handler = functools.partial(Quiet, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        result = about() | {
            "what": f"ten kinds in 20 steps, or as said, decoded; median of {ROUNDS} rounds",
            "first pictures": opening(address),
            "drawing": drawing(address),
            "loaded": sizes(),
        }
        server.shutdown()
    return result


def table() -> str:
    """Return the result as a Markdown table."""
    result = json.loads(RESULT.read_text())
    rows = {"first pictures after opening": result["first pictures"]}
    rows |= result["drawing"]
    lines = ["| what | processor seconds | seconds |", "|---|---|---|"]
    for name, times in rows.items():
        spans = [times[kind] for kind in ("processor_seconds", "seconds")]
        lines.append(
            f"| {name} | " + " | ".join(f"{s['median']} ({s['lowest']} to {s['highest']})" for s in spans) + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    command(__file__, __doc__, measure, table)
