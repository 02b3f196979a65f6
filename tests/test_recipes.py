"""The claims of fmdiff_helpers.recipes: cards that build, honest validation, the same network from the same seed."""

import copy
import json
import math
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from small_networks import TINY, same_weights, saved, tiny_card
from small_training import at_call, old_form
from torch import nn
from torch.testing import assert_close

from fmdiff_helpers import cards, recipes, schedules
from fmdiff_helpers.batching import this_process
from fmdiff_helpers.cards import WeightsError, build, build_process, latent_shape, read_card, takes_labels
from fmdiff_helpers.checkpoints import load_pretrained, save_weights
from fmdiff_helpers.data import to_model
from fmdiff_helpers.diffusion import draw_noise, v_loss, validation_loss
from fmdiff_helpers.drawing import drawer_of, load_autoencoder, load_drawer
from fmdiff_helpers.models.vae import VAE
from fmdiff_helpers.recipes import CARDS, profiles, training_parts
from fmdiff_helpers.run import DEFAULTS
from fmdiff_helpers.standin import draw_garments
from fmdiff_helpers.train import check_recipe, train

CPU = torch.device("cpu")
DENOISERS = [name for name, card in CARDS.items() if card["kind"] == "denoiser"]
DIFFUSIONS = [name for name in DENOISERS if CARDS[name]["process"]["name"] == "diffusion.Diffusion"]

pytestmark = pytest.mark.usefixtures("on_the_processor")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Cards


@pytest.mark.parametrize("name", CARDS)
def test_every_card_builds_a_network_for_its_images_and_has_recipes_that_make_sense(name):
    card, model, x0 = CARDS[name], build(CARDS[name]), torch.zeros(2, 1, 28, 28)
    assert list(card) == list(cards.KEYS)
    if card["kind"] == "denoiser":
        x0 = torch.zeros(2, *latent_shape(CARDS[card["autoencoder"]])) if card["autoencoder"] else x0
        y = torch.tensor([0, 9]) if takes_labels(card) else None
        assert model(x0, torch.zeros(2, dtype=torch.int64), y).shape == x0.shape
        schedule = build_process(card).schedule
        assert schedules.ends_in_noise(schedule) and torch.equal(schedule.beta, schedules.cosine_beta(schedule.T))
    elif name == "vae":
        eps = torch.zeros(2, *model.latent_shape)
        assert [tuple(said.shape) for said in model(x0, eps)] == [x0.shape, eps.shape, eps.shape]
    else:
        assert model(x0).shape == {"classifier": (2, 10), "encoder": (2, 64)}.get(card["kind"], x0.shape)
    recipe = [check_recipe(card["recipe"] | profile, 58_000) for profile in profiles(name).values()]
    assert list(profiles(name)) == ["smoke", "quick", "full"]
    assert recipe[0]["steps"] < recipe[1]["steps"] < recipe[2]["steps"]
    assert all(each["steps"] % each["every"] == 0 for each in recipe)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("unett", {}, "name is 'unett'; expected one of unet, transformer, vae"),
        ("unet", {"autoencoder": "vae"}, "autoencoder is 'vae', but unet is trained on images; leave it out"),
        ("classifier", {"autoencoder": ""}, "autoencoder is '', but classifier is trained on images; leave it out"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_read_or_written(tmp_path, name, options, words):
    with pytest.raises(ValueError, match=words):
        recipes.train_network(name, tmp_path / "run", **options)
    assert not list(tmp_path.iterdir())


def test_there_are_denoisers_of_the_noise_of_x0_and_of_v_one_that_jumps_two_autoencoders_and_the_judges():
    """Their T, target, share of labels that is dropped, and autoencoder."""
    found = {
        name: (card["process"]["T"], card["process"]["target"], card["label_dropout"], card["autoencoder"])
        for name, card in CARDS.items()
        if name in DIFFUSIONS
    }
    assert found == {
        "unet": (200, "eps", 0, None),
        "transformer": (200, "x0", 0, None),
        "latent_unet": (1000, "v", 0, "vae"),
        "patch_unet": (200, "v", 0.1, None),
        "vector_denoiser": (1000, "v", 0.1, "attention_autoencoder"),
    }
    assert [name for name, card in CARDS.items() if card["kind"] == "autoencoder"] == ["vae", "attention_autoencoder"]
    assert CARDS.keys() - DIFFUSIONS - {"shortcut_unet"} == {"vae", "attention_autoencoder", "classifier", "encoder"}


# The parts of a training

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


@pytest.fixture(scope="module")
def autoencoders(tmp_path_factory) -> dict[str, dict[str, str]]:
    """What cards say of their autoencoders, by name, here tiny ones in folders."""
    folder, said = tmp_path_factory.mktemp("autoencoders"), {}
    for name in ("vae", "attention_autoencoder"):
        saved(name, folder / name)
        said[name] = {"name": str(folder / name), "sha256": read_card(folder / name)["sha256"]}
    return said


def parts_of(name: str, numbered, autoencoders=None, **changes) -> recipes.Parts:
    """Return the parts of a full training, with tiny networks."""
    card = tiny_card(name, recipe=CARDS[name]["recipe"] | profiles(name)["full"]) | changes
    if card["autoencoder"]:
        card["autoencoder"] = autoencoders[card["autoencoder"]]
    return training_parts(card, *numbered, CPU)


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if not card["autoencoder"]])
def test_the_last_2000_images_are_for_validation_and_never_in_the_training_data(numbered, name):
    before = torch.get_rng_state()
    *_, (images, labels), validate = parts_of(name, numbered)
    held_out = validate.keywords
    assert images.dtype == torch.uint8 and numbers(to_model(images)) == labels.tolist() == list(range(500))
    assert recipes.NUM_VALIDATION == 2000 and numbers(held_out["x0"]) == list(range(500, NUM))
    assert held_out["x0"].min() == -1 and held_out["x0"].max() == 1
    assert held_out["y"] is None if name == "unet" else held_out["y"].tolist() == list(range(500, NUM))
    assert torch.equal(torch.get_rng_state(), before)


class Denoiser(nn.Module):
    """Say that a tenth of what is seen is noise, and keep the labels."""

    def forward(self, x, t, y=None):
        self.y = y
        return x / 10


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_a_denoiser_is_told_the_labels_where_it_takes_them_and_draws_step_and_noise(numbered, autoencoders, name):
    """Where no labels are dropped, the same numbers as ever: a seed still gives the network that it gave."""
    loss, draw, _, validate = parts_of(name, numbered, autoencoders)
    process, model, plain = build_process(CARDS[name]), Denoiser(), Denoiser()
    x0, y = torch.randn(6, 2, 1, 1, generator=generator(1)), torch.arange(6)
    t, eps, *rest = draw(x0, generator())
    if CARDS[name]["label_dropout"]:
        start = generator()
        expected = [torch.rand(6, generator=start), *draw_noise(x0, start, process.schedule)]
        assert torch.equal(rest[0], expected.pop(0)), "u is drawn first, and comes last"
        rest = [rest[0] + 0.1]  # none is dropped
    else:
        expected = draw_noise(x0, generator(), process.schedule)
    assert torch.equal(t, expected[0]) and torch.equal(eps, expected[1])
    found, held_out = loss(model, x0, y, t, eps, *rest), validate.keywords["x0"]
    assert torch.equal(model.y, y) if name != "unet" else model.y is None
    whole = process.loss(plain, x0, y, t, eps)
    assert_close(found.mean(), whole.mean()) if name == "transformer" else assert_close(found, whole, rtol=0, atol=0)
    assert validate(model) == process.validate(plain, held_out, None)
    assert torch.equal(model.y, numbered[1][500:]) if name != "unet" else model.y is None


def test_losses_that_change_in_the_course_of_a_training_know_how_long_it_is(numbered):
    assert parts_of("transformer", numbered).loss.num_steps == profiles("transformer")["full"]["steps"]
    loss = parts_of("vae", numbered, process=CARDS["vae"]["process"] | {"kl_weight": 0.125}).loss
    assert (loss.beta, loss.num_steps) == (0.125, profiles("vae")["full"]["steps"] // 3)
    unlabelled = tiny_card("transformer", arguments=TINY["transformer"] | {"num_classes": 0}, recipe={"steps": 9})
    loss, model = training_parts(unlabelled, *numbered, CPU).loss, Denoiser()
    loss(model, torch.zeros(2, 1, 2, 2), torch.arange(2), torch.arange(2), torch.zeros(2, 1, 2, 2))
    assert model.y is None and loss.state_dict()["loss.step"] == 1, "checkpoints keep the memory of a loss in a loss"


@pytest.mark.parametrize("share", [0.1, 0.25, 1.0])
def test_the_share_of_the_card_is_dropped_in_training_and_none_in_validation(numbered, share):
    """Exactly those labels whose u is below the share."""
    loss, _, _, validate = parts_of("patch_unet", numbered, label_dropout=share)
    n, model, schedule = 1000, Denoiser(), build_process(CARDS["patch_unet"]).schedule
    x0, y = torch.randn(n, 1, 2, 2, generator=generator()), torch.arange(n) % 10
    t, eps = draw_noise(x0, generator(), schedule)
    found = loss(model, x0, y, t, eps, torch.arange(n) / n)
    dropped = round(share * n)
    assert model.y[:dropped].tolist() == [10] * dropped and torch.equal(model.y[dropped:], y[dropped:])
    assert torch.equal(y, torch.arange(n) % 10), "the labels themselves stay as they are"
    assert torch.equal(found, v_loss(Denoiser(), x0, None, t, eps, schedule))
    assert validate(model) == validation_loss(Denoiser(), to_model(numbered[0][500:]), None, schedule, loss_fn=v_loss)
    assert torch.equal(model.y, numbered[1][500:])


def test_a_denoiser_of_latents_sees_each_image_encoded_once_and_standardised(numbered, autoencoders, monkeypatch):
    seen, encode = [], VAE.encode
    monkeypatch.setattr(VAE, "encode", lambda self, x0: seen.append(x0) or encode(self, x0))
    loss, draw, (latents, labels), validate = parts_of("latent_unet", numbered, autoencoders)
    held_out = validate.keywords["x0"]
    loss(Denoiser(), latents[:6], labels[:6], *draw(latents[:6], generator()))
    validate(Denoiser())
    assert numbers(torch.cat(seen)) == list(range(NUM))
    assert labels.tolist() == list(range(500)) and validate.keywords["y"].tolist() == list(range(500, NUM))
    mu, _ = encode(load_pretrained(Path(autoencoders["vae"]["name"])), to_model(numbered[0]))
    expected = torch.stack([(mu[:, 0] + 0.7) / 0.5, (mu[:, 1] - 0.3) / 1.6], dim=1)
    assert_close(latents, expected[:500], rtol=1e-4, atol=1e-4)
    assert_close(held_out, expected[500:], rtol=1e-4, atol=1e-4)
    assert not latents.requires_grad and not held_out.requires_grad
    with pytest.raises(WeightsError, match="with sha256 0000, found "):
        parts_of("latent_unet", numbered, {"vae": autoencoders["vae"] | {"sha256": "0000"}})


# Training by name


@pytest.fixture
def small(tmp_path_factory, monkeypatch):
    """Small cards on 96 drawn images, 32 of them for validation; published autoencoders, and teachers in a latent."""
    monkeypatch.setattr(cards, "PUBLISHED", tmp_path_factory.mktemp("published"))
    for name in ("vae", "attention_autoencoder"):
        saved(name, cards.PUBLISHED, file=name)
    latent = {"name": "vae", "sha256": read_card("vae")["sha256"]}
    for seed, name in enumerate(("latent_unet", "latent_unet_unit_1")):
        saved("latent_unet", cards.PUBLISHED, seed, name, autoencoder=latent)
    monkeypatch.setattr(recipes, "NUM_VALIDATION", 32)
    monkeypatch.setattr(recipes, "load_fashion_mnist", lambda split: draw_garments(96, seed=int(split != "train")))
    for name in CARDS:
        monkeypatch.setitem(CARDS, name, tiny_card(name))
    monkeypatch.setattr(recipes, "profiles", lambda name: {"full": {"steps": 4, "every": 2}})


SMALL = {"batch_size": 16}


@pytest.mark.parametrize("name", CARDS)
def test_a_network_is_trained_by_its_name_and_goes_on_from_a_checkpoint_of_version_0_1(small, tmp_path, name):
    """Its card had no kind, no process and no share of labels of 0, and only losses with a memory were in it.

    Version 0.1 had no encoder and no network that jumps, whose cards stay as they are.
    """
    is_new = name in ("encoder", "shortcut_unet")
    to_old = copy.deepcopy if is_new else old_form
    reported = []
    whole, history = recipes.train_network(name, tmp_path / "whole", lambda run: reported.append(run.step), **SMALL)
    assert [point["step"] for point in history] == [2, 4] == reported
    recipes.train_network(name, tmp_path / "parts", at_call(1, KeyboardInterrupt()), **SMALL)
    path = tmp_path / "parts" / "checkpoint.pt"
    state = torch.load(path)
    assert state["step"] == 2
    state |= {"card": to_old(state["card"]), "loss": state["loss"] or None}
    assert is_new or not {"kind", "process"} & state["card"].keys()
    assert cards.upgrade(state["card"])["kind"] == CARDS[name]["kind"]
    torch.save(state, path)
    parts, found = recipes.train_network(name, tmp_path / "parts", **SMALL)
    assert found == history and same_weights(parts, whole) and same_weights(load_pretrained(tmp_path / "parts"), whole)
    card, same = read_card(tmp_path / "parts"), ("kind", "network", "arguments", "process", "label_dropout")
    assert {key: card[key] for key in same} == {key: CARDS[name][key] for key in same}
    named = card["autoencoder"] and card["autoencoder"]["name"]
    assert named == CARDS[name]["autoencoder"], "the published one; the card itself stays as it is"


def test_a_trained_vae_holds_what_standardises_the_latents_of_the_images_that_were_held_out(small, tmp_path):
    recipes.train_network("vae", tmp_path, **SMALL)
    z = load_pretrained(tmp_path).to_latent(to_model(draw_garments(96)[0][-32:]))
    assert_close(z.mean(dim=(0, 2, 3)), torch.zeros(2), rtol=0, atol=1e-3)
    assert_close(z.std(dim=(0, 2, 3)), torch.ones(2), rtol=0, atol=1e-3)
    assert torch.load(tmp_path / "checkpoint.pt")["loss"]["step"] == 4
    _, history = recipes.train_network("vae", tmp_path / "single", steps=1, every=1, **SMALL)
    assert history[-1]["step"] == 1


@pytest.mark.parametrize(
    "autoencoder, denoiser", [("vae", "latent_unet"), ("attention_autoencoder", "vector_denoiser")]
)
def test_an_autoencoder_is_trained_and_then_a_denoiser_on_its_latents(
    small, tmp_path, monkeypatch, autoencoder, denoiser
):
    """As measured on the images that were held out of both trainings; it leaves the autoencoder as it is."""
    given, folder, run = [], tmp_path / "autoencoder", tmp_path / "run"
    recipes.train_network(autoencoder, folder, seed=1, **SMALL)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(recipes, "train", lambda *arguments: given.append(arguments) or train(*arguments))
    recipes.train_network(denoiser, run, autoencoder=str(folder), **SMALL)
    ((*_, (latents, _), validate, _, _, _),) = given
    network, held_out = load_pretrained(folder), validate.keywords["x0"]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert_close(
        torch.cat([latents, held_out]), network.to_latent(to_model(draw_garments(96)[0])), rtol=1e-4, atol=1e-4
    )
    about = {"name": str(folder), "sha256": read_card(folder)["sha256"]}
    assert all(card["autoencoder"] == about for card in (read_card(run), torch.load(run / "checkpoint.pt")["card"]))
    assert same_weights(load_autoencoder(run), network) and not same_weights(load_pretrained(autoencoder), network)
    images = load_drawer(run, num_steps=2).draw(3, y=torch.arange(3))
    assert images.shape == (3, 1, 28, 28) and images.isfinite().all()


def test_a_request_to_end_while_latents_are_encoded_is_like_ctrl_c(small, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "in_batches", lambda *_, **options: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        recipes.train_network("latent_unet", tmp_path, **SMALL)


def test_a_denoiser_finds_its_autoencoder_from_any_folder_and_where_both_were_moved(small, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    vae = saved("vae", Path("runs/vae"), seed=1)
    recipes.train_network("latent_unet", "runs/unet", autoencoder="runs/vae", **SMALL)
    written = json.loads(Path("runs/unet/weights.json").read_text())["autoencoder"]
    assert written == {"name": "./../vae", "sha256": read_card("runs/vae")["sha256"]}
    monkeypatch.chdir(tmp_path / "other")
    assert same_weights(load_autoencoder("../here/runs/unet"), vae)
    # The same training from another folder goes on: here it has ended, and takes no further step.
    recipes.train_network("latent_unet", "../here/runs/unet", autoencoder="../here/runs/vae", **SMALL)
    (tmp_path / "here" / "runs").rename(tmp_path / "other" / "moved")
    assert same_weights(load_autoencoder("moved/unet"), vae)
    for path in Path("moved/unet").glob("weights.*"):
        path.unlink()
    recipes.train_network("latent_unet", Path("moved/unet"), autoencoder=Path("moved/vae"), **SMALL)
    assert json.loads(Path("moved/unet/weights.json").read_text())["autoencoder"] == written
    assert same_weights(load_autoencoder("moved/unet"), vae)


def test_a_run_in_one_latent_does_not_go_on_in_another(small, tmp_path, monkeypatch):
    saved("vae", tmp_path / "another", seed=1)
    recipes.train_network("latent_unet", tmp_path / "run", **SMALL)
    monkeypatch.setattr(recipes, "training_parts", None)  # it is refused before all images are encoded
    with pytest.raises(ValueError, match=r"is another training \(autoencoder: {'name': 'vae'"):
        recipes.train_network("latent_unet", tmp_path / "run", autoencoder=str(tmp_path / "another"), **SMALL)
    saved("vae", cards.PUBLISHED, seed=2, file="vae")
    with pytest.raises(ValueError, match=r"is another training \(autoencoder: {'name': 'vae'"):
        recipes.train_network("latent_unet", tmp_path / "run", **SMALL)


@pytest.mark.parametrize(
    "denoiser, other, arguments, said",
    [
        ("latent_unet", "transformer", {}, "'{}' is a Transformer; expected an autoencoder"),
        ("vector_denoiser", "classifier", {}, "'{}' is a Classifier; expected an autoencoder"),
        ("latent_unet", "vae", {"channels": 3}, "latents of '{}' are (3, 7, 7); expected (2, 7, 7), as the"),
        ("latent_unet", "attention_autoencoder", {}, "latents of '{}' are (1, 8, 8); expected (2, 7, 7), as the"),
        ("vector_denoiser", "vae", {"grid": 1}, "latents of '{}' are (2, 1, 1); expected (1, 8, 8), as the"),
        ("vector_denoiser", None, {}, "there are no weights '{}'; published are: attention_autoencoder"),
    ],
)
def test_a_denoiser_of_latents_refuses_what_is_no_autoencoder_of_such_latents(
    small, tmp_path, denoiser, other, arguments, said
):
    if other:
        card = tiny_card(other, arguments=TINY[other] | arguments)
        save_weights(tmp_path / "other" / "weights.safetensors", build(card), card)
    with pytest.raises((ValueError, WeightsError), match=f"^{re.escape(said.format(tmp_path / 'other'))}"):
        recipes.train_network(denoiser, tmp_path / "run", autoencoder=str(tmp_path / "other"), **SMALL)
    assert not (tmp_path / "run").exists()


def test_changes_come_before_the_profile_and_the_profile_before_the_card(small, tmp_path, monkeypatch):
    monkeypatch.setitem(CARDS, "unet", CARDS["unet"] | {"recipe": {"lr": 0.5, "warmup": 7, "every": 9}})
    given = []
    monkeypatch.setattr(recipes, "train", lambda *arguments: given.append(arguments[6]))
    recipes.train_network("unet", tmp_path, steps=6, warmup=8, batch_size=16)
    (card,) = given
    changed = {"lr": 0.5, "warmup": 8, "every": 2, "steps": 6, "batch_size": 16}
    assert card["recipe"] == DEFAULTS | changed
    assert CARDS["unet"]["recipe"] == {"lr": 0.5, "warmup": 7, "every": 9}, "the card itself stays as it is"


@pytest.mark.parametrize("source", ["Fashion-MNIST, training split", "drawn stand-in for Fashion-MNIST"])
def test_the_card_says_what_data_it_was_trained_on_and_a_run_does_not_change_them(small, tmp_path, monkeypatch, source):
    monkeypatch.setattr(recipes, "describe_data", lambda: source)
    recipes.train_network("unet", tmp_path, **SMALL)
    assert read_card(tmp_path)["data"] == source
    monkeypatch.setattr(recipes, "describe_data", lambda: "other data")
    with pytest.raises(ValueError, match=f"data: '{source}' there, 'other data' now"):
        recipes.train_network("unet", tmp_path, **SMALL)


def test_a_lesson_trains_on_the_stand_in_and_on_the_dataset_in_two_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("FMDIFF_DATA", str(tmp_path))
    assert recipes.run_folder("unet", 0.5) == Path("runs/unet_0.5_epochs_standin")
    (tmp_path / "FashionMNIST/raw").mkdir(parents=True)
    (tmp_path / "FashionMNIST/raw/train-images-idx3-ubyte.gz").touch()
    assert recipes.run_folder("unet", 0.5) == Path("runs/unet_0.5_epochs")


def test_the_seed_alone_decides_the_weights_to_start_from_and_the_callers_random_numbers_stay(
    small, tmp_path, monkeypatch
):
    splits = []
    monkeypatch.setattr(recipes, "train", lambda *arguments: [])
    monkeypatch.setattr(recipes, "load_fashion_mnist", lambda split: splits.append(split) or draw_garments(96))

    def untrained(**changes):
        return recipes.train_network("classifier", tmp_path, batch_size=16, **changes)[0].head.weight

    before, first = torch.get_rng_state(), untrained()
    assert torch.equal(torch.get_rng_state(), before) and splits == ["train"]
    torch.rand(5)
    assert torch.equal(first, untrained()) and torch.equal(first, untrained(seed=0))
    assert not torch.equal(first, untrained(seed=1))


def test_the_classifier_learns_in_a_few_steps_and_takes_no_change_that_no_recipe_has(small, tmp_path):
    _, history = recipes.train_network("classifier", tmp_path, steps=60, every=30, warmup=10, lr=0.03, **SMALL)
    assert history[-1]["loss"] < 0.9 * F.cross_entropy(torch.zeros(1, 10), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"the recipe has \['learning_rate'\]"):
        recipes.train_network("classifier", tmp_path, learning_rate=1)


# A process of one's own


@dataclass(frozen=True)
class Flow:
    """A straight path x_t = (1 - t) x0 + t eps, t real in [0, 1]; the network predicts eps - x0."""

    device: torch.device
    kind, max_steps, shape = "denoiser", 100, (1, 28, 28)

    @classmethod
    def from_card(cls, card, device):
        return cls(torch.device(device))

    def draw(self, x0, generator):
        t = torch.rand(len(x0), generator=generator, device=x0.device)
        return t, torch.randn(x0.shape, generator=generator, device=x0.device)

    def loss(self, model, x0, y, t, eps):
        share = t.reshape(-1, 1, 1, 1)
        return (model((1 - share) * x0 + share * eps, 1000 * t, y) - (eps - x0)).square().flatten(1).mean(dim=1)

    def training_loss(self, num_steps):
        return self.loss

    def validate(self, model, x0, y):
        return {"loss": self.loss(model, x0, y, *self.draw(x0, torch.Generator().manual_seed(0))).mean().item()}

    def predictor(self, network):
        return lambda x, t, y=None: network(x, 1000 * t, y)

    def sample(self, model, x, generator, num_steps=None, y=None, **options):
        num_steps = num_steps or self.max_steps
        for k in range(num_steps, 0, -1):
            x = x - model(x, torch.full((len(x),), k / num_steps), y) / num_steps
        return x


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_another_process_is_a_file_and_a_card_that_names_it(small, tmp_path, monkeypatch, dropout):
    """Nothing else of the package knows of it, and it trains, goes on, is kept, loaded, guided and draws."""
    module = ModuleType("fmdiff_helpers.processes.flow")
    module.Flow = Flow
    monkeypatch.setattr(Flow, "__module__", module.__name__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    card = tiny_card("patch_unet", process={"name": "flow.Flow"}, label_dropout=dropout)
    card["recipe"] = {"steps": 2, "every": 1, "batch_size": 16, "warmup": 1}
    network = build(card)
    parts = training_parts(card, *draw_garments(96), this_process().device)
    history = train(network, *parts, tmp_path, card)
    assert [point["step"] for point in history] == [1, 2] and all(map(math.isfinite, (p["loss"] for p in history)))
    y = torch.arange(4)
    images = drawer_of(card, network.eval(), 3, CPU).draw(4, seed=1, y=y)
    x = torch.randn((4, 1, 28, 28), generator=generator(1))
    with torch.no_grad():
        for t in (1, 2 / 3, 1 / 3):
            x = x - network(x, torch.full((4,), 1000 * t), y) / 3
    assert_close(images, x, rtol=1e-4, atol=1e-4)
    assert load_drawer(tmp_path, 3).draw(4, 1, y).allclose(images, atol=1e-5)
    guided = {"guidance": 2.0, "guide": None if dropout else tmp_path}
    assert load_drawer(tmp_path, 3, **guided).draw(4, 1, y).isfinite().all()
