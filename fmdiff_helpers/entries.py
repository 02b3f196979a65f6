"""The entries of a card: do they make sense, and what does the one about the data say?

A card's entry "data" is the name of a dataset of ours or, for pictures of one's own, a dict:

    pictures  the name of their folder or file, without the way to it
    number    how many there are
    held_out  how many of them are for validation, and as many again for the test; training sees neither
    shape     of each as the network sees it: [channels, height, width], 1 channel for grey and 3 for colour
    kinds     their names, in the order of the labels; an empty list where there are none
    sha256    of all pixels, labels and names of kinds
"""

import inspect
from collections.abc import Callable
from reprlib import repr as shorten  # a value may be long or deeply nested
from typing import Any

MOST_KINDS = 1000
MOST_PIXELS = 64  # in the width and the height of a picture
GARMENT = (1, 28, 28)  # the shape of an image of Fashion-MNIST
# The least and the most that a whole number in a card may be; 1 to 4096 for those not listed.
LIMITS = {"T": (2, 100_000), "depth": (1, 32), "image_size": (1, 128), "mults": (1, 64), "num_classes": (0, MOST_KINDS)}


def expect(name: str, value: Any, is_right: bool, expected: str) -> None:
    """Raise ValueError, with the value and what was expected, unless it is right."""
    if not is_right:
        raise ValueError(f"{name} is {shorten(value)}; expected {expected}")


def check_value(name: str, value: Any, kind: Any) -> None:
    """Raise ValueError unless a value has the type `kind` and a sensible size; a list stands for a tuple."""
    low, high = LIMITS.get(name, (1, 4096))
    if kind is int:
        expect(name, value, type(value) is int and low <= value <= high, f"a whole number from {low} to {high}")
    elif kind is float:
        is_right = type(value) in (int, float) and 0 <= value <= 1e6  # written this way, nan is wrong too
        expect(name, value, is_right, "a number from 0 to 1,000,000")
    elif kind is str:
        expect(name, value, type(value) is str and len(value) <= 100, "a text of at most 100 characters")
    elif kind in (bool, dict):
        expect(name, value, type(value) is kind, {bool: "true or false", dict: "a dict"}[kind])
    else:
        expect(name, value, type(value) in (list, tuple) and 1 <= len(value) <= 8, "a list of 1 to 8 whole numbers")
        for number in value:
            check_value(name, number, int)


def check_arguments(what: str, function: Callable, arguments: dict, kinds: int = 10) -> None:
    """Raise ValueError unless `function` takes these arguments, by their names and the types in its signature.

    `kinds` is how many kinds of images there are. Networks that can do without labels may also have none.
    """
    # A process also gets its card and device, which do not stand among its arguments.
    known = {k: v for k, v in inspect.signature(function).parameters.items() if k not in ("card", "device")}
    for name in arguments.keys() - known:
        raise ValueError(f"{what} takes no {shorten(name)}; expected {', '.join(known) or 'no arguments'}")
    for name, parameter in known.items():
        if name in arguments:
            check_value(name, arguments[name], parameter.annotation)
        elif parameter.default is parameter.empty:
            raise ValueError(f"{what} needs {name}, which is missing")
    if "num_classes" in known:
        usual = known["num_classes"].default
        found, right = arguments.get("num_classes", usual), sorted({kinds, *([0] if usual == 0 else [])})
        expect("num_classes", found, found in right, " or ".join(map(str, right)))


def check_sha256(name: str, value: Any) -> None:
    """Raise ValueError unless a value may be a sha256."""
    is_right = isinstance(value, str) and len(value) <= 64 and set(value) <= set("0123456789abcdef")
    expect(name, value, is_right, "at most 64 hexadecimal digits")


def check_data(data: Any) -> None:
    """Raise ValueError unless what a card says of its data is None, a text, or a dict about pictures of one's own."""
    if data is None or isinstance(data, str):
        return
    entries = ("pictures", "number", "held_out", "shape", "kinds", "sha256")
    is_right = isinstance(data, dict) and data.keys() == set(entries)
    expect("data", data, is_right, f"a text, or a dict with {', '.join(entries)}")
    for name in ("number", "held_out"):
        is_right = type(data[name]) is int and 1 <= data[name] <= 1e9
        expect(f"data: {name}", data[name], is_right, "a whole number from 1 to 1,000,000,000")
    shape, kinds = data["shape"], data["kinds"]
    is_right = isinstance(shape, list) and len(shape) == 3 and all(type(size) is int for size in shape)
    is_right = is_right and shape[0] in (1, 3) and all(1 <= size <= MOST_PIXELS for size in shape[1:])
    expect("data: shape", shape, is_right, f"[1 or 3, height, width] of at most {MOST_PIXELS} pixels")
    is_right = isinstance(kinds, list) and len(kinds) <= MOST_KINDS and len({*map(str, kinds)}) == len(kinds)
    expect("data: kinds", kinds, is_right, f"a list of at most {MOST_KINDS} different names")
    for name in (data["pictures"], *kinds):
        is_right = isinstance(name, str) and 0 < len(name) <= 255 and "/" not in name and name.isprintable()
        expect("data: a name", name, is_right, "a text of 1 to 255 characters that can be printed, without a slash")
    check_sha256("data: sha256", data["sha256"])


def own_pictures(card: dict) -> dict | None:
    """Return what a card says of the pictures that its network was trained on; None where they are not one's own."""
    data = card.get("data")
    return data if isinstance(data, dict) else None


def image_shape(card: dict) -> tuple[int, ...]:
    """Return the shape of the images of a card's network, (channels, height, width): garments, or one's own."""
    own = own_pictures(card)
    return tuple(own["shape"]) if own else GARMENT


def number_of_kinds(card: dict) -> int:
    """Return how many kinds of images a card's data have: ten, or as many as one's own pictures have, perhaps 0."""
    own = own_pictures(card)
    return len(own["kinds"]) if own else 10


def describe_pictures(data: dict) -> str:
    """Return a card's entry about pictures of one's own as a few words."""
    channels, height, width = data["shape"]
    kinds = f", {len(data['kinds'])} kinds" if data["kinds"] else ""
    colour = "in colour" if channels == 3 else "in grey"
    about = f"{data['number']:,} pictures of {data['pictures']!r}, {width} x {height}, {colour}{kinds}"
    return f"{about} (sha256 {data['sha256'][:8]})"


def without_place(entry: Any) -> Any:
    """Return an entry of a card, but of an autoencoder only the sha256: it is the same one after it has moved."""
    return entry["sha256"] if isinstance(entry, dict) and "sha256" in entry else entry


def brief(entry: Any) -> str:
    """Return an entry of a card for a message, cut where it is long."""
    shown = describe_pictures(entry) if isinstance(entry, dict) and "pictures" in entry else repr(entry)
    return shown if len(shown) <= 200 else f"{shown[:200]}..."
