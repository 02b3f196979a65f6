"""Execute the lessons in a fresh kernel, bring their outputs into normal form and stamp them: `make notebooks`.

    python tools/notebooks.py [NOTEBOOK ...]     by default all lessons

Commit outputs only as this tool writes them: executed from top to bottom on the real dataset, without counts, timings
or widget state. The metadata holds a hash of the code, so that a test finds outputs of older code.
"""

import base64
import hashlib
import io
import re
import sys
from pathlib import Path

import nbformat
import torch
from nbclient import NotebookClient
from PIL import Image

from fmdiff_helpers.data import fetch_fashion_mnist

ROOT = Path(__file__).parents[1]
WIDGET = "application/vnd.jupyter.widget-view+json"
FIGURE = re.compile(r'^(<img alt="[^"]+" src="data:image/png;base64,)([^"]+)')  # as `alt_text.as_html` writes it


def tags(cell: dict) -> list[str]:
    """Return a cell's tags."""
    return cell.metadata.get("tags", [])


def code_hash(nb: nbformat.NotebookNode) -> str:
    """Return a hash of the code cells, without the setup cell, which does nothing here."""
    sources = [cell.source for cell in nb.cells if cell.cell_type == "code" and "setup" not in tags(cell)]
    return hashlib.sha256("\n\n".join(sources).encode()).hexdigest()[:16]


def shrink_png(picture: str) -> str:
    """Return a PNG (base64) with 256 greys or, if it has colours, 256 colours: a third of matplotlib's size."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    red, green, blue = image.split()
    grey = red.tobytes() == green.tobytes() == blue.tobytes()
    buffer = io.BytesIO()
    (red if grey else image.quantize(256)).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def normalise_output(output: dict) -> dict | None:
    """Remove what changes from run to run. Of a widget only its Filmstrip stays; without one, return None."""
    if output.output_type not in ("display_data", "execute_result"):
        return output
    widget = output.data.pop(WIDGET, None)
    if widget and "text/html" not in output.data:
        return None
    if "text/html" in output.data:
        output.data.pop("text/plain", None)  # an object's repr, with an address in it, or a text that is in the HTML
        output.data["text/html"] = FIGURE.sub(lambda found: found[1] + shrink_png(found[2]), output.data["text/html"])
    output.metadata = {}
    if output.output_type == "execute_result":
        output.execution_count = None
    return output


def normalise(nb: nbformat.NotebookNode) -> None:
    """Bring an executed notebook into normal form and stamp it."""
    for cell in nb.cells:
        cell.metadata = {key: cell.metadata[key] for key in ("tags", "nbmake") if key in cell.metadata}
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [kept for output in cell.outputs if (kept := normalise_output(output))]
    nb.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "fmdiff": {"code": code_hash(nb), "torch": torch.__version__.split("+")[0]},
    }


def save_cover(nb: nbformat.NotebookNode, path: Path) -> None:
    """Write the picture of the cell tagged `cover` to a PNG file for the README."""
    (cell,) = (cell for cell in nb.cells if "cover" in tags(cell))
    pages = (output.data.get("text/html", "") for output in cell.outputs if "data" in output)
    (figure,) = filter(None, map(FIGURE.match, pages))
    path.write_bytes(base64.b64decode(figure[2]))


def execute(path: Path) -> None:
    """Execute a notebook and write it back; if a cell fails, the file stays as it was."""
    nb = nbformat.read(path, as_version=4)
    NotebookClient(
        nb,
        timeout=600,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": path.parent}},
    ).execute()
    normalise(nb)
    nbformat.validate(nb)
    save_cover(nb, ROOT / "figures" / f"{path.stem}.png")
    nbformat.write(nb, path)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    if fetch_fashion_mnist() is None:
        raise SystemExit("Lessons must show the real dataset: set FMDIFF_DATA, or connect to the network.")
    for lesson in [Path(name) for name in sys.argv[1:]] or sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        execute(lesson.resolve())
