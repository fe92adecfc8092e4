"""training/imagenet.py under torchrun: a worker that dies is started again, and training goes on from the last checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trainer.tiny_imagenet import flags, write_images

from cnnf_brain.model.weights import read_card
from cnnf_brain.trainer import checkpoint

PATIENCE = 240  # seconds
SCRIPT = """
import os, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
from trainer.tiny_imagenet import imagenet, without_dropout, zoo
zoo.sequential = without_dropout
name = "pid-" + os.environ["RANK"] + "-" + os.environ["TORCHELASTIC_RESTART_COUNT"]
Path({folder!r}, name).write_text(str(os.getpid()))
sys.exit(imagenet.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_training_goes_on_after_a_worker_of_torchrun_died(tmp_path: Path) -> None:
    images, output, log = write_images(tmp_path / "images"), tmp_path / "out", tmp_path / "log"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    torchrun += ["--monitor-interval", "0.1", "--master-port", "0", "--standalone", str(script)]
    argv = flags(images, output, "--save-every", 1, "--validate-every", 1000, steps=300)
    options = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "start_new_session": True}
    with log.open("w") as file, subprocess.Popen([*torchrun, *argv], stdout=file, stderr=file, **options) as process:  # type: ignore[call-overload]
        try:
            deadline = time.monotonic() + PATIENCE
            while len(checkpoint.paths(output / "checkpoints")) < 2:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            os.kill(int((tmp_path / "pid-1-0").read_text()), signal.SIGKILL)
            assert process.wait(PATIENCE) == 0, log.read_text()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert (tmp_path / "pid-0-1").exists()
    assert "continuing " in log.read_text()
    card = read_card(output / "model.safetensors").content
    assert (card["step"], card["ranks"]) == (300, 2)
