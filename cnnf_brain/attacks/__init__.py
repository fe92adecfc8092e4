"""Adversarial attacks in the l-infinity ball on images in [0, 1], and what an attacker sees of a CNN-F."""

from cnnf_brain.attacks.gradient import FGSM, PGD, NonFiniteOutput, Outcome, Threat, paper_step
from cnnf_brain.attacks.threats import WithPreprocessing

__all__ = ["FGSM", "PGD", "NonFiniteOutput", "Outcome", "Threat", "WithPreprocessing", "paper_step"]
