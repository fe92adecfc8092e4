"""``path/to/file.py:function`` -> what the function returns (the file is run); a file -> the sources that belong to it."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from cnnf_brain.checks import unknown


def call(spec: str) -> tuple[object, bytes]:
    """What ``function()`` of the Python file returns, and the bytes that stand for it: the file's with those of what it imports
    from beside itself, and the function's name.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        The file or the function fails, or there is no such function.
    """
    file, _, function = spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"model {spec}: no file {path}")
    name = f"_network_of_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    python = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = python  # so that the sources of its classes can be found
    if str(path.resolve().parent) not in sys.path:
        sys.path.append(str(path.resolve().parent))  # for what it imports from beside itself
    try:
        module_spec.loader.exec_module(python)
    except (Exception, SystemExit) as error:
        raise ValueError(f"model {spec}: running {path} failed: {type(error).__name__}: {error}") from error
    if not callable(getattr(python, function, None)):
        known = [key for key, value in vars(python).items() if inspect.isfunction(value) and value.__module__ == name]
        raise unknown("function", function, known, where=str(path))
    try:
        made = getattr(python, function)()
    except (Exception, SystemExit) as error:
        raise ValueError(f"model {spec}: calling {function}() in {path} failed: {type(error).__name__}: {error}") from error
    return made, json.dumps([sources(path), function]).encode()


def sources(path: Path) -> dict[str, str]:
    """Path below the file's folder -> text, of a Python file and of all that it imports from beside itself.

    Raises
    ------
    ValueError
        A file that is not Python.
    """
    installed = _installed()
    todo, found = [path.name], dict[str, str]()
    while todo:
        name = todo.pop()
        if name in found:
            continue
        try:
            found[name] = (path.parent / name).read_text(encoding="utf-8")
            tops = {one.partition(".")[0] for one in imported(found[name])}
        except (SyntaxError, UnicodeDecodeError) as error:
            raise ValueError(f"{path.parent / name} cannot be read as Python ({error})") from error
        for top in sorted(tops - set(sys.stdlib_module_names) - installed.keys()):
            todo += _beside(path.parent, top)
    return dict(sorted(found.items()))


def imported(text: str) -> Iterator[str]:
    """Dotted names of all that a file imports absolutely, anywhere in it; for ``from a import b`` both ``a`` and ``a.b``."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _beside(folder: Path, top: str) -> list[str]:
    """The files of a module or package ``top`` in ``folder``, relative to it."""
    if (folder / f"{top}.py").is_file():
        return [f"{top}.py"]
    return [file.relative_to(folder).as_posix() for file in sorted((folder / top).rglob("*.py"))]


@functools.cache
def _installed() -> Mapping[str, list[str]]:
    """Top-level module -> the installed distributions that provide it."""
    return metadata.packages_distributions()


def version_of(top: str) -> str:
    """The distributions that provide a top-level module, with their versions; empty where it is not installed."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in sorted(set(_installed().get(top, []))))
