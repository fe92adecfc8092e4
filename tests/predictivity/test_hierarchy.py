"""The t test over animals: by hand, against scipy, with shared images, and its rates in small simulations."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from cnnf_brain.predictivity.hierarchy import HIERARCHICAL, supported, t_over_animals
from cnnf_brain.predictivity.permutation import HeldOut
from cnnf_brain.predictivity.scores import pearson
from cnnf_brain.predictivity.statistics import TESTS
from cnnf_brain.types import Split

N = 50
SPLIT = Split(np.arange(100 * N), np.arange(N))


def session(seed: int, better: float, sites: int = 5, images: npt.NDArray[Any] | None = None) -> HeldOut:
    """Predictions of which the model's noise is smaller by ``better``; ``images`` (N, 2) is noise that all sites share."""
    rng = np.random.default_rng(seed)
    responses = rng.standard_normal((N, sites))
    shared = np.zeros((N, 2)) if images is None else images
    noisy = [
        responses + size * (rng.standard_normal((N, sites)) / 3 + shared[:, [k]]) for k, size in ((0, 1 - better), (1, 1))
    ]
    return HeldOut([noisy[0]], [noisy[1]], responses, [SPLIT])


def difference(source: HeldOut) -> float:
    return float(np.median(pearson(source.model[0], source.responses) - pearson(source.baseline[0], source.responses)))


def labels(*names: str) -> list[npt.NDArray[Any]]:
    return [np.full(5, name) for name in names]


def test_animals_that_differ_are_scipys_one_sample_test() -> None:
    sources = [session(seed, better) for seed, better in enumerate((0.9, 0.9, -0.5, 0.1, 0.4))]
    found = t_over_animals(sources, labels("a", "a", "b", "c", "c"))
    one = [difference(source) for source in sources]
    means = [(one[0] + one[1]) / 2, one[2], (one[3] + one[4]) / 2]
    expected = stats.ttest_1samp(means, 0)
    assert (found.name, found.n, found.df) == (HIERARCHICAL, 3, 2)
    assert (found.statistic, found.p) == pytest.approx(tuple(expected))
    assert found.interval == pytest.approx(tuple(expected.confidence_interval()))


def test_animals_that_agree_by_chance_do_not_make_the_images_certain() -> None:
    one, again = session(0, 0.1), session(0, 0.1)
    found = t_over_animals([one, again], labels("a", "b"))  # the same difference to the digit
    assert found.interval is not None
    assert np.mean(found.interval) == pytest.approx(difference(one))
    assert np.ptp(found.interval) > 0.01
    same = t_over_animals([one, again], labels("a", "b"), images=["x", "x"])
    assert np.ptp(same.interval) == pytest.approx(np.sqrt(2) * np.ptp(found.interval), rel=0.1), "nothing averages out"  # type: ignore[arg-type]


def test_animals_of_one_source_are_those_of_two_that_saw_the_same_images() -> None:
    one, two = session(1, 0.3), session(2, 0.2)
    both = HeldOut(
        [np.hstack([one.model[0], two.model[0]])],
        [np.hstack([one.baseline[0], two.baseline[0]])],
        np.hstack([one.responses, two.responses]),
        [SPLIT],
    )
    found = t_over_animals([both], [np.repeat(["a", "b"], 5)], seed=3)
    apart = t_over_animals([one, two], labels("a", "b"), images=["x", "x"], seed=3)
    assert found.interval == pytest.approx(apart.interval)


def test_fewer_than_two_animals_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least two animals with a defined r, got 1 \(a\)"):
        t_over_animals([session(0, 0.1), session(1, 0.1)], labels("a", "a"))


def test_what_two_animals_support() -> None:
    assert "12.7 times its error" in supported(2)
    assert "almost no power" in supported(2)
    assert "2 degrees of freedom" in supported(3)
    assert "4.3 times" in supported(3)


@pytest.mark.slow
def test_the_rates_of_the_docs_in_small() -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location("coverage_of_docs", path)
        made = sys.modules["coverage_of_docs"] = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        spec.loader.exec_module(made)
    finally:
        sys.path.remove(str(path.parent))
    rates = np.mean([made.rejections(made.SETTINGS[0], np.random.default_rng([5, i]), i) for i in range(100)], axis=0)
    assert rates[0] < 0.12  # 5% has a standard error of 2%
    assert rates[1] > 0.2, "the bootstrap over two animals does not hold its level"
    assert TESTS[HIERARCHICAL].valid
