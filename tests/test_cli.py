"""The claims of fmdiff_helpers.cli: each command does what its options say, and fails in one clear line.

What networks draw is compared with `load_drawer`, which has tests of its own.
"""

import hashlib
import http.client
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image
from typer.testing import CliRunner

from fmdiff_helpers import (
    cards,
    cli,
    data,
    evaluation,
    export,
    latent_paths,
    latent_plots,
    leaderboard,
    metrics,
    recipes,
    results,
    showing,
)
from fmdiff_helpers.arguments import seeds_for
from fmdiff_helpers.checkpoints import load_pretrained, save_weights
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.recipes import cosine, new_card, profiles
from fmdiff_helpers.standin import draw_garments


def fmdiff(arguments: str):
    """Run the command in this process; an unexpected error is raised here."""
    return CliRunner().invoke(cli.app, shlex.split(arguments), catch_exceptions=False)


def check_refused(folder: Path, arguments: str, said: str, code: int = 2) -> None:
    """Check the exit code, that one line on stderr says what is wrong, and that nothing was written."""
    before = sorted(folder.rglob("*"))
    result = fmdiff(arguments)
    assert result.exit_code == code and result.stdout == ""
    (line,) = result.stderr.split("\r")[-1].splitlines()  # a progress bar erases itself
    assert line.startswith("fmdiff: ") and said in line
    assert sorted(folder.rglob("*")) == before


def test_help_says_what_each_command_does():
    result = fmdiff("--help")
    purposes = {
        "lab": "Open a lesson",
        "data": "Download Fashion-MNIST",
        "train": "Train a network",
        "sample": "Draw samples",
        "show": "Draw what happens in the latent space",
        "evaluate": "Compare samples",
    }
    help = " ".join(result.output.split())
    assert result.exit_code == 0 and all(f"{name} " in help and said in help for name, said in purposes.items())
    assert fmdiff("").output == result.output
    result = fmdiff("dta")
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1 and "fmdiff: No such command" in result.stderr


# fmdiff data


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """A folder, named by FMDIFF_DATA, with four small files instead of those of Fashion-MNIST."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in data.ALL_FILES:
        (raw / name).write_bytes(name.encode())
    checksums = {name: hashlib.md5(name.encode(), usedforsecurity=False).hexdigest() for name in data.ALL_FILES}
    monkeypatch.setattr(data, "ALL_FILES", checksums)
    monkeypatch.setattr(data, "download", lambda raw, names: pytest.fail(f"downloads {names}"))
    monkeypatch.setenv("FMDIFF_DATA", str(tmp_path))
    return raw


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


def test_data_says_that_all_is_intact_or_lists_each_bad_file_and_repair_downloads_only_those(small, mirror):
    names = list(data.ALL_FILES)
    for arguments in ("data", "data --repair"):
        result = fmdiff(arguments)
        assert result.exit_code == 0 and result.stderr == "" and mirror == []
        assert str(small) in result.stdout and "all four files intact" in result.stdout
    (small / names[0]).write_bytes(b"damaged")
    (small / names[2]).unlink()
    result = fmdiff("data")
    assert result.exit_code == 1 and result.stdout == ""
    damaged, missing = result.stderr.splitlines()
    assert f"{small / names[0]} is damaged" in damaged and f"{small / names[2]} is missing" in missing
    assert "uv run fmdiff data --repair" in damaged
    result = fmdiff("data --repair")
    assert result.exit_code == 0 and "intact" in result.stdout and mirror == [names[0], names[2]]


def test_data_without_the_folder_fails_in_one_line_and_repair_makes_it(small, mirror, tmp_path, monkeypatch):
    for name in ("~nobody at all", str(tmp_path / "new")):
        monkeypatch.setenv("FMDIFF_DATA", name)
        check_refused(tmp_path, "data", f"FMDIFF_DATA is {name}", code=1)
        check_refused(tmp_path, "evaluate classifier", f"FMDIFF_DATA is {name}", code=1)
    assert fmdiff("data --repair").exit_code == 0
    assert sorted(path.name for path in data.raw_folder().iterdir()) == sorted(data.ALL_FILES)


def test_repair_of_a_damaged_packed_file_puts_an_intact_one_beside_it(small, mirror):
    name = next(iter(data.ALL_FILES))
    (small / name).rename(small / f"{name}.gz")
    assert fmdiff("data").exit_code == 1
    assert fmdiff("data --repair").exit_code == 0 and mirror == [name]


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
def test_without_a_network_repair_fails_in_one_line_and_keeps_the_files(small, monkeypatch, error, line):
    def download(raw, names):
        raise error

    monkeypatch.setattr(data, "download", download)
    name = next(iter(data.ALL_FILES))
    (small / name).write_bytes(b"damaged")
    check_refused(small, "data --repair", f"fmdiff: {line}", code=1)
    assert (small / name).read_bytes() == b"damaged"


def test_data_without_a_network_is_exit_code_1_with_the_notice(small, monkeypatch):
    monkeypatch.setattr(data, "download", lambda raw, names: (_ for _ in ()).throw(OSError("no network")))
    shutil.rmtree(small)
    small.mkdir()
    result = fmdiff("data")
    assert result.exit_code == 1 and "NOT Fashion-MNIST" in result.stderr and "(no network)" in result.stderr
    assert "intact" not in result.stdout


# The tiny networks that the other commands use


def write_network(path: Path, card: dict) -> str:
    """Write a tiny network with random weights, as if it were trained; return its sha256."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cards.build(card)
        for parameter in model.parameters():  # an untrained denoiser predicts zeros everywhere
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
    if hasattr(model, "latent_shape"):
        model.shift.fill_(0.25)
        model.scale.fill_(0.5)
    save_weights(path, model, card)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def denoiser(network: str, arguments: dict, target: str, T: int = 8, **more) -> dict:
    return new_card("denoiser", network, arguments, cosine(T, target), {}, **more)


TRANSFORMER = {"dim": 16, "depth": 1, "heads": 2, "ff_dim": 16, "num_classes": 10}
UNET = {"width": 8, "mults": [1], "num_classes": 10}


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Path:
    """A folder with published networks, in `published`, and with those of trainings, in `here`.

    All denoisers have 8 steps, only "longer" has 9. "tiny" and "usual" take no labels. "my_patch" has also learned
    without labels. "my_unet" is in the latent of "my_vae", and "my_denoiser" in that of "my_autoencoder".
    """
    folder = tmp_path_factory.mktemp("networks")
    unet = {"width": 8, "mults": [1, 2], "patch": 2, "depth": 1, "block": "resnet", "num_classes": 0}
    classifier, contrast = {"name": "classification.Classification"}, {"name": "contrast.Contrast", "temperature": 0.2}
    published = {
        "tiny": denoiser("unet.UNet", unet, "eps"),
        "labelled": denoiser("transformer.Transformer", TRANSFORMER | {"patch": 7}, "x0"),
        "classifier": new_card("classifier", "classifier.Classifier", {"width": 4, "num_classes": 10}, classifier, {}),
        "encoder": new_card("encoder", "encoder.Encoder", {"width": 4, "directions": 4}, contrast, {}),
    }
    for name, card in published.items():
        write_network(folder / "published" / f"{name}.safetensors", card)
    prior = {"name": "autoencoding.VariationalPrior", "kl_weight": 0.01}
    reconstruction = {"name": "autoencoding.Reconstruction"}
    autoencoder = ("attention_autoencoder.AttentionAutoencoder", {"width": 8})
    latent, vector = UNET | {"patch": 1, "channels": 2}, TRANSFORMER | {"image_size": 8, "patch": 4}
    trained = {
        "my_vae": new_card("autoencoder", "vae.VAE", {"width": 4, "channels": 2}, prior, {}),
        "my_autoencoder": new_card("autoencoder", *autoencoder, reconstruction, {}),
        "my_unet": denoiser("unet.UNet", latent, "v", autoencoder="my_vae"),
        "weak_unet": denoiser("unet.UNet", latent | {"width": 16}, "v", autoencoder="my_vae"),
        "my_denoiser": denoiser("transformer.Transformer", vector, "v", autoencoder="my_autoencoder"),
        "my_patch": denoiser("patch_unet.PatchUNet", UNET | {"mults": [1, 2]}, "v", label_dropout=0.1),
        "weaker": denoiser("unet.UNet", UNET, "eps"),
        "longer": denoiser("unet.UNet", UNET, "eps", T=9),
    }
    checksums = {None: None}
    for name, card in trained.items():
        there = card["autoencoder"]
        card["autoencoder"] = {"name": there, "sha256": checksums[there]} if there else None
        checksums[name] = write_network(folder / "here" / name / "weights.safetensors", card)
    return folder


@pytest.fixture
def here(networks, tmp_path, monkeypatch) -> Path:
    """The working folder: a copy of all these networks."""
    shutil.copytree(networks, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(cards, "PUBLISHED", tmp_path / "published")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def garments(monkeypatch) -> dict[str, list[torch.Tensor]]:
    """A few drawn garments and their labels instead of the splits of the dataset, on the device of this process."""
    device = PartialState().device
    drawn = {"train": draw_garments(300, seed=0), "test": draw_garments(250, seed=1)}
    drawn["validation"] = [part[-60:] for part in drawn["train"]]
    splits = {split: [part.to(device) for part in parts] for split, parts in drawn.items()}
    for module in (data, leaderboard, evaluation, showing):
        monkeypatch.setattr(module, "load_fashion_mnist", lambda split, device="cpu": splits[split])
    return splits


def drawn(name: str, n: int, seed: int = 0, label: int | None = None, **request) -> torch.Tensor:
    """Return the images that a network draws, uint8 (n, 1, 28, 28): all kinds in turn, or only the kind `label`."""
    drawer = load_drawer(name, **request, device=PartialState().device)
    y = drawer.all_kinds(n) if label is None else torch.full((n,), label)
    return data.to_uint8(drawer.draw(n, seed, y)).cpu()


def read_npz(arguments: str) -> dict[str, np.ndarray]:
    """Return the arrays that `fmdiff sample` writes."""
    assert fmdiff(f"sample {arguments} -o new/x.npz").exit_code == 0
    with np.load("new/x.npz") as arrays:
        return dict(arrays)


# fmdiff sample


@pytest.mark.parametrize(
    "name, options, request_",
    [
        ("tiny", "", {}),
        ("tiny", "--steps 4", {"num_steps": 4}),
        ("labelled", "--steps 2 --label 'ankle boot'", {"num_steps": 2, "label": 9}),
        ("my_vae", "", {}),
        ("my_unet", "--label 3", {"label": 3}),
        ("my_denoiser", "--steps 3", {"num_steps": 3}),
        ("tiny", "--eta 0", {"eta": 0.0}),
        ("my_patch", "--guidance 2.5", {"guidance": 2.5}),
        ("my_patch", "--guidance 2 --guide weaker", {"guidance": 2, "guide": "weaker"}),
        ("my_patch", "--guidance 2 --interval 3 5", {"guidance": 2, "interval": (3, 5)}),
        ("my_unet", "--guidance 2 --guide weak_unet --steps 3", {"guidance": 2, "guide": "weak_unet", "num_steps": 3}),
    ],
)
def test_samples_are_what_the_options_say(here, name, options, request_):
    found = read_npz(f"{name} -n 12 --seed 5 {options}")
    assert np.array_equal(found["images"], drawn(name, 12, 5, **request_)[:, 0])
    takes_labels = name not in ("tiny", "my_vae")
    kinds = [request_["label"]] * 12 if "label" in request_ else [*range(10), 0, 1]
    assert found.get("labels", np.array(None)).tolist() == (kinds if takes_labels else None)
    for option in request_:  # each of them matters
        fewer = {key: value for key, value in request_.items() if key != option}
        if option == "guidance" or (option == "guide" and name == "my_unet"):
            fewer = {key: value for key, value in request_.items() if key == "num_steps"}
        assert not np.array_equal(found["images"], drawn(name, 12, 5, **fewer)[:, 0])


def test_without_options_64_samples_of_seed_0_are_written_as_a_grid(here):
    assert fmdiff("sample my_vae").stdout == "64 images in samples.png\n"
    with Image.open("samples.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(export.grid(drawn("my_vae", 64))))


@pytest.mark.parametrize("ending", [".png", ".npz", ".gif", ".webp"])
def test_the_same_seed_gives_the_same_bytes_and_guidance_1_no_others(here, ending):
    for name, options in {"a": "", "b": "", "c": "--guidance 1"}.items():
        assert fmdiff(f"sample my_patch -n 4 --steps 2 {options} -o {name}{ending}").exit_code == 0
    a, b, c = (Path(f"{name}{ending}").read_bytes() for name in "abc")
    assert a == b == c


@pytest.mark.parametrize("ending", [".PNG", ".Npz", ".GIF", ".WebP"])
def test_an_ending_in_any_case_means_the_same(here, ending):
    for name in (f"up{ending}", f"low{ending.lower()}"):
        assert fmdiff(f"sample tiny -n 4 -o {name}").exit_code == 0
    assert Path(f"up{ending}").read_bytes() == Path(f"low{ending.lower()}").read_bytes()


@pytest.mark.parametrize("name, columns", [("tiny", None), ("my_unet", 10)])
def test_an_animation_shows_each_step_decoded_and_at_last_the_images(here, name, columns):
    drawer, frames = load_drawer(name, device=PartialState().device), []
    y = drawer.all_kinds(12)
    images = drawer.draw(12, 0, y, watch=lambda step: frames.append(drawer.decode(step.xt)))
    for ending in (".webp", ".gif"):
        assert fmdiff(f"sample {name} -n 12 --out x{ending}").exit_code == 0
    with Image.open("x.webp") as animation, Image.open("x.gif") as other:
        assert animation.n_frames == other.n_frames == len(frames) + 1 == 9
        for k, frame in enumerate([*frames, images]):
            animation.seek(k)  # Pillow misreads a .gif whose frames have tables of their own
            expected = export.grid(data.to_uint8(frame), columns)
            assert np.array_equal(np.asarray(animation.convert("L")), np.asarray(expected))


def test_an_animation_of_many_steps_has_at_most_30_of_them_evenly_spaced_and_100_images(here):
    card = cards.read_card("tiny") | {"process": cosine(100, "eps")}
    save_weights(Path("many/weights.safetensors"), load_pretrained("tiny"), card)
    assert fmdiff("sample many -n 1 --out x.webp").exit_code == 0
    drawer, frames = load_drawer("many", device=PartialState().device), []
    frames.append(drawer.draw(1, watch=lambda step: frames.append(step.xt)))
    with Image.open("x.webp") as animation:
        assert animation.n_frames == 26
        for k, frame in enumerate([*frames[:100:4], frames[-1]]):
            animation.seek(k)
            expected = export.grid(data.to_uint8(frame))
            assert np.array_equal(np.asarray(animation.convert("L")), np.asarray(expected))
    check_refused(here, "sample tiny -n 101 --out y.gif", "-n is 101; expected at most 100 for an animation")
    assert fmdiff("sample tiny -n 100 --steps 1 --out y.gif").exit_code == 0
    assert len(read_npz("tiny -n 101 --steps 1")["images"]) == 101


@pytest.mark.parametrize("options, columns", [("", 10), ("--label Bag", None), ("--grid", 10)])
def test_in_a_grid_of_all_kinds_each_has_its_column_and_if_wanted_its_name(here, options, columns):
    assert fmdiff(f"sample labelled -n 23 --steps 2 -o x.png {options}").exit_code == 0
    expected = export.grid(drawn("labelled", 23, num_steps=2, label=None if columns else 8), columns)
    expected = export.headed(expected, data.CLASS_NAMES) if options == "--grid" else expected
    with Image.open("x.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(expected))


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_processes_one_writes_and_one_complains(here, monkeypatch, rank):
    """`accelerate launch` gives each process a number, RANK."""
    monkeypatch.setenv("RANK", rank)
    result = fmdiff("sample tiny -n 4 --out x.gif")
    assert result.exit_code == 0 and Path("x.gif").exists() == bool(result.stdout) == (rank == "0")
    result = fmdiff("sample tiny --label Dress")
    assert result.exit_code == 2 and ("label is 'Dress'" in result.stderr) == (rank == "0")


def test_every_kind_has_its_name_and_its_number(here):
    drawer = load_drawer("labelled")
    for number, name in enumerate(data.CLASS_NAMES):
        for label in (name, name.upper(), str(number)):
            assert drawer.one_kind(label, 2).tolist() == [number] * 2


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("tiny -n 0", "-n is 0; expected at least 1"),
        ("tiny -n -5", "-n is -5; expected at least 1"),
        ("tiny -n 1000000000 -o x.npz", "-n is 1000000000; expected at most 60,000 images"),
        ("tiny -n 10001", "-n is 10001; expected at most 10,000 for a picture; a .npz may hold more"),
        (f"tiny -n {'9' * 400}", "expected at most 10,000"),
        (f"tiny -n -{'9' * 400}", "expected at least 1"),
        ("tiny -n x", "Invalid value for '-n': "),
        ("tiny --seed -1", "Invalid value for '--seed': "),
        (f"tiny --out {'x' * 300}.png", "name a file in a folder that you may write to"),
        (f"tiny --out {'x' * 240}.png", "name a file in a folder that you may write to"),
        (f"tiny --out {'a/' * 3000}x.png", "name a file in a folder that you may write to"),
        ("tiny --out pipe.png", "--out is pipe.png; name a file in a folder that you may write to"),
        ("x" * 300, "File name too long"),
        ("", "Missing argument"),
        ("tiny --nothing", "No such option: --nothing"),
        ("tiny --out x.jpg", "'.jpg'; expected one of .png, .gif, .webp, .npz"),
        ("tiny --out x", "''; expected one of .png, .gif, .webp, .npz"),
        ("tiny --out folder.png", "--out is folder.png, which is a folder; name a file"),
        ("tiny --out file/x.webp", f"--out is {Path('file/x.webp')}; name a file in a folder that you may write to"),
        ("my_vae -o x.gif", "'my_vae' draws in one step, with nothing to animate; let --out end in .png or .npz"),
        ("my_vae -o x.webp", "'my_vae' draws in one step"),
        ("classifier", "'classifier' (Classifier) draws nothing; name a denoiser or a VAE"),
        ("my_autoencoder", "'my_autoencoder' (AttentionAutoencoder) draws nothing"),
        ("classifier --guidance 2", "'classifier' (Classifier) draws nothing"),
        *((f"labelled --label='{label}'", f"label is {label!r}; expected a name or a number of: 0 T-shirt, 1 ")
          for label in ("Hat", "10", "-1", "", "dres", "1.0")),
        ("tiny --label Dress", "label is 'Dress', but this network takes no labels; leave it out"),
        ("my_vae --label Dress", "label is 'Dress', but this network takes no labels"),
        ("labelled --grid -o x.npz", "--grid writes the names of all kinds into a .png, but --out ends in .npz; leave"),
        ("labelled --grid -o x.webp", "into a .png, but --out ends in .webp; leave --grid out"),
        ("labelled --grid --label Bag", "into a .png, but --label is 'Bag', one kind; leave --grid out"),
        ("tiny --grid", "into a .png, but this network takes no labels; leave --grid out"),
    ],
)  # fmt: skip
def test_sample_refuses(here, arguments, said):
    (here / "folder.png").mkdir()
    (here / "file").write_text("mine")
    os.mkfifo(here / "pipe.png")
    check_refused(here, f"sample {arguments}", said)
    assert (here / "file").read_text() == "mine"


def test_a_file_that_cannot_be_written_is_refused_before_and_after_the_samples_are_drawn(here, monkeypatch):
    def save_images(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "save_images", save_images)
    check_refused(here, "sample tiny -n 1", "--out is samples.png: No space left on device; name a file in a folder", 1)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    check_refused(here, "sample tiny -n 1", "--out is samples.png; name a file in a folder that you may write to")


@pytest.mark.parametrize("command", ["sample", "evaluate"])
@pytest.mark.parametrize(
    "arguments, said",
    [
        ("tniy", "there are no weights 'tniy'; published are: classifier, encoder, labelled, tiny"),
        ("tiny --steps 9", "steps is 9; expected 1 to 8"),
        ("my_vae --steps 1", "steps is 1, but 'my_vae' draws in one step; leave it out"),
        ("my_vae --eta 1", "eta is 1, but 'my_vae' draws in one step; leave it out"),
        ("tiny --eta 2", "eta is 2; expected 0 (no noise on the way) to 1 (as much as DDPM)"),
        ("tiny --guidance 2", "guidance is 2, but 'tiny' takes no labels; leave it out"),
        ("my_patch --guide weaker", "guide is 'weaker'; give a guidance, too"),
        ("my_patch --interval 0 5", "interval is (0, 5); give a guidance, too"),
        ("my_patch --guidance 2 --interval -1 3", "interval is (-1, 3); expected two of the steps 0 to 7, in order"),
        ("my_patch --guidance 2 --guide longer", "process of 'longer' is {'name': 'diffusion.Diffusion'"),
    ],
)
def test_sample_and_evaluate_refuse_what_load_drawer_refuses(here, garments, command, arguments, said):
    check_refused(here, f"{command} {arguments}", said)


@pytest.mark.parametrize("interval", ["3", "3 x", "3 5.5"])
def test_an_interval_is_two_whole_numbers(here, interval):
    result = fmdiff(f"sample my_patch --guidance 2 --interval {interval}")
    assert result.exit_code == 2 and "--interval" in result.stderr and not list(here.glob("*.png"))


# fmdiff show


def shown(name: str) -> torch.nn.Module:
    """Return the autoencoder whose latent is shown."""
    autoencoders = {"my_unet": "my_vae", "my_denoiser": "my_autoencoder"}
    return load_pretrained(autoencoders.get(name, name), PartialState().device)


@pytest.fixture
def few(garments) -> list[torch.Tensor]:
    """Forty test images and their labels, so that a map is drawn fast."""
    garments["test"] = [part[:40] for part in garments["test"]]
    return garments["test"]


def chain(name: str, label: int, seed: int, num_steps: int) -> tuple:
    """Return five recorded chains of a kind, and their steps."""
    drawer = load_drawer(name, num_steps, device=PartialState().device)
    return latent_paths.draw_chain(drawer, torch.full((5,), label), seed)


def check_figures(path: str, *figures) -> None:
    """Check that a .png holds these figures."""
    export.save_figures(Path("expected.png"), *figures)
    with Image.open(path) as found, Image.open("expected.png") as expected:
        assert found.format == "PNG" and np.array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("name", ["my_vae", "my_unet", "my_autoencoder", "my_denoiser"])
def test_reconstructions_are_ten_test_images_by_the_autoencoder_of_a_network(here, few, name):
    result = fmdiff(f"show reconstructions {name}")
    assert result.exit_code == 0 and result.stdout == f"reconstructions of {name} in reconstructions.png\n"
    check_figures("reconstructions.png", latent_plots.reconstructions(shown(name), few[0][:10]))


@pytest.mark.parametrize("options, method", [("", "pca"), ("--tsne", "tsne")])
def test_latents_are_a_map_of_the_test_images(here, few, options, method):
    assert fmdiff(f"show latents my_denoiser {options}").stdout == "latents of my_denoiser in latents.png\n"
    check_figures("latents.png", latent_plots.latent_map(shown("my_denoiser"), *few, method))


@pytest.mark.parametrize(
    "name, options, choice",
    [
        ("my_denoiser", "--steps 8 -o path.png", (3, 0, 8)),
        ("my_unet", "--steps 3 --seed 5 --label bag -o new/path.png", (8, 5, 3)),
    ],
)
def test_a_path_is_a_chain_of_the_kind_seed_and_steps_that_were_chosen(here, few, name, options, choice):
    out = options.split()[-1]
    assert fmdiff(f"show path {name} {options}").stdout == f"path of {name} in {Path(out)}\n"
    path, times = chain(name, *choice)
    check_figures(out, *latent_plots.chain_figures(shown(name), path[:, 0], times, *few))


@pytest.mark.parametrize("options, choice", [("--steps 8", (3, 0, 8)), ("--label 9 --steps 4 --seed 5", (9, 5, 4))])
def test_a_loop_shows_five_garments_on_their_way_to_noise_and_back(here, garments, options, choice):
    """A .gif if no file is named. Both kinds of files have a frame for each state of the loop, and start again."""
    assert fmdiff(f"show loop my_denoiser {options}").stdout == "loop of my_denoiser in loop.gif\n"
    assert fmdiff(f"show loop my_denoiser {options} -o x.webp").exit_code == 0
    schedule = load_drawer("my_denoiser", device=PartialState().device).process.schedule
    frames = latent_paths.there_and_back(*chain("my_denoiser", *choice), schedule)
    with Image.open("loop.gif") as gif, Image.open("x.webp") as webp:
        assert (gif.format, webp.format) == ("GIF", "WEBP") and gif.info["loop"] == webp.info["loop"] == 0
        assert gif.n_frames == webp.n_frames == len(frames) == 2 * choice[2] + 1
        for k, z in enumerate(frames):
            webp.seek(k)
            expected = export.grid(data.to_uint8(shown("my_denoiser").from_latent(z)), 5)
            assert np.array_equal(np.asarray(webp.convert("L")), np.asarray(expected))


def test_without_label_and_steps_a_loop_is_a_dress_in_20_steps_or_fewer(here, garments):
    """A network that takes no labels gets none."""
    unlabelled = cards.read_card("my_unet") | {"arguments": UNET | {"patch": 1, "channels": 2, "num_classes": 0}}
    write_network(Path("unlabelled/weights.safetensors"), unlabelled)
    for name in ("my_denoiser", "unlabelled"):
        assert fmdiff(f"show loop {name} -o x.GIF").exit_code == 0
        drawer = load_drawer(name, 8, device=PartialState().device)
        frames = latent_paths.there_and_back(
            *latent_paths.draw_chain(drawer, torch.full((5,), 3)), drawer.process.schedule
        )
        with Image.open("x.GIF") as gif:
            assert gif.n_frames == len(frames) == 17
            last = export.grid(data.to_uint8(drawer.decode(frames[0])), 5)
            assert np.array_equal(np.asarray(gif.convert("L")), np.asarray(last))


USELESS = "is given, but means nothing for"


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("latent my_vae", "what to show is 'latent'; expected one of reconstructions, latents, path, loop, nearest"),
        ("latents my_vea", "there are no weights 'my_vea'; published are: "),
        ("latents my_vae -o x.gif", "the ending of --out is '.gif'; expected one of .png"),
        ("path my_unet -o x", "the ending of --out is ''; expected one of .png"),
        ("loop my_unet -o x.png", "the ending of --out is '.png'; expected one of .gif, .webp"),
        ("path my_unet -o folder.png", "--out is folder.png, which is a folder; name a file"),
        ("loop my_unet -o file/x.gif", f"--out is {Path('file/x.gif')}; name a file in a folder"),
        ("latents tiny", "'tiny' (UNet) has no latents to show; name a denoiser of latents, or an autoencoder"),
        ("reconstructions classifier", "'classifier' (Classifier) has no reconstructions to show"),
        ("path my_vae", "'my_vae' (VAE) has no path to show; name a denoiser of latents"),
        ("loop my_autoencoder", "'my_autoencoder' (AttentionAutoencoder) has no loop to show; name a denoiser"),
        ("loop labelled", "'labelled' (Transformer) has no loop to show; name a denoiser of latents"),
        ("path my_unet --steps 0", "steps is 0; expected 1 to 8"),
        ("loop my_unet --steps 20", "steps is 20; expected 1 to 8"),
        ("path my_unet --label ''", "label is ''; expected a name or a number of: 0 T-shirt"),
        ("path my_unet --steps 8 --label Hat", "label is 'Hat'; expected a name or a number of: 0 T-shirt"),
        ("latents my_vae --label Bag", f"--label {USELESS} latents; leave it out"),
        ("latents my_vae --seed 0", f"--seed {USELESS} latents"),
        ("reconstructions my_vae --steps 5", f"--steps {USELESS} reconstructions"),
        *((f"{what} my_unet --tsne", f"--tsne {USELESS} {what}") for what in ("reconstructions", "path", "loop")),
    ],
)  # fmt: skip
def test_show_refuses(here, garments, arguments, said):
    (here / "folder.png").mkdir()
    (here / "file").write_text("mine")
    check_refused(here, f"show {arguments}", said)


# fmdiff evaluate


def judge_of(garments, split: str = "test") -> metrics.Judge:
    """Return the judge with the tiny classifier and encoder, and drawn garments; one that chooses knows 240 of 300."""
    train_images = garments["train"][0][: 240 if split == "validation" else 300]
    classifier, encoder = (load_pretrained(name, PartialState().device) for name in ("classifier", "encoder"))
    return metrics.Judge(classifier, train_images, garments[split][0], encoder)


def close(measures: list[dict]) -> dict:
    """Return mean and spread of measures, to compare with: a GPU adds numbers in another order."""
    found = metrics.mean_and_spread(measures).items()
    return {name: pytest.approx(values, rel=1e-3, abs=1e-9) for name, values in found}


@pytest.mark.parametrize("split, seeds, named", [("", (3, 4), "3 to 4"), ("--split validation", (0, 1), "0 to 1")])
@pytest.mark.parametrize(
    "name, options, request_, how",
    [
        ("tiny", "", {}, "8 steps, "),
        ("labelled", "--steps 2", {"num_steps": 2}, "2 steps, "),
        ("my_vae", "", {}, ""),
        ("my_unet", "--steps 2", {"num_steps": 2}, "2 steps, "),
        ("my_autoencoder", "", None, ""),
        ("my_patch", "--steps 1 --guidance 2.5", {"num_steps": 1, "guidance": 2.5, "guide": None},
         "1 steps, guidance 2.5, "),
        ("my_patch", "--steps 2 --guidance 2 --guide weaker --interval 4 7",
         {"num_steps": 2, "guidance": 2, "guide": "weaker", "interval": [4, 7]},
         "2 steps, guidance 2 away from weaker, at steps 4 to 7, "),
        ("tiny", "--steps 4 --eta 1", {"num_steps": 4, "eta": 1}, "4 steps, eta 1, "),
    ],
)  # fmt: skip
def test_evaluate_prints_measures_floor_and_limit_as_json_and_as_a_table(
    here, garments, name, options, request_, how, split, seeds, named
):
    """Samples have a label accuracy if the network takes labels; an autoencoder has a limit.

    The floor has equally many of each kind where the samples, or what is reconstructed, do.
    """
    compared, device = split.removeprefix("--split ") or "test", PartialState().device
    arguments, judge = f"evaluate {name} -n 200 --seeds 2 {options} {split}", judge_of(garments, compared)
    found, expected = json.loads(fmdiff(f"{arguments} --json").stdout), {}
    if request_ is not None:
        y = None if name in ("tiny", "my_vae") else torch.arange(200) % 10
        expected["measures"] = [judge.measure(drawn(name, 200, seed, **request_).to(device), y) for seed in seeds]
    kinds = None if name == "tiny" else garments["train"][1][: len(judge.train_images)]
    expected["floor"] = judge.floor(200, seeds, kinds)
    if name in ("my_vae", "my_unet", "my_autoencoder"):
        expected["limit"] = judge.limit(200, shown(name), seeds, kinds)
    columns = {column: found.pop(column) for column in expected}
    assert columns == {column: close(measures) for column, measures in expected.items()}
    chosen = dict(request_ or {})
    num_steps = chosen.pop("num_steps", 8 if name == "tiny" else None)
    about = {"network": name, "n": 200, "seeds": 2, "first_seed": seeds[0], "steps": num_steps, "device": str(device)}
    about |= {"data": data.dataset_name(), "split": compared, "equal_kinds": kinds is not None}
    assert found == about | chosen

    title, head, *rows = fmdiff(arguments).stdout.splitlines()
    floor = "kinds at random" if name == "tiny" else "equally many of each kind"
    source = f"compared with {data.dataset_name()}, {compared} split; floor: {floor}"
    assert title == f"{name}: 200 images for each of the seeds {named}, {how}on {device}, {source}"
    heads = {"measures": "mean", "floor": "floor", "limit": "limit"}
    assert head.split() == [word for column in columns for word in (heads[column], "spread")]
    assert [row.split()[0] for row in rows] == list(dict.fromkeys(name for each in columns.values() for name in each))
    for row in rows:  # each number below the end of its head, and nothing where there is none
        cells = [row[start : start + 10].strip() for start in range(22, len(head), 10)]
        values = [value for column in columns.values() for value in column.get(row.split()[0], (None, None))]
        assert cells == ["" if value is None else f"{value:.4f}" for value in values]


@pytest.mark.parametrize("split", ["test", "validation"])
def test_evaluate_says_how_many_images_a_classifier_gets_right_on_the_device_of_this_process(
    here, garments, monkeypatch, split
):
    images, labels = garments[split]
    seen, accuracy, source = [], metrics.accuracy, data.dataset_name()
    monkeypatch.setattr(evaluation, "accuracy", lambda model, *data: seen.append(model) or accuracy(model, *data))
    right = (shown("classifier")(data.to_model(images)).argmax(1) == labels).cpu().double().mean().item()
    option = "" if split == "test" else "--split validation"
    line = f"classifier: {right:.2%} of the {split} images right, of {source}\n"
    assert fmdiff(f"evaluate classifier {option}").stdout == line
    expected = {"network": "classifier", "data": source, f"{split}_accuracy": right}
    assert json.loads(fmdiff(f"evaluate classifier {option} --json").stdout) == expected
    assert {parameter.device for model in seen for parameter in model.parameters()} == {PartialState().device}


def test_evaluate_says_how_many_test_images_a_linear_layer_on_an_encoders_features_gets_right(here, garments):
    encoder, source = load_pretrained("encoder", PartialState().device), data.dataset_name()
    pairs = ((metrics.features(encoder, images), labels) for images, labels in map(garments.get, ("train", "test")))
    right = metrics.linear_probe(*(part for pair in pairs for part in pair))
    printed = f"encoder: {right:.2%} of the test images right by a linear layer, of {source}\n"
    assert fmdiff("evaluate encoder").stdout == printed
    expected = {"network": "encoder", "data": source, "split": "test", "linear_probe": right}
    assert json.loads(fmdiff("evaluate encoder --json").stdout) == expected


NO_OPTIONS = "leave --steps, --guidance, --guide, --interval and --eta out"
OWN_OPTIONS = "all rows of the leaderboard have their own steps and guidance; leave those options out"


@pytest.mark.parametrize(
    "arguments, said",
    [
        *((f"{name} -n {n}", f"-n is {n}; expected at least 200") for name in ("tiny", "all") for n in (199, -1)),
        *((f"{name} -n 60001", "-n is 60001; expected at most 60,000 images") for name in ("tiny", "all")),
        ("tiny --seeds 101", "--seeds is 101; expected at most 100 sets of images"),
        *((f"{name} --split {split}", f"--split is '{split}'; expected one of validation, test")
          for name in ("tiny", "all", "classifier", "mine.npz") for split in ("train", "Test", "x")),
        *((f"{name} --split validation --seeds 4",
           "--seeds is 4; expected at most 3 for validation, since those from 3 on are for the test split")
          for name in ("tiny", "all")),
        *((f"{name} --split validation -n 58001", "-n is 58001; expected at most 58,000 images")
          for name in ("tiny", "all")),
        *((f"mine.NPZ {option}", f"{option.split()[0]} is given, but means nothing for a file of images; leave it out")
          for option in ("-n 1000", "--seeds 3", "--steps 2", "--guidance 0", "--guide weaker", "--interval 0 0",
                         "--eta 0")),
        ("mine.npz", "'mine.npz' is not there; expected a .npz file"),
        *((f"{name} {option}", f"{option.split()[0]} is given, but means nothing for the {name} {name}; leave it out")
          for name in ("classifier", "encoder") for option in ("-n 300", "--seeds 2")),
        *((f"{name} --seeds 0", "--seeds is 0; expected at least 1") for name in ("tiny", "all")),
        *((f"{name} {option}", said)
          for name, said in (("classifier", f"'classifier' draws nothing; {NO_OPTIONS}"),
                             ("my_autoencoder", f"'my_autoencoder' draws nothing; {NO_OPTIONS}"),
                             ("all", OWN_OPTIONS), ("all --json", OWN_OPTIONS))
          for option in ("--steps 2", "--guidance 0", "--guide weaker", "--interval 0 0", "--eta 0")),
    ],
)  # fmt: skip
def test_evaluate_refuses(here, garments, arguments, said):
    check_refused(here, f"evaluate {arguments}", said)


@pytest.mark.parametrize("split, seeds", [("test", (3, 4, 5)), ("validation", (0, 1, 2))])
@pytest.mark.parametrize("name, label", [("labelled", None), ("labelled", 3), ("tiny", None)])
def test_a_file_of_samples_gets_the_measures_of_its_images_and_the_floor_of_as_many(
    here, garments, name, label, split, seeds
):
    """Here 213 of them; a file without labels has no label accuracy. Only all kinds in turn are equally many."""
    assert fmdiff(f"sample {name} -n 213 -o mine.Npz {'' if label is None else '--label 3'}").exit_code == 0
    judge, device = judge_of(garments, split), PartialState().device
    y = None if name == "tiny" else torch.arange(213) % 10 if label is None else torch.full((213,), label)
    equal_kinds = name == "labelled" and label is None
    floor = judge.floor(213, seeds, garments["train"][1][: len(judge.train_images)] if equal_kinds else None)
    expected = {"measures": close([judge.measure(drawn(name, 213, label=label), y)]), "floor": close(floor)}
    about = {"file": "mine.Npz", "n": 213, "device": str(device), "data": data.dataset_name()}
    about |= {"split": split, "equal_kinds": equal_kinds}
    assert json.loads(fmdiff(f"evaluate mine.Npz --split {split} --json").stdout) == about | expected
    title, head, *rows = fmdiff(f"evaluate mine.Npz --split {split}").stdout.splitlines()
    floor = "equally many of each kind" if equal_kinds else "kinds at random"
    source = f"compared with {data.dataset_name()}, {split} split; floor: {floor}"
    assert title == f"mine.Npz: 213 images, on {device}, {source}"
    assert head.split() == ["mean", "spread", "floor", "spread"]
    assert [row.split()[0] for row in rows] == list(expected["measures"])


def test_a_file_of_more_images_than_the_floor_has_or_too_few_is_refused(here, garments, monkeypatch):
    for n, words in (
        (199, "there are 199 images; expected at least 200"),
        (301, "'x.npz' is 301; expected at most 300"),
    ):
        np.savez("x.npz", images=np.zeros((n, 28, 28), np.uint8))
        monkeypatch.setattr("fmdiff_helpers.arguments.MOST_IMAGES", 300)
        check_refused(here, "evaluate x.npz", words)
    monkeypatch.setattr(data, "NUM_VALIDATION", 60)
    np.savez("x.npz", images=np.zeros((241, 28, 28), np.uint8))
    check_refused(here, "evaluate x.npz --split validation", "'x.npz' is 241; expected at most 240")


@pytest.mark.parametrize("offline", [False, True])
def test_with_json_all_words_go_to_stderr_also_on_a_first_run(here, monkeypatch, offline):
    """On a first run, the dataset is downloaded; offline, the stand-in takes its place, and the result names it."""

    class Mirror:
        """Downloads, and prints as older versions of torchvision do."""

        def __init__(self, folder, download):
            print("Downloading http://...")
            if offline:
                raise OSError("no network")
            self.raw_folder = Path(folder)
            for name in data.ALL_FILES:
                (self.raw_folder / name).write_bytes(content)

    content = bytes(16 + 28 * 28 * 200)
    checksum = hashlib.md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(data, "ALL_FILES", dict.fromkeys(data.ALL_FILES, checksum))
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", Mirror)
    monkeypatch.setattr(data, "STANDIN_SIZES", {"train": 200, "test": 200})
    monkeypatch.setattr(evaluation, "accuracy", lambda *args: 0.5)
    monkeypatch.setenv("FMDIFF_DATA", str(here))
    data.raw_folder().mkdir(parents=True)
    result = fmdiff("evaluate classifier --json")
    source = "drawn stand-in for Fashion-MNIST" if offline else "Fashion-MNIST"
    assert json.loads(result.stdout) == {"network": "classifier", "data": source, "test_accuracy": 0.5}
    assert "Downloading Fashion-MNIST" in result.stderr and "Downloading http" in result.stderr


def test_with_the_dataset_no_command_uses_the_network(here, garments, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the network is used")

    for name in ("connect", "connect_ex", "bind", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(recipes, "load_fashion_mnist", lambda split: draw_garments(2100))
    for line in (
        "sample tiny -n 2 -o x.png",
        "evaluate my_vae -n 200 --seeds 1",
        "show latents my_vae",
        "train vae --epochs 0.01 --batch-size 50",
    ):
        assert fmdiff(line).exit_code == 0, line


def test_a_measure_that_is_not_finite_is_one_line_and_no_json(here, garments, monkeypatch):
    monkeypatch.setattr(evaluation, "measure_columns", lambda *args: {"floor": {"fd": (float("nan"), 0.0)}})
    check_refused(here, "evaluate tiny --json", "fmdiff: fd is nan: the network or its weights are broken", code=1)


# What any command may meet


@pytest.mark.parametrize(
    "error, line",
    [
        (OSError(28, "No space left on device", "x.png"), "x.png: No space left on device"),
        (OSError(28, "No space left on device"), "the output or a file cannot be written: No space left on device"),
        (OSError("x.png cannot be written (no space)"), "x.png cannot be written (no space)"),
        (MemoryError(), "there is not enough memory (MemoryError)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "there is not enough memory (DefaultCPUAllocator"),
        (
            ModuleNotFoundError("halted", name="matplotlib.figure"),
            "'matplotlib' is not installed; install all packages",
        ),
    ],
)
def test_what_the_machine_lacks_is_said_in_one_line(here, monkeypatch, error, line):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(cli, "check_place", fail)
    for command in ("sample tiny", "show latents my_vae", "train unet"):
        check_refused(here, command, f"fmdiff: {line}", code=1)


def test_a_fault_of_the_code_keeps_its_traceback(here, monkeypatch):
    monkeypatch.setattr(cli, "check_place", lambda *args, **options: [][1])
    with pytest.raises(IndexError):
        fmdiff("sample tiny")


def shell(line: str) -> subprocess.CompletedProcess:
    """Run a line of Bash in which fmdiff is this command."""
    start = f"fmdiff() {{ {sys.executable} -c 'from fmdiff_helpers.cli import app; app()' \"$@\"; }}; set -o pipefail; "
    return subprocess.run(["bash", "-c", start + line], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("line", ["fmdiff --help > /dev/full", "fmdiff sample my_vae -n 1 | true"])
def test_output_that_cannot_be_written_is_one_line_and_exit_code_1(here, line):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    done = shell(line)
    (said,) = done.stderr.splitlines()
    assert done.returncode == 1 and said.startswith("fmdiff: the output or a file cannot be written: ")


SWALLOWS = """
import signal
try:
    signal.raise_signal(signal.SIGINT)
except BaseException:
    pass
raise RecursionError
"""


def test_ctrl_c_while_a_package_is_imported_ends_the_command_without_a_word(tmp_path):
    """NumPy catches KeyboardInterrupt there, and fails later with an error of its own."""
    (tmp_path / "torch.py").write_text(SWALLOWS)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    line = [sys.executable, "-c", "from fmdiff_helpers.cli import app; app(['data'])"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_name_that_a_terminal_cannot_show_is_printed_with_escapes(here):
    done = shell("fmdiff sample my_vae -n 1 -o $'\\xff.png'")
    assert done.stderr == "" and done.stdout == "1 images in \\udcff.png\n"


@pytest.mark.parametrize("name", ["my_vae", "all", "x.npz"])
def test_without_the_published_classifier_one_line_says_so(here, garments, monkeypatch, name):
    """Where the package is installed without the repository, only the networks of one's own trainings are there."""
    np.savez("x.npz", images=garments["train"][0].cpu().numpy())
    monkeypatch.setattr(cards, "PUBLISHED", here / "not here")
    check_refused(here, f"evaluate {name}", "fmdiff: all measures need the published network 'classifier', which is ")


@pytest.fixture
def board(here, garments, monkeypatch) -> dict[str, dict]:
    """Rows of tiny networks instead of those of the leaderboard, and a clock that stands still."""
    rows = {
        "tiny": {"name": "tiny", "num_steps": 2},
        "a VAE": {"name": "my_vae"},
        "my_unet, 1 step": {"name": "my_unet", "num_steps": 1},
        "my_patch, led, half-way": {"name": "my_patch", "num_steps": 2, "guidance": 2.5, "interval": [4, 7]},
    }
    for module in (leaderboard, evaluation):
        monkeypatch.setattr(module, "ROWS", rows)
    monkeypatch.setattr(leaderboard, "clock", lambda device: 0.0)
    return rows


@pytest.mark.parametrize("split, seeds", [("test", (3, 4)), ("validation", (0, 1))])
def test_evaluate_all_measures_two_floors_and_every_row_as_json_and_line_by_line(board, garments, split, seeds):
    found = json.loads(fmdiff(f"evaluate all -n 210 --seeds 2 --split {split} --json").stdout)
    judge, device = judge_of(garments, split), PartialState().device
    kinds = garments["train"][1][: len(judge.train_images)]
    floors = {"floor": judge.floor(210, seeds), "floor, equal kinds": judge.floor(210, seeds, kinds)}
    expected = {row: close(measures) for row, measures in floors.items()}
    about = {"n": 210, "seeds": 2, "first_seed": seeds[0], "device": str(device)}
    about |= {"data": data.dataset_name(), "split": split}
    assert found == about | {"rows": found["rows"]} | expected
    assert list(found["rows"]) == list(board)
    for name, row in found["rows"].items():
        options = {key: value for key, value in row.items() if key != "measures"}
        y = None if name in ("tiny", "a VAE") else torch.arange(210) % 10
        each = [judge.measure(drawn(**options, n=210, seed=seed).to(device), y) for seed in seeds]
        own = {"evaluations": {"tiny": 2, "a VAE": 0, "my_unet, 1 step": 1}.get(name, 3), "seconds": 0.0}
        each = [measures | own for measures in each]
        assert options == board[name] and row["measures"] == close(each)

    title, head, *lines = fmdiff(f"evaluate all -n 210 --seeds 2 --split {split}").stdout.splitlines()
    how = (
        f"mean ± spread, on {device}, compared with {data.dataset_name()}, {split} split; seconds are for 1,000 images"
    )
    assert title == f"210 images for each of the seeds {seeds[0]} to {seeds[1]}, {how}"
    measures = ["fd", "label_free_fd", "kd", "precision", "recall", "coverage", "label_accuracy", "copying"]
    measures += ["evaluations", "seconds"]
    assert head.split() == measures and [line[:28].rstrip() for line in lines] == [*floors, *board]
    columns = [*(found[row] for row in floors), *(row["measures"] for row in found["rows"].values())]
    for line, column in zip(lines, columns, strict=True):  # each number below the end of its head
        ends = [head.index(measure) + len(measure) for measure in measures]
        cells = [line[end - 16 : end].split() for end in ends]
        values = [column.get(measure) for measure in measures]
        assert cells == [[f"{v[0]:.3f}", "±", f"{v[1]:.3f}"] if v else [] for v in values]


def test_where_a_row_cannot_be_measured_those_before_it_are_printed_and_one_line_says_why(board):
    """As JSON nothing is printed: half a leaderboard is none."""
    board["my_unet, 1 step"]["name"] = "nowhere"
    result = fmdiff("evaluate all -n 200 --seeds 1")
    assert result.exit_code == 2
    printed = [line[:28].rstrip() for line in result.stdout.splitlines()[2:]]
    assert printed == ["floor", "floor, equal kinds", "tiny", "a VAE"]
    assert result.stderr.split("\r")[-1].startswith("fmdiff: there are no weights 'nowhere'; published are: ")
    result = fmdiff("evaluate all -n 200 --seeds 1 --json")
    assert result.exit_code == 2 and result.stdout == ""


def test_without_options_evaluate_reports_with_three_seeds_that_choose_nothing(here, garments):
    found = json.loads(fmdiff("evaluate my_vae -n 200 --json").stdout)
    assert (found["split"], found["first_seed"], found["seeds"]) == ("test", 3, 3)
    assert fmdiff("evaluate my_vae -n 200 --seeds 1").stdout.startswith("my_vae: 200 images for seed 3, ")
    chosen, reported = (seeds_for(split) for split in ("validation", "test"))
    assert [*chosen, *reported] == [0, 1, 2, 3, 4, 5]


def test_the_help_of_evaluate_says_which_split_and_seeds_choose_and_which_report():
    help = " ".join(re.sub("[│╭╮╰╯─]", " ", fmdiff("evaluate --help").output).split())
    assert "test: the test images, to report; the first seed is 3." in help
    assert "validation: the last 2,000 training images, to choose" in help
    assert "the first seed is 0, and the last one 2." in help


# fmdiff train


@pytest.fixture
def trained(here, monkeypatch) -> list[tuple]:
    """The arguments of each training that would have started; it ends well, after all its steps."""
    calls = []

    def train_network(name, folder, autoencoder=None, **changes):
        calls.append((name, folder, autoencoder, changes))
        return None, [{"step": changes["steps"], "loss": 1.0, "validation": {"loss": 0.123456}}]

    monkeypatch.setattr(recipes, "train_network", train_network)
    return calls


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("unet2", f"network is 'unet2'; expected one of {', '.join(recipes.CARDS)}"),
        ("unet --profile long", "--profile is 'long'; expected one of smoke, quick, full"),
        *((f"unet --epochs {e}", f"--epochs is {e}; expected at least 0.01") for e in ("0", "-1", "nan", "inf")),
        *((f"unet --batch-size {size}", f"--batch-size is {size}; expected at least 1") for size in (0, -128)),
        *((f"{name} --pictures", f"--pictures is for networks that draw step by step, but {name} does not")
          for name in ("vae", "classifier")),
        ("unet --out file", "--out is file, which is a file; name a folder"),
    ],
)  # fmt: skip
def test_train_refuses(here, trained, arguments, said):
    (here / "file").write_text("mine")
    check_refused(here, f"train {arguments}", said)
    assert trained == []


FULL = profiles("unet")["full"]["steps"]


@pytest.mark.parametrize(
    "arguments, folder, autoencoder, changes",
    [
        ("unet", "runs/unet", None, {"steps": FULL}),
        ("unet --profile smoke --seed 3", "runs/unet", None, {"seed": 3, "steps": 60, "every": 20}),
        ("unet --epochs 2 --batch-size 58 --out x", "x", None, {"batch_size": 58, "steps": 2000}),
        ("unet --out 'my runs/x'", "my runs/x", None, {"steps": FULL}),
        ("unet --epochs 0.01 --batch-size 5800", "runs/unet", None, {"batch_size": 5800, "steps": 1}),
        ("latent_unet --profile smoke", "runs/latent_unet", None, {"steps": 60, "every": 20}),
        ("latent_unet --epochs 1 --autoencoder runs/vae", "runs/latent_unet", "runs/vae", {"steps": 453}),
        ("unet --pictures", "runs/unet", None, {"steps": FULL}),
        ("unet --pictures --batch-size 5800 --profile smoke", "runs/unet", None,
         {"batch_size": 5800, "steps": 60, "every": 20}),
    ],
)  # fmt: skip
def test_train_follows_the_recipe_except_for_the_options(trained, arguments, folder, autoencoder, changes):
    """An epoch is 58,000 images: the training split without the 2000 for validation."""
    result, name = fmdiff(f"train {arguments}"), arguments.split()[0]
    (found,) = trained
    report = found[-1].pop("report", None)
    assert found == (name, Path(folder), autoencoder, {"batch_size": 128, "seed": 0} | changes)
    assert isinstance(report, results.Results) == ("--pictures" in arguments)
    assert report is None or report.folder == Path(folder)
    assert result.exit_code == 0
    done, hint = result.stdout.splitlines()
    assert done == f"{Path(folder)}: validation loss 0.1235 after {changes['steps']} steps."
    place = shlex.quote(folder if "/" in folder else f"./{folder}")
    assert hint == f"Next: fmdiff evaluate {place}, or fmdiff sample {place}"


@pytest.mark.parametrize("name", ["classifier", "attention_autoencoder"])
def test_no_hint_speaks_of_samples_of_a_network_that_draws_nothing(trained, name):
    _, hint = fmdiff(f"train {name}").stdout.splitlines()
    assert hint == f"Next: fmdiff evaluate {Path('runs') / name}"


def test_only_the_first_process_draws_pictures(trained, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert fmdiff("train unet --pictures").exit_code == 0 and "report" not in trained[0][-1]


@pytest.fixture
def small_cards(here, monkeypatch) -> Path:
    """The working folder, and tiny networks to train for 4 steps on 96 drawn images."""
    monkeypatch.setattr(recipes, "NUM_VALIDATION", 32)
    monkeypatch.setattr(recipes, "load_fashion_mnist", lambda split: draw_garments(96))
    monkeypatch.setattr(recipes, "profiles", lambda name: {"smoke": {"steps": 4, "every": 2}, "full": {"steps": 4}})
    tiny_ones = {
        "vae": {"width": 4, "channels": 2},
        "latent_unet": UNET | {"channels": 2, "patch": 1},
    }
    for name, arguments in tiny_ones.items():
        process = cosine(8, "v") if recipes.CARDS[name]["kind"] == "denoiser" else recipes.CARDS[name]["process"]
        monkeypatch.setitem(recipes.CARDS, name, recipes.CARDS[name] | {"arguments": arguments, "process": process})
    return here


def test_an_autoencoder_and_a_denoiser_in_its_latent_are_trained_and_draw(small_cards):
    vae, unet = Path("runs/vae"), Path("runs/latent_unet")
    result = fmdiff("train vae --profile smoke --batch-size 16")
    assert result.exit_code == 0 and f"{vae}: validation loss" in result.stdout
    weights = (vae / "weights.safetensors").read_bytes()
    result = fmdiff(f"train latent_unet --autoencoder {vae} --profile smoke --batch-size 16")
    assert result.exit_code == 0 and f"{unet}: validation loss" in result.stdout
    checksum = hashlib.sha256(weights).hexdigest()
    assert cards.read_card(str(unet))["autoencoder"] == {"name": str(vae.resolve()), "sha256": checksum}
    for name in (vae, unet):
        assert read_npz(f"{name} -n 3")["images"].shape == (3, 28, 28)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("unet --batch-size 65", "batch_size is 65; expected at most the 64 images"),
        ("latent_unet", "there are no weights 'vae'; published are: classifier, encoder, labelled, tiny"),
        (
            "latent_unet --autoencoder nowhere",
            "there are no weights 'nowhere'; published are: classifier, encoder, labelled",
        ),
    ],
)
def test_what_the_training_itself_refuses_is_said_in_one_line(small_cards, arguments, said):
    check_refused(small_cards, f"train {arguments}", said)


@pytest.mark.parametrize(
    "error, code",
    [
        (ValueError("checkpoint.pt is another training"), 2),
        (PermissionError("not allowed"), 1),
        (cards.WeightsError("damaged"), 2),
        (FloatingPointError("the loss was nan"), 1),
        (MemoryError("batch_size=64 fits"), 1),
        (ConnectionError("a process has ended"), 1),
        (data.DataError("no dataset"), 1),
    ],
)
def test_a_training_that_fails_says_why_in_one_line(here, monkeypatch, error, code):
    def fail(name, folder, **changes):
        raise error

    monkeypatch.setattr(recipes, "train_network", fail)
    check_refused(here, "train unet", f"fmdiff: {error}", code)


def test_an_interrupted_training_is_exit_code_130(here, monkeypatch):
    monkeypatch.setattr(recipes, "train_network", lambda name, folder, **changes: (None, [{"step": 50, "loss": 1.0}]))
    result = fmdiff("train unet --profile smoke")
    assert result.exit_code == 130 and result.stdout == ""
