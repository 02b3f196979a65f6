"""Measure in lesson 04 what beta does, and what a prior that is fitted to the latents does instead.

uv run python benchmarks/vaes.py train BETA      one VAE with a vector of 32 numbers, into data/weights; 7 to 10 minutes
uv run python benchmarks/vaes.py train wide      one with a vector of 196 numbers, into runs; about half an hour
uv run python benchmarks/vaes.py measure NAME    `vae`, `vae_vector_BETA` or `vae_vector_wide`, into the card of `vae`

392 is what beta becomes where the squared error is a mean over the 784 pixels and the KL divergence a sum.
`vae_vector_wide` has as many numbers as the map of `vae`, the same beta and as many steps. It is measured and not
published: without places it has 2.2 million weights, most of them between map and vector; `vae` has 0.3 million.
"""

import sys

import torch
from exhibits import compared, publish, train_card
from torch import Tensor, nn

from fmdiff_helpers.arguments import seeds_for
from fmdiff_helpers.cards import PUBLISHED, read_card
from fmdiff_helpers.checkpoints import load_pretrained, save_weights
from fmdiff_helpers.data import NUM_VALIDATION, describe_data, load_fashion_mnist, to_model, to_uint8
from fmdiff_helpers.metrics import features, frechet_distance, mean_and_spread
from fmdiff_helpers.models.vae import active_units, kl_divergence, reparameterize
from fmdiff_helpers.processes.autoencoding import draw_gaussian
from fmdiff_helpers.recipes import CARDS

# End of the network's name -> its beta, the numbers of its latent, and its steps.
VARIANTS = {f"{beta:g}": (beta, 32, 1000) for beta in (0, 0.01, 0.1, 1, 10, 392)} | {"wide": (0.01, 196, 3000)}
WIDE = "vae_vector_wide"
N, FIT, SPLIT = 1000, 10_000, "validation"


def train_variant(variant: str) -> None:
    """Train a VAE with a vector, and publish it in half precision, unless it is the wide one."""
    torch.set_num_threads(1)
    (beta, numbers, steps), vae, name = VARIANTS[variant], CARDS["vae"], f"vae_vector_{variant}"
    card = vae | {"arguments": {"width": 32, "channels": numbers, "grid": 1}, "data": describe_data()}
    card |= {"process": vae["process"] | {"kl_weight": beta}, "recipe": vae["recipe"] | {"steps": steps}}
    model = train_card(card, f"runs/{name}")
    if name == WIDE:
        return
    command = {"command": f"benchmarks/vaes.py train {variant}"}
    save_weights(PUBLISHED / f"{name}.safetensors", model.half(), read_card(f"runs/{name}") | command)


def drawn_latents(z: Tensor, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Return N latents from each prior: N(0, I), and three that are fitted to latents z (M, ...) of kinds y (M,)."""
    eps = torch.randn((N, *z.shape[1:]), generator=generator)
    return {
        "prior": eps,
        "spread": z.mean(dim=0) + z.std(dim=0) * eps,
        "gaussian": draw_gaussian(z, N, generator),
        "kinds": torch.cat([draw_gaussian(z[y == kind], N // 10, generator) for kind in range(10)]),
    }


def equal_kinds(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Choose N images, equally many of each kind."""
    order = torch.randperm(len(images), generator=generator)
    return torch.cat([images[order[labels[order] == kind][: N // 10]] for kind in range(10)])


def in_parts(network: nn.Module, function: str, x: Tensor) -> Tensor:
    """Return what a function of a network makes of x, in parts that fit into a processor's cache."""
    return torch.cat([getattr(network, function)(part) for part in x.split(100)])


@torch.no_grad()
def measure(name: str) -> None:
    """Measure images from four priors and reconstructions, and what the latent holds, and write it into the card.

    "unseen" is the squared error of a pixel on validation images in the course of the training, at random points of the
    clouds, by step.
    """
    torch.set_num_threads(1)
    place = f"runs/{name}" if name == WIDE else name
    vae, classifier = load_pretrained(place), load_pretrained("classifier")
    images, labels = (part[:-NUM_VALIDATION] for part in load_fashion_mnist("train"))
    unseen = load_fashion_mnist(SPLIT)[0]
    real = features(classifier, unseen)
    mu, log_var = in_parts(vae, "encoder", to_model(images[:FIT])).chunk(2, dim=1)
    found: dict[str, list] = {}
    for seed in seeds_for(SPLIT):
        generator = torch.Generator().manual_seed(seed)
        z = reparameterize(mu, log_var.clamp(-20, 20), torch.randn(mu.shape, generator=generator))
        for way, points in drawn_latents(z, labels[:FIT], generator).items():
            drawn = features(classifier, to_uint8(in_parts(vae, "decode", points)))
            found.setdefault(way, []).append({"fd": frechet_distance(drawn, real)})
        chosen = equal_kinds(images, labels, generator)
        again = in_parts(vae, "decode", in_parts(vae, "encoder", to_model(chosen)).chunk(2, dim=1)[0])
        error = (again - to_model(chosen)).square().mean().item()
        back = {"fd": frechet_distance(features(classifier, to_uint8(again)), real), "squared_error": error}
        found.setdefault("limit", []).append(back)
        found.setdefault("floor", []).append({"fd": frechet_distance(features(classifier, chosen), real)})
    mu, log_var = vae.encode(to_model(unseen))
    row = {way: mean_and_spread(each) for way, each in found.items()}
    floor = {"floor": row.pop("floor")}
    row |= {"kl": kl_divergence(mu, log_var).mean().item(), "active_units": active_units(mu)}
    points = [(point["step"], point["validation"]) for point in read_card(place)["history"] if "validation" in point]
    row["unseen"] = {str(step): found["squared_error"] for step, found in points}
    publish("vae", "exhibits", floor | {name: row}, **compared(SPLIT, N), fitted_to=FIT, device="cpu")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["train", variant] if variant in VARIANTS:
            train_variant(variant)
        case ["measure", name] if name == "vae" or name.removeprefix("vae_vector_") in VARIANTS:
            measure(name)
        case _:
            print(__doc__)
