"""Measure lesson 07's choice: 64 numbers with places or without, and which network draws them.

uv run python benchmarks/vectors.py train vector       an autoencoder, three denoisers of its latents; or `train map`
uv run python benchmarks/vectors.py train alike        the autoencoder without places, all its channels weighed alike
uv run python benchmarks/vectors.py train lists        an MLP three times in the latent of the published autoencoder
uv run python benchmarks/vectors.py train neighbours   an autoencoder with places, and in its latent two U-Nets
uv run python benchmarks/vectors.py train early        the published denoiser, its weights kept early on, too
uv run python benchmarks/vectors.py measure latents    both kinds, into the card of the published denoiser
uv run python benchmarks/vectors.py measure lists      the MLPs, on the images that the card's table "latents" has
uv run python benchmarks/vectors.py measure losses     the two U-Nets by their loss on the images held out
uv run python benchmarks/vectors.py measure neighbours the two U-Nets by what they draw
uv run python benchmarks/vectors.py measure guidance   the published denoiser, guided
uv run python benchmarks/vectors.py measure reported   what was chosen so, on the test images

All denoisers but the published one are trained alike: 3,000 steps of 128 latents, rate 0.001, all labels shown.
`train vector` trains the published autoencoder anew: recipe and seed are the same, so the weights are, too. Of the two
U-Nets of `train neighbours` one sees the map in order and one sees it shuffled, always in the same way. These trainings
are shorter: 1,000 steps for each of the three networks.
"""

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from exhibits import compared, publish, train_card
from torch import nn

from fmdiff_helpers.arguments import seeds_for
from fmdiff_helpers.cards import build, read_card
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.data import describe_data, to_uint8
from fmdiff_helpers.drawing import Drawer, drawer_of, load_drawer
from fmdiff_helpers.leaderboard import kinds_of, load_judge
from fmdiff_helpers.metrics import Judge, mean_and_spread
from fmdiff_helpers.models.attention_autoencoder import ChannelAttention
from fmdiff_helpers.recipes import CARDS, describe_autoencoder, profiles, train_network
from fmdiff_helpers.results import Results
from fmdiff_helpers.run import device_name

N, NUM_STEPS, TRAINING_STEPS, SHORT_STEPS = 1000, 50, 3000, 1000
SCALES, REPORTED = (1.0, 1.5, 2.0, 3.0), (1.5, 2.0)
STEPS, FEW_STEPS = (profiles("attention_autoencoder")[profile]["steps"] for profile in ("full", "quick"))
LATENTS = {"vector": False, "map": True}  # without places, or with
DENOISERS = {
    "transformer": {
        "network": "transformer.Transformer",
        "arguments": {"image_size": 8, "patch": 2, "dim": 128, "depth": 4, "num_classes": 10, "attention": "softmax"},
    },
    "U-Net": {},  # as published
    "MLP": {"network": "mlp.MLP", "arguments": {"size": 64, "width": 256, "depth": 3, "num_classes": 10}},
}
ORDERS = ("in order", "shuffled")
TRAININGS = 3


def folder_of(*names: str) -> str:
    """Return where a network is trained: an autoencoder, or a denoiser of its latents."""
    return "_".join(["runs/latent", *names])


class Ones(nn.Module):
    """Stand in for the last layer of the channels' weights: 1 for all of them, whatever the picture."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ones shaped like x."""
        return torch.ones_like(x)


def weigh_alike(autoencoder: nn.Module) -> None:
    """Let an autoencoder weigh all channels alike, whatever the picture."""
    for part in autoencoder.modules():
        if isinstance(part, ChannelAttention):
            part.weigh[-1] = Ones()


def shuffle(network: nn.Module) -> None:
    """Let a denoiser see the 64 numbers in another order, always the same one; its answer is in the usual order."""
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))

    def arrange(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, order].reshape(x.shape)

    network.register_forward_pre_hook(lambda _, inputs: (arrange(inputs[0], order), *inputs[1:]))
    network.register_forward_hook(lambda _, inputs, found: arrange(found, order.argsort()))


def leave(network: nn.Module) -> None:
    """Leave a network as it is."""


def train_for(steps: int, card: dict, folder: str, change: Callable[[nn.Module], None] = leave, seed: int = 0) -> None:
    """Train the network of a card for so many steps, from the weights of a seed; `change` may change it before."""
    card = card | {"recipe": card["recipe"] | {"steps": steps, "seed": seed}, "data": describe_data()}
    torch.manual_seed(seed)
    model = build(card)
    change(model)
    train_card(card, folder, model)


def train_autoencoder(latent: str, steps: int, folder: str) -> None:
    """Train an autoencoder with places or without."""
    card = CARDS["attention_autoencoder"]
    train_for(steps, card | {"arguments": card["arguments"] | {"places": LATENTS[latent]}}, folder)


def denoiser_card(name: str, autoencoder: str) -> dict:
    """Return the card of a denoiser of the latents of an autoencoder."""
    card = CARDS["vector_denoiser"] | {"recipe": {"lr": 1e-3, "floor": 0.1}} | DENOISERS[name]
    card |= {"label_dropout": 0.0}  # a transformer always wants to know the label
    return card | {"autoencoder": describe_autoencoder(autoencoder, (1, 8, 8))}


def train_latent(latent: str) -> None:
    """Train an autoencoder, and all denoisers in its latent."""
    train_autoencoder(latent, STEPS, folder_of(latent))
    for name in DENOISERS:
        train_for(TRAINING_STEPS, denoiser_card(name, folder_of(latent)), folder_of(latent, name))


def train_lists() -> None:
    """Train an MLP in the latent of the published autoencoder, with several seeds."""
    for seed in range(TRAININGS):
        card = denoiser_card("MLP", "attention_autoencoder")
        train_for(TRAINING_STEPS, card, folder_of("published", f"MLP_{seed}"), seed=seed)


def train_neighbours() -> None:
    """Train an autoencoder with places, and two U-Nets in its latent: one that sees the map in order, one shuffled."""
    places = folder_of("neighbours")
    train_autoencoder("map", FEW_STEPS, places)
    for order, change in zip(ORDERS, (leave, shuffle), strict=True):
        train_for(SHORT_STEPS, denoiser_card("U-Net", places), folder_of("neighbours", order.replace(" ", "_")), change)


def final_error(folder: str) -> float:
    """Return the loss on the images held out of a training, at its end: an autoencoder's is the squared error."""
    return read_card(folder)["history"][-1]["validation"]["loss"]


def train_early() -> None:
    """Train the denoiser that is published, and keep its weights after each 500 steps, with pictures."""
    folder = Path("runs/vector_denoiser")
    train_network("vector_denoiser", folder, report=Results(folder, keep_every=1))


def about(split: str) -> dict:
    """Return how everything here is measured."""
    return compared(split, N) | {"steps": NUM_STEPS, "device": device_name(torch.device("cpu"))}


def measured(judge: Judge, drawer: Drawer, seeds: Iterable[int]) -> dict:
    """Return what a denoiser draws, measured."""
    y = drawer.all_kinds(N)
    found = mean_and_spread([judge.measure(to_uint8(drawer.draw(N, seed, y)), y) for seed in seeds])
    print(found, flush=True)
    return found


def measured_limit(judge: Judge, autoencoder: nn.Module, seeds: Iterable[int]) -> dict:
    """Return the measures of real images, equally many of each kind, that have been through an autoencoder."""
    return mean_and_spread(judge.limit(N, autoencoder, seeds, kinds_of(judge))) | weights_of(autoencoder)


def weights_of(network: nn.Module) -> dict[str, int]:
    """Return the number of a network's weights."""
    return {"weights": sum(p.numel() for p in network.parameters())}


def measure_latents() -> dict:
    """Measure both kinds of latent: what they keep, and what the denoisers draw there."""
    judge, seeds = load_judge(split="validation"), seeds_for("validation")
    results = about("validation") | {"training_steps": TRAINING_STEPS}
    results["error, channels weighed"] = final_error(folder_of("vector"))
    results["error, channels alike"] = final_error(folder_of("alike"))
    for latent in LATENTS:
        results[f"limit of the {latent}"] = measured_limit(judge, load_pretrained(folder_of(latent)), seeds)
        for name in DENOISERS:
            folder = folder_of(latent, name)
            found = measured(judge, load_drawer(folder, NUM_STEPS), seeds)
            results[f"{name} on the {latent}"] = found | weights_of(load_pretrained(folder))
    return results


def measure_lists() -> dict:
    """Measure the MLPs as the card's table "latents" was measured; and mean and spread over the trainings."""
    like = {key: read_card("vector_denoiser")["latents"][key] for key in ("n", "seeds", "first_seed", "split", "steps")}
    judge, seeds = load_judge(split=like["split"]), range(like["first_seed"], like["first_seed"] + like["seeds"])
    folders = [folder_of("published", f"MLP_{seed}") for seed in range(TRAININGS)]
    found = [measured(judge, load_drawer(folder, like["steps"]), seeds) for folder in folders]
    means = [{measure: mean for measure, (mean, _) in each.items()} for each in found]
    over = {"MLP on the vector, over trainings": mean_and_spread(means)}
    about_them = like | {"device": device_name(torch.device("cpu")), "training_steps": TRAINING_STEPS}
    first = {"MLP on the vector": found[0] | weights_of(load_pretrained(folders[0]))}
    return about_them | {"trainings": means} | first | over


def measure_losses() -> dict:
    """Return the losses on the images held out, by step: of the two U-Nets, and of the MLPs, which differ by chance."""

    def losses(folder: str) -> dict[str, float]:
        return {str(point["step"]): point["validation"]["loss"] for point in read_card(folder)["history"]}

    found = {order: losses(folder_of("neighbours", order.replace(" ", "_"))) for order in ORDERS}
    lists = [losses(folder_of("published", f"MLP_{seed}")) for seed in range(TRAININGS)]
    return {"training_steps": SHORT_STEPS} | found | {"MLPs on the vector": lists}


def measure_neighbours() -> dict:
    """Measure what a U-Net draws that sees the map in order, and one that sees it shuffled."""
    judge, seeds = load_judge(split="validation"), seeds_for("validation")
    limit = measured_limit(judge, load_pretrained(folder_of("neighbours")), seeds)
    results = about("validation") | {"training_steps": SHORT_STEPS, "limit of the map": limit}
    for order, change in zip(ORDERS, (leave, shuffle), strict=True):
        folder = folder_of("neighbours", order.replace(" ", "_"))
        network = load_pretrained(folder)
        change(network)
        drawer = drawer_of(read_card(folder), network, NUM_STEPS, "cpu")
        results[order] = measured(judge, drawer, seeds) | weights_of(network)
    return results


def measure_guidance(judge: Judge, split: str, scales: tuple[float, ...]) -> dict:
    """Measure the published denoiser, guided."""
    seeds, drawers = seeds_for(split), {w: load_drawer("vector_denoiser", NUM_STEPS, w) for w in scales}
    return about(split) | {f"w {w:g}": measured(judge, drawer, seeds) for w, drawer in drawers.items()}


def measure_scales() -> dict:
    """Measure the published denoiser over w."""
    return measure_guidance(load_judge(split="validation"), "validation", SCALES)


def measure_reported() -> dict:
    """Measure on the test images what was chosen."""
    return measure_guidance(load_judge(split="test"), "test", REPORTED)


TRAIN = {"lists": train_lists, "neighbours": train_neighbours, "early": train_early}
MEASURES = {
    "latents": measure_latents,
    "lists": measure_lists,
    "losses": measure_losses,
    "neighbours": measure_neighbours,
    "guidance": measure_scales,
    "reported": measure_reported,
}

if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    match sys.argv[1:]:
        case ["train", "alike"]:
            train_for(STEPS, CARDS["attention_autoencoder"], folder_of("alike"), weigh_alike)
        case ["train", latent] if latent in LATENTS:
            train_latent(latent)
        case ["train", what] if what in TRAIN:
            TRAIN[what]()
        case ["measure", what] if what in MEASURES:
            publish("vector_denoiser", what, MEASURES[what]())
        case _:
            print(__doc__)
