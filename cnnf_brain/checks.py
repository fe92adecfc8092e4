"""One form for errors about names: what was given, what is known, what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
