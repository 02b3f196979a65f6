"""Many images as one picture, for figures, players and files."""

import torch
from einops import rearrange
from torch import Tensor


def tile(images: Tensor, columns: int, gap: int = 0) -> Tensor:
    """Lay images (N, 1, H, W) out in rows of `columns`, as one picture (rows * (H + gap), columns * (W + gap)).

    Of images in colour, (N, 3, H, W), it is (rows * (H + gap), columns * (W + gap), 3).

    Images are uint8 from 0 to 255, or floating point from -1 to 1. Each image gets `gap` white pixels at its right and
    at its bottom. ValueError unless N is a multiple of `columns`.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or columns < 1 or not len(images) or len(images) % columns:
        expected = f"(N, 1 or 3, H, W), N a multiple of {columns} columns"
        raise ValueError(f"images are {tuple(images.shape)}; expected {expected}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; expected uint8, 0 to 255, or floating point, -1 to 1")
    white = 255 if images.dtype == torch.uint8 else 1
    spaced = torch.nn.functional.pad(images, (0, gap, 0, gap), value=white) if gap else images
    form = "(r c) 1 h w -> (r h) (c w)" if images.shape[1] == 1 else "(r c) three h w -> (r h) (c w) three"
    return rearrange(spaced, form, c=columns)
