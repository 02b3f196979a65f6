"""The claims of fmdiff_helpers.endings: one training writes to a folder, and removes what a killed one left."""

import errno
import os
import shutil
import signal
import subprocess
import sys

import pytest
from small_training import card, fit, same_weights

from fmdiff_helpers import endings
from fmdiff_helpers.endings import Signals, only_writer

HOLD = """
import sys, time
from pathlib import Path

from fmdiff_helpers.endings import only_writer

with only_writer(Path(sys.argv[1])):
    print("has it", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has the folder tmp_path."""
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "has it\n"
        yield process
        process.kill()


def test_a_folder_has_one_writer_until_that_ends_however_it_ends(tmp_path, holder):
    with pytest.raises(ValueError, match=f"another training is writing to {tmp_path}; wait until it ends, or name"):
        fit(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", ".writer"}
    holder.kill()
    holder.wait()
    fit(tmp_path)
    fit(tmp_path / "other")
    assert same_weights(tmp_path, tmp_path / "other")


def test_a_training_whose_folder_is_deleted_writes_it_anew(tmp_path):
    def delete(run):
        if run.step == 4:
            shutil.rmtree(tmp_path / "one")

    fit(tmp_path / "one", report=delete)
    fit(tmp_path / "other")
    assert same_weights(tmp_path / "one", tmp_path / "other")


@pytest.mark.parametrize("ends", ["still writing", "ended", "stopped"])
def test_a_training_whose_folder_is_deleted_and_has_another_writer_ends_and_leaves_it_alone(tmp_path, ends):
    folder = tmp_path / "one"

    def give_away(run):
        shutil.rmtree(folder)
        other = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True)
        others.append(other)
        other.stdout.readline()
        (folder / "checkpoint.pt").write_text("of the other")
        if ends == "ended":
            other.kill()
            other.wait()
        if ends == "stopped":
            raise KeyboardInterrupt

    others = []
    try:
        with pytest.raises(OSError, match=f"{folder} was deleted, and another training has it now; this one ends"):
            fit(folder, report=give_away)
        assert (folder / "checkpoint.pt").read_text() == "of the other"
        assert not (folder / "weights.safetensors").exists()
    finally:
        for other in others:
            other.kill()
            other.communicate()


def test_a_training_frees_its_folder_after_an_error_too(tmp_path):
    with pytest.raises(ValueError, match="steps is 0"):
        fit(tmp_path, card=lambda: card(steps=0))
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, report=lambda run: 1 / 0)
    fit(tmp_path)


def test_a_training_may_ask_for_its_folder_again(tmp_path):
    with only_writer(tmp_path):
        fit(tmp_path)
        line = [sys.executable, "-c", HOLD, tmp_path]
        assert "another training is writing" in subprocess.run(line, capture_output=True, text=True).stderr


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock")])
def test_a_folder_that_cannot_be_locked_is_an_error_that_names_it(tmp_path, monkeypatch, error):
    def refuse(lock):
        raise error

    monkeypatch.setattr(endings.FileLock, "acquire", refuse)
    with pytest.raises(ValueError, match=rf"{tmp_path} cannot be kept from other trainings \(.*\); name a folder else"):
        fit(tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=rf"{tmp_path} cannot be written to \((No locks available|no flock)\); name a"):
        fit(tmp_path)


def test_a_handler_that_is_not_pythons_stays(monkeypatch):
    """signal.getsignal returns None for it, and signal.signal cannot put it back."""
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGTERM else signal.SIG_DFL)
    with Signals() as signals:
        assert signal.SIGINT in signals.before and signal.SIGTERM not in signals.before


def test_what_a_killed_training_left_half_written_is_removed_and_nothing_else(tmp_path):
    left = [".checkpoint.pt.12.part", ".weights.safetensors.7.part", "step_000010/.loss.png.3.part"]
    kept = ["notes.part", ".hidden", "checkpoint.txt", "other/.checkpoint.pt.12.part"]
    for name in [*left, *kept]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    fit(tmp_path)
    assert [name for name in [*left, *kept] if (tmp_path / name).exists()] == kept
