"""A SLURM of its own for a test: munged, slurmctld and slurmd of two nodes, all on this machine.

Nodes are called by addresses of this machine, so that each finds the other by its name, as those of a cluster do.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "srun", "scancel")
SBIN = "/usr/sbin:/sbin"
NODES = ("127.0.0.1", "127.0.0.2")
CONF = """
ClusterName=test
SlurmctldHost=localhost
SlurmUser=root
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=5
KillWait=1
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MaxArraySize=6
NodeName=127.0.0.1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} RealMemory=100000
NodeName=127.0.0.2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} RealMemory=100000
PartitionName=low Nodes=127.0.0.[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes=127.0.0.[1-2] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


class Cluster:
    """The programs of a cluster in ``folder``; nodes are NODES, partitions ``low`` and ``high``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *words: str) -> None:
        """One program in the foreground, in a session of its own; what it may leave (a core) is left in ``folder``."""
        with open(self.folder / f"{name}.out", "ab") as out:
            self.programs[name] = subprocess.Popen(
                words, stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=self.folder, start_new_session=True
            )

    def kill_node(self, name: str) -> None:
        """What a loss of power does: slurmd, and all that ran on the node, is gone. Who would report it goes first."""
        jobs = self.on_node(name)
        steps = [one for job in jobs for one in job.parents() if one.name() == "slurmstepd"]
        self.programs[name].kill()
        self.programs[name].wait()
        for one in [*steps, *jobs]:
            with suppress(psutil.Error):
                one.kill()

    def on_node(self, name: str) -> list[psutil.Process]:
        """The processes of jobs on a node."""
        found = []
        for one in psutil.process_iter():
            with suppress(psutil.Error):
                known = one.environ()
                if known.get("SLURM_CONF") == os.environ["SLURM_CONF"] and known.get("SLURMD_NODENAME") == name:
                    found.append(one)
        return found

    def say(self, *words: str) -> str:
        """What a command of SLURM answers."""
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout

    def jobs(self) -> list[list[str]]:
        """Id, state, node and partition of all jobs that are not over."""
        return [line.split("|") for line in self.say("squeue", "-h", "-r", "-o", "%i|%T|%N|%P").splitlines()]

    def now(self) -> None:
        """Start what waits at once: SLURM holds a requeued job back for minutes. Not in the second in which its last start ended:
        a node takes the new start for the old one then, and the job is lost."""
        time.sleep(2)
        self.start_jobs([job for job, state, *_ in self.jobs() if state == "PENDING"])

    def start_jobs(self, jobs: list[str]) -> None:
        """Start jobs that are held or wait for a time."""
        for job in jobs:
            for words in (["release", job], ["update", f"jobid={job}", "starttime=now"]):
                with suppress(subprocess.CalledProcessError):
                    self.say("scontrol", *words)

    def wait(self, ready: Callable[[], bool], what: str, seconds: float = 60) -> None:
        """Until something is so. SLURM holds a job that a busy node could not start: it is released."""

        def holds() -> bool:
            lines = self.say("squeue", "-h", "-r", "-o", "%i|%r").splitlines()
            self.start_jobs([line.partition("|")[0] for line in lines if "held" in line.lower()])
            return ready()

        wait(holds, what, seconds)

    def idle(self) -> bool:
        """Whether both nodes are there and free."""
        return self.say("sinfo", "-h", "-N", "-p", "low", "-o", "%T").split() == ["idle"] * 2

    def stop(self) -> None:
        """End all of it."""
        with suppress(subprocess.SubprocessError):
            self.say("scancel", "--user=root", "--signal=KILL")
        for name in NODES:
            self.kill_node(name)
        for process in self.programs.values():
            process.terminate()
        for process in self.programs.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)


@contextmanager
def cluster(cpus: int = 1) -> Iterator[Cluster]:
    """A cluster that runs, of nodes with ``cpus``; a skip, with the reason, where there is no SLURM to be had."""
    # a short path: the system's limit is 107 letters for the sockets in it, and slurmstepd ends without a word above it
    short = tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp", ignore_cleanup_errors=True)
    with short as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        patch.setenv("PATH", f"{os.environ['PATH']}:{SBIN}")
        missing = [name for name in PROGRAMS if shutil.which(name) is None]
        if missing:
            pytest.skip(f"needs SLURM: {', '.join(missing)} are not installed (make slurm)")
        if os.geteuid() != 0:
            pytest.skip("needs root, as slurmd does")
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        ports = [free_port() for _ in range(3)]
        (folder / "slurm.conf").write_text(CONF.format(folder=folder, ports=ports, cpus=cpus))
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        made = Cluster(folder)
        try:
            names = ("key", "pid", "log", "seed")
            files = [f"--{name}-file={folder}/munge.{name}" for name in names]
            made.start("munged", "munged", "--foreground", "--force", f"--socket={folder}/munge.sock", *files)
            wait(lambda: (folder / "munge.sock").exists(), "munged")
            made.start("slurmctld", "slurmctld", "-D")
            for name in NODES:
                made.start(name, "slurmd", "-D", "-N", name)
            wait(made.idle, "two nodes")
            yield made
        finally:
            made.stop()


def wait(ready: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Until something is so; a failure where it is not within ``seconds``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(subprocess.SubprocessError):
            if ready():
                return
        time.sleep(0.1)
    pytest.fail(f"{what} within {seconds} s")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
