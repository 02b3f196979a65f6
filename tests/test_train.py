"""The claims of fmdiff_helpers.train: it learns, goes on to the same numbers after any stop, says what is wrong."""

import contextlib
import copy
import gc
import io
import itertools
import math
import os
import pickle
import runpy
import signal
import subprocess
import sys
import time
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch.testing import assert_close
from typer.testing import CliRunner

from fmdiff_helpers import checkpoints, cli, data, recipes, train
from fmdiff_helpers.checkpoints import build, load_pretrained, read_card
from fmdiff_helpers.diffusion import draw_noise, simple_loss, validation_loss
from fmdiff_helpers.schedules import Schedule, cosine_beta
from fmdiff_helpers.standin import draw_garments
from fmdiff_helpers.train import best_precision

IMAGES, LABELS = draw_garments(64)
CLASSIFIER = {"network": "classifier.Classifier", "arguments": {"width": 2}}
RECIPE = {"steps": 12, "batch_size": 16, "every": 4, "warmup": 3, "lr": 0.01}
WRITTEN = ["checkpoint.pt", "weights.json", "weights.safetensors"]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module", autouse=True)
def one_thread_of_the_processor(on_the_processor):
    """Calculate as the processes do that tests start: sums depend on the device and on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def card(**changes) -> dict:
    return CLASSIFIER | {"recipe": RECIPE | changes}


def fresh(card: dict = CLASSIFIER, seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(card)


def draw(x0, generator):
    return (torch.randn(x0.shape, generator=generator, device=x0.device),)


def loss_fn(model, x0, y, eps):
    return F.cross_entropy(model(x0 + 0.3 * eps), y, reduction="none")


def loss_with_dropout(model, x0, y, eps):
    return F.cross_entropy(F.dropout(model(x0 + 0.3 * eps)), y, reduction="none")


def validate(model):
    return {"loss": F.cross_entropy(model(data.to_model(IMAGES)), LABELS).item()}


def fit(
    folder,
    model=None,
    loss_fn=loss_fn,
    validate=validate,
    report=lambda history: None,
    card=card,
    images=IMAGES,
    **changes,
):
    """Train on 64 drawn images; return the network, which is a new one unless given, and the history."""
    model = fresh() if model is None else model
    return model, train.train(model, loss_fn, draw, (images, LABELS), validate, folder, card(**changes), report)


def a_run(loss_fn=loss_fn, **changes) -> train.Run:
    run_card = card(**changes)
    return train.Run(fresh(), loss_fn, draw, run_card | {"recipe": train.DEFAULTS | run_card["recipe"]})


def at_call(number: int, error: BaseException, function=lambda *_: None):
    """Return `function` that raises `error` when it is called for the `number`th time."""
    calls = itertools.count(1)

    def wrapped(*arguments):
        if next(calls) == number:
            raise error
        return function(*arguments)

    return wrapped


def losses(history: list[dict]) -> list[float]:
    return [point["loss"] for point in history]


def same_weights(one, other) -> bool:
    """Tell whether two networks, or two files of weights, are equal to the last bit."""
    one, other = (
        load_file(Path(x) / "weights.safetensors") if isinstance(x, str | Path) else x.state_dict()
        for x in (one, other)
    )
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def flat(model) -> torch.Tensor:
    """All parameters in a row."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, list[dict]]:
    """The folder and the history of a training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, fit(folder)[1]


# Learning


def test_the_loss_falls_on_64_images_in_30_steps(tmp_path):
    schedule = Schedule(cosine_beta(50))
    unet = {"network": "unet.UNet", "arguments": {"width": 8}}
    unet["recipe"] = {"steps": 30, "batch_size": 32, "every": 10, "warmup": 5, "lr": 5e-3}

    def loss(model, x0, y, t, eps):
        return simple_loss(model, x0, None, t, eps, schedule)

    check = partial(validation_loss, x0=data.to_model(IMAGES), y=None, schedule=schedule)
    model = fresh(unet)
    before = check(model)["loss"]
    history = train.train(model, loss, partial(draw_noise, schedule=schedule), (IMAGES, LABELS), check, tmp_path, unet)
    assert history[-1]["loss"] < 0.85 * history[0]["loss"]
    assert check(model.eval())["loss"] < 0.85 * before


def test_the_history_has_a_point_at_each_stride_and_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "REPORT_EVERY", 3)
    _, history = fit(tmp_path, steps=10)
    assert [point["step"] for point in history] == [3, 4, 6, 8, 9, 10]
    assert [point["step"] for point in history if "validation" in point] == [4, 8, 10]


def test_a_point_is_the_mean_loss_of_the_steps_since_the_last(tmp_path):
    seen = []

    def watched(*arguments):
        loss = loss_fn(*arguments)
        seen.append(loss.mean().item())
        return loss

    _, history = fit(tmp_path, loss_fn=watched, steps=10)
    expected = [sum(part) / len(part) for part in (seen[:4], seen[4:8], seen[8:])]
    assert losses(history) == pytest.approx(expected, rel=1e-6)


def test_report_sees_the_history_grow_by_one_point_at_a_time(tmp_path):
    lengths = []
    _, history = fit(tmp_path, report=lambda history: lengths.append(len(history)))
    assert lengths == [1, 2, 3] and len(history) == 3


def test_the_seed_of_the_recipe_decides_the_numbers(tmp_path, whole):
    again, _ = fit(tmp_path / "again")
    _, other = fit(tmp_path / "other", seed=1)
    assert same_weights(tmp_path / "again", whole[0]) and same_weights(again, load_pretrained(whole[0]))
    assert losses(other) != losses(whole[1])


def test_training_does_not_seed_the_global_generator(tmp_path):
    after = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        fit(tmp_path / str(seed))
        after.append(torch.rand(3))
    assert not torch.equal(*after)


@pytest.mark.parametrize("validation, best", [([3, 1, 2], 1), ([1, 2, 3], 0), ([3, 2, 1], 2), ([1, 1, 1], 2)])
def test_the_averaged_weights_of_the_lowest_validation_loss_are_kept(tmp_path, validation, best):
    seen = []

    def scripted(model):
        seen.append(copy.deepcopy(model))
        return {"loss": validation[len(seen) - 1]}

    model, history = fit(tmp_path, validate=scripted)
    assert same_weights(model, seen[best]) and same_weights(tmp_path, seen[best])
    assert read_card(tmp_path)["history"] == history[: best + 1] and history[best]["step"] == 4 * (best + 1)
    assert history[best]["validation"] == {"loss": validation[best]}


def test_validation_sees_the_averaged_weights_in_eval_mode_without_gradients(tmp_path):
    modes = []

    def watched(model):
        modes.append((model.training, torch.is_grad_enabled()))
        return validate(model)

    fit(tmp_path, validate=watched)
    assert modes == [(False, False)] * 3


def test_the_card_tells_the_whole_recipe_and_how_it_went(whole, monkeypatch):
    found = read_card(whole[0])
    assert found["recipe"] == train.DEFAULTS | RECIPE
    assert found["network"] == "classifier.Classifier" and found["arguments"] == {"width": 2}
    assert found["history"] == whole[1], "the last point is the best"
    assert found["seconds"] >= 0 and found["device"]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("end", ["finished", "interrupted", "not finite"])
def test_the_network_is_left_in_the_mode_it_was_in(tmp_path, training, end):
    errors = {"finished": None, "interrupted": KeyboardInterrupt(), "not finite": FloatingPointError()}
    model = fresh().train(training)
    modes = []

    def watched(model, *arguments):
        modes.append(model.training)
        return loss_fn(model, *arguments)

    with contextlib.suppress(FloatingPointError):
        fit(tmp_path, model, watched, report=at_call(2, errors[end]) if errors[end] else lambda history: None)
    assert model.training is training and all(modes)


# One step


@pytest.mark.parametrize("ema_decay", [0.999, 0.3])
def test_the_average_follows_its_recursion(ema_decay):
    run, expected = a_run(ema_decay=ema_decay), None
    for step in range(1, 8):
        run.train_step(*run.next_batch(IMAGES, LABELS))
        current = flat(run.plain)
        decay = min(ema_decay, (1 + step) / (10 + step))
        expected = current if step == 1 else decay * expected + (1 - decay) * current
        assert_close(flat(run.ema.module), expected, rtol=1e-6, atol=1e-7)
    assert not torch.equal(expected, current)


def test_an_average_with_decay_0_is_the_network():
    run = a_run(ema_decay=0.0)
    for _ in range(3):
        run.train_step(*run.next_batch(IMAGES, LABELS))
        assert same_weights(run.ema.module, run.plain)


def test_buffers_are_copied_and_never_averaged():
    run = a_run()
    before = {name: buffer.clone() for name, buffer in run.plain.named_buffers()}
    for _ in range(3):
        run.train_step(*run.next_batch(IMAGES, LABELS))
        buffers = dict(run.plain.named_buffers())
        assert buffers and not any(torch.equal(buffers[name], before[name]) for name in before)
        assert all(torch.equal(buffer, buffers[name]) for name, buffer in run.ema.module.named_buffers())


def test_the_learning_rate_rises_to_its_peak_and_ends_near_0():
    curve = [train.learning_rate(step, 1000, 100) for step in range(1000)]
    assert curve[0] == 0.01 and curve[49] == 0.5 and curve[99] == curve[100] == max(curve) == 1
    assert curve[550] == pytest.approx(0.5) and 0 < curve[999] < 1e-5
    assert all(b > a for a, b in itertools.pairwise(curve[:100]))
    assert all(b < a for a, b in itertools.pairwise(curve[100:]))


@pytest.mark.parametrize("cycles", [1, 3])
@pytest.mark.parametrize("steps, warmup", [(1, 0), (1, 1), (5, 5), (5, 100), (5, 1)])
def test_the_learning_rate_stays_between_0_and_1_in_short_trainings(steps, warmup, cycles):
    assert all(0 < train.learning_rate(step, steps, warmup, cycles) <= 1 for step in range(steps))


@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("cycles, length", [(1, 60), (3, 20), (4, 7), (7, 3)])
def test_cycles_are_the_warm_restarts_of_pytorch(cycles, length, floor):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=length, eta_min=floor)
    expected = []
    for _ in range(cycles * length):
        expected += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    found = [train.learning_rate(step, cycles * length, 0, cycles, floor) for step in range(cycles * length)]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_each_cycle_starts_at_the_peak_and_a_single_one_is_half_a_cosine():
    curve = [train.learning_rate(step, 1100, 100, 4) for step in range(1100)]
    assert [step for step in range(100, 1100) if curve[step] == 1] == [100, 350, 600, 850]
    assert curve[:100] == [train.learning_rate(step, 1100, 100) for step in range(100)]
    assert all(b < a for k in range(4) for a, b in itertools.pairwise(curve[100 + 250 * k : 350 + 250 * k]))
    for step in range(100, 1100):
        assert train.learning_rate(step, 1100, 100) == pytest.approx((1 + math.cos(math.pi * (step - 100) / 1000)) / 2)


def test_the_learning_rate_falls_to_the_floor_which_is_0_unless_told_otherwise():
    """What lies between floor and peak is what lay between 0 and peak, and the rise stays as it was."""
    plain = [train.learning_rate(step, 1000, 100) for step in range(1000)]
    at_0, raised = ([train.learning_rate(step, 1000, 100, floor=floor) for step in range(1000)] for floor in (0, 0.1))
    assert plain == at_0 and train.DEFAULTS["floor"] == 0
    assert raised[:100] == plain[:100] and raised[100] == 1 and raised[550] == pytest.approx(0.55)
    assert raised[999] == pytest.approx(0.1, abs=1e-5) and min(raised[100:]) == raised[999] > 0.1
    assert raised[100:] == pytest.approx([0.1 + 0.9 * share for share in plain[100:]], rel=1e-12)


@pytest.mark.parametrize("cycles, floor", [(1, 0.0), (3, 0.0), (1, 0.1), (3, 0.5)])
def test_each_step_is_taken_with_its_learning_rate(cycles, floor):
    run = a_run(lr=0.02, cycles=cycles, floor=floor)
    for step in range(8):
        run.train_step(*run.next_batch(IMAGES, LABELS))
        (group,) = run.optimizer.param_groups
        assert group["lr"] == 0.02 * train.learning_rate(step, 12, 3, cycles, floor)


def test_weight_decay_comes_from_the_recipe():
    (group,) = a_run(weight_decay=0.07).optimizer.param_groups
    assert group["weight_decay"] == 0.07


def gradient(run: train.Run) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in run.plain.parameters()])


def test_clipping_limits_a_large_gradient_and_leaves_a_small_one():
    large, small = a_run(lambda *arguments: 1000 * loss_fn(*arguments)), a_run(clip=1e9)
    for run in (large, small):
        run.train_step(*run.next_batch(IMAGES, LABELS))
    assert small.recipe["clip"] > 1000 * gradient(small).norm() > 1000 * large.recipe["clip"] / 100
    assert gradient(large).norm().item() == pytest.approx(1, rel=1e-4)
    assert_close(gradient(large), gradient(small) / gradient(small).norm(), rtol=1e-3, atol=1e-5)


def test_gradients_do_not_add_up_over_steps():
    run = a_run(clip=1e9, lr=0.0)
    x0, y = run.next_batch(IMAGES, LABELS)
    run.draw = lambda x0, generator: (torch.zeros_like(x0),)
    run.train_step(x0, y)
    first = gradient(run)
    run.train_step(x0, y)
    assert_close(gradient(run), first)


NUMBERED = torch.arange(100, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 28, 28)


def shown(run: train.Run, steps: int) -> list[list[int]]:
    """The numbers of the images of each batch."""
    found = []
    for _ in range(steps):
        x0, y = run.next_batch(NUMBERED, torch.arange(100))
        assert torch.equal(x0, data.to_model(NUMBERED)[y]), "a label stays with its image"
        found.append(y.tolist())
        run.step += 1
    return found


def test_an_epoch_shows_each_image_at_most_once_and_the_next_one_is_reshuffled():
    batches = shown(a_run(), 18)  # six batches of 16 fit into 100 images
    epochs = [list(itertools.chain(*batches[start : start + 6])) for start in (0, 6, 12)]
    assert all(len(epoch) == len(set(epoch)) == 96 for epoch in epochs)
    assert all(one != other for one, other in itertools.combinations(epochs, 2))
    assert len(set(itertools.chain(*epochs))) == 100, "what one epoch leaves out another shows"


def test_the_batches_depend_on_the_seed_and_the_step_alone():
    batches = shown(a_run(), 18)
    assert shown(a_run(), 18) == batches != shown(a_run(seed=1), 18)
    later = a_run()
    later.step = 10
    assert shown(later, 8) == batches[10:]


def test_the_noise_depends_on_the_seed_and_goes_on_from_step_to_step():
    seen = []

    def noted(x0, generator):
        seen.append(*draw(x0, generator))
        return seen[-1:]

    for seed in (0, 1):
        run = a_run(seed=seed)
        run.draw = noted
        for _ in range(2):
            run.train_step(*run.next_batch(IMAGES, LABELS))
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(seen, 2))


def test_floating_point_data_are_taken_as_they_are():
    """Latents, for example: of another shape, and not between -1 and 1."""
    latents = 300 * torch.randn(100, 4, 7, 7, generator=torch.Generator().manual_seed(0))
    run = a_run()
    for _ in range(6):
        x0, y = run.next_batch(latents, torch.arange(100))
        assert x0.dtype == torch.float32 and torch.equal(x0, latents[y])
        run.step += 1


def test_images_that_were_converted_before_train_the_same_network(tmp_path, whole):
    _, history = fit(tmp_path, images=data.to_model(IMAGES))
    assert same_weights(tmp_path, whole[0]) and history == whole[1]


def test_a_batch_may_be_as_large_as_the_data():
    (batch,) = shown(a_run(batch_size=100), 1)
    assert sorted(batch) == list(range(100))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_processes_share_a_batch_without_gap_or_overlap(processes):
    parts = []
    for index in range(processes):
        accelerator = SimpleNamespace(num_processes=processes, process_index=index)
        parts.append(train.Run.share(SimpleNamespace(accelerator=accelerator), torch.arange(16)))
    assert torch.cat(parts).tolist() == list(range(16)) and {len(part) for part in parts} == {16 // processes}


@pytest.mark.parametrize(
    "gpu, bf16, expected", [(False, True, "no"), (False, False, "no"), (True, True, "bf16"), (True, False, "fp16")]
)
def test_the_precision_is_one_that_the_machine_has_in_hardware(monkeypatch, gpu, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or bf16)
    assert best_precision() == expected


@pytest.fixture
def half_precision(monkeypatch):
    """Train in bf16, as on a GPU. Accelerate keeps the precision for the whole process, hence the resets."""
    monkeypatch.setattr(train, "best_precision", lambda: "bf16")
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def test_half_precision_learns_goes_on_and_keeps_float32_weights(half_precision, tmp_path, whole):
    _, history = fit(tmp_path / "whole")
    assert losses(history) != losses(whole[1])
    assert losses(history) == pytest.approx(losses(whole[1]), rel=0.05)
    fit(tmp_path / "parts", report=at_call(1, KeyboardInterrupt()))
    model, parts = fit(tmp_path / "parts")
    assert same_weights(tmp_path / "parts", tmp_path / "whole") and parts == history
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_same_network_given_again_goes_on_in_half_precision_too(half_precision, tmp_path):
    fit(tmp_path / "whole")
    model, _ = fit(tmp_path / "parts", report=at_call(1, KeyboardInterrupt()))
    fit(tmp_path / "parts", model)
    assert same_weights(tmp_path / "parts", tmp_path / "whole")


def test_a_network_trained_in_half_precision_says_the_same_as_the_one_loaded(half_precision, tmp_path):
    model, _ = fit(tmp_path)
    x0 = data.to_model(IMAGES)
    assert torch.equal(model.eval()(x0), load_pretrained(tmp_path)(x0))


# Stopping and going on


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_interrupted_and_resumed_is_bit_for_bit_the_uninterrupted_training(tmp_path, whole, stop, capsys):
    model, history = fit(tmp_path, report=at_call(stop, KeyboardInterrupt()))
    assert len(history) == stop and f"Stopped at step {4 * stop} of 12" in capsys.readouterr().out
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 4 * stop
    torch.rand(7)  # what else the program does must not matter
    model, history = fit(tmp_path)
    assert same_weights(tmp_path, whole[0]) and same_weights(model, load_pretrained(whole[0]))
    assert history == whole[1]


@pytest.mark.parametrize("stop", [5, 6, 8, 11])
def test_stopped_in_the_middle_of_a_stride_goes_on_from_its_start(tmp_path, whole, stop):
    _, history = fit(tmp_path, loss_fn=at_call(stop, KeyboardInterrupt(), loss_fn))
    assert history == whole[1][: (stop - 1) // 4]
    _, history = fit(tmp_path)
    assert same_weights(tmp_path, whole[0]) and history == whole[1]


@pytest.mark.parametrize("moment", ["validate", "remember"])
def test_stopped_at_the_end_of_a_stride_goes_on_from_its_start(tmp_path, whole, monkeypatch, moment):
    stop = partial(at_call, 2, KeyboardInterrupt())
    if moment == "validate":
        _, history = fit(tmp_path, validate=stop(validate))
    else:
        with monkeypatch.context() as patch:
            patch.setattr(train.Run, "remember", at_call(3, KeyboardInterrupt(), train.Run.remember))
            _, history = fit(tmp_path)
    assert history == whole[1][:1]
    _, history = fit(tmp_path)
    assert same_weights(tmp_path, whole[0]) and history == whole[1]


def test_stopped_twice_in_a_row_leaves_the_last_checkpoint(tmp_path, whole, monkeypatch):
    model = fresh().eval()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints.os, "replace", at_call(7, KeyboardInterrupt(), os.replace))
        fit(tmp_path, model, report=at_call(2, KeyboardInterrupt()))
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 8 and written(tmp_path) == WRITTEN
    assert not model.training
    _, history = fit(tmp_path)
    assert same_weights(tmp_path, whole[0]) and history == whole[1]


def test_stopped_between_two_checkpoints_keeps_what_is_done_since_and_validates_it(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(train, "REPORT_EVERY", 3)
    model, stopped = fit(tmp_path, report=at_call(3, KeyboardInterrupt()))
    assert stopped[-1]["step"] == 6 and stopped[-1]["validation"] == validate(model.eval())
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 6
    _, history = fit(tmp_path)
    assert [point["step"] for point in history] == [3, 4, 6, 8, 9, 12] and same_weights(tmp_path, whole[0])


def test_stopped_again_and_again_ends_in_the_same_numbers(tmp_path, whole):
    for _ in range(3):
        fit(tmp_path, report=at_call(1, KeyboardInterrupt()))
    _, history = fit(tmp_path)
    assert same_weights(tmp_path, whole[0]) and history == whole[1]


def test_a_stopped_network_has_the_averaged_weights(tmp_path):
    seen = []

    def watched(model):
        seen.append(copy.deepcopy(model))
        return validate(model)

    model, _ = fit(tmp_path, validate=watched, loss_fn=at_call(10, KeyboardInterrupt(), loss_fn))
    assert len(seen) == 2 and same_weights(model, seen[1])


@pytest.mark.parametrize("point, step", [(0, 0), (1, 3), (2, 4), (3, 6), (4, 8)])
def test_a_stopped_network_has_the_buffers_that_validation_measured_with_the_weights_it_saw(
    tmp_path, monkeypatch, point, step
):
    """Validation may measure what lies with the weights. Steps 4 and 8 are validated anyway, the others at the end."""
    monkeypatch.setattr(train, "REPORT_EVERY", 3)
    seen = []

    def measuring(model):
        next(model.buffers()).fill_(100 + len(seen))
        seen.append(copy.deepcopy(model))
        return validate(model)

    stop = {"report": at_call(point, KeyboardInterrupt())} if point else {"loss_fn": at_call(1, KeyboardInterrupt())}
    model, history = fit(tmp_path, validate=measuring, **stop)
    assert history[-1]["step"] == step and "validation" in history[-1]
    assert same_weights(model, seen[-1]) and (next(model.buffers()) == 99 + len(seen)).all()
    assert len(seen) == {0: 1, 3: 1, 4: 1, 6: 2, 8: 2}[step]


def test_a_finished_network_has_the_buffers_that_validation_measured_where_it_was_best(tmp_path):
    measured = itertools.count(1)

    def measuring(model):
        number = next(measured)
        next(model.buffers()).fill_(100 + number)
        return {"loss": [3.0, 1.0, 2.0][number - 1]}

    model, _ = fit(tmp_path, validate=measuring)
    assert same_weights(model, tmp_path) and (next(model.buffers()) == 102).all()


def test_a_network_with_dropout_goes_on_to_the_same_numbers(tmp_path):
    torch.manual_seed(7)
    _, history = fit(tmp_path / "whole", loss_fn=loss_with_dropout)
    torch.manual_seed(7)
    fit(tmp_path / "parts", loss_fn=loss_with_dropout, report=at_call(1, KeyboardInterrupt()))
    torch.manual_seed(8)
    _, parts = fit(tmp_path / "parts", loss_fn=loss_with_dropout)
    assert same_weights(tmp_path / "parts", tmp_path / "whole") and parts == history


class Killed(BaseException):
    """What no handler catches, as if the process ended here."""


def test_killed_at_a_point_goes_on_from_the_last_checkpoint(tmp_path, whole):
    with pytest.raises(Killed):
        fit(tmp_path, report=at_call(2, Killed()))
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 8
    _, history = fit(tmp_path)
    assert same_weights(tmp_path, whole[0]) and history == whole[1]


def test_a_checkpoint_from_before_a_recipe_had_all_its_entries_goes_on_with_their_defaults(tmp_path, whole):
    with pytest.raises(Killed):
        fit(tmp_path, report=at_call(2, Killed()))
    state = torch.load(tmp_path / "checkpoint.pt")
    del state["card"]["recipe"]["floor"]
    torch.save(state, tmp_path / "checkpoint.pt")
    _, history = fit(tmp_path)
    assert same_weights(tmp_path, whole[0]) and history == whole[1]


@pytest.mark.parametrize("place", range(1, 10))
def test_killed_while_writing_any_of_its_files_it_goes_on_to_the_same_numbers(tmp_path, whole, monkeypatch, place):
    """Each checkpoint is three files: weights, card, checkpoint. A kill comes before one takes its name."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoints.os, "replace", at_call(place, Killed(), os.replace))
        fit(tmp_path)
    _, history = fit(tmp_path)
    assert same_weights(tmp_path, whole[0]) and history == whole[1] and written(tmp_path) == WRITTEN


@pytest.mark.parametrize("place", range(1, 10))
def test_stopped_while_writing_any_of_its_files_it_goes_on_to_the_same_numbers(tmp_path, whole, monkeypatch, place):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, "replace", at_call(place, KeyboardInterrupt(), os.replace))
        fit(tmp_path)
    _, history = fit(tmp_path)
    assert same_weights(tmp_path, whole[0]) and history == whole[1] and written(tmp_path) == WRITTEN


@pytest.mark.parametrize("stop", [9, 11])
def test_stopped_soon_after_going_on_keeps_what_was_there(tmp_path, whole, stop):
    fit(tmp_path, report=at_call(2, KeyboardInterrupt()))
    fit(tmp_path, loss_fn=at_call(stop - 8, KeyboardInterrupt(), loss_fn))
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 8
    _, history = fit(tmp_path)
    assert same_weights(tmp_path, whole[0]) and history == whole[1]


def test_stopped_before_the_first_point_leaves_the_network_as_it_was_and_says_how_good_that_is(tmp_path, whole):
    model, history = fit(tmp_path, loss_fn=at_call(2, KeyboardInterrupt(), loss_fn))
    assert same_weights(model, fresh())
    assert history == [{"step": 0, "validation": validate(fresh().eval())}]
    _, history = fit(tmp_path)
    assert same_weights(tmp_path, whole[0]) and history == whole[1]


def test_a_finished_training_started_again_changes_nothing(tmp_path, whole):
    fit(tmp_path)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    model, history = fit(tmp_path, fresh(seed=5), loss_fn=at_call(1, AssertionError("it takes a step"), loss_fn))
    assert history == whole[1] and same_weights(model, load_pretrained(whole[0]))
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before


def test_the_seconds_of_both_parts_are_added(tmp_path, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: 10 * next(clock)))
    fit(tmp_path, report=at_call(2, KeyboardInterrupt()))
    assert torch.load(tmp_path / "checkpoint.pt")["seconds"] == 20
    fit(tmp_path, validate=lambda model: {"loss": 0.0})
    assert torch.load(tmp_path / "checkpoint.pt")["seconds"] == 30 == read_card(tmp_path)["seconds"]


def test_the_scale_of_half_precision_is_part_of_a_checkpoint():
    one, other = a_run(), a_run()
    for run, scale in ((one, 1024.0), (other, 8.0)):
        run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    other.load_state(one.state())
    assert other.accelerator.scaler.get_scale() == 1024


@pytest.mark.parametrize("there, here", [(True, False), (False, True)])
def test_a_checkpoint_goes_on_where_precision_is_another(there, here):
    """Half precision has a scale that float32 and bfloat16 have not."""
    one, other = a_run(), a_run()
    for run, has_scale in ((one, there), (other, here)):
        run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if has_scale else None
    other.load_state(one.state())
    assert not here or other.accelerator.scaler.get_scale() == 8


@pytest.mark.parametrize("gpus", [1, 8])
def test_a_checkpoint_of_a_machine_with_gpus_goes_on_here_to_the_same_numbers(tmp_path, whole, gpus):
    """Also one from before each step had random numbers of its own: it holds a generator, of another size on a GPU."""
    fit(tmp_path, report=at_call(1, KeyboardInterrupt()))
    state = torch.load(tmp_path / "checkpoint.pt")
    state["generator"] = torch.zeros(16, dtype=torch.uint8)
    state["rng"] = state["rng"][:1] + gpus * [torch.zeros(16, dtype=torch.uint8)]
    state["scaler"] = torch.amp.GradScaler("cpu").state_dict()
    torch.save(state, tmp_path / "checkpoint.pt")
    model, history = fit(tmp_path)
    assert history == whole[1] and same_weights(model, load_pretrained(whole[0]))


@pytest.mark.parametrize("broken", ["missing", "other shape"])
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_sentence(tmp_path, broken):
    fit(tmp_path, report=at_call(1, KeyboardInterrupt()))
    state = torch.load(tmp_path / "checkpoint.pt")
    state["model"] = fresh(CLASSIFIER | {"arguments": {"width": 4}}).state_dict()
    if broken == "missing":
        del state["model"]
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint\.pt does not fit .*; name another folder, or delete the file"):
        fit(tmp_path)


def test_the_random_numbers_of_a_step_are_its_own():
    """Whatever was drawn before: the third step alone is the third of three; another step or seed draws others."""
    drawn = []

    def noted(x0, generator):
        drawn.append(torch.randn(4, generator=generator))
        return (torch.zeros_like(x0),)

    for seed, first in ((0, 0), (0, 2), (1, 2)):
        run = train.Run(
            fresh(), loss_fn, noted, card() | {"recipe": train.DEFAULTS | card()["recipe"] | {"seed": seed}}
        )
        run.step = first
        while run.step < 3:
            run.train_step(*run.next_batch(IMAGES, LABELS))
    *three, third, other = drawn
    assert torch.equal(three[2], third) and not torch.equal(other, third) and not torch.equal(three[0], three[1])


def test_validation_is_in_float32_where_training_is_not(monkeypatch):
    """The spread of latents is divided by later: in bfloat16 it would be off by 0.4 %."""
    monkeypatch.setattr(train, "best_precision", lambda: "bf16")
    AcceleratorState._reset_state()
    x0 = data.to_model(IMAGES)
    try:
        run = a_run()
        found, trained = run.validation(lambda model: model(x0)), run.plain.eval()(x0)
    finally:
        AcceleratorState._reset_state()
    expected = fresh().eval()(x0)
    assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(trained, expected, atol=1e-5)


def test_no_partial_files_are_left(whole):
    assert written(whole[0]) == WRITTEN


# Real signals, in processes of their own. Each costs seconds, most of them for imports.

SCRIPT = """
import sys, time, torch
from functools import partial
from fmdiff_helpers import recipes, schedules
from fmdiff_helpers.checkpoints import build
from fmdiff_helpers.data import to_model
from fmdiff_helpers.diffusion import draw_noise, simple_loss, validation_loss
from fmdiff_helpers.standin import draw_garments
from fmdiff_helpers.train import train

def run(folder, seconds=0.0, steps=24):
    schedule = schedules.Schedule(schedules.cosine_beta(50))
    card = {"network": "unet.UNet", "arguments": {"width": 8, "mults": [1]}}
    card["recipe"] = {"steps": steps, "every": 4, "batch_size": 16, "warmup": 4}
    images, labels = draw_garments(64)
    torch.manual_seed(0)
    model = build(card)
    loss = lambda model, x0, y, t, eps: simple_loss(model, x0, None, t, eps, schedule)
    validate = partial(validation_loss, x0=to_model(images), y=None, schedule=schedule)
    draw = partial(draw_noise, schedule=schedule)
    return train(model, loss, draw, (images, labels), validate, folder, card, lambda history: time.sleep(seconds))

if __name__ == "__main__":
    torch.set_num_threads(1)
    history = run(sys.argv[1], float(sys.argv[2]))
"""


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def start(*command) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [str(part) for part in command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def stop_when_there_is(path: Path, process: subprocess.Popen, number: int) -> tuple[int, str]:
    """Wait for a file, send the signal, return exit code and output."""
    end = time.monotonic() + 600
    while not path.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=600)
    assert path.exists(), output
    return process.returncode, output


def test_a_killed_process_goes_on_to_the_same_numbers(tmp_path, script):
    folder = tmp_path / "killed"
    process = start(sys.executable, script, folder, 0.5)
    code, output = stop_when_there_is(folder / "checkpoint.pt", process, signal.SIGKILL)
    assert code == -signal.SIGKILL, output
    assert torch.load(folder / "checkpoint.pt")["step"] < 24
    run = runpy.run_path(str(script))["run"]
    history, whole = run(folder), run(tmp_path / "whole")
    assert same_weights(folder, tmp_path / "whole") and history == whole


def test_the_command_killed_and_given_again_ends_in_the_same_numbers(tmp_path, real_raw):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = ["train", "unet", "--profile", "smoke", "--batch-size", "32", "--out"]
    process = start(BIN / "fmdiff", *command, killed)
    code, output = stop_when_there_is(killed / "checkpoint.pt", process, signal.SIGKILL)
    assert code == -signal.SIGKILL, output
    assert torch.load(killed / "checkpoint.pt")["step"] < 60
    again = start(BIN / "fmdiff", *command, killed)
    output, _ = again.communicate(timeout=600)
    assert again.returncode == 0 and f"{killed}: validation loss" in output
    result = CliRunner().invoke(cli.app, [*command, str(whole)], catch_exceptions=False)
    assert result.exit_code == 0
    assert same_weights(killed, whole) and not [path for path in written(killed) if path not in WRITTEN]


COMMAND = """
import signal

from fmdiff_helpers import recipes
from fmdiff_helpers.cli import app
from fmdiff_helpers.standin import draw_garments

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
recipes.NUM_VALIDATION = 32
recipes.load_fashion_mnist = lambda split: draw_garments(96)
recipes.CARDS["classifier"]["arguments"]["width"] = 2
recipes.PROFILES["classifier"]["smoke"] = {"steps": 1_000_000, "every": 20}
app()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_a_request_to_end_leave_a_checkpoint_and_130(tmp_path, number):
    (tmp_path / "command.py").write_text(COMMAND)
    command = ["train", "classifier", "--profile", "smoke", "--batch-size", "16", "--out", tmp_path / "run"]
    process = start(sys.executable, tmp_path / "command.py", *command)
    code, output = stop_when_there_is(tmp_path / "run" / "checkpoint.pt", process, number)
    assert code == 130 and "Stopped at step" in output and "Traceback" not in output, output
    step = torch.load(tmp_path / "run" / "checkpoint.pt")["step"]
    assert step >= 20 and f"Stopped at step {step} of 1000000" in output
    assert written(tmp_path / "run") == WRITTEN


# The command in this process, on drawn images


@pytest.fixture
def small_command(tmp_path, monkeypatch):
    """`fmdiff train` on 96 drawn images, 32 of them for validation, writing to tmp_path / "run"."""
    monkeypatch.setattr(recipes, "NUM_VALIDATION", 32)
    monkeypatch.setattr(recipes, "load_fashion_mnist", lambda split: draw_garments(96))
    monkeypatch.setitem(recipes.CARDS, "classifier", recipes.CARDS["classifier"] | {"arguments": {"width": 2}})
    steps = {"steps": 12, "every": 4}
    monkeypatch.setitem(recipes.PROFILES, "classifier", {"smoke": steps, "full": steps})
    command = ["train", "classifier", "--profile", "smoke", "--batch-size", "16", "--out", str(tmp_path / "run")]
    return lambda *more: CliRunner().invoke(cli.app, [*command, *more], catch_exceptions=False)


def test_the_command_says_the_validation_loss_and_what_to_do_next(small_command, tmp_path):
    result = small_command()
    assert result.exit_code == 0
    assert f"{tmp_path / 'run'}: validation loss" in result.stdout and "after 12 steps" in result.stdout
    assert written(tmp_path / "run") == WRITTEN


def test_ctrl_c_before_the_first_point_ends_the_command_with_130_too(small_command, monkeypatch):
    monkeypatch.setattr(recipes, "classifier_loss", at_call(2, KeyboardInterrupt(), recipes.classifier_loss))
    assert small_command().exit_code == 130


def test_a_command_that_cannot_be_carried_out_fails_in_one_line(small_command):
    assert small_command().exit_code == 0
    for arguments, words in (
        (("--seed", "1"), "is another training (seed: 0 there, 1 now)"),
        (("--batch-size", "99"), "99"),
    ):
        result = small_command(*arguments)
        assert result.exit_code == 2 and result.stderr.count("fmdiff: ") == 1 and words in result.stderr


# What a checkpoint holds of the network


def averaged(folder: Path) -> dict[str, torch.Tensor]:
    """What the file of a checkpoint says of the averaged weights, by the network's own names."""
    state = torch.load(folder / "checkpoint.pt")["ema"]
    return {name[len("module.") :]: value for name, value in state.items() if name.startswith("module.")}


@pytest.mark.parametrize("kind", [str, Path])
def test_a_checkpoint_is_loaded_with_the_averaged_weights_as_they_are_by_now(tmp_path, kind):
    """Neither the weights as they are trained, nor the best ones, which here are the first."""
    seen = []

    def ever_worse(model):
        seen.append(copy.deepcopy(model))
        return {"loss": len(seen)}

    fit(tmp_path, validate=ever_worse)
    found, _ = train.load_checkpoint(kind(tmp_path))
    assert same_weights(found, seen[-1]) and not same_weights(found, load_pretrained(tmp_path))
    raw, average, state = torch.load(tmp_path / "checkpoint.pt")["model"], averaged(tmp_path), found.state_dict()
    assert state.keys() == raw.keys() == average.keys()
    assert all(torch.equal(value, average[name]) for name, value in state.items())
    assert not any(torch.equal(value, raw[name]) for name, value in found.named_parameters())


def test_the_checkpoint_of_a_stopped_training_is_loaded_as_far_as_it_has_come(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "REPORT_EVERY", 3)
    model, history = fit(tmp_path, report=at_call(3, KeyboardInterrupt()))
    found, _ = train.load_checkpoint(tmp_path)
    assert history[-1]["step"] == 6 and same_weights(found, model)


def test_a_network_from_a_checkpoint_is_in_eval_mode_without_gradients_and_says_what_the_average_says(whole):
    found, _ = train.load_checkpoint(whole[0])
    assert not any(module.training for module in found.modules())
    assert not any(parameter.requires_grad for parameter in found.parameters())
    network = fresh(seed=3).eval()
    network.load_state_dict(averaged(whole[0]))
    assert torch.equal(found(data.to_model(IMAGES)), network(data.to_model(IMAGES)))


def test_the_card_of_a_checkpoint_is_that_of_the_training_with_its_whole_recipe_and_how_it_went(whole):
    _, found = train.load_checkpoint(whole[0])
    state, device = torch.load(whole[0] / "checkpoint.pt"), train.device_name(train.join().device)
    went = {"device": device, "seconds": round(state["seconds"]), "history": found["history"]}
    assert found == CLASSIFIER | {"recipe": train.DEFAULTS | RECIPE} | went
    assert found["history"] == [point for point in whole[1] if "validation" in point]


def test_buffers_that_validation_measured_are_loaded_with_a_checkpoint(tmp_path):
    measured = itertools.count(101)

    def measuring(model):
        next(model.buffers()).fill_(next(measured))
        return validate(model)

    fit(tmp_path, validate=measuring)
    assert (next(train.load_checkpoint(tmp_path)[0].buffers()) == 103).all()


def test_loading_a_checkpoint_leaves_the_callers_random_numbers_alone(whole):
    """Like `load_pretrained`: a training that is watched must not become another one."""
    before = torch.get_rng_state()
    train.load_checkpoint(whole[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_training_goes_on_while_its_checkpoint_is_looked_at(tmp_path, whole):
    _, history = fit(tmp_path, report=lambda history: train.load_checkpoint(tmp_path)[0].apply(torch.nn.Module.train))
    assert same_weights(tmp_path, whole[0]) and history == whole[1]


def test_a_folder_without_a_checkpoint_is_an_error_that_names_the_file(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"checkpoint\.pt"):
            train.load_checkpoint(folder)


def test_no_checkpoint_runs_code_when_it_is_only_looked_at(tmp_path):
    torch.save({"ema": Unpickled(tmp_path / "evidence"), "card": CLASSIFIER}, tmp_path / "checkpoint.pt")
    with pytest.raises(pickle.UnpicklingError):
        train.load_checkpoint(tmp_path)
    assert not (tmp_path / "evidence").exists()


# A loss with a memory


class Remembering(torch.nn.Module):
    """A loss that is weighed by the mean of all losses so far, and stops or breaks at a call."""

    def __init__(self, stop: int = 0, value: float = 1.0):
        super().__init__()
        self.register_buffer("mean", torch.tensor(1.0))
        self.register_buffer("count", torch.tensor(0))
        self.calls, self.stop, self.value = itertools.count(1), stop, value

    def forward(self, *arguments):
        loss, last = loss_fn(*arguments), next(self.calls) == self.stop
        self.count += 1
        self.mean += (loss.detach().mean() - self.mean) / self.count
        if last and self.value == 1:
            raise KeyboardInterrupt
        return loss / self.mean * (self.value if last else 1)


def same_memory(one, other) -> bool:
    return all(torch.equal(one[name], other[name]) for name in ("mean", "count"))


@pytest.mark.parametrize("stop", [2, 6, 8, 12])
@pytest.mark.parametrize("again", [False, True])
def test_a_loss_with_a_memory_goes_on_where_it_was(tmp_path, stop, again):
    """Interrupted in a stride, the memory goes back with the weights; the loss given again may be the same or new."""
    whole, stopped = Remembering(), Remembering(stop)
    _, expected = fit(tmp_path / "whole", loss_fn=whole)
    fit(tmp_path / "parts", loss_fn=stopped)
    kept = (stop - 1) // 4 * 4
    assert stopped.count == kept and torch.load(tmp_path / "parts" / "checkpoint.pt")["loss"]["count"] == kept
    resumed = stopped if again else Remembering()
    _, history = fit(tmp_path / "parts", loss_fn=resumed)
    assert same_weights(tmp_path / "parts", tmp_path / "whole") and history == expected
    assert whole.count == 12 and same_memory(resumed.state_dict(), whole.state_dict())
    states = [torch.load(tmp_path / name / "checkpoint.pt")["loss"] for name in ("parts", "whole")]
    assert same_memory(*states) and same_memory(states[0], whole.state_dict())


def test_a_loss_that_forgot_would_not_end_in_the_same_numbers(tmp_path):
    fit(tmp_path / "whole", loss_fn=Remembering())
    fit(tmp_path / "parts", loss_fn=Remembering(6))
    path = tmp_path / "parts" / "checkpoint.pt"
    torch.save(torch.load(path) | {"loss": Remembering().state_dict()}, path)
    fit(tmp_path / "parts", loss_fn=Remembering())
    assert not same_weights(tmp_path / "parts", tmp_path / "whole")


def test_after_a_loss_that_is_not_finite_its_memory_is_that_of_the_last_good_weights(tmp_path):
    loss = Remembering(7, float("nan"))
    with pytest.raises(FloatingPointError, match="weights of step 4 again"):
        fit(tmp_path, loss_fn=loss)
    assert loss.count == 4


# What goes wrong


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_is_an_error_and_the_last_good_weights_are_back(tmp_path, value):
    good, calls = [], itertools.count(1)

    def breaks(*arguments):
        loss = loss_fn(*arguments)
        return loss + float(value) if next(calls) == 6 else loss  # whose gradients are finite

    model = fresh()
    with pytest.raises(
        FloatingPointError, match=rf"{value} .* after step 8; .* step 4 again. Lower lr, which is 0\.01"
    ):
        fit(tmp_path, model, breaks, report=lambda history: good.append(copy.deepcopy(model)))
    assert len(good) == 1 and same_weights(model, good[0])
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_weights_that_are_not_finite_are_an_error_even_where_the_loss_is(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "REPORT_EVERY", 2)
    calls = itertools.count(1)

    def breaks(model, x0, *arguments):
        slope = 0 * model(x0).sum(dim=1).mul(0).sqrt()  # 0, with a gradient of 0 / 0
        return loss_fn(model, x0, *arguments) + (slope if next(calls) == 6 else 0)

    model = fresh()
    with pytest.raises(FloatingPointError, match=r"after step 6; .* weights of step 4 again"):
        fit(tmp_path, model, breaks)
    assert flat(model).isfinite().all()


def test_after_a_loss_that_is_not_finite_the_last_checkpoint_still_works(tmp_path, whole):
    calls = itertools.count(1)
    with pytest.raises(FloatingPointError):
        fit(tmp_path, loss_fn=lambda *arguments: loss_fn(*arguments) * (float("nan") if next(calls) > 9 else 1))
    _, history = fit(tmp_path)
    assert same_weights(tmp_path, whole[0]) and history == whole[1]


def test_not_finite_soon_after_going_on_goes_back_to_where_it_went_on(tmp_path):
    fit(tmp_path, report=at_call(2, KeyboardInterrupt()))
    with pytest.raises(FloatingPointError, match="weights of step 8 again"):
        fit(tmp_path, loss_fn=lambda *arguments: loss_fn(*arguments) * float("nan"))


def test_a_validation_loss_that_is_not_finite_is_an_error(tmp_path):
    with pytest.raises(FloatingPointError):
        fit(tmp_path, validate=lambda model: {"loss": float("nan")})


def needs_memory(largest: int, seen: list | None = None):
    """Return a loss that runs out of memory on more than `largest` images."""

    def loss(model, x0, y, eps):
        if seen is not None:
            seen.append(len(x0))
        if len(x0) > largest:
            raise torch.OutOfMemoryError("out of memory")
        return loss_fn(model, x0, y, eps)

    return loss


@pytest.mark.parametrize("batch_size, largest, fits", [(64, 10, 8), (64, 32, 32), (24, 11, 6), (64, 1, 1)])
def test_out_of_memory_is_an_error_that_names_a_batch_that_fits(tmp_path, batch_size, largest, fits):
    with pytest.raises(MemoryError, match=rf"a batch of {batch_size} images .*batch_size={fits} does"):
        fit(tmp_path, loss_fn=needs_memory(largest), batch_size=batch_size)
    fit(tmp_path, loss_fn=needs_memory(largest), batch_size=fits)


def test_where_not_even_one_image_fits_no_batch_is_recommended(tmp_path):
    with pytest.raises(MemoryError) as error:
        fit(tmp_path, loss_fn=needs_memory(0))
    assert "batch_size=0" not in str(error.value)


def test_the_failed_step_gives_its_memory_back_before_smaller_batches_are_tried(tmp_path):
    big, alive = [], []

    def loss(model, x0, y, eps):
        alive.extend(tensor() is not None for tensor in big)
        if len(x0) == 16:
            activations = torch.zeros(1000)
            big.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("out of memory")
        return loss_fn(model, x0, y, eps)

    gc.collect()
    with pytest.raises(MemoryError):
        fit(tmp_path, loss_fn=loss)
    assert alive == [False]


@pytest.mark.parametrize(
    "recipe, words",
    [
        ({"steps": 5, "learning_rate": 1e-3}, r"\['learning_rate'\]; expected steps and any of batch_size, lr, warmup"),
        ({}, "steps is None"),
        ({"steps": 0}, "steps is 0; expected a whole number of at least 1"),
        ({"steps": -1}, "steps is -1"),
        ({"steps": 1.5}, r"steps is 1\.5"),
        ({"steps": "5"}, "steps is '5'"),
        ({"steps": 5, "batch_size": 0}, "batch_size is 0"),
        ({"steps": 5, "every": 0}, "every is 0"),
        ({"steps": 5, "batch_size": 65}, "batch_size is 65; expected at most the 64 images"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_an_error_that_names_it(tmp_path, recipe, words):
    with pytest.raises(ValueError, match=words):
        train.check_recipe(recipe, 64)
    with pytest.raises(ValueError, match=words):
        fit(tmp_path / "run", card=lambda: CLASSIFIER | {"recipe": {"batch_size": 16} | recipe})
    assert not (tmp_path / "run").exists()


def test_a_batch_that_the_processes_cannot_share_evenly_is_an_error(monkeypatch):
    monkeypatch.setattr(train, "join", lambda: SimpleNamespace(num_processes=3))
    assert train.check_recipe({"steps": 1, "batch_size": 12}, 64)["batch_size"] == 12
    with pytest.raises(ValueError, match=r"batch_size is 16; .* a multiple of the number of processes, 3"):
        train.check_recipe({"steps": 1, "batch_size": 16}, 64)


def test_a_recipe_is_filled_in_and_not_changed():
    recipe = {"steps": 5, "lr": 0.5}
    assert train.check_recipe(recipe, 128) == train.DEFAULTS | recipe
    assert recipe == {"steps": 5, "lr": 0.5}


def change_weight(content: bytes) -> bytes:
    """Change the first bit of the averaged head, whose bytes are in the file as they are."""
    state = torch.load(io.BytesIO(content))
    place = content.index(state["ema"]["module.head.weight"].numpy().tobytes())
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGES = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "the last byte missing": lambda content: content[:-1],
    "a bit changed": change_weight,
    "text": lambda content: b"<html>Please log in</html>",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_an_error_that_says_to_delete_it(tmp_path, whole, damage):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(damaged := DAMAGES[damage]((whole[0] / "checkpoint.pt").read_bytes()))
    with pytest.raises(ValueError, match=r"checkpoint\.pt is no checkpoint .*; delete it to start over"):
        fit(tmp_path)
    assert path.read_bytes() == damaged
    path.unlink()
    _, history = fit(tmp_path)
    assert history == whole[1]


@pytest.mark.parametrize("content", [{"weights": torch.zeros(3)}, [1, 2], torch.zeros(3)])
def test_another_file_of_torch_is_no_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="is no checkpoint"):
        fit(tmp_path)


def test_a_checkpoint_runs_no_code(tmp_path):
    torch.save(Unpickled(tmp_path / "evidence"), tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="is no checkpoint"):
        fit(tmp_path)
    assert not (tmp_path / "evidence").exists()


class Unpickled:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


OTHERS = {
    "a recipe": (card(lr=0.02), r"\(lr: 0\.01 there, 0\.02 now\)"),
    "two entries": (card(lr=0.02, steps=20), r"\(lr: 0\.01 there, 0\.02 now, steps: 12 there, 20 now\)"),
    "what was left out": (card(clip=2.0), r"\(clip: 1\.0 there, 2\.0 now\)"),
    "a network": (card() | {"arguments": {"width": 3}}, r"\(arguments: {'width': 2} there, {'width': 3} now\)"),
    "a schedule": (card() | {"schedule": {"T": 200}}, r"\(schedule: None there, {'T': 200} now\)"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_the_checkpoint_of_another_training_is_an_error_that_names_what_differs(tmp_path, whole, other):
    changed, words = OTHERS[other]
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(before := (whole[0] / "checkpoint.pt").read_bytes())
    model = fresh(changed)
    weights = copy.deepcopy(model)
    with pytest.raises(ValueError, match=words) as error:
        fit(tmp_path, model, card=lambda: changed)
    assert "name another folder, or delete the file to start over" in str(error.value)
    assert path.read_bytes() == before and written(tmp_path) == ["checkpoint.pt"] and same_weights(model, weights)


def test_what_only_the_checkpoint_has_is_named_too(tmp_path):
    fit(tmp_path, card=lambda: card() | {"schedule": {"T": 200}})
    with pytest.raises(ValueError, match="schedule"):
        fit(tmp_path)


def test_a_disk_that_is_full_is_an_error_and_the_checkpoint_before_stays(tmp_path, whole, monkeypatch):
    full = at_call(2, OSError(28, "No space left on device"), torch.save)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(torch, "save", full)
        fit(tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 4 and written(tmp_path) == WRITTEN
    _, history = fit(tmp_path)
    assert same_weights(tmp_path, whole[0]) and history == whole[1]


def test_a_folder_with_the_name_of_a_published_network_gets_its_own_weights_back(tmp_path, whole, monkeypatch):
    published = tmp_path / "published"
    published.mkdir()
    for ending in ("json", "safetensors"):
        (published / f"classifier.{ending}").write_bytes((whole[0] / f"weights.{ending}").read_bytes())
    monkeypatch.setattr(checkpoints, "PUBLISHED", published)
    monkeypatch.chdir(tmp_path)
    model, _ = fit("classifier", seed=1)
    assert same_weights(model, tmp_path / "classifier")
