"""What a study is of, from objects or from study.toml: networks, layers, iterations, recordings, metrics. Checked as a whole."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from cnnf_brain.checks import check_text, unknown
from cnnf_brain.compare import Scoring, describe_recordings
from cnnf_brain.compare.choice import ALONE, choose
from cnnf_brain.compare.layers import Layers, RegionAsked, asked_layers, by_region
from cnnf_brain.compare.scoring import OF_PLS, usable
from cnnf_brain.io import read_text, reading
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.networks import Network, Plan, place, plan
from cnnf_brain.predictivity.metrics import PLS
from cnnf_brain.recordings import Recordings, load, split_region

REGIONS = ("V4", "IT")  # where no layers and no regions are named


@dataclass(frozen=True, kw_only=True)
class NetworkEntry:
    """A network of a study, by name.

    Attributes
    ----------
    model, weights, iterations, feedback, image_size
        As ``load_network`` takes them; ``iterations``: those that are scored, the last of them are run.
    layers
        Where they differ from those of the study.
    name
        What results call it; by default as ``load_network`` does.
    """

    model: str
    weights: str | None = None
    iterations: Sequence[int] | None = None
    layers: Layers = None
    feedback: Mapping[str, Any] | None = None
    image_size: int | None = None
    name: str = ""


@dataclass(frozen=True, eq=False)
class Member:
    """A network of a study before its weights are loaded.

    ``skeleton``: the network without weights. ``load``: it, on a device. ``blank``: it with random weights. ``key``: all that tells
    its weights and its code from others. ``layers``, ``iterations``: its own, None as of the study.
    """

    skeleton: Network
    load: Callable[[str], Network]
    blank: Callable[[], Network]
    key: str
    layers: Layers = None
    iterations: Sequence[int] | None = None

    @property
    def features(self) -> tuple[str, str, str]:
        """What decides its features."""
        module = self.skeleton.module
        settings = str(module.settings.as_dict()) if isinstance(module, CNNF) else ""
        return self.key, settings, repr(self.skeleton.preprocessing)


@dataclass(frozen=True, eq=False)
class Question:
    """Layers of a network in a region, and what they are compared with: the work of one cell, but for the metric.

    ``asked`` holds skeletons; ``members`` are their networks, by the skeleton's id. ``described``: what tells the recordings.
    """

    asked: RegionAsked
    sources: Sequence[Recordings]
    described: Sequence[Mapping[str, Any]]
    members: Mapping[int, Member]
    layer: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Study:
    """Networks x weights x layers x iterations x recordings x metrics, as one study; see ``sweep``.

    Attributes
    ----------
    networks
        Names (``"vgg16"``), dicts (``model``, ``weights``, ``iterations``, ``layers``, ``feedback``, ``image_size``, ``name``), or
        ``Network`` objects. A dict with several ``weights`` stands for a network each.
    recordings
        Words as the compare command takes them (``"simulated"``, ``"V4=path/to/file.nc"``), or ``Recordings`` objects. All
        recordings of a region are scored together, as ``compare`` does: apart, by animal, and pooled.
    layers
        A name, a list of names, or a dict of these by region; None: each network's own layer for the region. A name without
        ``@`` is taken at every one of the ``iterations``.
    regions
        By default those of ``layers``, of the objects in ``recordings``, or V4 and IT.
    session
        For recordings in the layout of V4_compact_models.
    iterations
        Feedback iterations of every network that has feedback; None: as trained.
    baseline, baseline_weights
        What every network is compared with: a name, a ``Network``, or ``"none"``. None: for each network the one that the
        compare command takes, its architecture without feedback. A ranking needs one baseline for all (``table``).
    baseline_layers
        The baseline's, in the form of ``layers``; None: those of the same names, else its own for the region.
    scoring
        See ``Scoring``; its ``metric`` names all metrics of the study.
    device
        Where networks run: ``"auto"``, ``"cpu"``, ``"cuda"``.
    slurm
        What jobs ask for, as submitit's SlurmExecutor names it (``partition``, ``account``, ...); the tables ``K`` and ``scores``
        hold what differs between the two stages (``{"K": {"gpus_per_node": 1}}``).

    Examples
    --------
    >>> import cnnf_brain as cb
    >>> study = cb.Study(networks=["small"], recordings=["simulated"], layers={"IT": "relu3"}, iterations=[0, 1])
    >>> study.regions_asked
    ('IT',)
    """

    networks: Sequence[str | Mapping[str, Any] | Network]
    recordings: Sequence[str] | Sequence[Recordings]
    layers: Layers = None
    regions: Sequence[str] | None = None
    session: Sequence[str] | None = None
    iterations: Sequence[int] | None = None
    baseline: str | Network | None = None
    baseline_weights: str | None = None
    baseline_layers: Layers = None
    scoring: Scoring = field(default_factory=Scoring)
    device: str = "auto"
    slurm: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("networks", "recordings"):
            given = getattr(self, name)
            if isinstance(given, str) or not isinstance(given, Sequence) or not given:
                raise ValueError(f"{name} of a study are {given!r}, expected a list of one or more")
        if isinstance(self.regions, str):
            raise ValueError(f"regions of a study are {self.regions!r}, expected a list: [{self.regions!r}]")
        if not isinstance(self.scoring, Scoring):
            raise TypeError(f"scoring is a {type(self.scoring).__name__}, expected a cnnf_brain.Scoring")

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: what it was made from; what follows from it holds ids of this process."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def read(cls, path: str | Path) -> Study:
        """The study in a TOML file, whose entries are the attributes; ``[scoring]`` is a table, ``[[networks]]`` a list of tables.

        Raises
        ------
        FileNotFoundError, ValueError
            No such file; it is no TOML, or an entry is unknown or of another type.
        """
        with reading(path, "a study", "docs/sweep.md shows the form"):
            given = tomllib.loads(read_text(path))
            _check_names("entry", given, cls, str(path))
            if "networks" not in given or "recordings" not in given:
                raise ValueError(f"{path} names no networks or no recordings; a study needs both")
            for layers in (one.get("layers") for one in (given, *given["networks"]) if isinstance(one, Mapping)):
                _check_texts(layers)
            scoring = given.pop("scoring", {})
            _check_names("setting of scoring", scoring, Scoring, str(path))
            lists: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in scoring.items()
            }
            return cls(**given, scoring=Scoring(**lists))

    @property
    def named(self) -> bool:
        """Whether names alone make it, so that another process can make it again."""
        parts = [*self.networks, *self.recordings, self.baseline]
        return not any(isinstance(one, Network | Recordings) for one in parts)

    @property
    def regions_asked(self) -> tuple[str, ...]:
        """Its regions."""
        if self.regions:
            return tuple(self.regions)
        if isinstance(self.layers, Mapping):
            return tuple(self.layers)
        named = [one.region if isinstance(one, Recordings) else split_region(one)[0] for one in self.recordings]
        return tuple(dict.fromkeys(region for region in named if region)) if all(named) else REGIONS

    @cached_property
    def sources(self) -> dict[str, list[Recordings]]:
        """The recordings of each region, checked against the scoring."""
        words = [one for one in self.recordings if isinstance(one, str)]
        found: dict[str, list[Recordings]] = load(words, self.regions_asked, self.session) if words else {}
        for one in self.recordings:
            if isinstance(one, Recordings):
                found.setdefault(one.region, []).append(one)
        for source in (source for of_region in found.values() for source in of_region):
            source.images.check()
        if set(found) != set(self.regions_asked):
            asked, there = ", ".join(self.regions_asked), ", ".join(found)
            raise ValueError(f"the regions of the study are {asked}, and its recordings are of {there}; name the same")
        return {region: usable(found[region], self.scoring) for region in self.regions_asked}

    @cached_property
    def described(self) -> dict[str, list[dict[str, Any]]]:
        """What tells the recordings of each region."""
        return {region: [describe_recordings(one) for one in sources] for region, sources in self.sources.items()}

    @cached_property
    def members(self) -> list[tuple[Member, Member | None]]:
        """Each network with its baseline, not loaded; a ValueError where two cannot be told apart, or one has no identity."""
        found = [pair for one in self.networks for pair in self._pairs(one)]
        members, baselines = [member for member, _ in found], [other for _, other in found if other is not None]
        first: dict[tuple[str, str], Member] = {}
        for number, one in enumerate([*members, *baselines]):
            name = (one.skeleton.title, one.skeleton.weights)
            known = first.setdefault(name, one)
            # a baseline may be a network of the study, or that of several
            twice = known is not one and number < len(members)
            if twice or known.features != one.features:
                raise ValueError(f"two networks of the study are called {name[0]} [{name[1]}]; give each a name of its own")
            if not one.key:
                raise ValueError(
                    f"{name[0]}: its features cannot be kept for other cells, since {one.skeleton.unidentified}"
                )
        return found

    def _pairs(self, given: object) -> Iterator[tuple[Member, Member | None]]:
        if isinstance(given, Network):
            member = _of_network(given)
            yield member, self._baseline(member, None)
            return
        if not isinstance(given, str | Mapping):
            raise TypeError(f"networks holds a {type(given).__name__}, expected a name, a dict or a cnnf_brain.Network")
        words: dict[str, Any] = {"model": given} if isinstance(given, str) else dict(given)
        _check_names("entry of a network", words, NetworkEntry, "the study")
        if "model" not in words:
            raise ValueError(f"a network of the study has no model: {words}")
        weights = words.pop("weights", None)
        for name in [weights] if weights is None or isinstance(weights, str) else weights:
            entry = NetworkEntry(**words, weights=name)
            member = _of_plan(self._plan(entry), entry)
            yield member, self._baseline(member, entry)

    def _plan(self, entry: NetworkEntry) -> Plan:
        """The plan of an entry, which runs as many iterations as are scored."""
        made = plan(entry.model, entry.weights, feedback=entry.feedback, image_size=entry.image_size, seed=self.scoring.seed)
        wanted = entry.iterations if entry.iterations is not None else self.iterations if made.has_feedback else None
        return made if wanted is None else replace(made, iterations=max(wanted))

    def _baseline(self, member: Member, entry: NetworkEntry | None) -> Member | None:
        if isinstance(self.baseline, Network):
            return self._common
        if self.baseline == ALONE:
            return None
        if self.baseline is not None or self.baseline_weights is not None:
            return self._common
        if entry is None:
            return member
        seed = {"seed": self.scoring.seed, "image_size": entry.image_size}
        made = choose([(entry.model, entry.weights)], feedback=entry.feedback, settings=seed)
        if made.itself or made.baseline is None:
            return member
        return _of_plan(made.baseline, NetworkEntry(model=entry.model))

    @cached_property
    def _common(self) -> Member:
        """The baseline of all networks."""
        if isinstance(self.baseline, Network):
            return _of_network(self.baseline)
        if self.baseline is None:
            raise ValueError(f"baseline weights {self.baseline_weights} are given, and no baseline; name the network too")
        made = plan(self.baseline, self.baseline_weights, iterations=0, seed=self.scoring.seed)
        return _of_plan(made, NetworkEntry(model=self.baseline))

    @cached_property
    def questions(self) -> list[Question]:
        """Every layer of every network in every region, checked; where a layer is chosen all layers of a network as one."""
        if max(self.iterations or [0]) and not any(member.skeleton.iterations for member, _ in self.members):
            raise ValueError(
                f"the study asks for iterations {list(self.iterations or ())}, and none of its networks has feedback"
            )
        return [one for member, baseline in self.members for one in self._of_member(member, baseline)]

    def _of_member(self, member: Member, baseline: Member | None) -> Iterator[Question]:
        skeletons = [member.skeleton, *([baseline.skeleton] if baseline else [])]
        members = {id(one): made for one, made in zip(skeletons, [member, baseline], strict=False) if made}
        regions, theirs = list(self.sources), {}
        if self.baseline_layers is not None:
            theirs = by_region(self.baseline_layers, regions, "baseline layers", every=False)
        for region, names in by_region(self.layers if member.layers is None else member.layers, regions).items():
            named = {region: theirs[region]} if region in theirs else None
            for group in [names] if self.scoring.select else [[name] for name in names]:
                every = self._at_iterations(group, member)
                (asked,) = asked_layers({region: every}, skeletons[:1], skeletons[1] if baseline else None, named)
                name = self.scoring.select or str(group[0]) or "own"
                yield Question(asked, self.sources[region], self.described[region], members, name)

    def _at_iterations(self, names: Sequence[Any], member: Member) -> list[str]:
        iterations = self.iterations if member.iterations is None else member.iterations
        runs = member.skeleton.iterations
        if (runs or member.iterations is not None) and max(iterations or [0]) > runs:
            raise ValueError(
                f"{member.skeleton.title} runs {runs} iterations, and the study asks for {list(iterations or ())}"
            )
        return [one for name in names for one in _at(str(name), iterations, member.skeleton)]

    @property
    def settings(self) -> Iterator[tuple[str, Scoring]]:
        """Each metric with the scoring of its cells."""
        own: dict[str, Any] = {one.name: one.default for one in fields(Scoring) if one.name in OF_PLS}
        for name in self.scoring.metrics:
            yield name, replace(self.scoring, metric=(name,), **({} if name == PLS else own))


def _at(name: str, iterations: Sequence[int] | None, network: Network) -> list[str]:
    """A layer at each iteration that is asked for, of those that the network runs."""
    if "@" in name or iterations is None:
        return [name]
    return [f"{name}@{t}" for t in iterations if t <= network.iterations] or [f"{name}@0"]


def _of_plan(made: Plan, entry: NetworkEntry) -> Member:
    def named(network: Network) -> Network:
        return replace(network, name=check_text("the name of a network,", entry.name)) if entry.name else network

    skeleton = named(made.skeleton())
    blank = partial(replace(made, source=None).load) if made.from_names else made.skeleton

    def load(device: str) -> Network:
        return place(named(made.load()), device)

    key = made.origin or skeleton.identity or ""
    return Member(skeleton, load, blank, key, entry.layers, entry.iterations)


def _of_network(network: Network) -> Member:
    return Member(network, lambda device: place(network, device), lambda: network, network.identity or "")


def _check_texts(layers: Any) -> None:
    """A ValueError where a name of a layer in a file is a number: those of a Sequential look like one."""
    for inside in layers.values() if isinstance(layers, Mapping) else layers if isinstance(layers, list) else [layers]:
        if isinstance(inside, list):
            _check_texts(inside)
        elif not isinstance(inside, str | None):
            raise ValueError(f'layers hold {inside!r}, expected a name; write "{inside}"')


def _check_names(what: str, given: Mapping[str, Any], record: type, where: str) -> None:
    known = [one.name for one in fields(record)]
    for name in given:
        if name not in known:
            raise unknown(what, name, known, where=where)
