"""Adversarial images to train on (Appendix B.1 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cnnf_brain.attacks import threats
from cnnf_brain.attacks.gradient import FGSM, PGD, ascent, clip
from cnnf_brain.checks import unknown
from cnnf_brain.images import Preprocessing
from cnnf_brain.model.cnnf import CNNF

MODES = ("only", "augment")
UNITS = Preprocessing(28, mean=(0.5,), std=(0.5,))  # the small net takes images in [-1, 1]
ATTACKS: dict[str, FGSM | PGD] = {"fgsm": FGSM(), "pgd7": PGD(7), "pgd40": PGD(40)}


@dataclass(frozen=True)
class Adversary:
    """Adversarial training: which images a step sees.

    ``mode``: "only" adversarial images, or "augment", clean and adversarial ones together. In both the reconstruction loss of an
    adversarial image is against the target features of its clean one. ``attack``: "fgsm", "pgd7" or "pgd40", on the first pass of
    the weights of that step; ``epsilon`` and ``step_size`` (None: the paper's) for images in [0, 1]. Random starts come from
    ``seed`` and the number of the step alone.
    """

    mode: str
    attack: str
    epsilon: float
    step_size: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown("adversarial mode", self.mode, MODES)
        if self.attack not in ATTACKS:
            raise unknown("attack", self.attack, ATTACKS)
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon {self.epsilon} is not in [0, 1]; it is given for images in [0, 1]")
        if self.step_size is not None and not 0 < self.step_size < float("inf"):
            raise ValueError(f"the attack's step size is {self.step_size}, expected a number above 0")
        if self.step_size is not None and self.attack == "fgsm":
            raise ValueError("FGSM is one step of epsilon; leave its step size out")

    def batch(self, model: CNNF, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """What a step is trained on: images in [-1, 1], labels, and the clean target features of each image."""
        adversarial = self.perturb(model, images, labels, step)
        with torch.no_grad():
            clean, _ = model.below_target(images)
        if self.mode == "only":
            return adversarial, labels, clean
        return torch.cat([images, adversarial]), torch.cat([labels, labels]), torch.cat([clean, clean])

    def perturb(self, model: CNNF, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """The adversarial images of ``images``, both in [-1, 1]."""
        training = model.training
        model.eval()
        try:
            threat = threats.first_pass(threats.WithPreprocessing(model, UNITS))
            x, attack = UNITS.denormalise(images).clamp(0, 1), ATTACKS[self.attack]
            if isinstance(attack, FGSM):
                made = clip(x, x + self.epsilon * ascent(threat, x, labels), self.epsilon, threat.bounds)
            else:
                seed = int(np.random.SeedSequence([self.seed, step]).generate_state(1)[0])
                attack = PGD(attack.steps, self.step_size, seed=seed)
                made = attack.perturb(threat, x, labels, self.epsilon, attack.start(x))
        finally:
            model.train(training)
        return UNITS.normalise(made)
