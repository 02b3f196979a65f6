"""Answers to lesson 03's exercises, right and wrong, and the names that its checks find in the notebook."""

import math

import torch
import torch.nn.functional as F

from fmdiff_helpers.diffusion import add_noise, at, posterior, x0_from_eps
from fmdiff_helpers.samplers import respace, sample_ddim, sample_ddpm
from fmdiff_helpers.schedules import Schedule, cosine_beta, linear_beta


def names():
    """Names that the checks need, and names of the lesson that must not help."""
    found = {"torch": torch, "math": math, "F": F, "at": at, "add_noise": add_noise, "posterior": posterior}
    found |= {"x0_from_eps": x0_from_eps, "sample_ddpm": sample_ddpm, "sample_ddim": sample_ddim, "respace": respace}
    found |= {"Schedule": Schedule, "cosine_beta": cosine_beta, "linear_beta": linear_beta}
    found |= {"schedule": Schedule(cosine_beta(200)), "device": "cpu", "seed": 0}
    x = torch.rand((10, 1, 28, 28), generator=torch.Generator().manual_seed(1))
    found |= {"ten": x, "eps": x, "x0": x, "xt": x, "t": torch.full((10,), 60), "model": lambda x, t, y=None: x}
    return found


SCORE, MEAN = "x0_from_score(score, xt, t, schedule)", "mean_from_eps(xt, t, eps_hat, schedule)"
VARY = "vary(model, x0, t, schedule, generator)"
SCALES = "s, n = at(schedule.signal_scale, t, xt), at(schedule.noise_scale, t, xt); "
ROOTS = "a, b, bar = (at(v, t, xt) for v in (schedule.alpha, schedule.beta, schedule.alpha_bar)); "
START = (
    "step = lambda k: torch.full((len(x0),), k); "
    "noise = lambda: torch.randn(x0.shape, generator=generator); x = add_noise(x0, step(t), noise(), schedule); "
)
GUESS = "x0_hat = x0_from_eps(x, step(k), model(x, step(k)), schedule).clamp(-1, 1)"
DRAW = "mean, variance = posterior(x0_hat, x, step(k), schedule)"


def walk(start=START, steps="range(t, -1, -1)", guess=GUESS, draw=DRAW, last="x = mean + variance.sqrt() * noise()"):
    """The body of `vary`, with some of its parts replaced."""
    return f"{start}\n    for k in {steps}:\n        {guess}\n        {draw}\n        {last}; return x"


RIGHT = {
    (1, SCORE): [
        SCALES + "return ((xt + n**2 * score) / s).clamp(-1, 1)",
        SCALES + "return torch.clip((xt + n * n * score) / s, min=-1.0, max=1.0)",
        "bar = schedule.alpha_bar[t][:, None, None, None]; return ((xt + (1 - bar) * score) / bar.sqrt()).clamp(-1, 1)",
        SCALES + "return x0_from_eps(xt, t, -n * score, schedule).clamp(-1, 1)",
        SCALES + "return F.hardtanh((xt / s + n**2 / s * score).float())",
        "bar = schedule.alpha_bar[t]; return torch.stack([((x + (1 - b) * g) / b**0.5).clamp(-1, 1) "
        "for x, g, b in zip(xt, score, bar)])",
    ],
    (2, MEAN): [
        ROOTS + "return (xt - b / (1 - bar).sqrt() * eps_hat) / a.sqrt()",
        "return posterior(x0_from_eps(xt, t, eps_hat, schedule), xt, t, schedule)[0]",
        "a, b, n = (v[t].reshape(-1, 1, 1, 1) for v in (schedule.alpha, schedule.beta, schedule.noise_scale)); "
        "return a**-0.5 * (xt - b / n * eps_hat)",
        ROOTS + "return xt / a.sqrt() - (1 - a) / (a * (1 - bar)).sqrt() * eps_hat",
        "return torch.stack([(x - b / n * e) / math.sqrt(a) for x, e, a, b, n in "
        "zip(xt, eps_hat, schedule.alpha[t], schedule.beta[t], schedule.noise_scale[t])])",
    ],
    (3, VARY): [
        walk(),
        walk(last="x = mean + variance.sqrt() * noise() if k else mean"),
        walk(last="x = mean + (variance.sqrt() * noise() if k > 0 else 0)"),
        walk(steps="reversed(range(t + 1))"),
        START + "return sample_ddpm(model, x, Schedule(schedule.beta[: t + 1]), generator)",
        walk(guess="e = model(x, step(k), None)\n        x0_hat = x0_from_eps(x, step(k), e, schedule).clip(-1, 1)"),
        "x = None; \n    for k in range(t, -1, -1):\n        step = torch.full((len(x0),), k)\n"
        "        a, b, p = schedule.alpha_bar[k], schedule.beta[k], schedule.alpha_bar_prev[k]\n"
        "        z = [torch.randn(x0.shape, generator=generator) for _ in range(2)]\n"
        "        x = a.sqrt() * x0 + (1 - a).sqrt() * z[0] if x is None else x\n"
        "        guess = ((x - (1 - a).sqrt() * model(x, step)) / a.sqrt()).clamp(-1, 1)\n"
        "        mean = (p.sqrt() * b * guess + (1 - b).sqrt() * (1 - p) * x) / (1 - a)\n"
        "        x = mean + (b * (1 - p) / (1 - a)).sqrt() * z[1]; return x",
    ],
}

WRONG = {
    (1, SCORE): [
        (SCALES + "return (xt + n**2 * score) / s", "clip it to"),
        (SCALES + "return ((xt - n**2 * score) / s).clamp(-1, 1)", "the sign of the score"),
        (SCALES + "return ((xt + n * score) / s).clamp(-1, 1)", "noise_scale squared"),
        (SCALES + "return (xt + n**2 * score).clamp(-1, 1)", "divide by signal_scale, too"),
        (SCALES + "return ((xt + n**2 * score) / s**2).clamp(-1, 1)", "not by its square"),
        (SCALES + "return (n**2 * score / s).clamp(-1, 1)", "x_t is missing"),
        (SCALES + "return (xt + n**2 * score / s).clamp(-1, 1)", "x_t as well"),
        (SCALES + "return -n * score", "this is the noise"),
        (
            SCALES.replace("schedule", "Schedule(cosine_beta(200))") + "return ((xt + n**2 * score) / s).clamp(-1, 1)",
            "use the argument `schedule`",
        ),
        (
            "return ((xt + schedule.noise_scale[t] ** 2 * score) / schedule.signal_scale[t]).clamp(-1, 1)",
            "do the shapes fit",
        ),
        ("return x0_from_eps(xt, t, score, schedule).clamp(-1, 1)", "variance times the score"),
        (SCALES + "return ((xt + n**2 * score) / s).clamp(0, 1)", "variance times the score"),
        (SCALES + "return ((xt + n**2 * score) / s).mean()", "expected shape"),
        ("return 0.5", "expected one tensor of pictures, got a float"),
    ],
    (2, MEAN): [
        (ROOTS + "return (xt + b / (1 - bar).sqrt() * eps_hat) / a.sqrt()", "must be subtracted"),
        (ROOTS + "return xt - b / (1 - bar).sqrt() * eps_hat", "divide by the root of alpha"),
        (ROOTS + "return (xt - b / (1 - bar).sqrt() * eps_hat) * a.sqrt()", "do not multiply"),
        (ROOTS + "return (xt - b / (1 - bar).sqrt() * eps_hat) / a", "alpha needs a square root"),
        (ROOTS + "return (xt - b / (1 - bar) * eps_hat) / a.sqrt()", "1 - alpha_bar needs a square root"),
        (ROOTS + "return (xt - b.sqrt() * eps_hat) / a.sqrt()", "not the root of beta"),
        (ROOTS + "return (xt - b * eps_hat) / a.sqrt()", "divided by the noise scale"),
        (ROOTS + "return (xt - b / (1 - bar).sqrt() * eps_hat) / bar.sqrt()", "not alpha_bar: this is one step"),
        ("return x0_from_eps(xt, t, eps_hat, schedule)", "this is x0_hat"),
        (
            "return posterior(x0_from_eps(xt, t, eps_hat, schedule).clamp(-1, 1), xt, t, schedule)[0]",
            "nothing is clipped",
        ),
        (
            "s = Schedule(cosine_beta(200)); return posterior(x0_from_eps(xt, t, eps_hat, s), xt, t, s)[0]",
            "use the argument `schedule`",
        ),
        ("return posterior(x0_from_eps(xt, t, eps_hat, schedule), xt, t, schedule)", "got a tuple"),
        (
            "return (xt - schedule.beta[t] / schedule.noise_scale[t] * eps_hat) / schedule.alpha[t].sqrt()",
            "do the shapes fit",
        ),
        ("return xt - eps_hat", "not the posterior's mean"),
        ("return torch.zeros_like(xt)", "not the posterior's mean"),
    ],
    (3, VARY): [
        (walk(steps="range(t - 1, -1, -1)"), "t itself is the first step back"),
        (walk(steps="range(schedule.T - 1, -1, -1)"), "start at t = 12, not at 39"),
        (START + "return sample_ddpm(model, x, schedule, generator)", "start at t = 12, not at 39"),
        (walk(steps="range(t, 0, -1)"), "step 0 is missing"),
        (walk(steps="range(0, t + 1)"), "ask the model at t, t - 1"),
        (walk(steps="range(t, -1, -2)"), "ask the model at t, t - 1"),
        (START + "return x", "never asked"),
        (
            walk(start=START.replace("x = add_noise(x0, step(t), noise(), schedule)", "x = x0")),
            "noise the pictures first",
        ),
        (walk(start=START.replace("step(t), noise()", "step(t), 0 * noise()")), "only shrink; add noise"),
        (walk(start=START.replace("x = add_noise(x0, step(t), noise(), schedule)", "x = noise()")), "noise alone"),
        (walk(start=START.replace("step(t), noise()", "step(max(t - 1, 0)), noise()")), "not add_noise"),
        (
            walk(
                start=START + "schedule = Schedule(cosine_beta(200)); x = add_noise(x0, step(t), noise(), schedule); "
            ),
            "use the argument `schedule`",
        ),
        (walk(last="x = mean"), "no fresh noise"),
        (walk(last="x = mean + variance * noise()"), "not by the variance"),
        (walk(last="x = mean + schedule.beta[k].sqrt() * noise() * (k > 0)"), "posterior's variance, not beta"),
        (walk(last="x = mean + (variance + 1e-2 * (k == 0)).sqrt() * noise()"), "at step 0 the variance is 0"),
        (walk(guess=GUESS.replace(".clamp(-1, 1)", "")), "x0_hat is not clipped"),
        (
            walk(guess=GUESS.replace(".clamp(-1, 1)", ""), last="x = (mean + variance.sqrt() * noise()).clamp(-1, 1)"),
            "not clipped|not a draw",
        ),
        (walk(last="x = (mean + variance.sqrt() * noise()).clamp(-1, 1)"), "clip x0_hat alone"),
        (walk(START + "z = noise(); ", last="x = mean + variance.sqrt() * z"), "the same noise again"),
        (
            walk(
                START.replace("x = add", "z = noise(); x = add").replace("step(t), noise()", "step(t), z"),
                last="x = mean + variance.sqrt() * z",
            ),
            "the same noise again",
        ),
        (walk(last="x = mean + variance.sqrt() * noise()[:1]"), "a noise of its own, at each step"),
        (walk(start=START.replace("step(t), noise()", "step(t), noise()[:1].expand_as(x0)")), "a noise of its own$"),
        (walk(last="x = mean + variance.sqrt() * torch.rand(x0.shape, generator=generator)"), "not a draw from"),
        (
            walk(draw="mean, variance = x0_hat, torch.zeros(1)", last="x = mean"),
            "not a draw|no fresh noise|not clipped",
        ),
        (
            START.replace("generator=generator", "").replace("x0.shape, ", "x0.shape") + walk(start=""),
            "come from `generator`",
        ),
        (
            walk(
                start=START
                + "generator = torch.Generator().manual_seed(0); x = add_noise(x0, step(t), noise(), schedule); "
            ),
            "does not come from `generator`",
        ),
        (walk(start=START + "x0 *= 2; "), "x0 itself has changed"),
        (
            walk()
            .replace("step = lambda k: torch.full((len(x0),), k)", "step = lambda k: torch.full((len(x0),), float(k))")
            .replace("add_noise(x0, step(t)", "add_noise(x0, step(t).long()"),
            "whole numbers",
        ),
        (walk() + "[:1]", "expected shape"),
        (walk() + ".tolist()", "expected one tensor of pictures, got a list"),
        (
            START + "return sample_ddim(model, x, Schedule(schedule.beta[: t + 1]))",
            "no fresh noise|not a draw",
        ),
    ],
}
