"""Small images, a session in the layout of V4_compact_models, and a local web server."""

from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image


def encode(value: int, kind: str = "PNG") -> bytes:
    """A one-coloured image whose grey level says which it is."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def image_files(tmp_path: Path) -> list[Path]:
    """Twelve images; grey level 10 i for image i."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    files = [folder / f"picture{i}.png" for i in range(12)]
    for i, file in enumerate(files):
        file.write_bytes(encode(10 * i))
    return files


@pytest.fixture
def repeats() -> npt.NDArray[Any]:
    """(12 stimuli, 5 sites, 4 repetitions), with one missing presentation."""
    values = np.random.default_rng(3).normal(size=(12, 5, 4))
    values[2, 3, 3] = np.nan
    return values


def write_session(
    top: Path, session: str, raw: npt.NDArray[Any] | None, averages: npt.NDArray[Any] | None, inside: str = ""
) -> None:
    """One session; image number i (from 1) has grey level 10 (i - 1). Members are stored out of order."""
    n_images = next(a for a in (raw, averages) if a is not None).shape[1]
    for folder in ("images", "responses_raw", "responses_repeat_averaged"):
        (top / folder).mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(top / "images" / f"images_{session}.zip", "w") as archive:
        if inside:
            archive.writestr(inside, b"")
        archive.writestr(f"__MACOSX/{inside}._image1.jpg", b"no image")
        for i in reversed(range(n_images)):
            archive.writestr(f"{inside}image{i + 1}.jpg", encode(10 * i, "JPEG"))
    if raw is not None:
        np.save(top / "responses_raw" / f"responses_{session}.npy", raw)
    if averages is not None:
        np.save(top / "responses_repeat_averaged" / f"responses_{session}.npy", averages)


@pytest.fixture
def v4_folder(tmp_path: Path) -> Path:
    """A repository with sessions 190924 (25 sites, 12 images, repeats), 210620 (no repeats) and mine."""
    top = tmp_path / "repository" / "data_V4_responses"
    rng = np.random.default_rng(5)
    raw = rng.poisson(3.0, (25, 12, 4)).astype(float)
    raw[:, 7, 3] = np.nan
    write_session(top, "190924", raw, np.nanmean(raw, axis=2), "images_190924/")
    write_session(top, "210620", None, rng.random((6, 12)))
    write_session(top, "mine", rng.random((3, 12, 2)), None)
    return top.parent


class Server:
    """What a server gives for a path (without the leading slash); ``cut`` paths end halfway."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.asked: list[str] = []
        self.url = ""

    def add_folder(self, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.files[path.relative_to(folder).as_posix()] = path.read_bytes()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body: bool) -> None:
            name = self.path.lstrip("/")
            state.asked.append(f"{self.command} {name}")
            if name not in state.files:
                self.send_error(404)
                return
            data = state.files[name]
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data[: len(data) // 2] if name in state.cut else data)

        def do_GET(self) -> None:
            self.answer(True)

        def do_HEAD(self) -> None:
            self.answer(False)

        def log_message(self, *_: Any) -> None:
            pass

    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        state.url = f"http://127.0.0.1:{web.server_address[1]}"
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield state
        web.shutdown()
        thread.join()


@pytest.fixture
def grey() -> Callable[[Image.Image], int]:
    """The grey level of a one-coloured image."""
    return lambda image: int(np.asarray(image)[4, 4, 0])
