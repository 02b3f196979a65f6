"""Answers to lesson 08's exercises, right and wrong, and the names that its checks find in the notebook."""

import numpy as np
import torch

from fmdiff_helpers.metrics import frechet_distance, nearest


def names():
    """Names that the checks need, and names of the lesson that must not help."""
    generator = torch.Generator().manual_seed(0)
    many, test = (torch.randn((1000, 4), generator=generator).double() for _ in range(2))
    found = {"torch": torch, "np": np, "nearest": nearest, "frechet_distance": frechet_distance}
    found |= {"features": lambda classifier, images: images, "classifier": None, "images": many, "test_images": test}
    found |= {"many": many, "test": test, "real": many, "seed": 0, "generator": torch.Generator()}
    return found


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
        (CLOSE + "return close", "check where each distance starts"),
        (CLOSE + "close = near.quantile(0.05); return (near < close).float().mean()", "from `real`"),
        (CLOSE + "close = 17.9; return (near < close).float().mean()", "must come from `real` and `train`"),
        (CLOSE + "return (nearest(drawn, real)[0] < close).float().mean()", "expected 0.3"),
        ("return 0.3", "expected 0.5"),
        *[(CLOSE.replace("0.05", q) + "return (near < close).float().mean()", "the quantile") for q in ("0.1", "0.15")],
        (CLOSE + "close = 0.05 * nearest(real, train)[0].max(); return (near < close).float().mean()", "the quantile"),
        (
            "grey = lambda x: x.float().mean((1, 2, 3)); d = lambda a: (grey(a)[:, None] - grey(train)).abs().amin(1); "
            "return (d(drawn) < d(real).quantile(0.05)).float().mean()",
            "expected 0.5",
        ),
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
        (
            COMPREHENSION.format(CHOSEN).replace("range(times)", "range(max(times - 1, 1))")
            + "return np.mean(fd.numpy()), np.std(fd.numpy())",
            "make two sets",
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
        ("return frechet_distance(found, real)", "for each n of `numbers`"),
        ("return 0.96 * frechet_distance(found[: max(numbers)], real)", "for each n of `numbers`"),
        (
            SHUFFLED + "numbers = [500, 1000, 2000]; " + SCORES + INVERSE + "return np.polyfit(x, fd, 1)[1]",
            "for each n",
        ),
        (
            SHUFFLED + SCORES.replace(", real)", ", real[:n])") + INVERSE + "return np.polyfit(x, fd, 1)[1]",
            "all of `real`",
        ),
        ("return 0.0", "expected about 4, got 0.00"),
        ("return 4.0", "for each n of `numbers`"),
    ],
}
