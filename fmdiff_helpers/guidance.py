"""Classifier-free guidance, and guidance by a gradient.

y (B,) are labels. Label 10 is the null label: "no label given", as None.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fmdiff_helpers.diffusion import at, x0_from_eps
from fmdiff_helpers.schedules import Schedule

NULL = 10


def drop_labels(y: Tensor, u: Tensor, share: float) -> Tensor:
    """Replace a label by the null label where its u (B,), uniform in [0, 1), is below `share`.

    (Ho & Salimans 2022, algorithm 1) Built in lesson 06.
    """
    return torch.where(u < share, NULL, y)


def w_of_paper(w: float) -> float:
    """Convert the guidance strength of Ho & Salimans, where 0 means none, into ours, where 1 means none.

    Their eq. 6 is (1 + w) eps_y - w eps_null. Built in lesson 06.
    """
    return 1 + w


def with_and_without(model: Callable, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return two predictions of `model`, each shaped like x (B, ...): with the labels y (B,), and without.

    On a GPU both come from one call on 2 B images, the second half with the null label: half as many operations to
    start. On a CPU networks on pixels gain nothing from that, and the last digits would change, so there are two calls.
    Built in lesson 06.
    """
    if x.device.type == "cpu":
        return model(x, t, y), model(x, t, None)
    null = torch.full_like(y, NULL)
    return model(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, null])).chunk(2)


def guided(
    model: Callable, w: float, interval: tuple[int, int] | None = None, weak: Callable | None = None
) -> Callable:
    """Return a denoiser that goes w times as far from the prediction without labels towards the one with labels.

    eps_null + w (eps_y - eps_null): w = 0 forgets the labels, w = 1 is the model itself, and more is guidance.
    `interval` (first, last) limits it to those steps t, both included; at the others w is 1. `model` predicts noise,
    v or x0, and was trained without labels too. With `weak`, a worse model of the same kind, its prediction with
    labels takes the place of eps_null (autoguidance). The denoiser raises ValueError without labels.
    (Ho & Salimans 2022, eq. 6; interval: Kynkäänniemi et al. 2024; weak: Karras et al. 2024) Built in lesson 06.
    """

    def predict(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        if y is None:
            raise ValueError("y is None; guidance needs labels (B,) to lead to")
        first, last = interval or (0, math.inf)
        scale = torch.where((t >= first) & (t <= last), w, 1.0).reshape(-1, *[1] * (x.ndim - 1))
        # Reading `scale` makes Python wait for a GPU, so it is read only if that can save a call of the network.
        if w == 1 or (interval and (scale == 1).all()):
            return model(x, t, y)
        if weak:
            eps_y, eps_null = model(x, t, y), weak(x, t, y)
        else:
            eps_y, eps_null = with_and_without(model, x, t, y)
        return torch.where(scale == 1, eps_y, eps_null + scale * (eps_y - eps_null))

    return predict


def steered(model: Callable, schedule: Schedule, attribute: Callable, target: float, strength: float) -> Callable:
    """Return a denoiser that leads to images whose `attribute` is `target`, without any training.

    `attribute` maps images (B, 1, H, W) in [-1, 1] to one number each, (B,), and has a gradient. `model` predicts the
    noise. The denoiser adds the gradient of a cost to it: `strength` nats times the squared error of the predicted x0.
    (Dhariwal & Nichol 2021, algorithm 2, with the likelihood of Chung et al. 2023, eq. 11) Built in lesson 06.
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
