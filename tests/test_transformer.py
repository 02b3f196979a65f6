"""The claims of fmdiff_helpers.models.transformer: patches, attention and each layer by hand, and nothing is idle."""

import math
import re

import pytest
import torch
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
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32, summed in another order
EXACT = {"rtol": 1e-9, "atol": 1e-12}

every_kind = pytest.mark.parametrize("kind", ATTENTION)
every_position = pytest.mark.parametrize("position", ["learned", "sinusoidal"])
every_size = pytest.mark.parametrize("size", [16, 28])
every_patch = pytest.mark.parametrize("patch", [2, 4])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pictures(n: int = 2, size: int = 28, seed: int = 0) -> torch.Tensor:
    return normal(n, 1, size, size, seed=seed).float()


def made(part: type, *arguments, **options) -> torch.nn.Module:
    """Build a part or a network as if it were trained: what starts at zero is random, and always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = part(*arguments, **options)
        for parameter in module.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
    return module


def network(**options) -> Transformer:
    return made(Transformer, **SMALL | options)


def differ(a: torch.Tensor, b: torch.Tensor, by: float = 1e-3) -> bool:
    """Tell whether two results are more apart than rounding could put them."""
    return (a - b).abs().max().item() > by


def order(n: int) -> torch.Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(1))


# Patches


@every_size
@every_patch
def test_patches_put_together_again_are_the_picture(size, patch):
    x = pictures(3, size)
    assert unpatchify(patchify(x, patch), patch).equal(x)
    tokens = normal(3, (size // patch) ** 2, patch**2)
    assert patchify(unpatchify(tokens, patch), patch).equal(tokens)


@every_size
@every_patch
def test_patches_are_the_pixels_row_by_row(size, patch):
    x = torch.arange(2.0 * size * size).reshape(2, 1, size, size)
    tokens, rows = patchify(x, patch), size // patch
    assert tokens.shape == (2, rows**2, patch**2)
    for k in range(rows**2):
        r, c = patch * (k // rows), patch * (k % rows)
        assert tokens[:, k].equal(x[:, 0, r : r + patch, c : c + patch].flatten(1))


# Attention


@every_kind
@pytest.mark.parametrize(("n", "d", "heads"), [(49, 32, 4), (196, 8, 1), (5, 1, 3), (1, 4, 2), (6, 7, 2)])
def test_attention_is_its_matrix_applied_to_the_values(kind, n, d, heads):
    q, k, v = (2 * normal(2, heads, n, d, seed=seed) for seed in range(3))
    weights = attention_matrix(q, k, kind)
    assert_close(ATTENTION[kind](q, k, v), torch.einsum("bhij,bhjd->bhid", weights, v), **EXACT)


@every_kind
def test_the_rows_of_an_attention_matrix_are_shares(kind):
    q, k = 3 * normal(2, 3, 20, 8), 3 * normal(2, 3, 20, 8, seed=1)
    weights = attention_matrix(q, k, kind)
    assert weights.shape == (2, 3, 20, 20) and (weights >= 0).all()
    assert_close(weights.sum(dim=3), torch.ones(2, 3, 20).double(), **EXACT)
    assert differ(weights.sum(dim=2), torch.ones(2, 3, 20), by=0.1)  # not the columns


def test_the_matrix_of_softmax_attention_by_hand():
    q, k = normal(1, 2, 5, 3), normal(1, 2, 5, 3, seed=1)
    found = attention_matrix(q, k, "softmax")
    for head in range(2):
        for i in range(5):
            scores = [math.exp(sum((q[0, head, i] * k[0, head, j]).tolist()) / math.sqrt(3)) for j in range(5)]
            assert_close(found[0, head, i], torch.tensor(scores).double() / sum(scores), rtol=1e-6, atol=0)


def test_the_matrix_of_linear_attention_by_hand():
    """How much of feature f a token asks for, times its share of what all tokens have of f, over all features."""
    q, k = normal(1, 2, 5, 3), normal(1, 2, 5, 3, seed=1)
    found = attention_matrix(q, k, "linear")
    asked = q.exp() / torch.einsum("bhif->bhi", q.exp())[..., None]
    shared = k.exp() / torch.einsum("bhjf->bhf", k.exp())[:, :, None]
    assert_close(found, torch.einsum("bhif,bhjf->bhij", asked, shared), **EXACT)
    assert differ(found, attention_matrix(q, k, "softmax"), by=0.05)


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


# The order of the tokens


@every_kind
def test_attention_and_blocks_do_not_know_where_a_token_stands(kind):
    h, condition, new = normal(2, 9, 16), normal(2, 16, seed=1), order(9)
    attention = made(SelfAttention, 16, 2, kind).double()
    assert_close(attention(h[:, new]), attention(h)[:, new], **EXACT)
    block = made(TransformerBlock, 16, 2, 24, kind).double()
    assert_close(block(h[:, new], condition), block(h, condition)[:, new], **EXACT)


@every_kind
@every_position
def test_the_network_knows_where_a_patch_stands_by_its_code_alone(kind, position):
    net, x, t, y = network(attention=kind, position=position), pictures(), torch.tensor([3, 150]), torch.tensor([0, 7])
    new = order(49)

    def in_another_order() -> tuple[torch.Tensor, torch.Tensor]:
        return patchify(net(unpatchify(patchify(x, 4)[:, new], 4), t, y), 4), patchify(net(x, t, y), 4)[:, new]

    assert differ(*in_another_order(), by=0.01)
    net.embed.position.data.zero_()
    assert_close(*in_another_order(), **CLOSE)


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
    apart = torch.cdist(code.flatten(0, 1), code.flatten(0, 1)) + 10 * torch.eye(64)
    assert apart.min() > 0.5  # no two places alike


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
@every_size
@every_patch
def test_the_predicted_picture_has_the_shape_of_the_noisy_one(kind, size, patch):
    net, x = network(image_size=size, patch=patch, attention=kind), pictures(2, size)
    found = net(x, torch.tensor([0, 199]), torch.tensor([0, 9]))
    assert found.shape == x.shape and differ(found, torch.zeros_like(x), by=0.01)


@every_position
def test_an_untrained_network_says_grey(position):
    x = pictures()
    net = Transformer(**SMALL, position=position)
    assert net(x, torch.tensor([0, 199]), torch.tensor([0, 9])).equal(torch.zeros_like(x))


@every_kind
@every_position
def test_the_network_is_its_parts_one_after_the_other(kind, position):
    """The condition is the sum of what step and label say."""
    net, x, t, y = network(attention=kind, position=position), pictures(), torch.tensor([3, 150]), torch.tensor([0, 7])
    h, condition = net.embed(x), net.time(t) + net.label.weight[y]
    for block in net.blocks:
        h = block(h, condition)
    assert len(net.blocks) == SMALL["depth"]
    assert_close(net(x, t, y), unpatchify(net.out(net.norm(h)), 4), **CLOSE)


def test_step_and_label_change_the_picture_and_each_image_has_its_own():
    net, x = network(), pictures(1)
    asked = [(t, y) for t in (3, 150) for y in range(10)]
    alone = [net(x, torch.tensor([t]), torch.tensor([y])) for t, y in asked]
    for i, one in enumerate(alone):
        assert all(differ(one, other) for other in alone[:i])
    t, y = torch.tensor(asked).T
    assert_close(net(x.expand(20, -1, -1, -1), t, y), torch.cat(alone), **CLOSE)


def test_each_image_is_seen_on_its_own():
    net, x, t, y = network(), pictures(3), torch.tensor([3, 150, 60]), torch.tensor([0, 7, 2])
    x[1] = 20 * x[1] + 3
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(3)])
    assert_close(net(x, t, y), alone, **CLOSE)


@every_kind
def test_one_pixel_changes_the_picture_everywhere(kind):
    net, x, t, y = network(attention=kind), pictures(1), torch.tensor([3]), torch.tensor([7])
    changed = x.clone()
    changed[0, 0, 5, 9] += 10
    assert (net(x, t, y) != net(changed, t, y)).all()
    far = (slice(None), slice(None), slice(24, 28), slice(24, 28))
    assert differ(net(x, t, y)[far], net(changed, t, y)[far], by=1e-4)


@every_kind
@every_position
def test_every_parameter_gets_a_gradient(kind, position):
    net = network(attention=kind, position=position)
    net(pictures(), torch.tensor([3, 150]), torch.tensor([3, 8])).square().sum().backward()
    idle = [path for path, p in net.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-6]
    assert idle == []
    assert net.label.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist() == [3, 8]


def size(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


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
