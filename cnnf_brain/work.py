"""Work that is cut into tasks, each a file: made once, by one process or several, stopped and continued.

Files appear whole or not at all. Who works at a file holds its lock, which the system releases when a process dies: a kill
loses the task in hand and no other.
"""

from __future__ import annotations

import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from cnnf_brain.io import short_hash

AGAIN = "remove it, and the same command makes it again"  # of a damaged file
DIGITS = 12  # of the hashes in names
POLL = 1.0  # seconds between looks at what other processes do
Tell = Callable[[float, float, str], None]


class Interrupted(Exception):
    """A stop was requested within a task, of which nothing is kept."""


class Stop:
    """A context in which SIGTERM and SIGINT set ``requested`` and end nothing; only a second SIGINT does."""

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None

    def __enter__(self) -> Stop:
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number)


class Task(ABC):
    """One file to be made."""

    @property
    @abstractmethod
    def path(self) -> Path:
        """The file, which stands when the task is done."""

    @property
    @abstractmethod
    def cost(self) -> float:
        """In any unit that all tasks of the work share."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What is done, in words."""

    @abstractmethod
    def make(self, stop: Stop | None) -> None:
        """Make the file; raises Interrupted where a stop was requested."""

    def ready(self) -> bool:
        """Whether all that it needs is there."""
        return True

    def outdated(self) -> str:
        """Why its file, which stands, must be made again; empty where it must not."""
        return ""

    def done(self) -> bool:
        """Whether its file stands and is up to date."""
        return self.path.exists() and not self.outdated()

    def hopeless(self) -> bool:
        """Whether it is left out of this work, since it, or what it needs, has failed."""
        return False


def file_name(words: str, identity: object, suffix: str) -> str:
    """What a task's file is called: in words, and by all that decides its content, so that another content has another name."""
    name = "".join(c if c.isalnum() or c in ".-" else "_" for c in words.lower())[:150]
    return f"{name}-{short_hash(identity, DIGITS)}{suffix}"


def read_once(read: Callable[[Path], Any], path: Path) -> Any:
    """What ``read`` finds in a file, until the file is written anew."""
    return _read_once(read, path, path.stat().st_mtime_ns)


@lru_cache(maxsize=10_000)
def _read_once(read: Callable[[Path], Any], path: Path, _written_at: int) -> Any:
    return read(path)


def work(
    todo: Sequence[Task],
    stop: Stop | None,
    tell: Tell,
    *,
    poll: float = POLL,
    failed: Callable[[Task, Exception], None] | None = None,
) -> None:
    """Do what is missing or out of date of ``todo``; raises Interrupted where a stop was requested.

    Tasks that another process holds are passed over and awaited at the end, but for those that are hopeless.

    Parameters
    ----------
    todo
        All tasks, in the order in which they are tried.
    stop
        Asked before each task, and within it.
    tell
        Called before each task with the costs that are done, those of all tasks, and a title.
    poll
        Seconds between looks at what other processes do.
    failed
        Called with a task and its error; the others go on. It must make the task hopeless. None: the error is raised.
    """
    total = sum(task.cost for task in todo)
    while missing := [task for task in todo if not (task.done() or task.hopeless())]:
        behind, moved = total - sum(task.cost for task in missing), False
        for task in missing:
            made = _do(task, stop, lambda title, behind=behind: tell(behind, total, title), failed)  # type: ignore[misc]
            moved = moved or made
            if made or task.done():
                behind += task.cost
        if not moved and not all(task.done() or task.hopeless() for task in todo):
            time.sleep(poll)
    tell(total, total, "finished")


def _do(
    task: Task, stop: Stop | None, begin: Callable[[str], None], failed: Callable[[Task, Exception], None] | None
) -> bool:
    """Make the file of ``task``; False where it was made meanwhile, cannot be made yet, or another process is at it."""
    if stop is not None and stop.requested:
        raise Interrupted
    if task.done() or task.hopeless() or not task.ready():
        return False
    task.path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with claimed(task.path):
            if task.done() or task.hopeless():
                return False
            tell_outdated([task], "made again")
            begin(task.title)
            _make(task, stop, failed)
            return True
    except Timeout:
        return False


def claimed(path: Path) -> FileLock:
    """The lock of a task's file, held within ``with``; a ``filelock.Timeout`` there where another process holds it."""
    return FileLock(path.parent / f".{path.name}.lock", timeout=0)


def _make(task: Task, stop: Stop | None, failed: Callable[[Task, Exception], None] | None) -> None:
    try:
        task.make(stop)
    except Interrupted:
        raise
    except Exception as error:
        if failed is None:
            raise
        failed(task, error)


def tell_outdated(todo: Sequence[Task], consequence: str) -> None:
    """Say on stderr which files are out of date, and what follows from it."""
    for task in todo:
        if task.path.exists() and (why := task.outdated()):
            print(f"{task.path}: {why}; {consequence}", file=sys.stderr)
