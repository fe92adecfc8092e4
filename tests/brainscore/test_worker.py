"""What a rehearsal tells of an error."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cnnf_brain import io


def test_nobody_is_told_to_place_a_file_in_the_scratch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cnnf_brain.brainscore.worker import told  # here, since Brain-Score reads where its caches lie when it is imported

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(OSError, match="place the file at") as caught:
        io.download(f"{closed}/x.safetensors", "sha256:00", tmp_path / "homes" / "weights", "x.safetensors")
    text = told(caught.value, tmp_path)
    assert text.startswith(f"OSError: cannot download {closed}/x.safetensors: ")
    assert text.endswith("; connect to the network or give the weights to the check")
    assert str(tmp_path) not in text
    elsewhere = told(caught.value, tmp_path / "other")
    assert elsewhere.endswith(f"place the file at {tmp_path}/homes/weights/x.safetensors")
