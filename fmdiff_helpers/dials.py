"""The dials of a lesson: what its parameters may be. A lesson checks them before it begins to work."""

import math
from typing import Any

import torch

LARGEST_SEED = 2**32  # as for the command


def check_whole(name: str, value: Any, least: int, most: float = math.inf) -> None:
    """Raise ValueError unless `value`, which is called `name`, is a whole number from `least` to `most`."""
    if type(value) is not int or not least <= value <= most:
        expected = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        raise ValueError(f"{name} is {value!r}; expected a whole number {expected}")


def check_dials(seed: int, epochs: float | str = 0, **dials: tuple[int, ...]) -> None:
    """Check the dials of a lesson: its seed, its epochs, and other whole numbers.

    Each of these is given with its range, as name=(value, least, most) or name=(value, least). ValueError for the first
    dial that is out of its range.
    """
    for name, value_and_range in {"seed": (seed, 0, LARGEST_SEED), **dials}.items():
        check_whole(name, *value_and_range)
    number_of_epochs(epochs, with_gpu=0)


def number_of_epochs(epochs: float | str, with_gpu: float) -> float:
    """Return how many epochs a lesson trains: `epochs` itself, or for "auto", `with_gpu` if there is a GPU, else 0.

    ValueError unless `epochs` is "auto", in any case, or a number that is not negative.
    """
    if isinstance(epochs, str) and epochs.lower() == "auto":
        return with_gpu if torch.cuda.is_available() else 0
    if type(epochs) not in (int, float) or not 0 <= epochs < math.inf:
        raise ValueError(f'epochs is {epochs!r}; expected "auto", or a number of at least 0')
    return epochs
