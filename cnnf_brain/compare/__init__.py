"""Networks and recordings -> a Comparison: how well their features predict recorded sites, and how that differs from a baseline.

The whole way: images -> activations -> Gram K -> predictions -> scores -> tests. The modules in this order: ``images``,
``activations``, ``gram``, ``predictivity.crossval`` and ``.pls``, ``.scores``, ``.statistics`` (put together
by ``.metrics``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from cnnf_brain import results
from cnnf_brain.activations import Probe
from cnnf_brain.compare import accuracy
from cnnf_brain.compare.comparison import Comparison
from cnnf_brain.compare.evaluate import check_features, evaluate_region, scoring_bytes, wanted_features
from cnnf_brain.compare.layers import Layers, RegionAsked, asked_layers, by_region, networks_of, same_network
from cnnf_brain.compare.scoring import Scoring, usable
from cnnf_brain.gram import Features, Progress
from cnnf_brain.io import array_hash, short_hash
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.networks import Network
from cnnf_brain.recordings import Recordings

__all__ = ["Comparison", "Scoring", "compare"]

T = TypeVar("T")


def compare(
    model: Network | Sequence[Network],
    baseline: Network | None,
    recordings: Recordings | Sequence[Recordings],
    layers: Layers = None,
    *,
    baseline_layers: Layers = None,
    scoring: Scoring | str | None = None,
    progress: Progress = True,
) -> Comparison:
    """Score how well features predict recorded sites, layer by layer and iteration by iteration, against a baseline.

    A call that did not end well (Ctrl-C, an error, kill) goes on, when it is repeated, from the features that it had written to the
    cache. Each network sees an image once; the first pass of a CNN-F serves as the CNN of the same weights.

    Parameters
    ----------
    model
        One network or several (``Network``, ``load_network``).
    baseline
        The network to compare with; None: scores without a comparison. The model itself: its own first pass is the baseline.
    recordings
        Of one region or several; several of a region are scored apart, then pooled over each animal's sites and over all.
    layers
        A name (``"features.16@1"``: iteration 1; ``"features.16"``: every iteration that the model runs;
        ``"features.16@0+2"``: iterations 0 and 2 side by side as one joint feature space), a list of names, or a dict of these by
        region. None, or the name ``""``: each network's own layer for the region (``Network.layers``).
    baseline_layers
        The baseline's layers in the same form, at iteration 0 where none is named. None: those of the same names, else its own for
        the region.
    scoring
        Metrics, components, splits, seed, ...: see ``Scoring``. A text is the name of a metric (``"rsa"``).
    progress
        True: progress bars on stderr. False: none. A function ``(what, done, total)``: called after each batch of images.

    Returns
    -------
    Comparison

    Raises
    ------
    TypeError
        An argument of another type.
    ValueError
        A layer or iteration that a network lacks, a region without a layer, recordings too small for the scoring, a network whose
        rows do not belong to the images, features that are not finite.
    OSError
        Too little disk space for the features of one layer, or too little memory.

    Examples
    --------
    >>> import numpy as np, torch
    >>> import cnnf_brain as cb
    >>> rng = np.random.default_rng(0)
    >>> images = rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    >>> recordings = cb.Recordings.from_arrays(rng.standard_normal((40, 6)), images, region="V4")
    >>> network = cb.Network(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()), cb.Preprocessing(16))
    >>> scoring = cb.Scoring(components=3)
    >>> result = cb.compare(network, None, recordings, layers="1", scoring=scoring, progress=False)
    >>> result.table()[["region", "layer", "sites"]].to_dict("records")
    [{'region': 'V4', 'layer': '1', 'sites': 6}]
    """
    started = time.time()
    models, sources, scoring = _checked(model, baseline, recordings, scoring, progress)
    named = by_region(layers, list(sources))
    theirs = None if baseline_layers is None else by_region(baseline_layers, list(named), "baseline layers", every=False)
    asked = asked_layers(named, models, baseline, theirs)
    sources |= {one.region: usable(sources[one.region], scoring) for one in asked}
    used = [source for one in asked for source in sources[one.region]]
    for source in used:
        source.images.check()
    wanted = wanted_features(asked, sources)
    features = Features(wanted, batch_size=scoring.batch_size, unit_norm=scoring.unit_norm, workers=scoring.workers)
    options = {**scoring.decided(), "layers": {one.region: _in_words(one) for one in asked}}
    decides = _decides(networks_of(asked), used, options)  # before long work: nothing of it can fail afterwards
    probes = check_features(features, scoring)
    rows = sum(len(network.layers) for one in asked for network in one.networks)
    grams = iter(features.compute(progress, max(scoring_bytes(source, scoring, rows) for source in used)))
    evaluations = [row for one in asked for row in evaluate_region(one, sources[one.region], grams, scoring)]
    shown = {"seconds": round(features.seconds, 3), "waited_for_images": round(features.waited, 3)}
    return Comparison(tuple(evaluations), {**_describe(networks_of(asked), probes, decides, started), "networks_ran": shown})


def _checked(
    model: object, baseline: object, recordings: object, scoring: object, progress: object
) -> tuple[list[Network], dict[str, list[Recordings]], Scoring]:
    """Models, recordings by region, and the scoring; an error where an argument is of another type."""
    models = _listed("model", model, Network, "cnnf_brain.Network(module, preprocessing) or load_network(...)")
    if not (baseline is None or isinstance(baseline, Network)):
        raise TypeError(f"baseline is a {type(baseline).__name__}, expected a cnnf_brain.Network or None")
    if isinstance(scoring, str):
        scoring = Scoring(metric=scoring)
    if not (scoring is None or isinstance(scoring, Scoring)):
        raise TypeError(
            f"scoring is a {type(scoring).__name__}, expected a cnnf_brain.Scoring, the name of a metric, or None"
        )
    if not (isinstance(progress, bool) or callable(progress)):
        raise TypeError(f"progress is {progress!r}, expected True, False or a function (what, done, total)")
    _check_names(models, baseline)
    sources = _listed("recordings", recordings, Recordings, "Recordings.from_arrays(...) or load_recordings(...)")
    return models, _by_region(sources), scoring or Scoring()


def _listed(name: str, given: Any, kind: type[T], how: str) -> list[T]:
    """One ``kind`` or several as a list."""
    found = list(given) if isinstance(given, list | tuple) else [given]
    other = [one for one in found if not isinstance(one, kind)]
    if other:
        raise TypeError(f"{name} holds a {type(other[0]).__name__}, expected a {kind.__name__} or a list of them: {how}")
    if not found:
        raise ValueError(f"{name}: the list is empty; give one {kind.__name__} or more")
    return found


def _check_names(models: Sequence[Network], baseline: Network | None) -> None:
    """A ValueError where two networks could not be told apart in the results, or one is given twice."""
    for number, one in enumerate(models):
        for other in [*models[:number], *([baseline] if baseline else [])]:
            if (one.title, one.weights) != (other.title, other.weights):
                continue
            if other is not baseline and one is other:
                raise ValueError(f"{one.title} [{one.weights}] is given twice as a model; give each network once")
            if other is not baseline or not same_network(one, other):  # compared last: it hashes all weights
                raise ValueError(
                    f"two networks are called {one.title} [{one.weights}]; give each a name of its own (name=...)"
                )


def _decides(networks: Sequence[Network], recordings: Sequence[Recordings], options: dict[str, Any]) -> dict[str, Any]:
    """All that decides the numbers, as plain values."""
    return {
        "options": options,
        "networks": [describe_network(network) for network in networks],
        "recordings": [describe_recordings(source) for source in recordings],
        "simulated": any(source.simulated for source in recordings),
    }


def _describe(
    networks: Sequence[Network], probes: Sequence[tuple[Network, Probe]], decides: dict[str, Any], started: float
) -> dict[str, Any]:
    """What the run was, as plain values (``Comparison.run``)."""
    headless = [_headless(network) for network in networks if network.headless]
    return {
        **decides,
        "accuracy": [asdict(row) for network in networks for row in accuracy.of(network, None)],
        "notes": headless + [note for one in probes for note in _grown(*one)],
        **results.provenance(networks[0].device, started),
        "configuration": {name: value for name, value in decides.items() if name != "simulated"},
    }


def _by_region(recordings: Sequence[Recordings]) -> dict[str, list[Recordings]]:
    found: dict[str, list[Recordings]] = {}
    for one in recordings:
        found.setdefault(one.region, []).append(one)
    for region, of_region in found.items():
        names = [one.source for one in of_region]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"region {region} has two recordings with the source {twice[0]!r}; give each a source of its own"
            )
    return found


def _in_words(asked: RegionAsked) -> list[str]:
    """Every row of a region: network, layer, and what it is compared with."""
    return [
        f"{row.role} {one.network.title} [{one.network.weights}] {row.at}" + (f" - {row.against}" if row.against else "")
        for one in asked.networks
        for row in one.rows
    ]


def describe_network(network: Network) -> dict[str, Any]:
    """What it takes to tell the network again, as plain values."""
    return {
        "name": network.name,
        "weights": network.weights,
        "sha256": network.digest,
        "image_size": network.preprocessing.size,
        "preprocessing": asdict(network.preprocessing),
        "headless": network.headless,
        "feedback": network.feedback,
        "settings": network.module.settings.as_dict() if isinstance(network.module, CNNF) else None,
    }


def describe_recordings(recordings: Recordings) -> dict[str, Any]:
    """What it takes to tell the recordings again, as plain values."""
    return {
        "region": recordings.region,
        "source": recordings.source,
        "simulated": recordings.simulated,
        "images": len(recordings.images),
        "sites": recordings.responses.shape[1],
        "excluded": list(recordings.excluded),
        "images_sha256": recordings.images.digest(),
        "responses_sha256": array_hash(recordings.responses),
        "labels_sha256": short_hash([recordings.images.ids, recordings.site_ids, recordings.object_names], 64),
        "repeats_sha256": None if recordings.repeats is None else array_hash(recordings.repeats),
        **({} if recordings.subjects is None else {"subjects_sha256": short_hash(list(map(str, recordings.subjects)), 64)}),
        **({} if recordings.rdms is None else {"rdms_sha256": array_hash(recordings.rdms)}),
    }


def _headless(network: Network) -> str:
    """What a reader must know of a network without a classifier."""
    return f"{network.name} [{network.weights}] is headless: without a classifier, feedback starts from its top feature map"


def _grown(network: Network, probe: Probe) -> list[str]:
    """What a reader must know of maps that grow with the iterations."""
    return [
        f"{network.name} {at}: maps are {by:.1e} times as large as in the first pass, so that a few images may drive the "
        "regression; matched norms (match_norm, match_layers) hold them"
        for at, by in probe.growth.items()
    ]
