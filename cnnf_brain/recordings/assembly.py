"""Recordings in a NetCDF file: written beside the images, read with the images checked.

``docs/your-recordings.md`` describes the file. It has the dimension and coordinate names of Brain-Score's assemblies:
``stimulus`` stands for images there, ``neuroid`` for sites.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import xarray as xr

from cnnf_brain.checks import labels_of, unknown
from cnnf_brain.io import read_netcdf, write_netcdf
from cnnf_brain.recordings.record import Labels, List, Recordings, checked_labels, checked_responses
from cnnf_brain.types import Images

FORMAT = "cnnf-brain assembly 1"
NEEDED = {"stimulus_id": ("stimulus",), "image_file": ("stimulus",), "neuroid_id": ("neuroid",), "region": ("neuroid",)}
DATA = {"responses": ("stimulus", "neuroid"), "repeats": ("stimulus", "neuroid", "repetition")}
OPTIONAL = {"image_sha256": ("stimulus",)}
LABELS = {  # name in Recordings.from_arrays -> name and dimension in the file
    "image_ids": ("stimulus_id", "stimulus"),
    "site_ids": ("neuroid_id", "neuroid"),
    "object_names": ("object_name", "stimulus"),
    "subjects": ("subject", "neuroid"),
    "sessions": ("session", "neuroid"),
}


class UncheckedImagesWarning(UserWarning):
    """An assembly holds no hashes of its images, so images that were replaced cannot be told."""


def write_assembly(
    path: str | Path,
    responses: Any,
    image_files: Sequence[str | Path],
    *,
    region: str | List,
    repeats: Any = None,
    **labels: Unpack[Labels],
) -> Path:
    """Write recordings as one NetCDF file that ``read_assembly`` and ``load_recordings`` take.

    The images stay where they are. The file holds their paths relative to itself, so move both together. It also holds
    the SHA-256 of each, so that ``read_assembly`` notices an image that was replaced.

    Parameters
    ----------
    path : path
        The file to write; its name ends in ``.nc``. It appears only when it is whole.
    responses, repeats, image_ids, site_ids, object_names, subjects, sessions
        As in ``Recordings.from_arrays``.
    image_files : sequence of paths
        The image of each row of ``responses``. All are decoded once.
    region : str or sequence of str
        The region of all sites, or of each.

    Raises
    ------
    ValueError
        As ``Recordings.from_arrays``, for each region, and where an image cannot be decoded.
    OSError
        An image is missing or the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".nc":
        raise ValueError(f"{path}: the name of an assembly ends in .nc")
    images = Images.of(image_files, labels.get("image_ids"), where=str(path))
    values, single = checked_responses(responses, repeats, len(images), str(path))
    named = checked_labels({**labels, "image_ids": images.ids}, values.shape, str(path))
    n_sites = values.shape[1]
    regions = labels_of("regions", [region] * n_sites if isinstance(region, str) else region, n_sites, str(path))
    for one in dict.fromkeys(regions):
        sites = np.array([name == one for name in regions])
        Recordings.from_arrays(values[:, sites], images, region=one, source=str(path), site_ids=named["site_ids"][sites])
    folder, files = _relative(path, image_files)
    texts: dict[tuple[str, str], Any] = {LABELS[name]: array for name, array in named.items()}
    texts |= {
        ("region", "neuroid"): regions,
        ("image_sha256", "stimulus"): images.hashes(),
        ("image_file", "stimulus"): files,
    }
    images.check()
    write_netcdf(
        path,
        xr.Dataset(
            {name: (DATA[name], array) for name, array in zip(DATA, (values, single), strict=True) if array is not None},
            {name: (dim, np.array(array, object)) for (name, dim), array in texts.items()},
            {"format": FORMAT, "image_folder": folder},
        ),
    )
    return path


def read_assembly(path: str | Path, region: str) -> Recordings:
    """The sites of one region in a NetCDF file written by `write_assembly`, or in the one such file of a folder.

    Every image is read and hashed once, and must be the one that the file was written with. A file without hashes, from before
    they were written, is read with an `UncheckedImagesWarning`. A FileNotFoundError: the file, or an image that it names. A
    ValueError: the file is of another form, the region is not in it (those it has are listed), or images were replaced.
    """
    path = _one_file(Path(path))
    data = _read(path)
    regions = data["region"].values.astype(str)
    if region not in regions:
        raise unknown("region", region, dict.fromkeys(regions.tolist()), where=str(path))
    images = _images(data, path)
    _check_images(data, images, path)
    sites = data.isel(neuroid=np.flatnonzero(regions == region))
    labels = {name: sites[there].values for name, (there, _) in LABELS.items() if there in sites.variables}
    responses, *repeats = [sites[name].values for name in DATA if name in sites.variables]
    single = repeats[0] if repeats else None
    return Recordings.from_arrays(responses, images, region=region, repeats=single, source=str(path), **labels)


def check_assembly(path: str | Path) -> tuple[str, ...]:
    """The regions in such a file. The errors are those of ``read_assembly``, as far as they show without reading an image."""
    path = _one_file(Path(path))
    data = _read(path)
    _images(data, path)
    return tuple(dict.fromkeys(str(name) for name in data["region"].values))


def _images(data: xr.Dataset, path: Path) -> Images:
    folder = Path(os.path.abspath(path.parent / str(data.attrs["image_folder"])))
    files = [folder / str(name) for name in data["image_file"].values]
    return Images.of(files, data["stimulus_id"].values, where=str(path))


def _check_images(data: xr.Dataset, images: Images, path: Path) -> None:
    if "image_sha256" not in data.variables:
        warnings.warn(
            f"{path} holds no SHA-256 of its images, so images that were replaced since it was written cannot be told; "
            "check that they are the right ones and write the file anew with write_assembly (docs/your-recordings.md)",
            UncheckedImagesWarning,
            stacklevel=3,
        )
        return
    names, written = (data[name].values.tolist() for name in ("image_file", "image_sha256"))
    changed = [str(name) for name, a, b in zip(names, written, images.hashes(), strict=True) if str(a) != b]
    if changed:
        more = " ..." if len(changed) > 5 else ""
        raise ValueError(
            f"{path}: {len(changed)} of {len(names)} images are not those that it was written with: "
            f"{', '.join(changed[:5])}{more}; put the right images back, or write the file anew with write_assembly"
        )


def _relative(path: Path, files: Sequence[str | Path]) -> tuple[str, list[str]]:
    """The folder of all images, relative to that of ``path``, and their paths in it."""
    absolute = [os.path.abspath(file) for file in files]
    folder = os.path.commonpath([os.path.dirname(file) for file in absolute])
    relative = [Path(os.path.relpath(file, folder)).as_posix() for file in absolute]
    return Path(os.path.relpath(folder, os.path.abspath(path.parent))).as_posix(), relative


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
    """The file in memory, with all that the form asks for."""
    data = read_netcdf(path)
    found = {str(name): variable.dims for name, variable in data.variables.items()}
    lacking = [f"{name} {dims}" for name, dims in NEEDED.items() if found.get(name) != dims]
    lacking += ["the attribute image_folder"] * ("image_folder" not in data.attrs)
    lacking += ["responses or repeats"] * (not found.keys() & DATA)
    lacking += [f"{name} {dims}" for name, dims in (DATA | OPTIONAL).items() if found.get(name, dims) != dims]
    if lacking:
        raise ValueError(
            f"{path} is not in the form that write_assembly writes: it lacks {', '.join(lacking)} "
            "(docs/your-recordings.md describes the form)"
        )
    return data
