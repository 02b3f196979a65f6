"""The claims of fmdiff_helpers.models.unet: each part against its formula, and that nothing in the network is idle."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fmdiff_helpers.models.layers import TimeEmbedding, linear_attention, sinusoids
from fmdiff_helpers.models.unet import Attention, ConvNeXtBlock, Halve, ResNetBlock, UNet

# The network of the lessons, and shapes that differ in all that an argument can say; small, to be quick.
NETWORKS = {
    "lessons": {},
    "three levels": {"width": 32, "mults": (1, 2, 4), "patch": 1},
    "deep": {"width": 16, "mults": (1, 2), "patch": 2, "depth": 3},
    "one level": {"width": 16, "mults": (1,), "patch": 4},
    "convnext": {"width": 16, "mults": (1, 3), "patch": 1, "depth": 2, "block": "convnext"},
    "labels": {"width": 16, "mults": (1, 2), "patch": 2, "num_classes": 10},
}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32, summed in another order

every_network = pytest.mark.parametrize("name", NETWORKS)
every_block = pytest.mark.parametrize("block", [ResNetBlock, ConvNeXtBlock])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def steps(*t: int) -> torch.Tensor:
    return torch.tensor(t)


def made(part: type, *arguments, **options) -> torch.nn.Module:
    """Build a part or a network, always with the same weights, and leave the global random numbers alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return part(*arguments, **options)


def network(name: str, **options) -> UNet:
    """Build a network as if it were trained: its last layer, which starts at zero, is random."""
    net = made(UNet, **NETWORKS[name] | options)
    last = net.out[2].weight
    torch.nn.init.normal_(last, std=0.05, generator=torch.Generator().manual_seed(1))
    return net


def differ(a: torch.Tensor, b: torch.Tensor, by: float = 1e-3) -> bool:
    """Tell whether two results are more apart than rounding could put them."""
    return (a - b).abs().max().item() > by


def watched(modules) -> list:
    """Return a list that fills with (inputs, output) of each module at its next call."""
    calls = []
    for module in modules:
        module.register_forward_hook(lambda _, inputs, output: calls.append((inputs, output)))
    return calls


# Time


def test_sinusoids_are_sine_and_cosine_at_wavelengths_from_2_pi_up_in_equal_ratios():
    t, dim = torch.tensor([0, 1, 7, 999]), 8
    found = sinusoids(t, dim)
    assert found.shape == (4, dim)
    for i, step in enumerate(t.tolist()):
        for k, wavelength in enumerate([1, 10, 100, 1000]):  # 10,000 to the power of k / 4, in units of 2 pi
            expected = torch.tensor([math.sin(step / wavelength), math.cos(step / wavelength)])
            assert_close(found[i, [k, k + 4]], expected, rtol=0, atol=1e-4)


def test_sinusoids_of_neighbouring_steps_differ_and_their_length_never_does():
    found = sinusoids(torch.arange(1000), 32)
    assert_close(found.square().sum(dim=1), torch.full((1000,), 16.0), rtol=1e-5, atol=0)
    apart = torch.cdist(found, found, compute_mode="donot_use_mm_for_euclid_dist") + 10 * torch.eye(1000)
    assert apart.min() > 0.5
    assert_close(apart.diagonal(1), apart.diagonal(1)[:1].expand(999), rtol=1e-2, atol=0)  # everywhere as far apart


def test_the_time_embedding_is_a_function_of_the_step_alone():
    time = made(TimeEmbedding, 16)
    found = time(steps(3, 500, 3))
    assert found.shape == (3, 64)
    assert_close(found[0], found[2], rtol=0, atol=1e-6)
    assert differ(found[0], found[1])
    assert differ(time(steps(499)), time(steps(500)))


# Attention


@pytest.mark.parametrize(("heads", "n", "d"), [(1, 49, 32), (2, 6, 4), (3, 1, 5), (1, 5, 1)])
def test_linear_attention_is_a_matrix_of_weights_applied_to_the_values(heads, n, d):
    q, k, v = (normal(2, heads, n, d, seed=seed).double() * 3 for seed in range(3))
    by_feature = q.exp() / q.exp().sum(dim=3, keepdim=True)
    by_place = k.exp() / k.exp().sum(dim=2, keepdim=True)
    weights = torch.einsum("bhid,bhjd->bhij", by_feature, by_place)
    assert_close(linear_attention(q, k, v), torch.einsum("bhij,bhjd->bhid", weights, v), rtol=1e-9, atol=1e-12)


def test_rows_of_the_linear_attention_matrix_are_shares():
    """The matrix is what comes out for values that are the identity: none is negative, and rows sum to 1."""
    q, k, v = normal(2, 3, 8, 8), normal(2, 3, 8, 8, seed=1), torch.eye(8).expand(2, 3, 8, 8)
    weights = linear_attention(q, k, v)
    assert (weights >= 0).all()
    assert_close(weights.sum(dim=3), torch.ones(2, 3, 8), rtol=1e-5, atol=0)
    assert differ(weights.sum(dim=2), torch.ones(2, 3, 8), by=0.1)  # not the columns


def test_linear_attention_does_not_mind_the_order_of_places_or_a_constant_in_the_keys():
    q, k, v = normal(1, 2, 6, 4), normal(1, 2, 6, 4, seed=1), normal(1, 2, 6, 4, seed=2)
    whole, order = linear_attention(q, k, v), torch.tensor([3, 0, 5, 1, 4, 2])
    assert_close(linear_attention(q, k[:, :, order], v[:, :, order]), whole, **CLOSE)
    assert_close(linear_attention(q[:, :, order], k, v), whole[:, :, order], **CLOSE)
    assert_close(linear_attention(q, k + torch.tensor([1.0, -2, 3, 0]), v), whole, **CLOSE)  # one for each feature
    assert_close(linear_attention(q + normal(1, 2, 6, 1, seed=3), k, v), whole, **CLOSE)  # one for each place


@pytest.mark.parametrize("linear", [False, True])
def test_attention_lets_the_farthest_place_speak_and_is_added_to_the_picture(linear):
    attention, x = made(Attention, 32, linear), normal(1, 32, 7, 7)
    changed = x.clone()
    changed[0, :, 0, 0] += torch.linspace(-5, 5, 32)
    mixed = [attention(picture) - picture for picture in (x, changed)]
    assert mixed[0].shape == x.shape
    assert differ(mixed[0][0, :, 6, 6], mixed[1][0, :, 6, 6])
    torch.nn.init.zeros_(attention.out.weight)
    torch.nn.init.zeros_(attention.out.bias)
    assert attention(x).equal(x)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize(("channels", "heads"), [(16, 1), (32, 1), (64, 2), (128, 4)])
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


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("channels", [28, 56, 84, 96, 112, 160, 224])
def test_any_number_of_channels_divides_into_heads(channels, linear):
    x = normal(1, channels, 2, 2)
    assert made(Attention, channels, linear)(x).shape == x.shape


def test_attention_turns_with_the_picture():
    """No place is special: a picture in another order gives the result in that order, which tells rows from columns."""
    for linear in (False, True):
        attention, x = made(Attention, 64, linear), normal(1, 64, 3, 5)
        assert_close(attention(x.transpose(2, 3)), attention(x).transpose(2, 3), **CLOSE)
        assert_close(attention(x.flip(2)), attention(x).flip(2), **CLOSE)


# Blocks


@every_block
@pytest.mark.parametrize(("channels_in", "channels_out"), [(16, 16), (16, 24), (24, 16)])
def test_a_block_keeps_height_and_width_and_its_shortcut_carries_the_input_on(block, channels_in, channels_out):
    """With the last convolution at zero, the shortcut is all there is: the input itself if the channels stay."""
    part, x = made(block, channels_in, channels_out, 8), normal(2, channels_in, 5, 6)
    assert part(x, normal(2, 8)).shape == (2, channels_out, 5, 6)
    last = part.conv2 if block is ResNetBlock else part.net[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    through = part(x, normal(2, 8))
    if channels_in == channels_out:
        assert through.equal(x)
    else:
        assert_close(through, F.conv2d(x, part.shortcut.weight, part.shortcut.bias), rtol=0, atol=0)
        assert differ(through, torch.zeros_like(through))


@every_block
def test_a_block_listens_to_time_by_its_time_weights_alone(block):
    part, x = made(block, 16, 24, 8), normal(2, 16, 5, 5)
    one, other = normal(2, 8), normal(2, 8, seed=1)
    assert differ(part(x, one), part(x, other), by=0.01)
    torch.nn.init.zeros_(part.time.weight)
    torch.nn.init.zeros_(part.time.bias)
    assert_close(part(x, one), part(x, other), rtol=0, atol=0)


@every_block
def test_each_image_gets_its_own_time_and_its_own_normalisation(block):
    part, x, time = made(block, 16, 24, 8), normal(2, 16, 5, 5), normal(2, 8)
    x[1] = 20 * x[1] + 3  # an image that would upset a normalisation over the batch
    together = part(x, time)
    for i in range(2):
        assert_close(together[i : i + 1], part(x[i : i + 1], time[i : i + 1]), **CLOSE)
    assert differ(together, part(x, time.flip(0)), by=0.01)


def test_time_scales_and_shifts_the_normalised_picture_of_a_resnet_block():
    """At scale -1 nothing is left but the shift; at scale 1 the normalised picture is twice as large as at 0."""
    block, x = made(ResNetBlock, 16, 16, 8), normal(1, 16, 5, 5)
    torch.nn.init.zeros_(block.time.weight)
    block.conv2 = torch.nn.Identity()  # to see what the second convolution sees

    def seen(scale: float, shift: float) -> torch.Tensor:
        block.time.bias.data = torch.cat([torch.full((16,), scale), torch.full((16,), shift)])
        return block(x, torch.zeros(1, 8)) - x

    assert_close(seen(-1.0, 0.7), torch.full_like(x, 0.7 / (1 + math.exp(-0.7))), **CLOSE)  # SiLU of the shift
    first = F.conv2d(F.silu(F.group_norm(x, 8)), block.conv1.weight, block.conv1.bias, padding=1)
    grouped = first.reshape(1, 8, -1)
    normalised = (grouped - grouped.mean(2, keepdim=True)) / (grouped.var(2, keepdim=True, correction=0) + 1e-5).sqrt()
    for scale, shift in [(0.0, 0.0), (1.0, 0.0), (-0.5, 2.0)]:
        assert_close(seen(scale, shift), F.silu((1 + scale) * normalised.reshape(x.shape) + shift), **CLOSE)


def test_a_resnet_block_reads_time_through_silu():
    block, x = made(ResNetBlock, 16, 16, 1), normal(1, 16, 5, 5)
    torch.nn.init.ones_(block.time.weight)
    torch.nn.init.zeros_(block.time.bias)
    block.conv2 = torch.nn.Identity()
    level = -1.2784645  # where SiLU is lowest, so a little more or less of it changes nothing
    assert_close(block(x, torch.full((1, 1), level + 1e-3)), block(x, torch.full((1, 1), level)), rtol=0, atol=1e-5)
    assert differ(block(x, torch.full((1, 1), level + 1)), block(x, torch.full((1, 1), level)), by=0.01)


def test_a_convnext_block_is_its_layers_one_after_the_other():
    block, x, time = made(ConvNeXtBlock, 16, 24, 8), normal(2, 16, 9, 9), normal(2, 8)
    depthwise, first, second = block.depthwise, block.net[1], block.net[4]
    assert depthwise.weight.shape == (16, 1, 7, 7)
    h = F.conv2d(x, depthwise.weight, depthwise.bias, padding=3, groups=16)
    h = h + (F.gelu(time) @ block.time.weight.T + block.time.bias)[:, :, None, None]
    h = F.gelu(F.conv2d(F.group_norm(h, 1), first.weight, first.bias, padding=1))
    h = F.conv2d(F.group_norm(h, 1), second.weight, second.bias, padding=1)
    assert_close(block(x, time), h + block.shortcut(x), **CLOSE)


# The network


@every_network
def test_the_predicted_noise_has_the_shape_of_the_picture(name):
    net = network(name)
    for height, width in [(28, 28), (net.patch, 2 * net.patch), (32, 8)]:
        x = normal(2, 1, height, width)
        assert net(x, steps(0, 199)).shape == x.shape


@pytest.mark.parametrize("block", ["resnet", "convnext"])
def test_widths_that_are_no_power_of_two_work(block):
    net = network("lessons", width=28, mults=(1, 2, 4), patch=1, depth=2, block=block)
    x = normal(1, 1, 28, 28)
    found = net(x, steps(5))
    assert found.shape == x.shape
    assert differ(found, torch.zeros_like(x), by=0.01)


@pytest.mark.parametrize("mults", [(2,), (2, 1), (3, 1, 2)])
def test_the_outermost_level_may_have_other_channels_than_the_stem(mults):
    net, x = network("lessons", width=16, mults=mults), normal(1, 1, 24, 24)
    assert net(x, steps(5)).shape == x.shape


@every_network
def test_an_untrained_network_says_no_noise(name):
    x = normal(2, 1, 28, 28)
    assert made(UNet, **NETWORKS[name])(x, steps(0, 199)).equal(torch.zeros_like(x))


@every_network
def test_the_predicted_noise_has_no_bounds(name):
    """A last layer a thousand times larger says a thousand times as much."""
    net, x, t = network(name), normal(2, 1, 28, 28), steps(3, 150)
    before = net(x, t)
    net.out[2].weight.data *= 1000
    assert_close(net(x, t), 1000 * before, rtol=1e-4, atol=1e-2)


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


@every_network
@pytest.mark.parametrize(("height", "width"), [(7, 7), (5, 6), (1, 9)])
def test_what_was_halved_and_doubled_is_cut_to_the_size_it_had(name, height, width):
    """On the way up each stage sees what came from below, its last row or column left out, beside the skip."""
    net = network(name)
    x = normal(2, 1, height * net.patch, width * net.patch)
    doubled = watched([double for *_, double in net.up if len(double)])
    joined = watched([stage for stage, *_ in net.up][1:])
    assert net(x, steps(3, 150)).shape == x.shape
    for (_, above), (inputs, _) in zip(doubled, joined, strict=True):
        seen = inputs[0]
        assert seen[:, : above.shape[1]].equal(above[:, :, : seen.shape[2], : seen.shape[3]])
        assert 0 <= above.shape[2] - seen.shape[2] <= 1 and 0 <= above.shape[3] - seen.shape[3] <= 1


# Latents: small pictures of several channels


def latent_network() -> UNet:
    return network("labels", channels=4, patch=1)


@pytest.mark.parametrize(("height", "width"), [(7, 7), (8, 8), (1, 1), (4, 5)])
def test_the_predicted_noise_has_the_channels_and_the_size_of_the_picture(height, width):
    net, x, t, y = latent_network(), normal(2, 4, height, width), steps(3, 150), torch.tensor([4, 10])
    middle = watched([net.middle[0]])
    assert net(x, t, y).shape == x.shape
    assert middle[0][1].shape[2:] == (math.ceil(height / 2), math.ceil(width / 2))
    assert made(UNet, channels=4, patch=1)(x, t).equal(torch.zeros_like(x))


def test_every_channel_changes_the_noise_in_every_channel():
    net, x = latent_network(), normal(1, 4, 7, 7)
    before = net(x, steps(50))
    for channel in range(4):
        changed = x.clone()
        changed[:, channel] += normal(7, 7, seed=1)
        moved = (net(changed, steps(50)) - before).abs().amax(dim=(0, 2, 3))
        assert (moved > 1e-4).all()
    for one in range(4):
        assert all(differ(before[:, one], before[:, other]) for other in range(one))


def test_every_parameter_of_a_network_for_latents_gets_a_gradient():
    net = latent_network()
    net(normal(2, 4, 7, 7), steps(3, 150), torch.tensor([3, 8])).square().sum().backward()
    assert [path for path, p in net.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-6] == []


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
    labelled = net.num_classes > 0
    y = torch.tensor([3, net.num_classes]) if labelled else None
    net(normal(2, 1, 28, 28), steps(3, 150), y).square().sum().backward()
    idle = [path for path, p in net.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-6]
    assert idle == []
    if labelled:
        rows = net.label.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist()
        assert rows == [3, 10]


@every_network
def test_every_skip_goes_to_the_stage_opposite(name):
    """The last stage on the way down is the first on the way up; the stem's output goes to the last block of all."""
    net = network(name)
    down = watched(stage for level in net.down for stage in level[:-1])
    up = watched(stage for level in net.up for stage in level[:-1])
    ends = watched([net.stem, net.last])
    net(normal(2, 1, 28, 28), steps(3, 150))
    assert len(up) == len(down) == len(net.down) * NETWORKS[name].get("depth", 1)
    for (inputs, _), (_, skip) in zip(up, reversed(down), strict=True):
        assert inputs[0][:, -skip.shape[1] :].equal(skip)
        assert inputs[0].shape[1] == 2 * skip.shape[1]
    (_, stem), (inputs, _) = ends
    assert inputs[0][:, -stem.shape[1] :].equal(stem)


@every_network
def test_every_skip_and_what_comes_from_below_matters(name):
    """Set to zero the half of a stage's input that is the skip, or the other half: the predicted noise changes."""
    net, x, t = network(name), normal(1, 1, 28, 28), steps(50)
    whole = net(x, t)
    for stage in [*(stage for level in net.up for stage in level[:-1]), net.last]:
        for half in (0, 1):

            def without(_, inputs, half=half):
                h = list(inputs[0].chunk(2, dim=1))
                h[half] = torch.zeros_like(h[half])
                return torch.cat(h, dim=1), *inputs[1:]

            hook = stage.register_forward_pre_hook(without)
            assert differ(net(x, t), whole)
            hook.remove()
    assert net(x, t).equal(whole)


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


@every_network
def test_one_pixel_changes_the_predicted_noise_everywhere(name):
    """What attention and the levels are for: the farthest corner sees it."""
    net, x = network(name), normal(1, 1, 32, 32)
    changed = x.clone()
    changed[0, 0, 0, 0] += 10
    assert differ(net(x, steps(3))[0, 0, 31, 31], net(changed, steps(3))[0, 0, 31, 31], by=1e-5)


def test_building_twice_gives_the_same_number_of_parameters_and_depth_and_width_more():
    def size(**arguments) -> int:
        return sum(p.numel() for p in made(UNet, **arguments).parameters())

    assert size() == size() == size(width=32, mults=(1, 2), patch=2, depth=1, block="resnet", num_classes=0) == 598_564
    assert size() < min(size(depth=2), size(width=40), size(mults=(1, 3)), size(block="convnext"))
    assert size(num_classes=10) == size() + 11 * 128


def test_an_unknown_block_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^block is 'densenet'; expected one of 'resnet', 'convnext'$"):
        UNet(block="densenet")


# Labels


def test_different_labels_give_different_noise_and_each_image_has_its_own():
    net, x = network("labels"), normal(1, 1, 28, 28)
    alone = [net(x, steps(50), torch.tensor([label])) for label in range(11)]
    for i, one in enumerate(alone):
        assert all(differ(one, other) for other in alone[:i])
    together = net(x.expand(2, -1, -1, -1), steps(50, 50), torch.tensor([7, 2]))
    assert_close(together, torch.cat([alone[7], alone[2]]), **CLOSE)


def test_no_label_is_the_null_label():
    net, x, t = network("labels"), normal(2, 1, 28, 28), steps(3, 150)
    assert net(x, t).equal(net(x, t, torch.tensor([10, 10])))
    assert net(x, t).equal(net(x, t, None))


def test_a_label_is_added_to_what_blocks_are_told_of_the_step():
    net, t, y = network("labels"), steps(3, 150), torch.tensor([4, 9])
    told = watched([net.last])
    net(normal(2, 1, 28, 28), t, y)
    assert_close(told[0][0][1], net.time(t) + net.label.weight[y], **CLOSE)


def test_labels_for_a_network_without_are_refused():
    with pytest.raises(ValueError, match=r"^y was given to a network without labels; build it with num_classes=10"):
        network("lessons")(normal(1, 1, 28, 28), steps(0), torch.tensor([1]))
