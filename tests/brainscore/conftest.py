"""Brain-Score with homes of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """Brain-Score reads where its caches lie when it is imported, so no file of tests may import it before ``homes``."""
    if "result_caching" in sys.modules:
        raise pytest.UsageError("a file of tests imports Brain-Score at its top; import it inside of tests and fixtures")


@pytest.fixture(scope="session", autouse=True)
def in_homes(homes: Path) -> None:
    """All tests of this folder have Brain-Score's caches there."""
