"""fmdiff_helpers.data: intact files or a clear error, the stand-in without a network, exact ranges."""

import contextlib
import gzip
import hashlib
import http.client
import socket
import struct
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch.testing import assert_close

from fmdiff_helpers import data
from fmdiff_helpers.data import DataError, batches, load_fashion_mnist, raw_folder, to_model, to_uint8

FIRST_LABELS = {"train": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5], "test": [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]}
SIZES = {"train": 60_000, "test": 10_000}
SMALL_SIZES = {"train": 30, "test": 20}

every_split = pytest.mark.parametrize("split", SIZES)
every_file = pytest.mark.parametrize("name", data.ALL_FILES)


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def idx_file(table: torch.Tensor) -> bytes:
    """The bytes of an IDX file: two zeros, 8 for uint8, the number of dimensions, the sizes, the values."""
    return struct.pack(f">HBB{table.ndim}I", 0, 8, table.ndim, *table.shape) + table.numpy().tobytes()


def flip_byte(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def fake_dataset(contents: dict[str, bytes], error: BaseException | None = None, log: list | None = None) -> type:
    """A stand-in for torchvision's FashionMNIST: writes one file, raises `error` if there is one, writes the rest."""

    class FashionMNIST:
        def __init__(self, root, download):
            self.raw_folder = Path(root) / "FashionMNIST" / "raw"
            self.raw_folder.mkdir(parents=True)
            if log is not None:
                log.append(socket.getdefaulttimeout())
            for name, content in contents.items():
                (self.raw_folder / name).write_bytes(content)
                (self.raw_folder / f"{name}.gz").write_bytes(b"torchvision keeps the packed file too")
                if error is not None:
                    raise error

    return FashionMNIST


@pytest.fixture(autouse=True)
def serve(monkeypatch):
    """Return a function that says what a download gives; before it is called, no test can download."""

    def serve(*args, **kwargs):
        monkeypatch.setattr("torchvision.datasets.FashionMNIST", fake_dataset(*args, **kwargs))

    serve({"a test must not download": b""}, AssertionError("a test tried to download"))
    return serve


@pytest.fixture
def small(tmp_path, monkeypatch) -> dict[str, bytes]:
    """Four small files in the place of Fashion-MNIST's; FMDIFF_DATA names a folder that is ready for them."""
    rng = torch.Generator().manual_seed(0)
    tables = []
    for n in SMALL_SIZES.values():
        tables.append(torch.randint(0, 256, (n, 28, 28), generator=rng, dtype=torch.uint8))
        tables.append(torch.randint(0, 10, (n,), generator=rng, dtype=torch.uint8))
    contents = dict(zip(data.ALL_FILES, map(idx_file, tables), strict=True))
    files = {split: {name: md5(contents[name]) for name in data.FILES[split]} for split in data.FILES}
    monkeypatch.setattr(data, "FILES", files)
    monkeypatch.setattr(data, "ALL_FILES", files["train"] | files["test"])
    monkeypatch.setattr(data, "STANDIN_SIZES", SMALL_SIZES)
    monkeypatch.setenv("FMDIFF_DATA", str(tmp_path))
    raw_folder().mkdir(parents=True)
    return contents


@pytest.fixture
def fresh(small, tmp_path, monkeypatch) -> Path:
    """A fresh machine: FMDIFF_DATA is not set and the default folder is not there yet."""
    raw = tmp_path / "fresh" / "FashionMNIST" / "raw"
    monkeypatch.delenv("FMDIFF_DATA")
    monkeypatch.setattr(data, "raw_folder", lambda: raw)
    return raw


def write(contents: dict[str, bytes], packed: bool = False) -> None:
    for name, content in contents.items():
        path = raw_folder() / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content, 1) if packed else content)


# The real dataset


@every_split
def test_the_real_split_has_its_shapes_its_classes_and_its_first_labels(real_raw, split):
    images, labels = load_fashion_mnist(split)
    assert images.shape == (SIZES[split], 1, 28, 28) and images.dtype == torch.uint8
    assert labels.shape == (SIZES[split],) and labels.dtype == torch.int64
    assert labels.bincount().tolist() == [SIZES[split] // 10] * 10
    assert labels[:10].tolist() == FIRST_LABELS[split]
    assert images.min() == 0 and images.max() == 255
    assert (images[:, 0, 0, 0] == 0).float().mean() > 0.9, "a garment stands on black"


@every_split
def test_our_tensors_are_those_of_torchvisions_own_reader(real_raw, tmp_path, split):
    from torchvision.datasets.mnist import FashionMNIST

    below = tmp_path / "FashionMNIST" / "raw"
    below.mkdir(parents=True)
    for name in data.ALL_FILES:
        (below / name).write_bytes(data.read_bytes(real_raw, name))
    theirs = FashionMNIST(tmp_path, train=split == "train", download=False)
    images, labels = load_fashion_mnist(split)
    assert torch.equal(images[:, 0], theirs.data) and torch.equal(labels, theirs.targets)


def test_the_stand_in_has_the_sizes_of_the_real_dataset_and_each_class_has_a_name():
    assert data.STANDIN_SIZES == SIZES
    assert len(set(data.CLASS_NAMES)) == 10


def test_validation_is_the_last_2000_of_the_real_training_images(real_raw):
    (images, labels), (train, train_labels) = (load_fashion_mnist(split) for split in ("validation", "train"))
    assert data.NUM_VALIDATION == len(images) == len(labels) == 2000
    assert torch.equal(images, train[58_000:]) and torch.equal(labels, train_labels[58_000:])


# Reading files


@pytest.mark.parametrize("error", [None, URLError("no network")], ids=["files", "stand-in"])
def test_validation_is_the_end_of_the_training_split_of_files_and_of_the_stand_in(
    small, fresh, serve, monkeypatch, error
):
    serve(small, error)
    monkeypatch.setattr(data, "NUM_VALIDATION", 7)
    (images, labels), (train, train_labels) = (load_fashion_mnist(split) for split in ("validation", "train"))
    assert images.shape == (7, 1, 28, 28) and len(train) == SMALL_SIZES["train"]
    assert torch.equal(images, train[-7:]) and torch.equal(labels, train_labels[-7:])


@every_split
@pytest.mark.parametrize("packed", [False, True])
def test_files_give_the_tensors_that_were_written_on_any_device_and_stay_as_they_are(small, split, packed):
    write(small, packed)
    before = {path: path.stat().st_mtime_ns for path in raw_folder().iterdir()}
    images, labels = load_fashion_mnist(split)
    pixels, classes = (small[name] for name in data.FILES[split])
    assert images.shape == (SMALL_SIZES[split], 1, 28, 28) and images.numpy().tobytes() == pixels[16:]
    assert labels.dtype == torch.int64 and labels.tolist() == list(classes[8:])
    assert data.describe_data() == "Fashion-MNIST, training split"
    assert [table.device.type for table in load_fashion_mnist(split, device="meta")] == ["meta", "meta"]
    assert {path: path.stat().st_mtime_ns for path in raw_folder().iterdir()} == before


DAMAGES = {
    "a byte changed": (False, flip_byte),
    "cut off": (False, lambda content: content[:-1]),
    "one byte too many": (False, lambda content: content + b"\0"),
    "empty": (False, lambda content: b""),
    "packed, a byte changed": (True, lambda content: flip_byte(gzip.compress(content))),
    "packed, cut off": (True, lambda content: gzip.compress(content)[:-9]),
    "packed, empty": (True, lambda content: b""),
    "packed, other content": (True, lambda content: gzip.compress(flip_byte(content))),
    "packed, a web page": (True, lambda content: b"<html>Please log in</html>"),
}


@every_file
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_an_error_that_names_it_and_its_repair(small, name, damage):
    packed, change = DAMAGES[damage]
    write(small, packed)
    path = raw_folder() / (f"{name}.gz" if packed else name)
    path.write_bytes(change(small[name]))
    with pytest.raises(DataError, match="is damaged") as error:
        load_fashion_mnist("train" if "train" in name else "test")
    assert str(path) in str(error.value) and "uv run fmdiff data --repair" in str(error.value)
    assert data.find_problems(raw_folder()) == {name: str(error.value)}


@pytest.mark.parametrize("packed", [False, True])
def test_the_error_gives_both_checksums_and_the_size_and_the_other_split_stays_readable(small, packed):
    name = "t10k-labels-idx1-ubyte"
    found = flip_byte(small[name])
    write(small | {name: found}, packed)
    with pytest.raises(DataError, match=f"expected MD5 {md5(small[name])}, found {md5(found)} in {len(found)} bytes"):
        load_fashion_mnist("test")
    assert len(load_fashion_mnist("train")[0]) == SMALL_SIZES["train"]


@every_file
@pytest.mark.parametrize("folder", [False, True], ids=["no file", "a folder, as some archives unpack it"])
def test_a_missing_file_is_an_error_that_names_it_and_its_repair(small, name, folder):
    write({other: content for other, content in small.items() if other != name})
    if folder:
        (raw_folder() / name).mkdir()
    with pytest.raises(DataError, match=f"{name} is missing") as error:
        load_fashion_mnist("train" if "train" in name else "test")
    assert str(raw_folder() / name) in str(error.value) and "uv run fmdiff data --repair" in str(error.value)
    assert list(data.find_problems(raw_folder())) == [name]


@pytest.mark.parametrize("split", ["train ", "Train", "valid", "", None, 0])
def test_an_unknown_split_is_an_error_that_names_it_and_the_three_there_are(small, split):
    with pytest.raises(ValueError, match=f"split is {split!r}; expected one of 'train', 'validation', 'test'$"):
        load_fashion_mnist(split)


# The folder


def test_FMDIFF_DATA_may_be_relative_or_start_at_home_and_comes_before_the_data_folder(tmp_path, monkeypatch):
    below = Path("FashionMNIST", "raw")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for value in ("~/garments", "garments", "./garments/../garments", str(tmp_path / "garments")):
        monkeypatch.setenv("FMDIFF_DATA", value)
        assert raw_folder() == tmp_path / "garments" / below
    for unset in (lambda: monkeypatch.setenv("FMDIFF_DATA", ""), lambda: monkeypatch.delenv("FMDIFF_DATA")):
        unset()
        assert raw_folder() == Path(__file__).parents[1] / "data" / below


def test_FMDIFF_DATA_that_names_no_folder_is_an_error_and_downloads_nothing(tmp_path, monkeypatch):
    missing = tmp_path / "typing error"
    monkeypatch.setenv("FMDIFF_DATA", str(missing))
    with pytest.raises(DataError, match="FMDIFF_DATA is ") as error:
        load_fashion_mnist()
    assert str(missing) in str(error.value) and not missing.exists()


# Download and stand-in

FAILURES = {  # what a download raises -> what the notice says about it
    URLError("no network"): "<urlopen error no network>",
    RuntimeError("Error downloading train-images:\nTried http://mirror/, got:\nno network\n"): "no network",
    http.client.HTTPException("cut off"): "cut off",
    OSError(28, "disk is full"): "[Errno 28] disk is full",
    TimeoutError(): "TimeoutError",
    RuntimeError("\n"): "RuntimeError",
}


@pytest.mark.parametrize("error, reason", FAILURES.items())
def test_without_a_network_the_stand_in_comes_with_a_notice_and_leaves_no_files(
    small, fresh, serve, capsys, error, reason
):
    serve(small, error)
    images, labels = load_fashion_mnist("train")
    assert images.shape == (SMALL_SIZES["train"], 1, 28, 28) and images.dtype == torch.uint8
    assert labels.dtype == torch.int64 and labels.bincount().tolist() == [SMALL_SIZES["train"] // 10] * 10
    notice = capsys.readouterr().err
    assert "NOTICE" in notice and "NOT Fashion-MNIST" in notice and f"could not be downloaded ({reason})" in notice
    assert "uv run fmdiff data" in notice and "FMDIFF_DATA" in notice
    assert list(fresh.iterdir()) == []
    assert data.describe_data() == "drawn stand-in for Fashion-MNIST"


def test_the_splits_of_the_stand_in_differ_and_are_the_same_each_time(small, fresh, serve, monkeypatch):
    serve(small, URLError("no network"))
    monkeypatch.setattr(data, "STANDIN_SIZES", {"train": 30, "test": 30})
    (train, labels), (again, same), (test, _) = (load_fashion_mnist(split) for split in ("train", "train", "test"))
    assert torch.equal(train, again) and torch.equal(labels, same) and not torch.equal(train, test)


def test_a_folder_that_cannot_be_made_gives_the_stand_in_too(small, fresh, capsys):
    fresh.parents[1].write_text("a file where the folder belongs")
    assert len(load_fashion_mnist()[0]) == SMALL_SIZES["train"]
    assert str(fresh.parents[1]) in capsys.readouterr().err


@pytest.mark.parametrize("name", [None, *data.ALL_FILES])
def test_an_interrupted_or_damaged_download_is_an_error_and_leaves_no_files(small, fresh, serve, name):
    if name is None:
        serve(small, KeyboardInterrupt())
        expected = pytest.raises(KeyboardInterrupt)
    else:
        serve(small | {name: flip_byte(small[name])})
        expected = pytest.raises(DataError, match=f"{name} is damaged")
    with expected:
        load_fashion_mnist()
    assert list(fresh.iterdir()) == []


def test_a_download_lands_complete_and_is_not_repeated(small, fresh, serve):
    serve(small)
    images, _ = load_fashion_mnist()
    assert images.numpy().tobytes() == small["train-images-idx3-ubyte"][16:]
    assert {path.name: path.read_bytes() for path in fresh.iterdir()} == small
    serve({}, AssertionError("a second download"))
    load_fashion_mnist("test")


def test_a_repair_replaces_the_files_it_is_given_and_no_other(small, serve):
    images, labels = data.FILES["test"]
    broken = small | {images: b"broken", labels: b"broken"}
    write(broken)
    serve(small)
    data.download(raw_folder(), [labels])
    assert {path.name: path.read_bytes() for path in raw_folder().iterdir()} == broken | {labels: small[labels]}


@pytest.mark.parametrize("timeout", [None, 7.5])
@pytest.mark.parametrize("error", [None, URLError("no network"), KeyboardInterrupt()])
def test_a_download_waits_20_seconds_at_most_and_restores_the_timeout(small, serve, timeout, error):
    serve(small, error, log=(timeouts := []))
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout)
    try:
        with pytest.raises(type(error)) if error else contextlib.nullcontext():
            data.download(raw_folder(), list(small))
        assert timeouts == [20] and socket.getdefaulttimeout() == timeout
    finally:
        socket.setdefaulttimeout(before)


# Ranges

EVERY_VALUE = torch.arange(256, dtype=torch.uint8)


def test_to_model_runs_evenly_from_minus_1_to_1_in_float32():
    x = to_model(EVERY_VALUE)
    assert x.dtype == torch.float32 and x[0] == -1 and x[-1] == 1
    assert_close(x.diff(), torch.full((255,), 2 / 255), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_round_trip_is_exact_for_every_value(dtype):
    assert torch.equal(to_uint8(to_model(EVERY_VALUE).to(dtype)), EVERY_VALUE)


def test_to_uint8_rounds_to_the_nearest_value_clips_what_lies_outside_and_computes_bfloat16_in_float32():
    x = torch.tensor([-float("inf"), -1.7, -1.001, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1.001, 9, float("inf")])
    assert to_uint8(x).tolist() == [0, 0, 0, 0, 1, 255, 255, 255]
    x = to_model(EVERY_VALUE).bfloat16()
    assert torch.equal(to_uint8(x), to_uint8(x.float()))


NOT_UINT8, NOT_FLOAT = (torch.float32, torch.int64, torch.int8, torch.bool), (torch.uint8, torch.int64, torch.bool)


@pytest.mark.parametrize("convert, dtype", [(to_model, d) for d in NOT_UINT8] + [(to_uint8, d) for d in NOT_FLOAT])
def test_another_type_of_images_is_an_error_that_names_it(convert, dtype):
    expected = {to_model: "uint8", to_uint8: "floating point"}[convert]
    with pytest.raises(ValueError, match=f"images are {dtype}; expected {expected}"):
        convert(torch.zeros(1, dtype=dtype))


# Batches

NUMBERED = EVERY_VALUE[:100].reshape(-1, 1, 1, 1).expand(-1, 1, 28, 28)  # image k and its label both say k


def epoch(batch_size: int = 32, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(batches(NUMBERED, torch.arange(100), batch_size, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("batch_size, sizes", [(32, [32, 32, 32, 4]), (50, [50, 50]), (100, [100]), (999, [100])])
def test_an_epoch_shows_each_image_once_with_its_label_and_its_last_batch_may_be_smaller(batch_size, sizes):
    shown = epoch(batch_size)
    assert [len(x0) for x0, _ in shown] == sizes
    assert sorted(torch.cat([y for _, y in shown]).tolist()) == list(range(100))
    for x0, y in shown:
        assert x0.shape == (len(y), 1, 28, 28) and x0.dtype == torch.float32 and y.dtype == torch.int64
        assert torch.equal(x0, to_model(NUMBERED)[y])


def test_the_seed_decides_the_order_whatever_the_batch_size():
    first, same, other, small_batches = (
        torch.cat([y for _, y in epoch(size, seed)]).tolist() for size, seed in ((32, 0), (32, 0), (32, 1), (7, 0))
    )
    assert first == same == small_batches and first != other and first != sorted(first)


def test_the_next_epoch_of_one_generator_has_another_order_and_the_global_generator_stays_as_it_is():
    generator, before = torch.Generator().manual_seed(0), torch.get_rng_state()
    (_, first), (_, second) = (next(batches(NUMBERED, torch.arange(100), 100, generator)) for _ in range(2))
    assert not torch.equal(first, second) and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("batch_size, num_images, num_labels", [(0, 9, 9), (-1, 9, 9), (4, 9, 8), (4, 9, 0), (4, 0, 0)])
def test_a_bad_batch_size_or_number_of_labels_is_an_error_with_the_numbers(batch_size, num_images, num_labels):
    found = f"batch_size is {batch_size}, with {num_images} images and {num_labels} labels"
    with pytest.raises(ValueError, match=found):
        next(batches(NUMBERED[:num_images], torch.arange(num_labels), batch_size, torch.Generator()))
