"""What Brain-Score's machines have, and what a requirements.txt may ask for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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
import importlib.util, json, socket, urllib.request
import cnnf_brain.io, safetensors
from cnnf_brain.brainscore.vendor import absent, forget
from cnnf_brain.brainscore.worker import shut

def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"x", ("192.0.2.1", 53))

ASKED = {
    "connection": lambda: socket.create_connection(("192.0.2.1", 80), 1),
    "look-up": lambda: socket.getaddrinfo("example.org", 80),
    "connect_ex": lambda: socket.socket().connect_ex(("192.0.2.1", 80)),
    "gethostbyname": lambda: socket.gethostbyname("example.org"),
    "udp": udp,
    "http": lambda: urllib.request.urlopen("http://example.org"),
}
shut()
forget(absent(["safetensors"]))
said = {}
for name, ask in ASKED.items():
    try:
        ask()
    except OSError as error:
        said[name] = str(error)
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname(), 1).close()
importable = []
for name in ("torch", "safetensors", "cnnf_brain", "cnnf_brain.io", "pooch"):
    try:
        __import__(name)
        importable.append(name)
    except ModuleNotFoundError as error:
        assert error.name.partition(".")[0] in ("cnnf_brain", "pooch"), error.name
found = [name for name in ("pooch", "torch") if importlib.util.find_spec(name) is not None]
print(json.dumps([said, importable, found]))
"""


@pytest.fixture(scope="module")
def closed() -> Any:
    """What a process finds that was closed as a rehearsal's is: that holds for good."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CLOSED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_what_brain_score_lacks_cannot_be_imported(closed: Any) -> None:
    _, importable, found = closed
    assert importable == ["torch", "safetensors"]
    assert found == ["torch"]


@pytest.mark.slow
def test_a_connection_in_a_rehearsal_is_refused(closed: Any) -> None:
    said = closed[0]
    assert set(said) == {"connection", "look-up", "connect_ex", "gethostbyname", "udp", "http"}
    assert all("the rehearsal is offline" in words for words in said.values()), said
