"""Recordings from arrays, files, public sources or simulation; this package never meets a network.

A source is ``simulated``, ``simulated-readout``, ``MajajHong2015.public``, ``V4_compact_models`` (downloaded), a folder in the
layout of that repository, a NetCDF assembly (``.nc``, or a folder with one), a dissimilarity matrix (``.npy``), or a name that an
installed package adds. ``load_recordings`` takes one source. The command takes words ``[REGION=]SOURCE[:SESSION]`` (``load``); a
source without ``REGION=`` is taken for every region.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cnnf_brain.checks import load_offered, near, offered, unknown
from cnnf_brain.recordings import assembly, majaj, simulated, v4_compact
from cnnf_brain.recordings.assembly import UncheckedImagesWarning, read_assembly, write_assembly
from cnnf_brain.recordings.majaj import load_majaj, public_available
from cnnf_brain.recordings.record import Recordings
from cnnf_brain.recordings.simulated import simulated as simulated_recordings
from cnnf_brain.recordings.v4_compact import load_v4_compact

__all__ = [
    "Recordings",
    "Source",
    "UncheckedImagesWarning",
    "check_sources",
    "load",
    "load_majaj",
    "load_recordings",
    "load_v4_compact",
    "parse_sources",
    "public_available",
    "read_assembly",
    "simulated_recordings",
    "write_assembly",
]

KINDS = {simulated.NAME: "simulated", simulated.READOUT: "readout", majaj.NAME: "majaj", v4_compact.NAME: "v4_compact"}
NAMES = tuple(KINDS)
EMBEDDED = {"simulated": simulated.simulated, "readout": simulated.readout}  # kinds that the package makes itself
REGIONS = {
    "simulated": tuple(simulated.N_SITES),
    "readout": tuple(simulated.READ),
    "majaj": majaj.REGIONS,
    "v4_compact": (v4_compact.REGION,),
}


@dataclass(frozen=True)
class Source:
    """One source for one region; ``kind`` is a value of ``KINDS``, ``assembly``, ``rdm``, or ``offered``.

    ``path`` is a file or folder (of what is offered its name), None for what is embedded or downloaded. ``session`` is None
    where none was named.
    """

    region: str
    kind: str
    path: Path | None = None
    session: str | None = None

    @property
    def takes_session(self) -> bool:
        """Whether a session can still be named."""
        return self.kind == "v4_compact" and self.session is None


def load_recordings(
    source: str | Path, *, region: str | None = None, session: str | Sequence[str] | None = None
) -> Recordings | list[Recordings]:
    """Recordings of one source, with all images checked.

    Parameters
    ----------
    source : str or path
        ``"simulated"``, ``"simulated-readout"``, ``"MajajHong2015.public"``, ``"V4_compact_models"`` (the last two are downloaded
        once), a folder in the layout of V4_compact_models, a NetCDF assembly that ``write_assembly`` made, a dissimilarity matrix
        (``Recordings.read_rdm``), or a name that an installed package adds.
    region : str, optional
        The region to take. Default: all that the source has; a dissimilarity matrix does not say, and needs one.
    session : str or sequence of str, optional
        For V4_compact_models and its layout: the sessions to take. Default: the only session, if the folder has one.

    Returns
    -------
    Recordings or list of Recordings
        A list where several regions or sessions are taken. ``compare`` takes either.

    Raises
    ------
    ValueError
        An unknown region or session (those that exist are listed), a session for a source that has none, an image that
        cannot be decoded, or data that are damaged or contradict each other.
    OSError
        A file does not exist, or a download fails.
    ImportError
        brainscore-vision is needed and not installed.

    Examples
    --------
    >>> load_recordings("simulated", region="V4")
    Recordings(simulated: V4, 320 images, 88 sites, up to 10 repeats, simulated)
    """
    named = _source(str(source))
    sessions = [str(session)] if isinstance(session, str | int) else session
    if sessions and not named.takes_session:
        raise ValueError(
            f"recordings {str(source)!r}: session {' '.join(sessions)} applies to {v4_compact.NAME} without a session"
        )
    if named.kind == "rdm" and not region:
        raise ValueError(f"recordings {str(source)!r}: a dissimilarity matrix does not name its region; give region")
    found = _load_all(_check(_expanded(named, [region] if region else _regions_of(named), sessions)))
    return found[0] if len(found) == 1 else found


def load(words: Sequence[str], regions: Sequence[str], session: Sequence[str] | None = None) -> dict[str, list[Recordings]]:
    """Recordings for each region, all images checked; several for a region are to be scored apart.

    Arguments as in ``parse_sources``, errors as in ``load_recordings``. Nothing falls back: each source works or raises.
    """
    sources = check_sources(words, regions, session)
    loaded: dict[str, list[Recordings]] = {region: [] for region in regions}
    for source, recordings in zip(sources, _load_all(sources), strict=True):
        loaded[source.region].append(recordings)
    return loaded


def check_sources(words: Sequence[str], regions: Sequence[str], session: Sequence[str] | None = None) -> list[Source]:
    """``parse_sources``, and all that can be known of these sources without a download or reading responses and images.

    Call it before other long work. It checks paths, regions, sessions, the form of an assembly, its image files, and that
    brainscore-vision is installed where it is needed.
    """
    return _check(parse_sources(words, regions, session))


def parse_sources(words: Sequence[str], regions: Sequence[str], session: Sequence[str] | None = None) -> list[Source]:
    """What is to be read for each region, in the order of the regions; nothing is opened but folders.

    ``words``: ``[REGION=]SOURCE[:SESSION]``. ``session``: for the V4_compact_models sources that name none themselves; several are
    scored apart. A ValueError: a word that is not understood, a region without a source or not asked for, a ``session`` that
    applies to nothing. A FileNotFoundError: a path that does not exist.
    """
    named = [(region, _source(rest)) for region, rest in (_region_of(word, regions) for word in words)]
    found = [one for region, source in named for one in _expanded(source, [region] if region else regions, session)]
    if session and not any(source.takes_session for _, source in named):
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


def _expanded(source: Source, regions: Sequence[str], sessions: Sequence[str] | None) -> list[Source]:
    """A source for each session that it leaves open and each region."""
    names = sessions if sessions and source.takes_session else [source.session]
    return [replace(source, region=region, session=name) for name in names for region in regions]


def split_region(word: str) -> tuple[str | None, str]:
    """``IT=rest`` -> IT, rest; without a region None. A path with '=' can be written ./like=this."""
    match = re.fullmatch(r"(\w+)=(.*)", word)
    return (match[1], match[2]) if match else (None, word)


def _region_of(word: str, regions: Sequence[str]) -> tuple[str | None, str]:
    """``split_region``, of the regions asked for."""
    region, rest = split_region(word)
    if region is not None and region not in regions:
        raise unknown("region", region, regions, where=f"recordings {word!r} (these are the regions asked for)")
    return region, rest


def _source(word: str) -> Source:
    """The source that a word without region names; its region stays open."""
    if word == "auto":
        raise ValueError("recordings 'auto' stand alone; name the sources, or leave the others out")
    if word in NAMES[:3]:
        return Source("", KINDS[word])
    if word in offered("recordings"):
        return Source("", "offered", Path(word))
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
        known = [*NAMES, *offered("recordings")]
        meant = near(name, known, n=1)
        hint = f"; did you mean {meant[0]}?" if meant else "."
        raise FileNotFoundError(
            f"recordings {name!r}: there is no such file or folder{hint} "
            f"Expected {', '.join(known)}, a folder in the layout of {v4_compact.NAME}, or an assembly (.nc)"
        )
    if path.is_dir() and v4_compact.is_v4_compact(path):
        return Source("", "v4_compact", path, session)
    if session is not None:
        raise ValueError(f"recordings '{name}:{session}': only folders in the layout of {v4_compact.NAME} have sessions")
    if path.suffix == ".nc" or (path.is_dir() and any(path.glob("*.nc"))):
        return Source("", "assembly", path)
    if path.suffix == ".npy":
        return Source("", "rdm", path)
    raise ValueError(
        f"recordings {name!r}: expected a folder in the layout of {v4_compact.NAME} (images/, responses_*/), an "
        "assembly (.nc) or a dissimilarity matrix (.npy); docs/your-recordings.md shows how to write one"
    )


def _regions_of(source: Source) -> tuple[str, ...]:
    """The regions that a source has. An assembly is checked for this."""
    if source.kind == "rdm":
        return (source.region,)
    if source.kind in REGIONS:
        return REGIONS[source.kind]
    assert source.path is not None
    if source.kind == "offered":
        return tuple(load_offered("recordings", str(source.path)).regions)
    return assembly.check_assembly(source.path)


def _check(sources: list[Source]) -> list[Source]:
    for source in sources:
        known = _regions_of(source)
        if source.region not in known:
            where = source.path or next(name for name, kind in KINDS.items() if kind == source.kind)
            raise unknown("region", source.region, known, where=str(where))
        if source.kind == "v4_compact":
            v4_compact.choose_session(source.path, source.session)
        elif source.kind == "majaj":
            majaj.check_installed()
    return sources


def _load_all(sources: Sequence[Source]) -> list[Recordings]:
    """Recordings of each source; the images of a source are checked once for all its regions."""
    found = [_load(source) for source in sources]
    whole = {replace(source, region=""): recordings.images for source, recordings in zip(sources, found, strict=True)}
    for source, images in whole.items():
        if source.kind not in EMBEDDED:
            images.check()
    return found


def _load(source: Source) -> Recordings:
    if source.kind == "v4_compact":
        return v4_compact.load_v4_compact(source.path, source.session)
    if source.kind == "offered":
        found = load_offered("recordings", str(source.path))(source.region)
        if not isinstance(found, Recordings) or found.region != source.region:
            raise ValueError(
                f"recordings {source.path}: its function gave {found!r}, expected Recordings of {source.region}"
            )
        return found
    if source.kind == "assembly":
        assert source.path is not None
        return assembly.read_assembly(source.path, source.region)
    if source.kind == "rdm":
        assert source.path is not None
        return Recordings.read_rdm(source.path, source.region)
    return EMBEDDED.get(source.kind, majaj.load_majaj)(source.region)
