"""PLS by NIPALS, written out after Wold, Sjöström and Eriksson (2001), doi:10.1016/S0169-7439(01)00155-1.

Slow and literal: features and responses are held and deflated, nothing is shared with the package.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def nipals(
    features: npt.NDArray[Any], responses: npt.NDArray[Any], n_components: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """PLS2 of all responses together; PLS1 where there is one column.

    Returns the coefficients (n_components, n_features, n_responses) for 1, 2, ... components, and the intercepts
    (n_components, n_responses): a prediction is ``x @ coefficients + intercept``.
    """
    x_mean, y_mean = features.mean(axis=0), responses.mean(axis=0)
    X, Y = features - x_mean, responses - y_mean
    W, P, Q = [], [], []  # type: ignore[var-annotated]
    coefficients = []
    for _ in range(n_components):
        left = np.linalg.svd(X.T @ Y, full_matrices=False)[0]
        w = left[:, 0]
        t = X @ w
        p = X.T @ t / (t @ t)
        q = Y.T @ t / (t @ t)
        X = X - np.outer(t, p)
        Y = Y - np.outer(t, q)
        W, P, Q = [*W, w], [*P, p], [*Q, q]
        weights, x_loadings, y_loadings = np.array(W).T, np.array(P).T, np.array(Q).T
        rotations = weights @ np.linalg.inv(x_loadings.T @ weights)
        coefficients.append(rotations @ y_loadings.T)
    stacked = np.array(coefficients)
    return stacked, y_mean - x_mean @ stacked


def predict_splits(
    features: npt.NDArray[Any],
    responses: npt.NDArray[Any],
    splits: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]],
    n_components: int,
    per_site: bool = False,
) -> list[npt.NDArray[Any]]:
    """Held-out predictions (n_components, n_test, n_responses) of each (train, test), one fit after the other."""
    predictions = []
    for train, test in splits:
        columns = range(responses.shape[1])
        groups = [[column] for column in columns] if per_site else [list(columns)]
        parts = []
        for group in groups:
            coefficients, intercepts = nipals(features[train], responses[np.ix_(train, group)], n_components)  # type: ignore[arg-type]
            parts.append(features[test] @ coefficients + intercepts[:, None, :])
        predictions.append(np.concatenate(parts, axis=2))
    return predictions
