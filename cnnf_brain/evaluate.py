"""Recordings and networks -> Evaluations: products, cross-validated predictions, scores, and the difference to the baseline."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import torch

from cnnf_brain.activations import Probe, check_layers, probe
from cnnf_brain.gram import layer_grams
from cnnf_brain.networks import Network
from cnnf_brain.predictivity.crossval import make_splits, select_nested
from cnnf_brain.predictivity.pls import cross_predict, truncate_gram
from cnnf_brain.predictivity.pooling import compare_pooled, pool_scores
from cnnf_brain.predictivity.scores import score_predictions
from cnnf_brain.predictivity.statistics import compare_scores
from cnnf_brain.types import Difference, Evaluation, Gram, Images, LayerAt, Predictions, Recordings, Scores, Split

NESTED = "nested"
BASELINE, MODEL, CONTROL = "baseline", "model", "control"


@dataclass(frozen=True)
class Scoring:
    """How predictivity is scored: components of PLS, one model per site or one for all, splits, PCA first, nested choice.

    Raises ValueError for numbers below 1, a seed that numpy does not take, and a PCA that keeps fewer components than PLS has.
    """

    components: int = 25
    per_site: bool = False
    splits: str = "kfold"
    pca: int | None = None
    nested: bool = False
    seed: int = 0
    batch_size: int = 8
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("components", "pca", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}, expected a whole number from 0 to 2**32 - 1")
        if self.pca is not None and self.pca < self.components:
            raise ValueError(
                f"pca = {self.pca} keeps fewer components than the {self.components} of PLS; use fewer components"
            )


@dataclass(frozen=True)
class Row:
    """One layer of a network, and the baseline's layer that it is compared with (None: with none)."""

    role: str
    at: LayerAt
    against: LayerAt | None = None


@dataclass(frozen=True)
class Asked:
    """The rows of one network in one region."""

    network: Network
    rows: tuple[Row, ...]

    @property
    def layers(self) -> list[LayerAt]:
        """All layers, once each."""
        return list(dict.fromkeys(row.at for row in self.rows))


@dataclass(frozen=True)
class RegionAsked:
    """What is scored in a region: the baseline, if there is one, and each model."""

    region: str
    baseline: Asked | None
    models: tuple[Asked, ...]

    @property
    def networks(self) -> list[Asked]:
        """The baseline first."""
        return [*([self.baseline] if self.baseline else []), *self.models]


@dataclass(frozen=True)
class Fitted:
    """One layer scored on one source, with what the tests need."""

    layer: str
    predictions: Predictions
    scores: Scores
    chosen: tuple[str, ...] = ()


def same_network(a: Network, b: Network) -> bool:
    """Whether two networks show the same features in the first pass, as far as is known: the same preprocessing, and the same
    module, origin or identity, or the same but for a classifier that one of them lacks."""
    if a.preprocessing != b.preprocessing:
        return False
    if a.module is b.module:
        return True
    if _without_weights(a) or _without_weights(b):
        return a.origin != "" and a.origin == b.origin
    if a.headless != b.headless:
        return _same_but_for_the_classifier(*sorted((a, b), key=lambda network: network.headless))
    return a.identity is not None and a.identity == b.identity


def _without_weights(network: Network) -> bool:
    return any(tensor.is_meta for tensor in network.module.parameters())


def _same_but_for_the_classifier(whole: Network, headless: Network) -> bool:
    if whole.origin.split(" ")[0] != headless.origin.split(" ")[0]:
        return False
    mine, theirs = whole.module.state_dict(), headless.module.state_dict()
    return all(name in mine and torch.equal(mine[name].to(tensor.device), tensor) for name, tensor in theirs.items())


def asked_layers(
    words: Sequence[str],
    iterations: Sequence[int] | None,
    models: Sequence[Network],
    baseline: Network | None,
    baseline_words: Sequence[str] = (),
) -> list[RegionAsked]:
    """Words for layers (``V4``, ``IT=features.23``, ``V4=features.16@2``) as layers of all networks, checked.

    A layer without ``@`` is taken at every iteration of ``iterations`` (None: all that the model runs). The first pass of a model
    with feedback stands beside its iterations as a control. The baseline's layer is the one that ``baseline_words`` names for the
    region, else the one of the same name, else the one that stands for the region. A network is not compared with itself.

    Raises
    ------
    ValueError
        A word that is not understood, a region without a layer, an unknown layer, an iteration that is not run.
    """
    if iterations is not None and any(t < 0 for t in iterations):
        raise ValueError(f"iterations are {list(iterations)}, expected whole numbers >= 0 (0 is the first pass)")
    named = _by_region(words, "layers")
    theirs = _by_region(baseline_words, "baseline layers")
    for region in theirs:
        if region not in named or baseline is None:
            why = (
                "there is no baseline" if baseline is None else f"it is not among the regions asked for ({', '.join(named)})"
            )
            raise ValueError(f"baseline layers are named for region {region}, but {why}")
    return [
        _region_asked(region, layers, iterations, models, baseline, theirs.get(region, []))
        for region, layers in named.items()
    ]


def _region_asked(
    region: str,
    layers: Sequence[str],
    iterations: Sequence[int] | None,
    models: Sequence[Network],
    baseline: Network | None,
    theirs: Sequence[str],
) -> RegionAsked:
    found, others = [], []
    for model in models:
        ats = _layers_of(model, region, layers, iterations)
        pairs: list[tuple[LayerAt, LayerAt | None]] = [(at, None) for at in ats]
        if baseline is not None:
            pairs = [(at, other) for at in ats for other in _counterparts(at, region, baseline, theirs)]
            others += [other for _, other in pairs if other is not None]
            if same_network(model, baseline):
                pairs = [pair for pair in pairs if pair[0] != pair[1]]
        control = CONTROL if model.iterations else MODEL
        rows = [Row(MODEL if at.iteration or at.feedback else control, at, other) for at, other in pairs]
        if rows:
            found.append(Asked(model, tuple(dict.fromkeys(rows))))
    if baseline is None:
        return RegionAsked(region, None, tuple(found))
    if not found:  # one network alone: what there is to score is its own
        alone = [Row(MODEL, at) for at in dict.fromkeys(others)]
        return RegionAsked(region, None, (Asked(models[0], tuple(alone)),))
    return RegionAsked(region, Asked(baseline, tuple(Row(BASELINE, at) for at in dict.fromkeys(others))), tuple(found))


def _layers_of(model: Network, region: str, layers: Sequence[str], iterations: Sequence[int] | None) -> list[LayerAt]:
    """The layers asked of a model, the first pass of each before its iterations."""
    wish = range(model.iterations + 1) if iterations is None else iterations
    found: list[LayerAt] = []
    for name in layers:
        layer = name or model.layer_of(region)
        ats = [LayerAt.parse(layer)] if "@" in layer else [LayerAt(layer, t) for t in wish]
        check_layers(model.module, ats)
        found += [LayerAt(at.layer) for at in ats if at.iteration or at.feedback]
        found += ats
    return sorted(dict.fromkeys(found), key=lambda at: [other.layer for other in found].index(at.layer))


def _by_region(words: Sequence[str], what: str) -> dict[str, list[str]]:
    """``REGION`` and ``REGION=LAYER`` -> region -> layers; an empty text stands for the region's own layer."""
    found: dict[str, list[str]] = {}
    for word in words:
        match = re.fullmatch(r"(\w+)(?:=(.+))?", word)
        if match is None:
            raise ValueError(f"{what} {word!r}: expected REGION or REGION=LAYER (for instance V4=features.16@2)")
        found.setdefault(match[1], []).append(match[2] or "")
    return found


def _counterparts(at: LayerAt, region: str, baseline: Network, named: Sequence[str]) -> list[LayerAt]:
    """The baseline's layers that a layer is compared with."""
    if named:
        ats = [LayerAt.parse(name or baseline.layer_of(region)) for name in named]
        check_layers(baseline.module, ats)
        return ats
    try:
        check_layers(baseline.module, [LayerAt(at.layer)])
    except ValueError:
        if region not in baseline.regions:
            raise ValueError(
                f"{baseline.name} has no layer {at.layer!r}; name the one to compare with for region {region} (baseline layers)"
            ) from None
        return [LayerAt(baseline.regions[region])]
    return [LayerAt(at.layer)]


def evaluate_region(asked: RegionAsked, sources: Sequence[Recordings], scoring: Scoring) -> list[Evaluation]:
    """Evaluations of one region: for each source the baseline's layers and the models', then all sources pooled."""
    fitted = [[_fit_source(one, recordings, scoring) for one in asked.networks] for recordings in sources]
    done = []
    for recordings, of_source in zip(sources, fitted, strict=True):
        for one, of_network in zip(asked.networks, of_source, strict=True):
            for row in _rows(one, scoring):
                mine, base = of_network[row.layer], of_source[0].get(row.against)
                comparison = _compare(mine, base, recordings.responses, scoring.seed) if base else None
                blank = _blank(asked.region, one.network, row, recordings)
                done.append(replace(blank, scores=mine.scores, chosen=mine.chosen, comparison=comparison))
    if len(sources) > 1:
        done += _pooled(asked, sources, fitted, scoring)
    return done


@dataclass(frozen=True)
class _Shown:
    """A row as it is named in results: layers as text, ``nested`` where they are chosen within training folds."""

    role: str
    layer: str
    against: str


def _rows(asked: Asked, scoring: Scoring) -> list[_Shown]:
    if not scoring.nested:
        return [_Shown(row.role, str(row.at), "" if row.against is None else str(row.against)) for row in asked.rows]
    role = BASELINE if asked.rows[0].role == BASELINE else MODEL
    return [_Shown(role, NESTED, NESTED if any(row.against for row in asked.rows) else "")]


def _blank(region: str, network: Network, row: _Shown, recordings: Recordings) -> Evaluation:
    """An Evaluation of one source without its scores."""
    nothing = Scores(np.empty((0, 0)), None, None)
    return Evaluation(
        region=region,
        source=recordings.source,
        simulated=recordings.simulated,
        role=row.role,
        network=network.title,
        weights=network.weights,
        feedback=network.feedback,
        layer=row.layer,
        scores=nothing,
        site_ids=tuple(str(i) for i in recordings.data["neuroid_id"].values),
        n_images=len(recordings.images),
        excluded=recordings.excluded,
        against=row.against,
    )


def check_scoring(recordings: Recordings, scoring: Scoring) -> tuple[Split, ...]:
    """The splits of these recordings; a ValueError before long work where they do not allow the scoring."""
    ids = recordings.images.ids
    splits = make_splits(scoring.splits, ids, object_names=recordings.object_names, seed=scoring.seed)
    trained = [len(split.train) for split in splits]
    if scoring.nested:  # the choice is made by a cross-validation within the training images
        trained = [len(np.setdiff1d(split.train, other.test)) for split, other in permutations(splits, 2)]
    if scoring.components >= min(trained):
        raise ValueError(
            f"{recordings.source}: {scoring.components} components need more than {scoring.components} training images, "
            f"a split {'within the training images ' if scoring.nested else ''}has {min(trained)}; use fewer components"
        )
    return splits


def check_features(asked: Sequence[RegionAsked], images: Images, scoring: Scoring) -> list[Probe]:
    """Show every network the first images (``activations.probe``); what was found of each, in the order of the networks.

    A ValueError before long work where a network's rows cannot be scored, or a layer gives fewer features than components.
    """
    wanted: dict[int, tuple[Network, list[LayerAt]]] = {}
    for one in (one for region in asked for one in region.networks):
        wanted.setdefault(id(one.network), (one.network, []))[1].extend(one.layers)
    found = []
    for network, layers in wanted.values():
        found.append(probe(network, images, layers))
        for at, count in found[-1].counts.items():
            if count < scoring.components:
                raise ValueError(
                    f"{network.name} {at}: {count} features are fewer than {scoring.components} components; use fewer components"
                )
    return found


def _compare(mine: Fitted, base: Fitted, responses: np.ndarray, seed: int) -> Difference | None:
    """The tests, or None where no site has an r of both (constant predictions)."""
    if not np.isfinite(mine.scores.r - base.scores.r).any():
        return None
    predictions = (mine.predictions, base.predictions)
    return compare_scores(mine.scores, base.scores, predictions=predictions, responses=responses, seed=seed)


def _fit_source(asked: Asked, recordings: Recordings, scoring: Scoring) -> dict[str, Fitted]:
    splits = check_scoring(recordings, scoring)
    products = layer_grams(
        asked.network, recordings.images, asked.layers, batch_size=scoring.batch_size, progress=scoring.progress
    )
    return _fit_layers(products, recordings, splits, scoring)


def _fit_layers(
    products: Mapping[LayerAt, Gram], recordings: Recordings, splits: tuple[Split, ...], scoring: Scoring
) -> dict[str, Fitted]:
    responses = recordings.responses
    ks = {at: truncate_gram(p.values, scoring.pca) if scoring.pca else p.values for at, p in products.items()}
    if scoring.nested:
        predictions, chosen = select_nested(ks, responses, splits, scoring.components, per_site=scoring.per_site)
        scores = score_predictions(predictions, responses, repeats=recordings.repeats, seed=scoring.seed)
        return {NESTED: Fitted(NESTED, predictions, scores, tuple(map(str, chosen)))}
    found = {}
    for at, k in ks.items():
        predictions = cross_predict(k, responses, splits, scoring.components, per_site=scoring.per_site)
        scores = score_predictions(predictions, responses, repeats=recordings.repeats, seed=scoring.seed)
        found[str(at)] = Fitted(str(at), predictions, scores)
    return found


def _pooled(
    asked: RegionAsked, sources: Sequence[Recordings], fitted: Sequence[list[dict[str, Fitted]]], scoring: Scoring
) -> list[Evaluation]:
    """All sites of all sources side by side, for each row."""
    done = []
    for number, one in enumerate(asked.networks):
        for row in _rows(one, scoring):
            parts = [of_source[number][row.layer] for of_source in fitted]
            comparison = None
            if row.against:
                bases = [of_source[0][row.against] for of_source in fitted]
                comparison = _compare_pooled(list(zip(parts, bases, strict=True)), sources, scoring.seed)
            everyone = replace(
                _blank(asked.region, one.network, row, sources[0]),
                source="pooled",
                simulated=any(r.simulated for r in sources),
                site_ids=tuple(f"{r.source}/{i}" for r in sources for i in r.data["neuroid_id"].values),
                n_images=sum(len(r.images) for r in sources),
                excluded=tuple(name for r in sources for name in r.excluded),
            )
            done.append(replace(everyone, scores=pool_scores([part.scores for part in parts]), comparison=comparison))
    return done


def _compare_pooled(pairs: Sequence[tuple[Fitted, Fitted]], sources: Sequence[Recordings], seed: int) -> Difference | None:
    if not any(np.isfinite(mine.scores.r - base.scores.r).any() for mine, base in pairs):
        return None
    return compare_pooled(
        [(mine.scores, base.scores) for mine, base in pairs],
        predictions=[(mine.predictions, base.predictions) for mine, base in pairs],
        responses=[r.responses for r in sources],
        seed=seed,
    )
