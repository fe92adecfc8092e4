"""Fixtures of the data sets' tests."""

from __future__ import annotations

from trainer.idx_files import make_folder  # noqa: F401
