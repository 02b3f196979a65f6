"""The claims of fmdiff_helpers.results: pictures of the averaged weights after each validation, and nothing else.

Pictures are compared before they become figures, number by number; the files of figures byte by byte.
"""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from fmdiff_helpers import recipes, results, run, train
from fmdiff_helpers.cards import build, read_card
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.data import CLASS_NAMES
from fmdiff_helpers.diffusion import at, eps_from_x0
from fmdiff_helpers.drawing import Drawer, in_single, load_drawer
from fmdiff_helpers.export import save_figures
from fmdiff_helpers.plots import image_grid, loss_curves
from fmdiff_helpers.processes.diffusion import Diffusion
from fmdiff_helpers.recipes import cosine, new_card
from fmdiff_helpers.results import Results
from fmdiff_helpers.schedules import Schedule, cosine_beta
from fmdiff_helpers.standin import draw_garments

CHAIN = Schedule(cosine_beta(20))
CARD = new_card(
    "denoiser",
    "patch_unet.PatchUNet",
    {"width": 8, "mults": [1], "num_classes": 10},
    cosine(20, "eps"),
    {"steps": 8, "every": 2, "batch_size": 16, "warmup": 2, "lr": 0.01},
)
UNLABELLED = CARD | {"arguments": {"num_classes": 0}}
KINDS, IN_ROWS = torch.arange(10), torch.arange(50) // 5

pytestmark = pytest.mark.usefixtures("on_the_processor")


def clean(xt, t, y):
    """The garment that the next networks see behind the noise: grey, as bright as its kind says."""
    return ((y - 5) / 10).reshape(-1, 1, 1, 1).expand_as(xt)


def labelled(xt, t, y):
    """A denoiser of the noise that depends on each pixel, the step and the label."""
    shift = (0.1 * y - 0.02 * t).reshape(-1, 1, 1, 1)
    return eps_from_x0(xt, t, torch.tanh(xt + shift), CHAIN)


def unlabelled(xt, t, y=None):
    """A denoiser of the noise that takes no labels."""
    assert y is None
    return eps_from_x0(xt, t, torch.tanh(xt - 0.02 * t.reshape(-1, 1, 1, 1)), CHAIN)


@pytest.fixture
def pictures(monkeypatch):
    """`Results.pictures` with a number of steps; it returns the arguments of image_grid instead of each figure."""

    def noted(images, columns, column_labels=(), row_labels=()):
        labels = {"column_labels": list(column_labels), "row_labels": tuple(row_labels)}
        return SimpleNamespace(images=images, columns=columns, **labels)

    monkeypatch.setattr(results, "image_grid", noted)
    return lambda model, num_steps=4, card=CARD: Results("nowhere", num_steps=num_steps).pictures(model, card)


# The two pictures


@pytest.mark.parametrize("num_steps, every", [(1, 1), (2, 1), (11, 1), (12, 2), (16, 2), (20, 3)])
@pytest.mark.parametrize("network, card", [(labelled, CARD), (unlabelled, UNLABELLED)])
def test_pictures_are_one_chain_column_by_column_and_five_samples_of_each_kind(
    pictures, network, card, num_steps, every
):
    """Of a long chain only every so-manyth step is shown. With all 20 steps the sampler is DDPM."""
    y, rows, names = (KINDS, IN_ROWS, CLASS_NAMES) if card is CARD else (None, None, ())
    drawer, steps = Drawer(Diffusion(CHAIN), in_single(network), num_steps, precise=True), []
    sample = drawer.draw(10, 0, y, watch=steps.append)
    found = pictures(network, num_steps, card)
    generation, samples = found["generation"], found["samples"]
    expected = [*(step.xt.float() for step in steps[::every]), sample]
    assert torch.equal(generation.images.unflatten(0, (10, generation.columns)), torch.stack(expected, dim=1))
    assert generation.column_labels == [*(f"t = {step.t}" for step in steps[::every]), "sample"]
    assert steps[0].t == 19 and len(steps) == num_steps
    assert torch.equal(samples.images, drawer.draw(50, 0, rows)) and len(samples.images.unique(dim=0)) == 50
    assert (samples.columns, samples.column_labels) == (5, [])
    assert samples.row_labels == generation.row_labels == names


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_each_row_shows_its_own_kind_whatever_the_network_predicts(pictures, target):
    def as_eps(xt, t, y):
        return eps_from_x0(xt, t, clean(xt, t, y), CHAIN)

    def as_v(xt, t, y):
        return (at(CHAIN.signal_scale, t, xt) * xt - clean(xt, t, y)) / at(CHAIN.noise_scale, t, xt)

    model = {"eps": as_eps, "x0": clean, "v": as_v}[target]
    found = pictures(model, 4, CARD | {"process": cosine(20, target)})
    expected = clean(torch.empty(10, 1, 28, 28), None, KINDS)
    last = found["generation"].images.unflatten(0, (10, 5))[:, -1]
    assert_close(last, expected, rtol=0, atol=1e-4)
    assert_close(found["samples"].images, expected.repeat_interleave(5, dim=0), rtol=0, atol=1e-4)


def test_a_chain_of_latents_is_shown_decoded(pictures):
    drawer, steps = load_drawer("latent_unet", 2), []
    sample = drawer.draw(10, 0, KINDS, watch=steps.append)
    found = pictures(load_pretrained("latent_unet"), 2, read_card("latent_unet"))["generation"]
    expected = torch.stack([*(drawer.decode(step.xt) for step in steps), sample], dim=1)
    assert expected.shape == (10, 3, 1, 28, 28) and torch.equal(found.images, expected.flatten(0, 1))
    assert found.column_labels == ["t = 999", "t = 0", "sample"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("num_steps", [3, 20], ids=["DDIM", "DDPM"])
def test_pictures_are_the_same_each_time_and_change_neither_network_nor_random_numbers(pictures, num_steps, training):
    model = build(CARD).train(training)
    torch.manual_seed(1)
    before, first = torch.get_rng_state(), pictures(model, num_steps)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    for name, picture in pictures(model, num_steps).items():
        assert torch.equal(picture.images, first[name].images) and not picture.images.requires_grad
    assert {module.training for module in model.modules()} == {training}
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_figures_are_saved_one_below_the_other_as_a_png_over_an_older_one_in_a_folder_that_need_not_exist(tmp_path):
    path = tmp_path / "new" / "folder" / "name.png"
    for grey in (100, 200):
        small, large = (image_grid(torch.full((n, 1, 9, 9), grey, dtype=torch.uint8), 2) for n in (2, 4))
        save_figures(path, small, large)
        with Image.open(path) as image:
            assert image.format == "PNG" and image.height > 1.5 * image.width
            found = image.convert("L")
            assert {found.getpixel((10, place)) for place in (10, found.height - 20)} == {grey}
    assert [file.name for file in path.parent.iterdir()] == ["name.png"]


# A training with results


def fit(folder: Path, report, card: dict = CARD, **changes) -> list[dict]:
    """Train a tiny denoiser on 64 drawn images, 32 more for validation, with a point at each step."""
    card = card | {"recipe": card["recipe"] | changes}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(card)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "NUM_VALIDATION", 32)
        patch.setattr(run, "REPORT_EVERY", 1)
        parts = recipes.training_parts(card, *draw_garments(96), torch.device("cpu"))
        return train.train(model, *parts, folder, card, report)


def stamps(folder: Path) -> dict[str, int]:
    """When each file below a folder was last written."""
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*.*")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, on_the_processor) -> SimpleNamespace:
    """A training of 8 steps, each with a point, validated after 2, 4, 6 and 8; weights after every second of those.

    `written` are the files that the results wrote after each step, `averages` the averaged networks.
    """
    folder = tmp_path_factory.mktemp("trained")
    write, written, averages = Results(str(folder), keep_every=2, num_steps=2), {}, {}

    def report(run):
        before = stamps(folder)
        write(run)
        written[run.step] = {name for name, stamp in stamps(folder).items() if before.get(name) != stamp}
        averages[run.step] = copy.deepcopy(run.ema.module)

    history = fit(folder, report)
    return SimpleNamespace(folder=folder, history=history, written=written, averages=averages)


def test_pictures_are_written_after_each_validation_and_nothing_between(trained):
    expected = {step: set() for step in range(1, 9)}
    for step in (2, 4, 6, 8):
        expected[step] = {"loss.png", f"step_00000{step}/generation.png", f"step_00000{step}/samples.png"}
    for step in (4, 8):
        expected[step] |= {f"step_00000{step}/weights.safetensors", f"step_00000{step}/weights.json"}
    assert trained.written == expected
    own = {".lock", ".writer", "checkpoint.pt", "weights.json", "weights.safetensors"}
    assert set(stamps(trained.folder)) == own | set().union(*expected.values())


def test_the_pictures_are_those_of_the_averaged_weights_of_that_step_and_the_loss_is_up_to_date(trained, tmp_path):
    files = {"loss.png": loss_curves(trained.history)}
    for step in (2, 8):
        drawn = Results(tmp_path, num_steps=2).pictures(trained.averages[step], CARD)
        files |= {f"step_00000{step}/{name}.png": figure for name, figure in drawn.items()}
    for name, figure in files.items():
        save_figures(tmp_path / name, figure)
        assert (tmp_path / name).read_bytes() == (trained.folder / name).read_bytes()
    early, late = ((tmp_path / f"step_00000{step}/samples.png").read_bytes() for step in (2, 8))
    assert early != late


@pytest.mark.parametrize("step", [4, 8])
def test_kept_weights_are_loaded_by_their_folder_and_are_the_averaged_ones_of_that_step(trained, step):
    folder = trained.folder / f"step_00000{step}"
    found, expected = load_pretrained(folder).state_dict(), trained.averages[step].state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    other = trained.averages[12 - step].state_dict()
    assert not any(torch.equal(found[name], other[name]) for name in ("stem.mix.weight", "label.weight"))
    card = read_card(folder)
    assert card.pop("sha256") and card.pop("device") and card.pop("seconds") >= 0
    assert [point["step"] for point in card.pop("history")] == list(range(2, step + 1, 2))
    assert card == CARD | {"recipe": run.DEFAULTS | CARD["recipe"]}


@pytest.mark.parametrize("options, keep_every", [({}, 10), ({"keep_every": 1}, 1), ({"keep_every": 4}, 4)])
def test_weights_are_kept_after_every_so_manyth_validation_of_the_whole_history(
    tmp_path, monkeypatch, options, keep_every
):
    """With every third point a validation, and each point reported by a new Results, as after a stop."""
    monkeypatch.setattr(Results, "pictures", lambda self, model, card: {})
    monkeypatch.setattr(results, "save_figures", lambda path, figure: None)
    model = build(CARD)
    points = [{"step": k, "loss": 0.5} | ({} if k % 3 else {"validation": {"loss": 0.4}}) for k in range(1, 61)]
    for step in range(1, 61):
        state = {"step": step, "history": points[:step], "card": CARD, "full_card": lambda: CARD}
        Results(tmp_path, **options)(SimpleNamespace(ema=SimpleNamespace(module=model), **state))
    found = sorted(path.parent.name for path in tmp_path.rglob("weights.safetensors"))
    assert found == [f"step_{step:06d}" for step in range(3 * keep_every, 61, 3 * keep_every)]


def test_a_training_that_continues_after_a_stop_writes_what_is_left(tmp_path, trained, monkeypatch):
    kept, places = [], []
    monkeypatch.setattr(Results, "pictures", lambda self, model, card: {"generation": None, "samples": None})
    monkeypatch.setattr(results, "save_figures", lambda path, figure: places.append(path.relative_to(tmp_path)))

    def stop(run):
        Results(tmp_path, keep_every=2)(run)
        if run.step == 5:
            raise KeyboardInterrupt

    for report in (stop, Results(tmp_path, keep_every=2)):
        fit(tmp_path, report)
        kept.append(sorted(path.parent.name for path in tmp_path.glob("*/weights.safetensors")))
    assert kept == [["step_000004"], ["step_000004", "step_000008"]]
    for step in (4, 8):
        name = f"step_00000{step}/weights.safetensors"
        assert (tmp_path / name).read_bytes() == (trained.folder / name).read_bytes()
    drawn = [name for step in (2, 4, 6, 8) for name in trained.written[step] if name.endswith(".png")]
    assert sorted(path.as_posix() for path in places) == sorted(drawn)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_training_with_results_ends_in_the_weights_of_one_without(tmp_path, monkeypatch, dropout):
    """Dropout draws from the global random numbers, which a checkpoint keeps: pictures must not use them up."""
    monkeypatch.setattr(results, "save_figures", lambda path, figure: None)
    monkeypatch.setattr(results, "image_grid", lambda *images, **labels: None)
    card = CARD | {"arguments": CARD["arguments"] | {"dropout": dropout}}
    for name, report in (("with", Results(tmp_path / "with", num_steps=1)), ("without", lambda run: None)):
        torch.manual_seed(3)
        fit(tmp_path / name, report, card, steps=4)
    one, other = (load_pretrained(tmp_path / name).state_dict() for name in ("with", "without"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_denoiser_is_trained_by_its_name_with_results(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "NUM_VALIDATION", 32)
    monkeypatch.setattr(recipes, "load_fashion_mnist", lambda split: draw_garments(64))
    small = {"arguments": {"width": 8, "mults": [1], "patch": 2, "depth": 1, "num_classes": 0}}
    monkeypatch.setitem(recipes.CARDS, "unet", recipes.CARDS["unet"] | small)
    report = Results(tmp_path, keep_every=1, num_steps=1)
    recipes.train_network("unet", tmp_path, report=report, steps=1, every=1, batch_size=16)
    names = sorted(path.name for path in (tmp_path / "step_000001").iterdir())
    assert names == ["generation.png", "samples.png", "weights.json", "weights.safetensors"]
