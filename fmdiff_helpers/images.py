"""Check images that come from elsewhere: arrays, tensors and .npz files."""

import math
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fmdiff_helpers.batching import this_process

EXPECTED = "expected uint8 (N, 28, 28) or (N, 1, 28, 28), with values 0 to 255"
LARGEST = 60_000 * 28 * 28 * 8  # bytes: as many images as the training split has, even as float64
# The mean of the outermost pixels: at most 20 for each kind of real garments, 23 for samples of published networks in
# few steps, at least 236 for inverted garments, 128 for noise.
BRIGHT_BORDER = 180


def type_name(values: Tensor | np.ndarray) -> str:
    """Return the name of the type of the values: "uint8", "float32"."""
    return values.dtype.name if isinstance(values, np.ndarray) else str(values.dtype).removeprefix("torch.")


def float_problem(low: float, high: float) -> str:
    """Return what floating-point images with these extreme values look like, and how to convert them."""
    if not math.isfinite(low + high):
        return "with NaN or infinite values; mend what made them"
    found = f"from {low:.4g} to {high:.4g}"
    if low >= -0.05 and high <= 1.05:
        return f"{found}, which looks like 0 to 1; multiply by 255, round and convert to uint8"
    if low >= -1.5 and high <= 1.5:
        return f"{found}, which looks like -1 to 1; clip, add 1, multiply by 127.5, round and convert to uint8"
    if low >= -0.5 and high <= 255.5:
        return f"{found}, which looks like 0 to 255; round and convert to uint8"
    return found


def type_problem(images: Tensor | np.ndarray, kind: str) -> str:
    """Return what is wrong with images that are not uint8."""
    if kind == "bool":
        return "bool; multiply by 255 and convert to uint8"
    if kind.startswith(("float", "bfloat")):
        return f"{kind} {float_problem(float(images.min()), float(images.max()))}"
    if kind.startswith(("int", "uint")):
        low, high = int(images.min()), int(images.max())
        return f"{kind} from {low} to {high}" + ("; convert to uint8" if low >= 0 and high <= 255 else "")
    return kind


def shape_problem(shape: tuple[int, ...]) -> str:
    """Return what images of a wrong shape look like, and how to convert them."""
    known = {
        shape[1:] == (784,): "; reshape them to (N, 28, 28)",
        shape == (28, 28): ", one image alone; write images[None]",
        shape[1:3] == (28, 28) and len(shape) == 4: ", channels last; make them grey: one channel is enough",
        shape[2:] == (28, 28) and len(shape) == 4: ", several channels; make them grey: one channel is enough",
    }
    return f"of shape {shape}{known.get(True, '; crop or scale each to 28 by 28 pixels')}"


def warn_if_inverted(images: Tensor) -> None:
    """Print a warning if images uint8 (N, 1, 28, 28) have a bright border: that of real garments is dark."""
    rows, columns = images[..., [0, -1], :], images[..., 1:-1, [0, -1]]
    border = torch.cat([rows.flatten(), columns.flatten()]).float().mean().item()
    if border > BRIGHT_BORDER and this_process().is_main_process:
        print(
            f"WARNING: the images look inverted: the mean of their border is {border:.0f}, that of real garments 12. "
            "If they are, measure 255 - images.",
            file=sys.stderr,
        )


def check_images(images: Tensor | np.ndarray, least: int = 1) -> Tensor:
    """Return images uint8 (N, 28, 28) or (N, 1, 28, 28), an array or a tensor, as a tensor (N, 1, 28, 28).

    ValueError says what was found instead and how to convert it: another type, range or shape, or fewer than `least`
    images.
    """
    if not isinstance(images, Tensor | np.ndarray):
        raise ValueError(f"images are {type(images).__name__}; {EXPECTED}, as an array or a tensor")
    kind, shape = type_name(images), tuple(images.shape)
    if len(shape) == 0 or 0 in shape:
        raise ValueError(f"there are no images, but {kind} of shape {shape}; {EXPECTED}")
    if kind != "uint8":
        raise ValueError(f"images are {type_problem(images, kind)}; {EXPECTED}")
    if len(shape) not in (3, 4) or shape[1:] not in ((28, 28), (1, 28, 28)):
        raise ValueError(f"images are {shape_problem(shape)}; {EXPECTED}")
    if len(images) < least:
        raise ValueError(f"there are {len(images)} images; expected at least {least}: the measures compare clouds")
    if images.max() == 1:
        raise ValueError(f"images hold only 0 and 1; multiply by 255; {EXPECTED}")
    # A copy, because PyTorch takes no array that is read-only or runs backwards.
    checked = images if isinstance(images, Tensor) else torch.from_numpy(np.array(images, order="C"))
    return checked.reshape(-1, 1, 28, 28)


def check_labels(labels: Tensor | np.ndarray, n: int) -> Tensor:
    """Return n labels, integers 0 to 9 in an array or a tensor, as a tensor int64 (n,); ValueError for others."""
    expected = f"expected {n} whole numbers from 0 to 9, one for each image"
    if not isinstance(labels, Tensor | np.ndarray):
        raise ValueError(f"labels are {type(labels).__name__}; {expected}, in an array or a tensor")
    kind = type_name(labels)
    if tuple(labels.shape) != (n,) or not kind.startswith(("int", "uint")):
        raise ValueError(f"labels are {kind} of shape {tuple(labels.shape)}; {expected}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > 9:
        raise ValueError(f"labels go from {low} to {high}; {expected}")
    return labels.long() if isinstance(labels, Tensor) else torch.from_numpy(labels.astype(np.int64))


def read_arrays(path: Path, largest: int = LARGEST) -> dict[str, np.ndarray]:
    """Return `images` and, if there are some, `labels` of a .npz file, unchecked; ValueError if it cannot be read.

    ValueError, too, if they take more than `largest` bytes. Nothing is unpickled.
    """
    how = "write it with `fmdiff sample NAME -o x.npz` or numpy.savez_compressed(path, images=images, labels=labels)"
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is {'no file' if path.exists() else 'not there'}; expected a .npz file")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{str(path)!r} is no .npz file, or damaged; {how}")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist() if part.filename.startswith(("images", "labels")))
        if size > largest:
            raise OverflowError(f"its arrays take {size:,} bytes; expected at most {largest:,}")
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in ("images", "labels") if name in arrays.files}
            names = ", ".join(arrays.files) or "nothing"
    except Exception as error:  # a damaged or hostile file can raise nearly anything
        reason = str(error) or type(error).__name__
        raise ValueError(f"{str(path)!r} cannot be read ({reason}); {how}") from None
    if "images" not in found:
        raise ValueError(f"{str(path)!r} holds {names}, but no `images`; {how}")
    return found


def read_samples(path: Path, least: int = 1) -> tuple[Tensor, Tensor | None]:
    """Read images uint8 (N, 1, 28, 28) and labels int64 (N,), or None, from a .npz file as `fmdiff sample` writes it.

    ValueError if the file cannot be read or holds something else, or fewer than `least` images.
    """
    found = read_arrays(path)
    try:
        images = check_images(found["images"], least)
        return images, check_labels(found["labels"], len(images)) if "labels" in found else None
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from None
