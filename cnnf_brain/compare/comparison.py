"""The result of ``compare``: one record, shown as a table, a sentence or a figure, and kept in a folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import escape
from tabulate import tabulate

from cnnf_brain import results, style
from cnnf_brain.compare import show, words
from cnnf_brain.io import plain, read_netcdf, reading, write_json, write_netcdf, write_text
from cnnf_brain.predictivity.scores import FORMULAS, brainscore_ceiled, brainscore_r, median_r, site_r
from cnnf_brain.predictivity.statistics import TESTS, adjusted_p, bootstrap_median_difference, verdict
from cnnf_brain.report import PAGE, NotDrawnError, attempt, page, tell
from cnnf_brain.report.runs import Run, markdown, markdown_table
from cnnf_brain.results import read_record
from cnnf_brain.types import Array, Difference, Evaluation, Scores, TestResult

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

KIND = "compare"
SCHEMA = 3  # of summary.json and scores.nc
FIGURES = ("figure.png", "figure.svg")
FILES = ("summary.json", "scores.nc", "table.md", *FIGURES, "run.json", PAGE)
AGAIN = "cnnf-brain report {}"  # makes figure and page from the other files
VERDICTS = {1: "above", -1: "below", 0: "undecided"}
RECORD = ("options", "networks", "recordings", "accuracy", "notes")  # entries of run.json
COLUMNS = ("region", "source", "role", "network", "weights", "layer")  # of scores.nc, equal over the sites of a row


@dataclass(frozen=True, eq=False)
class Comparison:
    """The predictivity of networks for recorded sites, and how it differs from a baseline.

    In a notebook it shows its table and the answer in one sentence.

    Attributes
    ----------
    evaluations
        One for each region, source, network and layer; the baseline first.
    run
        What the run was, as plain values: ``options``, ``networks``, ``recordings``, ``accuracy``, ``notes``, ``command``,
        ``commit``, ``versions``, ``machine``, ``seconds`` and ``configuration`` (all that decides the numbers).

    Examples
    --------
    >>> import cnnf_brain as cb
    >>> recordings = cb.load_recordings("simulated", region="IT")
    >>> result = cb.compare(cb.load_network("small"), None, recordings, "relu3@0", progress=False)
    >>> folder = result.save("results/mine")
    >>> cb.Comparison.load(folder).table()[["layer", "iteration", "sites"]].to_dict("records")
    [{'layer': 'relu3', 'iteration': 0, 'sites': 168}]
    """

    evaluations: tuple[Evaluation, ...]
    run: Mapping[str, Any]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The evaluations as plain values, as docs/compare.md describes them: medians, intervals, tests, Holm's p, verdicts."""
        adjusted = adjusted_p([one.comparison for one in self.evaluations])
        return [_entry(one, ps) for one, ps in zip(self.evaluations, adjusted, strict=True)]

    @property
    def simulated(self) -> bool:
        """Whether any of the recordings are simulated."""
        return any(one.simulated for one in self.evaluations)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json."""
        tested = [t["name"] for row in self.rows for t in row.get("tests", []) if t["p_holm"] is not None]
        shared = {name: plain(self.run[name]) for name in ("options", "accuracy", "notes")}
        return {
            "schema": SCHEMA,
            "kind": KIND,
            "simulated": self.simulated,
            **shared,
            "answer": words.answer(self.rows, simulated=self.simulated),
            "family_size": {name: tested.count(name) for name in dict.fromkeys(tested)},
            "evaluations": self.rows,
        }

    @property
    def answer(self) -> str:
        """One sentence on the differences to the baseline, by the tests that are valid for new images."""
        found: str = self.summary["answer"]
        return found

    def table(self) -> pd.DataFrame:
        """A row for each evaluation.

        Returns
        -------
        DataFrame
            ``region``, ``source``, ``simulated``, ``role``, ``network``, ``weights``, ``feedback``, ``layer``, ``iteration``,
            ``images``, ``sites``; ``median_r`` with ``low`` and ``high`` (95%, over sites), ``ceiling``, ``r2/ceiling``,
            ``top1``; ``difference`` to the baseline with ``difference_low`` and ``difference_high`` (95%, for new images),
            ``p: TEST`` (adjusted by Holm's method over all rows, for each test apart) and ``verdict`` (``above``, ``below`` or
            ``undecided``, by the tests that are valid for new images). NaN and None where there is none.
        """
        import pandas as pd

        top1 = words.accuracies(self.summary)
        return pd.DataFrame([_flat(row, top1) for row in self.rows])

    def markdown(self) -> str:
        """The printed table, with its notes."""
        head, rows, notes = words.cells(self.summary)
        return "\n".join([markdown_table(head, rows), "", *(f"- {markdown(note)}" for note in notes)])

    def plot(self) -> Figure:
        """The median r of every row with its interval, by region and source, and top-1, after Figure 5 of the paper.

        Returns
        -------
        matplotlib.figure.Figure
        """
        return show.figure(self.summary)

    def page(self, folder: Path = Path()) -> Run:
        """What ``report.html`` shows; ``folder`` is the one that it names."""
        return show.as_run(folder, self.summary, self.run)

    def save(self, folder: str | Path) -> Path:
        """Write the folder that the command writes: table, summary, scores, figure, page. It changes from old to new as a whole.

        Raises
        ------
        ValueError
            The folder holds the results of another question or command.
        OSError
            It cannot be written, or another run is writing to it. A ``NotDrawnError``: all else is written, but figure or page
            could not be made.
        """
        folder = Path(folder)
        with results.results(folder, KIND, self.run["configuration"]) as staging:
            missing = self.write(staging, folder)
        tell(folder, missing, AGAIN.format(folder))
        return folder

    def write(self, folder: Path, shown_as: Path | None = None) -> list[NotDrawnError]:
        """The files of ``save`` into a folder that is there; the page names ``shown_as``. Returns what could not be drawn."""
        write_json(folder / "run.json", plain(self.run))
        write_scores(folder / "scores.nc", self)
        write_text(folder / "table.md", f"# Neural predictivity\n\n{self.markdown()}\n")
        write_json(folder / "summary.json", self.summary)
        return self.draw(folder, shown_as)

    def draw(self, folder: Path, shown_as: Path | None = None) -> list[NotDrawnError]:
        """The page of ``write``, and the figure where it is not there. Returns what could not be drawn, in words."""
        missing: list[NotDrawnError] = []
        if not all((folder / name).exists() for name in FIGURES):
            missing += attempt(" and ".join(FIGURES), lambda: style.save(self.plot(), folder))
        return missing + attempt(PAGE, lambda: page.write(self.page(shown_as or folder), folder))

    @classmethod
    def load(cls, folder: str | Path) -> Comparison:
        """The comparison that ``save`` or the command has left in ``folder``.

        Raises
        ------
        FileNotFoundError
            No such folder.
        ValueError
            It lacks a file, or holds other results than those of this version's ``compare``.
        """
        folder = Path(folder)
        summary, run = read_record(folder, "summary.json"), read_record(folder, "run.json")
        if summary.get("kind") != KIND or summary.get("schema") != SCHEMA:
            raise ValueError(
                f"{folder}: expected a comparison in form {SCHEMA}, found form {summary.get('schema')} of "
                f"{summary.get('kind', 'another kind')}; run it again (its command stands in run.json)"
            )
        with reading(folder, "a comparison", "its files lack what a comparison has; run it again"):
            rows = summary["evaluations"]
            found = [_evaluation(row, scores) for row, scores in zip(rows, _read_scores(folder, rows), strict=True)]
            lacking = [name for name in RECORD if name not in run]
        if lacking:
            raise ValueError(f"{folder}/run.json lacks {', '.join(lacking)}; run it again")
        return cls(tuple(found), run)

    def __repr__(self) -> str:
        return f"{self.markdown()}\n\n{self.answer}"

    def _repr_html_(self) -> str:
        head, rows, _ = words.cells(self.summary)
        return f"{tabulate(rows, head, tablefmt='html', disable_numparse=True)}<p>{escape(self.answer)}</p>"


def _entry(e: Evaluation, adjusted: Mapping[str, float]) -> dict[str, Any]:
    r, ceiling = site_r(e.scores), e.scores.ceiling
    entry: dict[str, Any] = {
        "region": e.region,
        "source": e.source,
        "simulated": e.simulated,
        "role": e.role,
        "network": e.network,
        "weights": e.weights,
        "feedback": e.feedback,
        "layer": e.layer,
        "chosen": e.chosen,
        "images": e.n_images,
        "sites": len(e.site_ids),
        "splits": len(e.scores.r),
        "excluded_sites": e.excluded,
        "undefined_sites": int(np.isnan(r).sum()),
        "sites_undefined_in_some_folds": int((e.scores.undefined_folds > 0).sum()),
        "median_r": median_r(e.scores),
        "median_r_interval": median_interval(r),
        "median_r_pooled_predictions": None if e.scores.pooled is None else _median(e.scores.pooled),
        "brainscore_r": brainscore_r(e.scores),
        "ceiling": None if ceiling is None else _median(ceiling),
    }
    entry |= {name: None if ceiling is None else brainscore_ceiled(e.scores, name) for name in FORMULAS}
    if e.against:
        entry |= {"baseline_layer": e.against, **_difference(e.comparison, adjusted)}
    found: dict[str, Any] = plain(entry)
    return found


def _difference(c: Difference | None, adjusted: Mapping[str, float]) -> dict[str, Any]:
    """The part of an entry that compares it with the baseline; nulls where there is no difference."""
    if c is None:
        nothing = (None, None)
        names = ("difference_interval", "difference_interval_over_sites")
        return {"difference": None, **dict.fromkeys(names, nothing), "verdict": None, "tests": []}
    tests = [
        {
            "name": t.name,
            "statistic": t.statistic,
            "df": t.df,
            "n": t.n,
            "p": t.p,
            "p_holm": adjusted.get(t.name),
            "interval": t.interval,
            "question": TESTS[t.name].question,
            "valid": TESTS[t.name].valid,
        }
        for t in c.tests
    ]
    return {
        "difference": c.difference,
        "difference_interval": (c.low, c.high),
        "difference_interval_over_sites": (c.sites_low, c.sites_high),
        "verdict": VERDICTS[verdict(c, adjusted)],
        "tests": tests,
    }


def _flat(row: dict[str, Any], top1: Mapping[tuple[str, str, str], float]) -> dict[str, Any]:
    """A row of ``Comparison.table``."""
    names = ("region", "source", "simulated", "role", "network", "weights", "feedback")
    layer, iteration = words.layer_and_iteration(row["layer"])
    flat = {name: row[name] for name in names} | {"layer": layer, "iteration": int(iteration) if iteration else None}
    flat |= {name: row[name] for name in ("images", "sites", "median_r")}
    flat |= dict(zip(("low", "high"), row["median_r_interval"], strict=True))
    flat |= {"ceiling": row["ceiling"], "r2/ceiling": row["r2/ceiling"]}
    flat["top1"] = top1.get((row["network"], row["weights"], iteration))
    if "difference" in row:
        flat["difference"] = row["difference"]
        flat |= dict(zip(("difference_low", "difference_high"), row["difference_interval"], strict=True))
        flat |= {f"p: {test['name']}": test["p_holm"] for test in row["tests"]}
        flat["verdict"] = row["verdict"]
    return flat


def _median(values: Array) -> float:
    defined = values[np.isfinite(values)]
    return float(np.median(defined)) if len(defined) else math.nan


def median_interval(r: Array) -> tuple[float, float]:
    """95% bootstrap interval, over sites, of the median of (n_sites,) values; NaN for fewer than two sites."""
    if np.isfinite(r).sum() < 2:
        return math.nan, math.nan
    return bootstrap_median_difference(r[None], np.zeros_like(r)[None])


def write_scores(path: Path, comparison: Comparison) -> None:
    """Site-wise scores as NetCDF: one row for each evaluation and site, r for each split."""
    import xarray as xr

    evaluations = comparison.evaluations
    n_splits = max(e.scores.r.shape[0] for e in evaluations)
    columns: dict[str, list[Any]] = {name: [] for name in (*COLUMNS, "simulated", "site", "ceiling", "pooled_r")}
    r = []
    for e in evaluations:
        n = len(e.site_ids)
        for name in COLUMNS:
            columns[name] += [getattr(e, name)] * n
        columns["simulated"] += [int(e.simulated)] * n
        columns["site"] += e.site_ids
        for name, values in (("ceiling", e.scores.ceiling), ("pooled_r", e.scores.pooled)):
            columns[name] += [math.nan] * n if values is None else values.tolist()
        r.append(np.full((n, n_splits), np.nan))
        r[-1][:, : e.scores.r.shape[0]] = e.scores.r.T
    data = xr.Dataset({name: ("row", np.array(values)) for name, values in columns.items()})
    data["r"] = (("row", "split"), np.concatenate(r))
    options = json.dumps(plain(comparison.run["options"]))
    data.attrs = {"schema": SCHEMA, "simulated": int(comparison.simulated), "options": options}
    write_netcdf(path, data)


def _read_scores(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[xr.Dataset]:
    """The part of scores.nc that belongs to each row."""
    path = folder / "scores.nc"
    if not path.is_file():
        raise ValueError(f"{folder} is incomplete: no scores.nc; run it again")
    data = read_netcdf(path)
    if len(data["row"]) != sum(row["sites"] for row in rows):
        raise ValueError(f"{path} holds {len(data['row'])} rows, and summary.json tells of others; run it again")
    start = 0
    for row in rows:
        part = data.isel(row=slice(start, start + row["sites"]))
        other = [name for name in COLUMNS if set(map(str, part[name].values)) != {row[name]}]
        if other:
            raise ValueError(f"{path} is not of the run in summary.json: {', '.join(other)} differ; run it again")
        yield part
        start += row["sites"]


def _evaluation(row: Mapping[str, Any], data: xr.Dataset) -> Evaluation:
    """The Evaluation that was written as ``row`` and ``data``."""
    scores = Scores(
        r=np.ascontiguousarray(data["r"].values.T[: row["splits"]]),  # sums are rounded by their order in memory
        pooled=None if row["median_r_pooled_predictions"] is None else data["pooled_r"].values,
        ceiling=None if row["ceiling"] is None else data["ceiling"].values,
    )
    same = {name: row[name] for name in ("region", "source", "simulated", "role", "network", "weights", "feedback", "layer")}
    return Evaluation(
        **same,
        scores=scores,
        site_ids=tuple(map(str, data["site"].values)),
        n_images=row["images"],
        excluded=tuple(row["excluded_sites"]),
        comparison=_read_difference(row),
        chosen=tuple(row["chosen"]),
        against=row.get("baseline_layer", ""),
    )


def _read_difference(row: Mapping[str, Any]) -> Difference | None:
    if row.get("difference") is None:
        return None
    tests = [
        TestResult(
            t["name"], _nan(t["statistic"]), _nan(t["p"]), t["n"], t["df"], t["interval"] and tuple(map(_nan, t["interval"]))
        )
        for t in row["tests"]
    ]
    ends = [_nan(end) for name in ("difference_interval", "difference_interval_over_sites") for end in row[name]]
    return Difference(row["difference"], ends[0], ends[1], tuple(tests), ends[2], ends[3])


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
