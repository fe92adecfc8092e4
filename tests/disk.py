"""The calls of this process that change the disk: counted, and disturbed from the n-th on, as kill -9 and a full disk do it."""

from __future__ import annotations

import builtins
import errno
import io
import itertools
import os
import resource
import signal
from collections.abc import Callable
from typing import Any

from cnnf_brain import results

MOVES = ("rename", "replace", "link", "mkdir", "rmdir", "unlink")  # of names
WRITES = ("truncate", "fsync", "write")  # of content; beside these, opening to write, and what files write
FREES = ("rmdir", "unlink")  # a full disk does not refuse them
Disturb = Callable[[int, str, Any], object]
Ask = Callable[[str, Any], None]


def watch(disturb: Disturb) -> None:
    """From now on, before each call that changes the disk, ``disturb(number, name, path)`` is called; for this process, which
    should be one that ends soon. What C libraries write (NetCDF) passes by, but for the file that is made for it."""
    numbers = itertools.count()

    def ask(name: str, path: Any) -> None:
        disturb(next(numbers), name, path)

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            ask(name, given[-1] if name in ("rename", "replace", "link") else given[0])
            return real(*given, **more)

        return call

    for name in (*MOVES, *WRITES):
        setattr(os, name, watched(name, getattr(os, name)))
    results._exchange = watched("exchange", results._exchange)
    os.open = _opened(os.open, ask)
    builtins.open = io.open = _files(io.open, ask)


def _opened(real: Callable[..., int], ask: Ask) -> Callable[..., int]:
    """os.open that asks before it makes a file."""

    def call(path: Any, flags: int, *given: Any, **more: Any) -> int:
        if flags & (os.O_CREAT | getattr(os, "O_TMPFILE", 0) & ~os.O_DIRECTORY):
            ask("open", path)
        return real(path, flags, *given, **more)

    return call


def _files(real: Callable[..., Any], ask: Ask) -> Callable[..., Any]:
    """``open`` that asks before it makes a file, and whose files ask before the system writes."""

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            try:
                ask("write", self.name)
            except OSError:  # what fits is written
                super().write(memoryview(data).cast("B")[: memoryview(data).nbytes // 2])
                raise
            return super().write(data)

    def call(
        file: Any, mode: str = "r", buffering: int = -1, *text: Any, closefd: bool = True, opener: Any = None, **more: Any
    ) -> Any:
        if not set(mode) & set("wxa+"):
            return real(file, mode, buffering, *text, closefd=closefd, opener=opener, **more)
        if not isinstance(file, int):
            ask("open", file)
        raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        whole: Any = raw if not buffering else (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        return whole if "b" in mode else io.TextIOWrapper(whole, *text, **more)

    return call


def kill(*_: Any) -> None:
    """As kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after(seconds: float) -> None:
    """Kill this process so many seconds from now: by an alarm that nobody handles, which ends it as kill -9 does."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def refuse(_: int, name: str, path: Any) -> None:
    """As a full disk does."""
    if name not in FREES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def limit(size: int) -> None:
    """No file of this process grows beyond ``size`` bytes any more, whoever writes it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def die_at(moment: int) -> None:
    """Kill this process before the call number ``moment`` that changes the disk."""
    watch(lambda number, *_: kill() if number >= moment else None)
