"""Which networks a comparison is of: names and weights -> the models and their baseline, settled before anything is downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cnnf_brain import io
from cnnf_brain.model.weights import Card, is_published
from cnnf_brain.networks import RANDOM, TORCHVISION, Network, Plan, place, plan

ALONE = "none"  # in place of a baseline


@dataclass(frozen=True)
class Choice:
    """The networks of a comparison, not loaded yet.

    ``baseline`` None: without one, unless ``itself``, where the first model's own first pass is the baseline.
    """

    models: tuple[Plan, ...]
    baseline: Plan | None
    itself: bool = False

    @cached_property
    def skeletons(self) -> tuple[list[Network], Network | None]:
        """Models and baseline without weights, to check layers by and to name them; networks from files of code are whole."""
        models = [one.skeleton() for one in self.models]
        return models, models[0] if self.itself else self.baseline.skeleton() if self.baseline else None

    def load(self, device: str) -> tuple[list[Network], Network | None]:
        """Models and baseline, on ``device``."""
        made, beside = self.skeletons
        models = [_loaded(one, network, device) for one, network in zip(self.models, made, strict=True)]
        if self.itself or self.baseline is None or beside is None:
            return models, models[0] if self.itself else None
        return models, _loaded(self.baseline, beside, device)


def choose(
    specs: Sequence[str],
    weights: Sequence[str] = (),
    *,
    baseline: str | None = None,
    baseline_weights: str | None = None,
    iterations: int | None = None,
    feedback: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Choice:
    """The networks to compare.

    Parameters
    ----------
    specs, weights
        The models. One name with several weights, or as many of each; no weights: each model's own.
    baseline
        A name; ``none``: without a baseline. By default the first model's network, under ``baseline_weights``, else those that its
        training started from by its card, else the published ones; for a network from a file of code its own first pass.
    iterations, feedback
        Of the models, see ``load_network``; networks without feedback take neither.
    settings
        ``image_size`` and ``seed`` for all.

    Raises
    ------
    ValueError
        Numbers of names and weights that do not fit, unknown names, weights that training started from and that are not there.
    """
    settings = dict(settings or {})
    pairs = _paired(specs, weights)
    models = tuple(plan(spec, name, iterations=iterations, feedback=feedback, **settings) for spec, name in pairs)
    for one in models:
        if sum(one.origin == other.origin != "" for other in models) > 1:
            raise ValueError(f"model {one.spec} with weights {one.label} is named twice; name each network once")
    first = models[0]
    if baseline == ALONE:
        if baseline_weights is not None:
            raise ValueError(f"baseline weights {baseline_weights} are given, and no baseline; leave one of them out")
        return Choice(models, None)
    spec = baseline or first.spec
    if baseline_weights is None and spec == first.spec:
        if not first.has_feedback and not spec.startswith(TORCHVISION):
            return Choice(models, None, itself=True)
        baseline_weights = starting_weights(first.card, first.label)
    beside = plan(spec, baseline_weights, iterations=0, **settings)
    if settings.get("image_size") is None and spec == first.spec and first.has_feedback and beside.card.image_size is None:
        beside = replace(beside, image_size=first.preprocessing_size)  # both are compared at the size of the training
    return Choice(models, beside)


def starting_weights(card: Card, label: str) -> str | None:
    """The weights that a trained network started from, where its card names some; a ValueError where such a file is not there."""
    named = card.started_from
    if named in (None, RANDOM):
        return None
    if is_published(str(named)):
        return named
    path = Path(str(named))
    advice = "give the baseline's weights, or no baseline"
    if not path.is_file():
        raise ValueError(f"weights {label}: by their card training started from {named}, which is not there; {advice}")
    if card.started_sha256 not in (None, io.sha256(path)):
        raise ValueError(
            f"weights {label}: by their card training started from {named}, which is another file now; {advice}"
        )
    return named


def _paired(specs: Sequence[str], weights: Sequence[str]) -> list[tuple[str, str | None]]:
    if not specs:
        raise ValueError("no model is named")
    if not weights:
        return [(spec, None) for spec in specs]
    if len(specs) == 1:
        return [(specs[0], name) for name in weights]
    if len(specs) != len(weights):
        raise ValueError(
            f"{len(specs)} models and {len(weights)} weights; give one name for all weights, or as many of each"
        )
    return list(zip(specs, weights, strict=True))


def _loaded(one: Plan, skeleton: Network, device: str) -> Network:
    return place(one.load() if one.from_names else skeleton, device)
