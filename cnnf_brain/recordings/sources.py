"""The words of ``--recordings`` -> Recordings.

A word is ``[REGION=]SOURCE[:SESSION]``; a source is ``simulated``, ``MajajHong2015.public``, ``V4_compact_models``
(downloaded), a folder in the layout of that repository, or a NetCDF assembly (``.nc``, or a folder with one). Without
``REGION=`` a source is taken for every region. ``auto`` is decided before it comes here (`public_available`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cnnf_brain.checks import near, unknown
from cnnf_brain.recordings import assembly, majaj, simulated, v4_compact
from cnnf_brain.types import Recordings

NAMES = (simulated.NAME, majaj.NAME, v4_compact.NAME)


@dataclass(frozen=True)
class Source:
    """One source for one region; ``kind`` is ``simulated``, ``majaj``, ``v4_compact`` or ``assembly``.

    ``path`` is a file or folder, None for what is embedded or downloaded; ``session`` None where none was named.
    """

    region: str
    kind: str
    path: Path | None = None
    session: str | None = None


def parse_sources(words: Sequence[str], regions: Sequence[str], session: Sequence[str] | None = None) -> list[Source]:
    """What is to be read for each region, in the order of the regions; nothing is opened but folders.

    Parameters
    ----------
    words : sequence of str
        As after ``--recordings``.
    regions : sequence of str
        The regions asked for.
    session : sequence of str, optional
        As after ``--session``: for the V4_compact_models sources that name none themselves; several are scored apart.

    Raises
    ------
    ValueError
        Where a word is not understood, a region has no source or was not asked for, or ``session`` applies to nothing.
    FileNotFoundError
        Where a path does not exist.
    """
    found: list[Source] = []
    takes_session = False
    for word in words:
        region, rest = _region_of(word, regions)
        source = _source(rest)
        open_session = source.kind == "v4_compact" and source.session is None
        takes_session = takes_session or open_session
        names = list(session) if session and open_session else [source.session]
        asked = regions if region is None else [region]
        found += [replace(source, region=one, session=name) for name in names for one in asked]
    if session and not takes_session:
        raise ValueError(
            f"session {' '.join(session)} applies to recordings in the layout of {v4_compact.NAME} that name no session "
            f"themselves; {' '.join(words)} has none"
        )
    for region in regions:
        if not any(source.region == region for source in found):
            raise ValueError(f"no recordings are given for region {region}; add {region}=SOURCE")
    if len(set(found)) < len(found):
        raise ValueError(f"recordings {' '.join(words)}: the same source is given twice for a region")
    return sorted(found, key=lambda source: list(regions).index(source.region))


def check_sources(words: Sequence[str], regions: Sequence[str], session: Sequence[str] | None = None) -> list[Source]:
    """`parse_sources`, and all that can be known of these sources without a download or reading responses and images.

    Call it before other long work: paths, regions, sessions, the form of an assembly, its image files, and whether
    brainscore-vision is installed where it is needed.

    Parameters, and the order of the result, are those of `parse_sources`; the errors are those of `load`.
    """
    sources = parse_sources(words, regions, session)
    for source in sources:
        _check_region(source)
        if source.kind == "assembly":
            assert source.path is not None
            assembly.check_assembly(source.path, source.region)
        elif source.kind == "v4_compact":
            v4_compact.choose_session(source.path, source.session)
        elif source.kind == "majaj":
            majaj.check_installed()
    return sources


def load(words: Sequence[str], regions: Sequence[str], session: Sequence[str] | None = None) -> dict[str, list[Recordings]]:
    """Recordings for each region, all images checked; several for a region are to be scored apart.

    Parameters are those of `parse_sources`. Nothing falls back: each source works or raises.

    Raises
    ------
    ValueError
        As `parse_sources`; where a source lacks the region (those it has are listed), a session does not exist, an
        image cannot be decoded, or the data are damaged or contradict each other.
    OSError
        Where a file does not exist or a download fails.
    ImportError
        Where brainscore-vision is needed and not installed.
    """
    loaded: dict[str, list[Recordings]] = {region: [] for region in regions}
    sources = check_sources(words, regions, session)
    checked: set[Source] = set()
    for source in sources:
        recordings = _load(source)
        if replace(source, region="") not in checked and not recordings.simulated:
            recordings.images.check()
        checked.add(replace(source, region=""))
        loaded[source.region].append(recordings)
    return loaded


def public_available() -> tuple[bool, str]:
    """Whether ``auto`` can take the public recordings, and the reason (with the size of a download), in about 2 s.

    The public recordings are MajajHong2015.public, which have both V4 and IT.
    """
    return majaj.majaj_available()


def _region_of(word: str, regions: Sequence[str]) -> tuple[str | None, str]:
    """``IT=rest`` -> IT, rest; without a region None. A path with '=' can be written ./like=this."""
    match = re.fullmatch(r"(\w+)=(.*)", word)
    if match is None:
        return None, word
    if match[1] not in regions:
        raise unknown("region", match[1], regions, where=f"recordings {word!r} (these are the regions asked for)")
    return match[1], match[2]


def _source(word: str) -> Source:
    """The source that a word without region names; its region stays open."""
    if word == "auto":
        raise ValueError("recordings 'auto' stand alone; name the sources, or leave the others out")
    if word == simulated.NAME:
        return Source("", "simulated")
    if word == majaj.NAME:
        return Source("", "majaj")
    name, session = word, None
    if not Path(word).exists() and ":" in word:
        name, session = word.rsplit(":", 1)
        if not session:
            raise ValueError(f"recordings {word!r}: no session after ':'")
    if name == v4_compact.NAME and not Path(name).exists():
        return Source("", "v4_compact", None, session)
    return _path_source(name, session)


def _path_source(name: str, session: str | None) -> Source:
    path = Path(name)
    if not path.exists():
        meant = near(name, NAMES, n=1)
        hint = f"; did you mean {meant[0]}?" if meant else "."
        raise FileNotFoundError(
            f"recordings {name!r}: there is no such file or folder{hint} "
            f"Expected {', '.join(NAMES)}, a folder in the layout of {v4_compact.NAME}, or an assembly (.nc)"
        )
    if path.is_dir() and v4_compact.is_v4_compact(path):
        return Source("", "v4_compact", path, session)
    if session is not None:
        raise ValueError(f"recordings '{name}:{session}': only folders in the layout of {v4_compact.NAME} have sessions")
    if path.suffix == ".nc" or (path.is_dir() and any(path.glob("*.nc"))):
        return Source("", "assembly", path)
    raise ValueError(
        f"recordings {name!r}: expected a folder in the layout of {v4_compact.NAME} (images/, responses_*/) or an "
        "assembly (.nc); docs/your-recordings.md shows how to write one"
    )


def _check_region(source: Source) -> None:
    """Regions are known beforehand for all but assemblies: an error before anything is read or downloaded."""
    known = {"simulated": tuple(simulated.N_NEUROIDS), "majaj": majaj.REGIONS, "v4_compact": (v4_compact.REGION,)}
    if source.kind in known and source.region not in known[source.kind]:
        names = {"simulated": simulated.NAME, "majaj": majaj.NAME, "v4_compact": str(source.path or v4_compact.NAME)}
        raise unknown("region", source.region, known[source.kind], where=names[source.kind])


def _load(source: Source) -> Recordings:
    if source.kind == "simulated":
        return simulated.simulated(source.region)
    if source.kind == "majaj":
        return majaj.load_majaj(source.region)
    if source.kind == "v4_compact":
        return v4_compact.load_v4_compact(source.path, source.session)
    assert source.path is not None
    return assembly.read_assembly(source.path, source.region)
