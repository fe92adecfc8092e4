"""Pearson's r of held-out predictions, ceilings from repeats, and the numbers made of them.

Three numbers go by the name of a score; here each has its own:

- median r: what the CNN-F paper reports (``median_r``): mean over splits for each site, then the median over sites;
- "r2/ceiling": Brain-Score since January 2026 (the ceiling is a reliability, which bounds r², so it is not squared);
- "(r/ceiling)2": Brain-Score before.

Brain-Score's order is another, and gives slightly different numbers: median over sites in each split, then the mean over
splits, divided by one ceiling of the whole region (``brainscore_r``, ``brainscore_ceiled``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from cnnf_brain.checks import is_constant, unknown
from cnnf_brain.types import Array, Predictions, Scores

SMALL_FOLD = 20  # test images; below, r over the pooled held-out predictions stands beside
FORMULAS = ("r2/ceiling", "(r/ceiling)2")


def pearson(a: Array, b: Array) -> Array:
    """Pearson's r along the first axis: (n, ...) and (n, ...) -> (...), from -1 to 1.

    NaN where a or b is constant (``checks.is_constant``), and for n < 3: two points always lie on a line.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"arrays of shapes {a.shape} and {b.shape} cannot be correlated; they must be equal")
    if len(a) < 3:
        return np.full(a.shape[1:], np.nan)
    a, b = standardised(a), standardised(b)
    r: Array = np.clip(np.sum(a * b, axis=0), -1.0, 1.0)
    return r


def standardised(a: Array) -> Array:
    """Columns of mean 0 and norm 1; NaN where a column is constant (``checks.is_constant``) or holds NaN."""
    deviations = a - a.mean(axis=0)
    norms = np.linalg.norm(deviations, axis=0)
    columns: Array = deviations / np.where(is_constant(a) | (norms == 0), np.nan, norms)  # 0: the squares underflow
    return columns


def score_predictions(
    predictions: Predictions,
    responses: Array,
    *,
    n_components: int | None = None,
    repeats: Array | None = None,
    seed: int = 0,
) -> Scores:
    """Correlate held-out predictions with ``responses`` (n_images, n_sites).

    ``n_components``: which of the predictions; the largest number by default. ``repeats`` (n_images, n_sites, n_repeats), single
    presentations, NaN where there were fewer, give the ceiling (``split_half_ceiling`` with ``seed``). A ValueError: shapes that do
    not match, or a number of components that was not fitted.

    ``pooled``, where any split has fewer than 20 test images, is r between the test predictions of all splits, one after the
    other as they are (each with the mean of its own training images), and the responses to the same images; an image that is
    tested in several splits counts in each. Where nothing can be predicted the pooled r is a little below 0, as the mean of a
    training set is high where its test set is low.
    """
    responses = np.asarray(responses, dtype=np.float64)
    fitted, _, n_sites = predictions.values[0].shape
    if n_components is None:
        n_components = fitted
    if not 1 <= n_components <= fitted:
        raise ValueError(f"predictions hold 1 to {fitted} components, not {n_components}")
    if responses.ndim != 2 or responses.shape[1] != n_sites:
        raise ValueError(f"responses have shape {responses.shape}; expected (n_images, {n_sites})")
    predicted = [values[n_components - 1] for values in predictions.values]
    observed = [responses[split.test] for split in predictions.splits]
    r = np.stack([pearson(p, o) for p, o in zip(predicted, observed, strict=True)])
    small = any(len(split.test) < SMALL_FOLD for split in predictions.splits)
    pooled = pearson(np.concatenate(predicted), np.concatenate(observed)) if small else None
    if repeats is not None and repeats.shape[:2] != responses.shape:
        raise ValueError(f"repeats have shape {repeats.shape}; expected {(*responses.shape, 'n_repeats')}")
    return Scores(r, pooled, None if repeats is None else split_half_ceiling(repeats, seed=seed))


def split_half_ceiling(repeats: Array, n_halves: int = 20, seed: int = 0) -> Array:
    """Reliability of each site's mean response, (n_sites,): split-half correlation over images, Spearman-Brown corrected.

    The repeats of each image are split at random into two halves (the second has one more where their number is odd),
    the half means are correlated over images, r becomes 2r / (1 + r), and the mean is taken over ``n_halves`` splits.
    What is there of an image's repeats is split; an image with a single repeat takes no part. Presentations are
    shared between sites, so those with the same missing ones are split alike.

    ``repeats``: (n_images, n_sites, n_repeats), NaN where an image had fewer. The result is at most 1, and NaN where fewer than
    3 images have two repeats or a half is constant.

    Brain-Score splits the repetition numbers once for all images, ten times, and takes the median over sites before
    the mean over splits (brainscore_vision/metrics/internal_consistency/ceiling.py).
    """
    repeats = np.asarray(repeats, dtype=np.float64)
    if repeats.ndim != 3:
        raise ValueError(f"repeats have shape {repeats.shape}; expected (n_images, n_sites, n_repeats)")
    valid = np.isfinite(repeats)
    filled = np.where(valid, repeats, 0.0)
    if (valid == valid[:, :1]).all():
        valid = valid[:, :1]  # all sites alike: the splitting below is done once for all
    counts = valid.sum(axis=2, keepdims=True)
    usable = np.broadcast_to(counts[:, :, 0] >= 2, repeats.shape[:2])
    rng = np.random.default_rng(seed)
    corrected = np.empty((n_halves, repeats.shape[1]))
    for number in range(n_halves):
        keys = np.where(valid, rng.random((len(repeats), 1, repeats.shape[2])), 2.0)  # missing ones last
        ranks = keys.argsort(axis=2).argsort(axis=2)
        halves = (ranks < counts // 2, (ranks >= counts // 2) & valid)
        r = _pearson_where(usable, *(_masked_mean(filled, half) for half in halves))
        with np.errstate(divide="ignore"):
            corrected[number] = 2 * r / (1 + r)
    return _nan_mean(corrected)


def _masked_mean(values: Array, mask: Array) -> Array:
    weights = np.broadcast_to(mask / np.maximum(mask.sum(axis=2, keepdims=True), 1), values.shape)
    means: Array = np.einsum("sqr,sqr->sq", values, weights)
    return means


def _pearson_where(usable: Array, a: Array, b: Array) -> Array:
    """``pearson`` of each column over its usable rows; NaN where these are fewer than 3."""
    r = np.full(usable.shape[1], np.nan)
    patterns, which = np.unique(usable, axis=1, return_inverse=True)
    for number, rows in enumerate(patterns.T):
        columns = np.flatnonzero(which.ravel() == number)
        if rows.sum() >= 3:
            r[columns] = pearson(a[np.ix_(rows, columns)], b[np.ix_(rows, columns)])
    return r


def ceiled(r: ArrayLike, ceiling: ArrayLike, formula: str = "r2/ceiling") -> Array:
    """A ceiled score of sites or of a region, elementwise; NaN where the ceiling, a reliability, is not above 0.

    ``formula``: r²/ceiling is Brain-Score's since January 2026, (r/ceiling)² was it before. The sign of r is lost in both.
    """
    if formula not in FORMULAS:
        raise unknown("ceiled score", formula, FORMULAS)
    r, ceiling = np.asarray(r, dtype=np.float64), np.asarray(ceiling, dtype=np.float64)
    ceiling = np.where(ceiling > 0, ceiling, np.nan)
    score: Array = r**2 / ceiling if formula == "r2/ceiling" else (r / ceiling) ** 2
    return score


def site_r(scores: Scores) -> Array:
    """(n_sites,) mean over splits of each site's r; splits where it is NaN are left out, NaN where all are."""
    return _nan_mean(scores.r)


def median_r(scores: Scores) -> float:
    """Median over sites of ``site_r``; NaN sites are left out."""
    return _nan_median(site_r(scores))


def brainscore_r(scores: Scores) -> float:
    """Median over sites in each split, then the mean over splits: Brain-Score's raw score."""
    return float(_nan_mean(np.array([_nan_median(split) for split in scores.r])))


def brainscore_ceiled(scores: Scores, formula: str = "r2/ceiling") -> float:
    """``brainscore_r`` and the median ceiling of the region, combined once: Brain-Score's order."""
    if scores.ceiling is None:
        raise ValueError("these scores have no ceiling: the recordings hold no repeats; report r alone")
    return float(ceiled(brainscore_r(scores), _nan_median(scores.ceiling), formula))


def _nan_mean(values: Array) -> Array:
    """Mean over the first axis without NaN; NaN (and no warning) where all are."""
    there = np.isfinite(values)
    total = np.where(there, values, 0.0).sum(axis=0)
    return np.where(there.any(axis=0), total / np.maximum(there.sum(axis=0), 1), np.nan)


def _nan_median(values: Array) -> float:
    there = values[np.isfinite(values)]
    return float(np.median(there)) if len(there) else float("nan")
