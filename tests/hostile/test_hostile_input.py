"""Input that once ended in a hang or a traceback: each class of it, through the reader or the command that meets it."""

from __future__ import annotations

import io
import os
import signal
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import netCDF4
import pytest
import torch
from hostile.files import KINDS, pictures
from hostile.test_damaged_files import in_time, outcome
from torch import Tensor, nn

from cnnf_brain import activations
from cnnf_brain.attacks import FGSM, threats
from cnnf_brain.checks import ModelError, RunError
from cnnf_brain.compare.__main__ import main
from cnnf_brain.datasets import mnist
from cnnf_brain.datasets.image_batches import DiskBatches, Feed
from cnnf_brain.datasets.image_index import ImageIndex, index_images
from cnnf_brain.images import Preprocessing, pick_device
from cnnf_brain.io import read_array, read_json, read_netcdf
from cnnf_brain.model.settings import MOST_ITERATIONS, FeedbackSettings
from cnnf_brain.model.weights import read_weights
from cnnf_brain.networks import Network
from cnnf_brain.recordings import v4_compact
from cnnf_brain.trainer.evaluation import counted_outputs
from cnnf_brain.trainer.metrics import Log
from cnnf_brain.types import LayerAt

SHAPE = (3, 8, 8)


@pytest.mark.parametrize("n", [MOST_ITERATIONS + 1, 10**6, 10**20, -1])
def test_iterations_have_a_bound(n: int) -> None:
    with pytest.raises(ValueError, match=f"iterations is {n}, expected a whole number >= 0 and at most 1000"):
        FeedbackSettings(iterations=n)
    assert FeedbackSettings(iterations=MOST_ITERATIONS).iterations == 1000


@pytest.mark.parametrize(
    "words", [["--iterations", "1000000"], ["--layers", f"V4=2@{10**20}"], ["--layers", f"V4=@{'9' * 5000}"]]
)
def test_the_command_says_so_at_once(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--model", "small", "--recordings", "simulated", "--output", str(tmp_path / "out")]
    with in_time():
        assert main([*common, *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert not (tmp_path / "out").exists()


def shard(path: Path, sizes: list[int]) -> None:
    """A tar file whose headers claim these sizes, with their checksums right."""
    with open(path, "wb") as file:
        for number, size in enumerate(sizes):
            head = bytearray(tarfile.TarInfo(f"n0{number}/a.png").tobuf())
            head[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]
            head[148:156] = b" " * 8
            head[148:156] = b"%06o\0 " % sum(head)
            file.write(head + bytes(512))
        file.write(bytes(2048))


@pytest.mark.parametrize("sizes", [[-512], [512, -1024], [-(2**40)], [2**60], [10**9]])
def test_a_member_of_impossible_size(sizes: list[int], tmp_path: Path, cache: Path) -> None:
    for part in ("train", "val"):
        shard(tmp_path / f"{part}-0.tar", sizes)
    with in_time(), pytest.raises(ValueError, match=r"train-0.tar cannot be read as a whole tar file"):
        index_images(tmp_path)


@pytest.mark.parametrize("name", KINDS)
def test_a_pipe_in_place_of_a_file(name: str, tmp_path: Path, cache: Path, sketched: object) -> None:
    (tmp_path / "files").mkdir()
    kind = KINDS[name]
    for path in kind.make(tmp_path / "files"):
        path.unlink()
        os.mkfifo(path)
        found = outcome(kind, tmp_path / "files", path)
        assert found is None or isinstance(found, Exception)
        path.unlink()
        path.mkdir()
        found = outcome(kind, tmp_path / "files", path)
        assert found is None or isinstance(found, Exception)
        break


@pytest.mark.parametrize(
    "name", [name for name in KINDS if name not in ("weights of torch", "cached features", "image", "IDX")]
)
def test_json_that_is_too_deep(name: str, tmp_path: Path, cache: Path, sketched: object) -> None:
    (tmp_path / "files").mkdir()
    kind = KINDS[name]
    for path in kind.make(tmp_path / "files"):
        if path.suffix in (".json", ".jsonl"):
            path.write_bytes(b'{"a":' * 100_000)
            found = outcome(kind, tmp_path / "files", path)
            assert isinstance(found, ValueError) or path.suffix == ".jsonl"


class Raising(nn.Module):
    """A network whose forward pass fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.first, self.error = nn.Conv2d(3, 2, 3), error

    def forward(self, x: Tensor) -> Tensor:
        self.first(x)
        raise self.error


ERRORS = [
    KeyError("x"),
    TypeError("y"),
    AttributeError("z"),
    AssertionError(),
    MemoryError(),
    RuntimeError("a\nb"),
    ValueError("v"),
]
ERRORS += [
    StopIteration(),
    RecursionError("deep"),
    ZeroDivisionError(),
    OSError("gone"),
    IndexError(3),
    NotImplementedError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_a_model_raises(error: Exception) -> None:
    network = Network(Raising(error), Preprocessing(8), name="mine")
    x, y = torch.rand(4, *SHAPE), torch.zeros(4, dtype=torch.int64)
    calls: list[Callable[[], object]] = [
        lambda: activations.features(network, x, [LayerAt("first")]),
        lambda: FGSM()(threats.end_to_end(network), x, y, 0.1),
        lambda: counted_outputs(network),
    ]
    for call in calls:
        with pytest.raises(
            ModelError, match=rf"mine cannot be run on images of shape \(3, 8, 8\).*{type(error).__name__}"
        ) as told:
            call()
        assert told.value.__cause__ is error
        assert "\n" not in str(told.value)


FORWARD = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = {layer}
    def forward(self, x):
        {forward}
def net():
    return Net()
"""
OUTPUTS = {
    "KeyError": ("torch.nn.Conv2d(3, 2, 3)", "self.first(x); return {}['a']"),
    "MemoryError": ("torch.nn.Conv2d(3, 2, 3)", "self.first(x); raise MemoryError"),
    "no allocation": ("torch.nn.Conv2d(3, 2, 3)", "self.first(x); return torch.empty(10 ** 15)"),
    "0-d": ("torch.nn.MSELoss()", "return self.first(x, x)"),
    "1-d": ("torch.nn.Flatten(0)", "return self.first(x)"),
    "no tensor": ("torch.nn.LSTM(224, 2)", "return self.first(x[:, 0])"),
    "not called": ("torch.nn.Conv2d(3, 2, 3)", "return x"),
    "complex": ("torch.nn.Identity()", "return self.first(x + 1j)"),
    "sparse": ("torch.nn.Identity()", "return self.first(x.to_sparse())"),
    "nothing": ("torch.nn.Conv2d(3, 0, 3)", "return self.first(x)"),
    "NaN": ("torch.nn.Identity()", "return self.first(x * float('nan'))"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", OUTPUTS)
def test_layers_that_are_none(kind: str, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer, forward = OUTPUTS[kind]
    (tmp_path / "mine.py").write_text(FORWARD.format(layer=layer, forward=forward))
    words = ["--model", f"{tmp_path}/mine.py:net", "--baseline", "none", "--layers", "V4=first", "--recordings", "simulated"]
    with in_time():
        assert main([*words, "--output", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "made", [torch.tensor(1.0), torch.ones(2), torch.ones(1, 2, 3), torch.ones(3, 2), torch.ones(1, 0), (1,), None]
)
def test_logits_that_are_none(made: Any) -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return made

    network = Network(Other(), Preprocessing(8), name="mine")
    with pytest.raises(ValueError, match=r"expected \(1, classes\)"):
        counted_outputs(network)
    with pytest.raises(ValueError, match=r"expected \(1, classes\)"):
        FGSM()(threats.end_to_end(network), torch.rand(4, *SHAPE), torch.zeros(4, dtype=torch.int64), 0.1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 10**9},
        {"size": 0},
        {"mean": (float("inf"),) * 3},
        {"std": (float("nan"),) * 3},
        {"mean": (10**400,) * 3},
        {"mean": ("a",) * 3},
        {"mean": (None,)},
        {"std": (0.0,) * 3},
        {"std": (-1, 1, 1)},
        {"mean": 3},
        {"resize": 2},
        {"mean": ()},
    ],
)
def test_preprocessing_that_is_none(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"size is|mean|std"):
        Preprocessing(**{"size": 8, **wrong})


UNUSUAL: dict[str, tuple[Callable[[], Any], str]] = {
    "sparse": (lambda: {"w": torch.eye(3).to_sparse()}, "w is not dense"),
    "meta": (lambda: {"w": torch.empty(3, device="meta")}, "w is on the meta device"),
    "NaN": (lambda: {"w": torch.tensor([1.0, torch.nan])}, "w is not finite"),
    "infinite": (lambda: {"w": torch.tensor([1.0, torch.inf], dtype=torch.float16)}, "w is not finite"),
    "a claim": (lambda: {"w": torch.zeros(1, dtype=torch.float16).expand(10**6, 10**6)}, "w claims the shape"),
    "numbers for names": (lambda: {1: torch.ones(2)}, "expected a mapping from names"),
    "a list": (lambda: [torch.ones(2)], "expected a mapping from names"),
    "nothing": (lambda: None, "expected a mapping from names"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_weights(kind: str, tmp_path: Path) -> None:
    make, message = UNUSUAL[kind]
    torch.save(make(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"w\.pt: .*{message}"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["quantised", "complex", "integers", "zero-size"])
def test_weights_of_another_type_do_not_fit(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "quantised": lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
        "complex": lambda w: w.to(torch.complex64),
        "integers": lambda w: w.to(torch.int8),
        "zero-size": lambda w: w[:0],
    }
    from cnnf_brain.model.zoo import small_net

    torch.save({name: kinds[kind](w) for name, w in small_net(None).state_dict().items()}, tmp_path / "w.pt")
    words = ["--model", "small", "--weights", str(tmp_path / "w.pt"), "--recordings", "simulated", "--layers", "V4"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "does not fit the network" in said[0]


def test_a_damaged_zip_of_every_method(tmp_path: Path) -> None:
    image = pictures(tmp_path, 1)[0].read_bytes()
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", method) as archive:
            archive.writestr("a.png", image)
        content = bytearray(packed.getvalue())
        content[38:60] = b"\xff" * 22
        (tmp_path / "images.zip").write_bytes(content)
        with pytest.raises(ValueError, match=r"images.zip cannot be read as a zip file"):
            v4_compact._read_zip(tmp_path / "images.zip")


def test_a_zip_that_unpacks_to_far_more(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.png", "w") as member,
    ):
        for _ in range(80):
            member.write(bytes(2**20))
    with pytest.raises(ValueError, match=r"images.zip has \d+ bytes and says that it holds 8.39e\+07"):
        v4_compact._read_zip(tmp_path / "images.zip")


def test_a_packed_data_set_that_unpacks_to_far_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    monkeypatch.setattr(mnist, "LARGEST", 1000)
    (tmp_path / "a").write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 8, 0]) + bytes(2048)))
    with pytest.raises(ValueError, match="has 1000 bytes uncompressed"):
        mnist.read_idx(tmp_path / "a", 1)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 3), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (9223372036854775807, 9223372036854775807), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1, 3), }",
        "{'descr': ['<f8'], 'fortran_order': 3, 'shape': 7, }",
        "(" * 3000,
        "{[]: 1}",
        "'\\",
        "",
    ],
)
def test_a_damaged_npy_header(header: str, tmp_path: Path) -> None:
    text = header.encode() + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64))
    with in_time(), pytest.raises(ValueError, match=r"a.npy cannot be read as a NumPy array of numbers"):
        read_array(tmp_path / "a.npy")


@pytest.mark.parametrize("name", ["responses", "stimulus"])
def test_netcdf_that_claims_more_than_it_has(name: str, tmp_path: Path) -> None:
    with netCDF4.Dataset(tmp_path / "a.nc", "w") as file:
        n = 10**6 if name == "responses" else 10**11
        file.createDimension("stimulus", n)
        file.createDimension("neuroid", 10**6)
        file.createVariable(
            name, "f8", ("stimulus", "neuroid") if name == "responses" else ("stimulus",), chunksizes=None, zlib=True
        )
    with in_time(), pytest.raises(ValueError, match=r"a.nc has \d+ bytes and says that it holds"):
        read_netcdf(tmp_path / "a.nc")


@pytest.mark.parametrize("device", ["banana", "meta", "cuda:77", "", "hpu", "privateuseone", "xla", "cuda:-1", "0", "\0"])
def test_devices_that_are_none(device: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be used here .*expected auto, cpu, or cuda"):
        pick_device(device)


def test_a_worker_that_is_killed(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("train", "val"):
        for number in range(2):
            pictures(tmp_path / part / f"n0{number}", 3)
    index, _ = index_images(tmp_path)
    monkeypatch.setattr(ImageIndex, "read", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    feed = Feed(DiskBatches(index=index, size=8, batch_size=2, workers=1).batches())
    with pytest.raises(RunError, match=r"a process that loads images was ended from outside .*fewer workers"):
        next(feed)


def test_a_log_with_stray_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    stray = ["hello", "5", "[1]", "{}", '{"step": "x"}', '{"step": null}', "[" * 100_000, '{"step": 1', "\x00", ""]
    path.write_text("\n".join(['{"step": 1}', *stray, '{"step": 2}', '{"step": 9}']))
    assert Log(path, done=5).read() == [{"step": 1}, {"step": 2}]
    path.write_bytes(b'\xff\xfe\n{"step": 1}\n')
    assert Log(path, done=5).read() == [{"step": 1}]


@pytest.mark.parametrize(
    "content", [b"\xff", b"", b"[1]", b"3", b'{"a": 1', b"{'a': 1}", b"[" * 10**6, b'{"a": ' + b"9" * 5000 + b"}"]
)
def test_json_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json"):
        read_json(tmp_path / "a.json")
