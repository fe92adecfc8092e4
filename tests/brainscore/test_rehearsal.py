"""A ZIP run by Brain-Score itself, in a scratch copy of its models; the installed package stays as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import pytest

from cnnf_brain.networks import shipped_weights

pytestmark = [
    pytest.mark.brainscore,
    pytest.mark.filterwarnings("ignore:xarray subclass Score should explicitly define __slots__:FutureWarning"),
]

REGIONS = {"V1": "pool2@1", "V2": "pool2@1", "V4": "pool2@1", "IT": "relu3@2"}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[str, Path]:
    """Identifier and ZIP of the shipped small CNN-F, whose weights are in Brain-Score's storage."""
    from cnnf_brain.brainscore.plugin import Request, identify, write_plugin

    place = {"stored": "user_12/small.safetensors", "version_id": "v-1"}
    weights = Path(shipped_weights(True))
    request = Request(weights, place, model="small", regions=REGIONS, neural_only=True)
    identity = identify(request)
    _, archive = write_plugin(identity, tmp_path_factory.mktemp("written"))
    return identity.identifier, archive


def changed(archive: Path, target: Path, old: str, new: str) -> Path:
    """A copy of a ZIP with something written otherwise in its files."""
    with zipfile.ZipFile(archive) as before, zipfile.ZipFile(target, "w") as after:
        for name in before.namelist():
            after.writestr(name, before.read(name).decode().replace(old, new) if not name.endswith("/") else "")
    return target


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, when it was written and how large it is."""
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def installed():
    """What the installed brainscore-vision holds, compared when the test is done."""
    from cnnf_brain.brainscore.rules import models_folder

    folder = models_folder().parent
    before = {name: state(folder / name) for name in ("models", "model_helpers")}
    names = sorted(entry.name for entry in folder.iterdir())
    yield folder
    assert {name: state(folder / name) for name in before} == before
    assert sorted(entry.name for entry in folder.iterdir()) == names


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    """The folder that temporary ones are made in."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.slow
def test_everything_that_can_be_checked_offline(written, installed, scratch):
    from cnnf_brain.brainscore.rehearsal import rehearse

    _, archive = written
    found = list(rehearse(archive, Path(shipped_weights(True))))
    said = {finding.rule: finding.detail for finding in found}
    assert [f"{f.rule}: {f.detail}" for f in found if not f.holds] == []
    assert len(found) >= 11 + 6 + 2 + 4 + 5
    assert said["Brain-Score's generic plugin tests pass"].startswith("5 passed")
    assert said["the plugin's test.py passes"] == "5 passed"
    assert "SIMULATED" in said["a toy benchmark scores V4 end to end"]
    assert "SIMULATED" in said["a toy benchmark scores IT end to end"]
    assert said["recorded from in several time bins, every iteration answers its own"] == "70-120, 120-170, 170-220 ms"
    hundred = said["100 images are run"]
    assert "V4 " in hundred
    assert "9216 features" in hundred  # 64 maps of 12 x 12
    estimate = said["estimate for MajajHong2015.V4-pls, 2560 images"]
    assert estimate.startswith(f"about {7 * 4 * 2560 * 9216 / 2**30:.1f} GiB")
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_a_plugin_whose_settings_were_changed_by_hand(written, installed, scratch, tmp_path):
    """It would write into the cache of another version: it is not loaded, and what follows is not run."""
    from cnnf_brain.brainscore.rehearsal import STAGES, rehearse

    _, archive = written
    other = changed(archive, tmp_path / "other.zip", "'step': 0.1", "'step': 0.2")
    found = [finding for finding in rehearse(other, Path(shipped_weights(True))) if finding.rule in STAGES.values()]
    assert [finding.holds for finding in found] == [False, None, None, None]
    assert "stands for other weights, settings or software than the plugin has" in found[0].detail
    assert {finding.detail for finding in found[1:]} == {"not run, since the model cannot be loaded"}
    assert list(scratch.iterdir()) == []


def test_a_zip_that_cannot_be_run(written, installed, scratch, tmp_path):
    from cnnf_brain.brainscore.rehearsal import rehearse

    identifier, archive = written
    two = changed(archive, tmp_path / "two.zip", "from .model", "model_registry['second'] = None\nfrom .model")
    found = list(rehearse(two))
    assert [finding.detail for finding in found if finding.holds is False] == [f"found second, {identifier}"]
    assert all("not run, since One identifier, registered as" in f.detail for f in found if f.holds is None)
    assert sum(finding.holds is None for finding in found) == 4
    assert list(scratch.iterdir()) == []


def test_weights_that_are_not_there(written, tmp_path):
    from cnnf_brain.brainscore.rehearsal import rehearse

    with pytest.raises(FileNotFoundError, match=r"weights .*none.pt: no such file"):
        list(rehearse(written[1], tmp_path / "none.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("word", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(written, installed, tmp_path, word):
    folder = tmp_path / "temporary"
    folder.mkdir()
    command = [sys.executable, "-m", "cnnf_brain.submit", "--check", str(written[1]), "--weights", shipped_weights(True)]
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it, and so would this
    )
    end = time.monotonic() + 120
    while not list(folder.glob("cnnf-rehearsal-*/load.log")) and time.monotonic() < end and process.poll() is None:
        time.sleep(0.1)
    if word is signal.SIGINT:
        os.killpg(process.pid, word)  # as Ctrl-C: the whole group
    else:
        process.send_signal(word)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "interrupted; the installed brainscore-vision is as it was"
    assert list(folder.iterdir()) == []


def test_a_connection_in_a_rehearsal_is_refused():
    """In a process of its own: the worker shuts the network for good."""
    code = (
        "import socket, urllib.request\n"
        "from cnnf_brain.brainscore.worker import offline\n"
        "offline()\n"
        "for ask in (lambda: socket.create_connection(('192.0.2.1', 80), 1), lambda: socket.getaddrinfo('example.org', 80),\n"
        "            lambda: urllib.request.urlopen('http://example.org')):\n"
        "    try:\n"
        "        ask()\n"
        "    except OSError as error:\n"
        "        assert 'the rehearsal is offline' in str(error), error\n"
        "    else:\n"
        "        raise AssertionError('connected')\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(server.getsockname(), 1).close()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
