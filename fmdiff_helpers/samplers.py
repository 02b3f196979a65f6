"""Samplers: from noise back to data, as pure functions of (model, x, schedule).

`model(xt, t, y)` predicts the noise in xt (B, ...) at step t (B,), and the chain starts at x, noise from N(0, I).
A network that predicts x0 or v goes through `noise_predictor` or `noise_from_v` first.
If `num_steps` is smaller than T, the steps are spread evenly over the schedule, both ends included. `clip` keeps the
predicted x0 within the range of the data: 1 for pixels, math.inf (no clip) for latents. `watch` sees each `Step`.
A sampler has more than 25 lines because its arguments take eleven and because a lesson shows its loop as a whole.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from fmdiff_helpers.diffusion import add_noise, at, eps_from_v, eps_from_x0, posterior, x0_from_eps
from fmdiff_helpers.schedules import Schedule


class Step(NamedTuple):
    """What one step of a sampler saw and did; images are (B, ...).

    `x0_hat` is clipped, `eps_hat` is as the network predicted it, and `noise` was added last to reach `x_prev`.
    """

    t: int
    xt: Tensor
    x0_hat: Tensor
    eps_hat: Tensor
    noise: Tensor
    x_prev: Tensor


def noise_predictor(model: Callable, schedule: Schedule) -> Callable:
    """Return the network as one that predicts the noise, from one that predicts x0. Built in lesson 02."""
    return lambda x, t, y=None: eps_from_x0(x, t, model(x, t, y), schedule)


def noise_from_v(model: Callable, schedule: Schedule) -> Callable:
    """Return the network as one that predicts the noise, from one that predicts v. Built in lesson 05."""
    return lambda x, t, y=None: eps_from_v(x, t, model(x, t, y), schedule)


def respace(schedule: Schedule, num_steps: int | None = None) -> tuple[Tensor, Schedule]:
    """Choose `num_steps` steps from 0 to T - 1, both included, and return them (K,) with the schedule of that chain.

    A single step is T - 1, None means all. alpha_bar stays what it was at the chosen steps; beta follows from it.
    (Nichol & Dhariwal 2021, section 4)
    """
    num_steps = schedule.T if num_steps is None else num_steps
    if not isinstance(num_steps, int) or not 1 <= num_steps <= schedule.T:
        raise ValueError(f"num_steps is {num_steps!r}; expected 1 to T = {schedule.T}")
    # On the CPU, in float64: the same steps on every device.
    steps = torch.linspace(schedule.T - 1, 0, num_steps, dtype=torch.float64).round().long().flip(0)
    return steps.to(schedule.beta.device), chain_of(schedule, steps)


def chain_of(schedule: Schedule, steps: Tensor) -> Schedule:
    """Return the schedule of the chain that visits only some steps (K,), int64 and ascending, of another.

    ValueError unless there are steps, each is above the one before, and all are from 0 to T - 1.
    """
    steps = steps.cpu()
    if len(steps) == 0 or steps[0] < 0 or steps[-1] >= schedule.T or not (steps.diff() > 0).all():
        raise ValueError(
            f"steps begin {steps.tolist()[:4]}; expected some that rise, from 0 to T - 1 = {schedule.T - 1}"
        )
    alpha_bar = schedule.alpha_bar.cpu().double()[steps]
    alpha_bar_prev = torch.cat([torch.ones_like(alpha_bar[:1]), alpha_bar[:-1]])
    return Schedule(1 - alpha_bar / alpha_bar_prev).to(schedule.beta.device)


def trailing(schedule: Schedule, num_steps: int) -> Tensor:
    """Return `num_steps` steps (K,), ascending, that end at T - 1 and divide all T evenly, for `chain_of`.

    Unlike `respace`, it spends no step on t = 0, where hardly any noise is left. (Lin et al. 2024, section 3.3)
    Built in lesson 05.
    """
    ends = torch.arange(1, num_steps + 1, dtype=torch.float64) * schedule.T / num_steps
    return (ends.round().long() - 1).to(schedule.beta.device)


@torch.no_grad()
def sample_ddpm(
    model: Callable,
    x: Tensor,
    schedule: Schedule,
    generator: torch.Generator | None = None,
    num_steps: int | None = None,
    y: Tensor | None = None,
    clip: float = 1.0,
    watch: Callable[[Step], None] | None = None,
    progress: bool = False,
) -> Tensor:
    """Walk from noise x (B, ...) to samples, each step a draw from the posterior of the clipped x0_hat.

    (Ho et al. 2020, algorithm 2, with the variance of eq. 7) Built in lesson 03.
    """
    steps, chain = respace(schedule, num_steps)
    for k in tqdm(reversed(range(chain.T)), total=chain.T, leave=False, disable=not progress):
        index = torch.full(x.shape[:1], k, device=x.device)
        eps_hat = model(x, steps[index], y)
        x0_hat = x0_from_eps(x, index, eps_hat, chain).clamp(-clip, clip)
        mean, variance = posterior(x0_hat, x, index, chain)  # at k = 0 the variance is 0: no noise at the end
        noise = variance.sqrt() * torch.randn(x.shape, generator=generator, device=x.device)
        x_prev = mean + noise
        if watch:
            watch(Step(int(steps[k]), x, x0_hat, eps_hat, noise, x_prev))
        x = x_prev
    return x


@torch.no_grad()
def sample_ddim(
    model: Callable,
    x: Tensor,
    schedule: Schedule,
    generator: torch.Generator | None = None,
    num_steps: int | None = None,
    y: Tensor | None = None,
    clip: float = 1.0,
    eta: float = 0.0,
    watch: Callable[[Step], None] | None = None,
    progress: bool = False,
) -> Tensor:
    """Walk from noise x (B, ...) to samples along DDIM's path: eta = 0 adds no noise, eta = 1 as much as DDPM.

    Each step uses the noise that the clipped x0_hat implies. (Song et al. 2021, eqs. 12 and 16)
    Built in lesson 05.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta!r}; expected 0 (deterministic) to 1 (as random as DDPM)")
    steps, chain = respace(schedule, num_steps)
    variance = eta**2 * chain.beta * (1 - chain.alpha_bar_prev) / (1 - chain.alpha_bar)
    towards_noise = (1 - chain.alpha_bar_prev - variance).sqrt()
    for k in tqdm(reversed(range(chain.T)), total=chain.T, leave=False, disable=not progress):
        index = torch.full(x.shape[:1], k, device=x.device)
        eps_hat = model(x, steps[index], y)
        x0_hat = x0_from_eps(x, index, eps_hat, chain).clamp(-clip, clip)
        direction = eps_from_x0(x, index, x0_hat, chain)
        noise = at(variance.sqrt(), index, x) * torch.randn(x.shape, generator=generator, device=x.device)
        x_prev = at(chain.alpha_bar_prev.sqrt(), index, x) * x0_hat + at(towards_noise, index, x) * direction + noise
        if watch:
            watch(Step(int(steps[k]), x, x0_hat, eps_hat, noise, x_prev))
        x = x_prev
    return x


@torch.no_grad()
def invert_ddim(
    model: Callable, x0: Tensor, schedule: Schedule, num_steps: int | None = None, y: Tensor | None = None
) -> Tensor:
    """Walk DDIM's path backwards, from data x0 (B, ...) to the noise that `sample_ddim` with eta = 0 starts from.

    Each step uses the noise predicted at its start in place of that at its end, which is exact only in the limit of
    infinitely small steps.
    (Song et al. 2021, section 4.3) Built in lesson 05.
    """
    steps, chain = respace(schedule, num_steps)
    x, x0_hat = x0, x0
    for k in range(chain.T):
        before, now = (torch.full(x.shape[:1], i, device=x.device) for i in (max(k - 1, 0), k))
        eps_hat = model(x, steps[before], y)
        if k:
            x0_hat = x0_from_eps(x, before, eps_hat, chain)
        x = add_noise(x0_hat, now, eps_hat, chain)
    return x


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Walk from noise a to noise b (B, ...) along the arc between them, to `share` (B,) of the way: 0 is a, 1 is b.

    A straight line would pass closer to 0 than noise ever lies. (Shoemake 1985, section 3.3) Built in lesson 05.
    """
    share = share.reshape(-1, *[1] * (a.ndim - 1))
    cosine = F.cosine_similarity(a.flatten(1), b.flatten(1)).reshape(share.shape)
    angle = cosine.clamp(-1 + 1e-6, 1 - 1e-6).arccos()  # a and b may be equal
    return (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()
