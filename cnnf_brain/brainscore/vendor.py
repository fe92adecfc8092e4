"""What travels in a plugin: this package's part that it needs, the user's own code, and the names of packages to install."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from cnnf_brain.checks import offered
from cnnf_brain.identity import imported, installed, sources

PACKAGE = "cnnf_brain"  # its name, and that of the folder in the plugin
ROOT = Path(__file__).resolve().parents[1]
START = f"{PACKAGE}.brainscore.commitment"  # all that a plugin calls
OWN = "network_code"  # folder of the user's own code in the plugin
ADDRESS = "brainscore_vision.models.{identifier}.cnnf_brain"  # the copy of this package in a plugin
BASE = Requirement("brainscore-vision[test]")  # what a submission's tests are run with


def package_files(also: Iterable[str] = ()) -> dict[str, str]:
    """Path in the plugin -> text, of every module of this package that ``commitment`` and ``also`` (dotted names) import.

    They import each other by relative names, so that nothing is taken from an installed cnnf-brain. The package's own
    ``__init__.py`` offers those of its names that are defined in these modules. The licence is beside it.
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
    copies = {path: redirected(text, "." * (path.count("/") + 1), path) for path, text in sorted(modules.items())}
    copies |= {"__init__.py": _init(set(modules)), "LICENSE": licence()}
    return {f"{PACKAGE}/{path}": text for path, text in copies.items()}


def _module(name: str) -> str | None:
    """The file of a module of this package, below its folder; None for anything else, and for the package itself."""
    first, *parts = name.split(".")
    if first != PACKAGE or not parts:
        return None
    files = ("/".join(parts) + ".py", "/".join([*parts, "__init__.py"]))
    return next((file for file in files if (ROOT / file).is_file()), None)


def redirected(text: str, to: str, name: str) -> str:
    """A file's text with its imports of this package taken from ``to``: dots (``from`` imports alone), or a copy's address.

    A ValueError about the file ``name`` where an import has a form that is not known.
    """
    dots = to.endswith(".")
    made = re.sub(
        rf"(?m)^(\s*)from {PACKAGE}\b\.?([\w.]*) import\b",
        lambda found: f"{found[1]}from {to + found[2] if dots else f'{to}.{found[2]}'.rstrip('.')} import",
        text,
    )
    forms = {r"(\.[\w.]+ as \w+| as \w+)": "", "()": f" as {PACKAGE}", r"(\.[\w.]+)": f", {to} as {PACKAGE}"}
    for words, further in forms.items():
        made = re.sub(rf"(?m)^(\s*)import {PACKAGE}{words}(?=\s*(?:#.*)?$)", rf"\1import {to}\2{further}", made)
    if any(one.partition(".")[0] == PACKAGE for one in imported(made)):
        raise ValueError(f"{name}: an import of {PACKAGE} is not in a line of its own; write one import in a line")
    return made


def _init(modules: set[str]) -> str:
    """The copy's ``__init__.py``: what the package offers, as far as it is there."""
    version = metadata.version("cnnf-brain")
    statements = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8")).body
    offered = [node for node in statements if isinstance(node, ast.ImportFrom) and _module(str(node.module)) in modules]
    text = "\n".join(map(ast.unparse, offered))
    about = f'"""The part of cnnf-brain {version} that this plugin needs, copied; see LICENSE beside this file."""'
    return f"{about}\n\n{redirected(text, '.', '__init__.py')}\n"


def licence() -> str:
    """The text of this package's licence, from the checkout or the installation; an OSError where neither has it."""
    beside = ROOT.parent / "LICENSE"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    for file in metadata.files("cnnf-brain") or []:
        if file.name == "LICENSE":
            return file.read_text(encoding="utf-8")
    told = "the licence of cnnf-brain is missing, and has to go with the plugin; install it again"
    raise FileNotFoundError(f"{beside}: {told}")


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
        copy = ADDRESS.format(identifier=identifier)
        return {f"{OWN}/{name}": redirected(text, copy, name) for name, text in self.sources.items()}


def read_own_code(spec: str) -> OwnCode | None:
    """The code behind ``path/to/file.py:function``; None for the names of other networks.

    A FileNotFoundError without such a file, a ValueError for what is not Python or has a space in its name.
    """
    if ".py:" not in spec:
        if spec in offered("networks"):
            raise ValueError(f"model {spec} comes from another package; for Brain-Score give it as path/to/file.py:function")
        return None
    file, _, function = spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"model {spec}: no file {path}")
    own = sources(path)
    spaced = next((name for name in own if " " in name), None)
    if spaced:
        raise ValueError(f"{path.parent / spaced}: Brain-Score's website takes no names with spaces; rename it")
    return OwnCode(path.name, function, own)


def unmet(line: str) -> str:
    """What is wrong with a line of requirements.txt, judged by what is installed here; empty where it holds.

    A package holds where it is installed from an index, in a version that the line admits. What is installed from a folder or
    an address may stand on no index, and an address cannot be checked.
    """
    try:
        needed = _requirement(line)
    except InvalidRequirement as error:
        return f"{line.strip()!r} is not a requirement ({str(error).splitlines()[0]})"
    if needed is None:
        return ""
    if needed.url:
        return f"{needed.name} is to come from {needed.url}, which is not checked; name a package of an index"
    try:
        found = metadata.distribution(needed.name)
    except metadata.PackageNotFoundError:
        return f"{needed.name} is not installed here; install it from the index, so that the plugin can be run with it"
    if not needed.specifier.contains(found.version, prereleases=True):
        return f"{needed} is asked for, and {found.version} is installed here"
    if found.read_text("direct_url.json"):
        return f"{needed.name} is installed here from a folder or an address, so no index may have it"
    return ""


def _requirement(line: str) -> Requirement | None:
    """The requirement in a line of requirements.txt; None for a comment or an empty line."""
    words = re.sub(r"(^|\s)#.*", "", line).strip()
    return Requirement(words) if words else None


def installed_with(requirements: Iterable[str]) -> frozenset[str]:
    """Names of the distributions installed here that brainscore-vision or ``requirements`` bring, with all that they require."""
    todo = [BASE, *filter(None, map(_requirement, requirements))]
    seen: dict[str, set[str]] = {}
    while todo:
        needed = todo.pop()
        extras = seen.setdefault(_normal(needed.name), set())
        new = {"", *needed.extras} - extras
        extras |= new
        try:
            lines = metadata.distribution(needed.name).requires or [] if new else []
        except metadata.PackageNotFoundError:
            del seen[_normal(needed.name)]
            continue
        known = (Requirement(line) for line in lines)
        todo += [one for one in known if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in new)]
    return frozenset(seen)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def _modules() -> dict[str, frozenset[str]]:
    """Top-level module -> the installed distributions that it is of."""
    return {name: frozenset(map(_normal, of)) for name, of in installed().items()}


def absent(requirements: Iterable[str] = ()) -> frozenset[str]:
    """Top-level modules that are installed here and that Brain-Score's machines lack; this package is one of them."""
    there = installed_with(requirements)
    return frozenset(name for name, of in _modules().items() if not of & there) | {PACKAGE}


def requirements_of(modules: Iterable[str]) -> list[str]:
    """Lines of requirements.txt, in the installed versions, for those of these top-level modules that Brain-Score lacks."""
    lacking = sorted((set(modules) & absent()) - {PACKAGE})
    names = dict.fromkeys(min(_modules()[module]) for module in lacking)
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]


def forget(modules: frozenset[str]) -> None:
    """From here on these top-level modules cannot be imported in this process, as if they were not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] in modules]:
        del sys.modules[name]
    sys.modules.update(dict.fromkeys(modules))  # type: ignore[arg-type]  # None stands for a module that is not there
