"""Random command lines and images: each gives a result or one line that says why not, and writes only what was named.

FMDIFF_FUZZ is the number of command lines; a quarter as many sets of images are tried.
"""

import io
import json
import os
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import typer
from drawn_pictures import write_shapes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_networks import saved
from typer.testing import CliRunner

from fmdiff_helpers import cards, cli, data, evaluation, leaderboard, recipes, showing
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.metrics import Judge
from fmdiff_helpers.recipes import cosine
from fmdiff_helpers.standin import draw_garments

EXAMPLES = int(os.environ.get("FMDIFF_FUZZ", 40))
LIMIT = 30  # seconds for one command line
MANY = settings(
    database=None, deadline=None, print_blob=False, derandomize=EXAMPLES == 40, suppress_health_check=list(HealthCheck)
)
COMMANDS = typer.main.get_command(cli.app).commands
NETWORKS = [
    "unet",
    "transformer",
    "vae",
    "patch_unet",
    "attention_autoencoder",
    "classifier",
    "encoder",
    "latent",
    "unlabelled",
]
PATHS = [f"{name}{ending}" for name in ("x", "new/x", "mine") for ending in (".png", ".GIF", ".webp", ".Npz", ".npz")]
NASTY = [
    *("0", "-1", "1", "2", "1000000000", "1" + "0" * 30, "1" + "0" * 400, "-1" + "0" * 30, "1" * 5000),
    *("nan", "inf", "-inf", "1e300", "-0.5", "1e-300", "0x10", "1_000", "", " ", "all", "٣", "\N{SUPERSCRIPT TWO}"),
    *("x" * 300, "x" * 240 + ".png", "a/" * 2500 + "x.png", "line\nbreak.png", "'\"`$(x).png", "ünï ☂.png"),
    *("\udcff\udc80.png", "\udcff.npz", "-x.png", "--", "--help", ".", "..", "folder", "folder.png", "folder.npz"),
    *("file", "file/x.png", "file.npz", "/dev/null", "/dev/full", "/dev/null/x.png", "/dev/full/x", "~nobody/x.png"),
    *("{}", "[bold]", "%s", "\x1b[31m", "\r", "my_\u202evae", ".png", "..png", "x.png/", "empty.npz", "mine.npz"),
]
USUAL = {
    "name": [*NETWORKS, "all", "mine.npz"],
    "what": ["reconstructions", "latents", "path", "loop", "nearest"],
    "out": PATHS,
    "n": ["1", "12", "200"],
    "seeds": ["1", "2"],
    "seed": ["0", "5"],
    "steps": ["1", "3"],
    "guidance": ["0", "1.5", "100"],
    "guide": ["transformer", "unet"],
    "interval": ["0", "3", "7"],
    "label": ["Dress", "ankle boot", "9"],
    "lesson": ["1", "03"],
    "port": ["8888"],
    "profile": ["smoke", "full"],
    "epochs": ["0.01"],
    "batch_size": ["16"],
    "autoencoder": ["vae"],
    "folder": ["shapes", "folder", "mine.npz"],
    "images": ["shapes", "mine.npz"],
    "size": ["16", "64"],
    "judge": ["unet"],
}


def write_folder(folder: Path) -> None:
    """Write tiny networks, published and in the working folder, and files that are in the way."""
    for name in NETWORKS[:7]:
        card = recipes.CARDS[name]
        process = cosine(8, card["process"]["target"]) if card["kind"] == "denoiser" else card["process"]
        saved(name, folder / "published", file=name, process=process)
    vae = {"name": "vae", "sha256": json.loads((folder / "published" / "vae.json").read_text())["sha256"]}
    latent = {"process": cosine(8, "v"), "autoencoder": vae}
    saved("latent_unet", folder / "here" / "latent", **latent)
    arguments = {"width": 8, "mults": [1], "patch": 1, "num_classes": 0, "channels": 2}
    saved("latent_unet", folder / "here" / "unlabelled", **latent | {"arguments": arguments})
    for name in ("folder", "folder.png", "folder.npz"):
        (folder / "here" / name).mkdir()
    for name in ("file", "file.npz"):
        (folder / "here" / name).write_text("mine")
    (folder / "here" / "empty.npz").touch()
    images, labels = draw_garments(60)
    np.savez(folder / "here" / "mine.npz", images=images.numpy(), labels=labels.numpy())
    write_shapes(folder / "here" / "shapes", 50, size=16)


def measure_few(judge, n, seeds, *networks) -> dict:
    """Measure 30 images instead of hundreds."""
    return leaderboard.measure_columns(judge, 30, seeds[:1], *networks)


@pytest.fixture(scope="module")
def small(tmp_path_factory, on_the_processor) -> Path:
    """The working folder; little data, one judge, no server, no download, and trainings that end at once."""
    from jupyterlab.labapp import LabApp

    folder = tmp_path_factory.mktemp("fuzz")
    write_folder(folder)
    drawn = {"train": draw_garments(300, seed=0), "test": draw_garments(60, seed=1)}
    drawn["validation"] = [part[-60:] for part in drawn["train"]]

    def train_network(name, folder, autoencoder=None, **changes):
        return None, [{"step": changes["steps"], "loss": 1.0, "validation": {"loss": 0.5}}]

    def no_download(raw, names):
        raise OSError("no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cards, "PUBLISHED", folder / "published")
        judge = Judge(load_pretrained("classifier"), drawn["train"][0], drawn["test"][0])
        for module in (data, leaderboard, evaluation, showing):
            patch.setattr(module, "load_fashion_mnist", lambda split="train", device="cpu": drawn[split])
        patch.setattr(evaluation, "load_judge", lambda device, split="test": judge)
        patch.setattr(evaluation, "LEAST_IMAGES", 20)
        patch.setattr(evaluation, "measure_columns", measure_few)
        patch.setattr(evaluation, "measure_row", lambda judge, row, *_: leaderboard.measure_row(judge, row, 30, [0]))
        for module in (leaderboard, evaluation):
            patch.setattr(module, "ROWS", {"vae": {"name": "vae"}})
        patch.setattr(recipes, "train_network", train_network)
        patch.setattr(data, "download", no_download)
        patch.setattr(LabApp, "launch_instance", lambda argv: None)
        patch.setattr(cli, "has_browser", lambda: True)
        patch.setenv("FMDIFF_DATA", str(folder / "no data"))
        patch.setenv("COLUMNS", "80")
        patch.chdir(folder / "here")
        yield folder


@contextmanager
def time_limit():
    """Raise TimeoutError inside what takes too long."""

    def stop(*_):
        raise TimeoutError(f"longer than {LIMIT} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)


def values(name: str, nasty: bool) -> st.SearchStrategy[str]:
    """Draw a value of an argument: one that it takes, or sometimes, if `nasty`, any other."""
    usual = st.sampled_from(USUAL.get(name, NASTY))
    return st.integers(0, 2).flatmap(lambda k: usual if k else st.sampled_from(NASTY)) if nasty else usual


@st.composite
def command_lines(draw) -> list[str]:
    """Draw a command with its arguments and a few of its options; every other one has only values that it takes."""
    command, nasty = draw(st.sampled_from(["sample", "show", "evaluate", *COMMANDS])), draw(st.booleans())
    line, options = [command], []
    for parameter in COMMANDS[command].params:
        if parameter.param_type_name == "argument":
            line.append(draw(values(parameter.name, nasty)))
        elif draw(st.integers(0, 5)) == 5:
            count = 0 if getattr(parameter, "is_flag", False) else max(1, parameter.nargs)
            options += [
                draw(st.sampled_from(parameter.opts)),
                *(draw(values(parameter.name, nasty)) for _ in range(count)),
            ]
    line = line + options if draw(st.booleans()) else [command, *options, *line[1:]]
    return [*line, draw(st.sampled_from(NASTY))] if nasty and draw(st.integers(0, 9)) == 9 else line


def run(line: list[str]) -> str:
    """Run a command; check that it ends well or with one line, and return this line or ""."""
    with time_limit():
        result = CliRunner().invoke(cli.app, line)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert result.exit_code in (0, 1, 2)
    if result.exit_code == 0:
        if "--json" in line and "--help" not in line:
            json.loads(result.stdout, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
        return ""
    # A progress bar erases itself with spaces and returns. Nothing but a line of the leaderboard may come before.
    said = result.stderr.rstrip("\n").split("\r")[-1].strip()
    assert said.startswith("fmdiff: ") and len(said.splitlines()) == 1, result.stderr
    assert line[:2] == ["evaluate", "all"] or result.stdout == ""
    return said


def listing(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


@settings(MANY, max_examples=EXAMPLES)
@given(line=command_lines())
def test_a_command_line_gives_a_result_or_one_line_and_writes_only_what_it_names(small, line):
    before, around = listing(small / "here"), listing(small) - listing(small / "here")
    said = run(line)
    new = listing(small / "here") - before
    assert listing(small) - listing(small / "here") == around
    assert not (said and new), "what fails leaves nothing behind"
    for path in sorted(new, reverse=True):
        Path(path).rmdir() if Path(path).is_dir() else Path(path).unlink()
    assert listing(small / "here") == before


# Images

SHAPES = [(28, 28), (1, 28, 28), (28, 28, 1), (28, 28, 3), (3, 28, 28), (784,), (32, 32), (), (1, 1, 28, 28), (28,)]
TYPES = ["uint8", "int8", "int64", "uint16", "float16", "float32", "float64", "bool", "complex64", "U3", "O", "S2"]
RANGES = [(0, 255), (0, 1), (-1, 1), (0, 0), (255, 255), (-500, 1000), (0, 2), (254, 255)]


@st.composite
def image_sets(draw) -> dict[str, np.ndarray]:
    """Draw the arrays of a file: images of any type, shape and range, often uint8, and labels, sometimes wrong."""
    usual = draw(st.booleans())
    n, (low, high) = draw(st.sampled_from([0, 1, 19, 20, 60])), draw(st.sampled_from(RANGES))
    shape = (n, *(draw(st.sampled_from(SHAPES[:2] if usual else SHAPES))))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    images = random.uniform(low, high, shape) if draw(st.booleans()) else random.integers(low, high + 1, shape)
    if not usual and draw(st.booleans()) and images.size:
        images.reshape(-1)[0] = draw(st.sampled_from([np.nan, np.inf, 1e300])) if images.dtype == float else 7
    with np.errstate(all="ignore"):
        images = images.astype("uint8" if usual else draw(st.sampled_from(TYPES)))
    arrays = {draw(st.sampled_from(["images"] * 9 + ["x"])): images}
    if draw(st.booleans()):
        labels = random.integers(0, draw(st.sampled_from([10, 10, 11])), max(0, n - draw(st.sampled_from([0, 0, 1]))))
        arrays["labels"] = labels.astype(draw(st.sampled_from(["int64", "uint8", "int64", "float32", "O"])))
    return arrays


def may_be_measured(arrays: dict[str, np.ndarray]) -> bool:
    """Tell whether `fmdiff evaluate` should take these arrays."""
    images = arrays.get("images", np.zeros(0))
    good = images.dtype == np.uint8 and images.shape[1:] in ((28, 28), (1, 28, 28)) and len(images) >= 20
    labels = arrays.get("labels", np.zeros(len(images), int))
    good = good and labels.dtype.kind in "iu" and len(labels) == len(images) and labels.max() < 10
    return bool(good and images.max() != 1)


@pytest.fixture(scope="module")
def judge(small):
    return evaluation.load_judge("cpu")


@settings(MANY, max_examples=max(10, EXAMPLES // 4))
@given(arrays=image_sets(), cut=st.integers(0, 5), place=st.floats(0, 1))
def test_images_are_measured_or_refused_in_one_line_from_a_file_and_by_the_judge(small, judge, arrays, cut, place):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    content = bytearray(file.getvalue())
    if cut == 0:
        content = content[: int(place * len(content))]
    elif cut == 1:
        content[int(place * (len(content) - 1))] ^= 0xFF
    with tempfile.TemporaryDirectory(dir=small) as folder:
        path = Path(folder) / "x.npz"
        path.write_bytes(content)
        said = run(["evaluate", str(path), "--json"])
    if cut > 1:
        assert bool(said) != may_be_measured(arrays), said
    if "images" in arrays and len(arrays["images"]) >= 20:
        try:
            assert all(np.isfinite(value) for value in judge.measure(**arrays).values())
            assert may_be_measured(arrays)
        except ValueError as error:
            assert not may_be_measured(arrays) and len(str(error).splitlines()) == 1
