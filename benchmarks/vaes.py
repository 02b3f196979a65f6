"""Measure what beta does in lesson 04: VAEs with a vector of 32 numbers, and more and more weight on the KL divergence.

uv run python benchmarks/vaes.py train BETA     one VAE, into data/weights; 7 to 10 minutes of a busy core
uv run python benchmarks/vaes.py measure        all of them and the published `vae`, into its card

392 is what beta becomes where the squared error is a mean over the 784 pixels and the KL divergence a sum.
"""

import json
import sys

import torch
from torch import nn

from fmdiff_helpers.checkpoints import PUBLISHED, build, load_pretrained, read_card, save_weights
from fmdiff_helpers.data import describe_data, load_fashion_mnist, to_model, to_uint8
from fmdiff_helpers.leaderboard import load_judge
from fmdiff_helpers.metrics import Judge, features, mean_and_spread
from fmdiff_helpers.models.vae import active_units, kl_divergence
from fmdiff_helpers.recipes import CARDS, task
from fmdiff_helpers.samplers import sample_prior
from fmdiff_helpers.train import train

BETAS = (0, 0.01, 0.1, 1, 10, 392)
STEPS, N, SEEDS = 1000, 10_000, 3


def train_variant(beta: float) -> None:
    """Train the VAE with the vector and a beta, and publish it in half precision."""
    torch.set_num_threads(1)
    card = CARDS["vae"] | {"arguments": {"width": 32, "channels": 32, "grid": 1}, "beta": beta}
    card |= {"recipe": card["recipe"] | {"steps": STEPS}, "data": describe_data()}
    torch.manual_seed(0)
    model, name = build(card), f"vae_vector_{beta:g}"
    loss, draw, data, validate = task(card, *load_fashion_mnist("train"), torch.device("cpu"))
    train(model, loss, draw, data, validate, f"runs/{name}", card)
    command = {"command": f"benchmarks/vaes.py train {beta:g}"}
    save_weights(PUBLISHED / f"{name}.safetensors", model.half(), read_card(f"runs/{name}") | command)


def measure(judge: Judge, vae: nn.Module, x0: torch.Tensor) -> dict:
    """Return how good samples from the prior and reconstructions are, and what the latent holds of test images x0."""
    drawn = (features(judge.classifier, to_uint8(sample_prior(vae, N, seed))) for seed in range(SEEDS))
    mu, log_var = (torch.cat(parts) for parts in zip(*map(vae.encode, x0.split(1000)), strict=True))
    return {
        "prior": mean_and_spread([judge.distances(found) for found in drawn]),
        "ceiling": mean_and_spread(judge.ceiling(N, vae, range(SEEDS))),
        "kl": kl_divergence(mu, log_var).mean().item(),
        "active_units": active_units(mu),
    }


def main() -> None:
    """Measure all and write the result into the card of the published `vae`."""
    torch.set_num_threads(1)
    judge = load_judge()
    names = ["vae", *(f"vae_vector_{beta:g}" for beta in BETAS)]
    exhibits = {"n": N, "seeds": SEEDS, "device": "cpu", "floor": mean_and_spread(judge.floor(N))}
    for name in names:
        exhibits[name] = measure(judge, load_pretrained(name), to_model(judge.test_images))
        print(name, exhibits[name], flush=True)
    card = read_card("vae") | {"exhibits": exhibits}
    (PUBLISHED / "vae.json").write_text(json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["train", beta] if float(beta) in BETAS:
            train_variant(float(beta))
        case ["measure"]:
            main()
        case _:
            print(__doc__)
