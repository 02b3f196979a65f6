"""How good are samples? Distances to real images, precision and recall, copying: each compared with its floor.

Garments are compared by the features of the published classifier, which was trained on the training split only. So a
Fréchet distance here (`fd`) is computed like the FID, and a kernel distance (`kd`) like the KID, but can be compared
only with other numbers of this classifier, not with a published FID or KID.
The floor of a measure is the score of equally many real training images. No network can be expected to do better,
except one that is given the kinds: its floor is lower (`Judge.floor`).
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmdiff_helpers.batching import batch_size_on, gather_parts, own_parts
from fmdiff_helpers.data import to_model, to_uint8
from fmdiff_helpers.images import check_images, check_labels, warn_if_inverted
from fmdiff_helpers.models.classifier import Classifier
from fmdiff_helpers.models.encoder import Encoder


@torch.no_grad()
def features(network: Classifier | Encoder, images: Tensor, shared: bool = False) -> Tensor:
    """Return a network's features of uint8 images (N, 1, 28, 28), as float64 (N, d) on the CPU.

    With `shared`, each process of `accelerate launch` computes a part: all processes must make the call, and each gets
    all features.
    """
    device = next(network.parameters()).device
    parts = own_parts(images.split(batch_size_on(device)), shared)
    done = {number: network.features(to_model(part.to(device))).cpu().double() for number, part in parts.items()}
    return gather_parts(done, shared)


@torch.no_grad()
def agreement(classifier: Classifier, found: Tensor, labels: Tensor) -> float:
    """Return the share of features (N, d) for which the classifier predicts the label (N,)."""
    logits = classifier.head(found.to(classifier.head.weight))
    return (logits.argmax(1) == labels.to(logits.device)).cpu().double().mean().item()


def accuracy(classifier: Classifier, images: Tensor, labels: Tensor) -> float:
    """Return the share of uint8 images (N, 1, 28, 28) for which the classifier predicts the label (N,)."""
    return agreement(classifier, features(classifier, images), labels)


def linear_probe(found: Tensor, labels: Tensor, test_found: Tensor, test_labels: Tensor) -> float:
    """Fit one linear layer to features (N, d) and labels (N,); return the share of test labels (M,) that it predicts.

    It is a logistic regression of standardised features, with a small weight decay; it has no random numbers.
    """
    mean, spread = found.mean(0), found.std(0) + 1e-6
    found, test_found = ((part - mean) / spread for part in (found, test_found))
    layer = torch.zeros(found.shape[1] + 1, int(labels.max()) + 1, dtype=found.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([layer], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(found @ layer[1:] + layer[0], labels) + 1e-4 * layer.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    found_labels = (test_found @ layer[1:] + layer[0]).argmax(1)
    return (found_labels == test_labels).cpu().double().mean().item()


def spread_within(x: Tensor, y: Tensor) -> float:
    """Return the standard deviation of images x (N, 1, H, W) within a kind y (N,), averaged over pixels and kinds."""
    return torch.stack([x[y == kind].std(dim=0).mean() for kind in y.unique()]).mean().item()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the Fréchet distance (the formula of the FID) of Gaussians fitted to features a (N, d) and b (M, d).

    |mean_a - mean_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2)). Raises ValueError unless N and M are above d.
    (Heusel et al. 2017, eq. 6) Built in lesson 08.
    """
    if min(len(a), len(b)) <= a.shape[1]:
        raise ValueError(f"there are {len(a)} and {len(b)} images; expected more than the {a.shape[1]} features")
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    # The trace of the root. The eigenvalues of the product are real; only rounding makes them negative.
    root = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * root
    return distance.item()


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Return the kernel distance (the formula of the KID) of features a (N, d) and b (M, d).

    The squared maximum mean discrepancy with the kernel (x . y / d + 1)^3, estimated without bias from all pairs: 0 on
    average for equal sources. (Binkowski et al. 2018, section 4) Built in lesson 08.
    """

    def kernel_sum(x: Tensor, y: Tensor) -> Tensor:
        return sum((part @ y.T / y.shape[1] + 1).pow(3).sum() for part in x.split(100))

    def kernel_diagonal(x: Tensor) -> Tensor:
        return (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()

    n, m = len(a), len(b)
    within_a = (kernel_sum(a, a) - kernel_diagonal(a)) / (n * (n - 1))
    within_b = (kernel_sum(b, b) - kernel_diagonal(b)) / (m * (m - 1))
    return (within_a + within_b - 2 * kernel_sum(a, b) / (n * m)).item()


def ball_radius(support: Tensor, k: int = 3) -> Tensor:
    """Return, for each point of `support` (M, d), the distance to its k-th nearest neighbour in `support`, (M,).

    (Kynkäänniemi et al. 2019, eq. 1) Built in lesson 08.
    """
    # The nearest one is the point itself.
    return torch.cat([torch.cdist(part, support).kthvalue(k + 1, dim=1).values for part in support.split(100)])


def share_inside(points: Tensor, support: Tensor, k: int = 3) -> float:
    """Return the share of `points` (N, d) that lie inside the balls around `support` (M, d), of radius `ball_radius`.

    (Kynkäänniemi et al. 2019, eqs. 1 and 2) Built in lesson 08.
    """
    points, support = points.float(), support.float()
    radius = ball_radius(support, k)
    inside = [(torch.cdist(part, support) <= radius).any(dim=1) for part in points.split(100)]
    return torch.cat(inside).float().mean().item()


def density_and_coverage(points: Tensor, support: Tensor, k: int = 5) -> tuple[float, float]:
    """Return density and coverage of `points` (N, d), for balls around `support` (M, d) of radius `ball_radius`.

    Density is the number of balls that a point lies in, on average, divided by k; it can be above 1. Coverage is the
    share of balls that hold at least one point. Take as many points as balls. (Naeem et al. 2020, eqs. 3 and 4)
    """
    points, support = points.float(), support.float()
    radius = ball_radius(support, k)
    balls, is_covered = 0, torch.zeros(len(support), dtype=torch.bool, device=support.device)
    for part in points.split(100):
        inside = torch.cdist(part, support) <= radius
        balls += inside.sum().item()
        is_covered |= inside.any(dim=0)
    return balls / (k * len(points)), is_covered.float().mean().item()


def nearest(images: Tensor, train_images: Tensor, shared: bool = False) -> tuple[Tensor, Tensor]:
    """Return the distance (N,) of uint8 images (N, 1, H, W) to the nearest training image, and its index (N,).

    The distance is the root mean square over pixels, in grey values from 0 to 255. `shared` is as in `features`.
    """
    train = train_images.flatten(1).float()
    parts = own_parts(images.flatten(1).float().split(500), shared)
    done = {number: torch.cdist(part, train).argmin(dim=1) for number, part in parts.items()}
    index = gather_parts(done, shared).to(images.device)
    # Computed again, pixel by pixel: cdist multiplies matrices, and its rounding would hide an exact copy.
    difference = images.float() - train_images[index].float()
    return difference.flatten(1).square().mean(dim=1).sqrt(), index


def nearest_ratio(images: Tensor, train_images: Tensor) -> Tensor:
    """Return the distance of images to the nearest training image, divided by that to the second nearest, (N,).

    Both are uint8, (N, 1, H, W) and (M, 1, H, W). An exact copy has 0; one that is as far from two of them has 1. Below
    1/3, an image counts as a copy. ValueError unless there are two training images. (Yoon et al. 2023; Bonnaire et al.
    2025, eq. 6)
    """
    if len(train_images) < 2:
        raise ValueError(f"there are {len(train_images)} training images; expected at least 2, to compare the nearest")
    drawn, train = (part.flatten(1).cpu().double() for part in (images, train_images))
    near = [torch.cdist(part, train).topk(2, largest=False).values for part in drawn.split(100)]
    first, second = torch.cat(near).unbind(1)
    return first / second.clamp(min=1e-9)  # both are 0 where a training image is there twice


def kinds_in_turn(order: Tensor, labels: Tensor) -> Tensor:
    """Return numbers of images (N,) in an order in which the kinds take turns, as long as there are some of each.

    Among images of one kind the order stays. `labels` are those of all images.
    """
    kinds, rank = labels.cpu()[order], torch.empty_like(order)
    for kind in kinds.unique():  # 0 for the first of its kind, 1 for the second, ...
        rank[kinds == kind] = torch.arange((kinds == kind).sum())
    return order[rank.argsort(stable=True)]


def distances(found: Tensor, real: Tensor) -> dict[str, float]:
    """Return fd, kd, precision, recall, density and coverage of features (N, d), compared with real ones (M, d)."""
    n = min(len(found), len(real))  # as many of both: among more samples nearly every real image has one near
    density, coverage = density_and_coverage(found[:n], real[:n])
    return {
        "fd": frechet_distance(found, real),
        "kd": kernel_distance(found, real),
        "precision": share_inside(found, real),
        "recall": share_inside(real, found),
        "density": density,
        "coverage": coverage,
    }


class Judge:
    """Measure samples against the test images; everything about the real images is computed once, at the start.

    Where something is chosen, the images of the validation split are in the place of the test images. `classifier`
    gives the features; images are uint8 (N, 1, 28, 28). With an `encoder`, which has never seen a label, all distances
    are also measured with its features; their names begin with "label_free_". The processes of `accelerate launch`
    share the work: each makes the same calls with the same images and gets the same numbers. The start takes 25 s on a
    CPU core.
    """

    def __init__(
        self, classifier: Classifier, train_images: Tensor, test_images: Tensor, encoder: Encoder | None = None
    ):
        self.classifier, self.encoder = classifier, encoder
        self.train_images, self.test_images = train_images, test_images
        self.test_features = self.features(test_images)
        self.label_free_features = features(encoder, test_images, shared=True) if encoder else None
        # One in twenty test images is nearer than this to a training image.
        self.close = nearest(test_images, train_images, shared=True)[0].quantile(0.05)

    def features(self, images: Tensor) -> Tensor:
        """Return the classifier's features of uint8 images (N, 1, 28, 28), as float64 (N, d) on the CPU."""
        return features(self.classifier, images, shared=True)

    def distances(self, found: Tensor) -> dict[str, float]:
        """Return the `distances` of the classifier's features (N, d)."""
        return distances(found, self.test_features)

    def label_free_distances(self, images: Tensor) -> dict[str, float]:
        """Return the `distances` of uint8 images (N, 1, 28, 28) for the encoder; nothing if there is none."""
        if self.encoder is None:
            return {}
        found = distances(features(self.encoder, images, shared=True), self.label_free_features)
        return {f"label_free_{name}": value for name, value in found.items()}

    def measure(self, images: Tensor | np.ndarray, labels: Tensor | np.ndarray | None = None) -> dict[str, float]:
        """Return all distances and copying of uint8 images, and label_accuracy if labels are given.

        Both are tensors on any device, or arrays. `copying` is the share of images that are as near to a training image
        as the nearest 5 % of the test images: 0.05 for images as new as those, 1 for copies. ValueError as from
        `check_images` and `check_labels`. Images that look inverted get a warning.
        """
        images = check_images(images, least=self.test_features.shape[1] + 1).to(self.train_images.device)
        labels = None if labels is None else check_labels(labels, len(images))
        warn_if_inverted(images)
        found = self.features(images)
        measures = self.distances(found) | self.label_free_distances(images)
        distance, _ = nearest(images, self.train_images, shared=True)
        measures["copying"] = (distance < self.close).cpu().double().mean().item()
        if labels is not None:
            measures["label_accuracy"] = agreement(self.classifier, found, labels)
        return measures

    def real(self, n: int, seed: int, labels: Tensor | None = None) -> Tensor:
        """Return n random training images; with the labels (N,) of all training images, equally many of each kind."""
        order = torch.randperm(len(self.train_images), generator=torch.Generator().manual_seed(seed))
        order = order if labels is None else kinds_in_turn(order, labels)
        return self.train_images[order[:n].to(self.train_images.device)]

    def floor(self, n: int, seeds: Sequence[int], labels: Tensor | None = None) -> list[dict[str, float]]:
        """Return the scores of n training images from `real` for each seed; copying is 0.05 by definition.

        Compare samples that have equally many of each kind with the floor for `labels`: it is lower, because the test
        images have equally many of each kind, too.
        """
        measures = []
        for images in (self.real(n, seed, labels) for seed in seeds):
            measures.append(self.distances(self.features(images)) | self.label_free_distances(images))
        return [each | {"copying": 0.05} for each in measures]

    @torch.no_grad()
    def limit(
        self, n: int, autoencoder: nn.Module, seeds: Sequence[int], labels: Tensor | None = None
    ) -> list[dict[str, float]]:
        """Return the scores of n training images from `real` that an autoencoder has reconstructed, for each seed.

        No denoiser in its latent space can be expected to do better. `squared_error` is a mean over pixels in [-1, 1].
        """
        measures = []
        for seed in seeds:
            x0 = to_model(self.real(n, seed, labels))
            x_hat = torch.cat([autoencoder.from_latent(autoencoder.to_latent(x)) for x in x0.split(500)])
            images = to_uint8(x_hat)
            found = self.distances(self.features(images)) | self.label_free_distances(images)
            measures.append(found | {"squared_error": (x_hat - x0).square().mean().item()})
        return measures


def mean_and_spread(measures: Sequence[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Return the mean and standard deviation over seeds of each measure; for a single seed the deviation is 0."""
    table = {name: torch.tensor([m[name] for m in measures], dtype=torch.float64) for name in measures[0]}
    return {name: (v.mean().item(), v.std().item() if len(v) > 1 else 0.0) for name, v in table.items()}
