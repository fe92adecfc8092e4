"""The report: numbers from the scores, Holm's family, JSON without NaN, files that agree with each other."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import xarray as xr
from PIL import Image
from scipy import stats

from cnnf_brain.compare import comparison as report
from cnnf_brain.compare.comparison import Comparison
from cnnf_brain.compare.show import _bars
from cnnf_brain.compare.words import WIDEST, short_names
from cnnf_brain.predictivity.statistics import PAIRED, PERMUTATION, RESAMPLED, TESTS, WELCH, WILCOXON, holm
from cnnf_brain.types import Difference, Evaluation, Scores, TestResult

OPTIONS = {"splits": "kfold", "per_site": False, "components": 25, "pca": None, "select": None, "seed": 0}

ORDER = (RESAMPLED, PERMUTATION, WELCH, PAIRED, WILCOXON)  # valid ones first


def run(**more: Any) -> dict[str, Any]:
    common = {"options": OPTIONS, "accuracy": [], "notes": [], "command": "python -m cnnf_brain.compare"}
    common |= {"networks": [], "recordings": [], "configuration": {}}
    return {**common, **more}


def written_to(folder: Path, rows: Sequence[Evaluation], **more: Any) -> str:
    """The files of a comparison of ``rows``; returns its printed table."""
    made = Comparison(tuple(rows), run(**more))
    made.write(folder)
    return made.markdown()


def scores(seed: int = 0, sites: int = 5, pooled: bool = False, ceiling: bool = False, splits: int = 10) -> Scores:
    rng = np.random.default_rng(seed)
    r = rng.uniform(0.1, 0.9, (splits, sites))
    return Scores(r, rng.uniform(0, 1, sites) if pooled else None, rng.uniform(0.5, 1, sites) if ceiling else None)


def comparison(p: float, difference: float = 0.01) -> Difference:
    """Every test with a p of its own: p, p / 2, p / 3, ..."""
    tests = tuple(
        TestResult(name, 1.5, p / k, 10, df=9.0 if "t" in name else None, interval=(-0.1, 0.2))
        for k, name in enumerate(ORDER, 1)
    )
    return Difference(difference, difference - 0.02, difference + 0.03, tests)


def evaluation(role: str = "baseline", layer: str = "pool@0", source: str = "here", **more: Any) -> Evaluation:
    values = {"scores": scores(), "comparison": comparison(0.04) if role == "model" else None, **more}
    n = values["scores"].r.shape[1]
    return Evaluation(
        region=values.pop("region", "V4"),
        source=source,
        simulated=values.pop("simulated", False),
        role=role,
        network=values.pop("network", "net CNN-F" if role == "model" else "net CNN"),
        weights=values.pop("weights", "w.safetensors"),
        feedback=values.pop("feedback", ""),
        layer=layer,
        against=values.pop("against", "pool@0" if role == "model" else ""),
        site_ids=tuple(f"site{i}" for i in range(n)),
        n_images=60,
        **values,
    )


def cells(table: str) -> list[dict[str, str]]:
    lines = [line for line in table.splitlines() if line.startswith("|") and not line.startswith("|-")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def table(*evaluations: Evaluation, **more: Any) -> str:
    return Comparison(evaluations, run(**more)).markdown()


# Numbers


def test_medians_by_hand() -> None:
    # Site means 0.2, 0.5, 0.3: their median is 0.3. Split medians 0.2 and 0.4: Brain-Score's r is 0.3 as well, so a third
    # split pulls them apart: site means 0.3, 0.4, 0.5 (median 0.4); split medians 0.2, 0.4, 0.5 (mean 0.3667).
    r = np.array([[0.1, 0.4, 0.2], [0.3, 0.6, 0.4], [0.5, 0.2, 0.9]])
    ceiling = np.array([0.5, 0.8, np.nan])
    one = evaluation(scores=Scores(r, np.array([0.9, 0.1, 0.7]), ceiling))
    (entry,) = Comparison((one,), run()).rows
    assert entry["median_r"] == pytest.approx(0.4)
    assert entry["brainscore_r"] == pytest.approx((0.2 + 0.4 + 0.5) / 3)
    assert entry["ceiling"] == pytest.approx(0.65)
    assert entry["r2/ceiling"] == pytest.approx((1.1 / 3) ** 2 / 0.65)
    assert entry["(r/ceiling)2"] == pytest.approx((1.1 / 3 / 0.65) ** 2)
    assert entry["median_r_pooled_predictions"] == pytest.approx(0.7)
    (row,) = cells(table(one))
    assert row["median r [95%]"].startswith("0.400 [")
    assert (row["pooled r"], row["ceiling"], row["r²/c"], row["(r/c)²"]) == ("0.700", "0.650", "0.207", "0.318")


def test_the_interval_is_that_of_the_median() -> None:
    # With many sites the bootstrap interval of a median agrees with the exact one from order statistics.
    values = np.random.default_rng(1).standard_normal(1001)
    low, high = report.median_interval(values)
    k = int(stats.binom.ppf(0.025, 1001, 0.5))
    ordered = np.sort(values)
    assert low == pytest.approx(ordered[k - 1], abs=0.01)
    assert high == pytest.approx(ordered[1001 - k], abs=0.01)
    assert np.isnan(report.median_interval(np.array([0.3, np.nan]))).all()


def test_nan_and_infinity_become_null(tmp_path: Path) -> None:
    tests = (TestResult(WELCH, math.inf, 0.0, 10, df=math.nan, interval=(math.nan, 0.1)),)
    nothing = Scores(np.full((10, 3), np.nan), np.full(3, np.nan), np.full(3, np.nan))
    evaluations = [
        evaluation(scores=nothing),
        evaluation("model", comparison=Difference(0.1, math.nan, math.nan, tests)),
        evaluation("model", "pool@1", scores=nothing, comparison=None),
    ]
    printed = written_to(tmp_path, evaluations)
    text = (tmp_path / "summary.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    dead, model, undefined = json.loads(text)["evaluations"]
    for name in ("median_r", "brainscore_r", "ceiling", "r2/ceiling", "median_r_pooled_predictions"):
        assert dead[name] is None
    assert dead["median_r_interval"] == [None, None]
    assert dead["undefined_sites"] == 3
    assert model["tests"][0]["statistic"] is None
    assert model["tests"][0]["interval"] == [None, 0.1]
    assert model["difference_interval"] == [None, None]
    assert undefined["difference"] is None
    rows = cells(printed)
    assert rows[0]["median r [95%]"] == "undefined"
    assert rows[1]["difference [95%]"] == "+0.100"
    assert rows[2]["difference [95%]"] == "undefined"
    assert "Up to 3 sites have no r in a row" in printed


def test_a_ceiling_of_zero_gives_no_ceiled_score() -> None:
    one = evaluation(scores=Scores(np.full((10, 2), 0.3), None, np.zeros(2)))
    (entry,) = Comparison((one,), run()).rows
    assert entry["ceiling"] == 0
    assert entry["r2/ceiling"] is None


# Holm


def test_p_values_are_adjusted_over_all_rows_for_each_test_apart() -> None:
    ps = [0.04, 0.001, 0.3, 0.02]
    rows = [evaluation("model", f"pool@{t}", comparison=comparison(p), region=f"R{t % 2}") for t, p in enumerate(ps)]
    made = Comparison((evaluation(), *rows[:2], evaluation(region="R1"), *rows[2:]), run())
    content = made.summary
    assert content["family_size"] == dict.fromkeys(ORDER, 4)
    models = [e for e in content["evaluations"] if e["role"] == "model"]
    for k in range(5):
        assert [e["tests"][k]["p"] for e in models] == pytest.approx([p / (k + 1) for p in ps])
        assert [e["tests"][k]["p_holm"] for e in models] == pytest.approx(holm([p / (k + 1) for p in ps]).tolist())
    # Holm by hand for the first test: 4 x 0.001, 3 x 0.02, 2 x 0.04, 1 x 0.3
    assert [e["tests"][0]["p_holm"] for e in models] == pytest.approx([0.08, 0.004, 0.3, 0.06])
    shown = cells(made.markdown())
    assert [row["resampled t p"] for row in shown if row["resampled t p"]] == ["0.08", "0.004", "0.3", "0.06"]


def test_a_test_that_a_row_lacks_is_not_in_its_family() -> None:
    short = Difference(0.1, 0.0, 0.2, comparison(0.5).tests[:2])
    made = Comparison((evaluation("model", comparison=short), evaluation("model", "pool@1")), run())
    assert made.summary["family_size"] == {RESAMPLED: 2, PERMUTATION: 2, WELCH: 1, PAIRED: 1, WILCOXON: 1}
    assert cells(made.markdown())[0]["Welch p ⚠"] == ""


# The table


def test_heads_are_short_and_explained() -> None:
    text = table(evaluation(), evaluation("model", "features.23@2"))
    assert list(cells(text)[0]) == [
        *("region", "recordings", "network", "weights", "layer", "it", "median r [95%]", "difference [95%]"),
        *("resampled t p", "permutation p", "Welch p ⚠"),
    ]
    assert cells(text)[1]["Welch p ⚠"] == "0.013; t(9.0) = 1.50", (
        "the paper prints t; its degrees of freedom say which test it is"
    )
    for name in ORDER[:3]:
        assert f"= {name}, {TESTS[name].why}" in text
    assert "Holm-adjusted over the 1 row of this table" in text
    assert max(len(line) for line in text.splitlines() if line.startswith("|")) <= 200
    assert [(row["layer"], row["it"]) for row in cells(text)] == [("pool", "0"), ("features.23", "2")]
    assert "No ceiling: these recordings hold no single repeats." in text


def test_untrained_feedback_is_said_in_the_row_and_below() -> None:
    name = "net CNN-F (feedback untrained)"
    rows = evaluation(), evaluation("model", "pool@1", network=name, feedback="feedback untrained")
    text = table(*rows)
    assert cells(text)[1]["network"] == name
    assert f"FEEDBACK UNTRAINED: {name} [w.safetensors]" in text
    trained = evaluation("model", "pool@1", feedback="feedback trained")
    assert "UNTRAINED" not in table(evaluation(), trained)
    changed = evaluation("model", "pool@1", feedback="feedback settings changed after training")
    assert "other settings than it was trained with: net CNN-F [w.safetensors]" in table(evaluation(), changed)


def test_the_interval_of_a_difference_is_that_of_new_images() -> None:
    found = Difference(0.1, 0.02, 0.18, comparison(0.04).tests, 0.09, 0.11)
    (entry,) = Comparison((evaluation("model", comparison=found),), run()).rows
    assert entry["difference_interval"] == [0.02, 0.18]
    assert entry["difference_interval_over_sites"] == [0.09, 0.11]
    (row,) = cells(table(evaluation("model", comparison=found)))
    assert row["difference [95%]"] == "+0.100 [+0.020, +0.180]"


def test_sites_that_are_constant_in_some_folds_are_counted() -> None:
    r = scores().r
    r[0, :2] = np.nan
    text = table(evaluation(scores=Scores(r, None, None)))
    assert "Up to 2 sites of a row are constant, or predicted as a constant, in some folds" in text
    assert "in some folds" not in table(evaluation())


def test_top1_stands_beside_predictivity() -> None:
    accuracy = [
        {
            "network": "net CNN-F",
            "weights": "w.safetensors",
            "feedback": "feedback trained",
            "iteration": t,
            "top1": share,
            "source": "card of w.safetensors: 50000 validation images",
        }
        for t, share in ((0, 0.7), (1, 0.65))
    ]
    text = table(evaluation(), evaluation("control"), evaluation("model", "pool@1"), accuracy=accuracy)
    assert [row["top-1"] for row in cells(text)] == ["", "", "65.00 %"]
    assert "top-1: card of w.safetensors: 50000 validation images." in text


def test_layers_in_the_table() -> None:
    rows = cells(table(evaluation("model", "a.b@1:feedback"), evaluation("model", "nested")))
    assert [(row["layer"], row["it"]) for row in rows] == [("a.b feedback", "1"), ("nested", "")]


def test_names_are_shortened_as_far_as_they_stay_apart() -> None:
    long = "/very/long/path/of/some/lab/V4_compact_models:190923"
    assert short_names([long, "simulated"]) == {long: "V4_compact_models:190923", "simulated": "simulated"}
    assert short_names(["/a/b/x.nc", "/a/c/x.nc"]) == {"/a/b/x.nc": "b/x.nc", "/a/c/x.nc": "c/x.nc"}
    (name,) = short_names(["a/" + "n" * 80 + "_end.nc"]).values()
    assert len(name) == WIDEST
    assert name.startswith("…")
    assert name.endswith("_end.nc")
    twins = ["n" * 80 + "1" * 40, "n" * 80 + "2" + "1" * 39]
    assert len(set(short_names(twins).values())) == 2
    assert short_names(["x.nc", "./x.nc"]) == {"x.nc": "x.nc", "./x.nc": "./x.nc"}


def test_the_whole_name_is_in_the_summary() -> None:
    long = "/a/b/" + "n" * 80
    assert Comparison((evaluation(source=long),), run()).rows[0]["source"] == long


def test_notes_say_how_it_was_scored() -> None:
    options = {**OPTIONS, "splits": "brainscore", "per_site": True, "components": 7, "pca": 50, "select": "nested"}
    text = table(evaluation(scores=scores(pooled=True), excluded=("a (constant)", "b (constant)")), options=options)
    for words in (
        "one PLS model per site, 7 components, Brain-Score's ten shuffle splits",
        "reduced to 50 principal components",
        "nested: in each split",
        "Folds hold fewer than 20 test images",
        "2 sites were excluded: V4 of here: a (constant); V4 of here: b (constant).",
    ):
        assert words in text


def test_excluded_sites_are_counted_once_for_all_rows_and_the_pool() -> None:
    both = {"excluded": ("a (constant)",)}
    rows = [evaluation(source=s, **both) for s in ("one", "two")] + [  # type: ignore[arg-type]
        evaluation(source="pooled", pooled=True, excluded=("a (constant)",) * 2)
    ]
    assert "- 2 sites were excluded: V4 of one: a (constant); V4 of two: a (constant)." in table(*rows)


def test_simulated_rows_are_labelled() -> None:
    rows = evaluation(simulated=True, source="simulated"), evaluation(simulated=True, source="pooled"), evaluation()
    text = table(*rows)
    assert [row["recordings"] for row in cells(text)] == ["simulated", "pooled (simulated)", "here"]
    assert "SIMULATED recordings" in text
    assert "SIMULATED" not in table(evaluation())


def panels(figure: Any) -> dict[str, Any]:
    """The axes of a figure by their titles, in one line."""
    return {axis.get_title().replace("\n", " "): axis for axis in figure.axes}


def test_a_map_has_layers_down_and_iterations_across() -> None:
    rows = [
        evaluation("model", f"{layer}@{t}", scores=scores(10 * t + n), comparison=comparison(p, difference=sign * 0.03))
        for t, sign, p in ((0, -1, 1e-9), (2, 1, 0.5))
        for n, layer in enumerate(("conv", "pool"))
    ]
    made = Comparison((evaluation(), *rows), run())
    drawn = panels(made.plot("layers"))
    assert list(drawn) == ["V4 here net CNN", "V4 here net CNN-F"]
    axis = drawn["V4 here net CNN-F"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["conv", "pool"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "2"]
    told = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axis.texts}
    values = np.asarray(axis.images[0].get_array())
    for n, row in enumerate(made.rows[1:]):
        place = n % 2, n // 2
        assert values[place] == row["median_r"]
        assert told[place].split(" ")[0] == f"{row['median_r']:.2f}"
        assert told[place].split(" ")[1:] == ({"above": ["▲"], "below": ["▼"]}.get(row["verdict"], []))


def test_sites_stand_where_the_written_scores_say(tmp_path: Path, sketched: pytest.MonkeyPatch) -> None:
    written_to(tmp_path, FOUR)
    sketched.undo()
    made = Comparison.load(tmp_path)
    (axis,) = panels(made.plot("ceiling")).values()  # IT has no ceiling
    points = [np.asarray(drawn.get_offsets()) for drawn in axis.collections]
    assert len(points) == 2
    for e, found in zip(made.evaluations, points, strict=False):
        assert isinstance(e.scores, Scores)
        assert e.scores.ceiling is not None
        np.testing.assert_allclose(found, np.stack([np.sqrt(e.scores.ceiling), e.scores.r.mean(axis=0)], axis=1))

    drawn = panels(made.plot("difference"))
    assert list(drawn) == ["V4 here", "IT there"]
    axis = drawn["IT there"]
    baseline, model = (e.scores.r.mean(axis=0) for e in made.evaluations[2:] if isinstance(e.scores, Scores))
    np.testing.assert_allclose(np.asarray(axis.collections[0].get_offsets())[:, 1], model - baseline)
    assert axis.get_xticklabels()[0].get_text() == "net CNN-F\npool@3 − pool@0"
    assert made.rows[3]["difference"] in [line.get_ydata()[0] for line in axis.lines]


def test_a_kind_that_is_unknown_or_has_nothing_to_show() -> None:
    made = Comparison((evaluation(simulated=True),), run())
    with pytest.raises(
        ValueError, match=r"kind 'layer' is not known in plot; did you mean 'layers'.*Known: scores, layers, ceiling"
    ):
        made.plot("layer")
    for kind, needs in (("ceiling", "a ceiling"), ("difference", "a difference")):
        with pytest.raises(ValueError, match=f"kind '{kind}' needs {needs}.*no row has it"):
            made.plot(kind)
    assert "SIMULATED recordings" in [text.get_text() for text in made.plot("layers").texts]


@pytest.mark.usefixtures("sketched")
def test_the_page_has_the_figures_of_sites_and_a_map_of_several_layers(tmp_path: Path) -> None:
    written_to(tmp_path, FOUR)
    assert (tmp_path / "report.html").read_text().count("data:image/png") == 2
    assert [picture.name for picture in Comparison(FOUR, run()).page().pictures] == ["ceiling.png", "difference.png"]
    two = Comparison(
        (evaluation(), evaluation("model", "conv@0"), evaluation("model", "conv@1"), evaluation("model")), run()
    )
    assert [picture.name for picture in two.page().pictures] == ["layers.png", "difference.png"]


# Files


FOUR = (
    evaluation(scores=scores(1, ceiling=True)),
    evaluation("model", "pool@1", scores=scores(2, pooled=True, ceiling=True)),
    evaluation(region="IT", source="there", scores=scores(3, sites=8, splits=7)),
    evaluation("model", "pool@3", region="IT", source="there", scores=scores(4, sites=8, splits=7)),
)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    written_to(tmp_path, FOUR)
    return tmp_path


def test_site_wise_scores_agree_with_the_summary(written: Path) -> None:
    entries = json.loads((written / "summary.json").read_text())["evaluations"]
    data = tiny.scores(written / "scores.nc")
    assert data.sizes == {"row": 5 + 5 + 8 + 8, "split": 10}
    assert data.attrs["simulated"] == 0
    assert json.loads(data.attrs["options"]) == OPTIONS
    start = 0
    for e in entries:
        rows = data.isel(row=slice(start, start + e["sites"]))
        start += e["sites"]
        for name in ("region", "source", "role", "network", "weights", "layer"):
            assert set(rows[name].values) == {e[name]}
        assert list(rows.site.values) == [f"site{i}" for i in range(e["sites"])]
        assert np.median(np.nanmean(rows.r.values, axis=1)) == pytest.approx(e["median_r"])
        ceiling = rows.ceiling.values
        assert (np.isnan(ceiling).all() and e["ceiling"] is None) or np.median(ceiling) == pytest.approx(e["ceiling"])
    assert np.array_equal(data.r.values[:5], scores(1).r.T)
    assert np.isnan(data.r.values[10:, 7:]).all(), "where there were seven splits"
    assert np.array_equal(data.pooled_r.values[5:10], scores(2, pooled=True).pooled)  # type: ignore[arg-type]
    assert np.isnan(data.pooled_r.values[:5]).all()


def test_the_figure_is_there_with_its_words(written: Path) -> None:
    with Image.open(written / "figure.png") as image:
        assert image.width > 400
        assert image.height > 400
        assert len(np.unique(np.asarray(image.convert("L")))) > 10, "not empty"
    text = (written / "figure.svg").read_text()
    for words in ("net CNN-F", "pool@3", "median Pearson's r", "there"):
        assert words in text
    assert "SIMULATED" not in text


def test_the_figure_of_simulated_recordings_says_so(tmp_path: Path) -> None:
    written_to(tmp_path, [evaluation(source="mine", simulated=True)])
    text = (tmp_path / "figure.svg").read_text()
    assert ">SIMULATED recordings</text>" in text
    assert "mine (simulated)" in text


def test_bars_stand_at_the_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    both = (evaluation(scores=scores(1, ceiling=True)), evaluation("model", "pool@2", scores=scores(2)))
    entries = Comparison(both, run()).rows
    _bars(axis, entries)
    assert [bar.get_height() for bar in axis.patches] == pytest.approx([e["median_r"] for e in entries])  # type: ignore[attr-defined]
    colours = [tuple(bar.get_facecolor()) for bar in axis.patches]
    assert colours[0] != colours[1]
    assert [label.get_text() for label in axis.get_xticklabels()] == [
        "net CNN\nw.safetensors pool@0",
        "net CNN-F\nw.safetensors pool@2",
    ]
    lines = [segment for drawn in axis.collections for segment in drawn.get_segments()]  # type: ignore[attr-defined]
    level = [segment[0][1] for segment in lines if segment[0][1] == segment[1][1]]
    assert level == pytest.approx([math.sqrt(entries[0]["ceiling"])]), "the bound of r, where there is a ceiling"


def test_all_files_are_as_named_and_the_same_the_next_time(written: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert sorted(path.name for path in written.iterdir()) == sorted(report.FILES)
    before = {name: (written / name).read_bytes() for name in report.FILES}
    rows = [
        evaluation(scores=scores(1, ceiling=True)),
        evaluation("model", "pool@1", scores=scores(2, pooled=True, ceiling=True)),
        evaluation(region="IT", source="there", scores=scores(3, sites=8, splits=7)),
        evaluation("model", "pool@3", region="IT", source="there", scores=scores(4, sites=8, splits=7)),
    ]
    again = tmp_path_factory.mktemp("again")
    printed = written_to(again, rows)
    for name in ("summary.json", "table.md", "figure.svg", "figure.png", "run.json"):
        assert (again / name).read_bytes() == before[name], name
    assert (again / "table.md").read_text() == f"# Neural predictivity\n\n{printed}\n"


def test_what_names_say_is_text_in_the_table(tmp_path: Path) -> None:
    """Names of sources, layers and weights are the user's, or a stranger's."""
    evil = "a|b\n\n<img src=x onerror=alert(1)> [c](javascript:d) ![e][f]\r\n[f]: http://g &lt; h"
    layer = "a|b<img>[c](d)"
    rows = [
        evaluation(source=evil, weights=evil, layer=f"{layer}@0"),
        evaluation("model", source=evil, network=evil, layer=f"{layer}@1"),
    ]
    written_to(tmp_path, rows, notes=[evil])
    text = (tmp_path / "table.md").read_text()
    assert len(cells(text)) == 2  # each with as many cells as the head
    assert not re.search(r"<img|\]\(|\]\[|\]:", text)
    assert all(line.startswith(("|", "- ", "# ")) for line in text.splitlines() if line)
    assert (
        "- a&#124;b &lt;img src=x onerror=alert(1)> [c&#93;(javascript:d) ![e&#93;[f] [f&#93;: http://g &amp;lt; h" in text
    )


def test_a_netcdf_library_that_fails_is_an_oserror_with_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise RuntimeError("NetCDF: HDF error")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", full)
    with pytest.raises(OSError, match=r"cannot write .*scores.nc: NetCDF: HDF error; free space"):
        written_to(tmp_path, [evaluation()])
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_saved_comparison_is_loaded_as_it_was(written: Path) -> None:
    again = Comparison.load(written)
    content = json.loads((written / "summary.json").read_text())
    assert again.summary == content
    assert np.array_equal(again.evaluations[2].scores.r, scores(3, sites=8, splits=7).r)
    assert again.evaluations[0].scores.pooled is None
    assert again.evaluations[1].site_ids == tuple(f"site{i}" for i in range(5))
    assert again.page().answer == content["answer"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "scores.nc").unlink(), "incomplete: no scores.nc"),
        (lambda folder: (folder / "summary.json").unlink(), "incomplete: no summary.json"),
        (lambda folder: (folder / "summary.json").write_text("{"), "summary.json cannot be read as JSON"),
        (lambda folder: (folder / "summary.json").write_text("[]"), "holds a list, expected a JSON object"),
        (
            lambda folder: (folder / "summary.json").write_text('{"schema": 2, "evaluations": []}'),
            "found form 2 of another kind",
        ),
    ],
)
def test_a_folder_that_is_no_comparison_is_refused(written: Path, change: Callable[..., Any], message: str) -> None:
    change(written)
    with pytest.raises(ValueError, match=message):
        Comparison.load(written)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Comparison.load(tmp_path / "none")


# The record in Python


def test_the_data_frame_has_the_summary_s_numbers() -> None:
    made = Comparison((evaluation(), evaluation("model", "pool@2", comparison=comparison(0.001))), run())
    base, model = made.table().to_dict("records")
    entry = made.rows[1]
    assert (model["layer"], model["iteration"]) == ("pool", 2)
    assert model["median_r"] == entry["median_r"]
    assert [model["low"], model["high"]] == entry["median_r_interval"]
    assert [model["difference_low"], model["difference_high"]] == entry["difference_interval"]
    assert model[f"p: {WELCH}"] == next(t["p_holm"] for t in entry["tests"] if t["name"] == WELCH)
    assert (base["role"], model["verdict"]) == ("baseline", "above")
    assert math.isnan(base["difference"])


def test_the_answer_speaks_of_each_region_and_of_several_models() -> None:
    """Where one of two models is better in IT and the other is not tested, and V4's sites, which are simulated, cannot tell."""
    rows = [evaluation("model", comparison=comparison(0.5), simulated=True), evaluation("model", network="other")]
    rows += [
        evaluation("model", region="IT", comparison=comparison(0.001)),
        evaluation("model", region="IT", comparison=None),
    ]
    assert Comparison((evaluation(), *rows), run()).answer.split(". ")[0] == (
        "Compared with the baseline, in simulated V4 the models do neither clearly better nor worse (+0.010 in median r); in IT "
        "the model does better (+0.010 in median r)"
    )


def test_a_notebook_shows_the_table_and_the_answer() -> None:
    made = Comparison((evaluation(network="<b>"), evaluation("model", comparison=comparison(0.001))), run())
    assert "in V4 the model does better (" in made.answer
    html = made._repr_html_()
    assert "<table>" in html
    assert made.answer.split("(")[0] in html
    assert "<b>" not in html
    assert made.answer in repr(made)
