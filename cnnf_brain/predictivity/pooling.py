"""Several sources of one region scored apart, then pooled over their sites."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cnnf_brain.predictivity.statistics import comparison_of
from cnnf_brain.predictivity.swaps import swap_over_images, widening
from cnnf_brain.types import Difference, Predictions, Scores, Split


def pool_scores(parts: Sequence[Scores]) -> Scores:
    """Scores of several sources as one over all their sites; ceilings and pooled r only where every source has them."""

    def beside(name: str) -> np.ndarray | None:
        given = [values for part in parts if (values := getattr(part, name)) is not None]
        return np.concatenate(given) if len(given) == len(parts) else None

    return Scores(np.concatenate([part.r for part in parts], axis=1), beside("pooled"), beside("ceiling"))


def compare_pooled(
    pairs: Sequence[tuple[Scores, Scores]],
    *,
    predictions: Sequence[tuple[Predictions, Predictions]],
    responses: Sequence[np.ndarray],
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """The difference (model, baseline) over all sites of several sources; every source with the same number of splits.

    Fold s of the tests over folds is fold s of every source together. The swap test exchanges each source's images
    for its own sites alone, and widens by the largest factor that any source has by itself: pooling brings no images
    that would have trained another source's fits. Sites and images of different sources are independent.

    Parameters
    ----------
    pairs : sequence of (model, baseline) Scores, one for each source
    predictions, responses
        In the same order, as ``compare_scores`` takes them.

    Raises
    ------
    ValueError
        Numbers of splits that differ, no site with an r of both networks.
    """
    counts = sorted({len(scores.r) for pair in pairs for scores in pair})
    if len(counts) > 1:
        raise ValueError(
            f"sources with {' and '.join(map(str, counts))} splits cannot be pooled; use the same splits for all"
        )
    model, baseline = (pool_scores([pair[i] for pair in pairs]).r for i in (0, 1))
    if not np.isfinite(model - baseline).any():
        raise ValueError(f"none of the {model.shape[1]} sites of all sources has an r of both networks")
    mine, other = (_in_block(predictions, responses, which) for which in (0, 1))
    for a, b, out in zip(mine, other, _undefined(pairs), strict=True):
        a[:, out], b[:, out] = np.nan, np.nan
    everyone, splits = _block_rows(predictions, responses)
    factor = max(widening(pair[0].splits, len(y)) for pair, y in zip(predictions, responses, strict=True))
    swap = swap_over_images(mine, other, everyone, splits, widen_by=factor, n_resamples=n_resamples, seed=seed)
    own_splits = [split for pair in predictions for split in pair[0].splits]
    return comparison_of(model, baseline, own_splits, swap, n_resamples=n_resamples, seed=seed)


def _undefined(pairs: Sequence[tuple[Scores, Scores]]) -> list[np.ndarray]:
    """For each split of each source (in the order of ``_in_block``) which of all sites lack an r of either network."""
    everyone = [~np.isfinite(model.r - baseline.r) for model, baseline in pairs]
    n_sites = [out.shape[1] for out in everyone]
    found = []
    for number, out in enumerate(everyone):
        before, after = sum(n_sites[:number]), sum(n_sites[number + 1 :])
        found += [np.pad(row, (before, after), constant_values=True) for row in out]
    return found


def _in_block(
    predictions: Sequence[tuple[Predictions, Predictions]], responses: Sequence[np.ndarray], which: int
) -> list[np.ndarray]:
    """Held-out predictions of one network, split by split and source by source, NaN for the other sources' sites."""
    n_sites = [y.shape[1] for y in responses]
    found = []
    for number, pair in enumerate(predictions):
        start = sum(n_sites[:number])
        for values in pair[which].values:
            wide = np.full((values.shape[1], sum(n_sites)), np.nan)
            wide[:, start : start + n_sites[number]] = values[-1]
            found.append(wide)
    return found


def _block_rows(
    predictions: Sequence[tuple[Predictions, Predictions]], responses: Sequence[np.ndarray]
) -> tuple[np.ndarray, list[Split]]:
    """Responses of all sources as blocks of one array, and splits whose training rows are those of fold s everywhere."""
    rows, sites = ([0, *np.cumsum([y.shape[axis] for y in responses])] for axis in (0, 1))
    blocks = np.zeros((rows[-1], sites[-1]))
    for number, y in enumerate(responses):
        blocks[rows[number] : rows[number + 1], sites[number] : sites[number + 1]] = y
    trains = [
        np.concatenate([pair[0].splits[s].train + rows[number] for number, pair in enumerate(predictions)])
        for s in range(len(predictions[0][0].splits))
    ]
    splits = [
        Split(trains[s], split.test + rows[number])
        for number, pair in enumerate(predictions)
        for s, split in enumerate(pair[0].splits)
    ]
    return blocks, splits
