"""The claims of fmdiff_helpers.recipes: cards that build, honest validation, the same network from the same seed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from fmdiff_helpers import recipes, schedules
from fmdiff_helpers.checkpoints import build, load_pretrained, read_card
from fmdiff_helpers.data import to_model
from fmdiff_helpers.diffusion import simple_loss, validation_loss
from fmdiff_helpers.recipes import CARDS, PROFILES, draw_shifts, schedule_of, shift, task
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


# Cards


@pytest.mark.parametrize("name", CARDS)
def test_every_card_builds_a_network_for_its_images(name):
    model, x0 = build(CARDS[name]), torch.zeros(2, 1, 28, 28)
    if name in DENOISERS:
        assert model(x0, torch.zeros(2, dtype=torch.int64)).shape == x0.shape
    else:
        assert model(x0).shape == (2, 10)


def test_there_are_a_denoiser_and_the_classifier():
    assert "unet" in DENOISERS and "classifier" in CARDS and "classifier" not in DENOISERS


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
    *_, (images, labels), validate = task(CARDS[name], *numbered, CPU)
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


def test_the_noise_is_drawn_for_all_steps_of_the_cards_chain(numbered):
    _, draw, *_ = task(CARDS["unet"], *numbered, CPU)
    t, eps = draw(torch.empty(5000, 1, 2, 2), generator())
    assert t.unique().tolist() == list(range(CARDS["unet"]["schedule"]["T"]))
    assert eps.shape == (5000, 1, 2, 2) and eps.std().item() == pytest.approx(1, abs=0.05)


# Training by name


@pytest.fixture
def small(monkeypatch):
    """Small cards on 96 drawn images, 32 of them for validation."""
    monkeypatch.setattr(recipes, "NUM_VALIDATION", 32)
    monkeypatch.setattr(recipes, "load_fashion_mnist", lambda split: draw_garments(96, seed=int(split != "train")))
    for name, arguments in {"unet": {"width": 8, "mults": [1], "num_classes": 0}, "classifier": {"width": 2}}.items():
        monkeypatch.setitem(CARDS, name, CARDS[name] | {"arguments": arguments})
        monkeypatch.setitem(PROFILES, name, {"full": {"steps": 4, "every": 2}})


SMALL = {"batch_size": 16}


@pytest.mark.parametrize("name", ["unet", "classifier"])
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
