"""The claims of fmdiff_helpers.models.patch_unet: patches are strided convolutions, no place moves, nothing is idle."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from network_checks import CLOSE, EXACT, all_differ, differ, made, normal, size, steps, watched, without_gradient
from torch import nn
from torch.testing import assert_close

from fmdiff_helpers.checkpoints import build
from fmdiff_helpers.models.patch_unet import DoubleConv, PatchConv, PatchExpand, PatchUNet, normalise
from fmdiff_helpers.models.unet import Attention
from fmdiff_helpers.recipes import CARDS

# The network of the lesson, and shapes that differ in all that an argument can say; small, to be quick.
NETWORKS = {
    "lesson": {},
    "three levels": {"width": 16, "mults": (1, 2, 2)},
    "one level": {"width": 16, "mults": (1,), "patch_size": 4},
    "pixel by pixel": {"width": 16, "mults": (2, 1), "patch_size": 1},
    "no attention": {"width": 16, "attention": False},
}

every_network = pytest.mark.parametrize("name", NETWORKS)
every_patch_size = pytest.mark.parametrize("patch_size", [2, 3, 4])
every_norm = pytest.mark.parametrize("norm", ["group", "batch"])


def pictures(n: int = 2, height: int = 28, width: int = 28) -> torch.Tensor:
    return normal(n, 1, height, width).float()


def network(name: str, **options) -> PatchUNet:
    """Build a network as if it were trained: its last layer, which starts at zero, is random."""
    net = made(PatchUNet, **NETWORKS[name] | options)
    nn.init.normal_(net.out.mix.weight, std=0.2, generator=torch.Generator().manual_seed(1))
    return net.eval()


def double_conv(in_channels: int, out_channels: int, **options) -> DoubleConv:
    """Build a double convolution in float64 with an embedding of 8 numbers and norms that scale and shift, too."""
    part = made(DoubleConv, in_channels, out_channels, 8, **options).double()
    for k, norm in enumerate((part.norm1, part.norm2)):
        norm.weight.data, norm.bias.data = 1 + normal(out_channels, seed=k) / 4, normal(out_channels, seed=5 + k)
    return part


# Patches


@every_patch_size
@pytest.mark.parametrize(("height", "width"), [(7, 7), (6, 9), (5, 4), (1, 1), (12, 24)])
def test_folding_patches_and_mixing_them_is_a_convolution_with_a_stride(patch_size, height, width):
    """Row o of the mix is the kernel of channel o. Sizes are rounded up, with zeros at the bottom and on the right."""
    part, x = made(PatchConv, 3, 4, patch_size).double(), normal(2, 3, height, width)
    rows, columns = math.ceil(height / patch_size), math.ceil(width / patch_size)
    larger = torch.zeros(2, 3, rows * patch_size, columns * patch_size).double()
    larger[:, :, :height, :width] = x
    kernel = part.mix.weight.reshape(4, 3, patch_size, patch_size)
    assert_close(part(x), F.conv2d(larger, kernel, part.mix.bias, stride=patch_size), **EXACT)


@every_patch_size
@pytest.mark.parametrize(("in_channels", "out_channels"), [(8, 1), (5, 3)])
def test_mixing_and_unfolding_is_a_transposed_convolution_with_a_stride(in_channels, out_channels, patch_size):
    """Each place of a patch has its own bias."""
    part, x = made(PatchExpand, in_channels, out_channels, patch_size).double(), normal(2, in_channels, 3, 5)
    kernel = part.mix.weight[:, :, 0, 0].T.reshape(in_channels, out_channels, patch_size, patch_size)
    bias = part.mix.bias.reshape(out_channels, patch_size, patch_size).repeat(1, 3, 5)
    assert_close(part(x), F.conv_transpose2d(x, kernel, stride=patch_size) + bias, **EXACT)


# A double convolution


def normalised(h: torch.Tensor, norm: nn.Module) -> torch.Tensor:
    """Bring h to mean 0 and variance 1, for each image over an eighth of the channels or over the whole batch."""
    dims, x = ((2, 3, 4), h.unflatten(1, (8, -1))) if isinstance(norm, nn.GroupNorm) else ((0, 2, 3), h)
    centred = x - x.mean(dim=dims, keepdim=True)
    unit = (centred / (centred.square().mean(dim=dims, keepdim=True) + 1e-5).sqrt()).reshape(h.shape)
    return norm.weight[:, None, None] * unit + norm.bias[:, None, None]


def gelu(h: torch.Tensor) -> torch.Tensor:
    return h * (1 + torch.erf(h / math.sqrt(2))) / 2


def convolved(h: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    return F.conv2d(h, conv.weight, conv.bias, padding=conv.weight.shape[2] // 2)


@every_norm
@pytest.mark.parametrize(("in_channels", "out_channels"), [(16, 16), (8, 24), (24, 16)])
def test_a_double_convolution_by_hand(norm, in_channels, out_channels):
    """In training mode, so that "batch" is over this batch."""
    part, x, emb = double_conv(in_channels, out_channels, norm=norm), normal(3, in_channels, 5, 6), normal(3, 8, seed=1)
    told = (emb / (1 + (-emb).exp())) @ part.emb.weight.T + part.emb.bias
    scale, shift = told[:, :out_channels, None, None], told[:, out_channels:, None, None]
    h = gelu(normalised(convolved(x, part.conv1), part.norm1) * (1 + scale) + shift)
    h = normalised(convolved(h, part.conv2), part.norm2)
    assert part.conv1.weight.shape[2:] == part.conv2.weight.shape[2:] == (3, 3)
    assert part.shortcut.weight.shape[2:] == (1, 1)
    assert_close(part(x, emb), gelu(h + convolved(x, part.shortcut)), **EXACT)


@pytest.mark.parametrize("training", [True, False])
def test_over_the_group_each_image_is_on_its_own_and_over_the_batch_only_once_it_is_trained(training):
    x, emb = normal(2, 8, 5, 5), normal(2, 8, seed=1)
    other = torch.cat([x[:1], 20 * x[1:] + 3])
    for norm in ("group", "batch"):
        part = double_conv(8, 16, norm=norm).train(training)
        one, beside_another = part(x, emb)[:1], part(other, emb)[:1]
        if norm == "batch" and training:
            assert differ(one, beside_another, by=0.1)
        else:
            assert_close(one, beside_another, **EXACT)


@pytest.mark.parametrize("norm", ["layer", "", None])
def test_a_norm_that_is_neither_is_refused_by_value(norm):
    message = f"^norm is {re.escape(repr(norm))}; expected 'group' or 'batch'$"
    for make in (lambda: normalise(norm, 8), lambda: DoubleConv(8, 8, 8, norm), lambda: PatchUNet(16, norm=norm)):
        with pytest.raises(ValueError, match=message):
            make()


def test_dropout_drops_whole_channels_in_training_alone():
    """What is left of an image's channels is twice as large, so that the mean stays."""
    part, x, emb = double_conv(8, 16, dropout=0.5), normal(4, 8, 5, 5), normal(4, 8, seed=1)
    seen = watched([part.dropout])
    part.eval()(x, emb)
    (before,), after = seen[0]
    assert after.equal(before)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        part.train()(x, emb)
    (before,), after = seen[1]
    kept = (after != 0).any(dim=(2, 3))
    assert_close(after, torch.where(kept[:, :, None, None], 2 * before, 0.0), **EXACT)
    assert 16 < kept.sum() < 48  # of 64, half, give or take 4 standard deviations
    assert len(kept.unique(dim=0)) == 4  # each image has its own


# The network


@every_network
@pytest.mark.parametrize(("height", "width"), [(14, 14), (7, 7), (5, 6), (1, 9)])
def test_the_network_is_its_parts_one_after_the_other(name, height, width):
    """All blocks are told the sum of what step and label say; every skip goes to the part opposite.

    What was added to an odd size at the bottom and on the right is cut off again.
    """
    net, t, y = network(name), steps(3, 150), steps(0, 7)
    x = pictures(2, height * net.patch_size, width * net.patch_size)
    emb = net.time(t) + net.label.weight[y]
    stem = net.stem(x)
    skips = [net.first(stem, emb)]
    for down in net.down:
        h = down.conv(down.fold(skips[-1]), emb)
        skips.append(down.attention(h))
    h = net.middle(skips[-1], emb)
    for up, skip in zip(net.up, skips[-2::-1], strict=True):
        above = up.unfold(h)[:, :, : skip.shape[2], : skip.shape[3]]
        h = up.attention(up.conv(torch.cat([above, skip], dim=1), emb))
    found = net(x, t, y)
    assert found.shape == x.shape and differ(found, torch.zeros_like(found), by=0.01)
    assert_close(found, net.out(net.last(torch.cat([h, stem], dim=1), emb)), **CLOSE)
    assert len(net.down) == len(net.up) == len(NETWORKS[name].get("mults", (1, 2))) - 1


@every_network
def test_an_untrained_network_says_0(name):
    x = pictures()
    assert made(PatchUNet, **NETWORKS[name])(x, steps(0, 199), steps(0, 9)).equal(torch.zeros_like(x))


@every_network
def test_the_prediction_has_no_bounds(name):
    """A last layer a thousand times larger says a thousand times as much."""
    net, x, t = network(name), pictures(), steps(3, 150)
    before = net(x, t)
    net.out.mix.weight.data *= 1000
    assert_close(net(x, t), 1000 * before, rtol=1e-4, atol=1e-2)


def test_levels_halve_the_picture_and_have_the_channels_that_mults_say():
    net = network("three levels", mults=(1, 2, 3))
    down, middle, up = watched(net.down), watched([net.middle]), watched(net.up)
    first = watched([net.first, net.last])
    net(pictures(1), steps(3))
    assert [output.shape[1:] for _, output in first] == [(16, 14, 14)] * 2
    assert [output.shape[1:] for _, output in down] == [(32, 7, 7), (48, 4, 4)]
    assert [output.shape[1:] for _, output in middle] == [(48, 4, 4)]
    assert [output.shape[1:] for _, output in up] == [(32, 7, 7), (16, 14, 14)]


@every_network
def test_no_label_is_the_null_label(name):
    net, x, t = network(name), pictures(), steps(3, 150)
    assert net.num_classes == 10
    assert net(x, t).equal(net(x, t, steps(10, 10))) and net(x, t).equal(net(x, t, None))


@every_network
def test_step_and_label_change_the_prediction_and_each_image_has_its_own(name):
    """Each image is on its own: beside another one, far brighter, it gets what it gets alone."""
    net, x = network(name), pictures(1)
    asked = [(3, 0), (150, 0), (3, 7), (150, 7), (3, 10)]
    alone = [net(x, steps(t), steps(y)) for t, y in asked]
    assert all_differ(alone)
    t, y = torch.tensor([*asked, (60, 2)]).T
    batch = torch.cat([x.expand(len(asked), -1, -1, -1), 20 * x + 3])
    assert_close(net(batch, t, y)[:-1], torch.cat(alone), **CLOSE)


@every_norm
def test_after_training_each_image_is_on_its_own_whatever_the_norm(norm):
    net, x, t, y = network("three levels", norm=norm), pictures(3), steps(3, 150, 60), steps(0, 7, 10)
    x[1] = 20 * x[1] + 3
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(3)])
    assert_close(net(x, t, y), alone, **CLOSE)
    assert differ(net.train()(x, t, y), alone) is (norm == "batch")
    kinds = {type(module) for module in net.modules()}
    assert (nn.BatchNorm2d in kinds) is (norm == "batch")


def test_dropout_in_the_network_is_for_training_alone():
    plain, net = (network("three levels", dropout=dropout) for dropout in (0.0, 0.3))
    x, t = pictures(), steps(3, 150)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert net(x, t).equal(plain(x, t))
        assert plain.train()(x, t).equal(plain.eval()(x, t))
        assert differ(net.train()(x, t), plain(x, t))
    parts = [module for module in net.modules() if isinstance(module, DoubleConv)]
    assert len(parts) == 7 and all(part.dropout.p == 0.3 for part in parts)


@pytest.mark.parametrize(("height", "width", "patch_size"), [(28, 27, 2), (31, 28, 2), (28, 1, 2), (28, 30, 4)])
def test_a_picture_that_does_not_divide_into_patches_is_refused_by_its_shape(height, width, patch_size):
    message = f"images are (2, 1, {height}, {width}); expected height and width that divide by {patch_size}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        network("one level", patch_size=patch_size)(pictures(2, height, width), steps(0, 1))


@every_network
def test_every_parameter_gets_a_gradient(name):
    net = network(name).train()
    net(pictures(), steps(3, 150), steps(3, 10)).square().sum().backward()
    assert without_gradient(net) == []
    assert net.label.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist() == [3, 10]


def test_building_twice_gives_the_same_number_of_parameters_and_more_of_all_more_of_them():
    number = size(PatchUNet())
    assert number == size(build(CARDS["patch_unet"])) == 736_996
    larger = [{"width": 56}, {"mults": (1, 3)}, {"mults": (1, 2, 2)}, {"patch_size": 4}]
    assert number < min(size(PatchUNet(**options)) for options in larger)
    assert size(PatchUNet(num_classes=11)) == number + 4 * 48
    assert size(PatchUNet(norm="batch")) == size(PatchUNet(dropout=0.5)) == number


def test_without_attention_there_is_none_and_with_it_one_at_each_end_of_a_fold():
    """Each costs what its norm, its queries, keys and values and its way out hold."""
    with_it, without = (PatchUNet(16, (1, 2, 2), attention=attention) for attention in (True, False))
    channels = [module.norm.num_channels for module in with_it.modules() if isinstance(module, Attention)]
    assert channels == [32, 32, 32, 16]
    assert not any(isinstance(module, Attention) for module in without.modules())
    assert size(with_it) - size(without) == sum(2 * c + 3 * c * c + c * c + c for c in channels)


@every_network
def test_images_may_lie_in_memory_channel_by_channel_or_pixel_by_pixel(name):
    net, x, t, y = network(name), pictures(), steps(3, 150), steps(3, 10)
    before = net(x, t, y)
    after = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), t, y)
    assert (after.dtype, after.shape) == (torch.float32, x.shape)
    assert_close(after, before, **CLOSE)
