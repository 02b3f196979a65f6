"""A dial of a lesson takes what its comment says; for anything else the lesson says at once what it takes."""

import math

import nbformat
import pytest
import torch
from test_notebooks import PATHS, code_cells, needed, tagged

from fmdiff_helpers.dials import LARGEST_SEED, number_of_epochs

EPOCHS = 'expected "auto", or a number of at least 0'
SEED = f"expected a whole number from 0 to {LARGEST_SEED}"
# Lesson -> dial -> what it says it takes, and values that it does not take.
REFUSED = {
    "01": {
        "garment": ("expected a name or a number of: 0 T-shirt", ["Hat", 10]),
        "num_draws": ("expected a whole number from 200 to 6000", [199, 6001, 1000.0, "1000"]),
    },
    "02": {"longest": ("expected a whole number from 64 to 8192", [63, 8193])},
    "03": {
        "num_shoes": ("expected a whole number of at least 20", [19]),
        "num_moments": ("expected a whole number from 2 to 191", [1, 192]),
    },
    "04": {
        "steps": ("expected a whole number of at least 5", [4, 100.5]),
        "draws": ("expected a whole number from 130 to 10000", [129, 10_001]),
    },
    "05": {"steps": ("expected a whole number of at least 10", [9])},
    "06": {"steps": ("expected a whole number of at least 2", [1])},
    "07": {
        "num_points": ("expected a whole number from 50 to 10000", [49, 10_001]),
        "num_pairs": ("expected a whole number from 2 to 800", [1, 801]),
        "num_chains": ("expected a whole number from 1 to 1000", [0, 1001]),
    },
    "08": {
        "rows_again": ("expected a whole number from 0 to 19", [-1, 20]),
        "some": ("expected a whole number from 390 to 10000", [389, 10_001]),
    },
    "09": {
        "steps": ("expected a whole number of at least 2", [1, 0, 2.5]),
    },
    "10": {
        "draws": ("expected a whole number of at least 2", [1, 2.5]),
        "steps": ("expected a whole number from 10 to 200", [9, 201]),
    },
}
for number, dials in REFUSED.items():
    dials["seed"] = (SEED, [-1, LARGEST_SEED + 1])
    if number not in ("01", "08", "09", "10"):
        dials["epochs"] = (EPOCHS, [-1, "all"])


def read(number, dial, value):
    """The code cells of a lesson, with another value of a dial."""
    (path,) = [path for path in PATHS if path.name.startswith(number)]
    nb = nbformat.read(path, as_version=4)
    tagged(nb, "parameters").source += f"\n{dial} = {value!r}"
    return code_cells(nb)


def run(cells):
    """Run code cells in this process and return their names."""
    names = {}
    for cell in cells:
        exec(cell.source, names)
    return names


def test_every_dial_of_every_lesson_is_here():
    for path in PATHS:
        found = {}
        exec(tagged(nbformat.read(path, as_version=4), "parameters").source, {}, found)
        assert found.keys() == REFUSED[path.name[:2]].keys()


CASES = [(n, dial, value) for n, dials in REFUSED.items() for dial, (_, values) in dials.items() for value in values]


@pytest.mark.parametrize("number, dial, value", CASES)
def test_a_value_that_a_dial_does_not_take_is_refused_in_the_first_cell(monkeypatch, tmp_path, number, dial, value):
    monkeypatch.chdir(tmp_path)
    imports, parameters, first = read(number, dial, value)[:3]
    with pytest.raises(ValueError, match=f"^{dial} is {value!r}; {REFUSED[number][dial][0]}"):
        run([imports, parameters, first])


@pytest.mark.parametrize(
    "number, dial, value, holds",
    [
        ("01", "garment", "t-shirt/TOP", "garment == 'T-shirt'"),
        ("01", "garment", 3, "garment == 'Dress'"),
        ("01", "num_draws", 200, "len(many) == len(of_kind) == 200"),
        ("02", "longest", 64, "sizes == [16, 32, 64]"),
        ("02", "longest", 100, "sizes == [16, 32, 64, 100]"),
        ("02", "epochs", "AUTO", "epochs == 0"),
        ("04", "steps", 5, "len(history) == 5 and all(map(math.isfinite, history))"),
    ],
)
def test_cells_do_what_a_dial_says(monkeypatch, tmp_path, number, dial, value, holds):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cells = read(number, dial, value)
    names = run(needed(cells, [cell for cell in cells[2:] if dial in cell.source]))
    assert eval(holds, names)


@pytest.mark.parametrize("gpu, number", [(False, 0), (True, 6.6)])
def test_auto_trains_where_there_is_a_gpu_and_a_number_anywhere(monkeypatch, gpu, number):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert [number_of_epochs(epochs, 6.6) for epochs in ("auto", "Auto", 0, 0.01, 5)] == [number, number, 0, 0.01, 5]


@pytest.mark.parametrize("epochs", [-0.1, math.nan, math.inf, "5", "", None, True])
def test_epochs_that_are_no_number_are_an_error(epochs):
    with pytest.raises(ValueError, match=f"epochs is {epochs!r}; {EPOCHS}"):
        number_of_epochs(epochs, 6.6)
