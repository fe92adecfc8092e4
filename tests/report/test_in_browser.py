"""Pages in a real browser: sorted, hovered, folded, printed, wide and narrow, and without JavaScript."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report.browser import Opened, launched
from report.folders import EVIL, compared, evaluation, figured, trained

from cnnf_brain.report import page, readers

browser = pytest.fixture(scope="module")(launched)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return readers.leave(compared(tmp_path / "run"))


def test_it_opens_without_an_error_or_a_request(browser: Any, written: Path) -> None:
    opened = Opened(browser, written)
    assert opened.page.title() == "Neural predictivity"
    assert opened.said == []
    assert opened.asked == [written.resolve().as_uri()]


def test_columns_sort_by_number_both_ways(browser: Any, written: Path) -> None:
    sheet = Opened(browser, written).page
    names = sheet.locator("#table th").all_inner_texts()
    score = names.index("median r [95%]") + 1
    column = f"td:nth-child({score})"  # as "0.320 [0.300, 0.340]"

    def shown() -> list[float]:
        return [float(text.split()[0]) for text in sheet.locator(f"#table tbody tr {column}").all_inner_texts()]

    before = shown()
    assert before == sorted(before, key=lambda v: [0.32, 0.44, 0.12].index(v)), (
        "as written: the baseline, iterations 1 and 2"
    )
    head = sheet.locator(f"#table th:nth-child({score})")
    head.locator("button").click()
    assert shown() == sorted(before)
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").click()
    assert shown() == sorted(before, reverse=True)
    sheet.locator("#table th:nth-child(1) button").focus()
    sheet.keyboard.press("Enter")  # by the keyboard too, and by text
    networks = sheet.locator("#table tbody tr td:nth-child(1)").all_inner_texts()
    assert (names[0], networks) == ("network", sorted(networks))


def test_cells_without_a_number_come_last(browser: Any, written: Path) -> None:
    sheet = Opened(browser, written).page
    head = sheet.locator("#table th", has_text="resampled t p")
    cells = f"#table tbody tr td:nth-child({[*sheet.locator('#table th').all_inner_texts()].index('resampled t p') + 1})"
    for _ in range(2):
        head.locator("button").click()
        assert sheet.locator(cells).all_inner_texts()[-1] == "", "the baseline has no test"


def test_numbers_appear_under_the_pointer_and_by_keyboard(browser: Any, written: Path) -> None:
    sheet = Opened(browser, written).page
    tip = sheet.locator("#tip")
    assert not tip.is_visible()
    sheet.locator("svg .mark .bar").nth(1).hover()
    assert tip.is_visible()
    assert re.fullmatch(r"net CNN-F pool@1: 0\.440 \[0\.4\d+, 0\.4\d+\]", tip.inner_text())
    sheet.mouse.move(1, 1)
    assert not tip.is_visible()
    sheet.locator("svg .mark").nth(0).focus()
    assert "net CNN pool@0: 0.320" in tip.inner_text()
    assert "at most 0.800" in tip.inner_text()


def test_labels_stand_beside_their_bars(browser: Any, tmp_path: Path) -> None:
    fits, cannot = "small CNN-F (feedback untrained)", "a name that is far too long for a column " * 3
    rows = [evaluation("baseline", "pool@0", r=0.3)]
    rows += [replace(evaluation("model", "features.28@1", r=0.4), network=name) for name in (fits, cannot)]
    readers.leave(compared(tmp_path / "run", *rows))
    sheet = Opened(browser, tmp_path / "run" / "report.html").page
    marks = sheet.locator("svg .mark")
    axis = sheet.locator("svg .axis").first.bounding_box()["x"]
    for i in range(3):
        label = marks.nth(i).locator("text").first
        box = label.bounding_box()
        assert box["x"] + box["width"] < axis, label.inner_text()
    assert "…" not in marks.nth(1).locator("text").first.text_content()
    assert marks.nth(2).locator("text").first.text_content().startswith("…")


def test_without_javascript_figure_and_table_are_there(browser: Any, written: Path) -> None:
    sheet = Opened(browser, written, java_script_enabled=False).page
    assert sheet.locator("svg .mark .bar").count() == 3
    assert sheet.locator("svg .mark .bar").first.is_visible()
    assert sheet.locator("#table tbody tr").count() == 3
    assert sheet.locator("svg .mark title").nth(1).text_content().startswith("net CNN-F pool@1: 0.440")
    assert sheet.locator("th button").count() == 0, "nothing that does nothing"


@pytest.mark.parametrize("make", [compared, trained, figured])
def test_a_phone_shows_it_without_sideways_scrolling(browser: Any, tmp_path: Path, make: Any) -> None:
    path = readers.leave(make(tmp_path / "run"))
    sheet = Opened(browser, path, viewport={"width": 360, "height": 700}).page
    assert sheet.evaluate("document.documentElement.scrollWidth") <= 360
    assert sheet.evaluate("document.body.scrollWidth") <= 360
    assert sheet.locator(".answer").is_visible()


def test_light_and_dark_and_print(browser: Any, written: Path) -> None:
    def colours(**options: Any) -> list[str]:
        sheet = Opened(browser, written, **options).page
        asked = (("body", "backgroundColor"), (".s-1 .bar", "fill"))
        return [sheet.evaluate(f"getComputedStyle(document.querySelector('{q}')).{p}") for q, p in asked]

    light, dark = colours(color_scheme="light"), colours(color_scheme="dark")
    assert light == ["rgb(255, 255, 255)", "rgb(210, 70, 68)"]
    assert dark == ["rgb(20, 23, 28)", "rgb(212, 72, 66)"]
    sheet = Opened(browser, written, color_scheme="dark").page
    sheet.emulate_media(media="print")
    assert sheet.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_text_of_files_stays_text_in_the_browser(browser: Any, tmp_path: Path) -> None:
    row = evaluation("baseline", "pool@0", r=0.3, source=EVIL)
    row = row.__class__(**{**vars(row), "network": EVIL})
    opened = Opened(browser, readers.leave(compared(tmp_path / "run", row, command=EVIL)))
    assert opened.said == []
    assert opened.page.locator("img").count() == 0
    opened.page.locator("svg .mark .bar").hover()
    assert EVIL in opened.page.locator("#tip").inner_text()


def test_several_runs_in_a_browser(browser: Any, tmp_path: Path) -> None:
    folders = compared(tmp_path / "a"), trained(tmp_path / "b"), figured(tmp_path / "c")
    path = page.side_by_side([readers.read(folder) for folder in folders], tmp_path / "all.html")
    opened = Opened(browser, path, viewport={"width": 360, "height": 700})
    assert opened.said == []
    assert opened.page.locator("#runs tbody tr").count() == 3
    assert "comparison" in opened.page.locator("#differences tbody tr").first.inner_text()
    assert opened.page.evaluate("document.body.scrollWidth") <= 360


# Width


def box(sheet: Any, query: str, index: int = 0) -> dict[str, float]:
    """Place and size of an element in pixels."""
    found = sheet.locator(query).nth(index).bounding_box()
    assert found is not None
    return found


def test_a_wide_window_is_used(browser: Any, written: Path) -> None:
    sheet = Opened(browser, written, viewport={"width": 1440, "height": 900}).page
    assert box(sheet, "main")["width"] > 1300
    table, around = box(sheet, "#table table"), box(sheet, "#table .scroll")
    assert around["width"] > 1300
    assert table["width"] <= around["width"] + 1, "this table fits into such a window and need not scroll"
    assert 660 < box(sheet, "svg")["width"] <= 1100, "chart and picture stand side by side"
    letters = sheet.evaluate(
        "() => { const p = document.querySelector('.question'), s = document.createElement('span');"
        " s.textContent = '0'.repeat(75); p.append(s); return s.getBoundingClientRect().width; }"
    )
    assert box(sheet, ".answer")["width"] <= 1.1 * letters, "a line of text stays readable"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_many_sources_take_three_screens_and_the_width_of_a_small_laptop(browser: Any, tmp_path: Path, scheme: str) -> None:
    """Five sources of a region, four layers, all columns: what all sites say first, each source folded."""
    rows: list[Any] = [
        replace(evaluation(role, f"features.{layer}@{t}", r=0.3, source=source, ceiling=np.full(5, 0.6)), **named)
        for source in (*(f"V4_compact_models:19092{i}" for i in range(5)), "pooled")
        for role, t, given in (("baseline", 0, {}), ("model", 1, {"network": "vgg16 CNN-F (feedback trained)"}))
        for layer in (9, 16, 23, 30)
        for named in [dict[str, Any](given) | {"against": f"features.{layer}@0" if t else ""}]
    ]
    path = readers.leave(compared(tmp_path / "run", *rows))
    sheet = Opened(browser, path, viewport={"width": 1280, "height": 900}, color_scheme=scheme).page
    assert sheet.evaluate("document.body.scrollHeight") < 3 * 900
    table, around = box(sheet, "#table table"), box(sheet, "#table .scroll")
    assert table["width"] <= around["width"] + 1
    assert visible(sheet, "#figure svg") == 1
    sheet.locator("summary", has_text="source by source").click()
    assert visible(sheet, "#figure svg") == 2


def test_charts_stand_side_by_side_where_there_is_room(browser: Any, tmp_path: Path) -> None:
    path = readers.leave(trained(tmp_path / "run"))
    wide = Opened(browser, path, viewport={"width": 1440, "height": 900}).page
    first, second = (box(wide, ".charts svg", i) for i in (0, 1))
    assert second["x"] > first["x"] + first["width"] - 1
    assert abs(second["y"] - first["y"]) < 5
    narrow = Opened(browser, path, viewport={"width": 800, "height": 900}).page
    first, second = (box(narrow, ".charts svg", i) for i in (0, 1))
    assert second["y"] > first["y"] + first["height"]


def test_wide_tables_scroll_inside_their_box(browser: Any, written: Path) -> None:
    sheet = Opened(browser, written, viewport={"width": 375, "height": 700}).page
    scroller = "document.querySelector('#table .scroll')"
    assert sheet.evaluate(f"{scroller}.scrollWidth > {scroller}.clientWidth")
    assert sheet.evaluate(f"{scroller}.scrollLeft = 200, {scroller}.scrollLeft") == 200
    assert sheet.evaluate("document.documentElement.scrollWidth") <= 375


# Folding


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """A page with a table of 41 rows: iterations 0 to 39 and one without a number."""
    return readers.leave(figured(tmp_path / "long", iterations=40))


def visible(sheet: Any, query: str) -> int:
    return sum(one.is_visible() for one in sheet.locator(query).all())


@pytest.mark.parametrize("script", [True, False])
def test_long_tables_and_what_the_run_was_unfold(browser: Any, long: Path, script: bool) -> None:
    sheet = Opened(browser, long, java_script_enabled=script).page
    rows = "#table .table:has(.rest) tbody tr"
    assert visible(sheet, rows) == 10
    sheet.locator("summary", has_text="31 more rows").click()
    assert visible(sheet, rows) == 41
    assert not sheet.locator("#run dl").is_visible()
    sheet.locator("#run summary").click()
    assert sheet.locator("#run dl").is_visible()
    assert sheet.locator("#run dd", has_text="python -m cnnf_brain.visualize").is_visible()


def test_a_folded_table_sorts_as_a_whole(browser: Any, long: Path) -> None:
    sheet = Opened(browser, long).page
    head = sheet.locator("#table .table:has(.rest) th", has_text="mean").locator("button")

    def shown() -> list[str]:
        rows = sheet.locator("#table .table:has(.rest) tbody tr").all()
        return [row.locator("td").nth(1).inner_text() for row in rows if row.is_visible()]

    head.click()
    assert shown() == [str(t) for t in range(10)]
    head.click()
    assert shown() == [str(t) for t in range(39, 29, -1)]


@pytest.mark.parametrize("script", [True, False])
def test_everything_is_open_on_paper(browser: Any, long: Path, script: bool) -> None:
    sheet = Opened(browser, long, java_script_enabled=script).page
    sheet.emulate_media(media="print")
    assert visible(sheet, "#table .table:has(.rest) tbody tr") == 41
    assert box(sheet, "#run dl")["height"] > 50
    assert sheet.locator("#run dd").first.is_visible()


def test_printing_by_the_browser_opens_and_folds_again(browser: Any, long: Path) -> None:
    sheet = Opened(browser, long).page
    opened = "[...document.querySelectorAll('details')].every((d) => d.open)"
    assert not sheet.evaluate(opened)
    sheet.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert sheet.evaluate(opened)
    sheet.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert not sheet.evaluate("[...document.querySelectorAll('details')].some((d) => d.open)")
