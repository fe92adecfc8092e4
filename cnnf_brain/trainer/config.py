"""What a run was: its configuration and its surroundings, compared."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from cnnf_brain.checks import differences


def check_same(old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
    """A ValueError that lists what differs between the configuration found at ``path`` and that of now."""
    found = differences(old, new)
    if found:
        raise ValueError(
            f"{path} is of another configuration ({'; '.join(found)}): give the same settings to continue it, "
            "or choose another output folder"
        )


def warn_of_change(old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
    """A RuntimeWarning where a run goes on in other surroundings, which it may, though not bit for bit."""
    found = differences(old, new)
    if found:
        warnings.warn(
            f"{path} was made in other surroundings ({'; '.join(found)}): the run continues, but not "
            "bit for bit as it would have there",
            RuntimeWarning,
            stacklevel=3,
        )


def environment(device: torch.device) -> dict[str, Any]:
    """What the bits of a result depend on beside the configuration."""
    return {"torch": str(torch.__version__), "device": device.type, "threads": torch.get_num_threads()}
