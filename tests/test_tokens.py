"""The claims of fmdiff_helpers.tokens: maps with a ring at the right patch, and the largest tensor on the way."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fmdiff_helpers.tokens import entries_made, largest_tensor, patch_maps


def drawn(**changes):
    arguments = {"maps": torch.arange(24.0).reshape(4, 2, 3), "marked": [0, 1, 4, 5]}
    arguments |= {"column_labels": ["a", "b"], "row_labels": ["c", "d"], "label": "share", "limits": (0, 23)}
    return patch_maps(*(arguments | changes).values())


def test_each_map_stands_at_its_place_with_a_gap_and_a_bar_says_what_it_means():
    axis, bar = drawn().axes
    picture = np.asarray(axis.images[0].get_array().filled(np.nan))
    assert picture.shape == (5, 7) and np.isnan(picture[2]).all() and np.isnan(picture[:, 3]).all()
    assert picture[3:, 4:].tolist() == [[18, 19, 20], [21, 22, 23]] and picture[:2, 4].tolist() == [6, 9]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a", "b"] and bar.get_ylabel() == "share"
    assert axis.images[0].get_clim() == (0, 23)


def test_a_ring_marks_the_patch_of_each_map():
    axis, _ = drawn().axes
    assert [tuple(int(v[0]) for v in line.get_data()) for line in axis.lines] == [(0, 0), (5, 0), (1, 4), (6, 4)]


@pytest.mark.parametrize("changes", [{"marked": [0]}, {"row_labels": ["c"]}, {"maps": torch.zeros(3, 2, 3)}])
def test_a_map_or_ring_too_few_is_refused(changes):
    with pytest.raises(ValueError, match="expected one for each"):
        drawn(**changes)


def test_the_largest_tensor_counts_what_is_made_on_the_way_also_without_gradients():
    q, k, v = torch.randn((3, 2, 100, 8), generator=torch.Generator().manual_seed(0))
    assert largest_tensor(lambda q, k, v: q @ (k.mT @ v), q, k, v) == 2 * 100 * 8
    assert largest_tensor(lambda q, k, v: (q @ k.mT) @ v, q, k, v) == 2 * 100 * 100
    assert largest_tensor(torch.no_grad()(lambda q, k, v: (q @ k.mT) @ v), q, k, v) == 2 * 100 * 100
    assert largest_tensor(lambda q: (q[:, :, None] * q[:, None]).sum(-1), q) == 2 * 100 * 100 * 8
    assert largest_tensor(F.scaled_dot_product_attention, q[None], k[None], v[None]) == 2 * 100 * 8
    assert largest_tensor(lambda q: None, q) == 0


def test_the_entries_of_all_tensors_add_up():
    x = torch.ones(10, 3)
    assert entries_made(lambda x: x + 1, x) == 30 and entries_made(lambda x: None, x) == 0
    assert entries_made(lambda x: (x + 1).sum(0) * 2, x) == 30 + 3 + 3
