"""The measures and baselines of benchmarks/repair.py: right for answers whose spread is known."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from network_checks import normal
from torch.testing import assert_close

from fmdiff_helpers.data import to_model, to_uint8
from fmdiff_helpers.metrics import frechet_distance
from fmdiff_helpers.repair import sample_ddnm, sample_dps
from fmdiff_helpers.schedules import Schedule, cosine_beta

REPAIR = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "benchmarks/repair.py")))
HOLE, UNKNOWN = REPAIR.QUESTIONS["hole"]
SMALL, EVERYTHING = REPAIR.QUESTIONS["7 x 7"]
GARMENTS = to_model(to_uint8(normal(40, 1, 28, 28).float().clamp(-1, 1)))


def test_the_quantiles_of_21_answers_by_hand():
    """5 % of the way from the first to the last of 0, ..., 20 is 1, and 95 % is 19."""
    answers = torch.arange(21.0).flip(0)[:, None].expand(21, 4)
    assert REPAIR.is_within(torch.tensor([0.9, 1.0, 19.0, 19.1]), answers).tolist() == [False, True, True, False]


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_spread_that_is_right_and_one_that_is_half_of_it(share):
    """The truth has the spread 0.3. Of n honest draws, 17.1 / 21 lie between the two quantiles of 20 others."""
    truth, answers = 0.3 * normal(30, 1, 28, 28), 0.3 * share * normal(21, 30, 1, 28, 28, seed=1)
    found = REPAIR.honesty(answers.float(), truth.float(), UNKNOWN)
    assert found["own"] == pytest.approx(17.1 / 21, abs=0.015)
    assert found["spread"] == pytest.approx(0.3 * share, rel=0.01)
    assert found["mean"] == pytest.approx(0.3 * (1 + share**2 / 20) ** 0.5, rel=0.02)
    assert found["ratio"] == pytest.approx((1 / share**2 + 1 / 20) / (1 + 1 / 20), rel=0.05)
    assert found["within"] == pytest.approx(found["own"], abs=0.02) if share == 1 else found["within"] < 0.6


def test_where_all_answers_are_the_truth_it_is_within():
    truth = -torch.ones(2, 1, 28, 28)
    answers = truth + torch.tensor([0.0, 0.003]).repeat(5)[:, None, None, None, None]  # less than one grey value
    assert REPAIR.honesty(answers, truth, UNKNOWN)["within"] == 1


def test_the_quality_is_both_distances_the_error_of_the_unknown_part_and_the_largest_change_of_the_known(monkeypatch):
    def few(images, first=0):
        return images.flatten(1)[:, first : first + 3].double()

    monkeypatch.setitem(REPAIR.quality.__globals__, "features", lambda encoder, images: few(images, encoder))
    real = (255 * torch.rand(50, 1, 28, 28, generator=torch.Generator().manual_seed(1))).to(torch.uint8)
    judge = SimpleNamespace(
        features=few, test_features=few(real), encoder=100, label_free_features=few(real, first=100)
    )
    x = GARMENTS.clone()
    x[..., 14:] += 0.25
    x[3, 0, 5, 6] -= 0.75
    images = to_uint8(x)
    assert REPAIR.quality(x, GARMENTS, HOLE, UNKNOWN, judge) == {
        "fd": frechet_distance(few(images), few(real)),
        "label_free_fd": frechet_distance(few(images, first=100), few(real, first=100)),
        "one": pytest.approx(0.25),
        "changed": 0.75,
    }


def test_the_baselines_by_hand():
    train, x0 = GARMENTS[:30], GARMENTS[30:]
    for measurement in (HOLE, SMALL):
        seen = measurement.apply(x0)
        for fill in (REPAIR.mean_fill, REPAIR.nearest_fill):
            assert_close(measurement.apply(fill(measurement, seen, train)), seen, rtol=0, atol=1e-5)
        own = REPAIR.nearest_fill(measurement, seen, GARMENTS)
        assert_close(own, x0, rtol=0, atol=1e-5)
    assert_close(REPAIR.mean_fill(HOLE, HOLE.apply(x0), train)[..., 14:], train.mean(0)[..., 14:].expand(10, 1, 28, 14))
    held = REPAIR.line_fill(HOLE, HOLE.apply(x0), train)
    assert held[..., :14].equal(x0[..., :14]) and held[..., 14:].equal(x0[..., 13:14].expand(10, 1, 28, 14))
    smooth = REPAIR.line_fill(SMALL, SMALL.apply(x0), train)
    assert_close(smooth, F.interpolate(F.avg_pool2d(x0, 4), size=28, mode="bilinear"))


@pytest.mark.parametrize("name, sampler, options", [("DDNM", sample_ddnm, {}), ("DPS", sample_dps, {"strength": 3.0})])
def test_a_method_gets_the_noise_the_labels_and_its_strength(name, sampler, options):
    schedule = Schedule(cosine_beta(50))
    drawer = SimpleNamespace(
        model=lambda x, t, y: torch.tanh(x + y.reshape(-1, 1, 1, 1)), process=SimpleNamespace(schedule=schedule)
    )
    x0, y = GARMENTS[:3], torch.tensor([0, 1, 2])
    seen, generator = HOLE.apply(x0), torch.Generator().manual_seed(4)
    x = torch.randn((3, 1, 28, 28), generator=generator)
    expected = sampler(drawer.model, x, schedule, HOLE, seen, generator, 25, y, **options)
    fill = REPAIR.method_fill(name, drawer, 3.0)
    assert fill(HOLE, seen, y, torch.Generator().manual_seed(4)).equal(expected)
