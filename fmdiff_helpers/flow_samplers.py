"""Samplers of flows: from noise at time 1 to data at time 0, as pure functions of (model, x, num_steps).

`model(xt, t, y)` returns the velocity at xt (B, ...) at the times t (B,). `times` are those of the steps, from 1 down
to 0; None means evenly spread. `clip` keeps the predicted x0 within the range of the data: 1 for pixels, math.inf (no
clip) for latents. `watch` sees each `FlowStep`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fmdiff_helpers.flows import eps_from_flow, x0_from_flow


class FlowStep(NamedTuple):
    """What one step of a sampler saw and did; images are (B, ...). `x0_hat` is clipped, and so is what follows."""

    t: float
    xt: Tensor
    x0_hat: Tensor
    eps_hat: Tensor
    x_prev: Tensor


def even_times(num_steps: int) -> list[float]:
    """Return the times 1 to 0 of `num_steps` equal steps; ValueError unless there is at least one."""
    if not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps is {num_steps!r}; expected a whole number of at least 1")
    return torch.linspace(1, 0, num_steps + 1, dtype=torch.float64).tolist()


def each_step(num_steps: int, times: Sequence[float] | None, progress: bool) -> Iterator[tuple[float, float]]:
    """Yield the two times of each step, with a bar if `progress`."""
    steps = list(pairwise(even_times(num_steps) if times is None else times))
    return iter(tqdm(steps, leave=False, disable=not progress))


def clipped_velocity(model: Callable, x: Tensor, t: float, y: Tensor | None, clip: float) -> tuple[Tensor, Tensor]:
    """Return the velocity that the clipped x0_hat implies, and that x0_hat."""
    now = x.new_full(x.shape[:1], t)
    u = model(x, now, y)
    x0_hat = x0_from_flow(x, now, u)
    if clip == math.inf or t == 0:
        return u, x0_hat
    x0_hat = x0_hat.clamp(-clip, clip)
    return (x - x0_hat) / t, x0_hat


def tell(watch: Callable | None, t: float, x: Tensor, u: Tensor, x0_hat: Tensor, x_prev: Tensor) -> None:
    """Show a step to `watch`, if there is one."""
    if watch:
        now = x.new_full(x.shape[:1], t)
        watch(FlowStep(t, x, x0_hat, eps_from_flow(x, now, u), x_prev))


@torch.no_grad()
def sample_euler(
    model: Callable,
    x: Tensor,
    num_steps: int = 50,
    y: Tensor | None = None,
    clip: float = 1.0,
    times: Sequence[float] | None = None,
    watch: Callable[[FlowStep], None] | None = None,
    progress: bool = False,
) -> Tensor:
    """Walk from noise x (B, ...) to samples by Euler's method: each step goes along the velocity at its start."""
    for t, t_next in each_step(num_steps, times, progress):
        u, x0_hat = clipped_velocity(model, x, t, y, clip)
        x_prev = x + (t_next - t) * u
        tell(watch, t, x, u, x0_hat, x_prev)
        x = x_prev
    return x


@torch.no_grad()
def sample_heun(
    model: Callable,
    x: Tensor,
    num_steps: int = 25,
    y: Tensor | None = None,
    clip: float = 1.0,
    times: Sequence[float] | None = None,
    watch: Callable[[FlowStep], None] | None = None,
    progress: bool = False,
) -> Tensor:
    """Walk from noise x (B, ...) to samples by Heun's method: along the mean of the velocities at both ends of a step.

    The last step, to time 0, is Euler's, so that there are 2 * num_steps - 1 evaluations.
    (Karras et al. 2022, algorithm 1)
    """
    for t, t_next in each_step(num_steps, times, progress):
        u, x0_hat = clipped_velocity(model, x, t, y, clip)
        x_prev = x + (t_next - t) * u
        if t_next > 0:
            u_next, _ = clipped_velocity(model, x_prev, t_next, y, clip)
            x_prev = x + (t_next - t) * (u + u_next) / 2
        tell(watch, t, x, u, x0_hat, x_prev)
        x = x_prev
    return x


@torch.no_grad()
def sample_dpm(
    model: Callable,
    x: Tensor,
    num_steps: int = 50,
    y: Tensor | None = None,
    clip: float = 1.0,
    times: Sequence[float] | None = None,
    watch: Callable[[FlowStep], None] | None = None,
    progress: bool = False,
) -> Tensor:
    """Walk from noise x (B, ...) to samples by DPM-Solver++ (2M), which goes on in a line through the last two x0_hat.

    The line is in the logarithm of signal over noise. It has no length in the first step, where nothing came before,
    nor in the last, where the logarithm is infinite. (Lu et al. 2022, algorithm 2)
    """
    previous = None  # x0_hat of the last step, and how far it was from there to here
    for t, t_next in each_step(num_steps, times, progress):
        u, x0_hat = clipped_velocity(model, x, t, y, clip)
        length = math.log((1 - t_next) / t_next) - math.log((1 - t) / t) if t < 1 and t_next > 0 else math.inf
        towards = x0_hat
        if previous is not None and length < math.inf:
            before, length_before = previous
            towards = x0_hat + (x0_hat - before) * length / (2 * length_before)
        ratio = t_next / t
        x_prev = ratio * x + (1 - t_next - ratio * (1 - t)) * towards
        tell(watch, t, x, u, x0_hat, x_prev)
        x, previous = x_prev, (x0_hat, length)
    return x


@torch.no_grad()
def sample_jumps(
    model: Callable,
    x: Tensor,
    num_steps: int = 1,
    y: Tensor | None = None,
    clip: float = 1.0,
    times: Sequence[float] | None = None,
    watch: Callable[[FlowStep], None] | None = None,
    progress: bool = False,
) -> Tensor:
    """Walk from noise x (B, ...) to samples by jumps along the mean velocity: `model(xt, t, y, r)` predicts it.

    `clip` is applied to the samples alone. (Geng et al. 2025, eq. 12 and algorithm 2)
    """
    for t, t_next in each_step(num_steps, times, progress):
        now, then = (x.new_full(x.shape[:1], time) for time in (t, t_next))
        u = model(x, now, y, then)
        x_prev = x + (t_next - t) * u
        tell(watch, t, x, u, x0_from_flow(x, now, u), x_prev)
        x = x_prev
    return x.clamp(-clip, clip)
