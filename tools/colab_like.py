"""Run lessons as Colab does: in an environment with its versions, from the ZIP, with a stub of `google.colab`.

    uv run python tools/colab_like.py [NN ...]          all or these lessons, with the small parameters of the tests
    uv run python tools/colab_like.py --full [NN ...]   with the lessons' own parameters
    uv run python tools/colab_like.py --browser FOLDER  also move sliders of lesson 01 in the classic notebook, which
                                                        has Colab's widgets; screenshots go to the folder

The first use makes the environment in .colab/: Colab's versions of packages, with the current Python. Of the
repository, only the content of the ZIP can be imported there. FMDIFF_DATA names the dataset, as everywhere.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import archive
import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[1]
PLACE = ROOT / ".colab"
# Colab's versions in August 2026, except its Python 3.13. The classic notebook needs an old setuptools.
PINS = """torch==2.11.0 torchvision==0.26.0 numpy==2.1.3 matplotlib==3.10.0 ipywidgets==7.7.1 ipython==7.34.0
ipykernel==6.17.1 notebook==6.5.7 tornado==6.5 setuptools<80""".split()
OTHERS = ["accelerate", "einops", "pillow", "safetensors", "scikit-learn", "tqdm", "typer"]
# google/colab/files.py: when a lesson asks for an upload, it gets the ZIP.
STUB = """
import shutil

def upload():
    return {{shutil.copy({zip!r}, {content!r}): b""}}
"""
CLASSIC_IDLE = (
    "() => window.Jupyter && Jupyter.notebook && Jupyter.notebook.kernel && Jupyter.notebook.kernel.is_connected()"
)
CLASSIC_DONE = """() => [...document.querySelectorAll(".code_cell .input_prompt")].every(
  prompt => /[0-9]/.test(prompt.textContent))"""
SOURCES = "pictures => pictures.map(picture => picture.src)"


def python() -> Path:
    """Return the Python of the environment; make the environment first if it is missing or has other versions."""
    found, stamp = PLACE / "bin" / "python", PLACE / "pins.json"
    if not stamp.exists() or json.loads(stamp.read_text()) != [*PINS, *OTHERS]:
        subprocess.run(["uv", "venv", "--quiet", "--clear", "--python", sys.executable, PLACE], check=True)
        install = ["uv", "pip", "install", "--quiet", "--python", found, *PINS, *OTHERS]
        subprocess.run(install, check=True, cwd=PLACE)
        stamp.write_text(json.dumps([*PINS, *OTHERS]))
    return found


@contextlib.contextmanager
def colab() -> Iterator[tuple[Path, dict[str, str]]]:
    """Give a folder that replaces Colab's /content, and the environment variables of a process that runs there."""
    with tempfile.TemporaryDirectory() as folder:
        content, startup = Path(folder) / "content", Path(folder) / "ipython" / "profile_default" / "startup"
        content.mkdir()
        startup.mkdir(parents=True)
        archive.write(Path(folder) / "fmdiff.zip")
        package = Path(folder) / "stub" / "google" / "colab"
        package.mkdir(parents=True)
        (package / "files.py").write_text(STUB.format(zip=f"{folder}/fmdiff.zip", content=str(content)))
        (package / "__init__.py").write_text("from google.colab import files\n")
        (startup / "00.py").write_text("import google.colab\n")  # Colab imports it before the first cell
        kernel = Path(folder) / "jupyter" / "kernels" / "python3"
        kernel.mkdir(parents=True)
        command = [str(python()), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = {"argv": command, "display_name": "Colab", "language": "python"}
        (kernel / "kernel.json").write_text(json.dumps(spec))
        own = {f"JUPYTER_{kind}": str(Path(folder) / "jupyter") for kind in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")}
        own |= {"IPYTHONDIR": str(startup.parents[1]), "JUPYTER_PATH": str(Path(folder) / "jupyter")}
        own |= {"PYTHONPATH": f"{folder}/stub"}
        kept = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        yield content, kept | own | {"PATH": f"{python().parent}:{os.environ['PATH']}"}


def lesson(number: str, content: Path, full: bool = False) -> nbformat.NotebookNode:
    """Return a lesson as one would open it on Colab; unless `full`, with the small parameters of the tests."""
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    nb = nbformat.read(path, as_version=4)
    for cell in nb.cells:
        cell.source = cell.source.replace("/content", str(content))
        mock = {} if full else cell.metadata.get("nbmake", {}).get("mock", {})
        cell.source += "".join(f"\n{name} = {value!r}" for name, value in mock.items())
        if cell.cell_type == "code":
            cell.outputs = []
    return nb


def run(number: str, full: bool = False) -> float:
    """Run a lesson from top to bottom and return its seconds; CellExecutionError if a cell fails."""
    with colab() as (content, environment):
        specs = KernelSpecManager(kernel_dirs=[f"{environment['JUPYTER_PATH']}/kernels"], ensure_native_kernel=False)
        client = NotebookClient(
            lesson(number, content, full),
            km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs),
            timeout=1200,
            resources={"metadata": {"path": content}},
        )
        start = time.monotonic()
        client.execute(env=environment)
        return time.monotonic() - start


@contextlib.contextmanager
def classic_notebook() -> Iterator:
    """Give the page of lesson 01 in the classic notebook after Run All; AssertionError if a cell fails."""
    sys.path.insert(0, str(ROOT / "tests"))
    import browser

    with colab() as (content, environment), browser.chromium(1300, 1000) as page:
        nbformat.write(lesson("01", content), content / "lesson.ipynb")
        port = browser.free_port()
        command = [python(), "-m", "notebook", "--allow-root", "--no-browser", f"--port={port}", "--ip=127.0.0.1"]
        server = subprocess.Popen([*command, "--NotebookApp.token=colab"], cwd=content, env=environment)
        try:
            address = f"http://127.0.0.1:{port}/notebooks/lesson.ipynb?token=colab"
            while not open_page(page, address):
                assert server.poll() is None, "the classic notebook did not start"
                time.sleep(0.5)
            run_all(page)
            yield page
        finally:
            server.terminate()
            server.wait(30)


def run_all(page) -> None:
    """Run all cells and wait for the last one; AssertionError if one fails."""
    page.wait_for_selector(".cell", timeout=60_000)
    page.wait_for_function(CLASSIC_IDLE, timeout=60_000)
    page.wait_for_timeout(4000)  # widgets register with the kernel a little later, without any sign
    page.evaluate("() => Jupyter.notebook.execute_all_cells()")
    page.wait_for_function(CLASSIC_DONE, timeout=600_000)
    assert page.locator(".output_error").count() == 0, "a cell has failed"
    page.wait_for_timeout(1000)


def move_sliders(pictures: Path) -> None:
    """Move the slider of an explorer and of a Filmstrip in lesson 01; AssertionError if one does not work.

    Screenshots go into the folder `pictures`.
    """
    pictures.mkdir(parents=True, exist_ok=True)
    with classic_notebook() as page:
        explorer = page.locator(".widget-slider :is(.ui-slider-handle, .noUi-handle)").first
        check_moves(page, explorer, "ArrowRight", lambda: page.locator(".widget-image").evaluate_all(SOURCES))
        page.screenshot(path=pictures / "explorer.png")
        film = page.locator("figure.fmdiff-film").first
        check_moves(page, film.locator("input"), "ArrowLeft", lambda: film.locator("img").evaluate_all(SOURCES))
        page.screenshot(path=pictures / "filmstrip.png")


def open_page(page, address: str) -> bool:
    """Open an address; return whether a server answers."""
    try:
        return page.goto(address, timeout=10_000).ok
    except Exception:  # any error of the browser: no server yet
        return False


def check_moves(page, handle, key: str, pictures: Callable[[], list[str]]) -> None:
    """Press a key on a slider's handle; AssertionError if the pictures stay the same."""
    handle.scroll_into_view_if_needed()
    before = pictures()
    handle.focus()
    for _ in range(5):
        page.keyboard.press(key)
        page.wait_for_timeout(200)
    page.wait_for_timeout(800)
    assert before and pictures() != before, "the slider moves no picture"


def main() -> None:
    """Run the command line; exit with 1 if a lesson fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lessons", nargs="*", metavar="NN", help="numbers of lessons (default: all)")
    parser.add_argument("--full", action="store_true", help="use the lessons' own parameters, not small ones")
    parser.add_argument("--browser", type=Path, metavar="FOLDER", help="move sliders; screenshots go to this folder")
    options = parser.parse_args()
    known = sorted(path.name[:2] for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
    if wrong := [number for number in options.lessons if number not in known]:
        parser.error(f"there is no lesson {', '.join(wrong)}; expected some of {', '.join(known)}")
    python()
    for number in options.lessons or known:
        try:
            print(f"{number}: {run(number, options.full):.0f} s", flush=True)
        except CellExecutionError as error:
            raise SystemExit(f"lesson {number}: {error}") from None
    if options.browser:
        move_sliders(options.browser)
        print("explorer and Filmstrip moved")


if __name__ == "__main__":
    main()
