"""What a plugin is, and all that its code calls: identity -> weights, checked -> the model that Brain-Score scores."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from brainscore_core.supported_data_standards.brainio.s3 import load_weight_file
from brainscore_vision.model_helpers.brain_transformation import ModelCommitment
from brainscore_vision.model_interface import BrainModel
from torch import Tensor, nn

from cnnf_brain import images, io, networks
from cnnf_brain.brainscore.wrapper import LOGITS, IterationsInTime, IterationWrapper, check_bins, check_name
from cnnf_brain.checks import running
from cnnf_brain.images import Preprocessing
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.model.settings import FeedbackSettings
from cnnf_brain.networks import Network
from cnnf_brain.types import FEATURES_VERSION

REGIONS = ("V1", "V2", "V4", "IT")
NEEDED = ("V4", "IT")  # of a plugin that takes neural benchmarks alone; it may leave out the others
BUCKET = "brainscore-storage"
STORED_BELOW = "brainscore-vision/models"  # the folder in Brain-Score's storage that uploads come to
CLASSES = 1000  # ImageNet's, in the order of their synset names: Brain-Score's labels are read off them
AGAIN = "write the plugin anew"


@dataclass(frozen=True)
class Weights:
    """A file of weights (name and hashes) and the place that Brain-Score loads it from.

    ``stored`` and ``version_id`` are what the website's Large File Upload returned: the path below ``brainscore-vision/models`` in
    Brain-Score's storage, and the version. ``url`` is a hub's address instead. With neither, the plugin is a draft, which loads
    from this machine alone. ``sha1`` goes to Brain-Score's loader, which only notes it. Without ``file`` the network's own code
    makes the weights, and ``sha256`` is their ``made_hash``. A ValueError for a place that is not whole, for no file, and for names
    that lead out of the folders of weights (a plugin may come from strangers).
    """

    file: str
    sha256: str
    sha1: str = ""
    stored: str = ""
    version_id: str = ""
    url: str = ""

    def __post_init__(self) -> None:
        out = "/" in self.file or self.stored.startswith("/") or ".." in self.stored.split("/")
        if out or not re.fullmatch("[0-9a-f]*", self.sha256):
            given = f"weights {self.file!r} with SHA-256 {self.sha256!r}, stored as {self.stored!r}"
            raise ValueError(f"{given}: expected a file's name, hexadecimal digits, and a path without ..; {AGAIN}")
        if self.made and (self.stored or self.url):
            told = "give a file of weights, or no place"
            raise ValueError(f"a place is given, and the network's own code makes its weights; {told}")
        if self.stored and self.url:
            raise ValueError(f"weights {self.file}: a place in Brain-Score's storage and a url are given; give one of them")
        if bool(self.stored) != bool(self.version_id):
            stored, version = (value or "not given" for value in (self.stored, self.version_id))
            needs = f"needs both its path ({stored}) and the version id that the upload returned ({version})"
            raise ValueError(f"weights {self.file}: a file in Brain-Score's storage {needs}")
        if self.url and not self.url.startswith(("https://", "http://")):
            raise ValueError(f"weights {self.file}: {self.url!r} is no address; expected https://...")

    @property
    def made(self) -> bool:
        """Whether the network's own code makes them."""
        return not self.file

    @property
    def draft(self) -> bool:
        """Whether they need a place that a server could load them from, and none is known."""
        return not (self.stored or self.url or self.made)

    @property
    def address(self) -> str:
        """Where they can be asked for by HTTP; empty where no place is known."""
        if self.stored:
            return f"https://{BUCKET}.s3.amazonaws.com/{STORED_BELOW}/{self.stored}?versionId={self.version_id}"
        return self.url

    @property
    def local(self) -> Path:
        """Where they lie on this machine once they were fetched (a stored file where Brain-Score's own loader puts it)."""
        if self.stored:
            home = Path(os.path.expanduser(os.getenv("BRAINSCORE_HOME", "~/.brain-score")))
            return home / STORED_BELOW / self.stored
        return io.cache_folder("weights") / f"{self.sha256[:16]}-{self.file}"

    @property
    def here(self) -> bool:
        """Whether they are on this machine, or made here."""
        return self.made or self.local.is_file()

    def fetch(self) -> Path:
        """The file, from this machine or fetched from its place, with its SHA-256 checked.

        An OSError where it is not here and its place cannot be reached or is not named, a ValueError where it is another file.
        """
        here = self.local
        if not self.here:
            if self.draft:
                lacks = f"a draft that names no place to load them from, and they are not at {here}"
                todo = f"upload them and {AGAIN} with their place (docs/brain-score.md)"
                raise OSError(f"weights {self.file}: this plugin is {lacks}; {todo}")
            self._download(here)
        found = io.sha256(here)
        if found != self.sha256:
            todo = f"remove the file, so that it is fetched again, or where other weights are meant {AGAIN}"
            raise ValueError(f"weights {here}: their SHA-256 is {found}, the plugin's are {self.sha256}; {todo}")
        return here

    def _download(self, here: Path) -> None:
        here.parent.mkdir(parents=True, exist_ok=True)
        try:
            if self.url:
                torch.hub.download_url_to_file(self.url, str(here), hash_prefix=self.sha256, progress=False)
            else:
                place = {"bucket": BUCKET, "folder_name": STORED_BELOW, "relative_path": self.stored}
                load_weight_file(**place, version_id=self.version_id, sha1=self.sha1)
        except Exception as error:  # Brain-Score raises bare Exceptions where it cannot download
            where = self.url or f"{STORED_BELOW}/{self.stored} (version {self.version_id}) in Brain-Score's storage"
            told = f"cannot be loaded, or is another file ({' '.join(str(error).split())})"
            todo = f"connect to the network, or place the file at {here}"
            raise OSError(f"weights {self.file}: {where} {told}; {todo}") from error


def made_hash(module: nn.Module) -> str:
    """SHA-256 over a network's parameters and buffers with their names."""
    whole = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return whole.hexdigest()


@dataclass(frozen=True)
class Identity:
    """All that a plugin's features depend on, as it stands in the plugin. ``identifier`` follows from it.

    ``model`` is what ``load_network`` takes; for the user's own code the file's name and the function, and ``code`` is the code's
    hash. ``iterations`` and ``feedback`` are FeedbackSettings; ``feedback`` is empty without iterations or of own code.
    ``preprocessing`` holds the fields of ``images.Preprocessing``. ``regions`` maps V1, V2, V4 and IT to layers at iterations.
    Without ``readout`` (``logits``) the network takes no behavioural task, and V1 and V2 may be missing. ``time_bins`` holds
    (start, end) in ms of each iteration. ``features`` is the version of the features that the software makes.
    """

    name: str
    model: str
    iterations: int
    feedback: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    regions: Mapping[str, str]
    readout: str
    time_bins: tuple[tuple[int, int], ...]
    weights: Weights
    code: str = ""
    features: int = FEATURES_VERSION
    version: str = field(default_factory=lambda: metadata.version("cnnf-brain"))

    def __post_init__(self) -> None:
        check_name(self.name)
        FeedbackSettings.of({**self.feedback, "iterations": self.iterations})  # checks them
        missing = [region for region in self.left_out if self.readout or region in NEEDED]
        if missing:
            raise ValueError(
                f"no layer is named for {', '.join(missing)}; Brain-Score's neural benchmarks ask for {', '.join(REGIONS)}: "
                f"name a layer for each in regions, for instance V4=features.16 ({', '.join(NEEDED)} are enough with neural_only)"
            )
        check_bins(self.time_bins, self.iterations)
        if self.readout not in (LOGITS, ""):
            raise ValueError(f"readout {self.readout!r}: expected {LOGITS!r}, or nothing")

    @property
    def identifier(self) -> str:
        """``NAME_WEIGHTS_Nit_REST``: the weights' SHA-256 (8 digits), the iterations, a hash of all else but the place.

        Brain-Score's caches and its leaderboard know a model by this alone.
        """
        rest = {key: value for key, value in asdict(self).items() if key not in ("name", "weights", "version")}
        return f"{self.name}_{self.weights.sha256[:8]}_{self.iterations}it_{io.short_hash(rest)}"

    @property
    def title(self) -> str:
        """What the model is, in a line."""
        kind = f"CNN-F, feedback iterations: {self.iterations}" if self.iterations else "CNN, the control without feedback"
        return f"{self.model} as {kind}"

    @property
    def left_out(self) -> list[str]:
        """Regions without a layer: no benchmark scores the plugin there."""
        return [region for region in REGIONS if region not in self.regions]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with the identifier; ``from_dict`` reads them again."""
        return {"identifier": self.identifier, **asdict(self)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Identity:
        """The identity that stands in a plugin; a ValueError where it is not whole or has the identifier of another."""
        known = {f.name for f in fields(cls)}
        wrong = sorted((known | {"identifier"}) ^ set(content))
        if wrong:
            raise ValueError(f"the plugin's identity lacks, or has beside what it should: {', '.join(wrong)}; {AGAIN}")
        bins = tuple((int(start), int(end)) for start, end in content["time_bins"])
        given = {key: value for key, value in content.items() if key in known}
        identity = cls(**{**given, "weights": Weights(**content["weights"]), "time_bins": bins})
        identity.check_identifier(content["identifier"])
        return identity

    def check_identifier(self, identifier: str) -> None:
        """A ValueError for an ``identifier`` of other settings: Brain-Score would mix the activations of both in its caches."""
        if identifier != self.identifier:
            raise ValueError(
                f"identifier {identifier!r} stands for other weights, settings or software than the plugin has, whose "
                f"identifier is {self.identifier!r}: Brain-Score would mix its activations with those cached of the other "
                f"version; {AGAIN}"
            )

    def check_features(self) -> None:
        """A ValueError where the software beside it makes features of another version."""
        if self.features != FEATURES_VERSION:
            raise ValueError(
                f"{self.identifier} was written for features of version {self.features}, and the software in it makes version "
                f"{FEATURES_VERSION}, which it would write into the cache of the other; {AGAIN}"
            )

    def load(self, weights: Path | None, code: Path | None = None, device: str = "cpu") -> Network:
        """The network, with the weights in a file, and the user's own code from the folder ``code``.

        A ValueError where the user's own code makes other weights than the plugin's.
        """
        spec = str((code or Path()) / self.model) if self.code else self.model
        path = None if weights is None else str(weights)
        network = networks.load_network(spec, path, iterations=self.iterations, feedback=self.feedback, device=device)
        if self.weights.made and made_hash(network.module) != self.weights.sha256:
            raise ValueError(
                f"{self.model} makes other weights than the plugin's, so its features are others; save its weights in a file "
                f"and {AGAIN} with that"
            )
        shown = dict(self.preprocessing)
        preprocessing = Preprocessing(shown["size"], tuple(shown["mean"]), tuple(shown["std"]), shown["resize"])
        return replace(network, preprocessing=preprocessing)


class IterationCommitment(ModelCommitment):  # type: ignore[misc]
    """Brain-Score's ModelCommitment of a Network: regions by iteration, iterations as time, behaviour from the logits.

    The model's identifier is that of ``wrapper``. ``regions``: region -> layer (``features.23@2``), a ValueError for a layer or
    iteration that is not there. ``bins``: time bins in ms of iterations 0, 1, ... (see ``IterationsInTime``). ``readout``:
    ``logits``, or empty for a network without ImageNet's 1000 classes, which then refuses behavioural tasks.
    """

    def __init__(
        self, wrapper: IterationWrapper, regions: Mapping[str, str], bins: Sequence[tuple[int, int]], readout: str
    ) -> None:
        layers = list(dict.fromkeys(regions.values()))
        for name in layers:
            wrapper.layer_at(name)
        # The map is given. Otherwise Brain-Score would look for its own, and choose layers by benchmarks that it downloads.
        given = {"layers": layers, "behavioral_readout_layer": readout or layers[-1], "region_layer_map": dict(regions)}
        super().__init__(wrapper.identifier, wrapper, **given)
        self.layer_model: Any = IterationsInTime(self.layer_model._layer_model, bins)
        self._readout = readout

    def start_task(self, task: Any, *args: Any, **kwargs: Any) -> None:
        """Start a behavioural task; a NotImplementedError where the network has no ImageNet classes to read it from."""
        if not self._readout and task != BrainModel.Task.passive:
            raise NotImplementedError(
                f"{self.identifier} has no {CLASSES} ImageNet logits, so it takes neural benchmarks alone, no task {task!r}"
            )
        super().start_task(task, *args, **kwargs)

    def start_recording(self, recording_target: str, time_bins: Any) -> None:
        """Record from a region; ends a task, which ModelCommitment itself would go on answering with.

        A NotImplementedError for a region that the plugin leaves out.
        """
        known = self.layer_model.region_layer_map
        if recording_target not in known:
            raise NotImplementedError(
                f"{self.identifier} has no layer for {recording_target}; it can be recorded from in {', '.join(known)}"
            )
        self.do_behavior = False
        super().start_recording(recording_target, time_bins=time_bins)


def load_plugin(identity: Mapping[str, Any], identifier: str, code: Path | None = None) -> IterationCommitment:
    """The model of a plugin, on a GPU where there is one.

    ``identity``: ``Identity.as_dict()``, as it stands in the plugin. ``identifier``: the one that the plugin registers. ``code``:
    the folder of the user's own code in the plugin. A ValueError or OSError for another identifier, software or SHA-256 than the
    identity's, a layer that is not there, and weights that cannot be had.
    """
    known = Identity.from_dict(identity)
    known.check_identifier(identifier)
    known.check_features()
    path = None if known.weights.made else known.weights.fetch()
    return commit(known, known.load(path, code, str(images.pick_device())))


def commit(identity: Identity, network: Network) -> IterationCommitment:
    """The model of an identity whose network is loaded; a ValueError where it is to read 1000 logits that are not there."""
    found = n_classes(network) if identity.readout else CLASSES
    if found != CLASSES:
        raise ValueError(
            f"{network.name} ({network.weights}) has {found or 'no'} classes: Brain-Score's behavioural benchmarks read the "
            f"{CLASSES} logits of ImageNet. Give weights that were trained on ImageNet, or neural_only for a plugin that takes "
            "the neural benchmarks alone"
        )
    wrapper = IterationWrapper(network, identity.identifier)
    return IterationCommitment(wrapper, identity.regions, identity.time_bins, identity.readout)


def n_classes(network: Network) -> int:
    """Outputs for an image; 0 without a classifier."""
    module = network.module
    if network.headless:
        return 0
    if isinstance(module, CNNF):
        last = module.get_submodule(module.layer_names[-1])
        return last.out_features if isinstance(last, nn.Linear) else 0
    size = network.preprocessing.size
    x = torch.zeros(1, len(network.preprocessing.mean), size, size, device=network.device)
    with torch.inference_mode(), running(network.name, x.shape):
        output = module(x)
    return output.shape[1] if isinstance(output, Tensor) and output.dim() == 2 else 0
