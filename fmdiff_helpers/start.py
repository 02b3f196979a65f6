"""Prepare a lesson: its figures get alternative texts. On Colab, what is missing is unpacked and installed first.

The setup cell of each lesson finds the package and calls `prepare`. Only the standard library is needed here.
"""

import importlib
import os
import re
import subprocess
import sys
import tomllib
import warnings
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Stop(Exception):
    """End a cell with one sentence: IPython shows what `_render_traceback_` returns instead of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def unpack(root: Path) -> Path:
    """Unpack the ZIP that holds `root`, a path such as x.zip or x.zip/top, and return the new folder for `root`.

    Raises Stop if the ZIP is damaged.
    """
    archive = next(path for path in (root, *root.parents) if path.is_file())
    folder = Path.cwd() / "fmdiff"  # Colab starts in /content
    try:
        zipfile.ZipFile(archive).extractall(folder)
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise Stop(f"{archive} cannot be unpacked ({error}): delete it, and run this cell again.") from None
    return folder / root.relative_to(archive)


def missing(project: Path) -> list[str]:
    """Return the dependencies in a pyproject.toml of which no version is installed."""
    names = []
    for line in tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]:
        name = re.match(r"[\w.-]+", line)[0]
        try:
            version(name)
        except PackageNotFoundError:
            names.append(name)
    return names


def install(names: list[str]) -> None:
    """Install packages without their dependencies, so that Colab's own torch, numpy and ipywidgets stay as they are.

    Raises Stop if the installation fails.
    """
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *names]
    if names and (done := subprocess.run(pip, capture_output=True, text=True)).returncode:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise Stop(
            f"{', '.join(names)} could not be installed ({reason}): connect to the network, and run this cell again."
        )


def fetch() -> None:
    """Unpack the package if it lies in a ZIP, install what is missing, and go to the lessons' folder.

    Raises Stop if the ZIP is damaged, or if a package is missing and cannot be installed.
    """
    root = ROOT
    if not root.is_dir():
        root = unpack(root)
        sys.path.insert(0, str(root))
        for name in [name for name in sys.modules if name.partition(".")[0] == "fmdiff_helpers"]:
            del sys.modules[name]  # loaded from the ZIP; from now on it comes from the folder
        importlib.invalidate_caches()
    # Colab does not have JupyterLab and does not need it.
    install([name for name in missing(root / "pyproject.toml") if name != "jupyterlab"])
    os.chdir(root / "notebooks")


def prepare() -> None:
    """Prepare a lesson: on Colab fetch what it needs, and everywhere let its figures have alternative texts.

    Raises Stop if something cannot be fetched.
    """
    if "google.colab" in sys.modules:
        fetch()
    from IPython import get_ipython

    from fmdiff_helpers.alt_text import give_alt_texts  # only now, when it can be found

    if shell := get_ipython():
        give_alt_texts(shell)
    # PyTorch's own `torch.func.jvp` says this, and a learner cannot do anything about it.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
