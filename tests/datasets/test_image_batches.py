"""ImageNet's two forms to batches: every image once, the same for any ranks and workers, damage named."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import pickle
import subprocess
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import transforms

from cnnf_brain.datasets import image_index
from cnnf_brain.datasets.image_batches import (
    DiskBatches,
    Feed,
    ShownImages,
    TrainingOrder,
    ValidationOrder,
    decode,
    normalise,
)
from cnnf_brain.datasets.image_index import ImageIndex, index_images
from cnnf_brain.images import Preprocessing

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # on a machine with one core
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),  # Python 3.12 and later
]
WNIDS = ("n01", "n02", "n03")
STEP = 20  # grey levels between two training images, so that each is known by its pixels


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    return file.getvalue()


def drawn(number: int, size: int = 8) -> bytes:
    """A square whose left half has grey level STEP * number and whose right half has 6 more."""
    pixels = np.full((size, size, 3), STEP * number, dtype=np.uint8)
    pixels[:, size // 2 :] += 6
    return encoded(Image.fromarray(pixels))


def noise(size: int = 32) -> Image.Image:
    """A picture whose JPEG has more content than header."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def files(part: str) -> dict[str, bytes]:
    """``<wnid>/<file>`` -> bytes; image k of training has grey level STEP * k and is of class k % 3."""
    n = {"train": 11, "val": 7}[part]
    return {f"{WNIDS[k % 3]}/{part}_{n - k:02d}.JPEG": drawn(k) for k in range(n)}


def write_folder(root: Path, part: str, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        path = root / part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def write_tar(path: Path, content: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_shards(root: Path, part: str, content: dict[str, bytes], n_shards: int = 3) -> None:
    """Dealt out in an order of their own."""
    names = sorted(content, key=lambda name: name[::-1])
    for shard in range(n_shards):
        write_tar(root / f"{part}-{shard:05d}.tar", {name: content[name] for name in names[shard::n_shards]})


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same images in both forms."""
    found = {form: tmp_path_factory.mktemp(form) for form in ("folders", "shards")}
    for part in ("train", "val"):
        write_folder(found["folders"], part, files(part))
        write_shards(found["shards"], part, files(part))
    return found


@pytest.fixture(scope="module")
def train(roots: dict[str, Path]) -> ImageIndex:
    return index_images(roots["folders"])[0]


def shown_numbers(images: torch.Tensor) -> list[int]:
    """Which of the drawn training images these are, from the pixels, mirrored or not."""
    return ((images[:, 0].amin((1, 2)).int() + STEP // 2) // STEP).tolist()


def is_mirrored(images: torch.Tensor) -> list[bool]:
    return (images[:, 0, 0, 0] > images[:, 0, 0, -1]).tolist()


def file_name(path: str) -> str:
    """The last part of what an index calls an image."""
    return path.replace(":", "/").rpartition("/")[2]


def take(loader: Any, n: int) -> list[Any]:
    return [batch for batch, _ in zip(loader, range(n), strict=False)]


# ---------------------------------------------------------------- every image once


@pytest.mark.parametrize(
    ("form", "world_size", "workers"), [("folders", 1, 0), ("folders", 2, 2), ("shards", 3, 0), ("shards", 2, 1)]
)
def test_every_training_image_comes_exactly_once_an_epoch(
    roots: dict[str, Path], form: str, world_size: int, workers: int
) -> None:
    index, _ = index_images(roots[form])
    ranks = [
        take(
            DiskBatches(
                index=index, size=8, batch_size=4, seed=3, rank=rank, world_size=world_size, workers=workers
            ).batches(),
            11,
        )
        for rank in range(world_size)
    ]
    seen: list[int] = []
    for parts in zip(*ranks, strict=True):  # the batch of all ranks: rank r has its places r, r + world_size, ...
        batch = np.empty(4, dtype=int)
        for rank, part in enumerate(parts):
            batch[rank::world_size] = shown_numbers(part.images)
            assert [k % 3 for k in batch[rank::world_size]] == part.labels.tolist()
        seen += batch.tolist()
    epochs = [seen[first : first + 11] for first in range(0, 44, 11)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4  # each in an order of its own


@pytest.mark.parametrize(("form", "world_size", "workers"), [("folders", 1, 2), ("folders", 3, 0), ("shards", 2, 0)])
def test_every_validation_image_comes_exactly_once_in_each_pass(
    roots: dict[str, Path], form: str, world_size: int, workers: int
) -> None:
    _, index = index_images(roots[form])
    loaders = [
        DiskBatches(index=index, size=8, batch_size=3, rank=rank, world_size=world_size, workers=workers).once()
        for rank in range(world_size)
    ]
    for _ in range(2):
        batches = [list(loader) for loader in loaders]
        assert [len(found) for found in batches] == [len(loader) for loader in loaders]
        found = [
            pair
            for batch in itertools.chain(*batches)
            for pair in zip(shown_numbers(batch.images), batch.labels.tolist(), strict=True)
        ]
        assert sorted(found) == [(k, k % 3) for k in range(7)]
        assert not any(any(is_mirrored(batch.images)) for batch in itertools.chain(*batches))


@pytest.mark.parametrize("batch_size", [3, 4, 7, 25])  # 25: more than two epochs of 11 images at once
def test_the_batch_of_all_ranks_does_not_depend_on_their_number(batch_size: int) -> None:
    for step in range(12):
        alone = TrainingOrder(11, batch_size, seed=5).keys(step)
        for world_size in (2, 3):
            keys = [TrainingOrder(11, batch_size, 5, 0, rank, world_size).keys(step) for rank in range(world_size)]
            together = [key for numbers, mirrored in keys for key in zip(numbers, mirrored, strict=True)]
            assert Counter(together) == Counter(zip(*alone, strict=True))
            assert max(len(k[0]) for k in keys) - min(len(k[0]) for k in keys) <= 1


def test_a_pass_over_fewer_images_than_ranks_leaves_some_without() -> None:
    parts = [list(ValidationOrder(2, 8, rank, 4)) for rank in range(4)]
    assert [[k for numbers, _ in part for k in numbers] for part in parts] == [[0], [1], [], []]
    assert [len(ValidationOrder(2, 8, rank, 4)) for rank in range(4)] == [1, 1, 0, 0]


# ---------------------------------------------------------------- the same again


def test_folders_and_shards_of_the_same_files_are_the_same_data(roots: dict[str, Path]) -> None:
    for a, b in zip(index_images(roots["folders"]), index_images(roots["shards"]), strict=True):
        assert a.digest() == b.digest()
        assert a.classes == b.classes == WNIDS
        assert sorted(files(a.part)) == [os.fsdecode(name) for name in a.names]
        expected = [content for _, content in sorted(files(a.part).items())]
        assert [a.read(i) for i in range(len(a))] == [b.read(i) for i in range(len(b))] == expected


def test_other_data_have_another_digest(tmp_path: Path) -> None:
    content = files("train")
    first = next(iter(content))
    other = [content, content | {first: content[first] + b"\0"}, content | {"n01/new.png": b"x"}]
    other.append({name.replace("n02", "n04"): data for name, data in content.items()})
    digests = set()
    for number, some in enumerate(other):
        write_folder(tmp_path / str(number), "train", some)
        write_folder(tmp_path / str(number), "val", {"n01/a.jpg": b""})
        digests.add(index_images(tmp_path / str(number))[0].digest())
    assert len(digests) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_at_any_step_sees_the_rest_bit_for_bit(train: ImageIndex, workers: int) -> None:
    whole = take(DiskBatches(index=train, size=8, batch_size=4, seed=1).batches(), 9)
    for start in (0, 2, 7) if workers == 0 else (5,):
        rest = take(DiskBatches(index=train, size=8, batch_size=4, seed=1, workers=workers).batches(start), 9 - start)
        for a, b in zip(whole[start:], rest, strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.labels, b.labels)
            assert torch.equal(a.numbers, b.numbers)


def test_half_of_the_images_are_mirrored_anew_in_each_epoch_and_seed(train: ImageIndex) -> None:
    shown = ShownImages(train, 8)
    numbers = np.arange(len(train))
    plain, mirrored = (shown[numbers, np.full(len(train), flag)].images for flag in (False, True))
    assert torch.equal(mirrored, plain.flip(3))
    assert not any(is_mirrored(plain))

    def flags(seed: int, step: int) -> npt.NDArray[Any]:
        numbers, mirrored = TrainingOrder(4000, 4000, seed).keys(step)
        return mirrored[np.argsort(numbers)]

    some = [flags(0, 0), flags(0, 1), flags(1, 0)]
    assert all(abs(f.mean() - 0.5) < 0.04 for f in some)  # five standard deviations
    assert all(abs((a == b).mean() - 0.5) < 0.04 for a, b in ((some[0], some[1]), (some[0], some[2])))
    (batch,) = take(DiskBatches(index=train, size=8, batch_size=11, seed=2).batches(), 1)
    assert is_mirrored(batch.images) == TrainingOrder(11, 11, 2).keys(0)[1].tolist()
    assert 0 < sum(is_mirrored(batch.images)) < 11


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_draws_nothing_from_the_generator_of_dropout(train: ImageIndex, workers: int) -> None:
    before = torch.get_rng_state()
    take(DiskBatches(index=train, size=8, batch_size=4, seed=1, workers=workers).batches(), 2)
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- decoding


@pytest.mark.parametrize("size", [8, 20, 33])
def test_a_square_image_is_shown_as_compare_shows_it(size: int) -> None:
    image = noise(20)
    content = encoded(image, "PNG")
    batch = torch.from_numpy(decode(content, size).copy()).permute(2, 0, 1)[None]
    assert torch.equal(normalise(batch)[0], Preprocessing(size)(image))


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_the_middle_of_a_long_image_is_kept(shape: Any) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (shape[1], shape[0], 3), dtype=np.uint8))
    expected = transforms.CenterCrop(20)(transforms.Resize(20)(image))
    assert np.array_equal(decode(encoded(image, "PNG"), 20), np.asarray(expected))


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50)])
def test_a_resized_image_is_shown_as_its_preprocessing_shows_it(shape: Any) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (shape[1], shape[0], 3), dtype=np.uint8))
    shown = decode(encoded(image, "PNG"), 14, 16)
    batch = torch.from_numpy(shown.copy()).permute(2, 0, 1)[None]
    assert torch.equal(normalise(batch)[0], Preprocessing(14, resize=16)(image))
    assert not np.array_equal(shown, decode(encoded(image, "PNG"), 14))


def test_a_resized_image_looks_as_torchvision_shows_it() -> None:
    """500 x 375 pixels, as most of ImageNet. torchvision rounds the crop's margin to a whole pixel, here by half of one, which
    for these waves is at most 8 grey levels (100 / 9 a pixel of the original, 1.46 of which are a pixel that is shown)."""
    waves = np.sin(np.arange(375) / 9)[:, None] * np.cos(np.arange(500) / 13)
    image = Image.fromarray((127 + 100 * waves).astype(np.uint8)).convert("RGB")
    expected = np.asarray(transforms.CenterCrop(224)(transforms.Resize(256)(image))).astype(int)
    gaps = {resize: np.abs(decode(encoded(image, "PNG"), 224, resize).astype(int) - expected) for resize in (256, None)}
    assert gaps[256].max() <= 8 + 1
    assert 5 * gaps[256].mean() < gaps[None].mean()


def test_a_large_jpeg_decoded_at_reduced_size_looks_the_same() -> None:
    waves = np.sin(np.arange(400) / 9)[:, None] * np.cos(np.arange(320) / 13)
    image = Image.fromarray((127 + 100 * waves).astype(np.uint8)).convert("RGB")
    whole = Image.open(io.BytesIO(encoded(image))).resize((32, 32), Image.Resampling.BILINEAR, (0, 40, 320, 360))
    found = decode(encoded(image), 32)
    assert np.abs(found.astype(int) - np.asarray(whole)).max() <= 3
    assert np.asarray(whole).std() > 30


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_kind_of_image_becomes_rgb(mode: str) -> None:
    grey = Image.new("RGB", (9, 9), (255, 255, 255) if mode == "1" else (128, 128, 128))
    kind = "JPEG" if mode in ("L", "CMYK") else "PNG"  # whatever the suffix says
    found = decode(encoded(grey.convert(mode), kind), 6)
    assert found.shape == (6, 6, 3)
    assert np.abs(found.astype(int) - np.asarray(grey)[0, 0]).max() <= 2


def test_batches_are_uint8_in_channels_last_memory(train: ImageIndex) -> None:
    (batch,) = take(DiskBatches(index=train, size=8, batch_size=4, seed=0, workers=1).batches(), 1)
    assert batch.images.shape == (4, 3, 8, 8)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert normalise(batch.images).is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.dtype == batch.numbers.dtype == torch.int64


@pytest.mark.parametrize("form", ["folders", "shards"])
@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_images_are_left_out_and_named(tmp_path: Path, form: str, workers: int) -> None:
    deep = encoded(Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16)), "PNG")
    good = {f"n01/{k}.JPEG": drawn(k) for k in range(3)}
    png = {"n01/3.JPEG": encoded(Image.open(io.BytesIO(drawn(3))), "PNG")}  # as one in ILSVRC-12
    bad = {
        "n02/cut.JPEG": encoded(noise())[:-500],
        "n02/empty.JPEG": b"",
        "n02/text.JPEG": b"not an image",
        "n02/deep.JPEG": deep,
    }
    {"folders": write_folder, "shards": write_shards}[form](tmp_path, "train", good | png | bad)
    {"folders": write_folder, "shards": write_shards}[form](tmp_path, "val", bad)
    index, validation = index_images(tmp_path)
    feed = Feed(DiskBatches(index=index, size=8, batch_size=8, seed=0, workers=workers).batches())
    for batch in (next(feed), next(feed)):
        assert sorted(shown_numbers(batch.images)) == [0, 1, 2, 3]
        assert batch.labels.tolist() == [0] * 4
        assert sorted(file_name(index.path(n)) for n in batch.numbers) == [f"{k}.JPEG" for k in range(4)]
        assert len(batch.bad) == 4
    reasons = {file_name(path): reason for path, reason in feed.bad.items()}
    assert sorted(reasons) == ["cut.JPEG", "deep.JPEG", "empty.JPEG", "text.JPEG"]
    assert "truncated" in reasons["cut.JPEG"]
    assert "cannot identify" in reasons["text.JPEG"]
    assert "more than 8 bits" in reasons["deep.JPEG"]
    assert all(Path(path.split(":")[0]).is_file() for path in feed.bad)  # what is named can be looked at
    (nothing,) = DiskBatches(index=validation, size=8, batch_size=8, workers=workers).once()
    assert nothing.images.shape == (0, 3, 8, 8)
    assert nothing.labels.shape == (0,)
    assert len(nothing.bad) == 4


def test_an_image_that_vanished_is_named_too(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_folder(tmp_path, part, files(part))
    index, _ = index_images(tmp_path)
    gone = Path(index.path(4))
    gone.unlink()
    batch = ShownImages(index, 8)[np.array([3, 4]), np.array([False, False])]
    assert batch.numbers.tolist() == [3]
    assert list(batch.bad) == [str(gone)]
    assert "No such file" in batch.bad[str(gone)]


def test_the_wait_for_data_is_measured(train: ImageIndex) -> None:
    def slow() -> Iterator[Any]:
        for _ in range(2):
            time.sleep(0.05)
            yield ShownImages(train, 8)[np.array([0]), np.array([False])]

    feed = Feed(slow())
    next(feed)
    time.sleep(0.2)  # the model at work does not count
    next(feed)
    assert feed.waited == pytest.approx(0.1, abs=0.08)
    with pytest.raises(StopIteration):
        next(feed)


def test_workers_outlive_the_signals_that_stop_the_trainer(train: ImageIndex) -> None:
    batches = iter(DiskBatches(index=train, size=8, batch_size=4, seed=0, workers=2).batches())
    for _ in range(2):  # one of each: both workers are past their start
        next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:  # by another process, as a scheduler does
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
        subprocess.run(["kill", "-INT", str(worker.pid)], check=True)
    for _ in range(6):
        next(batches)
    assert all(worker.is_alive() for worker in workers)
    workers[0].terminate()  # by their own parent, they end at once
    workers[0].join(timeout=5)
    assert workers[0].exitcode == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_images": 0}, "no images to order"),
        ({"rank": 2, "world_size": 2}, r"rank 2 is not in 0\.\.1"),
        ({"rank": -1}, "rank -1 is not in"),
        ({"batch_size": 2, "world_size": 3}, "a batch of 2 images over all ranks leaves some of the 3 ranks without any"),
        ({"start": -1}, "must not be negative"),
        ({"seed": -1}, "must not be negative"),
    ],
)
def test_an_impossible_order_is_refused(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingOrder(**{"n_images": 9, "batch_size": 3, "seed": 0} | change)


# ---------------------------------------------------------------- a flat val/ and the devkit


def write_devkit(root: Path, truth: str) -> None:
    """The devkit numbers classes in its own way, and lists inner synsets after them."""
    kit = root / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    rows = [(1, "n02", "b", 0), (2, "n03", "c", 0), (3, "n01", "a", 0), (4, "n00", "all", 3)]
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    savemat(kit / "meta.mat", {"synsets": np.array(rows, dtype=kinds)})


def flat(root: Path) -> Path:
    write_folder(root, "train", files("train"))
    write_folder(root, "val", {f"ILSVRC2012_val_{k:08d}.JPEG": drawn(k) for k in (4, 2, 1, 3)})
    return root


def test_a_flat_validation_folder_is_labelled_by_the_devkit(tmp_path: Path) -> None:
    write_devkit(flat(tmp_path), "3\n1\n1\n2\n")
    _, index = index_images(tmp_path)
    (batch,) = DiskBatches(index=index, size=8, batch_size=8).once()
    found = dict(zip(shown_numbers(batch.images), batch.labels.tolist(), strict=True))
    assert found == {1: 0, 2: 1, 3: 1, 4: 2}  # n01, n02, n02, n03
    assert all(Path(index.path(n)).parent == tmp_path / "val" for n in range(4))
    sorted_root = tmp_path / "sorted"
    write_folder(sorted_root, "train", files("train"))
    by_hand = {1: "n01", 2: "n02", 3: "n02", 4: "n03"}
    write_folder(sorted_root, "val", {f"{wnid}/ILSVRC2012_val_{k:08d}.JPEG": drawn(k) for k, wnid in by_hand.items()})
    assert index_images(sorted_root)[1].digest() == index.digest()


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ("3\n1\n1\n", "has 4 images, but .*ground_truth.txt has 3 lines"),
        ("3\n1\n1\n9\n", r"do not fit together \(KeyError: 9\)"),
        ("3\n1\nx\n2\n", "do not fit together .*expected those of ILSVRC2012_devkit_t12"),
        ("3\n1\n4\n2\n", "validation has classes that training lacks: n00"),
    ],
)
def test_a_devkit_that_does_not_fit_is_refused(tmp_path: Path, truth: str, message: str) -> None:
    write_devkit(flat(tmp_path), truth)
    with pytest.raises(ValueError, match=message):
        index_images(tmp_path)


def test_a_damaged_or_absent_devkit_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no class folders, and .*ground_truth.txt is not there: unpack .*\.tar\.gz"
    ):
        index_images(flat(tmp_path))
    write_devkit(tmp_path, "3\n1\n1\n2\n")
    (tmp_path / "ILSVRC2012_devkit_t12" / "data" / "meta.mat").write_bytes(b"")
    with pytest.raises(ValueError, match=r"meta\.mat beside it do not fit together"):
        index_images(tmp_path)


# ---------------------------------------------------------------- wrong folders


def add(path: str, content: bytes = b"x") -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda root: (root / "train").rename(root / "t"),
            FileNotFoundError,
            r"has no train/ and no train-\*\.tar; expected",
        ),
        (lambda root: (root / "val").rename(root / "v"), FileNotFoundError, r"has no val/ and no val-\*\.tar; expected"),
        (lambda root: root.rename(root.with_name("gone")), FileNotFoundError, "is not a folder that has train/"),
        (add("train-0.tar"), ValueError, r"has both train/ and train-0\.tar: leave the one"),
        (add("train/lost.JPEG"), ValueError, r"train has 1 images beside its 3 class folders \(lost\.JPEG\)"),
        (lambda root: (root / "train" / "n09").mkdir(), ValueError, "n09 has no images; expected the images of class n09"),
        (add("train/n09/images/a.JPEG"), ValueError, r"n09 has only folders \(images\)"),
        (add("val/n08/a.png"), ValueError, r"classes that training lacks: n08 \(1 beside the 3 of training\)"),
    ],
)
def test_wrong_folders_are_refused(tmp_path: Path, change: Any, error: Any, message: str) -> None:
    root = tmp_path / "data"
    for part in ("train", "val"):
        write_folder(root, part, files(part))
    change(root)
    with pytest.raises(error, match=message):
        index_images(root)


def test_folders_with_nothing_to_learn_from_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match=r"train has no folders; expected train/<wnid>/ .*ILSVRC2012_img_train\.tar"):
        index_images(tmp_path)
    write_folder(tmp_path, "train", {"n01/a.jpg": b""})
    write_folder(tmp_path, "val", {"n01/a.jpg": b""})
    with pytest.raises(ValueError, match=r"all training images are of the class 'n01'; expected .*at least two"):
        index_images(tmp_path)


def test_what_is_not_an_image_is_passed_over(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_folder(tmp_path, part, files(part))
    before = [index.digest() for index in index_images(tmp_path)]
    for stray in ("train/n01/boxes.txt", "train/n01/.hidden.JPEG", "train/.cache/a.JPEG", "val/valprep.sh"):
        add(stray)(tmp_path)
    assert [index.digest() for index in index_images(tmp_path)] == before


def test_class_folders_may_be_links(tmp_path: Path) -> None:
    write_folder(tmp_path, "all", files("train"))
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        for wnid in WNIDS[:2]:
            (tmp_path / part / wnid).symlink_to(tmp_path / "all" / wnid)
    train, _ = index_images(tmp_path)
    assert train.classes == WNIDS[:2]
    assert len(train) == 8


# ---------------------------------------------------------------- shards


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for part in ("train", "val"):
        write_shards(tmp_path, part, files(part))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.JPEG", r"member 'a\.JPEG' is not of the form <wnid>/<file>; make the shard anew"),
        ("train/n01/a.JPEG", r"member 'train/n01/a\.JPEG' is not of the form"),
        ("../a.JPEG", r"member '\.\./a\.JPEG' is not of the form"),
        ("/n01/a.JPEG", r"is not of the form <wnid>/<file>"),
        ("n02/train_10.JPEG", r"n02/train_10\.JPEG occurs more than once, in .*train-00009\.tar"),
    ],
)
def test_a_member_of_another_form_is_refused(shards: Path, name: str, message: str) -> None:
    write_tar(shards / "train-00009.tar", {name: b"x"})
    with pytest.raises(ValueError, match=message):
        index_images(shards)


def test_a_link_in_a_shard_is_refused(shards: Path) -> None:
    with tarfile.open(shards / "train-00009.tar", "w") as tar:
        member = tarfile.TarInfo("n01/link.JPEG")
        member.type, member.linkname = tarfile.SYMTYPE, "elsewhere.JPEG"
        tar.addfile(member)
    with pytest.raises(ValueError, match=r"'n01/link\.JPEG' is a link or a sparse file"):
        index_images(shards)


def test_folders_and_other_members_of_a_shard_are_passed_over(shards: Path) -> None:
    before = index_images(shards)[0].digest()
    with tarfile.open(shards / "train-00009.tar", "w") as tar:
        folder = tarfile.TarInfo("./n01")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("README", "n01/._a.JPEG"):
            tar.addfile(tarfile.TarInfo(name))
    assert index_images(shards)[0].digest() == before


def test_names_may_begin_with_a_dot_and_a_slash_and_be_long(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_tar(tmp_path / f"{part}-0.tar", {"./n01/" + "é" * 90 + ".JPEG": drawn(1), "./n02/b.JPEG": drawn(2)})
    index, _ = index_images(tmp_path)
    assert index.path(0).endswith("train-0.tar:n01/" + "é" * 90 + ".JPEG")
    assert [index.read(0), index.read(1)] == [drawn(1), drawn(2)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: b"\x1f\x8b" + raw,
        lambda raw: raw[:700],  # in the data of the first member
        lambda raw: raw[:1536],  # between members, where tarfile sees nothing wrong
        lambda raw: raw[:1700],  # in a header: the same
        lambda raw: raw[:1536] + b"?" * 512 + raw[2048:],  # a damaged header: the same
    ],
    ids=["empty", "compressed", "in data", "between", "in header", "damaged header"],
)
def test_a_shard_that_is_not_whole_is_refused(shards: Path, damage: Callable[..., Any]) -> None:
    path = shards / "train-00001.tar"
    raw = path.read_bytes()
    assert raw[1536 + 257 : 1536 + 262] == b"ustar"  # a header lies there
    path.write_bytes(damage(raw))
    with pytest.raises(
        ValueError, match=r"train-00001\.tar cannot be read as a whole tar file .*make it again, uncompressed"
    ):
        index_images(shards)


def test_shards_are_listed_once_until_they_change(shards: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = [index.digest() for index in index_images(shards)]
    real = tarfile.open
    with monkeypatch.context() as patch:
        patch.setattr(image_index.tarfile, "open", lambda *a, **k: pytest.fail("a shard was listed again"))  # type: ignore[attr-defined]
        again = index_images(shards)
    assert [index.digest() for index in again] == first
    assert [again[0].read(i) for i in range(len(again[0]))] == [data for _, data in sorted(files("train").items())]
    for path in (cache / "image-index").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert image_index.tarfile.open is real  # type: ignore[attr-defined]
    assert [index.digest() for index in index_images(shards)] == first  # a damaged cache is made again
    write_tar(shards / "train-00002.tar", {"n01/new.JPEG": drawn(0)})
    assert index_images(shards)[0].digest() != first[0]


def swapped(content: dict[str, bytes]) -> dict[str, bytes]:
    """The same images under one another's names: other labels, and a shard of the same size."""
    return dict(zip(content, reversed(content.values()), strict=True))


def same_size(n: int = 3) -> dict[str, bytes]:
    return {f"{WNIDS[k]}/{k}.JPEG": drawn(k).ljust(2000, b"\0") for k in range(n)}


@pytest.mark.parametrize("in_place", [True, False])
def test_a_shard_of_the_same_size_and_time_is_listed_again(tmp_path: Path, in_place: bool) -> None:
    write_tar(tmp_path / "val-0.tar", same_size())
    path = tmp_path / "train-0.tar"
    write_tar(path, same_size())
    assert shown_as_labels(index_images(tmp_path)[0]) == {0: 0, 1: 1, 2: 2}
    before = path.stat()
    time.sleep(0.05)  # the clock of file systems ticks slowly
    other = path if in_place else tmp_path / "new.tar"
    write_tar(other, dict(reversed(swapped(same_size()).items())))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert shown_as_labels(index_images(tmp_path)[0]) == {0: 2, 1: 1, 2: 0}


def shown_as_labels(index: ImageIndex) -> dict[int, int]:
    """Grey level of each image -> the label that it is read with."""
    numbers = np.arange(len(index))
    batch = ShownImages(index, 8)[numbers, numbers < 0]
    return dict(zip(shown_numbers(batch.images), batch.labels.tolist(), strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_changes_under_a_run_stops_it(tmp_path: Path, workers: int) -> None:
    for part in ("train", "val"):
        write_tar(tmp_path / f"{part}-0.tar", same_size())
    index, _ = index_images(tmp_path)
    loader = DiskBatches(index=index, size=8, batch_size=3, seed=0, workers=workers).batches()
    assert sorted(shown_numbers(next(Feed(loader)).images)) == [0, 1, 2]
    write_tar(tmp_path / "train-0.tar", dict(reversed(same_size().items())))  # in place: the open file sees it
    with pytest.raises(image_index.ChangedShard) as caught:
        next(Feed(loader))
    assert str(caught.value).startswith(f"{tmp_path / 'train-0.tar'}:n0")
    assert "is not where it was when the shard was listed" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["folders", "shards"])
def test_the_validation_part_alone_is_indexed(roots: dict[str, Path], tmp_path: Path, form: str) -> None:
    whole = index_images(roots[form])[1]
    assert image_index.index_validation(roots[form]).digest() == whole.digest()
    {"folders": write_folder, "shards": write_shards}[form](tmp_path, "val", files("val"))
    alone = image_index.index_validation(tmp_path)
    assert alone.digest() == whole.digest()
    assert alone.labels.tolist() == whole.labels.tolist()
    lacking = {name: data for name, data in files("val").items() if not name.startswith("n01")}
    write_folder(tmp_path / "some", "val", lacking)
    write_folder(tmp_path / "some", "train", files("train"))
    assert image_index.index_validation(tmp_path / "some").classes == WNIDS
    with pytest.raises(FileNotFoundError, match=r"has val/ or val-\*\.tar"):
        image_index.index_validation(tmp_path / "nothing")


def test_images_are_taken_evenly_spaced(train: ImageIndex) -> None:
    assert train.spaced(4).names.tolist() == train.names[[0, 2, 5, 8]].tolist()
    assert train.spaced(4).read(3) == train.read(8)
    assert train.spaced(None) is train.spaced(11) is train.spaced(99) is train
    assert train.spaced(4).classes == train.classes
    assert train.spaced(4).digest() != train.digest()


def test_few_shards_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_index, "MAX_OPEN", 2)
    for part in ("train", "val"):
        write_shards(tmp_path, part, files(part), n_shards=5)
    index, _ = index_images(tmp_path)
    for _ in range(2):
        assert [index.read(i) for i in range(11)] == [data for _, data in sorted(files("train").items())]
        assert len(index._open) == 2


def test_an_index_goes_to_a_spawned_worker_without_open_files(roots: dict[str, Path]) -> None:
    index, _ = index_images(roots["shards"])
    content = index.read(0)
    other = pickle.loads(pickle.dumps(index))
    assert index._open
    assert not other._open
    assert other.read(0) == content
    assert other.digest() == index.digest()


# ---------------------------------------------------------------- real images


def test_tiny_imagenet(shared: Path) -> None:
    root = shared / "data" / "tiny-imagenet"
    train, validation = index_images(root)
    wnids = [line.split("\t")[0] for line in (root / "classes.tsv").read_text().splitlines()[1:]]
    assert list(train.classes) == sorted(wnids)
    assert np.bincount(train.labels).tolist() == [100] * 200
    assert np.bincount(validation.labels).tolist() == [20] * 200
    for batch in take(DiskBatches(index=train, size=64, batch_size=128, seed=0).batches(), 2):
        assert batch.images.shape == (128, 3, 64, 64)
        assert not batch.bad
    with tarfile.open(root / "val-00001.tar") as tar:
        name = os.fsdecode(validation.names[17])
        expected = {m.name: tar.extractfile(m).read() for m in tar if m.name == name}
    assert expected in ({}, {name: validation.read(17)})
    numbers = np.arange(0, 4000, 97)
    shown = ShownImages(validation, 64)[numbers, np.zeros(len(numbers), dtype=bool)]
    for number, pixels in zip(numbers, shown.images, strict=True):
        whole = Image.open(io.BytesIO(validation.read(number))).convert("RGB")
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(whole))
