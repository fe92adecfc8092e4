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
from cnnf_brain.predictivity.kernel import (
    centred_gram,
    check_gram,
    eigen_of_features,
    eigen_of_gram,
    host,
    is_factor,
    like,
    mean_eigenvalue,
    namespace,
    of_rows,
    whole,
)
from cnnf_brain.predictivity.permutation import HeldOut, permutation_with_intervals
from cnnf_brain.predictivity.pls import check_responses, check_splits, means_and_live, training_rows
from cnnf_brain.predictivity.scores import score_predictions, site_r
from cnnf_brain.types import Array, Predictions, Split, TestResult

GRID = np.logspace(-5, 4, 19)  # penalties over the mean eigenvalue of the centred K: two to each power of ten
SHARES = (1.0, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9)  # of the first of two bands; of equal errors the first one wins


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
        K = X Xᵀ of the features X, X itself, or a tensor of either: see ``cross_predict``.
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
    predictions, chosen, _ = banded_ridge_predict([gram], responses, splits, penalties)
    return predictions, chosen


def banded_ridge_predict(
    grams: Sequence[Array],
    responses: Array,
    splits: Sequence[Split],
    penalties: Sequence[float] | Array | None = None,
    shares: Sequence[Sequence[float]] | Array | None = None,
) -> tuple[Predictions, Array, Array]:
    """Ridge on several feature spaces (bands) side by side, each site with its own penalty and its own weights of the bands.

    Ridge is fitted on K = Σ_b s_b (m / m_b) K_b: m_b is the mean eigenvalue of K_b centred over the rows of all splits, m the mean
    of these. So the share s_b is that of the band in the variance of all features, whatever its scale and number of features. A
    share of 0 leaves the band out. Shares and penalty are chosen together, as ``ridge_predict`` chooses the penalty.

    Parameters
    ----------
    grams : sequence of (n_images, n_images) arrays
        K or X of each band.
    responses, splits, penalties
        As of ``ridge_predict``; penalties in the units of the K above.
    shares : (n_choices, n_bands) array, optional
        To choose from, at least 0, the sum of each row 1. Default for two bands: ``SHARES`` of the first, the rest of the second.

    Returns
    -------
    Predictions, (n_splits, n_sites) array
        As of ``ridge_predict``.
    (n_splits, n_sites, n_bands) array
        The shares; NaN where nothing was to be fitted.

    Raises
    ------
    ValueError
        As ``ridge_predict``; shares of another form, or none for more than two bands.
    """
    bands = [check_gram(gram) for gram in grams]
    mixes = _check_shares(shares, bands)
    responses = check_responses(responses, len(bands[0]))
    check_splits(splits, len(responses), 1)
    grid = None if penalties is None else _check_penalties(penalties)
    n_penalties = len(GRID if grid is None else grid)
    used = np.unique(np.concatenate([rows for split in splits for rows in (split.train, split.test)]))
    bands = [of_rows(band, used) for band in bands]
    sizes = np.array([mean_eigenvalue(band) for band in bands])
    jobs = _jobs(splits, used, inner=n_penalties * len(mixes) > 1)
    best = _Best.of(splits, responses.shape[1])
    for row, mix in enumerate(mixes):
        factors = mix * np.divide(sizes.mean(), sizes, out=np.zeros(len(sizes)), where=sizes > 0)
        smoother = _Smoother.of(_mixed(factors, bands), responses[used])
        of_mix = GRID * (smoother.mean_eigenvalue or 1.0) if grid is None else grid
        for number, penalty in enumerate(of_mix):
            best.offer(*_fit(smoother, penalty, jobs, best.errors.shape), (penalty, number, row))
    means, live = means_and_live(responses, training_rows(splits, len(responses)))
    live = (live > 0) & bool(sizes.any())
    penalty, number, row = best.choices
    _warn_at_ends(number[live], n_penalties)
    parts = zip(live, best.predicted, means, strict=True)
    values = tuple(np.where(fitted, found + smoother.means, mean)[None] for fitted, found, mean in parts)
    taken = np.where(live[:, :, None], mixes[row.astype(int)], np.nan)
    return Predictions(tuple(splits), values, (1,) * len(splits)), np.where(live, penalty, np.nan), taken


def _mixed(factors: Array, bands: Sequence[Array]) -> Array:
    """The weighted sum of K over bands; of X alone X of all of them side by side, as long as these are fewer than the images."""
    if len(bands) == 1 and factors[0] == 1:
        return bands[0]
    if all(map(is_factor, bands)) and sum(band.shape[1] for band in bands) < len(bands[0]):
        scaled = [np.sqrt(factor) * band for factor, band in zip(factors, bands, strict=True)]
        return namespace(bands[0]).hstack(scaled)  # type: ignore[no-any-return]
    total: Array = sum(factor * whole(band) for factor, band in zip(factors, bands, strict=True))
    return total


@dataclass
class _Best:
    """Of each split and site the predictions with the least ``errors`` so far, and the ``choices`` that gave them: penalty, its
    number in the grid, row of the shares; each (n_splits, n_sites)."""

    predicted: list[Array]
    errors: Array
    choices: Array

    @classmethod
    def of(cls, splits: Sequence[Split], n_sites: int) -> _Best:
        shape = (len(splits), n_sites)
        return cls([np.empty((len(split.test), n_sites)) for split in splits], np.full(shape, np.inf), np.zeros((3, *shape)))

    def offer(self, predicted: Sequence[Array], errors: Array, choice: tuple[float, int, int]) -> None:
        """Take the predictions where their errors are smaller."""
        better = errors < self.errors
        self.errors[better] = errors[better]
        self.choices[:, better] = np.array(choice)[:, None]
        for mine, new, where in zip(self.predicted, predicted, better, strict=True):
            np.copyto(mine, new, where=where)


@dataclass(frozen=True)
class UniqueVariance:
    """What a second feature space explains beyond a first one, site by site.

    Attributes
    ----------
    first, second, both : (n_sites,) array
        r² of each alone and of both together: r is the mean over splits of Pearson's r on held-out images, and r² keeps its sign
        (r times its absolute value).
    low, high : (n_sites,) array
        95% interval of ``unique`` for new images, each site by itself; NaN where r is undefined, and where every split left the
        second out.
    shares : (n_splits, n_sites) array
        The share of the second that was chosen for the fit of both.
    test : TestResult
        The paired permutation test over images of both against the first: its statistic is the median over sites of the
        difference in r.
    """

    first: Array
    second: Array
    both: Array
    low: Array
    high: Array
    shares: Array
    test: TestResult

    @property
    def unique(self) -> Array:
        """(n_sites,) r² of both minus r² of the first: what the second explains beyond the first."""
        return self.both - self.first

    @property
    def unique_of_first(self) -> Array:
        """(n_sites,) r² of both minus r² of the second."""
        return self.both - self.second


def unique_variance(
    first: Array,
    second: Array,
    responses: Array,
    splits: Sequence[Split],
    *,
    penalties: Sequence[float] | Array | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> UniqueVariance:
    """What the features of K ``second`` explain of held-out responses beyond those of K ``first``, by banded ridge.

    Both alone are fitted by ``ridge_predict``, both together by ``banded_ridge_predict``, which may leave either out. ``test`` and
    intervals are those of ``permutation_over_images`` (``n_resamples``, ``seed``). ``test`` is one-sided: features that tell
    nothing make the prediction worse, so that a lower r is no finding (docs/statistics.md).

    Parameters
    ----------
    first, second : (n_images, n_images) array
        K = X Xᵀ, for instance of a layer's first pass and of a later iteration.
    responses, splits, penalties
        As of ``ridge_predict``.

    Returns
    -------
    UniqueVariance

    Raises
    ------
    ValueError
        As ``ridge_predict``; no site whose predictions vary.

    Examples
    --------
    >>> import numpy as np, warnings
    >>> from cnnf_brain.predictivity.crossval import make_splits
    >>> warnings.simplefilter("ignore", GridEndWarning)
    >>> rng = np.random.default_rng(0)
    >>> x, z = rng.standard_normal((2, 60, 3))
    >>> y = x + z + 0.1 * rng.standard_normal((60, 3))
    >>> splits = make_splits("kfold", range(60))
    >>> found = unique_variance(x @ x.T, z @ z.T, y, splits, penalties=[0.1, 1.0], n_resamples=999)
    >>> bool((found.unique > 0.2).all()), found.test.p < 0.01
    (True, True)
    """
    alone, other = (ridge_predict(gram, responses, splits, penalties)[0] for gram in (first, second))
    both, _, shares = banded_ridge_predict([first, second], responses, splits, penalties)
    r = [site_r(score_predictions(predictions, responses)) for predictions in (alone, other, both)]
    mine, base = ([values[0] for values in predictions.values] for predictions in (both, alone))
    held_out = HeldOut(mine, base, responses, splits)
    test, low, high = permutation_with_intervals(held_out, n_resamples=n_resamples, seed=seed)
    ends = np.clip([r[0] + low, r[0] + high], -1, 1)  # of both, the first's held
    squared = [one * np.abs(one) for one in (*r, *ends)]
    used = (shares[:, :, 1] > 0).any(axis=0)  # else both are the first alone, which says nothing of other images
    low, high = (np.where(used, end - squared[0], np.nan) for end in squared[3:])
    return UniqueVariance(squared[0], squared[1], squared[2], low, high, shares[:, :, 1], test)


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
    """U, λ and Uᵀy of the centred K, without the constant eigenvector; ``responses`` are centred by ``means``. Of X, U is ``part``
    of the eigenvectors alone: λ of all others is 0."""

    vectors: Array  # where K is
    values: Array
    responses: Array
    means: Array
    projected: Array
    mean_eigenvalue: float  # 0 where all features are constant
    part: bool

    @classmethod
    def of(cls, gram: Array, responses: Array) -> _Smoother:
        size, part = mean_eigenvalue(gram), is_factor(gram)
        gram = centred_gram(gram)
        if not size:
            gram[:] = 0.0
        vectors, values = eigen_of_features(gram) if part else eigen_of_gram(gram, size)
        means = responses.mean(axis=0)
        centred = responses - means
        return cls(vectors, values, centred, means, host(vectors.T @ like(centred, vectors)), size, part)

    def residual_maker(self, penalty: float) -> tuple[Array, Array]:
        """I - H, and (I - H) y."""
        weights = (self.values if self.part else penalty) / (self.values + penalty)
        half = self.vectors * like(np.sqrt(weights), self.vectors)
        matrix = half @ half.T  # NumPy computes one triangle and copies it
        residuals = host(self.vectors @ like(weights[:, None] * self.projected, self.vectors))
        if not self.part:
            return matrix, residuals
        matrix *= -1.0
        matrix -= 1 / len(matrix)
        matrix[range(len(matrix)), range(len(matrix))] += 1.0
        return matrix, self.responses - residuals


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
    block, right = matrix[np.ix_(rows, rows)], residuals[rows]
    if isinstance(block, np.ndarray):
        factor = scipy.linalg.cho_factor(block, lower=True, overwrite_a=True, check_finite=False)
        return np.asarray(scipy.linalg.cho_solve(factor, right, overwrite_b=True, check_finite=False))
    torch = namespace(block)
    return host(torch.cholesky_solve(like(right, block), torch.linalg.cholesky(block)))


def _check_penalties(penalties: Sequence[float] | Array) -> Array:
    grid = np.unique(np.asarray(penalties, dtype=np.float64))
    if not len(grid) or not (np.isfinite(grid).all() and grid[0] > 0):
        raise ValueError(f"penalties are {list(penalties)}; expected one or more finite numbers above 0")
    return grid


def _check_shares(shares: Sequence[Sequence[float]] | Array | None, bands: Sequence[Array]) -> Array:
    """(n_choices, n_bands) shares of bands that are of the same images."""
    if not bands or len({len(band) for band in bands}) > 1:
        raise ValueError(
            f"the Grams have shapes {[tuple(band.shape) for band in bands]}; expected one or more over the same images"
        )
    if shares is None and len(bands) <= 2:
        return np.ones((1, 1)) if len(bands) == 1 else np.array([(share, 1 - share) for share in SHARES])
    rows = np.asarray([] if shares is None else shares, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != len(bands) or not (rows >= 0).all() or not np.allclose(rows.sum(axis=1), 1):
        raise ValueError(
            f"shares are {None if shares is None else rows.tolist()}; expected rows of {len(bands)} numbers, at least 0, of sum 1"
        )
    return rows


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
                stacklevel=4,
            )
