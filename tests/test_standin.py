"""The drawn stand-in: form, determinism, and that the ten kinds can be told apart."""

import numpy as np
import pytest
import torch

from fmdiff_helpers.standin import draw_garments


def class_means(images, labels):
    return torch.stack([images[labels == label].float().mean(0).flatten() for label in range(10)])


@pytest.fixture(scope="module")
def drawn():
    return draw_garments(4000, seed=0)


@pytest.fixture(scope="module")
def fresh():
    return draw_garments(2000, seed=1)


def test_shapes_types_and_range_and_statistics_near_those_of_fashion_mnist(drawn):
    images, labels = drawn
    assert images.shape == (4000, 1, 28, 28) and images.dtype == torch.uint8
    assert labels.shape == (4000,) and labels.dtype == torch.int64
    assert images.min() == 0 and images.max() == 255
    assert images.unique().numel() > 200  # soft edges and cloth give many grey values
    scaled = images.float() / 127.5 - 1
    assert scaled.mean() == pytest.approx(-0.43, abs=0.08) and scaled.std() == pytest.approx(0.71, abs=0.08)


@pytest.mark.parametrize("n", [0, 1, 10, 57, 1013])
def test_labels_are_balanced_for_any_n(n):
    images, labels = draw_garments(n)
    counts = torch.bincount(labels, minlength=10)
    assert len(images) == n and counts.sum() == n
    assert counts.min() >= n // 10 and counts.max() <= n // 10 + 1


def test_labels_are_shuffled(drawn):
    assert drawn[1].diff().unique().numel() == 19  # every step from -9 to 9 occurs


def test_the_seed_decides_every_pixel_and_the_global_random_state_stays_as_it_is():
    before = torch.get_rng_state()
    (images, labels), (same, same_labels), (other, other_labels) = (draw_garments(200, s) for s in (3, 3, 4))
    assert torch.equal(images, same) and torch.equal(labels, same_labels)
    assert not torch.equal(images, other) and not torch.equal(labels, other_labels)
    assert torch.equal(before, torch.get_rng_state())


def test_the_corners_are_black_and_no_picture_is_empty(drawn):
    images = drawn[0][:, 0]
    assert images[:, [0, 0, -1, -1], [0, -1, 0, -1]].max() == 0
    assert (images > 0).flatten(1).sum(1).min() > 80  # The sparsest sandal; measured 99 over 60,000 pictures.


def test_a_nearest_mean_classifier_tells_the_kinds_apart(drawn, fresh):
    images, labels = fresh
    guess = torch.cdist(images.flatten(1).float(), class_means(*drawn)).argmin(1)
    right = (guess == labels).float()
    assert right.mean() > 0.80  # Measured 0.86; most errors are shirts, as in Fashion-MNIST.
    for label in {*range(10)} - {6}:
        assert right[labels == label].mean() > 0.65, label


@pytest.mark.parametrize("label", [5, 7, 9])
def test_shoes_point_left(drawn, fresh, label):
    mean = class_means(*drawn)[label].view(28, 28)
    shoes = fresh[0][fresh[1] == label, 0].float()
    to_mean, to_mirrored = ((shoes - m).square().sum((1, 2)) for m in (mean, mean.flip(1)))
    assert (to_mean < to_mirrored).float().mean() > 0.97
    assert mean[:14, :14].sum() < 0.7 * mean[:14, 14:].sum()  # The low side, the toe, is on the left.


def test_garments_of_one_kind_differ(fresh):
    for label in range(10):
        pixels = fresh[0][fresh[1] == label].flatten(1).float()
        gaps = torch.pdist(pixels) / 28  # Root-mean-square difference of two pictures in grey levels.
        assert gaps.min() > 3 and gaps.mean() > 30, label


@pytest.mark.parametrize("n", [-1, 2.0, "10", None, True, np.int64(3)])
def test_a_bad_n_is_named(n):
    with pytest.raises(ValueError, match="expected an integer of 0 or more"):
        draw_garments(n)
