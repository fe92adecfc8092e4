"""The parts of a grid: networks to train, cells to evaluate, networks to examine. Each is one file.

A cell is one attack on one network of one seed. Its file keeps, image by image, whether the network is right at every epsilon and
iteration. A file's name ends in a hash over all that decides its content, so that a changed grid computes what is new and no more.
The file also keeps the SHA-256 of the weights that it was made with: where the folder of networks holds other weights now, the file
is out of date, enters no table, and is made again.
"""

from __future__ import annotations

import io
import json
import time
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cnnf_brain.attacks import sanity_checks, threats
from cnnf_brain.attacks.external import APGD, HopSkipJump, Square, TargetedAPGD
from cnnf_brain.attacks.gradient import FGSM, PGD, Attack, Logits, Threat, finite
from cnnf_brain.io import atomic_path, short_hash, write_json
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.robustness.grids import Against, Model
from cnnf_brain.robustness.workshop import DIGITS, Workshop
from cnnf_brain.trainer import small
from cnnf_brain.trainer.card import WEIGHTS
from cnnf_brain.trainer.loop import Stop

FORMAT = "cnnf-brain robustness cell 2"


class Interrupted(Exception):
    """A stop was requested within a cell, of which nothing is kept."""


class Task(Protocol):
    """One file to be made."""

    @property
    def path(self) -> Path:
        """The file, which stands when the task is done."""
        ...

    @property
    def cost(self) -> float:
        """In passes of one image through the CNN."""
        ...

    @property
    def title(self) -> str:
        """What is done, in words."""
        ...

    def ready(self) -> bool:
        """Whether all that it needs is there."""
        ...

    def outdated(self) -> str:
        """Why its file, which stands, must be made again; empty where it must not."""
        ...

    def do(self, stop: Stop | None) -> bool:
        """Make the file; False where a stop was requested."""
        ...


@dataclass(frozen=True, eq=False)
class Training:
    """One network to train; its file is the card."""

    shop: Workshop
    model: Model
    seed: int

    @property
    def folder(self) -> Path:
        """Of the training run."""
        return self.shop.network_folder(self.model, self.seed)

    @property
    def path(self) -> Path:
        return self.folder / "card.json"

    @property
    def title(self) -> str:
        return f"training {self.model.label}, seed {self.seed}"

    @property
    def cost(self) -> float:
        settings = self.model.settings(self.shop.grid, self.seed)
        n, adversary = settings.limit or 55_000, settings.adversary
        crafted = 0 if adversary is None else {"fgsm": 2, "pgd7": 14, "pgd40": 80}[adversary.attack]
        batches = 2 if adversary is not None and adversary.mode == "augment" else 1
        return float(settings.epochs * n * (3 * (1 + 2 * self.model.iterations) * batches + crafted))

    def ready(self) -> bool:
        return True

    def outdated(self) -> str:
        return "" if (self.folder / WEIGHTS).exists() else f"{WEIGHTS} is gone"

    def do(self, stop: Stop | None) -> bool:
        settings, shop = self.model.settings(self.shop.grid, self.seed), self.shop
        found = small.train(settings, self.folder, shop.command, folder=shop.data_folder, device=shop.device, stop=stop)
        return found is not None


@dataclass(frozen=True, eq=False)
class Cell:
    """One attack on one network of one seed; its file holds ``correct`` (epsilon, iteration, image)."""

    shop: Workshop
    model: Model
    seed: int
    against: Against

    @property
    def attack(self) -> Attack:
        """The attack itself."""
        return self.shop.grid.attacks[self.against.attack]

    @property
    def epsilons(self) -> tuple[float, ...]:
        """Those of the grid, or of its worst case."""
        return self.shop.grid.strong_epsilons if self.against.strong else self.shop.grid.epsilons

    @property
    def images(self) -> int:
        """How many of the grid's images."""
        return self.shop.grid.strong_images if self.against.strong else self.shop.grid.images

    @property
    def iterations(self) -> int:
        """The last iteration at test."""
        return max(self.shop.grid.iterations, self.model.iterations) if self.model.iterations else 0

    @property
    def source(self) -> Model | None:
        """The CNN of equal training that a transfer attack follows."""
        if self.against.threat != "transfer":
            return None
        how = self.model.adversary and self.model.adversary.mode
        same = [m for m in self.shop.grid.models if not m.iterations and (m.adversary and m.adversary.mode) == how]
        return same[0] if same else None

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the content of the file."""
        shop, source = self.shop, self.source
        configuration = [m.settings(shop.grid, self.seed).configuration(shop.data_hash) for m in (self.model, source) if m]
        return {
            "format": FORMAT, "networks": configuration, "attack": repr(self.attack), "threat": self.against.threat,
            "epsilons": self.epsilons, "iterations": self.iterations, "part": shop.grid.part, "images": self.images,
        }  # fmt: skip

    @property
    def path(self) -> Path:
        words = f"{self.model.label}-seed{self.seed}-{self.against.attack}-{self.against.threat}"
        name = "".join(c if c.isalnum() or c in ".-" else "_" for c in words.lower())
        return self.shop.folder / "cells" / f"{name}-{short_hash(self.identity, DIGITS)}.npz"

    @property
    def title(self) -> str:
        return f"{self.against.label} on {self.model.label}, seed {self.seed}"

    @property
    def cost(self) -> float:
        whole = 1 + 2 * self.model.iterations
        followed = 1 if self.against.threat in ("first_pass", "transfer") else whole
        crafting = self.images * sum(1 for e in self.epsilons if e) * work_of(self.attack, followed, whole)
        return crafting + self.images * len(self.epsilons) * (1 + 2 * self.iterations)

    @property
    def weights(self) -> list[str | None]:
        """The SHA-256 of the weights of the network, and of the one that a transfer attack follows, as they are now."""
        return [self.shop.weights(m, self.seed) for m in (self.model, self.source) if m]

    def ready(self) -> bool:
        return None not in self.weights

    def outdated(self) -> str:
        return of_other_weights(self._about().get("weights_sha256"), self.weights)

    def do(self, stop: Stop | None) -> bool:
        started = time.monotonic()
        network, weights = self.shop.load(self.model, self.seed), self.weights
        source = self.shop.load(self.source, self.seed) if self.source else None
        images, labels = self.shop.images[: self.images], self.shop.labels[: self.images]
        threat = stoppable(named_threat(self.against.threat, network, source), stop)
        attack = self.attack
        if isinstance(attack, PGD) and images.device.type == "cpu":
            attack = replace(attack, workers=torch.get_num_threads())  # a CNN-F keeps nothing between calls
        try:
            made = attacked(attack, threat, images, labels, self.epsilons)
        except Interrupted:
            return False
        right = torch.stack([correct(network, x, labels, self.iterations) for x in made]).cpu().numpy()
        about = {
            "identity": self.identity, "model": self.model.label, "seed": self.seed, "weights_sha256": weights,
            "seconds": round(time.monotonic() - started, 1),
        }  # fmt: skip
        with atomic_path(self.path) as temporary:
            np.savez_compressed(temporary, correct=right, about=np.array(json.dumps(about)))
        return True

    def read(self) -> np.ndarray:
        """``correct`` (epsilon, iteration, image), bool; a ValueError where the file is damaged."""
        values, about = read_cell(self.path)
        if about["identity"] != json.loads(json.dumps(self.identity)):
            raise ValueError(f"{self.path} is not what its name says; remove it, and the same command makes it again")
        return values

    def _about(self) -> dict[str, Any]:
        return _about(self.path, self.path.stat().st_mtime_ns)


def read_cell(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """``correct`` and what the file says about itself; a ValueError where it is damaged."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as file:  # no pickles: nothing in it is run
            values, about = file["correct"], json.loads(str(file["about"]))
            return values, {"identity": about["identity"], "weights_sha256": about["weights_sha256"]}
    except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, and the same command makes it again") from error


@lru_cache(maxsize=10_000)
def _about(path: Path, _written_at: int) -> dict[str, Any]:
    return read_cell(path)[1]


def of_other_weights(stored: Iterable[str] | None, now: list[str | None]) -> str:
    """In words, where a file was made with other weights than those that are there now; else empty."""
    before = list(stored or [])
    if before == now:
        return ""
    names = [", ".join((digest or "none")[:8] for digest in digests) or "unknown" for digests in (before, now)]
    return f"made with other weights (SHA-256 {names[0]}; now {names[1]})"


@dataclass(frozen=True, eq=False)
class Examination:
    """The checks of ``attacks.suspicion`` on one network; its file holds the findings."""

    shop: Workshop
    model: Model
    seed: int

    @property
    def settings(self) -> dict[str, Any]:
        """Steps, epsilons and number of images."""
        grid = self.shop.grid
        if grid.weaker:
            return {"steps": (1, 5, 20), "epsilons": (0.1, 0.3, 1.0), "images": min(20, grid.images), "slack": 0.05}
        return {
            "steps": (1, 10, 40, 100),
            "epsilons": (0.05, 0.1, 0.2, 0.3, 0.5, 1.0),
            "images": min(100, grid.images),
            "slack": 0.02,
        }

    @property
    def path(self) -> Path:
        configuration = self.model.settings(self.shop.grid, self.seed).configuration(self.shop.data_hash)
        mark = short_hash([FORMAT, configuration, self.settings, self.epsilon, self.shop.grid.part], DIGITS)
        return self.shop.folder / "cells" / f"examination-seed{self.seed}-{mark}.json"

    @property
    def epsilon(self) -> float:
        """At which the number of steps is varied."""
        return self.shop.grid.strong_epsilons[0]

    @property
    def title(self) -> str:
        return f"checks of the attacks on {self.model.label}, seed {self.seed}"

    @property
    def cost(self) -> float:
        steps, epsilons = self.settings["steps"], self.settings["epsilons"]
        n = sum(steps) + len(epsilons) * steps[len(steps) // 2]
        return float(self.settings["images"] * n * 2 * (1 + 2 * self.model.iterations))

    def ready(self) -> bool:
        return self.shop.weights(self.model, self.seed) is not None

    def outdated(self) -> str:
        return of_other_weights(self.read().get("weights_sha256"), [self.shop.weights(self.model, self.seed)])

    def read(self) -> dict[str, Any]:
        """The findings and what they are of; a ValueError where the file is damaged."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            return {name: content[name] for name in ("seed", "findings", "weights_sha256")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is damaged ({error}); remove it, and the same command makes it again") from error

    def do(self, stop: Stop | None) -> bool:
        network, weights = self.shop.load(self.model, self.seed), [self.shop.weights(self.model, self.seed)]
        settings = dict(self.settings)
        n = settings.pop("images")
        threat = stoppable(threats.end_to_end(network), stop)
        try:
            found = sanity_checks.examine(threat, self.shop.images[:n], self.shop.labels[:n], self.epsilon, **settings)
        except Interrupted:
            return False
        findings = [{"name": f.name, "holds": f.holds, "detail": f.detail} for f in found]
        write_json(self.path, {"model": self.model.label, "seed": self.seed, "images": n, "weights_sha256": weights,
                               "findings": findings})  # fmt: skip
        return True


def named_threat(name: str, network: threats.Attacked, source: threats.Attacked | None) -> Threat:
    """The threat of ``attacks.threats`` on ``network`` at its own number of iterations."""
    if name == "transfer":
        assert source is not None
        return threats.transfer(network, source)
    return getattr(threats, name)(network)  # type: ignore[no-any-return]


def stoppable(threat: Threat, stop: Stop | None) -> Threat:
    """The threat, whose logits raise Interrupted once a stop is requested."""

    def asked(logits: Logits) -> Logits:
        def careful(images: Tensor) -> Tensor:
            if stop is not None and stop.requested:
                raise Interrupted
            return logits(images)

        return careful

    return replace(threat, scored=asked(threat.scored), attacked=asked(threat.attacked))


def attacked(attack: Attack, threat: Threat, images: Tensor, labels: Tensor, epsilons: Sequence[float]) -> list[Tensor]:
    """The clipped images for each epsilon; at 0 the images themselves."""
    above = [epsilon for epsilon in epsilons if epsilon]
    made = dict(zip(above, attack(threat, images, labels, above).clipped, strict=True)) if above else {}
    return [made[epsilon] if epsilon else images for epsilon in epsilons]


@torch.no_grad()
def correct(
    network: threats.WithPreprocessing, images: Tensor, labels: Tensor, iterations: int, batch_size: int = 100
) -> Tensor:
    """(iterations + 1, n) bool: whether each image is classified as its label at each iteration."""
    module, enter = threats.opened(network)
    assert isinstance(module, CNNF)
    parts = [
        finite(module.unroll(enter(x), iterations=iterations).logits, "at test").argmax(-1) == y
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True)
    ]
    return torch.cat(parts, 1)


def work_of(attack: Attack, followed: int, whole: int) -> float:
    """Passes through the CNN that an attack takes for one image at one epsilon: a gradient is two passes of what is followed."""
    if isinstance(attack, FGSM):
        return 2.0 * followed
    if isinstance(attack, PGD):
        return 2.0 * followed * attack.steps * attack.restarts
    if isinstance(attack, APGD):
        return 2.0 * followed * attack.steps * attack.restarts
    if isinstance(attack, TargetedAPGD):
        return 1.0 * followed * attack.steps * attack.targets  # about half of the images fall to an earlier target
    if isinstance(attack, Square):
        return 0.5 * whole * attack.queries  # likewise
    assert isinstance(attack, HopSkipJump)
    return float(whole * (100 + attack.rounds * 60))
