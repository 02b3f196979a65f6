"""Answers to lesson 06's exercises, right and wrong, and the names that its checks find in the notebook."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fmdiff_helpers.guidance import NULL, guided


def names():
    """Names that the checks need, and names of the lesson that must not help."""
    x = torch.randn((10, 1, 28, 28), generator=torch.Generator().manual_seed(1))
    t = torch.full((10,), 120)
    found = {"torch": torch, "np": np, "math": math, "F": F, "nn": nn, "guided": guided, "NULL": NULL}
    found |= {"x": x, "t": t, "y": torch.arange(10), "kinds": torch.arange(10), "w": 8.0, "right": torch.ones(6).long()}
    return found | {"model": lambda x, t, y=None: x, "network": lambda x, t, y=None: 2 * x, "share": 0.5}


FOLD, AWAY, RESCALED = "fold(x, p)", "away_from(model, y_not, w)", "rescaled(model, w, share)"
SHAPE = "b, c, h, w = x.shape; "
PARTS = SHAPE + "q = x.reshape(b, c, h // p, p, w // p, p); "
FOLDED = ".reshape(b, c * p * p, h // p, w // p)"
DENOISER = "def predict(x, t, y):;     other = model(x, t, torch.full_like(y, y_not)); "
STRONG = "strong = guided(model, w); "
TWO = STRONG + "def predict(x, t, y):;     e, told = strong(x, t, y), model(x, t, y); "
MIX = "    return share * r * e + (1 - share) * e; return predict"
SIZES = "    r = told.std((1, 2, 3), keepdim=True) / e.std((1, 2, 3), keepdim=True); "

RIGHT = {
    (1, FOLD): [
        PARTS + "return q.permute(0, 1, 3, 5, 2, 4)" + FOLDED,
        SHAPE + "q = x.view(b, c, h // p, p, w // p, p).transpose(3, 4).permute(0, 1, 4, 5, 2, 3); "
        "q = q.transpose(2, 3) if False else x.reshape(b, c, h // p, p, w // p, p).permute(0, 1, 3, 5, 2, 4); "
        "return q" + FOLDED,
        SHAPE + "return torch.stack([x[:, :, i::p, j::p] for i in range(p) for j in range(p)], 2)" + FOLDED,
        SHAPE
        + "return torch.cat([x[:, k : k + 1, i::p, j::p] for k in range(c) for i in range(p) for j in range(p)], 1)",
        SHAPE + "return F.unfold(x, p, stride=p)" + FOLDED,
        SHAPE + "q = x.numpy().reshape(b, c, h // p, p, w // p, p); return q.transpose(0, 1, 3, 5, 2, 4)" + FOLDED,
    ],
    (2, AWAY): [
        "return lambda x, t, y: (1 - w) * model(x, t, torch.full_like(y, y_not)) + w * model(x, t, y)",
        DENOISER + "    return other + w * (model(x, t, y) - other); return predict",
        DENOISER + "    return torch.lerp(other, model(x, t, y), w); return predict",
        "other = lambda x, t, y: model(x, t, torch.full_like(y, y_not)); return guided(model, w, weak=other)",
        "def predict(x, t, y=None):;     n = 0 * y + y_not; "
        "    told, other = model(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, n])).chunk(2); "
        "    return other + w * (told - other); return predict",
        DENOISER + "    return (other + w * (model(x, t, y) - other)).double().numpy(); return predict",
    ],
    (3, RESCALED): [
        "r = lambda a, b: a.std((1, 2, 3), keepdim=True) / b.std((1, 2, 3), keepdim=True); "
        "g = guided(model, w); mix = lambda e, told: share * r(told, e) * e + (1 - share) * e; "
        "return lambda x, t, y: mix(g(x, t, y), model(x, t, y))",
        TWO + SIZES + MIX,
        TWO + "    s = lambda a: a.flatten(1).std(1, correction=0).reshape(-1, 1, 1, 1); "
        "    return e * (1 + share * (s(told) / s(e) - 1)); return predict",
        TWO + "    r = torch.stack([a.std() / b.std() for a, b in zip(told, e)])[:, None, None, None]; "
        "    return torch.lerp(e, r * e, share); return predict",
        "def predict(x, t, y):;     told, null = model(x, t, y), model(x, t, None); "
        "    e = null + w * (told - null); " + SIZES + MIX,
        TWO + "    v = lambda a: a.var((1, 2, 3), keepdim=True); "
        "    return e * (share * (v(told) / v(e)) ** 0.5 + 1 - share); return predict",
    ],
}

WRONG = {
    (1, FOLD): [
        (SHAPE + "return x" + FOLDED, "`reshape` alone cuts rows"),
        (PARTS + "return q.permute(0, 1, 5, 3, 2, 4)" + FOLDED, "a comes first"),
        (PARTS + "return q.permute(0, 3, 5, 1, 2, 4)" + FOLDED, "channel c comes first"),
        (PARTS + "return q.permute(0, 1, 3, 5, 4, 2)" + FOLDED, "i comes first"),
        (
            SHAPE + "q = x.reshape(b, c, p, h // p, p, w // p); return q.permute(0, 1, 2, 4, 3, 5)" + FOLDED,
            "places first",
        ),
        (PARTS + "return q.permute(0, 1, 3, 5, 2, 4)", "expected the shape .2, 12, 6, 4., got .2, 3, 2, 2, 6, 4."),
        (PARTS + "return q.permute(0, 1, 3, 5, 4, 2).reshape(b, c * p * p, w // p, h // p)", "expected the shape"),
        (
            "p = 2; " + PARTS + "return q.permute(0, 1, 3, 5, 2, 4)" + FOLDED,
            "expected the shape .1, 80, 2, 1., got .1, 20, 4, 2.",
        ),
        ("return F.pixel_unshuffle(x, p)", "without the library's own function"),
        ("return nn.PixelUnshuffle(p)(x)", "without the library's own function"),
        ("return [F.pixel_unshuffle(each[None], p)[0] for each in x]", "without the library's own function"),
        ("return getattr(torch, 'pixel_' + 'unshuffle')(x, p)", "without the library's own function"),
        ("return 'sorted'", "expected a tensor of shape .2, 12, 6, 4., got a str"),
        ("return 0", "expected the shape"),
    ],
    (2, AWAY): [
        (DENOISER + "    told = model(x, t, y); return predict", "the denoiser returns nothing: add `return`"),
        (
            DENOISER + "    told = model(x, t, y);     return told + w * (other - told); return predict",
            "not back",
        ),
        (
            DENOISER + "    return (1 + w) * model(x, t, y) - w * other; return predict",
            "here w = 1 is the model itself",
        ),
        ("return guided(model, w)", "y_not takes the place of the null label"),
        (DENOISER + "    return w * (model(x, t, y) - other); return predict", "add the answer to y_not"),
        (DENOISER + "    return other + w * (model(x, t, y) - model(x, t)); return predict", "the difference is to"),
        (DENOISER + "    return other + w * model(x, t, y); return predict", "w multiplies a difference"),
        (DENOISER + "    return other + w**2 * (model(x, t, y) - other); return predict", "compare with the formula"),
        (
            DENOISER + "    return other + min(max(w, 0), 1) * (model(x, t, y) - other); return predict",
            "compare with the formula",
        ),
        (
            "def predict(x, t, y):;     other = model(x, t, torch.full_like(y, 2)); "
            "    return other + w * (model(x, t, y) - other); return predict",
            "y_not = 6",
        ),
        (
            "def predict(x, t, y):;     other = model(x, t, torch.full_like(y, y_not or NULL)); "
            "    return other + w * (model(x, t, y) - other); return predict",
            "y_not takes the place of the null label",
        ),
        (
            "def predict(x, t, y):;     other = model(x, t, torch.full_like(y, max(y_not, 1))); "
            "    return other + w * (model(x, t, y) - other); return predict",
            "wrong for y_not = 0",
        ),
        ("return lambda x, t: model(x, t, None)", "the denoiser takes 2 arguments; it must take x, t and y"),
        ("return lambda x, t, y: model(x, t, y)", "compare with the formula"),
        ("return lambda x, t, y: model(x, t, y) + w * (model(x, t, y_not) - model(x, t, y))", "one label for each"),
        (
            "other = lambda x, t, y: network(x, t, torch.full_like(y, y_not)); return guided(network, w, weak=other)",
            "compare with the formula",
        ),
        ("return model", "compare with the formula"),
        ("return w", "expected a function of .x, t, y., got a float"),
        ("return model(x, t, y)", "one label for each image|expected a function"),
    ],
    (3, RESCALED): [
        (TWO + "    r = told.std() / e.std(); " + MIX, "that of each image"),
        (TWO + SIZES + "    return (1 - share) * r * e + share * e; return predict", "`share` is the part of"),
        (
            TWO + "    r = e.std((1, 2, 3), keepdim=True) / told.std((1, 2, 3), keepdim=True); " + MIX,
            "the other way up",
        ),
        (
            TWO + "    r = told.var((1, 2, 3), keepdim=True) / e.var((1, 2, 3), keepdim=True); " + MIX,
            "not of variances",
        ),
        (TWO + "    told = model(x, t, None); " + SIZES + MIX, "of the labelled prediction"),
        (
            TWO + "    n = lambda a: a.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1);     r = n(told) / n(e); " + MIX,
            "which ignores the mean",
        ),
        (
            TWO + SIZES + "    m = e.mean((1, 2, 3), keepdim=True); "
            "    return share * ((e - m) * r + m) + (1 - share) * e; return predict",
            "only multiply",
        ),
        (TWO + SIZES + "    return share * r * e + (1 - share) * told; return predict", "mix with the guided"),
        (
            TWO + SIZES + "    return share * r * told + (1 - share) * e; return predict",
            "multiply the guided prediction",
        ),
        (TWO + "    r = told.std(-1, keepdim=True) / e.std(-1, keepdim=True); " + MIX, "not for each row"),
        (TWO + SIZES + "    return r * e if share > 0.5 else e; return predict", "compare with the text"),
        (TWO + SIZES + "    return share**2 * r * e + (1 - share**2) * e; return predict", "compare with the text"),
        (STRONG.replace("w)", "6.0)") + TWO.removeprefix(STRONG) + SIZES + MIX, "wrong for w = 3.5"),
        (TWO + SIZES + "    mix = share * r * e + (1 - share) * e; return predict", "the denoiser returns nothing"),
        ("return guided(model, w)", "compare with the text"),
        ("return share", "expected a function of .x, t, y., got a float"),
    ],
}
