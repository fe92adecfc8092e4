"""Brain-Score's own PLS and ridge metrics, ceiling and score beside ours, on an assembly built here."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cnnf_brain.predictivity.crossval import make_splits
from cnnf_brain.predictivity.pls import cross_predict
from cnnf_brain.predictivity.ridge import ridge_predict
from cnnf_brain.predictivity.scores import (
    brainscore_ceiled,
    brainscore_r,
    ceiled,
    median_r,
    score_predictions,
    site_r,
    split_half_ceiling,
)

N, N_FEATURES, N_SITES, N_REPEATS, N_OBJECTS = 240, 600, 12, 6, 8


@pytest.fixture(scope="module")
def brainscore() -> Iterator[SimpleNamespace]:
    """The parts of brainscore-vision used here; its imports warn, and its plugins must not run pip."""
    os.environ["BS_INSTALL_DEPENDENCIES"] = "no"
    pytest.importorskip("brainscore_vision", reason="needs the brainscore extra")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from brainscore_core.supported_data_standards.brainio.assemblies import NeuroidAssembly
        from brainscore_vision import load_ceiling, load_metric
        from brainscore_vision.benchmark_helpers.neural_common import average_repetition, explained_variance
        from brainscore_vision.metric_helpers.transformations import Split

        yield SimpleNamespace(
            assembly=NeuroidAssembly,
            metric=load_metric("pls", crossvalidation_kwargs={"stratification_coord": "object_name"}),
            ridge=load_metric("ridge", crossvalidation_kwargs={"stratification_coord": "object_name"}),
            ceiling=load_ceiling("internal_consistency"),
            average_repetition=average_repetition,
            explained_variance=explained_variance,
            split=Split,
        )


@pytest.fixture(scope="module")
def experiment() -> SimpleNamespace:
    """Features, single presentations (stimulus, neuroid, repetition), ids in no order, objects."""
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((N, 12)) * np.linspace(2, 0.4, 12)
    features = latents @ rng.standard_normal((12, N_FEATURES)) + 0.5 * rng.standard_normal((N, N_FEATURES))
    signal = latents @ rng.standard_normal((12, N_SITES)) + 0.5 * rng.standard_normal((N, N_SITES))
    repeats = signal[:, :, None] + 3 * rng.standard_normal((N, N_SITES, N_REPEATS))
    ids = np.array([f"stimulus{i:03d}" for i in rng.permutation(N)])
    return SimpleNamespace(
        features=features, repeats=repeats, ids=ids, objects=np.array([f"o{i % N_OBJECTS}" for i in range(N)])
    )


@pytest.fixture(scope="module")
def theirs(brainscore: SimpleNamespace, experiment: SimpleNamespace) -> SimpleNamespace:
    """Brain-Score's raw score, ceiling and ceiled score, and the order in which it saw the stimuli."""
    flat = np.arange(N * N_REPEATS)
    stimulus, repetition = flat // N_REPEATS, flat % N_REPEATS
    neuroid = {"neuroid_id": ("neuroid", np.arange(N_SITES)), "region": ("neuroid", ["IT"] * N_SITES)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        single = brainscore.assembly(
            experiment.repeats[stimulus, :, repetition],
            coords={
                "stimulus_id": ("presentation", experiment.ids[stimulus]),
                "object_name": ("presentation", experiment.objects[stimulus]),
                "repetition": ("presentation", repetition),
                **neuroid,
            },
            dims=["presentation", "neuroid"],
        )
        target = brainscore.average_repetition(single)
        source = brainscore.assembly(
            experiment.features,
            coords={
                "stimulus_id": ("presentation", experiment.ids),
                "object_name": ("presentation", experiment.objects),
                "neuroid_id": ("neuroid", np.arange(N_FEATURES)),
                "layer": ("neuroid", ["a"] * N_FEATURES),
            },
            dims=["presentation", "neuroid"],
        )
        raw = brainscore.metric(source, target)
        ridge = brainscore.ridge(source, target)
        ceiling = brainscore.ceiling(single)
        score = brainscore.explained_variance(raw, ceiling)
    place = {stimulus: row for row, stimulus in enumerate(experiment.ids)}
    order = np.array([place[stimulus] for stimulus in target["stimulus_id"].values])
    return SimpleNamespace(raw=raw, ridge=ridge, ceiling=ceiling, score=score, order=order, target=target)


@pytest.fixture(scope="module")
def ours(experiment: SimpleNamespace, theirs: SimpleNamespace) -> Any:
    """Our scores on the stimuli in the order of Brain-Score's assembly."""
    features, repeats = experiment.features[theirs.order], experiment.repeats[theirs.order]
    responses = repeats.mean(axis=2)
    splits = make_splits("brainscore", experiment.ids[theirs.order], object_names=experiment.objects[theirs.order])
    predictions = cross_predict(features @ features.T, responses, splits, 25)
    return score_predictions(predictions, responses, repeats=repeats)


@pytest.mark.brainscore
def test_splits_are_those_of_brain_score(
    brainscore: SimpleNamespace, experiment: SimpleNamespace, theirs: SimpleNamespace
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for objects in ("object_name", None):
            ids, expected = brainscore.split(stratification_coord=objects, train_size=0.9).build_splits(theirs.target)
            names = experiment.objects[theirs.order] if objects else None
            splits = make_splits("brainscore", experiment.ids[theirs.order], object_names=names)
            assert ids["stimulus_id"].values.tolist() == experiment.ids[theirs.order].tolist()
            for split, (train, test) in zip(splits, expected, strict=True):
                assert split.train.tolist() == list(train)
                assert split.test.tolist() == list(test)


@pytest.mark.brainscore
def test_median_r_agrees(theirs: SimpleNamespace, ours: Any) -> None:
    assert brainscore_r(ours) == pytest.approx(float(theirs.raw), abs=1e-3)
    by_split = theirs.raw.attrs["raw"].transpose("split", "neuroid")
    assert median_r(ours) == pytest.approx(float(by_split.mean("split").median()), abs=1e-3)
    assert 0.2 < brainscore_r(ours) < 0.95  # neither nothing nor everything is predicted


@pytest.mark.brainscore
def test_every_site_and_split_agrees(theirs: SimpleNamespace, ours: Any) -> None:
    by_split = theirs.raw.attrs["raw"].transpose("split", "neuroid").sortby("neuroid_id").values
    assert np.abs(ours.r - by_split).max() < 5e-3  # their iterations end at tol=1e-6
    assert np.abs(site_r(ours) - by_split.mean(axis=0)).max() < 2e-3


@pytest.mark.brainscore
def test_ridge_agrees(theirs: SimpleNamespace, experiment: SimpleNamespace) -> None:
    features, responses = experiment.features[theirs.order], experiment.repeats[theirs.order].mean(axis=2)
    splits = make_splits("brainscore", experiment.ids[theirs.order], object_names=experiment.objects[theirs.order])
    predictions, _ = ridge_predict(features @ features.T, responses, splits, [1.0])  # its alpha
    by_split = theirs.ridge.attrs["raw"].transpose("split", "neuroid").sortby("neuroid_id").values
    scores = score_predictions(predictions, responses)
    assert np.abs(scores.r - by_split).max() < 1e-3
    assert brainscore_r(scores) == pytest.approx(float(theirs.ridge), abs=1e-3)


@pytest.mark.brainscore
def test_ceiling_and_score_agree(theirs: SimpleNamespace, ours: Any, experiment: SimpleNamespace) -> None:
    ceiling = float(theirs.ceiling)
    assert float(ceiled(float(theirs.raw), ceiling)) == pytest.approx(float(theirs.score), rel=1e-12)
    # theirs splits the repetition numbers of all images alike, ten times; ours image by image
    assert float(np.median(split_half_ceiling(experiment.repeats))) == pytest.approx(ceiling, abs=0.03)
    assert brainscore_ceiled(ours) == pytest.approx(float(theirs.score), abs=0.03)
