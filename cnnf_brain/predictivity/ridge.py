"""Ridge regression from K, the penalty of each site chosen within the training images of each split.

Centre K over its n rows, K = U diag(λ) Uᵀ. Ridge with an intercept and penalty a fits the responses y by H y, and

    I - H = U diag(a / (λ + a)) Uᵀ    over all eigenvectors but the constant one.

Fit all rows but those in L instead. A fit to y with y_L replaced by the predictions ŷ_L is the same fit, so

    y_L - ŷ_L = (I - H)_LL⁻¹ ((I - H) y)_L

holds exactly, the intercept included, and y_L itself has no influence on ŷ_L. A split leaves out its test rows; an inner
fold of it leaves out its own rows as well. So one decomposition of K serves all splits, all inner folds and all penalties.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg

from cnnf_brain.predictivity.crossval import inner_splits
from cnnf_brain.predictivity.pls import (
    EPS,
    centred_gram,
    check_gram,
    check_responses,
    check_splits,
    means_and_live,
    training_rows,
)
from cnnf_brain.types import Array, Predictions, Split

GRID = np.logspace(-5, 4, 19)  # penalties over the mean eigenvalue of the centred K: two to each power of ten


class GridEndWarning(UserWarning):
    """The smallest or the largest penalty was chosen: a wider grid might predict better."""


def ridge_predict(
    gram: Array, responses: Array, splits: Sequence[Split], penalties: Sequence[float] | Array | None = None
) -> tuple[Predictions, Array]:
    """Fit ridge on the training rows of every split and predict its test rows, each site with a penalty of its own.

    Within the training images of a split the inner folds are the test sets of the other splits
    (``crossval.inner_splits``; with ten folds: the nine training folds). The penalty with the least squared error, averaged
    over the images of a fold and then over folds, is taken: the rule of scikit-learn's ``GridSearchCV`` with
    ``neg_mean_squared_error`` and of himalaya's ``KernelRidgeCV``. The split is then fitted with it on all its training
    images.

    Parameters
    ----------
    gram : (n_images, n_images) array
        K = X Xᵀ of the features X; any constant may have been taken off each feature.
    responses : (n_images, n_sites) array
    splits : sequence of Split
        Training and test rows must not overlap; rows in neither are not used.
    penalties : sequence of float, optional
        To choose from, above 0, in the units of K (scikit-learn's ``alpha``). A single one is taken as it is. Default:
        ``GRID``, 1e-5 to 1e4, times the mean eigenvalue of K centred over the rows of all splits.

    Returns
    -------
    Predictions
        With one entry. A site that is constant over the training rows stays at that constant.
    (n_splits, n_sites) array
        The penalties; NaN where nothing was to be fitted (constant responses or features).

    Warns
    -----
    GridEndWarning
        Where the smallest or the largest of several penalties won.

    Raises
    ------
    ValueError
        Shapes that do not match, NaN, a Gram that is not symmetric, faulty splits, penalties that are not above 0, or a
        single split with several penalties.
    """
    gram = check_gram(gram)
    responses = check_responses(responses, len(gram))
    check_splits(splits, len(responses), 1)
    grid = None if penalties is None else _check_penalties(penalties)
    used = np.unique(np.concatenate([rows for split in splits for rows in (split.train, split.test)]))
    smoother = _Smoother.of(gram[np.ix_(used, used)], responses[used])
    if grid is None:
        grid = GRID * (smoother.mean_eigenvalue or 1.0)
    jobs = _jobs(splits, used, inner=len(grid) > 1)
    predicted = [np.empty((len(split.test), responses.shape[1])) for split in splits]
    least = np.full((len(splits), responses.shape[1]), np.inf)
    best = np.zeros(least.shape, dtype=int)
    for number, penalty in enumerate(grid):
        held_out, errors = _fit(smoother, penalty, jobs, least.shape)
        better = errors < least
        least[better], best[better] = errors[better], number
        for of_split, new, where in zip(predicted, held_out, better, strict=True):
            np.copyto(of_split, new, where=where)
    means, live = means_and_live(responses, training_rows(splits, len(responses)))
    live = (live > 0) & (smoother.mean_eigenvalue > 0)
    _warn_at_ends(best[live], len(grid))
    parts = zip(live, predicted, means, strict=True)
    values = tuple(np.where(fitted, found + smoother.means, mean)[None] for fitted, found, mean in parts)
    return Predictions(tuple(splits), values, (1,) * len(splits)), np.where(live, grid[best], np.nan)


def _fit(smoother: _Smoother, penalty: float, jobs: Sequence[_Job], shape: tuple[int, ...]) -> tuple[list[Array], Array]:
    """Centred predictions of each split's test rows with one penalty, and the error (n_splits, n_sites) of its inner folds."""
    matrix, residuals = smoother.residual_maker(penalty)
    predicted, errors = [np.empty(0)] * shape[0], np.zeros(shape)
    for job in jobs:
        held_out = _held_out(matrix, residuals, job.rows)
        for split, rows in job.tests:
            predicted[split] = smoother.responses[job.rows[rows]] - held_out[rows]
        for split, rows, weight in job.folds:
            errors[split] += weight * np.mean(held_out[rows] ** 2, axis=0)
    return predicted, errors


@dataclass(frozen=True)
class _Smoother:
    """U, λ and Uᵀy of the centred K, without the constant eigenvector; ``responses`` are centred by ``means``."""

    vectors: Array
    values: Array
    responses: Array
    means: Array
    projected: Array
    mean_eigenvalue: float  # 0 where all features are constant

    @classmethod
    def of(cls, gram: Array, responses: Array) -> _Smoother:
        n, norm = len(gram), float(np.linalg.norm(gram))
        gram = centred_gram(gram)
        total = float(np.trace(gram))
        if total <= n * EPS * norm:
            gram[:], total = 0.0, 0.0
        gram += 2 * (total or 1.0) / n  # makes the constant vector the last one, twice the sum of all others and alone
        values, vectors = scipy.linalg.eigh(gram, overwrite_a=True, check_finite=False, driver="evd")
        vectors, values = vectors[:, :-1], np.maximum(values[:-1], 0.0)
        means = responses.mean(axis=0)
        centred = responses - means
        return cls(vectors, values, centred, means, vectors.T @ centred, total / n)

    def residual_maker(self, penalty: float) -> tuple[Array, Array]:
        """I - H, of which the lower triangle alone is filled, and (I - H) y."""
        weights = penalty / (self.values + penalty)
        half = np.asfortranarray(self.vectors * np.sqrt(weights))
        return scipy.linalg.blas.dsyrk(1.0, half, lower=1), self.vectors @ (weights[:, None] * self.projected)


@dataclass
class _Job:
    """Rows that are left out together, and what is read of their residuals, by positions in ``rows``."""

    rows: Array
    tests: list[tuple[int, Array]] = field(default_factory=list)  # split, its test images
    folds: list[tuple[int, Array, float]] = field(default_factory=list)  # split, images of an inner fold, the fold's weight


def _jobs(splits: Sequence[Split], used: Array, *, inner: bool) -> list[_Job]:
    """What has to be left out of the rows ``used``, each set of rows once: folds A and B serve A within B and B within A."""
    jobs: dict[bytes, _Job] = {}

    def job(split: Split) -> tuple[_Job, Array]:
        rows = np.flatnonzero(~np.isin(used, split.train))
        mine = jobs.setdefault(rows.tobytes(), _Job(rows))
        return mine, np.searchsorted(used[rows], split.test)

    for number, split in enumerate(splits):
        mine, rows = job(split)
        mine.tests.append((number, rows))
        folds = inner_splits(splits, number) if inner else []
        for fold in folds:
            mine, rows = job(fold)
            mine.folds.append((number, rows, 1 / len(folds)))
    return list(jobs.values())


def _held_out(matrix: Array, residuals: Array, rows: Array) -> Array:
    """Residuals on ``rows`` (in ascending order) of the fit to all others."""
    factor = scipy.linalg.cho_factor(matrix[np.ix_(rows, rows)], lower=True, overwrite_a=True, check_finite=False)
    solved: Array = scipy.linalg.cho_solve(factor, residuals[rows], overwrite_b=True, check_finite=False)
    return solved


def _check_penalties(penalties: Sequence[float] | Array) -> Array:
    grid = np.unique(np.asarray(penalties, dtype=np.float64))
    if not len(grid) or not (np.isfinite(grid).all() and grid[0] > 0):
        raise ValueError(f"penalties are {list(penalties)}; expected one or more finite numbers above 0")
    return grid


def _warn_at_ends(best: Array, n: int) -> None:
    """``best``: the number of the chosen penalty in each fit."""
    for end, name, reason in (
        (0, "smallest", "the features predict these sites almost without error, or the grid begins too high"),
        (n - 1, "largest", "the features tell little of these sites, or the grid ends too low"),
    ):
        count = int(np.sum(best == end))
        if n > 1 and count:
            warnings.warn(
                f"the {name} of {n} penalties was chosen in {count} of {len(best)} fits (splits times sites): {reason}",
                GridEndWarning,
                stacklevel=3,
            )
