"""Answers to lesson 07's exercises, right and wrong, and the names that its checks find in the notebook."""

import math

import numpy as np
import torch

from fmdiff_helpers.latent_paths import path_length, way_there
from fmdiff_helpers.schedules import Schedule, cosine_beta


def names():
    """Names that the checks need, and names of the lesson that must not help."""
    generator = torch.Generator().manual_seed(1)
    path = torch.randn((11, 10, 1, 8, 8), generator=generator).cumsum(0)
    found = {"torch": torch, "np": np, "math": math, "device": "cpu", "generator": generator}
    found |= {"path": path, "times": list(range(999, -1, -100)), "schedule": Schedule(cosine_beta(1000))}
    found |= {"z": torch.randn((3000, 64), generator=generator), "way_there": way_there, "path_length": path_length}
    found |= {"ends": path[[0, -1], :1], "share": torch.linspace(0, 1, 11), "K": 10, "way": path[:, 0]}
    return found


BOW, MIDDLE, PACE = "bow(path)", "middle_of(points, weights)", "even_pace(way, num)"
SPLIT = (
    "away = (path - path[0]).flatten(2); line = away[-1]; length = line.norm(dim=1); "
    "along = (away * line).sum(2) / length; off = (away - (along / length)[..., None] * line).norm(dim=2); "
)
EVEN = "even = path[0] + torch.linspace(0, 1, len(path)).reshape(-1, *[1] * (path.ndim - 1)) * (path[-1] - path[0]); "
STEP = "pull = weights / ((points - place).norm(dim=1) + 1e-9);place = pull @ points / pull.sum()"  # one line
WALK = "place = weights @ points; for _ in range(600): {}; return place"
WALKED = (
    "steps = (way[1:] - way[:-1]).flatten(1).norm(dim=1); "
    "walked = torch.cat([steps.new_zeros(1), steps.cumsum(0)]); "
    "goals = torch.linspace(0, 1, num, dtype=way.dtype) * walked[-1]; "
)
LERP = (
    "k = torch.searchsorted(walked, goals).clamp(1, len(steps)); part = (goals - walked[k - 1]) / steps[k - 1]; "
    "return torch.lerp(way[k - 1], way[k], part.reshape(-1, *[1] * (way.ndim - 1)))"
)
NUMPY = "flat = way.flatten(1).numpy(); columns = [np.interp(goals.numpy(), walked, each) for each in flat.T]; "

RIGHT = {
    (1, BOW): [
        SPLIT + "return off.amax(0) / length",
        SPLIT + "return (off / length).max(dim=0).values.tolist()",
        "d = (path - path[0]).flatten(2); u = torch.nn.functional.normalize(d[-1], dim=1); "
        "rest = d - (d * u).sum(-1, keepdim=True) * u; return (rest.norm(dim=-1) / d[-1].norm(dim=-1)).max(0)[0]",
        "d = (path - path[0]).flatten(2); a = (d * d[-1]).sum(2) ** 2 / (d[-1] ** 2).sum(1); "
        "return ((d**2).sum(2) - a).clamp(min=0).max(0).values.sqrt() / d[-1].norm(dim=1)",
        "each = [(p - p[0]).flatten(1).numpy() for p in path.transpose(0, 1)]; "
        "u = [p[-1] / np.linalg.norm(p[-1]) for p in each]; "
        "off = [np.linalg.norm(p - np.outer(p @ v, v), axis=1).max() for p, v in zip(each, u)]; "
        "return np.array([o / np.linalg.norm(p[-1]) for o, p in zip(off, each)])",
    ],
    (2, MIDDLE): [
        WALK.format(STEP),
        WALK.format("pull = weights / torch.cdist(points, place[None])[:, 0];place = (pull / pull.sum()) @ points"),
        "p, w = points.numpy(), weights.numpy(); place = p.mean(0); "
        "for _ in range(999): pull = w / np.linalg.norm(p - place, axis=1).clip(1e-9);place = pull @ p / pull.sum(); "
        "return list(place)",
        "place = (weights @ points).requires_grad_(); rate = torch.optim.LBFGS([place], max_iter=300, "
        "line_search_fn='strong_wolfe'); "
        "cost = lambda: (rate.zero_grad(), c := (weights * (points - place).norm(dim=1)).sum(), c.backward())[1]; "
        "rate.step(cost); return place",
    ],
    (3, PACE): [
        WALKED + LERP,
        WALKED + NUMPY + "return torch.tensor(np.array(columns).T).reshape(num, *way.shape[1:])",
        WALKED + NUMPY + "return np.stack(columns, 1).reshape(num, *way.shape[1:])",
        WALKED
        + "out = []; "
        + "for g in goals: k = min(int((walked <= g).sum()), len(steps));f = (g - walked[k - 1]) / steps[k - 1];"
        "out.append((1 - f) * way[k - 1] + f * way[k]); " + "return out",
    ],
}

WRONG = {
    (1, BOW): [
        (SPLIT + "return off.amax(0)", "divide by the distance between the two ends"),
        (SPLIT + "return off.mean(0) / length", "not the mean"),
        (SPLIT + "return off.sum(0) / length", "not the sum"),
        (SPLIT + "return off.square().amax(0) / length", "a squared distance"),
        (SPLIT + "return (off.amax(0) / length) ** 2", "these are squares"),
        (SPLIT + "return off.amax(0) / path_length(path)", "not by the length of the way"),
        (SPLIT + "return away.norm(dim=2).amax(0) / length", "the distance from the first state"),
        (SPLIT + "return along.amax(0) / length", "how far a state gets along the line"),
        (SPLIT + "return path_length(path) / length", "the length of the way"),
        (
            SPLIT + EVEN + "return (path - even).flatten(2).norm(dim=2).amax(0) / length",
            "not the point at the same share",
        ),
        (SPLIT + "return off[len(off) // 2] / length", "its own nearest point"),
        (SPLIT + "return off.amax() / length[0]", r"expected shape \(3,\), got Tensor"),
        (SPLIT + "return off.amax(1) / length[0]", r"expected shape \(3,\), got shape \(7,\)"),
        (SPLIT + "return off / length", r"expected shape \(3,\), got shape \(7, 3\)"),
        ("return torch.zeros(path.shape[1]) / 0", "it holds NaN or infinity: a division by 0"),
        ("return torch.zeros(path.shape[1])", "its own nearest point"),
        ("return torch.full(path.shape[1:2], 0.3)", "its own nearest point"),
    ],
    (2, MIDDLE): [
        ("return weights @ points", "this is the mean: it makes the squared distances small"),
        ("return points.mean(0)", "the mean of the points; use the weights"),
        ("weights = torch.full_like(weights, 1 / len(weights)); " + WALK.format(STEP), "use the weights in each step"),
        ("return points.median(0).values", "each number by itself"),
        ("return points[(torch.cdist(points, points) * weights).sum(1).argmin()]", "one of the points"),
        ("place = weights @ points; " + STEP + "; return place", "this is one step; repeat it"),
        (WALK.format(STEP.replace("norm(dim=1)", "square().sum(1)")), "not by its square|one of the points"),
        (WALK.format(STEP.replace(" / pull.sum()", "")), "move until nothing changes|expected shape"),
        (WALK.format(STEP.replace("weights / (", "weights * (")), "move until nothing changes"),
        ("place = weights @ points; " + STEP + "; return pull", r"expected shape \(2,\), got shape \(15,\)"),
        (WALK.format(STEP) + "[None]", r"expected shape \(2,\), got shape \(1, 2\)"),
        ("return 0.0", r"expected shape \(2,\), got float"),
        ("return torch.zeros(points.shape[1])", "move until nothing changes"),
    ],
    (3, PACE): [
        (
            "s = torch.linspace(0, len(way) - 1, num, dtype=way.dtype); k = s.long().clamp(max=len(way) - 2); "
            "part = (s - k).reshape(-1, *[1] * (way.ndim - 1)); return torch.lerp(way[k], way[k + 1], part)",
            "not the numbers of the states",
        ),
        (
            "part = torch.linspace(0, 1, num, dtype=way.dtype).reshape(-1, *[1] * (way.ndim - 1)); "
            "return torch.lerp(way[0], way[-1], part)",
            "cuts the corners",
        ),
        (
            WALKED + "return way[(walked[:, None] - goals).abs().argmin(0)]",
            "between two states; this returns states",
        ),
        (WALKED + "return way[torch.searchsorted(walked, goals - 1e-6)]", "this returns the next one"),
        (
            WALKED + "goals = torch.linspace(0, 1, num + 2, dtype=way.dtype)[1:-1] * walked[-1]; " + LERP,
            "the two ends belong",
        ),
        (
            WALKED + "goals = torch.arange(num) / num * walked[-1]; " + LERP,
            "the last point is the end of the way",
        ),
        (WALKED.replace(".norm(dim=1)", ".square().sum(1)") + LERP, "the length of a step is a root"),
        ("way = way.flip(0); " + WALKED + LERP, "begin at the start"),
        (WALKED + "return walked", r"expected shape \(9, 2\), got shape \(6,\)"),
        (WALKED + "return goals", r"expected shape \(9, 2\), got shape \(9,\)"),
        (WALKED + "num = 5; goals = goals[:5]; " + LERP, r"expected shape \(9, 2\), got shape \(5, 2\)"),
        ("return way", r"expected shape \(9, 2\), got shape \(6, 2\)"),
        ("return way[:num]", r"expected shape \(9, 2\)"),
        ("return torch.zeros(num, *way.shape[1:])", "find the step in which a point lies"),
        ("return num", r"expected shape \(9, 2\), got int"),
    ],
}
