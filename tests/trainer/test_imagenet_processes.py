"""training/imagenet.py in processes of its own: two ranks against one, signals, and kill -9 at any moment."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from trainer.tiny_imagenet import WNIDS, child, flags, tiny, without_dropout, write_images

from cnnf_brain.model.weights import read_card
from cnnf_brain.trainer import checkpoint, loop

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch._dynamo", "torchvision.models", "torch.utils.tensorboard", "matplotlib", "cnnf_brain.train.imagenet"]
)  # seconds for each child
PATIENCE = 200  # seconds
FEW = 6  # kills, of what is killed in fewer places


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training images, of which one is damaged, and 11 for validation."""
    root = write_images(tmp_path_factory.mktemp("images"))
    (root / "train" / WNIDS[1] / "train_004.png").write_bytes(b"not a picture")
    return root


@contextmanager
def started(argv: list[str], log: Path, ranks: int = 1, builder: Any = tiny) -> Iterator[list[BaseProcess]]:
    """The command on ``ranks`` processes, none of which outlives the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes: list[BaseProcess] = []
    for rank in range(ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        torchrun = {name: str(value) for name, value in place.items()} if ranks > 1 else {}
        processes.append(CONTEXT.Process(target=child, args=(argv, str(log), torchrun, builder)))
    try:
        for process in processes:
            process.start()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join(PATIENCE)


def finish(argv: list[str], log: Path, ranks: int = 1, builder: Any = tiny) -> None:
    with started(argv, log, ranks, builder) as processes:
        for process in processes:
            process.join(PATIENCE)
        assert [process.exitcode for process in processes] == [0] * ranks, log.read_text()


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model.safetensors")


def assert_close(a: Path, b: Path, **tolerance: float) -> None:
    theirs = weights(b)
    for name, value in weights(a).items():
        torch.testing.assert_close(value, theirs[name], **tolerance, msg=name)  # type: ignore[arg-type]


def steps_of(folder: Path) -> int:
    return max((int(path.stem[-9:]) for path in checkpoint.paths(folder)), default=0)


def wait_for(condition: Any, process: BaseProcess, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.is_alive(), f"the run ended before it could be stopped\n{log.read_text()}"
        assert time.monotonic() < deadline, f"waited {PATIENCE} s\n{log.read_text()}"


@pytest.mark.slow
@pytest.mark.parametrize("portions", [1, 2])
def test_two_ranks_make_the_steps_of_one_although_their_parts_are_unequal(
    images: Path, tmp_path: Path, portions: int
) -> None:
    """Seven images a step: four and three, and fewer where the damaged one was; 11 for validation: six and five."""
    log = tmp_path / "log"
    allowed = ("--max-bad", 0.1, "--log-every", 1)
    finish(flags(images, tmp_path / "one", *allowed), log, builder=without_dropout)
    means = ("--accumulate", portions, *(("--checkpoint-iterations", "--channels-last") if portions > 1 else ()))
    finish(flags(images, tmp_path / "two", *allowed, *means), log, ranks=2, builder=without_dropout)
    assert "Warning" not in log.read_text()
    assert_close(tmp_path / "two", tmp_path / "one", rtol=1e-4, atol=1e-6)
    cards = [read_card(tmp_path / name / "model.safetensors").content for name in ("one", "two")]
    assert [card["n_validation"] for card in cards] == [11, 11]
    assert cards[0]["validation_accuracy"] == cards[1]["validation_accuracy"]
    assert [card["ranks"] for card in cards] == [1, 2]
    bad = [list(checkpoint.newest(tmp_path / name / "checkpoints")[1]["position"]["bad"]) for name in ("one", "two")]
    assert bad[0] == bad[1] == [str(images / "train" / WNIDS[1] / "train_004.png")]


@pytest.mark.slow
def test_a_sharded_optimizer_makes_the_same_weights_and_goes_on_exactly(images: Path, tmp_path: Path) -> None:
    """With a moving average; stopped in the middle, and finished sharded and not; told once that it is finished."""
    log, more = tmp_path / "log", ("--max-bad", 0.1, "--save-every", 1, "--ema", 0.9)
    finish(flags(images, tmp_path / "whole", *more, steps=8), log, ranks=2)
    for name, sharded in (("sharded", ["--shard-optimizer"]), ("mixed", [])):
        finish(flags(images, tmp_path / name, *more, "--shard-optimizer", steps=3), log, ranks=2)
        path, state = checkpoint.newest(tmp_path / name / "checkpoints")  # type: ignore[misc]
        assert len(state["optimizer"]["state"]) == 6  # of both ranks
        assert not any("optimizer" in key for key in checkpoint.read(next(path.parent.glob("share-*")))[1])
        finish(flags(images, tmp_path / name, *more, *sharded, steps=8), log, ranks=2)
        assert_close(tmp_path / name, tmp_path / "whole", rtol=0, atol=0)
    assert "Warning" not in log.read_text()
    finish(flags(images, tmp_path / "sharded", *more, steps=8), log, ranks=2)
    assert log.read_text().count("already finished") == 1


@pytest.mark.slow
def test_stopped_on_two_ranks_and_finished_on_one(images: Path, tmp_path: Path) -> None:
    """SIGTERM to one of them alone stops both after the same step."""
    log, output = tmp_path / "log", tmp_path / "out"
    argv = flags(images, output, "--max-bad", 0.1, "--save-every", 1, steps=400)
    with started(argv, log, ranks=2, builder=without_dropout) as processes:
        wait_for(lambda: steps_of(output / "checkpoints") > 1, processes[0], log)
        os.kill(processes[1].pid, signal.SIGTERM)  # type: ignore[arg-type]
        for process in processes:
            process.join(PATIENCE)
        assert [process.exitcode for process in processes] == [75, 75], log.read_text()
    assert "stopped by a signal to another rank after step" in log.read_text()
    done = steps_of(output / "checkpoints")
    assert done < 400
    assert len(list((output / "checkpoints").glob("share-*-1.safetensors"))) == len(checkpoint.paths(output / "checkpoints"))
    argv[argv.index("--steps") + 1] = str(done + 5)
    finish(argv, log, builder=without_dropout)
    assert "ranks: 2 there, 1 now" in log.read_text()
    straight = [*argv[: argv.index("--output") + 1], str(tmp_path / "straight"), *argv[argv.index("--output") + 2 :]]
    finish(straight, log, builder=without_dropout)
    assert_close(output, tmp_path / "straight", rtol=1e-3, atol=1e-5)


def in_float16(arch: str, num_classes: int, head: str = "torchvision") -> nn.Sequential:
    """``tiny`` where float16 is not refused on a processor, and the loss scale rises until steps are left out."""
    patch = pytest.MonkeyPatch()  # of this process alone
    patch.setattr(loop, "check_amp", lambda *_: None)
    patch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**12, growth_interval=3))
    return tiny(arch, num_classes, head)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "ranks", "builder", "more"),
    [
        pytest.param(20, 1, tiny, (), id="one rank"),
        pytest.param(FEW, 1, in_float16, ("--amp", "float16"), id="loss scaling"),
        pytest.param(FEW, 2, tiny, ("--shard-optimizer",), id="sharded optimizer"),
    ],
)
def test_killed_at_any_moment_it_loses_no_step_that_was_saved(
    images: Path, tmp_path: Path, kills: int, ranks: int, builder: Any, more: tuple[Any, ...]
) -> None:
    """Every other time inside a save; at the end the state is that of a run that nothing happened to."""
    log, output = tmp_path / "log", tmp_path / "out"
    folder, draw = output / "checkpoints", random.Random(0)
    always = ("--max-bad", 0.1, "--save-every", 1, "--validate-every", 10, "--ema", 0.9)
    argv = flags(images, output, *always, *more, steps=1500)
    done, inside = 0, 0
    for number in range(kills):
        with started(argv, log, ranks, builder) as processes:
            wait_for(lambda done=done: steps_of(folder) > done, processes[0], log)
            time.sleep(draw.uniform(0, 0.05))
            if number % 2:
                wait_for(lambda: any(folder.glob(".*-*")), processes[0], log)
            draw.shuffle(processes)
            for process in processes:
                process.kill()
            for process in processes:
                process.join(PATIENCE)
                assert process.exitcode == -signal.SIGKILL
        inside += any(folder.glob(".*-*"))
        path, state = checkpoint.newest(folder)  # type: ignore[misc]
        assert state["position"]["step"] == int(path.stem[-9:]) == steps_of(folder) > done
        done = steps_of(folder)
    assert inside >= kills // 4
    assert log.read_text().count("continuing ") == kills - 1
    argv[argv.index("--steps") + 1] = str(done + 3)
    finish(argv, log, ranks, builder)
    assert not list(folder.glob(".*-*"))
    straight = [*argv[: argv.index("--output") + 1], str(tmp_path / "straight"), *argv[argv.index("--output") + 2 :]]
    straight[straight.index("--save-every") + 1] = "1000"
    finish(straight, log, ranks, builder)
    assert_close(output, tmp_path / "straight", rtol=0, atol=0)
    states = [checkpoint.newest(one / "checkpoints")[1] for one in (output, tmp_path / "straight")]
    for part in ("model", "optimizer", "average", "scaler"):
        torch.testing.assert_close(*(state.get(part) for state in states), rtol=0, atol=0)
