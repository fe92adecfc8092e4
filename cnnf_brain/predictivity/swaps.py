"""The swap test: a randomisation test of a difference in predictivity, with images as its units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cnnf_brain.predictivity.scores import standardised
from cnnf_brain.types import Split, TestResult

SWAP = "swap over images"
CHUNK = 512  # resamples at a time, which bounds the memory


def swap_over_images(
    model: Sequence[np.ndarray],
    baseline: Sequence[np.ndarray],
    responses: np.ndarray,
    splits: Sequence[Split],
    *,
    for_training: bool = True,
    widen_by: float | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> TestResult:
    """Randomisation test of the median over sites of the per-site difference in r, with images as units.

    For each image a coin decides whether the two networks' held-out predictions of it are exchanged, for all sites
    and all splits that test it (sites share an image's noise); then r is computed anew for each site and fold.

    - Predictions are standardised within fold and site first. r does not care for their scale, but a mixture of
      predictions of different scales would; after standardising, the differences e of the swapped networks vary
      to first order as r itself does over test images (the sum of its squared influence differences).
    - e knows test images alone, not that other training images would have given other fits. ``for_training``
      multiplies it by sqrt(1 + n_eff / n_train), after Nadeau & Bengio (2003): n_eff = 1 / Σ w², where w is the
      weight of an image in the mean over all splits' test images (ten true folds: n_eff = n).
    - Swapping makes all sites alike, but sites need not share one difference d for their median to be zero, and the
      median of unlike sites varies more. So e is laid over the sites' own differences, shrunk to the spread that
      chance does not explain: λ (d - median(d)), λ² = 1 - var(e) / var(d), at least 0 (variances over sites).
    - p = (1 + #{|median of a resample| >= |median(d)|}) / (1 + n_resamples), medians over sites.

    The second and third point are approximations: docs/statistics.md has the rates measured with them. Without them
    (``for_training=False``) it is the plain randomisation test of these fitted predictors, which rejects too often as
    a test of the networks.

    Parameters
    ----------
    model, baseline : sequences of (n_test of split s, n_neuroids) arrays
        Held-out predictions, one array for each split. A column that is NaN or constant leaves out that site there.
    responses : (n_stimuli, n_neuroids) array
    splits : sequence of Split
    widen_by : float, optional
        In place of sqrt(1 + n_eff / n_train), where these are not to be had from ``splits`` (``pooling``).

    Returns
    -------
    TestResult
        ``statistic`` is the median difference in r, ``n`` the number of images tested, ``interval`` the statistic
        plus and minus the 95% quantile of a resample's statistic (so it excludes 0 where p < 0.05, but for ties).

    Raises
    ------
    ValueError
        Shapes that do not match, no site defined in both networks, no resamples.
    """
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")
    folds = standardised_folds(model, baseline, responses, splits)
    differences = np.array([fold.r_model - fold.r_baseline for fold in folds])
    sites = np.isfinite(differences).any(axis=0)
    if not sites.any():
        raise ValueError("no site has predictions and responses that vary within a fold for both networks")
    d = np.nanmean(differences[:, sites], axis=0)
    counts = np.isfinite(differences).sum(axis=0)[sites]  # folds of each site
    rng = np.random.default_rng(seed)
    e = np.empty((n_resamples, len(d)))
    for start in range(0, n_resamples, CHUNK):
        some = e[start : start + CHUNK]
        swapped = rng.integers(0, 2, (len(some), len(responses))).astype(float)
        some[:] = np.sum([fold.difference(swapped)[:, sites] for fold in folds], axis=0) / counts
    if for_training:
        factor = widening(splits, len(responses)) if widen_by is None else widen_by
        e = factor * e + _between_sites(d, e)
    deviations = np.median(e, axis=1)
    observed = float(np.median(d))
    beyond = np.sum(np.abs(deviations) >= abs(observed) - 1e-12)  # a tie by rounding counts against the difference
    half = float(np.quantile(np.abs(deviations), 0.95))
    n_images = len(np.unique(np.concatenate([split.test for split in splits])))
    p = float(1 + beyond) / (1 + n_resamples)
    return TestResult(SWAP, observed, p, n_images, interval=(observed - half, observed + half))


@dataclass(frozen=True)
class Fold:
    """One fold's predictions and responses, each column of mean 0 and norm 1 (zero where it is left out)."""

    test: np.ndarray
    model: np.ndarray
    baseline: np.ndarray
    responses: np.ndarray
    r_model: np.ndarray  # (n_neuroids,), NaN where left out
    r_baseline: np.ndarray

    def difference(self, swapped: np.ndarray) -> np.ndarray:
        """(n_resamples, n_neuroids) r of model minus baseline, with images exchanged where ``swapped`` is 1.

        The sums of p, p² and p y that r needs are linear in ``swapped``, so each is one matrix product for all.
        """
        swapped = swapped[:, self.test]
        change = self.baseline - self.model
        total = swapped @ change  # sums over images; they start from 0, the squares from 1
        squares = swapped @ (self.baseline**2 - self.model**2)
        products = swapped @ (change * self.responses)
        mean_part = total**2 / len(self.test)
        r = np.nan_to_num(self.r_model) + products, np.nan_to_num(self.r_baseline) - products
        return _over_root(r[0], 1 + squares - mean_part) - _over_root(r[1], 1 - squares - mean_part)


def _over_root(covariance: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """r, and 0 where a mixture of predictions happens to be constant."""
    fine = variance > 1e-12
    return np.where(fine, covariance / np.sqrt(np.where(fine, variance, 1.0)), 0.0)


def standardised_folds(
    model: Sequence[np.ndarray], baseline: Sequence[np.ndarray], responses: np.ndarray, splits: Sequence[Split]
) -> list[Fold]:
    """Both networks' held-out predictions and the responses, fold by fold; ValueError where shapes do not match."""
    responses = np.asarray(responses, dtype=float)
    if responses.ndim != 2 or any(split.test.max() >= len(responses) for split in splits):
        raise ValueError(
            f"responses have shape {responses.shape}; expected (n_stimuli, n_neuroids) with a row for every test image"
        )
    if not len(model) == len(baseline) == len(splits) > 0:
        raise ValueError(
            f"{len(model)} and {len(baseline)} arrays of predictions for {len(splits)} splits; expected one per split"
        )
    folds = []
    for number, (a, b, split) in enumerate(zip(model, baseline, splits, strict=True)):
        expected = (len(split.test), responses.shape[1])
        if np.shape(a) != expected or np.shape(b) != expected:
            raise ValueError(
                f"split {number}: predictions have shapes {np.shape(a)} and {np.shape(b)}, expected (n_test, "
                f"n_neuroids) = {expected}"
            )
        z_a, z_b, y = (standardised(np.asarray(p, dtype=float)) for p in (a, b, responses[split.test]))
        r_a, r_b = (z_a * y).sum(axis=0), (z_b * y).sum(axis=0)
        out = np.isnan(r_a + r_b)
        z_a, z_b, y = (np.where(out, 0.0, z) for z in (z_a, z_b, y))
        folds.append(Fold(split.test, z_a, z_b, y, np.where(out, np.nan, r_a), np.where(out, np.nan, r_b)))
    return folds


def _between_sites(d: np.ndarray, e: np.ndarray) -> np.ndarray:
    """(n_neuroids,) the sites' differences around their median, shrunk as ``swap_over_images`` says."""
    spread = d.var()
    kept = np.sqrt(max(0.0, 1 - e.var(axis=1).mean() / spread)) if spread > 0 else 0.0
    return kept * (d - np.median(d))


def widening(splits: Sequence[Split], n: int) -> float:
    """sqrt(1 + n_eff / n_train), see ``swap_over_images``."""
    weights = np.zeros(n)
    for split in splits:
        weights[split.test] += 1 / len(split.test) / len(splits)
    n_train = np.mean([len(split.train) for split in splits])
    return float(np.sqrt(1 + 1 / np.sum(weights**2) / n_train))
