"""The tables of a grid -> its figure in the paper's form, and the files of its folder.

table.csv, table.nc (every network, seed, attack, epsilon, iteration), summary.csv (means over seeds), claims.csv, checks.json,
figure.svg, figure.png, figure.md, run.json and, last, summary.json, from which the page is made. The folder belongs to one
experiment, recipe and data set from the first cell on (run.json says which), and is locked while these files are written.
figure.md is a section of docs/results/robustness.md.
"""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from cnnf_brain import results, style
from cnnf_brain.io import reading, write_csv, write_json, write_netcdf, write_text
from cnnf_brain.report import PAGE, attempt, readers, tell
from cnnf_brain.report.runs import Figure, TableChart, markdown, markdown_table
from cnnf_brain.robustness.cells import TRAINING_IMAGES, Workshop
from cnnf_brain.robustness.claims import CLAIM, FLOOR, Claim, answer, claims, told_epsilons
from cnnf_brain.robustness.grids import RECIPES, Against, Grid, Model
from cnnf_brain.robustness.table import WORST, Check, collect, over_seeds, own, sanity
from cnnf_brain.trainer.checkpoint import read_run_card

KIND = "robustness"
FIGURES = ("figure.png", "figure.svg")
PATIENCE = 120.0  # seconds that a process waits for another one's tables
QUICK = "QUICK RUN: few images, epochs and seeds"
SHOWN_ITERATIONS = (0, 1, 2, 3, 5, 8, 10, 15)


@dataclass(frozen=True)
class Result:
    """What came out of a grid.

    ``table``: a row for each network, seed, attack, epsilon and iteration (see ``table.collect``); ``means``: over seeds;
    ``run``: the content of run.json; ``page``: the page, in the folder of all files.
    """

    grid: Grid
    run: dict[str, Any]
    table: pd.DataFrame
    means: pd.DataFrame
    claims: list[Claim]
    checks: list[Check]
    page: Path

    @property
    def shown(self) -> pd.DataFrame:
        """The means at the iteration that each network was trained with (shown.csv)."""
        return own(self.means)

    @property
    def failed(self) -> list[Check]:
        """The sanity checks that fail."""
        return [check for check in self.checks if check.finding.holds is False]


def begin(shop: Workshop) -> None:
    """Make the grid's folder its own, before any work; a ValueError where it is another command's, experiment's or recipe's."""
    with results.grown(shop.folder, KIND, shop.configuration, PATIENCE):
        pass


def write(shop: Workshop, *, finished: bool, seconds: float, device_name: str) -> Result:
    """All files of the grid's folder from the outcomes that there are; a ValueError where there are none."""
    grid = shop.grid
    with results.grown(shop.folder, KIND, shop.configuration, PATIENCE) as folder:
        table = collect(shop)
        if table.empty:
            raise ValueError(f"{folder}: no cell is finished yet; the same command continues")
        run = record(shop, finished=finished, seconds=seconds, device_name=device_name)
        checks, claimed = sanity(shop, table), claims(grid, table)
        result = Result(grid, run, table, over_seeds(table), claimed, checks, folder / PAGE)
        with results.renewed(folder) as staging:
            results.write_record(staging, KIND, shop.configuration, run)
            _write(result, staging)
            missing = attempt(" and ".join(FIGURES), lambda: draw(grid, result.means, staging))
            missing += attempt(PAGE, lambda: readers.leave(staging, shown_as=folder))
            made = {path.name for path in staging.iterdir()}
        for old in {*FIGURES, PAGE} - made:  # not of these tables
            (folder / old).unlink(missing_ok=True)
    tell(folder, missing, "the same command, for all cells are kept")
    return result


def _write(result: Result, folder: Path) -> None:
    rows = [claim.row() for claim in result.claims]
    tables = {"table": result.table, "summary": result.means, "shown": result.shown}
    for name, table in {**tables, "claims": pd.DataFrame(rows, columns=list(CLAIM))}.items():
        write_csv(folder / f"{name}.csv", table)
    typed = result.table.astype({"strong": np.int8})
    columns = [*typed.columns.drop("strong"), "strong"]
    write_netcdf(folder / "table.nc", xr.Dataset({name: ("row", typed[name].to_numpy()) for name in columns}))
    write_json(folder / "checks.json", {"findings": [check.record() for check in result.checks]})
    write_text(folder / "figure.md", section(result))
    summary(result).save(folder)


def record(shop: Workshop, *, finished: bool, seconds: float, device_name: str) -> dict[str, Any]:
    """run.json: what was run, on what, and how long it took."""
    grid = shop.grid
    networks = [_network(shop, model, seed) for seed in grid.seeds for model in grid.models]
    what = {"experiment": grid.name, "recipe": grid.recipe, "data": shop.data_hash, "images": f"{grid.images} {grid.part}"}
    names = ("quick", "recipe", "dataset", "part", "images", "strong_images", "seeds", "epsilons")
    return {
        "command": shop.command,
        "commit": results.commit(),
        "versions": results.versions(),
        "machine": device_name,
        "seconds": round(seconds, 1),
        "experiment": grid.name,
        "finished": finished,
        "data_hash": shop.data_hash,
        **{name: getattr(grid, name) for name in names},
        "epsilon_units": "images in [0, 1]",
        "attacks": {name: repr(attack) for name, attack in grid.attacks.items()},
        "networks": [network for network in networks if network],
        "same": {**what, "quick": str(grid.quick)},
    }


def _network(shop: Workshop, model: Model, seed: int) -> dict[str, Any] | None:
    """What run.json says of a network; None where it is not trained."""
    path = shop.network_folder(model, seed) / "card.json"
    if not path.exists():
        return None
    card = read_run_card(path)
    trained = card["configuration"]
    with reading(path, "the card of a run"):
        return {
            "model": model.label,
            "seed": seed,
            "folder": path.parent.name,
            "weights_sha256": shop.weights(model, seed),
            "epochs": trained["epochs"],
            "training_images": trained.get("limit", TRAINING_IMAGES),
            **{name: card[name] for name in ("training_seconds", "validation_accuracy", "machine")},
        }


def caption(grid: Grid) -> str:
    """What a reader must know to read the figure: data, training, attacks, units, quick or not."""
    settings = [model.settings(grid, 0) for model in grid.models]
    epochs = "/".join(str(n) for n in sorted({s.epochs for s in settings}))
    images = f"{grid.limit:,} training images" if grid.limit else "all 55,000 training images"
    rates = "/".join(f"{rate:g}" for rate in sorted({s.learning_rate for s in settings}))
    seeds = f"mean and standard deviation over {len(grid.seeds)} seeds" if len(grid.seeds) > 1 else "one seed"
    how = f" in {grid.amp}" if grid.amp else ""
    quick = f"{QUICK}. " if grid.quick else ""
    weaker = ", with fewer steps and queries than the full grid's (run.json has them)" if grid.weaker else ""
    crosses = f" Crosses: worst case of all attacks, image by image, on {grid.strong_images} images{weaker}."
    return (
        f"{quick}{grid.heading} ({RECIPES[grid.recipe].words}): {epochs} epochs on {images} at learning rate {rates}{how}; "
        f"{seeds}; {grid.images:,} {grid.part} images. Epsilon is for images in [0, 1].{crosses if grid.has_worst_case else ''}"
    )


def summary(result: Result) -> Figure:
    """What the page shows of the grid."""
    grid, failed = result.grid, result.failed
    caveats = [QUICK + "; not a result"] if grid.quick else []
    caveats += [] if result.run["finished"] else ["The grid is not finished: means are over the seeds that are."]
    for key, name in sorted({check.finding.key: check.finding.name for check in failed}.items(), key=lambda item: item[1]):
        models = sorted({check.model for check in failed if check.finding.key == key})
        caveats.append(f"Check failed ({', '.join(models)}): {name}; accuracy reported there is an upper bound")
    charts = [_chart(grid, panel.title, panel.against) for panel in grid.panels if panel.x == "epsilon"]
    charts += [_chart(grid, "worst case", Against(WORST, "all", True))] if grid.has_worst_case else []
    return Figure(
        title=grid.heading,
        question=grid.question,
        answer=answer(result.claims),
        claims=result.claims,
        charts=charts,
        tables={
            "shown.csv": ("Accuracy at the iteration trained with, over seeds",),
            "summary.csv": ("Accuracy at every iteration, over seeds",),
        },
        pictures={"figure.png": caption(grid)},
        caveats=caveats,
    )


def _chart(grid: Grid, title: str, against: Against) -> TableChart:
    axes = {"x": "epsilon", "x_name": "epsilon", "y": "mean", "y_name": "accuracy", "low": "low", "high": "high"}
    about = {"title": title, "caption": caption(grid), "table": "shown.csv", "label": "{model}, epsilon {epsilon}"}
    return TableChart(**about, **axes, where=asdict(against), group=["{model}"], series="")


def draw(grid: Grid, means: pd.DataFrame, folder: Path) -> None:
    """figure.svg and figure.png: one axes for each panel, lines with the standard deviation over seeds."""
    columns = min(2, len(grid.panels))
    rows = -(-len(grid.panels) // columns)
    with style.styled():
        figure = style.new_figure(4.6 * columns, 3.4 * rows + 0.7, layout="constrained")
        axes = np.asarray(figure.subplots(rows, columns, squeeze=False)).ravel()
        for letter, panel, ax in zip("abcdefgh", grid.panels, axes, strict=False):
            mine = under(means, panel.against)
            if panel.x == "epsilon":
                _over_epsilon(ax, grid, mine, own(means[means["attack"] == WORST]))
            else:
                last = grid.models[-1].label
                _by_epsilon(ax, grid, mine[mine["model"] == last] if panel.x == "iteration" else own(mine), panel.x)
                at_test, trained = f"iterations at test ({last})", "iterations in training (and at test)"
                ax.set_xlabel(at_test if panel.x == "iteration" else trained)
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


def _over_epsilon(ax: Any, grid: Grid, rows: pd.DataFrame, worst: pd.DataFrame) -> None:
    for model in grid.models:
        line = own(rows[rows["model"] == model.label])
        look = _look(grid, model.label)
        if len(line):
            _line(ax, line["epsilon"], line, **look)
        crosses = worst[worst["model"] == model.label]
        if len(crosses):
            ax.plot(crosses["epsilon"], crosses["mean"], marker="x", linestyle="none", color=look["color"])
    ax.set_xlabel("epsilon")


def _by_epsilon(ax: Any, grid: Grid, rows: pd.DataFrame, x: str) -> None:
    for i, epsilon in enumerate(grid.epsilons):
        line = rows[rows["epsilon"] == epsilon]
        if line.empty:
            continue
        _line(ax, line[x], line, label=f"epsilon {epsilon:g}", color=style.ITERATIONS[i % 6], marker=style.MARKERS[i % 6])


def under(rows: pd.DataFrame, against: Against) -> pd.DataFrame:
    """The rows of an attack that follows a threat."""
    same = (rows["attack"] == against.attack) & (rows["threat"] == against.threat) & (rows["strong"] == against.strong)
    return rows[same]


def section(result: Result) -> str:
    """figure.md: the command, the caption, tables, claims and checks. Accuracy in %, mean ± standard deviation over seeds."""
    grid, means = result.grid, result.means
    command = " ".join(str(result.run["command"]).split())
    parts = [f"## {markdown(grid.heading)}", f"    {command}", f"{markdown(caption(grid))}\n{markdown(training(result))}"]
    over_iterations = all(panel.x == "iteration" for panel in grid.panels)
    parts += ["![The figure](figure.png)", by_iteration(grid, means) if over_iterations else by_network(grid, means)]
    for epsilon in grid.strong_epsilons if grid.has_worst_case else ():
        parts.append(f"Strong attacks one by one, epsilon {epsilon:g}, {grid.strong_images} images:")
        parts.append(one_by_one(grid, means, epsilon))
    rows = [(*c.cells, c.left, told_epsilons(c.left_out)) for c in result.claims]
    floor = f"left out (all below {100 * FLOOR:g} %)"
    head = ("claim", "measured", "verdict", "left under the strongest attack of all", floor)
    parts += [markdown_table(head, rows)] if rows else []
    return "\n\n".join([*parts, markdown(told(result))]) + "\n"


def training(result: Result) -> str:
    """How long each kind of network took, and on what."""
    words, networks = [], result.run["networks"]
    for model in result.grid.models:
        seconds = [network["training_seconds"] for network in networks if network["model"] == model.label]
        if seconds:
            words.append(f"{model.label} {min(seconds)}" + (f" to {max(seconds)}" if max(seconds) > min(seconds) else ""))
    machines = sorted({network["machine"] for network in networks})
    return f"Seconds of training a network: {'; '.join(words)}. Machine: {'; '.join(machines)}."


def by_network(grid: Grid, means: pd.DataFrame) -> str:
    """A row for each network: accuracy at its own iterations, clean, under the figure's attacks, and in the worst case."""
    mine = own(means)
    weak, worst = mine[~mine["strong"]], mine[mine["attack"] == WORST]
    order = ["epsilon", "attack", "threat"]
    kinds = weak.loc[weak["epsilon"] > 0, order].drop_duplicates().sort_values(order).itertuples(index=False, name=None)
    columns = [("clean", weak[weak["epsilon"] == 0].drop_duplicates("model"))]
    for epsilon, attack, threat in kinds:
        rows = under(weak, Against(attack, threat))
        columns.append((f"{_name(attack, threat)} {epsilon:g}", rows[rows["epsilon"] == epsilon]))
    columns += [(f"worst case {epsilon:g}", rows) for epsilon, rows in worst.groupby("epsilon")]
    there = _there(grid, mine)
    shares = [[_share(rows[rows["model"] == label]) for _, rows in columns] for label in there]
    return markdown_table(
        ["network", *(name for name, _ in columns)], [[label, *row] for label, row in zip(there, shares, strict=True)]
    )


def by_iteration(grid: Grid, means: pd.DataFrame) -> str:
    """A row for each attack and epsilon, a column for each iteration at test; the last network."""
    of = means[(means["model"] == grid.models[-1].label) & ~means["strong"]]
    shown = [t for t in SHOWN_ITERATIONS if t in set(of["iteration"])]
    kinds = [("clean", of[of["epsilon"] == 0].drop_duplicates("iteration"))]
    for (attack, threat, epsilon), rows in of[of["epsilon"] > 0].groupby(["attack", "threat", "epsilon"]):
        kinds.append((f"{_name(attack, threat)}, {epsilon:g}", rows))
    shares = [[name, *(_share(rows[rows["iteration"] == t]) for t in shown)] for name, rows in kinds]
    return markdown_table(["attack, epsilon", *shown], shares)


def one_by_one(grid: Grid, means: pd.DataFrame, epsilon: float) -> str:
    """A row for each strong attack, a column for each network."""
    of = own(means[means["strong"] & (means["epsilon"] == epsilon) & (means["attack"] != WORST)])
    there, rows = _there(grid, of), []
    for against in (against for against in grid.against if against.strong):
        mine = under(of, against)
        rows.append([against.label, *(_share(mine[mine["model"] == label]) for label in there)])
    return markdown_table(["attack", *there], rows)


def _there(grid: Grid, rows: pd.DataFrame) -> list[str]:
    """The networks that have rows: not all of them in a grid that is not finished."""
    return [model.label for model in grid.models if model.label in set(rows["model"])]


def told(result: Result) -> str:
    """How many sanity checks hold, and which do not."""
    held = sum(check.finding.holds is True for check in result.checks)
    words = f"Checks against a false sense of security: {held} hold, {len(result.failed)} fail"
    if not result.failed:
        return words + "."
    which = "; ".join(f"{check.model}: {check.finding.name}: no ({check.finding.detail})" for check in result.failed)
    return f"{words}. {which}. Accuracy reported there is an upper bound."


def _name(attack: str, threat: str) -> str:
    return attack if threat == "first_pass" else Against(attack, threat).label


def _share(rows: pd.DataFrame) -> str:
    """``62.7 ± 4.9``; without a deviation where there is one seed; nothing where there is no row."""
    if rows.empty:
        return ""
    (row,) = rows.to_dict("records")
    return f"{100 * row['mean']:.1f}" + (f" ± {100 * row['sd']:.1f}" if row["seeds"] > 1 else "")
