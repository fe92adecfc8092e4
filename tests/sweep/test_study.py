"""A study from its file: what is refused before anything runs, and what it takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import cnnf_brain as cb
from cnnf_brain import cli
from cnnf_brain.sweep import estimate
from cnnf_brain.sweep.cells import K, Score, planned

SMALL = cb.Scoring(components=2, metric=("pls", "cka"))
SITES = cb.Recordings.from_arrays(np.random.default_rng(0).standard_normal((40, 4)), tiny.pictures(40), region="V4")


def study_of(folder: Path, **more: Any) -> cb.Study:
    """Two networks from files of code and the feedback of one of them, in V4."""
    (folder / "net.py").write_text(tiny.FILE)
    if "recordings" not in more:
        more["recordings"] = [str(tiny.recordings(folder / "data"))]
    words = {"networks": [f"{folder}/net.py:net", f"{folder}/net.py:other"], "layers": {"V4": "first"}}
    return cb.Study(**{**words, "baseline": "none", "scoring": SMALL, **more})


def test_the_cells_of_a_study(tmp_path: Path) -> None:
    feedback = {"model": f"{tmp_path}/net.py:feedback", "iterations": [0, 1], "layers": {"V4": ["0", "2"]}}
    study = study_of(tmp_path, networks=[f"{tmp_path}/net.py:net", feedback], baseline=None)  # each network's own first pass
    todo = planned(study, tmp_path / "study")
    assert [type(cell) for cell in todo] == [K] * 2 + [Score] * 6  # a layer of one network, two of the other; two metrics
    assert len({cell.path for cell in todo}) == 8
    assert [str(at) for cell in todo[:2] for at in cell.layers] == ["first@0", "0@0", "0@1", "2@0", "2@1"]  # type: ignore[attr-defined]
    assert not (tmp_path / "study").exists()


def test_what_decides_a_cell_names_it(tmp_path: Path) -> None:
    def names(**more: Any) -> list[str]:
        return [cell.title for cell in planned(study_of(tmp_path, **more), tmp_path)]

    one = names()
    assert names() == one
    more = names(layers={"V4": ["first", "second"]})
    assert [name for name in more if name in one] == [name for name in one if name.startswith("score")]  # K of more layers
    assert not set(names(scoring=cb.Scoring(components=3))) & set(one[2:])
    others = names(recordings=[str(tiny.recordings(tmp_path / "data", seed=1, name="V4.nc"))])
    assert [name in one for name in others] == [True, True] + [False] * 4  # other responses to the same images


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"networks": []}, "networks of a study are"),
        ({"networks": ["vgg99"]}, "vgg99"),
        ({"networks": [{"weights": "none"}]}, "has no model"),
        ({"networks": [{"model": "small", "layer": "x"}]}, "'layer' is not known.*did you mean 'layers'"),
        ({"networks": ["{}/net.py:net", "{}/net.py:net"]}, "two networks of the study are called net.py:net"),
        ({"layers": {"V4": "third"}}, "third"),
        ({"recordings": ["absent.nc"]}, "no such file"),
        ({"scoring": cb.Scoring(components=36)}, "36 components need more"),
        ({"baseline": None, "baseline_weights": "IMAGENET1K_V1"}, "name the network too"),
        ({"iterations": [0, 2]}, "asks for iterations .0, 2., and none of its networks has feedback"),
        ({"networks": [{"model": "torchvision:alexnet", "weights": "none", "iterations": [2]}]}, "runs 0 iterations"),
        (
            {"networks": [tiny.network(iterations=1)], "layers": {"V4": "pool2"}, "iterations": [0, 3]},
            "tiny.* runs 1 iterations, and the study asks for .0, 3.",
        ),
        (
            {"regions": ["V4", "IT"], "layers": "first", "recordings": [SITES]},
            "regions of the study are V4, IT, and its recordings are of V4",
        ),
        (
            {"regions": ["IT"], "layers": "first", "recordings": [SITES]},
            "regions of the study are IT, and its recordings are of V4",
        ),
        ({"regions": "V4", "layers": "first"}, "regions of a study are 'V4', expected a list"),
    ],
)
def test_a_study_is_refused_as_a_whole(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    if "networks" in changed:
        changed = changed | {
            "networks": [one.format(tmp_path) if isinstance(one, str) else one for one in changed["networks"]]
        }
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        cb.sweep(study_of(tmp_path, **changed), tmp_path / "study", progress=False)
    assert not (tmp_path / "study").exists()


TOML = """
recordings = ["{0}/data/V4.nc"]
baseline = "none"
[layers]
V4 = ["first", "second"]
[scoring]
components = 2
metric = ["pls", "rsa"]
[[networks]]
model = "{0}/net.py:net"
[[networks]]
model = "{0}/net.py:other"
layers = {{V4 = "first"}}
name = "mine"
"""


def test_a_study_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study_of(tmp_path)
    path = tmp_path / "study.toml"
    path.write_text(TOML.format(tmp_path))
    study = cb.Study.read(path)
    assert study.scoring.metrics == ("pls", "rsa")
    assert study.named
    assert [one.skeleton.name for one, _ in study.members] == ["net.py:net", "mine"]
    guess = estimate(study, tmp_path / "out", progress=False)
    assert [(name, one.cells, one.done) for name, one in guess.stages.items()] == [("K", 2, 0), ("scores", 6, 0)]
    assert guess.cache == pytest.approx(3 * 8 * 40**2 / 1e9)
    assert guess.scratch == pytest.approx(4 * 40 * (6 * 16 * 16 + 8 * 7 * 7) / 1e9)
    assert cli.main(["sweep", str(path), "--dry-run", "--output", str(tmp_path / "out")]) == 0
    assert "K: 2 cells, 0 of them done; about" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    path.write_text(TOML.format(tmp_path).replace("baseline", "base_line"))
    assert cli.main(["sweep", str(path)]) == 1
    assert "entry 'base_line' is not known" in capsys.readouterr().err
    path.write_text(TOML.format(tmp_path).replace('"second"', "2"))
    assert cli.main(["sweep", str(path)]) == 1
    assert 'layers hold 2, expected a name; write "2"' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["sweep", str(path), "--submit", "somewhere"])


def test_a_dry_run_refuses_the_folder_of_another_study(tmp_path: Path) -> None:
    cb.sweep(study_of(tmp_path), tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match=r"another question \(scoring.components"):
        estimate(
            study_of(tmp_path, scoring=cb.Scoring(components=3, metric=("pls", "cka"))), tmp_path / "out", progress=False
        )


def test_regions_are_those_that_recordings_are_named_for(tmp_path: Path) -> None:
    named = f"V4={tiny.recordings(tmp_path / 'data')}"
    assert study_of(tmp_path, recordings=[named], layers="first").regions_asked == ("V4",)
    assert study_of(tmp_path, recordings=["simulated"], layers="first").regions_asked == ("V4", "IT")
    assert study_of(tmp_path, recordings=["./like=this.nc"], layers="first").regions_asked == ("V4", "IT")


def test_weights_and_subjects_that_change_are_new_cells(tmp_path: Path) -> None:
    network = tiny.network(iterations=1)

    def score(subjects: str) -> list[str]:
        studied = replace(study, recordings=[replace(SITES, subjects=np.array(list(subjects)))])
        return [cell.title for cell in planned(studied, tmp_path) if isinstance(cell, Score)]

    study = study_of(tmp_path, networks=[network], layers={"V4": "pool2"}, scoring=cb.Scoring(components=2))
    one = [cell.title for cell in planned(study, tmp_path)]
    assert [cell.title for cell in planned(study, tmp_path)] == one
    assert score("AABB") == score("AABB") != score("ABAB")
    with torch.no_grad():
        next(network.module.parameters()).mul_(2)
    assert not set(one) & {cell.title for cell in planned(study, tmp_path)}
