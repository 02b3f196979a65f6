"""The denoiser with the lowest possible training loss, in closed form: a weighted mean of all training images."""

import torch
from torch import Tensor, nn


class IdealDenoiser(nn.Module):
    """Predict x0 as the mean of all training images, weighted by how likely each is to have produced xt (B, ...).

    `images` (N, ...) are in [-1, 1], with `labels` (N,); `signal_scale` and `noise_scale` (T,) come from the schedule.
    With labels y (B,), only images of that kind count. No denoiser has a lower training loss, and sampling with it
    draws copies of training images. (Karras et al. 2022, eq. 57) Built in lesson 03.
    """

    def __init__(self, images: Tensor, labels: Tensor, signal_scale: Tensor, noise_scale: Tensor):
        super().__init__()
        images = images.flatten(1)
        tables = {"images": images, "labels": labels, "squares": images.square().sum(dim=1)}
        tables |= {"signal_scale": signal_scale.to(images), "noise_scale": noise_scale.to(images)}
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the mean at steps t (B,), shaped like x."""
        signal, noise = self.signal_scale[t][:, None], self.noise_scale[t][:, None]
        # -|xt - signal x0|^2 / (2 noise^2), without the term that is the same for all images
        log_weight = (signal * x.flatten(1) @ self.images.T - signal**2 * self.squares / 2) / noise**2
        if y is not None:
            log_weight = log_weight.masked_fill(self.labels != y[:, None], -torch.inf)
        return (log_weight.softmax(dim=1) @ self.images).reshape(x.shape)
