"""Adversarial attacks in the l-infinity ball on images in [0, 1], and what an attacker sees of a CNN-F."""

from cnnf_brain.attacks.external import APGD, HopSkipJump, Square, TargetedAPGD
from cnnf_brain.attacks.gradient import FGSM, PGD, Attack, NonFiniteOutput, Outcome, Threat, paper_step
from cnnf_brain.attacks.threats import WithPreprocessing
from cnnf_brain.checks import own_or_offered

__all__ = [
    "ATTACKS",
    "FGSM",
    "PGD",
    "NonFiniteOutput",
    "Outcome",
    "Threat",
    "WithPreprocessing",
    "load_attack",
    "paper_step",
]

ATTACKS: dict[str, Attack] = {
    "FGSM": FGSM(),
    "PGD-7": PGD(7),
    "PGD-40": PGD(40),
    "PGD-100": PGD(100, relative_step=0.025, restarts=2),
    "APGD-CE": APGD(100),
    "APGD-T": TargetedAPGD(100),
    "Square": Square(5000),
    "HopSkipJump": HopSkipJump(10, 1000),
}


def load_attack(name: str) -> Attack:
    """An attack by its name: of ``ATTACKS``, or one that an installed package adds.

    Raises
    ------
    ValueError
        An unknown name; those that exist are listed.
    ImportError
        The package that adds it cannot be imported.

    Examples
    --------
    >>> load_attack("PGD-7").steps
    7
    """
    attack: Attack = own_or_offered("attacks", name, ATTACKS)
    return attack
