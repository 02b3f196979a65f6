"""Teachers: trained networks whose weights another one starts with, and whose velocity or samples it learns.

A process with a teacher names it, and perhaps a guide, a weaker network to lead it away from; see `TaughtFlow` in
`processes/flow.py`. A name is that of a published network, or a folder.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fmdiff_helpers.batching import batch_size_on, in_batches
from fmdiff_helpers.cards import WeightsError, build_process, published_first, read_card
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.flow_samplers import sample_dpm
from fmdiff_helpers.guidance import guided

# The solver's steps for a pair. On latents of `latent_unet` its median error is 0.014 then, where latents spread by 1:
# half as much as that of Euler's method with 50 steps.
PAIR_STEPS = 20


def teachers_of(process: Any) -> list[str]:
    """Return the names of a process's teacher and of its guide, if it has them."""
    return [name for name in (getattr(process, "teacher", ""), getattr(process, "guide", "")) if name]


def check_teachers(name: str, card: dict) -> None:
    """Raise WeightsError unless all that the network of a card learns from is here, and in the same latent."""
    latent = card["autoencoder"] and card["autoencoder"]["sha256"]
    for teacher in teachers_of(build_process(card)):
        try:
            there = read_card(published_first(teacher))["autoencoder"]
        except WeightsError as error:
            raise WeightsError(f"{name} learns from {teacher!r}, whose weights cannot be read: {error}") from None
        if (there and there["sha256"]) != latent:
            raise WeightsError(
                f"{name} learns from {teacher!r}, whose autoencoder is {there}; expected {card['autoencoder']}; "
                "leave the autoencoder out, or train the teacher anew"
            )


def teacher_of(process: Any) -> Callable:
    """Return the velocity that a process's teacher predicts, led away from the guide if there is one."""
    network, *weak = (load_pretrained(published_first(name), process.device) for name in teachers_of(process))
    return process.at_times(guided(network, process.guidance, weak=weak[0]) if weak else network)


def start_from(model: nn.Module, teacher: str) -> None:
    """Give a network the weights of the one that it learns from; what is new stays as it is.

    WeightsError unless all weights of the teacher fit.
    """
    found = load_pretrained(published_first(teacher)).state_dict()
    own = model.state_dict()
    if wrong := [name for name in found if name not in own or own[name].shape != found[name].shape]:
        raise WeightsError(f"{wrong[0]} of {teacher!r} does not fit the network that should start from it")
    model.load_state_dict(own | found)


def draw_pairs(velocity: Callable, eps: Tensor, y: Tensor | None, clip: float = math.inf) -> Tensor:
    """Return what a flow makes of noise eps (N, C, H, W), and the noise: (N, 2 C, H, W).

    `y` (N,) are its labels, if it takes any, and `clip` is the sampler's. (Liu et al. 2023, section 2.2)
    """

    def pair(eps: Tensor, y: Tensor | None = None) -> Tensor:
        return torch.cat([sample_dpm(velocity, eps, PAIR_STEPS, y, clip), eps], dim=1)

    labels = [] if y is None else [y.to(eps.device)]
    return in_batches(pair, eps, *labels, batch_size=batch_size_on(eps.device), shared=True)
