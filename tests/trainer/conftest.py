"""Fixtures of the trainer's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from idx_files import NAMES, drawn, idx


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """``make_folder(name, test_seed=2)``: a folder of four plain IDX files, 240 training and 40 test images."""

    def make(name: str = "data", test_seed: int = 2) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for part, n, seed in (("train", 240, 1), ("test", 40, test_seed)):
            for file, values in zip(NAMES[part], drawn(n, seed), strict=True):
                (folder / file).write_bytes(idx(values))
        return folder

    return make
