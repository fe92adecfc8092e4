"""Images: what they are made of, their hashes, and images that change while a run reads them; examples in docstrings."""

from __future__ import annotations

import doctest
import hashlib
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image

from cnnf_brain.types import Images, LayerAt


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"picture{number}.png" for number in range(3)]
    for file, pixels in zip(found, tiny.pictures(3), strict=True):
        file.write_bytes(tiny.encoded(pixels))
    return found


def test_hashes_are_of_each_images_bytes_and_the_digest_is_of_these(files: list[Path]) -> None:
    images = Images.of(files, where="here")
    apart = [hashlib.sha256(file.read_bytes()) for file in files]
    assert images.hashes() == tuple(one.hexdigest() for one in apart)
    assert images.digest() == hashlib.sha256(b"".join(one.digest() for one in apart)).hexdigest()


def test_each_image_is_hashed_once() -> None:
    content, read = [tiny.encoded(one) for one in tiny.pictures(3)], []
    images = Images(("a", "b", "c"), lambda index: read.append(index) or content[index], "memory")  # type: ignore[func-returns-value]
    assert (images.digest(), images.hashes()) == (images.digest(), images.hashes())
    assert read == [0, 1, 2]


@pytest.mark.parametrize("hashed", ["hashes", "digest"])
def test_an_image_that_changes_after_it_was_hashed_is_refused(files: list[Path], hashed: str) -> None:
    images = Images.of(files, where="here")
    getattr(images, hashed)()
    images.check()
    files[1].write_bytes(files[2].read_bytes())
    assert images.decode(0).size == (20, 20)
    with pytest.raises(ValueError, match=r"here: image 'picture1' has changed since this run first read it; leave the"):
        images.decode(1)


@pytest.mark.parametrize("size", [(20, 20), (3, 1), (300, 250)])
def test_pixels_come_back_without_loss(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    images = Images.of(pixels)
    assert images.ids == ("image0", "image1", "image2")
    pictures = Images.of([Image.fromarray(one) for one in pixels], ["a", "b", "c"])
    assert pictures.ids == ("a", "b", "c")
    assert images.digest() == pictures.digest()
    kept = pixels.copy()
    pixels[:] = 0  # the images keep what they were made of
    for number in range(3):
        np.testing.assert_array_equal(np.asarray(images.decode(number)), kept[number])


def test_pil_images_of_other_modes_decode_as_their_files_do(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "1"):
        image = Image.fromarray(tiny.pictures(1)[0]).convert(mode)
        image.save(tmp_path / "picture.png")
        from_file = Images.of([tmp_path / "picture.png"]).decode(0)
        np.testing.assert_array_equal(np.asarray(Images.of([image]).decode(0)), np.asarray(from_file))


def test_files_and_pixels_stand_together(files: list[Path]) -> None:
    images = Images.of([files[0], str(files[1]), tiny.pictures(1)[0]])
    assert images.ids == ("picture0", "picture1", "image2")
    files[1].write_bytes(files[2].read_bytes())  # read only when it is needed
    assert images.read(1) == files[2].read_bytes()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("folder", "here: the image files are given as the single path 'folder'; expected a list of paths"),
        (Image.new("RGB", (4, 4)), "here: the image files are given as the single PIL image; expected a list"),
        (np.zeros((2, 4, 4, 3)), r"image 'a' is an array of shape \(4, 4, 3\) and type float64; expected .* from 0 to 255"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"image 'a' is an array of shape \(3, 4, 4\) and type uint8; expected \(height,"),
        (np.zeros((2, 4, 4), np.uint8), r"image 'a' is an array of shape \(4, 4\)"),
        ([Image.new("RGB", (4, 4)), Image.new("F", (4, 4))], "image 'b' has mode F; expected 8 bits per channel"),
        ([Image.new("RGB", (4, 4)), None], "image 'b' is of type NoneType; expected a path, a PIL image or a uint8 array"),
        (np.zeros((3, 4, 4, 3), np.uint8), "2 image_ids were given, expected 3"),
    ],
)
def test_what_is_no_image_is_named(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Images.of(given, ["a", "b"], where="here")


def test_missing_files_are_named(files: list[Path]) -> None:
    with pytest.raises(FileNotFoundError, match=r"here: 1 of 4 image files are missing: .*none\.png"):
        Images.of([*files, files[0].with_name("none.png")], where="here")


@pytest.mark.parametrize("text", ["a.1@0+2", "a@0+1+2", "a@1+10:feedback"])
def test_a_joint_layer_prints_as_it_parses(text: str) -> None:
    at = LayerAt.parse(text)
    assert str(at) == text
    name, _, iterations = text.removesuffix(":feedback").partition("@")
    parts = [LayerAt(name, int(t), text.endswith(":feedback")) for t in iterations.split("+")]
    assert list(at.parts) == parts
    assert at.iteration == parts[-1].iteration
    assert at not in parts


def test_a_single_layer_is_its_own_part_and_layers_are_ordered_by_name_then_iteration() -> None:
    at = LayerAt("a", 2)
    assert at.parts == (at,)
    assert sorted([LayerAt("b"), LayerAt.parse("a@0+2"), at, LayerAt("a", 1)])[:2] == [LayerAt("a", 1), at]


@pytest.mark.parametrize("text", ["a@2+0", "a@0+0", "a@0+", "a@+2", "a@0+2+", "a@0 + 2"])
def test_iterations_that_make_no_joint_layer_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"features\.23@0\+2"):
        LayerAt.parse(text)


@pytest.mark.parametrize(
    "module", ["types", "recordings", "recordings.record", "predictivity.estimator", "predictivity.ridge"]
)
def test_the_examples_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"cnnf_brain.{module}"))
    assert result.attempted
    assert not result.failed
