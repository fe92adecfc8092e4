"""What a run was: its configuration compared, its surroundings recorded, its card written."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import warnings
from pathlib import Path
from typing import Any

import torch

from cnnf_brain.files import write_whole


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """``name: old there, new now`` for every entry that differs (nested ones as ``a.b``)."""
    found = []
    for name in [*old, *(name for name in new if name not in old)]:
        a, b = old.get(name, "absent"), new.get(name, "absent")
        if isinstance(a, dict) and isinstance(b, dict):
            found += [f"{name}.{text}" for text in differences(a, b)]
        elif a != b:
            found.append(f"{name}: {a} there, {b} now")
    return found


def check_same(old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
    """A ValueError that lists what differs between the configuration found at ``path`` and that of now."""
    found = differences(old, new)
    if found:
        raise ValueError(
            f"{path} is of another configuration ({'; '.join(found)}): give the same flags to continue it, "
            "or choose another --output"
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


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that training uses."""
    names = ("cnnf-brain", "torch", "torchvision", "numpy", "scikit-learn", "safetensors")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def machine(device: torch.device) -> str:
    """The processor and how much of it is used: ``Intel(R) Xeon(R) ..., 1 thread`` or a GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")  # Linux; elsewhere Python's own word for the processor
    if cpuinfo.exists():
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
        name = next((value.strip() for key, _, value in lines if key.strip() == "model name"), name)
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)} of {os.cpu_count()}"


def commit() -> str | None:
    """The git commit of the checkout that this code lies in, ``-dirty`` where code was changed since; None without one."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(here), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # not a repository that an environment happens to lie in
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented JSON, whole or not at all."""
    text = json.dumps(content, indent=2) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))  # type: ignore[arg-type, return-value]
