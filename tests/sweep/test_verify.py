"""A saved comparison is run again from its record, and compared number by number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

import cnnf_brain as cb
from cnnf_brain import cli
from cnnf_brain.compare import __main__ as command
from cnnf_brain.io import read_json, write_json

pytestmark = pytest.mark.usefixtures("sketched")


@pytest.fixture
def made(tmp_path: Path, cache: Path) -> Path:
    """The folder of a comparison that the command has left."""
    (tmp_path / "net.py").write_text(tiny.FILE)
    path = tiny.recordings(tmp_path / "data", n_repeats=3)
    words = ["--model", f"{tmp_path}/net.py:net", "--baseline", f"{tmp_path}/net.py:other", "--layers", "V4"]
    words += ["--recordings", str(path), "--components", "2", "--metric", "pls", "cka", "--output", str(tmp_path / "out")]
    assert command.main(words) == 0
    return tmp_path / "out"


def test_what_is_as_it_was_agrees_and_is_run_anew(made: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in made.iterdir()}
    grams = sorted((cache / "grams").iterdir())
    damaged = grams[0].read_bytes()
    grams[0].write_bytes(b"not what it was")  # a run from the cache would warn
    assert cli.main(["verify", str(made)]) == 0
    grams[0].write_bytes(damaged)
    out = capsys.readouterr().out
    assert "every number agrees within 1e-06" in out
    assert "other than it was" not in out.replace("other than it was: machine", "")
    assert {path: path.read_bytes() for path in made.iterdir()} == before
    assert sorted((cache / "grams").iterdir()) == grams
    assert cb.verify(made, cached=True).agrees


def test_other_weights_are_told_with_the_numbers_that_they_change(made: Path, tmp_path: Path) -> None:
    text = tiny.FILE.replace("def net(seed=0", "def net(seed=5")
    (tmp_path / "net.py").write_text(text)
    found = cb.verify(made)
    assert not found.agrees
    assert found.largest > 1e-3
    assert any("model" in name and "median_r" in name for name in found.apart)
    assert not any(", baseline, " in name for name in found.apart)
    assert any(text.startswith("networks") and "sha256" in text for text in found.circumstances)
    assert not any(text.startswith("recordings") for text in found.circumstances)
    assert "differ" in str(found)


def test_other_images_and_versions_are_told(made: Path, tmp_path: Path) -> None:
    record = read_json(made / "run.json")
    write_json(made / "run.json", {**record, "versions": {**record["versions"], "numpy": "1.0"}})
    picture = sorted((tmp_path / "data").glob("*.png"))[3]
    picture.write_bytes(tiny.encoded(np.zeros((20, 20, 3), dtype=np.uint8)))
    with pytest.raises(ValueError, match="picture003"):  # the assembly knows its images
        cb.verify(made)
    tiny.recordings(tmp_path / "data", n_repeats=3, seed=2)
    found = cb.verify(made, cached=True)
    assert any(text.startswith("versions.numpy: 1.0 there") for text in found.circumstances)
    assert any("responses_sha256" in text for text in found.circumstances)
    assert not found.agrees


def test_a_number_that_was_changed_by_hand_is_found(made: Path) -> None:
    summary = read_json(made / "summary.json")
    summary["evaluations"][1]["tests"][0]["p"] += 1e-4
    (made / "summary.json").write_text(json.dumps(summary))
    found = cb.verify(made, cached=True)
    assert not found.agrees
    assert all("p" in name.rsplit(" ", 1)[1] for name in found.apart)


def test_of_a_program_the_comparison_is_given(tmp_path: Path, cache: Path) -> None:
    recordings = cb.load_recordings(tiny.recordings(tmp_path / "data"))
    scoring = cb.Scoring(components=2)
    one = cb.compare(tiny.network(0, 1), None, recordings, "relu1", scoring=scoring, progress=False)
    folder = one.save(tmp_path / "out")
    with pytest.raises(ValueError, match="made by a program"):
        cb.verify(folder)
    same = cb.verify(folder, one)
    assert (same.agrees, same.circumstances) == (True, [])
    other = cb.compare(tiny.network(0, 1), None, recordings, "relu2", scoring=scoring, progress=False)
    found = cb.verify(folder, other)
    assert not found.agrees
    assert any(np.isnan(by) for by in found.apart.values())
