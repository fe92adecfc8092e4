"""What travels in a plugin: the part of this package that it needs, and the user's own code where that made the network."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from cnnf_brain.user_code import imported, sources

PACKAGE = "cnnf_brain"  # its name, and that of the folder in the plugin
ROOT = Path(__file__).resolve().parents[1]
START = f"{PACKAGE}.brainscore.commitment"  # all that a plugin calls
OWN = "network_code"  # folder of the user's own code in the plugin
ADDRESS = "brainscore_vision.models.{identifier}"  # a plugin's package


def package_files(also: Iterable[str] = ()) -> dict[str, str]:
    """Path in the plugin -> text, of every module of this package that ``commitment`` and ``also`` (dotted names) import.

    Their imports of each other are relative, so that nothing is taken from an installed cnnf-brain. The package's own
    ``__init__.py`` offers those of its names whose modules are there. The licence is beside it.
    """
    todo, modules = [START, *also], dict[str, str]()
    while todo:
        path = _module(todo.pop())
        if path is None or path in modules:
            continue
        modules[path] = (ROOT / path).read_text(encoding="utf-8")
        todo += imported(modules[path])
        parents = path.split("/")[:-1]
        todo += [".".join([PACKAGE, *parents[: n + 1]]) for n in range(len(parents))]
    copies = {path: relative(text, path.count("/") + 1) for path, text in sorted(modules.items())}
    version = metadata.version("cnnf-brain")
    copies |= {"__init__.py": _init(version, set(modules)), "LICENSE": licence()}
    return {f"{PACKAGE}/{path}": text for path, text in copies.items()}


def _module(name: str) -> str | None:
    """The file of a module of this package, below its folder; None for anything else, and for the package itself."""
    first, *parts = name.split(".")
    if first != PACKAGE or not parts:
        return None
    files = ("/".join(parts) + ".py", "/".join([*parts, "__init__.py"]))
    return next((file for file in files if (ROOT / file).is_file()), None)


def relative(text: str, depth: int) -> str:
    """A module's text with its imports of this package as relative ones; ``depth`` 1 is a module directly in the package."""
    dots = "." * depth
    made = re.sub(
        rf"(?m)^(\s*)from {PACKAGE}(?:\.([\w.]+))? import\b", lambda m: f"{m[1]}from {dots}{m[2] or ''} import", text
    )
    assert not any(name.partition(".")[0] == PACKAGE for name in imported(made)), "an import of a form that is not known"
    return made


def _init(version: str, modules: set[str]) -> str:
    """The copy's ``__init__.py``: what the package offers, as far as it is there."""
    lines = [f'"""The part of cnnf-brain {version} that this plugin needs, copied; see LICENSE beside this file."""', ""]
    statements = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8")).body
    offered = (node for node in statements if isinstance(node, ast.ImportFrom) and _module(str(node.module)) in modules)
    lines += [relative(ast.unparse(node), 1) for node in offered]
    return "\n".join(lines) + "\n"


def licence() -> str:
    """The text of this package's licence, from the checkout or the installation; an OSError where neither has it."""
    beside = ROOT.parent / "LICENSE"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    for file in metadata.files("cnnf-brain") or []:
        if file.name == "LICENSE":
            return file.read_text(encoding="utf-8")
    raise FileNotFoundError(
        f"{beside}: the licence of cnnf-brain is missing, and has to go with the plugin; install it again"
    )


@dataclass(frozen=True)
class OwnCode:
    """The file of a network of the user's own, with what it imports from beside itself.

    ``sources``: path below its folder -> text as the user wrote it. ``function`` makes the network.
    """

    file: str
    function: str
    sources: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 over the sources and the function's name."""
        return hashlib.sha256(json.dumps([dict(self.sources), self.function], sort_keys=True).encode()).hexdigest()

    @property
    def imports(self) -> set[str]:
        """Dotted names of all that is imported."""
        return {name for text in self.sources.values() for name in imported(text)}

    def files(self, identifier: str) -> dict[str, str]:
        """Path in the plugin -> text, with imports of this package turned to the plugin's copy of it."""
        package = ADDRESS.format(identifier=identifier)
        return {f"{OWN}/{name}": _of_copy(text, package, name) for name, text in self.sources.items()}


def read_own_code(spec: str) -> OwnCode:
    """The code behind ``path/to/file.py:function``.

    Raises
    ------
    ValueError
        A name with a space, which Brain-Score's website refuses; a file that is not Python.
    FileNotFoundError
        No such file.
    """
    file, _, function = spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"model {spec}: no file {path}")
    own = sources(path)
    spaced = next((name for name in own if " " in name), None)
    if spaced:
        raise ValueError(f"{path.parent / spaced}: Brain-Score's website takes no names with spaces; rename it")
    return OwnCode(path.name, function, own)


def _of_copy(text: str, package: str, name: str) -> str:
    """A file of the user's with its imports of this package taken from the copy in ``package``."""
    copy = f"{package}.{PACKAGE}"
    made = re.sub(rf"(?m)^(\s*)from {PACKAGE}((?:\.[\w.]+)?) import\b", rf"\1from {copy}\2 import", text)
    made = re.sub(rf"(?m)^(\s*)import {PACKAGE}(\.[\w.]+ as \w+)(?=\s*(?:#.*)?$)", rf"\1import {copy}\2", made)
    made = re.sub(rf"(?m)^(\s*)import {PACKAGE} as (\w+)(?=\s*(?:#.*)?$)", rf"\1import {copy} as \2", made)
    made = re.sub(rf"(?m)^(\s*)import {PACKAGE}(?=\s*(?:#.*)?$)", rf"\1import {copy} as {PACKAGE}", made)
    submodule = rf"(?m)^(\s*)import {PACKAGE}(\.[\w.]+)(?=\s*(?:#.*)?$)"
    made = re.sub(submodule, rf"\1import {copy}\2, {copy} as {PACKAGE}", made)
    if any(one.partition(".")[0] == PACKAGE for one in imported(made)):
        raise ValueError(f"{name}: an import of {PACKAGE} is not in a line of its own; write one import in a line")
    return made
