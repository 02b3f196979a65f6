"""A drawn stand-in for Fashion-MNIST, for notebooks that run without a network.

It draws ten kinds of garment from a few soft-edged shapes, with random cut, size, brightness and cloth. A model's
results on it say nothing about Fashion-MNIST.
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import interpolate

# Each shape returns its cover: the share of each pixel that it covers, 0 to 1. Coordinates are in pixels: (0, 0) is the
# middle of the picture, x runs right and y runs down. Any number may be a tensor (batch, 1, 1): a value per picture.


def _inside(distance):
    """Turn a signed distance to an outline into a cover; its edge is one pixel wide and grey."""
    return (0.5 - distance).clamp_(0, 1)


def _profile(along, across, *knots):
    """Fill |across| up to a half-width that is linear between knots, each (position, half-width)."""
    width = knots[0][1]
    for (start, before), (end, after) in pairwise(knots):
        width = torch.where(along > start, before + (after - before) * (along - start) / (end - start), width)
    ends = _inside(knots[0][0] - along) * _inside(along - knots[-1][0])
    return _inside(across.abs() - width) * ends


def _band(x, y, *points):
    """Join points, each (x, y, half-width), with straight bands that have square ends."""
    pieces = []
    for (x0, y0, w0), (x1, y1, w1) in pairwise(points):
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        dx, dy, from_x, from_y = (x1 - x0) / length, (y1 - y0) / length, x - (x0 + x1) / 2, y - (y0 + y1) / 2
        along, across = from_x * dx + from_y * dy, from_x * dy - from_y * dx
        sideways = across.abs_() - (w0 + w1) / 2 - along * ((w1 - w0) / length)
        pieces.append(_inside(torch.maximum(sideways, along.abs() - length / 2)))
    return torch.stack(pieces).amax(0)


def _dome(x, y, wide, high):
    """Fill the upper half of an ellipse around (0, 0)."""
    return _inside((((x / wide) ** 2 + (y / high) ** 2).sqrt() - 1) * (wide * high) ** 0.5) * _inside(y)


# Garments. `pick(low, high)` draws one number per picture. A hole or a dark line multiplies by 1 - cover; with a
# strength such as `pick(-1, 1).clamp(min=0)`, half of the pictures do not have it.


def _top(x, y, pick, hem, wrist, neck):
    """Join a body, two sleeves down to the wrist (x, y, half-width), and a round neckline."""
    chest, armpit = pick(6, 7.2), pick(-6, -4)
    body = _profile(y, x, (-13, 3.5), (-11, chest), (armpit, chest - 0.6), (hem, pick(5.8, 7.8)))
    sleeve = _band(abs(x), y, (chest - 2, -9.5, 2.8), wrist)
    seam = _profile(y, abs(x) - chest + 0.5, (armpit, 0.3), (hem, 0.3))
    hole = _dome(x, -13 - y, neck, neck * 0.7)
    return torch.maximum(body, sleeve) * (1 - pick(0, 0.7) * seam) * (1 - hole)


def _t_shirt(x, y, pick):
    badge = _profile(y, x, (pick(-6, -4), pick(1, 4)), (pick(-2, 1), pick(1, 4)))
    top = _top(x, y, pick, pick(11.5, 13), (pick(9.5, 11.5), pick(-6, -2), 2.3), pick(2.5, 4))
    return top * (1 - pick(-0.8, 0.8).clamp(min=0) * badge)


def _trouser(x, y, pick):
    waist, hem, crotch = pick(4, 5.5), pick(5, 7.2), pick(-7, -4)
    legs = _profile(y, x, (-13.3, waist), (crotch, waist + pick(0.3, 1.3)), (13.3, hem))
    gap = _profile(y, x, (crotch, 0.2), (14, hem - pick(2.6, 4.2)))
    belt = _profile(y, x, (-12, 9), (-11.4, 9))
    return legs * (1 - gap) * (1 - pick(0, 0.6) * belt)


def _pullover(x, y, pick):
    hem = pick(11, 12.8)
    rib = _profile(y, x, (hem - 2.4, 14), (hem - 1.8, 14))
    wrist = pick(10, 11), hem - pick(0.3, 2), pick(1.7, 2.3)
    return _top(x, y, pick, hem, wrist, pick(2, 3.2)) * (1 - pick(0.2, 0.6) * rib)


def _dress(x, y, pick):
    waist, slim = pick(-5, -1), pick(2.8, 4.5)
    gown = _profile(y, x, (-13.3, pick(2.8, 4)), (-8, slim + 1), (waist, slim), (13.3, slim + pick(1, 5)))
    sleeve = _band(abs(x), y, (2.5, -11.5, 1.8), (pick(3.5, 7.5), pick(-8, -1), 1.5))
    neckline = _profile(y, x, (-14, pick(1, 2.2)), (pick(-11, -8), 0))
    belt = _profile(y, x, (waist - 0.4, 9), (waist + 0.4, 9))
    return torch.maximum(gown, sleeve) * (1 - neckline) * (1 - pick(-0.7, 0.7).clamp(min=0) * belt)


def _coat(x, y, pick):
    opening = _profile(y, x, (-12, 0.5), (14, 0.5))
    lapel = _band(abs(x), y, (pick(2.5, 3.5), -13, 0.4), (0, pick(-6, -2), 0.4))
    wrist = pick(9, 10.5), pick(6, 11), pick(1.8, 2.4)
    top = _top(x, y, pick, pick(12.8, 13.6), wrist, pick(1.2, 2))
    return top * (1 - pick(0.6, 1) * torch.maximum(opening, lapel))


def _sandal(x, y, pick):
    lift, thick = pick(0, 11), pick(0.8, 1.8)
    y, heel = y + 4 - lift / 3, 9.5 - lift  # A flat sandal is higher up: Fashion-MNIST centres its pictures.
    sole = _band(x, y, (-13, 9.5, thick), (-4, 9.5, thick), (11, heel, thick), (11, 11, pick(0.7, 2.2)))
    toes = _dome(x + 7, y - 9, pick(3.5, 6), pick(4, 7)) * (torch.sin(pick(1.2, 1.8) * (x + y / 2)) > -0.5)
    instep = pick(-1, 1.2)  # With a negative half-width, there is no such strap.
    straps = _band(x, y, (-6, 6, instep), (2, heel - 5, instep), (10.5, heel - 6, 0.9), (11, heel, 1.2))
    return torch.maximum(sole, torch.maximum(toes, straps))


def _shirt(x, y, pick):
    hem, long = pick(11, 12.8), pick(0, 1).round()
    wrist = pick(10, 11), long * (hem - 1) - (1 - long) * pick(2, 5), pick(1.7, 2.3)
    collar = _band(abs(x), y, (0, -9.5, 0.4), (3, -9.5, 0.4), (4.2, -12.5, 0.4))
    buttons = _profile(y, x, (-9, 0.6), (hem, 0.6)) * (0.5 + 0.5 * torch.cos(2 * y))
    return _top(x, y, pick, hem, wrist, pick(1, 1.6)) * (1 - pick(0.5, 0.9) * torch.maximum(collar, buttons))


def _shoe(x, y, pick, sole, *upper):
    """Put an upper, (x, height) from the toe on the left to the heel, on a sole."""
    welt = _profile(y, x, (sole - 2.4, 20), (sole - 1.8, 20))
    return _profile(x, y - sole, *upper) * _inside(y - sole) * (1 - pick(0.1, 0.8) * welt)


def _sneaker(x, y, pick):
    sole, tall = pick(4, 7), pick(8, 11)
    nose = (-13, 2.5), (-11.5, pick(3.5, 5)), (-6, pick(4.8, 6))
    heel = (1, tall), (3, tall), (8, tall - 2), (12.5, tall), (13, 4)
    stripe = _band(x, y, (pick(1, 3), sole - 2, 0.8), (pick(3, 6), sole - 8, 0.8))
    return _shoe(x, y, pick, sole, *nose, *heel) * (1 - pick(0, 0.7) * stripe)


def _bag(x, y, pick):
    lid, wide, base = pick(-7, 0), pick(10, 13), pick(10, 12.5)
    sides = (lid, wide - pick(1, 4)), (lid + 3, wide), (base - 1, wide - pick(0, 2)), (base, wide - 2)
    arc, rise = pick(4, 9), (lid + 13) * pick(0.6, 1)
    handle = _dome(x, y - lid, arc, rise) - _dome(x, y - lid, arc - 1.6, rise - 1.6)
    flap = _profile(y, x, (lid + 4, 20), (lid + 4.6, 20))
    return torch.maximum(_profile(y, x, *sides) * (1 - pick(0, 0.7) * flap), handle)


def _ankle_boot(x, y, pick):
    tall, throat, heel = pick(16, 25), pick(-3, 2), pick(5, 8)
    nose = (-13.3, 2.5), (-11.5, 5), (throat - 4, 7.5), (throat, 12)
    shaft = (throat - pick(-1, 1), tall), (12, tall), (13, 3)
    arch = _profile(x, y - 12, (-7, 0), (heel, pick(1, 5)), (heel + 0.5, 0))
    return _shoe(x, y, pick, 11.5, *nose, *shaft) * (1 - arch)


_KINDS = (_t_shirt, _trouser, _pullover, _dress, _coat, _sandal, _shirt, _sneaker, _bag, _ankle_boot)


def _draw(label, count, rng):
    """Draw `count` garments of one kind; some of their cloth is shaded, striped, checked or blotted."""

    def pick(low, high):
        return low + (high - low) * torch.rand(count, 1, 1, generator=rng)

    def stripes(t):
        return pick(-1.2, 0.6).clamp(min=0) * (0.5 + 0.5 * torch.sin(pick(0.1, 1.8) * t + pick(0, 6)))

    grid = torch.arange(28) - 13.5
    x, y = grid / pick(0.94, 1.05) + pick(-0.5, 0.5), grid[:, None] / pick(0.94, 1.05) + pick(-0.5, 0.5)
    blots = interpolate(torch.rand(count, 1, 14, 14, generator=rng), 28, mode="bilinear")[:, 0]
    dye = pick(0.2, 1.2).clamp(max=1).sqrt() * (1 - stripes(x)) * (1 - stripes(y))
    return dye * (1 - pick(-2, 0.9).clamp(min=0) * blots) * _KINDS[label](x, y, pick)


def draw_garments(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw `n` garments and their labels.

    Returns the pictures, uint8 (n, 1, 28, 28) from 0 (background) to 255, and the labels, int64 (n,) from 0 to 9 in
    Fashion-MNIST's order, shuffled; each label occurs n // 10 or n // 10 + 1 times. The same `n` and `seed` give the
    same result. Raises ValueError if `n` is not an integer of 0 or more.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise ValueError(f"n is {n!r}; expected an integer of 0 or more")
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randperm(n, generator=rng) % 10
    images = torch.empty(n, 1, 28, 28, dtype=torch.uint8)
    for label in range(10):
        for part in (labels == label).nonzero()[:, 0].split(1000):  # to limit the memory in use
            images[part, 0] = (255 * _draw(label, len(part), rng)).round().to(torch.uint8)
    return images, labels
