"""A run of the small net on MNIST or Fashion-MNIST, from its settings to its weights and their card.

``training/mnist.py`` and ``cnnf_brain.robustness`` both train through ``train``.
"""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cnnf_brain import results
from cnnf_brain.datasets import mnist
from cnnf_brain.io import write_json
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.model.weights import read_weights
from cnnf_brain.model.zoo import small_net
from cnnf_brain.networks import pick_device
from cnnf_brain.results import commit, machine, versions
from cnnf_brain.trainer.adversary import Adversary
from cnnf_brain.trainer.card import WEIGHTS, check_finished, check_weights, finish
from cnnf_brain.trainer.config import check_same, environment
from cnnf_brain.trainer.loop import LossWeights, Schedule, Stop, Trainer, accuracy

STANDARD = {"epochs": 30, "learning_rate": 1e-3}  # Appendix B.1
ADVERSARIAL = {"epochs": 90, "learning_rate": 1e-4}


@dataclass(frozen=True)
class Settings:
    """All that decides the outcome of a run but the data itself.

    ``feedback``: what ``small_net`` takes (iterations 0 is a CNN); ``limit``: train on this many of the training images, evenly
    spaced; ``adversary``: adversarial training, its random starts seeded by ``seed``; ``amp``: "bfloat16" for mixed precision.
    """

    dataset: str
    feedback: dict[str, Any] = field(default_factory=lambda: {"iterations": 0})
    losses: LossWeights = field(default_factory=LossWeights)
    epochs: int = 30
    learning_rate: float = 1e-3
    weight_decay: float = 5e-4
    batch_size: int = 64
    seed: int = 0
    half: bool = False
    limit: int | None = None
    adversary: Adversary | None = None
    amp: str | None = None

    @property
    def title(self) -> str:
        """The network, its data and its training in words."""
        n, title = self.feedback["iterations"], mnist.TITLES[self.dataset]
        how = ""
        if self.adversary is not None:
            made = {"only": "adversarial images", "augment": "clean and adversarial images"}[self.adversary.mode]
            how = f", trained on {made} ({self.adversary.attack}, epsilon {self.adversary.epsilon:g})"
        return f"{f'CNN-F-{n}' if n else 'CNN'}, {title}{how}"

    def configuration(self, data_hash: str) -> dict[str, Any]:
        """The settings as JSON values. What was not asked for has no entry."""
        found: dict[str, Any] = {
            "title": self.title,
            "dataset": self.dataset,
            "data_hash": data_hash,
            "model": "cnnf" if self.feedback["iterations"] else "cnn",
            "feedback": self.feedback,
            "losses": self.losses.configuration(),
            "epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "dtype": "float16" if self.half else "float32",
        }
        if self.limit is not None:
            found["limit"] = self.limit
        if self.amp is not None:
            found["amp"] = self.amp
        if self.adversary is not None:
            found["adversarial"] = {name: value for name, value in asdict(self.adversary).items() if name != "seed"}
        return found


def train(
    settings: Settings,
    output: Path,
    command: str,
    *,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    save_every: int = 500,
    insist: bool = False,
    stop: Stop | None = None,
    measure: int | None = None,
) -> dict[str, Any] | None:
    """Train, or continue, or find finished, the run of ``settings`` in ``output``; its card, None where it was stopped.

    Parameters
    ----------
    command
        What the card says how the run was made.
    folder
        Of the IDX files; None: they are found, or downloaded.
    device
        A name ("auto": a CUDA GPU where there is one) or a torch device.
    insist
        A ValueError where there is no checkpoint to continue from.
    stop
        Asked after each step.
    measure
        Accuracy is measured on this many of the validation and of the test images, the first; None: on all.

    Raises
    ------
    ValueError
        ``output`` holds a run of other settings (says what differs); damaged data; settings that contradict each other.
    OSError
        ``output`` cannot be written, or another process is writing to it.
    NonFiniteLoss
        Training diverged; names the last good checkpoint.
    """
    with results.occupied(output):
        return _train(settings, output, command, folder, pick_device(device), save_every, insist, stop, measure)


def _train(
    settings: Settings,
    output: Path,
    command: str,
    folder: Path | None,
    device: torch.device,
    save_every: int,
    insist: bool,
    stop: Stop | None,
    measure: int | None,
) -> dict[str, Any] | None:
    source = mnist.find(settings.dataset, folder)
    configuration = settings.configuration(source.check())
    if (output / "card.json").exists():
        return finished(output, configuration)
    train_images, validation = mnist.split(source.read("train"))
    train_images, validation = limited(train_images, settings.limit), validation[np.arange(len(validation))[:measure]]
    torch.manual_seed(settings.seed)
    model = small_net(**settings.feedback).to(device).to(memory_format=torch.channels_last)  # on CPUs much faster
    optimizer = torch.optim.Adam(  # L2, as in the paper
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = Schedule(settings.epochs, settings.batch_size, settings.seed, save_every)
    trainer = Trainer(model, optimizer, settings.losses, schedule, configuration, output,
                      adversary=settings.adversary, amp=settings.amp)  # fmt: skip
    found = trainer.resume()
    if insist and found is None:
        raise ValueError(f"{output} has no checkpoint to continue; to start there, do not insist on one")
    record = {"command": command, "configuration": configuration, "commit": commit(), "versions": versions()}
    write_json(output / "config.json", {**record, "environment": environment(device)})
    print(
        f"{settings.title}: {len(train_images)} training and {len(validation)} validation images from {source.folder}, "
        f"{'continuing ' + str(found) if found else 'from the start'}, on {machine(device)}, output {output}"
    )
    if not trainer.run(train_images.to(device), validation.to(device), stop):
        print(f"stopped by {stop and stop.requested and stop.requested.name} after step {trainer.progress.step}, saved; "
              "the same command continues", file=sys.stderr)  # fmt: skip
        return None
    return measured(output, model, record, source, validation, trainer.progress.seconds, measure)


def limited(images: mnist.ImageSet, limit: int | None) -> mnist.ImageSet:
    """``limit`` of the images, evenly spaced; all of them for None."""
    if limit is None:
        return images
    if not 0 < limit <= len(images):
        raise ValueError(f"limit {limit}: expected a number from 1 to the {len(images)} training images")
    return images[np.arange(limit) * len(images) // limit]


def measured(
    output: Path,
    model: CNNF,
    record: dict[str, Any],
    source: mnist.Source,
    validation: mnist.ImageSet,
    seconds: float,
    measure: int | None = None,
) -> dict[str, Any]:
    """Measure the weights as they will be stored, and store them: the one place where the test images are used."""
    device = next(model.parameters()).device
    configuration = record["configuration"]
    card = {
        "title": configuration["title"],
        **record,
        "feedback": model.settings.as_dict(),
        "training_seconds": round(seconds),
        "machine": machine(device),
        "n_validation": len(validation),
    }
    dtype = getattr(torch, configuration["dtype"])
    stored = copy.deepcopy(model).to(dtype).to(torch.float32)
    card["validation_accuracy_before_storing"] = accuracy(model, validation.to(device))
    card["validation_accuracy"] = card["validation_accuracy_before_storing"]
    if dtype != torch.float32:
        card["validation_accuracy"] = accuracy(stored, validation.to(device))
    test = source.read("test")
    test = test[np.arange(len(test))[:measure]]
    card["n_test"] = len(test)
    card["test_accuracy"] = accuracy(stored, test.to(device))
    return finish(output, stored, card, dtype)


def finished(output: Path, configuration: dict[str, Any]) -> dict[str, Any]:
    """The card of the finished run in ``output``, its weights checked or restored; a ValueError where it is another run."""
    path = output / "card.json"
    card: dict[str, Any] = json.loads(path.read_text())
    check_same(card["configuration"], configuration, path)

    def is_last(state: dict[str, Any]) -> bool:
        return state["progress"]["epoch"] == configuration["epochs"]

    with torch.device("meta"):
        network = small_net(**configuration["feedback"])
    check_finished(output, card, network, is_last)
    return card


def load(folder: Path) -> tuple[CNNF, dict[str, Any]]:
    """The network of a finished run, in evaluation mode and channels_last, and its card.

    Raises
    ------
    LostWeights
        The weights are gone, damaged, or not those that the card speaks of (a ValueError).
    """
    card = json.loads((folder / "card.json").read_text())
    model = small_net(**card["configuration"]["feedback"])
    check_weights(folder, card, model)
    model.load_state_dict(read_weights(folder / WEIGHTS))
    return model.eval().to(memory_format=torch.channels_last), card
