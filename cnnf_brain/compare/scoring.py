"""How predictivity is scored, and of which sites; what of recordings does not fit that is said before long work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import permutations
from numbers import Integral, Real
from typing import Any

import numpy as np

from cnnf_brain.predictivity.ceilings import reliability
from cnnf_brain.predictivity.crossval import make_splits
from cnnf_brain.predictivity.metrics import METRICS, PLS, Agreement, Metric, Regression, load_metric
from cnnf_brain.predictivity.similarity import MIN_IMAGES
from cnnf_brain.recordings import Recordings
from cnnf_brain.types import Array, Split, option

OF_PLS = ("components", "per_site")  # settings of PLS alone
NESTED, ANIMAL = "nested", "animal"  # how a layer is chosen
LATER = {"metric": [PLS], "unit_norm": False, "min_reliability": None}  # settings that older results lack: as they were


@dataclass(frozen=True)
class Scoring:
    """How predictivity is scored.

    Attributes
    ----------
    metric
        One or several: ``"pls"`` and ``"ridge"`` predict each site's responses to held-out images; ``"rsa"`` and ``"cka"`` compare
        dissimilarities of images, one number for all sites. All come from the same pass through the networks and the same Grams.
    splits
        ``"kfold"``: ten true folds, shuffled by ``seed``. ``"brainscore"``: Brain-Score's ten shuffle splits, stratified on the
        object where objects are known.
    components
        Components of PLS.
    per_site
        One PLS model for each site (PLS1) in place of one for all sites.
    pca
        Keep this many principal components of the features first, for every metric; None keeps all.
    unit_norm
        Scale each image's features of a layer to norm 1 first, so that a change of their size is no change of representation.
    select
        ``"nested"``: in each split take the layer and iteration that do best within the training images. ``"animal"``: take those
        that do best for one animal, and score them on the others; each animal chooses once. Both for PLS and ridge. None: score
        each.
    min_reliability
        Leave out sites whose reliability over repeats is below this (``predictivity.ceilings``), from 0 to 1; None keeps all.
    seed
        Of the folds, the ceiling's random halves and the tests' resamples.
    batch_size
        Images of a batch. It changes time and memory, and r by less than 1e-5.
    workers
        Processes that decode images ahead of the networks; 0: none. It changes time alone, and is no part of what was asked.

    Raises
    ------
    ValueError
        An unknown word, a metric named twice, numbers below 1, a seed that numpy does not take, a PCA that keeps fewer components
        than PLS has, a setting of PLS without PLS, a choice of layers for a metric that has no training images.

    Examples
    --------
    >>> from cnnf_brain import Scoring
    >>> Scoring(components=10, splits="brainscore").per_site
    False
    >>> Scoring(metric=("ridge", "cka")).metrics
    ('ridge', 'cka')
    """

    metric: tuple[str, ...] | str = option(PLS, f"one or several: {', '.join(METRICS)}, or what a package of yours adds")
    splits: str = option("kfold", "ten true folds, or Brain-Score's shuffle splits", choices=("kfold", "brainscore"))
    components: int = option(25, "of PLS")
    per_site: bool = option(False, "one PLS model per site (PLS1), as the paper words it")
    pca: int | None = option(None, "keep N principal components of the features first", metavar="N")
    unit_norm: bool = option(False, "scale the features of each image to norm 1 first")
    select: str | None = option(
        None, "choose layer and iteration on training folds, or on one animal", choices=(NESTED, ANIMAL)
    )
    min_reliability: float | None = option(None, "leave out sites that are less reliable over repeats", metavar="R")
    seed: int = option(0, "of folds, random halves and resamples")
    batch_size: int = option(8, "images of a batch")
    workers: int = option(0, "processes that decode images ahead of the networks")

    def __post_init__(self) -> None:
        choices = {one.name: one.metadata["choices"] for one in fields(self) if "choices" in one.metadata}
        switches = dict.fromkeys(("per_site", "unit_norm"), (True, False))
        for name, known in {**choices, "select": (None, *choices["select"]), **switches}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected {' or '.join(map(repr, known))}")
        for name, least in (("components", 1), ("pca", 1), ("batch_size", 1), ("seed", 0), ("workers", 0)):
            value = getattr(self, name)
            if value is None and name == "pca":
                continue
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise ValueError(f"{name} is {value!r}, expected a whole number")
            if value < least:
                raise ValueError(f"{name} is {value}, expected at least {least}")
        _check_share("min_reliability", self.min_reliability)
        if self.seed >= 2**32:
            raise ValueError(f"seed is {self.seed}, expected a whole number from 0 to 2**32 - 1")
        self._check_metrics()
        if self.pca is not None and PLS in self.metrics and self.pca < self.components:
            raise ValueError(
                f"pca = {self.pca} keeps fewer components than the {self.components} of PLS; use fewer components"
            )

    def _check_metrics(self) -> None:
        """A ValueError for metrics that are unknown, named twice, or do not fit the other settings."""
        names = list(map(str, self.metrics))
        if not self.chosen or len(self.chosen) < len(names):
            raise ValueError(f"metric is {self.metric!r}, expected one or several names, each once")
        if PLS not in names:
            for one in fields(self):
                if one.name in OF_PLS and getattr(self, one.name) != one.default:
                    raise ValueError(
                        f"{one.name} = {getattr(self, one.name)} is a setting of {PLS}, and the metric is {', '.join(names)}; "
                        f"leave it out, or name {PLS} as well"
                    )
        if self.select and self.agreements:
            raise ValueError(
                f"{', '.join(self.agreements)} use no training images and no single sites on which a layer could be chosen; score "
                f"each layer, or name {PLS} or ridge alone"
            )

    @property
    def metrics(self) -> tuple[str, ...]:
        """``metric`` as a tuple."""
        return (self.metric,) if isinstance(self.metric, str) else tuple(self.metric)

    @property
    def chosen(self) -> dict[str, Metric]:
        """These metrics by name."""
        return {name: load_metric(name) for name in map(str, self.metrics)}

    @property
    def regressions(self) -> dict[str, Regression]:
        """Those of the metrics that predict responses, by name."""
        return {name: one for name, one in self.chosen.items() if isinstance(one, Regression)}

    @property
    def agreements(self) -> dict[str, Agreement]:
        """Those that compare dissimilarities."""
        return {name: one for name, one in self.chosen.items() if isinstance(one, Agreement)}

    def decided(self) -> dict[str, Any]:
        """All settings as plain values, without those of ``LATER`` where they are as in results from before there were any, and
        without the workers."""
        found = {**asdict(self), "metric": list(self.metrics)}
        del found["workers"]
        return {name: value for name, value in found.items() if name not in LATER or value != LATER[name]}

    @property
    def nested(self) -> bool:
        """Whether layer and iteration are chosen within the training images."""
        return self.select == NESTED


def _check_share(name: str, value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < 1):
        raise ValueError(f"{name} is {value!r}, expected None or a number from 0 to below 1")


def check_scoring(recordings: Recordings, scoring: Scoring) -> tuple[Split, ...]:
    """The splits of these recordings, none where no metric needs them; a ValueError before long work where they do not allow the
    scoring."""
    ids = recordings.images.ids
    if scoring.regressions and recordings.rdms is not None:
        raise ValueError(
            f"{recordings.source} holds dissimilarities alone, and {' and '.join(scoring.regressions)} predict responses of sites; "
            "score it by rsa or cka"
        )
    if scoring.agreements and len(ids) < MIN_IMAGES:
        raise ValueError(
            f"{recordings.source}: {len(ids)} images are too few for {' and '.join(scoring.agreements)}; "
            f"at least {MIN_IMAGES} are needed"
        )
    for one in scoring.agreements.values():
        targets_of(one, recordings)
    if not scoring.regressions:
        return ()
    splits = make_splits(scoring.splits, ids, object_names=recordings.object_names, seed=scoring.seed)
    trained = [len(split.train) for split in splits]
    if scoring.nested:  # the choice is made by a cross-validation within the training images
        trained = [len(np.setdiff1d(split.train, other.test)) for split, other in permutations(splits, 2)]
    if PLS in scoring.metrics and scoring.components >= min(trained):
        raise ValueError(
            f"{recordings.source}: {scoring.components} components need more than {scoring.components} training images, "
            f"a split {'within the training images ' if scoring.nested else ''}has {min(trained)}; use fewer components"
        )
    return splits


def targets_of(metric: Agreement, recordings: Recordings) -> list[Array]:
    """The RDMs of the recordings; a ValueError where there is none, or they cannot be made as the metric needs them."""
    if recordings.rdms is not None and not metric.crossvalidated:
        return list(recordings.rdms)
    try:
        return [metric.target(recordings.responses, recordings.repeats)]
    except ValueError as error:
        raise ValueError(f"{recordings.source}: {error}") from error


def animals_of(sources: Sequence[Recordings]) -> list[str]:
    """The animals of these sources, each once."""
    return list(dict.fromkeys(animal for source in sources for animal in source.animals))


def usable(recordings: Sequence[Recordings], scoring: Scoring) -> list[Recordings]:
    """Recordings with the sites that are to be scored (``reliable``); a ValueError where they do not allow the scoring."""
    kept = [reliable(one, scoring) for one in recordings]
    for one in kept:
        check_scoring(one, scoring)
    check_animals(kept, scoring)
    return kept


def check_animals(recordings: Sequence[Recordings], scoring: Scoring) -> None:
    """A ValueError where a layer is to be chosen on one animal of a region, and there are not two."""
    for region in dict.fromkeys(one.region for one in recordings) if scoring.select == ANIMAL else ():
        found = animals_of([one for one in recordings if one.region == region])
        if len(found) < 2:
            raise ValueError(
                f"{region}: to choose layers on one animal and score them on others, recordings of two animals or more are "
                f"needed; these name {', '.join(found) or 'none (subjects)'}"
            )


def reliable(recordings: Recordings, scoring: Scoring) -> Recordings:
    """Recordings without the sites below ``scoring.min_reliability``, which ``excluded`` names; a ValueError where there are no
    repeats, or no site is left."""
    least = scoring.min_reliability
    if least is None:
        return recordings
    if recordings.repeats is None:
        raise ValueError(
            f"{recordings.source}: min_reliability = {least} needs single repeats, and these recordings hold none; leave it out, "
            "or take recordings with repeats"
        )
    found = reliability(recordings.repeats).value
    good = found >= least
    if not good.any():
        raise ValueError(
            f"{recordings.source}: no site has a reliability of {least}, the highest is {np.nanmax(found, initial=-1):.2f}"
        )
    names = [
        f"{name} (reliability {value:.2f}, below {least:g})"
        for name, value, kept in zip(recordings.site_ids, found, good, strict=True)
        if not kept
    ]
    return replace(recordings.of(good), excluded=(*recordings.excluded, *names))
