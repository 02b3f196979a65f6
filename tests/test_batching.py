"""Several processes do what one does: nothing twice, nothing left out, the same numbers; and they end together.

`accelerate launch` starts two processes here, on the CPU, each with one thread. They work on drawn images.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from fmdiff_helpers import batching, train
from fmdiff_helpers.models.classifier import BatchNorm
from fmdiff_helpers.recipes import CARDS

SCRIPT = """
import json, sys
from pathlib import Path

import torch

from fmdiff_helpers import leaderboard, recipes
from fmdiff_helpers.batching import gather_parts, own_parts, this_process
from fmdiff_helpers.data import to_uint8
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.models.classifier import BatchNorm
from fmdiff_helpers.recipes import CARDS, train_network
from fmdiff_helpers.standin import draw_garments

leaderboard.load_fashion_mnist = lambda split, device: draw_garments(300, seed=len(split))
recipes.load_fashion_mnist = lambda split: draw_garments(300)
recipes.NUM_VALIDATION = 32
for card in CARDS.values():
    if card["kind"] == "denoiser":
        card["process"] = card["process"] | {"T": 6}
        card["arguments"] = card["arguments"] | ({"T": 6} if "T" in card["arguments"] else {})
    if "teacher" in card["process"]:  # the one that is trained here, in the latent that is trained here
        teacher = str(Path(sys.argv[1]) / card["process"]["teacher"])
        card["process"] = card["process"] | {"teacher": teacher, "guide": teacher}


def normalise():
    "Return what BatchNorm makes of a batch, the gradient of x, which depends on the whole batch, and the moments."
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn((2, 8, 3, 5, 5), generator=generator, dtype=torch.float64)
    norm = BatchNorm(3).double()
    shares = {k: x[4 * k : 4 * k + 4].requires_grad_() for k in own_parts([0, 1], shared=True)}
    mine = torch.cat(list(shares.values()))
    found = norm(mine * 3 + 1)
    (found * torch.cat([weight[4 * k : 4 * k + 4] for k in shares])).sum().backward()
    size = len(found) // len(shares)
    parts = [dict(zip(shares, found.detach().split(size))), {k: share.grad for k, share in shares.items()}]
    return [gather_parts(part, shared=True) for part in parts] + [norm.running_mean, norm.running_var]


def main(folder):
    images, y = {}, torch.arange(205) % 10
    for name in sorted(CARDS, key=lambda name: CARDS[name]["autoencoder"] is not None):  # autoencoders come first
        there = CARDS[name]["autoencoder"]
        options = {"autoencoder": str(folder / there)} if there else {}
        train_network(name, folder / name, steps=3, every=3, batch_size=16, warmup=1, **options)
    steps = {"vae": None, "unet": None, "transformer": 3, "patch_unet": 3, "latent_unet": 3, "vector_denoiser": 3}
    steps |= {"shortcut_unet": 2}
    for name, num_steps in steps.items():
        drawer = load_drawer(str(folder / name), num_steps)
        images[name] = drawer.draw(205, 0, drawer.all_kinds(205))
    judge = leaderboard.load_judge()
    measures = {name: judge.measure(to_uint8(x), y) for name, x in images.items()}
    images["norm"] = normalise()
    about = {"processes": this_process().num_processes, "close": judge.close.item(), "measures": measures}
    if this_process().is_main_process:
        torch.save(images, folder / "images.pt")
        (folder / "about.json").write_text(json.dumps(about))


main(Path(sys.argv[1]))
"""


def launch(*command) -> subprocess.Popen:
    """Start a command in two processes, as the README says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--multi_gpu", "--num_processes", 2, "--main_process_port", port]
    return start(Path(sys.executable).with_name("accelerate"), "launch", *flags, *command)


def start(*command) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(part) for part in command]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("number", [1, 2, 3, 5])
@pytest.mark.parametrize("parts", [1, 3, 7])
def test_each_part_belongs_to_one_process_and_all_have_equally_many_or_nearly(monkeypatch, number, parts):
    everything, shares = range(10, 10 + parts), []
    for index in range(number):
        state = SimpleNamespace(process_index=index, num_processes=number)
        monkeypatch.setattr(batching, "this_process", lambda state=state: state)
        shares.append(batching.own_parts(everything, shared=True))
        assert batching.own_parts(everything, shared=False) == dict(enumerate(everything))
    assert sorted(item for share in shares for item in share.items()) == list(enumerate(everything))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_parts_are_gathered_in_order(monkeypatch):
    everyones = {2: torch.tensor([5]), 0: torch.tensor([1, 2]), 1: torch.tensor([3, 4])}
    assert batching.gather_parts(everyones, shared=False).tolist() == [1, 2, 3, 4, 5]
    monkeypatch.setattr(batching, "this_process", lambda: SimpleNamespace(num_processes=2))
    monkeypatch.setattr(batching, "gather_object", lambda mine: [*mine, *list(everyones.items())[1:]])
    assert batching.gather_parts({2: everyones[2]}, shared=True).tolist() == [1, 2, 3, 4, 5]
    assert batching.gather_parts({2: everyones[2]}, shared=False).tolist() == [5]


def test_a_batch_has_100_images_on_a_cpu_2000_on_cuda_and_500_elsewhere():
    assert [batching.batch_size_on(torch.device(kind)) for kind in ("cpu", "cuda", "mps")] == [100, 2000, 500]


def check_training(one: Path, two: Path, name: str) -> None:
    """Both have trained the same network."""
    weights = [load_file(folder / name / "weights.safetensors") for folder in (two, one)]
    # Adam's first steps are as long for a gradient of almost 0, whose sign rounding decides: BatchNorm makes such.
    normed = name in ("classifier", "encoder")
    assert_close(*weights, rtol=1e-2, atol=0.03 if normed else 1e-4, msg=lambda text: f"{name}: {text}")
    last = [torch.load(folder / name / "checkpoint.pt")["history"][-1] for folder in (two, one)]
    losses = [[point["loss"], point["validation"]["loss"]] for point in last]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3 if normed else 1e-4), name


def check_images(one: dict, two: dict) -> None:
    """Both have drawn the same images, and none of them twice."""
    assert_close(two.pop("norm"), one.pop("norm"), rtol=1e-10, atol=1e-10)
    assert two.keys() == one.keys()
    for name, images in two.items():
        assert images.shape == (205, 1, 28, 28)
        assert_close(images, one[name], rtol=1e-2, atol=2e-2, msg=lambda text, name=name: f"{name}: {text}")
        assert len(images.flatten(1).unique(dim=0)) == 205, name


def test_two_processes_train_draw_and_measure_what_one_does(tmp_path):
    """One test, as everything in it comes from two runs of SCRIPT."""
    script, one, two = tmp_path / "script.py", tmp_path / "1", tmp_path / "2"
    script.write_text(SCRIPT)
    for process in (start(sys.executable, script, one), launch(script, two)):
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
    for name in CARDS:
        check_training(one, two, name)
    check_images(*(torch.load(folder / "images.pt") for folder in (one, two)))
    about = [json.loads((folder / "about.json").read_text()) for folder in (one, two)]
    assert [each["processes"] for each in about] == [1, 2]
    assert about[1]["close"] == pytest.approx(about[0]["close"])
    for name, measures in about[1]["measures"].items():
        assert measures == pytest.approx(about[0]["measures"][name], rel=0.02, abs=0.02), name


def test_machines_that_do_not_share_the_folder_are_told_so(tmp_path, monkeypatch):
    run = SimpleNamespace(step=3)
    (tmp_path / "run").mkdir()
    for other in (3, 0, None):
        monkeypatch.setattr(train, "gather_object", lambda mine, other=other: [*mine, other])
        said = re.escape(f"from the steps [3, {other}]") + ".*name a folder that all machines"
        with nullcontext() if other == 3 else pytest.raises(ValueError, match=said):
            train.check_together(run, tmp_path / "run")


SLOW = """
import sys, time

from fmdiff_helpers import recipes
from fmdiff_helpers.cli import app
from fmdiff_helpers.processes.diffusion import TARGETS
from fmdiff_helpers.standin import draw_garments

recipes.NUM_VALIDATION = 32
recipes.load_fashion_mnist = lambda split: draw_garments(96)
recipes.CARDS["unet"]["arguments"] |= {"width": 8, "mults": [1]}
recipes.CARDS["unet"]["recipe"]["lr"] = 2e-3  # Adam's first steps enlarge what rounding does, in proportion to the rate
recipes.profiles = lambda name: {"smoke": {"steps": 30, "every": 10}, "full": {}}
(loss, predictor), pause = TARGETS["eps"], float(sys.argv.pop(1))
TARGETS["eps"] = (lambda *args: time.sleep(pause) or loss(*args), predictor)
app()
"""


def children(process: subprocess.Popen) -> dict[str, int]:
    """The processes that a launch has started: their number, and the system's."""
    found = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found |= {value[5:].decode(): int(child) for value in variables if value.startswith(b"RANK=")}
    return found


SMOKE = ["train", "unet", "--profile", "smoke", "--batch-size", "16", "--out"]


@pytest.fixture(scope="module")
def slow(tmp_path_factory) -> Path:
    """SLOW in a folder, beside the folder `whole` of a training that it has finished."""
    script = tmp_path_factory.mktemp("slow") / "slow.py"
    script.write_text(SLOW)
    process = start(sys.executable, script, 0, *SMOKE, script.with_name("whole"))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return script


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the processes as Linux names them")
@pytest.mark.parametrize("killed", ["0", "1"])
def test_a_killed_process_ends_the_launch_with_a_message_and_a_checkpoint_to_go_on_from(tmp_path, slow, killed):
    process, folder = launch(slow, 0.2, *SMOKE, tmp_path), tmp_path
    end = time.monotonic() + 300
    while not (folder / "checkpoint.pt").exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(children(process)[killed], signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0 and (folder / "checkpoint.pt").exists()
    assert "fmdiff: a process of this training has ended, or was told to" in output and f"in {folder}" in output
    assert not list(folder.glob(".*.part")), "half-written files"
    assert 10 <= torch.load(folder / "checkpoint.pt")["step"] < 30
    process = start(sys.executable, slow, 0, *SMOKE, folder)  # alone: one process can go on, too
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    whole, parts = (load_file(place / "weights.safetensors") for place in (slow.with_name("whole"), folder))
    assert_close(parts, whole, rtol=1e-2, atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # PyTorch has deprecated all_reduce, but not published its replacement
@pytest.mark.parametrize("kind, mean, std", [(torch.bfloat16, 20.0, 1.0), (torch.float16, 0.0, 300.0)])
def test_batch_norm_is_right_in_half_precision_too(kind, mean, std):
    """E[x^2] - E[x]^2 in bfloat16 is 2 at mean 20 and variance 1; in float16 it is too large a number at 300^2."""
    x = mean + std * torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    norm = BatchNorm(2)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        found = norm(x.to(kind))
    finally:
        torch.distributed.destroy_process_group()
    assert found.dtype == kind
    assert norm.running_var.allclose(0.9 + 0.1 * x.to(kind).float().var(dim=(0, 2, 3)), rtol=1e-3)
    expected = (x - x.mean(dim=(0, 2, 3), keepdim=True)) / x.std(dim=(0, 2, 3), keepdim=True)
    assert (found.float() - expected).abs().max() < 0.1
