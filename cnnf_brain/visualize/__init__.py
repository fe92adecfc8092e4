"""Figure 9 of Huang et al. (2020), measured and drawn: ``figure9``, and ``write`` for its folder with tables, figure and page."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from cnnf_brain import results
from cnnf_brain.checks import unknown
from cnnf_brain.networks import Network
from cnnf_brain.report import PAGE, attempt, readers, tell
from cnnf_brain.visualize.attention import figure_9b, figure_9c
from cnnf_brain.visualize.plane import figure_9a
from cnnf_brain.visualize.restoration import figure_9d
from cnnf_brain.visualize.view import Part, Sample, View

KIND = "visualize"
PARTS: dict[str, Callable[[Sample], Part]] = {"9a": figure_9a, "9b": figure_9b, "9c": figure_9c, "9d": figure_9d}
NEEDS = {"9b": ["captum"], "9c": ["captum"], "9d": ["skimage"]}

__all__ = ["PARTS", "Part", "Sample", "View", "check_libraries", "figure9", "write"]


def figure9(part: str, network: Network, images: Tensor, labels: Tensor, *, n: int | None = None, seed: int = 0) -> Part:
    """Measure a part of Figure 9.

    Parameters
    ----------
    part
        ``9a`` decision cells, ``9b`` adversarial examples and attention, ``9c`` attention over iterations, ``9d`` restored images.
    network
        A CNN-F with at least one iteration.
    images, labels
        (m, C, H, W) floating point in [0, 1], and (m,).
    n
        How many images are measured, drawn with ``seed``; None: all.

    Returns
    -------
    Part
        ``about`` (question, answer, claims), ``tables``, ``data``; ``plot()`` draws the figure.

    Raises
    ------
    ValueError, ImportError
        An unknown part, a network without feedback, images that do not fit; a library of the extra ``visualize`` is missing.
    """
    check_libraries(part)
    return PARTS[part](Sample(View(network), images, labels, n, seed))


def write(
    part: str, sample: Sample, folder: Path, *, names: Sequence[str] = (), data: Mapping[str, str] | None = None
) -> Part:
    """Measure a part and leave its files and its page in ``folder``, which appears, or is replaced, when all of it is finished.

    ``names`` of the classes; ``data``: what the images are, in words. Raises what ``figure9`` and ``results.results`` raise; the
    latter before long work, where the folder holds something else.
    """
    started = time.time()
    check_libraries(part)
    question = sample.question(part)
    with results.results(folder, KIND, question) as staging:
        made = PARTS[part](sample)
        missing = made.save(staging, _record(sample, question, data or {"dataset": "images"}, started), names)
        missing += attempt(PAGE, lambda: readers.leave(staging, shown_as=folder))
    tell(folder, missing, "the same command")
    return made


def check_libraries(part: str) -> None:
    """An error before long work: a ValueError for an unknown part, an ImportError that names the missing extra."""
    if part not in PARTS:
        raise unknown("part of Figure 9", part, PARTS)
    missing = [name for name in NEEDS.get(part, []) if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"figure {part} needs {' and '.join(missing)}: pip install 'cnnf-brain[visualize]'")


def _record(sample: Sample, question: Mapping[str, Any], data: Mapping[str, str], started: float) -> dict[str, Any]:
    """run.json: what the run was."""
    network = sample.view.network
    same = {
        **question,
        "feedback": ", ".join(f"{name} {value}" for name, value in question["feedback"].items()),
        "network": question["network"][:12],
        "data": f"{data['dataset']} {question['data'][:12]}",
    }
    what = {"network": {"name": network.name, "weights": network.weights}, "data": dict(data)}
    return results.provenance(network.device, started) | {"configuration": question, **what, "same": same}
