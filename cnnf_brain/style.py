"""The look of every figure: one style sheet, and one colour for the CNN and for each iteration of CNN-F.

Iterations 0 to 5 (and 5 for all later ones) are six steps of matplotlib's ``inferno``, whose lightness falls evenly, so that
their order survives colour blindness and grey printing; iteration 0 is the nearest to the background. The CNN is blue, the
one hue that ``inferno`` lacks, and dashed: no series is told by its colour alone. tests/test_style.py simulates protanopia,
deuteranopia and tritanopia (Machado et al. 2009) and measures the distances, on white and on the dark background of a page.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnf_brain.io import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHEET = Path(__file__).with_name("style.mplstyle")
PAPER, INK = "#ffffff", "#222222"  # background and text, light
DARK_PAPER, DARK_INK = "#14171c", "#e6e8eb"
WARNING, DARK_WARNING = "#b00020", "#ff8a80"  # what must not be overlooked: SIMULATED, failed checks
CNN, DARK_CNN = "#1b80c4", "#56b4e9"
ITERATIONS = ("#f06f20", "#d24644", "#a62d60", "#771c6d", "#490b6a", "#160b39")
DARK_ITERATIONS = ("#b3325a", "#d44842", "#ee6a24", "#fa9407", "#fac228", "#f1ef75")
MARKERS = ("o", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Series:
    """How one network state is drawn: ``colour`` on white, ``dark`` on a dark page, and what tells it without colour."""

    label: str
    colour: str
    dark: str
    marker: str
    dash: str  # matplotlib's line style


def series(iteration: int | None) -> Series:
    """The CNN (None), or CNN-F at an iteration (0 is the first feedforward pass)."""
    if iteration is None:
        return Series("CNN", CNN, DARK_CNN, "s", "--")
    if iteration < 0:
        raise ValueError(f"iteration is {iteration}, expected a whole number >= 0, or None for the CNN")
    step = min(iteration, len(ITERATIONS) - 1)
    return Series(f"CNN-F, iteration {iteration}", ITERATIONS[step], DARK_ITERATIONS[step], MARKERS[step], "-")


def colour(iteration: int | None, *, dark: bool = False) -> str:
    """The colour of ``series(iteration)``."""
    found = series(iteration)
    return found.dark if dark else found.colour


def line(iteration: int | None) -> dict[str, Any]:
    """``series(iteration)`` as keywords of matplotlib's ``plot`` and ``errorbar``."""
    found = series(iteration)
    return {"label": found.label, "color": found.colour, "marker": found.marker, "linestyle": found.dash}


@contextmanager
def styled() -> Iterator[None]:
    """matplotlib with this project's style sheet alone, whatever the user's own settings are."""
    import matplotlib
    from matplotlib import style

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        style.use(SHEET)
        yield


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """A figure (inches) that no window shows, but a notebook; within ``styled()``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), **options)
    FigureCanvasAgg(figure)
    figure._repr_png_ = lambda: png(figure)  # type: ignore[attr-defined] # else only where pyplot was imported
    return figure


def save(figure: Figure, folder: Path, name: str = "figure") -> None:
    """``name.png`` and ``name.svg`` in ``folder``, each whole or not at all, the same bytes for the same figure."""
    with styled():
        for suffix, metadata in (("png", {}), ("svg", {"Date": None})):
            with atomic_path(Path(folder) / f"{name}.{suffix}") as temporary:
                figure.savefig(temporary, format=suffix, metadata=metadata)


def png(figure: Figure) -> bytes:
    """The figure as a PNG of a page."""
    content = BytesIO()
    with styled():
        figure.savefig(content, format="png", dpi=110)
    return content.getvalue()
