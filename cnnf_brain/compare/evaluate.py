"""Recordings and layers -> Evaluations: Grams, cross-validated predictions, scores, the difference to the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import permutations
from numbers import Integral

import numpy as np

from cnnf_brain.activations import Probe
from cnnf_brain.compare.layers import BASELINE, MODEL, Asked, RegionAsked, Row
from cnnf_brain.gram import Features, Wanted
from cnnf_brain.networks import Network
from cnnf_brain.predictivity.crossval import N_SPLITS, make_splits, select_nested
from cnnf_brain.predictivity.pls import FOLDS_AT_ONCE, cross_predict, truncate_gram
from cnnf_brain.predictivity.scores import score_predictions
from cnnf_brain.predictivity.statistics import compare_scores, pool_scores
from cnnf_brain.recordings import Recordings
from cnnf_brain.types import Array, Difference, Evaluation, Gram, LayerAt, Lazy, Predictions, Scores, Split, option

SMALL_BYTES = 2**27  # of what does not grow with images and sites, as the resamples of the tests
NESTED = "nested"
POOLED = "pooled"


@dataclass(frozen=True)
class Scoring:
    """How predictivity is scored.

    Attributes
    ----------
    splits
        ``"kfold"``: ten true folds, shuffled by ``seed``. ``"brainscore"``: Brain-Score's ten shuffle splits, stratified on the
        object where objects are known.
    components
        Components of PLS.
    per_site
        One PLS model for each site (PLS1) in place of one for all sites.
    pca
        Keep this many principal components of the features first; None keeps all.
    select
        ``"nested"``: in each split take the layer and iteration that do best within the training images. None: score each.
    seed
        Of the folds, the ceiling's random halves and the tests' resamples.
    batch_size
        Images of a batch. It changes time and memory, and r by less than 1e-5.

    Raises
    ------
    ValueError
        An unknown word, numbers below 1, a seed that numpy does not take, a PCA that keeps fewer components than PLS has.

    Examples
    --------
    >>> from cnnf_brain import Scoring
    >>> Scoring(components=10, splits="brainscore").per_site
    False
    """

    splits: str = option("kfold", "ten true folds, or Brain-Score's shuffle splits", choices=("kfold", "brainscore"))
    components: int = option(25, "of PLS")
    per_site: bool = option(False, "one PLS model per site (PLS1), as the paper words it")
    pca: int | None = option(None, "keep N principal components of the features first", metavar="N")
    select: str | None = option(None, "choose layer and iteration on training folds only", choices=(NESTED,))
    seed: int = option(0, "of folds, random halves and resamples")
    batch_size: int = option(8, "images of a batch")

    def __post_init__(self) -> None:
        choices = {one.name: one.metadata["choices"] for one in fields(self) if "choices" in one.metadata}
        for name, known in {**choices, "select": (None, *choices["select"]), "per_site": (True, False)}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected {' or '.join(map(repr, known))}")
        for name, least in (("components", 1), ("pca", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is None and name == "pca":
                continue
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise ValueError(f"{name} is {value!r}, expected a whole number")
            if value < least:
                raise ValueError(f"{name} is {value}, expected at least {least}")
        if self.seed >= 2**32:
            raise ValueError(f"seed is {self.seed}, expected a whole number from 0 to 2**32 - 1")
        if self.pca is not None and self.pca < self.components:
            raise ValueError(
                f"pca = {self.pca} keeps fewer components than the {self.components} of PLS; use fewer components"
            )

    @property
    def nested(self) -> bool:
        """Whether layer and iteration are chosen within the training images."""
        return self.select == NESTED


@dataclass(frozen=True)
class Fitted:
    """One layer scored on one source, with what the tests need."""

    predictions: Predictions
    scores: Scores
    chosen: tuple[str, ...] = ()


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


def wanted_features(asked: Sequence[RegionAsked], sources: Mapping[str, Sequence[Recordings]]) -> list[Wanted]:
    """The layers of every network over the images of every source of its region, in the order in which ``evaluate_region`` takes
    their Grams."""
    return [
        (one.network, recordings.images, one.layers)
        for region in asked
        for recordings in sources[region.region]
        for one in region.networks
    ]


def scoring_bytes(recordings: Recordings, scoring: Scoring, n_layers: int) -> int:
    """Memory that it takes to score ``n_layers`` on one source: a Gram, PLS of the folds that are fitted at once, predictions."""
    (n, sites), components = recordings.responses.shape, scoring.components
    inner = N_SPLITS - 1 if scoring.nested else 1  # folds within each split
    problems = sites if scoring.per_site else min(FOLDS_AT_ONCE, N_SPLITS * inner)
    held = problems * 2 * components + (1 if scoring.per_site else problems) * 3 * sites
    predictions = sites * (2 * components * inner + n_layers)
    return 8 * n * (n * (5 if scoring.pca else 1) + held + predictions) + SMALL_BYTES


def check_features(features: Features, scoring: Scoring) -> list[tuple[Network, Probe]]:
    """Show every network that is to run the first images (``activations.probe``); what was found of each.

    A ValueError before long work where a network's rows cannot be scored, or a layer gives fewer features than components.
    """
    found = features.probe()
    for network, seen in found:
        for at, count in seen.counts.items():
            if count < scoring.components:
                raise ValueError(
                    f"{network.name} {at}: {count} features are fewer than {scoring.components} components; use fewer components"
                )
    return found


def evaluate_region(
    asked: RegionAsked, sources: Sequence[Recordings], grams: Iterator[Mapping[LayerAt, Gram]], scoring: Scoring
) -> list[Evaluation]:
    """Evaluations of one region: for each source the baseline's layers and the models', then all sources pooled.

    ``grams``: of each source and network the Grams of its layers (``wanted_features``).
    """
    fitted = [[_fit_layers(next(grams), recordings, scoring) for _ in asked.networks] for recordings in sources]
    groups = [([source], [of_source]) for source, of_source in zip(sources, fitted, strict=True)]
    if len(sources) > 1:
        groups.append((list(sources), fitted))
    return [
        _evaluation(asked.region, one, row, number, group, scoring)
        for group in groups
        for number, one in enumerate(asked.networks)
        for row in _rows(one, scoring)
    ]


@dataclass(frozen=True)
class _NamedRow:
    """A row as it is named in results: layers as text, ``nested`` where they are chosen within training folds."""

    role: str
    layer: str
    against: str


def _rows(asked: Asked, scoring: Scoring) -> list[_NamedRow]:
    if not scoring.nested:
        return [_named(row) for row in asked.rows]
    role = BASELINE if asked.rows[0].role == BASELINE else MODEL
    return [_NamedRow(role, NESTED, NESTED if any(row.against for row in asked.rows) else "")]


def _named(row: Row) -> _NamedRow:
    return _NamedRow(row.role, str(row.at), "" if row.against is None else str(row.against))


def _evaluation(
    region: str,
    asked: Asked,
    row: _NamedRow,
    number: int,
    group: tuple[Sequence[Recordings], Sequence[Sequence[Mapping[str, Fitted]]]],
    scoring: Scoring,
) -> Evaluation:
    """One row: the layers of network ``number`` over the sites of one source, or of several side by side."""
    sources, fitted = group
    network, first, several = asked.network, sources[0], len(sources) > 1
    mine = [of_source[number][row.layer] for of_source in fitted]
    comparison = None
    if row.against:
        bases = [of_source[0][row.against] for of_source in fitted]
        comparison = _compare(mine, bases, [source.responses for source in sources], scoring.seed)
    return Evaluation(
        region=region,
        source=POOLED if several else first.source,
        simulated=any(source.simulated for source in sources),
        role=row.role,
        network=network.title,
        weights=network.weights,
        feedback=network.feedback,
        layer=row.layer,
        scores=pool_scores([one.scores for one in mine]),
        site_ids=tuple(f"{s.source}/{i}" if several else i for s in sources for i in s.site_ids),
        n_images=sum(len(source.images) for source in sources),
        excluded=tuple(name for source in sources for name in source.excluded),
        comparison=comparison,
        chosen=() if several else mine[0].chosen,
        against=row.against,
    )


def _compare(mine: Sequence[Fitted], bases: Sequence[Fitted], responses: Sequence[Array], seed: int) -> Difference | None:
    """The tests, or None where no site has an r of both (constant predictions)."""
    pairs = list(zip(mine, bases, strict=True))
    if not any(np.isfinite(one.scores.r - base.scores.r).any() for one, base in pairs):
        return None
    return compare_scores(
        [(one.scores, base.scores) for one, base in pairs],
        predictions=[(one.predictions, base.predictions) for one, base in pairs],
        responses=responses,
        seed=seed,
    )


def _fit_layers(grams: Mapping[LayerAt, Gram], recordings: Recordings, scoring: Scoring) -> dict[str, Fitted]:
    """Every layer of a network, scored on one source, by name."""
    splits, responses = check_scoring(recordings, scoring), recordings.responses

    def product(at: LayerAt) -> Array:
        return truncate_gram(grams[at].values, scoring.pca) if scoring.pca else grams[at].values

    ks, n = Lazy(grams, product), scoring.components
    if scoring.nested:
        predicted, best = select_nested(ks, responses, splits, n, per_site=scoring.per_site)
        return {NESTED: _fitted(predicted, recordings, scoring, tuple(map(str, best)))}
    # by name, not by items(), which would hold the last Gram while the next is read
    return {
        str(at): _fitted(cross_predict(ks[at], responses, splits, n, per_site=scoring.per_site), recordings, scoring)
        for at in ks
    }


def _fitted(predictions: Predictions, recordings: Recordings, scoring: Scoring, chosen: tuple[str, ...] = ()) -> Fitted:
    """Scores, and of the predictions those with all components, which the tests take."""
    scores = score_predictions(predictions, recordings.responses, repeats=recordings.repeats, seed=scoring.seed)
    last = tuple(values[-1:].copy() for values in predictions.values)
    return Fitted(replace(predictions, values=last), scores, chosen)
