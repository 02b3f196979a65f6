"""The claims of fmdiff_helpers.lab and `fmdiff lab`: the right lesson, and the right arguments for the machine."""

import os
import subprocess
import sys
import webbrowser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fmdiff_helpers import cli, lab

LESSONS = ["01_forward_noising", "02_transformer_denoiser", "03_unet_ddpm", "10_last"]


def fmdiff_lab(*arguments: str):
    return CliRunner().invoke(cli.app, ["lab", *arguments], catch_exceptions=False)


@pytest.fixture
def notebooks(tmp_path, monkeypatch) -> Path:
    """A folder of empty lessons instead of `notebooks/`, and a file that is no lesson."""
    folder = tmp_path / "a checkout" / "notebooks"
    folder.mkdir(parents=True)
    for name in [*LESSONS, "scratch"]:
        (folder / f"{name}.ipynb").touch()
    monkeypatch.setattr(lab, "NOTEBOOKS", folder)
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


@pytest.mark.parametrize("name", ["1", "01", "01_", "01_forward_noising", "notebooks/01_forward_noising.ipynb", "001"])
def test_a_lesson_is_found_by_its_number_the_start_of_its_name_and_its_path(notebooks, name):
    assert lab.find_lesson(name) == notebooks / "01_forward_noising.ipynb"


@pytest.mark.parametrize("name", ["4", "99", "unet", "0", "", "scratch", "forward_noising", "1_"])
def test_an_unknown_or_ambiguous_lesson_is_exit_code_2_with_the_list(launched, name):
    result = fmdiff_lab(name)
    assert result.exit_code == 2 and launched == []
    assert repr(name) in result.stderr and ", ".join(LESSONS) in result.stderr and "scratch," not in result.stderr


def test_without_the_lessons_the_message_says_so(tmp_path, launched, monkeypatch):
    monkeypatch.setattr(lab, "NOTEBOOKS", tmp_path)
    result = fmdiff_lab()
    assert result.exit_code == 2 and f"there are no lessons in {tmp_path}: the installed package" in result.stderr


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
    assert fmdiff_lab(*arguments).exit_code == 0
    assert [sorted(argv) for argv in launched] == [
        [
            "--LabApp.default_url=/lab/tree/notebooks/" + lesson + ".ipynb",
            f"--ServerApp.root_dir={notebooks.parent}",
            "--ip=127.0.0.1",
            f"--port={port}",
        ]
    ]


@pytest.mark.parametrize("port", ["0", "-5", "65001", "70000", "1" + "0" * 30, "x"])
def test_a_port_that_cannot_exist_is_refused(launched, port):
    """JupyterLab also tries ports up to a hundred above the first."""
    result = fmdiff_lab("1", "--port", port)
    assert result.exit_code == 2 and launched == [] and len(result.stderr.splitlines()) == 1
    assert "Invalid value for '--port'" in result.stderr


def test_without_jupyterlab_lab_says_what_to_install(notebooks, monkeypatch):
    monkeypatch.setitem(sys.modules, "jupyterlab.labapp", None)
    result = fmdiff_lab()
    assert result.exit_code == 1
    assert result.stderr.startswith("fmdiff: 'jupyterlab' is not installed; install all packages: `uv sync`")


@pytest.mark.parametrize("user", [0, 1000, None])
@pytest.mark.parametrize("browser", [True, False])
def test_root_is_allowed_for_root_and_without_a_browser_an_address_is_printed(launched, monkeypatch, user, browser):
    """On Windows, user None, nobody is root and os has no geteuid."""
    if user is None:
        monkeypatch.delattr(os, "geteuid")
    else:
        monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(cli, "has_browser", lambda: browser)
    result = fmdiff_lab("1")
    (argv,) = launched
    assert ("--allow-root" in argv) == (user == 0)
    assert ("--no-browser" in argv) == ("ssh -L" in result.output) == (not browser)
    assert [argument for argument in argv if "--ip" in argument] == ["--ip=127.0.0.1"]


@pytest.mark.parametrize("value, seen", [("garments", "{}/garments"), ("/garments", "/garments"), ("", "")])
def test_lab_gives_the_kernel_an_absolute_FMDIFF_DATA(launched, tmp_path, monkeypatch, value, seen):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FMDIFF_DATA", value)
    assert fmdiff_lab().exit_code == 0
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
    assert lab.has_browser() == expected
