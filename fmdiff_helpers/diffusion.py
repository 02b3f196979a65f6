"""The forward process q in closed form, its posterior, the three things a network can predict, and the losses.

x0 is data, eps is noise drawn from N(0, I), xt is their mix after step t. t is an int64 tensor of shape (B,) with
values 0 to T - 1, one step for each image; images are floating-point tensors of shape (B, ...), all on one device.
Bad input raises a ValueError that names the argument, its value and what was expected.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fmdiff_helpers.schedules import Schedule


def check_step(schedule: Schedule, t: Tensor, **images: Tensor) -> None:
    """Raise ValueError unless `t` holds one valid step for each image and all images share one shape."""
    for name, x in images.items():
        if not x.is_floating_point():
            raise ValueError(f"{name} is {x.dtype}; expected floating-point images: to_model converts uint8 to [-1, 1]")
    shapes = {name: tuple(x.shape) for name, x in images.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes differ: {shapes}; expected the same shape for all of them")
    batch = next(iter(shapes.values()))[:1]
    if not isinstance(t, Tensor) or t.dtype != torch.int64 or tuple(t.shape) != batch:
        found = f"{t.dtype} of shape {tuple(t.shape)}" if isinstance(t, Tensor) else repr(t)
        raise ValueError(f"t is {found}; expected int64 of shape {batch}: one step for each of the images")
    # On a GPU, reading t would make Python wait for the device. There, PyTorch's own index check catches t >= T.
    if t.device.type == "cpu" and t.numel() and not (0 <= t.min() and t.max() < schedule.T):
        raise ValueError(f"t runs from {t.min()} to {t.max()}; expected steps 0 to T - 1 = {schedule.T - 1}")


def at(table: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """Return `table[t]` with the shape (B, 1, ...) and the dtype to multiply images `x`. Built in lesson 01."""
    return table[t].to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def forward_step(x_prev: Tensor, t: Tensor, eps: Tensor, schedule: Schedule) -> Tensor:
    """Draw x_t ~ q(x_t | x_{t-1}), one small step, with the noise `eps`. (Ho et al. 2020, eq. 2) Built in lesson 01."""
    check_step(schedule, t, x_prev=x_prev, eps=eps)
    return at(schedule.alpha, t, x_prev).sqrt() * x_prev + at(schedule.beta, t, eps).sqrt() * eps


def add_noise(x0: Tensor, t: Tensor, eps: Tensor, schedule: Schedule) -> Tensor:
    """Draw x_t ~ q(x_t | x_0) in one jump, with the noise `eps`. (Ho et al. 2020, eq. 4) Built in lesson 01."""
    check_step(schedule, t, x0=x0, eps=eps)
    return at(schedule.signal_scale, t, x0) * x0 + at(schedule.noise_scale, t, eps) * eps


def posterior(x0: Tensor, xt: Tensor, t: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Return mean (B, ...) and variance (B, 1, ...) of q(x_{t-1} | x_t, x_0). (Ho et al. 2020, eqs. 6 and 7)

    At t = 0 the mean is x0 and the variance 0. Built in lesson 01.
    """
    check_step(schedule, t, x0=x0, xt=xt)
    beta, alpha = at(schedule.beta, t, x0), at(schedule.alpha, t, x0)
    var, var_prev = at(1 - schedule.alpha_bar, t, x0), at(1 - schedule.alpha_bar_prev, t, x0)
    signal_prev = at(schedule.alpha_bar_prev, t, x0).sqrt()
    mean = (signal_prev * beta * x0 + alpha.sqrt() * var_prev * xt) / var
    return mean, beta * var_prev / var


def x0_from_eps(xt: Tensor, t: Tensor, eps: Tensor, schedule: Schedule) -> Tensor:
    """Return the x0 implied by `xt` and its noise. (Ho et al. 2020, eq. 15)"""
    check_step(schedule, t, xt=xt, eps=eps)
    return (xt - at(schedule.noise_scale, t, xt) * eps) / at(schedule.signal_scale, t, xt)


def eps_from_x0(xt: Tensor, t: Tensor, x0: Tensor, schedule: Schedule) -> Tensor:
    """Return the noise implied by `xt` and its x0. (Ho et al. 2020, eq. 15, solved for the noise)"""
    check_step(schedule, t, xt=xt, x0=x0)
    return (xt - at(schedule.signal_scale, t, xt) * x0) / at(schedule.noise_scale, t, xt)


def velocity(x0: Tensor, t: Tensor, eps: Tensor, schedule: Schedule) -> Tensor:
    """Return v, the direction in which xt moves from x0 towards eps. (Salimans & Ho 2022, section 4)"""
    check_step(schedule, t, x0=x0, eps=eps)
    return at(schedule.signal_scale, t, x0) * eps - at(schedule.noise_scale, t, x0) * x0


def eps_from_v(xt: Tensor, t: Tensor, v: Tensor, schedule: Schedule) -> Tensor:
    """Return the noise implied by `xt` and its v. (Salimans & Ho 2022, appendix D)"""
    check_step(schedule, t, xt=xt, v=v)
    return at(schedule.noise_scale, t, xt) * xt + at(schedule.signal_scale, t, xt) * v


def draw_noise(x0: Tensor, generator: torch.Generator, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Draw t (B,), uniform over all steps, and eps, shaped like x0, on x0's device: what a training step needs."""
    t = torch.randint(schedule.T, x0.shape[:1], generator=generator, device=x0.device)
    return t, torch.randn(x0.shape, generator=generator, device=x0.device)


def simple_loss(model: Callable, x0: Tensor, y: Tensor | None, t: Tensor, eps: Tensor, schedule: Schedule) -> Tensor:
    """Return L_simple for each image, (B,): the mean squared error of the predicted noise. (Ho et al. 2020, eq. 14)

    `model` is called as model(xt, t, y). Built in lesson 03.
    """
    eps_hat = model(add_noise(x0, t, eps, schedule), t, y)
    return (eps_hat - eps).square().flatten(1).mean(dim=1)


def x0_loss(model: Callable, x0: Tensor, y: Tensor | None, t: Tensor, eps: Tensor, schedule: Schedule) -> Tensor:
    """Return the mean squared error of the predicted x0 for each image, (B,). (Li & He 2025)"""
    x0_hat = model(add_noise(x0, t, eps, schedule), t, y)
    return (x0_hat - x0).square().flatten(1).mean(dim=1)


def v_loss(model: Callable, x0: Tensor, y: Tensor | None, t: Tensor, eps: Tensor, schedule: Schedule) -> Tensor:
    """Return the mean squared error of the predicted v for each image, (B,).

    (Salimans & Ho 2022, section 4) Built in lesson 05.
    """
    v_hat = model(add_noise(x0, t, eps, schedule), t, y)
    return (v_hat - velocity(x0, t, eps, schedule)).square().flatten(1).mean(dim=1)


def validation_grid(x0: Tensor, schedule: Schedule, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return t (B,), evenly spaced from 0 to below T, and eps like x0; both are the same at each call."""
    t = torch.arange(len(x0)) * schedule.T // len(x0)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))
    return t.to(x0.device), eps.to(x0.device)


def validation_loss(
    model: Callable,
    x0: Tensor,
    y: Tensor | None,
    schedule: Schedule,
    loss_fn: Callable = simple_loss,
    bins: int = 10,
) -> dict[str, float | list[float]]:
    """Return the mean of a loss on the validation grid and its means over `bins` equal ranges of t, from low to high.

    ValueError if there are fewer images than ranges.
    """
    if len(x0) < bins:
        raise ValueError(f"x0 has {len(x0)} images; expected at least {bins}, one for each range of t: take more")
    t, eps = validation_grid(x0, schedule)
    with torch.no_grad():
        loss = loss_fn(model, x0, y, t, eps, schedule)
    return {"loss": loss.mean().item(), "bins": [part.mean().item() for part in loss.tensor_split(bins)]}


def pixel_baseline(x0: Tensor, schedule: Schedule) -> Tensor:
    """Return L_simple at each t of the best denoiser that knows only each pixel's mean and variance, shape (T,).

    For a Gaussian pixel of variance s^2 it is a^2 s^2 / (a^2 s^2 + b^2), where a and b are the schedule's signal and
    noise scale; s is estimated from the images `x0` (N, ...).
    """
    variance = x0.cpu().double().var(dim=0).flatten()  # not on the device: mps has no float64
    signal, noise = schedule.alpha_bar[:, None] * variance.to(schedule.beta), 1 - schedule.alpha_bar[:, None]
    return (signal / (signal + noise)).mean(dim=1)
