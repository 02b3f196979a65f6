"""Drive a headless Chromium, and in it a real JupyterLab: shared by the browser tests and by benchmarks/players.py."""

import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Locator, Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},  # else cells out of sight are not in the page
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}
KERNEL_IDLE = """() => {
  const panel = window.jupyterapp && window.jupyterapp.shell.currentWidget;
  const session = panel && panel.sessionContext && panel.sessionContext.session;
  return session && session.kernel && session.kernel.status === "idle";
}"""
CHANGE_PARAMETERS = """lines => {
  const cells = window.jupyterapp.shell.currentWidget.content.widgets.map(widget => widget.model);
  const cell = cells.find(model => (model.getMetadata("tags") || []).includes("parameters")).sharedModel;
  cell.setSource(cell.getSource() + lines);
}"""
EMPTY_CELLS = """kept => {
  const cells = window.jupyterapp.shell.currentWidget.content.widgets.map(widget => widget.model);
  cells.filter(model => model.type === "code" && !kept.includes(model.id)).forEach(
    model => model.sharedModel.setSource(""));
}"""
# Notes when a key is pressed, and when the frame after the next change of a picture below `root` has been painted.
RECORDER = """root => {
  const times = window.fmdiffTimes = {key: 0, painted: 0};
  addEventListener("keydown", () => { times.key = performance.now(); times.painted = 0; }, {capture: true});
  new MutationObserver(() => requestAnimationFrame(() => requestAnimationFrame(() => {
    times.painted = times.painted || performance.now();
  }))).observe(root, {subtree: true, attributes: true, attributeFilter: ["src"]});
}"""


@contextlib.contextmanager
def chromium(width: int = 1280, height: int = 1400):
    """A page of a new headless Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser.new_page(viewport={"width": width, "height": height})
        browser.close()


@contextlib.contextmanager
def visitor(address: str, **size):
    """A page of a browser that reaches this server only; at the end no other host was asked, no script complained."""
    with chromium(**size) as page:
        page.set_default_timeout(300_000)
        complaints = []

        def answer(route):
            if urlsplit(route.request.url).netloc == urlsplit(address).netloc:
                return route.continue_()
            complaints.append(route.request.url)
            return route.abort()

        page.route(lambda url: not url.startswith("data:"), answer)
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("response", lambda got: complaints.append(f"{got.status} {got.url}") if got.status >= 400 else None)
        yield page
        assert not complaints, complaints


def free_port() -> int:
    """A port of this machine where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def jupyterlab(lesson: str):
    """The address that `fmdiff lab LESSON` prints, of a JupyterLab that knows nothing of this user's own."""
    with tempfile.TemporaryDirectory() as folder:
        home, port = Path(folder), free_port()
        for plugin, value in SETTINGS.items():
            file = home / "settings" / f"{plugin}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(value))
        (home / "config").mkdir()
        (home / "config" / "jupyter_lab_config.py").write_text("c.LabApp.expose_app_in_browser = True\n")
        own = {f"JUPYTER_{kind.upper()}_DIR": str(home / kind) for kind in ("config", "runtime", "data")}
        own |= {f"JUPYTERLAB_{kind.upper()}_DIR": str(home / kind) for kind in ("settings", "workspaces")}
        own |= {"IPYTHONDIR": str(home / "ipython"), "BROWSER": "true"}  # `true` opens nothing
        command = [Path(sys.executable).with_name("fmdiff"), "lab", lesson, f"--port={port}"]
        with (home / "log").open("w") as log:
            server = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield wait_for_address(server, home / "log")
        finally:
            server.terminate()  # it shuts its kernels down
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


def wait_for_address(server: subprocess.Popen, log: Path) -> str:
    """The address with its token, once the server has printed it."""
    for _ in range(600):
        if found := re.search(r"http://127\.0\.0\.1:\d+/lab/tree/\S+token=\w+", log.read_text(encoding="utf-8")):
            return found[0]
        if server.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text(encoding='utf-8')[-3000:]}")


def open_lesson(page: Page, address: str) -> None:
    """Open a lesson and wait until its cells are there and its kernel is idle."""
    page.goto(f"{address}&reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    page.wait_for_function(KERNEL_IDLE, timeout=60_000)


def change_parameters(page: Page, values: dict) -> None:
    """Give parameters of the lesson other values, as a learner does, by lines at the end of their cell."""
    page.evaluate(CHANGE_PARAMETERS, "".join(f"\n{name} = {value!r}" for name, value in values.items()))


def empty_cells(page: Page, kept: list[str]) -> None:
    """Empty all code cells of the open lesson but those with the ids `kept`; JupyterLab does not run empty ones."""
    page.evaluate(EMPTY_CELLS, kept)


def run_all(page: Page) -> None:
    """Run all cells and wait until the last one has finished and its output is in the page."""
    page.set_default_timeout(600_000)
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(KERNEL_IDLE)
    page.wait_for_timeout(1000)
    page.set_default_timeout(20_000)


def press_keys(page: Page, root: Locator, handle: Locator, presses: int) -> list[float]:
    """Press ArrowRight on a slider's handle; return, for each press, the milliseconds to the painted frame."""
    root.evaluate(RECORDER)
    handle.focus()
    latencies = []
    for _ in range(presses):
        page.keyboard.press("ArrowRight")
        page.wait_for_function("() => window.fmdiffTimes.painted > 0", polling=5)
        latencies.append(page.evaluate("() => window.fmdiffTimes.painted - window.fmdiffTimes.key"))
        page.wait_for_timeout(60)
    return latencies


def drag(page: Page, handle: Locator, track: Locator, share: float) -> None:
    """Drag a slider's handle to a share of its track."""
    box = track.bounding_box()
    if handle.evaluate("e => e.tagName") == "INPUT":  # the thumb of a native slider stands at its value
        at = handle.evaluate("e => (e.value - e.min) / (e.max - e.min)")
        x, y = box["x"] + 8 + at * (box["width"] - 16), box["y"] + box["height"] / 2
    else:
        grip = handle.bounding_box()
        x, y = grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2
    goal = box["x"] + share * box["width"]
    page.mouse.move(x, y)
    page.mouse.down()
    for k in range(1, 31):
        page.mouse.move(x + (goal - x) * k / 30, y)
        page.wait_for_timeout(16)
    page.mouse.up()
    page.wait_for_timeout(500)


def summary(latencies: list[float]) -> dict:
    """Median and largest latency, in milliseconds."""
    return {
        "median_ms": round(statistics.median(latencies), 1),
        "max_ms": round(max(latencies), 1),
        "n": len(latencies),
    }
