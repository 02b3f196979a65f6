"""Pictures of one's own: a folder of image files, whose subfolders are kinds, or a .npz, read as images of one size.

A file may come from anyone: only Pillow's decoders of common formats read it, and what they cannot read is left out,
with the reason.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm.auto import tqdm

from fmdiff_helpers.batching import shows_bars, this_process
from fmdiff_helpers.entries import MOST_KINDS, MOST_PIXELS, describe_pictures, image_shape, own_pictures
from fmdiff_helpers.images import read_arrays, type_name, type_problem

# Ending -> format. Pillow knows more, but some of them run other programs.
FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".gif": "GIF", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF",
    ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM", ".pbm": "PPM",
}  # fmt: skip
DECODERS = tuple(dict.fromkeys(FORMATS.values()))
LEAST_PIXELS = 16  # in the width and the height of an image
LEAST = 50  # pictures: a tenth of them validates, on ten ranges of noise
FEW = 1000  # pictures: with fewer, samples tend to be copies of them
MOST_HELD_OUT = 2000  # for validation, and as many for the test
MOST_FILES = 500_000
LARGEST_PICTURE = 100_000_000  # pixels; a larger one may be made to fill the memory
LARGEST_FILE = 8 * 2**30  # bytes of the arrays of a .npz
ORIENTATION = 0x0112  # the tag of EXIF
COLOURLESS = 4  # in a grey picture, red, green and blue differ by at most so many of 255 steps


class One(NamedTuple):
    """A picture as it was read: pixels uint8 (size, size, 3), its own width and height, and whether it moves."""

    pixels: np.ndarray
    width: int
    height: int
    moves: bool


@dataclass
class Finds:
    """What was found while pictures were read, to tell the user."""

    sizes: list[tuple[int, int]] = field(default_factory=list)  # width and height of each
    damaged: dict[str, str] = field(default_factory=dict)  # file -> what is wrong with it
    others: list[str] = field(default_factory=list)  # files that are no pictures
    moving: int = 0  # pictures of which only the first frame was taken
    twice: int = 0  # pictures that were there already
    coloured: int = 0
    loose: int = 0  # pictures beside the subfolders, because of which there are no kinds


@dataclass(frozen=True)
class Pictures:
    """Images uint8 (N, 1 or 3, size, size), each once, with labels int64 (N,) and the names of their kinds, if any.

    They are in the order of their sha256. That is as good as any random order, and the same wherever the files are and
    whatever their names. The last tenth reports, as the test images do, and the tenth before it validates.
    """

    name: str
    images: Tensor
    labels: Tensor
    kinds: tuple[str, ...]
    finds: Finds

    @property
    def held_out(self) -> int:
        """Return how many images validate, and as many report: a tenth each, but at least ten and at most 2,000."""
        return min(MOST_HELD_OUT, max(LEAST // 5, len(self.images) // 10))

    def part(self, split: str) -> tuple[Tensor, Tensor]:
        """Return the images and labels of a split: "train", "validation" or "test"; no image is in two of them."""
        n, held = len(self.images), self.held_out
        chosen = {
            "train": slice(0, n - 2 * held),
            "validation": slice(n - 2 * held, n - held),
            "test": slice(n - held, n),
        }[split]
        return self.images[chosen], self.labels[chosen]

    @cached_property
    def sha256(self) -> str:
        """Return the sha256 of all pixels and labels, their shape and the names of the kinds."""
        digest = hashlib.sha256(json.dumps([self.images.shape[1:], self.kinds]).encode())
        for part in (self.images, self.labels):
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()

    def entry(self) -> dict:
        """Return what a card says of these pictures, as `entries` explains it."""
        return {
            "pictures": self.name,
            "number": len(self.images),
            "held_out": self.held_out,
            "shape": list(self.images.shape[1:]),
            "kinds": list(self.kinds),
            "sha256": self.sha256,
        }


def check_size(size: int) -> None:
    """Raise ValueError unless images of this width and height can be trained on."""
    if not LEAST_PIXELS <= size <= MOST_PIXELS or size % 2:
        raise ValueError(f"size is {size}; expected an even number from {LEAST_PIXELS} to {MOST_PIXELS}")


def check_enough(pictures: Pictures) -> None:
    """Raise ValueError if pictures are too few to hold some back and train on the rest."""
    n = len(pictures.images)
    if n < LEAST:
        raise ValueError(
            f"{pictures.name!r} holds {n} different pictures that can be read, too few to train on most of them and to "
            f"hold some back; expected at least {LEAST}, and better {FEW:,}"
        )


def fitting_batch(pictures: Pictures, batch_size: int) -> int:
    """Return a batch size, or a smaller one if there are fewer training pictures, which all processes can share."""
    n = len(pictures.part("train")[0])
    return min(batch_size, n - n % this_process().num_processes)


def name_of(place: Path | str) -> str:
    """Return what a card calls pictures: the last part of the way to their folder or file."""
    return printable(Path(place).resolve().name) or "pictures"


def printable(name: str) -> str:
    """Return a name of a file with "?" for what a terminal cannot show, or would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder is one that systems make for themselves, such as .DS_Store."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def stop_at(error: OSError) -> None:
    """Raise the error of a folder that cannot be read, which `os.walk` would leave out in silence."""
    raise error


def list_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each file below a folder, with the name of its subfolder: "" for a file at the top, else the first one."""
    for entry in sorted(folder.iterdir()):
        if is_hidden(entry.name):
            continue
        if not entry.is_dir():
            yield entry, ""
            continue
        for place, folders, names in os.walk(entry, onerror=stop_at):
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            yield from ((Path(place, name), entry.name) for name in sorted(names) if not is_hidden(name))


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture of any mode in RGB: 16 bits become 8, and what is transparent becomes white.

    ValueError for floating-point numbers, and for whole numbers that do not fit into 16 bits.
    """
    if image.mode == "F":
        raise ValueError("it holds floating-point numbers; convert it to 8 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65_535:
            raise ValueError(f"its values go from {values.min()} to {values.max()}; convert it to 8 bits")
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def fit(image: Image.Image, size: int) -> np.ndarray:
    """Return the middle square of a picture in RGB as uint8 (size, size, 3); one of that size stays as it is."""
    return np.asarray(ImageOps.fit(to_rgb(image), (size, size), Image.Resampling.BICUBIC))


def read_image(image: Image.Image, size: int) -> One:
    """Read an open picture, upright as its camera was held; ValueError if it is too large."""
    # MPO: a .jpg of many phones, with another, smaller picture behind the first.
    moves = image.format != "MPO" and getattr(image, "n_frames", 1) > 1
    width, height = image.size
    if width * height > LARGEST_PICTURE:
        raise ValueError(f"it has {width:,} x {height:,} pixels; expected at most 100 million")
    if image.getexif().get(ORIENTATION, 1) >= 5:  # the camera was held on its side
        width, height = height, width
    image.draft(None, (4 * size, 4 * size))  # a large .jpg is read at half its size or less, much faster
    return One(fit(ImageOps.exif_transpose(image), size), width, height, moves)


def read_picture(path: Path, size: int) -> One:
    """Read a file; ValueError, which says what is wrong, if it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd but readable files
            with Image.open(path, formats=DECODERS) as image:
                return read_image(image, size)
    except UnidentifiedImageError:
        reason = "it is empty" if path.stat().st_size == 0 else "no picture that can be read"
    except Image.DecompressionBombError:
        reason = "it has more than 100 million pixels"
    except MemoryError:
        raise
    except Exception as error:  # a damaged file raises any of a dozen errors
        strerror = getattr(error, "strerror", None)
        reason = " ".join(str(strerror or error or type(error).__name__).split())[:100]
    raise ValueError(reason)


def read_files(folder: Path, size: int, finds: Finds) -> Iterator[tuple[One, str]]:
    """Yield the pictures below a folder, each with its subfolder; note in `finds` what is none, or cannot be read."""
    listed = []
    for file, kind in list_files(folder):
        is_picture = file.suffix.lower() in FORMATS and (file.is_file() or file.is_symlink())
        listed.append((file, kind)) if is_picture else finds.others.append(printable(str(file.relative_to(folder))))
        if len(listed) + len(finds.others) > MOST_FILES:
            raise ValueError(f"{str(folder)!r} holds more than {MOST_FILES:,} files; name a folder of pictures")
    for file, kind in tqdm(listed, unit="picture", leave=False, disable=len(listed) < 500 or not shows_bars()):
        try:
            one = read_picture(file, size)
        except ValueError as error:
            finds.damaged[printable(str(file.relative_to(folder)))] = printable(str(error))
            continue
        yield one, printable(kind)


def read_npz(path: Path, size: int) -> Iterator[tuple[One, str]]:
    """Yield the pictures in a .npz, each with its label as a text, "" if there are none.

    `images` are uint8 (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W), and `labels`, if given, whole numbers (N,).
    ValueError for others.
    """
    arrays = read_arrays(path, LARGEST_FILE)
    images, labels = arrays["images"], arrays.get("labels")
    kind, shape = type_name(images), images.shape
    expected = "expected uint8 (N, H, W), (N, H, W, 3) or (N, 3, H, W), with values 0 to 255"
    if 0 in shape or kind != "uint8":
        found = f"{kind} of shape {shape}" if 0 in shape else type_problem(images, kind)
        raise ValueError(f"{str(path)!r}: images are {found}; {expected}")
    if len(shape) == 4 and shape[3] not in (1, 3) and shape[1] in (1, 3):
        images = np.moveaxis(images, 1, 3)
    if images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
        raise ValueError(f"{str(path)!r}: images are of shape {shape}; {expected}")
    if labels is not None and (labels.shape != shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0):
        least = f", from {labels.min()}" if labels.size else ""
        raise ValueError(
            f"{str(path)!r}: labels are {labels.dtype} of shape {labels.shape}{least}; "
            f"expected {shape[0]} whole numbers from 0, one for each image"
        )
    for k, image in enumerate(images):
        picture = Image.fromarray(np.ascontiguousarray(image.squeeze(-1) if image.shape[2:] == (1,) else image))
        yield One(fit(picture, size), picture.width, picture.height, False), "" if labels is None else str(labels[k])


def in_grey(pixels: np.ndarray) -> np.ndarray:
    """Return colours uint8 (H, W, 3) as grey uint8 (H, W, 1), weighed as the eye does (ITU-R BT.601)."""
    return ((pixels @ np.array([299, 587, 114]) + 500) // 1000).astype(np.uint8)[..., None]


def no_pictures(finds: Finds) -> str:
    """Say, for a message, what there is in place of pictures."""
    if finds.damaged:
        file, reason = next(iter(finds.damaged.items()))
        return f"no pictures, but {len(finds.damaged)} damaged files, the first one is {file} ({reason})"
    return f"no pictures, but {len(finds.others)} other files" if finds.others else "no pictures"


def gather(name: str, found: Iterable[tuple[One, str]], order: Callable, grey: bool, finds: Finds) -> Pictures:
    """Return pictures as images of one shape, each once; `order` is the key by which kinds are sorted."""
    pixels, subfolders = [], []
    for one, subfolder in found:
        pixels.append(one.pixels)
        subfolders.append(subfolder)
        finds.sizes.append((one.width, one.height))
        finds.moving += one.moves
        finds.coloured += bool((one.pixels.max(axis=2) - one.pixels.min(axis=2)).max() > COLOURLESS)
    if not pixels:
        raise ValueError(f"{name!r} holds {no_pictures(finds)}; expected files that end in {', '.join(FORMATS)}")
    finds.loose = subfolders.count("") if len({*subfolders}) > 1 else 0
    kinds = () if finds.loose or len({*subfolders}) == 1 else tuple(sorted({*subfolders}, key=order))
    if len(kinds) > MOST_KINDS:
        raise ValueError(f"{name!r} has {len(kinds):,} kinds; expected at most {MOST_KINDS:,} subfolders with pictures")
    images = np.stack([in_grey(each) for each in pixels] if grey or not finds.coloured else pixels)
    digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
    first = {digest: k for k, digest in reversed([*enumerate(digests)])}
    finds.twice = len(digests) - len(first)
    chosen = [first[digest] for digest in sorted(first)]
    number = {kind: k for k, kind in enumerate(kinds)}
    labels = torch.tensor([number.get(subfolders[k], 0) for k in chosen])
    return Pictures(name, torch.from_numpy(images[chosen]).movedim(3, 1).contiguous(), labels, kinds, finds)


def read_pictures(place: Path | str, size: int, grey: bool = False) -> Pictures:
    """Read a folder of pictures, or a .npz, as images of `size` x `size` pixels: the middle square of each picture.

    If each picture lies in a subfolder, the first ones below the folder are the kinds, as for torchvision's
    ImageFolder. The images are grey if all pictures are, or if `grey`. ValueError for a size that is none, and where
    there are no pictures.
    """
    check_size(size)
    place, finds, name = Path(place), Finds(), name_of(place)
    if place.suffix.lower() == ".npz" and not place.is_dir():
        return gather(name, read_npz(place, size), int, grey, finds)
    if not place.is_dir():
        found = "no folder and no .npz" if place.exists() else "not there"
        raise ValueError(f"{str(place)!r} is {found}; expected a folder of pictures, or a .npz with `images`")
    return gather(name, read_files(place, size, finds), str, grey, finds)


def read_same(name: str, card: dict, place: Path) -> Pictures:
    """Return the pictures at a place; ValueError unless a network was trained on just these."""
    about = own_pictures(card)
    if about is None:
        raise ValueError(f"{name!r} was not trained on pictures of your own; leave --images out")
    channels, height, _ = image_shape(card)
    pictures = read_pictures(place, height, grey=channels == 1)
    now = pictures.entry()
    if now["sha256"] != about["sha256"]:
        raise ValueError(
            f"{name!r} was trained on {describe_pictures(about)}, and {str(place)!r} holds {describe_pictures(now)}; "
            "name the pictures that it was trained on, unchanged"
        )
    return pictures
