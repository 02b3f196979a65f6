"""The checks of exercises accept what is right, however it is written, and name the mistake in what is not.

Checks and cells are the notebooks' own. `test_notebooks.py` tries the lessons' solutions on the real dataset.
"""

from importlib import import_module
from pathlib import Path

import nbformat
import pytest
import torch

NUMBERS = ("01", "02", "03", "04", "05", "06", "07", "08", "09", "10")
ANSWERS = {number: import_module(f"answers_{number}") for number in NUMBERS}
CELLS = {}
for path in sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb")):
    CELLS[path.name[:2]] = nbformat.read(path, as_version=4).cells


def check(lesson, number, answer=""):
    """Run the check of an exercise on an answer; by default on the empty cell of the lesson."""
    cells, names = CELLS[lesson], ANSWERS[lesson].names()
    exercises = [k for k, cell in enumerate(cells) if "exercise" in cell.metadata.get("tags", [])]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for k, first in enumerate(exercises[:number], 1):
            last = next(i for i in range(first, len(cells)) if cells[i].cell_type == "markdown")
            exec(answer if answer and k == number else cells[first].source, names)
            for cell in cells[first + 1 : last]:
                exec(cell.source, names)


def function(head, body):
    """Source of a function whose body is given as lines, with `;` between them."""
    return f"def {head}:\n" + "".join(f"    {line}\n" for line in body.split("; "))


def every(answers):
    """Each answer in a table of each lesson, as (lesson, number, source, ...)."""
    for lesson, found in ANSWERS.items():
        for (number, head), rows in getattr(found, answers).items():
            for row in rows:
                body, *others = (row,) if isinstance(row, str) else row
                yield lesson, number, function(head, body), *others


HEADS = [(lesson, *key) for lesson, found in ANSWERS.items() for key in found.RIGHT]


@pytest.mark.parametrize(("lesson", "number", "head"), HEADS)
def test_an_empty_cell_waits(capsys, lesson, number, head):
    check(lesson, number)
    assert capsys.readouterr().out.splitlines()[-1] == f"Exercise {number} waits for your code."


@pytest.mark.parametrize(("lesson", "number", "answer"), list(every("RIGHT")))
def test_a_right_answer_is_accepted_however_it_is_written(capsys, lesson, number, answer):
    check(lesson, number, answer)
    assert f"Exercise {number}: correct." in capsys.readouterr().out


@pytest.mark.parametrize(("lesson", "number", "answer", "hint"), list(every("WRONG")))
def test_a_wrong_answer_gets_a_sentence_that_names_its_mistake(lesson, number, answer, hint):
    with pytest.raises(AssertionError, match=hint):
        check(lesson, number, answer)


@pytest.mark.parametrize(("lesson", "number", "head"), HEADS)
def test_an_answer_without_return_is_told_so(capsys, lesson, number, head):
    start, _, value = ANSWERS[lesson].RIGHT[number, head][0].rpartition("return ")
    body = getattr(ANSWERS[lesson], "WITHOUT_RETURN", {}).get(number, start + "result = " + value)
    check(lesson, number, function(head, body))
    assert "returns nothing: add `return`" in capsys.readouterr().out


def test_a_variable_that_is_only_computed_is_not_an_empty_cell(capsys):
    check("04", 1, function(ANSWERS["04"].CLOUD, "p = 1 + a * a / s**2"))
    assert "returns nothing: add `return`" in capsys.readouterr().out
