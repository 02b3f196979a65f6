"""Tables for people: how the command and the lessons print measures."""

HEADS = {"measures": "mean", "floor": "floor", "limit": "limit"}
BOARD = ("fd", "label_free_fd", "kd", "precision", "recall", "coverage", "label_accuracy", "copying")
BOARD += ("evaluations", "seconds")


def evaluation_table(columns: dict[str, dict[str, tuple[float, float]]]) -> str:
    """Return a table with a line for each measure, from its mean and spread by column: {"floor": {"fd": (1, 0.1)}}."""
    lines = [f"{'':<22}" + "".join(f"{HEADS[column]:>10}{'spread':>10}" for column in columns)]
    for measure in {name: None for values in columns.values() for name in values}:
        row = (values.get(measure) for values in columns.values())
        cells = (f"{cell[0]:>10.4f}{cell[1]:>10.4f}" if cell else " " * 20 for cell in row)
        lines.append(f"{measure:<22}{''.join(cells)}".rstrip())
    return "\n".join(lines)


def describe_seeds(seeds: range) -> str:
    """Say which seeds have a set of images each: "seed 3", or "each of the seeds 3 to 5"."""
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"each of the seeds {seeds[0]} to {seeds[-1]}"


def board_head(n: int, seeds: range, device: object, data: str) -> str:
    """Return the first two lines of the leaderboard; `data` is the name of what the images are compared with."""
    about = f"{n} images for {describe_seeds(seeds)}, mean ± spread, on {device}, compared with {data}"
    about += "; seconds are for 1,000 images"
    return about + "\n" + " " * 28 + "".join(f"{measure:>20}" for measure in BOARD)


def board_line(row: str, found: dict[str, tuple[float, float]]) -> str:
    """Return a line of the leaderboard: a name, and mean and spread of its measures, {"fd": (1, 0.1)}."""
    cells = (f"{found[m][0]:8.3f} ± {found[m][1]:5.3f}" if m in found else "" for m in BOARD)
    return f"{row:<28}{''.join(f'{cell:>20}' for cell in cells)}".rstrip()


def describe_request(
    num_steps: int | None,
    guidance: float | None,
    guide: str | None,
    interval: tuple[int, int] | None,
    eta: float | None,
) -> str:
    """Say how samples were drawn: "50 steps, guidance 2 away from unet, at steps 60 to 139, "; "" if all are None."""
    text = f"{num_steps} steps, " if num_steps else ""
    text += "" if guidance is None else f"guidance {guidance:g}{f' away from {guide}' if guide else ''}, "
    text += f"at steps {interval[0]} to {interval[1]}, " if interval else ""
    return text + ("" if eta is None else f"eta {eta:g}, ")


def measure_table(rows: dict[str, dict[str, tuple[float, float]]], heads: dict[str, str]) -> str:
    """Return a table with a line for each named row, and a column for each measure in `heads`, under its head.

    A row maps measures to mean and spread, {"fd": (1, 0.1)}. A spread of 0 is left out, and a missing measure is empty.
    """
    width, column = max(map(len, rows)) + 1, max(16, *(len(head) + 2 for head in heads.values()))
    lines = [" " * width + "".join(f"{head:>{column}}" for head in heads.values())]
    for name, row in rows.items():
        found = (row.get(measure) for measure in heads)
        cells = ("" if cell is None else f"{cell[0]:.3f}" + f" ± {cell[1]:.3f}" * (cell[1] > 0) for cell in found)
        lines.append((f"{name:<{width}}" + "".join(f"{cell:>{column}}" for cell in cells)).rstrip())
    return "\n".join(lines)
