"""The claims of batching.in_batches: all inputs, in order, in batches that memory is enough for."""

import sys

import pytest
import torch

from fmdiff_helpers.batching import in_batches


def double(x):
    return torch.stack([x, -2 * x], dim=1)


def batches(sample=double, limit: int = 10**9, error: type[Exception] = torch.OutOfMemoryError):
    """Return `sample`, but without memory for more than `limit` images, and a list that will hold its batch sizes."""
    sizes = []

    def limited(x):
        sizes.append(len(x))
        assert len(sizes) < 100, f"no end to the batches: {sizes}"
        if len(x) > limit:
            raise error(f"no memory for {len(x)}")
        return sample(x)

    return limited, sizes


@pytest.mark.parametrize(
    ("n", "batch_size", "expected"),
    [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (3, 3, [3]), (2, 3, [2]), (1, 1, [1]), (3, 1, [1, 1, 1])],
)
def test_batches_together_are_all_images_in_order(n, batch_size, expected):
    (sample, sizes), x = batches(), torch.arange(n) + 1.0
    assert in_batches(sample, x, batch_size=batch_size).equal(double(x))
    assert sizes == expected


@pytest.mark.parametrize(("device", "expected"), [("cpu", [100] * 10 + [1]), ("meta", [500, 500, 1])])
def test_a_batch_is_100_images_on_a_cpu_and_500_elsewhere(device, expected):
    sample, sizes = batches()
    assert in_batches(sample, torch.arange(1001.0, device=device)).shape == (1001, 2)
    assert sizes == expected


def test_several_inputs_are_cut_alike_also_where_memory_runs_out():
    x, y = torch.arange(7.0), 10 + torch.arange(7)
    for limit in (7, 2):

        def sample(part, labels, limit=limit):
            if len(part) > limit:
                raise torch.OutOfMemoryError("no memory")
            return torch.stack([part, labels], dim=1)

        assert in_batches(sample, x, y, batch_size=4).equal(torch.stack([x, y], dim=1))


@pytest.mark.parametrize(
    ("limit", "expected"), [(2, [8, 4, 2, 2, 2, 2, 2, 1]), (3, [8, 4, 2, 2, 2, 2, 2, 1]), (1, [8, 4, 2, *[1] * 11])]
)
def test_batches_are_halved_until_memory_is_enough_and_no_image_is_lost_or_doubled(limit, expected):
    (sample, sizes), x = batches(limit=limit), torch.arange(11.0)
    assert in_batches(sample, x, batch_size=8).equal(double(x))
    assert sizes == expected


def test_memory_that_runs_out_later_halves_only_what_is_left():
    x, sizes = torch.arange(8.0), []

    def sample(part):
        sizes.append(len(part))
        if part[0] > 0 and len(part) > 2:
            raise torch.OutOfMemoryError("no memory")
        return part + 1

    assert in_batches(sample, x, batch_size=4).equal(x + 1)
    assert sizes == [4, 4, 2, 2]


@pytest.mark.parametrize("error, expected", [(torch.OutOfMemoryError, [4, 2, 1]), (RuntimeError, [4])])
def test_no_memory_for_a_single_image_is_an_error_and_other_errors_are_not_taken_for_that(error, expected):
    sample, sizes = batches(limit=0, error=error)
    with pytest.raises(error, match=f"no memory for {expected[-1]}"):
        in_batches(sample, torch.arange(9.0), batch_size=4)
    assert sizes == expected


def test_a_bar_is_shown_on_a_terminal_and_not_in_a_file(capsys, monkeypatch):
    images = torch.zeros(501, 1)
    in_batches(lambda x: x, images)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    in_batches(lambda x: x, images)
    assert "/501 [" in capsys.readouterr().err
