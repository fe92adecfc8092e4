"""The style: colours told apart by all eyes, on white and on dark; figures the same whatever the user's settings are."""

from __future__ import annotations

import itertools
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.colors import to_rgb

from cnnf_brain import style

# Machado, Oliveira & Fernandes (2009), severity 1.0, on linear RGB
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
THEMES = {
    "light": (style.CNN, style.ITERATIONS, style.PAPER, style.INK, style.WARNING),
    "dark": (style.DARK_CNN, style.DARK_ITERATIONS, style.DARK_PAPER, style.DARK_INK, style.DARK_WARNING),
}


def linear(colour: str) -> npt.NDArray[Any]:
    c = np.array(to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def luminance(colour: str) -> float:
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


def contrast(a: str, b: str) -> float:
    """WCAG 2's contrast ratio."""
    low, high = sorted([luminance(a), luminance(b)])
    return (high + 0.05) / (low + 0.05)


def lab(rgb: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """CIE L*a*b* (D65) of linear RGB."""
    xyz = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
    t = xyz @ np.clip(rgb, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("kind", BLINDNESS)
def test_colours_differ_for_all_eyes(theme: str, kind: str) -> None:
    cnn, iterations, *_ = THEMES[theme]
    seen = {c: lab(np.array(BLINDNESS[kind]) @ linear(c)) for c in (cnn, *iterations)}
    # 2.3 is a just noticeable difference (CIE76); neighbours in the order lie well above it
    assert min(np.linalg.norm(seen[a] - seen[b]) for a, b in itertools.combinations(iterations, 2)) > 8
    assert min(np.linalg.norm(seen[cnn] - seen[c]) for c in iterations) > 20


@pytest.mark.parametrize("theme", THEMES)
def test_iterations_are_ordered_by_lightness_away_from_the_background(theme: str) -> None:
    _, iterations, paper, *_ = THEMES[theme]
    ratios = [contrast(c, paper) for c in iterations]
    assert ratios == sorted(ratios)
    assert ratios[0] > 2.9  # WCAG asks 3 of graphics


@pytest.mark.parametrize("theme", THEMES)
def test_text_can_be_read(theme: str) -> None:
    cnn, _, paper, ink, warning = THEMES[theme]
    assert contrast(ink, paper) > 7
    assert contrast(warning, paper) > 4.5
    assert contrast(cnn, paper) > 3


def test_series() -> None:
    assert style.series(None).label == "CNN"
    assert style.series(2).label == "CNN-F, iteration 2"
    assert style.colour(40) == style.ITERATIONS[-1]
    assert style.colour(1, dark=True) == style.DARK_ITERATIONS[1]
    assert len({(style.series(t).marker, style.series(t).colour) for t in (None, *range(6))}) == 7
    assert style.line(0)["color"] == style.ITERATIONS[0]
    with pytest.raises(ValueError, match=r"iteration is -1, expected a whole number >= 0"):
        style.series(-1)


def drawn(folder: Any) -> dict[str, bytes]:
    with style.styled():
        figure = style.new_figure(2, 2)
        figure.subplots().plot([0, 1], [0.5, 0.25], **style.line(1))
    style.save(figure, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_figures_do_not_depend_on_the_users_settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    first = drawn(tmp_path_factory.mktemp("first"))
    with matplotlib.rc_context({"font.size": 30, "savefig.dpi": 20, "svg.fonttype": "path"}):
        second = drawn(tmp_path_factory.mktemp("second"))
    assert set(first) == {"figure.png", "figure.svg"}
    assert first == second
    assert style.ITERATIONS[1].encode() in first["figure.svg"]
    assert b"<text" in first["figure.svg"], "text stays text"


def test_a_notebook_shows_a_figure_without_pyplot() -> None:
    with style.styled():
        figure = style.new_figure(2, 1)
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
