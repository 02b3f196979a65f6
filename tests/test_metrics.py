"""fmdiff_helpers.metrics: distances agree with their formulas, shares with counts by hand, and copies are found.

The judge here is an untrained classifier and its garments are drawn; its numbers are compared with the same numbers
computed another way.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.testing import assert_close

from fmdiff_helpers.data import to_model
from fmdiff_helpers.metrics import (
    Judge,
    accuracy,
    ball_radius,
    density_and_coverage,
    distances,
    features,
    frechet_distance,
    kernel_distance,
    linear_probe,
    mean_and_spread,
    nearest,
    nearest_ratio,
    share_inside,
    spread_within,
)
from fmdiff_helpers.models.classifier import Classifier
from fmdiff_helpers.models.encoder import Encoder
from fmdiff_helpers.standin import draw_garments

CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64 round-off, and what a square root of it costs
NEARLY = 1e-3  # grey values, for float32 round-off


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(seed: int, n: int, d: int) -> torch.Tensor:
    """Draw n points whose mean is exactly 0 and whose covariance is exactly the identity."""
    x = normal(seed, n, d)
    x = x - x.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False).T


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def make_classifier() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(width=4).eval()


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return make_classifier()


@pytest.fixture(scope="module")
def train_images() -> torch.Tensor:
    return draw_garments(400, seed=0)[0]


@pytest.fixture(scope="module")
def test_images() -> torch.Tensor:
    return draw_garments(200, seed=1)[0]


@pytest.fixture(scope="module")
def judge(classifier, train_images, test_images) -> Judge:
    return Judge(classifier, train_images, test_images)


# features


def test_features_are_those_of_the_classifier_in_float64(classifier, test_images):
    found = features(classifier, test_images)
    assert found.shape == (200, 16) and found.dtype == torch.float64 and not found.requires_grad
    with torch.no_grad():
        assert_close(found, classifier.features(to_model(test_images)).double(), rtol=1e-5, atol=1e-6)
    training = make_classifier().train()
    features(training, test_images)
    assert all(module.training for module in training.modules()), "in the mode it was"
    assert not any(module.training for module in classifier.modules())


# accuracy


def test_accuracy_is_the_share_of_images_whose_label_the_classifier_finds(classifier, test_images):
    with torch.no_grad():
        said = classifier(to_model(test_images)).argmax(1)
    assert said.unique().numel() > 1
    labels = torch.cat([said[:50], (said[50:] + 1) % 10])
    assert accuracy(classifier, test_images, said) == 1 and accuracy(classifier, test_images, labels) == 0.25


# spread_within

ODD_KIND = [[0.0, 2.0], [4.0, 2.0]]  # standard deviations sqrt(8) and 0
EVEN_KIND = [[1.0, 0.0], [2.0, 0.0], [3.0, 3.0]]  # standard deviations 1 and sqrt(3)
BY_HAND = (math.sqrt(8) / 2 + (1 + math.sqrt(3)) / 2) / 2


def two_kinds(odd: int, even: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return five images of 1x2 pixels, of two kinds in turn, and their labels."""
    rows = [EVEN_KIND[0], ODD_KIND[0], EVEN_KIND[1], ODD_KIND[1], EVEN_KIND[2]]
    return torch.tensor(rows).reshape(5, 1, 1, 2), torch.tensor([even, odd, even, odd, even])


@pytest.mark.parametrize("odd, even", [(0, 1), (3, 8), (9, 0)])
def test_the_spread_within_kinds_by_hand_whichever_of_the_ten_are_there(odd, even):
    """A mean over kinds, not over images: two of one kind count as much as three of the other."""
    x, y = two_kinds(odd, even)
    assert spread_within(x, y) == pytest.approx(BY_HAND, rel=1e-6)
    assert spread_within(x[y == odd], y[y == odd]) == pytest.approx(math.sqrt(2), rel=1e-6)
    away = 50.0 * y.reshape(-1, 1, 1, 1)  # where a kind lies has no influence
    assert spread_within(3 * x + away, y) == pytest.approx(3 * BY_HAND, rel=1e-5)


# frechet_distance


def test_frechet_distance_of_equal_sets_is_0():
    a = normal(0, 100, 5)
    assert_close(frechet_distance(a, a.flip(0)), 0.0, **CLOSE)


def test_frechet_distance_where_the_covariances_commute_is_that_of_the_widths():
    """Both ellipsoids have the same axes, so that each axis adds the square of the difference of the widths."""
    axes = torch.linalg.qr(normal(0, 4, 4)).Q
    widths = torch.tensor([[1.0, 2.0, 3.0, 0.5], [2.0, 2.0, 0.1, 4.0]], dtype=torch.float64)
    a, b = (whitened(seed, n, 4) * width @ axes for seed, n, width in ((1, 50, widths[0]), (2, 80, widths[1])))
    assert_close(frechet_distance(a, b + 1), 4 + (widths[0] - widths[1]).square().sum().item(), **CLOSE)


def test_frechet_distance_of_two_features_by_the_root_of_a_2x2_matrix():
    """The root of a 2x2 matrix M has the trace sqrt(trace(M) + 2 sqrt(det(M))); these covariances do not commute."""
    a = whitened(0, 30, 2) @ torch.tensor([[2.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    b = whitened(1, 40, 2) @ torch.tensor([[0.5, 0.0], [-1.0, 3.0]], dtype=torch.float64)
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    product = cov_a @ cov_b
    assert not torch.allclose(product, product.T)
    expected = cov_a.trace() + cov_b.trace() - 2 * (product.trace() + 2 * product.det().sqrt()).sqrt()
    assert_close(frechet_distance(a, b), expected.item(), **CLOSE)


@pytest.mark.parametrize("mix", [torch.zeros(4, 2), torch.ones(4, 2), torch.arange(8.0).reshape(4, 2)])
def test_frechet_distance_with_features_that_are_constant_or_follow_from_others(mix):
    """Their covariance has eigenvalues of 0, which rounding makes negative: no root of those may be taken."""
    mix = torch.cat([torch.eye(4), mix], dim=1).double()
    a, b = whitened(0, 50, 4), 2 * whitened(1, 50, 4)
    assert_close(frechet_distance(a @ mix, b @ mix), mix.square().sum().item(), rtol=1e-6, atol=1e-6)


def test_frechet_distance_needs_more_images_than_features():
    few, enough = normal(0, 5, 5), normal(1, 6, 5)
    assert math.isfinite(frechet_distance(enough, enough))
    for a, b, numbers in ((few, enough, "5 and 6"), (enough, few, "6 and 5")):
        with pytest.raises(ValueError, match=f"there are {numbers} images; expected more than the 5 features"):
            frechet_distance(a, b)


# kernel_distance


def test_kernel_distance_is_the_mean_over_all_pairs_of_different_images():
    """Of more images than it takes at once."""
    a, b = normal(0, 1001, 2), normal(1, 20, 2) + 1
    within = [((x @ x.T / 2 + 1).pow(3).fill_diagonal_(0).sum() / (len(x) * (len(x) - 1))) for x in (a, b)]
    assert_close(kernel_distance(a, b), (sum(within) - 2 * (a @ b.T / 2 + 1).pow(3).mean()).item(), **CLOSE)


# share_inside


@pytest.mark.parametrize(
    "k, inside, outside",
    [
        (1, (-0.9, 1.9, 8.1, 13.9), (-1.1, 2.1, 7.9, 14.1)),  # radii 1, 1, 2, 1, 1
        (2, (-9.9, 15.9), (-10.1, 16.1)),  # radii 10, 9, 3, 2, 3
        (3, (-11.9, 24.9), (-12.1, 25.1)),  # radii 12, 11, 9, 11, 12
    ],
)
def test_a_ball_reaches_to_the_kth_neighbour_of_its_centre_not_counting_itself(k, inside, outside):
    support = column(0, 1, 10, 12, 13)
    assert [share_inside(column(x), support, k) for x in inside] == [1.0] * len(inside)
    assert [share_inside(column(x), support, k) for x in outside] == [0.0] * len(outside)
    assert share_inside(column(*inside, *outside), support, k) == len(inside) / (len(inside) + len(outside))


def test_a_ball_holds_its_border():
    assert share_inside(column(-1, 2, 3), column(0, 1), k=1) == pytest.approx(2 / 3)


@pytest.mark.parametrize("k, expected", [(1, [1, 1, 2, 4]), (2, [3, 2, 3, 6]), (3, [7, 6, 4, 7])])
def test_the_radius_of_a_ball_is_the_distance_to_the_kth_neighbour(k, expected):
    found = ball_radius(column(0, 1, 3, 7), k)
    assert_close(found, torch.tensor(expected, dtype=torch.float64))
    if k == 3:
        assert_close(ball_radius(column(0, 1, 3, 7)), found)


def test_the_share_inside_agrees_with_all_distances_in_float64():
    """Of more points than are compared at once, and with the third neighbour, as nothing else is said."""
    points, support = normal(0, 300, 6) * 1.5, normal(1, 200, 6)
    radius = (support[:, None] - support).norm(dim=2).sort(dim=1).values[:, 3]
    expected = ((points[:, None] - support).norm(dim=2) <= radius).any(dim=1).double().mean().item()
    assert 0.2 < expected < 0.8 and share_inside(points, support) == pytest.approx(expected, abs=1 / 300)


# density_and_coverage


def test_density_and_coverage_are_those_of_the_paper_term_by_term():
    """Naeem et al. 2020, eqs. 3 and 4."""
    points, support, k = normal(5, 40, 3) * 0.8, normal(6, 30, 3), 5
    between = torch.cdist(support, support).sort(dim=1).values[:, k]
    inside = [[(y - x).norm() <= r for x, r in zip(support, between, strict=True)] for y in points]
    density = sum(map(sum, inside)).item() / (k * 40)
    coverage = sum(any(row[i] for row in inside) for i in range(30)) / 30
    assert density_and_coverage(points, support) == pytest.approx((density, coverage))


def test_a_real_outlier_does_not_make_far_points_dense_but_does_make_them_precise():
    """The reason for these measures: the ball around a real outlier is large. (Naeem et al. 2020, figure 1)"""
    support = torch.cat([normal(0, 99, 2), torch.full((1, 2), 100.0, dtype=torch.float64)])
    far = 50 + normal(1, 100, 2)
    density, coverage = density_and_coverage(far, support)
    assert share_inside(far, support) == 1.0 and (density, coverage) == pytest.approx((1 / 5, 0.01))


def test_points_that_leave_out_half_of_the_real_ones_cover_half_of_them():
    near, away = normal(0, 60, 2), normal(1, 60, 2) + 100
    support = torch.cat([near, away])
    assert density_and_coverage(support, support)[1] == 1
    assert density_and_coverage(near.repeat(2, 1), support)[1] == 0.5


def test_as_many_samples_as_real_ones_are_asked_what_they_cover():
    real, samples = normal(0, 50, 8), normal(1, 400, 8)
    found = distances(samples, real)
    assert (found["density"], found["coverage"]) == density_and_coverage(samples[:50], real)


# linear_probe


def test_a_linear_probe_finds_what_a_line_can_tell_and_only_that():
    x = normal(0, 400, 3)
    of_line, of_circle = (x[:, 0] + 0.1 * x[:, 1] > 0).long(), (x.square().sum(1) > 2.4).long()
    scaled = x * torch.tensor([100.0, 1.0, 0.01]) + 5  # features may have any size
    assert linear_probe(scaled[:300], of_line[:300], scaled[300:], of_line[300:]) > 0.97
    assert linear_probe(scaled[:300], of_circle[:300], scaled[300:], of_circle[300:]) < 0.65


def test_a_linear_probe_agrees_with_another_logistic_regression():
    centres = normal(1, 10, 6)
    y = torch.arange(600) % 10
    x = centres[y] + 0.8 * normal(2, 600, 6)
    train = (x[:400] - x[:400].mean(0)) / x[:400].std(0), y[:400]
    test = (x[400:] - x[:400].mean(0)) / x[:400].std(0), y[400:]
    other = LogisticRegression(C=1 / (2e-4 * 400), max_iter=1000).fit(*train).score(*test)
    assert linear_probe(x[:400], y[:400], x[400:], y[400:]) == pytest.approx(other, abs=0.011)


# nearest


def test_a_copy_is_found_and_is_at_distance_0(train_images):
    """More images than are compared at once, and bright: rounding weighs most where all pixels are near 255."""
    train = torch.cat([train_images, 255 - draw_garments(400, seed=2)[0]])
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    distance, index = nearest(train[order], train)
    assert torch.equal(index, order) and distance.max() < NEARLY


def test_the_nearest_image_agrees_with_all_distances_in_float64(train_images, test_images):
    a, b = (images.flatten(1).double() for images in (test_images[:40], train_images))
    expected = (a[:, None] - b).square().mean(dim=2).sqrt().min(dim=1)
    distance, index = nearest(test_images[:40], train_images)
    assert torch.equal(index, expected.indices)
    assert_close(distance.double(), expected.values, rtol=1e-4, atol=1e-4)


def test_a_copy_is_less_than_a_third_as_far_from_the_nearest_image_as_from_the_second_nearest():
    """Grey images: the distance is the difference of the greys; the third nearest does not count."""
    train = torch.tensor([90, 0, 30, 200], dtype=torch.uint8)[:, None, None, None].expand(4, 1, 28, 28)
    drawn = torch.tensor([0, 6, 10, 15, 60, 110], dtype=torch.uint8)[:, None, None, None].expand(6, 1, 28, 28)
    expected = torch.tensor([0, 6 / 24, 10 / 20, 1, 1, 20 / 80]).double()
    assert_close(nearest_ratio(drawn, train), expected)
    assert_close(nearest_ratio(drawn.repeat(30, 1, 1, 1), train), expected.repeat(30))
    assert nearest_ratio(drawn[:1], train[[1, 1, 2]]).item() == 0, "an image that is there twice can be copied, too"
    with pytest.raises(ValueError, match="there are 1 training images; expected at least 2"):
        nearest_ratio(drawn, train[:1])


# Judge


def test_the_judge_says_what_each_measure_says_of_the_features(judge, classifier, train_images, test_images):
    found, real = features(classifier, train_images[:150]), features(classifier, test_images)
    measures = judge.measure(train_images[:150])
    expected = {
        "fd": frechet_distance(found, real),
        "kd": kernel_distance(found, real),
        "precision": share_inside(found, real),
        "recall": share_inside(real, found),
        **dict(zip(("density", "coverage"), density_and_coverage(found, real[:150]), strict=True)),
        "copying": 1.0,
    }
    assert expected["precision"] != expected["recall"]
    assert list(measures) == list(expected)
    assert measures == pytest.approx(expected)


def test_copying_counts_each_image(judge, train_images):
    white = torch.full((150, 1, 28, 28), 255, dtype=torch.uint8)
    white[:, :, :, ::2] = 0  # stripes, far from any garment
    assert judge.measure(torch.cat([train_images[:50], white]))["copying"] == 0.25


def test_a_twentieth_of_the_test_images_is_copying(judge, test_images):
    """No number between 0.05 of 200 images and that of one more or fewer: 10 are below the threshold."""
    measures = judge.measure(test_images)
    assert measures["copying"] == 0.05
    assert measures["fd"] == pytest.approx(0, abs=1e-9) and measures["kd"] <= 0
    assert measures["precision"] == measures["recall"] == 1


def test_label_accuracy_is_measured_where_labels_are_given(judge, classifier, test_images):
    labels = torch.arange(200) % 10
    assert judge.measure(test_images, labels)["label_accuracy"] == accuracy(classifier, test_images, labels)
    assert "label_accuracy" not in judge.measure(test_images)


def test_with_an_encoder_the_same_distances_are_measured_with_its_features(judge, train_images, test_images):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        encoder = Encoder(width=4).eval()
    both, samples = Judge(judge.classifier, train_images, test_images, encoder), draw_garments(150, seed=3)[0]
    only = distances(features(encoder, samples), features(encoder, test_images))
    expected = judge.measure(samples) | {f"label_free_{name}": value for name, value in only.items()}
    assert both.measure(samples) == expected and len(expected) == 13
    (floor,) = both.floor(100, [2])
    assert floor == judge.floor(100, [2])[0] | both.label_free_distances(judge.real(100, 2))


def test_the_floor_is_what_the_real_images_of_its_seeds_score(judge, classifier):
    before = torch.get_rng_state()
    for labels in (None, torch.arange(400) // 300):
        floor = judge.floor(100, range(3), labels)
        for seed, found in enumerate(floor):
            expected = judge.distances(features(classifier, judge.real(100, seed, labels)))
            assert found == expected | {"copying": 0.05}
        assert len({measures["fd"] for measures in floor}) == len(floor) == 3
        assert judge.floor(100, [2], labels) == floor[2:]
    assert torch.equal(before, torch.get_rng_state())


EVEN_KINDS = torch.cat([torch.zeros(200), torch.arange(200) % 4 + 1]).long()  # half of them are of kind 0
FEW_OF_ONE_KIND = torch.where(torch.arange(400) < 10, 1, 0)


@pytest.mark.parametrize("labels", [None, EVEN_KINDS, FEW_OF_ONE_KIND], ids=["all", "even", "few of one kind"])
@pytest.mark.parametrize("n", [100, 43, 7])
def test_real_images_are_the_first_of_the_seeds_order_or_the_first_of_each_kind(judge, train_images, labels, n):
    """One of each kind in turn, as long as there are some."""
    before = torch.get_rng_state()
    for seed in (0, 3):
        order = torch.randperm(400, generator=torch.Generator().manual_seed(seed)).tolist()
        if labels is not None:
            of_kind = [[k for k in order if labels[k] == kind] for kind in range(5)]
            rank = {k: rank for same in of_kind for rank, k in enumerate(same)}
            order.sort(key=rank.get)
        assert torch.equal(judge.real(n, seed, labels), train_images[order[:n]])
    assert torch.equal(before, torch.get_rng_state())


def autoencoder(through=lambda x: x) -> SimpleNamespace:
    """An autoencoder whose latent is the image, upside down, and what it makes of images; it notes how many it sees."""
    seen = []

    def to_latent(x):
        seen.append(len(x))
        return through(x).flip(2)

    return SimpleNamespace(to_latent=to_latent, from_latent=lambda z: z.flip(2), seen=seen)


def test_an_autoencoder_that_changes_nothing_is_at_the_floor(judge):
    before = torch.get_rng_state()
    for labels in (None, EVEN_KINDS):
        floor, limit = judge.floor(150, range(3), labels), judge.limit(150, autoencoder(), range(3), labels)
        assert torch.equal(before, torch.get_rng_state()) and len(limit) == 3
        for real, found in zip(floor, limit, strict=True):
            assert found.pop("squared_error") == 0 and real.pop("copying") == 0.05
            assert found == real
        again = judge.limit(150, autoencoder(), seeds=[2], labels=labels)
        assert again[0]["fd"] == limit[2]["fd"] != limit[0]["fd"]


def test_an_autoencoder_that_makes_one_picture_of_everything_is_far_off(judge):
    """The squared error is a mean over images and pixels, from -1 to 1, before anything is rounded or clipped."""
    grey = judge.limit(150, autoencoder(lambda x: torch.full_like(x, 0.3)), range(3))
    for seed, (floor, found) in enumerate(zip(judge.floor(150, range(3)), grey, strict=True)):
        pixels = judge.real(150, seed).double() / 127.5 - 1
        assert found["squared_error"] == pytest.approx((pixels - 0.3).square().mean().item(), rel=1e-5)
        assert found["fd"] > 10 * floor["fd"] and found["kd"] > 10 * abs(floor["kd"])
        assert found["recall"] == 0
    bright = judge.limit(150, autoencoder(lambda x: torch.full_like(x, 3.0)), seeds=[0])
    pixels = judge.real(150, 0).double() / 127.5 - 1
    assert bright[0]["squared_error"] == pytest.approx((pixels - 3).square().mean().item(), rel=1e-5)


def test_an_autoencoder_sees_500_images_at_a_time(classifier, test_images):
    judge, vae = Judge(classifier, draw_garments(600, seed=5)[0], test_images), autoencoder()
    (found,) = judge.limit(600, vae, seeds=[0])
    assert vae.seen == [500, 100]
    assert found["fd"] == pytest.approx(judge.floor(600, seeds=[0])[0]["fd"])


# mean_and_spread


def test_mean_and_standard_deviation_over_the_seeds():
    """The sample standard deviation: the squares of 2, 0 and 2 over 3 - 1. A single seed has none."""
    measures = [{"fd": 1.0, "recall": 0.5}, {"fd": 3.0, "recall": 0.5}, {"fd": 5.0, "recall": 0.5}]
    assert mean_and_spread(measures) == {"fd": (3.0, 2.0), "recall": (0.5, 0.0)}
    assert mean_and_spread([{"fd": 1.5}]) == {"fd": (1.5, 0.0)}
