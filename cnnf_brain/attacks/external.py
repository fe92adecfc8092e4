"""Stronger and independent attacks of other people's code, on the same threats, with the same outcome.

AutoAttack's parts (APGD-CE, targeted APGD on the DLR loss, Square; Croce & Hein 2020) come from ``pyautoattack``, the authors' code
as a package; the decision-based HopSkipJump (Chen et al. 2020) from the Adversarial Robustness Toolbox. Both are in the extra
``robustness``. A white-box attack follows the threat's ``attacked`` logits, a black-box attack asks for its ``scored`` logits.
The result is judged by the scored logits in both cases.
"""

from __future__ import annotations

import importlib.util
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from cnnf_brain.attacks import gradient
from cnnf_brain.attacks.gradient import Attack, Epsilons, Logits, Outcome, Threat, n_classes

BATCH = 250
MISSING = " is not installed; install the attacks with: pip install 'cnnf-brain[robustness]'"
FEWEST_CLASSES = 4  # the targeted DLR loss compares so many
# AutoAttack remarks on zero gradients, which sanity_checks counts.
_quiet = logging.getLogger("cnnf_brain.attacks.external")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


class AutoAttack(ABC):
    """An attack of pyautoattack; ``made_by`` names its module and class, ``black_box`` whether it follows the scored logits."""

    package: ClassVar[str] = "pyautoattack"
    made_by: ClassVar[tuple[str, str]]
    black_box: ClassVar[bool] = False

    @abstractmethod
    def options(self, classes: int) -> dict[str, Any]:
        """What the class is made with, for a network of so many classes."""

    def __call__(self, threat: Threat, images: Tensor, labels: Tensor, epsilons: Epsilons) -> Outcome:
        epsilons = gradient.checked(threat, images, labels, epsilons)
        options = self.options(n_classes(threat, images))
        if threat.bounds != (0.0, 1.0):
            raise ValueError(f"AutoAttack takes images in [0, 1]; the threat's bounds are {threat.bounds}")
        module, name = self.made_by
        kind = getattr(_imported(f"pyautoattack.{module}"), name)
        followed = _Network(threat.scored if self.black_box else threat.attacked, threat.name)
        raw = []
        with _own_random_numbers(0):
            for epsilon in epsilons:
                attack = kind(followed, norm="Linf", eps=epsilon, device=images.device, verbose=False, **options)
                parts = (
                    [attack.perturb(x, y).detach() for x, y in gradient.batches(images, labels, BATCH)]
                    if epsilon
                    else [images]
                )
                raw.append(torch.cat(parts).to(images.dtype))
        return gradient.judged(threat, images, labels, epsilons, raw)


@dataclass(frozen=True)
class APGD(AutoAttack):
    """APGD on the cross-entropy, AutoAttack's ``apgd-ce``."""

    steps: int = 100
    restarts: int = 1
    seed: int = 0
    made_by = ("autopgd_base", "APGDAttack")

    def options(self, classes: int) -> dict[str, Any]:
        return {"n_iter": self.steps, "n_restarts": self.restarts, "seed": self.seed, "loss": "ce", "logger": _quiet}


@dataclass(frozen=True)
class TargetedAPGD(AutoAttack):
    """APGD on the targeted DLR loss, AutoAttack's ``apgd-t``; ``targets``: the most likely wrong classes, one after another."""

    steps: int = 100
    restarts: int = 1
    targets: int = 9
    seed: int = 0
    made_by = ("autopgd_base", "APGDAttack_targeted")

    def options(self, classes: int) -> dict[str, Any]:
        if classes < FEWEST_CLASSES:
            raise ValueError(
                f"the targeted DLR loss needs {FEWEST_CLASSES} classes or more, the network has {classes}; use APGD"
            )
        same = {"n_iter": self.steps, "n_restarts": self.restarts, "seed": self.seed, "logger": _quiet}
        return {**same, "n_target_classes": min(self.targets, classes - 1)}


@dataclass(frozen=True)
class Square(AutoAttack):
    """The Square attack, score-based: it needs no gradient, only the scored logits."""

    queries: int = 5000
    seed: int = 0
    made_by = ("square", "SquareAttack")
    black_box = True

    def options(self, classes: int) -> dict[str, Any]:
        return {"n_queries": self.queries, "seed": self.seed, "p_init": 0.8, "resc_schedule": False}


@dataclass(frozen=True)
class HopSkipJump:
    """HopSkipJump in the l-infinity norm, decision-based: it needs the predicted classes alone.

    It seeks the nearest image of another class, once for all epsilons. Where that image is farther away than epsilon, it is
    clipped to the ball.
    """

    rounds: int = 10
    evaluations: int = 1000
    seed: int = 0
    package: ClassVar[str] = "art"

    def __call__(self, threat: Threat, images: Tensor, labels: Tensor, epsilons: Epsilons) -> Outcome:
        epsilons = gradient.checked(threat, images, labels, epsilons)
        attacks, estimators = _imported("art.attacks.evasion"), _imported("art.estimators.classification")
        network, shape, loss = _Network(threat.scored, threat.name), tuple(images.shape[1:]), nn.CrossEntropyLoss()
        where = {"clip_values": threat.bounds, "device_type": "cpu" if images.device.type == "cpu" else "gpu"}
        classifier = estimators.PyTorchClassifier(network, loss, shape, n_classes(threat, images), **where)
        most = {"max_iter": self.rounds, "max_eval": self.evaluations, "init_eval": min(100, self.evaluations)}
        attack = attacks.HopSkipJump(classifier, batch_size=BATCH, norm=np.inf, verbose=False, **most)
        with _own_random_numbers(self.seed):  # its own starting points come from a generator that no seed reaches
            starts = _of_another_class(threat, images, labels, self.seed).cpu().numpy().astype(np.float32)
            made = attack.generate(images.cpu().numpy().astype(np.float32), labels.cpu().numpy(), x_adv_init=starts)
        nearest = torch.as_tensor(made).to(images)
        return gradient.judged(threat, images, labels, epsilons, [nearest] * len(epsilons))


def _of_another_class(threat: Threat, images: Tensor, labels: Tensor, seed: int, n: int = 100) -> Tensor:
    """For each image a starting point with another class than its label: noise, else another image, else the image itself."""
    noise = torch.rand(n, *images.shape[1:], generator=torch.Generator().manual_seed(seed)).to(images)
    low, high = threat.bounds
    candidates = torch.cat([low + (high - low) * noise, images])
    differs = threat.predict(candidates)[None] != labels[:, None]
    return torch.where(differs.any(1).view(-1, 1, 1, 1), candidates[differs.int().argmax(1)], images)


class _Network(nn.Module):
    """Logits as a module, which the toolbox asks for, checked to be finite."""

    def __init__(self, logits: Logits, name: str) -> None:
        super().__init__()
        self.logits, self.name = logits, name

    def forward(self, x: Tensor) -> Tensor:
        return gradient.finite(self.logits(x), self.name)


@contextmanager
def _own_random_numbers(seed: int) -> Iterator[None]:
    """NumPy's and torch's global generators seeded, and put back afterwards: these libraries draw from them."""
    before = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            np.random.set_state(before)  # noqa: NPY002


def check_installed(attack: Attack) -> None:
    """An ImportError that says how to install the library of ``attack``, where it has one and that is missing."""
    package = getattr(attack, "package", None)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ImportError(f"{package}{MISSING}")


def _imported(module: str) -> Any:
    """An attack library, imported when it is used; an ImportError says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module}{MISSING}") from error
