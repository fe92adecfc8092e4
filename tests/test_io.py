"""Whole files or none, tables, hashes, the cache folder, downloads from a local server."""

from __future__ import annotations

import errno
import hashlib
import http.server
import os
import shutil
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import xarray as xr

from cnnf_brain import io

CONTENT = b"recordings " * 1000
HASH = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNF_BRAIN_CACHE", str(tmp_path / "mine"))
    assert io.cache_folder("a", "b") == tmp_path / "mine" / "a" / "b"
    assert (tmp_path / "mine" / "a" / "b").is_dir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CNNF_BRAIN_CACHE", "")  # as if it were not set
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert io.cache_folder("a") == tmp_path / "xdg" / "cnnf-brain" / "a"
    assert sorted(os.listdir()) == ["mine", "xdg"]
    monkeypatch.delenv("CNNF_BRAIN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert io.cache_folder() == tmp_path / "xdg" / "cnnf-brain"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert io.cache_folder() == tmp_path / "home" / ".cache" / "cnnf-brain"


# Whole files


def test_a_whole_file_appears_with_the_usual_rights(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    io.write_whole(path, lambda file: file.write(b"first"))
    io.write_whole(path, lambda file: file.write(b"second"))
    assert path.read_bytes() == b"second"
    assert os.listdir(path.parent) == ["a.txt"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_the_temporary_file_has_the_name(tmp_path: Path) -> None:
    with io.atomic_path(tmp_path / "a.svg") as temporary:
        assert temporary.parent.parent == tmp_path
        assert temporary.parent.name.startswith(".a.svg-")
        assert temporary.name == "a.svg"
        assert not (tmp_path / "a.svg").exists()


@pytest.mark.parametrize(
    "error", [ValueError("broken"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")]
)
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: Any) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")

    def fails(file: Any) -> None:
        file.write(b"half of it")
        raise error

    with pytest.raises(type(error)) as caught:
        io.write_whole(path, fails)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.txt"]
    if isinstance(error, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert f"cannot write {path}: No space left on device; free space or choose another folder" in str(caught.value)


def not_a_folder(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "inside"


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot write .*choose another folder"):
        io.check_writable(not_a_folder(tmp_path))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot write"):
        io.check_writable(tmp_path / "out")


def test_a_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    io.check_writable(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_without_room_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io.tempfile, "TemporaryFile", lambda dir: open("/dev/full", "wb"))  # type: ignore[attr-defined] # noqa: SIM115
    with pytest.raises(OSError, match=r"cannot write .*No space left on device"):
        io.check_writable(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_processes_that_probe_and_write_at_once(tmp_path: Path) -> None:
    """On one folder and one file; the file is one of theirs, whole, and nothing else is left."""
    path = tmp_path / "entry.npz"

    def write(number: int) -> None:
        for _ in range(40):
            io.check_writable(tmp_path, 2**10)
            io.write_whole(path, lambda file: file.write(bytes([number]) * 100_000))

    assert tiny.processes(write, 6) == [0] * 6
    assert path.read_bytes() in [bytes([number]) * 100_000 for number in range(6)]
    assert os.listdir(tmp_path) == ["entry.npz"]


def test_what_killed_writers_left_is_removed_by_the_next_alone(tmp_path: Path) -> None:
    path = tmp_path / "scores.nc"

    def write(number: int) -> None:
        with io.atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    assert tiny.processes(write, 2) == [-signal.SIGKILL] * 2
    assert 1 <= len(os.listdir(tmp_path)) <= 2
    with io.atomic_path(path) as held:
        assert os.listdir(tmp_path) == [held.parent.name], "the killed ones' are gone"
        io.write_text(path, "b")
        held.write_text("a")
    assert path.read_text() == "a", "a writer that is alive was left alone"
    assert os.listdir(tmp_path) == ["scores.nc"]


# Hashes


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert io.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert io.short_hash({"a": 1, "b": [Path("x")]}) == io.short_hash({"b": [Path("x")], "a": 1})
    assert len({io.short_hash(one) for one in ({"a": 1}, {"a": 2}, ["a", 1])}) == 3


def test_array_hashes_see_shape_type_and_values() -> None:
    a = np.arange(6.0).reshape(2, 3)
    others = [a.reshape(3, 2), a.astype(np.float32), a + 1e-15, a.view(np.int64)]
    assert io.array_hash(a) == io.array_hash(np.asfortranarray(a))
    assert len({io.array_hash(one) for one in [a, *others]}) == 5


# Downloads


class Handler(http.server.BaseHTTPRequestHandler):
    """/whole, /altered, /truncated (its length is a lie), /hangs, /missing."""

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        body = {"/altered": CONTENT[:-1] + b"!", "/truncated": CONTENT[:500]}.get(self.path, CONTENT)
        self.answer(body)

    def answer(self, body: bytes) -> None:
        if self.path.startswith("/hangs"):
            self.server.stop.wait(20)  # type: ignore[attr-defined]
        self.send_response(404 if self.path == "/missing" else 200)
        if self.path != "/unsized":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a local server."""
    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http_server.stop = threading.Event()  # type: ignore[attr-defined]
    http_server.daemon_threads = True
    http_server.handle_error = lambda *about: None  # type: ignore[method-assign]  # who asked has gone
    thread = threading.Thread(target=http_server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http_server.server_port}"
    http_server.stop.set()  # type: ignore[attr-defined]
    http_server.shutdown()
    thread.join()
    http_server.server_close()


@pytest.fixture
def closed() -> str:
    """An address at which nothing listens."""
    return "http://127.0.0.1:9"


def test_a_download_is_fetched_once_with_its_size(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = io.download(f"{server}/whole", HASH, tmp_path, "a.nc")
    assert path == tmp_path / "a.nc"
    assert path.read_bytes() == CONTENT
    assert "(0.0 MB)" in capsys.readouterr().err
    assert io.download("http://127.0.0.1:9/gone", HASH, tmp_path, "a.nc") == path, "it is there already"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["altered", "truncated", "missing"])
def test_a_bad_download_never_stands_under_its_name(server: str, tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match=rf"{server}/{name}.*at {tmp_path}/a.nc"):
        io.download(f"{server}/{name}", HASH, tmp_path, "a.nc")
    assert os.listdir(tmp_path) == []


def test_a_download_of_unknown_hash_is_checked_before_it_gets_its_name(server: str, tmp_path: Path) -> None:
    def refuse(path: Path) -> None:
        assert path.read_bytes() == CONTENT
        raise ValueError("not what it should be")

    with pytest.raises(OSError, match="not what it should be"):
        io.download(f"{server}/whole", None, tmp_path, "a.nc", check=refuse)
    assert os.listdir(tmp_path) == []


def test_tables_are_written_in_full_and_empty_where_there_is_no_number(tmp_path: Path) -> None:
    rows = [{"name": "a, b", "x": 0.1 + 0.2, "n": 3, "holds": True}, {"name": "", "x": np.nan, "n": 4, "holds": False}]
    for table in (rows, pd.DataFrame(rows)):
        io.write_csv(tmp_path / "table.csv", table)
        text = (tmp_path / "table.csv").read_text()
        assert text == 'name,x,n,holds\n"a, b",0.30000000000000004,3,True\n,,4,False\n'
    io.write_csv(tmp_path / "table.csv", [{"x": np.inf, "y": "inf"}])
    assert (tmp_path / "table.csv").read_text() == "x,y\n,inf\n"


def test_datasets_are_read_as_they_were_written(tmp_path: Path) -> None:
    data = xr.Dataset({"x": ("row", [1.5, np.nan]), "name": ("row", ["a", "b"]), "n": ("row", [1, 2])}, attrs={"side": 7})
    io.write_netcdf(tmp_path / "data.nc", data)
    xr.testing.assert_identical(io.read_netcdf(tmp_path / "data.nc"), data)
    assert [path.name for path in tmp_path.iterdir()] == ["data.nc"]


def test_a_damaged_file_under_the_name_is_fetched_again(server: str, tmp_path: Path) -> None:
    (tmp_path / "a.nc").write_bytes(CONTENT[:100])
    assert io.download(f"{server}/whole", HASH, tmp_path, "a.nc").read_bytes() == CONTENT


def test_offline_a_download_says_where_the_file_may_be_placed(closed: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=rf"cannot download {closed}/x: .*place the file at {tmp_path}/a.nc"):
        io.download(f"{closed}/x", HASH, tmp_path, "a.nc")


def test_sizes(server: str, closed: str) -> None:
    assert io.download_size(f"{server}/whole") == len(CONTENT)
    assert io.download_size(f"{server}/unsized") is None
    with pytest.raises(OSError, match=r"/missing answers 404"):
        io.download_size(f"{server}/missing")
    assert io.ask_sizes([f"{server}/whole", f"{server}/whole?2"]) == ([len(CONTENT)] * 2, [])
    sizes, failures = io.ask_sizes([f"{server}/whole", f"{closed}/x", f"{server}/missing"])
    assert sizes == [len(CONTENT)]
    assert len(failures) == 2


def test_a_host_that_hangs_takes_no_longer_than_the_patience(server: str) -> None:
    start = time.monotonic()
    sizes, failures = io.ask_sizes([f"{server}/hangs", f"{server}/hangs?2", f"{server}/hangs?3"], patience=0.5)
    assert time.monotonic() - start < 10  # the server hangs for 20
    assert sizes == []
    assert len(failures) == 3


@pytest.mark.parametrize(
    ("opens", "limit", "said"),
    [
        (lambda _: time.sleep(600), 0.2, "could not be opened within 0 s"),
        (lambda _: os.kill(os.getpid(), signal.SIGKILL), 120, "signal 9"),  # a busy machine starts a process late
    ],
)
def test_a_file_that_its_library_does_not_survive(
    opens: Callable[[Path], object], limit: float, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netCDF4 = pytest.importorskip("netCDF4")
    io.write_netcdf(written := tmp_path / "a.nc", xr.Dataset({"r": ("row", np.zeros(3))}))
    path = Path(shutil.copy(written, tmp_path / "b.nc"))
    monkeypatch.setattr(netCDF4, "Dataset", opens)
    monkeypatch.setattr(io, "OPENING", limit)
    with pytest.raises(ValueError, match=said):
        io.read_netcdf(path)


def test_a_file_is_tried_by_a_process_of_its_own_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    fork = os.fork
    monkeypatch.setattr(os, "fork", lambda: tried.append(0) or fork())  # type: ignore[func-returns-value]
    io.write_netcdf(written := tmp_path / "a.nc", xr.Dataset({"r": ("row", np.zeros(3))}))
    assert io.read_netcdf(written)["r"].shape == (3,)
    assert len(tried) == 0
    copy = Path(shutil.copy(written, tmp_path / "b.nc"))
    for _ in range(2):
        assert io.read_netcdf(copy)["r"].shape == (3,)
    assert len(tried) == 1
    copy.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="NetCDF"):
        io.read_netcdf(copy)
    assert len(tried) == 2
