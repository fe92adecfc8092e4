"""What Brain-Score's machines have, and what a requirements.txt may ask for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two packages as an installer leaves them: one from an index, one from a folder."""
    for name, version in (("fromindex", "1.5"), ("fromfolder", "2.0")):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (tmp_path / "fromfolder-2.0.dist-info" / "direct_url.json").write_text('{"url": "file:///somewhere", "dir_info": {}}')
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("fromindex==1.5", ""),
        ("fromindex>=1.0  # a comment", ""),
        ("# nothing", ""),
        ("", ""),
        ("fromindex==1.6", "fromindex==1.6 is asked for, and 1.5 is installed here"),
        ("fromfolder", "fromfolder is installed here from a folder or an address, so no index may have it"),
        ("no-such-package-anywhere==1", "no-such-package-anywhere is not installed here"),
        ("a @ git+https://hub/a@1", "a is to come from git+https://hub/a@1, which is not checked"),
        ("-r other.txt", "'-r other.txt' is not a requirement"),
    ],
)
def test_a_requirement(packages: None, line: str, said: str) -> None:
    from cnnf_brain.brainscore.vendor import unmet

    assert unmet(line).startswith(said)
    assert bool(unmet(line)) == bool(said)


def test_what_brain_score_brings() -> None:
    from cnnf_brain.brainscore.vendor import absent, installed_with, requirements_of

    there = installed_with([])
    assert {"torch", "numpy", "xarray", "pytest", "pytest-check"} <= there  # the last two by its extra "test"
    assert "safetensors" not in there
    assert "safetensors" in installed_with(["safetensors"])
    assert {"cnnf_brain", "safetensors"} <= absent()
    assert not {"torch", "filelock", "packaging", "brainscore_vision"} & absent()
    assert "safetensors" not in absent(["safetensors>=0.1"])
    (line,) = requirements_of(["torch", "json", "safetensors", "cnnf_brain"])
    assert line.startswith("safetensors==")


CLOSED = """
import importlib.util, json
import cnnf_brain.io, safetensors
from cnnf_brain.brainscore.vendor import absent, forget

forget(absent(["safetensors"]))
importable = []
for name in ("torch", "safetensors", "cnnf_brain", "cnnf_brain.io", "pooch"):
    try:
        __import__(name)
        importable.append(name)
    except ModuleNotFoundError as error:
        assert error.name.partition(".")[0] in ("cnnf_brain", "pooch"), error.name
found = [name for name in ("pooch", "torch") if importlib.util.find_spec(name) is not None]
print(json.dumps([importable, found]))
"""


@pytest.mark.slow
def test_what_brain_score_lacks_cannot_be_imported() -> None:
    """In a process that was closed as a rehearsal's is: that holds for good."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CLOSED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    importable, found = json.loads(done.stdout)
    assert importable == ["torch", "safetensors"]
    assert found == ["torch"]
