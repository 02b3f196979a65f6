"""Write the public address of the repository into badges and setup cells: `make colab REPO=OWNER/NAME`.

python tools/colab.py OWNER/NAME     to write it
python tools/colab.py ""             to remove it again
"""

import re
import sys
import tomllib
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]
PROJECT = ROOT / "pyproject.toml"
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{repo}/blob/main/notebooks/{name}.ipynb)"
)
BADGE_LINE = re.compile(r"\[!\[Open in Colab\][^\n]*\n\n")
SETUP = """\
# On Colab this fetches the helper package. Elsewhere it does nothing, or says how to start.
import sys
import zipfile
from importlib import import_module, util
from pathlib import Path


def look(paths):  # for a folder or a ZIP that holds the package; Python can import from both
    for root in [zipfile.Path(path) if zipfile.is_zipfile(path) else Path(path) for path in paths]:
        tops = [root, *root.iterdir()] if root.is_dir() else []
        sys.path.extend(str(top).rstrip("/") for top in tops if (top / "fmdiff_helpers").is_dir())
    return util.find_spec("fmdiff_helpers")


if not look([]) and (colab := sys.modules.get("google.colab")):
{clone}    if not look([*Path("/content").glob("*"), *Path("/content/drive/MyDrive").glob("*")]):
        print("Choose fmdiff.zip, which `make zip` writes, or another ZIP of the repository.")
        look(colab.files.upload())
if not look([]):
    how = "On Colab, run this cell again and choose fmdiff.zip. Elsewhere: `uv run fmdiff lab`."
    raise type("Stop", (Exception,), {{"_render_traceback_": lambda self: ["Not started. " + how]}})
import_module("fmdiff_helpers.start").prepare()"""
CLONE = "    ![ -d /content/fmdiff ] || git clone -q --depth 1 https://github.com/{repo} /content/fmdiff\n"


def repository() -> str:
    """Return the public address, OWNER/NAME, or an empty string if there is none."""
    return tomllib.loads(PROJECT.read_text(encoding="utf-8"))["tool"]["fmdiff"]["repository"]


def setup_cell(repo: str) -> str:
    """Return the setup cell, which is the same in every lesson."""
    return SETUP.format(clone=CLONE.format(repo=repo) if repo else "")


def badge(repo: str, name: str) -> str:
    """Return the badge that opens the lesson `name` in Colab, and an empty line; without an address, nothing."""
    return BADGE.format(repo=repo, name=name) + "\n\n" if repo else ""


def write(repo: str) -> None:
    """Write the address into pyproject.toml, every lesson's setup cell, and the badges of lessons and README."""
    PROJECT.write_text(
        re.sub(r'^repository = ".*"$', f'repository = "{repo}"', PROJECT.read_text(encoding="utf-8"), flags=re.M),
        encoding="utf-8",
    )
    lessons = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    for path in lessons:
        nb = nbformat.read(path, as_version=4)
        nb.cells[0].source = badge(repo, path.stem) + BADGE_LINE.sub("", nb.cells[0].source)
        (setup,) = (cell for cell in nb.cells if "setup" in cell.metadata.get("tags", []))
        setup.source = setup_cell(repo)
        nbformat.write(nb, path)
    readme = BADGE_LINE.sub("", (ROOT / "README.md").read_text(encoding="utf-8"))
    title, rest = readme.split("\n\n", 1)
    (ROOT / "README.md").write_text(f"{title}\n\n{badge(repo, lessons[0].stem)}{rest}", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)?", sys.argv[1]):
        raise SystemExit(
            f"expected one argument, OWNER/NAME, such as `make colab REPO=ada/diffusion`; got {sys.argv[1:]}"
        )
    write(sys.argv[1])
