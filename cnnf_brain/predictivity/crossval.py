"""Cross-validation splits by name, and the choice of a layer on training images alone."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cnnf_brain.checks import unknown
from cnnf_brain.predictivity.scores import median_r, score_predictions
from cnnf_brain.types import Array, LayerAt, Predictions, Scores, Split

Predict = Callable[[Array, Array, Sequence[Split]], Predictions]  # of a Gram, responses and splits

N_SPLITS = 10
SCHEMES = ("kfold", "brainscore")
# Test images that each split must have at least. r of two images is always 1 or -1; r of three unrelated ones is near 1
# or -1 more often than near 0; the error of r, 1 / sqrt(n - 3) in Fisher's z, is finite from four on.
MIN_TEST = 4


def make_splits(
    name: str, image_ids: Sequence[str], *, object_names: Sequence[str] | Array | None = None, seed: int = 0
) -> tuple[Split, ...]:
    """Ten splits of the images into training and test images, at least 4 test images in each.

    Parameters
    ----------
    name : {"kfold", "brainscore"}
        ``kfold``: ten folds, each image in the test set of exactly one; the order of the images does not matter.

        ``brainscore``: Brain-Score's ten random splits, 90% for training (``Split`` in metric_helpers/transformations.py of
        brainscore_vision 2.4.2). Test sets overlap between splits. Brain-Score splits the images **in the order of its
        (repetition-averaged) assembly**, so the rows must come in that order for its very splits.
    image_ids : (n_images,) sequence of str
    object_names : (n_images,) sequence of str, optional
        ``brainscore`` is stratified on them.
    seed : int
        Of the shuffle of ``kfold``; the random state of ``brainscore`` is always 1.

    Raises
    ------
    ValueError
        Unknown name, repeated ids, too few images (``kfold`` needs 40, ``brainscore`` 31), or an object with too few.
    """
    if name not in SCHEMES:
        raise unknown("cross-validation", name, SCHEMES)
    ids = [str(name) for name in image_ids]
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(f"image ids occur more than once: {', '.join(twice[:5])}; average their repeats first")
    needed = next(n for n in itertools.count(N_SPLITS) if _test_images(name, n) >= MIN_TEST)
    if len(ids) < needed:
        raise ValueError(
            f"{len(ids)} images are too few for cross-validation {name!r}: at least {needed} are needed, so that each of "
            f"its {N_SPLITS} splits has {MIN_TEST} test images to correlate over; use recordings with more images"
        )
    return _kfold(ids, seed) if name == "kfold" else _brainscore(len(ids), object_names)


def _test_images(name: str, n: int) -> int:
    """The number of test images of the smallest split of n images."""
    return n // N_SPLITS if name == "kfold" else n - int(0.9 * n)


def _kfold(ids: Sequence[str], seed: int) -> tuple[Split, ...]:
    from sklearn.model_selection import KFold

    order = np.argsort(ids, kind="stable")
    folds = KFold(N_SPLITS, shuffle=True, random_state=seed).split(order)
    return tuple(Split(np.sort(order[train]), np.sort(order[test])) for train, test in folds)


def _brainscore(n: int, object_names: Sequence[str] | Array | None) -> tuple[Split, ...]:
    from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit

    options = {"n_splits": N_SPLITS, "train_size": 0.9, "random_state": 1}
    if object_names is None:
        return tuple(Split(train, test) for train, test in ShuffleSplit(**options).split(np.zeros(n)))
    names = [str(name) for name in object_names]
    if len(names) != n:
        raise ValueError(f"{len(names)} object names were given for {n} images; one is needed for each")
    counts = Counter(names)
    rarest, fewest = min(counts.items(), key=lambda item: item[1])
    n_test = _test_images("brainscore", n)
    if fewest < 2 or n_test < len(counts):
        raise ValueError(
            f"Brain-Score's stratified splits need at least 2 images of each object ({rarest!r} has {fewest}) and as "
            f"many test images as objects ({n_test} test images of {n}, {len(counts)} objects); take cross-validation "
            "'kfold' or leave the object names out"
        )
    return tuple(Split(train, test) for train, test in StratifiedShuffleSplit(**options).split(np.zeros(n), names))


def select_nested(
    candidates: Mapping[LayerAt, Array],
    responses: Array,
    splits: Sequence[Split],
    predict: Predict,
) -> tuple[Predictions, tuple[LayerAt, ...]]:
    """Predict each split's test images from the candidate that does best within its training images.

    The inner cross-validation of a split uses the test sets of the other splits, as far as they lie within its
    training images, and trains on the rest of these (with ten folds: the nine training folds in turn). The candidate
    with the highest median r (``scores.median_r``) wins, the first one where several are equal. Neither features nor
    responses of the split's own test images have any part in the choice.

    ``candidates`` are Grams (n_images, n_images). ``predict`` fits one of them: a function (gram, responses, splits) such as
    ``cross_predict``. Returns the predictions of the chosen candidate for each split, and the choices. A ValueError: no
    candidate, a single split, or what ``predict`` refuses (inner training sets are smaller).
    """
    if not candidates:
        raise ValueError("there are no candidates to choose from; name at least one layer and iteration")
    inner = [inner_splits(splits, number) for number in range(len(splits))]
    names = list(candidates)
    quality = np.array([_inner_quality(candidates[name], responses, inner, predict) for name in names])
    if np.isnan(quality).all(axis=0).any():
        raise ValueError("no candidate has a defined r on the training images: are predictions or responses constant?")
    best = np.nanargmax(quality, axis=0)
    found: dict[int, tuple[Array, int]] = {}
    for candidate in np.unique(best):
        predicted = predict(candidates[names[candidate]], responses, splits)  # of all: ridge needs the others' test images
        mine = np.flatnonzero(best == candidate).tolist()
        found |= {number: (predicted.values[number], predicted.ranks[number]) for number in mine}
    values, ranks = zip(*(found[number] for number in range(len(splits))), strict=True)
    return Predictions(tuple(splits), values, ranks), tuple(names[candidate] for candidate in best)


def inner_splits(splits: Sequence[Split], number: int) -> list[Split]:
    """The inner cross-validation within the training rows of splits[number]."""
    outer = splits[number].train
    tests = [np.intersect1d(other.test, outer) for other in (*splits[:number], *splits[number + 1 :])]
    inner = [Split(np.setdiff1d(outer, test), test) for test in tests if 0 < len(test) < len(outer)]
    if not inner:
        raise ValueError(f"the choice for split {number} needs other splits whose test images it trains on")
    return inner


def _inner_quality(gram: Array, responses: Array, inner: list[list[Split]], predict: Predict) -> list[float]:
    """Median r within the training rows of each outer split; all inner folds are fitted in one call."""
    flat = [split for folds in inner for split in folds]
    r = score_predictions(predict(gram, responses, flat), responses).r
    starts = np.cumsum([len(folds) for folds in inner])[:-1]
    return [median_r(Scores(part, None, None)) for part in np.split(r, starts)]
