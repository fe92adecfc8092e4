"""What Brain-Score's machines have installed: the packages that brainscore-vision requires, and a plugin's requirements.txt."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

OURS = "cnnf_brain"
BASE = Requirement("brainscore-vision[test]")  # what a submission's tests are run with


def requirement(line: str) -> Requirement | None:
    """The requirement in a line of requirements.txt; None for a comment or an empty line.

    Raises
    ------
    ValueError
        A line that is no requirement.
    """
    words = re.sub(r"(^|\s)#.*", "", line).strip()
    if not words:
        return None
    try:
        return Requirement(words)
    except InvalidRequirement as error:
        raise ValueError(f"{words!r} is not a requirement ({str(error).splitlines()[0]})") from error


def unmet(line: str) -> str:
    """What is wrong with a line of requirements.txt, judged by what is installed here; empty where it holds.

    A package holds where it is installed from an index, in a version that the line admits. What is installed from a folder or
    an address may stand on no index, and an address cannot be checked.
    """
    try:
        needed = requirement(line)
    except ValueError as error:
        return str(error)
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


def installed_with(requirements: Iterable[str]) -> frozenset[str]:
    """Names of the distributions installed here that brainscore-vision or ``requirements`` bring, with all that they require."""
    todo = [BASE, *filter(None, map(requirement, requirements))]
    seen: dict[str, frozenset[str]] = {}
    while todo:
        needed = todo.pop()
        name, extras = _normal(needed.name), frozenset(needed.extras)
        if extras <= seen.get(name, frozenset()) and name in seen:
            continue
        try:
            lines = metadata.distribution(needed.name).requires or []
        except metadata.PackageNotFoundError:
            continue
        seen[name] = seen.get(name, frozenset()) | extras
        known = (Requirement(line) for line in lines)
        todo += [one for one in known if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in ("", *extras))]
    return frozenset(seen)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def _modules() -> dict[str, frozenset[str]]:
    """Top-level module -> the installed distributions that it is of."""
    return {name: frozenset(map(_normal, of)) for name, of in metadata.packages_distributions().items()}


def absent(requirements: Iterable[str] = ()) -> frozenset[str]:
    """Top-level modules that are installed here and that Brain-Score's machines lack; this package is one of them."""
    there = installed_with(requirements)
    return frozenset(name for name, of in _modules().items() if not of & there) | {OURS}


def requirements_of(modules: Iterable[str]) -> list[str]:
    """Lines of requirements.txt, in the installed versions, for those of these top-level modules that Brain-Score lacks."""
    lacking = sorted((set(modules) & absent()) - {OURS})
    names = dict.fromkeys(min(_modules()[module]) for module in lacking)
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]


def forget(modules: frozenset[str]) -> None:
    """From here on these top-level modules cannot be imported in this process, as if they were not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] in modules]:
        del sys.modules[name]
    sys.meta_path[:] = [_Without(finder, modules) for finder in sys.meta_path]


class _Without:
    """A finder that does not find some modules."""

    def __init__(self, finder: Any, modules: frozenset[str]) -> None:
        self._finder, self._modules = finder, modules

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        """As the finder's own; None for these modules."""
        return None if fullname.partition(".")[0] in self._modules else self._finder.find_spec(fullname, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)
