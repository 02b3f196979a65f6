"""The claims of fmdiff_helpers.models.transformer: patches, attention and each layer by hand, and nothing is idle."""

import math
import re

import network_checks
import pytest
import torch
from network_checks import CLOSE, EXACT, differ, normal, size, steps, without_gradient
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from fmdiff_helpers.checkpoints import build
from fmdiff_helpers.models.layers import sinusoids
from fmdiff_helpers.models.transformer import (
    ATTENTION,
    PatchEmbedding,
    SelfAttention,
    Transformer,
    TransformerBlock,
    attention_matrix,
    patchify,
    unpatchify,
)
from fmdiff_helpers.recipes import CARDS

SMALL = {"dim": 32, "depth": 2, "heads": 2, "ff_dim": 48}

every_kind = pytest.mark.parametrize("kind", ATTENTION)
every_position = pytest.mark.parametrize("position", ["learned", "sinusoidal"])


def pictures(n: int = 2, size: int = 28, seed: int = 0) -> torch.Tensor:
    return normal(n, 1, size, size, seed=seed).float()


def made(part: type, *arguments, **options) -> torch.nn.Module:
    """Build a part or a network as if it were trained: what starts at zero is random, and always the same."""
    module = network_checks.made(part, *arguments, **options)
    for seed, parameter in enumerate(module.parameters()):
        if not parameter.any():
            parameter.data.copy_(0.2 * normal(*parameter.shape, seed=seed))
    return module


def network(**options) -> Transformer:
    return made(Transformer, **SMALL | options)


# Patches


@pytest.mark.parametrize("size", [16, 28])
@pytest.mark.parametrize("patch", [2, 4])
def test_patches_are_the_pixels_row_by_row_and_put_together_again_the_picture(size, patch):
    x = torch.arange(2.0 * size * size).reshape(2, 1, size, size)
    tokens, rows = patchify(x, patch), size // patch
    assert tokens.shape == (2, rows**2, patch**2)
    for k in range(rows**2):
        r, c = patch * (k // rows), patch * (k % rows)
        assert tokens[:, k].equal(x[:, 0, r : r + patch, c : c + patch].flatten(1))
    assert unpatchify(tokens, patch).equal(x)


# Attention


@every_kind
@pytest.mark.parametrize(("n", "d", "heads"), [(49, 32, 4), (196, 8, 1), (5, 1, 3), (1, 4, 2), (6, 7, 2)])
def test_attention_is_its_matrix_applied_to_the_values(kind, n, d, heads):
    q, k, v = (2 * normal(2, heads, n, d, seed=seed) for seed in range(3))
    weights = attention_matrix(q, k, kind)
    assert_close(ATTENTION[kind](q, k, v), torch.einsum("bhij,bhjd->bhid", weights, v), **EXACT)


def test_the_matrix_of_softmax_attention_by_hand():
    q, k = normal(1, 2, 5, 3), normal(1, 2, 5, 3, seed=1)
    scores = (torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(3)).exp()
    assert_close(attention_matrix(q, k, "softmax"), scores / scores.sum(dim=3, keepdim=True), **EXACT)


def test_the_matrix_of_linear_attention_by_hand():
    """How much of feature f a token asks for, times its share of what all tokens have of f, over all features."""
    q, k = normal(1, 2, 5, 3), normal(1, 2, 5, 3, seed=1)
    found = attention_matrix(q, k, "linear")
    asked = q.exp() / torch.einsum("bhif->bhi", q.exp())[..., None]
    shared = k.exp() / torch.einsum("bhjf->bhf", k.exp())[:, :, None]
    assert_close(found, torch.einsum("bhif,bhjf->bhij", asked, shared), **EXACT)


class Largest(TorchDispatchMode):
    """Note how many numbers the largest tensor holds that any operation makes, backward too."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple | list) else (results,):
            if isinstance(result, torch.Tensor):
                self.numbers = max(self.numbers, result.numel())
        return results


def test_linear_attention_never_makes_its_matrix():
    """Its largest tensor grows with n, not with n^2."""
    n, d = 512, 4
    q, k, v = (normal(1, 1, n, d, seed=seed).requires_grad_() for seed in range(3))
    with Largest() as linear:
        ATTENTION["linear"](q, k, v).sum().backward()
    with Largest() as explicit:
        attention_matrix(q, k, "softmax") @ v
    assert linear.numbers == n * d and explicit.numbers == n * n


@every_kind
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_self_attention_by_hand_head_by_head(kind, heads):
    """Each head has its own `dim` / heads rows of queries, keys and values."""
    attention, h = made(SelfAttention, 16, heads, kind).double(), normal(2, 6, 16)
    rows, d, mixed = h @ attention.qkv.weight.T, 16 // heads, []
    for head in range(heads):
        q, k, v = (rows[:, :, 16 * part + d * head :][:, :, :d] for part in range(3))
        mixed.append(torch.einsum("bij,bjd->bid", attention_matrix(q, k, kind), v))
    expected = torch.cat(mixed, dim=2) @ attention.out.weight.T + attention.out.bias
    assert_close(attention(h), expected, **EXACT)


# Where a token stands


@every_position
def test_a_token_is_its_projected_patch_and_the_code_of_its_place(position):
    embed, x = made(PatchEmbedding, 28, 4, 32, position), pictures()
    expected = patchify(x, 4) @ embed.project.weight.T + embed.project.bias
    assert_close(embed(x), expected + embed.position, **CLOSE)
    assert embed.position.shape == (49, 32) and len(embed.position.unique(dim=0)) == 49


def test_half_of_a_sinusoidal_code_says_the_row_and_half_the_column():
    code = PatchEmbedding(16, 2, 32, "sinusoidal").position.reshape(8, 8, 32)
    along = sinusoids(torch.arange(8), 16)
    for row in range(8):
        for column in range(8):
            assert_close(code[row, column], torch.cat([along[row], along[column]]), **CLOSE)


def test_a_sinusoidal_code_is_computed_and_a_learned_one_is_learned_and_stored():
    fixed, learned = (PatchEmbedding(28, 4, 32, position) for position in ("sinusoidal", "learned"))
    stored = {"project.weight", "project.bias"}
    assert {name for name, _ in fixed.named_parameters()} == set(fixed.state_dict()) == stored
    assert {name for name, _ in learned.named_parameters()} == set(learned.state_dict()) == stored | {"position"}


# Blocks


@every_kind
def test_an_untrained_block_returns_its_input(kind):
    h = normal(2, 9, 16)
    assert TransformerBlock(16, 2, 24, kind).double()(h, normal(2, 16, seed=1)).equal(h)


@every_kind
def test_a_block_by_hand(kind):
    """Normalise, scale and shift, attend, add through a gate; then the same with two layers in place of attention."""
    block, h, condition = made(TransformerBlock, 16, 2, 24, kind).double(), normal(2, 9, 16), normal(2, 16, seed=1)
    told = (condition / (1 + (-condition).exp())) @ block.adapt.weight.T + block.adapt.bias
    scale1, shift1, gate1, scale2, shift2, gate2 = told.reshape(2, 6, 1, 16).unbind(dim=1)

    def normalised(h: torch.Tensor) -> torch.Tensor:
        centred = h - h.mean(dim=2, keepdim=True)
        return centred / (centred.square().mean(dim=2, keepdim=True) + 1e-5).sqrt()

    after = h + gate1 * block.attention((1 + scale1) * normalised(h) + shift1)
    first, _, second = block.feed_forward
    wide = ((1 + scale2) * normalised(after) + shift2) @ first.weight.T + first.bias
    wide = wide * (1 + torch.erf(wide / math.sqrt(2))) / 2
    expected = after + gate2 * (wide @ second.weight.T + second.bias)
    assert_close(block(h, condition), expected, **EXACT)
    assert differ(block(h, condition), block(h, condition.flip(0)), by=0.01)


# The network


@every_kind
@every_position
@pytest.mark.parametrize(("size", "patch"), [(28, 4), (16, 2)])
def test_the_network_is_its_parts_one_after_the_other(kind, position, size, patch):
    """The condition is the sum of what step and label say."""
    net = network(image_size=size, patch=patch, attention=kind, position=position)
    x, t, y = pictures(2, size), steps(3, 150), steps(0, 7)
    h, condition = net.embed(x), net.time(t) + net.label.weight[y]
    for block in net.blocks:
        h = block(h, condition)
    assert len(net.blocks) == SMALL["depth"]
    found = net(x, t, y)
    assert found.shape == x.shape and differ(found, torch.zeros_like(x), by=0.01)
    assert_close(found, unpatchify(net.out(net.norm(h)), patch), **CLOSE)


@every_kind
@every_position
def test_every_parameter_gets_a_gradient(kind, position):
    net = network(attention=kind, position=position)
    net(pictures(), steps(3, 150), steps(3, 8)).square().sum().backward()
    assert without_gradient(net) == []
    assert net.label.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist() == [3, 8]


@every_position
def test_an_untrained_network_says_grey(position):
    x = pictures()
    net = Transformer(**SMALL, position=position)
    assert net(x, torch.tensor([0, 199]), torch.tensor([0, 9])).equal(torch.zeros_like(x))


def test_each_image_is_seen_on_its_own():
    net, x, t, y = network(), pictures(3), torch.tensor([3, 150, 60]), torch.tensor([0, 7, 2])
    x[1] = 20 * x[1] + 3
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(3)])
    assert_close(net(x, t, y), alone, **CLOSE)


def test_building_twice_gives_the_same_number_of_parameters_and_depth_and_width_more():
    assert size(Transformer()) == size(Transformer()) == size(build(CARDS["transformer"]))
    assert 400_000 < size(Transformer()) < 1_300_000
    larger = [{"depth": 5}, {"dim": 160}, {"ff_dim": 300}, {"patch": 2}, {"num_classes": 11}]
    assert size(Transformer()) < min(size(Transformer(**arguments)) for arguments in larger)
    assert size(Transformer(position="sinusoidal")) == size(Transformer()) - 49 * 128
    assert size(Transformer(attention="softmax")) == size(Transformer())


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch": 5}, "image_size is 28 and patch 5; expected a patch that divides the size"),
        ({"image_size": 30}, "image_size is 30 and patch 4; expected a patch that divides the size"),
        ({"attention": "full"}, "attention is 'full'; expected one of 'linear', 'softmax'"),
        ({"position": "absolute"}, "position is 'absolute'; expected 'learned' or 'sinusoidal'"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused_by_value(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Transformer(**SMALL | arguments)


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (2, 1, 28, 32), (2, 3, 28, 28), (2, 28, 28)])
def test_images_of_another_size_are_refused_by_their_shape(shape):
    message = f"images are {shape}; expected (B, 1, 28, 28)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        network()(torch.zeros(shape), torch.tensor([0, 1]), torch.tensor([0, 1]))


def test_no_label_is_refused_and_the_message_says_what_labels_are():
    with pytest.raises(ValueError, match=r"^y is None; .* give labels \(B,\), 0 to 9$"):
        network()(pictures(), torch.tensor([0, 1]), None)
