"""The name of a device -> the torch device, checked."""

from __future__ import annotations

import torch

AUTO = "auto"


def pick(device: str | torch.device = AUTO) -> torch.device:
    """The device that ``device`` names: ``auto`` is a CUDA GPU where there is one, else the CPU.

    Raises
    ------
    ValueError
        An unknown name, or a device that this machine does not have.
    """
    if str(device) == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(1, device=place).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device {str(device)!r} cannot be used here ({str(error).splitlines()[0]}); expected auto, cpu, or cuda where "
            "there is a GPU"
        ) from error
    return place
