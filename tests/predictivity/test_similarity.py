"""Dissimilarities, RSA and CKA from Grams against literal formulas on features, and against rsatoolbox."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats
from scipy.spatial.distance import pdist, squareform

from cnnf_brain.predictivity.metrics import METRICS, Agreement
from cnnf_brain.predictivity.similarity import (
    MEASURES,
    _resampled,
    bootstrap_over_images,
    compare_similarities,
    crossvalidated_gram,
    dissimilarities,
    permutation_of_images,
    repeats_ceiling,
    resampled_similarity,
    similarity,
    subject_ceiling,
)

N, N_SITES, N_REPEATS = 24, 30, 4
Array = npt.NDArray[Any]


def simulated(seed: int = 0) -> SimpleNamespace:
    """Features of two networks, the second a noisier view of the latents; responses in repeats."""
    rng = np.random.default_rng(seed)
    latents = rng.standard_normal((N, 5)) * [3, 2, 1, 1, 0.5]
    views = [latents @ rng.standard_normal((5, 40)) + noise * rng.standard_normal((N, 40)) + 2 for noise in (0.5, 3)]
    signal = latents @ rng.standard_normal((5, N_SITES)) + 4
    repeats = signal[:, :, None] + 3 * rng.standard_normal((N, N_SITES, N_REPEATS))
    return SimpleNamespace(model=views[0], baseline=views[1], repeats=repeats, responses=repeats.mean(axis=2))


DATA = simulated()
MODEL, BASELINE, TARGET = (dissimilarities(x @ x.T) for x in (DATA.model, DATA.baseline, DATA.responses))


@pytest.fixture(scope="module")
def rsa() -> Any:
    return pytest.importorskip(
        "rsatoolbox", reason="needs rsatoolbox and scikit-learn 1.6 (benchmarks/requirements.txt)", exc_type=ImportError
    )


def test_euclidean_distances_are_those_of_the_features() -> None:
    expected = squareform(pdist(DATA.model, "sqeuclidean"))
    np.testing.assert_allclose(MODEL, expected, rtol=1e-10, atol=1e-9)
    moved = DATA.model + 5.0
    np.testing.assert_allclose(dissimilarities(moved @ moved.T), expected, rtol=1e-9, atol=1e-8)


def test_cosine_distances_are_those_of_features_centred_over_images() -> None:
    expected = squareform(pdist(DATA.model - DATA.model.mean(axis=0), "cosine"))
    found = dissimilarities(DATA.model @ DATA.model.T, "cosine")
    np.testing.assert_allclose(found, expected, atol=1e-12)
    correlation = squareform(pdist(DATA.model, "correlation"))
    assert np.abs(found - correlation).max() > 0.01  # another distance, which K does not hold


def pairs(rdm: Array) -> Array:
    found: Array = rdm[np.triu_indices(len(rdm), 1)]
    return found


def hsic(K: Array, L: Array) -> float:
    """Song et al. 2012, eq. 5, over all tuples of different images."""
    n = range(len(K))
    first = np.mean([K[i, j] * L[i, j] for i, j in itertools.permutations(n, 2)])
    second = np.mean([K[i, j] * L[i, q] for i, j, q in itertools.permutations(n, 3)])
    third = np.mean([K[i, j] * L[q, r] for i, j, q, r in itertools.permutations(n, 4)])
    return float(first - 2 * second + third)


def test_measures_are_the_literal_formulas() -> None:
    assert similarity(MODEL, TARGET, "spearman") == pytest.approx(stats.spearmanr(pairs(MODEL), pairs(TARGET)).statistic)
    cosine = pairs(MODEL) @ pairs(TARGET) / np.linalg.norm(pairs(MODEL)) / np.linalg.norm(pairs(TARGET))
    assert similarity(MODEL, TARGET, "cosine") == pytest.approx(cosine)
    x, y = (values - values.mean(axis=0) for values in (DATA.model, DATA.responses))
    biased_cka = np.linalg.norm(x.T @ y) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
    assert similarity(MODEL, TARGET, "whitened") == pytest.approx(biased_cka)


def test_cka_is_that_of_the_unbiased_hsic() -> None:
    x, y = DATA.model[:9], DATA.responses[:9]
    K, L = x @ x.T, y @ y.T
    expected = hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))
    assert similarity(dissimilarities(K), dissimilarities(L), "cka") == pytest.approx(expected, abs=1e-9)


def test_cka_of_unrelated_features_is_zero_on_average() -> None:
    rng = np.random.default_rng(1)
    found: dict[str, list[float]] = {"cka": [], "whitened": []}
    for _ in range(300):
        first, second = (dissimilarities(x @ x.T) for x in rng.standard_normal((2, 20, 100)))
        for measure, values in found.items():
            values.append(similarity(first, second, measure))
    error = np.std(found["cka"]) / np.sqrt(300)
    assert abs(np.mean(found["cka"])) < 3 * error
    assert np.mean(found["whitened"]) > 0.5  # the biased one is large for features alone


@pytest.mark.parametrize("measure", MEASURES)
def test_rotation_scale_and_order_change_nothing(measure: str) -> None:
    rotation = np.linalg.qr(np.random.default_rng(2).standard_normal((40, 40)))[0]
    changed = DATA.model @ rotation * 7 + 3
    order = np.random.default_rng(3).permutation(N)
    moved = dissimilarities(changed @ changed.T)[np.ix_(order, order)]
    expected = similarity(MODEL, TARGET, measure)
    assert similarity(moved, TARGET[np.ix_(order, order)], measure) == pytest.approx(expected, abs=1e-9)
    assert similarity(MODEL, MODEL, measure) == pytest.approx(1)
    assert similarity(TARGET, MODEL, measure) == pytest.approx(expected)
    assert 0.3 < expected < 1


def test_constant_dissimilarities_have_no_agreement() -> None:
    flat = 1 - np.eye(N)
    for measure in ("spearman", "cka"):
        assert np.isnan(similarity(flat, TARGET, measure))


def test_crossvalidated_distances_are_products_of_different_repeats() -> None:
    repeats = DATA.repeats[:6].copy()
    repeats[2, :, 3] = np.nan
    found = dissimilarities(crossvalidated_gram(DATA.repeats[:6]))
    for i, j in itertools.combinations(range(6), 2):
        d = DATA.repeats[i] - DATA.repeats[j]
        expected = np.mean([d[:, r] @ d[:, s] for r, s in itertools.permutations(range(N_REPEATS), 2)])
        assert found[i, j] == pytest.approx(expected)
    centre = np.nanmean(repeats, axis=(0, 2))
    expected = np.mean(
        [(repeats[2, :, r] - centre) @ (repeats[4, :, s] - centre) for r in range(3) for s in range(N_REPEATS) if r != s]
    )
    assert crossvalidated_gram(repeats)[2, 4] == pytest.approx(expected)


def test_crossvalidated_distances_are_unbiased() -> None:
    rng = np.random.default_rng(4)
    means = rng.standard_normal((N, N_SITES, 1))
    true = squareform(pdist(means[:, :, 0], "sqeuclidean"))
    drawn = [dissimilarities(crossvalidated_gram(means + 2 * rng.standard_normal((N, N_SITES, 3)))) for _ in range(200)]
    error = pairs(np.mean(drawn, axis=0)) - pairs(true)
    assert abs(error.mean()) < 0.05 * pairs(true).mean()


def resample(rdm: Array, images: Array) -> tuple[Array, Array]:
    """Dissimilarities of a resample, and which of its pairs are of different images."""
    different = images[:, None] != images
    return rdm[np.ix_(images, images)], different


def test_resamples_are_the_literal_formulas_without_pairs_of_one_image() -> None:
    images = np.random.default_rng(5).integers(0, N, N)
    weights = np.bincount(images, minlength=N).astype(float)[None]
    (a, different), (b, _) = resample(MODEL, images), resample(TARGET, images)
    upper = np.triu(different, 1)
    found = {measure: _resampled([MODEL], TARGET, measure, weights)[0, 0] for measure in MEASURES}
    assert found["spearman"] == pytest.approx(stats.spearmanr(a[upper], b[upper]).statistic)
    assert found["cosine"] == pytest.approx(a[upper] @ b[upper] / np.linalg.norm(a[upper]) / np.linalg.norm(b[upper]))
    rows, columns = np.nonzero(upper)
    design = np.zeros((len(rows), N))
    design[np.arange(len(rows)), rows] = design[np.arange(len(rows)), columns] = 1.0
    residuals = [d[upper] - design @ np.linalg.lstsq(design, d[upper], rcond=None)[0] for d in (a, b)]
    expected = residuals[0] @ residuals[1] / np.linalg.norm(residuals[0]) / np.linalg.norm(residuals[1])
    assert found["cka"] == pytest.approx(expected)


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (0.3, 7.0), (1 / 3, 0.0)])
def test_distances_that_differ_by_rounding_are_tied(scale: float, offset: float) -> None:
    """One site: cosine distances are 0 or 2. Counts: squared distances are whole numbers."""
    rng = np.random.default_rng(0)
    site = rng.standard_normal((N, 1))
    responses = scale * site + offset
    one = METRICS["rsa"].target(responses)
    assert np.unique(squareform(one)).tolist() == [0.0, 2.0]
    pairs = np.triu_indices(N, 1)
    exact = 1 - np.sign(site - site.mean()) @ np.sign(site - site.mean()).T
    assert similarity(MODEL, one) == pytest.approx(stats.spearmanr(MODEL[pairs], exact[pairs]).statistic)
    counts = rng.poisson(0.7, (N, 2)).astype(float)
    whole = ((counts[:, None] - counts) ** 2).sum(axis=2)
    assert np.array_equal(dissimilarities(counts @ counts.T), whole)


@pytest.mark.parametrize("measure", MEASURES)
def test_every_image_once_is_no_resample(measure: str) -> None:
    found = _resampled([MODEL, BASELINE], TARGET, measure, np.ones((1, N)))[0]
    expected = [similarity(rdm, TARGET, measure) for rdm in (MODEL, BASELINE)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_difference_has_an_interval_of_the_bootstrap(measure: str) -> None:
    one, base = (resampled_similarity(rdm, [TARGET], measure, n_resamples=300) for rdm in (MODEL, BASELINE))
    found = compare_similarities([(one, base)])
    (test,) = found.tests
    assert found.difference == pytest.approx(similarity(MODEL, TARGET, measure) - similarity(BASELINE, TARGET, measure))
    resampled = bootstrap_over_images([MODEL, BASELINE], TARGET, measure, n_resamples=300)
    error = (resampled[:, 0] - resampled[:, 1]).std(ddof=1)
    assert test.statistic == pytest.approx(found.difference / error)
    assert (found.low, found.high) == test.interval
    assert found.low < found.difference < found.high
    assert test.n == N
    assert test.df == pytest.approx(N - 1)
    same = compare_similarities([(one, one)])
    assert (same.difference, same.tests[0].p) == (0.0, 1.0)


@pytest.mark.parametrize("measure", MEASURES)
def test_permutations_find_agreement_and_keep_their_level(measure: str) -> None:
    assert permutation_of_images(MODEL, TARGET, measure, n_resamples=99).p == 0.01
    p = []
    for seed in range(60):
        x = np.random.default_rng([6, seed]).standard_normal((N, 10))
        p.append(permutation_of_images(dissimilarities(x @ x.T), TARGET, measure, n_resamples=39).p)
    assert np.mean(np.array(p) <= 0.1) < 0.2
    assert 0.3 < np.mean(p) < 0.7


def test_the_ceiling_of_subjects() -> None:
    rng = np.random.default_rng(7)
    subjects = [dissimilarities(x @ x.T) for x in DATA.responses + 4 * rng.standard_normal((3, N, N_SITES))]
    for measure in MEASURES:
        low, high = subject_ceiling(subjects, measure)
        assert 0 < low < high <= 1
    two = subject_ceiling(subjects[:2], "cosine")
    assert two[0] == pytest.approx(similarity(subjects[0], subjects[1], "cosine"))
    with pytest.raises(ValueError, match="at least two"):
        subject_ceiling(subjects[:1])


@pytest.mark.parametrize("name", ["rsa", "cka", "cosine_cov"])
def test_the_ceiling_from_repeats_is_what_the_true_distances_reach(name: str) -> None:
    metric, reached, found = METRICS[name], [], []
    assert isinstance(metric, Agreement)
    for seed in range(20):
        rng = np.random.default_rng([8, seed])
        signal = rng.standard_normal((60, 4)) @ rng.standard_normal((4, N_SITES))
        repeats = signal[:, :, None] + 2.5 * rng.standard_normal((60, N_SITES, 6))
        repeats[::3, :, 4:] = np.nan
        target = metric.target(np.nanmean(repeats, axis=2), repeats)
        reached.append(similarity(dissimilarities(signal @ signal.T, metric.distance), target, metric.measure))
        low, high = metric.ceiling([target], repeats, seed) or (0, 0)
        assert low == high
        found.append(low)
    assert np.mean(reached) < 0.97
    assert np.mean(found) == pytest.approx(np.mean(reached), abs=0.02)
    assert metric.ceiling([target, target, target], repeats, 0) == subject_ceiling([target] * 3, metric.measure)
    assert metric.ceiling([target], None, 0) is None


def test_a_ceiling_needs_repeats_in_both_halves() -> None:
    repeats = DATA.repeats.copy()
    repeats[3, :, 1:] = np.nan
    assert repeats_ceiling(repeats, lambda some: some[:, :, 0]) is None


@pytest.mark.parametrize(("ours", "theirs"), [("spearman", "spearman"), ("cosine", "cosine"), ("whitened", "cosine_cov")])
def test_agrees_with_rsatoolbox(rsa: Any, ours: str, theirs: str) -> None:
    rdms = rsa.rdm.RDMs(np.array([pairs(MODEL), pairs(BASELINE), pairs(TARGET)]))
    expected = rsa.rdm.compare(rdms, rdms, theirs)
    found = [[similarity(a, b, ours) for b in (MODEL, BASELINE, TARGET)] for a in (MODEL, BASELINE, TARGET)]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    ceiling = rsa.inference.boot_noise_ceiling(rdms, theirs)
    np.testing.assert_allclose(subject_ceiling([MODEL, BASELINE, TARGET], ours), ceiling, atol=1e-9)
    for seed in range(3):  # its resamples hold NaN where an image meets itself
        images = np.random.default_rng(seed).integers(0, N, N)
        some = rdms.subsample_pattern("index", images)
        assert np.isnan(some.get_vectors()).any()
        weights = np.bincount(images, minlength=N).astype(float)[None]
        resampled = _resampled([MODEL, BASELINE], TARGET, ours, weights)[0]
        np.testing.assert_allclose(resampled, rsa.rdm.compare(some, some, theirs)[2, :2], atol=1e-9)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")  # its own
def test_distances_agree_with_rsatoolbox(rsa: Any) -> None:
    data = rsa.data.Dataset(DATA.responses)
    expected = rsa.rdm.calc_rdm(data, method="euclidean").get_vectors()[0]
    np.testing.assert_allclose(pairs(TARGET) / N_SITES, expected, rtol=1e-9)
    flat = DATA.repeats.transpose(0, 2, 1).reshape(-1, N_SITES)
    image, repeat = np.divmod(np.arange(len(flat)), N_REPEATS)
    data = rsa.data.Dataset(flat, obs_descriptors={"image": image, "repeat": repeat})
    theirs = rsa.rdm.calc_rdm(data, method="crossnobis", descriptor="image", cv_descriptor="repeat")
    found = dissimilarities(crossvalidated_gram(DATA.repeats))
    np.testing.assert_allclose(pairs(found) / N_SITES, theirs.get_vectors()[0], rtol=1e-9, atol=1e-9)
    metric = METRICS["cosine_cov"]
    assert isinstance(metric, Agreement)
    target = metric.target(DATA.responses, DATA.repeats)
    value = metric.scored(DATA.model @ DATA.model.T, [target], 0).value
    expected = rsa.rdm.compare(rsa.rdm.RDMs(pairs(MODEL)[None]), theirs, "cosine_cov")
    assert value == pytest.approx(float(expected[0, 0]), abs=1e-9)


@pytest.mark.slow
def test_the_bootstrap_agrees_with_rsatoolbox(rsa: Any) -> None:
    models = [rsa.model.ModelFixed(name, pairs(rdm)) for name, rdm in (("a", MODEL), ("b", BASELINE))]
    target = rsa.rdm.RDMs(pairs(TARGET)[None])
    np.random.seed(0)  # noqa: NPY002 (what rsatoolbox draws from)
    result = rsa.inference.eval_bootstrap_pattern(models, target, method="cosine", N=300, boot_noise_ceil=False)
    found = bootstrap_over_images([MODEL, BASELINE], TARGET, "cosine")
    theirs = result.evaluations[:, :, 0] if result.evaluations.ndim == 3 else result.evaluations
    np.testing.assert_allclose(found.mean(axis=0), theirs.mean(axis=0), atol=0.01)
    np.testing.assert_allclose(found.std(axis=0), theirs.std(axis=0), rtol=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measure": "spaerman"}, "did you mean 'spearman'"),
        ({"first": DATA.model}, "expected \\(n_images, n_images\\)"),
        ({"first": MODEL[:-1, :-1]}, "23 and 24 images"),
        ({"first": DATA.model @ DATA.model.T}, "diagonal of 0"),
        ({"first": MODEL + np.inf}, "NaN"),
        ({"first": MODEL[:3, :3], "second": TARGET[:3, :3]}, "at least 4"),
    ],
)
def test_what_is_no_rdm_is_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"first": MODEL, "second": TARGET, **change}
    with pytest.raises(ValueError, match=message):
        similarity(**given)


def test_what_has_no_dissimilarities_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'euclidean'"):
        dissimilarities(DATA.model @ DATA.model.T, "euclideen")
    x = np.vstack([DATA.model, DATA.model.mean(axis=0)])
    with pytest.raises(ValueError, match="image 24 has the mean features"):
        dissimilarities(x @ x.T, "cosine")
    repeats = DATA.repeats.copy()
    repeats[3, 2, 0] = np.nan
    with pytest.raises(ValueError, match="different numbers of repeats"):
        crossvalidated_gram(repeats)
    repeats[3, :, 1:] = np.nan
    repeats[3, :, 0] = 1.0
    with pytest.raises(ValueError, match="1 of 24 images"):
        crossvalidated_gram(repeats)
    with pytest.raises(ValueError, match="at least 20"):
        permutation_of_images(MODEL[:9, :9], TARGET[:9, :9])
    with pytest.raises(ValueError, match="n_resamples"):
        bootstrap_over_images([MODEL], TARGET, n_resamples=0)
