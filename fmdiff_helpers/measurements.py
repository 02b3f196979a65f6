"""Linear measurements A of pictures x (B, C, H, W): what is left of a picture, and what leads back.

Each is a small object with three functions. `apply` returns A x. `adjoint` returns A^T s, where s is shaped like A x;
of all s, |A^T s| tells how strongly the measurement sees them. `pseudo_inverse` returns A^+ s: of all pictures whose
measurement is s, the one nearest to 0, which is grey. Bad input raises a ValueError that says what was expected.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Measurement(Protocol):
    """Describe what the samplers of `fmdiff_helpers.repair` need of a measurement."""

    def apply(self, x: Tensor) -> Tensor:
        """Return A x for pictures x (B, C, H, W)."""
        ...

    def adjoint(self, seen: Tensor) -> Tensor:
        """Return A^T s (B, C, H, W)."""
        ...

    def pseudo_inverse(self, seen: Tensor) -> Tensor:
        """Return A^+ s (B, C, H, W)."""
        ...


def check_table(name: str, table: Tensor, dtype: torch.dtype, shape: str, example: str) -> None:
    """Raise ValueError unless a table has this dtype and as many axes as `shape`, such as "(H, W)", names."""
    if not isinstance(table, Tensor) or table.dtype != dtype or table.ndim != shape.count(",") + 1:
        found = f"{table.dtype} of shape {tuple(table.shape)}" if isinstance(table, Tensor) else repr(table)
        raise ValueError(f"{name} is {found}; expected {dtype} of shape {shape}, such as {example}")


def check_last(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless x is floating-point and its last axes have this shape."""
    if not x.is_floating_point() or tuple(x.shape[-len(shape) :]) != shape:
        sides = " x ".join(map(str, shape))
        found = f"{x.dtype} of shape {tuple(x.shape)}"
        raise ValueError(f"{name} is {found}; expected floating-point, and {sides} at the end of its shape")


@dataclass(frozen=True, eq=False)
class Mask:
    """See the pixels where `keep` (H, W) is True; all others are 0 in what is seen, which is shaped like the picture.

    A x = m x, and A^T = A^+ = A. ValueError unless `keep` is a bool tensor that keeps something.
    """

    keep: Tensor

    def __post_init__(self):
        check_table("keep", self.keep, torch.bool, "(H, W)", "mask > 0")
        if not self.keep.any():
            raise ValueError("keep is False everywhere; expected True at the known pixels: perhaps it is inverted")

    def apply(self, x: Tensor) -> Tensor:
        """Return the known pixels of x (B, C, H, W), and 0 elsewhere."""
        check_last("x", x, tuple(self.keep.shape))
        return x * self.keep.to(x)

    def adjoint(self, seen: Tensor) -> Tensor:
        """Return the known pixels (B, C, H, W), and 0 elsewhere."""
        return self.apply(seen)

    def pseudo_inverse(self, seen: Tensor) -> Tensor:
        """Return the known pixels (B, C, H, W), and 0 elsewhere."""
        return self.apply(seen)


@dataclass(frozen=True, eq=False)
class Separable:
    """Mix the rows of a picture by one matrix and its columns by another: A x = R x C^T, with R (h, H) and C (w, W).

    What is seen is (B, C, h, w). The singular values of A are the products of those of R and C. A^+ divides by them,
    except by those below `cut` times the largest: it would magnify rounding, and noise, more than 1/cut times. What
    lies there stays unseen. ValueError unless both are float64 matrices and `cut` is above 0 and below 1.
    """

    rows: Tensor
    columns: Tensor
    cut: float = 1e-2
    parts: tuple[Tensor, ...] = field(init=False, repr=False)

    def __post_init__(self):
        check_table("rows", self.rows, torch.float64, "(h, H)", "torch.eye(28, dtype=torch.float64)")
        check_table("columns", self.columns, torch.float64, "(w, W)", "torch.eye(28, dtype=torch.float64)")
        if not 0 < self.cut < 1:
            raise ValueError(f"cut is {self.cut!r}; expected above 0 and below 1, such as 0.01")
        row_left, row_values, row_right = torch.linalg.svd(self.rows.cpu(), full_matrices=False)
        left, values, right = torch.linalg.svd(self.columns.cpu(), full_matrices=False)
        sizes = row_values[:, None] * values
        if not sizes.max() > 0:
            raise ValueError("all rows or all columns are 0; expected a measurement that sees something")
        is_large = sizes >= self.cut * sizes.max()
        inverse = torch.where(is_large, 1 / sizes.where(is_large, 1), 0)
        object.__setattr__(self, "parts", (row_left, row_right, left, right, inverse))  # a frozen dataclass

    def apply(self, x: Tensor) -> Tensor:
        """Return R x C^T (B, C, h, w) for pictures x (B, C, H, W)."""
        check_last("x", x, (self.rows.shape[1], self.columns.shape[1]))
        return self.rows.to(x) @ x @ self.columns.to(x).T

    def adjoint(self, seen: Tensor) -> Tensor:
        """Return R^T s C (B, C, H, W)."""
        check_last("seen", seen, (len(self.rows), len(self.columns)))
        return self.rows.to(seen).T @ seen @ self.columns.to(seen)

    def pseudo_inverse(self, seen: Tensor) -> Tensor:
        """Return A^+ s (B, C, H, W), where the small singular values count as 0."""
        check_last("seen", seen, (len(self.rows), len(self.columns)))
        row_left, row_right, left, right, inverse = (part.to(seen) for part in self.parts)
        return row_right.T @ (inverse * (row_left.T @ seen @ left)) @ right


def shrink(factor: int, size: int = 28) -> Separable:
    """Return the measurement that makes a picture `factor` times smaller: each pixel is the mean of factor^2.

    ValueError unless `size`, the picture's side, is a multiple of `factor`.
    """
    if not isinstance(factor, int) or factor < 1 or size % factor:
        raise ValueError(f"factor is {factor!r}; expected a whole number that divides {size}, the side of the picture")
    means = torch.eye(size // factor, dtype=torch.float64).repeat_interleave(factor, dim=1) / factor
    return Separable(means, means)


def blur(sigma: float, size: int = 28, cut: float = 1e-2) -> Separable:
    """Return the measurement that blurs by a Gaussian of standard deviation `sigma`, in pixels.

    Beyond the edge the picture goes on as at its edge. `cut` is that of `Separable`. ValueError unless sigma is
    above 0 and at most the picture's side.
    """
    if not 0 < sigma <= size:
        raise ValueError(f"sigma is {sigma!r}; expected above 0 and at most {size} pixels, the side of the picture")
    place, reach = torch.arange(size), int(4 * sigma) + 1
    rows = torch.zeros(size, size, dtype=torch.float64)
    for offset in range(-reach, reach + 1):
        rows[place, (place + offset).clamp(0, size - 1)] += torch.exp(torch.tensor(-((offset / sigma) ** 2) / 2)).item()
    rows = rows / rows.sum(dim=1, keepdim=True)
    return Separable(rows, rows, cut)


@dataclass(frozen=True, eq=False)
class Brightness:
    """See the mean brightness of some parts of a picture: `parts` (P, H, W) are True where a part lies.

    What is seen is (B, C, P); parts may overlap. ValueError unless they are a bool tensor, and none of them is empty.
    """

    parts: Tensor
    weights: Tensor = field(init=False, repr=False)  # the matrix A (P, H W): 1 / the part's size where it lies
    inverse: Tensor = field(init=False, repr=False)

    def __post_init__(self):
        check_table("parts", self.parts, torch.bool, "(P, H, W)", "torch.ones(1, 28, 28, dtype=torch.bool)")
        sizes = self.parts.flatten(1).sum(dim=1)
        if not len(sizes) or (sizes == 0).any():
            raise ValueError(f"parts have {sizes.tolist()} pixels; expected at least one part, and none of 0 pixels")
        parts = self.parts.flatten(1).cpu().double()
        weights = parts / parts.sum(dim=1, keepdim=True)
        object.__setattr__(self, "weights", weights)  # a frozen dataclass blocks plain assignment
        object.__setattr__(self, "inverse", torch.linalg.pinv(weights))

    def apply(self, x: Tensor) -> Tensor:
        """Return the mean brightness (B, C, P) of the parts of x (B, C, H, W)."""
        check_last("x", x, tuple(self.parts.shape[1:]))
        return x.flatten(2) @ self.weights.to(x).T

    def adjoint(self, seen: Tensor) -> Tensor:
        """Return A^T s (B, C, H, W): each number divided among the pixels of its part."""
        check_last("seen", seen, (len(self.parts),))
        return (seen @ self.weights.to(seen)).unflatten(-1, self.parts.shape[1:])

    def pseudo_inverse(self, seen: Tensor) -> Tensor:
        """Return A^+ s (B, C, H, W): where parts do not overlap, each pixel is its part's number, and 0 elsewhere."""
        check_last("seen", seen, (len(self.parts),))
        return (seen @ self.inverse.to(seen).T).unflatten(-1, self.parts.shape[1:])
