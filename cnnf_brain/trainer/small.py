"""A run of the small net on MNIST or Fashion-MNIST, on clean or adversarial images, from its settings to its weights and card.

``training/mnist.py`` and ``cnnf_brain.robustness`` both train through ``train``.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnf_brain import results
from cnnf_brain.attacks import threats
from cnnf_brain.attacks.gradient import FGSM, PGD, ascent, clip
from cnnf_brain.checks import unknown
from cnnf_brain.datasets import mnist
from cnnf_brain.images import Preprocessing, pick_device
from cnnf_brain.io import reading
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.model.weights import WEIGHTS, read_weights
from cnnf_brain.model.zoo import small_net
from cnnf_brain.results import machine
from cnnf_brain.trainer.checkpoint import about, check_weights, finish, finished, read_run_card
from cnnf_brain.trainer.config import CNN, TRACK, TRACKERS, Command, LossWeights, Schedule
from cnnf_brain.trainer.distributed import Ranks
from cnnf_brain.trainer.loop import Hooks, Objective, Run, Trainer
from cnnf_brain.trainer.metrics import Accuracy, EpochLogger, check_trackers, measure
from cnnf_brain.types import option
from cnnf_brain.work import Stop

STANDARD = {"epochs": 30, "learning_rate": 1e-3}  # Appendix B.1
ADVERSARIAL = {"epochs": 90, "learning_rate": 1e-4}
MODES = ("only", "augment")
ADVERSARIAL_HELP = "train on adversarial images alone (only), or clean and adversarial ones together (augment)"
STEP_HELP = "step size of PGD, for images in [0, 1] (default: the paper's, 0.01 to 0.015)"
UNITS = Preprocessing(28, mean=(0.5,), std=(0.5,))  # the small net takes images in [-1, 1]
ATTACKS: dict[str, FGSM | PGD] = {"fgsm": FGSM(), "pgd7": PGD(7), "pgd40": PGD(40)}


@dataclass(frozen=True)
class Adversary:
    """Adversarial training: which images a step sees (Appendix B.1).

    ``mode``: "only" adversarial images, or "augment", clean and adversarial ones together. In both the reconstruction loss of an
    adversarial image is against the target features of its clean one. ``attack``: "fgsm", "pgd7" or "pgd40", on the first pass of
    the weights of that step; ``epsilon`` and ``step_size`` (None: the paper's) for images in [0, 1]. Random starts come from
    ``seed`` and the number of the step alone. A ValueError for settings outside of these.
    """

    mode: str = option("only", ADVERSARIAL_HELP, flag="adversarial", choices=MODES)
    attack: str = option("pgd7", "of adversarial training", choices=sorted(ATTACKS))
    epsilon: float = option(0.3, "of adversarial training, for images in [0, 1]", least=0, most=1)
    step_size: float | None = option(None, STEP_HELP, flag="attack-step", above=0)
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
            clean, _ = model.below_target(images, set())
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


@dataclass(frozen=True)
class Settings:
    """All that decides the outcome of a run but the data itself; the defaults are the paper's standard training.

    ``feedback``: what ``small_net`` takes (iterations 0 is a CNN); ``limit``: train on this many of the training images, evenly
    spaced; ``adversary``: adversarial training, its random starts seeded by ``seed``; ``amp``: "bfloat16" for mixed precision.
    Beside the weights: ``save_every``, steps between checkpoints within an epoch; ``track``, see ``Schedule``; ``measure``, the
    accuracy is measured on this many of the validation and of the test images, the first (None: on all).
    """

    dataset: str
    feedback: dict[str, Any] = field(default_factory=lambda: dict(CNN))
    losses: LossWeights = field(default_factory=LossWeights)
    epochs: int = option(30, "passes over the training images", above=0)
    learning_rate: float = option(1e-3, "learning rate of Adam", flag="lr", above=0)
    weight_decay: float = option(5e-4, "of Adam, an L2 term in the gradient", least=0)
    batch_size: int = option(64, "clean images of a step", above=0)
    seed: int = 0
    half: bool = option(False, "store the weights in float16, and measure those")
    limit: int | None = option(
        None, "only N of the training images, evenly spaced (to try things out)", metavar="N", above=0
    )
    adversary: Adversary | None = None
    amp: str | None = option(None, "mixed precision in training; validation and test stay in float32", choices=("bfloat16",))
    save_every: int = option(500, "between two checkpoints", metavar="STEPS", above=0)
    track: tuple[str, ...] | None = option(None, f"{TRACK} (default: nowhere else)", choices=TRACKERS)
    measure: int | None = None

    @property
    def title(self) -> str:
        """The network, its data and its training in words."""
        n, made = self.feedback["iterations"], self.adversary
        title = f"{f'CNN-F-{n}' if n else 'CNN'}, {mnist.TITLES[self.dataset]}"
        if made is None:
            return title
        clean = "clean and " if made.mode == "augment" else ""
        return f"{title}, trained on {clean}adversarial images ({made.attack}, epsilon {made.epsilon:g})"

    def configuration(self, data_hash: str) -> dict[str, Any]:
        """The settings as JSON values. What was not asked for has no entry."""
        as_they_are = ("epochs", "learning_rate", "weight_decay", "batch_size", "seed")
        asked: dict[str, Any] = {"limit": self.limit, "amp": self.amp}
        if self.adversary is not None:
            asked["adversarial"] = {name: value for name, value in asdict(self.adversary).items() if name != "seed"}
        return {
            "title": self.title,
            "dataset": self.dataset,
            "data_hash": data_hash,
            "model": "cnnf" if self.feedback["iterations"] else "cnn",
            "feedback": self.feedback,
            "losses": self.losses.configuration(),
            **{name: getattr(self, name) for name in as_they_are},
            "dtype": "float16" if self.half else "float32",
            **{name: value for name, value in asked.items() if value is not None},
        }

    def schedule(self, steps_per_epoch: int) -> Schedule:
        """The steps of all epochs, with a validation and a line of the log at the end of each."""
        return Schedule(
            steps=self.epochs * steps_per_epoch,
            learning_rate=self.learning_rate,
            decay_factor=1.0,
            seed=self.seed,
            save_every=self.save_every,
            validate_every=steps_per_epoch,
            log_every=steps_per_epoch,
            track=self.track,
        )


def train(
    settings: Settings,
    output: Path,
    command: Command | str,
    *,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    insist: bool = False,
    stop: Stop | None = None,
) -> dict[str, Any] | None:
    """Train, or continue, or find finished, the run of ``settings`` in ``output``; its card, None where it was stopped.

    ``command``: how the run was made, for the card and ``config.toml``. ``folder``: of the IDX files; None: they are found, or
    downloaded. ``device``: a name ("auto": a CUDA GPU where there is one) or a torch device. ``insist``: a ValueError where there
    is no checkpoint to continue from. ``stop``: asked before each step.

    A ValueError where ``output`` holds a run of other settings (says what differs), data are damaged or settings contradict each
    other; an OSError where ``output`` cannot be written, or another process is writing to it; NonFiniteLoss where training
    diverged.
    """
    check_trackers(settings.track or ())
    command = Command.of(command)
    with results.occupied(output):
        ranks, source = Ranks(device=pick_device(device)), mnist.find(settings.dataset, folder)
        configuration = settings.configuration(source.check())
        images, validation = mnist.split(source.read("train"))
        images, validation = limited(images, settings.limit), validation[: settings.measure]
        batches = mnist.MemoryBatches(images.to(ranks.device), settings.batch_size, settings.seed)
        schedule = settings.schedule(batches.steps_per_epoch)
        card = finished(output, configuration, schedule.steps, lambda: small_net(**settings.feedback))
        if card is not None:
            return card
        torch.manual_seed(settings.seed)
        model = small_net(**settings.feedback).to(ranks.device).to(memory_format=torch.channels_last)  # on CPUs much faster
        # the weight decay is L2, as in the paper
        descent: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
        perturb = partial(settings.adversary.batch, model) if settings.adversary else None
        trainer = Trainer(
            Objective(model, settings.losses, amp=settings.amp),
            torch.optim.Adam(model.parameters(), **descent),
            batches,
            schedule,
            Run(output, configuration),
            Hooks(lambda network: accuracy(network, validation), perturb=perturb, logger=EpochLogger, watchful=True),
            ranks,
        )
        record = about(command.line, configuration)
        counts = f"{len(images)} training and {len(validation)} validation images"
        trainer.begin(record, f"{settings.title}: {counts} from {source.folder}, ", insist=insist, flags=command.flags)
        if not trainer.run(stop):
            return None
        assert trainer.position.validation is not None
        shares = trainer.position.validation["top1"]
        card = {
            "title": settings.title,
            **record,
            "feedback": model.settings.as_dict(),
            "training_seconds": round(trainer.position.seconds),
            "machine": machine(ranks.device),
            "n_validation": len(validation),
            "validation_accuracy_before_storing": shares,
            "validation_accuracy": shares,
        }
        dtype = torch.float16 if settings.half else torch.float32
        stored = copy.deepcopy(model).to(dtype).to(torch.float32)
        if settings.half:
            card["validation_accuracy"] = list(accuracy(stored, validation).top1)
        test = source.read("test")[: settings.measure]  # the one place where the test images are used
        card |= {"n_test": len(test), "test_accuracy": list(accuracy(stored, test).top1)}
        return finish(output, stored, card, dtype)


def limited(images: mnist.ImageSet, limit: int | None) -> mnist.ImageSet:
    """``limit`` of the images, evenly spaced; all of them for None."""
    if limit is None:
        return images
    if not 0 < limit <= len(images):
        raise ValueError(f"limit {limit}: expected a number from 1 to the {len(images)} training images")
    return images[np.arange(limit) * len(images) // limit]


def accuracy(model: CNNF, images: mnist.ImageSet, batch_size: int = 500) -> Accuracy:
    """The accuracy of ``model`` over ``images`` in evaluation mode, at each iteration 0..N."""
    training, ranks = model.training, Ranks(device=next(model.parameters()).device)
    batches = mnist.MemoryBatches(images, batch_size)
    found = measure(lambda x: model.eval().unroll(batches.prepare(x)).logits, batches.once(), model.iterations, ranks)
    model.train(training)
    return found


def load(folder: Path) -> tuple[CNNF, dict[str, Any]]:
    """The network of a finished run, in evaluation mode and channels_last, and its card; LostWeights where ``check_weights``
    finds them gone, damaged, or not those that the card speaks of."""
    card = read_run_card(folder / "card.json")
    with reading(folder / "card.json", "the card of a run"):
        model = small_net(**card["configuration"]["feedback"])
    check_weights(folder, card, model)
    model.load_state_dict(read_weights(folder / WEIGHTS))
    return model.eval().to(memory_format=torch.channels_last), card
