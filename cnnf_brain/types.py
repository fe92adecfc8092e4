"""The records that flow from module to module; checked when they are made.

images -> Activations -> Gram K -> Predictions -> Scores -> Difference -> report
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnnf_brain.checks import labels_of
from cnnf_brain.io import read_bytes

Array = NDArray[Any]
T = TypeVar("T")
FEATURES_VERSION = 1  # of the features that this software makes: caches and submitted plugins know them by it
_LAYER_AT = re.compile(r"(?P<layer>[^@:\s]+)(@(?P<iterations>\d+(\+\d+)*))?(?P<feedback>:feedback)?")


def option(default: Any, about: str, **more: Any) -> Any:
    """A dataclass field from which a flag of the command line follows (``cli.add_flags``).

    ``about``: its help. ``more``: ``flag`` (its name, where it is another), ``choices``, ``metavar``, ``above``,
    ``least``, ``most``, ``below``.
    """
    return field(default=default, metadata={"help": about, **more})


@dataclass(frozen=True, order=True)
class LayerAt:
    """A layer's output at one iteration; prints and parses as ``features.23@2`` (``:feedback`` for its feedback map).

    Iteration 0 is the first feedforward pass. ``features.23@0+2`` is a joint feature space: the features of the iterations
    ``joined`` and those of ``iteration``, the last one, side by side.

    Examples
    --------
    >>> LayerAt.parse("features.23@2")
    LayerAt(layer='features.23', iteration=2, feedback=False, joined=())
    >>> str(LayerAt("features.23"))
    'features.23@0'
    >>> [str(part) for part in LayerAt.parse("features.23@0+2").parts]
    ['features.23@0', 'features.23@2']
    """

    layer: str
    iteration: int = 0
    feedback: bool = False
    joined: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        iterations = [*self.joined, self.iteration]
        if iterations != sorted(set(iterations)):
            raise ValueError(f"layer {self}: its iterations must be different ones, in ascending order (features.23@0+2)")

    @classmethod
    def parse(cls, text: str) -> LayerAt:
        """``features.23`` (iteration 0), ``features.23@2``, ``...@0+2`` or ``...@2:feedback``; ValueError for anything else."""
        match = _LAYER_AT.fullmatch(text)
        if match is None:
            raise ValueError(
                f"layer {text!r} is not of the form NAME, NAME@ITERATION or NAME@ITERATION:feedback "
                "(for instance features.23@2, or features.23@0+2 for two iterations side by side)"
            )
        *joined, last = map(int, (match["iterations"] or "0").split("+"))
        return cls(match["layer"], last, match["feedback"] is not None, tuple(joined))

    @property
    def parts(self) -> tuple[LayerAt, ...]:
        """The single layers of a joint feature space; of a single one itself."""
        return tuple(LayerAt(self.layer, t, self.feedback) for t in (*self.joined, self.iteration))

    def __str__(self) -> str:
        return f"{self.layer}@{'+'.join(map(str, (*self.joined, self.iteration)))}" + (":feedback" if self.feedback else "")


class Lazy(Mapping[LayerAt, T]):
    """Values of layers, each made when it is asked for, so that one is in memory at a time."""

    def __init__(self, layers: Iterable[LayerAt], make: Callable[[LayerAt], T]) -> None:
        self.layers, self.make = tuple(layers), make

    def __getitem__(self, at: LayerAt) -> T:
        if at not in self.layers:
            raise KeyError(at)
        return self.make(at)

    def __iter__(self) -> Iterator[LayerAt]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


class ChangedImageError(ValueError):
    """An image's bytes are no longer those that were hashed."""


@dataclass(frozen=True)
class Images:
    """A list of encoded images, read one at a time; ``Images.of`` makes it.

    ``ids`` are unique and in order. ``read(i)`` gives the encoded bytes (JPEG, PNG, ...) of image i. ``where`` names the
    folder, archive or generator in messages. After a call of ``hashes`` or ``digest``, an image that
    has changed when it is read again is refused; features that are cached need no reading, so make Images anew for new files.
    """

    ids: tuple[str, ...]
    read: Callable[[int], bytes] = field(repr=False)
    where: str
    _hashes: list[str] = field(default_factory=list, init=False, repr=False, compare=False)
    _checked: list[bool] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        seen: set[str] = set()
        twice = sorted({i for i in self.ids if i in seen or seen.add(i)})  # type: ignore[func-returns-value]
        if twice:
            raise ValueError(f"{self.where}: image ids occur more than once: {', '.join(twice[:5])}; name the images by ids")

    @classmethod
    def of(cls, images: Iterable[Any], ids: Sequence[Any] | Array | None = None, *, where: str = "images") -> Images:
        """Images from files, from PIL images or from arrays of pixels.

        Parameters
        ----------
        images : sequence, or (n, height, width, 3) uint8 array
            Each image is a path, a PIL image or a (height, width, 3) uint8 array. Files are read when they are needed.
            Pixels are kept in memory as PNG, without loss.
        ids : sequence of str, optional
            A unique id for each image. Default: the file's name without suffix, or ``image0``, ``image1``, ...
        where : str
            Names these images in messages.

        Raises
        ------
        FileNotFoundError
            Files are missing.
        ValueError
            An image of another form (it is named), ids that are too few, too many or not unique, or a single path.

        Examples
        --------
        >>> pixels = np.zeros((2, 8, 6, 3), dtype=np.uint8)
        >>> Images.of(pixels).ids
        ('image0', 'image1')
        >>> Images.of(pixels, ["cat", "dog"]).decode(1).size
        (6, 8)
        """
        if isinstance(images, (str, bytes, os.PathLike, Image.Image)):
            what = "PIL image" if isinstance(images, Image.Image) else f"path {str(images)!r}"
            raise ValueError(
                f"{where}: the image files are given as the single {what}; expected a list of paths, one for each image in the "
                "order of the rows (for a folder list its files in that order)"
            )
        given = [Path(image) if isinstance(image, (str, os.PathLike)) else image for image in images]
        paths = [image for image in given if isinstance(image, Path)]
        absent = [str(path) for path in paths if not path.is_file()]
        if absent:
            raise FileNotFoundError(
                f"{where}: {len(absent)} of {len(paths)} image files are missing: {', '.join(absent[:3])}"
            )
        names = [image.stem if isinstance(image, Path) else f"image{number}" for number, image in enumerate(given)]
        names = names if ids is None else labels_of("image_ids", ids, len(given), where)
        readers = [_reader(image, f"{where}: image {name!r}") for name, image in zip(names, given, strict=True)]
        return cls(tuple(names), lambda index: readers[index](), where)

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
        except (ChangedImageError, MemoryError):
            raise
        except Exception as error:  # on damaged bytes, Pillow's decoders raise whatever they run into
            raise ValueError(
                f"{self.where}: image {self.ids[index]!r} cannot be decoded ({error}); "
                "replace the file or leave the image out"
            ) from error

    def _check_hash(self, index: int, encoded: bytes) -> None:
        if self._hashes and hashlib.sha256(encoded).hexdigest() != self._hashes[index]:
            raise ChangedImageError(
                f"{self.where}: image {self.ids[index]!r} has changed since this run first read it; "
                "leave the images alone while a run reads them, and start it again"
            )

    def check(self) -> None:
        """Decode every image, the first time, so that a damaged one is found before long work starts."""
        for index in range(0 if self._checked else len(self)):
            self.decode(index)
        self._checked.append(True)

    def hashes(self) -> tuple[str, ...]:
        """Hexadecimal SHA-256 of each image's encoded bytes, in order; computed once and kept."""
        if not self._hashes:
            self._hashes.extend([hashlib.sha256(self.read(index)).hexdigest() for index in range(len(self))])
        return tuple(self._hashes)

    def digest(self) -> str:
        """SHA-256 over the encoded bytes of all images in order (ids and file names do not count)."""
        return hashlib.sha256(b"".join(map(bytes.fromhex, self.hashes()))).hexdigest()


def _reader(image: Any, name: str) -> Callable[[], bytes]:
    """A function that gives the encoded bytes of a file, a PIL image or an array; ValueError for anything else."""
    if isinstance(image, Path):
        return lambda: read_bytes(image)
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"{name} has mode {image.mode}; expected 8 bits per channel")
        image = np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray):
        raise ValueError(f"{name} is of type {type(image).__name__}; expected a path, a PIL image or a uint8 array")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            f"{name} is an array of shape {image.shape} and type {image.dtype}; expected (height, width, 3) and uint8, "
            "with values from 0 to 255"
        )
    encoded = _png(image)
    return lambda: encoded


def _png(pixels: Array) -> bytes:
    """An uncompressed PNG: compressors differ from one build of zlib to the next, stored bytes do not."""
    rows, columns, _ = pixels.shape
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)  # filter 0 before each row
    blocks = [raw[start : start + 0xFFFF] for start in range(0, len(raw), 0xFFFF)]
    last = [0] * (len(blocks) - 1) + [1]
    body = b"\x78\x01"
    for block, final in zip(blocks, last, strict=True):
        body += struct.pack("<BHH", final, len(block), 0xFFFF - len(block)) + block
    body += struct.pack(">I", zlib.adler32(raw))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)  # 8 bits, RGB
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@dataclass(frozen=True)
class Gram:
    """K = X Xᵀ of one layer at one iteration over all images; any constant may have been taken off each feature
    (PLS centres on the training rows of each fold, so that cancels). K of a joint feature space is the sum of its parts' K."""

    at: LayerAt
    values: Array  # K (n_images, n_images) float64; with fewer features than half of the images X (n_images, n_features)
    n_features: int
    device: str = "cpu"  # where its network ran


@dataclass(frozen=True)
class Split:
    """Row numbers of one cross-validation split."""

    train: Array
    test: Array


@dataclass(frozen=True)
class Predictions:
    """Held-out predictions of every split, for every number of components. Ridge has a single entry, at its chosen penalties.

    ``values[s]`` has shape (n_components, n_test of split s, n_sites); entry a uses a + 1 components.
    ``ranks[s]`` is the number of components that the training rows of split s could carry (further ones add nothing).
    """

    splits: tuple[Split, ...]
    values: tuple[Array, ...]
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Scores:
    """Site-wise predictivity of one layer.

    Attributes
    ----------
    r : (n_splits, n_sites) array
        Pearson's r on the held-out images, from -1 to 1; NaN where prediction or response is constant.
    pooled : (n_sites,) array or None
        r over the held-out predictions of all splits together, where folds are small.
    ceiling : (n_sites,) array or None
        Split-half reliability, Spearman-Brown corrected, at most 1; None without repeats.

    Examples
    --------
    >>> Scores(np.array([[0.5, np.nan], [0.7, 0.1]]), None, None).undefined_folds.tolist()
    [0, 1]
    """

    r: Array
    pooled: Array | None
    ceiling: Array | None

    def of(self, sites: Array) -> Scores:
        """Those of some sites: their numbers, or (n_sites,) true where they are meant."""
        pooled, ceiling = (None if one is None else one[sites] for one in (self.pooled, self.ceiling))
        return Scores(self.r[:, sites], pooled, ceiling)

    @property
    def undefined_folds(self) -> Array:
        """(n_sites,) number of splits in which a site has no r; they are left out of its mean."""
        count: Array = np.isnan(self.r).sum(axis=0)
        return count


@dataclass(frozen=True)
class Similarity:
    """The agreement of a layer's dissimilarities of images with those of recordings: one number for all sites, at most 1.

    ``value`` is NaN where the layer is constant; ``low``, ``high``: its 95% interval for new images (bootstrap). ``ceiling``: lower
    and upper bound of what a perfect model could reach with single subjects, or with responses that hold trial noise (both bounds
    the same); None without several subjects or repeats.
    """

    value: float
    low: float
    high: float
    measure: str
    distance: str
    ceiling: tuple[float, float] | None = None


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
    """The difference of two sets of Scores over the same sites and splits, or of two Similarities: estimate, intervals and tests.

    Attributes
    ----------
    difference : float
        The median over sites of the per-site difference in r, or the difference in similarity, model minus baseline.
    low, high : float
        Its 95% interval for new images, of the permutation test or the bootstrap over images: the one to read.
    tests : tuple of TestResult
        Those that are valid for new images come first.
    sites_low, sites_high : float
        The bootstrap interval for new sites with these very images, NaN for a single site. It is no interval for new images.

    Examples
    --------
    >>> test = TestResult("permutation over images", statistic=0.03, p=0.002, n=320)
    >>> found = Difference(0.03, 0.01, 0.05, (test,))
    >>> found.low > 0, found.tests[0].p
    (True, 0.002)
    """

    difference: float
    low: float
    high: float
    tests: tuple[TestResult, ...]
    sites_low: float = math.nan
    sites_high: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The predictivity of one network's layer for the sites of one source (or of several, pooled) of a region, by one ``metric``.

    ``scores``: r of each site, or one Similarity (RSA, CKA). ``role``: ``baseline``, ``model``, or ``control`` (the model's own
    first pass beside its feedback). ``weights`` and ``feedback`` (trained or not) are in words. ``layer`` prints the LayerAt, or
    "nested" where it was chosen on training folds (``chosen``: once for each split). ``comparison`` is the difference to the
    baseline's layer ``against``; None for the baseline itself, without a baseline, and where a score is undefined (constant
    predictions) for one of the two. ``pooled``: other rows show these sites too. ``subjects``: each site's animal, else "".
    ``effective_dimension``: the participation ratio of K as it was scored, the mean where K differs; NaN for constant features.
    """

    region: str
    source: str
    simulated: bool
    role: str
    network: str
    weights: str
    feedback: str
    layer: str
    scores: Scores | Similarity
    site_ids: tuple[str, ...]
    n_images: int
    metric: str = "pls"
    excluded: tuple[str, ...] = ()
    comparison: Difference | None = None
    chosen: tuple[str, ...] = ()
    against: str = ""
    pooled: bool = False
    subjects: tuple[str, ...] = ()
    effective_dimension: float = math.nan
