"""Outcomes written down in place of attacks."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnf_brain.robustness.cells import Cell


def write_outcome(cell: Cell, right: npt.NDArray[Any]) -> None:
    """A cell's file with ``right`` (epsilon, iteration, image) as its outcome, of the networks that are there."""
    about = {"identity": cell.identity, "weights_sha256": cell.weights}
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(cell.path, correct=right, about=np.array(json.dumps(about)))
