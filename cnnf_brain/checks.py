"""One form for errors about names (what was given, what is known, what was probably meant), and for what differs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def near(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The known names nearest to ``name``."""
    return difflib.get_close_matches(name, list(known), n=n, cutoff=0.4)


def unknown(what: str, name: str, known: Iterable[str], where: str = "") -> ValueError:
    """A ValueError: ``layer 'x' is not in vgg16; did you mean 'y'? Known: ...`` (long lists are cut)."""
    known = list(known)
    meant = near(name, known)
    hint = f"; did you mean {' or '.join(map(repr, meant))}?" if meant else "."
    listed = ", ".join(known[:40]) + (f", … ({len(known)} in all)" if len(known) > 40 else "")
    return ValueError(f"{what} {name!r} is not known{' in ' + where if where else ''}{hint} Known: {listed or 'none'}")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``name: old there, new now`` for every entry of two configurations that differs (nested ones as ``a.b``)."""
    found = []
    for name in [*old, *(name for name in new if name not in old)]:
        a, b = old.get(name, "absent"), new.get(name, "absent")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += [f"{name}.{text}" for text in differences(a, b)]
        elif a != b:
            found.append(f"{name}: {a} there, {b} now")
    return found
