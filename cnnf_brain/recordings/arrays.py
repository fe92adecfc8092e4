"""Arrays -> Recordings: the one place where recordings are checked; and the NetCDF form they are kept in.

The NetCDF form (``docs/your-recordings.md`` describes it) has the dimensions and names of `types.Recordings`, plus
``region`` (neuroid), ``image_file`` (stimulus) and the attribute ``image_folder``, relative to the file itself.
"""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from cnnf_brain.checks import is_constant, unknown
from cnnf_brain.files import whole_file
from cnnf_brain.types import Images, Recordings

FORMAT = "cnnf-brain assembly 1"
Labels = Sequence[Any] | np.ndarray  # one for each stimulus or neuroid, taken as text


def recordings_from_arrays(
    responses: Any,
    images: Images,
    *,
    region: str,
    stimulus_ids: Labels | None = None,
    neuroid_ids: Labels | None = None,
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
    neuroid_ids : sequence of str, optional
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
    data = _dataset(responses, repeats, len(images), source)
    n_stimuli, n_neuroids = data["responses"].shape
    ids = images.ids if stimulus_ids is None else _labels("stimulus_ids", stimulus_ids, n_stimuli, source, unique=True)
    names = neuroid_ids if neuroid_ids is not None else [f"site{i}" for i in range(n_neuroids)]
    names = _labels("neuroid_ids", names, n_neuroids, source, unique=True)
    data = data.assign_coords(stimulus_id=("stimulus", np.array(ids, str)), neuroid_id=("neuroid", np.array(names, str)))
    if object_names is not None:
        labels = _labels("object_names", object_names, n_stimuli, source)
        data = data.assign_coords(object_name=("stimulus", np.array(labels, str)))
    if subjects is not None:
        labels = _labels("subjects", subjects, n_neuroids, source)
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

    Raises FileNotFoundError where files are missing, ValueError where numbers differ or ids occur twice.
    """
    paths = [Path(file) for file in files]
    absent = [str(path) for path in paths if not path.is_file()]
    if absent:
        raise FileNotFoundError(f"{where}: {len(absent)} of {len(paths)} image files are missing: {', '.join(absent[:3])}")
    names = [path.stem for path in paths] if ids is None else _labels("stimulus_ids", ids, len(paths), where)
    return Images(tuple(names), lambda index: paths[index].read_bytes(), where)


def write_assembly(
    path: str | Path,
    responses: Any,
    image_files: Sequence[str | Path],
    *,
    region: str | Labels,
    stimulus_ids: Labels | None = None,
    neuroid_ids: Labels | None = None,
    repeats: Any = None,
    object_names: Labels | None = None,
    subjects: Labels | None = None,
) -> Path:
    """Write recordings as one NetCDF file that `read_assembly` and ``--recordings`` take.

    The images stay where they are: the file holds their paths relative to itself, so move both together.

    Parameters
    ----------
    path : path
        The file to write; its name ends in ``.nc``. It appears only when it is whole.
    responses, repeats, neuroid_ids, object_names, subjects
        As in `recordings_from_arrays`.
    image_files : sequence of paths
        The image of each row of ``responses``. All are decoded once.
    region : str or sequence of str
        The region of all sites, or of each.
    stimulus_ids : sequence of str, optional
        Id of each row; the image's file name without suffix unless given.

    Raises
    ------
    ValueError
        As `recordings_from_arrays`, for each region, and where an image cannot be decoded.
    OSError
        Where an image is missing or the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".nc":
        raise ValueError(f"{path}: the name of an assembly ends in .nc")
    images = images_from_files(image_files, ids=stimulus_ids, where=str(path))
    data = _dataset(responses, repeats, len(images), str(path))
    n_neuroids = data.sizes["neuroid"]
    regions = _labels("region", [region] * n_neuroids if isinstance(region, str) else region, n_neuroids, str(path))
    names = [f"site{i}" for i in range(n_neuroids)] if neuroid_ids is None else neuroid_ids
    coords = {
        "stimulus_id": ("stimulus", images.ids),
        "neuroid_id": ("neuroid", names),
        "region": ("neuroid", regions),
        "object_name": ("stimulus", object_names),
        "subject": ("neuroid", subjects),
    }
    for name, (dim, labels) in coords.items():
        if labels is not None:
            texts = _labels(f"{name}s", labels, data.sizes[dim], str(path), unique=name.endswith("_id"))
            data = data.assign_coords({name: (dim, np.array(texts, object))})
    for one in dict.fromkeys(regions):
        _from_dataset(data, images, one, str(path))
    images.check()
    _write(path, data, [Path(file) for file in image_files])
    return path


def read_assembly(path: str | Path, region: str) -> Recordings:
    """The sites of one region in a NetCDF file written by `write_assembly`, or in the one such file of a folder.

    Raises
    ------
    FileNotFoundError
        Where the file, or an image that it names, does not exist.
    ValueError
        Where the file cannot be read or is of another form, or the region is not in it (those it has are listed).
    """
    path = _one_file(Path(path))
    data = _read(path)
    folder = Path(os.path.abspath(path.parent / str(data.attrs["image_folder"])))
    images = images_from_files(
        [folder / str(name) for name in data["image_file"].values],
        ids=[str(i) for i in data["stimulus_id"].values],
        where=str(path),
    )
    return _from_dataset(data, images, region, str(path))


def _dataset(responses: Any, repeats: Any, n_images: int, source: str) -> xr.Dataset:
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


def _labels(what: str, given: Labels, n: int, source: str, unique: bool = False) -> list[str]:
    """``n`` labels as text, once each where they are ids."""
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


def _from_dataset(data: xr.Dataset, images: Images, region: str, source: str) -> Recordings:
    """The sites of one region of a dataset in the NetCDF form."""
    regions = [str(name) for name in data["region"].values]
    if region not in regions:
        raise unknown("region", region, list(dict.fromkeys(regions)), where=source)
    sites = data.isel(neuroid=np.flatnonzero(np.array(regions) == region))

    def optional(name: str) -> Any:
        return sites[name].values if name in sites.variables else None

    return recordings_from_arrays(
        optional("responses"),
        images,
        region=region,
        stimulus_ids=sites["stimulus_id"].values,
        neuroid_ids=sites["neuroid_id"].values,
        repeats=optional("repeats"),
        object_names=optional("object_name"),
        subjects=optional("subject"),
        source=source,
    )


def _write(path: Path, data: xr.Dataset, files: list[Path]) -> None:
    """The NetCDF file, whole or not at all."""
    absolute = [os.path.abspath(file) for file in files]
    folder = os.path.commonpath([os.path.dirname(file) for file in absolute])
    relative = [Path(os.path.relpath(file, folder)).as_posix() for file in absolute]
    here = Path(os.path.relpath(folder, os.path.abspath(path.parent))).as_posix()
    data = data.assign_coords(image_file=("stimulus", np.array(relative, object)))
    data = data.assign_attrs(format=FORMAT, image_folder=here)
    with whole_file(path) as temporary:
        try:
            data.to_netcdf(temporary, engine="netcdf4")
        except RuntimeError as error:  # how the NetCDF library says that the disk is full
            raise OSError(errno.EIO, str(error)) from error


def _one_file(path: Path) -> Path:
    if path.is_dir():
        found = sorted(path.glob("*.nc"))
        if len(found) != 1:
            listed = ", ".join(file.name for file in found) or "none"
            raise ValueError(f"{path}: expected one .nc file in the folder, found {listed}; name the file itself")
        return found[0]
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; write_assembly makes such a file (docs/your-recordings.md)")
    return path


def _read(path: Path) -> xr.Dataset:
    """The whole file in memory, with all that the form asks for."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # xarray 2022 looks for its engines in an old way
            with xr.open_dataset(path, engine="netcdf4") as file:
                data = file.load()
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as NetCDF ({error}); it may be damaged or incomplete") from error
    asked = {"stimulus_id": ("stimulus",), "image_file": ("stimulus",), "neuroid_id": ("neuroid",), "region": ("neuroid",)}
    lacking = [f"{name} {dims}" for name, dims in asked.items() if name not in data.variables or data[name].dims != dims]
    if "image_folder" not in data.attrs:
        lacking.append("the attribute image_folder")
    known = {"responses": ("stimulus", "neuroid"), "repeats": ("stimulus", "neuroid", "repetition")}
    present = [name for name in known if name in data.variables]
    if not present:
        lacking.append("responses or repeats")
    lacking += [f"{name} {known[name]}" for name in present if data[name].dims != known[name]]
    if lacking:
        raise ValueError(
            f"{path} is not in the form that write_assembly writes: it lacks {', '.join(lacking)} "
            "(docs/your-recordings.md describes the form)"
        )
    return data
