"""The claims of fmdiff_helpers.run: what one step does, which random numbers are its own, what a checkpoint holds."""

import copy
import itertools
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from small_training import IMAGES, LABELS, a_run, flat, fresh, loss_fn, same_weights, take_steps
from torch.testing import assert_close

from fmdiff_helpers import batching, data
from fmdiff_helpers import run as run_module
from fmdiff_helpers.run import DEFAULTS, Run, best_precision, learning_rate

pytestmark = pytest.mark.usefixtures("on_the_processor")


# The learning rate


@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("cycles, length, warmup", [(1, 60, 0), (3, 20, 5), (4, 7, 1), (7, 3, 0), (1, 900, 100)])
def test_the_learning_rate_rises_evenly_and_then_has_the_warm_restarts_of_pytorch(cycles, length, warmup, floor):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=length, eta_min=floor)
    expected = [(step + 1) / warmup for step in range(warmup)]
    for _ in range(cycles * length):
        expected += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    steps = warmup + cycles * length
    found = [learning_rate(step, steps, warmup, cycles, floor) for step in range(steps)]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    if (cycles, floor) == (1, 0):  # what a recipe that says nothing of them means
        assert found == [learning_rate(step, steps, warmup) for step in range(steps)]
    assert (DEFAULTS["cycles"], DEFAULTS["floor"]) == (1, 0)


@pytest.mark.parametrize("cycles", [1, 3])
@pytest.mark.parametrize("steps, warmup", [(1, 0), (1, 1), (5, 5), (5, 100), (5, 1)])
def test_the_learning_rate_stays_between_0_and_1_in_short_trainings(steps, warmup, cycles):
    assert all(0 < learning_rate(step, steps, warmup, cycles) <= 1 for step in range(steps))


@pytest.mark.parametrize("cycles, floor", [(1, 0.0), (3, 0.5)])
def test_each_step_is_taken_with_its_learning_rate_and_the_weight_decay_of_the_recipe(cycles, floor):
    run = a_run(lr=0.02, cycles=cycles, floor=floor, weight_decay=0.07)
    for step in range(8):
        take_steps(run)
        (group,) = run.optimizer.param_groups
        assert group["lr"] == 0.02 * learning_rate(step, 12, 3, cycles, floor) and group["weight_decay"] == 0.07


# The average


@pytest.mark.parametrize("ema_decay", [0.999, 0.3, 0.0])
def test_the_average_follows_its_recursion(ema_decay):
    run, expected = a_run(ema_decay=ema_decay), None
    for step in range(1, 8):
        take_steps(run)
        current = flat(run.plain)
        decay = min(ema_decay, (1 + step) / (10 + step))
        expected = current if step == 1 else decay * expected + (1 - decay) * current
        assert_close(flat(run.ema.module), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(expected, current) == (ema_decay == 0)


def test_buffers_are_copied_and_never_averaged():
    run = a_run()
    before = {name: buffer.clone() for name, buffer in run.plain.named_buffers()}
    for _ in range(3):
        take_steps(run)
        buffers = dict(run.plain.named_buffers())
        assert buffers and not any(torch.equal(buffers[name], before[name]) for name in before)
        assert all(torch.equal(buffer, buffers[name]) for name, buffer in run.ema.module.named_buffers())


# The gradient


def gradient(run: Run) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in run.plain.parameters()])


def test_the_norm_of_a_large_gradient_is_limited_and_a_small_one_stays():
    large, small = a_run(lambda *arguments: 1000 * loss_fn(*arguments)), a_run(max_grad_norm=1e9)
    take_steps(large)
    take_steps(small)
    assert small.recipe["max_grad_norm"] > 1000 * gradient(small).norm() > 1000 * large.recipe["max_grad_norm"] / 100
    assert gradient(large).norm().item() == pytest.approx(1, rel=1e-4)
    assert_close(gradient(large), gradient(small) / gradient(small).norm(), rtol=1e-3, atol=1e-5)


def test_gradients_do_not_add_up_over_steps():
    run = a_run(draw=lambda x0, generator: (torch.zeros_like(x0),), max_grad_norm=1e9, lr=0.0)
    x0, y = run.next_batch(IMAGES, LABELS)
    run.train_step(x0, y)
    first = gradient(run)
    run.train_step(x0, y)
    assert_close(gradient(run), first)


# The batches and the random numbers of a step

NUMBERED = torch.arange(100, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 28, 28)


def shown(run: Run, steps: int) -> list[list[int]]:
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
    (batch,) = shown(a_run(batch_size=100), 1)
    assert sorted(batch) == list(range(100)), "a batch may be as large as the data"


def test_the_batches_depend_on_the_seed_and_the_step_alone_and_no_seed_has_an_epoch_of_another():
    batches = shown(a_run(), 18)
    later = a_run()
    later.step = 10
    assert shown(later, 8) == batches[10:]
    epochs = [batches[:6], batches[6:12], shown(a_run(seed=1), 6), shown(a_run(seed=2), 6)]
    assert all(one != other for one, other in itertools.combinations(epochs, 2))


@pytest.mark.parametrize("seed, epoch", [(0, 0), (0, 2), (3, 1)])
def test_the_order_of_an_epoch_is_the_one_that_published_networks_were_trained_in(seed, epoch):
    run = a_run(seed=seed)
    run.step = 6 * epoch
    expected = torch.randperm(100, generator=torch.Generator().manual_seed(1000 * seed + epoch))
    assert list(itertools.chain(*shown(run, 6))) == expected[:96].tolist()


def test_the_random_numbers_of_a_step_are_its_own():
    """Whatever was drawn before: the third step alone is the third of three; another step or seed draws others."""
    drawn = []

    def noted(x0, generator):
        drawn.append(torch.randn(4, generator=generator))
        return (torch.zeros_like(x0),)

    for seed, first in ((0, 0), (0, 2), (1, 2)):
        run = a_run(draw=noted, seed=seed)
        run.step = first
        while run.step < 3:
            take_steps(run)
    *three, third, other = drawn
    assert torch.equal(three[2], third) and not torch.equal(other, third) and not torch.equal(three[0], three[1])
    expected = [torch.Generator().manual_seed(1_000_003 * (seed + 1) + 2) for seed in (0, 1)]
    assert all(torch.equal(x, torch.randn(4, generator=g)) for x, g in zip((third, other), expected, strict=True))


def test_floating_point_data_are_taken_as_they_are():
    """Latents, for example: of another shape, and not between -1 and 1."""
    latents, run = 300 * torch.randn(100, 4, 7, 7, generator=torch.Generator().manual_seed(0)), a_run()
    x0, y = run.next_batch(latents, torch.arange(100))
    assert x0.dtype == torch.float32 and torch.equal(x0, latents[y])


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_processes_share_a_batch_without_gap_or_overlap(monkeypatch, processes):
    parts = []
    for index in range(processes):
        state = SimpleNamespace(num_processes=processes, process_index=index)
        monkeypatch.setattr(batching, "this_process", lambda state=state: state)
        parts.append(batching.own_part(torch.arange(16)))
    assert torch.cat(parts).tolist() == list(range(16)) and {len(part) for part in parts} == {16 // processes}


# Precision, and other machines


@pytest.mark.parametrize(
    "gpu, bf16, expected", [(False, True, "no"), (False, False, "no"), (True, True, "bf16"), (True, False, "fp16")]
)
def test_the_precision_is_one_that_the_machine_has_in_hardware(monkeypatch, gpu, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or bf16)
    assert best_precision() == expected


def test_validation_is_in_float32_where_training_is_not(monkeypatch):
    """The spread of latents is divided by later: in bfloat16 it would be off by 0.4 %."""
    monkeypatch.setattr(run_module, "best_precision", lambda: "bf16")
    AcceleratorState._reset_state()
    x0 = data.to_model(IMAGES)
    try:
        half = a_run()
        found, product = half.validation(lambda model: (model(x0), model.head.weight @ model.head.weight.T))
        trained = half.plain.eval()(x0)
    finally:
        AcceleratorState._reset_state()
    expected = fresh().eval()
    assert_close(found, expected(x0), atol=1e-6, rtol=1e-5)
    assert product.dtype == torch.float32, "what validation does besides calling the network"
    assert not torch.allclose(trained, expected(x0), atol=1e-5)


@pytest.mark.parametrize("there, here", [(True, True), (True, False), (False, True)])
def test_the_scale_of_half_precision_is_in_a_checkpoint_and_goes_on_where_there_is_one(there, here):
    """Half precision has a scale that float32 and bfloat16 have not."""
    one, other = a_run(), a_run()
    one.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if there else None
    other.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if here else None
    other.load_state(one.state())
    assert not here or other.accelerator.scaler.get_scale() == (1024 if there else 8)


def test_a_state_makes_the_next_step_what_it_would_have_been():
    """Also the average, the moments of the optimizer, and the random numbers of a network with dropout."""

    def with_dropout(model, *arguments):
        return loss_fn(lambda x: torch.nn.functional.dropout(model(x)), *arguments)

    one, other = a_run(with_dropout), a_run(with_dropout)
    take_steps(one, 5)
    other.load_state(copy.deepcopy(one.state()))
    assert other.step == 5 and other.state()["rng"][0].equal(one.state()["rng"][0])
    random = torch.get_rng_state()
    take_steps(one, 2)
    torch.set_rng_state(random)
    take_steps(other, 2)
    assert same_weights(one.plain, other.plain) and same_weights(one.ema.module, other.ema.module)
