"""Draw images: a `Drawer` is a trained network with all that it needs to draw, loaded by name and options."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fmdiff_helpers.batching import in_batches, shows_bars
from fmdiff_helpers.cards import WeightsError, build_process, class_name, published_first, read_card, takes_labels
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.data import CLASS_NAMES
from fmdiff_helpers.entries import GARMENT, image_shape, own_pictures
from fmdiff_helpers.guidance import guided

MOST_NAMED = 20  # kinds in a message


def batch_generator(numbers: Tensor, seed: int, start: torch.Generator) -> torch.Generator:
    """Return the noise generator for one batch of images, given their numbers (B,).

    It depends only on the seed and the first number, so any process can draw any batch. The first batch continues
    from `start`, the generator that has drawn the initial noise of all chains.
    """
    generator, first = torch.Generator(start.device), int(numbers[0])
    return generator.manual_seed(1_000_003 * (seed + 1) + first) if first else generator.set_state(start.get_state())


def kinds_of(card: dict) -> Sequence[str]:
    """Return the names of the kinds of images that a card's network knows: garments, or those of one's own pictures."""
    own = own_pictures(card)
    return CLASS_NAMES if own is None else tuple(own["kinds"])


def find_kind(kind: str | int, what: str = "label", kinds: Sequence[str] = CLASS_NAMES) -> int:
    """Return the number of a kind, one of `kinds`, given by its name, in any case, or by its number.

    torchvision's name "T-shirt/top" is known, too. ValueError, which calls the value `what`, if there is no such kind.
    """
    if kind in kinds:  # of "Cat" and "cat" the one that is meant
        return kinds.index(kind)
    names = [name.lower() for name in kinds]
    numbers = [str(number) for number in range(len(names))]
    found = str(kind).strip().lower().replace("t-shirt/top", "t-shirt")
    if found not in names + numbers:
        known = ", ".join(f"{number} {name}" for number, name in enumerate(kinds[:MOST_NAMED]))
        known += f" and {len(kinds) - MOST_NAMED} more" if len(kinds) > MOST_NAMED else ""
        raise ValueError(f"{what} is {kind!r}; expected a name or a number of: {known}")
    return (names + numbers).index(found) % len(names)


@dataclass(frozen=True)
class Drawer:
    """Draw images with a network.

    `process` is one of `fmdiff_helpers.processes`, and `model` what its `sample` takes: `process.predictor(network)`,
    guided or not. `num_steps` None means all of them, `eta` None the process's own. A denoiser of latents needs its
    `autoencoder`. If `shared`, the processes of `accelerate launch` share the work: all of them must call `draw`, and
    all get all images. `kinds` are the names of what it draws, in the order of the labels. A `precise` model takes
    float64, and the sampler computes in it where the device can: at the first step hardly any signal is left, so that
    x0_hat is a small difference divided by a smaller number.
    """

    process: Any
    model: Callable
    num_steps: int | None = None
    autoencoder: Any = None
    takes_labels: bool = True
    shared: bool = False
    eta: float | None = None
    kinds: Sequence[str] = CLASS_NAMES
    precise: bool = False

    def decode(self, x: Tensor) -> Tensor:
        """Return the states x (B, ...) of a chain as images in float32, of garments (B, 1, 28, 28)."""
        return self.autoencoder.from_latent(x.float()) if self.autoencoder else x.float()

    def all_kinds(self, n: int) -> Tensor | None:
        """Return n labels, all kinds in turn; None if the network takes no labels."""
        return torch.arange(n) % len(self.kinds) if self.takes_labels else None

    def one_kind(self, label: str | int, n: int) -> Tensor:
        """Return n labels of one kind: `label` is what `find_kind` takes.

        ValueError if there is no such kind, or if the network takes no labels.
        """
        if not self.takes_labels:
            raise ValueError(f"label is {label!r}, but this network takes no labels; leave it out")
        return torch.full((n,), find_kind(label, kinds=self.kinds))

    @torch.no_grad()
    def draw(self, n: int, seed: int = 0, y: Tensor | None = None, watch: Callable | None = None) -> Tensor:
        """Draw n images, of garments (n, 1, 28, 28); the same seed gives the same images.

        `y` (n,) are their labels, for a network that takes them. `watch` sees the sampler's steps, batch by batch.
        Latents are not clipped. FloatingPointError if an image is not finite.
        """
        device = self.process.device
        start = torch.Generator(device).manual_seed(seed)
        shape = self.autoencoder.latent_shape if self.autoencoder else self.process.shape
        x = torch.randn((n, *shape), generator=start, device=device)
        if self.precise:
            x = x if device.type == "mps" else x.double()
        options = {
            "watch": watch,
            "clip": math.inf if self.autoencoder else 1.0,
            "progress": n <= 500 and shows_bars(),
        } | ({} if self.eta is None else {"eta": self.eta})

        def sample(numbers: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
            generator = batch_generator(numbers, seed, start)
            return self.decode(self.process.sample(self.model, x, generator, self.num_steps, y=y, **options))

        inputs = [torch.arange(n, device=device), x, *([] if y is None else [y.to(device)])]
        images = in_batches(sample, *inputs, shared=self.shared)
        if not images.isfinite().all():
            raise FloatingPointError("the samples are not finite; ask for less guidance, or train the network anew")
        return images


def load_autoencoder(name: Path | str, device: torch.device | str = "cpu") -> nn.Module | None:
    """Return the network itself if it is an autoencoder, or the autoencoder of a denoiser of latents; else None.

    WeightsError if the autoencoder has changed since the denoiser was trained.
    """
    card = read_card(name)
    return load_pretrained(name, device) if card["kind"] == "autoencoder" else autoencoder_of(card, device)


def autoencoder_of(card: dict, device: torch.device | str) -> Any:
    """Return the autoencoder that a denoiser's card names, if any; WeightsError if it has changed since."""
    if card["autoencoder"] is None:
        return None
    name, expected = published_first(card["autoencoder"]["name"]), card["autoencoder"]["sha256"]
    found = read_card(name)["sha256"]
    if found != expected:
        raise WeightsError(
            f"this denoiser was trained in the latent of {str(name)!r} with sha256 {expected}, found {found}; "
            "put those weights back, or train the denoiser anew"
        )
    autoencoder = load_pretrained(name, device)
    if not hasattr(autoencoder, "latent_shape"):
        raise WeightsError(f"the card names {name!r} as its autoencoder, but this is none; correct the card")
    return autoencoder


def in_single(network: Callable) -> Callable:
    """Return a network of float32 as one that takes any precision, and returns that of its images."""

    def predict(x: Tensor, *rest: Tensor | None) -> Tensor:
        floats = (part.float() if part is not None and part.is_floating_point() else part for part in (x, *rest))
        return network(*floats).to(x.dtype)

    return predict


def drawer_of(card: dict, network: nn.Module, num_steps: int | None, device: torch.device | str) -> Drawer:
    """Return the Drawer of a network that is already on `device`, as its card says."""
    process = build_process(card, device)
    autoencoder, walks = autoencoder_of(card, device), process.max_steps > 1
    model = process.predictor(in_single(network) if walks else network)
    return Drawer(process, model, num_steps, autoencoder, takes_labels(card), kinds=kinds_of(card), precise=walks)


def check_fit(name: Path | str, drawer: Drawer, expected: tuple[int, ...] = GARMENT) -> None:
    """Raise WeightsError unless the parts of a Drawer fit together: one step makes one image of the expected shape."""
    process, autoencoder = drawer.process, drawer.autoencoder
    x = torch.zeros((1, *(autoencoder.latent_shape if autoencoder else process.shape)), device=process.device)
    y = None if (kinds := drawer.all_kinds(1)) is None else kinds.to(x.device)
    try:
        with torch.no_grad():
            step = process.sample(drawer.model, x, torch.Generator(x.device), 1, y=y)
            found = tuple(drawer.decode(step).shape[1:])
        reason = f"it draws images {found}; expected {expected}" if found != expected else ""
    except (IndexError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
    if reason:
        raise WeightsError(
            f"the network of {str(name)!r} does not fit its autoencoder or process ({reason}); correct its card"
        )


def check_request(
    name: Path | str, card: dict, max_steps: int, num_steps: int | None, guidance: float | None, eta: float | None
) -> None:
    """Raise ValueError if a network cannot draw in this number of steps or with this eta, or cannot be guided."""
    if not max_steps:
        raise ValueError(f"{str(name)!r} ({class_name(card)}) draws nothing; name a denoiser or a VAE")
    for what, value in (("steps", num_steps), ("eta", eta)):
        if value is not None and max_steps == 1:
            raise ValueError(f"{what} is {value:g}, but {str(name)!r} draws in one step; leave it out")
    if eta is not None and not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta:g}; expected 0 (no noise on the way) to 1 (as much as DDPM)")
    if num_steps is not None and not 1 <= num_steps <= max_steps:
        raise ValueError(
            f"steps is {num_steps}; expected 1 to {max_steps}, the steps that {str(name)!r} was trained with"
        )
    if guidance is not None and not takes_labels(card):
        raise ValueError(f"guidance is {guidance:g}, but {str(name)!r} takes no labels; leave it out")
    if guidance is not None and not 0 <= guidance <= 100:
        raise ValueError(f"guidance is {guidance:g}; expected 0 to 100")


def check_guide(name: Path | str, card: dict, guide: Path | str | None) -> None:
    """Raise ValueError if guidance has no weaker prediction: training hid no labels, or the guide does not fit."""
    if guide is None:
        if not card["label_dropout"]:
            raise ValueError(f"{str(name)!r} was never trained without labels; give a guide, a weaker network")
        return
    there = read_card(guide)
    # The targets may differ, because `predictor` turns all of them into the same prediction. So may the places of the
    # autoencoders: the sha256 says whether it is the same one.
    for what, skip in (("process", {"target": None}), ("autoencoder", {"name": None})):
        if (card[what] or {}) | skip != (there[what] or {}) | skip:
            raise ValueError(f"{what} of {str(guide)!r} is {there[what]}; expected that of {str(name)!r}, {card[what]}")
    if (image_shape(card), kinds_of(card)) != (image_shape(there), kinds_of(there)):
        raise ValueError(f"the guide {str(guide)!r} draws other pictures than {str(name)!r}; name one of the same data")
    if not takes_labels(there):
        raise ValueError(f"the guide {str(guide)!r} takes no labels; name one that does, as {str(name)!r} does")


def without_labels(model: Callable) -> Callable:
    """Return a denoiser that hides the labels from `model`."""
    return lambda x, t, y=None: model(x, t, None)


def load_drawer(
    name: Path | str,
    num_steps: int | None = None,
    guidance: float | None = None,
    guide: Path | str | None = None,
    interval: tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
    eta: float | None = None,
) -> Drawer:
    """Return the Drawer of a published network, or of one in a folder that a training wrote.

    `guidance` w extrapolates from the prediction without labels, or from that of a weaker network `guide`
    (autoguidance); `interval` (first, last) limits it to these steps (see `guided`). `eta` says how much noise DDIM
    adds; None means DDPM for all steps, and 0 for fewer. The processes of `accelerate launch` share the work.
    ValueError for a request that the network cannot fulfil, WeightsError for missing or damaged weights.
    """
    card = read_card(name)
    process = build_process(card)
    max_steps = process.max_steps
    check_request(name, card, max_steps, num_steps, guidance, eta)
    if eta is not None and "eta" not in signature(process.sample).parameters:
        raise ValueError(f"eta is {eta:g}, but {str(name)!r} adds no noise on the way; leave it out")
    for what, value in (("guide", guide), ("interval", interval)):
        if value is not None and guidance is None:
            shown = value if what == "interval" else str(value)
            raise ValueError(f"{what} is {shown!r}; give a guidance, too, which says how far to lead")
    if interval is not None and not 0 <= interval[0] <= interval[1] < max_steps:
        raise ValueError(f"interval is {interval}; expected two of the steps 0 to {max_steps - 1}, in order")
    drawer = drawer_of(card, load_pretrained(name, device), num_steps, device)
    check_fit(name, drawer, image_shape(card))
    drawer = replace(drawer, eta=eta, shared=True)
    if guidance is None:
        return drawer
    check_guide(name, card, guide)
    weak = load_drawer(guide, device=device).model if guide is not None else None
    if weak is None and len(drawer.kinds) != len(CLASS_NAMES):  # the null label of `guided` is that of ten kinds
        weak = without_labels(drawer.model)
    return replace(drawer, model=guided(drawer.model, guidance, interval, weak))
