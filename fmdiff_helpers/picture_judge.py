"""How good are samples that a network draws after pictures of one's own? Measured against pictures that it never saw.

The features are those of an encoder that was trained without labels on the same pictures. Such numbers can be compared
with their floor, and with those of another network that the same encoder measured; with no others.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fmdiff_helpers.data import to_uint8
from fmdiff_helpers.drawing import Drawer
from fmdiff_helpers.metrics import distances, features, linear_probe, nearest
from fmdiff_helpers.models.encoder import Encoder
from fmdiff_helpers.pictures import Pictures

NEAR = 0.05  # the share of held-out pictures that counts as near to a training picture


def nearest_features(found: Tensor, train: Tensor) -> Tensor:
    """Return the distance (N,) of features (N, d) to the nearest of others (M, d)."""
    return torch.cat([torch.cdist(part, train).amin(dim=1) for part in found.split(500)])


class PictureJudge:
    """Measure images against a split of pictures, "validation" or "test"; the training pictures are the floor.

    Without an `encoder` only copying of pixels is measured. All images are uint8 (N, C, H, W).
    """

    def __init__(self, pictures: Pictures, split: str, encoder: Encoder | None):
        self.encoder, self.has_kinds = encoder, bool(pictures.kinds)
        self.images, self.labels = pictures.part("train")
        self.held_out, self.held_labels = pictures.part(split)
        self.close = nearest(self.held_out, self.images)[0].quantile(NEAR)
        if encoder is not None:
            self.train_features, self.held_features = (features(encoder, x) for x in (self.images, self.held_out))
            self.close_features = nearest_features(self.held_features, self.train_features).quantile(NEAR)

    def label_accuracy(self, found: Tensor, labels: Tensor) -> dict[str, float]:
        """Return the share of labels (N,) that a linear layer finds in features (N, d), if there are kinds.

        The layer is fitted to the training pictures.
        """
        if not self.has_kinds:
            return {}
        return {"label_accuracy": linear_probe(self.train_features, self.labels, found, labels)}

    def measure(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Return all measures of images that were drawn with these labels (N,), which count only if there are kinds.

        `copying` is the share of images that are as near to a training picture, pixel by pixel, as the nearest 5 % of
        the held-out pictures are; `feature_copying` is the same in the encoder's features.
        """
        measures = {}
        if self.encoder is not None:
            found = features(self.encoder, images)
            measures = distances(found, self.held_features) | self.label_accuracy(found, labels)
            near = nearest_features(found, self.train_features) < self.close_features
            measures["feature_copying"] = near.cpu().double().mean().item()
        near = nearest(images, self.images)[0] < self.close
        return measures | {"copying": near.cpu().double().mean().item()}

    def floor(self, n: int, seeds: Sequence[int]) -> list[dict[str, float]]:
        """Return the measures of n training pictures for each seed; labels and copying are of the held-out pictures."""
        if self.encoder is None:
            return [{"copying": NEAR} for _ in seeds]
        common = self.label_accuracy(self.held_features, self.held_labels) | {"feature_copying": NEAR, "copying": NEAR}
        chosen = (self.train_features[self.at_random(n, seed)] for seed in seeds)
        return [distances(found, self.held_features) | common for found in chosen]

    def at_random(self, n: int, seed: int) -> Tensor:
        """Return the numbers (n,) of n training pictures."""
        return torch.randperm(len(self.images), generator=torch.Generator().manual_seed(seed))[:n]

    def judge(self, drawer: Drawer, n: int, seeds: Sequence[int]) -> list[dict[str, float]]:
        """Return the measures of n images of a drawer for each seed, of the kinds of as many training pictures."""
        measured = []
        for seed in seeds:
            labels = self.labels[self.at_random(n, seed)]
            images = to_uint8(drawer.draw(n, seed, labels if drawer.takes_labels else None)).cpu()
            measured.append(self.measure(images, labels))
        return measured
