"""Classifier-free guidance: one network that knows the kind and can forget it, and the difference pushed further.

y (B,) are labels; label 10 is the null label, which says nothing of the kind and stands for None.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fmdiff_helpers.diffusion import at, x0_from_eps
from fmdiff_helpers.schedules import Schedule

NULL = 10


def drop_labels(y: Tensor, u: Tensor, share: float) -> Tensor:
    """Replace each label whose u (B,), uniform in [0, 1), is below `share` by the null label.

    (Ho & Salimans 2022, algorithm 1) Built in lesson 06.
    """
    return torch.where(u < share, NULL, y)


def w_of_paper(w: float) -> float:
    """Turn the guidance strength of Ho & Salimans, 0 for none, into ours, 1 for none.

    Their eq. 6 is (1 + w) eps_y - w eps_null. Built in lesson 06.
    """
    return 1 + w


def guided(
    model: Callable, w: float, interval: tuple[int, int] | None = None, weak: Callable | None = None
) -> Callable:
    """Return a denoiser whose prediction lies w times as far from that without labels as that with labels does.

    eps_null + w (eps_y - eps_null): w = 0 forgets the labels, w = 1 is the model as it is, and more is guidance.
    `interval` (first, last) keeps it to those steps t; at the others w is 1. `model` predicts noise, v or x0, and
    has learned without labels, too; or a `weak` one of the same kind stands for what it lacks. The denoiser raises
    ValueError without labels.
    (Ho & Salimans 2022, eq. 6; interval: Kynkäänniemi et al. 2024; weak: Karras et al. 2024) Built in lesson 06.
    """

    def predict(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        if y is None:
            raise ValueError("y is None; guidance needs labels (B,) to lead to")
        first, last = interval or (0, math.inf)
        scale = torch.where((t >= first) & (t <= last), w, 1.0).reshape(-1, *[1] * (x.ndim - 1))
        eps_y = model(x, t, y)
        # A GPU is asked, and waited for, only where the answer can save a call of the network.
        if w == 1 or (interval and (scale == 1).all()):
            return eps_y
        eps_null = weak(x, t, y) if weak else model(x, t, None)
        return torch.where(scale == 1, eps_y, eps_null + scale * (eps_y - eps_null))

    return predict


def steered(model: Callable, schedule: Schedule, attribute: Callable, target: float, strength: float) -> Callable:
    """Return a denoiser that is led to images whose `attribute` is `target`, without any training.

    `attribute` measures images (B, 1, H, W) in [-1, 1], one number for each, and has a gradient; `model` predicts the
    noise. To that the gradient of the squared error of the predicted x0 is added; an error of 1 costs `strength` nats.
    (Dhariwal & Nichol 2021, algorithm 2, with the likelihood of Chung et al. 2023, eq. 10) Built in lesson 06.
    """

    @torch.enable_grad()
    def predict(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        x = x.detach().requires_grad_()
        eps_hat = model(x, t, y)
        x0_hat = x0_from_eps(x, t, eps_hat, schedule).clamp(-1, 1)
        cost = strength * (attribute(x0_hat) - target).square().sum()
        (slope,) = torch.autograd.grad(cost, x)
        return eps_hat.detach() + at(schedule.noise_scale, t, x) * slope

    return predict
