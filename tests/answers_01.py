"""Answers to lesson 01's exercises, right and wrong, and the names that its checks find in the notebook."""

import itertools
import math

import numpy as np
import torch

from fmdiff_helpers.schedules import Schedule, cosine_beta, ends_in_noise, linear_beta, quadratic_beta


def names():
    """Names that the checks need, and names of the lesson that must not help."""
    found = {"torch": torch, "np": np, "math": math, "itertools": itertools, "Schedule": Schedule}
    found |= {"linear_beta": linear_beta, "cosine_beta": cosine_beta, "quadratic_beta": quadratic_beta}
    found |= {"ends_in_noise": ends_in_noise, "linear": Schedule(linear_beta(1000)), "steps": torch.tensor([60, 999])}
    found |= {"schedules": {"linear": found["linear"], "cosine": Schedule(cosine_beta(1000))}, "T": 1000, "db": -10}
    return found


FIRST_BELOW, SHORTEST = "first_step_below(schedule, db)", "shortest_chain(beta)"
RESPACED = "respaced_beta(schedule, steps)"
SNR, BEFORE = "snr = schedule.log_snr_db; ", "a = schedule.alpha_bar[steps]; b = torch.cat([torch.ones(1), a[:-1]]); "
SEARCH = "while not ends_in_noise(Schedule(beta(T))): T += 1"

RIGHT = {
    (1, FIRST_BELOW): [
        "return int((schedule.log_snr_db < db).nonzero()[0])",
        "return (schedule.log_snr_db < db).nonzero()[0]",
        "return next(t for t in range(schedule.T) if schedule.log_snr_db[t] < db)",
        "return (schedule.log_snr_db >= db).sum()",
        "return np.argmax(schedule.log_snr_db.numpy() < db)",
        "return float((schedule.log_snr_db.float() >= db).sum())",
        "a, t = schedule.alpha_bar, 0; \n    while 10 * math.log10(a[t] / (1 - a[t])) >= db: t += 1; return t",
        "return torch.searchsorted(-schedule.log_snr_db, -db, right=True)",
    ],
    (2, SHORTEST): [
        f"T = 2; {SEARCH}; return T",
        "return next(T for T in itertools.count(2) if ends_in_noise(Schedule(beta(T))))",
        "return next(T for T in itertools.count(2) if Schedule(beta(T)).log_snr_db[-1] < -30)",
        "ends = np.array([ends_in_noise(Schedule(beta(T))) for T in range(2, 900)]); return 2 + ends.argmax()",
        f"T = 2; {SEARCH}; return torch.tensor(float(T))",
        "high = 2; \n    while not ends_in_noise(Schedule(beta(high))): high *= 2; low = max(1, high // 2); "
        "\n    while high - low > 1:\n        middle = (low + high) // 2\n"
        "        low, high = (low, middle) if ends_in_noise(Schedule(beta(middle))) else (middle, high); return high",
    ],
    (3, RESPACED): [
        BEFORE + "return 1 - a / b",
        BEFORE + "return (1 - a / b).float()",
        BEFORE + "return (1 - a / b).tolist()",
        BEFORE + "return ((b - a) / b).numpy()",
        "a = [1.0, *schedule.alpha_bar[steps].tolist()]; return tuple(1 - now / old for old, now in zip(a, a[1:]))",
        "ends = [-1, *steps.tolist()]; "
        "return [1 - schedule.alpha[i + 1 : j + 1].prod() for i, j in zip(ends, ends[1:])]",
        "logs = schedule.alpha.log().cumsum(0)[steps]; return -torch.expm1(logs.diff(prepend=torch.zeros(1)))[:, None]",
    ],
}

WRONG = {
    (1, FIRST_BELOW): [
        ("return (schedule.log_snr_db >= db).sum() - 1", "not yet below"),
        ("return (schedule.log_snr_db >= db).sum() + 1", "one too far"),
        ("return (schedule.log_snr_db < db).sum()", "you count the steps below"),
        ("return (schedule.log_snr_db < db).nonzero()[-1]", "the last step below, not the first"),
        ("return (schedule.log_snr < db).nonzero()[0]", "take log_snr_db"),
        ("return (schedule.log_snr_db < 0).nonzero()[0]", "use the argument `db`"),
        ("return (linear.log_snr_db < db).nonzero()[0]", "use the argument `schedule`"),
        ("return (schedules['cosine'].log_snr_db < db).nonzero()[0]", "is not the first below"),
        ("return (schedule.log_snr_db - db).abs().argmin()", "is not the first below"),
        ("return 178", "is not the first below"),
        ("return schedule.log_snr_db < db", "expected one whole number"),
        ("return schedule.log_snr_db[(schedule.log_snr_db < db)][0]", "expected one whole number, got tensor"),
        ("return 'step 3'", "expected one whole number, got step 3"),
    ],
    (2, SHORTEST): [
        (f"T = 2; {SEARCH}; return T - 1", "the last T that does not|at least 2 steps"),
        (f"T = 2; {SEARCH}; return T + 1", "search for the smallest T"),
        (f"T = 2; {SEARCH.replace('+= 1', '+= 10')}; return T", "search for the smallest T"),
        (f"T = 2; {SEARCH.replace('beta(T)', 'linear_beta(T)')}; return T", "use the argument `beta`"),
        ("return 2", "does not end in noise yet"),
        (f"T = 2; {SEARCH}; return Schedule(beta(T))", "expected one whole number"),
        (f"T = 200; {SEARCH}; return T", "search for the smallest T"),
        ("return next(T for T in itertools.count(2) if Schedule(beta(T)).log_snr_db[-1] < -40)", "smallest T"),
        ("return next(T for T in itertools.count(2) if Schedule(beta(T)).log_snr[-1] < -3)", "does not end in noise"),
        ("return 689", "search for the smallest T"),
        ("return ends_in_noise(Schedule(beta(200)))", "at least 2 steps"),
    ],
    (3, RESPACED): [
        (BEFORE + "return 1 - a / a.roll(1)", "not the last entry"),
        (BEFORE + "b[0] = schedule.alpha_bar[0]; return 1 - a / b", "whose alpha_bar is 1$"),
        (BEFORE + "return 1 - a", "took away so far"),
        (BEFORE + "return a", "alpha_bar itself"),
        (BEFORE + "return a / b", "this is alpha"),
        (BEFORE + "return b - a", "do not subtract"),
        (BEFORE + "return 1 - (a / b) ** 0.5", "no square root"),
        (BEFORE + "return 1 - b / a", "upside down"),
        (BEFORE + "return (1 - a / b)[1:]", "the first step counts, too"),
        ("return schedule.beta[steps]", "betas of the long chain"),
        ("return 1 - schedule.alpha_bar[steps] / schedule.alpha_bar_prev[steps]", "betas of the long chain"),
        ("return schedule.beta.cumsum(0)[steps].diff(prepend=torch.zeros(1))", "betas do not add up"),
        (BEFORE.replace("schedule", "linear") + "return 1 - a / b", "use `schedule` and `steps`|index"),
        ("return torch.full((len(steps),), 0.1)", "use `schedule` and `steps`"),
        ("return Schedule(schedule.beta[steps])", "expected a list of betas, got a Schedule"),
        (BEFORE + "return (1 - a / b).sum()", "expected a list of betas, got a Tensor"),
    ],
}
