"""Samples as files: a picture, an animation of the sampling steps, or plain arrays."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fmdiff_helpers.checkpoints import write_atomically
from fmdiff_helpers.tiling import tile

if TYPE_CHECKING:  # a server without matplotlib can still save samples
    from matplotlib.figure import Figure


def grid(images: Tensor, columns: int | None = None, scale: int = 3) -> Image.Image:
    """Lay uint8 images (N, 1 or 3, H, W) out in rows of `columns`, or nearly in a square if None; the rest is white."""
    columns = columns or int(np.ceil(len(images) ** 0.5))
    blank = images.new_full((-len(images) % columns, *images.shape[1:]), 255)
    picture = tile(torch.cat([images, blank]).cpu(), columns, gap=1)
    return Image.fromarray(picture.numpy().repeat(scale, 0).repeat(scale, 1))


def headed(picture: Image.Image, heads: Sequence[str]) -> Image.Image:
    """Write a name above each column of a grid."""
    height, width = 24, picture.width / len(heads)
    result = Image.new(picture.mode, (picture.width, picture.height + height), "white")
    result.paste(picture, (0, height))
    draw, font = ImageDraw.Draw(result), ImageFont.load_default(14)
    for column, head in enumerate(heads):
        draw.text(((column + 0.5) * width, height / 2), head, fill="black", font=font, anchor="mm")
    return result


def save_images(
    path: Path,
    images: Tensor,
    labels: Tensor | None = None,
    columns: int | None = None,
    heads: Sequence[str] = (),
) -> None:
    """Write uint8 images (N, 1, H, W) as a .png grid, or a .npz with `images` (N, H, W) and, if given, `labels` (N,).

    Images in colour, (N, 3, H, W), are (N, H, W, 3) in a .npz.
    `heads` are names to write above the columns of the grid, one for each column.
    """
    if path.suffix.lower() == ".png":
        picture = grid(images, columns)
        picture = headed(picture, heads) if heads else picture
        write_atomically(path, lambda file: picture.save(file, format="png"))
        return
    plain = images[:, 0] if images.shape[1] == 1 else images.movedim(1, 3)
    arrays = {"images": plain.cpu().numpy()} | ({} if labels is None else {"labels": labels.cpu().numpy()})

    def write(file: Path) -> None:
        with file.open("wb") as opened:  # numpy would append .npz to a name
            np.savez_compressed(opened, **arrays)

    write_atomically(path, write)


def save_figures(path: Path, *figures: "Figure") -> None:
    """Write matplotlib figures as one .png, one below the other."""
    pictures = []
    for figure in figures:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", bbox_inches="tight")
        pictures.append(Image.open(buffer).convert("RGB"))
    whole = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    for k, picture in enumerate(pictures):
        whole.paste(picture, (0, sum(above.height for above in pictures[:k])))
    write_atomically(path, lambda file: whole.save(file, format="png"))


def save_animation(path: Path, frames: Sequence[Tensor], milliseconds: int = 80, columns: int | None = None) -> None:
    """Write frames, each uint8 images (N, 1 or 3, H, W), as a .gif or .webp that loops and pauses on the last frame."""
    first, *rest = [grid(frame, columns) for frame in frames]
    durations = [milliseconds] * len(rest) + [2000]
    options = {"save_all": True, "append_images": rest, "duration": durations, "loop": 0}
    kind = path.suffix.lower()
    # With optimize, each frame of a .gif has its own colours, which some programs show wrongly.
    options |= {"lossless": True} if kind == ".webp" else {"optimize": False}
    write_atomically(path, lambda file: first.save(file, format=kind[1:], **options))
