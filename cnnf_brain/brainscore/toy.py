"""A benchmark of Brain-Score's own classes on Recordings of ours: made-up ones in rehearsals, real ones in tests."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from brainscore_core.supported_data_standards.brainio.assemblies import NeuronRecordingAssembly
from brainscore_core.supported_data_standards.brainio.stimuli import StimulusSet
from brainscore_vision import load_ceiling, load_metric
from brainscore_vision.benchmark_helpers.neural_common import NeuralBenchmark, average_repetition
from brainscore_vision.metrics.regression_correlation import metric as metrics
from PIL import Image

from cnnf_brain.recordings import Recordings
from cnnf_brain.types import Images

WINDOW = (70, 170)  # ms
SITES, REPEATS, COMPONENTS = 12, 4, 4  # of the toy benchmark
SEEDS = {"V4": 0, "IT": 1}


def pictures(n: int) -> Images:
    """n made-up images: smooth, of random colours, 224 x 224."""
    coarse = np.random.default_rng(0).integers(0, 256, (n, 7, 7, 3), dtype=np.uint8)
    made = [io.BytesIO() for _ in coarse]
    for pixels, file in zip(coarse, made, strict=True):
        Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC).save(file, format="PNG")
    return Images(tuple(f"picture{i:03}" for i in range(n)), lambda i: made[i].getvalue(), "made-up pictures")


def toy_benchmark(region: str, images: Images, folder: Path) -> Any:
    """A NeuralBenchmark of PLS on random responses to a handful of ``images``, which are written to ``folder``.

    Its regression has few components and its splits are two, so that 16 images are enough.
    """
    data = np.random.default_rng(SEEDS[region]).standard_normal((len(images), SITES, REPEATS))
    data += data.mean(axis=2, keepdims=True)  # repeats that agree, which the ceiling is made of
    recordings = Recordings.from_arrays(data, images, region=region, source="simulated")
    metric = metrics.CrossRegressedCorrelation(
        regression=metrics.pls_regression(regression_kwargs={"n_components": COMPONENTS}),
        correlation=metrics.pearsonr_correlation(),
        crossvalidation_kwargs={"stratification_coord": None, "splits": 2, "train_size": 0.5},
    )
    return neural_benchmark(recordings, region, folder, metric=metric)


def neural_benchmark(recordings: Recordings, region: str, folder: Path, *, metric: Any = None, splits: int = 10) -> Any:
    """A NeuralBenchmark as MajajHong2015's: ``pls`` unless another metric is given, internal consistency as the ceiling, 8 degrees.

    ``pls`` is stratified by ``object_name`` where the recordings have it. A ValueError where they hold no repeats.
    """
    single = assembly(recordings, region, folder)
    stratified = None if recordings.object_names is None else "object_name"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = average_repetition(single)
        metric = metric or load_metric("pls", crossvalidation_kwargs={"stratification_coord": stratified, "splits": splits})
        ceiling = load_ceiling("internal_consistency")
    about = {"identifier": f"toy.{folder.name}.{region}-pls", "version": 1, "parent": region, "bibtex": ""}
    data = {"assembly": target, "similarity_metric": metric, "visual_degrees": 8, "number_of_trials": 1}
    return NeuralBenchmark(**about, **data, ceiling_func=lambda: ceiling(single))


def assembly(recordings: Recordings, region: str, folder: Path) -> Any:
    """Single presentations (presentation, neuroid) as Brain-Score's assembly, with its images in ``folder``."""
    repeats = recordings.repeats
    if repeats is None:
        raise ValueError(f"{recordings.source}: these recordings hold no repeats, which Brain-Score's ceiling is made of")
    image, repetition = np.nonzero(np.isfinite(repeats).any(axis=1))
    n_sites = repeats.shape[1]
    # Brain-Score cannot split presentations that have a single coordinate, so there are two in any case
    objects = recordings.object_names
    about = {"number": np.arange(len(repeats))} if objects is None else {"object_name": objects}
    shown = stimulus_set(recordings.images, folder, **about)
    coords = {name: ("presentation", shown[name].to_numpy()[image]) for name in ("stimulus_id", *about)}
    coords |= {"repetition": ("presentation", repetition)}
    coords |= {"neuroid_id": ("neuroid", np.arange(n_sites)), "region": ("neuroid", np.repeat(region, n_sites))}
    coords |= {f"time_bin_{end}": ("time_bin", np.array([at])) for end, at in zip(("start", "end"), WINDOW, strict=True)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = repeats[image, :, repetition][..., None]
        made = NeuronRecordingAssembly(values, coords=coords, dims=["presentation", "neuroid", "time_bin"]).squeeze(
            "time_bin"
        )
    made.attrs["stimulus_set"] = shown
    return made


def stimulus_set(images: Images, folder: Path, **columns: Any) -> Any:
    """Images as Brain-Score's StimulusSet with these further columns; they are written to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    made = StimulusSet({"stimulus_id": list(images.ids), **{name: list(values) for name, values in columns.items()}})
    made.stimulus_paths = {name: folder / f"{name}.png" for name in images.ids}
    for number, path in enumerate(made.stimulus_paths.values()):
        if not path.exists():
            path.write_bytes(images.read(number))
    made.identifier = f"toy.{folder.name}"
    return made
