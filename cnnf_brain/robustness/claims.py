"""The sentences of Section 4.1 and Appendix B that a grid can test, each with what was measured and what is left of it.

A claim is a difference in accuracy between two sets of rows, paired by seed. It holds where the 95 % interval of the mean over
seeds (Student's t) lies above 0, does not where it lies below, and is undecided else or with fewer than three seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from cnnf_brain.robustness.grids import Grid
from cnnf_brain.robustness.table import WORST, own

FEWEST_SEEDS = 3


@dataclass(frozen=True)
class Claim:
    """``claim``: the paper's, in words; ``measured``: the figures; ``holds``; ``left``: the same under the worst case."""

    claim: str
    measured: str
    holds: bool | None
    left: str = ""


def claims(grid: Grid, table: pd.DataFrame) -> list[Claim]:
    """All claims of the grid for which there are rows."""
    found = [claim for make in CLAIMS.get(grid.name, ()) for claim in make(table)]
    return [claim for claim in found if claim is not None]


def compared(
    words: str, high: pd.DataFrame, low: pd.DataFrame, worst: tuple[pd.DataFrame, pd.DataFrame] | None = None
) -> Claim | None:
    """The claim that accuracy in ``high`` lies above that in ``low``, seeds paired, each seed's mean over its rows."""
    difference = _difference(high, low)
    if difference is None:
        return None
    left = _difference(*worst) if worst is not None else None
    return Claim(words, told(difference), decided(difference), "" if left is None else told(left))


def _difference(high: pd.DataFrame, low: pd.DataFrame) -> np.ndarray | None:
    """(seeds,) in points; None where no seed has both."""
    a, b = (rows.groupby("seed")["accuracy"].mean() for rows in (high, low))
    both = a.index.intersection(b.index)
    return 100 * (a[both] - b[both]).to_numpy() if len(both) else None


def interval(difference: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean (Student's t); all numbers where there are too few seeds."""
    if len(difference) < FEWEST_SEEDS:
        return -np.inf, np.inf
    half = stats.t.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / len(difference) ** 0.5
    return float(difference.mean() - half), float(difference.mean() + half)


def decided(difference: np.ndarray) -> bool | None:
    """True above 0, False below, None where the interval holds 0."""
    low, high = interval(difference)
    return True if low > 0 else False if high < 0 else None


def told(difference: np.ndarray, unit: str = "points") -> str:
    """``+3.1 points [1.0, 5.2], 5 seeds``."""
    low, high = interval(difference)
    seeds = f"{len(difference)} seed{'s' * (len(difference) > 1)}"
    bounds = f" [{low:+.1f}, {high:+.1f}]" if np.isfinite(low) else ""
    return f"{difference.mean():+.1f} {unit}{bounds}, {seeds}"


def _rows(table: pd.DataFrame, model: str, attack: str, threat: str = "first_pass", **where: float) -> pd.DataFrame:
    """The rows of one network under one attack at its own iterations, epsilon above 0 unless named."""
    rows = own(table) if "iteration" not in where else table
    rows = rows[(rows["model"] == model) & (rows["attack"] == attack) & (rows["threat"] == threat)]
    rows = rows if attack == WORST else rows[~rows["strong"]]
    for name, value in where.items():
        rows = rows[np.isclose(rows[name], value)]
    return rows if "epsilon" in where else rows[rows["epsilon"] > 0]


def _better(words: str, model: str, baseline: str, attack: str, threat: str = "first_pass", **where: float) -> Callable:
    """``model`` is more accurate than ``baseline`` under an attack, the mean over its epsilons."""

    def make(table: pd.DataFrame) -> list[Claim | None]:
        worst = None if where else (_rows(table, model, WORST, "all"), _rows(table, baseline, WORST, "all"))
        return [
            compared(
                words, _rows(table, model, attack, threat, **where), _rows(table, baseline, attack, threat, **where), worst
            )
        ]

    return make


def _more_at_test(table: pd.DataFrame) -> list[Claim | None]:
    """More iterations at test than the first pass alone; the same weights."""
    words = "Evaluating with more iterations improves robustness (CNN-F-5: 5 iterations over none, PGD-40)"
    five, none = (_rows(table, "CNN-F-5", "PGD-40", iteration=t) for t in (5, 0))
    worst = tuple(_rows(table, "CNN-F-5", WORST, "all", iteration=t) for t in (5, 0))
    return [compared(words, five, none, (worst[0], worst[1]))]


def _gain_grows(table: pd.DataFrame) -> list[Claim | None]:
    """The gain of CNN-F-5 over CNN at the upper half of the epsilons over that at the lower half."""
    epsilons = sorted(e for e in table.loc[~table["strong"], "epsilon"].unique() if e > 0)
    if len(epsilons) < 2:
        return []
    halves = (epsilons[len(epsilons) // 2 :], epsilons[: len(epsilons) // 2])
    gains = []
    for half in halves:
        rows = [_rows(table, name, "PGD-40") for name in ("CNN-F-5", "CNN")]
        a, b = (r[r["epsilon"].isin(half)].groupby("seed")["accuracy"].mean() for r in rows)
        gains.append(100 * (a - b).dropna())
    difference = (gains[0] - gains[1]).dropna().to_numpy()
    words = "Larger improvements for higher epsilon (gain at the upper half of the epsilons over that at the lower)"
    return [Claim(words, told(difference), decided(difference))] if len(difference) else []


def _transfer_is_stronger(table: pd.DataFrame) -> list[Claim | None]:
    """The paper's reason to report the attack on the first pass: end to end leaves more accuracy."""
    found: list[Claim | None] = []
    for model in sorted(set(table.loc[table["trained"] > 0, "model"])):
        rows = own(table[(table["model"] == model) & table["strong"] & (table["attack"] == "PGD-100")])
        words = (
            f"The attack on the first pass is more effective than end to end (accuracy left, end to end over it: {model})"
        )
        found.append(compared(words, rows[rows["threat"] == "end_to_end"], rows[rows["threat"] == "first_pass"]))
    return found


def _spread(table: pd.DataFrame) -> list[Claim | None]:
    """The largest difference between loss weights, against the spread over seeds."""
    rows = own(table[(table["attack"] == "PGD-40") & (table["epsilon"] > 0)])
    by_model = rows.groupby(["model", "seed"])["accuracy"].mean().groupby("model")
    means, sds = 100 * by_model.mean(), 100 * by_model.std()
    if len(means) < 2:
        return []
    words = "Loss weights have no large influence on robustness (largest difference between settings; spread over seeds)"
    spread = "one seed" if sds.isna().all() else f"standard deviation {sds.mean():.1f}"
    return [Claim(words, f"{means.max() - means.min():.1f} points; {spread}", None)]


def _loses_less(table: pd.DataFrame) -> list[Claim | None]:
    """The fall of accuracy from the epsilon of training to larger ones."""
    falls = {}
    for name in ("CNN-F-5, clean + adversarial", "CNN, clean + adversarial"):
        at = _rows(table, name, "PGD-40", epsilon=0.3).groupby("seed")["accuracy"].mean()
        beyond = _rows(table, name, "PGD-40")
        falls[name] = at - beyond[beyond["epsilon"] > 0.3].groupby("seed")["accuracy"].mean()
    fnet, net = falls.values()
    difference = 100 * (net - fnet).dropna().to_numpy()
    words = "Trained at epsilon 0.3, CNN-F suffers less from stronger adversaries (fall of the CNN minus that of CNN-F-5)"
    return [Claim(words, told(difference), decided(difference))] if len(difference) else []


def _needs_more(table: pd.DataFrame) -> list[Claim | None]:
    """The iteration at test with the highest accuracy (the first of several): PGD-40's over FGSM's, large epsilon's over small."""
    rows = table[(table["model"] == "CNN-F-5") & ~table["strong"] & (table["epsilon"] > 0)]
    if rows.empty:
        return []
    small, large = (rows["epsilon"] == end for end in (rows["epsilon"].min(), rows["epsilon"].max()))
    attack = {name: rows["attack"] == name for name in ("FGSM", "PGD-40")}
    pairs = {
        "Harder attacks need more iterations (best iteration at test under PGD-40 over that under FGSM)":
            (rows[attack["PGD-40"]], rows[attack["FGSM"]]),
        "Larger epsilon needs more iterations (best iteration at test at the largest epsilon over that at the smallest, PGD-40)":
            (rows[attack["PGD-40"] & large], rows[attack["PGD-40"] & small]),
    }  # fmt: skip
    found: list[Claim | None] = []
    for words, (hard, easy) in pairs.items():
        difference = (_best_iteration(hard) - _best_iteration(easy)).dropna().to_numpy()
        if len(difference):
            found.append(Claim(words, told(difference, "iterations"), decided(difference)))
    return found


def _best_iteration(rows: pd.DataFrame) -> pd.Series:
    """By seed, over the mean of the epsilons."""
    means = rows.groupby(["seed", "iteration"])["accuracy"].mean().unstack("iteration")
    return means.idxmax(axis=1) if len(means) else pd.Series(dtype=float)


_AUGMENTED, _CNN = "CNN-F-5, clean + adversarial", "CNN, clean + adversarial"
CLAIMS: dict[str, tuple[Callable[[pd.DataFrame], list[Claim | None]], ...]] = {
    "fig6": (
        _transfer_is_stronger,
        _better("CNN-F is more robust than CNN (CNN-F-5, FGSM)", "CNN-F-5", "CNN", "FGSM"),
        _better("CNN-F is more robust than CNN (CNN-F-5, PGD-40)", "CNN-F-5", "CNN", "PGD-40"),
        _better("Training with more iterations improves robustness (CNN-F-5 over CNN-F-1, PGD-40)", "CNN-F-5", "CNN-F-1", "PGD-40"),
        _more_at_test,
        _gain_grows,
    ),
    "fig7": (
        _better("Trained on both, CNN-F-5 is better than CNN on clean images", _AUGMENTED, _CNN, "PGD-40", epsilon=0.0),
        _better("Trained on both, CNN-F-5 is better than CNN on adversarial images (PGD-40)", _AUGMENTED, _CNN, "PGD-40"),
        _better("Clean and adversarial images together keep more clean accuracy than adversarial ones alone (CNN-F-5)",
                _AUGMENTED, "CNN-F-5, adversarial", "PGD-40", epsilon=0.0),
    ),
    "fig8a": (_better("Trained on FGSM, CNN-F generalises better to PGD-40 than CNN", _AUGMENTED, _CNN, "PGD-40"),),
    "fig8b": (_loses_less,),
    "fig10": (_spread,),
    "fig11": (
        _better("End to end (BPDA, smoothed gates), CNN-F-5 is more robust than CNN (PGD-40)",
                "CNN-F-5", "CNN", "PGD-40", "smoothed"),
        _better("End to end (exact gradient), CNN-F-5 is more robust than CNN (PGD-40)", "CNN-F-5", "CNN", "PGD-40", "end_to_end"),
        _transfer_is_stronger,
    ),
    "fig12": (
        _better("On MNIST, CNN-F-5 is more robust than CNN, standard training (FGSM)", "CNN-F-5", "CNN", "FGSM"),
        _better("On MNIST, CNN-F-5 is more robust than CNN, standard training (PGD-40)", "CNN-F-5", "CNN", "PGD-40"),
        _better("On MNIST, trained on PGD-7, CNN-F-5 generalises better to PGD-40 than CNN", _AUGMENTED, _CNN, "PGD-40"),
    ),
    "fig13": (_more_at_test, _needs_more),
}  # fmt: skip
