"""The four figures from end to end on a small network: files, claims, examples."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from PIL import Image

from cnnf_brain.attacks.gradient import PGD
from cnnf_brain.report import PAGE, readers
from cnnf_brain.visualize import about, attention, draw, figures, write
from cnnf_brain.visualize.figures import FIGURES, Given
from cnnf_brain.visualize.view import Seen

N = 10
NAMES = ("a", "b", "c", "d")
FILES = {
    "9a": {"images.csv", "table.csv", "grids.nc"},
    "9b": {"table.csv", "focus.csv", "examples.nc"},
    "9c": {"table.csv", "examples.nc"},
    "9d": {"images.nc", "table.csv", "examples.nc"},
}


def given(**more: object) -> Given:
    values = {"n": 6, "seed": 0, "tell": lambda words: None, **more}
    return Given(small.view(), small.images(N), small.labels(N), **values)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """The folders of all four, with a quick PGD and small grids."""
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "PGD", lambda steps, seed: PGD(steps=2, seed=seed))
        patch.setattr(figures, "FINE", 7)
        patch.setattr(figures.plane, "COARSE", 5)
        for name, make in FIGURES.items():
            folders[name] = tmp_path_factory.mktemp(name)
            summary = make(given(), folders[name])
            draw.draw(name, folders[name], NAMES)
            record = {"command": "c", "commit": None, "versions": {}, "same": {"figure": name}}
            write.finish(folders[name], summary, record)
    return folders


@pytest.mark.parametrize("name", FIGURES)
def test_tables_figure_and_page_are_there(made, name):
    common = {"run.json", "summary.json", "claims.md", "figure.svg", "figure.png", PAGE}
    assert {path.name for path in made[name].iterdir()} == FILES[name] | common
    with Image.open(made[name] / "figure.png") as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 10, "not empty"
    run = readers.read(made[name])
    assert run.question.endswith("?")
    assert run.answer.count(". ") == 0, "one sentence"
    assert all("Whiskers: 95% bootstrap over images" in chart.caption for chart in run.charts)
    assert all("No error bars" in picture.caption for picture in run.pictures)
    assert any("Too few images: 6" in caveat for caveat in run.caveats)
    assert all(
        mark.low is None or mark.low <= mark.value <= mark.high for c in run.charts for _, g in c.groups for mark in g
    )


@pytest.mark.parametrize("name", FIGURES)
def test_the_figure_is_drawn_from_the_tables_alone(made, name, tmp_path):
    for file in made[name].glob("*.nc"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    draw.draw(name, tmp_path, NAMES)
    assert (tmp_path / "figure.svg").read_bytes() == (made[name] / "figure.svg").read_bytes()


def test_9a_takes_the_images_it_says(made):
    table = rows(made["9a"] / "images.csv")
    expected = np.sort(np.random.default_rng(0).choice(N, 6, replace=False))
    assert [int(row["image"]) for row in table[::2]] == expected.tolist()
    assert {row["iteration"] for row in table} == {"1", "2"}
    mean = np.mean([float(row["enters"]) for row in table if row["iteration"] == "2"])
    (shown,) = [r for r in rows(made["9a"] / "table.csv") if r["measure"] == "enters" and r["iteration"] == "2"]
    assert float(shown["mean"]) == pytest.approx(mean)
    assert write.opened(made["9a"] / "grids.nc").sizes["point"] == 49


def test_9b_counts_what_it_shows(made):
    table = rows(made["9b"] / "table.csv")
    assert {(r["threat"], r["epsilon"]) for r in table} == {
        ("first_pass", "0.02"), ("first_pass", "0.05"), ("first_pass", "0.1"), ("end_to_end", "0.05"),
    }  # fmt: skip
    for row in table:
        change = (int(row["corrected"]) - int(row["spoiled"])) / int(row["images"])
        assert float(row["change"]) == pytest.approx(change), "accuracy changes by what is corrected less what is spoiled"
    examples = write.opened(made["9b"] / "examples.nc")
    for i, group in enumerate(examples["group"].values):
        right = examples["decision"].values[i] == examples["label"].values[i]
        assert (right[0], right[-1]) == ((False, True) if "corrected" in str(group) else (True, False))


def test_9c_and_9d_cover_their_conditions(made):
    assert [r["condition"] for r in rows(made["9c"] / "table.csv")[::3]] == ["clean", "blur 1", "noise 0.2"]
    table = rows(made["9d"] / "table.csv")
    strengths: dict[str, set[str]] = {}
    for row in table:
        strengths.setdefault(row["corruption"], set()).add(row["strength"])
    assert set(strengths) == {"clean", "blur", "noise", "salt and pepper", "PGD"}
    assert all(len(found) == 3 for name, found in strengths.items() if name != "clean")
    images = write.opened(made["9d"] / "images.nc")
    noisy = images.sel(condition="noise 0.2", what="input")["mse"].values
    (row,) = [
        r for r in table if (r["corruption"], r["strength"], r["what"], r["iteration"]) == ("noise", "0.2", "input", "2")
    ]
    assert float(row["mse_closer"]) == pytest.approx(np.mean(noisy[2] < noisy[0]))
    assert float(row["mse_before"]) == pytest.approx(noisy[0].mean())


def test_9d_goes_on_from_what_is_finished(tmp_path, monkeypatch, cache):
    quick = [figures.Condition("noise", 0.2), figures.Condition("blur", 1.0)]
    monkeypatch.setattr(figures, "STRENGTHS", quick)
    real, done = figures._restored, []

    def restored(given, images, labels, chosen, condition):
        if str(condition) == stop_at:
            raise KeyboardInterrupt
        done.append(str(condition))
        return real(given, images, labels, chosen, condition)

    monkeypatch.setattr(figures, "_restored", restored)
    stop_at = "blur 1"
    with pytest.raises(KeyboardInterrupt):
        figures.figure_9d(given(), tmp_path / "first", epsilons=())
    assert done == ["clean", "noise 0.2"]
    assert not (tmp_path / "first").exists(), "nothing stands in the folder of the results"
    stop_at = "clean"
    for other in (given(seed=1), Given(small.view(), small.images(N), small.labels(N).flip(0), 6)):
        with pytest.raises(KeyboardInterrupt):  # another question does not take what is there
            figures.figure_9d(other, tmp_path, epsilons=())
    stop_at = ""
    (tmp_path / "second").mkdir()
    figures.figure_9d(given(), tmp_path / "second", epsilons=())
    assert done == ["clean", "noise 0.2", "blur 1"], "nothing twice"
    interrupted = (tmp_path / "second" / "table.csv").read_bytes()
    assert not [name for _, _, files in os.walk(cache) for name in files], "the parts are removed at the end"
    figures.figure_9d(given(), tmp_path / "whole", epsilons=())
    assert (tmp_path / "whole" / "table.csv").read_bytes() == interrupted


def test_claims_follow_the_intervals():
    assert write.claim("c", "m", 0.1, 0.2)["holds"] is True
    assert write.claim("c", "m", -0.2, -0.1)["holds"] is False
    assert write.claim("c", "m", -0.1, 0.1)["holds"] is None
    assert write.claim("c", "m", np.nan, np.nan)["holds"] is None


def test_an_interval_that_does_not_exist_is_not_shown_as_nan():
    assert write.percent({"x": 0.123, "a": 0.11, "b": 0.135}, "x", "a", "b") == "12.3 % [11.0, 13.5]"
    assert write.percent({"x": 0.123, "a": np.nan, "b": np.nan}, "x", "a", "b") == "12.3 % (no interval)"


def test_9a_says_no_where_more_points_leave():
    def row(measure: str, mean: float, low: float, high: float) -> dict:
        return {"iteration": 2, "measure": measure, "mean": mean, "low": low, "high": high, "images": 200}

    table = [
        row("enters", 0.02, 0.01, 0.03),
        row("leaves", 0.05, 0.04, 0.06),
        row("enters_minus_leaves", -0.03, -0.04, -0.02),
    ]
    table += [
        row("closer", 0.7, 0.6, 0.8),
        row("closer_to_another", 0.6, 0.5, 0.7),
        row("closer_minus_control", 0.1, 0.05, 0.15),
    ]
    found = about.about_9a(0, table)
    assert found["answer"].startswith(
        "After 2 iterations fewer points have changed to the centre's class (2.0 % [1.0, 3.0])"
    )
    assert [c["holds"] for c in found["claims"]] == [False, True]
    assert not any("Too few" in caveat for caveat in found["caveats"])
    assert any("One network" in caveat for caveat in found["caveats"])


def test_examples_are_the_images_of_their_group():
    classes, labels = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 1]]), torch.tensor([1, 1, 1, 1])
    members = attention.groups(classes.numpy(), labels.numpy())["corrected"]
    found = figures._examples(
        small.images(4), torch.rand(2, 4, 3, 3), classes, labels, members, "corrected", np.array([7, 8, 9, 11])
    )
    assert found["number"].values.tolist() == [7]
    assert found["decision"].values.tolist() == [[0, 1]]


def test_nothing_corrected_and_nothing_spoiled_is_still_a_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "PGD", lambda steps, seed: PGD(steps=1, seed=seed))
    monkeypatch.setattr(figures.attention, "grad_cam", lambda view, images, layer: (torch.rand(3, 6, 4, 4), still))
    still = torch.zeros(3, 6, dtype=torch.long)  # feedback that changes no decision
    monkeypatch.setattr(figures.View, "see", lambda self, images: Seen(still, None, None))
    summary = figures.figure_9b(given(), tmp_path, epsilons=(0.05,))
    assert "0 of 6 are corrected and 0 spoiled" in summary["answer"]
    draw.draw("9b", tmp_path, NAMES)
    write.finish(tmp_path, summary, {"command": "c", "commit": None, "versions": {}, "same": {}})
    assert readers.read(tmp_path).charts
