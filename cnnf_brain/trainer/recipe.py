"""How a network is trained on ImageNet: one frozen record, whose defaults are the paper's (Huang et al. 2020, B.5.1)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from cnnf_brain.trainer.loop import LossWeights

# Settings that change how a step is computed, not what it computes: its result differs in rounding, or not at all.
MEANS = ("accumulate", "checkpoint_iterations", "channels_last", "compile")
# Settings of what is done beside the steps.
BESIDE = ("steps", "save_every", "keep", "validate_every", "log_every", "max_bad", "workers")


@dataclass(frozen=True)
class Recipe:
    """All settings of a run.

    ``batch_size`` counts the images of a step over all ranks; the learning rate belongs to it and is never scaled. The paper
    gives the batch, the steps, SGD with momentum, the learning rate, its decay every 100,000 steps and the flip; it gives
    neither the iterations, target and step of the feedback, nor the weights of the losses, nor a weight decay.
    ``decay_factor``: "decreased by 10%" is 0.9 read literally, and 0.1 where it means what is usual on ImageNet.
    ``image_size``, ``resize``: see ``image_data.decode``; without ``resize`` the whole middle square of an image is shown.
    ``clip``: the largest norm of the gradient, None for no limit. ``max_bad``: the share of images that may be damaged.
    """

    arch: str = "vgg16"
    weights: str = "IMAGENET1K_V1"
    feedback: dict[str, Any] = field(default_factory=lambda: {"iterations": 2})
    losses: LossWeights = field(default_factory=LossWeights)
    image_size: int = 224
    resize: int | None = None
    num_classes: int = 1000
    steps: int = 200_000
    batch_size: int = 128
    learning_rate: float = 0.005
    momentum: float = 0.9
    weight_decay: float = 0.0
    decay_every: int = 100_000
    decay_factor: float = 0.9
    clip: float | None = None
    seed: int = 0
    amp: str | None = None
    accumulate: int = 1
    checkpoint_iterations: bool = False
    channels_last: bool = False
    compile: bool = False
    save_every: int = 1000
    keep: int = 3
    validate_every: int = 5000
    log_every: int = 20
    max_bad: float = 0.001
    workers: int = 4

    def __post_init__(self) -> None:
        if self.losses.latent and self.feedback.get("match_layers"):
            raise ValueError("the latent loss takes biases that are the same for each image, and with match_layers they are not; "
                             "set match_layers to False, or the weight latent to 0")  # fmt: skip
        if self.checkpoint_iterations and (self.losses.latent or self.losses.norm):
            raise ValueError("checkpoint_iterations gives up the states that the latent and norm losses need; "
                             "leave it out, or set their weights to 0")  # fmt: skip
        if self.image_size < 32:
            raise ValueError(f"image_size {self.image_size}: nothing is left of it above the poolings; 32 is the least")
        if self.resize is not None and self.resize < self.image_size:
            raise ValueError(f"resize {self.resize}: expected at least image_size, {self.image_size} pixels, or None")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step number ``step`` (the first is 0)."""
        return self.learning_rate * self.decay_factor ** (step // self.decay_every)

    def outcome(self) -> dict[str, Any]:
        """What decides what each step learns, as JSON values: a run is only continued where it is the same.

        Settings that are newer than the first runs have an entry only where they are not the default, so that those go on.
        """
        settings = {**asdict(self), "losses": self.losses.configuration()}
        left_out = (*MEANS, *BESIDE, *(("resize",) if self.resize is None else ()))
        return {name: value for name, value in settings.items() if name not in left_out}

    def means(self) -> dict[str, Any]:
        """What decides the rounding alone."""
        return {name: getattr(self, name) for name in MEANS}
