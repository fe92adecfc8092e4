"""PLSRegression as a scikit-learn estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from oracles.nipals import nipals
from sklearn.base import clone
from sklearn.cross_decomposition import PLSRegression as Sklearn
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.utils.estimator_checks import parametrize_with_checks as with_checks

from cnnf_brain.predictivity import estimator as module
from cnnf_brain.predictivity.estimator import PLSRegression

# As scikit-learn does for its own PLSRegression, the checks run with one component: their data have as few as one
# feature, where more components are an error, and the default of 25 would be refused. scikit-learn itself skips
# check_regressor_data_not_an_array for every class of this name (its own is not deterministic; see the test of lists
# below), and check_array_api_input where array API support is not switched on.


CHECKS = with_checks([PLSRegression(n_components=1), PLSRegression(n_components=1, per_site=True)]).mark
NAMES, CASES = CHECKS.args


@pytest.mark.parametrize(NAMES, list(CASES), ids=CHECKS.kwargs["ids"])  # pytest wants a list, not their generator
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def simulated(n: int, d: int, q: int = 5) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    rng = np.random.default_rng(n)
    features = rng.standard_normal((n, d)) @ np.diag(np.linspace(2, 0.2, d)) + 1.0
    return features, features @ rng.standard_normal((d, q)) / d + 0.3 * rng.standard_normal((n, q)) - 4.0


@pytest.mark.parametrize(("n", "d"), [(40, 90), (90, 20)])
@pytest.mark.parametrize("block", [7, 4096])
def test_coefficients_equal_nipals(n: int, d: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    X, Y = simulated(n, d)
    coefficients, intercepts = nipals(X, Y, 8)
    fitted = PLSRegression(8).fit(X, Y)
    np.testing.assert_allclose(fitted.coef_, coefficients[-1].T, atol=1e-9)
    np.testing.assert_allclose(fitted.intercept_, intercepts[-1], atol=1e-9)
    np.testing.assert_allclose(fitted.predict(X[:6]), X[:6] @ coefficients[-1] + intercepts[-1], atol=1e-9)
    assert fitted.rank_ == 8


@pytest.mark.parametrize(("n", "d"), [(40, 90), (90, 20)])
def test_per_site_equals_one_fit_per_target(n: int, d: int) -> None:
    X, Y = simulated(n, d)
    fitted = PLSRegression(6, per_site=True).fit(X, Y)
    for site in range(Y.shape[1]):
        peer = Sklearn(6, scale=False).fit(X, Y[:, site])
        np.testing.assert_allclose(fitted.coef_[site], peer.coef_[0], atol=1e-10)
        np.testing.assert_allclose(fitted.predict(X)[:, site], peer.predict(X).ravel(), atol=1e-10)


def test_one_dimensional_targets_give_one_dimensional_predictions() -> None:
    X, Y = simulated(40, 90)
    fitted = PLSRegression(4).fit(X, Y[:, 0])
    assert fitted.predict(X).shape == (40,)
    np.testing.assert_allclose(fitted.predict(X), PLSRegression(4).fit(X, Y[:, :1]).predict(X)[:, 0], rtol=1e-12)
    assert fitted.score(X, Y[:, 0]) > 0.5


def test_single_precision_features_are_fitted_in_double_precision() -> None:
    X, Y = simulated(40, 90)
    single = X.astype(np.float32)
    fitted = PLSRegression(8).fit(single, Y)
    assert fitted.coef_.dtype == np.float64
    np.testing.assert_allclose(fitted.coef_, PLSRegression(8).fit(single.astype(np.float64), Y).coef_, atol=1e-11)


def test_lists_are_taken_like_arrays() -> None:
    X, Y = simulated(40, 10)
    expected = PLSRegression(3).fit(X, Y).predict(X)
    assert (PLSRegression(3).fit(X.tolist(), Y.tolist()).predict(X.tolist()) == expected).all()


@pytest.mark.filterwarnings(
    "ignore:invalid value encountered in cast"
)  # GridSearchCV casts memory that it has not written yet
def test_works_inside_scikit_learn() -> None:
    X, Y = simulated(60, 90)
    search = GridSearchCV(PLSRegression(), {"n_components": [1, 3, 25]}, cv=3).fit(X, Y)
    assert search.best_params_["n_components"] in (1, 3, 25)
    assert cross_val_predict(clone(PLSRegression(3)), X, Y, cv=3).shape == Y.shape


def test_rank_used_up_is_reported() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((30, 3)) @ rng.standard_normal((3, 50))
    Y = rng.standard_normal((30, 4))
    fitted = PLSRegression(10).fit(X, Y)
    assert fitted.rank_ == 3
    np.testing.assert_allclose(fitted.coef_.T, np.linalg.pinv(X - X.mean(axis=0), rcond=1e-10) @ Y, atol=1e-10)


@pytest.mark.parametrize(
    ("n_components", "message"),
    [
        (25, r"n_components=25 is too many for n_samples = 20, n_features = 50.* = 19"),
        (0, "integer of at least 1, got 0"),
        (2.5, "integer of at least 1, got 2.5"),
    ],
)
def test_impossible_numbers_of_components_are_refused(n_components: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PLSRegression(n_components).fit(np.eye(20, 50), np.arange(20.0))  # type: ignore[arg-type]


def test_the_default_is_brain_scores_and_fewer_features_are_refused() -> None:
    assert PLSRegression().get_params() == {"n_components": 25, "per_site": False}
    with pytest.raises(ValueError, match=r"n_features = 24\b.*at most.* 24; reduce n_components"):
        PLSRegression().fit(np.eye(60, 24), np.arange(60.0))
