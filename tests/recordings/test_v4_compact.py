"""Sessions in the layout of V4_compact_models, from a folder and from a local web server."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cnnf_brain.io import CACHE_VARIABLE, sha256
from cnnf_brain.recordings import load_v4_compact, v4_compact


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def published(v4_folder: Path, server: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The folder on the server, under the name of the public repository."""
    server.add_folder(v4_folder)
    monkeypatch.setattr(v4_compact, "BASE_URL", server.url)
    return server


def written(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


def test_a_session_with_repeats(v4_folder: Path, grey: Callable[[Image.Image], int]) -> None:
    made = load_v4_compact(v4_folder, "190924")
    raw = np.load(v4_folder / "data_V4_responses/responses_raw/responses_190924.npy")
    assert made.repeats is not None
    for site, image in [(0, 0), (3, 7), (24, 11)]:
        np.testing.assert_array_equal(made.repeats[image, site], raw[site, image])
        assert made.responses[image, site] == pytest.approx(np.nanmean(raw[site, image]))
    assert made.region == "V4"
    assert made.source == f"{v4_folder}:190924"
    assert not made.simulated
    assert set(made.subjects) == {"WE"}  # type: ignore[arg-type]
    assert set(made.sessions) == {"190924"}  # type: ignore[arg-type]
    assert made.images.ids == tuple(f"image{i}" for i in range(1, 13))  # image10 after image9
    assert [round(grey(made.images.decode(i)), -1) for i in range(12)] == [10 * i for i in range(12)]


def test_a_session_without_repeats_and_one_without_averages(v4_folder: Path) -> None:
    made = load_v4_compact(v4_folder / "data_V4_responses", "210620")
    assert made.repeats is None
    assert set(made.subjects) == {"RA"}  # type: ignore[arg-type]
    mine = load_v4_compact(v4_folder, "mine")
    assert mine.repeats is not None
    assert mine.subjects is None


def test_unknown_session_lists_those_of_the_folder(v4_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"session '190942' is not known in .*did you mean '190924'.*Known: .*210620, mine"):
        load_v4_compact(v4_folder, "190942")
    with pytest.raises(ValueError, match=r"no session is named; it has 190924, 210620, mine. Name one: .*:SESSION"):
        load_v4_compact(v4_folder, None)
    with pytest.raises(ValueError, match=r"session '1' is not known in V4_compact_models.*50 in all"):
        load_v4_compact(None, "1")
    with pytest.raises(FileNotFoundError, match=r"none does not exist"):
        load_v4_compact(v4_folder / "none", "190924")


def test_the_only_session_of_a_folder(v4_folder: Path) -> None:
    for session in ("190924", "210620"):
        (v4_folder / f"data_V4_responses/images/images_{session}.zip").unlink()
    assert load_v4_compact(v4_folder, None).source.endswith(":mine")


def test_damaged_files(v4_folder: Path) -> None:
    top = v4_folder / "data_V4_responses"
    archive, averages = top / "images/images_190924.zip", top / "responses_repeat_averaged/responses_190924.npy"
    whole, array = archive.read_bytes(), averages.read_bytes()
    middle = len(whole) // 2
    for damaged in (whole[:middle], whole[:middle] + b"xxxx" + whole[middle + 4 :], b""):
        archive.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"images_190924.zip cannot be read as a zip file"):
            load_v4_compact(v4_folder, "190924")
    archive.write_bytes(whole)
    for damaged in (array[:-8], array[:40], b"", pickle.dumps({"a": 1})):
        averages.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"responses_190924.npy cannot be read as a NumPy array of numbers"):
            load_v4_compact(v4_folder, "190924")
    np.save(averages, np.load(top / "responses_repeat_averaged/responses_210620.npy"))
    with pytest.raises(ValueError, match=r"190924: repeats have shape \(12, 25, 4\)"):
        load_v4_compact(v4_folder, "190924")


def test_a_pickle_is_not_executed(v4_folder: Path, tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "executed",)

    path = v4_folder / "data_V4_responses/responses_repeat_averaged/responses_190924.npy"
    np.save(path, np.array([Bad()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"cannot be read as a NumPy array of numbers"):
        load_v4_compact(v4_folder, "190924")
    assert not (tmp_path / "executed").exists()


def test_images_and_responses_that_differ_in_number(v4_folder: Path) -> None:
    path = v4_folder / "data_V4_responses/responses_repeat_averaged/responses_210620.npy"
    np.save(path, np.load(path)[:, :-1])
    with pytest.raises(ValueError, match=r":210620: responses to 11 images but 12 images"):
        load_v4_compact(v4_folder, "210620")


def test_a_download_is_made_once(published: Any, v4_folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = load_v4_compact(None, "190924")
    assert made.source == "V4_compact_models:190924"
    np.testing.assert_array_equal(made.repeats, load_v4_compact(v4_folder, "190924").repeats)  # type: ignore[arg-type]
    progress = capsys.readouterr().err
    assert "images_190924.zip (0.0 MB)" in progress
    assert written(cache) == ["images_190924.zip", "responses_190924.npy", "responses_190924.npy"]
    published.asked.clear()
    load_v4_compact(None, "190924")
    assert published.asked == []


def test_a_session_whose_repeats_are_not_published(published: Any, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del published.files["data_V4_responses/responses_raw/responses_190924.npy"]
    assert load_v4_compact(None, "190924").repeats is None
    assert "no single repeats are published" in capsys.readouterr().err
    published.asked.clear()
    assert load_v4_compact(None, "190924").repeats is None
    assert published.asked == []


@pytest.mark.parametrize("name", ["images/images_190924.zip", "responses_raw/responses_190924.npy"])
def test_a_truncated_download_leaves_nothing(published: Any, cache: Path, name: str) -> None:
    published.cut.add(f"data_V4_responses/{name}")
    with pytest.raises(OSError, match=rf"{name}: the download failed or is not the file that was published"):
        load_v4_compact(None, "190924")
    assert Path(name).name not in [file.name for file in cache.rglob("*") if file.parent.name == name.split("/")[0]]
    assert not [file for file in written(cache) if file.startswith("tmp")]
    published.cut.clear()
    assert load_v4_compact(None, "190924").responses.shape[1] == 25


def test_a_download_that_is_not_there_or_not_what_was_published(published: Any, cache: Path) -> None:
    top = "data_V4_responses"
    averages = f"{top}/responses_repeat_averaged/responses_190924.npy"
    whole = published.files[averages]
    published.files[averages] = whole[:-8]  # shorter than its header says, though all of it arrives
    with pytest.raises(OSError, match=r"is not the file that was published .*cannot be read as a NumPy array"):
        load_v4_compact(None, "190924")
    published.files[averages] = published.files[f"{top}/responses_repeat_averaged/responses_210620.npy"]
    with pytest.raises(OSError, match=r"averages for 6 sites, the repository's table says 25"):
        load_v4_compact(None, "190924")
    del published.files[averages]
    with pytest.raises(OSError, match=r"cannot download .*responses_190924.npy: .*answers 404"):
        load_v4_compact(None, "190924")
    assert written(cache) == ["images_190924.zip"]


def test_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(v4_compact, "BASE_URL", "http://127.0.0.1:1")
    with pytest.raises(OSError, match=r"cannot download .*images_201025.zip.*connect to the network or place the file"):
        load_v4_compact(None, "201025")
    assert written(cache) == []


def test_a_pinned_hash(published: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = published.files["data_V4_responses/images/images_190924.zip"]
    monkeypatch.setitem(v4_compact.SHA256, "images/images_190924.zip", hashlib.sha256(data).hexdigest())
    load_v4_compact(None, "190924")
    for path in cache.rglob("images_190924.zip"):
        path.unlink()
    monkeypatch.setitem(v4_compact.SHA256, "images/images_190924.zip", "0" * 64)
    with pytest.raises(OSError, match=r"is not the file that was published .*place the right file .sha256:0000"):
        load_v4_compact(None, "190924")
    assert "images_190924.zip" not in written(cache)


def test_table() -> None:
    assert len(v4_compact.SESSIONS) == 50
    animals = [session.animal for session in v4_compact.SESSIONS.values()]
    assert {name: animals.count(name) for name in animals} == {"WE": 7, "PE": 29, "RA": 14}


def test_the_real_sessions(shared: Path) -> None:
    """Table, hashes and numbers against the files; the order of images against repeats is checked by the mean."""
    folder = shared / "data/V4_compact_models"
    lines = (folder / "data_V4_responses/readme.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line[:6].isdigit()]
    assert {row[0]: (row[1], int(row[3])) for row in rows} == {
        name: (session.animal, session.n_sites) for name, session in v4_compact.SESSIONS.items()
    }
    for row in rows:
        assert v4_compact.SESSIONS[row[0]].n_images in (None, int(row[5]))
    for name, known in v4_compact.SHA256.items():
        assert sha256(folder / "data_V4_responses" / name) == known
    for session, shape, has_repeats in [("190923", (1200, 33), False), ("210325", (640, 50), True)]:
        made = load_v4_compact(folder, session)
        assert made.responses.shape == shape
        assert (made.repeats is not None) == has_repeats
        assert made.images.ids[0] == "image0001"
        assert made.images.ids[-1] == f"image{shape[0]:04d}"
        assert made.excluded == ()
        assert made.images.decode(0).size == (112, 112)


def test_a_real_session_downloaded(shared: Path, server: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add_folder(shared / "data/V4_compact_models")
    monkeypatch.setattr(v4_compact, "BASE_URL", server.url)
    made = load_v4_compact(None, "210325")
    assert made.repeats is not None
    assert made.repeats.shape == (640, 50, 10)
    assert set(made.subjects) == {"PE"}  # type: ignore[arg-type]
