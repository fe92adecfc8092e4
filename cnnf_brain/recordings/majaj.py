"""MajajHong2015.public (88 V4 and 168 IT sites, 3200 images of 8 object classes) through brainscore-vision.

Majaj, Hong, Solomon & DiCarlo (2015), J. Neurosci. 35(39), doi:10.1523/JNEUROSCI.5181-14.2015. The rows stand in the
order that Brain-Score's own averaging gives them, so that its splits, made by row number, are the same ones.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

from cnnf_brain.checks import unknown
from cnnf_brain.io import ask_sizes
from cnnf_brain.recordings.record import Recordings
from cnnf_brain.types import Array, Images

NAME = "MajajHong2015.public"
REGIONS = ("V4", "IT")
BASE_URL = "https://brainscore-storage.s3.amazonaws.com/brainio-brainscore"

# What brainscore-vision fetches: file -> SHA-1, under which brainscore-core caches it. A test compares these with the
# installed package.
FILES = {
    "assy_dicarlo_MajajHong2015_public.nc": "13d28ca0ce88ee550b54db3004374ae19096e9b9",
    "stimulus_hvm-public.csv": "5ca7a3da00d8e9c694a9cd725df5ba0ad6d735af",
    "stimulus_hvm-public.zip": "8aa44e038d7b551efa8077467622f9d48d72e473",
}
_INSTALL = "pip install 'cnnf-brain[brainscore]'"


def load_majaj(region: str) -> Recordings:
    """The public recordings of ``V4`` or ``IT``, averaged over repetitions, with the repetitions beside.

    Responses are in the unit of the assembly (70 to 170 ms, normalised by its authors). ``repeats`` are padded with NaN and have a
    column for each value of Brain-Score's coordinate ``repetition``. A ValueError for another region, an ImportError without the
    extra ``brainscore``, an OSError where the recordings are neither in brainscore's cache nor can be downloaded.
    """
    if region not in REGIONS:
        raise unknown("region", region, REGIONS, where=NAME)
    if not majaj_cached():
        print(f"{NAME} is not in the cache: {public_available()[1]}", file=sys.stderr)
    return recordings_from_assembly(_load_dataset(), region)


def recordings_from_assembly(assembly: Any, region: str) -> Recordings:
    """A NeuronRecordingAssembly (presentation, neuroid, time_bin of length 1) with its stimulus set -> Recordings.

    Brain-Score groups presentations by all their coordinates but ``repetition`` and sorts the groups; here they are
    grouped by ``stimulus_id`` alone, and sorted alike.
    """
    assembly = assembly.isel(neuroid=np.flatnonzero(assembly["region"].values == region))
    if "time_bin" in assembly.dims:
        if assembly.sizes["time_bin"] != 1:
            raise ValueError(f"{NAME}: {assembly.sizes['time_bin']} time bins, expected one")
        assembly = assembly.isel(time_bin=0)
    assembly = assembly.transpose("presentation", "neuroid")
    rows = _presentations(assembly)
    ids = [str(name) for name in rows["stimulus_id"].cat.categories]
    values = np.asarray(assembly.values, dtype=np.float64)
    column, n_columns = _columns(rows)
    repeats = np.full((len(ids), n_columns, values.shape[1]), np.nan)
    repeats[rows["stimulus_id"].cat.codes.to_numpy(), column] = values

    first = rows.drop_duplicates("stimulus_id").set_index("stimulus_id").loc[rows["stimulus_id"].cat.categories]
    paths = assembly.attrs["stimulus_set"].stimulus_paths
    animals = assembly["animal"].values if hasattr(assembly, "animal") else None
    return Recordings.from_arrays(
        repeats.swapaxes(1, 2),
        Images.of([paths[name] for name in first.index], ids, where=NAME),
        region=region,
        source=NAME,
        image_ids=ids,
        site_ids=assembly["neuroid_id"].values,
        object_names=None if "object_name" not in rows else first["object_name"].to_numpy(),
        subjects=animals,
    )


def majaj_cached() -> bool:
    """Whether all files are in brainscore-core's cache (``$BRAINIO_HOME``, default ``~/.brainio``)."""
    home = Path(os.path.expanduser(os.getenv("BRAINIO_HOME", "~/.brainio")))
    return all((home / sha1 / name).is_file() for name, sha1 in FILES.items())


def check_installed() -> None:
    """An ImportError where brainscore-vision is not installed; nothing is imported."""
    if importlib.util.find_spec("brainscore_vision") is None:
        raise ImportError(f"{NAME} needs brainscore-vision, which is not installed: {_INSTALL}")


def public_available() -> tuple[bool, str]:
    """Whether the public recordings of both V4 and IT can be had, and why or why not, within about two seconds.

    Nothing is downloaded. True where brainscore-vision is installed and the files are in its cache or their host
    answers; the text then gives the size that the host states.
    """
    if importlib.util.find_spec("brainscore_vision") is None:
        return False, f"brainscore-vision is not installed ({_INSTALL})"
    if majaj_cached():
        return True, f"{NAME} is in the cache"
    sizes, failures = ask_sizes([f"{BASE_URL}/{name}" for name in FILES])
    if failures:
        return False, f"{NAME} is not in the cache and cannot be downloaded ({failures[0]})"
    known = [size for size in sizes if size is not None]
    stated = f"{sum(known) / 1e6:.0f} MB" if len(known) == len(FILES) else "of a size that the host does not state"
    return True, f"{NAME} can be downloaded ({stated})"


def _load_dataset() -> Any:
    """The assembly, as brainscore-vision gives it, without letting it install packages."""
    # without this variable brainscore runs pip by itself
    with mock.patch.dict(os.environ, BS_INSTALL_DEPENDENCIES="no"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FutureWarnings of brainscore-core's own classes
        try:
            import brainscore_vision
        except ImportError as error:
            raise ImportError(f"{NAME} needs brainscore-vision ({error}): {_INSTALL}") from error
        try:
            return brainscore_vision.load_dataset(NAME).load()
        except Exception as error:  # brainscore-core raises bare Exceptions where it cannot download
            raise OSError(
                f"{NAME} is not in the cache and could not be downloaded or read ({error}); connect to the network, "
                "or name other recordings"
            ) from error


def _presentations(assembly: Any) -> pd.DataFrame:
    """One row for each presentation; the categories of ``stimulus_id`` are in Brain-Score's order."""
    from brainscore_core.supported_data_standards.brainio.assemblies import walk_coords

    rows = pd.DataFrame({name: values for name, dims, values in walk_coords(assembly) if dims == ("presentation",)})
    others = [name for name in rows.columns if name != "repetition"]
    first = rows.drop_duplicates("stimulus_id")[others]
    keys = sorted(zip(*(first[name].tolist() for name in others), strict=True))
    order = [key[others.index("stimulus_id")] for key in keys]
    return rows.assign(stimulus_id=pd.Categorical(rows["stimulus_id"], categories=order))


def _columns(rows: pd.DataFrame) -> tuple[Array, int]:
    """The column of each presentation among the repeats, and how many there are.

    One for each value of ``repetition``; a second presentation under the same value gets a column of its own.
    """
    if "repetition" not in rows:
        rows = rows.assign(repetition=0)
    again = rows.groupby(["stimulus_id", "repetition"], observed=True).cumcount()
    keys = pd.MultiIndex.from_arrays([again, rows["repetition"]])
    codes, unique = pd.factorize(keys, sort=True)
    return codes, len(unique)
