"""The cells of a study that are done -> one Comparison, whose Holm's p are over the study; ranking, tables and page."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnf_brain import results
from cnnf_brain.compare import Comparison
from cnnf_brain.compare.comparison import read_scores, write_scores
from cnnf_brain.io import read_bytes, read_json, write_csv
from cnnf_brain.report import PAGE, attempt, readers, tell
from cnnf_brain.report.runs import Figure, TableChart
from cnnf_brain.sweep.cells import CELLS, LOGS, MANIFEST, PATIENCE

if TYPE_CHECKING:
    import pandas as pd

KIND = "sweep"
GROUP = ["region", "source", "metric"]
RANKED = ("rank", *GROUP, "network", "weights", "layer", "iteration", "score", "low", "high")
RANKED += ("difference", "difference_low", "difference_high", "verdict")
FEW = 12  # groups of rows that are drawn


@dataclass(frozen=True, eq=False)
class Table:
    """All cells of a study that are done.

    Attributes
    ----------
    comparison
        Their rows as one Comparison: ``comparison.table()``, with Holm's p over the study.
    missing, failed
        Names of the cells that are not done, and of those whose error is noted.
    """

    comparison: Comparison
    missing: tuple[str, ...]
    failed: Mapping[str, str]

    @cached_property
    def ranking(self) -> pd.DataFrame:
        """Rows of all networks by score, apart for each region, source and metric, the best first.

        ``score`` is the median r or the agreement, ``low`` and ``high`` its 95% interval: of r over sites, of an agreement for new
        images. ``difference`` to the baseline has the 95% interval for new images, and ``verdict`` says what the tests over the
        study leave (Holm). Where all networks have one baseline, differences rank them too.
        """
        table = self.comparison.table()
        scored = [name for name in ("median_r", "agreement") if name in table]
        table["score"] = table[scored].bfill(axis=1).iloc[:, 0] if scored else float("nan")
        table["rank"] = table.groupby(GROUP)["score"].rank(ascending=False, method="min")
        table = table.reindex(columns=[*RANKED, *(name for name in table if str(name).startswith("p: "))])
        return table.sort_values([*GROUP, "rank"], kind="stable", ignore_index=True)

    @property
    def answer(self) -> str:
        """The highest score of each region, source and metric, then what the comparison with the baseline found."""
        firsts = self.ranking.drop_duplicates(GROUP)[:FEW].to_dict("records")
        words = "{region} ({source.name}, {metric}): {network} [{weights}] {layer}@{iteration}, {score:.3f}"
        best = [words.format_map(row | {"source": Path(row["source"])}) for row in firsts]
        return f"Highest scores: {'; '.join(best)}. {self.comparison.answer}"


def collect(folder: Path) -> Table:
    """The table of a study's folder, whose files are written anew: ranking.csv, table.csv, scores.nc, summary.json, report.html.

    Raises
    ------
    ValueError, FileNotFoundError
        No study, a cell that is damaged, or no cell with scores yet.
    """
    names = [one["name"] for one in results.read_record(folder, MANIFEST)["cells"]]
    there = [name for name in names if (folder / CELLS / name).exists()]
    found: dict[tuple[str, ...], Any] = {}
    for name in there:
        for one in read_scores(folder / CELLS / name) if name.endswith(".nc") else ():
            key = (one.region, one.source, one.network, one.weights, one.layer, one.metric, one.against)
            found.setdefault(key, one)  # a baseline's row, or a first pass, comes from several cells
    failed = status(folder).failures
    if not found:
        why = next(iter(failed.values()), "none is done")
        raise ValueError(f"{folder}: no scores yet ({why}); run the study")
    record = results.read_record(folder, results.RECORD)
    options = {**record["configuration"]["scoring"], "metric": sorted({one.metric for one in found.values()})}
    comparison = Comparison(tuple(found.values()), {"options": options, "accuracy": [], "notes": [], "networks": []})
    table = Table(comparison, tuple(name for name in names if name not in there), failed)
    with results.grown(folder, KIND, record["configuration"], wait=PATIENCE), results.renewed(folder) as staging:
        about: dict[str, Any] = {"command": results.command(), "commit": results.commit(), "versions": results.versions()}
        about |= {"cells": len(names), "missing": len(table.missing), "failed": dict(failed), "same": {}}
        results.write_record(staging, KIND, record["configuration"], about)
        _write(table, staging)
        missing = attempt(PAGE, lambda: readers.leave(staging, shown_as=folder))
    tell(folder, missing, f"cnnf-brain report {folder}")
    return table


def _write(table: Table, folder: Path) -> None:
    write_csv(folder / "ranking.csv", table.ranking)
    write_csv(folder / "table.csv", table.comparison.table())
    write_scores(folder / "scores.nc", table.comparison)
    _summary(table).save(folder)


def _summary(table: Table) -> Figure:
    """What the page shows."""
    ranking, rows = table.ranking, table.comparison.rows
    groups = list(ranking[GROUP].drop_duplicates().itertuples(index=False, name=None))
    charts = [
        TableChart(
            title=", ".join(values),
            caption="Score with its 95% interval: of median r over sites, of an agreement for new images.",
            table="ranking.csv",
            where=dict(zip(GROUP, values, strict=True)),
            group=["{network} [{weights}]"],
            series="",
            label="{network} {layer}@{iteration}",
            y="score",
            y_name="score",
            low="low",
            high="high",
        )
        for values in groups[:FEW]
    ]
    caveats = [f"{len(table.missing)} cells are not done: the table is of the others."] * bool(table.missing)
    caveats += [f"{name} failed: {error}" for name, error in list(table.failed.items())[:5]]
    baselines = {(row["network"], row["weights"]) for row in rows if row["role"] == "baseline"}
    if len(baselines) != 1:
        caveats.append("The networks have no baseline in common: they are ranked by score, and its interval is over sites.")
    if len(ranking["layer"].unique()) > 1:
        caveats.append(
            "A network's best layer, chosen from this table, is chosen on the data that score it; nested choice is not."
        )
    if table.comparison.simulated:
        caveats.append("Simulated sites are computed, not recorded: nothing here says anything about a brain.")
    return Figure(
        title="A study of networks",
        question="Which networks, layers and iterations predict the recorded sites best?",
        answer=table.answer,
        claims=[],
        charts=charts,
        tables={
            "ranking.csv": (
                "Ranking",
                "By score, apart for each region, source and metric. The interval of the difference speaks of new images; p and "
                "verdict are adjusted by Holm's method over the whole study.",
            )
        },
        pictures={},
        caveats=caveats,
    )


@dataclass(frozen=True)
class Status:
    """How far a study is, by stage: ``done`` and ``failed`` of ``cells``; ``left``: seconds at the pace of the last hour, or None.

    ``failures``: name of a cell -> its error. ``logs``: name -> the logs of submitted jobs that were at it.
    """

    cells: dict[str, int]
    done: dict[str, int]
    failed: dict[str, int]
    left: float | None
    failures: dict[str, str]
    logs: dict[str, list[Path]]

    def __str__(self) -> str:
        lines = [f"{name}: {self.done[name]} of {n} done, {self.failed[name]} failed" for name, n in self.cells.items()]
        if self.left:
            lines.append(f"about {self.left / 60:.0f} min left" if self.left > 90 else f"about {self.left:.0f} s left")
        for name, error in self.failures.items():
            lines.append(f"{name}: {error}" + "".join(f"\n  log: {path}" for path in self.logs.get(name, [])))
        return "\n".join(lines)


def status(folder: str | Path) -> Status:
    """How far the study in ``folder`` is, from its files alone; a ValueError or FileNotFoundError where it holds none."""
    folder = Path(folder)
    cells = [(Path(one["name"]), one["stage"], one["cost"]) for one in results.read_record(folder, MANIFEST)["cells"]]
    written: dict[Path, float] = {}
    failures: dict[str, str] = {}
    for name, _, _ in cells:
        with suppress(FileNotFoundError):
            written[name] = (folder / CELLS / name).stat().st_mtime
        with suppress(FileNotFoundError):
            failures[name.stem] = read_json(folder / CELLS / f"{name.stem}.failed.json")["error"]
    names = dict.fromkeys(stage for _, stage, _ in cells)
    return Status(
        cells={one: sum(stage == one for _, stage, _ in cells) for one in names},
        done={one: sum(stage == one and name in written for name, stage, _ in cells) for one in names},
        failed={one: sum(stage == one and name.stem in failures for name, stage, _ in cells) for one in names},
        left=_left([(written.get(name), cost) for name, _, cost in cells if name.stem not in failures]),
        failures=failures,
        logs=logs_of(folder, failures),
    )


def _left(cells: Sequence[tuple[float | None, float]]) -> float | None:
    """Seconds for what is not written, at the pace of the last hour; None where there is none to go by."""
    recent = sorted((at, cost) for at, cost in cells if at is not None and at > time.time() - 3600)
    missing = sum(cost for at, cost in cells if at is None)
    if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
        return None if missing else 0.0
    pace = sum(cost for _, cost in recent[1:]) / (recent[-1][0] - recent[0][0])
    return missing / pace


def logs_of(folder: Path, names: Iterable[str]) -> dict[str, list[Path]]:
    """Name of a cell -> the logs of submitted jobs that were at it; each log is read once."""
    found: dict[str, list[Path]] = {name: [] for name in names}
    for path in sorted((folder / LOGS).glob("*_log.out")) if found else ():
        text = read_bytes(path).decode(errors="replace")
        for name in (name for name in found if name in text):
            found[name].append(path)
    return found
