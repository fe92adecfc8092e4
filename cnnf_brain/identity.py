"""What tells one network from another: a hash over all that its features depend on, or no hash where that cannot be known.

Architecture, weights, and the plain attributes of every module; functions by their code, closure and defaults; the sources of
classes and functions that are neither torch's nor this package's own. A hook, or an attribute of a kind that is not known here,
makes a network unidentifiable: its features are never taken from a cache.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import inspect
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnf_brain.model.feedback import CNNF

KNOWN = ("torch", "torchvision", "cnnf_brain", "builtins", "numpy", "collections", "functools")
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
    whole = _Hash()
    whole.add("code", code)
    whole.add("architecture", re.sub(r" at 0x[0-9a-f]+", "", repr(module)))
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        whole.value(name, tensor)
    machinery = vars(nn.Module())
    for path, part in module.named_modules():
        _refuse_hooks(path, part)
        whole.kind(type(part))
        for name in sorted(vars(part).keys() - machinery) if not isinstance(part, CNNF) else ():
            whole.value(f"{path}.{name}", getattr(part, name))
        if "forward" in vars(part):  # replaced on the object itself
            whole.value(f"{path}.forward", vars(part)["forward"])
    return whole.hexdigest()


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over architecture, parameters and buffers alone."""
    whole = _Hash()
    whole.add("architecture", re.sub(r" at 0x[0-9a-f]+", "", repr(module)))
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        whole.value(name, tensor)
    return whole.hexdigest()


def _refuse_hooks(path: str, module: nn.Module) -> None:
    if module._forward_hooks or module._forward_pre_hooks:
        raise Unidentifiable(f"{f'module {path!r}' if path else 'the network itself'} has a forward hook")


class _Hash:
    """SHA-256 over named values, each with its type and length, so that no two lists of values run into each other."""

    def __init__(self) -> None:
        self.whole = hashlib.sha256()
        self.hexdigest = self.whole.hexdigest
        self.seen: set[int] = set()

    def add(self, name: str, content: str | bytes) -> None:
        raw = content.encode() if isinstance(content, str) else content
        self.whole.update(f"{name} {len(raw)} ".encode() + raw)

    def value(self, name: str, value: Any) -> None:
        """Any value; Unidentifiable where its kind is not known."""
        if isinstance(value, Tensor | np.ndarray):
            self._array(name, torch.as_tensor(value))
        elif isinstance(value, PLAIN) or type(value) in TORCH or isinstance(value, enum.Enum):
            self.add(name, f"{type(value).__qualname__} {value!r}")
        elif isinstance(value, np.generic):
            self._array(name, torch.as_tensor(value.item()))
        elif isinstance(value, nn.Module):
            self.add(name, network_identity(value))
        elif id(value) in self.seen:  # a value within itself
            self.add(name, "again")
        else:
            self.seen.add(id(value))
            self._structure(name, value)

    def _structure(self, name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            self.add(name, f"{type(value).__qualname__} {len(value)}")
            for key, inside in value.items():
                self.value(f"{name}.key", key)
                self.value(f"{name}.value", inside)
        elif isinstance(value, list | tuple):
            self.add(name, f"{type(value).__qualname__} {len(value)}")
            for inside in value:
                self.value(name, inside)
        elif isinstance(value, set | frozenset):
            self.add(name, f"{type(value).__qualname__} {sorted(map(repr, value))}")
            if not all(isinstance(inside, PLAIN) for inside in value):
                raise Unidentifiable(f"{name} is a set of values that have no order")
        elif isinstance(value, functools.partial):
            self.value(name, [value.func, value.args, value.keywords])
        elif isinstance(value, types.MethodType):
            self.value(name, value.__func__)  # what it is bound to is an attribute or a module of its own
        elif isinstance(value, types.FunctionType):
            self._function(name, value)
        elif isinstance(value, types.BuiltinFunctionType | np.ufunc | torch._C.ScriptMethod):
            self.add(name, f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', repr(value))}")
        elif isinstance(value, type):
            self.kind(value)
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

    def _array(self, name: str, tensor: Tensor) -> None:
        self.add(name, f"{tensor.dtype} {tuple(tensor.shape)}")
        if tensor.device.type == "meta":
            raise Unidentifiable(f"{name} is on the meta device, without values")
        self.whole.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)

    def _function(self, name: str, function: types.FunctionType) -> None:
        """By code, closure, defaults, and the source file of its module."""
        self.add(name, f"{function.__module__}.{function.__qualname__}")
        self._code(name, function.__code__)
        for cell in function.__closure__ or ():
            self.value(f"{name}.closure", cell.cell_contents)
        self.value(f"{name}.defaults", [function.__defaults__, function.__kwdefaults__])
        self._source(function)

    def _code(self, name: str, code: types.CodeType) -> None:
        self.add(name, f"{code.co_names} {code.co_varnames} {code.co_freevars}")
        self.add(name, code.co_code)
        for const in code.co_consts:
            if isinstance(const, types.CodeType):
                self._code(name, const)
            else:
                self.value(f"{name}.const", const)

    def kind(self, kind: type) -> None:
        """A class, by its name and, where it is not one of the known libraries', the source file."""
        self.add("class", f"{kind.__module__}.{kind.__qualname__}")
        self._source(kind)

    def _source(self, value: Any) -> None:
        if value.__module__.split(".")[0] in KNOWN:
            return
        try:
            source = inspect.getsourcefile(value)
        except TypeError:  # defined in a shell or notebook
            source = None
        if source and Path(source).is_file():
            self.add("source", Path(source).read_bytes())
        elif isinstance(value, type):
            raise Unidentifiable(f"class {value.__qualname__} has no source file (defined in a shell?)")
