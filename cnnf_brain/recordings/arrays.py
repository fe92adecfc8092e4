"""Arrays -> Recordings: the one place where recordings are checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from cnnf_brain.checks import is_constant
from cnnf_brain.types import Images, Recordings

Labels = Sequence[Any] | np.ndarray  # one for each stimulus or neuroid, taken as text


def recordings_from_arrays(
    responses: Any,
    images: Images,
    *,
    region: str,
    stimulus_ids: Labels | None = None,
    site_ids: Labels | None = None,
    repeats: Any = None,
    object_names: Labels | None = None,
    subjects: Labels | None = None,
    source: str = "arrays",
    simulated: bool = False,
) -> Recordings:
    """Check arrays and make a `Recordings` of them; sites that cannot be scored are left out and named.

    Parameters
    ----------
    responses : array-like (n_stimuli, n_neuroids) or None
        Mean response of each site to each stimulus, in any unit; None where ``repeats`` is given.
    images : Images
        One image for each row.
    region : str
        The region of all these sites.
    stimulus_ids : sequence of str, optional
        Id of each row. Rows and images are joined by id; without it by position.
    site_ids : sequence of str, optional
        Id of each column; ``site0``, ``site1``, ... without it.
    repeats : array-like (n_stimuli, n_neuroids, n_repetitions), optional
        Single presentations, NaN where there were fewer. Their mean must be ``responses`` where both are given.
    object_names : sequence of str, optional
        Category of each row, on which Brain-Score's splits are stratified.
    subjects : sequence of str, optional
        Animal of each column.
    source : str
        What stands for these recordings in messages and results.
    simulated : bool
        Whether the sites are simulated.

    Returns
    -------
    Recordings
        Without the sites that are constant or have a NaN or infinite response; ``excluded`` names those.

    Raises
    ------
    ValueError
        Where shapes or numbers differ, ids occur twice, values are no numbers, or no site is left.
    """
    data = dataset(responses, repeats, len(images), source)
    n_stimuli, n_neuroids = data["responses"].shape
    ids = images.ids if stimulus_ids is None else labels_of("stimulus_ids", stimulus_ids, n_stimuli, source, unique=True)
    names = site_ids if site_ids is not None else [f"site{i}" for i in range(n_neuroids)]
    names = labels_of("site_ids", names, n_neuroids, source, unique=True)
    data = data.assign_coords(stimulus_id=("stimulus", np.array(ids, str)), neuroid_id=("neuroid", np.array(names, str)))
    if object_names is not None:
        labels = labels_of("object_names", object_names, n_stimuli, source)
        data = data.assign_coords(object_name=("stimulus", np.array(labels, str)))
    if subjects is not None:
        labels = labels_of("subjects", subjects, n_neuroids, source)
        data = data.assign_coords(subject=("neuroid", np.array(labels, str)))

    good, excluded = _good_sites(data["responses"].values, names, source)
    return Recordings(
        source=source,
        region=region,
        data=data.isel(neuroid=good),
        images=_in_order(images, tuple(ids), source),
        simulated=simulated,
        excluded=excluded,
    )


def images_from_files(files: Sequence[str | Path], *, ids: Labels | None = None, where: str) -> Images:
    """Images read from files when they are needed; ids are the file names without suffix unless given.

    Raises FileNotFoundError where files are missing, ValueError where numbers differ, ids occur twice, or ``files`` is a
    single path.
    """
    if isinstance(files, (str, bytes, Path)):
        raise ValueError(
            f"{where}: the image files are given as the single path {str(files)!r}; expected a list of paths, one for each "
            "image in the order of the rows (for a folder list its files in that order)"
        )
    paths = [Path(file) for file in files]
    absent = [str(path) for path in paths if not path.is_file()]
    if absent:
        raise FileNotFoundError(f"{where}: {len(absent)} of {len(paths)} image files are missing: {', '.join(absent[:3])}")
    names = [path.stem for path in paths] if ids is None else labels_of("stimulus_ids", ids, len(paths), where)
    return Images(tuple(names), lambda index: paths[index].read_bytes(), where)


def dataset(responses: Any, repeats: Any, n_images: int, source: str) -> xr.Dataset:
    """Responses and repeats as a Dataset without coordinates, after all checks of shape and number."""
    if responses is None and repeats is None:
        raise ValueError(f"{source}: neither responses nor repeats are given")
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    if repeats is not None:
        single = _numbers("repeats", repeats, ("n_stimuli", "n_neuroids", "n_repetitions"), source)
        variables["repeats"] = (("stimulus", "neuroid", "repetition"), single)
        mean = _mean_over_repeats(single)
        if responses is None:
            responses = mean
    values = _numbers("responses", responses, ("n_stimuli", "n_neuroids"), source)
    variables["responses"] = (("stimulus", "neuroid"), values)
    if len(values) != n_images:
        hint = "; they seem to be transposed" if values.shape[1] == n_images else ""
        raise ValueError(
            f"{source}: responses to {len(values)} stimuli but {n_images} images{hint}; "
            "responses have one row for each image"
        )
    if repeats is not None:
        _check_mean(values, mean, single.shape, source)
    return xr.Dataset(variables)


def _numbers(what: str, given: Any, shape: tuple[str, ...], source: str) -> np.ndarray:
    """A float64 array with as many dimensions as ``shape`` names, none of them empty."""
    array = np.asarray(given)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{source}: {what} are not numbers (dtype {array.dtype}); expected real numbers")
    if array.ndim != len(shape) or 0 in array.shape:
        raise ValueError(f"{source}: {what} have shape {array.shape}, expected ({', '.join(shape)}), none of them 0")
    return array.astype(np.float64)


def _mean_over_repeats(repeats: np.ndarray) -> np.ndarray:
    """Mean over the presentations there were; NaN where there were none."""
    count = np.sum(~np.isnan(repeats), axis=2)
    total = np.nansum(repeats, axis=2)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _check_mean(responses: np.ndarray, mean: np.ndarray, shape: tuple[int, ...], source: str) -> None:
    if mean.shape != responses.shape:
        raise ValueError(
            f"{source}: repeats have shape {shape}, expected {responses.shape} + (n_repetitions,) as the responses"
        )
    tolerance = 1e-5 * np.nanmax(np.abs(mean), initial=0.0, where=np.isfinite(mean))
    if not np.allclose(responses, mean, rtol=1e-5, atol=tolerance, equal_nan=True):
        raise ValueError(
            f"{source}: responses are not the mean over repeats; give repeats alone, or in the same unit and order"
        )


def labels_of(what: str, given: Labels, n: int, source: str, unique: bool = False) -> list[str]:
    """``n`` labels as text, once each where they are ids; a ValueError where numbers differ or a single text is given."""
    if isinstance(given, (str, bytes)):
        raise ValueError(f"{source}: {what} are given as the single text {given!r}; expected a list of {n}, one for each")
    labels = [str(label) for label in given]
    if len(labels) != n:
        raise ValueError(f"{source}: {len(labels)} {what} were given, expected {n}")
    if unique and len(set(labels)) < n:
        twice = sorted({label for label in labels if labels.count(label) > 1})
        raise ValueError(f"{source}: {what} occur more than once: {', '.join(twice[:5])}")
    return labels


def _good_sites(responses: np.ndarray, names: Sequence[str], source: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers of the sites that can be scored, and the others with the reason."""
    bad = np.sum(~np.isfinite(responses), axis=0)
    constant = is_constant(responses)
    excluded = [
        f"{name} ({f'NaN or infinite for {n} of {len(responses)} stimuli' if n else 'constant'})"
        for name, n, same in zip(names, bad, constant, strict=True)
        if n or same
    ]
    good = np.flatnonzero((bad == 0) & ~constant)
    if not len(good):
        raise ValueError(
            f"{source}: no site is left, all {len(names)} are constant or have NaN responses: "
            f"{', '.join(excluded[:3])}; where a stimulus was not shown to a site, leave out the stimulus or the site"
        )
    return good, tuple(excluded)


def _in_order(images: Images, ids: tuple[str, ...], source: str) -> Images:
    """The same images in the order of ``ids``."""
    if ids == images.ids:
        return images
    place = {name: index for index, name in enumerate(images.ids)}
    absent = [name for name in ids if name not in place]
    if absent:
        raise ValueError(f"{source}: {len(absent)} stimulus ids have no image in {images.where}: {', '.join(absent[:5])}")
    order = [place[name] for name in ids]
    return Images(ids, lambda index: images.read(order[index]), images.where)
