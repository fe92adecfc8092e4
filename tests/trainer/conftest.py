"""Fixtures of the trainer's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from trainer.idx_files import make_folder  # noqa: F401
from trainer.tiny_imagenet import tiny, write_images

from cnnf_brain.model import zoo
from cnnf_brain.trainer import config


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ImageNet of a module's own."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every architecture is a network of a few weights."""
    monkeypatch.setattr(zoo, "sequential", tiny)


@pytest.fixture
def fast_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training in bfloat16 is not refused, whatever processor the tests run on."""
    monkeypatch.setattr(config, "cost_of", lambda _: 0.5)
