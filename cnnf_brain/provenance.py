"""What a run was: command, commit, versions, machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

PACKAGES = (
    "cnnf-brain", "torch", "torchvision", "numpy", "scipy", "xarray", "scikit-learn", "safetensors", "brainscore-vision"
)  # fmt: skip


def command() -> str:
    """The command line, as one would type it again."""
    name = getattr(sys.modules["__main__"], "__spec__", None)
    start = "-m " + name.name.removesuffix(".__main__") if name is not None else shlex.quote(sys.argv[0])
    return f"python {start} {shlex.join(sys.argv[1:])}".strip()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine(device: torch.device) -> str:
    """The processor and how much of it is used, or a GPU's name."""
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
    """The git commit of the checkout that this code lies in, ``-dirty`` where tracked files were changed; None without one."""
    here = Path(__file__)

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here.parent), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # not a repository that an environment happens to lie in
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
