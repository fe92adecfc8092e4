"""A ZIP run by Brain-Score itself, in a scratch copy of its models; the installed package stays as it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cnnf_brain.model.zoo import shipped_weights

REGIONS = {"V1": "pool2@1", "V2": "pool2@1", "V4": "pool2@1", "IT": "relu3@2"}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def address(hub: tuple[Path, str]) -> str:
    """A server with the shipped CNN-F's weights."""
    folder, address = hub
    shutil.copy(shipped_weights(True), folder / "small.safetensors")
    (folder / "short.safetensors").write_bytes(b"other")
    return address


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, asked: Callable[..., Any], address: str) -> tuple[str, Path]:
    """Identifier and ZIP of the shipped small CNN-F, whose weights are on the server."""
    from cnnf_brain.brainscore.plugin import identify, write_plugins

    plugin = identify(asked(place={"url": f"{address}/small.safetensors"}, regions=REGIONS))
    ((_, archive),) = write_plugins([plugin], tmp_path_factory.mktemp("written") / "out")
    return plugin.identity.identifier, archive


def changed(archive: Path, target: Path, old: str, new: str) -> Path:
    """A copy of a ZIP with something written otherwise in its own files, those beside the package's part."""
    with zipfile.ZipFile(archive) as before, zipfile.ZipFile(target, "w") as after:
        for name in before.namelist():
            text = before.read(name).decode()
            after.writestr(name, text if "/cnnf_brain/" in name else text.replace(old, new))
    return target


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, when it was written and how large it is."""
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def installed() -> Iterator[Any]:
    """What the installed brainscore-vision holds, compared when the test is done."""
    from cnnf_brain.brainscore.check import models_folder

    folder = models_folder().parent
    before = {name: state(folder / name) for name in ("models", "model_helpers")}
    names = sorted(entry.name for entry in folder.iterdir())
    yield folder
    assert {name: state(folder / name) for name in before} == before
    assert sorted(entry.name for entry in folder.iterdir()) == names


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that temporary ones are made in."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.slow
def test_everything_that_can_be_checked(written: tuple[str, Path], installed: Any, scratch: Path) -> None:
    """Without the weights here: they are fetched."""
    from cnnf_brain.brainscore.check import check_plugin
    from cnnf_brain.brainscore.rehearsal import STAGES

    _, archive = written
    told: list[str] = []
    found = list(check_plugin(archive, None, told.append))
    said = {finding.rule: finding.detail for finding in found}
    assert [f"{f.rule}: {f.detail}" for f in found if f.status != "ok"] == []
    assert len(found) == 11 + 1 + 2 + 5 + 2 + 4 + 5
    assert said["Brain-Score's generic plugin tests pass"] == "5 passed"
    assert said["the plugin's test.py passes"] == "5 passed"
    assert "SIMULATED" in said["a toy benchmark scores V4 end to end"]
    assert "SIMULATED" in said["a toy benchmark scores IT end to end"]
    assert said["recorded from in several time bins, every iteration answers its own"] == "70-120, 120-170, 170-220 ms"
    size = Path(shipped_weights(True)).stat().st_size
    assert said["the fetched weights have the plugin's SHA-256"] == f"{size} bytes"
    assert "V4 9216 features" in said["16 images are run at all layers"]  # 64 maps of 12 x 12
    estimate = said["estimate for MajajHong2015.V4-pls, 2560 images"]
    assert estimate.startswith(f"about {7 * 4 * 2560 * 9216 / 2**30:.1f} GiB")
    assert [line.partition(":")[0] for line in told[2:]] == [name for name in STAGES for _ in range(2)]
    assert list(scratch.iterdir()) == []


BROKEN = {  # what is written in the plugin -> the stage that fails, and what is said of it
    "ends the process": ("IDENTITY =", "import os; os._exit(0)\nIDENTITY =", "load", "the process ended early, with 0"),
    "takes cnnf-brain": (
        "IDENTITY =",
        "import cnnf_brain\nIDENTITY =",
        "load",
        "'cnnf_brain'; Brain-Score's machines lack it",
    ),
    "takes the network": (
        "IDENTITY =",
        "import urllib.request; urllib.request.urlopen('http://192.0.2.1/')\nIDENTITY =",
        "load",
        "the rehearsal has no network, and the plugin asks for it",
    ),
    "never returns": (
        "IDENTITY =",
        "import time; time.sleep(10_000)\nIDENTITY =",
        "load",
        "stopped after 0 min without an end",
    ),
    "ends the process in its tests": (
        "def test_bibtex():",
        "def test_bibtex():\n    import os; os._exit(0)",
        "tests",
        "the process ended early, with 0",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_a_plugin_that_does_not_come_to_its_end(
    written: tuple[str, Path], installed: Any, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The stage fails, those after it are not run, and none is passed over in silence."""
    from cnnf_brain.brainscore import check, rehearsal

    old, new, stage, said = BROKEN[name]
    if name == "never returns":
        monkeypatch.setattr(rehearsal, "LIMIT", 25)
    told: list[str] = []
    other = changed(written[1], tmp_path / "other.zip", old, new)
    found = list(check.check_plugin(other, Path(shipped_weights(True)), told.append))
    if name == "takes the network" and "can reach the network" in told[0]:
        pytest.skip("no fence works on this machine, as was said")
    names, texts = list(rehearsal.STAGES), {text: name for name, text in rehearsal.STAGES.items()}
    about = {texts[f.rule]: f for f in found if f.rule in texts}
    assert list(about) == names[names.index(stage) :]
    assert about[stage].status == "failed"
    assert said in about[stage].detail
    assert {f.status for name, f in about.items() if name != stage} == {"not run"}
    assert list(scratch.iterdir()) == []


@pytest.fixture(scope="module")
def ask_place() -> Callable[..., Any]:
    """(address, whether the weights are here) -> the finding about the place of the weights."""
    from cnnf_brain.brainscore.commitment import Weights
    from cnnf_brain.brainscore.worker import ask

    def ask_place(url: str, here: bool = True) -> Any:
        return ask(Weights("small.safetensors", "0" * 64, url=url), Path(shipped_weights(True)) if here else None)

    return ask_place


def test_an_address_is_asked(ask_place: Callable[..., Any], address: str) -> None:
    there = ask_place(f"{address}/small.safetensors")
    assert there.status == "ok"
    assert "its content is compared when the weights are not on this machine" in there.detail
    assert ask_place(f"{address}/small.safetensors", here=False).status == "ok"
    other = ask_place(f"{address}/short.safetensors")
    assert other.status == "failed"
    assert "short.safetensors has 5 bytes, the file here" in other.detail
    absent = ask_place(f"{address}/none.safetensors")
    assert (absent.status, "answers 404" in absent.detail) == ("failed", True)
    unreached = ask_place("http://127.0.0.1:9/small.safetensors")
    assert (unreached.status, "was not reached" in unreached.detail) == ("not run", True)
    assert ask_place("").status == "draft"


def test_an_upload_is_asked_for_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    from cnnf_brain.brainscore.commitment import Weights

    stored = Weights("a.pt", "0" * 64, "1" * 40, stored="user_12/a.pt", version_id="v-1")
    bucket = "https://brainscore-storage.s3.amazonaws.com/brainscore-vision/models"
    assert stored.address == f"{bucket}/user_12/a.pt?versionId=v-1"


def test_weights_that_are_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Callable[..., Any]) -> None:
    """Neither here nor reached: nothing is called ok that was not run. All stages in this process, since none gets to run."""
    from cnnf_brain.brainscore import worker
    from cnnf_brain.brainscore.plugin import identify
    from cnnf_brain.brainscore.rehearsal import STAGES

    monkeypatch.setenv("CNNF_BRAIN_CACHE", str(tmp_path))
    identity = identify(asked(place={"url": "http://127.0.0.1:9/small.safetensors"})).identity.as_dict()

    def findings(given: str | None) -> list[dict[str, str]]:
        run = worker.Rehearsal({"identity": identity, "weights": given}, tmp_path)
        with open(tmp_path / "findings", "w") as results:
            for stage in worker.PARTS:
                worker.perform(stage, run, results)
        return [event for event in map(json.loads, (tmp_path / "findings").read_text().splitlines()) if "rule" in event]

    found = findings(None)
    assert [finding["status"] for finding in found] == ["not run"] * 5
    assert "was not reached" in found[0]["detail"]
    assert [finding["rule"] for finding in found[1:]] == list(STAGES.values())[1:]
    other = findings(shipped_weights(False))
    assert [finding["status"] for finding in other] == ["not run", "failed"] + ["not run"] * 4
    assert "is another file" in other[1]["detail"]


def test_a_requirement_that_no_index_has(
    written: tuple[str, Path], scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cnnf_brain.brainscore import check, rehearsal

    monkeypatch.setattr(rehearsal, "run", lambda scratch, task, tell: iter(()))
    other = changed(written[1], tmp_path / "other.zip", "safetensors==", "no-such-package==")
    found = list(check.check_plugin(other))
    assert [finding.status for finding in found] == ["ok"] * 11 + ["failed"]
    assert "no-such-package is not installed here" in found[-1].detail


def test_a_stage_that_raises_or_exits_says_so(tmp_path: Path) -> None:
    from cnnf_brain.brainscore.worker import Rehearsal, perform

    def load(run: Any) -> Iterator[None]:
        raise SystemExit(0)
        yield

    def tests(run: Any) -> Iterator[None]:
        yield

    run = Rehearsal({}, tmp_path)
    with open(tmp_path / "results", "w") as results:
        perform(load, run, results)  # type: ignore[arg-type]
        run.blocked = "the model cannot be loaded"
        perform(tests, run, results)  # type: ignore[arg-type]
    events = [json.loads(line) for line in (tmp_path / "results").read_text().splitlines()]
    assert [event.get("begin") or event.get("end") or event["status"] for event in events] == [
        *("load", "failed", "load"),
        *("tests", "not run", "tests"),
    ]
    assert [event["detail"] for event in events if "detail" in event] == [
        "SystemExit: 0",
        "since the model cannot be loaded",
    ]


def test_every_stage_is_heard_of() -> None:
    from cnnf_brain.brainscore.rehearsal import STAGES, silent

    names, texts = list(STAGES), list(STAGES.values())
    assert list(silent(names, "why")) == []
    found = list(silent(names[:2], "why"))
    assert [(f.rule, f.status) for f in found] == [*zip(texts[2:], ("failed", "not run", "not run"), strict=True)]
    assert found[0].detail == "why"


def test_a_zip_that_cannot_be_run(written: tuple[str, Path], installed: Any, scratch: Path, tmp_path: Path) -> None:
    from cnnf_brain.brainscore.check import check_plugin

    identifier, archive = written
    two = changed(archive, tmp_path / "two.zip", "from .model", "model_registry['second'] = None\nfrom .model")
    found = list(check_plugin(two))
    assert [finding.detail for finding in found if finding.status == "failed"] == [f"found second, {identifier}"]
    assert all("since One identifier, registered as" in f.detail for f in found if f.status == "not run")
    assert sum(finding.status == "not run" for finding in found) == 5
    assert list(scratch.iterdir()) == []


def test_weights_that_are_not_there(written: tuple[str, Path], tmp_path: Path) -> None:
    from cnnf_brain.brainscore.check import check_plugin

    with pytest.raises(FileNotFoundError, match=r"weights .*none.pt: no such file"):
        list(check_plugin(written[1], tmp_path / "none.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("word", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(written: tuple[str, Path], installed: Any, tmp_path: Path, word: Any) -> None:
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
    while not list(folder.glob("cnnf-rehearsal-*/log")) and time.monotonic() < end and process.poll() is None:
        time.sleep(0.1)
    if word is signal.SIGINT:
        os.killpg(process.pid, word)  # as Ctrl-C: the whole group
    else:
        process.send_signal(word)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "interrupted; the installed brainscore-vision is as it was"
    assert list(folder.iterdir()) == []
