"""The claims of fmdiff_helpers.results: pictures of the averaged weights after each validation, and nothing else.

What is drawn is compared before it becomes a figure, number by number; a figure's file is compared byte by byte.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from fmdiff_helpers import recipes, results, train
from fmdiff_helpers.checkpoints import build, load_pretrained, read_card
from fmdiff_helpers.data import CLASS_NAMES
from fmdiff_helpers.diffusion import at, eps_from_x0
from fmdiff_helpers.export import save_figures
from fmdiff_helpers.plots import image_grid, loss_curves
from fmdiff_helpers.results import Results
from fmdiff_helpers.samplers import generate
from fmdiff_helpers.schedules import Schedule, cosine_beta
from fmdiff_helpers.standin import draw_garments

CPU = torch.device("cpu")
CHAIN = Schedule(cosine_beta(20))
CARD = {
    "network": "patch_unet.PatchUNet",
    "arguments": {"width": 8, "mults": [1], "num_classes": 10},
    "schedule": {"beta": "cosine_beta", "T": 20},
    "recipe": {"steps": 8, "every": 2, "batch_size": 16, "warmup": 2, "lr": 0.01},
}
UNLABELLED = CARD | {"arguments": {"num_classes": 0}}
KINDS = torch.arange(10)
IN_ROWS = torch.arange(50) // 5

pytestmark = pytest.mark.usefixtures("on_the_processor")


def clean(xt, t, y):
    """The picture that the stub networks see behind the noise: grey, of a brightness that is their kind's."""
    return ((y - 5) / 10).reshape(-1, 1, 1, 1).expand_as(xt)


def brightness(xt, t, y):
    """A denoiser of the noise whose garments are `clean`."""
    return eps_from_x0(xt, t, clean(xt, t, y), CHAIN)


def labelled(xt, t, y):
    """A denoiser of the noise that sees each pixel, the step and the label."""
    shift = (0.1 * y - 0.02 * t).reshape(-1, 1, 1, 1)
    return eps_from_x0(xt, t, torch.tanh(xt + shift), CHAIN)


def unlabelled(xt, t, y=None):
    """A denoiser of the noise that takes no labels."""
    assert y is None
    return eps_from_x0(xt, t, torch.tanh(xt - 0.02 * t.reshape(-1, 1, 1, 1)), CHAIN)


@pytest.fixture
def drawing(monkeypatch):
    """`Results.draw` with a number of steps, which returns what it says to image_grid in place of each figure."""

    def noted(images, columns, column_labels=(), row_labels=()):
        return SimpleNamespace(
            images=images, columns=columns, column_labels=list(column_labels), row_labels=tuple(row_labels)
        )

    monkeypatch.setattr(results, "image_grid", noted)
    return lambda model, num_steps=4, card=CARD: Results("nowhere", num_steps=num_steps).draw(model, card)


# The two pictures


@pytest.mark.parametrize("num_steps", [1, 2, 7, 8])
def test_generation_shows_the_whole_of_a_short_chain_column_by_column_and_then_its_sample(drawing, num_steps):
    steps = []
    sample = generate(labelled, CHAIN, 10, 0, num_steps, KINDS, watch=steps.append)
    found = drawing(labelled, num_steps)["generation"]
    assert found.columns == num_steps + 1 == len(found.images) / 10
    columns = found.images.unflatten(0, (10, num_steps + 1)).unbind(1)
    for column, expected in zip(columns, [*(step.xt for step in steps), sample], strict=True):
        assert torch.equal(column, expected)
    assert found.column_labels == [*(f"t = {step.t}" for step in steps), "sample"]
    assert found.column_labels[0] == "t = 19" and found.row_labels == CLASS_NAMES


@pytest.mark.parametrize(
    "num_steps, shown",
    [(9, [19, 17, 14, 12, 10, 7, 5, 2, 0]), (16, range(19, 0, -1)), (20, range(19, 0, -3))],
)
def test_of_a_long_chain_every_so_manyth_step_is_shown_from_the_noise_on(drawing, num_steps, shown):
    """With all 20 steps of the schedule it is DDPM that draws."""
    steps, found = [], drawing(labelled, num_steps)["generation"]
    sample = generate(labelled, CHAIN, 10, 0, num_steps, KINDS, watch=steps.append)
    every = num_steps // 6
    columns = found.images.unflatten(0, (10, found.columns)).unbind(1)
    for column, expected in zip(columns, [*(step.xt for step in steps[::every]), sample], strict=True):
        assert torch.equal(column, expected)
    times = [int(label.removeprefix("t = ")) for label in found.column_labels[:-1]]
    assert times == [step.t for step in steps[::every]] and set(times) <= set(shown) and times[0] == 19


def test_samples_are_five_of_each_kind_from_one_seed(drawing):
    found = drawing(labelled)["samples"]
    assert torch.equal(found.images, generate(labelled, CHAIN, 50, 0, 4, IN_ROWS))
    assert (found.columns, found.column_labels, found.row_labels) == (5, [], CLASS_NAMES)
    assert len(found.images.unique(dim=0)) == 50


@pytest.mark.parametrize("target", ["eps", "x0", "v", None])
def test_each_row_shows_its_own_kind_whatever_the_network_predicts(drawing, target):
    """A card without a target is a network of the noise."""

    def as_v(xt, t, y):
        return (at(CHAIN.signal_scale, t, xt) * xt - clean(xt, t, y)) / at(CHAIN.noise_scale, t, xt)

    model = {"eps": brightness, "x0": clean, "v": as_v, None: brightness}[target]
    found = drawing(model, 4, CARD | ({"target": target} if target else {}))
    expected = clean(torch.empty(10, 1, 28, 28), None, KINDS)
    last = found["generation"].images.unflatten(0, (10, 5))[:, -1]
    assert_close(last, expected, rtol=0, atol=1e-4)
    assert_close(found["samples"].images, expected.repeat_interleave(5, dim=0), rtol=0, atol=1e-4)


def test_a_network_without_labels_gets_as_many_pictures_and_no_names_of_rows(drawing):
    found, steps = drawing(unlabelled, 3, UNLABELLED), []
    sample = generate(unlabelled, CHAIN, 10, 0, 3, watch=steps.append)
    columns = found["generation"].images.unflatten(0, (10, 4)).unbind(1)
    assert all(map(torch.equal, columns, [*(step.xt for step in steps), sample]))
    assert torch.equal(found["samples"].images, generate(unlabelled, CHAIN, 50, 0, 3))
    assert [picture.row_labels for picture in found.values()] == [(), ()]
    assert found["generation"].column_labels == [*(f"t = {step.t}" for step in steps), "sample"]


def test_a_chain_in_the_latent_is_shown_decoded(drawing):
    model, card = load_pretrained("latent_unet"), read_card("latent_unet")
    denoiser, schedule = recipes.as_denoiser(card, model, CPU)
    vae, steps = recipes.load_autoencoder(card), []
    sample = generate(denoiser, schedule, 10, 0, 2, KINDS, steps.append, vae)
    found = drawing(model, 2, card)["generation"]
    assert found.column_labels == ["t = 999", "t = 0", "sample"] and found.row_labels == CLASS_NAMES
    columns = found.images.unflatten(0, (10, 3)).unbind(1)
    for column, expected in zip(columns, [*(vae.from_latent(step.xt) for step in steps), sample], strict=True):
        assert column.shape == (10, 1, 28, 28) and torch.equal(column, expected)


@pytest.mark.parametrize("num_steps", [3, 20], ids=["DDIM", "DDPM"])
def test_the_same_noise_is_drawn_each_time_and_the_callers_random_numbers_are_left_alone(drawing, num_steps):
    torch.manual_seed(1)
    before, first = torch.get_rng_state(), drawing(labelled, num_steps)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    for name, picture in drawing(labelled, num_steps).items():
        assert torch.equal(picture.images, first[name].images)


@pytest.mark.parametrize("training", [True, False])
def test_drawing_leaves_the_network_in_the_mode_it_was_in_and_without_gradients(drawing, training):
    model = build(CARD).train(training)
    found = drawing(model, 2)
    assert {module.training for module in model.modules()} == {training}
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(picture.images.requires_grad for picture in found.values())


def test_what_is_drawn_are_two_figures_named_like_their_files():
    found = Results("nowhere", num_steps=2).draw(labelled, CARD)
    generation, samples = (figure.axes[0] for figure in found.values())
    assert list(found) == ["generation", "samples"]
    for axis, columns in ((generation, 3), (samples, 5)):
        assert [label.get_text() for label in axis.get_yticklabels()] == list(CLASS_NAMES)
        assert axis.get_xlim() == (0, columns) and axis.get_ylim() == (10, 0)
    assert [label.get_text() for label in generation.get_xticklabels()] == ["t = 19", "t = 0", "sample"]


# Figures in files


def test_a_figure_is_saved_as_a_png_in_a_folder_that_need_not_be_there(tmp_path):
    path = tmp_path / "new" / "folder" / "name.png"
    for grey in (100, 200):  # the second over the first
        save_figures(path, image_grid(torch.full((4, 1, 9, 9), grey, dtype=torch.uint8), 2))
        with Image.open(path) as image:
            assert image.format == "PNG" and image.convert("L").getpixel((10, 10)) == grey
    assert [file.name for file in path.parent.iterdir()] == ["name.png"]


# A training whose results are written


def fit(folder: Path, report, card: dict = CARD, **changes) -> list[dict]:
    """Train a tiny denoiser on 64 drawn images, 32 more for validation, with a point at each step."""
    card = card | {"recipe": card["recipe"] | changes}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(card)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "NUM_VALIDATION", 32)
        patch.setattr(train, "REPORT_EVERY", 1)
        loss, draw, data, validate = recipes.task(card, *draw_garments(96), CPU)
        return train.train(model, loss, draw, data, validate, folder, card, report)


def stamps(folder: Path) -> dict[str, int]:
    """When each file below a folder was last written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def averaged(folder: Path) -> torch.nn.Module:
    """Return the network of a checkpoint with its averaged weights."""
    state = torch.load(folder / "checkpoint.pt")["ema"]
    model = build(CARD).requires_grad_(False).eval()
    model.load_state_dict({name[len("module.") :]: value for name, value in state.items() if "n_averaged" not in name})
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory, on_the_processor) -> SimpleNamespace:
    """A training of 8 steps, each with a point, validated after 2, 4, 6 and 8; weights after every second of those.

    `written` are the files that the results wrote after each step, `averages` the averaged weights after a validation.
    """
    folder = tmp_path_factory.mktemp("trained")
    write, written, averages = Results(str(folder), keep_every=2, num_steps=2), {}, {}

    def report(history):
        before, step = stamps(folder), history[-1]["step"]
        write(history)
        written[step] = {name for name, stamp in stamps(folder).items() if before.get(name) != stamp}
        if "validation" in history[-1]:
            averages[step] = averaged(folder)

    history = fit(folder, report)
    return SimpleNamespace(folder=folder, history=history, written=written, averages=averages)


def test_pictures_are_written_after_each_validation_and_nothing_between(trained):
    expected = {step: set() for step in range(1, 9)}
    for step in (2, 4, 6, 8):
        expected[step] = {"loss.png", f"step_00000{step}/generation.png", f"step_00000{step}/samples.png"}
    for step in (4, 8):
        expected[step] |= {f"step_00000{step}/weights.safetensors", f"step_00000{step}/weights.json"}
    assert trained.written == expected


def test_all_that_lies_in_the_folder_is_the_trainings_own_and_its_results(trained):
    own = {"checkpoint.pt", "weights.json", "weights.safetensors"}
    assert set(stamps(trained.folder)) == own | set().union(*trained.written.values())


def test_pictures_are_png_files_that_show_something(trained):
    files = sorted(trained.folder.rglob("*.png"))
    assert len(files) == 9
    for file in files:
        with Image.open(file) as image:
            assert image.format == "PNG" and len(image.convert("L").getcolors()) > 20


def test_the_loss_is_drawn_as_it_is_by_now(trained, tmp_path):
    save_figures(tmp_path / "loss.png", loss_curves(trained.history))
    assert (tmp_path / "loss.png").read_bytes() == (trained.folder / "loss.png").read_bytes()


@pytest.mark.parametrize("step", [2, 8])
def test_the_pictures_are_those_of_the_averaged_weights_after_so_many_steps(trained, tmp_path, step):
    for name, figure in Results(tmp_path, num_steps=2).draw(trained.averages[step], CARD).items():
        save_figures(tmp_path / f"{name}.png", figure)
        found = trained.folder / f"step_00000{step}" / f"{name}.png"
        assert (tmp_path / f"{name}.png").read_bytes() == found.read_bytes()
        other = trained.folder / f"step_00000{10 - step}" / f"{name}.png"
        assert other.read_bytes() != found.read_bytes()


@pytest.mark.parametrize("step", [4, 8])
def test_kept_weights_are_loaded_by_their_folder_and_are_the_averaged_ones_of_then(trained, step):
    folder = trained.folder / f"step_00000{step}"
    found, expected = load_pretrained(Path(folder)).state_dict(), trained.averages[step].state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    other = trained.averages[12 - step].state_dict()
    assert not any(torch.equal(found[name], other[name]) for name in ("stem.mix.weight", "label.weight"))
    card = read_card(Path(folder))
    assert card.pop("sha256") and card.pop("device") and card.pop("seconds") >= 0
    assert [point["step"] for point in card.pop("history")] == [k for k in trained.averages if k <= step]
    assert card == CARD | {"recipe": train.DEFAULTS | CARD["recipe"]}


def point(step: int, validated: bool) -> dict:
    return {"step": step, "loss": 0.5} | ({"validation": {"loss": 0.4}} if validated else {})


@pytest.fixture
def write(trained, tmp_path, monkeypatch):
    """Call Results with a history, pictures left out, and return the folders that hold weights by now."""
    monkeypatch.setattr(Results, "draw", lambda self, model, card: {})
    monkeypatch.setattr(results, "save_figures", lambda path, figure: None)
    (tmp_path / "checkpoint.pt").write_bytes((trained.folder / "checkpoint.pt").read_bytes())

    def call(history, **options):
        Results(tmp_path, **options)(history)
        return sorted(path.parent.name for path in tmp_path.rglob("weights.safetensors"))

    return call


def test_weights_are_kept_after_every_tenth_validation_unless_told_otherwise(write):
    """Of those of the whole history: what a stopped training had counted counts after it goes on."""
    history = [point(step, step % 3 == 0) for step in range(1, 61)]
    kept = {end: write(history[:end]) for end in (3, 15, 27, 30, 45, 57, 59, 60)}
    assert kept[27] == [] and kept[59] == ["step_000030"] and kept[60] == ["step_000030", "step_000060"]


@pytest.mark.parametrize("keep_every", [1, 3, 4])
def test_weights_are_kept_after_every_so_manyth_validation(write, keep_every):
    for number in range(1, 9):
        found = write([point(100 * k, True) for k in range(1, number + 1)], keep_every=keep_every)
    assert found == [f"step_{100 * number:06d}" for number in range(1, 9) if number % keep_every == 0]


def test_the_last_point_alone_decides_whether_pictures_are_drawn(tmp_path):
    """After one that is no validation nothing is read, either: here is no checkpoint."""
    Results(tmp_path)([point(1, True), point(2, False)])
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        Results(tmp_path)([point(1, False), point(2, True)])


def test_a_training_that_goes_on_writes_on(tmp_path, trained, monkeypatch):
    """And after as many validations as if nothing had stopped it."""
    kept, places = [], []
    monkeypatch.setattr(Results, "draw", lambda self, model, card: {"generation": None, "samples": None})
    monkeypatch.setattr(results, "save_figures", lambda path, figure: places.append(path.relative_to(tmp_path)))

    def stop(history):
        Results(tmp_path, keep_every=2)(history)
        if history[-1]["step"] == 5:
            raise KeyboardInterrupt

    for report in (stop, Results(tmp_path, keep_every=2)):
        fit(tmp_path, report)
        kept.append(sorted(path.parent.name for path in tmp_path.glob("*/weights.safetensors")))
    assert kept == [["step_000004"], ["step_000004", "step_000008"]]
    for step in (4, 8):
        name = f"step_00000{step}/weights.safetensors"
        assert (tmp_path / name).read_bytes() == (trained.folder / name).read_bytes()
    drawn = [name for step in (2, 4, 6, 8) for name in trained.written[step] if name.endswith(".png")]
    assert sorted(map(str, places)) == sorted(drawn)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_training_with_results_ends_in_the_weights_of_one_without(tmp_path, monkeypatch, dropout):
    """Dropout draws the global random numbers, which a checkpoint keeps: looking on must not use them up."""
    monkeypatch.setattr(results, "save_figures", lambda path, figure: None)
    monkeypatch.setattr(results, "image_grid", lambda *images, **labels: None)
    card = CARD | {"arguments": CARD["arguments"] | {"dropout": dropout}}
    for name, report in (("with", Results(tmp_path / "with", num_steps=1)), ("without", lambda history: None)):
        torch.manual_seed(3)
        fit(tmp_path / name, report, card, steps=4)
    one, other = (load_pretrained(tmp_path / name).state_dict() for name in ("with", "without"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["unet", "transformer"])
def test_a_denoiser_is_trained_by_its_name_with_results(tmp_path, monkeypatch, name):
    """With labels and without."""
    small = {
        "unet": {"width": 8, "mults": [1], "patch": 2, "depth": 1, "num_classes": 0},
        "transformer": {"image_size": 28, "patch": 14, "dim": 16, "depth": 1, "num_classes": 10},
    }
    monkeypatch.setattr(recipes, "NUM_VALIDATION", 32)
    monkeypatch.setattr(recipes, "load_fashion_mnist", lambda split: draw_garments(64))
    monkeypatch.setitem(recipes.CARDS, name, recipes.CARDS[name] | {"arguments": small[name]})
    recipe = {"steps": 1, "every": 1, "batch_size": 16}
    recipes.train_network(name, tmp_path, report=Results(tmp_path, keep_every=1, num_steps=1), **recipe)
    assert len(list((tmp_path / "step_000001").glob("*.png"))) == 2
    assert (tmp_path / "step_000001" / "weights.safetensors").exists()
