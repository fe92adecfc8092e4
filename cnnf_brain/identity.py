"""What tells one network from another: a hash over all that its features depend on. The user's own code, run and read.

Architecture, weights and the plain attributes of every module count; functions by their code, closure, defaults and globals; the
user's own (of no library and in no SITE) also by the source files of their package. A network with a hook or an attribute of an
unknown kind has no hash, and is never cached.
"""

from __future__ import annotations

import ast
import dis
import enum
import functools
import hashlib
import importlib.util
import inspect
import json
import logging
import re
import sys
import time
import types
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
import torch
from torch import Tensor, nn

from cnnf_brain.checks import unknown
from cnnf_brain.images import Preprocessing
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.types import FEATURES_VERSION, LayerAt

if TYPE_CHECKING:
    from cnnf_brain.networks import Network

OWN = (False, "")  # of no library: its globals and attributes may be others in each run (see ``_origin``)
KNOWN = ("torch", "torchvision", "cnnf_brain", "builtins", "numpy")  # their versions are in the keys of what is cached
LIBRARIES = {*KNOWN, *sys.stdlib_module_names}
SITE = {"site-packages", "dist-packages"}  # what was installed there stands by its version
SPECIAL = {"__call__", "__getattr__", "__getitem__", "__iter__", "__len__"}  # methods that a class's code may run unseen
STARTED = time.time()
PLAIN = (type(None), bool, int, float, complex, str, bytes, Path)
TORCH = (type(...), torch.dtype, torch.device, torch.Size, torch.memory_format, torch.layout, slice, range)


class Unidentifiable(ValueError):
    """A part of a network that no hash can stand for; the message says which."""


def network_identity(module: nn.Module, code: bytes = b"", preprocessing: Preprocessing | None = None) -> str:
    """SHA-256 over all that a network's features depend on, except the settings of the feedback where it is itself a CNNF.

    ``code`` stands for the user's code that made it (see ``call``). Of the ``preprocessing`` a class of the user's own counts here,
    as a module's does; the fields are in ``gram_key``. Unidentifiable where something cannot be hashed, as a hook.
    """
    if torch.nn.modules.module._global_forward_hooks or torch.nn.modules.module._global_forward_pre_hooks:
        raise Unidentifiable("torch has a forward hook for all modules")
    whole = _Hash()
    whole.add("code", code)
    whole.module("", module)
    if type(preprocessing) not in (Preprocessing, type(None)):
        whole.value("preprocessing", preprocessing)
    if whole.lazy and whole.changed > STARTED:
        raise Unidentifiable(f"{whole.lazy} is imported by a function, and source files changed since this process began")
    return whole.whole.hexdigest()


def gram_key(
    network: Network, images_digest: str, at: LayerAt, batch_size: int, identity: str | None = None, unit_norm: bool = False
) -> str:
    """Hash of all that K depends on. The first pass does not depend on the feedback's settings.

    ``FEATURES_VERSION`` stands for this package's own code. A network without identity gets a key that never comes again.
    """
    settings = None
    if isinstance(network.module, CNNF) and (at.iteration > 0 or at.feedback):
        settings = {k: v for k, v in network.module.settings.as_dict().items() if k != "iterations"}
    parts = {
        "network": identity or network.identity or uuid.uuid4().hex,
        "feedback": settings,
        "preprocessing": repr(network.preprocessing),
        "images": images_digest,
        "layer": str(at),
        "precision": f"float32 on {network.device.type}, batches of {batch_size}",
        "features": FEATURES_VERSION,
        "torch": str(torch.__version__),
        "torchvision": metadata.version("torchvision"),
        "pillow": PIL.__version__,
    }
    parts |= {"scaled": "norm 1"} if unit_norm else {}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over architecture, parameters and buffers alone."""
    whole = _Hash()
    whole.weights(module)
    return whole.whole.hexdigest()


def call(spec: str) -> tuple[object, bytes]:
    """What ``function()`` returns, for ``path/to/file.py:function``, and the bytes that stand for it (sources, function).

    A ValueError where the file or the function fails or there is no such function, a FileNotFoundError without such a file.
    """
    file, _, function = spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"model {spec}: no file {path}")
    name = f"_network_of_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None  # noqa: PT018
    # in sys.modules, so that the sources of its classes are found
    python = sys.modules[name] = importlib.util.module_from_spec(found)
    if str(path.resolve().parent) not in sys.path:
        sys.path.append(str(path.resolve().parent))  # for what it imports from beside itself
    doing = f"running {path}"
    try:
        found.loader.exec_module(python)
        if callable(getattr(python, function, None)):
            doing = f"calling {function}() in {path}"
            return getattr(python, function)(), json.dumps([sources(path), function]).encode()
    except (Exception, SystemExit) as error:
        raise ValueError(f"model {spec}: {doing} failed: {type(error).__name__}: {error}") from error
    known = [key for key, value in vars(python).items() if inspect.isfunction(value) and value.__module__ == name]
    raise unknown("function", function, known, where=str(path))


def sources(path: Path) -> dict[str, str]:
    """Path below the file's folder -> text, of a Python file (else a ValueError) and of all that it imports from beside itself."""
    todo, found = [path.name], dict[str, str]()
    while todo:
        if (name := todo.pop()) in found:
            continue
        try:
            found[name] = (path.parent / name).read_text(encoding="utf-8")
            tops = {one.partition(".")[0] for one in imported(found[name])}
        except (SyntaxError, UnicodeDecodeError) as error:
            raise Unidentifiable(f"{path.parent / name} cannot be read as Python ({error})") from error
        for top in sorted(tops - set(sys.stdlib_module_names) - installed().keys()):
            module = path.parent / f"{top}.py"
            files = [module] if module.is_file() else sorted((path.parent / top).rglob("*.py"))
            todo += [file.relative_to(path.parent).as_posix() for file in files]
    return dict(sorted(found.items()))


def imported(text: str) -> Iterator[str]:
    """Dotted names of all that a file imports absolutely, anywhere in it; for ``from a import b`` both ``a`` and ``a.b``."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def installed() -> Mapping[str, list[str]]:
    """Top-level module -> the installed distributions that provide it."""
    return metadata.packages_distributions()


class _Hash:
    """SHA-256 over named values, each with its type and length, so that no two lists of values run into each other."""

    def __init__(self) -> None:
        self.whole = hashlib.sha256()
        self.seen: dict[int, tuple[int, Any]] = {}  # by identity; values are held, so that no other takes their place
        self.files: set[Path] = set()
        self.changed = 0.0  # when one of them last was
        self.lazy = ""  # what a function imports only when it is called, so that it cannot be followed
        self.followed: set[tuple[str, frozenset[str]]] = set()
        self.modules: dict[int, str] = {}

    def add(self, name: str, content: str | bytes) -> None:
        raw = content.encode() if isinstance(content, str) else content
        self.whole.update(f"{name} {len(raw)} ".encode() + raw)

    def weights(self, module: nn.Module) -> None:
        """Architecture, parameters and buffers."""
        self.add("architecture", re.sub(r" at 0x[0-9a-f]+", "", repr(module)))
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            self.value(name, tensor)

    def module(self, path: str, module: nn.Module) -> None:
        """A network with all within it; further mentions of its modules are by their paths alone."""
        parts = dict(module.named_modules(prefix=path))
        self.modules |= {id(part): name for name, part in parts.items()}
        self.weights(module)
        for name, part in parts.items():
            if part._forward_hooks or part._forward_pre_hooks:
                raise Unidentifiable(f"{f'module {name!r}' if name else 'the network itself'} has a forward hook")
            self.kind(type(part))
            # "forward" too, where it was replaced on the object
            for attribute in sorted(vars(part).keys() - _usual(not name and isinstance(part, CNNF))):
                self.value(f"{name}.{attribute}", vars(part)[attribute])

    def value(self, name: str, value: Any, names: frozenset[str] | None = None) -> None:
        """Any value, of Python's modules what is read by ``names`` (None: all); Unidentifiable where its kind is not known."""
        if isinstance(value, Tensor | np.ndarray | np.generic):
            self._array(name, value)
        elif type(value) in PLAIN or type(value) in TORCH or isinstance(value, Path):
            self.add(name, f"{type(value).__qualname__} {value!r}")
        elif isinstance(value, types.ModuleType):
            self._imported(name, value, names or frozenset(read for read in vars(value) if not read.startswith("__")))
        elif id(value) in self.modules:
            self.add(name, f"module {self.modules[id(value)]}")
        elif isinstance(value, nn.Module):
            self.module(name, value)
        elif not self._again(name, value):
            self._structure(name, value)
            if not isinstance(value, type):  # what was set on it beside its content
                for key, inside in sorted(getattr(value, "__dict__", {}).items()):
                    self.value(f"{name}.{key}", inside)

    def _again(self, name: str, value: Any) -> bool:
        """Whether a value was met before (it may be within itself); then its number stands for it."""
        if id(value) in self.seen:
            self.add(name, f"again {self.seen[id(value)][0]}")
            return True
        self.seen[id(value)] = (len(self.seen), value)
        return False

    def _structure(self, name: str, value: Any) -> None:
        if isinstance(value, types.FunctionType):
            return self._function(name, value)
        if isinstance(value, type):
            del self.seen[id(value)]
            return self.kind(value)
        shape = next((shape(value) for kinds, shape in _SHAPES if isinstance(value, kinds)), None)
        unordered = isinstance(value, set | frozenset) and not all(isinstance(inside, PLAIN) for inside in value)
        if shape is None or unordered:
            raise Unidentifiable(f"{name} is a {_qualified(type(value))}, whose content is not known or has no order")
        with_class, text, parts = shape
        if with_class:
            self.kind(type(value))
        if text is not None:
            self.add(name, text)
        for part, inside in parts:
            self.value(f"{name}{part}", inside)

    def _array(self, name: str, values: Any) -> None:
        try:
            if not isinstance(values, Tensor):
                values = np.array(values)  # contiguous, without negative strides
                if values.dtype.kind in "USO":
                    return self.value(name, [str(values.dtype), values.shape, values.tolist()])
                values = torch.from_numpy(np.atleast_1d(values))
            self.add(name, f"{values.dtype} {tuple(values.shape)}")
            dense = values.detach().resolve_conj().resolve_neg().cpu().contiguous().flatten()
            self.whole.update(dense.view(torch.uint8).numpy().data)
        except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            raise Unidentifiable(f"{name} holds values that cannot be read ({str(error).splitlines()[0]})") from error

    def _function(self, name: str, function: types.FunctionType) -> None:
        """By code, closure, defaults, the globals that it reads, and the sources of its module."""
        self.add(name, _qualified(function))
        names = frozenset(self._code(name, function.__code__))
        for cell in function.__closure__ or ():
            self.value(f"{name}.closure", cell.cell_contents)
        self.value(f"{name}.defaults", [function.__defaults__, function.__kwdefaults__])
        self._source(function)
        if _origin(function) == OWN:
            for read in sorted(names & function.__globals__.keys()):
                self.value(f"{name}.{read}", function.__globals__[read], names)

    def _imported(self, name: str, module: types.ModuleType, names: frozenset[str]) -> None:
        self.add(name, module.__name__)
        self._source(module)
        if _origin(module) == OWN and (module.__name__, names) not in self.followed:
            self.followed.add((module.__name__, names))
            for read in sorted(names & vars(module).keys()):
                self.value(f"{name}.{read}", vars(module)[read], names)

    def _code(self, name: str, code: types.CodeType) -> set[str]:
        """A function's code and that of the functions within it; all names that they read."""
        self.add(name, f"{code.co_names} {code.co_varnames} {code.co_freevars}")
        self.add(name, code.co_code)
        late = (str(step.argval) for step in dis.get_instructions(code) if step.opname == "IMPORT_NAME")
        self.lazy = next((module or "." for module in late if module.split(".")[0] not in LIBRARIES), self.lazy)
        names = set(code.co_names)
        for const in code.co_consts:
            if isinstance(const, types.CodeType):
                names |= self._code(name, const)
            else:
                self.value(f"{name}.const", const)
        return names

    def kind(self, kind: type) -> None:
        """A class, by its name and, where it is not one of the known libraries', its sources and attributes."""
        self.add("class", _qualified(kind))
        if self._again("class", kind):
            return
        for base in kind.__mro__:
            self._source(base)
            for name, value in sorted(vars(base).items()) if _origin(base) == OWN else ():
                if isinstance(value, staticmethod | classmethod):
                    value = value.__func__
                if isinstance(value, property | functools.cached_property):
                    value = value.fget if isinstance(value, property) else value.func
                if (name in SPECIAL or not name.startswith(("__", "_abc"))) and not inspect.isdatadescriptor(value):
                    self.value(f"{base.__qualname__}.{name}", value)

    def _source(self, value: Any) -> None:
        known, versions = origin = _origin(value)
        if known:
            return
        try:
            source = Path(inspect.getsourcefile(value) or "")
        except (TypeError, OSError):  # defined in a shell or notebook
            source = Path()
        if source.is_file() and source not in self.files:
            texts = _package(value) if origin == OWN else {}
            if source not in texts:
                texts |= {source.parent / name: text for name, text in sources(source).items()}
            for path, text in texts.items():
                if path not in self.files:
                    self.files.add(path)
                    self.changed = max(self.changed, path.stat().st_mtime, path.stat().st_ctime)
                    self.add(f"source {path.name}", text)
            self.add("version", versions)
        elif isinstance(value, type) and not source.is_file():
            raise Unidentifiable(f"class {value.__qualname__} has no source file (defined in a shell?)")


# Kinds -> whether the class counts, a text, and the parts inside with what their names end in. The first that fits is taken.
_SHAPES: tuple[tuple[Any, Callable[[Any], tuple[bool, str | None, list[tuple[str, Any]]] | None]], ...] = (
    ((*PLAIN, enum.Enum), lambda v: (True, repr(v), [])),  # of a class of the user's own
    (Mapping, lambda v: (True, str(len(v)), [part for k, x in v.items() for part in ((".key", k), (".value", x))])),
    (list | tuple, lambda v: (True, str(len(v)), [("", inside) for inside in v])),
    (set | frozenset, lambda v: (False, f"{type(v).__qualname__} {sorted(map(repr, v))}", [])),
    (functools.partial, lambda v: (False, None, [("", [v.func, v.args, v.keywords])])),
    (types.MethodType, lambda v: (False, None, [("", [v.__func__, v.__self__])])),
    (types.BuiltinFunctionType | np.ufunc | torch._C.ScriptMethod, lambda v: (False, _qualified(v), [])),
    (logging.Logger, lambda v: (False, v.name, [])),
    (object, lambda v: (True, None, [(f".{f.name}", getattr(v, f.name)) for f in fields(v)]) if is_dataclass(v) else None),
)


def _qualified(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', repr(value))}"


def _origin(value: Any) -> tuple[bool, str]:
    """Whether a class, function or module is Python's or of KNOWN; if not, and it is not OWN, its distributions with versions."""
    name = str(value.__name__ if isinstance(value, types.ModuleType) else value.__module__)
    if (top := name.split(".")[0]) in LIBRARIES:
        return True, ""
    if not SITE & set(Path(getattr(sys.modules.get(name), "__file__", None) or "").parts):
        return OWN
    return False, ", ".join(f"{one} {metadata.version(one)}" for one in sorted(set(installed().get(top, []))))


def _package(value: Any) -> dict[Path, str]:
    """File -> text, of the whole package that a class, function or module is of; empty outside of a package."""
    module = sys.modules.get(value.__name__ if isinstance(value, types.ModuleType) else value.__module__)
    folders = getattr(sys.modules.get(str(getattr(module, "__package__", "")).split(".")[0]), "__path__", ())
    files = [path for one in folders for path in sorted(Path(one).rglob("*.py")) if not SITE & set(path.parts)]
    return {path: path.read_text(encoding="utf-8", errors="surrogateescape") for path in files}


@functools.cache
def _usual(feedback: bool) -> frozenset[str]:
    """Attributes that every module has, or that every CNNF has, whose settings ``gram_key`` tells apart."""
    return frozenset(vars(CNNF(nn.Sequential(nn.Linear(1, 1))) if feedback else nn.Module()))
