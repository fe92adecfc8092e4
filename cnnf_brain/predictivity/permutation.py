"""The paired permutation test of a difference in predictivity, with images as its units."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnf_brain.predictivity.scores import standardised
from cnnf_brain.types import Array, Split, TestResult

PERMUTATION = "permutation over images"
CHUNK = 512  # resamples at a time, which bounds the memory


@dataclass(frozen=True)
class HeldOut:
    """Held-out predictions of two networks for the sites of one source.

    ``model`` and ``baseline`` hold an array (n_test of split s, n_sites) for each of ``splits``; a column that is NaN or
    constant leaves out that site there. ``responses`` is (n_images, n_sites).
    """

    model: Sequence[Array]
    baseline: Sequence[Array]
    responses: Array
    splits: Sequence[Split]


def permutation_over_images(
    sources: Sequence[HeldOut],
    *,
    images: Sequence[Any] | None = None,
    for_training: bool = True,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> TestResult:
    """Paired permutation test of the median over sites of the per-site difference in r, with images as units.

    For each image a coin decides whether the two networks' held-out predictions of it are exchanged, for all sites of its
    source and all splits that test it (sites share an image's noise). Then r is computed anew for each site and fold.

    - Predictions are standardised within fold and site first. r does not depend on their scale, but a mixture of
      predictions of different scales would. After standardising, the differences e of the permuted networks vary
      to first order as r itself does over test images (the sum of its squared influence differences).
    - e knows test images alone, not that other training images would have given other fits. ``for_training``
      multiplies it by sqrt(1 + n_eff / n_train), after Nadeau & Bengio (2003): n_eff = 1 / Σ w², where w is the
      weight of an image in the mean over all splits' test images (ten true folds: n_eff = n). Of several sources the
      largest factor is taken: pooling brings no images that would have trained another source's fits.
    - Permuting makes all sites alike, but sites need not share one difference d for their median to be zero, and the
      median of unlike sites varies more. So e is laid over the sites' own differences, shrunk to the spread that
      chance does not explain: λ (d - median(d)), λ² = 1 - var(e) / var(d), at least 0 (variances over sites).
    - p = (1 + #{|median of a resample| >= |median(d)|}) / (1 + n_resamples), medians over sites.

    The second and third point are approximations; docs/statistics.md has the rates measured with them. Without them
    (``for_training=False``) it is the plain permutation test of these fitted predictors, which rejects too often as
    a test of the networks.

    Sites of different ``sources`` are independent, and so are their images, but for those of one name (``resampled``). Of the
    result, ``statistic`` is the median difference in r, ``n`` the number of images tested, ``interval`` the statistic plus and
    minus the 95% quantile of a resample's statistic (so it excludes 0 where p < 0.05, but for ties). A ValueError: shapes that do
    not match, no site defined in both, no resamples.
    """
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")
    prepared = [_Source(source) for source in sources]
    d = np.concatenate([source.differences for source in prepared])
    names = range(len(prepared)) if images is None else images
    e = np.hstack(_exchanged(prepared, names, n_resamples, seed))
    if for_training:
        factor = max(widening(source.splits, len(source.responses)) for source in sources)
        e = factor * e + _between_sites(d, e)
    return _result(sources, d, e, labels=_labels(names, prepared))


def _result(
    sources: Sequence[HeldOut], d: Array, e: Array, *, labels: Sequence[Sequence[Any]], one_sided: bool = False
) -> TestResult:
    """The test of the sites' differences d, from resamples e (n_resamples, n_sites)."""
    deviations = np.median(e, axis=1)
    observed = float(np.median(d))
    sizes, size = (deviations, observed) if one_sided else (np.abs(deviations), abs(observed))
    beyond = np.sum(sizes >= size - 1e-12)  # a tie by rounding counts against the difference
    half = float(np.quantile(np.abs(deviations), 0.95))
    p = float(1 + beyond) / (1 + len(e))
    tested = {own[row] for source, own in zip(sources, labels, strict=True) for split in source.splits for row in split.test}
    return TestResult(PERMUTATION, observed, p, len(tested), interval=(observed - half, observed + half))


def permutation_with_intervals(
    source: HeldOut, *, n_resamples: int = 10_000, seed: int = 0
) -> tuple[TestResult, Array, Array]:
    """``permutation_over_images`` of one source, one-sided (whether the model is better), and, from the same resamples, a 95%
    interval of every site's own difference in r.

    The interval, low and high, each (n_sites,), is the site's difference plus and minus the 95% quantile of its resamples, widened
    for the training images. NaN where r is undefined in all splits. Each is of one site alone, whatever their number. A ValueError
    as there.
    """
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")
    prepared = _Source(source)
    d, (e,) = prepared.differences, _exchanged([prepared], [0], n_resamples, seed)
    wide = widening(source.splits, len(source.responses)) * e
    ends = np.full((2, len(prepared.sites)), np.nan)
    half = np.quantile(np.abs(wide), 0.95, axis=0)
    ends[:, prepared.sites] = d - half, d + half
    test = _result([source], d, wide + _between_sites(d, e), labels=_labels([0], [prepared]), one_sided=True)
    return test, ends[0], ends[1]


def resampled(sources: Sequence[HeldOut], images: Iterable[Any], n_resamples: int, seed: int) -> list[tuple[Array, Array]]:
    """Of each source the sites' differences d (n_sites,), and the permuted ones e (n_resamples, n_sites); see above.

    ``images`` names the images of each source, each of them (a tuple) or all at once: those of one name are the same images, which
    are exchanged alike. Sites that are defined in no fold are left out.
    """
    prepared = [_Source(source) for source in sources]
    e = _exchanged(prepared, images, n_resamples, seed)
    return [(source.differences, permuted) for source, permuted in zip(prepared, e, strict=True)]


def _exchanged(prepared: Sequence[_Source], images: Iterable[Any], n_resamples: int, seed: int) -> list[Array]:
    """Of each source the (n_resamples, n_sites) differences in r, of images that are exchanged at random (``resampled``)."""
    if not any(len(source.differences) for source in prepared):
        raise ValueError("no site has predictions and responses that vary within a fold for both networks")
    labels = _labels(images, prepared)
    known = {label: column for column, label in enumerate(dict.fromkeys(one for own in labels for one in own))}
    columns = [np.array([known[one] for one in own]) for own in labels]
    e = [np.empty((n_resamples, len(source.differences))) for source in prepared]
    rng = np.random.default_rng(seed)
    for start in range(0, n_resamples, CHUNK):
        size = min(CHUNK, n_resamples - start)
        coins = rng.integers(0, 2, (size, len(known))).astype(float)
        for own, source, permuted in zip(columns, prepared, e, strict=True):
            permuted[start : start + size] = source.permuted(coins[:, own])
    return e


def _labels(images: Iterable[Any], prepared: Sequence[_Source]) -> list[list[Any]]:
    """A label for every image of every source, which is the same for the same image."""
    return [
        list(name) if isinstance(name, tuple) else [(name, row) for row in range(source.n_images)]
        for name, source in zip(images, prepared, strict=True)
    ]


class _Source:
    """The folds of one source, over the sites that are defined in any of them."""

    def __init__(self, source: HeldOut) -> None:
        self.folds, self.n_images = standardised_folds(source), len(source.responses)
        differences = np.array([fold.r_model - fold.r_baseline for fold in self.folds])
        self.sites = np.isfinite(differences).any(axis=0)
        self.differences: Array = np.nanmean(differences[:, self.sites], axis=0)
        self.counts = np.isfinite(differences).sum(axis=0)[self.sites]  # folds of each site

    def permuted(self, exchanged: Array) -> Array:
        """(n_resamples, n_sites) mean over folds of the difference in r, with images exchanged where ``exchanged`` is 1."""
        return np.asarray(np.sum([fold.difference(exchanged)[:, self.sites] for fold in self.folds], axis=0) / self.counts)


@dataclass(frozen=True)
class Fold:
    """One fold's predictions and responses, each column of mean 0 and norm 1 (zero where it is left out)."""

    test: Array
    model: Array
    baseline: Array
    responses: Array
    r_model: Array  # (n_sites,), NaN where left out
    r_baseline: Array

    def difference(self, exchanged: Array) -> Array:
        """(n_resamples, n_sites) r of model minus baseline, with images exchanged where ``exchanged`` is 1.

        The sums of p, p² and p y that r needs are linear in ``exchanged``, so each is one matrix product for all.
        """
        exchanged = exchanged[:, self.test]
        change = self.baseline - self.model
        total = exchanged @ change  # sums over images; they start from 0, the squares from 1
        squares = exchanged @ (self.baseline**2 - self.model**2)
        products = exchanged @ (change * self.responses)
        mean_part = total**2 / len(self.test)
        r = np.nan_to_num(self.r_model) + products, np.nan_to_num(self.r_baseline) - products
        return _over_root(r[0], 1 + squares - mean_part) - _over_root(r[1], 1 - squares - mean_part)


def _over_root(covariance: Array, variance: Array) -> Array:
    """r, and 0 where a mixture of predictions happens to be constant."""
    fine = variance > 1e-12
    return np.where(fine, covariance / np.sqrt(np.where(fine, variance, 1.0)), 0.0)


def standardised_folds(source: HeldOut) -> list[Fold]:
    """Both networks' held-out predictions and the responses, fold by fold; ValueError where shapes do not match."""
    responses, splits = np.asarray(source.responses, dtype=float), source.splits
    if responses.ndim != 2 or any(split.test.max() >= len(responses) for split in splits):
        raise ValueError(
            f"responses have shape {responses.shape}; expected (n_images, n_sites) with a row for every test image"
        )
    if not len(source.model) == len(source.baseline) == len(splits) > 0:
        raise ValueError(
            f"{len(source.model)} and {len(source.baseline)} arrays of predictions for {len(splits)} splits; expected one "
            "per split"
        )
    folds = []
    for number, (a, b, split) in enumerate(zip(source.model, source.baseline, splits, strict=True)):
        expected = (len(split.test), responses.shape[1])
        if np.shape(a) != expected or np.shape(b) != expected:
            raise ValueError(
                f"split {number}: predictions have shapes {np.shape(a)} and {np.shape(b)}, expected (n_test, n_sites) = "
                f"{expected}"
            )
        z_a, z_b, y = (standardised(np.asarray(p, dtype=float)) for p in (a, b, responses[split.test]))
        r_a, r_b = (z_a * y).sum(axis=0), (z_b * y).sum(axis=0)
        out = np.isnan(r_a + r_b)
        z_a, z_b, y = (np.where(out, 0.0, z) for z in (z_a, z_b, y))
        folds.append(Fold(split.test, z_a, z_b, y, np.where(out, np.nan, r_a), np.where(out, np.nan, r_b)))
    return folds


def _between_sites(d: Array, e: Array) -> Array:
    """(n_sites,) the sites' differences around their median, shrunk as ``permutation_over_images`` says."""
    spread = d.var()
    kept = np.sqrt(max(0.0, 1 - e.var(axis=1).mean() / spread)) if spread > 0 else 0.0
    return np.asarray(kept * (d - np.median(d)))


def widening(splits: Sequence[Split], n: int) -> float:
    """sqrt(1 + n_eff / n_train) of a source of n images, see ``permutation_over_images``."""
    weights = np.zeros(n)
    for split in splits:
        weights[split.test] += 1 / len(split.test) / len(splits)
    n_train = np.mean([len(split.train) for split in splits])
    return float(np.sqrt(1 + 1 / np.sum(weights**2) / n_train))
