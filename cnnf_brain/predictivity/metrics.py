"""The metrics by name: a layer's K and recordings -> what is scored of it, and the difference of two networks.

Two kinds. A ``Regression`` predicts each site's responses to held-out images; Pearson's r is its score. An ``Agreement`` compares
the dissimilarities of images in a layer with those in the recordings: nothing is fitted, and there is one number for all sites.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from cnnf_brain.checks import own_or_offered, unknown
from cnnf_brain.predictivity.kernel import FLOAT32, is_factor, mean_eigenvalue
from cnnf_brain.predictivity.pls import cross_predict
from cnnf_brain.predictivity.ridge import ridge_predict
from cnnf_brain.predictivity.scores import score_predictions
from cnnf_brain.predictivity.similarity import (
    DISTANCES,
    MEASURES,
    Resampled,
    compare_similarities,
    crossvalidated_gram,
    dissimilarities,
    pool_similarities,
    repeats_ceiling,
    resampled_similarity,
    subject_ceiling,
)
from cnnf_brain.predictivity.statistics import compare_scores, pool_scores
from cnnf_brain.types import Array, Difference, Predictions, Scores, Similarity, Split


class Settings(Protocol):
    """What a metric may read of how predictivity is scored (``compare``'s ``Scoring``)."""

    @property
    def components(self) -> int:
        """Of PLS."""

    @property
    def per_site(self) -> bool:
        """One model for each site."""


@dataclass(frozen=True)
class Fitted:
    """One layer scored on one source, with what the tests need: the predictions with all components."""

    predictions: Predictions
    scores: Scores
    chosen: tuple[str, ...] = ()
    dimension: float = math.nan  # of the features: the participation ratio of K

    def of(self, sites: Array) -> Fitted:
        """Those of the sites for which ``sites`` (n_sites,) is true."""
        values = tuple(split[:, :, sites] for split in self.predictions.values)
        return replace(self, predictions=replace(self.predictions, values=values), scores=self.scores.of(sites))


@dataclass(frozen=True)
class Regression:
    """A metric that predicts the responses of sites.

    ``predict`` takes a Gram (n_images, n_images) of float32 products, or features X, responses (n_images, n_sites), splits and
    settings. ``about`` says in a few words what it fits.
    """

    about: str
    predict: Callable[[Array, Array, Sequence[Split], Settings], Predictions]

    def scored(
        self, predictions: Predictions, responses: Array, repeats: Array | None, seed: int, chosen: tuple[str, ...] = ()
    ) -> Fitted:
        """Scores of predictions."""
        scores = score_predictions(predictions, responses, repeats=repeats, seed=seed)
        last = tuple(values[-1:].copy() for values in predictions.values)
        return Fitted(Predictions(predictions.splits, last, predictions.ranks), scores, chosen)

    def pooled(self, parts: Sequence[Fitted], images: Sequence[Hashable] | None = None) -> Scores:
        """Those of several sources as one over all their sites, whatever their images."""
        return pool_scores([one.scores for one in parts])

    def compare(
        self,
        pairs: Sequence[tuple[Fitted, Fitted]],
        responses: Sequence[Array],
        seed: int,
        animals: Sequence[Array] | None = None,
        images: Sequence[Hashable] | None = None,
    ) -> Difference | None:
        """The tests of model and baseline over sources, or None where no site has an r of both (constant predictions).

        ``animals`` and ``images`` as in ``compare_scores``.
        """
        if not any(np.isfinite(one.scores.r - base.scores.r).any() for one, base in pairs):
            return None
        return compare_scores(
            [(one.scores, base.scores) for one, base in pairs],
            predictions=[(one.predictions, base.predictions) for one, base in pairs],
            responses=responses,
            animals=animals,
            images=images,
            seed=seed,
        )


@dataclass(frozen=True)
class Agreement:
    """A metric of representational similarity: a ``measure`` of two RDMs, which both hold the same ``distance``.

    ``crossvalidated``: the RDM of responses is made of products of different repeats alone, so that noise adds nothing to it.
    """

    about: str
    measure: str
    distance: str
    crossvalidated: bool = False

    def __post_init__(self) -> None:
        for what, known in (("measure", MEASURES), ("distance", DISTANCES)):
            if getattr(self, what) not in known:
                raise unknown(what, getattr(self, what), known)

    def target(self, responses: Array, repeats: Array | None = None) -> Array:
        """The RDM of responses (n_images, n_sites) or of their repeats (n_images, n_sites, n_repeats); a ValueError where there is
        none."""
        if self.crossvalidated and repeats is None:
            raise ValueError("this metric needs recordings with single repeats; rsa and cka take mean responses")
        return dissimilarities(self._gram(responses, repeats), self.distance)

    def _gram(self, responses: Array, repeats: Array | None) -> Array:
        if self.crossvalidated and repeats is not None:
            return crossvalidated_gram(repeats)
        centred: Array = responses - responses.mean(axis=0)  # before the product, which a large mean would round
        return centred @ centred.T

    def ceiling(self, targets: Sequence[Array], repeats: Array | None, seed: int) -> tuple[float, float] | None:
        """Lower and upper bound of what a perfect model could reach: over the RDMs of several subjects, or (both the same) over
        repeats; None without either."""
        if len(targets) > 1:
            return subject_ceiling(targets, self.measure)
        if repeats is None:
            return None

        def rdm(some: Array) -> Array:
            return dissimilarities(self._gram(np.nanmean(some, axis=2), some), self.distance)

        return repeats_ceiling(repeats, rdm, self.measure, least=2 if self.crossvalidated else 1, seed=seed)

    def scored(self, gram: Array, targets: Sequence[Array], seed: int) -> Resampled:
        """A layer's agreement with the RDMs of one or several subjects; NaN where its features are constant."""
        if not mean_eigenvalue(gram):
            return Resampled(np.nan, np.full(2, np.nan), len(gram))
        return resampled_similarity(dissimilarities(gram, self.distance), targets, self.measure, seed=seed)

    def pooled(self, parts: Sequence[Resampled], images: Sequence[Hashable] | None = None) -> Similarity:
        """The mean over sources; ``images`` as in ``compare_scores``."""
        return pool_similarities(parts, self.measure, self.distance, images)

    def compare(
        self,
        pairs: Sequence[tuple[Resampled, Resampled]],
        responses: Sequence[Array],
        seed: int,
        animals: Sequence[Array] | None = None,
        images: Sequence[Hashable] | None = None,
    ) -> Difference | None:
        """The test of model and baseline over sources, or None where one of them has constant features."""
        defined = all(np.isfinite(one.value - base.value) for one, base in pairs)
        return compare_similarities(pairs, images) if defined else None


Metric = Regression | Agreement
PLS = "pls"
METRICS: dict[str, Metric] = {
    PLS: Regression(
        "PLS",
        lambda gram, y, splits, asked: cross_predict(
            gram,
            y,
            splits,
            asked.components,
            per_site=asked.per_site,
            last=True,
            rounding=0.0 if is_factor(gram) else FLOAT32,
        ),
    ),
    "ridge": Regression(
        "each site's penalty chosen within the training images",
        lambda gram, y, splits, asked: ridge_predict(gram, y, splits)[0],
    ),
    "rsa": Agreement(
        "Spearman's correlation of the dissimilarities of all pairs of images; cosine distances after the mean over images was "
        "taken off",
        "spearman",
        "cosine",
    ),
    "cka": Agreement("unbiased linear CKA", "cka", "euclidean"),
    "cosine_cov": Agreement(
        "whitened cosine of squared Euclidean distances, those of the recordings cross-validated over repeats",
        "whitened",
        "euclidean",
        crossvalidated=True,
    ),
}


def load_metric(name: str) -> Metric:
    """A metric by its name: of ``METRICS``, or one that an installed package adds.

    A ValueError: an unknown name (those that exist are listed), or a package that adds something else. An ImportError: that package
    cannot be imported.
    """
    metric = own_or_offered("metrics", name, METRICS)
    if not isinstance(metric, Regression | Agreement):
        raise ValueError(f"metric {name!r} is a {type(metric).__name__}, expected a Regression or an Agreement")
    return metric


def described(name: str) -> str:
    """What a metric says of itself; its name, where the package that added it is gone."""
    try:
        return load_metric(name).about
    except (ValueError, ImportError):
        return name
