"""How a comparison's recordings, layers and networks are called in its table and figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cnnf_brain.types import LayerAt

WIDEST = 28  # letters of a name in the table


def short_names(sources: Sequence[str]) -> dict[str, str]:
    """Each source by the end of its path, as much of it as tells it from the others."""
    distinct = list(dict.fromkeys(sources))
    for depth in range(1, max(source.count("/") for source in distinct) + 2):
        found = {source: cut("/".join(source.rstrip("/").split("/")[-depth:]), WIDEST * depth) for source in distinct}
        if len(set(found.values())) == len(distinct):
            return found
    return {source: source for source in distinct}


def network_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each row's ``network`` is called in a figure: its name, with its ``weights`` where one name has several."""
    pairs = {(row["network"], row["weights"]) for row in rows}
    several = len({network for network, _ in pairs}) < len(pairs)
    return [f"{row['network']} [{row['weights']}]" if several else str(row["network"]) for row in rows]


def weights_named(rows: Sequence[Mapping[str, Any]]) -> str:
    """A sentence that says which weights each network has."""
    found = dict.fromkeys((row["network"], row["weights"]) for row in rows)
    return "Weights: " + "; ".join(f"{network}: {weights}" for network, weights in found) + "."


def cut(text: str, longest: int) -> str:
    """``text``, its beginning left out where it is longer."""
    return text if len(text) <= longest else "…" + text[1 - longest :]


def layer_and_iteration(layer: str) -> tuple[str, str]:
    """A layer's name and its iteration as the table shows them; no iteration where it was chosen on training folds."""
    if "@" not in layer:
        return layer, ""
    at = LayerAt.parse(layer)
    return at.layer + (" feedback" if at.feedback else ""), str(at.iteration)
