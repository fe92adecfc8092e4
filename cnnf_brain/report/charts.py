"""Numbers with intervals -> SVG for a page: bars and lines whose numbers stand under the pointer.

Colours are classes (``s-cnn``, ``s-0``, ``s-1``, ...) that the page defines for light and dark. ``<title>`` shows the numbers
where there is no JavaScript. All text is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from cnnf_brain import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, RIGHT = 760, 110  # of a chart with labels of LEFT; of the values beside its bars
LEFT, WIDEST, LETTER = 250, 430, 7.4  # of labels, at least and at most; of a letter, nearly
ROW, HEAD = 26, 30
HEIGHT, MARGIN = 360, 60  # of a chart of lines
DASHES = {"--": "7 4", "-": "none"}
SHAPES = {  # matplotlib's markers, about 10 units wide
    "s": "M-4-4h8v8h-8z",
    "o": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",
    "^": "M0-5.5L5 4h-10z",
    "D": "M0-5.5L5.5 0L0 5.5L-5.5 0z",
    "v": "M0 5.5L5-4h-10z",
    "P": "M-2-5h4v3h3v4h-3v3h-4v-3h-3v-4h3z",
    "X": "M-5-3l2-2l3 3l3-3l2 2l-3 3l3 3l-2 2l-3-3l-3 3l-2-2l3-3z",
}


@dataclass(frozen=True)
class Mark:
    """A value and its 95% interval, None where there is none; NaN is not allowed.

    ``series``: an iteration of CNN-F, or None for the CNN (see ``cnnf_brain.style``). ``x`` is the place on the axis of a
    chart of lines. ``bound``: the highest value that could be reached, drawn dashed. ``points``: what the value is the median of.
    """

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    series: int | None = None
    x: float = 0.0
    bound: float | None = None
    points: tuple[float, ...] = ()

    @property
    def errors(self) -> tuple[float, float]:
        """How far the interval reaches below and above the value; NaN where there is none."""
        if self.value is None or self.low is None or self.high is None:
            return math.nan, math.nan
        return max(0.0, self.value - self.low), max(0.0, self.high - self.value)

    @property
    def text(self) -> str:
        """What the pointer shows."""
        words = f"{self.label}: {number(self.value)}"
        words += "" if self.low is None or self.high is None else f" [{number(self.low)}, {number(self.high)}]"
        return words + ("" if self.bound is None else f"; at most {number(self.bound)}")


@dataclass(frozen=True)
class Chart:
    """Groups of marks: ``bars`` (a row for each mark, under the group's name) or lines (a line for each group).

    ``y`` names the values, ``x`` the horizontal axis of lines; ``caption`` says what bars and intervals are. ``legend``: names of
    series over bars. ``folded``: a page shows the title alone until it is opened.
    """

    title: str
    caption: str
    y: str
    groups: tuple[tuple[str, tuple[Mark, ...]], ...]
    x: str = ""
    bars: bool = True
    legend: tuple[tuple[int | None, str], ...] = ()
    folded: bool = False

    def svg(self) -> Markup:
        """The chart as an ``<svg>``."""
        return _bars(self) if self.bars else _lines(self)

    def plot(self) -> Figure:
        """The chart as a matplotlib figure, with its intervals; a mark without a value is left out."""
        groups = [(name, [m for m in marks if m.value is not None]) for name, marks in self.groups]
        with style.styled():
            drawn = style.new_figure(6.4, 1.0 + 0.3 * sum(len(marks) for _, marks in groups) if self.bars else 4.0)
            axis = drawn.subplots()
            (_plot_bars if self.bars else _plot_lines)(axis, groups)
            axis.set(title=self.title, xlabel=self.y if self.bars else self.x, ylabel="" if self.bars else self.y)
        return drawn

    @property
    def numbers(self) -> list[float]:
        """All values, ends and bounds that the chart must hold."""
        marks = [mark for _, marks in self.groups for mark in marks]
        return [v for m in marks for v in (m.value, m.low, m.high, m.bound, *m.points) if v is not None]


def _plot_bars(axis: Any, groups: Sequence[tuple[str, list[Mark]]]) -> None:
    rows = [(f"{name}, {mark.label}", mark) for name, marks in groups for mark in marks]
    for place, (_, mark) in enumerate(rows):
        errors = None if mark.low is None else [[end] for end in mark.errors]
        axis.barh(place, mark.value, xerr=errors, color=style.colour(mark.series), ecolor=style.INK)
    axis.set_yticks(range(len(rows)), [label for label, _ in rows])
    axis.invert_yaxis()


def _plot_lines(axis: Any, groups: Sequence[tuple[str, list[Mark]]]) -> None:
    for name, marks in groups:
        errors = list(zip(*(m.errors for m in marks), strict=True)) if any(m.low is not None for m in marks) else None
        look = style.line(marks[0].series if marks else None) | {"label": name}
        axis.errorbar([m.x for m in marks], [m.value for m in marks], yerr=errors, **look)
    axis.legend()


def number(value: float | None) -> str:
    """A value as a reader wants it: at most four significant digits."""
    if value is None:
        return "undefined"
    return f"{value:.3f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.3g}"


def tag(name: str, *content: str, **attributes: object) -> Markup:
    """An element; text and attributes are escaped (``class_`` and ``stroke_width`` lose their underscores)."""
    named = {key.rstrip("_").replace("_", "-"): f"{v:.2f}" if isinstance(v, float) else v for key, v in attributes.items()}
    inside = Markup("").join(part if isinstance(part, Markup) else escape(part) for part in content)
    given = Markup("").join(Markup(' {}="{}"').format(key, value) for key, value in named.items())
    return Markup("<{}{}>{}</{}>").format(Markup(name), given, inside, Markup(name))


def css_class(series: int | None) -> str:
    """The class that carries the colour of a series."""
    return "s-cnn" if series is None else f"s-{min(series, len(style.ITERATIONS) - 1)}"


def ticks(values: Sequence[float], *, zero: bool) -> list[float]:
    """Round numbers around ``values`` (and 0 with ``zero``), the first and the last of them enclosing all."""
    from matplotlib.ticker import MaxNLocator

    inside = [v for v in values if math.isfinite(v)] + [0.0] * zero
    low, high = (min(inside), max(inside)) if inside else (0.0, 1.0)
    if low == high:
        high = low + (abs(low) or 1.0)
    return [float(v) for v in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]


def _bars(chart: Chart) -> Markup:
    """Horizontal bars with intervals, a row each, the value beside it."""
    steps = ticks(chart.numbers, zero=True)
    scale = (WIDTH - LEFT - RIGHT) / (steps[-1] - steps[0])
    longest = max((len(mark.label) for _, marks in chart.groups for mark in marks), default=0)
    left = min(WIDEST, max(LEFT, 24 + LETTER * longest))

    def place(value: float) -> float:
        return left + (value - steps[0]) * scale

    parts: list[Markup] = []
    y = 0.0
    for series, name in chart.legend:
        key = tag("rect", x=left, y=y + 5, width=26, height=ROW - 12.0, class_="bar")
        parts.append(tag("g", key, tag("text", cut(name, 70), x=left + 34, y=y + 17), class_=css_class(series)))
        y += ROW - 4
    top = y
    for name, marks in chart.groups:
        parts.append(tag("text", cut(name, 100), x=0, y=y + HEAD - 8.0, class_="group"))
        y += HEAD
        for mark in marks:
            parts.append(_bar(mark, y, left, place))
            y += ROW
    grid = [tag("line", x1=place(v), x2=place(v), y1=top, y2=y, class_="axis" if v == 0 else "grid") for v in steps]
    labels = [tag("text", f"{v:g}", x=place(v), y=y + 16, text_anchor="middle") for v in steps]
    labels.append(tag("text", chart.y, x=place(steps[0]), y=y + 36, class_="name"))
    return _svg(chart, y + 44, [*grid, *parts, *labels], WIDTH - LEFT + left)


def _bar(mark: Mark, y: float, left: float, place: Callable[[float], float]) -> Markup:
    middle, zero, width = y + ROW / 2, place(0.0), WIDTH - LEFT + left
    parts = [tag("title", mark.text), tag("text", cut(mark.label, int((left - 24) / LETTER)), x=12, y=middle + 4)]
    parts.append(tag("rect", x=0, y=y, width=width, height=ROW, class_="hit"))
    if mark.value is not None:
        x = place(mark.value)
        parts.append(tag("rect", x=min(x, zero), y=y + 5, width=abs(x - zero), height=ROW - 10.0, class_="bar"))
    if mark.points:  # a path of dots, spread evenly over the bar, the same each time
        dots = (f"M{place(v):.1f} {y + 7 + (ROW - 14) * (i * 0.618 % 1):.1f}h0" for i, v in enumerate(mark.points))
        parts.append(tag("path", d="".join(dots), class_="points"))
    if mark.low is not None and mark.high is not None:
        ends = place(mark.low), place(mark.high)
        parts.append(tag("line", x1=ends[0], x2=ends[1], y1=middle, y2=middle, class_="whisker"))
        parts += [tag("line", x1=x, x2=x, y1=middle - 4, y2=middle + 4, class_="whisker") for x in ends]
    if mark.bound is not None:
        x = place(mark.bound)
        parts.append(tag("line", x1=x, x2=x, y1=y + 2, y2=y + ROW - 2.0, class_="bound"))
    parts.append(tag("text", number(mark.value), x=width - RIGHT + 12, y=middle + 4))
    return tag("g", *parts, class_=f"mark {css_class(mark.series)}", tabindex=0)


def _lines(chart: Chart) -> Markup:
    """A line for each group, over x, with intervals and a legend below."""
    across = ticks([m.x for _, marks in chart.groups for m in marks], zero=False)
    up = ticks(chart.numbers, zero=False)
    x_scale = (WIDTH - MARGIN - 20) / (across[-1] - across[0])
    y_scale = (HEIGHT - 30) / (up[-1] - up[0])

    def place(x: float, y: float) -> tuple[float, float]:
        return MARGIN + (x - across[0]) * x_scale, HEIGHT - 10 - (y - up[0]) * y_scale

    parts: list[Markup] = []
    for v in up:
        _, y = place(across[0], v)
        parts.append(tag("line", x1=MARGIN, x2=WIDTH - 20, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", f"{v:g}", x=MARGIN - 8, y=y + 4, text_anchor="end"))
    parts += [tag("text", f"{v:g}", x=place(v, up[0])[0], y=HEIGHT + 8, text_anchor="middle") for v in across]
    parts.append(tag("text", f"{chart.y} over {chart.x}", x=MARGIN, y=HEIGHT + 28, class_="name"))
    for row, (name, marks) in enumerate(chart.groups):
        parts += _line(name, marks, HEIGHT + 46.0 + 20 * row, place)
    return _svg(chart, HEIGHT + 44 + 20 * len(chart.groups), parts)


def _line(name: str, marks: Sequence[Mark], y: float, place: Callable[[float, float], tuple[float, float]]) -> list[Markup]:
    """A line through its marks, and its entry in the legend at height ``y``."""
    series = marks[0].series if marks else None
    look = {"class_": f"line {css_class(series)}", "stroke_dasharray": DASHES[style.series(series).dash]}
    at = [(mark, *place(mark.x, mark.value)) for mark in marks if mark.value is not None]
    drawn = [tag("polyline", points=" ".join(f"{x:.2f},{y:.2f}" for _, x, y in at), **look)]
    for mark, x, middle in at:
        inside = [tag("title", mark.text), tag("circle", cx=x, cy=middle, r=11, class_="hit")]
        inside.append(_marker(mark.series, x, middle))
        if mark.low is not None and mark.high is not None:
            low, high = (place(mark.x, end)[1] for end in (mark.low, mark.high))
            inside.append(tag("line", x1=x, x2=x, y1=low, y2=high, class_="whisker"))
        drawn.append(tag("g", *inside, class_=f"mark {css_class(mark.series)}", tabindex=0))
    key = tag("line", x1=MARGIN, x2=MARGIN + 34, y1=y, y2=y, **look)
    marker = tag("g", _marker(series, MARGIN + 17, y), class_=css_class(series))
    return [tag("g", *drawn), key, marker, tag("text", cut(name, 90), x=MARGIN + 42, y=y + 4)]


def _marker(series: int | None, x: float, y: float) -> Markup:
    return tag("path", d=SHAPES[style.series(series).marker], transform=f"translate({x:.2f} {y:.2f})", class_="marker")


def _svg(chart: Chart, height: float, parts: Sequence[Markup], width: float = WIDTH) -> Markup:
    box = f"0 0 {width:.0f} {height:.0f}"
    return tag("svg", *parts, viewBox=box, role="group", aria_label=chart.title, width=int(width), height=int(height))


def cut(text: str, longest: int) -> str:
    """``text``, its beginning left out where it is too long for its place; the pointer shows it whole."""
    return text if len(text) <= longest else "…" + text[1 - longest :]
