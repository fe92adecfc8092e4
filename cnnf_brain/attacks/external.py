"""Stronger and independent attacks of other people's code, on the same threats, with the same outcome.

AutoAttack's parts (APGD-CE, targeted APGD on the DLR loss, Square; Croce & Hein 2020) come from ``pyautoattack``, the authors' code
as a package; the decision-based HopSkipJump (Chen et al. 2020) from the Adversarial Robustness Toolbox. Both are in the extra
``robustness``. A white-box attack follows the threat's ``attacked`` logits, a black-box one asks for its ``scored`` ones; what
they hand back is judged by the scored logits either way.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnf_brain.attacks.gradient import Attack, Epsilons, Logits, Outcome, Threat, batches, checked, finite, judged

BATCH = 250
FEWEST_CLASSES = 4  # what the targeted DLR loss compares
_quiet = logging.getLogger("cnnf_brain.attacks.external")  # AutoAttack's remarks on zero gradients; suspicion.py counts them
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


@dataclass(frozen=True)
class APGD:
    """APGD on the cross-entropy, AutoAttack's ``apgd-ce``."""

    steps: int = 100
    restarts: int = 1
    seed: int = 0

    def __call__(self, threat: Threat, images: Tensor, labels: Tensor, epsilons: Epsilons) -> Outcome:
        epsilons = checked(threat, images, labels, epsilons)
        options = {"n_iter": self.steps, "n_restarts": self.restarts, "seed": self.seed, "loss": "ce", "logger": _quiet}
        return _by_autoattack("autopgd_base", "APGDAttack", options, threat.attacked, threat, images, labels, epsilons)


@dataclass(frozen=True)
class TargetedAPGD:
    """APGD on the targeted DLR loss, AutoAttack's ``apgd-t``; ``targets``: the most likely wrong classes, one after another."""

    steps: int = 100
    restarts: int = 1
    targets: int = 9
    seed: int = 0

    def __call__(self, threat: Threat, images: Tensor, labels: Tensor, epsilons: Epsilons) -> Outcome:
        epsilons = checked(threat, images, labels, epsilons)
        with torch.no_grad():
            classes = threat.scored(images[:1]).shape[-1]
        if classes < FEWEST_CLASSES:
            raise ValueError(
                f"the targeted DLR loss needs {FEWEST_CLASSES} classes or more, the network has {classes}; use APGD"
            )
        options = {"n_iter": self.steps, "n_restarts": self.restarts, "seed": self.seed, "logger": _quiet}
        options["n_target_classes"] = min(self.targets, classes - 1)
        return _by_autoattack(
            "autopgd_base", "APGDAttack_targeted", options, threat.attacked, threat, images, labels, epsilons
        )


@dataclass(frozen=True)
class Square:
    """The Square attack, score-based: it needs no gradient, only the scored logits."""

    queries: int = 5000
    seed: int = 0

    def __call__(self, threat: Threat, images: Tensor, labels: Tensor, epsilons: Epsilons) -> Outcome:
        epsilons = checked(threat, images, labels, epsilons)
        options = {"n_queries": self.queries, "seed": self.seed, "p_init": 0.8, "resc_schedule": False}
        return _by_autoattack("square", "SquareAttack", options, threat.scored, threat, images, labels, epsilons)


@dataclass(frozen=True)
class HopSkipJump:
    """HopSkipJump in the l-infinity norm, decision-based: it needs the predicted classes alone.

    It seeks the nearest image of another class, once for all epsilons; at each epsilon what lies farther is clipped to the ball.
    """

    rounds: int = 10
    evaluations: int = 1000
    seed: int = 0

    def __call__(self, threat: Threat, images: Tensor, labels: Tensor, epsilons: Epsilons) -> Outcome:
        epsilons = checked(threat, images, labels, epsilons)
        attacks, estimators = _needed("art.attacks.evasion"), _needed("art.estimators.classification")
        with torch.no_grad():
            classes = threat.scored(images[:1]).shape[-1]
        classifier = estimators.PyTorchClassifier(
            _Network(threat.scored, threat.name), nn.CrossEntropyLoss(), tuple(images.shape[1:]), classes,
            clip_values=threat.bounds, device_type="cpu" if images.device.type == "cpu" else "gpu",
        )  # fmt: skip
        attack = attacks.HopSkipJump(
            classifier, batch_size=BATCH, norm=np.inf, max_iter=self.rounds, max_eval=self.evaluations,
            init_eval=min(100, self.evaluations), verbose=False,
        )  # fmt: skip
        with _own_random_numbers(self.seed):  # its own starting points come from a generator that no seed reaches
            starts = _of_another_class(threat, images, labels, self.seed).cpu().numpy().astype(np.float32)
            made = attack.generate(images.cpu().numpy().astype(np.float32), labels.cpu().numpy(), x_adv_init=starts)
        nearest = torch.as_tensor(made).to(images)
        return judged(threat, images, labels, epsilons, [nearest] * len(epsilons))


def _by_autoattack(
    module: str,
    name: str,
    options: dict[str, Any],
    followed: Logits,
    threat: Threat,
    images: Tensor,
    labels: Tensor,
    epsilons: Sequence[float],
) -> Outcome:
    """The outcome of a class of pyautoattack that follows (or asks for) ``followed``."""
    if threat.bounds != (0.0, 1.0):
        raise ValueError(f"AutoAttack takes images in [0, 1]; the threat's bounds are {threat.bounds}")
    kind: Callable[..., Any] = getattr(_needed(f"pyautoattack.{module}"), name)

    def checked(x: Tensor) -> Tensor:
        return finite(followed(x), threat.name)

    raw = []
    with _own_random_numbers(0):
        for epsilon in epsilons:
            attack = kind(checked, norm="Linf", eps=float(epsilon), device=images.device, verbose=False, **options)
            parts = [attack.perturb(x, y).detach() for x, y in batches(images, labels, BATCH)] if epsilon else [images]
            raw.append(torch.cat(parts).to(images.dtype))
    return judged(threat, images, labels, epsilons, raw)


def _of_another_class(threat: Threat, images: Tensor, labels: Tensor, seed: int, n: int = 100) -> Tensor:
    """For each image one that is not classified as its label: noise, else another image, else the image itself."""
    noise = torch.rand(n, *images.shape[1:], generator=torch.Generator().manual_seed(seed)).to(images)
    low, high = threat.bounds
    candidates = torch.cat([low + (high - low) * noise, images])
    differs = threat.predict(candidates)[None] != labels[:, None]
    return torch.where(differs.any(1).view(-1, 1, 1, 1), candidates[differs.int().argmax(1)], images)


class _Network(nn.Module):
    """Logits as a module, which the toolbox asks for."""

    def __init__(self, logits: Logits, name: str) -> None:
        super().__init__()
        self.logits, self.name = logits, name

    def forward(self, x: Tensor) -> Tensor:
        return finite(self.logits(x), self.name)


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
    package = next((name for kind, name in PACKAGES.items() if isinstance(attack, kind)), None)
    if package is not None and importlib.util.find_spec(package) is None:
        raise _missing(package)


PACKAGES = {APGD: "pyautoattack", TargetedAPGD: "pyautoattack", Square: "pyautoattack", HopSkipJump: "art"}


def _needed(module: str) -> Any:
    """An attack library, imported when it is used; an ImportError says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _missing(module) from error


def _missing(module: str) -> ImportError:
    return ImportError(f"{module} is not installed; install the attacks with: pip install 'cnnf-brain[robustness]'")
