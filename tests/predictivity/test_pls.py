"""cross_predict against scikit-learn, NIPALS written out, closed forms and invariances."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from oracles.nipals import nipals, predict_splits
from scipy.sparse.linalg import ArpackError
from sklearn.cross_decomposition import PLSRegression as Sklearn
from sklearn.model_selection import KFold

from cnnf_brain.predictivity import pls
from cnnf_brain.predictivity.kernel import participation_ratio, truncate_gram
from cnnf_brain.predictivity.pls import cross_predict
from cnnf_brain.types import Split

N, N_FEATURES, N_SITES, N_COMPONENTS = 60, 150, 7, 12


def simulated(noise: float = 0.5, seed: int = 0, n_features: int = N_FEATURES) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Features with a decaying spectrum and an offset, responses linear in them with noise."""
    rng = np.random.default_rng(seed)
    latents = rng.standard_normal((N, 15)) * np.linspace(3, 0.2, 15)
    features = latents @ rng.standard_normal((15, n_features)) + 0.3 * rng.standard_normal((N, n_features)) + 2.0
    responses = latents @ rng.standard_normal((15, N_SITES)) * 0.3 + noise * rng.standard_normal((N, N_SITES)) + 5.0
    return features, responses


def folds(n: int = N, k: int = 5) -> list[Split]:
    return [Split(train, test) for train, test in KFold(k, shuffle=True, random_state=0).split(np.zeros(n))]


def plain(splits: list[Split]) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    return [(split.train, split.test) for split in splits]


def largest_difference(predicted: Any, expected: Any) -> float:
    return max(float(np.abs(p - e).max()) for p, e in zip(predicted, expected, strict=True))


X, Y = simulated()
K = X @ X.T
SPLITS = folds()


@pytest.mark.parametrize("per_site", [False, True])
@pytest.mark.parametrize(("noise", "n_features"), [(0.5, N_FEATURES), (1e-3, N_FEATURES), (0.5, 14)])
def test_equals_nipals_for_every_number_of_components(per_site: bool, noise: float, n_features: Any) -> None:
    features, responses = simulated(noise, seed=1, n_features=n_features)
    predicted = cross_predict(features @ features.T, responses, SPLITS, N_COMPONENTS, per_site=per_site)
    expected = predict_splits(features, responses, plain(SPLITS), N_COMPONENTS, per_site)
    assert largest_difference(predicted.values, expected) < 1e-9
    assert predicted.ranks == (N_COMPONENTS,) * len(SPLITS)


def test_stays_exact_where_the_covariance_falls_by_many_orders_of_magnitude() -> None:
    features, responses = simulated(noise=1e-7, seed=2)
    predicted = cross_predict(features @ features.T, responses, SPLITS, 25)
    expected = predict_splits(features, responses, plain(SPLITS), 25)
    assert largest_difference(predicted.values, expected) < 1e-10


def test_equals_sklearn_run_to_convergence() -> None:
    predicted = cross_predict(K, Y, SPLITS, N_COMPONENTS)
    for split, values in zip(SPLITS, predicted.values, strict=True):
        for n in (1, 5, N_COMPONENTS):  # its tol bounds the square of the last change
            peer = Sklearn(n, scale=False, tol=1e-20, max_iter=100_000).fit(X[split.train], Y[split.train])
            np.testing.assert_allclose(values[n - 1], peer.predict(X[split.test]), atol=1e-8)


def test_per_site_equals_sklearn_column_by_column() -> None:
    predicted = cross_predict(K, Y, SPLITS, N_COMPONENTS, per_site=True)
    for split, values in zip(SPLITS, predicted.values, strict=True):
        for site in range(N_SITES):
            peer = Sklearn(N_COMPONENTS, scale=False).fit(X[split.train], Y[split.train, site])
            np.testing.assert_allclose(values[-1][:, site], peer.predict(X[split.test]).ravel(), atol=1e-10)


def test_one_component_is_the_closed_form() -> None:
    split = SPLITS[0]
    x_mean, y_mean = X[split.train].mean(axis=0), Y[split.train].mean(axis=0)
    x, y = X[split.train] - x_mean, Y[split.train] - y_mean
    w = np.linalg.svd(x.T @ y)[0][:, 0]
    expected = y_mean + np.outer((X[split.test] - x_mean) @ w, (x @ w) @ y / ((x @ w) @ (x @ w)))
    np.testing.assert_allclose(cross_predict(K, Y, [split], 1).values[0][0], expected, atol=1e-12)


def many_sites(kind: str) -> npt.NDArray[Any]:
    """(N, 300) responses: so many that S is not decomposed."""
    rng = np.random.default_rng(9)
    noise = rng.standard_normal((N, 300))
    if kind == "noise":
        return noise
    responses: npt.NDArray[Any] = X @ rng.standard_normal((N_FEATURES, 300)) * np.geomspace(1, 1e-3, 300) + noise
    if kind == "constant sites":
        responses[:, ::3] = 0.1
        responses[SPLITS[1].train, 4] = 0.7
    return {"twins": np.tile(responses[:, :150], 2), "tiny": 1e-9 * responses}.get(kind, responses)


@pytest.mark.parametrize("kind", ["signal", "noise", "twins", "tiny", "constant sites"])
@pytest.mark.parametrize("converges", [True, False])
def test_many_sites_equal_nipals(kind: str, converges: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def gives_up(*given: Any, **options: Any) -> None:
        raise ArpackError(-9)

    if not converges:
        monkeypatch.setattr(pls, "eigsh", gives_up)
    responses = many_sites(kind)
    predicted = cross_predict(K, responses, SPLITS[:2], N_COMPONENTS).values
    expected = predict_splits(X, responses, plain(SPLITS[:2]), N_COMPONENTS)
    assert largest_difference(predicted, expected) < 1e-9 * np.abs(responses).max()


def test_many_sites_of_few_directions_end_the_components() -> None:
    responses = Y[:, :3] @ np.random.default_rng(10).standard_normal((3, 300))
    predicted = cross_predict(np.eye(N), responses, SPLITS, N_COMPONENTS)
    assert predicted.ranks == (3,) * len(SPLITS)


def test_many_sites_that_are_all_tied_are_explained_one_direction_after_the_other() -> None:
    rows = np.arange(N)
    twins = np.concatenate([rows, rows])  # each training image comes again as a test image
    responses = np.tile(np.eye(N), 5)  # S has the eigenvalue 5 N - 1 times
    split = Split(rows, rows + N)
    predicted = cross_predict(np.eye(N)[np.ix_(twins, twins)], responses[twins], [split], N - 1)
    residuals = np.sum((predicted.values[0] - responses) ** 2, axis=(1, 2))
    np.testing.assert_allclose(residuals, 5.0 * np.arange(N - 2, -1, -1), atol=1e-9)


@pytest.mark.parametrize("per_site", [False, True])
@pytest.mark.parametrize("n_features", [9, 100])
def test_all_components_are_minimum_norm_least_squares(per_site: bool, n_features: int) -> None:
    rng = np.random.default_rng(3)
    features, responses = rng.standard_normal((30, n_features)) + 1, rng.standard_normal((30, 4))
    split = Split(np.arange(25), np.arange(25, 30))
    rank = min(n_features, 24)
    predicted = cross_predict(features @ features.T, responses, [split], rank, per_site=per_site)
    x_mean, y_mean = features[:25].mean(axis=0), responses[:25].mean(axis=0)
    expected = (features[25:] - x_mean) @ np.linalg.pinv(features[:25] - x_mean) @ (responses[:25] - y_mean) + y_mean
    np.testing.assert_allclose(predicted.values[0][-1], expected, atol=1e-8)


@pytest.mark.parametrize("per_site", [False, True])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_beyond_the_rank_the_last_prediction_is_repeated(per_site: bool, scale: float) -> None:
    rng = np.random.default_rng(4)
    features = scale * (rng.standard_normal((N, 6)) @ rng.standard_normal((6, 80)) + 3.0)
    predicted = cross_predict(features @ features.T, Y, SPLITS, 20, per_site=per_site)
    expected = predict_splits(features, Y, plain(SPLITS), 6, per_site)
    assert predicted.ranks == (6,) * len(SPLITS)
    for values, at_rank in zip(predicted.values, expected, strict=True):
        np.testing.assert_allclose(values[5], at_rank[5], atol=1e-8)
        assert (values[6:] == values[5]).all()


@pytest.mark.parametrize(("per_site", "rank"), [(False, N_SITES), (True, 1)])
def test_responses_that_are_fully_explained_end_the_components(per_site: bool, rank: Any) -> None:
    own_feature = np.eye(N)  # one feature for each image: every direction of the responses is a single component
    predicted = cross_predict(own_feature, Y, SPLITS, N_COMPONENTS, per_site=per_site)
    assert predicted.ranks == (rank,) * len(SPLITS)
    for split, values in zip(SPLITS, predicted.values, strict=True):  # nothing is known of a held-out image
        np.testing.assert_allclose(values[-1], np.broadcast_to(Y[split.train].mean(axis=0), values[-1].shape))


@pytest.mark.parametrize("per_site", [False, True])
def test_a_site_constant_over_the_training_rows_is_predicted_by_its_value(per_site: bool) -> None:
    responses = Y.copy()
    responses[:, 2] = 0.1  # no exact binary number: the mean of its copies may be off by rounding
    responses[SPLITS[1].train, 4] = 0.7
    predicted = cross_predict(K, responses, SPLITS, N_COMPONENTS, per_site=per_site)
    assert all((values[:, :, 2] == 0.1).all() for values in predicted.values)
    assert (predicted.values[1][:, :, 4] == 0.7).all()
    others = [0, 1, 3, 5, 6]  # in split 1 neither constant site has any weight
    without = cross_predict(K, responses[:, others], SPLITS[1:2], N_COMPONENTS, per_site=per_site)
    assert np.abs(predicted.values[1][:, :, others] - without.values[0]).max() < 1e-10


@pytest.mark.parametrize("per_site", [False, True])
def test_constant_features_predict_the_mean(per_site: bool) -> None:
    predicted = cross_predict(np.full((N, N), 7.0), Y, SPLITS, 3, per_site=per_site)
    assert predicted.ranks == (0,) * len(SPLITS)
    for split, values in zip(SPLITS, predicted.values, strict=True):
        np.testing.assert_allclose(values, np.broadcast_to(Y[split.train].mean(axis=0), values.shape), rtol=1e-14)


def test_all_folds_at_once_equal_fold_by_fold() -> None:
    together = cross_predict(K, Y, SPLITS, N_COMPONENTS).values
    apart = [cross_predict(K, Y, [split], N_COMPONENTS).values[0] for split in SPLITS]
    assert largest_difference(together, apart) < 1e-11


def test_more_folds_than_are_held_at_once() -> None:
    leave_one_out = folds(N, N)
    predicted = cross_predict(K, Y, leave_one_out, 3).values
    expected = predict_splits(X, Y, plain(leave_one_out[:2] + leave_one_out[-2:]), 3)
    assert len(predicted) == N
    assert largest_difference(predicted[:2] + predicted[-2:], expected) < 1e-9


def test_rows_outside_a_split_have_no_influence() -> None:
    split = Split(np.arange(0, 40), np.arange(40, 48))
    inside = np.arange(48)
    changed_features, changed_responses = X.copy(), Y.copy()
    changed_features[48:] *= -3
    changed_responses[48:] += 100
    expected = cross_predict(K[np.ix_(inside, inside)], Y[inside], [split], N_COMPONENTS).values
    predicted = cross_predict(changed_features @ changed_features.T, changed_responses, [split], N_COMPONENTS).values
    assert largest_difference(predicted, expected) < 1e-9


def test_test_responses_have_no_influence() -> None:
    changed = Y.copy()
    changed[SPLITS[0].test] = -50.0
    predicted = cross_predict(K, changed, SPLITS[:1], N_COMPONENTS).values
    assert largest_difference(predicted, cross_predict(K, Y, SPLITS[:1], N_COMPONENTS).values) < 1e-9


@pytest.mark.parametrize("per_site", [False, True])
def test_rotated_shifted_and_constant_features_change_nothing(per_site: bool) -> None:
    rotation = np.linalg.qr(np.random.default_rng(6).standard_normal((N_FEATURES, N_FEATURES)))[0]
    changed = np.hstack([X @ rotation + 10.0, np.full((N, 5), 4.0)])
    predicted = cross_predict(changed @ changed.T, Y, SPLITS, N_COMPONENTS, per_site=per_site).values
    assert largest_difference(predicted, cross_predict(K, Y, SPLITS, N_COMPONENTS, per_site=per_site).values) < 1e-8


def test_scaled_responses_scale_the_predictions() -> None:
    predicted = cross_predict(K, 1e3 * Y, SPLITS, N_COMPONENTS).values
    expected = [1e3 * values for values in cross_predict(K, Y, SPLITS, N_COMPONENTS).values]
    assert largest_difference(predicted, expected) < 1e-8


def test_reordered_images_change_nothing() -> None:
    order = np.random.default_rng(7).permutation(N)
    place = np.argsort(order)
    moved = [Split(place[split.train], place[split.test]) for split in SPLITS]
    predicted = cross_predict(K[np.ix_(order, order)], Y[order], moved, N_COMPONENTS).values
    assert largest_difference(predicted, cross_predict(K, Y, SPLITS, N_COMPONENTS).values) < 1e-9


@pytest.mark.parametrize("per_site", [False, True])
def test_residuals_on_training_rows_shrink_with_every_component(per_site: bool) -> None:
    rows = np.arange(40)
    twins = np.concatenate([rows, rows])  # each training image comes again as a test image
    split = Split(rows, rows + 40)
    predicted = cross_predict(K[np.ix_(twins, twins)], Y[twins], [split], N_COMPONENTS, per_site=per_site).values[0]
    residuals = np.linalg.norm(predicted - Y[rows], axis=1)  # (n_components, n_sites)
    assert (np.diff(residuals, axis=0) <= 1e-10).all()
    assert residuals[-1].max() < 0.9 * np.linalg.norm(Y[rows] - Y[rows].mean(axis=0), axis=0).min()


def test_shuffled_responses_are_not_predicted() -> None:
    rng = np.random.default_rng(8)
    correlations = []
    for _ in range(20):
        shuffled = Y[rng.permutation(N)]
        values = cross_predict(K, shuffled, SPLITS, 5).values
        correlations += [
            np.corrcoef(v[-1][:, site], shuffled[s.test, site])[0, 1]
            for s, v in zip(SPLITS, values, strict=True)
            for site in range(N_SITES)
        ]
    by_run = np.reshape(correlations, (20, -1)).mean(axis=1)
    assert abs(by_run.mean()) < 3.5 * by_run.std(ddof=1) / np.sqrt(20)
    assert abs(by_run.mean()) < 0.1


def test_the_truncated_gram_is_that_of_the_principal_components() -> None:
    centred = X - X.mean(axis=0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    scores = left[:, :8] * singular[:8]
    np.testing.assert_allclose(truncate_gram(K, 8), scores @ scores.T, atol=1e-8)
    np.testing.assert_allclose(truncate_gram(K, N), centred @ centred.T, atol=1e-8)
    predicted = cross_predict(truncate_gram(K, 8), Y, SPLITS, 5).values
    assert largest_difference(predicted, predict_splits(scores, Y, plain(SPLITS), 5)) < 1e-8


def with_nan(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    values = values.copy()
    values[3, 3] = values[3, 3] * np.nan
    return values


ROWS = np.arange(N)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_components": 48}, "48 components cannot be fitted to the 48 training images of split 0.* at most 47"),
        ({"n_components": 0}, "n_components must be at least 1, got 0"),
        ({"gram": with_nan(K)}, "Gram X Xᵀ holds NaN or infinity"),
        ({"responses": with_nan(Y)}, "responses of 1 of 7 sites hold NaN.*site 3.*leave these sites out"),
        ({"responses": Y[:-1]}, r"responses have shape \(59, 7\); expected \(60, n_sites\)"),
        ({"responses": Y[:, 0]}, r"responses have shape \(60,\)"),
        ({"gram": X}, r"has shape \(60, 150\); expected \(n_images, n_images\)"),
        ({"gram": X[:, :N]}, "not symmetric"),
        ({"splits": []}, "no splits were given"),
        ({"splits": [Split(ROWS, ROWS[:0])]}, "split 0 has 60 training and 0 test images"),
        ({"splits": [SPLITS[0], Split(ROWS[:30], ROWS[29:])]}, "split 1 names an image twice"),
        ({"splits": [Split(ROWS[:30], ROWS[30:] + 1)]}, "split 0 names rows 0 to 60 of 60 images"),
    ],
)
def test_bad_input_is_refused(changes: Any, message: str) -> None:
    given = {"gram": K, "responses": Y, "splits": SPLITS, "n_components": N_COMPONENTS} | changes
    with pytest.raises(ValueError, match=message):
        cross_predict(**given)


def test_pca_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one component, got 0"):
        truncate_gram(K, 0)


def test_the_oracle_itself_agrees_with_sklearn() -> None:
    coefficients, intercepts = nipals(X, Y, 6)
    peer = Sklearn(6, scale=False, tol=1e-16, max_iter=100_000).fit(X, Y)
    np.testing.assert_allclose(coefficients[-1], peer.coef_.T, atol=1e-7)
    np.testing.assert_allclose(X @ coefficients[-1] + intercepts[-1], peer.predict(X), atol=1e-7)


def test_the_participation_ratio_is_that_of_the_covariance() -> None:
    variances = np.linalg.eigvalsh(np.cov(X.T))
    assert participation_ratio(K) == pytest.approx(variances.sum() ** 2 / (variances**2).sum())
    shifted = 3 * X + 1000.0
    assert participation_ratio(shifted @ shifted.T) == pytest.approx(participation_ratio(K), rel=1e-6)


def test_the_participation_ratio_counts_directions_of_equal_variance() -> None:
    rows = np.random.default_rng(0).standard_normal((N, 5))
    basis, _ = np.linalg.qr(rows - rows.mean(axis=0))
    assert participation_ratio(basis @ basis.T) == pytest.approx(5)
    assert participation_ratio(truncate_gram(K, 1)) == pytest.approx(1)
    assert np.isnan(participation_ratio(np.full((N, N), 7.0)))
