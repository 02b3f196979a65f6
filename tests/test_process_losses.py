"""The claims of fmdiff_helpers.processes: the loss, the random numbers and the validation of each, by hand."""

import math
import statistics

import pytest
import torch
from small_networks import tiny_network
from torch import nn
from torch.testing import assert_close

from fmdiff_helpers import batching, schedules
from fmdiff_helpers.cards import WeightsError, build, build_process
from fmdiff_helpers.data import to_model
from fmdiff_helpers.diffusion import add_noise, draw_noise, simple_loss, v_loss, validation_loss, x0_loss
from fmdiff_helpers.processes.autoencoding import AnnealedLoss, Reconstruction, VariationalPrior
from fmdiff_helpers.processes.classification import Classification, shift
from fmdiff_helpers.processes.diffusion import Diffusion, ScheduledLoss
from fmdiff_helpers.recipes import CARDS
from fmdiff_helpers.standin import draw_garments

SHIFTS = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]

pytestmark = pytest.mark.usefixtures("on_the_processor")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Any process


@pytest.mark.parametrize("name", CARDS)
def test_a_process_draws_from_the_generator_alone(name):
    process, x0, before = build_process(CARDS[name]), torch.empty(50, 1, 28, 28), torch.get_rng_state()
    one, same, other = (process.draw(x0, generator(seed)) for seed in (0, 0, 1))
    for a, b, c in zip(one, same, other, strict=True):
        assert len(a) == 50 and torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "process",
    [
        {"name": "diffusion.Diffusion", "T": 8, "target": "v"},
        {"name": "diffusion.Diffusion", "beta": "no_beta", "T": 8, "target": "v"},
        {"name": "autoencoding.VariationalPrior"},
        {"name": "diffusion.draw_noise"},
        {"name": "nowhere.Process"},
    ],
)
def test_a_process_that_cannot_be_built_is_an_error_that_names_it(process):
    with pytest.raises(WeightsError, match=f"{process['name']}.*(cannot be built|expected MODULE.CLASS)"):
        build_process(CARDS["vae"] | {"process": process})


# Classification


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


def test_every_shift_from_minus_2_to_2_is_drawn_equally_often():
    (shifts,) = Classification().draw(torch.empty(25_000, 1, 1, 1), generator())
    pairs, counts = shifts.unique(dim=0, return_counts=True)
    assert [tuple(pair) for pair in pairs.tolist()] == SHIFTS
    assert counts.min() > 850 and counts.max() < 1150  # 1000, give or take 5 standard deviations


def pixels(x):
    """Ten logits: the middle pixels of the first row, so that they tell how the image was moved."""
    return x[:, 0, 0, 9:19]


def test_the_loss_of_each_image_is_the_cross_entropy_of_the_moved_image():
    x0, y = torch.randn(25, 1, 28, 28, generator=generator()), torch.arange(25) % 10
    loss = Classification().training_loss(10)(pixels, x0, y, torch.tensor(SHIFTS))
    for k, by in enumerate(SHIFTS):
        assert_close(loss[k], -moved(x0[k, 0], *by)[0, 9:19].log_softmax(0)[y[k]])


def test_the_validation_of_a_classifier_takes_the_images_as_they_are():
    x0, y = torch.randn(200, 1, 28, 28, generator=generator()), torch.arange(200) % 10
    logits, found = pixels(x0), Classification().validate(pixels, x0, y)
    right = sum(row.argmax().item() == label for row, label in zip(logits, y.tolist(), strict=True))
    assert found["accuracy"] == right / 200 and 0 < right < 200
    assert found["loss"] == pytest.approx(-logits.log_softmax(1)[range(200), y].mean().item(), rel=1e-5)


# Diffusion


def stub(x, t, y=None):
    """Say that a tenth of what is seen, and a little of the label, is what was asked for."""
    return x / 10 + (0 if y is None else y.reshape(-1, 1, 1, 1) / 100)


LOSSES = {"eps": simple_loss, "x0": x0_loss, "v": v_loss}


@pytest.mark.parametrize("target", LOSSES)
@pytest.mark.parametrize("T", [10, 200])
def test_each_target_has_its_loss_its_validation_and_its_noise(target, T):
    process = Diffusion.from_card({}, beta="cosine_beta", T=T, target=target)
    schedule = schedules.Schedule(schedules.cosine_beta(T))
    x0, y = torch.randn(20, 1, 4, 4, generator=generator()), torch.arange(20)
    t, eps = process.draw(x0, generator())
    assert all(map(torch.equal, (t, eps), draw_noise(x0, generator(), schedule)))
    expected = LOSSES[target](stub, x0, y, t, eps, schedule)
    assert torch.equal(process.loss(stub, x0, y, t, eps), expected) and expected.shape == (20,)
    loss = process.training_loss(7)
    if target == "x0":  # the mix is the squared error, on the whole, at the first step
        assert isinstance(loss, ScheduledLoss) and loss.num_steps == 7
        assert_close(loss(stub, x0, y, t, eps).mean(), expected.mean())
    else:
        assert torch.equal(loss(stub, x0, y, t, eps), expected)
    assert process.validate(stub, x0, y) == validation_loss(stub, x0, y, schedule, LOSSES[target])
    assert process.max_steps == T and process.shape == (1, 28, 28)
    assert process.draw(torch.empty(20_000, 1, 1, 1), generator())[0].unique().tolist() == list(range(T))


def test_a_card_names_the_betas_and_a_target_that_there_is():
    process = Diffusion.from_card({}, beta="rescaled_linear_beta", T=50, target="eps")
    assert torch.equal(process.schedule.beta, schedules.rescaled_linear_beta(50))
    with pytest.raises(ValueError, match="target is 'x'; expected one of eps, x0, v"):
        Diffusion(process.schedule, "x")


# The loss whose share of the squared error falls

UNEVEN = schedules.Schedule(torch.tensor([0.1, 0.4, 0.2, 0.6], dtype=torch.float64))
ERRORS = [3.0, 0.5, 2.0, 0.1, 1.0]  # how wrong the model is, step by step
WEIGHTS = [0.9, 0.8, 0.7, 0.6, 0.5]  # of the squared error


def scheduled() -> ScheduledLoss:
    return ScheduledLoss(UNEVEN, num_steps=4).double()


def drawn_error(step: int) -> torch.Tensor:
    return ERRORS[step] * torch.randn(3, 1, 2, 2, generator=generator(50 + step), dtype=torch.float64)


def value(loss: ScheduledLoss, step: int, error: torch.Tensor | None = None) -> torch.Tensor:
    """Return the loss of a small batch, another one for each step, of a model that is wrong by `error`."""
    x0, eps = (torch.randn(3, 1, 2, 2, generator=generator(seed), dtype=torch.float64) for seed in (step, 100 + step))
    error = drawn_error(step) if error is None else error
    return loss(lambda xt, t, y: x0 + error, x0, torch.tensor([7, 0, 2]), torch.tensor([step % 4, 3, 1]), eps)


def mean_square(error: torch.Tensor) -> float:
    return sum(e * e for e in error.flatten().tolist()) / error.numel()


def mean_absolute(error: torch.Tensor) -> float:
    return sum(abs(e) for e in error.flatten().tolist()) / error.numel()


def test_the_scheduled_loss_step_by_step_by_hand():
    """The running sizes are those of the first batch at first; taken anew they would make a mean loss of squares."""
    loss, sizes = scheduled(), None
    for step, share in enumerate(WEIGHTS):
        found = value(loss, step)
        squared, absolute = ([f(error) for error in drawn_error(step)] for f in (mean_square, mean_absolute))
        now = sum(squared) / 3, sum(absolute) / 3
        sizes = now if sizes is None else [0.99 * size + 0.01 * new for size, new in zip(sizes, now, strict=True)]
        expected = [share * s + (1 - share) * a * sizes[0] / sizes[1] for s, a in zip(squared, absolute, strict=True)]
        assert_close(found, torch.tensor(expected).double(), rtol=1e-6, atol=0)  # the share is float32
        assert step == 0 or abs(found.mean().item() / now[0] - 1) > 0.05


def test_the_sizes_are_constants_for_the_gradient():
    """At the second step: share 0.8 times the gradient of the mean square, 0.2 c times that of the mean absolute."""
    loss = scheduled()
    for step in range(2):
        error = drawn_error(step).requires_grad_()
        value(loss, step, error).mean().backward()
    sizes = [0.99 * f(drawn_error(0)) + 0.01 * f(drawn_error(1)) for f in (mean_square, mean_absolute)]
    expected = 0.8 * 2 * error.detach() / 12 + 0.2 * sizes[0] / sizes[1] * error.detach().sign() / 12
    assert_close(error.grad, expected, rtol=1e-6, atol=0)
    assert not loss.sizes.requires_grad


def test_the_sizes_are_means_over_all_processes(monkeypatch):
    asked = []

    def reduce(sizes: torch.Tensor, how: str) -> torch.Tensor:
        asked.append((sizes.tolist(), how))
        return torch.tensor([6.0, 2.0]).double()  # as if others were more wrong

    monkeypatch.setattr(batching, "reduce", reduce)
    found = value(scheduled(), 0, torch.tensor([0.5]).double())
    assert asked == [([0.25, 0.5], "mean")]
    assert_close(found, torch.full((3,), 0.9 * 0.25 + 0.1 * 3 * 0.5).double(), rtol=1e-6, atol=0)


def test_the_scheduled_loss_shows_the_model_noisy_images_their_steps_and_labels():
    seen, x0, eps = [], *torch.randn(2, 3, 1, 2, 2, generator=generator()).double()
    t, y = torch.tensor([0, 3, 1]), torch.tensor([7, 0, 2])
    scheduled()(lambda *arguments: seen.extend(arguments) or x0 + 1, x0, y, t, eps)
    assert seen[0].equal(add_noise(x0, t, eps, UNEVEN)) and seen[1] is t and seen[2] is y


def test_a_scheduled_loss_goes_on_from_its_state():
    one, other = scheduled(), scheduled()
    for step in range(3):
        value(one, step)
    other.load_state_dict(one.state_dict())
    assert other.step == 3 and value(other, 3).equal(value(one, 3)) and other.sizes.equal(one.sizes)
    assert not value(scheduled(), 4).isclose(value(one, 4)).any()


# A VAE: the loss whose beta rises, its noise and its validation

BETA = 0.5
PRIOR = VariationalPrior(BETA, (2, 3, 3), torch.device("cpu"))


class Fixed(nn.Module):
    """A VAE that says always the same of five images and keeps the noise that it was given."""

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


def test_beta_rises_evenly_from_0_in_the_first_third_of_the_steps_and_stays():
    loss, eps = PRIOR.training_loss(14), torch.randn(5, 2, 3, 3, generator=generator())
    for share in (0, 0.25, 0.5, 0.75, 1, 1, 1):
        expected = [e / 2 + share * BETA * kl for e, kl in zip(squared_errors(), divergences(), strict=True)]
        model = Fixed()
        assert loss(model, X0, None, eps).tolist() == pytest.approx(expected, rel=1e-6)
        assert model.seen[0][0] is X0 and model.seen[0][1] is eps
    assert PRIOR.training_loss(1).num_steps == 1


def test_an_annealed_loss_goes_on_from_its_state():
    one, other = (AnnealedLoss(BETA, num_steps=6) for _ in range(2))
    for _ in range(3):
        one(Fixed(), X0, None, None)
    other.load_state_dict(one.state_dict())
    assert other.step == 3
    values = [loss(Fixed(), X0, None, None) for loss in (one, other, AnnealedLoss(BETA, num_steps=6))]
    assert values[0].equal(values[1]) and not values[0].isclose(values[2]).any()


def test_the_places_in_the_clouds_are_standard_normal_one_latent_for_each_image():
    (eps,) = PRIOR.draw(torch.empty(5000, 1, 2, 2), generator())
    assert eps.equal(torch.randn(5000, 2, 3, 3, generator=generator())) and eps.dtype == torch.float32
    assert build_process(CARDS["vae"]).shape == (4, 7, 7)


def test_the_validation_of_a_vae_by_hand():
    """All of beta, whatever share of it the training has come to; 15 of 18 numbers of the latent say something.

    It measures shift and scale channel by channel: the mean and the sample standard deviation of mu.
    """
    errors, kl, model = squared_errors(), divergences(), Fixed()
    found = PRIOR.validate(model, X0)
    assert found.pop("active_units") == 15
    assert found == {
        "loss": pytest.approx(sum(errors) / 2 / 5 + BETA * sum(kl) / 5, rel=1e-9),
        "squared_error": pytest.approx(sum(errors) / 5 / 16, rel=1e-9),
        "kl": pytest.approx(sum(kl) / 5, rel=1e-9),
    }
    assert all(isinstance(value, float) for value in found.values())
    assert model.shift.shape == model.scale.shape == (2, 1, 1)
    for channel in range(2):
        values = model.mu[:, channel].flatten().tolist()
        assert model.shift[channel].item() == pytest.approx(statistics.mean(values), rel=1e-9)
        assert model.scale[channel].item() == pytest.approx(statistics.stdev(values), rel=1e-9)


def test_the_validation_of_a_vae_takes_the_same_standard_noise_each_time_and_no_gradient():
    model, before = Fixed(), torch.get_rng_state()
    assert PRIOR.validate(model, X0) == PRIOR.validate(model, X0)
    for _, eps, graded in model.seen:
        assert eps.equal(torch.randn(5, 2, 3, 3, generator=generator())) and not graded
    assert torch.equal(torch.get_rng_state(), before)


# An autoencoder without noise


def test_the_reconstruction_loss_of_each_image_is_the_mean_of_its_squared_errors():
    """16 pixels of which one is off by 2 and one by -1; all off by 0.5; none."""
    error = torch.zeros(3, 1, 4, 4, dtype=torch.float64)
    error[0, 0, 0, 3], error[0, 0, 2, 1], error[1] = 2.0, -1.0, 0.5
    loss = Reconstruction().training_loss(10)
    assert loss(lambda x0: x0 + error, X0[:3], None).tolist() == pytest.approx([5 / 16, 0.25, 0])
    drawing = generator()
    assert Reconstruction().draw(X0, drawing) == () and torch.equal(drawing.get_state(), generator().get_state())


def test_the_validation_of_an_autoencoder_measures_shift_and_scale_of_each_of_its_numbers():
    """The mean and the sample standard deviation over images; the loss is what it was before, and of all pixels."""
    model, x0 = tiny_network("attention_autoencoder").double(), to_model(draw_garments(50)[0]).double()
    z, before = model.encode(x0), torch.get_rng_state()
    found = Reconstruction().validate(model, x0)
    assert found == {"loss": pytest.approx((model(x0) - x0).square().mean().item(), rel=1e-9)}
    assert model.shift.shape == model.scale.shape == (1, 8, 8)
    for number in range(64):
        values = z.flatten(1)[:, number].tolist()
        assert model.shift.flatten()[number].item() == pytest.approx(statistics.mean(values), rel=1e-9)
        assert model.scale.flatten()[number].item() == pytest.approx(statistics.stdev(values), rel=1e-9)
    assert_close(model.to_latent(x0).mean(dim=0), torch.zeros(1, 8, 8).double(), rtol=0, atol=1e-9)
    assert_close(model.to_latent(x0).std(dim=0), torch.ones(1, 8, 8).double(), rtol=0, atol=1e-9)
    assert Reconstruction().validate(model, x0) == found and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["vae", "attention_autoencoder"])
def test_a_latent_number_that_never_changes_is_not_divided_by_zero(name):
    card = CARDS[name] | {"arguments": CARDS[name]["arguments"] | {"width": 8}}
    model = build(card).eval()
    for parameter in model.parameters():
        parameter.data.zero_()  # a network that is dead altogether
    x0 = torch.randn(6, 1, 28, 28, generator=generator())
    build_process(card).validate(model, x0)
    assert model.to_latent(x0).isfinite().all() and (model.scale > 0).all()
