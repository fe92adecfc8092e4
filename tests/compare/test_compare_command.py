"""The command end to end, on recordings and networks so small that a run takes a second."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import pickle
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import tiny
import torch
import xarray as xr
from PIL import Image
from sklearn.cross_decomposition import PLSRegression

import cnnf_brain
from cnnf_brain import activations, networks
from cnnf_brain.compare import __main__ as command
from cnnf_brain.compare import comparison as report
from cnnf_brain.compare.__main__ import Options, decide, main
from cnnf_brain.compare.choice import choose
from cnnf_brain.compare.layers import RegionAsked, asked_layers
from cnnf_brain.model import zoo
from cnnf_brain.predictivity.crossval import make_splits
from cnnf_brain.recordings import majaj, read_assembly
from cnnf_brain.scratch import Scratch
from cnnf_brain.types import LayerAt

COMPONENTS = 4


class World:
    """A folder with networks and recordings, and the command run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.v4, self.it = folder, folder / "v4" / "V4.nc", folder / "it" / "IT.nc"

    @classmethod
    def new(cls, folder: Path) -> World:
        (folder / "nets.py").write_text(tiny.FILE)
        tiny.recordings(folder / "v4", "V4", n_repeats=4, constant=1)
        tiny.recordings(folder / "it", "IT", n_images=60, n_sites=8, seed=1, image_seed=1)
        return cls(folder)

    def model(self, name: str) -> str:
        return f"{self.folder}/nets.py:{name}"

    def words(self, *more: Any, regions: bool = True, recordings: bool = True) -> list[str]:
        """A command line: the CNN-F of the file, its own first pass as the baseline, unless ``more`` says otherwise."""
        words = [str(word) for word in more]
        given = {
            "--layers": ["V4", "IT"],
            "--recordings": [f"V4={self.v4}", f"IT={self.it}"],
            "--model": [self.model("feedback")],
            "--components": [str(COMPONENTS)],
            "--output": [str(self.folder / "out")],
        }
        return words + [w for flag, values in given.items() if flag not in words for w in (flag, *values)]

    def run(self, *more: Any) -> int:
        return main(self.words(*more))

    def summary(self, out: str = "out") -> dict[str, Any]:
        return json.loads((self.folder / out / "summary.json").read_text())

    def entries(self, out: str = "out") -> list[dict[str, Any]]:
        return self.summary(out)["evaluations"]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.new(tmp_path_factory.mktemp("untouched"))


@pytest.fixture
def world(untouched: World, tmp_path: Path, sketched: pytest.MonkeyPatch) -> World:
    """A world for one test, and figures are not drawn in it."""
    shutil.copytree(untouched.folder, tmp_path, dirs_exist_ok=True)
    return World(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world in which the command has run once; ``said`` is what it printed."""
    made = World.new(tmp_path_factory.mktemp("world"))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert made.run() == 0
    made.said = said.getvalue()  # type: ignore[attr-defined]
    return made


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the first images through a network are a failure: errors come before long work."""
    extract = activations.extract

    def first_images(model: Any, batch: Any, layers: Any, *name: Any) -> Any:
        assert len(batch) <= activations.PROBED, "long work has started"
        return extract(model, batch, layers, *name)

    monkeypatch.setattr(activations, "extract", first_images)
    monkeypatch.setattr(Scratch, "append", lambda *a: pytest.fail("long work has started"))


def rows_of(table: str) -> list[list[str]]:
    """The cells of a Markdown table, head first."""
    lines = [line for line in table.splitlines() if line.startswith("|") and not line.startswith("|-")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# A run that works


def test_all_files_are_there_and_nothing_else(finished: World) -> None:
    assert sorted(os.listdir(finished.folder / "out")) == sorted(report.FILES)


def test_the_first_line_says_what_was_taken(finished: World) -> None:
    first = finished.said.splitlines()[0]  # type: ignore[attr-defined]
    assert first.startswith(
        f"recordings V4={finished.v4} IT={finished.it}; model nets.py:feedback (1 iterations) [as built], "
    )
    assert "feedback untrained; baseline its own first pass (as named)" in first
    assert "SIMULATED" not in finished.said  # type: ignore[attr-defined]


def test_rows_are_regions_baseline_first_then_iterations(finished: World) -> None:
    found = [(e["region"], e["role"], e["layer"]) for e in finished.entries()]
    assert found == [
        ("V4", "baseline", "2@0"),
        ("V4", "model", "2@1"),
        ("IT", "baseline", "4@0"),
        ("IT", "model", "4@1"),
    ]


def test_the_summary_is_as_documented(finished: World) -> None:
    content = finished.summary()
    documented = (Path(__file__).parents[2] / "docs" / "compare.md").read_text()
    names = set(content) | {name for e in content["evaluations"] for name in e}
    names |= {name for e in content["evaluations"] for test in e.get("tests", []) for name in test}
    names |= set(json.loads((finished.folder / "out" / "run.json").read_text()))
    scores = tiny.scores(finished.folder / "out" / "scores.nc")
    names |= set(scores.variables) | set(scores.dims) | set(scores.attrs)
    missing = sorted(name for name in names if f"`{name}`" not in documented)
    assert not missing, f"not in docs/compare.md: {missing}"
    assert content["schema"] == report.SCHEMA
    assert content["simulated"] is False
    assert set(content["family_size"].values()) == {2}
    v4, it = content["evaluations"][1], content["evaluations"][3]
    assert (v4["images"], v4["sites"]) == (40, 6)
    assert (it["images"], it["sites"]) == (60, 8)
    assert v4["excluded_sites"] == ["site6 (constant)"]
    assert v4["baseline_layer"] == "2@0"
    assert 0 < v4["ceiling"] <= 1
    assert it["ceiling"] is None
    assert it["r2/ceiling"] is None
    assert [t["valid"] for t in v4["tests"]] == [True, True, False, False, False], "valid tests first"


def oracle(path: Path, region: str, layer: str, model: cnnf_brain.CNNF) -> npt.NDArray[Any]:
    """(n_splits, n_sites) r: features of one direct call, scikit-learn's PLS run to convergence, numpy's r."""
    recordings = read_assembly(path, region)
    n = len(recordings.images)
    from cnnf_brain.images import Preprocessing

    batch = torch.stack([Preprocessing(16)(recordings.images.decode(i)) for i in range(n)])
    at = LayerAt.parse(layer)
    with torch.inference_mode():
        X = model.eval().unroll(batch, return_layers=[at]).layers[at].flatten(1).double().numpy()
    Y = recordings.responses
    r = []
    for split in make_splits("kfold", recordings.images.ids):
        pls = PLSRegression(COMPONENTS, scale=False, max_iter=20000, tol=1e-14).fit(X[split.train], Y[split.train])
        predicted = pls.predict(X[split.test])
        r.append([np.corrcoef(p, y)[0, 1] for p, y in zip(predicted.T, Y[split.test].T, strict=True)])
    return np.array(r)


def test_scores_are_those_of_scikit_learn_on_the_features_of_a_direct_call(finished: World) -> None:
    scope: dict[str, Any] = {}
    exec(tiny.FILE, scope)  # the same file that the command ran
    entries = {(e["region"], e["layer"]): e for e in finished.entries()}
    scores = tiny.scores(finished.folder / "out" / "scores.nc")
    for path, region, layer in (
        (finished.v4, "V4", "2@0"),
        (finished.v4, "V4", "2@1"),
        (finished.it, "IT", "4@1"),
    ):
        r = oracle(path, region, layer, scope["feedback"]())
        mine = scores.r[(scores.region == region).values & (scores.layer == layer).values].values.T
        assert np.abs(mine - r).max() < 2e-3, "float32 features, folds of four images"
        assert entries[region, layer]["median_r"] == pytest.approx(np.median(r.mean(axis=0)), abs=1e-3)


def test_the_sites_of_these_tests_can_be_predicted(finished: World) -> None:
    assert max(e["median_r"] for e in finished.entries()) > 0.2


def test_the_table_shows_the_summarys_numbers(finished: World) -> None:
    text = (finished.folder / "out" / "table.md").read_text()
    assert text.split("\n", 2)[2].strip() in finished.said  # type: ignore[attr-defined]
    head, *rows = rows_of(text)
    assert len(rows) == 4
    for row, e in zip(rows, finished.entries(), strict=True):
        cells = dict(zip(head, row, strict=True))
        assert (cells["region"], f"{cells['layer']}@{cells['it']}") == (e["region"], e["layer"])
        low, high = e["median_r_interval"]
        assert cells["median r [95%]"] == f"{e['median_r']:.3f} [{low:.3f}, {high:.3f}]"
        assert cells["pooled r"] == f"{e['median_r_pooled_predictions']:.3f}"
        assert cells["ceiling"] == ("" if e["ceiling"] is None else f"{e['ceiling']:.3f}")
        if e["role"] == "baseline":
            assert cells["difference [95%]"] == "baseline"
        else:
            low, high = e["difference_interval"]
            assert cells["difference [95%]"] == f"{e['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
            tests = {t["name"]: t for t in e["tests"]}
            assert [low, high] == tests["permutation over images"]["interval"], "of new images, not of new sites"
            assert cells["permutation p"] == f"{tests['permutation over images']['p_holm']:.2g}"
            welch = tests["Welch over folds (the paper's)"]
            assert cells["Welch p ⚠"] == f"{welch['p_holm']:.2g}; t({welch['df']:.1f}) = {welch['statistic']:.2f}"
            assert not any("Wilcoxon" in name or "sites" in name for name in head), "they stand in summary.json"
    assert "1 site was excluded: V4 of V4.nc: site6 (constant)." in text
    assert "Folds hold fewer than 20 test images" in text


def test_differences_are_those_of_the_sites(finished: World) -> None:
    scores = tiny.scores(finished.folder / "out" / "scores.nc")
    for region, baseline, model in (("V4", "2@0", "2@1"), ("IT", "4@0", "4@1")):
        r = {
            layer: scores.r[(scores.region == region).values & (scores.layer == layer).values].values
            for layer in (baseline, model)
        }
        d = (r[model] - r[baseline]).mean(axis=1)
        (entry,) = [e for e in finished.entries() if e["region"] == region and e["role"] == "model"]
        assert entry["difference"] == pytest.approx(np.median(d), abs=1e-12)


def test_the_run_can_be_done_again_from_its_description(finished: World) -> None:
    run = json.loads((finished.folder / "out" / "run.json").read_text())
    assert run["options"]["model"] == [finished.model("feedback")]
    assert run["options"]["seed"] == 0
    (network,) = run["networks"]
    assert network["settings"]["match_norm"] is True
    assert network["feedback"] == "feedback untrained"
    assert re.fullmatch(r"[0-9a-f]{64}", network["sha256"])
    assert run["versions"]["torch"] == importlib.metadata.version("torch")
    assert {r["region"]: (r["images"], r["sites"]) for r in run["recordings"]} == {"V4": (40, 6), "IT": (60, 8)}
    assert run["seconds"] >= 0
    assert run["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", run["commit"])


def test_the_same_command_again_gives_the_same_bytes_from_the_cache(
    finished: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: (finished.folder / "out" / name).read_bytes() for name in report.FILES}
    monkeypatch.setattr(Scratch, "append", lambda *a: pytest.fail("computed again"))
    assert finished.run() == 0
    assert capsys.readouterr().out == finished.said  # type: ignore[attr-defined]
    for name in ("summary.json", "table.md", "figure.svg"):
        assert (finished.folder / "out" / name).read_bytes() == before[name], name


# What may be asked for


def layers_of(world: World) -> list[tuple[str, str, str]]:
    return [(e["region"], e["role"], e["layer"]) for e in world.entries()]


def test_explicit_layers_and_iterations(world: World) -> None:
    assert world.run("--layers", "V4=0", "V4=2@1", "IT=1@0:feedback", "--iterations", 0, 1) == 0
    assert layers_of(world) == [
        ("V4", "baseline", "0@0"),
        ("V4", "baseline", "2@0"),
        ("V4", "model", "0@1"),
        ("V4", "model", "2@1"),
        ("IT", "baseline", "1@0"),
        ("IT", "model", "1@0:feedback"),
    ]
    assert [e["baseline_layer"] for e in world.entries() if e["role"] == "model"] == ["0@0", "2@0", "1@0"]
    feedback = rows_of((world.folder / "out" / "table.md").read_text())[-1]
    assert feedback[4:6] == ["1 feedback", "0"]


def test_nested_choice(world: World) -> None:
    words = ["--layers", "V4=0", "V4=2", "--recordings", world.v4, "--iterations", 0, 1]
    assert world.run(*words, "--select", "nested") == 0
    assert layers_of(world) == [("V4", "baseline", "nested"), ("V4", "model", "nested")]
    base, model = world.entries()
    assert len(model["chosen"]) == 10
    assert model["role"] == "model"
    assert set(model["chosen"]) <= {"0@0", "0@1", "2@0", "2@1"}
    assert set(base["chosen"]) <= {"0@0", "2@0"}
    assert "nested: in each split" in (world.folder / "out" / "table.md").read_text()
    scores = tiny.scores(world.folder / "out" / "scores.nc")
    nested = scores.r[scores.role == "model"].values
    assert world.run(*words, "--output", world.folder / "each") == 0
    scores = tiny.scores(world.folder / "each" / "scores.nc")
    for split, layer in enumerate(model["chosen"]):  # of each split the scores of what was chosen there
        rows = np.flatnonzero(scores.layer == layer)[:6]
        assert np.allclose(scores.r.values[rows, split], nested[:, split], atol=1e-9)


def test_several_sources_are_scored_apart_and_pooled(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    second = tiny.recordings(world.folder / "second", "V4", n_sites=5, seed=7, image_seed=7, constant=2)
    assert world.run("--layers", "V4", "--recordings", f"V4={world.v4}", f"V4={second}") == 0
    entries = world.entries()
    assert [(e["source"].split("/")[-2:], e["role"]) for e in entries] == [
        (["v4", "V4.nc"], "baseline"),
        (["v4", "V4.nc"], "model"),
        (["second", "V4.nc"], "baseline"),
        (["second", "V4.nc"], "model"),
        (["pooled"], "baseline"),
        (["pooled"], "model"),
    ]
    assert [e["sites"] for e in entries] == [6, 6, 5, 5, 11, 11]
    assert entries[5]["images"] == 80
    assert entries[5]["ceiling"] is None, "the second source has no repeats"
    scores = tiny.scores(world.folder / "out" / "scores.nc")
    apart = scores.r[((scores.source != "pooled") & (scores.role == "model")).values].values
    pooled = scores.r[((scores.source == "pooled") & (scores.role == "model")).values].values
    assert np.array_equal(apart, pooled)
    assert entries[5]["median_r"] == pytest.approx(np.median(pooled.mean(axis=1)), abs=1e-12)
    assert set(world.summary()["family_size"].values()) == {3}
    printed = rows_of(capsys.readouterr().out)
    assert [row[1] for row in printed[1:]] == ["v4/V4.nc"] * 2 + ["second/V4.nc"] * 2 + ["pooled"] * 2
    assert "3 sites were excluded" in (world.folder / "out" / "table.md").read_text()


@pytest.mark.parametrize("more", [["--per-site"], ["--splits", "brainscore"], ["--pca", "6"], ["--unit-norm"]])
def test_other_ways_to_score_give_other_numbers(world: World, finished: World, more: list[str]) -> None:
    assert world.run(*more) == 0
    for mine, usual in zip(world.entries(), finished.entries(), strict=True):
        assert mine["layer"] == usual["layer"]
        assert abs(mine["median_r"] - usual["median_r"]) > 1e-6
    notes = (world.folder / "out" / "table.md").read_text()
    told = {"--per-site": "one PLS model per site", "--splits": "shuffle splits", "--pca": "6 principal"}
    assert {**told, "--unit-norm": "scaled to norm 1"}[more[0]] in notes


def test_pca_that_keeps_everything_changes_nothing(world: World, finished: World) -> None:
    assert world.run("--pca", "1000") == 0
    found = [e["median_r"] for e in world.entries()]
    assert found == pytest.approx([e["median_r"] for e in finished.entries()], abs=1e-6)


def test_a_baseline_of_another_architecture(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    baseline = ["--baseline", world.model("net")]
    assert world.run(*baseline) == 0, "its own layers for the regions"
    assert [(e["layer"], e.get("baseline_layer")) for e in world.entries()] == [
        ("first@0", None),
        ("2@0", "first@0"),
        ("2@1", "first@0"),
        ("second@0", None),
        ("4@0", "second@0"),
        ("4@1", "second@0"),
    ]
    assert world.run(*baseline, "--baseline-layers", "V4=act", "IT=act", "--output", world.folder / "act") == 0
    assert {e["layer"] for e in world.entries("act") if e["role"] == "baseline"} == {"act@0"}
    assert world.run(*baseline, "--layers", "V4=0", "--recordings", world.v4, "--baseline-layers", "V4=conv") == 1
    assert "layer 'conv' is not known in Net" in capsys.readouterr().err


def test_a_baseline_without_a_layer_of_that_name_must_be_told(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    resnet = world.folder / "resnet.pth"
    torch.save({}, resnet)
    plain = world.folder / "plain.py"
    plain.write_text("from torch import nn\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 4, 3))\n")
    assert world.run("--baseline", f"{plain}:net", "--layers", "V4=2", "--recordings", world.v4) == 1
    assert "has no layer '2'; name the one to compare with for region V4 (baseline layers)" in capsys.readouterr().err


def test_several_layers_of_the_baseline_are_all_compared_with(world: World) -> None:
    second = tiny.recordings(world.folder / "second", "V4", n_sites=5, seed=7, image_seed=7)
    words = ["--layers", "V4=2@1", "--recordings", world.v4, second, "--baseline-layers", "V4=0", "V4=1"]
    assert world.run(*words) == 0
    scores = tiny.scores(world.folder / "out" / "scores.nc")

    def r(source: str, layer: str) -> npt.NDArray[Any]:
        return scores.r[((scores.source == source) & (scores.layer == layer)).values].values

    models = [e for e in world.entries() if e["role"] == "model"]
    sources = [str(world.v4), str(second), "pooled"]
    assert [(e["source"], e["baseline_layer"]) for e in models] == [(s, layer) for s in sources for layer in ("0@0", "1@0")]
    for e in models:
        model = r(e["source"], "2@1")[: e["sites"]]  # it stands in two rows, one for each difference
        d = (model - r(e["source"], e["baseline_layer"])).mean(axis=1)
        assert e["difference"] == pytest.approx(np.median(d), abs=1e-12)
    assert all(a["difference"] != b["difference"] for a, b in zip(models[::2], models[1::2], strict=True))


def test_identical_networks_differ_by_nothing(world: World) -> None:
    words = ["--model", world.model("net"), "--baseline", world.model("same")]
    assert world.run(*words) == 0
    models = [e for e in world.entries() if e["role"] == "model"]
    assert len(models) == 2
    for e in models:
        assert (e["difference"], e["difference_interval"]) == (0, [0, 0])
        assert [t["p"] for t in e["tests"]] == [1.0] * 5
        assert [t["p_holm"] for t in e["tests"]] == [1.0] * 5
        assert e["difference_interval_over_sites"] == [0, 0]


def test_the_paper_s_baseline_is_what_training_started_from(world: World, sketched: pytest.MonkeyPatch) -> None:
    """The card names it; the trained weights' own first pass stands beside as a control."""
    sketched.undo()
    words = ["--model", "small", "--layers", "V4", "--recordings", world.v4]
    assert world.run(*words) == 0
    entries = world.entries()
    assert [(e["role"], e["network"], e["layer"], e["weights"]) for e in entries] == [
        ("baseline", "small CNN", "pool2@0", "shipped, Fashion-MNIST"),
        ("control", "small CNN-F (feedback trained)", "pool2@0", "shipped, Fashion-MNIST"),
        ("model", "small CNN-F (feedback trained)", "pool2@1", "shipped, Fashion-MNIST"),
        ("model", "small CNN-F (feedback trained)", "pool2@2", "shipped, Fashion-MNIST"),
    ]
    assert [a["iteration"] for a in world.summary()["accuracy"]] == [0, 0, 1, 2]
    table = (world.folder / "out" / "table.md").read_text()
    assert "small CNN-F (feedback trained), control" in table
    head, *rows = rows_of(table)
    cards = [json.loads(Path(zoo.shipped_weights(feedback)).with_suffix(".json").read_text()) for feedback in (False, True)]
    shares = [share for card in cards for share in card["validation_accuracy"]]
    assert [row[head.index("top-1")] for row in rows] == [f"{100 * share:.2f} %" for share in shares]
    assert ">top-1 accuracy</text>" in (world.folder / "out" / "figure.svg").read_text()


def validation_images(root: Path, classes: int) -> Path:
    generator = np.random.default_rng(0)
    for number in range(2 * classes):
        path = root / "val" / f"n{number % classes:08d}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    return root


def test_top_1_is_measured_on_validation_images(world: World) -> None:
    root = validation_images(world.folder / "images", 12)
    assert world.run("--layers", "V4", "--recordings", world.v4, "--validation", root) == 0
    network = networks.load_network(world.model("feedback"), device="cpu")
    files = sorted((root / "val").rglob("*.png"))
    x = torch.stack([network.preprocessing(Image.open(file)) for file in files])
    with torch.no_grad():
        predicted = [network.module(x, iterations=t).argmax(1) for t in (0, 1)]
    labels = torch.tensor([int(file.parent.name[1:]) for file in files])
    expected = [float((guess == labels).float().mean()) for guess in predicted]
    assert [a["top1"] for a in world.summary()["accuracy"]] == pytest.approx(expected, abs=1e-6)


def test_validation_images_of_other_classes_are_found_before_long_work(
    world: World, no_work: None, capsys: pytest.CaptureFixture[str]
) -> None:
    root = validation_images(world.folder / "images", 3)
    assert world.run("--layers", "V4", "--recordings", world.v4, "--validation", root) == 1
    assert re.search(r"error: .*12 .*3 classes", capsys.readouterr().err)
    assert not (world.folder / "out").exists()


def test_a_network_alone_is_scored_without_a_baseline(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["--model", world.model("net")], ["--baseline", "none"]):
        assert world.run(*more, "--output", world.folder / more[0]) == 0
        assert not any("difference" in e for e in world.entries(more[0]))
        assert {e["role"] for e in world.entries(more[0])} <= {"model", "control"}
        assert "difference" not in rows_of((world.folder / more[0] / "table.md").read_text())[0]
        assert "stands alone" in (world.folder / more[0] / "report.html").read_text()


@pytest.mark.parametrize("words", [["--iterations", 0], ["--layers", "V4=pool2@0"], ["--weights", "CNN"]])
def test_the_first_line_names_no_baseline_where_none_is_used(
    world: World, capsys: pytest.CaptureFixture[str], words: Any
) -> None:
    words = [zoo.shipped_weights(False) if word == "CNN" else word for word in words]
    more = [] if "--layers" in words else ["--layers", "V4"]
    assert world.run("--model", "small", *words, *more, "--recordings", world.v4) == 0
    said = capsys.readouterr().out
    if "@0" in str(words) or 0 in words:  # the CNN-F's own first pass is another network than the shipped CNN
        assert ("no baseline" in said.splitlines()[0]) == all("difference" not in e for e in world.entries())
    else:
        assert "no baseline (one network alone)" in said.splitlines()[0]
        assert not any("difference" in e for e in world.entries())


def test_several_models_against_one_baseline(world: World) -> None:
    words = ["--model", world.model("net"), world.model("louder"), "--baseline", world.model("other"), "--layers", "V4"]
    assert world.run(*words, "--recordings", world.v4) == 0
    assert [(e["role"], e["network"], "difference" in e) for e in world.entries()] == [
        ("baseline", "nets.py:other", False),
        ("model", "nets.py:net", True),
        ("model", "nets.py:louder", True),
    ]
    assert set(world.summary()["family_size"].values()) == {2}


def test_random_weights_are_the_control_for_trained_ones(world: World) -> None:
    words = ["--model", "small", "small", "--weights", zoo.shipped_weights(True), "none", "--layers", "V4=pool2@0"]
    assert world.run(*words, "--recordings", world.v4) == 0
    assert [(e["role"], e["weights"]) for e in world.entries()][1:] == [
        ("model", zoo.shipped_weights(True)),
        ("model", "random, seed 0"),
    ]


def test_untrained_feedback_says_so_in_the_first_line_each_row_and_the_page(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = world.folder / "plain.safetensors"
    torch.manual_seed(0)
    safetensors.torch.save_file(cnnf_brain.small_net().state_dict(), weights)
    assert world.run("--model", "small", "--weights", weights, "--layers", "V4", "--recordings", world.v4) == 0
    said = capsys.readouterr().out
    assert "feedback untrained" in said.splitlines()[0]
    head, *rows = rows_of(said)
    assert all("feedback untrained" in row[head.index("network")] for row in rows[1:])
    assert "FEEDBACK UNTRAINED" in said
    assert "FEEDBACK UNTRAINED" in (world.folder / "out" / "report.html").read_text()


def test_more_iterations_than_were_trained_say_so(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "small", "--iterations", 0, 4, "--layers", "V4", "--recordings", world.v4]
    assert world.run(*words) == 0
    said = capsys.readouterr().out
    assert "feedback trained for 2 iterations" in said.splitlines()[0]
    assert "Feedback runs for more iterations than it was trained for: small CNN-F" in said
    assert "small CNN-F (feedback trained for 2 iterations)" in {e["network"] for e in world.entries()}


def test_maps_that_grow_are_said(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "small", "--no-match-norm", "--step-size", 1e6, "--layers", "V4=input@1", "--recordings", world.v4]
    assert world.run(*words) == 0
    assert re.search(
        r"input@1: maps are \S+ times as large as in the first pass, so that a few images", capsys.readouterr().out
    )


def test_two_questions_do_not_share_a_folder(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.run("--seed", 0) == 0
    before = {path.name: path.read_bytes() for path in (world.folder / "out").iterdir()}
    assert world.run("--seed", 1) == 1
    assert "holds the results of another question (options.seed: 0 there, 1 now)" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (world.folder / "out").iterdir()} == before
    tiny.recordings(world.folder / "v4", "V4", n_repeats=4, constant=1, seed=5)  # other data under the same name
    assert world.run("--seed", 0) == 1
    assert "another question (recordings" in capsys.readouterr().err


def test_without_output_the_folder_is_under_results(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world.folder)
    words = world.words("--layers", "V4", "--recordings", world.v4)
    words = words[: words.index("--output")]
    assert main(words) == 0
    (folder,) = (world.folder / "results").iterdir()
    assert folder.name.startswith("nets-feedback-")
    assert f"written to results/{folder.name}" in capsys.readouterr().out
    assert main(words) == 0
    assert list((world.folder / "results").iterdir()) == [folder], "the same question, the same folder"


def test_the_headless_network_says_so(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    from torchvision import models

    torch.manual_seed(0)
    state = {k: v for k, v in models.alexnet(weights=None).state_dict().items() if k.startswith("features.")}
    path = world.folder / "features.safetensors"
    safetensors.torch.save_file(state, path)
    words = ["--model", "alexnet", "--weights", path, "--baseline-weights", path, "--image-size", 64, "--iterations", 0, 1]
    assert world.run(*words, "--layers", "V4", "--recordings", world.v4) == 0
    assert re.search(r"alexnet CNN-F \[.*features.safetensors\] is headless", capsys.readouterr().out)
    assert layers_of(world) == [("V4", "baseline", "features.7@0"), ("V4", "model", "features.7@1")]


# Simulated recordings


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World.new(tmp_path_factory.mktemp("simulated"))
    words = ["--layers", "V4", "--recordings", "simulated", "--model", made.model("net")]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert made.run(*words, "--baseline", made.model("other")) == 0
    made.said = said.getvalue()  # type: ignore[attr-defined]
    return made


def test_simulated_results_are_labelled_everywhere(simulated: World) -> None:
    first, *rest = simulated.said.splitlines()  # type: ignore[attr-defined]
    assert first.startswith("SIMULATED recordings simulated; model")
    assert any("SIMULATED recordings: the sites are computed, not measured" in line for line in rest)
    assert simulated.summary()["simulated"] is True
    assert all(e["simulated"] for e in simulated.entries())
    out = simulated.folder / "out"
    assert "SIMULATED" in (out / "table.md").read_text()
    assert all("simulated" in row[1] for row in rows_of((out / "table.md").read_text())[1:])
    assert ">SIMULATED recordings</text>" in (out / "figure.svg").read_text()
    assert json.loads((out / "run.json").read_text())["simulated"] is True
    scores = tiny.scores(out / "scores.nc")
    assert scores.attrs["simulated"] == 1
    assert (scores.simulated == 1).all()


def test_simulated_sites_have_ceilings(simulated: World) -> None:
    text = (simulated.folder / "out" / "table.md").read_text()
    assert {"ceiling", "r²/c", "(r/c)²"} <= set(rows_of(text)[0])
    for e in simulated.entries():
        assert e["ceiling"] is not None
        assert e["r2/ceiling"] == pytest.approx(e["brainscore_r"] ** 2 / e["ceiling"], rel=1e-9)
        assert e["(r/ceiling)2"] == pytest.approx((e["brainscore_r"] / e["ceiling"]) ** 2, rel=1e-9)


# auto


@pytest.fixture
def hanging() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture(params=["closed", "hanging"])
def offline(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither recordings nor weights are in a cache, and no host answers."""
    address = "http://127.0.0.1:9" if request.param == "closed" else request.getfixturevalue("hanging")
    monkeypatch.setattr(majaj, "BASE_URL", address)
    monkeypatch.setattr(majaj, "majaj_cached", lambda: False)
    monkeypatch.setattr(majaj.importlib.util, "find_spec", lambda name: object())  # type: ignore[attr-defined]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    entry = type("Entry", (), {"url": f"{address}/vgg16-397923af.pth", "meta": {}})
    monkeypatch.setattr(networks.weight_files, "published_entry", lambda arch, name: entry)  # type: ignore[attr-defined]


def test_auto_decides_offline_within_five_seconds(offline: None) -> None:
    start = time.monotonic()
    options, why = decide(Options())
    assert time.monotonic() - start < 5
    assert options.recordings == ("simulated",)
    assert options.model == ("small",)
    assert "auto fell to the simulated recordings: MajajHong2015.public is not in the cache and cannot be downloaded" in why
    choice = command.choose_networks(options)
    assert command.headline(options, choice, command.asked(options, *choice.skeletons), why).startswith(
        "SIMULATED recordings simulated; model small CNN-F [shipped, Fashion-MNIST], feedback trained; "
        "baseline small CNN [shipped, Fashion-MNIST] (auto fell"
    )


def test_auto_without_weights_falls_back_as_well(offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "public_available", lambda: (True, "MajajHong2015.public is in the cache"))
    start = time.monotonic()
    options, why = decide(Options())
    assert time.monotonic() - start < 5
    assert options.recordings == ("simulated",)
    assert "vgg16 weights IMAGENET1K_V1 are not in the cache and cannot be downloaded" in why


@pytest.mark.parametrize("more", [{"model": ("alexnet",)}, {"weights": ("mine.safetensors",)}])
def test_auto_needs_no_published_weights_where_others_are_named(
    offline: None, monkeypatch: pytest.MonkeyPatch, more: Any
) -> None:
    monkeypatch.setattr(command, "public_available", lambda: (True, "MajajHong2015.public can be downloaded (237 MB)"))
    options, why = decide(Options(**more))
    assert options.recordings == ("MajajHong2015.public",)
    assert options.model == more.get("model", ("vgg16",))
    assert why == "auto: MajajHong2015.public can be downloaded (237 MB)"


def test_the_card_names_the_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    for recordings, expected in (("simulated", "small"), ("mine.nc", "small")):
        options = Options(weights=(zoo.shipped_weights(True),), recordings=(recordings,))
        assert decide(options)[0].model == (expected,)


def test_auto_takes_the_public_recordings_where_both_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "public_available", lambda: (True, "recordings here"))
    monkeypatch.setattr(command, "published_available", lambda arch, name: (True, f"{arch} {name} there"))
    options, why = decide(Options(iterations=(0, 1)))
    assert (options.recordings, options.model) == (("MajajHong2015.public",), ("vgg16",))
    assert why == "auto: recordings here; vgg16 IMAGENET1K_V1 there"


@pytest.mark.parametrize("recordings", [("MajajHong2015.public",), ("IT=x.nc",), ("V4=simulated", "IT=x.nc")])
def test_a_source_that_is_named_never_falls_back(monkeypatch: pytest.MonkeyPatch, recordings: Any) -> None:
    monkeypatch.setattr(command, "public_available", lambda: pytest.fail("asked"))
    options, why = decide(Options(recordings=recordings))
    assert options.recordings == recordings
    assert options.model == ("vgg16",)
    assert why == "as named"
    assert decide(Options(recordings=("V4=simulated", "IT=simulated")))[0].model == ("small",)


# Bad input: one line on stderr, exit code 1, before long work, and nothing written


def spoiled_image(world: World) -> list[Any]:
    path = world.folder / "v4" / "picture007.png"
    path.write_bytes(path.read_bytes()[:60])
    return []


def few_images(world: World) -> list[Any]:
    path = tiny.recordings(world.folder / "few", n_images=11)
    return ["--layers", "V4", "--recordings", path]


def all_constant(world: World) -> list[Any]:
    path = tiny.recordings(world.folder / "none", n_sites=3)
    with xr.open_dataset(path) as file:
        data = file.load()
    data["responses"][:] = 2.5
    data.to_netcdf(path, engine="netcdf4")
    return ["--layers", "V4", "--recordings", path]


def malicious(world: World) -> list[Any]:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(world.folder / "trap"),)

    path = world.folder / "weights.pth"
    path.write_bytes(pickle.dumps({"a": Trap()}, protocol=2))
    return ["--weights", path, "--baseline", "none", "--model", "alexnet"]


def other_weights(world: World) -> list[Any]:
    path = world.folder / "weights.pth"
    torch.save(tiny.layers().state_dict(), path)
    return ["--weights", path, "--baseline", "none", "--model", "alexnet"]


def v4_folder(world: World) -> list[Any]:
    for name in ("images", "responses_repeat_averaged"):
        (world.folder / "sessions" / name).mkdir(parents=True)
    (world.folder / "sessions" / "images" / "images_201025.zip").write_bytes(b"")
    np.save(world.folder / "sessions" / "responses_repeat_averaged" / "responses_201025.npy", np.zeros((2, 3)))
    return ["--layers", "V4", "--recordings", world.folder / "sessions", "--session", "201026"]


def file_in_the_way(world: World) -> list[Any]:
    (world.folder / "file").write_text("")
    return ["--output", world.folder / "file" / "out"]


def eleven_images(world: World) -> list[Any]:
    """Ten folds of one image and one of two: r would be 1 or -1 there, and nowhere else."""
    path = tiny.recordings(world.folder / "eleven", n_images=11)
    return ["--layers", "V4", "--recordings", path, "--components", 2]


ON_V4 = ["--recordings", "V4=V4"]
BAD = {
    "image": (spoiled_image, r"V4.nc: 1 of 40 images are not those that it was written with: picture007.png"),
    "few images": (few_images, r"11 images are too few .*: at least 40 are needed"),
    "constant": (all_constant, r"no site is left, all 3 are constant or have NaN responses"),
    "pickle": (malicious, r"was not loaded, since loading such a file could run code"),
    "weights": (other_weights, r"does not fit the network. missing: features.0.weight"),
    "session": (v4_folder, r"session '201026' is not known.*201025"),
    "output": (file_in_the_way, r"(cannot write .*choose another folder|is a file; name a folder)"),
    "region": (["--layers", "V5=2", "--recordings", "V5=V4"], r"V5=V4|region 'V5' is not known in .*V4.nc.*Known: V4"),
    "no recordings": (["--layers", "V4", "IT", "--recordings", "V4=V4"], r"no recordings are given for region IT"),
    "region not asked": (["--layers", "V4", "--recordings", "IT=V4"], r"region 'IT' is not known.*regions asked for"),
    "no such file": (["--recordings", "nowhere.nc"], r"recordings 'nowhere.nc': there is no such file or folder"),
    "session of none": (["--session", "x"], r"session x applies to recordings in the layout of V4_compact_models"),
    "features": (["--components", 20], r"feedback .* 4@0: 12 features are fewer than 20 components; use fewer components"),
    "components": (["--components", 36], r"36 components need more than 36 training images, a split has 36; use fewer"),
    "nested": (
        ["--components", 32, "--select", "nested", "--layers", "V4", "--recordings", "V4=V4"],
        r"a split within the training images has 32; use fewer components",
    ),
    "no component": (["--components", 0], r"components is 0, expected at least 1"),
    "seed": (["--seed", -1], r"seed is -1, expected at least 0"),
    "twice": (["--model", "small", "--weights", "none", "none"], r"model small with weights random, seed 0 is named twice"),
    "no pca": (["--pca", 0], r"pca is 0, expected at least 1"),
    "pca": (["--pca", 3], r"pca = 3 keeps fewer components than the 4 of PLS"),
    "batch": (["--batch-size", 0], r"batch_size is 0, expected at least 1"),
    "iteration": (["--model", "MODEL:net", "--iterations", 0, 2], r"has no feedback; it runs with 0 iterations alone"),
    "no image size": (["--model", "small", "--image-size", 0], r"image size is 0, expected a whole number of pixels"),
    "no weights": (["--model", "small", "--weights", ""], r"weights of small are an empty text"),
    "pairs": (["--model", "small", "vgg16", "--weights", "a", "b", "c"], r"2 models and 3 weights; give one name for all"),
    "no baseline": (["--baseline", "none", "--baseline-weights", "x"], r"baseline weights x are given, and no baseline"),
    "near": (["--model", "resnet50"], r"model 'resnet50' is not known; did you mean torchvision:resnet50"),
    "tokens": (
        ["--model", "MODEL:tokens", "--layers", "V4=tokens", *ON_V4],
        r"expected the images along the first axis",
    ),
    "dropout": (["--model", "MODEL:dropped", "--layers", "V4=out", *ON_V4], r"it is not deterministic"),
    "training": (["--model", "MODEL:stays", "--layers", "V4=out", *ON_V4], r"stays in training mode"),
    "statistics": (
        ["--model", "MODEL:batch", "--layers", "V4=out", *ON_V4],
        r"depend on the other images of its batch",
    ),
    "eleven": (eleven_images, r"11 images"),
    "negative iteration": (["--iterations", -1, 1], r"iterations are \[-1, 1\], expected whole numbers >= 0"),
    "layer": (["--layers", "V4=12"], r"layer '12' is not known.*Known: input, 0, 1, 2"),
    "word": (["--layers", "V4="], r"layers 'V4=': expected REGION or REGION=LAYER"),
    "form": (["--layers", "V4=2@x"], r"'2@x' is not of the form NAME, NAME@ITERATION"),
    "no layer": (["--layers", "V1"], r"no layer is known for region 'V1'; name one"),
    "baseline layers": (["--baseline-layers", "V1=2"], r"region V1, but it is not among the regions asked for \(V4, IT\)"),
    "model": (["--model", "vgg61"], r"model 'vgg61' is not known; did you mean .*'vgg16'"),
    "device": (["--device", "nonsense"], r"device 'nonsense' cannot be used here"),
    "feedback": (["--step-size", 0.5], r"the function itself sets the feedback of its CNNF"),
    "not finite": (lambda world: ["--model", world.model("exploding")], r"second@0: features are not finite"),
    "size": (["--image-size", 2], r"cannot be run on images of shape \(3, 2, 2\)"),
    "flags": (
        ["--model", "alexnet", "--iterations", 0, "--match-norm"],
        r"--match-norm: settings of the feedback, and no feedback iteration",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input(world: World, no_work: None, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    more, message = BAD[kind]
    words = more(world) if callable(more) else [str(w).replace("V4=V4", f"V4={world.v4}") for w in more]  # type: ignore[attr-defined]
    words = [str(w).replace("MODEL:", world.model("")) for w in words]
    words = [str(w).replace("IT=V4", f"IT={world.v4}").replace("V5=V4", f"V5={world.v4}") for w in words]
    assert world.run(*words) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1, said.err
    assert re.match(rf"error: .*({message})", said.err), said.err
    assert not (world.folder / "trap").exists()
    assert not (world.folder / "out").exists(), "an error leaves no folder"


@pytest.mark.parametrize("words", [["--iterations", "two"], ["--splits", "none"], ["--nonsense"], ["--select", "best"]])
def test_flags_that_are_not_understood_are_exit_code_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2


def test_a_layer_that_cannot_be_scored_is_written_and_fails(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", world.model("dead"), "--baseline", world.model("net")]
    assert world.run(*words) == 1
    said = capsys.readouterr()
    assert re.search(r"error: no site has a score, since .* constant: IT .*/IT.nc nets.py:dead second@0 pls\n", said.err)
    entries = world.entries()
    assert [e["median_r"] is None for e in entries] == [False, False, False, True]
    assert (entries[3]["difference"], entries[3]["tests"]) == (None, [])
    assert entries[1]["difference"] is not None
    assert "| undefined" in said.out
    assert sorted(os.listdir(world.folder / "out")) == sorted(report.FILES)


# Disks and interruptions


@pytest.mark.parametrize(
    "name",
    [
        "scores.nc",
        "run.json",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("table.md", "summary.json")),
    ],
)
def test_a_disk_that_fills_up_leaves_the_results_as_they_were(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: Any
) -> None:
    replace = Path.replace

    def full(temporary: Any, path: Any) -> Any:
        if Path(path).name == name:
            raise OSError(28, "No space left on device")
        return replace(temporary, path)

    for before in ({}, None):  # type: ignore[var-annotated]
        if before is None:
            assert world.run() == 0
            before = {path.name: path.read_bytes() for path in (world.folder / "out").iterdir()}
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", full)
            assert world.run() == 1
        assert re.search(rf"error: .*cannot write .*{name}: No space left on device; free space", capsys.readouterr().err)
        out = world.folder / "out"
        assert {path.name: path.read_bytes() for path in (out.iterdir() if out.exists() else ())} == before
        assert not list(world.folder.glob(".out*"))


def test_an_output_that_cannot_be_written_is_found_before_anything_is_read(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(path: Any) -> None:
        raise OSError(30, f"cannot write {path}: Read-only file system")

    monkeypatch.setattr(command.results, "check_writable", refuses)  # type: ignore[attr-defined]
    monkeypatch.setattr(command, "load", lambda *a: pytest.fail("recordings were read"))
    assert world.run() == 1
    assert "Read-only file system" in capsys.readouterr().err


def test_recordings_and_layers_are_checked_before_weights_are_downloaded(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(networks.weight_files, "published", lambda *a: pytest.fail("downloaded"))  # type: ignore[attr-defined]
    for more, message in (
        (["--layers", "V4=features.99", "--recordings", world.v4], "layer 'features.99' is not known"),
        (["--recordings", "nowhere.nc"], "nowhere.nc"),
        (["--layers", "V4", "--recordings", world.folder / "few.nc"], "few.nc"),
    ):
        for model in ("vgg16", "torchvision:resnet50"):
            assert world.run("--model", model, *more) == 1
            assert message in capsys.readouterr().err or model != "vgg16"


def test_an_interrupted_run_goes_on(
    world: World, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--batch-size", 5]
    extract, seen = activations.extract, []

    def interrupted(model: Any, batch: Any, layers: Any, *name: Any) -> Any:
        seen.append(len(batch))
        if sum(seen) > 70:
            raise KeyboardInterrupt
        return extract(model, batch, layers, *name)

    with monkeypatch.context() as patch:
        patch.setattr(activations, "extract", interrupted)
        assert world.run(*words) == 130
    assert "interrupted; the same command goes on from what is finished" in capsys.readouterr().err
    assert not (world.folder / "out").exists()
    done = sum(seen[:-1])
    seen.clear()

    def counted(model: Any, batch: Any, layers: Any, *name: Any) -> Any:
        seen.append(len(batch))
        return extract(model, batch, layers, *name)

    monkeypatch.setattr(activations, "extract", counted)
    assert world.run(*words) == 0
    first = world.summary()
    # In all: 40 images of V4 and 60 of IT once for the model (the baseline's first pass is in the cache or once more), and
    # the first images, on which networks are tried.
    again = sum(seen)
    seen.clear()
    monkeypatch.setenv("CNNF_BRAIN_CACHE", str(world.folder / "fresh"))
    assert world.run(*words) == 0
    assert world.summary() == first
    probes = 12 * 6  # images: one probe before the work, one for each group of Grams that is missing
    assert again <= sum(seen) - done + probes


# Words for layers as layers of all networks


def rows(asked: RegionAsked) -> list[tuple[str, str, str]]:
    return [(row.role, str(row.at), str(row.against)) for one in asked.networks for row in one.rows]


def test_without_a_number_all_iterations_that_the_model_runs() -> None:
    model, baseline = tiny.network(iterations=3), tiny.network(seed=1, iterations=0)
    (asked,) = asked_layers({"V4": [""]}, [model], baseline)
    assert rows(asked) == [
        ("baseline", "relu1@0", "None"),
        ("control", "relu1@0", "relu1@0"),
        *(("model", f"relu1@{t}", "relu1@0") for t in (1, 2, 3)),
    ]


def test_the_first_pass_stands_beside_an_iteration_that_is_asked_for() -> None:
    (asked,) = asked_layers({"V4": ["pool2@2"]}, [tiny.network()], tiny.network(seed=1, iterations=0))
    assert rows(asked)[1:] == [("control", "pool2@0", "pool2@0"), ("model", "pool2@2", "pool2@0")]


def test_a_network_is_never_compared_with_itself() -> None:
    model = tiny.network()
    for itself in (model, tiny.network(iterations=0)):  # the same weights
        (asked,) = asked_layers({"V4": ["@0", "@1"]}, [model], itself)
        assert rows(asked) == [("baseline", "relu1@0", "None"), ("model", "relu1@1", "relu1@0")]
        (asked,) = asked_layers({"V4": ["@0"]}, [model], itself)
        assert asked.baseline is None
        assert rows(asked) == [("model", "relu1@0", "None")]


@pytest.mark.parametrize(
    ("words", "iterations", "most"),
    [
        (["V4"], None, 2),
        (["V4"], (0,), 0),
        (["V4=features.16@4"], None, 4),
        (["V4=features.16@0+3", "IT=@1"], None, 3),
        (["V4=features.16@1:feedback", "IT"], (0, 3), 3),
    ],
)
def test_the_network_runs_as_many_iterations_as_are_asked_for(words: list[str], iterations: Any, most: int) -> None:
    choice = command.choose_networks(Options(layers=tuple(words), iterations=iterations, model=("vgg16",)))
    (model,), baseline = choice.skeletons
    assert (model.iterations, baseline.iterations) == (most, 0)


def test_random_weights_of_the_same_architecture_are_one_word_away() -> None:
    choice = choose([("small", None)], baseline_weights="none", settings={"seed": 3})
    (model,), floor = choice.load("cpu")
    assert (floor.weights, floor.iterations) == ("random, seed 3", 0)
    shapes = [{name: tensor.shape for name, tensor in one.module.state_dict().items()} for one in (model, floor)]
    assert shapes[0] == shapes[1]
    assert not torch.equal(*(one.module.state_dict()["conv1.weight"] for one in (model, floor)))


def test_a_network_is_not_compared_with_itself_where_one_file_lacks_the_classifier(tmp_path: Path) -> None:
    from torchvision import models

    torch.manual_seed(0)
    state = models.alexnet(weights=None).state_dict()
    paths = [str(tmp_path / name) for name in ("whole.safetensors", "convolutions.safetensors", "other.safetensors")]
    convolutions = {name: tensor for name, tensor in state.items() if name.startswith("features.")}
    other = {name: tensor + 0.1 for name, tensor in convolutions.items()}
    for path, content in zip(paths, (state, convolutions, other), strict=True):
        safetensors.torch.save_file(content, path)
    whole, headless, changed = (networks.load_network("alexnet", path, iterations=0, image_size=64) for path in paths)
    for model, baseline, alone in ((headless, whole, True), (whole, headless, True), (changed, whole, False)):
        (asked,) = asked_layers({"IT": ["@0"]}, [model], baseline)
        assert (asked.baseline is None) == alone


def test_a_baseline_of_the_same_architecture_sees_images_of_the_model_s_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = tmp_path / "trained.safetensors"
    with_card = cnnf_brain.alexnet(iterations=1)
    safetensors.torch.save_file(with_card.state_dict(), trained, {"card": json.dumps({"arch": "alexnet", "image_size": 64})})
    for baseline in (None, "alexnet"):
        choice = choose([("alexnet", str(trained))], baseline=baseline, baseline_weights="none")
        assert choice.baseline.preprocessing_size == 64
    assert choose([("alexnet", str(trained))], baseline="vgg16").baseline.preprocessing_size == 224
