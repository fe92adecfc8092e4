"""Outcomes on disk -> a tidy table, its means over seeds, and the sanity checks that it allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cnnf_brain.attacks.sanity_checks import Finding, never_falls, not_stronger
from cnnf_brain.robustness.cells import Cell, Examination, Right, Workshop, cells
from cnnf_brain.robustness.grids import BLACK_BOX, Grid, Model

WORST = "worst case"
WHITE_BOX = "white box through the whole network"
ROW = ("experiment", "dataset", "model", "trained", "training", "seed", "attack", "threat", "strong")
COLUMNS = (*ROW, "epsilon", "iteration", "accuracy", "images")
SORTED = ["trained", "model", "seed", "attack", "threat", "epsilon", "iteration"]
SLACK = 0.02  # of the checks between attacks, which start at random


@dataclass(frozen=True)
class Check:
    """A sanity check of a network: what was found, with which seeds."""

    model: str
    seeds: list[int]
    finding: Finding

    def record(self) -> dict[str, object]:
        """An entry of checks.json."""
        return {"model": self.model, "seeds": self.seeds, **self.finding.record()}


def collect(shop: Workshop) -> pd.DataFrame:
    """A row for each network, seed, attack, threat, epsilon and iteration at test that is evaluated.

    ``trained``: iterations trained with; ``accuracy``: the share of ``images`` that is classified rightly. The rows of attack
    "worst case" count an image as right only where it is right under every attack made against that network at that epsilon. They
    exist where all attacks of the worst case are done, for the images that these share. Cells of other weights than the networks'
    present ones are left out.
    """
    rows: list[dict[str, Any]] = []
    for seed in shop.grid.seeds:
        every = cells(shop, seed)
        for model in shop.grid.models:
            mine = [cell for cell in every if cell.model == model]
            outcomes = {cell: cell.read() for cell in mine if cell.done()}
            for cell, right in outcomes.items():
                against = (cell.against.attack, cell.against.threat, cell.against.strong)
                rows += _rows(shop.grid, (model, seed, *against), cell.epsilons, right)
            strong = [cell for cell in mine if cell.against.strong]
            if strong and all(cell in outcomes for cell in strong):
                right = worst_case(shop.grid, outcomes)
                rows += _rows(shop.grid, (model, seed, WORST, "all", True), shop.grid.strong_epsilons, right)
    return pd.DataFrame(rows, columns=list(COLUMNS)).sort_values(SORTED, ignore_index=True)


def worst_case(grid: Grid, outcomes: dict[Cell, Right]) -> Right:
    """(epsilon, iteration, image) whether the image is right under all cells that have the epsilon."""
    survived, n = [], grid.strong_images
    for epsilon in grid.strong_epsilons:
        under = [(cell.epsilons.index(epsilon), right) for cell, right in outcomes.items() if epsilon in cell.epsilons]
        survived.append(np.logical_and.reduce([right[at, :, :n] for at, right in under]))
    return np.stack(survived)


def _rows(
    grid: Grid, of: tuple[Model, int, str, str, bool], epsilons: tuple[float, ...], right: Right
) -> list[dict[str, Any]]:
    model, *rest = of
    adversary = model.adversary
    how = "standard" if adversary is None else f"{adversary.mode} {adversary.attack} {adversary.epsilon:g}"
    common = dict(zip(ROW, (grid.name, grid.dataset, model.label, model.iterations, how, *rest), strict=True))
    return [
        {**common, "epsilon": epsilon, "iteration": t, "accuracy": float(right[i, t].mean()), "images": right.shape[2]}
        for i, epsilon in enumerate(epsilons)
        for t in range(right.shape[1])
    ]


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (n - 1; NaN for a single seed) over seeds, ``low`` and ``high`` their interval."""
    keys = [name for name in COLUMNS if name not in ("seed", "accuracy")]
    grouped = table.groupby(keys, sort=False)["accuracy"].agg(mean="mean", sd="std", seeds="count").reset_index()
    grouped["low"], grouped["high"] = grouped["mean"] - grouped["sd"], grouped["mean"] + grouped["sd"]
    return grouped


def own(table: pd.DataFrame) -> pd.DataFrame:
    """The rows at the iteration that each network was trained with."""
    return table[table["iteration"] == table["trained"]]


def sanity(shop: Workshop, table: pd.DataFrame) -> list[Check]:
    """The sanity checks: those of each network's examination, and those between its attacks."""
    found: list[Check] = []
    for model in shop.grid.models:
        examination = Examination(shop, model, shop.grid.seeds[0])
        if examination.done():
            content = examination.read()
            findings = enumerate(content["findings"])  # ``examine`` always has them in the same order
            found += [
                Check(model.label, [content["seed"]], Finding(**finding, key=("examination", str(i))))
                for i, finding in findings
            ]
        rows = own(table[table["model"] == model.label])
        seeds = sorted(int(seed) for seed in rows["seed"].unique())
        found += [Check(model.label, seeds, finding) for finding in between_attacks(rows)]
    return found


def between_attacks(rows: pd.DataFrame) -> list[Finding]:
    """Checks on one network's rows at its own iterations: success over epsilon; FGSM, first pass and black box against the best."""
    success = 1 - rows.groupby(["strong", "attack", "threat", "epsilon"])["accuracy"].mean()
    weak, strong = (
        success[success.index.get_level_values("strong") == is_strong].droplevel(0) for is_strong in (False, True)
    )
    found = []
    for (attack, threat), values in weak.groupby(level=["attack", "threat"]):
        epsilons = values.index.get_level_values("epsilon")
        found.append(never_falls(f"epsilon ({attack}, {threat})", list(epsilons), list(values), SLACK))
    means = weak.groupby(level=["attack", "threat"]).mean()
    for attack, threat in means.index:
        if attack == "FGSM" and ("PGD-40", threat) in means.index:
            single, many = (float(means[name, threat]) for name in ("FGSM", "PGD-40"))
            found.append(not_stronger("FGSM", f"PGD-40 ({threat.replace('_', ' ')})", single, many, SLACK))
    return found + _of_the_worst_case(strong)


def _of_the_worst_case(strong: pd.Series) -> list[Finding]:
    """The strong attacks of one network, all on the same images."""
    found = []
    for epsilon, values in strong.drop(WORST, level="attack", errors="ignore").groupby(level="epsilon"):
        best: dict[str, float] = {}
        for (attack, threat, _), share in values.items():
            kind = _knowledge(attack, threat)
            best[kind] = max(best.get(kind, 0.0), float(share))
        if WHITE_BOX not in best:
            continue
        most = best.pop(WHITE_BOX)
        for kind, share in sorted(best.items()):
            found.append(not_stronger(f"{kind} at epsilon {epsilon:g}", WHITE_BOX, share, most, SLACK))
    return found


def _knowledge(attack: str, threat: str) -> str:
    """What an attacker knows."""
    if attack in BLACK_BOX or threat == "transfer":
        return "black box"
    return "first pass" if threat == "first_pass" else WHITE_BOX
