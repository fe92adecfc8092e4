"""Fixtures of the trainer's tests."""

from __future__ import annotations

from trainer.idx_files import make_folder  # noqa: F401
