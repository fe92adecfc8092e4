"""Brain-Score with homes of its own."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def in_homes(homes: Path) -> None:
    """All tests of this folder have Brain-Score's caches there."""
