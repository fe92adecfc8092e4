"""What tells one network from another: a hash over all that its features depend on, or no hash where that cannot be known.

Architecture, weights, and the plain attributes of every module; functions by their code, closure, defaults and the
globals that they read; the sources of classes and functions that are neither Python's, torch's nor this package's own, with
what they import from beside themselves. A hook, or an attribute of a kind that is not known here,
makes a network unidentifiable: its features are never taken from a cache.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import inspect
import logging
import re
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.user_code import sources, version_of

KNOWN = ("torch", "torchvision", "cnnf_brain", "builtins", "numpy")
PLAIN = (type(None), bool, int, float, complex, str, bytes, Path)
TORCH = (type(...), torch.dtype, torch.device, torch.Size, torch.memory_format, torch.layout, slice, range)


class Unidentifiable(ValueError):
    """A part of a network that no hash can stand for; the message says which."""


def network_identity(module: nn.Module, code: bytes = b"") -> str:
    """SHA-256 over all that a network's features depend on, but for the settings of a CNNF's feedback.

    Parameters
    ----------
    module
        The network.
    code
        Of the user, beside the sources of the module's classes: what made the network.

    Raises
    ------
    Unidentifiable
        A hook, or an attribute whose content cannot be hashed.
    """
    if torch.nn.modules.module._global_forward_hooks or torch.nn.modules.module._global_forward_pre_hooks:
        raise Unidentifiable("torch has a forward hook for all modules")
    whole = _Hash()
    whole.add("code", code)
    whole.module("", module)
    return whole.hexdigest()


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over architecture, parameters and buffers alone."""
    whole = _Hash()
    whole.weights(module)
    return whole.hexdigest()


def _refuse_hooks(path: str, module: nn.Module) -> None:
    if module._forward_hooks or module._forward_pre_hooks:
        raise Unidentifiable(f"{f'module {path!r}' if path else 'the network itself'} has a forward hook")


class _Hash:
    """SHA-256 over named values, each with its type and length, so that no two lists of values run into each other."""

    def __init__(self) -> None:
        self.whole = hashlib.sha256()
        self.hexdigest = self.whole.hexdigest
        self.seen: dict[int, tuple[int, Any]] = {}  # by identity; values are held, so that no other takes their place
        self.files: set[Path] = set()
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
            _refuse_hooks(name, part)
            self.kind(type(part))
            beside = _of_torch() | (_of_feedback() if isinstance(part, CNNF) else frozenset())
            for attribute in sorted(vars(part).keys() - beside):  # "forward" too, where it was replaced on the object
                self.value(f"{name}.{attribute}", vars(part)[attribute])

    def value(self, name: str, value: Any) -> None:
        """Any value; Unidentifiable where its kind is not known."""
        if isinstance(value, Tensor | np.ndarray | np.generic):
            self._array(name, value)
        elif type(value) in PLAIN or type(value) in TORCH or isinstance(value, Path):
            self.add(name, f"{type(value).__qualname__} {value!r}")
        elif isinstance(value, nn.Module):
            if id(value) in self.modules:
                self.add(name, f"module {self.modules[id(value)]}")
            else:
                self.module(name, value)
        elif not self._again(name, value):
            self._structure(name, value)
            if not isinstance(value, type | types.ModuleType):  # what was set on it beside its content
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
        if isinstance(value, (*PLAIN, enum.Enum)):  # of a class of one's own
            self.kind(type(value))
            self.add(name, f"{value!r}")
        elif isinstance(value, Mapping):
            self.kind(type(value))
            self.add(name, f"{len(value)}")
            for key, inside in value.items():
                self.value(f"{name}.key", key)
                self.value(f"{name}.value", inside)
        elif isinstance(value, list | tuple):
            self.kind(type(value))
            self.add(name, f"{len(value)}")
            for inside in value:
                self.value(name, inside)
        elif isinstance(value, set | frozenset):
            self.add(name, f"{type(value).__qualname__} {sorted(map(repr, value))}")
            if not all(isinstance(inside, PLAIN) for inside in value):
                raise Unidentifiable(f"{name} is a set of values that have no order")
        elif isinstance(value, functools.partial):
            self.value(name, [value.func, value.args, value.keywords])
        elif isinstance(value, types.MethodType):
            self.value(name, [value.__func__, value.__self__])
        elif isinstance(value, types.FunctionType):
            self._function(name, value)
        elif isinstance(value, types.BuiltinFunctionType | np.ufunc | torch._C.ScriptMethod):
            self.add(name, f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', repr(value))}")
        elif isinstance(value, type):
            self.seen.pop(id(value))
            self.kind(value)
        elif isinstance(value, logging.Logger):
            self.add(name, value.name)
        elif isinstance(value, types.ModuleType):
            self.add(name, value.__name__)
        elif dataclasses.is_dataclass(value):
            self.kind(type(value))
            for one in dataclasses.fields(value):
                self.value(f"{name}.{one.name}", getattr(value, one.name))
        else:
            raise Unidentifiable(
                f"{name} is a {type(value).__module__}.{type(value).__qualname__}, whose content is not known"
            )

    def _array(self, name: str, values: Tensor | np.ndarray | np.generic) -> None:
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
        self.add(name, f"{function.__module__}.{function.__qualname__}")
        names = self._code(name, function.__code__)
        for cell in function.__closure__ or ():
            self.value(f"{name}.closure", cell.cell_contents)
        self.value(f"{name}.defaults", [function.__defaults__, function.__kwdefaults__])
        self._source(function)
        if _own(function):
            for read in sorted(names & function.__globals__.keys()):
                self.value(f"{name}.{read}", function.__globals__[read])

    def _code(self, name: str, code: types.CodeType) -> set[str]:
        """A function's code and that of the functions within it; all names that they read."""
        self.add(name, f"{code.co_names} {code.co_varnames} {code.co_freevars}")
        self.add(name, code.co_code)
        names = set(code.co_names)
        for const in code.co_consts:
            if isinstance(const, types.CodeType):
                names |= self._code(name, const)
            else:
                self.value(f"{name}.const", const)
        return names

    def kind(self, kind: type) -> None:
        """A class, by its name and, where it is not one of the known libraries', its sources and attributes."""
        self.add("class", f"{kind.__module__}.{kind.__qualname__}")
        if self._again("class", kind):
            return
        for base in kind.__mro__:
            self._source(base)
            for name, value in sorted(vars(base).items()) if _own(base) else ():
                if isinstance(value, staticmethod | classmethod):
                    value = value.__func__
                if not name.startswith(("__", "_abc")) and not inspect.isdatadescriptor(value):
                    self.value(f"{base.__qualname__}.{name}", value)

    def _source(self, value: Any) -> None:
        if _known(value):
            return
        try:
            source = inspect.getsourcefile(value)
        except TypeError:  # defined in a shell or notebook
            source = None
        if source and Path(source).is_file():
            if Path(source) in self.files:
                return
            self.files.add(Path(source))
            for name, text in sources(Path(source)).items():
                self.add(f"source {name}", text)
            self.add("version", version_of(_top(value)))
        elif isinstance(value, type):
            raise Unidentifiable(f"class {value.__qualname__} has no source file (defined in a shell?)")


def _top(value: Any) -> str:
    return str(value.__module__).split(".")[0]


def _known(value: Any) -> bool:
    """Whether a class or function is of a library whose version is in the key of what is cached, or of Python."""
    return _top(value) in KNOWN or _top(value) in sys.stdlib_module_names


def _own(value: Any) -> bool:
    """Whether it is of no library: then its globals and attributes may be others in each run."""
    return not _known(value) and not version_of(_top(value))


@functools.cache
def _of_torch() -> frozenset[str]:
    return frozenset(vars(nn.Module()))


@functools.cache
def _of_feedback() -> frozenset[str]:
    """What every CNNF has: its settings, which are told apart from the network."""
    return frozenset(vars(CNNF(nn.Sequential(nn.Linear(1, 1)))))
