"""FGSM and PGD in the l-infinity ball, and the record of what is attacked.

The interface is foolbox's: a model with bounds, images in them, a vector of epsilons; back come the raw results, the results
clipped to ball and bounds, and the success of the clipped ones. Epsilon, step sizes and images are in units of [0, 1]. A single
epsilon is a vector of one: the outcome then has one entry.

The loss that is attacked is the cross-entropy of each image by itself, and random starts are drawn for all images of a call at
once: the size of the batches changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnf_brain.checks import running

Logits = Callable[[Tensor], Tensor]
Epsilons = float | Sequence[float]
BATCH = 64  # images at once: on CPUs larger batches leave the cache and take up to twice as long for each image


class NonFiniteOutput(ValueError):
    """The network's logits, or their gradient, are not finite."""


@dataclass(frozen=True)
class Threat:
    """What is attacked, and what the attacker may use.

    ``scored``: images (B, C, H, W) in ``bounds`` to the logits (B, K) that decide; ``attacked``: the same to the logits whose
    gradient a white-box attacker follows. ``name`` says what the attacker sees.
    """

    name: str
    scored: Logits
    attacked: Logits
    bounds: tuple[float, float] = (0.0, 1.0)

    @torch.no_grad()
    def predict(self, images: Tensor, batch_size: int = BATCH) -> Tensor:
        """The class of each image, (n,), by the scored logits."""
        return torch.cat([finite(self.scored(part), self.name).argmax(-1) for part in torch.split(images, batch_size)])


class Outcome(NamedTuple):
    """An attack's result for each of E epsilons and n images, as foolbox gives it.

    ``raw``: E tensors (n, C, H, W), what the attack made; ``clipped``: the same brought into the ball and the bounds;
    ``success`` (E, n): whether ``clipped`` is classified otherwise than the label (True too where the image itself was).
    """

    raw: list[Tensor]
    clipped: list[Tensor]
    success: Tensor


class Attack(Protocol):
    """A callable from a threat, images (n, C, H, W), labels (n,) and E epsilons to the outcome at each epsilon."""

    def __call__(self, threat: Threat, images: Tensor, labels: Tensor, epsilons: Epsilons) -> Outcome: ...


def paper_step(epsilon: float) -> float:
    """The paper's step size of PGD in units of [0, 1]: 0.01 up to epsilon 0.3, else 0.015.

    Appendix B.1 gives 0.02 and 0.03 for actual epsilons up to and above 0.6, where images lie in [-1, 1].
    """
    return 0.01 if epsilon <= 0.3 else 0.015


@dataclass(frozen=True)
class FGSM:
    """The fast gradient sign method: one step of epsilon from the image (Goodfellow et al. 2015)."""

    batch_size: int = BATCH

    def __call__(self, threat: Threat, images: Tensor, labels: Tensor, epsilons: Epsilons) -> Outcome:
        epsilons = checked(threat, images, labels, epsilons)
        signs = torch.cat([ascent(threat, x, y) for x, y in batches(images, labels, self.batch_size)])
        return judged(threat, images, labels, epsilons, [images + epsilon * signs for epsilon in epsilons])


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent in the l-infinity ball (Madry et al. 2018).

    ``step_size``: None is ``paper_step(epsilon)``; ``relative_step``: instead, a share of epsilon. ``random_start``: uniform in
    the ball, else at the image. ``restarts``: each begins anew for the images that none before it has changed. ``seed``: of the
    starts. The last iterate is the result.

    ``workers``: batches at once on a CPU, each with one of torch's threads, which scales better than threads within each operator.
    It changes nothing in the result, but the network must keep nothing between calls: then leave it at 1.
    """

    steps: int = 40
    step_size: float | None = None
    relative_step: float | None = None
    random_start: bool = True
    restarts: int = 1
    seed: int = 0
    batch_size: int = BATCH
    workers: int = field(default=1, repr=False)  # not part of what the attack is

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "batch_size", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"PGD: {name} is {getattr(self, name)}, expected at least 1")
        if self.step_size is not None and self.relative_step is not None:
            raise ValueError("PGD: give step_size or relative_step, not both")
        for name in ("step_size", "relative_step"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"PGD: {name} is {value}, expected a number above 0")

    def step(self, epsilon: float) -> float:
        """The step size at ``epsilon``."""
        if self.relative_step is not None:
            return self.relative_step * epsilon
        return paper_step(epsilon) if self.step_size is None else self.step_size

    def __call__(self, threat: Threat, images: Tensor, labels: Tensor, epsilons: Epsilons) -> Outcome:
        epsilons = checked(threat, images, labels, epsilons)
        raw = [images.clone() for _ in epsilons]
        for restart in range(self.restarts):
            start = self.start(images, restart)
            for found, epsilon in zip(raw, epsilons, strict=True):
                left = torch.arange(len(images), device=images.device)
                if restart:
                    left = left[threat.predict(found, self.batch_size) == labels]
                parts = zip(*(torch.split(values[left], self.batch_size) for values in (images, labels, start)), strict=True)
                jobs = [(threat, x, y, epsilon, s) for x, y, s in parts]
                found[left] = torch.cat(at_once(self.perturb, jobs, self.workers))
        return judged(threat, images, labels, epsilons, raw, self.batch_size)

    def start(self, images: Tensor, restart: int = 0) -> Tensor:
        """Directions of the starting points, in [-1, 1], of the images' shape."""
        if not self.random_start:
            return torch.zeros_like(images)
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + restart)
        drawn = torch.rand(images.shape, generator=generator, dtype=images.dtype)
        return (2 * drawn - 1).to(images.device)

    def perturb(self, threat: Threat, images: Tensor, labels: Tensor, epsilon: float, start: Tensor) -> Tensor:
        """One batch at one epsilon, ``steps`` steps from ``images + epsilon * start``; nothing is checked."""
        low, high = (images - epsilon).clamp_(*threat.bounds), (images + epsilon).clamp_(*threat.bounds)
        x, size = (images + epsilon * start).clamp_(*threat.bounds), self.step(epsilon)
        for _ in range(self.steps):
            x = torch.clamp(x + size * ascent(threat, x, labels), low, high)
        return x


def at_once(work: Callable[..., Tensor], jobs: Sequence[tuple[Any, ...]], workers: int) -> list[Tensor]:
    """``work`` of the arguments of each job, ``workers`` at once, each in a thread of its own and with one of torch's threads."""
    if min(workers, len(jobs)) <= 1:
        return [work(*job) for job in jobs]
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, *zip(*jobs, strict=True)))
    finally:
        torch.set_num_threads(threads)


def gradient(threat: Threat, images: Tensor, labels: Tensor) -> Tensor:
    """The gradient of each image's cross-entropy in the attacked logits, of the images' shape (n, C, H, W)."""
    x = images.detach().requires_grad_()
    with torch.enable_grad():
        loss = F.cross_entropy(finite(threat.attacked(x), threat.name), labels, reduction="sum")
        with running(f"the network under {threat.name}", images.shape):
            (found,) = torch.autograd.grad(loss, x)
    return finite(found, threat.name)


def ascent(threat: Threat, images: Tensor, labels: Tensor) -> Tensor:
    """The sign of the gradient: the direction in which the loss grows fastest in the l-infinity ball."""
    return gradient(threat, images, labels).sign_()


def judged(
    threat: Threat, images: Tensor, labels: Tensor, epsilons: Sequence[float], raw: Sequence[Tensor], batch_size: int = BATCH
) -> Outcome:
    """The outcome of ``raw``: clipped to ball and bounds, and whether each clipped image is classified otherwise."""
    clipped = [clip(images, made, epsilon, threat.bounds) for made, epsilon in zip(raw, epsilons, strict=True)]
    success = torch.stack([threat.predict(made, batch_size) != labels for made in clipped])
    return Outcome(list(raw), clipped, success)


def clip(images: Tensor, made: Tensor, epsilon: float, bounds: tuple[float, float]) -> Tensor:
    """``made`` brought into the ball of ``epsilon`` around ``images`` and into the bounds."""
    return torch.clamp(made, images - epsilon, images + epsilon).clamp_(*bounds)


def batches(images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels in portions of ``size``."""
    return zip(torch.split(images, size), torch.split(labels, size), strict=True)


def finite(values: Tensor, name: str) -> Tensor:
    """``values``, a NonFiniteOutput where one of them is NaN or infinite."""
    if not torch.isfinite(values).all():
        bad = (~torch.isfinite(values)).flatten(1).any(1).nonzero().flatten().tolist()
        raise NonFiniteOutput(
            f"{name}: the network's output or its gradient is NaN or infinite for {len(bad)} of {len(values)} images of a "
            f"batch (the first at {bad[0]}); an attack on it would seem to fail. Check the weights and the range of the images"
        )
    return values


@torch.no_grad()
def checked(threat: Threat, images: Tensor, labels: Tensor, epsilons: Epsilons) -> list[float]:
    """The epsilons as a list, once all arguments of an attack are checked.

    Raises
    ------
    ValueError
        An epsilon outside of [0, 1], or none; images that are not (n, C, H, W) floating point in the threat's bounds, n >= 1;
        labels that are not (n,) whole numbers 0..K-1; a network without a classifier.
    """
    values = listed(epsilons)
    _check_images(images, labels, threat.bounds)
    classes = n_classes(threat, images)
    for label in (int(labels.min()), int(labels.max())):
        if not 0 <= label < classes:
            raise ValueError(f"label {label} is not in 0..{classes - 1}, the classes of the network")
    return values


def listed(epsilons: Epsilons) -> list[float]:
    """``epsilons`` as a list, a single number as a list of one; a ValueError for an epsilon outside of [0, 1]."""
    values: list[float] = torch.as_tensor(epsilons, dtype=torch.float64).flatten().tolist()
    if not values:
        raise ValueError("epsilons is empty; give at least one, in [0, 1]")
    for epsilon in values:
        if not 0 <= epsilon <= 1:  # NaN too
            raise ValueError(
                f"epsilon {epsilon} is not in [0, 1]; it is given for images in [0, 1] (a value for [-1, 1] is to be halved, "
                "one for 0..255 divided by 255)"
            )
    return values


def n_classes(threat: Threat, images: Tensor) -> int:
    """K of the scored logits (n, K); a ValueError where they have another form."""
    with torch.no_grad():
        found = threat.scored(images[:1])
    return len(finite(checked_logits(found, 1), threat.name)[0])


def checked_logits(found: object, n: int) -> Tensor:
    """``found`` where these are logits (n, K) for n images; else a ValueError."""
    shape = tuple(found.shape) if isinstance(found, Tensor) else None
    if shape is None or len(shape) != 2 or shape[0] != n or not shape[1]:
        what = f"is a {type(found).__name__}" if shape is None else f"has shape {shape}"
        raise ValueError(f"the network's output for {n} images {what}, expected ({n}, classes); it needs a classifier")
    return found  # type: ignore[return-value]


def _check_images(images: Tensor, labels: Tensor, bounds: tuple[float, float]) -> None:
    if images.dim() != 4 or not len(images) or not images.is_floating_point():
        raise ValueError(
            f"images have shape {tuple(images.shape)} and type {images.dtype}, expected (n, C, H, W), floating point, n >= 1"
        )
    low, high = bounds
    if not (images.min() >= low and images.max() <= high):
        raise ValueError(
            f"images lie in [{images.min():.4g}, {images.max():.4g}], outside of [{low:g}, {high:g}]; give them unnormalised "
            "(the network's own scaling belongs into the threat)"
        )
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and type {labels.dtype}, expected ({len(images)},) whole numbers"
        )
