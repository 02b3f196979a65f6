"""The claims of fmdiff_helpers.cli: the right lesson, the right flags for the machine, one clear line on failure."""

import gzip
import hashlib
import http.client
import os
import subprocess
import sys
import webbrowser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fmdiff_helpers import cli, data

LESSONS = ["01_forward_noising", "02_transformer_denoiser", "03_unet_ddpm", "10_last"]


def fmdiff(*arguments: str):
    """Run the command in this process; what would be a traceback is raised here."""
    return CliRunner().invoke(cli.app, arguments, catch_exceptions=False)


def test_help_lists_the_commands():
    result = fmdiff("--help")
    assert result.exit_code == 0
    for name, purpose in {"lab": "Open a lesson", "data": "Fetch Fashion-MNIST"}.items():
        assert name in result.output and purpose in result.output


def test_a_wrong_command_is_exit_code_2():
    assert fmdiff("dta").exit_code == 2


# fmdiff data


def unpack(raw: Path, folder: Path, monkeypatch) -> Path:
    """Copy the dataset in the folder `raw`, unpacked, to a folder that FMDIFF_DATA then names."""
    copy = folder / "FashionMNIST" / "raw"
    copy.mkdir(parents=True)
    for name in data.ALL_FILES:
        plain, packed = raw / name, raw / f"{name}.gz"
        content = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
        (copy / name).write_bytes(content)
    monkeypatch.setenv("FMDIFF_DATA", str(folder))
    return copy


def change_byte(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """A folder, named by FMDIFF_DATA, with four small files in the place of Fashion-MNIST's."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in data.ALL_FILES:
        (raw / name).write_bytes(name.encode())
    checksums = {name: hashlib.md5(name.encode(), usedforsecurity=False).hexdigest() for name in data.ALL_FILES}
    monkeypatch.setattr(data, "ALL_FILES", checksums)
    monkeypatch.setattr(data, "download", lambda raw, names: pytest.fail(f"downloads {names}"))
    monkeypatch.setenv("FMDIFF_DATA", str(tmp_path))
    return raw


def fail_download(monkeypatch, error: Exception) -> None:
    def download(raw, names):
        raise error

    monkeypatch.setattr(data, "download", download)


@pytest.fixture
def mirror(monkeypatch) -> list[str]:
    """Make downloads work, with the names as content; return the names that were downloaded."""
    downloaded = []

    def download(raw, names):
        raw.mkdir(parents=True, exist_ok=True)
        for name in names:
            (raw / name).write_bytes(name.encode())
        downloaded.extend(names)

    monkeypatch.setattr(data, "download", download)
    return downloaded


def test_data_says_where_the_real_dataset_is_and_that_it_is_intact(real_raw):
    result = fmdiff("data")
    assert result.exit_code == 0 and result.stderr == ""
    assert str(real_raw) in result.stdout and "all four files intact" in result.stdout


def test_data_finds_one_changed_byte_among_55_million(real_raw, tmp_path, monkeypatch):
    raw = unpack(real_raw, tmp_path, monkeypatch)
    assert fmdiff("data").exit_code == 0
    change_byte(raw / "train-images-idx3-ubyte", 33_333_333)
    result = fmdiff("data")
    assert result.exit_code == 1 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert f"{raw / 'train-images-idx3-ubyte'} is damaged" in line and "uv run fmdiff data --repair" in line


def test_data_lists_each_damaged_or_missing_file_on_a_line(small):
    names = list(data.ALL_FILES)
    (small / names[0]).write_bytes(b"damaged")
    (small / names[2]).unlink()
    result = fmdiff("data")
    assert result.exit_code == 1 and result.stdout == ""
    damaged, missing = result.stderr.splitlines()
    assert f"{small / names[0]} is damaged" in damaged and f"{small / names[2]} is missing" in missing


def test_data_without_the_folder_fails_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("FMDIFF_DATA", str(tmp_path / "not there"))
    result = fmdiff("data")
    assert result.exit_code == 1 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("fmdiff: FMDIFF_DATA is ") and str(tmp_path / "not there") in line


def test_data_without_a_network_is_exit_code_1_with_the_notice(small, monkeypatch):
    fail_download(monkeypatch, OSError("no network"))
    for path in small.iterdir():
        path.unlink()
    result = fmdiff("data")
    assert result.exit_code == 1
    assert "NOT Fashion-MNIST" in result.stderr and "(no network)" in result.stderr and "intact" not in result.stdout


def test_repair_downloads_what_is_damaged_or_missing_and_nothing_else(small, mirror):
    names = list(data.ALL_FILES)
    (small / names[1]).write_bytes(b"damaged")
    (small / names[3]).unlink()
    result = fmdiff("data", "--repair")
    assert result.exit_code == 0 and "intact" in result.stdout
    assert mirror == [names[1], names[3]]


def test_repair_of_a_damaged_packed_file_puts_an_intact_one_beside_it(small, mirror):
    name = next(iter(data.ALL_FILES))
    (small / name).rename(small / f"{name}.gz")
    assert fmdiff("data").exit_code == 1
    assert fmdiff("data", "--repair").exit_code == 0 and mirror == [name]


def test_repair_of_an_intact_dataset_downloads_nothing(small):
    result = fmdiff("data", "--repair")
    assert result.exit_code == 0 and "intact" in result.stdout


def test_repair_makes_the_folder_that_FMDIFF_DATA_names(small, mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("FMDIFF_DATA", str(tmp_path / "new"))
    assert fmdiff("data", "--repair").exit_code == 0
    assert sorted(path.name for path in data.raw_folder().iterdir()) == sorted(data.ALL_FILES)


@pytest.mark.parametrize(
    "error, line",
    [
        (OSError("no network\nat all"), "no network at all"),
        (RuntimeError("Error downloading\n"), "Error downloading"),
        (http.client.IncompleteRead(b"abc", 9), "IncompleteRead(3 bytes read, 9 more expected)"),
        (data.DataError("a damaged download"), "a damaged download"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_repair_without_a_network_fails_in_one_line_and_keeps_the_files(small, monkeypatch, error, line):
    fail_download(monkeypatch, error)
    name = next(iter(data.ALL_FILES))
    (small / name).write_bytes(b"damaged")
    result = fmdiff("data", "--repair")
    assert result.exit_code == 1 and result.stderr == f"fmdiff: {line}\n"
    assert (small / name).read_bytes() == b"damaged"


# fmdiff lab


@pytest.fixture
def notebooks(tmp_path, monkeypatch) -> Path:
    """A folder of empty lessons in the place of `notebooks/`, beside something that is no lesson."""
    folder = tmp_path / "a checkout" / "notebooks"
    folder.mkdir(parents=True)
    for name in [*LESSONS, "scratch"]:
        (folder / f"{name}.ipynb").touch()
    monkeypatch.setattr(cli, "NOTEBOOKS", folder)
    return folder


@pytest.fixture
def launched(notebooks, monkeypatch) -> list[list[str]]:
    """The arguments of each JupyterLab that would have started, on a desktop and not as root."""
    from jupyterlab.labapp import LabApp

    calls = []
    monkeypatch.setattr(LabApp, "launch_instance", lambda argv: calls.append(argv))
    monkeypatch.setattr(cli, "has_browser", lambda: True)
    monkeypatch.setattr(os, "geteuid", lambda: 1000, raising=False)
    return calls


@pytest.mark.parametrize("name", ["1", "01", "01_", "01_forward_noising", "01_forward_noising.ipynb", "001"])
def test_a_lesson_goes_by_its_number_and_by_the_start_of_its_name(notebooks, name):
    assert cli.find_lesson(name) == notebooks / "01_forward_noising.ipynb"


def test_a_lesson_goes_by_its_path(notebooks):
    assert cli.find_lesson("notebooks/03_unet_ddpm.ipynb") == notebooks / "03_unet_ddpm.ipynb"


@pytest.mark.parametrize("name", ["4", "99", "unet", "0", "", "scratch", "forward_noising", "1_"])
def test_an_unknown_or_ambiguous_lesson_is_exit_code_2_with_the_list(launched, name):
    result = fmdiff("lab", name)
    assert result.exit_code == 2 and launched == []
    assert repr(name) in result.stderr and ", ".join(LESSONS) in result.stderr and "scratch," not in result.stderr


def test_without_the_lessons_the_message_says_so(tmp_path, launched, monkeypatch):
    monkeypatch.setattr(cli, "NOTEBOOKS", tmp_path)
    result = fmdiff("lab")
    assert result.exit_code == 2 and f"none in {tmp_path}: clone the repository" in result.stderr


def test_a_shell_sees_the_exit_code_and_one_line_without_a_traceback():
    command = [sys.executable, "-c", "from fmdiff_helpers.cli import app; app()", "lab", "no such lesson"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("fmdiff: 'no such lesson' names 0 lessons; expected one of: ")


@pytest.mark.parametrize(
    "arguments, lesson, port",
    [([], "01_forward_noising", 8888), (["2", "--port", "9999"], "02_transformer_denoiser", 9999)],
)
def test_lab_opens_the_lesson_on_this_machine_only(launched, notebooks, arguments, lesson, port):
    assert fmdiff("lab", *arguments).exit_code == 0
    (argv,) = launched
    assert set(argv) == {
        f"--ServerApp.root_dir={notebooks.parent}",
        f"--LabApp.default_url=/lab/tree/notebooks/{lesson}.ipynb",
        "--ip=127.0.0.1",
        f"--port={port}",
    }


@pytest.mark.parametrize("user, browser", [(0, True), (0, False), (1000, True), (1000, False)])
def test_allow_root_is_for_root_and_no_browser_where_there_is_none(launched, monkeypatch, user, browser):
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(cli, "has_browser", lambda: browser)
    result = fmdiff("lab", "1", "--port", "9999")
    (argv,) = launched
    assert ("--allow-root" in argv) == (user == 0)
    assert ("--no-browser" in argv) == (not browser)
    assert ("ssh -L" in result.output) == (not browser)
    assert [argument for argument in argv if "--ip" in argument] == ["--ip=127.0.0.1"]


def test_lab_runs_where_no_user_is_root(launched, monkeypatch):
    """As on Windows, where os has no geteuid."""
    monkeypatch.delattr(os, "geteuid")
    assert fmdiff("lab").exit_code == 0 and "--allow-root" not in launched[0]


@pytest.mark.parametrize("value, seen", [("garments", "{}/garments"), ("/garments", "/garments"), ("", "")])
def test_lab_hands_the_kernel_an_absolute_FMDIFF_DATA(launched, tmp_path, monkeypatch, value, seen):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FMDIFF_DATA", value)
    assert fmdiff("lab").exit_code == 0
    assert os.environ["FMDIFF_DATA"] == seen.format(tmp_path)


def no_browser() -> None:
    raise webbrowser.Error("could not locate runnable browser")


@pytest.mark.parametrize(
    "platform, get, display, expected",
    [
        ("linux", no_browser, {"DISPLAY": ":0"}, False),
        ("linux", object, {}, False),  # a browser for the terminal, such as w3m
        ("linux", object, {"DISPLAY": ":0"}, True),
        ("linux", object, {"WAYLAND_DISPLAY": "wayland-0"}, True),
        ("darwin", object, {}, True),
        ("win32", no_browser, {}, False),
    ],
)
def test_a_browser_needs_a_screen_on_linux(monkeypatch, platform, get, display, expected):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in display.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(webbrowser, "get", get)
    monkeypatch.setattr(sys, "platform", platform)
    assert cli.has_browser() == expected
