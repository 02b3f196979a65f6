"""The claims of fmdiff_helpers.checkpoints: weights are the ones of their card, or a clear error; no code is run."""

import hashlib
import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fmdiff_helpers import checkpoints
from fmdiff_helpers.checkpoints import WeightsError, build, find_weights, load_pretrained, read_card, save_weights
from fmdiff_helpers.checkpoints import write_atomically as write

CARD = {"network": "classifier.Classifier", "arguments": {"width": 2}, "recipe": {"steps": 5, "lr": 1e-3}}
PUBLISHED = sorted(path.stem for path in checkpoints.PUBLISHED.glob("*.safetensors"))


@pytest.fixture
def saved(tmp_path) -> tuple[Path, nn.Module]:
    """A folder with the weights of a small network, as a training writes it, and the network."""
    model = build(CARD)
    for buffer in model.buffers():
        buffer.random_(1, 9)
    folder = tmp_path / "run"
    save_weights(folder / "weights.safetensors", model, CARD)
    return folder, model


@pytest.fixture
def published(saved, tmp_path, monkeypatch) -> Path:
    """A folder of published networks: "small" and "other"."""
    folder = tmp_path / "published"
    folder.mkdir()
    for name in ("small", "other"):
        for ending in ("safetensors", "json"):
            shutil.copy(saved[0] / f"weights.{ending}", folder / f"{name}.{ending}")
    monkeypatch.setattr(checkpoints, "PUBLISHED", folder)
    return folder


def change_card(folder: Path, **changes) -> None:
    path = folder / "weights.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def put_weights(folder: Path, content: bytes) -> None:
    """Write other weights and their true sha256 to the card."""
    (folder / "weights.safetensors").write_bytes(content)
    change_card(folder, sha256=hashlib.sha256(content).hexdigest())


# A round trip


def test_weights_and_buffers_come_back_bit_for_bit(saved):
    folder, model = saved
    loaded = load_pretrained(folder).state_dict()
    assert loaded.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype, name


def test_the_card_comes_back_with_the_checksum_of_the_weights(saved):
    folder, _ = saved
    checksum = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    assert read_card(folder) == CARD | {"sha256": checksum} and "sha256" not in CARD


def test_a_loaded_network_is_for_use_and_not_for_training(saved):
    model = load_pretrained(saved[0])
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_network_is_loaded_to_the_device_that_was_asked_for(saved):
    assert {tensor.device.type for tensor in load_pretrained(saved[0], "meta").state_dict().values()} == {"meta"}


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


def test_whoever_may_read_the_card_may_read_the_weights(saved):
    assert len({path.stat().st_mode for path in saved[0].iterdir()}) == 1


def test_a_folder_goes_by_its_path_or_its_name(saved, monkeypatch):
    folder, _ = saved
    monkeypatch.chdir(folder.parent)
    for name in (folder, str(folder), folder.name, f"{folder}/"):
        assert find_weights(name).resolve() == folder / "weights.safetensors"


def test_a_published_network_goes_by_its_name(published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_weights("small") == published / "small.safetensors"
    assert read_card("small")["network"] == "classifier.Classifier"
    assert torch.equal(load_pretrained("small").head.weight, load_file(published / "small.safetensors")["head.weight"])


def test_a_path_is_a_folder_even_where_a_published_network_has_its_name(published, saved, monkeypatch):
    folder, _ = saved
    shutil.copytree(folder, folder.parent / "small")
    monkeypatch.chdir(folder.parent)
    assert find_weights(Path("small")) == Path("small") / "weights.safetensors"
    assert find_weights("small") == published / "small.safetensors"


def test_loading_takes_no_global_random_numbers(saved):
    before = torch.get_rng_state()
    load_pretrained(saved[0])
    assert torch.equal(torch.get_rng_state(), before)


# What does not fit


@pytest.mark.parametrize("function", [find_weights, read_card, load_pretrained])
@pytest.mark.parametrize("name", ["unknown", "", "weights", "no/such/folder", "small.safetensors"])
def test_an_unknown_name_is_an_error_that_lists_what_is_published(published, function, name, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(WeightsError) as error:
        function(name)
    assert repr(name) in str(error.value) and "published are: other, small; " in str(error.value)
    assert "fmdiff train" in str(error.value)


def test_where_nothing_is_published_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "PUBLISHED", tmp_path)
    with pytest.raises(WeightsError, match="published are: none yet"):
        find_weights("small")


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
    assert str(path) in str(error.value) and "train anew" in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "no json", '{"network": "class', "\0" * 100])
def test_a_damaged_card_is_an_error_that_names_it(saved, content):
    path = saved[0] / "weights.json"
    path.write_text(content)
    for function in (read_card, load_pretrained):
        with pytest.raises(WeightsError, match="is missing or damaged") as error:
            function(saved[0])
        assert str(path) in str(error.value)


def test_a_card_in_another_encoding_is_an_error(saved):
    (saved[0] / "weights.json").write_bytes(b'{"network": "\xff"}')
    with pytest.raises(WeightsError, match="is missing or damaged"):
        read_card(saved[0])


def test_a_missing_card_is_an_error_that_names_it(saved):
    path = saved[0] / "weights.json"
    path.unlink()
    with pytest.raises(WeightsError, match="is missing or damaged") as error:
        load_pretrained(saved[0])
    assert str(path) in str(error.value)


@pytest.mark.parametrize("entry", ["network", "arguments", "sha256"])
def test_a_card_without_a_needed_entry_is_an_error_that_names_it(saved, entry):
    path = saved[0] / "weights.json"
    path.write_text(json.dumps({key: value for key, value in read_card(saved[0]).items() if key != entry}))
    with pytest.raises(WeightsError, match=entry):
        load_pretrained(saved[0])


@pytest.mark.parametrize("content", ["[]", "null", "3", '"text"'])
def test_json_that_is_no_card_is_an_error(saved, content):
    (saved[0] / "weights.json").write_text(content)
    with pytest.raises(WeightsError):
        load_pretrained(saved[0])


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


# Which networks


@pytest.mark.parametrize("name", ["os.system!", "unet.", ".UNet", "un et.UNet", "unet.U-Net", "unet.UNet "])
def test_a_network_that_is_no_name_is_an_error(name):
    with pytest.raises(WeightsError, match=r"expected MODULE\.CLASS of fmdiff_helpers\.models"):
        build({"network": name, "arguments": {}})


ODD = {
    "a module outside": "os.system",
    "a module with a dot": "os.path.join",
    "no module": "UNet",
    "nothing": "",
    "a relative module": "..cli.app",
    "not there": "unet.ConvNet",
    "an import": "unet.__import__",
    "a module inside": "unet.torch",
    "the class of modules": "unet.__class__",
    "the builtins": "unet.__builtins__",
    "a function": "layers.linear_attention",
    "a foreign class": "unet.Tensor",
    "a foreign function": "unet.rearrange",
}


@pytest.mark.parametrize("odd", ODD)
def test_a_network_that_is_no_network_of_ours_is_an_error(odd):
    with pytest.raises(WeightsError, match="network is "):
        build({"network": ODD[odd], "arguments": {}})


def test_a_foreign_function_is_not_called(monkeypatch):
    calls, module = [], ModuleType("fmdiff_helpers.models.odd")
    module.run = type("Run", (), {"__init__": lambda self, **arguments: calls.append(arguments)})
    monkeypatch.setitem(sys.modules, "odd", module)
    with pytest.raises((WeightsError, ImportError)):
        build({"network": "odd.run", "arguments": {"command": "true"}})
    assert calls == []


def test_arguments_that_the_network_does_not_take_are_an_error_that_names_them():
    with pytest.raises(WeightsError, match="widht"):
        build({"network": "classifier.Classifier", "arguments": {"widht": 3}})


@pytest.mark.parametrize(
    "network, arguments", [("unet.UNet", {"width": 8, "mults": [1, 2]}), ("classifier.Classifier", {"width": 2})]
)
def test_a_card_builds_its_network(network, arguments):
    model = build({"network": network, "arguments": arguments})
    assert isinstance(model, nn.Module) and type(model).__name__ == network.split(".")[1] and model.training


# Files whole or not at all


def test_a_file_is_replaced_whole_and_folders_are_made(tmp_path):
    path = tmp_path / "new" / "deep" / "file"
    for text in ("first", "second"):
        write(path, lambda file, text=text: file.write_text(text))
        assert path.read_text() == text and list(path.parent.iterdir()) == [path]


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


def test_readers_see_the_old_file_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_text("old")

    def slow(file):
        file.write_text("new")
        assert path.read_text() == "old" and file.parent == tmp_path and file.suffix != ".safetensors"

    write(path, slow)
    assert path.read_text() == "new"


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    log = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: log.append("fsync") or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *paths: log.append("replace") or replace(*paths))
    write(tmp_path / "file", lambda file: file.write_text("new"))
    assert log == ["fsync", "replace"]


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
    assert {"network", "arguments", "recipe", "sha256", "seconds", "device"} <= card.keys()
    assert card["recipe"]["steps"] > 0 and card["seconds"] > 0 and card["device"]
    assert find_weights(name).parent == checkpoints.PUBLISHED, "no folder of this name in the way"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_is_small(name):
    assert find_weights(name).stat().st_size <= 8 * 2**20


def test_each_published_file_has_its_partner():
    cards = sorted(path.stem for path in checkpoints.PUBLISHED.glob("*.json"))
    assert cards == PUBLISHED


def test_an_installed_package_says_where_the_published_networks_are(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "PUBLISHED", tmp_path / "data" / "weights")
    with pytest.raises(WeightsError, match=r"no weights 'unet': .* a copy of the repository, which has them in data"):
        load_pretrained("unet")
