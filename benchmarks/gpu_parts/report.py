"""What all parts share: how much of everything, and the file that the results go to."""

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fmdiff_helpers.checkpoints import write_atomically


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    data: int = 60_000  # training images, the validation images among them
    batches: tuple[int, ...] = (512, 256, 128, 2048)
    seconds: float = 0.15  # of a round of timing
    rounds: int = 3
    compared: int = 64  # images on which GPU and processor are compared
    steps: int = 20  # of a sampler
    resumed: int = 60  # steps of the training that is interrupted
    resumed_batch: int = 128
    drawn: int = 2000  # images a timing of a sampler draws
    judged: int = 5000  # images whose FD is measured
    real: int = 10_000  # test images that they are held against
    seeds: int = 3
    good_batch: int = 256
    good_seconds: float = 60
    matrix: int = 8192
    copied: int = 2**30  # bytes
    epochs: float | str = "auto"  # of a lesson


TINY = Size(
    data=2200,
    batches=(8,),
    seconds=0.01,
    rounds=2,
    compared=4,
    steps=2,
    resumed=4,
    resumed_batch=8,
    drawn=8,
    judged=300,
    real=1000,
    seeds=1,
    good_batch=8,
    good_seconds=0.5,
    matrix=128,
    copied=2**20,
    epochs=0.01,
)
TINY_VALIDATION = 500  # images, of the 2,200


def faults(results: dict) -> list[str]:
    """Return what failed: measurements with an error, comparisons that did not pass, parts that did not end well."""
    parts = {part: rows for part, rows in results.items() if part not in ("about", "ended")}
    rows = {f"{part}: {name}": row for part, each in parts.items() for name, row in each.items()}
    failed = [name for name, row in rows.items() if "error" in row or row.get("passed") is False]
    return failed + [f"{part} ended {how}" for part, how in results.get("ended", {}).items() if how != "well"]


class Report:
    """What has been measured, by part and name, in a file that is written anew after each measurement."""

    def __init__(self, out: Path, part: str, minutes: float, about: dict):
        self.path, self.part, self.end = out / "gpu.json", part, time.monotonic() + 60 * minutes
        self.results = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.results["about"], self.results[part] = about, {}
        self.rows = self.results[part]

    def left(self) -> float:
        """Return how many seconds are left."""
        return self.end - time.monotonic()

    def add(self, name: str, work: Callable[[], dict]) -> dict:
        """Measure something, write what was found, or how it failed, and return it."""
        start = time.monotonic()
        try:
            found = work() if self.left() > 0 else {"left out": "no time was left"}
        except ImportError as error:  # a peer that is not installed is no fault
            found = {"missing": str(error)}
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            found = {"error": f"{type(error).__name__}: {error}"[:600], "where": where}
        self.rows[name] = found | {"took_seconds": round(time.monotonic() - start, 2)}
        write_atomically(self.path, lambda file: file.write_text(json.dumps(self.results, indent=1) + "\n"))
        print(self.part, name, json.dumps(self.rows[name])[:500], flush=True)
        return found
