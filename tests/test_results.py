"""A run's folder: one configuration, whole or not at all, nothing lost that no run wrote."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import tiny
from disk import die_at

from cnnf_brain import results as module
from cnnf_brain.io import write_json
from cnnf_brain.results import check_place, claim, finish, grown, locked, occupied, opened, renewed, results, write_record


def fill(folder: Any, number: int, configuration: Any = None) -> None:
    with results(folder, "compare", {"seed": 0} if configuration is None else configuration) as staging:
        write_json(staging / "run.json", {"number": number})
        (staging / f"only{number}.txt").write_text("x")


def test_a_folder_changes_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "results"
    fill(folder, 1)
    (folder / "notes.txt").write_text("mine")
    fill(folder, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "only2.txt", "run.json"]
    assert [path.name for path in folder.parent.iterdir()] == ["results"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    with pytest.raises(RuntimeError), results(tmp_path / "new" / "results", "compare", {}):
        raise RuntimeError
    assert not (tmp_path / "new").exists()
    fill(folder, 1)
    with pytest.raises(OSError, match="disk is full"):
        fail_halfway(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["only1.txt", "run.json"]


def fail_halfway(folder: Any) -> None:
    with results(folder, "compare", {"seed": 0}) as staging:
        (staging / "half").write_text("x")
        raise OSError("the disk is full")


def test_another_question_or_command_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    fill(folder, 1)
    with pytest.raises(ValueError, match=r"another question \(seed: 0 there, 1 now\); choose another output folder"):
        fill(folder, 2, {"seed": 1})
    with pytest.raises(ValueError, match="holds the results of compare, not of visualize"):
        claim(folder, "visualize", {"seed": 0})
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("x")
    with pytest.raises(ValueError, match="not empty and not the results of this command"):
        claim(tmp_path / "photos", "compare", {})
    with pytest.raises(ValueError, match="is a file"):
        claim(folder / "run.json", "compare", {})
    claim(tmp_path / "absent", "compare", {})


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(tmp_path / "results"):
            held.set()
            go.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    for _ in range(2):  # a refusal leaves the other's lock as it is
        with pytest.raises(OSError, match="another run is writing to"), locked(tmp_path / "results"):
            pass
    go.set()
    thread.join()
    with locked(tmp_path / "results"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("taken", [opened, occupied])
def test_a_folder_that_a_run_writes_into_stays_where_something_was_written(tmp_path: Path, taken: Any) -> None:
    folder = tmp_path / "deep" / "run"
    with pytest.raises(RuntimeError), taken(folder):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with taken(folder):
        (folder / "log.jsonl").write_text("x")
    assert [path.name for path in folder.iterdir()] == ["log.jsonl"]
    with pytest.raises(OSError, match="cannot write"), taken(folder / "log.jsonl"):
        pass
    assert [path.name for path in folder.iterdir()] == ["log.jsonl"]


def test_two_runs_do_not_occupy_one_folder(tmp_path: Path) -> None:
    with occupied(tmp_path / "run"):
        for _ in range(2):
            with pytest.raises(OSError, match="another run is writing to"), occupied(tmp_path / "run"):
                pass
        (tmp_path / "run" / "log.jsonl").write_text("x")
    with occupied(tmp_path / "run"):
        pass
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log.jsonl"]


def test_a_folder_that_grows_belongs_to_its_question_from_the_first_step(tmp_path: Path) -> None:
    folder, question = tmp_path / "grid", {"seed": 0}
    with grown(folder, "robustness", question):
        (folder / "cell.json").write_text("{}")
    with grown(folder, "robustness", question) as again:
        write_record(again, "robustness", question, {"seconds": 3})
    record = json.loads((folder / "run.json").read_text())
    assert record == {"kind": "robustness", "seconds": 3, "configuration": question}
    with (
        pytest.raises(ValueError, match=r"another question \(seed: 0 there, 1 now\)"),
        grown(folder, "robustness", {"seed": 1}),
    ):
        pass
    assert sorted(path.name for path in folder.iterdir()) == ["cell.json", "run.json"]


def test_a_link_stands_for_its_folder(tmp_path: Path) -> None:
    (tmp_path / "disk" / "big").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "big")
    check_place(link)
    for number in (1, 2):
        fill(link, number)
    assert link.is_symlink()
    assert sorted(path.name for path in (tmp_path / "disk" / "big").iterdir()) == ["only2.txt", "run.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
    with locked(link), pytest.raises(OSError, match="another run is writing to"), locked(tmp_path / "disk" / "big"):
        pass


@pytest.mark.parametrize("exchange", [True, False])
def test_a_run_that_is_killed_at_any_moment_leaves_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    """With the user's own files, in folders too. Where the system cannot exchange folders, the next run puts that right."""
    if exchange and not (sys.platform == "linux" and exchanged(tmp_path)):
        pytest.skip("this file system exchanges no folders")
    if not exchange:
        monkeypatch.setattr(module, "_exchange", lambda *_: False)
    old, new = {"only1.txt": "x", "notes.txt": "mine"}, {"only2.txt": "x", "notes.txt": "mine"}
    seen = []
    for moment in range(100):
        folder = tmp_path / str(moment) / "results"
        fill(folder, 1)
        (folder / "notes.txt").write_text("mine")
        (folder / "more").mkdir()
        (folder / "more" / "notes.txt").write_text("mine too")

        def run(_: int, folder: Path = folder, moment: int = moment) -> None:
            with results(folder, "compare", {"seed": 0}) as staging:
                write_json(staging / "run.json", {"number": 2})
                (staging / "only2.txt").write_text("x")
                die_at(moment)

        code = tiny.processes(run, 1)[0]
        if folder.exists() or exchange:
            seen.append(files := {path.name: path.read_text() for path in folder.glob("*.txt")})
            assert files in (old, new)
            assert (folder / "more" / "notes.txt").read_text() == "mine too"
        with pytest.raises(RuntimeError), results(folder, "compare", {"seed": 0}):
            raise RuntimeError  # even a run that fails puts right what the killed one left
        assert {path.name: path.read_text() for path in folder.glob("*.txt")} in (old, new)
        assert (folder / "more" / "notes.txt").read_text() == "mine too"
        assert [path.name for path in folder.parent.iterdir() if not path.name.endswith(".lock")] == ["results"]
        if code == 0:
            break
    assert code == 0
    assert old in seen
    assert new in seen


def exchanged(folder: Path) -> bool:
    for name in ("a", "b"):
        (folder / name).mkdir()
    return module._exchange(folder / "a", folder / "b")


def test_what_killed_runs_of_other_folders_left_is_not_touched(tmp_path: Path) -> None:
    other = tmp_path / ".results-b-new-abcdefgh"  # of the folder results-b
    other.mkdir()
    fill(tmp_path / "results", 1)
    assert other.exists()


def test_files_that_are_renewed_take_their_places_together(tmp_path: Path) -> None:
    """Killed at any moment: all old, or all new once any later run or reader has finished what was ready."""
    seen = set()
    for moment in range(100):
        folder = tmp_path / str(moment)
        with grown(folder, "grid", {}):
            for name in ("a", "b", "c"):
                (folder / name).write_text("old")

        def run(_: int, folder: Path = folder, moment: int = moment) -> None:
            with grown(folder, "grid", {}):
                die_at(moment)
                with renewed(folder) as staging:
                    for name in ("a", "b", "c"):
                        (staging / name).write_text("new")

        code = tiny.processes(run, 1)[0]
        finish(folder)
        found = {(folder / name).read_text() for name in ("a", "b", "c")}
        assert len(found) == 1
        seen |= found
        with grown(folder, "grid", {}):
            pass
        assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "c", "run.json"]
        if code == 0:
            break
    assert seen == {"old", "new"}
    assert code == 0


def test_a_link_in_a_stranger_s_folder_brings_nothing_in(tmp_path: Path) -> None:
    for name in ("outside", "folder"):
        (tmp_path / name).mkdir()
    (tmp_path / "outside" / "secret.csv").write_text("x")
    (tmp_path / "folder" / ".ready").symlink_to(tmp_path / "outside")
    finish(tmp_path / "folder")
    assert (tmp_path / "outside" / "secret.csv").exists()
    assert not (tmp_path / "folder" / "secret.csv").exists()
