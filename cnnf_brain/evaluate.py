"""Recordings and two networks -> Evaluations: products, cross-validated predictions, scores, and the difference to the baseline."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from cnnf_brain.activations import check_layers
from cnnf_brain.networks import Network
from cnnf_brain.predictivity.crossval import make_splits, select_nested
from cnnf_brain.predictivity.pls import cross_predict, truncate_product
from cnnf_brain.predictivity.pooling import compare_pooled, pool_scores
from cnnf_brain.predictivity.scores import score_predictions
from cnnf_brain.predictivity.statistics import compare_scores
from cnnf_brain.products import feature_counts, layer_products
from cnnf_brain.types import Comparison, Evaluation, Images, LayerAt, Predictions, Product, Recordings, Scores, Split

NESTED = "nested"


@dataclass(frozen=True)
class Scoring:
    """How predictivity is scored: components of PLS, one model per site or one for all, splits, PCA first, nested choice.

    Raises ValueError for numbers below 1, and for a PCA that keeps fewer components than PLS is to have.
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
                raise ValueError(f"--{name.replace('_', '-')} is {value}, expected at least 1")
        if self.pca is not None and self.pca < self.components:
            raise ValueError(
                f"--pca {self.pca} keeps fewer components than the {self.components} of PLS; use fewer --components"
            )


@dataclass(frozen=True)
class Asked:
    """The layers of one region: those of the model, and the baseline's counterpart of each."""

    region: str
    pairs: tuple[tuple[LayerAt, LayerAt], ...]  # (model, baseline)

    @property
    def model(self) -> list[LayerAt]:
        return list(dict.fromkeys(at for at, _ in self.pairs))

    @property
    def baseline(self) -> list[LayerAt]:
        return list(dict.fromkeys(at for _, at in self.pairs))


@dataclass(frozen=True)
class Fitted:
    """One layer scored on one source, with what the tests need."""

    layer: str
    predictions: Predictions
    scores: Scores
    chosen: tuple[str, ...] = ()


def asked_layers(
    words: Sequence[str], iterations: Sequence[int], model: Network, baseline: Network, baseline_words: Sequence[str] = ()
) -> list[Asked]:
    """The words of ``--layers`` (``V4``, ``IT=features.23``, ``V4=features.16@2``) as layers of both networks, all checked.

    A layer without ``@`` is taken at every iteration of ``iterations``. The baseline's layer is the one that
    ``baseline_words`` names for the region, else the one of the same name, else the one that stands for the region.

    Raises
    ------
    ValueError
        A word that is not understood, a region without a layer, an unknown layer, an iteration that is not run.
    """
    if any(t < 0 for t in iterations):
        raise ValueError(f"--iterations {' '.join(map(str, iterations))}: expected whole numbers >= 0 (0 is the first pass)")
    given: dict[str, list[str]] = {}
    for word in baseline_words:
        region, layer = _region_word(word, "--baseline-layers")
        given.setdefault(region, []).append(layer or baseline.layer_of(region))
    asked: dict[str, list[tuple[LayerAt, LayerAt]]] = {}
    for word in words:
        region, layer = _region_word(word, "--layers")
        layer = layer or model.layer_of(region)
        ats = [LayerAt.parse(layer)] if "@" in layer else [LayerAt(layer, t) for t in iterations]
        check_layers(model.module, ats)
        others = [LayerAt.parse(name) for name in given.get(region, [])] or [_counterpart(ats[0], region, baseline)]
        check_layers(baseline.module, others)
        asked.setdefault(region, []).extend((at, other) for at in ats for other in others)
    for region in given:
        if region not in asked:
            raise ValueError(f"--baseline-layers {region}=...: region {region} is not among --layers ({', '.join(asked)})")
    return [Asked(region, tuple(dict.fromkeys(pairs))) for region, pairs in asked.items()]


def _region_word(word: str, flag: str) -> tuple[str, str]:
    match = re.fullmatch(r"(\w+)(?:=(.+))?", word)
    if match is None:
        raise ValueError(f"{flag} {word!r}: expected REGION or REGION=LAYER (for instance V4=features.16@2)")
    return match[1], match[2] or ""


def _counterpart(at: LayerAt, region: str, baseline: Network) -> LayerAt:
    same = LayerAt(at.layer)
    try:
        check_layers(baseline.module, [same])
    except ValueError:
        if region not in baseline.regions:
            raise ValueError(
                f"{baseline.name} has no layer {at.layer!r}; name the one to compare with: --baseline-layers {region}=LAYER"
            ) from None
        return LayerAt(baseline.regions[region])
    return same


def evaluate_region(
    asked: Asked, sources: Sequence[Recordings], model: Network, baseline: Network, scoring: Scoring
) -> list[Evaluation]:
    """Evaluations of one region: for each source the baseline's layers and the model's, then all sources pooled."""
    fitted = [_fit_source(asked, recordings, model, baseline, scoring) for recordings in sources]
    done = []
    for recordings, (of_model, of_baseline) in zip(sources, fitted, strict=True):
        for layer, base in of_baseline.items():
            done.append(_evaluation(asked.region, recordings, "baseline", baseline.name, layer, base))
        for layer, other in _rows(asked, model, baseline, scoring):
            mine, base = of_model[layer], of_baseline[other]
            comparison = _compare(mine, base, recordings.responses, scoring.seed)
            done.append(_evaluation(asked.region, recordings, "model", model.name, layer, mine, comparison, other))
    if len(sources) > 1:
        done += _pooled(asked, sources, fitted, model, baseline, scoring)
    return done


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
            f"a split {'within the training images ' if scoring.nested else ''}has {min(trained)}; use fewer --components"
        )
    return splits


def check_features(asked: Sequence[Asked], images: Images, model: Network, baseline: Network, scoring: Scoring) -> None:
    """Show both networks one image; a ValueError before long work where a layer gives fewer features than components."""
    for network, layers in (
        (model, [at for one in asked for at in one.model]),
        (baseline, [at for one in asked for at in one.baseline]),
    ):
        for at, count in feature_counts(network, images, list(dict.fromkeys(layers))).items():
            if count < scoring.components:
                raise ValueError(
                    f"{network.name} {at}: {count} features are fewer than {scoring.components} components; "
                    "use fewer --components"
                )


def _compare(mine: Fitted, base: Fitted, responses: np.ndarray, seed: int) -> Comparison | None:
    """The tests, or None where no site has an r of both (constant predictions)."""
    if not np.isfinite(mine.scores.r - base.scores.r).any():
        return None
    predictions = (mine.predictions, base.predictions)
    return compare_scores(mine.scores, base.scores, predictions=predictions, responses=responses, seed=seed)


def _fit_source(
    asked: Asked, recordings: Recordings, model: Network, baseline: Network, scoring: Scoring
) -> tuple[dict[str, Fitted], dict[str, Fitted]]:
    splits = check_scoring(recordings, scoring)
    both = []
    for network, layers in ((model, asked.model), (baseline, asked.baseline)):
        products = layer_products(
            network, recordings.images, layers, batch_size=scoring.batch_size, progress=scoring.progress
        )
        both.append(_fit_layers(products, recordings, splits, scoring))
    return both[0], both[1]


def _fit_layers(
    products: Mapping[LayerAt, Product], recordings: Recordings, splits: tuple[Split, ...], scoring: Scoring
) -> dict[str, Fitted]:
    responses = recordings.responses
    ks = {at: truncate_product(p.values, scoring.pca) if scoring.pca else p.values for at, p in products.items()}
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


def _rows(asked: Asked, model: Network, baseline: Network, scoring: Scoring) -> list[tuple[str, str]]:
    """(model's layer, baseline's layer) of every row.

    The model's first pass is not compared with itself, unless nothing else was asked for.
    """
    if scoring.nested:
        return [(NESTED, NESTED)]
    same = model.digest == baseline.digest and model.preprocessing == baseline.preprocessing
    pairs = [pair for pair in asked.pairs if not (same and pair[0] == pair[1])] or asked.pairs
    return [(str(at), str(other)) for at, other in pairs]


def _evaluation(
    region: str,
    recordings: Recordings,
    role: str,
    network: str,
    layer: str,
    fitted: Fitted,
    comparison: Comparison | None = None,
    against: str = "",
) -> Evaluation:
    return Evaluation(
        region,
        recordings.source,
        recordings.simulated,
        role,
        network,
        layer,
        fitted.scores,
        tuple(str(i) for i in recordings.data["neuroid_id"].values),
        len(recordings.images),
        recordings.excluded,
        comparison,
        fitted.chosen,
        against,
    )


def _pooled(
    asked: Asked,
    sources: Sequence[Recordings],
    fitted: Sequence[tuple[dict[str, Fitted], dict[str, Fitted]]],
    model: Network,
    baseline: Network,
    scoring: Scoring,
) -> list[Evaluation]:
    """All sites of all sources side by side, for each row."""

    def pooled(
        role: str,
        network: str,
        layer: str,
        parts: Sequence[Fitted],
        comparison: Comparison | None = None,
        against: str = "",
    ) -> Evaluation:
        scores = pool_scores([part.scores for part in parts])
        ids = tuple(f"{r.source}/{i}" for r in sources for i in r.data["neuroid_id"].values)
        return Evaluation(
            asked.region,
            "pooled",
            any(r.simulated for r in sources),
            role,
            network,
            layer,
            scores,
            ids,
            sum(len(r.images) for r in sources),
            tuple(name for r in sources for name in r.excluded),
            comparison,
            against=against,
        )

    done = [pooled("baseline", baseline.name, layer, [base[layer] for _, base in fitted]) for layer in fitted[0][1]]
    for layer, other in _rows(asked, model, baseline, scoring):
        pairs = [(mine[layer], base[other]) for mine, base in fitted]
        comparison = None
        if any(np.isfinite(mine.scores.r - base.scores.r).any() for mine, base in pairs):
            comparison = compare_pooled(
                [(mine.scores, base.scores) for mine, base in pairs],
                predictions=[(mine.predictions, base.predictions) for mine, base in pairs],
                responses=[r.responses for r in sources],
                seed=scoring.seed,
            )
        done.append(pooled("model", model.name, layer, [mine for mine, _ in pairs], comparison, other))
    return done
