"""Answers to lesson 04's exercises, right and wrong, and the names that its checks find in the notebook."""

import math

import numpy as np
import torch


def names():
    """Names that the checks need, and names of the lesson that must not help."""
    x = torch.randn((10, 1, 28, 28), generator=torch.Generator().manual_seed(1))
    found = {"torch": torch, "np": np, "math": math, "x": 1.0, "mean": 0.4, "std": 0.3, "beta": 0.1, "k": 64}
    found |= {"garments": x, "through": 0.9 * x, "elbo": -1.85, "log_evidence": -1.76}
    return found


CLOUD, BETA, TIGHTER = "best_cloud(x, a, s)", "best_beta(x_hat, x0)", "tighter(log_weights)"
PRECISION = "p = 1 + a * a / s**2; m = a * x / (a * a + s * s); "
LARGEST = "m = log_weights.max(dim=1, keepdim=True).values; "

RIGHT = {
    (1, CLOUD): [
        PRECISION + "return m, p**-0.5",
        PRECISION + "return [m, math.sqrt(1 / p)]",
        PRECISION + "return np.array([m, 1 / np.sqrt(p)])",
        PRECISION + "return torch.tensor([m, p**-0.5])",
        PRECISION + "return np.float64(m), np.float32(p**-0.5)",
        "mean, var = 0.0, 1.0; gain = var * a / (a * a * var + s * s); "
        "return mean + gain * (x - a * mean), ((1 - gain * a) * var) ** 0.5",
        "z = torch.linspace(-9, 9, 20001, dtype=torch.float64); w = (-(z**2) / 2 - (x - a * z) ** 2 / 2 / s**2).exp(); "
        "w /= w.sum(); m = (w * z).sum(); return m, (w * (z - m) ** 2).sum().sqrt()",
    ],
    (2, BETA): [
        "return (x_hat - x0).square().mean()",
        "return ((x0 - x_hat) ** 2).mean().item()",
        "return torch.nn.functional.mse_loss(x_hat, x0)",
        "return np.mean((x_hat.numpy() - x0.numpy()) ** 2)",
        "n, _, h, w = x0.shape; return (x_hat - x0).norm() ** 2 / (n * h * w)",
        "return (x_hat - x0).square().flatten(1).sum(1).double().mean() / x0[0].numel()",
        "return sum(((a - b) ** 2).mean() for a, b in zip(x_hat, x0)) / len(x0)",
    ],
    (3, TIGHTER): [
        "return (torch.logsumexp(log_weights, dim=1) - math.log(log_weights.shape[1])).mean()",
        "return log_weights.logsumexp(1).mean().item() - np.log(log_weights.size(1))",
        LARGEST + "return ((log_weights - m).exp().mean(1, keepdim=True).log() + m).mean()",
        "w = log_weights.numpy(); return np.mean(np.logaddexp.reduce(w, axis=1)) - math.log(w.shape[1])",
        "rows = [(row - max(row)).exp().mean().log() + max(row) for row in log_weights]; return sum(rows) / len(rows)",
        "w = log_weights.float(); return torch.stack([torch.logsumexp(r, 0) - math.log(len(r)) for r in w]).mean()",
    ],
}

WRONG = {
    (1, CLOUD): [
        (PRECISION + "return p**-0.5, m", "first the mean, then"),
        (PRECISION + "return m, 1 / p", "is the variance; take its root"),
        (PRECISION + "return m, p", "is the precision"),
        (PRECISION + "return m, p**0.5", "root of the precision"),
        ("return x / a, s / abs(a)", "the prior N.0, 1. counts, too"),
        (PRECISION + "return x / a, p**-0.5", "pulls the mean from x / a towards 0"),
        (PRECISION + "return m, s / abs(a)", "the prior makes the cloud narrower"),
        ("return 8 / 17, (1 / 17) ** 0.5", "the numbers of the lesson's toy"),
        ("return 0.471, 0.243", "the numbers of the lesson's toy"),
        ("p = 1 + a * a / s; return a * x / s / p, p**-0.5", "compare with the grid"),
        ("p = 1 + a * a / 0.25; return a * x / 0.25 / p, p**-0.5", "compare with the grid"),
        ("return mean, std", "compare with the grid"),
        (PRECISION + "return m", "expected two numbers, got a float"),
        (PRECISION + "return torch.full((3,), m)", "expected two numbers, got a Tensor"),
        (PRECISION + "return 'mean', m", "expected two numbers, got a tuple"),
    ],
    (2, BETA): [
        ("return (x_hat - x0).square().sum()", "the sum over all pixels"),
        ("return (x_hat - x0).square().flatten(1).sum(1).mean()", "the squared error of an image"),
        ("return (x_hat - x0).square().mean((1, 2, 3)).sum()", "divide by the number of images"),
        ("return 0.5 * (x_hat - x0).square().mean()", "the factor 1/2 drops out"),
        ("return 2 * (x_hat - x0).square().mean()", "the factor 1/2 drops out"),
        ("return (x_hat - x0).square().mean().sqrt()", "a spread; beta is a variance"),
        ("return 1 / (x_hat - x0).square().mean()", "one divided by beta"),
        ("return (x_hat - x0).abs().mean()", "the absolute errors"),
        ("return (x_hat - x0).var()", "do not subtract the mean"),
        ("return (x_hat - x0).std()", "a standard deviation"),
        ("return (x_hat - x0).square().mean((1, 2, 3))", "expected one number, got a Tensor"),
        ("return (x_hat - x0).square()", "expected one number, got a Tensor"),
        ("return (through - garments).square().mean()", "on nothing else"),
        ("return x0.square().mean()", "on nothing else"),
        ("return 0.03", "on nothing else"),
        ("return beta", "on nothing else"),
        ("return 'the squared error'", "expected one number, got a str"),
    ],
    (3, TIGHTER): [
        ("return log_weights.mean()", "the mean of the logarithms"),
        ("return log_weights.mean(1).mean()", "the mean of the logarithms"),
        ("return torch.logsumexp(log_weights, 1).mean()", "the sum of the k weights; their mean"),
        (
            "return (torch.logsumexp(log_weights, 1) - math.log(log_weights.shape[1])).sum()",
            "mean over the n rows",
        ),
        ("return torch.logsumexp(log_weights.flatten(), 0) - math.log(log_weights.numel())", "for each row"),
        ("return log_weights.amax(1).mean()", "the largest of the k weights"),
        ("return log_weights.exp().mean(1).log().mean()", "exp.-5000. is 0"),
        ("m = log_weights.max(); return ((log_weights - m).exp().mean(1).log() + m).mean()", "of each row out first"),
        ("return (torch.logsumexp(log_weights, 0) - math.log(len(log_weights))).mean()", "the k entries of a row"),
        ("return (torch.logsumexp(log_weights, 1) - math.log(k)).mean()", "the k entries of a row"),
        (
            "return torch.logsumexp(log_weights, 1) - math.log(log_weights.shape[1])",
            "expected one number, got a Tensor",
        ),
        ("return log_evidence", "the k entries of a row"),
        ("return elbo", "the k entries of a row"),
        ("return 0.0", "the k entries of a row"),
    ],
}
