"""The claims of fmdiff_helpers.recipes: cards that build, honest validation, the same network from the same seed."""

import hashlib
import json
import math
import re
import statistics
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from fmdiff_helpers import checkpoints, recipes, schedules
from fmdiff_helpers.checkpoints import WeightsError, build, load_pretrained, read_card, save_weights
from fmdiff_helpers.data import to_model
from fmdiff_helpers.diffusion import add_noise, draw_noise, simple_loss, v_loss, validation_loss, x0_loss
from fmdiff_helpers.guidance import guided
from fmdiff_helpers.models.vae import VAE
from fmdiff_helpers.recipes import (
    CARDS,
    PROFILES,
    AnnealedLoss,
    ScheduledLoss,
    draw_drops,
    draw_places,
    draw_shifts,
    encodes,
    latent_shape,
    load_autoencoder,
    load_denoiser,
    load_guided,
    load_sampler,
    reconstruction_loss,
    reconstruction_validation,
    schedule_of,
    shift,
    task,
    vae_validation,
)
from fmdiff_helpers.samplers import generate, sample_prior
from fmdiff_helpers.standin import draw_garments
from fmdiff_helpers.train import check_recipe, train

CPU = torch.device("cpu")
DENOISERS = [name for name, card in CARDS.items() if "schedule" in card]
SHIFTS = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]


pytestmark = pytest.mark.usefixtures("on_the_processor")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Shifted images


def moved(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """An image (H, W) moved by slicing: what leaves is lost, black comes in."""
    height, width = image.shape
    result = torch.full_like(image, -1.0)
    result[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
    ]
    return result


@pytest.mark.parametrize("size", [(28, 28), (5, 7)])
def test_each_image_moves_down_and_right_by_its_own_shift_and_black_comes_in(size):
    x0 = torch.randn(25, 1, *size, generator=generator())
    expected = torch.stack([moved(x[0], *by) for x, by in zip(x0, SHIFTS, strict=True)])[:, None]
    assert torch.equal(shift(x0, torch.tensor(SHIFTS)), expected)


def test_a_shift_of_0_changes_nothing():
    x0 = torch.randn(3, 1, 28, 28, generator=generator())
    assert torch.equal(shift(x0, torch.zeros(3, 2, dtype=torch.int64)), x0)


def test_every_shift_from_minus_2_to_2_is_drawn_equally_often():
    x0 = torch.empty(25_000, 1, 1, 1)
    (shifts,) = draw_shifts(x0, generator())
    pairs, counts = shifts.unique(dim=0, return_counts=True)
    assert [tuple(pair) for pair in pairs.tolist()] == SHIFTS
    assert counts.min() > 850 and counts.max() < 1150  # 1000, give or take 5 standard deviations


def test_the_generator_decides_the_shifts():
    x0 = torch.empty(50, 1, 28, 28)
    (one,), (same,), (other,) = (draw_shifts(x0, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


# The classifier's loss and validation


class Pixels(nn.Module):
    """Ten logits: the middle pixels of the first row, so that they tell how the image was moved."""

    def forward(self, x):
        return x[:, 0, 0, 9:19]


def test_the_loss_of_each_image_is_the_cross_entropy_of_the_moved_image():
    x0, y = torch.randn(25, 1, 28, 28, generator=generator()), torch.arange(25) % 10
    loss = recipes.classifier_loss(Pixels(), x0, y, torch.tensor(SHIFTS))
    for k, by in enumerate(SHIFTS):
        assert_close(loss[k], -moved(x0[k, 0], *by)[0, 9:19].log_softmax(0)[y[k]])


def test_validation_takes_the_images_as_they_are():
    x0, y = torch.randn(200, 1, 28, 28, generator=generator()), torch.arange(200) % 10
    logits = x0[:, 0, 0, 9:19]
    found = recipes.classifier_validation(Pixels(), x0, y)
    right = sum(row.argmax().item() == label for row, label in zip(logits, y.tolist(), strict=True))
    assert found["accuracy"] == right / 200 and 0 < right < 200
    assert found["loss"] == pytest.approx(-logits.log_softmax(1)[range(200), y].mean().item(), rel=1e-5)


# The loss whose share of the squared error falls

UNEVEN = schedules.Schedule(torch.tensor([0.1, 0.4, 0.2, 0.6], dtype=torch.float64))
ERRORS = [3.0, 0.5, 2.0, 0.1, 1.0]  # how wrong the model is, step by step


def batch(step: int) -> tuple[torch.Tensor, ...]:
    """Draw x0, y, t and eps of a small batch, other ones for each step."""
    x0, eps = (torch.randn(3, 1, 2, 2, generator=generator(seed), dtype=torch.float64) for seed in (step, 100 + step))
    return x0, torch.tensor([7, 0, 2]), torch.tensor([step % 4, 3, 1]), eps


def wrong_by(error: torch.Tensor, x0: torch.Tensor):
    """Return a model that knows x0 and is wrong by `error`."""
    return lambda xt, t, y: x0 + error


def drawn_error(step: int) -> torch.Tensor:
    return ERRORS[step] * torch.randn(3, 1, 2, 2, generator=generator(50 + step), dtype=torch.float64)


def test_the_scheduled_loss_step_by_step_by_hand():
    """The share of the squared error is 0.9, 0.8, ..., 0.5; the running sizes are those of the first batch at first."""
    loss, sizes = ScheduledLoss(UNEVEN, num_steps=4).double(), None
    for step, share in enumerate([0.9, 0.8, 0.7, 0.6, 0.5]):
        x0, y, t, eps = batch(step)
        found = loss(wrong_by(drawn_error(step), x0), x0, y, t, eps)
        squared, absolute = ([f(error) for error in drawn_error(step)] for f in (mean_square, mean_absolute))
        now = sum(squared) / 3, sum(absolute) / 3
        sizes = now if sizes is None else [0.99 * size + 0.01 * new for size, new in zip(sizes, now, strict=True)]
        expected = [share * s + (1 - share) * a * sizes[0] / sizes[1] for s, a in zip(squared, absolute, strict=True)]
        assert_close(found, torch.tensor(expected).double(), rtol=1e-6, atol=0)  # the share is float32


def mean_square(error: torch.Tensor) -> float:
    return sum(e * e for e in error.flatten().tolist()) / error.numel()


def mean_absolute(error: torch.Tensor) -> float:
    return sum(abs(e) for e in error.flatten().tolist()) / error.numel()


def test_sizes_taken_anew_from_each_batch_would_make_the_mean_loss_the_squared_error_and_running_ones_do_not():
    loss = ScheduledLoss(UNEVEN, num_steps=4).double()
    for step, share in enumerate([0.9, 0.8, 0.7, 0.6, 0.5]):
        x0, y, t, eps = batch(step)
        squared, absolute = (f(drawn_error(step)) for f in (mean_square, mean_absolute))
        anew = share * squared + (1 - share) * absolute * (squared / absolute)
        assert anew == pytest.approx(squared, rel=1e-12)
        found = loss(wrong_by(drawn_error(step), x0), x0, y, t, eps).mean().item()
        if step == 0:
            assert found == pytest.approx(squared, rel=1e-6)
        else:
            assert abs(found / squared - 1) > 0.05


def test_the_sizes_are_constants_for_the_gradient():
    """At the second step: share 0.8 times the gradient of the mean square, 0.2 c times that of the mean absolute."""
    loss = ScheduledLoss(UNEVEN, num_steps=4).double()
    for step in range(2):
        x0, y, t, eps = batch(step)
        error = drawn_error(step).requires_grad_()
        loss(wrong_by(error, x0), x0, y, t, eps).mean().backward()
    sizes = [0.99 * f(drawn_error(0)) + 0.01 * f(drawn_error(1)) for f in (mean_square, mean_absolute)]
    expected = 0.8 * 2 * error.detach() / 12 + 0.2 * sizes[0] / sizes[1] * error.detach().sign() / 12
    assert_close(error.grad, expected, rtol=1e-6, atol=0)
    assert not loss.sizes.requires_grad


def test_the_sizes_are_means_over_all_processes(monkeypatch):
    asked, (x0, *rest) = [], batch(0)

    def reduce(sizes: torch.Tensor, how: str) -> torch.Tensor:
        asked.append((sizes.tolist(), how))
        return torch.tensor([6.0, 2.0]).double()  # as if others were more wrong

    monkeypatch.setattr(recipes, "reduce", reduce)
    found = ScheduledLoss(UNEVEN, num_steps=4).double()(wrong_by(torch.tensor([0.5]).double(), x0), x0, *rest)
    assert asked == [([0.25, 0.5], "mean")]
    assert_close(found, torch.full((3,), 0.9 * 0.25 + 0.1 * 3 * 0.5).double(), rtol=1e-6, atol=0)


def test_the_scheduled_loss_shows_the_model_noisy_images_their_steps_and_labels():
    seen, (x0, y, t, eps) = [], batch(0)

    def model(*arguments):
        seen.extend(arguments)
        return x0 + 1

    ScheduledLoss(UNEVEN, num_steps=4).double()(model, x0, y, t, eps)
    assert seen[0].equal(add_noise(x0, t, eps, UNEVEN)) and seen[1] is t and seen[2] is y


def test_a_scheduled_loss_goes_on_from_its_state():
    one, other = (ScheduledLoss(UNEVEN, num_steps=4).double() for _ in range(2))

    def value(loss: ScheduledLoss, step: int) -> torch.Tensor:
        x0, *rest = batch(step)
        return loss(wrong_by(drawn_error(step), x0), x0, *rest)

    for step in range(3):
        value(one, step)
    other.load_state_dict(one.state_dict())
    assert other.step == 3 and value(other, 3).equal(value(one, 3)) and other.sizes.equal(one.sizes)
    assert not value(ScheduledLoss(UNEVEN, num_steps=4).double(), 4).isclose(value(one, 4)).any()


# The loss of a VAE whose beta rises, its noise and its validation

BETA = 0.5


class Fixed(nn.Module):
    """A VAE that says always the same of five images and keeps the noise that it was given."""

    latent_shape = (2, 3, 3)

    def __init__(self):
        super().__init__()
        self.x_hat = torch.randn(5, 1, 4, 4, generator=generator(1), dtype=torch.float64)
        self.mu, self.log_var = (torch.randn(5, 2, 3, 3, generator=generator(seed)).double() for seed in (2, 3))
        self.mu[:, 1, 0] = 4.0  # three numbers of the latent that say nothing
        self.register_buffer("shift", torch.zeros(2, 1, 1, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(2, 1, 1, dtype=torch.float64))
        self.seen = []

    def forward(self, x0, eps):
        self.seen.append((x0, eps, torch.is_grad_enabled()))
        return self.x_hat, self.mu, self.log_var


X0 = torch.randn(5, 1, 4, 4, generator=generator(4), dtype=torch.float64)


def squared_errors() -> list[float]:
    """Return the squared error of each image of `X0`, summed over its 16 pixels, number by number."""
    pairs = zip(Fixed().x_hat.flatten(1).tolist(), X0.flatten(1).tolist(), strict=True)
    return [sum((a - b) ** 2 for a, b in zip(said, image, strict=True)) for said, image in pairs]


def divergences() -> list[float]:
    """Return the KL divergence of each latent, number by number."""
    pairs = zip(Fixed().mu.flatten(1).tolist(), Fixed().log_var.flatten(1).tolist(), strict=True)
    return [sum(0.5 * (m * m + math.exp(v) - 1 - v) for m, v in zip(mu, log_var, strict=True)) for mu, log_var in pairs]


def test_beta_rises_evenly_from_0_and_stays():
    loss = AnnealedLoss(BETA, num_steps=4)
    for share in (0, 0.25, 0.5, 0.75, 1, 1, 1):
        expected = [e / 2 + share * BETA * kl for e, kl in zip(squared_errors(), divergences(), strict=True)]
        assert loss(Fixed(), X0, None, None).tolist() == pytest.approx(expected, rel=1e-6)


def test_the_annealed_loss_shows_the_model_the_images_and_the_noise():
    model, eps = Fixed(), torch.randn(5, 2, 3, 3, generator=generator())
    AnnealedLoss(BETA, num_steps=4)(model, X0, torch.arange(5), eps)
    ((x0, noise, _),) = model.seen
    assert x0 is X0 and noise is eps


@pytest.mark.parametrize("validation", [partial(vae_validation, beta=0.1), reconstruction_validation])
def test_a_latent_number_that_never_changes_is_not_divided_by_zero(validation):
    card = CARDS["attention_autoencoder" if validation is reconstruction_validation else "vae"]
    model = build(card | {"arguments": card["arguments"] | {"width": 8}}).eval()
    for parameter in model.parameters():
        parameter.data.zero_()  # a network that is dead altogether
    x0 = torch.randn(6, 1, 28, 28, generator=generator())
    validation(model, x0)
    assert model.to_latent(x0).isfinite().all() and (model.scale > 0).all()


def test_an_annealed_loss_goes_on_from_its_state():
    one, other = (AnnealedLoss(BETA, num_steps=6) for _ in range(2))
    for _ in range(3):
        one(Fixed(), X0, None, None)
    other.load_state_dict(one.state_dict())
    assert other.step == 3
    values = [loss(Fixed(), X0, None, None) for loss in (one, other, AnnealedLoss(BETA, num_steps=6))]
    assert values[0].equal(values[1]) and not values[0].isclose(values[2]).any()


def test_the_places_in_the_clouds_are_standard_normal_one_latent_for_each_image():
    (eps,) = draw_places(torch.empty(5000, 1, 2, 2), generator(), (3, 2, 1))
    assert eps.shape == (5000, 3, 2, 1) and eps.dtype == torch.float32
    units = eps.flatten(1).double()
    assert units.mean(0).abs().max() < 5 / math.sqrt(5000)
    assert (units.var(0) - 1).abs().max() < 5 * math.sqrt(2 / 5000)
    assert (torch.corrcoef(units.T) - torch.eye(6)).abs().max() < 5 / math.sqrt(5000)


def test_the_generator_decides_the_places_and_no_other():
    x0, before = torch.empty(4, 1, 28, 28), torch.get_rng_state()
    (one,), (same,), (other,) = (draw_places(x0, generator(seed), (4, 7, 7)) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_validation_of_a_vae_by_hand():
    """All of beta, whatever share of it the training has come to; 15 of 18 numbers of the latent say something."""
    errors, kl = squared_errors(), divergences()
    found = vae_validation(Fixed(), X0, BETA)
    assert found.pop("active_units") == 15
    assert found == {
        "loss": pytest.approx(sum(errors) / 2 / 5 + BETA * sum(kl) / 5, rel=1e-9),
        "squared_error": pytest.approx(sum(errors) / 5 / 16, rel=1e-9),
        "kl": pytest.approx(sum(kl) / 5, rel=1e-9),
    }
    assert all(isinstance(value, float) for value in found.values())


def test_the_validation_of_a_vae_measures_shift_and_scale_channel_by_channel():
    """The mean and the sample standard deviation of mu over images and places."""
    model = Fixed()
    vae_validation(model, X0, BETA)
    assert model.shift.shape == model.scale.shape == (2, 1, 1)
    for channel in range(2):
        values = model.mu[:, channel].flatten().tolist()
        assert model.shift[channel].item() == pytest.approx(statistics.mean(values), rel=1e-9)
        assert model.scale[channel].item() == pytest.approx(statistics.stdev(values), rel=1e-9)


def test_the_validation_of_a_vae_takes_the_same_standard_noise_each_time_and_no_gradient():
    model, x0, before = Fixed(), torch.zeros(500, 1, 4, 4), torch.get_rng_state()
    model.x_hat, model.mu, model.log_var = torch.zeros(500, 1, 4, 4), torch.ones(500, 2, 3, 3), torch.ones(500, 2, 3, 3)
    model.mu[::2] = 0
    assert vae_validation(model, x0, BETA) == vae_validation(model, x0, BETA)
    (_, first, graded), (_, second, _) = model.seen
    assert first.shape == (500, 2, 3, 3) and torch.equal(first, second) and not graded
    assert abs(first.mean()) < 5 / math.sqrt(9000) and abs(first.var() - 1) < 5 * math.sqrt(2 / 9000)
    assert torch.equal(torch.get_rng_state(), before)


# The loss of an autoencoder without noise, and its validation


def test_the_reconstruction_loss_of_each_image_is_the_mean_of_its_squared_errors():
    """16 pixels of which one is off by 2 and one by -1; all off by 0.5; none."""
    error = torch.zeros(3, 1, 4, 4, dtype=torch.float64)
    error[0, 0, 0, 3], error[0, 0, 2, 1], error[1] = 2.0, -1.0, 0.5
    assert reconstruction_loss(lambda x0: x0 + error, X0[:3], None).tolist() == pytest.approx([5 / 16, 0.25, 0])


def test_the_validation_of_an_autoencoder_measures_shift_and_scale_of_each_of_its_numbers():
    """The mean and the sample standard deviation over images; the loss is what it was before, and of all pixels."""
    model, x0 = tiny_network("attention_autoencoder").double(), to_model(draw_garments(50)[0]).double()
    z, before = model.encode(x0), torch.get_rng_state()
    found = reconstruction_validation(model, x0)
    assert found == {"loss": pytest.approx((model(x0) - x0).square().mean().item(), rel=1e-9)}
    for number in range(64):
        values = z.flatten(1)[:, number].tolist()
        assert model.shift.flatten()[number].item() == pytest.approx(statistics.mean(values), rel=1e-9)
        assert model.scale.flatten()[number].item() == pytest.approx(statistics.stdev(values), rel=1e-9)
    assert model.shift.shape == model.scale.shape == (1, 8, 8)
    assert_close(model.to_latent(x0).mean(dim=0), torch.zeros(1, 8, 8).double(), rtol=0, atol=1e-9)
    assert_close(model.to_latent(x0).std(dim=0), torch.ones(1, 8, 8).double(), rtol=0, atol=1e-9)
    assert reconstruction_validation(model, x0) == found and torch.equal(torch.get_rng_state(), before)


# Cards


def full_card(name: str) -> dict:
    """Return a card as a full training fills it in."""
    return CARDS[name] | {"recipe": CARDS[name]["recipe"] | PROFILES[name]["full"]}


@pytest.mark.parametrize("name", CARDS)
def test_every_card_builds_a_network_for_its_images(name):
    card, model, x0 = CARDS[name], build(CARDS[name]), torch.zeros(2, 1, 28, 28)
    if "autoencoder" in card:
        x0 = torch.zeros(2, *build(CARDS[card["autoencoder"]]).latent_shape)
    if name in DENOISERS:
        y = torch.tensor([0, 9]) if card["arguments"]["num_classes"] else None
        assert model(x0, torch.zeros(2, dtype=torch.int64), y).shape == x0.shape
    elif "beta" in card:
        eps = torch.zeros(2, *model.latent_shape)
        assert [tuple(said.shape) for said in model(x0, eps)] == [x0.shape, eps.shape, eps.shape]
    elif encodes(card):
        assert model(x0).shape == x0.shape
    else:
        assert model(x0).shape == (2, 10)


def test_there_are_five_denoisers_of_the_noise_of_x0_and_of_v_two_autoencoders_and_the_classifier():
    targets = {"unet": None, "transformer": "x0", "latent_unet": "v", "patch_unet": "v", "vector_denoiser": "v"}
    assert {name: CARDS[name].get("target") for name in DENOISERS} == targets
    assert CARDS.keys() - DENOISERS == {"vae", "attention_autoencoder", "classifier"}
    assert [name for name, card in CARDS.items() if "beta" in card] == ["vae"]
    assert [name for name, card in CARDS.items() if encodes(card)] == ["vae", "attention_autoencoder"]
    assert {name: card["autoencoder"] for name, card in CARDS.items() if "autoencoder" in card} == {
        "latent_unet": "vae",
        "vector_denoiser": "attention_autoencoder",
    }
    assert {name: card["label_dropout"] for name, card in CARDS.items() if "label_dropout" in card} == {
        "patch_unet": 0.1,
        "vector_denoiser": 0.1,
    }


def test_the_shape_of_a_cards_latents_is_known_without_weights_or_random_numbers():
    before, vae = torch.get_rng_state(), CARDS["vae"]
    assert latent_shape(vae) == (4, 7, 7) and latent_shape(CARDS["attention_autoencoder"]) == (1, 8, 8)
    assert latent_shape(vae | {"arguments": {"channels": 5, "grid": 1}}) == (5, 1, 1)
    assert torch.equal(torch.get_rng_state(), before)


# Trained denoisers

TINY = {
    "unet": {"width": 8, "mults": [1], "num_classes": 0},
    "transformer": {"patch": 14, "dim": 8, "depth": 1, "heads": 1, "ff_dim": 8, "num_classes": 10},
    "vae": {"width": 4, "channels": 2, "grid": 7},
    "latent_unet": {"width": 8, "mults": [1], "patch": 1, "num_classes": 10, "channels": 2},
    "patch_unet": {"width": 8, "mults": [1], "patch_size": 2, "num_classes": 10},
    "attention_autoencoder": {"width": 8},
    "vector_denoiser": {"width": 8, "mults": [1], "patch": 1, "num_classes": 10, "channels": 1},
}


def tiny_network(name: str, seed: int = 0) -> nn.Module:
    """Build a tiny network, random as if it were trained; an autoencoder standardises its latents somehow."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(CARDS[name] | {"arguments": TINY[name]})
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    if name == "vae":
        model.shift.copy_(torch.tensor([0.3, -0.7]).reshape(2, 1, 1))
        model.scale.copy_(torch.tensor([0.5, 1.6]).reshape(2, 1, 1))
    if name == "attention_autoencoder":
        model.shift.copy_(torch.linspace(-1, 1, 64).reshape(1, 8, 8))
        model.scale.copy_(torch.linspace(0.5, 3, 64).reshape(1, 8, 8))
    return model


def saved(name: str, folder: Path, seed: int = 0, file: str = "weights", **changes) -> nn.Module:
    """Write a tiny network, random as if it were trained, to a folder and return it."""
    model = tiny_network(name, seed)
    save_weights(folder / f"{file}.safetensors", model, CARDS[name] | {"arguments": TINY[name]} | changes)
    return model


@pytest.fixture(scope="module")
def autoencoders(tmp_path_factory) -> dict[str, dict[str, str]]:
    """What cards say of their autoencoders, by name, here tiny ones in folders."""
    folder, said = tmp_path_factory.mktemp("autoencoders"), {}
    for name in ("vae", "attention_autoencoder"):
        saved(name, folder / name)
        said[name] = {"name": str(folder / name), "sha256": read_card(folder / name)["sha256"]}
    return said


@pytest.fixture(scope="module")
def autoencoder(autoencoders) -> dict[str, str]:
    """What the card of a denoiser in a VAE's latent says of it."""
    return autoencoders["vae"]


XT, T = torch.randn(4, 1, 28, 28, generator=generator(1)), torch.tensor([0, 30, 150, 199])


def test_a_trained_network_that_predicts_x0_is_loaded_as_one_that_predicts_the_noise(tmp_path):
    model, y = saved("transformer", tmp_path), torch.tensor([3, 0, 9, 3])
    denoiser, schedule = load_denoiser(tmp_path)
    assert torch.equal(schedule.beta, schedules.cosine_beta(200))
    alpha_bar = (1 - schedule.beta).cumprod(0)[T].reshape(4, 1, 1, 1)
    expected = (XT - alpha_bar.sqrt() * model(XT, T, y)) / (1 - alpha_bar).sqrt()
    assert_close(denoiser(XT, T, y), expected.float(), rtol=1e-4, atol=1e-4)


def test_a_trained_network_that_predicts_v_is_loaded_as_one_that_predicts_the_noise(tmp_path, autoencoder):
    """Whether its autoencoder is there or not: that is another question."""
    model, y = saved("latent_unet", tmp_path, autoencoder=autoencoder), torch.tensor([3, 0, 9, 3])
    denoiser, schedule = load_denoiser(tmp_path)
    assert torch.equal(schedule.beta, schedules.cosine_beta(CARDS["latent_unet"]["schedule"]["T"]))
    z, t = torch.randn(4, 2, 7, 7, generator=generator(1)), torch.tensor([0, 30, 500, schedule.T - 1])
    alpha_bar = (1 - schedule.beta).cumprod(0)[t].reshape(4, 1, 1, 1)
    expected = (1 - alpha_bar).sqrt() * z + alpha_bar.sqrt() * model(z, t, y)
    assert_close(denoiser(z, t, y), expected.float(), rtol=1e-4, atol=1e-4)
    assert (denoiser(z, t, y) - model(z, t, y)).abs().max() > 0.1


def test_a_trained_network_that_predicts_the_noise_is_loaded_as_it_is(tmp_path):
    model = saved("unet", tmp_path)
    denoiser, schedule = load_denoiser(tmp_path)
    assert isinstance(denoiser, type(model)) and torch.equal(schedule.beta, schedules.cosine_beta(200))
    assert_close(denoiser(XT, T), model(XT, T), rtol=1e-5, atol=1e-5)


# Trained denoisers that are guided

Y = torch.tensor([3, 0, 9, 3])


def test_at_w_1_a_guided_network_is_the_plain_one(tmp_path):
    saved("patch_unet", tmp_path)
    (denoiser, schedule), (plain, there) = load_guided(tmp_path, 1), load_denoiser(tmp_path)
    assert torch.equal(denoiser(XT, T, Y), plain(XT, T, Y)) and torch.equal(schedule.beta, there.beta)


@pytest.mark.parametrize("w", [0.0, 0.5, 3.0])
def test_a_network_that_has_learned_without_labels_is_led_away_from_itself_without(tmp_path, w):
    model, (denoiser, schedule) = saved("patch_unet", tmp_path).eval(), load_guided(tmp_path, w)
    alpha_bar = (1 - schedule.beta).cumprod(0)[T].reshape(4, 1, 1, 1)
    v = model(XT, T) + w * (model(XT, T, Y) - model(XT, T))
    expected = (1 - alpha_bar).sqrt() * XT + alpha_bar.sqrt() * v
    assert_close(denoiser(XT, T, Y), expected.float(), rtol=1e-4, atol=1e-4)
    assert (model(XT, T, Y) - model(XT, T)).abs().max() > 0.1


@pytest.mark.parametrize("guide", ["patch_unet", "transformer"])
@pytest.mark.parametrize("name", ["patch_unet", "transformer"])
def test_a_network_is_led_away_from_the_one_that_is_named(tmp_path, name, guide):
    """Whether either has learned without labels or not, and whether both predict the same or not: here v and x0."""
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    saved(name, tmp_path / "one")
    saved(guide, tmp_path / "other", seed=1)
    strong, weak = (load_denoiser(folder)[0](XT, T, Y) for folder in (one, other))
    denoiser, schedule = load_guided(one, 2.5, guide=other)
    assert_close(denoiser(XT, T, Y), weak + 2.5 * (strong - weak), rtol=1e-5, atol=1e-5)
    assert (strong - weak).abs().max() > 0.1 and torch.equal(schedule.beta, schedules.cosine_beta(200))


@pytest.mark.parametrize("w", [0, 1, 2])
def test_a_network_that_never_learned_without_labels_needs_a_guide_and_the_error_names_it(tmp_path, w):
    saved("transformer", tmp_path)
    with pytest.raises(ValueError, match=rf"^'{tmp_path}' never learned without labels; name a weaker network"):
        load_guided(str(tmp_path), w)


def test_a_guide_of_another_schedule_is_refused_by_both(tmp_path):
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    saved("patch_unet", tmp_path / "one")
    for schedule in ({"beta": "cosine_beta", "T": 100}, {"beta": "rescaled_linear_beta", "T": 200}):
        saved("patch_unet", tmp_path / "other", schedule=schedule)
        with pytest.raises(ValueError) as error:
            load_guided(one, 2.0, guide=other)
        expected = f"expected that of {one!r}, {CARDS['patch_unet']['schedule']}"
        assert str(error.value) == f"schedule of {other!r} is {schedule}; {expected}"


def test_a_guide_that_sees_other_pictures_is_refused_by_both(tmp_path, autoencoder):
    """In the latent of another autoencoder, or no latents at all."""
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    chain = {"schedule": CARDS["patch_unet"]["schedule"]}
    another = autoencoder | {"sha256": "0000"}
    saved("latent_unet", tmp_path / "one", autoencoder=autoencoder, **chain)
    saved("latent_unet", tmp_path / "other", autoencoder=another, **chain)
    saved("patch_unet", tmp_path / "images")
    for name, guide, found, expected in (
        (one, other, another, autoencoder),
        (one, str(tmp_path / "images"), None, autoencoder),
        (str(tmp_path / "images"), one, autoencoder, None),
    ):
        with pytest.raises(ValueError) as error:
            load_guided(name, 2.0, guide=guide)
        assert str(error.value) == f"autoencoder of {guide!r} is {found}; expected that of {name!r}, {expected}"


@pytest.mark.parametrize("guide", ["vae", "classifier", "unet"])
def test_a_guide_that_is_no_denoiser_or_takes_no_labels_is_refused_by_name(tmp_path, guide):
    """Before any image is drawn: it could not be asked what the network is asked."""
    saved("patch_unet", tmp_path / "one")
    card = CARDS[guide] | {"arguments": TINY.get(guide, {"width": 2})}
    save_weights(tmp_path / "other" / "weights.safetensors", build(card), card)
    with pytest.raises(ValueError, match=f"'{tmp_path / 'other'}'"):
        load_guided(str(tmp_path / "one"), 2.0, guide=str(tmp_path / "other"))


def test_the_published_denoiser_of_latents_is_guided_by_one_that_was_trained_for_less():
    z, t, y = torch.randn(2, 4, 7, 7, generator=generator(1)), torch.tensor([30, 900]), torch.tensor([3, 9])
    strong, weak = (load_denoiser(name)[0](z, t, y) for name in ("latent_unet", "latent_unet_unit_1"))
    denoiser, schedule = load_guided("latent_unet", 2.0, guide="latent_unet_unit_1")
    assert schedule.T == 1000 and (strong - weak).abs().max() > 0.05
    assert_close(denoiser(z, t, y), 2 * strong - weak, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"^autoencoder of 'latent_unet_unit_5' is "):
        load_guided("latent_unet", 2.0, guide="latent_unet_unit_5")


# Trained networks that draw

SHORT = {"schedule": {"beta": "cosine_beta", "T": 8}}


@pytest.fixture(scope="module")
def drawing(tmp_path_factory, autoencoders) -> Path:
    """A folder of tiny networks that draw, those that draw step by step in 8 steps, and of guides for them."""
    folder = tmp_path_factory.mktemp("drawing")
    for name in ("unet", "transformer", "patch_unet"):
        saved(name, folder / name, **SHORT)
    for name, autoencoder in (("latent_unet", "vae"), ("vector_denoiser", "attention_autoencoder")):
        saved(name, folder / name, autoencoder=autoencoders[autoencoder], **SHORT)
    saved("patch_unet", folder / "weaker", seed=1, **SHORT)
    saved("latent_unet", folder / "weaker_latent_unet", seed=1, autoencoder=autoencoders["vae"], **SHORT)
    saved("vae", folder / "vae")
    return folder


def draw_plainly(folder: Path, model=None, num_steps: int | None = None, y=None, watch=None, vae=None) -> torch.Tensor:
    """Return six images of seed 3, of a model in place of the network in the folder, if there is one."""
    plain, schedule = load_denoiser(folder)
    return generate(model or plain, schedule, 6, 3, num_steps, y, watch, vae)


SIX = torch.tensor([3, 0, 9, 3, 5, 1])
by_ddpm_and_ddim = pytest.mark.parametrize("num_steps", [None, 3])


@by_ddpm_and_ddim
@pytest.mark.parametrize("name, y", [("unet", None), ("transformer", SIX), ("patch_unet", SIX), ("patch_unet", None)])
def test_a_sampler_draws_what_generate_does(drawing, name, y, num_steps):
    """The same seed draws the same again, other seeds and labels other images."""
    draw = load_sampler(drawing / name, num_steps)
    found, seen, expected = draw(6, 3, y), [], []
    assert found.shape == (6, 1, 28, 28) and found.equal(draw_plainly(drawing / name, None, num_steps, y))
    assert draw(6, 3, y, seen.append).equal(found) and not draw(6, 4, y).equal(found)
    if y is not None:
        assert not draw(6, 3, y.flip(0)).equal(found)
    draw_plainly(drawing / name, None, num_steps, y, lambda step: expected.append(step.xt))
    assert len(seen) == len(expected) == (num_steps or 8)
    assert all(one.equal(other) for one, other in zip(seen, expected, strict=True))


@by_ddpm_and_ddim
@pytest.mark.parametrize("interval", [None, (2, 7), (0, 3)])
@pytest.mark.parametrize("guide", [None, "weaker"])
def test_a_guided_sampler_is_guided_by_what_is_said_and_where(drawing, guide, interval, num_steps):
    folder, weak = drawing / "patch_unet", drawing / guide if guide else None
    plain, strong = load_denoiser(folder)[0], load_sampler(folder, num_steps, 2.5, weak, interval)
    weaker = load_denoiser(weak)[0] if weak else lambda x, t, y: plain(x, t, None)

    def led(x, t, y):
        first, last = interval or (0, 7)
        if not first <= t[0] <= last:
            return plain(x, t, y)
        return weaker(x, t, y) + 2.5 * (plain(x, t, y) - weaker(x, t, y))

    found = strong(6, 3, SIX)
    assert_close(found, draw_plainly(folder, led, num_steps, SIX), rtol=1e-3, atol=1e-3)
    assert found.equal(
        draw_plainly(folder, guided(plain, 2.5, interval, weak=weaker if weak else None), num_steps, SIX)
    )
    for other in ((None, None, None), (2.0, weak, interval), (2.5, drawing / "transformer", interval)):
        assert (load_sampler(folder, num_steps, *other)(6, 3, SIX) - found).abs().max() > 0.05
    if interval:
        assert (load_sampler(folder, num_steps, 2.5, weak)(6, 3, SIX) - found).abs().max() > 0.05


@by_ddpm_and_ddim
@pytest.mark.parametrize("options", [{}, {"guidance": 2.5, "guide": "weaker_latent_unet", "interval": [3, 6]}])
def test_a_sampler_of_latents_draws_and_shows_images(drawing, autoencoder, options, num_steps):
    """Before each step what its autoencoder makes of the latents, in the end of the last."""
    folder, vae = drawing / "latent_unet", load_pretrained(autoencoder["name"])
    model, seen, expected = load_denoiser(folder)[0], [], []
    if options:
        options = options | {"guide": drawing / options["guide"]}
        model = guided(model, 2.5, (3, 6), weak=load_denoiser(options["guide"])[0])
    found = load_sampler(folder, num_steps, **options)(6, 3, SIX, seen.append)
    images = draw_plainly(folder, model, num_steps, SIX, lambda step: expected.append(vae.from_latent(step.xt)), vae)
    assert found.shape == (6, 1, 28, 28) and found.equal(images)
    assert len(seen) == len(expected) == (num_steps or 8)
    assert all(one.equal(other) for one, other in zip(seen, expected, strict=True))
    noise = torch.randn(6, 2, 7, 7, generator=generator(3))
    assert_close(seen[0], vae.from_latent(noise), rtol=1e-4, atol=1e-4)


def test_a_sampler_of_vectors_draws_what_their_autoencoder_makes_of_them(drawing, autoencoders):
    folder, decoder = drawing / "vector_denoiser", load_pretrained(autoencoders["attention_autoencoder"]["name"])
    found = load_sampler(folder, 3)(6, 3, SIX)
    assert found.shape == (6, 1, 28, 28) and found.equal(draw_plainly(folder, None, 3, SIX, None, decoder))
    led = guided(load_denoiser(folder)[0], 1.5)
    assert load_sampler(folder, 3, 1.5)(6, 3, SIX).equal(draw_plainly(folder, led, 3, SIX, None, decoder))


def test_a_sampler_of_a_vae_draws_from_its_prior_with_nothing_to_watch(drawing):
    draw, expected = load_sampler(drawing / "vae"), sample_prior(load_pretrained(drawing / "vae"), 6, 3)
    assert draw(6, 3).equal(expected) and expected.shape == (6, 1, 28, 28)
    assert draw(6, 3, None, lambda x: pytest.fail("shows what it draws")).equal(expected)
    assert not draw(6, 4).equal(expected)


@by_ddpm_and_ddim
def test_an_interval_of_all_steps_is_none_and_one_of_no_step_that_is_taken_is_no_guidance(drawing, num_steps):
    """Of the 8 steps three are 0, 4 and 7."""
    folder = drawing / "patch_unet"
    everywhere, nowhere = ((load_sampler(folder, num_steps, w)(6, 3, SIX)) for w in (3.0, 1.0))
    assert load_sampler(folder, num_steps, 3.0, interval=(0, 7))(6, 3, SIX).equal(everywhere)
    assert load_sampler(folder, num_steps)(6, 3, SIX).equal(nowhere)
    assert (everywhere - nowhere).abs().max() > 0.05
    for interval in ((1, 3), (5, 6)) if num_steps else ((8, 9),):
        assert load_sampler(folder, num_steps, 3.0, interval=interval)(6, 3, SIX).equal(nowhere)
    for interval in ((1, 4), (4, 4), (7, 7), (0, 0)):
        found = load_sampler(folder, num_steps, 3.0, interval=interval)(6, 3, SIX)
        assert not found.equal(nowhere) and not found.equal(everywhere)


@pytest.mark.parametrize("guide", [None, "weaker"])
def test_a_guided_network_is_the_plain_one_outside_the_interval(drawing, guide):
    folder, weak, t = drawing / "patch_unet", drawing / guide if guide else None, torch.tensor([0, 2, 5, 7])
    (inside, _), (plain, _) = load_guided(folder, 3.0, weak, interval=(2, 5)), load_denoiser(folder)
    everywhere, found = load_guided(folder, 3.0, weak)[0](XT, t, Y), inside(XT, t, Y)
    assert found[[0, 3]].equal(plain(XT, t, Y)[[0, 3]]) and found[1:3].equal(everywhere[1:3])
    assert ((everywhere - plain(XT, t, Y)).abs().amax(dim=(1, 2, 3)) > 0.01).all()


def test_a_sampler_that_cannot_be_is_refused_as_the_network_is(drawing, tmp_path, autoencoder):
    with pytest.raises(ValueError, match="never learned without labels; name a weaker network"):
        load_sampler(drawing / "transformer", guidance=2.0)
    with pytest.raises(ValueError, match=r"^the guide .* takes no labels"):
        load_sampler(drawing / "patch_unet", guidance=2.0, guide=drawing / "unet")
    with pytest.raises(WeightsError, match="there are no weights 'nowhere'"):
        load_sampler("nowhere")
    saved("latent_unet", tmp_path, autoencoder=autoencoder | {"sha256": "0000"}, **SHORT)
    with pytest.raises(WeightsError, match="with sha256 0000, found "):
        load_sampler(tmp_path)


# Autoencoders, and what all cards have


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_autoencoder_of_a_card_is_the_one_with_its_checksum(tmp_path):
    vae = saved("vae", tmp_path)
    checksum = hashlib.sha256((tmp_path / "weights.safetensors").read_bytes()).hexdigest()
    loaded = load_autoencoder({"autoencoder": {"name": str(tmp_path), "sha256": checksum}})
    assert same_weights(loaded, vae) and not any(parameter.requires_grad for parameter in loaded.parameters())


def test_an_autoencoder_that_has_changed_since_is_an_error_that_names_both(tmp_path):
    saved("vae", tmp_path)
    there = read_card(tmp_path)["sha256"]
    saved("vae", tmp_path, seed=1)
    now = read_card(tmp_path)["sha256"]
    expected = rf"in the latent of '{tmp_path}' with sha256 {there}, found {now}; put those weights back"
    with pytest.raises(WeightsError, match=expected):
        load_autoencoder({"autoencoder": {"name": str(tmp_path), "sha256": there}})


def test_an_autoencoder_that_is_not_there_is_an_error_that_names_it(tmp_path):
    with pytest.raises(WeightsError, match=f"there are no weights '{tmp_path}'"):
        load_autoencoder({"autoencoder": {"name": str(tmp_path), "sha256": "0"}})


def test_every_card_has_three_profiles_each_longer_than_the_last():
    assert PROFILES.keys() == CARDS.keys()
    for profiles in PROFILES.values():
        assert list(profiles) == ["smoke", "quick", "full"]
        assert profiles["smoke"]["steps"] < profiles["quick"]["steps"] < profiles["full"]["steps"]


@pytest.mark.parametrize("name, profile", [(name, profile) for name in PROFILES for profile in PROFILES[name]])
def test_the_recipe_of_every_profile_makes_sense(name, profile):
    recipe = check_recipe(CARDS[name]["recipe"] | PROFILES[name][profile], 58_000)
    assert recipe["every"] <= recipe["steps"] and recipe["steps"] % recipe["every"] == 0


@pytest.mark.parametrize("name", DENOISERS)
def test_every_chain_ends_in_noise(name):
    schedule = schedule_of(CARDS[name])
    assert schedules.ends_in_noise(schedule) and schedule.T == CARDS[name]["schedule"]["T"]


def test_a_card_names_its_schedule():
    schedule = schedule_of({"schedule": {"beta": "rescaled_linear_beta", "T": 50}})
    assert torch.equal(schedule.beta, schedules.rescaled_linear_beta(50))


# Tasks

NUM = recipes.NUM_VALIDATION + 500


@pytest.fixture(scope="module")
def numbered() -> tuple[torch.Tensor, torch.Tensor]:
    """Image k and label k say k: in base 256 in two pixels."""
    labels = torch.arange(NUM)
    images = torch.zeros(NUM, 1, 28, 28, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = labels // 256, labels % 256
    return images, labels


def numbers(x0: torch.Tensor) -> list[int]:
    pixels = ((x0[:, 0, 0, :2] + 1) * 127.5).round().long()
    return (256 * pixels[:, 0] + pixels[:, 1]).tolist()


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if "autoencoder" not in card])
def test_the_last_2000_images_are_for_validation_and_never_in_the_training_data(numbered, name):
    *_, (images, labels), validate = task(full_card(name), *numbered, CPU)
    assert numbers(to_model(images)) == labels.tolist() == list(range(500))
    assert recipes.NUM_VALIDATION == 2000 and numbers(validate.keywords["x0"]) == list(range(500, NUM))
    assert validate.keywords["x0"].min() == -1 and validate.keywords["x0"].max() == 1


def test_the_labels_of_the_validation_images_go_with_them(numbered):
    *_, validate = task(CARDS["classifier"], *numbered, CPU)
    assert validate.keywords["y"].tolist() == list(range(500, NUM))


def test_the_classifiers_task_is_made_of_its_functions(numbered):
    loss, draw, _, validate = task(CARDS["classifier"], *numbered, CPU)
    assert (loss, draw, validate.func) == (recipes.classifier_loss, draw_shifts, recipes.classifier_validation)


class Denoiser(nn.Module):
    """Say that a tenth of what is seen is noise, and keep the labels."""

    def forward(self, x, t, y=None):
        self.y = y
        return x / 10


@pytest.mark.parametrize("num_classes", [0, 10])
def test_a_denoiser_is_told_the_labels_where_it_has_classes(numbered, num_classes):
    card = CARDS["unet"] | {"arguments": CARDS["unet"]["arguments"] | {"num_classes": num_classes}}
    loss, draw, _, validate = task(card, *numbered, CPU)
    x0, y = torch.randn(6, 1, 28, 28, generator=generator()), torch.arange(6)
    t, eps = draw(x0, generator())
    model, schedule = Denoiser(), schedule_of(card)
    expected = simple_loss(Denoiser(), x0, None, t, eps, schedule)
    assert torch.equal(loss(model, x0, y, t, eps), expected) and expected.shape == (6,)
    assert torch.equal(model.y, y) if num_classes else model.y is None
    found = validate(model)
    assert found == validation_loss(Denoiser(), to_model(numbered[0][500:]), None, schedule)
    assert torch.equal(model.y, numbered[1][500:]) if num_classes else model.y is None


def test_a_denoiser_of_x0_is_trained_by_the_scheduled_loss_and_validated_by_the_squared_error(numbered):
    loss, draw, _, validate = task(full_card("transformer"), *numbered, CPU)
    assert isinstance(loss, ScheduledLoss) and loss.num_steps == PROFILES["transformer"]["full"]["steps"]
    model, schedule = Denoiser(), schedule_of(CARDS["transformer"])
    x0, y = torch.randn(6, 1, 28, 28, generator=generator()), torch.arange(6)
    t, eps = draw(x0, generator())
    assert_close(loss(model, x0, y, t, eps).mean(), x0_loss(model, x0, y, t, eps, schedule).mean())  # the first step
    assert torch.equal(model.y, y)
    held_out = to_model(numbered[0][500:])
    assert validate(model) == validation_loss(Denoiser(), held_out, None, schedule, loss_fn=x0_loss)
    assert validate(model) != validation_loss(Denoiser(), held_out, None, schedule)
    assert torch.equal(model.y, numbered[1][500:])


def test_a_chain_of_ten_steps_is_a_task_too(numbered):
    """A grey picture is wrong by the mean square of the images, at all t."""
    card = full_card("transformer") | {"arguments": TINY["transformer"], "schedule": {"beta": "cosine_beta", "T": 10}}
    loss, draw, _, validate = task(card, numbered[0], numbered[1] % 10, CPU)
    x0 = torch.randn(500, 1, 28, 28, generator=generator())
    t, eps = draw(x0, generator())
    assert t.unique().tolist() == list(range(10))
    grey = build(card)
    assert_close(loss(grey, x0, torch.arange(500) % 10, t, eps).mean(), x0.square().mean())
    squares = to_model(numbered[0][500:]).square().mean(dim=(1, 2, 3)).reshape(10, 200).mean(dim=1)  # 200 for each t
    assert validate(grey)["bins"] == pytest.approx(squares.tolist(), rel=1e-5)


def latent_card(autoencoder: dict[str, str], name: str = "latent_unet") -> dict:
    """Return the card of a tiny denoiser of latents as a training fills it in."""
    return full_card(name) | {"arguments": TINY[name], "autoencoder": autoencoder}


def any_card(name: str, autoencoders: dict[str, dict[str, str]]) -> dict:
    """Return a card as a training fills it in, a tiny one where latents must be encoded for it."""
    autoencoder = CARDS[name].get("autoencoder")
    return latent_card(autoencoders[autoencoder], name) if autoencoder else full_card(name)


@pytest.mark.parametrize("name", DENOISERS)
def test_the_noise_is_drawn_for_all_steps_of_the_cards_chain(numbered, autoencoders, name):
    _, draw, *_ = task(any_card(name, autoencoders), *numbered, CPU)
    t, eps, *_ = draw(torch.empty(20_000, 2, 1, 1), generator())
    assert t.unique().tolist() == list(range(CARDS[name]["schedule"]["T"]))
    assert eps.shape == (20_000, 2, 1, 1) and eps.std().item() == pytest.approx(1, abs=0.05)


# A task that drops labels


def test_whether_labels_are_dropped_is_drawn_uniformly_and_by_itself():
    """Mean and variance, and that it has nothing to do with t and eps, at 5 standard errors."""
    n, schedule = 20_000, schedule_of(CARDS["patch_unet"])
    t, eps, u = draw_drops(torch.empty(n, 1, 1, 1), generator(), schedule)
    assert u.shape == t.shape == (n,) and eps.shape == (n, 1, 1, 1) and t.dtype == torch.int64
    assert 0 <= u.min() and u.max() < 1
    assert abs(u.double().mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / n)
    assert abs(u.double().var() - 1 / 12) < 5 * math.sqrt((1 / 80 - 1 / 144) / n)
    correlation = torch.corrcoef(torch.stack([u.double(), t.double(), eps.flatten().double()])) - torch.eye(3)
    assert correlation.abs().max() < 5 / math.sqrt(n)


def test_the_generator_decides_which_labels_are_dropped_and_no_other():
    x0, schedule, before = torch.empty(50, 1, 4, 4), schedule_of(CARDS["patch_unet"]), torch.get_rng_state()
    one, same, other = (draw_drops(x0, generator(seed), schedule) for seed in (0, 0, 1))
    for a, b, c in zip(one, same, other, strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_tenth_of_the_labels_is_dropped_in_training_and_none_in_validation(numbered):
    """Exactly those whose u is below 0.1; their number at 5 standard deviations."""
    loss, draw, _, validate = task(full_card("patch_unet"), *numbered, CPU)
    n, model, schedule = 2000, Denoiser(), schedule_of(CARDS["patch_unet"])
    x0, y = torch.randn(n, 1, 2, 2, generator=generator()), torch.arange(n) % 10
    t, eps, u = draw(x0, generator())
    found = loss(model, x0, y, t, eps, u)
    assert model.y[u < 0.1].tolist() == [10] * (u < 0.1).sum() and torch.equal(model.y[u >= 0.1], y[u >= 0.1])
    assert abs((model.y == 10).double().mean() - 0.1) < 5 * math.sqrt(0.1 * 0.9 / n)
    assert torch.equal(y, torch.arange(n) % 10), "the labels themselves stay as they are"
    assert torch.equal(found, v_loss(Denoiser(), x0, None, t, eps, schedule)) and found.shape == (n,)
    assert validate(model) == validation_loss(Denoiser(), to_model(numbered[0][500:]), None, schedule, loss_fn=v_loss)
    assert torch.equal(model.y, numbered[1][500:])


def test_the_card_says_what_share_of_the_labels_is_dropped(numbered):
    n, model = 1000, Denoiser()
    x0, y, t = torch.zeros(n, 1, 2, 2), torch.arange(n) % 10, torch.zeros(n, dtype=torch.int64)
    for share in (0.0, 0.25, 1.0):
        loss, *_ = task(full_card("patch_unet") | {"label_dropout": share}, *numbered, CPU)
        loss(model, x0, y, t, x0, torch.arange(n) / n)
        assert torch.equal(model.y[: round(share * n)], torch.full((round(share * n),), 10))
        assert torch.equal(model.y[round(share * n) :], y[round(share * n) :])


@pytest.mark.parametrize("name", [name for name in DENOISERS if "label_dropout" not in CARDS[name]])
def test_where_no_labels_are_dropped_nothing_but_step_and_noise_is_drawn(numbered, autoencoders, name):
    """The same numbers as ever: a seed still gives the network that it gave."""
    loss, draw, *_ = task(any_card(name, autoencoders), *numbered, CPU)
    x0, y, model = torch.randn(6, 2, 1, 1, generator=generator(1)), torch.arange(6), Denoiser()
    t, eps = draw(x0, generator())
    expected = draw_noise(x0, generator(), schedule_of(CARDS[name]))
    assert torch.equal(t, expected[0]) and torch.equal(eps, expected[1])
    loss(model, x0, y, t, eps)
    assert torch.equal(model.y, y) if CARDS[name]["arguments"]["num_classes"] else model.y is None


# The tasks of autoencoders, and of denoisers in their latents


def test_a_vae_is_trained_by_the_annealed_loss_for_a_third_of_the_steps_and_validated_by_all_of_beta(numbered):
    card = full_card("vae") | {"arguments": TINY["vae"], "beta": 0.125}
    loss, draw, (images, _), validate = task(card, *numbered, CPU)
    assert isinstance(loss, AnnealedLoss) and images.dtype == torch.uint8
    assert (loss.beta, loss.num_steps) == (0.125, PROFILES["vae"]["full"]["steps"] // 3)
    (eps,) = draw(torch.empty(6, 1, 28, 28), generator())
    assert torch.equal(eps, torch.randn(6, 2, 7, 7, generator=generator()))
    assert validate.func is vae_validation and validate.keywords["beta"] == 0.125
    model = build(card)
    found = validate(model)
    assert found["loss"] == pytest.approx(392 * found["squared_error"] + 0.125 * found["kl"], rel=1e-5)
    assert_close(model.to_latent(to_model(numbered[0][500:])).std(dim=(0, 2, 3)), torch.ones(2), rtol=0, atol=1e-3)


def test_an_autoencoder_without_noise_is_trained_and_validated_by_its_squared_error_and_draws_nothing(numbered):
    loss, draw, (images, _), validate = task(full_card("attention_autoencoder"), *numbered, CPU)
    drawing = generator()
    assert draw(images[:6], drawing) == () and torch.equal(drawing.get_state(), generator().get_state())
    assert images.dtype == torch.uint8 and (loss, validate.func) == (reconstruction_loss, reconstruction_validation)


@pytest.mark.parametrize("name", ["vae", "attention_autoencoder"])
def test_the_task_of_an_autoencoder_leaves_the_callers_random_numbers_alone(numbered, name):
    before = torch.get_rng_state()
    task(full_card(name), *numbered, CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_denoiser_of_latents_sees_each_image_encoded_once_and_standardised(numbered, autoencoder, monkeypatch):
    seen, encode = [], VAE.encode
    monkeypatch.setattr(VAE, "encode", lambda self, x0: seen.append(x0) or encode(self, x0))
    loss, draw, (latents, labels), validate = task(latent_card(autoencoder), *numbered, CPU)
    held_out = validate.keywords["x0"]
    loss(Denoiser(), latents[:6], labels[:6], *draw(latents[:6], generator()))
    validate(Denoiser())
    assert numbers(torch.cat(seen)) == list(range(NUM))
    assert labels.tolist() == list(range(500)) and validate.keywords["y"].tolist() == list(range(500, NUM))
    mu, _ = encode(load_pretrained(Path(autoencoder["name"])), to_model(numbered[0]))
    expected = torch.stack([(mu[:, 0] - 0.3) / 0.5, (mu[:, 1] + 0.7) / 1.6], dim=1)
    assert_close(latents, expected[:500], rtol=1e-4, atol=1e-4)
    assert_close(held_out, expected[500:], rtol=1e-4, atol=1e-4)
    assert not latents.requires_grad and not held_out.requires_grad


def test_a_denoiser_of_v_is_trained_and_validated_by_the_loss_of_v(numbered, autoencoder):
    loss, draw, (latents, labels), validate = task(latent_card(autoencoder), *numbered, CPU)
    model, schedule, x0, y = Denoiser(), schedule_of(CARDS["latent_unet"]), latents[:6], labels[:6]
    t, eps = draw(x0, generator())
    expected = v_loss(Denoiser(), x0, y, t, eps, schedule)
    assert torch.equal(loss(model, x0, y, t, eps), expected) and expected.shape == (6,)
    assert torch.equal(model.y, y)
    held_out = validate.keywords["x0"]
    assert validate(model) == validation_loss(Denoiser(), held_out, None, schedule, loss_fn=v_loss)
    assert validate(model) != validation_loss(Denoiser(), held_out, None, schedule)
    assert torch.equal(model.y, numbered[1][500:])


def test_a_task_in_the_latent_of_another_autoencoder_than_the_cards_is_an_error(numbered, autoencoder):
    with pytest.raises(WeightsError, match="with sha256 0000, found "):
        task(latent_card(autoencoder | {"sha256": "0000"}), *numbered, CPU)


# Training by name


@pytest.fixture
def small(tmp_path_factory, monkeypatch):
    """Small cards on 96 drawn images, 32 of them for validation, and published autoencoders."""
    monkeypatch.setattr(checkpoints, "PUBLISHED", tmp_path_factory.mktemp("published"))
    for name in ("vae", "attention_autoencoder"):
        saved(name, checkpoints.PUBLISHED, file=name)
    monkeypatch.setattr(recipes, "NUM_VALIDATION", 32)
    monkeypatch.setattr(recipes, "load_fashion_mnist", lambda split: draw_garments(96, seed=int(split != "train")))
    for name, arguments in {**TINY, "classifier": {"width": 2}}.items():
        monkeypatch.setitem(CARDS, name, CARDS[name] | {"arguments": arguments})
        monkeypatch.setitem(PROFILES, name, {"full": {"steps": 4, "every": 2}})


SMALL = {"batch_size": 16}
LATENT = {name: card["autoencoder"] for name, card in CARDS.items() if "autoencoder" in card}
every_denoiser_of_latents = pytest.mark.parametrize("denoiser, autoencoder", LATENT.items(), ids=LATENT)


@pytest.mark.parametrize("name", CARDS)
def test_a_network_is_trained_by_its_name_and_returned_with_its_history(small, tmp_path, name):
    reported = []
    model, history = recipes.train_network(name, tmp_path, lambda history: reported.append(len(history)), **SMALL)
    assert [point["step"] for point in history] == [2, 4] and reported == [1, 2]
    loaded = load_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, loaded[key]) for key, tensor in model.state_dict().items())
    card = read_card(tmp_path)
    assert card["network"] == CARDS[name]["network"] and card.get("schedule") == CARDS[name].get("schedule")


def test_a_trained_vae_holds_what_standardises_the_latents_of_the_images_that_were_held_out(small, tmp_path):
    recipes.train_network("vae", tmp_path, **SMALL)
    z = load_pretrained(tmp_path).to_latent(to_model(draw_garments(96)[0][-32:]))
    assert_close(z.mean(dim=(0, 2, 3)), torch.zeros(2), rtol=0, atol=1e-3)
    assert_close(z.std(dim=(0, 2, 3)), torch.ones(2), rtol=0, atol=1e-3)
    assert torch.load(tmp_path / "checkpoint.pt")["loss"]["step"] == 4
    assert read_card(tmp_path)["beta"] == CARDS["vae"]["beta"]


def test_an_autoencoder_is_trained_and_then_a_denoiser_on_its_latents_which_are_standardised(
    small, tmp_path, monkeypatch
):
    """Number by number, as measured on the images that were held out of both trainings; then it draws images."""
    given, folder, run = [], tmp_path / "autoencoder", tmp_path / "run"
    recipes.train_network("attention_autoencoder", folder, **SMALL)
    autoencoder = load_pretrained(folder)
    monkeypatch.setattr(recipes, "train", lambda *arguments: given.append(arguments) or train(*arguments))
    recipes.train_network("vector_denoiser", run, autoencoder=str(folder), **SMALL)
    ((*_, (latents, _), validate, _, _, _),) = given
    held_out, z = validate.keywords["x0"], autoencoder.encode(to_model(draw_garments(96)[0]))
    assert_close(held_out.mean(dim=0), torch.zeros(1, 8, 8), rtol=0, atol=1e-3)
    assert_close(held_out.std(dim=0), torch.ones(1, 8, 8), rtol=0, atol=1e-3)
    mean, std = z[-32:].mean(dim=0), z[-32:].std(dim=0)
    assert_close(torch.cat([latents, held_out]), (z - mean) / std, rtol=1e-3, atol=1e-3)
    assert not latents.requires_grad and same_weights(load_autoencoder(read_card(run)), autoencoder)
    images = generate(*load_denoiser(run), 3, num_steps=2, y=Y[:3], vae=autoencoder)
    assert images.shape == (3, 1, 28, 28) and images.isfinite().all()


def test_an_autoencoder_that_was_stopped_goes_on_to_the_same_weights_and_latents(small, tmp_path, capsys):
    def stop(history):
        raise KeyboardInterrupt

    whole, _ = recipes.train_network("attention_autoencoder", tmp_path / "whole", **SMALL)
    stopped, history = recipes.train_network("attention_autoencoder", tmp_path / "stopped", stop, **SMALL)
    assert history[-1]["step"] == 2 and not same_weights(stopped, whole)
    stopped, _ = recipes.train_network("attention_autoencoder", tmp_path / "stopped", **SMALL)
    assert same_weights(stopped, whole) and "Stopped at step 2 of 4" in capsys.readouterr().out


@every_denoiser_of_latents
def test_training_in_a_latent_leaves_the_autoencoder_as_it_is_and_the_card_says_which_it_was(
    small, tmp_path, monkeypatch, denoiser, autoencoder
):
    folder, run, used = tmp_path / "another", tmp_path / "run", []
    saved(autoencoder, folder, seed=1)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(recipes, "load_autoencoder", lambda *given: used.append(load_autoencoder(*given)) or used[-1])
    model, _ = recipes.train_network(denoiser, run, autoencoder=str(folder), **SMALL)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    (vae,) = used
    assert same_weights(vae, load_pretrained(folder)) and not same_weights(vae, load_pretrained(autoencoder))
    checksum = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    for card in (read_card(run), torch.load(run / "checkpoint.pt")["card"]):
        assert card["autoencoder"] == {"name": str(folder), "sha256": checksum} and card["target"] == "v"
        assert torch.equal(schedule_of(card).beta, schedules.cosine_beta(CARDS[denoiser]["schedule"]["T"]))
    assert same_weights(load_autoencoder(read_card(run)), vae)
    assert same_weights(load_pretrained(run), model)


@every_denoiser_of_latents
def test_a_denoiser_of_latents_takes_the_published_autoencoder_unless_told_otherwise(
    small, tmp_path, denoiser, autoencoder
):
    recipes.train_network(denoiser, tmp_path, **SMALL)
    assert read_card(tmp_path)["autoencoder"] == {"name": autoencoder, "sha256": read_card(autoencoder)["sha256"]}
    assert CARDS[denoiser]["autoencoder"] == autoencoder, "the card itself stays as it is"


def test_a_denoiser_finds_its_autoencoder_from_any_folder_and_where_both_were_moved(small, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    saved("vae", Path("runs/vae"), seed=1)
    expected = load_pretrained(Path("runs/vae"))
    recipes.train_network("latent_unet", "runs/unet", autoencoder="runs/vae", **SMALL)
    written = json.loads(Path("runs/unet/weights.json").read_text())["autoencoder"]
    assert written == {"name": "./../vae", "sha256": read_card("runs/vae")["sha256"]}
    monkeypatch.chdir(tmp_path / "other")
    assert same_weights(load_autoencoder(read_card("../here/runs/unet")), expected)
    # The same training from another folder goes on: here it has ended, and takes no further step.
    recipes.train_network("latent_unet", "../here/runs/unet", autoencoder="../here/runs/vae", **SMALL)
    (tmp_path / "here" / "runs").rename(tmp_path / "other" / "moved")
    assert same_weights(load_autoencoder(read_card("moved/unet")), expected)


def test_a_card_that_names_its_autoencoder_as_it_was_typed_goes_on_working(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vae = saved("vae", Path("vaes/mine"), seed=1)
    about = {"name": "vaes/mine", "sha256": read_card("vaes/mine")["sha256"]}
    saved("latent_unet", Path("unet"), autoencoder=about)
    assert read_card("unet")["autoencoder"] == about
    assert same_weights(load_autoencoder(read_card("unet")), vae)


def test_where_there_is_no_way_to_an_autoencoder_its_absolute_path_is_written(small, tmp_path, monkeypatch):
    def other_drive(path, start):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    saved("vae", tmp_path / "vae", seed=1)
    about = {"name": str(tmp_path / "vae"), "sha256": read_card(tmp_path / "vae")["sha256"]}
    monkeypatch.setattr(checkpoints.os.path, "relpath", other_drive)
    saved("latent_unet", tmp_path / "unet", autoencoder=about)
    assert json.loads((tmp_path / "unet" / "weights.json").read_text())["autoencoder"] == about


def test_a_run_in_one_latent_does_not_go_on_in_another(small, tmp_path):
    saved("vae", tmp_path / "another", seed=1)
    recipes.train_network("latent_unet", tmp_path / "run", **SMALL)
    with pytest.raises(ValueError, match=r"is another training \(autoencoder: {'name': 'vae'"):
        recipes.train_network("latent_unet", tmp_path / "run", autoencoder=str(tmp_path / "another"), **SMALL)
    saved("vae", checkpoints.PUBLISHED, seed=2, file="vae")
    with pytest.raises(ValueError, match=r"is another training \(autoencoder: {'name': 'vae'"):
        recipes.train_network("latent_unet", tmp_path / "run", **SMALL)


def test_an_autoencoder_that_is_nowhere_is_an_error_before_any_training(small, tmp_path):
    with pytest.raises(WeightsError, match="there are no weights 'nowhere'; published are: attention_autoencoder"):
        recipes.train_network("latent_unet", tmp_path, autoencoder="nowhere", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_changes_come_before_the_profile_and_the_profile_before_the_card(small, tmp_path, monkeypatch):
    monkeypatch.setitem(CARDS, "unet", CARDS["unet"] | {"recipe": {"lr": 0.5, "warmup": 7, "every": 9}})
    cards = []
    monkeypatch.setattr(recipes, "train", lambda *arguments: cards.append(arguments[6]))
    recipes.train_network("unet", tmp_path, steps=6, warmup=8)
    (card,) = cards
    assert card["recipe"] == {"lr": 0.5, "warmup": 8, "every": 2, "steps": 6}
    assert CARDS["unet"]["recipe"] == {"lr": 0.5, "warmup": 7, "every": 9}, "the card itself stays as it is"


@pytest.mark.parametrize("source", ["Fashion-MNIST, training split", "drawn stand-in for Fashion-MNIST"])
def test_the_card_says_what_data_it_was_trained_on_and_a_run_does_not_change_them(small, tmp_path, monkeypatch, source):
    monkeypatch.setattr(recipes, "describe_data", lambda: source)
    recipes.train_network("unet", tmp_path, **SMALL)
    assert read_card(tmp_path)["data"] == source
    monkeypatch.setattr(recipes, "describe_data", lambda: "other data")
    with pytest.raises(ValueError, match=f"data: {source} there, other data now"):
        recipes.train_network("unet", tmp_path, **SMALL)


def test_a_lesson_trains_on_the_stand_in_and_on_the_dataset_in_two_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("FMDIFF_DATA", str(tmp_path))
    assert recipes.run_folder("unet", 0.5) == Path("runs/unet_0.5_epochs_standin")
    (tmp_path / "FashionMNIST/raw").mkdir(parents=True)
    (tmp_path / "FashionMNIST/raw/train-images-idx3-ubyte.gz").touch()
    assert recipes.run_folder("unet", 0.5) == Path("runs/unet_0.5_epochs")


@pytest.fixture
def untrained(small, tmp_path, monkeypatch):
    """Return the network that a training would start from."""
    monkeypatch.setattr(recipes, "train", lambda *arguments: [])
    return lambda **changes: recipes.train_network("classifier", tmp_path, **changes)[0].head.weight


def test_the_seed_alone_decides_the_weights_to_start_from(untrained):
    first = untrained()
    torch.rand(5)
    assert torch.equal(first, untrained()) and torch.equal(first, untrained(seed=0))
    assert not torch.equal(first, untrained(seed=1))


def test_building_leaves_the_callers_random_numbers_alone(untrained):
    before = torch.get_rng_state()
    untrained()
    assert torch.equal(torch.get_rng_state(), before)


def test_training_does_not_seed_the_callers_random_numbers(small, tmp_path):
    after = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        recipes.train_network("classifier", tmp_path / str(seed), **SMALL)
        after.append(torch.rand(3))
    assert not torch.equal(*after)


def test_a_change_that_no_recipe_has_is_an_error(small, tmp_path):
    with pytest.raises(ValueError, match=r"the recipe has \['learning_rate'\]"):
        recipes.train_network("classifier", tmp_path, learning_rate=1)


def test_the_training_split_is_the_one_that_is_loaded(untrained, monkeypatch):
    splits = []
    monkeypatch.setattr(recipes, "load_fashion_mnist", lambda split: splits.append(split) or draw_garments(96))
    untrained()
    assert splits == ["train"]


def test_the_classifier_learns_in_a_few_steps(small, tmp_path):
    _, history = recipes.train_network("classifier", tmp_path, steps=60, every=30, warmup=10, lr=0.03, **SMALL)
    assert history[-1]["loss"] < 0.9 * F.cross_entropy(torch.zeros(1, 10), torch.zeros(1, dtype=torch.int64))


def test_a_vae_can_be_trained_for_a_single_step(small, tmp_path):
    _, history = recipes.train_network("vae", tmp_path, steps=1, every=1, **SMALL)
    assert history[-1]["step"] == 1


@pytest.mark.parametrize(
    "denoiser, other, arguments, said",
    [
        ("latent_unet", "transformer", {}, "'{}' is a Transformer; expected an autoencoder"),
        ("vector_denoiser", "classifier", {"width": 2}, "'{}' is a Classifier; expected an autoencoder"),
        ("latent_unet", "vae", {"channels": 3}, "latents of '{}' are (3, 7, 7); expected (2, 7, 7), as the"),
        ("latent_unet", "attention_autoencoder", {}, "latents of '{}' are (1, 8, 8); expected (2, 7, 7), as the"),
        ("vector_denoiser", "vae", {"grid": 1}, "latents of '{}' are (2, 1, 1); expected (1, 8, 8), as the"),
    ],
)
def test_a_denoiser_of_latents_refuses_what_is_no_autoencoder_or_has_latents_of_another_shape(
    small, tmp_path, denoiser, other, arguments, said
):
    card = CARDS[other] | {"arguments": TINY.get(other, {}) | arguments}
    save_weights(tmp_path / "other" / "weights.safetensors", build(card), card)
    with pytest.raises(ValueError, match=f"^{re.escape(said.format(tmp_path / 'other'))}"):
        recipes.train_network(denoiser, tmp_path / "run", autoencoder=str(tmp_path / "other"), **SMALL)
    assert not (tmp_path / "run").exists()
