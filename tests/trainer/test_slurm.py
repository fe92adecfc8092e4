"""training/imagenet.slurm under bash, with a cluster's commands that note what they are asked for."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trainer.tiny_imagenet import imagenet

SCRIPT = Path(__file__).resolve().parents[2] / "training" / "imagenet.slurm"
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")


def run(tmp_path: Path, *, after: str, old_checkpoint: bool = False) -> tuple[int, list[str], list[str]]:
    """Exit code of the script, what was asked of scontrol, the words of the trainer; ``after``: what torchrun does instead."""
    tools, output = tmp_path / "bin", tmp_path / "out folder"
    tools.mkdir()
    (output / "checkpoints").mkdir(parents=True)
    if old_checkpoint:
        path = output / "checkpoints" / "checkpoint-000000001.safetensors"
        path.touch()
        os.utime(path, (time.time() - 9999,) * 2)
    (tools / "python3").symlink_to(sys.executable)
    venv = tmp_path / "venv" / "bin"
    venv.mkdir(parents=True)
    (venv / "activate").write_text(f"touch {shlex.quote(str(tmp_path / 'activated'))}\n")
    stands_for = {
        "scontrol": f'echo "$*" >> {shlex.quote(str(tmp_path / "asked"))}\n[ "$1" != show ] || printf "host1\\nhost2\\n"',
        "srun": 'while [[ $1 == --* ]]; do shift; done\nexec "$@"',
        "torchrun": f'printf "%s\\n" "$@" > {shlex.quote(str(tmp_path / "words"))}\ncd {shlex.quote(str(output))}\n{after}',
    }
    for name, code in stands_for.items():
        (tools / name).write_text(f"#!/bin/bash\n{code}\n")
        (tools / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "host[1-2]",
        "SLURM_NNODES": "2",
        "VENV": str(venv.parent),
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_START_TIME": str(int(time.time()) - 60),
    }
    words = ["bash", str(SCRIPT), str(tmp_path / "images"), str(output), "--model", "cnnf", "--amp", "bfloat16"]
    code = subprocess.run(words, env=environment, check=False).returncode  # type: ignore[assignment]
    return code, (tmp_path / "asked").read_text().splitlines(), (tmp_path / "words").read_text().splitlines()  # type: ignore[return-value]


def test_a_preempted_run_is_put_back(tmp_path: Path) -> None:
    code, asked, _ = run(tmp_path, after="touch checkpoints/checkpoint-000000002.safetensors; exit 75")
    assert code == 75
    assert asked == ["show hostnames host[1-2]", "requeue 77"]
    assert (tmp_path / "activated").exists()


def test_bash_reads_the_script() -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0


def test_a_finished_run_is_not(tmp_path: Path) -> None:
    code, asked, words = run(tmp_path, after="touch checkpoints/checkpoint-000000002.safetensors card.json")
    assert code == 0
    assert asked == ["show hostnames host[1-2]"]
    host, _, port = words[words.index("--rdzv-endpoint") + 1].partition(":")
    assert host == "host1"
    with socket.socket() as free:
        free.bind(("", int(port)))
    assert words[words.index("-m") + 1 :][:2] == ["cnnf_brain.train", "imagenet"]
    trainer = words[words.index("imagenet") + 1 :]
    args = imagenet.arguments(trainer)  # the trainer takes these words
    assert (args.data, args.output, args.model, args.amp) == (
        tmp_path / "images",
        tmp_path / "out folder",
        "cnnf",
        "bfloat16",
    )


@pytest.mark.parametrize("old_checkpoint", [False, True])
def test_a_run_that_came_no_further_is_not(tmp_path: Path, old_checkpoint: bool) -> None:
    code, asked, _ = run(tmp_path, after="exit 1", old_checkpoint=old_checkpoint)
    assert code == 1
    assert asked == ["show hostnames host[1-2]"]
