"""Files: regular ones read, with their name in every error; written whole or not at all; hashes, the cache folder, downloads."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from cnnf_brain.checks import in_short

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

CACHE_VARIABLE = "CNNF_BRAIN_CACHE"
HELD = ".held"  # the lock of a hidden folder
# A pipe that nobody fills is not waited for; O_NONBLOCK and O_CLOEXEC are unknown to Windows, O_BINARY to all others.
READ = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_CLOEXEC", "O_NONBLOCK", "O_BINARY"))
OPENING = 10.0  # seconds that the opening of a NetCDF file may take
_SOUND: set[tuple[int, ...]] = set()  # NetCDF files that this process has opened or written
PACKED, ROOM = 100, 2**26  # a file holds at most so many times its own size when it is unpacked, and so many bytes besides


def cache_folder(*parts: str) -> Path:
    """``$CNNF_BRAIN_CACHE`` (default ``$XDG_CACHE_HOME/cnnf-brain``, else ``~/.cache/cnnf-brain``) / parts, created."""
    base = os.environ.get(CACHE_VARIABLE)
    if not base:  # an empty variable is as none: it would name the current folder
        base = str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cnnf-brain")
    folder = Path(base, *parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"the cache folder {folder} cannot be made ({error.strerror}); set {CACHE_VARIABLE} to another"
        ) from error
    return folder


def open_file(path: str | Path) -> BufferedReader:
    """A regular file to read from; an OSError for anything else under its name (a pipe, a device), which might never end."""
    handle = os.open(path, READ)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file; give a file that lies on a disk", str(path))
    return open(handle, "rb")


def read_bytes(path: str | Path) -> bytes:
    """All of a regular file."""
    with open_file(path) as file:
        return file.read()


@contextmanager
def reading(path: str | Path, what: str, advice: str = "", kind: type[ValueError] = ValueError) -> Iterator[None]:
    """Whatever the readers of a file run into comes out as an error ``kind`` that names it; the system's own OSErrors pass."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # on damaged files, decoders raise whatever they run into
        # the numbers of the NetCDF library's own errors are below 0
        systems = isinstance(error, OSError) and error.filename is not None and (error.errno or 0) > 0
        if systems or (isinstance(error, ValueError) and str(path) in str(error)):
            raise
        advice = advice or "it may be damaged or incomplete"
        raise kind(f"{path} cannot be read as {what} ({in_short(error)}); {advice}") from error


def check_claim(path: str | Path, claimed: int) -> None:
    """A ValueError where a file says that it unpacks to more bytes than its size admits, before memory is taken for them."""
    size = os.stat(path).st_size
    if claimed > PACKED * size + ROOM:
        raise ValueError(f"{path} has {size} bytes and says that it holds {claimed:.3g}: it is damaged; get it again")


def read_text(path: str | Path) -> str:
    """UTF-8 text; a ValueError for anything else."""
    with reading(path, "text in UTF-8"):
        return read_bytes(path).decode()


def read_json(path: str | Path, advice: str = "") -> dict[str, Any]:
    """The object in a JSON file; a ValueError where it is damaged or holds something else."""
    with reading(path, "JSON", advice):
        found = json.loads(read_text(path))
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, expected a JSON object; {advice or 'it may be damaged'}")
    return found


def read_json_lines(path: str | Path) -> tuple[list[dict[str, Any]], int]:
    """The objects in a file of JSON lines, and the number of lines that are none (a kill may cut a line short)."""
    lines = read_bytes(path).decode(errors="replace").splitlines()
    found = [content for content in map(parsed, lines) if isinstance(content, dict)]
    return found, len(lines) - len(found)


def parsed(text: str | bytes) -> Any:
    """The value of a JSON text, None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def read_array(path: str | Path, advice: str = "") -> np.ndarray[Any, Any]:
    """The array in a ``.npy`` file, whose size must be what its header says; pickles are never loaded."""
    with reading(path, "a NumPy array of numbers", advice):
        open_file(path).close()
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path of the same name, in a hidden folder beside ``path``; it becomes ``path`` when the block ends well, and is
    removed when it does not.

    Several processes may write ``path`` at once: the last one that ends stays, whole. What a killed writer left is removed by the
    next one. An OSError (disk full, read-only folder) is raised again with the path and what to do.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _hidden(path) as folder:
            temporary = folder / path.name
            temporary.touch()
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder",
        ) from error


@contextmanager
def _hidden(path: Path) -> Iterator[Path]:
    """A new hidden folder beside ``path``, held by a lock inside; those that nobody holds any more are removed first."""
    for left in path.parent.glob(f".{glob.escape(path.name)}-*/{HELD}"):
        with suppress(OSError), FileLock(left).acquire(timeout=0):
            shutil.rmtree(left.parent, ignore_errors=True)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        lock = FileLock(folder / HELD)
        try:
            lock.acquire(timeout=0)
            break
        except (Timeout, FileNotFoundError):  # another process took it for left behind
            continue
        except OSError:  # the disk is full, and without a lock inside nobody would remove the folder
            shutil.rmtree(folder, ignore_errors=True)
            raise
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a binary file that appears under ``path`` only when it is whole."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        write(file)


def write_text(path: Path, text: str) -> None:
    """UTF-8 text, whole or not at all."""
    write_whole(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented JSON, whole or not at all; NaN and infinity as null."""
    write_text(path, json.dumps(plain(content), indent=2, allow_nan=False) + "\n")


def check_opens(path: Path) -> None:
    """A ValueError where a NetCDF file is not opened within ``OPENING`` seconds.

    The C library never comes back from some damaged files, and nothing stops it. So a child process opens the file first, where
    there is fork; once for a file that stays as it is, for a large process takes 0.1 s to fork.
    """
    import netCDF4

    if not hasattr(os, "fork") or _state(path) in _SOUND:
        return
    if not (child := os.fork()):
        try:
            netCDF4.Dataset(path).close()
        finally:
            os._exit(0)  # what is wrong is told by the parent's own attempt
    until = time.monotonic() + OPENING
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise ValueError(f"{path} could not be opened within {OPENING:.0f} s: it is damaged; get it again")
        time.sleep(0.001)
    if os.WIFSIGNALED(ended[1]):
        raise ValueError(
            f"{path} ends a process that opens it, with signal {os.WTERMSIG(ended[1])}: it is damaged; get it again"
        )
    _SOUND.add(_state(path))


def _state(path: Path) -> tuple[int, ...]:
    """What changes where a file does."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def read_netcdf(path: Path) -> xr.Dataset:
    """A NetCDF file in memory; a ValueError where it cannot be read, or claims to hold more than it can."""
    import netCDF4
    import xarray

    with reading(path, "NetCDF"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # xarray 2022 looks for its engines in an old way
        open_file(path).close()
        check_opens(path)
        with netCDF4.Dataset(path) as file:
            sizes = [math.prod(one.shape) * max(8, np.dtype(one.dtype).itemsize) for one in file.variables.values()]
        check_claim(path, sum(sizes))
        with xarray.open_dataset(path, engine="netcdf4") as file:
            found: xr.Dataset = file.load()
    return found


def plain(value: Any) -> Any:
    """JSON's own types; NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def write_csv(path: Path, table: pd.DataFrame | Sequence[Mapping[str, Any]]) -> None:
    """A table, or rows with the same columns, whole or not at all; numbers in full, empty cells for NaN and infinity."""
    import pandas as pd

    frame = pd.DataFrame(table)
    write_text(path, frame.where(~frame.isin([math.inf, -math.inf])).to_csv(index=False, lineterminator="\n"))


def write_netcdf(path: Path, data: xr.Dataset) -> None:
    """A NetCDF file, whole or not at all; numbers are compressed."""
    packed = {name: {"zlib": True} for name in data.data_vars if data[name].dtype.kind in "fiub"}
    with atomic_path(path) as temporary:
        try:
            data.to_netcdf(temporary, engine="netcdf4", encoding=packed)
        except RuntimeError as error:  # how the NetCDF library says that the disk is full
            raise OSError(errno.EIO, str(error)) from error
    _SOUND.add(_state(path))


def check_writable(folder: Path, room: int = 2**20) -> None:
    """An OSError now rather than after hours of work where ``folder`` cannot be written or has no room (bytes) left."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # without a name, where the system can: nothing stays of a killed run
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(room))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write to {folder}: {error.strerror or error}; free space or choose another folder"
        ) from error


def download_size(url: str, timeout: float = 2.0) -> int | None:
    """Bytes behind ``url`` by a HEAD request, None where the server does not say.

    Raises OSError within about ``timeout`` seconds where it cannot be reached.
    """
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            length = answer.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        raise OSError(f"{url} answers {error.code} {error.reason}") from error
    return int(length) if length else None


def ask_sizes(urls: Sequence[str], patience: float = 2.0) -> tuple[list[int | None], list[str]]:
    """Sizes behind all ``urls`` (None where not stated) and the failures, within about ``patience`` seconds.

    In threads, since the time that looking up a host takes offline cannot be limited.
    """
    sizes: dict[str, int | None] = {}
    failures: dict[str, str] = {}

    def ask(url: str) -> None:
        try:
            sizes[url] = download_size(url, timeout=patience)
        except OSError as error:
            failures[url] = str(error)

    threads = [threading.Thread(target=ask, args=(url,), daemon=True) for url in urls]
    for thread in threads:
        thread.start()
    end = time.monotonic() + patience
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    late = [f"no answer from {url} within {patience:.0f} s" for url in urls if url not in sizes and url not in failures]
    return list(sizes.values()), [*failures.values(), *late]


def download(url: str, known_hash: str | None, folder: Path, name: str, check: Callable[[Path], None] | None = None) -> Path:
    """``folder/name``, fetched once from ``url``, with progress, checked against ``sha256:...`` (``md5:...``).

    ``check`` looks at a fetched file before it gets its name and raises ValueError where it is wrong (for
    files whose hash is not known). A truncated or altered download never stands under the final name: it raises
    an OSError that says so.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")  # what it says of each download is said here

    target = Path(folder) / name
    if not target.exists():
        try:
            size = download_size(url, timeout=10.0)
        except OSError as error:
            raise OSError(f"cannot download {url}: {error}; connect to the network or place the file at {target}") from error
        megabytes = "unknown size" if size is None else f"{size / 1e6:.1f} MB"
        print(f"downloading {url} ({megabytes}) to {target}", file=sys.stderr)
    fetch = pooch.HTTPDownloader(progressbar=sys.stderr.isatty())

    def fetch_and_check(url: str, output_file: str, mother: object) -> None:
        fetch(url, output_file, mother)
        if check is not None:
            check(Path(output_file))

    try:
        return Path(pooch.retrieve(url, known_hash, fname=name, path=folder, downloader=fetch_and_check))
    except (ValueError, OSError) as error:
        raise OSError(
            f"{url}: the download failed or is not the file that was published ({error}); "
            f"try again, or place the right file{f' ({known_hash})' if known_hash else ''} at {target}"
        ) from error


def short_hash(content: object, digits: int = 8) -> str:
    """Hexadecimal digits of the SHA-256 over the JSON form of ``content``."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:digits]


def array_hash(array: np.ndarray[Any, Any]) -> str:
    """SHA-256 over an array's shape, type and values."""
    header = f"{array.dtype.str} {array.shape}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()
