"""Shards of WebDataset: what the library itself writes and reads gives the same images with the same labels here."""

from __future__ import annotations

import gc
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from datasets.test_image_batches import drawn, write_tar

from cnnf_brain.datasets import image_index
from cnnf_brain.datasets.image_index import ImageIndex, index_images, index_validation

LABELS = {"train": [4, 0, 10, 2, 0, 4, 10], "val": [2, 10, 0]}  # 1, 3 and others have no images


def content(part: str, n: int, first: int = 0) -> dict[str, bytes]:
    """Members of a shard; keys begin anew in each, in folders or not."""
    found: dict[str, bytes] = {}
    for k in range(n):
        key = f"part/{k:04d}" if part == "val" else f"{k:04d}"
        found |= {f"{key}.jpg": drawn(first + k), f"{key}.cls": str(LABELS[part][first + k]).encode()}
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, n, first in (("train-000", 4, 0), ("train-001", 3, 4), ("val-000", 3, 0)):
        write_tar(tmp_path / f"{name}.tar", content(name[:-4], n, first))
    return tmp_path


def samples(index: ImageIndex) -> list[tuple[bytes, int]]:
    """Every image's bytes, and its class as its number."""
    return sorted((index.read(i), int(index.classes[index.labels[i]])) for i in range(len(index)))


def test_labels_are_the_numbers_of_the_files(root: Path) -> None:
    train, validation = index_images(root)
    assert train.classes == validation.classes == tuple(f"{number:06d}" for number in range(11))
    assert sorted(train.labels.tolist()) == sorted(LABELS["train"])
    assert samples(train) == sorted((drawn(k), label) for k, label in enumerate(LABELS["train"]))
    assert samples(validation) == sorted((drawn(k), label) for k, label in enumerate(LABELS["val"]))
    assert {train.path(i) for i in range(2)} == {f"{root}/train-000.tar:0001.jpg", f"{root}/train-001.tar:0000.jpg"}
    assert validation.path(0) == f"{root}/val-000.tar:part/0002.jpg"
    assert index_validation(root).digest() == validation.digest()


def test_they_are_listed_once_until_they_change(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [index.digest() for index in index_images(root)]
    with monkeypatch.context() as patch:
        patch.setattr(image_index.tarfile, "open", lambda *a, **k: pytest.fail("a shard was listed again"))  # type: ignore[attr-defined]
        again = index_images(root)
    assert [index.digest() for index in again] == before
    assert again[0].classes[10] == "000010"
    write_tar(root / "train-001.tar", {**content("train", 3, 4), "0000.cls": b"3"})
    assert index_images(root)[0].digest() != before[0]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the library leaves its streams to the garbage collector
def test_what_the_library_writes_and_reads_is_the_same_here(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    for part, labels in LABELS.items():
        with webdataset.ShardWriter(str(tmp_path / f"{part}-%06d.tar"), maxcount=3, verbose=0) as sink:
            for k, label in enumerate(labels):
                sink.write({"__key__": f"sample{k:05d}", "jpg": drawn(k), "cls": label, "json": {"k": k}})
    for index, part in zip(index_images(tmp_path), LABELS, strict=True):
        urls = sorted(map(str, tmp_path.glob(f"{part}-*.tar")))
        theirs = webdataset.WebDataset(urls, shardshuffle=False).to_tuple("jpg", "cls")
        assert samples(index) == sorted((jpg, int(cls)) for jpg, cls in theirs)
    gc.collect()


def member(name: str, kind: bytes = tarfile.REGTYPE, **more: Any) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type = kind
    for key, value in more.items():
        setattr(found, key, value)
    return found


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"9.jpg": b"x"}, r"member '9\.jpg' needs the number of its class, .* \(found: none\)"),
        ({"9.jpg": b"x", "9.cls": b"cat"}, r"member '9\.jpg' needs .* \(found: b'cat' in '9\.cls'\)"),
        ({"9.jpg": b"x", "9.cls": b"-1"}, "found: b'-1'"),
        ({"9.jpg": b"x", "9.cls": b"1234567"}, "found: b'1234567'"),
        ({"9.jpg": b"x", "9.png": b"x", "9.cls": b"1"}, r"member '9\.png' needs"),
        ({"9.cls": b"1"}, r"'9\.cls' has no image of the same name"),
    ],
)
def test_a_sample_that_is_not_whole_is_refused(root: Path, more: dict[str, bytes], message: str) -> None:
    write_tar(root / "train-002.tar", {**content("train", 1), **more})
    with pytest.raises(ValueError, match=rf"train-002\.tar: .*{message}"):
        index_images(root)


def test_a_link_in_place_of_a_number_is_refused(root: Path) -> None:
    with tarfile.open(root / "train-002.tar", "w") as tar:
        image = member("a.jpg", size=1)
        tar.addfile(image, io.BytesIO(b"x"))
        tar.addfile(member("a.cls", tarfile.SYMTYPE, linkname="b.cls"))
    with pytest.raises(ValueError, match=r"member 'a\.cls' is a link or a sparse file"):
        index_images(root)


def test_shards_of_both_forms_in_one_part_are_refused(root: Path) -> None:
    write_tar(root / "train-002.tar", {"n01/a.JPEG": drawn(1)})
    with pytest.raises(ValueError, match=r"some of train-000\.tar to train-002\.tar hold <wnid>/<file> and some"):
        index_images(root)
