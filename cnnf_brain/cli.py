"""What the command lines share: flags made from the fields of a record, errors as one line, and ``cnnf-brain``."""

from __future__ import annotations

import argparse
import math
import operator
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from cnnf_brain.checks import unknown

COMMANDS = ("compare", "robustness", "visualize", "report", "submit")
INTERRUPTED = 130
STOPPED = 75  # EX_TEMPFAIL: stopped by a signal and saved; nothing is wrong, start it again
NOT_GIVEN = None
_LIMITS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "above": (operator.gt, "above {:g}"),
    "least": (operator.ge, "{:g} or above"),
    "most": (operator.le, "{:g} or below"),
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
    """An argparse type: a finite number, ``above`` (greater than), ``least`` (at least) or ``most`` where these are set."""

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


def run(work: Callable[[], int], *expected: type[Exception]) -> int:
    """The exit code of a command: that of ``work``, 1 with one line on stderr for an error of the user's world, 130 for Ctrl-C."""
    errors: tuple[type[Exception], ...] = (ValueError, OSError, ImportError, *expected)
    try:
        return work()
    except errors as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is finished", file=sys.stderr)
        return INTERRUPTED


def main(argv: Sequence[str] | None = None) -> int:
    """``cnnf-brain COMMAND ...``: the same as ``python -m cnnf_brain.COMMAND ...``."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="cnnf-brain",
        usage="cnnf-brain COMMAND ...",
        description="CNN-F and its neural predictivity. Each command has a --help of its own.",
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=", ".join(COMMANDS))
    module = f"cnnf_brain.{parser.parse_args(words[:1]).command}"
    found = find_spec(module)
    if found is not None and found.submodule_search_locations is not None:  # a folder of modules
        module += ".__main__"
    code: int = import_module(module).main(words[1:])
    return code
