"""The card inside a file of weights -> one record. Every command and function reads cards through it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cnnf_brain.io import sha256
from cnnf_brain.model import settings

# The feedback's settings besides the number of iterations, as CNNF takes them and as cards hold them.
SETTINGS = tuple(name for name in settings.SETTINGS if name != "iterations")
SMALL = "small"


@dataclass(frozen=True)
class Card:
    """What the trainers wrote about a network, in the form that loading needs; empty where a file has no card.

    ``arch``: ``small``, or torchvision's name. ``iterations``: as trained, 0 for a CNN. ``feedback``: those of SETTINGS that are
    on the card of a CNN-F (a CNN was trained without). ``normalisation``: of the small net. ``image_size``, ``resize``: pixels,
    see ``images.Preprocessing``. ``started_from``: the weights that training began with, a published name, ``none`` (random
    weights) or a file, and ``started_sha256`` of such a file. In the card a file is named by its path relative to the output
    folder, where the weights and the card are, so that it is found from any working directory; ``read_card`` puts the folder
    before it. Older cards name it relative to the working directory of the training. ``top1``: validation accuracy
    (shares) at iterations 0 to N. ``content``: all of it.
    """

    arch: str | None = None
    iterations: int | None = None
    feedback: Mapping[str, Any] = field(default_factory=dict)
    normalisation: str | None = None
    image_size: int | None = None
    resize: int | None = None
    started_from: str | None = None
    started_sha256: str | None = None
    top1: tuple[float, ...] = ()
    content: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Card:
        """The record of a card as ``trainer.card.save_weights`` writes it."""
        if not content:
            return cls()
        configuration = content.get("configuration", {})
        trained = configuration.get("feedback", {})
        merged = {**trained, **content.get("feedback", {})}
        start = content.get("started_from", {})
        named = start.get("weights", configuration.get("weights"))  # older cards name a file by its SHA-256 alone
        return cls(
            arch=content.get("arch", SMALL if "dataset" in configuration else None),
            iterations=merged.get("iterations"),
            feedback={name: merged[name] for name in SETTINGS if name in merged} if merged.get("iterations") else {},
            normalisation=trained.get("normalisation"),
            image_size=content.get("image_size"),
            resize=content.get("resize"),
            started_from=None if named is None or named.startswith("sha256:") else named,
            started_sha256=start.get("sha256", named.removeprefix("sha256:") if str(named).startswith("sha256:") else None),
            top1=tuple(content.get("validation_accuracy", ())),
            content=content,
        )


def read_card(path: str | Path) -> Card:
    """The card in a safetensors file that our trainers wrote; an empty one where the file carries none.

    A file in ``started_from`` is looked for relative to the folder of ``path``, then to the working directory (older cards).
    Where there are two, the one with the hash on the card is taken; where there is none, the path from the folder.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        A damaged file, or a card that is none.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights {path}: no such file")
    if path.suffix != ".safetensors":
        return Card()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            content = json.loads((file.metadata() or {}).get("card", "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"weights {path}: damaged or not a .safetensors file ({error}); get it again") from error
    try:
        card = Card.of(content)
        return replace(card, started_from=_found(card, path))
    except (AttributeError, TypeError) as error:
        raise ValueError(f"weights {path}: the card inside is not of the form that the trainers write ({error})") from error


def _found(card: Card, path: Path) -> str | None:
    """``started_from`` of the card in the file ``path`` as a path from the working directory, absolute where ``path`` is."""
    named = card.started_from
    if named is None or not Path(named).suffix:  # random weights, or a published name
        return named
    beside = os.path.normpath(path.resolve().parent / named)
    places = [beside if path.is_absolute() else os.path.relpath(beside), named]
    there = [place for place in places if Path(place).is_file()]
    if len(there) == 2 and card.started_sha256 is not None and not Path(there[0]).samefile(there[1]):
        there = [place for place in there if sha256(Path(place)) == card.started_sha256]
    return (there or places)[0]
