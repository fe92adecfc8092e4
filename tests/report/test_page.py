"""Pages: made from folders alone, escaped, complete, side by side; their charts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report.folders import EVIL, compared, evaluation, figured, run_record, trained

from cnnf_brain.report import PAGE, charts, page, readers
from cnnf_brain.report.__main__ import main
from cnnf_brain.report.charts import Chart, Mark
from cnnf_brain.report.runs import Run, Table, TableChart
from cnnf_brain.types import Evaluation

pytestmark = pytest.mark.usefixtures("sketched")


class Reader(HTMLParser):
    """The text of a page by element, and its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.path: list[str] = []
        self.found: dict[str, list[str]] = {}
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.path.append(tag)
        self.elements.append((tag, dict(attrs)))
        if tag in ("meta", "link", "img"):
            self.path.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.path.pop() == tag, "every element is closed"

    def handle_data(self, data: str) -> None:
        if self.path:
            self.found.setdefault(self.path[-1], []).append(data)


def read(folder: Path) -> tuple[str, Reader]:
    """The page of a folder."""
    text = readers.leave(folder).read_text(encoding="utf-8")
    return text, Reader(text)


# What is on a page


def test_question_answer_figure_table_run_and_caveats_in_this_order(tmp_path: Path) -> None:
    text, _ = read(compared(tmp_path))
    order = ['class="question"', 'class="answer"', 'id="figure"', "<svg", 'id="table"', "<table", 'id="run"', 'id="caveats"']
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert (
        "Do the features of net CNN-F [w.safetensors] predict V4 sites better than those of net CNN [w.safetensors]?" in text
    )
    assert "python -m cnnf_brain.compare" in text
    assert "d" * 40 in text
    assert "c" * 64 in text


def test_the_answer_counts_valid_tests(tmp_path: Path) -> None:
    run = readers.read(compared(tmp_path))
    # of two differences, +0.12 has p = 0.001 (Holm over two: 0.002) by all tests, -0.2 has p = 0.4
    assert run.answer == (
        "Compared with the baseline, in V4 the model does better in 1 of 2 rows and neither clearly better nor worse in 1 of "
        "2 rows (-0.200 to +0.120 in median r). Better and worse are said where every test that is valid for new images "
        "(corrected resampled t over folds and permutation over images) has p < 0.05 after Holm's adjustment."
    )


@pytest.mark.parametrize(
    ("ps", "differences", "does"),
    [
        ((0.001,), (0.1,), "better (+0.100 in median r)"),
        ((0.001,), (-0.1,), "worse (-0.100 in median r)"),
        ((0.6,), (0.1,), "neither clearly better nor worse (+0.100 in median r)"),
        ((0.001, 0.001), (0.1, 0.1), "better (+0.100 in median r)"),
        ((0.001, 0.001), (0.1, -0.1), "better in 1 of 2 rows and worse in 1 of 2 rows (-0.100 to +0.100 in median r)"),
    ],
)
def test_the_answer_says_what_the_model_does(tmp_path: Path, ps: Any, differences: Any, does: str) -> None:
    rows = [evaluation("baseline", "pool@0", r=0.3)]
    rows += [
        evaluation("model", f"pool@{t}", r=0.3, p=p, difference=d)
        for t, (p, d) in enumerate(zip(ps, differences, strict=True))
    ]
    answer = readers.read(compared(tmp_path, *rows)).answer
    assert answer.split(". ")[0] == f"Compared with the baseline, in V4 the model does {does}"


def test_numbers_of_the_chart_are_those_of_the_summary(tmp_path: Path) -> None:
    folder = compared(tmp_path)
    entries = json.loads((folder / "summary.json").read_text())["evaluations"]
    (chart,) = readers.read(folder).charts
    (_, marks), *others = chart.groups
    assert not others
    assert [m.value for m in marks] == [e["median_r"] for e in entries]
    assert [(m.low, m.high) for m in marks] == [tuple(e["median_r_interval"]) for e in entries]
    assert [m.series for m in marks] == [None, 1, 2]
    assert marks[0].bound == pytest.approx(0.8), "the root of the ceiling of 0.64"


def test_simulated_runs_say_so_at_the_top(tmp_path: Path) -> None:
    rows = [evaluation("baseline", "pool@0", r=0.3, simulated=True, source="simulated")]
    text, _ = read(compared(tmp_path, *rows, simulated=True))
    body = text[text.index("<body>") :]
    assert body.index("SIMULATED") < body.index("<h1>")
    assert "SIMULATED" not in read(compared(tmp_path / "real"))[0]


def test_what_a_run_does_not_show(tmp_path: Path) -> None:
    baseline = evaluation("baseline", "pool@0", r=0.3, sites=4, simulated=True)
    found = "\n".join(readers.read(compared(tmp_path, baseline, simulated=True, commit="d" * 40 + "-dirty")).caveats)
    for words in (
        "Simulated sites are computed",
        "Fewer than 30 sites: V4 of here (4)",
        "No ceiling",
        "differed from its commit",
    ):
        assert words in found
    ceiled = evaluation("baseline", "pool@0", r=0.3, ceiling=np.full(5, 0.5))
    assert "No ceiling" not in "\n".join(readers.read(compared(tmp_path / "ceilings", ceiled)).caveats)


def test_the_page_asks_for_nothing_and_lets_no_other_script_run(tmp_path: Path) -> None:
    text, parsed = read(compared(tmp_path))
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert "http" not in re.sub(r'http-equiv|xmlns="[^"]*"', "", text)
    (policy,) = [a["content"] for tag, a in parsed.elements if tag == "meta" and "http-equiv" in a]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'$", policy)  # type: ignore[arg-type]


def test_the_page_is_made_again_from_the_folder_alone(tmp_path: Path) -> None:
    first = readers.leave(compared(tmp_path / "run")).read_bytes()
    (tmp_path / "run" / PAGE).unlink()
    shutil.copytree(tmp_path / "run", tmp_path / "elsewhere" / "run")
    assert main([str(tmp_path / "elsewhere" / "run")]) == 0
    assert (tmp_path / "elsewhere" / "run" / PAGE).read_bytes() == first


def test_what_files_say_is_escaped_everywhere(tmp_path: Path) -> None:
    rows = [
        evaluation("baseline", f"{EVIL}@0", r=0.3, source=EVIL),
        evaluation("model", f"{EVIL}@1", r=0.2, source=EVIL, excluded=(EVIL,)),
    ]
    rows = [r.__class__(**{**vars(r), "network": f"{EVIL} {r.role}", "layer": r.layer.replace(" ", "_")}) for r in rows]
    folder = compared(tmp_path / "run", *rows, command=f"python {EVIL}", chosen=EVIL)
    text, parsed = read(folder)
    assert "<img src=x" not in text
    assert text.count("<script") == 1
    assert all(tag in KNOWN for tag, _ in parsed.elements)
    assert not any(name.startswith("on") for _, attributes in parsed.elements for name in attributes)
    trained(tmp_path / "t")
    card = json.loads((tmp_path / "t" / "card.json").read_text())
    (tmp_path / "t" / "card.json").write_text(json.dumps({**card, "title": EVIL, "machine": EVIL}))
    figured(tmp_path / "f", title=EVIL, answer=EVIL, caveats=[EVIL])
    for name in ("t", "f"):
        assert "<img src=x" not in read(tmp_path / name)[0]
    both = page.side_by_side([readers.read(folder), readers.read(tmp_path / "t")], tmp_path / "both.html").read_text()
    assert "<img src=x" not in both
    assert both.count("<script") == 1


WORDS = """html head meta link title style body header main section p h1 h2 h3 figure figcaption div img table thead tbody tr th td
    ul li dl dt dd details summary script svg g text line rect path polyline"""
KNOWN = set(WORDS.split())


def test_a_trainers_page(tmp_path: Path) -> None:
    run = readers.read(trained(tmp_path))
    assert run.answer == (
        "Accuracy (validation of 5000 images) is 90.00 % in the first feedforward pass and 80.00 % at iteration 2, which is lower "
        "by 10.00 points."
    )
    assert run.tables[0].rows == (("0", "90.00 %"), ("1", "85.00 %"), ("2", "80.00 %"))
    last = [marks[-1].value for _, marks in run.charts[1].groups]
    assert last == pytest.approx([0.9, 0.85, 0.8])
    text, _ = read(tmp_path)
    assert "No test images were used" in text


def test_a_run_that_is_not_finished_says_so(tmp_path: Path) -> None:
    folder = trained(tmp_path, finished=False)
    with open(folder / "log.jsonl", "a") as file:
        file.write('{"epoch": 3, "ste')  # killed while writing
    run = readers.read(folder)
    assert run.answer.endswith("the run is not finished.")
    found = "\n".join(run.caveats)
    assert "no card.json" in found
    assert "1 lines of log.jsonl could not be read" in found
    (folder / "log.jsonl").write_text("")
    assert readers.read(folder).answer == "Not known yet: the run has not validated its network."
    assert "Nothing to draw yet." in read(folder)[0]


def test_the_log_of_the_other_trainer() -> None:
    log = [{"step": 20, "losses": {}}, {"step": 40, "validation": {"top1": [0.1, 0.2], "top5": [0.3, 0.4], "images": 50}}]
    assert readers.validations(log) == [(40.0, [0.1, 0.2], 50)]


def test_the_losses_are_drawn_each_in_at_most_sixty_points(tmp_path: Path) -> None:
    folder = trained(tmp_path)
    lines = [
        {"step": 20 * k, "losses": {"cross_entropy": [3.0 * k, 1.0], "reconstruction": [0.0, 1.0 / k]}}
        for k in range(1, 122)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    charts = {chart.title: chart for chart in readers.read(folder).charts}
    entropy, other = charts["Loss: cross-entropy"], charts["Loss: reconstruction"]
    assert [name for name, _ in entropy.groups] == [name for name, _ in other.groups] == ["iteration 0", "iteration 1"]
    marks = entropy.groups[0][1]
    assert [(mark.x, mark.value) for mark in marks[:2]] == [(60.0, 6.0), (120.0, 15.0)]
    assert (len(marks), marks[-1].x, marks[-1].value) == (41, 2420.0, 363.0)
    assert "A point is the mean of 3 lines of the log." in entropy.caption
    assert "Loss: cross-entropy" in read(folder)[0]


def test_a_figures_page(tmp_path: Path) -> None:
    run = readers.read(figured(tmp_path))
    (chart,) = run.charts
    assert [name for name, _ in chart.groups] == ["noise", "blur"]
    assert [(m.value, m.low, m.high, m.series) for m in chart.groups[0][1]][1] == (0.6, 0.55, 0.65, 1)
    assert chart.groups[1][1][0].value is None
    assert run.tables[0].rows == (("x rises", "0.1", "holds"),)
    assert run.pictures[0].content.startswith(b"<svg")
    assert 'src="data:image/svg+xml;base64,' in read(tmp_path)[0]


def test_a_chart_over_a_column_takes_its_colours_from_what_was_trained() -> None:
    columns = {"group": ["{model}"], "label": "{model}, {epsilon}", "series": "", "x": "epsilon", "x_name": "epsilon"}
    chart = TableChart(title="t", caption="c", where={"attack": "PGD"}, y="mean", y_name="accuracy", **columns)  # type: ignore[arg-type]
    rows = [
        {"attack": attack, "model": model, "trained": trained, "epsilon": epsilon, "mean": mean}
        for attack in ("PGD", "FGSM")
        for model, trained in (("CNN", "0"), ("CNN-F-5", "5"))
        for epsilon, mean in (("0.0", "0.9"), ("0.1", "0.4"))
    ]
    made = chart.draw(rows)
    assert not made.bars
    assert [(name, [m.x for m in marks], {m.series for m in marks}) for name, marks in made.groups] == [
        ("CNN", [0.0, 0.1], {None}),
        ("CNN-F-5", [0.0, 0.1], {5}),
    ]
    svg = made.svg()
    assert svg.count("<polyline") == 2
    assert "<title>CNN-F-5, 0.1: 0.400</title>" in svg


def test_a_notice_stands_right_below_the_answer(tmp_path: Path) -> None:
    run = readers.read(compared(tmp_path / "run"))
    noticed = replace(run, notice=EVIL)
    text = page.render([noticed])
    assert re.search(r'class="answer">[^<]*</p>\s*<p class="notice">&lt;img src=x', text)
    assert "<img src=x" not in text
    assert 'class="notice"' not in page.render([run])
    other = replace(readers.read(trained(tmp_path / "other")), notice="briefly trained")
    both = page.render([run, other])
    assert both.count('class="notice">other: briefly trained<') == 1
    assert both.index("other: briefly trained") < both.index('id="runs"')


def test_a_page_made_in_another_folder_names_the_final_one(tmp_path: Path) -> None:
    staging = compared(tmp_path / ".run-x7f3")
    text = readers.leave(staging, shown_as=tmp_path / "run").read_text()
    assert "<dt>folder</dt><dd>run</dd>" in text
    assert "x7f3" not in text
    assert str(tmp_path) not in text


def test_a_run_that_no_folder_holds_has_a_page_too(tmp_path: Path) -> None:
    run = Run(
        folder=Path("here"),
        kind="mine",
        title="Mine",
        question="Why?",
        answer="Because.",
        charts=(),
        tables=(),
        facts=(("seed", "3"),),
        caveats=(),
        same={},
    )
    path = page.write(run, tmp_path)
    assert path == tmp_path / PAGE
    text = path.read_text()
    assert "<dt>folder</dt><dd>here</dd>" in text
    assert "<dt>seed</dt><dd>3</dd>" in text


@pytest.mark.parametrize(
    ("folders", "shown"),
    [
        (["/a/run"], ["run"]),
        (["/a/run", "/b/run"], ["a/run", "b/run"]),
        (["/run", "/b/run"], ["run", "b/run"]),
        (["/a/run", "/a/x/../run"], ["run", "run"]),
    ],
)
def test_folders_are_never_shown_as_absolute_paths(folders: list[str], shown: list[str]) -> None:
    assert page.short_folders([Path(folder) for folder in folders]) == shown


def test_what_is_not_known_is_not_shown_as_null(tmp_path: Path) -> None:
    folder = compared(tmp_path / "run", commit=None, recordings=[{**run_record()["recordings"][0], "excluded": []}])
    text, _ = read(folder)
    facts = dict(readers.read(folder).facts)
    assert "null" not in text
    assert "commit" not in facts
    assert "options.pca" not in facts
    assert facts["recordings.0.excluded"] == "none"
    assert facts["options.seed"] == "0"


def test_what_the_run_was_is_folded(tmp_path: Path) -> None:
    text, _ = read(compared(tmp_path))
    assert re.search(r"<details>\s*<summary><h2>What the run was</h2></summary>\s*<dl>", text)
    assert 'class="rest"' not in text, "a short table is not folded"


def two_sources() -> list[Evaluation]:
    """Baseline and model at two layers, of two sources and of both pooled; nothing was learned of pool@1."""
    rows = []
    for source in ("first", "second", "pooled"):
        more: Any = {"source": source, "sites": 10 if source == "pooled" else 5}
        rows += [evaluation("baseline", f"{layer}@0", r=0.3, **more) for layer in ("pool", "relu")]
        rows += [
            replace(evaluation("model", f"{layer}@1", r=0.4, **more), against=f"{layer}@0") for layer in ("pool", "relu")
        ]
    return rows


def test_pairs_stand_side_by_side_with_a_legend_and_all_sites_pooled_first(tmp_path: Path) -> None:
    folder = compared(tmp_path, *two_sources())
    first, each = readers.read(folder).charts
    assert [name for name, _ in first.groups] == ["V4: pooled"]
    assert [name for name, _ in each.groups] == ["V4: first", "V4: second"]
    assert (first.folded, each.folded) == (False, True)
    pairs = ["net CNN pool@0", "net CNN-F pool@1", "net CNN relu@0", "net CNN-F relu@1"]
    assert [mark.label for mark in first.groups[0][1]] == pairs
    assert first.legend == ((None, "baseline"), (1, "iteration 1"))
    svg = first.svg()
    assert svg.count("h0") == 4 * 10, "a point for each site"
    assert svg.index("baseline") < svg.index("V4: pooled")
    shown = [row[:4] for row in page.compact(readers.read(folder).tables[0]).rows]
    assert [row[0] for row in shown] == ["pooled"] * 4 + ["first"] * 4 + ["second"] * 4
    text, _ = read(folder)
    assert re.search(r'<details class="folded"><summary>Neural predictivity, source by source</summary>\s*<figure>', text)


def test_valid_tests_come_first_in_the_table(tmp_path: Path) -> None:
    baseline = evaluation("baseline", "pool@0", r=0.30, ceiling=np.full(5, 0.64))
    (table,) = readers.read(compared(tmp_path, baseline, evaluation("model", "pool@1", r=0.42))).tables
    assert table.head[5:] == (
        *("it", "median r [95%]", "difference [95%]", "resampled t p", "permutation p"),
        *("ceiling", "r²/c", "(r/c)²", "Welch p ⚠"),
    )
    assert dict(zip(table.head, table.rows[1], strict=True))["difference [95%]"].startswith("+0.010")


def test_a_column_that_is_the_same_in_all_rows_becomes_a_note() -> None:
    table = Table("t", ("a", "b", "empty"), (("x", "1", ""), ("x", "2", ""), ("x", "2", "")), ("n",))
    assert page.compact(table) == Table("t", ("b",), (("1",), ("2",), ("2",)), ("In all rows: a: x.", "n"))
    for rows in (table.rows[:2], (("x", "1", ""),) * 3, ()):
        assert page.compact(replace(table, rows=rows)) == replace(table, rows=rows), "too few rows, or nothing would be left"


def test_long_logs_and_details_are_folded_whole(tmp_path: Path) -> None:
    for folder, title in ((trained(tmp_path / "t"), "Log"), (figured(tmp_path / "f"), "Shares")):
        text, _ = read(folder)
        assert (f'<details class="folded"><summary><h2>{title}</h2>' in text) == (title == "Log")
    more = {"table.csv": ("Shares",), "table.nc": ("not this",)}
    (tmp_path / "f" / "table.nc").write_text((tmp_path / "f" / "table.csv").read_text())
    assert [table.folded for table in readers.read(figured(tmp_path / "f", tables=more)).tables] == [False, False, True]


@pytest.mark.parametrize(("rows", "folded"), [(30, 0), (31, 21)])
def test_long_tables_keep_their_first_rows_visible(tmp_path: Path, rows: int, folded: int) -> None:
    text, _ = read(figured(tmp_path, iterations=rows - 1))
    _, _, rest = text[: text.index('id="run"')].partition('<tbody class="rest">')
    assert rest.count("<tr>") == folded
    assert (f"<summary>{folded} more rows</summary>" in text) == (folded > 0)


# Side by side


def test_runs_of_the_same_recordings_agree(tmp_path: Path) -> None:
    folders = [compared(tmp_path / name) for name in "ab"]
    assert page.differences([readers.read(f) for f in folders], ["a", "b"]).rows == ()
    text = page.side_by_side([readers.read(f) for f in folders], tmp_path / "both.html").read_text()
    assert "They agree in all that is recorded" in text
    assert [row[0] for row in page.overview([readers.read(f) for f in folders], ["a", "b"]).rows] == ["a", "b"]


def test_merged_tables_keep_their_notes(tmp_path: Path) -> None:
    folders = [
        figured(tmp_path / "a", tables={"table.csv": ("Shares", "of both", "of the first")}),
        figured(tmp_path / "b", tables={"table.csv": ("Shares", "of both")}),
    ]
    _, table = page.merged([readers.read(f) for f in folders], ["a", "b"])
    assert [row[0] for row in table.rows] == ["a"] * 4 + ["b"] * 4
    assert table.notes == ("of both", "a: of the first")
    assert (
        "<li>a: of the first</li>"
        in page.side_by_side([readers.read(f) for f in folders], tmp_path / "both.html").read_text()
    )


def test_runs_that_are_not_comparable_say_where(tmp_path: Path) -> None:
    options = {**run_record()["options"], "splits": "brainscore"}
    a = compared(tmp_path / "a")
    b = compared(tmp_path / "b", options=options, responses="9" * 64, versions={"python": "3.12.1", "torch": "2.15.0"})
    rows = page.differences([readers.read(a), readers.read(b)], ["a", "b"]).rows
    assert rows == (
        ("splits", "kfold", "brainscore"),
        ("recordings, V4, responses", "here bbbbbbbbbbbb", "here 999999999999"),
        ("version of python", "3.11.7", "3.12.1"),
    )
    rows = page.differences([readers.read(a), readers.read(trained(tmp_path / "c"))], ["a", "c"]).rows
    assert rows[0] == ("kind", "comparison", "training")
    assert ("splits", "kfold", "not recorded") in rows


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [compared(tmp_path / "x" / "run"), compared(tmp_path / "y" / "run")]
    assert main([str(f) for f in folders]) == 0
    text = (tmp_path / PAGE).read_text()
    assert "x/run" in text
    assert "y/run" in text
    assert main([str(folders[0])]) == 0
    assert (folders[0] / PAGE).exists()
    assert capsys.readouterr().out.endswith(f"written: {folders[0] / PAGE}\n")
    with pytest.raises(SystemExit):
        main([str(folders[0]), "--output", "x.html"])


def test_the_command_as_typed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cnnf_brain.report", str(tmp_path / "nothing")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {tmp_path / 'nothing'}: no such folder; name a folder that a run has left\n"


# Charts


def test_bars_are_as_long_as_their_values() -> None:
    marks = (Mark("a", 0.5, 0.4, 0.6), Mark("b", -0.25, series=1), Mark("c", None))
    svg = Chart("t", "c", "y", (("g", marks),)).svg()
    bars = [float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"[^>]*class="bar"', svg)]
    assert len(bars) == 2
    assert bars[0] / bars[1] == pytest.approx(2, abs=0.02)
    assert "<title>a: 0.500 [0.400, 0.600]</title>" in svg
    assert "<title>c: undefined</title>" in svg


def test_lines_go_through_their_points() -> None:
    marks = tuple(Mark(str(x), y, x=x) for x, y in ((0, 0.0), (1, 1.0), (2, 0.5)))
    svg = Chart("t", "c", "y", (("g", marks),), x="x", bars=False).svg()
    points = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', svg)[1].split()]
    assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0], abs=0.02)
    assert (points[0][1] - points[2][1]) / (points[0][1] - points[1][1]) == pytest.approx(0.5, abs=0.01)


def test_ticks_enclose_the_values() -> None:
    for values in ([0.31, 0.34], [-0.2, 0.1], [0.0], [], [5.0, 5.0]):
        found = charts.ticks(values, zero=True)
        assert found[0] <= min([*values, 0.0])
        assert found[-1] >= max([*values, 0.0])
        assert found[-1] > found[0]


def test_a_chart_is_a_figure_too(tmp_path: Path) -> None:
    accuracy, course, _ = readers.read(trained(tmp_path, accuracy=(0.9, 0.8))).charts
    (axis,) = accuracy.plot().axes
    assert [bar.get_width() for bar in axis.patches] == [0.9, 0.8]  # type: ignore[attr-defined]
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "validation accuracy, iteration 0",
        "validation accuracy, iteration 1",
    ]
    (axis,) = course.plot().axes
    np.testing.assert_allclose(
        [np.asarray(line.get_ydata(orig=False)) for line in axis.get_lines()], [[0.8, 0.9], [0.7, 0.8]]
    )
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("epoch or step", "validation accuracy")
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["iteration 0", "iteration 1"]


def test_intervals_of_a_chart_reach_where_they_say() -> None:
    marks = (Mark("a", 0.5, 0.4, 0.8), Mark("a", 0.2), Mark("b", None))
    (axis,) = Chart("t", "c", "y", (("g", marks),)).plot().axes
    ends = [segment[:, 0].tolist() for drawn in axis.collections for segment in drawn.get_segments() if len(segment)]  # type: ignore[attr-defined]
    np.testing.assert_allclose(ends, [[0.4, 0.8]])
