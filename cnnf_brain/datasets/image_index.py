"""Where every image of a training and a validation part lies, from either form that ImageNet comes in.

- Folders: ``train/<wnid>/*`` and ``val/<wnid>/*``. A flat ``val/*``, as the archive of ILSVRC-12 unpacks, is labelled by
  the ground truth of its devkit, unpacked beside it (``ILSVRC2012_devkit_t12/data/``).
- Tar shards ``train-*.tar`` and ``val-*.tar``, whose members are ``<wnid>/<file>``, or, in the form of WebDataset, an image
  ``<key>.jpg`` and the number of its class ``<key>.cls``. They are read in place, nothing is unpacked: Python's tarfile says at
  which byte each member begins, and each read checks that the header there is still the same.

Folders and shards of ``<wnid>/<file>`` give the same index (images sorted by name) where they hold the same files, and so the
same run. Images are told by their suffix, as torchvision does; hidden files and others are passed over.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from cnnf_brain.io import cache_folder, open_file, read_bytes, read_text, reading, write_whole

Array = np.ndarray[Any, Any]
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
DEVKIT = Path("ILSVRC2012_devkit_t12", "data")
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
MAX_OPEN = 128  # shards open at once in a process: the limit is often 1024, and a set may have more shards than that
BLOCK = 512  # bytes; a tar file consists of such blocks


class ChangedShard(OSError):
    """A shard is not any more what it was when it was listed."""


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """The images of one part, sorted by name; any of them is read by its number.

    ``part``: "train" or "val". ``classes``: the wnids in order, of WebDataset the numbers 000000, 000001, ... up to the largest.
    ``names`` (n,) bytes: ``<wnid>/<file>``, of WebDataset ``<number>/<shard>/<key>.jpg``. ``labels`` (n,)
    int64: places in ``classes``. ``sizes`` (n,) int64: bytes. Of shards also ``shards`` (their names), ``shard`` (n,) and
    ``offsets`` (n,) int64: the file and the byte at which each image begins, and ``headers`` (n,) int64: a hash of the tar header
    before it. ``flat``: the files lie in no wnid folders; of shards, they are of WebDataset.
    """

    root: Path
    part: str
    classes: tuple[str, ...]
    names: Array
    labels: Array
    sizes: Array
    shard: Array
    offsets: Array
    headers: Array
    shards: tuple[str, ...] = ()
    flat: bool = False
    _open: dict[int, int] = field(default_factory=dict, init=False, repr=False)  # shard -> descriptor, in this process

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": {}}

    def path(self, number: int) -> str:
        """What to call image ``number`` in messages: its path, with ``:`` before the name of a member of a shard."""
        name = os.fsdecode(self.names[number])
        if self.shards:
            return f"{self.root / self.shards[self.shard[number]]}:{name.split('/', 2)[2] if self.flat else name}"
        return str(self.root / self.part / (name.split("/")[1] if self.flat else name))

    def read(self, number: int) -> bytes:
        """The encoded bytes of image ``number``; ChangedShard where the header before it in its shard (name, size, time) is not
        the one that was listed: the bytes would be those of another image."""
        if not self.shards:
            return read_bytes(self.path(number))
        begin = int(self.offsets[number]) - BLOCK
        content = os.pread(self._descriptor(int(self.shard[number])), BLOCK + int(self.sizes[number]), begin)
        if _mark(content[:BLOCK]) != self.headers[number]:
            raise ChangedShard(
                f"{self.path(number)} is not where it was when the shard was listed: the shard has been replaced "
                "or changed since; start again, so that it is listed anew"
            )
        return content[BLOCK:]

    def _descriptor(self, shard: int) -> int:
        """``shard`` opened when first asked for. A descriptor that a forked worker inherits serves it as well as the
        parent, since pread moves no file position."""
        if shard not in self._open:
            if len(self._open) >= MAX_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[shard] = os.open(self.root / self.shards[shard], os.O_RDONLY | os.O_CLOEXEC)
        return self._open[shard]

    def digest(self) -> str:
        """SHA-256 over the names, sizes and labels of all images and the classes: other data, another digest.

        The same for folders and shards of the same files. It does not cover the bytes of the images, which may be 140 GB: a run
        goes on with an image that is replaced by another of the same name and the same number of bytes.
        """
        whole = hashlib.sha256(json.dumps([self.part, self.classes, len(self)]).encode())
        whole.update(b"\n".join(self.names.tolist()))
        whole.update(self.sizes.astype("<i8").tobytes())
        whole.update(self.labels.astype("<i8").tobytes())
        return whole.hexdigest()

    def classes_digest(self) -> str:
        """SHA-256 over the classes in their order: networks of the same digest number their outputs alike."""
        return hashlib.sha256(json.dumps(self.classes).encode()).hexdigest()

    def spaced(self, n: int | None) -> ImageIndex:
        """``n`` of the images, evenly spaced; all where ``n`` is None or they are fewer."""
        if n is None or n >= len(self):
            return self
        rows = np.arange(n) * len(self) // n
        return replace(self, **{name: getattr(self, name)[rows] for name in ("labels", *LISTED)})


LISTED = ("names", "sizes", "shard", "offsets", "headers")  # what is found of each image; fields of an ImageIndex
Listing = tuple[list[tuple[bytes, int, int, int, int]], dict[str, Any]]  # each image as LISTED; other fields of the index


def index_images(root: Path) -> tuple[ImageIndex, ImageIndex]:
    """Index the training and the validation part in ``root``.

    Classes are the wnids of the training part, sorted, or all numbers up to its largest (WebDataset); validation may lack some of
    them. The places of the members of shards are kept in the cache folder, since finding them takes a read of every header. They
    are used as long as name, size, inode and both times of every shard stay as they are. Of several ranks, one should be first.

    A FileNotFoundError where ``root`` or one of the parts is not there. A ValueError where a part comes in both forms or has no
    images, there are fewer than two classes, validation has a class that training lacks, an image occurs twice, a tar file is not
    whole or has images that are not ``<wnid>/<file>``, or the devkit does not fit a flat ``val/``.
    """
    root = Path(root)
    train, validation = (_columns(root, part) for part in ("train", "val"))
    classes = _classes(train)
    if len(classes) < 2:
        raise ValueError(
            f"{root}: all training images are of the class {os.fsdecode(classes[0])!r}; expected train/<wnid>/ "
            "folders (or members <wnid>/<file> of shards) of at least two classes"
        )
    return _labelled(root, "train", classes, train), _labelled(root, "val", classes, validation)


def index_validation(root: Path) -> ImageIndex:
    """Index the validation part in ``root`` alone; the training part need not be there.

    Classes are the wnids of the training part where there is one (its folders, or the members of its shards), else those of the
    validation images, sorted. Raises as ``index_images`` does.
    """
    root = Path(root)
    columns = _columns(root, "val")
    if list(root.glob("train-*.tar")):
        classes = _classes(_columns(root, "train"))
    elif (root / "train").is_dir():
        classes = np.array([os.fsencode(wnid) for wnid in _scan(root / "train")[0]], dtype=bytes)
    else:
        classes = _classes(columns)
    return _labelled(root, "val", classes, columns)


def _classes(columns: dict[str, Any]) -> Array:
    """The classes of a part as bytes, sorted. Numbers (WebDataset) are labels: those without images are classes too."""
    found = np.unique(columns["wnids"])
    return np.array([b"%06d" % number for number in range(int(found[-1]) + 1)]) if _is_webdataset(columns) else found


def _is_webdataset(columns: dict[str, Any]) -> bool:
    return "shards" in columns and bool(columns.get("flat"))


def _labelled(root: Path, part: str, classes: Array, columns: dict[str, Any]) -> ImageIndex:
    """The index of a part whose wnids are all in ``classes`` (sorted)."""
    wnids = columns.pop("wnids")
    lacking = np.setdiff1d(wnids, classes)
    if len(lacking):
        listed = ", ".join(os.fsdecode(wnid) for wnid in lacking[:5])
        raise ValueError(
            f"{root}: validation has classes that training lacks: {listed}{', …' * (len(lacking) > 5)} "
            f"({len(lacking)} beside the {len(classes)} of training); take both parts from the same set of classes"
        )
    labels = np.searchsorted(classes, wnids).astype(np.int64)
    return ImageIndex(root, part, tuple(os.fsdecode(wnid) for wnid in classes), labels=labels, **columns)


def _list(root: Path, part: str) -> Listing:
    """Find the form that ``part`` comes in and list its images."""
    folder, shards = root / part, sorted(root.glob(f"{part}-*.tar"))
    if folder.is_dir() and shards:
        raise ValueError(f"{root} has both {part}/ and {shards[0].name}: leave the one that is to be used")
    if shards:
        return _list_shards(shards)
    if folder.is_dir():
        return _list_folder(folder)
    raise FileNotFoundError(
        f"{root} {f'has no {part}/ and no' if root.is_dir() else f'is not a folder that has {part}/ or'} {part}-*.tar; expected "
        "the folders train/<wnid>/ and val/<wnid>/ (or a flat val/ and the devkit), or tar shards train-*.tar and val-*.tar with "
        "members <wnid>/<file>, or <key>.jpg and <key>.cls"
    )


def _columns(root: Path, part: str) -> dict[str, Any]:
    """The fields of the index of ``part``, sorted by name; ``wnids`` instead of labels."""
    images, fields = _list(root, part)
    if not images:
        raise ValueError(f"{root}: the {part} part has no images (files that end in {', '.join(SUFFIXES)})")
    columns = {name: np.array(column) for name, column in zip(LISTED, zip(*sorted(images), strict=True), strict=True)}
    names = columns["names"]
    twice = np.flatnonzero(names[1:] == names[:-1])
    if len(twice):
        a, b = (fields["shards"][columns["shard"][twice[0] + i]] for i in (0, 1))
        raise ValueError(
            f"{root}: {os.fsdecode(names[twice[0]])} occurs more than once, in {a} and {b} ({len(twice)} such "
            f"images in {part}); every image is to be seen once an epoch, so leave only one of them"
        )
    wnids = np.array([name.partition(b"/")[0] for name in names.tolist()])
    return {**columns, **fields, "wnids": wnids}


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _scan(folder: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Sorted names of the folders, and names and bytes of the images, in ``folder``; links are followed."""
    folders, images = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_image(entry.name) and not entry.is_dir():
                images.append((entry.name, entry.stat().st_size))
            elif not entry.name.startswith(".") and entry.is_dir():
                folders.append(entry.name)
    return sorted(folders), sorted(images)


def _list_folder(folder: Path) -> Listing:
    wnids, stray = _scan(folder)
    if wnids and stray:
        raise ValueError(
            f"{folder} has {len(stray)} images beside its {len(wnids)} class folders ({stray[0][0]}); "
            "move each into the folder of its class"
        )
    if not wnids and folder.name == "val" and stray:
        labels = _devkit_labels(folder.parent, len(stray))
        found = [(os.fsencode(f"{wnid}/{name}"), size, 0, 0, 0) for wnid, (name, size) in zip(labels, stray, strict=True)]
        return found, {"flat": True}
    if not wnids:
        raise ValueError(
            f"{folder} has no folders; expected {folder.name}/<wnid>/ with images (ILSVRC2012_img_train.tar holds "
            "a tar file for each class: unpack each into the folder of its name)"
        )
    found = []
    for wnid in wnids:
        deeper, images = _scan(folder / wnid)
        if not images:
            inside = f"only folders ({deeper[0]})" if deeper else "no images"
            raise ValueError(f"{folder / wnid} has {inside}; expected the images of class {wnid} in it, or no such folder")
        found += [(os.fsencode(f"{wnid}/{name}"), size, 0, 0, 0) for name, size in images]
    return found, {}


def _devkit_labels(root: Path, n_images: int) -> list[str]:
    """The wnids of a flat ``val/`` in the order of its file names; ``meta.mat`` has that of each number of the ground truth."""
    from scipy.io import loadmat

    truth, meta = root / DEVKIT / TRUTH, root / DEVKIT / META
    for path in (truth, meta):
        if not path.is_file():
            raise FileNotFoundError(
                f"{root / 'val'} has images but no class folders, and {path} is not there: unpack "
                f"ILSVRC2012_devkit_t12.tar.gz in {root}, or sort the images into val/<wnid>/"
            )
    try:
        synsets = np.atleast_1d(loadmat(meta, squeeze_me=True)["synsets"])
        wnids = {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in synsets}
        labels = [wnids[int(line)] for line in read_text(truth).split()]
    except Exception as error:  # on other files, loadmat raises whatever it runs into
        raise ValueError(
            f"{truth} and {META} beside it do not fit together ({type(error).__name__}: {error}); "
            "expected those of ILSVRC2012_devkit_t12: a number of a synset on each line"
        ) from error
    if len(labels) != n_images:
        raise ValueError(
            f"{root / 'val'} has {n_images} images, but {truth} has {len(labels)} lines, one for each in the "
            "order of their names; put back what is missing"
        )
    return labels


def _list_shards(paths: list[Path]) -> Listing:
    """The images in all shards, from the cache where these shards have been listed before."""
    key = hashlib.sha256(json.dumps(["members of shards 2", [_identity(path) for path in paths]]).encode()).hexdigest()
    cached = cache_folder("image-index") / f"{key}.npz"
    try:
        with open_file(cached) as file, np.load(file) as arrays:
            found = list(zip(*(arrays[name].tolist() for name in LISTED), strict=True))
    except Exception:  # not there, or damaged, of which NumPy tells in many ways: it is made again
        found = [(*image[:2], number, *image[2:]) for number, path in enumerate(paths) for image in _members(path)]
        if found:
            arrays = dict(zip(LISTED, (np.array(column) for column in zip(*found, strict=True)), strict=True))
            write_whole(cached, lambda file: np.savez(file, **arrays))
    forms = {image[0].count(b"/") > 1 for image in found}
    if len(forms) > 1:
        raise ValueError(
            f"{paths[0].parent}: some of {paths[0].name} to {paths[-1].name} hold <wnid>/<file> and some <key>.jpg and <key>.cls; "
            "leave those of one form"
        )
    return found, {"shards": tuple(path.name for path in paths), "flat": forms == {True}}


def _identity(path: Path) -> tuple[str, int, int, int, int]:
    """What tells a shard from another under the same path: a file put in its place differs in the inode or the time of change,
    even where its size and its time of modification are those of the old one."""
    found = path.stat()
    return str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _mark(header: bytes) -> int:
    """A hash of a tar header, 56 bits."""
    return int.from_bytes(hashlib.blake2b(header, digest_size=7).digest())


def _members(path: Path) -> Iterator[tuple[bytes, int, int, int]]:
    """Name, bytes, offset and hash of the header of each image in a tar file."""
    members = [(member, header) for member, header in _whole(path) if not member.isdir()]
    numbers = {_key(member)[0]: member for member, _ in members if _key(member)[1] == ".cls"}
    webdataset = bool(numbers)
    with open_file(path) as file:
        for member, header in members:
            key, suffix = _key(member)
            if suffix in SUFFIXES if webdataset else _is_image(member.name.rpartition("/")[2]):
                name = _numbered(path, member, numbers.pop(key, None), file) if webdataset else _checked(path, member)
                yield name, member.size, member.offset_data, _mark(header)
    if numbers:
        raise ValueError(f"{path}: {next(iter(numbers.values())).name!r} has no image of the same name; make the shard anew")


def _key(member: tarfile.TarInfo) -> tuple[str, str]:
    """What the files of a sample share, and the suffix, as WebDataset splits a name: at the first dot behind the folders."""
    folder, slash, file = member.name.removeprefix("./").rpartition("/")
    stem, dot, suffix = file.partition(".")
    return folder + slash + stem, dot + suffix.lower()


def _whole(path: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """The members of a tar file that is whole, each with its header: tarfile takes a damaged or missing header for the end, which
    only the end mark, a block of zeros, tells apart."""
    end, last, advice = 0, "its beginning", "it is truncated, damaged or compressed; copy or make it again, uncompressed"
    with (
        reading(path, "a whole tar file", advice),
        open_file(path) as file,
        tarfile.open(fileobj=file, mode="r:") as tar,
    ):
        for member in tar:
            if member.size < 0 or member.offset_data < end:  # tarfile would go back, and never come to the end
                raise tarfile.ReadError(f"{member.name} has {member.size} bytes")
            end, last = member.offset_data + -(-member.size // BLOCK) * BLOCK, member.name
            yield member, os.pread(file.fileno(), BLOCK, member.offset_data - BLOCK)
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):
            raise tarfile.ReadError(f"no end mark after {last}")


def _checked(path: Path, member: tarfile.TarInfo) -> bytes:
    """The name of a member that is a plain file called ``<wnid>/<file>``."""
    name = member.name.removeprefix("./")
    wnid, _, file = name.partition("/")
    if not wnid or "/" in file or not file or wnid.startswith("."):
        raise ValueError(
            f"{path}: member {member.name!r} is not of the form <wnid>/<file>; make the shard anew with the "
            "class folders at its top"
        )
    _check_plain(path, member)
    return os.fsencode(name)


def _numbered(path: Path, member: tarfile.TarInfo, number: tarfile.TarInfo | None, file: IO[bytes]) -> bytes:
    """The name of an image of WebDataset, from the member of the open ``file`` that holds the ``number`` of its class."""
    _check_plain(path, member)
    text = b""
    if number is not None and number.size <= BLOCK:
        _check_plain(path, number)
        text = os.pread(file.fileno(), number.size, number.offset_data).strip()
    if not text.isdigit() or len(text) > 6:
        found = "none" if number is None else f"{text!r} in {number.name!r}"
        raise ValueError(
            f"{path}: member {member.name!r} needs the number of its class, a whole number from 0 to 999999 in a .cls file of its "
            f"own and of the same name (found: {found}); make the shard anew"
        )
    return b"%06d/%s/%s" % (int(text), os.fsencode(path.name), os.fsencode(member.name.removeprefix("./")))


def _check_plain(path: Path, member: tarfile.TarInfo) -> None:
    if not member.isreg() or member.issparse():
        raise ValueError(
            f"{path}: member {member.name!r} is a link or a sparse file; make the shard anew from plain files "
            "(tar --hard-dereference --dereference)"
        )
