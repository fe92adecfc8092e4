"""The four figures from end to end on a small network: files, claims, examples."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from visualize import small

from cnnf_brain import style
from cnnf_brain.attacks.gradient import PGD
from cnnf_brain.io import read_netcdf
from cnnf_brain.report import PAGE, readers
from cnnf_brain.report.runs import Claim
from cnnf_brain.visualize import PARTS, Sample, attention, figure9, plane, restoration, view, write
from cnnf_brain.visualize.view import Seen

N = 10
NAMES = ("a", "b", "c", "d")
FILES = {
    "9a": {"images.csv", "table.csv", "grids.nc"},
    "9b": {"table.csv", "focus.csv", "examples.nc"},
    "9c": {"table.csv", "examples.nc"},
    "9d": {"images.nc", "table.csv", "examples.nc"},
}


def sample(labels: torch.Tensor | None = None, seed: int = 0) -> Sample:
    return Sample(small.view(), small.images(N), small.labels(N) if labels is None else labels, 6, seed)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


class Made(dict[str, Path]):
    """The folders of the parts, each made when it is first asked for, with a quick PGD and small grids."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __missing__(self, name: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(view, "PGD", lambda steps, seed: PGD(steps=2, seed=seed))
            patch.setattr(plane, "FINE", 7)
            patch.setattr(plane, "COARSE", 5)
            write(name, sample(), self.root / name, names=NAMES)
        self[name] = self.root / name
        return self[name]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("name", PARTS)
def test_tables_figure_and_page_are_there(made: Made, name: Any) -> None:
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


@pytest.mark.parametrize("name", ["9b", *(pytest.param(name, marks=pytest.mark.slow) for name in ("9a", "9c", "9d"))])
def test_the_figure_is_drawn_from_the_tables_alone(made: Made, name: Any, tmp_path: Path) -> None:
    module = {"9a": plane, "9b": attention, "9c": attention, "9d": restoration}[name]
    with style.styled():
        figure = module.draw({file.name: read_netcdf(file) for file in made[name].glob("*.nc")}, NAMES)
    style.save(figure, tmp_path)
    assert (tmp_path / "figure.svg").read_bytes() == (made[name] / "figure.svg").read_bytes()


def test_9a_takes_the_images_it_says(made: Made) -> None:
    table = rows(made["9a"] / "images.csv")
    expected = np.sort(np.random.default_rng(0).choice(N, 6, replace=False))
    assert [int(row["image"]) for row in table[::2]] == expected.tolist()
    assert {row["iteration"] for row in table} == {"1", "2"}
    mean = np.mean([float(row["enters"]) for row in table if row["iteration"] == "2"])
    (shown,) = [r for r in rows(made["9a"] / "table.csv") if r["measure"] == "enters" and r["iteration"] == "2"]
    assert float(shown["mean"]) == pytest.approx(mean)
    assert read_netcdf(made["9a"] / "grids.nc").sizes["point"] == 49


def test_9b_counts_what_it_shows(made: Made) -> None:
    table = rows(made["9b"] / "table.csv")
    attacks = {(r["threat"], r["epsilon"]) for r in table}
    assert attacks == {*(("first_pass", epsilon) for epsilon in ("0.02", "0.05", "0.1")), ("end_to_end", "0.05")}
    for row in table:
        change = (int(row["corrected"]) - int(row["spoiled"])) / int(row["images"])
        assert float(row["change"]) == pytest.approx(change), "accuracy changes by what is corrected less what is spoiled"
    examples = read_netcdf(made["9b"] / "examples.nc")
    for i, group in enumerate(examples["group"].values):
        right = examples["decision"].values[i] == examples["label"].values[i]
        assert (right[0], right[-1]) == ((False, True) if "corrected" in str(group) else (True, False))


def test_9c_and_9d_cover_their_conditions(made: Made) -> None:
    assert [r["condition"] for r in rows(made["9c"] / "table.csv")[::3]] == ["clean", "blur 1", "noise 0.2"]
    table = rows(made["9d"] / "table.csv")
    strengths: dict[str, set[str]] = {}
    for row in table:
        strengths.setdefault(row["corruption"], set()).add(row["strength"])
    assert set(strengths) == {"clean", "blur", "noise", "salt and pepper", "PGD"}
    assert all(len(found) == 3 for name, found in strengths.items() if name != "clean")
    images = read_netcdf(made["9d"] / "images.nc")
    noisy = images.sel(condition="noise 0.2", what="input")["mse"].values
    (row,) = [
        r for r in table if (r["corruption"], r["strength"], r["what"], r["iteration"]) == ("noise", "0.2", "input", "2")
    ]
    assert float(row["mse_closer"]) == pytest.approx(np.mean(noisy[2] < noisy[0]))
    assert float(row["mse_before"]) == pytest.approx(noisy[0].mean())


def test_9d_goes_on_from_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    quick = [restoration.Condition("noise", 0.2), restoration.Condition("blur", 1.0)]
    monkeypatch.setattr(restoration, "STRENGTHS", quick)
    real, done = restoration.under_condition, []  # type: ignore[var-annotated]

    def restored(sample: Any, condition: Any, chosen: Any) -> Any:
        if str(condition) == stop_at:
            raise KeyboardInterrupt
        done.append(str(condition))
        return real(sample, condition, chosen)

    monkeypatch.setattr(restoration, "under_condition", restored)
    stop_at = "blur 1"
    with pytest.raises(KeyboardInterrupt):
        restoration.figure_9d(sample(), epsilons=())
    assert done == ["clean", "noise 0.2"]
    stop_at = "clean"
    for other in (sample(seed=1), sample(small.labels(N).flip(0))):
        with pytest.raises(KeyboardInterrupt):  # another question does not take what is there
            restoration.figure_9d(other, epsilons=())
    stop_at = ""
    interrupted = restoration.figure_9d(sample(), epsilons=())
    assert done == ["clean", "noise 0.2", "blur 1"], "nothing twice"
    interrupted.save(tmp_path, {})
    assert not [name for _, _, files in os.walk(cache) for name in files], "the parts are removed when all is written"
    assert restoration.figure_9d(sample(), epsilons=()).tables == interrupted.tables


def test_claims_follow_the_intervals() -> None:
    assert Claim.of_interval("c", "m", 0.1, 0.2).holds is True
    assert Claim.of_interval("c", "m", -0.2, -0.1).holds is False
    assert Claim.of_interval("c", "m", -0.1, 0.1).holds is None
    assert Claim.of_interval("c", "m", np.nan, np.nan).holds is None


def test_an_interval_that_does_not_exist_is_not_shown_as_nan() -> None:
    assert view.percent(0.123, 0.11, 0.135) == "12.3 % [11.0, 13.5]"
    assert view.percent(0.123, np.nan, np.nan) == "12.3 % (no interval)"


def test_9a_says_no_where_more_points_leave() -> None:
    def row(measure: str, mean: float, low: float, high: float) -> dict[str, Any]:
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
    found = plane.about(table, 0)
    words = "After 2 iterations fewer points have changed to the centre's class (2.0 % [1.0, 3.0])"
    assert found.answer.startswith(words)
    assert [claim.holds for claim in found.claims] == [False, True]  # type: ignore[attr-defined]
    assert not any("Too few" in caveat for caveat in found.caveats)
    assert any("One network" in caveat for caveat in found.caveats)


def test_examples_are_the_images_of_their_group() -> None:
    given = sample(torch.ones(N, dtype=torch.long))
    classes = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1]])
    members = attention.groups(classes.numpy(), given.labels.numpy())["corrected"]
    shown = attention.shown_examples(given, given.images, (torch.rand(2, 6, 3, 3), classes), members, "corrected")
    assert shown["number"].values.tolist() == [given.rows[0]]
    assert shown["decision"].values.tolist() == [[0, 1]]


def test_nothing_corrected_and_nothing_spoiled_is_still_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    still = torch.zeros(3, 6, dtype=torch.long)  # feedback that changes no decision
    monkeypatch.setattr(view, "PGD", lambda steps, seed: PGD(steps=1, seed=seed))
    monkeypatch.setattr(attention, "grad_cam", lambda view, images, layer: (torch.rand(3, 6, 4, 4), still))
    monkeypatch.setattr(view.View, "see", lambda self, images: Seen(still))
    part = write("9b", sample(), tmp_path / "9b", names=NAMES)
    assert "0 of 6 are corrected and 0 spoiled" in part.about.answer
    assert readers.read(tmp_path / "9b").charts


# As a library


def test_a_part_is_measured_without_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    part = figure9("9c", small.view().network, small.images(N), small.labels(N), n=6)
    assert [row["condition"] for row in part.tables["table.csv"][::3]] == ["clean", "blur 1", "noise 0.2"]
    assert part.about.answer.startswith("The area that Grad-CAM covers changes")
    assert len(part.plot(NAMES).axes) == 3 * 4 * 4, "clean, blurred and noisy; four images; the image and three maps"
    assert not list(tmp_path.iterdir())


def test_parts_and_numbers_that_there_are_not() -> None:
    with pytest.raises(ValueError, match=r"part of Figure 9 '9e' is not known; did you mean"):
        figure9("9e", small.view().network, small.images(N), small.labels(N))
    with pytest.raises(ValueError, match="11 images are asked for and there are 10; give fewer, or none for all"):
        figure9("9c", small.view().network, small.images(N), small.labels(N), n=11)


def test_a_folder_that_holds_another_question_is_refused_before_the_work(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PARTS, "9c", lambda sample: pytest.fail("it was measured"))
    with pytest.raises(ValueError, match=r"another question \(seed: 0 there, 1 now\)"):
        write("9c", sample(seed=1), made["9c"])
