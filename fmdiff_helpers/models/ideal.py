"""The denoiser that no training can beat, in closed form: it knows every training image, and nothing else."""

import torch
from torch import Tensor, nn


class IdealDenoiser(nn.Module):
    """Predict x0 from xt (B, ...) at step t (B,): the mean of all training images, each as likely as it led to xt.

    `images` (N, ...) are in [-1, 1] and of `labels` (N,); `signal_scale` and `noise_scale` (T,) are the schedule's.
    For labels y (B,) only images of that kind count. No denoiser has a lower training loss, and what it draws are
    copies. (Karras et al. 2022, eq. 57) Built in lesson 03.
    """

    def __init__(self, images: Tensor, labels: Tensor, signal_scale: Tensor, noise_scale: Tensor):
        super().__init__()
        images = images.flatten(1)
        tables = {"images": images, "labels": labels, "squares": images.square().sum(dim=1)}
        tables |= {"signal_scale": signal_scale.to(images), "noise_scale": noise_scale.to(images)}
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the mean, shaped like x."""
        signal, noise = self.signal_scale[t][:, None], self.noise_scale[t][:, None]
        # -|xt - signal x0|^2 / (2 noise^2), but for what all images share
        log_weight = (signal * x.flatten(1) @ self.images.T - signal**2 * self.squares / 2) / noise**2
        if y is not None:
            log_weight = log_weight.masked_fill(self.labels != y[:, None], -torch.inf)
        return (log_weight.softmax(dim=1) @ self.images).reshape(x.shape)
