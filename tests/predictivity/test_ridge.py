"""ridge_predict against scikit-learn's Ridge and KernelRidge in literal loops, himalaya, Brain-Score and closed forms."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from oracles.ridge import nested_choice, nested_ridge
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import KFold, PredefinedSplit, ShuffleSplit

from cnnf_brain.predictivity.ridge import (
    GRID,
    SHARES,
    GridEndWarning,
    banded_ridge_predict,
    ridge_predict,
    unique_variance,
)
from cnnf_brain.predictivity.scores import pearson, score_predictions
from cnnf_brain.types import Split

N, N_FEATURES, N_SITES = 60, 90, 4
PENALTIES = [0.3, 3.0, 30.0, 300.0, 3000.0, 30_000.0]


def simulated(n_features: int = N_FEATURES, seed: int = 0) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Features with a decaying spectrum and an offset; responses linear in them, with more noise from site to site."""
    rng = np.random.default_rng(seed)
    latents = rng.standard_normal((N, 15)) * np.linspace(3, 0.2, 15)
    features = latents @ rng.standard_normal((15, n_features)) + 0.3 * rng.standard_normal((N, n_features)) + 2.0
    noise = rng.standard_normal((N, N_SITES)) * np.geomspace(0.05, 4, N_SITES)
    return features, latents @ rng.standard_normal((15, N_SITES)) * 0.3 + noise + 5.0


def folds(k: int = 5) -> list[Split]:
    return [Split(train, test) for train, test in KFold(k, shuffle=True, random_state=0).split(np.zeros(N))]


def shuffles() -> list[Split]:
    return [Split(train, test) for train, test in ShuffleSplit(4, test_size=0.2, random_state=1).split(np.zeros(N))]


def plain(splits: list[Split]) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    return [(split.train, split.test) for split in splits]


X, Y = simulated()
K = X @ X.T
SPLITS = folds()
quiet = pytest.mark.filterwarnings("ignore::cnnf_brain.predictivity.ridge.GridEndWarning")


@quiet
@pytest.mark.parametrize("splits", [folds(), shuffles()], ids=["folds", "overlapping test sets"])
@pytest.mark.parametrize("n_features", [N_FEATURES, 12])
def test_equals_scikit_learn_in_literal_loops(splits: list[Split], n_features: int) -> None:
    features, responses = simulated(n_features)
    predictions, chosen = ridge_predict(features @ features.T, responses, splits, PENALTIES)
    expected, penalties = nested_ridge(features, responses, plain(splits), PENALTIES)
    np.testing.assert_array_equal(chosen, penalties)
    assert len(np.unique(chosen)) > 2
    for split, values, oracle in zip(splits, predictions.values, expected, strict=True):
        np.testing.assert_allclose(values[0], oracle, atol=1e-8)
        assert np.abs(pearson(values[0], responses[split.test]) - pearson(oracle, responses[split.test])).max() < 1e-6


@pytest.mark.parametrize("penalty", [1e-3, 1.0, 1e4])
def test_a_single_penalty_equals_kernel_ridge_on_centred_rows(penalty: float) -> None:
    predictions, chosen = ridge_predict(K, Y, SPLITS, [penalty])
    assert (chosen == penalty).all()
    for split, values in zip(SPLITS, predictions.values, strict=True):
        x, y = X[split.train], Y[split.train]
        peer = KernelRidge(alpha=penalty, kernel="linear").fit(x - x.mean(axis=0), y - y.mean(axis=0))
        expected = peer.predict(X[split.test] - x.mean(axis=0)) + y.mean(axis=0)
        np.testing.assert_allclose(values[0], expected, atol=1e-8)


def test_the_default_grid_is_relative_to_the_mean_eigenvalue() -> None:
    centred = X - X.mean(axis=0)
    scale = np.linalg.eigvalsh(centred @ centred.T).mean()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GridEndWarning)
        by_default, chosen = ridge_predict(K, Y, SPLITS)
        expected, penalties = ridge_predict(K, Y, SPLITS, GRID * scale)
    np.testing.assert_allclose(chosen, penalties)
    for values, others in zip(by_default.values, expected.values, strict=True):
        np.testing.assert_allclose(values, others, atol=1e-9)


@quiet
def test_scaled_and_shifted_features_change_nothing() -> None:
    changed = np.hstack([1e3 * X + 1e4, np.full((N, 3), 7.0)])
    expected, chosen = ridge_predict(K, Y, SPLITS)
    predicted, penalties = ridge_predict(changed @ changed.T, Y, SPLITS)
    np.testing.assert_allclose(penalties, 1e6 * chosen, rtol=1e-9)
    for values, others in zip(predicted.values, expected.values, strict=True):
        np.testing.assert_allclose(values, others, atol=1e-7)


@quiet
def test_test_responses_have_no_influence() -> None:
    changed = Y.copy()
    changed[SPLITS[0].test] = -500.0
    expected, chosen = ridge_predict(K, Y, SPLITS)
    predicted, penalties = ridge_predict(K, changed, SPLITS)
    np.testing.assert_array_equal(penalties[0], chosen[0])
    np.testing.assert_allclose(predicted.values[0], expected.values[0], atol=1e-9)


@quiet
def test_rows_outside_all_splits_have_no_influence() -> None:
    splits = [Split(np.arange(0, 40), np.arange(40, 48)), Split(np.arange(10, 48), np.arange(0, 10))]
    inside = np.arange(48)
    features, responses = X.copy(), Y.copy()
    features[48:] *= -3
    responses[48:] += 100
    expected, _ = ridge_predict(K[np.ix_(inside, inside)], Y[inside], splits)
    predicted, _ = ridge_predict(features @ features.T, responses, splits)
    for values, others in zip(predicted.values, expected.values, strict=True):
        np.testing.assert_allclose(values, others, atol=1e-9)


@quiet
def test_rows_between_training_and_test_images_are_left_out_of_both() -> None:
    splits = [Split(np.arange(0, 40), np.arange(45, 60)), Split(np.arange(20, 60), np.arange(0, 20))]
    predictions, chosen = ridge_predict(K, Y, splits, PENALTIES)
    expected, penalties = nested_ridge(X, Y, plain(splits), PENALTIES)
    np.testing.assert_array_equal(chosen, penalties)
    for values, oracle in zip(predictions.values, expected, strict=True):
        np.testing.assert_allclose(values[0], oracle, atol=1e-8)


@quiet
def test_the_record_is_scored_as_that_of_pls() -> None:
    predictions, _ = ridge_predict(K, Y, SPLITS)
    assert [values.shape for values in predictions.values] == [(1, 12, N_SITES)] * 5
    scores = score_predictions(predictions, Y)
    assert scores.r.shape == (5, N_SITES)
    r = scores.r.mean(axis=0)
    assert r[0] > 0.9
    assert r[0] > r[-1]


@quiet
def test_constant_sites_and_features() -> None:
    responses = Y.copy()
    responses[:, 1] = 0.1
    responses[SPLITS[2].train, 3] = 0.7
    predictions, chosen = ridge_predict(K, responses, SPLITS)
    assert all((values[0, :, 1] == 0.1).all() for values in predictions.values)
    assert (predictions.values[2][0, :, 3] == 0.7).all()
    assert np.isnan(chosen[:, 1]).all()
    assert np.isnan(chosen[:, 3]).tolist() == [False, False, True, False, False]
    flat, _ = ridge_predict(np.full((N, N), 7.0), Y, SPLITS)
    for split, values in zip(SPLITS, flat.values, strict=True):
        np.testing.assert_allclose(values[0], np.broadcast_to(Y[split.train].mean(axis=0), values[0].shape), rtol=1e-14)


def test_an_end_of_the_grid_warns() -> None:
    with pytest.warns(GridEndWarning, match=r"the largest of 2 penalties was chosen in 20 of 20 fits"):
        ridge_predict(K, np.random.default_rng(1).standard_normal(Y.shape), SPLITS, [1e-9, 1e9])
    with pytest.warns(GridEndWarning, match="the smallest of 2 penalties"):
        ridge_predict(K, X[:, :4], SPLITS, [1e-3, 1e9])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"penalties": [1.0, 0.0]}, "above 0"),
        ({"penalties": []}, "one or more"),
        ({"penalties": [1.0, np.inf]}, "finite"),
        ({"responses": Y[:-1]}, "one row for each image"),
        ({"gram": X}, "expected \\(n_images, n_images\\)"),
        ({"splits": SPLITS[:1]}, "needs other splits"),
        ({"splits": []}, "no splits"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"gram": K, "responses": Y, "splits": SPLITS, **change}
    with pytest.raises(ValueError, match=message):
        ridge_predict(**given)


@quiet
def test_agrees_with_himalaya() -> None:
    kernel_ridge = pytest.importorskip("himalaya.kernel_ridge", reason="needs himalaya (benchmarks/requirements.txt)")
    predictions, chosen = ridge_predict(K, Y, SPLITS, PENALTIES)
    of_fold = np.empty(N, dtype=int)
    for number, split in enumerate(SPLITS):
        of_fold[split.test] = number
    for number, (split, values) in enumerate(zip(SPLITS, predictions.values, strict=True)):
        peer = kernel_ridge.KernelRidgeCV(
            PENALTIES, kernel="precomputed", cv=PredefinedSplit(of_fold[split.train]), fit_intercept=True
        ).fit(K[np.ix_(split.train, split.train)], Y[split.train])
        np.testing.assert_allclose(peer.best_alphas_, chosen[number])
        theirs = peer.predict(K[np.ix_(split.test, split.train)])
        difference = pearson(values[0], Y[split.test]) - pearson(theirs, Y[split.test])
        assert np.abs(difference).max() < 1e-3


# Bands


def second_band() -> npt.NDArray[Any]:
    """Features of another scale and number, of which some sites gain."""
    rng = np.random.default_rng(7)
    return 30 * (rng.standard_normal((N, 3)) @ rng.standard_normal((3, 40)) + Y[:, :3] @ rng.standard_normal((3, 40)))


Z = second_band()
L = Z @ Z.T


def weighted(share: float) -> npt.NDArray[Any]:
    """The features side by side, the first with ``share`` of the variance of both; K of mean size."""
    bands = [X - X.mean(axis=0), Z - Z.mean(axis=0)]
    sizes = [np.linalg.eigvalsh(band @ band.T).mean() for band in bands]
    return np.hstack(
        [np.sqrt(s * np.mean(sizes) / m) * band for s, m, band in zip((share, 1 - share), sizes, bands, strict=True)]
    )


@quiet
@pytest.mark.parametrize("splits", [folds(), shuffles()], ids=["folds", "overlapping test sets"])
def test_bands_equal_scikit_learn_on_weighted_features(splits: list[Split]) -> None:
    shares, penalties = [0.9, 0.3, 0.0], [100.0, 3000.0, 1e5]
    predictions, chosen, taken = banded_ridge_predict([K, L], Y, splits, penalties, [(s, 1 - s) for s in shares])
    expected, pairs = nested_choice([weighted(share) for share in shares], Y, plain(splits), penalties)
    np.testing.assert_array_equal(chosen, pairs[:, :, 1])
    np.testing.assert_allclose(taken[:, :, 0], np.array(shares)[pairs[:, :, 0].astype(int)])
    np.testing.assert_allclose(taken.sum(axis=2), 1)
    assert len(np.unique(taken[:, :, 0])) > 1
    for values, oracle in zip(predictions.values, expected, strict=True):
        np.testing.assert_allclose(values[0], oracle, atol=1e-8)


@quiet
@pytest.mark.parametrize("share", [1.0, 0.0])
def test_a_band_alone_is_ridge_on_it(share: float) -> None:
    """Whatever the other band is; up to the scale, which the default grid follows."""
    predictions, _, taken = banded_ridge_predict([K, L], Y, SPLITS, shares=[(share, 1 - share)])
    expected, _ = ridge_predict(K if share else L, Y, SPLITS)
    for values, oracle in zip(predictions.values, expected.values, strict=True):
        np.testing.assert_allclose(values, oracle, atol=1e-7)
    assert (taken[:, :, 0] == share).all()


@quiet
def test_the_scale_of_a_band_changes_nothing() -> None:
    assert {0.0, 1.0} <= set(SHARES), "each band alone is among the choices"
    few = [(s, 1 - s) for s in (1.0, 0.6, 0.0)]
    expected, _, taken = banded_ridge_predict([K, L], Y, SPLITS, shares=few)
    predicted, _, others = banded_ridge_predict([1e-3 * K, 1e4 * L], Y, SPLITS, shares=few)
    np.testing.assert_array_equal(others, taken)
    for values, other in zip(predicted.values, expected.values, strict=True):
        np.testing.assert_allclose(values, other, atol=1e-6)


@pytest.mark.parametrize(
    ("grams", "shares", "message"),
    [
        ([K, L], [(0.5, 0.4)], "rows of 2 numbers, at least 0, of sum 1"),
        ([K, L], [(1.5, -0.5)], "of sum 1"),
        ([K, L], [(1.0,)], "rows of 2 numbers"),
        ([K, L, K], None, "shares are None; expected rows of 3 numbers"),
        ([K, L[:-1, :-1]], None, "expected one or more over the same images"),
        ([], None, "expected one or more"),
    ],
)
def test_bands_that_do_not_match_are_refused(grams: Any, shares: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        banded_ridge_predict(grams, Y, SPLITS, [1.0], shares)


@quiet
def test_agrees_with_himalaya_on_two_kernels() -> None:
    """The solution of fixed weights; himalaya has no intercept here, so that rows are centred by hand."""
    solve = pytest.importorskip("himalaya.kernel_ridge", reason="needs himalaya (benchmarks/requirements.txt)")
    share, penalty = 0.3, 1000.0
    predictions, _, _ = banded_ridge_predict([K, L], Y, SPLITS, [penalty], [(share, 1 - share)])
    sizes = [np.linalg.eigvalsh(g - g.mean(0) - g.mean(1)[:, None] + g.mean()).mean() for g in (K, L)]
    factors = np.array([share, 1 - share]) * np.mean(sizes) / sizes
    split, values = SPLITS[0], predictions.values[0][0]
    means = [one[split.train].mean(axis=0) for one in (X, Z)]
    centred = [one - mean for one, mean in zip((X, Z), means, strict=True)]
    kernels = np.array([one[split.train] @ one[split.train].T for one in centred])
    deltas = np.log(factors)[:, None] * np.ones((2, N_SITES))
    y = Y[split.train] - Y[split.train].mean(axis=0)
    weights = solve.solve_weighted_kernel_ridge_conjugate_gradient(
        kernels, y, deltas, alpha=penalty, max_iter=2000, tol=1e-12
    )
    test = sum(f * one[split.test] @ one[split.train].T for f, one in zip(factors, centred, strict=True))
    np.testing.assert_allclose(test @ weights + Y[split.train].mean(axis=0), values, atol=1e-4)


# Unique variance


@quiet
def test_unique_variance_is_the_difference_of_squared_r() -> None:
    grid = np.logspace(1, 6, 6)
    found = unique_variance(K, L, Y, SPLITS, penalties=grid, n_resamples=200)
    alone = [ridge_predict(gram, Y, SPLITS, grid)[0] for gram in (K, L)]
    both = banded_ridge_predict([K, L], Y, SPLITS, grid)[0]
    for mine, one in zip((found.first, found.second, found.both), (*alone, both), strict=True):
        r = np.mean([pearson(v[0], Y[s.test]) for v, s in zip(one.values, SPLITS, strict=True)], axis=0)
        np.testing.assert_allclose(mine, np.sign(r) * r**2, atol=1e-12)
    np.testing.assert_allclose(found.unique, found.both - found.first)
    np.testing.assert_allclose(found.unique_of_first, found.both - found.second)
    assert (found.low <= found.unique).all()
    assert (found.unique <= found.high).all()
    assert found.shares.shape == (5, N_SITES)


@quiet
def test_unique_variance_is_found_where_it_is_and_not_where_features_are_the_same() -> None:
    rng = np.random.default_rng(3)
    x, z = rng.standard_normal((2, 100, 4))
    readout = rng.standard_normal((4, 6))
    responses = np.hstack([x @ readout, (x + 2 * z) @ readout]) + 0.3 * rng.standard_normal((100, 12))
    power = (readout**2).sum(axis=0)
    true = 4 * power / (5 * power + 0.09)  # of all variance, what z explains and x does not
    splits = [Split(a, b) for a, b in KFold(5, shuffle=True, random_state=0).split(responses)]
    grid = 100 * np.logspace(-3, 1, 4)
    found = unique_variance(x @ x.T, z @ z.T, responses, splits, penalties=grid, n_resamples=300)
    assert (found.low[6:] > 0).all()
    np.testing.assert_allclose(found.unique[6:], true, atol=0.12)
    assert (found.low[6:] < true).all()
    assert (np.abs(found.unique[:6]) < 0.05).all()
    np.testing.assert_array_equal(np.isnan(found.low), (found.shares == 0).all(axis=0))
    assert found.test.n == 100
    same = unique_variance(x @ x.T, x @ x.T, responses, splits, penalties=grid, n_resamples=300)
    np.testing.assert_allclose(same.unique, 0, atol=1e-9)
    assert same.test.p > 0.5
