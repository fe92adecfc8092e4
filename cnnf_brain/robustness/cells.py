"""The parts of a grid: networks to train, cells to evaluate, networks to examine. Each is a file.

A cell is one attack on one network of one seed. Its file keeps, image by image, whether the network is right at every epsilon and
iteration. The name of a file ends in a hash over all that decides its content, so that a changed grid computes what is new and no
more. The file also keeps the SHA-256 of the weights that it was made with. Where the folder of networks holds other weights now,
the file is out of date: it enters no table and is made again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cnnf_brain import work
from cnnf_brain.attacks import sanity_checks, threats
from cnnf_brain.attacks.gradient import PGD, Attack, Logits, Threat, finite
from cnnf_brain.io import atomic_path, open_file, read_json, reading, sha256, write_json
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.model.weights import WEIGHTS
from cnnf_brain.robustness.grids import PASSES, Against, Grid, Model
from cnnf_brain.trainer import small
from cnnf_brain.trainer.small import UNITS
from cnnf_brain.work import AGAIN, Interrupted, Stop, file_name, read_once

Right = npt.NDArray[np.bool_]  # (epsilon, iteration, image): is the image classified rightly?
FORMAT = "cnnf-brain robustness cell 2"
TRAINING_IMAGES = 55_000  # all that are not kept for validation
CRAFTING = {"fgsm": 2, "pgd7": 14, "pgd40": 80}  # passes to make an image to train on


@dataclass(frozen=True, eq=False)
class Workshop:
    """Where a grid is worked at: its folder, that of the networks (which grids share), the images, the device.

    ``images`` (n, 1, 28, 28) in [0, 1] and ``labels`` (n,) are those that are attacked.
    """

    grid: Grid
    folder: Path
    models: Path
    data_folder: Path | None
    data_hash: str
    images: Tensor
    labels: Tensor
    command: str
    device: torch.device | str = "cpu"

    def network_folder(self, model: Model, seed: int) -> Path:
        """The folder of the run of one seed; grids share it where the configuration is the same."""
        name = f"{self.grid.dataset}-{f'cnnf-{model.iterations}' if model.iterations else 'cnn'}-seed{seed}"
        return self.models / file_name(name, self.configuration_of(model, seed), "")

    def configuration_of(self, model: Model, seed: int) -> dict[str, Any]:
        """All that decides a network."""
        return model.settings(self.grid, seed).configuration(self.data_hash)

    def weights(self, model: Model, seed: int) -> str | None:
        """The SHA-256 of a network's weights as they are now; None where it is not trained, or they are gone."""
        folder = self.network_folder(model, seed)
        path = folder / WEIGHTS
        if not (path.exists() and (folder / "card.json").exists()):
            return None
        return read_once(sha256, path)  # type: ignore[no-any-return]

    def load(self, model: Model, seed: int) -> threats.WithPreprocessing:
        """A trained network on the device, with its preprocessing."""
        module, _ = small.load(self.network_folder(model, seed))
        return threats.WithPreprocessing(module.to(self.device), UNITS)

    @property
    def configuration(self) -> dict[str, Any]:
        """To what a folder of results belongs; seeds, images and epsilons may be added later, training and attacks stay."""
        names = ("recipe", "quick", "dataset", "part", "limit", "epochs", "learning_rate", "amp", "weaker")
        same = {name: getattr(self.grid, name) for name in names}
        return {"experiment": self.grid.name, "data_hash": self.data_hash, **same}


@dataclass(frozen=True, eq=False)
class Task(work.Task):
    """One file to be made, of a network of one seed; its cost is in passes of one image through the CNN."""

    shop: Workshop
    model: Model
    seed: int

    def made_with(self) -> list[str] | None:
        """The SHA-256 of the weights that the file, which stands, was made with; a ValueError where it is damaged."""
        return []

    @property
    def networks(self) -> list[Model]:
        """Those that must be trained before."""
        return [self.model]

    @property
    def weights(self) -> list[str | None]:
        """The SHA-256 of the weights of ``networks`` as they are now."""
        return [self.shop.weights(model, self.seed) for model in self.networks]

    def ready(self) -> bool:
        """Whether its networks are trained."""
        return None not in self.weights

    def outdated(self) -> str:
        """Why its file, which stands, must be made again; empty where it must not."""
        before, now = self.made_with() or [], self.weights
        names = [", ".join((digest or "none")[:8] for digest in digests) or "unknown" for digests in (before, now)]
        return "" if before == now else f"made with other weights (SHA-256 {names[0]}; now {names[1]})"


class Training(Task):
    """A network to train; its file is the card."""

    @property
    def path(self) -> Path:
        return self.shop.network_folder(self.model, self.seed) / "card.json"

    @property
    def title(self) -> str:
        return f"training {self.model.label}, seed {self.seed}"

    @property
    def cost(self) -> float:
        settings = self.model.settings(self.shop.grid, self.seed)
        n, adversary = settings.limit or TRAINING_IMAGES, settings.adversary
        batches = 2 if adversary is not None and adversary.mode == "augment" else 1
        passes = 3 * (1 + 2 * self.model.iterations) * batches + (CRAFTING[adversary.attack] if adversary else 0)
        return float(settings.epochs * n * passes)

    @property
    def networks(self) -> list[Model]:
        return []

    def outdated(self) -> str:
        return "" if (self.path.parent / WEIGHTS).exists() else f"{WEIGHTS} is gone"

    def make(self, stop: Stop | None) -> None:
        shop, settings = self.shop, self.model.settings(self.shop.grid, self.seed)
        folder, output = shop.data_folder, self.path.parent
        if small.train(settings, output, shop.command, folder=folder, device=shop.device, stop=stop) is None:
            raise Interrupted


@dataclass(frozen=True, eq=False)
class Cell(Task):
    """One attack on one network; its file holds ``correct`` (epsilon, iteration, image)."""

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
        """How many images of the grid are attacked."""
        return self.shop.grid.strong_images if self.against.strong else self.shop.grid.images

    @property
    def iterations(self) -> int:
        """The last iteration at test."""
        return max(self.shop.grid.iterations, self.model.iterations) if self.model.iterations else 0

    @property
    def source(self) -> Model | None:
        """The CNN of equal training that a transfer attack follows."""
        how = self.model.adversary and self.model.adversary.mode
        same = [m for m in self.shop.grid.models if not m.iterations and (m.adversary and m.adversary.mode) == how]
        return same[0] if same and self.against.threat == "transfer" else None

    @property
    def networks(self) -> list[Model]:
        return [self.model, self.source] if self.source else [self.model]

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the content of the file."""
        networks = [self.shop.configuration_of(model, self.seed) for model in self.networks]
        how = {"attack": repr(self.attack), "threat": self.against.threat, "epsilons": self.epsilons}
        where = {"iterations": self.iterations, "part": self.shop.grid.part, "images": self.images}
        return {"format": FORMAT, "networks": networks, **how, **where}

    @property
    def path(self) -> Path:
        words = f"{self.model.label}-seed{self.seed}-{self.against.attack}-{self.against.threat}"
        return self.shop.folder / "cells" / file_name(words, self.identity, ".npz")

    @property
    def title(self) -> str:
        return f"{self.against.label} on {self.model.label}, seed {self.seed}"

    @property
    def cost(self) -> float:
        whole = 1 + 2 * self.model.iterations
        followed = 1 if self.against.threat in ("first_pass", "transfer") else whole
        crafting = sum(1 for e in self.epsilons if e) * PASSES[type(self.attack)](self.attack, followed, whole)
        return float(self.images * (crafting + len(self.epsilons) * (1 + 2 * self.iterations)))

    def made_with(self) -> list[str] | None:
        return read_once(_weights_of, self.path)  # type: ignore[no-any-return]

    def make(self, stop: Stop | None) -> None:
        started, weights = time.monotonic(), self.weights
        network, *source = (self.shop.load(model, self.seed) for model in self.networks)
        images, labels = self.shop.images[: self.images], self.shop.labels[: self.images]
        attack = self.attack
        if isinstance(attack, PGD) and images.device.type == "cpu":
            attack = replace(attack, workers=torch.get_num_threads())  # a CNN-F keeps nothing between calls
        threat = stoppable(getattr(threats, self.against.threat)(network, *source), stop)
        made = attacked(attack, threat, images, labels, self.epsilons)
        right = torch.stack([correct(network, x, labels, self.iterations) for x in made]).cpu().numpy()
        about = {"identity": self.identity, "model": self.model.label, "seed": self.seed, "weights_sha256": weights}
        about["seconds"] = round(time.monotonic() - started, 1)
        with atomic_path(self.path) as temporary:
            np.savez_compressed(temporary, correct=right, about=np.array(json.dumps(about)))

    def read(self) -> Right:
        """``correct`` (epsilon, iteration, image), bool; a ValueError where the file is damaged."""
        values, about = read_cell(self.path)
        if about["identity"] != json.loads(json.dumps(self.identity)):
            raise ValueError(f"{self.path} is not what its name says; {AGAIN}")
        return values


def read_cell(path: Path) -> tuple[Right, dict[str, Any]]:
    """``correct`` and what the file says about itself; a ValueError where it is damaged."""
    # no pickles: nothing in it is run
    with reading(path, "a cell", AGAIN), open_file(path) as opened, np.load(opened) as file:
        values, about = file["correct"], json.loads(str(file["about"]))
        return values, {"identity": about["identity"], "weights_sha256": about["weights_sha256"]}


def _weights_of(path: Path) -> Any:
    return read_cell(path)[1]["weights_sha256"]


class Examination(Task):
    """The sanity checks of a network under attack; its file holds the findings."""

    @property
    def settings(self) -> dict[str, Any]:
        """Steps, epsilons and number of images."""
        n = self.shop.grid.images
        if self.shop.grid.weaker:
            return {"steps": (1, 5, 20), "epsilons": (0.1, 0.3, 1.0), "images": min(20, n), "slack": 0.05}
        epsilons = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
        return {"steps": (1, 10, 40, 100), "epsilons": epsilons, "images": min(100, n), "slack": 0.02}

    @property
    def path(self) -> Path:
        network, part = self.shop.configuration_of(self.model, self.seed), self.shop.grid.part
        identity = [FORMAT, network, self.settings, self.shop.grid.strong_epsilons[0], part]
        return self.shop.folder / "cells" / file_name(f"examination-seed{self.seed}", identity, ".json")

    @property
    def title(self) -> str:
        return f"checks of the attacks on {self.model.label}, seed {self.seed}"

    @property
    def cost(self) -> float:
        steps, epsilons = self.settings["steps"], self.settings["epsilons"]
        n = sum(steps) + len(epsilons) * steps[len(steps) // 2]
        return float(self.settings["images"] * n * 2 * (1 + 2 * self.model.iterations))

    def made_with(self) -> list[str] | None:
        return self.read()["weights_sha256"]  # type: ignore[no-any-return]

    def read(self) -> dict[str, Any]:
        """The findings and what they are of; a ValueError where the file is damaged."""
        with reading(self.path, "an examination", AGAIN):
            content = read_json(self.path, AGAIN)
            return {name: content[name] for name in ("seed", "findings", "weights_sha256")}

    def make(self, stop: Stop | None) -> None:
        weights, settings = self.weights, self.settings
        n = settings.pop("images")
        threat = stoppable(threats.end_to_end(self.shop.load(self.model, self.seed)), stop)
        images, labels, epsilon = self.shop.images[:n], self.shop.labels[:n], self.shop.grid.strong_epsilons[0]
        found = sanity_checks.examine(threat, images, labels, epsilon, **settings)
        about = {"model": self.model.label, "seed": self.seed, "images": n, "weights_sha256": weights}
        write_json(self.path, {**about, "findings": [finding.record() for finding in found]})


def tasks(shop: Workshop) -> list[Task]:
    """All of a grid, seed after seed, so that an unfinished grid has whole seeds."""
    found: list[Task] = []
    for seed in shop.grid.seeds:
        found += [Training(shop, model, seed) for model in shop.grid.models]
        found += cells(shop, seed)
        if seed == shop.grid.seeds[0]:
            found += [Examination(shop, model, seed) for model in shop.grid.models]
    return found


def cells(shop: Workshop, seed: int) -> list[Cell]:
    """The cells of one seed. For a CNN first pass and end to end are the same, and it is attacked by no transfer."""
    every = [Cell(shop, model, seed, against) for model in shop.grid.models for against in shop.grid.against]
    strong = seed in shop.grid.strong_seeds
    kept = [
        c for c in every if not c.against.strong or (strong and (c.model.iterations or c.against.threat == "end_to_end"))
    ]
    return [c for c in kept if c.against.threat != "transfer" or (c.source and c.model.iterations)]


def stoppable(threat: Threat, stop: Stop | None) -> Threat:
    """The threat, whose logits raise Interrupted once a stop is requested."""

    def asked(logits: Logits, images: Tensor) -> Tensor:
        if stop is not None and stop.requested:
            raise Interrupted
        return logits(images)

    return replace(threat, scored=partial(asked, threat.scored), attacked=partial(asked, threat.attacked))


def attacked(attack: Attack, threat: Threat, images: Tensor, labels: Tensor, epsilons: Sequence[float]) -> list[Tensor]:
    """The clipped images for each epsilon; at 0 the images themselves."""
    above = [epsilon for epsilon in epsilons if epsilon]
    made = dict(zip(above, attack(threat, images, labels, above).clipped, strict=True)) if above else {}
    return [made[epsilon] if epsilon else images for epsilon in epsilons]


@torch.no_grad()
def correct(network: threats.WithPreprocessing, images: Tensor, labels: Tensor, iterations: int, size: int = 100) -> Tensor:
    """(iterations + 1, n) bool: whether each image is classified as its label at each iteration."""
    module, enter = threats.opened(network)
    assert isinstance(module, CNNF)
    parts = [module.unroll(enter(x), iterations=iterations).logits for x in torch.split(images, size)]
    return finite(torch.cat(parts, 1), "at test").argmax(-1) == labels
