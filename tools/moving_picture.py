"""Film a player of a lesson while its slider moves from end to end: the moving picture of the README.

uv run python tools/moving_picture.py LESSON NUMBER FILE.webp     such as 03 0 figures/player.webp

NUMBER counts the Filmstrips of the lesson, from 0. This needs a Chromium, as the browser test does.
"""

import io
import shutil
import sys
from pathlib import Path

from nbconvert import HTMLExporter
from PIL import Image
from playwright.sync_api import sync_playwright

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
MOVE = """(slider, value) => {
  slider.value = value;
  slider.dispatchEvent(new Event("input", {bubbles: true}));
}"""


def film(lesson: Path, number: int) -> list[Image.Image]:
    """Return a screenshot of each frame of one Filmstrip of an executed lesson."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("No Chromium was found: install one, for example by `apt-get install chromium`.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        page.set_content(HTMLExporter().from_filename(str(lesson))[0], wait_until="domcontentloaded")
        figure = page.locator("figure.fmdiff-film").nth(number)
        slider = figure.locator("input")
        shots = []
        for value in range(int(slider.get_attribute("max")) + 1):
            slider.evaluate(MOVE, value)
            shot = Image.open(io.BytesIO(figure.screenshot(animations="disabled"))).convert("RGB")
            shots.append(shot.quantize(48, dither=Image.Dither.NONE))  # few colours: a small file
        browser.close()
    return shots


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    name, number, target = sys.argv[1:]
    (lesson,) = NOTEBOOKS.glob(f"{name}_*.ipynb")
    first, *others = film(lesson, int(number))
    durations = [1000, *[200] * (len(others) - 1), 2500]  # milliseconds: the first and the last frame stay longer
    first.save(target, save_all=True, append_images=others, duration=durations, loop=0, lossless=True)
    print(f"{target}: {1 + len(others)} frames, {Path(target).stat().st_size / 1000:.0f} kB")
