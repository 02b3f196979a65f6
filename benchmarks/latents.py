"""Measure lesson 05's choices: target, loss, unit of the latent, averaging, number of steps, guidance; and the speed.

uv run python benchmarks/latents.py train NAME     one denoiser, 1500 steps; 5 minutes of a processor core
uv run python benchmarks/latents.py choices        all of them, into the card of the published network
uv run python benchmarks/latents.py raw FOLDER     a training's weights as they are and averaged, into the same card
uv run python benchmarks/latents.py steps          FD and seconds against steps and eta, into the same card
uv run python benchmarks/latents.py spacing        the same against where the steps are, into the same card
uv run python benchmarks/latents.py guidance       led away from a network of 1500 steps, into the same card
uv run python benchmarks/latents.py reported       what was chosen so, on the test images, into the same card
uv run python benchmarks/latents.py speed          against lesson 03's network, into benchmarks/latents.json

Names: those of `VARIANTS`; those that differ in the unit only are published, in half precision.
FOLDER is that of `fmdiff train latent_unet --epochs 16 --out FOLDER`, 20 minutes of a processor core.
"""

import math
import os
import platform
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from exhibits import compared, publish, train_card
from machine import save
from torch import Tensor, nn

from fmdiff_helpers.arguments import seeds_for
from fmdiff_helpers.batching import in_batches
from fmdiff_helpers.cards import PUBLISHED, build, build_process, latent_shape, read_card
from fmdiff_helpers.checkpoints import load_pretrained, save_weights
from fmdiff_helpers.data import describe_data, to_uint8
from fmdiff_helpers.diffusion import add_noise
from fmdiff_helpers.drawing import drawer_of, load_autoencoder, load_drawer
from fmdiff_helpers.leaderboard import kinds_of, load_judge
from fmdiff_helpers.metrics import Judge, mean_and_spread
from fmdiff_helpers.recipes import CARDS, describe_autoencoder
from fmdiff_helpers.run import device_name
from fmdiff_helpers.samplers import chain_of, respace, sample_ddim, trailing
from fmdiff_helpers.schedules import Schedule

STEPS, N, ROUNDS = 1500, 1000, 2
UNITS, UNIT_STEPS = (0.2, 0.5, 0.8, 1.25, 2, 5), 10
# Name -> the target, the unit of the latent (1 is standardised), and what else differs from `fmdiff train latent_unet`.
VARIANTS = {
    "v": ("v", 1),
    "eps": ("eps", 1),
    "weighted": ("eps", 1),  # the original's weight by noise level
    "hybrid": ("eps", 1),  # and its share of the angle
    "early": ("eps", 1),  # its choice of steps
    "times 5": ("v", 5),
    "a fifth": ("v", 0.2),
}


def noise_weight(t: Tensor, T: int) -> Tensor:
    """Return the original's weight of the loss at steps t, 1 at the first and 1/11 at the last."""
    return 1 / (1 + 10 * (1 - torch.cos(t / T * math.pi / 2)))


def weighted_loss(model: nn.Module, x0: Tensor, y: Tensor, t: Tensor, eps: Tensor, schedule: Schedule) -> Tensor:
    """Return the squared error of the noise, the less of it the noisier the latent is, (B,)."""
    error = (model(add_noise(x0, t, eps, schedule), t, y) - eps).square().flatten(1).mean(dim=1)
    return noise_weight(t, schedule.T) * error


def hybrid_loss(model: nn.Module, x0: Tensor, y: Tensor, t: Tensor, eps: Tensor, schedule: Schedule) -> Tensor:
    """Return the original's loss, (B,): 0.85 of the squared error and 0.15 of the angle, both weighted."""
    eps_hat = model(add_noise(x0, t, eps, schedule), t, y)
    error = (eps_hat - eps).square().flatten(1).mean(dim=1)
    angle = 1 - F.cosine_similarity(eps_hat.flatten(1), eps.flatten(1))
    return noise_weight(t, schedule.T) * (0.85 * error + 0.15 * angle / error.detach().mean().clamp(min=1))


def draw_early(x0: Tensor, generator: torch.Generator, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Draw steps as the original does, the first ten times as often as the last, and the noise."""
    share = torch.linspace(1, 0.1, schedule.T, device=x0.device)
    t = torch.multinomial(share, len(x0), replacement=True, generator=generator)
    return t, torch.randn(x0.shape, generator=generator, device=x0.device)


def folder_of(name: str) -> str:
    """Return where a variant is."""
    return f"runs/latent_{name.replace(' ', '_')}"


def train_variant(name: str) -> None:
    """Train one variant; one in another unit gets a VAE of its own, whose `scale` says so."""
    torch.set_num_threads(1)
    target, unit = VARIANTS[name]
    card = CARDS["latent_unet"] | {"data": describe_data()}
    card |= {"process": card["process"] | {"target": target}}
    card |= {"recipe": card["recipe"] | {"steps": STEPS, "every": STEPS}}
    vae = "vae"
    if unit != 1:
        model, vae = load_pretrained("vae"), f"runs/vae_{unit:g}"
        model.scale.div_(unit)
        found = {key: value for key, value in read_card("vae").items() if key not in ("sha256", "measures", "exhibits")}
        save_weights(Path(vae) / "weights.safetensors", model, found)
    card["autoencoder"] = describe_autoencoder(vae, latent_shape(CARDS["vae"]))
    originals = {"weighted": {"loss": weighted_loss}, "hybrid": {"loss": hybrid_loss}, "early": {"draw": draw_early}}
    schedule = build_process(card).schedule
    parts = {part: partial(function, schedule=schedule) for part, function in originals.get(name, {}).items()}
    model = train_card(card, folder_of(name), **parts)
    if name in ("v", "times 5"):  # lesson 05 draws with these
        found = read_card(folder_of(name)) | {"command": f"benchmarks/latents.py train '{name}'"}
        save_weights(PUBLISHED / f"latent_unet_unit_{unit:g}.safetensors", model.half(), found)


def quality(judge: Judge, samples: Tensor, y: Tensor) -> dict[str, float]:
    """Return all measures of samples."""
    return judge.measure(to_uint8(samples.clamp(-1, 1)), y)


def measure(
    judge: Judge,
    name: str,
    eta: float = 0.0,
    num_steps: int = 50,
    clip: float = math.inf,
    model: nn.Module | None = None,
    steps: Tensor | None = None,
) -> dict:
    """Return mean and spread of the quality of a denoiser's samples, and the seconds that drawing them takes.

    `steps` (K,) are those of the chain, ascending; by default `num_steps` of them, spread evenly.
    """
    drawer = drawer_of(read_card(name), model or load_pretrained(name), num_steps, "cpu")
    schedule, y, measured = drawer.process.schedule, drawer.all_kinds(N), []
    visited = respace(schedule, num_steps)[0] if steps is None else steps
    chain = chain_of(schedule, visited)

    def predict(x: Tensor, k: Tensor, y: Tensor | None) -> Tensor:
        return drawer.model(x, visited[k], y)

    for seed in seeds_for("validation"):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn((N, *drawer.autoencoder.latent_shape), generator=generator)
        start = time.monotonic()

        def draw(x: Tensor, y: Tensor, generator: torch.Generator = generator) -> Tensor:
            return drawer.decode(sample_ddim(predict, x, chain, generator, y=y, clip=clip, eta=eta))

        samples = in_batches(draw, x, y)
        seconds = time.monotonic() - start
        measured.append(quality(judge, samples, y) | {"seconds": seconds})
    return mean_and_spread(measured)


def add(table: str, results: dict, split: str = "validation", **about: object) -> None:
    """Add results to a table of the published network's card."""
    about |= compared(split, N) | {"device": device_name(torch.device("cpu"))}
    publish("latent_unet", table, results, **about)


def measure_choices() -> None:
    """Measure all variants; "eps" without a clip, too, and "v" without averaging.

    A predicted noise needs the clip: at the last step its error is divided by almost nothing.
    """
    judge = load_judge(split="validation")
    for name, (target, _) in VARIANTS.items():
        found = {name: measure(judge, folder_of(name), clip=math.inf if target == "v" else 4.0)}
        add("choices", found, steps=50, training_steps=STEPS)
    add("choices", {"eps, no clip": measure(judge, folder_of("eps"))})
    measure_raw(folder_of("v"), judge, "choices")


def measure_raw(folder: str, judge: Judge, table: str) -> None:
    """Measure the last weights of a training, averaged and as they are."""
    state = torch.load(f"{folder}/checkpoint.pt", weights_only=True)
    card = read_card(folder)
    model = build(card).requires_grad_(False).eval()
    averaged = {name.removeprefix("module."): w for name, w in state["ema"].items() if name != "n_averaged"}
    for name, weights in {"averaged": averaged, "raw": state["model"]}.items():
        model.load_state_dict(weights)
        add(table, {name: measure(judge, folder, model=model)}, training_steps=card["recipe"]["steps"])


def measure_steps() -> None:
    """Measure the published network with fewer and fewer steps, without and with noise on the way; and the VAE."""
    judge = load_judge(split="validation")
    limit = judge.limit(N, load_autoencoder("latent_unet"), seeds_for("validation"), kinds_of(judge))
    add("steps", {"limit": mean_and_spread(limit)})
    for num_steps in (5, 10, 20, 50, 100):
        for eta in (0.0, 1.0):
            found = {f"{num_steps} steps, eta {eta:g}": measure(judge, "latent_unet", eta, num_steps)}
            add("steps", found)


def steps_in_unit(schedule: Schedule, unit: float, num_steps: int) -> Tensor:
    """Return the steps (K,) that have the SNR of evenly spread steps if the latents had this spread in place of 1.

    A step that the table of 1,000 does not have is replaced by the nearest one; each is taken once.
    """
    wanted = schedule.log_snr[respace(schedule, num_steps)[0]] + 2 * math.log(unit)
    return (schedule.log_snr - wanted[:, None]).abs().argmin(dim=1).unique()


def measure_spacing() -> None:
    """Measure the published network with trailing steps, and with those of other units of the latent."""
    judge, schedule = load_judge(split="validation"), build_process(read_card("latent_unet")).schedule
    rows = {f"{num_steps} steps, trailing": trailing(schedule, num_steps) for num_steps in (2, 3, 5, 10)}
    rows |= {f"{num_steps} steps, even": respace(schedule, num_steps)[0] for num_steps in (2, 3, 5, 10)}
    rows |= {f"unit {unit:g}": steps_in_unit(schedule, unit, UNIT_STEPS) for unit in UNITS}
    for name, steps in rows.items():
        add("spacing", {name: measure(judge, "latent_unet", steps=steps)}, unit_steps=UNIT_STEPS)


def measure_guidance(judge: Judge, split: str, rows: list[tuple[float, int, int]], table: str) -> None:
    """Measure the published network led away from one that was trained for a tenth of the time, for (w, steps, n)."""
    for w, num_steps, n in rows:
        drawer = load_drawer("latent_unet", num_steps, w, "latent_unet_unit_1")
        y = drawer.all_kinds(n)
        measured = [quality(judge, drawer.draw(n, seed, y), y) for seed in seeds_for(split)]
        found = {f"w {w:g}, {num_steps} steps, {n} images": mean_and_spread(measured)}
        add(table, found, split, guide="latent_unet_unit_1")


def measure_reported() -> None:
    """Measure on the test images what was chosen."""
    measure_guidance(load_judge(split="test"), "test", [(2.5, 50, N)], "reported")


def measure_speed() -> None:
    """Time both networks in turns, so that a slow minute of the machine hits all, and write seconds and ratios."""
    pixels = load_drawer("unet")
    drawers = {
        "latent_unet, 50 steps": load_drawer("latent_unet", 50),
        "unet, 50 steps": load_drawer("unet", 50),
        f"unet, all {pixels.process.max_steps} steps": pixels,
    }
    seconds = {name: [] for name in drawers}
    for _ in range(ROUNDS):
        for name, drawer in drawers.items():
            start = time.monotonic()
            drawer.draw(N, 0, drawer.all_kinds(N))
            seconds[name].append(time.monotonic() - start)
            print(name, seconds[name][-1], flush=True)
    latent, equal, own = seconds.values()
    result = {
        "what": f"seconds to draw {N} images, {ROUNDS} rounds in turns",
        "seconds": seconds,
        "ratios at equal steps": [b / a for a, b in zip(latent, equal, strict=True)],
        "ratios to its own chain": [b / a for a, b in zip(latent, own, strict=True)],
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": version("torch"),
    }
    save(__file__, result)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    match sys.argv[1:]:
        case ["train", name] if name in VARIANTS:
            train_variant(name)
        case ["choices"]:
            measure_choices()
        case ["raw", folder]:
            measure_raw(folder, load_judge(split="validation"), "averaging")
        case ["steps"]:
            measure_steps()
        case ["spacing"]:
            measure_spacing()
        case ["guidance"]:
            rows = [(w, 50, N) for w in (1.0, 1.5, 2.0, 2.5, 3.0)]
            measure_guidance(load_judge(split="validation"), "validation", rows, "guidance")
        case ["reported"]:
            measure_reported()
        case ["speed"]:
            measure_speed()
        case _:
            print(__doc__)
