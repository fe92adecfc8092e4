"""Which layers of which networks are scored, and which layer of the baseline each is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from cnnf_brain.activations import check_layers
from cnnf_brain.networks import Network
from cnnf_brain.types import LayerAt

BASELINE, MODEL, CONTROL = "baseline", "model", "control"

Name = str | LayerAt
Names = Name | Sequence[Name]
Layers = Mapping[str, Names] | Names | None


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


def by_region(layers: Layers, regions: Sequence[str], what: str = "layers", *, every: bool = True) -> dict[str, list[Name]]:
    """Layers for each region of ``regions``, in their order.

    ``layers`` None: each region's own layer, under the name ``""``. A name or a list of names is taken for every region; a mapping
    names them by region: for each of ``regions`` (not ``every``: for some), and for
    no other.
    """
    if layers is None:
        return {region: [""] for region in regions}
    if not isinstance(layers, Mapping):
        return {region: _listed(layers, what) for region in regions}
    named = ", ".join(map(str, layers)) or "none"
    for region in [*layers, *(regions if every else ())]:
        if (region in layers) != (region in regions):
            raise ValueError(f"{what} are named for the regions {named}, but the regions are {', '.join(regions)}")
    return {region: _listed(layers[region], what) for region in regions if region in layers}


def _listed(names: Names, what: str) -> list[Name]:
    found = [names] if isinstance(names, str | LayerAt) else list(names) if isinstance(names, list | tuple) else None
    if found is None or not all(isinstance(name, str | LayerAt) for name in found):
        raise TypeError(
            f"{what} are {names!r}, expected a name (features.16@1), a LayerAt, or a list of these, by region or not"
        )
    if not found:
        raise ValueError(f"{what} is an empty list; name one, or leave {what} out")
    return found


def asked_layers(
    named: Mapping[str, Sequence[Name]],
    models: Sequence[Network],
    baseline: Network | None,
    baseline_named: Mapping[str, Sequence[Name]] | None = None,
) -> list[RegionAsked]:
    """The layers of all networks, region by region, checked.

    A name without ``@`` is taken at every iteration that the model runs; ``features.16@0+2`` is iterations 0 and 2 side by side;
    an empty name stands for the region's own layer (``@2``: that layer at iteration 2). The first pass of a model with feedback
    stands beside its iterations as a control. The baseline's layer is the one that ``baseline_named`` names for the region, else
    the one of the same name, else the region's own. A network is not compared with itself.

    Raises
    ------
    ValueError
        A region without a known layer, an unknown layer, an iteration that is not run, layers of a baseline that is not there.
    """
    theirs = dict(baseline_named or {})
    if theirs and baseline is None:
        raise ValueError(f"baseline layers are named for region {next(iter(theirs))}, but there is no baseline")
    return [_region_asked(region, names, models, baseline, theirs.get(region, ())) for region, names in named.items()]


def _region_asked(
    region: str, names: Sequence[Name], models: Sequence[Network], baseline: Network | None, theirs: Sequence[Name]
) -> RegionAsked:
    found = [Asked(model, _rows(model, _layers_of(model, region, names), region, baseline, theirs)) for model in models]
    compared = tuple(one for one in found if one.rows)
    if baseline is None:
        return RegionAsked(region, None, compared)
    others = dict.fromkeys(
        other
        for model in models
        for at in _layers_of(model, region, names)
        for other in _counterparts(at, region, baseline, theirs)
    )
    if not compared:  # one network alone: what there is to score is its own
        return RegionAsked(region, None, (Asked(models[0], tuple(Row(MODEL, at) for at in others)),))
    return RegionAsked(region, Asked(baseline, tuple(Row(BASELINE, at) for at in others)), compared)


def _rows(
    model: Network, ats: Sequence[LayerAt], region: str, baseline: Network | None, theirs: Sequence[Name]
) -> tuple[Row, ...]:
    """The rows of one model: each layer with each of its counterparts, but not with itself."""
    first = CONTROL if model.iterations else MODEL
    roles = {at: MODEL if at.iteration or at.feedback else first for at in ats}
    if baseline is None:
        return tuple(Row(roles[at], at) for at in ats)
    same = same_network(model, baseline)
    pairs = [(at, other) for at in ats for other in _counterparts(at, region, baseline, theirs)]
    return tuple(dict.fromkeys(Row(roles[at], at, other) for at, other in pairs if not (same and at == other)))


def networks_of(asked: Sequence[RegionAsked]) -> list[Network]:
    """All networks of a comparison, the baseline first, once each."""
    return list({id(one.network): one.network for region in asked for one in region.networks}.values())


def _layers_of(model: Network, region: str, names: Sequence[Name]) -> list[LayerAt]:
    """The layers asked of a model, the first pass of each before its iterations."""
    found: dict[str, list[LayerAt]] = {}
    for name in names:
        layer, at, iteration = str(name).partition("@")
        layer = layer or model.layer_of(region)
        iterations = range(model.iterations + 1)
        ats = [LayerAt.parse(layer + at + iteration)] if at else [LayerAt(layer, t) for t in iterations]
        _check(model, ats)
        first = [LayerAt(one.layer) for one in ats if one.iteration or one.feedback]
        for one in [*first, *ats]:
            found.setdefault(one.layer, []).append(one)
    return list(dict.fromkeys(at for ats in found.values() for at in ats))


def _check(network: Network, ats: Sequence[LayerAt]) -> None:
    """``check_layers`` of layers, of joint ones their parts."""
    check_layers(network.module, [part for at in ats for part in at.parts])


def _counterparts(at: LayerAt, region: str, baseline: Network, named: Sequence[Name]) -> list[LayerAt]:
    """The baseline's layers that a layer is compared with."""
    if named:
        ats = [LayerAt.parse(str(name) or baseline.layer_of(region)) for name in named]
        _check(baseline, ats)
        return ats
    try:
        check_layers(baseline.module, [LayerAt(at.layer)])
    except ValueError:
        if region not in baseline.layers:
            raise ValueError(
                f"{baseline.name} has no layer {at.layer!r}; name the one to compare with for region {region} (baseline layers)"
            ) from None
        return [LayerAt(baseline.layers[region])]
    return [LayerAt(at.layer)]


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
