"""The claims of fmdiff_helpers.cards: a card names only what is ours, is found by name, and old ones go on working."""

import json
import math
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from small_networks import saved, tiny_card
from small_training import old_form
from torch import nn

from fmdiff_helpers import cards
from fmdiff_helpers.cards import (
    WeightsError,
    build,
    build_process,
    find_weights,
    latent_shape,
    read_card,
    takes_labels,
    upgrade,
)
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.drawing import load_autoencoder
from fmdiff_helpers.recipes import CARDS

PUBLISHED = sorted(path.stem for path in cards.PUBLISHED.glob("*.json"))

# What the cards of version 0.1 held besides network, arguments and recipe -> kind, process, share of dropped labels
COSINE = {"beta": "cosine_beta", "T": 200}
DENOISER = "denoiser diffusion.Diffusion"
LATENT = {"label_dropout": 0.1, "autoencoder": {"name": "attention_autoencoder", "sha256": "12"}}
OLD = [
    ("unet.UNet", {"schedule": COSINE}, DENOISER, ("cosine_beta", 200, "eps")),
    (
        "unet.UNet",
        {"schedule": COSINE, "target": "v"} | LATENT,
        "denoiser diffusion.Diffusion",
        ("cosine_beta", 200, "v"),
    ),
    ("vae.VAE", {"beta": 0}, "autoencoder autoencoding.VariationalPrior", (0,)),
    ("attention_autoencoder.AttentionAutoencoder", {}, "autoencoder autoencoding.Reconstruction", ()),
    ("classifier.Classifier", {}, "classifier classification.Classification", ()),
]


# Cards of version 0.1


@pytest.mark.parametrize("network, special, kind_and_process, values", OLD)
def test_a_card_of_version_0_1_becomes_one_of_today(network, special, kind_and_process, values):
    recipe = {"batch_size": 128, "lr": 0.002, "clip": 100.0, "steps": 3000}
    old = {"network": network, "arguments": {"width": 32}, "recipe": recipe, "seconds": 7, "history": []} | special
    before, found = json.dumps(old), upgrade(old)
    assert list(found)[:7] == list(cards.KEYS) and json.dumps(old) == before and upgrade(found) == found
    kind, name = kind_and_process.split()
    names = ("beta", "T", "target") if len(values) == 3 else ("kl_weight",)
    assert found == {
        "kind": kind,
        "network": network,
        "arguments": {"width": 32},
        "process": {"name": name, **dict(zip(names, values, strict=False))},
        "label_dropout": special.get("label_dropout", 0.0),
        "autoencoder": special.get("autoencoder"),
        "recipe": {"batch_size": 128, "lr": 0.002, "max_grad_norm": 100.0, "steps": 3000},
        "seconds": 7,
        "history": [],
    }


NEW = {"encoder", "CARDS['encoder']", "shortcut_unet", "CARDS['shortcut_unet']", "reflow_unet"}  # version 0.1 had none


@pytest.mark.parametrize("name", sorted({*PUBLISHED, *(f"CARDS[{name!r}]" for name in CARDS)} - NEW))
def test_every_card_in_its_old_form_becomes_exactly_that_card(name):
    text = cards.PUBLISHED / f"{name}.json"
    card = json.loads(text.read_text()) if name in PUBLISHED else CARDS[name[7:-2]]
    old = old_form(card)
    assert "kind" not in old and upgrade(old) == card and list(upgrade(old)) == list(card)


def test_a_folder_of_version_0_1_is_read_and_loaded(tmp_path):
    model = saved("vae", tmp_path)
    path = tmp_path / "weights.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps(old_form(card)))
    assert read_card(tmp_path) == card
    assert torch.equal(load_pretrained(tmp_path).decoder[0].weight, model.decoder[0].weight)


# What a card names


ODD = [
    "os.system",
    "os.path.join",
    "os.system!",
    "UNet",
    "",
    "unet.",
    ".UNet",
    "un et.UNet",
    "unet.U-Net",
    "unet.UNet ",
]
ODD += ["..cli.app", "unet.ConvNet", "unet.__import__", "unet.torch", "unet.__class__", "unet.__builtins__"]
ODD += ["layers.linear_attention", "unet.Tensor", "unet.rearrange", "unet.TimeEmbedding", "unet.UNet "]


@pytest.mark.parametrize("odd", ODD)
def test_a_network_that_is_no_class_of_that_file_of_ours_is_an_error(odd):
    with pytest.raises(WeightsError, match=r"^the card names .*; expected MODULE\.CLASS of fmdiff_helpers\.models"):
        build({"network": odd, "arguments": {}})


def test_a_foreign_class_is_not_called(monkeypatch):
    calls = []
    for place in ("odd", "fmdiff_helpers.models.odd"):
        module = ModuleType(place)
        module.run = type("Run", (), {"__init__": lambda self, **arguments: calls.append(arguments)})
        monkeypatch.setitem(sys.modules, place, module)
    with pytest.raises(WeightsError):
        build({"network": "odd.run", "arguments": {"command": "true"}})
    assert calls == []


def test_a_card_builds_its_network_or_names_the_arguments_that_it_does_not_take():
    model = build({"network": "unet.UNet", "arguments": {"width": 8, "mults": [1, 2]}})
    assert isinstance(model, nn.Module) and type(model).__name__ == "UNet" and model.training
    with pytest.raises(WeightsError, match="widht"):
        build({"network": "classifier.Classifier", "arguments": {"widht": 3}})


def test_a_card_tells_whether_its_network_takes_labels_even_where_it_says_nothing_of_them():
    assert {name: takes_labels(card) for name, card in CARDS.items()} == {
        name: name in ("transformer", "latent_unet", "shortcut_unet", "patch_unet", "vector_denoiser") for name in CARDS
    }
    for name, usual in (("unet", False), ("patch_unet", True), ("transformer", True)):
        without = {key: value for key, value in CARDS[name]["arguments"].items() if key != "num_classes"}
        model = build(CARDS[name] | {"arguments": without})
        found = takes_labels(CARDS[name] | {"arguments": without})
        assert found is usual and any("label" in key for key, _ in model.named_parameters()) is usual, name


def test_the_shape_of_a_cards_latents_is_known_without_weights_or_random_numbers():
    before, vae = torch.get_rng_state(), CARDS["vae"]
    assert latent_shape(vae) == (4, 7, 7) and latent_shape(CARDS["attention_autoencoder"]) == (1, 8, 8)
    assert latent_shape(vae | {"arguments": {"channels": 5, "grid": 1}}) == (5, 1, 1)
    assert torch.equal(torch.get_rng_state(), before)


# Where a card is


@pytest.fixture
def published(tmp_path, monkeypatch) -> Path:
    """A folder of published networks, "small" and "other", beside the folder "run" of a training."""
    folder = tmp_path / "published"
    saved("classifier", tmp_path / "run")
    folder.mkdir()
    for name in ("small", "other"):
        for ending in ("safetensors", "json"):
            shutil.copy(tmp_path / "run" / f"weights.{ending}", folder / f"{name}.{ending}")
    monkeypatch.setattr(cards, "PUBLISHED", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_name_means_what_is_published_or_a_folder_and_is_refused_if_it_is_both(published, tmp_path):
    folder = tmp_path / "run"
    for name in (folder, str(folder), "run", f"{folder}/", "./run", folder / "weights.safetensors"):
        assert find_weights(name).resolve() == folder / "weights.safetensors"
    assert find_weights("small") == find_weights(published / "small.safetensors") == published / "small.safetensors"
    shutil.copytree(folder, tmp_path / "small")
    for place in ("./small", Path("small"), tmp_path / "small", str(tmp_path / "small")):
        assert find_weights(place).resolve() == tmp_path / "small" / "weights.safetensors"
    with pytest.raises(WeightsError) as error:
        load_pretrained("small")
    assert f"say ./small for the folder, or {published / 'small.safetensors'} for the published" in str(error.value)


def test_what_has_a_slash_is_never_a_published_network(published):
    for place in ("./small", Path("small"), f"{published.parent}/small"):
        with pytest.raises(WeightsError, match="there are no weights"):
            find_weights(place)


def test_a_folder_may_have_the_ending_of_a_file(published, tmp_path):
    shutil.copytree(tmp_path / "run", tmp_path / "mine.safetensors")
    for name in ("mine.safetensors", "./mine.safetensors/"):
        assert find_weights(name) == Path("mine.safetensors/weights.safetensors")


def test_an_autoencoder_that_a_card_names_is_the_published_one_whatever_folders_are_here(published, tmp_path):
    shutil.copytree(tmp_path / "run", tmp_path / "small")
    assert cards.published_first("small") == published / "small.safetensors"
    assert [cards.published_first(name) for name in ("./small", "run")] == ["./small", "run"]


def test_a_folder_whose_training_has_no_weights_yet_is_told_from_one_that_has_none(published, tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "checkpoint.pt").touch()
    with pytest.raises(WeightsError, match="the training in 'begun' has no weights yet, or lost them; run its"):
        find_weights("begun")


@pytest.mark.parametrize("function", [find_weights, read_card, load_pretrained])
@pytest.mark.parametrize("name", ["unknown", "", "weights", "no/such/folder", "small.safetensors"])
def test_an_unknown_name_is_an_error_that_lists_what_is_published(published, function, name):
    with pytest.raises(WeightsError) as error:
        function(name)
    assert repr(name) in str(error.value) and "published are: other, small; " in str(error.value)
    assert "fmdiff train" in str(error.value)


def test_where_nothing_is_published_the_error_says_so_and_an_installed_package_says_where_they_are(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(cards, "PUBLISHED", tmp_path)
    with pytest.raises(WeightsError, match="published are: none yet"):
        find_weights("small")
    monkeypatch.setattr(cards, "PUBLISHED", tmp_path / "data" / "weights")
    with pytest.raises(WeightsError, match=r"no weights 'unet': .* a copy of the repository, which has them in data"):
        load_pretrained("unet")


OLD = '{"network": "vae.VAE", "arguments": {}, "sha256": "0", '


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"no json", b'{"network": "class', b"\0" * 100, b'{"network": "\xff"}', None, b"null", b"3"),
        *(f"{OLD}{entry}}}".encode() for entry in ('"autoencoder": "vae"', '"recipe": null', '"schedule": 3')),
    ],
)
def test_a_damaged_or_missing_card_is_an_error_that_names_it(published, content):
    path = published.parent / "run" / "weights.json"
    path.unlink() if content is None else path.write_bytes(content)
    for function in (read_card, load_pretrained):
        with pytest.raises(WeightsError, match="is missing or damaged") as error:
            function("run")
        assert str(path.relative_to(published.parent)) in str(error.value)


@pytest.mark.parametrize("entry", ["network", "arguments", "sha256", "process", "label_dropout", "autoencoder"])
def test_a_card_that_lacks_an_entry_is_an_error_that_names_it(published, entry):
    path = published.parent / "run" / "weights.json"
    path.write_text(json.dumps({key: value for key, value in read_card("run").items() if key != entry}))
    with pytest.raises(WeightsError, match=f"is no card: it lacks {entry};"):
        load_pretrained("run")
    for content in ("[]", '"text"', '["network", "arguments", "sha256"]'):
        path.write_text(content)
        with pytest.raises(WeightsError, match="is no card"):
            read_card("run")


# Odd entries


DELETED = object()
WHOLE = "expected a whole number from"
OWN = {"pictures": "x", "number": 50, "held_out": 10, "shape": [3, 16, 16], "kinds": [], "sha256": "0"}
NO_CLASS = "expected MODULE.CLASS of fmdiff_helpers"
ODD_ENTRIES = [
    # network, the way to an entry, its new value, what the error says of it
    ("unet", "kind", "painter", "kind is 'painter'; expected 'denoiser', because unet.UNet is one"),
    ("unet", "kind", "classifier", "kind is 'classifier'; expected 'denoiser'"),
    ("vae", "kind", None, "kind is None; expected 'autoencoder'"),
    ("unet", "network", 3, "network is 3; expected a text"),
    ("unet", "network", ["unet.UNet"], r"network is \['unet.UNet'\]; expected a text"),
    ("unet", "network", "os.system", f"names 'os.system'; {NO_CLASS}.models"),
    ("unet", "network", "x" * 10_000, r"network is 'x{12}\.\.\.x{13}'; expected a text of at most 100"),
    ("unet", "network", "unet.ResNetBlock", "expected 'part of a network', because unet.ResNetBlock is one"),
    ("unet", "network", "classifier.Classifier", "kind is 'denoiser'; expected 'classifier', because classifier.Cl"),
    ("unet", "arguments", None, "arguments is None; expected a dict"),
    ("unet", "arguments", [["width", 8]], r"arguments is \[\['width', 8\]\]; expected a dict"),
    ("unet", "arguments.self", 1, "unet.UNet takes no 'self'; expected width, mults, patch, depth"),
    ("unet", "arguments.width", "8", f"width is '8'; {WHOLE} 1 to 4096"),
    ("unet", "arguments.width", 8.0, f"width is 8.0; {WHOLE} 1 to 4096"),
    ("unet", "arguments.width", True, f"width is True; {WHOLE} 1 to 4096"),
    ("unet", "arguments.width", None, f"width is None; {WHOLE} 1 to 4096"),
    ("unet", "arguments.width", -8, f"width is -8; {WHOLE} 1 to 4096"),
    ("unet", "arguments.width", 10**9, f"width is 1000000000; {WHOLE} 1 to 4096"),
    ("unet", "arguments.depth", 10**6, f"depth is 1000000; {WHOLE} 1 to 32"),
    ("unet", "arguments.mults", 1, "mults is 1; expected a list of 1 to 8 whole numbers"),
    ("unet", "arguments.mults", [], r"mults is \[\]; expected a list of 1 to 8 whole numbers"),
    ("unet", "arguments.mults", [1] * 9, r"mults is \[1, 1, .*\]; expected a list of 1 to 8 whole numbers"),
    ("unet", "arguments.mults", [1, [2]], rf"mults is \[2\]; {WHOLE} 1 to 64"),
    ("unet", "arguments.num_classes", 3, "num_classes is 3; expected 0 or 10"),
    ("unet", "arguments.T", 1, f"T is 1; {WHOLE} 2 to 100000"),
    ("unet", "arguments.T", 100, "T of the network is 100; expected 200, as the process has"),
    ("transformer", "arguments.num_classes", 0, "num_classes is 0; expected 10"),
    ("transformer", "arguments.attention", {}, "attention is {}; expected a text"),
    ("patch_unet", "arguments.attention", "yes", "attention is 'yes'; expected true or false"),
    ("patch_unet", "arguments.dropout", math.nan, "dropout is nan; expected a number from 0 to 1,000,000"),
    ("unet", "process", "diffusion.Diffusion", "process is 'diffusion.Diffusion'; expected a dict"),
    ("unet", "process.name", DELETED, "the name of the process is None; expected a text"),
    ("unet", "process.name", "diffusion.draw_noise", f"names 'diffusion.draw_noise'; {NO_CLASS}.processes"),
    ("unet", "process.name", "autoencoding.Reconstruction", "kind is 'denoiser'; expected 'autoencoder', because auto"),
    ("unet", "process.T", DELETED, "diffusion.Diffusion needs T, which is missing"),
    ("unet", "process.T", 10**12, f"T is 1000000000000; {WHOLE} 2 to 100000"),
    ("unet", "process.T", [200], rf"T is \[200\]; {WHOLE} 2 to 100000"),
    ("unet", "process.card", {}, "diffusion.Diffusion takes no 'card'; expected beta, T, target"),
    ("unet", "process.beta", ["cosine_beta"], r"beta is \['cosine_beta'\]; expected a text"),
    ("vae", "process.kl_weight", "0.1", "kl_weight is '0.1'; expected a number from 0"),
    ("vae", "process.kl_weight", math.inf, "kl_weight is inf; expected a number from 0"),
    ("classifier", "process.T", 5, "classification.Classification takes no 'T'; expected no arguments"),
    ("unet", "label_dropout", "0.1", "label_dropout is '0.1'; expected a number"),
    ("unet", "label_dropout", 1.5, "label_dropout is 1.5; expected a share from 0 to 1"),
    ("unet", "autoencoder", "vae", r"autoencoder is 'vae'; expected null, or \{"),
    ("unet", "autoencoder", {"name": "vae"}, r"autoencoder is \{'name': 'vae'\}; expected null, or \{"),
    ("unet", "autoencoder", {"name": 3, "sha256": "0"}, "autoencoder: name is 3; expected the name of"),
    ("unet", "autoencoder", {"name": "a" * 300, "sha256": "0"}, r"name is 'a+\.\.\.a+'; expected the name of"),
    ("unet", "process.beta", "b" * 101, r"beta is 'b+\.\.\.b+'; expected a text of at most 100 characters"),
    ("vae", "autoencoder", {"name": "vae", "sha256": "0"}, "expected null, because the kind is 'autoencoder'"),
    ("unet", "recipe", "fast", "recipe is 'fast'; expected a dict"),
    ("unet", "recipe.lr", "1e-3", "recipe: 'lr' is '1e-3'; expected a number"),
    ("unet", "recipe.lr", -math.inf, "recipe: 'lr' is -inf; expected a number"),
    ("unet", "data", 7, "data is 7; expected a text, or a dict with pictures, number, held_out, shape, kinds, sha256"),
    ("unet", "data", OWN | {"path": "x"}, r"data is \{.*\}; expected a text, or a dict with pictures"),
    ("unet", "data", OWN | {"number": 0}, "data: number is 0; expected a whole number from 1"),
    ("unet", "data", OWN | {"held_out": True}, "data: held_out is True; expected a whole number"),
    ("unet", "data", OWN | {"shape": [2, 16, 16]}, r"data: shape is \[2, 16, 16\]; expected \[1 or 3, height, width\]"),
    ("unet", "data", OWN | {"shape": [3, 16, 999]}, "shape is .*999.*; expected .* of at most 64 pixels"),
    ("unet", "data", OWN | {"shape": 3}, "data: shape is 3; expected"),
    ("unet", "data", OWN | {"kinds": ["a", "a"]}, "data: kinds is .*; expected a list of at most 1000 different names"),
    ("unet", "data", OWN | {"kinds": [["a"]]}, r"data: a name is \['a'\]; expected a text"),
    (
        "unet",
        "data",
        OWN | {"pictures": "../x"},
        "data: a name is '../x'; expected a text of 1 to 255 characters that can",
    ),
    ("unet", "data", OWN | {"sha256": "z"}, "data: sha256 is 'z'; expected at most 64 hexadecimal digits"),
    ("patch_unet", "data", OWN, "num_classes is 10; expected 0"),
    ("patch_unet", "data", OWN | {"kinds": ["a", "b"]}, "num_classes is 10; expected 2"),
    ("unet", "sha256", 7, "sha256 is 7; expected at most 64 hexadecimal digits"),
    ("unet", "sha256", "a\nb", r"sha256 is 'a\\nb'; expected at most 64 hexadecimal digits"),
    ("unet", "autoencoder", {"name": "vae", "sha256": []}, r"autoencoder: sha256 is \[\]; expected at most 64 hex"),
]


def written(folder: Path, name: str, way: str, value: object) -> Path:
    """Write a tiny network whose card has one other entry; return the card's path."""
    saved(name, folder)
    path = folder / "weights.json"
    card = parent = json.loads(path.read_text())
    *parts, last = way.split(".")
    for part in parts:
        parent = parent[part]
    parent[last] = value
    if value is DELETED:
        del parent[last]
    path.write_text(json.dumps(card))
    return path


@pytest.mark.parametrize("name, way, value, words", ODD_ENTRIES)
def test_an_odd_entry_is_an_error_of_one_line_that_names_file_entry_and_value(tmp_path, name, way, value, words):
    path = written(tmp_path, name, way, value)
    for function in (read_card, load_pretrained, load_autoencoder):
        with pytest.raises(WeightsError, match=words) as error:
            function(tmp_path)
        message = str(error.value)
        assert message.startswith(str(path)) and "get the file again" in message
        assert "\n" not in message and len(message) < len(str(path)) + 250


@pytest.mark.parametrize(
    "name, way, value, words",
    [
        ("unet", "process.beta", "ramp", "beta is 'ramp'; expected one of linear_beta, .*, cosine_beta"),
        ("unet", "process.target", "y", "target is 'y'; expected one of eps, x0, v"),
        ("transformer", "arguments.heads", 3, "dim is 8 and heads 3; expected heads that divide dim"),
        ("unet", "arguments.width", 7, "dim of the time is 7; expected an even number"),
        (
            "unet",
            "arguments",
            {"width": 4096, "mults": [64]},
            "the number of its weights is .*; expected at most 100,0",
        ),
        ("vae", "arguments.width", 1, "width is 1; expected at least 2"),
        ("attention_autoencoder", "arguments.width", 4, "width is 4; expected at least 8"),
    ],
)
def test_what_cannot_be_built_is_an_error_of_one_line_that_names_the_value(tmp_path, name, way, value, words):
    written(tmp_path, name, way, value)
    with pytest.raises(WeightsError, match=f"cannot be built \\({words}.*\\); correct its card$") as error:
        build_process(read_card(tmp_path)) if way.startswith("process") else build(read_card(tmp_path))
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_deeply_nested_card_is_an_error_that_names_it(tmp_path):
    path = written(tmp_path, "unet", "arguments", {})
    path.write_text("[" * 100_000)
    with pytest.raises(WeightsError, match="is missing or damaged"):
        read_card(tmp_path)


@pytest.mark.parametrize("entry", [{"schedule": 3}, {"schedule": "cosine"}, {"recipe": "fast"}, {"recipe": None}])
def test_an_odd_entry_of_an_old_card_is_an_error_that_names_it(tmp_path, entry):
    ((key, value),) = entry.items()
    path = written(tmp_path, "unet", "kind", DELETED)
    path.write_text(json.dumps(old_form(json.loads(path.read_text()) | {"kind": "denoiser"}) | entry))
    with pytest.raises(WeightsError, match=f"{key} is {value!r}; expected a dict"):
        read_card(tmp_path)


# The way to an autoencoder


def test_an_autoencoder_that_is_named_as_it_was_typed_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vae = saved("vae", Path("vaes/mine"), seed=1)
    about = {"name": "vaes/mine", "sha256": read_card("vaes/mine")["sha256"]}
    saved("latent_unet", Path("mine"), autoencoder=about)
    assert read_card("mine")["autoencoder"] == about
    assert torch.equal(load_autoencoder("mine").scale, vae.scale)


def test_where_there_is_no_way_to_an_autoencoder_its_absolute_path_is_written(tmp_path, monkeypatch):
    def other_drive(path, start):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    about = {"name": str(tmp_path / "vae"), "sha256": "12"}
    assert cards.with_relative_path(tiny_card("latent_unet", autoencoder=about), tmp_path / "unet")["autoencoder"] == {
        "name": "./../vae",
        "sha256": "12",
    }
    monkeypatch.setattr(os.path, "relpath", other_drive)
    saved("latent_unet", tmp_path / "unet", autoencoder=about)
    assert json.loads((tmp_path / "unet" / "weights.json").read_text())["autoencoder"] == about
