"""Images: their hashes, and images that change while a run reads them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import tiny

from cnnf_brain.recordings import images_from_files
from cnnf_brain.types import Images


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"picture{number}.png" for number in range(3)]
    for file, pixels in zip(found, tiny.pictures(3), strict=True):
        file.write_bytes(tiny.encoded(pixels))
    return found


def test_hashes_are_of_each_images_bytes_and_the_digest_is_of_these(files: list[Path]) -> None:
    images = images_from_files(files, where="here")
    apart = [hashlib.sha256(file.read_bytes()) for file in files]
    assert images.hashes() == tuple(one.hexdigest() for one in apart)
    assert images.digest() == hashlib.sha256(b"".join(one.digest() for one in apart)).hexdigest()


def test_each_image_is_hashed_once() -> None:
    content, read = [tiny.encoded(one) for one in tiny.pictures(3)], []
    images = Images(("a", "b", "c"), lambda index: read.append(index) or content[index], "memory")
    assert (images.digest(), images.hashes()) == (images.digest(), images.hashes())
    assert read == [0, 1, 2]


@pytest.mark.parametrize("hashed", ["hashes", "digest"])
def test_an_image_that_changes_after_it_was_hashed_is_refused(files: list[Path], hashed: str) -> None:
    images = images_from_files(files, where="here")
    getattr(images, hashed)()
    images.check()
    files[1].write_bytes(files[2].read_bytes())
    assert images.decode(0).size == (20, 20)
    with pytest.raises(ValueError, match=r"here: image 'picture1' has changed since this run first read it; leave the"):
        images.decode(1)
