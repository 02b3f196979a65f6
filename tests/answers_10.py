"""Answers to lesson 10's exercises, right and wrong, and the names that its checks find in the notebook."""

import math

import torch
import torch.nn.functional as F


def names():
    """Names that the checks need, and names of the lesson that must not help."""
    found = {"torch": torch, "F": F, "math": math, "steps": 25, "draws": 6, "seed": 3, "k": 0, "K": 6}
    return found | {"mean": torch.zeros(3), "spread": torch.ones(3), "sigma": 0.1, "a": 1.0, "b": 0.0}


MEANS, RATIO, PART = "fit_means(x, small)", "ratio(answers, truth)", "known_part(s, sigma, a, b, eps)"
MISSING = "missing = small - F.avg_pool2d(x, 4); "
GROWN = "missing.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)"
ERROR = "K = len(answers); error = (answers.mean(0) - truth).square().flatten(1).mean(1); "
EACH = "K = len(answers); error = (answers.mean(0) - truth).square().flatten(1); spread = answers.var(0).flatten(1); "
REST = "rest = max(b**2 - (a * sigma) ** 2, 0); "

RIGHT = {
    (1, MEANS): [
        MISSING + "return x + " + GROWN,
        MISSING + "x += " + GROWN + "; return x",
        "up = lambda m: F.interpolate(m, scale_factor=4); return x - up(F.avg_pool2d(x, 4)) + up(small)",
        "y = x.unflatten(3, (-1, 4)).unflatten(2, (-1, 4)); old = y.mean((3, 5), keepdim=True); "
        "y = y + small[:, :, :, None, :, None] - old; return y.flatten(4).flatten(2, 3)",
        "one = torch.ones(4, 4); return (x + torch.kron(small - F.avg_pool2d(x, 4), one)).double().numpy()",
    ],
    (2, RATIO): [
        ERROR + "return error / ((1 + 1 / K) * answers.var(0).flatten(1).mean(1))",
        ERROR + "apart = (answers - answers.mean(0)).square().sum(0) / (K - 1); "
        "return error / (1 + 1 / K) / apart.mean((1, 2, 3))",
        "answers -= truth; K = len(answers); error = answers.mean(0).square().mean((1, 2, 3)); "
        "return error / ((1 + 1 / K) * answers.std(0).square().mean((1, 2, 3)))",
        "a, t = answers.numpy(), truth.numpy(); K = a.shape[0]; error = ((a.mean(0) - t) ** 2).mean((1, 2, 3)); "
        "return error * K / ((K + 1) * a.var(0, ddof=1).mean((1, 2, 3)))",
    ],
    (3, PART): [
        REST + "return a * s + math.sqrt(rest) * eps",
        "if a * sigma > b:;     return a * s; return a * s + (b**2 - a**2 * sigma**2) ** 0.5 * eps",
        "rest = torch.tensor(b**2 - (a * sigma) ** 2).clamp(min=0); return torch.lerp(0 * s, s, a) + rest.sqrt() * eps",
    ],
}

WRONG = {
    (1, MEANS): [
        (MISSING + "return x + " + GROWN + " / 16", "the whole difference at each of its pixels"),
        ("return small.repeat_interleave(4, 2).repeat_interleave(4, 3)", "nearest to 0"),
        ("x[:] = small.repeat_interleave(4, 2).repeat_interleave(4, 3); return x", "nearest to 0"),
        (MISSING + "return " + GROWN, "keep what the means do not see"),
        (MISSING + "return x - " + GROWN, "the other way round"),
        ("missing = small; return x + " + GROWN, "take out the old means"),
        (MISSING + "return x + missing.repeat(1, 1, 4, 4)", "repeats whole pictures"),
        (MISSING + "return x + F.interpolate(missing, scale_factor=4, mode='bilinear')", "each block moves as a whole"),
        ("return small - F.avg_pool2d(x, 4)", "expected the shape"),
        ("return 'grey'", "expected a tensor of shape"),
    ],
    (2, RATIO): [
        (ERROR + "return error / ((1 + 1 / K) * answers.var(0, correction=0).flatten(1).mean(1))", "divide by K - 1"),
        (ERROR + "return error / answers.var(0).flatten(1).mean(1)", r"an error of its own: 1 \+ 1 / K"),
        (ERROR + "return (error / ((1 + 1 / K) * answers.var(0).flatten(1).mean(1))).sqrt()", "not of lengths"),
        (EACH + "return (error / ((1 + 1 / K) * spread)).mean(1)", "first the two means over the pixels"),
        (
            EACH + "each = (answers - truth).square().mean(0).flatten(1); "
            "return each.mean(1) / ((1 + 1 / K) * spread.mean(1))",
            "the error of the mean answer",
        ),
        (EACH + "return (1 + 1 / K) * spread.mean(1) / error.mean(1)", "the other way up"),
        (
            EACH + "r = error.mean(1) / ((1 + 1 / K) * spread.mean(1)); return r.mean() + 0 * r",
            "one number for each question",
        ),
        (EACH + "return error.mean() / ((1 + 1 / K) * spread.mean())", "expected the shape"),
        (EACH + "return error.mean(1) / ((1 + 1 / K) * spread.sum(1))", "one term at a time"),
    ],
    (3, PART): [
        ("return a * s + b * eps", "the noise in s counts, too"),
        ("return a * s + max(b - a * sigma, 0) * eps", "variances add up"),
        ("return a * s + math.sqrt(max(b**2 - sigma**2, 0)) * eps", "and so is its noise"),
        (REST + "return a * s + rest * eps", "not by a variance"),
        (REST + "return s + math.sqrt(rest) * eps", "scale s by a"),
        ("return a * s + math.sqrt(b**2 + (a * sigma) ** 2) * eps", "subtract the variance"),
        ("return a * s + math.sqrt(abs(b**2 - (a * sigma) ** 2)) * eps", "add no noise where there is too much"),
        ("return a * s + math.sqrt(b**2 - (a * sigma) ** 2) * eps", "what if a sigma is above b"),
        ("return a * s + torch.tensor(b**2 - (a * sigma) ** 2).sqrt() * eps", "what if a sigma is above b"),
        ("return a * s + (b**2 - (a * sigma) ** 2) ** 0.5 * eps", "what if a sigma is above b"),
        ("return a * s + math.sqrt((a * sigma) ** 2 - b**2) * eps", "a root of a negative number"),
        (REST + "return math.sqrt(rest) * eps", "and the rest of the noise"),
        ("return a * s + math.sqrt(max(b - a * sigma, 0)) * eps", "and the rest of the noise"),
    ],
}
