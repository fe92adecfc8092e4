"""The NetCDF form of recordings: written beside the images, read with the images checked.

The form (``docs/your-recordings.md`` describes it) has the dimensions and names of `types.Recordings`, plus ``region``
(neuroid), ``image_file`` and ``image_sha256`` (stimulus), and the attribute ``image_folder``, relative to the file itself.
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

from cnnf_brain.checks import unknown
from cnnf_brain.io import atomic_path
from cnnf_brain.recordings.arrays import Labels, dataset, images_from_files, labels_of, recordings_from_arrays
from cnnf_brain.types import Images, Recordings

FORMAT = "cnnf-brain assembly 1"
NEEDED = {"stimulus_id": ("stimulus",), "image_file": ("stimulus",), "neuroid_id": ("neuroid",), "region": ("neuroid",)}
DATA = {"responses": ("stimulus", "neuroid"), "repeats": ("stimulus", "neuroid", "repetition")}
OPTIONAL = {"image_sha256": ("stimulus",)}


class UncheckedImagesWarning(UserWarning):
    """An assembly holds no hashes of its images, so images that were replaced cannot be told."""


def write_assembly(
    path: str | Path,
    responses: Any,
    image_files: Sequence[str | Path],
    *,
    region: str | Labels,
    stimulus_ids: Labels | None = None,
    site_ids: Labels | None = None,
    repeats: Any = None,
    object_names: Labels | None = None,
    subjects: Labels | None = None,
) -> Path:
    """Write recordings as one NetCDF file that `read_assembly` and ``--recordings`` take.

    The images stay where they are: the file holds their paths relative to itself, so move both together. It also holds
    the SHA-256 of each, so that `read_assembly` notices an image that was replaced.

    Parameters
    ----------
    path : path
        The file to write; its name ends in ``.nc``. It appears only when it is whole.
    responses, repeats, site_ids, object_names, subjects
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
        As `recordings_from_arrays`, for each region, and where an image cannot be decoded or a single text or path is
        given in place of a list.
    OSError
        Where an image is missing or the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".nc":
        raise ValueError(f"{path}: the name of an assembly ends in .nc")
    images = images_from_files(image_files, ids=stimulus_ids, where=str(path))
    data = dataset(responses, repeats, len(images), str(path))
    n_neuroids = data.sizes["neuroid"]
    regions = labels_of("region", [region] * n_neuroids if isinstance(region, str) else region, n_neuroids, str(path))
    names = [f"site{i}" for i in range(n_neuroids)] if site_ids is None else site_ids
    coords = {
        "stimulus_id": ("stimulus", images.ids),
        "neuroid_id": ("neuroid", names),
        "region": ("neuroid", regions),
        "object_name": ("stimulus", object_names),
        "subject": ("neuroid", subjects),
    }
    for name, (dim, labels) in coords.items():
        if labels is not None:
            texts = labels_of(f"{name}s", labels, data.sizes[dim], str(path), unique=name.endswith("_id"))
            data = data.assign_coords({name: (dim, np.array(texts, object))})
    for one in dict.fromkeys(regions):
        _from_dataset(data, images, one, str(path))
    data = data.assign_coords(image_sha256=("stimulus", np.array(images.hashes(), object)))
    images.check()
    _write(path, data, [Path(file) for file in image_files])
    return path


def read_assembly(path: str | Path, region: str) -> Recordings:
    """The sites of one region in a NetCDF file written by `write_assembly`, or in the one such file of a folder.

    Every image is read and hashed once, and must be the one that the file was written with. A file without hashes,
    from before they were written, is read with an `UncheckedImagesWarning`.

    Raises
    ------
    FileNotFoundError
        Where the file, or an image that it names, does not exist.
    ValueError
        Where the file cannot be read or is of another form, the region is not in it (those it has are listed), or
        images are not those that it was written with.
    """
    path = _one_file(Path(path))
    data = _read(path)
    _check_region(data, region, str(path))
    images = _images(data, path)
    _check_images(data, images, path)
    return _from_dataset(data, images, region, str(path))


def check_assembly(path: str | Path, region: str) -> None:
    """What `read_assembly` refuses, as far as it shows without reading responses and images; the same errors."""
    path = _one_file(Path(path))
    data = _read(path, header=True)
    _check_region(data, region, str(path))
    _images(data, path)


def _images(data: xr.Dataset, path: Path) -> Images:
    folder = Path(os.path.abspath(path.parent / str(data.attrs["image_folder"])))
    files = [folder / str(name) for name in data["image_file"].values]
    return images_from_files(files, ids=[str(i) for i in data["stimulus_id"].values], where=str(path))


def _check_images(data: xr.Dataset, images: Images, path: Path) -> None:
    if "image_sha256" not in data.variables:
        warnings.warn(
            f"{path} holds no SHA-256 of its images, so images that were replaced since it was written cannot be told; "
            "check that they are the right ones and write the file anew with write_assembly (docs/your-recordings.md)",
            UncheckedImagesWarning,
            stacklevel=3,
        )
        return
    written = [str(known) for known in data["image_sha256"].values]
    names = [str(name) for name in data["image_file"].values]
    changed = [name for name, a, b in zip(names, written, images.hashes(), strict=True) if a != b]
    if changed:
        more = " ..." if len(changed) > 5 else ""
        raise ValueError(
            f"{path}: {len(changed)} of {len(names)} images are not those that it was written with: "
            f"{', '.join(changed[:5])}{more}; put the right images back, or write the file anew with write_assembly"
        )


def _check_region(data: xr.Dataset, region: str, where: str) -> None:
    regions = [str(name) for name in data["region"].values]
    if region not in regions:
        raise unknown("region", region, list(dict.fromkeys(regions)), where=where)


def _from_dataset(data: xr.Dataset, images: Images, region: str, source: str) -> Recordings:
    """The sites of one region of a dataset in the NetCDF form."""
    regions = [str(name) for name in data["region"].values]
    sites = data.isel(neuroid=np.flatnonzero(np.array(regions) == region))

    def optional(name: str) -> Any:
        return sites[name].values if name in sites.variables else None

    return recordings_from_arrays(
        optional("responses"),
        images,
        region=region,
        stimulus_ids=sites["stimulus_id"].values,
        site_ids=sites["neuroid_id"].values,
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
    with atomic_path(path) as temporary:
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


def _read(path: Path, header: bool = False) -> xr.Dataset:
    """The file in memory, with all that the form asks for; with ``header`` without responses and repeats."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # xarray 2022 looks for its engines in an old way
            with xr.open_dataset(path, engine="netcdf4") as file:
                lacking = _lacking(file)
                data = file.drop_vars([name for name in DATA if header and name in file.variables]).load()
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as NetCDF ({error}); it may be damaged or incomplete") from error
    if lacking:
        raise ValueError(
            f"{path} is not in the form that write_assembly writes: it lacks {', '.join(lacking)} "
            "(docs/your-recordings.md describes the form)"
        )
    return data


def _lacking(file: xr.Dataset) -> list[str]:
    """What the form asks for and the file does not have, in words."""

    def there(name: str, dims: tuple[str, ...]) -> bool:
        return name in file.variables and file[name].dims == dims

    lacking = [f"{name} {dims}" for name, dims in NEEDED.items() if not there(name, dims)]
    if "image_folder" not in file.attrs:
        lacking.append("the attribute image_folder")
    present = {name: dims for name, dims in (DATA | OPTIONAL).items() if name in file.variables}
    if not present.keys() & DATA:
        lacking.append("responses or repeats")
    return lacking + [f"{name} {dims}" for name, dims in present.items() if not there(name, dims)]
