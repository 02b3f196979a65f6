"""The encoder without labels: views show parts and flip nothing, the loss is that of the paper, features describe."""

import math

import pytest
import torch
import torch.nn.functional as F
from network_checks import CLOSE, EXACT, made, normal
from torch.testing import assert_close

from fmdiff_helpers.cards import WeightsError, build_process, read_card
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.data import is_there, load_fashion_mnist, raw_folder
from fmdiff_helpers.metrics import features, frechet_distance, linear_probe
from fmdiff_helpers.models.encoder import Encoder
from fmdiff_helpers.processes.contrast import Contrast, contrastive_loss, view
from fmdiff_helpers.recipes import CARDS
from fmdiff_helpers.standin import draw_garments

BEFORE_1 = 1 - 1e-7  # u is below 1
WHOLE = [BEFORE_1, BEFORE_1, 0.5, 0.5, 0.5]  # the whole image, as bright as it is


def numbers(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows)


def ramp(n: int = 1) -> torch.Tensor:
    """Images (n, 1, 28, 28) whose brightness rises to the right."""
    return torch.linspace(-1, 0, 28).expand(n, 1, 28, 28)


# view


def test_a_view_of_the_whole_image_is_the_image():
    x0 = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert_close(view(x0, numbers(WHOLE, WHOLE, WHOLE)), x0, rtol=0, atol=1e-4)


def test_a_smaller_part_is_enlarged_around_its_centre():
    half = view(ramp(), numbers([0.0, BEFORE_1, 0.5, 0.5, 0.5]))[0, 0]
    assert_close(half, ramp()[0, 0].mean() + (ramp()[0, 0] - ramp()[0, 0].mean()) / 2, rtol=0, atol=1e-4)


def test_width_and_height_left_and_up_are_told_apart():
    x0 = torch.full((1, 1, 28, 28), -1.0)
    x0[..., 4:8, 20:24] = 1  # a spot up on the right

    def brightest(u: list[float]) -> tuple[float, float]:
        bright = (view(x0, numbers(u))[0, 0] > 0).nonzero().double().mean(0)
        return bright[0].item(), bright[1].item()

    assert brightest(WHOLE) == pytest.approx((5.5, 21.5))
    assert brightest([BEFORE_1, BEFORE_1, 1.0, 0.5, 0.5])[1] < 21 and brightest([*WHOLE[:3], 1.0, 0.5])[0] < 5
    row, column = brightest([0.5, BEFORE_1, 0.5, 0.5, 0.5])
    assert row == pytest.approx(5.5) and column > 22, "wider, and not flipped"


def test_brightness_rises_and_falls_by_the_same_share_and_white_and_black_stay():
    x0 = ramp()
    dark, bright = (view(x0, numbers([*WHOLE[:4], u])) for u in (0.0, 1.0))
    assert_close(dark + 1, 0.6 * (x0 + 1), rtol=0, atol=1e-4)
    assert_close(bright + 1, (1.4 * (x0 + 1)).clamp(max=2), rtol=0, atol=1e-4)
    for white in (1.0, -1.0):
        assert_close(view(torch.full_like(x0, white), numbers([*WHOLE[:4], 1.0])), torch.full_like(x0, white))


def test_outside_an_image_is_black():
    white = torch.ones(1, 1, 28, 28)
    assert view(white, numbers([0.5, 0.5, 1.0, 0.5, 0.5]))[0, 0, :, -1].max() < 0
    assert view(white, numbers(WHOLE)).min() > 0.99


# contrastive_loss


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(normal(*shape, seed=seed), dim=1)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_loss_is_that_of_the_paper_for_each_pair(temperature):
    """Chen et al. 2020, eq. 1, term by term."""
    one, other = unit(3, 5), unit(3, 5, seed=1)
    both = [*one, *other]

    def loss(i: int, j: int) -> float:
        terms = [math.exp((both[i] @ both[k]).item() / temperature) for k in range(6) if k != i]
        return -math.log(math.exp((both[i] @ both[j]).item() / temperature) / sum(terms))

    expected = [(loss(i, i + 3) + loss(i + 3, i)) / 2 for i in range(3)]
    assert_close(contrastive_loss(one, other, temperature), torch.tensor(expected, dtype=torch.float64), **EXACT)


def test_who_cannot_tell_images_apart_loses_the_logarithm_of_their_number_and_who_can_loses_nothing():
    same = torch.ones(8, 4, dtype=torch.float64) / 2
    assert_close(contrastive_loss(same, same, 0.2), torch.full((8,), math.log(15), dtype=torch.float64), **EXACT)
    apart = torch.eye(8, dtype=torch.float64)
    assert contrastive_loss(apart, apart, 0.01).max() < 1e-9


# Contrast


def test_labels_make_no_difference_and_the_two_views_do():
    process, encoder, x0 = Contrast(0.2), made(Encoder, width=2).eval(), ramp(4) + 0.1 * normal(4, 1, 28, 28).float()
    (u,) = process.draw(x0, torch.Generator().manual_seed(0))
    assert u.shape == (4, 2, 5)
    loss = process.loss(encoder, x0, None, u)
    assert torch.equal(process.loss(encoder, x0, torch.arange(4), u), loss)
    assert_close(process.loss(encoder, x0, None, u.flip(1)), loss, **CLOSE)
    expected = contrastive_loss(encoder(view(x0, u[:, 0])), encoder(view(x0, u[:, 1])), 0.2)
    assert_close(loss, expected, **CLOSE)
    assert process.validate(encoder, x0) == process.validate(encoder, x0, torch.arange(4))


def test_a_temperature_of_0_is_refused():
    card = CARDS["encoder"] | {"process": {"name": "contrast.Contrast", "temperature": 0}}
    with pytest.raises(WeightsError, match="temperature is 0; expected a number above 0"):
        build_process(card)


# Encoder


def test_directions_have_length_1_and_features_are_what_they_are_made_of():
    encoder, x = made(Encoder, width=2, directions=6).eval(), normal(3, 1, 28, 28).float()
    assert encoder(x).shape == (3, 6) and encoder.features(x).shape == (3, 8)
    assert_close(encoder(x).norm(dim=1), torch.ones(3))
    assert_close(F.normalize(encoder.project(encoder.features(x)), dim=1), encoder(x))


def test_a_few_steps_without_labels_bring_views_of_an_image_together():
    process, encoder, generator = Contrast(0.2), made(Encoder, width=4), torch.Generator().manual_seed(0)
    x0 = draw_garments(64)[0].float() / 127.5 - 1
    optimizer, losses = torch.optim.AdamW(encoder.parameters(), 3e-3), []
    for _ in range(30):
        loss = process.loss(encoder, x0, None, *process.draw(x0, generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 4.5 and sum(losses[-5:]) / 5 < losses[0] - 0.8


# The published encoder, and the published classifier beside it


@pytest.fixture(scope="module")
def seen() -> dict[str, dict[str, torch.Tensor]]:
    """The features of 2,000 test images, of 1,000 training images, and of these after some harm, for both judges."""
    if not is_there(raw_folder()):
        pytest.skip("needs the real dataset; set FMDIFF_DATA or run `uv run fmdiff data`")
    real, x = load_fashion_mnist("test")[0][:2000], load_fashion_mnist("train")[0][:1000]
    noise = 20 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    images = {
        "test": real,
        "untouched": x,
        "flipped": x.flip(-1),
        "blurred": F.avg_pool2d(x.float(), 3, 1, 1).byte(),
        "noisy": (x + noise).clamp(0, 255).byte(),
        "darker": (0.8 * x).byte(),
        "two copies of half": x[:500].repeat(2, 1, 1, 1),
    }
    judges = {name: load_pretrained(name) for name in ("classifier", "encoder")}
    return {name: {what: features(judge, each) for what, each in images.items()} for name, judge in judges.items()}


@pytest.mark.parametrize("harm", ["flipped", "blurred", "noisy", "darker"])
@pytest.mark.parametrize("name", ["classifier", "encoder"])
def test_both_judges_find_harmed_images_further_away_than_untouched_ones(seen, name, harm):
    found = seen[name]
    untouched, harmed = (frechet_distance(found[what], found["test"]) for what in ("untouched", harm))
    assert harmed > 1.5 * untouched


def test_for_the_classifier_typical_garments_are_a_smaller_fault_than_missing_bags_and_for_the_encoder_a_larger_one():
    """Lesson 08: the judge that has learned the kinds minds typical and clear garments least."""
    if not is_there(raw_folder()):
        pytest.skip("needs the real dataset; set FMDIFF_DATA or run `uv run fmdiff data`")
    (images, labels), (test_images, _) = load_fashion_mnist("train"), load_fashion_mnist("test")
    some = torch.cat([images[labels == kind][:100] for kind in range(10)])

    def typical(kind: int) -> torch.Tensor:
        x = images[labels == kind][:3000].float()
        return images[labels == kind][:3000][(x - x.mean(0)).square().flatten(1).sum(1).argsort()[:100]]

    harmed = {
        "typical": torch.cat([typical(kind) for kind in range(10)]),
        "no bags": torch.cat([some[:800], some[900:]]),
    }
    for name, milder in (("classifier", "typical"), ("encoder", "no bags")):
        judge = load_pretrained(name)
        real = features(judge, test_images[:4000])
        found = {what: frechet_distance(features(judge, x), real) for what, x in harmed.items()}
        (worse,) = found.keys() - {milder}
        assert found[milder] < found[worse] / 1.5


@pytest.mark.parametrize("name", ["classifier", "encoder"])
def test_no_judge_sees_that_half_of_the_images_are_copies(seen, name):
    """Therefore copying is a measure of its own."""
    found = seen[name]
    once, twice = (frechet_distance(found[what], found["test"]) for what in ("untouched", "two copies of half"))
    assert twice < 3 * once


def test_a_linear_layer_on_the_encoders_features_tells_the_kinds_apart(seen):
    """And better than on those of an encoder that learned nothing; here the layer sees 1,000 images, not 60,000."""
    (train_images, labels), (images, expected) = load_fashion_mnist("train"), load_fashion_mnist("test")
    found = linear_probe(seen["encoder"]["untouched"], labels[:1000], seen["encoder"]["test"], expected[:2000])
    untrained = (features(made(Encoder).eval(), part) for part in (train_images[:1000], images[:2000]))
    train_features, test_features = untrained
    assert found > linear_probe(train_features, labels[:1000], test_features, expected[:2000]) + 0.03
    assert read_card("encoder")["measures"]["linear_probe"] >= 0.85
