"""The claims of fmdiff_helpers.cli: the right lesson, the right flags for the machine, one clear line on failure."""

import gzip
import hashlib
import http.client
import json
import os
import subprocess
import sys
import webbrowser
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image
from typer.testing import CliRunner

from fmdiff_helpers import checkpoints, cli, data, export, leaderboard, metrics, paths, recipes, samplers
from fmdiff_helpers.standin import draw_garments

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


# fmdiff train, sample, show and evaluate: what they share


def test_help_lists_training_sampling_showing_and_measuring():
    help = " ".join(fmdiff("--help").output.split())
    purposes = {"train": "Train a network", "sample": "Draw samples", "evaluate": "Measure samples"}
    for name, purpose in (purposes | {"show": "Draw what happens in a latent"}).items():
        assert f"{name} " in help and purpose in help


def write_network(path: Path, card: dict) -> None:
    """Write a tiny network, random as if it were trained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = checkpoints.build(card)
        for parameter in model.parameters():  # untrained denoisers say "no noise" or "grey" to everything
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
    if hasattr(model, "latent_shape"):
        model.shift.fill_(0.25)
        model.scale.fill_(0.5)
    checkpoints.save_weights(path, model, card)


CHAIN = {"schedule": {"beta": "cosine_beta", "T": 8}, "recipe": {}}


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Path:
    """An empty working folder, and in the place of `data/weights` two tiny denoisers of 8 steps and a tiny classifier.

    The denoiser "labelled" takes labels and predicts x0; "tiny" predicts the noise.
    """
    published = tmp_path / "published"
    unet = {"width": 8, "mults": [1, 2], "patch": 2, "depth": 1, "block": "resnet", "num_classes": 0}
    transformer = {"patch": 7, "dim": 16, "depth": 1, "heads": 2, "ff_dim": 16, "num_classes": 10}
    cards = {
        "tiny": {"network": "unet.UNet", "arguments": unet} | CHAIN,
        "labelled": {"network": "transformer.Transformer", "arguments": transformer, "target": "x0"} | CHAIN,
        "classifier": {"network": "classifier.Classifier", "arguments": {"width": 4, "num_classes": 10}, "recipe": {}},
    }
    for name, card in cards.items():
        write_network(published / f"{name}.safetensors", card)
    monkeypatch.setattr(checkpoints, "PUBLISHED", published)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def latents(tiny) -> Path:
    """The working folder with what two trainings write: "my_vae", a tiny VAE, and "my_unet", a denoiser in its latent.

    The denoiser takes labels, predicts v and has 8 steps.
    """
    vae = {"network": "vae.VAE", "arguments": {"width": 4, "channels": 2}, "beta": 0.01, "recipe": {}}
    write_network(tiny / "my_vae" / "weights.safetensors", vae)
    unet = {"width": 8, "mults": [1], "patch": 1, "channels": 2, "num_classes": 10}
    about = {"target": "v", "autoencoder": {"name": "my_vae", "sha256": checkpoints.read_card("my_vae")["sha256"]}}
    write_network(tiny / "my_unet" / "weights.safetensors", {"network": "unet.UNet", "arguments": unet} | about | CHAIN)
    return tiny


@pytest.fixture
def vectors(latents) -> Path:
    """The working folder with two more: "my_autoencoder", one without noise, and "my_denoiser" in its latent."""
    network = {"network": "attention_autoencoder.AttentionAutoencoder", "arguments": {"width": 8}, "recipe": {}}
    write_network(latents / "my_autoencoder" / "weights.safetensors", network)
    arguments = {"image_size": 8, "patch": 4, "dim": 16, "depth": 1, "heads": 2, "ff_dim": 16, "num_classes": 10}
    card = {"network": "transformer.Transformer", "arguments": arguments, "target": "v"} | CHAIN
    card["autoencoder"] = {"name": "my_autoencoder", "sha256": checkpoints.read_card("my_autoencoder")["sha256"]}
    write_network(latents / "my_denoiser" / "weights.safetensors", card)
    return latents


@pytest.fixture
def guidable(tiny) -> Path:
    """The working folder with "my_patch", a tiny denoiser that has learned without labels, too, and possible guides.

    It predicts v and has 8 steps. "weaker" predicts the noise and is smaller, "longer" has 9 steps.
    """
    patch = {"network": "patch_unet.PatchUNet", "arguments": {"width": 8, "mults": [1, 2], "num_classes": 10}}
    unet = {"network": "unet.UNet", "arguments": {"width": 8, "mults": [1], "num_classes": 10}}
    cards = {
        "my_patch": patch | {"target": "v", "label_dropout": 0.1} | CHAIN,
        "weaker": unet | CHAIN,
        "longer": unet | CHAIN | {"schedule": {"beta": "cosine_beta", "T": 9}},
    }
    for name, card in cards.items():
        write_network(tiny / name / "weights.safetensors", card)
    return tiny


def on(device, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return [x.to(device) for x in tensors]


@pytest.fixture
def garments(monkeypatch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A few drawn garments and their labels in the place of both splits of the dataset."""
    splits = {"train": draw_garments(300, seed=0), "test": draw_garments(250, seed=1)}
    for module in (data, leaderboard):
        monkeypatch.setattr(module, "load_fashion_mnist", lambda split, device="cpu": on(device, *splits[split]))
    return splits


def generated(n: int, seed: int = 0, num_steps: int | None = None, y: torch.Tensor | None = None) -> torch.Tensor:
    """Return the images that the tiny denoiser draws, or with labels the labelled one, uint8 (n, 1, 28, 28)."""
    device = PartialState().device
    name = "tiny" if y is None else "labelled"
    model = checkpoints.load_pretrained(name, device)
    schedule = recipes.schedule_of(checkpoints.read_card(name)).to(device)
    if y is not None:
        model = samplers.noise_predictor(model, schedule)
    return data.to_uint8(samplers.generate(model, schedule, n, seed, num_steps, y))


def latent_generated(n: int, seed: int = 0, num_steps: int | None = None, y=None, watch=None) -> torch.Tensor:
    """Return the images that the denoiser of latents draws, of all ten kinds in turn unless y says otherwise."""
    device = PartialState().device
    vae, unet = (checkpoints.load_pretrained(name, device) for name in ("my_vae", "my_unet"))
    schedule = recipes.schedule_of(CHAIN).to(device)
    model, y = samplers.noise_from_v(unet, schedule), torch.arange(n) % 10 if y is None else y
    show = (lambda step: watch(data.to_uint8(vae.from_latent(step.xt)))) if watch else None
    return data.to_uint8(samplers.generate(model, schedule, n, seed, num_steps, y, show, vae))


def vae_generated(n: int, seed: int = 0) -> torch.Tensor:
    """Return the images that the VAE decodes from its prior."""
    return data.to_uint8(samplers.sample_prior(checkpoints.load_pretrained("my_vae", PartialState().device), n, seed))


def guided_generated(
    n: int, w: float, weak: str | None = None, seed: int = 0, num_steps: int | None = None, interval=(0, 7)
) -> torch.Tensor:
    """Return the images of all ten kinds in turn that "my_patch" draws when it is led away from "weaker" or itself.

    It is led at the steps of the interval only.
    """
    device = PartialState().device
    schedule = recipes.schedule_of(CHAIN).to(device)
    model = samplers.noise_from_v(checkpoints.load_pretrained("my_patch", device), schedule)
    weaker = checkpoints.load_pretrained(weak, device) if weak else None

    def denoiser(x, t, y):
        if not interval[0] <= t[0] <= interval[1]:
            return model(x, t, y)
        without = weaker(x, t, y) if weak else model(x, t, None)
        return without + w * (model(x, t, y) - without)

    return data.to_uint8(samplers.generate(denoiser, schedule, n, seed, num_steps, torch.arange(n) % 10))


def near(one, other) -> bool:
    """Tell whether two sets of uint8 images are one but for rounding: numbers added in another order."""
    return np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max() <= 1


def check_refused(folder: Path, arguments: list[str], *said: str) -> None:
    """Check for exit code 2, one line that says what is wrong and what is allowed, and that nothing was written."""
    before = sorted(folder.rglob("*"))
    result = fmdiff(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = result.stderr.split("\r")[-1].splitlines()  # a progress bar wipes itself out
    assert line.startswith("fmdiff: ")
    for text in said:
        assert text in line
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("command", ["sample", "evaluate"])
@pytest.mark.parametrize(
    "arguments, said",
    [
        (["tniy"], ["'tniy'", "published are: classifier, labelled, tiny", "or name a folder of `fmdiff train`"]),
        (["tiny", "--steps", "0"], ["--steps is 0", "expected 1 to 8", "'tiny'"]),
        (["tiny", "--steps", "9"], ["--steps is 9", "expected 1 to 8", "'tiny'"]),
    ],
)
def test_a_network_or_a_number_of_steps_that_is_not_there_is_refused(tiny, garments, command, arguments, said):
    check_refused(tiny, [command, *arguments], *said)


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_weights_that_are_not_those_of_their_card_are_not_used(tiny, garments, command):
    path = checkpoints.PUBLISHED / "tiny.safetensors"
    change_byte(path, path.stat().st_size - 1)
    check_refused(tiny, [command, "tiny"], str(path), "is not the file of its card")


def test_without_any_published_network_the_message_says_so(tiny, monkeypatch):
    monkeypatch.setattr(checkpoints, "PUBLISHED", tiny)
    check_refused(tiny, ["sample", "tiny"], "'tiny'", "published are: none yet")


# fmdiff sample


@pytest.mark.parametrize("name, said", [("classifier", "(Classifier)"), ("my_autoencoder", "(AttentionAutoencoder)")])
def test_sample_refuses_a_network_that_is_no_denoiser(vectors, name, said):
    check_refused(vectors, ["sample", name], f"{name!r} {said} is not a denoiser: nothing to sample from")


def test_sample_writes_a_grid_of_64_images_unless_told_otherwise(tiny):
    result = fmdiff("sample", "tiny")
    assert result.exit_code == 0 and result.stdout == "64 images in samples.png\n"
    with Image.open(tiny / "samples.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(export.grid(generated(64))))


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_processes_one_writes_and_one_complains(tiny, monkeypatch, rank):
    """What accelerate launch starts has a number, RANK."""
    monkeypatch.setenv("RANK", rank)
    assert fmdiff("sample", "tiny", "-n", "4", "--out", str(tiny / "x.gif")).exit_code == 0
    assert (tiny / "x.gif").exists() == (rank == "0")
    result = fmdiff("sample", "tiny", "--label", "Dress")
    assert result.exit_code == 2 and ("--label is 'Dress'" in result.stderr) == (rank == "0")


def test_sample_writes_arrays(tiny):
    """As many as one likes: the limit of 100 is for animations."""
    assert fmdiff("sample", "tiny", "-n", "101", "--steps", "2", "--out", "new/x.npz").exit_code == 0
    with np.load(tiny / "new" / "x.npz") as arrays:
        expected = generated(101, num_steps=2)[:, 0].cpu()
        assert list(arrays) == ["images"] and np.array_equal(arrays["images"], expected)


def test_sample_takes_a_folder_of_weights(tiny):
    folder = tiny / "mine"
    for ending in (".safetensors", ".json"):
        (folder / f"weights{ending}").parent.mkdir(exist_ok=True)
        (folder / f"weights{ending}").write_bytes((checkpoints.PUBLISHED / f"tiny{ending}").read_bytes())
    assert fmdiff("sample", "mine", "-n", "4", "-o", "a.npz").exit_code == 0
    assert fmdiff("sample", "tiny", "-n", "4", "-o", "b.npz").exit_code == 0
    assert (tiny / "a.npz").read_bytes() == (tiny / "b.npz").read_bytes()


@pytest.mark.parametrize("ending", [".gif", ".webp"])
def test_sample_writes_an_animation_from_noise_to_the_images(tiny, ending):
    """A frame before each of the 8 steps, and the images."""
    assert fmdiff("sample", "tiny", "-n", "4", "--out", f"x{ending}").exit_code == 0
    with Image.open(tiny / f"x{ending}") as animation:
        assert animation.n_frames == 9
        first = torch.from_numpy(np.array(animation.convert("L"))[1::3, 1::3]).float()
        assert first.std() > 60 and (first[:28, :28] == 0).float().mean() > 0.1  # N(0, 1), clipped: 16 % at each end
        animation.seek(8)
        if ending == ".webp":  # Pillow misreads a .gif whose frames have tables of their own
            assert np.array_equal(np.asarray(animation.convert("L")), np.asarray(export.grid(generated(4))))


def test_an_animation_of_many_steps_has_thirty_frames_at_most_and_the_images(tiny, monkeypatch):
    card = checkpoints.read_card("tiny") | {"schedule": {"beta": "cosine_beta", "T": 100}}
    path = checkpoints.PUBLISHED / "longer.safetensors"
    checkpoints.save_weights(path, checkpoints.load_pretrained("tiny"), card)
    assert fmdiff("sample", "longer", "-n", "1", "--out", "x.gif").exit_code == 0
    with Image.open(tiny / "x.gif") as animation:
        assert 25 <= animation.n_frames <= 31


@pytest.mark.parametrize("ending", [".png", ".npz", ".gif", ".webp"])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tiny, ending):
    for name, seed in {"a": "0", "b": "0", "c": "1"}.items():
        assert fmdiff("sample", "tiny", "-n", "4", "--seed", seed, "--out", f"{name}{ending}").exit_code == 0
    a, b, c = ((tiny / f"{name}{ending}").read_bytes() for name in "abc")
    assert a == b and a != c


def test_fewer_steps_are_those_of_ddim(tiny):
    for name, options in {"all": [], "four": ["--steps", "4"], "one": ["--steps", "1"]}.items():
        assert fmdiff("sample", "tiny", "-n", "3", "--seed", "5", "-o", f"{name}.npz", *options).exit_code == 0
    found = {name: np.load(f"{name}.npz")["images"] for name in ("all", "four", "one")}
    for name, num_steps in {"all": None, "four": 4, "one": 1}.items():
        assert np.array_equal(found[name], generated(3, 5, num_steps)[:, 0].cpu())
    assert not np.array_equal(found["all"], found["four"]) and not np.array_equal(found["four"], found["one"])


@pytest.mark.parametrize("ending", [".gif", ".webp"])
def test_an_animation_has_100_images_at_most(tiny, ending):
    check_refused(tiny, ["sample", "tiny", "-n", "101", "--out", f"x{ending}"], "-n is 101", "at most 100")
    assert fmdiff("sample", "tiny", "-n", "100", "--steps", "1", "--out", f"x{ending}").exit_code == 0


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["-n", "0"], ["-n is 0", "expected at least 1"]),
        (["-n", "-5"], ["-n is -5", "expected at least 1"]),
        (["--out", "x.jpg"], ["'.jpg'", "expected one of .png, .gif, .webp, .npz"]),
        (["--out", "x"], ["''", "expected one of .png, .gif, .webp, .npz"]),
        (["--out", "folder.png"], ["folder.png", "name a file in a folder that you may write to"]),
        (["--out", "folder.gif"], ["folder.gif", "name a file in a folder that you may write to"]),
        (["--out", "file/x.png"], [str(Path("file/x.png")), "name a file in a folder that you may write to"]),
        (["--out", "file/x.webp"], [str(Path("file/x.webp")), "name a file in a folder that you may write to"]),
    ],
)
def test_sample_refuses_what_it_cannot_write(tiny, arguments, said):
    for name in ("folder.png", "folder.gif"):
        (tiny / name).mkdir()
    (tiny / "file").write_text("mine")
    check_refused(tiny, ["sample", "tiny", *arguments], *said)
    assert (tiny / "file").read_text() == "mine"


# fmdiff sample, with labels


@pytest.mark.parametrize(
    "label, number",
    [("Dress", 3), ("dRESS", 3), ("3", 3), ("t-SHIRT", 0), ("0", 0), ("ankle boot", 9), ("9", 9)],
)
def test_a_label_is_a_name_in_any_case_or_a_number(tiny, label, number):
    assert fmdiff("sample", "labelled", "-n", "5", "--label", label, "--steps", "2", "-o", "x.npz").exit_code == 0
    with np.load("x.npz") as arrays:
        y = torch.full((5,), number)
        assert sorted(arrays) == ["images", "labels"] and arrays["labels"].tolist() == [number] * 5
        assert np.array_equal(arrays["images"], generated(5, num_steps=2, y=y)[:, 0].cpu())
        assert not np.array_equal(arrays["images"], generated(5, num_steps=2, y=(y + 1) % 10)[:, 0].cpu())


def test_every_kind_has_its_name_and_its_number():
    for number, name in enumerate(data.CLASS_NAMES):
        for label in (name, name.upper(), str(number)):
            assert cli.choose_labels(label, 2, takes_labels=True).tolist() == [number] * 2


def test_without_a_label_all_ten_kinds_come_in_turn(tiny):
    assert fmdiff("sample", "labelled", "-n", "23", "-o", "x.npz").exit_code == 0
    with np.load("x.npz") as arrays:
        y = torch.tensor([*range(10), *range(10), 0, 1, 2])
        assert arrays["labels"].tolist() == y.tolist()
        assert np.array_equal(arrays["images"], generated(23, y=y)[:, 0].cpu())


@pytest.mark.parametrize("label", ["Hat", "10", "-1", "", "dres", "1.0"])
def test_a_label_that_is_none_is_refused_with_the_list(tiny, label):
    known = ["0 T-shirt", "3 Dress", "9 Ankle boot"]
    check_refused(tiny, ["sample", "labelled", f"--label={label}"], f"--label is {label!r}", *known)


def test_a_label_for_a_network_without_is_refused(tiny):
    check_refused(tiny, ["sample", "tiny", "--label", "Dress"], "--label is 'Dress'", "leave --label out")


@pytest.mark.parametrize("ending", [".png", ".webp"])
@pytest.mark.parametrize("options, columns", [([], 10), (["--label", "Bag"], None)])
def test_in_a_grid_of_all_kinds_each_has_its_column(tiny, ending, options, columns):
    arguments = ["-n", "23", "--steps", "2", "--out", f"x{ending}", *options]
    assert fmdiff("sample", "labelled", *arguments).exit_code == 0
    y = torch.full((23,), 8) if options else torch.arange(23) % 10
    with Image.open(tiny / f"x{ending}") as picture:
        picture.seek(picture.n_frames - 1 if ending == ".webp" else 0)
        expected = export.grid(generated(23, num_steps=2, y=y), columns)
        assert np.array_equal(np.asarray(picture.convert("L")), np.asarray(expected))
        assert picture.size == ((10 if columns else 5) * 29 * 3, (3 if columns else 5) * 29 * 3)


def test_the_kinds_names_may_stand_above_the_columns(tiny):
    arguments = ["sample", "labelled", "-n", "20", "--steps", "2", "--out"]
    assert fmdiff(*arguments, "x.png", "--grid").exit_code == 0
    expected = export.headed(export.grid(generated(20, num_steps=2, y=torch.arange(20) % 10), 10), data.CLASS_NAMES)
    with Image.open(tiny / "x.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(expected))
    for wrong in (["x.npz"], ["x.webp"], ["y.png", "--label", "Bag"]):
        check_refused(tiny, [*arguments, *wrong, "--grid"], "--grid wants a .png of all ten kinds")
    check_refused(tiny, ["sample", "tiny", "--grid"], "--grid wants", "a network that takes labels")


# fmdiff sample, from a VAE and from a denoiser in its latent


@pytest.mark.parametrize("network", ["patch_unet.PatchUNet", "unet.UNet"])
def test_where_a_card_leaves_the_number_of_kinds_out_its_network_says_whether_it_takes_labels(tiny, network):
    usual = {"network": network, "arguments": {"width": 8, "mults": [1, 2]}} | CHAIN
    write_network(tiny / "usual" / "weights.safetensors", usual)
    assert fmdiff("sample", "usual", "-n", "3", "--steps", "2", "--out", "x.npz").exit_code == 0
    labels = leaderboard.labels_for("usual", 3)
    if network == "unet.UNet":
        assert "labels" not in np.load("x.npz") and labels is None
    else:
        assert np.load("x.npz")["labels"].tolist() == labels.tolist() == [0, 1, 2]


def test_a_vae_draws_from_its_prior(latents):
    assert fmdiff("sample", "my_vae", "-n", "101", "--seed", "5", "-o", "x.npz").exit_code == 0
    with np.load("x.npz") as arrays:
        assert list(arrays) == ["images"] and np.array_equal(arrays["images"], vae_generated(101, 5)[:, 0].cpu())
    assert fmdiff("sample", "my_vae").stdout == "64 images in samples.png\n"
    with Image.open("samples.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(export.grid(vae_generated(64))))


@pytest.mark.parametrize("options, num_steps", [([], None), (["--steps", "2"], 2)])
def test_a_denoiser_of_latents_draws_images(latents, options, num_steps):
    assert fmdiff("sample", "my_unet", "-n", "12", "--seed", "5", "-o", "x.npz", *options).exit_code == 0
    with np.load("x.npz") as arrays:
        assert arrays["images"].shape == (12, 28, 28) and arrays["labels"].tolist() == [*range(10), 0, 1]
        assert np.array_equal(arrays["images"], latent_generated(12, 5, num_steps)[:, 0].cpu())
    assert fmdiff("sample", "my_unet", "-n", "12", "--label", "Bag", "-o", "x.npz", *options).exit_code == 0
    with np.load("x.npz") as arrays:
        bags = torch.full((12,), 8)
        assert np.array_equal(arrays["images"], latent_generated(12, num_steps=num_steps, y=bags)[:, 0].cpu())


def test_an_animation_of_latents_shows_each_of_them_decoded(latents):
    frames = []
    images = latent_generated(10, watch=frames.append)
    assert fmdiff("sample", "my_unet", "-n", "10", "--out", "x.webp").exit_code == 0
    assert fmdiff("sample", "my_unet", "-n", "10", "--out", "x.gif").exit_code == 0
    with Image.open("x.webp") as animation, Image.open("x.gif") as other:
        assert animation.n_frames == other.n_frames == 9
        for k, frame in enumerate([*frames, images]):
            animation.seek(k)
            assert np.array_equal(np.asarray(animation.convert("L")), np.asarray(export.grid(frame, 10)))


@pytest.mark.parametrize("ending", [".gif", ".webp"])
def test_a_vae_draws_in_one_step_with_nothing_to_animate(latents, ending):
    check_refused(latents, ["sample", "my_vae", "-o", f"x{ending}"], "'my_vae' draws in one step", ".png or .npz")


@pytest.mark.parametrize("command", ["sample", "evaluate"])
@pytest.mark.parametrize("steps", ["1", "5"])
def test_steps_for_a_vae_are_refused(latents, garments, command, steps):
    said = f"--steps is {steps}, but 'my_vae' draws in one step; leave --steps out"
    check_refused(latents, [command, "my_vae", "--steps", steps], said)


def test_steps_that_a_denoiser_of_latents_does_not_have_and_a_label_for_a_vae_are_refused(latents):
    check_refused(latents, ["sample", "my_unet", "--steps", "9"], "--steps is 9", "expected 1 to 8", "'my_unet'")
    check_refused(latents, ["sample", "my_vae", "--label", "Dress"], "--label is 'Dress'", "leave --label out")


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_denoiser_without_its_vae_is_refused(latents, garments, command):
    """Changed since, or not there any more."""
    there = checkpoints.read_card("my_vae")
    write_network(latents / "my_vae" / "weights.safetensors", there | {"arguments": {"width": 6, "channels": 2}})
    now = checkpoints.read_card("my_vae")["sha256"]
    check_refused(latents, [command, "my_unet"], "in the latent of 'my_vae'", there["sha256"], f"found {now}")
    (latents / "my_vae" / "weights.safetensors").unlink()
    check_refused(latents, [command, "my_unet"], "there are no weights 'my_vae'")


# fmdiff sample and evaluate, guided


@pytest.mark.parametrize("options, num_steps", [([], None), (["--steps", "3"], 3)])
@pytest.mark.parametrize("guide", [None, "weaker"])
def test_sample_draws_guided_images_that_are_others(guidable, guide, options, num_steps):
    arguments = ["sample", "my_patch", "-n", "12", "--seed", "5", *options]
    named = ["--guide", guide] if guide else []
    assert fmdiff(*arguments, "-o", "plain.npz").exit_code == 0
    assert fmdiff(*arguments, "-o", "guided.npz", "--guidance", "2.5", *named).exit_code == 0
    with np.load("plain.npz") as plain, np.load("guided.npz") as found:
        assert found["labels"].tolist() == plain["labels"].tolist() == [*range(10), 0, 1]
        assert near(found["images"], guided_generated(12, 2.5, guide, 5, num_steps)[:, 0].cpu())
        assert not near(found["images"], plain["images"])


def test_another_guide_and_another_strength_draw_other_images(guidable):
    arguments = ["sample", "my_patch", "-n", "10", "--steps", "2", "-o", "x.npz", "--guidance"]
    drawn = []
    for options in (["0"], ["2"], ["3"], ["2", "--guide", "weaker"], ["2", "--guide", "labelled"]):
        assert fmdiff(*arguments, *options).exit_code == 0
        with np.load("x.npz") as arrays:
            drawn.append(arrays["images"])
    for k, one in enumerate(drawn):
        assert all(not near(one, other) for other in drawn[:k])


@pytest.mark.parametrize(
    "first, last, options, num_steps",
    [(3, 5, [], None), (2, 2, ["--guide", "weaker"], None), (0, 0, [], 3), (4, 7, ["--guide", "weaker"], 3)],
)
def test_in_an_interval_images_are_guided_at_its_steps_alone(guidable, first, last, options, num_steps):
    """Of the 8 steps three are 0, 4 and 7."""
    arguments = ["sample", "my_patch", "-n", "12", "--seed", "5", "--guidance", "2", *options, "-o", "x.npz"]
    arguments += ["--steps", "3"] if num_steps else []
    drawn = []
    for interval in (["--interval", str(first), str(last)], [], ["--interval", "0", "7"]):
        assert fmdiff(*arguments, *interval).exit_code == 0
        with np.load("x.npz") as arrays:
            drawn.append(arrays["images"])
    found, everywhere, all_steps = drawn
    guide = "weaker" if options else None
    assert near(found, guided_generated(12, 2, guide, 5, num_steps, (first, last))[:, 0].cpu())
    assert not near(found, everywhere) and np.array_equal(everywhere, all_steps)
    assert fmdiff("sample", "my_patch", "-n", "12", "--seed", "5", *arguments[-2:], "-o", "plain.npz").exit_code == 0
    with np.load("plain.npz") as arrays:
        assert not near(found, arrays["images"])


@pytest.mark.parametrize("command", ["sample", "evaluate"])
@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--interval", "0", "5"], ["--interval is '0 5'", "say with --guidance how far to lead"]),
        (["--interval", "0", "5", "--guide", "weaker"], ["say with --guidance how far to lead"]),
        (["--guidance", "2", "--interval", "0", "8"], ["--interval is 0 8", "the steps 0 to 7, in order"]),
        (["--guidance", "2", "--interval", "8", "9"], ["--interval is 8 9", "the steps 0 to 7, in order"]),
        (["--guidance", "2", "--interval", "-1", "3"], ["--interval is -1 3", "the steps 0 to 7, in order"]),
        (["--guidance", "2", "--interval", "5", "2"], ["--interval is 5 2", "the steps 0 to 7, in order"]),
        (["--guidance", "1", "--interval", "5", "2"], ["--interval is 5 2", "the steps 0 to 7, in order"]),
        (
            ["--guidance", "2", "--guide", "weaker", "--steps", "2", "--interval", "7", "0"],
            ["--interval is 7 0", "the steps 0 to 7, in order"],
        ),
    ],
)
def test_an_interval_without_guidance_or_of_steps_that_are_not_there_is_refused(
    guidable, garments, command, arguments, said
):
    check_refused(guidable, [command, "my_patch", *arguments], *said)


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_an_interval_for_networks_that_take_no_labels_is_refused(latents, garments, command):
    for name in ("tiny", "my_vae"):
        check_refused(latents, [command, name, "--interval", "0", "3"], "--interval is '0 3'", "say with --guidance")
        options = ["--guidance", "2", "--interval", "0", "3"]
        check_refused(latents, [command, name, *options], "--guidance is 2", f"{name!r} takes no labels to lead to")


@pytest.mark.parametrize("interval", [["3"], ["3", "x"], ["3", "5.5"]])
def test_an_interval_is_two_whole_numbers(guidable, interval):
    result = fmdiff("sample", "my_patch", "--guidance", "2", "--interval", *interval)
    assert result.exit_code == 2 and "--interval" in result.stderr and not list(guidable.glob("*.png"))


@pytest.mark.parametrize("ending", [".png", ".webp", ".npz"])
def test_guidance_1_is_no_guidance(guidable, ending):
    arguments = ["sample", "my_patch", "-n", "10", "--out"]
    assert fmdiff(*arguments, f"plain{ending}").exit_code == 0
    assert fmdiff(*arguments, f"one{ending}", "--guidance", "1").exit_code == 0
    assert (guidable / f"plain{ending}").read_bytes() == (guidable / f"one{ending}").read_bytes()


def test_a_guided_denoiser_of_latents_draws_images(latents):
    """Led away from another network in the same latent."""
    card = checkpoints.read_card("my_unet")
    write_network(latents / "weaker/weights.safetensors", card | {"arguments": card["arguments"] | {"width": 16}})
    arguments = ["sample", "my_unet", "-n", "10", "--guidance", "2", "--guide", "weaker", "-o", "x.npz"]
    assert fmdiff(*arguments).exit_code == 0
    device = PartialState().device
    schedule = recipes.schedule_of(CHAIN).to(device)
    vae, strong, weak = (checkpoints.load_pretrained(name, device) for name in ("my_vae", "my_unet", "weaker"))
    model = samplers.noise_from_v(lambda x, t, y: 2 * strong(x, t, y) - weak(x, t, y), schedule)
    expected = data.to_uint8(samplers.generate(model, schedule, 10, y=torch.arange(10), vae=vae))
    with np.load("x.npz") as arrays:
        assert near(arrays["images"], expected[:, 0].cpu())
        assert not near(arrays["images"], latent_generated(10)[:, 0].cpu())


@pytest.mark.parametrize("command", ["sample", "evaluate"])
@pytest.mark.parametrize(
    "arguments, said",
    [
        (["tiny", "--guidance", "2"], ["--guidance is 2", "'tiny' takes no labels to lead to", "leave it out"]),
        (["my_patch", "--guidance", "-0.5"], ["--guidance is -0.5", "expected at least 0"]),
        (["my_patch", "--guidance", "nan"], ["--guidance is nan", "expected at least 0"]),
        (["my_patch", "--guidance", "inf"], ["--guidance is inf", "expected at least 0"]),
        (["my_patch", "--guide", "weaker"], ["--guide is 'weaker'", "say with --guidance how far"]),
        (["my_patch", "--guidance", "2", "--guide", "longer"], ["schedule of 'longer'", "'T': 9", "'my_patch'"]),
        (["longer", "--guidance", "2", "--guide", "my_patch"], ["schedule of 'my_patch'", "'T': 8", "'longer'"]),
        (["my_patch", "--guidance", "2", "--guide", "waeker"], ["there are no weights 'waeker'", "published are"]),
        (["labelled", "--guidance", "2"], ["'labelled' never learned without labels", "name a weaker network"]),
        (["my_patch", "--guidance", "2", "--guide", "tiny"], ["'tiny'"]),
        (["my_patch", "--guidance", "2", "--guide", "classifier"], ["'classifier'"]),
    ],
)
def test_guidance_that_cannot_be_is_refused(guidable, garments, command, arguments, said):
    """A guide that takes no labels, as "tiny", or is no denoiser, cannot be asked what the network is asked."""
    check_refused(guidable, [command, *arguments], *said)


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_guidance_for_a_vae_or_from_another_latent_is_refused(latents, garments, command):
    check_refused(latents, [command, "my_vae", "--guidance", "2"], "--guidance is 2", "'my_vae' takes no labels")
    check_refused(latents, [command, "my_unet", "--guidance", "2"], "'my_unet' never learned without labels")
    said = ["autoencoder of 'labelled' is None", "that of 'my_unet'"]
    check_refused(latents, [command, "my_unet", "--guidance", "2", "--guide", "labelled"], *said)


def test_guidance_for_a_classifier_is_refused(guidable, garments):
    check_refused(guidable, ["sample", "classifier", "--guidance", "2"], "--guidance is 2", "'classifier'")


# fmdiff show


def shown(name: str) -> torch.nn.Module:
    """Return the autoencoder whose latent is shown."""
    autoencoders = {"my_unet": "my_vae", "my_denoiser": "my_autoencoder"}
    return checkpoints.load_pretrained(autoencoders.get(name, name), PartialState().device)


def some(garments, n: int) -> tuple[torch.Tensor, ...]:
    """Take so few test images, on the device, that maps of them are drawn at once."""
    garments["test"] = [part[:n] for part in garments["test"]]
    return tuple(part.to(PartialState().device) for part in garments["test"])


def recorded(name: str, kind: int, seed: int, num_steps: int) -> tuple:
    """Return five chains of a kind, their steps and their schedule."""
    model, schedule = recipes.load_denoiser(name, PartialState().device)
    return *paths.draw_chain(model, schedule, shown(name), torch.full((5,), kind), seed, num_steps), schedule


def check_figures(path: Path, *figures) -> None:
    """Check that a .png holds these figures."""
    export.save_figures(Path("expected.png"), *figures)
    with Image.open(path) as found, Image.open("expected.png") as expected:
        assert found.format == "PNG" and np.array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("name", ["my_vae", "my_unet", "my_autoencoder", "my_denoiser"])
def test_reconstructions_are_those_of_ten_test_images_by_an_autoencoder_or_the_one_of_a_denoiser(
    vectors, garments, name
):
    result = fmdiff("show", "reconstructions", name)
    assert result.exit_code == 0 and result.stdout == f"reconstructions of {name} in reconstructions.png\n"
    check_figures(Path("reconstructions.png"), paths.reconstructions(shown(name), some(garments, 10)[0]))


@pytest.mark.parametrize("options, method", [([], "pca"), (["--tsne"], "tsne")])
def test_latents_are_a_map_of_the_test_images(vectors, garments, options, method):
    images = some(garments, 40)
    assert fmdiff("show", "latents", "my_denoiser", *options).stdout == "latents of my_denoiser in latents.png\n"
    check_figures(Path("latents.png"), paths.latent_map(shown("my_denoiser"), *images, method))


@pytest.mark.parametrize(
    "name, options, choice",
    [
        ("my_denoiser", ["--steps", "8"], (3, 0, 8)),
        ("my_unet", ["--steps", "3", "--seed", "5", "--label", "bag", "-o", "new/path.png"], (8, 5, 3)),
    ],
)
def test_a_path_is_a_chain_of_the_kind_seed_and_steps_that_were_chosen(vectors, garments, name, options, choice):
    images, out = some(garments, 40), "new/path.png" if "-o" in options else "path.png"
    assert fmdiff("show", "path", name, *options).stdout == f"path of {name} in {Path(out)}\n"
    path, times, _ = recorded(name, *choice)
    check_figures(Path(out), *paths.chain_figures(shown(name), path[:, 0], times, *images))


@pytest.mark.parametrize(
    "options, choice", [([], (3, 0, 8)), (["--seed", "5"], (3, 5, 8)), (["--label", "9", "--steps", "4"], (9, 0, 4))]
)
def test_a_loop_shows_five_garments_on_their_way_to_noise_and_back(vectors, garments, options, choice):
    """A .gif unless told otherwise; both have a frame for each state there and back, and start again."""
    options, K = ["--steps", str(choice[2]), *options], choice[2]
    assert fmdiff("show", "loop", "my_denoiser", *options).stdout == "loop of my_denoiser in loop.gif\n"
    assert fmdiff("show", "loop", "my_denoiser", *options, "-o", "x.webp").exit_code == 0
    frames = paths.there_and_back(*recorded("my_denoiser", *choice))
    with Image.open("loop.gif") as gif, Image.open("x.webp") as webp:
        assert (gif.format, webp.format) == ("GIF", "WEBP") and gif.info["loop"] == webp.info["loop"] == 0
        assert gif.n_frames == webp.n_frames == len(frames) == 2 * K + 1
        for k, z in enumerate(frames):
            webp.seek(k)
            expected = export.grid(data.to_uint8(shown("my_denoiser").from_latent(z)), 5)
            assert np.array_equal(np.asarray(webp.convert("L")), np.asarray(expected))


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["latent", "my_vae"], ["what to show is 'latent'", "expected one of reconstructions, latents, path, loop"]),
        (["latents", "my_vea"], ["there are no weights 'my_vea'", "published are"]),
        (["latents", "my_vae", "-o", "x.gif"], ["the ending of --out is '.gif'", "expected one of .png"]),
        (["path", "my_unet", "-o", "x"], ["the ending of --out is ''", "expected one of .png"]),
        (["loop", "my_unet", "-o", "x.png"], ["the ending of --out is '.png'", "expected one of .gif, .webp"]),
        (["path", "my_unet", "-o", "folder.png"], ["--out is folder.png", "name a file in a folder"]),
        (["loop", "my_unet", "-o", "file/x.gif"], [f"--out is {Path('file/x.gif')}", "name a file in a folder"]),
        (["latents", "tiny"], ["'tiny' (UNet) has no latents to show", "a denoiser of latents, or an autoencoder"]),
        (["reconstructions", "classifier"], ["'classifier' (Classifier) has no reconstructions", "or an autoencoder"]),
        (["path", "my_vae"], ["'my_vae' (VAE) has no path to show; name a denoiser of latents"]),
        (["loop", "my_autoencoder"], ["'my_autoencoder' (AttentionAutoencoder) has no loop to show; name a denoiser"]),
        (["loop", "labelled"], ["'labelled' (Transformer) has no loop to show; name a denoiser of latents"]),
        (["path", "my_unet", "--steps", "0"], ["steps is 0; expected 1 to ", "8"]),
        (["loop", "my_unet", "--steps", "9"], ["steps is 9; expected 1 to ", "8"]),
        (["path", "my_unet", "--label", "Hat"], ["--label is 'Hat'", "expected a name or a number of: 0 T-shirt"]),
        (["latents", "my_vae", "--label", "Bag"], ["--label is given, but means nothing for latents; leave it out"]),
        (["latents", "my_vae", "--seed", "0"], ["--seed is given, but means nothing for latents"]),
        (["reconstructions", "my_vae", "--steps", "5"], ["--steps is given, but means nothing for reconstructions"]),
        (["reconstructions", "my_vae", "--tsne"], ["--tsne is given, but means nothing for reconstructions"]),
        (["path", "my_unet", "--tsne"], ["--tsne is given, but means nothing for path"]),
        (["loop", "my_unet", "--tsne"], ["--tsne is given, but means nothing for loop"]),
    ],
)
def test_show_refuses_what_is_not_there_to_show_or_cannot_be_written(vectors, garments, arguments, said):
    (vectors / "folder.png").mkdir()
    (vectors / "file").write_text("mine")
    check_refused(vectors, ["show", *arguments], *said)


# fmdiff evaluate


def test_evaluate_prints_the_measures_beside_their_floor_as_json(tiny, garments):
    result = fmdiff("evaluate", "tiny", "-n", "200", "--seeds", "2", "--steps", "2", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    device = PartialState().device
    images = [garments[split][0].to(device) for split in ("train", "test")]
    judge = metrics.Judge(checkpoints.load_pretrained("classifier", device), *images)
    expected = metrics.mean_and_spread([judge.measure(generated(200, seed, 2)) for seed in (0, 1)])
    floor = metrics.mean_and_spread(judge.floor(200))
    assert found.pop("measures") == {name: pytest.approx(values, rel=1e-3) for name, values in expected.items()}
    assert found.pop("floor") == {name: pytest.approx(values, rel=1e-3) for name, values in floor.items()}
    assert found == {"network": "tiny", "n": 200, "seeds": 2, "steps": 2, "device": str(PartialState().device)}


def test_evaluate_takes_all_steps_unless_told_otherwise(tiny, garments):
    all_steps, as_many = (
        json.loads(fmdiff("evaluate", "tiny", "-n", "200", "--seeds", "1", "--json", *steps).stdout)
        for steps in ([], ["--steps", "8"])
    )
    assert all_steps["steps"] == 8 and all_steps == as_many
    assert [spread for _, spread in all_steps["measures"].values()] == [0] * 5


@pytest.mark.parametrize("name", ["classifier", "my_autoencoder"])
@pytest.mark.parametrize(
    "option", [["--steps", "5"], ["--guidance", "2"], ["--guide", "labelled"], ["--interval", "0", "3"]]
)
def test_evaluate_refuses_what_is_said_of_samples_for_a_network_that_draws_none(vectors, name, option):
    said = f"{name!r} draws nothing; leave --steps, --guidance, --guide and --interval out"
    check_refused(vectors, ["evaluate", name, "-n", "200", *option], said)


def test_evaluate_says_how_many_test_images_a_classifier_gets_right(tiny, garments):
    images, labels = garments["test"]
    model = checkpoints.load_pretrained("classifier")
    right = (model(data.to_model(images)).argmax(1) == labels).double().mean().item()
    assert fmdiff("evaluate", "classifier").stdout == f"classifier: {right:.2%} of the test images right\n"
    assert json.loads(fmdiff("evaluate", "classifier", "--json").stdout) == {"test_accuracy": right}


def test_evaluate_runs_a_classifier_on_the_device_of_this_process(tiny, garments, monkeypatch):
    load, asked = checkpoints.load_pretrained, []
    monkeypatch.setattr(checkpoints, "load_pretrained", lambda *given: asked.append(given) or load(*given))
    assert fmdiff("evaluate", "classifier").exit_code == 0
    assert asked == [("classifier", PartialState().device)]


def test_evaluate_prints_a_table(tiny, garments):
    arguments = ["evaluate", "tiny", "-n", "210", "--seeds", "2", "--steps", "2"]
    found, result = json.loads(fmdiff(*arguments, "--json").stdout), fmdiff(*arguments)
    assert result.exit_code == 0
    title, head, *rows = result.stdout.splitlines()
    assert "tiny: 210 images for each of 2 seeds, 2 steps" in title
    assert head.split() == ["mean", "spread", "floor", "spread"]
    assert [row.split()[0] for row in rows] == ["fd", "kd", "precision", "recall", "copying"]
    for row in rows:
        name, *values = row.split()
        assert values == [f"{value:.4f}" for value in (*found["measures"][name], *found["floor"][name])]


def test_evaluate_tells_how_many_garments_are_of_the_kind_that_was_asked_for(tiny, garments):
    """All ten kinds in turn; the floor has no such measure."""
    arguments = ["evaluate", "labelled", "-n", "210", "--seeds", "2", "--steps", "2"]
    found, table = json.loads(fmdiff(*arguments, "--json").stdout), fmdiff(*arguments).stdout.splitlines()
    classifier, y, shares = checkpoints.load_pretrained("classifier", PartialState().device), torch.arange(210) % 10, []
    for seed in (0, 1):
        said = classifier(data.to_model(generated(210, seed, 2, y))).argmax(1).cpu()
        shares.append((said == y).double().mean())
    expected = [torch.stack(shares).mean().item(), torch.stack(shares).std().item()]
    assert found["measures"]["label_accuracy"] == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert list(found["measures"]) == [*found["floor"], "label_accuracy"]
    name, *values = table[-1].split()
    assert name == "label_accuracy" and values == [f"{value:.4f}" for value in expected]


@pytest.mark.parametrize("guide", [None, "weaker"])
def test_evaluate_measures_guided_images_and_says_how_they_were_guided(guidable, garments, guide):
    arguments = ["evaluate", "my_patch", "-n", "200", "--seeds", "1", "--steps", "1", "--guidance", "2.5"]
    found = json.loads(fmdiff(*arguments, *(["--guide", guide] if guide else []), "--json").stdout)
    device = PartialState().device
    judge = metrics.Judge(
        checkpoints.load_pretrained("classifier", device),
        *(garments[split][0].to(device) for split in ("train", "test")),
    )
    expected = judge.measure(guided_generated(200, 2.5, guide, num_steps=1), torch.arange(200) % 10)
    about = {"network": "my_patch", "n": 200, "seeds": 1, "steps": 1, "device": str(device)}
    measures = found.pop("measures")
    assert {name: mean for name, (mean, _) in measures.items()} == pytest.approx(expected, rel=1e-3, abs=1e-6)
    del found["floor"]
    assert found == about | {"guidance": 2.5, "guide": guide}


def test_the_table_says_how_far_it_was_guided_and_nothing_where_it_was_not(guidable, garments):
    arguments = ["evaluate", "my_patch", "-n", "200", "--seeds", "1", "--steps", "1"]
    title = "my_patch: 200 images for each of 1 seeds, 1 steps, {}on " + str(PartialState().device)
    assert fmdiff(*arguments).stdout.splitlines()[0] == title.format("")
    assert fmdiff(*arguments, "--guidance", "2.5").stdout.splitlines()[0] == title.format("guidance 2.5, ")


def test_evaluate_measures_what_was_guided_in_an_interval_and_says_where(guidable, garments):
    arguments = ["evaluate", "my_patch", "-n", "200", "--seeds", "1", "--steps", "2", "--guidance", "2.5"]
    arguments += ["--interval", "4", "7"]
    found = json.loads(fmdiff(*arguments, "--json").stdout)
    judge, y = judge_of(garments), torch.arange(200) % 10
    expected = judge.measure(guided_generated(200, 2.5, num_steps=2, interval=(4, 7)), y)
    everywhere = judge.measure(guided_generated(200, 2.5, num_steps=2), y)
    close = pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert {name: mean for name, (mean, _) in found["measures"].items()} == close and everywhere != close
    assert found["interval"] == [4, 7] and found["guidance"] == 2.5
    title = "my_patch: 200 images for each of 1 seeds, 2 steps, guidance 2.5, at steps 4 to 7, on "
    assert fmdiff(*arguments).stdout.splitlines()[0] == title + str(PartialState().device)


@pytest.mark.parametrize("name, steps, labelled", [("my_vae", None, False), ("my_unet", 2, True)])
def test_evaluate_measures_what_comes_of_latents_beside_floor_and_ceiling(latents, garments, name, steps, labelled):
    arguments = ["evaluate", name, "-n", "200", "--seeds", "2", *(["--steps", "2"] if steps else [])]
    result = fmdiff(*arguments, "--json")
    assert result.exit_code == 0
    found, device = json.loads(result.stdout), PartialState().device
    classifier, vae = (checkpoints.load_pretrained(network, device) for network in ("classifier", "my_vae"))
    judge = metrics.Judge(classifier, *(garments[split][0].to(device) for split in ("train", "test")))
    if labelled:
        y = torch.arange(200) % 10
        measured = [judge.measure(latent_generated(200, seed, steps), y) for seed in (0, 1)]
    else:
        measured = [judge.measure(vae_generated(200, seed)) for seed in (0, 1)]
    expected = {"measures": measured, "floor": judge.floor(200), "ceiling": judge.ceiling(200, vae)}
    columns = {column: found.pop(column) for column in expected}
    for column, measures in expected.items():
        expected[column] = metrics.mean_and_spread(measures)
        close = {measure: pytest.approx(values, rel=1e-3) for measure, values in expected[column].items()}
        assert columns[column] == close
    assert found == {"network": name, "n": 200, "seeds": 2, "steps": steps, "device": str(device)}
    assert ("label_accuracy" in columns["measures"]) is labelled

    title, head, *rows = fmdiff(*arguments).stdout.splitlines()
    taking = f"{steps} steps, " if steps else ""
    assert title == f"{name}: 200 images for each of 2 seeds, {taking}on {device}"
    assert head.split() == ["mean", "spread", "floor", "spread", "ceiling", "spread"]
    measures = ["fd", "kd", "precision", "recall", "copying", *(["label_accuracy"] * labelled), "squared_error"]
    assert [row.split()[0] for row in rows] == measures
    for row in rows:  # each number below the end of its head, and nothing where there is none
        cells = [row[start : start + 10].strip() for start in range(14, len(head), 10)]
        values = [value for column in columns.values() for value in column.get(row.split()[0], (None, None))]
        assert cells == ["" if value is None else f"{value:.4f}" for value in values]


def test_evaluate_measures_of_an_autoencoder_that_draws_nothing_what_it_makes_of_real_images(vectors, garments):
    arguments, device = ["evaluate", "my_autoencoder", "-n", "200", "--seeds", "2"], PartialState().device
    found = json.loads(fmdiff(*arguments, "--json").stdout)
    classifier, autoencoder = (checkpoints.load_pretrained(name, device) for name in ("classifier", "my_autoencoder"))
    judge = metrics.Judge(classifier, *(garments[split][0].to(device) for split in ("train", "test")))
    expected = {"floor": judge.floor(200), "ceiling": judge.ceiling(200, autoencoder)}
    columns = {column: found.pop(column) for column in expected}
    for column, measures in expected.items():
        close = {name: pytest.approx(values, rel=1e-3) for name, values in metrics.mean_and_spread(measures).items()}
        assert columns[column] == close
    assert found == {"network": "my_autoencoder", "n": 200, "seeds": 2, "steps": None, "device": str(device)}

    _, head, *rows = fmdiff(*arguments).stdout.splitlines()
    assert head.split() == ["floor", "spread", "ceiling", "spread"]
    assert [row.split()[0] for row in rows] == ["fd", "kd", "precision", "recall", "copying", "squared_error"]
    for row in rows:
        name, *cells = row.split()
        values = [value for column in columns.values() for value in column.get(name, ())]
        assert cells == [f"{value:.4f}" for value in values]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["-n", "199"], ["-n is 199", "expected at least 200"]),
        (["-n", "-1"], ["-n is -1", "expected at least 200"]),
        (["--seeds", "0"], ["--seeds is 0", "expected at least 1"]),
    ],
)
def test_evaluate_refuses_too_few_images_or_seeds(tiny, garments, arguments, said):
    check_refused(tiny, ["evaluate", "tiny", *arguments], *said)


# fmdiff evaluate all


def judge_of(garments) -> metrics.Judge:
    """Return what measures images, from the tiny classifier and the drawn garments."""
    device = PartialState().device
    images = (garments[split][0].to(device) for split in ("train", "test"))
    return metrics.Judge(checkpoints.load_pretrained("classifier", device), *images)


@pytest.fixture
def board(latents, guidable, garments, monkeypatch) -> dict[str, dict]:
    """Rows of tiny networks in the place of the leaderboard's, and a clock that each look puts on by a second."""
    rows = {
        "tiny": {"name": "tiny", "num_steps": 2},
        "a VAE": {"name": "my_vae"},
        "my_unet, 1 step": {"name": "my_unet", "num_steps": 1},
        "my_patch, led, half-way": {"name": "my_patch", "num_steps": 2, "guidance": 2.5, "interval": [4, 7]},
    }
    monkeypatch.setattr(leaderboard, "ROWS", rows)
    ticks = iter(range(1000))
    monkeypatch.setattr(leaderboard, "clock", lambda device: next(ticks))
    return rows


def test_evaluate_all_measures_every_row_beside_the_floor_as_json(board, garments):
    result = fmdiff("evaluate", "all", "-n", "210", "--seeds", "2", "--json")
    assert result.exit_code == 0
    found, device, judge = json.loads(result.stdout), PartialState().device, judge_of(garments)
    for row, labels in (("floor", None), ("floor, equal kinds", garments["train"][1])):
        measures = metrics.mean_and_spread(judge.floor(210, labels=labels)).items()
        assert found.pop(row) == {name: pytest.approx(values, rel=1e-3) for name, values in measures}
    rows = found.pop("rows")
    assert found == {"n": 210, "seeds": 2, "device": str(device)} and list(rows) == list(board)
    for name, row in rows.items():
        expected = leaderboard.measure_row(judge, name, 210, range(2), device)
        close = {m: pytest.approx(v, rel=1e-3, abs=1e-9) for m, v in expected.pop("measures").items()}
        assert row.pop("measures") == close and "seconds" in close
        assert row == expected == board[name]


def test_what_evaluate_all_says_of_a_row_is_what_evaluate_says_of_its_network(board):
    all_rows = json.loads(fmdiff("evaluate", "all", "-n", "200", "--seeds", "2", "--json").stdout)
    options = {
        "a VAE": ["my_vae"],
        "my_unet, 1 step": ["my_unet", "--steps", "1"],
        "my_patch, led, half-way": ["my_patch", "--steps", "2", "--guidance", "2.5", "--interval", "4", "7"],
    }
    for row, arguments in options.items():
        found = json.loads(fmdiff("evaluate", *arguments, "-n", "200", "--seeds", "2", "--json").stdout)
        assert all_rows["rows"][row]["measures"].pop("seconds") == [5, 0]
        for measures, values in all_rows["rows"][row]["measures"].items():
            assert found["measures"][measures] == pytest.approx(values, rel=1e-3, abs=1e-9)
        assert found["measures"].keys() == all_rows["rows"][row]["measures"].keys()
        assert found["floor"] == all_rows["floor"]


def test_evaluate_all_prints_a_line_for_the_floor_and_for_each_row(board):
    """Each number below the end of its head, and nothing where there is none."""
    arguments = ["evaluate", "all", "-n", "210", "--seeds", "2"]
    found, result = json.loads(fmdiff(*arguments, "--json").stdout), fmdiff(*arguments)
    assert result.exit_code == 0
    title, head, *lines = result.stdout.splitlines()
    said = "210 images for each of 2 seeds, mean ± spread, on {}; seconds are for 1,000 images"
    assert title == said.format(PartialState().device)
    measures = ["fd", "kd", "precision", "recall", "label_accuracy", "copying", "seconds"]
    floors = ["floor", "floor, equal kinds"]
    assert head.split() == measures and [line[:28].rstrip() for line in lines] == [*floors, *board]
    columns = [*(found[row] for row in floors), *(row["measures"] for row in found["rows"].values())]
    for line, column in zip(lines, columns, strict=True):
        ends = [head.index(measure) + len(measure) for measure in measures]
        cells = [line[end - 16 : end].split() for end in ends]
        values = [column.get(measure) for measure in measures]
        assert cells == [[f"{v[0]:.3f}", "±", f"{v[1]:.3f}"] if v else [] for v in values]


def test_where_a_row_cannot_be_measured_those_before_it_are_printed_and_one_line_says_why(board):
    """As JSON nothing is: half a leaderboard is none."""
    board["my_unet, 1 step"]["name"] = "nowhere"
    result = fmdiff("evaluate", "all", "-n", "200", "--seeds", "1")
    assert result.exit_code == 2
    printed = [line[:28].rstrip() for line in result.stdout.splitlines()[2:]]
    assert printed == ["floor", "floor, equal kinds", "tiny", "a VAE"]
    assert result.stderr.split("\r")[-1].startswith("fmdiff: there are no weights 'nowhere'; published are: ")
    result = fmdiff("evaluate", "all", "-n", "200", "--seeds", "1", "--json")
    assert result.exit_code == 2 and result.stdout == ""


@pytest.mark.parametrize(
    "options", [["--steps", "2"], ["--guidance", "0"], ["--guide", "weaker"], ["--interval", "0", "0"]]
)
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_options_that_every_row_has_of_its_own_are_refused_for_all(board, guidable, options, as_json):
    said = "all rows of the leaderboard have their own steps and guidance; leave those options out"
    check_refused(guidable, ["evaluate", "all", *options, *as_json], said)


def test_evaluate_all_refuses_too_few_images_or_seeds(board, guidable):
    check_refused(guidable, ["evaluate", "all", "-n", "199"], "-n is 199", "expected at least 200")
    check_refused(guidable, ["evaluate", "all", "--seeds", "0"], "--seeds is 0", "expected at least 1")


# fmdiff train


@pytest.fixture
def trained(tiny, monkeypatch) -> list[tuple]:
    """What each training that would have started was given; it ends well, after the steps it was told."""
    calls = []

    def train_network(name, folder, autoencoder=None, **changes):
        calls.append((name, folder, autoencoder, changes))
        return None, [{"step": changes["steps"], "loss": 1.0, "validation": {"loss": 0.123456}}]

    monkeypatch.setattr(recipes, "train_network", train_network)
    return calls


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["unet2"], ["'unet2'", f"expected one of {', '.join(recipes.CARDS)}"]),
        (["unet", "--profile", "long"], ["--profile is 'long'", "expected one of smoke, quick, full"]),
        (["unet", "--epochs", "0"], ["--epochs is 0", "expected at least 0.01"]),
        (["unet", "--epochs", "-1"], ["--epochs is -1", "expected at least 0.01"]),
        (["unet", "--epochs", "nan"], ["--epochs is nan", "expected at least 0.01"]),
        (["unet", "--batch-size", "0"], ["--batch-size is 0", "expected at least 1"]),
        (["unet", "--batch-size", "-128"], ["--batch-size is -128", "expected at least 1"]),
        (
            ["unet", "--autoencoder", "my_vae"],
            ["--autoencoder is 'my_vae'", "unet sees images, not latents", "leave it out"],
        ),
        (
            ["vae", "--autoencoder", "my_vae"],
            ["--autoencoder is 'my_vae'", "vae sees images, not latents", "leave it out"],
        ),
        (["classifier", "--autoencoder", ""], ["--autoencoder is ''", "classifier sees images", "leave it out"]),
    ],
)
def test_train_refuses_what_makes_no_sense(tiny, trained, arguments, said):
    check_refused(tiny, ["train", *arguments], *said)
    assert trained == []


def test_train_refuses_a_batch_larger_than_the_dataset(tiny, monkeypatch):
    monkeypatch.setattr(recipes, "load_fashion_mnist", lambda split: draw_garments(2050))
    check_refused(tiny, ["train", "unet", "--batch-size", "51"], "batch_size is 51", "at most the 50 images")


@pytest.mark.parametrize(
    "arguments, folder, changes",
    [
        ([], "runs/unet", {"batch_size": 128, "seed": 0, "steps": recipes.PROFILES["unet"]["full"]["steps"]}),
        (["--profile", "smoke", "--seed", "3"], "runs/unet", {"batch_size": 128, "seed": 3, "steps": 60, "every": 20}),
        (["--epochs", "2", "--batch-size", "58", "--out", "x"], "x", {"batch_size": 58, "seed": 0, "steps": 2000}),
        (["--epochs", "0.01", "--batch-size", "5800"], "runs/unet", {"batch_size": 5800, "seed": 0, "steps": 1}),
    ],
)
def test_train_follows_the_recipe_but_for_what_it_is_told(trained, arguments, folder, changes):
    """An epoch is 58,000 images: the training split without the 2000 for validation."""
    result = fmdiff("train", "unet", *arguments)
    assert result.exit_code == 0 and trained == [("unet", Path(folder), None, changes)]
    assert f"{Path(folder)}: validation loss 0.1235 after {changes['steps']} steps" in result.stdout
    assert f"fmdiff sample {Path(folder)}" in result.stdout


@pytest.mark.parametrize("options, autoencoder", [([], None), (["--autoencoder", "runs/vae"], "runs/vae")])
def test_a_denoiser_of_latents_is_trained_in_the_latent_of_the_vae_that_is_named(trained, options, autoencoder):
    """Without a name in that of its recipe."""
    result = fmdiff("train", "latent_unet", "--profile", "smoke", *options)
    changes = {"batch_size": 128, "seed": 0} | recipes.PROFILES["latent_unet"]["smoke"]
    assert trained == [("latent_unet", Path("runs/latent_unet"), autoencoder, changes)]
    assert result.exit_code == 0 and f"fmdiff sample {Path('runs/latent_unet')}" in result.stdout


@pytest.fixture
def small_cards(tiny, monkeypatch) -> Path:
    """The working folder, and tiny autoencoders and denoisers of latents, trained in 4 steps on 96 drawn images."""
    monkeypatch.setattr(recipes, "NUM_VALIDATION", 32)
    monkeypatch.setattr(recipes, "load_fashion_mnist", lambda split: draw_garments(96))
    tiny_ones = {
        "vae": {"width": 4, "channels": 2},
        "latent_unet": {"channels": 2, "width": 8, "mults": [1], "patch": 1, "num_classes": 10},
        "attention_autoencoder": {"width": 8},
        "vector_denoiser": recipes.CARDS["vector_denoiser"]["arguments"] | {"width": 8, "mults": [1]},
    }
    for name, arguments in tiny_ones.items():
        chain = {"schedule": CHAIN["schedule"]} if "schedule" in recipes.CARDS[name] else {}
        monkeypatch.setitem(recipes.CARDS, name, recipes.CARDS[name] | {"arguments": arguments} | chain)
        monkeypatch.setitem(recipes.PROFILES, name, {"smoke": {"steps": 4, "every": 2}, "full": {"steps": 4}})
    return tiny


@pytest.mark.parametrize(
    "autoencoder, denoiser", [("vae", "latent_unet"), ("attention_autoencoder", "vector_denoiser")]
)
def test_an_autoencoder_and_a_denoiser_in_its_latent_are_trained_and_draw(small_cards, autoencoder, denoiser):
    short, folder, run = ["--profile", "smoke", "--batch-size", "16"], f"runs/{autoencoder}", f"runs/{denoiser}"
    result = fmdiff("train", autoencoder, *short)
    assert result.exit_code == 0 and f"{Path(folder)}: validation loss" in result.stdout
    weights = (small_cards / folder / "weights.safetensors").read_bytes()
    result = fmdiff("train", denoiser, "--autoencoder", folder, *short)
    assert result.exit_code == 0 and f"{Path(run)}: validation loss" in result.stdout
    assert (small_cards / folder / "weights.safetensors").read_bytes() == weights
    checksum = hashlib.sha256(weights).hexdigest()
    assert checkpoints.read_card(run)["autoencoder"] == {"name": str(Path(folder).resolve()), "sha256": checksum}
    for name in [run, folder] if autoencoder == "vae" else [run]:
        assert fmdiff("sample", name, "-n", "3", "-o", "x.npz").exit_code == 0
        assert np.load("x.npz")["images"].shape == (3, 28, 28)


def test_a_denoiser_of_latents_without_a_vae_to_train_in_is_refused(small_cards):
    known = "published are: classifier, labelled, tiny"
    check_refused(small_cards, ["train", "latent_unet"], "there are no weights 'vae'", known)
    check_refused(
        small_cards, ["train", "latent_unet", "--autoencoder", "nowhere"], "there are no weights 'nowhere'", known
    )


@pytest.mark.parametrize("name", ["classifier", "attention_autoencoder"])
def test_nothing_samples_from_a_trained_network_that_draws_nothing(trained, name):
    _, hint = fmdiff("train", name).stdout.splitlines()
    assert hint == f"Next: fmdiff evaluate {Path('runs') / name}"


@pytest.mark.parametrize(
    "error, code",
    [
        (ValueError("checkpoint.pt is another training"), 2),
        (PermissionError("not allowed"), 2),
        (FloatingPointError("the loss was nan"), 1),
        (MemoryError("batch_size=64 does"), 1),
    ],
)
def test_a_training_that_fails_says_why_in_one_line(trained, monkeypatch, error, code):
    def fail(name, folder, **changes):
        raise error

    monkeypatch.setattr(recipes, "train_network", fail)
    result = fmdiff("train", "unet")
    assert result.exit_code == code and result.stdout == "" and result.stderr == f"fmdiff: {error}\n"


def test_an_interrupted_training_is_exit_code_130(trained, monkeypatch):
    monkeypatch.setattr(recipes, "train_network", lambda name, folder, **changes: (None, [{"step": 50, "loss": 1.0}]))
    result = fmdiff("train", "unet", "--profile", "smoke")
    assert result.exit_code == 130 and result.stdout == ""
