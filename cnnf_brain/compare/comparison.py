"""The result of ``compare``: one record, shown as a table, a sentence or a figure, and kept in a folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import escape
from tabulate import tabulate

from cnnf_brain import results, style
from cnnf_brain.compare import show, words
from cnnf_brain.compare.evaluate import POOLED
from cnnf_brain.compare.words import DIMENSION
from cnnf_brain.io import plain, read_netcdf, reading, write_json, write_netcdf, write_text
from cnnf_brain.predictivity.metrics import PLS
from cnnf_brain.predictivity.scores import FORMULAS, brainscore_ceiled, brainscore_r, median_r, site_r
from cnnf_brain.predictivity.statistics import TESTS, adjusted_p, bootstrap_median_difference, verdict
from cnnf_brain.report import PAGE, NotDrawnError, attempt, page, tell
from cnnf_brain.report.runs import Run, markdown, markdown_table
from cnnf_brain.results import read_record
from cnnf_brain.types import Array, Difference, Evaluation, Scores, Similarity, TestResult

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
COLUMNS = ("region", "source", "role", "network", "weights", "layer", "metric")  # of scores.nc, equal over a row's sites
NAMED = ("region", "source", "simulated", "role", "network", "weights", "feedback", "layer")  # of an entry of summary.json


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
            "answer": words.answer(self.rows),
            "family_size": {name: tested.count(name) for name in dict.fromkeys(tested)},
            "evaluations": self.rows,
        }

    @property
    def answer(self) -> str:
        """What was found in each region beside the baseline, by the tests that are valid for new images."""
        found: str = self.summary["answer"]
        return found

    def table(self) -> pd.DataFrame:
        """A row for each evaluation.

        Returns
        -------
        DataFrame
            ``region``, ``source``, ``simulated``, ``role``, ``network``, ``weights``, ``feedback``, ``layer``, ``iteration``,
            ``metric``, ``images``, ``sites``, ``effective_dimension`` of the features; ``median_r`` with ``low`` and ``high`` (95%,
            over sites), ``ceiling``, ``r2/ceiling``, ``top1``; ``difference`` to the baseline with ``difference_low`` and
            ``difference_high`` (95%, for new images), ``p: TEST`` (adjusted by Holm's method over all rows, for each test apart)
            and ``verdict`` (``above``, ``below`` or ``undecided``, by the tests that are valid for new images). RSA and CKA have
            ``agreement`` in place of ``median_r``, with ``low`` and ``high`` for new images. The iteration of a joint layer is text
            (``0+2``). NaN and None where there is none.
        """
        import pandas as pd

        top1 = words.accuracies(self.summary)
        return pd.DataFrame([_flat(row, top1) for row in self.rows])

    def markdown(self) -> str:
        """The printed table, with its notes."""
        head, rows, notes = words.cells(self.summary)
        return "\n".join([markdown_table(head, rows), "", *(f"- {markdown(note)}" for note in notes)])

    def plot(self, kind: str = "scores") -> Figure:
        """A figure. ``scores``: the median r of every row by region and source, and top-1, after Figure 5 of the paper.
        ``layers``: a map of layers by iterations. ``ceiling``: each site's r against the highest that noise leaves.
        ``difference``: each site's difference to the baseline, and their median with its interval for new images.

        A ValueError for an unknown kind, and where no row has what the kind needs (a ceiling, a difference).
        """
        return show.plot(kind, self.summary, self.evaluations)

    def page(self, folder: Path = Path()) -> Run:
        """What ``report.html`` shows; ``folder`` is the one that it names."""
        return show.as_run(folder, self.summary, self.run, self.evaluations)

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
            found = read_scores(folder / "scores.nc", summary["evaluations"])
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
    entry = {
        **{name: getattr(e, name) for name in (*NAMED, "metric")},
        "chosen": e.chosen,
        "images": e.n_images,
        "sites": len(e.site_ids),
        "pooled": e.pooled,
        "subjects": [animal for animal in dict.fromkeys(e.subjects) if animal],
        "excluded_sites": e.excluded,
        DIMENSION: e.effective_dimension,
        **(_of_sites(e.scores) if isinstance(e.scores, Scores) else _of_agreement(e.scores)),
    }
    if e.against:
        entry |= {"baseline_layer": e.against, **_difference(e.comparison, adjusted)}
    found: dict[str, Any] = plain(entry)
    return found


def _of_sites(scores: Scores) -> dict[str, Any]:
    """The part of an entry that is made of r."""
    r, ceiling = site_r(scores), scores.ceiling
    entry = {
        "splits": len(scores.r),
        "undefined_sites": int(np.isnan(r).sum()),
        "sites_undefined_in_some_folds": int((scores.undefined_folds > 0).sum()),
        "median_r": median_r(scores),
        "median_r_interval": median_interval(r),
        "median_r_pooled_predictions": None if scores.pooled is None else _median(scores.pooled),
        "brainscore_r": brainscore_r(scores),
        "ceiling": None if ceiling is None else _median(ceiling),
    }
    return entry | {name: None if ceiling is None else brainscore_ceiled(scores, name) for name in FORMULAS}


def _of_agreement(s: Similarity) -> dict[str, Any]:
    """The part of an entry that is made of a similarity; null where others have an r."""
    entry: dict[str, Any] = dict.fromkeys(("splits", "undefined_sites", "sites_undefined_in_some_folds"), 0)
    entry |= {"agreement": s.value, "agreement_interval": (s.low, s.high), "agreement_ceiling": s.ceiling}
    entry |= {"measure": s.measure, "distance": s.distance, "median_r_interval": (None, None)}
    return entry | dict.fromkeys(("median_r", "median_r_pooled_predictions", "brainscore_r", "ceiling", *FORMULAS))


def _difference(c: Difference | None, adjusted: Mapping[str, float]) -> dict[str, Any]:
    """The part of an entry that compares it with the baseline; nulls where there is no difference."""
    if c is None:
        names = ("difference_interval", "difference_interval_over_sites")
        return {"difference": None, **dict.fromkeys(names, (None, None)), "verdict": None, "tests": []}
    tests = [
        {**asdict(t), "p_holm": adjusted.get(t.name), "question": TESTS[t.name].question, "valid": TESTS[t.name].valid}
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
    layer, iteration = words.layer_and_iteration(row["layer"])
    flat = {name: row[name] for name in NAMED} | {"layer": layer}
    flat["iteration"] = int(iteration) if iteration.isdigit() else iteration or None  # text of a joint layer: 0+2
    flat |= {name: row[name] for name in ("metric", "images", "sites", DIMENSION, "median_r", "agreement") if name in row}
    flat |= dict(zip(("low", "high"), words.score(row)[1], strict=True))
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


def write_scores(path: Path, comparison: Comparison, *, whole: bool = False) -> None:
    """Site-wise scores as NetCDF: one row for each evaluation and site, r for each split. ``whole``: with all that ``read_scores``
    needs beside them (``Comparison.rows``, as JSON), so that the file is read alone."""
    import xarray as xr

    evaluations = comparison.evaluations
    values = [_by_site(e) for e in evaluations]
    n_splits = max(len(one.r) for one in values)
    names = (*COLUMNS, "simulated", "site", "subject", "ceiling", "pooled_r", DIMENSION)
    columns: dict[str, list[Any]] = {name: [] for name in names}
    r = []
    for e, scores in zip(evaluations, values, strict=True):
        n = len(e.site_ids)
        for name in COLUMNS:
            columns[name] += [getattr(e, name)] * n
        columns["simulated"] += [int(e.simulated)] * n
        columns["site"] += e.site_ids
        columns["subject"] += e.subjects or [""] * n
        columns[DIMENSION] += [e.effective_dimension] * n
        for name, found in (("ceiling", scores.ceiling), ("pooled_r", scores.pooled)):
            columns[name] += [math.nan] * n if found is None else found.tolist()
        r.append(np.full((n, n_splits), np.nan))
        r[-1][:, : len(scores.r)] = scores.r.T
    data = xr.Dataset({name: ("row", np.array(values)) for name, values in columns.items()})
    data["r"] = (("row", "split"), np.concatenate(r))
    if whole:
        data["rows"] = ((), json.dumps(comparison.rows))
    options = json.dumps(plain(comparison.run["options"]))
    data.attrs = {"schema": SCHEMA, "simulated": int(comparison.simulated), "options": options}
    write_netcdf(path, data)


def _by_site(e: Evaluation) -> Scores:
    """Its scores; none of a similarity, whose sites stand in the file without an r."""
    return e.scores if isinstance(e.scores, Scores) else Scores(np.empty((1, len(e.site_ids))) * np.nan, None, None)


def read_scores(path: Path, rows: Sequence[Mapping[str, Any]] | None = None) -> list[Evaluation]:
    """The evaluations that ``write_scores`` has written; ``rows`` are their ``Comparison.rows``, where the file has them not."""
    if not path.is_file():
        raise ValueError(f"{path.parent} is incomplete: no {path.name}; run it again")
    data = read_netcdf(path)
    rows = json.loads(str(data["rows"].values)) if rows is None else rows
    return [_evaluation(row, part) for row, part in zip(rows, _parts(path, data, rows), strict=True)]


def _parts(path: Path, data: xr.Dataset, rows: Sequence[Mapping[str, Any]]) -> Iterator[xr.Dataset]:
    """The part of scores.nc that belongs to each row."""
    if len(data["row"]) != sum(row["sites"] for row in rows):
        raise ValueError(f"{path} holds {len(data['row'])} rows, and summary.json tells of others; run it again")
    start = 0
    for row in rows:
        part = data.isel(row=slice(start, start + row["sites"]))
        # older files have no metric
        there = [name for name in COLUMNS if row["sites"] and (name != "metric" or name in data)]
        other = [name for name in there if set(map(str, part[name].values)) != {row.get(name, PLS)}]
        if other:
            raise ValueError(f"{path} is not of the run in summary.json: {', '.join(other)} differ; run it again")
        yield part
        start += row["sites"]


def _evaluation(row: Mapping[str, Any], data: xr.Dataset) -> Evaluation:
    """The Evaluation that was written as ``row`` and ``data``."""
    scores: Scores | Similarity
    if "agreement" in row:
        (low, high), most = map(_nan, row["agreement_interval"]), row["agreement_ceiling"]
        scores = Similarity(_nan(row["agreement"]), low, high, row["measure"], row["distance"], most and (most[0], most[1]))
    else:
        scores = _read_sites(row, data)
    return Evaluation(
        **{name: row[name] for name in NAMED},
        metric=row.get("metric", PLS),  # older folders name none
        scores=scores,
        site_ids=tuple(map(str, data["site"].values)),
        n_images=row["images"],
        excluded=tuple(row["excluded_sites"]),
        comparison=_read_difference(row),
        chosen=tuple(row["chosen"]),
        against=row.get("baseline_layer", ""),
        pooled=row.get("pooled", row["source"] == POOLED),
        subjects=tuple(map(str, data["subject"].values)) if "subject" in data else (),
        effective_dimension=_nan(row.get(DIMENSION)),
    )


def _read_sites(row: Mapping[str, Any], data: xr.Dataset) -> Scores:
    return Scores(
        r=np.ascontiguousarray(data["r"].values.T[: row["splits"]]),  # sums are rounded by their order in memory
        pooled=None if row["median_r_pooled_predictions"] is None else data["pooled_r"].values,
        ceiling=None if row["ceiling"] is None else data["ceiling"].values,
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
