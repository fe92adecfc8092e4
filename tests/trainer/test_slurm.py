"""training/imagenet.slurm under bash, with a cluster's commands that note what they are asked for; and on a real SLURM."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import slurm
import torch
from safetensors.torch import load_file
from trainer.test_own_network import CODE, words
from trainer.tiny_imagenet import imagenet, write_images

from cnnf_brain.model.weights import read_card
from cnnf_brain.trainer import checkpoint

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


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_on_a_cluster_a_run_that_is_stopped_requeued_and_loses_a_rank_ends_as_if_nothing_had_happened(
    tmp_path: Path,
) -> None:
    """Two machines with a rank each, on processors; the job puts itself back at the end of its time."""
    (tmp_path / "lab.py").write_text(CODE)
    images, output, log = write_images(tmp_path / "images"), tmp_path / "out folder", tmp_path / "log"

    def command(folder: Path) -> list[str]:
        more = ("--iterations", 1, "--save-every", 1, "--validate-every", 1000)
        return words(images, folder, f"{tmp_path / 'lab.py'}:feedback", *more, steps=200)

    def came_further() -> None:
        before = checkpoint.paths(output / "checkpoints")[:1]
        cluster.wait(lambda: checkpoint.paths(output / "checkpoints")[:1] != before, "a checkpoint", 240)

    with slurm.cluster(cpus=2) as cluster, pytest.MonkeyPatch.context() as patch:
        if (Path(sys.prefix) / "bin" / "activate").exists():
            patch.setenv("VENV", sys.prefix)
        patch.setenv("PROCESSES", "1")
        asked = ("--account=lab", "--partition=low", "--gpus-per-node=0", "--cpus-per-task=2", f"--output={log}")
        data, _, folder, *flags = command(output)[1:]
        job = cluster.say("sbatch", "--parsable", *asked, str(SCRIPT), data, folder, *flags).strip()
        came_further()
        assert "Nodes=2 CPUs=4 Tasks=2" in cluster.say("scontrol", "show", "step", f"{job}.0")
        rank(cluster, "1").kill()
        cluster.wait(lambda: log.read_text().count("continuing ") >= 1, "all ranks start again", 240)
        came_further()
        cluster.say("scancel", "--signal=TERM", job)  # as --signal does, 300 s before the time is up
        cluster.wait(lambda: [one[1] for one in cluster.jobs()] == ["PENDING"], "the job puts itself back", 120)
        assert log.read_text().count("stopped by ") == 1
        cluster.wait(cluster.idle, "the end of its processes")
        cluster.now()
        came_further()
        cluster.say("scontrol", "requeue", job)
        cluster.wait(lambda: [one[1] for one in cluster.jobs()] == ["PENDING"], "the job is put back", 120)
        cluster.wait(cluster.idle, "the end of its processes")
        cluster.now()
        cluster.wait(lambda: not cluster.jobs(), "the end of the job", 240)
    assert log.read_text().count("continuing ") >= 3, log.read_text()
    card = read_card(output / "model.safetensors").content
    assert (card["step"], card["ranks"]) == (200, 2)
    straight = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    straight += ["-m", "cnnf_brain.train", "imagenet", *command(tmp_path / "straight")]
    subprocess.run(straight, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=240)
    weights = [load_file(folder / "model.safetensors") for folder in (output, tmp_path / "straight")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def rank(cluster: slurm.Cluster, number: str) -> psutil.Process:
    """The process of a rank."""
    (found,) = (one for node in slurm.NODES for one in cluster.on_node(node) if one.environ().get("RANK") == number)
    return found
