"""The claims of fmdiff_helpers.checkpoints: weights are the ones of their card, or a clear error; no code is run."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_training import CLASSIFIER, at_call, fresh, same_weights
from torch import nn

from fmdiff_helpers import cards, checkpoints
from fmdiff_helpers.cards import WeightsError, build, find_weights, read_card
from fmdiff_helpers.checkpoints import load_pretrained, save_weights
from fmdiff_helpers.checkpoints import write_atomically as write

CARD = CLASSIFIER | {"recipe": {"steps": 5, "lr": 1e-3}}
PUBLISHED = sorted(path.stem for path in cards.PUBLISHED.glob("*.safetensors"))


@pytest.fixture
def saved(tmp_path) -> tuple[Path, nn.Module]:
    """A folder with the weights of a small network, as a training writes it, and the network."""
    model = build(CARD)
    for buffer in model.buffers():
        buffer.random_(1, 9)
    folder = tmp_path / "run"
    save_weights(folder / "weights.safetensors", model, CARD)
    return folder, model


def change_card(folder: Path, **changes) -> None:
    path = folder / "weights.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def put_weights(folder: Path, content: bytes) -> None:
    """Write other weights and their true sha256 to the card."""
    (folder / "weights.safetensors").write_bytes(content)
    change_card(folder, sha256=hashlib.sha256(content).hexdigest())


# A round trip


def test_weights_buffers_and_card_come_back_bit_for_bit_for_use_and_not_for_training(saved):
    folder, model = saved
    before, loaded = torch.get_rng_state(), load_pretrained(folder)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        found = loaded.state_dict()[name]
        assert torch.equal(found, tensor) and found.dtype == tensor.dtype, name
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    checksum = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    assert read_card(folder) == CARD | {"sha256": checksum} and "sha256" not in CARD
    assert {tensor.device.type for tensor in load_pretrained(folder, "meta").state_dict().values()} == {"meta"}


def test_a_network_in_another_memory_format_gives_the_same_file(saved, tmp_path):
    folder, model = saved
    save_weights(tmp_path / "weights.safetensors", model.to(memory_format=torch.channels_last), CARD)
    assert (tmp_path / "weights.safetensors").read_bytes() == (folder / "weights.safetensors").read_bytes()


def test_saving_again_replaces_both_files_and_leaves_no_others(saved):
    folder, model = saved
    with torch.no_grad():
        model.head.bias.add_(1)
    save_weights(folder / "weights.safetensors", model, CARD | {"seconds": 7})
    assert sorted(path.name for path in folder.iterdir()) == ["weights.json", "weights.safetensors"]
    assert torch.equal(load_pretrained(folder).head.bias, model.head.bias) and read_card(folder)["seconds"] == 7
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1, "who may read the card may read the weights"


# What does not fit


def test_a_card_without_weights_is_an_error(saved):
    (saved[0] / "weights.safetensors").unlink()
    with pytest.raises(WeightsError, match="there are no weights"):
        load_pretrained(saved[0])


def test_another_file_than_the_cards_is_an_error_with_both_checksums(saved):
    folder, _ = saved
    path = folder / "weights.safetensors"
    expected, content = read_card(folder)["sha256"], path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(WeightsError, match=f"expected sha256 {expected}, found {found}") as error:
        load_pretrained(folder)
    assert str(path) in str(error.value) and "run the same `fmdiff train` again" in str(error.value)


def test_tensors_of_another_shape_are_an_error_that_names_the_network(saved):
    change_card(saved[0], arguments={"width": 3})
    with pytest.raises(WeightsError, match=r"does not fit classifier\.Classifier\({'width': 3}\)") as error:
        load_pretrained(saved[0])
    assert "size mismatch" in str(error.value) and "weights.safetensors" in str(error.value)


@pytest.mark.parametrize("change", ["one missing", "one too many"])
def test_a_tensor_too_few_or_too_many_is_an_error(saved, tmp_path, change):
    tensors = load_file(saved[0] / "weights.safetensors")
    tensors["head.extra"] = tensors["head.bias"].clone()
    if change == "one missing":
        del tensors["head.extra"], tensors["head.bias"]
    save_file(tensors, tmp_path / "changed")
    put_weights(saved[0], (tmp_path / "changed").read_bytes())
    with pytest.raises(WeightsError, match=r"head\.(bias|extra)"):
        load_pretrained(saved[0])


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 100, b"\x80" + b"\0" * 200])
def test_a_file_that_is_no_safetensors_is_an_error_even_where_its_checksum_is_the_cards(saved, content):
    put_weights(saved[0], content)
    with pytest.raises(WeightsError, match="does not fit"):
        load_pretrained(saved[0])


class Evidence:
    """An object whose unpickling makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["pickle", "torch", "old torch"])
def test_a_pickle_in_the_place_of_weights_is_never_unpickled(saved, tmp_path, kind):
    evidence, file = tmp_path / "evidence", tmp_path / "file"
    if kind == "pickle":
        file.write_bytes(pickle.dumps(Evidence(evidence)))
    else:
        torch.save(Evidence(evidence), file, _use_new_zipfile_serialization=kind == "torch")
    put_weights(saved[0], file.read_bytes())
    with pytest.raises(WeightsError):
        load_pretrained(saved[0])
    assert not evidence.exists()
    with file.open("rb") as content:
        pickle.load(content) if kind == "pickle" else torch.load(content, weights_only=False)
    assert evidence.exists(), "the file would have run code"


# Files whole or not at all


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("bad")])
@pytest.mark.parametrize("written", ["nothing", "half"])
def test_where_writing_fails_the_old_file_stays_and_no_part_of_the_new(tmp_path, error, written):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file):
        if written == "half":
            file.write_text("ne")
        raise error

    with pytest.raises(type(error)):
        write(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_readers_see_the_old_file_until_the_new_one_is_complete_and_on_the_disk(tmp_path, monkeypatch):
    path, log = tmp_path / "new" / "deep" / "weights.safetensors", []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: log.append("fsync") or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *paths: log.append("replace") or replace(*paths))
    write(path, lambda file: file.write_text("old"))

    def slow(file):
        file.write_text("new")
        assert path.read_text() == "old" and file.parent == path.parent and file.suffix != ".safetensors"

    write(path, slow)
    assert path.read_text() == "new" and list(path.parent.iterdir()) == [path] and log == 2 * ["fsync", "replace"]


def test_a_card_that_is_no_json_leaves_both_files_as_they_were(saved):
    folder, model = saved
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with torch.no_grad():
        model.head.bias.add_(1)
    with pytest.raises(TypeError):
        save_weights(folder / "weights.safetensors", model, CARD | {"device": torch.device("cpu")})
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


# What is published


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_loads_and_has_a_full_card(name):
    model, card = load_pretrained(name), read_card(name)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert {*cards.KEYS, "sha256", "seconds", "device"} <= card.keys()
    assert card["recipe"]["steps"] > 0 and card["seconds"] > 0 and card["device"]
    assert find_weights(name).parent == cards.PUBLISHED, "no folder of this name in the way"
    assert find_weights(name).stat().st_size <= 8 * 2**20


def test_the_published_networks_stay_small_together():
    assert sum(find_weights(name).stat().st_size for name in PUBLISHED) <= 36 * 2**20


def test_each_published_file_has_its_partner():
    assert sorted(path.stem for path in cards.PUBLISHED.glob("*.json")) == PUBLISHED


# A pair: weights and their card


WRITER = """
import sys
from pathlib import Path

import torch

from fmdiff_helpers.cards import build, read_card
from fmdiff_helpers.checkpoints import save_state

card = read_card(sys.argv[1])
states = [{name: torch.full_like(value, k) for name, value in build(card).state_dict().items()} for k in range(7)]
for k in range(100_000):
    save_state(Path(sys.argv[1]) / "weights.safetensors", states[k % 7], card | {"seconds": k % 7})
"""


def test_a_reader_beside_a_writer_sees_pairs_and_also_after_the_writer_was_killed_anywhere(saved):
    folder, _ = saved
    for _ in range(2):
        seen, end = set(), time.monotonic() + 120
        writer = subprocess.Popen([sys.executable, "-c", WRITER, folder])
        while len(seen) < 6 and time.monotonic() < end and writer.poll() is None:
            seen.add(next(load_pretrained(folder).parameters()).flatten()[0].item())
        writer.kill()
        writer.wait()
        assert len(seen) == 6, "the writer was at work"
        content, card = checkpoints.read_pair(folder)
        assert hashlib.sha256(content).hexdigest() == card["sha256"] == read_card(folder)["sha256"]


@pytest.mark.parametrize("number, new", [(1, False), (2, False), (3, True)])
def test_a_writer_that_is_killed_between_two_files_leaves_the_old_pair_or_the_new(saved, monkeypatch, number, new):
    folder, model = saved
    before = read_card(folder)["sha256"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints.os, "replace", at_call(number, KeyboardInterrupt(), os.replace))
        save_weights(folder / "weights.safetensors", fresh(seed=5), CARD)
    expected = fresh(seed=5) if new else model
    assert same_weights(load_pretrained(folder), expected)
    assert (read_card(folder)["sha256"] != before) == new
    save_weights(folder / "weights.safetensors", model, CARD)
    assert read_card(folder)["sha256"] == before and not list(folder.glob(".*"))


def test_half_written_files_of_a_killed_writer_are_removed_after_an_hour(tmp_path):
    for age, name in ((4000, ".x[1].txt.99999.part"), (10, ".x[1].txt.99998.part"), (4000, ".y.txt.99999.part")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, times=2 * (time.time() - age,))
    write(tmp_path / "x[1].txt", lambda path: path.write_text("new"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x[1].txt.99998.part", ".y.txt.99999.part", "x[1].txt"]
