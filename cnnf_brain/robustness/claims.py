"""The paper's sentences -> differences between networks, verdicts, and the answer to a grid's question.

A claim is a sentence of Section 4.1 or Appendix B as a difference in accuracy between two sets of rows, paired by seed. It holds
where the 95 % interval of the mean over seeds (Student's t) lies above 0, does not hold where it lies below, and is undecided
otherwise or with fewer than three seeds. Epsilons at which every network that is compared is below 5 % say nothing about the
difference. They are left out and named. After less training than the paper's the verdict is not on the paper's claim, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from cnnf_brain.robustness.grids import Grid
from cnnf_brain.robustness.table import WORST, own

Floats = npt.NDArray[np.float64]
CLAIM = ("claim", "measured", "verdict", "holds", "left", "left_out", "main")  # columns of claims.csv
FEWEST_SEEDS = 3
FLOOR = 0.05  # accuracy below which a network is broken
HERE = {True: "as claimed", False: "the opposite", None: "not decided"}
VERDICTS = {True: "holds", False: "does not hold", None: "not decided by this"}
ANSWERS = {True: "Yes", False: "No", None: "Not decided"}


@dataclass(frozen=True)
class Claim:
    """``claim``: the paper's, in words; ``measured``: the figures; ``holds``: in this grid; ``left``: under the worst case.

    ``left_out``: the epsilons at the floor, which no mean holds. ``main``: whether it answers the grid's question. ``tested``:
    whether the networks were trained as long as the paper's.
    """

    claim: str
    measured: str
    holds: bool | None
    left: str = ""
    left_out: tuple[float, ...] = ()
    main: bool = False
    tested: bool = True

    @property
    def verdict(self) -> str:
        """On the paper's claim, in words."""
        return VERDICTS[self.holds] if self.tested else f"not tested at the paper's training (here: {HERE[self.holds]})"

    @property
    def figures(self) -> str:
        """``measured``, with what is left under the worst case and what was left out."""
        parts = [self.measured]
        parts += [f"worst case {self.left}"] if self.left else []
        parts += [f"without {told_epsilons(self.left_out)}, where all are below {100 * FLOOR:g} %"] if self.left_out else []
        return "; ".join(parts)

    @property
    def cells(self) -> tuple[str, str, str]:
        """The claim, what was measured, the verdict."""
        return self.claim, self.measured, self.verdict

    def row(self) -> dict[str, object]:
        """A row of claims.csv."""
        row = {**asdict(self), "verdict": self.verdict, "left_out": told_epsilons(self.left_out)}
        return {name: row[name] for name in CLAIM}

    def record(self) -> dict[str, object]:
        """The entry of summary.json."""
        return {**self.row(), "measured": self.figures}


def claims(grid: Grid, table: pd.DataFrame) -> list[Claim]:
    """All claims of the grid for which there are rows."""
    every = [claim for make in CLAIMS.get(grid.name, ()) for claim in make(table)]
    return [replace(claim, tested=grid.fully_trained) for claim in every if claim is not None]


def answer(claimed: Iterable[Claim]) -> str:
    """The answer to a grid's question, in sentences: yes where all its main claims hold, no where one does not."""
    main = [claim for claim in claimed if claim.main]
    if not main:
        return "No claim of the paper belongs to this question; see the tables."
    verdicts = [claim.holds for claim in main]
    holds = False if False in verdicts else None if None in verdicts else True
    limit = "" if main[0].tested else " Trained for less than the paper's networks, so that the paper's claim is not tested."
    return f"{ANSWERS[holds]}, in this grid.{limit} " + " ".join(f"{claim.claim}: {claim.figures}." for claim in main)


def compared(
    words: str,
    high: pd.DataFrame,
    low: pd.DataFrame,
    worst: tuple[pd.DataFrame, ...] | None = None,
    *,
    main: bool = False,
) -> Claim | None:
    """The claim that accuracy in ``high`` lies above that in ``low``, seeds paired, each seed's mean over its epsilons."""
    if _difference(high, low) is None:
        return None
    (high, low), left_out = above_floor(high, low)
    left = ""
    if worst is not None:
        rows, at_floor = above_floor(*worst)
        difference = _difference(*rows)
        left = told(difference) if difference is not None else f"all below {100 * FLOOR:g} %" if at_floor else ""
    return made(words, _difference(high, low), left_out, left=left, main=main)


def made(
    words: str,
    difference: Floats | None,
    left_out: tuple[float, ...],
    unit: str = "points",
    *,
    left: str = "",
    main: bool = False,
) -> Claim:
    """The claim that ``difference`` (seeds,) is above 0; None or nothing left of it: undecided, and why."""
    if difference is None or not len(difference):
        return Claim(words, "nothing to compare", None, left, left_out, main)
    low, high = interval(difference)
    holds = True if low > 0 else False if high < 0 else None
    return Claim(words, told(difference, unit), holds, left, left_out, main)


def above_floor(*several: pd.DataFrame) -> tuple[list[pd.DataFrame], tuple[float, ...]]:
    """The same tables without the epsilons at which the mean accuracy of every one of them is below the floor; these epsilons."""
    if any(rows.empty for rows in several):
        return list(several), ()
    means = pd.concat([rows.groupby("epsilon")["accuracy"].mean() for rows in several], axis=1)
    floor = tuple(float(epsilon) for epsilon in means.index[means.max(axis=1) < FLOOR])
    return [rows[~rows["epsilon"].isin(floor)] for rows in several], floor


def told_epsilons(epsilons: Iterable[float]) -> str:
    """``epsilon 0.2, 0.3``."""
    words = ", ".join(f"{epsilon:g}" for epsilon in epsilons)
    return f"epsilon {words}" if words else ""


def _difference(high: pd.DataFrame, low: pd.DataFrame) -> Floats | None:
    """(seeds,) in points; None where no seed has both."""
    a, b = (rows.groupby("seed")["accuracy"].mean() for rows in (high, low))
    both = a.index.intersection(b.index)
    return 100 * (a[both] - b[both]).to_numpy() if len(both) else None


def interval(difference: Floats) -> tuple[float, float]:
    """The 95 % interval of the mean (Student's t); all numbers where there are too few seeds."""
    if len(difference) < FEWEST_SEEDS:
        return -np.inf, np.inf
    half = stats.t.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / len(difference) ** 0.5
    return float(difference.mean() - half), float(difference.mean() + half)


def told(difference: Floats, unit: str = "points") -> str:
    """``+3.1 points [1.0, 5.2], 5 seeds``."""
    low, high = interval(difference)
    seeds = f"{len(difference)} seed{'s' * (len(difference) > 1)}"
    bounds = f" [{low:+.1f}, {high:+.1f}]" if np.isfinite(low) else ""
    return f"{difference.mean():+.1f} {unit}{bounds}, {seeds}"


def _rows_of(table: pd.DataFrame, model: str, attack: str, threat: str = "first_pass", **where: float) -> pd.DataFrame:
    """The rows of one network under one attack at its own iterations, epsilon above 0 unless named."""
    rows = own(table) if "iteration" not in where else table
    rows = rows[(rows["model"] == model) & (rows["attack"] == attack) & (rows["threat"] == threat)]
    rows = rows if attack == WORST else rows[~rows["strong"]]
    for name, value in where.items():
        rows = rows[np.isclose(rows[name], value)]
    return rows if "epsilon" in where else rows[rows["epsilon"] > 0]


def _better(
    words: str, models: tuple[str, str], attack: str, threat: str = "first_pass", *, main: bool = False, **where: float
) -> Callable[[pd.DataFrame], list[Claim | None]]:
    """The first of ``models`` is more accurate than the second under an attack, the mean over its epsilons."""

    def make(table: pd.DataFrame) -> list[Claim | None]:
        high, low = (_rows_of(table, model, attack, threat, **where) for model in models)
        worst = None if where else tuple(_rows_of(table, model, WORST, "all") for model in models)
        return [compared(words, high, low, worst, main=main)]

    return make


def _more_at_test(table: pd.DataFrame) -> list[Claim | None]:
    """More iterations at test than the first pass alone; the same weights."""
    words = "Evaluating with more iterations improves robustness (CNN-F-5: 5 iterations over none, PGD-40)"
    five, none = (_rows_of(table, "CNN-F-5", "PGD-40", iteration=t) for t in (5, 0))
    worst = tuple(_rows_of(table, "CNN-F-5", WORST, "all", iteration=t) for t in (5, 0))
    return [compared(words, five, none, worst)]


def _gain_grows(table: pd.DataFrame) -> list[Claim | None]:
    """The gain of CNN-F-5 over CNN at the upper half of the epsilons over that at the lower half."""
    words = "Larger improvements for higher epsilon (gain at the upper half of the epsilons over that at the lower)"
    (five, cnn), left_out = above_floor(*(_rows_of(table, name, "PGD-40") for name in ("CNN-F-5", "CNN")))
    epsilons = sorted(set(five["epsilon"]) & set(cnn["epsilon"]))
    if len(epsilons) < 2:
        return [made(words, None, left_out)] if left_out else []
    gains = []
    for half in (epsilons[len(epsilons) // 2 :], epsilons[: len(epsilons) // 2]):
        a, b = (rows[rows["epsilon"].isin(half)].groupby("seed")["accuracy"].mean() for rows in (five, cnn))
        gains.append(100 * (a - b))
    difference = (gains[0] - gains[1]).dropna().to_numpy()
    return [made(words, difference, left_out)] if len(difference) else []


def _transfer_is_stronger(table: pd.DataFrame) -> list[Claim | None]:
    """The paper's reason to report the attack on the first pass: end to end leaves more accuracy."""
    every: list[Claim | None] = []
    for model in sorted(set(table.loc[table["trained"] > 0, "model"])):
        rows = own(table[(table["model"] == model) & table["strong"] & (table["attack"] == "PGD-100")])
        words = (
            f"The attack on the first pass is more effective than end to end (accuracy left, end to end over it: {model})"
        )
        every.append(compared(words, rows[rows["threat"] == "end_to_end"], rows[rows["threat"] == "first_pass"]))
    return every


def _spread(table: pd.DataFrame) -> list[Claim | None]:
    """The largest difference between loss weights, against the spread over seeds."""
    rows = own(table[(table["attack"] == "PGD-40") & (table["epsilon"] > 0)])
    if rows["model"].nunique() < 2:
        return []
    by_network, left_out = above_floor(*(mine for _, mine in rows.groupby("model")))
    by_model = pd.concat(by_network).groupby(["model", "seed"])["accuracy"].mean().groupby("model")
    means, sds = 100 * by_model.mean(), 100 * by_model.std()
    words = "Loss weights have no large influence on robustness (largest difference between settings; spread over seeds)"
    spread = "one seed" if sds.isna().all() else f"standard deviation {sds.mean():.1f}"
    return [Claim(words, f"{means.max() - means.min():.1f} points; {spread}", None, left_out=left_out, main=True)]


def _loses_less(table: pd.DataFrame) -> list[Claim | None]:
    """The fall of accuracy from the epsilon of training to larger ones."""
    words = "Trained at epsilon 0.3, CNN-F suffers less from stronger adversaries (fall of the CNN minus that of CNN-F-5)"
    both, left_out = above_floor(*(_rows_of(table, name, "PGD-40") for name in (_AUGMENTED, _CNN)))
    falls = []
    for rows in both:
        at, beyond = rows[np.isclose(rows["epsilon"], 0.3)], rows[rows["epsilon"] > 0.3]
        falls.append(at.groupby("seed")["accuracy"].mean() - beyond.groupby("seed")["accuracy"].mean())
    difference = 100 * (falls[1] - falls[0]).dropna().to_numpy()
    return [made(words, difference, left_out, main=True)] if len(difference) or left_out else []


def _needs_more(table: pd.DataFrame) -> list[Claim | None]:
    """The iteration at test with the highest accuracy (the first of several): PGD-40's over FGSM's, large epsilon's over small."""
    rows = table[(table["model"] == "CNN-F-5") & ~table["strong"] & (table["epsilon"] > 0)]
    pgd, fgsm = (rows[rows["attack"] == name] for name in ("PGD-40", "FGSM"))
    (hard, easy), left_out = above_floor(pgd, fgsm)
    words = "Harder attacks need more iterations (best iteration at test under PGD-40 over that under FGSM)"
    harder = _iterations_more(words, hard, easy, left_out, main=True)
    (pgd,), left_out = above_floor(pgd)
    small, large = (pgd[pgd["epsilon"] == end] for end in (pgd["epsilon"].min(), pgd["epsilon"].max()))
    words = "Larger epsilon needs more iterations (best iteration at test at the largest epsilon over that at the smallest, PGD-40)"
    return [harder, _iterations_more(words, large, small if pgd["epsilon"].nunique() > 1 else small[:0], left_out)]


def _iterations_more(
    words: str, hard: pd.DataFrame, easy: pd.DataFrame, left_out: tuple[float, ...], *, main: bool = False
) -> Claim | None:
    """The best iteration in ``hard`` over that in ``easy``; None where rows are missing."""
    difference = (_best_iteration(hard) - _best_iteration(easy)).dropna().to_numpy()
    return made(words, difference, left_out, "iterations", main=main) if len(difference) or left_out else None


def _best_iteration(rows: pd.DataFrame) -> pd.Series:
    """By seed, over the mean of the epsilons."""
    means = rows.groupby(["seed", "iteration"])["accuracy"].mean().unstack("iteration")
    return means.idxmax(axis=1) if len(means) else pd.Series(dtype=float)


_AUGMENTED, _CNN = "CNN-F-5, clean + adversarial", "CNN, clean + adversarial"
_FIVE = ("CNN-F-5", "CNN")
_BOTH = (_AUGMENTED, _CNN)
_LESS_ADVERSARIAL = "Clean and adversarial images together keep more clean accuracy than adversarial ones alone (CNN-F-5)"
_MORE_IN_TRAINING = "Training with more iterations improves robustness (CNN-F-5 over CNN-F-1, PGD-40)"
_END_TO_END = "CNN-F-5 is more robust than CNN (PGD-40)"
_MNIST = "On MNIST, CNN-F-5 is more robust than CNN, standard training"
CLAIMS: dict[str, tuple[Callable[[pd.DataFrame], list[Claim | None]], ...]] = {
    "fig6": (
        _better("CNN-F is more robust than CNN (CNN-F-5, PGD-40)", _FIVE, "PGD-40", main=True),
        _better("CNN-F is more robust than CNN (CNN-F-5, FGSM)", _FIVE, "FGSM"),
        _better(_MORE_IN_TRAINING, ("CNN-F-5", "CNN-F-1"), "PGD-40"),
        _more_at_test,
        _gain_grows,
        _transfer_is_stronger,
    ),
    "fig7": (
        _better("Trained on both, CNN-F-5 is better than CNN on clean images", _BOTH, "PGD-40", main=True, epsilon=0.0),
        _better("Trained on both, CNN-F-5 is better than CNN on adversarial images (PGD-40)", _BOTH, "PGD-40", main=True),
        _better(_LESS_ADVERSARIAL, (_AUGMENTED, "CNN-F-5, adversarial"), "PGD-40", epsilon=0.0),
    ),
    "fig8a": (_better("Trained on FGSM, CNN-F generalises better to PGD-40 than CNN", _BOTH, "PGD-40", main=True),),
    "fig8b": (_loses_less,),
    "fig10": (_spread,),
    "fig11": (
        _better(f"End to end (BPDA, smoothed gates), {_END_TO_END}", _FIVE, "PGD-40", "smoothed", main=True),
        _better(f"End to end (exact gradient), {_END_TO_END}", _FIVE, "PGD-40", "end_to_end", main=True),
        _transfer_is_stronger,
    ),
    "fig12": (
        _better(f"{_MNIST} (FGSM)", _FIVE, "FGSM"),
        _better(f"{_MNIST} (PGD-40)", _FIVE, "PGD-40", main=True),
        _better("On MNIST, trained on PGD-7, CNN-F-5 generalises better to PGD-40 than CNN", _BOTH, "PGD-40"),
    ),
    "fig13": (_needs_more, _more_at_test),
}
