"""Answers to lesson 09's exercises, right and wrong, and the names that its checks find in the notebook."""

from itertools import pairwise

import torch
from torch import nn


def names():
    """Names that the checks need, and names of the lesson that must not help."""
    found = {"torch": torch, "nn": nn, "pairwise": pairwise, "steps": 1000, "u": torch.ones(3), "z": torch.ones(3)}
    found |= {"x0": torch.zeros(3), "t": torch.full((10,), 0.6), "num_steps": 7, "dt": 0.1}
    return found | {"model": lambda x, t, r=None: 2 * x, "flow": lambda x, t, y=None: x}


EULER, THIRDS, HEUN = "euler(predict, x, times)", "thirds_target(model, x, t, r)", "heun(predict, x, times)"
EACH = "for now, then in zip(times[:-1], times[1:]):;     t = torch.full((len(x),), now, dtype=x.dtype); "
VELOCITY = "f = lambda x, s: (x - predict(x, torch.full((len(x),), s, dtype=x.dtype))) / s; "
PAIRS = "for now, then in zip(times[:-1], times[1:]):;     u = f(x, now); "
HALF = "    end = x + (then - now) * u; "
JUMPS = "step, total = (r - t) / 3, 0; for k in range(3):;     u = model(x, t + k * step, t + (k + 1) * step); "

RIGHT = {
    (1, EULER): [
        EACH + "    x = x + (then - now) * (x - predict(x, t)) / now; return x",
        EACH + "    x = predict(x, t) + then / now * (x - predict(x, t)); return x",
        EACH + "    x0 = predict(x, t);     eps = (x - (1 - now) * x0) / now;     x = (1 - then) * x0 + then * eps; "
        "return x",
        "for k in range(len(times) - 1):;     t = times[k] * torch.ones(x.shape[0]);     x0 = predict(x, t); "
        "    x = torch.lerp(x0, x, times[k + 1] / times[k]); return x.numpy()",
    ],
    (2, THIRDS): [
        JUMPS + "    x = x + step[:, None] * u;     total = total + u; return total / 3",
        "a, b = t + (r - t) / 3, t + 2 * (r - t) / 3; u1 = model(x, t, a); x1 = x + (a - t)[:, None] * u1; "
        "u2 = model(x1, a, b); u3 = model(x1 + (b - a)[:, None] * u2, b, r); return torch.stack([u1, u2, u3]).mean(0)",
        "begin = x; cuts = [t.lerp(r, k / 3) for k in range(4)]; us = []; for a, b in pairwise(cuts):; "
        "    us.append(model(x, a, b));     x = x + (b - a).reshape(-1, 1) * us[-1]; return sum(us) / 3",
    ],
    (3, HEUN): [
        VELOCITY + PAIRS + HALF + "    end = x + (then - now) * (u + f(end, then)) / 2 if then > 0 else end; "
        "    x = end; return x",
        VELOCITY
        + PAIRS
        + HALF
        + "    w = f(end, then) if then else u;     x = x + (then - now) / 2 * (u + w); return x",
        VELOCITY + "for k, now in enumerate(times[:-1]):;     u, h = f(x, now), times[k + 1] - now;     y = x + h * u; "
        "    x = y if times[k + 1] == 0 else y + h * (f(y, times[k + 1]) - u) / 2; return x.double()",
    ],
}

WRONG = {
    (1, EULER): [
        (EACH + "    x = x - (then - now) * (x - predict(x, t)) / now; return x", "time falls"),
        (EACH + "    x = x + (then - now) * (x - predict(x, t)); return x", "divide x - x0_hat by the time"),
        (
            EACH + "    x = x + (then - now) * (x - predict(x, t)) / max(1 - now, 1e-9); return x",
            r"not \(x - x0_hat\) / \(1 - t\)",
        ),
        (EACH + "    x = x + (then - now) * predict(x, t); return x", "this is x0_hat, not the velocity"),
        (
            EACH + "    x = x + (then - now) * (x - predict(x, t - now + then)) / now; return x",
            "at the start of a step",
        ),
        ("return predict(x, torch.full((len(x),), times[0]))", "compare one step"),
        ("for t in times:;     x = predict(x, t); return x", "one time for each image"),
        ("return x[0]", "expected the shape"),
    ],
    (2, THIRDS): [
        (JUMPS + "    total = total + u; return total / 3", "begins where the first one ends"),
        (JUMPS + "    x = x - step[:, None] * u;     total = total + u; return total / 3", r"x \+ \(r - t\)"),
        (JUMPS + "    x = x + step[:, None] * u;     total = total + u; return total", "not their sum"),
        (JUMPS + "    x = x + step[:, None] * u; return x", "where the jumps end"),
        ("begin = x; " + JUMPS + "    x = x + step[:, None] * u; return x - begin", "divide it by r - t"),
        (
            "m = (t + r) / 2; u = model(x, t, m); return (u + model(x + (m - t)[:, None] * u, m, r)) / 2",
            "three jumps, not two",
        ),
        ("return model(x, t, r)", "one jump for the whole way"),
        ("return model(x, t.mean(), r.mean())", "two times for each point"),
    ],
    (3, HEUN): [
        (VELOCITY + PAIRS + "    x = x + (then - now) * u; return x", "this is Euler's method"),
        (VELOCITY + PAIRS + HALF + "    x = x + (then - now) * (u + f(end, then)) / 2; return x", "divides by 0"),
        (
            VELOCITY
            + PAIRS
            + HALF
            + "    w = f(end, then) if then else 0 * u;     x = x + (then - now) / 2 * (u + w); return x",
            "only one velocity is left",
        ),
        (
            VELOCITY + PAIRS + "    w = f(x, then) if then else u;     x = x + (then - now) / 2 * (u + w); return x",
            "not at its start",
        ),
        (
            VELOCITY
            + PAIRS
            + "    x = x + (then - now) * u;     x = x + (then - now) * (u + f(x, then)) / 2 if then else x; return x",
            "from its start",
        ),
        (
            VELOCITY
            + PAIRS
            + HALF
            + "    w = f(end, then) if then else u;     x = x + (then - now) * (u + w); return x",
            "take the mean",
        ),
        ("return 3", "expected the shape"),
    ],
}
