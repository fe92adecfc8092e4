"""Several sources pooled over their sites: their sites stand side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from cnnf_brain.predictivity import permutation
from cnnf_brain.predictivity.permutation import PERMUTATION, HeldOut, permutation_over_images, widening
from cnnf_brain.predictivity.scores import score_predictions
from cnnf_brain.predictivity.statistics import (
    PAIRED,
    RESAMPLED,
    WELCH,
    WILCOXON,
    bootstrap_median_difference,
    compare_scores,
    pool_scores,
)
from cnnf_brain.types import Predictions, Scores, Split


def folds(n: int, n_splits: int = 10, seed: int = 0) -> tuple[Split, ...]:
    rows = np.random.default_rng(seed).permutation(n)
    return tuple(Split(np.setdiff1d(rows, test), np.sort(test)) for test in np.array_split(rows, n_splits))


class Source:
    """Responses, and the held-out predictions and scores of two networks."""

    def __init__(self, n: int, sites: int, seed: int, better: float = 0.0, n_splits: int = 10) -> None:
        rng = np.random.default_rng(seed)
        self.responses = rng.standard_normal((n, sites))
        self.splits = folds(n, n_splits, seed)
        both = []
        for noise in (1.0, 1.0 + better):
            values = [self.responses[s.test] + noise * rng.standard_normal((len(s.test), sites)) for s in self.splits]
            both.append(Predictions(self.splits, tuple(v[None] for v in values), (1,) * n_splits))
        self.predictions = (both[0], both[1])

    @property
    def pair(self) -> tuple[Scores, Scores]:
        model, baseline = (score_predictions(p, self.responses) for p in self.predictions)
        return model, baseline


def pooled(*sources: Source, **options: Any) -> Any:
    return compare_scores(
        [s.pair for s in sources],
        predictions=[s.predictions for s in sources],
        responses=[s.responses for s in sources],
        **({"n_resamples": 400} | options),
    )


def by_name(comparison: Any) -> dict[str, Any]:
    return {test.name: test for test in comparison.tests}


def test_scores_stand_side_by_side() -> None:
    first = Scores(np.full((10, 2), 0.1), np.array([0.1, 0.2]), np.array([0.8, 0.9]))
    second = Scores(np.full((10, 1), 0.3), np.array([0.4]), np.array([0.7]))
    found = pool_scores([first, second])
    assert np.array_equal(found.r, np.tile([0.1, 0.1, 0.3], (10, 1)))
    assert found.pooled.tolist() == [0.1, 0.2, 0.4]
    assert found.ceiling.tolist() == [0.8, 0.9, 0.7]


def test_what_one_source_lacks_the_pool_lacks() -> None:
    first = Scores(np.zeros((10, 2)), np.zeros(2), np.ones(2))
    second = Scores(np.zeros((10, 1)), None, None)
    found = pool_scores([first, second])
    assert found.pooled is None
    assert found.ceiling is None


def test_tests_over_folds_and_sites_are_scipys_on_all_sites() -> None:
    sources = Source(60, 5, seed=1, better=0.2), Source(100, 8, seed=2, better=0.2)
    found = pooled(*sources)
    model, baseline = (np.hstack([s.pair[i].r for s in sources]) for i in (0, 1))
    d = (model - baseline).mean(axis=0)
    tests = by_name(found)
    assert found.difference == pytest.approx(np.median(d), abs=1e-12)
    welch = stats.ttest_ind(np.median(model, axis=1), np.median(baseline, axis=1), equal_var=False)
    assert tests[WELCH].p == pytest.approx(welch.pvalue, rel=1e-9)
    assert tests[PAIRED].p == pytest.approx(stats.ttest_1samp(d, 0).pvalue, rel=1e-9)
    assert tests[WILCOXON].p == pytest.approx(stats.wilcoxon(d).pvalue, rel=1e-9)
    folded = np.median(model - baseline, axis=1)
    t = folded.mean() / np.sqrt((1 / 10 + 1 / 9) * folded.var(ddof=1))
    assert tests[RESAMPLED].statistic == pytest.approx(t, rel=1e-9)
    assert tests[PERMUTATION].statistic == pytest.approx(found.difference, abs=1e-12)
    assert tests[PERMUTATION].n == 160
    assert (found.low, found.high) == tests[PERMUTATION].interval
    assert (found.sites_low, found.sites_high) == bootstrap_median_difference(model, baseline, n_resamples=400)
    assert [test.name for test in found.tests] == [RESAMPLED, PERMUTATION, WELCH, PAIRED, WILCOXON]


def test_the_permutation_test_of_the_pool_agrees_with_that_of_one_experiment_with_twice_the_sites() -> None:
    # Independent images for each half of the sites: the spread of the median falls by about sqrt(2).
    both = pooled(Source(200, 20, seed=3), Source(200, 20, seed=4), n_resamples=2000)
    alone = [by_name(pooled(Source(200, 20, seed=seed), n_resamples=2000))[PERMUTATION].interval for seed in (3, 4)]
    width = np.ptp(by_name(both)[PERMUTATION].interval)
    mean_width = np.mean([np.ptp(interval) for interval in alone])
    assert width / mean_width == pytest.approx(1 / np.sqrt(2), rel=0.15)


def test_a_small_source_does_not_narrow_the_permutation_test(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each source alone is widened by sqrt(1 + 1 / 0.9): pooling it with a larger one brings no training images.
    monkeypatch.setattr(permutation, "_between_sites", lambda d, e: 0.0)
    sources = Source(300, 6, seed=5), Source(30, 6, seed=6)
    held_out = [HeldOut(*([v[-1] for v in p.values] for p in s.predictions), s.responses, s.splits) for s in sources]  # type: ignore[arg-type, call-arg]
    plain, widened = (
        permutation_over_images(held_out, for_training=training, n_resamples=400).interval for training in (False, True)
    )
    assert plain is not None
    assert widened is not None
    assert np.ptp(widened) / np.ptp(plain) == pytest.approx(np.sqrt(1 + 1 / 0.9), rel=1e-9)
    assert max(widening(s.splits, len(s.responses)) for s in sources) == pytest.approx(np.sqrt(1 + 1 / 0.9), rel=1e-9)


def test_a_clear_difference_is_found_and_its_sign_is_right() -> None:
    better = pooled(Source(150, 10, seed=7, better=1.0), Source(80, 10, seed=8, better=1.0))
    assert better.difference > 0.1
    assert all(test.p < 0.01 for test in better.tests)


def test_identical_networks_give_no_difference_and_p_1() -> None:
    one, two = Source(60, 5, seed=9), Source(40, 4, seed=10)
    for source in (one, two):
        source.predictions = (source.predictions[0], source.predictions[0])
    found = pooled(one, two)
    assert (found.difference, found.low, found.high, found.sites_low, found.sites_high) == (0, 0, 0, 0, 0)
    assert [test.p for test in found.tests] == [1.0] * 5


def test_the_same_seed_gives_the_same() -> None:
    sources = Source(60, 5, seed=11), Source(40, 4, seed=12)
    assert pooled(*sources, seed=3) == pooled(*sources, seed=3)
    assert by_name(pooled(*sources, seed=3))[PERMUTATION] != by_name(pooled(*sources, seed=4))[PERMUTATION]


def test_a_site_without_r_is_left_out_of_everything() -> None:
    one, two = Source(60, 5, seed=13), Source(40, 4, seed=14)
    for values in one.predictions[0].values:
        values[..., 2] = 1.5  # the model's predictions of one site are constant
    found = pooled(one, two)
    keep = np.array([0, 1, 3, 4])
    one.responses = one.responses[:, keep]
    one.predictions = tuple(Predictions(p.splits, tuple(v[..., keep] for v in p.values), p.ranks) for p in one.predictions)  # type: ignore[assignment]
    without = pooled(one, two)
    assert found.difference == pytest.approx(without.difference, abs=1e-12)
    assert [t.p for t in found.tests] == pytest.approx([t.p for t in without.tests], abs=1e-9)


def test_tests_over_sites_need_two_sites() -> None:
    one, two = Source(60, 1, seed=15), Source(40, 1, seed=16)
    for values in two.predictions[1].values:
        values[...] = 0.0
    found = pooled(one, two)
    assert set(by_name(found)) == {WELCH, RESAMPLED, PERMUTATION}
    assert np.isnan([found.sites_low, found.sites_high]).all()
    assert found.low < found.difference < found.high
    for values in one.predictions[1].values:
        values[...] = 0.0
    with pytest.raises(ValueError, match="none of the 2 sites has an r of both"):
        pooled(one, two)


def test_sources_of_unequal_splits_are_refused() -> None:
    with pytest.raises(ValueError, match="sources with 5 and 10 splits cannot be pooled"):
        pooled(Source(60, 3, seed=17), Source(60, 3, seed=18, n_splits=5))
