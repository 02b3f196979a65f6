"""Measure the players: milliseconds from a key press to the painted frame, in JupyterLab in a headless Chromium.

uv run python benchmarks/players.py      writes benchmarks/players.json
"""

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from browser import chromium, jupyterlab, open_lesson, press_keys, run_all, summary  # noqa: E402

PRESSES = 60


def measure(page, root, handle) -> dict:
    """Press a key often, from the slider's first frame on; the first ten presses warm up."""
    handle.scroll_into_view_if_needed()
    handle.focus()
    page.keyboard.press("Home")
    page.wait_for_timeout(500)
    press_keys(page, root, handle, presses=10)
    return summary(press_keys(page, root, handle, presses=PRESSES))


def main() -> None:
    """Run lesson 01, measure its Filmstrip and its explorer, and write the result with machine and versions."""
    with jupyterlab("01") as address, chromium() as page:
        open_lesson(page, address)
        run_all(page)
        film = page.locator("figure.fmdiff-film").first
        film.evaluate(
            "f => f.addEventListener('keyup', () => { if (f.querySelector('input').value > 15) "
            "f.querySelector('input').value = 0; })"
        )  # a film is shorter than the measurement
        explorer = page.locator(".jp-OutputArea-output", has=page.locator(".noUi-handle")).first
        result = {
            "what": "key press to painted frame, lesson 01 in JupyterLab",
            "machine": f"{os.cpu_count()} x {platform.machine()}, {platform.system()}",
            "versions": {name: version(name) for name in ("jupyterlab", "ipywidgets", "torch")}
            | {"chromium, headless": page.context.browser.version},
            "filmstrip": measure(page, film, film.locator("input")),
            "explorer": measure(page, explorer, explorer.locator(".widget-hslider .noUi-handle").first),
        }
    (ROOT / "benchmarks" / "players.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
