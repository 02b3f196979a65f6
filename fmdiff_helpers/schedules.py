"""Noise schedules: how much of the picture each step keeps.

Steps are numbered from 0, the least noisy, to T - 1, the noisiest. Everything here is float64 on the CPU, because
1 - alpha_bar is inaccurate in float32; `Schedule.to` moves the finished tables to another device.
"""

import copy
import math
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

# A chain ends in noise if its last signal-to-noise ratio is below this: at most 3.2 % of the picture is left.
NOISE_SNR = 1e-3


def ramp(T: int) -> Tensor:
    """Return T evenly spaced float64 values from 0 to 1, one for each step; ValueError unless T is at least 2."""
    check_T(T)
    return torch.linspace(0, 1, T, dtype=torch.float64)


def fence_posts(T: int) -> Tensor:
    """Return T + 1 evenly spaced float64 values from 0 to 1, the edges of T steps; ValueError unless T >= 2."""
    check_T(T)
    return torch.linspace(0, 1, T + 1, dtype=torch.float64)


def check_T(T: int) -> None:
    """Raise ValueError unless T is a whole number of at least 2."""
    if not isinstance(T, int) or T < 2:
        raise ValueError(f"T is {T!r}; expected a whole number of steps, at least 2, such as T=1000")


def linear_beta(T: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """Return linearly rising beta, shape (T,); made for T = 1000. (Ho et al. 2020, section 4) Built in lesson 01."""
    return beta_start + (beta_end - beta_start) * ramp(T)


def rescaled_linear_beta(T: int) -> Tensor:
    """Return the linear schedule times 1000/T, shape (T,), for T above 20. (Nichol & Dhariwal 2021, code)

    The sum of beta is then the same for every T. At T = 20 or less the last beta would reach 1, and `Schedule` raises
    ValueError. Built in lesson 01.
    """
    return linear_beta(T) * 1000 / T


def quadratic_beta(T: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """Return beta whose square root is linear, shape (T,). (Ho et al. 2020, code: "quad") Built in lesson 01."""
    return (beta_start**0.5 + (beta_end**0.5 - beta_start**0.5) * ramp(T)) ** 2


def sigmoid_beta(T: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """Return beta that rises along a sigmoid from -6 to 6, shape (T,). (Xu et al. 2022, code) Built in lesson 01."""
    return beta_start + (beta_end - beta_start) * torch.sigmoid(12 * ramp(T) - 6)


def cosine_beta(T: int, s: float = 0.008) -> Tensor:
    """Return the beta that makes alpha_bar a squared cosine, shape (T,). (Nichol & Dhariwal 2021, eq. 17)

    beta is at most 0.999, which lifts the last alpha_bar from 0 to 2.4e-9 at T = 1000. Built in lesson 01.
    """
    alpha_bar = torch.cos((fence_posts(T) + s) / (1 + s) * torch.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


@dataclass(frozen=True, eq=False)
class Schedule:
    """Hold the tables of a chain, each of shape (T,), indexed by t = 0 (least noisy) to T - 1.

    All are computed from `beta`, a 1-d floating-point tensor with values strictly between 0 and 1; ValueError for
    anything else. `alpha_bar_prev[t]` is `alpha_bar[t - 1]`, and 1 at t = 0: the clean image itself.
    (Ho et al. 2020, section 2)
    """

    beta: Tensor
    alpha: Tensor = field(init=False, repr=False)
    alpha_bar: Tensor = field(init=False, repr=False)
    alpha_bar_prev: Tensor = field(init=False, repr=False)
    signal_scale: Tensor = field(init=False, repr=False)
    noise_scale: Tensor = field(init=False, repr=False)
    log_snr: Tensor = field(init=False, repr=False)

    def __post_init__(self):
        check_betas(self.beta)
        beta = self.beta.cpu().double().clone()
        alpha_bar = torch.cumprod(1 - beta, dim=0)
        tables = {
            "beta": beta,
            "alpha": 1 - beta,
            "alpha_bar": alpha_bar,
            "alpha_bar_prev": torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]]),
            "signal_scale": alpha_bar.sqrt(),
            "noise_scale": (1 - alpha_bar).sqrt(),
            "log_snr": alpha_bar.log() - torch.log1p(-alpha_bar),
        }
        for name, table in tables.items():
            object.__setattr__(self, name, table)  # a frozen dataclass blocks plain assignment even here

    @property
    def T(self) -> int:
        """Return the number of steps."""
        return len(self.beta)

    @property
    def log_snr_db(self) -> Tensor:
        """Return the signal-to-noise ratio in decibels, 10 log10(alpha_bar / (1 - alpha_bar)), shape (T,)."""
        return self.log_snr * (10 / math.log(10))

    def to(self, device: torch.device | str) -> "Schedule":
        """Return the schedule with its tables on `device`; in float32 on Apple's mps, which has no float64."""
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        moved = copy.copy(self)
        for table in fields(self):
            object.__setattr__(moved, table.name, getattr(self, table.name).to(device, dtype))
        return moved


def check_betas(beta: Tensor) -> None:
    """Raise ValueError unless `beta` is a 1-d floating-point tensor with values strictly between 0 and 1."""
    if not isinstance(beta, Tensor) or beta.ndim != 1 or len(beta) == 0 or not beta.is_floating_point():
        found = f"{beta.dtype} of shape {tuple(beta.shape)}" if isinstance(beta, Tensor) else repr(beta)
        raise ValueError(f"beta is {found}; expected a floating-point tensor of shape (T,), such as linear_beta(1000)")
    bad = ~((beta > 0) & (beta < 1))  # written this way, nan is bad too
    if bad.any():
        t = int(bad.nonzero()[0])
        raise ValueError(
            f"beta[{t}] is {beta[t].item():.6g}; expected every beta strictly between 0 and 1 "
            "(a rescaled schedule needs more steps, or use cosine_beta)"
        )


def ends_in_noise(schedule: Schedule) -> bool:
    """Tell whether sampling may start from N(0, I): the last signal-to-noise ratio is below `NOISE_SNR`."""
    return bool(schedule.log_snr[-1].exp() < NOISE_SNR)


def describe_end(schedule: Schedule) -> str:
    """Return a sentence: how much of the picture the last step keeps, whether that is noise, and what to do if not."""
    kept, snr = schedule.signal_scale[-1].item(), schedule.log_snr_db[-1].item()
    verdict = "noise." if ends_in_noise(schedule) else "NOT noise: try cosine_beta or rescaled_linear_beta."
    return f"T = {schedule.T}: {kept:.2%} of x0 is left at the end (SNR {snr:.1f} dB), {verdict}"
