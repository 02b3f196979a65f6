"""The claims of fmdiff_helpers.train: it learns, goes on to the same numbers after any stop, says what is wrong."""

import contextlib
import copy
import gc
import io
import itertools
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from small_training import (
    CLASSIFIER,
    IMAGES,
    RECIPE,
    WRITTEN,
    at_call,
    card,
    fit,
    flat,
    fresh,
    loss_fn,
    old_form,
    same_weights,
    validate,
)
from typer.testing import CliRunner

from fmdiff_helpers import cards, checkpoints, cli, data, endings, recipes, run, train
from fmdiff_helpers.cards import read_card
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.run import DEFAULTS
from fmdiff_helpers.standin import draw_garments


@pytest.fixture(scope="module", autouse=True)
def one_thread_of_the_processor(on_the_processor):
    """Calculate as the processes do that tests start: sums depend on the device and on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def no_signal_is_ignored():
    """Undo what nohup, or a shell's background job, has set for the tests."""
    numbers = [getattr(signal, name) for name in endings.NAMES if hasattr(signal, name)]
    ignored = [number for number in numbers if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


def losses(history: list[dict]) -> list[float]:
    return [point["loss"] for point in history]


def written(folder: Path) -> list[str]:
    """The files of a training, without those that keep other trainings out."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def read_checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, list[dict]]:
    """The folder and the history of a training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, fit(folder)[1]


@pytest.fixture
def goes_on(tmp_path, whole):
    """Return a check that the training in tmp_path goes on to the numbers of the one that nothing interrupted."""

    def check():
        model, history = fit(tmp_path)
        assert same_weights(tmp_path, whole[0]) and same_weights(model, load_pretrained(whole[0]))
        assert history == whole[1] and written(tmp_path) == WRITTEN

    return check


# Learning


def test_the_history_has_a_point_at_each_stride_and_at_the_end_with_the_mean_loss_since_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "REPORT_EVERY", 3)
    seen, lengths = [], []

    def watched(*arguments):
        loss = loss_fn(*arguments)
        seen.append(loss.mean().item())
        return loss

    _, history = fit(tmp_path, loss_fn=watched, report=lambda run: lengths.append(len(run.history)), steps=10)
    steps = [3, 4, 6, 8, 9, 10]
    assert [point["step"] for point in history] == steps and lengths == [1, 2, 3, 4, 5, 6]
    assert [point["step"] for point in history if "validation" in point] == [4, 8, 10]
    expected = [sum(seen[a:b]) / (b - a) for a, b in itertools.pairwise([0, *steps])]
    assert losses(history) == pytest.approx(expected, rel=1e-6)


def test_the_seed_of_the_recipe_decides_the_numbers_and_not_those_of_the_caller(tmp_path, whole):
    after = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        again, _ = fit(tmp_path / str(seed), images=[IMAGES, data.to_model(IMAGES)][seed - 1])  # both are the same data
        after.append(torch.rand(3))
        assert same_weights(tmp_path / str(seed), whole[0]) and same_weights(again, load_pretrained(whole[0]))
    assert not torch.equal(*after), "training has seeded the global generator"
    assert losses(fit(tmp_path / "other", seed=1)[1]) != losses(whole[1])


@pytest.mark.parametrize("validation, best", [([3, 1, 2], 1), ([1, 2, 3], 0), ([3, 2, 1], 2), ([1, 1, 1], 2)])
def test_the_averaged_weights_of_the_lowest_validation_loss_are_kept_with_what_was_measured(tmp_path, validation, best):
    """Validation sees them in eval mode, without gradients, and may fill their buffers."""
    seen = []

    def scripted(model):
        assert not model.training and not torch.is_grad_enabled()
        next(model.buffers()).fill_(100 + len(seen))
        seen.append(copy.deepcopy(model))
        return {"loss": validation[len(seen) - 1]}

    model, history = fit(tmp_path, validate=scripted)
    assert same_weights(model, seen[best]) and same_weights(tmp_path, seen[best])
    assert (next(model.buffers()) == 100 + best).all()
    assert read_card(tmp_path)["history"] == history[: best + 1] and history[best]["step"] == 4 * (best + 1)
    assert history[best]["validation"] == {"loss": validation[best]}
    average = read_checkpoint(tmp_path)["ema"]
    assert torch.equal(average["module.head.weight"], seen[2].head.weight), "a checkpoint holds the latest"


def test_the_card_tells_the_whole_recipe_and_how_it_went(whole):
    found = read_card(whole[0])
    assert {key: found[key] for key in CLASSIFIER} == CLASSIFIER and found["recipe"] == DEFAULTS | RECIPE
    assert found["history"] == whole[1], "the last point is the best"
    assert found["seconds"] >= 0 and found["device"]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), FloatingPointError()])
def test_the_network_is_left_in_the_mode_it_was_in(tmp_path, training, error):
    model, modes = fresh().train(training), []

    def watched(model, *arguments):
        modes.append(model.training)
        return loss_fn(model, *arguments)

    with contextlib.suppress(FloatingPointError):
        fit(tmp_path, model, watched, report=at_call(2 if error else 0, error))
    assert model.training is training and all(modes)


@pytest.fixture
def half_precision(monkeypatch):
    """Train in bf16, as on a GPU. Accelerate keeps the precision for the whole process, hence the resets."""
    monkeypatch.setattr(run, "best_precision", lambda: "bf16")
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.parametrize("same", [False, True])
def test_half_precision_learns_goes_on_and_keeps_float32_weights(half_precision, tmp_path, whole, same):
    """The network that is given again may be the same or a new one."""
    _, history = fit(tmp_path / "whole")
    assert losses(history) != losses(whole[1])
    assert losses(history) == pytest.approx(losses(whole[1]), rel=0.05)
    model, _ = fit(tmp_path / "parts", report=at_call(1, KeyboardInterrupt()))
    model, parts = fit(tmp_path / "parts", model if same else None)
    assert same_weights(tmp_path / "parts", tmp_path / "whole") and parts == history
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    x0 = data.to_model(IMAGES)
    assert torch.equal(model.eval()(x0), load_pretrained(tmp_path / "parts")(x0))


# Stopping and going on


class Killed(BaseException):
    """What no handler catches, as if the process ended here."""


def at_file(name: str, number: int, error: BaseException):
    """Return os.replace, but it raises `error` when a file with this name is put in place for the `number`th time."""
    replace = os.replace
    stop = at_call(number, error, replace)
    return lambda source, target: (stop if Path(target).name == name else replace)(source, target)


def with_signal(name: str, number: int, function, after=None):
    """Return `function` that sends a signal to this process when it is called for the `number`th time."""
    calls = itertools.count(1)

    def wrapped(*arguments):
        if next(calls) == number:
            signal.raise_signal(getattr(signal, name))
        if after is not None:
            after.append(True)
        return function(*arguments)

    return wrapped


ENDINGS = [("report", 1, 4), ("report", 2, 8), ("report", 3, 12), ("validate", 2, 8)]
ENDINGS += [("loss_fn", 5, 4), ("loss_fn", 8, 4), ("loss_fn", 11, 8)]  # within a stride, back to its start
FUNCTIONS = {"report": lambda run: None, "validate": validate, "loss_fn": loss_fn}


@pytest.mark.parametrize("error", [KeyboardInterrupt, Killed])
@pytest.mark.parametrize("where, number, kept", ENDINGS)
def test_stopped_or_killed_anywhere_it_goes_on_to_the_same_numbers(
    tmp_path, whole, goes_on, capsys, where, number, kept, error
):
    with pytest.raises(Killed) if error is Killed else contextlib.nullcontext():
        _, history = fit(tmp_path, **{where: at_call(number, error(), FUNCTIONS[where])})
        assert history == whole[1][: kept // 4] and f"Stopped at step {kept} of 12" in capsys.readouterr().out
    assert read_checkpoint(tmp_path)["step"] == kept
    torch.rand(7)  # what else the program does must not matter
    goes_on()


@pytest.mark.parametrize("error", [KeyboardInterrupt, Killed])
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("name", WRITTEN)
def test_stopped_or_killed_while_writing_any_file_it_goes_on_to_the_same_numbers(
    tmp_path, goes_on, monkeypatch, name, number, error
):
    with monkeypatch.context() as patch, pytest.raises(Killed) if error is Killed else contextlib.nullcontext():
        patch.setattr(checkpoints.os, "replace", at_file(name, number, error()))
        fit(tmp_path)
    goes_on()


@pytest.mark.parametrize("number", [1, 8])
@pytest.mark.parametrize("name", endings.NAMES)
def test_a_signal_to_end_lets_the_step_finish_and_none_is_lost(tmp_path, goes_on, name, number):
    if not hasattr(signal, name):
        pytest.skip(f"this system has no {name}")
    before = signal.getsignal(getattr(signal, name))
    stop = with_signal(name, number, loss_fn)
    _, history = fit(tmp_path, loss_fn=stop)
    assert read_checkpoint(tmp_path)["step"] == history[-1]["step"] == number and "validation" in history[-1]
    assert load_pretrained(tmp_path) and signal.getsignal(getattr(signal, name)) == before
    goes_on()


def test_signals_after_every_step_end_in_the_same_numbers(tmp_path, goes_on):
    for step in range(1, 12):
        fit(tmp_path, loss_fn=with_signal("SIGTERM", 1, loss_fn))
        assert read_checkpoint(tmp_path)["step"] == step
    goes_on()


@pytest.mark.parametrize("where", ["validate", "report"])
def test_a_signal_in_a_validation_or_report_ends_it_at_once_and_keeps_all_steps(tmp_path, goes_on, where):
    after = []
    stop = with_signal("SIGINT", 2, FUNCTIONS[where], after)
    fit(tmp_path, **{where: stop})
    assert read_checkpoint(tmp_path)["step"] == 8 and len(after) == {"validate": 2, "report": 1}[where]
    goes_on()


def test_a_signal_in_the_last_validation_or_report_lets_the_training_end(tmp_path, whole, capsys):
    for number, where in ((3, "validate"), (3, "report")):
        _, history = fit(tmp_path / where, **{where: with_signal("SIGINT", number, FUNCTIONS[where])})
        assert history == whole[1] and same_weights(tmp_path / where, whole[0])
        assert "Stopped" not in capsys.readouterr().out


def test_copies_of_a_signal_wait_for_the_step_too_but_a_later_one_does_not(tmp_path, goes_on, monkeypatch):
    def twice(*arguments):
        return with_signal("SIGINT", 1, with_signal("SIGINT", 1, loss_fn))(*arguments)

    calls = itertools.count(1)
    fit(tmp_path, loss_fn=lambda *arguments: (twice if next(calls) == 6 else loss_fn)(*arguments))
    assert read_checkpoint(tmp_path)["step"] == 6
    monkeypatch.setattr(endings, "REPEAT", -1.0)
    fit(tmp_path, loss_fn=twice)
    assert read_checkpoint(tmp_path)["step"] == 6, "the step is given up"
    goes_on()


def test_a_signal_that_is_ignored_as_under_nohup_stays_ignored(tmp_path, goes_on, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        fit(tmp_path, loss_fn=with_signal("SIGHUP", 5, loss_fn))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert read_checkpoint(tmp_path)["step"] == 12


def test_a_network_whose_checkpoint_was_being_read_at_a_stop_can_be_given_again(tmp_path, monkeypatch):
    fit(tmp_path, report=at_call(1, KeyboardInterrupt()))
    model = fresh()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "resume", at_call(1, KeyboardInterrupt()))
        fit(tmp_path, model)
    assert not hasattr(model, "_is_accelerate_prepared")


def test_an_error_of_any_kind_keeps_what_is_done(tmp_path, goes_on):
    with pytest.raises(BrokenPipeError):
        fit(tmp_path, report=at_call(2, BrokenPipeError()))
    assert read_checkpoint(tmp_path)["step"] == 8
    goes_on()


def test_where_the_output_is_a_file_a_training_prints_a_line_for_each_validation(tmp_path, capsys):
    fit(tmp_path)
    (*lines, empty) = capsys.readouterr().err.split("\n")
    assert [line.partition(":")[0] for line in lines] == [f"step {step} of 12" for step in (4, 8, 12)] and not empty


def test_a_checkpoint_is_written_each_minute_too(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "REPORT_EVERY", 1)
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", -1.0)
    steps = []
    fit(tmp_path, report=lambda run: steps.append(read_checkpoint(tmp_path)["step"]))
    assert steps == list(range(1, 13))


@pytest.mark.parametrize("damage", ["lost", "card lost", "card changed", "cut", "changed", "of an older version"])
@pytest.mark.parametrize("step", [8, 12])
def test_weights_that_are_lost_or_damaged_are_written_again(tmp_path, whole, goes_on, damage, step):
    losses = iter([0.3, 0.1, 0.2, 0.2, 0.2])
    measure = lambda model: {"loss": next(losses)}  # noqa: E731
    fit(tmp_path, validate=measure, report=at_call(step // 4, KeyboardInterrupt()))
    weights, before = tmp_path / "weights.safetensors", {}
    before = {path: path.read_bytes() for path in (weights, tmp_path / "weights.json")}
    if damage == "card lost":
        (tmp_path / "weights.json").unlink()
    elif damage == "card changed":
        (tmp_path / "weights.json").write_text(before[tmp_path / "weights.json"].decode().replace("cpu", "gpu"))
    elif damage in ("cut", "changed"):
        weights.write_bytes(before[weights][:-1] + (b"" if damage == "cut" else b"x"))
    else:
        weights.unlink()
    if damage == "of an older version":  # it has no best weights, but the average of its last step
        state = read_checkpoint(tmp_path)
        torch.save(
            {key: value for key, value in state.items() if key not in ("best", "since", "total")},
            tmp_path / "checkpoint.pt",
        )
    fit(tmp_path, validate=measure)
    if damage != "of an older version":
        assert {path: path.read_bytes() for path in before} == before
    assert load_pretrained(tmp_path)


def test_stopped_after_the_weights_of_a_point_were_written_it_goes_on_from_before_the_point(
    tmp_path, whole, goes_on, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train, "write_checkpoint", at_call(2, Killed(), train.write_checkpoint))
        patch.setattr(train, "keep_what_is_done", lambda *_: None)
        fit(tmp_path)
    assert read_checkpoint(tmp_path)["step"] == 4 and read_card(tmp_path)["history"][-1]["step"] == 8
    goes_on()


def test_stopped_twice_in_a_row_leaves_the_last_checkpoint(tmp_path, goes_on, monkeypatch):
    model = fresh().eval()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints.os, "replace", at_file("checkpoint.pt", 3, KeyboardInterrupt()))
        fit(tmp_path, model, report=at_call(2, KeyboardInterrupt()))
    assert read_checkpoint(tmp_path)["step"] == 8 and written(tmp_path) == WRITTEN and not model.training
    goes_on()


def test_stopped_again_and_again_and_soon_after_going_on_it_ends_in_the_same_numbers(tmp_path, goes_on):
    kept = []
    for where, number in (("report", 1), ("loss_fn", 1), ("loss_fn", 3), ("report", 1), ("loss_fn", 2)):
        fit(tmp_path, **{where: at_call(number, KeyboardInterrupt(), FUNCTIONS[where])})
        kept.append(read_checkpoint(tmp_path)["step"])
    assert kept == [4, 4, 4, 8, 8]
    goes_on()


@pytest.mark.parametrize("point, step", [(0, 0), (1, 3), (2, 4), (3, 6), (4, 8)])
def test_a_stopped_network_is_the_average_as_validation_saw_and_measured_it(tmp_path, whole, monkeypatch, point, step):
    """Steps 4 and 8 are validated anyway, the others at the end; what is done since a checkpoint is kept, too."""
    monkeypatch.setattr(run, "REPORT_EVERY", 3)
    seen = []

    def measuring(model):
        next(model.buffers()).fill_(100 + len(seen))
        seen.append(copy.deepcopy(model))
        return validate(model)

    where, number = ("report", point) if point else ("loss_fn", 2)
    stop = {where: at_call(number, KeyboardInterrupt(), FUNCTIONS[where])}
    model, history = fit(tmp_path, validate=measuring, **stop)
    assert history[-1]["step"] == read_checkpoint(tmp_path)["step"] == step
    assert history[-1]["validation"] == validate(model.eval())
    assert same_weights(model, seen[-1]) and (next(model.buffers()) == 99 + len(seen)).all()
    assert len(seen) == {0: 1, 3: 1, 4: 1, 6: 2, 8: 2}[step]
    if not point:
        assert torch.equal(flat(model), flat(fresh())) and history == [{"step": 0} | history[0]]
    _, history = fit(tmp_path)
    assert [point["step"] for point in history] == [3, 4, 6, 8, 9, 12] and same_weights(tmp_path, whole[0])


def test_a_network_with_dropout_goes_on_to_the_same_numbers(tmp_path):
    def with_dropout(model, *arguments):
        return loss_fn(lambda x: F.dropout(model(x)), *arguments)

    torch.manual_seed(7)
    _, history = fit(tmp_path / "whole", loss_fn=with_dropout)
    torch.manual_seed(7)
    fit(tmp_path / "parts", loss_fn=with_dropout, report=at_call(1, KeyboardInterrupt()))
    torch.manual_seed(8)
    _, parts = fit(tmp_path / "parts", loss_fn=with_dropout)
    assert same_weights(tmp_path / "parts", tmp_path / "whole") and parts == history


@pytest.mark.parametrize("change", ["no floor", "card of version 0.1", "1 GPU", "8 GPUs"])
def test_a_checkpoint_of_an_earlier_version_or_another_machine_goes_on_to_the_same_numbers(tmp_path, goes_on, change):
    fit(tmp_path, report=at_call(1, KeyboardInterrupt()))
    state = read_checkpoint(tmp_path)
    if change == "no floor":  # what a recipe did not know is as it is by default
        del state["card"]["recipe"]["floor"]
    elif change == "card of version 0.1":
        state["card"] = old_form(state["card"])
        assert "kind" not in state["card"] and "clip" in state["card"]["recipe"]
    else:  # its random numbers do not fit here; at first, a checkpoint held a generator, too
        state["generator"] = torch.zeros(16, dtype=torch.uint8)
        state["rng"] = state["rng"][:1] + int(change[0]) * [torch.zeros(16, dtype=torch.uint8)]
        state["scaler"] = torch.amp.GradScaler("cpu").state_dict()
    torch.save(state, tmp_path / "checkpoint.pt")
    goes_on()


def test_a_finished_training_started_again_changes_nothing(tmp_path, whole):
    fit(tmp_path)
    before = {name: ((tmp_path / name).read_bytes(), (tmp_path / name).stat().st_mtime_ns) for name in WRITTEN}
    model, history = fit(tmp_path, fresh(seed=5), loss_fn=at_call(1, AssertionError("it takes a step"), loss_fn))
    assert history == whole[1] and same_weights(model, load_pretrained(whole[0]))
    after = {name: ((tmp_path / name).read_bytes(), (tmp_path / name).stat().st_mtime_ns) for name in WRITTEN}
    assert after == before and written(tmp_path) == WRITTEN


def test_the_seconds_of_all_parts_are_added_and_those_of_the_report_are_not(tmp_path, monkeypatch):
    clock = itertools.count()
    now = [0]
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def a_second(*arguments):
        now[0] += 1
        return loss_fn(*arguments)

    def long(run):
        now[0] += 100
        if next(clock) == 1:
            raise KeyboardInterrupt

    fit(tmp_path, loss_fn=a_second, report=long)
    assert read_checkpoint(tmp_path)["seconds"] == 8
    fit(tmp_path, loss_fn=a_second, report=long, validate=lambda model: {"loss": 0.0})
    assert read_checkpoint(tmp_path)["seconds"] == 12 == read_card(tmp_path)["seconds"]


# The command: in this process, and, for real signals, in processes of their own, which cost seconds for imports

COMMAND = """
import signal, sys, time, torch

from fmdiff_helpers import recipes
from fmdiff_helpers.cli import app
from fmdiff_helpers.processes import classification
from fmdiff_helpers.standin import draw_garments

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
torch.set_num_threads(1)
recipes.NUM_VALIDATION = 32
recipes.load_fashion_mnist = lambda split: draw_garments(96)
recipes.CARDS["classifier"]["arguments"] = {"width": 2}
recipes.profiles = lambda name: {"smoke": {"steps": 12, "every": 4}, "full": {"steps": 12, "every": 4}}
shift = classification.shift
classification.shift = lambda *arguments: time.sleep(0.3) or shift(*arguments)
app()
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """`fmdiff train` on 96 drawn images, 32 of them for validation, writing to tmp_path / "run"."""
    monkeypatch.setattr(recipes, "NUM_VALIDATION", 32)
    monkeypatch.setattr(recipes, "load_fashion_mnist", lambda split: draw_garments(96))
    monkeypatch.setitem(recipes.CARDS, "classifier", recipes.CARDS["classifier"] | {"arguments": {"width": 2}})
    steps = {"steps": 12, "every": 4}
    monkeypatch.setattr(recipes, "profiles", lambda name: {"smoke": steps, "full": steps})
    command = ["train", "classifier", "--profile", "smoke", "--batch-size", "16", "--out", str(tmp_path / "run")]
    return lambda *more: CliRunner().invoke(cli.app, [*command, *more], catch_exceptions=False)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_or_stopped_command_given_again_ends_in_the_same_numbers(tmp_path, command, number):
    """Ctrl-C and a request to end leave a checkpoint, one sentence and the exit code 130."""
    (tmp_path / "command.py").write_text(COMMAND)
    arguments = ["train", "classifier", "--profile", "smoke", "--batch-size", "16", "--out", tmp_path / "run"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    line = [str(part) for part in (sys.executable, tmp_path / "command.py", *arguments)]
    process = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 600
    while not (tmp_path / "run" / "checkpoint.pt").exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=600)
    step = read_checkpoint(tmp_path / "run")["step"]
    assert 4 <= step < 12, output
    if number == signal.SIGKILL:
        assert process.returncode == -number, output
    else:
        assert process.returncode == 130 and "Traceback" not in output, output
        assert f"Stopped at step {step} of 12" in output and written(tmp_path / "run") == WRITTEN
    again, whole = command(), command("--out", str(tmp_path / "whole"))
    assert again.exit_code == whole.exit_code == 0
    assert f"{tmp_path / 'run'}: validation loss" in again.stdout and "after 12 steps" in again.stdout
    assert same_weights(tmp_path / "run", tmp_path / "whole")
    histories = [read_checkpoint(tmp_path / name)["history"] for name in ("run", "whole")]
    assert histories[0] == histories[1] and not set(WRITTEN) - set(written(tmp_path / "run"))


def test_ctrl_c_before_the_first_point_ends_the_command_with_130_too(command, monkeypatch):
    from fmdiff_helpers.processes import classification

    monkeypatch.setattr(classification, "shift", at_call(2, KeyboardInterrupt(), classification.shift))
    assert command().exit_code == 130


def test_ctrl_c_twice_in_the_last_validation_ends_the_command_with_130_too(tmp_path, command, monkeypatch):
    from fmdiff_helpers.processes.classification import Classification

    calls, validate = itertools.count(1), Classification.validate

    def stopped(*arguments, **more):
        if next(calls) in (3, 4):  # as a part of the training, and of what has been done when that has stopped
            raise KeyboardInterrupt
        return validate(*arguments, **more)

    monkeypatch.setattr(Classification, "validate", stopped)
    assert command().exit_code == 130 and read_checkpoint(tmp_path / "run")["step"] == 12
    assert "after 12 steps" in command().stdout


def test_a_command_that_cannot_be_carried_out_fails_in_one_line(command):
    assert command().exit_code == 0
    for arguments, words in (
        (("--seed", "1"), "is another training (seed: 0 there, 1 now)"),
        (("--batch-size", "99"), "99"),
    ):
        result = command(*arguments)
        assert result.exit_code == 2 and result.stderr.count("fmdiff: ") == 1 and words in result.stderr


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
    assert stopped.count == kept and read_checkpoint(tmp_path / "parts")["loss"]["count"] == kept
    resumed = stopped if again else Remembering()
    _, history = fit(tmp_path / "parts", loss_fn=resumed)
    assert same_weights(tmp_path / "parts", tmp_path / "whole") and history == expected
    assert whole.count == 12 and same_memory(resumed.state_dict(), whole.state_dict())
    states = [read_checkpoint(tmp_path / name)["loss"] for name in ("parts", "whole")]
    assert same_memory(*states) and same_memory(states[0], whole.state_dict())


def test_after_a_loss_that_is_not_finite_its_memory_is_that_of_the_last_good_weights(tmp_path):
    loss = Remembering(7, float("nan"))
    with pytest.raises(FloatingPointError, match="weights of step 4 again"):
        fit(tmp_path, loss_fn=loss)
    assert loss.count == 4


# What goes wrong


def breaking(number: int, value: float):
    """Return a loss that is not finite from the `number`th call on, but whose gradients are."""
    calls = itertools.count(1)
    return lambda *arguments: loss_fn(*arguments) + (value if next(calls) >= number else 0)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_is_an_error_and_the_last_good_weights_are_back(tmp_path, goes_on, value):
    good, model = [], fresh()
    words = rf"after step 8 \(loss {value}\); .* step 4 again. Lower lr, which is 0\.01"
    with pytest.raises(FloatingPointError, match=words):
        fit(tmp_path, model, breaking(6, float(value)), report=lambda run: good.append(copy.deepcopy(model)))
    assert len(good) == 1 and same_weights(model, good[0])
    assert all(value.isfinite().all() for value in model.state_dict().values())
    with pytest.raises(FloatingPointError, match="weights of step 4 again"):  # also soon after going on
        fit(tmp_path, loss_fn=breaking(1, float(value)))
    with pytest.raises(FloatingPointError):
        fit(tmp_path, validate=lambda model: {"loss": float(value)})
    goes_on()


def test_weights_that_are_not_finite_are_an_error_even_where_the_loss_is(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "REPORT_EVERY", 2)
    calls = itertools.count(1)

    def breaks(model, x0, *arguments):
        slope = 0 * model(x0).sum(dim=1).mul(0).sqrt()  # 0, with a gradient of 0 / 0
        return loss_fn(model, x0, *arguments) + (slope if next(calls) == 6 else 0)

    model = fresh()
    with pytest.raises(FloatingPointError, match=r"after step 6 \(loss .*\); .* weights of step 4 again"):
        fit(tmp_path, model, breaks)
    assert flat(model).isfinite().all()


@pytest.mark.parametrize("batch_size, largest, fits", [(64, 10, 8), (64, 32, 32), (24, 11, 6), (64, 1, 1), (16, 0, 0)])
def test_out_of_memory_is_an_error_that_names_a_batch_that_fits(tmp_path, batch_size, largest, fits):
    """What the failed step held is given back before smaller batches are tried."""
    big, alive = [], []

    def loss(model, x0, *arguments):
        alive.extend(tensor() is not None for tensor in big)
        if len(x0) == batch_size:
            activations = torch.zeros(1000)
            big.append(weakref.ref(activations))
        if len(x0) > largest:
            raise torch.OutOfMemoryError("out of memory")
        return loss_fn(model, x0, *arguments)

    gc.collect()
    words = f"batch_size={fits} fits" if fits else "not even one image fits"
    with pytest.raises(MemoryError, match=rf"a batch of {batch_size} images .*{words}"):
        fit(tmp_path, loss_fn=loss, batch_size=batch_size)
    assert alive and not any(alive)
    if fits:
        fit(tmp_path, loss_fn=loss, batch_size=fits)


@pytest.mark.parametrize(
    "recipe, words",
    [
        ({"steps": 5, "learning_rate": 1e-3}, r"\['learning_rate'\]; expected steps and any of batch_size, lr, warmup"),
        ({}, "steps is None"),
        ({"steps": 0}, "steps is 0; expected a whole number of at least 1"),
        ({"steps": -1}, "steps is -1"),
        ({"steps": 1.5}, r"steps is 1\.5"),
        ({"steps": "5"}, "steps is '5'"),
        ({"steps": True}, "steps is True"),
        ({"steps": 5, "seed": 1.5}, r"seed is 1\.5; expected a whole number of at least 0"),
        ({"steps": 5, "lr": "0.1"}, "lr is '0.1'; expected a number of at least 0"),
        ({"steps": 5, "lr": float("nan")}, "lr is nan"),
        ({"steps": 5, "batch_size": 0}, "batch_size is 0"),
        ({"steps": 5, "every": 0}, "every is 0"),
        ({"steps": 5, "batch_size": 65}, "batch_size is 65; expected at most the 64 images"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_an_error_that_names_it(tmp_path, recipe, words):
    with pytest.raises(ValueError, match=words):
        fit(tmp_path / "run", card=lambda: CLASSIFIER | {"recipe": {"batch_size": 16} | recipe})
    assert not (tmp_path / "run").exists()


def test_a_batch_that_the_processes_cannot_share_evenly_is_an_error(monkeypatch):
    monkeypatch.setattr(train, "this_process", lambda: SimpleNamespace(num_processes=3))
    assert train.check_recipe({"steps": 1, "batch_size": 12}, 64)["batch_size"] == 12
    with pytest.raises(ValueError, match=r"batch_size is 16; .* a multiple of the number of processes, 3"):
        train.check_recipe({"steps": 1, "batch_size": 16}, 64)


def test_a_recipe_is_filled_in_and_not_changed():
    recipe = {"steps": 5, "lr": 0.5}
    assert train.check_recipe(recipe, 128) == DEFAULTS | recipe
    assert recipe == {"steps": 5, "lr": 0.5}


class Unpickled:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def change_weight(content: bytes) -> bytes:
    """Change the first bit of the averaged head, whose bytes are in the file as they are."""
    state = torch.load(io.BytesIO(content))
    place = content.index(state["ema"]["module.head.weight"].numpy().tobytes())
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def file_of(value: object) -> bytes:
    """The content of a file that torch.save writes."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


DAMAGES = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "the last byte missing": lambda content: content[:-1],
    "a bit changed": change_weight,
    "text": lambda content: b"<html>Please log in</html>",
    "weights": lambda content: file_of({"weights": torch.zeros(3)}),
    "a list": lambda content: file_of([1, 2]),
    "code": lambda content: file_of(Unpickled(Path("evidence"))),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_an_error_that_says_to_delete_it(tmp_path, whole, goes_on, monkeypatch, damage):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(damaged := DAMAGES[damage]((whole[0] / "checkpoint.pt").read_bytes()))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is no checkpoint .*; delete it to start over"):
        fit(tmp_path)
    assert path.read_bytes() == damaged and written(tmp_path) == ["checkpoint.pt"], "no code was run"
    path.unlink()
    goes_on()


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "I/O error"), MemoryError()])
def test_no_one_is_told_to_delete_a_checkpoint_that_may_be_intact(tmp_path, goes_on, monkeypatch, error):
    fit(tmp_path, report=at_call(1, KeyboardInterrupt()))
    with monkeypatch.context() as patch, pytest.raises(type(error)):
        where, name = (train.zipfile, "ZipFile") if isinstance(error, MemoryError) else (Path, "read_bytes")
        patch.setattr(where, name, at_call(1, error))
        fit(tmp_path)
    goes_on()


@pytest.mark.parametrize("broken", ["missing", "other shape"])
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_sentence(tmp_path, broken):
    fit(tmp_path, report=at_call(1, KeyboardInterrupt()))
    state = read_checkpoint(tmp_path)
    state["model"] = fresh(CLASSIFIER | {"arguments": {"width": 4}}).state_dict()
    if broken == "missing":
        del state["model"]
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint\.pt does not fit .*; name another folder, or delete the file"):
        fit(tmp_path)


OTHERS = {
    "a recipe": (card(lr=0.02), r"\(lr: 0\.01 there, 0\.02 now\)"),
    "two entries": (card(lr=0.02, steps=20), r"\(lr: 0\.01 there, 0\.02 now, steps: 12 there, 20 now\)"),
    "what was left out": (card(max_grad_norm=2.0), r"\(max_grad_norm: 1\.0 there, 2\.0 now\)"),
    "a network": (card() | {"arguments": {"width": 3}}, r"\(arguments: {'width': 2} there, {'width': 3} now\)"),
    "data": (card() | {"data": "drawn"}, r"\(data: None there, 'drawn' now\)"),
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
    fit(tmp_path, card=lambda: card() | {"data": "drawn"})
    with pytest.raises(ValueError, match=r"\(data: 'drawn' there, None now\)"):
        fit(tmp_path)


@pytest.mark.parametrize("number", range(8))
def test_a_disk_that_is_full_is_an_error_that_names_the_file_and_nothing_is_lost(
    tmp_path, goes_on, monkeypatch, number
):
    calls, fsync = itertools.count(), os.fsync

    def full(file):
        if next(calls) >= number:
            raise OSError(28, "No space left on device")
        fsync(file)

    with monkeypatch.context() as patch, pytest.raises(OSError) as error:
        patch.setattr(checkpoints.os, "fsync", full)
        fit(tmp_path)
    name = [".weights.next.json", "weights.safetensors", "checkpoint.pt"][number % 3]
    assert f"{tmp_path / name} cannot be written (No space left on device); what was there" in str(error.value)
    assert set(written(tmp_path)) <= {*WRITTEN, ".weights.next.json"}
    goes_on()


def test_a_folder_with_the_name_of_a_published_network_gets_its_own_weights_back(tmp_path, whole, monkeypatch):
    published = tmp_path / "published"
    published.mkdir()
    for ending in ("json", "safetensors"):
        (published / f"classifier.{ending}").write_bytes((whole[0] / f"weights.{ending}").read_bytes())
    monkeypatch.setattr(cards, "PUBLISHED", published)
    monkeypatch.chdir(tmp_path)
    model, _ = fit("classifier", seed=1)
    assert same_weights(model, tmp_path / "classifier")
