"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cnnf_brain import style
from cnnf_brain.compare import show
from cnnf_brain.io import atomic_path

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ``shared`` beside the checkout (real recordings, weights, images); skips where it is absent."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the data folder {folder}, which is not there")
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """A process forked after OpenMP has started threads waits for them without end, and tests fork processes that share work."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def not_the_users_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests compute is cached for the session, away from the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CNNF_BRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Brain-Score's caches for this session; it runs no pip, and skips where it is not installed."""
    pytest.importorskip("brainscore_vision", reason="needs the brainscore extra")
    folder = tmp_path_factory.mktemp("homes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BS_INSTALL_DEPENDENCIES", "no")
        for name in ("BRAINIO_HOME", "BRAINSCORE_HOME", "RESULTCACHING_HOME"):
            patch.setenv(name, str(folder / name))
        yield folder


@pytest.fixture(scope="session")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of an empty figure."""
    folder = tmp_path_factory.mktemp("blank")
    style.save(style.new_figure(1, 1), folder)
    return folder


@pytest.fixture
def sketched(blank: Path) -> Iterator[pytest.MonkeyPatch]:
    """Figures are saved empty, for drawing takes longer than the rest of a small run; ``sketched.undo()`` has them drawn."""

    def save(_figure: Any, folder: Path, name: str = "figure") -> None:
        for suffix in ("png", "svg"):
            with atomic_path(Path(folder) / f"{name}.{suffix}") as temporary:
                temporary.write_bytes((blank / f"figure.{suffix}").read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "save", save)
        patch.setattr(style, "png", lambda _figure: (blank / "figure.png").read_bytes())
        patch.setattr(show, "plot", lambda *_: None)
        yield patch


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CNNF_BRAIN_CACHE", str(folder))
    return folder
