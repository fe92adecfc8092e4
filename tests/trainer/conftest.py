"""Fixtures of the trainer's tests."""

from idx_files import make_folder  # noqa: F401
