"""The record of recordings, and arrays -> Recordings: the one place where recordings are checked."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np

from cnnf_brain.checks import check_text, is_constant, labels_of
from cnnf_brain.io import read_array, read_text, reading
from cnnf_brain.types import Array, Images

List = Sequence[Any] | Array  # its entries are taken as text
IMAGE_LIST = "stimuli.csv"  # beside a dissimilarity matrix: the order of its images
REPEATS = ("n_images", "n_sites", "n_repeats")
# of responses, for each kind of labels
AXES = {"image_ids": 0, "site_ids": 1, "object_names": 0, "subjects": 1, "sessions": 1}


class Labels(TypedDict, total=False):
    """How the rows and the columns of responses are called; all of it is optional."""

    image_ids: List | None
    site_ids: List | None
    object_names: List | None
    subjects: List | None
    sessions: List | None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Recordings:
    """Responses of the sites of a region to images; ``Recordings.from_arrays`` makes and checks it.

    Attributes
    ----------
    source : str
        Names these recordings in messages and results; what ``load_recordings`` takes to get them again, if they came from there.
    region : str
    images : Images
        One image for each row, in the same order; ``images.ids`` are the ids of the rows.
    responses : (n_images, n_sites) float64 array
        The mean over repeats, in any unit. Without sites where there are ``rdms``.
    site_ids : tuple of str
    repeats : (n_images, n_sites, n_repeats) float64 array or None
        Single presentations, NaN where there were fewer.
    object_names : (n_images,) array of str or None
        The category of each image; Brain-Score's splits are stratified on it.
    subjects : (n_sites,) array of str or None
        The animal of each site.
    sessions : (n_sites,) array of str or None
        The session of each site, where one source holds several.
    true_ceilings : (n_sites,) float64 array or None
        The reliability of ``responses`` where it is known because the sites are simulated.
    simulated : bool
    excluded : tuple of str
        The sites that were left out, each with the reason (constant, or NaN or infinite responses).
    rdms : (n_subjects, n_images, n_images) float64 array or None
        Dissimilarities of images, where there are no responses of sites (``from_rdm``).

    Raises
    ------
    ValueError
        Shapes that do not belong together.
    """

    source: str
    region: str
    images: Images
    responses: Array
    site_ids: tuple[str, ...]
    repeats: Array | None = None
    object_names: Array | None = None
    subjects: Array | None = None
    sessions: Array | None = None
    true_ceilings: Array | None = None
    simulated: bool = False
    excluded: tuple[str, ...] = ()
    rdms: Array | None = None

    def __post_init__(self) -> None:
        check_text("the source of recordings,", self.source)
        check_text("the region of recordings,", self.region)
        sizes = len(self.images), len(self.site_ids)
        expected = dict.fromkeys(("responses", "repeats"), sizes) | {"object_names": sizes[:1]}
        for name, shape in (expected | dict.fromkeys(("subjects", "sessions", "true_ceilings"), sizes[1:])).items():
            found = np.shape(getattr(self, name))
            fits = found[: len(shape)] == shape and len(found) == len(shape) + (name == "repeats")
            if getattr(self, name) is not None and not fits:
                raise ValueError(
                    f"{self.source}: {name} have shape {found}, which does not fit {sizes[0]} images and {sizes[1]} sites"
                )

    @property
    def animals(self) -> tuple[str, ...]:
        """The subjects, each once, without "", which is one that is not known."""
        return () if self.subjects is None else tuple(dict.fromkeys(one for one in map(str, self.subjects) if one))

    def of(self, sites: Array) -> Recordings:
        """The recordings of some sites: their numbers, or (n_sites,) true where they are meant."""
        labels: dict[str, Any] = {name: getattr(self, name) for name in ("subjects", "sessions", "true_ceilings")}
        some: dict[str, Any] = {name: None if values is None else values[sites] for name, values in labels.items()}
        return replace(
            self,
            responses=self.responses[:, sites],
            site_ids=tuple(np.array(self.site_ids)[sites].tolist()),
            repeats=None if self.repeats is None else self.repeats[:, sites],
            **some,
        )

    def __repr__(self) -> str:
        n_images, n_sites = self.responses.shape
        parts = [f"{self.source}: {self.region}", f"{n_images} images"]
        parts += [f"{n_sites} sites" if self.rdms is None else f"dissimilarities, {len(self.rdms)} subjects"]
        parts += [] if self.repeats is None else [f"up to {self.repeats.shape[2]} repeats"]
        parts += ["simulated"] * self.simulated + [f"{len(self.excluded)} sites excluded"] * bool(self.excluded)
        return f"Recordings({', '.join(parts)})"

    @classmethod
    def from_arrays(
        cls,
        responses: Any,
        images: Images | Iterable[Any],
        *,
        region: str,
        repeats: Any = None,
        source: str = "arrays",
        **labels: Unpack[Labels],
    ) -> Recordings:
        """Check arrays and make Recordings of them; sites that cannot be scored are left out and named in ``excluded``.

        Parameters
        ----------
        responses : (n_images, n_sites) or (n_images, n_sites, n_repeats) array-like
            The mean response of each site to each image, in any unit. Or single presentations, NaN where there were fewer:
            then their mean is the response.
        images : sequence of paths or PIL images, (n_images, height, width, 3) uint8 array, or Images
            One image for each row. See ``Images.of``.
        region : str
            The region of all sites, for instance ``V4``.
        repeats : (n_images, n_sites, n_repeats) array-like, optional
            Single presentations beside their mean; ``responses`` must be that mean.
        source : str
            Names these recordings in messages and results.
        image_ids : sequence of str, optional
            Unique id of each row. ``Images`` are joined to the rows by these ids; all other images stand in the order of the
            rows. Default: the ids of ``Images``, file names without suffix, or ``image0``, ``image1``, ...
        site_ids : sequence of str, optional
            Unique id of each column. Default: ``site0``, ``site1``, ...
        object_names : sequence of str, optional
            Category of each row, on which Brain-Score's splits are stratified.
        subjects : sequence of str, optional
            Animal of each column.
        sessions : sequence of str, optional
            Session of each column.

        Raises
        ------
        ValueError
            Shapes or numbers that differ, ids that are not unique, values that are no numbers, images of another form, or
            no site that can be scored: all are constant or have NaN or infinite responses.
        FileNotFoundError
            Image files are missing.

        Examples
        --------
        >>> rng = np.random.default_rng(0)
        >>> pixels = rng.integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
        >>> recordings = Recordings.from_arrays(rng.random((50, 7, 4)), pixels, region="V4", subjects=["A"] * 7)
        >>> recordings
        Recordings(arrays: V4, 50 images, 7 sites, up to 4 repeats)
        >>> recordings.responses.shape, recordings.repeats.shape, recordings.images.ids[:2]
        ((50, 7), (50, 7, 4), ('image0', 'image1'))
        """
        if not isinstance(images, Images):
            images = Images.of(images, labels.get("image_ids"), where=source)
        values, single = checked_responses(responses, repeats, len(images), source)
        named = checked_labels({"image_ids": images.ids, **labels}, values.shape, source)
        good, excluded = _good_sites(values, named["site_ids"], source)
        subjects, sessions = (named[name][good] if name in named else None for name in ("subjects", "sessions"))
        return cls(
            source=source,
            region=region,
            images=_in_order(images, tuple(named["image_ids"].tolist()), source),
            responses=values[:, good],
            site_ids=tuple(named["site_ids"][good].tolist()),
            repeats=None if single is None else single[:, good],
            object_names=named.get("object_names"),
            excluded=excluded,
            subjects=subjects,
            sessions=sessions,
        )

    @classmethod
    def from_rdm(
        cls,
        rdms: Any,
        images: Images | Iterable[Any],
        *,
        region: str,
        source: str = "dissimilarities",
        image_ids: List | None = None,
    ) -> Recordings:
        """Recordings that are known by their dissimilarity matrix alone; RSA and CKA take them, regressions do not.

        Parameters
        ----------
        rdms : (n_images, n_images) or (n_subjects, n_images, n_images) array-like
            Symmetric, with a diagonal of 0, in any unit. Of several subjects the mean agreement is scored, beside the ceiling that
            they leave. CKA takes them for squared Euclidean distances (1 - r of response patterns is such a one).
        images, region, source, image_ids
            As in ``from_arrays``.

        Raises
        ------
        ValueError
            Matrices that are no such dissimilarities, or not of these images.

        Examples
        --------
        >>> pixels = np.zeros((30, 8, 8, 3), dtype=np.uint8)
        >>> Recordings.from_rdm(1 - np.eye(30), pixels, region="IT", source="fMRI")
        Recordings(fMRI: IT, 30 images, dissimilarities, 1 subjects)
        """
        if not isinstance(images, Images):
            images = Images.of(images, image_ids, where=source)
        ids = images.ids if image_ids is None else tuple(labels_of("image_ids", image_ids, len(images), source))
        found = checked_rdms(rdms, len(images), source)
        empty = np.empty((len(images), 0))
        return cls(
            source=source, region=region, images=_in_order(images, ids, source), responses=empty, site_ids=(), rdms=found
        )

    @classmethod
    def read_rdm(cls, path: str | Path, region: str) -> Recordings:
        """Those of a file ``NAME.npy``, whose rows and columns are the images that ``stimuli.csv`` beside it lists.

        Its column ``image`` holds the paths of the images, relative to the file. A FileNotFoundError or ValueError: a file that is
        absent or of another form, and what ``from_rdm`` refuses.
        """
        path, table = Path(path), Path(path).with_name(IMAGE_LIST)
        lines = read_text(table).lstrip("\ufeff").splitlines()
        with reading(table, "a list of images", "its first line must name a column image"):
            files = [path.parent / row["image"] for row in csv.DictReader(lines)]
        return cls.from_rdm(read_array(path), files, region=region, source=str(path))


def checked_rdms(rdms: Any, n_images: int, source: str) -> Array:
    """(n_subjects, n_images, n_images) float64, see ``Recordings.from_rdm``."""
    shape = ("n_subjects",) * (np.ndim(rdms) == 3) + ("n_images", "n_images")
    found = _numbers("dissimilarities", rdms, shape, source).reshape(-1, *np.shape(rdms)[-2:])
    if found.shape[1:] != (n_images, n_images):
        raise ValueError(
            f"{source}: dissimilarities have shape {np.shape(rdms)}, expected ({n_images}, {n_images}) for each subject"
        )
    for one in found:
        if not np.isfinite(one).all() or one.diagonal().any() or not np.allclose(one, one.T):
            raise ValueError(f"{source}: dissimilarities must be finite and symmetric, with a diagonal of 0")
    return found


def checked_responses(responses: Any, repeats: Any, n_images: int, source: str) -> tuple[Array, Array | None]:
    """Means and single presentations as float64 arrays, see ``Recordings.from_arrays``; a ValueError where they do not fit."""
    single = None
    if repeats is None and np.ndim(responses) == 3:
        single = _numbers("responses", responses, REPEATS, source)
        values = _mean_over_repeats(single)
    else:
        values = _numbers("responses", responses, REPEATS[:2], source)
    if len(values) != n_images:
        hint = "they seem to be transposed; " if values.shape[1] == n_images else ""
        raise ValueError(
            f"{source}: responses to {len(values)} images but {n_images} images; {hint}expected one row for each image"
        )
    if repeats is not None:
        single = _numbers("repeats", repeats, REPEATS, source)
        if single.shape[:2] != values.shape:
            raise ValueError(f"{source}: repeats have shape {single.shape}, expected {values.shape} + (n_repeats,)")
        mean = _mean_over_repeats(single)
        tolerance = 1e-5 * np.nanmax(np.abs(mean), initial=0.0, where=np.isfinite(mean))
        if not np.allclose(values, mean, rtol=1e-5, atol=tolerance, equal_nan=True):
            advice = "give the repeats as responses, or both in the same unit and order"
            raise ValueError(f"{source}: responses are not the mean over repeats; {advice}")
    return values, single


def checked_labels(labels: Any, shape: tuple[int, ...], source: str) -> dict[str, Array]:
    """The ``Labels`` that are given, as arrays of text, with ``site_ids`` in any case."""
    strange = sorted(labels.keys() - AXES.keys())
    if strange:
        raise TypeError(f"{source}: unexpected argument {strange[0]!r}; the labels are {', '.join(AXES)}")
    given = {name: values for name, values in labels.items() if values is not None}
    given.setdefault("site_ids", [f"site{number}" for number in range(shape[1])])
    return {name: np.array(labels_of(name, values, shape[AXES[name]], source), str) for name, values in given.items()}


def _numbers(what: str, given: Any, shape: tuple[str, ...], source: str) -> Array:
    """A float64 array with as many dimensions as ``shape`` names, none of them empty."""
    array = np.asarray(given)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{source}: {what} are not numbers (dtype {array.dtype}); expected real numbers")
    if array.ndim != len(shape) or 0 in array.shape:
        raise ValueError(f"{source}: {what} have shape {array.shape}, expected ({', '.join(shape)}), none of them 0")
    return array.astype(np.float64)


def _mean_over_repeats(repeats: Array) -> Array:
    """Mean over the presentations there were; NaN where there were none."""
    count = np.sum(~np.isnan(repeats), axis=2)
    total = np.nansum(repeats, axis=2)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _good_sites(responses: Array, names: Array, source: str) -> tuple[Array, tuple[str, ...]]:
    """Numbers of the sites that can be scored, and the others with the reason."""
    bad = np.sum(~np.isfinite(responses), axis=0)
    constant = is_constant(responses)
    excluded = [
        f"{name} ({f'NaN or infinite for {n} of {len(responses)} images' if n else 'constant'})"
        for name, n, same in zip(names, bad, constant, strict=True)
        if n or same
    ]
    good = np.flatnonzero((bad == 0) & ~constant)
    if not len(good):
        raise ValueError(
            f"{source}: no site is left, all {len(names)} are constant or have NaN responses: "
            f"{', '.join(excluded[:3])}; where an image was not shown to a site, leave out the image or the site"
        )
    return good, tuple(excluded)


def _in_order(images: Images, ids: tuple[str, ...], source: str) -> Images:
    """The same images in the order of ``ids``."""
    if ids == images.ids:
        return images
    place = {name: index for index, name in enumerate(images.ids)}
    absent = [name for name in ids if name not in place]
    if absent:
        raise ValueError(f"{source}: {len(absent)} image ids have no image in {images.where}: {', '.join(absent[:5])}")
    order = [place[name] for name in ids]
    return Images(ids, lambda index: images.read(order[index]), images.where)
