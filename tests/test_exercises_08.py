"""The checks of lesson 08's exercises accept what is right, however it is written, and name the mistake in what is not.

Checks and cells are the notebook's own. `test_notebooks.py` tries the lesson's solutions on the real dataset.
"""

from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from fmdiff_helpers.metrics import frechet_distance, nearest

PATH = Path(__file__).parents[1] / "notebooks/08_leaderboard.ipynb"
CELLS = nbformat.read(PATH, as_version=4).cells
EXERCISES = [number for number, cell in enumerate(CELLS) if "exercise" in cell.metadata.get("tags", [])]


def check(number, answer=""):
    """Run the check of an exercise on an answer; by default on the empty cell of the lesson."""
    generator = torch.Generator().manual_seed(0)
    many, test = (torch.randn((1000, 4), generator=generator).double() for _ in range(2))
    names = {"torch": torch, "np": np, "nearest": nearest, "frechet_distance": frechet_distance}
    names |= {"features": lambda classifier, images: images, "classifier": None, "images": many, "test_images": test}
    names |= {"many": many, "test": test, "real": many, "seed": 0, "generator": torch.Generator()}
    for k in range(1, number + 1):
        first = EXERCISES[k - 1]
        last = next(i for i in range(first, len(CELLS)) if CELLS[i].cell_type == "markdown")
        exec(answer if answer and k == number else CELLS[first].source, names)
        for cell in CELLS[first + 1 : last]:
            exec(cell.source, names)


def function(head, body):
    """Source of a function whose body is given as lines, with `;` between them."""
    return f"def {head}:\n" + "".join(f"    {line}\n" for line in body.split("; "))


COPYING, BOOTSTRAP = "copying(drawn, train, real)", "bootstrap(found, real, times, generator)"
AT_INFINITY = "fd_at_infinity(found, real, numbers)"
CLOSE = "close = nearest(real, train)[0].quantile(0.05); near = nearest(drawn, train)[0]; "
CDIST = "d = lambda a: torch.cdist(a.flatten(1).double(), train.flatten(1).double()).min(1).values.numpy(); "
COMPREHENSION = "fd = [frechet_distance({}, real) for _ in range(times)]; fd = torch.tensor(fd); "
CHOSEN = "found[torch.randint(len(found), (len(found),), generator=generator)]"
SHUFFLED = "found = found[torch.randperm(len(found))]; "
SCORES = "fd = [frechet_distance(found[:n], real) for n in numbers]; "
INVERSE = "x = [1 / n for n in numbers]; "

RIGHT = {
    (1, COPYING): [
        CLOSE + "return (near < close).float().mean().item()",
        CLOSE + "return (near <= close).double().mean()",
        "close = sorted(nearest(real, train)[0].tolist())[len(real) // 20]; "
        "return sum(each < close for each in nearest(drawn, train)[0].tolist()) / len(drawn)",
        CDIST + "return np.mean(d(drawn) < np.percentile(d(real), 5))",
        CDIST + "return torch.tensor([np.float32(np.mean(d(drawn) < np.quantile(d(real), 0.05)))])",
    ],
    (2, BOOTSTRAP): [
        COMPREHENSION.format(CHOSEN) + "return fd.mean().item(), fd.std().item()",
        COMPREHENSION.format(CHOSEN) + "return [fd.mean(), fd.std(correction=0)]",
        "found, real = found.float(), real.float(); "
        + COMPREHENSION.format(CHOSEN)
        + "return torch.stack([fd.mean(), fd.std()])",
        COMPREHENSION.format("found[(len(found) * torch.rand(len(found), generator=generator)).long()]")
        + "return np.mean(fd.numpy()), np.std(fd.numpy())",
        "rng = np.random.default_rng(int(torch.randint(10**9, (1,), generator=generator))); "
        "fd = [frechet_distance(found[rng.choice(len(found), len(found))], real) for _ in range(times)]; "
        "return np.array([np.mean(fd), np.std(fd)])",
        "weights = torch.ones(len(found)); "
        + COMPREHENSION.format("found[weights.multinomial(len(found), True, generator=generator)]")
        + "return fd.mean(), fd.std()",
    ],
    (3, AT_INFINITY): [
        SHUFFLED + SCORES + INVERSE + "return np.polyfit(x, fd, 1)[1]",
        "draw = lambda n: found[torch.randperm(len(found), generator=torch.Generator().manual_seed(n))[:n]]; "
        "fd = torch.tensor([frechet_distance(draw(n), real) for n in numbers]); "
        "x = 1 / torch.tensor(numbers); slope = ((x - x.mean()) * fd).sum() / (x - x.mean()).square().sum(); "
        "return fd.mean() - slope * x.mean()",
        "draw = lambda n: found[np.random.choice(len(found), n, replace=False)]; "
        "fd = [np.mean([frechet_distance(draw(n), real) for _ in range(2)]) for n in numbers]; "
        + INVERSE
        + "return np.linalg.lstsq(np.array([[1, each] for each in x]), np.array(fd), rcond=None)[0][0]",
    ],
}

WRONG = {
    (1, COPYING): [
        (CLOSE.replace("0.05", "0.95") + "return (near < close).float().mean()", "95 % of `real` are below"),
        (CLOSE + "return (near > close).float().mean()", "further"),
        (CLOSE + "return (near < close).sum()", "divide by the number"),
        (CLOSE + "return 100 * (near < close).float().mean()", "from 0 to 1"),
        (CLOSE + "return near < close", "expected one number, got a Tensor"),
        (CLOSE + "return close", "use all three sets"),
        (CLOSE + "close = near.quantile(0.05); return (near < close).float().mean()", "from `real`"),
        (CLOSE + "close = 17.9; return (near < close).float().mean()", "must come from `real` and `train`"),
        (CLOSE + "return (nearest(drawn, real)[0] < close).float().mean()", "expected 0.3"),
        ("return 0.3", "expected 0.6"),
        ("return 1", "expected 0.3"),
    ],
    (2, BOOTSTRAP): [
        (COMPREHENSION.format(CHOSEN) + "return fd.mean().item(), fd.var().item()", "the variance"),
        (COMPREHENSION.format(CHOSEN) + "return fd.mean(), fd.std() / times**0.5", "how sure the mean is"),
        (COMPREHENSION.format(CHOSEN) + "return fd.std(), fd.mean()", "first the mean"),
        (COMPREHENSION.format(CHOSEN) + "return frechet_distance(found, real), fd.std()", "mean FD of the new sets"),
        (COMPREHENSION.format(CHOSEN) + "return fd.std()", "expected two numbers, got a Tensor"),
        (COMPREHENSION.format(CHOSEN) + "return fd", "expected two numbers, got a Tensor"),
        (
            COMPREHENSION.format("found[torch.randperm(len(found), generator=generator)]")
            + "return fd.mean(), fd.std()",
            "with replacement",
        ),
        (
            COMPREHENSION.format("found[torch.randperm(len(found), generator=generator)[: len(found) // 2]]")
            + "return fd.mean(), fd.std()",
            "as many as there are",
        ),
        (
            COMPREHENSION.format(CHOSEN.replace("(len(found),)", "(len(found) // 2 + 1,)"))
            + "return fd.mean(), fd.std()",
            "as many as there are",
        ),
        (
            "chosen = " + CHOSEN + "; " + COMPREHENSION.format("chosen") + "return fd.mean(), fd.std()",
            "each set is the same",
        ),
        (
            COMPREHENSION.format(CHOSEN).replace(", real)", ", " + CHOSEN.replace("found", "real") + ")")
            + "return fd.mean(), fd.std()",
            "of `found`",
        ),
        ("times = 300; " + COMPREHENSION.format(CHOSEN) + "return fd.mean(), fd.std()", "times = 2"),
        (
            "generator = torch.Generator().manual_seed(0); "
            + COMPREHENSION.format(CHOSEN)
            + "return fd.mean(), fd.std()",
            "use the generator that is passed",
        ),
        (
            COMPREHENSION.format(CHOSEN.replace(", generator=generator", "")) + "return fd.mean(), fd.std()",
            "pass `generator` on",
        ),
    ],
    (3, AT_INFINITY): [
        (SCORES + INVERSE + "return np.polyfit(x, fd, 1)[1]", "in another order.*at random"),
        (SHUFFLED + SCORES + INVERSE + "return np.polyfit(x, fd, 1)[0]", "the slope"),
        (SHUFFLED + SCORES + "return np.polyfit(numbers, fd, 1)[1]", "over 1/n, not over n"),
        (SHUFFLED + "return frechet_distance(found[: max(numbers)], real)", "the largest n"),
        (SHUFFLED + SCORES + "return np.mean(fd)", "the mean of the FDs"),
        (SHUFFLED + SCORES + "return fd", "expected one number, got a list"),
        (SHUFFLED + "return frechet_distance(found, real) - 0.3", "put a line through the FDs"),
        ("return 0.0", "expected about 4, got 0.00"),
        ("return 4.0", "expected about 9"),
    ],
}


def cases(answers):
    """One test for each answer, with its exercise and the head of its function."""
    return [(key[0], function(key[1], *each[:1]), *each[1:]) for key, list_ in answers.items() for each in list_]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_empty_cell_waits(capsys, number):
    check(number)
    assert capsys.readouterr().out.splitlines()[-1] == f"Exercise {number} waits for your code."


@pytest.mark.parametrize(("number", "answer"), cases({key: [(each,) for each in RIGHT[key]] for key in RIGHT}))
def test_a_right_answer_is_accepted_however_it_is_written(capsys, number, answer):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        check(number, answer)
    assert f"Exercise {number}: correct." in capsys.readouterr().out


@pytest.mark.parametrize(("number", "answer", "hint"), cases(WRONG))
def test_a_wrong_answer_gets_a_sentence_that_names_its_mistake(number, answer, hint):
    with pytest.raises(AssertionError, match=hint), torch.random.fork_rng():
        torch.manual_seed(0)
        check(number, answer)


@pytest.mark.parametrize(("number", "head"), list(RIGHT))
def test_an_answer_without_return_is_told_so(capsys, number, head):
    body = RIGHT[number, head][0].rpartition("return ")
    check(number, function(head, body[0] + "result = " + body[2]))
    assert "returns nothing: add `return`" in capsys.readouterr().out
