"""PLSRegression: exact PLS behind scikit-learn's estimator interface."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from cnnf_brain.predictivity.kernel import GramOperator
from cnnf_brain.predictivity.pls import fit_folds, fit_sites
from cnnf_brain.types import Array

BLOCK = 4096  # features taken to float64 at a time


class PLSRegression(MultiOutputMixin, RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Partial least squares regression, centred and not scaled, exact to rounding.

    What ``sklearn.cross_decomposition.PLSRegression(n_components, scale=False)`` computes where its iterations are run
    to convergence (``tol`` at 1e-12 or less, enough ``max_iter``). With its default ``tol=1e-6``, which Brain-Score
    uses, scikit-learn stops early: single sites then differ by about 1e-3 in r.

    Parameters
    ----------
    n_components : int
        At most ``min(n_samples - 1, n_features)``, else ``fit`` raises ValueError; never lowered silently.
    per_site : bool
        False: one model for all targets (PLS2). True: one model per target (PLS1).

    Attributes
    ----------
    coef_ : (n_targets, n_features) float64 array
    intercept_ : (n_targets,) float64 array
        ``predict(X)`` is ``X @ coef_.T + intercept_``.
    rank_ : int
        Components found (with ``per_site`` the most that any target could use); fewer than n_components where the
        rank of the centred X or its covariance with Y is used up.
    n_features_in_ : int

    Notes
    -----
    With at least as many features as samples the fit works on X Xᵀ (n_samples x n_samples), accumulated in float64 over
    blocks of features, else on X itself. float32 features are not copied whole.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).standard_normal((50, 300))
    >>> Y = X[:, :2] * [1.0, -2.0]
    >>> PLSRegression(n_components=10).fit(X, Y).predict(X[:3]).shape
    (3, 2)
    """

    def __init__(self, n_components: int = 25, *, per_site: bool = False) -> None:
        self.n_components = n_components
        self.per_site = per_site

    def fit(self, X: Array, Y: Array) -> PLSRegression:
        """Fit the regression.

        Parameters
        ----------
        X : (n_samples, n_features) array
        Y : (n_samples,) or (n_samples, n_targets) array

        Raises
        ------
        ValueError
            NaN, shapes that do not match, or more components than ``min(n_samples - 1, n_features)``.
        """
        X, Y = _validate(self, X, Y, multi_output=True, y_numeric=True, ensure_min_samples=2)
        self._one_target = Y.ndim == 1
        responses = np.asarray(Y, dtype=np.float64).reshape(len(X), -1)
        _check_components(self.n_components, *X.shape)
        means = X.mean(axis=0, dtype=np.float64)
        K = _gram_of(X, means)
        fit = fit_sites if self.per_site else fit_folds
        components = fit(K, responses, np.ones((1, len(X))), self.n_components)
        dual = np.hstack([components.dual_coefficients(problem) for problem in range(len(components.ranks))])
        self.coef_ = np.empty((responses.shape[1], X.shape[1]))
        for columns in _blocks(X.shape[1]):
            self.coef_[:, columns] = dual.T @ (X[:, columns] - means[columns])
        self.intercept_ = components.means.ravel() - self.coef_ @ means
        self.rank_ = int(components.ranks.max())
        return self

    def predict(self, X: Array) -> Array:
        """(n_samples, n_targets) predictions, or (n_samples,) where Y was one-dimensional."""
        check_is_fitted(self)
        X = _validate(self, X, reset=False)
        prediction: Array = X @ self.coef_.T + self.intercept_
        return prediction[:, 0] if self._one_target else prediction


def _check_components(n_components: int, n_samples: int, n_features: int) -> None:
    if not isinstance(n_components, Integral) or n_components < 1:
        raise ValueError(f"n_components must be an integer of at least 1, got {n_components!r}")
    most = min(n_samples - 1, n_features)
    if n_components > most:
        raise ValueError(
            f"n_components={n_components} is too many for n_samples = {n_samples}, n_features = {n_features}: "
            f"at most min(n_samples - 1, n_features) = {most}; reduce n_components"
        )


def _gram_of(X: Array, means: Array) -> GramOperator:
    """X Xᵀ of the centred features as a linear map, through whichever side is smaller."""
    n_samples, n_features = X.shape
    if n_features < n_samples:
        return GramOperator.of(X - means)
    gram = np.zeros((n_samples, n_samples))
    for columns in _blocks(n_features):
        block = X[:, columns] - means[columns]  # float64, as the means are
        gram += block @ block.T
    return GramOperator.of(gram)


def _blocks(n_features: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, n_features, BLOCK)]


def _validate(estimator: PLSRegression, *arrays: Array, **options: Any) -> Any:
    """scikit-learn's own checks of (X,) or (X, Y)."""
    try:
        from sklearn.utils.validation import validate_data
    except ImportError:  # a method until scikit-learn 1.6
        return estimator._validate_data(*arrays, dtype=(np.float64, np.float32), **options)
    return validate_data(estimator, *arrays, dtype=(np.float64, np.float32), **options)
