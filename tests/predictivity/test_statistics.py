"""The tests of a difference in predictivity, against scipy, enumeration and simulation."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cnnf_brain.predictivity import statistics
from cnnf_brain.predictivity.hierarchy import HIERARCHICAL
from cnnf_brain.predictivity.permutation import PERMUTATION, HeldOut, permutation_over_images, standardised_folds
from cnnf_brain.predictivity.statistics import RESAMPLED, TESTS, WELCH
from cnnf_brain.types import Difference, Predictions, Scores, Split, TestResult

RNG = np.random.default_rng(0)
R_MODEL, R_BASELINE = RNG.normal(0.5, 0.1, (10, 7)), RNG.normal(0.45, 0.1, (10, 7))


def folds_of(n: Any, n_splits: Any, seed: int = 0) -> Any:
    rows = np.random.default_rng(seed).permutation(n)
    return tuple(Split(np.setdiff1d(rows, test), np.sort(test)) for test in np.array_split(rows, n_splits))


def held_out(n: int = 40, q: int = 5, n_splits: int = 4, seed: int = 0, difference: float = 0.0) -> Any:
    """Responses and noisy predictions of them by two networks, and r by numpy."""
    rng = np.random.default_rng(seed)
    responses = rng.normal(size=(n, q))
    splits = folds_of(n, n_splits)
    noise = (1.0, 1.0 + difference)
    predictions = [[responses[s.test] + sd * rng.normal(size=(len(s.test), q)) for s in splits] for sd in noise]
    return predictions[0], predictions[1], responses, splits


def r_of(predictions: Any, responses: Any, splits: Any) -> Any:
    return np.array(
        [
            [np.corrcoef(p[:, j], responses[s.test, j])[0, 1] for j in range(responses.shape[1])]
            for p, s in zip(predictions, splits, strict=True)
        ]
    )


def compared(model: Any, baseline: Any, responses: Any, splits: Any, **options: Any) -> Any:
    r = [Scores(r_of(p, responses, splits), None, None) for p in (model, baseline)]
    two = [Predictions(splits, tuple(p[None] for p in one), (1,) * len(splits)) for one in (model, baseline)]
    return compare_one(r, two, responses, **{"n_resamples": 500, **options})


def compare_one(scores: Any, predictions: Any, responses: Any, **options: Any) -> Any:
    """compare_scores of a single source."""
    return statistics.compare_scores([tuple(scores)], predictions=[tuple(predictions)], responses=[responses], **options)


def permuted(model: Any, baseline: Any, responses: Any, splits: Any, **options: Any) -> Any:
    """permutation_over_images of a single source."""
    return permutation_over_images([HeldOut(model, baseline, responses, splits)], **options)


class TestOverFolds:
    def test_welch_is_scipys_on_the_medians(self) -> None:
        result = statistics.welch_over_folds(R_MODEL, R_BASELINE)
        expected = stats.ttest_ind(np.median(R_MODEL, 1), np.median(R_BASELINE, 1), equal_var=False)
        interval = expected.confidence_interval()
        assert (result.statistic, result.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-12)
        assert result.df == pytest.approx(expected.df, rel=1e-12)
        assert result.interval == pytest.approx((interval.low, interval.high), rel=1e-10)
        assert result.n == 10

    @pytest.mark.parametrize(("t", "p", "df", "ratio"), [(10.62, 7.11e-9, 16.82, 1.31), (7.89, 4.28e-7, 17.07, 1.27)])
    def test_welch_gives_the_papers_p(self, t: float, p: float, df: float, ratio: float) -> None:
        """Its t and p for V4 and IT imply these df: ten folds each, standard deviations in these ratios."""
        z = stats.zscore(RNG.normal(size=10), ddof=1)
        baseline = 0.5 + 0.01 * z
        shift = t * 0.01 * np.sqrt((1 + ratio**2) / 10)
        model = 0.5 + shift + 0.01 * ratio * z[::-1]
        result = statistics.welch_over_folds(model[:, None], baseline[:, None])
        assert result.statistic == pytest.approx(t, rel=1e-9)
        assert result.df == pytest.approx(df, abs=0.05)
        assert result.p == pytest.approx(p, rel=0.02)

    def test_corrected_t_by_hand(self) -> None:
        """d = 1, 2, 3, 6 (hundredths): mean 3, variance 14 / 3, 1 / J + n_test / n_train = 1 / 4 + 1 / 3."""
        d = np.array([0.01, 0.02, 0.03, 0.06])[:, None]
        result = statistics.corrected_resampled_t(0.5 + d, np.full((4, 1), 0.5), 25, 75)
        t = 3 / np.sqrt(7 / 12 * 14 / 3)
        assert result.statistic == pytest.approx(t, rel=1e-9)
        assert (result.df, result.n) == (3, 4)
        assert result.p == pytest.approx(2 * (1 - stats.t.cdf(t, 3)), rel=1e-9)

    def test_corrected_t_without_overlap_is_the_paired_t_of_median_differences(self) -> None:
        result = statistics.corrected_resampled_t(R_MODEL, R_BASELINE, 1e-12, 1)
        expected = stats.ttest_1samp(np.median(R_MODEL - R_BASELINE, axis=1), 0)
        assert (result.statistic, result.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)

    @pytest.mark.parametrize(
        "test",
        [statistics.welch_over_folds, lambda m, b: statistics.corrected_resampled_t(m, b, 1, 9)],
        ids=["welch", "corrected"],
    )
    def test_needs_two_folds(self, test: Any) -> None:
        with pytest.raises(ValueError, match="at least two folds"):
            test(R_MODEL[:1], R_BASELINE[:1])
        assert 0 < test(R_MODEL[:2], R_BASELINE[:2]).p < 1

    def test_numbers_of_images_must_be_positive(self) -> None:
        with pytest.raises(ValueError, match="n_train = 0"):
            statistics.corrected_resampled_t(R_MODEL, R_BASELINE, 10, 0)


class TestOverSites:
    def test_paired_t_is_scipys(self) -> None:
        result = statistics.paired_t_over_sites(R_MODEL, R_BASELINE)
        expected = stats.ttest_rel(R_MODEL.mean(0), R_BASELINE.mean(0))
        interval = expected.confidence_interval()
        assert (result.statistic, result.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-10)
        assert result.interval == pytest.approx((interval.low, interval.high), rel=1e-10)
        assert (result.df, result.n) == (6, 7)

    def test_wilcoxon_by_enumerating_all_signs(self) -> None:
        d = np.array([0.9, -0.1, 0.5, 0.3, -0.2, 0.8])
        result = statistics.wilcoxon_over_sites(d[None], np.zeros((1, 6)))
        ranks = stats.rankdata(np.abs(d))
        sums = np.array([ranks @ np.array(signs) for signs in itertools.product([0, 1], repeat=6)])
        smaller = min(ranks[d < 0].sum(), ranks[d > 0].sum())
        assert result.statistic == smaller == 3
        assert result.p == pytest.approx(2 * np.mean(sums <= smaller))

    def test_wilcoxon_leaves_equal_sites_out(self) -> None:
        d = np.array([[0.9, 0.0, -0.1, 0.5, 0.3, -0.2, 0.0, 0.8]])
        with_ties = statistics.wilcoxon_over_sites(d, np.zeros_like(d))
        without = statistics.wilcoxon_over_sites(d[:, d[0] != 0], np.zeros((1, 6)))
        assert with_ties.p == without.p

    @pytest.mark.parametrize(
        "test",
        [
            statistics.paired_t_over_sites,
            statistics.wilcoxon_over_sites,
            statistics.bootstrap_median_difference,
        ],
    )
    def test_needs_two_sites(self, test: Any) -> None:
        with pytest.raises(ValueError, match="at least two sites with a defined r, got 1"):
            test(R_MODEL[:, :1], R_BASELINE[:, :1])

    def test_bootstrap_agrees_with_scipys(self) -> None:
        d = RNG.normal(0.02, 0.05, 60)
        ours = statistics.bootstrap_median_difference(d[None], np.zeros((1, 60)), n_resamples=20_000)
        theirs = stats.bootstrap((d,), np.median, n_resamples=20_000, method="percentile", random_state=1)
        gap = np.diff(np.sort(d)[18:42]).max()  # both pick order statistics, at most one apart by chance
        assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=gap)

    def test_bootstrap_covers_the_population_median(self) -> None:
        """Skewed differences of 40 sites, 400 times: the interval holds the true median in about 95%."""
        d = np.random.default_rng(3).exponential(size=(400, 1, 40))
        hits = 0
        for seed, one in enumerate(d):
            low, high = statistics.bootstrap_median_difference(one, 0 * one, n_resamples=400, seed=seed)
            hits += low <= np.log(2) <= high
        assert stats.binom.ppf(0.001, 400, 0.94) <= hits <= stats.binom.ppf(0.999, 400, 0.96)

    def test_bootstrap_is_seeded_and_checked(self) -> None:
        many = RNG.normal(size=(2, 101)), np.zeros((2, 101))
        once, again, other = (statistics.bootstrap_median_difference(*many, n_resamples=99, seed=s) for s in (1, 1, 2))
        assert once == again != other
        low, high = statistics.bootstrap_median_difference(R_MODEL, R_BASELINE)
        assert low < np.median((R_MODEL - R_BASELINE).mean(0)) < high
        with pytest.raises(ValueError, match="n_resamples must be at least 1, got 0"):
            statistics.bootstrap_median_difference(R_MODEL, R_BASELINE, n_resamples=0)


def literal_permutations(model: Any, baseline: Any, responses: Any, splits: Any, n: Any) -> Any:
    """(2^n, n_sites) mean over splits of the difference in r, every permutation of n images written out."""
    scale = [[(p - p.mean(0)) / p.std(0) for p in one] for one in (model, baseline)]
    differences = []
    for coins in itertools.product([False, True], repeat=n):
        exchanged = [
            [np.where(np.array(coins)[s.test, None], q, p) for p, q, s in zip(*pair, splits, strict=True)]
            for pair in (scale, scale[::-1])
        ]
        a, b = (r_of(one, responses, splits) for one in exchanged)
        differences.append((a - b).mean(axis=0))
    return np.array(differences)


class TestPermutation:
    # Two folds; and two overlapping test sets: images 2 and 3 are tested twice, 8 and 9 never.
    OVERLAPPING = (Split(np.arange(4, 10), np.arange(4)), Split(np.r_[0, 1, 6:10], np.arange(2, 6)))
    CASES = ((folds_of(8, 2), 8, 8 / 4), (OVERLAPPING, 10, 1 / (12 / 8**2) / 6))  # splits, n, n_eff / n_train

    def draw(self, splits: Any, n: Any) -> Any:
        rng = np.random.default_rng(5)
        responses = rng.normal(size=(n, 3))
        noisy = [
            [responses[s.test] + np.array(sd) * rng.normal(size=(4, 3)) for s in splits]
            for sd in ([0.2, 0.8, 2], [2, 0.6, 0.4])
        ]
        return noisy[0], [7 + 3 * p for p in noisy[1]], responses  # another scale

    @pytest.mark.parametrize(("splits", "n", "share"), CASES)
    def test_sums_equal_literal_permutations(self, splits: Any, n: Any, share: Any) -> None:
        model, baseline, responses = self.draw(splits, n)
        coins = np.array(list(itertools.product([0.0, 1.0], repeat=n)))
        folds = standardised_folds(HeldOut(model, baseline, responses, splits))
        fast = np.mean([fold.difference(coins) for fold in folds], axis=0)
        np.testing.assert_allclose(fast, literal_permutations(model, baseline, responses, splits, n), atol=1e-12)

    @pytest.mark.parametrize(("splits", "n", "share"), CASES)
    @pytest.mark.parametrize("for_training", [True, False])
    def test_p_and_interval_by_enumeration(self, splits: Any, n: Any, share: Any, for_training: bool) -> None:
        model, baseline, responses = self.draw(splits, n)
        result = permuted(model, baseline, responses, splits, for_training=for_training, n_resamples=40_000)
        e = literal_permutations(model, baseline, responses, splits, n)
        d = e[0]
        if for_training:
            shrinking = np.sqrt(max(0, 1 - np.mean(np.var(e, axis=1)) / np.var(d)))
            deviations = np.median(shrinking * (d - np.median(d)) + np.sqrt(1 + share) * e, axis=1)
            assert 0.1 < shrinking < 0.9
        else:
            deviations = np.median(e, axis=1)
        exact = np.mean(np.abs(deviations) >= abs(np.median(d)) - 1e-12)
        assert result.statistic == pytest.approx(np.median(d), abs=1e-12)
        assert 0.01 < exact < 0.99  # else the next line says little
        assert result.p == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 40_000))
        half = np.quantile(np.abs(deviations), [0.93, 0.97])
        assert half[0] <= result.statistic - result.interval[0] <= half[1]
        assert half[0] <= result.interval[1] - result.statistic <= half[1]

    def test_the_plain_test_is_exact_where_predictions_are_exchangeable(self) -> None:
        """Predictions that are not fitted at all: test images are the only source of chance."""
        p = [permuted(*held_out(seed=s), for_training=False, n_resamples=99).p for s in range(300)]
        assert stats.kstest(p, "uniform").pvalue > 0.001

    def test_it_is_symmetric_seeded_and_blind_to_scale(self) -> None:
        model, baseline, responses, splits = held_out(difference=0.3)
        result = permuted(model, baseline, responses, splits, n_resamples=300, seed=1)
        mirrored = permuted(baseline, model, responses, splits, n_resamples=300, seed=1)
        scaled = permuted(model, [9 + 0.01 * p for p in baseline], responses, splits, n_resamples=300, seed=1)
        assert mirrored.statistic == -result.statistic
        assert mirrored.p == scaled.p == result.p
        assert result == permuted(model, baseline, responses, splits, n_resamples=300, seed=1)

    def test_p_is_at_least_one_over_one_more_than_the_resamples(self) -> None:
        model, baseline, responses, splits = held_out(n=200, difference=30)
        assert permuted(model, baseline, responses, splits, n_resamples=99).p == 1 / 100

    def test_a_site_that_is_undefined_in_a_fold_counts_in_the_others(self) -> None:
        model, baseline, responses, splits = held_out(difference=0.5)
        r = [r_of(p, responses, splits) for p in (model, baseline)]
        model[1][:, 2] = np.nan
        baseline[3][:, 0] = 0.3
        d = r[0] - r[1]
        d[1, 2] = d[3, 0] = np.nan
        result = permuted(model, baseline, responses, splits, n_resamples=10)
        assert result.statistic == pytest.approx(np.median(np.nanmean(d, axis=0)), abs=1e-12)

    def test_wrong_shapes_say_what_was_expected(self) -> None:
        model, baseline, responses, splits = held_out()
        with pytest.raises(ValueError, match=r"split 0: .*\(10, 4\).*expected \(n_test, n_sites\) = \(10, 5\)"):
            permuted([p[:, :4] for p in model], baseline, responses, splits)
        with pytest.raises(ValueError, match="one per split"):
            permuted(model[:-1], baseline, responses, splits)
        with pytest.raises(ValueError, match="a row for every test image"):
            permuted(model, baseline, responses[:10], splits)
        with pytest.raises(ValueError, match="n_resamples must be at least 1"):
            permuted(model, baseline, responses, splits, n_resamples=0)
        with pytest.raises(ValueError, match="no site has"):
            permuted([0 * p for p in model], baseline, responses, splits)


class TestHolm:
    @pytest.mark.parametrize("seed", range(5))
    def test_is_the_closed_test_of_bonferroni(self, seed: int) -> None:
        """A hypothesis falls where every intersection that holds it falls: p = max of |I| min p over sets I."""
        p = np.random.default_rng(seed).uniform(0, 0.4, 5).round(1 if seed == 0 else 6)  # seed 0: with ties
        sets = [s for size in range(1, 6) for s in itertools.combinations(range(5), size)]
        closed = [max(min(1, len(s) * p[list(s)].min()) for s in sets if i in s) for i in range(5)]
        np.testing.assert_allclose(statistics.holm(p), closed)  # type: ignore[arg-type]

    def test_by_hand_and_limits(self) -> None:
        np.testing.assert_allclose(statistics.holm([0.04, 0.01, 0.03]), [0.06, 0.03, 0.06])
        assert statistics.holm([]).shape == (0,)
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            statistics.holm([0.1, float("nan")])
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            statistics.holm([0.1, 1.2])


class TestCompare:
    def test_holds_every_test_and_the_estimate(self) -> None:
        case = held_out(n=60, n_splits=5, difference=0.4)
        comparison = compared(*case)
        model, baseline = (r_of(p, *case[2:]) for p in case[:2])
        assert comparison.difference == pytest.approx(np.median((model - baseline).mean(0)), abs=1e-12)
        assert (comparison.sites_low, comparison.sites_high) == pytest.approx(
            statistics.bootstrap_median_difference(model, baseline, n_resamples=500), abs=1e-12
        )
        by_name = {test.name: test for test in comparison.tests}
        assert (comparison.low, comparison.high) == by_name[PERMUTATION].interval
        assert comparison.low + comparison.high == pytest.approx(2 * comparison.difference, abs=1e-12)
        assert set(by_name) == set(TESTS) - {statistics.BOOTSTRAP, statistics.OVER_IMAGES, HIERARCHICAL}
        d = np.median(model - baseline, axis=1)
        t = d.mean() / np.sqrt((1 / 5 + 12 / 48) * d.var(ddof=1))
        assert by_name[RESAMPLED].statistic == pytest.approx(t, rel=1e-9)
        assert by_name[PERMUTATION].statistic == pytest.approx(comparison.difference, abs=1e-12)

    def test_the_tests_that_are_valid_for_new_images_stand_first(self) -> None:
        names = [test.name for test in compared(*held_out(difference=0.4)).tests]
        assert names == [RESAMPLED, PERMUTATION, WELCH, statistics.PAIRED, statistics.WILCOXON]
        assert [TESTS[name].valid for name in names] == [True, True, False, False, False]

    def test_the_interval_excludes_0_where_the_permutation_test_rejects(self) -> None:
        """Equally good networks whose errors are shared by all sites: the interval over sites excludes 0 far more often."""
        decided = []
        for seed in range(40):
            rng, splits = np.random.default_rng(seed), folds_of(60, 5)
            common, error, other = rng.normal(size=(3, 60, 1))
            responses = common + 0.5 * rng.normal(size=(60, 12))
            predictions = [[(responses + noise)[s.test] for s in splits] for noise in (error, other)]
            found = compared(*predictions, responses, splits)  # type: ignore[call-arg]
            p = next(test.p for test in found.tests if test.name == PERMUTATION)
            decided.append((p < 0.05, not found.low <= 0 <= found.high, not found.sites_low <= 0 <= found.sites_high))
        permutation, images, sites = np.transpose(decided)
        assert (images == permutation).all()
        assert images.sum() <= stats.binom.ppf(0.999, 40, 0.05) < sites.sum()

    def test_identical_networks(self) -> None:
        model, _, responses, splits = held_out()
        comparison = compared(model, model, responses, splits)
        assert (comparison.difference, comparison.low, comparison.high) == (0, 0, 0)
        assert (comparison.sites_low, comparison.sites_high) == (0, 0)
        assert all(test.p == 1 for test in comparison.tests)

    def test_one_site_leaves_out_the_tests_over_sites(self) -> None:
        comparison = compared(*held_out(q=1, n=60, difference=1.0))
        assert [test.name for test in comparison.tests] == [RESAMPLED, PERMUTATION, WELCH]
        assert np.isnan([comparison.sites_low, comparison.sites_high]).all()
        assert comparison.low < comparison.difference < comparison.high
        assert comparison.difference > 0

    def test_one_split_leaves_out_the_tests_over_folds(self) -> None:
        model, baseline, responses, splits = held_out()
        comparison = compared(model[:1], baseline[:1], responses, splits[:1])
        assert {test.name for test in comparison.tests} == {PERMUTATION, statistics.PAIRED, statistics.WILCOXON}

    def test_nan_leaves_a_site_out_of_both(self) -> None:
        """A site that is constant under one network: as if neither had it."""
        model, baseline, responses, splits = held_out(difference=0.5)
        without = compared(
            [np.delete(p, 2, axis=1) for p in model],
            [np.delete(p, 2, axis=1) for p in baseline],
            np.delete(responses, 2, axis=1),
            splits,
        )
        r = [r_of(p, responses, splits) for p in (model, baseline)]
        for one, p in zip(r[0], model, strict=True):
            one[2], p[:, 2] = np.nan, 1.0
        two = [Predictions(splits, tuple(p[None] for p in one), (1,) * 4) for one in (model, baseline)]
        scores = [Scores(one, None, None) for one in r]
        result = compare_one(scores, two, responses, n_resamples=500)
        assert result.difference == pytest.approx(without.difference, abs=1e-12)
        for test, same in zip(result.tests, without.tests, strict=True):
            assert test.p == pytest.approx(same.p, rel=1e-6)

    def test_refuses_what_does_not_belong_together(self) -> None:
        model, baseline, responses, splits = held_out()
        scores = [Scores(r_of(p, responses, splits), None, None) for p in (model, baseline)]
        two = [Predictions(splits, tuple(p[None] for p in one), (1,) * 4) for one in (model, baseline)]
        with pytest.raises(ValueError, match="model's scores differ from its predictions"):
            compare_one(scores, two[::-1], responses)
        with pytest.raises(ValueError, match="different splits"):
            compare_one(scores, (two[0], replace(two[1], splits=folds_of(40, 4, seed=1))), responses)
        with pytest.raises(ValueError, match=r"\(4, 5\) and baseline \(4, 4\)"):
            compare_one((scores[0], Scores(scores[1].r[:, :4], None, None)), two, responses)
        with pytest.raises(ValueError, match="none of the 5 sites has an r of both"):
            compare_one((scores[0], Scores(np.full((4, 5), np.nan), None, None)), two, responses)

    def test_the_last_number_of_components_is_what_was_scored(self) -> None:
        model, baseline, responses, splits = held_out()
        scores = [Scores(r_of(p, responses, splits), None, None) for p in (model, baseline)]
        two = [Predictions(splits, tuple(np.stack([0 * p, p]) for p in one), (2,) * 4) for one in (model, baseline)]
        result = compare_one(scores, two, responses, n_resamples=100)
        assert result == compared(model, baseline, responses, splits, n_resamples=100)


class TestHolmAndVerdict:
    def difference(self, ps: dict[str, float], size: float = 0.1) -> Difference:
        return Difference(size, 0.0, 0.2, tuple(TestResult(name, 1.0, p, 10) for name, p in ps.items()))

    def test_each_test_is_a_family_over_all_differences(self) -> None:
        rows = [
            self.difference({RESAMPLED: 0.01, WELCH: 0.4}),
            None,
            self.difference({RESAMPLED: 0.04, WELCH: float("nan")}),
            self.difference({RESAMPLED: 0.03}),
        ]
        adjusted = statistics.adjusted_p(rows)
        assert adjusted == [
            {RESAMPLED: pytest.approx(0.03), WELCH: 0.4},
            {},
            {RESAMPLED: pytest.approx(0.06)},
            {RESAMPLED: pytest.approx(0.06)},
        ]

    @pytest.mark.parametrize(
        ("adjusted", "size", "expected"),
        [
            ({RESAMPLED: 0.04, PERMUTATION: 0.04, WELCH: 0.9}, 0.1, 1),
            ({RESAMPLED: 0.04, PERMUTATION: 0.04}, -0.1, -1),
            ({RESAMPLED: 0.05, PERMUTATION: 0.04, WELCH: 0.001}, 0.1, 0),
            ({PERMUTATION: 0.04}, 0.1, 0),  # the other valid test has no p
            ({}, 0.1, 0),
        ],
    )
    def test_every_valid_test_decides_after_holm(self, adjusted: Any, size: float, expected: int) -> None:
        difference = self.difference({RESAMPLED: 0.001, PERMUTATION: 0.001, WELCH: 0.001}, size)
        assert statistics.verdict(difference, adjusted) == expected

    def test_without_a_valid_test_nothing_is_decided(self) -> None:
        assert statistics.verdict(self.difference({WELCH: 0.001}), {WELCH: 0.001}) == 0


@pytest.fixture(scope="module")
def null_rates() -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / "null_rates.py"
    spec = importlib.util.spec_from_file_location("null_rates", path)
    module = sys.modules["null_rates"] = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)
    return module


class TestLevels:
    """Small versions of benchmarks/null_rates.py; the rates that the docs state come from its 1000 experiments."""

    @pytest.mark.slow
    @pytest.mark.parametrize("shuffle", [False, True])
    def test_valid_tests_hold_their_level_and_others_do_not(self, null_rates: Any, shuffle: bool) -> None:
        setting = null_rates.Setting(
            "small", 80, 12, 40, 5, shuffle=shuffle, shared=0.6, model_noise=1.0, baseline_noise=1.0
        )
        counts = null_rates.measure(setting, 150, (1,))["rejections"]
        for name, about in TESTS.items():
            if about.decides and name != statistics.OVER_IMAGES:  # it tests no r
                assert counts[name] <= stats.binom.ppf(0.999, 150, 0.05), name
        for name in (null_rates.PLAIN_PERMUTATION, statistics.PAIRED, statistics.BOOTSTRAP):
            assert null_rates.exceeds(counts[name], 150), name

    def test_the_docs_show_the_committed_rates_and_no_valid_test_exceeds_its_level(self, null_rates: Any) -> None:
        docs = Path(__file__).parents[2] / "docs"
        record = json.loads((docs / "results" / "null-rates.json").read_text())
        assert record["experiments"] >= 1000
        assert null_rates.table(record) in (docs / "results" / "rejection-rates.md").read_text()
        for name, about in TESTS.items():
            if name in (statistics.OVER_IMAGES, HIERARCHICAL):  # have tables of their own
                continue
            rejected = [one["rejections"][name] for one in record["settings"][:-2]]
            assert about.valid == (not any(null_rates.exceeds(count, record["experiments"]) for count in rejected)), name

    def test_the_docs_show_the_committed_rates_of_rsa_and_cka(self, null_rates: Any) -> None:
        docs = Path(__file__).parents[2] / "docs"
        record = json.loads((docs / "results" / "null-rates-similarity.json").read_text())
        assert record["experiments"] >= 200
        assert null_rates.similarity_table(record) in (docs / "results" / "rejection-rates.md").read_text()
        assert TESTS[statistics.OVER_IMAGES].valid
        for one in record["settings"][:-1]:
            assert not any(null_rates.exceeds(count, record["experiments"]) for count in one["rejections"].values())

    @pytest.mark.slow
    def test_the_bootstrap_over_images_holds_its_level(self, null_rates: Any) -> None:
        setting = null_rates.Setting("small", 40, 12, 40, shared=0.6, model_noise=1.0, baseline_noise=1.0)
        counts = null_rates.measure_similarity(setting, 100, (1,))["rejections"]
        assert all(count <= stats.binom.ppf(0.999, 100, 0.05) for count in counts.values())
