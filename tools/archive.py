"""Write the ZIP that a lesson on Colab asks for: `make zip`.

python tools/archive.py [FILE]     by default fmdiff.zip

The ZIP holds the lessons without outputs, the package, the published networks, and the stored results that lessons
show. The same files give the same ZIP, byte for byte.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat

from fmdiff_helpers.checkpoints import write_atomically

ROOT = Path(__file__).parents[1]
PARTS = ("notebooks/*.ipynb", "fmdiff_helpers", "data", "benchmarks/*.json", "benchmarks/*.npz", "pyproject.toml")
PARTS += ("README.md", "LICENSE")
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the earliest time in a ZIP


def files() -> list[Path]:
    """Return the files of the repository that a lesson needs, without those that git ignores, such as the dataset."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PARTS]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True).stdout.decode().split("\0")
    return [ROOT / name for name in sorted({*names} - {""}) if (ROOT / name).is_file()]


def content(path: Path) -> bytes:
    """Return the content of a file for the ZIP: notebooks lose their outputs, other files stay as they are."""
    if path.suffix != ".ipynb":
        return path.read_bytes()
    nb = nbformat.read(path, as_version=4)
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    return nbformat.writes(nb).encode()


def write(path: Path) -> None:
    """Write the ZIP to `path`."""

    def fill(partial: Path) -> None:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for file in files():
                name = zipfile.ZipInfo(file.relative_to(ROOT).as_posix(), LONG_AGO)
                name.external_attr, name.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
                archive.writestr(name, content(file))

    write_atomically(path, fill)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        raise SystemExit(f"expected at most one argument, the file to write; got {sys.argv[1:]}")
    target = Path(sys.argv[1] if sys.argv[1:] else "fmdiff.zip")
    write(target)
    print(f"{target}: {target.stat().st_size / 1e6:.0f} MB")
