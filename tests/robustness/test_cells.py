"""The work on a grid: each file once, whole, by one process or several, stopped and continued."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from robustness.outcomes import words_of

from cnnf_brain import cli
from cnnf_brain import robustness as working
from cnnf_brain.attacks import threats
from cnnf_brain.robustness import cells, grids, open_workshop, run_grid, table, tasks, work
from cnnf_brain.robustness.cells import Cell, Examination, Training, Workshop
from cnnf_brain.robustness.grids import Against, Grid
from cnnf_brain.trainer import config, small
from cnnf_brain.trainer.checkpoint import HASH, finish
from cnnf_brain.work import Interrupted, claimed


def silent(_done: float, _total: float, _title: str) -> None:
    """Tells nothing."""


@dataclass
class Asked:
    """Stands for Stop."""

    requested: signal.Signals | None = None


@pytest.fixture
def shop(tiny: Grid, idx_folder: Path, tmp_path: Path, trained: Path) -> Any:
    """A grid whose networks are trained and of which nothing else is done."""
    shutil.copytree(trained, tmp_path / "models")
    return open_workshop(tiny, tmp_path / "figure", tmp_path / "models", "the command", data_folder=idx_folder)


@pytest.fixture
def empty(tiny: Grid, idx_folder: Path, tmp_path: Path) -> Any:
    """A grid of which nothing is done."""
    return open_workshop(tiny, tmp_path / "figure", tmp_path / "models", "the command", data_folder=idx_folder)


@pytest.fixture
def done(shop: Any, alone: Workshop) -> Any:
    """A copy of ``alone``."""
    shutil.copytree(alone.folder, shop.folder, dirs_exist_ok=True)
    return shop


def test_a_grid_from_nothing_to_its_files(empty: Any) -> None:
    shop = empty
    todo, told = tasks(shop), []
    work(todo, None, lambda *values: told.append(values))
    assert all(task.path.exists() for task in todo)
    assert len({task.path for task in todo}) == len(todo)
    # per seed 2 networks x 2 attacks; for the first seed the strong ones (1 of the CNN, 3 of CNN-F) and 2 examinations
    assert len(todo) == 2 * (2 + 4) + 4 + 2
    assert [values[0] for values in told] == sorted(values[0] for values in told)
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1] == sum(task.cost for task in todo)
    again = []
    work(todo, None, lambda *values: again.append(values[2]))
    assert again == ["finished"]

    cell = next(task for task in todo if isinstance(task, Cell) and task.model.iterations and task.against.attack == "FGSM")
    right = cell.read()
    assert right.shape == (2, 3, 6)
    model, card = small.load(shop.network_folder(cell.model, cell.seed))
    assert card["configuration"]["limit"] == 20
    with torch.no_grad():
        for t in range(3):
            answers = model(2 * shop.images - 1, iterations=t).argmax(1)
            assert np.array_equal(right[0, t], (answers == shop.labels).numpy())
    made = cell.attack(threats.first_pass(shop.load(cell.model, cell.seed)), shop.images, shop.labels, [0.2])
    assert np.array_equal(right[1, 1], ~made.success[0].numpy())


def test_a_stop_in_the_middle_keeps_what_is_whole_and_nothing_else(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    todo, stop = [task for task in tasks(shop) if not isinstance(task, Training)], Asked()
    real, calls = cells.attacked, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            stop.requested = signal.SIGTERM
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(cells, "attacked", interrupted)
        with pytest.raises(Interrupted):
            work(todo, stop, silent)  # type: ignore[arg-type]
    finished = {task.path: task.path.stat().st_mtime_ns for task in todo if task.path.exists()}
    assert 0 < len(finished) < len(todo)
    kept = {path for path in (shop.folder / "cells").iterdir() if not path.name.startswith(".")}
    assert kept <= set(finished)
    work([*todo], None, silent)
    for path, when in finished.items():
        assert path.stat().st_mtime_ns == when  # not done again


def in_another_process(shop: Any, order: Any, queue: Any) -> None:
    """Work at the grid and say what was done here."""
    torch.set_num_threads(1)
    mine = []
    todo = [task for task in tasks(shop) if not isinstance(task, Training)]
    work(todo[::order], None, lambda _done, _total, title: mine.append(title), poll=0.05)
    queue.put([title for title in mine if title != "finished"])


def test_two_processes_divide_the_cells_and_none_is_done_twice(shop: Any, alone: Workshop) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=in_another_process, args=(shop, order, queue)) for order in (1, -1)]
    for process in processes:
        process.start()
    halves = [queue.get(timeout=300) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    titles = [title for half in halves for title in half]
    assert sorted(titles) == sorted(task.title for task in tasks(shop) if not isinstance(task, Training))
    assert all(half for half in halves)
    for one, other in zip(tasks(shop), tasks(alone), strict=True):
        if isinstance(one, Cell):
            assert np.array_equal(one.read(), other.read()), one.title  # type: ignore[attr-defined]


def test_a_killed_process_leaves_no_lock_and_no_half_file(shop: Any) -> None:
    todo = [task for task in tasks(shop) if not isinstance(task, Training)]

    def holds(ready: Any) -> None:
        task = todo[0]
        task.path.parent.mkdir(parents=True, exist_ok=True)
        with claimed(task.path):
            ready.set()
            time.sleep(600)

    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=holds, args=(ready,))
    process.start()
    assert ready.wait(60)
    stop, told = Asked(), []

    def tell(_done: Any, _total: Any, title: Any) -> None:
        told.append(title)
        if len(told) == 1:
            os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]

    work(todo, stop, tell, poll=0.05)  # type: ignore[arg-type]  # the others first; when the holder is dead, its task too
    process.join(60)
    assert told.count(todo[0].title) == 1
    assert all(task.path.exists() for task in todo)


def test_another_grid_is_other_files_and_shares_networks(done: Any) -> None:
    changed = replace(done, grid=replace(done.grid, epsilons=(0.0, 0.1)))
    before = {task.path for task in tasks(done)}
    new = [task for task in tasks(changed) if task.path not in before]
    assert new
    assert all(isinstance(task, Cell) and not task.against.strong for task in new)
    longer = replace(done, grid=replace(done.grid, epochs=2))
    assert not {task.path for task in tasks(longer)} & before


def test_a_damaged_file_is_named(done: Any) -> None:
    cell = next(task for task in tasks(done) if isinstance(task, Cell))
    cell.path.write_bytes(cell.path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cannot be read as .*remove it"):
        cell.read()
    other = next(task for task in tasks(done) if isinstance(task, Cell) and task.path != cell.path)
    cell.path.write_bytes(other.path.read_bytes())
    with pytest.raises(ValueError, match="is not what its name says"):
        cell.read()


def retrained(shop: Any, model: Any, seed: Any) -> None:
    """Another network in a network's folder, as a training with other software leaves it: same configuration, other weights."""
    folder = shop.network_folder(model, seed)
    module, card = small.load(folder)
    with torch.no_grad():
        module.get_submodule("fc2").bias.add_(1)
    finish(folder, module, {name: value for name, value in card.items() if name != HASH})


def test_a_cell_of_other_weights_enters_no_table_and_is_made_again(done: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Seed 0's CNN is another network now: its own cells, the transfer from it and its checks are out of date, and no more."""
    whole = table.collect(done)
    cnn = done.grid.models[0]
    retrained(done, cnn, 0)
    todo = tasks(done)
    outdated = [task for task in todo if not task.done()]
    expected = [
        task
        for task in todo
        if not isinstance(task, Training) and task.seed == 0 and cnn in (task.model, getattr(task, "source", None))
    ]
    assert outdated == expected
    assert any(isinstance(task, Cell) and task.against.threat == "transfer" for task in outdated)
    assert any(isinstance(task, Examination) for task in outdated)
    left = table.collect(done)
    assert len(left) < len(whole)
    assert not len(left[(left["model"] == "CNN") & (left["seed"] == 0)])
    assert not len(left[(left["threat"] == "transfer") & (left["seed"] == 0)])
    assert not any(check.model == "CNN" and "gradients" in check.finding.name for check in table.sanity(done, left))
    before = {task.path: task.path.stat().st_mtime_ns for task in todo}
    capsys.readouterr()
    work(todo, None, silent)
    told = capsys.readouterr().err
    for task in todo:
        made_again = task.path.stat().st_mtime_ns != before[task.path]
        assert made_again == (task in outdated)
        assert (f"{task.path}: made with other weights" in told) == made_again
    assert len(table.collect(done)) == len(whole)
    assert all(task.done() for task in todo)


def test_weights_that_are_gone_enter_no_table_and_are_restored_from_the_checkpoint(
    done: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, path = table.collect(done), done.network_folder(done.grid.models[0], 0) / "model.safetensors"
    before = path.read_bytes()
    path.unlink()
    assert len(table.collect(done)) < len(whole)
    work(tasks(done), None, silent)
    assert "model.safetensors is gone; made again" in capsys.readouterr().err
    assert path.read_bytes() == before
    pd.testing.assert_frame_equal(table.collect(done), whole)


def test_missing_packages_are_found_before_anything_is_trained(
    tiny: Grid, idx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pyautoattack" else real(name, *rest)
    )
    words = [
        "--experiment",
        "fig12",
        "--quick",
        "--data",
        idx_folder,
        "--models",
        tmp_path / "models",
        "--images",
        "6",
        "--output",
        tmp_path / "out",
        "--device",
        "cpu",
        "--limit",
        "20",
    ]
    assert cli.main(["robustness", *map(str, words)]) == 1
    (message,) = capsys.readouterr().err.strip().splitlines()
    assert message.startswith("error: pyautoattack is not installed; install the attacks with: pip install")
    assert not list(tmp_path.iterdir())
    working.check_packages(
        tasks(open_workshop(tiny, tmp_path / "a", tmp_path / "b", "c", data_folder=idx_folder))
    )  # needs none


def test_a_slow_mixed_precision_is_refused_before_anything_is_made(empty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "cost_of", lambda _: 6.0)
    shop = replace(empty, grid=replace(empty.grid, amp="bfloat16"))
    with pytest.raises(ValueError, match="amp bfloat16: on this processor"):
        run_grid(shop)
    assert not shop.folder.exists()
    assert not shop.models.exists()


def test_a_network_that_returns_nan_stops_the_grid_with_an_error(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    todo = tasks(shop)
    real = small.load

    def broken(folder: Any) -> Any:
        model, card = real(folder)
        with torch.no_grad():
            model.get_submodule("fc2").bias.fill_(float("nan"))
        return model, card

    monkeypatch.setattr(small, "load", broken)
    with pytest.raises(ValueError, match="NaN or infinite"):
        work(todo, None, silent)
    assert not list((shop.folder / "cells").glob("*.npz"))


def test_more_images_than_there_are(tiny: Grid, idx_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="41 were asked for, there are 40 test images"):
        open_workshop(replace(tiny, images=41), tmp_path, tmp_path, "c", data_folder=idx_folder)


def test_validation_images_are_taken_for_what_is_tuned(tiny: Grid, idx_folder: Path, tmp_path: Path) -> None:
    test = open_workshop(tiny, tmp_path, tmp_path, "c", data_folder=idx_folder)
    validation = open_workshop(replace(tiny, part="validation"), tmp_path, tmp_path, "c", data_folder=idx_folder)
    assert not torch.equal(test.images, validation.images)
    assert grids.grid("ablation").part == "validation"
    assert all(grids.grid(name).part == "test" for name in grids.GRIDS if name != "ablation")


def test_what_is_crafted_against_a_cnn_is_crafted_once(shop: Any) -> None:
    mine = [cell for cell in cells.cells(shop, 0) if cell.model.label == "CNN" and cell.against.strong]
    assert [cell.against for cell in mine] == [Against("PGD-100", "end_to_end", True)]
    (transfer,) = (cell for cell in cells.cells(shop, 0) if cell.against.threat == "transfer")
    assert transfer.model.label == "CNN-F-1"
    assert transfer.source.label == "CNN"
    assert not [cell for cell in cells.cells(shop, 1) if cell.against.strong]


@pytest.mark.slow
def test_the_command_stops_by_signal_and_continues(idx_folder: Path, tmp_path: Path) -> None:
    words = words_of(tmp_path, "--quick", "--epsilons", 0, 0.2, "--data", idx_folder)
    command = [sys.executable, "-m", "cnnf_brain.robustness", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        command, env=environment, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 200
        while not list((tmp_path / "models").glob("*/card.json")) and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=200)
    assert process.returncode == 75
    assert "the same command continues" in told
    assert "time left" in told or "left" in told
    assert not (tmp_path / "out" / "summary.json").exists()
    assert list((tmp_path / "models").glob("*/card.json"))
