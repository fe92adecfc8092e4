"""Correlations, ceilings and what is made of them, against scipy, loops and simulations of known reliability."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats

from cnnf_brain.predictivity.scores import (
    brainscore_ceiled,
    brainscore_r,
    ceiled,
    median_r,
    pearson,
    score_predictions,
    site_r,
    split_half_ceiling,
)
from cnnf_brain.types import Predictions, Scores, Split


def test_pearson_equals_scipy() -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 30, 4)) + 100.0
    expected = [scipy.stats.pearsonr(a[:, site], b[:, site])[0] for site in range(4)]
    np.testing.assert_allclose(pearson(a, b), expected, rtol=1e-10)


def test_pearson_is_exactly_one_at_most() -> None:
    a = np.random.default_rng(1).standard_normal((40, 200))
    r = pearson(a, 3 * a + 1)
    assert r.max() <= 1.0
    np.testing.assert_allclose(r, 1.0, rtol=1e-12)
    np.testing.assert_allclose(pearson(a, -a), -1.0, rtol=1e-12)


def test_pearson_of_constants_is_nan() -> None:
    a = np.random.default_rng(2).standard_normal((30, 3))
    b = a.copy()
    b[:, 0] = 0.0
    b[:, 1] = 0.1 + 1e-18 * np.arange(30)  # a constant but for rounding
    r = pearson(a, b)
    assert np.isnan(r).tolist() == [True, True, False]


@pytest.mark.parametrize("n", [1, 2])
def test_two_images_have_no_correlation(n: int) -> None:
    a, b = np.random.default_rng(2).standard_normal((2, 3, 4))
    assert np.isnan(pearson(a[:n], b[:n])).all()
    assert np.isfinite(pearson(a, b)).all()


def test_pearson_refuses_arrays_that_do_not_match() -> None:
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(3, 1\)"):
        pearson(np.zeros((3, 2)), np.zeros((3, 1)))


def held_out(n_test: int, n_components: int = 3) -> tuple[Predictions, npt.NDArray[Any]]:
    """Predictions of 4 folds of n_test images for 5 sites; site 4 responds alike to every image."""
    rng = np.random.default_rng(3)
    rows = np.arange(4 * n_test)
    responses = rng.standard_normal((len(rows), 5))
    responses[:, 4] = 2.5
    folds = tuple(Split(np.setdiff1d(rows, test), test) for test in np.split(rng.permutation(rows), 4))
    values = tuple(responses[f.test] + 0.5 * rng.standard_normal((n_components, n_test, 5)) for f in folds)
    return Predictions(folds, values, (n_components,) * 4), responses


def test_r_of_each_site_and_split() -> None:
    predictions, responses = held_out(25)
    scores = score_predictions(predictions, responses)
    assert scores.r.shape == (4, 5)
    assert scores.pooled is None
    assert scores.ceiling is None
    for split in range(4):
        observed = responses[predictions.splits[split].test]
        for site in range(4):
            expected = scipy.stats.pearsonr(predictions.values[split][2, :, site], observed[:, site])[0]
            assert scores.r[split, site] == pytest.approx(expected, rel=1e-12)
    assert np.isnan(scores.r[:, 4]).all()


def test_splits_without_an_r_are_counted() -> None:
    predictions, responses = held_out(25)
    responses[predictions.splits[2].test, 1] = 7.0
    predictions.values[0][-1, :, 3] = -0.2
    predictions.values[2][-1, :, 3] = 0.4
    assert score_predictions(predictions, responses).undefined_folds.tolist() == [0, 1, 0, 2, 4]


def test_number_of_components_is_chosen() -> None:
    predictions, responses = held_out(25)
    first = score_predictions(predictions, responses, n_components=1).r[0, 0]
    observed = responses[predictions.splits[0].test, 0]
    assert first == pytest.approx(scipy.stats.pearsonr(predictions.values[0][0, :, 0], observed)[0], rel=1e-12)
    with pytest.raises(ValueError, match="hold 1 to 3 components, not 4"):
        score_predictions(predictions, responses, n_components=4)


def test_small_folds_are_pooled() -> None:
    predictions, responses = held_out(19)
    pooled = score_predictions(predictions, responses).pooled
    predicted = np.full(responses.shape, np.nan)
    for split, values in zip(predictions.splits, predictions.values, strict=True):
        predicted[split.test] = values[-1]  # back in the order of the images
    assert pooled is not None
    for site in range(4):
        assert pooled[site] == pytest.approx(scipy.stats.pearsonr(predicted[:, site], responses[:, site])[0], rel=1e-12)
    assert np.isnan(pooled[4])
    assert score_predictions(held_out(20)[0], held_out(20)[1]).pooled is None


def test_shapes_that_do_not_match_are_refused() -> None:
    predictions, responses = held_out(19)
    with pytest.raises(ValueError, match=r"shape \(76, 4\); expected \(n_images, 5\)"):
        score_predictions(predictions, responses[:, :4])
    with pytest.raises(ValueError, match=r"repeats have shape \(76, 4, 2\); expected \(76, 5, 'n_repeats'\)"):
        score_predictions(predictions, responses, repeats=np.zeros((76, 4, 2)))


def naive_ceiling(repeats: npt.NDArray[Any], n_halves: int, seed: int) -> npt.NDArray[Any]:
    """Loops over halves, sites and images, with halves of its own making."""
    rng = np.random.default_rng(seed)
    ceilings = np.zeros((n_halves, repeats.shape[1]))
    for half in range(n_halves):
        for site in range(repeats.shape[1]):
            first, second = [], []
            for image in range(len(repeats)):
                there = [value for value in repeats[image, site] if not np.isnan(value)]
                if len(there) >= 2:
                    rng.shuffle(there)
                    first.append(np.mean(there[: len(there) // 2]))
                    second.append(np.mean(there[len(there) // 2 :]))
            r = scipy.stats.pearsonr(first, second)[0]
            ceilings[half, site] = 2 * r / (1 + r)
    return ceilings.mean(axis=0)


def recorded(n_images: int, n_repeats: int, noise: npt.NDArray[Any], seed: int = 0) -> npt.NDArray[Any]:
    """(n_images, n_sites, n_repeats) of unit signal variance and given noise."""
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((n_images, len(noise), 1))
    return signal + noise[None, :, None] * rng.standard_normal((n_images, len(noise), n_repeats))


def test_two_repeats_have_a_single_split() -> None:
    repeats = recorded(50, 2, np.array([0.5, 1.0, 2.0]))
    ours = split_half_ceiling(repeats, n_halves=200)
    # which half is first is chance, and hardly matters to r
    r = [scipy.stats.pearsonr(*repeats[:, site].T)[0] for site in range(3)]
    np.testing.assert_allclose(ours, [2 * x / (1 + x) for x in r], atol=0.02)


@pytest.mark.parametrize(
    ("ragged", "n_repeats"),
    [
        ("none", 4),
        ("alike", 4),
        ("by site", 5),
        *(pytest.param(*more, marks=pytest.mark.slow) for more in (("none", 5), ("alike", 5), ("by site", 4))),
    ],
)
def test_ceiling_equals_a_naive_loop(ragged: Any, n_repeats: Any) -> None:
    repeats = recorded(40, n_repeats, np.array([0.5, 1.0]))
    missing = np.random.default_rng(4).random(repeats.shape) < 0.4
    if ragged == "alike":
        missing[:] = missing[:, :1]
    if ragged != "none":
        repeats[missing] = np.nan
        assert ((~missing).sum(axis=2) == 1).any()  # images that take no part
    ours = split_half_ceiling(repeats, n_halves=200)
    np.testing.assert_allclose(ours, naive_ceiling(repeats, 200, seed=5), atol=0.02)


@pytest.mark.parametrize("padding", [0, 3])
def test_ceiling_meets_the_known_reliability(padding: int) -> None:
    noise = np.array([0.5, 1.0, 2.0])
    repeats = recorded(4000, 8, noise)
    repeats = np.concatenate([repeats, np.full((*repeats.shape[:2], padding), np.nan)], axis=2)
    known = 1 / (1 + noise**2 / 8)  # signal variance over variance of the mean of 8
    np.testing.assert_allclose(split_half_ceiling(repeats), known, atol=0.02)


def test_ceiling_depends_on_the_seed_alone() -> None:
    repeats = recorded(40, 6, np.array([1.0]))
    assert split_half_ceiling(repeats, seed=1) == split_half_ceiling(repeats, seed=1)
    assert split_half_ceiling(repeats, seed=1) != split_half_ceiling(repeats, seed=2)


def test_images_with_one_repeat_take_no_part() -> None:
    repeats = recorded(60, 4, np.array([1.0, 1.0]))
    repeats[40:, :, 1:] = np.nan
    expected = split_half_ceiling(repeats)
    repeats[40:, :, 0] = 1e6
    np.testing.assert_array_equal(split_half_ceiling(repeats), expected)


def test_ceiling_without_repeats_is_nan() -> None:
    repeats = recorded(30, 3, np.array([1.0, 1.0]))
    repeats[2:, 0, 1:] = np.nan  # two images of site 0 have repeats
    repeats[:, 1] = 3.0
    assert np.isnan(split_half_ceiling(repeats)).all()
    with pytest.raises(ValueError, match=r"shape \(30, 2\); expected \(n_images, n_sites, n_repeats\)"):
        split_half_ceiling(repeats[:, :, 0])


def test_scores_carry_the_ceiling() -> None:
    predictions, responses = held_out(25)
    repeats = responses[:, :, None] + np.random.default_rng(6).standard_normal((100, 5, 4))
    scores = score_predictions(predictions, responses, repeats=repeats, seed=7)
    np.testing.assert_array_equal(scores.ceiling, split_half_ceiling(repeats, seed=7))  # type: ignore[arg-type]


R = np.array([[0.2, 0.4, 0.9, np.nan], [0.4, 0.6, np.nan, np.nan]])
SCORES = Scores(R, None, np.array([0.5, 0.8, 0.9, 0.7]))


def test_aggregates_by_hand() -> None:
    np.testing.assert_allclose(site_r(SCORES), [0.3, 0.5, 0.9, np.nan])
    assert median_r(SCORES) == pytest.approx(0.5)
    assert brainscore_r(SCORES) == pytest.approx((0.4 + 0.5) / 2)
    assert brainscore_ceiled(SCORES) == pytest.approx(0.45**2 / 0.75)
    assert brainscore_ceiled(SCORES, "(r/ceiling)2") == pytest.approx((0.45 / 0.75) ** 2)


def test_ceiled_reproduces_published_brain_score_numbers() -> None:
    # VGG-16 on MajajHong2015: raw r .7087 (V4), .5886 (IT); ceilings .89503, .82184; scores of both versions
    np.testing.assert_allclose(ceiled([0.7087, 0.5886], [0.89503, 0.82184]), [0.561, 0.422], atol=5e-4)
    both = ceiled([0.7087, 0.5886], [0.89503, 0.82184], "(r/ceiling)2")
    np.testing.assert_allclose(both, [0.627, 0.513], atol=5e-4)


def test_ceiled_without_a_ceiling() -> None:
    assert np.isnan(ceiled(0.5, [0.0, -0.3, np.nan])).all()
    with pytest.raises(ValueError, match=r"ceiled score 'r2' is not known.*r2/ceiling"):
        ceiled(0.5, 0.8, "r2")
    with pytest.raises(ValueError, match="hold no repeats; report r alone"):
        brainscore_ceiled(Scores(R, None, None))


def test_nothing_but_nan_stays_nan_without_warnings() -> None:
    empty = Scores(np.full((2, 3), np.nan), None, np.full(3, np.nan))
    assert np.isnan(site_r(empty)).all()
    assert np.isnan([median_r(empty), brainscore_r(empty), brainscore_ceiled(empty)]).all()
