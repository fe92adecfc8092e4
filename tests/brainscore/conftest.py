"""Brain-Score with homes of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Brain-Score's caches for this session; it runs no pip, and skips where it is not installed."""
    pytest.importorskip("brainscore_vision", reason="needs the brainscore extra")
    folder = tmp_path_factory.mktemp("homes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BS_INSTALL_DEPENDENCIES", "no")
        for name in ("BRAINIO_HOME", "BRAINSCORE_HOME", "RESULTCACHING_HOME"):
            patch.setenv(name, str(folder / name))
        yield folder
