"""The paper's sentences as differences: what is decided, what is left out, how a grid's question is answered."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from cnnf_brain.report import readers
from cnnf_brain.robustness import claims, grids, report
from cnnf_brain.robustness.claims import Claim


def rows(**accuracies: list[float]) -> pd.DataFrame:
    """A table of PGD-40 at epsilon 0.1: model -> accuracy of each seed."""
    names = {"cnn": ("CNN", 0), "one": ("CNN-F-1", 1), "five": ("CNN-F-5", 5)}
    made = [
        {
            "model": names[name][0],
            "trained": names[name][1],
            "seed": seed,
            "attack": "PGD-40",
            "threat": "first_pass",
            "strong": False,
            "epsilon": epsilon,
            "iteration": names[name][1],
            "accuracy": value,
        }
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
        for epsilon in (0.0, 0.1)
    ]
    return pd.DataFrame(made)


def test_a_claim_is_decided_by_the_interval_over_seeds() -> None:
    found = rows(cnn=[0.5, 0.4, 0.45], five=[0.6, 0.52, 0.58])
    (claim,) = (c for c in claims.claims(grids.grid("fig6"), found) if "CNN-F-5, PGD-40" in c.claim)
    interval = stats.ttest_rel([60, 52, 58], [50, 40, 45]).confidence_interval(0.95)
    assert claim.holds is True
    assert claim.measured == f"+11.7 points [{interval.low:+.1f}, {interval.high:+.1f}], 3 seeds"
    assert claim.left == ""
    below = rows(cnn=[0.6, 0.52, 0.58], five=[0.5, 0.4, 0.45])
    assert next(c for c in claims.claims(grids.grid("fig6"), below) if "CNN-F-5, PGD-40" in c.claim).holds is False
    unclear = rows(cnn=[0.5, 0.6, 0.4], five=[0.6, 0.4, 0.5])
    assert next(c for c in claims.claims(grids.grid("fig6"), unclear) if "CNN-F-5, PGD-40" in c.claim).holds is None
    two = rows(cnn=[0.5, 0.5], five=[0.9, 0.91])
    claim = next(c for c in claims.claims(grids.grid("fig6"), two) if "CNN-F-5, PGD-40" in c.claim)
    assert claim == Claim(claim.claim, "+40.5 points, 2 seeds", None, main=True)


def test_seeds_that_one_of_the_two_lacks_do_not_count() -> None:
    found = rows(cnn=[0.5, 0.5, 0.5], five=[0.6, 0.6])
    claim = next(c for c in claims.claims(grids.grid("fig6"), found) if "CNN-F-5, PGD-40" in c.claim)
    assert claim.measured == "+10.0 points, 2 seeds"


def test_the_iterations_needed_are_those_of_the_highest_accuracy() -> None:
    """Three seeds, best under FGSM at iterations 1, 1, 1; under PGD-40 at 3, 2, 3, at both epsilons alike."""
    made = []
    for attack, best in (("FGSM", (1, 1, 1)), ("PGD-40", (3, 2, 3))):
        for seed, at in enumerate(best):
            made += [
                {
                    "model": "CNN-F-5",
                    "attack": attack,
                    "seed": seed,
                    "strong": False,
                    "epsilon": epsilon,
                    "iteration": t,
                    "threat": "first_pass",
                    "trained": 5,
                    "accuracy": 0.5 - 0.1 * abs(t - at),
                }
                for epsilon in (0.0, 0.1, 0.2)
                for t in range(5)
            ]
    harder, larger = (c for c in claims.claims(grids.grid("fig13"), pd.DataFrame(made)) if "best iteration" in c.claim)
    assert harder.measured.startswith("+1.7 iterations [")
    assert harder.holds is True
    assert larger.measured == "+0.0 iterations [+0.0, +0.0], 3 seeds"
    assert larger.holds is None


def table_of(at: dict[float, dict[str, list[float]]], attack: str = "PGD-40", **same: Any) -> pd.DataFrame:
    """Epsilon -> model -> accuracy of each seed."""
    names = {"CNN": 0, "CNN-F-5": 5, "CNN, clean + adversarial": 0, "CNN-F-5, clean + adversarial": 5}
    made = [
        {
            "model": model,
            "trained": names[model],
            "seed": seed,
            "attack": attack,
            "threat": "first_pass",
            "strong": False,
            "epsilon": epsilon,
            "iteration": names[model],
            "accuracy": value,
            **same,
        }
        for epsilon, models in at.items()
        for model, values in models.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(made)


def the(words: str, name: str, table: pd.DataFrame, **changes: Any) -> Claim:
    """The one claim of a grid whose words hold ``words``."""
    (claim,) = (c for c in claims.claims(grids.grid(name, **changes), table) if words in c.claim)
    return claim


CLEAR = {"CNN": [0.30, 0.32, 0.31], "CNN-F-5": [0.40, 0.43, 0.41]}
BROKEN = {"CNN": [0.0, 0.01, 0.0], "CNN-F-5": [0.0, 0.0, 0.02]}


def test_epsilons_at_which_every_network_is_broken_are_left_out_of_the_mean() -> None:
    with_floor, without = table_of({0.1: CLEAR, 0.2: BROKEN, 0.3: BROKEN}), table_of({0.1: CLEAR})
    words = "CNN-F is more robust than CNN (CNN-F-5, PGD-40)"
    claim, plain = the(words, "fig6", with_floor), the(words, "fig6", without)
    assert (claim.measured, claim.holds) == (plain.measured, True)
    assert claim.measured.startswith("+10.3 points")  # the mean of 10, 11 and 10
    assert claim.left_out == (0.2, 0.3)
    assert plain.left_out == ()
    assert "without epsilon 0.2, 0.3, where all are below 5 %" in claim.figures
    assert claim.row()["left_out"] == "epsilon 0.2, 0.3"


def test_one_network_above_the_floor_keeps_an_epsilon() -> None:
    half = {"CNN": [0.0, 0.0, 0.0], "CNN-F-5": [0.08, 0.09, 0.1]}
    claim = the("(CNN-F-5, PGD-40)", "fig6", table_of({0.1: CLEAR, 0.2: half}))
    assert claim.left_out == ()
    assert claim.measured.startswith("+9.7 points")  # seeds 9, 10 and 10


def test_a_gain_at_the_floor_does_not_refute_growing_gains() -> None:
    """Gains of 10 points at 0.05, 20 at 0.1; at 0.2 and 0.3 nothing is left of either network."""
    more = {"CNN": [0.10, 0.12, 0.11], "CNN-F-5": [0.30, 0.33, 0.31]}
    claim = the("Larger improvements", "fig6", table_of({0.05: CLEAR, 0.1: more, 0.2: BROKEN, 0.3: BROKEN}))
    assert claim.holds is True
    assert claim.measured.startswith("+10.0 points")
    assert claim.left_out == (0.2, 0.3)
    alone = the("Larger improvements", "fig6", table_of({0.05: CLEAR, 0.2: BROKEN}))
    assert (alone.measured, alone.holds) == ("nothing to compare", None)


def test_a_fall_to_the_floor_is_no_fall_that_could_be_compared() -> None:
    names = {"CNN": "CNN, clean + adversarial", "CNN-F-5": "CNN-F-5, clean + adversarial"}
    at = {
        epsilon: {names[name]: values for name, values in found.items()} for epsilon, found in ((0.3, CLEAR), (0.4, BROKEN))
    }
    claim = the("suffers less", "fig8b", table_of(at))
    assert (claim.measured, claim.holds, claim.left_out) == ("nothing to compare", None, (0.4,))


def test_the_best_iteration_is_not_sought_at_the_floor() -> None:
    parts = [
        table_of({0.1: {"CNN-F-5": [0.4, 0.4, 0.4]}, 0.2: {"CNN-F-5": [0.02, 0.02, 0.02]}}, attack, iteration=t)
        for attack in ("FGSM", "PGD-40")
        for t in range(3)
    ]
    larger = the("Larger epsilon needs more", "fig13", pd.concat(parts))
    assert (larger.measured, larger.holds, larger.left_out) == ("nothing to compare", None, (0.2,))
    assert the("Harder attacks", "fig13", pd.concat(parts)).left_out == (0.2,)


@pytest.mark.parametrize("changes", [{"epochs": 29}, {"limit": 54_999}, {"quick": True}])
def test_less_training_than_the_papers_decides_nothing_about_the_papers_claim(changes: Any) -> None:
    low = {"CNN": CLEAR["CNN-F-5"], "CNN-F-5": CLEAR["CNN"]}
    for table, here, whole in (
        (table_of({0.1: CLEAR}), "as claimed", "holds"),
        (table_of({0.1: low}), "the opposite", "does not hold"),
    ):
        short = the("(CNN-F-5, PGD-40)", "fig6", table, **changes)
        assert short.verdict == f"not tested at the paper's training (here: {here})"
        full = the("(CNN-F-5, PGD-40)", "fig6", table)
        assert full.verdict == whole
        assert full.measured == short.measured


@pytest.mark.parametrize(
    ("name", "epochs", "tested"), [("fig6", 30, True), ("fig7", 30, False), ("fig7", 90, True), ("fig12", 30, False)]
)
def test_adversarial_training_is_longer(name: str, epochs: int, tested: bool) -> None:
    assert grids.grid(name, epochs=epochs).fully_trained is tested


@pytest.mark.parametrize(
    ("holds", "tested", "begins"),
    [
        ([True, True], True, "Yes, in this grid. one: +1; worst case +2. two: +3."),
        ([True, False], True, "No, in this grid. one"),
        ([True, None], True, "Not decided, in this grid. one"),
        ([None, False], True, "No, in this grid. one"),
        (
            [True, True],
            False,
            "Yes, in this grid. Trained for less than the paper's networks, so that the paper's claim is not",
        ),
    ],
)
def test_the_answer_is_that_of_the_claims_that_answer_the_question(holds: Any, tested: bool, begins: str) -> None:
    claimed = [
        Claim("beside the question", "-9", False, tested=tested),
        Claim("one", "+1", holds[0], "+2", main=True, tested=tested),
        Claim("two", "+3", holds[1], main=True, tested=tested),
    ]
    assert claims.answer(claimed).startswith(begins)
    assert "beside" not in claims.answer(claimed)


def test_a_grid_without_a_claim_has_no_answer() -> None:
    assert claims.answer([]) == "No claim of the paper belongs to this question; see the tables."


QUESTIONS = {
    "fig6": ["CNN-F is more robust than CNN (CNN-F-5, PGD-40)"],
    "fig7": [
        "Trained on both, CNN-F-5 is better than CNN on clean images",
        "Trained on both, CNN-F-5 is better than CNN on adversarial images (PGD-40)",
    ],
    "fig13": ["Harder attacks need more iterations (best iteration at test under PGD-40 over that under FGSM)"],
}


@pytest.mark.parametrize("name", list(QUESTIONS))
def test_the_page_answers_its_own_question(name: Any, tmp_path: Path) -> None:
    """summary.json and the page made of it: the answer is of the main claims, each verdict stands beside its claim."""
    shown = {
        "CNN": CLEAR["CNN"],
        "CNN-F-5": CLEAR["CNN-F-5"],
        "CNN, clean + adversarial": CLEAR["CNN"],
        "CNN-F-5, clean + adversarial": CLEAR["CNN-F-5"],
    }
    parts = [table_of({0.0: shown, 0.1: shown}, attack) for attack in ("FGSM", "PGD-40")]
    grid = grids.grid(name, epochs=2)
    claimed = claims.claims(grid, pd.concat(parts))
    assert [claim.claim for claim in claimed if claim.main] == QUESTIONS[name]
    empty = pd.DataFrame()
    told = report.summary(report.Result(grid, {"finished": True}, empty, empty, claimed, [], tmp_path))
    assert [told.answer.count(claim.claim) for claim in claimed] == [int(claim.main) for claim in claimed]
    replace(told, tables={}, charts=[], pictures={}).save(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"same": {}}))
    (rows,) = readers.read(tmp_path).tables
    assert [row[2] for row in rows.rows] == [claim.verdict for claim in claimed]
    text = readers.leave(tmp_path).read_text()
    assert "not tested at the paper&#39;s training" in text
    assert "does not hold" not in text
