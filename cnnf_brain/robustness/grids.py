"""Figures 6 to 8 and 10 to 13 of the paper as data: models x seeds x epsilons x iterations at test x attacks.

Epsilons are those that the paper reports: for images in [0, 1]. An attack is crafted against a network at its own number of
iterations; whatever it made is then classified at every iteration, so that each iteration at test costs one pass and an image
counts as right only if it is right for all that was made against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cnnf_brain.attacks.external import APGD, HopSkipJump, Square, TargetedAPGD
from cnnf_brain.attacks.gradient import FGSM, PGD, Attack
from cnnf_brain.checks import unknown
from cnnf_brain.trainer.config import LossWeights
from cnnf_brain.trainer.small import ADVERSARIAL, STANDARD, Adversary, Settings


@dataclass(frozen=True)
class Recipe:
    """How the CNN-Fs of a grid are made: feedback (as ``small_net`` takes it), losses, and both in words."""

    name: str
    words: str
    feedback: Mapping[str, Any]
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
        {"target": "input", "step": 1.0, "match_norm": False, "normalisation": "l2"},
        LossWeights(reduction="sum"),
    ),
}
EPSILONS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)

FULL: dict[str, Attack] = {
    "FGSM": FGSM(),
    "PGD-7": PGD(7),
    "PGD-40": PGD(40),
    "PGD-100": PGD(100, relative_step=0.025, restarts=2),
    "APGD-CE": APGD(100),
    "APGD-T": TargetedAPGD(100),
    "Square": Square(5000),
    "HopSkipJump": HopSkipJump(10, 1000),
}
WEAKER: dict[str, Attack] = {
    "FGSM": FGSM(),
    "PGD-7": PGD(7),
    "PGD-40": PGD(40),
    "PGD-100": PGD(50, relative_step=0.05),
    "APGD-CE": APGD(50),
    "APGD-T": TargetedAPGD(20, targets=3),
    "Square": Square(500),
    "HopSkipJump": HopSkipJump(2, 50),
}
BLACK_BOX = ("Square", "HopSkipJump")


@dataclass(frozen=True)
class Against:
    """An attack of ``FULL`` and the threat of ``attacks.threats.NAMES`` that it follows.

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
    Against("PGD-100", "first_pass", True),
    Against("PGD-100", "end_to_end", True),
    Against("PGD-100", "every_iteration", True),
    Against("PGD-100", "smoothed", True),
    Against("PGD-100", "transfer", True),
    Against("APGD-CE", "end_to_end", True),
    Against("APGD-T", "end_to_end", True),
    Against("Square", "end_to_end", True),
    Against("HopSkipJump", "end_to_end", True),
)


@dataclass(frozen=True)
class Model:
    """A network of a grid: ``iterations`` trained with (0: the CNN), and how. ``label`` tells it within its grid.

    ``losses`` (weights of reconstruction, latent and norm; None: the recipe's) and ``feedback`` change the grid's recipe.
    """

    label: str
    iterations: int
    adversary: Adversary | None = None
    losses: tuple[float, float, float] | None = None
    feedback: Mapping[str, Any] = field(default_factory=dict)

    @property
    def full_training(self) -> Mapping[str, float]:
        """Epochs and learning rate of the paper."""
        return ADVERSARIAL if self.adversary else STANDARD

    def settings(self, grid: Grid, seed: int) -> Settings:
        """The training run of one seed."""
        recipe = RECIPES[grid.recipe]
        losses = recipe.losses if self.losses is None else LossWeights(*self.losses, recipe.losses.reduction)
        feedback = {**recipe.feedback, **self.feedback} if self.iterations else {}
        return Settings(
            dataset=grid.dataset,
            feedback={"iterations": self.iterations, **feedback},
            losses=losses if self.iterations else LossWeights(0.0, 0.0, 0.0),
            epochs=grid.epochs or int(self.full_training["epochs"]),
            learning_rate=grid.learning_rate or self.full_training["learning_rate"],
            seed=seed,
            limit=grid.limit,
            adversary=replace(self.adversary, seed=seed) if self.adversary else None,
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
    """One figure. ``recipe``: of RECIPES; ``limit``: training images, None for all; ``images``, ``strong_images``: of ``part``,
    the first so many; ``epochs``, ``learning_rate``: None for the paper's; ``amp``: "bfloat16" for training in mixed precision;
    ``strong_epsilons``, ``strong_seeds``: where the worst case is taken; ``weaker``: with fewer steps and queries."""

    name: str
    title: str
    question: str
    dataset: str
    models: tuple[Model, ...]
    against: tuple[Against, ...]
    panels: tuple[Panel, ...]
    iterations: int
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    epsilons: tuple[float, ...] = EPSILONS
    strong_epsilons: tuple[float, ...] = (0.1, 0.3)
    strong_seeds: tuple[int, ...] = (0, 1, 2)
    part: str = "test"
    images: int = 1000
    strong_images: int = 200
    recipe: str = TUNED
    limit: int | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    amp: str | None = None
    weaker: bool = False
    quick: bool = False

    @property
    def attacks(self) -> dict[str, Attack]:
        """The attacks at full strength, or with fewer steps and queries."""
        return WEAKER if self.weaker else FULL

    @property
    def heading(self) -> str:
        """The title with the recipe."""
        return f"{self.title}, {RECIPES[self.recipe].name}"

    @property
    def fully_trained(self) -> bool:
        """Whether every network is trained for the paper's epochs, on all images."""
        most = max(model.full_training["epochs"] for model in self.models)
        return self.limit is None and (self.epochs is None or self.epochs >= most)


def _adversarial(attack: str, mode: str, epsilon: float, iterations: tuple[int, ...] = (0, 5)) -> tuple[Model, ...]:
    words = {"only": "adversarial", "augment": "clean + adversarial"}[mode]
    names = ((n, f"CNN-F-{n}" if n else "CNN") for n in iterations)
    return tuple(Model(f"{name}, {words}", n, Adversary(mode, attack, epsilon)) for n, name in names)


_STANDARD = (Model("CNN", 0), Model("CNN-F-1", 1), Model("CNN-F-3", 3), Model("CNN-F-5", 5))
_FGSM, _PGD7, _PGD40 = Against("FGSM"), Against("PGD-7"), Against("PGD-40")
_ALL = (0.5, 0.5, 0.5)


def _fig6() -> Grid:
    panels = (
        Panel("FGSM", _FGSM),
        Panel("PGD-40", _PGD40),
        Panel("more iterations in training, PGD-40", _PGD40, "trained"),
        Panel("more iterations at test, PGD-40", _PGD40, "iteration"),
    )
    return Grid("fig6", "Standard training, Fashion-MNIST", "Is a CNN-F trained on clean images more robust than a CNN?", "fashion",
                _STANDARD, (_FGSM, _PGD40, *STRONG), panels, iterations=10)  # fmt: skip


def _fig7() -> Grid:
    models = (*_adversarial("pgd7", "only", 0.1), *_adversarial("pgd7", "augment", 0.1))
    panels = (Panel("PGD-40, trained on PGD-7, epsilon 0.1", _PGD40), Panel("FGSM, the same networks", _FGSM))
    return Grid("fig7", "Adversarial training, Fashion-MNIST",
                "Does CNN-F trained on clean and adversarial images classify both better than a CNN?", "fashion",
                models, (_FGSM, _PGD40, *STRONG), panels, iterations=5)  # fmt: skip


def _fig8a() -> Grid:
    panels = (Panel("PGD-40, trained on FGSM, epsilon 0.1", _PGD40), Panel("FGSM, the same networks", _FGSM))
    return Grid("fig8a", "Trained on FGSM, attacked by PGD-40, Fashion-MNIST", "Does CNN-F generalise better to an attack unseen?",
                "fashion", _adversarial("fgsm", "augment", 0.1), (_FGSM, _PGD40, *STRONG), panels, iterations=5)  # fmt: skip


def _fig8b() -> Grid:
    panels = (Panel("PGD-40, trained on PGD-40, epsilon 0.3", _PGD40),)
    return Grid("fig8b", "Trained on PGD-40 at epsilon 0.3, attacked at others, Fashion-MNIST",
                "Does CNN-F lose less accuracy when the attack is stronger than in training?", "fashion",
                _adversarial("pgd40", "augment", 0.3), (_PGD40, *STRONG), panels, iterations=5,
                epsilons=(0.0, 0.1, 0.2, 0.3, 0.35, 0.4, 0.5), strong_epsilons=(0.3, 0.4))  # fmt: skip


def _fig10() -> Grid:
    weights = {"0.1, 0, 0": (0.1, 0.0, 0.0), "0.5, 0, 0": (0.5, 0.0, 0.0), "0.1, 0.1, 0": (0.1, 0.1, 0.0),
               "0.1, 0, 0.05": (0.1, 0.0, 0.05), "0.5, 0.5, 0.5": (0.5, 0.5, 0.5)}  # fmt: skip
    models = tuple(Model(label, 5, losses=values) for label, values in weights.items())
    return Grid("fig10", "Loss weights (reconstruction, latent, norm), CNN-F-5, Fashion-MNIST",
                "Do the loss weights influence robustness?", "fashion", models, (_PGD40,), (Panel("PGD-40", _PGD40),),
                iterations=5)  # fmt: skip


def _fig11() -> Grid:
    against = tuple(
        Against(attack, threat) for threat in ("end_to_end", "smoothed") for attack in ("FGSM", "PGD-7", "PGD-40")
    )
    panels = tuple(Panel(way.label, way) for way in against)
    models = (Model("CNN", 0), Model("CNN-F-5", 5, losses=_ALL))
    return Grid("fig11", "End to end, Fashion-MNIST", "Is CNN-F more robust than a CNN when the attack goes through all of it?",
                "fashion", models, (*against, _PGD40, *STRONG), panels, iterations=5, seeds=(0, 1, 2, 3))  # fmt: skip


def _fig12() -> Grid:
    models = (*_STANDARD, *_adversarial("pgd7", "augment", 0.3))
    panels = (Panel("FGSM", _FGSM), Panel("PGD-40", _PGD40))
    return Grid("fig12", "MNIST, standard and adversarial training (PGD-7, epsilon 0.3)", "Does the same hold on MNIST?", "mnist",
                models, (_FGSM, _PGD40, *STRONG), panels, iterations=5)  # fmt: skip


def _fig13() -> Grid:
    panels = tuple(Panel(way.label, way, "iteration") for way in (_FGSM, _PGD7, _PGD40))
    return Grid("fig13", "Iterations at test, CNN-F-5, Fashion-MNIST", "Do harder attacks need more iterations?", "fashion",
                (Model("CNN-F-5", 5),), (_FGSM, _PGD7, _PGD40), panels, iterations=15)  # fmt: skip


def _ablation() -> Grid:
    """One design question at a time, from the grids' own choice; on validation images."""
    own = Model("input, step 0.1, norm matched, rms", 2)
    changes: dict[str, dict[str, Any]] = {
        "step 0.5": {"step": 0.5},
        "step 1": {"step": 1.0},
        "norm not matched": {"match_norm": False},
        "target relu1": {"target": "relu1"},
        "target pool2": {"target": "pool2"},
        "l2 normalisation": {"normalisation": "l2"},
    }
    weights = {"0, 0, 0": (0.0, 0.0, 0.0), "0.5, 0, 0": (0.5, 0.0, 0.0), "0.5, 0.5, 0.5": _ALL}
    models = [own, *(Model(label, 2, feedback=change) for label, change in changes.items())]
    models += [Model(f"losses {label}", 2, losses=values) for label, values in weights.items()]
    end = Against("PGD-40", "end_to_end")
    panels = (Panel("PGD-40 (first pass)", _PGD40), Panel("PGD-40 (end to end)", end))
    return Grid("ablation", "Design questions, CNN-F-2, Fashion-MNIST",
                "What should the feedback be, where the paper does not say?", "fashion",
                tuple(models), (_PGD40, end), panels, iterations=2, part="validation",
                seeds=(0, 1, 2), epsilons=(0.0, 0.05, 0.1, 0.2))  # fmt: skip


GRIDS: dict[str, Callable[[], Grid]] = {
    "fig6": _fig6, "fig7": _fig7, "fig8a": _fig8a, "fig8b": _fig8b, "fig10": _fig10, "fig11": _fig11, "fig12": _fig12,
    "fig13": _fig13, "ablation": _ablation,
}  # fmt: skip


def grid(name: str, *, quick: bool = False, recipe: str = TUNED, **changes: Any) -> Grid:
    """The grid of a figure under a recipe of RECIPES; ``changes``: fields to replace, such as ``seeds``, ``epochs``, ``limit``
    (None: as it stands)."""
    if name not in GRIDS:
        raise unknown("experiment", name, GRIDS)
    if recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    if name == "ablation" and recipe != TUNED:
        raise ValueError(
            f"the ablation changes one setting of the tuned recipe at a time; it takes no other recipe ({recipe!r})"
        )
    changes["recipe"] = recipe
    found = smaller(GRIDS[name]()) if quick else GRIDS[name]()
    return checked(replace(found, **{field: value for field, value in changes.items() if value is not None}))


def smaller(full: Grid) -> Grid:
    """The quick form: fewer training images and epochs, one or two seeds, fewer images and epsilons, weaker outside attacks."""
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
        value = getattr(grid, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, expected 1 or more")
    if not grid.seeds or min(grid.seeds) < 0 or len(set(grid.seeds)) < len(grid.seeds):
        raise ValueError(f"seeds are {list(grid.seeds)}, expected different whole numbers >= 0, at least one")
    if not grid.epsilons or len(set(grid.epsilons)) < len(grid.epsilons):
        raise ValueError(f"epsilons are {list(grid.epsilons)}, expected different numbers, at least one")
    return replace(grid, strong_images=min(grid.strong_images, grid.images))
