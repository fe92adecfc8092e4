"""Checkpoints: whole or absent, exact, and without code."""

from __future__ import annotations

import errno
import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cnnf_brain.trainer import checkpoint
from cnnf_brain.trainer.checkpoint import FORMATS, DamagedCheckpoint, Position
from cnnf_brain.trainer.writer import Writer

shared = torch.arange(6.0)

VALUES = {
    "float64": torch.tensor([1 / 3, math.pi], dtype=torch.float64),
    "bfloat16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "flags": torch.tensor([True, False]),
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "transposed": shared.view(2, 3).T,
    "same memory": shared[1:],
    "channels last": torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(
        memory_format=torch.channels_last
    ),
    "not a number": torch.tensor([math.nan, math.inf]),
}


def small(value: float = 0.0) -> dict[str, Any]:
    return {"weights": torch.full((50,), value), "step": 3}


def save(path: Path, state: dict[str, Any]) -> None:
    rest, tensors = checkpoint.apart(state)
    checkpoint.write(path, rest, checkpoint.copied(tensors), {"format": FORMATS[0]})


def save_step(folder: Path, step: int, state: dict[str, Any]) -> Path:
    with Writer(folder) as writer:
        writer.save(step, state)
    return folder / f"checkpoint-{step:09d}.safetensors"


@pytest.mark.parametrize("name", VALUES)
def test_tensors_come_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    save(tmp_path / "c", {"a": {"b": [VALUES[name]]}, "other": shared})
    back = checkpoint.load(tmp_path / "c")["a"]["b"][0]
    assert back.dtype == VALUES[name].dtype
    assert back.shape == VALUES[name].shape
    assert torch.equal(back.view(-1).contiguous().view(torch.uint8), VALUES[name].reshape(-1).view(torch.uint8))


def test_everything_else_comes_back_with_its_type(tmp_path: Path) -> None:
    state = {
        "integer keys": {0: "a", 1: {"0": "b"}},
        "tuple": (0.9, 0.999),
        "list": [1, [2.5, None], ()],
        "float": 0.1 + 0.2,
        "infinite": -math.inf,
        "large": 2**127 + 1,
        "true": True,
        "text": 'ü "quoted" \n',
        "empty": {},
    }
    save(tmp_path / "c", state)
    back = checkpoint.load(tmp_path / "c")
    assert back == state
    assert type(back["tuple"]) is tuple
    assert type(back["true"]) is bool
    assert list(back) == list(state)


@pytest.mark.parametrize("bad", [np.zeros(2), np.float64(1.0), object(), {1.5: 0}, torch.device("cpu")])
def test_what_would_need_code_to_load_is_refused_when_saved(tmp_path: Path, bad: Any) -> None:
    with pytest.raises(TypeError, match=r"checkpoint: .*inner"):
        save(tmp_path / "c", {"inner": bad})
    assert list(tmp_path.iterdir()) == []


def test_a_changed_byte_anywhere_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c"
    save(path, small())
    content = path.read_bytes()
    spaces = {i for i, byte in enumerate(content) if byte == ord(" ")}  # safetensors pads its header with them
    for place in sorted(set(range(0, len(content), 7)) - spaces):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x01]) + content[place + 1 :])
        with pytest.raises(DamagedCheckpoint):
            checkpoint.load(path)


@pytest.mark.parametrize("length", [0, 1, 8, 100, -1])
def test_a_truncated_file_is_noticed(tmp_path: Path, length: int) -> None:
    path = tmp_path / "c"
    save(path, small())
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DamagedCheckpoint, match="cannot be read as a whole safetensors file"):
        checkpoint.load(path)


class Malicious:
    """Creates a file when unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Malicious(str(tmp_path / "works"))))
    assert (tmp_path / "works").exists()  # it would have done so
    torch.save({"model": Malicious(str(tmp_path / "executed"))}, tmp_path / "checkpoint-000000001.safetensors")
    (tmp_path / "checkpoint-000000002.safetensors").write_bytes(pickle.dumps(Malicious(str(tmp_path / "executed"))))
    with pytest.warns(RuntimeWarning, match="cannot be read as a whole safetensors file"), pytest.raises(DamagedCheckpoint):
        checkpoint.newest(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_weights_alone_are_not_a_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "c")
    with pytest.raises(DamagedCheckpoint, match=r"is not of the format 'cnnf-brain checkpoint 1' or .* but None"):
        checkpoint.load(tmp_path / "c")


def test_the_last_three_are_kept_by_step_and_the_newest_is_found(tmp_path: Path) -> None:
    for step in (9, 10, 100, 99_999, 1_000_000):
        save_step(tmp_path, step, small(step))
    steps = [int(path.stem.split("-")[1]) for path in checkpoint.paths(tmp_path)]
    assert steps == [1_000_000, 99_999, 100]
    path, state = checkpoint.newest(tmp_path)  # type: ignore[misc]
    assert path == checkpoint.paths(tmp_path)[0]
    assert state["weights"][0] == 1_000_000


def test_a_damaged_newest_gives_way_to_the_one_before_with_a_warning(tmp_path: Path) -> None:
    first, second = (save_step(tmp_path, step, small(step)) for step in (1, 2))
    second.write_bytes(second.read_bytes()[:-10])
    with pytest.warns(RuntimeWarning, match="checkpoint-000000002.*; trying the one before"):
        path, state = checkpoint.newest(tmp_path)  # type: ignore[misc]
    assert path == first
    assert state["weights"][0] == 1


def test_no_checkpoints_is_none_and_all_damaged_is_an_error(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "absent") is None
    save_step(tmp_path, 1, small()).write_bytes(b"damaged")
    with (
        pytest.warns(RuntimeWarning, match="trying the one before"),
        pytest.raises(DamagedCheckpoint, match=r"all 1 checkpoints in .* are damaged; remove them to start anew"),
    ):
        checkpoint.newest(tmp_path)


def test_a_full_disk_leaves_the_older_ones_and_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_step(tmp_path, 1, small(1.0))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for step in (1, 2):
        with pytest.raises(OSError, match=f"cannot write .*00{step}.safetensors: No space left on device"):
            save_step(tmp_path, step, small(2.0))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_a_killed_writer_left_is_removed_and_never_read(tmp_path: Path) -> None:
    path = save_step(tmp_path, 1, small())
    (tmp_path / ".checkpoint-000000002-abc123.safetensors").write_bytes(b"half")
    assert checkpoint.newest(tmp_path)[0] == path
    checkpoint.clean(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_position_of_before_the_one_loop_is_read_too() -> None:
    """Checkpoints of images in memory counted epochs and batches; that of an epoch's last step was saved with its validation."""
    progress = {"epoch": 1, "batch": 3, "step": 8, "seconds": 2.5, "sums": {"cross_entropy": torch.ones(2)}}
    state = {"progress": progress, "configuration": {"batch_size": 20}}
    within = Position.of(state)
    assert (within.step, within.seconds, within.images, within.judged) == (8, 2.5, 60, False)
    assert Position.of(state, 46).images == 46  # the last batch of an epoch is smaller
    assert within.means() == {"cross_entropy": pytest.approx([1 / 60, 1 / 60])}
    assert Position.of({**state, "progress": {**progress, "batch": 0, "sums": {}}}).judged
    disk = {"step": 3, "seconds": 1.0, "validation": None, "best": None, "bad": {"a": "damaged"}}
    assert Position.of({"position": disk}) == Position(3, 1.0, bad={"a": "damaged"})
