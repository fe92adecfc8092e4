"""Tables, worst cases, claims, checks and files of a grid, against counts by hand."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from robustness.outcomes import words_of, write_outcome

from cnnf_brain import results
from cnnf_brain.attacks.sanity_checks import Finding
from cnnf_brain.io import short_hash, write_json
from cnnf_brain.report import PAGE, NotDrawnError
from cnnf_brain.robustness import __main__ as command
from cnnf_brain.robustness import grids, open_workshop, report, table, tasks
from cnnf_brain.robustness.cells import Examination, Training, Workshop, cells
from cnnf_brain.robustness.grids import Grid


@pytest.fixture
def drawn(tiny: Grid, idx_folder: Path, tmp_path: Path, trained: Path) -> Any:
    """The workshop of a grid whose outcomes are drawn at random, none of them computed."""
    shutil.copytree(trained, tmp_path / "models")
    shop = open_workshop(tiny, tmp_path / "figure", tmp_path / "models", "the command", data_folder=idx_folder)
    report.begin(shop)
    generator = np.random.default_rng(0)
    for seed in tiny.seeds:
        for cell in cells(shop, seed):
            right = generator.random((len(cell.epsilons), cell.iterations + 1, cell.images)) < 0.7
            write_outcome(cell, right)
    return shop


def test_each_row_is_a_share_of_images(drawn: Any) -> None:
    rows = table.collect(drawn)
    assert not rows.duplicated([name for name in rows.columns if name != "accuracy"]).any()
    for seed in (0, 1):
        for cell in cells(drawn, seed):
            right = cell.read()
            mine = rows[
                (rows["model"] == cell.model.label)
                & (rows["seed"] == seed)
                & (rows["attack"] == cell.against.attack)
                & (rows["threat"] == cell.against.threat)
            ]
            assert len(mine) == right.shape[0] * right.shape[1]
            for _, row in mine.iterrows():
                values = right[cell.epsilons.index(row["epsilon"]), row["iteration"]]
                assert row["accuracy"] == pytest.approx(sum(map(int, values)) / len(values))
                assert row["images"] == len(values)


def test_the_worst_case_is_taken_image_by_image(drawn: Any) -> None:
    rows = table.collect(drawn)
    worst = rows[rows["attack"] == table.WORST]
    assert set(worst["seed"]) == {0}  # the seeds of the worst case
    assert set(worst["epsilon"]) == {0.2}
    for label, last in (("CNN", 0), ("CNN-F-1", 2)):
        against = [cell for cell in cells(drawn, 0) if cell.model.label == label]
        for t in range(last + 1):
            survive = 0
            for image in range(3):
                survive += all(cell.read()[cell.epsilons.index(0.2), t, image] for cell in against)
            (row,) = worst[(worst["model"] == label) & (worst["iteration"] == t)].to_dict("records")
            assert row["accuracy"] == pytest.approx(survive / 3)
            assert row["images"] == 3


def test_no_worst_case_before_all_its_attacks_are_done(drawn: Any) -> None:
    missing = next(cell for cell in cells(drawn, 0) if cell.against.strong and cell.model.iterations)
    missing.path.unlink()
    worst = table.collect(drawn)
    worst = worst[worst["attack"] == table.WORST]
    assert set(worst["model"]) == {"CNN"}


def test_mean_and_deviation_over_seeds(drawn: Any) -> None:
    rows = table.collect(drawn)
    means = table.over_seeds(rows)
    one = means[
        (means["model"] == "CNN-F-1") & (means["attack"] == "FGSM") & (means["epsilon"] == 0.2) & (means["iteration"] == 1)
    ]
    values = rows[
        (rows["model"] == "CNN-F-1") & (rows["attack"] == "FGSM") & (rows["epsilon"] == 0.2) & (rows["iteration"] == 1)
    ]
    a, b = values["accuracy"]
    assert one["mean"].item() == pytest.approx((a + b) / 2)
    assert one["sd"].item() == pytest.approx(abs(a - b) / 2**0.5)
    assert one["seeds"].item() == 2
    strong = means[means["attack"] == "PGD-100"]
    assert strong["sd"].isna().all()


def test_the_files_of_a_finished_figure(drawn: Any) -> None:
    pytest.importorskip("jinja2", reason="the page needs the extra page")
    page = report.write(drawn, finished=True, seconds=1.0, device_name="a machine").page
    folder = drawn.folder
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert names >= {
        "table.csv",
        "table.nc",
        "summary.csv",
        "claims.csv",
        "checks.json",
        "figure.svg",
        "figure.png",
        "figure.md",
        "run.json",
        "summary.json",
        page.name,
    }
    rows = table.collect(drawn)
    written = pd.read_csv(folder / "table.csv")
    pd.testing.assert_frame_equal(written, rows, check_dtype=False)
    import netCDF4

    with netCDF4.Dataset(folder / "table.nc") as file:
        assert np.allclose(file["accuracy"][:], rows["accuracy"])
        assert list(file["model"][:]) == list(rows["model"])
        assert np.array_equal(file["strong"][:].astype(bool), rows["strong"])
    run, summary = (json.loads((folder / name).read_text()) for name in ("run.json", "summary.json"))
    assert run["quick"] is True
    assert run["kind"] == "robustness"
    assert run["recipe"] == "tuned"
    assert [(network["model"], network["seed"]) for network in run["networks"]] == [
        (label, seed) for seed in (0, 1) for label in ("CNN", "CNN-F-1")
    ]
    assert run["epsilon_units"] == "images in [0, 1]"
    assert "QUICK" in summary["caveats"][0]
    assert "QUICK" in (folder / "figure.svg").read_text() or "QUICK" in summary["pictures"][0]["caption"]
    assert "QUICK" in page.read_text()
    assert "1 epochs on 20 training images" in summary["pictures"][0]["caption"]
    with open(folder / "shown.csv", newline="") as file:
        assert all(row["iteration"] == row["trained"] for row in csv.DictReader(file))


def test_the_section_has_each_mean_in_its_place(sketched: pytest.MonkeyPatch, drawn: Any) -> None:
    report.write(drawn, finished=True, seconds=1.0, device_name="m")
    text = (drawn.folder / "figure.md").read_text()
    assert text.startswith("## a tiny grid, tuned recipe\n\n    the command\n\nQUICK")
    tables = [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")]
        for part in text.split("\n\n")
    ]
    by_network, one_by_one, *_ = [rows for rows in tables if rows]
    assert by_network[0] == ["network", "clean", "FGSM 0.2", "PGD-7 0.2", "worst case 0.2"]
    for row, label in zip(by_network[2:], ("CNN", "CNN-F-1"), strict=True):
        fgsm = [c for seed in (0, 1) for c in cells(drawn, seed) if c.model.label == label and c.against.attack == "FGSM"]
        values = [c.read()[1, c.model.iterations].mean() for c in fgsm]  # at epsilon 0.2 and the network's own iteration
        assert row[:1] + row[2:3] == [label, f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"]
    assert one_by_one[0] == ["attack", "CNN", "CNN-F-1"]
    (transfer,) = [row for row in one_by_one if row[0] == "PGD-100 (transfer)"]
    (cell,) = [c for c in cells(drawn, 0) if c.against.label == transfer[0]]
    assert transfer[1:] == ["", f"{100 * cell.read()[0, 1].mean():.1f}"]  # the CNN has none; one seed has no deviation
    assert "Checks against a false sense of security:" in text


def test_what_names_say_is_text_in_the_section(
    sketched: pytest.MonkeyPatch, drawn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A processor's name, say, as a card has it; a check's words stand for all others."""
    evil = "<img src=x> [c](javascript:d)"
    monkeypatch.setattr(report, "training", lambda result: evil)
    monkeypatch.setattr(report, "told", lambda result: f"{evil}\n\n# {evil}")
    report.write(drawn, finished=True, seconds=1.0, device_name="m")
    text = (drawn.folder / "figure.md").read_text()
    assert text.count("&lt;img src=x> [c&#93;(javascript:d)") == 3
    assert evil not in text
    assert text.count("\n#") == 0


def test_a_network_without_outcomes_has_no_empty_row(sketched: pytest.MonkeyPatch, drawn: Any) -> None:
    for seed in (0, 1):
        for cell in (cell for cell in cells(drawn, seed) if cell.model.label == "CNN-F-1"):
            cell.path.unlink()
    report.write(drawn, finished=False, seconds=1.0, device_name="m")
    text = (drawn.folder / "figure.md").read_text()
    assert "| CNN " in text
    assert "| CNN-F-1 " not in text


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("fails", ["collect", "write_csv", "write_netcdf", "write_json", "section", "summary"])
def test_a_failed_rerun_leaves_all_as_it_was(
    sketched: pytest.MonkeyPatch, drawn: Any, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    report.write(drawn, finished=True, seconds=1.0, device_name="m")
    before = contents(drawn.folder)
    assert {"summary.json", "table.csv", PAGE} <= before.keys()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, fails, full)
    with pytest.raises(OSError, match="No space left"):
        report.write(drawn, finished=True, seconds=2.0, device_name="m")
    assert contents(drawn.folder) == before
    assert not list(drawn.folder.glob(".new-*"))


def test_a_figure_that_fails_loses_no_table(
    sketched: pytest.MonkeyPatch, drawn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    report.write(drawn, finished=True, seconds=1.0, device_name="m")
    with monkeypatch.context() as patch:
        patch.setattr(report, "draw", lambda *_: 1 / 0)
        with pytest.raises(
            NotDrawnError, match=r"has all results, but no figure.png and figure.svg \(ZeroDivisionError: .*command"
        ):
            report.write(drawn, finished=True, seconds=2.0, device_name="m")
    left = contents(drawn.folder)
    assert {"summary.json", "table.csv", "run.json"} <= left.keys()
    assert json.loads(left["run.json"])["seconds"] == 2.0
    assert not {"figure.png", "figure.svg", PAGE} & left.keys(), "those of the run before are not of these tables"
    report.write(drawn, finished=True, seconds=3.0, device_name="m")
    assert {"figure.png", "figure.svg", PAGE} <= contents(drawn.folder).keys()


def test_nothing_to_report_is_said(tiny: Grid, idx_folder: Path, tmp_path: Path) -> None:
    shop = open_workshop(tiny, tmp_path / "figure", tmp_path / "models", "c", data_folder=idx_folder)
    with pytest.raises(ValueError, match="no cell is finished yet"):
        report.write(shop, finished=False, seconds=1.0, device_name="m")


def strong_rows(**shares: float) -> pd.DataFrame:
    """One seed's strong rows of a CNN-F-1 at epsilon 0.1: ``attack__threat`` -> success."""
    made = []
    for name, success in shares.items():
        attack, threat = name.split("__")
        made.append(
            {
                "model": "CNN-F-1",
                "trained": 1,
                "seed": 0,
                "attack": attack.replace("_", "-"),
                "threat": threat,
                "strong": True,
                "epsilon": 0.1,
                "iteration": 1,
                "accuracy": 1 - success,
            }
        )
    return pd.DataFrame(made)


@pytest.mark.parametrize(("square", "holds"), [(0.4, True), (0.7, False)])
def test_black_box_stronger_than_white_box_is_told(square: float, holds: bool) -> None:
    found = table.between_attacks(strong_rows(PGD_100__end_to_end=0.5, PGD_100__first_pass=0.45, Square__end_to_end=square))
    by_name = {finding.name: finding.holds for finding in found}
    assert by_name == {
        "black box at epsilon 0.1 is not stronger than white box through the whole network": holds,
        "first pass at epsilon 0.1 is not stronger than white box through the whole network": True,
    }


def test_every_figure_of_the_paper_is_a_grid() -> None:
    assert set(grids.GRIDS) == {"fig6", "fig7", "fig8a", "fig8b", "fig10", "fig11", "fig12", "fig13", "ablation"}
    for name in grids.GRIDS:
        whole, quick = grids.grid(name), grids.grid(name, quick=True)
        assert len(whole.seeds) >= (3 if name == "ablation" else 4)
        assert not whole.quick
        assert not whole.weaker
        assert quick.quick
        assert quick.weaker
        assert whole.limit is None
        assert 0 in whole.epsilons
        assert {panel.against for panel in whole.panels} <= set(whole.against)
        labels = [model.label for model in whole.models]
        assert len(set(labels)) == len(labels)
        for model in whole.models:
            settings = model.settings(whole, 3)
            assert settings.epochs == (90 if model.adversary else 30)
            assert settings.learning_rate == (1e-4 if model.adversary else 1e-3)
            assert settings.seed == 3
            assert settings.adversary is None or settings.adversary.seed == 3


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ("fig6", "fig8a", "ablation") else pytest.mark.slow) for name in grids.GRIDS],
)
def test_every_finished_grid_has_its_figure_checks_and_claims(name: Any, tmp_path: Path) -> None:
    """With made-up outcomes in place of trained networks: success grows with epsilon, and the CNN-F is ahead by 10 points."""
    grid = grids.grid(name, images=10, strong_images=10, seeds=(0, 1, 2))
    shop = Workshop(grid, tmp_path / "out", tmp_path / "models", None, "hash", None, None, "c")  # type: ignore[arg-type]
    card = {"configuration": {"epochs": 30}, "training_seconds": 1, "validation_accuracy": [0.5], "machine": "none"}
    for seed in grid.seeds:
        for model in grid.models:
            folder = shop.network_folder(model, seed)
            write_json(folder / "card.json", card)
            (folder / "model.safetensors").write_bytes(folder.name.encode())
        report.begin(shop)
        for cell in cells(shop, seed):
            share = [max(0.0, 0.8 - epsilon - (0.1 if not cell.model.iterations else 0)) for epsilon in cell.epsilons]
            n = cell.iterations + 1
            right = np.stack([np.tile(np.arange(10) < 10 * accuracy, (n, 1)) for accuracy in share])
            write_outcome(cell, right)
    folder = report.write(shop, finished=True, seconds=1.0, device_name="none").page.parent
    found = pd.read_csv(folder / "claims.csv")
    assert len(found) == {"ablation": 0, "fig6": 8, "fig11": 3, "fig13": 3, "fig7": 3, "fig12": 3}.get(name, 1)
    ahead = found[found["claim"].str.contains("more robust than CNN")]
    assert (ahead["measured"].str.startswith("+10.0 points")).all()
    checks = json.loads((folder / "checks.json").read_text())["findings"]
    assert checks
    assert all(check["holds"] for check in checks)
    for file in ("figure.svg", "figure.png", "report.html", "table.nc"):
        assert (folder / file).stat().st_size > 0


@pytest.mark.parametrize("name", list(grids.GRIDS))
def test_a_quick_grid_fits_ten_minutes_on_two_cores(name: Any, idx_folder: Path, tmp_path: Path) -> None:
    """By the count of passes: 0.5 ms of one core each, as measured (80 s for an epoch of 55,000 images, three passes each)."""
    grid = grids.grid(name, quick=True)
    shop = Workshop(grid, tmp_path, tmp_path, None, "hash", None, None, "c")  # type: ignore[arg-type]
    assert sum(task.cost for task in tasks(shop)) * 0.0005 <= 2 * 600
    assert sum(isinstance(task, Training) for task in tasks(shop)) == len(grid.models) * len(grid.seeds)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilons": (0.1, -0.1)}, r"epsilons: -0\.1 is not in \[0, 1\]"),
        ({"epsilons": (1.5,)}, r"1\.5 is not in"),
        ({"epsilons": ()}, "at least one"),
        ({"epsilons": (0.1, 0.1)}, "different numbers"),
        ({"seeds": (0, 0)}, "different whole numbers"),
        ({"seeds": (-1,)}, "whole numbers >= 0"),
        ({"images": 0}, "images is 0"),
        ({"limit": 0}, "limit is 0"),
        ({"strong_images": 0}, "strong_images is 0"),
    ],
)
def test_bad_grids(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grids.grid("fig6", **changes)


def test_weaker_attacks_are_not_a_quick_run_and_the_caption_says_so() -> None:
    weaker, whole = grids.grid("fig6", weaker=True, learning_rate=2e-3), grids.grid("fig6")
    assert not weaker.quick
    assert weaker.attacks["Square"].queries < whole.attacks["Square"].queries  # type: ignore[attr-defined]
    assert "fewer steps and queries" in report.caption(weaker)
    assert "learning rate 0.002" in report.caption(weaker)
    assert "fewer" not in report.caption(whole)
    assert "in bfloat16" in report.caption(grids.grid("fig6", amp="bfloat16"))
    assert "bfloat16" not in report.caption(whole)
    assert "Crosses" not in report.caption(grids.grid("fig13"))  # no worst case there


def test_the_papers_recipe_is_the_papers_algorithm_and_is_named() -> None:
    """Algorithm 1 replaces (step 1); Appendix A.4 normalises by the l2 norm; Table 1 sums; B.1 has weights 0.1, 0, 0."""
    paper, tuned = grids.grid("fig6", recipe="paper"), grids.grid("fig6")
    for model in paper.models[1:]:
        settings = model.settings(paper, 0)
        expected = {
            "iterations": model.iterations,
            "target": "input",
            "step": 1.0,
            "match_norm": False,
            "normalisation": "l2",
        }
        assert settings.feedback == expected
        assert settings.losses.configuration() == {"reconstruction": 0.1, "latent": 0.0, "norm": 0.0, "reduction": "sum"}
    cnn = paper.models[0]
    assert cnn.settings(paper, 0) == cnn.settings(tuned, 0)  # one baseline for both
    assert "the paper's recipe (" in report.caption(paper)
    assert "tuned recipe (" in report.caption(tuned)
    assert "paper" not in report.caption(tuned) + tuned.heading
    whole = grids.grid("fig10", recipe="paper")
    assert whole.models[-1].settings(whole, 0).losses.configuration() == {
        "reconstruction": 0.5,
        "latent": 0.5,
        "norm": 0.5,
        "reduction": "sum",
        "norm_loss": 2,
    }
    with pytest.raises(ValueError, match="did you mean 'paper'"):
        grids.grid("fig6", recipe="papers")
    with pytest.raises(ValueError, match="takes no other recipe"):
        grids.grid("ablation", recipe="paper")


def test_a_network_trained_with_a_former_norm_loss_is_not_taken_for_one_of_now(drawn: Any) -> None:
    """Its configuration had no ``norm_loss``; that of networks without the norm loss is what it was."""
    grid = grids.grid("fig10")
    for model in grid.models:
        configuration = model.settings(grid, 0).configuration("hash")
        weights = ("reconstruction", "latent", "norm")
        before = {**configuration, "losses": {name: configuration["losses"][name] for name in weights}}
        assert (before == configuration) == (configuration["losses"]["norm"] == 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experiment": "fig7"}, "experiment: fig7 there, fig12 now"),
        ({"recipe": "paper"}, "recipe: paper there, tuned now"),
        ({"quick": True}, "quick: True there, False now"),
        ({"limit": 500}, "limit: 500 there, 20 now"),
        ({"learning_rate": 0.5}, "learning_rate: 0.5 there"),
        ({"weaker": True}, "weaker: True there, False now"),
        ({"amp": "bfloat16"}, "amp: bfloat16 there, None now"),
        ({"data_hash": "other"}, "data_hash: other there"),
        ({"kind": "compare"}, "holds the results of compare, not of robustness"),
    ],
)
def test_a_folder_of_another_grid_is_refused_before_work(
    change: Any, message: str, drawn: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], idx_folder: Path
) -> None:
    shop = open_workshop(grids.grid("fig12", images=2), tmp_path / "out", tmp_path, "c", data_folder=idx_folder)
    report.begin(shop)
    path = tmp_path / "out" / "run.json"
    run = json.loads(path.read_text())
    run["kind"] = change.pop("kind", run["kind"])
    write_json(path, {**run, "configuration": {**run["configuration"], **change}})
    before = sorted(path.name for path in (tmp_path / "models").iterdir())
    assert command.main(words_of(tmp_path, "--data", idx_folder)) == 1
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == before


def test_a_folder_of_other_files_is_refused(tiny: Grid, idx_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    shop = open_workshop(tiny, tmp_path / "out", tmp_path / "models", "c", data_folder=idx_folder)
    with pytest.raises(ValueError, match="not empty and not the results of this command"):
        report.begin(shop)


def test_tables_are_not_written_while_another_process_writes_them(
    sketched: pytest.MonkeyPatch, drawn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "PATIENCE", 0.1)
    with results.locked(drawn.folder), pytest.raises(OSError, match="another run is writing to"):
        report.write(drawn, finished=True, seconds=1.0, device_name="m")
    assert not (drawn.folder / "table.csv").exists()
    report.write(drawn, finished=True, seconds=1.0, device_name="m")


def test_two_recipes_have_two_folders() -> None:
    names = {
        str(command.default_folder(grids.grid("fig6", quick=quick, recipe=recipe)))
        for quick in (True, False)
        for recipe in grids.RECIPES
    }
    assert names == {f"results/robustness-fig6{words}" for words in ("", "-quick", "-paper", "-paper-quick")}


def test_an_unknown_experiment() -> None:
    with pytest.raises(ValueError, match=r"did you mean .*'fig8a'"):
        grids.grid("fig8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--experiment", "fig9"], "invalid choice"),
        (["--experiment", "fig6", "--epsilons", "-0.1"], "-0.1 is not in [0, 1]"),
        (["--experiment", "fig6", "--epsilons", "1.1"], "1.1 is not in [0, 1]"),
        (["--experiment", "fig6", "--images", "0"], "0 is not above 0"),
        ([], "--experiment"),
    ],
)
def test_usage_errors(words: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--experiment",
        "fig6",
        "--quick",
        "--data",
        str(tmp_path),
        "--output",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    assert command.main(words) == 1
    message = capsys.readouterr().err.strip().splitlines()
    assert message[-1].startswith("error: ")
    assert "FashionMNIST" in message[-1]
    assert not list(tmp_path.iterdir())  # no empty folder of results


def test_the_time_left_is_that_at_the_rate_so_far() -> None:
    assert command.remaining(10, 10, 100, 5) == "time left: not known yet"
    assert command.remaining(10, 40, 100, 30) == "about 60 s left"
    assert command.remaining(0, 10, 100, 60) == "about 9 min left"


def test_a_short_hash_depends_on_content_alone() -> None:
    assert short_hash({"a": 1, "b": (1, 2)}) == short_hash({"b": [1, 2], "a": 1})
    assert short_hash({"a": 1}) != short_hash({"a": 2})


def test_checks_of_an_examination_are_in_the_findings(sketched: pytest.MonkeyPatch, drawn: Any) -> None:
    examination = Examination(drawn, drawn.grid.models[0], 0)
    finding = {"name": "gradients are not zero", "holds": False, "detail": "zero at 50 %"}
    weights = [drawn.weights(drawn.grid.models[0], 0)]
    write_json(examination.path, {"seed": 0, "weights_sha256": weights, "findings": [finding]})
    result = report.write(drawn, finished=True, seconds=1.0, device_name="m")
    assert table.Check("CNN", [0], Finding(**finding)) in result.checks  # type: ignore[arg-type]
    told = report.summary(result)
    assert any("gradients are not zero" in caveat and "upper bound" in caveat for caveat in told.caveats)
