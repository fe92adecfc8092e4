"""The tasks of a study. First K of each network over each set of images, into the cache; then the scores of each layer, from K.

A cell is a file in ``cells/``, whose name ends in a hash over all that decides its content: a study that grows makes what is new.
The file of a K says under which keys the cache holds it, so that scores are made without the network, on any machine.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from cnnf_brain import results
from cnnf_brain.checks import check_memory, in_short
from cnnf_brain.compare import Comparison, Scoring, describe_network
from cnnf_brain.compare.comparison import write_scores
from cnnf_brain.compare.evaluate import check_features, evaluate_region, scoring_bytes
from cnnf_brain.gram import Features, cached_path, read_gram, summed
from cnnf_brain.images import AUTO, pick_device
from cnnf_brain.io import read_json, reading, write_json
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.networks import Network
from cnnf_brain.predictivity.crossval import N_SPLITS
from cnnf_brain.recordings import Recordings
from cnnf_brain.scratch import gram_bytes
from cnnf_brain.sweep.study import Member, Question, Study
from cnnf_brain.types import FEATURES_VERSION, Gram, Images, LayerAt, Lazy
from cnnf_brain.work import AGAIN, Interrupted, Stop, Task, file_name, read_once

FORMAT = "cnnf-brain study cell 1"
CELLS, LOGS = "cells", "logs"  # folders of a study's folder
MANIFEST = "cells.json"  # the cells of the study as it is now
PATIENCE = 60.0  # seconds that a process waits for another that begins or ends


@dataclass(frozen=True, eq=False)
class Cell(Task):
    """A task of a study in ``folder``; an error is noted beside its file, so that other cells go on."""

    folder: Path
    scoring: Scoring

    @cached_property
    def path(self) -> Path:
        words, suffix = self.words
        return self.folder / CELLS / file_name("-".join(words), self.identity, suffix)

    @property
    @abstractmethod
    def words(self) -> tuple[list[str], str]:
        """What its file is called, and its suffix."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """All that decides the content of the file."""

    @property
    def title(self) -> str:
        """The name of its file, under which logs have it."""
        return self.path.stem

    @property
    def note(self) -> Path:
        """The file that says why it failed, where it did."""
        return self.path.with_name(f"{self.title}.failed.json")

    def hopeless(self) -> bool:
        """Whether it has failed since the study was started last."""
        return self.note.exists()

    def fail(self, error: Exception) -> None:
        """Note an error."""
        write_json(self.note, {"cell": self.title, "error": in_short(error)})

    @property
    @abstractmethod
    def memory(self) -> int:
        """Bytes that it takes beside the network."""


@dataclass(frozen=True, eq=False)
class K(Cell):
    """K of all layers of a network that a study needs over some images: one pass through the network."""

    member: Member
    images: Images
    layers: tuple[LayerAt, ...]
    device: str

    @property
    def words(self) -> tuple[list[str], str]:
        skeleton = self.member.skeleton
        return ["k", skeleton.title, skeleton.weights, self.images.where], ".json"

    @property
    def identity(self) -> dict[str, Any]:
        skeleton = self.member.skeleton
        return {
            "format": FORMAT,
            "network": self.member.key,
            "feedback": skeleton.module.settings.as_dict() if isinstance(skeleton.module, CNNF) else None,
            "preprocessing": asdict(skeleton.preprocessing),
            "images": self.images.digest(),
            "layers": sorted(map(str, self.layers)),
            "batch_size": self.scoring.batch_size,
            "unit_norm": self.scoring.unit_norm,
            "features": FEATURES_VERSION,
        }

    @property
    def cost(self) -> float:
        """In rough seconds of one core."""
        n, network = len(self.images), self.member.skeleton
        return n * (1 + 2 * network.iterations) * (network.preprocessing.size / 224) ** 2 * 0.2 + 1

    @property
    def memory(self) -> int:
        return gram_bytes(len(self.images))

    def keys(self) -> dict[LayerAt, str]:
        """Under which keys the cache holds K, by layer."""
        return read_once(_keys, self.path)  # type: ignore[no-any-return]

    def outdated(self, layers: Iterable[LayerAt] = ()) -> str:
        keys = self.keys()
        gone = [at for at in layers or keys if not cached_path(keys[at]).exists()]
        return f"the cache lacks K of {', '.join(map(str, gone[:3]))}" if gone else ""

    def make(self, stop: Stop | None) -> None:
        network = self.member.load(self.device)
        how: dict[str, Any] = {name: getattr(self.scoring, name) for name in ("batch_size", "unit_norm", "workers")}
        features = Features([(network, self.images, self.layers)], **how)
        check_features(features, self.scoring)

        def asked(*_: object) -> None:
            if stop is not None and stop.requested:
                raise Interrupted

        features.compute(asked)
        about = {"identity": self.identity, "network": describe_network(network), "versions": results.versions()}
        keys = {str(at): key for at, key in features.keys[0].items()}
        write_json(self.path, {**about, "machine": results.machine(network.device), "keys": keys})


def _keys(path: Path) -> dict[LayerAt, str]:
    with reading(path, "a cell of a study", AGAIN):
        return {LayerAt.parse(name): key for name, key in read_json(path, AGAIN)["keys"].items()}


@dataclass(frozen=True, eq=False)
class Score(Cell):
    """The scores of a layer at its iterations, in one region by one metric, with the difference to the baseline."""

    question: Question
    metric: str
    grams: Mapping[tuple[str, ...], K]  # by ``_features``

    @property
    def words(self) -> tuple[list[str], str]:
        asked = self.question.asked
        model = asked.models[0].network
        return ["score", model.title, model.weights, self.question.layer, asked.region, self.metric], ".nc"

    @property
    def identity(self) -> dict[str, Any]:
        rows = [[str(row.at), str(row.against), row.role] for one in self.question.asked.networks for row in one.rows]
        what = {name: value for name, value in self.scoring.decided().items() if name != "metric"}
        return {
            "format": FORMAT,
            "networks": [{name: part for name, part in k.identity.items() if name != "layers"} for k in self.needed],
            "rows": rows,
            "recordings": self.question.described,
            "metric": self.metric,
            "scoring": what,
        }

    @cached_property
    def needed(self) -> dict[K, list[LayerAt]]:
        """The K that it reads, and the layers of each."""
        found: dict[K, list[LayerAt]] = {}
        for source in self.question.sources:
            for one in self.question.asked.networks:
                k = self.grams[_features(self.question, one.network, source)]
                found.setdefault(k, []).extend(part for at in one.layers for part in at.parts)
        return found

    @property
    def rows(self) -> int:
        """How many layers are fitted."""
        return sum(len(one.layers) for one in self.question.asked.networks)

    @property
    def cost(self) -> float:
        """In rough seconds of one core, of 10 GFLOP/s."""
        operations = sum(_operations(self.metric, source, self.scoring) for source in self.question.sources)
        return self.rows * operations / 1e10 + 1

    @property
    def memory(self) -> int:
        return max(scoring_bytes(source, self.scoring, self.rows) for source in self.question.sources)

    def ready(self) -> bool:
        return all(k.path.exists() and not k.outdated(layers) for k, layers in self.needed.items())

    def hopeless(self) -> bool:
        return self.note.exists() or any(k.hopeless() for k in self.needed)

    def make(self, stop: Stop | None) -> None:
        check_memory(self.memory, f"scoring {self.question.asked.models[0].network.name}")
        asked, sources = self.question.asked, self.question.sources
        on_cpu = all(k.device == "cpu" for k in self.needed)
        device = "cpu" if on_cpu else str(pick_device(AUTO))  # K of a GPU is scored on any machine
        of_each = [
            Lazy(one.layers, partial(_read, self.grams[_features(self.question, one.network, source)].keys(), device))
            for source in sources
            for one in asked.networks
        ]
        found = evaluate_region(asked, sources, iter(of_each), self.scoring)
        options = {"options": self.scoring.decided(), "accuracy": [], "notes": []}
        write_scores(self.path, Comparison(tuple(found), options), whole=True)


def _read(keys: Mapping[LayerAt, str], device: str, at: LayerAt) -> Gram:
    """K of a layer from the cache."""

    def read(part: LayerAt) -> Gram:
        found = read_gram(part, cached_path(keys[part]))
        if found is None:
            raise OSError(f"{part}: {cached_path(keys[part])} was removed or damaged; the same command makes it again")
        return found

    return summed(at, read, device)


def _operations(metric: str, source: Recordings, scoring: Scoring) -> float:
    """Floating point operations of one layer, roughly: five times the bare products of PLS, eigenvectors of ridge, resamples."""
    n, sites = source.responses.shape
    n = max(n, len(source.images))
    if metric == "pls":
        return 5.0 * N_SPLITS * (2 * scoring.components * n**2 + 2 * n * sites**2)
    return 12.0 * N_SPLITS * n**3 if metric == "ridge" else 2e4 * n**2


def planned(study: Study, folder: Path) -> list[Cell]:
    """All cells of a study, K first, checked as a whole: nothing is downloaded but recordings, and no network runs."""
    study = replace(study)  # nothing is remembered of an earlier sweep: weights may have changed since
    layers: dict[tuple[str, ...], dict[LayerAt, None]] = {}
    whose: dict[tuple[str, ...], tuple[Member, Images]] = {}
    for question in study.questions:
        for source in question.sources:
            for one in question.asked.networks:
                where = _features(question, one.network, source)
                whose.setdefault(where, (question.members[id(one.network)], source.images))
                layers.setdefault(where, {}).update(dict.fromkeys(part for at in one.layers for part in at.parts))
    grams = {where: K(folder, study.scoring, *of, tuple(sorted(layers[where])), study.device) for where, of in whose.items()}
    scores = [
        Score(folder, scoring, question, name, grams) for question in study.questions for name, scoring in study.settings
    ]
    return [*grams.values(), *scores]


def _features(question: Question, network: Network, source: Recordings) -> tuple[str, ...]:
    """What decides the features of a network over the images of recordings."""
    return *question.members[id(network)].features, source.images.digest()
