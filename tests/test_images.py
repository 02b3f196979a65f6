"""The claims of fmdiff_helpers.images: what cannot be meant is refused with the way to mend it, in all ways in."""

import io
import math
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fmdiff_helpers.images import check_images, check_labels, read_samples, warn_if_inverted
from fmdiff_helpers.metrics import Judge
from fmdiff_helpers.models.classifier import Classifier
from fmdiff_helpers.standin import draw_garments

GARMENTS, KINDS = (part.numpy() for part in draw_garments(30))
FLAT = GARMENTS[:, 0]


@pytest.mark.parametrize("images", [GARMENTS, FLAT, FLAT.astype(">u1"), np.ascontiguousarray(FLAT[::-1])[::-1]])
def test_arrays_and_tensors_with_or_without_a_channel_are_the_same_images(images):
    images.flags.writeable = False
    for found in (check_images(images), check_images(torch.tensor(np.array(images, order="C")))):
        assert found.dtype == torch.uint8 and found.numpy().tobytes() == GARMENTS.tobytes()
        assert found.shape == (30, 1, 28, 28)


UNIT = FLAT / np.float32(255)
WITH_NAN = np.where(np.arange(28) == 3, np.float32(math.nan), UNIT)


@pytest.mark.parametrize(
    "images, words",
    [
        (UNIT, "float32 from 0 to 1, which looks like 0 to 1; multiply by 255, round"),
        (UNIT.astype(np.float16) * 2 - 1, "float16 from -1 to 1, which looks like -1 to 1; clip, add 1"),
        (FLAT.astype(float), "float64 from 0 to 255, which looks like 0 to 255; round and convert to uint8"),
        (FLAT * 9.0, "float64 from 0 to 2295; expected"),
        (WITH_NAN, "float32 with NaN or infinite values"),
        (np.where(UNIT > 0.5, np.float32(math.inf), UNIT), "float32 with NaN or infinite values"),
        (FLAT > 127, "bool; multiply by 255"),
        (FLAT.astype(np.int64), "int64 from 0 to 255; convert to uint8"),
        (FLAT.astype(np.int16) - 9, "int16 from -9 to 246; expected"),
        (FLAT.astype(object), "object; expected uint8"),
        (FLAT.astype(str), "str96; expected uint8"),
        (FLAT.tolist(), "list; expected uint8"),
        (FLAT // 200, "hold only 0 and 1; multiply by 255"),
        (FLAT[0], "of shape (28, 28), one image alone"),
        (FLAT.reshape(-1, 784), "of shape (30, 784); reshape them"),
        (np.stack([FLAT] * 3, 3), "of shape (30, 28, 28, 3), channels last; make them grey"),
        (np.stack([FLAT] * 3, 1), "of shape (30, 3, 28, 28), several channels; make them grey"),
        (np.pad(FLAT, ((0, 0), (2, 2), (2, 2))), "of shape (30, 32, 32); crop or scale"),
        (np.zeros((5, 5, 5, 28, 28), np.uint8), "of shape (5, 5, 5, 28, 28); crop"),
    ],
)
def test_images_that_cannot_be_meant_are_refused_with_what_was_found_and_how_to_mend_it(images, words):
    with pytest.raises(ValueError, match="^images (are )?" + re.escape(words)) as error:
        check_images(images)
    assert "expected uint8 (N, 28, 28) or (N, 1, 28, 28), with values 0 to 255" in str(error.value)
    if not isinstance(images, list) and images.dtype.kind in "fiub":
        with pytest.raises(ValueError, match=f"^{re.escape(str(error.value))}$"):
            check_images(torch.tensor(images))


def test_no_images_or_too_few_are_refused():
    for shape in ((0, 28, 28), (3, 0, 28), ()):
        with pytest.raises(ValueError, match=r"^there are no images, but float64 of shape \("):
            check_images(np.zeros(shape))
    with pytest.raises(ValueError, match=r"^there are 30 images; expected at least 31"):
        check_images(GARMENTS, least=31)


@pytest.mark.parametrize("inverted", [False, True])
def test_inverted_images_get_a_warning_and_no_others(capsys, inverted):
    noise = np.random.default_rng(0).integers(0, 256, FLAT.shape, np.uint8)
    for images in (FLAT, noise):
        warn_if_inverted(check_images(255 - FLAT if inverted else images))
        said = capsys.readouterr()
        assert said.out == "" and ("look inverted" in said.err) == inverted and ("255 - images" in said.err) == inverted


@pytest.mark.parametrize(
    "labels, words",
    [
        (KINDS[:9], "labels are int64 of shape (9,); expected 30 whole numbers from 0 to 9"),
        (KINDS[:, None], "labels are int64 of shape (30, 1)"),
        (KINDS + 1, "labels go from 1 to 10"),
        (KINDS - 1, "labels go from -1 to 8"),
        (KINDS / 1, "labels are float64 of shape (30,)"),
        (KINDS > 3, "labels are bool of shape (30,)"),
        ([1] * 30, "labels are list; expected 30"),
    ],
)
def test_labels_are_a_whole_number_from_0_to_9_for_each_image(labels, words):
    with pytest.raises(ValueError, match="^" + re.escape(words)):
        check_labels(labels, 30)


@pytest.mark.parametrize("labels", [KINDS.astype(np.uint8), KINDS.astype(">i4"), torch.tensor(KINDS).int()])
def test_labels_of_any_integer_type_are_int64(labels):
    found = check_labels(labels, 30)
    assert found.dtype == torch.int64 and found.tolist() == KINDS.tolist()


def test_the_judge_takes_what_a_file_holds_and_refuses_the_rest(capsys):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = Judge(Classifier(width=4).eval(), *(draw_garments(100, seed)[0] for seed in (1, 2)))
    expected = judge.measure(torch.tensor(GARMENTS), torch.tensor(KINDS))
    assert judge.measure(FLAT, KINDS.astype(np.uint8)) == expected
    judge.measure(255 - FLAT)
    assert capsys.readouterr().err.count("look inverted") == 1
    for images, labels in ((UNIT, None), (FLAT[:16], None), (FLAT, KINDS[:9])):
        with pytest.raises(ValueError, match=r"expected (uint8|at least 17|30 whole)"):
            judge.measure(images, labels)


# Files


class Trap:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


def packed(**arrays) -> bytes:
    """Return the bytes of a .npz file."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def damaged() -> bytes:
    """Return a .npz file in which a byte of an image has changed."""
    content = bytearray(packed(images=FLAT))
    content[5000] ^= 1
    return bytes(content)


def too_large() -> bytes:
    """Return a small .npz file that would fill a gigabyte of memory."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("images.npy", "w") as part:
        for _ in range(1000):
            part.write(bytes(2**20))
    return file.getvalue()


def test_images_and_labels_of_a_file_are_read(tmp_path):
    (tmp_path / "a.npz").write_bytes(packed(images=FLAT, labels=KINDS, more=np.array("else")))
    images, labels = read_samples(tmp_path / "a.npz")
    assert images.numpy().tobytes() == GARMENTS.tobytes() and labels.tolist() == KINDS.tolist()
    (tmp_path / "b.npz").write_bytes(packed(images=GARMENTS))
    assert read_samples(tmp_path / "b.npz")[1] is None


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "is not there; expected a .npz file"),
        (b"", "is no .npz file, or damaged; write it with `fmdiff sample NAME -o x.npz` or numpy.savez_compressed("),
        (pickle.dumps(FLAT), "is no .npz file, or damaged"),
        (packed(images=FLAT)[:9000], "is no .npz file, or damaged"),
        (damaged(), "cannot be read (Bad CRC-32"),
        (too_large(), "cannot be read (its arrays take 1,048,576,000 bytes; expected at most 376,320,000)"),
        (packed(samples=FLAT, y=KINDS), "holds samples, y, but no `images`"),
        (packed(), "holds nothing, but no `images`"),
        (packed(images=np.array([Trap()])), "cannot be read (Object arrays cannot be loaded when allow_pickle=False)"),
        (packed(images=FLAT, labels=np.array([Trap()])), "cannot be read (Object arrays cannot be loaded"),
        (packed(images=UNIT), ": images are float32 from 0 to 1"),
        (packed(images=FLAT, labels=KINDS[1:]), ": labels are int64 of shape (29,); expected 30"),
        (packed(images=FLAT[:10]), ": there are 10 images; expected at least 20"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_refused_and_nothing_is_unpickled(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("x.npz").write_bytes(content)
    with pytest.raises(ValueError, match="^'x.npz':? " + re.escape(words.removeprefix(": "))):
        read_samples(Path("x.npz"), least=20)
    assert not Path("unpickled").exists()


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"is no file; expected a \.npz file"):
        read_samples(tmp_path)
