"""A plugin's ZIP -> findings: the website's rules, then Brain-Score itself, run on a scratch copy of its models without a GPU."""

from __future__ import annotations

import ast
import json
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import brainscore_vision

from cnnf_brain.brainscore import rehearsal
from cnnf_brain.brainscore.rehearsal import FAILED as FAILED
from cnnf_brain.brainscore.rehearsal import NOT_RUN, STAGES, Finding, held
from cnnf_brain.brainscore.vendor import unmet

MAX_BYTES = 50_000_000
WEIGHTS = {".pt", ".pth", ".tar", ".ckpt", ".safetensors", ".h5", ".hdf5", ".onnx", ".npz", ".npy", ".bin", ".pkl"}
_REGISTERED = re.compile(r"model_registry\[\s*(['\"])(?P<id>[^'\"]*)\1\s*\]")
SCRATCH = "cnnf-rehearsal-"
MAX_ENTRIES, MAX_UNPACKED = 10_000, 4 * MAX_BYTES  # of a ZIP: files and folders, and bytes once they are unpacked
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
MAX_TEXT = 1_000_000  # bytes of a model.py that is parsed


@dataclass(frozen=True)
class Submission:
    """The names (in order) and files of a ZIP, and how large the ZIP is."""

    path: Path
    names: tuple[str, ...]
    files: dict[str, bytes]
    size: int

    @property
    def plugins(self) -> tuple[str, ...]:
        """Names of the folders ``ROOT/models/NAME`` that any entry lies in."""
        inside = (re.match(r"[^/]+/models/([^/]+)/", name) for name in self.names)
        return tuple(dict.fromkeys(found[1] for found in inside if found))

    @property
    def identifiers(self) -> tuple[str, ...]:
        """Identifiers that the plugins' ``__init__.py`` register, in order."""
        inits = (content for name, content in self.files.items() if re.fullmatch(r"[^/]+/models/[^/]+/__init__\.py", name))
        texts = (content.decode("utf-8", "replace") for content in inits)
        return tuple(dict.fromkeys(found["id"] for text in texts for found in _REGISTERED.finditer(text)))

    def text(self, file: str) -> str:
        """A text file of the plugin, by its path in the plugin's folder; empty where there is none."""
        found = (content for name, content in self.files.items() if name.split("/", 3)[3:] == [file])
        return next(found, b"").decode("utf-8", "replace")

    @property
    def identity(self) -> dict[str, Any]:
        """IDENTITY as it stands in the plugin's model.py, which is read and not run; a ValueError where none stands there."""
        text = self.text("model.py")
        if len(text) > MAX_TEXT:
            raise ValueError(f"model.py has {len(text) / 1e6:.1f} MB, expected at most {MAX_TEXT / 1e6:.0f} MB of code")
        try:
            tree = ast.parse(text)
            assigned = (node for node in tree.body if isinstance(node, ast.Assign))
            (found,) = (node.value for node in assigned if ast.unparse(node.targets[0]) == "IDENTITY")
            identity = dict(ast.literal_eval(found))
            json.dumps(identity)  # a TypeError where it could not be written as JSON
            return identity
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
            raise ValueError("model.py holds no IDENTITY as write_plugins writes it; write the plugin anew") from error


def read_submission(path: Path) -> Submission:
    """The ZIP at ``path``, unpacked in memory within MAX_ENTRIES and MAX_UNPACKED.

    A FileNotFoundError where it is not there. A ValueError where it is none, is damaged, would go beyond these limits, or holds
    what no plugin needs: links, names that come twice, passwords, another compression than ZIP's usual one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size > MAX_UNPACKED:
        raise ValueError(f"{path} has {path.stat().st_size / 1e6:.0f} MB; a plugin has at most {MAX_BYTES / 1e6:.0f} MB")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            refused = _refused(entries)
            files = {} if refused else {entry.filename: _unpacked(archive, entry) for entry in entries if not entry.is_dir()}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a ZIP ({error}); write it anew") from error
    if refused:
        raise ValueError(f"{path} is not unpacked: {refused}; write it anew")
    return Submission(path, tuple(entry.filename for entry in entries), files, path.stat().st_size)


def _refused(entries: Sequence[zipfile.ZipInfo]) -> str:
    """Why a ZIP of these entries is not unpacked; empty where it is."""
    total = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_ENTRIES or total > MAX_UNPACKED:
        limits = f"expected at most {MAX_ENTRIES} and {MAX_UNPACKED / 1e6:.0f} MB"
        return f"it has {len(entries)} entries of {total / 1e6:.0f} MB, {limits}"
    names = Counter(entry.filename.rstrip("/") for entry in entries)
    kinds = {
        "come twice": [name for name, number in names.items() if number > 1],
        "are links": [entry.filename for entry in entries if stat.S_ISLNK(entry.external_attr >> 16)],
        "need a password": [entry.filename for entry in entries if entry.flag_bits & 1],
        "are not packed by deflate": [entry.filename for entry in entries if entry.compress_type not in PACKED],
    }
    return "; ".join(f"entries that {kind} ({_listed(found)})" for kind, found in kinds.items() if found)


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """A file's content. A size must be asked for: without one, zipfile unpacks more than the entry says that it holds."""
    with archive.open(entry) as file:
        return file.read(entry.file_size)


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

    The plugin's code is run, in a sandbox where this machine has one: ``tell`` takes, before that, what the code can reach and use
    (docs/reliability.md). The installed brainscore-vision is only read. What runs is a copy of its models in a temporary folder,
    with the plugin beside them, in a process of its own, with caches of its own, and without the packages that Brain-Score's
    machines lack. An interrupt (KeyboardInterrupt) leaves nothing behind, ``kill -9`` the folder.

    >>> failed = [finding for finding in check_plugin(Path("submission/IDENTIFIER.zip")) if finding.status == FAILED]

    ``weights``: the plugin's on this machine; without them they are fetched from the place that the plugin names. ``tell`` takes a
    line whenever a stage begins and ends, too. A ValueError or OSError for no such ZIP or weights, or a ZIP that
    ``read_submission`` refuses.
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
        yield from rehearsal.run(scratch, task, tell)


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
    for inside in submission.names:
        target = site.joinpath(*PurePosixPath(inside).parts[1:])
        folder = inside not in submission.files
        (target if folder else target.parent).mkdir(parents=True, exist_ok=True)
        if not folder:
            target.write_bytes(submission.files[inside])
    return site / "models" / name
