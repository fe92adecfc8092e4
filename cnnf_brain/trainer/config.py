"""The settings of a training run, whose fields are also flags of the commands, and how runs are compared."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from cnnf_brain.checks import differences, unknown
from cnnf_brain.model.settings import FeedbackSettings
from cnnf_brain.model.state import REDUCTIONS
from cnnf_brain.model.weights import HEADS
from cnnf_brain.model.zoo import ARCHITECTURES
from cnnf_brain.types import option

NORM_LOSS = 2  # 1 took the norm of f(l) behind its normalisation
CNN = {"iterations": 0}  # the feedback of a network without any
TOO_SLOW = 2.5  # times as long as in float32: bfloat16 takes 0.2 to 1.7 with instructions of its own, without any 3 to 9
NEWER = {"ada_relu": "signed", "tolerance": None}  # settings that the first runs did not have, and their defaults


@dataclass(frozen=True)
class LossWeights:
    """Weights of Table 1's losses beside the cross-entropy's 1; defaults as in Appendix B.1.

    ``reduction`` of the reconstruction loss over the elements of h: "mean", or "sum" as Table 1 prints it (else a ValueError).
    The printed sum with weight w is the mean with weight w times the number of elements (784 for an MNIST image).
    """

    reconstruction: float = option(0.1, "weight of the reconstruction loss", metavar="WEIGHT", least=0)
    latent: float = option(0.0, "weight of the latent loss", metavar="WEIGHT", least=0)
    norm: float = option(0.0, "weight of the norm loss", metavar="WEIGHT", least=0)
    reduction: str = option(
        "mean",
        "of the reconstruction loss over elements: the mean, or the sum as Table 1 prints it",
        flag="reconstruction-reduction",
        choices=REDUCTIONS,
    )

    def __post_init__(self) -> None:
        if self.reduction not in REDUCTIONS:
            raise unknown("reduction of the reconstruction loss", self.reduction, REDUCTIONS)

    def active(self) -> dict[str, float]:
        """Term -> weight, of those that are not zero; cross-entropy first."""
        weights = {term: getattr(self, term) for term in ("reconstruction", "latent", "norm")}
        return {"cross_entropy": 1.0, **{term: weight for term, weight in weights.items() if weight}}

    def configuration(self) -> dict[str, Any]:
        """As JSON values; the reduction only where it is not the default, as in configurations from before it was there. Where the
        norm loss is used, ``norm_loss`` says which one: a network of another is not taken for one of this."""
        found = {name: value for name, value in asdict(self).items() if (name, value) != ("reduction", "mean")}
        return {**found, "norm_loss": NORM_LOSS} if self.norm else found


def feedback_and_losses(
    model: str, feedback: Mapping[str, Any], losses: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """``feedback`` and ``losses`` of a run, as settings take them: none for the model "cnn"; for "cnnf" those given, else
    ``defaults``, else those of the records. Settings in NEWER have no entry where they are at their default, so that older runs
    go on."""
    if model == "cnn":
        return {"feedback": dict(CNN), "losses": LossWeights(0.0, 0.0, 0.0)}
    settings = FeedbackSettings(**{**defaults, **feedback}).as_dict()
    recorded = {name: value for name, value in settings.items() if NEWER.get(name, ...) != value}
    return {"feedback": recorded, "losses": LossWeights(**losses)}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The steps of a run and what is done between them; the defaults are the paper's for ImageNet (Huang et al. 2020, B.5.1).

    A batch and its learning rate are those of all ranks together; the rate is never scaled. ``decay_factor``: "decreased by
    10%" is 0.9 read literally, and 0.1 where it means what is usual on ImageNet. ``clip``: the largest norm of the gradient.
    ``max_bad``: the share of images that may be damaged.
    """

    steps: int = option(200_000, "optimizer steps", above=0)
    learning_rate: float = option(0.005, "learning rate", flag="lr", above=0)
    decay_every: int = option(100_000, "between two decays of the learning rate", metavar="STEPS", above=0)
    decay_factor: float = option(0.9, '"decreased by 10%%" read literally; 0.1 is the other reading', above=0)
    clip: float | None = option(None, "scale gradients above this norm down to it (default: none)", metavar="NORM", above=0)
    seed: int = option(0, "of new layers, the order of the images, flips and dropout", least=0)
    accumulate: int = option(1, "of a rank's part of the batch, one after another", metavar="PORTIONS", above=0)
    channels_last: bool = option(False, "memory layout that is faster on most devices")
    compile: bool = option(False, "torch.compile")
    save_every: int = option(1000, "between two checkpoints", metavar="STEPS", above=0)
    keep: int = option(3, "checkpoints that stay, the newest", metavar="K", above=0)
    validate_every: int = option(5000, "between two validations", metavar="STEPS", above=0)
    log_every: int = option(20, "between two lines of the log", metavar="STEPS", above=0)
    max_bad: float = option(0.001, "damaged images are skipped, up to this share", metavar="SHARE", least=0)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step number ``step`` (the first is 0)."""
        return self.learning_rate * self.decay_factor ** (step // self.decay_every)

    def validates(self, step: int) -> bool:
        """Whether there is a validation when ``step`` steps are done."""
        return step == self.steps or step % self.validate_every == 0


# Settings that change how a step is computed, not what it computes: its result differs in rounding, or not at all.
MEANS = ("accumulate", "checkpoint_iterations", "channels_last", "compile")
LATER = ("resize", "head", "hold")  # settings that the first runs did not have
# Settings of what is done beside the steps.
BESIDE = ("steps", "save_every", "keep", "validate_every", "log_every", "max_bad", "workers")


@dataclass(frozen=True, kw_only=True)
class Recipe(Schedule):
    """How a network is trained on ImageNet: all settings of a run. The defaults are the paper's.

    The paper gives neither the iterations, target and step of the feedback, nor the weights of the losses, nor a weight decay.
    ``feedback``: what ``CNNF`` takes. ``image_size``, ``resize``: see ``image_batches.decode``. ``num_classes``: None for as many
    as the data has. A ValueError where settings contradict each other.
    """

    arch: str = option("vgg16", "the network", choices=ARCHITECTURES)
    weights: str = option(
        "IMAGENET1K_V1", "a published name, a file (convolutions alone: a new classifier on top) or none", metavar="FILE"
    )
    head: str = option(
        HEADS[0], "a new classifier: torchvision's, or the mean over the last map and one matrix (linear)", choices=HEADS
    )
    hold: str | None = option(
        None, "layers up to this one keep their weights (features.30: all convolutions)", metavar="LAYER"
    )
    feedback: dict[str, Any] = field(default_factory=lambda: {"iterations": 2})
    losses: LossWeights = field(default_factory=LossWeights)
    image_size: int = option(224, "the square that is shown", metavar="PIXELS", above=0)
    resize: int | None = option(
        None,
        "shorter side before the middle is cut out (torchvision: 256); default: the whole middle square",
        metavar="PIXELS",
        above=0,
    )
    num_classes: int | None = option(None, "default: as many as the data has", metavar="K", above=0)
    batch_size: int = option(128, "images of a step over all ranks", above=0)
    momentum: float = option(0.9, "of SGD", least=0)
    weight_decay: float = option(0.0, "of SGD; the paper states none", least=0)
    amp: str | None = option(None, "mixed precision in training; validation stays in float32", choices=("bfloat16",))
    checkpoint_iterations: bool = option(False, "less memory: compute each iteration again for its gradient")
    workers: int = option(4, "processes that decode, for each rank", least=0)

    def __post_init__(self) -> None:
        if self.losses.latent and self.feedback.get("match_layers"):
            raise ValueError(
                "the latent loss takes biases that are the same for each image, and with match_layers they are not; "
                "set match_layers to False, or the weight latent to 0"
            )
        if self.checkpoint_iterations and (self.losses.latent or self.losses.norm):
            raise ValueError(
                "checkpoint_iterations gives up the states that the latent and norm losses need; "
                "leave it out, or set their weights to 0"
            )
        if self.image_size < 32:
            raise ValueError(f"image_size {self.image_size}: nothing is left of it above the poolings; 32 is the least")
        if self.resize is not None and self.resize < self.image_size:
            raise ValueError(f"resize {self.resize}: expected at least image_size, {self.image_size} pixels, or None")

    @property
    def title(self) -> str:
        """The network and its task in words."""
        n = self.feedback["iterations"]
        return f"{self.arch} {f'CNN-F-{n}' if n else 'CNN'}, ImageNet ({self.num_classes} classes)"

    def outcome(self) -> dict[str, Any]:
        """What decides what each step learns, as JSON values: a run is only continued where it is the same. Settings in LATER,
        which the first runs did not have, have an entry only where they are not at their default."""
        settings = {**asdict(self), "losses": self.losses.configuration()}
        left_out = (*MEANS, *BESIDE, *(name for name in LATER if settings[name] == getattr(Recipe, name)))
        return {name: value for name, value in settings.items() if name not in left_out}


def check_same(old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
    """A ValueError that lists what differs between the configuration found at ``path`` and that of now."""
    found = differences(old, new)
    if found:
        raise ValueError(
            f"{path} is of another configuration ({'; '.join(found)}): give the same settings to continue it, "
            "or choose another output folder"
        )


def environment(device: torch.device) -> dict[str, Any]:
    """What the bits of a result depend on beside the configuration."""
    return {"torch": str(torch.__version__), "device": device.type, "threads": torch.get_num_threads()}


def check_amp(amp: str | None, device: torch.device) -> None:
    """A ValueError where the ``device`` has no instructions for ``amp``, so that steps would take many times as long as in float32;
    a RuntimeWarning where it is slower, but not that much. None is always fine."""
    if amp is None:
        return
    if device.type == "cuda":
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ValueError(f"amp {amp}: {torch.cuda.get_device_name(device)} has no instructions for it; set amp to None")
        return
    cost = cost_of(getattr(torch, amp))
    found = f"amp {amp}: on this processor a convolution takes {cost:.1f} times as long as in float32"
    if cost > TOO_SLOW:
        raise ValueError(f"{found}, as it has no instructions for it; set amp to None, or train where there are some")
    if cost > 1.2:
        warnings.warn(f"{found}; without amp the run is faster", RuntimeWarning, stacklevel=2)


def cost_of(dtype: torch.dtype) -> float:
    """How many times as long as in float32 a convolution takes on one core of this processor: the fastest of five each."""
    threads, seconds = torch.get_num_threads(), {torch.float32: float("inf"), dtype: float("inf")}
    shapes = ((4, 64, 28, 28), (64, 64, 3, 3))  # images, weights
    torch.set_num_threads(1)  # those of other cores may wait for other programs
    try:
        for kind in 5 * list(seconds):
            x, w = (torch.ones(shape, dtype=kind).contiguous(memory_format=torch.channels_last) for shape in shapes)
            begin = time.perf_counter()
            functional.conv2d(x, w)
            seconds[kind] = min(seconds[kind], time.perf_counter() - begin)
    finally:
        torch.set_num_threads(threads)
    return seconds[dtype] / seconds[torch.float32]
