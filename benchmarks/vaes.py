"""Measure what beta does in lesson 04: VAEs with a vector of 32 numbers, and more and more weight on the KL divergence.

uv run python benchmarks/vaes.py train BETA     one VAE, into data/weights; 7 to 10 minutes of a busy core
uv run python benchmarks/vaes.py measure        all of them and the published `vae`, into its card

392 is what beta becomes where the squared error is a mean over the 784 pixels and the KL divergence a sum.
"""

import sys

import torch
from exhibits import compared, publish, train_card

from fmdiff_helpers.arguments import seeds_for
from fmdiff_helpers.cards import PUBLISHED, read_card
from fmdiff_helpers.checkpoints import load_pretrained, save_weights
from fmdiff_helpers.data import describe_data, to_model, to_uint8
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.leaderboard import kinds_of, load_judge
from fmdiff_helpers.metrics import Judge, features, mean_and_spread
from fmdiff_helpers.models.vae import active_units, kl_divergence
from fmdiff_helpers.recipes import CARDS

BETAS = (0, 0.01, 0.1, 1, 10, 392)
STEPS, N, SPLIT = 1000, 10_000, "validation"


def train_variant(beta: float) -> None:
    """Train the VAE with the vector and a beta, and publish it in half precision."""
    torch.set_num_threads(1)
    card, name = CARDS["vae"] | {"arguments": {"width": 32, "channels": 32, "grid": 1}}, f"vae_vector_{beta:g}"
    card |= {"process": card["process"] | {"kl_weight": beta}}
    card |= {"recipe": card["recipe"] | {"steps": STEPS}, "data": describe_data()}
    model = train_card(card, f"runs/{name}")
    command = {"command": f"benchmarks/vaes.py train {beta:g}"}
    save_weights(PUBLISHED / f"{name}.safetensors", model.half(), read_card(f"runs/{name}") | command)


def measure(judge: Judge, name: str, x0: torch.Tensor) -> dict:
    """Return how good samples from the prior and reconstructions are, and what the latent holds of images x0."""
    drawer, vae, seeds = load_drawer(name), load_pretrained(name), seeds_for(SPLIT)
    drawn = (features(judge.classifier, to_uint8(drawer.draw(N, seed))) for seed in seeds)
    mu, log_var = (torch.cat(parts) for parts in zip(*map(vae.encode, x0.split(1000)), strict=True))
    return {
        "prior": mean_and_spread([judge.distances(found) for found in drawn]),
        "limit": mean_and_spread(judge.limit(N, vae, seeds, kinds_of(judge))),
        "kl": kl_divergence(mu, log_var).mean().item(),
        "active_units": active_units(mu),
    }


def main() -> None:
    """Measure all and write the result into the card of the published `vae`."""
    torch.set_num_threads(1)
    judge = load_judge(split=SPLIT)
    names = ["vae", *(f"vae_vector_{beta:g}" for beta in BETAS)]
    floor = mean_and_spread(judge.floor(N, seeds_for(SPLIT), kinds_of(judge)))
    publish("vae", "exhibits", {"floor": floor}, **compared(SPLIT, N), device="cpu")
    for name in names:
        publish("vae", "exhibits", {name: measure(judge, name, to_model(judge.test_images))})


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["train", beta] if float(beta) in BETAS:
            train_variant(float(beta))
        case ["measure"]:
            main()
        case _:
            print(__doc__)
