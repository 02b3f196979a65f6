"""Answers to lesson 02's exercises, right and wrong, and the names that its checks find in the notebook."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from fmdiff_helpers.diffusion import add_noise, eps_from_x0, x0_from_eps
from fmdiff_helpers.models.layers import linear_attention
from fmdiff_helpers.models.transformer import attention_matrix
from fmdiff_helpers.samplers import sample_ddim
from fmdiff_helpers.schedules import Schedule, cosine_beta, rescaled_linear_beta
from fmdiff_helpers.tokens import entries_made


def names():
    """Names that the checks need, and names of the lesson that must not help."""
    functions = [add_noise, eps_from_x0, x0_from_eps, linear_attention, attention_matrix, sample_ddim, Schedule]
    functions += [cosine_beta, rescaled_linear_beta, entries_made]
    found = {function.__name__: function for function in functions} | {"math": math, "np": np, "torch": torch, "F": F}
    found |= {"schedule": Schedule(cosine_beta(200)), "seed": 0, "device": "cpu"}
    found |= dict(zip("qkv", torch.zeros((3, 1, 4, 49, 32)), strict=True))  # names of the lesson that must not help
    found |= {"network": lambda x, t, y: x, "x": torch.zeros(1, 1, 28, 28), "y": torch.tensor([9]), "n": 49, "d": 32}
    return found


NEAR, ELU = "near_attention(q, k, v, reach)", "elu_attention(q, k, v)"
DRAW = "draw(model, x, y, schedule, num_steps)"
GRID = "n = q.shape[-2]; side = math.isqrt(n); i = torch.arange(n); "
FAR = GRID + "down = (i[:, None] // side - i // side).abs(); across = (i[:, None] % side - i % side).abs(); "
BAN = FAR + "ban = torch.maximum(down, across) > reach; "
SCORES = "s = q @ k.mT / math.sqrt(q.shape[-1]); "
SHARES = BAN + SCORES + "a = s.masked_fill(ban, -math.inf).softmax(-1); "
PHI = "p, r = F.elu(q) + 1, F.elu(k) + 1; "
LINEAR = PHI + "c = r.mT @ v; total = (p * r.sum(-2, keepdim=True)).sum(-1, keepdim=True); "
TABLE = PHI + "t = p @ r.mT; "
WALK = (
    "steps = torch.linspace(schedule.T - 1, 0, num_steps).round().long().tolist(); "
    "for k, step in enumerate(steps):;     t = torch.full((len(x),), step);     x0 = model(x, t, y).clamp(-1, 1);     "
)
STEP = (
    "e = eps_from_x0(x, t, x0, schedule);     "
    "x = schedule.signal_scale[steps[k + 1]].float() * x0 + schedule.noise_scale[steps[k + 1]].float() * e; "
)
LAST = "if k == num_steps - 1:;         return x0;     "

RIGHT = {
    (1, NEAR): [
        SHARES + "return a @ v",
        BAN + "q, k, v = q.double(), k.double(), v.double(); " + SCORES + "e = s.exp() * ~ban; "
        "return e @ v / e.sum(-1, keepdim=True)",
        BAN + "return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=~ban)[0]",
        BAN + SCORES + "a = s.softmax(-1).masked_fill(ban, 0); return (a / a.sum(-1, keepdim=True) @ v).numpy()",
        GRID + "out = torch.zeros_like(v); "
        "for h in range(len(q)):;     for a in range(n):;         near = [b for b in range(n) if abs(a // side - b // "
        "side) <= reach and abs(a % side - b % side) <= reach];         s = k[h, near] @ q[h, a] / q.shape[2] ** 0.5;"
        "         out[h, a] = s.softmax(0) @ v[h, near]; return out",
    ],
    (2, ELU): [
        LINEAR + "return p @ c / total",
        PHI + "return torch.einsum('hnd,hde->hne', p, torch.einsum('hnd,hne->hde', r, v)) / torch.einsum('hnd,hd->hn', "
        "p, r.sum(1))[..., None]",
        "q, k, v = q.double(), k.double(), v.double(); " + LINEAR + "return (p @ c / total).tolist()",
        PHI + "c = sum(r[:, m, :, None] * v[:, m, None] for m in range(q.shape[1])); z = r.sum(1); "
        "return torch.stack([(p[:, n, None] @ c)[:, 0] / (p[:, n] * z).sum(1, keepdim=True) "
        "for n in range(q.shape[1])], dim=1)",
        PHI + "one = torch.cat([v, torch.ones_like(v[..., :1])], -1); w = p @ (r.mT @ one); "
        "return w[..., :-1] / w[..., -1:]",
    ],
    (3, DRAW): [
        WALK + LAST + STEP + "return x",
        "steps = np.linspace(schedule.T - 1, 0, num_steps).round().astype(int); "
        "for step, after in zip(steps, [*steps[1:], -1]):;     t = torch.full((len(x),), int(step));     "
        "x0 = model(x, t, y).clamp(-1, 1);     e = eps_from_x0(x, t, x0, schedule);     "
        "a = schedule.alpha_bar[after] if after >= 0 else torch.tensor(1.0);     "
        "x = a.sqrt() * x0 + (1 - a).sqrt() * e; return x.detach().numpy()",
        "x = x.double(); " + WALK + "e = (x - schedule.signal_scale[step] * x0) / schedule.noise_scale[step];     "
        "if k + 1 < len(steps):;         x = add_noise(x0, torch.full((len(x),), steps[k + 1]), e, schedule); "
        "return x0",
        "from fmdiff_helpers.samplers import noise_predictor; "
        "return sample_ddim(noise_predictor(model, schedule), x, schedule, num_steps=num_steps, y=y)",
    ],
}

WRONG = {
    (1, NEAR): [
        (SHARES.replace(" / math.sqrt(q.shape[-1])", "") + "return a @ v", "divide the scores by the root of d"),
        (SHARES.replace("math.sqrt(q.shape[-1])", "q.shape[-1]") + "return a @ v", "by the root of d, not by d"),
        (SHARES.replace("math.sqrt(q.shape[-1])", "math.sqrt(32)") + "return a @ v", "take .* d from q"),
        (SHARES.replace("-math.inf", "0.0") + "return a @ v", "a score of 0 still gets a share"),
        (BAN + SCORES + "return s.softmax(-1).masked_fill(ban, 0) @ v", "no longer add up to 1"),
        (BAN + SCORES + "return s.masked_fill(ban, 1e9).softmax(-1) @ v", "wrong for"),
        (GRID + "ban = (i[:, None] - i).abs() > reach; " + SHARES.split("; ", 6)[6] + "return a @ v", "not places in"),
        (SHARES.replace("torch.maximum(down, across)", "(down + across)") + "return a @ v", "diagonal neighbours"),
        (SHARES.replace("torch.maximum(down, across)", "across") + "return a @ v", "the rows count, too"),
        (SHARES.replace("torch.maximum(down, across)", "down") + "return a @ v", "the columns count, too"),
        (SHARES.replace("> reach", ">= reach + 0") + "return a @ v", "exactly `reach` is still near"),
        (SHARES.replace("> reach", "> 1") + "return a @ v", "reach 2"),
        (SHARES.replace("math.isqrt(n)", "7") + "return a @ v", "number of rows from n"),
        (SHARES.replace("q @ k.mT", "k @ q.mT") + "return a @ v", "each row belongs to a query"),
        (SHARES.replace("softmax(-1)", "softmax(-2)") + "return a @ v", "dim=-1"),
        (SCORES + "return s.softmax(-1) @ v", "still hears all"),
        (BAN + SCORES + "return s.masked_fill(~ban, -math.inf).softmax(-1) @ v", "finite|wrong for"),
        (SHARES + "return a", r"expected the shape \(3, 16, 8\), got \(3, 16, 16\)"),
        (SHARES + "return a @ v, a", "got a tuple|expected the shape"),
        ("return 1.0", r"expected the shape \(3, 16, 8\), got \(\)"),
        ("return 'near'", "got a str"),
    ],
    (2, ELU): [
        (TABLE + "return t / t.sum(-1, keepdim=True) @ v", "there is an n x n table"),
        (
            PHI + "with torch.no_grad():;     t = p @ r.mT; return t / t.sum(-1, keepdim=True) @ v",
            "there is an n x n table",
        ),
        (
            PHI + "rows = [p[:, n : n + 1] @ r.mT for n in range(q.shape[1])]; "
            "return torch.cat([row / row.sum(-1, keepdim=True) @ v for row in rows], dim=1)",
            "a loop over pairs",
        ),
        (LINEAR + "return p @ c", "do not add up to 1"),
        (LINEAR + "return p @ c / total.mean(1, keepdim=True)", "a sum of its own"),
        (LINEAR + "return p @ c / q.shape[1]", "not by n"),
        (LINEAR + "return p @ c / r.sum((1, 2), keepdim=True)", "not of the keys"),
        (LINEAR.replace("F.elu(q) + 1, F.elu(k) + 1", "F.elu(q), F.elu(k)") + "return p @ c / total", "add 1"),
        (LINEAR.replace("F.elu(q) + 1", "q") + "return p @ c / total", "the queries positive, too"),
        (LINEAR.replace("F.elu(k) + 1", "k") + "return p @ c / total", "the keys positive, too"),
        (LINEAR.replace("elu", "relu") + "return p @ c / total", "not relu"),
        ("q, k = q / q.shape[-1] ** 0.5, k / k.shape[-1] ** 0.5; " + LINEAR + "return p @ c / total", "no root of d"),
        ("return F.scaled_dot_product_attention(q, k, v)", "softmax attention"),
        ("return linear_attention(q, k, v)", "efficient attention"),
        (LINEAR + "return c", r"expected the shape \(4, 49, 32\), got \(4, 32, 32\)"),
        (LINEAR.replace("r.sum(-2", "r.sum(-1") + "return p @ c / total", "share by share"),
    ],
    (3, DRAW): [
        (WALK + STEP.replace("steps[k + 1]", "steps[min(k + 1, num_steps - 1)]") + "return x", "no noise is left"),
        (WALK.replace(".clamp(-1, 1)", "") + LAST + STEP + "return x", "not clipped"),
        (
            WALK.replace("x0 = model(x, t, y).clamp(-1, 1)", "raw = model(x, t, y);     x0 = raw.clamp(-1, 1)")
            + LAST
            + STEP.replace("x, t, x0", "x, t, raw"),
            "eps_hat from the clipped",
        ),
        (WALK + LAST + STEP.replace("steps[k + 1]", "step") + "return x", "weights of the next step"),
        (
            WALK
            + LAST
            + STEP.replace("signal_scale[steps[k + 1]]", "alpha_bar[steps[k + 1]]").replace(
                "schedule.noise_scale[steps[k + 1]]", "(1 - schedule.alpha_bar[steps[k + 1]])"
            ),
            "the weights are the roots",
        ),
        (WALK + "x = x0; return x", "fed back"),
        (WALK + LAST + STEP.replace("* e;", "* 0 * e;"), "put the noise back"),
        (WALK + "if k == num_steps - 1:;         return x;     " + STEP, "the x0_hat of t = 0"),
        (WALK + LAST + STEP.replace("* e;", "* torch.randn_like(e);"), "no fresh noise"),
        (WALK.replace("schedule.T - 1", "199") + LAST + STEP, "run from T - 1 = 39 to 0"),
        (
            WALK.replace("num_steps)", "10)", 1).replace("enumerate(steps)", "enumerate(steps)") + LAST + STEP,
            "asked at",
        ),
        (WALK.replace("schedule.T - 1, 0", "schedule.T - 1, 1") + LAST + STEP + "return x", "asked at t = .*expected"),
        (WALK.replace("model(x, t, y)", "model(x, t, y * 0)") + LAST + STEP + "return x", "pass `y` on"),
        (WALK.replace("torch.full((len(x),), step)", "step") + LAST + STEP + "return x", "wants a tensor as t"),
        (WALK.replace("(len(x),)", "(1,)") + LAST + STEP + "return x", "one level for each picture"),
        (WALK.replace("model(x, t, y)", "network(x, t, y)") + LAST + STEP + "return x", "call `model`"),
        (WALK + LAST + STEP.replace("* e;", "* e * 0.9;"), "weight by weight"),
        (WALK + LAST.replace("x0;", "x0[0];") + STEP + "return x", "expected the shape"),
    ],
}

# Where the last line that a learner forgets is not a plain `return`.
WITHOUT_RETURN = {1: SHARES + "result = a @ v", 2: LINEAR + "result = p @ c / total", 3: WALK + "x = x0"}
