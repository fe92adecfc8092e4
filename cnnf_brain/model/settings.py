"""How feedback runs: a record. CNNF, command lines, cards, plugins and grids take its fields from here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any

from cnnf_brain.checks import unknown
from cnnf_brain.types import option

INPUT = "input"
ADA_RELU = ("signed", "printed")
MOST_ITERATIONS = 1000  # far above any use; more would run for days


@dataclass(frozen=True)
class FeedbackSettings:
    """The settings of the feedback (Huang et al. 2020, Algorithm 1).

    Attributes
    ----------
    iterations
        Feedback iterations N from 0 to 1000; 0 is the CNN itself.
    target
        The paper's layer k: feedback reconstructs the output of this layer, or the image (``"input"``). Layers up to
        it run once; from iteration 1 on the reconstruction enters the layer after it.
    step
        h_{t+1} = h_t + step (reconstruction - h_t), above 0; 1 is the paper's replacement.
    match_norm
        Scale each image's reconstruction to the L2 norm of its target features in the first pass.
    match_layers
        From iteration 1 on scale the output f(l) of every convolution and fully connected layer, the logits too, to the L2
        norm that it had in the first pass, image by image. It holds Assumption A.6 and the effect of Appendix A.4's
        normalisation in a CNN without such layers (VGG, AlexNet); without it their maps grow with every iteration.
    ada_relu
        ``"signed"`` (Lemma A.1 is exact) or ``"printed"`` (eq. 3 of the paper).
    tolerance
        Stop an image once it is self-consistent: when each of its three residuals (see ``Consistency``) is at most this.
        None: every image runs all iterations.

    Raises
    ------
    ValueError
        A value outside of its range.

    Examples
    --------
    >>> FeedbackSettings(iterations=3, step=0.1).target
    'input'
    """

    iterations: int = option(2, "feedback iterations", above=0, most=MOST_ITERATIONS)
    target: str = option(INPUT, "layer that feedback reconstructs: input, features.4, ...", metavar="LAYER")
    step: float = option(1.0, "1 replaces the target by its reconstruction", flag="step-size", above=0.0)
    match_norm: bool = option(False, "scale the reconstruction to the norm of the target")
    match_layers: bool = option(False, "hold each layer's output to its norm of the first pass")
    ada_relu: str = option("signed", "the gate of feedback: Lemma A.1 holds for signed; printed is eq. 3", choices=ADA_RELU)
    tolerance: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "iterations", checked_iterations(self.iterations))
        for name, kind in (("target", str), ("step", Real), ("tolerance", Real | None)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected a {'text' if kind is str else 'number'}")
        if self.ada_relu not in ADA_RELU:
            raise ValueError(f"ada_relu is {self.ada_relu!r}, expected 'signed' or 'printed'")
        if not 0 < self.step < math.inf:
            raise ValueError(f"step is {self.step}, expected a positive number (1 = the paper's replacement)")
        if self.tolerance is not None and not self.tolerance >= 0:
            raise ValueError(f"tolerance is {self.tolerance}, expected a number >= 0 or None")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> FeedbackSettings:
        """From a mapping; a ValueError for an unknown name."""
        for name in values:
            if name not in SETTINGS:
                raise unknown("setting of the feedback", name, SETTINGS)
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for cards and records."""
        return asdict(self)


SETTINGS = tuple(field.name for field in fields(FeedbackSettings))


def checked_iterations(iterations: int) -> int:
    """``iterations`` as given, a ValueError unless it is a whole number from 0 to MOST_ITERATIONS."""
    if isinstance(iterations, bool) or not isinstance(iterations, int) or not 0 <= iterations <= MOST_ITERATIONS:
        raise ValueError(
            f"iterations is {iterations!r}, expected a whole number >= 0 and at most {MOST_ITERATIONS} (0 = the CNN alone)"
        )
    return iterations
