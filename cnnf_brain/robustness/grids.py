"""Figures 6 to 8 and 10 to 13 of the paper as data: models x seeds x epsilons x iterations at test x attacks.

Epsilons are those that the paper reports: for images in [0, 1]. An attack is crafted against a network at its own number of
iterations. The images that it made are then classified at every iteration, so that each iteration at test costs a single pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cnnf_brain.attacks import ATTACKS
from cnnf_brain.attacks.external import APGD, HopSkipJump, Square, TargetedAPGD
from cnnf_brain.attacks.gradient import FGSM, PGD, Attack
from cnnf_brain.checks import unknown
from cnnf_brain.model.settings import FeedbackSettings
from cnnf_brain.trainer.config import LossWeights
from cnnf_brain.trainer.small import ADVERSARIAL, STANDARD, Adversary, Settings
from cnnf_brain.types import option


@dataclass(frozen=True)
class Recipe:
    """How the CNN-Fs of a grid are made, and the same in words.

    ``feedback``: fields of ``FeedbackSettings``; ``normalisation``: of ``small_net``, None for its default.
    """

    name: str
    words: str
    feedback: Mapping[str, Any]
    normalisation: str | None = None
    losses: LossWeights = field(default_factory=LossWeights)


TUNED, PAPER = "tuned", "paper"
RECIPES: dict[str, Recipe] = {
    TUNED: Recipe(
        "tuned recipe",
        "target input, step 0.1, norms matched, RMS normalisation, mean reconstruction loss; chosen on validation images",
        {"target": "input", "step": 0.1, "match_norm": True},
    ),
    PAPER: Recipe(
        "the paper's recipe",
        "target input, step 1, norms not matched, l2 normalisation, summed reconstruction loss",
        {"target": "input", "step": 1.0, "match_norm": False},
        "l2",
        LossWeights(reduction="sum"),
    ),
}
EPSILONS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)

WEAKER: dict[str, Attack] = {
    **ATTACKS,
    "PGD-100": PGD(50, relative_step=0.05),
    "APGD-CE": APGD(50),
    "APGD-T": TargetedAPGD(20, targets=3),
    "Square": Square(500),
    "HopSkipJump": HopSkipJump(2, 50),
}
BLACK_BOX = ("Square", "HopSkipJump")

# Passes through the CNN that an attack takes for one image at one epsilon. A gradient is two passes of what is followed; about half
# of the images fall early to a targeted or a black-box attack.
PASSES: dict[type, Callable[[Any, int, int], float]] = {
    FGSM: lambda attack, followed, whole: 2 * followed,
    PGD: lambda attack, followed, whole: 2 * followed * attack.steps * attack.restarts,
    APGD: lambda attack, followed, whole: 2 * followed * attack.steps * attack.restarts,
    TargetedAPGD: lambda attack, followed, whole: followed * attack.steps * attack.targets,
    Square: lambda attack, followed, whole: 0.5 * whole * attack.queries,
    HopSkipJump: lambda attack, followed, whole: whole * (100 + attack.rounds * 60),
}


@dataclass(frozen=True)
class Against:
    """An attack of ``ATTACKS`` and the threat of ``attacks.threats.NAMES`` that it follows.

    ``strong``: one of those that the worst case is made of, at a few epsilons and on fewer images.
    """

    attack: str
    threat: str = "first_pass"
    strong: bool = False

    @property
    def label(self) -> str:
        """In words, as ``PGD-40 (first pass)``."""
        return f"{self.attack} ({self.threat.replace('_', ' ')})"


STRONG = (
    *(
        Against("PGD-100", threat, True)
        for threat in ("first_pass", "end_to_end", "every_iteration", "smoothed", "transfer")
    ),
    *(Against(attack, "end_to_end", True) for attack in ("APGD-CE", "APGD-T", "Square", "HopSkipJump")),
)


@dataclass(frozen=True)
class Model:
    """A network of a grid: ``iterations`` trained with (0: the CNN), and how. ``label`` tells it within its grid.

    ``losses`` (weights of reconstruction, latent and norm), ``feedback`` (fields of ``FeedbackSettings``) and ``normalisation``
    change the grid's recipe.
    """

    label: str
    iterations: int
    adversary: Adversary | None = None
    losses: tuple[float, float, float] | None = None
    feedback: Mapping[str, Any] = field(default_factory=dict)
    normalisation: str | None = None

    @property
    def full_training(self) -> Mapping[str, float]:
        """Epochs and learning rate of the paper."""
        return ADVERSARIAL if self.adversary else STANDARD

    def settings(self, grid: Grid, seed: int) -> Settings:
        """The training run of a seed; a ValueError for settings that ``FeedbackSettings`` does not take."""
        recipe, losses = RECIPES[grid.recipe], LossWeights(0.0, 0.0, 0.0)
        feedback: dict[str, Any] = {"iterations": self.iterations}
        if self.iterations:
            losses = LossWeights(*self.losses, recipe.losses.reduction) if self.losses else recipe.losses
            feedback = {**feedback, **recipe.feedback, **self.feedback}  # what is named is part of a network's identity
            FeedbackSettings.of(feedback)
            normalisation = self.normalisation or recipe.normalisation
            feedback |= {"normalisation": normalisation} if normalisation else {}
        return Settings(
            dataset=grid.dataset,
            feedback=feedback,
            losses=losses,
            epochs=grid.epochs or int(self.full_training["epochs"]),
            learning_rate=grid.learning_rate or self.full_training["learning_rate"],
            seed=seed,
            limit=grid.limit,
            adversary=self.adversary and replace(self.adversary, seed=seed),
            amp=grid.amp,
            measure=grid.images,
        )


@dataclass(frozen=True)
class Panel:
    """One axes of the figure. ``x``: "epsilon" (a line for each model at its own number of iterations), "iteration" (at test; a
    line for each epsilon of the last model) or "trained" (iterations trained with; a line for each epsilon)."""

    title: str
    against: Against
    x: str = "epsilon"


@dataclass(frozen=True)
class Grid:
    """A figure. The fields with an ``option`` may be changed (``grid``), by flags of the command too.

    ``part``: the images that are attacked; ``strong_seeds``: where the worst case is taken.
    """

    name: str
    title: str
    question: str
    dataset: str
    models: tuple[Model, ...]
    against: tuple[Against, ...]
    panels: tuple[Panel, ...]
    iterations: int
    part: str = "test"
    strong_seeds: tuple[int, ...] = (0, 1, 2)
    quick: bool = option(False, "a smaller grid, about ten minutes on two cores, labelled as such")
    recipe: str = option(
        TUNED, "how CNN-Fs are made: tuned on validation images, or the paper's; captions name it", choices=tuple(RECIPES)
    )
    seeds: tuple[int, ...] = option((0, 1, 2, 3, 4), "of the networks", metavar="N", least=0)
    epochs: int | None = option(None, "of training; the paper's are 30, with adversarial training 90", above=0)
    learning_rate: float | None = option(None, "the paper's is 1e-3, with adversarial training 1e-4", above=0)
    amp: str | None = option(
        None, "mixed precision in training, named in captions; attacks stay in float32", choices=("bfloat16",)
    )
    limit: int | None = option(None, "training images, all where it is left out", metavar="N", above=0)
    images: int = option(1000, "images that are attacked", metavar="N", above=0)
    strong_images: int = option(200, "of these, for the worst case", metavar="N", above=0)
    weaker: bool = option(False, "for the worst case, with fewer steps and queries; captions say so", flag="weaker-attacks")
    epsilons: tuple[float, ...] = option(EPSILONS, "for images in [0, 1]", metavar="E", least=0, most=1)
    strong_epsilons: tuple[float, ...] = option((0.1, 0.3), "of the worst case", metavar="E", least=0, most=1)

    @property
    def attacks(self) -> dict[str, Attack]:
        """The attacks at full strength, or with fewer steps and queries."""
        return WEAKER if self.weaker else ATTACKS

    @property
    def has_worst_case(self) -> bool:
        """Whether strong attacks are made."""
        return any(against.strong for against in self.against)

    @property
    def heading(self) -> str:
        """The title with the recipe."""
        return f"{self.title}, {RECIPES[self.recipe].name}"

    @property
    def fully_trained(self) -> bool:
        """Whether every network is trained for the paper's epochs, on all images."""
        most = max(model.full_training["epochs"] for model in self.models)
        return self.limit is None and (self.epochs is None or self.epochs >= most)


def _adversarial(attack: str, mode: str, epsilon: float) -> tuple[Model, Model]:
    words = {"only": "adversarial", "augment": "clean + adversarial"}[mode]
    adversary = Adversary(mode, attack, epsilon)
    return Model(f"CNN, {words}", 0, adversary), Model(f"CNN-F-5, {words}", 5, adversary)


def _panels(*ways: Against, x: str = "epsilon", title: str = "{}") -> tuple[Panel, ...]:
    return tuple(Panel(title.format(way.attack), way, x) for way in ways)


def _figure(name: str, title: str, question: str, **more: Any) -> Grid:
    return Grid(name, title, question, **{"dataset": "fashion", "against": _BOTH, "iterations": 5, **more})


_STANDARD = (Model("CNN", 0), Model("CNN-F-1", 1), Model("CNN-F-3", 3), Model("CNN-F-5", 5))
_FGSM, _PGD7, _PGD40 = _EACH = (Against("FGSM"), Against("PGD-7"), Against("PGD-40"))
_BOTH, _ALL = (_FGSM, _PGD40, *STRONG), (0.5, 0.5, 0.5)
_END = tuple(replace(way, threat=threat) for threat in ("end_to_end", "smoothed") for way in _EACH)
_WEIGHTS = ((0.1, 0, 0), (0.5, 0, 0), (0.1, 0.1, 0), (0.1, 0, 0.05), _ALL)  # reconstruction, latent, norm
_DESIGNS = (  # each changes one setting of the first
    Model("input, step 0.1, norm matched, rms", 2),
    Model("step 0.5", 2, feedback={"step": 0.5}),
    Model("step 1", 2, feedback={"step": 1.0}),
    Model("norm not matched", 2, feedback={"match_norm": False}),
    Model("target relu1", 2, feedback={"target": "relu1"}),
    Model("target pool2", 2, feedback={"target": "pool2"}),
    Model("l2 normalisation", 2, normalisation="l2"),
    Model("losses 0, 0, 0", 2, losses=(0.0, 0.0, 0.0)),
    Model("losses 0.5, 0, 0", 2, losses=(0.5, 0.0, 0.0)),
    Model("losses 0.5, 0.5, 0.5", 2, losses=_ALL),
)
_GRIDS = (
    _figure(
        "fig6",
        "Standard training, Fashion-MNIST",
        "Is a CNN-F trained on clean images more robust than a CNN?",
        models=_STANDARD,
        panels=_panels(_FGSM, _PGD40)
        + _panels(_PGD40, x="trained", title="more iterations in training, {}")
        + _panels(_PGD40, x="iteration", title="more iterations at test, {}"),
        iterations=10,
    ),
    _figure(
        "fig7",
        "Adversarial training, Fashion-MNIST",
        "Does CNN-F trained on clean and adversarial images classify both better than a CNN?",
        models=_adversarial("pgd7", "only", 0.1) + _adversarial("pgd7", "augment", 0.1),
        panels=_panels(_PGD40, title="{}, trained on PGD-7, epsilon 0.1") + _panels(_FGSM, title="{}, the same networks"),
    ),
    _figure(
        "fig8a",
        "Trained on FGSM, attacked by PGD-40, Fashion-MNIST",
        "Does CNN-F generalise better to an attack unseen?",
        models=_adversarial("fgsm", "augment", 0.1),
        panels=_panels(_PGD40, title="{}, trained on FGSM, epsilon 0.1") + _panels(_FGSM, title="{}, the same networks"),
    ),
    _figure(
        "fig8b",
        "Trained on PGD-40 at epsilon 0.3, attacked at others, Fashion-MNIST",
        "Does CNN-F lose less accuracy when the attack is stronger than in training?",
        models=_adversarial("pgd40", "augment", 0.3),
        against=(_PGD40, *STRONG),
        panels=_panels(_PGD40, title="{}, trained on PGD-40, epsilon 0.3"),
        epsilons=(0.0, 0.1, 0.2, 0.3, 0.35, 0.4, 0.5),
        strong_epsilons=(0.3, 0.4),
    ),
    _figure(
        "fig10",
        "Loss weights (reconstruction, latent, norm), CNN-F-5, Fashion-MNIST",
        "Do the loss weights influence robustness?",
        models=tuple(Model(f"{r}, {z}, {n}", 5, losses=(float(r), float(z), float(n))) for r, z, n in _WEIGHTS),
        against=(_PGD40,),
        panels=_panels(_PGD40),
    ),
    _figure(
        "fig11",
        "End to end, Fashion-MNIST",
        "Is CNN-F more robust than a CNN when the attack goes through all of it?",
        models=(Model("CNN", 0), Model("CNN-F-5", 5, losses=_ALL)),
        against=(*_END, _PGD40, *STRONG),
        panels=tuple(Panel(way.label, way) for way in _END),
        seeds=(0, 1, 2, 3),
    ),
    _figure(
        "fig12",
        "MNIST, standard and adversarial training (PGD-7, epsilon 0.3)",
        "Does the same hold on MNIST?",
        dataset="mnist",
        models=_STANDARD + _adversarial("pgd7", "augment", 0.3),
        panels=_panels(_FGSM, _PGD40),
    ),
    _figure(
        "fig13",
        "Iterations at test, CNN-F-5, Fashion-MNIST",
        "Do harder attacks need more iterations?",
        models=(Model("CNN-F-5", 5),),
        against=_EACH,
        panels=tuple(Panel(way.label, way, "iteration") for way in _EACH),
        iterations=15,
    ),
    _figure(
        "ablation",
        "Design questions, CNN-F-2, Fashion-MNIST",
        "What should the feedback be, where the paper does not say?",
        models=_DESIGNS,
        against=(_PGD40, _END[2]),
        panels=tuple(Panel(way.label, way) for way in (_PGD40, _END[2])),
        iterations=2,
        part="validation",
        seeds=(0, 1, 2),
        epsilons=(0.0, 0.05, 0.1, 0.2),
    ),
)
GRIDS = {figure.name: figure for figure in _GRIDS}


def grid(name: str, *, quick: bool = False, recipe: str = TUNED, **changes: Any) -> Grid:
    """The grid of a figure (of GRIDS) or its ``quick`` form, with a recipe of RECIPES.

    ``changes``: fields of ``Grid`` to replace, such as ``seeds``, ``epochs``, ``limit`` (None: as it stands). A ValueError for an
    unknown name, a field out of range, or another recipe than the tuned one for the ablation.
    """
    if name not in GRIDS:
        raise unknown("experiment", name, GRIDS)
    if recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    if name == "ablation" and recipe != TUNED:
        raise ValueError(
            f"the ablation changes one setting of the tuned recipe at a time; it takes no other recipe ({recipe!r})"
        )
    found = smaller(GRIDS[name]) if quick else GRIDS[name]
    return checked(replace(found, recipe=recipe, **{key: value for key, value in changes.items() if value is not None}))


def smaller(full: Grid) -> Grid:
    """The quick form: fewer training images and epochs, one or two seeds, fewer images and epsilons, weaker external attacks."""
    inner = full.epsilons[1:-1]
    epsilons = (full.epsilons[0], inner[len(inner) // 3], inner[-len(inner) // 3], full.epsilons[-1])
    hardened = any(model.adversary for model in full.models)
    heavy = any(model.adversary and model.adversary.attack == "pgd40" for model in full.models)
    return replace(
        full,
        quick=True,
        weaker=True,
        seeds=full.seeds[:1] if hardened or len(full.models) > 4 else full.seeds[:2],
        epsilons=tuple(dict.fromkeys(epsilons)),
        strong_epsilons=full.strong_epsilons[:1],
        strong_seeds=full.seeds[:1],
        images=100,
        strong_images=20,
        limit=600 if heavy else 1500 if hardened or len(full.models) > 4 else 2500,
        epochs=2,
        learning_rate=1e-3,  # at 1e-4 so few steps would not leave chance
    )


def checked(grid: Grid) -> Grid:
    """``grid``, a ValueError where a field is out of range."""
    for name in ("epsilons", "strong_epsilons"):
        bad = [value for value in getattr(grid, name) if not 0 <= value <= 1]
        if bad:
            raise ValueError(f"{name}: {bad[0]} is not in [0, 1]; epsilons are given for images in [0, 1]")
    for name in ("images", "strong_images", "epochs", "limit"):
        if (value := getattr(grid, name)) is not None and value < 1:
            raise ValueError(f"{name} is {value}, expected 1 or more")
    if not grid.seeds or min(grid.seeds) < 0 or len(set(grid.seeds)) < len(grid.seeds):
        raise ValueError(f"seeds are {list(grid.seeds)}, expected different whole numbers >= 0, at least one")
    if not grid.epsilons or len(set(grid.epsilons)) < len(grid.epsilons):
        raise ValueError(f"epsilons are {list(grid.epsilons)}, expected different numbers, at least one")
    return replace(grid, strong_images=min(grid.strong_images, grid.images))
