"""The claims of fmdiff_helpers.endings: one training writes to a folder, and removes what a killed one left."""

import subprocess
import sys

import pytest
from small_training import card, fit, same_weights

from fmdiff_helpers.endings import only_writer

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
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    holder.kill()
    holder.wait()
    fit(tmp_path)
    fit(tmp_path / "other")
    assert same_weights(tmp_path, tmp_path / "other")


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


def test_what_a_killed_training_left_half_written_is_removed_and_nothing_else(tmp_path):
    left = [".checkpoint.pt.12.part", ".weights.safetensors.7.part", "step_000010/.loss.png.3.part"]
    kept = ["notes.part", ".hidden", "checkpoint.txt"]
    for name in [*left, *kept]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    fit(tmp_path)
    assert [name for name in [*left, *kept] if (tmp_path / name).exists()] == kept
