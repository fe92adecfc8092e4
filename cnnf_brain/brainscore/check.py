"""A plugin's ZIP -> findings: the website's rules, then Brain-Score itself, run on a scratch copy of its models without a GPU."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import brainscore_vision

from cnnf_brain.brainscore.vendor import unmet
from cnnf_brain.io import CACHE_VARIABLE

MAX_BYTES = 50_000_000
WEIGHTS = {".pt", ".pth", ".tar", ".ckpt", ".safetensors", ".h5", ".hdf5", ".onnx", ".npz", ".npy", ".bin", ".pkl"}
_REGISTERED = re.compile(r"model_registry\[\s*(['\"])(?P<id>[^'\"]*)\1\s*\]")
OK, FAILED, NOT_RUN, DRAFT = "ok", "failed", "not run", "draft"
HOMES = ("BRAINIO_HOME", "BRAINSCORE_HOME", "RESULTCACHING_HOME", CACHE_VARIABLE)
SCRATCH = "cnnf-rehearsal-"
LIMIT = 20 * 60  # seconds that a stage may take
STAGES = {  # the parts of the rehearsal, and what each finds out
    "weights": "the weights are the plugin's, and Brain-Score's machines can load them",
    "load": "brainscore-vision discovers the plugin and loads its model, without a GPU and without cnnf-brain",
    "tests": "Brain-Score's generic plugin tests, and the plugin's own, pass",
    "scoring": "a toy benchmark scores V4 and IT end to end (SIMULATED recordings)",
    "cost": "memory and time that the real benchmarks will take",
}


@dataclass(frozen=True)
class Finding:
    """One check: its rule in words, and what came of it.

    ``status``: OK; FAILED; NOT_RUN, with the reason in ``detail``; DRAFT, where the plugin names no place for its weights.
    """

    rule: str
    status: str
    detail: str = ""


def held(rule: str, holds: bool, detail: str = "") -> Finding:
    """The finding of a check that was run."""
    return Finding(rule, OK if holds else FAILED, detail)


@dataclass(frozen=True)
class Submission:
    """The names (in order) and text files of a ZIP, and how large the ZIP is."""

    path: Path
    names: tuple[str, ...]
    texts: dict[str, str]
    size: int

    @property
    def plugins(self) -> tuple[str, ...]:
        """Names of the folders ``ROOT/models/NAME`` that any entry lies in."""
        inside = (re.match(r"[^/]+/models/([^/]+)/", name) for name in self.names)
        return tuple(dict.fromkeys(found[1] for found in inside if found))

    @property
    def identifiers(self) -> tuple[str, ...]:
        """Identifiers that the plugins' ``__init__.py`` register, in order."""
        inits = (text for name, text in self.texts.items() if re.fullmatch(r"[^/]+/models/[^/]+/__init__\.py", name))
        return tuple(dict.fromkeys(found["id"] for text in inits for found in _REGISTERED.finditer(text)))

    def text(self, file: str) -> str:
        """A text file of the plugin, by its path in the plugin's folder; empty where there is none."""
        return next((text for name, text in self.texts.items() if name.split("/", 3)[3:] == [file]), "")

    @property
    def identity(self) -> dict[str, Any]:
        """IDENTITY as it stands in the plugin's model.py, which is read and not run; a ValueError where none stands there."""
        try:
            tree = ast.parse(self.text("model.py"))
            assigned = (node for node in tree.body if isinstance(node, ast.Assign))
            (found,) = (node.value for node in assigned if ast.unparse(node.targets[0]) == "IDENTITY")
            return dict(ast.literal_eval(found))
        except (SyntaxError, ValueError, TypeError) as error:
            raise ValueError("model.py holds no IDENTITY as write_plugins writes it; write the plugin anew") from error


def read_submission(path: Path) -> Submission:
    """The ZIP at ``path``; a ValueError where it is none or is damaged, a FileNotFoundError where it is not there."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"{damaged} is damaged")
            names = tuple(archive.namelist())
            small = [name for name in names if archive.getinfo(name).file_size < MAX_BYTES and not name.endswith("/")]
            texts = {name: archive.read(name).decode("utf-8", "replace") for name in small}
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read as a ZIP ({error}); write it anew") from error
    return Submission(path, names, texts, path.stat().st_size)


@dataclass(frozen=True)
class Rule:
    """A rule of the website: its name, what it says, what breaks it in a ZIP (empty: nothing).

    A ZIP that breaks a rule ``to_run`` holds nothing that could be run.
    """

    name: str
    text: str
    broken: Callable[[Submission], str]
    to_run: bool = False


def _one_root(zip_: Submission) -> str:
    roots = sorted({name.partition("/")[0] for name in zip_.names} - {""})
    outside = [n for n in zip_.names if not n.strip("/") or n.startswith("/") or ".." in n.split("/") or "\\" in n]
    loose = [name for name in zip_.names if "/" not in name]
    return _listed(outside or loose or (roots if len(roots) != 1 else ()))


def _plugin_folder(zip_: Submission) -> str:
    if len(zip_.plugins) != 1:
        return f"found {', '.join(zip_.plugins) or 'none'}"
    inside = re.compile(rf"[^/]+/(models/({re.escape(zip_.plugins[0])}/.*)?)?")
    return _listed(name for name in zip_.names if not inside.fullmatch(name))


def _folder_entries(zip_: Submission) -> str:
    folders = {"/".join(n.split("/")[:k]) + "/" for n in zip_.names for k in range(1, 4) if n.count("/") >= k}
    return _listed(sorted(folders - set(zip_.names)), "missing: ")


def _needed_files(zip_: Submission) -> str:
    needed = {f"{plugin}/{file}" for plugin in zip_.plugins for file in ("__init__.py", "test.py")}
    return _listed(sorted(needed - {name.split("/", 2)[-1] for name in zip_.names}), "missing: ")


def _metadata(zip_: Submission) -> str:
    return _listed(name for name in zip_.names if name.lower().endswith(("metadata.yml", "metadata.yaml")))


def _weights(zip_: Submission) -> str:
    return _listed(name for name in zip_.names if PurePosixPath(name).suffix.lower() in WEIGHTS)


def _one_identifier(zip_: Submission) -> str:
    return "" if len(zip_.identifiers) == 1 else f"found {', '.join(zip_.identifiers) or 'none'}"


def _not_taken(zip_: Submission) -> str:
    found = {name: taken(name) for name in dict.fromkeys((*zip_.identifiers, *zip_.plugins))}
    return _listed(f"{name} is in brainscore-vision's models/{folder}" for name, folder in found.items() if folder)


def _listed(names: Iterable[str], before: str = "") -> str:
    """The first few of ``names``, empty where there are none."""
    found = list(names)
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"{before}{', '.join(found[:3])}{more}" if found else ""


_SEARCHED = "registered as model_registry['IDENTIFIER'] in plain letters: Brain-Score finds plugins by that text"
RULES = (
    Rule("size", "The ZIP is at most 50 MB", lambda z: f"it has {z.size / 1e6:.1f} MB" if z.size > MAX_BYTES else ""),
    Rule("no_spaces", "No name has a space", lambda z: _listed(name for name in z.names if " " in name)),
    Rule("one_root", "Everything lies in one folder, and no path leads out of it", _one_root, True),
    Rule("plugin_folder", "The plugin is ROOT/models/PLUGIN, one of them, and nothing lies beside it", _plugin_folder, True),
    Rule("folder_entries", "ROOT/, ROOT/models/ and ROOT/models/PLUGIN/ are entries of their own", _folder_entries),
    Rule("needed_files", "The plugin has an __init__.py and a test.py", _needed_files, True),
    Rule("no_metadata", "No metadata.yml or metadata.yaml: Brain-Score makes them itself", _metadata),
    Rule("no_weights", "No weights inside: they are loaded from Brain-Score's storage or a hub", _weights),
    Rule("one_identifier", f"One identifier, {_SEARCHED}", _one_identifier, True),
    Rule("no_hyphens", "No identifier has a hyphen", lambda z: _listed(n for n in z.identifiers + z.plugins if "-" in n)),
    Rule("not_taken", "Neither the identifier nor the folder's name is that of another model", _not_taken),
)


def check_rules(zip_: Submission) -> Iterator[Finding]:
    """Every rule of the website on ``zip_``."""
    for rule in RULES:
        broken = rule.broken(zip_)
        yield held(rule.text, not broken, broken)


def taken(name: str) -> str:
    """The folder of brainscore-vision's models that registers ``name``, or is called so; empty where none does.

    A link there is no shipped model: plugins are linked to score them locally.
    """
    for init in sorted(models_folder().glob("*/__init__.py")):
        text = init.read_text(encoding="utf-8", errors="replace")
        names = [init.parent.name, *(found["id"] for found in _REGISTERED.finditer(text))]
        if name in names and not init.parent.is_symlink():
            return init.parent.name
    return ""


def models_folder() -> Path:
    """The models that the installed brainscore-vision ships."""
    return Path(brainscore_vision.__file__ or "").parent / "models"


def check_plugin(
    path: Path, weights: Path | None = None, tell: Callable[[str], object] = lambda words: None
) -> Iterator[Finding]:
    """Everything that can be checked of the ZIP ``path`` without the website, one finding after the other.

    The plugin's code is run, with the rights of the caller. The installed brainscore-vision is only read. What runs is a copy of
    its models in a temporary folder, with the plugin beside them, in a process of its own, with caches of its own, and without the
    packages that Brain-Score's machines lack. An interrupt (KeyboardInterrupt) leaves nothing behind, ``kill -9`` the folder.

    >>> failed = [finding for finding in check_plugin(Path("submission/IDENTIFIER.zip")) if finding.status == FAILED]

    ``weights``: the plugin's on this machine; without them they are fetched from the place that the plugin names. ``tell`` takes a
    line whenever a stage begins and ends. A ValueError or OSError for no such ZIP or weights, or a damaged ZIP.
    """
    submission = read_submission(path)
    if weights is not None and not weights.is_file():
        raise FileNotFoundError(f"weights {weights}: no such file")
    yield from check_rules(submission)
    broken = reasons_not_to_run(submission)
    if broken:
        yield from (Finding(text, NOT_RUN, f"since {broken}") for text in STAGES.values())
        return
    wrong = {line: unmet(line) for line in submission.text("requirements.txt").splitlines()}
    for line, why in wrong.items():
        yield held(f"requirements.txt: {line.strip()} is installed here, so that the plugin is run with it", not why, why)
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as temporary:
        scratch = Path(temporary).resolve()
        task = {
            "identifier": submission.identifiers[0],
            "plugin": str(lay_out(submission, scratch)),
            "identity": submission.identity,
            "requirements": [line for line, why in wrong.items() if not why],
            "weights": None if weights is None else str(weights.resolve()),
        }
        (scratch / "task.json").write_text(json.dumps(task))
        yield from _run(scratch, tell)


def reasons_not_to_run(submission: Submission) -> str:
    """Why a ZIP holds nothing that could be run; empty where it can be."""
    broken = [rule.text for rule in RULES if rule.to_run and rule.broken(submission)]
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
            folder = entry_name.endswith("/")
            (target if folder else target.parent).mkdir(parents=True, exist_ok=True)
            if not folder:
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
    log, ended = scratch / "log", list[str]()
    command = [sys.executable, "-m", "cnnf_brain.brainscore.worker", str(scratch)]
    place: dict[str, Any] = {"cwd": scratch, "env": environment(scratch), "start_new_session": True}
    with open(log, "wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, **place)
    try:
        reason = yield from _follow(process, scratch / "findings.jsonl", ended, tell)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it started
        process.wait()
    last = log.read_text(errors="replace").strip().splitlines()[-1:]
    yield from silent(ended, f"{reason}: {''.join(last) or 'it said nothing'}")


def _follow(
    process: subprocess.Popen[bytes], results: Path, ended: list[str], tell: Callable[[str], object]
) -> Generator[Finding, None, str]:
    """Findings as the process writes them, until it ends or a stage takes too long; returns in words how it came to its end."""
    read, since = 0, time.monotonic()
    while True:
        running = process.poll() is None  # before reading: what is written until then is read
        lines = results.read_text().split("\n")[:-1] if results.is_file() else []
        for event in map(json.loads, lines[read:]):
            if "begin" in event:
                since = time.monotonic()
                tell(f"{event['begin']}: {STAGES[event['begin']]}")
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
    missing = [name for name in STAGES if name not in ended]
    for name in missing[:1]:
        yield Finding(STAGES[name], FAILED, reason)
    for name in missing[1:]:
        yield Finding(STAGES[name], NOT_RUN, f"since the stage {missing[0]} did not come to its end")
