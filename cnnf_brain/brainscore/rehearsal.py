"""The process of a rehearsal: what it may reach and use, and its findings as it writes them. What it runs stands in worker.py."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from cnnf_brain.io import CACHE_VARIABLE, parsed

OK, FAILED, NOT_RUN, DRAFT = "ok", "failed", "not run", "draft"
HOMES = ("BRAINIO_HOME", "BRAINSCORE_HOME", "RESULTCACHING_HOME", CACHE_VARIABLE)
LIMIT = 20 * 60  # seconds that a stage may take
OUTPUT = 10_000_000  # bytes that the process may print
STAGES = {  # the parts of the rehearsal, and what each finds out
    "weights": "the weights are the plugin's, and Brain-Score's machines can load them",
    "load": "brainscore-vision discovers the plugin and loads its model, without a GPU and without cnnf-brain",
    "tests": "Brain-Score's generic plugin tests, and the plugin's own, pass",
    "scoring": "a toy benchmark scores V4 and IT end to end (SIMULATED recordings)",
    "cost": "memory and time that the real benchmarks will take",
}
KILLED = (-9, 128 + 9)  # by SIGKILL, which Windows has no name for; the second as a fence passes it on
OURS = str(Path(__file__).resolve().parents[2])  # where cnnf_brain lies
HIDDEN = ("/tmp", "/run")  # in a sandbox: where programs of this machine leave sockets to talk to them


@dataclass(frozen=True)
class Finding:
    """One check: its rule in words, and what came of it.

    ``status``: OK; FAILED; NOT_RUN, with the reason in ``detail``; DRAFT, where the plugin names no place for its weights.
    """

    rule: str
    status: str
    detail: str = ""


def held(rule: str, holds: bool, detail: str = "") -> Finding:
    """The finding of a check that was run."""
    return Finding(rule, OK if holds else FAILED, detail)


@dataclass(frozen=True)
class Fence:
    """What holds the plugin's code: the command that starts a process behind it (empty: none), and what that can still reach."""

    command: tuple[str, ...]
    words: str


def fences(scratch: Path, needed: Iterable[Path]) -> Iterator[Fence]:
    """The fences that are known, the strongest first; the last is none.

    ``scratch`` is the folder that can be written. ``needed`` are paths that are read, wherever they lie.
    """
    hidden = [folder for folder in HIDDEN if os.path.isdir(folder)]
    below = [str(path) for path in needed if any(folder in map(str, path.parents) for folder in hidden)]
    shown = [word for path in dict.fromkeys(below) for word in ("--ro-bind", path, path)]
    covers = [word for folder in hidden for word in ("--tmpfs", folder)]
    fresh = [
        "--dev",
        "/dev",
        "--proc",
        "/proc",
        *covers,
        *shown,
        "--bind",
        str(scratch),
        str(scratch),
        "--chdir",
        str(scratch),
    ]
    held = ["--unshare-all", "--die-with-parent", "--cap-drop", "ALL", "--ro-bind", "/", "/"]
    yield Fence(
        ("bwrap", *held, *fresh),
        "in a sandbox (bubblewrap): it reaches no network and writes into its temporary folder alone; it reads what you can read",
    )
    yield Fence(
        ("unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
        "without a network (unshare), and with your rights on this machine's files and services; bubblewrap, once it is "
        "installed, holds it in. Check a ZIP of strangers there or in a container without a network",
    )
    yield Fence(
        (),
        "with your rights, and can reach the network: neither bubblewrap nor unshare works here. Check a ZIP of strangers in a "
        "container without a network",
    )


def fence(scratch: Path, weights: str | None) -> Fence:
    """The strongest fence that this Python starts behind; ``weights`` are read through it."""
    read = (sys.prefix, sys.base_prefix, OURS, *sys.path, *filter(None, [weights]))
    needed = [Path(path) for path in read if os.path.exists(path)]
    return next(known for known in fences(scratch, needed) if not known.command or _starts(known.command))


def _starts(command: Sequence[str]) -> bool:
    try:
        tried = subprocess.run(
            [*command, sys.executable, "-c", ""], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return tried.returncode == 0


def environment(scratch: Path) -> dict[str, str]:
    """Of the process: the scratch package first, homes of its own, no GPU, no pip, nothing compiled beside the sources."""
    homes = {name: str(scratch / "homes" / name) for name in HOMES}
    paths = [str(scratch / "site"), OURS, *filter(None, [os.environ.get("PYTHONPATH")])]
    fixed = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # those that are installed here
        "PYTEST_ADDOPTS": "",
        "BS_INSTALL_DEPENDENCIES": "no",
        "CUDA_VISIBLE_DEVICES": "",
        "TMPDIR": str(scratch),
    }
    return {name: value for name, value in os.environ.items() if not name.startswith("RESULTCACHING")} | homes | fixed


def run(scratch: Path, task: dict[str, Any], tell: Callable[[str], object]) -> Iterator[Finding]:
    """The findings of all stages, run in a process of its own; every stage is heard of.

    ``task``: what worker.py is to do. ``tell`` takes a line: first what the process can reach and use, then each stage's begin
    and end.
    """
    if not hasattr(os, "killpg"):
        raise OSError("a plugin is rehearsed on Linux or macOS; on Windows take the Windows Subsystem for Linux")
    chosen, memory = fence(scratch, task["weights"]), psutil.virtual_memory().available
    tell(f"the plugin's code is run now, {chosen.words}")
    limits = f"{LIMIT / 60:.0f} min for each stage, {memory / 2**30:.0f} GiB of memory, {OUTPUT / 1e6:.0f} MB of output"
    tell(f"it has at most {limits}")
    (scratch / "task.json").write_text(json.dumps(task | {"fence": chosen.command, "memory": memory}))
    ended = list[str]()
    command = [sys.executable, "-m", "cnnf_brain.brainscore.worker", str(scratch)]
    place: dict[str, Any] = {"cwd": scratch, "env": environment(scratch), "start_new_session": True}
    # Read by what is opened here: the process may put something else in the place of these files.
    with open(scratch / "log", "w+b") as log, open(scratch / "findings.jsonl", "w+b") as results:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, **place)
        try:
            reason = yield from _follow(process, (results, log), ended, tell)
        finally:
            _end(process)
        log.seek(max(0, os.fstat(log.fileno()).st_size - 10_000))
        last = log.read(10_000).decode(errors="replace").strip().splitlines()[-1:]
    yield from silent(ended, f"{reason}: {''.join(last) or 'it said nothing'}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and what it has started, also in sessions of their own."""
    children: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.kill()
    process.wait()


def _follow(
    process: subprocess.Popen[bytes], files: tuple[BinaryIO, BinaryIO], ended: list[str], tell: Callable[[str], object]
) -> Generator[Finding, None, str]:
    """Findings as the process writes them into the first of ``files``, until it ends or goes beyond a limit: how, in words."""
    results, begun, rest, since = files[0], list[str](), b"", time.monotonic()
    while True:
        running = process.poll() is None  # before reading: what is written until then is read
        if any(os.fstat(file.fileno()).st_size > OUTPUT for file in files):
            return f"stopped, since it wrote more than {OUTPUT / 1e6:.0f} MB of output"
        *lines, rest = (rest + results.read(OUTPUT)).split(b"\n")
        for line in lines:
            match parsed(line):
                case {"begin": str(name)} if name in STAGES and name not in begun:
                    begun, since = [*begun, name], time.monotonic()
                    tell(f"{name}: {STAGES[name]}")
                case {"end": str(name), "seconds": float(seconds)} if name in begun and name not in ended:
                    ended.append(name)
                    tell(f"{name}: {seconds:.0f} s")
                case {"rule": str(rule), "status": "ok" | "failed" | "not run" | "draft" as status, "detail": str(detail)}:
                    yield Finding(rule, status, detail)
                case _:
                    return "stopped, since it wrote what is no finding"
        if not running:
            killed = " (killed: too little memory?)" if process.returncode in KILLED else ""
            return f"the process ended early, with {process.returncode}{killed}"
        if time.monotonic() - since > LIMIT:
            return f"stopped after {LIMIT / 60:.0f} min without an end"
        time.sleep(0.1)


def silent(ended: Sequence[str], reason: str) -> Iterator[Finding]:
    """A finding for every stage that did not say that it ended: the first of them failed, the others were not run."""
    missing = [name for name in STAGES if name not in ended]
    for name in missing[:1]:
        yield Finding(STAGES[name], FAILED, reason)
    for name in missing[1:]:
        yield Finding(STAGES[name], NOT_RUN, f"since the stage {missing[0]} did not come to its end")
