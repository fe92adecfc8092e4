"""What the command lines share: flags made from the fields of a record, errors as one line, and ``cnnf-brain``."""

from __future__ import annotations

import argparse
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from importlib import import_module
from typing import Any

COMMANDS = ("compare", "robustness", "visualize", "report", "submit")
INTERRUPTED = 130
STOPPED = 75  # EX_TEMPFAIL: stopped by a signal and saved; nothing is wrong, start it again
NOT_GIVEN = None


def add_flags(
    parser: argparse.ArgumentParser,
    record: type,
    *,
    only: Iterable[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """A flag for each field of the dataclass ``record`` that is made by ``types.option``, or for those named in ``only``.

    A flag that is not given is None, so that a card or another record can decide; its help states the default of the field, or the
    one in ``defaults`` (a text says it in words).
    """
    kinds = typing.get_type_hints(record)
    names = None if only is None else set(only)
    for field in fields(record):
        if "help" in field.metadata and (names is None or field.name in names):
            _add_flag(parser, field, kinds[field.name], dict(defaults or {}).get(field.name, field.default))


def _add_flag(parser: argparse.ArgumentParser, field: Field[Any], kind: Any, default: Any) -> None:
    words: dict[str, Any] = {"dest": field.name, "default": NOT_GIVEN}
    words["help"] = field.metadata["help"] + ("" if default in (None, MISSING) else f" (default: {_said(default)})")
    words |= {name: field.metadata[name] for name in ("choices", "metavar") if name in field.metadata}
    several = typing.get_origin(kind) is tuple
    kind = _bare(kind)
    if kind is bool:
        words["action"] = argparse.BooleanOptionalAction
    else:
        words["type"] = number(kind, field.metadata) if kind in (int, float) else kind
    if several:
        words["nargs"] = "+"
    parser.add_argument(flag_of(field), **words)


def flag_of(field: Field[Any]) -> str:
    """The flag of a field."""
    return "--" + field.metadata.get("flag", field.name).replace("_", "-")


def given(args: argparse.Namespace, record: type) -> dict[str, Any]:
    """The fields of ``record`` that were given on the command line, by their names."""
    found = {field.name: getattr(args, field.name, NOT_GIVEN) for field in fields(record)}
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

    def read(text: str) -> float:
        value = kind(text)
        above, least, most = (limits.get(name) for name in ("above", "least", "most"))
        if least is not None and most is not None and not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not in [{least:g}, {most:g}]")
        if not math.isfinite(value) or (above is not None and not value > above):
            raise argparse.ArgumentTypeError(
                f"{text} is not above {above:g}" if above is not None else f"{text} is not finite"
            )
        if least is not None and value < least:
            raise argparse.ArgumentTypeError(f"{text} is not {least:g} or above")
        if most is not None and value > most:
            raise argparse.ArgumentTypeError(f"{text} is above {most:g}")
        return value

    read.__name__ = kind.__name__  # argparse names it where a text is no number
    return read


def _bare(kind: Any) -> Any:
    """``int`` of ``int | None`` and of ``tuple[int, ...]``."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) in (typing.Union, tuple):
        return _bare(next(one for one in typing.get_args(kind) if one is not type(None)))
    return kind


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def expected_errors(more: Iterable[type[Exception]] = ()) -> tuple[type[Exception], ...]:
    """Errors of the user's world: arguments, files, libraries that are missing."""
    return (ValueError, OSError, ImportError, *more)


def run(work: Callable[[], int], *expected: type[Exception]) -> int:
    """The exit code of a command: that of ``work``, 1 with one line on stderr for an error of the user's world, 130 for Ctrl-C."""
    try:
        return work()
    except expected_errors(expected) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is finished", file=sys.stderr)
        return INTERRUPTED


def main(argv: Sequence[str] | None = None) -> int:
    """``cnnf-brain COMMAND ...``: the same as ``python -m cnnf_brain.COMMAND ...``."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in COMMANDS:
        asked = bool(words) and words[0] in ("-h", "--help")
        print(f"usage: cnnf-brain {{{','.join(COMMANDS)}}} ...", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    name = words[0] if words[0] == "submit" else f"{words[0]}.__main__"
    code: int = import_module(f"cnnf_brain.{name}").main(words[1:])
    return code
