"""The records that flow from module to module; checked when they are made.

images -> Activations -> Gram K -> Predictions -> Scores -> Difference -> report
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from PIL import Image

FEATURES_VERSION = 1  # of the features that this software makes: caches and submitted plugins know them by it
_LAYER_AT = re.compile(r"(?P<layer>[^@:\s]+)(@(?P<iteration>\d+))?(?P<feedback>:feedback)?")


def option(default: Any, about: str, **more: Any) -> Any:
    """A dataclass field from which a flag of the command line follows (``cli.add_flags``).

    ``about``: its help. ``more``: ``flag`` (its name, where it is another), ``choices``, ``metavar``, ``above``,
    ``least``, ``most``.
    """
    return field(default=default, metadata={"help": about, **more})


@dataclass(frozen=True, order=True)
class LayerAt:
    """A layer's output at one iteration; prints and parses as ``features.23@2`` (``:feedback`` for its feedback map).

    Iteration 0 is the first feedforward pass.
    """

    layer: str
    iteration: int = 0
    feedback: bool = False

    @classmethod
    def parse(cls, text: str) -> LayerAt:
        """``features.23`` (iteration 0), ``features.23@2`` or ``features.23@2:feedback``."""
        match = _LAYER_AT.fullmatch(text)
        if match is None:
            raise ValueError(
                f"layer {text!r} is not of the form NAME, NAME@ITERATION or NAME@ITERATION:feedback "
                "(for instance features.23@2)"
            )
        return cls(match["layer"], int(match["iteration"] or 0), match["feedback"] is not None)

    def __str__(self) -> str:
        return f"{self.layer}@{self.iteration}" + (":feedback" if self.feedback else "")


class ChangedImageError(ValueError):
    """An image's bytes are no longer those that were hashed."""


@dataclass(frozen=True)
class Images:
    """A list of encoded images, read one at a time.

    ``ids`` are unique stimulus ids in order; ``read(i)`` gives the encoded bytes (JPEG, PNG, ...) of image i;
    ``where`` names the folder, archive or generator in messages. Once ``hashes`` or ``digest`` was called, an image
    whose bytes have changed since then is refused.
    """

    ids: tuple[str, ...]
    read: Callable[[int], bytes] = field(repr=False)
    where: str
    _hashes: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        seen: set[str] = set()
        twice = sorted({i for i in self.ids if i in seen or seen.add(i)})  # type: ignore[func-returns-value]
        if twice:
            raise ValueError(f"{self.where}: stimulus ids occur more than once: {', '.join(twice[:5])}")

    def __len__(self) -> int:
        return len(self.ids)

    def decode(self, index: int) -> Image.Image:
        """Image ``index`` in RGB; a ValueError that names the image where it cannot be decoded or has changed."""
        try:
            encoded = self.read(index)
            self._check_hash(index, encoded)
            with Image.open(io.BytesIO(encoded)) as image:
                if image.mode.startswith(("I", "F")):  # Pillow would clip them at 255, which leaves a white image
                    raise ValueError(f"mode {image.mode}; save it with 8 bits per channel")
                return image.convert("RGB")
        except ChangedImageError:
            raise
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"{self.where}: image {self.ids[index]!r} cannot be decoded ({error}); "
                "replace the file or leave the stimulus out"
            ) from error

    def _check_hash(self, index: int, encoded: bytes) -> None:
        if self._hashes and hashlib.sha256(encoded).hexdigest() != self._hashes[index]:
            raise ChangedImageError(
                f"{self.where}: image {self.ids[index]!r} has changed since this run first read it; "
                "leave the images alone while a run reads them, and start it again"
            )

    def check(self) -> None:
        """Decode every image once, so that a damaged one is found before long work starts."""
        for index in range(len(self)):
            self.decode(index)

    def hashes(self) -> tuple[str, ...]:
        """Hexadecimal SHA-256 of each image's encoded bytes, in order; computed once and kept."""
        if not self._hashes:
            self._hashes.extend([hashlib.sha256(self.read(index)).hexdigest() for index in range(len(self))])
        return tuple(self._hashes)

    def digest(self) -> str:
        """SHA-256 over the encoded bytes of all images in order (ids and file names do not count)."""
        return hashlib.sha256(b"".join(map(bytes.fromhex, self.hashes()))).hexdigest()


@dataclass(frozen=True)
class Recordings:
    """Responses of the sites of one region to images.

    ``data`` is a Dataset with

    - ``responses`` (stimulus, neuroid), float64: the mean over repeats;
    - ``repeats`` (stimulus, neuroid, repetition), float64, optional: single presentations, NaN where there were fewer;
    - coordinates ``stimulus_id`` (stimulus) and ``neuroid_id`` (neuroid); optional ``object_name`` (stimulus), on
      which Brain-Score's splits are stratified, and ``subject`` (neuroid).

    Rows are in the order of ``images.ids``. ``source`` is what ``--recordings`` takes to get them again.
    ``excluded`` names the sites left out, with the reason (constant, NaN).
    """

    source: str
    region: str
    data: xr.Dataset
    images: Images
    simulated: bool = False
    excluded: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ids = tuple(str(i) for i in self.data["stimulus_id"].values)
        if ids != self.images.ids:
            raise ValueError(
                f"{self.source}: {len(ids)} stimuli in the responses and {len(self.images)} images do not have "
                "the same ids in the same order"
            )
        if self.data["responses"].dims != ("stimulus", "neuroid"):
            raise ValueError(
                f"{self.source}: responses have dims {self.data['responses'].dims}, expected (stimulus, neuroid)"
            )

    @property
    def responses(self) -> np.ndarray:
        """(n_stimuli, n_neuroids) float64."""
        return self.data["responses"].values

    @property
    def repeats(self) -> np.ndarray | None:
        """(n_stimuli, n_neuroids, n_repetitions) float64 with NaN for missing presentations, or None."""
        return self.data["repeats"].values if "repeats" in self.data else None

    @property
    def object_names(self) -> np.ndarray | None:
        """(n_stimuli,) category of each stimulus, or None."""
        return self.data["object_name"].values if "object_name" in self.data.coords else None


@dataclass(frozen=True)
class Gram:
    """K = X Xᵀ of one layer at one iteration over all stimuli; any constant may have been taken off each feature
    (PLS centres on the training rows of each fold, so that cancels)."""

    at: LayerAt
    values: np.ndarray  # (n_stimuli, n_stimuli) float64
    n_features: int


@dataclass(frozen=True)
class Split:
    """Row numbers of one cross-validation split."""

    train: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Predictions:
    """Held-out predictions of every split, for every number of components.

    ``values[s]`` has shape (n_components, n_test of split s, n_neuroids); entry a uses a + 1 components.
    ``ranks[s]`` is the number of components that the training rows of split s could carry (further ones add nothing).
    """

    splits: tuple[Split, ...]
    values: tuple[np.ndarray, ...]
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Scores:
    """Site-wise predictivity of one layer.

    ``r`` (n_splits, n_neuroids): Pearson's r on the held-out images; NaN where prediction or response is constant.
    ``pooled`` (n_neuroids): r over the held-out predictions of all splits together, where folds are small; else None.
    ``ceiling`` (n_neuroids): split-half reliability, Spearman-Brown corrected; None without repeats.
    """

    r: np.ndarray
    pooled: np.ndarray | None
    ceiling: np.ndarray | None

    @property
    def undefined_folds(self) -> np.ndarray:
        """(n_neuroids,) number of splits in which a site has no r; they are left out of its mean."""
        return np.isnan(self.r).sum(axis=0)


@dataclass(frozen=True)
class TestResult:
    """One statistical test of a difference (model minus baseline) in predictivity."""

    __test__ = False  # not a test class for pytest

    name: str
    statistic: float
    p: float
    n: int  # the number of units: folds, sites, images or resamples
    df: float | None = None
    interval: tuple[float, float] | None = None  # 95% interval of the difference, of the same method


@dataclass(frozen=True)
class Difference:
    """The difference of two sets of Scores over the same sites and splits: estimate, intervals and tests.

    ``difference`` is the median over sites of the per-site difference in r (model minus baseline). ``low`` and
    ``high`` are its 95% interval for new images, of the swap test: the one to read. ``sites_low`` and ``sites_high``
    are the bootstrap interval for new sites with these very images, NaN for a single site: it is no interval for new
    images. ``tests`` begin with those that are valid for new images.
    """

    difference: float
    low: float
    high: float
    tests: tuple[TestResult, ...]
    sites_low: float = math.nan
    sites_high: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The predictivity of one network's layer for the sites of one source (or of several, pooled) of a region.

    ``role``: ``baseline``, ``model``, or ``control`` (the model's own first pass beside its feedback). ``weights`` and ``feedback``
    (trained or not) are in words. ``layer`` prints the LayerAt, or "nested" where it was chosen on training folds (``chosen``: once
    for each split). ``comparison`` is the difference to the baseline's layer ``against``; None for the baseline itself, without a
    baseline, and where r is undefined (constant predictions) for one of the two.
    """

    region: str
    source: str
    simulated: bool
    role: str
    network: str
    weights: str
    feedback: str
    layer: str
    scores: Scores
    site_ids: tuple[str, ...]
    n_images: int
    excluded: tuple[str, ...] = ()
    comparison: Difference | None = None
    chosen: tuple[str, ...] = ()
    against: str = ""
