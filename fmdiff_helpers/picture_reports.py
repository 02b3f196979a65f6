"""What `fmdiff data --folder` says of pictures of one's own, and what a training says of them before it begins."""

import shlex
import sys
from pathlib import Path
from statistics import median

from fmdiff_helpers.arguments import is_within, usual_folder
from fmdiff_helpers.batching import this_process
from fmdiff_helpers.pictures import FEW, LEAST, LEAST_PIXELS, Finds, Pictures, check_enough, read_pictures

USUAL = 32  # pixels: the size that is advised for larger pictures, and the one of a training that names none
NAMED = 5  # files in one line; `fmdiff data` names each damaged one
COUNTED = 20  # kinds in one line
RARE = 10  # pictures of a kind: with fewer, a network hardly learns it


def some(names: list[str], most: int = NAMED) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def describe_sizes(finds: Finds) -> str:
    """Say how large pictures are: "of 32 x 32 pixels", "from 20 x 30 to 640 x 480 pixels"."""
    low, high = (end(finds.sizes, key=lambda size: size[0] * size[1]) for end in (min, max))
    small, large = (f"{width:,} x {height:,}" for width, height in (low, high))
    return f"of {small} pixels" if len({*finds.sizes}) == 1 else f"from {small} to {large} pixels"


def describe_colours(finds: Finds) -> str:
    """Say how many pictures are in colour."""
    grey = len(finds.sizes) - finds.coloured
    if grey and finds.coloured:
        return f"{finds.coloured:,} in colour and {grey:,} in grey"
    return "in grey" if grey else "in colour"


def describe_kinds(pictures: Pictures) -> str:
    """Say which kinds there are, and how many of each; or why there are none."""
    if pictures.kinds:
        counts = pictures.labels.bincount(minlength=len(pictures.kinds)).tolist()
        named = [f"{kind} {count:,}" for kind, count in zip(pictures.kinds, counts, strict=True)]
        return f"Kinds: {len(named)}, each with its pictures: {some(named, COUNTED)}."
    if pictures.finds.loose:
        return f"No kinds, because {pictures.finds.loose:,} pictures lie beside the subfolders; move them into one."
    return "No kinds. If your pictures have some, put each kind into a subfolder of its own."


def describe_finds(finds: Finds) -> list[str]:
    """Say what is left out, file by file where one is damaged."""
    lines = [f"Left out, equal to another: {finds.twice:,}."] if finds.twice else []
    lines += [f"Left out: {file}: {reason}." for file, reason in finds.damaged.items()]
    lines += [f"Left out, no pictures: {some(finds.others)}."] if finds.others else []
    if any(name.lower().endswith(".npz") for name in finds.others):
        lines += ["A .npz is read alone: name the file itself in place of the folder."]
    lines += [f"Moving pictures: {finds.moving:,}; only the first frame is used."] if finds.moving else []
    long = sum(max(size) >= 2 * min(size) for size in finds.sizes)
    return lines + ([f"Long pictures: {long:,}; only the middle square is used."] if long else [])


def advised_size(finds: Finds) -> int:
    """Return the size to train at: that of the pictures, by the median of their shorter sides, from 16 up to 32."""
    side = int(median(min(size) for size in finds.sizes))
    return max(LEAST_PIXELS, min(USUAL, side - side % 4))


def describe_advice(pictures: Pictures, place: Path) -> list[str]:
    """Say how pictures are split, and which command trains on them."""
    if len(pictures.images) < LEAST:
        return [f"Too few to train on: expected at least {LEAST}, and better {FEW:,}. Add pictures."]
    size, held = advised_size(pictures.finds), pictures.held_out
    network = "patch_unet" if pictures.kinds else "unet"
    train = len(pictures.images) - 2 * held
    lines = [f"Training will see {train:,} of them; {held:,} are kept apart to choose by, and {held:,} to report with."]
    lines += [
        f"Next: fmdiff train {network} --images {shlex.quote(str(place))} --size {size}{elsewhere(place, network)}"
    ]
    return lines + warnings_of(pictures)


def elsewhere(place: Path, network: str) -> str:
    """Return an option --out, if a training would otherwise write among the pictures at a place."""
    usual = usual_folder(network, place)
    return f" --out {shlex.quote(str(place / '..' / usual.name))}" if is_within(usual, place) else ""


def warnings_of(pictures: Pictures) -> list[str]:
    """Return what a training should be told: that pictures are few, or that some kinds have few."""
    lines = [few_words(pictures)] if len(pictures.images) < FEW else []
    counts = pictures.labels.bincount(minlength=len(pictures.kinds)).tolist()
    rare = [kind for kind, count in zip(pictures.kinds, counts, strict=False) if count < RARE]
    if not rare:
        return lines
    return [*lines, f"WARNING: {len(rare):,} of {len(pictures.kinds):,} kinds have fewer than {RARE} pictures: "
            f"{some(rare)}. What is drawn with such a label may show another kind, or a copy. If the subfolders are no "
            "kinds, put all pictures into one folder."]  # fmt: skip


def few_words(pictures: Pictures) -> str:
    """Return a warning: what happens if pictures are few."""
    return (
        f"WARNING: {len(pictures.images):,} pictures are few. A network that sees the same pictures again and again "
        "learns them by heart, and what it draws becomes a copy of one of them. The weights that are kept are those "
        "with the lowest loss on pictures that it never saw, and `fmdiff evaluate` says how many samples are copies. "
        f"More pictures help most: {FEW:,} or more."
    )


def describe(pictures: Pictures, place: Path) -> str:
    """Return all that `fmdiff data --folder` says: a line for each fact, then the advice."""
    finds = pictures.finds
    n = len(finds.sizes)
    head = f"{pictures.name}: {n:,} pictures {describe_sizes(finds)}, {describe_colours(finds)}."
    return "\n".join([head, describe_kinds(pictures), *describe_finds(finds), *describe_advice(pictures, place)])


def pictures_to_train(place: Path, size: int | None, grey: bool) -> Pictures:
    """Read pictures for a training, and tell on stderr what is left out, and whether they are few.

    `size` None is the usual one. ValueError where there are not enough.
    """
    pictures = read_pictures(place, USUAL if size is None else size, grey)
    check_enough(pictures)
    damaged = [f"{file} ({reason})" for file, reason in pictures.finds.damaged.items()]
    lines = [f"NOTICE: left out are {some(damaged)}"] if damaged else []
    lines += warnings_of(pictures)
    for line in lines if this_process().is_main_process else ():
        print(line, file=sys.stderr)
    return pictures
