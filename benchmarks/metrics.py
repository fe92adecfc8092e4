"""Ridge, RSA and CKA from K beside himalaya and the time of K itself, in one run.

    python benchmarks/metrics.py                 # 2560 images, 25,088 features, 168 sites, ten folds: 10 to 30 minutes on two cores
    python benchmarks/metrics.py --images 960    # smaller
    python benchmarks/metrics.py --agreements    # K, RSA and CKA alone: a minute, without himalaya

It needs himalaya (``benchmarks/requirements.txt``). Both ridges start from the same K and choose the penalty of each site from the
same grid, within the training images of each of ten folds, by the same inner folds; himalaya's ``KernelRidgeCV`` is fitted to
each fold's training rows. RSA (Spearman) and CKA include the dissimilarities of the layer, those of the recordings, and
comparing the two. CPU seconds, for other programs beside it change these less; medians of ``--repeats`` runs, but himalaya and the
resamples run once. With one thread (OMP_NUM_THREADS=1) they are what a quiet core takes.
``results/benchmark-metrics.json`` holds them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from pls import N_COMPONENTS, OUTPUT, first_splits, recordings, streamed_gram, timed
from sklearn.model_selection import PredefinedSplit

from cnnf_brain.io import atomic_path
from cnnf_brain.predictivity.pls import cross_predict
from cnnf_brain.predictivity.ridge import GRID, GridEndWarning, ridge_predict
from cnnf_brain.predictivity.scores import pearson
from cnnf_brain.predictivity.similarity import bootstrap_over_images, dissimilarities, similarity
from cnnf_brain.types import Split

CPU = time.process_time


def himalaya(gram: np.ndarray, responses: np.ndarray, splits: list[Split], grid: np.ndarray) -> list[np.ndarray]:
    """Held-out predictions of each split."""
    from himalaya.kernel_ridge import KernelRidgeCV

    of_fold = np.empty(len(gram), dtype=int)
    for number, split in enumerate(splits):
        of_fold[split.test] = number
    predictions = []
    for split in splits:
        inner = PredefinedSplit(of_fold[split.train])
        model = KernelRidgeCV(grid, kernel="precomputed", cv=inner, fit_intercept=True)
        model.fit(gram[np.ix_(split.train, split.train)], responses[split.train])
        predictions.append(model.predict(gram[np.ix_(split.test, split.train)]))
    return predictions


def both(gram: np.ndarray, responses: np.ndarray) -> tuple[float, float]:
    """RSA and CKA of a layer with recordings, from their Grams."""
    layer, target = dissimilarities(gram), dissimilarities(responses @ responses.T)
    return similarity(layer, target, "spearman"), similarity(layer, target, "cka")


def resamples(gram: np.ndarray, responses: np.ndarray, measure: str) -> np.ndarray:
    layer, target = dissimilarities(gram), dissimilarities(responses @ responses.T)
    return bootstrap_over_images([layer], target, measure, n_resamples=100)


def measure(n: int, n_features: int, n_sites: int, repeats: int, *, agreements: bool = False) -> dict:
    """Seconds of each, and how the ridges agree; of ``agreements`` alone without regressions and resamples."""
    features, responses = recordings(n, n_features, n_sites)
    splits = first_splits(n, 10)
    seconds: dict[str, float] = {}
    seconds["K"], gram = timed(lambda: streamed_gram(features), repeats, CPU)
    seconds["RSA and CKA"], _ = timed(lambda: both(gram, responses), repeats, CPU)
    if agreements:
        return {"seconds": seconds, "RSA and CKA over K": seconds["RSA and CKA"] / seconds["K"]}
    seconds["PLS, ten folds"], _ = timed(lambda: cross_predict(gram, responses, splits, N_COMPONENTS), repeats, CPU)
    seconds["ridge, ten folds"], (predictions, _) = timed(lambda: ridge_predict(gram, responses, splits), repeats, CPU)
    for name in ("spearman", "cka"):
        seconds[f"100 resamples, {name}"], _ = timed(lambda name=name: resamples(gram, responses, name), 1, CPU)
    centred = gram - gram.mean(axis=0)
    grid = GRID * np.trace(centred - centred.mean(axis=1, keepdims=True)) / n
    seconds["himalaya, ten folds"], theirs = timed(lambda: himalaya(gram, responses, splits, grid), 1, CPU)
    r = [
        np.abs(pearson(mine[0], responses[split.test]) - pearson(other, responses[split.test])).max()
        for mine, other, split in zip(predictions.values, theirs, splits, strict=True)
    ]
    return {
        "size": {"images": n, "features": n_features, "sites": n_sites, "penalties": len(grid)},
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "seconds": seconds,
        "largest difference in r": float(max(r)),
        "ridge, times faster than himalaya": seconds["himalaya, ten folds"] / seconds["ridge, ten folds"],
        "RSA and CKA over K": seconds["RSA and CKA"] / seconds["K"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--features", type=int, default=25088)
    parser.add_argument("--sites", type=int, default=168)
    parser.add_argument(
        "--agreements", action="store_true", help="K, RSA and CKA alone, without himalaya; nothing is written"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each but himalaya")
    parser.add_argument("--output", type=Path, default=OUTPUT.with_name("benchmark-metrics.json"))
    options = parser.parse_args()
    warnings.simplefilter("ignore", GridEndWarning)
    measure(100, 200, 5, 1, agreements=options.agreements)  # loads libraries, starts threads
    result = measure(options.images, options.features, options.sites, options.repeats, agreements=options.agreements)
    if options.agreements:
        print(json.dumps(result, indent=1))
        return 0 if result["RSA and CKA over K"] < 1 else 1
    options.output.parent.mkdir(exist_ok=True)
    with atomic_path(options.output) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    met = result["ridge, times faster than himalaya"] >= 3 and result["RSA and CKA over K"] < 1
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
