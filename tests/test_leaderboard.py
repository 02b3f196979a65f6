"""The claims of fmdiff_helpers.leaderboard: rows that can be drawn, measures over the seeds, time well counted."""

import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fmdiff_helpers import leaderboard
from fmdiff_helpers.cards import PUBLISHED, build_process, read_card, takes_labels
from fmdiff_helpers.data import to_uint8
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.leaderboard import ROWS, clock, measure_drawer, measure_row, read_leaderboard
from fmdiff_helpers.metrics import Judge
from fmdiff_helpers.models.classifier import Classifier
from fmdiff_helpers.recipes import CARDS
from fmdiff_helpers.standin import draw_garments

DRAW = {name for name, card in CARDS.items() if build_process(card).max_steps}


class Noisy:
    """A drawer of garments with noise on them and, if it takes labels, something of the label."""

    process = SimpleNamespace(device=torch.device("cpu"))

    def __init__(self, takes_labels: bool):
        self.takes_labels = takes_labels

    def all_kinds(self, n: int) -> torch.Tensor | None:
        return torch.arange(n) % 10 if self.takes_labels else None

    def draw(self, n: int, seed: int, y: torch.Tensor | None) -> torch.Tensor:
        noise = torch.randn(n, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
        garments = draw_garments(n, seed=seed)[0] / 127.5 - 1
        return garments + 0.3 * noise + (0 if y is None else 0.1 * y.reshape(-1, 1, 1, 1))


# The judge


@pytest.mark.parametrize("split, number, known", [("test", 250, 300), ("validation", 60, 240)])
def test_the_judge_compares_with_a_split_and_never_knows_its_images(monkeypatch, split, number, known):
    """The validation images are the end of the training split: floor, limit and copying are measured without them."""
    drawn = {"train": draw_garments(300, seed=0), "test": draw_garments(250, seed=1)}
    drawn["validation"] = [part[-60:] for part in drawn["train"]]
    monkeypatch.setattr(leaderboard, "load_fashion_mnist", lambda split, device="cpu": drawn[split])
    judge = leaderboard.load_judge(split=split)
    assert torch.equal(judge.test_images, drawn[split][0]) and len(judge.test_images) == number
    assert torch.equal(judge.train_images, drawn["train"][0][:known])
    assert torch.equal(leaderboard.kinds_of(judge), drawn["train"][1][:known])
    assert split == "validation" or torch.equal(leaderboard.load_judge().test_images, judge.test_images)


@pytest.mark.parametrize("split", ["train", "Test", "", None])
def test_a_judge_of_no_such_split_is_refused(split):
    with pytest.raises(ValueError, match=f"split is {split!r}; expected 'validation', to choose, or 'test', to report"):
        leaderboard.load_judge(split=split)


@pytest.mark.parametrize(
    "counts, expected",
    [([3] * 10, True), ([3, 4] * 5, True), ([3] * 9 + [5], False), ([3] * 9 + [0], False), ([30], False)],
)
def test_kinds_are_equal_where_none_has_two_more_than_another(counts, expected):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    assert leaderboard.has_equal_kinds(labels) is expected
    assert leaderboard.has_equal_kinds(None) is False


# Measures of a drawer


@pytest.mark.parametrize("seeds", [(3, 5, 8), (4,)])
@pytest.mark.parametrize("labelled", [False, True])
def test_measures_are_mean_and_spread_over_the_seeds_of_what_the_judge_says_of_the_images(labelled, seeds):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = Classifier(width=4).eval()
    judge = Judge(classifier, draw_garments(300, seed=0)[0], draw_garments(250, seed=1)[0])
    drawer = Noisy(labelled)
    y = drawer.all_kinds(200)
    each = [judge.measure(to_uint8(drawer.draw(200, seed, y)), y) for seed in seeds]
    found = measure_drawer(judge, drawer, 200, seeds)
    assert list(found) == [*each[0], "evaluations", "seconds"] and ("label_accuracy" in found) is labelled
    for name in each[0]:
        values = [measures[name] for measures in each]
        mean = sum(values) / len(seeds)
        spread = (sum((value - mean) ** 2 for value in values) / max(1, len(seeds) - 1)) ** 0.5
        assert found[name] == pytest.approx((mean, spread), rel=1e-6, abs=1e-9)
    assert (found["fd"][1] > 0) is (len(seeds) > 1) and found["seconds"][0] > 0


def test_seconds_are_those_of_drawing_alone_and_for_1000_images(monkeypatch):
    """Here 2, 3 and 7 of them for 250 images, 100 to judge them each time, and 1,000 for the first images."""
    took, drawn, devices = {0: 2, 1: 3, 2: 7}, [], set()
    time = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(leaderboard, "clock", lambda device: devices.add(device) or time.now)

    def draw(n: int, seed: int, y: torch.Tensor) -> torch.Tensor:
        assert n == len(y) == (250 if drawn else 10)
        time.now += took[seed] if drawn else 1000
        drawn.append(seed)
        return torch.zeros(n, 1, 28, 28)

    def measure(images, labels):
        assert images.dtype == torch.uint8 and (images == 128).all() and len(labels) == 250
        time.now += 100
        return {"fd": 1.0}

    process = SimpleNamespace(device="elsewhere")
    drawer = SimpleNamespace(process=process, draw=draw, all_kinds=lambda n: torch.arange(n) % 10)
    found = measure_drawer(SimpleNamespace(measure=measure), drawer, 250, (0, 1, 2))
    seconds = pytest.approx((4 * 4, 4 * 7**0.5))
    assert found == {"fd": (1.0, 0.0), "evaluations": (0.0, 0.0), "seconds": seconds}
    assert devices == {"elsewhere"} and drawn == [0, 0, 1, 2]


@pytest.mark.parametrize(
    "name, options, expected",
    [
        ("unet", {"num_steps": 3}, 3),
        ("vae", {}, 0),
        ("latent_unet", {"num_steps": 2, "guidance": 2.0, "guide": "latent_unet_unit_1"}, 4),
        ("patch_unet", {"num_steps": 3, "guidance": 2.0}, 6),
        ("patch_unet", {"num_steps": 3, "guidance": 2.0, "interval": (60, 139)}, 4),  # of the steps 0, 100 and 199
    ],
)
def test_evaluations_are_those_of_denoisers_for_one_image(name, options, expected):
    drawer = load_drawer(name, **options)
    assert leaderboard.count_evaluations(drawer, 20) == leaderboard.count_evaluations(drawer) == expected


@pytest.mark.parametrize("index", ["", ":0"])
def test_time_is_that_of_the_processor_or_of_waiting_for_an_accelerator(monkeypatch, index):
    waited = []
    monkeypatch.setattr(leaderboard, "time", SimpleNamespace(process_time=lambda: 1.5, monotonic=lambda: 2.5))
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    assert clock("cpu" + index) == clock(torch.device("cpu" + index)) == 1.5 and not waited
    for device in ("cuda" + index, torch.device("mps" + index)):
        assert clock(device) == 2.5 and waited.pop() == device


@pytest.mark.parametrize("row", ["latent_unet, led away", "vae"])
def test_a_row_has_its_options_and_the_measures_of_its_drawer(row):
    """Here the only measure is the mean of the images; `fmdiff evaluate all` is tested with a real judge."""
    shown, before = [], json.dumps(ROWS)

    def measure(images, labels):
        shown.append((images, labels))
        return {"mean": images.double().mean().item()}

    options = ROWS[row] | ({"num_steps": 2} if "num_steps" in ROWS[row] else {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ROWS, row, options)
        found = measure_row(SimpleNamespace(measure=measure), row, 12, range(3, 5))
    assert json.dumps(ROWS) == before
    drawer = load_drawer(**options)
    y = drawer.all_kinds(12)
    for seed, (images, labels) in zip((3, 4), shown, strict=True):
        assert images.equal(to_uint8(drawer.draw(12, seed, y)))
        assert labels is None if y is None else labels.tolist() == [*range(10), 0, 1]
    values = torch.stack([images.double().mean() for images, _ in shown])
    measures = found.pop("measures")
    assert found == options and measures["mean"] == pytest.approx((values.mean().item(), values.std().item()))


def test_a_row_is_drawn_on_the_device_that_is_said(monkeypatch):
    said = []
    monkeypatch.setattr(leaderboard, "load_drawer", lambda *args, device, **options: said.append(device))
    monkeypatch.setattr(leaderboard, "measure_drawer", lambda *args: {})
    measure_row(None, "vae", 10, (0,), "elsewhere")
    assert said == ["elsewhere"]


# The rows


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_of_published_networks_and_can_be_drawn(row):
    """A network that cannot be guided so, or whose autoencoder is another, is refused here."""
    options = inspect.signature(load_drawer).bind(**ROWS[row]).arguments
    assert row.startswith(options["name"]) and "device" not in options
    for name in (options["name"], options.get("guide", options["name"])):
        assert (PUBLISHED / f"{name}.safetensors").is_file()
    drawer = load_drawer(**ROWS[row])
    assert ("num_steps" in options) is (drawer.process.max_steps > 1)


def test_every_network_that_draws_has_a_row():
    """Except for those that are one of them trained otherwise."""
    assert DRAW == {"transformer", "unet", "latent_unet", "shortcut_unet", "patch_unet", "vector_denoiser", "vae"}
    assert {options["name"] for options in ROWS.values()} == DRAW | {"reflow_unet"}  # trained by a benchmark


def test_no_two_rows_are_the_same_and_json_keeps_them_as_they_are():
    assert len({json.dumps(options, sort_keys=True) for options in ROWS.values()}) == len(ROWS)
    assert json.loads(json.dumps(ROWS)) == ROWS


# What is stored


def test_the_stored_leaderboard_is_read_as_it_was_written_beside_the_weights(tmp_path, monkeypatch):
    assert leaderboard.STORED == Path(__file__).parents[1] / "data" / "leaderboard.json"
    board = {"n": 10_000, "rows": {"vae, ½": {"name": "vae", "measures": {"fd": [1.5, 0.25]}}}}
    path = tmp_path / "leaderboard.json"
    path.write_text(json.dumps(board, ensure_ascii=False), encoding="utf-8")
    monkeypatch.setattr(leaderboard, "STORED", path)
    assert read_leaderboard() == board


def test_the_stored_leaderboard_has_every_row_as_it_is_now_with_spreads_of_three_seeds():
    stored = read_leaderboard()
    assert list(stored) == ["board", "kinds", "steps"]
    board = stored["board"]
    assert (board["n"], board["seeds"], board["device"], board["data"]) == (1000, 3, "cpu", "Fashion-MNIST")
    assert (board["split"], board["first_seed"]) == ("test", 3) and stored["steps"]["split"] == "validation"
    assert {row: {k: v for k, v in found.items() if k != "measures"} for row, found in board["rows"].items()} == ROWS
    for row, found in board["rows"].items():
        judged = {"fd", "kd", "precision", "recall", "density", "coverage"}
        expected = {"copying", "evaluations", "seconds"} | judged | {f"label_free_{measure}" for measure in judged}
        expected |= {"label_accuracy"} if takes_labels(read_card(ROWS[row]["name"])) else set()
        assert found["measures"].keys() == expected
        without = {"copying", "evaluations"}  # may be the same for all seeds
        assert all(spread > 0 for name, (_, spread) in found["measures"].items() if name not in without)


def test_the_stored_steps_are_those_of_networks_of_the_board_with_floors_of_the_same_images():
    steps = read_leaderboard()["steps"]
    names = {setting.split(": ")[0] for setting in steps["settings"]}
    assert names <= ROWS.keys() and steps["n"] == 1000 and steps["floor, equal kinds"].keys() == steps["floor"].keys()
    for setting, found in steps["settings"].items():
        options = ROWS[setting.split(": ")[0]]
        steps_taken, (asked, spread) = int(setting.split(": ")[1]), found["evaluations"]
        assert spread == 0 and found["seconds"][0] > 0
        if "interval" in options:
            assert steps_taken < asked < 2 * steps_taken
        else:
            assert asked == steps_taken * (2 if "guidance" in options else 1)


@pytest.mark.parametrize("row", ["transformer", "unet, all steps", "vae", "latent_unet", "vector_denoiser"])
def test_the_stored_leaderboard_agrees_with_what_the_published_cards_say(row):
    """New weights need a new leaderboard."""
    card = read_card(ROWS[row]["name"])["measures"]
    assert (card["n"], card["seeds"], card.get("steps")) == (1000, 3, ROWS[row].get("num_steps"))
    found = read_leaderboard()["board"]["rows"][row]["measures"]
    for measure in card["measures"].keys() & found.keys():
        mean, spread = card["measures"][measure]
        assert abs(found[measure][0] - mean) <= 2 * max(spread, found[measure][1], 0.002), measure  # other seeds
