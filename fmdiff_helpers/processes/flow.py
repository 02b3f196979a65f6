"""Flows: a network learns the velocity of straight paths between data and noise, and draws by following it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fmdiff_helpers.flow_samplers import sample_euler, sample_jumps
from fmdiff_helpers.flows import flow_loss, flow_of, mean_flow_loss, shifted, shortcut_loss
from fmdiff_helpers.processes.diffusion import BETAS
from fmdiff_helpers.schedules import Schedule

BINS = 10  # ranges of t with a mean loss of their own


def draw_times(n: int, generator: torch.Generator, device: torch.device, times: str) -> Tensor:
    """Draw n times: "uniform", or "logit_normal", which has most of them in the middle. (Esser et al. 2024, eq. 19)"""
    if times == "uniform":
        return torch.rand(n, generator=generator, device=device)
    return torch.randn(n, generator=generator, device=device).sigmoid()


def by_time(loss: Tensor) -> dict[str, float | list[float]]:
    """Return the mean of the losses (B,) of images in the order of their times, and the means over ranges of t."""
    return {"loss": loss.mean().item(), "bins": [part.mean().item() for part in loss.tensor_split(BINS)]}


@dataclass(frozen=True)
class Flow:
    """Follow straight paths from data to noise; the network is told the time t in [0, 1] as the number t * T.

    `times` says which times it is trained on, see `draw_times`; `shift` moves them towards the noise. With a `schedule`
    the network predicts v at its steps, as one of diffusion does, and `flow_of` makes the velocity from that.
    """

    where: torch.device
    T: int
    times: str = "uniform"
    shift: float = 1.0
    schedule: Schedule | None = None
    shape = (1, 28, 28)
    kind = "denoiser"

    @classmethod
    def from_card(
        cls,
        card: dict,
        device: torch.device | str = "cpu",
        *,
        T: int,
        times: str = "uniform",
        shift: float = 1.0,
        beta: str = "",
    ) -> "Flow":
        """Build it from T=1000 and times="uniform"; `beta` names the schedule of a network that predicts v.

        ValueError for other `times` or `beta`, or a `shift` of 0.
        """
        if beta and beta not in BETAS:
            raise ValueError(f"beta is {beta!r}; expected one of {', '.join(BETAS)}")
        if times not in ("uniform", "logit_normal"):
            raise ValueError(f"times is {times!r}; expected uniform or logit_normal")
        if not shift:
            raise ValueError("shift is 0; expected a number above 0, where 1 leaves the times as they are")
        return cls(torch.device(device), T, times, shift, Schedule(BETAS[beta](T)).to(device) if beta else None)

    @property
    def device(self) -> torch.device:
        """Return the device that it draws on."""
        return self.where

    @property
    def max_steps(self) -> int:
        """Return T: more steps than the network can tell apart make no sense."""
        return self.T

    def draw(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw t (B,) and eps like x0 for a training step."""
        t = shifted(draw_times(len(x0), generator, x0.device, self.times), self.shift)
        return t, torch.randn(x0.shape, generator=generator, device=x0.device)

    def loss(self, model: Callable, x0: Tensor, y: Tensor | None, *drawn: Tensor) -> Tensor:
        """Return the squared error of the predicted velocity for each image, (B,)."""
        t, eps = drawn
        return flow_loss(self.at_times(model), x0, y, t, eps)

    def training_loss(self, num_steps: int) -> Callable:
        """Return the loss to train with: `loss`."""
        return self.loss

    def validate(self, model: Callable, x0: Tensor, y: Tensor | None) -> dict:
        """Return the mean loss over evenly spread times and fixed noise, and its means over ten ranges of t."""
        t = ((torch.arange(len(x0)) + 0.5) / len(x0)).to(x0)
        eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(x0)
        return by_time(self.loss(model, x0, y, t, eps))

    def at_times(self, model: Callable) -> Callable:
        """Return a network as a model of the velocity that is told t in [0, 1]; both may take a second time."""
        if self.schedule is not None:
            return flow_of(model, self.schedule)
        return lambda x, t, y=None, *r: model(x, t * self.T, y, *(each * self.T for each in r))

    def predictor(self, network: Callable) -> Callable:
        """Return the network: it predicts the velocity, and is told t * T."""
        return network

    def sample(
        self,
        model: Callable,
        x: Tensor,
        generator: torch.Generator,
        num_steps: int | None = None,
        **options,
    ) -> Tensor:
        """Walk from noise x (B, ...) to samples by Euler's method, 50 steps if not said; `options` are its own.

        There is no chance on the way, so `generator` is not used.
        """
        return sample_euler(self.at_times(model), x, num_steps or min(50, self.T), **options)


@dataclass(frozen=True)
class TaughtFlow(Flow):
    """What flows have in common that start with the weights of a trained network, their `teacher`, and learn from it.

    With a `guide`, a weaker network, they learn from the teacher as it draws when it is led away from the guide
    (autoguidance), by `guidance`.
    """

    teacher: str = ""
    guide: str = ""
    guidance: float = 1.0

    @classmethod
    def from_card(
        cls,
        card: dict,
        device: torch.device | str = "cpu",
        *,
        T: int,
        times: str = "uniform",
        shift: float = 1.0,
        beta: str = "",
        teacher: str = "",
        guide: str = "",
        guidance: float = 1.0,
    ) -> "TaughtFlow":
        """Build it as `Flow` is, with the names of `teacher` and `guide`; ValueError where the teacher is missing."""
        if not teacher:
            raise ValueError("teacher is missing; expected the name of a trained flow, or of a network that predicts v")
        flow = Flow.from_card(card, device, T=T, times=times, shift=shift, beta=beta)
        return cls(flow.where, T, times, shift, flow.schedule, teacher, guide, guidance)


@dataclass(frozen=True)
class Reflow(TaughtFlow):
    """Learn straight paths again, between noise and what the `teacher` made of it.

    The images of a training are pairs, x0 and its noise, one behind the other in the channels. (Liu et al. 2023, eq. 1)
    """

    has_pairs = True

    def draw(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw t (B,) for a training step."""
        return super().draw(x0[:, :0], generator)[:1]

    def loss(self, model: Callable, x0: Tensor, y: Tensor | None, *drawn: Tensor) -> Tensor:
        """Return the squared error of the predicted velocity for each pair of x0 and noise, (B,)."""
        data, eps = x0.chunk(2, dim=1)
        return super().loss(model, data, y, drawn[0], eps)


@dataclass(frozen=True)
class MeanFlow(TaughtFlow):
    """Learn the mean velocity between two times, which leads from noise to data in one jump, or in a few.

    In a quarter of the images the second time is the first, where the mean is the velocity itself. `velocity` is that
    of the teacher; without it, straight lines are. (Geng et al. 2025, who have r = t in three quarters and no teacher)
    """

    velocity: Callable | None = None

    def draw(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw the times t >= r (B,) and eps like x0 for a training step."""
        both = torch.stack([draw_times(len(x0), generator, x0.device, self.times) for _ in range(2)])
        r, t = shifted(both, self.shift).sort(dim=0).values
        alike = torch.rand(len(x0), generator=generator, device=x0.device) < 0.25
        return t, torch.where(alike, t, r), torch.randn(x0.shape, generator=generator, device=x0.device)

    def loss(self, model: Callable, x0: Tensor, y: Tensor | None, *drawn: Tensor) -> Tensor:
        """Return the loss of the mean velocity for each image, (B,)."""
        t, r, eps = drawn
        return mean_flow_loss(self.at_times(model), x0, y, t, r, eps, teacher=self.velocity)

    def validate(self, model: Callable, x0: Tensor, y: Tensor | None) -> dict:
        """Return the mean loss over evenly spread times, fixed second times and noise, and over ten ranges of t."""
        t, r, eps = self.validation_draws(x0)
        return by_time(mean_flow_loss(self.at_times(model), x0, y, t, r, eps, 0.0, self.velocity))

    def validation_draws(self, x0: Tensor) -> tuple[Tensor, ...]:
        """Return times t (B,), evenly spread, times r below them, and eps like x0; the same at each call."""
        generator = torch.Generator().manual_seed(0)
        t = ((torch.arange(len(x0)) + 0.5) / len(x0)).to(x0)
        r = t * torch.rand(len(x0), generator=generator).to(x0)
        return t, r, torch.randn(x0.shape, generator=generator).to(x0)

    def sample(
        self, model: Callable, x: Tensor, generator: torch.Generator, num_steps: int | None = None, **options
    ) -> Tensor:
        """Walk from noise x (B, ...) to samples in jumps, one if not said; `generator` is not used."""
        return sample_jumps(self.at_times(model), x, num_steps or 1, **options)


@dataclass(frozen=True)
class Shortcut(MeanFlow):
    """Learn the mean velocity between two times, too, but from the two halves of the way. (Frans et al. 2025)"""

    def loss(self, model: Callable, x0: Tensor, y: Tensor | None, *drawn: Tensor) -> Tensor:
        """Return the loss of the mean velocity for each image, (B,)."""
        t, r, eps = drawn
        return shortcut_loss(self.at_times(model), x0, y, t, r, eps, self.velocity)

    def validate(self, model: Callable, x0: Tensor, y: Tensor | None) -> dict:
        """Return the mean loss over evenly spread times, fixed second times and noise, and over ten ranges of t."""
        return by_time(self.loss(model, x0, y, *self.validation_draws(x0)))
