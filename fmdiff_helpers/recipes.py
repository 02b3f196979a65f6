"""Recipes: how the networks of `fmdiff train` are built and trained; each recipe is the beginning of a card."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fmdiff_helpers.batching import batch_size_on, in_batches, this_process
from fmdiff_helpers.cards import (
    build,
    build_process,
    class_name,
    find_weights,
    latent_shape,
    name_of,
    published_first,
    read_card,
    takes_labels,
)
from fmdiff_helpers.data import NUM_VALIDATION, describe_data, is_there, load_fashion_mnist, raw_folder, to_model
from fmdiff_helpers.drawing import autoencoder_of
from fmdiff_helpers.endings import Signals, only_writer
from fmdiff_helpers.entries import number_of_kinds, own_pictures
from fmdiff_helpers.pictures import Pictures, check_enough
from fmdiff_helpers.teaching import check_teachers, draw_pairs, start_from, teacher_of
from fmdiff_helpers.train import Run, check_folder, check_recipe, train

LEAST_VALIDATED = 500  # images of one's own: a denoiser's loss over fewer amounts of noise would be left to chance


def new_card(
    kind: str,
    network: str,
    arguments: dict,
    process: dict,
    recipe: dict,
    label_dropout: float = 0.0,
    autoencoder: str | None = None,
) -> dict:
    """Return the beginning of a card; `autoencoder` names the one that is used by default."""
    card = {"kind": kind, "network": network, "arguments": arguments, "process": process}
    return card | {"label_dropout": label_dropout, "autoencoder": autoencoder, "recipe": recipe}


def cosine(T: int, target: str) -> dict:
    """Return a card's entry "process" for diffusion with the cosine schedule."""
    return {"name": "diffusion.Diffusion", "beta": "cosine_beta", "T": T, "target": target}


# What `shortcut_unet` learns from: `latent_unet`, led away as on the leaderboard; so it needs no guidance of its own.
LED_AWAY = {"teacher": "latent_unet", "guide": "latent_unet_unit_1", "guidance": 2.5}
CARDS: dict[str, dict[str, Any]] = {
    "unet": new_card(
        "denoiser",
        "unet.UNet",
        {"width": 32, "mults": [1, 2], "patch": 2, "depth": 1, "block": "resnet", "num_classes": 0, "T": 200},
        cosine(200, "eps"),
        {"lr": 8e-3},
    ),
    "transformer": new_card(
        "denoiser",
        "transformer.Transformer",
        {"image_size": 28, "patch": 4, "dim": 128, "depth": 4, "num_classes": 10, "attention": "linear"},
        cosine(200, "x0"),
        {"lr": 4e-3, "weight_decay": 0.05, "cycles": 3},
    ),
    "vae": new_card(
        "autoencoder",
        "vae.VAE",
        {"width": 32, "channels": 4, "grid": 7},
        {"name": "autoencoding.VariationalPrior", "kl_weight": 0.01},
        {"lr": 2e-3, "max_grad_norm": 100.0},
    ),
    "latent_unet": new_card(
        "denoiser",
        "unet.UNet",
        {"channels": 4, "width": 32, "mults": [1, 2], "patch": 1, "num_classes": 10},
        cosine(1000, "v"),
        {"lr": 2e-3, "floor": 0.1},
        autoencoder="vae",
    ),
    "shortcut_unet": new_card(
        "denoiser",
        "unet.UNet",
        {"channels": 4, "width": 32, "mults": [1, 2], "patch": 1, "num_classes": 10, "spans": True},
        {"name": "flow.Shortcut", "T": 1000, "beta": "cosine_beta"} | LED_AWAY,
        {"lr": 1e-3, "floor": 0.1},
        autoencoder="vae",
    ),
    "patch_unet": new_card(
        "denoiser",
        "patch_unet.PatchUNet",
        {"width": 48, "mults": [1, 2], "patch_size": 2, "num_classes": 10},
        cosine(200, "v"),
        {"lr": 2e-3, "floor": 0.1},
        label_dropout=0.1,
    ),
    "attention_autoencoder": new_card(
        "autoencoder",
        "attention_autoencoder.AttentionAutoencoder",
        {"width": 32, "places": False},
        {"name": "autoencoding.Reconstruction"},
        {"lr": 2e-3},
    ),
    "vector_denoiser": new_card(
        "denoiser",
        "unet.UNet",
        {"channels": 1, "width": 32, "mults": [1, 2], "patch": 1, "num_classes": 10},
        cosine(1000, "v"),
        {"lr": 2e-3, "floor": 0.1},
        label_dropout=0.1,
        autoencoder="attention_autoencoder",
    ),
    "classifier": new_card(
        "classifier",
        "classifier.Classifier",
        {"width": 32, "num_classes": 10},
        {"name": "classification.Classification"},
        {"lr": 3e-3, "weight_decay": 0.05},
    ),
    "encoder": new_card(
        "encoder",
        "encoder.Encoder",
        {"width": 32, "directions": 64},
        {"name": "contrast.Contrast", "temperature": 0.2},
        {"lr": 2e-3, "weight_decay": 0.05},
    ),
}
OWN = ("unet", "patch_unet", "encoder")  # what can be trained on pictures of one's own
LARGE = 32  # pixels; larger images are halved once more
# Network -> its steps with the profiles "quick" and "full".
STEPS = {
    "unet": (2000, 8000),
    "transformer": (1500, 12000),
    "vae": (1000, 3000),
    "latent_unet": (7000, 16000),
    "shortcut_unet": (2000, 6000),
    "patch_unet": (3000, 8000),
    "attention_autoencoder": (1000, 4000),
    "vector_denoiser": (3000, 16000),
    "classifier": (1000, 6000),
    "encoder": (1000, 2500),
}


def profiles(name: str) -> dict[str, dict[str, int]]:
    """Return how long a network can be trained: what each profile changes in its recipe."""
    quick, full = STEPS[name]
    return {"smoke": {"steps": 60, "every": 20}, "quick": {"steps": quick}, "full": {"steps": full}}


class LabelLoss(nn.Module):
    """Pass to a denoiser's loss no labels at all, or all labels but a random share `dropout`, replaced by `null`.

    It is a module, so that checkpoints keep the memory of a loss that has one.
    """

    def __init__(self, loss: Callable, takes_labels: bool, dropout: float, null: int):
        super().__init__()
        self.loss, self.takes_labels, self.dropout, self.null = loss, takes_labels, dropout, null

    def forward(self, model: Callable, x0: Tensor, y: Tensor, *drawn: Tensor) -> Tensor:
        """Return the loss of each image, (B,); with dropout the last of `drawn` is u (B,), see `draw_with_u`."""
        if self.dropout:
            *drawn, u = drawn
            y = torch.where(u < self.dropout, self.null, y)  # `drop_labels`, for any number of kinds
        return self.loss(model, x0, y if self.takes_labels else None, *drawn)


def draw_with_u(draw: Callable, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Draw u (B,), uniform in [0, 1), then what `draw` does; return u last: it decides whose label is hidden."""
    u = torch.rand(len(x0), generator=generator, device=x0.device)
    return *draw(x0, generator), u


class Parts(NamedTuple):
    """What `train` takes besides the network, its folder and its card."""

    loss: Callable
    draw: Callable
    data: tuple[Tensor, Tensor]
    validate: Callable


def training_parts(card: dict, images: Tensor, labels: Tensor, device: torch.device) -> Parts:
    """Return loss, draw, data and validation for the network of a card, from images uint8 (N, C, H, W) and labels."""
    process, labelled = build_process(card, device), takes_labels(card)
    teacher = teacher_of(process) if getattr(process, "teacher", "") else None
    if hasattr(process, "velocity"):
        process = replace(process, velocity=teacher)
    loss, draw, x = process.training_loss(card["recipe"]["steps"]), process.draw, images
    if card["kind"] == "denoiser" and (card["label_dropout"] or not labelled):
        loss = LabelLoss(loss, labelled, card["label_dropout"], number_of_kinds(card))
        draw = partial(draw_with_u, draw) if card["label_dropout"] else draw
    if getattr(process, "has_pairs", False):
        x = pairs_for(card, teacher, labels, device)
    elif card["autoencoder"]:  # its weights do not change, so each image is encoded once
        autoencoder, size = autoencoder_of(card, device), batch_size_on(device)

        def encode(part: Tensor) -> Tensor:
            return autoencoder.to_latent(to_model(part.to(device)))

        x = in_batches(encode, images, batch_size=size, shared=True)
    held = held_out(card)
    x0, y = x[-held:].to(device), labels[-held:].to(device)
    if own_pictures(card) and card["kind"] == "denoiser":
        x0, y = (repeated(part, LEAST_VALIDATED) for part in (x0, y))
    x0 = x0 if x0.is_floating_point() else to_model(x0)
    y = None if card["kind"] == "denoiser" and not labelled else y
    data = x[:-held], labels[:-held]
    return Parts(loss, draw, data, partial(process.validate, x0=x0, y=y))


def pairs_for(card: dict, teacher: Callable, labels: Tensor, device: torch.device) -> Tensor:
    """Return noise with what a teacher makes of it, for each of the labels (N,); the same for the same seed.

    They are drawn once, before the training: drawn for each batch they would make a step nine times as long.
    """
    autoencoder = autoencoder_of(card, device)
    shape = autoencoder.latent_shape if autoencoder else build_process(card).shape
    eps = torch.randn((len(labels), *shape), generator=torch.Generator().manual_seed(card["recipe"]["seed"]))
    return draw_pairs(teacher, eps.to(device), labels if takes_labels(card) else None, math.inf if autoencoder else 1.0)


def held_out(card: dict) -> int:
    """Return how many images of a training, the last ones, are for validation."""
    own = own_pictures(card)
    return own["held_out"] if own else NUM_VALIDATION


def repeated(x: Tensor, least: int) -> Tensor:
    """Return entries of x (N, ...) again and again, in turn, until there are at least `least`.

    So each of a few images is validated with many amounts of noise.
    """
    return torch.cat([x] * max(1, math.ceil(least / len(x))))


def for_pictures(card: dict, own: Pictures) -> dict:
    """Return a card of `CARDS` for pictures of one's own: their size, channels and kinds decide about the network.

    ValueError if they are too few.
    """
    check_enough(own)
    arguments, size, kinds = card["arguments"] | {"channels": own.images.shape[1]}, own.images.shape[2], len(own.kinds)
    if "mults" in arguments and size > LARGE:
        arguments["mults"] = [*arguments["mults"], arguments["mults"][-1]]  # one more level
    if arguments.get("num_classes"):
        arguments["num_classes"] = kinds
    if card["kind"] == "encoder":  # twice as many images are held out as it has features
        arguments["width"] = max(1, min(arguments["width"], own.held_out // 8))
    dropout = card["label_dropout"] if kinds else 0.0
    return card | {"arguments": arguments, "label_dropout": dropout, "data": own.entry()}


def run_folder(name: str, epochs: float) -> Path:
    """Return the folder of a lesson's training; with the stand-in data another one, so that the two never mix."""
    return Path("runs") / f"{name}_{epochs}_epochs{'' if is_there(raw_folder()) else '_standin'}"


def describe_autoencoder(name: Path | str, shape: tuple[int, ...]) -> dict[str, str]:
    """Return the entry "autoencoder" of a denoiser's card: its name, or absolute folder, and its sha256.

    ValueError unless its latents have this shape.
    """
    found = read_card(name)
    if found["kind"] != "autoencoder":
        raise ValueError(f"{name!r} is a {class_name(found)}; expected an autoencoder")
    if latent_shape(found) != shape:
        raise ValueError(f"latents of {name!r} are {latent_shape(found)}; expected {shape}, as the denoiser has them")
    return {"name": name_of(find_weights(name)), "sha256": found["sha256"]}


def first_weights(card: dict) -> nn.Module:
    """Return a card's network as its training begins: with the weights of its teacher, or random ones of its seed."""
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay
        torch.default_generator.manual_seed(card["recipe"]["seed"])
        model = build(card)
    if teacher := getattr(build_process(card), "teacher", ""):
        start_from(model, teacher)
    return model


def train_network(
    name: str,
    folder: Path | str,
    report: Callable[[Run], None] = lambda run: None,
    autoencoder: Path | str | None = None,
    own: Pictures | None = None,
    **changes: int,
) -> tuple[nn.Module, list[dict]]:
    """Train a network of `CARDS`, from scratch or from the checkpoint in `folder`, and return it with its history.

    `autoencoder`, for a denoiser of latents, is a published one or a folder; the card's own if left out. `own` are
    pictures to train one of `OWN` on, in place of Fashion-MNIST. `changes` replace entries of the recipe, steps=2000
    for example. ValueError for an unknown name, or for an autoencoder or pictures that the network has no use for;
    WeightsError where an autoencoder or a teacher is missing, or does not fit; the other errors are those of `train`.
    """
    if name not in CARDS:
        raise ValueError(f"name is {name!r}; expected one of {', '.join(CARDS)}")
    if autoencoder is not None and not CARDS[name]["autoencoder"]:
        raise ValueError(f"autoencoder is {str(autoencoder)!r}, but {name} is trained on images; leave it out")
    if own is not None and name not in OWN:
        raise ValueError(f"{name} cannot be trained on pictures of one's own; expected one of {', '.join(OWN)}")
    if own is not None:
        images, labels = (torch.cat(parts) for parts in zip(own.part("train"), own.part("validation"), strict=True))
        card = for_pictures(CARDS[name], own)
    else:
        with this_process().local_main_process_first():  # on each machine one process downloads, the others find it
            images, labels = load_fashion_mnist("train")
        card = CARDS[name] | {"data": describe_data()}
    recipe = CARDS[name]["recipe"] | profiles(name)["full"] | changes
    if card["autoencoder"]:
        shape = latent_shape(CARDS[card["autoencoder"]])
        card["autoencoder"] = describe_autoencoder(autoencoder or published_first(card["autoencoder"]), shape)
    card["recipe"] = check_recipe(recipe, len(images) - held_out(card))
    check_teachers(name, card)
    model = first_weights(card)
    with only_writer(Path(folder)):
        check_folder(Path(folder), card)  # before all images are encoded
        with Signals() as signals, signals.at_once():
            parts = training_parts(card, images, labels, this_process().device)
        return model, train(model, *parts, folder, card, report)
