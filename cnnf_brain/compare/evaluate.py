"""Recordings and layers -> Evaluations: Grams, cross-validated predictions, scores, the difference to the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from cnnf_brain.activations import Probe
from cnnf_brain.compare.layers import BASELINE, MODEL, Asked, RegionAsked, Row
from cnnf_brain.compare.scoring import ANIMAL, NESTED, Scoring, animals_of, check_scoring, targets_of
from cnnf_brain.gram import Features, Progress, Wanted
from cnnf_brain.networks import Network
from cnnf_brain.predictivity.crossval import N_SPLITS, select_nested
from cnnf_brain.predictivity.kernel import participation_ratio, truncate_gram
from cnnf_brain.predictivity.metrics import PLS, Fitted, Metric, Regression, load_metric
from cnnf_brain.predictivity.pls import FOLDS_AT_ONCE
from cnnf_brain.predictivity.scores import median_r
from cnnf_brain.predictivity.similarity import dissimilarities, similarity
from cnnf_brain.recordings import Recordings
from cnnf_brain.scratch import on_device
from cnnf_brain.types import Array, Difference, Evaluation, Gram, Images, LayerAt, Lazy, Predictions, Split

SMALL_BYTES = 2**27  # of what does not grow with images and sites, as the resamples of the tests
POOLED = "pooled"
Fits = dict[tuple[str, str], Any]  # by metric and layer: what the metric's ``scored`` returns


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
    """Memory that it takes to score ``n_layers`` on one source: Grams, PLS of the folds that are fitted at once, predictions."""
    (n, sites), components = recordings.responses.shape, scoring.components
    inner = N_SPLITS - 1 if scoring.nested else 1  # folds within each split
    problems = sites if scoring.per_site else min(FOLDS_AT_ONCE, N_SPLITS * inner)
    held = problems * 2 * components + 8 * sites + (0 if scoring.per_site else 2 * problems * sites**2 // n)
    predictions = sites * (2 * inner + n_layers)
    beyond_pls = bool(scoring.pca) or scoring.regressions.keys() - {PLS}
    copies = 10 if scoring.agreements else 5 if beyond_pls else 1  # of K: eigenvectors; ranks and their order
    return 8 * n * (n * copies + held + predictions) + SMALL_BYTES


def check_features(features: Features, scoring: Scoring) -> list[tuple[Network, Probe]]:
    """Show every network that is to run the first images (``activations.probe``); what was found of each.

    A ValueError before long work where a network's rows cannot be scored, or a layer gives fewer features than components.
    """
    found = features.probe()
    for network, seen in found:
        for at, count in seen.counts.items():
            if PLS in scoring.metrics and count < scoring.components:
                raise ValueError(
                    f"{network.name} {at}: {count} features are fewer than {scoring.components} components; use fewer components"
                )
    return found


def evaluate_region(
    asked: RegionAsked, sources: Sequence[Recordings], grams: Iterator[Mapping[LayerAt, Gram]], scoring: Scoring
) -> list[Evaluation]:
    """Evaluations of one region: of each source the baseline's layers and the models', then of each animal, then of all pooled.

    ``grams``: of each source and network the Grams of its layers (``wanted_features``).
    """
    parts = [_part(one, [next(grams) for _ in asked.networks], scoring) for one in sources]
    groups = [_Group(part.source.source, [part], pooled=False) for part in parts] + _animals(parts)
    if len(parts) > 1:
        groups.append(_Group(POOLED, parts))
    if scoring.select == ANIMAL:
        choices = [(animal, metric) for animal in animals_of(sources) for metric in scoring.metrics]
        return [row for choice in choices for row in _chosen_on(*choice, asked, parts, scoring)]
    return [
        _evaluation(asked.region, one, row, (metric, number), group, scoring.seed)
        for group in groups
        for metric in filter(group.has, scoring.metrics)
        for number, one in enumerate(asked.networks)
        for row in _rows(one, scoring)
    ]


def _chosen_on(animal: str, metric: str, asked: RegionAsked, parts: Sequence[_Part], scoring: Scoring) -> list[Evaluation]:
    """The layer of each network that has the highest median r over one animal's sites, on the sites of all other animals."""
    mine = [part.of(np.asarray(part.source.subjects == animal)) for part in parts if animal in part.source.animals]
    group = _Group(
        f"chosen on {animal}",
        [part.of(_others(part, animal)) for part in parts if _others(part, animal).any()],
        pooled=False,
    )

    def best(number: int) -> str:
        layers = [layer for name, layer in mine[0].networks[number] if name == metric]
        r = {
            at: median_r(scoring.regressions[metric].pooled([part.networks[number][metric, at] for part in mine]))
            for at in layers
        }
        return max(r, key=lambda at: np.nan_to_num(r[at], nan=-np.inf))

    found = []
    for number, one in enumerate(asked.networks):
        (row,) = _rows(one, scoring)
        chosen = replace(row, layer=best(number), against=best(0) if row.against else "")
        made = _evaluation(asked.region, one, chosen, (metric, number), group, scoring.seed)
        found.append(replace(made, chosen=(chosen.layer,)))
    return found


def _others(part: _Part, animal: str) -> Array:
    return np.array([name not in ("", animal) for name in _subjects(part.source)])


def layer_cka(
    first: tuple[Network, Sequence[str]],
    second: tuple[Network, Sequence[str]],
    images: Images | Any,
    *,
    batch_size: int = 8,
    progress: Progress = True,
) -> Array:
    """Unbiased linear CKA between layers of two networks, or of one: (n_first, n_second), at most 1.

    ``first``, ``second``: a network and names of its layers (``"features.16@1"``). ``images``: Images, or what ``Images.of`` takes.
    Errors as of ``gram.Features``.
    """
    images = images if isinstance(images, Images) else Images.of(images)
    wanted = [(network, images, [LayerAt.parse(name) for name in names]) for network, names in (first, second)]
    grams = Features(wanted, batch_size=batch_size).compute(progress)
    rows, columns = ([dissimilarities(of_network[at].values) for at in of_network] for of_network in grams)
    return np.array([[similarity(one, other, "cka") for other in columns] for one in rows])


@dataclass(frozen=True)
class _Part:
    """Sites of one source, and for each network what is scored of its layers on them."""

    source: Recordings
    networks: Sequence[Fits]

    def of(self, sites: Array) -> _Part:
        """Those of the sites for which ``sites`` (n_sites,) is true; an agreement is one number for all, and left out of some."""
        if sites.all():
            return self
        networks = [{name: one.of(sites) for name, one in fits.items() if isinstance(one, Fitted)} for fits in self.networks]
        return _Part(self.source.of(sites), networks)


@dataclass(frozen=True)
class _Group:
    """The sites of rows: of one source, or side by side of several; ``pooled`` where other rows show them too."""

    name: str
    parts: Sequence[_Part]
    pooled: bool = True

    @property
    def site_ids(self) -> tuple[str, ...]:
        """Of one source as they are, of several with their sources."""
        sources = [part.source for part in self.parts]
        return tuple(f"{s.source}/{i}" if len(sources) > 1 else i for s in sources for i in s.site_ids)

    def has(self, metric: str) -> bool:
        """Whether all of its parts are scored by a metric."""
        return all(any(name == metric for name, _ in part.networks[0]) for part in self.parts)


def _animals(parts: Sequence[_Part]) -> list[_Group]:
    """The sites of each animal, where there are several; not of an animal whose sites are all those of one source."""
    groups = []
    known = [part for part in parts if part.source.subjects is not None]
    animals = animals_of([part.source for part in known])
    for animal in animals if len(animals) > 1 else ():
        mine = [(part, np.asarray(part.source.subjects == animal)) for part in known if animal in part.source.animals]
        if len(mine) > 1 or not np.all(mine[0][1]):
            groups.append(_Group(f"{POOLED} {animal}", [part.of(sites) for part, sites in mine]))
    return groups


@dataclass(frozen=True)
class _NamedRow:
    """A row as it is named in results: layers as text, ``nested`` where they are chosen within training folds."""

    role: str
    layer: str
    against: str


def _rows(asked: Asked, scoring: Scoring) -> list[_NamedRow]:
    if scoring.select is None:
        return [_named(row) for row in asked.rows]
    role = BASELINE if asked.rows[0].role == BASELINE else MODEL
    return [_NamedRow(role, NESTED, NESTED if any(row.against for row in asked.rows) else "")]


def _named(row: Row) -> _NamedRow:
    return _NamedRow(row.role, str(row.at), "" if row.against is None else str(row.against))


def _evaluation(region: str, asked: Asked, row: _NamedRow, which: tuple[str, int], group: _Group, seed: int) -> Evaluation:
    """One row: a metric of the layers of a network (``which``, by name and number) over the sites of a group."""
    (name, number), sources = which, [part.source for part in group.parts]
    network, metric, images = asked.network, load_metric(name), _images(sources)
    mine = [part.networks[number][name, row.layer] for part in group.parts]
    comparison = None
    if row.against:
        bases = [part.networks[0][name, row.against] for part in group.parts]
        comparison = _compare(metric, list(zip(mine, bases, strict=True)), sources, images, seed)
    return Evaluation(
        region=region,
        source=group.name,
        pooled=group.pooled,
        simulated=any(source.simulated for source in sources),
        role=row.role,
        network=network.title,
        weights=network.weights,
        feedback=network.feedback,
        layer=row.layer,
        metric=name,
        scores=metric.pooled(mine, images),
        site_ids=group.site_ids,
        subjects=tuple(one for source in sources for one in _subjects(source)),
        n_images=len({one for own in images for one in own}) if images else len(sources[0].images),
        excluded=tuple(name for source in sources for name in source.excluded),
        comparison=comparison,
        chosen=getattr(mine[0], "chosen", ()) if len(mine) == 1 else (),
        against=row.against,
        effective_dimension=float(np.mean([one.dimension for one in mine])),
    )


def _compare(
    metric: Metric, pairs: Sequence[Any], sources: Sequence[Recordings], images: Sequence[Any] | None, seed: int
) -> Difference | None:
    """The difference of what a metric scored, tested over animals too where they are known; the same images count once."""
    known = all("" not in _subjects(source) for source in sources)
    return metric.compare(
        pairs,
        [source.responses for source in sources],
        seed,
        animals=[np.array(source.subjects) for source in sources] if known else None,
        images=images,
    )


def _images(sources: Sequence[Recordings]) -> list[tuple[str, ...]] | None:
    """Of several sources a name for each image, which is the same for the same image."""
    return [source.images.hashes() for source in sources] if len(sources) > 1 else None


def _subjects(source: Recordings) -> list[str]:
    """The animal of each site, "" where it is not known."""
    return [""] * len(source.site_ids) if source.subjects is None else list(map(str, source.subjects))


def _part(recordings: Recordings, grams: Sequence[Mapping[LayerAt, Gram]], scoring: Scoring) -> _Part:
    """One source, with the layers of every network scored on it."""
    splits = check_scoring(recordings, scoring)
    targets = {}
    for name, one in scoring.agreements.items():
        rdms = targets_of(one, recordings)
        targets[name] = rdms, one.ceiling(rdms, recordings.repeats, scoring.seed)
    return _Part(recordings, [_fit_layers(of_network, recordings, scoring, splits, targets) for of_network in grams])


def _fit_layers(
    grams: Mapping[LayerAt, Gram],
    recordings: Recordings,
    scoring: Scoring,
    splits: Sequence[Split],
    targets: Mapping[str, tuple[Sequence[Array], tuple[float, float] | None]],
) -> Fits:
    """Every layer of a network, by every metric, on one source; each Gram is read once, unless layers are chosen from."""
    responses, repeats, found = recordings.responses, recordings.repeats, Fits()

    def product(at: LayerAt) -> Array:
        gram = grams[at]
        return on_device(truncate_gram(gram.values, scoring.pca) if scoring.pca else gram.values, gram.device)

    ks = Lazy(grams, product)
    if scoring.nested:
        for name, one in scoring.regressions.items():
            predicted, best = select_nested(ks, responses, splits, partial(_predict, one, scoring))
            dimensions = {at: participation_ratio(ks[at]) for at in set(best)}
            fitted = one.scored(predicted, responses, repeats, scoring.seed, tuple(map(str, best)))
            found[name, NESTED] = replace(fitted, dimension=float(np.mean([dimensions[at] for at in best])))
        return found
    for at in ks:
        k = ks[at]
        dimension = participation_ratio(k)
        for name, one in scoring.regressions.items():
            fitted = one.scored(one.predict(k, responses, splits, scoring), responses, repeats, scoring.seed)
            found[name, str(at)] = replace(fitted, dimension=dimension)
        for name, other in scoring.agreements.items():
            rdms, ceiling = targets[name]
            found[name, str(at)] = replace(other.scored(k, rdms, scoring.seed), ceiling=ceiling, dimension=dimension)
        del k  # before the next is read
    return found


def _predict(metric: Regression, scoring: Scoring, gram: Array, responses: Array, splits: Sequence[Split]) -> Predictions:
    return metric.predict(gram, responses, splits, scoring)
