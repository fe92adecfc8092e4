"""Pages of runs: ``runs`` is what a page shows, ``page`` the HTML file, ``readers`` finds in a run's folder what its page shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cnnf_brain.checks import in_short

PAGE = "report.html"  # beside the tables of every run


class NotDrawnError(OSError):
    """All results are written, but a figure or page could not be made of them."""


def attempt(files: str, make: Callable[[], object]) -> list[NotDrawnError]:
    """Make ``files`` (in words) of results that are written; where they could not be made, an error that says why."""
    try:
        make()
    except Exception as error:  # whatever drawing raises, the results are worth more
        missing = NotDrawnError(f"no {files} ({in_short(error)})")
        missing.__cause__ = error
        return [missing]
    return []


def tell(folder: Path, missing: Sequence[NotDrawnError], how: str) -> None:
    """A NotDrawnError where files of ``folder`` are missing: which (``attempt``), and how they are made."""
    if missing:
        which = ", ".join(map(str, missing))
        raise NotDrawnError(f"{folder} has all results, but {which}; to make what is missing: {how}") from missing[0]
