"""Iterations as time: how bins are shared out, and what Brain-Score's own classes make of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from brainscore.toy_networks import toy_network
from sklearn.cross_decomposition import PLSRegression
from tiny import images

from cnnf_brain.images import batches
from cnnf_brain.types import Images, LayerAt

BINS = ((70, 120), (120, 170), (170, 220))
REGIONS = {"V1": "conv1@0", "V2": "pool1@1", "V4": "pool1@2", "IT": "relu2@2"}


@pytest.fixture(scope="module")
def pieces() -> SimpleNamespace:
    """What of the package and of Brain-Score is used here, imported after the homes are set."""
    from brainscore_core.supported_data_standards.brainio.assemblies import NeuronRecordingAssembly
    from brainscore_core.supported_data_standards.brainio.stimuli import StimulusSet
    from brainscore_vision import load_metric
    from brainscore_vision.benchmark_helpers.neural_common import NeuralBenchmark
    from brainscore_vision.metrics import Score

    from cnnf_brain.brainscore import IterationCommitment, IterationWrapper, wrapper

    return SimpleNamespace(
        NeuronRecordingAssembly=NeuronRecordingAssembly,
        StimulusSet=StimulusSet,
        load_metric=load_metric,
        NeuralBenchmark=NeuralBenchmark,
        Score=Score,
        IterationCommitment=IterationCommitment,
        IterationWrapper=IterationWrapper,
        wrapper=wrapper,
    )


@pytest.fixture(scope="module")
def shown(pieces: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Writes images as a StimulusSet of a name of its own."""
    folder = tmp_path_factory.mktemp("shown")

    def show(stimuli: Images, name: str, **about: Any) -> Any:
        made = pieces.StimulusSet({"stimulus_id": list(stimuli.ids), **about})
        made.stimulus_paths = {}
        for number, key in enumerate(stimuli.ids):
            path = folder / f"{name}-{key}.png"
            path.write_bytes(stimuli.read(number))
            made.stimulus_paths[key] = path
        made.identifier = f"{folder.name}.{name}"
        return made

    return show


@pytest.fixture
def commitment(pieces: SimpleNamespace, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes a committed toy network under an identifier of its own."""
    made = []

    def commit(network: Any = None, regions: Any = REGIONS, bins: Any = BINS, readout: str = "logits") -> Any:
        network = network or toy_network()
        made.append(network)
        wrapper = pieces.IterationWrapper(network, f"{request.node.name}_{len(made)}".replace("[", "_").replace("]", ""))
        return pieces.IterationCommitment(wrapper, regions, bins, readout)

    return commit


def direct(network: Any, stimuli: Images, *names: str) -> list[npt.NDArray[Any]]:
    """Features (n_images, n_features) of the network itself, not through Brain-Score."""
    with torch.inference_mode():
        (batch,) = batches(stimuli, network.preprocessing, len(stimuli))
        found = network.module.unroll(batch, return_layers=names).layers
    return [found[LayerAt.parse(name)].flatten(1).numpy() for name in names]


def rows(found: Any, time_bin: int | None = None) -> npt.NDArray[Any]:
    """(presentation, neuroid) by number of the unit, of one time bin."""
    part = found if time_bin is None else found.isel(time_bin=time_bin)
    return part.transpose("presentation", "neuroid").values[:, np.argsort(part["neuroid_num"].values, kind="stable")]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ([(70, 170)], [[0.5, 0.5, 0]]),
        ([(70, 120), (120, 170), (170, 220)], np.eye(3)),
        ([(0, 70), (50, 120)], [[1, 0, 0], [1, 0, 0]]),  # before the first bin there is the first pass alone
        ([(220, 400), (200, 300)], [[0, 0, 1], [0, 0, 1]]),  # the last iteration holds
        ([(100, 140), (110, 120), (115, 175)], [[0.5, 0.5, 0], [1, 0, 0], [5 / 60, 50 / 60, 5 / 60]]),
    ],
)
def test_shares_of_a_bin_are_its_overlap_with_each_iteration(
    pieces: SimpleNamespace, asked: list[Any], expected: Any
) -> None:
    found = pieces.wrapper.shares(BINS, asked)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_bin_without_extent_has_no_shares(pieces: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="time bin 100-100 ms has no extent"):
        pieces.wrapper.shares(BINS, [(70, 100), (100, 100)])


def test_default_bins(pieces: SimpleNamespace) -> None:
    assert pieces.wrapper.default_bins(2) == BINS
    assert pieces.wrapper.default_bins(0) == ((70, 120),)


@pytest.mark.parametrize(
    ("bins", "iterations", "message"),
    [
        (BINS, 3, "3 time bins for iterations 0 to 3; expected 4, one for each"),
        (((70, 120), (130, 170)), 1, "70-120 130-170: expected START-END in ms, each starting where the one before ends"),
        (((120, 70),), 0, "120-70: expected START-END in ms"),
    ],
)
def test_bins_that_do_not_fit(pieces: SimpleNamespace, bins: Any, iterations: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pieces.wrapper.check_bins(bins, iterations)


def test_each_time_bin_is_answered_by_its_iterations(commitment: Callable[..., Any], shown: Callable[..., Any]) -> None:
    network, stimuli = toy_network(), images(6)
    model = commitment(network)
    model.start_recording("V4", time_bins=[(70, 120), (120, 170), (145, 195)])
    found = model.look_at(shown(stimuli, "each"))
    zero, one, two = direct(network, stimuli, "pool1@0", "pool1@1", "pool1@2")
    assert found.sizes["time_bin"] == 3
    assert [tuple(bin_) for bin_ in found["time_bin"].values] == [(70, 120), (120, 170), (145, 195)]
    for number, expected in enumerate((zero, one, 0.5 * one + 0.5 * two)):
        np.testing.assert_allclose(rows(found, number), expected, rtol=1e-4, atol=1e-4)
    assert np.abs(zero - one).max() > 0.01
    assert np.abs(one - two).max() > 0.01
    assert set(found["region"].values) == {"V4"}
    assert set(found["layer"].values) == {"pool1"}
    assert len(set(found["neuroid_id"].values)) == found.sizes["neuroid"] == zero.shape[1]


def test_one_time_bin_is_answered_by_the_map(commitment: Callable[..., Any], shown: Callable[..., Any]) -> None:
    network, stimuli = toy_network(), images(6)
    model = commitment(network)
    (two,) = direct(network, stimuli, "pool1@2")
    for number, bins in enumerate(([(70, 170)], [np.array((70, 170))])):
        model.start_recording("V4", time_bins=bins)
        found = model.look_at(shown(stimuli, f"one{number}"))
        assert "time_bin" not in found.dims
        np.testing.assert_allclose(rows(found), two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("disabled", ["0", "1"], ids=["cached", "uncached"])
def test_v4_and_it_one_after_the_other(
    commitment: Callable[..., Any], shown: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, homes: Path, disabled: str
) -> None:
    """Each region has its own features, in one bin and in several, the first time and when the cache answers."""
    monkeypatch.setenv("RESULTCACHING_DISABLE", disabled)
    network, stimuli = toy_network(), images(6)
    model, seen = commitment(network), shown(stimuli, f"after{disabled}")
    expected = {"V4": direct(network, stimuli, "pool1@0", "pool1@1", "pool1@2")}
    expected["IT"] = direct(network, stimuli, "relu2@0", "relu2@1", "relu2@2")
    assert expected["V4"][0].shape != expected["IT"][0].shape
    for _ in range(2):
        for region in ("V4", "IT", "V4"):
            model.start_recording(region, time_bins=BINS)
            found = model.look_at(seen)
            for number in range(3):
                np.testing.assert_allclose(rows(found, number), expected[region][number], rtol=1e-4, atol=1e-4)
            model.start_recording(region, time_bins=[(70, 170)])
            np.testing.assert_allclose(rows(model.look_at(seen)), expected[region][2], rtol=1e-4, atol=1e-4)
    stored = [path for path in homes.rglob("*.pkl") if model.identifier in path.name]
    assert len(stored) == (disabled == "0")


def test_several_layers_of_a_region(commitment: Callable[..., Any], shown: Callable[..., Any]) -> None:
    network, stimuli = toy_network(), images(4)
    regions = {**REGIONS, "IT": ["pool1@2", "relu2@2"]}
    model = commitment(network, {**REGIONS})
    model.layer_model.region_layer_map.update(regions)
    model.start_recording("IT", time_bins=BINS[:2])
    found = model.look_at(shown(stimuli, "several"))
    for layer in ("pool1", "relu2"):
        part = found.isel(neuroid=np.flatnonzero(found["layer"].values == layer))
        for number, expected in enumerate(direct(network, stimuli, f"{layer}@0", f"{layer}@1")):
            np.testing.assert_allclose(rows(part, number), expected, rtol=1e-4, atol=1e-4)


def test_a_network_without_feedback_answers_every_bin_alike(
    commitment: Callable[..., Any], shown: Callable[..., Any]
) -> None:
    network, stimuli = toy_network(0), images(4)
    model = commitment(network, dict.fromkeys(REGIONS, "pool1@0"), ((70, 120),))
    model.start_recording("V4", time_bins=BINS)
    found = model.look_at(shown(stimuli, "static"))
    (expected,) = direct(network, stimuli, "pool1@0")
    for number in range(3):
        np.testing.assert_allclose(rows(found, number), expected, rtol=1e-4, atol=1e-4)


def test_a_layer_below_the_target_is_the_same_at_all_times(
    commitment: Callable[..., Any], shown: Callable[..., Any]
) -> None:
    network, stimuli = toy_network(target="relu1"), images(4)
    model, seen = commitment(network, {**REGIONS, "V1": "conv1@0"}), shown(stimuli, "below")
    (first,) = direct(network, stimuli, "conv1@0")
    model.start_recording("V1", time_bins=BINS)
    found = model.look_at(seen)
    for number in range(3):
        np.testing.assert_allclose(rows(found, number), first, rtol=1e-4, atol=1e-4)
    model.start_recording("V4", time_bins=BINS)
    for number, expected in enumerate(direct(network, stimuli, "pool1@0", "pool1@1", "pool1@2")):
        np.testing.assert_allclose(rows(model.look_at(seen), number), expected, rtol=1e-4, atol=1e-4)


def test_a_recording_ends_a_task(commitment: Callable[..., Any], shown: Callable[..., Any]) -> None:
    """Brain-Score's own ModelCommitment goes on answering with the task."""
    network, stimuli = toy_network(), images(4)
    model, seen = commitment(network), shown(stimuli, "task")
    model.start_task("label", "imagenet")
    labels = model.look_at(seen)
    with torch.inference_mode():
        (batch,) = batches(stimuli, network.preprocessing, 4)
        logits = network.module.unroll(batch).logits
    assert labels["logit"].values.tolist() == logits[2].argmax(dim=1).tolist()
    model.start_recording("V4", time_bins=[(70, 170)])
    np.testing.assert_allclose(rows(model.look_at(seen)), direct(network, stimuli, "pool1@2")[0], rtol=1e-4, atol=1e-4)


def test_a_network_of_other_classes_takes_no_task(commitment: Callable[..., Any], shown: Callable[..., Any]) -> None:
    model = commitment(toy_network(classes=200), readout="")
    for task in ("label", "probabilities", "odd_one_out"):
        with pytest.raises(
            NotImplementedError, match=f"no 1000 ImageNet logits, so it takes neural benchmarks alone, no task '{task}'"
        ):
            model.start_task(task)
    model.start_task("passive")
    model.start_recording("IT", time_bins=[(70, 170)])
    assert model.look_at(shown(images(3), "classes")).sizes["presentation"] == 3


def test_a_layer_that_is_not_there(commitment: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="layer 'pool9' is not known; did you mean 'pool1'"):
        commitment(regions={**REGIONS, "IT": "pool9@2"})
    with pytest.raises(ValueError, match="pool1@3: iteration 3 is not run; the network runs 2"):
        commitment(regions={**REGIONS, "IT": "pool1@3"})


N, SITES, COMPONENTS = 96, 5, 25


@pytest.fixture(scope="module")
def experiment() -> Any:
    """Responses (n, sites, bins) that follow another iteration in every bin, with noise."""
    network, stimuli = toy_network(), images(N, seed=3)
    rng = np.random.default_rng(0)
    features = direct(network, stimuli, "pool1@0", "pool1@1", "pool1@2")
    main = []
    for one in features:
        weights = np.random.default_rng(1).standard_normal((one.shape[1], SITES))
        signal = (one - features[0].mean(axis=0)) @ weights
        main.append(signal / 30)
    responses = np.stack(main, axis=2)
    responses += 0.3 * responses.std() * rng.standard_normal(responses.shape)
    return network, stimuli, features, responses


@pytest.mark.filterwarnings(
    "ignore:unique with argument that is not not a Series:FutureWarning"
)  # xarray 2022 with pandas 2
def test_spantime_pls_scores_iterations_in_time(
    pieces: SimpleNamespace, commitment: Callable[..., Any], shown: Callable[..., Any], experiment: Any
) -> None:
    """The metric through NeuralBenchmark, beside scikit-learn on the network's own features stacked over time."""
    network, stimuli, features, responses = experiment
    objects = [f"object{i % 8}" for i in range(N)]
    model = commitment(network)
    target = pieces.NeuronRecordingAssembly(
        responses,
        coords={
            "stimulus_id": ("presentation", list(stimuli.ids)),
            "object_name": ("presentation", objects),
            "neuroid_id": ("neuroid", np.arange(SITES)),
            "region": ("neuroid", ["V4"] * SITES),
            "time_bin_start": ("time_bin", [start for start, _ in BINS]),
            "time_bin_end": ("time_bin", [end for _, end in BINS]),
        },
        dims=["presentation", "neuroid", "time_bin"],
    )
    target.attrs["stimulus_set"] = shown(stimuli, "spantime", object_name=objects)
    metric = pieces.load_metric("spantime_pls", crossvalidation_kwargs={"stratification_coord": "object_name", "splits": 2})
    ceiling = pieces.Score([0.8, 0.7, 0.6], coords={"time_bin": [0, 1, 2]}, dims=["time_bin"])
    benchmark = pieces.NeuralBenchmark(
        identifier="test-spantime",
        version=1,
        assembly=target,
        similarity_metric=metric,
        visual_degrees=8,
        number_of_trials=1,
        ceiling_func=lambda: ceiling,
        parent="V4",
        bibtex="",
    )
    with joblib.parallel_config("threading"):  # its processes would each import Brain-Score anew
        score = benchmark(model)
    raw = score.attrs["raw"]
    expected = stacked_over_time(features, responses, stimuli.ids, objects)
    found = raw.attrs["raw"].transpose("split", "time_bin", "neuroid").sortby("neuroid_id").values
    np.testing.assert_allclose(found, expected, atol=2e-3)
    medians = np.median(expected, axis=2).mean(axis=0)
    np.testing.assert_allclose(raw.values, medians, atol=1e-3)
    np.testing.assert_allclose(score.values, medians**2 / [0.8, 0.7, 0.6], atol=4e-3)
    assert medians.min() > 0.3


def stacked_over_time(features: Any, responses: Any, ids: Any, objects: Any) -> npt.NDArray[Any]:
    """(split, time bin, site): one PLS on all bins as samples, r in each bin of the test images."""
    from cnnf_brain.predictivity.crossval import make_splits

    found = []
    for split in make_splits("brainscore", ids, object_names=np.array(objects))[:2]:
        pls = PLSRegression(COMPONENTS, scale=False, tol=1e-10, max_iter=20_000)
        pls.fit(
            np.concatenate([one[split.train] for one in features]),
            np.concatenate(list(responses[split.train].transpose(2, 0, 1))),
        )
        by_bin = []
        for t, one in enumerate(features):
            predicted = pls.predict(one[split.test])
            by_bin.append([np.corrcoef(predicted[:, j], responses[split.test, j, t])[0, 1] for j in range(SITES)])
        found.append(by_bin)
    return np.array(found)
