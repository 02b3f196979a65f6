"""Flow matching: straight paths from data to noise, losses that learn their velocity, and how likely data are.

x0 is data, eps is noise drawn from N(0, I), t (B,) is the time of each image: a real number from 0 (data) to 1 (noise).
Images are floating-point tensors (B, ...), all on one device. A model is called as model(xt, t, y) and returns the
velocity at xt: where it moves, and how fast, as t grows.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from fmdiff_helpers.schedules import Schedule


def spread_out(t: Tensor, x: Tensor) -> Tensor:
    """Return t (B,) with the shape (B, 1, ...) and the dtype to multiply images `x`."""
    return t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def straight_path(x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Return where the straight line from x0 to eps is at time t. (Liu et al. 2023, eq. 1)"""
    t = spread_out(t, x0)
    return (1 - t) * x0 + t * eps


def x0_from_flow(xt: Tensor, t: Tensor, u: Tensor) -> Tensor:
    """Return the data at the end of a straight line that passes xt at time t with the velocity u."""
    return xt - spread_out(t, xt) * u


def eps_from_flow(xt: Tensor, t: Tensor, u: Tensor) -> Tensor:
    """Return the noise at the beginning of a straight line that passes xt at time t with the velocity u."""
    return xt + (1 - spread_out(t, xt)) * u


def flow_loss(model: Callable, x0: Tensor, y: Tensor | None, t: Tensor, eps: Tensor) -> Tensor:
    """Return the mean squared error of the predicted velocity for each image, (B,).

    The velocity of one line, eps - x0, stands for the mean over all lines that pass there: the gradient of the loss is
    the same. (Lipman et al. 2023, eq. 9)
    """
    u = model(straight_path(x0, t, eps), t, y)
    return (u - (eps - x0)).square().flatten(1).mean(dim=1)


def shifted(t: Tensor, shift: float) -> Tensor:
    """Move times t in [0, 1] towards the noise; 1 leaves them, 3 takes 1/2 to 3/4. (Esser et al. 2024, eq. 23)"""
    return shift * t / (1 + (shift - 1) * t)


def flow_of(network: Callable, schedule: Schedule) -> Callable:
    """Return a network that was trained to predict v as a model of the velocity on straight paths.

    Both describe the same paths: xt of the flow is that of the diffusion divided by the sum of its signal and noise
    scales, so t is noise / (signal + noise). At the times of the schedule's steps this is exact. Between them the
    step that the network is told is a real number, interpolated in the logarithm of the signal-to-noise ratio. A second
    time, for a network that takes one, becomes a step, too.
    (Gao et al. 2025; Salimans & Ho 2022, section 4)
    """

    def velocity(x: Tensor, t: Tensor, y: Tensor | None = None, *r: Tensor) -> Tensor:
        signal, noise = (spread_out(scale / torch.hypot(t, 1 - t), x) for scale in (1 - t, t))
        steps = [step_at(time, schedule).to(x.dtype) for time in (t, *r)]
        xt = (signal + noise) * x
        return (noise - signal) * xt + (signal + noise) * network(xt, steps[0], y, *steps[1:])

    return velocity


def step_at(t: Tensor, schedule: Schedule) -> Tensor:
    """Return the step of a schedule, as a real number (B,), whose ratio of signal and noise a flow has at time t (B,).

    Times before the first step, or after the last, get that step.
    """
    table = schedule.log_snr.flip(0)  # rises
    log_snr = (2 * ((1 - t).to(table).log() - t.to(table).log())).clamp(table[0], table[-1])
    right = torch.searchsorted(table, log_snr.contiguous()).clamp(1, schedule.T - 1)
    share = (log_snr - table[right - 1]) / (table[right] - table[right - 1])
    return schedule.T - 1 - (right - 1 + share)


def times_of(schedule: Schedule) -> Tensor:
    """Return the time of a flow at each step of a schedule, (T,): noise / (signal + noise)."""
    return schedule.noise_scale / (schedule.signal_scale + schedule.noise_scale)


def mean_flow_loss(
    model: Callable,
    x0: Tensor,
    y: Tensor | None,
    t: Tensor,
    r: Tensor,
    eps: Tensor,
    power: float = 1.0,
    teacher: Callable | None = None,
) -> Tensor:
    """Return the loss of the mean velocity between the times r <= t (B,), for each image, (B,).

    `model(xt, t, y, r)` predicts the mean velocity on the way from t to r. What it should be follows from its own
    derivative along the path, which is a constant for the gradient. The velocity of the path is that of a trained flow,
    the `teacher`, or without one that of a straight line. An image with a large error counts less: its error is divided
    by itself to the `power`. (Geng et al. 2025, eqs. 6 to 11 and 22)
    """
    xt = straight_path(x0, t, eps)
    with torch.no_grad():
        u = teacher(xt, t, y) if teacher else eps - x0

    def network(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return model(x, t, y, r)

    with sdpa_kernel(SDPBackend.MATH):  # the only attention whose derivative PyTorch knows in this direction
        moving = u, torch.ones_like(t), torch.zeros_like(r)
        u_mean, slope, *_ = jvp(network, (xt, t, r), moving)
    target = (u - spread_out(t - r, x0) * slope).detach()
    error = (u_mean - target).square().flatten(1).mean(dim=1)
    return error / (error.detach() + 1e-3) ** power


def shortcut_loss(
    model: Callable, x0: Tensor, y: Tensor | None, t: Tensor, r: Tensor, eps: Tensor, teacher: Callable | None = None
) -> Tensor:
    """Return the loss of the mean velocity between the times r <= t (B,), for each image, (B,).

    `model(xt, t, y, r)` predicts the mean velocity on the way from t to r. It should be the mean of those of the two
    halves of the way, one after the other, which are constants for the gradient. Where r = t it should be the velocity:
    that of a trained flow, the `teacher`, or without one that of a straight line. (Frans et al. 2025, section 3)
    """
    xt, alike = straight_path(x0, t, eps), t == r
    with torch.no_grad():
        middle = (t + r) / 2
        first = model(xt, t, y, middle)
        second = model(xt + spread_out(middle - t, xt) * first, middle, y, r)
        target = (first + second) / 2
        if alike.any():
            known = None if y is None else y[alike]
            target[alike] = teacher(xt[alike], t[alike], known) if teacher else (eps - x0)[alike]
    return (model(xt, t, y, r) - target).square().flatten(1).mean(dim=1)


def divergence(model: Callable, x: Tensor, t: Tensor, y: Tensor | None, directions: Tensor) -> Tensor:
    """Estimate the divergence of the velocity at x, (B,), from random signs `directions` (N, B, ...).

    The mean of s . (J s) over directions s, where J is the derivative of the velocity. (Hutchinson 1989;
    Grathwohl et al. 2019, eq. 7)
    """

    def along(s: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return (s * jvp(lambda x: model(x, t, y), (x,), (s,))[1]).flatten(1).sum(dim=1)

    return torch.stack([along(s) for s in directions]).mean(dim=0)


@torch.no_grad()
def log_likelihood(
    model: Callable,
    x0: Tensor,
    generator: torch.Generator,
    num_steps: int,
    y: Tensor | None = None,
    directions: int = 1,
) -> Tensor:
    """Estimate the logarithm of the density, in nats, that a flow gives to data x0 (B, ...): (B,).

    Each x0 is carried to its noise; on the way the density changes by the divergence. The integral is taken by the
    midpoint rule. (Chen et al. 2018, theorem 1; Y. Song et al. 2021, eq. 39)
    """
    x, change = x0, torch.zeros(len(x0), device=x0.device)
    for k in range(num_steps):
        t, middle = (x.new_full((len(x),), (k + part) / num_steps) for part in (0, 0.5))
        x_middle = x + model(x, t, y) / (2 * num_steps)
        signs = torch.randint(2, (directions, *x.shape), generator=generator, device=x.device).to(x.dtype) * 2 - 1
        change += divergence(model, x_middle, middle, y, signs) / num_steps
        x = x + model(x_middle, middle, y) / num_steps
    log_noise = -0.5 * (x.square() + math.log(2 * math.pi)).flatten(1).sum(dim=1)
    return log_noise + change
