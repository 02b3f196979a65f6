"""The claims of fmdiff_helpers.leaderboard: rows that can be drawn, measures over the seeds, time well counted."""

import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fmdiff_helpers import leaderboard
from fmdiff_helpers.checkpoints import PUBLISHED, build, read_card, save_weights
from fmdiff_helpers.data import to_uint8
from fmdiff_helpers.leaderboard import ROWS, clock, labels_for, measure_row, measure_sampler, read_leaderboard
from fmdiff_helpers.metrics import Judge
from fmdiff_helpers.models.classifier import Classifier
from fmdiff_helpers.recipes import CARDS, load_sampler
from fmdiff_helpers.standin import draw_garments

CHAIN = {"schedule": {"beta": "cosine_beta", "T": 8}}
DRAW = [name for name, card in CARDS.items() if card.keys() & {"schedule", "beta"}]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def judge() -> Judge:
    """One that knows drawn garments by an untrained network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = Classifier(width=4).eval()
    return Judge(classifier, draw_garments(300, seed=0)[0], draw_garments(250, seed=1)[0])


@pytest.fixture
def ticking(monkeypatch) -> SimpleNamespace:
    """A clock that only goes on where it is told to."""
    time = SimpleNamespace(now=1000.0, asked=[])

    def read(device):
        time.asked.append(device)
        return time.now

    monkeypatch.setattr(leaderboard, "clock", read)
    return time


# A sampler's measures


def draw_some(n: int, seed: int, y=None) -> torch.Tensor:
    """Draw garments, some noise on them, and something of the label where there is one."""
    noise = torch.randn(n, 1, 28, 28, generator=seeded(seed))
    garments = draw_garments(n, seed=seed)[0] / 127.5 - 1
    return garments + 0.3 * noise + (0 if y is None else 0.1 * y.reshape(-1, 1, 1, 1))


@pytest.mark.parametrize("y", [None, torch.arange(200) % 10], ids=["no labels", "labels"])
def test_measures_are_mean_and_spread_over_the_seeds_of_what_the_judge_says_of_the_images(judge, y):
    each = [judge.measure(to_uint8(draw_some(200, seed, y)), y) for seed in (3, 5, 8)]
    found = measure_sampler(judge, draw_some, 200, (3, 5, 8), y)
    assert list(found) == [*each[0], "seconds"] and ("label_accuracy" in found) is (y is not None)
    for name in each[0]:
        values = [measures[name] for measures in each]
        mean = sum(values) / 3
        spread = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
        assert found[name] == pytest.approx((mean, spread), rel=1e-6, abs=1e-9)
    assert found["fd"][1] > 0 and found["seconds"][0] > 0


def test_a_single_seed_has_no_spread(judge):
    expected = judge.measure(to_uint8(draw_some(200, 4)))
    found = measure_sampler(judge, draw_some, 200, range(4, 5))
    found.pop("seconds")
    assert found == {name: pytest.approx((value, 0), rel=1e-6, abs=1e-9) for name, value in expected.items()}


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_seconds_are_those_of_drawing_alone_and_for_1000_images(judge, ticking, device):
    """Here 2, 3 and 7 of them for 250 images, 100 for each time they are judged, and 1,000 for the first images."""
    took, drawn = {0: 2, 1: 3, 2: 7}, []

    def draw(n: int, seed: int, y) -> torch.Tensor:
        assert n == (250 if drawn else 10) and y is None
        ticking.now += took[seed] if drawn else 1000
        drawn.append(seed)
        return torch.zeros(n, 1, 28, 28)

    def measure(images, labels):
        assert images.dtype == torch.uint8 and (images == 128).all()
        ticking.now += 100
        return {"fd": 1.0}

    found = measure_sampler(SimpleNamespace(measure=measure), draw, 250, (0, 1, 2), device=device)
    assert found == {"fd": (1.0, 0.0), "seconds": pytest.approx((4 * 4, 4 * 7**0.5))}
    assert set(ticking.asked) == {device} and drawn == [0, 0, 1, 2]


@pytest.mark.parametrize("index", ["", ":0"])
def test_time_is_that_of_the_processor_or_of_waiting_for_an_accelerator(monkeypatch, index):
    waited = []
    monkeypatch.setattr(leaderboard, "time", SimpleNamespace(process_time=lambda: 1.5, monotonic=lambda: 2.5))
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    assert clock("cpu" + index) == clock(torch.device("cpu" + index)) == 1.5
    for kind in ("cuda", "mps"):
        assert clock(kind + index) == clock(torch.device(kind + index)) == 2.5
        assert waited.pop() == torch.device(kind + index) and waited.pop() == kind + index and not waited


# A row's measures


@pytest.fixture
def rows(tmp_path, monkeypatch) -> dict[str, dict]:
    """Rows, in the place of the real ones, of tiny networks: random as if they were trained, of 8 steps if any."""
    autoencoder = {"network": "vae.VAE", "arguments": {"width": 4, "channels": 2}, "beta": 0.01}
    unet = {"network": "unet.UNet", "arguments": {"width": 8, "mults": [1], "num_classes": 0}} | CHAIN
    labelled = {"network": "unet.UNet", "arguments": {"width": 8, "mults": [1], "num_classes": 10}} | CHAIN
    latents = unet | {"arguments": {"width": 8, "mults": [1], "patch": 1, "channels": 2, "num_classes": 10}}

    def write(name: str, card: dict) -> str:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = build(card)
            for parameter in model.parameters():
                nn.init.normal_(parameter, std=0.3)
        save_weights(tmp_path / name / "weights.safetensors", model, card)
        return str(tmp_path / name)

    vae, plain = write("vae", autoencoder), write("unet", unet)
    patches = write("patches", labelled | {"label_dropout": 0.1, "target": "v"})
    about = {"autoencoder": {"name": vae, "sha256": read_card(vae)["sha256"]}, "target": "v"}
    one, other = write("one", latents | about), write("other", latents | about | {"target": "eps"})
    rows = {
        "plain": {"name": plain, "num_steps": 2},
        "all steps": {"name": plain},
        "vae": {"name": vae},
        "led": {"name": patches, "num_steps": 2, "guidance": 2.5, "interval": [3, 7]},
        "latents": {"name": one, "num_steps": 2},
        "latents, led away": {"name": one, "num_steps": 2, "guidance": 2.0, "guide": other},
    }
    monkeypatch.setattr(leaderboard, "ROWS", rows)
    return rows


class Noting:
    """A judge that notes what it is shown, and has one measure."""

    def __init__(self):
        self.shown = []

    def measure(self, images, labels):
        self.shown.append((images, labels))
        return {"mean": images.double().mean().item()}


@pytest.mark.parametrize("row", ["plain", "all steps", "vae", "led", "latents", "latents, led away"])
def test_a_row_has_its_options_and_its_measures(rows, ticking, row):
    judge, before = Noting(), json.dumps(rows)
    found = measure_row(judge, row, 12, range(3, 5))
    y = None if row in ("plain", "all steps", "vae") else torch.tensor([*range(10), 0, 1])
    images = [to_uint8(load_sampler(**rows[row])(12, seed, y)) for seed in (3, 4)]
    for (seen, labels), expected in zip(judge.shown, images, strict=True):
        assert seen.equal(expected)
        assert labels is None if y is None else labels.equal(y)
    assert not images[0].equal(images[1])
    values = torch.stack([each.double().mean() for each in images])
    measures = {"mean": pytest.approx((values.mean().item(), values.std().item())), "seconds": (0.0, 0.0)}
    assert found == rows[row] | {"measures": measures}
    assert json.dumps(rows) == before


def test_a_real_judge_measures_a_row_too(rows, judge):
    found = measure_row(judge, "latents", 200, (0,))
    y = torch.arange(200) % 10
    expected = judge.measure(to_uint8(load_sampler(**rows["latents"])(200, 0, y)), y)
    assert {name: mean for name, (mean, _) in found["measures"].items() if name != "seconds"} == pytest.approx(expected)


def test_a_row_is_drawn_and_timed_on_the_device_that_is_said(rows, ticking, monkeypatch):
    """On that device, whatever this machine has: here only its name is passed on."""
    said = []

    def sampler(*args, device="none", **options):
        said.append(device)
        return load_sampler(*args, **options)

    monkeypatch.setattr(leaderboard, "load_sampler", sampler)
    measure_row(Noting(), "latents", 10, (0,), "elsewhere")
    assert said == ["elsewhere"] and set(ticking.asked) == {"elsewhere"}


@pytest.mark.parametrize("n", [1, 10, 23])
def test_labels_are_all_kinds_in_turn_for_a_network_that_takes_them(rows, n):
    for row in ("led", "latents"):
        assert labels_for(rows[row]["name"], n).tolist() == [k % 10 for k in range(n)]
    for row in ("plain", "vae"):
        assert labels_for(rows[row]["name"], n) is None


# The rows


def is_published(name: str) -> bool:
    return (PUBLISHED / f"{name}.safetensors").is_file()


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_of_a_published_network_with_arguments_that_its_sampler_takes(row):
    options = inspect.signature(load_sampler).bind(**ROWS[row]).arguments
    name, card = options["name"], read_card(options["name"])
    assert is_published(name) and row.startswith(name) and "device" not in options
    T = card.get("schedule", {"T": 1})["T"]
    if "beta" in card:
        assert options.keys() == {"name"}
    else:
        assert 1 <= options["num_steps"] <= T
    if "guide" in options or "interval" in options:
        assert options["guidance"] >= 0
    if "guide" in options:
        assert is_published(options["guide"])
    if "interval" in options:
        first, last = options["interval"]
        assert 0 <= first <= last < T
    assert (labels_for(name, 10) is not None) or "guidance" not in options


@pytest.mark.parametrize("row", ROWS)
def test_every_row_can_be_drawn(row):
    """A network that cannot be led so, or whose autoencoder is another, is refused here."""
    assert callable(load_sampler(**ROWS[row]))


def test_every_published_network_that_draws_has_a_row():
    """But for those that are one of them trained otherwise."""
    assert {"transformer", "unet", "latent_unet", "patch_unet", "vector_denoiser", "vae"} == set(DRAW)
    assert all(is_published(name) for name in DRAW)
    assert {options["name"] for options in ROWS.values()} >= set(DRAW)


def test_no_two_rows_are_the_same_and_json_keeps_them_as_they_are():
    assert len({json.dumps(options, sort_keys=True) for options in ROWS.values()}) == len(ROWS)
    assert json.loads(json.dumps(ROWS)) == ROWS


# What is stored


def test_the_stored_leaderboard_is_read_as_it_was_written(tmp_path, monkeypatch):
    board = {"n": 10_000, "rows": {"vae, ½": {"name": "vae", "measures": {"fd": [1.5, 0.25]}}}}
    path = tmp_path / "leaderboard.json"
    path.write_text(json.dumps(board, ensure_ascii=False), encoding="utf-8")
    monkeypatch.setattr(leaderboard, "STORED", path)
    assert read_leaderboard() == board


def test_it_is_stored_beside_the_weights():
    assert leaderboard.STORED == Path(__file__).parents[1] / "data" / "leaderboard.json"


def test_the_stored_leaderboard_has_every_row_as_it_is_now_with_spreads_of_three_seeds():
    stored = read_leaderboard()
    assert list(stored) == ["board", "kinds", "steps"]
    board = stored["board"]
    assert (board["n"], board["seeds"], board["device"]) == (1000, 3, "cpu")
    assert {row: {k: v for k, v in found.items() if k != "measures"} for row, found in board["rows"].items()} == ROWS
    for row, found in board["rows"].items():
        expected = {"fd", "kd", "precision", "recall", "copying", "seconds"}
        expected |= set() if labels_for(ROWS[row]["name"], 1) is None else {"label_accuracy"}
        assert found["measures"].keys() == expected
        assert all(spread > 0 for name, (_, spread) in found["measures"].items() if name != "copying")


@pytest.mark.parametrize("row", ["transformer", "unet", "vae", "latent_unet", "vector_denoiser"])
def test_the_stored_leaderboard_agrees_with_what_the_published_cards_say(row):
    """New weights need a new leaderboard."""
    card = read_card(row)["measures"]
    assert (card["n"], card["seeds"], card.get("steps")) == (1000, 3, ROWS[row].get("num_steps"))
    found = read_leaderboard()["board"]["rows"][row]["measures"]
    for measure, (mean, spread) in card["measures"].items():
        assert abs(found[measure][0] - mean) <= 2 * max(spread, 0.002), measure
