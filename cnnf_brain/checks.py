"""What several modules check alike: names (what was given, what is known, what was probably meant), what differs between
two configurations, labels of rows and columns, which sites are constant, free memory, the memory that was
used, and what a network's code raises."""

from __future__ import annotations

import difflib
import importlib.metadata
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np

CONSTANT = 1e-12  # of the largest absolute value; rounding stays below, a response that varies lies far above
GROUP = Path("/sys/fs/cgroup")  # of this process, in a container on Linux


class RunError(RuntimeError):
    """Something of the user's world failed during a run, and no argument was wrong: a model, images, a process."""


class ModelError(RunError):
    """A network could not be run. Names the network, the shape of its batch, and what its code raised."""


class running(AbstractContextManager[None]):
    """Whatever the network ``name`` raises on a batch of ``shape`` comes out as a ModelError; the ``known`` errors pass.

    A class, since a generator would let a StopIteration of the network through.
    """

    def __init__(self, name: str, shape: Sequence[int], *known: type[Exception]) -> None:
        self.name, self.shape = name, shape
        self.known: tuple[type[Exception], ...] = (RunError, *known)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, self.known):
            raise ModelError(
                f"{self.name} cannot be run on images of shape {tuple(self.shape[1:])}, {self.shape[0]} at once "
                f"({in_short(error)}); it may need another image size or number of channels, or smaller batches"
            ) from error


def in_short(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    said = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def near(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The known names nearest to ``name``: by letters, whatever their case, or else those that begin with it."""
    by_lower = {other.lower(): other for other in known}
    found = difflib.get_close_matches(name.lower(), list(by_lower), n=n, cutoff=0.4)
    found = found or [other for other in by_lower if other.startswith(name.lower())][:n]
    return [by_lower[other] for other in found]


def unknown(what: str, name: str, known: Iterable[str], where: str = "") -> ValueError:
    """A ValueError: ``layer 'x' is not in vgg16; did you mean 'y'? Known: ...`` (long lists are cut)."""
    known = list(known)
    meant = near(name, known)
    hint = f"; did you mean {' or '.join(map(repr, meant))}?" if meant else "."
    listed = ", ".join(known[:40]) + (f", … ({len(known)} in all)" if len(known) > 40 else "")
    return ValueError(f"{what} {name!r} is not known{' in ' + where if where else ''}{hint} Known: {listed or 'none'}")


def offered(kind: str) -> dict[str, importlib.metadata.EntryPoint]:
    """What installed packages add to a ``kind`` (``networks``, ``recordings``, ``metrics``, ``attacks``), by name: their entry
    points of the group ``cnnf_brain.KIND``. A ValueError where two packages add the same name."""
    found: dict[str, importlib.metadata.EntryPoint] = {}
    for point in importlib.metadata.entry_points(group=f"cnnf_brain.{kind}"):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise ValueError(
                f"{kind}: the name {point.name!r} is added by two packages, as {other.value} and as {point.value}; remove one"
            )
    return found


def load_offered(kind: str, name: str) -> Any:
    """The object behind an entry point of ``offered``; an ImportError that names it where it cannot be imported."""
    point = offered(kind)[name]
    try:
        return point.load()
    except Exception as error:
        raise ImportError(
            f"{name!r} ({point.value}), which an installed package adds to the {kind}, cannot be imported ({in_short(error)}); "
            "mend or remove that package"
        ) from error


def own_or_offered(kind: str, name: str, own: Mapping[str, Any]) -> Any:
    """``own[name]``, else what an installed package adds to a ``kind`` under that name; a ValueError where there is neither."""
    if name in own:
        return own[name]
    added = offered(kind)
    if name not in added:
        raise unknown(kind.removesuffix("s"), name, [*own, *added])
    return load_offered(kind, name)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``name: old there, new now`` for every entry of two configurations that differs (nested ones as ``a.b``)."""
    found = []
    for name in [*old, *(name for name in new if name not in old)]:
        a, b = old.get(name, "absent"), new.get(name, "absent")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += [f"{name}.{text}" for text in differences(a, b)]
        elif a != b:
            found.append(f"{name}: {a} there, {b} now")
    return found


def check_text(what: str, text: str) -> str:
    """``text``; a ValueError where it holds what no file of results can: control characters, or bytes that are no text (as a file's
    name may)."""
    wrong = next((sign for sign in text if unicodedata.category(sign) in ("Cc", "Cs")), None)
    if wrong is not None:
        raise ValueError(f"{what} {text!r} holds the character {wrong!r}, which is no text; rename it")
    return text


def labels_of(what: str, given: Sequence[Any] | np.ndarray[Any, Any], n: int, where: str) -> list[str]:
    """``n`` labels as text. A ValueError for another number, for a single text, for control characters, and for ids (``..._ids``)
    that are not unique."""
    if isinstance(given, (str, bytes)):
        raise ValueError(f"{where}: {what} are given as the single text {given!r}; expected a list of {n}, one for each")
    labels = [check_text(f"{where}: one of {what},", str(label)) for label in given]
    if len(labels) != n:
        raise ValueError(f"{where}: {len(labels)} {what} were given, expected {n}")
    if what.endswith("_ids") and len(set(labels)) < n:
        twice = sorted({label for label in labels if labels.count(label) > 1})
        raise ValueError(f"{where}: {what} occur more than once: {', '.join(twice[:5])}")
    return labels


def check_memory(needed: int, what: str) -> None:
    """An OSError now rather than after hours of work where ``needed`` bytes of memory are not free: of the machine, or of the
    container (control group) that this process is in."""
    import psutil

    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # no group, or one without a limit
        cached = dict(line.split() for line in (GROUP / "memory.stat").read_text().splitlines())["file"]
        limit, used = (int((GROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used + int(cached))
    if needed > free:
        raise OSError(
            f"{what} takes {needed / 2**30:.3g} GiB of memory, and {free / 2**30:.3g} GiB are free; free memory, or take a machine "
            "with more of it"
        )


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        info = psutil.Process().memory_info()
        return int(getattr(info, "peak_wset", info.rss))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 2**10  # Linux counts in KiB


def is_constant(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Which columns are constant: along the first axis they vary by at most 1e-12 of their largest absolute value.

    The one definition for responses, for predictions and for the training images of PLS.

    Parameters
    ----------
    values : (n, ...) array
        At least one row.

    Returns
    -------
    (...) bool array
        False where a column holds NaN.
    """
    with np.errstate(invalid="ignore"):
        low, high = np.min(values, axis=0), np.max(values, axis=0)
        constant: np.ndarray[Any, Any] = high - low <= CONSTANT * np.maximum(np.abs(low), np.abs(high))
        return constant
