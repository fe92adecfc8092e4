"""The folder of a run's results: locked, of one configuration, and old or new as a whole.

And what a run was: command, commit, versions, machine.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from cnnf_brain.checks import differences
from cnnf_brain.io import check_writable, plain, read_json, write_json

RECORD = "run.json"  # what a run was; says whose folder it is
NEW, OLD = "new", "old"  # hidden folders beside a folder: what takes its place, and what stood there
READY = ".ready"  # a hidden folder inside a folder that grows: files that are whole and on their way into their places


@contextmanager
def locked(folder: Path, wait: float = 0) -> Iterator[None]:
    """Hold ``folder`` against other processes; an OSError where another one holds it for ``wait`` seconds. Nothing is made
    inside it, and a link to a folder stands for that folder."""
    folder = _real(folder)
    with _made(folder.parent, folder), _held(folder.parent / f".{folder.name}.lock", folder, wait):
        yield


@contextmanager
def opened(folder: Path) -> Iterator[None]:
    """Make ``folder`` and check that files can be written to it. It is removed again if the block writes nothing there.

    Raises
    ------
    OSError
        It cannot be made or written, or has no room left.
    """
    folder = _real(folder)
    with _made(folder, folder):
        check_writable(folder)
        yield


@contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """``opened`` for a run that writes into ``folder`` as it goes; an OSError where another process occupies it.

    The lock is inside the folder, so that a folder can be occupied whose parent cannot be written (a mount point).
    """
    folder = _real(folder)
    with opened(folder), _held(folder / ".lock", folder):
        yield


def check_place(folder: Path) -> None:
    """An OSError now rather than after the work where no results could be written to ``folder``; nothing is left there."""
    folder = _real(folder)
    if folder.exists() and not folder.is_dir():
        raise OSError(f"{folder} is a file; name a folder for the results")
    with locked(folder):
        check_writable(folder.parent)


def claim(folder: Path, kind: str, configuration: Mapping[str, Any]) -> None:
    """A ValueError unless ``folder`` is absent, empty, or holds the results of this very question.

    Parameters
    ----------
    folder
        Where the results are to stand.
    kind
        The command, in a word.
    configuration
        All that decides the results, as JSON values.
    """
    folder = _real(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder for the results")
    if all(path.name.startswith(".") for path in folder.iterdir()):
        return
    advice = "choose another output folder, or remove this one"
    try:
        record = read_json(folder / RECORD)
        found, changed = record["kind"], differences(record["configuration"], plain(configuration))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder} is not empty and not the results of this command ({RECORD}: {error}); {advice}"
        ) from error
    if found != kind:
        raise ValueError(f"{folder} holds the results of {found}, not of {kind}; {advice}")
    if changed:
        raise ValueError(f"{folder} holds the results of another question ({'; '.join(changed[:5])}); {advice}")


@contextmanager
def results(folder: Path, kind: str, configuration: Mapping[str, Any]) -> Iterator[Path]:
    """A folder beside ``folder`` to write into; it takes its place when the block ends well, and is removed when it does not.

    The block writes ``run.json`` there, to which ``kind`` and ``configuration`` are added. Files of the old folder that the new
    one does not have, and that no run wrote, are kept. Old and new change places in one step, where the system can do that. What a
    killed run left is put right first. Raises what ``locked`` and ``claim`` raise, before the block is entered.
    """
    folder = _real(folder)
    with locked(folder):
        recover(folder)
        claim(folder, kind, configuration)
        staging = beside(folder, NEW)
        try:
            check_writable(staging)
            yield staging
            record = read_json(staging / RECORD)
            written = sorted(path.name for path in staging.iterdir())
            write_record(staging, kind, configuration, {**record, "files": written})
            umask = os.umask(0)
            os.umask(umask)
            staging.chmod(0o777 & ~umask)
            _swap(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def grown(folder: Path, kind: str, configuration: Mapping[str, Any], wait: float = 0) -> Iterator[Path]:
    """``folder`` itself, for runs that fill it step by step; other processes wait for the end of the block.

    The first step writes a ``run.json`` with ``kind`` and ``configuration``: from then on the folder belongs to this question. A
    block that replaces ``run.json`` keeps these two entries (``write_record``), and writes several files that belong together
    within ``renewed``. Raises what ``locked`` and ``claim`` raise.
    """
    folder = _real(folder)
    with locked(folder, wait):
        claim(folder, kind, configuration)
        check_writable(folder)
        finish(folder)
        for left in folder.glob(f".{NEW}-*"):
            shutil.rmtree(left, ignore_errors=True)
        if not (folder / RECORD).exists():
            write_record(folder, kind, configuration, {"command": command()})
        yield folder


def write_record(folder: Path, kind: str, configuration: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """``run.json``: what the run was (``record``), and to which question its folder belongs."""
    write_json(folder / RECORD, {"kind": kind, **record, "configuration": plain(configuration)})


@contextmanager
def renewed(folder: Path) -> Iterator[Path]:
    """A hidden folder inside ``folder`` (of ``grown``) to write into; its files take the places of those of the same names when the
    block ends well, and are removed when it does not. What a kill leaves half done is finished by ``finish``."""
    staging = Path(tempfile.mkdtemp(prefix=f".{NEW}-", dir=folder))
    try:
        yield staging
        staging.rename(folder / READY)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    finish(folder)


def finish(folder: Path) -> None:
    """Put what a run has left ready in ``folder`` into its place."""
    ready = folder / READY
    if ready.is_symlink() or not ready.is_dir():  # a stranger's link would lead outside
        return
    for path in sorted(ready.iterdir()):
        with suppress(FileNotFoundError):  # another process does the same
            path.replace(folder / path.name)
    with suppress(OSError):
        ready.rmdir()


def _swap(new: Path, folder: Path) -> None:
    """``new`` in place of ``folder``, whose files that no run wrote it gets as well."""
    if not folder.exists():
        new.rename(folder)
        return
    _keep(folder, new)
    if not _exchange(new, folder):  # then there is a moment without ``folder``, which ``recover`` puts right
        old = beside(folder, OLD)
        folder.rename(old / folder.name)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two folders in one step; False where that cannot be done: it is Linux's, and not of every file system."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0


def beside(folder: Path, part: str) -> Path:
    """A new hidden folder beside ``folder``, under a name that ``recover`` knows; ``part`` is NEW or OLD."""
    return Path(tempfile.mkdtemp(prefix=f".{folder.name}-{part}-", dir=folder.parent))


def recover(folder: Path) -> None:
    """Put right what killed runs left beside ``folder`` (a real path), which the caller holds with ``locked``.

    A folder that was moved away comes back, where its successor does not stand already.
    """
    name = re.compile(rf"\.{re.escape(folder.name)}-({NEW}|{OLD})-[a-z0-9_]{{8}}")  # as ``beside`` makes it
    for path in sorted(folder.parent.iterdir()):
        found = name.fullmatch(path.name)
        if found is None or path.is_symlink():
            continue
        before = path / folder.name
        if found[1] == OLD and before.is_dir() and not folder.exists():
            before.rename(folder)
        shutil.rmtree(path, ignore_errors=True)


def _keep(before: Path, folder: Path) -> None:
    """Give ``folder`` the files of ``before`` that no run wrote and that it lacks, without taking them from ``before``."""
    try:
        written = set(read_json(before / RECORD)["files"])
    except (OSError, ValueError, KeyError, TypeError):
        written = set()
    for path in before.iterdir():
        if path.name in written or (folder / path.name).exists():
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, folder / path.name, symlinks=True, copy_function=_link)
        else:
            _link(path, folder / path.name)


def _link(old: Path | str, new: Path | str) -> None:
    """The same file under another name, or a copy where the file system has no such links."""
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError:
        shutil.copy2(old, new, follow_symlinks=False)


def _real(folder: Path) -> Path:
    """The folder itself where ``folder`` is, or lies below, a link."""
    return Path(os.path.realpath(folder))


@contextmanager
def _made(folder: Path, shown: Path) -> Iterator[None]:
    """``folder`` with its parents; those that were made are removed again where they are empty after the block."""
    try:
        made = _make(folder)
    except OSError as error:
        raise OSError(f"cannot write {shown}: {error.strerror or error}; choose another folder") from error
    try:
        yield
    finally:
        for path in made:  # nothing stays of a run that failed
            _remove_if_empty(path)


@contextmanager
def _held(file: Path, folder: Path, wait: float = 0) -> Iterator[None]:
    """The lock ``file`` of ``folder``; it is removed at the end."""
    lock = FileLock(file)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise OSError(f"another run is writing to {folder}; wait for it, or choose another output folder") from None
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is held: who comes now makes a new one
        lock.release()


def _make(folder: Path) -> list[Path]:
    """Make ``folder`` with its parents; those that were made, the deepest first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return


PACKAGES: tuple[str, ...] = ("cnnf-brain", "torch", "torchvision", "numpy", "scipy", "xarray")
PACKAGES += ("scikit-learn", "safetensors", "brainscore-vision")


def provenance(device: torch.device, started: float) -> dict[str, Any]:
    """What every run's record says: command, commit, versions, machine, and the seconds since ``started`` (``time.time``)."""
    return {
        "command": command(),
        "commit": commit(),
        "versions": versions(),
        "machine": machine(device),
        "seconds": round(time.time() - started, 1),
    }


def read_record(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in the file ``name`` of a run's folder.

    Raises
    ------
    FileNotFoundError
        No such folder.
    ValueError
        The file is missing, damaged, or no JSON object.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; name a folder that a run has left")
    try:
        return read_json(Path(folder, name), "do the run again")
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is incomplete: no {name}; do the run again") from error


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
