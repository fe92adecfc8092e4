"""Representational similarity (RSA) and CKA from Grams: dissimilarities of images, their agreement, inference over images.

A dissimilarity matrix (RDM) is (n_images, n_images), symmetric, with a diagonal of 0. What K permits:

- ``euclidean``: the squared Euclidean distance K_ii + K_jj - 2 K_ij, exact whatever constant was taken off each feature.
- ``cosine``: 1 - K_ij / sqrt(K_ii K_jj) of K centred over images: the cosine distance of features whose mean over images was
  taken off. It is *not* the usual correlation distance, 1 - Pearson's r between the features of two images, which
  takes off each image's mean over features: K = X Xᵀ does not hold that mean.

``MEASURES`` of agreement, each a cosine between two transformed RDMs:

- ``spearman``: of the ranks of the pairs i < j, less their mean.
- ``cosine``: of the dissimilarities as they are.
- ``whitened``: the whitened cosine of Diedrichsen et al. (2021), for squared Euclidean distances with independent noise of
  equal variance: of G = -HDH/2, H = I - 11ᵀ/n. With distances that are unbiased (``crossvalidated_gram``) it is unbiased
  by noise.
- ``cka``: unbiased linear CKA (Song et al. 2012; Nguyen et al. 2021): of the residuals D_ij - α_i - α_j, i ≠ j, of the least
  squares fit of a term for each image. They are -2 times the U-centred Gram, and their inner product over n (n - 3) is the
  unbiased HSIC.

A resample of images with replacement is a weight for each image, 0, 1, 2, ... Pairs of an image with itself are left out, for their
distance of 0 is no datum; all transforms are made anew within the resample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from scipy.spatial.distance import squareform

from cnnf_brain.checks import unknown
from cnnf_brain.predictivity.kernel import EPS, asymmetry, centred_gram, check_gram, host, whole
from cnnf_brain.types import Array, Difference, Similarity, TestResult

DISTANCES = ("euclidean", "cosine")
MEASURES = ("spearman", "cosine", "whitened", "cka")
OVER_IMAGES = "bootstrap over images"
PERMUTATION = "permutation of images"
MIN_IMAGES = 20  # for inference: fewer images, and a resample may consist of one image for the most part
RESAMPLES = 300  # of which a standard deviation is made: within 4% of its limit
STRIP = 128  # rows of a matrix whose transpose is read beside it
CHUNK = 256  # resamples at a time, which bounds the memory


def dissimilarities(gram: Array, distance: str = "euclidean") -> Array:
    """The RDM (n_images, n_images) of a Gram X Xᵀ of features or responses X, by one of ``DISTANCES``.

    A ValueError for an unknown distance, a faulty Gram, and (``cosine``) an image whose centred features are all 0.
    """
    if distance not in DISTANCES:
        raise unknown("distance", distance, DISTANCES)
    gram = centred_gram(whole(host(check_gram(gram))))
    squares = gram.diagonal().copy()
    if distance == "euclidean":
        gram *= -2
        gram += squares
        gram += squares[:, None]
        rdm = gram
    else:
        if not (squares > len(gram) * EPS * squares.max()).all():
            where = int(squares.argmin())
            raise ValueError(
                f"image {where} has the mean features of all images, so it has no cosine distance; use distance 'euclidean'"
            )
        rdm = 1 - gram / np.sqrt(squares[:, None] * squares)
    np.fill_diagonal(rdm, 0.0)
    step = 2.0 ** (np.ceil(np.log2(rdm.max() or 1.0)) - 40)  # ranks tie what differs by rounding alone
    for start in range(0, len(rdm), STRIP):  # exactly symmetric; strip by strip within the processor's cache
        below, above = rdm[start : start + STRIP, : start + STRIP], rdm[: start + STRIP, start : start + STRIP]
        below[:] = np.rint((below + above.T) / (2 * step)) * step
        above[:] = below.T
    return rdm


def crossvalidated_gram(repeats: Array) -> Array:
    """The Gram (n_images, n_images) of mean responses, from products of different repeats alone: unbiased by their noise.

    Its ``dissimilarities`` are the cross-validated squared distances of rsatoolbox (crossnobis without a noise covariance, times
    the number of sites); some may be negative.

    ``repeats`` is (n_images, n_sites, n_repeats), NaN where an image had fewer, for all sites alike. A ValueError: another
    shape, or an image with fewer than two repeats.
    """
    repeats = np.asarray(repeats, dtype=np.float64)
    if repeats.ndim != 3:
        raise ValueError(f"repeats have shape {repeats.shape}; expected (n_images, n_sites, n_repeats)")
    there = np.isfinite(repeats)
    if not (there == there[:, :1]).all():
        raise ValueError("sites have different numbers of repeats of an image; leave out the sites that miss some")
    present = there[:, 0].astype(float)
    if not (present.sum(axis=1) >= 2).all():
        few = int(np.sum(present.sum(axis=1) < 2))
        raise ValueError(f"{few} of {len(repeats)} images have fewer than two repeats; leave them out")
    centred = np.where(there, repeats - np.nanmean(repeats, axis=(0, 2))[:, None], 0.0)
    total, flat = centred.sum(axis=2), centred.reshape(len(repeats), -1)
    counts = np.outer(present.sum(axis=1), present.sum(axis=1)) - present @ present.T
    gram: Array = (total @ total.T - flat @ flat.T) / counts
    return gram


def similarity(first: Array, second: Array, measure: str = "spearman") -> float:
    """Agreement of two RDMs of the same images, at most 1, by one of ``MEASURES``; NaN where one of them is constant.

    For CKA of two Grams: ``similarity(dissimilarities(K), dissimilarities(L), "cka")``. A ValueError: matrices that are no
    RDMs, or of different sizes, fewer than 4 images, an unknown measure.
    """
    first, second = _check_rdms(first, second, measure=measure)
    if measure == "spearman":
        return next(_resampled_ranks([first], second))[0]
    a, b = _transformed(first, measure), _transformed(second, measure)
    return float(_ratio(np.vdot(a, b), np.vdot(a, a), np.vdot(b, b), np.vdot(first, first), np.vdot(second, second)))


def bootstrap_over_images(
    models: Sequence[Array], target: Array, measure: str = "spearman", *, n_resamples: int = 1000, seed: int = 0
) -> Array:
    """(n_resamples, n_models) agreement of each model's RDM with the target's, over images drawn with replacement.

    All models see the same resamples, so that their differences are paired. Spearman ranks all pairs anew in each resample,
    which takes 0.1 s for 2560 images; the others are a few matrix products for all resamples.
    """
    target, *models = _check_rdms(target, *models, measure=measure, least=MIN_IMAGES)
    _check_resamples(n_resamples)
    n, rng = len(target), np.random.default_rng(seed)
    parts = []
    for start in range(0, n_resamples, CHUNK):
        drawn = rng.integers(0, n, (min(CHUNK, n_resamples - start), n))
        weights = np.array([np.bincount(images, minlength=n) for images in drawn], dtype=float)
        parts.append(_resampled(models, target, measure, weights))
    return np.concatenate(parts)


@dataclass(frozen=True)
class Resampled:
    """The agreement of a layer with the recordings of one source: its value, and (n_resamples,) values of resamples.

    Of the same source, number of resamples and seed, resample i holds the same images for every layer.
    """

    value: float
    resamples: Array
    n_images: int
    ceiling: tuple[float, float] | None = None
    dimension: float = np.nan  # of the features: the participation ratio of K


def resampled_similarity(
    rdm: Array, targets: Sequence[Array], measure: str = "spearman", *, n_resamples: int = RESAMPLES, seed: int = 0
) -> Resampled:
    """The mean agreement of a layer's RDM with those of one or several subjects.

    A ValueError for fewer than 20 images, and for what ``similarity`` refuses.
    """
    value = float(np.mean([similarity(rdm, target, measure) for target in targets]))
    resamples = bootstrap_over_images(targets, rdm, measure, n_resamples=n_resamples, seed=seed).mean(axis=1)
    return Resampled(value, resamples, len(rdm))


def pool_similarities(
    parts: Sequence[Resampled], measure: str, distance: str, images: Sequence[Any] | None = None
) -> Similarity:
    """The mean over sources, with its interval: t times the standard deviation of the resamples; see ``compare_similarities``."""
    value, error, df = _estimate([(one.value, one.resamples, one.n_images) for one in parts], images)
    half = float(stats.t.ppf(0.975, df)) * error
    known = [one.ceiling for one in parts if one.ceiling]
    low, high = np.mean(known or [(0, 0)], axis=0).tolist()
    return Similarity(
        value, value - half, value + half, measure, distance, (low, high) if len(known) == len(parts) else None
    )


def compare_similarities(pairs: Sequence[tuple[Resampled, Resampled]], images: Sequence[Any] | None = None) -> Difference:
    """How much better the first of each pair (model, baseline) agrees with a source than the second, for new images.

    Both of a pair come from the same resamples. t is the mean difference over sources divided by its standard deviation in the
    bootstrap over images, with n_images - 1 degrees of freedom, as in rsatoolbox (of several sources, whose variances add: Welch's
    and Satterthwaite's). The interval is of the same t.

    ``images`` names the images of each source: those of one name are the same images in the same order, whose resamples, of one
    seed, are the same ones too. Sources of different names, or without names, are independent.
    """
    parts = [(one.value - base.value, one.resamples - base.resamples, one.n_images) for one, base in pairs]
    difference, error, df = _estimate(parts, images)
    t = difference / error if error else 0.0
    half = float(stats.t.ppf(0.975, df)) * error
    interval = difference - half, difference + half
    p, n = (
        float(2 * stats.t.sf(abs(t), df)),
        sum(dict(zip(images or range(len(parts)), (n for _, _, n in parts), strict=True)).values()),
    )
    return Difference(difference, *interval, (TestResult(OVER_IMAGES, t, p, n, df, interval),))


def _estimate(parts: Sequence[tuple[float, Array, int]], images: Sequence[Any] | None = None) -> tuple[float, float, float]:
    """Mean of values of sources, its standard error from their resamples, its degrees of freedom; sources of the same ``images``
    are one, whose resamples are added up."""
    values = [value for value, _, _ in parts]
    sums: dict[Any, Array] = {}
    counts: dict[Any, int] = {}
    for name, (_, resamples, n) in zip(images or range(len(parts)), parts, strict=True):
        sums[name], counts[name] = sums.get(name, 0.0) + resamples, n
    variances = np.array([np.nanvar(one, ddof=1) if np.isfinite(one).sum() > 1 else np.nan for one in sums.values()])
    variances, free = variances / len(parts) ** 2, np.array([*counts.values()]) - 1.0
    total = float(variances.sum())
    df = total**2 / float(np.sum(variances**2 / free)) if total else float(free.sum())
    return float(np.mean(values)), math.sqrt(total), df


def permutation_of_images(
    model: Array, target: Array, measure: str = "spearman", *, n_resamples: int = 1000, seed: int = 0
) -> TestResult:
    """Whether two RDMs agree at all: the images of one are exchanged at random, rows and columns alike (one-sided).

    p = (1 + the number of permutations that agree at least as well) / (1 + n_resamples).
    """
    _check_resamples(n_resamples)
    model, target = _check_rdms(model, target, measure=measure, least=MIN_IMAGES)
    a, b = _transformed(model, measure), _transformed(target, measure)
    observed, rng = float(np.sum(a * b)), np.random.default_rng(seed)
    orders = (rng.permutation(len(b)) for _ in range(n_resamples))
    tolerance = 1e-12 * abs(observed)  # a tie by rounding counts against the agreement
    beyond = sum(float(np.sum(a * b[np.ix_(order, order)])) >= observed - tolerance for order in orders)
    return TestResult(PERMUTATION, similarity(model, target, measure), (1 + beyond) / (1 + n_resamples), len(a))


def subject_ceiling(rdms: Sequence[Array], measure: str = "spearman") -> tuple[float, float]:
    """The agreement that a perfect model could reach with single subjects: lower and upper bound (Nili et al. 2014).

    Lower: each subject's RDM with the mean of the others'. Upper: with the mean of all, its own among them. Both are means over
    subjects. RDMs are scaled to equal mean squares before the mean, or replaced by their ranks (spearman). A ValueError for a
    single subject.
    """
    if len(rdms) < 2:
        raise ValueError(f"a ceiling over subjects needs the RDMs of at least two, got {len(rdms)}")
    rdms = _check_rdms(*rdms, measure=measure)
    scaled = np.array([_ranked(rdm) if measure == "spearman" else rdm / np.sqrt(np.mean(rdm**2)) for rdm in rdms])
    total = scaled.sum(axis=0)
    low = [similarity(rdm, total - mine, measure) for rdm, mine in zip(rdms, scaled, strict=True)]
    return float(np.mean(low)), float(np.mean([similarity(rdm, total, measure) for rdm in rdms]))


def repeats_ceiling(
    repeats: Array,
    rdm: Callable[[Array], Array],
    measure: str = "spearman",
    *,
    least: int = 1,
    n_halvings: int = 10,
    seed: int = 0,
) -> tuple[float, float] | None:
    """The agreement that a perfect model could reach with the RDM of responses that hold trial noise; twice the same number.

    The repeats of each image are halved at random. ρ is the mean agreement of the RDMs of both halves; Spearman and Brown's
    2ρ / (1 + ρ) is that of two whole sets of repeats, and the root of it the agreement of one with the RDM without noise. ``rdm``
    makes an RDM of repeats (n_images, n_sites, n_repeats), NaN where there were fewer; ``least`` repeats are needed in each half.
    None where an image has fewer than that.
    """
    there = np.isfinite(repeats).all(axis=1)
    if there.sum(axis=1).min() < 2 * least:
        return None
    found, rng = [], np.random.default_rng(seed)
    for _ in range(n_halvings):
        order = np.argsort(np.where(there, rng.random(there.shape), 2.0), axis=1)  # those that miss come last
        shuffled = np.take_along_axis(repeats, order[:, None], axis=2)
        found.append(similarity(rdm(shuffled[:, :, ::2]), rdm(shuffled[:, :, 1::2]), measure))
    rho = max(0.0, float(np.mean(found)))
    ceiling = math.sqrt(2 * rho / (1 + rho))
    return ceiling, ceiling


def _transformed(rdm: Array, measure: str) -> Array:
    """The matrix whose cosine with another is the measure; a permutation of the images permutes its rows and columns."""
    n = len(rdm)
    if measure == "cosine":
        return rdm
    if measure == "spearman":
        off = ~np.eye(n, dtype=bool)
        ranks = _ranked(rdm)
        return np.where(off, ranks - ranks[off].mean(), 0.0)
    alpha = _image_terms(rdm.sum(axis=0)[None], np.ones((1, n)), measure)[0]
    residuals: Array = rdm - alpha
    residuals -= alpha[:, None]
    if measure == "cka":
        np.fill_diagonal(residuals, 0.0)
    return residuals


def _ranked(rdm: Array) -> Array:
    """Ranks of the pairs, means where tied; diagonal 0."""
    ranks: Array = squareform(stats.rankdata(squareform(rdm, checks=False)))
    return ranks


def _resampled(models: Sequence[Array], target: Array, measure: str, weights: Array) -> Array:
    """(n_resamples, n_models) agreement under ``weights`` (n_resamples, n_images)."""
    if measure == "spearman":
        return np.array(list(_resampled_ranks(models, target, weights)))
    own = _inner(target, target, weights, measure)
    columns = [
        _ratio(_inner(model, target, weights, measure), _inner(model, model, weights, measure), own) for model in models
    ]
    return np.column_stack(columns)


def _inner(first: Array, second: Array, weights: Array, measure: str) -> Array:
    """(n_resamples,) inner products of two transformed RDMs, over pairs of different images.

    The transform is a projection, so it is enough to transform the second.
    """
    pairs: Array = np.sum((weights @ (first * second)) * weights, axis=1)
    if measure == "cosine":
        return pairs
    alpha = _image_terms(weights @ second, weights, measure)
    pairs -= 2 * np.sum(weights * (weights @ first) * alpha, axis=1)
    return pairs


def _image_terms(sums: Array, weights: Array, measure: str) -> Array:
    """α of the weighted least squares fit D_ij ~ α_i + α_j over pairs of different images; ``sums`` are D w.

    ``whitened`` also fits the diagonal, 0 ~ 2 α_i, at half the weight of a pair. The normal equations,
    α_i (Σw - 2 w_i + 2) + Σ_j w_j α_j = (D w)_i (without the + 2 for ``cka``), are solved through s = Σ w α.
    """
    scale = weights.sum(axis=1, keepdims=True) - 2 * weights + (2 if measure == "whitened" else 0)
    share = weights / scale
    s = np.sum(share * sums, axis=1, keepdims=True) / (1 + share.sum(axis=1, keepdims=True))
    alpha: Array = (sums - s) / scale
    return alpha


def _resampled_ranks(models: Sequence[Array], target: Array, weights: Array | None = None) -> Iterator[list[float]]:
    """Spearman's correlation of each model with the target in each resample; without ``weights`` of all images once.

    Ranks are doubled and less their mean, N for N pairs, so that they are integers. Tied values have the mean of their ranks, which
    makes the sum of squares (N³ - Σ t³) / 3 for t pairs of each value (Kendall 1970).
    """
    values = squareform(target, checks=False)
    order = np.argsort(values)  # the pairs stay in this order: the target's ranks are read again and again
    own, others = _Sorted(values[order], slice(None)), [_Sorted(squareform(rdm, checks=False)[order]) for rdm in models]
    for pairs in _counts(order, len(target), weights):
        total = float(pairs.sum())
        ranks, squares = own.ranks(pairs)
        found = []
        for one in others:
            counts = pairs[one.order]
            theirs, size = one.ranks(counts)
            product = np.dot(np.multiply(ranks[one.order] - total, counts), theirs - total)
            found.append(float(_ratio(product, (total**3 - squares) / 3, (total**3 - size) / 3)))
        yield found


def _counts(order: Array, n: int, weights: Array | None) -> Iterator[Array]:
    """How often each pair of n images, in ``order``, stands in each resample."""
    if weights is None:
        yield np.ones(len(order), dtype=np.int32)
        return
    rows, columns = (of_pair[order] for of_pair in np.triu_indices(n, 1))
    for w in weights.astype(np.int32):
        yield w[rows] * w[columns]


class _Sorted:
    """Values in order, with where ties begin (None: there are none), so that their ranks under weights need no sorting."""

    def __init__(self, values: Array, order: Any = None) -> None:
        self.order = np.argsort(values) if order is None else order
        ordered = values[self.order]
        self.count, new = len(values), ordered[1:] != ordered[:-1]
        self.starts = None if new.all() else np.flatnonzero(np.r_[True, new])

    def ranks(self, counts: Array) -> tuple[Array, float]:
        """Twice the mean ranks, in order, of values that stand there ``counts`` times; Σ t³ of the ``counts`` t of each value."""
        if self.starts is not None:
            counts = np.add.reduceat(counts, self.starts)
        ranks, sizes = np.cumsum(counts, dtype=np.int64), counts.astype(float)
        ranks += ranks - counts
        if self.starts is not None:
            ranks = np.repeat(ranks, np.diff(self.starts, append=self.count))
        return ranks, float(np.dot(sizes * sizes, sizes))


def _ratio(product: Any, first: Any, second: Any, size: Any = 0.0, other: Any = 0.0) -> Array:
    """The cosine from the inner product and both squared lengths; NaN where the transform left nothing of one's ``size``."""
    fine = (first > 1e-12 * size) & (second > 1e-12 * other)
    ratio: Array = np.where(fine, product / np.sqrt(np.where(fine, first * second, 1.0)), np.nan)
    return ratio


def _check_rdms(*rdms: Array, measure: str, least: int = 4) -> list[Array]:
    """float64 RDMs of the same images; a ValueError where they are none, or the measure is not known."""
    if measure not in MEASURES:
        raise unknown("measure", measure, MEASURES)
    arrays = [np.asarray(rdm, dtype=np.float64) for rdm in rdms]
    for rdm in arrays:
        if rdm.ndim != 2 or rdm.shape[0] != rdm.shape[1]:
            raise ValueError(f"a dissimilarity matrix has shape {rdm.shape}; expected (n_images, n_images)")
        if rdm.shape != arrays[0].shape:
            raise ValueError(f"dissimilarity matrices of {len(arrays[0])} and {len(rdm)} images; expected the same images")
        norm = float(np.linalg.norm(rdm))
        if not np.isfinite(norm):
            raise ValueError("a dissimilarity matrix holds NaN or infinity; leave these images out")
        exact = asymmetry(rdm) <= 1e-12 * norm  # to rounding; what is not is looked at pair by pair
        if rdm.diagonal().any() or not (exact or np.allclose(rdm, rdm.T, rtol=1e-5, atol=1e-8 * np.abs(rdm).max())):
            raise ValueError(
                "a dissimilarity matrix must be symmetric with a diagonal of 0; ``dissimilarities`` makes one of K"
            )
    if len(arrays[0]) < least:
        raise ValueError(f"{len(arrays[0])} images are too few; at least {least} are needed")
    return arrays


def _check_resamples(n_resamples: int) -> None:
    if n_resamples < 2:
        raise ValueError(f"n_resamples must be at least 2, got {n_resamples}")
