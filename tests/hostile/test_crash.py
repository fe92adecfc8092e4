"""Every writer is killed at random moments, or meets a full disk. What stands then is whole, and the same run again gives the bytes
of one that nobody disturbed."""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import json
import mmap
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import disk
import numpy as np
import pytest
import tiny
import torch
from robustness.conftest import tiny_grid, weaken
from trainer import tiny_imagenet
from trainer.idx_files import write_idx

import cnnf_brain as cb
from cnnf_brain import cli, gram, results, style
from cnnf_brain.datasets import image_batches
from cnnf_brain.io import read_json, write_json, write_whole
from cnnf_brain.model import zoo
from cnnf_brain.model.weights import read_weights
from cnnf_brain.report import readers
from cnnf_brain.robustness import cells, open_workshop, run_grid
from cnnf_brain.robustness.grids import Against, Panel
from cnnf_brain.sweep import collect, run_cells
from cnnf_brain.sweep import prepare as cells_of
from cnnf_brain.trainer import checkpoint, loop, metrics, small

# What differs from run to run is held: each look at one of these clocks is a second after the one before.
CLOCKS = [sys.modules[f"cnnf_brain.{name}"] for name in ("compare", "robustness")]
CLOCKS += [results, cells, image_batches, loop, metrics]
# TensorBoard's files are not compared (names and content have time, host and process; tests/trainer compares what they show), and
# of the header of a checkpoint the order of its entries is not.
BOARD, HEADED = "tensorboard", "checkpoint-"
LOCKS = (".lock", ".held")
ENDS = (0, 1, -signal.SIGKILL, -signal.SIGALRM)

ROUNDS = int(os.environ.get("CNNF_BRAIN_ROUNDS", "50"))  # of all jobs together
LONGEST = 150.0 + 4 * ROUNDS  # seconds of one test here, on a slow machine

KINDS = ("killed after a while", "killed at a call", "disk full once", "disk full from a call on", "no file may grow")


def comparison(place: Path, _: Path) -> int:
    shown = tiny.pictures(40, size=16)
    responses = shown.mean(axis=(1, 2)) @ np.random.default_rng(0).standard_normal((3, 4))
    recordings = cb.Recordings.from_arrays(responses, shown, region="V4", source="mine")
    model, baseline, scoring = tiny.network(0, 1), tiny.network(0, 0), cb.Scoring(components=2)
    cb.compare(model, baseline, recordings, ["relu1", "pool2@1"], scoring=scoring, progress=False).save(place / "results")
    return 0


def robustness(place: Path, data: Path) -> int:
    fgsm = Against("FGSM")
    few = replace(tiny_grid(), seeds=(0,), against=(fgsm,), panels=(Panel("FGSM", fgsm),), iterations=1, images=3)
    run_grid(open_workshop(few, place / "figure", place / "models", "the command", data_folder=data / "idx"))
    return 0


def small_net(place: Path, data: Path) -> int:
    settings = small.Settings("mnist", {"iterations": 1}, epochs=2, batch_size=10, limit=30, save_every=2, measure=10)
    assert small.train(settings, place / "run", "the command", folder=data / "idx") is not None
    readers.leave(place / "run")
    return 0


def imagenet(place: Path, data: Path) -> int:
    every = ["--save-every", 2, "--validate-every", 3, "--log-every", 2, "--ema", 0.9, "--decay", "cosine", "--warmup", 2]
    return int(tiny_imagenet.imagenet.main(tiny_imagenet.flags(data / "images", place / "run", *every, steps=6)))


def study(place: Path, _: Path) -> int:
    shown = tiny.pictures(40, size=16)
    responses = shown.mean(axis=(1, 2)) @ np.random.default_rng(0).standard_normal((3, 4))
    recordings = cb.Recordings.from_arrays(responses, shown, region="V4", source="mine")
    scoring = cb.Scoring(components=2, metric=("pls", "cka"))
    asked = cb.Study(networks=[tiny.network(0, 1)], recordings=[recordings], layers=["relu1", "pool2"], scoring=scoring)
    todo = cells_of(asked, place / "study")
    run_cells(todo, None, False)
    if not all(cell.done() for cell in todo):
        return 1
    collect(place / "study")
    return 0


JOBS = {"compare": comparison, "grid": robustness, "small net": small_net, "ImageNet": imagenet, "sweep": study}


def draw(_: object, folder: Path) -> None:
    """In place of style.save."""
    for suffix in ("png", "svg"):
        write_whole(folder / f"figure.{suffix}", lambda file: file.write(b"drawn"))


def prepare(place: Path) -> None:
    """This process for jobs in ``place``: clocks, cache, one thread, no drawing and no git, which take longer than the rest."""
    torch.set_num_threads(1)
    os.environ["CNNF_BRAIN_CACHE"] = str(place / "cache")
    for module in CLOCKS:
        look = itertools.count(1.0).__next__
        vars(module)["time"] = SimpleNamespace(time=look, monotonic=look, perf_counter=look, sleep=time.sleep)
    for module in (results, checkpoint):
        vars(module)["commit"] = lambda: None
    vars(gram)["time"] = SimpleNamespace(perf_counter=lambda: 0.0)  # a run that goes on runs the networks for less
    vars(metrics)["memory"] = lambda _: 0
    vars(style)["save"] = draw
    vars(zoo)["sequential"] = tiny_imagenet.tiny
    weaken(pytest.MonkeyPatch())


def work(job: Callable[[], int], before: Callable[[], object] = lambda: None) -> tuple[int, str]:
    """The exit code of a job in a process of its own, which ``before`` disturbs, and what it says: into a pipe, which no limit of a
    file's size meets."""
    reads, writes = os.pipe()

    def child() -> None:
        for stream in (1, 2):
            os.dup2(writes, stream)
        before()
        raise SystemExit(cli.run(job))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    os.close(writes)
    with open(reads, errors="replace") as said:
        text = said.read()  # before the process has ended: a pipe that nobody reads would stop it
    process.join()
    return process.exitcode or 0, text


def snapshot(place: Path) -> dict[str, bytes]:
    """Path -> bytes of all files, without what differs from run to run."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if path.is_file() and not path.name.endswith(LOCKS) and f"{BOARD}/" not in name:
            found[name] = same_bytes(path)
    return found


def changed(files: dict[str, bytes], reference: dict[str, bytes]) -> list[str]:
    """The files that are others, or are in one of the two alone."""
    return sorted(name for name in files.keys() | reference.keys() if files.get(name) != reference.get(name))


def same_bytes(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name.startswith(HEADED):
        end = 8 + int.from_bytes(content[:8], "little")
        return json.dumps(json.loads(content[8:end]), sort_keys=True).encode() + content[end:]
    return content


def whole(path: Path) -> object:
    """What a run that was disturbed may leave besides the files of its end, each by its reader."""
    match path.suffix:
        case ".json":
            return read_json(path)
        case ".jsonl":  # of the last line a part may be missing, which its reader passes over
            return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True)[:-1]]
        case ".safetensors":
            return (checkpoint.read if path.name.startswith(HEADED) else read_weights)(path)
    raise AssertionError(f"{path} is no file of a finished run")


def standing(place: Path, reference: dict[str, bytes]) -> None:
    """Whatever has its final name is whole. Hidden folders and the cache's scratch have no final names."""
    for path in place.rglob("*"):
        name = path.relative_to(place).as_posix()
        hidden = (
            f"/{name}".count("/.") or name.startswith("cache/scratch/") or path.name.endswith(LOCKS) or f"{BOARD}/" in name
        )
        if path.is_file() and not hidden and path.read_bytes() != reference.get(name):
            whole(path)


def disturbance(
    dice: random.Random, trace: list[list[str]], seconds: float, hit: mmap.mmap
) -> tuple[str, Callable[[], None]]:
    """One of KINDS at a moment that is drawn: in words, and as what a process does before its work. ``hit`` is set by it."""
    kind = dice.choice(KINDS)
    if kind == KINDS[0]:
        after = dice.uniform(0, seconds)
        return f"{kind}: {after:.3f} s", partial(disk.kill_after, after)
    ours = [(n, name) for n, (name, path) in enumerate(trace) if BOARD not in path]
    moments = [n for n, name in ours if kind == KINDS[1] or name not in disk.FREES]
    moment, size = dice.choice(moments), dice.choice((0, 100, 4096))
    if kind == KINDS[4] and dice.random() < 0.5:  # the NetCDF files, which a C library writes
        moment = dice.choice([n for n, (_, path) in enumerate(trace) if path.endswith(".nc")] or moments)

    def disturb(number: int, name: str, path: Any) -> None:
        if number < moment or (kind != KINDS[3] and number > moment):
            return
        hit[0] = 1
        if kind == KINDS[1]:
            disk.kill()
        elif kind == KINDS[4]:
            disk.limit(size)
        else:
            disk.refuse(number, name, path)

    return f"{kind}: {moment} of {len(trace)}, {' '.join(trace[moment])}, {size}", partial(disk.watch, disturb)


@dataclass(frozen=True)
class Job:
    """One of JOBS in ``place``, with a folder of ``data``."""

    name: str
    place: Path
    data: Path

    def __call__(self) -> int:
        return JOBS[self.name](self.place, self.data)

    def afresh(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()

    def undisturbed(self) -> tuple[dict[str, bytes], float, list[list[str]]]:
        """The files, the seconds and the disk calls of a run that nobody disturbs."""
        self.afresh()
        assert cli.run(self) == 0  # all that it imports is imported once
        self.afresh()
        begin, (code, said) = time.perf_counter(), work(self)
        assert code == 0, said
        seconds, reference = time.perf_counter() - begin, snapshot(self.place)
        self.afresh()
        with open(self.place.with_name("trace"), "w+b", buffering=0) as file:
            write = file.write
            traced = partial(disk.watch, lambda _, call, path: write(json.dumps([call, str(path)]).encode() + b"\n"))
            code, said = work(self, traced)
            assert code == 0, said
            assert not changed(snapshot(self.place), reference)
            file.seek(0)
            return reference, seconds, [json.loads(line) for line in file]

    def round(self, reference: dict[str, bytes], words: str, disturb: Callable[[], None]) -> tuple[int, str]:
        """Exit code of a run that is disturbed, and what is wrong with it or with the run after it; empty where all is well."""
        self.afresh()
        code, said = work(self, disturb)
        wrong = [] if code in ENDS else ["neither done, nor killed, nor an error in one line"]
        try:
            standing(self.place, reference)
        except Exception as error:
            wrong.append(f"not whole: {error}")
        if code:
            code_after, said_after = work(self)
            wrong += [f"the same run again ends with {code_after}: {said_after}"] if code_after else []
        other = changed(snapshot(self.place), reference)
        wrong += [f"other files than those of a run that was not disturbed: {other}"] if other else []
        return code, f"{self.name}, {words}: {'; '.join(wrong)}\n(exit code {code}) {said}" if wrong else ""


def rounds(name: str, n: int, folder: Path) -> None:
    """``n`` rounds of the job of this name; ``folder``/found.json gets what came of them."""
    write_idx(folder / "data" / "idx")
    tiny_imagenet.write_images(folder / "data" / "images", 15, 5)
    prepare(folder / "place")
    job = Job(name, folder / "place", folder / "data")
    reference, seconds, trace = job.undisturbed()
    found, wrong, hit = Counter[str](), [], mmap.mmap(-1, 1)
    for number in range(n):
        hit[0] = 0
        words, disturb = disturbance(random.Random(f"{name} {number}"), trace, seconds, hit)
        code, trouble = job.round(reference, words, disturb)
        found.update([words.partition(":")[0], f"ended with {code}", *(["hit"] if hit[0] or code < 0 else [])])
        wrong += [f"round {number}: {trouble}"] if trouble else []
        write_json(folder / "found.json", {"rounds": number + 1, "found": found, "wrong": wrong})


def in_new_interpreter(function: Callable[[str, int, Path], None], name: str, n: int, folder: Path, seconds: float) -> None:
    """``function(name, n, folder)`` in a Python that has no threads yet, so that it may fork; it ends with all its processes."""
    words = [
        sys.executable,
        "-c",
        f"import test_crash; test_crash.main({function.__name__!r}, {name!r}, {n}, {str(folder)!r})",
    ]
    places = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    with open(folder / "said.txt", "w+", errors="replace") as said:
        process = subprocess.Popen(
            words,
            env={**os.environ, "PYTHONPATH": places},
            stdout=said,
            stderr=said,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code: int | str = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = f"not done after {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        assert code == 0, f"{code}: {said.read()[-20_000:]}"


def main(function: str, name: str, n: int, folder: str) -> None:
    """What ``in_new_interpreter`` runs; a process that hangs says where before it is ended."""
    faulthandler.dump_traceback_later(LONGEST - 20, exit=False)
    globals()[function](name, n, Path(folder))


@pytest.mark.timeout(LONGEST + 60)
@pytest.mark.parametrize(
    ("name", "n"), [("compare", 6), *(pytest.param(name, ROUNDS // len(JOBS), marks=pytest.mark.slow) for name in JOBS)]
)
def test_a_run_that_was_disturbed_ends_as_one_that_was_not(name: str, n: int, tmp_path: Path) -> None:
    in_new_interpreter(rounds, name, n, tmp_path, LONGEST)
    content = read_json(tmp_path / "found.json")
    print(content)
    assert content["rounds"] == n
    assert not content["wrong"], "\n".join(content["wrong"])
    assert content["found"]["hit"] >= 0.7 * n


def together(name: str, n: int, folder: Path) -> None:
    """``n`` processes do a job at once on one cache: comparisons each in a folder of its own, a grid all in one."""
    place = folder / "place"
    write_idx(folder / "data" / "idx")
    prepare(place)

    def one(number: int) -> None:
        there = place / f"at{0 if name == 'grid' else number}"
        there.mkdir(parents=True, exist_ok=True)
        os.chdir(there)
        raise SystemExit(cli.run(partial(JOBS[name], Path(), folder / "data")))

    assert tiny.processes(one, 1) == [0]
    alone = snapshot(place)
    shutil.rmtree(place)
    assert tiny.processes(one, n) == [0] * n
    whose = range(1 if name == "grid" else n)
    assert snapshot(place) == {file.replace("at0/", f"at{k}/"): content for k in whose for file, content in alone.items()}


@pytest.mark.slow
@pytest.mark.timeout(LONGEST + 60)
@pytest.mark.parametrize(("name", "n"), [("compare", 4), ("grid", 3)])
def test_several_processes_give_the_bytes_of_one(name: str, n: int, tmp_path: Path) -> None:
    in_new_interpreter(together, name, n, tmp_path, LONGEST)
