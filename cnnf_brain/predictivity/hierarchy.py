"""A difference in predictivity for new animals: animals, their sessions and images as random effects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from cnnf_brain.predictivity.permutation import HeldOut, resampled, widening
from cnnf_brain.types import Array, TestResult

HIERARCHICAL = "t over animals"
RESAMPLES = 2000  # of the images: their variance is known to 3%


def t_over_animals(
    sources: Sequence[HeldOut],
    animals: Sequence[Array],
    *,
    images: Iterable[Any] | None = None,
    n_resamples: int = RESAMPLES,
    seed: int = 0,
) -> TestResult:
    """Whether new animals, in new sessions and shown new images, would prefer the model: a t test over animals.

    An animal's difference is the mean over its sessions (its sites in one source) of the median over sites of the difference in
    r. The estimate is the mean over animals. Their variance s² holds what differs between animals, sessions and images. Few
    animals can lie close together by chance, so s² is not taken to be less than what images alone contribute:

        error² = max(s², v - c) / n_animals + c

    v is the mean variance of an animal's difference under the resampled images of ``permutation_over_images``, widened for
    training as there. c is the mean covariance of two animals, above 0 where they saw the same images. There are
    n_animals - 1 degrees of freedom (the modified Hartung-Knapp method of meta-analysis, Röver et al. 2015). With two animals a
    difference must be 12.7 times its error for p < 0.05.

    Parameters
    ----------
    sources : sequence of HeldOut
        One for each session.
    animals : sequence of (n_sites,) arrays of str
        The animal of each site of each source.
    images : sequence, optional
        A name for the images of each source: the same name, the same images. Default: all sources have images of their own.
    n_resamples, seed : int
        Of the images.

    Returns
    -------
    TestResult
        ``statistic`` t, ``n`` animals, ``interval`` of the mean difference, in whose middle the estimate lies.

    Raises
    ------
    ValueError
        Fewer than two animals have a site that is defined.
    """
    drawn = _by_animal(sources, animals, range(len(sources)) if images is None else images, (n_resamples, seed))
    n = len(drawn)
    if n < 2:
        raise ValueError(
            f"a test over animals needs at least two animals with a defined r, got {n} ({', '.join(drawn) or 'none'})"
        )
    found = np.array([np.mean([d for d, _ in sessions]) for sessions in drawn.values()])
    spread = np.cov([np.mean([e for _, e in sessions], axis=0) for sessions in drawn.values()])
    common = max(0.0, (spread.sum() - np.trace(spread)) / (n * (n - 1)))
    own = np.trace(spread) / n - common
    error = float(np.sqrt(max(found.var(ddof=1), own) / n + common))
    estimate = float(found.mean())
    t = estimate / error if error else float(np.copysign(np.inf, estimate)) if estimate else 0.0
    half = float(stats.t.ppf(0.975, n - 1)) * error
    return TestResult(HIERARCHICAL, t, float(2 * stats.t.sf(abs(t), n - 1)), n, n - 1.0, (estimate - half, estimate + half))


def _by_animal(
    sources: Sequence[HeldOut], animals: Sequence[Array], images: Iterable[Any], draws: tuple[int, int]
) -> dict[str, list[tuple[float, Array]]]:
    """Of each animal and session the median difference, and that of every resample of the images, (n_resamples,)."""
    parts, names = [], []
    for source, sites, name in zip(sources, animals, images, strict=True):
        for animal in dict.fromkeys(sites):
            mine = sites == animal
            model, baseline = ([values[:, mine] for values in one] for one in (source.model, source.baseline))
            parts.append((str(animal), HeldOut(model, baseline, source.responses[:, mine], source.splits)))
            names.append(name)
    drawn: dict[str, list[tuple[float, Array]]] = {}
    for (animal, part), (d, e) in zip(parts, resampled([part for _, part in parts], names, *draws), strict=True):
        if len(d):
            factor = widening(part.splits, len(part.responses))
            drawn.setdefault(animal, []).append((float(np.median(d)), factor * np.median(e, axis=1)))
    return drawn


def supported(n_animals: int) -> str:
    """What a test over so many animals can show, in a sentence or two."""
    said = (
        f"The test over {n_animals} animals has {n_animals - 1} degree{'s' * (n_animals > 2)} of freedom: p < 0.05 needs a "
        f"difference of {stats.t.ppf(0.975, n_animals - 1):.1f} times its error."
    )
    if n_animals > 2:
        return said
    return f"{said} It has almost no power and cannot speak for other animals: read the rows of each animal as two cases."
