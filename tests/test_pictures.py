"""The claims of fmdiff_helpers.pictures: what is a picture is read as it looks, and what is none is named."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_pictures import SHAPES, drawn, write_mix, write_shapes
from PIL import Image

from fmdiff_helpers import pictures
from fmdiff_helpers.pictures import Pictures, check_enough, fit, read_picture, read_pictures


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("pictures") / "shapes", 60)


@pytest.fixture(scope="module")
def mix(tmp_path_factory) -> Path:
    return write_mix(tmp_path_factory.mktemp("pictures") / "mix")


def saved(picture: Image.Image, path: Path, **options) -> Path:
    picture.save(path, **options)
    return path


def seen(path: Path, size: int = 32) -> np.ndarray:
    """The picture of a file as the network sees it."""
    return read_picture(path, size).pixels


def in_order(images: torch.Tensor) -> list[bytes]:
    return sorted(image.numpy().tobytes() for image in images)


# A folder


def test_subfolders_are_kinds_and_each_picture_keeps_its_own_and_its_pixels(shapes):
    found = read_pictures(shapes, 32)
    assert found.name == "shapes" and found.kinds == SHAPES and found.images.shape == (60, 3, 32, 32)
    assert found.finds.sizes == [(32, 32)] * 60 and found.finds.coloured == 60
    expected = {np.asarray(drawn(k)[0]).tobytes(): drawn(k)[1] for k in range(60)}
    for image, label in zip(found.images, found.labels, strict=True):
        assert expected.pop(image.movedim(0, 2).numpy().tobytes()) == found.kinds[label]


def test_files_may_be_named_and_moved_and_nested_as_one_likes_but_another_picture_is_another_set(shapes, tmp_path):
    """The order, the split and the sha256 stay; a picture more, or a kind of another name, changes the last."""
    one = read_pictures(shapes, 32)
    for k, path in enumerate(sorted(shapes.rglob("*.png"))):
        place = tmp_path / "moved" / path.parent.name / ("deeper" if k % 2 else ".")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / f"{97 * k % 60}.PNG")
    other = read_pictures(tmp_path / "moved", 32)
    assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    assert one.entry() == other.entry() | {"pictures": "shapes"}
    drawn(60)[0].save(tmp_path / "moved" / "circle" / "new.png")
    assert read_pictures(tmp_path / "moved", 32).entry()["sha256"] != one.entry()["sha256"]
    (tmp_path / "moved" / "circle" / "new.png").unlink()
    (tmp_path / "moved" / "circle").rename(tmp_path / "moved" / "Circle")
    assert read_pictures(tmp_path / "moved", 32).entry()["sha256"] != one.entry()["sha256"]


def test_each_mode_and_format_is_read_and_what_is_none_is_named_with_the_reason(mix):
    found = read_pictures(mix, 32)
    assert found.finds.damaged.keys() == {"cut off.jpg", "no picture.png"} and found.finds.others == ["notes.txt"]
    assert found.finds.damaged["no picture.png"] == "no picture that can be read"
    assert "runcated" in found.finds.damaged["cut off.jpg"]
    assert (len(found.images), found.finds.twice, found.finds.moving, found.kinds) == (68, 1, 1, ())
    assert found.finds.coloured == 66 and len(found.finds.sizes) == 69


def test_pictures_beside_subfolders_and_in_a_single_subfolder_have_no_kinds(shapes, tmp_path):
    shutil.copytree(shapes, tmp_path / "x")
    drawn(60)[0].save(tmp_path / "x" / "loose.png")
    found = read_pictures(tmp_path / "x", 32)
    assert found.kinds == () and found.finds.loose == 1 and not found.labels.any()
    assert read_pictures(tmp_path, 32).kinds == () and read_pictures(tmp_path, 32).finds.loose == 0


def test_names_that_a_terminal_would_obey_are_shown_without_their_commands(tmp_path):
    for kind in ("a\nb", "c"):
        (tmp_path / kind).mkdir()
        drawn(len(kind))[0].save(tmp_path / kind / "x.png")
    (tmp_path / "c" / "\x1b[31m.png").touch()
    found = read_pictures(tmp_path, 32)
    assert found.kinds == ("a?b", "c") and found.finds.damaged == {"c/?[31m.png": "it is empty"}


# A picture


def test_what_is_transparent_becomes_white_in_every_mode(tmp_path):
    picture = Image.new("RGBA", (32, 32), (200, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (0, 0, 16, 32))
    palette = picture.convert("RGB").quantize(4)
    palette.info["transparency"] = palette.getpixel((31, 0))
    grey = Image.merge("LA", [Image.new("L", (32, 32), 0), picture.getchannel("A")])
    for name, each, left in (("a", picture, (0, 0, 255)), ("b", palette, (0, 0, 255)), ("c", grey, (0, 0, 0))):
        found = seen(saved(each, tmp_path / f"{name}.png"))
        assert tuple(found[5, 5]) == left and tuple(found[5, 28]) == (255, 255, 255), name


def test_sixteen_bits_become_eight_and_cmyk_becomes_rgb(tmp_path):
    levels = np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64
    found = seen(saved(Image.fromarray(levels), tmp_path / "x.png"))
    assert np.array_equal(found[..., 0], (levels / 257).round()) and np.array_equal(found[..., 0], found[..., 2])
    found = seen(saved(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), tmp_path / "x.jpg"))
    assert np.abs(found.astype(int) - (255, 0, 0)).max() < 40
    with pytest.raises(ValueError, match="floating-point numbers; convert it to 8 bits"):
        read_picture(saved(Image.new("F", (32, 32)), tmp_path / "x.tif"), 32)


def test_a_picture_is_upright_and_of_a_moving_one_the_first_frame_is_taken(tmp_path):
    picture, exif = Image.new("RGB", (64, 32), "black"), Image.Exif()
    picture.paste("white", (0, 0, 32, 32))  # left half, which is the top after a turn
    exif[0x0112] = 6
    one = read_picture(saved(picture, tmp_path / "x.jpg", exif=exif), 16)
    assert (one.width, one.height) == (32, 64)
    assert one.pixels[2].min() > 240 and one.pixels[13].max() < 15
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    one = read_picture(saved(frames[0], tmp_path / "x.gif", save_all=True, append_images=frames[1:]), 32)
    assert one.moves and tuple(one.pixels[0, 0]) == (255, 0, 0)


def test_of_a_long_picture_the_middle_square_is_taken():
    picture = Image.new("RGB", (96, 32), "red")
    picture.paste("blue", (32, 0, 64, 32))
    assert (fit(picture, 16)[:, 2:-2] == (0, 0, 255)).all()


@pytest.mark.parametrize(
    "content, said", [(b"", "it is empty"), (b"GIF89a", "."), (b"\x89PNG\r\n\x1a\n" + b"x" * 99, ".")]
)
def test_a_file_that_is_no_picture_is_one_reason(tmp_path, content, said):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        read_picture(tmp_path / "x.png", 32)
    assert 5 < len(str(error.value)) <= 100 and "\n" not in str(error.value)


def test_a_format_that_runs_programs_and_a_picture_that_fills_the_memory_are_not_read(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n")
    with pytest.raises(ValueError, match="no picture that can be read"):
        read_picture(tmp_path / "x.png", 32)
    monkeypatch.setattr(pictures, "LARGEST_PICTURE", 1000)
    with pytest.raises(ValueError, match="it has 32 x 32 pixels; expected at most 100 million"):
        read_picture(saved(drawn(0)[0], tmp_path / "y.png"), 32)


# Colour and grey


def test_grey_pictures_are_grey_images_and_colours_become_as_bright_as_the_eye_sees_them(shapes, tmp_path):
    for k in range(3):
        drawn(k)[0].convert("L").convert("RGB").save(tmp_path / f"{k}.png")
    plain = read_pictures(tmp_path, 32)
    assert plain.images.shape == (3, 1, 32, 32) and plain.finds.coloured == 0
    grey = read_pictures(shapes, 32, grey=True)
    assert grey.images.shape == (60, 1, 32, 32) and grey.finds.coloured == 60
    expected = torch.tensor(np.stack([np.asarray(drawn(k)[0].convert("L")) for k in range(60)]))
    difference = [np.frombuffer(a, np.uint8).astype(int) - np.frombuffer(b, np.uint8)
                  for a, b in zip(in_order(grey.images[:, 0]), in_order(expected), strict=True)]  # fmt: skip
    assert np.abs(difference).max() <= 1


# Splits


@pytest.mark.parametrize("n, held_out", [(50, 10), (101, 10), (500, 50), (30_000, 2000)])
def test_a_tenth_validates_a_tenth_reports_and_nothing_is_in_two_parts(n, held_out):
    images, labels = torch.zeros(n, 1, 1, 1, dtype=torch.uint8), torch.arange(n)
    found = Pictures("x", images, labels, (), pictures.Finds())
    train, validation, test = (found.part(split)[1] for split in ("train", "validation", "test"))
    assert found.held_out == len(validation) == len(test) == held_out
    assert torch.equal(torch.cat([train, validation, test]), labels)
    check_enough(found)


def test_the_order_is_as_good_as_random(shapes):
    """The kinds lie in the folder one after the other, and are mixed in each part."""
    found = read_pictures(shapes, 32)
    assert len(found.part("validation")[1].unique()) > 2 and len(found.part("test")[1].unique()) > 2


# .npz


@pytest.mark.parametrize("form", ["N H W", "N 1 H W", "N H W 1", "N H W 3", "N 3 H W"])
def test_a_npz_holds_what_a_folder_holds(shapes, tmp_path, form):
    folder = read_pictures(shapes, 32, grey="3" not in form)
    images = folder.images.numpy()
    images = {
        "N H W": images[:, 0],
        "N H W 1": images.transpose(0, 2, 3, 1),
        "N H W 3": images.transpose(0, 2, 3, 1),
    }.get(form, images)
    np.savez(tmp_path / "x.npz", images=images, labels=folder.labels.numpy() + 9)
    found = read_pictures(tmp_path / "x.npz", 32)
    assert torch.equal(found.images, folder.images) and torch.equal(found.labels, folder.labels)
    assert found.kinds == ("9", "10", "11", "12") and found.name == "x.npz"


# What is refused


def test_what_holds_no_pictures_or_too_few_is_refused_with_what_was_found(tmp_path):
    seven = read_pictures(write_shapes(tmp_path / "seven", 7), 32)
    with pytest.raises(ValueError, match="holds 7 different pictures that can be read, too few"):
        check_enough(seven)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    np.savez(tmp_path / "floats.npz", images=np.zeros((60, 8, 8)))
    np.savez(tmp_path / "long.npz", images=np.zeros((60, 8, 8, 5), np.uint8))
    np.savez(tmp_path / "labels.npz", images=np.zeros((60, 8, 8), np.uint8), labels=np.zeros(9, int))
    for place, said in {
        "empty": "'empty' holds no pictures; expected files that end in .png, .jpg",
        "nothing": "nothing' is not there; expected a folder of pictures, or a .npz",
        "file": "file' is no folder and no .npz; expected a folder",
        "floats.npz": "images are float64 from 0 to 0, .* expected uint8",
        "long.npz": r"images are of shape \(60, 8, 8, 5\); expected uint8 \(N, H, W\)",
        "labels.npz": r"labels are int64 of shape \(9,\), from 0; expected 60 whole numbers from 0",
    }.items():
        with pytest.raises(ValueError, match=said):
            read_pictures(tmp_path / place, 32)
    (tmp_path / "empty" / "x.png").touch()
    with pytest.raises(ValueError, match=r"but 1 damaged files, the first one is x.png \(it is empty\)"):
        read_pictures(tmp_path / "empty", 32)
    for size in (14, 33, 66):
        with pytest.raises(ValueError, match=f"size is {size}; expected an even number from 16 to 64"):
            read_pictures(tmp_path / "seven", size)


def test_a_folder_that_cannot_be_read_is_an_error_and_not_left_out(shapes, monkeypatch):
    closed, scan = sorted(part for part in shapes.iterdir() if part.is_dir())[1], os.scandir

    def scandir(path):
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(closed))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match=closed.name):
        read_pictures(shapes, 32)
