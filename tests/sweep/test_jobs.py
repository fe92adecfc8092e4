"""A study as jobs: processes of this machine, and a real SLURM that loses a node and preempts a job."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import slurm
from sweep.test_study import study_of

import cnnf_brain as cb
from cnnf_brain.sweep import prepare, status, submit
from cnnf_brain.sweep.table import logs_of


def same(one: cb.Study, a: Path, b: Path) -> None:
    """The table of two folders is the same."""
    left, right = (pd.read_csv(folder / "table.csv") for folder in (a, b))
    pd.testing.assert_frame_equal(left, right, rtol=1e-9)
    assert one.named


def begun(out: Path) -> Counter[str]:
    """How often each cell was begun, by the logs."""
    lines = [line for path in (out / "logs").glob("*.out") for line in path.read_text().splitlines()]
    return Counter(line.split()[1] for line in lines if line.startswith("cell ") and line != "cell finished")


@pytest.mark.slow
def test_processes_of_this_machine(tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("submitit", reason="needs submitit (the extra cluster)")
    study, out = study_of(tmp_path, layers={"V4": ["first", "second"]}), tmp_path / "out"
    table = submit.locally(study, out, 2)
    assert not table.missing
    cells = prepare(study, out)
    assert begun(out) == Counter(cell.title for cell in cells)
    assert all(logs_of(out, [cell.title for cell in cells]).values())
    cb.sweep(study, tmp_path / "alone", progress=False)
    same(study, out, tmp_path / "alone")


def test_objects_cannot_be_submitted(tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("submitit", reason="needs submitit (the extra cluster)")
    study = study_of(tmp_path)
    objects = cb.Study(networks=study.networks, recordings=[cb.load_recordings(study.recordings[0])])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="as objects"):
        submit.locally(objects, tmp_path / "out", 2)


def test_chunks_are_below_the_limit_and_alike() -> None:
    seconds = np.random.default_rng(0).uniform(100, 4000, 100).tolist()
    for limit in (1, 7, 1000):
        parts = list(submit.chunks(range(100), seconds.__getitem__, limit))
        assert [cell for part in parts for cell in part] == list(range(100))
        assert len(parts) <= limit
        took = [sum(seconds[cell] for cell in part) for part in parts]
        assert max(took) <= sum(took) / len(parts) + 4000
    assert len(parts) == sum(seconds) // submit.A_JOB


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_cluster_that_loses_a_node_and_preempts_a_job(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit", reason="needs submitit (the extra cluster)")
    monkeypatch.setattr(submit, "A_JOB", 5.0)
    study = study_of(tmp_path, layers={"V4": ["first", "second", "act"]}, slurm={"cpus_per_task": 1, "partition": "low"})
    out = tmp_path / "out"
    cells = prepare(study, out)

    def done(n: int) -> bool:
        return sum(status(out).done.values()) >= n

    with slurm.cluster() as cluster:
        assert submit.array_limit() == 6
        first, second = submit.to_slurm(study, out)

        def running(job: str, node: str = "") -> bool:
            return any(one[0].startswith(job) and one[1] == "RUNNING" and node in one[2] for one in cluster.jobs())

        cluster.wait(lambda: bool(begun(out)), "the first cell", 600)
        (node,) = {one[2] for one in cluster.jobs() if one[1] == "RUNNING"}
        cluster.kill_node(node)  # in the middle of K
        cluster.wait(lambda: not running(first, node), "the loss of the node is seen", 600)
        cluster.now()
        cluster.wait(lambda: running(first), "K is taken up by the other node", 600)
        cluster.start(node, "slurmd", "-D", "-N", node)
        cluster.wait(
            lambda: running(second) and any(name.startswith("score") for name in begun(out)), "scores are made", 600
        )
        (high,) = cluster.say(
            "sbatch", "--parsable", "-p", "high", "--exclusive", "-N2", "-o", "/dev/null", "--wrap", "sleep 1"
        ).split()
        cluster.wait(lambda: not running(second), "the jobs are preempted", 600)
        cluster.wait(lambda: not any(one[0] == high for one in cluster.jobs()), "the other job is over", 600)
        cluster.now()
        cluster.wait(lambda: done(len(cells)), "all cells are done", 600)
    counts = begun(out)
    assert set(counts) == {cell.title for cell in cells}
    assert sum(counts.values()) <= len(cells) + 3  # what was in hand: of one job at the node, of two that were preempted
    assert all(logs_of(out, [cell.title for cell in cells]).values())
    cb.sweep(study, tmp_path / "alone", progress=False)
    cb.sweep(study, out, progress=False)
    same(study, out, tmp_path / "alone")
