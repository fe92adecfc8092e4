"""benchmarks/gpu/run without a GPU: what it starts, what travels, and what its steps import."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from trainer.tiny_imagenet import imagenet, write_images

from cnnf_brain.datasets.image_index import index_images
from cnnf_brain.robustness import __main__ as robustness

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu" / "run"
loader = SourceFileLoader("gpu_run", str(SCRIPT))
spec = importlib.util.spec_from_loader("gpu_run", loader)
assert spec is not None
script: Any = importlib.util.module_from_spec(spec)
sys.modules["gpu_run"] = script  # dataclasses look their module up
loader.exec_module(script)

# Missing on machines that are lent, or not to be relied on there.
MISSING = ("sklearn", "netCDF4", "pooch", "brainscore_vision", "brainscore_core", "art", "pyautoattack")
USED = (
    "cnnf_brain",
    "cnnf_brain.compare.__main__",
    "cnnf_brain.predictivity.permutation",
    "cnnf_brain.report.readers",
    "cnnf_brain.robustness.__main__",
    "cnnf_brain.trainer.evaluation",
    "test_gpu",
)


def lease(place: Path, **changes: Any) -> Any:
    for name in ("vgg16", "fashion", "run"):
        (place / name).mkdir()
    return script.Lease(place, changes.pop("device", "cuda"), place / "out", time.monotonic() + 60, **changes)


def test_what_the_steps_import_needs_no_library_that_may_be_missing() -> None:
    code = f"import importlib, sys\nsys.modules |= dict.fromkeys({MISSING})\n[importlib.import_module(n) for n in {USED}]"
    path = os.pathsep.join(map(str, (SCRIPT.parents[2], SCRIPT.parents[2] / "tests")))
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=True)


@pytest.mark.parametrize("small", [False, True])
def test_the_commands_are_understood(tmp_path: Path, small: bool) -> None:
    made = script.steps(lease(tmp_path, small=small, seeds=(0, 1), cnnf="--target features.9 --step-size 0.5"))
    trainings = [imagenet.recipe(imagenet.arguments(command[2:])) for command in made["train"][1]]
    assert [recipe.hold for recipe in trainings] == ["features.30", None, None, None, None]
    assert [recipe.seed for recipe in trainings] == [0, 0, 0, 1, 1]
    assert [recipe.feedback.get("target") for recipe in trainings] == [None, "features.9", None, "features.9", None]
    assert {recipe.amp for recipe in trainings} == {"bfloat16"}
    for figure in (script.QUICK,) if small else script.FIGURES:
        assert robustness.arguments(made[figure][1][0][3:]).experiment == figure
    for name in ("flops", "ratios", "memory"):
        assert Path(made[name][1][0][1]).is_file()


def test_parts_are_put_together_again(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10
    (tmp_path / "whole").write_bytes(content)
    parts = script.split(tmp_path / "whole", tmp_path / "parts", 1000)
    assert [part.stat().st_size for part in parts] == [1000, 1000, 560]
    assert script.joined(parts[::-1], tmp_path / "again").read_bytes() == content
    with pytest.raises(ValueError, match="not all of them"):
        script.joined(parts[1:], tmp_path / "again")
    parts[1].write_bytes(bytes(1000))
    with pytest.raises(ValueError, match="damaged"):
        script.joined(parts, tmp_path / "again")


def test_a_run_goes_on_from_parts_that_came_and_went(tmp_path: Path) -> None:
    here = lease(tmp_path)
    checkpoint = here.run / "cnn-seed0" / "checkpoints" / "checkpoint-000000007.safetensors"
    finished = here.run / "head" / "checkpoints" / "checkpoint-000000002.safetensors"
    for path in (checkpoint, finished, here.run / "head" / "card.json", here.run / "head" / "model.safetensors"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(5000))
    expected = checkpoint.read_bytes()
    parts = script.pack(here)
    assert script.send(parts, tmp_path, 0) == [f"parts 0 to 0 of 0 to 0 are in {tmp_path}"]
    script.arrived([tmp_path], tmp_path / "vgg16")
    (there,) = (tmp_path / "vgg16" / name for name in ("run",))
    assert (there / checkpoint.relative_to(here.run)).read_bytes() == expected
    assert not (there / finished.relative_to(here.run)).exists()
    assert (there / "head" / "model.safetensors").exists()


def test_what_is_packed_fits_and_can_be_trained_on(tmp_path: Path) -> None:
    write_images(tmp_path / "images", n_train=60, n_val=30)
    folder = tmp_path / "packed"
    folder.mkdir()
    limit = 160 * 1024
    script.shards(tmp_path / "images", folder, limit)
    assert 0.4 * limit < script.sizes(folder) <= limit
    train, validation = index_images(folder)
    whole, _ = index_images(tmp_path / "images")
    assert 1 <= len(validation) < len(train) < 60
    assert train.read(0) == whole.read(0)
    assert {*train.labels} == {0, 1, 2}

    weights = {"features.0.weight": torch.randn(4, 3, 3, 3)}
    save_file(weights, tmp_path / "weights.safetensors")
    half = load_file(script.halved(tmp_path / "weights.safetensors", tmp_path / "half.safetensors"))
    assert half["features.0.weight"].dtype == torch.float16
    torch.testing.assert_close(half["features.0.weight"].float(), weights["features.0.weight"], rtol=1e-3, atol=1e-6)


def test_a_step_that_fails_or_takes_too_long_does_not_stop_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = [sys.executable, "-c"]
    stops = (
        "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(75))\nprint('begun', flush=True)\ntime.sleep(60)"
    )
    made = {
        "fails": (9.0, [[*python, "print('it broke'); raise SystemExit(3)"], [*python, "print('and this runs')"]]),
        "endless": (0.5, [[*python, "import time; time.sleep(60)"]]),
        "deaf": (4.0, [[*python, "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"]]),
        "train": (3.0, [[*python, stops], [*python, "print('not begun')"]]),
        "last": (9.0, [[*python, "print('fine')"]]),
    }
    monkeypatch.setattr(script, "steps", lambda _: made)
    monkeypatch.setattr(script, "GRACE", 0.5)
    monkeypatch.setattr(script, "REST", 3.0)
    here = lease(tmp_path)
    assert script.work(here, ()) == 1
    rows = (here.out / "summary.txt").read_text().splitlines()
    told = {row.split()[0]: row for row in rows}
    assert "exit code 3" in told["fails"]
    assert told["fails"].endswith("and this runs")
    assert "  time is up" in told["endless"]
    assert "killed, time is up" in told["deaf"]
    assert "stopped, goes on" in told["train"]
    assert "done" in told["last"]
    assert "not begun" not in (here.out / "log.txt").read_text()
    assert sorted(path.name for path in (here.run / "done").iterdir()) == ["deaf", "endless", "fails", "last"]
    made["train"] = (3.0, [[*python, "print('went on')"]])
    assert script.work(here, ()) == 0
    assert [row.split()[0] for row in (here.out / "summary.txt").read_text().splitlines()][:-1] == ["train"]


@pytest.mark.slow
@pytest.mark.timeout(3660)
@pytest.mark.skipif("CNNF_BRAIN_REHEARSE" not in os.environ, reason="takes ten minutes; CNNF_BRAIN_REHEARSE=1 asks for it")
def test_the_rehearsal() -> None:
    process = subprocess.Popen([sys.executable, str(SCRIPT), "--device", "cpu", "--rehearse"])
    try:
        assert process.wait(3600) == 0
    finally:
        process.terminate()
        process.wait()
