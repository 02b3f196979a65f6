"""Compare how fast batches come: an index into one tensor, as here, and torchvision's dataset with a DataLoader.

uv run python benchmarks/data.py      writes benchmarks/data.json

Images a second by the wall clock, in [-1, 1] and shuffled, in turns; ours use one thread, the DataLoader its workers.
"""

import time
from collections.abc import Iterable

import torch
from machine import about, middle, save
from torch.utils.data import DataLoader
from torchvision.datasets import FashionMNIST, VisionDataset
from torchvision.transforms import Compose, Lambda, RandomHorizontalFlip, ToTensor

from fmdiff_helpers.data import batches, load_fashion_mnist

BATCH_SIZE, ROUNDS, SECONDS = 128, 5, 4


def to_range(x: torch.Tensor) -> torch.Tensor:
    """Bring values in [0, 1] to [-1, 1]; a function with a name, for workers."""
    return 2 * x - 1


class Loaded(FashionMNIST):
    """torchvision's dataset on images (N, 1, 28, 28) that have been read already: what it does for each is its own."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, transform: Compose):
        VisionDataset.__init__(self, "", transform=transform)
        self.data, self.targets = images[:, 0], labels


def speed(epochs: Iterable) -> float:
    """Return images a second, over at least `SECONDS`."""
    stream = (len(x) for epoch in epochs for x, _ in epoch)
    next(stream)  # workers start
    start, count = time.monotonic(), 0
    while time.monotonic() - start < SECONDS:
        count += next(stream)
    return count / (time.monotonic() - start)


def main() -> None:
    """Measure all in turns and write the result."""
    torch.set_num_threads(1)
    images, labels = load_fashion_mnist("train")
    generator = torch.Generator().manual_seed(0)
    plain = Compose([ToTensor(), Lambda(to_range)])
    flipped = Compose([RandomHorizontalFlip(), ToTensor(), Lambda(to_range)])

    def loader(transform: Compose, workers: int) -> Iterable:
        dataset = Loaded(images, labels, transform)
        return DataLoader(dataset, BATCH_SIZE, shuffle=True, num_workers=workers, persistent_workers=workers > 0)

    def again(make_epoch) -> Iterable:
        while True:
            yield make_epoch()

    loaders = {f"DataLoader, {workers} workers": loader(plain, workers) for workers in (0, 2)}
    loaders |= {f"DataLoader, {workers} workers, flips": loader(flipped, workers) for workers in (0, 2)}
    ours = {"index": lambda: batches(images, labels, BATCH_SIZE, generator)}
    contenders = ours | {name: lambda one=one: one for name, one in loaders.items()}
    rounds = [{name: speed(again(make)) for name, make in contenders.items()} for _ in range(ROUNDS)]
    ratios = [each["index"] / max(speed for name, speed in each.items() if name != "index") for each in rounds]
    result = {
        "what": f"images a second at batch {BATCH_SIZE}, {ROUNDS} x {SECONDS} s in turns",
        **about("torchvision"),
        "images_per_second": {name: middle([each[name] for each in rounds]) for name in contenders},
        "ratio to the fastest DataLoader": middle(ratios),
    }
    save(__file__, result)
    for name, speeds in result["images_per_second"].items():
        print(f"{name:30s}{speeds['median']:10.0f}")
    print(result["ratio to the fastest DataLoader"])


if __name__ == "__main__":
    main()
