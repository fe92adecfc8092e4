"""The cells of a study: made once by any number of processes, continued after a kill, and put together in one table."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from sweep.test_study import SMALL, study_of

import cnnf_brain as cb
from cnnf_brain import cli
from cnnf_brain.compare.comparison import write_scores
from cnnf_brain.predictivity.statistics import holm
from cnnf_brain.report import readers
from cnnf_brain.sweep import Table, cells, prepare, run_cells, status
from cnnf_brain.sweep.cells import K, Score


@pytest.fixture
def study(tmp_path: Path, cache: Path) -> cb.Study:
    """Two networks against a third."""
    return study_of(tmp_path, baseline=f"{tmp_path}/net.py:louder", layers={"V4": ["first", "second"]})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[cb.Study, Path, Table]:
    """The same study, all of it done, and its table."""
    folder = tmp_path_factory.mktemp("study")
    study = study_of(folder, baseline=f"{folder}/net.py:louder", layers={"V4": ["first", "second"]})
    return study, folder / "out", cb.sweep(study, folder / "out", progress=False)


def test_the_rows_are_those_of_compare(done: tuple[cb.Study, Path, Table]) -> None:
    study, out, table = done
    assert not table.missing
    assert not table.failed
    assert status(out).done == {"K": 3, "scores": 8}
    networks = [cb.load_network(str(one)) for one in study.networks]
    baseline, recordings = cb.load_network(str(study.baseline)), cb.load_recordings(study.recordings[0])  # type: ignore[arg-type]
    direct = cb.compare(networks, baseline, recordings, ["first", "second"], scoring=SMALL, progress=False)
    key = ["network", "layer", "metric"]
    mine = table.comparison.table().sort_values(key, ignore_index=True)
    assert mine[[*key, "source"]].equals(direct.table().sort_values(key, ignore_index=True)[[*key, "source"]])
    theirs = direct.table().sort_values(key, ignore_index=True)
    numbers = [name for name in theirs if theirs[name].dtype.kind == "f"]
    assert {"difference", "p: permutation over images", "p: bootstrap over images"} <= set(numbers)  # Holm's over all rows
    np.testing.assert_allclose(mine[numbers].to_numpy(), theirs[numbers].to_numpy(), atol=1e-9)


def test_the_ranking_and_the_files(done: tuple[cb.Study, Path, Table]) -> None:
    _, out, table = done
    ranking = table.ranking
    for _, rows in ranking.groupby("metric"):
        assert list(rows["rank"]) == sorted(rows["rank"])
        assert list(rows["score"]) == sorted(rows["score"], reverse=True)
        assert len(rows) == 6
    with open(out / "ranking.csv") as file:
        assert file.readline().startswith(
            "rank,region,source,metric,network,weights,layer,iteration,score,low,high,difference"
        )
    assert tiny.scores(out / "scores.nc").sizes["row"] == 12 * 6
    page = readers.read(out)
    assert len(page.charts) == 2
    by_pls = [(np.median(e.scores.r.mean(0)), e) for e in table.comparison.evaluations if e.metric == "pls"]
    score, best = max(by_pls, key=lambda one: one[0])
    at = f"{best.network} [{best.weights}] {best.layer}, {score:.3f}"
    assert page.answer.startswith("Highest scores: V4 (V4.nc, cka): ")
    assert f"V4 (V4.nc, pls): {at}. Compared with" in page.answer
    tests = [(e, test) for e in table.comparison.evaluations for test in (e.comparison.tests if e.comparison else ())]
    raw = {(e.network, e.layer): test.p for e, test in tests if "permutation" in test.name}
    told = ranking[ranking["metric"] == "pls"].set_index(["network", "layer"])["p: permutation over images"].dropna()
    expected = dict(zip([(n, at.partition("@")[0]) for n, at in raw], holm(list(raw.values())), strict=True))
    assert told.to_dict() == pytest.approx(expected)
    (out / "report.html").unlink()
    assert cli.main(["report", str(out)]) == 0
    assert (out / "report.html").is_file()


def test_a_study_grows_and_does_nothing_again(study: cb.Study, tmp_path: Path) -> None:
    out, told = tmp_path / "out", []
    few = study_of(tmp_path, baseline=study.baseline, layers={"V4": ["first"]})
    cb.sweep(few, out, progress=False)
    before = {path.name: path.stat().st_mtime_ns for path in (out / "cells").glob("score*")}
    cb.sweep(study, out, progress=lambda _done, _total, name: told.append(name))
    assert {name: (out / "cells" / name).stat().st_mtime_ns for name in before} == before
    assert sum(name.startswith("score") for name in told) == 4
    with pytest.raises(ValueError, match="another question"):
        cb.sweep(study_of(tmp_path, scoring=cb.Scoring(components=3)), out, progress=False)


def test_a_lost_cache_is_made_again(
    study: cb.Study, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    cb.sweep(study, out, progress=False)
    gone = next((cache / "grams").glob("*.npz"))
    gone.unlink()
    told: list[str] = []
    cb.sweep(study, out, progress=lambda _done, _total, name: told.append(name))
    assert [name[0] for name in told if name != "finished"] == ["k"]
    assert "the cache lacks K of" in capsys.readouterr().err
    assert gone.exists()


def test_a_network_that_fails_stops_no_other(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    (tmp_path / "net.py").write_text(tiny.FILE)
    networks = [f"{tmp_path}/net.py:{name}" for name in ("net", "exploding")]
    study = study_of(tmp_path, networks=networks, layers={"V4": "second"}, scoring=cb.Scoring(components=2))
    table = cb.sweep(study, out, progress=False)
    assert set(table.comparison.table()["network"]) == {"net.py:net"}
    ((name, error),) = table.failed.items()
    assert name.startswith("k-net.py_exploding")
    assert "not finite" in error or "infinite" in error
    assert len(table.missing) == 2  # its K, and the scores that wait for it
    found = status(out)
    assert found.failed == {"K": 1, "scores": 0}
    assert name in str(found)
    assert cli.main(["status", str(out)]) == 0
    assert error in capsys.readouterr().out


def by(number: int, study: cb.Study, out: Path, slow: float = 0.0) -> None:
    """A process at the study, which notes what it does; with ``slow`` seconds more for each cell."""
    told = []
    real = Score.make

    def make(self: Score, stop: Any) -> None:
        time.sleep(slow)
        real(self, stop)

    Score.make = make  # type: ignore[method-assign]
    run_cells(prepare(study, out), None, lambda _done, _total, name: told.append(name))
    (out / f"told{number}.json").write_text(json.dumps(told))


def test_processes_share_the_cells_and_none_is_done_twice(study: cb.Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert tiny.processes(lambda number: by(number, study, out, 0.05), 3) == [0] * 3
    told = [name for n in range(3) for name in json.loads((out / f"told{n}.json").read_text()) if name != "finished"]
    assert sorted(told) == sorted(cell.title for cell in prepare(study, out))


def test_a_kill_loses_the_cell_in_hand(study: cb.Study, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def killed(_: int) -> None:
        real = write_scores

        def write(path: Path, *more: Any, **words: Any) -> None:
            if len(list((out / "cells").glob("score*.nc"))) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            real(path, *more, **words)

        vars(cells)["write_scores"] = write
        by(0, study, out)

    assert tiny.processes(killed, 1) == [-signal.SIGKILL]
    there = {
        path.name: path.stat().st_mtime_ns for path in (out / "cells").glob("*.*[cn]") if path.suffix in (".nc", ".json")
    }
    assert sum(name.endswith(".nc") for name in there) == 3
    told: list[str] = []
    cb.sweep(study, out, progress=lambda _done, _total, name: told.append(name))
    assert sum(name.startswith("score") for name in told) == 5
    for name, when in there.items():
        assert (out / "cells" / name).stat().st_mtime_ns == when


def test_nested_choice_is_a_cell_of_a_network(tmp_path: Path, cache: Path) -> None:
    scoring = cb.Scoring(components=2, select="nested")
    study = study_of(tmp_path, layers={"V4": ["first", "second"]}, scoring=scoring)
    todo = prepare(study, tmp_path / "out")
    assert [type(cell) for cell in todo] == [K, K, Score, Score]
    table = cb.sweep(study, tmp_path / "out", progress=False)
    assert list(table.ranking["layer"]) == ["nested", "nested"]


def test_objects_are_scored_too(tmp_path: Path, cache: Path) -> None:
    recordings = cb.load_recordings(tiny.recordings(tmp_path / "data"))
    study = cb.Study(networks=[tiny.network(0, 1)], recordings=[recordings], layers="relu1", scoring=SMALL)  # type: ignore[arg-type]
    table = cb.sweep(study, tmp_path / "out", progress=False)
    assert not study.named
    assert sorted(table.ranking["iteration"]) == [0, 0, 1, 1]
