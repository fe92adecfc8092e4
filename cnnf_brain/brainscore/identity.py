"""What a plugin is: network, weights, settings, regions, time bins, and the identifier that stands for all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnnf_brain.brainscore.time_bins import check_bins
from cnnf_brain.brainscore.wrapper import LOGITS, check_name
from cnnf_brain.images import Preprocessing
from cnnf_brain.io import short_hash
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.networks import Network, load_network
from cnnf_brain.types import FEATURES_VERSION

REGIONS = ("V1", "V2", "V4", "IT")
NEEDED = ("V4", "IT")  # also of a plugin that takes neural benchmarks alone; it may leave out the others
BUCKET = "brainscore-storage"
STORED_BELOW = "brainscore-vision/models"  # the folder in Brain-Score's storage that uploads come to
AGAIN = "write the plugin anew with python -m cnnf_brain.submit"


@dataclass(frozen=True)
class Weights:
    """A file of weights and the place that Brain-Score loads it from.

    ``stored`` and ``version_id`` are what the website's Large File Upload returned: the path below
    ``brainscore-vision/models`` in Brain-Score's storage, and the version; ``sha1`` goes to Brain-Score's loader, which only
    notes it. ``url`` is a hub's address instead. With neither, the plugin is a draft, which loads from this machine alone.

    Without ``file`` the network's own code makes the weights, and ``sha256`` is that of the made ones (``made_hash``).
    """

    file: str
    sha256: str
    sha1: str = ""
    stored: str = ""
    version_id: str = ""
    url: str = ""

    def __post_init__(self) -> None:
        if self.made and (self.stored or self.url):
            raise ValueError(
                "a place is given, and the network's own code makes its weights; give a file of weights, or no place"
            )
        if self.stored and self.url:
            raise ValueError(f"weights {self.file}: a place in Brain-Score's storage and a url are given; give one of them")
        if bool(self.stored) != bool(self.version_id):
            raise ValueError(
                f"weights {self.file}: a file in Brain-Score's storage needs both its path ({self.stored or 'not given'}) and "
                f"the version id that the upload returned ({self.version_id or 'not given'})"
            )
        if self.url and not self.url.startswith(("https://", "http://")):
            raise ValueError(f"weights {self.file}: {self.url!r} is no address; expected https://...")

    @property
    def made(self) -> bool:
        """Whether the network's own code makes them."""
        return not self.file

    @property
    def draft(self) -> bool:
        """Whether no place is known that a server could load them from, and one is needed."""
        return not (self.stored or self.url or self.made)

    @property
    def address(self) -> str:
        """Where they can be asked for by HTTP; empty where no place is known."""
        if self.stored:
            return f"https://{BUCKET}.s3.amazonaws.com/{STORED_BELOW}/{self.stored}?versionId={self.version_id}"
        return self.url


def made_hash(module: nn.Module) -> str:
    """SHA-256 over a network's parameters and buffers with their names."""
    whole = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return whole.hexdigest()


@dataclass(frozen=True)
class Identity:
    """All that a plugin's features depend on, as it stands in the plugin.

    ``model`` is what ``load_network`` takes; of the user's own code the file's name and the function, and ``code`` is the
    code's hash. ``preprocessing`` holds the fields of ``images.Preprocessing``. ``regions`` maps V1, V2, V4 and IT to layers by
    iteration; without ``readout`` V1 and V2 may be missing. ``readout`` is ``logits``, or empty where the network takes no
    behavioural task. ``time_bins`` holds (start, end) in ms of each iteration. ``features`` is the version of the features that
    the software makes. ``identifier`` follows from all of it but the place of the weights and the software's own version.
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
        needed = REGIONS if self.readout else NEEDED
        missing = [region for region in needed if region not in self.regions]
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
        return f"{self.name}_{self.weights.sha256[:8]}_{self.iterations}it_{short_hash(rest)}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with the identifier; ``from_dict`` reads them again."""
        return {"identifier": self.identifier, **asdict(self)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Identity:
        """The identity that stands in a plugin; a ValueError where it is not whole, or its identifier is another one's."""
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
        """A ValueError where ``identifier`` would mix this plugin's activations with another version's in Brain-Score's caches."""
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

        A ValueError where the network's own code makes other weights than when the plugin was written.
        """
        path = None if weights is None else str(weights)
        if is_own_code(self.model):
            network = load_network(str((code or Path()) / self.model), path, device=device)
        else:
            feedback = self.feedback if self.iterations else {}
            network = load_network(self.model, path, iterations=self.iterations, feedback=feedback, device=device)
        if isinstance(network.module, CNNF):
            network.module.iterations = self.iterations
        if self.weights.made and made_hash(network.module) != self.weights.sha256:
            raise ValueError(
                f"{self.model} made other weights than when the plugin was written, so its features are others; save them in a "
                "file and write the plugin with that"
            )
        shown = dict(self.preprocessing)
        preprocessing = Preprocessing(shown["size"], tuple(shown["mean"]), tuple(shown["std"]), shown["resize"])
        return replace(network, preprocessing=preprocessing)


def is_own_code(model: str) -> bool:
    """Whether a network's name is that of a function in a file."""
    return ".py:" in model
