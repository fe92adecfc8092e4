"""The tables of a grid -> its figure in the paper's form, and the files of its folder.

table.csv, table.nc (every network, seed, attack, epsilon, iteration), summary.csv (means over seeds), claims.csv, checks.json,
figure.svg, figure.png, figure.md, run.json and, last, summary.json, from which the page is made. The folder belongs to one
experiment, recipe and data set from the first cell on (run.json says which), and is locked while these files are written.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from cnnf_brain import results, style
from cnnf_brain.io import atomic_path, check_writable, write_json, write_text
from cnnf_brain.report import readers
from cnnf_brain.robustness.claims import Claim, answer, claims
from cnnf_brain.robustness.grids import RECIPES, Grid, Panel
from cnnf_brain.robustness.section import section
from cnnf_brain.robustness.table import WORST, collect, findings, over_seeds, own
from cnnf_brain.robustness.workshop import Workshop

SCHEMA = 1
KIND = "robustness"
PATIENCE = 120.0  # seconds that a process waits for another one's tables
COLUMNS = ("claim", "measured", "verdict", "holds", "left", "left_out", "main")  # of claims.csv
QUICK = "QUICK RUN: few images, epochs and seeds"


def begin(shop: Workshop) -> None:
    """Make the grid's folder its own, before any work; a ValueError where it is another command's, experiment's or recipe's."""
    with results.locked(shop.folder, PATIENCE):
        results.claim(shop.folder, KIND, shop.configuration)
        check_writable(shop.folder)
        if not (shop.folder / results.RECORD).exists():
            write_json(
                shop.folder / results.RECORD, {"kind": KIND, "configuration": shop.configuration, "command": shop.command}
            )


def write(shop: Workshop, *, finished: bool, seconds: float, device_name: str) -> Path:
    """All files of the grid's folder from the outcomes that there are; the path of the page."""
    with results.locked(shop.folder, PATIENCE):
        results.claim(shop.folder, KIND, shop.configuration)
        return _write(shop, record(shop, finished=finished, seconds=seconds, device_name=device_name))


def _write(shop: Workshop, run: dict[str, Any]) -> Path:
    folder, grid = shop.folder, shop.grid
    (folder / "summary.json").unlink(missing_ok=True)
    table = collect(shop)
    if table.empty:
        raise ValueError(f"{folder}: no cell is finished yet; the same command continues")
    means, checks, claimed = over_seeds(table), findings(shop, table), claims(grid, table)
    write_json(folder / results.RECORD, run)
    _csv(folder / "table.csv", table)
    with atomic_path(folder / "table.nc") as temporary:
        columns = {name: ("row", table[name].to_numpy()) for name in table.columns if name != "strong"}
        columns["strong"] = ("row", table["strong"].to_numpy().astype(np.int8))
        xr.Dataset(columns).to_netcdf(temporary, engine="netcdf4")
    _csv(folder / "summary.csv", means)
    _csv(folder / "shown.csv", own(means))
    _csv(folder / "claims.csv", pd.DataFrame([claim.record() for claim in claimed], columns=list(COLUMNS)))
    write_json(folder / "checks.json", {"findings": checks})
    draw(grid, means, folder)
    write_text(folder / "figure.md", section(grid, run, means, claimed, checks, caption(grid)))
    write_json(folder / "summary.json", summary(grid, run, claimed, checks))
    return readers.leave(folder)


def record(shop: Workshop, *, finished: bool, seconds: float, device_name: str) -> dict[str, Any]:
    """run.json: what was run, on what, and how long it took."""
    grid = shop.grid
    networks = [shop.card(model, seed) for seed in grid.seeds for model in grid.models]
    return {
        "kind": KIND, "configuration": shop.configuration,
        "command": shop.command, "commit": results.commit(), "versions": results.versions(), "machine": device_name,
        "seconds": round(seconds, 1), "experiment": grid.name, "finished": finished, "quick": grid.quick, "recipe": grid.recipe,
        "dataset": grid.dataset, "data_hash": shop.data_hash, "part": grid.part, "images": grid.images,
        "strong_images": grid.strong_images, "seeds": list(grid.seeds), "epsilons": list(grid.epsilons),
        "epsilon_units": "images in [0, 1]", "attacks": {name: repr(attack) for name, attack in grid.attacks.items()},
        "networks": [network for network in networks if network],
        "same": {"experiment": grid.name, "recipe": grid.recipe, "data": shop.data_hash, "images": f"{grid.images} {grid.part}",
                 "quick": str(grid.quick)},
    }  # fmt: skip


def caption(grid: Grid) -> str:
    """What a reader must know to read the figure: data, training, attacks, units, quick or not."""
    settings = [model.settings(grid, 0) for model in grid.models]
    epochs = "/".join(str(n) for n in sorted({s.epochs for s in settings}))
    images = f"{grid.limit:,} training images" if grid.limit else "all 55,000 training images"
    rates = "/".join(f"{rate:g}" for rate in sorted({s.learning_rate for s in settings}))
    seeds = f"mean and standard deviation over {len(grid.seeds)} seeds" if len(grid.seeds) > 1 else "one seed"
    how = f" in {grid.amp}" if grid.amp else ""
    quick = f"{QUICK}. " if grid.quick else ""
    return (
        f"{quick}{grid.heading} ({RECIPES[grid.recipe].words}): {epochs} epochs on {images} at learning rate {rates}{how}; "
        f"{seeds}; {grid.images:,} {grid.part} images. Epsilon is for images in [0, 1].{crosses(grid)}"
    )


def crosses(grid: Grid) -> str:
    """What the crosses of the figure are, where it has any."""
    if all(not against.strong for against in grid.against):
        return ""
    weaker = ", with fewer steps and queries than the full grid's (run.json has them)" if grid.weaker else ""
    return f" Crosses: worst case of all attacks, image by image, on {grid.strong_images} images{weaker}."


def summary(grid: Grid, run: dict[str, Any], claimed: list[Claim], checks: list[dict[str, Any]]) -> dict[str, Any]:
    """summary.json, in the form that the page reads."""
    failed = [check for check in checks if check["holds"] is False]
    caveats = [QUICK + "; not a result"] if grid.quick else []
    caveats += [] if run["finished"] else ["The grid is not finished: means are over the seeds that are."]
    caveats += [f"Check failed ({', '.join(sorted({c['model'] for c in failed if c['name'] == name}))}): {name}; accuracy reported "
                "there is an upper bound" for name in sorted({c["name"] for c in failed})]  # fmt: skip
    charts = [_chart(panel, grid) for panel in grid.panels if panel.x == "epsilon"]
    charts.append(_chart(Panel("worst case", grid.panels[0].against), grid, attack=WORST, threat="all"))
    if all(not against.strong for against in grid.against):
        charts.pop()
    return {
        "schema": SCHEMA, "kind": "figure", "title": grid.heading, "question": grid.question,
        "answer": answer(claimed), "claims": [{**claim.record(), "measured": claim.figures} for claim in claimed],
        "tables": [
            {"file": "shown.csv", "title": "Accuracy at the iteration trained with, over seeds", "notes": [caption(grid)]},
            {"file": "summary.csv", "title": "Accuracy at every iteration, over seeds", "notes": []},
        ],
        "charts": charts,
        "pictures": [{"file": "figure.png", "caption": caption(grid)}],
        "caveats": caveats,
    }  # fmt: skip


def _chart(panel: Panel, grid: Grid, attack: str = "", threat: str = "") -> dict[str, Any]:
    where = {"attack": attack or panel.against.attack, "threat": threat or panel.against.threat,
             "strong": bool(attack) or panel.against.strong}  # fmt: skip
    return {"title": panel.title, "caption": caption(grid), "table": "shown.csv", "where": where, "group": ["{model}"],
            "series": "", "label": "{model}, epsilon {epsilon}", "x": "epsilon", "x_name": "epsilon", "y": "mean",
            "y_name": "accuracy", "low": "low", "high": "high"}  # fmt: skip


def draw(grid: Grid, means: pd.DataFrame, folder: Path) -> None:
    """figure.svg and figure.png: one axes for each panel, lines with the standard deviation over seeds."""
    columns = min(2, len(grid.panels))
    rows = -(-len(grid.panels) // columns)
    with style.styled():
        figure = style.new_figure(4.6 * columns, 3.4 * rows + 0.7, layout="constrained")
        axes = np.asarray(figure.subplots(rows, columns, squeeze=False)).ravel()
        for letter, panel, ax in zip("abcdefgh", grid.panels, axes, strict=False):
            mine = means[(means["attack"] == panel.against.attack) & (means["threat"] == panel.against.threat)]
            mine = mine[mine["strong"] == panel.against.strong]
            {"epsilon": _over_epsilon, "iteration": _over_iterations, "trained": _over_training}[panel.x](
                ax, grid, mine, means
            )
            ax.set_title(f"{letter}  {panel.title}", loc="left")
            ax.set_ylabel(f"accuracy on {grid.part} images")
            ax.set_ylim(-0.02, 1.02)
            if ax.has_data():
                ax.legend(fontsize="x-small")
            ax.xaxis.get_major_locator().set_params(integer=panel.x != "epsilon")
        for ax in axes[len(grid.panels) :]:
            ax.remove()
        title = grid.heading + (f"  ({QUICK})" if grid.quick else "")
        figure.suptitle(textwrap.fill(title, 55 * columns), fontsize="medium")
    style.save(figure, folder)


def _look(grid: Grid, label: str) -> dict[str, Any]:
    """Colour, marker and dash of a network: its iterations', or one of its own where several share them."""
    model = next(m for m in grid.models if m.label == label)
    alike = [m.label for m in grid.models if m.iterations == model.iterations]
    look = style.line(model.iterations or None)
    if len(alike) > 1:
        i = alike.index(label)
        look["marker"] = style.MARKERS[i % len(style.MARKERS)]
        if len(alike) > 2:
            look["color"] = style.ITERATIONS[i % len(style.ITERATIONS)]
        look["linestyle"] = ("-", ":", "-.", "--")[i % 4] if model.iterations else ("--", ":")[i % 2]
    return {**look, "label": label}


def _line(ax: Any, x: pd.Series, rows: pd.DataFrame, **look: Any) -> None:
    order = np.argsort(x.to_numpy())
    ax.errorbar(
        x.to_numpy()[order], rows["mean"].to_numpy()[order], rows["sd"].fillna(0).to_numpy()[order], capsize=2, **look
    )


def _over_epsilon(ax: Any, grid: Grid, rows: pd.DataFrame, means: pd.DataFrame) -> None:
    for model in grid.models:
        line = own(rows[rows["model"] == model.label])
        look = _look(grid, model.label)
        if len(line):
            _line(ax, line["epsilon"], line, **look)
        worst = own(means[(means["model"] == model.label) & (means["attack"] == WORST)])
        if len(worst):
            ax.plot(worst["epsilon"], worst["mean"], marker="x", linestyle="none", color=look["color"])
    ax.set_xlabel("epsilon")


def _over_iterations(ax: Any, grid: Grid, rows: pd.DataFrame, means: pd.DataFrame) -> None:
    _by_epsilon(ax, grid, rows[rows["model"] == grid.models[-1].label], "iteration")
    ax.set_xlabel(f"iterations at test ({grid.models[-1].label})")


def _over_training(ax: Any, grid: Grid, rows: pd.DataFrame, means: pd.DataFrame) -> None:
    _by_epsilon(ax, grid, own(rows), "trained")
    ax.set_xlabel("iterations in training (and at test)")


def _by_epsilon(ax: Any, grid: Grid, rows: pd.DataFrame, x: str) -> None:
    for i, epsilon in enumerate(grid.epsilons):
        line = rows[rows["epsilon"] == epsilon]
        if line.empty:
            continue
        _line(ax, line[x], line, label=f"epsilon {epsilon:g}", color=style.ITERATIONS[i % 6], marker=style.MARKERS[i % 6])


def _csv(path: Path, table: pd.DataFrame) -> None:
    write_text(path, table.to_csv(index=False))
