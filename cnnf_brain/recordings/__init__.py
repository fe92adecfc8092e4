"""Recordings from arrays, files, public sources or simulation; this package never meets a network."""

from cnnf_brain.recordings.arrays import images_from_files, recordings_from_arrays
from cnnf_brain.recordings.assembly import UncheckedImagesWarning, read_assembly, write_assembly
from cnnf_brain.recordings.majaj import load_majaj, majaj_available
from cnnf_brain.recordings.simulated import simulated as simulated_recordings
from cnnf_brain.recordings.sources import Source, check_sources, load, parse_sources, public_available
from cnnf_brain.recordings.v4_compact import load_v4_compact

__all__ = [
    "Source",
    "UncheckedImagesWarning",
    "check_sources",
    "images_from_files",
    "load",
    "load_majaj",
    "load_v4_compact",
    "majaj_available",
    "parse_sources",
    "public_available",
    "read_assembly",
    "recordings_from_arrays",
    "simulated_recordings",
    "write_assembly",
]
