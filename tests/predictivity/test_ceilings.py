"""Reliability and r² with expected responses: literal versions, simulated truth, what is left out."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cnnf_brain.predictivity.ceilings import explained_r2, reliability
from cnnf_brain.predictivity.scores import split_half_ceiling

RNG = np.random.default_rng(0)


def drawn(n: int, sites: int, k: int, noise: float, seed: int = 0) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Expected responses (n, sites) of variance 1 over these images, and repeats."""
    rng = np.random.default_rng(seed)
    expected = rng.standard_normal((n, sites))
    expected = (expected - expected.mean(axis=0)) / expected.std(axis=0, ddof=1)
    return expected, expected[..., None] + noise * rng.standard_normal((n, sites, k))


def halvings(values: npt.NDArray[Any]) -> list[tuple[float, float]]:
    """The means of both halves, for every way to halve the repeats of one image."""
    some = [set(one) for one in itertools.combinations(range(len(values)), len(values) // 2)]
    return [(values[[*one]].mean(), values[[*set(range(len(values))) - one]].mean()) for one in some]


def test_reliability_is_that_over_all_halvings() -> None:
    repeats = RNG.standard_normal((4, 1, 4)) + np.arange(4)[:, None, None]
    covariances, variances = [], []
    for chosen in itertools.product(*(halvings(one) for one in repeats[:, 0])):  # 6^4 of them
        a, b = np.array(chosen).T
        covariances.append(np.cov(a, b)[0, 1])
        variances.append((a.var(ddof=1) + b.var(ddof=1)) / 2)
    r = np.mean(covariances) / np.mean(variances)
    assert reliability(repeats).value[0] == pytest.approx(2 * r / (1 + r), rel=1e-12)


def test_it_agrees_with_random_halvings() -> None:
    _, repeats = drawn(300, 6, 6, noise=1.5)
    repeats[:100, :, 4:] = np.nan
    assert np.allclose(reliability(repeats).value, split_half_ceiling(repeats, n_halves=40), atol=0.015)


def test_r2_is_that_of_pospisil_and_bair() -> None:
    expected, repeats = drawn(40, 3, 5, noise=1.0)
    predictions = 3 + expected + RNG.standard_normal(expected.shape)
    found = explained_r2(predictions, repeats)
    for site in range(3):  # their formula as it is printed, of m images and n repeats
        x, y = predictions[:, site], repeats[:, site].mean(axis=1)
        x, y = x - x.mean(), y - y.mean()
        m, n, variance = 40, 5, repeats[:, site].var(axis=1, ddof=1).mean()
        numerator = (x @ y) ** 2 - variance / n * (x @ x)
        denominator = (x @ x) * (y @ y - (m - 1) * variance / n)
        assert found.value[site] == pytest.approx(numerator / denominator, rel=1e-12)


@pytest.mark.parametrize("noise", [0.7, 1.3])
def test_intervals_hold_the_truth_as_often_as_they_say(noise: float) -> None:
    sites, k = 1500, 3
    expected, repeats = drawn(120, sites, k, noise)
    own = np.linspace(0.5, 1.5, 120)[:, None]  # the noise of each image
    repeats = expected[..., None] + own[..., None] * (repeats - expected[..., None])
    predictions = expected + RNG.standard_normal(expected.shape)
    truth = 1 / (1 + noise**2 * np.mean(own**2) / k)
    r2 = np.array([np.corrcoef(x, y)[0, 1] for x, y in zip(predictions.T, expected.T, strict=True)]) ** 2
    for found, true in ((reliability(repeats), truth), (explained_r2(predictions, repeats), r2)):
        covered = np.mean((found.low <= true) & (true <= found.high))
        assert 0.93 <= covered <= 0.97  # 95% has a standard error of 0.6% here
        assert np.nanmean(found.value - true) == pytest.approx(0, abs=0.02), "no bias"


def test_images_with_one_repeat_take_no_part() -> None:
    expected, repeats = drawn(50, 4, 3, noise=1.0)
    predictions = expected + RNG.standard_normal(expected.shape)
    repeats[40:, :, 1:] = np.nan
    repeats[30:, 1, 1:] = np.nan
    for one, other in zip(
        (reliability(repeats), explained_r2(predictions, repeats)),
        (reliability(repeats[:40]), explained_r2(predictions[:40], repeats[:40])),
        strict=True,
    ):
        assert np.allclose(one, other, rtol=1e-12)
    alone = explained_r2(predictions[:30, 1:2], repeats[:30, 1:2])
    assert np.allclose(np.ravel(alone), np.array(explained_r2(predictions, repeats))[:, 1])


def test_where_there_is_nothing() -> None:
    expected, repeats = drawn(20, 3, 4, noise=0.0)
    repeats[:, 1] = 2.0  # constant
    repeats[2:, 2, 1:] = np.nan  # two images are left
    found = reliability(repeats)
    assert found.value[0] == 1
    assert np.isnan(found.value[1:]).all()
    assert np.isnan(explained_r2(np.ones((20, 3)), repeats).value).all()
    noise = np.random.default_rng(1).standard_normal((200, 50, 4))
    assert reliability(noise).value.min() < 0
    with pytest.raises(ValueError, match=r"predictions have shape \(20, 2\), repeats \(20, 3, 4\)"):
        explained_r2(expected[:, :2], repeats)
    with pytest.raises(ValueError, match=r"expected \(n_images, n_sites, n_repeats\)"):
        reliability(expected)
