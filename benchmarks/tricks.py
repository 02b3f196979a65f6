"""Measure what each trick of the training loop and of the samplers buys on one processor core: with it, and without.

uv run --group bench python benchmarks/tricks.py            writes benchmarks/tricks.json
uv run --group bench python benchmarks/tricks.py compile    and what torch.compile does, in minutes; into the same file
uv run --group bench python benchmarks/tricks.py guidance   and one call for guidance in place of two; likewise,
                                                            with OMP_WAIT_POLICY=passive, as the package has it
uv run --group bench python benchmarks/tricks.py table      tricks.json as two tables

Processor seconds, in turns; each number is the time without a trick over that with it, median, lowest and highest of
`ROUNDS`. More than 1 is a gain.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import about, middle, save
from quality import OURS
from torch import Tensor
from training import our_run

from fmdiff_helpers.batching import in_batches
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.data import load_fashion_mnist
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.guidance import NULL
from fmdiff_helpers.run import Run

ROUNDS, STEPS = 7, 4
RESULTS = Path(__file__).with_suffix(".json")


def seconds(work: Callable[[], object], times: int = STEPS) -> float:
    """Return the processor seconds of some work, done so many times."""
    start = time.process_time()
    for _ in range(times):
        work()
    return time.process_time() - start


def compare(without: Callable[[], object], with_it: Callable[[], object], times: int = STEPS) -> dict:
    """Return how often the time with a trick goes into that without it, in turns."""
    for work in (without, with_it):
        work()
    return middle([seconds(without, times) / seconds(with_it, times) for _ in range(ROUNDS)])


def stepper(run: Run, data: tuple[Tensor, Tensor]) -> Callable[[], object]:
    """Return what takes a training step."""
    return lambda: run.train_step(*run.next_batch(*data))


def without_channels_last(run: Run) -> None:
    """Store the weights row by row, as PyTorch does by itself."""
    run.plain.to(memory_format=torch.contiguous_format)


def without_fused(run: Run) -> None:
    """Let the optimizer go through the weights one by one, as PyTorch does on a CPU by itself."""
    recipe = run.recipe
    run.optimizer = torch.optim.AdamW(run.plain.parameters(), recipe["lr"], weight_decay=recipe["weight_decay"])


def without_foreach(run: Run) -> None:
    """Average the weights one by one."""

    def average() -> None:
        for mean, now in zip(run.ema.module.parameters(), run.plain.parameters(), strict=True):
            mean.detach().lerp_(now.detach(), 1e-3)

    run.average = average


def drawing(name: str, batch_size: int) -> Callable[[], Tensor]:
    """Return what draws 500 images of a published network in two steps, so many at once, but does not decode them."""
    drawer = load_drawer(name)
    shape, y = (drawer.autoencoder.latent_shape if drawer.autoencoder else drawer.process.shape), drawer.all_kinds(500)
    inputs = [torch.randn(500, *shape), *([] if y is None else [y])]

    def sample(x: Tensor, y: Tensor | None = None) -> Tensor:
        return drawer.process.sample(drawer.model, x, None, 2, y=y)

    return lambda: in_batches(sample, *inputs, batch_size=batch_size)


TRICKS = {"channels_last": without_channels_last, "fused AdamW": without_fused, "foreach EMA": without_foreach}


def measure() -> dict:
    """Return what each trick buys, by network."""
    data, found = tuple(part[:12_000] for part in load_fashion_mnist("train")), {}
    for name in OURS:
        found[name] = {}
        for trick, undo in TRICKS.items():
            runs = [our_run(name, *data) for _ in range(2)]
            undo(runs[0][0])
            found[name][trick] = compare(*(stepper(*run) for run in runs))
        found[name]["100 images at once, not 500"] = compare(drawing(name, 500), drawing(name, 100), 1)
        print(name, found[name], flush=True)
    return found


def measure_compile() -> dict:
    """Return the seconds of the first step with torch.compile, and what it buys then, for lesson 03's network."""
    data = tuple(part[:12_000] for part in load_fashion_mnist("train"))
    runs = [our_run("unet", *data) for _ in range(2)]
    runs[1][0].model = torch.compile(runs[1][0].model)
    steps = [stepper(*run) for run in runs]
    start = time.monotonic()
    steps[1]()
    first = time.monotonic() - start
    return {"seconds of the first step": round(first, 1), "gain": compare(*steps)}


def calls(name: str, n: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return what predicts n images of a published network with and without labels: in two calls, and in one."""
    model, y = load_pretrained(name), torch.arange(n) % 10
    x = torch.randn(n, *((1, 8, 8) if name == "vector_denoiser" else (1, 28, 28)))
    t, labels = torch.full((n,), 100), torch.cat([y, torch.full_like(y, NULL)])
    two = torch.no_grad()(lambda: (model(x, t, y), model(x, t, None)))
    return two, torch.no_grad()(lambda: model(torch.cat([x, x]), torch.cat([t, t]), labels).chunk(2))


def measure_guidance() -> dict:
    """Return what one call for guidance buys, by threads, network and number of images."""
    found = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for name in ("patch_unet", "vector_denoiser"):
            found[f"{name}, threads: {threads}"] = {n: compare(*calls(name, n), 120 // n) for n in (10, 12, 30, 100)}
    return found


def table() -> str:
    """Return what each trick buys as a table, by network."""
    return rows_of(json.loads(RESULTS.read_text())["gains"])


def guidance_table() -> str:
    """Return what one call for guidance buys as a table, by network and threads."""
    return rows_of(json.loads(RESULTS.read_text())["guidance"]["gains"])


def rows_of(results: dict) -> str:
    """Return gains as a table."""
    tricks = list(next(iter(results.values())))
    lines = [f"| network | {' | '.join(tricks)} |", "|---" * (len(tricks) + 1) + "|"]
    for name, gains in results.items():
        cells = [f"{gain['median']:.2f} ({gain['lowest']:.2f} to {gain['highest']:.2f})" for gain in gains.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if sys.argv[1:] != ["guidance"]:
        result |= {"what": "time without a trick over that with it, one core", **about()}
    match sys.argv[1:]:
        case []:
            save(__file__, result | {"gains": measure()})
        case ["compile"]:
            save(__file__, result | {"torch.compile": measure_compile()})
        case ["guidance"]:
            save(__file__, result | {"guidance": about() | {"gains": measure_guidance()}})
        case ["table"]:
            print(table(), guidance_table(), sep="\n\n")
        case _:
            print(__doc__)
