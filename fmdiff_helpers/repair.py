"""Repair, enlarge and edit pictures with a network that was never trained for it.

The samplers are pure functions of (model, x, schedule, measurement, seen), of the same shape as those in
`fmdiff_helpers.samplers`, which say what the other arguments are; all walk by DDPM's steps. `measurement` is one of
`fmdiff_helpers.measurements`, A, and `seen` what it made of the pictures to find, A x0. `y` (B,) are labels, as
everywhere. Bad input raises a ValueError that names the value and what was expected.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fmdiff_helpers.diffusion import add_noise, forward_step, posterior, x0_from_eps
from fmdiff_helpers.measurements import Measurement
from fmdiff_helpers.samplers import Step, invert_ddim, respace, sample_ddim, sample_ddpm
from fmdiff_helpers.schedules import Schedule


def check_seen(measurement: Measurement, x: Tensor, seen: Tensor) -> None:
    """Raise ValueError unless `seen` is finite and shaped like the measurement of x (B, C, H, W)."""
    expected = tuple(measurement.apply(x).shape)
    if not isinstance(seen, Tensor) or tuple(seen.shape) != expected:
        found = tuple(seen.shape) if isinstance(seen, Tensor) else repr(seen)
        raise ValueError(f"seen is {found}; expected {expected}, as measurement.apply makes it of {tuple(x.shape)}")
    if not seen.isfinite().all():
        raise ValueError("seen holds nan or infinity; expected numbers: fill unknown pixels, a Mask leaves them out")


def rectify(x: Tensor, measurement: Measurement, seen: Tensor) -> Tensor:
    """Return the pictures nearest to x (B, C, H, W) whose measurement is `seen`: x + A^+ (seen - A x).

    The part of x that the measurement does not see, its null space, stays. (Wang et al. 2023, eq. 13)
    Built in lesson 10.
    """
    return x + measurement.pseudo_inverse(seen - measurement.apply(x))


def seen_before(k: int, measurement: Measurement, seen: Tensor, eps: Tensor, chain: Schedule) -> Tensor:
    """Return what the measurement would see before step k, where the picture holds the noise `eps`.

    A is linear: A (a x0 + b eps) = a A x0 + b A eps, where a and b are the scales of step k - 1. At k = 0 it is `seen`.
    (Lugmayr et al. 2022, eq. 8a, for any linear measurement) Built in lesson 10.
    """
    signal, noise = chain.alpha_bar_prev[k].sqrt(), (1 - chain.alpha_bar_prev[k]).sqrt()
    return signal * seen + noise * measurement.apply(eps)


def look(
    model: Callable, x: Tensor, k: int, steps: Tensor, chain: Schedule, y: Tensor | None, clip: float
) -> tuple[Tensor, Tensor]:
    """Return what the model predicts at step k, for it step steps[k]: the noise, and the x0. Built in lesson 10."""
    index = torch.full(x.shape[:1], k, device=x.device)
    eps_hat = model(x, steps[index], y)
    return eps_hat, x0_from_eps(x, index, eps_hat, chain).clamp(-clip, clip)


def step_back(
    x: Tensor,
    k: int,
    steps: Tensor,
    chain: Schedule,
    x0_hat: Tensor,
    eps_hat: Tensor,
    generator: torch.Generator | None,
) -> Step:
    """Walk DDPM's step k with this x0_hat. (Ho et al. 2020, algorithm 2, variance of eq. 7) Built in lesson 10."""
    mean, variance = posterior(x0_hat, x, torch.full(x.shape[:1], k, device=x.device), chain)
    noise = variance.sqrt() * torch.randn(x.shape, generator=generator, device=x.device)
    return Step(int(steps[k]), x, x0_hat, eps_hat, noise, mean + noise)


def step_and_replace(
    model: Callable,
    x: Tensor,
    k: int,
    steps: Tensor,
    chain: Schedule,
    measurement: Measurement,
    seen: Tensor,
    generator: torch.Generator | None,
    y: Tensor | None,
    clip: float,
) -> Step:
    """Walk a step of DDPM, then put in what the measurement sees, with fresh noise. Built in lesson 10."""
    eps_hat, x0_hat = look(model, x, k, steps, chain, y, clip)
    step = step_back(x, k, steps, chain, x0_hat, eps_hat, generator)
    eps = torch.randn(x.shape, generator=generator, device=x.device)
    return step._replace(x_prev=rectify(step.x_prev, measurement, seen_before(k, measurement, seen, eps, chain)))


@torch.no_grad()
def sample_replacing(
    model: Callable,
    x: Tensor,
    schedule: Schedule,
    measurement: Measurement,
    seen: Tensor,
    generator: torch.Generator | None = None,
    num_steps: int | None = None,
    y: Tensor | None = None,
    clip: float = 1.0,
    watch: Callable[[Step], None] | None = None,
    progress: bool = False,
) -> Tensor:
    """Walk from noise x (B, ...) to samples; after each step, what the measurement sees is put in, with fresh noise.

    With a `Mask` these are the known pixels. The step itself knows nothing of them, so that the two parts may not fit.
    (Song et al. 2021, "Score-based generative modeling through stochastic differential equations") Built in lesson 10.
    """
    check_seen(measurement, x, seen)
    steps, chain = respace(schedule, num_steps)
    for k in tqdm(reversed(range(chain.T)), total=chain.T, leave=False, disable=not progress):
        step = step_and_replace(model, x, k, steps, chain, measurement, seen, generator, y, clip)
        if watch:
            watch(step)
        x = step.x_prev
    return x


def repaint_levels(num_steps: int, repeats: int, jump: int) -> list[int]:
    """Return the numbers of noisy steps that RePaint visits, from num_steps down to 0, with its ways back up.

    Where 1, 1 + jump, 1 + 2 jump, ... steps are left, it goes `jump` steps up, and down again, repeats - 1 times.
    ValueError unless `num_steps` is at least 2, `repeats` at least 1 and `jump` from 1 to num_steps - 1.
    (Lugmayr et al. 2022, code)
    """
    if not isinstance(repeats, int) or repeats < 1:
        raise ValueError(f"repeats is {repeats!r}; expected a whole number of at least 1, which is no repetition")
    if num_steps < 2:
        raise ValueError(f"num_steps is {num_steps}; expected at least 2, so that there is a way back")
    if not isinstance(jump, int) or not 1 <= jump < num_steps:
        raise ValueError(f"jump is {jump!r}; expected 1 to {num_steps - 1}: fewer than the {num_steps} steps")
    left = dict.fromkeys(range(1, num_steps - jump + 1, jump), repeats - 1)
    levels = [num_steps]
    while levels[-1]:
        level = levels[-1] - 1
        levels.append(level)
        if left.get(level):
            left[level] -= 1
            levels.extend(range(level + 1, level + jump + 1))
    return levels


@torch.no_grad()
def sample_repaint(
    model: Callable,
    x: Tensor,
    schedule: Schedule,
    measurement: Measurement,
    seen: Tensor,
    generator: torch.Generator | None = None,
    num_steps: int | None = None,
    y: Tensor | None = None,
    clip: float = 1.0,
    repeats: int = 5,
    jump: int = 10,
    watch: Callable[[Step], None] | None = None,
    progress: bool = False,
) -> Tensor:
    """Walk as `sample_replacing` does, but go back and forth: noise on both parts lets the one learn of the other.

    It asks the model about `repeats` times as often; `jump` is how many steps it goes back at a time. Of Gaussian data
    the mean becomes right. The spread does at first; with very many repetitions it becomes too small, because each step
    adds less noise than it should. (Lugmayr et al. 2022, algorithm 1) Built in lesson 10.
    """
    check_seen(measurement, x, seen)
    steps, chain = respace(schedule, num_steps)
    ways = list(pairwise(repaint_levels(chain.T, repeats, jump)))
    for level, next_level in tqdm(ways, leave=False, disable=not progress):
        k = min(level, next_level)
        if next_level > level:
            eps = torch.randn(x.shape, generator=generator, device=x.device)
            x = forward_step(x, torch.full(x.shape[:1], k, device=x.device), eps, chain)
            continue
        step = step_and_replace(model, x, k, steps, chain, measurement, seen, generator, y, clip)
        if watch:
            watch(step)
        x = step.x_prev
    return x


@torch.no_grad()
def sample_ddnm(
    model: Callable,
    x: Tensor,
    schedule: Schedule,
    measurement: Measurement,
    seen: Tensor,
    generator: torch.Generator | None = None,
    num_steps: int | None = None,
    y: Tensor | None = None,
    clip: float = 1.0,
    watch: Callable[[Step], None] | None = None,
    progress: bool = False,
) -> Tensor:
    """Walk from noise x (B, ...) to samples; each predicted x0 is made to fit what the measurement sees.

    The samples fit exactly, where the measurement's pseudo-inverse cuts nothing off; they also repeat its noise.
    (Wang et al. 2023, DDNM's sampling algorithm, eqs. 13 and 14) Built in lesson 10.
    """
    check_seen(measurement, x, seen)
    steps, chain = respace(schedule, num_steps)
    for k in tqdm(reversed(range(chain.T)), total=chain.T, leave=False, disable=not progress):
        eps_hat, x0_hat = look(model, x, k, steps, chain, y, clip)
        step = step_back(x, k, steps, chain, rectify(x0_hat, measurement, seen), eps_hat, generator)
        if watch:
            watch(step)
        x = step.x_prev
    return x


@torch.enable_grad()
def look_and_compare(
    model: Callable,
    x: Tensor,
    k: int,
    steps: Tensor,
    chain: Schedule,
    y: Tensor | None,
    clip: float,
    measurement: Measurement,
    seen: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `look` does, and the gradient (B, ...) of the error |seen - A x0_hat| with respect to x.

    The error is one length for each picture. Its gradient goes through the model, and is 0 where x0_hat is clipped.
    (Chung et al. 2023, algorithm 1) Built in lesson 10.
    """
    x = x.detach().requires_grad_()
    eps_hat, x0_hat = look(model, x, k, steps, chain, y, clip)
    error = (seen - measurement.apply(x0_hat)).flatten(1).norm(dim=1)
    (slope,) = torch.autograd.grad(error.sum(), x)
    return eps_hat.detach(), x0_hat.detach(), slope


@torch.no_grad()
def sample_dps(
    model: Callable,
    x: Tensor,
    schedule: Schedule,
    measurement: Measurement,
    seen: Tensor,
    generator: torch.Generator | None = None,
    num_steps: int | None = None,
    y: Tensor | None = None,
    clip: float = 1.0,
    strength: float = 2.0,
    watch: Callable[[Step], None] | None = None,
    progress: bool = False,
) -> Tensor:
    """Walk from noise x (B, ...) to samples; after each step, go `strength` times down the gradient of the error.

    The error is |seen - A x0_hat|, so that its gradient has about the same length for few numbers seen as for many.
    The samples fit only nearly, which suits a `seen` with noise. It keeps the model's whole graph: several times the
    memory of the others. ValueError unless `strength` is finite and at least 0.
    (Chung et al. 2023, algorithm 1, with the step size divided by the error) Built in lesson 10.
    """
    check_seen(measurement, x, seen)
    if not 0 <= strength < math.inf:
        raise ValueError(f"strength is {strength!r}; expected 0 (seen does not count) or more, such as 2.0")
    steps, chain = respace(schedule, num_steps)
    for k in tqdm(reversed(range(chain.T)), total=chain.T, leave=False, disable=not progress):
        eps_hat, x0_hat, slope = look_and_compare(model, x, k, steps, chain, y, clip, measurement, seen)
        step = step_back(x, k, steps, chain, x0_hat, eps_hat, generator)
        x = step.x_prev - strength * slope
        if watch:
            watch(step._replace(x_prev=x))
    return x


def first_steps(schedule: Schedule, depth: int) -> Schedule:
    """Return the chain that ends at step `depth`, from 0 to T - 1, of another: its pictures are not all noise there.

    ValueError for another depth.
    """
    if not isinstance(depth, int) or not 0 <= depth < schedule.T:
        raise ValueError(f"depth is {depth!r}; expected a step from 0 (hardly any noise) to T - 1 = {schedule.T - 1}")
    return Schedule(schedule.beta[: depth + 1]).to(schedule.beta.device)


def sample_sdedit(
    model: Callable,
    x0: Tensor,
    schedule: Schedule,
    depth: int,
    generator: torch.Generator | None = None,
    num_steps: int | None = None,
    y: Tensor | None = None,
    clip: float = 1.0,
    watch: Callable[[Step], None] | None = None,
    progress: bool = False,
) -> Tensor:
    """Add the noise of step `depth` to pictures x0 (B, ...), which may be sketches, and walk back from there by DDPM.

    Noise hides small things first: what it hides, the model draws anew. `num_steps`, at most depth + 1, are spread
    over the steps up to `depth`. (Meng et al. 2022) Built in lesson 10.
    """
    chain = first_steps(schedule, depth)
    eps = torch.randn(x0.shape, generator=generator, device=x0.device)
    x = add_noise(x0, torch.full(x0.shape[:1], depth, device=x0.device), eps, chain)
    return sample_ddpm(model, x, chain, generator, num_steps, y, clip, watch, progress)


def change_kind(
    model: Callable,
    x0: Tensor,
    schedule: Schedule,
    y: Tensor,
    new_y: Tensor,
    depth: int,
    num_steps: int | None = None,
    clip: float = 1.0,
) -> Tensor:
    """Walk from pictures x0 (B, ...) with labels y (B,) to their noise at step `depth`, and back with labels new_y.

    Both ways are DDIM's, without any new noise, so that what the label does not say, such as the cut, can stay. With
    the same labels the pictures return, the better the more steps. (Song et al. 2021, section 4.3, DDIM)
    Built in lesson 10.
    """
    chain = first_steps(schedule, depth)
    x = invert_ddim(model, x0, chain, num_steps, y)
    return sample_ddim(model, x, chain, num_steps=num_steps, y=new_y, clip=clip)


def posterior_weights(x: Tensor, measurement: Measurement, seen: Tensor, noise: float) -> Tensor:
    """Return how much each of the pictures x (N, ...) counts, given each of `seen` (B, ...): weights (B, N), sum 1.

    If x are draws of the data, the weighted draws are draws of the data given what was seen, exactly, in the limit of
    many: importance sampling. `noise`, above 0, is the standard deviation of the measurement's Gaussian noise.
    Built in lesson 10.
    """
    if not 0 < noise < math.inf:
        raise ValueError(f"noise is {noise!r}; expected a standard deviation above 0: without noise no draw fits")
    if not len(x):
        raise ValueError("x holds 0 pictures; expected at least one to choose from")
    check_seen(measurement, x[:1].expand(len(seen), *x.shape[1:]), seen)
    apart = torch.cdist(seen.flatten(1), measurement.apply(x).flatten(1))
    return (-apart.square() / (2 * noise**2)).softmax(dim=1)


def effective_number(weights: Tensor) -> Tensor:
    """Return 1 / (sum of the squared weights) (B,): how many equal draws would say as much as weights (B, N) do.

    Built in lesson 10.
    """
    return 1 / weights.square().sum(dim=1)
