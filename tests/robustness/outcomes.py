"""Outcomes written down in place of attacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnf_brain.robustness.cells import Cell


def write_outcome(cell: Cell, right: npt.NDArray[Any]) -> None:
    """A cell's file with ``right`` (epsilon, iteration, image) as its outcome, of the networks that are there."""
    about = {"identity": cell.identity, "weights_sha256": cell.weights}
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(cell.path, correct=right, about=np.array(json.dumps(about)))


def words_of(folder: Path, *more: object) -> list[str]:
    """A small run of the command, whose networks and results go into ``folder``."""
    small = {"limit": 20, "epochs": 1, "images": 2, "strong-images": 1, "seeds": 0, "epsilons": 0, "device": "cpu"}
    places = {"models": folder / "models", "output": folder / "out"}
    given = {"experiment": "fig12", **small, **places}
    return [*(word for name, value in given.items() for word in (f"--{name}", str(value))), *map(str, more)]
