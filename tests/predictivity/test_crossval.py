"""Splits by name; nested choice of a layer."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.model_selection import KFold

from cnnf_brain.predictivity.crossval import make_splits, select_nested
from cnnf_brain.predictivity.pls import cross_predict
from cnnf_brain.types import LayerAt, Split

IDS = tuple(f"image{i:03d}" for i in np.random.default_rng(0).permutation(83))
OBJECTS = np.array([f"object{i % 4}" for i in range(83)])


def test_kfold_tests_each_image_once_and_trains_on_the_others() -> None:
    splits = make_splits("kfold", IDS)
    assert len(splits) == 10
    assert sorted(np.concatenate([split.test for split in splits])) == list(range(83))
    for split in splits:
        assert len(split.test) in (8, 9)
        assert sorted([*split.train, *split.test]) == list(range(83))


def test_kfold_does_not_depend_on_the_order_of_the_images() -> None:
    order = np.random.default_rng(1).permutation(83)
    moved = [IDS[i] for i in order]
    for split, other in zip(make_splits("kfold", IDS), make_splits("kfold", moved), strict=True):
        assert {IDS[i] for i in split.test} == {moved[i] for i in other.test}


def test_kfold_depends_on_the_seed_alone() -> None:
    first, again, other = (make_splits("kfold", IDS, seed=seed)[0].test for seed in (3, 3, 4))
    assert (first == again).all()
    assert set(first) != set(other)


def test_brainscore_splits_are_random_ninetieths_stratified_on_the_object() -> None:
    splits = make_splits("brainscore", IDS, object_names=OBJECTS)
    assert len(splits) == 10
    for split in splits:
        assert (len(split.train), len(split.test)) == (74, 9)
        assert not set(split.train) & set(split.test)
        assert set(Counter(OBJECTS[split.test]).values()) <= {2, 3}
    tested = Counter(np.concatenate([split.test for split in splits]).tolist())
    assert max(tested.values()) > 1  # not folds: images come back


def test_brainscore_splits_without_objects_are_plain_shuffle_splits() -> None:
    splits = make_splits("brainscore", IDS)
    assert [(len(split.train), len(split.test)) for split in splits] == [(74, 9)] * 10
    assert not all(set(Counter(OBJECTS[split.test]).values()) <= {2, 3} for split in splits)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("kfolds", IDS), {}, "'kfolds' is not known; did you mean 'kfold'"),
        (
            ("kfold", IDS[:9]),
            {},
            "9 images are too few .*'kfold': at least 40 are needed, so that each of its 10 splits has 4",
        ),
        (("kfold", IDS[:11]), {}, "11 images are too few"),
        (("kfold", IDS[:20]), {}, "20 images are too few"),
        (("kfold", IDS[:39]), {}, "39 images are too few"),
        (("brainscore", IDS[:30]), {}, "30 images are too few .*'brainscore': at least 31 are needed"),
        (("brainscore", IDS[:11]), {"object_names": [*"aaaaaabbbbb"]}, "11 images are too few"),
        (("kfold", ["a"] * 12), {}, "more than once: a"),
        (("brainscore", IDS), {"object_names": OBJECTS[:-1]}, "82 object names were given for 83 images"),
        (("brainscore", IDS[:40]), {"object_names": [*"aaa" * 13, "c"]}, "'c' has 1.*take cross-validation 'kfold'"),
        (("brainscore", IDS[:40]), {"object_names": [*"abcdefgh"] * 5}, "4 test images of 40, 8 objects"),
    ],
)
def test_splits_that_cannot_be_are_refused(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_splits(*arguments, **options)


@pytest.mark.parametrize("n", [40, 41, 64, 83])
def test_every_fold_has_the_images_that_a_correlation_needs(n: int) -> None:
    splits = make_splits("kfold", IDS[:n])
    assert sorted({len(split.test) for split in splits}) == sorted({n // 10, -(-n // 10)})
    order = np.argsort(IDS[:n])  # as before there was a limit
    for split, (train, test) in zip(splits, KFold(10, shuffle=True, random_state=0).split(order), strict=True):
        assert split.train.tolist() == sorted(order[train])
        assert split.test.tolist() == sorted(order[test])


@pytest.mark.parametrize("n", [31, 64])
def test_brainscore_splits_have_the_images_that_a_correlation_needs(n: int) -> None:
    assert {len(split.test) for split in make_splits("brainscore", IDS[:n])} == {n - int(0.9 * n)}
    assert n - int(0.9 * n) >= 4


THREE = partial(cross_predict, n_components=3)
GOOD, NOISE = LayerAt("good", 1), LayerAt("noise", 2)


def experiment(seed: int = 0) -> tuple[dict[LayerAt, npt.NDArray[Any]], npt.NDArray[Any], tuple[Split, ...]]:
    """A candidate that explains the responses and one that does not; 83 images, 4 sites."""
    rng = np.random.default_rng(seed)
    features, noise = rng.standard_normal((2, 83, 12))
    responses = features @ rng.standard_normal((12, 4)) + 0.5 * rng.standard_normal((83, 4))
    return {NOISE: noise @ noise.T, GOOD: features @ features.T}, responses, make_splits("kfold", IDS)


@pytest.mark.parametrize("per_site", [False, True])
def test_the_candidate_that_predicts_is_chosen_and_its_predictions_are_taken(per_site: bool) -> None:
    candidates, responses, splits = experiment()
    predictions, chosen = select_nested(
        candidates, responses, splits, partial(cross_predict, n_components=3, per_site=per_site)
    )
    expected = cross_predict(candidates[GOOD], responses, splits, 3, per_site=per_site)
    assert chosen == (GOOD,) * 10
    for values, wanted in zip(predictions.values, expected.values, strict=True):
        np.testing.assert_allclose(values, wanted, atol=1e-11)
    assert predictions.splits == splits
    assert predictions.ranks == expected.ranks


def test_the_choice_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(5)
    _, responses, splits = experiment(5)
    candidates = {}
    for number in range(4):  # equally good candidates: the choice differs between splits
        features = responses @ rng.standard_normal((4, 9)) + 4 * rng.standard_normal((83, 9))
        candidates[LayerAt("layer", number)] = features @ features.T
    _, chosen = select_nested(candidates, responses, splits, THREE)
    assert len(set(chosen)) > 1
    for number, outer in enumerate(splits):
        quality = {}
        for name, gram in candidates.items():
            r = np.empty((9, 4))
            for row, fold in enumerate(split for i, split in enumerate(splits) if i != number):
                train = np.array([i for i in outer.train if i not in set(fold.test)])
                values = cross_predict(gram, responses, [Split(train, fold.test)], 3).values[0][-1]
                r[row] = [np.corrcoef(values[:, site], responses[fold.test, site])[0, 1] for site in range(4)]
            quality[name] = np.median(r.mean(axis=0))
        assert chosen[number] == max(quality, key=quality.get)  # type: ignore[arg-type]


def test_test_images_have_no_part_in_the_choice() -> None:
    candidates, responses, splits = experiment()
    test = splits[4].test
    reversed_responses = responses.copy()
    reversed_responses[test] *= -1  # the candidate that is good on the training images is the worst on these
    predictions, chosen = select_nested(candidates, reversed_responses, splits, THREE)
    by_candidate = {
        name: np.corrcoef(cross_predict(gram, responses, splits, 3).values[4][-1].ravel(), reversed_responses[test].ravel())
        for name, gram in candidates.items()
    }
    assert by_candidate[GOOD][0, 1] < by_candidate[NOISE][0, 1]
    assert chosen[4] == GOOD
    np.testing.assert_allclose(predictions.values[4], cross_predict(candidates[GOOD], responses, splits, 3).values[4])


def test_overlapping_test_sets_stay_outside_the_inner_training_images() -> None:
    candidates, responses, _ = experiment()
    splits = make_splits("brainscore", IDS, object_names=OBJECTS)
    predictions, chosen = select_nested(candidates, responses, splits, THREE)
    assert chosen == (GOOD,) * 10
    assert [values.shape for values in predictions.values] == [(3, 9, 4)] * 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": {}}, "no candidates to choose from"),
        ({"splits": make_splits("kfold", IDS)[:1]}, "split 0 needs other splits"),
        ({"predict": partial(cross_predict, n_components=70)}, "70 components cannot be fitted"),
        ({"responses": np.ones((83, 4))}, "no candidate has a defined r"),
    ],
)
def test_impossible_choices_are_refused(change: Any, message: str) -> None:
    candidates, responses, splits = experiment()
    given = {"candidates": candidates, "responses": responses, "splits": splits, "predict": THREE} | change
    with pytest.raises(ValueError, match=message):
        select_nested(**given)
