"""The score that Brain-Score computes of a plugin's model, and the one that `compare` computes, on recordings with repeats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from brainscore.toy_networks import toy_network

from cnnf_brain.gram import layer_grams
from cnnf_brain.predictivity.crossval import make_splits
from cnnf_brain.predictivity.pls import cross_predict
from cnnf_brain.predictivity.scores import brainscore_r, ceiled, score_predictions, site_r
from cnnf_brain.recordings import Recordings, load
from cnnf_brain.types import Images, LayerAt

N_IMAGES, N_SITES = 160, 6
LAYERS = {"V4": "pool1@2", "IT": "relu2@1"}


def part(recordings: Recordings) -> Recordings:
    """Some of the images and sites."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(recordings.images))[:N_IMAGES])
    images = Images(
        tuple(recordings.images.ids[i] for i in chosen), lambda i: recordings.images.read(int(chosen[i])), recordings.source
    )
    assert recordings.repeats is not None
    objects = recordings.object_names
    return Recordings(
        source=recordings.source,
        region=recordings.region,
        images=images,
        responses=recordings.responses[chosen, :N_SITES],
        site_ids=recordings.site_ids[:N_SITES],
        repeats=recordings.repeats[chosen, :N_SITES],
        object_names=None if objects is None else objects[chosen],
        simulated=recordings.simulated,
    )


def real_or_simulated(region: str, real: bool, request: Any) -> Recordings:
    if not real:
        return part(load(["simulated"], [region])[region][0])
    folder = request.getfixturevalue("shared") / "data" / "V4_compact_models"
    return part(load([str(folder)], [region], ["210325"])[region][0])  # the session with single repeats


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("V4", True), id="real V4"),
        pytest.param(("V4", False), id="simulated V4", marks=pytest.mark.slow),
        pytest.param(("IT", False), id="simulated IT"),
    ],
)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Brain-Score's score through the commitment and NeuralBenchmark, and ours on the same rows and splits."""
    from cnnf_brain.brainscore import IterationCommitment, IterationWrapper
    from cnnf_brain.brainscore.toy import assembly, neural_benchmark

    region, real = request.param
    recordings = real_or_simulated(region, real, request)
    network = toy_network()
    folder = tmp_path_factory.mktemp(f"{region}{real}")
    regions = {"V1": "conv1@0", "V2": "pool1@1", **LAYERS}
    bins = ((70, 120), (120, 170), (170, 220))
    model = IterationCommitment(IterationWrapper(network, f"agreement_{region}_{real}"), regions, bins, "logits")
    benchmark = neural_benchmark(recordings, region, folder)
    score = benchmark(model)

    order = [recordings.images.ids.index(str(name)) for name in benchmark._assembly["stimulus_id"].values]
    images = Images(tuple(recordings.images.ids[i] for i in order), lambda i: recordings.images.read(order[i]), "ordered")
    at = LayerAt.parse(LAYERS[region])
    product = layer_grams(network, images, [at], progress=False)[at]
    objects = recordings.object_names
    splits = make_splits("brainscore", images.ids, object_names=None if objects is None else objects[order])
    responses = recordings.responses[order]
    assert recordings.repeats is not None
    repeats = recordings.repeats[order]
    predictions = cross_predict(product.values, responses, splits, 25)
    ours = score_predictions(predictions, responses, repeats=repeats)
    return SimpleNamespace(
        score=score, ours=ours, benchmark=benchmark, responses=responses, single=assembly(recordings, region, folder)
    )


def test_the_same_responses_are_predicted(both: SimpleNamespace) -> None:
    averaged = both.benchmark._assembly.transpose("presentation", "neuroid").values
    np.testing.assert_allclose(averaged, both.responses, rtol=1e-9, atol=1e-9)


def test_median_r_agrees(both: SimpleNamespace) -> None:
    raw = both.score.attrs["raw"]
    assert float(raw) == pytest.approx(brainscore_r(both.ours), abs=1e-3)
    assert np.isfinite(float(raw))


def test_sites_agree(both: SimpleNamespace) -> None:
    """Brain-Score's PLS stops at tol 1e-6, which moves single sites a little more than the median."""
    by_site = both.score.attrs["raw"].attrs["raw"].mean("split").sortby("neuroid_id").values
    assert np.abs(np.sort(by_site) - np.sort(site_r(both.ours))).max() < 5e-3


def test_the_published_formula_is_reproduced(both: SimpleNamespace) -> None:
    raw, ceiling = float(both.score.attrs["raw"]), float(both.score.attrs["ceiling"])
    assert float(both.score) == pytest.approx(raw**2 / ceiling, rel=1e-12)
    assert float(both.score) == pytest.approx(float(ceiled(raw, ceiling)), rel=1e-12)
    assert float(both.score) == pytest.approx(brainscore_r(both.ours) ** 2 / ceiling, abs=4e-3)


def test_the_ceiling_is_near_ours(both: SimpleNamespace) -> None:
    """Brain-Score splits the numbers of the repetitions ten times; ours every image's own repeats."""
    assert both.ours.ceiling is not None
    assert float(np.median(both.ours.ceiling)) == pytest.approx(float(both.score.attrs["ceiling"]), abs=0.06)
    assert 0.2 < float(both.score.attrs["ceiling"]) < 1


def test_recordings_without_repeats_have_no_ceiling(tmp_path: Path) -> None:
    from cnnf_brain.brainscore.toy import assembly

    whole = part(load(["simulated"], ["V4"])["V4"][0])
    bare = replace(whole, source="bare", repeats=None)
    with pytest.raises(ValueError, match="bare: these recordings hold no repeats, which Brain-Score's ceiling is made of"):
        assembly(bare, "V4", tmp_path)
