"""Which networks a comparison is of: names and weights -> the models and their baseline, settled before anything is downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cnnf_brain import io
from cnnf_brain.model.weights import Card, is_published
from cnnf_brain.networks import RANDOM, Network, Plan, place, plan

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
    named: Sequence[tuple[str, str | None]],
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
    named
        Name and weights of each model; weights None: the model's own.
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
        Unknown names, a network that is named twice, weights that training started from and that are not there.
    """
    settings = dict(settings or {})
    models = tuple(plan(spec, name, iterations=iterations, feedback=feedback, **settings) for spec, name in named)
    for one in models:
        if sum(one.origin == other.origin != "" for other in models) > 1:
            raise ValueError(f"model {one.spec} with weights {one.label} is named twice; name each network once")
    if baseline == ALONE:
        if baseline_weights is not None:
            raise ValueError(f"baseline weights {baseline_weights} are given, and no baseline; leave one of them out")
        return Choice(models, None)
    first = models[0]
    if baseline in (None, first.spec) and baseline_weights is None:
        if not first.from_names:
            return Choice(models, None, itself=True)
        baseline_weights = starting_weights(first.card, first.label)
    return Choice(models, _beside(first, baseline or first.spec, baseline_weights, settings))


def _beside(first: Plan, spec: str, weights: str | None, settings: Mapping[str, Any]) -> Plan:
    """The baseline; of the first model's architecture it sees images of the model's size."""
    made = plan(spec, weights, iterations=0, **settings)
    alike = spec == first.spec and first.has_feedback
    if alike and settings.get("image_size") is None and made.card.image_size is None:
        return replace(made, image_size=first.preprocessing_size)
    return made


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


def _loaded(one: Plan, skeleton: Network, device: str) -> Network:
    return place(one.load() if one.from_names else skeleton, device)
