"""``path/to/file.py:function`` -> what the function returns, and the code that made it. The file is run."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from pathlib import Path

from cnnf_brain.checks import unknown


def call(spec: str) -> tuple[object, bytes]:
    """What ``function()`` of the Python file returns, and the bytes that stand for it: the file's, and the function's name.

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
    return made, path.read_bytes() + b"\0" + function.encode()
