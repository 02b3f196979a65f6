"""Diffusion in T steps: a network learns to undo noise, and draws by DDPM or DDIM."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fmdiff_helpers.batching import mean_of_processes
from fmdiff_helpers.diffusion import add_noise, draw_noise, simple_loss, v_loss, validation_loss, x0_loss
from fmdiff_helpers.entries import GARMENT, image_shape
from fmdiff_helpers.samplers import noise_from_v, noise_predictor, sample_ddim, sample_ddpm
from fmdiff_helpers.schedules import (
    Schedule,
    cosine_beta,
    linear_beta,
    quadratic_beta,
    rescaled_linear_beta,
    sigmoid_beta,
)

# What the network predicts -> its loss, and how its prediction becomes the noise, which the samplers take.
TARGETS = {
    "eps": (simple_loss, lambda network, schedule: network),
    "x0": (x0_loss, noise_predictor),
    "v": (v_loss, noise_from_v),
}
BETAS = {
    function.__name__: function
    for function in (linear_beta, rescaled_linear_beta, quadratic_beta, sigmoid_beta, cosine_beta)
}


class ScheduledLoss(nn.Module):
    """Mix the squared and the absolute error of the predicted x0; the absolute error counts more and more.

    Both are scaled to the same size by running means, which are constants for the gradient and are kept in
    checkpoints. In `num_steps` steps the weight of the squared error falls from 0.9 to 0.5.
    Built in lesson 02.
    """

    def __init__(self, schedule: Schedule, num_steps: int):
        super().__init__()
        self.schedule, self.num_steps = schedule, num_steps
        self.register_buffer("step", torch.tensor(0))
        self.register_buffer("sizes", torch.ones(2))

    def forward(self, model: Callable, x0: Tensor, y: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return the loss of each image, (B,)."""
        error = (model(add_noise(x0, t, eps, self.schedule), t, y) - x0).flatten(1)
        squared, absolute = error.square().mean(dim=1), error.abs().mean(dim=1)
        sizes = mean_of_processes(torch.stack([squared.mean(), absolute.mean()]).detach())
        self.sizes.lerp_(sizes, torch.where(self.step > 0, 0.01, 1.0))
        share = 0.9 - 0.4 * self.step / self.num_steps
        self.step += 1
        return share * squared + (1 - share) * absolute * self.sizes[0] / self.sizes[1]


@dataclass(frozen=True)
class Diffusion:
    """Add noise by a schedule, and learn to predict `target`: the noise ("eps"), the data ("x0") or the velocity ("v").

    `shape` is that of one image. ValueError for another target.
    """

    schedule: Schedule
    target: str = "eps"
    shape: tuple[int, ...] = GARMENT
    kind = "denoiser"

    def __post_init__(self):
        if self.target not in TARGETS:
            raise ValueError(f"target is {self.target!r}; expected one of {', '.join(TARGETS)}")

    @classmethod
    def from_card(
        cls, card: dict, device: torch.device | str = "cpu", *, beta: str, T: int, target: str
    ) -> "Diffusion":
        """Build it from beta="cosine_beta", T=200 and target="v"; ValueError for a `beta` or `target` that is none."""
        if beta not in BETAS:
            raise ValueError(f"beta is {beta!r}; expected one of {', '.join(BETAS)}")
        return cls(Schedule(BETAS[beta](T)).to(device), target, image_shape(card))

    @property
    def device(self) -> torch.device:
        """Return the device of the schedule's tables."""
        return self.schedule.beta.device

    @property
    def max_steps(self) -> int:
        """Return T."""
        return self.schedule.T

    def draw(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw t (B,) and eps like x0 for a training step."""
        return draw_noise(x0, generator, self.schedule)

    def loss(self, model: Callable, x0: Tensor, y: Tensor | None, t: Tensor, eps: Tensor) -> Tensor:
        """Return the squared error of the predicted target for each image, (B,)."""
        return TARGETS[self.target][0](model, x0, y, t, eps, self.schedule)

    def training_loss(self, num_steps: int) -> Callable:
        """Return the loss to train with: `loss`, but for x0 a mix that changes in the course of `num_steps` steps."""
        return ScheduledLoss(self.schedule, num_steps).to(self.device) if self.target == "x0" else self.loss

    def validate(self, model: Callable, x0: Tensor, y: Tensor | None) -> dict:
        """Return the mean loss over a fixed grid of t, and its means over ten ranges of t."""
        return validation_loss(model, x0, y, self.schedule, TARGETS[self.target][0])

    def predictor(self, network: Callable) -> Callable:
        """Return the network as one that predicts the noise."""
        return TARGETS[self.target][1](network, self.schedule)

    def sample(
        self,
        model: Callable,
        x: Tensor,
        generator: torch.Generator,
        num_steps: int | None = None,
        eta: float | None = None,
        **options,
    ) -> Tensor:
        """Walk from noise x (B, ...) to samples: by DDPM with all steps, by DDIM with fewer; `options` are theirs.

        With an `eta` always by DDIM; otherwise DDIM's is 0.
        """
        if eta is None and num_steps in (None, self.max_steps):
            return sample_ddpm(model, x, self.schedule, generator, num_steps, **options)
        return sample_ddim(model, x, self.schedule, generator, num_steps, eta=eta or 0.0, **options)
