"""What a training leaves to look at: its loss and, after each validation, samples; sometimes also the weights."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from fmdiff_helpers.batching import this_process
from fmdiff_helpers.checkpoints import save_weights
from fmdiff_helpers.drawing import drawer_of
from fmdiff_helpers.export import save_figures
from fmdiff_helpers.plots import image_grid, loss_curves
from fmdiff_helpers.ticks import plain_number
from fmdiff_helpers.train import Run

VARIATIONS = 5
ROWS = 10  # at most so many kinds are shown


class Results:
    """Write pictures of a training into its folder: `train_network(name, folder, report=Results(folder))`.

    After each validation it writes loss.png and a folder step_NNNNNN, with generation.png (row: kind of garment,
    column: step of one chain) and samples.png (row: kind, column: variation). Both start from the same noise each time.
    After every `keep_every`-th validation it also writes the averaged weights there. Each chain has `num_steps` steps.
    """

    def __init__(self, folder: Path | str, keep_every: int = 10, num_steps: int = 20):
        self.folder, self.keep_every, self.num_steps = Path(folder), keep_every, num_steps

    def __call__(self, run: Run) -> None:
        """Write pictures, and sometimes weights, if the last point of the history is a validation."""
        if "validation" not in run.history[-1]:
            return
        place = self.folder / f"step_{run.step:06d}"
        save_figures(self.folder / "loss.png", loss_curves(run.history))
        for name, figure in self.pictures(run.ema.module, run.card).items():
            save_figures(place / f"{name}.png", figure)
        if sum("validation" in point for point in run.history) % self.keep_every == 0:
            save_weights(place / "weights.safetensors", run.ema.module, run.full_card())

    def pictures(self, network: torch.nn.Module, card: dict) -> dict[str, Figure]:
        """Return the figures "generation" and "samples" of a denoiser."""
        drawer = drawer_of(card, network, self.num_steps, this_process().device)
        names = tuple(drawer.kinds[:ROWS]) if drawer.takes_labels else ()
        kinds, chain = torch.arange(len(names) or ROWS), []

        def draw(y: torch.Tensor, **options) -> torch.Tensor:
            return drawer.draw(len(y), 0, y if drawer.takes_labels else None, **options)

        last = draw(kinds, watch=chain.append)
        shown = chain[:: max(1, len(chain) // 6)]
        columns = [*(drawer.decode(step.xt) for step in shown), last]
        heads = [*(f"t = {plain_number(step.t)}" for step in shown), "sample"]
        generation = torch.stack(columns, dim=1).flatten(0, 1)
        samples = draw(kinds.repeat_interleave(VARIATIONS))
        return {
            "generation": image_grid(generation, len(columns), heads, names),
            "samples": image_grid(samples, VARIATIONS, row_labels=names),
        }
