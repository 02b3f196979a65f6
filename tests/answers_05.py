"""Answers to lesson 05's exercises, right and wrong, and the names that its checks find in the notebook."""

import math

import numpy as np
import torch

from fmdiff_helpers.data import CLASS_NAMES
from fmdiff_helpers.diffusion import add_noise, at, eps_from_x0, posterior, x0_from_eps
from fmdiff_helpers.samplers import chain_of, invert_ddim, respace, sample_ddim
from fmdiff_helpers.schedules import Schedule, cosine_beta


def names():
    """Names that the checks need, and names of the lesson that must not help."""
    found = {"torch": torch, "np": np, "math": math, "CLASS_NAMES": CLASS_NAMES, "device": "cpu"}
    found |= {"add_noise": add_noise, "at": at, "eps_from_x0": eps_from_x0, "posterior": posterior}
    found |= {"x0_from_eps": x0_from_eps, "chain_of": chain_of, "invert_ddim": invert_ddim, "respace": respace}
    found |= {"sample_ddim": sample_ddim, "Schedule": Schedule, "schedule": Schedule(cosine_beta(1000))}
    found |= {"kinds": torch.arange(10), "ab": torch.tensor(0.5), "eta": 0.0, "s": 400, "y": torch.zeros(10).long()}
    return found


SIGMA, REDRAW = "fresh_noise(ab_t, ab_s, eta)", "redraw(model, z, eps, y, k_start, num_steps)"
INVERT = "invert_well(model, x0, schedule, num_steps, y, rounds)"
FRACTION = "f = (1 - ab_s) / (1 - ab_t) * (1 - ab_t / ab_s); "

REDRAWN = (
    "steps, chain = respace(schedule, num_steps); "
    "x = add_noise(z, torch.full(z.shape[:1], k_start - 1), eps, chain) if k_start else z; "
    "for k in reversed(range(k_start)):; "
    "    i = torch.full(z.shape[:1], k); "
    "    e = model(x, steps[i], y); "
    "    p = x0_from_eps(x, i, e, chain); "
    "    a = at(chain.alpha_bar_prev, i, x); "
    "    x = a.sqrt() * p + (1 - a).sqrt() * e; "
    "return x"
)
BACK = (
    "steps, chain = respace(schedule, num_steps); "
    "x = x0; "
    "for k in range(chain.T):; "
    "    before, now = torch.full(x.shape[:1], max(k - 1, 0)), torch.full(x.shape[:1], k); "
    "    a = at(chain.alpha_bar_prev, now, x); "
    "    e = model(x, steps[before], y); "
    "    for _ in range(rounds + 1):; "
    "        g = add_noise((x - (1 - a).sqrt() * e) / a.sqrt(), now, e, chain); "
    "        e = model(g, steps[now], y); "
    "    x = g; "
    "return x"
)


def redrawn(old, new):
    """An answer to exercise 2 with one mistake."""
    assert old in REDRAWN
    return REDRAWN.replace(old, new)


def back(old, new):
    """An answer to exercise 3 with one mistake."""
    assert old in BACK
    return BACK.replace(old, new)


ONE_BY_ONE = (
    "steps, chain = respace(schedule, num_steps); ab = [1.0, *chain.alpha_bar.tolist()]; x = x0; "
    "for k, t in enumerate(steps.tolist()):; "
    "    A = (ab[k + 1] / ab[k]) ** 0.5; "
    "    B = (1 - ab[k + 1]) ** 0.5 - A * (1 - ab[k]) ** 0.5; "
    "    ask = lambda z, t: model(z, torch.full((len(z),), t), y); "
    "    guess = A * x + B * ask(x, int(steps[max(k - 1, 0)])); "
    "    left = rounds; "
    "    while left > 0:; "
    "        guess = A * x + B * ask(guess, t); "
    "        left = left - 1; "
    "    x = guess; "
    "return x"
)

SWEEPS = (  # wrong: the whole chain once, and then the whole chain again
    "steps, chain = respace(schedule, num_steps); zs = [x0]; "
    "i = [torch.full(x0.shape[:1], k) for k in range(chain.T)]; a = [at(chain.alpha_bar_prev, k, x0) for k in i]; "
    "go = lambda k, e: add_noise((zs[k] - (1 - a[k]).sqrt() * e) / a[k].sqrt(), i[k], e, chain); "
    "for k in range(chain.T): zs.append(go(k, model(zs[k], steps[i[max(k - 1, 0)]], y))); "
    "for _ in range(rounds):; "
    "    for k in range(chain.T): zs[k + 1] = go(k, model(zs[k + 1], steps[i[k]], y)); "
    "return zs[-1]"
)
ONE_IMAGE = (
    "answer = lambda x, t, y: torch.cat([model(x[k : k + 1], t[k : k + 1], y[k : k + 1]) for k in range(len(x))]); "
)

RIGHT = {
    (1, SIGMA): [
        "return eta * ((1 - ab_s) / (1 - ab_t) * (1 - ab_t / ab_s)).sqrt()",
        FRACTION + "return eta * math.sqrt(f)",
        FRACTION + "return (eta**2 * f) ** 0.5",
        FRACTION + "return np.sqrt(eta**2 * float(f))",
        FRACTION + "return torch.sqrt(f).reshape(1) * eta",
        "beta = 1 - ab_t / ab_s; return eta * torch.sqrt(beta * (1 - ab_s) / (1 - ab_t))",
    ],
    (2, REDRAW): [
        REDRAWN,
        redrawn("return x", "return x.float()"),
        "steps, _ = respace(schedule, num_steps); "
        "if k_start == 0: return z; "
        "x = add_noise(z, steps[k_start - 1].expand(len(z)), eps, schedule); "
        "short = chain_of(schedule, steps[:k_start]); "
        "return sample_ddim(lambda x, t, y: model(x, steps[t], y), x, short, y=y, clip=math.inf)",
        "if k_start == 0: return z; "
        "steps, chain = respace(schedule, num_steps); "
        "ab = chain.alpha_bar; "
        "x = ab[k_start - 1].sqrt() * z + (1 - ab[k_start - 1]).sqrt() * eps; "
        "for k in range(k_start - 1, -1, -1):; "
        "    e = model(x, steps[k].repeat(len(z)), y); "
        "    before = ab[k - 1] if k else torch.tensor(1.0).double(); "
        "    r = (1 / before - 1).sqrt() - (1 / ab[k] - 1).sqrt(); "
        "    x = before.sqrt() * (x / ab[k].sqrt() + r * e); "
        "return x",
    ],
    (3, INVERT): [BACK, ONE_BY_ONE, back("return x", "return x.float()")],
}

SHAPE = "expected a tensor of shape "
WRONG = {
    (1, SIGMA): [
        (FRACTION + "return eta**2 * f", "this is the variance; take its root"),
        (FRACTION + "return eta * f", "the root belongs to all but eta"),
        (FRACTION + "return f.sqrt()", "eta is missing"),
        (FRACTION + "return eta**2 * f.sqrt()", "inside the root eta is squared, outside it is not"),
        (FRACTION + "return (eta * f).sqrt()", "inside the root eta must be squared"),
        ("return eta * (1 - ab_t / ab_s).sqrt()", "the first fraction is missing"),
        ("return eta * ((1 - ab_s) / (1 - ab_t)).sqrt()", "the bracket is missing"),
        ("return eta * ((1 - ab_t) / (1 - ab_s) * (1 - ab_t / ab_s)).sqrt()", "upside down"),
        ("return eta * ((1 - ab_s) / (1 - ab_t) * (1 - ab_s / ab_t)).sqrt()", "ab_s is the larger one"),
        ("return eta * ((1 - ab_s) / (1 - ab_t) * (1 + ab_t / ab_s)).sqrt()", "sign by sign"),
        (FRACTION + "return eta, f", "expected one number, got a tuple"),
        (FRACTION + "return f.sqrt().expand(3)", "expected one number, got a Tensor"),
        ("return 'sigma'", "expected one number, got a str"),
        ("return 0.0", "sign by sign"),
    ],
    (2, REDRAW): [
        (redrawn("steps[i], y)", "steps[i])"), "did not get the labels y"),
        (redrawn("steps[i], y)", "steps[i], torch.zeros_like(y))"), "did not get the labels y"),
        (redrawn("steps[i], y)", "steps[i], kinds[: len(z)])"), "did not get the labels y"),
        (ONE_IMAGE + redrawn("model(x", "answer(x"), "the whole batch at once"),
        (redrawn("steps[i], y)", "i, y)"), "the network was told t = "),
        (redrawn("reversed(range(k_start))", "range(k_start)"), "from k = k_start - 1 down to 0"),
        (redrawn("reversed(range(k_start))", "reversed(range(1, k_start))"), "the network was told t = "),
        (redrawn("reversed(range(k_start))", "reversed(range(num_steps))"), "no step, so z as it is"),
        (redrawn("k_start - 1)", "min(k_start, chain.T - 1))"), "the first question must be z with"),
        (redrawn("eps, chain)", "0 * eps, chain)"), "the first question must be z with"),
        (redrawn("eps, chain)", "torch.randn_like(eps), chain)"), "the first question must be z with"),
        (redrawn("if k_start else z", "if k_start else eps"), "no step, so z as it is"),
        (
            redrawn("e, chain)", "e, chain).clamp(-1, 1); ").replace("; ; ", ";     e = eps_from_x0(x, i, p, chain); "),
            "nothing is clipped here",
        ),
        (
            redrawn("e, chain)", "e, chain).clamp(-3, 3); ").replace("; ; ", ";     e = eps_from_x0(x, i, p, chain); "),
            "nothing is clipped here, not to ±3 either",
        ),
        (redrawn("x = a.sqrt()", "z = x;     x = a.sqrt()").replace("return x", "return z"), "one step is missing"),
        (redrawn("(1 - a).sqrt() * e", "(1 - a) * e"), "a step is .6. with sigma = 0"),
        (redrawn("(1 - a).sqrt() * e", "(1 - a).sqrt() * torch.randn_like(e)"), "a step is .6. with sigma = 0"),
        (redrawn("* p +", "* z +"), "a step is .6. with sigma = 0"),
        (redrawn("return x", "return [x]"), SHAPE + ".2, 4, 7, 7., got a list"),
        (redrawn("return x", "return x[0]"), SHAPE + ".2, 4, 7, 7., got .4, 7, 7."),
    ],
    (3, INVERT): [
        (back("steps[now], y)", "steps[now], y);         x = g"), "from the same z_s"),
        (back("rounds + 1", "rounds + 2"), "with rounds = 0 it must be invert_ddim"),
        (back("rounds + 1", "max(rounds, 1)"), "one repetition is missing"),
        (back("rounds + 1", "2 * rounds + 1"), "one repetition too many"),
        (back("rounds + 1", "min(rounds + 1, 2)"), "one repetition is missing"),
        (back("rounds + 1", "rounds + 1 if k == 0 else 1"), "takes each of . steps three times"),
        (back("rounds + 1", "rounds * (k + 1) + 1"), "takes each of . steps three times"),
        (SWEEPS, "repeat each step before you go on"),
        (
            ONE_BY_ONE.replace("B * ask(guess, t)", "(1 - ab[k + 1]) ** 0.5 * ask(guess, t)"),
            "is each step repeated, and asked at t",
        ),
        (ONE_IMAGE + back("model(g", "answer(g").replace("model(x", "answer(x"), "the whole batch at once"),
        (back("model(g, steps[now]", "model(g, steps[before]"), "must be asked at t, not at s"),
        (back("model(g,", "model(x,"), "one repetition is missing"),
        (back("steps[now], y)", "steps[now], None)"), "did not get the labels y"),
        ("return invert_ddim(model, x0, schedule, num_steps, y)", "one repetition is missing"),
        ("return invert_ddim(model, x0, schedule, num_steps)", "did not get the labels y"),
        (back("return x", "return [x]"), SHAPE + ".3, 2, 5, 5., got a list"),
    ],
}
