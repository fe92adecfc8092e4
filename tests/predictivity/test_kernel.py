"""The forms of K give the same numbers: K, X with fewer columns than rows, and tensors of either."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from oracles.nipals import predict_splits
from sklearn.model_selection import KFold

from cnnf_brain.predictivity.kernel import check_gram, mean_eigenvalue, participation_ratio, truncate_gram
from cnnf_brain.predictivity.pls import cross_predict
from cnnf_brain.predictivity.ridge import banded_ridge_predict, ridge_predict
from cnnf_brain.predictivity.similarity import dissimilarities
from cnnf_brain.types import Split

N, D = 60, 14
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, D)) @ RNG.standard_normal((D, D)) + 2.0
Y = X @ RNG.standard_normal((D, 5)) + 4 * RNG.standard_normal((N, 5)) + 5.0
SPLITS = [Split(train, test) for train, test in KFold(5, shuffle=True, random_state=0).split(np.zeros(N))]
FORMS = {
    "K": lambda x: x @ x.T,
    "X": lambda x: x,
    "a tensor of K": lambda x: torch.from_numpy(x @ x.T),
    "a tensor of X": torch.from_numpy,
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
quiet = pytest.mark.filterwarnings("ignore::cnnf_brain.predictivity.ridge.GridEndWarning")


@forms
@pytest.mark.parametrize("per_site", [False, True])
def test_pls_is_that_of_the_features(form: Callable[[Any], Any], per_site: bool) -> None:
    found = cross_predict(form(X), Y, SPLITS, D, per_site=per_site)
    expected = predict_splits(X, Y, [(split.train, split.test) for split in SPLITS], D, per_site)
    for values, other in zip(found.values, expected, strict=True):
        assert isinstance(values, np.ndarray)
        np.testing.assert_allclose(values, other, atol=1e-9)
    alone = cross_predict(form(X), Y, SPLITS, D, per_site=per_site, last=True)
    assert alone.ranks == found.ranks
    for (values,), other in zip(alone.values, expected, strict=True):
        np.testing.assert_allclose(values, other[-1], atol=1e-9)


@quiet
@forms
def test_ridge_is_that_of_k(form: Callable[[Any], Any]) -> None:
    """That of K itself is tested against scikit-learn; with rows that no split uses."""
    splits = [Split(split.train[2:], split.test) for split in SPLITS[:3]]
    found, penalties = ridge_predict(form(X), Y, splits)
    expected, taken = ridge_predict(X @ X.T, Y, splits)
    np.testing.assert_allclose(penalties, taken, rtol=1e-9)
    for values, other in zip(found.values, expected.values, strict=True):
        np.testing.assert_allclose(values, other, atol=1e-9)


@quiet
@forms
@pytest.mark.parametrize("second", ["X", "K"])
def test_bands_may_be_of_any_form(form: Callable[[Any], Any], second: str) -> None:
    other = RNG.standard_normal((N, 6))
    as_tensor = isinstance(form(X), torch.Tensor)
    band = other if second == "X" else other @ other.T
    shares = [(1.0, 0.0), (0.4, 0.6)]
    grams = [form(X), torch.from_numpy(band) if as_tensor else band]
    found = banded_ridge_predict(grams, Y, SPLITS, shares=shares)
    expected = banded_ridge_predict([X @ X.T, other @ other.T], Y, SPLITS, shares=shares)
    for values, right in zip([*found[0].values, *found[1:]], [*expected[0].values, *expected[1:]], strict=True):
        np.testing.assert_allclose(values, right, atol=1e-8, rtol=1e-9)


@quiet
@forms
def test_constant_features_predict_the_mean(form: Callable[[Any], Any]) -> None:
    constant = np.full((N, 3), 7.0)
    for predicted in (cross_predict(form(constant), Y, SPLITS, 2), ridge_predict(form(constant), Y, SPLITS)[0]):
        for split, values in zip(SPLITS, predicted.values, strict=True):
            np.testing.assert_allclose(values[-1], np.broadcast_to(Y[split.train].mean(axis=0), values[-1].shape))


def test_what_is_read_off_k_is_read_off_features() -> None:
    assert mean_eigenvalue(X) == pytest.approx(mean_eigenvalue(X @ X.T))
    assert mean_eigenvalue(np.full((N, 3), 0.1)) == 0.0
    assert participation_ratio(X) == pytest.approx(participation_ratio(X @ X.T))
    np.testing.assert_allclose(dissimilarities(X, "cosine"), dissimilarities(X @ X.T, "cosine"), atol=1e-12)
    kept = truncate_gram(X, 4)
    assert kept.shape == (N, 4)
    np.testing.assert_allclose(kept @ kept.T, truncate_gram(X @ X.T, 4), atol=1e-9)


@pytest.mark.parametrize("given", [X.T, np.zeros(3), torch.zeros(3, 4)])
def test_more_columns_than_rows_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"expected \(n_images, n_images\), or features X with fewer columns than rows"):
        check_gram(given)
