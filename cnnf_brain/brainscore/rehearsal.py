"""A ZIP -> findings: the website's rules, then Brain-Score itself run on a scratch copy of its models, offline, without a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from cnnf_brain.brainscore.rules import Finding, Submission, check_rules, models_folder, read_submission
from cnnf_brain.files import CACHE_VARIABLE

STAGES = {  # stage of worker.py -> what it is to find out, for findings of stages that did not come to an end
    "load": "brainscore-vision discovers the plugin and loads its model, without a GPU",
    "generic": "Brain-Score's generic plugin tests, and the plugin's own, pass",
    "toy": "a toy benchmark scores V4 and IT end to end (SIMULATED recordings)",
    "cost": "memory and time of one hundred images, and what the real benchmarks will take",
}
HOMES = ("BRAINIO_HOME", "BRAINSCORE_HOME", "RESULTCACHING_HOME", CACHE_VARIABLE)
RUNNABLE = ("one_root", "plugin_folder", "needed_files", "one_identifier")  # without these there is nothing to run
SCRATCH = "cnnf-rehearsal-"


def rehearse(path: Path, weights: Path | None = None) -> Iterator[Finding]:
    """Everything that can be checked of the ZIP ``path`` without the website, one finding after the other.

    The installed brainscore-vision is read alone: what runs is a copy of its models in a temporary folder with the plugin
    beside them, in processes of its own, with caches of their own. An interrupt (KeyboardInterrupt; of the
    command also SIGTERM) leaves nothing behind; kill -9 leaves that temporary folder.

    Parameters
    ----------
    path : Path
        The ZIP.
    weights : Path, optional
        The plugin's weights on this machine. Without them the plugin fetches them from where it says, which takes a network.

    Raises
    ------
    ValueError, OSError
        No such ZIP or weights, or a damaged ZIP.
    """
    submission = read_submission(path)
    if weights is not None and not weights.is_file():
        raise FileNotFoundError(f"weights {weights}: no such file")
    found = list(check_rules(submission))
    yield from found
    broken = _reasons_not_to_run(submission, found)
    if broken:
        yield from (Finding(words, None, f"not run, since {broken}") for words in STAGES.values())
        return
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as temporary:
        scratch = Path(temporary).resolve()
        plugin = lay_out(submission, scratch)
        task = {
            "identifier": submission.identifiers[0],
            "plugin": str(plugin),
            "weights": None if weights is None else str(weights.resolve()),
        }
        (scratch / "task.json").write_text(json.dumps(task))
        for stage in STAGES:
            done = list(_run(stage, scratch))
            yield from done
            if stage == "load" and not (done and done[0].holds):
                rest = [words for name, words in STAGES.items() if name != "load"]
                yield from (Finding(words, None, "not run, since the model cannot be loaded") for words in rest)
                return


def _reasons_not_to_run(submission: Submission, found: list[Finding]) -> str:
    from cnnf_brain.brainscore import rules

    needed = {(getattr(rules, name).__doc__ or "").strip() for name in RUNNABLE}
    broken = [finding.rule for finding in found if not finding.holds and finding.rule in needed]
    names = (submission.plugins or ("",))[0]
    if not broken and not (names.isidentifier() and not names.startswith("_")):
        broken = [f"the folder {names!r} cannot be imported under that name"]
    return "; ".join(broken)


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
    """Of the processes: the scratch package first, homes of their own, no GPU, no pip, nothing compiled beside the sources."""
    homes = {name: str(scratch / "homes" / name) for name in HOMES}
    ours = str(Path(__file__).resolve().parents[2])  # where cnnf_brain lies
    paths = [str(scratch / "site"), ours, *filter(None, [os.environ.get("PYTHONPATH")])]
    fixed = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
        "BS_INSTALL_DEPENDENCIES": "no",
        "CUDA_VISIBLE_DEVICES": "",
        "TMPDIR": str(scratch),
    }
    return {name: value for name, value in os.environ.items() if not name.startswith("RESULTCACHING")} | homes | fixed


def _run(stage: str, scratch: Path) -> Iterator[Finding]:
    """The findings of one stage, run in a process of its own."""
    results, log = scratch / f"{stage}.jsonl", scratch / f"{stage}.log"
    command = [sys.executable, "-m", "cnnf_brain.brainscore.worker", stage, str(scratch)]
    with open(log, "wb") as output:
        code = subprocess.run(
            command, cwd=scratch, env=environment(scratch), stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode
    lines = results.read_text().splitlines() if results.is_file() else []
    findings: list[dict[str, Any]] = [json.loads(line) for line in lines]
    yield from (Finding(**finding) for finding in findings)
    if code and all(finding["holds"] for finding in findings):
        end = log.read_text(errors="replace").strip().splitlines()[-1:]
        killed = " (killed: too little memory?)" if code == -9 else ""
        yield Finding(STAGES[stage], False, f"the process ended with {code}{killed}: {''.join(end)}")
