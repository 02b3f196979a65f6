"""The claims of fmdiff_helpers.processes.flow: what is drawn and learned, and that such networks train and draw."""

import math
import re

import pytest
import torch
from small_networks import saved
from torch import nn
from torch.testing import assert_close

from fmdiff_helpers import recipes
from fmdiff_helpers.cards import WeightsError, build, build_process, read_card
from fmdiff_helpers.data import to_model
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.flow_samplers import sample_dpm, sample_euler, sample_jumps
from fmdiff_helpers.flows import flow_loss, flow_of, mean_flow_loss, shortcut_loss, straight_path
from fmdiff_helpers.processes.flow import Flow, MeanFlow, Reflow, Shortcut
from fmdiff_helpers.recipes import new_card, train_network, training_parts
from fmdiff_helpers.schedules import Schedule, cosine_beta
from fmdiff_helpers.showing import show_chain
from fmdiff_helpers.standin import draw_garments
from fmdiff_helpers.teaching import PAIR_STEPS, draw_pairs, start_from, teacher_of

CPU = torch.device("cpu")
UNET = {"channels": 2, "width": 8, "mults": [1], "patch": 1, "num_classes": 10}


def card(process: str = "Flow", **arguments) -> dict:
    """Return the beginning of the card of a tiny network in the latent of a tiny VAE."""
    found = {"name": f"flow.{process}", "T": 1000} | arguments
    network = UNET | ({"spans": True} if process in ("MeanFlow", "Shortcut") else {})
    return new_card("denoiser", "unet.UNet", network, found, {"lr": 1e-3}, autoencoder="vae")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(x, t, y=None, *r):
    """A model that depends on all that it is given."""
    return torch.sin(x + sum(time.reshape(-1, 1, 1, 1) / 1000 for time in (t, *r)))


# What is drawn


@pytest.mark.parametrize("process", [Flow, MeanFlow, Reflow, Shortcut])
def test_a_process_draws_from_the_generator_alone(process):
    flow, x0, before = process(CPU, 1000), torch.empty(50, 2, 7, 7), torch.get_rng_state()
    one, same, other = (flow.draw(x0, generator(seed)) for seed in (0, 0, 1))
    for a, b, c in zip(one, same, other, strict=True):
        assert len(a) == 50 and torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "times, shift, middle, within",
    [("uniform", 1.0, 0.5, 0.5), ("logit_normal", 1.0, 0.5, 0.7267), ("uniform", 3.0, 0.75, None)],
)
def test_times_are_spread_as_the_card_says(times, shift, middle, within):
    """The median, and the share between 1/4 and 3/4: for logit-normal times that of a normal below log 3."""
    t, eps = Flow(CPU, 1000, times, shift).draw(torch.empty(20_000, 1), generator())
    assert 0 <= t.min() and t.max() <= 1
    assert t.median().item() == pytest.approx(middle, abs=0.02)
    if within:
        assert ((t > 0.25) & (t < 0.75)).double().mean().item() == pytest.approx(within, abs=0.02)
    assert eps.mean().item() == pytest.approx(0, abs=0.04) and eps.std().item() == pytest.approx(1, abs=0.03)


def test_the_second_time_is_never_later_and_for_a_quarter_of_the_images_the_same():
    t, r, _ = MeanFlow(CPU, 1000).draw(torch.empty(10_000, 1), generator())
    assert (r <= t).all() and (r == t).double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert r[r < t].mean().item() == pytest.approx(1 / 3, abs=0.02)  # the smaller of two


@pytest.mark.parametrize("arguments", [{"times": "late"}, {"shift": 0.0}])
def test_times_that_there_are_not_are_refused(arguments):
    with pytest.raises(WeightsError, match=f"{next(iter(arguments))} is "):
        build_process(card(**arguments))


# What is learned


def test_the_loss_is_that_of_the_velocity_for_a_network_that_is_told_t_in_steps():
    x0, (t, eps) = torch.randn((6, 2, 3, 3)), Flow(CPU, 1000).draw(torch.empty(6, 2, 3, 3), generator())
    expected = flow_loss(lambda x, t, y: model(x, 1000 * t, y), x0, None, t, eps)
    assert_close(Flow(CPU, 1000).loss(model, x0, None, t, eps), expected)
    assert_close(Flow(CPU, 1000).training_loss(10)(model, x0, None, t, eps), expected)
    xt = straight_path(x0, t, eps)
    assert_close(expected, (torch.sin(xt + t.reshape(-1, 1, 1, 1)) - (eps - x0)).square().mean(dim=(1, 2, 3)))


def test_reflow_learns_from_pairs_and_mean_flow_is_told_both_times_in_steps():
    x0, eps, t = torch.randn((6, 2, 3, 3)), torch.randn((6, 2, 3, 3)), torch.rand(6)
    expected = Flow(CPU, 1000).loss(model, x0, None, t, eps)
    assert_close(Reflow(CPU, 1000).loss(model, torch.cat([x0, eps], dim=1), None, t), expected)
    expected = mean_flow_loss(lambda x, t, y, r: model(x, 1000 * t, y, 1000 * r), x0, None, t, t / 3, eps)
    assert_close(MeanFlow(CPU, 1000).loss(model, x0, None, t, t / 3, eps), expected)
    expected = shortcut_loss(lambda x, t, y, r: model(x, 1000 * t, y, 1000 * r), x0, None, t, t / 3, eps)
    assert_close(Shortcut(CPU, 1000).loss(model, x0, None, t, t / 3, eps), expected)


def test_with_a_schedule_the_network_predicts_v_at_its_steps():
    x, t, r, y = torch.randn((4, 2, 3, 3)), torch.tensor([0.9, 0.5, 0.3, 0.1]), torch.rand(4) / 10, torch.arange(4)
    schedule = Schedule(cosine_beta(1000))
    flow = build_process(card(beta="cosine_beta"))
    assert_close(flow.at_times(model)(x, t, y, r), flow_of(model, schedule)(x, t, y, r))
    with pytest.raises(WeightsError, match="beta is 'none'"):
        build_process(card(beta="none"))


def test_mean_flow_learns_the_velocity_of_its_teacher_led_away_from_its_guide(tmp_path, autoencoder):
    v = {"name": "diffusion.Diffusion", "beta": "cosine_beta", "T": 1000, "target": "v"}
    networks = [
        saved("latent_unet", tmp_path / name, seed, autoencoder=autoencoder, process=v)
        for seed, name in enumerate(("teacher", "guide"))
    ]
    led = {"teacher": str(tmp_path / "teacher"), "guide": str(tmp_path / "guide"), "guidance": 2.0}
    process = build_process(card("MeanFlow", beta="cosine_beta", **led))
    velocity = teacher_of(process)
    x, t, y = torch.randn((3, 2, 7, 7)), torch.tensor([0.9, 0.5, 0.1]), torch.arange(3)
    strong, weak = (flow_of(network, process.schedule)(x, t, y) for network in networks)
    assert_close(velocity(x, t, y), weak + 2 * (strong - weak))
    images, labels = draw_garments(2050, seed=0)
    found = card("MeanFlow", beta="cosine_beta", **led) | {"autoencoder": autoencoder, "recipe": {"steps": 4}}
    loss = training_parts(found, images, labels, CPU).loss
    eps, told = torch.randn_like(x), lambda x, t, y, r: model(x, t, y, r)
    expected = mean_flow_loss(process.at_times(told), x, y, t, t / 2, eps, teacher=velocity)
    assert_close(loss(told, x, y, t, t / 2, eps), expected)


@pytest.mark.parametrize("process", [Flow, MeanFlow, Reflow, Shortcut])
def test_validation_is_the_same_each_time_and_its_bins_are_ranges_of_the_time(process):
    """A network whose error is larger at late times has larger errors in later bins."""
    x0 = torch.randn((200, 2, 3, 3), generator=generator())
    worse = lambda x, t, y=None, *r: 5 * (t / 1000).reshape(-1, 1, 1, 1).expand(len(x), 2 - (x.shape[1] == 1), 3, 3)  # noqa: E731
    data = torch.cat([x0, x0.flip(0)], dim=1) if process is Reflow else x0
    one, same = (process(CPU, 1000).validate(worse, data, None) for _ in range(2))
    assert one == same and len(one["bins"]) == 10 and one["bins"][9] > 5 * one["bins"][0]
    assert one["loss"] == pytest.approx(sum(one["bins"]) / 10, rel=1e-5)


# Networks with two times


def test_a_network_starts_as_its_teacher_whatever_the_second_time_is(tmp_path, autoencoder):
    torch.manual_seed(0)
    network = build(card("MeanFlow"))
    teacher = saved("latent_unet", tmp_path / "teacher", autoencoder=autoencoder, process=card()["process"])
    start_from(network, str(tmp_path / "teacher"))
    x, t, y = torch.randn((3, 2, 7, 7)), torch.tensor([900.0, 500.0, 100.0]), torch.arange(3)
    for r in (None, t, t / 2):
        assert_close(network(x, t, y, r), teacher(x, t, y))
    nn.init.normal_(network.span.mlp[2].weight)
    assert not torch.allclose(network(x, t, y, t / 2), network(x, t, y, t))
    assert_close(network(x, t, y), network(x, t, y, t))


def test_a_teacher_that_does_not_fit_is_refused(tmp_path):
    saved("patch_unet", tmp_path / "teacher")
    with pytest.raises(WeightsError, match="does not fit the network that should start from it"):
        start_from(build(card("MeanFlow")), str(tmp_path / "teacher"))


@pytest.mark.parametrize("lost, said", [("flow", "whose weights cannot be read: there are no"), ("vae", "")])
def test_a_network_without_its_teacher_or_in_another_latent_is_not_trained(
    monkeypatch, tmp_path, teacher, autoencoder, lost, said
):
    monkeypatch.setitem(recipes.CARDS, "tiny", card("Shortcut", teacher=teacher))
    monkeypatch.setitem(recipes.STEPS, "tiny", (2, 4))
    monkeypatch.setattr(recipes, "NUM_VALIDATION", 20)
    monkeypatch.setattr(recipes, "load_fashion_mnist", lambda split: draw_garments(100))
    monkeypatch.setattr(recipes, "latent_shape", lambda card: (2, 7, 7))
    if lost == "vae":
        saved("vae", tmp_path / "vae", seed=1)
        said = f"whose autoencoder is {re.escape(str(autoencoder))}"
    else:
        (tmp_path / "flow" / "weights.safetensors").unlink()
    with pytest.raises(WeightsError, match=f"^tiny learns from '{re.escape(teacher)}', {said}"):
        train_network("tiny", tmp_path / "out", autoencoder=str(tmp_path / "vae"), batch_size=20)
    assert not (tmp_path / "out").exists()


# From training to drawing


@pytest.fixture
def autoencoder(tmp_path):
    """Write a tiny VAE and return the entry of a card that names it."""
    saved("vae", tmp_path / "vae")
    return {"name": str(tmp_path / "vae"), "sha256": read_card(tmp_path / "vae")["sha256"]}


@pytest.fixture
def teacher(tmp_path, autoencoder):
    """Write a tiny flow and return its folder."""
    saved("latent_unet", tmp_path / "flow", autoencoder=autoencoder, process=card()["process"])
    return str(tmp_path / "flow")


def test_pairs_are_what_the_teacher_makes_of_noise_the_same_for_the_same_seed(monkeypatch, teacher, autoencoder):
    monkeypatch.setattr(recipes, "NUM_VALIDATION", 10)
    found = card("Reflow", teacher=teacher) | {"autoencoder": autoencoder}
    data = draw_garments(40, seed=0)
    one, same, other = (
        training_parts(found | {"recipe": {"steps": 4, "seed": seed}}, *data, CPU).data for seed in (4, 4, 5)
    )
    assert one[0].shape == (30, 4, 7, 7) and torch.equal(one[0], same[0]) and not torch.equal(one[0], other[0])
    x0, eps = one[0].chunk(2, dim=1)
    assert torch.equal(eps, torch.randn((len(data[0]), 2, 7, 7), generator=generator(4))[:30])
    velocity = teacher_of(build_process(found))
    assert torch.equal(one[1], data[1][:30])
    assert_close(x0, sample_dpm(velocity, eps, PAIR_STEPS, one[1], clip=math.inf), rtol=1e-4, atol=1e-5)


def test_a_flow_whose_ways_are_straight_stays_itself_when_it_is_reflowed():
    """It takes each noise e to 3 + e / 2. On its own pairs it has no loss, but on pairs at random it has."""

    def straight(x, t, y=None):
        t = t.reshape(-1, 1, 1, 1)
        e = (x - 3 * (1 - t)) / (t + (1 - t) / 2)  # the noise whose way passes x at t
        return e - (3 + e / 2)

    eps = torch.randn((40, 1, 2, 2), generator=generator(), dtype=torch.float64)
    pairs = draw_pairs(straight, eps, None)
    x0, noise = pairs.chunk(2, dim=1)
    assert torch.equal(noise, eps)
    assert_close(x0, 3 + eps / 2, rtol=1e-9, atol=1e-9)
    flow = Reflow(CPU, 1)
    t = flow.draw(pairs, generator(1))[0].double()
    assert flow.loss(straight, pairs, None, t).max() < 1e-15
    assert flow.loss(straight, torch.cat([x0.roll(1, 0), eps], dim=1), None, t).min() > 1e-3


@pytest.mark.parametrize("process", ["Flow", "Reflow", "MeanFlow", "Shortcut"])
def test_a_network_is_trained_and_draws(monkeypatch, tmp_path, teacher, autoencoder, process):
    found = card(process, **({} if process == "Flow" else {"teacher": teacher}))
    data = draw_garments(100, seed=0)
    monkeypatch.setattr(recipes, "NUM_VALIDATION", 20)
    monkeypatch.setitem(recipes.CARDS, "tiny", found)
    monkeypatch.setitem(recipes.STEPS, "tiny", (2, 4))
    monkeypatch.setattr(recipes, "load_fashion_mnist", lambda split: data)
    monkeypatch.setattr(recipes, "latent_shape", lambda card: (2, 7, 7))
    model, history = train_network(
        "tiny", tmp_path / "out", autoencoder=autoencoder["name"], steps=4, every=2, batch_size=20
    )
    assert [point["step"] for point in history if "validation" in point] == [2, 4]
    drawer = load_drawer(tmp_path / "out", 3)
    images = drawer.draw(4, 0, drawer.all_kinds(4))
    assert images.shape == (4, 1, 28, 28) and torch.equal(images, drawer.draw(4, 0, drawer.all_kinds(4)))
    x = torch.randn((4, 2, 7, 7), generator=generator())
    sample = sample_jumps if process in ("MeanFlow", "Shortcut") else sample_euler
    expected = drawer.decode(sample(drawer.process.at_times(model.eval()), x, 3, torch.arange(4), clip=math.inf))
    assert_close(images, expected.detach(), rtol=1e-4, atol=1e-5)


def test_the_images_of_a_flow_are_encoded_once_as_for_any_network_in_a_latent(autoencoder):
    images, labels = draw_garments(2050, seed=0)
    parts = training_parts(card() | {"autoencoder": autoencoder, "recipe": {"steps": 4}}, images, labels, CPU)
    vae = recipes.autoencoder_of({"autoencoder": autoencoder}, "cpu")
    assert_close(parts.data[0][:5], vae.to_latent(to_model(images[:5])), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["shortcut_unet", "reflow_unet"])
def test_a_flow_has_no_noise_on_the_way_and_no_chain_of_ddim_to_show(name, tmp_path):
    with pytest.raises(ValueError, match=f"eta is 0.5, but '{name}' adds no noise on the way; leave it out"):
        load_drawer(name, 2, eta=0.5)
    for what in ("path", "loop"):
        with pytest.raises(ValueError, match=f"'{name}' learned by .*, and DDIM has no {what} for it"):
            show_chain(what, name, tmp_path / "x.gif", None, 0, 5)
    assert not list(tmp_path.iterdir())
