"""One definition of a constant site, for recordings, PLS, r and the permutation test alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cnnf_brain.checks import is_constant
from cnnf_brain.predictivity.crossval import make_splits
from cnnf_brain.predictivity.permutation import HeldOut, standardised_folds
from cnnf_brain.predictivity.pls import cross_predict
from cnnf_brain.predictivity.scores import pearson, score_predictions
from cnnf_brain.recordings import Recordings
from cnnf_brain.types import Images, Split

N = 60


def varying(size: float, offset: float = 1.0) -> npt.NDArray[Any]:
    """(N, 2) responses: a healthy site, and one that varies by ``size`` around ``offset``."""
    healthy, other = np.random.default_rng(0).uniform(0, 1, (2, N))
    other[:2] = 0, 1
    return np.stack([healthy, offset * (1 + size * other)], axis=1)


def judged(responses: npt.NDArray[Any]) -> dict[str, bool]:
    """Whether each place takes site 1 for constant."""
    images = Images(tuple(f"s{i:02}" for i in range(N)), lambda index: b"", "memory")
    everyone = np.arange(N)
    features = np.random.default_rng(1).standard_normal((N, 20))
    splits = make_splits("kfold", images.ids)
    first = cross_predict(features @ features.T, responses, splits, 3).values[0][-1]
    noise = [np.random.default_rng(2).standard_normal(responses.shape)]
    held_out = HeldOut([responses], noise, np.tile(responses[:, :1], 2), [Split(everyone, everyone)])
    fold = standardised_folds(held_out)[0]
    return {
        "recordings": "site1 (constant)" in Recordings.from_arrays(responses, images, region="IT").excluded,
        "PLS": bool((first[:, 1] == responses[splits[0].train[0], 1]).all()),
        "r": bool(np.isnan(pearson(responses, noise[0])[1])),
        "permutation": bool(np.isnan(fold.r_model[1])),
    }


@pytest.mark.parametrize("offset", [1.0, -3e5, 2e-9])
@pytest.mark.parametrize(("size", "constant"), [(0.0, True), (1e-15, True), (1e-14, True), (5e-13, True), (1e-11, False)])
def test_all_places_agree(size: float, offset: float, constant: bool) -> None:
    assert judged(varying(size, offset)) == dict.fromkeys(("recordings", "PLS", "r", "permutation"), constant)


def test_healthy_sites_are_judged_as_by_each_former_definition() -> None:
    values = np.random.default_rng(3).poisson(2.0, (N, 500)).astype(float)
    values[:, ::7] = values[0, ::7]
    values[:, 1::5] = values[:, 1::5] / 3 + 100
    deviations = np.linalg.norm(values - values.mean(axis=0), axis=0)
    former = (
        np.ptp(values, axis=0) == 0,
        deviations <= 4 * np.finfo(float).eps * np.sqrt(N) * np.abs(values).max(axis=0),
        deviations <= 1e-12 * np.linalg.norm(values, axis=0),
    )
    for definition in former:
        np.testing.assert_array_equal(is_constant(values), definition)
    assert 0 < is_constant(values).sum() < 500


def test_nan_and_zeros() -> None:
    assert is_constant(np.array([[0.0, np.nan, np.nan, 1.0, 5.0], [0.0, 1.0, np.nan, -1.0, 5.0]])).tolist() == [
        True,
        False,
        False,
        False,
        True,
    ]


def test_a_site_that_is_constant_within_a_fold_is_counted() -> None:
    responses = varying(1.0)
    features = np.random.default_rng(1).standard_normal((N, 20))
    splits = make_splits("kfold", [f"s{i:02}" for i in range(N)])
    for split in splits[3:5]:
        responses[split.test, 1] = 2.0
    scores = score_predictions(cross_predict(features @ features.T, responses, splits, 3), responses)
    assert scores.undefined_folds.tolist() == [0, 2]
    assert np.isnan(scores.r).sum() == 2
