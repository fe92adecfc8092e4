"""What a plugin's code reaches and uses while it is checked, and that the words about it are true."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cnnf_brain.model.zoo import shipped_weights

# Every way is tried, and tells the server its name where it gets through.
TRIES = """
import _socket, socket, subprocess, sys
def tries(when, port):
    def by(connect, name):
        try:
            sent = connect()
            sent.send(f"{when} {name};".encode())
            sent.close()
        except OSError:
            pass
    def connect_ex():
        found = socket.socket()
        found.connect_ex(("127.0.0.1", port))
        return found
    def hidden():
        found = _socket.socket()
        found.connect(("127.0.0.1", port))
        return found
    by(lambda: socket.create_connection(("127.0.0.1", port), 5), "socket")
    by(connect_ex, "connect_ex")
    by(hidden, "_socket")
    child = f"import socket; socket.create_connection(('127.0.0.1', {port}), 5).send(b'{when} subprocess;')"
    subprocess.run([sys.executable, "-c", child], stderr=subprocess.DEVNULL)
"""
WAYS = {"socket", "connect_ex", "_socket", "subprocess"}
IN_THE_MODEL = """
import torch
_call = torch.nn.Module.__call__
def call(self, *given, **named):
    if torch.nn.Module.__call__ is call:
        torch.nn.Module.__call__ = _call
        tries("model", PORT)
    return _call(self, *given, **named)
torch.nn.Module.__call__ = call
"""


@pytest.fixture
def server() -> Iterator[tuple[int, Callable[[], set[str]]]]:
    """The port of a server on this machine, and what it has heard so far."""
    heard: list[bytes] = []

    def listen() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection:
                    connection.settimeout(5)
                    while part := connection.recv(1000):
                        heard.append(part)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=listen, daemon=True).start()

        def told() -> set[str]:
            with socket.create_connection(
                listening.getsockname(), 5
            ) as last:  # one after the other: the others are heard by then
                last.send(b"end;")
                last.shutdown(socket.SHUT_WR)
                last.recv(1)
            return {word for word in b"".join(heard).decode().split(";") if word not in ("", "end")}

        yield listening.getsockname()[1], told
        listening.shutdown(socket.SHUT_RDWR)


@pytest.fixture(params=["bwrap", "unshare", ""])
def held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The only fence that is known, by its command; empty: none."""
    from cnnf_brain.brainscore import rehearsal

    every = rehearsal.fences

    def some(*given: Any) -> Iterator[Any]:
        return (fence for fence in every(*given) if next(iter(fence.command), "") == request.param)

    monkeypatch.setattr(rehearsal, "fences", some)
    try:
        rehearsal.fence(Path(tempfile.gettempdir()), None)
    except StopIteration:
        pytest.skip(f"{request.param} does not work on this machine")
    return str(request.param)


def test_the_words_about_the_network_are_true(held: str, server: Any, tmp_path: Path) -> None:
    from cnnf_brain.brainscore.rehearsal import fence

    port, told = server
    chosen = fence(tmp_path, None)
    code = f"{TRIES}\ntries('here', {port})"
    subprocess.run([*chosen.command, sys.executable, "-c", code], check=True, timeout=60)
    reaches = "can reach the network" in chosen.words
    assert reaches == (held == "")
    assert ("no network" in chosen.words or "without a network (" in chosen.words) != reaches
    assert told() == ({f"here {way}" for way in WAYS} if reaches else set())


def test_the_words_about_files_are_true(held: str, tmp_path: Path) -> None:
    """In the sandbox only the temporary folder can be written; what is needed can be read, wherever it lies."""
    from cnnf_brain.brainscore.rehearsal import fence

    weights, scratch = tmp_path / "weights", tmp_path / "scratch"
    weights.write_text("read")
    scratch.mkdir()
    code = f"""
from pathlib import Path
assert Path({str(weights)!r}).read_text() == "read"
for path in ({str(scratch / "in")!r}, {str(tmp_path / "out")!r}, {str(weights)!r}):
    try:
        Path(path).write_text("written")
    except OSError:
        pass
"""
    chosen = fence(scratch, str(weights))
    subprocess.run([*chosen.command, sys.executable, "-c", code], check=True, timeout=60)
    assert (scratch / "in").read_text() == "written"
    outside = (tmp_path / "out").exists() or weights.read_text() != "read"
    assert outside == ("with your rights" in chosen.words)
    assert outside != ("writes into its temporary folder alone" in chosen.words)


@pytest.fixture
def written(tmp_path: Path, asked: Callable[..., Any]) -> Callable[[str], Path]:
    """(code) -> the ZIP of the shipped small CNN-F whose model.py begins with that code."""
    from cnnf_brain.brainscore.plugin import identify, write_plugins

    def written(code: str) -> Path:
        ((_, archive),) = write_plugins([identify(asked())], tmp_path / "out")
        with zipfile.ZipFile(archive) as before, zipfile.ZipFile(tmp_path / archive.name, "w") as after:
            for name in before.namelist():
                text = before.read(name).decode()
                mine = name.count("/") == 3 and name.endswith("/model.py")
                after.writestr(name, text.replace("IDENTITY =", f"{code}\nIDENTITY =", 1) if mine else text)
        return tmp_path / archive.name

    return written


@pytest.mark.slow
def test_a_plugin_that_connects(held: str, server: Any, written: Callable[[str], Path]) -> None:
    """When it is imported and when its model is run; what is said before is true."""
    from cnnf_brain.brainscore.check import check_plugin

    port, told = server
    said: list[str] = []
    code = f"{TRIES}\ntries('import', {port})\n{IN_THE_MODEL.replace('PORT', str(port))}"
    found = list(check_plugin(written(code), Path(shipped_weights(True)), said.append))
    assert [f"{f.rule}: {f.detail}" for f in found if f.status in ("failed", "not run")] == []
    everything = {f"{when} {way}" for when in ("import", "model") for way in WAYS}
    assert said[0].startswith("the plugin's code is run now, ")
    assert told() == (everything if "can reach the network" in said[0] else set())


@pytest.mark.slow
def test_a_plugin_that_takes_all_memory(written: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from cnnf_brain.brainscore.check import check_plugin

    free = psutil.virtual_memory()._replace(available=4 * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    said: list[str] = []
    found = list(check_plugin(written("_taken = bytearray(5 * 2**30)"), Path(shipped_weights(True)), said.append))
    assert "4 GiB of memory" in said[1]
    assert next(f.detail for f in found if f.status == "failed").startswith("MemoryError")


# For sh and for Python, as pip writes its scripts: a shebang takes no path with a space.
STUB = """#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
import json, os, subprocess, sys, threading, time
if sys.argv[1] == "-c":
    sys.exit()
def write(event):
    with open("findings.jsonl", "a") as file:
        print(event if isinstance(event, str) else json.dumps(event), file=file, flush=True)
write({{"begin": "weights"}})
{code}
"""
WRONG = {  # what a process does -> what is said of it
    "prints without an end": ("while True: print('x' * 10**6)", "stopped, since it wrote more than 10 MB of output"),
    "finds without an end": (
        "while True:\n    with open('findings.jsonl', 'a') as file: file.write('x' * 10**6)",  # no line ends
        "stopped, since it wrote more than 10 MB of output",
    ),
    "writes no finding": ("write({'rule': 'a'}); time.sleep(60)", "stopped, since it wrote what is no finding"),
    "writes no JSON": ("write('['  * 10**5); time.sleep(60)", "stopped, since it wrote what is no finding"),
    "writes a list": ("write('[]'); time.sleep(60)", "stopped, since it wrote what is no finding"),
    "begins again and again": (
        "while True:\n    write({'begin': 'weights'}); time.sleep(0.1)",
        "stopped, since it wrote what is no finding",
    ),
    "puts a pipe in the place of its findings": (
        "os.remove('findings.jsonl'); os.mkfifo('findings.jsonl'); time.sleep(60)",
        "stopped after 0 min without an end",
    ),
    "prints bytes": ("sys.stdout.buffer.write(bytes(range(256)))", "the process ended early, with 0"),
    "is killed": ("os.kill(os.getpid(), 9)", "the process ended early, with -9 (killed: too little memory?)"),
}


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Any]]:
    """(code) -> the findings of a process that runs this code in the place of the stages."""
    from cnnf_brain.brainscore import rehearsal

    def stub(code: str) -> list[Any]:
        scratch, program = tmp_path / "scratch", tmp_path / "python"
        scratch.mkdir()
        program.write_text(STUB.format(python=sys.executable, code=code))
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        monkeypatch.setattr(rehearsal, "LIMIT", 3)
        return list(rehearsal.run(scratch, {"weights": None}, lambda words: None))

    return stub


@pytest.mark.parametrize("name", WRONG)
def test_a_process_that_goes_too_far(stub: Callable[[str], list[Any]], name: str) -> None:
    code, said = WRONG[name]
    found = stub(code)
    assert [finding.status for finding in found] == ["failed"] + ["not run"] * 4
    assert said in found[0].detail


def test_what_a_process_started_ends_with_it(stub: Callable[[str], list[Any]], tmp_path: Path) -> None:
    """A process of its own session, too."""
    sleeps = "import time; time.sleep(600)"
    child = f"subprocess.Popen([{sys.executable!r}, '-c', {sleeps!r}, {str(tmp_path)!r}], start_new_session=True)"
    found = stub(f"{child}\ntime.sleep(60)")
    assert "stopped after 0 min without an end" in found[0].detail
    left = [one for one in psutil.process_iter(["cmdline"]) if str(tmp_path) in (one.info["cmdline"] or [])]
    assert [one for one in left if one.status() != psutil.STATUS_ZOMBIE] == []


def test_without_the_tools_no_fence_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cnnf_brain.brainscore.rehearsal import fence

    monkeypatch.setenv("PATH", os.devnull)
    none = fence(tmp_path, None)
    assert none.command == ()
    assert "with your rights, and can reach the network" in none.words
