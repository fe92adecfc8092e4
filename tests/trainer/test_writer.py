"""Checkpoints beside the steps: what they hold, when they are there, what becomes of errors, and the shares of several ranks."""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cnnf_brain.trainer import checkpoint, writer
from cnnf_brain.trainer.writer import Writer, check_space


def state(value: float = 0.0) -> dict[str, Any]:
    """Of two layers and their momentum, with a tensor and numbers beside them."""
    layers = {f"{n}.weight": torch.full((size,), value) for n, size in enumerate((1000, 600))}
    momentum = {n: {"momentum_buffer": weight + 1} for n, weight in enumerate(layers.values())}
    return {"model": layers, "optimizer": {"state": momentum}, "position": {"step": 3, "sums": torch.full((9,), value)}}


def same(found: Any, expected: Any) -> bool:
    """Whether two states are equal."""
    if isinstance(expected, dict):
        return bool(found.keys() == expected.keys() and all(same(found[key], value) for key, value in expected.items()))
    return torch.equal(found, expected) if isinstance(expected, Tensor) else bool(found == expected)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is written until the event is set."""
    event, real = threading.Event(), checkpoint.write

    def waits(*arguments: Any) -> str:
        assert event.wait(60)
        return real(*arguments)

    monkeypatch.setattr(checkpoint, "write", waits)
    return event


def test_a_step_does_not_wait_and_changes_nothing_that_is_being_written(tmp_path: Path, held: threading.Event) -> None:
    now = state(1.0)
    with Writer(tmp_path) as beside:
        beside.save(1, now)
        for weight in now["model"].values():
            weight += 5  # the next step
        now["position"]["step"] = 4
        assert checkpoint.paths(tmp_path) == []
        held.set()
    assert same(checkpoint.load(checkpoint.paths(tmp_path)[0]), state(1.0))


def test_a_step_waits_for_the_copy_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not for the checksum, the file, and its being read back and compared; the figure is in docs/reliability.md."""
    large = {"model": {str(n): torch.ones(2**22) for n in range(8)}}
    waited, written = [], []
    for step in range(3):
        with Writer(tmp_path) as beside:
            begin = time.perf_counter()
            beside.save(step, large)
            waited.append(time.perf_counter() - begin)
            beside.wait()
            written.append(time.perf_counter() - begin)
    with capsys.disabled():
        print(
            f"\na checkpoint of 128 MiB: a step waits {min(waited):.3f} s for it; it is written after {min(written):.3f} s"
        )
    assert min(waited) < min(written) / 2


def test_one_is_written_at_a_time(tmp_path: Path, held: threading.Event) -> None:
    with Writer(tmp_path, keep=1) as beside:
        beside.save(1, state())
        threading.Timer(0.3, held.set).start()
        beside.save(2, state())
        assert (tmp_path / "checkpoint-000000001.safetensors").exists()
        beside.wait()
        assert [path.name for path in checkpoint.paths(tmp_path)] == ["checkpoint-000000002.safetensors"]


def test_an_error_comes_with_the_next_step_or_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> str:
        raise OSError("cannot write: No space left on device")

    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(OSError, match="No space left"), Writer(tmp_path) as beside:
        beside.save(1, state())
    beside = Writer(tmp_path)
    beside.save(1, state())
    assert beside.thread is not None
    beside.thread.join()
    for last in (beside.check, beside.wait, lambda: beside.save(2, state())):
        with pytest.raises(OSError, match="No space left"):
            last()
    beside.__exit__(KeyError)  # the error of the training is the one to be seen


def test_an_error_in_training_waits_for_what_is_being_written(tmp_path: Path, held: threading.Event) -> None:
    beside = Writer(tmp_path)
    beside.save(1, state())
    threading.Timer(0.3, held.set).start()
    beside.__exit__(KeyError)
    assert len(checkpoint.paths(tmp_path)) == 1


def test_the_first_is_read_back_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real = [], checkpoint.read

    def watched(path: Path) -> Any:
        seen.append(path.name)
        return real(path)

    monkeypatch.setattr(checkpoint, "read", watched)
    with Writer(tmp_path) as beside:
        for step in (1, 2):
            beside.save(step, state())
    assert seen == ["checkpoint-000000001.safetensors"]


@pytest.mark.parametrize("how", ["another", "damaged"])
def test_a_disk_that_gives_back_something_else_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    real = checkpoint.write

    def altered(path: Path, rest: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
        digest = real(path, rest, tensors, metadata)
        if how == "another":
            real(path, rest, {name: tensor * 0 + 7 for name, tensor in tensors.items()}, metadata)
        else:
            path.write_bytes(path.read_bytes()[:-1])
        return digest

    monkeypatch.setattr(checkpoint, "write", altered)
    with pytest.raises(OSError, match="read back as something else than was written"), Writer(tmp_path) as beside:
        beside.save(1, state())


@dataclass
class Among:
    """Stands for the ranks of a run; ``mark`` is what rank 0 draws."""

    rank: int
    size: int
    mark: int = 7

    def sum(self, _: Tensor) -> Tensor:
        return torch.tensor(float(self.mark))


def save_on_ranks(folder: Path, step: int, value: float, size: int = 3, mark: int = 7) -> None:
    """A checkpoint by ``size`` ranks."""
    writers = [Writer(folder, 2, Among(rank, size, mark)) for rank in range(size)]  # type: ignore[arg-type]
    for one in writers:  # rank 0 first: it waits
        one.save(step, state(value))
    for one in writers:
        one.wait()


def test_each_rank_writes_its_share_and_rank_0_last(tmp_path: Path) -> None:
    first, second = (Writer(tmp_path, 3, Among(rank, 2)) for rank in range(2))  # type: ignore[arg-type]
    first.save(5, state(1.0))
    time.sleep(0.2)
    assert not list(tmp_path.glob("*.safetensors"))
    second.save(5, state(1.0))
    first.wait()
    second.wait()
    main, share = tmp_path / "checkpoint-000000005.safetensors", tmp_path / "share-000000005-00000007-1.safetensors"
    assert sorted(tmp_path.iterdir()) == [main, share]
    assert share.stat().st_size == pytest.approx(6400, rel=0.2)  # half of network and optimizer, 4 bytes x 3200 numbers
    path, found = checkpoint.newest(tmp_path)  # type: ignore[misc]
    assert path == main
    assert same(found, state(1.0))


def test_without_a_share_the_one_before_is_used(tmp_path: Path) -> None:
    for step in (1, 2):
        save_on_ranks(tmp_path, step, float(step))
    next(tmp_path.glob("share-000000002-*-1.*")).unlink()
    with pytest.warns(RuntimeWarning, match=r"a share of it may be missing.*trying the one before"):
        path, found = checkpoint.newest(tmp_path)  # type: ignore[misc]
    assert path.name == "checkpoint-000000001.safetensors"
    assert same(found, state(1.0))


def test_shares_of_another_writing_are_not_taken_and_go(tmp_path: Path) -> None:
    save_on_ranks(tmp_path, 1, 1.0, mark=7)
    save_on_ranks(tmp_path, 1, 2.0, mark=8, size=2)  # the same step again, by fewer ranks
    assert same(checkpoint.load(tmp_path / "checkpoint-000000001.safetensors"), state(2.0))
    assert [path.name for path in tmp_path.glob("share-*")] == ["share-000000001-00000008-1.safetensors"]


def test_what_is_no_more_kept_goes_with_its_shares(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_on_ranks(tmp_path, step, 0.0, mark=step)
    assert {path.name.split("-")[1][:9] for path in tmp_path.iterdir()} == {"000000002", "000000003"}
    assert len(list(tmp_path.iterdir())) == 6
    (tmp_path / "checkpoint-000000003.safetensors").unlink()  # its writer was killed before rank 0 had written
    (tmp_path / ".share-000000003-abc.safetensors").write_bytes(b"half")
    checkpoint.clean(tmp_path)
    assert {path.name.split("-")[1][:9] for path in tmp_path.iterdir()} == {"000000002"}


def test_rank_0_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PATIENCE", 0.1)
    beside = Writer(tmp_path, 3, Among(0, 2))  # type: ignore[arg-type]
    beside.save(1, state())
    with pytest.raises(OSError, match="other processes did not write share-000000001-00000007-1"):
        beside.wait()
    assert checkpoint.newest(tmp_path) is None


@pytest.mark.parametrize("kind", ["adam", "momentum", "plain"])
def test_the_room_for_checkpoints_is_asked_for_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    model = nn.Sequential(nn.Linear(100, 1000), nn.Linear(1000, 100))
    model[0].requires_grad_(False)  # held: without momentum
    trained = [p for p in model.parameters() if p.requires_grad]
    made = torch.optim.SGD(trained, lr=0.1, momentum=0.9 if kind == "momentum" else 0.0)
    optimizer: torch.optim.Optimizer = torch.optim.Adam(trained) if kind == "adam" else made
    model(torch.ones(1, 100)).sum().backward()
    optimizer.step()
    with Writer(tmp_path) as beside:
        beside.save(1, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    size = checkpoint.paths(tmp_path)[0].stat().st_size
    save_file(model.state_dict(), tmp_path / "weights")
    needed = 3 * size + 2 * (tmp_path / "weights").stat().st_size  # four checkpoints, of which one is there

    def free(amount: float) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(amount)))

    free(1.02 * needed)
    check_space(tmp_path, model, optimizer, keep=3)
    free(0.98 * needed)
    with pytest.raises(
        OSError, match=r"MiB are needed for 4 checkpoints of .* free space, choose another folder or keep fewer"
    ):
        check_space(tmp_path, model, optimizer, keep=3)
    check_space(tmp_path / "not" / "there", model, optimizer, keep=1)
