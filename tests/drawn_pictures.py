"""Folders of pictures drawn by code, as people have them: one in order, one with all that can be wrong."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "cross", "square", "triangle")


def drawn(number: int, size: int = 32) -> tuple[Image.Image, str]:
    """Draw the picture of this number, one bright shape in any colour on a dark ground, and return it with its kind."""
    random, kind = np.random.default_rng(number), SHAPES[number % len(SHAPES)]
    ground, colour = (tuple(int(v) for v in random.integers(low, low + 90, 3)) for low in (0, 160))
    picture = Image.new("RGB", (size, size), ground)
    draw = ImageDraw.Draw(picture)
    x, y = random.uniform(0.35, 0.65, 2) * size
    r = random.uniform(0.18, 0.3) * size
    if kind == "circle":
        draw.ellipse([x - r, y - r, x + r, y + r], fill=colour)
    elif kind == "square":
        draw.rectangle([x - r, y - r, x + r, y + r], fill=colour)
    elif kind == "triangle":
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)
    else:
        draw.rectangle([x - r, y - r / 3, x + r, y + r / 3], fill=colour)
        draw.rectangle([x - r / 3, y - r, x + r / 3, y + r], fill=colour)
    return picture, kind


def write_shapes(folder: Path, number: int, size: int = 32) -> Path:
    """Write so many pictures as .png, each into the subfolder of its kind."""
    for k in range(number):
        picture, kind = drawn(k, size)
        (folder / kind).mkdir(parents=True, exist_ok=True)
        picture.save(folder / kind / f"{k:04d}.png")
    return folder


def write_mix(folder: Path, number: int = 60) -> Path:
    """Write pictures of many sizes, modes and formats, and beside them two damaged files and a text."""
    folder.mkdir(parents=True)
    for k in range(number):
        drawn(k, 20 + k % 30)[0].resize((20 + k % 30, 30 + k % 7)).save(folder / f"plain_{k}.jpg")
    picture = drawn(100, 48)[0]
    picture.quantize(8).save(folder / "palette.png")
    picture.putalpha(picture.convert("L"))
    picture.save(folder / "alpha.png")
    picture.convert("LA").save(folder / "grey_alpha.png")
    drawn(101)[0].convert("CMYK").save(folder / "cmyk.jpg")
    drawn(102)[0].convert("1").save(folder / "black_and_white.png")
    grey = np.asarray(drawn(103)[0].convert("L")).astype(np.uint16)
    Image.fromarray(grey * 257).save(folder / "sixteen_bits.png")
    upright = drawn(104, 40)[0].crop((0, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    upright.save(folder / "on_its_side.jpg", exif=exif)
    frames = [drawn(k)[0] for k in (105, 106)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    (folder / "again.jpg").write_bytes((folder / "plain_3.jpg").read_bytes())
    whole = (folder / "plain_5.jpg").read_bytes()
    (folder / "cut off.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "no picture.png").write_text("This is a text.")
    (folder / "notes.txt").write_text("Taken in spring.")
    (folder / ".DS_Store").write_bytes(b"\0")
    return folder
