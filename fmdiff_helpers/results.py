"""What a training leaves to look at: its loss, and after each validation how it draws, and now and then its weights."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from fmdiff_helpers.checkpoints import save_weights, takes_labels
from fmdiff_helpers.data import CLASS_NAMES
from fmdiff_helpers.export import save_figures
from fmdiff_helpers.plots import image_grid, loss_curves
from fmdiff_helpers.processes import join
from fmdiff_helpers.recipes import as_denoiser, load_autoencoder
from fmdiff_helpers.samplers import generate
from fmdiff_helpers.train import load_checkpoint

VARIATIONS = 5


class Results:
    """Write pictures of a training into its folder: `train_network(name, folder, report=Results(folder))`.

    loss.png, and after each validation step_NNNNNN/ with generation.png (row: kind of garment, column: timestep of one
    chain) and samples.png (row: kind, column: variation), both from the same noise each time; there, at every
    `keep_every`-th validation, the averaged weights, too. The best weights and the checkpoint lie in the folder itself.
    `num_steps` are those of a chain.
    """

    def __init__(self, folder: Path | str, keep_every: int = 10, num_steps: int = 20):
        self.folder, self.keep_every, self.num_steps = Path(folder), keep_every, num_steps

    def __call__(self, history: list[dict]) -> None:
        """Write what a validation has just brought, if the last point of the history is one."""
        if "validation" not in history[-1]:
            return
        model, card = load_checkpoint(self.folder)
        place = self.folder / f"step_{history[-1]['step']:06d}"
        save_figures(self.folder / "loss.png", loss_curves(history))
        for name, figure in self.draw(model.to(join().device), card).items():
            save_figures(place / f"{name}.png", figure)
        if sum("validation" in point for point in history) % self.keep_every == 0:
            save_weights(place / "weights.safetensors", model, card)

    def draw(self, model: torch.nn.Module, card: dict) -> dict[str, Figure]:
        """Return the two pictures of a denoiser by name."""
        device, chain = join().device, []
        denoiser, schedule = as_denoiser(card, model, device)
        vae = load_autoencoder(card, device) if "autoencoder" in card else None
        labelled = takes_labels(card)
        kinds = torch.arange(10)
        names = CLASS_NAMES if labelled else ()

        def sample(y: torch.Tensor, **options) -> torch.Tensor:
            told = y if labelled else None
            return generate(denoiser, schedule, len(y), 0, self.num_steps, told, vae=vae, **options)

        last = sample(kinds, watch=chain.append)
        shown = chain[:: max(1, len(chain) // 6)]
        columns = [*(vae.from_latent(step.xt) if vae else step.xt for step in shown), last]
        generation = torch.stack(columns, dim=1).flatten(0, 1)
        samples = sample(kinds.repeat_interleave(VARIATIONS))
        heads = [*(f"t = {step.t}" for step in shown), "sample"]
        return {
            "generation": image_grid(generation, len(columns), heads, names),
            "samples": image_grid(samples, VARIATIONS, row_labels=names),
        }
