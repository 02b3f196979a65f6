"""Every network on every device: a pretended GPU with bf16, one with fp16 and its scaler, a pretended Mac's mps.

In another process (pretend.py), each network trains two steps, stops, resumes, resumes from a checkpoint of the
processor, draws samples, and is measured. The test marked `gpu` does this on a real GPU.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pretend
import pytest

from fmdiff_helpers.recipes import CARDS

WORK = """
import json, shutil, sys
from dataclasses import replace
from pathlib import Path

import torch

from fmdiff_helpers import leaderboard, recipes
from fmdiff_helpers.batching import this_process
from fmdiff_helpers.drawing import load_drawer
from fmdiff_helpers.run import best_precision
from fmdiff_helpers.standin import draw_garments

where, there, folder = this_process().device, sys.argv[1], Path(sys.argv[2])
recipes.load_fashion_mnist = lambda split: draw_garments(96)
leaderboard.load_fashion_mnist = lambda split, device: [part.to(device) for part in draw_garments(300, len(split))]
recipes.NUM_VALIDATION = 32


def stop(run):
    if run.step == 2:
        raise KeyboardInterrupt


def history(name, place, report=lambda run: None):
    found = recipes.train_network(name, place / name, report, steps=4, every=2, batch_size=16, warmup=1)[1]
    return [[point["loss"], point["validation"]["loss"]] for point in found]


about = {"device": str(where), "precision": best_precision(), "here": {}, "from there": {}}
about |= {"samples": {}, "samples in float32": {}}
for name in recipes.CARDS:
    history(name, folder, stop)
    if there != "-":  # the other device has stopped there
        about["from there"][name] = history(name, Path(there))
    else:
        shutil.copytree(folder / name, folder / "stopped" / name)
    about["here"][name] = history(name, folder)

judge = leaderboard.load_judge(where)
for name, guidance in {"unet": None, "vae": None, "patch_unet": 2.0, "latent_unet": None}.items():
    options = {"num_steps": 2, "guidance": guidance} if name != "vae" else {}
    drawer = load_drawer(name, **options, device=where)
    for way, each in {"samples": drawer, "samples in float32": replace(drawer, precise=False)}.items():
        measures = leaderboard.measure_drawer(judge, each, 200, [0])
        about[way][name] = {measure: mean for measure, (mean, _) in measures.items() if measure != "seconds"}
(folder / "about.json").write_text(json.dumps(about))
"""


def work(device: str, folder: Path, there: Path | str = "-") -> dict:
    """Do the work on a device, real or pretended, and return what it tells."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "work.py").write_text(WORK)
    begin = [Path(pretend.__file__), device] if device in pretend.KINDS else []
    hidden = {} if device == "real" else {"CUDA_VISIBLE_DEVICES": ""}
    command = [str(part) for part in [sys.executable, *begin, folder / "work.py", there, folder]]
    done = subprocess.run(command, env=os.environ | hidden, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "about.json").read_text())


@pytest.fixture(scope="module")
def processor(tmp_path_factory) -> tuple[dict, Path]:
    """What the processor tells, and the folder with what it has stopped."""
    folder = tmp_path_factory.mktemp("cpu")
    return work("cpu", folder), folder / "stopped"


def check(found: dict, expected: dict, rel: float, but: tuple[str, ...] = (), samples: str = "samples") -> None:
    """A device has trained as the processor, also from its checkpoints, and has drawn and measured the same."""
    for name in CARDS:
        for way in ("here", "from there"):
            assert all(math.isfinite(loss) for point in found[way][name] for loss in point), (way, name)
            if name not in but:
                # The encoder's loss divides by a temperature of 0.2, and rounding with it.
                near = 1.5 * rel if name == "encoder" else rel
                pairs = zip(found[way][name], expected["here"][name], strict=True)
                assert all(mine == pytest.approx(theirs, rel=near) for mine, theirs in pairs), (way, name)
    for name, measures in expected[samples].items():
        assert found["samples"][name] == pytest.approx(measures, rel=1e-3, abs=1e-2), name


@pytest.mark.parametrize("kind", pretend.KINDS)
def test_each_network_trains_goes_on_draws_and_is_measured_on_a_pretended_device(tmp_path, processor, kind):
    expected, stopped = processor
    there = shutil.copytree(stopped, tmp_path / "there")
    found = work(kind, tmp_path / "here", there)
    where, _, precision = kind.partition("-")
    assert found["device"] == f"{where}:0" and found["precision"] == (precision or "no")
    # The scaler of fp16 starts so high that it leaves out first steps, whose gradient overflows, until it is lower.
    skip_steps = ("vae", "attention_autoencoder") if precision == "fp16" else ()
    samples = "samples in float32" if where == "mps" else "samples"  # mps has no float64 for the sampler
    check(found, expected, rel=0.02 if precision else 1e-4, but=skip_steps, samples=samples)


@pytest.mark.gpu
def test_each_network_trains_goes_on_draws_and_is_measured_on_the_real_gpu(tmp_path, processor):
    expected, stopped = processor
    found = work("real", tmp_path / "here", shutil.copytree(stopped, tmp_path / "there"))
    # Other noise, as a GPU draws its own: losses of a few steps tell whether it learns at all.
    histories = [*found["here"].values(), *found["from there"].values()]
    assert all(math.isfinite(loss) for history in histories for point in history for loss in point)
    assert found["samples"].keys() == expected["samples"].keys()


RULES = """
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

there = torch.accelerator.current_accelerator()
mac = there.type == "mps"
x, index = torch.randn(3, 4, device=there), torch.tensor([0, 1])


def assign():
    x.clone()[index] = torch.ones(2, 4)


refused = {
    "add": lambda: x + torch.ones(4),
    "stack": lambda: torch.stack([x[0, 0], torch.tensor(1.0)]),
    "generator of the processor": lambda: torch.randn(3, device=there, generator=torch.Generator()),
    "generator of the device": lambda: torch.randn(3, generator=torch.Generator(there)),
    "index with the device's": lambda: torch.ones(3)[index.to(there)],
    "index_select": lambda: x.index_select(0, index),
    "embedding": lambda: F.embedding(index, x),
    "weights": lambda: nn.Linear(4, 2)(x),
    "input": lambda: nn.Linear(4, 2).to(there)(torch.ones(4)),
    "assign": assign,
    "numpy": lambda: np.asarray(x),
}
if mac:
    refused |= {"double": x.double, "to": lambda: torch.ones(3).double().to(there)}
    refused |= {"factory": lambda: torch.ones(3, dtype=torch.float64, device=there)}
else:
    refused |= {"another's random state": lambda: torch.cuda.set_rng_state_all([torch.get_rng_state()])}
for name, rule in refused.items():
    try:
        rule()
    except (RuntimeError, TypeError):
        continue
    sys.exit(f"{name} is not refused")

stay = [x + torch.tensor(2.0), torch.where(x > 0, torch.tensor(0.0), x), x[index], torch.tensor([1], device=there)]
stay += [torch.as_tensor(np.ones(3), dtype=torch.float32, device=there), x.new_zeros(3), torch.zeros_like(x)]
stay += [torch.randperm(3, device=there), torch.arange(3, device=there), x.mean(dim=1), x.to("cpu").to(x)]
assert all(made.device == torch.device(there.type, 0) for made in stay)
assert x.cpu().double().dtype == torch.float64 and x.to("cpu", torch.float64).device.type == "cpu"

leaf = torch.ones(3, requires_grad=True)
(leaf.to(there) * torch.arange(3, device=there)).sum().backward()
assert leaf.grad.device.type == "cpu" and leaf.grad.tolist() == [0, 1, 2]
away = torch.ones(3, device=there, requires_grad=True)
(away.cpu() * torch.arange(3)).sum().backward()
assert away.grad.device.type == there.type and away.grad.tolist() == [0, 1, 2]
"""


@pytest.mark.parametrize("kind", ["cuda-bf16", "mps"])
def test_the_pretended_device_keeps_the_rules_of_a_real_one(tmp_path, kind):
    (tmp_path / "rules.py").write_text(RULES)
    command = [sys.executable, pretend.__file__, kind, tmp_path / "rules.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
