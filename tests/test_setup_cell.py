"""The setup cell of all lessons, in IPython with a stub of google.colab: each way to the package, each failure."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import archive
import colab
import pytest

ROOT = Path(__file__).parents[1]
# Runs the cell as a kernel does, where the package is not installed, and prints what became of it as the last line.
DRIVER = """
import json, os, sys, types
from pathlib import Path
from IPython.core.interactiveshell import InteractiveShell

root, content, cell, uploads = sys.argv[1:]
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(root)]
uploads = json.loads(uploads)
if uploads is not None:
    def upload():
        print("BUTTON")
        for name, source in uploads.items():
            Path(name).write_bytes(Path(source).read_bytes())
        return dict.fromkeys(uploads, b"")
    sys.modules["google"] = types.ModuleType("google")
    sys.modules["google.colab"] = types.ModuleType("google.colab")
    sys.modules["google.colab"].files = types.SimpleNamespace(upload=upload)
shell = InteractiveShell.instance(colors="NoColor")
result = shell.run_cell(cell.replace("/content", content))
wait = os.environ.get("OMP_WAIT_POLICY")
try:
    import fmdiff_helpers
    found = fmdiff_helpers.__file__
except ImportError:
    found = None
says = {"success": result.success, "folder": os.getcwd(), "package": found, "torch": "torch" in sys.modules}
print("\\n" + json.dumps(says | {"wait": wait}))
"""


@pytest.fixture
def content(tmp_path):
    """A folder in place of Colab's /content."""
    (tmp_path / "content").mkdir()
    return tmp_path / "content"


def repository(folder):
    """Write what the cell needs of the repository into a folder."""
    shutil.copytree(ROOT / "fmdiff_helpers", folder / "fmdiff_helpers", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "notebooks").mkdir()
    return folder


def zipped(folder, target, top=""):
    """Write a folder as a ZIP, below `top` as GitHub does it, and return the ZIP."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, top + path.relative_to(folder).as_posix())
    return target


def run(content, uploads, repo="", **environment):
    """Run the cell; `uploads` are the files that a user chooses, by name, None where there is no Colab."""
    chosen = None if uploads is None else {name: str(path) for name, path in uploads.items()}
    command = [sys.executable, "-c", DRIVER, ROOT, content, colab.setup_cell(repo), json.dumps(chosen)]
    environment = {"PYTHONWARNINGS": "ignore", "IPYTHONDIR": str(content.parent), **os.environ, **environment}
    done = subprocess.run(command, cwd=content, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *printed, last = done.stdout.splitlines()
    return "\n".join(printed), json.loads(last)


def check_started(printed, says, folder):
    """The package was found in a folder, and the lesson runs beside it."""
    assert says["success"], printed
    assert Path(says["package"]).parents[1] == folder
    assert Path(says["folder"]) == folder / "notebooks"
    assert says["wait"] == "PASSIVE" and not says["torch"]


def test_a_folder_of_the_repository_is_found_and_nothing_is_asked(content):
    folder = repository(content / "my-copy")
    printed, says = run(content, {})
    check_started(printed, says, folder)
    assert "BUTTON" not in printed


@pytest.mark.parametrize("place, top", [("", ""), ("drive/MyDrive", "diffusion-main/")])
def test_a_zip_is_found_and_unpacked_and_cannot_write_outside_its_folder(content, tmp_path, place, top):
    (content / place).mkdir(parents=True, exist_ok=True)
    (content / "other.zip").write_bytes(b"no ZIP at all")
    chosen = zipped(repository(tmp_path / "copy"), content / place / "copy.zip", top)
    with zipfile.ZipFile(chosen, "a") as file:
        file.writestr("../../escaped.txt", "x")
    printed, says = run(content, {})
    check_started(printed, says, content / "fmdiff" / top)
    assert "BUTTON" not in printed
    assert not list(tmp_path.glob("escaped.txt")) and not list(content.glob("escaped.txt"))


def test_without_both_it_asks_for_a_zip_and_a_second_kernel_finds_what_the_first_has_unpacked(content, tmp_path):
    chosen = zipped(repository(tmp_path / "copy"), tmp_path / "fmdiff.zip")
    printed, says = run(content, {"fmdiff.zip": chosen})
    check_started(printed, says, content / "fmdiff")
    assert printed.index("Choose fmdiff.zip") < printed.index("BUTTON")
    printed, says = run(content, {})
    check_started(printed, says, content / "fmdiff")
    assert "BUTTON" not in printed


def check_stopped(printed, says, sentence):
    """The cell failed, so that Run All stops, with a sentence and no traceback."""
    assert not says["success"]
    assert sentence in printed and "Traceback" not in printed and "^" not in printed and "Error" not in printed


@pytest.mark.parametrize("case", ["cancelled", "another ZIP", "no ZIP", "cut off"])
def test_what_is_no_zip_of_the_repository_ends_in_one_sentence(content, tmp_path, case):
    whole = zipped(repository(tmp_path / "copy"), tmp_path / "whole.zip")
    (tmp_path / "text.zip").write_text("hello")
    (tmp_path / "cut.zip").write_bytes(whole.read_bytes()[:-500])
    other = zipped(tmp_path / "copy" / "notebooks", tmp_path / "other.zip")
    uploads = {
        "cancelled": {},
        "another ZIP": {"holiday.zip": other},
        "no ZIP": {"notes.txt": tmp_path / "text.zip"},
        "cut off": {"fmdiff.zip": tmp_path / "cut.zip"},
    }
    printed, says = run(content, uploads[case])
    check_stopped(printed, says, "run this cell again and choose fmdiff.zip")


def test_a_damaged_zip_is_named(content, tmp_path):
    copy = repository(tmp_path / "copy")
    (copy / "zzz.bin").write_bytes(os.urandom(10_000))
    chosen = zipped(copy, tmp_path / "fmdiff.zip")
    data = bytearray(chosen.read_bytes())
    at = zipfile.ZipFile(chosen).getinfo("zzz.bin").header_offset + 2000
    data[at] ^= 255
    chosen.write_bytes(data)
    printed, says = run(content, {"fmdiff.zip": chosen})
    check_stopped(printed, says, "fmdiff.zip cannot be unpacked")


def fake_git(folder, lines):
    """Write a `git` of some lines of shell, and return the PATH where it comes first."""
    folder.mkdir()
    (folder / "git").write_text(f"#!/bin/sh\n{lines}")
    (folder / "git").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_a_public_address_is_cloned_once_and_before_anything_else(content, tmp_path):
    repository(tmp_path / "remote")
    path = fake_git(tmp_path / "bin", f'echo "$@" >> {tmp_path}/log\ncp -r {tmp_path}/remote "$6"\n')
    for _ in range(2):
        printed, says = run(content, {}, "ada/diffusion", PATH=path)
        check_started(printed, says, content / "fmdiff")
    expected = f"clone -q --depth 1 https://github.com/ada/diffusion {content}/fmdiff\n"
    assert (tmp_path / "log").read_text() == expected


def test_without_a_network_an_address_ends_in_the_question_for_a_zip(content, tmp_path):
    path = fake_git(tmp_path / "bin", "echo 'fatal: unable to access' >&2\nexit 128\n")
    printed, says = run(content, {}, "ada/diffusion", PATH=path)
    assert "Choose fmdiff.zip" in printed
    check_stopped(printed, says, "run this cell again and choose fmdiff.zip")


def test_what_is_missing_is_installed_without_what_it_depends_on(content, tmp_path):
    folder = repository(content / "copy")
    project = folder / "pyproject.toml"
    project.write_text(project.read_text().replace('"einops>=0.8"', '"fmdiff-missing>=0.8"'))
    pip = tmp_path / "site" / "pip"
    pip.mkdir(parents=True)
    (pip / "__init__.py").touch()
    (pip / "__main__.py").write_text(
        f"import sys\nopen({str(tmp_path / 'log')!r}, 'w').write(' '.join(sys.argv[1:]))\n"
    )
    printed, says = run(content, {}, PYTHONPATH=str(pip.parent))
    check_started(printed, says, folder)
    assert (tmp_path / "log").read_text() == "install --quiet --no-deps fmdiff-missing"
    (pip / "__main__.py").write_text("raise SystemExit(1)")
    check_stopped(*run(content, {}, PYTHONPATH=str(pip.parent)), "fmdiff-missing could not be installed")


def test_elsewhere_it_says_how_to_start_and_changes_nothing_where_the_package_can_be_imported(content):
    check_stopped(*run(content, None), "uv run fmdiff lab")
    folder = repository(content)
    _, says = run(content, None)
    assert says["success"] and Path(says["package"]).parents[1] == folder and Path(says["folder"]) == content


def test_the_cell_is_short():
    lines = [line for line in colab.setup_cell("ada/diffusion").splitlines() if line.strip()]
    assert len(lines) <= 19 and len([line for line in lines if not line.startswith(("import ", "from "))]) <= 15


WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, ["PASSIVE", "1000"]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", "None"]),
        ({"GOMP_SPINCOUNT": "7"}, ["PASSIVE", "7"]),
    ],
)
def test_threads_soon_sleep_while_they_wait_unless_the_user_says_otherwise(own, expected):
    code = f"import sys, os, fmdiff_helpers.cli; print('torch' in sys.modules, *map(os.environ.get, {WAITING}))"
    environment = {name: value for name, value in os.environ.items() if name not in WAITING} | own
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", *expected]


def test_the_zip_holds_what_lessons_need_and_the_same_bytes_each_time(tmp_path):
    archive.write(tmp_path / "a.zip")
    archive.write(tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        names = file.namelist()
        assert b'"outputs": []' in file.read("notebooks/01_forward_noising.ipynb")
        assert b";base64," not in file.read("notebooks/01_forward_noising.ipynb")
    weights = {path.relative_to(ROOT).as_posix() for path in (ROOT / "data" / "weights").iterdir()}
    assert weights | {"fmdiff_helpers/start.py", "data/leaderboard.json", "pyproject.toml"} <= set(names)
    lessons = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "notebooks").glob("*.ipynb"))
    read = set(re.findall(r"ROOT / ..([\w/]+\.(?:json|npz))", lessons))
    assert "benchmarks/quality.json" in read and read <= set(names)
    assert not [name for name in names if name.startswith(("tests", "figures", "data/FashionMNIST", ".git"))]
