"""fmdiff_helpers.export: each pixel in its place, in files that are complete or not there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fmdiff_helpers.export import grid, save_animation, save_images


def draw(n: int, seed: int = 0, height: int = 28, width: int = 28) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 1, height, width), generator=generator, dtype=torch.uint8)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("L"))


def read_frames(path: Path, kind: str) -> tuple[list[np.ndarray], list[int], int]:
    """Return an animation's frames, the milliseconds of each, and how often it is shown, 0 for without end."""
    frames, durations = [], []
    with Image.open(path) as animation:
        for k in range(animation.n_frames):
            animation.seek(k)
            animation.load()
            frames.append(pixels(animation))
            durations.append(animation.info.get("duration"))
        assert animation.format == kind
        return frames, durations, animation.info.get("loop")


SQUARES = [(1, 1, 1), (2, 1, 2), (4, 2, 2), (5, 2, 3), (9, 3, 3), (10, 3, 4), (12, 3, 4), (13, 4, 4), (100, 10, 10)]
ROWS = [(20, 2, 10), (23, 3, 10), (3, 1, 10), (3, 3, 1)]


@pytest.mark.parametrize(
    "n, rows, columns, given",
    [(*square, None) for square in SQUARES] + [(n, rows, columns, columns) for n, rows, columns in ROWS],
)
@pytest.mark.parametrize("scale", [1, 2])
def test_grid_puts_the_images_row_by_row_with_white_around(n, rows, columns, given, scale):
    """Each image of 4x3 pixels has a white line at its right and at its foot; what no image fills is white."""
    images = draw(n, height=4, width=3)
    expected = np.full((rows * 5, columns * 4), 255, dtype=np.uint8)
    for k, image in enumerate(images[:, 0].numpy()):
        row, column = divmod(k, columns)
        expected[row * 5 : row * 5 + 4, column * 4 : column * 4 + 3] = image
    picture = grid(images, given, scale)
    assert picture.mode == "L" and picture.size == (columns * 4 * scale, rows * 5 * scale)
    for down in range(scale):
        for right in range(scale):
            np.testing.assert_array_equal(pixels(picture)[down::scale, right::scale], expected)


def test_a_pixel_is_three_pixels_wide():
    assert grid(draw(5)).size == (3 * 29 * 3, 2 * 29 * 3)


@pytest.mark.parametrize("columns", [None, 4])
def test_a_png_holds_the_pixels_of_the_grid(tmp_path, columns):
    images = draw(5)
    save_images(tmp_path / "samples.png", images, columns=columns)
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.format == "PNG" and picture.mode == "L"
        np.testing.assert_array_equal(pixels(picture), pixels(grid(images, columns)))


@pytest.mark.parametrize("labels", [None, [7, 0, 9]])
def test_an_npz_holds_the_images_as_they_are_and_labels_where_there_are_some(tmp_path, labels):
    images = draw(3, height=28, width=20)
    save_images(tmp_path / "samples.npz", images, labels if labels is None else torch.tensor(labels))
    with np.load(tmp_path / "samples.npz") as arrays:
        found = dict(arrays)
    assert found["images"].dtype == np.uint8
    np.testing.assert_array_equal(found.pop("images"), images[:, 0].numpy())
    assert {name: array.tolist() for name, array in found.items()} == ({"labels": labels} if labels else {})


def test_images_in_colour_are_a_picture_in_colour_also_below_names_and_channels_come_last_in_a_npz(tmp_path):
    images = torch.cat([draw(4), draw(4, seed=1), draw(4, seed=2)], dim=1)
    save_images(tmp_path / "x.npz", images)
    save_images(tmp_path / "x.png", images, columns=2, heads=["a", "b"])
    with np.load(tmp_path / "x.npz") as arrays:
        np.testing.assert_array_equal(arrays["images"], images.permute(0, 2, 3, 1).numpy())
    with Image.open(tmp_path / "x.png") as picture:
        found = np.asarray(picture)
    np.testing.assert_array_equal(found[24:][:84, :84], images[0].permute(1, 2, 0).numpy().repeat(3, 0).repeat(3, 1))
    assert (found[0, 0] == 255).all() and found.shape[2] == 3


def test_an_npz_of_plain_pictures_is_packed(tmp_path):
    save_images(tmp_path / "black.npz", torch.zeros(100, 1, 28, 28, dtype=torch.uint8))
    assert (tmp_path / "black.npz").stat().st_size < 100 * 28 * 28 / 10


def test_names_stand_above_their_columns_and_the_grid_below_is_as_it_was(tmp_path):
    images, heads = draw(8), ["Dress", "", "Ankle boot", "Bag"]
    save_images(tmp_path / "named.png", images, columns=4, heads=heads)
    with Image.open(tmp_path / "named.png") as picture:
        found = pixels(picture)
    plain = pixels(grid(images, 4))
    strip, below = np.split(found, [len(found) - len(plain)])
    np.testing.assert_array_equal(below, plain)
    for head, column in zip(heads, np.split(strip, 4, axis=1), strict=True):
        ink = (column < 128).any(axis=0).nonzero()[0]
        assert (len(ink) > 0) == bool(head)
        if head:  # in the middle
            assert abs(ink.min() + ink.max() - column.shape[1]) < 6


def partly_changed() -> list[torch.Tensor]:
    frames = [torch.zeros(9, 1, 28, 28, dtype=torch.uint8)]
    for k in range(9):
        frames.append(frames[-1].clone())
        frames[-1][k] = draw(1, k)
    return frames


FILMS = {"changed": [draw(5, seed) for seed in range(4)], "changed in places": partly_changed(), "single": [draw(2)]}


@pytest.mark.parametrize("ending, kind", [(".gif", "GIF"), (".webp", "WEBP")])
@pytest.mark.parametrize("film", FILMS)
@pytest.mark.parametrize("given", [(), (120, 4)])
def test_an_animation_holds_each_frame_exactly_loops_and_rests_on_the_last(tmp_path, ending, kind, film, given):
    frames, path = FILMS[film], tmp_path / f"steps{ending}"
    save_animation(path, frames, *given)
    milliseconds, columns = given or (80, None)
    found, durations, loop = read_frames(path, kind)
    if len(frames) > 1:  # a single one is a plain picture
        assert durations == [milliseconds] * (len(frames) - 1) + [2000] and loop == 0
    for picture, frame in zip(found, frames, strict=True):
        np.testing.assert_array_equal(picture, pixels(grid(frame, columns)))


def save(path: Path, images: torch.Tensor) -> None:
    if path.suffix in (".gif", ".webp"):
        save_animation(path, [images, images.flip(0)])
    else:
        save_images(path, images)


every_ending = pytest.mark.parametrize("ending", [".png", ".npz", ".gif", ".webp"])


@every_ending
def test_a_file_has_the_name_it_was_given_takes_the_place_of_another_and_is_alone(tmp_path, ending):
    path, other = tmp_path / "new" / f"samples of v1.5{ending}", tmp_path / f"other{ending}"
    save(path, draw(9))
    save(path, draw(3, seed=1))
    save(other, draw(3, seed=1))
    assert path.read_bytes() == other.read_bytes() and list(path.parent.iterdir()) == [path]


@every_ending
def test_a_write_that_fails_leaves_the_file_of_before_and_nothing_else(tmp_path, monkeypatch, ending):
    def fail(self, file, *args, **kwargs):
        with open(file, "wb") if isinstance(file, Path) else file as opened:
            opened.write(b"half a fi")
        raise OSError(28, "No space left on device")

    path = tmp_path / f"samples{ending}"
    save(path, draw(3))
    before = path.read_bytes()
    monkeypatch.setattr(Image.Image, "save", fail)
    monkeypatch.setattr(np, "savez_compressed", lambda file, **arrays: fail(None, file))
    with pytest.raises(OSError, match="No space left"):
        save(path, draw(3, seed=1))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
