"""What a plugin is: weights, settings, regions, time bins, and the identifier that stands for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from typing import Any

from cnnf_brain.brainscore.time_bins import check_bins
from cnnf_brain.brainscore.wrapper import LOGITS, check_name
from cnnf_brain.files import short_hash
from cnnf_brain.networks import Network, load_network
from cnnf_brain.products import code_version

REGIONS = ("V1", "V2", "V4", "IT")
STORED_BELOW = "brainscore-vision/models"  # the folder in Brain-Score's storage that uploads come to


@dataclass(frozen=True)
class Weights:
    """A file of weights and the place that Brain-Score loads it from.

    ``stored`` and ``version_id`` are what the website's Large File Upload returned: the path below
    ``brainscore-vision/models`` in Brain-Score's storage, and the version; ``sha1`` goes to Brain-Score's loader, which only
    notes it. ``url`` is a hub's address instead. Neither makes the plugin a draft, which loads from this machine alone.
    """

    file: str
    sha256: str
    sha1: str = ""
    stored: str = ""
    version_id: str = ""
    url: str = ""

    def __post_init__(self) -> None:
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
    def draft(self) -> bool:
        """Whether no place is known that a server could load from."""
        return not (self.stored or self.url)


@dataclass(frozen=True)
class Identity:
    """All that a plugin's features depend on, as it stands in the plugin.

    ``regions`` maps V1, V2, V4 and IT to layers by iteration. ``readout`` is ``logits``, or empty where the network takes no
    behavioural task. ``time_bins`` holds (start, end) in ms of each iteration. ``sources`` is the hash of the software that
    makes features (``products.code_version``). ``identifier`` follows from everything but the place of the weights.
    """

    name: str
    model: str
    iterations: int
    feedback: Mapping[str, Any]
    image_size: int
    regions: Mapping[str, str]
    readout: str
    time_bins: tuple[tuple[int, int], ...]
    weights: Weights
    sources: str = field(default_factory=lambda: code_version().sources)
    version: str = field(default_factory=lambda: metadata.version("cnnf-brain"))

    def __post_init__(self) -> None:
        check_name(self.name)
        missing = [region for region in REGIONS if region not in self.regions]
        if missing:
            raise ValueError(
                f"no layer is named for {', '.join(missing)}; Brain-Score's neural benchmarks ask for {', '.join(REGIONS)}: "
                f"name one for each (--regions {' '.join(f'{region}=LAYER' for region in missing)})"
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

    def check_software(self) -> None:
        """A ValueError where the installed software makes features otherwise than that which wrote the plugin."""
        installed = code_version().sources
        if installed != self.sources:
            raise ValueError(
                f"{self.identifier} was written with cnnf-brain {self.version} (sources {self.sources[:8]}), installed is "
                f"{metadata.version('cnnf-brain')} (sources {installed[:8]}), which may make other features and would write "
                f"them into the cache of that version; install what requirements.txt names, or else {AGAIN}"
            )

    def load(self, path: str, device: str = "cpu") -> Network:
        """The network with the weights in the file ``path``."""
        return load_network(
            self.model,
            path,
            iterations=self.iterations,
            feedback=self.feedback,
            image_size=self.image_size,
            device=device,
        )


AGAIN = "write the plugin anew: python -m cnnf_brain.submit --weights FILE --output DIR"
