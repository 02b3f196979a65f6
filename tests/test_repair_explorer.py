"""The claims of fmdiff_helpers.repair_explorer: what is covered, what each method draws, and what the page says."""

import pytest
import torch
from test_explorers import GARMENTS, LABELS, SHORT, drawer
from torch.testing import assert_close

from fmdiff_helpers.data import CLASS_NAMES, to_model
from fmdiff_helpers.measurements import Mask, blur, shrink
from fmdiff_helpers.repair import sample_ddnm, sample_dps, sample_repaint, sample_replacing
from fmdiff_helpers.repair_explorer import RepairExplorer

SETTINGS = {  # method -> its sampler, as called for 25 steps
    "replacing": (sample_replacing, {}),
    "RePaint": (sample_repaint, {"jump": 5}),
    "DDNM": (sample_ddnm, {}),
    "DPS": (sample_dps, {"strength": 5.0}),
}
RIGHT = torch.ones(28, 28, dtype=torch.bool)
RIGHT[:, 14:] = False
SEEN = {"all but a hole": Mask(RIGHT), "7 x 7": shrink(4), "blurred": blur(1.5)}


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
    unseen = ~RIGHT if seen == "all but a hole" else torch.ones_like(RIGHT)
    apart = (drawn - x0)[..., unseen]
    off, spread = apart.mean(0).square().mean().sqrt(), apart.var(0).mean().sqrt()
    assert f"mean {off:.2f} off, spread {spread:.2f}" in line


def test_the_hole_lies_where_rows_and_columns_meet(explorer):
    choose(explorer, seen="all but a hole", method="DDNM", rows=(3, 9), columns=(5, 7))
    measurement, unseen = explorer.measurement()
    expected = torch.zeros(28, 28, dtype=torch.bool)
    expected[3:9, 5:7] = True
    assert unseen.equal(expected) and measurement.keep.equal(~expected)
    assert "known part 0.000 off" in explorer.readout.value


@pytest.mark.parametrize(
    ("rows", "message"), [((5, 5), "the hole has no pixel; move the ends"), ((0, 28), "keep is False everywhere")]
)
def test_a_hole_of_no_pixel_or_of_all_is_said_on_the_page(explorer, rows, message):
    choose(explorer, seen="all but a hole", method="DDNM", rows=(3, 9), columns=(0, 28))
    with pytest.raises(ValueError, match=message):
        choose(explorer, rows=rows)
    assert message in explorer.readout.value
    choose(explorer, rows=(3, 9))
    assert message not in explorer.readout.value
