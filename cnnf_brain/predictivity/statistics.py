"""Tests of a difference in predictivity between two networks (model minus baseline).

Every test asks one of three questions:

- *new images*: would the same sites, shown other images, again prefer the same network? Two networks are compared
  on a sample of images, so this is the question of a comparison of networks. All sites see the same images, and
  all folds share training images: neither sites nor folds are independent units for it.
- *new sites*: with these very images and features, would other sites of the population? Sites are the units.
- *new animals*: would other animals, in other sessions and shown other images? Animals are the units (``hierarchy``).

``TESTS`` says which test answers which question, and whether it holds its level; ``docs/statistics.md`` has the
rejection rates measured by ``benchmarks/null_rates.py``.

Arrays ``r_model``, ``r_baseline`` are (n_splits, n_sites), as ``Scores.r``. Where either is NaN, that site and
fold is left out of both; a site or fold with nothing left is left out altogether. Every test raises ValueError for
shapes that do not match, where no site is defined in both, and for fewer than two of its units.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from cnnf_brain.predictivity.hierarchy import HIERARCHICAL, t_over_animals
from cnnf_brain.predictivity.permutation import CHUNK, HeldOut, permutation_over_images
from cnnf_brain.predictivity.permutation import PERMUTATION as PERMUTATION
from cnnf_brain.predictivity.scores import pearson
from cnnf_brain.predictivity.similarity import OVER_IMAGES as OVER_IMAGES
from cnnf_brain.types import Array, Difference, Predictions, Scores, Split, TestResult

LIMITS = [(1 - 0.95) / 2, (1 + 0.95) / 2]  # quantiles of a 95% interval
LEVEL = 0.05  # below it a p-value after Holm's adjustment decides

WELCH = "Welch over folds (the paper's)"
RESAMPLED = "corrected resampled t over folds"
PAIRED = "paired t over sites"
WILCOXON = "Wilcoxon over sites"
BOOTSTRAP = "bootstrap over sites"


class About(NamedTuple):
    """What a test is about, and whether its p-value may be believed when networks are compared."""

    question: str  # "new images", "new sites" or "new animals"
    valid: (
        bool  # for its networks and new images: rejects at most as often as it says in every setting of docs/statistics.md
    )
    why: str

    @property
    def decides(self) -> bool:
        """Whether the verdict on new images rests on it."""
        return self.valid and self.question == "new images"


SITES = "sites share the images' noise: not independent for new images, and through PLS2 not quite for new sites"
TESTS: dict[str, About] = {  # in the order in which results stand: valid ones, the paper's, those over sites
    OVER_IMAGES: About("new images", True, "of RSA and CKA: images are its units, drawn with replacement"),
    RESAMPLED: About("new images", True, "adds n_test / n_train to 1 / n_splits for the shared training images"),
    PERMUTATION: About("new images", True, "images are its units; widened for the training images' share of the variance"),
    HIERARCHICAL: About(
        "new animals", True, "animals are its units, images its least error (one degree of freedom less than animals)"
    ),
    WELCH: About("new images", False, "folds share training images, and both networks see the same images"),
    PAIRED: About("new sites", False, SITES),
    WILCOXON: About("new sites", False, SITES),
    BOOTSTRAP: About("new sites", False, SITES),
}


def welch_over_folds(r_model: Array, r_baseline: Array) -> TestResult:
    """Welch's two-sided t test between the per-fold medians over sites: the test of the paper.

    t = (mean m - mean b) / sqrt(v_m + v_b), v = var / n_splits, with the degrees of freedom of Welch (1947),
    (v_m + v_b)² / (v_m² / (n - 1) + v_b² / (n - 1)).
    """
    model, baseline, n = _over_folds(r_model, r_baseline)
    m, b = np.nanmedian(model, axis=1), np.nanmedian(baseline, axis=1)
    v_m, v_b = m.var(ddof=1) / n, b.var(ddof=1) / n
    df = (v_m + v_b) ** 2 * (n - 1) / (v_m**2 + v_b**2) if v_m + v_b > 0 else 2.0 * (n - 1)
    return _t_test(WELCH, float(m.mean() - b.mean()), float(np.sqrt(v_m + v_b)), float(df), n)


def corrected_resampled_t(r_model: Array, r_baseline: Array, n_test: float, n_train: float) -> TestResult:
    """Corrected resampled t test, paired over folds, of the per-fold median difference over sites.

    t = mean(d) / sqrt((1 / J + n_test / n_train) var(d)) with J - 1 degrees of freedom (Nadeau & Bengio 2003, eq. 9):
    splits share training images, so their differences d correlate; n_test / (n_test + n_train) stands for it. ``n_test`` and
    ``n_train`` are the number of images of one split (the mean, where splits differ).
    """
    model, baseline, n = _over_folds(r_model, r_baseline)
    if not (n_test > 0 and n_train > 0):
        raise ValueError(f"n_test = {n_test} and n_train = {n_train} must both be positive")
    d = np.nanmedian(model - baseline, axis=1)
    error = np.sqrt((1 / n + n_test / n_train) * d.var(ddof=1))
    return _t_test(RESAMPLED, float(d.mean()), float(error), n - 1.0, n)


def paired_t_over_sites(r_model: Array, r_baseline: Array) -> TestResult:
    """Paired t test over sites, of each site's difference in the mean r over folds; df = n_sites - 1."""
    d, n = _over_sites(r_model, r_baseline)
    return _t_test(PAIRED, float(d.mean()), float(d.std(ddof=1) / np.sqrt(n)), n - 1.0, n)


def wilcoxon_over_sites(r_model: Array, r_baseline: Array) -> TestResult:
    """Wilcoxon's signed-rank test over sites, of each site's difference in the mean r over folds, two-sided.

    The statistic is the smaller rank sum. Sites without any difference are left out (Wilcoxon 1945); p = 1 where none is left.
    """
    d, n = _over_sites(r_model, r_baseline)
    d = d[d != 0]
    if len(d) == 0:
        return TestResult(WILCOXON, 0.0, 1.0, n)
    result = stats.wilcoxon(d)
    return TestResult(WILCOXON, float(result.statistic), float(result.pvalue), n)


def bootstrap_median_difference(
    r_model: Array, r_baseline: Array, *, n_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """95% interval (low, high) of the median over sites of the per-site difference, resampling sites (Efron 1979).

    The percentile interval: for a median it agrees with the exact interval from order statistics, while the
    acceleration of BCa rests on the jackknife, which is inconsistent for medians (Efron & Tibshirani 1993, 11.6).
    It is about other sites with the same images; it knows nothing of other images.
    """
    d, n = _over_sites(r_model, r_baseline)
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")
    rng = np.random.default_rng(seed)
    sizes = [min(CHUNK, n_resamples - start) for start in range(0, n_resamples, CHUNK)]
    medians = np.concatenate([np.median(d[rng.integers(0, n, (size, n))], axis=1) for size in sizes])
    low, high = np.quantile(medians, LIMITS)
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> Array:
    """Holm's (1979) adjusted p-values of a family of tests, in the given order; a ValueError for NaN, or outside [0, 1].

    The k-th smallest of m becomes the largest of min(1, (m - j + 1) p_j) over j = 1 ... k: rejecting where it is at
    most alpha keeps the chance of any false rejection in the family at alpha.
    """
    p = np.asarray(p_values, dtype=float).reshape(-1)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must lie in [0, 1], got {p.tolist()}; leave tests without a result out")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def adjusted_p(differences: Sequence[Difference | None]) -> list[dict[str, float]]:
    """Holm's p-values by test, for each difference. The family of a test is all differences; None and NaN stay outside.

    Pooled rows repeat the data of their sources and stand in the same family.
    """
    families: dict[str, dict[int, float]] = {}
    for row, one in enumerate(differences):
        for test in one.tests if one else ():
            if not np.isnan(test.p):
                families.setdefault(test.name, {})[row] = test.p
    by_test = {name: dict(zip(found, holm([*found.values()]).tolist(), strict=True)) for name, found in families.items()}
    return [{name: p[row] for name, p in by_test.items() if row in p} for row in range(len(differences))]


def verdict(difference: Difference, adjusted: Mapping[str, float]) -> int:
    """1 or -1 where every test that is valid for new images finds the difference above or below 0 (``adjusted_p``), else 0."""
    valid = [adjusted.get(test.name, np.nan) for test in difference.tests if TESTS[test.name].decides]
    if not valid or not all(p < LEVEL for p in valid):
        return 0
    return (difference.difference > 0) - (difference.difference < 0)


def pool_scores(parts: Sequence[Scores]) -> Scores:
    """Scores of several sources as one over all their sites; ceilings and pooled r only where every source has them."""

    def beside(name: str) -> Array | None:
        given = [values for part in parts if (values := getattr(part, name)) is not None]
        return np.concatenate(given) if len(given) == len(parts) else None

    counts = sorted({len(part.r) for part in parts})
    if len(counts) > 1:
        raise ValueError(
            f"sources with {' and '.join(map(str, counts))} splits cannot be pooled; use the same splits for all"
        )
    return Scores(np.concatenate([part.r for part in parts], axis=1), beside("pooled"), beside("ceiling"))


def compare_scores(
    pairs: Sequence[tuple[Scores, Scores]],
    *,
    predictions: Sequence[tuple[Predictions, Predictions]],
    responses: Sequence[Array],
    animals: Sequence[Array] | None = None,
    images: Sequence[Hashable] | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """The difference model minus baseline over all sites of one or several sources: estimate, intervals, all tests.

    Fold s of the tests over folds is fold s of every source together. Sites of different sources are taken to be independent, and
    so are their images, but for those of one name.

    Parameters
    ----------
    pairs : sequence of (Scores, Scores)
        Of model and baseline, over the same sites and splits, for each source; every source with the same number of splits.
    predictions : sequence of (Predictions, Predictions)
        In the same order; the last entry of each (the most components) is what was scored.
    responses : sequence of (n_images, n_sites) arrays
        In the same order.
    animals : sequence of (n_sites,) arrays of str, optional
        In the same order, the animal of each site: where there are several, they are tested too (``hierarchy``).
    images : sequence of str or of tuples of str, optional
        In the same order, a name for all images, or one for each: images of one name are the same, and exchanged alike.
    n_resamples, seed : int
        Of the bootstrap and the permutations; the same seed gives the same result.

    Returns
    -------
    Difference
        Tests stand in the order of ``TESTS``. Those over sites, and their interval, are left out where there is one site, those
        over folds where there is one split. Identical scores give a difference of 0 and p = 1.

    Raises
    ------
    ValueError
        Sites or splits that differ, predictions that do not give the scores, no site defined in both.
    """
    for one, other in pairs:
        _check_shapes(one.r, other.r)
    model, baseline = _pair(*(pool_scores([pair[i] for pair in pairs]).r for i in (0, 1)))
    sources = [_held_out(*one) for one in zip(pairs, predictions, responses, strict=True)]
    permuted = permutation_over_images(sources, images=images, n_resamples=n_resamples, seed=seed)
    tests, over_sites = [permuted], (float("nan"), float("nan"))
    if len(model) > 1:
        sizes = [(len(split.test), len(split.train)) for source in sources for split in source.splits]
        n_test, n_train = np.mean(sizes, axis=0)
        tests += [corrected_resampled_t(model, baseline, n_test, n_train), welch_over_folds(model, baseline)]
    if model.shape[1] > 1:
        tests += [paired_t_over_sites(model, baseline), wilcoxon_over_sites(model, baseline)]
        over_sites = bootstrap_median_difference(model, baseline, n_resamples=n_resamples, seed=seed)
    if animals is not None and len(_defined(pairs, animals)) > 1:
        tests.append(t_over_animals(sources, animals, images=images, seed=seed))
    tests.sort(key=lambda test: list(TESTS).index(test.name))
    assert permuted.interval is not None
    difference = float(np.median(_site_differences(model, baseline)))
    return Difference(difference, *permuted.interval, tuple(tests), *over_sites)


def _defined(pairs: Sequence[tuple[Scores, Scores]], animals: Sequence[Array]) -> set[str]:
    """The animals of the sites that have an r of both networks."""
    there = [np.isfinite(one.r - other.r).any(axis=0) for one, other in pairs]
    return {str(name) for sites, names in zip(there, animals, strict=True) for name in np.asarray(names)[sites]}


def _held_out(pair: tuple[Scores, Scores], predictions: tuple[Predictions, Predictions], responses: Array) -> HeldOut:
    """What was scored of one source, without the sites and folds that lack an r of either network."""
    splits, others = (one.splits for one in predictions)
    same = [
        np.array_equal(a.test, b.test) and np.array_equal(a.train, b.train) for a, b in zip(splits, others, strict=False)
    ]
    if len(splits) != len(others) or not all(same):
        raise ValueError("model and baseline were cross-validated over different splits; use the same for both")
    left_out = ~np.isfinite(pair[0].r - pair[1].r)
    last = []
    for name, scores, one in zip(("model", "baseline"), pair, predictions, strict=True):
        held_out = [values[-1] for values in one.values]
        _check_scored(name, scores, held_out, responses, splits)
        last.append([np.where(out, np.nan, p) for out, p in zip(left_out, held_out, strict=True)])
    return HeldOut(last[0], last[1], responses, splits)


def _check_shapes(model: Array, baseline: Array) -> None:
    if model.ndim != 2 or model.shape != baseline.shape:
        raise ValueError(
            f"r of model {model.shape} and baseline {baseline.shape} must both be (n_splits, n_sites), over the "
            "same splits and sites"
        )


def _pair(r_model: Array, r_baseline: Array) -> tuple[Array, Array]:
    """Both (n_splits, n_sites), NaN where either is; folds and sites without any value are dropped."""
    model, baseline = np.asarray(r_model, dtype=float), np.asarray(r_baseline, dtype=float)
    _check_shapes(model, baseline)
    defined = np.isfinite(model) & np.isfinite(baseline)
    if not defined.any():
        raise ValueError(f"none of the {model.shape[1]} sites has an r of both networks in any split")
    kept = np.ix_(defined.any(axis=1), defined.any(axis=0))
    return np.where(defined, model, np.nan)[kept], np.where(defined, baseline, np.nan)[kept]


def _over_folds(r_model: Array, r_baseline: Array) -> tuple[Array, Array, int]:
    """``_pair``, and the number of folds."""
    model, baseline = _pair(r_model, r_baseline)
    return model, baseline, _enough(len(model), "folds")


def _over_sites(r_model: Array, r_baseline: Array) -> tuple[Array, int]:
    """(n_sites,) mean over folds of the difference in r, and the number of sites."""
    d = _site_differences(*_pair(r_model, r_baseline))
    return d, _enough(len(d), "sites")


def _site_differences(model: Array, baseline: Array) -> Array:
    found: Array = np.nanmean(model - baseline, axis=0)
    return found


def _enough(n: int, units: str) -> int:
    if n < 2:
        raise ValueError(f"a test over {units} needs at least two {units} with a defined r, got {n}")
    return n


def _t_test(name: str, difference: float, error: float, df: float, n: int) -> TestResult:
    """Two-sided p of difference / error under Student's t, with the 95% interval of the difference.

    Without any spread (error 0), t = 0 and p = 1 where the difference is 0 too, else t is infinite and p = 0.
    """
    t = difference / error if error else float(np.copysign(np.inf, difference)) if difference else 0.0
    half = float(stats.t.ppf(0.975, df)) * error
    return TestResult(name, t, float(2 * stats.t.sf(abs(t), df)), n, df, (difference - half, difference + half))


def _check_scored(name: str, scores: Scores, held_out: Sequence[Array], responses: Array, splits: Sequence[Split]) -> None:
    """Scores and predictions must belong together, else the tests would speak of different things."""
    r = np.array([pearson(p, responses[split.test]) for p, split in zip(held_out, splits, strict=True)])
    if r.shape != scores.r.shape:
        raise ValueError(f"{name}: scores are {scores.r.shape} (splits, sites), its predictions give {r.shape}")
    apart = np.nanmax(np.abs(r - scores.r), initial=0.0)
    if apart > 1e-6:
        raise ValueError(
            f"the {name}'s scores differ from its predictions' r by up to {apart:.2g}; pass the predictions (their "
            "last entry) and responses that were scored"
        )
