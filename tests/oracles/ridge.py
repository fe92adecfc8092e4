"""Ridge with a penalty per site, written out: a fit by scikit-learn for every split, inner fold and penalty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import Ridge

Rows = npt.NDArray[Any]


def nested_ridge(
    features: Rows, responses: Rows, splits: Sequence[tuple[Rows, Rows]], penalties: Sequence[float]
) -> tuple[list[Rows], Rows]:
    """Predictions of each split's test rows, and the penalty of each split and site.

    The inner folds of a split are the test rows of each other split among its training rows.
    """
    predictions, chosen = nested_choice([features], responses, splits, penalties)
    return predictions, chosen[:, :, 1]


def nested_choice(
    candidates: Sequence[Rows], responses: Rows, splits: Sequence[tuple[Rows, Rows]], penalties: Sequence[float]
) -> tuple[list[Rows], Rows]:
    """As ``nested_ridge``, where the features are chosen too: number of the candidate and penalty (splits, sites, 2)."""
    pairs = [(number, penalty) for number in range(len(candidates)) for penalty in penalties]
    predictions: list[Rows] = []
    chosen = np.empty((len(splits), responses.shape[1], 2))
    for number, (train, test) in enumerate(splits):
        errors = []
        for candidate, penalty in pairs:
            features, of_folds = candidates[candidate], []
            for other, (_, held) in enumerate(splits):
                fold = [row for row in train if row in held]
                rest = [row for row in train if row not in held]
                if other != number and fold and rest:
                    model = Ridge(alpha=penalty).fit(features[rest], responses[rest])
                    of_folds.append(np.mean((model.predict(features[fold]) - responses[fold]) ** 2, axis=0))
            errors.append(np.mean(of_folds, axis=0))
        chosen[number] = np.array(pairs)[np.argmin(errors, axis=0)]
        predictions.append(np.empty((len(test), responses.shape[1])))
        for site, (candidate, penalty) in enumerate(chosen[number]):
            features = candidates[int(candidate)]
            model = Ridge(alpha=penalty).fit(features[train], responses[train, site])
            predictions[-1][:, site] = model.predict(features[test])
    return predictions, chosen
