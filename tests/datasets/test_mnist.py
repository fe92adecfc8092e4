"""IDX files to tensors: values, places, and every kind of damage."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trainer.idx_files import NAMES, drawn, idx

from cnnf_brain.datasets import mnist

TRAIN_IMAGES, TRAIN_LABELS = NAMES["train"]


def test_reads_the_values_of_a_file_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "three"
    path.write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255]))
    assert mnist.read_idx(path, 3).tolist() == [[[1, 2, 3]], [[4, 5, 255]]]


def test_gzipped_and_plain_are_the_same_whatever_the_name(make_folder: Any) -> None:
    plain, zipped = make_folder("plain"), make_folder("zipped")
    for number, name in enumerate(name for names in NAMES.values() for name in names):
        target = zipped / (name if number == 0 else f"{name}.gz")
        content = gzip.compress((zipped / name).read_bytes())
        (zipped / name).unlink()
        target.write_bytes(content)
    a, b = mnist.find("mnist", plain), mnist.find("mnist", zipped)
    assert a.check() == b.check()
    for part in ("train", "test"):
        assert torch.equal(a.read(part).images, b.read(part).images)
        assert torch.equal(a.read(part).labels, b.read(part).labels)
    images, labels = drawn(240, seed=1)
    assert np.array_equal(a.read("train").images.numpy(), images)
    assert np.array_equal(a.read("train").labels.numpy(), labels)


def test_the_data_hash_is_that_of_the_uncompressed_files(make_folder: Any) -> None:
    folder = make_folder()
    digests = [hashlib.sha256((folder / name).read_bytes()).digest() for names in NAMES.values() for name in names]
    assert mnist.find("mnist", folder).check() == hashlib.sha256(b"".join(digests)).hexdigest()


def _flip_a_byte_in_gzip(content: bytes) -> bytes:
    zipped = bytearray(gzip.compress(content))
    zipped[len(zipped) // 2] ^= 0xFF
    return bytes(zipped)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (TRAIN_IMAGES, lambda c: c[:-1], "its header says 240 x 28 x 28 values"),
        (TRAIN_IMAGES, lambda c: c + b"\0", "truncated or damaged"),
        (TRAIN_IMAGES, lambda c: c[:7], "7 bytes uncompressed"),
        (TRAIN_IMAGES, lambda c: b"", "begins with 0x; IDX files of images begin with 0x00000803"),
        (TRAIN_IMAGES, lambda c: gzip.compress(c)[:-5000], "is truncated or damaged"),
        (TRAIN_IMAGES, _flip_a_byte_in_gzip, "is truncated or damaged"),
        (TRAIN_IMAGES, lambda c: b"PK\x03\x04" + c, "begins with 0x504b0304"),
        (TRAIN_LABELS, lambda c: struct.pack(">I", 0x803) + c[4:], "IDX files of labels begin with 0x00000801"),
        (TRAIN_LABELS, lambda c: c[:-1] + b"\x0a", "label 10 of image 239 is not in 0..9"),
        (TRAIN_LABELS, lambda c: idx(np.zeros(239)), "has 240 images and train-labels-idx1-ubyte 239 labels"),
        (TRAIN_IMAGES, lambda c: idx(np.zeros((240, 32, 32))), "32 x 32 pixels, the network takes 28 x 28"),
        (TRAIN_IMAGES, lambda c: idx(np.zeros((0, 28, 28))), "has 0 images"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(make_folder: Any, name: Any, damage: Any, message: str) -> None:
    folder = make_folder()
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as caught:
        mnist.find("mnist", folder).check()
    assert str(folder) in str(caught.value)
    assert name in str(caught.value)


def test_damaged_test_images_are_found_by_the_check_too(make_folder: Any) -> None:
    folder = make_folder()
    path = folder / NAMES["test"][0]
    path.write_bytes(path.read_bytes()[:-1])
    source = mnist.find("mnist", folder)
    source.read("train")
    with pytest.raises(ValueError, match="t10k-images"):
        source.check()


def test_one_data_set_is_not_taken_for_the_other(make_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder()
    digest = hashlib.sha256((folder / TRAIN_IMAGES).read_bytes()).hexdigest()
    monkeypatch.setitem(mnist.PUBLISHED, "mnist", digest)
    assert len(mnist.find("mnist", folder).read("train")) == 240
    with pytest.raises(ValueError, match=r"is MNIST, not FashionMNIST: give dataset .mnist., or another folder as data"):
        mnist.find("fashion", folder).read("train")


@pytest.mark.parametrize("inside", [".", "MNIST/raw"])
def test_data_is_found_in_the_folder_named_and_in_torchvisions_place_below(
    make_folder: Any, tmp_path: Path, inside: str
) -> None:
    folder = make_folder(f"given/{inside}")
    assert mnist.find("mnist", tmp_path / "given").folder == folder


def test_a_folder_named_never_falls_back(make_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist, "DEBIAN", make_folder("debian"))
    monkeypatch.setattr(mnist, "download", lambda *_: pytest.fail("downloaded"))
    given = make_folder("given")
    (given / TRAIN_LABELS).unlink()
    with pytest.raises(FileNotFoundError, match="data was given, so nothing else was tried") as caught:
        mnist.find("fashion", given)
    assert f"{given} (lacks {TRAIN_LABELS})" in str(caught.value)
    assert f"{given / 'FashionMNIST' / 'raw'} (no such folder)" in str(caught.value)


def test_without_a_folder_the_cache_then_debian_then_the_download(
    make_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CNNF_BRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mnist, "DEBIAN", tmp_path / "debian")
    asked = []
    monkeypatch.setattr(mnist, "download", lambda dataset, root: asked.append((dataset, root)))
    mnist.find("fashion")
    assert asked == [("fashion", tmp_path / "cache" / "datasets")]
    make_folder("debian")
    assert mnist.find("fashion").folder == tmp_path / "debian"
    mnist.find("mnist")  # Debian's package holds Fashion-MNIST alone
    assert asked[1:] == [("mnist", tmp_path / "cache" / "datasets")]
    make_folder("cache/datasets/FashionMNIST/raw")
    assert mnist.find("fashion").folder == tmp_path / "cache" / "datasets" / "FashionMNIST" / "raw"
    assert len(asked) == 2


def test_a_failed_download_says_where_it_looked_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no network")

    monkeypatch.setenv("CNNF_BRAIN_CACHE", str(tmp_path))
    monkeypatch.setattr(mnist, "DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(mnist, "download", fail)
    with pytest.raises(FileNotFoundError, match="the download failed: no network") as caught:
        mnist.find("fashion")
    for part in (str(tmp_path / "debian"), str(tmp_path / "datasets"), "as data", "dataset-fashion-mnist"):
        assert part in str(caught.value)


def test_an_unknown_data_set_names_the_near_one() -> None:
    with pytest.raises(ValueError, match="did you mean 'fashion'"):
        mnist.find("fashon")


def test_the_validation_images_are_a_stratified_twelfth_and_always_the_same(make_folder: Any) -> None:
    whole = mnist.find("mnist", make_folder()).read("train")
    train, validation = mnist.split(whole)
    assert (len(train), len(validation)) == (220, 20)
    assert validation.labels.bincount().tolist() == [2] * 10
    rows = lambda images: {bytes(image.numpy().tobytes()) for image in images.images}  # noqa: E731
    assert rows(train) | rows(validation) == rows(whole)  # type: ignore[no-untyped-call]
    assert not rows(train) & rows(validation)  # type: ignore[no-untyped-call]
    assert torch.equal(mnist.split(whole)[1].images, validation.images)
    assert not torch.equal(mnist.split(whole, seed=1)[1].images, validation.images)


def test_too_few_images_for_a_validation_split() -> None:
    images = mnist.ImageSet(torch.zeros(100, 28, 28, dtype=torch.uint8), torch.arange(100) % 10)
    with pytest.raises(ValueError, match="100 training images are too few"):
        mnist.split(images)


def test_images_are_scaled_to_minus_one_and_one() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1)
    assert mnist.scale(pixels).shape == (3, 1, 1, 1)
    assert mnist.scale(pixels).flatten().tolist() == pytest.approx([-1.0, -0.6, 1.0], abs=1e-6)


def test_the_real_mnist(shared: Path) -> None:
    source = mnist.find("mnist", shared / "data" / "mnist")
    train, test = source.read("train"), source.read("test")
    assert train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert len(test) == 10_000
    with pytest.raises(ValueError, match="is MNIST, not FashionMNIST"):
        mnist.find("fashion", shared / "data" / "mnist").read("train")
