"""How the published networks are trained: the recipes behind `fmdiff train`, as cards to be filled in."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate.utils import reduce
from torch import Tensor, nn

from fmdiff_helpers import schedules
from fmdiff_helpers.checkpoints import WeightsError, build, find_weights, load_pretrained, read_card, takes_labels
from fmdiff_helpers.data import describe_data, is_there, load_fashion_mnist, raw_folder, to_model
from fmdiff_helpers.diffusion import add_noise, draw_noise, simple_loss, v_loss, validation_loss, x0_loss
from fmdiff_helpers.guidance import drop_labels, guided
from fmdiff_helpers.models.vae import active_units, kl_divergence, vae_loss
from fmdiff_helpers.processes import at_once, join
from fmdiff_helpers.samplers import generate, in_batches, noise_from_v, noise_predictor, sample_prior
from fmdiff_helpers.train import train

NUM_VALIDATION = 2000  # the last images of the training split; the test split is never trained on, nor chosen by

# Name -> how the network is built and trained; by profile, for how many steps. A denoiser's target is the noise, or x0.
CARDS = {
    "unet": {
        "network": "unet.UNet",
        "arguments": {"width": 32, "mults": [1, 2], "patch": 2, "depth": 1, "block": "resnet", "num_classes": 0},
        "schedule": {"beta": "cosine_beta", "T": 200},
        "recipe": {"lr": 2e-3},
    },
    "transformer": {
        "network": "transformer.Transformer",
        "arguments": {"image_size": 28, "patch": 4, "dim": 128, "depth": 4, "num_classes": 10, "attention": "linear"},
        "schedule": {"beta": "cosine_beta", "T": 200},
        "target": "x0",
        "recipe": {"lr": 4e-3, "weight_decay": 0.05, "cycles": 3},
    },
    "vae": {
        "network": "vae.VAE",
        "arguments": {"width": 32, "channels": 4, "grid": 7},
        "beta": 0.01,
        "recipe": {"lr": 2e-3, "clip": 100.0},
    },
    "latent_unet": {
        "network": "unet.UNet",
        "arguments": {"channels": 4, "width": 32, "mults": [1, 2], "patch": 1, "num_classes": 10},
        "autoencoder": "vae",
        "schedule": {"beta": "cosine_beta", "T": 1000},
        "target": "v",
        "recipe": {"lr": 2e-3, "floor": 0.1},
    },
    "patch_unet": {
        "network": "patch_unet.PatchUNet",
        "arguments": {"width": 48, "mults": [1, 2], "patch_size": 2, "num_classes": 10},
        "schedule": {"beta": "cosine_beta", "T": 200},
        "target": "v",
        "label_dropout": 0.1,
        "recipe": {"lr": 2e-3, "floor": 0.1},
    },
    "attention_autoencoder": {
        "network": "attention_autoencoder.AttentionAutoencoder",
        "arguments": {"width": 32, "places": False},
        "recipe": {"lr": 2e-3},
    },
    "vector_denoiser": {
        "network": "unet.UNet",
        "arguments": {"channels": 1, "width": 32, "mults": [1, 2], "patch": 1, "num_classes": 10},
        "autoencoder": "attention_autoencoder",
        "schedule": {"beta": "cosine_beta", "T": 1000},
        "target": "v",
        "label_dropout": 0.1,
        "recipe": {"lr": 2e-3, "floor": 0.1},
    },
    "classifier": {
        "network": "classifier.Classifier",
        "arguments": {"width": 32, "num_classes": 10},
        "recipe": {"lr": 3e-3, "weight_decay": 0.05},
    },
}
PROFILES = {
    "unet": {"smoke": {"steps": 60, "every": 20}, "quick": {"steps": 2000}, "full": {"steps": 5000}},
    "transformer": {"smoke": {"steps": 60, "every": 20}, "quick": {"steps": 1500}, "full": {"steps": 12000}},
    "vae": {"smoke": {"steps": 60, "every": 20}, "quick": {"steps": 1000}, "full": {"steps": 3000}},
    "latent_unet": {"smoke": {"steps": 60, "every": 20}, "quick": {"steps": 7000}, "full": {"steps": 16000}},
    "patch_unet": {"smoke": {"steps": 60, "every": 20}, "quick": {"steps": 3000}, "full": {"steps": 8000}},
    "attention_autoencoder": {"smoke": {"steps": 60, "every": 20}, "quick": {"steps": 1000}, "full": {"steps": 4000}},
    "vector_denoiser": {"smoke": {"steps": 60, "every": 20}, "quick": {"steps": 3000}, "full": {"steps": 16000}},
    "classifier": {"smoke": {"steps": 60, "every": 20}, "quick": {"steps": 1000}, "full": {"steps": 6000}},
}


def encodes(card: dict) -> bool:
    """Tell whether a card's network is an autoencoder."""
    return card["network"] in (CARDS["vae"]["network"], CARDS["attention_autoencoder"]["network"])


def schedule_of(card: dict) -> schedules.Schedule:
    """Return the noise schedule that a card names: {"beta": "cosine_beta", "T": 200}."""
    return schedules.Schedule(getattr(schedules, card["schedule"]["beta"])(card["schedule"]["T"]))


def as_denoiser(card: dict, model: nn.Module, device: torch.device | str) -> tuple[Callable, schedules.Schedule]:
    """Return a network on `device` as samplers take it, one that predicts the noise, and its card's schedule there."""
    schedule = schedule_of(card).to(device)
    to_noise = {"eps": lambda model, schedule: model, "x0": noise_predictor, "v": noise_from_v}
    return to_noise[card.get("target", "eps")](model, schedule), schedule


def load_denoiser(name: Path | str, device: torch.device | str = "cpu") -> tuple[Callable, schedules.Schedule]:
    """Return a trained denoiser and its schedule as `as_denoiser` does."""
    return as_denoiser(read_card(name), load_pretrained(name, device), device)


def load_guided(
    name: Path | str,
    w: float,
    guide: Path | str | None = None,
    device: torch.device | str = "cpu",
    interval: tuple[int, int] | None = None,
) -> tuple[Callable, schedules.Schedule]:
    """Return what `load_denoiser` does, guided w times: away from itself without labels, or from the network `guide`.

    `interval` (first, last) keeps the guidance to those steps.
    ValueError where it has not learned without labels, or the guide takes none or sees other pictures or noise.
    """
    (model, schedule), card = load_denoiser(name, device), read_card(name)
    if guide is None:
        if "label_dropout" not in card:
            raise ValueError(f"{name!r} never learned without labels; name a weaker network to lead it away from")
        return guided(model, w, interval), schedule
    there = read_card(guide)
    for what in ("schedule", "autoencoder"):
        if card.get(what) != there.get(what):
            raise ValueError(f"{what} of {guide!r} is {there.get(what)}; expected that of {name!r}, {card.get(what)}")
    if not takes_labels(there):
        raise ValueError(f"the guide {guide!r} takes no labels; name one that does, as {name!r} does")
    return guided(model, w, interval, weak=load_denoiser(guide, device)[0]), schedule


def load_autoencoder(card: dict, device: torch.device | str = "cpu") -> nn.Module:
    """Return the autoencoder in whose latent a card's denoiser lives; WeightsError where it has changed since."""
    name, expected = card["autoencoder"]["name"], card["autoencoder"]["sha256"]
    found = read_card(name)["sha256"]
    if found != expected:
        raise WeightsError(
            f"this denoiser was trained in the latent of {name!r} with sha256 {expected}, found {found}; "
            "put those weights back, or train the denoiser anew"
        )
    return load_pretrained(name, device)


def load_sampler(
    name: Path | str,
    num_steps: int | None = None,
    guidance: float | None = None,
    guide: Path | str | None = None,
    interval: tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
) -> Callable:
    """Return what draws images of a trained denoiser, or of a VAE, which needs none of the other arguments.

    It is draw(n, seed, y, watch), as `generate` has them; `watch` sees images, also where the denoiser draws latents.
    The processes of `accelerate launch` share the work: all of them call draw, and all get all images.
    `guidance`, `guide` and `interval` are those of `load_guided`, and so are the errors.
    """
    card = read_card(name)
    if "beta" in card:
        vae = load_pretrained(name, device)
        return lambda n, seed, y=None, watch=None: sample_prior(vae, n, seed, shared=True)
    if guidance is None:
        model, schedule = load_denoiser(name, device)
    else:
        model, schedule = load_guided(name, guidance, guide, device, interval)
    vae = load_autoencoder(card, device) if "autoencoder" in card else None

    def draw(n: int, seed: int, y: Tensor | None = None, watch: Callable | None = None) -> Tensor:
        show = (lambda step: watch(vae.from_latent(step.xt) if vae else step.xt)) if watch else None
        return generate(model, schedule, n, seed, num_steps, y, show, vae, shared=True)

    return draw


def draw_shifts(x0: Tensor, generator: torch.Generator) -> tuple[Tensor]:
    """Draw by how much each image is moved down and right, -2 to 2 pixels, shape (B, 2)."""
    return (torch.randint(-2, 3, (len(x0), 2), generator=generator, device=x0.device),)


def draw_drops(x0: Tensor, generator: torch.Generator, schedule: schedules.Schedule) -> tuple[Tensor, ...]:
    """Draw what `draw_noise` does and, for each image, what decides whether its label is dropped: u (B,) in [0, 1)."""
    u = torch.rand(len(x0), generator=generator, device=x0.device)
    return *draw_noise(x0, generator, schedule), u


def shift(x0: Tensor, shifts: Tensor) -> Tensor:
    """Move each image (B, 1, H, W) down and right by its `shifts` (B, 2), at most 2 pixels; black comes in."""
    height, width = x0.shape[2:]
    padded = F.pad(x0, (2, 2, 2, 2), value=-1.0)
    rows = torch.arange(height, device=x0.device) + 2 - shifts[:, :1]
    columns = torch.arange(width, device=x0.device) + 2 - shifts[:, 1:]
    image = torch.arange(len(x0), device=x0.device)
    return padded[image[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def classifier_loss(model: Callable, x0: Tensor, y: Tensor, shifts: Tensor) -> Tensor:
    """Return the cross entropy of each image (B,), the images moved by `shifts`."""
    return F.cross_entropy(model(shift(x0, shifts)), y, reduction="none")


def classifier_validation(model: nn.Module, x0: Tensor, y: Tensor) -> dict[str, float]:
    """Return the mean cross entropy and the accuracy on images as they are."""
    logits = model(x0)
    return {"loss": F.cross_entropy(logits, y).item(), "accuracy": (logits.argmax(1) == y).cpu().double().mean().item()}


class ScheduledLoss(nn.Module):
    """Mix the squared and the absolute error of the predicted x0, the absolute one counting more and more.

    Both are brought to one size by running means of what they were: constants for the gradient, kept from step to
    step and in checkpoints. In `num_steps` steps the share of the squared error falls from 0.9 to 0.5.
    Built in lesson 02.
    """

    def __init__(self, schedule: schedules.Schedule, num_steps: int):
        super().__init__()
        self.schedule, self.num_steps = schedule, num_steps
        self.register_buffer("step", torch.tensor(0))
        self.register_buffer("sizes", torch.ones(2))

    def forward(self, model: Callable, x0: Tensor, y: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return the loss of each image, (B,)."""
        error = (model(add_noise(x0, t, eps, self.schedule), t, y) - x0).flatten(1)
        squared, absolute = error.square().mean(dim=1), error.abs().mean(dim=1)
        # Over all processes that share the batch, so that all of them mix alike.
        sizes = reduce(torch.stack([squared.mean(), absolute.mean()]).detach(), "mean")
        self.sizes.lerp_(sizes, torch.where(self.step > 0, 0.01, 1.0))
        share = 0.9 - 0.4 * self.step / self.num_steps
        self.step += 1
        return share * squared + (1 - share) * absolute * self.sizes[0] / self.sizes[1]


class AnnealedLoss(nn.Module):
    """The loss of a VAE, its beta rising evenly from 0 in the first `num_steps` steps: first see, then tidy up.

    (Bowman et al. 2016, section 3.1) Built in lesson 04.
    """

    def __init__(self, beta: float, num_steps: int):
        super().__init__()
        self.beta, self.num_steps = beta, num_steps
        self.register_buffer("step", torch.tensor(0))

    def forward(self, model: Callable, x0: Tensor, y: Tensor, eps: Tensor) -> Tensor:
        """Return the loss of each image, (B,)."""
        beta = self.beta * (self.step / self.num_steps).clamp(max=1)
        self.step += 1
        x_hat, mu, log_var = model(x0, eps)
        return vae_loss(x_hat, x0, mu, log_var, beta)


def draw_places(x0: Tensor, generator: torch.Generator, shape: tuple[int, ...]) -> tuple[Tensor]:
    """Draw where in its cloud each image's latent lies, standard normal (B, *shape)."""
    return (torch.randn((len(x0), *shape), generator=generator, device=x0.device),)


@torch.no_grad()
def vae_validation(model: nn.Module, x0: Tensor, beta: float) -> dict[str, float]:
    """Return the loss, the squared error of a pixel, the KL divergence of an image and the number of active units.

    On these images it also measures `shift` and `scale`, so that all weights that are written hold them.
    """
    eps = torch.randn((len(x0), *model.latent_shape), generator=torch.Generator().manual_seed(0)).to(x0.device)
    x_hat, mu, log_var = model(x0, eps)
    model.shift.copy_(mu.mean(dim=(0, 2, 3), keepdim=True)[0])
    # At least 1e-6: a number that is always the same would be divided by 0.
    model.scale.copy_(mu.std(dim=(0, 2, 3), keepdim=True)[0].clamp(min=1e-6))
    return {
        "loss": vae_loss(x_hat, x0, mu, log_var, beta).mean().item(),
        "squared_error": (x_hat - x0).square().mean().item(),
        "kl": kl_divergence(mu, log_var).mean().item(),
        "active_units": active_units(mu),
    }


def draw_nothing(x0: Tensor, generator: torch.Generator) -> tuple:
    """Draw no random numbers: an autoencoder without noise needs none."""
    return ()


def reconstruction_loss(model: Callable, x0: Tensor, y: Tensor) -> Tensor:
    """Return the squared error of each image that has been through an autoencoder, mean over pixels, (B,)."""
    return (model(x0) - x0).square().flatten(1).mean(dim=1)


@torch.no_grad()
def reconstruction_validation(model: nn.Module, x0: Tensor) -> dict[str, float]:
    """Return the loss; on these images it also measures `shift` and `scale`, as `vae_validation` does."""
    z = model.encode(x0)
    model.shift.copy_(z.mean(dim=0))
    model.scale.copy_(z.std(dim=0).clamp(min=1e-6))  # a number that is always the same would be divided by 0
    return {"loss": (model.decode(z) - x0).square().mean().item()}


def latent_shape(card: dict) -> tuple[int, ...]:
    """Return the shape of the latents of a card's autoencoder, without their batch."""
    with torch.device("meta"):  # built for its shape alone: no weights, no random numbers
        return build(card).latent_shape


def task(
    card: dict, images: Tensor, labels: Tensor, device: torch.device
) -> tuple[Callable, Callable, tuple, Callable]:
    """Return what `train` takes for a card: loss, draw, the training data, and the validation on what is held out."""
    x = images
    if "autoencoder" in card:  # once for all steps: it is trained, and stays as it is
        vae = load_autoencoder(card, device)
        size = at_once(device)  # where they are encoded, not where they come from
        x = in_batches(lambda part: vae.to_latent(to_model(part.to(device))), images, batch_size=size, shared=True)
    data = x[:-NUM_VALIDATION], labels[:-NUM_VALIDATION]
    x0, y = x[-NUM_VALIDATION:].to(device), labels[-NUM_VALIDATION:].to(device)
    x0 = x0 if x0.is_floating_point() else to_model(x0)
    if "beta" in card:
        loss = AnnealedLoss(card["beta"], max(1, card["recipe"]["steps"] // 3)).to(device)
        draw = partial(draw_places, shape=latent_shape(card))
        return loss, draw, data, partial(vae_validation, x0=x0, beta=card["beta"])
    if encodes(card):
        return reconstruction_loss, draw_nothing, data, partial(reconstruction_validation, x0=x0)
    if "schedule" not in card:
        return classifier_loss, draw_shifts, data, partial(classifier_validation, x0=x0, y=y)
    schedule = schedule_of(card).to(device)
    y = y if card["arguments"]["num_classes"] else None
    target_loss = {"eps": simple_loss, "x0": x0_loss, "v": v_loss}[card.get("target", "eps")]

    def loss(model: Callable, x0: Tensor, labels: Tensor, t: Tensor, eps: Tensor, u: Tensor | None = None) -> Tensor:
        labels = labels if u is None else drop_labels(labels, u, card["label_dropout"])
        return target_loss(model, x0, None if y is None else labels, t, eps, schedule)

    if card.get("target") == "x0":
        loss = ScheduledLoss(schedule, card["recipe"]["steps"]).to(device)
    validate = partial(validation_loss, x0=x0, y=y, schedule=schedule, loss_fn=target_loss)
    return loss, partial(draw_drops if "label_dropout" in card else draw_noise, schedule=schedule), data, validate


def run_folder(name: str, epochs: float) -> Path:
    """Name the folder of a lesson's training; with the stand-in another one, since neither goes on with the other."""
    return Path("runs") / f"{name}_{epochs}_epochs{'' if is_there(raw_folder()) else '_standin'}"


def describe_autoencoder(name: str, shape: tuple[int, ...]) -> dict[str, str]:
    """Return what a denoiser's card says of its autoencoder: its name, or absolute folder, and its sha256.

    ValueError unless its latents have this shape.
    """
    found = read_card(name)
    if not encodes(found):
        raise ValueError(f"{name!r} is a {found['network'].split('.')[1]}; expected an autoencoder")
    if latent_shape(found) != shape:
        raise ValueError(f"latents of {name!r} are {latent_shape(found)}; expected {shape}, as the denoiser has them")
    weights = find_weights(name)
    place = str(weights.parent.resolve()) if weights.name == "weights.safetensors" else name
    return {"name": place, "sha256": found["sha256"]}


def train_network(
    name: str,
    folder: Path | str,
    report: Callable[[list[dict]], None] = lambda history: None,
    autoencoder: str | None = None,
    **changes: int,
) -> tuple[nn.Module, list[dict]]:
    """Train a network of `CARDS`, from scratch or where `folder` left off, and return it with its history.

    `autoencoder`, for a denoiser of latents, is a published one or a folder; the card's own if left out. `changes`
    replace entries of the recipe, steps=2000 for example. Errors are those of `train`.
    """
    with join().local_main_process_first():  # on each machine one process downloads, and the others find it there
        images, labels = load_fashion_mnist("train")
    card = CARDS[name] | {"recipe": CARDS[name]["recipe"] | PROFILES[name]["full"] | changes, "data": describe_data()}
    if "autoencoder" in card:
        shape = latent_shape(CARDS[card["autoencoder"]])
        card["autoencoder"] = describe_autoencoder(str(autoencoder or card["autoencoder"]), shape)
    with torch.random.fork_rng(devices=[]):  # the same weights to start from; the caller's random numbers stay
        torch.default_generator.manual_seed(card["recipe"].get("seed", 0))
        model = build(card)
    loss, draw, data, validate = task(card, images, labels, join().device)
    return model, train(model, loss, draw, data, validate, folder, card, report)
