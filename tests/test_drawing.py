"""The claims of fmdiff_helpers.drawing: a seed decides the images, and a name and options decide how they are drawn."""

import copy
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_networks import same_weights, saved, tiny_card, tiny_network
from torch.testing import assert_close
from torchvision.datasets import FashionMNIST

from fmdiff_helpers.cards import WeightsError, read_card
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.data import CLASS_NAMES
from fmdiff_helpers.diffusion import posterior, x0_from_eps
from fmdiff_helpers.drawing import (
    Drawer,
    autoencoder_of,
    batch_generator,
    drawer_of,
    find_kind,
    load_autoencoder,
    load_drawer,
)
from fmdiff_helpers.guidance import guided
from fmdiff_helpers.models.vae import VAE
from fmdiff_helpers.processes.autoencoding import VariationalPrior
from fmdiff_helpers.processes.diffusion import Diffusion
from fmdiff_helpers.recipes import CARDS
from fmdiff_helpers.samplers import respace, sample_ddim, sample_ddpm
from fmdiff_helpers.schedules import Schedule, cosine_beta

UNEVEN = Schedule(torch.tensor([0.1, 0.4, 0.2, 0.6], dtype=torch.float64))
COSINE = Schedule(cosine_beta(50))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def guess(xt, t, y):
    """A model that is wrong, and depends on every pixel and on t."""
    return torch.tanh(xt + 0.1 * t.reshape(-1, *[1] * (xt.ndim - 1)))


def draw(n, schedule=COSINE, model=guess, num_steps=None, autoencoder=None, **options):
    """Return drawn images and all steps on the way."""
    steps = []
    drawer = Drawer(Diffusion(schedule), model, num_steps, autoencoder)
    return drawer.draw(n, watch=steps.append, **options), steps


def check_unit_noise(noise):
    """At 5 standard errors."""
    noise = noise.double().flatten()
    assert abs(noise.mean()) < 5 / math.sqrt(len(noise)) and abs(noise.var() - 1) < 5 * math.sqrt(2 / len(noise))


@pytest.fixture(scope="module")
def vae() -> VAE:
    return tiny_network("vae")


# Images from a seed


@pytest.mark.parametrize("latent", [False, True])
@pytest.mark.parametrize("num_steps", [None, 2])
def test_a_seed_decides_all_images_and_another_seed_gives_others(vae, num_steps, latent):
    options = {"num_steps": num_steps, "autoencoder": vae if latent else None}
    before = torch.get_rng_state()
    one, same, other = (draw(3, UNEVEN, seed=seed, **options)[0] for seed in (5, 5, 6))
    assert (one.shape, one.dtype) == ((3, 1, 28, 28), torch.float32) and not one.requires_grad
    assert one.equal(same) and not torch.allclose(one, other, atol=1e-3)
    assert not torch.allclose(one[0], one[1], atol=1e-3)
    assert draw(3, UNEVEN, seed=0, **options)[0].equal(draw(3, UNEVEN, **options)[0])
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("num_steps, random", [(None, True), (50, True), (49, False), (5, False), (1, False)])
def test_all_steps_are_ddpm_and_fewer_are_ddim(num_steps, random):
    images, steps = draw(2, num_steps=num_steps)
    assert [step.t for step in steps] == respace(COSINE, num_steps)[0].flip(0).tolist()
    assert all(bool((step.noise != 0).any()) is random for step in steps[:-1])
    if not random:
        assert images.equal(sample_ddim(guess, steps[0].xt, COSINE, num_steps=num_steps))
    for k, step in zip(reversed(range(50)), steps, strict=False):
        if random:
            mean, variance = posterior(step.x0_hat, step.xt, torch.full((2,), k), COSINE)
            assert_close(step.x_prev, mean + step.noise, rtol=1e-5, atol=1e-5)
            assert_close(step.noise.std(), variance[0].sqrt().squeeze(), rtol=5 / math.sqrt(2 * 1568), atol=0)


@pytest.mark.parametrize("n", [13, 101])
def test_chains_start_from_unit_noise_that_is_not_added_again_later(n):
    """Not even in part: the noise of the first step and that of the start are uncorrelated."""
    _, steps = draw(n, UNEVEN)
    start, noise = (image.double().flatten() for image in (steps[0].xt, steps[0].noise))
    check_unit_noise(start)
    correlation = torch.corrcoef(torch.stack([start, noise]))[0, 1].item()
    assert_close(correlation, 0.0, rtol=0, atol=5 / math.sqrt(len(start)))


def test_many_images_come_in_batches_whose_labels_are_theirs_and_that_all_differ():
    y, seen = torch.arange(202) % 10, []

    def model(xt, t, labels):
        seen.append(labels)
        return guess(xt, t, labels)

    images, steps = draw(202, UNEVEN, model, y=y)
    assert [len(step.xt) for step in steps] == [100] * 8 + [2] * 4
    assert images.equal(torch.cat([steps[k].x_prev for k in (3, 7, 11)]))
    assert torch.cat(seen[::4]).equal(y) and all(seen[k].equal(seen[k + 1]) for k in (0, 1, 2, 4, 8))
    assert images.equal(draw(202, UNEVEN)[0]), "the same noise with labels and without"
    first, second, third = (steps[k].noise[:2] for k in (0, 4, 8))
    for a, b in ((first, second), (first, third), (second, third), (steps[0].xt[:2], steps[8].xt)):
        assert not torch.allclose(a, b, atol=0.01)


def test_no_batch_of_a_seed_has_the_noise_of_another_batch_or_seed():
    """The numbers are those that all published measures were taken with."""
    start = seeded(3)
    torch.randn(5, generator=start)
    found = batch_generator(torch.arange(100), 7, start)
    assert found is not start and found.get_state().equal(start.get_state()), "the first batch goes on from the start"
    seeds = {
        (seed, first): batch_generator(torch.arange(first, first + 2), seed, start).initial_seed()
        for seed in range(300)
        for first in range(100, 3000, 100)
    }
    assert len(set(seeds.values())) == len(seeds) and seeds[0, 100] == 1_000_103 and seeds[2, 1700] == 3_001_709


def test_labels_are_all_ten_kinds_in_turn_or_none_and_no_images_are_an_error():
    drawer, seen = Drawer(Diffusion(UNEVEN), lambda xt, t, y: seen.append(y) or guess(xt, t, y)), []
    assert (
        drawer.all_kinds(12).tolist() == [*range(10), 0, 1]
        and replace(drawer, takes_labels=False).all_kinds(12) is None
    )
    drawer.draw(2)
    assert seen == [None] * 4
    with pytest.raises(ValueError, match="0 inputs; expected at least 1"):
        drawer.draw(0)


def test_a_kind_is_found_by_its_name_in_any_case_its_number_or_torchvision_s_name():
    for number, (name, theirs) in enumerate(zip(CLASS_NAMES, FashionMNIST.classes, strict=True)):
        for kind in (name, name.upper(), f" {name.lower()} ", theirs, theirs.lower(), number, str(number)):
            assert find_kind(kind) == number


@pytest.mark.parametrize("kind", ["Hat", "", "dres", "Shirt/top", "10", "1.0", -1, 10, 1.0, True, None])
def test_a_kind_that_there_is_not_is_an_error_that_names_all_ten(kind):
    with pytest.raises(ValueError, match=f"garment is {kind!r}; expected a name or a number of: 0 T-shirt, "):
        find_kind(kind, "garment")


# Images from latents


@pytest.mark.parametrize("num_steps", [None, 2])
def test_latents_are_drawn_in_their_shape_without_a_clip_and_decoded_batch_by_batch(vae, num_steps):
    y = torch.arange(102) % 10

    def model(xt, t, labels):
        assert xt.shape[1:] == (2, 7, 7) and labels.equal(y[: len(xt)] if len(xt) == 100 else y[100:])
        return guess(xt, t, labels)

    images, steps = draw(102, UNEVEN, model, num_steps, vae, y=y)
    each = num_steps or 4
    assert images.shape == (102, 1, 28, 28) and len(steps) == 2 * each
    for step in steps:
        implied = x0_from_eps(step.xt, torch.full(step.xt.shape[:1], step.t), step.eps_hat, UNEVEN)
        assert implied.abs().max() > 1.5 and torch.allclose(step.x0_hat, implied, rtol=1e-5, atol=1e-5)
    last = torch.cat([steps[each - 1].x_prev, steps[-1].x_prev])
    assert_close(images, vae.from_latent(last)) and not images.isclose(vae.decode(last)).all()
    check_unit_noise(steps[0].xt)
    if num_steps:
        assert steps[1].x_prev.equal(sample_ddim(model, steps[0].xt, UNEVEN, num_steps=2, y=y[:100], clip=math.inf))
    else:
        assert all(bool((step.noise != 0).any()) for step in steps[:3])  # DDPM


def test_a_vae_alone_draws_by_decoding_standard_normal_latents(vae):
    """As its encoder's clouds are: not standardised, and so not by shift and scale. There is nothing to watch."""
    seen, prior = [], VariationalPrior(0.1, (2, 7, 7), torch.device("cpu"))
    drawer = Drawer(prior, lambda z: seen.append(z) or prior.predictor(vae)(z))
    images = drawer.draw(102, seed=3, watch=lambda step: pytest.fail("shows a step"))
    assert [len(z) for z in seen] == [100, 2] and torch.cat(seen).equal(torch.randn(102, 2, 7, 7, generator=seeded(3)))
    assert images.shape == (102, 1, 28, 28) and images.equal(torch.cat([VAE.decode(vae, part) for part in seen]))


def test_images_from_latents_carry_no_gradient_even_of_a_vae_in_training(vae):
    learning = copy.deepcopy(vae).requires_grad_(True)
    assert not draw(2, UNEVEN, lambda xt, t, y: 0.5 * xt, autoencoder=learning)[0].requires_grad
    prior = VariationalPrior(0.1, (2, 7, 7), torch.device("cpu"))
    assert not Drawer(prior, prior.predictor(learning)).draw(2).requires_grad


# Trained networks by name. Those that draw step by step do it in 8 steps.


def short(name: str) -> dict:
    return CARDS[name]["process"] | {"T": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder of tiny networks by name, and of guides for them."""
    folder = tmp_path_factory.mktemp("drawing")
    for name in ("vae", "attention_autoencoder", "classifier", "encoder"):
        saved(name, folder / name)
    for name in ("unet", "transformer", "patch_unet"):
        saved(name, folder / name, process=short(name))
    saved("patch_unet", folder / "weaker", seed=1, process=short("patch_unet"))
    for name, seed, there, autoencoder in (
        ("latent_unet", 0, "latent_unet", "vae"),
        ("latent_unet", 1, "weaker_latent_unet", "vae"),
        ("vector_denoiser", 0, "vector_denoiser", "attention_autoencoder"),
    ):
        saved(name, folder / there, seed=seed, process=short(name), autoencoder=about(folder, autoencoder))
    return folder


def about(folder: Path, name: str) -> dict[str, str]:
    """Return what a card says of an autoencoder."""
    return {"name": str(folder / name), "sha256": read_card(folder / name)["sha256"]}


SIX, T = torch.tensor([3, 0, 9, 3, 5, 1]), torch.tensor([0, 1, 2, 4, 5, 7])
XT = torch.randn(6, 1, 28, 28, generator=seeded(1))


@pytest.mark.parametrize("name", ["unet", "transformer", "patch_unet", "latent_unet"])
def test_a_network_is_loaded_as_one_that_predicts_the_noise(folder, name):
    network, drawer, schedule = load_pretrained(folder / name), load_drawer(folder / name), Schedule(cosine_beta(8))
    x = torch.randn(6, 2, 7, 7, generator=seeded(1)) if name == "latent_unet" else XT
    y = None if name == "unet" else SIX
    a, b = ((x.sqrt()[T].reshape(6, 1, 1, 1)) for x in (schedule.alpha_bar, 1 - schedule.alpha_bar))
    said = network(x, T, y)
    expected = {"eps": said, "x0": (x - a * said) / b, "v": b * x + a * said}[CARDS[name]["process"]["target"]]
    assert_close(drawer.model(x, T, y), expected.float(), rtol=1e-4, atol=1e-4)
    assert torch.equal(drawer.process.schedule.beta, schedule.beta) and drawer.takes_labels is (name != "unet")
    assert drawer.shared and not drawer_of(read_card(folder / name), network, None, "cpu").shared


OPTIONS = [
    ("unet", {}),
    ("transformer", {}),
    ("vae", {}),
    ("patch_unet", {"guidance": 2.5}),
    ("patch_unet", {"guidance": 2.5, "interval": (2, 7)}),
    ("patch_unet", {"guidance": 2.5, "guide": "weaker", "interval": (0, 3)}),
    ("transformer", {"guidance": 2.5, "guide": "weaker"}),
    ("latent_unet", {"guidance": 2.5, "guide": "weaker_latent_unet", "interval": [3, 6]}),
    ("vector_denoiser", {"guidance": 0.5}),
]


@pytest.mark.parametrize("num_steps", [None, 3])
@pytest.mark.parametrize("name, options", OPTIONS)
def test_a_network_draws_with_what_its_options_say_where_they_say(folder, name, options, num_steps):
    """Guidance by hand: away from itself without labels or from a weaker network, whatever both predict."""
    num_steps = None if name == "vae" else num_steps
    asked = options | ({"guide": folder / options["guide"]} if "guide" in options else {})
    y, drawer, plain = (
        None if name in ("unet", "vae") else SIX,
        *(load_drawer(folder / name, num_steps, **o) for o in (asked, {})),
    )
    weak = load_drawer(asked["guide"]).model if "guide" in options else lambda x, t, y: plain.model(x, t, None)

    def led(x, t, y):
        first, last = options.get("interval", (0, 7))
        if not first <= t[0] <= last:
            return plain.model(x, t, y)
        return weak(x, t, y) + options["guidance"] * (plain.model(x, t, y) - weak(x, t, y))

    seen, found = [], drawer.draw(6, 3, y)
    assert found.shape == (6, 1, 28, 28) and drawer.draw(6, 3, y, seen.append).equal(found)
    assert not drawer.draw(6, 4, y).isclose(found).all()
    assert y is None or not drawer.draw(6, 3, y.flip(0)).isclose(found).all()
    if options:
        assert_close(found, replace(plain, model=led).draw(6, 3, y), rtol=1e-3, atol=1e-3)
        assert (plain.draw(6, 3, y) - found).abs().max() > 0.01
        same = guided(plain.model, options["guidance"], options.get("interval"), weak if "guide" in options else None)
        assert replace(plain, model=same).draw(6, 3, y).equal(found)
    steps = [] if name == "vae" else respace(Schedule(cosine_beta(8)), num_steps)[0].flip(0).tolist()
    assert [step.t for step in seen] == steps
    if CARDS[name]["autoencoder"]:
        decoder = load_pretrained(folder / CARDS[name]["autoencoder"])
        assert found.equal(decoder.from_latent(seen[-1].x_prev.float()))
        assert drawer.decode(seen[0].xt).shape == found.shape


@pytest.mark.parametrize("num_steps", [None, 8, 3])
def test_eta_1_is_ddpm_in_any_number_of_steps_and_left_out_it_is_0_where_steps_are_left_out(folder, num_steps):
    found = {eta: load_drawer(folder / "unet", num_steps, eta=eta).draw(6, 3) for eta in (None, 0.0, 0.5, 1.0)}
    drawer, generator = load_drawer(folder / "unet", num_steps), seeded(3)
    x = torch.randn((6, 1, 28, 28), generator=generator)
    ddpm = sample_ddpm(drawer.model, x.double(), drawer.process.schedule, generator, num_steps).float()
    assert_close(found[1.0], ddpm, rtol=1e-3, atol=1e-3)
    assert found[None].equal(found[0.0] if num_steps == 3 else ddpm)
    assert all((found[eta] - found[0.0]).abs().max() > 0.01 for eta in (0.5, 1.0))


@pytest.mark.parametrize("num_steps", [None, 3])
def test_an_interval_of_all_steps_is_none_and_one_of_no_step_that_is_taken_is_no_guidance(folder, num_steps):
    """Of the 8 steps three are 0, 4 and 7."""

    def images(w, interval=None):
        return load_drawer(folder / "patch_unet", num_steps, w, interval=interval).draw(6, 3, SIX)

    everywhere, nowhere = images(3.0), images(1.0)
    assert images(3.0, (0, 7)).equal(everywhere) and images(None).equal(nowhere)
    assert (everywhere - nowhere).abs().max() > 0.05
    assert not num_steps or (images(3.0, (1, 3)).equal(nowhere) and images(3.0, (5, 6)).equal(nowhere))
    for interval in ((1, 4), (4, 4), (7, 7), (0, 0)):
        found = images(3.0, interval)
        assert not found.equal(nowhere) and not found.equal(everywhere)


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("classifier", {}, "'{}' (Classifier) draws nothing; name a denoiser or a VAE"),
        ("attention_autoencoder", {}, "'{}' (AttentionAutoencoder) draws nothing"),
        ("vae", {"num_steps": 3}, "steps is 3, but '{}' draws in one step; leave it out"),
        ("unet", {"num_steps": 0}, "steps is 0; expected 1 to 8, the steps that '{}' was trained with"),
        ("unet", {"num_steps": 9}, "steps is 9; expected 1 to 8"),
        ("unet", {"guidance": 2.0}, "guidance is 2, but '{}' takes no labels; leave it out"),
        ("vae", {"guidance": 2.0}, "guidance is 2, but '{}' takes no labels"),
        ("patch_unet", {"guidance": -0.5}, "guidance is -0.5; expected 0 to 100"),
        ("patch_unet", {"guidance": math.inf}, "guidance is inf; expected 0 to 100"),
        ("patch_unet", {"guidance": 101.0}, "guidance is 101; expected 0 to 100"),
        ("patch_unet", {"guidance": math.nan}, "guidance is nan; expected 0 to 100"),
        ("patch_unet", {"guide": "weaker"}, "guide is 'weaker'; give a guidance, too"),
        ("patch_unet", {"interval": (0, 3)}, "interval is (0, 3); give a guidance, too"),
        (
            "patch_unet",
            {"guidance": 2.0, "interval": (3, 2)},
            "interval is (3, 2); expected two of the steps 0 to 7,",
        ),
        ("patch_unet", {"guidance": 2.0, "interval": (-1, 2)}, "interval is (-1, 2); expected two"),
        ("patch_unet", {"guidance": 2.0, "interval": (0, 8)}, "interval is (0, 8); expected two"),
        ("transformer", {"guidance": 1}, "'{}' was never trained without labels; give a guide, a weaker network"),
    ],
)
def test_a_request_that_cannot_be_fulfilled_is_an_error_that_names_it(folder, name, options, words):
    for place in (str(folder / name), folder / name):
        with pytest.raises(ValueError, match="^" + re.escape(words.format(folder / name))):
            load_drawer(place, **options)


def test_the_autoencoder_of_a_guide_may_be_a_copy_elsewhere(folder, tmp_path):
    shutil.copytree(folder / "vae", tmp_path / "vae")
    process = short("latent_unet")
    saved("latent_unet", tmp_path / "weaker", seed=1, process=process, autoencoder=about(tmp_path, "vae"))
    assert load_drawer(folder / "latent_unet", guidance=2.0, guide=tmp_path / "weaker")


def test_a_guide_that_does_not_fit_is_an_error_that_names_both(folder, tmp_path):
    """Another chain, another latent or none, and what is no denoiser or takes no labels."""
    process, vae = short("patch_unet"), about(folder, "vae")
    for name, changes in (("T", {"T": 7}), ("beta", {"beta": "rescaled_linear_beta"})):
        saved("patch_unet", tmp_path / name, process=process | changes)
    saved("latent_unet", tmp_path / "other", process=process, autoencoder=vae | {"sha256": "0000"})
    for name, guide, what in (
        (folder / "patch_unet", tmp_path / "T", "process"),
        (folder / "patch_unet", tmp_path / "beta", "process"),
        (folder / "patch_unet", folder / "vae", "process"),
        (folder / "patch_unet", folder / "classifier", "process"),
        (folder / "latent_unet", tmp_path / "other", "autoencoder"),
        (folder / "latent_unet", folder / "patch_unet", "autoencoder"),
        (folder / "patch_unet", folder / "latent_unet", "autoencoder"),
    ):
        found, expected = (read_card(place)[what] for place in (guide, name))
        words = f"{what} of {str(guide)!r} is {found}; expected that of {str(name)!r}, {expected}"
        for kind in (str, Path):
            with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
                load_drawer(kind(name), guidance=2.0, guide=kind(guide))
    with pytest.raises(ValueError, match=r"^the guide .*unet.* takes no labels"):
        load_drawer(folder / "patch_unet", guidance=2.0, guide=folder / "unet")
    with pytest.raises(WeightsError, match="there are no weights 'nowhere'"):
        load_drawer(folder / "patch_unet", guidance=2.0, guide="nowhere")


@pytest.mark.parametrize(
    "name, changes, words",
    [
        # Folded 2 x 2 pixels look like 4 channels: the weights have the same shapes.
        ("unet", {"arguments": {"width": 8, "mults": [1], "patch": 1, "channels": 4}}, "4 channels, but got 1"),
        ("latent_unet", {"autoencoder": None}, "2 channels, but got 1"),
        ("latent_unet", {"autoencoder": "attention_autoencoder"}, "2 channels, but got 1"),
        (
            "latent_unet",
            {"autoencoder": "unet"},
            "names .*unet' as its autoencoder, but this is none; correct the card",
        ),
    ],
)
def test_a_card_whose_parts_do_not_fit_together_is_an_error_before_anything_is_drawn(tmp_path, name, changes, words):
    for other in ("vae", "unet", "attention_autoencoder"):
        saved(other, tmp_path / other)
    place = changes.get("autoencoder", "vae")
    about = place and {"name": str(tmp_path / place), "sha256": read_card(tmp_path / place)["sha256"]}
    saved(name, tmp_path / name, autoencoder=about if name == "latent_unet" else None)
    path = tmp_path / name / "weights.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {k: v for k, v in changes.items() if k == "arguments"}))
    with pytest.raises(WeightsError, match=words) as error:
        load_drawer(tmp_path / name, 1)
    assert "\n" not in str(error.value) and "correct" in str(error.value)


def test_the_published_denoiser_of_latents_is_guided_by_one_that_was_trained_for_less():
    z, t, y = torch.randn(2, 4, 7, 7, generator=seeded(1)), torch.tensor([30, 900]), torch.tensor([3, 9])
    strong, weak = (load_drawer(name).model(z, t, y) for name in ("latent_unet", "latent_unet_unit_1"))
    drawer = load_drawer("latent_unet", None, 2.0, "latent_unet_unit_1")
    assert drawer.process.max_steps == 1000 and (strong - weak).abs().max() > 0.05
    assert_close(drawer.model(z, t, y), 2 * strong - weak, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"^autoencoder of 'latent_unet_unit_5' is "):
        load_drawer("latent_unet", guidance=2.0, guide="latent_unet_unit_5")


# The autoencoder of a denoiser


def test_the_autoencoder_of_a_network_is_itself_or_the_one_with_the_cards_checksum(folder):
    vae = load_pretrained(folder / "vae")
    for name in ("vae", "latent_unet"):
        found = load_autoencoder(folder / name)
        assert same_weights(found, vae) and not any(parameter.requires_grad for parameter in found.parameters())
    assert load_autoencoder(folder / "unet") is None and load_autoencoder(folder / "classifier") is None


def test_an_autoencoder_that_has_changed_since_or_is_not_there_is_an_error_that_names_it(tmp_path):
    saved("vae", tmp_path / "vae")
    card = tiny_card("latent_unet", autoencoder=about(tmp_path, "vae"))
    there = card["autoencoder"]["sha256"]
    saved("vae", tmp_path / "vae", seed=1)
    now = json.loads((tmp_path / "vae" / "weights.json").read_text())["sha256"]
    saved("latent_unet", tmp_path / "unet", **{"autoencoder": card["autoencoder"]})
    words = rf"in the latent of '{tmp_path}/vae' with sha256 {there}, found {now}; put those weights back"
    for load in (lambda: autoencoder_of(card, "cpu"), lambda: load_drawer(tmp_path / "unet")):
        with pytest.raises(WeightsError, match=words):
            load()
    with pytest.raises(WeightsError, match="there are no weights 'nowhere'"):
        autoencoder_of(card | {"autoencoder": {"name": "nowhere", "sha256": "0"}}, "cpu")


def test_samples_that_are_not_finite_are_an_error_and_no_picture(folder):
    drawer = load_drawer(folder / "patch_unet", guidance=100.0)
    assert drawer.draw(2, 0, SIX[:2]).isfinite().all()
    broken = replace(drawer, model=lambda x, t, y: x * math.nan)
    with pytest.raises(FloatingPointError, match=r"^the samples are not finite; ask for less guidance"):
        broken.draw(2, 0, SIX[:2])
