"""The words of --recordings."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cnnf_brain import recordings
from cnnf_brain.recordings import (
    Recordings,
    Source,
    UncheckedImagesWarning,
    assembly,
    check_sources,
    load,
    load_recordings,
    majaj,
    parse_sources,
    v4_compact,
    write_assembly,
)

BOTH = ["V4", "IT"]


@pytest.fixture
def it_file(tmp_path: Path, image_files: list[Path], repeats: npt.NDArray[Any]) -> Path:
    return write_assembly(tmp_path / "it.nc", repeats, image_files, region="IT")


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(majaj, "_load_dataset", lambda: pytest.fail("a download was tried"))
    monkeypatch.setattr(v4_compact, "_fetch", lambda session: pytest.fail("a download was tried"))


def test_words_without_paths() -> None:
    assert parse_sources(["simulated"], BOTH) == [Source("V4", "simulated"), Source("IT", "simulated")]
    words = ["IT=MajajHong2015.public", "V4=V4_compact_models:190923", "V4=V4_compact_models:201025"]
    assert parse_sources(words, BOTH) == [
        Source("V4", "v4_compact", None, "190923"),
        Source("V4", "v4_compact", None, "201025"),
        Source("IT", "majaj"),
    ]
    assert parse_sources(["V4_compact_models"], ["V4"], ["190923", "201025"]) == parse_sources(words, BOTH)[:2]


def test_words_with_paths(v4_folder: Path, it_file: Path) -> None:
    assert parse_sources([f"V4={v4_folder}:mine", f"IT={it_file}"], BOTH) == [
        Source("V4", "v4_compact", v4_folder, "mine"),
        Source("IT", "assembly", it_file),
    ]
    assert parse_sources([str(v4_folder / "data_V4_responses")], ["V4"], ["1", "2"]) == [
        Source("V4", "v4_compact", v4_folder / "data_V4_responses", session) for session in ("1", "2")
    ]
    odd = it_file.parent / "a=b:c.nc"
    it_file.rename(odd)
    assert parse_sources([str(odd)], ["IT"]) == [Source("IT", "assembly", odd)]


@pytest.mark.parametrize(
    ("words", "session", "message"),
    [
        (["auto", "V4=simulated"], None, "'auto' stand alone"),
        (["V4=simulated"], None, "no recordings are given for region IT; add IT=SOURCE"),
        (["V1=simulated", "simulated"], None, "region 'V1' is not known in recordings 'V1=simulated'.*Known: V4, IT"),
        (["simulated", "IT=simulated"], None, "the same source is given twice for a region"),
        (["simulated"], ["190923"], "^session 190923 applies to recordings in the layout of V4_compact_models"),
        (["V4_compact_models:1", "IT=simulated"], ["2"], "^session 2 applies to recordings"),
        (["V4_compact_models:"], None, "no session after ':'"),
    ],
)
def test_words_that_make_no_sense(words: list[str], session: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_sources(words, BOTH, session)


def test_paths_that_are_no_recordings(tmp_path: Path, it_file: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file or folder; did you mean simulated\? Expected simulated"):
        parse_sources(["simulatd"], BOTH)
    with pytest.raises(FileNotFoundError, match=r"there is no such file or folder.* an assembly"):
        parse_sources([str(tmp_path / "none.nc")], BOTH)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty': expected a folder in the layout of V4_compact_models"):
        parse_sources([str(tmp_path / "empty")], BOTH)
    with pytest.raises(ValueError, match=r"only folders in the layout of V4_compact_models have sessions"):
        parse_sources([f"{it_file}:190923"], BOTH)


@pytest.mark.parametrize("word", ["Majaj", "majaj", "MajajHong2015", "majajhong2015.public"])
def test_a_part_of_a_name_is_recognised(word: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"^recordings '{word}': .*did you mean MajajHong2015.public\?"):
        parse_sources([word], BOTH)
    with pytest.raises(FileNotFoundError, match=r"did you mean V4_compact_models\?"):
        parse_sources(["v4"], BOTH)
    with pytest.raises(FileNotFoundError, match=r"no such file or folder\. Expected simulated"):
        parse_sources(["qqq.nc"], BOTH)


def test_no_message_speaks_of_flags() -> None:
    """The library is called from programs too; arguments have no dashes."""
    folder = Path(recordings.__file__).parents[1]
    for part in ("recordings", "predictivity"):
        for path in (folder / part).glob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            raised = [node for node in ast.walk(tree) if isinstance(node, ast.Raise)]
            texts = [one.value for node in raised for one in ast.walk(node) if isinstance(one, ast.Constant)]
            assert not [text for text in texts if isinstance(text, str) and "--" in text], path


@pytest.mark.parametrize(
    ("word", "session", "error", "message"),
    [
        ("V4_compact_models", None, ValueError, "no session is named; it has 190923, .*Name one: V4_compact_models:SESSION"),
        ("V4_compact_models:190942", None, ValueError, "session '190942' is not known in V4_compact_models; did you mean"),
        ("FOLDER:190942", None, ValueError, "session '190942' is not known in .*repository; did you mean '190924'"),
        ("FOLDER", ["mine", "other"], ValueError, "session 'other' is not known"),
        ("ITFILE", None, ValueError, "region 'V4' is not known in .*it.nc.*Known: IT"),
        ("nowhere", None, FileNotFoundError, "recordings 'nowhere': there is no such file or folder"),
    ],
)
def test_what_is_wrong_with_sources_shows_without_reading_them(
    v4_folder: Path,
    it_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    word: str,
    session: list[str] | None,
    error: Any,
    message: str,
) -> None:
    monkeypatch.setattr(recordings, "_load", lambda source: pytest.fail("recordings were read"))
    word = word.replace("FOLDER", str(v4_folder)).replace("ITFILE", str(it_file))
    with pytest.raises(error, match=message):
        check_sources([word], ["V4"], session)


def test_damaged_assemblies_show_before_images_are_read(
    it_file: Path, image_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings, "_load", lambda source: pytest.fail("recordings were read"))
    assert check_sources([f"IT={it_file}", "V4=simulated"], BOTH) == [
        Source("V4", "simulated"),
        Source("IT", "assembly", it_file),
    ]
    image_files[3].unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 12 image files are missing: .*picture3.png"):
        check_sources([str(it_file)], ["IT"])
    it_file.write_bytes(it_file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"it.nc cannot be read as NetCDF"):
        check_sources([str(it_file)], ["IT"])


def test_brainscore_vision_is_asked_for_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(majaj.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    with pytest.raises(
        ImportError, match=r"MajajHong2015.public needs brainscore-vision, which is not installed: pip install"
    ):
        check_sources(["MajajHong2015.public"], BOTH)


def test_load_several_sources(v4_folder: Path, it_file: Path) -> None:
    made = load([f"V4={v4_folder}", f"IT={it_file}", "IT=simulated"], BOTH, session=["210620", "mine"])
    assert list(made) == BOTH
    assert [one.source for one in made["V4"]] == [f"{v4_folder}:210620", f"{v4_folder}:mine"]
    assert [one.source for one in made["IT"]] == [str(it_file), "simulated"]
    assert [one.region for one in made["IT"]] == ["IT", "IT"]
    for region, all_of_it in made.items():
        for one in all_of_it:
            word = one.source
            again = load([word], [region])[region][0]
            np.testing.assert_array_equal(again.responses, one.responses)


def test_load_recordings_gives_what_is_named(
    v4_folder: Path,
    it_file: Path,
    tmp_path: Path,
    image_files: list[Path],
    repeats: np.ndarray,  # type: ignore[type-arg]
) -> None:
    one = load_recordings(v4_folder, session="210620")
    assert isinstance(one, Recordings)
    assert (one.source, one.region) == (f"{v4_folder}:210620", "V4")
    assert load_recordings(f"{v4_folder}:mine").source == f"{v4_folder}:mine"
    several = load_recordings(str(v4_folder), session=["210620", "mine"])
    assert [made.source for made in several] == [f"{v4_folder}:210620", f"{v4_folder}:mine"]
    assert load_recordings(it_file).region == "IT"
    assert [made.region for made in load_recordings("simulated")] == BOTH
    assert load_recordings("simulated", region="IT").region == "IT"
    write_assembly(tmp_path / "a=both.nc", repeats, image_files, region=["V1", "IT", "V1", "IT", "V1"])
    assert [made.region for made in load_recordings(tmp_path / "a=both.nc")] == ["V1", "IT"]
    assert load_recordings(tmp_path / "a=both.nc", region="V1").responses.shape == (12, 3)


@pytest.mark.parametrize(
    ("word", "options", "message"),
    [
        ("simulated", {"region": "V1"}, r"region 'V1' is not known in simulated.*Known: V4, IT"),
        ("simulated", {"session": "210620"}, r"recordings 'simulated': session 210620 applies to V4_compact_models"),
        ("V4_compact_models:1", {"session": "2"}, r"session 2 applies to V4_compact_models"),
        ("V4_compact_models", {}, r"no session is named; it has 190923"),
        ("V4_compact_models", {"session": "1"}, r"session '1' is not known"),
        ("V4_compact_models", {"region": "IT", "session": "201025"}, r"region 'IT' is not known in V4_compact_models"),
        ("auto", {}, r"'auto' stand alone"),
    ],
)
def test_load_recordings_refuses(word: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recordings(word, **options)


@pytest.mark.parametrize(
    ("word", "known"),
    [("V4_compact_models:190923", "V4_compact_models.*Known: V4$"), ("FOLDER:mine", "repository.*Known: V4$")],
)
def test_a_region_that_a_source_lacks(v4_folder: Path, word: str, known: str) -> None:
    with pytest.raises(ValueError, match=rf"region 'IT' is not known in .*{known}"):
        load([word.replace("FOLDER", str(v4_folder))], BOTH)
    with pytest.raises(ValueError, match=r"region 'V1' is not known in MajajHong2015.public.*Known: V4, IT"):
        load(["MajajHong2015.public"], ["V1"])


def test_a_region_that_an_assembly_lacks(it_file: Path) -> None:
    with pytest.raises(ValueError, match=r"region 'V4' is not known in .*it.nc.*Known: IT"):
        load([str(it_file)], BOTH)


def test_an_image_that_cannot_be_decoded(it_file: Path, image_files: list[Path]) -> None:
    image_files[7].write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"it.nc: 1 of 12 images are not those .*: picture7.png"):
        load([f"IT={it_file}"], ["IT"])
    without_hashes = assembly._read(it_file).drop_vars("image_sha256")
    without_hashes.to_netcdf(it_file, engine="netcdf4")
    with (
        pytest.warns(UncheckedImagesWarning),
        pytest.raises(ValueError, match=r"it.nc: image 'picture7' cannot be decoded"),
    ):
        load([f"IT={it_file}"], ["IT"])
