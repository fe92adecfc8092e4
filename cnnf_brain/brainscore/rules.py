"""The rules that Brain-Score's website puts a ZIP to, each one with a function that says what breaks it."""

from __future__ import annotations

import ast
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

MAX_BYTES = 50_000_000
WEIGHTS = {".pt", ".pth", ".tar", ".ckpt", ".safetensors", ".h5", ".hdf5", ".onnx", ".npz", ".npy", ".bin", ".pkl"}
_REGISTERED = re.compile(r"model_registry\[\s*(['\"])(?P<id>[^'\"]*)\1\s*\]")


OK, FAILED, NOT_RUN, DRAFT = "ok", "failed", "not run", "draft"


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
        parts = (PurePosixPath(name).parts for name in self.names)
        inside = [part[2] for part, name in zip(parts, self.names, strict=True) if _in_plugin(part, name)]
        return tuple(dict.fromkeys(inside))

    @property
    def identifiers(self) -> tuple[str, ...]:
        """Identifiers that the plugins' ``__init__.py`` register, in order."""
        found = []
        for name, text in self.texts.items():
            if re.fullmatch(r"[^/]+/models/[^/]+/__init__\.py", name):
                found += [match["id"] for match in _REGISTERED.finditer(text)]
        return tuple(dict.fromkeys(found))

    def text(self, file: str) -> str:
        """A text file of the plugin, by its path in the plugin's folder; empty where there is none."""
        inside = (text for name, text in self.texts.items() if "/".join(PurePosixPath(name).parts[3:]) == file)
        return next(inside, "")

    @property
    def identity(self) -> dict[str, Any]:
        """IDENTITY as it stands in the plugin's model.py, which is read and not run; a ValueError where none stands there."""
        try:
            tree = ast.parse(self.text("model.py"))
            assigned = (node for node in tree.body if isinstance(node, ast.Assign))
            (found,) = (node.value for node in assigned if ast.unparse(node.targets[0]) == "IDENTITY")
            return dict(ast.literal_eval(found))
        except (SyntaxError, ValueError, TypeError) as error:
            raise ValueError(
                "model.py holds no IDENTITY as python -m cnnf_brain.submit writes it; write the plugin anew"
            ) from error


def _in_plugin(parts: tuple[str, ...], name: str) -> bool:
    return len(parts) >= 3 and parts[1] == "models" and (len(parts) > 3 or name.endswith("/"))


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


def _size(zip_: Submission) -> str:
    return "" if zip_.size <= MAX_BYTES else f"it has {zip_.size / 1e6:.1f} MB"


def _no_spaces(zip_: Submission) -> str:
    return _listed(name for name in zip_.names if " " in name)


def _one_root(zip_: Submission) -> str:
    parts = [PurePosixPath(name).parts for name in zip_.names]
    roots = sorted({part[0] for part in parts if part})
    outside = [
        n for n, part in zip(zip_.names, parts, strict=True) if not part or n.startswith("/") or ".." in part or "\\" in n
    ]
    loose = [name for name in zip_.names if "/" not in name]
    return _listed(outside or loose or (roots if len(roots) != 1 else ()))


def _plugin_folder(zip_: Submission) -> str:
    if len(zip_.plugins) != 1:
        return f"found {', '.join(zip_.plugins) or 'none'}"
    inside = re.compile(rf"[^/]+/(models/({re.escape(zip_.plugins[0])}/.*)?)?")
    return _listed(name for name in zip_.names if not inside.fullmatch(name))


def _folder_entries(zip_: Submission) -> str:
    folders = {f"{'/'.join(PurePosixPath(n).parts[:k])}/" for n in zip_.names for k in range(1, 4) if n.count("/") >= k}
    return _listed(sorted(folders - set(zip_.names)), "missing: ")


def _needed_files(zip_: Submission) -> str:
    needed = {f"{plugin}/{file}" for plugin in zip_.plugins for file in ("__init__.py", "test.py")}
    return _listed(sorted(needed - {"/".join(PurePosixPath(name).parts[2:]) for name in zip_.names}), "missing: ")


def _no_metadata(zip_: Submission) -> str:
    return _listed(name for name in zip_.names if name.lower().endswith(("metadata.yml", "metadata.yaml")))


def _no_weights(zip_: Submission) -> str:
    return _listed(name for name in zip_.names if PurePosixPath(name).suffix.lower() in WEIGHTS)


def _one_identifier(zip_: Submission) -> str:
    found = zip_.identifiers
    return "" if len(found) == 1 else f"found {', '.join(found) or 'none'}"


def _no_hyphens(zip_: Submission) -> str:
    return _listed(name for name in (*zip_.identifiers, *zip_.plugins) if "-" in name)


def _not_taken(zip_: Submission) -> str:
    found = {name: taken(name) for name in dict.fromkeys((*zip_.identifiers, *zip_.plugins))}
    return _listed(f"{name} is in brainscore-vision's models/{folder}" for name, folder in found.items() if folder)


RULES = (
    Rule("size", "The ZIP is at most 50 MB", _size),
    Rule("no_spaces", "No name has a space", _no_spaces),
    Rule("one_root", "Everything lies in one folder, and no path leads out of it", _one_root, to_run=True),
    Rule(
        "plugin_folder",
        "The plugin is ROOT/models/PLUGIN, one of them, and nothing lies beside it",
        _plugin_folder,
        to_run=True,
    ),
    Rule("folder_entries", "ROOT/, ROOT/models/ and ROOT/models/PLUGIN/ are entries of their own", _folder_entries),
    Rule("needed_files", "The plugin has an __init__.py and a test.py", _needed_files, to_run=True),
    Rule("no_metadata", "No metadata.yml or metadata.yaml: Brain-Score makes them itself", _no_metadata),
    Rule("no_weights", "No weights inside: they are loaded from Brain-Score's storage or a hub", _no_weights),
    Rule(
        "one_identifier",
        "One identifier, registered as model_registry['IDENTIFIER'] in plain letters: Brain-Score finds plugins by that text",
        _one_identifier,
        to_run=True,
    ),
    Rule("no_hyphens", "No identifier has a hyphen", _no_hyphens),
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
    folder = models_folder()
    shipped = tuple(sorted(init.parent.name for init in folder.glob("*/__init__.py") if not init.parent.is_symlink()))
    return name if name in shipped else _registered(folder, shipped).get(name, "")


@lru_cache(maxsize=2)
def _registered(folder: Path, plugins: tuple[str, ...]) -> dict[str, str]:
    """Identifier -> the plugin of ``folder`` that registers it."""
    texts = ((name, (folder / name / "__init__.py").read_text(encoding="utf-8", errors="replace")) for name in plugins)
    return {match["id"]: name for name, text in texts for match in _REGISTERED.finditer(text)}


def models_folder() -> Path:
    """The models that the installed brainscore-vision ships."""
    import brainscore_vision

    return Path(brainscore_vision.__file__ or "").parent / "models"


def _listed(names: Iterator[str] | list[str] | tuple[str, ...], before: str = "") -> str:
    """The first few of ``names``, empty where there are none."""
    found = list(names)
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"{before}{', '.join(found[:3])}{more}" if found else ""
