"""Outcomes on disk -> one tidy table, its means over seeds, and the checks that it allows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cnnf_brain.attacks.sanity_checks import Finding, never_falls, not_stronger
from cnnf_brain.robustness.cells import Cell, Examination
from cnnf_brain.robustness.grids import BLACK_BOX, Model
from cnnf_brain.robustness.work import cells, done
from cnnf_brain.robustness.workshop import Workshop

WORST = "worst case"
COLUMNS = ("experiment", "dataset", "model", "trained", "training", "seed", "attack", "threat", "strong", "epsilon", "iteration",
           "accuracy", "images")  # fmt: skip
SLACK = 0.02  # of the checks between attacks, which start at random


def training_of(model: Model) -> str:
    """How a network was trained, in words: ``standard`` or ``augment pgd7 0.1``."""
    adversary = model.adversary
    return "standard" if adversary is None else f"{adversary.mode} {adversary.attack} {adversary.epsilon:g}"


def collect(shop: Workshop) -> pd.DataFrame:
    """One row for each network, seed, attack, threat, epsilon and iteration at test that is evaluated.

    ``trained``: iterations trained with; ``accuracy``: the share of ``images`` that is classified rightly. The rows of attack
    "worst case" count an image as right only where it is right under every attack made against that network at that epsilon; they
    exist where all attacks of the worst case are done, for the images that these share. Cells of other weights than the networks'
    present ones are left out.
    """
    rows: list[dict[str, Any]] = []
    for seed in shop.grid.seeds:
        for model in shop.grid.models:
            mine = [cell for cell in cells(shop, seed) if cell.model == model]
            outcomes = {cell: cell.read() for cell in mine if done(cell)}
            for cell, right in outcomes.items():
                rows += _rows(shop, cell.model, seed, cell.against.attack, cell.against.threat, cell.against.strong,
                              cell.epsilons, right)  # fmt: skip
            strong = [cell for cell in mine if cell.against.strong]
            if strong and all(cell in outcomes for cell in strong):
                epsilons = shop.grid.strong_epsilons
                rows += _rows(shop, model, seed, WORST, "all", True, epsilons, worst_case(shop, outcomes, epsilons))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.sort_values(["trained", "model", "seed", "attack", "threat", "epsilon", "iteration"], ignore_index=True)


def worst_case(shop: Workshop, outcomes: dict[Cell, np.ndarray], epsilons: tuple[float, ...]) -> np.ndarray:
    """(epsilon, iteration, image) whether the image is right under all cells that have the epsilon."""
    n = shop.grid.strong_images
    return np.stack(
        [
            np.logical_and.reduce(
                [right[cell.epsilons.index(e), :, :n] for cell, right in outcomes.items() if e in cell.epsilons]
            )
            for e in epsilons
        ]
    )


def _rows(
    shop: Workshop,
    model: Model,
    seed: int,
    attack: str,
    threat: str,
    strong: bool,
    epsilons: tuple[float, ...],
    right: np.ndarray,
) -> list[dict[str, Any]]:
    common = {
        "experiment": shop.grid.name, "dataset": shop.grid.dataset, "model": model.label, "trained": model.iterations,
        "training": training_of(model), "seed": seed, "attack": attack, "threat": threat, "strong": strong,
    }  # fmt: skip
    return [
        {**common, "epsilon": epsilon, "iteration": t, "accuracy": float(right[i, t].mean()), "images": right.shape[2]}
        for i, epsilon in enumerate(epsilons)
        for t in range(right.shape[1])
    ]


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (n - 1; NaN for one seed) over seeds, ``low`` and ``high`` their interval."""
    keys = [name for name in COLUMNS if name not in ("seed", "accuracy")]
    grouped = table.groupby(keys, sort=False)["accuracy"].agg(mean="mean", sd="std", seeds="count").reset_index()
    grouped["low"], grouped["high"] = grouped["mean"] - grouped["sd"], grouped["mean"] + grouped["sd"]
    return grouped


def own(table: pd.DataFrame) -> pd.DataFrame:
    """The rows at the iteration that each network was trained with."""
    return table[table["iteration"] == table["trained"]]


def findings(shop: Workshop, table: pd.DataFrame) -> list[dict[str, Any]]:
    """The checks against a false sense of security: those of each network's examination, and those between its attacks."""
    found: list[dict[str, Any]] = []
    for model in shop.grid.models:
        examination = Examination(shop, model, shop.grid.seeds[0])
        if done(examination):
            content = examination.read()
            found += [{"model": model.label, "seeds": [content["seed"]], **finding} for finding in content["findings"]]
        rows = own(table[table["model"] == model.label])
        seeds = sorted(int(seed) for seed in rows["seed"].unique())
        for finding in between_attacks(rows):
            one = {"name": finding.name, "holds": finding.holds, "detail": finding.detail}
            found.append({"model": model.label, "seeds": seeds, **one})
    return found


def between_attacks(rows: pd.DataFrame) -> list[Finding]:
    """Checks on one network's rows at its own iterations: success over epsilon; FGSM, first pass and black box against the best."""
    success = 1 - rows.groupby(["strong", "attack", "threat", "epsilon"])["accuracy"].mean()
    found = []
    for (strong, attack, threat), values in success.groupby(level=["strong", "attack", "threat"]):
        if not strong and attack != WORST:
            epsilons = values.index.get_level_values("epsilon")
            found.append(never_falls(f"epsilon ({attack}, {threat})", list(epsilons), list(values), SLACK))
    weak = success.loc[False] if False in success.index.get_level_values("strong") else success.iloc[:0]
    means = weak.groupby(level=["attack", "threat"]).mean()
    for attack, threat in means.index:
        if attack == "FGSM" and ("PGD-40", threat) in means.index:
            one, many = (float(means[name, threat]) for name in ("FGSM", "PGD-40"))
            found.append(not_stronger("FGSM", f"PGD-40 ({threat.replace('_', ' ')})", one, many, SLACK))
    if True in success.index.get_level_values("strong"):
        found += _of_the_worst_case(success.loc[True])
    return found


def _of_the_worst_case(strong: pd.Series) -> list[Finding]:
    """The strong attacks of one network, all on the same images."""
    found = []
    for epsilon, values in strong.groupby(level="epsilon"):
        by_kind: dict[str, float] = {}
        for (attack, threat, _), share in values.items():
            if attack != WORST:
                if attack in BLACK_BOX or threat == "transfer":
                    kind = "black box"
                elif threat == "first_pass":
                    kind = "first pass"
                else:
                    kind = "white box through the whole network"
                by_kind[kind] = max(by_kind.get(kind, 0.0), float(share))
        best = by_kind.pop("white box through the whole network", None)
        found += [
            not_stronger(f"{kind} at epsilon {epsilon:g}", "white box through the whole network", share, best, SLACK)
            for kind, share in sorted(by_kind.items())
            if best is not None
        ]
    return found
