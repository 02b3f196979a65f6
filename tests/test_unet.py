"""The claims of fmdiff_helpers.models.unet: each part against its formula, and that nothing in the network is idle."""

import math
import re
from functools import partial

import network_checks
import pytest
import torch
import torch.nn.functional as F
from network_checks import CLOSE, all_differ, differ, made, size, steps, watched, without_gradient
from torch.testing import assert_close

from fmdiff_helpers.diffusion import eps_from_v, x0_from_eps
from fmdiff_helpers.models.layers import TimeEmbedding, linear_attention, sinusoids
from fmdiff_helpers.models.unet import Attention, ConvNeXtBlock, Halve, ResNetBlock, UNet
from fmdiff_helpers.schedules import Schedule, cosine_beta

# The network of the lessons, and shapes that differ in all that an argument can say; small, to be quick.
NETWORKS = {
    "lessons": {},
    "three levels": {"width": 32, "mults": (1, 2, 4), "patch": 1},
    "deep": {"width": 16, "mults": (1, 2), "patch": 2, "depth": 3},
    "one level": {"width": 16, "mults": (1,), "patch": 4},
    "convnext": {"width": 16, "mults": (1, 3), "patch": 1, "depth": 2, "block": "convnext"},
    "labels": {"width": 16, "mults": (1, 2), "patch": 2, "num_classes": 10},
    "scales": {"width": 16, "mults": (1, 2), "patch": 2, "T": 200},
}

every_network = pytest.mark.parametrize("name", NETWORKS)
normal = partial(network_checks.normal, dtype=torch.float32)


def network(name: str, **options) -> UNet:
    """Build a network as if it were trained: its last layer, which starts at zero, is random."""
    net = made(UNet, **NETWORKS[name] | options)
    last = net.out[2].weight
    torch.nn.init.normal_(last, std=0.05, generator=torch.Generator().manual_seed(1))
    return net


# Time


def test_sinusoids_are_sine_and_cosine_at_wavelengths_from_2_pi_up_in_equal_ratios():
    t, dim = torch.tensor([0, 1, 7, 999]), 8
    found = sinusoids(t, dim)
    assert found.shape == (4, dim)
    for i, step in enumerate(t.tolist()):
        for k, wavelength in enumerate([1, 10, 100, 1000]):  # 10,000 to the power of k / 4, in units of 2 pi
            expected = torch.tensor([math.sin(step / wavelength), math.cos(step / wavelength)])
            assert_close(found[i, [k, k + 4]], expected, rtol=0, atol=1e-4)


def test_the_time_embedding_is_two_layers_that_see_the_sinusoids():
    time, t = made(TimeEmbedding, 16), steps(3, 500)
    first, _, second = time.mlp
    h = F.silu(sinusoids(t, 16) @ first.weight.T + first.bias)
    assert first.weight.shape == (64, 16) and second.weight.shape == (64, 64)
    assert_close(time(t), h @ second.weight.T + second.bias, **CLOSE)


# Attention


@pytest.mark.parametrize(("heads", "n", "d"), [(1, 49, 32), (2, 6, 4), (3, 1, 5), (1, 5, 1)])
def test_linear_attention_is_a_matrix_of_weights_applied_to_the_values(heads, n, d):
    q, k, v = (normal(2, heads, n, d, seed=seed).double() * 3 for seed in range(3))
    by_feature = q.exp() / q.exp().sum(dim=3, keepdim=True)
    by_place = k.exp() / k.exp().sum(dim=2, keepdim=True)
    weights = torch.einsum("bhid,bhjd->bhij", by_feature, by_place)
    assert_close(linear_attention(q, k, v), torch.einsum("bhij,bhjd->bhid", weights, v), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize(("channels", "heads"), [(16, 1), (56, 1), (64, 2), (84, 2), (96, 3), (112, 2), (224, 7)])
def test_attention_by_hand_place_by_place_and_head_by_head(channels, heads, linear):
    """Each head has its own `channels` / heads rows of queries, keys and values; the picture is not square."""
    attention, x = made(Attention, channels, linear), normal(2, channels, 3, 5)
    rows = torch.einsum("oc,bcyx->boyx", attention.qkv.weight[:, :, 0, 0], attention.norm(x)).flatten(2)
    q, k, v = rows.reshape(2, 3, heads, channels // heads, 15).unbind(dim=1)
    if linear:
        weights = torch.einsum("bhdi,bhdj->bhij", q.softmax(dim=2), k.softmax(dim=3))
    else:
        weights = (torch.einsum("bhdi,bhdj->bhij", q, k) / math.sqrt(channels // heads)).softmax(dim=3)
    mixed = torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(2, channels, 3, 5)
    assert_close(attention(x), x + attention.out(mixed), **CLOSE)


# Blocks

every_width = pytest.mark.parametrize(("channels_in", "channels_out"), [(16, 16), (16, 24), (12, 20)])


def convolved(x: torch.Tensor, conv: torch.nn.Conv2d) -> torch.Tensor:
    return F.conv2d(x, conv.weight, conv.bias, padding=conv.weight.shape[2] // 2, groups=conv.groups)


@every_width
def test_a_resnet_block_by_hand(channels_in, channels_out):
    """Time scales and shifts the second normalisation. Where the channels stay, the shortcut is x itself."""
    block, x, time = made(ResNetBlock, channels_in, channels_out, 8), normal(2, channels_in, 5, 6), normal(2, 8)
    x[1] = 20 * x[1] + 3  # an image that would upset a normalisation over the batch
    scale, shift = (F.silu(time) @ block.time.weight.T + block.time.bias)[:, :, None, None].chunk(2, dim=1)
    h = convolved(F.silu(F.group_norm(x, math.gcd(8, channels_in))), block.conv1)
    h = convolved(F.silu(F.group_norm(h, math.gcd(8, channels_out)) * (1 + scale) + shift), block.conv2)
    assert block.conv1.weight.shape[2:] == block.conv2.weight.shape[2:] == (3, 3)
    assert_close(block(x, time), h + (x if channels_in == channels_out else convolved(x, block.shortcut)), **CLOSE)


@every_width
def test_a_convnext_block_by_hand(channels_in, channels_out):
    block, x, time = made(ConvNeXtBlock, channels_in, channels_out, 8), normal(2, channels_in, 9, 9), normal(2, 8)
    x[1] = 20 * x[1] + 3
    first, second = block.net[1], block.net[4]
    h = convolved(x, block.depthwise) + (F.gelu(time) @ block.time.weight.T + block.time.bias)[:, :, None, None]
    h = F.gelu(convolved(F.group_norm(h, 1), first))
    h = convolved(F.group_norm(h, 1), second)
    assert block.depthwise.weight.shape == (channels_in, 1, 7, 7)
    assert first.weight.shape[2:] == second.weight.shape[2:] == (3, 3)
    assert_close(block(x, time), h + (x if channels_in == channels_out else convolved(x, block.shortcut)), **CLOSE)


# The network


def predicted(net: UNet, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
    """Return what the network says, from its parts: each skip goes to the stage opposite, cut to the skip's size."""
    time = net.time(t) if y is None else net.time(t) + net.label.weight[y]
    h, skips = net.stem(x), []
    stem = h
    for *stages, halve in net.down:
        for stage in stages:
            skips.append(stage.attention(stage.block(h, time)))
            h = skips[-1]
        h = halve(h)
    middle, block = net.middle
    h = block(middle.attention(middle.block(h, time)), time)
    for *stages, double in net.up:
        for stage in stages:
            skip = skips.pop()
            joined = torch.cat([h[:, :, : skip.shape[2], : skip.shape[3]], skip], dim=1)
            h = stage.attention(stage.block(joined, time))
        h = double(h)
    found = net.out(net.last(torch.cat([h, stem], dim=1), time))
    return found if net.noise_scale is None else eps_from_v(x, t, found, Schedule(cosine_beta(200)))


@every_network
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 7), (5, 6), (1, 9)])
def test_the_network_is_its_parts_one_after_the_other(name, height, width):
    """Blocks are told the sum of what step and label say."""
    net = network(name)
    x, y = normal(2, 1, height * net.patch, width * net.patch), steps(4, 9) if net.num_classes else None
    found = net(x, steps(3, 150), y)
    assert found.shape == x.shape and differ(found, torch.zeros_like(x), by=0.01)
    assert_close(found, predicted(net, x, steps(3, 150), y), **CLOSE)


@pytest.mark.parametrize("mults", [(2,), (2, 1), (3, 1, 2)])
@pytest.mark.parametrize("block", ["resnet", "convnext"])
def test_widths_need_not_be_powers_of_two_nor_the_first_level_as_wide_as_the_stem(block, mults):
    net, x = network("lessons", width=28, mults=mults, block=block), normal(1, 1, 24, 24)
    found = net(x, steps(5))
    assert found.shape == x.shape and differ(found, torch.zeros_like(x), by=0.01)


def kept(net: UNet, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return what the network says before its layers add anything: nothing, or a share of the picture itself."""
    return torch.zeros_like(x) if net.noise_scale is None else net.noise_scale[t].reshape(-1, 1, 1, 1) * x


@every_network
def test_an_untrained_network_says_no_noise_or_as_much_as_a_grey_picture_would_have(name):
    net, x, t = made(UNet, **NETWORKS[name]), normal(2, 1, 28, 28), steps(0, 199)
    assert net(x, t).equal(kept(net, x, t))


@every_network
def test_the_predicted_noise_has_no_bounds(name):
    """A last layer a thousand times larger says a thousand times as much."""
    net, x, t = network(name), normal(2, 1, 28, 28), steps(3, 150)
    before = net(x, t) - kept(net, x, t)
    net.out[2].weight.data *= 1000
    assert_close(net(x, t) - kept(net, x, t), 1000 * before, rtol=1e-4, atol=2e-2)


@pytest.mark.parametrize(("height", "width"), [(28, 27), (31, 28), (28, 1)])
def test_a_picture_that_does_not_divide_by_the_patch_is_refused_by_its_shape(height, width):
    message = f"images are (2, 1, {height}, {width}); expected height and width that divide by 2"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        network("lessons")(normal(2, 1, height, width), steps(0, 1))


@pytest.mark.parametrize(("height", "width"), [(7, 7), (6, 8), (5, 4), (1, 1)])
def test_an_odd_height_or_width_is_halved_with_zeros_in_the_missing_row_or_column(height, width):
    halve, x = made(Halve, 3), normal(2, 3, height, width)
    larger = torch.zeros(2, 3, 2 * math.ceil(height / 2), 2 * math.ceil(width / 2))
    larger[:, :, :height, :width] = x
    blocks = larger.unfold(2, 2, 2).unfold(3, 2, 2)  # (B, C, rows, columns, 2, 2)
    expected = torch.einsum("bcijkl,ockl->boij", blocks, halve.weight) + halve.bias[:, None, None]
    assert_close(halve(x), expected)


# Latents: small pictures of several channels


@pytest.mark.parametrize(("height", "width"), [(7, 7), (8, 8), (1, 1), (4, 5)])
def test_the_predicted_noise_has_the_channels_and_the_size_of_the_picture(height, width):
    net = network("labels", channels=4, patch=1)
    x, t, y = normal(2, 4, height, width), steps(3, 150), torch.tensor([4, 10])
    middle = watched([net.middle[0]])
    assert net(x, t, y).shape == x.shape
    assert middle[0][1].shape[2:] == (math.ceil(height / 2), math.ceil(width / 2))
    assert made(UNet, channels=4, patch=1)(x, t).equal(torch.zeros_like(x))


def test_a_network_for_one_channel_is_the_one_of_before_and_channels_cost_only_their_ends():
    """Each further channel is `patch` squared more maps that the first convolution sees and the last one gives."""
    one, plain, four = (made(UNet, **options).state_dict() for options in ({"channels": 1}, {}, {"channels": 4}))
    assert all(one[name].equal(tensor) for name, tensor in plain.items()) and one.keys() == plain.keys()
    larger = {name: four[name].numel() - tensor.numel() for name, tensor in plain.items()}
    ends = {"stem.1.weight": 12 * 32 * 9, "out.2.weight": 12 * 32 * 9, "out.2.bias": 12}
    assert {name: more for name, more in larger.items() if more} == ends and four.keys() == plain.keys()


# What is inside


@every_network
def test_every_parameter_gets_a_gradient(name):
    net = network(name)
    y = torch.tensor([3, net.num_classes]) if net.num_classes else None
    net(normal(2, 1, 28, 28), steps(3, 150), y).square().sum().backward()
    assert without_gradient(net) == []
    if net.num_classes:
        assert net.label.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist() == [3, 10]


def test_levels_halve_the_picture_and_have_the_channels_that_mults_say():
    net = network("three levels", depth=2)
    down = watched(stage for level in net.down for stage in level[:-1])
    middle = watched(net.middle)
    up = watched(stage for level in net.up for stage in level[:-1])
    net(normal(1, 1, 28, 28), steps(3))
    shapes = [(32, 28, 28), (64, 14, 14), (128, 7, 7)]
    assert [output.shape[1:] for _, output in down] == [shape for shape in shapes for _ in range(2)]
    assert [output.shape[1:] for _, output in middle] == [shapes[-1]] * 2
    assert [output.shape[1:] for _, output in up] == [shape for shape in reversed(shapes) for _ in range(2)]


def test_the_way_up_repeats_every_pixel_four_times_before_it_is_smoothed():
    net = network("three levels")
    before, after = watched([net.up[0][-1]]), watched(net.up[0][-1][:1])
    net(normal(1, 1, 28, 28), steps(3))
    below, above = before[0][0][0], after[0][1]
    assert above.equal(below.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


def test_attention_is_full_where_the_picture_is_smallest_and_linear_above():
    net = network("three levels")
    kinds = [[stage.attention.attend is linear_attention for stage in level[:-1]] for level in [*net.down, *net.up]]
    assert kinds == [[True], [True], [False], [False], [True], [True]]
    assert net.middle[0].attention.attend is F.scaled_dot_product_attention


@every_network
def test_the_step_changes_the_predicted_noise_and_each_image_has_its_own(name):
    net, x = network(name), normal(1, 1, 28, 28)
    early, late = net(x, steps(3)), net(x, steps(150))
    assert differ(early, late)
    x2 = torch.cat([x, 5 * normal(1, 1, 28, 28, seed=1) + 2])
    assert_close(net(x2, steps(3, 150))[:1], early, **CLOSE)
    assert_close(net(x2, steps(150, 3))[:1], late, **CLOSE)


def test_building_twice_gives_the_same_number_of_parameters_and_depth_and_width_more():
    number = size(UNet())
    assert number == size(UNet(width=32, mults=(1, 2), patch=2, depth=1, block="resnet", num_classes=0)) == 598_564
    larger = [{"depth": 2}, {"width": 40}, {"mults": (1, 3)}, {"block": "convnext"}]
    assert number < min(size(UNet(**options)) for options in larger)
    assert size(UNet(num_classes=10)) == number + 11 * 128


def test_with_the_scales_its_layers_find_v_and_the_network_the_noise_that_v_implies():
    """However little signal there is, an error of the layers is not enlarged in the predicted x0."""
    plain, net, schedule = network("scales", T=0), network("scales"), Schedule(cosine_beta(200))
    x, t = normal(4, 1, 28, 28), steps(0, 70, 150, 199)
    v = plain(x, t)
    x0_hat = schedule.signal_scale[t].float().reshape(-1, 1, 1, 1) * x
    x0_hat -= schedule.noise_scale[t].float().reshape(-1, 1, 1, 1) * v
    assert_close(x0_from_eps(x, t, net(x, t), schedule)[:3], x0_hat[:3], rtol=1e-3, atol=1e-4)
    assert (x0_from_eps(x, t, net(x, t), schedule) - x0_hat).abs().max() < 0.01  # rounding, divided by 0.0002
    assert not {"signal_scale", "noise_scale"} & net.state_dict().keys()  # T says what they are


def test_an_unknown_block_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^block is 'densenet'; expected one of 'resnet', 'convnext'$"):
        UNet(block="densenet")


# Labels


def test_different_labels_give_different_noise_and_each_image_has_its_own():
    net, x = network("labels"), normal(1, 1, 28, 28)
    alone = [net(x, steps(50), steps(label)) for label in range(11)]
    assert all_differ(alone)
    together = net(x.expand(2, -1, -1, -1), steps(50, 50), steps(7, 2))
    assert_close(together, torch.cat([alone[7], alone[2]]), **CLOSE)


def test_no_label_is_the_null_label():
    net, x, t = network("labels"), normal(2, 1, 28, 28), steps(3, 150)
    assert net(x, t).equal(net(x, t, torch.tensor([10, 10])))
    assert net(x, t).equal(net(x, t, None))


def test_labels_for_a_network_without_are_refused():
    with pytest.raises(ValueError, match=r"^y was given to a network without labels; build it with num_classes=10"):
        network("lessons")(normal(1, 1, 28, 28), steps(0), torch.tensor([1]))
