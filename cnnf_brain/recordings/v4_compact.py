"""V4 sessions of the public repository cowleygroup/V4_compact_models (Cowley et al.), from a folder or downloaded.

A folder has the repository's layout::

    [data_V4_responses/]images/images_SESSION.zip
    [data_V4_responses/]responses_repeat_averaged/responses_SESSION.npy   (n_sites, n_images)
    [data_V4_responses/]responses_raw/responses_SESSION.npy               (n_sites, n_images, n_repeats), NaN-padded

Responses are spikes in 100 ms; column i belongs to the i-th image of the archive in the order of file names. The data
are under GPL-3 and come from the repository; nothing of them is part of this package.
"""

from __future__ import annotations

import re
import sys
import tomllib
import urllib.error
import zipfile
from functools import partial
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cnnf_brain.checks import unknown
from cnnf_brain.io import cache_folder, check_claim, download, download_size, open_file, read_array, reading
from cnnf_brain.recordings.record import Recordings
from cnnf_brain.types import Array, Images

NAME = "V4_compact_models"
REGION = "V4"
COMMIT = "f4552ad9d34a466ebc66658f72a08a8e5038f1cf"
BASE_URL = f"https://raw.githubusercontent.com/cowleygroup/V4_compact_models/{COMMIT}"

_TOP = "data_V4_responses"
_KINDS = {
    "images": "images/images_{}.zip",
    "averages": "responses_repeat_averaged/responses_{}.npy",
    "raw": "responses_raw/responses_{}.npy",
}


class Session(NamedTuple):
    """What the repository's table says of a session; ``n_images`` None where its files contradict each other."""

    animal: str
    n_sites: int
    n_images: int | None = None


_KNOWN = tomllib.loads(resources.files("cnnf_brain.recordings").joinpath("v4_compact.toml").read_text(encoding="utf-8"))
SESSIONS = {name: Session(*row) for name, row in _KNOWN["sessions"].items()}
SHA256: dict[str, str] = _KNOWN["sha256"]


def load_v4_compact(folder: str | Path | None, session: str | None) -> Recordings:
    """One session, with single repeats where they are there; ``subjects`` are the animals (WE, PE or RA).

    ``folder`` has the repository's layout; None fetches the session once into the cache, with progress. ``session``: its name, for
    instance ``201025``; None takes the only session of a folder that has one.

    A download is pinned to one commit. The files in ``SHA256`` are checked against their hash. No hash is known of the others:
    they must be readable as a whole, have the numbers of sites and images of the repository's table (where it does not
    contradict itself), and the mean over raw repeats must be the published average.

    Raises
    ------
    ValueError
        The session does not exist (those that do are listed), a file is damaged, or numbers differ.
    OSError
        The folder does not exist, or the download fails, is cut off, or is not what was published.
    """
    chosen = choose_session(folder, session)
    if folder is None:
        top, source = _fetch(chosen), f"{NAME}:{chosen}"
    else:
        top, source = _top(Path(folder)), f"{folder}:{chosen}"
    images = _read_images(top / _KINDS["images"].format(chosen))
    arrays = [_read_array(top / _KINDS[kind].format(chosen), source) for kind in ("averages", "raw")]
    responses, *repeats = [array.swapaxes(0, 1) for array in arrays if array is not None]
    n_sites, known = responses.shape[1], SESSIONS.get(chosen)
    return Recordings.from_arrays(
        responses,
        images,
        region=REGION,
        repeats=repeats[0] if repeats else None,
        source=source,
        site_ids=[f"{chosen}-{site}" for site in range(n_sites)],
        subjects=None if known is None else [known.animal] * n_sites,
        sessions=[chosen] * n_sites,
    )


def is_v4_compact(folder: Path) -> bool:
    """Whether a folder has the repository's layout."""
    top = _top(folder)
    return (top / "images").is_dir() and any((top / _KINDS[kind]).parent.is_dir() for kind in ("averages", "raw"))


def sessions_in(folder: str | Path) -> list[str]:
    """Names of the sessions in a folder that have both images and responses, sorted."""
    top = _top(Path(folder))
    if not top.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; expected a folder in the layout of {NAME}")
    images, averages, raw = (
        {path.stem.split("_", 1)[1] for path in top.glob(pattern.format("*"))} for pattern in _KINDS.values()
    )
    return sorted(images & (averages | raw))


def _top(folder: Path) -> Path:
    """The folder that holds ``images`` and ``responses_*``."""
    return folder / _TOP if (folder / _TOP).is_dir() else folder


def choose_session(folder: str | Path | None, session: str | None) -> str:
    """The session that `load_v4_compact` takes, found without a download; its errors about folders and sessions."""
    known, where = (list(SESSIONS), NAME) if folder is None else (sessions_in(folder), str(folder))
    if session is None and len(known) == 1:
        return known[0]
    if session is None:
        raise ValueError(f"{where}: no session is named; it has {', '.join(known) or 'none'}. Name one: {where}:SESSION")
    if session not in known:
        raise unknown("session", session, known, where=where)
    return session


def _read_images(path: Path) -> Images:
    """All images of an archive, in natural order of their file names, wherever in it they lie."""
    encoded = sorted(_read_zip(path).items(), key=lambda item: _natural(item[0]))
    return Images(tuple(PurePosixPath(name).stem for name, _ in encoded), lambda index: encoded[index][1], str(path))


def _read_zip(path: Path) -> dict[str, bytes]:
    """Image members and their bytes; reading checks each member's CRC."""
    with (
        reading(path, "a zip file", "delete it and get it again"),
        open_file(path) as file,
        zipfile.ZipFile(file) as archive,
    ):
        members = [one for one in archive.infolist() if _is_image(PurePosixPath(one.filename))]
        check_claim(path, sum(one.file_size for one in members))
        encoded = {one.filename: archive.read(one) for one in members}
    if not encoded:
        raise ValueError(f"{path} holds no images (.jpg, .jpeg or .png)")
    return encoded


def _is_image(name: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.parts)
    return name.suffix.lower() in {".jpg", ".jpeg", ".png"} and not hidden


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that puts image9 before image10; the folder inside the archive does not count."""
    parts = re.split(r"(\d+)", PurePosixPath(name).stem)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _read_array(path: Path, source: str) -> Array | None:
    """An array of responses, None where there is no such file."""
    if not path.exists():
        return None
    array = read_array(path, "delete it and get it again")
    if array.ndim not in (2, 3):
        raise ValueError(f"{source}: {path} holds no array (n_sites, n_images[, n_repeats])")
    return array


def _fetch(session: str) -> Path:
    """The cache folder, with the files of one session in it."""
    folder = cache_folder("recordings", f"{NAME}-{COMMIT[:12]}", _TOP)
    for kind, pattern in _KINDS.items():
        name = pattern.format(session)
        target = folder / name
        absent = target.with_name(target.name + ".absent")
        target.parent.mkdir(parents=True, exist_ok=True)
        if absent.exists() or (target.exists() and name not in SHA256):
            continue  # it was checked when it came
        if kind == "raw" and not target.exists() and not _published(name):
            absent.touch()
            print(f"{NAME}:{session}: no single repeats are published, so there is no ceiling", file=sys.stderr)
            continue
        known = f"sha256:{SHA256[name]}" if name in SHA256 else None
        check = partial(_check_download, kind=kind, session=session)
        download(f"{BASE_URL}/{_TOP}/{name}", known, target.parent, target.name, check)
    return folder


def _published(name: str) -> bool:
    """Whether the repository has a file; an OSError where it cannot be asked."""
    try:
        download_size(f"{BASE_URL}/{_TOP}/{name}", timeout=10.0)
    except OSError as error:
        if isinstance(error.__cause__, urllib.error.HTTPError) and error.__cause__.code == 404:
            return False
        raise OSError(f"cannot download {BASE_URL}/{_TOP}/{name}: {error}; connect to the network") from error
    return True


def _check_download(path: Path, kind: str, session: str) -> None:
    """A ValueError where a file is damaged or not of the size in the table."""
    known = SESSIONS[session]
    if kind == "images":
        found = {"images": (len(_read_zip(path)), known.n_images)}
    else:
        array = _read_array(path, f"{NAME}:{session}")
        assert array is not None
        found = {"sites": (array.shape[0], known.n_sites), "images": (array.shape[1], known.n_images)}
    for what, (number, expected) in found.items():
        if expected not in (None, number):
            raise ValueError(f"session {session}: {kind} for {number} {what}, the repository's table says {expected}")
