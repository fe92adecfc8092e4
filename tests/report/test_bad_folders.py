"""Folders that are incomplete, damaged, of another version, not ours, or malicious: refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report.folders import compared, figured

from cnnf_brain.compare import comparison
from cnnf_brain.report import PAGE, NotDrawnError, readers, runs
from cnnf_brain.report.__main__ import main
from cnnf_brain.report.charts import Chart


def spoil(folder: Path, name: str, **change: Any) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **change}))


def test_a_folder_that_is_incomplete(tmp_path: Path) -> None:
    folder = compared(tmp_path)
    (folder / "run.json").unlink()
    with pytest.raises(ValueError, match=r"is incomplete: no run.json; do the run again"):
        readers.read(folder)
    folder = compared(tmp_path)
    (folder / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"is incomplete: run.json without summary.json"):
        readers.read(folder)
    folder = figured(tmp_path / "figure")
    (folder / "table.csv").unlink()
    with pytest.raises(ValueError, match=r"is incomplete: no table.csv"):
        readers.read(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 4}, "expected a comparison in form 3, found form 4 of compare"),
        ({"schema": None}, "expected a comparison in form 3, found form None of compare"),
        ({"evaluations": [{"region": "V4"}]}, "its files lack what a comparison has"),
    ],
)
def test_a_folder_of_another_version(tmp_path: Path, change: Any, words: str) -> None:
    folder = compared(tmp_path)
    spoil(folder, "summary.json", **change)
    with pytest.raises(ValueError, match=words):
        readers.read(folder)


def test_a_folder_that_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"not the results of a run of cnnf-brain \(it holds notes.txt\); known: compare"):
        readers.read(tmp_path)
    (tmp_path / "summary.json").write_text('{"schema": 1, "mine": 3}')
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="is of no kind that is known here"):
        readers.read(tmp_path)
    (tmp_path / "summary.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds a list, expected a JSON object"):
        readers.read(tmp_path)
    (tmp_path / "summary.json").write_text('{"schema": ')
    with pytest.raises(ValueError, match=r"summary.json cannot be read as JSON"):
        readers.read(tmp_path)
    with pytest.raises(ValueError, match="is a file; name the folder"):
        readers.read(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        readers.read(tmp_path / "none")


def test_a_table_that_was_cut(tmp_path: Path) -> None:
    folder = figured(tmp_path)
    text = (folder / "table.csv").read_text()
    (folder / "table.csv").write_text(text[:-4])
    with pytest.raises(ValueError, match=r"table.csv, line 5: \d values, the head names 5"):
        readers.read(folder)


@pytest.mark.parametrize("entry", ["tables", "pictures"])
@pytest.mark.parametrize("name", ["../secret.svg", "{parent}/secret.svg", "link.svg", "sub/../../secret.svg"])
def test_files_outside_of_the_folder_are_not_read(
    tmp_path: Path, entry: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret.svg").write_text("a,b\nSECRET,1\n")
    folder = figured(tmp_path / "run")
    (folder / PAGE).unlink()
    (folder / "sub").mkdir()
    (folder / "link.svg").symlink_to(tmp_path / "secret.svg")
    name = name.format(parent=tmp_path)
    entries = json.loads((folder / "summary.json").read_text())[entry]
    spoil(folder, "summary.json", **{entry: [*entries, {"file": name, "title": "t", "notes": [], "caption": "c"}]})
    assert main([str(folder)]) == 1
    assert f"names the file {name!r}, which is outside of the folder; it is not read" in capsys.readouterr().err
    assert not (folder / PAGE).exists()


@pytest.mark.parametrize("field", ["{iteration:>3000000000}", "{iteration.__class__}", "{iteration!r:>99}", "{0}", "{}"])
@pytest.mark.parametrize("where", ["label", "group"])
def test_labels_are_no_format_strings(tmp_path: Path, field: str, where: str) -> None:
    folder = figured(tmp_path)
    charts = json.loads((folder / "summary.json").read_text())["charts"]
    charts[0][where] = field if where == "label" else [field]
    spoil(folder, "summary.json", charts=charts)
    with pytest.raises(ValueError, match="of another version of cnnf-brain"):
        readers.read(folder)


def test_labels_take_the_cells_as_they_are() -> None:
    row = {"name": "{iteration} {0}", "iteration": "2"}
    assert runs.filled("{name}: {iteration}, 50 % {", row) == "{iteration} {0}: 2, 50 % {"


def test_files_that_no_parser_takes(tmp_path: Path) -> None:
    folder = figured(tmp_path / "wide")
    (folder / "table.csv").write_text("a,b\n" + "x" * 200_000 + ",1\n")  # longer than the csv module admits
    with pytest.raises(ValueError, match=r"table.csv cannot be read as a CSV table .*run the command again"):
        readers.read(folder)
    folder = figured(tmp_path / "deep")
    (folder / "summary.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"summary.json cannot be read as JSON"):
        readers.read(folder)


def test_a_failed_page_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = compared(tmp_path)
    monkeypatch.setattr(Chart, "svg", lambda self: 1 / 0)
    with pytest.raises(NotDrawnError, match=r"no report\.html"):
        readers.leave(folder)
    assert sorted(p.name for p in folder.iterdir()) == sorted(comparison.FILES)
