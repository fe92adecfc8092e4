"""Fixtures of the data sets' tests."""

from idx_files import make_folder  # noqa: F401
