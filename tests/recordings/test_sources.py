"""The words of --recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cnnf_brain.recordings import Source, load, majaj, parse_sources, v4_compact, write_assembly

BOTH = ["V4", "IT"]


@pytest.fixture
def it_file(tmp_path: Path, image_files: list[Path], repeats: np.ndarray) -> Path:
    return write_assembly(tmp_path / "it.nc", None, image_files, region="IT", repeats=repeats)


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
        (["auto", "V4=simulated"], None, "auto stands alone"),
        (["V4=simulated"], None, "no recordings are given for region IT; add --recordings IT=SOURCE"),
        (["V1=simulated", "simulated"], None, "region 'V1' is not known in --recordings V1=simulated.*Known: V4, IT"),
        (["simulated", "IT=simulated"], None, "the same source is given twice for a region"),
        (["simulated"], ["190923"], "--session 190923 applies to sources in the layout of V4_compact_models"),
        (["V4_compact_models:1", "IT=simulated"], ["2"], "--session 2 applies to sources"),
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
    with pytest.raises(ValueError, match=r"empty: expected a folder in the layout of V4_compact_models"):
        parse_sources([str(tmp_path / "empty")], BOTH)
    with pytest.raises(ValueError, match=r"only folders in the layout of V4_compact_models have sessions"):
        parse_sources([f"{it_file}:190923"], BOTH)


def test_load_several_sources(v4_folder: Path, it_file: Path) -> None:
    made = load([f"V4={v4_folder}", f"IT={it_file}", "IT=simulated"], BOTH, session=["210620", "mine"])
    assert list(made) == BOTH
    assert [one.source for one in made["V4"]] == [f"{v4_folder}:210620", f"{v4_folder}:mine"]
    assert [one.source for one in made["IT"]] == [str(it_file), "simulated"]
    assert [one.region for one in made["IT"]] == ["IT", "simulated IT"]
    for region, all_of_it in made.items():
        for one in all_of_it:
            word = one.source
            again = load([word], [region])[region][0]
            np.testing.assert_array_equal(again.responses, one.responses)


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
    with pytest.raises(ValueError, match=r"it.nc: image 'picture7' cannot be decoded"):
        load([f"IT={it_file}"], ["IT"])
