"""Fashion-MNIST as two tensors on a device: 60,000 training and 10,000 test images in 55 MB, no worker processes.

The four files are in the folder that the environment variable FMDIFF_DATA names, or else in `data/` of this checkout;
the first use downloads them. Without a network, the drawn stand-in takes their place.
"""

import gzip
import hashlib
import os
import socket
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import redirect_stdout
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor

from fmdiff_helpers.standin import draw_garments

CLASS_NAMES = (
    "T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

# Split -> the unpacked image and label files, with their MD5.
FILES = {
    "train": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    },
    "test": {
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}
ALL_FILES = FILES["train"] | FILES["test"]
STANDIN_SIZES = {"train": 60_000, "test": 10_000}
NUM_VALIDATION = 2000  # the last images of the training split, to choose by: the test images only report
SPLITS = ("train", "validation", "test")
REPAIR = "run `uv run fmdiff data --repair` to download it again"
STANDIN_NOTICE = (
    "NOTICE: Fashion-MNIST is not on this machine and could not be downloaded ({reason}).\n"
    "Garments drawn by code take its place, so that everything runs; numbers and pictures are NOT Fashion-MNIST's.\n"
    "For the real data: connect to the network and run `uv run fmdiff data`, or set FMDIFF_DATA to a folder that "
    "holds FashionMNIST/raw."
)


class DataError(Exception):
    """Name the missing or damaged file of the dataset, and the command that repairs it."""


def raw_folder() -> Path:
    """Return the folder for the four files: below FMDIFF_DATA if that is set, otherwise below `data/`."""
    checkout = Path(__file__).parents[1]
    default = checkout / "data" if (checkout / "pyproject.toml").exists() else Path("data")
    # Unlike Path.expanduser, this leaves ~name as it is where there is no such user.
    named = os.path.expanduser(os.environ.get("FMDIFF_DATA") or default)
    return Path(named).resolve() / "FashionMNIST" / "raw"


def read_bytes(raw: Path, name: str) -> bytes:
    """Return the unpacked content of `name` or `name`.gz in the folder `raw`; DataError if missing or damaged."""
    plain, packed = raw / name, raw / f"{name}.gz"
    path = plain if plain.is_file() else packed
    if not path.is_file():
        raise DataError(f"{plain} is missing (and {packed.name} too); {REPAIR}")
    try:
        content = plain.read_bytes() if path == plain else gzip.decompress(packed.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: not a complete gzip file ({error}); {REPAIR}") from None
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != ALL_FILES[name]:
        expected = f"expected MD5 {ALL_FILES[name]}, found {found} in {len(content):,} bytes"
        raise DataError(f"{path} is damaged: {expected}; {REPAIR}")
    return content


def read_tensor(raw: Path, name: str) -> Tensor:
    """Return a verified file as a tensor: images uint8 (N, 1, 28, 28) or labels int64 (N,)."""
    # MD5 has verified the file, so no parser is needed: a header of 16 bytes, or 8 for labels, then one byte per value.
    # To import torchvision's reader takes 8 seconds on two CPU cores, in the first cell of every lesson.
    values = torch.frombuffer(bytearray(read_bytes(raw, name)), dtype=torch.uint8)
    return values[16:].reshape(-1, 1, 28, 28) if "images" in name else values[8:].long()


def download(raw: Path, names: list[str]) -> None:
    """Download the dataset and move the files `names` into the folder `raw`, each complete or not at all.

    Raises OSError, HTTPException or torchvision's RuntimeError if the network or the folder fails.
    """
    from torchvision.datasets import FashionMNIST

    raw.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # torchvision sets none: behind a silent firewall the first cell would wait forever
    try:
        with tempfile.TemporaryDirectory(dir=raw, prefix="download-") as folder:
            with redirect_stdout(sys.stderr):  # stdout is for results, such as JSON
                fetched = Path(FashionMNIST(folder, download=True).raw_folder)
            for name in names:  # check all first: if one is damaged, the folder stays as it was
                read_bytes(fetched, name)
            for name in names:
                os.replace(fetched / name, raw / name)
    finally:
        socket.setdefaulttimeout(timeout)


def find_problems(raw: Path) -> dict[str, str]:
    """Check the four files in the folder `raw` and return the problems by file name."""
    problems = {}
    for name in ALL_FILES:
        try:
            read_bytes(raw, name)
        except DataError as error:
            problems[name] = str(error)
    return problems


def is_there(raw: Path) -> bool:
    """Return whether the folder `raw` holds any file of the dataset, even a damaged one."""
    return any((raw / f"{name}{end}").exists() for name in ALL_FILES for end in ("", ".gz"))


def dataset_name() -> str:
    """Return the name of what `load_fashion_mnist` has loaded: Fashion-MNIST or its stand-in."""
    return "Fashion-MNIST" if is_there(raw_folder()) else "drawn stand-in for Fashion-MNIST"


def describe_data() -> str:
    """Return the name of what a network is trained with, for a card: Fashion-MNIST or its stand-in."""
    return "Fashion-MNIST, training split" if is_there(raw_folder()) else dataset_name()


def fetch_fashion_mnist() -> Path | None:
    """Return the folder that holds Fashion-MNIST, after a download on first use; None if the download fails.

    Raises DataError if FMDIFF_DATA names a folder without FashionMNIST/raw.
    """
    raw = raw_folder()
    if os.environ.get("FMDIFF_DATA") and not raw.is_dir():
        raise DataError(
            f"FMDIFF_DATA is {os.environ['FMDIFF_DATA']}, but there is no folder {raw}; {REPAIR} there, or unset "
            "FMDIFF_DATA to use data/"
        )
    if is_there(raw):
        return raw
    try:
        print(f"Downloading Fashion-MNIST (30 MB) to {raw}", file=sys.stderr)
        download(raw, list(ALL_FILES))
    except (OSError, HTTPException, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        print(STANDIN_NOTICE.format(reason=reason), file=sys.stderr)
        return None
    return raw


def load_fashion_mnist(split: str = "train", device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Load a split as images uint8 (N, 1, 28, 28) and labels int64 (N,) on `device`.

    "train" is all 60,000 training images, "validation" the last `NUM_VALIDATION` of them, and "test" the 10,000 test
    images. The first use downloads the files; without a network, a stand-in is drawn, with a notice. Raises DataError
    for a missing or damaged file, ValueError for another split. (Xiao et al. 2017)
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; expected one of {', '.join(map(repr, SPLITS))}")
    stored = "train" if split == "validation" else split
    raw = fetch_fashion_mnist()
    if raw is None:
        images, labels = draw_garments(STANDIN_SIZES[stored], seed=list(FILES).index(stored))
    else:
        images, labels = (read_tensor(raw, name) for name in FILES[stored])
    if split == "validation":
        images, labels = images[-NUM_VALIDATION:], labels[-NUM_VALIDATION:]
    return images.to(device), labels.to(device)


def to_model(images: Tensor) -> Tensor:
    """Convert uint8 images, 0 to 255, to float32 in [-1, 1], the range of all networks in the series."""
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}; expected uint8 with values 0 to 255")
    return images.float().div_(127.5).sub_(1)


def to_uint8(x: Tensor) -> Tensor:
    """Convert floating-point images in [-1, 1] to uint8, 0 to 255; values outside are clipped."""
    if not x.is_floating_point():
        raise ValueError(f"images are {x.dtype}; expected floating point with values -1 to 1")
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def batches(
    images: Tensor, labels: Tensor, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one shuffled epoch of (x0 float32 in [-1, 1], y int64); the last batch may be smaller.

    `generator` is on the CPU and decides the order, which is thus the same on every device. The data stay where they
    are. Raises ValueError if batch_size is below 1, or if there are no images, or not one label for each.
    """
    if batch_size < 1 or len(images) != len(labels) or not len(images):
        raise ValueError(
            f"batch_size is {batch_size}, with {len(images)} images and {len(labels)} labels; "
            "expected at least 1 of each, and a label for each image"
        )
    order = torch.randperm(len(images), generator=generator).to(images.device)
    for index in order.split(batch_size):
        yield to_model(images.index_select(0, index)), labels[index]  # five times as fast as images[index] on a CPU
