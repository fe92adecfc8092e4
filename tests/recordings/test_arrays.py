"""Checks of arrays, and the NetCDF form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
from PIL import Image

from cnnf_brain.recordings import Recordings, UncheckedImagesWarning, load, read_assembly, write_assembly
from cnnf_brain.recordings.assembly import _read
from cnnf_brain.types import Images


def fake_images(n: int) -> Images:
    return Images(tuple(f"s{i}" for i in range(n)), lambda index: bytes([index]), "memory")


def responses(n_images: int = 6, n_sites: int = 4) -> npt.NDArray[Any]:
    return np.random.default_rng(0).normal(size=(n_images, n_sites))


def test_rows_follow_image_ids_not_positions() -> None:
    values = responses()
    made = Recordings.from_arrays(values, fake_images(6), region="IT", image_ids=["s3", "s0", "s5", "s1", "s2", "s4"])
    assert [made.images.read(i) for i in range(6)] == [bytes([i]) for i in (3, 0, 5, 1, 2, 4)]
    np.testing.assert_array_equal(made.responses, values)
    assert made.images.ids == ("s3", "s0", "s5", "s1", "s2", "s4")


@pytest.mark.parametrize("kind", ["paths", "PIL images", "array"])
def test_images_in_memory_and_on_disk(
    kind: str, image_files: list[Path], repeats: npt.NDArray[Any], grey: Callable[[Image.Image], int]
) -> None:
    images: Any = image_files
    if kind != "paths":
        pictures = [Image.open(file).convert("RGB") for file in image_files]
        images = pictures if kind == "PIL images" else np.stack([np.asarray(picture) for picture in pictures])
    made = Recordings.from_arrays(repeats, images, region="V4", image_ids=list("abcdefghijkl"))
    assert "".join(made.images.ids) == "abcdefghijkl"
    assert [grey(made.images.decode(i)) for i in range(12)] == [10 * i for i in range(12)]
    bare = Recordings.from_arrays(repeats, images, region="V4")
    assert bare.images.ids == tuple(f"{'picture' if kind == 'paths' else 'image'}{i}" for i in range(12))


def test_what_a_notebook_shows() -> None:
    values = responses()
    values[:, 0] = 1
    made = Recordings.from_arrays(values, fake_images(6), region="V4", source="mine")
    assert repr(made) == "Recordings(mine: V4, 6 images, 3 sites, 1 sites excluded)"


def test_a_record_that_does_not_fit_together() -> None:
    made = Recordings.from_arrays(responses(), fake_images(6), region="V4", source="mine")
    for change in (
        {"responses": responses(5)},
        {"site_ids": ("a",)},
        {"repeats": responses()},
        {"subjects": np.array(["x"])},
    ):
        with pytest.raises(ValueError, match=r"^mine: .* which does not fit 6 images and "):
            replace(made, **change)


def test_an_argument_that_does_not_exist() -> None:
    with pytest.raises(TypeError, match=r"unexpected argument 'neuroid_ids'; the labels are image_ids, site_ids"):
        Recordings.from_arrays(responses(), fake_images(6), region="V4", neuroid_ids=list("abcd"))  # type: ignore[call-arg]


def test_mean_over_repeats_skips_missing_presentations(repeats: npt.NDArray[Any]) -> None:
    made = Recordings.from_arrays(repeats, fake_images(12), region="V4", object_names=list("abcd") * 3)
    for stimulus in range(12):
        for site in range(5):
            there = [value for value in repeats[stimulus, site] if value == value]
            assert made.responses[stimulus, site] == pytest.approx(sum(there) / len(there), rel=1e-12)
    np.testing.assert_array_equal(made.repeats, repeats)  # type: ignore[arg-type]
    assert made.object_names is not None
    assert list(made.object_names[:5]) == ["a", "b", "c", "d", "a"]


def test_constant_and_nan_sites_are_left_out_and_named() -> None:
    values = responses(6, 5)
    values[:, 1] = 0.1
    values[2:4, 3] = np.nan
    values[0, 4] = np.inf
    made = Recordings.from_arrays(
        values, fake_images(6), region="V4", site_ids=list("abcde"), subjects=list("xxyyy"), sessions=list("12345")
    )
    assert made.excluded == (
        "b (constant)",
        "d (NaN or infinite for 2 of 6 images)",
        "e (NaN or infinite for 1 of 6 images)",
    )
    np.testing.assert_array_equal(made.responses, values[:, [0, 2]])
    assert list(made.site_ids) == ["a", "c"]
    assert list(made.subjects) == ["x", "y"]  # type: ignore[arg-type]
    part = made.of(np.asarray(made.subjects) == "y")
    assert (part.animals, list(part.sessions), part.responses.shape) == (("y",), list(made.sessions)[1:], (6, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"responses": responses(5)}, "responses to 5 images but 6 images; expected one row for each image"),
        ({"responses": responses(4, 6)}, "they seem to be transposed"),
        ({"responses": responses()[0]}, r"responses have shape \(4,\), expected \(n_images, n_sites\)"),
        ({"responses": np.zeros((6, 0))}, r"responses have shape \(6, 0\)"),
        ({"responses": responses().astype(str)}, "responses are not numbers"),
        ({"responses": responses().astype(complex)}, "expected real numbers"),
        ({"responses": np.ones((6, 2))}, r"no site is left, all 2 are constant or have NaN.*site0 \(constant\)"),
        ({"responses": None}, "responses are not numbers"),
        ({"repeats": np.stack([responses(), responses() + 1], axis=2)}, "responses are not the mean over repeats"),
        ({"repeats": responses()[:, :3, None]}, r"repeats have shape \(6, 3, 1\)"),
        ({"image_ids": ["s0", "s0", "s1", "s2", "s3", "s4"]}, "image_ids occur more than once: s0"),
        ({"image_ids": ["s0", "s1", "s2", "s3", "s4", "t"]}, "1 image ids have no image in memory: t"),
        ({"image_ids": "s0s1s2"}, "image_ids are given as the single text 's0s1s2'; expected a list of 6, one for"),
        ({"site_ids": "abcd"}, "site_ids are given as the single text 'abcd'; expected a list of 4"),
        ({"object_names": "catdog"}, "object_names are given as the single text 'catdog'; expected a list of 6"),
        ({"subjects": "four"}, "subjects are given as the single text 'four'; expected a list of 4"),
        ({"image_ids": ["s0"]}, "1 image_ids were given, expected 6"),
        ({"site_ids": list("abca")}, "site_ids occur more than once: a"),
        ({"object_names": ["cat"] * 4}, "4 object_names were given, expected 6"),
        ({"subjects": ["cat"] * 6}, "6 subjects were given, expected 4"),
    ],
)
def test_bad_arrays(change: dict[str, Any], message: str) -> None:
    given = {"responses": responses(), "images": fake_images(6), "region": "V4", "source": "mine"} | change
    with pytest.raises(ValueError, match=rf"^mine: .*{message}"):
        Recordings.from_arrays(given.pop("responses"), given.pop("images"), **given)  # type: ignore[arg-type]


def test_images_with_ids_that_occur_twice() -> None:
    with pytest.raises(ValueError, match=r"more than once: s0"):
        Images(("s0", "s0"), lambda index: b"", "memory")


def test_an_assembly_of_two_regions_comes_back(
    tmp_path: Path, image_files: list[Path], repeats: npt.NDArray[Any], grey: Callable[[Image.Image], int]
) -> None:
    objects, subjects = ["cat", "dög"] * 6, ["x", "y", "y", "x", "x"]
    regions = ["V4", "IT", "V4", "IT", "IT"]
    path = write_assembly(
        tmp_path / "out" / "mine.nc",
        repeats,
        image_files[::-1],
        region=regions,
        site_ids=list("abcde"),
        object_names=objects,
        subjects=subjects,
    )
    made = read_assembly(path, "IT")
    np.testing.assert_array_equal(made.repeats, repeats[:, [1, 3, 4]])  # type: ignore[arg-type]
    np.testing.assert_allclose(made.responses, np.nanmean(repeats, axis=2)[:, [1, 3, 4]], rtol=1e-12)
    assert made.region == "IT"
    assert made.source == str(path)
    assert list(made.site_ids) == ["b", "d", "e"]
    assert list(made.subjects) == ["y", "x", "x"]  # type: ignore[arg-type]
    assert made.object_names is not None
    assert list(made.object_names) == objects
    assert made.images.ids == tuple(file.stem for file in image_files[::-1])
    assert [grey(made.images.decode(i)) for i in range(12)] == [10 * i for i in range(11, -1, -1)]
    assert len(read_assembly(path.parent, "V4").site_ids) == 2
    assert [file.name for file in path.parent.iterdir()] == ["mine.nc"]


def test_an_assembly_moves_with_its_images(tmp_path: Path, image_files: list[Path]) -> None:
    before = tmp_path / "pictures"
    write_assembly(before / "mine.nc", responses(12, 2), image_files, region="V4")
    before.rename(tmp_path / "elsewhere")
    made = read_assembly(tmp_path / "elsewhere" / "mine.nc", "V4")
    assert made.images.read(3) == (tmp_path / "elsewhere" / "picture3.png").read_bytes()
    (tmp_path / "elsewhere" / "picture3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 12 image files are missing: .*picture3.png"):
        read_assembly(tmp_path / "elsewhere" / "mine.nc", "V4")


def test_images_that_were_replaced_are_refused(tmp_path: Path, image_files: list[Path]) -> None:
    path = write_assembly(tmp_path / "mine.nc", responses(12, 2), image_files, region="V4")
    image_files[5].write_bytes(image_files[6].read_bytes())
    image_files[9].write_bytes(image_files[9].read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"2 of 12 images are not those .*written with: picture5.png, picture9.png; put"):
        load([str(path)], ["V4"])


def test_an_image_that_is_replaced_after_it_was_checked_is_refused(tmp_path: Path, image_files: list[Path]) -> None:
    path = write_assembly(tmp_path / "mine.nc", responses(12, 2), image_files, region="V4")
    made = read_assembly(path, "V4")
    image_files[5].write_bytes(image_files[6].read_bytes())
    with pytest.raises(ValueError, match=r"image 'picture5' has changed"):
        made.images.check()


def test_a_file_of_the_older_form_is_read_with_a_warning(tmp_path: Path, image_files: list[Path]) -> None:
    path = write_assembly(tmp_path / "mine.nc", responses(12, 2), image_files, region="V4")
    older = tmp_path / "older.nc"
    _read(path).drop_vars("image_sha256").to_netcdf(older, engine="netcdf4")
    image_files[5].write_bytes(image_files[6].read_bytes())
    with pytest.warns(UncheckedImagesWarning, match=r"older.nc holds no SHA-256 .*file anew with write_assembly"):
        made = read_assembly(older, "V4")
    np.testing.assert_array_equal(made.responses, responses(12, 2))


def test_hashes_that_are_not_one_for_each_image(tmp_path: Path, image_files: list[Path]) -> None:
    path = write_assembly(tmp_path / "mine.nc", responses(12, 2), image_files, region="V4")
    data = _read(path).drop_vars("image_sha256").assign_coords(image_sha256="abc")
    data.to_netcdf(tmp_path / "other.nc", engine="netcdf4")
    with pytest.raises(ValueError, match=r"it lacks image_sha256 \('stimulus',\)"):
        read_assembly(tmp_path / "other.nc", "V4")


@pytest.mark.parametrize("kind", [str, Path])
def test_one_path_in_place_of_a_list_is_refused(tmp_path: Path, image_files: list[Path], kind: type[Any]) -> None:
    folder = image_files[0].parent
    with pytest.raises(
        ValueError, match=r"mine.nc: the image files are given as the single path '.*pictures'; expected a list"
    ):
        write_assembly(tmp_path / "mine.nc", responses(12, 2), kind(folder), region="V4")
    with pytest.raises(ValueError, match=r"site_ids are given as the single text 'ab'"):
        write_assembly(tmp_path / "mine.nc", responses(12, 2), image_files, region="V4", site_ids="ab")
    assert not (tmp_path / "mine.nc").exists()


def test_region_that_an_assembly_lacks(tmp_path: Path, image_files: list[Path]) -> None:
    path = write_assembly(tmp_path / "mine.nc", responses(12, 2), image_files, region=["V4", "V1"])
    with pytest.raises(ValueError, match=r"region 'IT' is not known in .*mine.nc.*Known: V4, V1"):
        read_assembly(path, "IT")


def test_nothing_is_written_from_bad_input(tmp_path: Path, image_files: list[Path]) -> None:
    path = tmp_path / "out" / "mine.nc"
    with pytest.raises(ValueError, match=r"responses to 11 images but 12 images"):
        write_assembly(path, responses(11), image_files, region="V4")
    with pytest.raises(ValueError, match=r"no site is left"):
        write_assembly(path, np.ones((12, 2)), image_files, region="V4")
    with pytest.raises(ValueError, match=r"more than once: picture0"):
        write_assembly(path, responses(12), [image_files[0], *image_files[:-1]], region="V4")
    with pytest.raises(ValueError, match=r"3 regions were given, expected 4"):
        write_assembly(path, responses(12), image_files, region=["V4"] * 3)
    with pytest.raises(ValueError, match=r"ends in \.nc"):
        write_assembly(path.with_suffix(".h5"), responses(12), image_files, region="V4")
    image_files[4].write_bytes(image_files[4].read_bytes()[:40])
    with pytest.raises(ValueError, match=r"image 'picture4' cannot be decoded"):
        write_assembly(path, responses(12), image_files, region="V4")
    with pytest.raises(FileNotFoundError, match=r"1 of 2 image files are missing"):
        Images.of([image_files[0], tmp_path / "none.png"], where="here")
    assert not path.parent.exists()


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, image_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_assembly(tmp_path / "mine.nc", responses(12), image_files, region="V4")
    before = path.read_bytes()

    def full(self: xr.Dataset, name: Path, **_: Any) -> None:
        Path(name).write_bytes(b"half")
        raise RuntimeError("NetCDF: HDF error")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", full)
    with pytest.raises(OSError, match=r"cannot write .*mine.nc: NetCDF: HDF error; free space"):
        write_assembly(path, responses(12) + 1, image_files, region="V4")
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine.nc", "pictures"]


def test_unreadable_netcdf(tmp_path: Path, image_files: list[Path]) -> None:
    path = write_assembly(tmp_path / "mine.nc", responses(12), image_files, region="V4")
    whole = path.read_bytes()
    for damaged in (b"", b"no NetCDF", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"mine.nc cannot be read as NetCDF"):
            read_assembly(path, "V4")
    xr.Dataset({"x": ("stimulus", [1.0])}).to_netcdf(tmp_path / "other.nc", engine="netcdf4")
    with pytest.raises(ValueError, match=r"it lacks stimulus_id .*the attribute image_folder, responses or repeats"):
        read_assembly(tmp_path / "other.nc", "V4")
    with pytest.raises(ValueError, match=r"expected one \.nc file in the folder, found mine.nc, other.nc"):
        read_assembly(tmp_path, "V4")
    with pytest.raises(FileNotFoundError, match=r"write_assembly makes such a file"):
        read_assembly(tmp_path / "none.nc", "V4")
