"""Checkpoints: whole, checked files of which no code is ever run.

A checkpoint is one safetensors file. Its tensors are those of the saved state, named by their place in it
(``optimizer/state/0/exp_avg``); its metadata holds the rest of the state as JSON, and a SHA-256 over both. It
is written beside and renamed, so that a file under a checkpoint's name is whole; the checksum tells where a
disk has altered it since.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cnnf_brain.io import write_whole

FORMAT = "cnnf-brain checkpoint 1"
PATTERN = "checkpoint-*.safetensors"


@dataclass
class Position:
    """Where a run is: all that changes in it beside the states of the network and the optimizer.

    Attributes
    ----------
    step, seconds
        Steps done and seconds of training.
    sums, images, norms
        Since the last line of the log: each loss term at each iteration (N+1,), summed over the images of all ranks; the number
        of these images; the norm of each step's gradient.
    validation, best
        What validation said last and at best, with the step.
    bad
        Path -> reason of the damaged training images met so far.
    """

    step: int = 0
    seconds: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)
    images: int = 0
    norms: list[float] = field(default_factory=list)
    validation: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    bad: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, state: dict[str, Any], n_images: int = sys.maxsize) -> Position:
        """The position in a checkpoint's state. Older ones of images in memory (``n_images``) count epochs and batches."""
        if "position" in state:
            return cls(**state["position"])
        old = state["progress"]
        images = min(old["batch"] * state["configuration"].get("batch_size", 1), n_images)
        judged = None if old["batch"] else {"step": old["step"]}  # the last step of an epoch was saved with its validation
        return cls(old["step"], old["seconds"], old["sums"], images, validation=judged)

    @property
    def judged(self) -> bool:
        """Whether the weights of now are validated."""
        return self.validation is not None and self.validation["step"] == self.step

    def means(self) -> dict[str, list[float]]:
        """Each loss term at each iteration, the mean over the images since the last line of the log."""
        return {term: (values / max(self.images, 1)).tolist() for term, values in self.sums.items()}


class DamagedCheckpoint(ValueError):
    """The file is not a whole checkpoint of this format."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path``, whole or not at all.

    Parameters
    ----------
    state
        Nested dicts, lists and tuples of tensors, numbers, strings, booleans and None; dict keys are strings
        or integers. State dicts of modules, optimizers and schedulers are such.

    Raises
    ------
    TypeError
        Where the state holds anything else (a checkpoint that needs code to load is refused when written).
    OSError
        Where the file cannot be written, as on a full disk; an older file of that name is left as it was.
    """
    tensors: dict[str, Tensor] = {}
    rest = json.dumps(_flatten(state, "", tensors))
    metadata = {"format": FORMAT, "state": rest, "sha256": _digest(rest, tensors)}
    content = safetensors.torch.save(tensors, metadata)
    write_whole(path, lambda file: file.write(content))


def load(path: Path) -> dict[str, Any]:
    """What ``save`` was given, tensors on the CPU.

    Raises
    ------
    DamagedCheckpoint
        Where the file is truncated, altered or of another kind (as a pickle, of which nothing is executed).
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DamagedCheckpoint(f"{path} is not a whole safetensors file ({error}); it was not used") from error
    if metadata.get("format") != FORMAT:
        raise DamagedCheckpoint(f"{path} is not of the format {FORMAT!r} but {metadata.get('format')!r}")
    if metadata.get("sha256") != _digest(metadata.get("state", ""), tensors):
        raise DamagedCheckpoint(f"{path} is damaged: its content does not have the checksum written with it")
    state: dict[str, Any] = _restore(json.loads(metadata["state"]), tensors)
    return state


def save_step(folder: Path, step: int, state: dict[str, Any], *, keep: int = 3) -> Path:
    """Save ``state`` as the checkpoint of ``step`` in ``folder`` and remove all but the last ``keep``."""
    path = folder / f"checkpoint-{step:09d}.safetensors"
    save(path, state)
    for old in paths(folder)[keep:]:
        old.unlink()
    return path


def paths(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, the newest (by step) first."""
    return sorted(folder.glob(PATTERN), reverse=True)


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint with its state; None where there are no checkpoints.

    A damaged one is passed over with a RuntimeWarning; where all are damaged, a DamagedCheckpoint is raised,
    for a silent fresh start would throw a run away.
    """
    candidates = paths(folder)
    for path in candidates:
        try:
            return path, load(path)
        except DamagedCheckpoint as error:
            warnings.warn(f"{error}; trying the one before", RuntimeWarning, stacklevel=2)
    if candidates:
        raise DamagedCheckpoint(f"all {len(candidates)} checkpoints in {folder} are damaged; remove them to start anew")
    return None


def clean(folder: Path) -> None:
    """Remove what writers that were killed left in ``folder`` (no other may be writing there)."""
    for left in folder.glob(f".{PATTERN}"):
        left.unlink()


def _flatten(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON; each tensor goes to ``tensors`` and leaves its name. Containers are tagged, as JSON
    alone would make lists of tuples and strings of integer keys."""
    if isinstance(value, Tensor):
        # A copy of its own: safetensors takes neither views nor tensors that share memory.
        if place in tensors:
            raise TypeError(f"checkpoint: two tensors have the place {place}")
        tensors[place] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {"tensor": place}
    if isinstance(value, dict):
        if not all(type(key) in (str, int) for key in value):
            raise TypeError(f"checkpoint: the keys of {place or 'the state'} must be strings or integers")
        return {"dict": [[k, _flatten(v, f"{place}/{k}".lstrip("/"), tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        items = [_flatten(item, f"{place}/{i}", tensors) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(
        f"checkpoint: {place} is a {type(value).__name__}; only tensors, numbers, strings, booleans, None "
        "and dicts, lists and tuples of them are saved, so that loading never runs code"
    )


def _restore(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _restore(item, tensors) for key, item in content}
    items = [_restore(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _digest(rest: str, tensors: dict[str, Tensor]) -> str:
    whole = hashlib.sha256(rest.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()
