"""The claims of fmdiff_helpers.models.attention_autoencoder: channels weighed by their means, places that are some.

What sees what is counted with all weights of the channels at 1, because those see the whole picture.
"""

import network_checks
import pytest
import torch
import torch.nn.functional as F
from network_checks import EXACT, normal
from torch import nn
from torch.testing import assert_close

from fmdiff_helpers.batching import in_batches
from fmdiff_helpers.cards import upgrade
from fmdiff_helpers.checkpoints import load_pretrained, save_weights
from fmdiff_helpers.data import load_fashion_mnist, to_model
from fmdiff_helpers.models.attention_autoencoder import AttentionAutoencoder, AttentionBlock, ChannelAttention
from fmdiff_helpers.standin import draw_garments

with_places_or_without = pytest.mark.parametrize("places", [False, True])


def made(part: type = AttentionAutoencoder, **options) -> nn.Module:
    """Build a part or a small network."""
    options = ({"width": 8} if part is AttentionAutoencoder else {}) | options
    return network_checks.made(part, **options).double().requires_grad_(False)


def garments(n: int = 3) -> torch.Tensor:
    return to_model(draw_garments(n)[0]).double()


class Ones(nn.Module):
    """Weigh all channels with 1, whatever is in them."""

    def forward(self, x):
        return x.new_ones(*x.shape[:2], 1, 1)


def unweighed(network: AttentionAutoencoder) -> AttentionAutoencoder:
    attentions = [module for module in network.modules() if isinstance(module, ChannelAttention)]
    assert len(attentions) == 5
    for attention in attentions:
        attention.weigh = Ones()
    return network


# Channels that are weighed


def test_each_channel_is_weighed_by_one_number_from_0_to_1_that_the_means_of_all_channels_decide():
    """A sigmoid of a small network with 3 numbers between; each picture has weights of its own."""
    attention, x = made(ChannelAttention, channels=12), 3 * normal(5, 12, 4, 6) + normal(5, 12, 1, 1, seed=1)
    (down, up), means = [m for m in attention.weigh if isinstance(m, nn.Conv2d)], x.mean(dim=(2, 3))
    assert down.weight.shape == (3, 12, 1, 1) and up.weight.shape == (12, 3, 1, 1)
    between = (means @ down.weight[:, :, 0, 0].T + down.bias).clamp(min=0)
    weights = 1 / (1 + (-(between @ up.weight[:, :, 0, 0].T + up.bias)).exp())
    assert_close(attention(x), x * weights[:, :, None, None], **EXACT)
    assert (weights.std(dim=0) > 1e-3).all() and weights.min() > 0 and weights.max() < 1


def test_a_block_adds_its_two_convolutions_weighed_to_what_it_was_given():
    block, x = made(AttentionBlock, channels=8), normal(3, 8, 6, 6)
    first, second = [module for module in block.convs if isinstance(module, nn.Conv2d)]
    seen = F.conv2d(F.conv2d(x, first.weight, first.bias, padding=1).relu(), second.weight, second.bias, padding=1)
    assert_close(block(x), x + seen * block.attention.weigh(seen), **EXACT)
    assert (block(x) - x).abs().max() > 0.1


# The network


@with_places_or_without
@pytest.mark.parametrize("width", [8, 32])
def test_images_become_64_numbers_and_those_images(width, places):
    network = made(width=width, places=places)
    z = network.encode(garments())
    assert z.shape == network.to_latent(garments()).shape == (3, 1, 8, 8) and network.latent_shape == (1, 8, 8)
    x_hat = network(garments())
    assert x_hat.shape == (3, 1, 28, 28) and x_hat.equal(network.decode(z))


@with_places_or_without
def test_each_image_is_seen_on_its_own(places):
    network, x0 = made(places=places), garments()
    x0[1] = 20 * x0[1] + 3  # an image that would upset a normalisation over the batch
    assert_close(network(x0), torch.cat([network(x0[i : i + 1]) for i in range(3)]), **EXACT)


@with_places_or_without
def test_every_part_gets_a_gradient(places):
    network, x0 = made(places=places, width=16).requires_grad_(), garments(10)
    (network(x0) - x0).square().mean().backward()
    assert [path for path, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_numbers_have_no_places_and_the_network_32_channels_unless_told_otherwise():
    network = AttentionAutoencoder()
    assert not network.places and network.encoder[1].out_channels == 32


# What belongs to what


def seen_by_numbers(network: AttentionAutoencoder) -> torch.Tensor:
    """Return by how much each of the 64 numbers changes with each pixel of a garment, (64, 28, 28)."""
    x0 = garments(1).repeat(64, 1, 1, 1).requires_grad_()
    network.encode(x0).flatten(1).diagonal().sum().backward()
    return x0.grad[:, 0].abs()


def changed_by_numbers(network: AttentionAutoencoder) -> torch.Tensor:
    """Return by how much each pixel changes when one of the 64 numbers does, (64, 28, 28)."""
    z = network.encode(garments(1))
    return (network.decode(z + torch.eye(64).reshape(64, 1, 8, 8)) - network.decode(z))[:, 0].abs()


both_ways = pytest.mark.parametrize("related", [seen_by_numbers, changed_by_numbers])


@both_ways
def test_a_number_with_a_place_belongs_to_the_34_pixels_around_it_both_ways(related):
    """Number j is 4 pixels, 4 j - 2 to 4 j + 1, since 2 of the 32 lie outside; 15 more on each side are around it."""
    found, place = related(unweighed(made(places=True))), torch.arange(8)
    pixel = torch.arange(28)
    near = (pixel >= 4 * place[:, None] - 17) & (pixel <= 4 * place[:, None] + 16)  # (8, 28)
    field = (near[:, None, :, None] & near[None, :, None, :]).reshape(64, 28, 28)
    assert found[~field].max() < 1e-12 and found[field].mean() > 1e-5
    for number, around in zip(found.reshape(8, 8, 28, 28), near, strict=True):  # not less far either
        assert (number.amax(dim=(0, 2)) > 1e-12).equal(around)


@both_ways
def test_through_the_weights_of_its_channels_a_number_with_a_place_knows_of_all_the_picture(related):
    assert (related(made(places=True)) > 1e-12).double().mean() > 0.99


@both_ways
def test_a_number_without_a_place_belongs_to_all_pixels_even_where_no_channel_is_weighed(related):
    found = related(unweighed(made(places=False)))
    assert (found > 1e-12).double().mean() > 0.99
    assert found.amax(dim=0).min() > 0.1 * found.max()  # each pixel to some number, as much as others


@with_places_or_without
def test_nothing_in_the_decoder_writes_some_pixels_more_often_than_others(places):
    """Which would draw a checkerboard: kernels are as large as their stride, or write a whole picture once."""
    network, found = made(places=places), []
    for module in network.decoder.modules():
        if isinstance(module, nn.ConvTranspose2d):
            module.register_forward_hook(lambda m, x, _: found.append((m.kernel_size, m.stride, x[0].shape[2:])))
    network.decode(normal(1, 1, 8, 8))
    assert len(found) == (2 if places else 3)
    assert all(kernel == stride or size == (1, 1) for kernel, stride, size in found)


@with_places_or_without
def test_images_are_seen_in_a_black_frame_and_come_back_without_it(places):
    network, x0, z = made(places=places), garments(), normal(3, 1, 8, 8)
    framed = torch.full((3, 1, 32, 32), -1.0).double()
    framed[:, :, 2:30, 2:30] = x0
    assert network.encode(x0).equal(network.encoder[1:](framed).reshape(3, 1, 8, 8))
    whole = network.decoder[:-1](z if places else z.reshape(3, 64, 1, 1))
    assert whole.shape == (3, 1, 32, 32) and network.decode(z).equal(whole[:, :, 2:30, 2:30])


# Standardised latents


@with_places_or_without
def test_latents_are_standardised_number_by_number_and_decoded_by_undoing_it(places):
    network, x0, z = made(places=places), garments(), normal(3, 1, 8, 8)
    assert network.to_latent(x0).equal(network.encode(x0)), "0 and 1 until they are measured"
    assert network.from_latent(z).equal(network.decode(z))
    shift, scale = normal(1, 8, 8, seed=1), normal(1, 8, 8, seed=2).exp()
    network.shift.copy_(shift)
    network.scale.copy_(scale)
    assert_close(network.to_latent(x0), (network.encode(x0) - shift) / scale, **EXACT)
    assert_close(network.from_latent((z - shift) / scale), network.decode(z), **EXACT)
    assert_close(network.from_latent(network.to_latent(x0)), network(x0), **EXACT)


@with_places_or_without
def test_shift_and_scale_lie_with_the_weights_and_are_not_trained(tmp_path, places):
    arguments = {"width": 8, "places": places}
    network = made(**arguments).float()
    network.shift.copy_(normal(1, 8, 8))
    network.scale.copy_(normal(1, 8, 8, seed=1).exp())
    card = {"network": "attention_autoencoder.AttentionAutoencoder", "arguments": arguments}
    save_weights(tmp_path / "weights.safetensors", network, upgrade(card))
    loaded = load_pretrained(tmp_path)
    assert loaded.shift.equal(network.shift) and loaded.scale.equal(network.scale)
    assert loaded.shift.shape == loaded.scale.shape == (1, 8, 8)
    assert not {"shift", "scale"} & {name for name, _ in network.named_parameters()}


def test_the_published_latents_of_unseen_images_are_standard_number_by_number(real_raw):
    network, x0 = load_pretrained("attention_autoencoder"), to_model(load_fashion_mnist("test")[0][:4000])
    z = in_batches(network.to_latent, x0).flatten(1)
    assert z.mean(dim=0).abs().max() < 0.1
    assert z.std(dim=0).min() > 0.9 and z.std(dim=0).max() < 1.1
    assert_close(in_batches(network.from_latent, z[:8].reshape(8, 1, 8, 8)), network(x0[:8]), rtol=1e-4, atol=1e-4)
