"""The claims of fmdiff_helpers.guidance: what is dropped, how far is led, and that it is the gradient that leads."""

import subprocess
import sys

import pretend
import pytest
import torch
from network_checks import made, normal
from torch import nn
from torch.testing import assert_close

from fmdiff_helpers.diffusion import eps_from_v, eps_from_x0
from fmdiff_helpers.guidance import NULL, drop_labels, guided, steered, w_of_paper
from fmdiff_helpers.models.patch_unet import PatchUNet
from fmdiff_helpers.samplers import noise_from_v, noise_predictor
from fmdiff_helpers.schedules import Schedule, cosine_beta

# Four steps far apart, and not in order, so that a step taken for its neighbour is seen at once.
UNEVEN = Schedule(torch.tensor([0.1, 0.4, 0.2, 0.6], dtype=torch.float64))
COSINE = Schedule(cosine_beta(50))
EXACT = {"rtol": 1e-9, "atol": 1e-9}

every_w = pytest.mark.parametrize("w", [-1.0, 0.0, 0.5, 1.0, 2.0, 7.5])
every_shape = pytest.mark.parametrize("shape", [(10, 1, 3, 3), (10, 4, 2, 5), (10, 2)])


def spread(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Shape one number for each image, so that it multiplies images."""
    return values.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def guess(x, t, y=None):
    """A model that is wrong, but depends on every pixel, on t and on the label."""
    kind = torch.full_like(t, -3) if y is None else y
    return torch.tanh(x + 0.1 * spread(t, x)) + 0.3 * spread(kind, x) * x


def other_guess(x, t, y=None):
    kind = torch.full_like(t, 20) if y is None else y
    return torch.cos(x - 0.2 * spread(t, x) + spread(kind, x))


class Watched:
    """Another model, which keeps what it was called with."""

    def __init__(self, model=guess):
        self.model, self.calls = model, []

    def __call__(self, x, t, y):
        self.calls.append((x, t, y))
        return self.model(x, t, y)


def batch(*shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw images, and as many steps and labels, all of them different."""
    return normal(*shape), torch.arange(shape[0]), torch.arange(shape[0]).flip(0) % 10


# Labels that are dropped


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 1])
def test_a_label_is_dropped_where_its_u_is_below_the_share(share):
    u = torch.tensor([0.0, 0.1, 0.2499, 0.25, 0.2501, 0.7, 1 - 2**-24])
    y = torch.tensor([3, 0, 9, 3, 0, 9, 5])
    dropped = drop_labels(y, u, share)
    assert dropped.tolist() == [10 if chance < share else label for chance, label in zip(u, y.tolist(), strict=True)]
    assert dropped.dtype == y.dtype and y.tolist() == [3, 0, 9, 3, 0, 9, 5] and NULL == 10


def test_a_network_takes_a_dropped_label_for_none():
    net = made(PatchUNet, 8, (1,)).eval()
    net.out.mix.weight.data.copy_(normal(*net.out.mix.weight.shape))
    x, t, y = normal(3, 1, 4, 4).float(), torch.tensor([3, 60, 150]), torch.tensor([3, 0, 9])
    assert net(x, t, drop_labels(y, torch.zeros(3), 0.1)).equal(net(x, t, None))
    assert not net(x, t, y).isclose(net(x, t, None)).any()


# Guidance


@every_w
@every_shape
def test_the_guided_prediction_lies_w_times_as_far_from_that_without_labels(w, shape):
    x, t, y = batch(*shape)
    without, with_labels = guess(x, t), guess(x, t, y)
    assert_close(guided(guess, w)(x, t, y), without + w * (with_labels - without), **EXACT)


@pytest.mark.parametrize("w", [1, 1.0])
def test_at_w_1_it_is_the_model_itself_called_once(w):
    x, t, y = batch(10, 1, 3, 3)
    model, weak = Watched(), Watched(other_guess)
    assert guided(model, w)(x, t, y).equal(guess(x, t, y))
    assert guided(model, w, weak=weak)(x, t, y).equal(guess(x, t, y))
    assert len(model.calls) == 2 and weak.calls == []
    assert all(seen[0] is x and seen[1] is t and seen[2] is y for seen in model.calls)


@pytest.mark.parametrize("w", [0, 0.0])
def test_at_w_0_the_labels_are_forgotten(w):
    x, t, y = batch(10, 1, 3, 3)
    assert guided(guess, w)(x, t, y).equal(guess(x, t))
    assert guided(guess, w, weak=other_guess)(x, t, y).equal(other_guess(x, t, y))


def test_on_a_processor_the_model_is_asked_once_with_the_labels_and_once_without():
    x, t, y = batch(10, 1, 3, 3)
    model = Watched()
    guided(model, 2.0)(x, t, y)
    assert all(seen[0] is x and seen[1] is t for seen in model.calls)
    asked = [seen[2] for seen in model.calls]
    assert asked[0] is y and asked[1:] == [None]


@pytest.mark.parametrize("w", [-1, 0, 0.5, 2, 7])
def test_the_paper_counts_from_0_what_counts_from_1_here(w):
    """Ho & Salimans, eq. 6: (1 + w) times the noise with labels, less w times that without."""
    x, t, y = batch(10, 1, 3, 3)
    expected = (1 + w) * guess(x, t, y) - w * guess(x, t)
    assert_close(guided(guess, w_of_paper(w))(x, t, y), expected, **EXACT)


@every_w
@pytest.mark.parametrize("schedule", [COSINE, UNEVEN], ids=["cosine", "uneven"])
def test_it_is_the_same_whether_the_noise_x0_or_v_is_guided(schedule, w):
    """Each is a straight line in each other, at a fixed xt."""
    x, t, y = normal(schedule.T, 1, 3, 3), torch.arange(schedule.T), torch.arange(schedule.T) % 10
    led = guess(x, t) + w * (guess(x, t, y) - guess(x, t))
    for to_noise, convert in ((noise_predictor, eps_from_x0), (noise_from_v, eps_from_v)):
        expected = convert(x, t, led, schedule)
        assert_close(to_noise(guided(guess, w), schedule)(x, t, y), expected, **EXACT)
        assert_close(guided(to_noise(guess, schedule), w)(x, t, y), expected, **EXACT)


ONE_CALL = """
import sys

import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from fmdiff_helpers.guidance import guided
from fmdiff_helpers.models.patch_unet import PatchUNet

there = torch.accelerator.current_accelerator()
net = PatchUNet(8, (1,)).eval().requires_grad_(False)
torch.nn.init.normal_(net.out.mix.weight, std=0.2)
x, t, y = torch.randn(3, 1, 4, 4), torch.tensor([3, 60, 150]), torch.tensor([3, 0, 9])


class Count(TorchDispatchMode):
    number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += 1
        return function(*args, **(kwargs or {}))


sizes, operations, options = [], [], [{}, {"interval": (50, 100)}, {"weak": lambda *given: net(*given)}]
expected = [guided(net, 2.0, **option)(x, t, y) for option in options]
net.to(there).register_forward_hook(lambda _, given, out: sizes.append(len(out)))
x, t, y = x.to(there), t.to(there), y.to(there)
for option, on_the_processor in zip(options, expected, strict=True):
    with Count() as count:
        found = guided(net, 2.0, **option)(x, t, y)
    operations.append(count.number)
    assert_close(found.cpu(), on_the_processor, rtol=1e-4, atol=1e-5)
assert sizes == [6, 6, 3, 3], sizes
assert operations[0] < 0.6 * operations[2], operations
"""


def test_on_a_gpu_one_call_of_twice_the_batch_predicts_the_same_with_fewer_operations(tmp_path):
    """A `weak` network costs two calls, there too."""
    (tmp_path / "one_call.py").write_text(ONE_CALL)
    command = [sys.executable, pretend.__file__, "cuda-bf16", tmp_path / "one_call.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


# In an interval


@pytest.mark.parametrize(("first", "last"), [(3, 6), (0, 0), (9, 9), (0, 4), (4, 4), (5, 100)])
@every_shape
def test_guidance_is_kept_to_an_interval_of_steps_both_ends_included(first, last, shape):
    x, t, y = batch(*shape)
    found = guided(guess, 3.0, interval=(first, last))(x, t, y)
    plain, everywhere = guess(x, t, y), guided(guess, 3.0)(x, t, y)
    for step in range(10):
        expected = everywhere if first <= step <= last else plain
        assert found[step].equal(expected[step])
        assert not everywhere[step].isclose(plain[step]).all()


def test_where_no_step_is_in_the_interval_the_model_is_called_once():
    x, t, y = batch(10, 1, 3, 3)
    model = Watched()
    assert guided(model, 3.0, interval=(10, 20))(x, t, y).equal(guess(x, t, y)) and len(model.calls) == 1
    guided(model, 3.0, interval=(9, 20))(x, t, y)
    assert len(model.calls) == 3


def test_without_an_interval_the_device_is_not_read():
    """On "meta" there is nothing to read: what a GPU would be waited for is an error there."""
    x, t, y = (part.to("meta") for part in batch(10, 1, 3, 3))
    for w in (1.0, 2.0):
        assert guided(guess, w)(x, t, y).shape == x.shape


def test_in_the_interval_a_weaker_network_may_guide_too():
    x, t, y = batch(10, 1, 3, 3)
    found = guided(guess, 3.0, interval=(3, 6), weak=other_guess)(x, t, y)
    led = other_guess(x, t, y) + 3 * (guess(x, t, y) - other_guess(x, t, y))
    assert_close(found[3:7], led[3:7], **EXACT)
    assert found[:3].equal(guess(x, t, y)[:3]) and found[7:].equal(guess(x, t, y)[7:])


# Without labels, and with a weaker network


def test_without_labels_there_is_nothing_to_lead_to():
    x, t, _ = batch(10, 1, 3, 3)
    for denoiser in (guided(guess, 2.0), guided(guess, 1.0), guided(guess, 2.0, weak=other_guess)):
        for y in ((), (None,)):
            with pytest.raises(ValueError, match=r"^y is None; guidance needs labels \(B,\) to lead to$"):
                denoiser(x, t, *y)


@every_w
def test_a_weaker_network_stands_for_what_the_model_says_without_labels(w):
    """It is asked with the labels, and the model itself never without."""
    x, t, y = batch(10, 1, 3, 3)
    model, weak = Watched(), Watched(other_guess)
    found = guided(model, w, weak=weak)(x, t, y)
    assert_close(found, other_guess(x, t, y) + w * (guess(x, t, y) - other_guess(x, t, y)), **EXACT)
    assert [seen[2] is y for seen in model.calls] == [True]
    assert all(seen[0] is x and seen[1] is t and seen[2] is y for seen in weak.calls)
    assert len(weak.calls) == (w != 1)


# Steering by a gradient


def attribute(x0: torch.Tensor) -> torch.Tensor:
    """How bright an image is: no straight line, and each pixel counts otherwise."""
    weights = torch.linspace(0.5, 2, x0[0].numel()).to(x0).reshape(x0.shape[1:])
    return (weights * (x0 + x0**2 / 3)).flatten(1).mean(dim=1)


def smooth(x, t, y=None):
    """A model whose every pixel depends on all others of its image."""
    kind = torch.zeros_like(t) if y is None else y
    mean = x.flatten(1).mean(dim=1)
    return torch.sin(x + 0.2 * spread(t, x)) + 0.3 * x.flip(-1) + 0.1 * spread(kind * mean, x)


def predicted(x, t, y=None):
    """Return the x0 that the model predicts, clipped to where pixels are."""
    alpha_bar = spread((1 - UNEVEN.beta).cumprod(0)[t], x)
    return ((x - (1 - alpha_bar).sqrt() * smooth(x, t, y)) / alpha_bar.sqrt()).clamp(-1, 1)


@pytest.mark.parametrize(("target", "strength"), [(0.4, 3.0), (-0.7, 50.0), (0.4, 0)])
def test_the_gradient_of_the_cost_is_added_as_much_as_there_is_noise(target, strength):
    """Against differences: what it costs to move each pixel by a millionth. Some pixels of x0 are clipped, some not."""
    x, t, y = normal(4, 1, 3, 3), torch.arange(4), torch.tensor([3, 0, 9, 5])
    slope, h = torch.zeros(4, 9).double(), 1e-6
    for place in range(9):
        step = torch.zeros(9).double()
        step[place] = h
        seen = [attribute(predicted(x + sign * step.reshape(3, 3), t, y)) for sign in (1, -1)]
        up, down = (strength * (value - target) ** 2 for value in seen)
        slope[:, place] = (up - down) / (2 * h)
    noise_scale = (1 - (1 - UNEVEN.beta).cumprod(0)).sqrt()[t, None]
    led = steered(smooth, UNEVEN, attribute, target, strength)(x, t, y)
    assert_close((led - smooth(x, t, y)).flatten(1), noise_scale * slope, rtol=1e-5, atol=1e-6)
    assert (slope.abs().amax(dim=1) > 0.1).all() or strength == 0
    assert 3 < (predicted(x, t, y).abs() == 1).sum() < 33


def test_each_image_is_steered_on_its_own():
    x, t, y = normal(4, 1, 3, 3), torch.arange(4), torch.tensor([3, 0, 9, 5])
    denoiser = steered(smooth, UNEVEN, attribute, 0.4, 3.0)
    alone = torch.cat([denoiser(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(4)])
    assert_close(denoiser(x, t, y), alone, **EXACT)


def test_images_steps_and_labels_reach_the_model():
    x, t, y = normal(4, 1, 3, 3), torch.arange(4), torch.tensor([3, 0, 9, 5])
    for arguments in ((y,), (None,), ()):
        model = Watched(smooth)
        steered(model, UNEVEN, attribute, 0.4, 3.0)(x, t, *arguments)
        ((seen, step, label),) = model.calls
        assert seen.equal(x) and step is t and label is (arguments[0] if arguments else None)


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
def test_steering_leaves_no_gradient_behind_and_needs_none_to_be_on(context):
    """Neither in what it returns, nor in the images, nor in the weights of a model that is being trained."""
    x, t = normal(4, 1, 3, 3), torch.arange(4)
    net = made(nn.Conv2d, 1, 1, 3, padding=1).double()
    with context():
        was_on = torch.is_grad_enabled()
        found = steered(lambda x, t, y: net(x), UNEVEN, attribute, 0.4, 3.0)(x, t)
        assert torch.is_grad_enabled() is was_on
        plain = net(x).detach()
    assert not found.requires_grad and found.grad_fn is None
    assert (found - plain).abs().max() > 1e-2
    assert not x.requires_grad and x.grad is None
    assert [parameter.grad for parameter in net.parameters()] == [None, None]
    assert all(parameter.requires_grad for parameter in net.parameters())
