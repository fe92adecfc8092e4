"""Fixtures of the trainer's tests."""

from __future__ import annotations

import pytest
from trainer.idx_files import make_folder  # noqa: F401

from cnnf_brain.trainer import config


@pytest.fixture
def fast_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training in bfloat16 is not refused, whatever processor the tests run on."""
    monkeypatch.setattr(config, "cost_of", lambda _: 0.5)
