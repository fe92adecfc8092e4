"""A grid's outcome as a section in Markdown: the command, the caption, its tables, claims and checks (figure.md).

docs/results/robustness.md is made of these.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd
from tabulate import tabulate

from cnnf_brain.robustness.claims import FLOOR, Claim, told_epsilons
from cnnf_brain.robustness.grids import Against, Grid, Model
from cnnf_brain.robustness.table import WORST, own

SHOWN_ITERATIONS = (0, 1, 2, 3, 5, 8, 10, 15)


def section(
    grid: Grid, run: dict[str, Any], means: pd.DataFrame, claimed: list[Claim], checks: list[dict[str, Any]], caption: str
) -> str:
    """The text; accuracy in %, mean ± standard deviation over seeds."""
    parts = [f"## {grid.heading}", f"    {run['command']}", f"{caption}\n{training(grid, run)}", "![The figure](figure.png)"]
    over_iterations = all(panel.x == "iteration" for panel in grid.panels)
    parts.append(by_iteration(grid, means) if over_iterations else by_network(grid, means))
    for epsilon in grid.strong_epsilons if any(against.strong for against in grid.against) else ():
        parts += [
            f"Strong attacks one by one, epsilon {epsilon:g}, {grid.strong_images} images:",
            one_by_one(grid, means, epsilon),
        ]
    rows = [(c.claim, c.measured, c.verdict, c.left, told_epsilons(c.left_out)) for c in claimed]
    head = (
        "claim",
        "measured",
        "verdict",
        "left under the strongest attack of all",
        f"left out (all below {100 * FLOOR:g} %)",
    )
    parts += [_table(head, rows)] if rows else []
    return "\n\n".join([*parts, told(checks)]) + "\n"


def training(grid: Grid, run: dict[str, Any]) -> str:
    """How long each kind of network took, and on what."""
    words = []
    for model in grid.models:
        seconds = [network["training_seconds"] for network in run["networks"] if network["model"] == model.label]
        if seconds:
            words.append(f"{model.label} {min(seconds)}" + (f" to {max(seconds)}" if max(seconds) > min(seconds) else ""))
    machines = sorted({network["machine"] for network in run["networks"]})
    return f"Seconds of training a network: {'; '.join(words)}. Machine: {'; '.join(machines)}."


def by_network(grid: Grid, means: pd.DataFrame) -> str:
    """A row a network: accuracy at its own iterations, clean, under the figure's attacks, and in the worst case."""
    mine = own(means)
    attacked = mine[(mine["epsilon"] > 0) & ~mine["strong"]]
    columns = list(attacked[["epsilon", "attack", "threat"]].drop_duplicates().sort_values(["epsilon", "attack", "threat"])
                   .itertuples(index=False, name=None))  # fmt: skip
    worst = sorted(mine.loc[mine["attack"] == WORST, "epsilon"].unique())
    head = ["network", "clean", *(f"{_name(attack, threat)} {epsilon:g}" for epsilon, attack, threat in columns)]
    rows = []
    for model in _there(grid, mine):
        of = mine[mine["model"] == model.label]
        weak = of[~of["strong"]]
        row = [model.label, _share(weak[weak["epsilon"] == 0].head(1))]
        for epsilon, attack, threat in columns:
            row.append(_share(weak[(weak["epsilon"] == epsilon) & (weak["attack"] == attack) & (weak["threat"] == threat)]))
        rows.append([*row, *(_share(of[(of["attack"] == WORST) & (of["epsilon"] == epsilon)]) for epsilon in worst)])
    return _table([*head, *(f"worst case {epsilon:g}" for epsilon in worst)], rows)


def by_iteration(grid: Grid, means: pd.DataFrame) -> str:
    """A row an attack and epsilon, a column an iteration at test; the last network."""
    of = means[(means["model"] == grid.models[-1].label) & ~means["strong"]]
    shown = [t for t in SHOWN_ITERATIONS if t in set(of["iteration"])]
    clean = of[of["epsilon"] == 0].drop_duplicates("iteration")
    kinds = [("clean", clean)]
    for (attack, threat, epsilon), rows in of[of["epsilon"] > 0].groupby(["attack", "threat", "epsilon"]):
        kinds.append((f"{_name(attack, threat)}, {epsilon:g}", rows))
    return _table(
        ["attack, epsilon", *shown], [[name, *(_share(rows[rows["iteration"] == t]) for t in shown)] for name, rows in kinds]
    )


def one_by_one(grid: Grid, means: pd.DataFrame, epsilon: float) -> str:
    """A row a strong attack, a column a network."""
    of = own(means[means["strong"] & (means["epsilon"] == epsilon) & (means["attack"] != WORST)])
    rows = []
    for against in (against for against in grid.against if against.strong):
        mine = of[(of["attack"] == against.attack) & (of["threat"] == against.threat)]
        rows.append([against.label, *(_share(mine[mine["model"] == model.label]) for model in _there(grid, of))])
    return _table(["attack", *(model.label for model in _there(grid, of))], rows)


def _there(grid: Grid, rows: pd.DataFrame) -> list[Model]:
    """The networks that have rows: not all of them in a grid that is not finished."""
    return [model for model in grid.models if model.label in set(rows["model"])]


def told(checks: list[dict[str, Any]]) -> str:
    """How many checks against a false sense of security hold, and which do not."""
    failed = [check for check in checks if check["holds"] is False]
    held = sum(check["holds"] is True for check in checks)
    words = f"Checks against a false sense of security: {held} hold, {len(failed)} fail"
    if not failed:
        return words + "."
    which = "; ".join(f"{check['model']}: {check['name']}: no ({check['detail']})" for check in failed)
    return f"{words}. {which}. Accuracy reported there is an upper bound."


def _name(attack: str, threat: str) -> str:
    return attack if threat == "first_pass" else Against(attack, threat).label


def _share(rows: pd.DataFrame) -> str:
    """``62.7 ± 4.9``; without a deviation where there is one seed; nothing where there is no row."""
    if rows.empty:
        return ""
    (row,) = rows.to_dict("records")
    return f"{100 * row['mean']:.1f}" + (f" ± {100 * row['sd']:.1f}" if row["seeds"] > 1 else "")


def _table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    return tabulate([list(row) for row in rows], [str(name) for name in head], tablefmt="pipe", disable_numparse=True)
