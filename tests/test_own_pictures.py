"""Pictures of one's own, from a folder to samples and measures: a newcomer's walk with tiny networks and few steps."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_pictures import SHAPES, drawn, write_mix, write_shapes
from PIL import Image
from small_networks import TINY, same_weights
from small_training import at_call
from torch.testing import assert_close
from typer.testing import CliRunner

from fmdiff_helpers import cli, picture_evaluation, recipes, showing
from fmdiff_helpers.cards import WeightsError, read_card
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.data import to_uint8
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.models.encoder import Encoder
from fmdiff_helpers.picture_evaluation import check_number
from fmdiff_helpers.picture_judge import PictureJudge
from fmdiff_helpers.pictures import Finds, Pictures, read_pictures
from fmdiff_helpers.plots import image_grid
from fmdiff_helpers.recipes import CARDS, cosine, for_pictures, train_network, training_parts

pytestmark = pytest.mark.usefixtures("on_the_processor")


def fmdiff(line: str):
    """Run a command in this process; an unexpected error is raised here."""
    return CliRunner().invoke(cli.app, shlex.split(line), catch_exceptions=False)


def said(line: str) -> str:
    """Return what a command prints, which must end well."""
    result = fmdiff(line)
    assert result.exit_code == 0, result.output
    return result.stdout


def check_refused(line: str, words: str) -> None:
    """Check that a command ends with one line on stderr, after notices, and writes nothing."""
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file() and path.name[0] != "."}
    result = fmdiff(line)
    after = {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file() and path.name[0] != "."}
    *notices, last = result.stderr.split("\r")[-1].splitlines()
    assert result.exit_code == 2 and result.stdout == "" and last.startswith("fmdiff: ") and words in last, last
    assert all(notice.startswith(("NOTICE", "WARNING")) for notice in notices) and before == after


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """The newcomer's three folders: shapes, mix and seven."""
    folder = tmp_path_factory.mktemp("walk")
    write_shapes(folder / "shapes", 500)
    write_mix(folder / "mix")
    write_shapes(folder / "seven", 7)
    return folder


@pytest.fixture(autouse=True)
def here(folders, tmp_path, monkeypatch) -> Path:
    """An empty working folder; tiny networks that are trained for four steps."""
    for name in recipes.OWN:
        changes = {"arguments": TINY[name]}
        changes |= {"process": cosine(20, "v")} if CARDS[name]["kind"] == "denoiser" else {}
        monkeypatch.setitem(CARDS, name, CARDS[name] | changes)
    profile = {"steps": 4, "every": 2}
    for module in (recipes, picture_evaluation):
        monkeypatch.setattr(module, "profiles", lambda name: {"smoke": profile, "quick": profile, "full": profile})
    monkeypatch.chdir(tmp_path)
    return tmp_path


# The walk


def test_500_pictures_in_subfolders_end_in_samples_of_each_kind_and_in_measures(folders):
    shapes = folders / "shapes"
    report = said(f"data --folder {shapes}")
    assert report.startswith(
        "shapes: 500 pictures of 32 x 32 pixels, in colour.\nKinds: 4, each with its pictures: circle"
    )
    assert f"Next: fmdiff train patch_unet --images {shapes} --size 32\n" in report
    result = fmdiff(f"train patch_unet --images {shapes} --pictures --batch-size 16")
    assert result.exit_code == 0 and "WARNING: 500 pictures are few." in result.stderr
    run = Path("runs/shapes_patch_unet")
    assert f"fmdiff evaluate {run} --images {shapes}, or fmdiff sample {run}" in result.stdout
    assert (run / "loss.png").exists() and (run / "step_000004" / "samples.png").exists()

    said(f"sample {run} -n 8 --steps 2 -o x.npz")
    with np.load("x.npz") as found:
        assert found["images"].shape == (8, 32, 32, 3) and found["labels"].tolist() == [0, 1, 2, 3] * 2
    said(f"sample {run} -n 8 --steps 2 --grid -o x.png")
    said(f"sample {run} -n 2 --label Square --guidance 2 -o x.gif")
    with Image.open("x.png") as grid, Image.open("x.gif") as film:
        assert (grid.mode, grid.width, film.n_frames) == ("RGB", 4 * 33 * 3, 21)

    measure = f"evaluate {run} --images {shapes} --steps 2 -n 60 --seeds 2"
    found = json.loads(said(f"{measure} --json"))
    assert found["measures"].keys() == found["floor"].keys() > {"fd", "kd", "label_accuracy", "copying"}
    assert (found["n"], found["split"], found["first_seed"]) == (60, "test", 3)
    written = (run / "judge" / "weights.safetensors").stat().st_mtime_ns
    assert read_card(run / "judge")["data"] == read_card(run)["data"] == found["data"]
    table = said(f"{measure} --split validation")
    assert "compared with 50 pictures of 'shapes', validation split; floor: training pictures\n" in table
    assert (run / "judge" / "weights.safetensors").stat().st_mtime_ns == written, "it is trained once"
    check_refused(f"{measure} --judge {run}", "which holds no encoder of these pictures; name another folder")


def test_a_mix_is_told_what_is_left_out_file_by_file_and_ends_in_samples(folders):
    mix = folders / "mix"
    report = said(f"data --folder {mix}").splitlines()
    assert report[0] == "mix: 69 pictures from 20 x 30 to 48 x 48 pixels, 66 in colour and 3 in grey."
    for words in ("cut off.jpg: ", "no picture.png: no picture that can be read", "no pictures: notes.txt"):
        assert any(line.startswith("Left out") and words in line for line in report), words
    assert "Next: fmdiff train unet" in report[-2] and report[-1].startswith("WARNING: 68 pictures are few.")
    result = fmdiff(f"train unet --images {mix} --size 28 --out run")
    notice, *_ = result.stderr.splitlines()
    assert notice.startswith("NOTICE: left out are cut off.jpg (") and "no picture.png (" in notice
    assert read_card("run")["recipe"]["batch_size"] == 48, "as many as there are to train on"
    said("sample run -n 3 -o x.png")
    table = said(f"evaluate run --images {mix} --seeds 1 -n 5")
    assert "copying" in table and "Nothing but copying is measured: 10 pictures are too few" in table
    assert not Path("run/judge").exists() and "fd" not in table


def test_seven_pictures_are_told_what_is_missing_and_nothing_is_written(folders, here):
    assert (
        said(f"data --folder {folders / 'seven'}").splitlines()[-1].startswith("Too few to train on: expected at least")
    )
    check_refused(
        f"train unet --images {folders / 'seven'}", "'seven' holds 7 different pictures that can be read, too few"
    )
    assert not list(here.iterdir())


def test_what_cannot_be_meant_is_refused_before_anything_is_written(folders):
    mix, shapes = folders / "mix", folders / "shapes"
    said(f"train unet --images {mix} --out run")
    shutil.copytree(mix, "more")
    shutil.copy(shapes / "circle" / "0000.png", "more/new.png")
    trained = "68 pictures of 'mix', 32 x 32, in colour (sha256 "
    for line, words in {
        "train unet --images more --out run": f"data: {trained}",
        "evaluate run --images more": f"'run' was trained on {trained}",
        "evaluate run": f"'run' was trained on {trained}",
        f"evaluate run --images {mix} -n 49": "-n is 49; expected 1 to 48, the number of training pictures",
        f"evaluate unet --images {mix}": "'unet' was not trained on pictures of your own; leave --images out",
        f"evaluate all --images {mix}": "--images is given, but means nothing for a file of images, or for all",
        "evaluate unet --judge run": "--judge is given, but means nothing for Fashion-MNIST",
        f"train vae --images {mix}": "a network for pictures of your own is 'vae'; expected one of unet, patch_unet",
        f"train unet --images {mix} --size 33": "size is 33; expected an even number from 16 to 64",
        "train unet --size 32": "--size is given, but means nothing for Fashion-MNIST",
        "train unet --images more --out more/run": "--out is more/run, inside of the pictures in more",
        "data --folder more --repair": "--repair is given, but means nothing for pictures of your own",
        "data --folder nowhere": "'nowhere' is not there; expected a folder of pictures",
        "sample run --label circle": "label is 'circle', but this network takes no labels",
    }.items():
        check_refused(line, words)


def test_kinds_with_few_pictures_are_named_and_a_long_list_is_cut(here):
    for k in range(60):
        Path(f"kinds/kind {k:02d}").mkdir(parents=True)
        drawn(k)[0].save(f"kinds/kind {k:02d}/x.png")
    report = said("data --images kinds")  # the name that the option has for all other commands
    assert (
        "Kinds: 60, each with its pictures: kind 00 1, kind 01 1, " in report and "kind 19 1 and 40 more.\n" in report
    )
    warning = (
        "WARNING: 60 of 60 kinds have fewer than 10 pictures: kind 00, kind 01, kind 02, kind 03, kind 04 and 55 more"
    )
    assert warning in report and warning in fmdiff("train patch_unet --images kinds").stderr
    result = fmdiff("sample runs/kinds_patch_unet --grid --steps 1")
    assert "but this network knows more than 30 kinds; leave --grid out" in result.stderr


def test_the_command_that_is_advised_in_the_folder_of_the_pictures_itself_writes_elsewhere(folders, here, monkeypatch):
    shutil.copytree(folders / "mix", "mix")
    np.savez("mix/more.npz", images=np.zeros((60, 32, 32), np.uint8))
    monkeypatch.chdir("mix")
    report = said("data --folder .")
    assert "Left out, no pictures: more.npz, notes.txt.\nA .npz is read alone: name the file itself" in report
    (advised,) = [line for line in report.splitlines() if line.startswith("Next: fmdiff ")]
    assert advised.endswith(" --out ../mix_unet")
    before = sorted(Path().iterdir())
    said(advised.removeprefix("Next: fmdiff "))
    assert sorted(Path().iterdir()) == before and (here / "mix_unet" / "weights.safetensors").exists()


def test_a_training_that_is_named_without_its_folder_is_found(folders):
    said(f"train unet --images {folders / 'mix'}")
    check_refused("sample mix_unet", "there are no weights 'mix_unet'; do you mean 'runs/mix_unet'?")


# Training


@pytest.fixture(scope="module")
def shapes(folders):
    return read_pictures(folders / "shapes", 16)


def test_a_stopped_training_goes_on_to_the_same_numbers_also_where_the_pictures_were_moved(folders, shapes, here):
    whole, history = train_network("patch_unet", "whole", own=shapes, batch_size=16)
    train_network("patch_unet", "parts", at_call(1, KeyboardInterrupt()), own=shapes, batch_size=16)
    shutil.copytree(folders / "shapes", here / "elsewhere")
    moved = read_pictures("elsewhere", 16)
    parts, found = train_network("patch_unet", "parts", own=moved, batch_size=16)
    assert found == history and same_weights(parts, whole) and same_weights(load_pretrained("parts"), whole)
    assert "/" not in json.dumps(read_card("whole")["data"]), "no way to a folder is written"


@pytest.mark.parametrize("size, levels", [(16, [1, 2]), (32, [1, 2]), (34, [1, 2, 2]), (64, [1, 2, 2])])
def test_size_channels_and_kinds_of_the_pictures_decide_about_the_network(folders, size, levels, monkeypatch):
    own = read_pictures(folders / "shapes", size)
    monkeypatch.setitem(
        CARDS, "patch_unet", CARDS["patch_unet"] | {"arguments": {"width": 8, "mults": [1, 2], "num_classes": 10}}
    )
    card = for_pictures(CARDS["patch_unet"], own)
    assert card["arguments"] == {"width": 8, "mults": levels, "num_classes": 4, "channels": 3}
    assert card["label_dropout"] == 0.1 and card["data"] == own.entry()
    network = recipes.build(card)
    assert network(torch.zeros(2, 3, size, size), torch.tensor([0, 7]), torch.tensor([3, 4])).shape == (
        2,
        3,
        size,
        size,
    )
    assert recipes.build_process(card).shape == (3, size, size)


def test_a_patch_unet_without_kinds_learns_without_labels_and_an_encoder_is_as_wide_as_the_pictures_allow(
    folders, monkeypatch
):
    mix = read_pictures(folders / "mix", 16, grey=True)
    card = for_pictures(CARDS["patch_unet"], mix)
    assert (card["arguments"]["num_classes"], card["arguments"]["channels"], card["label_dropout"]) == (0, 1, 0.0)
    monkeypatch.setitem(CARDS, "encoder", CARDS["encoder"] | {"arguments": {"width": 32}})
    assert for_pictures(CARDS["encoder"], mix)["arguments"]["width"] == 1
    assert for_pictures(CARDS["encoder"], read_pictures(folders / "shapes", 16))["arguments"]["width"] == 50 // 8


def test_the_held_out_pictures_are_validated_again_and_again_and_never_trained_on(shapes):
    card = for_pictures(CARDS["patch_unet"], shapes) | {"recipe": {"steps": 4}}
    both = (torch.cat(parts) for parts in zip(shapes.part("train"), shapes.part("validation"), strict=True))
    loss, draw, (images, labels), validate = training_parts(card, *both, torch.device("cpu"))
    assert torch.equal(images, shapes.part("train")[0]) and torch.equal(labels, shapes.part("train")[1])
    x0, y = validate.keywords["x0"], validate.keywords["y"]
    assert len(x0) == len(y) == 500 and torch.equal(to_uint8(x0), shapes.part("validation")[0].repeat(10, 1, 1, 1))
    u, seen = torch.tensor([0.05, 0.15]), []
    loss(lambda x, t, y: seen.append(y) or x, x0[:2], torch.tensor([0, 3]), *draw(x0[:2], torch.Generator())[:2], u)
    assert seen[0].tolist() == [4, 3], "the null label comes after those of the kinds"


def test_guidance_leads_away_from_no_label_for_any_number_of_kinds(shapes):
    train_network("patch_unet", "run", own=shapes, batch_size=16)
    network, x = load_pretrained("run"), torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    t, y = torch.full((3,), 5), torch.tensor([0, 1, 3])
    plain, led = (load_drawer("run", guidance=w).model for w in (None, 3.0))
    assert_close(led(x, t, y), plain(x, t, None) + 3 * (plain(x, t, y) - plain(x, t, None)))
    assert_close(plain(x, t, None), plain(x, t, torch.full((3,), 4)))
    assert load_drawer("run").kinds == SHAPES and network.num_classes == 4
    train_network("unet", "unlabelled", own=shapes, batch_size=16)
    with pytest.raises(ValueError, match="the guide 'unlabelled' takes no labels"):
        load_drawer("run", guidance=2.0, guide="unlabelled")


def test_a_card_whose_pictures_have_another_shape_than_its_network_is_refused(shapes):
    train_network("unet", "run", own=shapes, batch_size=16)
    path = Path("run/weights.json")
    card = json.loads(path.read_text())
    path.write_text(json.dumps(card | {"data": card["data"] | {"shape": [1, 16, 16]}}))
    with pytest.raises(WeightsError, match="does not fit its autoencoder or process"):
        load_drawer("run")


# The judge


@pytest.fixture(scope="module")
def judge(shapes) -> PictureJudge:
    torch.manual_seed(0)
    return PictureJudge(shapes, "test", Encoder(width=6, channels=3).eval())


@pytest.mark.parametrize("number", [100, 2_000, 19_999, 20_000, 60_000])
def test_any_number_of_pictures_can_be_measured_without_saying_how_many(number):
    own = Pictures("own", torch.zeros(number, 1, 1, 1), torch.zeros(number), (), Finds())
    n = check_number(None, own)
    assert n == min(1000, len(own.part("train")[0]))
    if own.held_out >= 50:  # else only copying is measured
        features = 4 * for_pictures(CARDS["encoder"], own)["arguments"]["width"]
        with pytest.raises(ValueError, match=f"-n is {features}; expected "):
            check_number(features, own)


def test_copies_of_training_pictures_are_copies_and_as_near_as_can_be(judge, shapes):
    images, labels = (part[:200] for part in shapes.part("train"))
    found = judge.measure(images, labels)
    assert found["copying"] == found["feature_copying"] == 1 and found["fd"] < 1
    (floor,) = judge.floor(400, [0])
    assert floor["copying"] == floor["feature_copying"] == 0.05
    assert floor["fd"] == pytest.approx(judge.measure(*shapes.part("train"))["fd"])
    assert floor["label_accuracy"] == judge.measure(*shapes.part("test"))["label_accuracy"]


def test_held_out_pictures_are_copied_as_often_as_is_said_and_noise_is_far_from_everything(judge, shapes):
    images, labels = shapes.part("test")
    assert judge.measure(images, labels)["copying"] == pytest.approx(0.05, abs=0.02)
    noise = torch.randint(0, 256, (60, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found, (floor,) = judge.measure(noise, labels.repeat(2)[:60]), judge.floor(60, [0])
    assert found["copying"] == 0 and found["precision"] < 0.5 and found["fd"] > 10 * floor["fd"]


def test_samples_have_the_kinds_of_the_training_pictures(judge, shapes):
    train_network("patch_unet", "run", own=shapes, batch_size=16)
    drawer, given = load_drawer("run", 1), []
    measured, judge_measure = judge.judge, judge.measure
    try:
        judge.measure = lambda images, labels: given.append((images, labels)) or {}
        measured(drawer, 400, [3, 4])
    finally:
        judge.measure = judge_measure
    for images, labels in given:
        assert images.shape == (400, 3, 16, 16) and images.dtype == torch.uint8
        assert torch.equal(labels.bincount(), shapes.part("train")[1].bincount())


def test_the_nearest_training_pictures_stand_below_samples_with_their_distance(shapes, folders, monkeypatch):
    train_network("patch_unet", "run", own=shapes, batch_size=16)
    samples = to_uint8(load_drawer("run", 2).draw(10, 5, torch.arange(10) % 4)).movedim(1, 3).int()
    figures = []
    monkeypatch.setattr(showing, "image_grid", lambda *parts: figures.append(parts) or image_grid(*parts))
    line = f"show nearest run --images {folders / 'shapes'} --steps 2 --seed 5"
    assert said(line) == "nearest of run in nearest.png\n" and Path("nearest.png").exists()
    ((images, columns, heads, rows),) = figures
    above, below = images.movedim(1, 3).int().split(10)
    assert (columns, rows) == (10, ["sample", "nearest"]) and torch.equal(above, samples)
    distance = (above[:, None] - shapes.part("train")[0].movedim(1, 3).int()).double().square().mean((2, 3, 4)).sqrt()
    assert heads == [f"{value:.0f}" for value in distance.amin(dim=1)]
    assert torch.equal(below, shapes.part("train")[0].movedim(1, 3).int()[distance.argmin(dim=1)])
    check_refused("show nearest run", "'run' was trained on 500 pictures of 'shapes'")
    check_refused("show latents run --images x", "--images is given, but means nothing for latents")
