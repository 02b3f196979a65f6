"""A training that takes a second: a tiny classifier on 64 drawn images. Cards as version 0.1 wrote them."""

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from fmdiff_helpers import data, train
from fmdiff_helpers.cards import build
from fmdiff_helpers.run import DEFAULTS, Run
from fmdiff_helpers.standin import draw_garments

IMAGES, LABELS = draw_garments(64)
CLASSIFIER = {
    "kind": "classifier",
    "network": "classifier.Classifier",
    "arguments": {"width": 2},
    "process": {"name": "classification.Classification"},
    "label_dropout": 0.0,
    "autoencoder": None,
}
RECIPE = {"steps": 12, "batch_size": 16, "every": 4, "warmup": 3, "lr": 0.01}
WRITTEN = ["checkpoint.pt", "weights.json", "weights.safetensors"]


def card(**changes) -> dict:
    return CLASSIFIER | {"recipe": RECIPE | changes}


def old_form(card: dict) -> dict:
    """Return a card as version 0.1 wrote it: no kind, no process, and only the keys that say something."""
    old = {key: value for key, value in card.items() if key not in ("kind", "process") and value not in (None, 0.0)}
    process = {key: value for key, value in card["process"].items() if key != "name"}
    if "kl_weight" in process:
        old["beta"] = process["kl_weight"]
    if "target" in process:
        target = process.pop("target")
        old |= {"schedule": process} | ({"target": target} if target != "eps" else {})
    old["recipe"] = {{"max_grad_norm": "clip"}.get(key, key): value for key, value in card["recipe"].items()}
    return old


def fresh(card: dict = CLASSIFIER, seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(card)


def draw(x0, generator):
    return (torch.randn(x0.shape, generator=generator, device=x0.device),)


def loss_fn(model, x0, y, eps):
    return F.cross_entropy(model(x0 + 0.3 * eps), y, reduction="none")


def validate(model):
    return {"loss": F.cross_entropy(model(data.to_model(IMAGES)), LABELS).item()}


def fit(
    folder, model=None, loss_fn=loss_fn, validate=validate, report=lambda run: None, card=card, images=IMAGES, **changes
):
    """Train on 64 drawn images; return the network, which is a new one unless given, and the history."""
    model = fresh() if model is None else model
    return model, train.train(model, loss_fn, draw, (images, LABELS), validate, folder, card(**changes), report)


def a_run(loss_fn=loss_fn, draw=draw, **changes) -> Run:
    return Run(fresh(), loss_fn, draw, CLASSIFIER | {"recipe": DEFAULTS | RECIPE | changes})


def take_steps(run: Run, number: int = 1) -> None:
    for _ in range(number):
        run.train_step(*run.next_batch(IMAGES, LABELS))


def at_call(number: int, error: BaseException, function=lambda *_: None):
    """Return `function` that raises `error` when it is called for the `number`th time."""
    calls = itertools.count(1)

    def wrapped(*arguments):
        if next(calls) == number:
            raise error
        return function(*arguments)

    return wrapped


def same_weights(one, other) -> bool:
    """Tell whether two networks, or the weights in two folders, are equal to the last bit."""
    one, other = (
        load_file(Path(x) / "weights.safetensors") if isinstance(x, str | Path) else x.state_dict()
        for x in (one, other)
    )
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def flat(model) -> torch.Tensor:
    """All parameters in a row."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
