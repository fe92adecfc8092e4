"""What the command lines share: flags made from the fields of a record, errors as one line (``--debug``: with their traceback), and
``cnnf-brain``."""

from __future__ import annotations

import argparse
import json
import math
import operator
import re
import sys
import tomllib
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cnnf_brain.checks import RunError, in_short, unknown
from cnnf_brain.io import read_text, reading

COMMANDS = ("compare", "layers", "report", "robustness", "status", "submit", "sweep", "train", "verify", "visualize")
INTERRUPTED = 130
STOPPED = 75  # EX_TEMPFAIL: stopped by a signal and saved; nothing is wrong, start it again
BUG = 70  # EX_SOFTWARE
NOT_GIVEN = None
_FOREIGN = {  # what a RuntimeError of a library says -> what it means, and what to do
    r"(?i)out of memory|can't allocate|not enough memory": "too little memory; take smaller batches or images",
    "DataLoader worker": "a process that loads images was ended from outside, often for want of memory; take fewer workers",
    "(?i)^Dist|gloo|connection (closed|reset) by peer": "another process of this run was lost; start all of them again",
    "CUDA|cuDNN|HIP error": "the device failed; start again, or run on the CPU",
}
_LIMITS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "above": (operator.gt, "above {:g}"),
    "least": (operator.ge, "{:g} or above"),
    "most": (operator.le, "{:g} or below"),
    "below": (operator.lt, "below {:g}"),
}


def add_flags(
    parser: argparse.ArgumentParser,
    record: type,
    *,
    only: Iterable[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """A flag for each field of the dataclass ``record`` that is made by ``types.option``, or for those named in ``only``.

    A flag that is not given is None, so that a card or another record can decide; its help states the default of the field, or the
    one in ``defaults`` (a text says it in words). A field of type ``tuple[int, ...]`` takes one value or more, ``tuple[int, int]``
    two.

    Raises
    ------
    ValueError
        A name in ``only`` that is no such field.
    """
    kinds = typing.get_type_hints(record)
    options = {field.name: field for field in fields(record) if "help" in field.metadata}
    stated = {name: field.default for name, field in options.items()} | dict(defaults or {})
    names = set(options if only is None else only)
    for name in sorted(names - options.keys()):
        raise unknown("option", name, list(options), where=record.__name__)
    for name, field in options.items():
        if name in names:
            _add_flag(parser, field, kinds[name], stated[name])


def _add_flag(parser: argparse.ArgumentParser, field: Field[Any], kind: Any, default: Any) -> None:
    words: dict[str, Any] = {"dest": field.name, "default": NOT_GIVEN}
    about = field.metadata["help"] + ("" if default in (None, MISSING, ()) else f" (default: {_said(default)})")
    words["help"] = about.replace("%", "%%")  # argparse formats it
    words |= {name: field.metadata[name] for name in ("choices", "metavar") if name in field.metadata}
    kind = _without_none(kind)
    if typing.get_origin(kind) is tuple:
        kind, *more = typing.get_args(kind)
        words["nargs"] = "+" if more == [...] else 1 + len(more)
    if kind is bool:
        words["action"] = argparse.BooleanOptionalAction
    else:
        words["type"] = number(kind, field.metadata) if kind in (int, float) else kind
    parser.add_argument(flag_of(field), **words)


def flag_of(field: Field[Any]) -> str:
    """The flag of a field."""
    name: str = field.metadata.get("flag", field.name)
    return "--" + name.replace("_", "-")


def given(args: argparse.Namespace, record: type) -> dict[str, Any]:
    """The fields of ``record`` made by ``types.option`` that were given on the command line, by their names."""
    found = {field.name: getattr(args, field.name, NOT_GIVEN) for field in fields(record) if "help" in field.metadata}
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in found.items() if value is not NOT_GIVEN
    }


def refuse(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    records: Iterable[type],
    why: str,
    *,
    but: Iterable[str] = (),
) -> None:
    """A usage error where a flag of one of the ``records`` was given, except those of the fields named in ``but``."""
    for field in (field for record in records for field in fields(record)):
        if field.name not in set(but) and getattr(args, field.name, NOT_GIVEN) is not NOT_GIVEN:
            parser.error(f"{flag_of(field)} {why}")


def number(kind: type[int] | type[float], limits: Mapping[str, Any]) -> Callable[[str], float]:
    """An argparse type: a finite number, ``above``, ``least`` (at least), ``most`` (at most) or ``below`` where these are set."""

    least, most = limits.get("least"), limits.get("most")
    interval = None if least is None or most is None else f"in [{least:g}, {most:g}]"

    def read(text: str) -> float:
        value = kind(text)
        for name, (holds, words) in _LIMITS.items():
            limit = limits.get(name)
            if limit is not None and not holds(value, limit):
                raise argparse.ArgumentTypeError(f"{text} is not {interval or words.format(limit)}")
        if kind is float and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text} is not finite")
        return value

    read.__name__ = kind.__name__  # argparse names it where a text is no number
    return read


def _without_none(kind: Any) -> Any:
    """The first type of a union that is not None (``int`` of ``int | None``); other types as they are."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        kind = next(member for member in typing.get_args(kind) if member is not types.NoneType)
    return kind


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def as_toml(*records: Any, **more: Any) -> str:
    """A file for ``--config`` that gives the flags of ``records``, and ``more`` (by the names of flags, with ``_``), their values;
    what is None is left out."""
    options = {flag_of(f): getattr(record, f.name) for record in records for f in fields(record) if "help" in f.metadata}
    values = {f"--{name.replace('_', '-')}": value for name, value in more.items()} | options
    lines = [(flag[2:], str(value) if isinstance(value, Path) else value) for flag, value in values.items()]
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in lines if value is not None)


def _as_words(action: argparse.Action, value: Any, path: Path) -> list[str]:
    """The words that give a flag the ``value`` of a TOML file; a ValueError where it takes none of that kind."""
    flag, switch, several = action.option_strings[0], action.nargs == 0, isinstance(value, list)
    if isinstance(value, dict) or isinstance(value, bool) != switch or (several and action.nargs is None):
        kind = "true or false" if switch else "one value" if action.nargs is None else "a value or a list of them"
        raise ValueError(f"{path}: {flag[2:]} = {value!r}, expected {kind}")
    if switch:
        return [word for word in action.option_strings if word.startswith("--no-") != value][:1]
    return [flag, *map(str, value)] if several else [f"{flag}={value}"]


class Parser(argparse.ArgumentParser):
    """The parser of a command: ``--debug`` is for ``run``."""

    def __init__(self, *names: Any, **how: Any) -> None:
        super().__init__(*names, **how)
        self.add_argument("--debug", action="store_true", help="where the command fails, show the traceback as well")

    def parse_with_config(self, argv: Sequence[str]) -> argparse.Namespace:
        """The flags, those of the file that ``--config`` names among them; a usage error where that holds others."""
        about = "flags from a file, a line batch-size = 64 for --batch-size 64; those of the command line come first"
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for parser in (self, first):
            parser.add_argument("--config", type=Path, metavar="FILE.toml", help=about)
        path = first.parse_known_args(argv)[0].config
        try:
            return self.parse_args([*([] if path is None else self._words(path, argv)), *argv])
        except (OSError, ValueError) as error:
            self.error(_told(error))

    def _words(self, path: Path, argv: Sequence[str]) -> list[str]:
        """The entries of a TOML file as words of a command line, but for those that exclude a flag in ``argv``."""
        flags = {flag[2:]: action for action in self._actions for flag in action.option_strings[:1] if flag.startswith("--")}
        known = flags.keys() - {"config", "debug"}
        with reading(path, "TOML", "expected lines such as batch-size = 64"):
            given = {name.replace("_", "-"): value for name, value in tomllib.loads(read_text(path)).items()}
        for name in given:
            if name not in known:
                raise unknown("setting", name, sorted(known), where=str(path))
        kept = {name: value for name, value in given.items() if f"--{name}" not in self._excluded(argv)}
        return [word for name, value in kept.items() for word in _as_words(flags[name], value, path)]

    def _excluded(self, argv: Sequence[str]) -> set[str]:
        """The flags that those in ``argv`` exclude, and themselves."""
        words, groups = {word.partition("=")[0] for word in argv}, self._mutually_exclusive_groups
        names = [{flag for one in group._group_actions for flag in one.option_strings} for group in groups]
        return set[str]().union(*(group for group in names if group & words))

    @classmethod
    def of(cls, text: str | None, program: str | None = None) -> Parser:
        """With the docstring ``text`` as its help: the first line, the flags, then the rest as it stands."""
        summary, _, rest = (text or "").partition("\n")
        how = argparse.RawDescriptionHelpFormatter
        return cls(prog=program, description=summary, epilog=rest, formatter_class=how)


def run(work: Callable[[], int], *, debug: bool = False) -> int:
    """The exit code of a command: that of ``work``; 1 and one line on stderr for an error of the user's world; 130 for Ctrl-C.

    Anything else is a bug of this software: 70, with the traceback and the request to report it. ``debug``: the traceback of any
    error.
    """
    try:
        return work()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is finished", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        told = _told(error)
        if debug or not told:
            traceback.print_exc()
        bug = f"{in_short(error)}. This is a bug of cnnf-brain; please report it, with the lines above and the command"
        print(f"error: {told or bug}", file=sys.stderr)
        return 1 if told else BUG


def _told(error: Exception) -> str:
    """An error of the user's world (files, models, devices, memory, other processes) in one line; empty for a bug."""
    if isinstance(error, OSError) and error.filename is not None and error.filename2 is None:
        return f"{error.filename}: {error.strerror}"  # without the system's number
    if isinstance(error, (ValueError, OSError, ImportError, RunError)):
        return " ".join(str(error).split("\n")) or type(error).__name__
    foreign = f"{type(error).__name__}: {error}" if isinstance(error, RuntimeError) else ""
    said = "out of memory" if isinstance(error, MemoryError) else foreign
    means = next((words for pattern, words in _FOREIGN.items() if re.search(pattern, said)), "")
    return means and f"{means} ({in_short(error)})"


def main(argv: Sequence[str] | None = None) -> int:
    """``cnnf-brain COMMAND ...``: the same as ``python -m cnnf_brain.COMMAND ...``."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="cnnf-brain",
        usage=f"cnnf-brain COMMAND ...\n\nCOMMAND: {', '.join(COMMANDS)}",
        description="CNN-F and its neural predictivity. Each command has a --help of its own.",
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of these")
    module = f"cnnf_brain.{parser.parse_args(words[:1]).command}"
    found = find_spec(module)
    if found is not None and found.submodule_search_locations is not None:  # a folder of modules
        module += ".__main__"
    code: int = import_module(module).main(words[1:])
    return code
