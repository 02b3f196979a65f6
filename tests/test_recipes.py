"""The claims of fmdiff_helpers.recipes: cards that build, honest validation, the same network from the same seed."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from fmdiff_helpers import recipes, schedules
from fmdiff_helpers.checkpoints import build, load_pretrained, read_card, save_weights
from fmdiff_helpers.data import to_model
from fmdiff_helpers.diffusion import add_noise, simple_loss, validation_loss, x0_loss
from fmdiff_helpers.recipes import CARDS, PROFILES, ScheduledLoss, draw_shifts, load_denoiser, schedule_of, shift, task
from fmdiff_helpers.standin import draw_garments
from fmdiff_helpers.train import check_recipe

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


# Cards


def full_card(name: str) -> dict:
    """Return a card as a full training fills it in."""
    return CARDS[name] | {"recipe": CARDS[name]["recipe"] | PROFILES[name]["full"]}


@pytest.mark.parametrize("name", CARDS)
def test_every_card_builds_a_network_for_its_images(name):
    model, x0 = build(CARDS[name]), torch.zeros(2, 1, 28, 28)
    if name in DENOISERS:
        y = torch.tensor([0, 9]) if CARDS[name]["arguments"]["num_classes"] else None
        assert model(x0, torch.zeros(2, dtype=torch.int64), y).shape == x0.shape
    else:
        assert model(x0).shape == (2, 10)


def test_there_are_two_denoisers_one_of_the_noise_and_one_of_x0_and_the_classifier():
    assert {name: CARDS[name].get("target") for name in DENOISERS} == {"unet": None, "transformer": "x0"}
    assert "classifier" in CARDS and "classifier" not in DENOISERS


# Trained denoisers

TINY = {
    "unet": {"width": 8, "mults": [1], "num_classes": 0},
    "transformer": {"patch": 14, "dim": 8, "depth": 1, "heads": 1, "ff_dim": 8, "num_classes": 10},
}


def saved(name: str, folder: Path) -> nn.Module:
    """Write a tiny denoiser, random as if it were trained, to a folder and return it."""
    card = CARDS[name] | {"arguments": TINY[name]}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(card)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    save_weights(folder / "weights.safetensors", model, card)
    return model


XT, T = torch.randn(4, 1, 28, 28, generator=generator(1)), torch.tensor([0, 30, 150, 199])


def test_a_trained_network_that_predicts_x0_is_loaded_as_one_that_predicts_the_noise(tmp_path):
    model, y = saved("transformer", tmp_path), torch.tensor([3, 0, 9, 3])
    denoiser, schedule = load_denoiser(tmp_path)
    assert torch.equal(schedule.beta, schedules.cosine_beta(200))
    alpha_bar = (1 - schedule.beta).cumprod(0)[T].reshape(4, 1, 1, 1)
    expected = (XT - alpha_bar.sqrt() * model(XT, T, y)) / (1 - alpha_bar).sqrt()
    assert_close(denoiser(XT, T, y), expected.float(), rtol=1e-4, atol=1e-4)


def test_a_trained_network_that_predicts_the_noise_is_loaded_as_it_is(tmp_path):
    model = saved("unet", tmp_path)
    denoiser, schedule = load_denoiser(tmp_path)
    assert isinstance(denoiser, type(model)) and torch.equal(schedule.beta, schedules.cosine_beta(200))
    assert_close(denoiser(XT, T), model(XT, T), rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize("name", CARDS)
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


@pytest.mark.parametrize("name", DENOISERS)
def test_the_noise_is_drawn_for_all_steps_of_the_cards_chain(numbered, name):
    _, draw, *_ = task(full_card(name), *numbered, CPU)
    t, eps = draw(torch.empty(5000, 1, 2, 2), generator())
    assert t.unique().tolist() == list(range(CARDS[name]["schedule"]["T"]))
    assert eps.shape == (5000, 1, 2, 2) and eps.std().item() == pytest.approx(1, abs=0.05)


# Training by name


@pytest.fixture
def small(monkeypatch):
    """Small cards on 96 drawn images, 32 of them for validation."""
    monkeypatch.setattr(recipes, "NUM_VALIDATION", 32)
    monkeypatch.setattr(recipes, "load_fashion_mnist", lambda split: draw_garments(96, seed=int(split != "train")))
    for name, arguments in {**TINY, "classifier": {"width": 2}}.items():
        monkeypatch.setitem(CARDS, name, CARDS[name] | {"arguments": arguments})
        monkeypatch.setitem(PROFILES, name, {"full": {"steps": 4, "every": 2}})


SMALL = {"batch_size": 16}


@pytest.mark.parametrize("name", CARDS)
def test_a_network_is_trained_by_its_name_and_returned_with_its_history(small, tmp_path, name):
    reported = []
    model, history = recipes.train_network(name, tmp_path, lambda history: reported.append(len(history)), **SMALL)
    assert [point["step"] for point in history] == [2, 4] and reported == [1, 2]
    loaded = load_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, loaded[key]) for key, tensor in model.state_dict().items())
    card = read_card(tmp_path)
    assert card["network"] == CARDS[name]["network"] and card.get("schedule") == CARDS[name].get("schedule")


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
