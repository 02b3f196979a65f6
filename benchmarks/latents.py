"""Measure lesson 05's choices: target, loss, unit of the latent, averaging, number of steps, guidance; and the speed.

uv run python benchmarks/latents.py train NAME     one denoiser, 1500 steps; 5 minutes of a processor core
uv run python benchmarks/latents.py choices        all of them, into the card of the published network
uv run python benchmarks/latents.py raw FOLDER     its weights as they are and averaged, into the same card
uv run python benchmarks/latents.py steps          FD and seconds against steps and eta, into the same card
uv run python benchmarks/latents.py guidance       led away from a network of 1500 steps, into the same card; an hour
uv run python benchmarks/latents.py speed          against lesson 03's network, into benchmarks/latents.json

Names: those of `VARIANTS`; those that differ in the unit only are published, in half precision.
"""

import json
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
from torch import Tensor, nn

from fmdiff_helpers.checkpoints import PUBLISHED, build, load_pretrained, read_card, save_weights
from fmdiff_helpers.data import describe_data, load_fashion_mnist, to_uint8
from fmdiff_helpers.diffusion import add_noise
from fmdiff_helpers.leaderboard import load_judge
from fmdiff_helpers.metrics import Judge, accuracy, features, mean_and_spread
from fmdiff_helpers.recipes import (
    CARDS,
    describe_autoencoder,
    load_autoencoder,
    load_denoiser,
    load_guided,
    schedule_of,
    task,
)
from fmdiff_helpers.samplers import generate, in_batches, noise_from_v, sample_ddim
from fmdiff_helpers.schedules import Schedule
from fmdiff_helpers.train import load_checkpoint, train

STEPS, N, SEEDS, ROUNDS = 1500, 1000, 3, 2
CARD = PUBLISHED / "latent_unet.json"
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
    card = CARDS["latent_unet"] | {"target": target, "data": describe_data()}
    card |= {"recipe": card["recipe"] | {"steps": STEPS, "every": STEPS}}
    vae = "vae"
    if unit != 1:
        model, vae = load_pretrained("vae"), f"runs/vae_{unit:g}"
        model.scale.div_(unit)
        found = {key: value for key, value in read_card("vae").items() if key not in ("sha256", "measures", "exhibits")}
        save_weights(Path(vae) / "weights.safetensors", model, found)
    card["autoencoder"] = describe_autoencoder(vae, 4)
    torch.manual_seed(0)
    model = build(card)
    loss, draw, data, validate = task(card, *load_fashion_mnist("train"), torch.device("cpu"))
    schedule = schedule_of(card)
    losses = {"weighted": weighted_loss, "hybrid": hybrid_loss}
    loss = partial(losses[name], schedule=schedule) if name in losses else loss
    draw = partial(draw_early, schedule=schedule) if name == "early" else draw
    train(model, loss, draw, data, validate, folder_of(name), card)
    if target == "v":  # lesson 05 draws with these
        found = read_card(folder_of(name)) | {"command": f"benchmarks/latents.py train '{name}'"}
        save_weights(PUBLISHED / f"latent_unet_unit_{unit:g}.safetensors", model.half(), found)


def quality(judge: Judge, samples: Tensor, y: Tensor) -> dict[str, float]:
    """Return the distances of samples and how many show what their label says."""
    samples = to_uint8(samples.clamp(-1, 1))
    found = features(judge.classifier, samples)
    return judge.distances(found) | {"label_accuracy": accuracy(judge.classifier, samples, y)}


def measure(
    judge: Judge,
    name: str,
    eta: float = 0.0,
    num_steps: int = 50,
    clip: float = math.inf,
    model: nn.Module | None = None,
) -> dict:
    """Return mean and spread of the quality of a denoiser's samples, and the seconds that drawing them takes."""
    card = read_card(name)
    denoiser, schedule = load_denoiser(name)
    denoiser = noise_from_v(model, schedule) if model else denoiser
    vae, y, measured = load_autoencoder(card), torch.arange(N) % 10, []
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn((N, *vae.latent_shape), generator=generator)
        start = time.monotonic()

        def draw(x: Tensor, y: Tensor, generator: torch.Generator = generator) -> Tensor:
            z = sample_ddim(denoiser, x, schedule, generator, num_steps, y, clip=clip, eta=eta)
            return vae.from_latent(z)

        samples = in_batches(draw, x, y)
        seconds = time.monotonic() - start
        measured.append(quality(judge, samples, y) | {"seconds": seconds})
    return mean_and_spread(measured)


def publish(table: str, results: dict, **about: object) -> None:
    """Add results to a table of the published network's card."""
    card = read_card("latent_unet")
    about |= {"n": N, "seeds": SEEDS, "device": f"cpu, {torch.get_num_threads()} threads, {platform.machine()}"}
    card[table] = card.get(table, {}) | about | results
    CARD.write_text(json.dumps(card, indent=1) + "\n")


def measure_choices() -> None:
    """Measure all variants; "eps" without a clip, too, and "v" without averaging.

    A predicted noise needs the clip: at the last step its error is divided by almost nothing.
    """
    judge = load_judge()
    for name, (target, _) in VARIANTS.items():
        found = {name: measure(judge, folder_of(name), clip=math.inf if target == "v" else 4.0)}
        print(name, found[name], flush=True)
        publish("choices", found, steps=50, training_steps=STEPS)
    publish("choices", {"eps, no clip": measure(judge, folder_of("eps"))})
    measure_raw(folder_of("v"), judge, "choices")


def measure_raw(folder: str, judge: Judge, table: str) -> None:
    """Measure the last weights of a training, averaged and as they are."""
    averaged, raw = load_checkpoint(folder)[0], load_checkpoint(folder)[0]
    raw.load_state_dict(torch.load(f"{folder}/checkpoint.pt", weights_only=True)["model"])
    for name, model in {"averaged": averaged, "raw": raw}.items():
        found = {name: measure(judge, folder, model=model)}
        print(name, found[name], flush=True)
        publish(table, found)


def measure_steps() -> None:
    """Measure the published network with fewer and fewer steps, without and with noise on the way."""
    judge = load_judge()
    for eta, numbers in ((0.0, (5, 10, 20, 50, 100, 1000)), (1.0, (5, 10, 20, 50, 100))):
        for num_steps in numbers:
            found = {f"{num_steps} steps, eta {eta:g}": measure(judge, "latent_unet", eta, num_steps)}
            print(found, flush=True)
            publish("steps", found)


def measure_guidance() -> None:
    """Measure the published network led away from one that was trained for a tenth of the time."""
    judge, vae = load_judge(), load_autoencoder(read_card("latent_unet"))
    rows = [(w, 50, N) for w in (1.0, 1.5, 2.0, 2.5, 3.0)] + [(2.0, 50, 10 * N), (2.0, 20, 10 * N)]
    for w, num_steps, n in rows:
        model, schedule = load_guided("latent_unet", w, "latent_unet_unit_1")
        y, options = torch.arange(n) % 10, {"num_steps": num_steps, "vae": vae}
        measured = [quality(judge, generate(model, schedule, n, seed, y=y, **options), y) for seed in range(SEEDS)]
        found = {f"w {w:g}, {num_steps} steps, {n} images": mean_and_spread(measured)}
        print(found, flush=True)
        publish("guidance", found, guide="latent_unet_unit_1")
    publish("guidance", {f"ceiling, {10 * N} images": mean_and_spread(judge.ceiling(10 * N, vae))})


def measure_speed() -> None:
    """Time both networks in turns, so that a slow minute of the machine hits all, and write seconds and ratios."""
    ours, pixels = load_denoiser("latent_unet"), load_denoiser("unet")
    vae, y = load_autoencoder(read_card("latent_unet")), torch.arange(N) % 10
    chain = pixels[1].T
    draws = {
        "latent_unet, 50 steps": lambda: generate(*ours, N, 0, 50, y, vae=vae),
        "unet, 50 steps": lambda: generate(*pixels, N, 0, 50),
        f"unet, all {chain} steps": lambda: generate(*pixels, N, 0, chain),
    }
    seconds = {name: [] for name in draws}
    for _ in range(ROUNDS):
        for name, draw in draws.items():
            start = time.monotonic()
            draw()
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
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    match sys.argv[1:]:
        case ["train", name] if name in VARIANTS:
            train_variant(name)
        case ["choices"]:
            measure_choices()
        case ["raw", folder]:
            measure_raw(folder, load_judge(), "averaging")
        case ["steps"]:
            measure_steps()
        case ["guidance"]:
            measure_guidance()
        case ["speed"]:
            measure_speed()
        case _:
            print(__doc__)
