"""The settings of a training run, whose fields are also flags of the commands, and how runs are compared."""

from __future__ import annotations

import math
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
from cnnf_brain.model.zoo import ARCHITECTURES, short_spec
from cnnf_brain.types import option

NORM_LOSS = 2  # 1 took the norm of f(l) behind its normalisation
LATER_LOSSES = (("reduction", "mean"), ("smoothing", 0.0))  # settings that the first runs did not have, at their defaults
HALF = "float16"
AMPS = ("bfloat16", HALF)
DECAYS = ("steps", "cosine")
TRACKERS, TRACK = ("tensorboard", "wandb"), "where the numbers of log.jsonl go besides"
CNN = {"iterations": 0}  # the feedback of a network without any
TOO_SLOW = 2.5  # times as long as in float32: bfloat16 takes 0.2 to 1.7 with instructions of its own, without any 3 to 9
NEWER = {"ada_relu": "signed", "tolerance": None}  # settings that the first runs did not have, and their defaults


@dataclass(frozen=True)
class Command:
    """How a run was made: a line for its card, and its flags for ``config.toml``, which is not written where there are none."""

    line: str
    flags: str = ""

    @classmethod
    def of(cls, given: Command | str) -> Command:
        """A line alone as a Command."""
        return given if isinstance(given, Command) else cls(given)


@dataclass(frozen=True)
class LossWeights:
    """Weights of Table 1's losses beside the cross-entropy's 1; defaults as in Appendix B.1.

    ``reduction`` of the reconstruction loss over the elements of h: "mean", or "sum" as Table 1 prints it (else a ValueError).
    The printed sum with weight w is the mean with weight w times the number of elements (784 for an MNIST image).
    ``smoothing`` of the labels of the cross-entropy, in [0, 1).
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
    smoothing: float = option(
        0.0, "share of the target that goes evenly to all classes", flag="label-smoothing", least=0, below=1
    )

    def __post_init__(self) -> None:
        if self.reduction not in REDUCTIONS:
            raise unknown("reduction of the reconstruction loss", self.reduction, REDUCTIONS)
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing of the labels is {self.smoothing}, expected a number from 0 to below 1")

    def active(self) -> dict[str, float]:
        """Term -> weight, of those that are not zero; cross-entropy first."""
        weights = {term: getattr(self, term) for term in ("reconstruction", "latent", "norm")}
        return {"cross_entropy": 1.0, **{term: weight for term, weight in weights.items() if weight}}

    def configuration(self) -> dict[str, Any]:
        """As JSON values; reduction and smoothing only where they are not the default, as in configurations from before they were
        there. Where the norm loss is used, ``norm_loss`` says which one: a network of another is not taken for one of this."""
        found = {name: value for name, value in asdict(self).items() if (name, value) not in LATER_LOSSES}
        return {**found, "norm_loss": NORM_LOSS} if self.norm else found


def feedback_and_losses(
    model: str, feedback: Mapping[str, Any], losses: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """``feedback`` and ``losses`` of a run, as settings take them: none for the model "cnn"; for "cnnf" those given, else
    ``defaults``, else those of the records. Settings in NEWER have no entry where they are at their default, so that older runs
    go on."""
    if model == "cnn":
        return {"feedback": dict(CNN), "losses": LossWeights(0.0, 0.0, 0.0, smoothing=losses.get("smoothing", 0.0))}
    settings = FeedbackSettings(**{**defaults, **feedback}).as_dict()
    recorded = {name: value for name, value in settings.items() if NEWER.get(name, ...) != value}
    return {"feedback": recorded, "losses": LossWeights(**losses)}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The steps of a run and what is done between them; the defaults are the paper's for ImageNet (Huang et al. 2020, B.5.1).

    A batch and its learning rate are those of all ranks together; the rate is never scaled. ``decay_factor``: "decreased by
    10%" is 0.9 read literally, and 0.1 where it means what is usual on ImageNet. ``clip``: the largest norm of the gradient.
    ``max_bad``: the share of images that may be damaged. ``warmup``: steps over which the rate rises evenly to its value.
    ``decay``: "steps", or "cosine" from the end of the warm-up to 0 at the last step. ``ema``: a moving average of the weights,
    ``ema`` times itself plus 1 - ``ema`` times the weights after each step, is what is validated and kept. ``track``: names of
    TRACKERS that get the numbers of the log besides; None: those that the form of the log has by itself. A ValueError for a
    warm-up that is not shorter than the run, or an ``ema`` not between 0 and 1.
    """

    steps: int = option(200_000, "optimizer steps", above=0)
    learning_rate: float = option(0.005, "learning rate", flag="lr", above=0)
    decay_every: int = option(100_000, "between two decays of the learning rate", metavar="STEPS", above=0)
    decay_factor: float = option(0.9, '"decreased by 10%" read literally; 0.1 is the other reading', above=0)
    warmup: int = option(0, "over which the learning rate rises to its value", metavar="STEPS", least=0)
    decay: str = option("steps", "of the learning rate: by the factor, or as a cosine to 0 at the last step", choices=DECAYS)
    ema: float | None = option(
        None, "validate and keep a moving average of the weights (0.9999; default: none)", metavar="DECAY", above=0, below=1
    )
    clip: float | None = option(None, "scale gradients above this norm down to it (default: none)", metavar="NORM", above=0)
    seed: int = option(0, "of new layers, the order of the images, flips and dropout", least=0)
    accumulate: int = option(1, "of a rank's part of the batch, one after another", metavar="PORTIONS", above=0)
    channels_last: bool = option(False, "memory layout that is faster on most devices")
    compile: bool = option(False, "torch.compile")
    save_every: int = option(1000, "between two checkpoints", metavar="STEPS", above=0)
    keep: int = option(3, "checkpoints that stay, the newest", metavar="K", above=0)
    validate_every: int = option(5000, "between two validations", metavar="STEPS", above=0)
    log_every: int = option(20, "between two lines of the log", metavar="STEPS", above=0)
    track: tuple[str, ...] | None = option(None, f"{TRACK} (default: TensorBoard, where it is installed)", choices=TRACKERS)
    max_bad: float = option(0.001, "damaged images are skipped, up to this share", metavar="SHARE", least=0)

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < self.steps:
            raise ValueError(f"warmup {self.warmup}: expected a number of steps from 0 to below all {self.steps}")
        if self.decay not in DECAYS:
            raise unknown("decay of the learning rate", self.decay, DECAYS)
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema {self.ema}: expected a number between 0 and 1 such as 0.9999, or None")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step number ``step`` (the first is 0)."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.decay == "cosine":
            share = max(0, step - self.warmup) / (self.steps - self.warmup)
            return self.learning_rate * rise * (1 + math.cos(math.pi * share)) / 2
        return self.learning_rate * self.decay_factor ** (step // self.decay_every) * rise

    @property
    def course(self) -> str:
        """How the learning rate goes, in words."""
        rise = f"rising over {self.warmup} steps, then " if self.warmup else ""
        falls = f"x {self.decay_factor:g} every {self.decay_every}"
        return rise + (f"a cosine to 0 at step {self.steps}" if self.decay == "cosine" else falls)

    def validates(self, step: int) -> bool:
        """Whether there is a validation when ``step`` steps are done."""
        return step == self.steps or step % self.validate_every == 0


# Settings that change how a step is computed, not what it computes: its result differs in rounding, or not at all.
MEANS = ("accumulate", "checkpoint_iterations", "channels_last", "compile")
LATER = ("resize", "head", "hold", "warmup", "decay", "ema")  # settings that the first runs did not have
# Settings of what is done beside the steps.
BESIDE = ("steps", "save_every", "keep", "validate_every", "log_every", "track", "max_bad", "workers", "shard_optimizer")


@dataclass(frozen=True, kw_only=True)
class Recipe(Schedule):
    """How a network is trained on ImageNet: all settings of a run. The defaults are the paper's.

    The paper gives neither the iterations, target and step of the feedback, nor the weights of the losses, nor a weight decay.
    ``feedback``: what ``CNNF`` takes. ``image_size``, ``resize``: see ``image_batches.decode``. ``num_classes``: None for as many
    as the data has. A ValueError where settings contradict each other.
    """

    arch: str = option(
        "vgg16", f"the network: {', '.join(ARCHITECTURES)}, or your own as file.py:function", metavar="NETWORK"
    )
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
    amp: str | None = option(
        None,
        "mixed precision in training, float16 with loss scaling for GPUs without bfloat16; validation stays in float32",
        choices=AMPS,
    )
    shard_optimizer: bool = option(False, "of several ranks each holds a part of the optimizer's state (ZeRO)")
    checkpoint_iterations: bool = option(False, "less memory: compute each iteration again for its gradient")
    workers: int = option(4, "processes that decode, for each rank", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
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
        return f"{short_spec(self.arch)} {f'CNN-F-{n}' if n else 'CNN'}, ImageNet ({self.num_classes} classes)"

    def outcome(self) -> dict[str, Any]:
        """What decides what each step learns, as JSON values: a run is only continued where it is the same. Settings in LATER,
        which the first runs did not have, have an entry only where they are not at their default. The number of steps decides
        where the learning rate is a cosine."""
        settings = {**asdict(self), "losses": self.losses.configuration()}
        left_out = {*MEANS, *BESIDE, *(name for name in LATER if settings[name] == getattr(Recipe, name))}
        left_out -= {"steps"} if self.decay == "cosine" else set()
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
    """A ValueError where the ``device`` has no instructions for ``amp``, so that steps would take many times as long as in float32,
    and for float16 without a GPU; a RuntimeWarning where it is slower, but not that much. None is always fine."""
    if amp is None:
        return
    if device.type == "cuda":
        if amp != HALF and not torch.cuda.is_bf16_supported(including_emulation=False):
            card = torch.cuda.get_device_name(device)
            raise ValueError(f"amp {amp}: {card} has no instructions for it; set amp to None or {HALF}")
        return
    if amp == HALF:
        raise ValueError(f"amp {HALF} is for CUDA GPUs, and the device is {device.type}; set amp to None or {AMPS[0]}")
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
