"""The tools that write notebooks: normal form, smaller pictures, Colab's address in and out again."""

import base64
import io
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import colab
import nbformat
import publish
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from safetensors.torch import load
from small_networks import saved

from fmdiff_helpers.cards import read_card
from fmdiff_helpers.recipes import CARDS
from notebooks import WIDGET, code_hash, normalise, shrink_png

ROOT = Path(__file__).parents[1]


def png(image):
    """A picture as base64, as a notebook holds it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def opened(picture):
    """The picture in some base64."""
    return Image.open(io.BytesIO(base64.b64decode(picture)))


FIGURE = '<img alt="a white square" src="data:image/png;base64,{}">'


@pytest.fixture
def executed():
    """A notebook as a kernel leaves it: counts, timings, a widget with and one without a film, an address."""
    film = {WIDGET: {"model_id": "1"}, "text/html": "<figure>film</figure>", "text/plain": "NoisingExplorer"}
    bar = {WIDGET: {"model_id": "2"}, "text/plain": "bar"}
    figure = {"text/html": FIGURE.format(png(Image.new("RGB", (9, 9), "white"))), "text/plain": "a white square"}
    outputs = [new_output("display_data", data) for data in (film, bar)]
    outputs += [new_output("execute_result", figure, execution_count=3), new_output("stream", text="1")]
    cell = new_code_cell("x = 1", execution_count=3, outputs=outputs, metadata={"tags": ["cover"], "execution": {}})
    setup = new_code_cell("import sys", metadata={"tags": ["setup"]})
    metadata = {"widgets": {"state": {}}, "kernelspec": {"name": "my-kernel", "display_name": "mine"}}
    return new_notebook(cells=[setup, cell], metadata=metadata)


def test_normal_form_keeps_what_a_reader_sees_and_nothing_that_changes(executed):
    normalise(executed)
    nbformat.validate(executed)
    cell = executed.cells[1]
    assert cell.execution_count is None and cell.metadata == {"tags": ["cover"]}
    film, figure, text = cell.outputs
    assert film.data == {"text/html": "<figure>film</figure>"}
    smaller = shrink_png(png(Image.new("RGB", (9, 9), "white")))
    assert figure.data == {"text/html": FIGURE.format(smaller)} and figure.execution_count is None
    assert text.text == "1"
    assert executed.metadata.keys() == {"kernelspec", "language_info", "fmdiff"}
    assert executed.metadata.kernelspec.name == "python3"
    once = nbformat.writes(executed)
    normalise(executed)
    assert nbformat.writes(executed) == once, "the normal form is final"


def test_the_stamp_sees_code_but_no_text_and_no_setup_cell(executed):
    before = code_hash(executed)
    executed.cells[0].source = "another setup"
    executed.cells.append(new_markdown_cell("text"))
    assert code_hash(executed) == before
    executed.cells[1].source = "x = 2"
    assert code_hash(executed) != before


def test_a_grey_picture_stays_as_it_is_and_becomes_smaller_and_a_coloured_one_keeps_its_colours():
    grey = Image.effect_noise((60, 60), 80)
    picture = png(grey.convert("RGBA"))
    smaller = shrink_png(picture)
    assert opened(smaller).tobytes() == grey.tobytes() and len(smaller) < len(picture)
    blue = shrink_png(png(Image.new("RGB", (8, 8), "#0072B2")))
    assert opened(blue).convert("RGB").getpixel((0, 0)) == (0, 0x72, 0xB2)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the files that hold the address."""
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    monkeypatch.setattr(colab, "ROOT", tmp_path)
    monkeypatch.setattr(colab, "PROJECT", tmp_path / "pyproject.toml")
    return tmp_path


def contents(folder):
    """All files of a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".toml", ".md", ".ipynb")}


def test_an_address_goes_into_badges_and_setup_cells_and_out_again(copy):
    colab.write("")
    before = contents(copy)
    colab.write("ada/diffusion")
    assert colab.repository() == "ada/diffusion"
    link = "https://colab.research.google.com/github/ada/diffusion/blob/main/notebooks/01_forward_noising.ipynb"
    assert link in (copy / "README.md").read_text(encoding="utf-8")
    for path in (copy / "notebooks").glob("[0-9]*.ipynb"):
        nb = nbformat.read(path, as_version=4)
        assert f"/{path.name}" in nb.cells[0].source.splitlines()[0]
        (setup,) = [cell.source for cell in nb.cells if "setup" in cell.metadata.get("tags", [])]
        assert "https://github.com/ada/diffusion " in setup
    colab.write("")
    assert contents(copy) == before


@pytest.mark.parametrize("address", ["ada", "../..", "ada/diffusion/x", "https://x.org/ada/diffusion"])
def test_what_is_no_address_is_refused_by_value(monkeypatch, address):
    monkeypatch.setattr(sys, "argv", ["colab.py", address])
    with pytest.raises(SystemExit, match="expected one argument, OWNER/NAME") as stop:
        runpy.run_path(ROOT / "tools" / "colab.py", run_name="__main__")
    assert address in str(stop.value)


def test_the_text_of_a_notebook_is_its_source_without_outputs():
    run = [sys.executable, ROOT / "tools" / "notebook_text.py", ROOT / "notebooks" / "01_forward_noising.ipynb"]
    text = subprocess.run(run, capture_output=True, check=True).stdout.decode()
    assert "def add_noise(x0, t, eps, schedule):" in text and "base64" not in text


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Return a function that writes a network as a training on some data leaves it, and publishes it."""
    monkeypatch.setattr(publish, "PUBLISHED", tmp_path / "published")

    def write_and_publish(data, name="classifier"):
        saved(name, tmp_path / "run", data=data)
        return publish.publish(tmp_path / "run", "small", "fmdiff train small", tmp_path / "measures.json")

    return write_and_publish


def test_a_network_is_published_with_what_it_and_those_before_it_measured(trained, tmp_path):
    for fd in (3.0, 2.0, 1.0):
        (tmp_path / "measures.json").write_text(f'{{"fd": [{fd}, 0.1]}}')
        card = read_card(trained("Fashion-MNIST, training split"))
    assert card["measures"] == {"fd": [1.0, 0.1], "network": "small"} and card["command"] == "fmdiff train small"
    assert card["data"] == "Fashion-MNIST, training split" and card["torch"] and card["version"]
    assert [each["measures"]["fd"][0] for each in card["earlier"]] == [3.0, 2.0]
    assert card["earlier"][0]["arguments"] == {"width": 2} and "earlier" not in card["earlier"][1]


@pytest.mark.parametrize("name", ["classifier", "encoder", "vae", "attention_autoencoder", "unet", "patch_unet"])
def test_only_denoisers_are_published_in_half_precision(trained, tmp_path, name):
    (tmp_path / "measures.json").write_text("{}")
    weights = load(trained("Fashion-MNIST, training split", name).read_bytes())
    dtype = torch.float16 if CARDS[name]["kind"] == "denoiser" else torch.float32
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {dtype}


def test_a_network_trained_on_the_stand_in_is_not_published(trained, tmp_path):
    with pytest.raises(SystemExit, match="trained on the drawn stand-in"):
        trained("drawn stand-in for Fashion-MNIST")
    assert not (tmp_path / "published").exists()
