"""A ZIP -> findings: the website's rules, then Brain-Score itself run on a scratch copy of its models, without a GPU."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cnnf_brain.brainscore import rules
from cnnf_brain.brainscore.dependencies import unmet
from cnnf_brain.brainscore.rules import FAILED, NOT_RUN, Finding, Submission, held, models_folder, read_submission
from cnnf_brain.io import CACHE_VARIABLE

HOMES = ("BRAINIO_HOME", "BRAINSCORE_HOME", "RESULTCACHING_HOME", CACHE_VARIABLE)
SCRATCH = "cnnf-rehearsal-"
LIMIT = 20 * 60  # seconds that a stage may take


@dataclass(frozen=True)
class Stage:
    """A part of the rehearsal: its name, and what it finds out."""

    name: str
    text: str


STAGES = (
    Stage("weights", "the weights are the plugin's, and Brain-Score's machines can load them"),
    Stage("load", "brainscore-vision discovers the plugin and loads its model, without a GPU and without cnnf-brain"),
    Stage("tests", "Brain-Score's generic plugin tests, and the plugin's own, pass"),
    Stage("scoring", "a toy benchmark scores V4 and IT end to end (SIMULATED recordings)"),
    Stage("cost", "memory and time that the real benchmarks will take"),
)


def rehearse(
    path: Path, weights: Path | None = None, tell: Callable[[str], object] = lambda words: None
) -> Iterator[Finding]:
    """Everything that can be checked of the ZIP ``path`` without the website, one finding after the other.

    The plugin's code is run, with the rights of whoever calls this. The installed brainscore-vision is read alone: what runs is a
    copy of its models in a temporary folder with the plugin beside them, in a process of its own, with caches of its own, and
    without the packages that Brain-Score's machines lack. An interrupt (KeyboardInterrupt; of the command also SIGTERM) leaves
    nothing behind; kill -9 leaves that temporary folder.

    Parameters
    ----------
    path : Path
        The ZIP.
    weights : Path, optional
        The plugin's weights on this machine. Without them they are fetched from the place that the plugin names.
    tell : callable, optional
        Takes a line whenever a stage begins and ends.

    Raises
    ------
    ValueError, OSError
        No such ZIP or weights, or a damaged ZIP.
    """
    submission = read_submission(path)
    if weights is not None and not weights.is_file():
        raise FileNotFoundError(f"weights {weights}: no such file")
    yield from rules.check_rules(submission)
    broken = reasons_not_to_run(submission)
    if broken:
        yield from (Finding(stage.text, NOT_RUN, f"since {broken}") for stage in STAGES)
        return
    requirements = submission.text("requirements.txt").splitlines()
    for line in requirements:
        wrong = unmet(line)
        yield held(
            f"requirements.txt: {line.strip()} is installed here, so that the plugin is run with it", not wrong, wrong
        )
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as temporary:
        scratch = Path(temporary).resolve()
        plugin = lay_out(submission, scratch)
        task = {
            "identifier": submission.identifiers[0],
            "plugin": str(plugin),
            "identity": submission.identity,
            "requirements": [line for line in requirements if not unmet(line)],
            "weights": None if weights is None else str(weights.resolve()),
        }
        (scratch / "task.json").write_text(json.dumps(task))
        yield from _run(scratch, tell)


def reasons_not_to_run(submission: Submission) -> str:
    """Why a ZIP holds nothing that could be run; empty where it can be."""
    broken = [rule.text for rule in rules.RULES if rule.to_run and rule.broken(submission)]
    if broken:
        return "; ".join(broken)
    name = submission.plugins[0]
    if not name.isidentifier() or name.startswith("_"):
        return f"the folder {name!r} cannot be imported under that name"
    try:
        _ = submission.identity
    except ValueError as error:
        return str(error)
    return ""


def lay_out(submission: Submission, scratch: Path) -> Path:
    """A brainscore_vision in ``scratch/site`` with a copy of the installed one's models and the plugin; the plugin's folder.

    Everything but models and model_helpers (which gets the images that the wheel leaves out) is a link.
    """
    installed, site = models_folder().parent, scratch / "site" / "brainscore_vision"
    site.mkdir(parents=True)
    skip = shutil.ignore_patterns("__pycache__")
    for entry in installed.iterdir():
        if entry.name in ("models", "model_helpers"):
            shutil.copytree(entry, site / entry.name, ignore=skip)
        elif entry.name == "__init__.py":  # a copy, so that the package is the one here
            shutil.copy(entry, site / entry.name)
        elif entry.name != "__pycache__":
            (site / entry.name).symlink_to(entry)
    name = submission.plugins[0]
    if (site / "models" / name).exists():
        shutil.rmtree(site / "models" / name)  # said by the rule not_taken
    with zipfile.ZipFile(submission.path) as archive:
        for entry_name in submission.names:
            target = site.joinpath(*PurePosixPath(entry_name).parts[1:])
            if entry_name.endswith("/"):
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(entry_name))
    return site / "models" / name


def environment(scratch: Path) -> dict[str, str]:
    """Of the process: the scratch package first, homes of its own, no GPU, no pip, nothing compiled beside the sources."""
    homes = {name: str(scratch / "homes" / name) for name in HOMES}
    ours = str(Path(__file__).resolve().parents[2])  # where cnnf_brain lies
    paths = [str(scratch / "site"), ours, *filter(None, [os.environ.get("PYTHONPATH")])]
    fixed = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # those that are installed here
        "PYTEST_ADDOPTS": "",
        "BS_INSTALL_DEPENDENCIES": "no",
        "CUDA_VISIBLE_DEVICES": "",
        "TMPDIR": str(scratch),
    }
    return {name: value for name, value in os.environ.items() if not name.startswith("RESULTCACHING")} | homes | fixed


def _run(scratch: Path, tell: Callable[[str], object]) -> Iterator[Finding]:
    """The findings of all stages, run in a process of its own; every stage is heard of."""
    log = scratch / "log"
    command = [sys.executable, "-m", "cnnf_brain.brainscore.worker", str(scratch)]
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            cwd=scratch,
            env=environment(scratch),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    ended: list[str] = []
    try:
        reason = yield from _follow(process, scratch / "findings.jsonl", ended, tell)
    finally:
        _stop(process)
    yield from silent(ended, f"{reason}: {last_line(log)}")


def _follow(
    process: subprocess.Popen[bytes], results: Path, ended: list[str], tell: Callable[[str], object]
) -> Generator[Finding, None, str]:
    """Findings as the process writes them, until it ends or a stage takes too long; returns in words how it came to its end."""
    texts = {stage.name: stage.text for stage in STAGES}
    read, since = 0, time.monotonic()
    while True:
        running = process.poll() is None  # before reading: what is written until then is read
        lines = results.read_text().split("\n")[:-1] if results.is_file() else []
        for line in lines[read:]:
            event: dict[str, Any] = json.loads(line)
            if "begin" in event:
                since = time.monotonic()
                tell(f"{event['begin']}: {texts[event['begin']]}")
            elif "end" in event:
                ended.append(event["end"])
                tell(f"{event['end']}: {event['seconds']:.0f} s")
            else:
                yield Finding(**event)
        read = len(lines)
        if not running:
            killed = " (killed: too little memory?)" if process.returncode == -signal.SIGKILL else ""
            return f"the process ended early, with {process.returncode}{killed}"
        if time.monotonic() - since > LIMIT:
            return f"stopped after {LIMIT / 60:.0f} min without an end"
        time.sleep(0.1)


def silent(ended: Sequence[str], reason: str) -> Iterator[Finding]:
    """A finding for every stage that did not say that it ended: the first of them failed, the others were not run."""
    missing = [stage for stage in STAGES if stage.name not in ended]
    for stage in missing[:1]:
        yield Finding(stage.text, FAILED, reason)
    for stage in missing[1:]:
        yield Finding(stage.text, NOT_RUN, f"since the stage {missing[0].name} did not come to its end")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process and what it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_line(log: Path) -> str:
    """The last line of a log."""
    return "".join(log.read_text(errors="replace").strip().splitlines()[-1:]) or "it said nothing"
