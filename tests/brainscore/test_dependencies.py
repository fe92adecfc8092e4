"""What Brain-Score's machines have, and what a requirements.txt may ask for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.brainscore
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def packages(tmp_path, monkeypatch):
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
def test_a_requirement(packages, line, said):
    from cnnf_brain.brainscore.dependencies import unmet

    assert unmet(line).startswith(said)
    assert bool(unmet(line)) == bool(said)


def test_what_brain_score_brings():
    from cnnf_brain.brainscore.dependencies import absent, installed_with, requirements_of

    there = installed_with([])
    assert {"torch", "numpy", "xarray", "pytest", "pytest-check"} <= there  # the last two by its extra "test"
    assert "safetensors" not in there
    assert "safetensors" in installed_with(["safetensors"])
    assert {"cnnf_brain", "safetensors"} <= absent()
    assert not {"torch", "filelock", "packaging", "brainscore_vision"} & absent()
    assert "safetensors" not in absent(["safetensors>=0.1"])
    (line,) = requirements_of(["torch", "json", "safetensors", "cnnf_brain"])
    assert line.startswith("safetensors==")


def test_what_brain_score_lacks_cannot_be_imported():
    """In a process of its own, since it holds for good."""
    code = (
        "import importlib.util, cnnf_brain.io, safetensors\n"
        "from cnnf_brain.brainscore.dependencies import absent, forget\n"
        "forget(absent(['safetensors']))\n"
        "import torch, safetensors\n"
        "for name in ('cnnf_brain', 'cnnf_brain.io', 'pooch'):\n"
        "    try:\n"
        "        __import__(name)\n"
        "    except ModuleNotFoundError:\n"
        "        continue\n"
        "    raise AssertionError(name)\n"
        "assert importlib.util.find_spec('pooch') is None\n"
        "assert importlib.util.find_spec('torch') is not None\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
