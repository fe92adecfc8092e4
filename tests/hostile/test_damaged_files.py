"""Every reader on files that this software wrote, damaged by hypothesis: a clear error or a right result, and nothing else.

Never another exception, a hang, a file written, or content that is not what the checksums say. ``make test`` draws few examples,
``make test-all`` 10,000 over all readers.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from hostile.damage import Damage, damaged, damages
from hostile.files import KINDS, Kind
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from cnnf_brain.checks import RunError

EXAMPLES = 10_000  # over all kinds
FEW = 20  # of each kind
PATIENCE = 20, 300  # seconds of the processor, and of the clock, for what takes far less
CLEAR = (ValueError, OSError, RunError)


class Hang(BaseException):
    """A reader did not come to an end."""


@contextmanager
def in_time() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = {number: signal.signal(number, ring) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, PATIENCE[0])
    signal.alarm(PATIENCE[1])
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def outcome(kind: Kind, folder: Path, path: Path) -> object:
    """What is read, or the clear error."""
    try:
        with warnings.catch_warnings(), in_time():
            warnings.simplefilter("ignore")
            return kind.read(folder, path)
    except CLEAR as error:
        return error


def check(kind: Kind, folder: Path, path: Path, whole: bytes, changes: list[Damage]) -> None:
    content = damaged(path.name, whole, changes)
    path.write_bytes(content)
    before = listing(folder)
    found = outcome(kind, folder, path)
    if isinstance(found, Exception):
        assert not isinstance(found, MemoryError)
        assert any(name in str(found) for name in (path.name, str(folder), repr(path.stem))), f"nameless: {found!r}"
        assert len(str(found)) < 4000
    after = listing(folder)
    if kind.writes:
        del before[str(path)], after[str(path)]
    assert before == after
    path.write_bytes(whole)
    if kind.exact and not isinstance(found, Exception) and found is not None:
        assert found == kind.read(folder, path)


def explore(kind: Kind, folder: Path, examples: int) -> None:
    """``examples`` damaged files of a kind; the same ones in each run."""
    paths = kind.make(folder)
    whole = {path: path.read_bytes() for path in paths}
    sound = {path: outcome(kind, folder, path) for path in paths}
    assert not any(isinstance(found, Exception) for found in sound.values()), sound
    whole = {path: path.read_bytes() for path in paths}

    @seed(0)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(path=st.sampled_from(paths), changes=damages())
    def run(path: Path, changes: list[Damage]) -> None:
        try:
            check(kind, folder, path, whole[path], changes)
        finally:
            path.write_bytes(whole[path])

    run()


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_a_clear_error_or_read_rightly(name: str, tmp_path: Path, cache: Path, sketched: object) -> None:
    (tmp_path / "files").mkdir()
    explore(KINDS[name], tmp_path / "files", FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_so_are_ten_thousand(name: str, tmp_path: Path, cache: Path, sketched: object) -> None:
    (tmp_path / "files").mkdir()
    whole = sum(kind.weight for kind in KINDS.values())
    explore(KINDS[name], tmp_path / "files", round(EXAMPLES * KINDS[name].weight / whole))
