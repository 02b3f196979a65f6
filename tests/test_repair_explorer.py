"""The claims of fmdiff_helpers.repair_explorer: what is hidden, what each method draws, and what the page says."""

import pytest
import torch
from test_explorers import GARMENTS, IN_BOTH, LABELS, SHORT, drawer, inside
from torch.testing import assert_close

from fmdiff_helpers.data import CLASS_NAMES, to_model
from fmdiff_helpers.filmstrip import encode_frames
from fmdiff_helpers.measurements import Mask, blur, shrink
from fmdiff_helpers.repair import sample_ddnm, sample_dps, sample_repaint, sample_replacing, sample_sdedit
from fmdiff_helpers.repair_explorer import RepairExplorer, SketchExplorer

SETTINGS = {  # method -> its sampler, as called for 25 steps
    "replacing": (sample_replacing, {}),
    "RePaint": (sample_repaint, {"jump": 5}),
    "DDNM": (sample_ddnm, {}),
    "DPS": (sample_dps, {"strength": 5.0}),
}
RIGHT = torch.ones(28, 28, dtype=torch.bool)
RIGHT[:, 14:] = False
SEEN = {"what is not hidden": Mask(RIGHT), "7 x 7": shrink(4), "blurred": blur(1.5)}


@pytest.fixture(scope="module")
def explorer():
    return RepairExplorer(drawer(SHORT), GARMENTS, LABELS)


def choose(explorer, **choice):
    for control, value in choice.items():
        explorer.controls[control].value = value
    return explorer


def garment(kind: str, index: int) -> torch.Tensor:
    return to_model(GARMENTS[(LABELS == CLASS_NAMES.index(kind)).nonzero()[index]])


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("method", SETTINGS)
def test_it_draws_what_the_sampler_draws_from_the_same_seed(explorer, method, seen):
    choose(explorer, method=method, seen=seen, garment="Bag", index=1, strength=5.0, seed=3)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn((4, 1, 28, 28), generator=generator)
    sampler, options = SETTINGS[method]
    x0, y = garment("Bag", 1), torch.full((4,), 8)
    there = SEEN[seen].apply(x0).expand(4, -1, -1, -1)
    drawn = sampler(explorer.model, x, SHORT, SEEN[seen], there, generator, 25, y, **options)
    assert_close(explorer.steps[-1].x_prev, drawn, rtol=0, atol=1e-5)
    assert len(explorer.steps) == explorer.slider.max + 1 and not drawn.requires_grad
    panels, line = explorer.render(explorer.slider.max)
    assert list(panels) == ["the garment", "seen", "x_t", "x0_hat, predicted", "the next x_t"]
    unseen = ~RIGHT if seen == "what is not hidden" else torch.ones_like(RIGHT)
    apart = (drawn - x0)[..., unseen]
    off, spread = apart.mean(0).square().mean().sqrt(), apart.var(0).mean().sqrt()
    assert f"mean {off:.2f} off, spread {spread:.2f}" in line


def painted(*cells: tuple[int, int], pen: str = "1") -> str:
    """What the canvas holds when these cells, by row and column, are painted."""
    return "".join(pen if (k // 28, k % 28) in cells else "0" for k in range(784))


def test_what_is_painted_is_hidden(explorer):
    choose(explorer, seen="what is not hidden", method="DDNM", hidden=painted((3, 5), (3, 6), (27, 0)))
    measurement, unseen = explorer.measurement()
    expected = torch.zeros(28, 28, dtype=torch.bool)
    expected[3, 5:7] = expected[27, 0] = True
    assert unseen.equal(expected) and measurement.keep.equal(~expected)
    assert "known part 0.000 off" in explorer.readout.value


def test_all_its_parts_are_in_ipywidgets_7_and_8(explorer):
    parts = list(inside(explorer.view))
    assert explorer.controls["hidden"].box in parts
    assert {part._model_name for part in parts} <= {f"{name}Model" for name in (*IN_BOTH, "Textarea")}


def test_the_garment_is_shown_below_what_is_painted(explorer):
    choose(explorer, method="DDNM", garment="Bag", index=0)
    bag = explorer.controls["hidden"].below.value
    choose(explorer, garment="Dress")
    dress = GARMENTS[(LABELS == CLASS_NAMES.index("Dress")).nonzero()[0]][0, 0].numpy()
    assert encode_frames(dress[None])[0] in explorer.controls["hidden"].below.value != bag


@pytest.mark.parametrize(("cells", "count"), [("0" * 784, 0), ("1" * 784, 784)])
def test_that_nothing_is_hidden_or_all_is_said_on_the_page(explorer, cells, count):
    message = f"{count} of 784 cells are hidden; expected some, but not all"
    choose(explorer, seen="what is not hidden", method="DDNM", hidden=painted((3, 5)))
    with pytest.raises(ValueError, match=message):
        choose(explorer, hidden=cells)
    assert message in explorer.readout.value
    choose(explorer, hidden=painted((3, 5)))
    assert message not in explorer.readout.value


def test_a_sketch_becomes_what_sdedit_makes_of_its_greys():
    sketch = -torch.ones(28, 28)
    sketch[5:20, 8:20] = 0.3  # light grey, a third, is the nearest of -1, -1/3, 1/3 and 1
    explorer = choose(SketchExplorer(drawer(SHORT), sketch, "Dress", depth=20), seed=3)
    assert explorer.controls["sketch"].value.count("2") == 180 and explorer.controls["sketch"].value.count("0") == 604
    for cells, grey in ((None, 1 / 3), (painted((0, 0), pen="3"), 1.0)):
        if cells:
            choose(explorer, sketch=cells)
        x0 = (-torch.ones(28, 28)).where(explorer.controls["sketch"].cells == 0, grey).expand(4, 1, 28, 28)
        generator, y = torch.Generator().manual_seed(3), torch.full((4,), CLASS_NAMES.index("Dress"))
        drawn = sample_sdedit(explorer.model, x0, SHORT, 20, generator, 21, y)  # of 25 steps, only 21 are there
        assert_close(explorer.steps[-1].x_prev, drawn, rtol=0, atol=1e-5)
        panels, line = explorer.render(explorer.slider.max)
        assert list(panels) == ["the sketch", "x_t", "x0_hat, predicted", "the next x_t"]
        assert f"in the end {(drawn - x0).square().mean().sqrt():.2f} off the sketch" in line
    assert explorer.slider.max == 20
