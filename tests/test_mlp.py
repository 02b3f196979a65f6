"""The claims of fmdiff_helpers.models.mlp: a list of numbers goes through it, and their order means nothing."""

import torch
from network_checks import CLOSE, differ, made, normal, size, steps, without_gradient
from torch import nn
from torch.testing import assert_close

from fmdiff_helpers.models.mlp import MLP

X, T, Y = normal(3, 1, 8, 8).float(), steps(0, 400, 999), steps(0, 3, 9)


def network() -> MLP:
    """An MLP as if it were trained: its last layer is not zero."""
    model = made(MLP, width=32, depth=2)
    model.out.weight.data.copy_(0.2 * normal(64, 32, seed=1))
    return model


def test_the_answer_has_the_shape_of_the_input_and_begins_at_zero():
    assert network()(X, T, Y).shape == X.shape
    assert not made(MLP, width=32, depth=2)(X, T, Y).any()


def test_step_label_and_every_number_count_and_no_label_is_the_null_label():
    model = network()
    found = model(X, T, Y)
    assert differ(found, model(X, T.flip(0), Y)) and differ(found, model(X, T, Y.flip(0)))
    assert model(X, T).equal(model(X, T, torch.full_like(Y, 10))) and differ(found, model(X, T))
    x = X.clone().requires_grad_()
    model(x, T, Y).square().sum().backward()
    assert (x.grad.abs() > 1e-8).all() and without_gradient(model) == []


def test_each_image_is_answered_by_itself():
    model = network()
    assert_close(model(X, T, Y)[1:2], model(X[1:2], T[1:2], Y[1:2]), **CLOSE)


def test_another_order_of_the_numbers_is_another_order_of_weights():
    model, order = network(), torch.randperm(64, generator=torch.Generator().manual_seed(0))
    found = model(X, T, Y)
    model.enter.weight = nn.Parameter(model.enter.weight[:, order])
    model.out.weight, model.out.bias = nn.Parameter(model.out.weight[order]), nn.Parameter(model.out.bias[order])
    shuffled = X.flatten(1)[:, order].reshape(X.shape)
    assert_close(model(shuffled, T, Y).flatten(1), found.flatten(1)[:, order], **CLOSE)


def test_the_mlp_of_lesson_07_has_about_as_many_weights_as_the_u_net():
    assert size(MLP()) == 651_712
