"""Sanity checks of an evaluation (Athalye et al. 2018; Carlini et al. 2019).

A network can look robust because the attack is bad: its gradient is masked, or it is stopped too early. Each check states what must
hold if the attack were good, and whether it does. A check that fails is no verdict on the network but on the evaluation: the
accuracy reported is then an upper bound and nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from cnnf_brain.attacks.gradient import PGD, Epsilons, Threat, clip, gradient, listed

SLACK = 0.01  # success may differ by this without a reason: attacks start at random


@dataclass(frozen=True)
class Finding:
    """The result of a check: what must hold, whether it does (None: could not be told), and the figures.

    ``key``: which check it is, and of what; the same for every network. It stands in no file.
    """

    name: str
    holds: bool | None
    detail: str
    key: tuple[str, ...] = field(default=(), compare=False)

    def record(self) -> dict[str, object]:
        """What files keep."""
        return {"name": self.name, "holds": self.holds, "detail": self.detail}


def never_falls(what: str, strengths: Sequence[float], success: Sequence[float], slack: float = SLACK) -> Finding:
    """Success must not fall as ``strengths`` (epsilon, steps) grow; ``success``: the share at each."""
    order = sorted(zip(strengths, success, strict=True))
    worst, highest = 0.0, 0.0
    for _, share in order:
        worst, highest = max(worst, highest - share), max(highest, share)
    detail = ", ".join(f"{strength:g}: {100 * share:.1f} %" for strength, share in order)
    holds = worst <= slack if len(order) > 1 else None
    return Finding(f"success does not fall as {what} grows", holds, detail, ("never falls", what))


def breaks_everything(epsilon: float, success: float, slack: float = SLACK) -> Finding:
    """An epsilon large enough (from 0.5 on every image can be made grey) must break every image."""
    detail = f"epsilon {epsilon:g}: {100 * success:.1f} %"
    holds = success >= 1 - slack if epsilon >= 0.5 else None
    return Finding("a large epsilon breaks everything", holds, detail, ("breaks everything",))


def not_stronger(weak: str, strong: str, weak_success: float, strong_success: float, slack: float = SLACK) -> Finding:
    """The attack that knows less must not succeed more often."""
    detail = f"{weak}: {100 * weak_success:.1f} %, {strong}: {100 * strong_success:.1f} %"
    holds = weak_success <= strong_success + slack
    return Finding(f"{weak} is not stronger than {strong}", holds, detail, ("not stronger", weak, strong))


def zero_gradients(threat: Threat, images: Tensor, labels: Tensor) -> Finding:
    """The loss that is attacked must have a gradient at every image that is classified rightly."""
    name, key, right = "gradients are not zero", ("zero gradients",), threat.predict(images) == labels
    if not right.any():
        return Finding(name, None, "no image is classified rightly", key)
    zero = gradient(threat, images[right], labels[right]).flatten(1).abs().amax(1) == 0
    share = zero.double().mean().item()
    return Finding(name, share == 0, f"zero at {100 * share:.1f} % of {len(zero)} images ({threat.name})", key)


def examine(
    threat: Threat,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    steps: Sequence[int] = (1, 10, 40, 100),
    epsilons: Epsilons = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0),
    slack: float = SLACK,
) -> list[Finding]:
    """The checks that are possible with a single threat, by PGD with steps that grow with epsilon.

    Success over ``steps`` at ``epsilon``; over ``epsilons`` at the middle of ``steps``; at the largest epsilon; against random
    noise in the ball; zero gradients. Arguments as an attack takes them.
    """
    strengths = listed(epsilons)

    def share(epsilons: Epsilons, n: int) -> list[float]:
        outcome = PGD(n, relative_step=2.5 / n if n > 1 else 1.0)(threat, images, labels, epsilons)
        return outcome.success.double().mean(1).tolist()

    over_epsilon = share(strengths, steps[len(steps) // 2])
    over_steps = [share(epsilon, n)[0] for n in steps]
    noise = clip(images, images + epsilon * PGD().start(images, 1).sign(), epsilon, threat.bounds)
    by_noise = (threat.predict(noise) != labels).double().mean().item()
    return [
        never_falls(f"the number of steps at epsilon {epsilon:g}", steps, over_steps, slack),
        never_falls("epsilon", strengths, over_epsilon, slack),
        breaks_everything(*max(zip(strengths, over_epsilon, strict=True)), slack),
        not_stronger("random noise", f"PGD-{steps[-1]}", by_noise, over_steps[-1], slack),
        zero_gradients(threat, images, labels),
    ]
